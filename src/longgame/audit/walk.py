"""The walk of one selector through the stages: select, train, score every task, probe the next stage, write it down."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from longgame.audit.learner import Learner, learner_kind
from longgame.audit.picks import SELECTION, write_selection
from longgame.audit.plan import Trial
from longgame.audit.store import CONTAMINATION, RECORDS, StageStore, records_table
from longgame.data.examples import Pool, SequenceData, Stage, Task, earlier_items
from longgame.data.sequences import Contamination
from longgame.engines.local import Notify
from longgame.errors import ModelError, NumericalError, ResumeError
from longgame.evaluation.scorers import Score, build_scorer
from longgame.limits import MEMORY_FIXES, is_out_of_memory
from longgame.metrics.diagnostics import (
    capability_entropy,
    subsampled_concentration,
    token_weighted_mean,
    update_concentration,
)
from longgame.recipe import Recipe
from longgame.seeding import generator, stream_seed
from longgame.selection.base import Reserve, build_selector
from longgame.selection.history import History
from longgame.selection.interventions import selector_of
from longgame.selection.methods.random import RandomSelector
from longgame.selection.policy import Round, SelectionPolicy
from longgame.signals.base import EMBEDDED, SIGNALS, needs_auxiliary
from longgame.signals.flops import signal_flops, training_flops
from longgame.storage import read_arrays, write_arrays, write_state, write_table
from longgame.training.config import SelectionConfig
from longgame.training.schedule import StepInfo, TrainingReport, stage_order


@dataclass
class Walk:
    """One trajectory in progress: what every stage of it needs."""

    recipe: Recipe
    """Of the trial's condition."""
    seed: int
    learner: Learner
    sequence: SequenceData
    """The stages in the order of the walk."""
    policy: SelectionPolicy
    name: str = ""
    """Of the trial."""
    selector: str = ""
    """Its key, for the records."""
    notify: Notify = lambda *_: None
    moment: str = ""
    """Stage, activity and step that the walk has reached, for errors."""

    @classmethod
    def start(
        cls, trial: Trial, recipe: Recipe, learner: Learner, sequence: SequenceData, notify: Notify = lambda *_: None
    ) -> Walk:
        """The walk of a trial before its first stage."""
        policy = SelectionPolicy(
            selector_of(trial.selector),
            History(seed=stream_seed(trial.seed, "history")),
            generator(trial.seed, "select", 0),
            gradient_every=recipe.metrics.gradient_every,
        )
        return cls(recipe, trial.seed, learner, sequence, policy, trial.name, trial.selector.key, notify)

    def missing_stages(self, shared: StageStore, store: StageStore, prepared: SequenceData | None = None) -> range:
        """Restore the state after the last finished stage.

        Args:
            shared: the seed's store, with the part ``base`` finished (see `prepare_seed`).
            store: the trial's store.
            prepared: the stages that ``shared`` was made of, if their order differs from the walk's.

        Returns:
            Numbers of the stages that are not finished yet.

        Raises:
            ResumeError: the shared work is of other weights or data, or a finished stage cannot be read.
        """
        count = len(self.sequence.stages)
        done = store.finished_stages(count)
        if done == count:
            return range(0)
        prepared = prepared or self.sequence
        base = shared.part("base")
        base.check()
        _check_origin(self.learner, prepared, shared)
        frozen = read_arrays(base.read("frozen.safetensors"), base.path / "frozen.safetensors")
        self.learner.use(prepared, frozen, walked=self.sequence.stages)
        if done:
            try:
                last = store.part(f"stage-{done}")
                last.check()
                self.learner.load(last.folder("learner"))
                self.policy.load_state_dict(last.state("policy"))
            except ResumeError as error:
                reason = str(error).partition(" Delete ")[0]
                raise ResumeError(
                    f"{self.name} cannot be resumed after stage {done}: {reason} Delete {store.folder} and run the "
                    "command again; only this trial is done anew."
                ) from error
        return range(done + 1, count + 1)

    def save(self, number: int, rows: list[dict[str, Any]], picks: pd.DataFrame, store: StageStore) -> None:
        """Write what `stage` returned, with the state of selector and model after it."""
        facts = {"trial": self.name, "selector": self.selector, "seed": self.seed}
        with store.writing(f"stage-{number}") as folder:
            write_table(folder / RECORDS, records_table([{**facts, "stage": number, **row} for row in rows]))
            texts = {
                example.sample_id: (example.prompt, example.response)
                for example in self.sequence.stages[number - 1].candidates
                if learner_kind(self.recipe).has_texts
            }
            write_selection(folder / SELECTION, picks, texts)
            write_state(folder, "policy", self.policy.state_dict(), flushed=False)
            (folder / "learner").mkdir()
            self.learner.save(folder / "learner")

    def stage(self, number: int) -> tuple[list[dict[str, Any]], pd.DataFrame]:
        """Select and train on a stage (1-based), score every task, probe the next stage.

        Returns:
            Tidy records of the stage, and its selection table.
        """
        recipe, policy, stages = self.recipe, self.policy, self.sequence.stages
        pool, last = stages[number - 1].pool, number == len(stages)
        selection = SelectionConfig.of_recipe(recipe, stream_seed(self.seed, "stage", number))
        policy.begin_stage(
            generator(self.seed, "select", number), self.reserve(number, pool) if policy.replays else None
        )
        report = self.learner.train(pool, policy, selection, recipe.training.steps, self._on_step(number, "train"))
        seconds = dict(report.seconds)
        if not last:
            clock = time.perf_counter()
            policy.end_stage(self.learner.signals)
            if policy.selector.measured is not None:
                seconds["replay"] = time.perf_counter() - clock
        clock = time.perf_counter()
        self._progress(number, "evaluate", 0, 1)
        every_task = last or recipe.data.ood_after == "every-stage"
        tasks = self.sequence.tasks if every_task else [stage.task for stage in stages]
        scores = self.learner.score(tasks)
        rows = score_rows(scores, tasks, number)
        seconds["evaluate"] = time.perf_counter() - clock
        proxy = self.sequence.proxy_pool if report.proxy_passes else None
        target = stages[number - 1].target_pool if report.target_passes else None
        evaluation = self.sequence.evaluation_pool if report.evaluation_passes else None
        references = [
            (report.proxy_passes, proxy),
            (report.target_passes, target),
            (report.earlier_passes, earlier_items(stages[: number - 1]) if report.earlier_passes else None),
            (report.evaluation_passes, evaluation),
        ]
        work = stage_work(report, policy, pool, references, recipe.training.epochs)
        learnable = policy.learnable(pool)
        rows += _diagnostics(self.learner, learnable, policy, report, recipe)
        if not last:
            clock = time.perf_counter()
            rows += self.probe(number, scores)
            seconds["probe"] = time.perf_counter() - clock
        rows += _costs(report, seconds, policy, work)
        return rows, selection_table(learnable, policy)

    def probe(self, number: int, scores: Sequence[Score]) -> list[dict[str, Any]]:
        """Measure the early learning curve on the stage after this one (paper §4.1; FORMULAS: future AUC).

        ``common`` trains every selector's model on the same uniform sample and so isolates the state that the selector
        left; ``own`` lets the selector pick, with copies of its state and history. The learner does not change.

        Args:
            number: stages that are finished.
            scores: of the learner as it is, with those of the next stage's task: the first point of every curve.

        Returns:
            Tidy rows of kind ``curve``: points 0–100 at selected-token counts, per scorer and sub-skill, and their
            macro mean (sub-skill "").
        """
        pool = self.probe_pool(number)
        reserve = self.reserve(number + 1, pool) if self.policy.replays else None
        first = [score for score in scores if score.task == self.sequence.stages[number].task.name]
        curves: dict[str, list[dict[str, Any]]] = {}
        for kind in self.recipe.probe.kinds:
            if kind == "own" and "common" in curves and self._picks_as_common:
                curves[kind] = [{**row, "probe": kind} for row in curves["common"]]
                continue
            with self.learner.fork() as fork:
                curves[kind] = self._curve(fork, pool, kind, self._probe_policy(kind, number, reserve), number, first)
        return [row for curve in curves.values() for row in curve]

    @property
    def _picks_as_common(self) -> bool:
        """Whether both probes are the same training: uniform picks of every step, from the same generator."""
        is_uniform = type(self.policy.selector) is RandomSelector
        return is_uniform and self.recipe.rounds == "step" and self.recipe.training.epochs == 1

    def probe_pool(self, number: int) -> Pool:
        """The part of the next stage's pool that probes see: as many candidates a step as in the stage itself.

        It is the same for every selector of a seed.
        """
        pool, steps = self.sequence.stages[number].pool, self.recipe.probe.steps
        share = min(1.0, steps / self.recipe.training.steps)
        size = max(steps, round(share * len(pool)))
        return pool.take(np.sort(stage_order(pool, generator(self.seed, "probe-pool", number))[:size]))

    def reserve(self, number: int, pool: Pool) -> Reserve:
        """What a stage, or a probe on it, may replay: earlier stages' candidates and the proxy items.

        The order of replay depends on the seed and the stage alone, so that all selectors of a seed replay alike.

        Args:
            number: of the stage, 1-based.
            pool: its candidates.
        """
        return Reserve(
            candidates=pool,
            earlier=tuple(stage.pool for stage in self.sequence.stages[: number - 1]),
            proxy=self.sequence.proxy_pool,
            budget=round(self.recipe.budget * int(pool.costs.sum())),
            rng=generator(self.seed, "replay", number),
            signals=self.learner.signals,
        )

    def _on_step(self, number: int, activity: str) -> Callable[[StepInfo], None]:
        return lambda info: self._progress(number, activity, info.step, info.steps)

    def _progress(self, number: int, activity: str, step: int, steps: int) -> None:
        self.moment = f"stage {number}, {activity}" + (f", after step {step} of {steps}" if steps > 1 else "")
        self.notify(self.name, number, activity, step, steps)

    def _probe_policy(self, kind: str, number: int, reserve: Reserve | None) -> SelectionPolicy:
        """Uniform and common to all selectors, or a copy of the trial's own policy."""
        rng = generator(self.seed, "probe-select", number)
        if kind == "common":
            return SelectionPolicy(build_selector("random"), History(), rng)
        policy = copy.deepcopy(self.policy)
        policy.begin_stage(rng, reserve)
        policy.gradient_every = 0
        return policy

    def _curve(
        self,
        fork: Learner,
        pool: Pool,
        kind: str,
        policy: SelectionPolicy,
        number: int,
        first: Sequence[Score],
    ) -> list[dict[str, Any]]:
        recipe, stage = self.recipe, self.sequence.stages[number]
        selection = SelectionConfig.of_recipe(recipe, stream_seed(self.seed, "probe", number))
        if kind == "common":
            selection = replace(selection, rounds="step", epochs=1)
        elif selection.rounds != "step":
            selection = replace(selection, rounds=min(selection.rounds, recipe.probe.steps))
        steps = probe_steps(recipe.probe.steps, recipe.probe.points)
        notify = self._on_step(number, f"probe {kind}")
        rows: list[dict[str, Any]] = []

        def measure(info: StepInfo) -> None:
            notify(info)
            if info.step not in steps:
                return
            if info.step == 0:
                scores = first
            elif info.step == steps[-1] or recipe.probe.generations == "every-point":
                scores = fork.score([stage.task])
            else:
                scores = fork.score([without_generations(stage.task)])
            values = [(score.sub_skill, score.scorer, score.value) for score in scores]
            for scorer in dict.fromkeys(score.scorer for score in scores):
                measured = [score.value for score in scores if score.scorer == scorer and score.items]
                values.append(("", scorer, float(np.mean(measured)) if measured else float("nan")))
            rows.extend(_point(sub_skill, scorer, value, kind, info, stage) for sub_skill, scorer, value in values)

        fork.train(pool, policy, selection, recipe.probe.steps, measure)
        return rows


