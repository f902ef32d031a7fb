"""DSIR, importance resampling: draw so that the n-grams of the picks are distributed as those of the target set.

Paper: Xie et al. 2023, arXiv 2302.03169.
Formula: Σ over words and pairs of words of log p_target − log p_raw (10,000 hashed buckets), + a Gumbel number.
Cost: 0, texts only: of the candidates and of the target set.
"""

from __future__ import annotations

import numpy as np

from longgame.data.examples import Pool
from longgame.selection.base import Selector
from longgame.selection.budget import fill_by_score, flag, gumbel_by_id
from longgame.selection.history import History, Selection
from longgame.signals.base import Signals


class DSIRSelector(Selector):
    """Draw without replacement, each next pick with a probability ∝ p_target(x) / p_raw(x) (arXiv 2302.03169).

    The paper's examples all have about 128 words. Those of a fine-tuning set have one to thousands, and a sum over
    n-grams then ranks them by length. By default the sum is therefore scaled to the candidates' mean number of
    n-grams, which changes nothing where all have the same length.

    Args:
        normalize: false: the plain sum, as in the published code.
        sample: false: highest ratio first, without a draw.

    ``scores``: ``ratio``, scaled or plain (nats); ``score`` is the ratio + a Gumbel number, or the ratio.
    """

    name = "dsir"

    def __init__(self, normalize: bool = True, sample: bool = True) -> None:
        self.normalize = flag(self.name, "normalize", normalize)
        self.sample = flag(self.name, "sample", sample)
        self.requires = ("dsir_ratio", "ngram_count") if self.normalize else ("dsir_ratio",)

    def select(
        self,
        pool: Pool,
        signals: Signals,
        history: History,  # noqa: ARG002
        budget: int,
        rng: np.random.Generator,
    ) -> Selection:
        ratio = signals["dsir_ratio"].astype(np.float64)
        if self.normalize:
            grams = signals["ngram_count"].astype(np.float64)
            mean = np.sort(grams).mean()  # sorted, so that the order of the pool changes no bit
            ratio = np.divide(ratio * mean, grams, out=np.zeros_like(ratio), where=grams > 0)
        score = ratio + gumbel_by_id(pool.ids, rng) if self.sample else ratio
        picks = fill_by_score(score, pool.ids, pool.costs, budget)
        return Selection.of(pool, picks, {"score": score, "ratio": ratio})
