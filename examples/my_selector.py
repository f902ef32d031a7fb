"""A selector of your own: medium difficulty first (`--selectors random,examples/my_selector.py:MySelector`)."""

from longgame import Selection, Selector
from longgame.selection.base import descending, fill_budget


class MySelector(Selector):
    name = "medium-loss"
    requires = ("loss",)

    def __init__(self, target: float = 1.0) -> None:
        self.target = target  # nats per token

    def select(self, pool, signals, history, budget, rng):  # noqa: ARG002
        score = -abs(signals["loss"] - self.target)
        return Selection.of(pool, fill_budget(descending(score, pool.ids), pool.tokens, budget), {"score": score})
