"""A cluster as it is before work: whether its address answers, what describes a node, and how it differs from this."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longgame.engines.local import as_error
from longgame.errors import ModelError, RecipeError

_ANSWER_SECONDS = 10.0
"""In which an address has to answer."""
_SETTINGS_FRAME = 4
"""Type of the first frame that an HTTP/2 server sends."""
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, _SETTINGS_FRAME, 0, 0, 0, 0, 0))
PACKAGES = ("longgame", "torch", "transformers", "peft", "numpy")
"""What has to have the same version on every node."""


def check_answer(address: str) -> None:
    """Ray itself tries for minutes and may end the process, so an address is asked first, as HTTP/2 clients do.

    Raises:
        RecipeError: it does not answer, or it is no server of Ray.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        number = int(port)
        with socket.create_connection((host.strip("[]"), number), timeout=_ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("1", "true"):
                connection.sendall(_GREETING)
                reply = connection.recv(9)
                if len(reply) < 4 or reply[3] != _SETTINGS_FRAME:
                    raise ConnectionError("another program answers there")
    except (OSError, ValueError, OverflowError) as error:
        reason = "no answer in 10 s" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or error
        raise RecipeError(
            f"no Ray cluster answers at '{address}' ({reason}). Check the host and the port: ray:// takes that of "
            "Ray's client server (10001 unless set otherwise)."
        ) from error


def facts_function() -> Callable[[Sequence[str], str | None], dict[str, Any]]:
    """What describes a node; Ray sends a nested function with its code, so that it runs where longgame is not."""

    def facts(packages: Sequence[str], token: str | None) -> dict[str, Any]:
        import hashlib
        import importlib.metadata
        import importlib.util
        import pathlib
        import platform
        import shutil
        import socket
        import subprocess

        versions: dict[str, str | None] = {"python": ".".join(platform.python_version_tuple()[:2])}
        for name in packages:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = None
        spec = importlib.util.find_spec("longgame")
        digest = hashlib.sha256()
        for root in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(pathlib.Path(root).rglob("*.py")):
                digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
        try:
            text = None if token is None else pathlib.Path(token).read_text()
        except OSError:
            text = None
        cards: list[str] = []
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
            output = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60).stdout
            cards = [line.strip() for line in output.splitlines() if line.strip()]
        return {
            "host": socket.gethostname(),
            "versions": versions,
            "source": digest.hexdigest()[:12],
            "token": text,
            "cards": cards,
        }

    return facts


def contained(contents: Callable[[], Mapping[str, str]], folder: str) -> tuple[str, Any]:
    """Task: the digests that a node has, or its error."""
    enter(folder)
    try:
        return "done", dict(contents())
    except Exception as error:  # noqa: BLE001 - told to the driver
        return "error", as_error("the check of the node", error)


def cleared(pattern: str) -> None:
    """Task: delete the copies of a run on a node."""
    for path in Path(tempfile.gettempdir()).glob(pattern):
        shutil.rmtree(path, ignore_errors=True)


def enter(folder: str) -> None:
    """Work in the folder that the driver works in, where the node has it: relative paths start from there."""
    if Path(folder).is_dir():
        os.chdir(folder)


def version_difference(node: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """How a node's software differs from that of this process, with the fix; empty where it does not."""
    names = [name for name, version in here["versions"].items() if node["versions"].get(name) != version]
    if not names and node["source"] != here["source"]:
        return (
            f"has other source files of longgame {here['versions']['longgame']} ({node['source']}, here "
            f"{here['source']}). Install the same version there and here."
        )
    if not names:
        return ""
    there, now = (
        ", ".join(f"{name} {facts['versions'].get(name) or '(none)'}" for name in names) for facts in (node, here)
    )
    fix = " ".join(f"'{name}=={here['versions'][name]}'" for name in names if name != "python")
    fix = f"run pip install {fix} there" if fix else "use one version of Python"
    return f"has {there}, and this machine {now}; numbers of two versions do not belong in one table. {fix}."


def content_difference(node: Mapping[str, str], here: Mapping[str, str]) -> str:
    """How a node's files differ from those of this process, with the fix; empty where they do not."""
    missing = [name for name in here if name not in node]
    pairs = {name: (node[name], digest) for name, digest in here.items() if name in node and node[name] != digest}
    revisions = {name: pair for name, pair in pairs.items() if all(digest.startswith(_HUB) for digest in pair)}
    parts = [f"lacks {', '.join(missing)}"] if missing else []
    other = [name for name in pairs if name not in revisions]
    parts += [f"has other content in {', '.join(other)}"] if other else []
    fixes = ["Copy the files of this machine there, or put them on a shared path."] if parts else []
    for name, digests in revisions.items():
        (repo, there), (_, now) = (digest.removeprefix(_HUB).split("@") for digest in digests)
        if there and now:  # a hub that tells no commit is trusted
            parts.append(f"reads commit {there[:12]} of {name}, and this machine {now[:12]}")
            fixes.append(f"Fetch the latest files on both: hf download {repo}")
    return f"{' and '.join(parts)}. {' '.join(fixes)}" if parts else ""


_HUB = "hub "
"""Begins what stands for a model of the hub: its id, @, and a commit."""


def model_digest(name: str) -> str | None:
    """Digest of the files of a model's folder, or the commit of a model of the hub; None of an empty folder.

    Which files of a commit are in the cache differs from machine to machine, as each fetches what it needs. A machine
    without any reads the latest commit.

    Raises:
        ModelError: there is no such model.
    """
    from longgame.models.hub import cached_commit, require_repo
    from longgame.models.load import SMOLLM2, model_place
    from longgame.models.smollm2 import locate

    if name == SMOLLM2 and (source := locate().source).startswith(_HUB):
        return source.partition(", ")[2]  # its files were checked; which others lie beside them does not matter
    place = model_place(name)
    if Path(place).is_dir():
        return digest_of([Path(place)])
    return f"{_HUB}{place}@{cached_commit(place) or require_repo(place, 'model', ModelError, '')}"


def digest_of(paths: list[Path]) -> str | None:
    """Digest of the names below these paths and their contents; None where there is nothing."""
    digest, count = hashlib.sha256(), 0
    for root in paths:
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file():
                digest.update(f"{path.relative_to(root) if path != root else ''}\0{_content(path)}\0".encode())
                count += 1
    return digest.hexdigest()[:16] if count else None


def _content(path: Path) -> str:
    """Digest of a file; a file of the hub's cache is named after its content."""
    real = path.resolve()
    if real.parent.name == "blobs":
        return real.name
    with real.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
