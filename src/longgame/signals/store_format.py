"""The files of a signal store: what is in them, how they are read, and when they are damaged (see `store`)."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from longgame.errors import ResumeError

DTYPES = ("float32", "float16")
FORMAT = "longgame signals 1"
MANIFEST, RANGES = "manifest.json", "ranges.jsonl"
IDS, ENDS = "ids", "id_ends"


@dataclass(frozen=True, slots=True)
class Range:
    """Rows that are on the disk, as one line of ranges.jsonl."""

    start: int
    stop: int
    content: str
    """Digest of the examples."""
    shapes: Mapping[str, Sequence[int]]
    """Of what each file gained."""
    digests: Mapping[str, str]
    """Of those bytes."""

    def line(self) -> str:
        fields = [self.start, self.stop, self.content, dict(self.shapes), dict(self.digests)]
        return json.dumps(fields, separators=(",", ":")) + "\n"


class PackedIds(Sequence[str]):
    """Ids of a store, decoded where they are asked for."""

    def __init__(self, text: Int[np.ndarray, " bytes"], ends: Int[np.ndarray, " n"]) -> None:
        self._text, self._ends = text, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return tuple(self[k] for k in range(*row.indices(len(self))))
        row = range(len(self))[row]
        start = int(self._ends[row - 1]) if row else 0
        return self._text[start : int(self._ends[row])].tobytes().decode(errors="surrogatepass")

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), 1 << 16):
            ends = self._ends[first : first + (1 << 16)].tolist()
            base = int(self._ends[first - 1]) if first else 0
            text = self._text[base : ends[-1]].tobytes()
            for start, end in zip([base, *ends], ends, strict=False):
                yield text[start - base : end - base].decode(errors="surrogatepass")


def part_of(path: Path) -> Path:
    """Where a store stands until it is finished."""
    return path.with_name(f"{path.name}.part")


def digest(data: bytes) -> str:
    """BLAKE2b, 128 bits, as hex."""
    return blake2b(data, digest_size=16).hexdigest()


def write_at(file: FileIO, offset: int, data: bytes) -> None:
    """Write bytes at this place of an unbuffered file: what a full disk refuses does not linger in a buffer."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file.fileno(), view, offset)
        view, offset = view[written:], offset + written


def descriptors(columns: Mapping[str, str]) -> dict[str, np.dtype]:
    """What the files of a store with these columns hold, little-endian."""
    stored = {name: np.dtype(dtype).newbyteorder("<") for name, dtype in columns.items()}
    return {IDS: np.dtype("|u1"), ENDS: np.dtype("<i8"), **stored}


def header_bytes(dtype: np.dtype, shape: Sequence[int]) -> bytes:
    """A .npy header, padded by NumPy to the same length whatever the number of rows."""
    text = io.BytesIO()
    fields = {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(text, fields)
    return text.getvalue()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read manifest.json (``rows`` is None where the store is not finished).

    Raises:
        ResumeError: it cannot be read, or belongs to something else.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] == FORMAT and isinstance(manifest["columns"], dict) and "fingerprint" in manifest:
            return {"rows": None, **manifest}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder, f"{MANIFEST}: {type(error).__name__}: {error}") from error
    raise ResumeError(f"{folder / MANIFEST} is not that of a signal store ('{FORMAT}'). Choose another directory.")


def read_ranges(folder: Path) -> tuple[list[Range], int]:
    """Whole lines of ranges.jsonl, and where they end; a last line without its end was not finished."""
    try:
        text = (folder / RANGES).read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        ranges = [Range(*json.loads(line)) for line in whole.splitlines()]
        stops = [0, *(part.stop for part in ranges)]
        if [part.start for part in ranges] == stops[:-1]:
            return ranges, len(whole)
    except (OSError, ValueError, TypeError) as error:
        raise damaged(folder, f"{RANGES}: {type(error).__name__}: {error}") from error
    raise damaged(folder, f"{RANGES} has a gap")


def compare(folder: Path, name: str, dtype: np.dtype, offset: int, ranges: Sequence[Range]) -> None:
    """Compare what a column file holds behind its header with the digests, shard by shard.

    Raises:
        ResumeError: the file is missing or too short, or some bytes are not those that were written.
    """
    try:
        with (folder / f"{name}.npy").open("rb") as file:
            file.seek(offset)
            for part in ranges:
                if digest(file.read(math.prod(part.shapes[name]) * dtype.itemsize)) != part.digests[name]:
                    raise damaged(folder, f"{name}.npy holds other bytes in rows {part.start}…{part.stop - 1}")
    except (OSError, KeyError) as error:
        raise damaged(folder, f"{name}.npy: {error}") from error


def damaged(folder: Path, what: str) -> ResumeError:
    """The error for files that do not fit together."""
    return ResumeError(f"{folder} is damaged ({what}). Delete it and compute the signals again.")
