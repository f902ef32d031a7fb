"""Names to classes: built-in, installed plug-ins (entry points), or ``path/to/file.py:Class``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from longgame.errors import LonggameError, PluginError, RecipeError, did_you_mean, unknown
from longgame.limits import IMPORT_SECONDS, located, time_limit, why_no_file

_COPY = "Pool and signals are read-only: copy an array before changing it. "
_FRAMES = 3
"""Stack frames in the message when a plug-in fails."""
_leave = os._exit


@contextmanager
def plugin_at_work(subject: str, activity: str) -> Iterator[None]:
    """Run a selector's or scorer's own code and report whatever it raises, attempts to end the process included.

    Args:
        subject: the plug-in as its user knows it ("selector 'mine'").
        activity: what it runs ("select()").

    Raises:
        PluginError: the code raised one (the plug-in is put before it), or an error that is not a `LonggameError`: the
            message names the error and the last stack frames.
    """
    outermost, process = os._exit is _leave, os.getpid()

    def exit_as_error(status: int) -> NoReturn:
        # os._exit would end the audit without a word, perhaps with the status of success
        if os.getpid() != process:  # a forked child of the plug-in
            _leave(status)
        raise SystemExit(f"os._exit({status})")

    os._exit = exit_as_error
    try:
        yield
    except PluginError as error:
        if str(error).startswith(subject):
            raise
        raise PluginError(f"{subject}: {error}") from error
    except (LonggameError, KeyboardInterrupt):
        raise
    except BaseException as error:
        places = [
            f"  {frame.filename}, line {frame.lineno}, in {frame.name}: {frame.line or ''}".rstrip(": ")
            for frame in traceback.extract_tb(error.__traceback__)[2:]  # without this function and its caller
            if not frame.filename.startswith("<frozen")
        ][-_FRAMES:]
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        advice = _COPY if isinstance(error, ValueError) and "read-only" in reason else ""
        raise PluginError(
            "\n".join([f"{subject} failed in {activity}: {reason}. {advice}Fix its code, or leave it out.", *places])
        ) from error
    finally:
        if outermost:
            os._exit = _leave


class Registry:
    """Resolve a name to a class, lazily, and check it against a contract before anyone uses it.

    Args:
        kind: what is registered, for messages ("selector").
        group: entry-point group that installed packages may add to ("longgame.selectors").
        builtin: name → "module:Class"; imported when the name is resolved.
        check: called with name and class; raises PluginError if the class breaks the contract.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str], check: Callable[[str, type], None]) -> None:
        self.kind = kind
        self.group = group
        self._builtin = dict(builtin)
        self._check = check

    def names(self) -> list[str]:
        """Built-in and installed names, sorted."""
        return sorted({*self._builtin, *(point.name for point in metadata.entry_points(group=self.group))})

    def builtin_names(self) -> list[str]:
        """Names of this package, sorted."""
        return sorted(self._builtin)

    def is_builtin(self, name: str) -> bool:
        """Whether the name is one of this package."""
        return name in self._builtin

    def resolve(self, name: str) -> type:
        """Return the class behind ``name``.

        Raises:
            RecipeError: the name is unknown, or the file of ``file.py:Class`` does not exist.
            PluginError: the plug-in cannot be imported or breaks the contract.
        """
        if name in self._builtin:
            cls = self._import(name, self._builtin[name])
        elif ".py:" in name:
            cls = self._from_file(name)
        else:
            points = {point.name: point for point in metadata.entry_points(group=self.group)}
            if name not in points:
                hint = f" Name a {self.kind} of your own as path/to/file.py:Class."
                raise RecipeError(unknown(self.kind, name, self.names()) + hint)
            cls = self._import(name, points[name].value)
        if not isinstance(cls, type):
            raise PluginError(f"{self.kind} '{name}' is a {type(cls).__name__}, not a class. Name a class.")
        self._check(name, cls)
        return cls

    def make(self, name: str, parameters: Mapping[str, Any]) -> Any:
        """Return an instance of the class behind ``name`` with these parameters.

        Raises:
            RecipeError: as `resolve`; or a parameter that the class does not take.
            PluginError: as `resolve`; or the class cannot be instantiated.
        """
        return self.make_of(name, self.resolve(name), parameters)

    def make_of(self, name: str, cls: type, parameters: Mapping[str, Any]) -> Any:
        """Return an instance of a class with these parameters; ``name`` stands for it in messages.

        Raises:
            RecipeError: a parameter that the class does not take.
            PluginError: the class breaks the contract, or cannot be instantiated.
        """
        self._check(name, cls)
        accepted = inspect.signature(cls).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
            for key in parameters:
                if key not in accepted:
                    allowed = f" It takes: {', '.join(accepted)}." if accepted else " It takes none."
                    raise RecipeError(
                        f"{self.kind} '{name}' has no parameter '{key}'.{did_you_mean(key, accepted)}{allowed}"
                    )
        for key, parameter in accepted.items():
            is_rest = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if parameter.default is parameter.empty and not is_rest and key not in parameters:
                raise RecipeError(
                    f"{self.kind} '{name}' needs the parameter '{key}', and there is none. Give it, as in "
                    f"{name}:{key}=VALUE, or let the class have a default."
                )
        with plugin_at_work(f"{self.kind} '{name}'", f"being made with {dict(parameters)}"):
            return cls(**parameters)

    def _import(self, name: str, target: str) -> Any:
        module, _, attribute = target.partition(":")
        with plugin_at_work(f"{self.kind} '{name}'", f"the import of {target}"):
            return getattr(importlib.import_module(module), attribute)

    def _from_file(self, name: str) -> Any:
        path_text, _, attribute = name.rpartition(":")
        path = Path(located(path_text)).expanduser().resolve()
        if reason := why_no_file(path):
            raise RecipeError(f"{self.kind} file '{path_text}' {reason}. Give a path to a .py file and a class.")
        # named by path and content, so that an edited file is loaded again
        module_name = "longgame_plugin_" + hashlib.sha256(f"{path}\0".encode() + path.read_bytes()).hexdigest()[:12]
        module = sys.modules.get(module_name)
        if module is None:
            spec = importlib.util.spec_from_file_location(module_name, path)
            if spec is None or spec.loader is None:
                raise PluginError(f"{self.kind} file '{path_text}' cannot be imported as Python.")
            module = importlib.util.module_from_spec(spec)
            sys.modules[module_name] = module
            try:
                hangs = PluginError(
                    f"{self.kind} file '{path_text}' was not imported within {IMPORT_SECONDS:g} seconds. Let its "
                    "import define classes, and do work in their methods."
                )
                with plugin_at_work(f"{self.kind} file '{path_text}'", "its import"), time_limit(IMPORT_SECONDS, hangs):
                    spec.loader.exec_module(module)
            except PluginError:
                del sys.modules[module_name]
                raise
        if not hasattr(module, attribute):
            defined = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module_name]
            classes = [key for key in defined if isinstance(getattr(module, key), type)]
            raise PluginError(f"'{path_text}': " + unknown("class", attribute, classes))
        return getattr(module, attribute)
