"""Sub-skills of the reasoning-gym package, each with four parameter sets and its own verifier kept beside the item."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from longgame.data.procedural.base import Draft

_INDICES = 2**40
"""reasoning-gym seeds item i with ``seed + i``; a random index below this bound makes every draw its own item."""


@cache
def _dataset(name: str, parameters: str) -> Any:
    from reasoning_gym import create_dataset  # heavy to import; only needed once items are drawn

    return create_dataset(name, seed=0, size=_INDICES, **json.loads(parameters))


def gym_draw(dataset: str, levels: Mapping[str, Mapping[str, Any]]) -> Callable[[np.random.Generator, str], Draft]:
    """Return a drawing function for a reasoning-gym dataset.

    Args:
        dataset: its name in reasoning-gym.
        levels: level → parameters of the dataset's configuration.

    The item's ``verifier`` is ``{"library", "dataset", "entry"}`` with the entry as JSON-safe values, so that the
    dataset's own ``score_answer(answer, entry)`` can judge an answer later.
    """
    parameters = {level: json.dumps(values, sort_keys=True) for level, values in levels.items()}

    def draw(rng: np.random.Generator, level: str) -> Draft:
        entry = _dataset(dataset, parameters[level])[int(rng.integers(_INDICES))]
        verifier = {"library": "reasoning_gym", "dataset": dataset, "entry": json.loads(json.dumps(entry))}
        return Draft(entry["question"].strip(), entry["answer"], entry["answer"], verifier)

    return draw
