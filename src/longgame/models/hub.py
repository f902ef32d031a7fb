"""The Hugging Face hub: ask it once and with a time limit before a library waits for it; push files and a card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from longgame.errors import LonggameError, StorageError

_SECONDS = 8.0
_BEGIN, _END = "<!-- begin: longgame -->", "<!-- end: longgame -->"


def require_repo(repo_id: str, kind: Literal["model", "dataset"], error: type[LonggameError], remedy: str) -> None:
    """Return if the hub answers and holds ``repo_id``; otherwise raise at once.

    `datasets` retries an unreachable hub for more than 20 s; this asks a single time (at most 8 s per phase of the
    request) and turns every failure into one sentence.

    Args:
        repo_id: ``owner/name``.
        kind: what is looked for.
        error: class of the error to raise.
        remedy: sentence put behind every message: what to do without the hub.
    """
    api = HfApi()
    ask = api.model_info if kind == "model" else api.dataset_info
    try:
        ask(repo_id, timeout=_SECONDS)
    except OfflineModeIsEnabled as cause:
        raise error(f"{kind} '{repo_id}' is not in the local cache, and HF_HUB_OFFLINE is set. {remedy}") from cause
    except HFValidationError as cause:
        raise error(f"'{repo_id}' is not a hub id; write it as owner/name. {remedy}") from cause
    except GatedRepoError as cause:
        raise error(
            f"{kind} '{repo_id}' is gated: accept its terms on its hub page and log in (hf auth login)."
        ) from cause
    except (HTTPError, OSError) as cause:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status in (401, 404):
            raise error(f"the hub has no public {kind} '{repo_id}'. Check the spelling. {remedy}") from cause
        reason = f"it answered with HTTP status {status}" if status else f"no connection ({_first_line(cause)})"
        raise error(f"{kind} '{repo_id}' is not in the local cache and the hub: {reason}. {remedy}") from cause


@dataclass(frozen=True, slots=True)
class Push:
    """What was pushed to a repository of the hub, or would be."""

    repo_id: str
    files: tuple[str, ...]
    url: str = ""
    """Of the commit; empty: nothing was pushed, as there is no token."""

    def __str__(self) -> str:
        names = ", ".join(self.files)
        if self.url:
            return f"Pushed to {self.url}: {names}"
        return f"Dry run, as there is no token: {names} would go to {self.repo_id}. Log in first (hf auth login)."


def push(
    repo_id: str, kind: Literal["model", "dataset"], files: Mapping[str, bytes | Path], section: str, message: str
) -> Push:
    """Push files and a section of the card in one commit; without a token, say what would be pushed.

    The section replaces the one that an earlier push wrote into README.md; everything else there stays. A data set's
    repository is created, private, where it does not exist; a model's has to exist.

    Args:
        files: path in the repository → content, or a file.
        section: Markdown.
        message: of the commit.

    Raises:
        StorageError: the name is no hub id, or the hub does not answer, does not know the repository or refuses.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as cause:
        raise StorageError(f"--push is '{repo_id}'; write it as owner/name.") from cause
    names = (*files, "README.md")
    if get_token() is None:
        return Push(repo_id, names)
    api = HfApi()
    try:
        if kind == "dataset":
            api.create_repo(repo_id, repo_type=kind, private=True, exist_ok=True)
        try:
            readme = Path(api.hf_hub_download(repo_id, "README.md", repo_type=kind)).read_text(encoding="utf-8")
        except EntryNotFoundError:
            readme = ""
        contents = {**files, "README.md": with_section(readme, section).encode()}
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, content) for name, content in contents.items()],
            commit_message=message,
            repo_type=kind,
        )
    except OfflineModeIsEnabled as cause:
        raise StorageError("--push needs the hub, and HF_HUB_OFFLINE is set. Unset it, or leave --push out.") from cause
    except RepositoryNotFoundError as cause:
        raise StorageError(
            f"the hub has no {kind} '{repo_id}' that this token can write. Create it, or check name and token."
        ) from cause
    except (HTTPError, OSError, ValueError) as cause:  # a ValueError: the card's front matter, or the hub's reply
        status = getattr(getattr(cause, "response", None), "status_code", None)
        reason = f"HTTP status {status}" if status else _first_line(cause)
        raise StorageError(f"the hub did not take '{repo_id}': {reason}. Nothing was pushed; try again.") from cause
    return Push(repo_id, names, str(commit.commit_url))


def with_section(readme: str, section: str) -> str:
    """The card with the section in place of an earlier one, else at its end; the front matter stays first."""
    block = f"{_BEGIN}\n{section.strip()}\n{_END}"
    earlier = re.compile(re.escape(_BEGIN) + ".*?" + re.escape(_END), flags=re.DOTALL)
    if earlier.search(readme):
        return earlier.sub(lambda _: block, readme, count=1)
    return f"{readme.rstrip()}\n\n{block}\n".lstrip()


def _first_line(cause: BaseException) -> str:
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__
