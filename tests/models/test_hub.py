"""Pushing to the hub, against a local server that speaks its API."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from longgame.errors import StorageError
from longgame.models.hub import push, with_section

OID = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Keeps one repository, ``owner/name``; `server.files` holds its files, `server.requests` what was asked."""

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self):
        self.server.requests.append(f"{self.command} {self.path}")
        name = self.path.rpartition("/")[2]
        if "/owner/name/resolve/" not in self.path:
            return self.answer(404, b"", X_Error_Code="RepoNotFound")
        if name not in self.server.files:
            return self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=OID)
        return self.answer(200, self.server.files[name], ETag=f'"{OID}"', X_Repo_Commit=OID)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self):
        self.server.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        address = f"http://{self.headers['Host']}/owner/name"
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.server.status != 200:
            return self.answer(self.server.status, b"")
        if self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            return self.answer(200, {"url": address})
        if "/owner/name/" not in self.path:
            return self.answer(404, b"", X_Error_Code="RepoNotFound")
        if "/preupload/" in self.path:
            names = [entry["path"] for entry in json.loads(body)["files"]]
            return self.answer(
                200, {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            )
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.answer(200, {"success": True, "commitOid": OID, "commitUrl": f"{address}/commit/{OID}"})


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.requests, server.status, server.created = {}, [], 200, None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def pushed(hub, tmp_path, *arguments, token="hf_test"):
    """Push from a process of its own, as the hub's library reads its address when it is imported."""
    code = (
        "import sys; from longgame.errors import LonggameError; from longgame.models.hub import push\n"
        "try: print(push(sys.argv[1], sys.argv[2], {'report.html': b'<p>'}, '## Audit', 'An audit'))\n"
        "except LonggameError as error: sys.exit(f'{type(error).__name__}: {error}')"
    )
    address = f"http://127.0.0.1:{hub.server_address[1]}"
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    environment.pop("HF_TOKEN", None)
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_push_to_a_model_keeps_the_rest_of_its_card(hub, tmp_path):
    hub.files["README.md"] = b"---\nlicense: mit\n---\n# My model\n"
    done = pushed(hub, tmp_path, "owner/name", "model")
    assert done.returncode == 0, done.stderr
    assert "report.html, README.md" in done.stdout
    card = hub.files["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n---\n# My model\n")
    assert "## Audit" in card
    assert hub.files["report.html"] == b"<p>"
    assert hub.created is None


def test_push_of_a_data_set_makes_a_private_repository(hub, tmp_path):
    done = pushed(hub, tmp_path, "owner/name", "dataset")
    assert done.returncode == 0, done.stderr
    assert hub.created["visibility"] == "private"
    assert hub.files["README.md"].decode().count("## Audit") == 1


def test_push_without_a_token_asks_the_hub_nothing(hub, tmp_path):
    done = pushed(hub, tmp_path, "owner/name", "model", token="")
    assert done.stdout.startswith("Dry run, as there is no token: report.html, README.md would go to owner/name")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("repository", "status", "words"),
    [
        ("owner/other", 200, "the hub has no model 'owner/other' that this token can write"),
        ("owner/name", 403, "the hub did not take 'owner/name': HTTP status 403"),
        ("not a name", 200, "--push is 'not a name'; write it as owner/name"),
    ],
)
def test_push_that_the_hub_refuses_is_one_sentence(hub, tmp_path, repository, status, words):
    hub.status = status
    done = pushed(hub, tmp_path, repository, "model")
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.files == {}


def test_push_offline_names_the_variable(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with pytest.raises(StorageError, match="HF_HUB_OFFLINE is set"):
        push("owner/name", "model", {}, "## Audit", "An audit")


def test_second_push_replaces_the_section_of_the_first():
    first = with_section("# Model\n\ntext\n", "## Audit\n\nold \\1")
    second = with_section(first, "## Audit\n\nnew \\g<0>")
    assert "old" not in second
    assert "new \\g<0>" in second
    assert second.startswith("# Model\n\ntext\n")
    assert second.count("## Audit") == 1
