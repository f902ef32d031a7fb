"""LLM judges behind an OpenAI-compatible endpoint: rubrics, several judges and phrasings, and their agreement.

Paper: AlpaGasus (Chen et al. 2024, arXiv 2307.08701) and DEITA (Liu et al. 2024, arXiv 2312.15685) for the rubrics.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import threading
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Float

from longgame.data.examples import Example
from longgame.errors import ModelError, RecipeError
from longgame.escape import visible
from longgame.limits import TEMPLATE_SECONDS, located, time_limit
from longgame.signals.quality.base import QualitySource, request_text
from longgame.signals.quality.endpoint import (
    ChatEndpoint,
    ExhaustedRequestError,
    RejectedRequestError,
    Reply,
    ReplyStore,
    StoppedError,
)
from longgame.signals.quality.judge_options import JudgeOptions, judges_of, phrasings_of
from longgame.signals.quality.rules import refusal
from longgame.storage import cache_dir

_CHUNK = 256
"""Examples that are asked about together; what is missing is counted in between."""
_CHARACTERS = 4
"""Characters of a token, for estimates."""
_EXAMPLES = 3
"""Missing grades that are shown."""
_LONGEST_REPLY = 20_000
"""Characters of a reply in which a grade is looked for."""
_FEW = 3
"""Missing grades that never stop a job."""


@dataclass(frozen=True, slots=True)
class _Rater:
    """One judge with one phrasing."""

    judge: int
    phrasing: int
    view: int


@dataclass(slots=True)
class _Counts:
    """What happened so far."""

    examples: int = 0
    missing: int = 0
    partial: int = 0
    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    """New replies without token counts."""
    plain: int = 0
    """Replies without a JSON object, though a schema was accepted."""
    self_graded: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)


class Agreement:
    """Agreement of several raters of the same examples, added up block by block.

    Krippendorff's alpha for interval data (Krippendorff 2011): α = 1 − D_o / D_e. With m_u ≥ 2 grades of example u and
    N grades of such examples, D_o = (1/N) Σ_u Σ_{i≠j} (v_ui − v_uj)² / (m_u − 1) and
    D_e = Σ_{i≠j} (v_i − v_j)² / (N (N − 1)) over all N grades. 1: raters agree; 0: as if grades were dealt at random.
    The mean absolute difference is that of two raters of one example, in points of the scale. The offset of a rater is
    its mean difference from the example's mean grade: what its position, phrasing or severity adds.
    """

    def __init__(self, raters: int) -> None:
        self.offsets = np.zeros((2, raters))
        """Sum of differences, and their number, by rater."""
        self._sums = np.zeros(4)
        self._differences = np.zeros(2)

    def add(self, grades: Float[np.ndarray, "raters n"]) -> None:
        """Take note of a block of grades; NaN: missing."""
        graded = ~np.isnan(grades)
        shared = grades[:, graded.sum(axis=0) >= 2].astype(np.float64)
        graded = ~np.isnan(shared)
        counts = graded.sum(axis=0)
        total, squares = np.nansum(shared, axis=0), np.nansum(shared**2, axis=0)
        within = 2 * (counts * squares - total**2) / np.maximum(counts - 1, 1)
        self._sums += [counts.sum(), total.sum(), squares.sum(), within.sum()]
        apart = shared - total / np.maximum(counts, 1)
        self.offsets += [np.nansum(apart, axis=1), graded.sum(axis=1)]
        for first, second in itertools.combinations(range(len(grades)), 2):
            gaps = np.abs(shared[first] - shared[second])
            self._differences += [np.nansum(gaps), (~np.isnan(gaps)).sum()]

    @property
    def alpha(self) -> float:
        """Krippendorff's alpha; NaN without two raters of an example, or where all grades are equal."""
        n, total, squares, within = self._sums
        expected = 2 * (n * squares - total**2) / (n * (n - 1)) if n > 1 else 0.0
        return 1.0 - (within / n) / expected if expected > 1e-12 else math.nan

    @property
    def mean_difference(self) -> float:
        """Mean absolute difference of two raters of one example; NaN without any."""
        total, pairs = self._differences
        return float(total / pairs) if pairs else math.nan


