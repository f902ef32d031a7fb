"""What a data set holds, and what a model's tokenizer and chat template make of it; nothing is written."""

from __future__ import annotations

import dataclasses
import html
import itertools
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pyarrow as pa

from longgame.data.examples import Example, Pool
from longgame.data.formats import READ_COLUMNS, RowRules, Turns
from longgame.data.sources import ReadRow, RowSource, open_source
from longgame.errors import DataError, ModelError, RecipeError
from longgame.escape import visible
from longgame.limits import TEMPLATE_SECONDS, time_limit
from longgame.offline.dedup import duplicates
from longgame.offline.options import as_options
from longgame.offline.rows import BadRow, DataRows, TokenizedRows
from longgame.signals.texts import NEAR

if TYPE_CHECKING:
    from longgame.models.load import TokenizerCheck

MOST_COMPARED = 100_000
"""Rows that are compared for near-duplicates: every further one takes memory."""
LOW_SHARE = 0.05
"""Share of learned tokens below which a row is counted as mostly prompt."""
_NO_LIMIT = 2**62
_BINS = 10
_GROUPS = 20
_SHOWN_BAD = 20
_DETAILS = re.compile(r"'[^']*'|\([^)]*\)|\b[0-9a-f]{16}\b|[0-9]+")
"""What differs between reasons of one kind: names, ids, numbers."""


@dataclass(frozen=True)
class Spread:
    """A distribution of one number per row."""

    minimum: float
    quarter: float
    median: float
    three_quarters: float
    p95: float
    maximum: float
    total: float
    edges: tuple[float, ...]
    """Of the histogram; the last bin holds all that is larger, too."""
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: np.ndarray, edges: Sequence[float] | None = None) -> Spread | None:
        """Return the distribution of these values; None where there are none."""
        if not len(values):
            return None
        minimum, quarter, median, three_quarters, p95, p99, maximum = np.percentile(
            values, [0, 25, 50, 75, 95, 99, 100]
        )
        bounds = np.asarray(_round_edges(float(minimum), float(p99)) if edges is None else edges, dtype=float)
        counts = np.histogram(np.clip(values, bounds[0], bounds[-1]), bounds)[0]
        quartiles = (float(minimum), float(quarter), float(median), float(three_quarters), float(p95), float(maximum))
        return cls(*quartiles, float(np.sum(values)), tuple(bounds.tolist()), tuple(counts.tolist()))


def _round_edges(low: float, high: float) -> list[float]:
    """Edges of at most `_BINS` + 1 bins of a round width that cover low to high."""
    width = max(1.0, (high - low) / _BINS)
    scale = 10 ** math.floor(math.log10(width))
    step = next(scale * factor for factor in (1, 2, 5, 10) if scale * factor >= width)
    first = math.floor(low / step) * step
    return [first + step * place for place in range(math.floor((high - first) / step) + 2)]


@dataclass(frozen=True)
class TemplateFacts:
    """What the chat template does beside writing the turns."""

    origin: str
    """``the model's``, ``plain``, or the path of a file."""
    marks_turns: bool
    """Whether it marks what the assistant says with ``{% generation %}``."""
    added_system: str
    """System prompt that it writes where the row has none; empty: none."""
    system: str
    """``written``, ``left out`` or ``refused``: a system prompt of the row's own."""
    writes_bos: bool
    tokenizer_adds_bos: bool
    """Whether the tokenizer puts BOS before a text by itself."""
    writes_date: bool
    opens_thinking: bool
    """Whether it puts a think block before an answer that has none."""
    cuts_thinking: str
    """Turns whose thinking it cuts out: empty, ``earlier turns``, or ``all turns``."""
    trims: bool
    """Whether it cuts white space around a turn."""


@dataclass(frozen=True)
class RenderedExample:
    """One example as the model reads it."""

    file: str
    number: int
    parts: tuple[tuple[str, bool], ...]
    """(text, whether it is learned) in order."""
    tokens: int
    learned: int
    """Both 0 where no model is given."""


