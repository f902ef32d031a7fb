"""Proposition 1 and the concentration corollary, counted on the quadratic world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from longgame.metrics.diagnostics import selection_concentration
from longgame.quadratic.learner import QuadraticLearner, build_quadratic_sequence
from longgame.quadratic.world import QuadraticWorld
from longgame.recipe import Recipe, parse_recipe
from longgame.seeding import generator, stream_seed
from longgame.selection.base import build_selector
from longgame.selection.history import History
from longgame.selection.policy import SelectionPolicy
from longgame.training.config import SelectionConfig
from studies.theory.concentration import (
    relative_variance,
    relative_variance_bounds,
    sample_projections,
    second_moment,
)
from studies.theory.proposition import alignment, equal_gain_rate, ordering_holds, small_rate_ordering

RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SELECTORS = ("random", "loss", "gradient", "diversity", "quality", "utility-diversity", "lhas")
CONDITIONS = ("exact", "paper", "exact, equal gain", "paper, equal gain")
NOW, NEXT = "stage-1", "stage-2"
_TIE = 1e-10
"""Losses that differ by less, relative to their size, are not ordered: rounding would decide."""


def theory_recipe() -> Recipe:
    """Two stages of the quadratic world."""
    stages = [{"name": name} for name in (NOW, NEXT)]
    return parse_recipe(
        {
            "name": "theory",
            "model": {"name": "quadratic"},
            "data": {"sequence": "quadratic", "stages": stages, "pool_size": 240, "items_per_skill": 1},
            "selectors": ["random"],
            "training": {"steps": 12, "learning_rate": 0.1, "warmup_steps": 2},
        }
    )


def next_loss(world: QuadraticWorld, theta: Float[np.ndarray, " d"]) -> float:
    """True loss of the next stage: the mean over its sub-skills, without the formula of the proposition."""
    return world.losses(theta)[NEXT]


def _ordered(first: float, second: float) -> bool | None:
    """Whether the first loss is higher; None if rounding would decide."""
    return None if abs(first - second) <= _TIE * max(first, second) else first > second


def ordering_table(
    worlds: int = 20, pairs: int = 50, batch: int = 8, rates: Sequence[float] = RATES, seed: int = 0
) -> list[dict[str, Any]]:
    """How often each condition finds which of two batches leaves the higher next-stage loss, by learning rate.

    Batches of ``batch`` candidates of the first stage, drawn at random; their real mean gradients at the base
    parameters. ``exact`` is `ordering_holds`, ``paper`` the linear condition alone (eq. 9). At *equal gain* the second
    takes the step that improves the current stage by the same amount (the proposition's premise), if one exists.
    """
    recipe = theory_recipe()
    names = CONDITIONS
    hits: dict[tuple[float, str], list[bool]] = {(rate, name): [] for rate in rates for name in names}
    for number in range(worlds):
        learner, sequence = QuadraticLearner(recipe, number), build_quadratic_sequence(recipe, number)
        world, theta = learner.world, learner.theta
        gradients = learner.signals(sequence.stages[0].pool, ("grad_sketch",))["grad_sketch"]
        now, following = world.populations[NOW], world.populations[NEXT]
        rng = generator(seed, "theory", "pairs", number)
        for _ in range(pairs):
            picks = rng.permutation(len(gradients))[: 2 * batch].reshape(2, batch)
            a, b = gradients[picks].astype(float).mean(axis=1)
            ahead = (following.optimum, following.curvature)
            for rate in rates:
                higher = _ordered(next_loss(world, theta - rate * a), next_loss(world, theta - rate * b))
                if higher is not None:
                    hits[rate, "exact"].append(ordering_holds(a, b, theta, rate, *ahead) == higher)
                    hits[rate, "paper"].append(small_rate_ordering(a, b, theta, *ahead) == higher)
                step = equal_gain_rate(a, rate, b, theta, now.optimum, now.curvature)
                if np.isnan(step):
                    continue
                higher = _ordered(next_loss(world, theta - rate * a), next_loss(world, theta - step * b))
                if higher is not None:
                    moved = rate * a, step * b
                    hits[rate, names[2]].append(ordering_holds(*moved, theta, 1.0, *ahead) == higher)
                    hits[rate, names[3]].append(small_rate_ordering(*moved, theta, *ahead) == higher)
    return [
        {"rate": rate, "pairs": len(hits[rate, "exact"])}
        | {name: _share(hits[rate, name]) for name in names[:2]}
        | {"equal-gain pairs": len(hits[rate, names[2]])}
        | {name: _share(hits[rate, name]) for name in names[2:]}
        for rate in rates
    ]


def _share(hits: Sequence[bool]) -> float:
    return float(np.mean(hits)) if hits else float("nan")


def stage_table(
    worlds: int = 20, selectors: Sequence[str] = SELECTORS, directions: int = 20_000, seed: int = 0
) -> list[dict[str, Any]]:
    """A first stage of each selector: the next stage's loss after it, and its concentration.

    Per world and selector: displacement of the stage; whether the next stage's loss is higher than after random
    selection, by truth (``higher``), by the exact condition on the displacements and by its linear part; concentration
    of the picks' gradients (eq. 4, at the base parameters); relative variance of their alignment with random future
    directions, by formula and simulated; share of directions that get less than a tenth of the mean.
    """
    recipe = theory_recipe()
    rows = []
    for number in range(worlds):
        moved: dict[str, np.ndarray] = {}
        for name in selectors:
            learner, sequence = QuadraticLearner(recipe, number), build_quadratic_sequence(recipe, number)
            learner.use(sequence, learner.prepare(sequence))
            world, base = learner.world, learner.theta
            policy = SelectionPolicy(build_selector(name), History(seed=number), generator(number, "select", 1))
            pool = sequence.stages[0].pool
            selection = SelectionConfig(budget=recipe.budget, seed=stream_seed(number, "stage", 1))
            learner.train(pool, policy, selection, recipe.training.steps)
            moved[name] = base - learner.theta
            picked = world.rows([sample_id for batch in learner.picks for sample_id in batch])
            a = world.features[picked]
            gradients = a * (a @ base - world.labels[picked])[:, None]
            moment, d = second_moment(gradients), len(base)
            q = sample_projections(moment, np.eye(d), directions, generator(seed, "theory", "directions", number))
            concentration = selection_concentration(gradients)
            low, high = relative_variance_bounds(concentration, d)
            row = {
                "world": number,
                "selector": name,
                "concentration": concentration,
                "relative_variance": relative_variance(moment),
                "least": low,
                "greatest": high,
                "simulated": float(q.var() / q.mean() ** 2),
                "unserved": float((q < 0.1 * q.mean()).mean()),
            }
            if name != selectors[0]:
                following = world.populations[NEXT]
                ahead = (following.optimum, following.curvature)
                first, second = moved[name], moved[selectors[0]]
                row |= {
                    "higher": next_loss(world, base - first) > next_loss(world, base - second),
                    "exact": ordering_holds(first, second, base, 1.0, *ahead),
                    "linear": small_rate_ordering(first, second, base, *ahead),
                    "aligned": alignment(first, base, *ahead),
                }
            rows.append(row)
    return rows


def stage_summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per selector: means of the stage table over worlds, and the share of worlds in which each condition is right."""
    summary = []
    for name in dict.fromkeys(row["selector"] for row in rows):
        mine = [row for row in rows if row["selector"] == name]
        compared = [row for row in mine if "higher" in row]

        def mean(key: str, of: Sequence[dict[str, Any]] = mine) -> float:
            return float(np.mean([row[key] for row in of])) if of else float("nan")

        def right(key: str, of: Sequence[dict[str, Any]] = compared) -> float:
            return float(np.mean([row[key] == row["higher"] for row in of])) if of else float("nan")

        summary.append(
            {"selector": name, "worlds": len(mine), "C": mean("concentration")}
            | {"variance": mean("relative_variance"), "simulated": mean("simulated"), "unserved": mean("unserved")}
            | {"higher": mean("higher", compared), "exact": right("exact"), "linear": right("linear")}
        )
    return summary
