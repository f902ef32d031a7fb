"""What a selection decided: the picks, why the others were not picked, and the manifest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from longgame.data.examples import WEIGHT
from longgame.offline.options import Budget, SelectOptions
from longgame.offline.replaying import ReplayedRows, replay_manifest
from longgame.offline.rows import BadRow, DataRows
from longgame.offline.subset import PREFIX, SubsetPart
from longgame.selection.budget import by_score
from longgame.training.log import Trajectories

_NEAREST = 100
"""Rejected rows that are explained, at least."""


@dataclass(frozen=True)
class Cut:
    """Where the budget ended on the way down the scores."""

    score: float
    """Lowest score down to which every candidate that the selector wanted was taken, in the order of the scores, before
    the rest of the budget did not hold one; infinite where it did not hold the first."""
    fillers: int
    """Picks below it, which were small enough for what was left of the budget."""
    lowest: float
    """Lowest score of a pick."""
    too_large: Bool[np.ndarray, " n"]
    """Rows that the rest of the budget did not hold when it was their turn."""

    @classmethod
    def of(
        cls,
        score: Float[np.ndarray, " n"],
        candidates: Int[np.ndarray, " m"],
        picks: Int[np.ndarray, " k"],
        costs: Int[np.ndarray, " n"],
        budget: int,
        ids: Sequence[str],
    ) -> Cut:
        """Find it by a walk down the scores, ties by id, as `fill_by_score` goes.

        Picks in another order are those of a selector that does not go by its scores; none of them is a filler.
        """
        picked = score[picks]
        too_large = np.zeros(len(score), dtype=bool)
        lowest = float(np.nanmin(picked))
        if np.isnan(picked).any() or (np.diff(picked) > 0).any():
            return cls(lowest, 0, lowest, too_large)
        order = by_score(candidates[~np.isnan(score[candidates])], -score.astype(np.float64), ids)
        is_pick = np.isin(order, picks)
        spent = np.where(is_pick, costs[order], 0)
        missed = ~is_pick & (costs[order] > budget - (np.cumsum(spent) - spent))
        too_large[order[missed]] = True
        stop = int(np.argmax(missed)) if missed.any() else len(order)
        taken = score[order[:stop][is_pick[:stop]]]
        cut = float(taken[-1]) if len(taken) else math.inf
        return cls(cut, int((picked < cut).sum()), lowest, too_large)


@dataclass(frozen=True)
class SubsetOutcome:
    """Who was picked, and why the others were not. Rows are those of ``rows``."""

    rows: DataRows
    options: SelectOptions
    candidates: Int[np.ndarray, " m"]
    """Rows that the selector saw."""
    picks: Int[np.ndarray, " k"]
    """In pick order."""
    terms: Mapping[str, Float[np.ndarray, " n"]]
    """Per term of the score a value for every row; NaN for a row that was no candidate."""
    tokens: Int[np.ndarray, " n"]
    response_tokens: Int[np.ndarray, " n"]
    """Characters where no model is given (``unit``)."""
    unit: Literal["tokens", "characters"]
    asked: int
    """Of the budget, in ``budget_unit``; replay left out."""
    spent: int
    budget_unit: str
    repeats: Int[np.ndarray, " n"]
    """Row that each one repeats; −1: none."""
    unscored: Mapping[int, BadRow]
    """Rows that could not be tokenized, with the reason of each."""
    clusters: Int[np.ndarray, " n"] | None
    """Cluster of every row, where the selector saw one; −1 for others."""
    embedding: Float[np.ndarray, "n 2"] | None
    """Place of every row on a map of the embeddings, where the selector saw them; NaN for others."""
    weights: str
    """Origin and content of the model; empty without one."""
    model: str
    """Its name; empty without one."""
    template: str
    """Digest of the chat template; empty without a model."""
    rejected: Bool[np.ndarray, " n"] | None = None
    """Rows that the selector never picks, whatever their score (`Selector.eligible`)."""
    cut_rows: int | None = None
    """Rows that were cut at the model's maximum length, of ``scored_rows``; None: not known, or no model."""
    scored_rows: int = 0
    max_length: int | None = None
    """Tokens that a row may have; None without a model."""
    replay: tuple[ReplayedRows, ...] = ()
    """Rows of each earlier data set that are learned again."""
    graded: Mapping[str, Any] = field(default_factory=dict)
    """What the named quality sources did: grades, missing ones, agreement, cost."""
    notes: tuple[str, ...] = ()
    """Sentences about it, and about candidates without a value."""
    log: Trajectories | None = None
    """The training log that the selector read."""
    target: DataRows | None = None
    """The target set that was given."""
    reference: str | None = None
    """The reference model that was given."""
    pick_weights: Float[np.ndarray, " k"] | None = None
    """Factor of each pick's loss, in pick order, where the selector gives weights (`Selection.weights`)."""

    @property
    def costs(self) -> Int[np.ndarray, " n"]:
        """What every row spends of the budget."""
        if self.budget_unit == "rows":
            return np.ones_like(self.tokens)
        return self.response_tokens if self.options.budget_of == "response" else self.tokens

    @cached_property
    def cut(self) -> Cut | None:
        """Where the budget ended; None where the selector gives no pick a score."""
        score = self.terms.get("score")
        if score is None or np.isnan(score[self.picks]).all():
            return None
        wanted = self.candidates if self.rejected is None else self.candidates[~self.rejected[self.candidates]]
        return Cut.of(score, wanted, self.picks, self.costs, self.asked, self.rows.ids)

    @property
    def bad(self) -> list[BadRow]:
        """Rows that cannot be used, in the order of the data: those that cannot be read, and those without tokens."""
        places = [*self.rows.bad_positions, *self.rows.positions[[*self.unscored]].tolist()]
        entries = [*self.rows.bad, *self.unscored.values()]
        return [entry for _, entry in sorted(zip(places, entries, strict=True), key=lambda pair: pair[0])]

    @property
    def mask_share(self) -> float:
        """Share of the picks' tokens that the loss is taken on."""
        return float(self.response_tokens[self.picks].sum() / max(1, self.tokens[self.picks].sum()))

    def parts(self) -> list[SubsetPart]:
        """What `write_subset` writes: rows in the order of the data."""
        rank = np.argsort(self.picks)
        rows = self.picks[rank]
        added: dict[str, np.ndarray] = {f"{PREFIX}rank": rank + 1}
        for name, values in {"score": np.full(len(self.rows), np.nan), **self.terms}.items():
            added[PREFIX + name] = np.asarray(values)[rows]
        if self.pick_weights is not None:
            added[WEIGHT] = self.pick_weights[rank]
        added[f"{PREFIX}sample_id"] = np.asarray([self.rows.ids[row] for row in rows.tolist()], dtype=object)
        if self.replay:
            added[f"{PREFIX}replayed"] = np.zeros(len(rows), dtype=bool)
        parts: list[SubsetPart] = [(self.rows.source, self.rows.positions[rows], added)]
        for earlier, chosen in self.replay:
            again = {name: np.full(len(chosen), np.nan) for name in added}
            if self.pick_weights is not None:
                earlier_weights = earlier.weights_of(chosen)
                again[WEIGHT] = np.ones(len(chosen)) if earlier_weights is None else earlier_weights
            again[f"{PREFIX}sample_id"] = np.asarray([earlier.ids[row] for row in chosen.tolist()], dtype=object)
            again[f"{PREFIX}replayed"] = np.ones(len(chosen), dtype=bool)
            again[f"{PREFIX}rank"] = np.full(len(chosen), None, dtype=object)
            parts.append((earlier.source, earlier.positions[chosen], again))
        return parts

    def explain(self) -> list[dict[str, Any]]:
        """Why each pick was picked, and why each of the nearest rejected rows, and each repeat, was not."""
        score = self.terms.get("score")
        place = {row: number for number, row in enumerate(self.picks.tolist(), start=1)}
        rejected = np.setdiff1d(self.candidates, self.picks)
        if score is not None:
            rejected = rejected[np.argsort(-np.nan_to_num(score[rejected], nan=-np.inf), kind="stable")]
        nearest = rejected[: max(_NEAREST, len(self.picks) // 10)]
        ranks = {name: _percentiles(values, self.candidates) for name, values in self.terms.items()}
        entries = []
        for row in [*self.picks.tolist(), *nearest.tolist()]:
            entry = self._entry(row, row in place)
            entry |= {"rank": place.get(row), "terms": {}}
            for name, values in self.terms.items():
                entry["terms"][name] = {"value": _number(values[row]), "percentile": _number(ranks[name][row])}
            entry["why"] = self.why(row, place.get(row))
            entries.append(entry)
        for row in np.flatnonzero(self.repeats >= 0).tolist():
            other = int(self.repeats[row])
            where = f"{self.rows.file_of(other)}:{self.rows.numbers[other]}"
            entries.append(self._entry(row, False) | {"why": f"repeats {self.rows.ids[other]} ({where})"})
        return entries

    def _entry(self, row: int, picked: bool) -> dict[str, Any]:
        return {
            "sample_id": self.rows.ids[row],
            "file": self.rows.file_of(row),
            "row": int(self.rows.numbers[row]),
            "picked": picked,
            self.unit: int(self.tokens[row]),
        }

    def why(self, row: int, rank: int | None) -> str:
        """Why a row was picked (``rank`` from 1) or not (None), by its score and where the budget ended."""
        cut = self.cut
        if cut is None:
            return "picked by the selector" if rank else "not picked by the selector"
        score = float(self.terms["score"][row])
        if math.isnan(score):
            return "picked by the selector, which gives it no score" if rank else "the selector gives it no score"
        if not rank and self.rejected is not None and self.rejected[row]:
            return f"the selector rejects it (score {score:.6g})"
        above, below = f"score {score:.6g}", f"score {score:.6g} is below the cut of {cut.score:.6g}"
        if cut.score == math.inf:
            below = f"{above}; the budget does not hold the row of the highest score"
        if rank:
            if score < cut.score:
                return f"{below}; the row fills what was left of the budget"
            return f"{above} is at or above the cut of {cut.score:.6g}"
        if score == cut.score:
            return f"{above} equals the cut: ids decide among equal scores, within what the budget holds"
        if score > cut.score:
            return f"{above} is above the cut of {cut.score:.6g}, but the selector did not pick it"
        if score < cut.lowest or not cut.fillers:
            return below
        if cut.too_large[row]:
            return f"{below}, and what was left of the budget was too small for the row"
        return f"{below}, and the selector did not pick it"


def _percentiles(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Percentile of every row among these rows, 0–100; NaN elsewhere."""
    from scipy.stats import rankdata

    result = np.full(len(values), np.nan)
    known = rows[~np.isnan(values[rows])]
    if len(known):
        result[known] = 100 * (rankdata(values[known]) - 0.5) / len(known)
    return result


def _number(value: Any) -> float | None:
    return None if math.isnan(value) else float(f"{float(value):.6g}")


def manifest_of(outcome: SubsetOutcome, files: Mapping[str, str], command: str) -> dict[str, Any]:
    """What was selected of what, how, and the hashes by which it can be checked."""
    rows, options = outcome.rows, outcome.options
    selector = options.build() if isinstance(options.selector, str) else options.selector
    return {
        "longgame": installed_version(),
        "command": command,
        "selector": {"name": options.label, "parameters": dict(options.parameters), "requires": [*selector.requires]},
        "budget": {
            "budget": str(Budget.parse(options.budget)),
            "unit": outcome.budget_unit,
            "asked": outcome.asked,
            "spent": outcome.spent,
        },
        "picked": {
            "rows": len(outcome.picks),
            outcome.unit: int(outcome.tokens[outcome.picks].sum()),
            "learned_share": round(outcome.mask_share, 4),
            "digest": hashlib.sha256("\0".join(rows.ids[row] for row in outcome.picks.tolist()).encode()).hexdigest()[
                :16
            ],
        },
        "data": {
            "label": rows.source.label,
            "digest": rows.digest,
            "rows": rows.total,
            "usable": len(rows) - len(outcome.unscored),
            "formats": dict(rows.formats),
            "bad_rows": len(rows.bad) + len(outcome.unscored),
            "cut_rows": outcome.cut_rows,
            "max_length": outcome.max_length,
            "where": rows.where,
            "filtered": rows.filtered,
            "duplicates": int((outcome.repeats >= 0).sum()),
            "candidates": len(outcome.candidates),
            outcome.unit: int(outcome.tokens.sum()),
            "turns": rows.rules.turns,
        },
        "model": outcome.model,
        "weights": outcome.weights,
        "template": outcome.template,
        "replay": replay_manifest(outcome.replay, options),
        "target": None
        if outcome.target is None
        else {"label": outcome.target.source.label, "digest": outcome.target.digest, "rows": len(outcome.target)},
        "reference_model": outcome.reference,
        "training_log": None if outcome.log is None else {"label": outcome.log.label, "digest": outcome.log.digest},
        "grading": dict(outcome.graded),
        "seed": options.seed,
        "columns": [*outcome.parts()[0][2]],
        "sha256": dict(files),
    }


def digest_of(ids: Sequence[str]) -> str:
    """Digest of ids in their order."""
    return hashlib.sha256("\0".join(ids).encode()).hexdigest()[:16]


def installed_version() -> str:
    """Version of longgame; ``source`` where it is not installed."""
    try:
        return importlib.metadata.version("longgame")
    except importlib.metadata.PackageNotFoundError:
        return "source"
