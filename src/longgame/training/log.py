"""What a training selected and how well it learned it, on disk: `read_picks`, `read_training_log`, `Trajectories`.

Both tables grow while a model trains and are in every checkpoint. No torch here.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from longgame.data.score_files import read_frame
from longgame.errors import DataError, ResumeError
from longgame.selection.policy import Round
from longgame.storage import durable_folder, parquet_bytes, storage_errors, unpack_parquet

if TYPE_CHECKING:
    from longgame.data.examples import Pool

PICKS = "selection.parquet"
TRAINING_LOG = "training_log.parquet"
TERM = "term_"
"""Before the name of each term of the score, as in the selections of an audit."""
_MOST_PENDING = 1024
"""Tables of few rows that wait to become a part."""
_PART = re.compile(r"[0-9]{10}-([0-9]{10})\.parquet")


def read_picks(path: str | Path) -> pd.DataFrame:
    """Return what a training selected: a row per pick, in the order of selection.

    Columns: ``step`` (0-based optimizer step at which it was selected), ``sample_id``, ``row`` (of the trainer's
    dataset; missing for a stream), ``term_*``, the terms of the selector's score, and ``weight``, what the pick's loss
    is multiplied by, where the selector gives weights.

    Args:
        path: a checkpoint, the output directory of a training (its newest table), or the table itself.

    Raises:
        DataError: there is no such table, or it cannot be read.
    """
    return _read(path, PICKS)


def read_training_log(path: str | Path) -> pd.DataFrame:
    """Return how well each example was learned: a row per pass over an example (`SelectionConfig.training_log`).

    Columns: ``sample_id``, ``epoch`` (0-based), ``round`` (0-based selection that picked it), ``step`` (0-based),
    ``loss`` (mean NLL of its learned tokens before the step's update, nats/token), ``token_accuracy`` (share of them
    that are the most likely token), ``seen`` (passes so far, this one included).

    Args:
        path: a checkpoint, the output directory of a training (its newest table), or the table itself.

    Raises:
        DataError: there is no such table, or it cannot be read.
    """
    return _read(path, TRAINING_LOG)


@dataclass(frozen=True)
class Trajectories:
    """Loss and token accuracy of m examples at e epochs of a training, behind the signals of a training log."""

    label: str
    """The log, in words for errors ("training log 'run'")."""
    ids: tuple[str, ...]
    epochs: tuple[int, ...]
    """Rising."""
    loss: Float[np.ndarray, "m e"]
    """Mean NLL of the learned tokens, nats/token; float32."""
    accuracy: Float[np.ndarray, "m e"] | None
    """Share of them that are the most likely token; None where the log lacks it."""

    @classmethod
    def of(cls, frame: pd.DataFrame, label: str) -> Trajectories:
        """Arrange a log with the columns sample_id, epoch, loss and perhaps token_accuracy, in any order of rows.

        A log of a trainer of longgame counts passes in the column ``seen``, which is read instead of ``epoch``.

        Raises:
            DataError: a missing column; text or a fraction as epoch; a loss that is missing, infinite or negative; an
                accuracy outside of [0, 1]; an example twice in an epoch, or not in every one; fewer than two epochs.
        """
        column = "seen" if "seen" in frame else "epoch"
        lacking = [name for name in ("sample_id", column, "loss") if name not in frame]
        if lacking:
            present = ", ".join(map(str, frame.columns)) or "none"
            raise DataError(f"{label} has the columns {present}; it lacks {', '.join(lacking)}.")
        if not len(frame):
            raise DataError(f"{label} has no rows. Give one row for each example and epoch.")
        names = frame["sample_id"].tolist()
        wrong = [value for value in names if not isinstance(value, str)]
        if wrong:
            raise DataError(f"{label}: sample_id holds {wrong[0]!r}, which is no text. Write ids as text.")
        passes = _whole_numbers(frame[column], f"{label}: {column}")
        codes, ids = pd.factorize(np.asarray(names, dtype=object), sort=True)
        epochs, places = np.unique(passes, return_inverse=True)
        if len(epochs) < 2:
            raise DataError(
                f"{label} holds one epoch only ({column} {epochs[0]}), and a trajectory needs two or more. Log every "
                "epoch of a longer training."
            )
        cells = codes * len(epochs) + places
        counts = np.bincount(cells, minlength=len(ids) * len(epochs))
        if counts.max() > 1:
            cell = int(counts.argmax())
            where = f"{column} {epochs[cell % len(epochs)]}"
            raise DataError(
                f"{label} names example {ids[cell // len(epochs)]} twice in {where}. Keep one row for each."
            )
        if counts.min() < 1:
            example, epoch = divmod(int(counts.argmin()), len(epochs))
            incomplete = int((counts.reshape(-1, len(epochs)) < 1).any(axis=1).sum())
            raise DataError(
                f"{label} has holes: {incomplete} of {len(ids)} examples are not in each of {len(epochs)} epochs; "
                f"{ids[example]} lacks {column} {epochs[epoch]}. Log a training that learns "
                "every example in every epoch (budget=1.0)."
            )
        order = np.argsort(cells)
        loss = _reals(frame["loss"], f"{label}: loss", names, 0.0, math.inf)
        accuracy = None
        if "token_accuracy" in frame:
            accuracy = _reals(frame["token_accuracy"], f"{label}: token_accuracy", names, 0.0, 1.0)[order]
            accuracy = accuracy.reshape(-1, len(epochs))
        matrix = loss[order].reshape(-1, len(epochs))
        return cls(label, tuple(ids.tolist()), tuple(epochs.tolist()), matrix, accuracy)

    def __call__(self, pool: Pool) -> tuple[Float[np.ndarray, "n e"], Float[np.ndarray, "n e"] | None]:
        """Return losses and accuracies of the pool's examples, row-aligned.

        Raises:
            DataError: the log lacks one of them.
        """
        place = {sample_id: row for row, sample_id in enumerate(self.ids)}
        rows = np.fromiter((place.get(sample_id, -1) for sample_id in pool.ids), dtype=np.int64, count=len(pool))
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            raise DataError(
                f"{self.label} names {len(pool) - len(missing)} of {len(pool)} candidates ({len(self.ids)} examples in "
                f"all); it lacks {pool.ids[missing[0]]}. Give the log of a training on these very examples, known by "
                "the same sample_id."
            )
        return self.loss[rows], None if self.accuracy is None else self.accuracy[rows]

    @property
    def digest(self) -> str:
        """Of the content."""
        digest = hashlib.sha256("\0".join((*self.ids, *map(str, self.epochs))).encode())
        for matrix in (self.loss, self.accuracy):
            digest.update(b"\0" if matrix is None else np.ascontiguousarray(matrix).tobytes())
        return digest.hexdigest()[:16]


_LOG_COLUMNS = ("sample_id", "epoch", "seen", "loss", "token_accuracy")


def read_trajectories(path: str | os.PathLike[str]) -> Trajectories:
    """Read the training log of a trainer of longgame, or another one's from a file.

    Args:
        path: a checkpoint or output directory (its newest table), the table itself, or a .parquet, .csv or .jsonl file
            with the columns sample_id, epoch, loss and perhaps token_accuracy: a row for each example and epoch.

    Raises:
        DataError: there is no such log, it cannot be read, or it is none (`Trajectories.of`).
    """
    label = f"training log '{path}'"
    if Path(path).expanduser().is_dir():
        return Trajectories.of(read_training_log(Path(path).expanduser()), label)
    return Trajectories.of(read_frame(path, label, _LOG_COLUMNS), label)


def _whole_numbers(column: pd.Series, label: str) -> np.ndarray:
    """A column of whole numbers ≥ 0, also where they are written as text, so that 10 comes after 9."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = ~np.isfinite(values) | (values < 0) | (values != np.round(values)) | (np.abs(values) > 2**53)
    if wrong.any():
        value = column.tolist()[int(wrong.argmax())]
        kind = "text" if isinstance(value, str) else "no whole number"
        raise DataError(f"{label} holds {value!r}, which is {kind}. Write epochs as whole numbers: 0, 1, 2 …")
    return values.astype(np.int64)


