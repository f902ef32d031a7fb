"""Parts of a folder of scores: what a worker answers about the rows of one part, which alone it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

from longgame.data.examples import Example, ExamplesOnDisk, Pool
from longgame.errors import RecipeError
from longgame.offline.near import Sketches, Slice
from longgame.offline.options import SelectOptions
from longgame.offline.score_folder import COUNTS, ScoreFolder
from longgame.seeding import generator, stream_seed
from longgame.selection.algorithms.cut import Place, RankedPart
from longgame.selection.algorithms.farthest import distances_to
from longgame.selection.base import Selector, eligible_of, score_terms
from longgame.selection.history import History
from longgame.selection.methods.dedup_exact import ExactDedupSelector
from longgame.selection.policy import SelectionPolicy
from longgame.signals.base import CONTEXT, SIGNALS, Signals
from longgame.signals.texts import GROUPS

EXACT_GROUP = "exact_group"
"""Signal that is told by the ids: those of equal rows differ in their suffix."""

Unit = Literal["tokens", "response", "rows"]


@dataclass(frozen=True)
class PoolPart:
    """A run of rows of a folder of scores."""

    number: int
    start: int
    stop: int


def parts_of(rows: int, count: int) -> list[PoolPart]:
    """Return ``count`` parts of about equal size, in the order of the rows.

    Raises:
        RecipeError: there are more parts than rows.
    """
    if not 1 <= count <= rows:
        raise RecipeError(f"partitions is {count}, and the scores have {rows:,} rows. Use 1 to {rows:,}.")
    return [PoolPart(number, rows * number // count, rows * (number + 1) // count) for number in range(count)]


@dataclass(frozen=True)
class Totals:
    """Of the rows of a part."""

    scored: int
    cost: int
    """Of all of them."""
    rows: int
    """Candidates: without repeats of earlier rows, where these are left out."""
    least: int
    """Cost of the cheapest candidate; 0 without one."""
    tokens: int


@dataclass(frozen=True)
class PartPicks:
    """Rows of one part, or of several, with what is written of them."""

    rows: Int[np.ndarray, " k"]
    """In the folder of scores."""
    ids: tuple[str, ...]
    prompt: Int[np.ndarray, " k"]
    response: Int[np.ndarray, " k"]
    terms: Mapping[str, Float[np.ndarray, " k"]] = field(default_factory=dict)
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Signals, for a second round."""
    part: Int[np.ndarray, " k"] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Number of the part of each row."""
    radius: float = np.nan
    """Largest distance of a candidate of the part to its picks; NaN where the selector knows none."""

    @staticmethod
    def joined(picks: Sequence[PartPicks]) -> PartPicks:
        """The picks of all parts, in the order of the rows."""
        names = {name: None for part in picks for name in part.terms}
        columns = picks[0].columns
        return PartPicks(
            np.concatenate([part.rows for part in picks]),
            tuple(sample_id for part in picks for sample_id in part.ids),
            np.concatenate([part.prompt for part in picks]),
            np.concatenate([part.response for part in picks]),
            {name: np.concatenate([part.terms[name] for part in picks]) for name in names},
            {name: np.concatenate([part.columns[name] for part in picks]) for name in columns},
            np.repeat(np.arange(len(picks)), [len(part.rows) for part in picks]),
        )


@dataclass(frozen=True)
class Question:
    """What a worker is asked about a part."""

    part: PoolPart
    kind: Literal["totals", "ranks", "sketch", "between", "behind", "picks", "first", "reach"]
    low: Place | None = None
    high: Place = (np.inf, "")
    budget: int = 0
    """Of the part."""
    total: int = 0
    """Of all parts together."""
    share: float = 0.0
    """Of all rows' cost, in the budget of all parts."""
    rows: tuple[int, ...] = ()
    points: Float[np.ndarray, "k d"] = field(default_factory=lambda: np.zeros((0, 0)))
    """Embeddings of the picks of all parts."""
    given: Given | None = None


@dataclass(frozen=True)
class Given:
    """What all parts together tell of the rows of one of them."""

    repeats: UInt8[np.ndarray, " bytes"] | None = None
    """Bit per row: 1 for a row that is no candidate."""
    duplicate: UInt8[np.ndarray, " bytes"] | None = None
    """Bit per row: 1 for all but the kept row of a group."""
    draw: Float[np.ndarray, " n"] | None = None
    """Number that ranks each row."""
    spread: float = 0.0
    """Largest number that ranks a candidate, less the smallest."""
    members: Int[np.ndarray, " m"] | None = None
    """Rows of the part whose number is asked for."""


