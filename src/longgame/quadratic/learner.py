"""The quadratic learner: the `Learner` protocol in closed form, without torch, in microseconds a step.

What a signal means here (θ = parameters now, a = features, y = label, r = aᵀθ − y):

| signal | value |
|---|---|
| loss, el2n | ½r², abs(r) |
| token_accuracy | 1 where abs(r) ≤ τ, else 0 |
| logit_nuclear_norm, logit_sketch (response_… alike) | abs(aᵀθ), a ∘ θ (the coordinates' shares of the logit) |
| grad_norm, grad_sketch | ‖r a‖₂, r a: the exact gradient, Float[n, d] |
| logit_error_sketch | r a, too: θ is the output head |
| embedding, base_loss, difficulty, quality, cluster | a, ½(aᵀθ₀ − y)², its pool percentile, column, capability |

Scores are exact functions of a sub-skill's excess loss L, without sampling noise: `token_accuracy` is 100·exp(−L), the
likelihood form; `exact_match` is 100·P(abs(aᵀ(θ − θ*)) ≤ τ) = 100·erf(τ / (2√L)) for a ~ N(0, Σ), τ = `TOLERANCE`: the
chance that the answer to a fresh item is right within τ.

Training is plain SGD (mean gradient of the batch, each example's times its weight in the selection, the recipe's
learning rate with warm-up and linear decay, decoupled weight decay). `training.max_grad_norm`, `training.accumulation`
and `model.lora` have no meaning here and are not used: a clipped or adaptive step is not affine in θ and would have no
closed form.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import erf, sqrt
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from longgame.data.examples import Pool, SequenceData, Stage, Task, earlier_items
from longgame.errors import BudgetError, DataError, NumericalError, RecipeError, ResumeError, unknown
from longgame.evaluation.scorers import Score
from longgame.quadratic.world import QuadraticWorld, WorldSpec, build_world, skill_name
from longgame.recipe import Recipe, TrainingSpec
from longgame.seeding import generator
from longgame.selection.policy import SelectionPolicy
from longgame.signals.base import ALIGNMENTS, Signals
from longgame.signals.frozen import FrozenSignals
from longgame.signals.source import SignalSource
from longgame.training.config import SelectionConfig
from longgame.training.feed import SelectionFeed
from longgame.training.schedule import (
    StepInfo,
    TrainingReport,
    learning_rate_share,
    stage_order,
    warmup_of,
)

TOLERANCE = 0.5
"""τ of `exact_match`: how far from the sound label an answer still counts as right, in label units."""

LIVE = (
    "loss",
    "token_accuracy",
    "el2n",
    "logit_error_sketch",
    "logit_nuclear_norm",
    "logit_sketch",
    "response_logit_nuclear_norm",
    "response_logit_sketch",
    "grad_norm",
    "grad_sketch",
    *ALIGNMENTS,
)
"""Live signals that have a meaning here."""


def build_quadratic_sequence(recipe: Recipe, seed: int) -> SequenceData:
    """The stages, tasks and proxy items of the quadratic world that this recipe and seed describe."""
    return build_world(WorldSpec.of(recipe), seed).sequence


def learning_rates(training: TrainingSpec, steps: int) -> Float[np.ndarray, " steps"]:
    """Learning rate of each step of a stage or probe: the schedule of real fine-tuning (`learning_rate_share`)."""
    warmup = warmup_of(training, steps)
    shares = [learning_rate_share(step, steps, warmup, training.final_lr_share) for step in range(steps)]
    return training.learning_rate * np.asarray(shares)


def _token_accuracy(loss: float) -> float:
    return 100 * float(np.exp(-loss))


def _exact_match(loss: float) -> float:
    return 100 * erf(TOLERANCE / (2 * sqrt(loss))) if loss > 0 else 100.0


QUADRATIC_SCORERS: dict[str, Callable[[float], float]] = {
    "token_accuracy": _token_accuracy,
    "exact_match": _exact_match,
}
"""Scorer name → points 0–100 as a function of the sub-skill's excess loss."""


