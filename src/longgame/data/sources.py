"""Examples from JSONL and Parquet files, folders of them, and data sets of the Hugging Face hub; files of scores."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float

from longgame.data.examples import Example
from longgame.errors import DataError, did_you_mean
from longgame.limits import why_no_file
from longgame.models.hub import require_repo

Split = Literal["train", "eval"]

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
"""Endings of files that are read; a reference with one of them is a path."""

FORMATS = (
    "prompt + response",
    "prompt + completion (strings or message lists)",
    "messages",
    "instruction (+ input or context) + output or response",
    "question (+ context) + answer",
    "text",
)
_EVAL_SPLITS = ("validation", "test", "eval", "dev")
_FILES_REMEDY = (
    "Without network, give --data-dir with files of that content and name them in the recipe, or write a path to a "
    ".jsonl, .jsonl.gz or .parquet file"
)
_HUB_REMEDY = _FILES_REMEDY + ", or set HF_HUB_OFFLINE=1 to use a copy that is already cached."


def load_examples(reference: str, *, data_dir: Path | None, split: Split) -> list[Example]:
    """The examples of a reference, in file order.

    Args:
        reference: a bare name (``data_dir/split/NAME.jsonl``, ``.jsonl.gz`` or ``.parquet``), a path that ends in one
            of these, or ``hub:owner/name[:config[:split]]``.
        data_dir: folder with ``train/`` and ``eval/``; only bare names need it.
        split: the folder of a bare name; for a hub data set without an explicit split, ``train``, or the first that
            exists of validation, test, eval and dev.

    Accepted columns are TRL's (prompt/completion, messages, text), instruction/input/output, instruction/context/
    response, question/context/answer and prompt/response; optional: skill, answer, choices, quality, source, noisy,
    difficulty, verifier, system (system_prompt, system_message), history. The last assistant turn of a conversation
    is the response, the only turn that is learned; the turns before it are the prompt, those behind it are not read.
    A cell that is NaN is missing.
    Where ``answer`` is the response, the gold answer is the text after ``####``, else the answer if it is one line.

    Raises:
        DataError: unknown name or file, a line that does not parse or has no response (the first one with its number,
            and the count of the others), a file without examples, a hub that cannot be reached or lacks the data set.
    """
    if reference.startswith("hub:"):
        return _convert(reference, "row", _hub_rows(reference, split))
    path = _locate(reference, data_dir, split)
    if path.name.endswith(".parquet"):
        return _convert(str(path), "row", _parquet_rows(path))
    return _convert(str(path), "line", _jsonl_rows(path))


def source_name(reference: str) -> str:
    """The short name of a reference: the file's stem, or the hub id without ``hub:``."""
    if reference.startswith("hub:"):
        return reference.removeprefix("hub:")
    name = Path(reference).name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


def _locate(reference: str, data_dir: Path | None, split: Split) -> Path:
    if reference.endswith(SUFFIXES):
        path = Path(reference).expanduser()
        if reason := why_no_file(path):
            lists = reason == "does not exist" and path.parent.is_dir()
            hint = did_you_mean(path.name, [p.name for p in path.parent.iterdir()] if lists else [])
            raise DataError(f"data file '{reference}' {reason}.{hint} Give the path of an existing file.")
        return path
    if "/" in reference or "\\" in reference:
        hub = "" if reference.startswith((".", "/", "~")) else f" A data set of the hub is written 'hub:{reference}'."
        raise DataError(
            f"data reference '{reference}' is neither a bare name nor a path that ends in {', '.join(SUFFIXES)}. "
            f"Write the whole file name.{hub}"
        )
    if data_dir is None:
        raise DataError(
            f"data name '{reference}' needs a data folder. Give --data-dir (or data.data_dir in the recipe): a folder "
            f"that holds {split}/{reference}.jsonl, .jsonl.gz or .parquet."
        )
    folder = Path(data_dir).expanduser() / split
    if not folder.is_dir():
        where = "" if folder.is_absolute() else f" (relative to {Path.cwd()})"
        raise DataError(
            f"data folder '{folder}' does not exist{where}. Give --data-dir, a folder with train/ and eval/."
        )
    paths = [folder / (reference + suffix) for suffix in SUFFIXES if (folder / (reference + suffix)).is_file()]
    if len(paths) > 1:
        several = ", ".join(path.name for path in paths)
        raise DataError(f"data name '{reference}' fits {several} in '{folder}'. Keep one, or write the path of one.")
    if not paths:
        names = sorted({source_name(path.name) for path in folder.iterdir() if path.name.endswith(SUFFIXES)})
        content = ", ".join(names) if names else "no data files"
        raise DataError(
            f"unknown data name '{reference}'.{did_you_mean(reference, names)} '{folder}' holds: {content}."
        )
    return paths[0]


