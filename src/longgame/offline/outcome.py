"""What a selection decided: the picks, why the others were not picked, and the manifest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import WEIGHT
from longgame.offline.options import Budget, SelectOptions
from longgame.offline.replaying import ReplayedRows, replay_manifest
from longgame.offline.rows import BadRow, DataRows
from longgame.offline.subset import PREFIX, SubsetPart
from longgame.training.log import Trajectories

_NEAREST = 100
"""Rejected rows that are explained, at least."""


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
        cut = float(np.nanmin(score[self.picks])) if score is not None and len(self.picks) else math.nan
        entries = []
        for row in [*self.picks.tolist(), *nearest.tolist()]:
            entry = self._entry(row, row in place)
            entry |= {"rank": place.get(row), "terms": {}}
            for name, values in self.terms.items():
                entry["terms"][name] = {"value": _number(values[row]), "percentile": _number(ranks[name][row])}
            entry["why"] = self.why(row, place.get(row), score, cut)
            entries.append(entry)
        for row in np.flatnonzero(self.repeats >= 0)[: max(_NEAREST, len(self.picks))].tolist():
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

    def why(self, row: int, rank: int | None, score: np.ndarray | None, cut: float) -> str:
        """Why a row was picked (``rank`` from 1) or not (None), by its score and the lowest score of a pick."""
        if score is None:
            return "picked by the selector" if rank else "not picked by the selector"
        if rank:
            return f"score {score[row]:.6g} is at or above the cut of {cut:.6g}"
        if math.isnan(score[row]):
            return "the selector gives it no score"
        if score[row] == cut:
            return f"score {score[row]:.6g} equals the cut: ids decide among equal scores, within what the budget holds"
        if score[row] > cut:
            return f"score {score[row]:.6g} reaches the cut of {cut:.6g}, but what was left of the budget was too small"
        return f"score {score[row]:.6g} is below the cut of {cut:.6g}"


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