@dataclass(frozen=True)
class CheckReport:
    """What `check` measured. Counts are rows, unless they are named otherwise."""

    data: str
    model: str
    """Empty without one."""
    rows: int
    usable: int
    """Rows that can be learned, by this model where one is given."""
    filtered: int
    """Left out by ``where``."""
    bad: tuple[BadRow, ...]
    formats: Mapping[str, int]
    columns: Mapping[str, int]
    """Column → rows in which it is filled."""
    groups: Mapping[str, Mapping[str, int]]
    """``skill`` and ``source``, where rows have them: value → rows."""
    rated: int
    """Rows with ``quality``."""
    unit: str
    """What ``lengths`` counts: ``tokens``, or ``characters`` without a model."""
    lengths: Spread | None
    max_length: int | None
    over_limit: int
    lost: int
    """Rows that learn nothing within ``max_length``."""
    learned: Spread | None
    """Share of a row's tokens that is learned; None without a model."""
    mostly_prompt: int
    all_learned: int
    multi_turn: int
    """Rows in which several turns are learned."""
    exact_duplicates: int
    near_duplicates: int | None
    """Beside the exact ones; None: not counted."""
    compared: int
    """Rows among which near-duplicates were counted."""
    template: TemplateFacts | None
    without_system: int
    """Conversations without a system prompt of their own."""
    with_thinking: int
    """Conversations with a think block."""
    doubled_bos: int
    eos_token: str | None
    pad_token: str | None
    example: RenderedExample | None
    warnings: tuple[str, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; of the bad rows the first 20, and how many there are."""
        values = dataclasses.asdict(self)
        values["bad_rows"] = len(self.bad)
        values["bad"] = values["bad"][:_SHOWN_BAD]
        return values

    def kinds_of_bad(self) -> list[tuple[BadRow, int]]:
        """Return the first bad row of every kind of reason, with how many rows there are of it."""
        kinds: dict[str, list[BadRow]] = {}
        for row in self.bad:
            kinds.setdefault(_DETAILS.sub("", row.reason), []).append(row)
        return [(rows[0], len(rows)) for rows in kinds.values()]

    @property
    def unread_columns(self) -> list[str]:
        """Columns that no format reads; a subset keeps them."""
        return [name for name in self.columns if name not in READ_COLUMNS]

    def facts(self) -> dict[str, str]:
        """Return what was measured as lines of a table: name → value."""
        return _facts(self)

    def _repr_html_(self) -> str:
        return _html(self)


def check(
    data: Any,
    model: str | None = None,
    *,
    turns: Turns = "all",
    quality_range: tuple[float, float] = (0.0, 1.0),
    where: str | None = None,
    max_length: int | None = None,
    chat_template: str | None = None,
    pad_token: str | None = None,
    trust_remote_code: bool = False,
    example: int | None = None,
    near: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read a data set as `score`, `select` and the trainers would, and report what they would meet.

    Args:
        data: what `longgame.data.sources.open_source` takes: a path, a glob, ``hub:owner/name``, a data set.
        model: whose tokenizer and chat template are used; its weights are not loaded. None: lengths are characters.
        turns, quality_range: see `RowRules`.
        where: a condition on the columns; other rows are left out.
        max_length: tokens of an example; None: 2,048, or the model's context where it is shorter.
        chat_template: path of a Jinja template, or ``plain``, in place of the model's own.
        pad_token: in place of the tokenizer's own.
        example: number of the row that is rendered (from 1, bad rows included); None: the first that can be.
        near: whether near-duplicates are counted, where the package rensa is installed.
        progress: called with (rows done, rows) while rows are tokenized.

    Raises:
        DataError: the data cannot be read or holds no rows. ModelError: the tokenizer cannot be loaded.
    """
    start = time.perf_counter()
    if example is not None and example < 1:
        raise RecipeError(f"the example is number {example}; rows are counted from 1.")
    settings = {"max_length": max_length, "chat_template": chat_template, "pad_token": pad_token}
    unused = [name for name, value in settings.items() if value is not None]
    if model is None and unused:
        raise RecipeError(f"{', '.join(unused)}: of the model, and no model is given. Give --model (model=).")
    source = _CountedSource(open_source(data))
    rules = RowRules(turns, quality_range)
    tokenizer, limit = None, None
    if model is not None:
        tokenizer, limit = _check_tokenizer(name=model, trust_remote_code=trust_remote_code, **settings)
    rows = DataRows(source, rules, "skip", where, may_be_empty=True)
    if not rows.total:
        raise DataError(f"'{source.label}' holds no rows. Give data with at least one.")
    measured = _Measured(rows, tokenizer, limit, progress)
    exact = int((duplicates(rows, "exact", NEAR) >= 0).sum())
    similar, compared = _near(rows, exact) if near else (None, 0)
    report = CheckReport(
        data=source.label,
        model=model or "",
        rows=rows.total,
        usable=len(rows) - len(measured.bad),
        filtered=rows.filtered,
        bad=tuple(sorted((*rows.bad, *measured.bad), key=lambda row: (row.file, row.number))),
        formats=dict(rows.formats),
        columns=dict(source.columns.most_common()),
        groups={name: dict(Counter(value or "" for value in values)) for name, values in rows.groups.items()},
        rated=rows.rated,
        unit=measured.unit,
        lengths=Spread.of(measured.lengths),
        max_length=measured.max_length,
        over_limit=measured.over_limit,
        lost=measured.lost,
        learned=Spread.of(measured.shares, np.linspace(0, 1, _BINS + 1).tolist()),
        mostly_prompt=int((measured.shares < LOW_SHARE).sum()),
        all_learned=measured.all_learned,
        multi_turn=measured.multi_turn,
        exact_duplicates=exact,
        near_duplicates=similar,
        compared=compared,
        template=None if tokenizer is None else _template_facts(tokenizer.tokenizer, chat_template),
        without_system=measured.without_system,
        with_thinking=measured.with_thinking,
        doubled_bos=measured.doubled_bos,
        eos_token=None if tokenizer is None else _text(tokenizer.tokenizer.eos_token),
        pad_token=None if tokenizer is None else _text(tokenizer.tokenizer.pad_token),
        example=_rendered(rows, tokenizer, example, measured.bad),
        warnings=(),
        seconds=time.perf_counter() - start,
    )
    faults = () if tokenizer is None else tokenizer.faults
    return dataclasses.replace(report, warnings=tuple(_warnings(report, faults, near)))


def _text(token: Any) -> str | None:
    return None if token is None else str(token)


class _CountedSource(RowSource):
    """The rows of a source; the columns of what is read first are counted."""

    def __init__(self, source: RowSource) -> None:
        self.source, self.label, self.unit = source, source.label, source.unit
        self.columns: Counter[str] = Counter()
        self._read_before = False

    def rows(self) -> Iterator[tuple[str, int, ReadRow]]:
        if self._read_before:
            yield from self.source.rows()
            return
        self._read_before = True
        for file, number, read in self.source.rows():
            yield file, number, lambda read=read: self._counted(read())  # type: ignore[misc]

    def _counted(self, row: Any) -> Any:
        if isinstance(row, Mapping):
            self.columns.update(str(name) for name, value in row.items() if _filled(value))
        return row

    def tables(self) -> Iterator[pa.Table] | None:
        return self.source.tables()


def _filled(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isnan(value)
    return value is not None and not (hasattr(value, "__len__") and len(value) == 0)


def _check_tokenizer(**settings: Any) -> tuple[TokenizerCheck, int]:
    """The tokenizer, and the tokens that an example may have; settings are those of `ModelOptions`."""
    from longgame.models.load import check_tokenizer
    from longgame.offline.scoring import ModelOptions, length_of  # loads torch

    options = ModelOptions(**settings)
    try:
        check = check_tokenizer(options.spec())
    except ModelError as error:
        raise ModelError(as_options(str(error))) from error
    return check, length_of(options, check.config)


class _Measured:
    """Lengths and learned shares of all rows, and what else shows in their tokens."""

    def __init__(
        self,
        rows: DataRows,
        check: TokenizerCheck | None,
        max_length: int | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.bad: list[BadRow] = []
        self.max_length = max_length
        self.over_limit = self.lost = self.all_learned = self.multi_turn = 0
        self.without_system = self.with_thinking = self.doubled_bos = 0
        self.shares = np.zeros(0)
        self.unit = "characters"
        self.lengths = rows.prompt_length + rows.response_length
        if check is None:
            return
        tokenized = TokenizedRows(rows, check.tokenizer, _NO_LIMIT, "truncate", "skip")
        lengths, learned, done = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)], 0
        try:
            for pool in tokenized.shards():
                lengths.append(pool.prompt_tokens + pool.response_tokens)
                learned.append(pool.response_tokens)
                self._look(pool, check.tokenizer.bos_token_id)
                done += len(pool.ids)
                if progress is not None:
                    progress(done, len(rows))
        except ModelError as error:  # no template or no EOS: no row can be tokenized
            self.bad = [
                BadRow(rows.file_of(row), int(rows.numbers[row]), as_options(str(error))) for row in range(len(rows))
            ]
            return
        self.bad = [dataclasses.replace(row, reason=as_options(row.reason)) for row in tokenized.bad]
        self.unit = "tokens"
        self.lengths, counts = np.concatenate(lengths), np.concatenate(learned)
        self.shares = counts / np.maximum(1, self.lengths)
        self.over_limit = int((self.lengths > (self.max_length or _NO_LIMIT)).sum())
        self.all_learned = int((counts >= self.lengths - 1).sum())

    def _look(self, pool: Pool, bos: int | None) -> None:
        limit = self.max_length or _NO_LIMIT
        masks = pool.loss_masks or (None,) * len(pool.ids)
        rows = zip(pool.examples, pool.input_ids, masks, pool.prompt_tokens.tolist(), strict=True)
        for example, ids, mask, prompt in rows:
            self.lost += prompt >= limit if mask is None else not mask[:limit].any()
            self.multi_turn += bool(example.learned) or (example.tokens is not None and mask is not None)
            conversation = example.tokens is None and (example.messages is not None or bool(example.prompt))
            self.without_system += conversation and all(role != "system" for role, _ in example.turns)
            self.with_thinking += conversation and _thinks(example)
            self.doubled_bos += bos is not None and len(ids) > 1 and int(ids[0]) == int(ids[1]) == bos


def _thinks(example: Example) -> bool:
    return any(_THINKING.search(text) for text in (example.response, *(text for _, text in example.turns)))


def _near(rows: DataRows, exact: int) -> tuple[int | None, int]:
    """(near-duplicates beside the exact ones, rows compared); None where rensa is not installed."""
    compared = min(len(rows), MOST_COMPARED)
    part = rows if compared == len(rows) else rows.take(np.arange(compared))
    if compared < len(rows):
        exact = int((duplicates(part, "exact", NEAR) >= 0).sum())
    try:
        return int((duplicates(part, "near", NEAR) >= 0).sum()) - exact, compared
    except RecipeError:
        return None, 0


# The template, asked with marks in place of the turns

_USER, _ANSWER, _USER_2, _ANSWER_2, _SYSTEM, _THOUGHT, _THOUGHT_2 = (chr(0xE000 + place) for place in range(7))
_THINKING = re.compile(r"<(?:think|thinking|reasoning)\b")
_FAULTS = (
    *(jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
)


def _template_facts(tokenizer: Any, setting: str | None) -> TemplateFacts | None:
    template = tokenizer.chat_template
    if not template:
        return None
    source = template if isinstance(template, str) else " ".join(map(str, dict(template).values()))
    short = [("user", _USER), ("assistant", _ANSWER)]
    talk = _render(tokenizer, [*short, ("user", _USER_2), ("assistant", _ANSWER_2)]) or _render(tokenizer, short)
    bos = str(tokenizer.bos_token or "")
    before, between = talk.partition(_USER)[0].removeprefix(bos), _between(talk, _ANSWER, _USER_2)
    added = before.removesuffix(_common_end(before, between)) if between else ""
    with_system = _render(tokenizer, [("system", _SYSTEM), *short])
    thoughts = _render(
        tokenizer,
        [
            ("user", _USER),
            ("assistant", f"<think>\n{_THOUGHT}\n</think>\n\n{_ANSWER}"),
            ("user", _USER_2),
            ("assistant", f"<think>\n{_THOUGHT_2}\n</think>\n\n{_ANSWER_2}"),
        ],
    )
    cut = (bool(thoughts) and _THOUGHT not in thoughts, bool(thoughts) and _THOUGHT_2 not in thoughts)
    spaced = _render(tokenizer, [("user", _USER), ("assistant", f"  {_ANSWER}  ")])
    first = tokenizer("a")["input_ids"][:1]
    return TemplateFacts(
        origin="the model's" if setting is None else setting,
        marks_turns=bool(re.search(r"{%-?\s*generation\b", source)),
        added_system=_without_marks(added, tokenizer),
        system="refused" if not with_system else "written" if _SYSTEM in with_system else "left out",
        writes_bos=bool(bos) and talk.startswith(bos),
        tokenizer_adds_bos=bool(bos) and first == [tokenizer.bos_token_id],
        writes_date="strftime_now" in source,
        opens_thinking=bool(_THINKING.search(_between(talk, _USER_2, _ANSWER_2) or _between(talk, _USER, _ANSWER))),
        cuts_thinking="all turns" if cut[1] else "earlier turns" if cut[0] else "",
        trims=bool(spaced) and f"  {_ANSWER}  " not in spaced,
    )


def _render(tokenizer: Any, turns: Sequence[tuple[str, str]]) -> str:
    """The turns as the template writes them; empty where it refuses them."""
    endless = ModelError(f"the chat template was not rendered within {TEMPLATE_SECONDS:g} seconds. Correct its loops.")
    for blocks in (False, True):  # templates of vision models read blocks only
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if blocks else text} for role, text in turns
        ]
        try:
            with time_limit(TEMPLATE_SECONDS, endless):
                text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        except _FAULTS:
            continue
        if _USER in text:
            return text
    return ""


