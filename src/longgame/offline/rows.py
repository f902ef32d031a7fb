"""The rows of a data set, read once for ids, lengths and faults, and again wherever their text is needed."""

from __future__ import annotations

import ast
import dataclasses
import gc
import hashlib
import math
import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from longgame.data.examples import Example, ExamplesOnDisk, Pool
from longgame.data.formats import RowError, RowRules, read_row
from longgame.data.sources import RowSource, bad_rows
from longgame.errors import DataError, unknown
from longgame.escape import visible
from longgame.recipe import BudgetOf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnBadRow = Literal["error", "skip"]
TooLong = Literal["truncate", "skip", "error"]

_CHUNK = 4096
"""Rows whose ``--where`` is decided together."""
SHARD_ROWS = 2048
"""Rows that are tokenized and scored together: what a kill can cost, and what batches of one length are made of."""
_IN_MEMORY = 100_000
"""Examples that are held in memory once they were looked at one by one."""
_SKIP = "Correct or remove these rows, or skip them (--on-bad-row skip)."


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used."""

    file: str
    number: int
    reason: str


class DataRows:
    """The usable rows of a source: n of them, in its order.

    Memory grows by about 250 bytes a row; texts are not kept.

    Args:
        source: read once here, and again by `examples`.
        rules: which turns are learned, and the scale of ``quality``.
        on_bad_row: whether a row that cannot be used is an error or skipped.
        where: a condition on the columns (`RowCondition`); other rows are left out.
        may_be_empty: whether n may be 0.
        observe: called with the example of every usable row as it is read.

    Attributes:
        ids: distinct, by content; a copy of an earlier row has the suffix ``#2``, ``#3`` …
        positions: Int[n], place of each row among all of the source (from 0).
        numbers: Int[n], its number in its file, as an editor counts lines (from 1).
        prompt_length, response_length: Int[n], characters before the learned turns, and of them.
        formats: name of a format → rows.
        bad: what was skipped; of a shard, what lies in it.
        bad_positions: place of each of them among all of the source, rising.
        total: rows of the source.
        filtered: rows that ``where`` left out.
        rated: rows with a ``quality``.
        weighted: rows with a weight of an earlier selection.
        columns: those that any usable row has. Of `RowRules.columns`, and of ``quality``, only with a number in a row.
            A part of the rows keeps the answer.
        all_rated: whether that is every row; a part taken of the rows keeps the answer, so that scales are not mixed.
        groups: ``skill`` and ``source`` of each row (None: none), where any row has one.
        digest: of all ids in their order.
        shard: where these rows are a shard of a job, its ``number`` and the ``total`` of shards, and ``rows`` and
            ``digest`` of all the data.

    Raises:
        DataError: a row cannot be used and is not skipped, no row is left, or ``where`` cannot be decided.
    """

    def __init__(
        self,
        source: RowSource,
        rules: RowRules = RowRules(),
        on_bad_row: OnBadRow = "error",
        where: str | None = None,
        may_be_empty: bool = False,
        observe: Callable[[Example], None] | None = None,
    ) -> None:
        if on_bad_row not in ("error", "skip"):
            raise DataError(unknown("way of on_bad_row", str(on_bad_row), ("error", "skip")))
        self.source, self.rules, self.where = source, rules, where
        self._condition = None if where is None else RowCondition(where)
        self.shard: dict[str, Any] | None = None
        self.formats: Counter[str] = Counter()
        self.bad: list[BadRow] = []
        self.bad_positions: list[int] = []
        self.total = self.filtered = self.rated = self.weighted = 0
        self._files: list[tuple[int, str]] = []
        ids: list[str] = []
        columns = array("q")
        lacking = {*rules.columns}
        self._names = set[str]()
        skills: list[str | None] = []
        origins: list[str | None] = []
        copies: dict[str, int] = {}
        digest = hashlib.sha256()
        latest = None
        with without_collector():
            for position, file, number, example, form in self._read():
                sample_id = example.sample_id
                count = copies[sample_id] = copies.get(sample_id, 0) + 1
                if count > 1:
                    sample_id = f"{sample_id}#{count}"
                if file != latest:
                    latest = file
                    self._files.append((len(ids), file))
                if observe is not None:
                    observe(example)
                before, learned = lengths(example)
                ids.append(sample_id)
                columns.extend((position, number, before, learned))
                skills.append(example.skill)
                origins.append(example.source)
                self.formats[form] += 1
                self.rated += example.quality is not None
                lacking -= {name for name in lacking if (example.columns or {}).get(name) is not None}
                self.weighted += example.weight is not None
        for start in range(0, len(ids), _CHUNK):
            digest.update("".join([sample_id + "\0" for sample_id in ids[start : start + _CHUNK]]).encode())
        if self.bad and on_bad_row == "error":
            raise bad_rows(source, [dataclasses.astuple(row) for row in self.bad], _SKIP)
        if not ids and not may_be_empty:
            left_out = f" ({self.filtered} rows are left out by --where, {len(self.bad)} cannot be used)"
            fix = "Give data with at least one."
            if self.filtered and self._condition is not None:
                fix = f"Change the condition, --where {where!r}.{self._condition.values_seen()}"
            raise DataError(f"'{source.label}' holds no usable rows{left_out if self.total else ''}. {fix}")
        self.all_rated = self.rated == len(ids)
        if not self.rated and "quality" not in rules.columns:
            lacking.add("quality")
        self.columns = frozenset(self._names - lacking)
        self.ids = tuple(ids)
        table = np.asarray(columns, dtype=np.int64).reshape(-1, 4)
        self.positions, self.numbers, self.prompt_length, self.response_length = np.ascontiguousarray(table.T)
        self.groups = {name: values for name, values in (("skill", skills), ("source", origins)) if any(values)}
        self.digest = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.ids)

    def _read(self) -> Iterator[tuple[int, str, int, Example, str]]:
        """(position, file, number, example, format) of the usable rows; the others are counted."""
        rows = enumerate(self.source.rows())
        while chunk := list(islice(rows, _CHUNK)):
            parsed: list[Any] = []
            for _position, (_file, _number, read) in chunk:
                self.total += 1
                try:
                    parsed.append(read())
                except RowError as error:
                    parsed.append(error)
            chosen = self._chosen(parsed)
            for (position, (file, number, _)), row, usable in zip(chunk, parsed, chosen.tolist(), strict=True):
                if not usable:
                    self.filtered += 1
                    continue
                try:
                    if isinstance(row, RowError):
                        raise row
                    example, form = read_row(row, self.rules)
                except RowError as error:
                    self.bad.append(BadRow(file, number, visible(str(error))))
                    self.bad_positions.append(position)
                    continue
                self._names.update(row)
                yield position, file, number, example, form
        if self._condition is not None and self.total > len(self.bad):
            self._condition.check_columns()

    def _chosen(self, rows: list[Any]) -> Bool[np.ndarray, " n"]:
        """Which rows ``where`` keeps, and those that cannot be read."""
        if self._condition is None:
            return np.ones(len(rows), dtype=bool)
        unread = np.asarray([isinstance(row, RowError) for row in rows], dtype=bool)
        if unread.all():
            return unread
        return self._condition.holds([row if isinstance(row, dict) else {} for row in rows]) | unread

    def file_of(self, row: int) -> str:
        """File of a row."""
        return self._files[bisect_right(self._files, (row, "\U0010ffff")) - 1][1]

    def files(self) -> list[str]:
        """File of every row."""
        edges = [start for start, _ in self._files] + [len(self)]
        return [name for (start, name), stop in zip(self._files, edges[1:], strict=True) for _ in range(stop - start)]

    def examples(self, rows: Sequence[int] | None = None) -> Iterator[Example]:
        """Yield the examples of these rising rows (default: all), read again from the source.

        Raises:
            DataError: the source has changed since it was read.
        """
        rows = range(len(self)) if rows is None else rows
        wanted = iter(rows)
        row = next(wanted, None)
        for position, (_file, _number, read) in enumerate(self.source.rows()):
            if row is None:
                return
            if position != self.positions[row]:
                continue
            try:
                example = read_row(read(), self.rules)[0]
            except RowError as error:
                raise self._changed() from error
            if example.sample_id != self.ids[row].partition("#")[0]:
                raise self._changed()
            yield dataclasses.replace(example, sample_id=self.ids[row])
            row = next(wanted, None)
        if row is not None:
            raise self._changed()

    def weights_of(self, rows: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k"] | None:
        """Return the weights that an earlier selection gave these rows, 1 where it gave none; None: none has any.

        Raises:
            DataError: the source has changed since it was read.
        """
        if not self.weighted:
            return None
        rising = np.argsort(rows)
        weights = np.full(len(rows), np.nan)
        for place, example in zip(rising.tolist(), self.examples(rows[rising].tolist()), strict=True):
            weights[place] = np.nan if example.weight is None else example.weight
        return known_weights(weights)

    def _changed(self) -> DataError:
        return DataError(f"'{self.source.label}' has changed while it was read. Run the command again.")

    def pool(self) -> Pool:
        """Return all rows as a pool that counts characters, for selectors that need no model."""
        return self.counted(self.prompt_length, self.response_length)

    def counted(
        self,
        prompt: Int[np.ndarray, " n"],
        response: Int[np.ndarray, " n"],
        budget_of: BudgetOf | Literal["rows"] = "tokens",
    ) -> Pool:
        """Return all rows as a pool with these counts; its examples are read where they are looked at."""
        examples = ExamplesOnDisk(self.ids, self.examples, _IN_MEMORY)
        return Pool(examples, (np.zeros(0, dtype=np.int64),) * len(self), prompt, response, budget_of=budget_of)

    def take(self, rows: Int[np.ndarray, " k"]) -> DataRows:
        """Return these rising rows as data rows of the same source."""
        part = object.__new__(DataRows)
        part.__dict__.update(self.__dict__)
        part.shard = None
        part.ids = tuple(self.ids[row] for row in rows.tolist())
        for name in ("positions", "numbers", "prompt_length", "response_length"):
            setattr(part, name, getattr(self, name)[rows])
        part.groups = {name: [values[row] for row in rows.tolist()] for name, values in self.groups.items()}
        part._files = []
        for place, row in enumerate(rows.tolist()):
            file = self.file_of(row)
            if not part._files or part._files[-1][1] != file:
                part._files.append((place, file))
        part.digest = hashlib.sha256("\0".join(part.ids).encode()).hexdigest()[:16]
        return part

    def block(self, start: int, stop: int) -> DataRows:
        """Return neighboring rows as data rows, with the bad rows behind the row before them.

        The first and the last block also have the bad rows before and behind all rows, so blocks share out all of them.
        """
        part = self.take(np.arange(start, stop))
        first = self.positions[start - 1] if start else -1
        last = self.positions[stop - 1] if stop < len(self) else np.inf
        inside = [place for place, position in enumerate(self.bad_positions) if first < position <= last]
        part.bad = [self.bad[place] for place in inside]
        part.bad_positions = [self.bad_positions[place] for place in inside]
        return part


_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`([^`]*)`|[&|]""")
"""Texts, names of columns in backticks, and the signs that pandas reads as ``and`` and ``or``."""
_ACCESSORS = ("str", "dt")
_SHOWN_VALUES, _LONGEST_VALUE = 5, 80
"""Values of a column that an error shows, and their characters."""
_OF_ALL_ROWS = ("cat", "get_dummies")
"""Methods of the accessors that join rows, or look for the values of all."""
_OF_ONE_ROW = (
    "abs", "astype", "between", "eq", "fillna", "ge", "gt", "isin", "isna", "isnull", "le", "lt", "ne", "notna",
    "notnull", "round",
)  # fmt: skip
"""Methods of a column that look at each row alone."""