def _reals(column: pd.Series, label: str, ids: Sequence[str], least: float, most: float) -> np.ndarray:
    """A column of finite numbers in [least, most], as float32."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    highest = min(most + 1e-6, float(np.finfo(np.float32).max))
    wrong = ~np.isfinite(values) | (values < least - 1e-6) | (values > highest)
    if wrong.any():
        row = int(wrong.argmax())
        bounds = f"from {least:g} on" if most == math.inf else f"in [{least:g}, {most:g}]"
        raise DataError(
            f"{label} of example {ids[row]} is {column.tolist()[row]!r} ({int(wrong.sum())} such rows). Give finite "
            f"float32 numbers {bounds}."
        )
    return np.clip(values, least, most).astype(np.float32)


def _read(path: str | Path, name: str) -> pd.DataFrame:
    folder = Path(path)
    if folder.name != name:
        tables = [table for table in (folder / name, *folder.glob(f"checkpoint-*/{name}")) if table.is_dir()]
        if not tables:
            hint = " Train with SelectionConfig(training_log=True)." if name == TRAINING_LOG else ""
            raise DataError(f"'{folder}' holds no {name}. Give a checkpoint or output directory of a trainer.{hint}")
        folder = max(tables, key=lambda table: table.stat().st_mtime_ns)
    return Parts.load(folder).frame()


class Parts:
    """A table that grows, as a folder of Parquet files that pandas and Arrow read as one.

    A part is named by its first row and the row behind its last. Parts merge as in a log-structured merge tree, and
    parts that an earlier folder holds are linked, so k writes of n rows in all write O(n log k) rows.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[int, bytes]] = []
        """Rows and Parquet file of each part, in order."""
        self._pending: list[pa.Table] = []
        self._folder: Path | None = None
        """Where the parts were written last."""

    def __len__(self) -> int:
        return sum(rows for rows, _ in self._parts) + sum(table.num_rows for table in self._pending)

    def append(self, columns: Mapping[str, Any]) -> None:
        """Add rows; a column that earlier rows lack is missing in them."""
        self._pending.append(pa.table(dict(columns)))
        if len(self._pending) >= _MOST_PENDING:  # a table of a few rows takes some KiB
            self._settle()

    def write(self, folder: Path) -> None:
        """Write the table durably as this folder.

        Raises:
            StorageError: the disk is full or not writable.
        """
        self._settle()
        with durable_folder(folder) as scratch:
            start = 0
            for rows, content in self._parts:
                name = f"{start:010d}-{start + rows:010d}.parquet"
                if self._folder is None or not _link(self._folder / name, scratch / name, len(content)):
                    (scratch / name).write_bytes(content)
                start += rows
        self._folder = folder

    def frame(self) -> pd.DataFrame:
        """The table."""
        self._settle()
        tables = [unpack_parquet(content) for _, content in self._parts]
        return _joined(tables).to_pandas() if tables else pd.DataFrame()

    @classmethod
    def load(cls, folder: Path) -> Parts:
        """Read what `write` wrote.

        Raises:
            DataError: a part is missing or cannot be read.
        """
        table = cls()
        try:
            files = sorted(file for file in folder.iterdir() if _PART.fullmatch(file.name))
            for file in files:
                content = file.read_bytes()
                rows = pq.read_metadata(pa.BufferReader(content)).num_rows
                if file.name != f"{len(table):010d}-{len(table) + rows:010d}.parquet":
                    raise DataError(f"{folder} lacks rows from {len(table)} on, before {file.name}.")
                table._parts.append((rows, content))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{folder} cannot be read ({error}). Read an earlier checkpoint.") from error
        table._folder = folder
        return table

    def _settle(self) -> None:
        """Make parts of the pending rows, and merge neighbors of about one size."""
        if self._pending:
            table = _joined(self._pending)
            self._pending = []
            self._parts.append((table.num_rows, parquet_bytes(table)))
        while len(self._parts) > 1 and self._parts[-2][0] < 2 * self._parts[-1][0]:
            tables = [unpack_parquet(content) for _, content in self._parts[-2:]]
            table = _joined(tables)
            self._parts[-2:] = [(table.num_rows, parquet_bytes(table))]


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="permissive").combine_chunks()