class _RowError(Exception):
    """The fault of one row; collected by `_convert`."""


def _convert(where: str, unit: str, rows: Iterable[tuple[int, Callable[[], Any]]]) -> list[Example]:
    """The rows as examples; all rows are read before an error is raised, so that it counts the bad ones."""
    examples: list[Example] = []
    faults: list[tuple[int, str]] = []
    for number, read in rows:
        try:
            examples.append(_example(read()))
        except _RowError as error:
            faults.append((number, str(error)))
    if faults:
        others = len(faults) - 1
        tail = f" {others} more {unit}{'s' if others != 1 else ''} cannot be used." if others else ""
        raise DataError(f"{where}, {unit} {faults[0][0]}: {faults[0][1]}.{tail} Correct or remove these rows.")
    if not examples:
        raise DataError(f"'{where}' holds no examples. Give a file with at least one {unit}.")
    return examples


_LONGEST_LINE = 64 * 2**20
"""Bytes of a line of JSON, or of one value of a Parquet file."""
_UNPACKED, _RATIO = 256 * 2**20, 100
"""Bytes that any packed file may unpack to; a larger one may grow by this ratio."""
_BATCH = 64
"""Rows of a Parquet file that are unpacked at once."""


def _unpacked_limit(path: Path) -> int:
    return max(_UNPACKED, _RATIO * path.stat().st_size)


def _too_large(path: Path, limit: int) -> DataError:
    return DataError(
        f"'{path}' has {path.stat().st_size:,} bytes and unpacks to more than {limit:,}. Unpack it and give the parts "
        "that you need."
    )


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Callable[[], Any]]]:
    opener = gzip.open if path.name.endswith(".gz") else open
    number, size = 0, 0
    try:
        limit = _unpacked_limit(path)
        with opener(path, "rb") as stream:
            for number, raw in enumerate(iter(lambda: stream.readline(_LONGEST_LINE + 1), b""), start=1):
                size += len(raw)
                if len(raw) > _LONGEST_LINE:
                    raise DataError(f"{path}, line {number} has more than {_LONGEST_LINE:,} bytes. Give shorter rows.")
                if size > limit:
                    raise _too_large(path, limit)
                if raw.strip():
                    yield number, lambda raw=raw: _parse(raw)  # type: ignore[misc]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}, after line {number}: the gzip data is damaged ({error}). Copy it again.") from error
    except OSError as error:
        raise DataError(
            f"data file '{path}' cannot be read: {error.strerror or error}. Check its permissions."
        ) from error


def _parse(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unrepeated)
    except UnicodeDecodeError as error:
        raise _RowError(f"is not UTF-8 (byte {error.start + 1})") from error
    except json.JSONDecodeError as error:
        raise _RowError(f"is not valid JSON ({error.msg}, column {error.colno})") from error
    except (RecursionError, ValueError) as error:  # brackets or digits without end
        raise _RowError(f"cannot be read as JSON ({error})") from error


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise _RowError(f"has the field {repeated!r} twice; keep one")
    return fields


