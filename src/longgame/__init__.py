"""longgame: data selection for LLM fine-tuning that plays the long game."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

import longgame.audit
from longgame.data.examples import Example, Pool, Task
from longgame.errors import LonggameError
from longgame.recipe import Recipe, load_recipe
from longgame.selection.base import Selector, build_selector
from longgame.selection.history import Selection
from longgame.signals.base import Signals

if TYPE_CHECKING:
    from longgame.audit.run import Run
    from longgame.commands.audit import audit
    from longgame.offline.api import Subset, score, select
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
    "load_recipe",
    "read_picks",
    "read_training_log",
    "score",
    "select",
]


_LAZY = {
    "Run": "longgame.audit.run",
    "SelectionConfig": "longgame.training.config",
    "SelectionSFTTrainer": "longgame.training.sft",
    "SelectionTrainer": "longgame.training.trainer",
    "Subset": "longgame.offline.api",
    "read_picks": "longgame.training.log",
    "read_training_log": "longgame.training.log",
    "score": "longgame.offline.api",
    "select": "longgame.offline.api",
}
"""Names whose modules load torch, transformers or TRL, and so are imported when they are first used."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'longgame' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)


class _CallablePackage(ModuleType):
    """Makes the package `longgame.audit` a function, too: an import of a submodule would replace one of its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from longgame.commands.audit import audit

        return audit(*args, **kwargs)


longgame.audit.__class__ = _CallablePackage
