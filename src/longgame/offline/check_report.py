"""What `check` tells about a data set, as values, as text and as HTML."""

from __future__ import annotations

import dataclasses
import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longgame.data.formats import READ_COLUMNS
from longgame.escape import visible
from longgame.offline.rows import BadRow

LOW_SHARE = 0.05
"""Share of learned tokens below which a row is counted as mostly prompt."""
BINS = 10
_GROUPS = 20
_SHOWN_BAD = 20
_DETAILS = re.compile(r"'[^']*'|\((?:[^()]|\([^()]*\))*\)|\b[0-9a-f]{16}\b|[0-9]+")
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
    """Edges of at most `BINS` + 1 bins of a round width that cover low to high."""
    width = max(1.0, (high - low) / BINS)
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
    """Rows that can be learned, by this model and within ``max_length`` where they are given."""
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
    """Rows that learn nothing within ``max_length``; they are among the bad ones."""
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


def row_count(count: int, singular: str = "", plural: str = "") -> str:
    """``1 row has``, ``2 rows have``."""
    return f"{count:,} " + (f"row {singular}" if count == 1 else f"rows {plural}").rstrip()


def cut_end(text: str, size: int) -> str:
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
        facts["quality"] = f"{row_count(report.rated, 'is', 'are')} rated"
    if report.lengths is not None:
        facts[report.unit] = _lengths(report.lengths)
    if report.max_length is not None and report.unit == "tokens":
        facts["over the limit"] = f"{row_count(report.over_limit)} (more than {report.max_length:,} tokens)"
    if report.learned is not None:
        shares = [report.learned.minimum, report.learned.median, report.learned.maximum]
        low, middle, high = (f"{100 * share:.0f} %" for share in shares)
        facts["learned tokens"] = (
            f"{low} to {high} of a row, median {middle}; below {100 * LOW_SHARE:g} % in "
            f"{row_count(report.mostly_prompt)}, all in {report.all_learned:,}, several turns in {report.multi_turn:,}"
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
