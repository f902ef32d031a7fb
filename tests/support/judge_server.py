"""A small OpenAI-compatible server with the packaged tiny model behind it, whose faults a test orders one by one."""

from __future__ import annotations

import functools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from longgame.models.load import load_model
from longgame.recipe import ModelSpec

KEY = "sk-test-7f3a91c2d4"


@functools.cache
def tiny() -> Any:
    return load_model(ModelSpec(name="tiny"))


@functools.cache
def loss_of(text: str) -> float:
    """Mean NLL of a text under the tiny model, in nats per token."""
    loaded = tiny()
    ids = torch.tensor([loaded.tokenizer(text)["input_ids"][:200]])
    with torch.no_grad():
        return float(loaded.model(input_ids=ids, labels=ids).loss)


def answer_of(text: str) -> str:
    """What the tiny model itself says: prose without a grade."""
    loaded = tiny()
    ids = torch.tensor([loaded.tokenizer(text)["input_ids"][-64:]])
    with torch.no_grad():
        new = loaded.model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=loaded.pad_token_id)
    return loaded.tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)


def grade_of(text: str) -> float:
    """A grade from 1 to 5 with one decimal, lower where the tiny model finds the text less likely."""
    return round(min(5.0, max(1.0, 6.0 - loss_of(text) / 2)), 1)


def completion(text: str | None, **fields: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, **fields}
    usage = {"prompt_tokens": 100, "completion_tokens": 7}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}


class Server(ThreadingHTTPServer):
    """Serves until the test ends.

    Attributes:
        plan: (number of the request from 0, its body) → what happens to it.
        bodies, keys, times: of the requests so far.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, plan: Callable[[int, dict[str, Any]], str], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.plan = plan
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.times: list[float] = []
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that gives up is no fault of the server."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.bodies)
            server.bodies.append(body)
            server.keys.append(self.headers.get("Authorization") or "")
            server.times.append(time.monotonic())
            server.busy += 1
            server.most_busy = max(server.most_busy, server.busy)
        try:
            self._answer(server.plan(number, body), body)
        finally:
            with server.lock:
                server.busy -= 1

    def _answer(self, action: str, body: dict[str, Any]) -> None:
        text = body["messages"][-1]["content"]
        name, _, value = action.partition(" ")
        if name == "grade":
            grade = float(value) if value else grade_of(text)
            self._send(200, completion(json.dumps({"grade": grade})))
        elif name == "says":
            self._send(200, completion(value))
        elif name == "prose":
            self._send(200, completion(answer_of(text)))
        elif name == "refused":
            self._send(200, completion(None, refusal="I can't help with that."))
        elif name == "status":
            code, _, after = value.partition(" ")
            headers = {"Retry-After": after} if after else {}
            self._send(int(code), {"error": {"message": f"bad {self.headers.get('Authorization')}"}}, headers)
        elif name == "malformed":
            self._send(200, b'{"choices": [{"mess')
        elif name == "other":
            self._send(200, {"object": "list", "data": []})
        elif name == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "500")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        elif name == "slow":
            time.sleep(float(value))
            self._send(200, completion('{"grade": 1}'))
        elif name == "redirect":
            self._send(307, b"", {"Location": "http://127.0.0.1:9/v1/chat/completions"})
        else:
            raise AssertionError(action)

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(plan: Callable[[int, dict[str, Any]], str] | str = "grade", port: int = 0) -> Iterator[Server]:
    """A server on a free port; a text is the action for every request."""
    server = Server((lambda _number, _body: plan) if isinstance(plan, str) else plan, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