def _between(text: str, start: str, stop: str) -> str:
    tail = text.partition(start)[2]
    return tail.partition(stop)[0] if stop in tail else ""


def _common_end(text: str, other: str) -> str:
    size = 0
    while size < min(len(text), len(other)) and text[-size - 1] == other[-size - 1]:
        size += 1
    return text[len(text) - size :]


def _without_marks(text: str, tokenizer: Any) -> str:
    """The words of a text, without special tokens and the name of the role before them."""
    tokens = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    for token in sorted(map(str, tokens), key=len, reverse=True):
        text = text.replace(token, "\n")
    return re.sub(r"^system\b:?\s*", "", text.strip())


# The example


def _rendered(
    rows: DataRows, check: TokenizerCheck | None, number: int | None, unusable: Sequence[BadRow]
) -> RenderedExample | None:
    if number is not None and number > rows.total:
        raise RecipeError(f"the example is number {number}, and '{rows.source.label}' has {rows.total:,} rows.")
    bad = {(row.file, row.number): row.reason for row in unusable}
    places = range(len(rows)) if number is None else np.flatnonzero(rows.positions == number - 1).tolist()
    usable = (row for row in places if (rows.file_of(row), int(rows.numbers[row])) not in bad)
    row = next(usable, None)
    if row is None and number is not None:
        raise DataError(f"row {number} of '{rows.source.label}' cannot be rendered: {_why(rows, number, bad)}.")
    if row is None:
        return None
    example = next(rows.examples([row]))
    place = (rows.file_of(row), int(rows.numbers[row]))
    if check is None:
        return RenderedExample(*place, _as_text(example), 0, 0)
    return _tokens_of(example, check.tokenizer, place)


