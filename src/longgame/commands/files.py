"""What commands write beside their text: charts for pages that are read without a browser, and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from longgame.errors import StorageError

_VERSION = ".".join(alt.SCHEMA_VERSION.split(".")[:2])


def write_chart(chart: Any, folder: Path, name: str) -> list[Path]:
    """Write an altair chart as ``NAME.svg`` and ``NAME.png`` (double size), on white; returns the files.

    Raises:
        StorageError: the folder cannot be written.
    """
    spec = chart.configure(background="white").to_dict()
    content = {
        folder / f"{name}.svg": vl_convert.vegalite_to_svg(spec, vl_version=_VERSION).encode(),
        folder / f"{name}.png": vl_convert.vegalite_to_png(spec, vl_version=_VERSION, scale=2),
    }
    for path, data in content.items():
        _write(path, data)
    return list(content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON; folders are made.

    Raises:
        StorageError: the file cannot be written.
    """
    _write(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}. Give another place.") from error