def prepare_seed(
    seed: int,
    learner: Learner,
    sequence: SequenceData,
    store: StageStore,
    contamination: Contamination | None = None,
) -> None:
    """Do once what all trials of a seed share: the frozen pass over every pool, and row 0 of R.

    Args:
        contamination: of the sequence, to be kept with it.
    """
    if store.has("base"):
        return
    with trial_located(lambda: f"seed {seed}, before any training"):
        frozen = learner.prepare(sequence)
        rows = score_rows(learner.score(sequence.tasks), sequence.tasks, 0)
    with store.writing("base") as folder:
        write_arrays(folder / "frozen.safetensors", frozen)
        (folder / "learner.json").write_text(json.dumps(_origin(learner, sequence), indent=1) + "\n")
        if contamination is not None:
            (folder / CONTAMINATION).write_text(json.dumps(asdict(contamination)) + "\n")
        write_table(
            folder / RECORDS,
            records_table([{"trial": "", "selector": "", "seed": seed, **row} for row in rows]),
        )


@contextmanager
def trial_located(where: Callable[[], str]) -> Iterator[None]:
    """Name the trial and its moment in a NumericalError, which itself names the example or item.

    Raises:
        ModelError: instead of torch's error where memory is full.
    """
    try:
        yield
    except NumericalError as error:
        raise NumericalError(f"{where()}: {error}") from error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        raise ModelError(f"{where()}: the memory is full ({reason[:120]}). {MEMORY_FIXES}") from error