def _why(rows: DataRows, number: int, bad: Mapping[tuple[str, int], str]) -> str:
    reasons = {**bad} | {(row.file, row.number): row.reason for row in rows.bad}
    for position, (file, line, _) in enumerate(rows.source.rows(), start=1):
        if position == number:
            return reasons.get((file, line), "it is left out by the condition").rstrip(".")
    return "it is left out by the condition"


def _as_text(example: Example) -> tuple[tuple[str, bool], ...]:
    if example.tokens is not None:
        return ((f"{len(example.tokens[0])} tokens (give a model to read them)", False),)
    if not example.prompt and example.messages is None:
        return ((example.response, True),)
    parts = [(f"[{role}] {text}\n", place in example.learned) for place, (role, text) in enumerate(example.turns)]
    return (*parts, (f"[assistant] {example.response}", True))


def _tokens_of(example: Example, tokenizer: Any, place: tuple[str, int]) -> RenderedExample:
    from longgame.data.tokenize import encode_all

    encoded = encode_all([example], tokenizer)[0]
    ids, mask = encoded.ids, encoded.loss_mask
    if mask is None:
        mask = np.arange(len(ids)) >= len(encoded.prompt_ids)
    edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(ids)]
    parts = tuple(
        (tokenizer.decode(ids[a:b].tolist(), clean_up_tokenization_spaces=False), bool(mask[a]))
        for a, b in itertools.pairwise(edges)
    )
    return RenderedExample(*place, parts, len(ids), int(mask.sum()))