class PartWorker:
    """Answers questions about parts; another process receives it and opens the folder itself.

    Memory: the ids, counts and required columns of one part.

    Args:
        scores: the folder.
        options: selector, seed and what a budget counts.
        unit: of the budget.
        without_repeats: whether a row that repeats an earlier one is no candidate.
    """

    def __init__(self, scores: str | Path, options: SelectOptions, unit: Unit, without_repeats: bool) -> None:
        self.scores, self.options, self.unit, self.without_repeats = Path(scores), options, unit, without_repeats
        self._table: ScoreFolder | None = None
        self._sketches: Sketches | None = None
        self._selector: Selector | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_table": None, "_sketches": None, "_selector": None}

    @property
    def table(self) -> ScoreFolder:
        """The folder of scores."""
        self._table = self._table or ScoreFolder(self.scores)
        return self._table

    def __call__(self, question: Question | Slice) -> Any:
        """Return `Totals`, `Sketch`, `Stretch` or `PartPicks`, as the question's kind says.

        Of ``ranks``: the smallest and largest number of a candidate, and those of the members. Of a `Slice`, which
        looks at all parts: what `Sketches.shared` returns.
        """
        if isinstance(question, Slice):
            self._sketches = self._sketches or Sketches(self.scores)
            return self._sketches.shared(question)
        if question.kind == "totals":
            return self._totals(question)
        rows, pool, signals = self._read(question)
        if question.kind == "first":
            return self._first(question, rows, pool, signals)
        if question.kind == "reach":
            return float(distances_to(signals["embedding"], question.points).max(initial=0.0))
        self._selector = self._selector or self.options.build()
        with_nan = [name for name, column in signals.columns.items() if np.isnan(column).any()]
        if with_nan and SIGNALS[with_nan[0]].may_miss:
            raise RecipeError(
                f"{with_nan[0]} is missing of some rows, whose place depends on all others. Score the rows that lack "
                "it, or use --partitions 1."
            )
        if question.kind == "ranks":
            return self._ranks(question, rows, signals)
        terms = self._terms(self._selector, question, rows, pool, signals)
        ranked = RankedPart(np.where(eligible_of(self._selector, pool), terms["score"], np.nan), pool.ids, pool.costs)
        if question.kind == "sketch":
            return ranked.sketch()
        if question.kind == "between":
            return ranked.between(question.low, question.high)
        if question.kind == "behind":
            return ranked.behind(question.high, question.budget)
        chosen = np.concatenate([ranked.rows_to(question.low), np.asarray(question.rows, dtype=np.int64)])
        chosen.sort()
        return self._picks(chosen, rows, pool, terms)

    def _terms(
        self, selector: Selector, question: Question, rows: Int[np.ndarray, " m"], pool: Pool, signals: Signals
    ) -> Mapping[str, np.ndarray]:
        """The terms of the score of a part's candidates."""
        given = question.given
        if not isinstance(selector, ExactDedupSelector) or given is None or given.duplicate is None:
            return score_terms(selector, pool, signals, History())
        places = rows - question.part.start
        duplicate = np.unpackbits(given.duplicate)[places].astype(bool)
        rank = given.draw[places] if given.draw is not None else signals[selector.by].astype(np.float64)
        return {
            "score": selector.score_of(rank, duplicate, given.spread),
            "duplicate": duplicate.astype(np.float64),
        }

    def _ranks(
        self, question: Question, rows: Int[np.ndarray, " m"], signals: Signals
    ) -> tuple[float, float, Float[np.ndarray, " k"]]:
        selector, given = self._selector, question.given
        if not isinstance(selector, ExactDedupSelector) or given is None or given.members is None:
            raise TypeError("only a selector of groups has ranks")
        rank = signals[selector.by].astype(np.float64)
        members = rank[np.searchsorted(rows - question.part.start, given.members)]
        return float(rank.min(initial=np.inf)), float(rank.max(initial=-np.inf)), members

    def _totals(self, question: Question) -> Totals:
        part = question.part
        ids, columns = self.table.block(COUNTS, part.start, part.stop)
        prompt, response = (np.rint(columns[name]).astype(np.int64) for name in COUNTS)
        costs = costs_of(prompt, response, self.unit)
        usable = costs[self._candidates(ids, question.given)]
        least = int(usable.min()) if len(usable) else 0
        return Totals(len(ids), int(costs.sum()), len(usable), least, int((prompt + response).sum()))

    def _candidates(self, ids: Sequence[str], given: Given | None) -> Int[np.ndarray, " m"]:
        if given is not None and given.repeats is not None:
            return np.flatnonzero(~np.unpackbits(given.repeats)[: len(ids)].astype(bool))
        if not self.without_repeats:
            return np.arange(len(ids))
        return np.flatnonzero(np.fromiter(("#" not in sample_id for sample_id in ids), dtype=bool, count=len(ids)))

    def _read(self, question: Question) -> tuple[Int[np.ndarray, " m"], Pool, Signals]:
        """Rows in the folder of the part's candidates, the candidates, and their signals."""
        part = question.part
        names = [name for name in self.options.build().requires if name in SIGNALS and name not in GROUPS]
        ids, columns = self.table.block(list(dict.fromkeys([*COUNTS, *names])), part.start, part.stop)
        places = self._candidates(ids, question.given)
        if len(places) < len(ids):
            ids = tuple(ids[place] for place in places.tolist())
            columns = {name: column[places] for name, column in columns.items()}
        prompt, response = (np.rint(columns[name]).astype(np.int64) for name in COUNTS)
        pool = part_pool(ids, prompt, response, self.unit, self.options.label)
        return part.start + places, pool, self._signals(ids, {name: columns[name] for name in names})

    def _signals(self, ids: tuple[str, ...], columns: Mapping[str, np.ndarray]) -> Signals:
        requires = self.options.build().requires
        if EXACT_GROUP in requires:
            contents = [sample_id.partition("#")[0] for sample_id in ids]
            columns = {**columns, EXACT_GROUP: np.unique(contents, return_inverse=True)[1].astype(np.int64)}
        return Signals(ids, columns, {name: self.table.context(name) for name in requires if name in CONTEXT})

    def _first(self, question: Question, rows: Int[np.ndarray, " m"], pool: Pool, signals: Signals) -> PartPicks | None:
        """The picks of the part alone; None where the budget holds none of its rows."""
        least = int(pool.costs.min()) if len(pool) else 0
        if not least or least > question.total:
            return None
        rng = generator(self.options.seed, "selection", "part", question.part.number)
        picks, terms, _ = chosen_of(self.options, pool, signals, max(question.budget, least), rng, question.share)
        term = self.options.build().distance_term
        radius = np.nan
        if term:
            distance = terms[term].astype(np.float64)
            distance[picks] = 0.0
            radius = float(distance.max())
        picks = np.sort(picks)
        columns = {name: np.array(column[picks]) for name, column in signals.columns.items() if name != EXACT_GROUP}
        answer = self._picks(picks, rows, pool, {})
        return PartPicks(answer.rows, answer.ids, answer.prompt, answer.response, columns=columns, radius=radius)

    def second(
        self, core: PartPicks, budget: int, share: float
    ) -> tuple[Int[np.ndarray, " k"], Mapping[str, np.ndarray], Any]:
        """Picks among the picks of all parts, in pick order; every term of all of them; and weights of the picks."""
        pool = part_pool(core.ids, core.prompt, core.response, self.unit, self.options.label)
        rng = generator(self.options.seed, "selection", "select")
        return chosen_of(self.options, pool, self._signals(core.ids, core.columns), budget, rng, share)

    def _picks(
        self, places: Int[np.ndarray, " k"], rows: Int[np.ndarray, " m"], pool: Pool, terms: Mapping[str, np.ndarray]
    ) -> PartPicks:
        ids = tuple(pool.ids[place] for place in places.tolist())
        counts = np.asarray(pool.prompt_tokens)[places], np.asarray(pool.response_tokens)[places]
        return PartPicks(rows[places], ids, *counts, {name: column[places] for name, column in terms.items()})


