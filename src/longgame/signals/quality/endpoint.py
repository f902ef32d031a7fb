"""An OpenAI-compatible chat endpoint: retries, rate limits, and replies that outlive the job.

The client is the standard library's: what is needed is one POST, and a dependency would bring nothing to its faults.
"""

from __future__ import annotations

import datetime
import email.utils
import http.client
import json
import math
import os
import random
import re
import sqlite3
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from longgame.errors import ModelError, RecipeError, StorageError

_AGAIN = frozenset((408, 409, 425, 429))
"""Statuses after which the same request may succeed, beside 5xx."""
_REJECTED = frozenset((400, 413, 422, 501))
"""Statuses that refuse this request and no other."""
_SHORT, _SHORT_TOKENS = "Say yes.", 16
"""A message that any model answers, and about its tokens and those of the reply."""
_LONGEST_WAIT = 300.0
"""Seconds: a server that asks for a longer wait is not waited for."""
_LARGEST_REPLY = 1 << 24
_ADVICE = "Replies so far are stored; run the same command again, and only the others are asked for."


class RejectedRequestError(Exception):
    """The server does not take this request (a parameter, its length, its content)."""


class ExhaustedRequestError(Exception):
    """Every attempt at this request failed, from the monotonic time ``since`` on."""

    def __init__(self, fault: str, since: float) -> None:
        super().__init__(fault)
        self.since = since


class StoppedError(Exception):
    """The job stopped before this request was answered."""


class Pace:
    """Spreads requests evenly over time and holds all of them where the server asks for it.

    Args:
        requests_per_minute, tokens_per_minute: limits of the server; None: none.
    """

    def __init__(self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None) -> None:
        self._request = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._token = 60.0 / tokens_per_minute if tokens_per_minute else 0.0
        self._free = 0.0
        self._lock = threading.Lock()

    def wait(self, tokens: int, stop: threading.Event) -> None:
        """Wait for the turn of a request of about so many tokens.

        Raises:
            StoppedError: the job stops meanwhile.
        """
        with self._lock:
            start = max(time.monotonic(), self._free)
            if self._request or self._token:
                self._free = start + self._seconds(tokens)
        if stop.wait(max(0.0, start - time.monotonic())):
            raise StoppedError

    def hold(self, seconds: float) -> None:
        """Let no request begin for so many seconds."""
        with self._lock:
            self._free = max(self._free, time.monotonic() + seconds)

    def settle(self, expected: int, spent: int) -> None:
        """Correct the account by what a request really spent."""
        with self._lock:
            self._free += self._seconds(spent) - self._seconds(expected)

    def _seconds(self, tokens: int) -> float:
        """Of the account that a request of so many tokens takes: the tighter limit counts."""
        return max(self._request, tokens * self._token)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


