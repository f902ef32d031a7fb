"""Names to classes: built-in, installed plug-ins (entry points), or ``path/to/file.py:Class``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from longgame.errors import PluginError, RecipeError, unknown


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

    def _import(self, name: str, target: str) -> Any:
        module, _, attribute = target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise PluginError(f"{self.kind} '{name}' ({target}) cannot be imported: {error}") from error

    def _from_file(self, name: str) -> Any:
        path_text, _, attribute = name.rpartition(":")
        path = Path(path_text).expanduser().resolve()
        if not path.is_file():
            raise RecipeError(f"{self.kind} file '{path_text}' does not exist. Give a path to a .py file and a class.")
        module_name = "longgame_plugin_" + hashlib.sha256(str(path).encode()).hexdigest()[:12]
        module = sys.modules.get(module_name)
        if module is None:
            spec = importlib.util.spec_from_file_location(module_name, path)
            if spec is None or spec.loader is None:
                raise PluginError(f"{self.kind} file '{path_text}' cannot be imported as Python.")
            module = importlib.util.module_from_spec(spec)
            sys.modules[module_name] = module
            try:
                spec.loader.exec_module(module)
            except Exception as error:  # a plug-in may raise anything; name the file and keep the cause
                del sys.modules[module_name]
                message = f"{self.kind} file '{path_text}' fails when imported: {type(error).__name__}: {error}"
                raise PluginError(message) from error
        if not hasattr(module, attribute):
            classes = [key for key, value in vars(module).items() if isinstance(value, type)]
            raise PluginError(f"'{path_text}': " + unknown("class", attribute, classes))
        return getattr(module, attribute)