def costs_of(prompt: Int[np.ndarray, " n"], response: Int[np.ndarray, " n"], unit: Unit) -> Int[np.ndarray, " n"]:
    """What rows with these counts spend of a budget."""
    return np.ones_like(prompt) if unit == "rows" else response if unit == "response" else prompt + response


def part_pool(
    ids: tuple[str, ...], prompt: Int[np.ndarray, " n"], response: Int[np.ndarray, " n"], unit: Unit, label: str
) -> Pool:
    """Return candidates that have ids and counts, and no text."""

    def no_text(rows: Sequence[int]) -> Iterator[Example]:
        if not len(rows):
            return iter(())
        raise RecipeError(
            f"selector '{label}' reads texts, which a folder of scores does not hold. Use --partitions 1."
        )

    empty = np.zeros(0, dtype=np.int64)
    return Pool(ExamplesOnDisk(ids, no_text, 0), [empty] * len(ids), prompt, response, budget_of=unit)


def chosen_of(
    options: SelectOptions, pool: Pool, signals: Signals, budget: int, rng: np.random.Generator, share: float
) -> tuple[Int[np.ndarray, " k"], Mapping[str, np.ndarray], Float[np.ndarray, " k"] | None]:
    """Return rows of the pool in pick order, the terms of all its rows, and the picks' weights.

    Args:
        share: of the cost of all parts, in the budget of the whole selection.
    """
    history = History(seed=stream_seed(options.seed, "selection", "history"))
    policy = SelectionPolicy(options.build(), history, rng)
    policy.begin_stage(rng)
    policy.use_budget(share)
    _, decision = policy.choose(pool, budget, lambda _pool, _names: signals)
    return decision.selection.rows, decision.selection.scores, decision.selection.weights
