"""Signals of a pool that comes in shards, in memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from longgame.data.examples import Pool
from longgame.errors import ResumeError
from longgame.signals.fingerprint import pool_fingerprint
from longgame.signals.store import SignalStore
from longgame.signals.store_writer import SignalWriter

Engine = Callable[[Pool, Sequence[str]], Mapping[str, np.ndarray]]
"""What computes signals: `SignalEngine`, or anything that is called like it."""


def stream_signals(
    engine: Engine,
    pools: Iterable[Pool],
    names: Sequence[str],
    path: str | Path,
    *,
    fingerprint: str,
    dtype: str | Mapping[str, str] = "float32",
    on_shard: Callable[[int], None] | None = None,
) -> SignalStore:
    """Compute these signals shard by shard into a `SignalStore`; one shard is in memory at a time.

    Killed and called again with the same arguments, it walks through the finished shards without the engine and goes on
    behind them: the store ends with the same bytes.

    Args:
        engine: computes the columns of one shard.
        pools: the shards, in an order that is the same every time; thousands of examples each, ids unique over all.
        names: signals to store.
        path: directory of the store; it stands under ``PATH.part`` until it is finished.
        fingerprint: what the engine computes with (`longgame.signals.fingerprint.signal_fingerprint`); another one
            does not go on with what this one began.
        dtype: ``float32`` or ``float16`` (see `SignalWriter`), for all columns or by name (the rest: float32).
        on_shard: told the rows that are done, after every shard.

    Raises:
        ResumeError: what was begun at ``path`` came from other shards, columns or another fingerprint.
        StorageError: ``path`` exists, another process is writing it, or the disk is full.
        DataError: no example, or an id stands twice. NumericalError: a value is not finite or too large for float16.
        LonggameError: whatever the engine or the source raises.
    """
    columns = {name: dtype if isinstance(dtype, str) else dtype.get(name, "float32") for name in names}
    with SignalWriter(path, columns, fingerprint) as writer:
        done = list(writer.ranges)
        rows = number = 0
        for number, pool in enumerate(pools, start=1):
            content = pool_fingerprint(pool)
            if number <= len(done):
                held = done[number - 1]
                if (held.stop - held.start, held.content) != (len(pool), content):
                    raise _other_source(writer, f"rows {held.start}…{held.stop - 1} hold other examples")
            else:
                writer.append(pool.ids, engine(pool, list(columns)), content)
            rows += len(pool)
            if on_shard is not None:
                on_shard(rows)
        if number < len(done):
            raise _other_source(writer, f"{writer.rows} rows are stored, the source now ends after {rows}")
        return writer.finish()


def _other_source(writer: SignalWriter, what: str) -> ResumeError:
    return ResumeError(
        f"{writer.path}.part was begun with another source ({what}). Give the same examples in the same shards, delete "
        "it, or use another path."
    )
