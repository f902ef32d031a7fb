"""What an audit will cost, before it is run: trials, tokens, and time at rates measured now on this machine."""

from __future__ import annotations

import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text
from threadpoolctl import threadpool_limits

from longgame.audit.checks import (
    check_files,
    check_models,
    check_plugins,
    check_scorers,
    check_scores,
    score_warnings,
    seed_warnings,
    unfinished_trials,
)
from longgame.audit.learner import Learner, learner_kind, make_learner, sequence_of
from longgame.audit.plan import OWN, Condition, Plan
from longgame.audit.run import Run
from longgame.data.examples import EARLIER_ITEMS, Example, Pool, Task
from longgame.data.sequences import measure_contamination
from longgame.evaluation.scorers import build_scorer
from longgame.recipe import Recipe
from longgame.seeding import generator
from longgame.selection.base import Selector, build_selector
from longgame.selection.families import spec_information
from longgame.selection.history import History
from longgame.selection.interventions import Replay, selector_of
from longgame.selection.policy import SelectionPolicy
from longgame.signals.auxiliary import AuxiliarySpec
from longgame.signals.base import ALIGNMENTS, SIGNALS, needs_auxiliary, scorer_passes, work_of
from longgame.signals.quality.base import QualitySources
from longgame.training.config import SelectionConfig


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured now on this machine, in one process with a worker's number of threads."""

    forward: float
    """Candidate tokens scored per second by a forward signal (loss)."""
    backward: float
    """Candidate tokens per second through forward + backward (gradient sketch)."""
    items: float
    """Validation items scored per second."""
    step: float
    """Seconds of one optimiser step on a step's share of the budget, without selection."""
    startup: float
    """Seconds until libraries, data and model are there, as every worker needs them."""


@dataclass(frozen=True, slots=True)
class TrialCost:
    """Tokens and estimated seconds of one trial of a selector."""

    selector: str
    scored_tokens: int
    trained_tokens: int
    scored_items: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a recipe will cost at the rates measured."""

    trials: tuple[TrialCost, ...]
    """One trial of every selector."""
    seed_seconds: float
    """The work that the trials of a seed share: frozen pass and row 0."""
    rates: Rates

    def seconds(self, seeds: int, workers: int) -> float:
        """Wall-clock of the audit: start-up, the seeds' shared work, then all trials, spread over the workers."""
        return wall_clock([self], [self], seeds, workers)


def wall_clock(conditions: Sequence[Estimate], bases: Sequence[Estimate], seeds: int, workers: int) -> float:
    """Seconds of an audit of these conditions with ``seeds`` seeds each.

    Args:
        conditions: one estimate each.
        bases: an estimate of each piece of shared work; conditions that start from the same one share it.
    """
    shared = sum(base.seed_seconds for base in bases) * seeds / min(workers, seeds * len(bases))
    trials = sum(cost.seconds for condition in conditions for cost in condition.trials) * seeds
    count = sum(len(condition.trials) for condition in conditions) * seeds
    return conditions[0].rates.startup + shared + trials / min(workers, count)