class _LiveSignals:
    """The engine behind a learner's `SignalSource`; the interface is that of `longgame.signals.engine.SignalEngine`."""

    def __init__(self, learner: QuadraticLearner) -> None:
        self.learner = learner
        self.directions: dict[str, dict[str, np.ndarray]] = {}

    def __call__(self, pool: Pool, names: Sequence[str]) -> dict[str, np.ndarray]:
        return self.learner._live(pool, names, self.directions)

    def measure_directions(
        self,
        pool: Pool,
        weights: Float[np.ndarray, "n h"],
        name: str = "future_alignment",
        preconditioner: None = None,  # noqa: ARG002 - the world is trained by SGD
    ) -> None:
        gradients = self.learner._live(pool, ("grad_sketch",))["grad_sketch"]
        lengths = np.linalg.norm(gradients, axis=1, keepdims=True)
        self.directions[name] = {"theta": weights.T @ (gradients / np.where(lengths > 0, lengths, 1.0))}


class QuadraticLearner:
    """A `longgame.audit.learner.Learner` whose model is one vector θ.

    Args:
        recipe: `training`, `proxy` and what `WorldSpec.of` reads.
        seed: seed of the world; the sequence must be built with the same one.

    Attributes:
        theta: parameters now, Float[d].
        world: the matrices behind the sequence.
        picks: ids of every batch learned so far, in order, with `rates` beside it: what `QuadraticWorld.outcome` takes.
    """

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.recipe = recipe
        self.world: QuadraticWorld = build_world(WorldSpec.of(recipe), seed)
        self.theta: Float[np.ndarray, " d"] = self.world.base.copy()
        self.stages_trained = 0
        self.picks: list[tuple[str, ...]] = []
        self.rates: list[float] = []
        proxy = self.world.sequence.proxy_pool
        self.engine = _LiveSignals(self)
        self.source = SignalSource(
            self.engine,
            proxy=None if proxy is None else lambda: proxy,
            target=lambda: self.world.sequence.stages[self.stages_trained].target_pool,
            earlier=lambda: earlier_items(self.world.sequence.stages[: self.stages_trained]),
            evaluation=lambda: self.world.sequence.evaluation_pool,
            proxy_refresh=recipe.proxy.refresh_steps,
            supported=LIVE,
        )

    def prepare(self, sequence: SequenceData) -> dict[str, np.ndarray]:
        """Frozen columns of all candidates and, behind them, of the proxy items.

        The difficulty of a proxy item is its percentile among all candidates.
        """
        from scipy.stats import rankdata  # slow to import

        examples = [example for stage in sequence.stages for example in stage.candidates]
        candidates = len(examples)
        examples += [example for stage in sequence.stages for example in stage.proxy]
        ids = [example.sample_id for example in examples]
        rows = self.world.rows(ids)
        features = self.world.features[rows]
        loss = 0.5 * (features @ self.world.base - self.world.labels[rows]) ** 2
        sizes = np.cumsum([len(stage.candidates) for stage in sequence.stages])[:-1]
        ranks = [(rankdata(part) - 0.5) / len(part) for part in np.split(loss[:candidates], sizes)]
        ranks.append(np.searchsorted(np.sort(loss[:candidates]), loss[candidates:]) / candidates)
        columns = {
            "embedding": features,
            "base_loss": loss,
            "difficulty": np.concatenate(ranks),
            "quality": self.world.quality[rows],
            "cluster": self.world.capability[rows],
        }
        return FrozenSignals(ids, columns).to_arrays()

    def use(self, sequence: SequenceData, frozen: dict[str, np.ndarray], walked: Sequence[Stage] | None = None) -> None:
        """Adopt a frozen pass.

        Args:
            walked: the stages in the order of the walk, if it is not that of ``sequence``.

        Raises:
            DataError: it was made for other candidates.
        """
        stages = sequence.stages if walked is None else walked
        self.source.target = lambda: stages[self.stages_trained].target_pool
        self.source.earlier = lambda: earlier_items(stages[: self.stages_trained])
        self.source.frozen = FrozenSignals.from_arrays(frozen)
        for stage in sequence.stages:
            self.source.frozen.lookup(stage.pool, ())

    def signals(self, pool: Pool, names: Sequence[str]) -> Signals:
        """Columns under θ as it is now; ``future_proxy`` is at most ``proxy.refresh_steps`` steps old while training.

        Raises:
            PluginError: unknown signal. DataError: a signal without closed form, or a frozen one before `use` or of an
                item that is no candidate.
        """
        return self.source(pool, names)

    def _live(
        self,
        pool: Pool,
        names: Sequence[str],
        directions: Mapping[str, Mapping[str, np.ndarray]] = MappingProxyType({}),
    ) -> dict[str, np.ndarray]:
        """Live signals in closed form."""
        a = pool.info["features"]
        logit = a @ self.theta
        residual = logit - pool.info["label"]
        columns = {
            "loss": lambda: 0.5 * residual**2,
            "token_accuracy": lambda: (np.abs(residual) <= TOLERANCE).astype(np.float64),
            "el2n": lambda: np.abs(residual),
            "logit_error_sketch": lambda: a * residual[:, None],
            "logit_nuclear_norm": lambda: np.abs(logit),
            "logit_sketch": lambda: a * self.theta,
            "response_logit_nuclear_norm": lambda: np.abs(logit),
            "response_logit_sketch": lambda: a * self.theta,
            "grad_norm": lambda: np.abs(residual) * np.linalg.norm(a, axis=1),
            "grad_sketch": lambda: a * residual[:, None],
        }
        for name, direction in directions.items():
            # the sign of the residual turns a, whose length is that of no gradient
            unit = np.sign(residual)[:, None] * a / np.linalg.norm(a, axis=1, keepdims=True)
            columns[name] = partial(np.matmul, unit, direction["theta"].T)
        return {name: columns[name]() for name in names}

    @np.errstate(over="ignore", invalid="ignore")  # a walk that diverges raises NumericalError
    def train(
        self,
        pool: Pool,
        policy: SelectionPolicy,
        selection: SelectionConfig,
        steps: int,
        on_step: Callable[[StepInfo], None] | None = None,
    ) -> TrainingReport:
        """Train through one stage by SGD; ``policy`` decides what is learned, ``selection`` when it is asked.

        Raises:
            BudgetError: fewer candidates or picks than steps, or a share of the budget that holds no example.
            NumericalError: θ diverged (stage and step are named).
        """
        start, before = self.theta.copy(), self.theta - self.world.base
        rates = learning_rates(self.recipe.training, steps)
        gradients = np.zeros((steps, len(self.theta)))
        losses = np.full(steps, np.nan)
        seconds = dict.fromkeys(("train", "select", "diagnose", "callbacks"), 0.0)
        order = stage_order(pool, generator(selection.seed or 0, "order"))
        online = selection.rounds == "step"
        if online and len(pool) < steps:
            raise BudgetError(
                f"a pool of {len(pool)} candidates cannot feed {steps} online steps. "
                "Raise the pool size, lower training.steps, or use a number of rounds."
            )
        chunks = np.array_split(order, steps)
        feed = SelectionFeed(policy, self.source, selection, steps, None if online else pool.take(order))
        clock = time.perf_counter()

        def lap(part: str) -> None:
            nonlocal clock
            now = time.perf_counter()
            seconds[part] += now - clock
            clock = now

        def tell(step: int, loss: float) -> None:
            if on_step is not None:
                on_step(StepInfo(step, steps, feed.learned, loss))
            lap("callbacks")

        tell(0, float("nan"))
        self.source.begin_stage()
        for step in range(steps):
            self.source.step = step
            batch, rows = feed.batch(step, pool.take(chunks[step]) if online else None)
            lap("select")
            a = batch.info["features"][rows]
            residual = a @ self.theta - batch.info["label"][rows]
            losses[step] = 0.5 * float(np.mean(residual**2 if feed.weights is None else feed.weights * residual**2))
            if feed.weights is not None:
                residual = feed.weights * residual
            gradients[step] = residual @ a / len(rows)
            self.theta = self.theta - rates[step] * (gradients[step] + self.recipe.training.weight_decay * self.theta)
            if not np.isfinite(self.theta).all():
                raise NumericalError(
                    f"θ is no longer finite at step {step + 1} of stage {self.stages_trained + 1} "
                    f"(example {batch.ids[rows[0]]} and {len(rows) - 1} more); lower training.learning_rate."
                )
            self.picks.append(tuple(batch.ids[row] for row in rows))
            self.rates.append(float(rates[step]))
            lap("train")
            tell(step + 1, float(losses[step]))
        self.source.end_stage()
        self.stages_trained += 1
        seconds["select"] -= policy.measuring
        seconds["diagnose"] = policy.measuring
        return TrainingReport(
            steps=steps,
            selected_tokens=feed.spent,
            optimiser_tokens=feed.learned,
            candidate_tokens=feed.scored,
            losses=losses,
            gradient_gram=gradients @ gradients.T,
            gradient_width=len(self.theta),
            drift=_drift(self.theta - start, before),
            update_norm=float(np.linalg.norm(self.theta - start)),
            seconds=seconds,
            proxy_passes=self.source.proxy_passes,
            target_passes=self.source.target_passes,
            earlier_passes=self.source.earlier_passes,
            evaluation_passes=self.source.evaluation_passes,
        )

    def score(self, tasks: Sequence[Task]) -> list[Score]:
        """Exact population scores of θ as it is now; ``items`` counts the sub-skill's stand-ins in the task.

        Raises:
            DataError: a task that is not of this world. RecipeError: a scorer without closed form.
        """
        losses = self.world.sub_skill_losses(self.theta)
        scores = []
        for task in tasks:
            if task.name not in losses:
                raise DataError(unknown("task of the quadratic world", task.name, losses))
            counts: dict[str | None, int] = {}
            for item in task.items:
                counts[item.skill] = counts.get(item.skill, 0) + 1
            names = [skill_name(k) for k in self.world.populations[task.name].skills]
            for scorer in task.scorers:
                if scorer not in QUADRATIC_SCORERS:
                    raise RecipeError("quadratic world: " + unknown("scorer", scorer, QUADRATIC_SCORERS))
                points = QUADRATIC_SCORERS[scorer]
                scores += [
                    Score(task.name, name, scorer, points(float(loss)), counts.get(name, 0))
                    for name, loss in zip(names, losses[task.name], strict=True)
                ]
        return scores

    @contextmanager
    def fork(self) -> Iterator[QuadraticLearner]:
        """A copy in the same state; the world and the frozen columns are shared, being read-only."""
        twin = copy.copy(self)
        twin.source = copy.copy(self.source)
        twin.engine = twin.source.engine = _LiveSignals(twin)
        twin.engine.directions = dict(self.engine.directions)
        twin.theta, twin.picks, twin.rates = self.theta.copy(), list(self.picks), list(self.rates)
        yield twin

    def describe(self) -> dict[str, str]:
        return {"weights": "closed form", "device": "cpu", "dtype": "float64"}

    def save(self, directory: Path) -> None:
        """Write ``quadratic.safetensors`` (θ) and ``quadratic.json`` (what was learned so far, which world)."""
        save_file({"theta": self.theta}, directory / "quadratic.safetensors")
        state = {
            "world": self._world_name(),
            "stages_trained": self.stages_trained,
            "picks": self.picks,
            "rates": self.rates,
        }
        (directory / "quadratic.json").write_text(json.dumps(state), encoding="utf-8")

    def load(self, directory: Path) -> None:
        """Take back what `save` wrote.

        Raises:
            ResumeError: the files are missing or damaged, or belong to another world.
        """
        try:
            state = json.loads((directory / "quadratic.json").read_text(encoding="utf-8"))
            theta = load_file(directory / "quadratic.safetensors")["theta"]
            world, trained = state["world"], int(state["stages_trained"])
            picks, rates = [tuple(batch) for batch in state["picks"]], [float(rate) for rate in state["rates"]]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ResumeError(f"{directory} holds no readable quadratic learner: {error}. Delete it.") from error
        if world != self._world_name():
            raise ResumeError(f"{directory} belongs to world {world}, not {self._world_name()}. Use its own recipe.")
        self.theta, self.stages_trained, self.picks, self.rates = theta, trained, picks, rates

    def _world_name(self) -> str:
        return hashlib.sha256(repr((self.world.spec, self.world.seed)).encode()).hexdigest()[:16]


def _drift(change: Float[np.ndarray, " d"], before: Float[np.ndarray, " d"]) -> float:
    """1 − cos of this stage's change of θ with that of all earlier stages; NaN where either is zero (stage 1)."""
    norm = float(np.linalg.norm(change) * np.linalg.norm(before))
    return 1 - float(change @ before) / norm if norm > 0 else float("nan")
