"""The one family of errors that longgame raises on purpose.

Every message says three things: the value that was seen, what is allowed, and how to mend it.
The command line prints the message alone (no traceback) and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
import re
import signal
from collections.abc import Iterable

from longgame.escape import visible


class LonggameError(Exception):
    """Root of the family; catching it catches whatever longgame raises on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        """The message; control characters of the value that it shows are written out."""
        return visible(super().__str__())


class RecipeError(LonggameError):
    """A recipe or a command-line option is wrong (unknown key, bad value, unknown file)."""

    exit_code = 2


class DataError(LonggameError):
    """A data file or example cannot be used as it is (does not parse, is empty, is too long)."""


class BudgetError(LonggameError):
    """A token budget cannot be met (zero, larger than the pool, smaller than one example)."""


class ModelError(LonggameError):
    """A model or tokenizer cannot be loaded or lacks what is needed (no chat template, no network)."""


class NumericalError(LonggameError):
    """A loss, gradient or signal is NaN or infinite; the message names example, stage and step."""


class ResumeError(LonggameError):
    """A run directory does not belong to this recipe, or holds records that cannot be read."""


class TrialError(LonggameError):
    """Trials of an audit failed; the others are finished, and the report names those that failed."""

    exit_code = 3


class StorageError(LonggameError):
    """A record could not be written durably (full disk, no permission); what was finished stays."""


class PluginError(LonggameError):
    """A selector or scorer, ours or the user's, breaks its contract."""


def did_you_mean(value: str, allowed: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ``' Did you mean X?'`` for the closest allowed name, or an empty string."""
    close = difflib.get_close_matches(value, list(allowed), n=1, cutoff=cutoff)
    return f" Did you mean '{close[0]}'?" if close else ""


def did_you_mean_file(name: str, others: Iterable[str]) -> str:
    """Return ``' Did you mean X?'`` for the file of the closest name; endings, which most files share, do not count."""
    by_stem: dict[str, list[str]] = {}
    for other in others:
        by_stem.setdefault(_stem(other), []).append(other)
    stems = difflib.get_close_matches(_stem(name), list(by_stem), n=1, cutoff=0.6)
    return did_you_mean(name, by_stem[stems[0]], cutoff=0.0) if stems else ""


def _stem(name: str) -> str:
    return re.sub(r"(?<=.)(\.[A-Za-z]\w*){1,2}$", "", name)


def unknown(kind: str, value: str, allowed: Iterable[str]) -> str:
    """Return the sentence for an unknown name: value seen, suggestion, what is allowed."""
    names = sorted(allowed)
    return f"unknown {kind} '{value}'.{did_you_mean(value, names)} Known: {', '.join(names)}."


def stopped_code(stop: KeyboardInterrupt) -> int:
    """Exit code of a stopped command: 128 and the number of the signal, which the exception carries unless it is 2."""
    return 128 + (stop.args[0] if stop.args else signal.SIGINT)