def _seconds(work: Callable[[], object], seconds: float = 1.0) -> float:
    """Median seconds of a piece of work, repeated for about ``seconds`` after one time to warm up."""
    work()
    took: list[float] = []
    end = time.perf_counter() + seconds
    while not took or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def _step_seconds(learner: Learner, pool: Pool, recipe: Recipe, seed: int) -> float:
    """Seconds of an optimiser step, from a short training of a fork that is thrown away."""

    def train(steps: int) -> float:
        part = pool.take(range(len(pool) * steps // recipe.training.steps))
        policy = SelectionPolicy(build_selector("random"), History(), generator(seed, "plan"))
        rounds: Literal["step"] | int = "step" if recipe.rounds == "step" else 1
        selection = replace(SelectionConfig.of_recipe(recipe, seed), rounds=rounds)
        with learner.fork() as fork:
            return fork.train(part, policy, selection, steps).seconds["train"] / steps

    first = train(min(2, recipe.training.steps))
    return train(max(1, min(recipe.training.steps, round(2 / first))))


def _timed(task: Task) -> Task:
    """Two items of a task, with the scorers that ask nothing but the model."""
    scorers = tuple(name for name in task.scorers if not build_scorer(name).asks_outside)
    return replace(task, items=task.items[:2], scorers=scorers or ("token_accuracy",))


def measure_rates(learner: Learner, pool: Pool, recipe: Recipe, seed: int, threads: int, startup: float) -> Rates:
    """Time the learner on as many candidates as one step scores, on two items of every task, and on a few steps."""
    candidates = pool.take(range(max(1, min(len(pool), len(pool) // recipe.training.steps))))
    tokens = float(candidates.tokens.sum())
    tasks = [task for task in map(_timed, sequence_of(recipe, seed).tasks) if task.items]
    with threadpool_limits(limits=threads):
        return Rates(
            forward=tokens / _seconds(lambda: learner.signals(candidates, ("loss",))),
            backward=tokens / _seconds(lambda: learner.signals(candidates, ("grad_sketch",))),
            items=sum(len(task.items) for task in tasks) / _seconds(lambda: learner.score(tasks))
            if tasks
            else math.inf,
            step=_step_seconds(learner, pool, recipe, seed),
            startup=startup,
        )


def estimate(recipe: Recipe, threads: int, rates: Rates | None = None) -> Estimate:
    """Cost of one trial of every selector of the recipe (first seed, own condition).

    Args:
        rates: of this machine; None: measured now.
    """
    seed, training, probe = recipe.seeds[0], recipe.training, recipe.probe
    start = time.perf_counter()
    sequence = sequence_of(recipe, seed)
    learner = make_learner(recipe, seed)
    pools = [stage.pool for stage in sequence.stages]
    if rates is None:
        rates = measure_rates(learner, pools[0], recipe, seed, threads, time.perf_counter() - start)
    stage_tokens = [int(pool.tokens.sum()) for pool in pools]
    share = min(1.0, probe.steps / training.steps)
    own = sum(stage_tokens[1:]) * share * ("own" in probe.kinds)
    common = sum(stage_tokens[1:]) * share * ("common" in probe.kinds)
    choices = training.steps if recipe.rounds == "step" else recipe.rounds
    offered = 1.0 if recipe.rounds == "step" else 1 + (choices - 1) * (1 - recipe.budget / 2)
    trained = (sum(stage_tokens) + own) * recipe.budget * training.epochs + common * recipe.budget
    steps = training.steps * len(pools) + probe.steps * (len(pools) - 1) * len(probe.kinds)
    per_row = sum(len(stage.task.items) for stage in sequence.stages)
    shifted = sum(len(task.items) for task in sequence.ood)
    rows_of_ood = len(sequence.stages) if recipe.data.ood_after == "every-stage" else 1
    probed = sum(len(stage.task.items) for stage in sequence.stages[1:])
    items = per_row * len(sequence.stages) + shifted * rows_of_ood + probed * (probe.points - 1) * len(probe.kinds)
    diagnosed = sum(stage_tokens) * recipe.budget * math.ceil(choices / recipe.metrics.gradient_every) / choices
    proxy = sequence.proxy_pool
    targets = [stage.target_pool for stage in sequence.stages if stage.target_pool is not None]
    refreshes = math.ceil(min(choices, training.steps / recipe.proxy.refresh_steps)) * len(pools)
    refreshes += math.ceil(min(choices, probe.steps / recipe.proxy.refresh_steps)) * (len(pools) - 1) * bool(own)
    costs = []
    for spec in recipe.selectors:
        selector = selector_of(spec)
        needs = selector.requires
        rate = {"backward": rates.backward, "forward": rates.forward, "none": None}[work_of(needs)]
        scored = 0 if rate is None else round((sum(stage_tokens) + own) * offered)
        references = [SIGNALS[name].needs for name in needs if name in ALIGNMENTS]
        passes = sum("proxy" in reference for reference in references) + ("future_proxy" in needs)
        scored += refreshes * passes * int(proxy.tokens.sum()) if proxy is not None else 0
        passes = sum("target" in reference for reference in references) + ("target_gradient" in needs)
        scored += refreshes * passes * sum(int(pool.tokens.sum()) for pool in targets) // max(1, len(targets))
        if passes := sum("earlier" in reference for reference in references):
            means = [float(pool.tokens.mean()) * min(EARLIER_ITEMS, len(pool)) for pool in pools]
            read = sum(sum(means[:number]) for number in range(len(means)))
            scored += round(refreshes / len(pools) * passes * read)
        looks = sum("evaluation" in reference for reference in references)
        scored += refreshes * looks * int(sequence.evaluation_pool.tokens.sum()) if looks else 0
        seconds = (scored / rate if rate else 0.0) + steps * rates.step + items / rates.items
        measured = replay_tokens(selector, pools)
        forward, backward = auxiliary_tokens(selector, pools, targets)
        apart = round((sum(stage_tokens) + own) * offered) * passes_apart(needs)
        apart += round(sum(stage_tokens) + own) * scorer_passes(needs)  # counted as if it were the trained model
        scored += measured + forward + backward + apart
        seconds += (measured + forward + apart) / rates.forward + backward / rates.backward
        seconds += 0.0 if "grad_sketch" in needs else diagnosed / rates.backward
        costs.append(TrialCost(spec.key, scored, round(trained), items, seconds))
    shared = sum(stage_tokens) / rates.forward + (per_row + shifted) / rates.items
    return Estimate(tuple(costs), shared, rates)


def passes_apart(names: Iterable[str]) -> int:
    """Forward passes over other texts than the candidates as they are (IFD's responses alone)."""
    return sum(name in SIGNALS and SIGNALS[name].live and SIGNALS[name].reads is not None for name in names)


def auxiliary_tokens(selector: Selector, pools: Sequence[Pool], targets: Sequence[Pool]) -> tuple[int, int]:
    """Tokens that pass forward, and forward and backward, in the trainings beside a stage's own, over all stages."""
    needs = needs_auxiliary(selector.requires)
    if not needs:
        return 0, 0
    spec = selector.auxiliary or AuxiliarySpec()
    candidates = sum(int(pool.tokens.sum()) for pool in pools)
    items = sum(int(pool.tokens.sum()) for pool in targets)
    forward = backward = 0
    if "warmup" in needs:
        backward += round(spec.epochs * (spec.share * candidates + candidates + items))
    if "reference" in needs:
        forward, backward = forward + candidates, backward + spec.epochs * items
    if "log" in needs:
        forward, backward = forward + spec.epochs * candidates, backward + spec.epochs * candidates
    return forward, backward


def replay_tokens(selector: Selector, pools: Sequence[Pool]) -> int:
    """Tokens whose loss the choice of a `Replay` reads at the ends of all stages but the last."""
    if not isinstance(selector, Replay) or not selector.share or not selector.choice.measures:
        return 0
    choice, sizes = selector.choice, []
    for pool in pools:
        cells = len({example.skill for example in pool.examples}) if choice.measures == "cell" else 1
        items = len(pool) if choice.measures == "every" else min(len(pool), choice.items * cells)
        sizes.append(int(pool.tokens.sum()) * items // len(pool))
    return sum(sum(sizes[:number]) for number in range(1, len(sizes)))


def estimate_all(plan: Plan, threads: int) -> dict[str, Estimate]:
    """An estimate of every condition; rates are measured once per model, adaptation and budget."""
    rates: dict[tuple[str, float], Rates] = {}
    estimates = {}
    for name, condition in plan.conditions.items():
        key = (condition.recipe.model.model_dump_json(), condition.recipe.budget)
        estimates[name] = estimate(condition.recipe, threads, rates.get(key))
        rates[key] = estimates[name].rates
    return estimates


def print_plan(plan: Plan, folder: Path, workers: int, threads: int, console: Console) -> None:
    """Print the plan of an audit: its trials, their tokens, the estimated time, and where it would write.

    Raises:
        LonggameError: what would stop the audit itself before its work begins.
    """
    recipe = plan.recipe
    run = Run.check(folder, recipe)
    check_files(folder, plan)
    check_models(plan)
    check_plugins(recipe)
    check_scorers(recipe)
    left = unfinished_trials(plan, folder)
    check_scores(plan, left)
    for text in (*seed_warnings(recipe), *score_warnings(plan, left)):
        console.print(f"Warning: {text}", style="yellow", markup=False, highlight=False)
    if learner_kind(recipe).has_texts:
        contamination = measure_contamination(sequence_of(recipe, recipe.seeds[0]))
        text = f"Evaluation prompts in the pools (seed {recipe.seeds[0]}): {contamination}."
        style = "yellow" if contamination.is_much else None
        console.print(f"Warning: {text}" if contamination.is_much else text, style=style, markup=False, highlight=False)
    estimates = estimate_all(plan, threads)
    main, seeds = estimates[""], len(recipe.seeds)
    conditions = list(plan.conditions.values())
    title = f"Plan of {recipe.name}: {len(recipe.selectors)} selectors × {seeds} seeds"
    table = Table(title=title + (", own condition" if len(conditions) > 1 else ""))
    for heading in ("selector", "trials", "tokens scored", "tokens trained", "items evaluated", "time per trial"):
        table.add_column(heading, justify="left" if heading == "selector" else "right")
    for cost in main.trials:
        counts = (f"{count:,}" for count in (cost.scored_tokens, cost.trained_tokens, cost.scored_items))
        table.add_row(Text(cost.selector), str(seeds), *counts, f"{cost.seconds:,.1f} s")
    console.print(table)
    console.print(_given_lines(recipe), highlight=False, markup=False, end="")
    for line in judge_lines(plan):
        console.print(f"Estimate of {line}.", highlight=False, markup=False, soft_wrap=True)
    if len(conditions) > 1:
        console.print(_condition_table(conditions, estimates, seeds))
    bases = {condition.base: estimates[condition.name] for condition in reversed(conditions)}
    minutes = wall_clock(list(estimates.values()), list(bases.values()), seeds, workers) / 60
    rates = main.rates
    started = sum(run.trial_store(trial).has("stage-1") for trial in run.plan.trials) if run is not None else 0
    console.print(
        f"{len(plan.trials)} trials, about {_duration(minutes)} with {workers} worker(s) of "
        f"{threads} thread(s), by rates measured now: forward {rates.forward:,.0f} tokens/s, forward+backward "
        f"{rates.backward:,.0f} tokens/s, a training step {rates.step:.3f} s, evaluation {rates.items:,.0f} items/s.\n"
        f"Peak memory while measuring: {_peak_memory()}.\n"
        f"Shared by the trials of a seed: the frozen pass and row 0 of R, done {len(bases)} time(s) for "
        f"{len(conditions)} condition(s) ({main.seed_seconds:,.1f} s).\n"
        + (f"{started} of these trials are started or finished in {folder} and are resumed.\n" if started else "")
        + f"Results would go to {folder}. Nothing was written.",
        highlight=False,
    )


def judge_lines(plan: Plan) -> list[str]:
    """What judges and reward models cost: the frozen pass of every seed grades all candidates and proxy items once."""
    lines: dict[str, None] = {}
    recipes = list({condition.base: condition.base_recipe for condition in plan.conditions.values()}.values())
    groups: dict[str, list[Recipe]] = {}
    for recipe in recipes:
        groups.setdefault(repr((recipe.quality, recipe.complexity)), []).append(recipe)
    for group in groups.values():
        grading = QualitySources.of(group[0].quality, group[0].complexity)
        if not grading.identity():
            continue
        examples: dict[str, Example] = {}
        for recipe in group:
            for seed in recipe.seeds:
                with recipe.paths():
                    sequence = sequence_of(recipe, seed)
                proxy = () if sequence.proxy_pool is None else sequence.proxy_pool.examples
                read = [*(example for stage in sequence.stages for example in stage.candidates), *proxy]
                examples |= {example.sample_id: example for example in read}
        with plan.recipe.paths():
            lines |= dict.fromkeys(grading.estimate_of(list(examples.values())))
    return list(lines)


def _duration(minutes: float) -> str:
    return f"{minutes:.1f} min" if minutes < 180 else f"{minutes / 60:,.0f} h"


def _peak_memory() -> str:
    """Memory that this process, which did what a worker does, had at most: of the machine, and of its GPU."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, bytes
    text = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB of the machine"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_reserved():
        return f"{torch.cuda.max_memory_reserved() / 1e9:.1f} GB of the GPU, {text}"
    return text


def _given_lines(recipe: Recipe) -> str:
    """A line for each thing that an audit gives some selectors besides candidates, history and the model."""
    selectors: dict[str, list[str]] = {}
    for spec in recipe.selectors:
        for words in spec_information(spec):
            selectors.setdefault(words, []).append(spec.key)
    return "".join(f"Also given {words}: {', '.join(names)}.\n" for words, names in selectors.items())


def _condition_table(conditions: Sequence[Condition], estimates: Mapping[str, Estimate], seeds: int) -> Table:
    table = Table(title=f"{len(conditions)} conditions")
    for heading in ("condition", "trials", "tokens trained", "shared work", "time per seed"):
        table.add_column(heading, justify="left" if heading in ("condition", "shared work") else "right")
    for condition in conditions:
        costs = estimates[condition.name].trials
        trained = sum(cost.trained_tokens for cost in costs) * seeds
        base = condition.base or OWN
        seconds = sum(cost.seconds for cost in costs)
        name = condition.name or OWN
        table.add_row(Text(name), str(len(costs) * seeds), f"{trained:,}", Text(base), f"{seconds:,.1f} s")
    return table