def known_weights(weights: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"] | None:
    """The weights with 1 where one is missing (NaN); None where all are."""
    missing = np.isnan(weights)
    return None if missing.all() else np.where(missing, 1.0, weights)


class RowCondition:
    """A condition on the columns of a row, written as `pandas.DataFrame.query` takes it.

    It looks at each row alone, so that it can be decided block by block. A column that a row lacks is empty (NaN). An
    empty value behind ``not``, or beside ``and`` and ``or``, is false.

    Raises:
        DataError: it cannot be read, or looks at more than one row.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if "@" in text:
            raise DataError(f"--where is {text!r}; '@' is not allowed. Compare columns with values.")
        quoted: dict[str, str] = {}

        def placeholder(match: re.Match[str]) -> str:
            if match[1] is None:
                return {"&": " and ", "|": " or "}.get(match[0], match[0])
            name = f"quoted_{len(quoted)}_"
            quoted[name] = match[1]
            return name

        plain = _QUOTED.sub(placeholder, re.sub(r"[\r\n]", " ", text.strip()))
        try:
            tree = ast.parse(plain, mode="eval")
        except (SyntaxError, ValueError, RecursionError) as error:
            raise self._undecided(error) from error
        self._check(tree, quoted)
        functions = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node not in functions]
        self._columns = dict.fromkeys(quoted.get(node.id, node.id) for node in names if node.id not in ("inf", "Inf"))
        self._accessors = {
            quoted.get(node.value.id, node.value.id): node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in _ACCESSORS and isinstance(node.value, ast.Name)
        }
        flags = [node for node in _operands(tree) if isinstance(node, ast.Name)]
        self._flags = dict.fromkeys(quoted.get(node.id, node.id) for node in flags)
        source = plain.encode()
        for node in sorted(flags, key=lambda node: -node.col_offset):  # pandas cannot negate an empty value
            start, stop = node.col_offset, node.end_col_offset
            source = source[:start] + f"({node.id} == True)".encode() + source[stop:]
        self._query = _in_backticks(source.decode(), quoted)
        self._numeric = dict.fromkeys(quoted.get(name, name) for name in _compared_with_numbers(tree))
        self._seen: dict[str, None] = {}
        self._values: dict[str, dict[str, None]] = {
            quoted.get(side.id, side.id): {} for side in _compared_with_texts(tree) if isinstance(side, ast.Name)
        }

    def values_seen(self) -> str:
        """Return a sentence for each column that is compared with texts: some of the values that it had."""
        return "".join(
            f" Values of '{name}': {', '.join(map(repr, [*values][:_SHOWN_VALUES]))}"
            f"{', …' if len(values) > _SHOWN_VALUES else '.'}"
            for name, values in self._values.items()
            if values
        )

    def _check(self, tree: ast.AST, quoted: Mapping[str, str]) -> None:
        """Raise DataError for a part that looks at more than one row."""
        for node in ast.walk(tree):
            wrong = False
            if isinstance(node, ast.Attribute):
                of_accessor = isinstance(node.value, ast.Attribute) and node.value.attr in _ACCESSORS
                wrong = node.attr in _OF_ALL_ROWS if of_accessor else node.attr not in (*_ACCESSORS, *_OF_ONE_ROW)
            elif isinstance(node, ast.Subscript):
                wrong = not (isinstance(node.value, ast.Attribute) and node.value.attr == "str")
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
                wrong = node.func.attr == "isin" and not all(map(_is_literal, arguments))
                wrong |= node.func.attr == "fillna" and any(keyword.arg != "value" for keyword in node.keywords)
            elif isinstance(node, ast.Compare):
                sides = zip([node.left, *node.comparators], node.comparators, node.ops, strict=False)
                wrong = any(
                    isinstance(compared, ast.In | ast.NotIn) and not (_is_literal(left) or _is_literal(right))
                    for left, right, compared in sides
                )
            if wrong:
                part = _in_backticks(ast.unparse(node), quoted)
                raise DataError(
                    f"--where is {self.text!r} and looks at more than one row ('{part}'); rows are decided one by one. "
                    f"Compare columns with values, or use .str, .dt, {', '.join(_OF_ONE_ROW)}."
                )

    def holds(self, rows: Sequence[Mapping[str, Any]]) -> Bool[np.ndarray, " n"]:
        """Whether it holds, for each row.

        Raises:
            DataError: it cannot be decided.
        """
        frame = pd.DataFrame(rows, index=range(len(rows)))
        self._seen |= dict.fromkeys(map(str, frame.columns))
        for name, values in self._values.items():
            if name in frame.columns and len(values) <= _SHOWN_VALUES:
                texts = (value for value in frame[name] if isinstance(value, str) and len(value) <= _LONGEST_VALUE)
                values |= dict.fromkeys(texts)
        empty = [name for name in self._columns if name not in frame.columns or frame[name].isna().all()]
        for name in self._numeric:
            cells = [] if name in empty else frame[name].dropna().tolist()
            written = next(filter(_says_a_number, cells), None)
            if written is not None and all(isinstance(cell, str) for cell in cells):
                raise DataError(  # pandas finds no text equal to a number
                    f"--where is {self.text!r}, and the column '{name}' holds texts such as {written!r}, as every cell "
                    f'of a CSV file is one. Write {name}.astype("float").'
                )
        try:
            try:
                answer = self._answer(frame, empty, "object")
            except TypeError:
                if not empty:
                    raise
                answer = self._answer(frame, empty, "float64")  # objects cannot be added to numbers
            flags = [answer, *(frame[name] for name in self._flags if name not in empty)]
            is_condition = all(
                isinstance(flag, pd.Series) and flag.dropna().isin([True, False]).all() for flag in flags
            )
        except Exception as error:
            raise self._undecided(error) from error
        if not is_condition:
            name = next(iter(self._flags or self._columns), "")
            held = [cell for cell in frame.get(name, []) if isinstance(cell, str) and len(cell) <= _LONGEST_VALUE]
            form = f'{name} == "{held[0]}"' if held else 'skill == "math"'
            raise DataError(f"--where is {self.text!r}, which is no condition. Write it like {form}.")
        return answer.fillna(False).to_numpy(dtype=bool)

    def _answer(self, frame: pd.DataFrame, empty: Sequence[str], dtype: str) -> Any:
        """What pandas makes of it, with the empty columns of this type where no accessor needs another."""
        of_accessor = {"str": pd.Series([""]).dtype, "dt": np.dtype("datetime64[ns]")}
        types = {name: of_accessor.get(self._accessors.get(name, ""), np.dtype(dtype)) for name in empty}
        columns = {name: pd.Series(np.nan, frame.index, dtype=kind) for name, kind in types.items()}
        return frame.assign(**columns).eval(self._query, engine="python")

    def check_columns(self) -> None:
        """Raise DataError for a column that no row had."""
        for name in self._columns:
            if name not in self._seen:
                place = " The place of a row is no column." if name == "index" else ""
                raise DataError(f"--where is {self.text!r}: {unknown('column', name, self._seen)}{place}")

    def _undecided(self, error: BaseException) -> DataError:
        return DataError(
            f"--where is {self.text!r} and cannot be decided ({type(error).__name__}: {error}). Write it like "
            'skill == "math" and quality > 0.5.'
        )


def _operands(tree: ast.AST) -> Iterator[ast.AST]:
    """What stands behind ``not``, or beside ``and`` and ``or``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BoolOp):
            yield from node.values
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert):
            yield node.operand


