from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from longgame.data.examples import Example, Pool
from longgame.selection.base import Selector
from longgame.selection.history import History, Selection
from longgame.signals.base import CONTEXT, Signals


class World:
    """Candidates a, b, c … with hand-written signals, and a history that lasts."""

    def __init__(self, tokens: Sequence[int], ids: Sequence[str] | None = None, **columns: Any) -> None:
        names = ids or [chr(ord("a") + row) for row in range(len(tokens))]
        examples = tuple(Example(name, "p", "r") for name in names)
        cost = np.asarray(tokens, dtype=np.int64)
        self.pool = Pool(examples, tuple(np.zeros(0, dtype=np.int64) for _ in names), cost - 1, np.ones_like(cost))
        arrays = {
            key: np.asarray(value, dtype=np.int64 if key == "cluster" else np.float32) for key, value in columns.items()
        }
        self.signals = Signals(
            self.pool.ids,
            {key: value for key, value in arrays.items() if key not in CONTEXT},
            {key: value for key, value in arrays.items() if key in CONTEXT},
        )

    def select(self, selector: Selector, budget: int, history: History | None = None, seed: int = 0) -> Selection:
        history = history or History()
        selection = selector.select(self.pool, self.signals, history, budget, np.random.default_rng(seed))
        selector.remember(self.pool, self.signals, selection.rows)
        return selection

    def picks(self, selector: Selector, budget: int, history: History | None = None, seed: int = 0) -> str:
        return self.names(self.select(selector, budget, history, seed))

    def names(self, selection: Selection) -> str:
        return "".join(self.pool.ids[row] for row in selection.rows)

    def remembered(self, rows: Sequence[int]) -> History:
        """A history in which these rows were selected."""
        history = History()
        history.update(Selection.of(self.pool, np.asarray(rows)), self.pool, self.signals)
        return history


@pytest.fixture
def world() -> Callable[..., World]:
    return World