class JudgeQuality(QualitySource):
    """Grades by one or several LLM judges, asked in one or several phrasings, averaged.

    The mean of an example is over the raters (judge × phrasing) that graded it. A refused or unreadable reply gives no
    grade; an example without any grade is missing (NaN), and more missing ones than ``max_missing`` stop the job.

    Args:
        file: YAML file with fields of `JudgeOptions`; those given beside it count more.
        options: fields of `JudgeOptions`.
    """

    name = "judge"
    main = "file"

    def __init__(self, file: str | None = None, **options: Any) -> None:
        self.options = settings = JudgeOptions.of(file, options)
        self._prices = (settings.price_in, settings.price_out)
        self._cache = (
            cache_dir() / "judge" / "replies.sqlite"
            if settings.cache is None
            else Path(located(settings.cache)).expanduser()
        )
        self._judges = judges_of(settings)
        self._phrasings, self.scale = phrasings_of(settings)
        self._labels = [phrasing.label for phrasing in self._phrasings]
        self._raters = [
            _Rater(judge, phrasing, view)
            for judge in range(len(self._judges))
            for phrasing in range(len(self._phrasings))
            for view in range(settings.views)
        ]
        self._schema: dict[int, bool] = {}
        """Judge → whether its server takes a JSON schema, once that is clear."""
        if settings.structured != "auto":
            self._schema = dict.fromkeys(range(len(self._judges)), settings.structured == "always")
        self._probe = threading.Lock()
        self._liveness = threading.Lock()
        self._counts, self._agreement = _Counts(), Agreement(len(self._raters))

    def identity(self) -> str:
        settings = self.options
        free = {"key_env", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout", "attempts", "backoff"}
        free |= {"max_missing", "writer", "price_in", "price_out", "cost_limit", "cache", "model", "url", "rubric"}
        values = {item.name: getattr(settings, item.name) for item in fields(settings) if item.name not in free}
        content = [[judge.identity for judge in self._judges], [phrasing.text for phrasing in self._phrasings], values]
        digest = blake2b(json.dumps(content, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
        return f"{self.name} {', '.join(self._labels)} by {', '.join(judge.label for judge in self._judges)} ({digest})"

    def begin(self, examples: Sequence[Example], columns: Collection[str]) -> None:  # noqa: ARG002
        """Raise RecipeError where the whole job may cost more than ``cost_limit``."""
        if self.options.cost_limit is not None:
            with ReplyStore(self._cache) as store:
                self._check_cost(examples, store)

    def grade(self, examples: Sequence[Example]) -> Float[np.ndarray, " n"]:
        """Return the mean grade of each example over the raters; NaN: missing.

        Raises:
            ModelError: the server does not answer, refuses access, or too many examples have no grade.
            StorageError: replies cannot be stored.
        """
        grades = np.full(len(examples), np.nan)
        with ReplyStore(self._cache) as store:
            self._check_cost(examples, store)
            for start in range(0, len(examples), _CHUNK):
                part = examples[start : start + _CHUNK]
                grades[start : start + len(part)] = self._grade(part, store)
        return grades

    def _grade(self, examples: Sequence[Example], store: ReplyStore) -> Float[np.ndarray, " n"]:
        requests = [[self._request(rater, example) for example in examples] for rater in self._raters]
        pairs = {
            digest: (rater, body) for rater, row in zip(self._raters, requests, strict=True) for digest, body in row
        }
        replies: dict[str, Reply | str] = dict(store.get(pairs))
        cached = set(replies)
        asked = {digest: pair for digest, pair in pairs.items() if digest not in replies}
        try:
            with closing(self._ask(asked, store)) as answers:
                for digest, reply in answers:
                    replies[digest] = reply
                    if isinstance(reply, str) and reply.startswith("failed"):  # slowly: each attempt may wait
                        self._check_unanswered(requests, replies)
        finally:
            self._account(pairs, replies, cached)
        matrix = np.full((len(self._raters), len(examples)), np.nan)
        for place, row in enumerate(requests):
            for column, (digest, _) in enumerate(row):
                value, reason = self._read(replies[digest])
                matrix[place, column] = math.nan if value is None else value
                if value is None:
                    self._note_missing(self._raters[place], examples[column], reason, replies[digest])
        self._agreement.add(matrix)
        graded = (~np.isnan(matrix)).sum(axis=0)
        counts = self._counts
        counts.examples += len(examples)
        counts.missing += int((graded == 0).sum())
        counts.partial += int(((graded > 0) & (graded < len(matrix))).sum())
        counts.self_graded += sum(self._is_writer(example) for example in examples)
        self._check_missing()
        return np.where(graded > 0, np.nansum(matrix, axis=0) / np.maximum(graded, 1), np.nan)

    def _request(self, rater: _Rater, example: Example) -> tuple[str, dict[str, Any]]:
        """The digest and the body of a request; the digest leaves out how the server is held to JSON."""
        low, high = (int(end) if end == int(end) else end for end in self.scale or (0, 1))
        reason = '"reason": "…", ' if self.options.reasons else ""
        form = (
            f'Answer with one JSON object and nothing else: {{{reason}"grade": G}}, where G is a number from {low} to '
            f"{high}."
        )
        late = RecipeError(f"judge: the rubric did not render within {TEMPLATE_SECONDS:g} seconds. Simplify it.")
        try:
            with time_limit(TEMPLATE_SECONDS, late):
                text = self._phrasings[rater.phrasing].template.render(
                    instruction=request_text(example), response=example.response, view=rater.view, low=low, high=high,
                    form=form,
                )  # fmt: skip
        except jinja2.TemplateError as error:
            raise RecipeError(
                f"judge: the rubric cannot be rendered ({error}). It gets instruction, response, view, low, high, form."
            ) from error
        judge = self._judges[rater.judge]
        body = {
            "model": judge.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": self.options.temperature,
            "max_tokens": self.options.max_tokens,
            **self.options.extra,
        }
        body = {name: value for name, value in body.items() if value is not None}
        asked = {name: value for name, value in body.items() if name != "model" or not judge.named}
        content = json.dumps([judge.identity, asked, self.options.reasons, self.options.structured], sort_keys=True)
        return blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest(), body

    def _ask(
        self, pairs: Mapping[str, tuple[_Rater, dict[str, Any]]], store: ReplyStore
    ) -> Generator[tuple[str, Reply | str], None, None]:
        """Ask for these replies, and yield them as they come; one that cannot be had is the text of its fault."""
        if not pairs:
            return
        stop = threading.Event()
        down: list[ModelError] = []

        def check_alive(endpoint: ChatEndpoint, body: Mapping[str, Any], error: ExhaustedRequestError) -> None:
            """Raise ModelError where no request is answered, not even a short one."""
            with self._liveness:
                if not down and endpoint.last_success < error.since and not endpoint.is_alive(body, stop):
                    down.append(endpoint.down(str(error)))
            if down:
                raise down[0]

        def ask(digest: str) -> Reply | str:
            rater, body = pairs[digest]
            endpoint = self._judges[rater.judge].endpoint
            try:
                reply = self._reply(rater.judge, body, stop)
            except RejectedRequestError as error:
                return f"rejected by the server with {error}"
            except ExhaustedRequestError as error:
                check_alive(endpoint, body, error)
                return f"failed with {error}"
            store.put(digest, reply)
            return reply

        with ThreadPoolExecutor(self.options.concurrency) as pool:
            futures = {pool.submit(ask, digest): digest for digest in pairs}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                stop.set()
                for future in futures:
                    future.cancel()

    def _reply(self, place: int, body: dict[str, Any], stop: threading.Event) -> Reply:
        """One reply; the first request finds out whether the server takes a JSON schema."""
        if place in self._schema:
            return self._complete(place, body, self._schema[place], stop)
        with self._probe:
            if place in self._schema:
                return self._complete(place, body, self._schema[place], stop)
            try:
                reply = self._complete(place, body, True, stop)
                self._schema[place] = True
            except RejectedRequestError:
                reply = self._complete(place, body, False, stop)
                self._schema[place] = False
            except ExhaustedRequestError as error:
                if not str(error).startswith("status 5"):
                    raise
                reply = self._complete(place, body, False, stop)  # some servers fail on a field that they do not know
                self._schema[place] = False
            return reply

    def _complete(self, place: int, body: dict[str, Any], structured: bool, stop: threading.Event) -> Reply:
        judge = self._judges[place]
        if stop.is_set():
            raise StoppedError
        expected = len(body["messages"][0]["content"]) // _CHARACTERS + 16
        request = {**body, "response_format": self._format()} if structured else body
        reply = Reply.of(judge.endpoint.complete(request, expected, stop), structured)
        if spent := reply.prompt_tokens + reply.completion_tokens:
            judge.endpoint.pace.settle(expected, spent)
        return reply

    def _format(self) -> dict[str, Any]:
        properties: dict[str, Any] = {"reason": {"type": "string"}} if self.options.reasons else {}
        properties["grade"] = {"type": "number"}
        schema = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        return {"type": "json_schema", "json_schema": {"name": "grade", "strict": True, "schema": schema}}

    def _read(self, reply: Reply | str) -> tuple[float | None, str]:
        """The grade in a reply, or None and why there is none."""
        if isinstance(reply, str):
            return None, reply.partition(" ")[0]
        if reply.refusal:
            return None, "refused"
        low, high = self.scale or (0.0, 1.0)
        grade = read_grade(reply.text, high)
        if grade is not None and low <= grade <= high:
            return grade, ""
        if grade is not None:
            return None, "outside the scale"
        if not reply.text.strip():
            return None, "empty"
        if reply.finish == "length":
            return None, "cut off"
        return None, "unreadable" if refusal("", reply.text) else "refused"

    def _note_missing(self, rater: _Rater, example: Example, reason: str, reply: Reply | str) -> None:
        counts, judge = self._counts, self._judges[rater.judge]
        counts.reasons[reason] += 1
        if len(counts.first) < _EXAMPLES:
            text = reply if isinstance(reply, str) else reply.refusal or reply.text
            shown = visible(judge.endpoint.redacted(" ".join(text.split())))[:100]
            counts.first.append(f"{example.sample_id}, {judge.label}: {reason}: {shown!r}")

    def _account(
        self, pairs: Mapping[str, tuple[_Rater, dict[str, Any]]], replies: Mapping[str, Reply | str], cached: set[str]
    ) -> None:
        counts = self._counts
        for digest, reply in replies.items():
            if isinstance(reply, str):
                continue
            counts.plain += reply.structured and not reply.text.lstrip().startswith("{")
            if digest in cached:
                counts.cached += 1
                continue
            counts.calls += 1
            counts.uncounted += not reply.prompt_tokens
            prompt, completion = _spent(reply, pairs[digest][1])
            counts.prompt_tokens += prompt
            counts.completion_tokens += completion

    def _check_unanswered(
        self, requests: Sequence[Sequence[tuple[str, dict[str, Any]]]], replies: Mapping[str, Reply | str]
    ) -> None:
        """Stop before the end of a chunk that already lacks more examples than may be missing at its end."""
        of_examples = [[replies.get(digest) for digest, _ in row] for row in zip(*requests, strict=True)]
        lost = [row for row in of_examples if all(isinstance(reply, str) for reply in row)]
        if self._are_too_many(self._counts.missing + len(lost), self._counts.examples + len(of_examples)):
            raise ModelError(
                f"the judge answers other requests, but {len(lost)} of {len(of_examples)} examples got no reply; "
                f"max_missing is {self.options.max_missing:g}. The last of them {lost[-1][-1]}. Raise timeout or "
                "max_missing, or take another judge. Replies so far are stored."
            )

    def _are_too_many(self, missing: int, examples: int) -> bool:
        return missing > max(self.options.max_missing * examples, _FEW - 1)

    def _check_missing(self) -> None:
        counts = self._counts
        if self._are_too_many(counts.missing, counts.examples):
            raise ModelError(
                f"the judge gives no grade for {counts.missing} of {counts.examples} examples ({self._why_missing()}); "
                f"max_missing is {self.options.max_missing:g}. First: {'; '.join(counts.first)}. Mend the rubric, take "
                "another judge, or raise max_missing. Replies so far are stored."
            )

    def _why_missing(self) -> str:
        return ", ".join(f"{count:,} {reason}" for reason, count in self._counts.reasons.most_common())

    def _is_writer(self, example: Example) -> bool:
        writer = _short(self.options.writer or example.source or "")
        return bool(writer) and any(writer == _short(judge.model) for judge in self._judges)

    def _price(self, prompt: float, completion: float) -> float | None:
        if self._prices[0] is None or self._prices[1] is None:
            return None
        return (prompt * self._prices[0] + completion * self._prices[1]) / 1e6

    def _expected(self, examples: Sequence[Example], store: ReplyStore) -> tuple[int, int, int]:
        """Calls that are to be made, replies that are there, and characters of the prompts."""
        calls = cached = characters = 0
        digests: set[str] = set()
        for start in range(0, len(examples), _CHUNK):
            part = examples[start : start + _CHUNK]
            pairs = dict(self._request(rater, example) for rater in self._raters for example in part)
            fresh = {digest: body for digest, body in pairs.items() if digest not in digests}
            digests |= set(fresh)
            stored = store.get(fresh)
            cached += len(stored)
            calls += len(fresh) - len(stored)
            characters += sum(
                len(body["messages"][0]["content"]) for digest, body in fresh.items() if digest not in stored
            )
        return calls, cached, characters

    def tokens(self, examples: Sequence[Example]) -> int:
        total = 0
        with ReplyStore(self._cache) as store:
            for start in range(0, len(examples), _CHUNK):
                part = examples[start : start + _CHUNK]
                pairs = dict(self._request(rater, example) for rater in self._raters for example in part)
                total += sum(sum(_spent(reply, pairs[digest])) for digest, reply in store.get(pairs).items())
        return total

    def estimate(self, examples: Sequence[Example]) -> str:
        with ReplyStore(self._cache) as store:
            calls, cached, characters = self._expected(examples, store)
        prompt, completion = characters // _CHARACTERS, calls * self.options.max_tokens
        price = self._price(prompt, completion)
        return (
            f"{calls:,} calls ({cached:,} replies are stored), about {prompt:,} tokens of prompts and at most "
            f"{completion:,} of replies" + ("" if price is None else f", at most {price:.4g} at these prices")
        )

    def _check_cost(self, examples: Sequence[Example], store: ReplyStore) -> None:
        if self.options.cost_limit is None:
            return
        calls, _, characters = self._expected(examples, store)
        price = self._price(characters / _CHARACTERS, calls * self.options.max_tokens) or 0.0
        spent = self._price(self._counts.prompt_tokens, self._counts.completion_tokens) or 0.0
        if price + spent > self.options.cost_limit:
            raise RecipeError(
                f"the judge would cost at most {price:.4g} for {calls:,} calls, beside {spent:.4g} spent; cost_limit "
                f"is {self.options.cost_limit:g}. Raise it, lower max_tokens or views, or grade fewer rows (--where)."
            )

    def describe(self) -> dict[str, Any]:
        counts, agreement = self._counts, self._agreement
        offsets = agreement.offsets[0] / np.maximum(agreement.offsets[1], 1)
        labels = [self._label(rater) for rater in self._raters]
        price = self._price(counts.prompt_tokens, counts.completion_tokens)
        return {
            "source": self.name,
            "judges": [{"model": judge.model, "url": judge.endpoint.url} for judge in self._judges],
            "rubric": self._labels,
            "scale": self.scale,
            "examples": counts.examples,
            "missing": counts.missing,
            "partly_graded": counts.partial,
            "missing_replies": dict(counts.reasons),
            "first_missing": counts.first,
            "structured": {judge.label: self._schema.get(place) for place, judge in enumerate(self._judges)},
            "calls": counts.calls,
            "cached": counts.cached,
            "retries": sum({id(judge.endpoint): judge.endpoint.retries for judge in self._judges}.values()),
            "prompt_tokens": counts.prompt_tokens,
            "completion_tokens": counts.completion_tokens,
            "replies_without_counts": counts.uncounted,
            "cost": price,
            "alpha": _plain(agreement.alpha),
            "mean_difference": _plain(agreement.mean_difference),
            "offsets": {label: _plain(value) for label, value in zip(labels, offsets.tolist(), strict=True)},
            "graded_by_writer": counts.self_graded,
        }

    def _label(self, rater: _Rater) -> str:
        phrasing = f", {self._labels[rater.phrasing]}" if len(self._labels) > 1 else ""
        return f"{self._judges[rater.judge].label}{phrasing}, view {rater.view + 1}"

    def notes(self) -> list[str]:
        counts, agreement = self._counts, self._agreement
        tokens = f"{counts.prompt_tokens:,} tokens of prompts and {counts.completion_tokens:,} of replies"
        price = self._price(counts.prompt_tokens, counts.completion_tokens)
        lines = [
            f"{counts.calls:,} calls ({counts.cached:,} replies were stored), {tokens}"
            + (f" (of {counts.uncounted:,} replies by their length)" if counts.uncounted else "")
            + ("" if price is None else f", {price:.4g} at these prices")
        ]
        if counts.missing or counts.partial:
            lines.append(
                f"no grade for {counts.missing:,} of {counts.examples:,} examples, and not by every rater for "
                f"{counts.partial:,}: {self._why_missing()}. First: {'; '.join(counts.first)}"
            )
        if not math.isnan(agreement.alpha):
            lines.append(
                f"agreement of {len(self._raters)} raters: Krippendorff's alpha {agreement.alpha:.2f}, mean absolute "
                f"difference {agreement.mean_difference:.2g} points"
            )
        plain = [judge.label for place, judge in enumerate(self._judges) if self._schema.get(place) is False]
        if plain and self.options.structured == "auto":
            lines.append(f"{', '.join(plain)} takes no JSON schema; grades were read from plain text")
        if counts.plain:
            lines.append(f"{counts.plain:,} replies are no JSON though the server took a schema")
        if counts.self_graded:
            lines.append(
                f"{counts.self_graded:,} responses were written by a judge itself; judges prefer their own answers. "
                "Add a judge of another family"
            )
        return lines


_STARS = r"(?:[ \t]*\*+)?"
_DECIMAL = r"\d{1,6}(?:\.\d{1,9})?"
_NUMBER = rf"{_STARS}[ \t]*(-?{_DECIMAL})(?:[ \t]*(?:/|out of)[ \t]*({_DECIMAL}))?{_STARS}"
"""No two runs of blanks meet, so that a reply is read in linear time."""
_NAMED = re.compile(
    rf"^[^\w\n]*(?:final |overall )?(?:grade|score|rating)[^\w\n:=]*[:=]{_NUMBER}(?:[.,;:()\s–—-][^\d\n]*)?$",
    re.I | re.M,
)
_BARE = re.compile(rf"^{_NUMBER}\.?[ \t]*$", re.M)


def read_grade(text: str, high: float) -> float | None:
    """Return the grade in a reply; None where there is none, or where it is not clear which number it is.

    Read are a JSON object with ``grade``, else lines like ``Grade: 4.5`` that agree, else a number that has the first
    line for itself and is the only one of its kind. A number may be followed by ``/`` and the top of the scale.
    """
    text = text.rpartition("</think>")[2].strip()[-_LONGEST_REPLY:]
    if values := list(_objects(text)):
        return values[-1]
    pairs = _NAMED.findall(text)
    if not pairs and _BARE.match(text.partition("\n")[0]):
        pairs = _BARE.findall(text)
    grades = {float(value) for value, _ in pairs}
    on_scale = all(not top or float(top) == high for _, top in pairs)
    return grades.pop() if len(grades) == 1 and on_scale else None


def _objects(text: str) -> Iterator[float]:
    """``grade`` of each JSON object in the text."""
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place = text.find("{", place + 1)
            continue
        place = text.find("{", end)
        grade = value.get("grade") if isinstance(value, dict) else None
        if isinstance(grade, str) and re.fullmatch(r"\s*-?\d+(\.\d+)?\s*", grade):
            grade = float(grade)
        if isinstance(grade, int | float) and not isinstance(grade, bool) and math.isfinite(grade):
            yield float(grade)


def _spent(reply: Reply, body: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt and of the reply; estimated by their length where the server does not count them."""
    if reply.prompt_tokens:
        return reply.prompt_tokens, reply.completion_tokens
    return len(body["messages"][0]["content"]) // _CHARACTERS, len(reply.text) // _CHARACTERS


def _short(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2].lower()


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.6g}")