_OLDER_ORIGIN = {"attention": "eager"}
"""What runs of older versions did not record, and a learner without attention does not."""


def _origin(learner: Learner, sequence: SequenceData) -> dict[str, str]:
    """What the numbers of a seed depend on besides the recipe: weights, device, and the content of the data."""
    pools = [[example.sample_id for example in (*stage.candidates, *stage.proxy)] for stage in sequence.stages]
    items = [[(item.sample_id, item.answer) for item in task.items] for task in sequence.tasks]
    digest = hashlib.sha256(json.dumps([pools, items]).encode()).hexdigest()[:16]
    return {**learner.describe(), "data": digest}


def _check_origin(learner: Learner, sequence: SequenceData, shared: StageStore) -> None:
    """Refuse to mix weights, devices or data within one run: equal names may hide two checkpoints or two files."""
    old = {**_OLDER_ORIGIN, **shared.part("base").json("learner.json")}
    new = {**_OLDER_ORIGIN, **_origin(learner, sequence)}
    differing = [f"{key}: {old.get(key)} there, {value} now" for key, value in new.items() if old.get(key) != value]
    if differing:
        raise ResumeError(
            f"{shared.folder} was begun with another model or other data. Differing: {'; '.join(differing)}. "
            "Use the same weights, device and data files, or another --out."
        )