def _parquet_rows(path: Path) -> Iterator[tuple[int, Callable[[], Any]]]:
    """Rows, a few unpacked at a time; texts stay in dictionaries, which a value may repeat at no cost, until then."""
    number, size = 0, 0
    try:
        limit = _unpacked_limit(path)
        texts = [field.name for field in pq.read_schema(path) if pa.types.is_string(field.type)]
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            groups = [file.metadata.row_group(place) for place in range(file.metadata.num_row_groups)]
            if max(file.metadata.num_rows, sum(group.total_byte_size for group in groups)) > limit:
                raise _too_large(path, limit)
            for batch in file.iter_batches(batch_size=_BATCH, use_threads=False):
                step = max(1, min(_BATCH, _LONGEST_LINE // max(1, batch.nbytes)))
                for start in range(0, len(batch), step):
                    part = batch.slice(start, step)
                    columns = [_decoded(column) for column in part.columns]
                    size += sum(column.nbytes for column in columns)
                    if size > limit:
                        raise _too_large(path, limit)
                    rows = pa.RecordBatch.from_arrays(columns, names=part.schema.names).to_pylist()
                    for row in rows:
                        number += 1
                        yield number, lambda row=row: row  # type: ignore[misc]
    except (pa.ArrowException, MemoryError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".:")
        raise DataError(f"Parquet file '{path}' cannot be read: {reason}. Write it again.") from error


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _hub_rows(reference: str, split: Split) -> Iterator[tuple[int, Callable[[], Any]]]:
    import datasets  # heavy, and only hub references need it

    parts = reference.removeprefix("hub:").split(":")
    if len(parts) > 3 or not parts[0] or "/" not in parts[0]:
        raise DataError(f"data reference '{reference}' must read hub:owner/name, optionally with :config and :split.")
    name = parts[0]
    config, named_split = ((*parts, "", "")[place] or None for place in (1, 2))
    if not datasets.config.HF_HUB_OFFLINE:
        require_repo(name, "dataset", DataError, _HUB_REMEDY)
    try:
        chosen = named_split or _pick_split(reference, datasets.get_dataset_split_names(name, config), split)
        table = datasets.load_dataset(name, config, split=chosen)
    except ConnectionError as error:
        offline = datasets.config.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else str(error)
        remedy = _FILES_REMEDY + "." if offline else _HUB_REMEDY
        raise DataError(f"hub data set '{reference}' is not in the local cache, and {reason}. {remedy}") from error
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"hub data set '{reference}' cannot be loaded: {lines[0]} "
            "Check the name, the config and the split (hub:owner/name:config:split)."
        ) from error
    for number, row in enumerate(table, start=1):
        yield number, lambda row=row: row  # type: ignore[misc]


def _pick_split(reference: str, available: Iterable[str], split: Split) -> str:
    names = list(available)
    for name in ("train",) if split == "train" else _EVAL_SPLITS:
        if name in names:
            return name
    raise DataError(
        f"hub data set '{reference}' has the splits {', '.join(names)}; none is the {split} split by name. "
        "Name it: hub:owner/name:config:split."
    )


def _example(row: Any) -> Example:
    if not isinstance(row, Mapping):
        raise _RowError(f"holds a {type(row).__name__}, not an object of named fields")
    row = {key: value for key, value in row.items() if key == "quality" or not _is_nan(value)}
    _refuse_unread(row)
    turns, response = _content(row)
    _refuse_unused(row, [*(content for _, content in turns), response])
    turns = _with_system(row, turns)
    if not any(character.isprintable() and not character.isspace() for character in response):
        raise _RowError("the response is empty")
    optional = _optional(row)
    if optional.get("answer") == response and "question" in row:
        answer = response.rpartition("####")[2].strip()
        optional["answer"] = answer if answer and "\n" not in answer else None
    if all(not content for _, content in turns):
        return Example.make("", response, **optional)
    if len(turns) == 1 and turns[0][0] == "user":
        return Example.make(turns[0][1], response, **optional)
    last_user = next((content for role, content in reversed(turns) if role == "user"), "")
    return Example.make(last_user, response, messages=tuple(turns), **optional)


def _is_nan(value: Any) -> bool:
    """Whether a cell is NaN, which tables write for a missing text."""
    return isinstance(value, float) and math.isnan(value)


def _content(row: Mapping[str, Any]) -> tuple[list[tuple[str, str]], str]:
    """Turns before the response, and the response, in any of `FORMATS`."""
    if row.get("messages") is not None:
        if isinstance(row["messages"], str):
            raise _RowError("'messages' is a text, not a list of messages")
        return _split_conversation(_turns(row["messages"], "messages"))
    for key in ("response", "completion"):
        if row.get(key) is None:
            continue
        before = _turns(row["prompt"], "prompt") if row.get("prompt") is not None else [("user", _instruction(row))]
        answer = row[key]
        if isinstance(answer, str):
            return before, _text(answer, key)
        between, response = _split_conversation(_turns(answer, key))
        return [*before, *between], response
    if row.get("output") is not None:
        return [("user", _instruction(row))], _text(row["output"], "output")
    if row.get("text") is not None:
        return [("user", "")], _text(row["text"], "text")
    if row.get("question") is not None and row.get("answer") is not None:
        return [("user", _instruction(row))], _text(row["answer"], "answer")
    names = ", ".join(str(key) for key in row) or "nothing"
    raise _RowError(f"has no response (fields: {names}; accepted: {'; '.join(FORMATS)})")


_UNREAD = (
    *("tools", "functions", "tool_calls", "function_call", "reasoning_content", "reasoning", "thinking"),
    *("images", "image", "audio", "video", "videos"),
)
"""Fields of a row or a message that a model would see and longgame does not render."""


def _refuse_unread(holder: Mapping[str, Any], place: str = "") -> None:
    """Raise _RowError for a field that would be lost in silence."""
    for name in _UNREAD:
        if holder.get(name):
            raise _RowError(
                f"has '{name}'{place}, which is not read yet and would be lost; remove the field, or write it into the "
                "text"
            )


_CONTENT = ("prompt", "instruction", "question", "input", "context", "response", "completion", "output")
_SYSTEM = ("system", "system_prompt", "system_message")


def _refuse_unused(row: Mapping[str, Any], used: Sequence[str]) -> None:
    """Raise _RowError for a text beside the columns that are read, unless what is read contains it."""
    for name in _CONTENT:
        text = row.get(name)
        if isinstance(text, str) and text.strip() and not any(text.strip() in part for part in used):
            raise _RowError(f"has '{name}' beside the columns that are read, and it would be lost; remove or join it")


def _with_system(row: Mapping[str, Any], turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The turns behind the row's system prompt and its history of (user, assistant) pairs."""
    before: list[tuple[str, str]] = []
    systems = dict.fromkeys(_text(row[key], key) for key in _SYSTEM if row.get(key))
    if len(systems) > 1:
        raise _RowError("has several system prompts; keep one")
    system = next(iter(systems), "")
    if system.strip():
        if any(role == "system" for role, _ in turns):
            raise _RowError("has a system prompt of its own and one among its messages; keep one")
        before.append(("system", system))
    history = row.get("history")
    if history is not None and not isinstance(history, list | tuple):
        raise _RowError(f"'history' is a {type(history).__name__}, not a list of pairs of user and assistant")
    for pair in history or ():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise _RowError("'history' holds something else than pairs of user and assistant")
        before += [("user", _text(pair[0], "history")), ("assistant", _text(pair[1], "history"))]
    return before + turns


def _instruction(row: Mapping[str, Any]) -> str:
    """Instruction or question, with the input or context below it; empty where a row has neither."""
    ask = next((_text(row[key], key) for key in ("instruction", "question") if row.get(key)), "")
    extra = next((_text(row[key], key) for key in ("input", "context") if row.get(key)), "")
    return f"{ask}\n\n{extra}" if ask and extra else ask or extra


def _turns(value: Any, field: str) -> list[tuple[str, str]]:
    if isinstance(value, str):
        return [("user", _text(value, field))]
    if not isinstance(value, list | tuple):
        raise _RowError(f"'{field}' is a {type(value).__name__}, not a text or a list of messages")
    turns = []
    for turn in value:
        if not isinstance(turn, Mapping) or "role" not in turn or "content" not in turn:
            raise _RowError(f"'{field}' has a message without role and content")
        _refuse_unread(turn, f" in a message of '{field}'")
        if not _text(turn["role"], "role").strip():
            raise _RowError(f"'{field}' has a message whose role is blank")
        turns.append((_text(turn["role"], "role"), _text(turn["content"], "content")))
    return turns


def _split_conversation(turns: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], str]:
    for position in range(len(turns) - 1, -1, -1):
        if turns[position][0] == "assistant":
            return turns[:position], turns[position][1]
    roles = ", ".join(dict.fromkeys(role for role, _ in turns)) or "none"
    raise _RowError(f"the conversation has no assistant turn (its roles: {roles})")


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise _RowError(f"'{field}' is a {type(value).__name__}, not a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _RowError(
            f"'{field}' holds half of a surrogate pair ({value[error.start]!r}), which is no character; remove it"
        ) from error
    return value


def _optional(row: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key in ("skill", "source", "difficulty"):
        if row.get(key) is not None:
            fields[key] = _text(row[key], key) or None
    choices = row.get("choices")
    if choices is not None:
        if not isinstance(choices, list | tuple) or not all(isinstance(item, str) for item in choices):
            raise _RowError("'choices' is not a list of texts")
        if not all(item.strip() for item in choices):
            raise _RowError("'choices' holds an empty text")
        fields["choices"] = tuple(_text(item, "choices") for item in choices) or None
    fields["answer"] = _answer(row.get("answer"), fields.get("choices"))
    quality = row.get("quality")
    if quality is not None:
        number = isinstance(quality, int | float) and not isinstance(quality, bool)
        if not number or math.isnan(quality) or not 0 <= quality <= 1:
            raise _RowError(f"'quality' is {quality!r}, not a number from 0 to 1")
        fields["quality"] = float(quality)
    noisy = row.get("noisy")
    if noisy is not None:
        if not isinstance(noisy, bool):
            raise _RowError(f"'noisy' is {noisy!r}, not true or false")
        fields["noisy"] = noisy
    verifier = row.get("verifier")
    if verifier is not None:
        if not isinstance(verifier, Mapping):
            raise _RowError("'verifier' is not an object")
        fields["verifier"] = verifier
    return fields


def _answer(value: Any, choices: tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    """The gold answer of a row: a text, several, or None where it is empty; a whole number may number the choices."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    answers = []
    for item in values:
        if item is None or item == "" or _is_nan(item):
            continue
        if not isinstance(item, str | int | float) or (isinstance(item, float) and math.isinf(item)):
            raise _RowError("'answer' is neither a text, a number nor a list of them")
        answers.append(_text(_choice(item, choices) if choices else str(item), "answer"))
    if choices and answers and all(answer.strip().isdigit() and answer not in choices for answer in answers):
        raise _RowError(
            f"'answer' is the text {answers[0]!r}, none of the choices; write a letter, a choice, or a number (0 is "
            "the first)"
        )
    return None if not answers else answers[0] if len(answers) == 1 else tuple(answers)


def _choice(item: str | float, choices: tuple[str, ...]) -> str:
    """The answer of an item with choices; a whole number that is none of their texts is the place of one."""
    whole = not isinstance(item, str | bool) and float(item).is_integer()
    text = str(int(item)) if whole else str(item)
    if not whole or text in choices:
        return text
    if not 0 <= int(item) < len(choices):
        raise _RowError(f"'answer' is {text}, the number of none of {len(choices)} choices (0 is the first)")
    return choices[int(item)]


# Files of scores and keep flags that a user's own system gave to candidates.

_IDS = ("sample_id", "id")


def _csv_frame(path: Path) -> pd.DataFrame:
    frame = pd.read_csv(path, dtype=dict.fromkeys(_IDS, str), keep_default_na=True)
    if not isinstance(frame.index, pd.RangeIndex):
        raise ValueError("a row has more fields than the first one names")
    twice = [name for name in (*_IDS, "score", "keep") if f"{name}.1" in frame]
    if twice:
        raise ValueError(f"the column {twice[0]} stands twice")
    return frame


def _jsonl_frame(path: Path) -> pd.DataFrame:
    rows = []
    for number, read in _jsonl_rows(path):
        try:
            row = read()
            if not isinstance(row, dict):
                raise _RowError(f"holds a {type(row).__name__}, not an object of named fields")
            for name in _IDS:
                if isinstance(row.get(name), str):
                    _text(row[name], name)
        except _RowError as error:
            raise ValueError(f"line {number}: {error}") from error
        rows.append(row)
    return pd.DataFrame(rows)


_READ: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".parquet": pd.read_parquet,
    ".csv": _csv_frame,
    ".jsonl": _jsonl_frame,
}
"""Reader of each kind of file; ids stay text (an id may consist of digits)."""


@dataclass(frozen=True)
class ScoreFile:
    """Scores and keep flags of m examples, in the order of the file."""

    path: str
    ids: tuple[str, ...]
    score: Float[np.ndarray, " m"]
    """Higher is selected first; without a ``score`` column 1 − place / m, the order of the file."""
    keep: Bool[np.ndarray, " m"]
    """Whether the example may be selected; True for all without a ``keep`` column."""
    scored: bool = True
    """Whether there is a ``score`` column."""

    def digest(self, ids: Collection[str]) -> str:
        """Content hash of the file's rows of these examples.

        Their order in the file counts only where it replaces a score.
        """
        names = frozenset(ids)
        rows = [row for row, name in enumerate(self.ids) if name in names]
        ranks = self.score[rows].tolist() if self.scored else range(len(rows))
        content = sorted(zip([self.ids[row] for row in rows], ranks, self.keep[rows].tolist(), strict=True))
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def read_scores(path: str) -> ScoreFile:
    """Read a Parquet, CSV or JSON-lines file with a column ``sample_id`` (or ``id``) and ``score``, ``keep`` or both.

    Raises:
        DataError: a missing or unreadable file; a column that is missing or of the wrong kind; a repeated id; a missing
            or infinite score.
    """
    file = Path(path).expanduser()
    reader = _READ.get(file.suffix)
    if reader is None:
        raise DataError(f"score file '{path}' ends in '{file.suffix}'; give a {', '.join(_READ)} file.")
    if reason := why_no_file(file):
        raise DataError(f"score file '{path}' {reason}. Give the path of a {', '.join(_READ)} file.")
    try:
        frame = reader(file)
    except (OSError, ValueError) as error:  # pandas and pyarrow report damaged content by kinds of ValueError
        raise DataError(f"score file '{path}' cannot be read: {' '.join(str(error).split())}.") from error
    label = f"score file '{path}'"
    column = next((name for name in _IDS if name in frame), None)
    if column is None or not {"score", "keep"} & set(frame):
        names = ", ".join(map(str, frame.columns)) or "none"
        raise DataError(f"{label} has the columns {names}; it needs sample_id, and score or keep or both.")
    ids = frame[column].tolist()
    if not ids:
        raise DataError(f"{label} has no rows. Give one row for each example.")
    not_text = [value for value in ids if not isinstance(value, str) or not value.isprintable()]
    if not_text:
        raise DataError(f"{label}: {column} holds {not_text[0]!r}, which is no text; write ids as they were given.")
    repeated = frame[column][frame[column].duplicated()].tolist()
    if repeated:
        raise DataError(f"{label} repeats {len(repeated)} ids: {_some(repeated)}. Give one row for each example.")
    keep = np.ones(len(ids), dtype=bool) if "keep" not in frame else _flags(label, frame["keep"].tolist())
    score = 1 - np.arange(len(ids)) / max(1, len(ids))
    if "score" in frame:
        if any(isinstance(value, bool) for value in frame["score"].tolist()):
            raise DataError(f"{label}: score holds true or false; write numbers, or name the column keep.")
        try:
            score = pd.to_numeric(frame["score"], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        except OverflowError as error:
            raise DataError(f"{label}: a score has too many digits for a number. Write it as 1e300, say.") from error
        bad = [name for name, value in zip(ids, score.tolist(), strict=True) if not np.isfinite(value)]
        if bad:
            raise DataError(f"{label}: {len(bad)} ids have no finite number as score: {_some(bad)}. Drop or set them.")
    return ScoreFile(path, tuple(ids), score, keep, "score" in frame)


def _flags(label: str, values: list[Any]) -> Bool[np.ndarray, " m"]:
    meanings = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    flags = [meanings.get(str(value).lower()) for value in values]
    if None in flags:
        raise DataError(f"{label}: keep holds {values[flags.index(None)]!r}; write true or false, or 1 or 0.")
    return np.asarray(flags, dtype=bool)


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:5]) + (" …" if len(ids) > 5 else "")
