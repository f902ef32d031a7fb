"""A selector of your own: medium difficulty first (`--selectors random,examples/my_selector.py:MySelector`)."""

from longgame import Selector


class MySelector(Selector):
    name = "medium-loss"
    requires = ("loss",)

    def __init__(self, target: float = 1.0) -> None:
        self.target = target  # nats per token

    def score(self, pool, signals, history):  # noqa: ARG002
        return -abs(signals["loss"] - self.target)