# Rows of a stage: scores, learning curves, diagnostics, costs.


def score_rows(scores: Sequence[Score], tasks: Sequence[Task], stage: int) -> list[dict[str, Any]]:
    """Tidy rows of one row of R (points 0–100; NaN = not measured)."""
    kinds = {task.name: task.kind for task in tasks}
    return [
        {
            "kind": "score",
            "stage": stage,
            "task": score.task,
            "task_kind": kinds[score.task],
            "sub_skill": score.sub_skill,
            "scorer": score.scorer,
            "name": "score",
            "value": score.value,
            "unit": "points",
        }
        for score in scores
    ]


def without_generations(task: Task) -> Task:
    """The task without scorers that need a generation, which cost most; the task itself where it has no others."""
    scorers = tuple(name for name in task.scorers if "generation" not in build_scorer(name).requires)
    return replace(task, scorers=scorers or task.scorers)


def probe_steps(steps: int, points: int) -> list[int]:
    """Optimiser steps after which a probe is scored: ``points`` of them, evenly from 0 to ``steps``."""
    return sorted({round(float(step)) for step in np.linspace(0, steps, points)})


def _point(sub_skill: str, scorer: str, value: float, kind: str, info: StepInfo, stage: Stage) -> dict[str, Any]:
    return {
        "kind": "curve",
        "task": stage.task.name,
        "task_kind": stage.task.kind,
        "sub_skill": sub_skill,
        "scorer": scorer,
        "probe": kind,
        "step": info.step,
        "tokens": info.selected_tokens,
        "name": "score",
        "value": value,
        "unit": "points",
    }


def _diagnostics(
    learner: Learner, pool: Pool, policy: SelectionPolicy, report: TrainingReport, recipe: Recipe
) -> list[dict[str, Any]]:
    """Table 2 of the paper for this stage; measured beside the training, never fed back into it."""
    rows = sorted({pool.index[name] for entry in policy.rounds for name in entry.picked_ids})
    chosen = pool.take(rows)
    frozen = learner.signals(chosen, ("cluster", "difficulty", "quality"))
    per_cluster = np.bincount(frozen["cluster"], weights=chosen.tokens, minlength=recipe.metrics.clusters)
    per_skill: dict[str, float] = {}
    for example, tokens in zip(chosen.examples, chosen.tokens.tolist(), strict=True):
        per_skill[example.skill or ""] = per_skill.get(example.skill or "", 0.0) + tokens
    counts = {"cluster": {str(place): float(count) for place, count in enumerate(per_cluster)}}
    if "" not in per_skill:  # every pick has a known sub-skill
        counts["sub_skill"] = per_skill
    noisy = np.array([np.nan if example.noisy is None else example.noisy for example in chosen.examples], dtype=float)
    gradients = [entry.gradients for entry in policy.rounds if entry.gradients is not None]
    picked = np.concatenate(gradients) if gradients else np.zeros((0, 1))
    rng = generator(0, "concentration")
    selection, selection_unit, selection_null = subsampled_concentration(picked, recipe.metrics.concentration_size, rng)
    updates = update_concentration(report.gradient_gram, report.gradient_width)
    values = {
        "capability_entropy": (capability_entropy(per_cluster), "nats"),
        "selection_concentration": (selection, "share"),
        "selection_concentration_unit": (selection_unit, "share"),
        "selection_concentration_null": (selection_null, "share"),
        "update_concentration": (updates.value, "share"),
        "update_concentration_null": (updates.null, "share"),
        "update_concentration_unit": (updates.unit, "share"),
        "update_concentration_unit_null": (updates.unit_null, "share"),
        "adapter_drift": (report.drift, "1-cos"),
        "update_norm": (report.update_norm, "frobenius"),
        "difficulty": (token_weighted_mean(frozen["difficulty"], chosen.tokens), "pool percentile"),
        "quality": (token_weighted_mean(frozen["quality"], chosen.tokens), "0-1"),
        "noisy_share": (token_weighted_mean(noisy, chosen.tokens), "share"),
        "tied_share": (policy.tied_share, "share"),
        "final_loss": (float(report.losses[-1]), "nats/token"),
    }
    records = [
        {"kind": "diagnostic", "name": name, "value": value, "unit": unit} for name, (value, unit) in values.items()
    ]
    return records + [
        {"kind": "picks", "name": name, "sub_skill": label, "value": count, "unit": "tokens"}
        for name, labels in counts.items()
        for label, count in labels.items()
    ]


