"""What a data set holds, and what a model's tokenizer and chat template make of it; nothing is written."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pyarrow as pa

from longgame.data.examples import Example, Pool
from longgame.data.files import ReadRow
from longgame.data.formats import RowRules, Turns
from longgame.data.sources import RowSource, open_source
from longgame.errors import DataError, ModelError, RecipeError
from longgame.limits import TEMPLATE_SECONDS, time_limit
from longgame.offline.check_report import (
    BINS,
    LOW_SHARE,
    CheckReport,
    RenderedExample,
    Spread,
    TemplateFacts,
    cut_end,
    row_count,
)
from longgame.offline.dedup import duplicates
from longgame.offline.options import as_options
from longgame.offline.rows import BadRow, DataRows, TokenizedRows, nothing_learned
from longgame.signals.texts import NEAR

if TYPE_CHECKING:
    from longgame.models.load import TokenizerCheck

MOST_COMPARED = 100_000
"""Rows that are compared for near-duplicates: every further one takes memory."""
_NO_LIMIT = 2**62


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
    unusable = (*measured.bad, *measured.lost)
    exact = int((duplicates(rows, "exact", NEAR) >= 0).sum())
    similar, compared = _near(rows, exact) if near else (None, 0)
    report = CheckReport(
        data=source.label,
        model=model or "",
        rows=rows.total,
        usable=len(rows) - len(unusable),
        filtered=rows.filtered,
        bad=tuple(sorted((*rows.bad, *unusable), key=lambda row: (row.file, row.number))),
        formats=dict(rows.formats),
        columns=dict(source.columns.most_common()),
        groups={name: dict(Counter(value or "" for value in values)) for name, values in rows.groups.items()},
        rated=rows.rated,
        unit=measured.unit,
        lengths=Spread.of(measured.lengths),
        max_length=measured.max_length,
        over_limit=measured.over_limit,
        lost=len(measured.lost),
        learned=Spread.of(measured.shares, np.linspace(0, 1, BINS + 1).tolist()),
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
    from longgame.offline.scorer import ModelOptions, length_of  # loads torch

    options = ModelOptions(**settings)
    try:
        check = check_tokenizer(options.spec())
    except ModelError as error:
        raise ModelError(as_options(str(error))) from error
    return check, length_of(options, check.config)


class _Measured:
    """Lengths and learned shares of all rows, and what else shows in their tokens.

    Attributes:
        bad: rows that cannot be tokenized.
        lost: rows of which nothing learned is left within ``max_length``.
    """

    def __init__(
        self,
        rows: DataRows,
        check: TokenizerCheck | None,
        max_length: int | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.bad: list[BadRow] = []
        self.lost: list[BadRow] = []
        self._lost_tokens: dict[str, int] = {}
        self.max_length = max_length
        self.over_limit = self.all_learned = self.multi_turn = 0
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
        if self._lost_tokens and max_length is not None:
            self.lost = [
                BadRow(rows.file_of(row), int(rows.numbers[row]), nothing_learned(max_length, self._lost_tokens[name]))
                for row, name in enumerate(rows.ids)
                if name in self._lost_tokens
            ]
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
            # as `truncated` decides; the first token is never learned
            if len(ids) > limit and (max(prompt, 1) >= limit if mask is None else not mask[1:limit].any()):
                self._lost_tokens[example.sample_id] = len(ids)
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


def _warnings(report: CheckReport, faults: Sequence[ModelError], near: bool) -> Iterator[str]:
    """What needs attention, in one sentence each, with the fix."""
    yield from (as_options(str(fault)) for fault in faults)
    if report.bad:
        yield (
            f"{row_count(len(report.bad))} cannot be used: correct them (--bad-rows FILE lists all), or leave them out "
            "with --on-bad-row skip."
        )
    if report.over_limit and report.max_length is not None:
        lost = f"; {row_count(report.lost)} would learn nothing and cannot be used" if report.lost else ""
        yield (
            f"{row_count(report.over_limit, 'has', 'have')} more than {report.max_length:,} tokens, of which the first "
            f"are read{lost}: raise --max-length, or shorten the text."
        )
    if report.mostly_prompt:
        yield (
            f"{row_count(report.mostly_prompt, 'learns', 'learn')} less than {100 * LOW_SHARE:g} % of the tokens: "
            "shorten the prompts, or count a budget in learned tokens (--budget-of response)."
        )
    if report.all_learned:
        yield (
            f"{row_count(report.all_learned, 'learns', 'learn')} every token, as plain text does: if only answers are "
            "to be learned, give prompt and completion in columns of their own, or labels of -100."
        )
    if report.exact_duplicates:
        repeats = row_count(report.exact_duplicates, "repeats", "repeat")
        yield f"{repeats} an earlier row: leave repeats out with --dedup exact."
    if report.near_duplicates:
        similar = row_count(report.near_duplicates, "is", "are")
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
            f"the chat template puts a system prompt of its own before {row_count(report.without_system)} without one "
            f"('{cut_end(template.added_system, 80)}'): give the rows a system prompt, or "
            "another --chat-template, if it is not meant."
        )
    if report.doubled_bos:
        doubled = row_count(report.doubled_bos, "begins", "begin")
        yield f"{doubled} with BOS twice: remove it from the rows or from the chat template."
    if template.writes_date:
        yield (
            "the chat template writes the day on which it is rendered: longgame writes 1 January 2026 instead, so that "
            "tokens stay the same; give another --chat-template if the day matters."
        )
    if template.cuts_thinking and report.with_thinking + len(report.bad) - report.lost:
        yield (
            f"the chat template cuts the thinking out of {template.cuts_thinking}: rows that learn such a turn cannot "
            "be used, so give --turns last or another --chat-template."
            if template.cuts_thinking == "earlier turns"
            else "the chat template cuts the thinking out of finished turns: longgame puts an answer behind the "
            "generation prompt as it was given; give another --chat-template to train in the template's form."
        )
