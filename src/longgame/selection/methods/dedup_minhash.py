"""Near-deduplication: of candidates whose texts are nearly the same, learn one.

Paper: Lee et al. 2022, arXiv 2107.06499.
Formula: `dedup-exact` of groups with a Jaccard index of word triples from 0.8 on, found by MinHash and LSH.
Cost: 0, texts only; a signal that ranks has its own cost.
"""

from __future__ import annotations

from longgame.selection.methods.dedup_exact import ExactDedupSelector


class MinHashDedupSelector(ExactDedupSelector):
    """Keep one of each group of near-duplicates, and pick uniformly or by a signal (arXiv 2107.06499).

    In the order of ids, a candidate joins the first group whose smallest id it resembles. The package rensa finds them.

    Args:
        by, rejected: those of `ExactDedupSelector`.
    """

    name = "dedup-minhash"
    group = "near_group"
