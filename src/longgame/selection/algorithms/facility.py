"""Facility location: picks such that every candidate is similar to one, by lazy or stochastic greedy (CELF)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

_BATCH = 32
"""Candidates whose gains are evaluated together when the lazy order needs one."""
_CELLS = 1 << 21
"""Similarities computed at once (16 MiB in float64)."""
_STORED = 1 << 26
"""Similarities of the rows evaluated last that are stored for reuse (256 MiB in float32)."""


@dataclass(frozen=True)
class Facilities:
    """Picks of `facility_location`."""

    rows: Int[np.ndarray, " k"]
    """In pick order."""
    gain: Float[np.ndarray, " n"]
    """Gain per token (or worth and scaled gain) of each row when it was picked or last evaluated."""
    value: float
    """f(picks): the mean similarity of a reference to its nearest pick, in [0, 1]."""


def facility_location(
    embeddings: Float[np.ndarray, "n d"],
    tokens: Int[np.ndarray, " n"],
    budget: int,
    rng: np.random.Generator,
    greedy: Literal["lazy", "stochastic"] = "lazy",
    references: int = 4096,
    epsilon: float = 0.1,
    worth: Float[np.ndarray, " n"] | None = None,
    coverage_weight: float = 1.0,
    similarity: Literal["cosine", "distance"] = "cosine",
) -> Facilities:
    """Maximize f(S) = mean over references i of max over j in S of s(i, j) ≥ 0 under a token budget.

    s is max(0, cosine), or c − the distance of i and j, with c at least the largest distance.

    f is monotone and submodular. References are all rows, or a sample without replacement: f is then an unbiased
    estimate of the mean over all, and memory stays bounded (similarities are computed in blocks).

    - ``lazy`` (Minoux 1978): cost-benefit greedy, largest gain per token first. A gain only falls, so an old one is an
      upper bound and few are evaluated again. With the best single row as the alternative the value is at least
      1 − 1/√e ≈ 0.39 of the optimum (Lin & Bilmes 2010; Leskovec et al. 2007); with equal costs 1 − 1/e (Nemhauser).
    - ``stochastic`` (Mirzasoleiman et al. 2015): each pick is the best of a fresh draw of ⌈n/k · ln(1/epsilon)⌉ rows, k
      the number of rows of mean length in the budget; with equal costs 1 − 1/e − epsilon in expectation. For unequal
      costs there is no such guarantee.

    Similarities are summed in float64 and rounded to float32, so equal rows have equal gains; ties go to the smaller
    row. Rows without gain are picked too while the budget holds them.

    Args:
        embeddings: n candidates, in the order that ties follow.
        tokens: what each costs, ≥ 1; a candidate that no longer fits is passed over for good.
        budget: at least ``tokens.min()``.
        rng: draws the references and, if stochastic, the samples.
        greedy: ``lazy`` or ``stochastic``.
        references: size of the sample of references.
        epsilon: what the stochastic greedy may lose, in (0, 1).
        worth: of each row by itself, ≥ 0 (QDIT, Bukharin & Zhao 2023). Each pick then has the largest worth +
            ``coverage_weight`` · gain, not per token, with gains divided by the largest gain of a first pick (≤ 1).
        coverage_weight: ≥ 0; used with ``worth``.
        similarity: s.
    """
    n = len(embeddings)
    sample = np.arange(n) if n <= references else np.sort(rng.choice(n, references, replace=False))
    search = _Search(embeddings, tokens, sample, worth, coverage_weight, similarity == "distance")
    draw = None
    if greedy == "stochastic":
        k = max(1.0, budget / float(tokens.mean()))
        draw = (rng, max(1, math.ceil(n / k * math.log(1.0 / epsilon))))
    picked = search.run(budget, draw)
    if worth is not None:
        return picked
    alone = np.where(tokens <= budget, search.first, -1.0)
    best = int(alone.argmax())
    if alone[best] > picked.value * len(sample) * (1.0 + 1e-6):  # more than rounding
        picked = search.run(budget, draw, begin_with=best)
    return picked


class _Search:
    def __init__(
        self,
        embeddings: Float[np.ndarray, "n d"],
        tokens: Int[np.ndarray, " n"],
        sample: Int[np.ndarray, " m"],
        worth: Float[np.ndarray, " n"] | None,
        coverage_weight: float,
        by_distance: bool = False,
    ) -> None:
        n, m = len(embeddings), len(sample)
        self.embeddings, self.tokens = embeddings, tokens
        self._center = embeddings.mean(axis=0, dtype=np.float64) if by_distance else None
        self.references = self._rows(sample)
        """Of unit length, or relative to the mean of all rows."""
        squares = np.einsum("nd,nd->n", self.references, self.references)
        self._squares = squares if by_distance else None
        self._reach = 0.0
        if by_distance:
            step = max(1, _CELLS // embeddings.shape[1])
            parts = (self._rows(np.arange(start, min(n, start + step))) for start in range(0, n, step))
            self._reach = 2.0 * max(float(np.sqrt(np.einsum("nd,nd->n", part, part)).max()) for part in parts)
        self.step = max(1, _CELLS // max(m, embeddings.shape[1]))
        self._stored = np.empty((min(n, max(self.step, _STORED // m)), m), dtype=np.float32)
        self._slot = np.full(n, -1)
        self._owner = np.full(len(self._stored), -1)
        self._turn = 0
        self.first = self._gains(np.arange(n), np.zeros(m, dtype=np.float32))
        """f of each row alone, times the number of references."""
        self._worth = worth
        self._scale = coverage_weight / max(float(self.first.max()), np.finfo(np.float64).tiny)

    def _rows(self, rows: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b d"]:
        if self._center is None:
            return _unit(self.embeddings[rows])
        return self.embeddings[rows].astype(np.float64) - self._center

    def _product(self, rows: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b m"]:
        """Cosines with the references, or the largest distance minus the distance from them."""
        vectors = self._rows(rows)
        product = vectors @ self.references.T
        if self._squares is None:
            return product
        product *= -2.0
        product += self._squares
        product += np.einsum("nd,nd->n", vectors, vectors)[:, None]
        np.sqrt(np.maximum(product, 0.0, out=product), out=product)
        return np.subtract(self._reach, product, out=product)

    def _similar(self, rows: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b m"]:
        """Similarities of at most ``step`` rows to the references; the latest are stored in a ring."""
        missing = rows[self._slot[rows] < 0]
        if len(missing):
            product = self._product(missing)
            if self._turn + len(missing) > len(self._stored):
                self._turn = 0
            slots = np.arange(self._turn, self._turn + len(missing))
            stored = np.setdiff1d(rows, missing)
            if np.isin(self._slot[stored], slots).any():  # the ring would overwrite rows of this call: drop them first
                self._owner[self._slot[stored]] = -1
                self._slot[stored] = -1
                return self._similar(rows)
            self._turn += len(missing)
            evicted = self._owner[slots]
            self._slot[evicted[evicted >= 0]] = -1
            self._owner[slots], self._slot[missing] = missing, slots
            self._stored[slots] = np.maximum(product, 0.0, out=product)
        return self._stored[self._slot[rows]]

    def _gains(self, rows: Int[np.ndarray, " b"], reached: Float[np.ndarray, " m"]) -> Float[np.ndarray, " b"]:
        gains = np.empty(len(rows))
        for start in range(0, len(rows), self.step):
            gain = self._similar(rows[start : start + self.step])
            gain -= reached
            np.maximum(gain, 0.0, out=gain).sum(axis=1, dtype=np.float64, out=gains[start : start + self.step])
        return gains

    def _value(self, rows: Int[np.ndarray, " b"], gains: Float[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
        """What the greedy maximizes: gain per token, or worth and scaled gain."""
        if self._worth is None:
            return gains / self.tokens[rows]
        return self._worth[rows] + self._scale * gains

    def run(
        self, budget: int, draw: tuple[np.random.Generator, int] | None, begin_with: int | None = None
    ) -> Facilities:
        tokens, left = self.tokens, int(budget)
        gain = self._value(np.arange(len(tokens)), self.first)
        fresh = np.zeros(len(gain), dtype=np.int64)
        bound = np.where(tokens <= left, gain, -1.0)
        """Upper bounds of the gains per token; −1 for rows that no longer take part."""
        reached = np.zeros(len(self.references), dtype=np.float32)
        shortest = int(tokens.min())
        picks: list[int] = []
        while True:
            if begin_with is not None and not picks:
                best = begin_with
            elif draw is None:
                best = int(bound.argmax())
                while bound[best] >= 0 and fresh[best] < len(picks):
                    rows = np.union1d(_largest(bound, _BATCH), best)  # among many equal rows it may be missing
                    self._refresh(rows, bound, gain, fresh, reached, len(picks))
                    best = int(bound.argmax())
            else:
                going = np.flatnonzero(bound >= 0)
                if len(going) > draw[1]:
                    going = np.sort(draw[0].choice(going, draw[1], replace=False))
                self._refresh(going, bound, gain, fresh, reached, len(picks))
                best = int(going[bound[going].argmax()]) if len(going) else int(bound.argmax())
            if bound[best] < 0:
                break
            picks.append(best)
            np.maximum(reached, self._similar(np.array([best]))[0], out=reached)
            left -= int(tokens[best])
            bound[best] = -1.0
            if left < shortest:
                break
            bound[tokens > left] = -1.0
        return Facilities(np.asarray(picks, dtype=np.int64), gain, float(reached.mean(dtype=np.float64)))

    def _refresh(
        self,
        rows: Int[np.ndarray, " b"],
        bound: Float[np.ndarray, " n"],
        gain: Float[np.ndarray, " n"],
        fresh: Int[np.ndarray, " n"],
        reached: Float[np.ndarray, " m"],
        count: int,
    ) -> None:
        """Evaluate the rows whose gain is older than this pick."""
        rows = rows[(fresh[rows] < count) & (bound[rows] >= 0)]
        gain[rows] = bound[rows] = self._value(rows, self._gains(rows, reached))
        fresh[rows] = count


def nearest_picks(vectors: Float[np.ndarray, "n d"], picks: Int[np.ndarray, " k"]) -> Int[np.ndarray, " n"]:
    """Place in ``picks`` of the pick that each row is nearest to (L2); a pick is its own, ties go to the first."""
    points = vectors[picks].astype(np.float64)
    squares = np.einsum("kd,kd->k", points, points)
    nearest = np.empty(len(vectors), dtype=np.int64)
    step = max(1, _CELLS // max(len(picks), vectors.shape[1]))
    for start in range(0, len(vectors), step):
        block = vectors[start : start + step].astype(np.float64)
        nearest[start : start + step] = (squares - 2.0 * (block @ points.T)).argmin(axis=1)
    nearest[picks] = np.arange(len(picks))
    return nearest


def _largest(values: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " b"]:
    return np.argpartition(values, len(values) - count)[-count:] if len(values) > count else np.arange(len(values))


def _unit(rows: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "b d"]:
    """Rows at length 1, float64; a zero row stays zero."""
    wide = rows.astype(np.float64)
    wide /= np.maximum(np.abs(wide).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    norms = np.sqrt(np.einsum("nd,nd->n", wide, wide))[:, None]
    return np.divide(wide, norms, out=wide, where=norms > 0)
