"""Names to classes: built-in, installed plug-ins (entry points), or ``path/to/file.py:Class``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from longgame.errors import LonggameError, PluginError, RecipeError, did_you_mean, unknown

_FRAMES = 3
"""Places that are named when a plug-in fails: where it happened and the calls that led there."""


@contextmanager
def plugin_at_work(who: str, doing: str) -> Iterator[None]:
    """Run a selector's or scorer's own code: whatever it raises, an attempt to end the process included, is told.

    Args:
        who: the plug-in as its user knows it ("selector 'mine'").
        doing: what it was asked for ("select()").

    Raises:
        PluginError: the code raised one (the plug-in is named before it), or anything that is not of longgame's own
            family: the message names the error and the last places it passed.
    """
    try:
        yield
    except PluginError as error:
        if str(error).startswith(who):
            raise
        raise PluginError(f"{who}: {error}") from error
    except LonggameError:
        raise
    except (Exception, SystemExit) as error:
        places = [
            f"  {frame.filename}, line {frame.lineno}, in {frame.name}: {frame.line or ''}".rstrip(": ")
            for frame in traceback.extract_tb(error.__traceback__)[2:]  # behind this function and its caller
            if not frame.filename.startswith("<frozen")
        ][-_FRAMES:]
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(
            "\n".join([f"{who} failed in {doing}: {said}. Mend its code, or leave it out.", *places])
        ) from error


class Registry:
    """Resolve a name to a class, lazily, and check it against a contract before anyone uses it.

    Args:
        kind: what is registered, for messages ("selector").
        group: entry-point group that installed packages may add to ("longgame.selectors").
        builtin: name → "module:Class"; importing is put off until the name is asked for.
        check: called with the class; raises PluginError where the contract is broken.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str], check: Callable[[str, type], None]) -> None:
        self.kind = kind
        self.group = group
        self._builtin = dict(builtin)
        self._check = check

    def names(self) -> list[str]:
        """Built-in and installed names, sorted."""
        return sorted({*self._builtin, *(point.name for point in metadata.entry_points(group=self.group))})

    def resolve(self, name: str) -> type:
        """Return the class behind ``name``.

        Raises:
            RecipeError: the name is unknown, or the file of ``file.py:Class`` does not exist.
            PluginError: the plug-in cannot be imported or breaks the contract.
        """
        if name in self._builtin:
            found = self._import(name, self._builtin[name])
        elif ".py:" in name:
            found = self._from_file(name)
        else:
            points = {point.name: point for point in metadata.entry_points(group=self.group)}
            if name not in points:
                hint = f" A {self.kind} of your own is named path/to/file.py:Class."
                raise RecipeError(unknown(self.kind, name, self.names()) + hint)
            found = self._import(name, points[name].value)
        if not isinstance(found, type):
            raise PluginError(f"{self.kind} '{name}' is a {type(found).__name__}, not a class. Name a class.")
        self._check(name, found)
        return found

    def make(self, name: str, parameters: Mapping[str, Any]) -> Any:
        """Return an instance of the class behind ``name``, made with these parameters.

        Raises:
            RecipeError: as `resolve`; or a parameter that the class does not take.
            PluginError: as `resolve`; or the class cannot be made.
        """
        cls = self.resolve(name)
        taken = inspect.signature(cls).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
            for key in parameters:
                if key not in taken:
                    known = f" It takes: {', '.join(taken)}." if taken else " It takes none."
                    raise RecipeError(
                        f"{self.kind} '{name}' has no parameter '{key}'.{did_you_mean(key, taken)}{known}"
                    )
        with plugin_at_work(f"{self.kind} '{name}'", f"being made with {dict(parameters)}"):
            return cls(**parameters)

    def _import(self, name: str, target: str) -> Any:
        module, _, attribute = target.partition(":")
        with plugin_at_work(f"{self.kind} '{name}'", f"the import of {target}"):
            return getattr(importlib.import_module(module), attribute)

    def _from_file(self, name: str) -> Any:
        path_text, _, attribute = name.rpartition(":")
        path = Path(path_text).expanduser().resolve()
        if not path.is_file():
            raise RecipeError(f"{self.kind} file '{path_text}' does not exist. Give a path to a .py file and a class.")
        # by place and content: a file that was edited meanwhile is another module
        module_name = "longgame_plugin_" + hashlib.sha256(f"{path}\0".encode() + path.read_bytes()).hexdigest()[:12]
        module = sys.modules.get(module_name)
        if module is None:
            spec = importlib.util.spec_from_file_location(module_name, path)
            if spec is None or spec.loader is None:
                raise PluginError(f"{self.kind} file '{path_text}' cannot be imported as Python.")
            module = importlib.util.module_from_spec(spec)
            sys.modules[module_name] = module
            try:
                with plugin_at_work(f"{self.kind} file '{path_text}'", "its import"):
                    spec.loader.exec_module(module)
            except PluginError:
                del sys.modules[module_name]
                raise
        if not hasattr(module, attribute):
            own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module_name]
            classes = [key for key in own if isinstance(getattr(module, key), type)]
            raise PluginError(f"'{path_text}': " + unknown("class", attribute, classes))
        return getattr(module, attribute)
