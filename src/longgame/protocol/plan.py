"""What an audit will cost, before it is run: trials, tokens, and time at rates measured now on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from longgame.data.examples import Pool
from longgame.protocol.learner import Learner
from longgame.protocol.substrate import make_learner, make_sequence
from longgame.recipe import Recipe
from longgame.selectors.base import build_selector
from longgame.signals.base import CONTEXT, SIGNALS


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured on this machine with the threads of this process."""

    forward: float
    """Candidate tokens scored per second by a forward signal (loss)."""
    backward: float
    """Tokens per second through forward + backward (gradient sketch; training is taken to cost the same)."""
    items: float
    """Validation items scored per second."""


@dataclass(frozen=True, slots=True)
class TrialCost:
    """Tokens and estimated seconds of one trial of a selector."""

    selector: str
    scored_tokens: int
    trained_tokens: int
    scored_items: int
    seconds: float


def _rate(amount: float, work: Callable[[], object], seconds: float = 1.0) -> float:
    """Amount per second of a piece of work: once to warm up, then for about ``seconds``."""
    work()
    repeats, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        work()
        repeats += 1
    return amount * repeats / (time.perf_counter() - begun)


def measure_rates(learner: Learner, pool: Pool, recipe: Recipe, seed: int) -> Rates:
    """Time the learner on as many candidates as one step scores, and on two items of every task."""
    candidates = pool.take(range(max(1, min(len(pool), len(pool) // recipe.training.steps))))
    tokens = float(candidates.tokens.sum())
    tasks = [replace(task, items=task.items[:2]) for task in make_sequence(recipe.model_dump_json(), seed).tasks]
    return Rates(
        forward=_rate(tokens, lambda: learner.signals(candidates, ("loss",))),
        backward=_rate(tokens, lambda: learner.signals(candidates, ("grad_sketch",))),
        items=_rate(sum(len(task.items) for task in tasks), lambda: learner.score(tasks)),
    )


def estimate(recipe: Recipe) -> tuple[list[TrialCost], Rates]:
    """Cost of one trial of every selector of the recipe (first seed), rates measured now."""
    seed = recipe.seeds[0]
    sequence = make_sequence(recipe.model_dump_json(), seed)
    learner = make_learner(recipe, seed)
    pools = [learner.pool(stage.candidates) for stage in sequence.stages]
    rates = measure_rates(learner, pools[0], recipe, seed)
    stage_tokens = [int(pool.tokens.sum()) for pool in pools]
    share = min(1.0, recipe.probe.steps / recipe.training.steps)
    own = sum(stage_tokens[1:]) * share * ("own" in recipe.probe.kinds)
    common = sum(stage_tokens[1:]) * share * ("common" in recipe.probe.kinds)
    rounds = 1.0 if recipe.rounds == "step" else 1 + (recipe.rounds - 1) * (1 - recipe.budget / 2)
    trained = (sum(stage_tokens) + own) * recipe.budget * recipe.training.epochs + common * recipe.budget
    per_row = sum(len(stage.task.items) for stage in sequence.stages)
    shifted = sum(len(task.items) for task in sequence.ood)
    rows_of_ood = len(sequence.stages) if recipe.data.ood_after == "every-stage" else 1
    probed = sum(len(stage.task.items) for stage in sequence.stages[1:])
    items = (
        per_row * len(sequence.stages) + shifted * rows_of_ood + probed * recipe.probe.points * len(recipe.probe.kinds)
    )
    costs = []
    for spec in recipe.selectors:
        needs = build_selector(spec.name, spec.parameters).requires
        kinds = {SIGNALS[name].cost for name in needs if name in SIGNALS}
        kinds |= {"backward"} if set(needs) & set(CONTEXT) else set()
        rate = rates.backward if "backward" in kinds else rates.forward if "forward" in kinds else None
        scored = 0 if rate is None else round((sum(stage_tokens) + own) * rounds)
        seconds = (scored / rate if rate else 0.0) + trained / rates.backward + items / rates.items
        costs.append(TrialCost(spec.key, scored, round(trained), items, seconds))
    return costs, rates


def print_plan(recipe: Recipe, folder: Path, workers: int, threads: int, console: Console) -> None:
    """Print what an audit would do: its trials, their tokens, the estimated time, and where it would write."""
    costs, rates = estimate(recipe)
    table = Table(title=f"Plan of {recipe.name}: {len(recipe.selectors)} selectors × {len(recipe.seeds)} seeds")
    for heading in ("selector", "trials", "tokens scored", "tokens trained", "items evaluated", "time per trial"):
        table.add_column(heading, justify="left" if heading == "selector" else "right")
    for cost in costs:
        table.add_row(
            cost.selector,
            str(len(recipe.seeds)),
            f"{cost.scored_tokens:,}",
            f"{cost.trained_tokens:,}",
            f"{cost.scored_items:,}",
            f"{cost.seconds:,.1f} s",
        )
    console.print(table)
    total = sum(cost.seconds for cost in costs) * len(recipe.seeds)
    console.print(
        f"{len(costs) * len(recipe.seeds)} trials, about {total / 60 / workers:.1f} min with {workers} worker(s) of "
        f"{threads} thread(s), by rates measured now: forward {rates.forward:,.0f} tokens/s, forward+backward "
        f"{rates.backward:,.0f} tokens/s, evaluation {rates.items:,.0f} items/s per worker.\n"
        f"Results would go to {folder}. Nothing was written.",
        highlight=False,
    )