def _compared_with_texts(tree: ast.AST) -> Iterator[ast.AST]:
    """What is compared with a text, or with a list of them, by ``==`` or ``in``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.In):
            sides = (node.left, node.comparators[0])
            for side, other in (sides, sides[::-1]):
                literals = other.elts if isinstance(other, ast.List | ast.Tuple | ast.Set) else [other]
                if any(isinstance(item, ast.Constant) and isinstance(item.value, str) for item in literals):
                    yield side


def _compared_with_numbers(tree: ast.AST) -> Iterator[str]:
    """Names that are compared with a number, or with a list of them."""
    for node in ast.walk(tree):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        for left, right in pairwise(sides):
            for side, other in ((left, right), (right, left)):
                items = other.elts if isinstance(other, ast.List | ast.Tuple | ast.Set) else [other]
                if isinstance(side, ast.Name) and items and all(map(_is_number, items)):
                    yield side.id


def _says_a_number(cell: Any) -> bool:
    try:
        return isinstance(cell, str) and math.isfinite(float(cell))
    except ValueError:
        return False


def _is_number(node: ast.AST) -> bool:
    value = ast.literal_eval(node) if _is_literal(node) else None
    return isinstance(value, int | float) and not isinstance(value, bool)


def _in_backticks(text: str, quoted: Mapping[str, str]) -> str:
    """The text with names of columns in place of their placeholders."""
    return re.sub(r"quoted_\d+_", lambda match: f"`{quoted[match[0]]}`" if match[0] in quoted else match[0], text)


def _is_literal(node: ast.AST) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError):
        return False
    return True


@contextmanager
def without_collector() -> Iterator[None]:
    """Pause Python's collector: it walks over the millions of ids again and again, and there are no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def lengths(example: Example) -> tuple[int, int]:
    """Characters of an example that are not learned, and that are."""
    if example.tokens is not None:
        learned = int(example.tokens[1].sum())
        return len(example.tokens[0]) - learned, learned
    if example.messages is None:
        return len(example.prompt), len(example.response)
    earlier = sum(len(example.messages[place][1]) for place in example.learned)
    return sum(len(text) for _, text in example.messages) - earlier, earlier + len(example.response)


