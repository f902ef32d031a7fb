"""Select from a folder of scores part by part: one exact cut, or two rounds; the rows of no more than a part in memory.

A selector that scores every candidate by itself (`Selector.by_row`) is exact: its picks are those of one selection of
the whole pool. A selector that compares candidates with each other (`Selector.two_rounds`) picks in every part, then
among the picks of all parts; the manifest says what is true of that.
"""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from longgame.data.examples import WEIGHT
from longgame.data.formats import RowError, RowRules, read_row
from longgame.data.sources import BESIDE_A_SUBSET, RowSource, open_source
from longgame.engines.choice import LOCAL, check_engine, mapper
from longgame.errors import BudgetError, DataError, RecipeError
from longgame.offline.dedup import parse_dedup
from longgame.offline.groups import GroupsOfParts
from longgame.offline.near import Sketches
from longgame.offline.options import Budget, SelectOptions
from longgame.offline.outcome import digest_of, installed_version
from longgame.offline.parts import (
    EXACT_GROUP,
    PartPicks,
    PartWorker,
    PoolPart,
    Question,
    Totals,
    Unit,
    costs_of,
    parts_of,
)
from longgame.offline.rows import known_weights
from longgame.offline.score_folder import FITTED, TABLE, ScoreFolder
from longgame.offline.selecting import (
    refuse_inputs,
    refuse_several_schemas,
    selection_inputs,
    subset_outputs,
    whole_pool_notes,
    with_old_weights,
)
from longgame.offline.subset import BAD, MANIFEST, PREFIX, beside, kind_of, refuse_existing, remove_beside, write_subset
from longgame.selection.algorithms.cut import exact_cut
from longgame.selection.algorithms.farthest import distances_to, least_radius, rounding
from longgame.selection.base import SELECTORS, Selector, claims
from longgame.selection.budget import by_score
from longgame.selection.methods.dedup_exact import ExactDedupSelector
from longgame.signals.base import CONTEXT, SIGNALS
from longgame.signals.texts import GROUPS
from longgame.storage import write_file

SHARE = 4.0
"""In the first round a part may spend so many times its share of the budget; the second round chooses among that."""
_PART_ROWS = 1 << 20
"""Rows of a part where no number of parts is given."""
_BATCH = 1 << 16
_OPTIONS = {
    "where": "--where",
    "quality": "--quality",
    "complexity": "--complexity",
    "embedder": "--embedder",
    "scorer_model": "--scorer-model",
}
"""Options that read the rows themselves."""


@dataclass(frozen=True)
class PartsOutcome:
    """What was picked, in the order of the data."""

    source: RowSource
    positions: Int[np.ndarray, " k"]
    """Places of the picks in the source."""
    picks: PartPicks
    rank: Int[np.ndarray, " k"]
    """From 1: the order of picking."""
    weights: Float[np.ndarray, " k"] | None
    totals: Sequence[Totals]
    """Of every part."""
    asked: int
    spent: int
    unit: Unit
    claim: Mapping[str, Any]
    """``partitions`` of the manifest: number of parts, rounds, whether exact, what is true of the picks."""
    notes: tuple[str, ...] = ()

    def added(self) -> dict[str, np.ndarray]:
        """The columns that are written beside the rows."""
        added: dict[str, np.ndarray] = {f"{PREFIX}rank": self.rank}
        terms = {"score": np.full(len(self.picks.rows), np.nan), **self.picks.terms}
        added |= {PREFIX + name: values for name, values in terms.items()}
        if self.weights is not None:
            added[WEIGHT] = self.weights
        added[f"{PREFIX}sample_id"] = np.asarray(self.picks.ids, dtype=object)
        return added

    def parts(self) -> list[tuple[RowSource, Int[np.ndarray, " k"], dict[str, np.ndarray]]]:
        """Source, places in it and further columns of the selected rows, as `SubsetOutcome.parts`."""
        return [(self.source, self.positions, self.added())]

    def explain(self) -> list[dict[str, Any]]:
        """Raise RecipeError: rejected rows stay in their parts."""
        raise RecipeError("a selection in parts explains no rows: rejected ones are not gathered. Use partitions=None.")