# What is reported


def _warnings(report: CheckReport, faults: Sequence[ModelError], near: bool) -> Iterator[str]:
    """What needs attention, in one sentence each, with the fix."""
    yield from (as_options(str(fault)) for fault in faults)
    if report.bad:
        yield (
            f"{_rows(len(report.bad))} cannot be used: correct them (--bad-rows FILE lists all), or leave them out "
            "with --on-bad-row skip."
        )
    if report.over_limit and report.max_length is not None:
        lost = f" ({_rows(report.lost)} would learn nothing)" if report.lost else ""
        yield (
            f"{_rows(report.over_limit, 'has', 'have')} more than {report.max_length:,} tokens, of which the first are "
            f"read{lost}: raise --max-length, or shorten the text."
        )
    if report.mostly_prompt:
        yield (
            f"{_rows(report.mostly_prompt, 'learns', 'learn')} less than {100 * LOW_SHARE:g} % of the tokens: shorten "
            "the prompts, or count a budget in learned tokens (--budget-of response)."
        )
    if report.all_learned:
        yield (
            f"{_rows(report.all_learned, 'learns', 'learn')} every token, as plain text does: if only answers are "
            "to be learned, give prompt and completion in columns of their own, or labels of -100."
        )
    if report.exact_duplicates:
        repeats = _rows(report.exact_duplicates, "repeats", "repeat")
        yield f"{repeats} an earlier row: leave repeats out with --dedup exact."
    if report.near_duplicates:
        similar = _rows(report.near_duplicates, "is", "are")
        yield f"{similar} nearly equal to an earlier row: leave repeats out with --dedup near."
    if near and report.near_duplicates is None:
        yield "near-duplicates were not counted, as rensa is not installed: pip install 'longgame[dedup]'."
    if report.template is not None:
        yield from _template_warnings(report, report.template)
    if report.pad_token is not None and report.pad_token == report.eos_token:
        yield (
            f"padding and EOS are one token ({report.pad_token}): longgame masks by length, but a collator that masks "
            "by id would not learn where an answer ends, so set another with --pad-token."
        )