def nothing_learned(max_length: int, length: int) -> str:
    """Why an example of this length (tokens) cannot be used once its end is cut off."""
    return f"its first {max_length} tokens (of {length}) hold nothing that is learned; raise --max-length"


class TokenizedRows:
    """The rows as pools of tokenized examples, shard by shard; what cannot be tokenized is collected.

    Args:
        rows: what is tokenized.
        tokenizer, max_length: of the model.
        too_long: what happens to an example longer than ``max_length``: its end is cut off, as TRL does; it is
            skipped; or it is an error.
        on_bad_row: whether an example that the template refuses, or of which nothing learned is left, is an error.

    Attributes:
        bad: rows that were skipped in the last iteration of `shards`.
        bad_positions: place of each of them among all of the source, rising.
        cut: examples whose end was cut off in the last iteration, of those that are used.
    """

    def __init__(
        self,
        rows: DataRows,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        too_long: TooLong = "truncate",
        on_bad_row: OnBadRow = "error",
    ) -> None:
        if too_long not in ("truncate", "skip", "error"):
            raise DataError(unknown("way of too_long", str(too_long), ("truncate", "skip", "error")))
        self.rows, self.tokenizer, self.max_length = rows, tokenizer, max_length
        self.too_long, self.on_bad_row = too_long, on_bad_row
        self.bad: list[BadRow] = []
        self.bad_positions: list[int] = []
        self.cut = 0

    def shards(self) -> Iterator[Pool]:
        """Yield pools of up to `SHARD_ROWS` examples, in the order of the rows."""
        from longgame.data.tokenize import encode_each, pool_of_encoded, truncated

        self.bad, self.bad_positions, self.cut = [], [], 0
        examples, start = self.rows.examples(), 0
        while batch := list(islice(examples, SHARD_ROWS)):
            usable, encoded = [], []
            for place, (example, item) in enumerate(zip(batch, encode_each(batch, self.tokenizer), strict=True)):
                reason = ""
                if isinstance(item, Exception):
                    reason = str(item)
                elif len(item) > self.max_length:
                    short = truncated(item, self.max_length) if self.too_long == "truncate" else None
                    reason = self._why_not(len(item)) if short is None else ""
                    self.cut += short is not None
                    item = item if short is None else short
                if reason:
                    self._skip(start + place, reason)
                else:
                    usable.append(example)
                    encoded.append(item)
            start += len(batch)
            if usable:
                yield pool_of_encoded(usable, encoded)  # type: ignore[arg-type]

    def _why_not(self, length: int) -> str:
        if self.too_long == "truncate":
            return nothing_learned(self.max_length, length)
        return f"has {length} tokens, more than --max-length {self.max_length}"

    def _skip(self, row: int, reason: str) -> None:
        file, number = self.rows.file_of(row), int(self.rows.numbers[row])
        if self.on_bad_row == "error":
            raise bad_rows(self.rows.source, [(file, number, reason)], _SKIP)
        self.bad.append(BadRow(file, number, visible(reason)))
        self.bad_positions.append(int(self.rows.positions[row]))