def _link(source: Path, target: Path, size: int) -> bool:
    """Link a file of this size; False where that is not possible and it must be written."""
    try:
        if source.stat().st_size != size:
            return False
        os.link(source, target)
    except OSError:
        return False
    return True


@dataclass
class Tally:
    """Counts of the selections since the last entry of the Trainer's log."""

    picks: int = 0
    offered: int = 0
    pick_tokens: int = 0
    offered_tokens: int = 0
    pick_loss: float = 0.0
    """Sum over picks; only of selections whose selector requires ``loss``."""
    offered_loss: float = 0.0
    picks_with_loss: int = 0
    offered_with_loss: int = 0
    again: int = 0
    """Picks that were picked in the epoch before, too."""
    compared: int = 0
    """Picks of which that is known."""


class SelectionRecord:
    """Keeps what a training selects: the statistics for the Trainer's log, the picks and the training log.

    Args:
        training_log: keep the training log, too.
        remember: keep the step at which each example was picked last (`last_pick`), for comparisons with earlier
            epochs.
    """

    def __init__(self, training_log: bool = False, remember: bool = True) -> None:
        self._remember = remember
        self.picks = Parts()
        self.learned = Parts() if training_log else None
        self.last_pick: dict[str, int] = {}
        """Step at which each example was picked last."""
        self._passes: dict[str, int] = {}
        """Times that each example was learned (training log)."""
        self._tally = Tally()
        self._seconds = 0.0
        self._since = time.perf_counter()

    def add_selection(self, step: int, pool: Pool, decision: Round, rows: Sequence[int] | None, epoch: int) -> None:
        """Record a selection.

        Args:
            step: 0-based optimizer step before which it was made.
            pool: the candidates, and what the policy replays.
            rows: row in the training dataset of each pick, in pick order; None for a stream.
            epoch: optimizer steps of an epoch where every step selects from its own candidates; 0: no comparison with
                the epoch before.
        """
        picked, terms = decision.selection.rows, decision.selection.scores
        ids = decision.picked_ids
        tally = self._tally
        tally.picks += len(picked)
        tally.offered += len(pool)
        tally.pick_tokens += int(pool.tokens[picked].sum())
        tally.offered_tokens += int(pool.tokens.sum())
        if "loss" in decision.signals.columns:
            loss = decision.signals["loss"].astype(np.float64)
            tally.pick_loss += float(loss[picked].sum())
            tally.offered_loss += float(loss.sum())
            tally.picks_with_loss += len(picked)
            tally.offered_with_loss += len(pool)
        if epoch and step >= epoch:
            start = step // epoch * epoch
            tally.again += sum(start - epoch <= self.last_pick.get(sample_id, -1) < start for sample_id in ids)
            tally.compared += len(ids)
        if self._remember:
            self.last_pick.update(dict.fromkeys(ids, step))
        weights = decision.selection.weights
        self.picks.append(
            {
                "step": np.full(len(ids), step, dtype=np.int64),
                "sample_id": pa.array(ids, pa.string()),
                "row": pa.array([None] * len(ids) if rows is None else rows, pa.int64()),
                **{TERM + name: np.asarray(column)[picked].astype(np.float64) for name, column in terms.items()},
                **({} if weights is None else {"weight": weights}),
            }
        )

    def add_learned(
        self,
        ids: Sequence[str],
        losses: Float[np.ndarray, " k"],
        accuracies: Float[np.ndarray, " k"],
        *,
        step: int,
        epoch: int,
        number: int,
    ) -> None:
        """Record a pass over these examples in the training log; ``number`` is that of their round."""
        if self.learned is None:
            return
        for sample_id in ids:
            self._passes[sample_id] = self._passes.get(sample_id, 0) + 1
        n = len(ids)
        self.learned.append(
            {
                "sample_id": pa.array(ids, pa.string()),
                "epoch": np.full(n, epoch, dtype=np.int32),
                "round": np.full(n, number, dtype=np.int32),
                "step": np.full(n, step, dtype=np.int64),
                "loss": np.asarray(losses, dtype=np.float32),
                "token_accuracy": np.asarray(accuracies, dtype=np.float32),
                "seen": np.asarray([self._passes[sample_id] for sample_id in ids], dtype=np.int32),
            }
        )

    def statistics(self, seconds: float) -> dict[str, float]:
        """Return the statistics of the selections since the last call, under the names that the Trainer logs.

        Args:
            seconds: wall-clock that selection took in this training so far.
        """
        tally, now = self._tally, time.perf_counter()
        took, passed = seconds - self._seconds, now - self._since
        values: dict[str, float] = {
            "kept": tally.picks,
            "offered": tally.offered,
            "kept_tokens": tally.pick_tokens,
            "offered_tokens": tally.offered_tokens,
        }
        if tally.picks_with_loss:
            values["loss_kept"] = tally.pick_loss / tally.picks_with_loss
            values["loss_offered"] = tally.offered_loss / tally.offered_with_loss
        if tally.compared:
            values["overlap"] = tally.again / tally.compared
        values["seconds"] = round(took, 3)
        values["time_share"] = round(took / passed, 4) if passed > 0 else 0.0
        self._tally, self._seconds, self._since = Tally(), seconds, now
        return {f"selection/{name}": value for name, value in values.items()}

    def write(self, folder: Path) -> None:
        """Write the tables into a folder, durably.

        Raises:
            StorageError: the disk is full or not writable.
        """
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.picks.write(folder / PICKS)
        if self.learned is not None:
            self.learned.write(folder / TRAINING_LOG)

    def state_dict(self) -> dict[str, Any]:
        """Return the sizes of the tables, which checkpoints hold beside it, and the counts of the next log entry."""
        rows = {PICKS: len(self.picks)}
        if self.learned is not None:
            rows[TRAINING_LOG] = len(self.learned)
        return {"rows": rows, "tally": vars(self._tally).copy()}

    def load(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Restore the tables that `write` put into a folder, and what `state_dict` returned.

        Raises:
            ResumeError: a table is missing, damaged, or not of this state.
        """
        self.picks = self._table(folder / PICKS, state["rows"].get(PICKS))
        if self._remember and len(self.picks):
            frame = self.picks.frame()
            self.last_pick = dict(zip(frame["sample_id"], frame["step"].tolist(), strict=True))
        if self.learned is not None:
            self.learned = self._table(folder / TRAINING_LOG, state["rows"].get(TRAINING_LOG))
            if len(self.learned):
                self._passes = dict(Counter(self.learned.frame()["sample_id"]))
        self._tally = Tally(**state["tally"])
        self._seconds, self._since = 0.0, time.perf_counter()

    @staticmethod
    def _table(folder: Path, rows: int | None) -> Parts:
        if rows is None:
            raise ResumeError(
                f"the checkpoint '{folder.parent}' has no {folder.name}, because its training kept no training log. "
                "Set training_log=False, or start a new training."
            )
        try:
            table = Parts.load(folder)
        except DataError as error:
            raise ResumeError(f"{error} Or start a new training.") from error
        if len(table) != rows:
            raise ResumeError(
                f"{folder} holds {len(table)} rows and the checkpoint's selection state counts {rows}. "
                "Put back the files that belong together, or resume from an earlier checkpoint."
            )
        return table