def _template_warnings(report: CheckReport, template: TemplateFacts) -> Iterator[str]:
    if template.added_system and report.without_system:
        yield (
            f"the chat template puts a system prompt of its own before {_rows(report.without_system)} without one "
            f"('{_cut(template.added_system, 80)}'): give the rows a system prompt, or "
            "another --chat-template, if it is not meant."
        )
    if report.doubled_bos:
        doubled = _rows(report.doubled_bos, "begins", "begin")
        yield f"{doubled} with BOS twice: remove it from the rows or from the chat template."
    if template.writes_date:
        yield (
            "the chat template writes the day on which it is rendered: longgame writes 1 January 2026 instead, so that "
            "tokens stay the same; give another --chat-template if the day matters."
        )
    if template.cuts_thinking and report.with_thinking + len(report.bad):
        yield (
            f"the chat template cuts the thinking out of {template.cuts_thinking}: rows that learn such a turn cannot "
            "be used, so give --turns last or another --chat-template."
            if template.cuts_thinking == "earlier turns"
            else "the chat template cuts the thinking out of finished turns: longgame puts an answer behind the "
            "generation prompt as it was given; give another --chat-template to train in the template's form."
        )


def _rows(count: int, singular: str = "", plural: str = "") -> str:
    """``1 row has``, ``2 rows have``."""
    return f"{count:,} " + (f"row {singular}" if count == 1 else f"rows {plural}").rstrip()


