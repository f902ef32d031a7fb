"""LHAS, long-horizon aware selection: immediate utility and three terms that look further.

Paper: arXiv 2605.30537, §4, eq. 5.
Formula: z(utility) + λ · z(coverage) + η · z(future) − ρ · z(concentration), greedily the highest.
Cost: B, one forward and backward pass, the gradients of the proxy items, and frozen embeddings.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from longgame.data.examples import Pool
from longgame.errors import PluginError, RecipeError
from longgame.selection.algorithms.farthest import mean_row
from longgame.selection.algorithms.nearest import Nearest, cosine
from longgame.selection.base import Selector
from longgame.selection.budget import NORMALISE, check_budget, choice, count, flag, id_order, scale, weight
from longgame.selection.history import History, Selection
from longgame.selection.methods.utility_diversity import POSITIONS, UTILITIES, Utility, UtilityDiversitySelector
from longgame.signals.base import Signals

_log = logging.getLogger(__name__)
ALIGNMENT_ITEMS = {
    "future": ("future_alignment", "proxy", "Raise proxy.items_per_skill."),
    "target": ("target_alignment", "target set", "Give more target items (in an audit: proxy.items_per_skill)."),
    "earlier": ("earlier_alignment", "examples of earlier stages", "The earlier stages have little in common."),
}
"""Term of alignment → its signal, the items whose gradients it compares with, and what a warning about them advises."""
_MARGIN = 64
"""Rows sorted beyond those that a block is expected to take."""


def proxy_cosine(signals: Signals, subject: str, otherwise: str) -> Float[np.ndarray, " n"]:
    """Cosine of each candidate's ``grad_sketch`` with ``future_proxy``, in [−1, 1] (p of eq. 5).

    Args:
        subject: the selector, for messages.
        otherwise: the alternative to adding proxy items, for messages ("set future_weight to 0").

    Raises:
        RecipeError: there is no proxy gradient, or it is zero. PluginError: the two have different widths.
    """
    return cosine(signals["grad_sketch"], _proxy(signals, subject, otherwise))


def stage_alignment(signals: Signals, subject: str, otherwise: str) -> float:
    """Cosine of the candidates' mean ``grad_sketch`` with ``future_proxy``: how far this stage and the proxy agree.

    Rows must be in the order of their ids, so that the order of the pool changes no bit. Raises as `proxy_cosine`.
    """
    proxy = _proxy(signals, subject, otherwise)
    mean = np.asarray(signals["grad_sketch"], dtype=np.float64).mean(axis=0)
    return float(cosine(mean[None], proxy)[0])


def check_width(rows: Float[np.ndarray, "n d"], vector: Float[np.ndarray, " d"], source: str) -> None:
    """Raise PluginError unless the candidates' vectors and that of ``source`` have the same width."""
    if rows.shape[1] != len(vector):
        raise PluginError(
            f"the candidates' vectors have width {rows.shape[1]} but those of {source} have {len(vector)}; "
            "keep the sketch and embedding sizes fixed through a run."
        )


def _proxy(signals: Signals, subject: str, otherwise: str) -> Float[np.ndarray, " d"]:
    if "future_proxy" not in signals or not np.any(signals["future_proxy"]):
        raise RecipeError(
            f"selector '{subject}' compares candidates with the future proxy, but there is no future-proxy gradient "
            f"(no proxy items, or it is zero). Set proxy.items_per_skill to 1 or more, or {otherwise}."
        )
    proxy = signals["future_proxy"]
    check_width(signals["grad_sketch"], proxy, "future_proxy")
    return proxy


