"""FLOW: prefer what the base model finds easy, so that less is forgotten.

Paper: Sanyal et al. 2025, arXiv 2502.02797.
Formula: drawn with weights exp(−base_loss / τ), τ the median of base_loss.
Cost: F, one forward pass of the base model, once per example.
"""

from __future__ import annotations

import numpy as np

from longgame.data.examples import Pool
from longgame.selection.base import Selector
from longgame.selection.budget import fill_by_score, flag, gumbel_by_id, number
from longgame.selection.history import History, Selection
from longgame.signals.base import Signals


class FLOWSelector(Selector):
    """Draw without replacement, each next pick with a probability ∝ exp(−base_loss / τ) (arXiv 2502.02797).

    The paper weights the loss of all examples. Under a budget not all of them are learned, so the weights decide which:
    what is drawn enters the loss unweighted.

    Args:
        temperature: τ in nats per token; default: the median of the candidates' base losses, as in the paper.
        sample: false: no draw, lowest base loss first.

    ``scores``: ``preference`` = exp(−base_loss / τ); ``score`` = its logarithm + a Gumbel number (or the logarithm).
    """

    name = "flow"
    requires = ("base_loss",)

    def __init__(self, temperature: float | None = None, sample: bool = True) -> None:
        self.temperature = None if temperature is None else number(self.name, "temperature", temperature, above=0)
        self.sample = flag(self.name, "sample", sample)

    def select(
        self,
        pool: Pool,
        signals: Signals,
        history: History,  # noqa: ARG002
        budget: int,
        rng: np.random.Generator,
    ) -> Selection:
        loss = signals["base_loss"].astype(np.float64)
        temperature = self.temperature or max(float(np.median(loss)), float(np.finfo(np.float32).tiny))
        log_weight = -loss / temperature
        score = log_weight + gumbel_by_id(pool.ids, rng) if self.sample else log_weight
        picks = fill_by_score(score, pool.ids, pool.costs, budget)
        return Selection.of(pool, picks, {"score": score, "preference": np.exp(log_weight)})
