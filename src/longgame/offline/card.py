"""The dataset card of a subset, and its push to the hub."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from longgame.data.examples import WEIGHT
from longgame.data.sources import FileSource, RowSource
from longgame.escape import markdown_code, markdown_text
from longgame.models.hub import Push, card_metadata, license_of, push
from longgame.offline.subset import MANIFEST, PREFIX, beside

_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
"""The hub's size categories, by the number of rows that they stay under."""
_MEANINGS = {
    "rank": "1 for the first pick",
    "score": "the score that decided; empty for selectors without one",
    "sample_id": "digest of the row's content, by which score files name it",
    "replayed": "whether the row is of earlier data, learned again",
}
_DROPPED = ("--push", "--card")
"""Options that a repeated command does without; each has a value."""


@dataclass(frozen=True)
class DatasetCard:
    """A dataset card: its metadata (the YAML at its top), and its text as Markdown."""

    metadata: Mapping[str, Any]
    text: str

    def __str__(self) -> str:
        front = yaml.safe_dump(dict(self.metadata), sort_keys=False, allow_unicode=True)
        return f"---\n{front}---\n\n{self.text}"


def dataset_card(manifest: Mapping[str, Any], out: Path | None, license: str = "") -> DatasetCard:
    """Return the card of a subset: what was selected of what and how, its columns, and the command that repeats it.

    Paths on this machine are shortened to the names of their files.

    Args:
        manifest: of `longgame.offline.outcome.manifest_of`, or of a selection in parts.
        out: the subset's file or folder; None: it is not written, and the metadata names no file.
        license: of the source, as `source_license` returns it; empty where it is not known.
    """
    data, picked, selector = manifest["data"], manifest["picked"], manifest["selector"]
    unit = "tokens" if "tokens" in picked else "characters"
    source, name = _short(data["label"]), markdown_text(_local(selector["name"]))
    rows = f"{picked['rows']:,} of {data['candidates']:,} rows ({_percent(picked['rows'], data['candidates'])})"
    counts = f"{picked[unit]:,} of {data[unit]:,} {unit} ({_percent(picked[unit], data[unit])})"
    budget = manifest["budget"]
    facts = {
        "method": f"{name}, by longgame {manifest['longgame']}",
        "parameters": ", ".join(f"{key} = {_local(str(value))}" for key, value in selector["parameters"].items()),
        "budget": f"{budget['budget']}: {budget['asked']:,} {budget['unit']}, {budget['spent']:,} spent",
        "rows": f"{rows}{_left_out(data)}",
        unit: counts,
        "learned": f"{100 * picked['learned_share']:.1f} % of the selected {unit}",
        "weights": f"in the column {WEIGHT}" if WEIGHT in manifest["columns"] else "none: every row counts the same",
        "model": _local(manifest["weights"]),
        "seed": str(manifest["seed"]),
        "source": f"{source}, digest of its rows {data['digest']}",
        "license of the source": license or "not known; find it out before you share the subset",
        "picks": f"digest {picked['digest']}",
    }
    columns = [(f"`{column}`", _meaning(column)) for column in manifest["columns"]]
    lines = [
        f"## Subset of {markdown_text(source)}",
        f"{rows} with {counts} of {markdown_text(source)}, selected by {name}.",
        _table(("", ""), [(key, value) for key, value in facts.items() if value]),
        "### Columns",
        "The columns of the source are unchanged. The selection added these:",
        _table(("column", "meaning"), columns),
        "### Make it again",
        markdown_code(f"{_command(manifest['command'])}\n", "bash"),
        "Equal data, the same model and the same version give the same rows. The manifest holds the digests.",
        "### What it does to a model",
        "These numbers do not say what the subset does to a model, or to what it learns later. An audit measures both: "
        "`longgame audit`.",
    ]
    metadata: dict[str, Any] = {"license": license} if license else {}
    metadata["tags"] = ["longgame", "data-selection"]
    metadata["size_categories"] = [next((size for most, size in _SIZES if picked["rows"] < most), "n>10M")]
    if label := re.fullmatch(r"hub:([^:\[]+).*", str(data["label"])):
        metadata["source_datasets"] = [label[1]]
    if out is not None:
        path = f"{out.name}/*.arrow" if out.is_dir() else out.name
        metadata["configs"] = [{"config_name": "default", "data_files": [{"split": "train", "path": path}]}]
    return DatasetCard(metadata, "\n\n".join(lines) + "\n")