def _costs(
    report: TrainingReport, seconds: dict[str, float], policy: SelectionPolicy, work: dict[str, float]
) -> list[dict[str, Any]]:
    counts = {
        "selected_tokens": report.selected_tokens,
        "optimiser_tokens": report.optimiser_tokens,
        "candidate_tokens": report.candidate_tokens,
        "selected_examples": sum(len(entry.picked_ids) for entry in policy.rounds),
        **policy.unmet,
    }
    rows = [{"kind": "cost", "name": name, "value": float(value), "unit": "count"} for name, value in counts.items()]
    rows += [
        {"kind": "cost", "name": name, "value": value, "unit": "count" if name.endswith("_tokens") else "FLOP"}
        for name, value in work.items()
    ]
    return rows + [
        {"kind": "cost", "name": f"{part}_seconds", "value": value, "unit": "s"} for part, value in seconds.items()
    ]


GRADIENT = ("grad_sketch",)
"""The signal of the future proxy and of the diagnostics."""


def _beside(names: Sequence[str], embedded: bool) -> set[str]:
    """What works beside the model for these signals: trainings, a scorer model, a judge, an embedder.

    A judge may also give what others read of a column, so it is what is left where nothing else works.
    """
    needs = {need for name in names if name in SIGNALS for need in SIGNALS[name].needs} & {"scorer", "judge"}
    encoder = embedded and not EMBEDDED.isdisjoint(names)
    return {*needs_auxiliary(names), *needs, *(["embedder"] if encoder else [])} or {"judge"}


