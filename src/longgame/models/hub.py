"""The Hugging Face hub: ask it once and with a time limit before a library waits for it; push files and a card."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, get_token, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from longgame.errors import LonggameError, ModelError, StorageError

_Loaded = TypeVar("_Loaded")
OWN_CODE, OTHER_SIZES = "trust_remote_code", "ignore_mismatched_sizes"
"""In the texts of errors of a model that comes with code of its own, or whose weights have other sizes."""
_SECONDS = 8.0
_BEGIN, _END = "<!-- begin: longgame -->", "<!-- end: longgame -->"
_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", flags=re.DOTALL | re.MULTILINE)
"""The metadata at the top of a card."""
_OF_THE_FILES = ("configs", "size_categories")
"""Metadata that describes what is pushed, and replaces what the card said."""


def cached_commit(repo_id: str) -> str | None:
    """The commit of a model of the hub whose files the local cache gives; None: it holds no config.json of it."""
    file = try_to_load_from_cache(repo_id, "config.json")
    return Path(file).parent.name if isinstance(file, str) else None


def require_repo(
    repo_id: str,
    kind: Literal["model", "dataset"],
    error: type[LonggameError],
    remedy: str,
    lack: str = "is not in the local cache",
) -> str:
    """Return the latest commit of ``repo_id`` if the hub answers and holds it; otherwise raise at once.

    `datasets` retries an unreachable hub for more than 20 s; this asks a single time (at most 8 s per phase of the
    request) and turns every failure into one sentence.

    Args:
        repo_id: ``owner/name``.
        kind: what is looked for.
        error: class of the error to raise.
        remedy: sentence put behind every message: what to do without the hub.
        lack: why the hub is needed, as the message says it of the repository.
    """
    api = HfApi()
    ask = api.model_info if kind == "model" else api.dataset_info
    try:
        return ask(repo_id, timeout=_SECONDS).sha or ""
    except OfflineModeIsEnabled as cause:
        raise error(f"{kind} '{repo_id}' {lack}, and HF_HUB_OFFLINE is set. {remedy}") from cause
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
        raise error(f"{kind} '{repo_id}' {lack} and the hub: {reason}. {remedy}") from cause


def load_or_fetch(
    place: str,
    load: Callable[[bool], _Loaded],
    local: bool,
    errors: tuple[type[Exception], ...],
    remedy: str,
    lack: str = "",
) -> _Loaded:
    """Return ``load(local)``; files that the local cache lacks of a model of the hub are fetched.

    Another program, or an earlier call that needed less, may have cached some files of a model.

    Args:
        place: directory or hub id.
        load: loads it; True: from local files alone.
        local: whether some of its files are on this machine.
        errors: what ``load`` raises where a file is missing.
        remedy: as in `require_repo`.
        lack: why the local files are not enough, where that is known before they are read.

    Raises:
        ModelError: the local files are not enough, and the hub does not give the model. Exception: what ``load`` raised
            of a directory, or of all files.
    """
    if not lack:
        try:
            return load(local)
        except errors as error:
            other_cause = isinstance(error, MemoryError) or OWN_CODE in str(error) or OTHER_SIZES in str(error)
            if not local or Path(place).is_dir() or other_cause:
                raise
            lack = first_lines(error).rstrip(".")
    require_repo(place, "model", ModelError, remedy, f"cannot be loaded from the local cache ({lack})")
    return load(False)


def first_lines(error: Exception) -> str:
    """The first two lines of an error's text in one, or its name where it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2])


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


def check_repo_id(repo_id: str) -> None:
    """Raise StorageError where a name is no hub id."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as cause:
        raise StorageError(f"--push is '{repo_id}'; write it as owner/name.") from cause
    if "/" not in repo_id:
        raise StorageError(f"--push is '{repo_id}'; write it as owner/name.")


def license_of(repo_id: str) -> str:
    """Return the license that a data set's page on the hub states; empty where it states none or cannot be asked."""
    try:
        data = HfApi().dataset_info(repo_id, timeout=_SECONDS).card_data
    except (HTTPError, OSError, HFValidationError):
        return ""
    stated = None if data is None else data.get("license")
    return ", ".join(map(str, stated)) if isinstance(stated, list) else str(stated or "")


def push(
    repo_id: str,
    kind: Literal["model", "dataset"],
    files: Mapping[str, bytes | Path],
    section: str,
    message: str,
    metadata: Mapping[str, Any] | None = None,
) -> Push:
    """Push files and a section of the card in one commit; without a token, say what would be pushed.

    The section replaces the one that an earlier push wrote into README.md; everything else there stays. A data set's
    repository is created, private, where it does not exist; a model's has to exist.

    Args:
        files: path in the repository → content, or a file.
        section: Markdown.
        message: of the commit.
        metadata: of the card; keys that it has already stay, but for those that describe the files.

    Raises:
        StorageError: the name is no hub id, or the hub does not answer, does not know the repository or refuses.
    """
    check_repo_id(repo_id)
    names = (*files, "README.md")
    if get_token() is None:
        return Push(repo_id, names)
    api = HfApi()
    try:
        if kind == "dataset":
            api.create_repo(repo_id, repo_type=kind, private=True, exist_ok=True)
        try:
            # an empty cache: an older copy's text would replace what is on the hub
            with tempfile.TemporaryDirectory() as cache:
                card = api.hf_hub_download(repo_id, "README.md", repo_type=kind, cache_dir=cache)
                readme = Path(card).read_text(encoding="utf-8")
        except LocalEntryNotFoundError as cause:  # an EntryNotFoundError, too, but the hub said no such thing
            raise cause.__cause__ or cause from None
        except EntryNotFoundError:
            readme = ""
        contents = {**files, "README.md": with_section(with_metadata(readme, metadata or {}), section).encode()}
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


def card_metadata(readme: str) -> dict[str, Any]:
    """Return the metadata at the top of a card; empty where there is none.

    Raises:
        ValueError: it is no YAML mapping.
    """
    front = _FRONT.match(readme)
    try:
        metadata = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError as error:
        raise ValueError(f"the card's metadata is no YAML: {_first_line(error)}") from error
    if not isinstance(metadata, dict | None):
        raise ValueError("the card's metadata is no mapping")
    return metadata or {}


def with_metadata(readme: str, metadata: Mapping[str, Any]) -> str:
    """The card with this metadata; keys that it has stay, but for those that describe the pushed files."""
    earlier = card_metadata(readme)
    merged = {**metadata, **earlier, **{key: metadata[key] for key in _OF_THE_FILES if key in metadata}}
    if merged == earlier:
        return readme
    front = yaml.safe_dump(merged, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n{_FRONT.sub('', readme, count=1)}"


def _first_line(cause: BaseException) -> str:
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__
