"""A local server that speaks as much of the hub's API as a push, or the loading of a model, asks."""

import base64
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OID = "0123456789abcdef0123456789abcdef01234567"


class _Hub(BaseHTTPRequestHandler):
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
        if self.path.startswith("/api/datasets/owner/name"):
            return self.answer(200, {"id": "owner/name", "cardData": {"license": "mit"}})
        if self.path == "/mark":
            return self.answer(200)
        if "config.json" in self.server.files and self.path.startswith("/api/models/owner/name"):
            if "/tree/" in self.path:
                return self.answer(200, [])
            return self.answer(200, {"id": "owner/name", "sha": OID, "siblings": []})
        if "/owner/name/resolve/" not in self.path:
            return self.answer(404, b"", X_Error_Code="RepoNotFound")
        if name == self.server.failing:
            return self.answer(501)  # the client asks again, with growing pauses, after 500, 502, 503 and 504
        if name not in self.server.files:
            return self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=OID)
        content = self.server.files[name]
        return self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=OID)

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


@contextlib.contextmanager
def serve_hub():
    """Serve a hub with one empty repository; yields the server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.files, server.requests, server.status, server.created, server.failing = {}, [], 200, None, None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def run_with_hub(server, home, arguments, token="hf_test"):
    """Run Python with this hub in a process of its own, as the hub's library reads its address when it is imported."""
    address = f"http://127.0.0.1:{server.server_address[1]}"
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    environment.pop("HF_TOKEN", None)
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
