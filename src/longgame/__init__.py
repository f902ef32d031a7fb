"""longgame: data selection for LLM fine-tuning that plays the long game."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

import longgame.audit

if TYPE_CHECKING:
    from longgame.audit.run import Run, load_run
    from longgame.commands.audit import audit
    from longgame.data.examples import Example, Pool, Task
    from longgame.errors import LonggameError
    from longgame.offline.api import Subset, score, select
    from longgame.offline.checking import check
    from longgame.recipe import Recipe, load_recipe
    from longgame.selection.base import Selector, build_selector
    from longgame.selection.history import Selection
    from longgame.signals.base import Signals
    from longgame.training.config import SelectionConfig
    from longgame.training.log import read_picks, read_training_log
    from longgame.training.sft import SelectionSFTTrainer
    from longgame.training.trainer import SelectionTrainer

__version__ = "0.1.0"

__all__ = [
    "Example",
    "LonggameError",
    "Pool",
    "Recipe",
    "Run",
    "Selection",
    "SelectionConfig",
    "SelectionSFTTrainer",
    "SelectionTrainer",
    "Selector",
    "Signals",
    "Subset",
    "Task",
    "__version__",
    "audit",
    "build_selector",
    "check",
    "load_recipe",
    "load_run",
    "read_picks",
    "read_training_log",
    "score",
    "select",
]

_MODULES = {
    "longgame.audit.run": ("Run", "load_run"),
    "longgame.data.examples": ("Example", "Pool", "Task"),
    "longgame.errors": ("LonggameError",),
    "longgame.offline.api": ("Subset", "score", "select"),
    "longgame.offline.checking": ("check",),
    "longgame.recipe": ("Recipe", "load_recipe"),
    "longgame.selection.base": ("Selector", "build_selector"),
    "longgame.selection.history": ("Selection",),
    "longgame.signals.base": ("Signals",),
    "longgame.training.config": ("SelectionConfig",),
    "longgame.training.log": ("read_picks", "read_training_log"),
    "longgame.training.sft": ("SelectionSFTTrainer",),
    "longgame.training.trainer": ("SelectionTrainer",),
}
"""Module → its public names; it is imported when one of them is first used."""
_LAZY = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'longgame' has no attribute '{name}'")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class _CallablePackage(ModuleType):
    """Makes the package `longgame.audit` a function, too: an import of a submodule would replace one of its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from longgame.commands.audit import audit

        return audit(*args, **kwargs)


longgame.audit.__class__ = _CallablePackage