def stage_work(
    report: TrainingReport,
    policy: SelectionPolicy,
    pool: Pool,
    references: Sequence[tuple[int, Pool | None]],
    epochs: int,
) -> dict[str, float]:
    """Tokens and FLOPs of one stage, after it was trained.

    Counted is what a selector needs, whoever computed it: signals from a cache, or shared by the trials of a seed,
    count in full for every selector that reads them. Seconds (`TrainingReport.seconds`) are those really spent.

    Args:
        report: of the stage; without its ``model`` (closed form) the results hold no FLOPs.
        policy: with the stage's rounds.
        pool: the stage's candidates.
        references: items that candidates were compared with (proxy mixture, target set, evaluation items), and how
            often the model read them.
        epochs: passes over what a round picked.

    Returns:
        ``pool_tokens``; ``scored_tokens``, those that the model read in order to choose (candidates, each time they
        were scored, the frozen pass over the pool, the references, trainings beside the stage's own, and what replay
        measured); ``score_flops`` for them, of these ``frozen_flops`` for the frozen pass, ``replay_flops`` for what
        replay measured and ``warmup_flops``, ``reference_flops`` or ``log_flops`` (and ``_tokens``) for the training
        beside the stage's own, where there is one; ``response_tokens``, those of the picks that the loss is taken over;
        ``train_flops``; ``diagnose_flops`` for gradients that only the diagnostics read.
        The cost of scores that another system made (`Selector.score_source`) is not known: NaN.
    """
    learnable = policy.learnable(pool)
    live = [name for name in policy.required if name in SIGNALS and SIGNALS[name].live]
    required = dict.fromkeys((*policy.required, *policy.selector.frozen_signals))
    frozen = [name for name in required if name in SIGNALS and "base" in SIGNALS[name].needs]
    frozen = [name for name in frozen if not (report.embedded and name in EMBEDDED)]
    replayed = policy.selector.measured
    scored = (
        [learnable.take([learnable.index[name] for name in entry.candidate_ids]) for entry in policy.rounds]
        if live
        else []
    )
    picked = [learnable.take([learnable.index[name] for name in entry.picked_ids]) for entry in policy.rounds]
    tokens = sum(_tokens(part) for part in scored) + (_tokens(pool) if frozen else 0)
    tokens += sum(passes * _tokens(items) for passes, items in references if items is not None)
    tokens += _tokens(replayed) if replayed is not None else 0
    tokens += report.auxiliary_tokens
    beside = "-".join(sorted(_beside(policy.required, report.embedded))) if report.auxiliary_tokens else ""
    countable = np.nan if policy.selector.score_source else 1.0
    counts = {"pool_tokens": float(_tokens(pool)), "scored_tokens": countable * tokens}
    if beside:
        counts[f"{beside}_tokens"] = float(report.auxiliary_tokens)
    counts["response_tokens"] = float(sum(int(np.sum(part.response_tokens)) for part in picked))
    model = report.model
    if model is None:
        return counts
    frozen_flops = float(signal_flops(model, pool, frozen).sum())
    flops = frozen_flops + sum(float(signal_flops(model, part, live).sum()) for part in scored)
    for passes, items in references:
        if passes and items is not None:
            flops += passes * float(signal_flops(model, items, GRADIENT).sum())
    apart = {} if replayed is None else {"replay_flops": float(signal_flops(model, replayed, ("loss",)).sum())}
    flops += sum(apart.values())
    flops += report.auxiliary_flops
    apart |= {f"{beside}_flops": float(report.auxiliary_flops)} if beside else {}
    measured = [
        part
        for part, entry in zip(picked, policy.rounds, strict=True)
        if entry.gradients is not None and GRADIENT[0] not in entry.signals
    ]
    return counts | {
        "score_flops": countable * flops,
        "frozen_flops": countable * frozen_flops,
        **apart,
        "train_flops": epochs * sum(float(training_flops(model, part).sum()) for part in picked),
        "diagnose_flops": sum((float(signal_flops(model, part, GRADIENT).sum()) for part in measured), 0.0),
    }


def _tokens(pool: Pool) -> int:
    return int(pool.tokens.sum())


def _weights_of_candidates(entry: Round) -> np.ndarray:
    """Weight of each pick of a round at the candidate's place; NaN where it was not picked."""
    weights = np.full(len(entry.candidate_ids), np.nan, dtype=np.float32)
    weights[entry.selection.rows] = 1.0 if entry.selection.weights is None else entry.selection.weights
    return weights


def selection_table(pool: Pool, policy: SelectionPolicy) -> pd.DataFrame:
    """Every candidate of every round with each term of its score, and its place in pick order (−1 = not picked).

    Where the selector gives weights, a column ``weight`` has those of the picks.
    """
    rounds = policy.rounds
    ids = [sample_id for entry in rounds for sample_id in entry.candidate_ids]
    sizes = [len(entry.candidate_ids) for entry in rounds]
    picked = [np.full(size, -1, dtype=np.int64) for size in sizes]
    for place, entry in zip(picked, rounds, strict=True):
        place[entry.selection.rows] = np.arange(len(entry.selection.rows))
    rows = [pool.index[sample_id] for sample_id in ids]
    terms = dict.fromkeys(name for entry in rounds for name in entry.selection.scores)
    unscored = [np.full(size, np.nan, dtype=np.float32) for size in sizes]
    columns = {
        f"term_{name}": np.concatenate(
            [
                np.asarray(entry.selection.scores.get(name, nan), np.float32)
                for entry, nan in zip(rounds, unscored, strict=True)
            ]
        )
        for name in terms
    }
    weights: dict[str, np.ndarray] = {}
    if any(entry.selection.weights is not None for entry in rounds):
        weights["weight"] = np.concatenate([_weights_of_candidates(entry) for entry in rounds])
    return pd.DataFrame(
        {
            "round": np.repeat([entry.number for entry in rounds], sizes),
            "sample_id": ids,
            "picked": np.concatenate(picked),
            "tokens": pool.tokens[rows],
            "sub_skill": [pool.examples[row].skill or "" for row in rows],
            **columns,
            **weights,
        }
    )