def select_in_parts(
    data: Any,
    out: str | Path | None,
    options: SelectOptions,
    *,
    scores: str | Path,
    partitions: int | None = None,
    engine: str = LOCAL,
    workers: int | None = 1,
    overwrite: bool = False,
    command: str = "",
) -> tuple[PartsOutcome, dict[str, Any]]:
    """Select a subset of ``data`` by its scores, part by part, and write it to ``out`` with a manifest beside it.

    The picks depend on the number of parts where there are two rounds, and on nothing else: not on the engine, the
    number of workers or the shards of the folder. The data is read as a stream for the picks alone.

    Args:
        data: what was scored, named as it was when it was scored.
        out: None: nothing is written.
        scores: a folder of `longgame score`, or of its shards, on a path that all workers see.
        partitions: number of parts; None: one per shard of the folder, or per million rows.
        engine, workers: see `longgame.engines.choice.mapper`.

    Raises:
        RecipeError: the selector, or an option, has no form in parts. ResumeError: the scores are damaged.
        BudgetError: the budget holds no candidate. DataError: the data is not that of the scores.
        StorageError: an output exists, or the disk is full.
    """
    path, source = None if out is None else Path(out).expanduser(), open_source(data)
    check_engine(engine)
    if path is not None:
        if kind_of(path) != "jsonl":
            refuse_several_schemas(data)
        refuse_inputs(subset_outputs(path), selection_inputs(source, options, scores=scores))
        refuse_existing([path, *(beside(path, ending) for ending in BESIDE_A_SUBSET)], overwrite, path)
    table = ScoreFolder(scores)
    outcome = _chosen(source, table, options, partitions, engine, workers)
    files = {} if path is None else write_subset(path, outcome.parts())
    manifest = _manifest(outcome, table, options, files, command)
    if path is not None:
        remove_beside(path)
        if manifest["data"]["bad_rows"]:
            entries = (dataclasses.asdict(row) for row in table.bad_rows())
            lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
            write_file(beside(path, BAD), "".join(lines))
        write_file(beside(path, MANIFEST), json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return outcome, manifest


def refuse_unread(inputs: Mapping[str, object], scores: str | Path | None) -> str | Path:
    """Return ``scores``; raise RecipeError without them, and for an input that a selection in parts does not read."""
    if names := [name for name, value in inputs.items() if value]:
        raise RecipeError(
            f"{', '.join(names)} reads more than a folder of scores, and --partitions reads that alone. Leave it out, "
            "or use --partitions 1."
        )
    if scores is None:
        raise RecipeError("--partitions reads a folder of scores. Run longgame score first, and give --scores.")
    return scores


def _chosen(
    source: RowSource,
    table: ScoreFolder,
    options: SelectOptions,
    partitions: int | None,
    engine: str,
    workers: int | None,
) -> PartsOutcome:
    """The picks, and where they stand in the data."""
    selector = options.build()
    _check_options(options)
    groups = isinstance(selector, ExactDedupSelector) and type(selector).select is ExactDedupSelector.select
    exact = groups or (bool(claims(selector, "by_row")) and type(selector).select is Selector.select)
    holds = "" if exact else str(claims(selector, "two_rounds"))
    if not exact and not holds:
        raise RecipeError(_no_form(options.label))
    _check_signals(options, selector, table, groups)
    if partitions is None:
        if not exact and len(table.folders) == 1:
            raise RecipeError(
                f"selector '{options.label}' picks in two rounds, and its picks depend on the number of parts. Give "
                "--partitions."
            )
        partitions = len(table.folders) if len(table.folders) > 1 else -(-len(table) // _PART_ROWS)
    parts = parts_of(len(table), partitions)
    if partitions == 1 and not exact:
        raise RecipeError("one part needs no second round. Leave out --engine and --workers.")
    budget = Budget.parse(options.budget)
    unit: Unit = "rows" if budget.of == "rows" else options.budget_of
    kind, threshold = parse_dedup(options.dedup)
    near = kind == "near" or "near_group" in selector.requires
    sketches = Sketches(table.folder) if near else None
    known = GroupsOfParts(table, options, parts, sketches)
    worker = PartWorker(table.folder, options, unit, kind == "exact")
    with mapper(worker, engine, workers=workers) as answers:

        def answered(questions: Iterable[Any]) -> list[Any]:
            return list(answers(questions))

        def ask(questions: Sequence[Question]) -> list[Any]:
            return answered(map(known.known, questions))

        if kind == "near":
            known.leave_out_repeats(threshold, answered)
        if groups:
            known.group(kind == "exact", answered)
        totals: list[Totals] = ask([Question(part, "totals") for part in parts])
        least = [part.least for part in totals if part.rows]
        if not least:
            raise DataError(f"'{table.folder}' leaves no candidates: all rows are duplicates.")
        candidates = sum(part.rows for part in totals)
        cost = sum(part.cost for part in totals)
        asked = budget.units_of(cost, min(least), candidates)
        claim: dict[str, Any] = {"partitions": partitions, "rounds": 1 if exact else 2, "exact": exact}
        if sketches is not None:
            claim |= {"near_sketch": sketches.version}
        if exact:
            picks, rank, weights = _in_one_round(ask, parts, asked)
        else:
            most = asked // min(least)
            picks, rank, weights, bound = _in_two_rounds(ask, worker, parts, asked, asked / cost, most)
            claim |= {"holds": holds, "share": SHARE, **bound}
    spent = int(costs_of(picks.prompt, picks.response, unit).sum())
    notes = tuple(whole_pool_notes(len(rank), candidates))
    rules = RowRules(options.turns, columns=("quality",))  # ids do not depend on its scale, which the scores know
    located = _located(table, picks.rows)
    positions, old = _positions(source, located, picks.ids, rules, table.folder)
    weights = with_old_weights(weights, old, lambda pick: f"{located[pick][0]}, {source.unit} {located[pick][1]}")
    return PartsOutcome(source, positions, picks, rank, weights, totals, asked, spent, unit, claim, notes)


def _check_options(options: SelectOptions) -> None:
    """Raise RecipeError for an option that reads the rows."""
    for name, option in _OPTIONS.items():
        if getattr(options, name) is not None:
            raise RecipeError(
                f"{option} reads the rows, and --partitions reads their scores alone. Leave it out, or use "
                "--partitions 1."
            )


def _check_signals(options: SelectOptions, selector: Selector, table: ScoreFolder, groups: bool) -> None:
    """Raise RecipeError where the selector needs what the folder does not hold."""
    there = {*table.names, *(GROUPS if groups else (EXACT_GROUP,))}
    for name in selector.requires:
        if name in FITTED or (name in SIGNALS and SIGNALS[name].of_no_model and name not in there):
            raise RecipeError(
                f"selector '{options.label}' needs {name}, which is made of all candidates at once. Use --partitions 1."
            )
        if (name in SIGNALS and name not in there) or (name in CONTEXT and not table.has_context(name)):
            raise RecipeError(
                f"'{table.folder}' lacks {name}, which selector '{options.label}' needs. Compute it into that folder "
                "with longgame score."
            )


def _no_form(label: str) -> str:
    """The error for a selector that has no form in parts."""
    builtin = {name: SELECTORS.make(name, {}) for name in SELECTORS.names() if SELECTORS.is_builtin(name)}
    forms = [name for name, known in builtin.items() if claims(known, "by_row") or claims(known, "two_rounds")]
    return (
        f"selector '{label}' has no form in parts: it compares candidates with all others, and does not say what is "
        f"true of picks in two rounds. Use --partitions 1, or one of {', '.join(sorted(forms))}. A selector of your "
        "own sets by_row = True where score() looks at one candidate alone, or two_rounds = 'what is true of its "
        "picks'."
    )


Ask = Callable[[Sequence[Question]], list[Any]]


def _in_one_round(ask: Ask, parts: Sequence[PoolPart], budget: int) -> tuple[PartPicks, Int[np.ndarray, " k"], None]:
    """The picks of one exact cut, their ranks, and no weights."""
    cut = exact_cut(
        ask([Question(part, "sketch") for part in parts]),
        budget,
        lambda low, high: ask([Question(part, "between", low=low, high=high) for part in parts]),
        lambda place, most: ask([Question(part, "behind", high=place, budget=most) for part in parts]),
    )
    picks = PartPicks.joined(
        ask(
            [
                Question(part, "picks", low=cut.place, rows=tuple(rows.tolist()))
                for part, rows in zip(parts, cut.rows, strict=True)
            ]
        )
    )
    rank = np.empty(len(picks.rows), dtype=np.int64)
    keys = -np.asarray(picks.terms["score"], dtype=np.float64)
    rank[by_score(np.arange(len(keys)), keys, picks.ids)] = np.arange(1, len(keys) + 1)
    return picks, rank, None


def _in_two_rounds(
    ask: Ask, worker: PartWorker, parts: Sequence[PoolPart], budget: int, share: float, most: int
) -> tuple[PartPicks, Int[np.ndarray, " k"], Float[np.ndarray, " k"] | None, dict[str, Any]]:
    """The picks among the picks of all parts, their ranks and weights, and the radius that they cover.

    Args:
        share: of the cost of all rows, in the budget.
        most: rows that the budget holds, at most.
    """
    of_part = min(budget, int(np.ceil(budget * SHARE / len(parts))))
    first = ask([Question(part, "first", budget=of_part, total=budget, share=share) for part in parts])
    answers = [answer for answer in first if answer is not None]
    if not answers:
        raise BudgetError(f"a budget of {budget} holds none of the candidates. Raise `budget`.")
    core = PartPicks.joined(answers)
    rows, terms, weights = worker.second(core, budget, share)
    order = np.argsort(rows)
    rank, chosen = order + 1, rows[order]
    bound: dict[str, Any] = {}
    if term := worker.options.build().distance_term:
        unreached = [part for part, answer in zip(parts, first, strict=True) if answer is None]
        points = core.columns["embedding"][rows]
        reach = ask([Question(part, "reach", points=points) for part in unreached])
        bound = _radius(core, answers, rows, np.asarray(terms[term], dtype=np.float64), reach, most)
    picks = PartPicks(
        core.rows[chosen],
        tuple(core.ids[row] for row in chosen.tolist()),
        core.prompt[chosen],
        core.response[chosen],
        {name: np.asarray(column)[chosen] for name, column in terms.items()},
    )
    return picks, rank, None if weights is None else weights[order], bound


def _radius(
    core: PartPicks,
    answers: Sequence[PartPicks],
    rows: Int[np.ndarray, " k"],
    distance: Float[np.ndarray, " n"],
    reach: Sequence[float],
    most: int,
) -> dict[str, float | None]:
    """Radius within which every candidate lies of a pick, and a bound on its ratio to the best one (None: not known).

    Let r be the largest distance of a candidate of a part to the part's picks, and R that of a pick of the part to the
    final picks. By the triangle inequality every candidate of the part is within r + R of a final pick. The best radius
    is at least `least_radius`.

    Args:
        reach: largest distance to the picks of each part that the budget did not reach.
        most: rows that the budget holds, at most.
    """
    embeddings = core.columns["embedding"]
    apart = float(distance[rows[1:]].min(initial=np.inf))
    distance = distance.copy()
    distance[rows] = 0.0
    second = np.zeros(len(answers))
    np.maximum.at(second, core.part, distance)
    inexact = rounding(embeddings.shape[1], embeddings.dtype)
    within = [part.radius + far for part, far in zip(answers, second, strict=True)]
    radius = float(max([*within, *reach]) * inexact)
    beyond = float(distances_to(embeddings[[distance.argmax()]], embeddings[rows])[0])
    lower = least_radius(apart, beyond, len(rows), most) / inexact
    return {"radius": radius, "factor": radius / lower if lower else None}


def _located(table: ScoreFolder, rows: Int[np.ndarray, " k"]) -> list[tuple[str, int]]:
    """File and number in it of these rising rows."""
    located: list[tuple[str, int]] = []
    first = 0
    for folder in table.folders:
        with pq.ParquetFile(folder / TABLE) as file:
            for batch in file.iter_batches(_BATCH, columns=["file", "row"]):
                inside = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + len(batch))] - first
                chosen = batch.take(inside)
                located += zip(chosen["file"].to_pylist(), chosen["row"].to_pylist(), strict=True)
                first += len(batch)
    return located


