"""Rows of earlier data that a subset holds again: which, by a choice of replay, within their share of the budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from longgame.data.formats import RowRules
from longgame.data.sources import open_source
from longgame.errors import BudgetError, DataError, RecipeError
from longgame.offline.options import SelectOptions
from longgame.offline.rows import DataRows, TokenizedRows
from longgame.offline.score_folder import ScoreFolder
from longgame.offline.scorer import ModelOptions
from longgame.offline.scoring import Progress, score_into
from longgame.seeding import generator
from longgame.selection.budget import fill_budget, id_order
from longgame.selection.interventions import ReplayChoice
from longgame.selection.interventions.choices import EarlierExamples, first_of_each

ReplayedRows = tuple[DataRows, Int[np.ndarray, " r"]]
"""Rows of one earlier data set, and which of them are learned again, rising."""


@dataclass(frozen=True)
class ReplayData:
    """What is given for replay."""

    stages: tuple[Any, ...]
    """Data set of each earlier stage, in order, as `open_source` takes it."""
    scores: tuple[str | Path, ...] = ()
    """Folder of scores of each, made by the model at the end of that stage."""
    model: ModelOptions | None = None
    scratch: str | Path | None = None
    """Folder for the scores that the choice reads."""
    progress: Progress | None = None
    command: str = ""

    def check(self, choice: ReplayChoice) -> None:
        """Compare what is given with what the choice reads.

        Raises:
            RecipeError: something is missing, or not read. ResumeError: a folder holds no scores.
        """
        if self.scores and "end" not in choice.columns:
            raise RecipeError(f"replay choice '{choice.name}' reads no --replay-scores. Leave them out.")
        if choice.columns and self.model is None:
            raise RecipeError(
                f"replay choice '{choice.name}' reads {_reads(choice)}, which a model computes. Give --model, or use "
                "--replay-choice uniform."
            )
        if "end" in choice.columns and len(self.scores) != len(self.stages):
            raise RecipeError(
                f"replay choice '{choice.name}' reads the loss of earlier data at the end of its own stage: "
                f"{len(self.stages)} data set(s) are replayed, and {len(self.scores)} folder(s) of scores are given. "
                "Give --replay-scores FOLDER for each --replay, in its order (longgame score OLD --signals loss "
                "--model MODEL-AFTER-THAT-STAGE --out FOLDER)."
            )
        for folder in self.scores:
            if "loss" not in ScoreFolder(folder).names:
                raise RecipeError(
                    f"--replay-scores '{folder}' holds no loss. Score that data with longgame score --signals loss."
                )


def _reads(choice: ReplayChoice) -> str:
    words = {
        "now": "the loss of earlier data under the model as it is",
        "end": "that at the end of its own stage",
        "base": "the loss of earlier data under the base model",
        "embedding": "embeddings of all data",
    }
    return " and ".join(words[name] for name in choice.columns)


def replayed_rows(
    given: ReplayData,
    rules: RowRules,
    options: SelectOptions,
    unit: str,
    asked: int,
    fresh: DataRows,
    max_length: int | None,
) -> tuple[int, tuple[ReplayedRows, ...]]:
    """Return what is left of the budget, and the rows of earlier data that are learned again.

    Rows that are candidates themselves (by content) are not replayed, and none twice.

    Args:
        unit: what the budget counts: ``tokens``, ``response`` or ``rows``.
        asked: the budget.
        fresh: the candidates.
        max_length: tokens of an example, as the candidates are cut; None: characters are counted.

    Raises:
        BudgetError: the share holds no row. DataError: nothing is left to replay, or
            ``scores`` are of other data.
    """
    choice = options.build_replay_choice()
    earlier = _EarlierRows.read(given, rules, options, unit, max_length, set(map(_content, fresh.ids)))
    share, shortest = round(options.replay_share * asked), int(earlier.costs[earlier.usable].min())
    if share < shortest:
        words = "rows" if unit == "rows" else "characters" if max_length is None else "tokens"
        raise BudgetError(
            f"a replay share of {options.replay_share:g} is {share} {words} of the budget, and the shortest row of the "
            f"replay data '{earlier.label}' has {shortest}. Raise --replay-share or --budget."
        )
    rng = generator(options.seed, "selection", "replay")
    if choice.name == "uniform":
        order = earlier.usable[rng.permutation(len(earlier.usable))]
    else:
        earlier = earlier.by_id()
        order = earlier.usable[choice.order(_known(given, choice, options, earlier, fresh), rng)]
    picks = np.sort(fill_budget(order, earlier.costs, share))
    return asked - int(earlier.costs[picks].sum()), tuple(
        (rows, part) for rows, part in zip(earlier.stages, earlier.split(picks), strict=True)
    )


@dataclass(frozen=True)
class _EarlierRows:
    """The rows of all earlier data sets, one behind the other."""

    stages: tuple[DataRows, ...]
    ids: tuple[str, ...]
    costs: Int[np.ndarray, " n"]
    number: Int[np.ndarray, " n"]
    """Data set of each row, from 0."""
    usable: Int[np.ndarray, " u"]
    """Rows that may be replayed."""

    @property
    def label(self) -> str:
        return ", ".join(rows.source.label for rows in self.stages)

    @classmethod
    def read(
        cls,
        given: ReplayData,
        rules: RowRules,
        options: SelectOptions,
        unit: str,
        max_length: int | None,
        barred: set[str],
    ) -> _EarlierRows:
        """Read and count them; rows of a barred content, or that of an earlier row, are not usable.

        Raises:
            DataError: none is.
        """
        stages = tuple(DataRows(open_source(data), rules, options.on_bad_row) for data in given.stages)
        counted = [_counted(rows, given.model, options, None if unit == "rows" else max_length) for rows in stages]
        pools = [
            rows.counted(prompt, response, unit)  # type: ignore[arg-type]
            for rows, (prompt, response, _) in zip(stages, counted, strict=True)
        ]
        ids = tuple(name for rows in stages for name in rows.ids)
        starts = np.cumsum([0, *map(len, stages)])
        usable = []
        parts = [start + part for start, (_, _, part) in zip(starts[:-1], counted, strict=True)]
        for row in np.concatenate(parts).tolist():
            if _content(ids[row]) not in barred:
                barred.add(_content(ids[row]))
                usable.append(row)
        number = np.repeat(np.arange(len(stages)), [len(rows) for rows in stages])
        costs = np.concatenate([pool.costs for pool in pools])
        result = cls(stages, ids, costs, number, np.asarray(usable, dtype=np.int64))
        if not usable:
            raise DataError(
                f"the replay data '{result.label}' hold no row that is not a candidate itself. Give earlier data."
            )
        return result

    def by_id(self) -> _EarlierRows:
        """The same with the usable rows in id order."""
        order = id_order(tuple(self.ids[row] for row in self.usable.tolist()))
        return dataclasses.replace(self, usable=self.usable[order])

    def of_stage(self, place: int) -> Int[np.ndarray, " k"]:
        """Usable rows of a data set."""
        return self.usable[self.number[self.usable] == place]

    def split(self, rows: Int[np.ndarray, " k"]) -> list[Int[np.ndarray, " m"]]:
        """These rows as rows of their data sets."""
        starts = np.cumsum([0, *map(len, self.stages)])
        return [rows[self.number[rows] == place] - starts[place] for place in range(len(self.stages))]

    def cells(self) -> list[str]:
        """Skill of every row; "" where it has none."""
        return [str(skill or "") for rows in self.stages for skill in rows.groups.get("skill", [""] * len(rows))]


def _content(sample_id: str) -> str:
    """The id without the number of a copy."""
    return sample_id.partition("#")[0]


def _counted(
    rows: DataRows, model: ModelOptions | None, options: SelectOptions, max_length: int | None
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " u"]]:
    """Tokens (or characters) of every row before and of what is learned, and the rows that can be tokenized."""
    if max_length is None:
        return rows.prompt_length, rows.response_length, np.arange(len(rows))
    if model is None:
        raise RecipeError("replay counts tokens, and no model is given. Give --model.")
    from longgame.models.load import load_tokenizer

    tokenized = TokenizedRows(rows, load_tokenizer(model.spec()), max_length, model.too_long, options.on_bad_row)
    index = {sample_id: row for row, sample_id in enumerate(rows.ids)}
    prompt, response = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
    for pool in tokenized.shards():
        places = [index[sample_id] for sample_id in pool.ids]
        prompt[places], response[places] = pool.prompt_tokens, pool.response_tokens
    return prompt, response, np.flatnonzero(response > 0)


def _known(
    given: ReplayData, choice: ReplayChoice, options: SelectOptions, earlier: _EarlierRows, fresh: DataRows
) -> EarlierExamples:
    """What the choice reads of the usable rows, computed into the folder of ``given``."""
    rng, cells = generator(options.seed, "selection", "replay sample"), earlier.cells()
    measured: dict[str, dict[str, float]] = {"now": {}, "end": {}, "base": {}}
    embeddings: list[Float[np.ndarray, "m d"]] = []
    for place, rows in enumerate(earlier.stages):
        own = earlier.of_stage(place)
        if choice.measures in ("cell", "stage"):
            keys = cells if choice.measures == "cell" else [""] * len(cells)
            items = min(choice.items, len(own) // 2) if choice.holds_back else choice.items
            own = first_of_each(keys, rng.permutation(own), items)
        part = rows.take(np.sort(earlier.split(own)[place]))
        for kind, signal in (("now", "loss"), ("base", "base_loss")):
            if kind in choice.columns and len(part):
                ids, column = _column(given, options, part, signal, f"{kind}-{place + 1}")
                measured[kind] |= dict(zip(ids, column.tolist(), strict=True))
        if "end" in choice.columns:
            scored = [name for name in part.ids if name in measured["now"]]
            measured["end"] |= _losses_at_end(given.scores[place], rows, scored)
    if "embedding" in choice.columns:
        parts = [(rows, earlier.split(earlier.of_stage(place))[place]) for place, rows in enumerate(earlier.stages)]
        for place, (rows, usable) in enumerate([*parts, (fresh, np.arange(len(fresh)))]):
            sample = rows.take(np.sort(rng.permutation(usable)[: choice.items]))
            column = np.zeros((0, 1))
            if len(sample):
                _, column = _column(given, options, sample, "embedding", f"embedding-{place + 1}")
            embeddings.append(column[rng.permutation(len(column))])
    return EarlierExamples(
        tuple(earlier.ids[row] for row in earlier.usable.tolist()),
        earlier.costs[earlier.usable],
        earlier.number[earlier.usable],
        tuple(cells[row] for row in earlier.usable.tolist()),
        measured,
        tuple(embeddings),
    )


def _column(
    given: ReplayData, options: SelectOptions, rows: DataRows, name: str, folder: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """Ids and signal of the rows that can be scored; what the folder holds already is not computed again."""
    if given.model is None or given.scratch is None:
        raise RecipeError(f"replay reads {name}, which a model computes. Give --model.")
    table = score_into(
        rows,
        [name],
        Path(given.scratch) / folder,
        given.model,
        on_bad_row="skip",
        seed=options.seed,
        progress=given.progress,
        command=given.command,
    )
    return table.ids, table.column(name)


def _losses_at_end(folder: str | Path, rows: DataRows, names: Sequence[str]) -> dict[str, float]:
    """Losses that these examples had at the end of their stage.

    Raises:
        DataError: the folder lacks an example.
    """
    table = ScoreFolder(folder)
    index = {sample_id: row for row, sample_id in enumerate(table.ids)}
    missing = [name for name in names if name not in index]
    if missing:
        raise DataError(
            f"--replay-scores '{folder}' lacks {len(missing)} of {len(names)} rows of '{rows.source.label}', first "
            f"{missing[0]}. Give one folder for each --replay, in its order, with the scores of all its rows."
        )
    losses = table.column("loss")
    return {name: float(losses[index[name]]) for name in names}


def replay_manifest(replayed: Sequence[ReplayedRows], options: SelectOptions) -> Mapping[str, Any] | None:
    """What a manifest says of replay; None without it."""
    if not replayed:
        return None
    return {
        "choice": options.replay_choice,
        "share": options.replay_share,
        "rows": sum(len(chosen) for _, chosen in replayed),
        "data": [{"label": rows.source.label, "digest": rows.digest, "rows": len(chosen)} for rows, chosen in replayed],
    }