class LHASSelector(Selector):
    """s(x) = z(u) + coverage_weight·z(c) + future_weight·z(p) − concentration_weight·z(a), highest first; ties by id.

    - u, ``utility``: the score of `UtilityDiversitySelector`, with a buffer of LHAS's own.
    - c, ``coverage``: what the selected history and the picks so far do not cover. ``distance``: L2 distance to the
      nearest remembered or picked embedding. ``cluster``: −log(1 + examples of the cluster selected so far). It is
      evaluated again as picks are made, over the candidates that are left.
    - p, ``future``: how far the example's gradient points where those of the future-proxy mixture do. ``exact``: mean
      cosine with the gradients of its items (`future_alignment`), over both halves of the mixture. ``adam``: the same
      with the items' gradients scaled by Adam's second moments (`adam_future_alignment`), as its steps are; equal to
      ``exact`` at the first step of a stage, and where another optimizer trains. The weight of both is multiplied by
      the reliability of the term. ``sketch``: cosine with their mean by gradient sketches, whose error exceeds the
      spread of p; no reliability.
    - a, ``concentration``: how far the example's cluster exceeds a uniform share of the tokens selected before,
      max(0, share − 1/clusters), plus the squared cosine of its gradient sketch with the top direction of the gradients
      selected before: in earlier stages (S_{1:t−1}, as eq. 5 has it), or up to the beginning of the round.

    The reliability of p is the correlation of its two halves over the candidates, stepped up to the whole mixture
    (Spearman–Brown: 2r/(1 + r), at least 0), with r the mean over the rounds of the stage. A term that cannot be
    measured gets no weight, and a warning says so once.

    Beyond eq. 5, and off by default, are terms that a damaged or mastered example does not rank high by:

    - ``target`` and ``earlier``: as p, for the target set (in an audit, the development items of today's stage) and for
      a sample of the candidates of earlier stages (`longgame.data.examples.earlier_items`); each with a reliability of
      its own. ``earlier`` is 0 in the first stage.
    - ``gradient_power``: all three alignments times ‖g‖ to this power. A mastered example has a short gradient, whose
      direction says little. 1 gives inner products, which is what the gradient of a batch of picks is made of.
    - ``drop_conflicts``: a candidate whose gradient points away from both halves of the earlier stages' comes after all
      others.
    - the utilities ``excess_loss`` and ``reducible_loss`` of `UtilityDiversitySelector`.

    A term without history is exactly zero for all candidates: u's diversity part and c in the very first round (c
    only until its first picks), a in the first stage. A weight of 0 switches a term and its signals off.

    Args:
        utility: utility of u: ``logit_nuclear_norm`` (published), ``loss``, ``excess_loss`` or ``reducible_loss``.
        diversity_weight, buffer_size: those of `UtilityDiversitySelector`.
        coverage: ``distance`` or ``cluster``.
        utility_weight: factor of z(u), 1 in eq. 5; 0 drops the utility and its signals.
        coverage_weight, future_weight, concentration_weight: λ, η, ρ of eq. 5.
        normalise: how z(·) puts the terms on one scale, over the candidates of the round: ``rank`` or ``z``.
        refreshes: coverage is evaluated again after every 1/refreshes of the round's budget (after every pick if that
            is less than one example), so the cost stays linear in the pool.
        positions: those of `UtilityDiversitySelector`.
        alignment: how p is measured: ``adam``, ``exact`` or ``sketch``.
        concentration_history: of a: ``earlier-stages`` or ``all``.
        target_weight, earlier_weight: weights of these terms; they and the next two need another alignment than
            ``sketch``.
        gradient_power: power of ‖g‖ in the alignments.
        drop_conflicts: whether conflicts with earlier stages come last.
        clusters: number of skill clusters behind 1/clusters; default: those among the candidates so far, of this and
            earlier rounds.

    ``scores``: the four terms as scaled, before their weights (NaN if switched off), and ``score``, their weighted sum;
    coverage and score are those of when the candidate was picked or last considered. Unless alignment is
    ``sketch``, ``reliability`` of p, equal for all candidates of a round. Where they are on: ``target`` and ``earlier``
    with ``target_reliability`` and ``earlier_reliability``, and ``conflict``, 1 or 0.
    """

    name = "lhas"
    family = "long-horizon"
    requires: tuple[str, ...] = (
        "logit_nuclear_norm",
        "logit_sketch",
        "embedding",
        "adam_future_alignment",
        "grad_sketch",
        "cluster",
    )

    def __init__(
        self,
        utility: Utility = "logit_nuclear_norm",
        diversity_weight: float = 1.0,
        buffer_size: int = 1024,
        coverage: Literal["distance", "cluster"] = "distance",
        utility_weight: float = 1.0,
        coverage_weight: float = 1.0,
        future_weight: float = 1.0,
        concentration_weight: float = 1.0,
        normalise: Literal["rank", "z"] = "rank",
        refreshes: int = 32,
        clusters: int | None = None,
        positions: Literal["all", "response"] = "all",
        alignment: Literal["adam", "exact", "sketch"] = "adam",
        concentration_history: Literal["earlier-stages", "all"] = "earlier-stages",
        target_weight: float = 0.0,
        earlier_weight: float = 0.0,
        gradient_power: float = 0.0,
        drop_conflicts: bool = False,
    ) -> None:
        by_sketch = choice(self.name, "alignment", alignment, ("adam", "exact", "sketch")) == "sketch"
        prefix = "adam_" if alignment == "adam" else ""
        self.aligned = {} if by_sketch else {term: prefix + signal for term, (signal, _, _) in ALIGNMENT_ITEMS.items()}
        """Signal of each term of alignment; empty: p by sketches."""
        self.target_weight = weight(self.name, "target_weight", target_weight)
        self.earlier_weight = weight(self.name, "earlier_weight", earlier_weight)
        self.gradient_power = weight(self.name, "gradient_power", gradient_power, most=4)
        self.drop_conflicts = flag(self.name, "drop_conflicts", drop_conflicts)
        if by_sketch and (self.target_weight or self.earlier_weight or self.gradient_power or self.drop_conflicts):
            raise RecipeError(
                f"selector '{self.name}': alignment is 'sketch', and target_weight, earlier_weight, gradient_power and "
                "drop_conflicts need exact inner products. Set alignment to adam or exact, or leave them out."
            )
        allowed = ("earlier-stages", "all")
        self.past_only = choice(self.name, "concentration_history", concentration_history, allowed) == allowed[0]
        self._past: tuple[dict[int, int], Float[np.ndarray, " d"] | None] | None = None
        self._agreement: dict[str, tuple[float, int]] = {}
        """Per term of alignment, the sum of its halves' correlations over the rounds of the stage, and their number."""
        self._measured: dict[str, Any] = {}
        """By term, what the first `select` of the round measured; a cluster floor asks again, of some candidates.
        `remember` ends the round, so this is no part of the state."""
        self._warned: set[str] = set()
        self.normalise = choice(self.name, "normalise", normalise, NORMALISE)
        self.coverage = choice(self.name, "coverage", coverage, ("distance", "cluster"))
        self.utility_weight = weight(self.name, "utility_weight", utility_weight)
        self.coverage_weight = weight(self.name, "coverage_weight", coverage_weight)
        self.future_weight = weight(self.name, "future_weight", future_weight)
        self.concentration_weight = weight(self.name, "concentration_weight", concentration_weight)
        self.refreshes = count(self.name, "refreshes", refreshes)
        self.clusters = None if clusters is None else count(self.name, "clusters", clusters)
        self.uds = UtilityDiversitySelector(
            choice(self.name, "utility", utility, UTILITIES),  # type: ignore[arg-type]
            weight(self.name, "diversity_weight", diversity_weight),
            count(self.name, "buffer_size", buffer_size),
            normalise,
            choice(self.name, "positions", positions, POSITIONS),  # type: ignore[arg-type]
        )
        weights = (self.utility_weight, self.coverage_weight, self.future_weight, self.concentration_weight)
        if not any((*weights, self.target_weight, self.earlier_weight)):
            raise RecipeError(
                f"selector '{self.name}': all four weights are 0, and target_weight and earlier_weight, too; "
                "leave at least one term on."
            )
        signals = list(self.uds.requires) if self.utility_weight else []
        if self.coverage_weight:
            signals.append("embedding" if self.coverage == "distance" else "cluster")
        if self.future_weight:
            signals += [self.aligned["future"]] if self.aligned else ["grad_sketch", "future_proxy"]
        if self.concentration_weight:
            signals += ["grad_sketch", "cluster"]
        if self.target_weight:
            signals.append(self.aligned["target"])
        if self.earlier_weight or self.drop_conflicts:
            signals.append(self.aligned["earlier"])
        if self.gradient_power:
            signals.append("grad_norm")
        if "cluster" in signals:
            signals.append("embedding")  # by which the history counts where later stages have other clusters
        self.requires = tuple(dict.fromkeys(signals))

    def begin_stage(self) -> None:
        self._past, self._agreement, self._measured = None, {}, {}

    def select(
        self,
        pool: Pool,
        signals: Signals,
        history: History,
        budget: int,
        rng: np.random.Generator,  # noqa: ARG002 - part of the contract
    ) -> Selection:
        by_id = id_order(pool.ids)
        sorted_signals, tokens = signals.take(by_id), pool.costs[by_id]
        check_budget(tokens, budget)
        terms, fixed = self._fixed_terms(sorted_signals, history)
        conflicts: Bool[np.ndarray, " n"] | None = None
        if self.drop_conflicts:
            conflicts = np.all(sorted_signals[self.aligned["earlier"]] < 0, axis=1)
            terms["conflict"] = conflicts.astype(np.float64)
        rows, terms["coverage"], terms["score"] = self._pick(sorted_signals, history, fixed, tokens, budget, conflicts)
        if self.future_weight and self.aligned:
            terms["reliability"] = np.full(len(pool), self.reliability)
        place = np.argsort(by_id)
        return Selection.of(pool, by_id[rows], {name: column[place] for name, column in terms.items()})

    def remember(self, pool: Pool, signals: Signals, rows: Int[np.ndarray, " k"]) -> None:
        self._measured = {}
        if self.utility_weight:
            self.uds.remember(pool, signals, rows)

    def _fixed_terms(
        self, signals: Signals, history: History
    ) -> tuple[dict[str, Float[np.ndarray, " n"]], Float[np.ndarray, " n"]]:
        """The terms that the round's own picks do not change, and their weighted sum."""
        n = len(signals.ids)
        utility = future = concentration = np.full(n, np.nan)
        total = np.zeros(n)
        future_weight, concentration_weight = self._weights(signals)
        if self.utility_weight:
            utility = scale(self.uds.terms(signals)["score"], self.normalise)
            total += self.utility_weight * utility
        if self.future_weight:
            if self.aligned:
                future = self._alignment("future", signals)
                future_weight *= self.reliability
            else:
                future = scale(proxy_cosine(signals, self.name, "set future_weight to 0"), self.normalise)
            total += future_weight * future
        if self.concentration_weight:
            concentration = scale(self._concentration(signals, history), self.normalise)
            total -= concentration_weight * concentration
        terms = {"utility": utility, "future": future, "concentration": concentration}
        for term, factor in (("target", self.target_weight), ("earlier", self.earlier_weight)):
            if factor:
                terms[term] = self._alignment(term, signals)
                reliability = self.reliability_of(term)
                terms[f"{term}_reliability"] = np.full(n, reliability)
                total += factor * reliability * terms[term]
        return terms, total

    def _alignment(self, term: str, signals: Signals) -> Float[np.ndarray, " n"]:
        """A term of alignment, scaled; its agreement in this round counts from now on."""
        halves = np.asarray(signals[self.aligned[term]], dtype=np.float64)
        if self.gradient_power:
            halves = halves * np.power(signals["grad_norm"].astype(np.float64), self.gradient_power)[:, None]
        self._measure_agreement(term, halves)
        return scale(halves.mean(axis=1), self.normalise)

    def _weights(self, signals: Signals) -> tuple[float, float]:  # noqa: ARG002 - a subclass measures them
        """η and ρ of this round; the rows of ``signals`` are in the order of their ids."""
        return self.future_weight, self.concentration_weight

    @property
    def reliability(self) -> float:
        """Spearman–Brown reliability of p so far in this stage, in [0, 1]."""
        return self.reliability_of("future")

    def reliability_of(self, term: str) -> float:
        """Reliability of a term of alignment (`ALIGNMENT_ITEMS`) so far in this stage, in [0, 1]."""
        total, rounds = self._agreement.get(term, (0.0, 0))
        r = total / rounds if rounds else 0.0
        return max(0.0, 2 * r / (1 + r)) if r > -1 else 0.0

    def _measure_agreement(self, term: str, halves: Float[np.ndarray, "n 2"]) -> None:
        """Add this round's correlation of the term by the two halves of its items, once a round."""
        if term in self._measured:
            self._agreement[term] = self._measured[term]
            return
        self._add_agreement(term, halves)
        self._measured[term] = self._agreement.get(term, (0.0, 0))

    def _add_agreement(self, term: str, halves: Float[np.ndarray, "n 2"]) -> None:
        first, second = halves.T
        if first.std() > 0 and second.std() > 0:
            r = float(np.corrcoef(first, second)[0, 1])
            total, rounds = self._agreement.get(term, (0.0, 0))
            self._agreement[term] = (total + r, rounds + 1)
            finding = f"disagree about the candidates (r = {r:.2f})"
        elif len(halves) > 1 and (term != "earlier" or halves.any()):  # without earlier stages, 0 by definition
            finding = "cannot be compared, as one of them says the same of every candidate"
        else:
            return
        if not self.reliability_of(term) and term not in self._warned:
            self._warned.add(term)
            _, items, advice = ALIGNMENT_ITEMS[term]
            _log.warning(
                "%s: the halves of the %s %s, so the %s term has no weight. %s", self.name, items, finding, term, advice
            )

    def _before(self, history: History) -> tuple[dict[int, int], Float[np.ndarray, " d"] | None]:
        """Tokens by cluster and top direction of the history that ``a`` reads."""
        if not self.past_only:
            return history.cluster_tokens, history.top_gradient_direction()
        if self._past is None:
            self._past = dict(history.cluster_tokens), history.top_gradient_direction()
        return self._past

    def _concentration(self, signals: Signals, history: History) -> Float[np.ndarray, " n"]:
        cluster_tokens, top = self._before(history)
        present, of_row = np.unique(signals["cluster"], return_inverse=True)
        clusters = self.clusters or len({*cluster_tokens, *present.tolist()})
        spent = np.array([cluster_tokens.get(key, 0) for key in present.tolist()], dtype=np.float64)
        total = sum(cluster_tokens.values())
        value = np.maximum(0.0, spent / total - 1.0 / clusters)[of_row] if total else np.zeros(len(of_row))
        if top is not None:
            check_width(signals["grad_sketch"], top, "history")
            value = value + np.square(cosine(signals["grad_sketch"], top), dtype=np.float64)
        return value

    def _pick(
        self,
        signals: Signals,
        history: History,
        fixed: Float[np.ndarray, " n"],
        tokens: Int[np.ndarray, " n"],
        budget: int,
        last: Bool[np.ndarray, " n"] | None,
    ) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Greedy picks in blocks: rows in pick order, and every row's last coverage and score.

        Rows in ``last`` are picked if the others do not fill the budget.
        """
        coverage, score = np.full(len(fixed), np.nan), fixed.copy()
        picks: list[int] = []
        left = int(budget)
        for running in [np.ones(len(fixed), dtype=bool)] if last is None else [~last, last.copy()]:
            covered = self._coverage_of(signals, history)  # anew: it forgets the rows that take no part
            share = budget / self.refreshes if covered else budget
            if covered and picks:
                covered.add(np.asarray(picks))
            while (rows := np.flatnonzero(running & (tokens <= left))).size:
                running[:] = False
                running[rows] = True
                if covered:
                    coverage[rows] = scale(covered.values(rows), self.normalise)
                    score[rows] = fixed[rows] + self.coverage_weight * coverage[rows]
                block, left = _best(score, rows, tokens, left, max(left - share, 0))
                picks += block
                running[block] = False
                if covered:
                    covered.add(np.asarray(block))
        return np.asarray(picks, dtype=np.int64), coverage, score

    def _coverage_of(self, signals: Signals, history: History) -> _Distance | _ClusterCount | None:
        if not self.coverage_weight:
            return None
        if self.coverage == "distance":
            return _Distance(signals["embedding"], history)
        return _ClusterCount(signals["cluster"], history)

    def state_dict(self) -> dict[str, Any]:
        past = {} if self._past is None else {"tokens": dict(self._past[0]), "top": self._past[1]}
        return {
            **self.uds.state_dict(),
            "past": past,
            "agreement": {term: list(pair) for term, pair in self._agreement.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.uds.load_state_dict(state)
        past = state["past"]
        self._past = (dict(past["tokens"]), past["top"]) if past else None
        self._agreement = {term: (float(total), int(rounds)) for term, (total, rounds) in state["agreement"].items()}


def _best(
    score: Float[np.ndarray, " n"],
    rows: Int[np.ndarray, " m"],
    tokens: Int[np.ndarray, " n"],
    left: int,
    goal: float,
) -> tuple[list[int], int]:
    """Pick rows by falling score (ties: the lower row), each if it fits, until at most ``goal`` tokens are left.

    As in `fill_by_score`, only parts that are reached are sorted.

    Returns:
        The picks in order, and the tokens left.
    """
    picks: list[int] = []
    keys = -score[rows]
    while rows.size:
        expected = int(1.1 * (left - goal) / max(float(tokens[rows].mean()), 1.0)) + _MARGIN
        near = np.ones(len(rows), dtype=bool)
        if len(rows) > 2 * expected:
            near = ~(keys > np.partition(keys, expected)[expected])
        head = rows[near][np.argsort(keys[near], kind="stable")]
        for row, cost in zip(head.tolist(), tokens[head].tolist(), strict=True):
            if cost <= left:
                picks.append(row)
                left -= cost
                if left <= goal:
                    return picks, left
        later = ~near & (tokens[rows] <= left)
        rows, keys = rows[later], keys[later]
    return picks, left


class _Distance:
    """Distance to the nearest remembered or picked embedding; zero for all while there is none.

    Only rows that take part meet the new picks, in one product per block (`Nearest`).
    """

    def __init__(self, embeddings: Float[np.ndarray, "n d"], history: History) -> None:
        if len(history.embeddings):
            check_width(embeddings, history.embeddings[0], "history")
        rows = np.ascontiguousarray(embeddings)
        self.table = Nearest(rows, mean_row(rows), history.embeddings if len(history.embeddings) else None)
        self.all_rows = np.arange(len(rows))
        self.points = 0
        """Remembered and picked embeddings so far."""
        if self.table.others is not None:
            self.points = len(self.table.others.rows)
            self.table.lower(self.all_rows, self.table.others, np.arange(self.points), keep=True)
        self.waiting = np.zeros(0, dtype=np.int64)
        """Picks that no row has met yet."""

    def values(self, rows: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
        """Distances of these rows; a row that is left out once must not come back."""
        if 2 * len(rows) > len(self.all_rows):
            retired = np.ones(len(self.all_rows), dtype=bool)
            retired[rows] = False
            self.table.squared[retired] = 0.0
            self.table.lower(self.all_rows, self.table.cloud, self.waiting, keep=True)
        else:
            self.table.lower(rows, self.table.cloud, self.waiting)
        self.points += len(self.waiting)
        self.waiting = self.waiting[:0]
        return np.sqrt(self.table.squared[rows]) if self.points else np.zeros(len(rows))

    def add(self, picks: Int[np.ndarray, " b"]) -> None:
        self.waiting = np.concatenate([self.waiting, picks])


class _ClusterCount:
    """−log(1 + selected examples of the candidate's cluster)."""

    def __init__(self, clusters: Int[np.ndarray, " n"], history: History) -> None:
        present, self.of_row = np.unique(clusters, return_inverse=True)
        self.counts = np.array([history.cluster_counts.get(key, 0) for key in present.tolist()], dtype=np.float64)

    def values(self, rows: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
        return -np.log1p(self.counts[self.of_row[rows]])

    def add(self, picks: Int[np.ndarray, " b"]) -> None:
        np.add.at(self.counts, self.of_row[picks], 1.0)
