"""longgame: data selection for LLM fine-tuning that plays the long game."""

from longgame.data.examples import Example, Pool, Task
from longgame.errors import LonggameError
from longgame.recipe import Recipe, load_recipe
from longgame.selectors.base import Selection, Selector, build_selector
from longgame.signals.base import Signals

__version__ = "0.1.0"

__all__ = [
    "Example",
    "LonggameError",
    "Pool",
    "Recipe",
    "Selection",
    "Selector",
    "Signals",
    "Task",
    "__version__",
    "build_selector",
    "load_recipe",
]
