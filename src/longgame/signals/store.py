"""Signals of a pool of any size: one column file per signal on disk, written shard by shard, read as memory maps.

```
PATH/                  (PATH.part until it is finished)
  manifest.json        format, dtype of each column, fingerprint of what gave the numbers, rows
  ranges.jsonl         one line a shard: rows, digest of its examples, digest of each column's bytes
  ids.npy id_ends.npy  the ids' UTF-8 bytes end to end, and where each one ends
  loss.npy …           one array per signal, [n] or [n, d], row-aligned with the ids
```

Columns are plain .npy: every tool of the field opens them, a row stands at a fixed place in the file, and NumPy pads
the header so that an array can grow where it lies (Arrow and Parquet write a footer at the end, a safetensors header
needs the rows beforehand). A shard counts once its line in ranges.jsonl is on the disk, and its columns are there
before that line; whatever a kill leaves behind the last line is cut off when the writer opens again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError

import numpy as np
from jaxtyping import Float

from longgame.errors import PluginError, ResumeError, unknown
from longgame.signals.base import Signals
from longgame.signals.store_format import (
    ENDS,
    IDS,
    MANIFEST,
    RANGES,
    PackedIds,
    compare,
    damaged,
    descriptors,
    part_of,
    read_manifest,
    read_ranges,
)


class SignalStore:
    """A finished store, opened for reading.

    Args:
        path: the directory.

    Raises:
        ResumeError: there is no finished store, or its files do not fit together.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / MANIFEST).is_file():
            begun = part_of(self.path).is_dir()
            hint = " It was begun and not finished; run what writes it again." if begun else ""
            raise ResumeError(f"{self.path} holds no signal store (no {MANIFEST}).{hint}")
        manifest = read_manifest(self.path)
        self.fingerprint: str = manifest["fingerprint"]
        self.names: tuple[str, ...] = tuple(manifest["columns"])
        self.ranges = read_ranges(self.path)[0]
        rows = self.ranges[-1].stop if self.ranges else 0
        if not rows or manifest["rows"] != rows:
            raise damaged(self.path, f"{MANIFEST} says {manifest['rows']} rows, {RANGES} {rows}")
        self._dtypes = descriptors(manifest["columns"])
        self._maps = {name: self._load(name) for name in self._dtypes}

    @classmethod
    def open(cls, path: str | Path) -> SignalStore:
        """Open a finished store (see the class)."""
        return cls(path)

    def __len__(self) -> int:
        return len(self._maps[ENDS])

    @property
    def ids(self) -> PackedIds:
        """Ids of the rows."""
        return PackedIds(self._maps[IDS].view(np.ndarray), self._maps[ENDS].view(np.ndarray))

    def column(self, name: str) -> Float[np.ndarray, "n ..."]:
        """A signal as it lies on the disk: read-only, memory-mapped, float32 or float16, not compared with its digest.

        Raises:
            PluginError: it is not in the store.
        """
        if name not in self.names:
            raise PluginError(f"{self.path} was asked for an " + unknown("signal", name, self.names))
        return self._maps[name].view(np.ndarray)

    def signals(self, names: Sequence[str] | None = None, *, widen: bool = True) -> Signals:
        """The columns of these signals (default: all), each compared with its digest (about a second per GB).

        Args:
            names: which ones.
            widen: give float16 columns as float32 in memory, as `Signals` promises; False leaves them memory-mapped
                float16, at half the size and for readers that mind the range (a sum of 100 squares may overflow).
                float32 columns are memory-mapped either way.

        Raises:
            PluginError: a name that is not in the store. ResumeError: a file is damaged.
            NumericalError: a value is not finite.
        """
        wanted = self.names if names is None else tuple(dict.fromkeys(names))
        columns = {name: self.column(name) for name in wanted}
        self.verify(wanted)
        if widen:
            columns = {name: column.astype(np.float32, copy=False) for name, column in columns.items()}
        return Signals(tuple(self.ids), columns)

    def verify(self, names: Sequence[str] | None = None) -> None:
        """Read the files (ids, and these columns or all) and compare every shard with its digest.

        Raises:
            ResumeError: some bytes are not those that were written.
        """
        for name in (IDS, ENDS, *(self.names if names is None else names)):
            compare(self.path, name, self._dtypes[name], self._maps[name].offset, self.ranges)

    def _load(self, name: str) -> np.memmap:
        try:
            found = np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            shapes = [part.shapes[name] for part in self.ranges]
        except (OSError, ValueError, SyntaxError, EOFError, TokenError, KeyError) as error:
            raise damaged(self.path, f"{name}.npy: {error}") from error
        expected = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        if found.dtype != self._dtypes[name] or found.shape != expected:
            raise damaged(self.path, f"{name}.npy is {found.dtype} {found.shape}, not {self._dtypes[name]} {expected}")
        return found