def _cut(text: str, size: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= size else text[: size - 1] + "…"


def _facts(report: CheckReport) -> dict[str, str]:
    facts = {
        "data": report.data,
        "rows": f"{report.rows:,}, of which {report.usable:,} can be used",
        "formats": _counts(report.formats) or "none",
        "columns": _counts(report.columns, report.rows - report.filtered),
        "not read": _counts(dict.fromkeys(report.unread_columns, report.rows), report.rows),
    }
    if report.filtered:
        facts["rows"] += f" ({report.filtered:,} are left out by --where)"
    for name, counts in report.groups.items():
        facts[f"{name}s"] = _counts(counts)
    if report.rated:
        facts["quality"] = f"{_rows(report.rated, 'is', 'are')} rated"
    if report.lengths is not None:
        facts[report.unit] = _lengths(report.lengths)
    if report.max_length is not None and report.unit == "tokens":
        facts["over the limit"] = f"{_rows(report.over_limit)} (more than {report.max_length:,} tokens)"
    if report.learned is not None:
        shares = [report.learned.minimum, report.learned.median, report.learned.maximum]
        low, middle, high = (f"{100 * share:.0f} %" for share in shares)
        facts["learned tokens"] = (
            f"{low} to {high} of a row, median {middle}; below {100 * LOW_SHARE:g} % in {_rows(report.mostly_prompt)}, "
            f"all in {report.all_learned:,}, several turns in {report.multi_turn:,}"
        )
    facts["duplicates"] = f"{report.exact_duplicates:,} exact"
    if report.near_duplicates is not None:
        among = f" among the first {report.compared:,} rows" if report.compared < report.usable else ""
        facts["duplicates"] += f", {report.near_duplicates:,} near{among}"
    if report.model:
        facts["model"] = report.model
        facts["chat template"] = "none" if report.template is None else _template_words(report.template)
        facts["padding"] = f"{report.pad_token or 'none'}; EOS is {report.eos_token or 'none'}"
    return {name: value for name, value in facts.items() if value}


def _counts(counts: Mapping[str, int], total: int | None = None) -> str:
    """Names with their counts, the largest first; without the count where it is the total."""
    pairs = sorted(counts.items(), key=lambda pair: -pair[1])
    parts = [(name or "(none)") + ("" if count == total else f" {count:,}") for name, count in pairs[:_GROUPS]]
    return ", ".join([*parts, *([f"{len(pairs) - _GROUPS:,} others"] if len(pairs) > _GROUPS else [])])


def _lengths(spread: Spread) -> str:
    quartiles = f"{spread.quarter:,.0f} / {spread.median:,.0f} / {spread.three_quarters:,.0f}"
    ends = f"from {spread.minimum:,.0f} to {spread.maximum:,.0f} a row"
    return f"{spread.total:,.0f}; {ends}, quartiles {quartiles}, 95 % have up to {spread.p95:,.0f}"


def _template_words(template: TemplateFacts) -> str:
    bos = {
        (True, True): "writes BOS (so does the tokenizer, which is not asked to)",
        (True, False): "writes BOS",
        (False, True): "writes no BOS, though the tokenizer puts one before plain text",
        (False, False): "no BOS",
    }[template.writes_bos, template.tokenizer_adds_bos]
    words = [
        template.origin,
        "with generation marks" if template.marks_turns else "without generation marks",
        f"system prompts {template.system}",
        *(["adds a system prompt"] if template.added_system else []),
        bos,
        *(["writes today's date"] if template.writes_date else []),
        *(["opens answers with a think block"] if template.opens_thinking else []),
        *([f"cuts thinking out of {template.cuts_thinking}"] if template.cuts_thinking else []),
        *(["trims white space of turns"] if template.trims else []),
    ]
    return ", ".join(words)


def _html(report: CheckReport) -> str:
    def text(value: str) -> str:
        return html.escape(visible(value))

    lines = [f"<tr><th>{text(name)}</th><td>{text(value)}</td></tr>" for name, value in report.facts().items()]
    notes = [f"<li>{text(warning)}</li>" for warning in report.warnings]
    shown = ""
    if report.example is not None:
        parts = [
            f"<mark>{text(cut_middle(part))}</mark>" if learned else text(cut_middle(part))
            for part, learned in report.example.parts
        ]
        shown = (
            f"<p>Row {report.example.number} of {text(report.example.file)}; what is learned is marked:</p>"
            f'<pre style="white-space: pre-wrap">{"".join(parts)}</pre>'
        )
    notes_list = f"<ul>{''.join(notes)}</ul>" if notes else ""
    return f'<table style="text-align: left">{"".join(lines)}</table>{notes_list}{shown}'


def cut_middle(text: str, size: int = 2000) -> str:
    """The text, its middle left out where it is long."""
    if len(text) <= size:
        return text
    half = size // 2
    return f"{text[:half]} […{len(text) - 2 * half:,} characters…] {text[-half:]}"