class ChatEndpoint:
    """``endpoint.complete(body)``: one chat completion, tried again after faults that pass.

    Args:
        url: base of the API, such as ``https://host/v1``.
        key_env: environment variable that holds the key; unset: requests carry none.
        timeout: seconds for one attempt, from the connection to the last byte.
        attempts: attempts at one request, all faults together.
        backoff: seconds before the second attempt; they double from one attempt to the next, up to 30, and are
            multiplied by a random number from ½ to 1. A longer ``Retry-After`` counts instead.
        pace: shared by all requests to this server.

    Raises:
        RecipeError: the URL or the name of the variable cannot be used.
    """

    def __init__(self, url: str, key_env: str, *, timeout: float, attempts: int, backoff: float, pace: Pace) -> None:
        if not isinstance(key_env, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", key_env):
            raise RecipeError(
                "key_env is no name of an environment variable. Put the key into a variable, and give its name."
            )
        parts = urllib.parse.urlsplit(str(url))
        if parts.username or parts.password or parts.query or parts.fragment:
            raise RecipeError(
                f"the judge's url holds more than scheme, host and path ({parts.scheme}://{parts.hostname}…). Put the "
                f"key into the environment variable {key_env}, and give the plain url."
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RecipeError(f"the judge's url is '{url}'; write it like https://host/v1.")
        self.url = str(url).rstrip("/")
        self.key_env, self.timeout, self.attempts, self.backoff, self.pace = key_env, timeout, attempts, backoff, pace
        self.last_success = 0.0
        """Monotonic time of the last reply."""
        self.retries = 0
        self._jitter = random.SystemRandom()
        self._opener = urllib.request.build_opener(_NoRedirects)

    def is_alive(self, body: Mapping[str, Any], stop: threading.Event) -> bool:
        """Whether the server answers, or refuses, a short message in place of this request's, at the first attempt.

        Raises:
            StoppedError, ModelError: as `complete`.
        """
        short = {**body, "messages": [{"role": "user", "content": _SHORT}]}
        try:
            self.complete(short, _SHORT_TOKENS, stop, attempts=1)
        except RejectedRequestError:
            return True
        except ExhaustedRequestError:
            return False
        return True

    def complete(
        self, body: Mapping[str, Any], tokens: int, stop: threading.Event, attempts: int | None = None
    ) -> dict[str, Any]:
        """Return the server's answer, a JSON object with ``choices``.

        Args:
            tokens: estimate for the pace.
            stop: ends waiting.
            attempts: None: those of the endpoint.

        Raises:
            RejectedRequestError, ExhaustedRequestError, StoppedError: this request has no answer.
            ModelError: no request can have one (a wrong key, a wrong address, a used-up quota).
        """
        fault, since, attempts = "", math.inf, attempts or self.attempts
        for attempt in range(1, attempts + 1):
            self.pace.wait(tokens, stop)
            pause = 0.0
            try:
                status, headers, data = self._post(body)
            except (OSError, http.client.HTTPException, ValueError) as error:
                fault = self.redacted(f"{type(error).__name__}: {getattr(error, 'reason', error)}")
            else:
                if status == 200:
                    answer = _answer(data)
                    if answer is not None:
                        self.last_success = time.monotonic()
                        return answer
                    fault = f"a reply that is no chat completion ({self._shown(data)})"
                else:
                    fault = f"status {status} ({self._shown(data)})"
                    self._refuse(status, data, fault)
                    pause = _retry_after(headers)
            since = min(since, time.monotonic())
            if pause > _LONGEST_WAIT:
                raise ModelError(f"the judge at {self.url} asks to wait {pause:.0f} seconds: {fault}. {_ADVICE}")
            if pause:
                self.pace.hold(pause)
            if attempt < attempts:
                self.retries += 1
                delay = min(30.0, self.backoff * 2 ** (attempt - 1)) * self._jitter.uniform(0.5, 1.0)
                if stop.wait(max(pause, delay)):
                    raise StoppedError
        raise ExhaustedRequestError(fault, since)

    def redacted(self, text: str) -> str:
        """The text without the key."""
        key = os.environ.get(self.key_env, "").strip()
        for form in {key, urllib.parse.quote(key), urllib.parse.quote_plus(key)} - {""}:
            text = text.replace(form, "***")
        return text

    def down(self, fault: str) -> ModelError:
        """The error for a server that does not answer."""
        return ModelError(
            f"the judge at {self.url} does not answer: {fault}, after {self.attempts} attempts. Start it, or give its "
            f"address (url=). {_ADVICE}"
        )

    def _post(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "longgame"}
        if key := os.environ.get(self.key_env, "").strip():
            if not key.isascii() or not key.isprintable():
                raise ModelError(f"the key in {self.key_env} holds characters that no key has. Set it again.")
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        end = time.monotonic() + self.timeout
        try:
            reply = self._opener.open(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            reply = error
        with reply:
            parts: list[bytes] = []
            while part := reply.read1(1 << 16):
                parts.append(part)
                if time.monotonic() > end:
                    raise TimeoutError(f"no complete reply within {self.timeout:g} seconds")
                if sum(map(len, parts)) > _LARGEST_REPLY:
                    raise ValueError("the reply is larger than 16 MiB")
            if getattr(reply, "length", None):
                raise http.client.IncompleteRead(b"", reply.length)
            return int(reply.status or 0), reply.headers, b"".join(parts)

    def _refuse(self, status: int, data: bytes, fault: str) -> None:
        """Raise where the same request cannot succeed."""
        if status in _REJECTED:
            raise RejectedRequestError(fault)
        if status in (401, 403):
            state = "set" if os.environ.get(self.key_env, "").strip() else "not set"
            raise ModelError(
                f"the judge at {self.url} refuses access with {fault}. The key is read from the environment variable "
                f"{self.key_env}, which is {state}. Set it, or name another one (key_env=)."
            )
        if status == 429 and b"insufficient_quota" in data:
            raise ModelError(f"the judge at {self.url} has no quota left: {fault}. Raise it. {_ADVICE}")
        if status not in _AGAIN and status < 500:
            raise ModelError(
                f"the judge at {self.url} answers {fault}. Give the base of an OpenAI-compatible API (url=), such as "
                "https://host/v1, and a model that it serves (model=)."
            )

    def _shown(self, data: bytes) -> str:
        text = " ".join(data[:2000].decode("utf-8", "replace").split())
        return self.redacted(text)[:200] or "empty"


def _answer(data: bytes) -> dict[str, Any] | None:
    """The object with ``choices`` in these bytes; None where there is none."""
    try:
        answer = json.loads(data)
        message = answer["choices"][0]["message"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    content = message.get("content") if isinstance(message, dict) else 0
    return answer if content is None or isinstance(content, str) else None


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait; 0 where it asks for none."""
    text = (headers.get("retry-after") or "").strip()
    milliseconds = (headers.get("retry-after-ms") or "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", milliseconds):
        return float(milliseconds) / 1000
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text):
        return float(text)
    try:
        date = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return 0.0
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.UTC)
    return max(0.0, (date - datetime.datetime.now(datetime.UTC)).total_seconds())


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge said to one request."""

    text: str
    refusal: str
    """Why there is no text, in the server's words; empty where there is one."""
    finish: str
    """``stop``, ``length`` …"""
    structured: bool
    """Whether the server was held to a JSON schema."""
    prompt_tokens: int
    completion_tokens: int

    @classmethod
    def of(cls, answer: Mapping[str, Any], structured: bool) -> Reply:
        """Read a chat completion; counts are 0 where the server gives none."""
        choice = answer["choices"][0]
        message, finish = choice["message"], str(choice.get("finish_reason") or "")
        refusal = str(message.get("refusal") or "")
        if finish == "content_filter":
            refusal = refusal or "content_filter"
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        prompt, completion = (count if isinstance(count, int) and count >= 0 else 0 for count in counts)
        return cls(message.get("content") or "", refusal, finish, structured, prompt, completion)


class ReplyStore:
    """Replies by the digest of their request, in one SQLite file that processes may share; a reply is safe once put.

    Raises:
        StorageError: the file cannot be opened, is damaged, or its disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=60, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS replies (digest TEXT PRIMARY KEY, text TEXT, refusal TEXT, finish TEXT, "
                "structured INTEGER, prompt_tokens INTEGER, completion_tokens INTEGER) WITHOUT ROWID"
            )
        except (sqlite3.Error, OSError) as error:
            raise self._fault(error) from error

    def __enter__(self) -> ReplyStore:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._connection.close()

    def get(self, digests: Iterable[str]) -> dict[str, Reply]:
        """Return the replies that are there."""
        replies: dict[str, Reply] = {}
        try:
            with self._lock:
                for digest in digests:
                    row = self._connection.execute("SELECT * FROM replies WHERE digest = ?", (digest,)).fetchone()
                    if row is not None:
                        text, refusal, finish, structured, prompt, completion = row[1:]
                        replies[digest] = Reply(text, refusal, finish, bool(structured), prompt, completion)
        except (sqlite3.Error, ValueError) as error:
            raise self._fault(error) from error
        return replies

    def put(self, digest: str, reply: Reply) -> None:
        """Store a reply."""
        values = (digest, *(value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
                            for value in astuple(reply)))  # fmt: skip
        try:
            with self._lock:
                self._connection.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        except sqlite3.Error as error:
            raise self._fault(error) from error

    def _fault(self, error: Exception) -> StorageError:
        return StorageError(
            f"the judge's replies in {self.path} cannot be read or written ({error}). Free the disk, delete a damaged "
            "file, or give another one (cache=)."
        )