def source_license(source: RowSource) -> str:
    """Return the license that the data's own card states, on the hub or in a README.md beside the files; or nothing."""
    if source.label.startswith("hub:"):
        return license_of(source.label.removeprefix("hub:").partition(":")[0].partition("[")[0])
    folders = {path.parent for path in source.paths} if isinstance(source, FileSource) else set()
    stated = {_stated(folder / "README.md") for folder in folders}
    return stated.pop() if len(stated) == 1 else ""


def push_subset(repo_id: str, out: Path, card: DatasetCard) -> Push:
    """Push a written subset, its manifest and its card to a data set of the hub, in one commit.

    Paths on this machine in the pushed manifest are shortened to the names of their files, as in the card.

    Raises:
        StorageError: as `longgame.models.hub.push`.
    """
    written = sorted(path for path in out.rglob("*") if path.is_file()) if out.is_dir() else [out]
    files: dict[str, bytes | Path] = {path.relative_to(out.parent).as_posix(): path for path in written}
    path = beside(out, MANIFEST)
    manifest = json.loads(path.read_text(encoding="utf-8"))
    files[path.name] = (json.dumps(public_manifest(manifest), indent=1, ensure_ascii=False) + "\n").encode()
    return push(repo_id, "dataset", files, card.text, "Subset selected by longgame", card.metadata)


def public_manifest(value: Any, name: str = "") -> Any:
    """Return a manifest, or a part of it of this name, without the folders of this machine."""
    if isinstance(value, dict):
        return {key: public_manifest(part, key) for key, part in value.items()}
    if isinstance(value, list):
        return [public_manifest(part, name) for part in value]
    if not isinstance(value, str) or name == "template":
        return value
    return _command(value) if name == "command" and value else _short(value)


def _stated(readme: Path) -> str:
    if not readme.is_file():
        return ""
    try:
        return str(card_metadata(readme.read_text(encoding="utf-8")).get("license", ""))
    except ValueError:  # a README that is no card
        return ""


def _short(label: str) -> str:
    """The label of a source with the names of its files alone."""
    return ", ".join(map(_local, label.split(", ")))


def _local(text: str) -> str:
    """A path from the root as the name of its file, also after ``scores:``; any other text as it is."""
    start = "scores:" if text.startswith(("scores:/", "scores:~")) else ""
    path = text.removeprefix(start)
    return start + Path(path).name if path.startswith(("/", "~")) else text


def _left_out(data: Mapping[str, Any]) -> str:
    counts = {
        "that cannot be used": data["bad_rows"],
        "by a condition": data.get("filtered", 0),
        "repeats": data["duplicates"],
    }
    parts = ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)
    return f"; left out before: {parts}" if parts else ""


def _meaning(column: str) -> str:
    if column == WEIGHT:
        return "factor of the row's loss; longgame's trainers read it, and other trainers ignore it"
    return _MEANINGS.get(column.removeprefix(PREFIX), "a term of the score")


def _command(command: str) -> str:
    """The command without what concerns this machine: paths are names of files, and nothing is pushed."""
    if not command:
        return "# selected in Python, by longgame.select"
    words, skip = [], False
    for word in shlex.split(command):
        option, joined, value = word.partition("=")
        if skip or option in _DROPPED:
            skip = not skip and not joined
        else:
            words.append(f"{option}={_local(value)}" if word.startswith("--") and joined else _local(word))
    return shlex.join(words)


def _percent(part: int, total: int) -> str:
    return f"{100 * part / max(1, total):.1f} %"


def _table(headings: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [headings, ("---", "---"), *((key, markdown_text(value)) for key, value in rows)]
    return "\n".join(f"| {key} | {value} |" for key, value in lines)