def _positions(
    source: RowSource, located: Sequence[tuple[str, int]], ids: Sequence[str], rules: RowRules, scores: str | Path
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"] | None]:
    """Places of the picks in the source, each compared with its id, and the weights of an earlier selection.

    Raises:
        DataError: the data is another one than was scored, or is named otherwise.
    """
    positions, weights = np.empty(len(ids), dtype=np.int64), np.full(len(ids), np.nan)
    files: set[str] = set()
    place = 0
    for position, (file, number, read) in enumerate(source.rows()):
        if place == len(ids):
            break
        files.add(file)
        if (file, number) != located[place]:
            continue
        try:
            example = read_row(read(), rules)[0]
        except RowError as error:
            raise DataError(f"row {number} of '{file}' cannot be read any more: {error}") from error
        if example.sample_id != ids[place].partition("#")[0]:
            raise DataError(
                f"row {number} of '{file}' is another one than was scored into '{scores}'. Score the data again, or "
                "give the options that it was scored with (--turns)."
            )
        positions[place] = position
        weights[place] = np.nan if example.weight is None else example.weight
        place += 1
    if place < len(ids):
        file, number = located[place]
        other = "" if file in files else f" The data has {', '.join(sorted(files)[:3])}: name it as it was scored."
        raise DataError(f"'{scores}' holds scores of row {number} of '{file}', which is not in the data.{other}")
    return positions, known_weights(weights)


def _manifest(
    outcome: PartsOutcome,
    table: ScoreFolder,
    options: SelectOptions,
    files: Mapping[str, str],
    command: str,
) -> dict[str, Any]:
    """What was selected of what, how, and the hashes by which it can be checked."""
    picks, config = outcome.picks, table.config
    job = config.get("shard") or config
    in_order = np.argsort(outcome.rank)
    tokens, response = int((picks.prompt + picks.response).sum()), int(picks.response.sum())
    scored = sum(part.scored for part in outcome.totals)
    bad = sum(1 for _ in table.bad_rows())
    candidates = sum(part.rows for part in outcome.totals)
    return {
        "longgame": installed_version(),
        "command": command,
        "selector": {
            "name": options.label,
            "parameters": dict(options.parameters),
            "requires": [*options.build().requires],
        },
        "budget": {
            "budget": str(Budget.parse(options.budget)),
            "unit": outcome.unit,
            "asked": outcome.asked,
            "spent": outcome.spent,
        },
        "picked": {
            "rows": len(picks.rows),
            "tokens": tokens,
            "learned_share": round(response / max(1, tokens), 4),
            "digest": digest_of([picks.ids[row] for row in in_order.tolist()]),
        },
        "data": {
            "label": outcome.source.label,
            "digest": job["digest"],
            "usable": scored,
            "bad_rows": bad,
            "cut_rows": table.cut_rows(),
            "max_length": int(config["max_length"]),
            "duplicates": scored - candidates,
            "candidates": candidates,
            "tokens": sum(part.tokens for part in outcome.totals),
            "turns": config["turns"],
        },
        "partitions": dict(outcome.claim),
        "model": str(config["model"]["name"]),
        "weights": f"{config['weights']} ({config['fingerprint']})",
        "template": str(config.get("template", "")),
        "seed": options.seed,
        "columns": [*outcome.added()],
        "sha256": dict(files),
    }


def partitioned_html(outcome: PartsOutcome, manifest: Mapping[str, Any]) -> str:
    """Return what a notebook shows of a selection in parts."""
    return "".join(f"<p>{html.escape(line)}</p>" for line in partitioned_lines(outcome, manifest))


def partitioned_lines(outcome: PartsOutcome, manifest: Mapping[str, Any]) -> list[str]:
    """What a terminal shows of a selection in parts."""
    claim, picked, pool = manifest["partitions"], manifest["picked"], manifest["data"]
    rounds = "one exact cut" if claim["exact"] else f"two rounds ({claim['holds']})"
    lines = [
        f"{picked['rows']:,} of {pool['candidates']:,} rows with {picked['tokens']:,} of {pool['tokens']:,} tokens, by "
        f"the selector {manifest['selector']['name']}, in {claim['partitions']} parts: {rounds}",
        f"budget {manifest['budget']['budget']}: {outcome.asked:,} {outcome.unit}, {outcome.spent:,} spent",
    ]
    if pool["cut_rows"]:
        lines.append(
            f"{pool['cut_rows']:,} of {pool['usable']:,} scored rows cut after {pool['max_length']:,} tokens "
            "(--max-length)"
        )
    if "radius" in claim:
        factor = claim["factor"]
        ratio = "" if factor is None else f"; this radius is at most {_up(factor, 3)} times that of the best picks"
        lines.append(f"every candidate is within {_up(claim['radius'], 6)} of a pick{ratio}")
    return [*lines, *outcome.notes]


def _up(bound: float, digits: int) -> str:
    """An upper bound in so many digits, rounded up."""
    return f"{float(Context(digits, ROUND_CEILING).create_decimal(bound)):.{digits}g}"
