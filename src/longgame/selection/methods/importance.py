"""Importance sampling: candidates with large gradients are drawn more often, and count less in the loss.

Paper: Katharopoulos & Fleuret 2018, arXiv 1803.00942.
Formula: drawn with probability p ∝ ‖g‖ (or its last-layer bound), weight 1 / (n p) in the loss.
Cost: B, one forward and backward pass; F, one forward pass, with the last-layer bound.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from longgame.data.examples import Pool
from longgame.selection.algorithms.sampling import priority_sample
from longgame.selection.base import Selector
from longgame.selection.budget import check_budget, choice, id_order, weight
from longgame.selection.history import History, Selection
from longgame.signals.base import Signals

BOUNDS: tuple[str, ...] = ("gradient", "last-layer")


class ImportanceSelector(Selector):
    """Draw with p = (1 − u) · ‖g‖ / Σ‖g‖ + u / n, with weights that keep the step's gradient unbiased.

    The expectation of the weighted gradient of the picks is the gradient of training on all candidates. The paper draws
    with replacement and weighs each draw by 1/(n p). Here no candidate is drawn twice and the budget is filled
    (priority sampling), so a pick's weight is T / (T_all · P): P is its probability to be picked, T and T_all are the
    response tokens of the picks and of all candidates that the budget could hold. With equal lengths that is 1/(n p),
    p = P/k for k picks. The weights' mean is 1 in expectation, not in every draw.

    Args:
        size: what p is proportional to: ``gradient``, the norm of the example's gradient; ``last-layer``, the paper's
            upper bound by the gradient at the logits (mean over the response tokens of ‖softmax − one-hot‖₂).
        uniform_share: u; it bounds the weights. 0: the paper's p, under which a near-zero gradient gets a huge weight.

    ``scores``: ``probability`` = p; ``score`` = log(p / uniform number); a candidate that was passed over as it did
    not fit has a score just below the last pick's.
    """

    name = "importance"
    weighs = True
    requires: tuple[str, ...] = ("grad_norm",)

    def __init__(self, size: Literal["gradient", "last-layer"] = "gradient", uniform_share: float = 0.1) -> None:
        self.size = choice(self.name, "size", size, BOUNDS)
        self.uniform_share = weight(self.name, "uniform_share", uniform_share, most=1)
        self.requires = ("grad_norm",) if self.size == "gradient" else ("el2n",)

    def select(
        self,
        pool: Pool,
        signals: Signals,
        history: History,  # noqa: ARG002
        budget: int,
        rng: np.random.Generator,
    ) -> Selection:
        check_budget(pool.costs, budget)
        by_id = id_order(pool.ids)
        norms = signals[self.requires[0]][by_id].astype(np.float64)
        total = norms.sum()
        shares = norms / total if total > 0 else np.full(len(norms), 1 / len(norms))
        shares = (1 - self.uniform_share) * shares + self.uniform_share / len(norms)
        shares = np.maximum(shares, 1e-9 / len(norms))  # what has no gradient is drawn last, with a finite weight
        draws = 1.0 - rng.random(len(norms))
        costs, tokens = pool.costs[by_id], np.asarray(pool.response_tokens)[by_id]
        picked, inverse = priority_sample(shares, costs, budget, draws)
        weights = inverse * (tokens[picked].sum() / tokens[costs <= budget].sum())
        score = np.log(shares) - np.log(draws)
        passed_over = np.ones(len(score), dtype=bool)
        passed_over[picked] = False
        last = score[picked].min()
        score[passed_over & (score >= last)] = np.nextafter(last, -np.inf)
        place = np.argsort(by_id)
        return Selection.of(pool, by_id[picked], {"score": score[place], "probability": shares[place]}, weights)
