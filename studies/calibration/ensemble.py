"""Thousands of seeds of recorded walks at once, and the true mean of their metrics in closed form.

Replayed picks make θ affine in the label noise: after any number of steps θ = m + S ε with ε ~ N(0, I), one entry per
label draw (see `QuadraticWorld.outcome`). So one matrix product gives θ of all seeds, with the noise shared between the
selectors of a seed as in a real audit. A sub-skill's score is 100·exp(−½‖z‖²) with z = Fᵀ(θ − θ*), Σ = F Fᵀ, and its
expectation over z ~ N(μ, V) is 100·det(I + V)^(−½)·exp(−½ μᵀ(I + V)⁻¹μ). The metrics are affine in the scores, so their
true mean follows exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from longgame.metrics import matrix
from longgame.metrics.longhorizon import adaptation_auc, long_horizon_score
from longgame.quadratic.world import Population, QuadraticWorld
from longgame.recipe import MetricSpec
from studies.calibration.walks import Leg, Walk

Noise = Float[np.ndarray, "n labels"]
"""Label noise of n seeds, in units of each label's sd; a column per label draw of the world."""


@dataclass(frozen=True)
class Measured:
    """Scores of n seeds of one walk, in points: R and the common probe's curves."""

    R: Float[np.ndarray, "n T+1 C"]
    curves: Float[np.ndarray, "n T-1 points"]
    tokens: Float[np.ndarray, "T-1 points"]

    def metrics(self, spec: MetricSpec) -> dict[str, Float[np.ndarray, " n"]]:
        """``current``, ``auc_common``, ``long_horizon`` and ``long_horizon_best`` (default forgetting)."""
        auc = adaptation_auc(np.broadcast_to(self.tokens, self.curves.shape), self.curves).mean(axis=-1)
        return {
            "current": matrix.current_score(self.R),
            "auc_common": auc,
            "long_horizon": self._long(auc, spec, spec.forgetting_reference),
            "long_horizon_best": self._long(auc, spec, "best-ever"),
        }

    def _long(
        self, auc: np.ndarray, spec: MetricSpec, reference: matrix.ForgettingReference
    ) -> Float[np.ndarray, " n"]:
        return long_horizon_score(
            matrix.final_score(self.R),
            auc,
            matrix.forgetting(self.R, reference),
            matrix.ood_score(self.R),
            alpha=spec.alpha,
            beta=spec.beta,
            gamma=spec.gamma,
        )


@dataclass(frozen=True)
class _State:
    """θ = mean + spread · ε at one moment."""

    mean: Float[np.ndarray, " d"]
    spread: Float[np.ndarray, "d used"]


class _Task:
    """Scores of one task as a function of θ (`token_accuracy`), or of its distribution."""

    def __init__(self, population: Population) -> None:
        values, vectors = np.linalg.eigh(population.covariances)
        roots = vectors * np.sqrt(np.clip(values, 0, None))[:, None, :]  # (k, d, d), Σ = F Fᵀ
        directions = values.max(axis=0) > 1e-12 * values.max()
        self.roots = roots[:, :, directions]
        self.optimum = population.optimum
        self._flat = self.roots.transpose(1, 0, 2).reshape(len(self.optimum), -1)

    def points(self, theta: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Mean over the sub-skills of 100·exp(−L), points."""
        z = ((theta - self.optimum) @ self._flat).reshape(len(theta), len(self.roots), -1)
        return 100 * np.exp(-0.5 * (z**2).sum(axis=-1)).mean(axis=-1)

    def expected(self, mean: Float[np.ndarray, " d"], spread: Float[np.ndarray, "d used"]) -> float:
        """Its expectation for θ ~ N(mean, spread spreadᵀ), points."""
        mu = (mean - self.optimum) @ self.roots  # (k, r)
        half = self.roots.transpose(0, 2, 1) @ spread
        total = np.eye(mu.shape[-1]) + half @ half.transpose(0, 2, 1)  # I + V
        solved = np.linalg.solve(total, mu[..., None])[..., 0]
        logs = -0.5 * (np.linalg.slogdet(total)[1] + (mu * solved).sum(axis=-1))
        return float(100 * np.exp(logs).mean())


_Points = Callable[[_State, _Task], np.ndarray]


class Replay:
    """One walk of one world with fresh label noise.

    Args:
        world: where it was recorded.
        walk: what was learned from.
    """

    def __init__(self, world: QuadraticWorld, walk: Walk) -> None:
        self.world, self.walk = world, walk
        legs = (*walk.stages, *walk.probes)
        rows = np.concatenate([batch for leg in legs for batch in leg.batches])
        self.used: Int[np.ndarray, " used"] = np.unique(world.label_of[rows])
        state = _State(world.base, np.zeros((len(world.base), len(self.used))))
        self._after: list[_State] = []
        self._probes: list[list[_State]] = []
        for number, leg in enumerate(walk.stages):
            *_, state = self._run(state, leg)
            self._after.append(state)
            if number < len(walk.probes):
                states = [state, *self._run(state, walk.probes[number])]
                self._probes.append([states[step] for step in walk.probe_at])
        self.tasks = [_Task(population) for population in world.populations.values()]
        T = len(walk.stages)
        self._columns = [range(len(self.tasks)) if t == T - 1 else range(T) for t in range(T)]
        self._base = np.array([task.points(world.base[None])[0] for task in self.tasks])

    def _run(self, state: _State, leg: Leg) -> list[_State]:
        world, states = self.world, []
        theta, spread = state.mean, state.spread
        for rows, rate in zip(leg.batches, leg.rates, strict=True):
            a, share = world.features[rows], rate / len(rows)
            theta = theta - share * a.T @ (a @ theta - world.clean_labels[rows])
            spread = spread - share * a.T @ (a @ spread)
            columns = np.searchsorted(self.used, world.label_of[rows])
            np.add.at(spread.T, columns, share * a * world.label_sd[rows][:, None])
            states.append(_State(theta, spread))
        return states

    def measure(self, noise: Noise) -> Measured:
        """Scores under this label noise."""
        drawn = noise[:, self.used]

        def points(state: _State, task: _Task) -> Float[np.ndarray, " n"]:
            return task.points(state.mean + drawn @ state.spread.T)

        return self._fill(len(noise), points)

    def truth(self) -> Measured:
        """Expected scores over the label noise, exactly (n = 1)."""

        def points(state: _State, task: _Task) -> Float[np.ndarray, " n"]:
            return np.array([task.expected(state.mean, state.spread)])

        return self._fill(1, points)

    def _fill(self, n: int, points: _Points) -> Measured:
        T = len(self._after)
        R = np.full((n, T + 1, len(self.tasks)), np.nan)
        R[:, 0] = self._base
        curves = np.full((n, T - 1, len(self.walk.probe_at)), np.nan)
        for t, state in enumerate(self._after):
            for column in self._columns[t]:
                R[:, t + 1, column] = points(state, self.tasks[column])
            if t < T - 1:
                for place, probed in enumerate(self._probes[t]):
                    curves[:, t, place] = points(probed, self.tasks[t + 1])
        return Measured(R, curves, self.walk.probe_tokens)


def world_noise(world: QuadraticWorld) -> Noise:
    """The label noise that the world itself drew (n = 1): with it, a replay is the recorded walk."""
    noise = np.zeros((1, int(world.label_of.max()) + 1))
    noise[0, world.label_of] = (world.labels - world.clean_labels) / world.label_sd
    return noise
