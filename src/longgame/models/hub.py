"""Ask the Hugging Face hub, once and with a time limit, before a library waits for it."""

from __future__ import annotations

from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HFValidationError, HTTPError, OfflineModeIsEnabled

from longgame.errors import LonggameError

_SECONDS = 8.0


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


def _first_line(cause: BaseException) -> str:
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__
