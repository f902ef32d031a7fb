"""longgame: data selection for LLM fine-tuning that plays the long game."""

from typing import TYPE_CHECKING, Any

from longgame.data.examples import Example, Pool, Task
from longgame.errors import LonggameError
from longgame.recipe import Recipe, load_recipe
from longgame.selection.base import Selector, build_selector
from longgame.selection.history import Selection
from longgame.signals.base import Signals

if TYPE_CHECKING:
    from longgame.training.config import SelectionConfig
    from longgame.training.sft import SelectionSFTTrainer
    from longgame.training.trainer import SelectionTrainer

__version__ = "0.1.0"

__all__ = [
    "Example",
    "LonggameError",
    "Pool",
    "Recipe",
    "Selection",
    "SelectionConfig",
    "SelectionSFTTrainer",
    "SelectionTrainer",
    "Selector",
    "Signals",
    "Task",
    "__version__",
    "build_selector",
    "load_recipe",
]


def __getattr__(name: str) -> Any:
    """The trainers load torch and transformers (and TRL), so they are imported where they are asked for."""
    if name == "SelectionConfig":
        from longgame.training.config import SelectionConfig

        return SelectionConfig
    if name in ("SelectionTrainer", "SelectionSFTTrainer"):
        from longgame.training import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module 'longgame' has no attribute '{name}'")
