"""One round's `Selection`, and the `History` of all rounds in bounded memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import Pool, is_weight
from longgame.errors import PluginError, ResumeError
from longgame.seeding import generator
from longgame.selection.algorithms.directions import FrequentDirections
from longgame.signals.base import Signals, check_width

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """The picks of one round, with the terms that explain every decision."""

    rows: Int[np.ndarray, " k"]
    """Rows of the pool that `Selector.select` saw, in pick order."""
    tokens: int
    """Tokens spent, as the pool's budget counts them (`Pool.costs`)."""
    scores: Mapping[str, Float[np.ndarray, " n"]] = field(default_factory=dict)
    """Per term, one value for every *candidate* in pool order; ``score`` decided."""
    weights: Float[np.ndarray, " k"] | None = None
    """Factor of each pick's loss, aligned with ``rows``; None: 1 for all. A step's loss is Σ wᵢ · (NLL of pick i's
    learned tokens) over the number of learned tokens, so the weights' mean multiplies the learning rate. A selector
    therefore scales its weights to a mean of 1, or to an expected mean of 1 where its estimate must stay unbiased."""

    @staticmethod
    def of(
        pool: Pool,
        rows: Int[np.ndarray, " k"],
        scores: Mapping[str, np.ndarray] | None = None,
        weights: Float[np.ndarray, " k"] | None = None,
    ) -> Selection:
        """Build the selection of these rows of the pool, in this order.

        Raises:
            PluginError: the rows are not whole numbers (a mask is not), or not rows of the pool; the weights are no
                finite numbers above 0, one for each pick.
        """
        array = np.asarray(rows)
        if array.ndim != 1 or (len(array) and array.dtype.kind not in "iu"):
            raise PluginError(
                f"a selection was made of an array of {array.dtype} with shape {array.shape}; give the row numbers of "
                "the picks in pick order (of a mask: np.flatnonzero(mask))."
            )
        rows = array.astype(np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(pool)):
            raise PluginError(f"a selection was made of rows outside 0…{len(pool) - 1}; give rows of the pool.")
        return Selection(rows, int(pool.costs[rows].sum()), dict(scores or {}), checked_weights(weights, len(rows)))


def checked_weights(weights: Any, picks: int) -> Float[np.ndarray, " k"] | None:
    """Return a float64 copy of the weights of so many picks; None stays None.

    Raises:
        PluginError: they are no finite numbers above 0, one for each pick.
    """
    if weights is None:
        return None
    try:
        array = np.asarray(weights)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors with a gradient or on a device
        raise PluginError(f"the weights are a {type(weights).__name__} that is no array ({error}).") from error
    if array.shape != (picks,) or array.dtype.kind not in "iuf":
        raise PluginError(
            f"the weights of a selection are an array of {array.dtype} with shape {array.shape} for {picks} picks. "
            "Give one number above 0 for each pick, in pick order, or None for equal weights."
        )
    wrong = np.flatnonzero(~is_weight(array.astype(np.float64)))
    if len(wrong):
        raise PluginError(
            f"the weight of pick {wrong[0] + 1} of {picks} is {array[wrong[0]]}. Give finite numbers above 0, and "
            "leave out a pick that is not to be learned."
        )
    return array.astype(np.float64)


class History:
    """The selected history H_t and S_{1:t−1} of eq. 5; selectors read it, only `update` and `count_anew` write it.

    It holds what the signals of each round carried: without the signal ``embedding`` there are no embeddings. Its size
    does not grow with the run: a reservoir of ``max_embeddings`` embeddings (each selected example is in it with the
    same probability), a frequent-directions sketch of 2·``gradient_rows`` gradient rows, and two counters per cluster.
    Clusters that are fitted anew for a later stage are told by `count_anew`.

    Args:
        max_embeddings: size of the reservoir.
        gradient_rows: rows of the gradient sketch; its error bound falls as 1 / (gradient_rows + 1).
        seed: seed of the reservoir's own generator (its state is saved; no selector's draws disturb it).
    """

    def __init__(self, max_embeddings: int = 1024, gradient_rows: int = 32, seed: int = 0) -> None:
        for name, value in (("max_embeddings", max_embeddings), ("gradient_rows", gradient_rows)):
            if value < 1:
                raise PluginError(f"History: {name} is {value}; it must be at least 1.")
        self.max_embeddings = max_embeddings
        self.n_selected = 0
        """Examples selected so far (an example picked twice counts twice)."""
        self.tokens = 0
        """Prompt + response tokens selected so far."""
        self.cluster_tokens: dict[int, int] = {}
        """Tokens selected per cluster index; 0 for a cluster that was offered but never picked."""
        self.cluster_counts: dict[int, int] = {}
        """Examples selected per cluster index, with the same keys."""
        self.gradients = FrequentDirections(gradient_rows)
        """Sketch of the selected gradients: ``.energy``, ``.error_bound``, ``.matrix``."""
        self._reservoir: Float[np.ndarray, "max_embeddings d"] = np.zeros((0, 0), dtype=np.float32)
        self._reservoir_tokens: Int[np.ndarray, " max_embeddings"] = np.zeros(0, dtype=np.int64)
        self._embedding_count = 0
        self._rng = generator(seed, "history", "reservoir")

    def update(self, selection: Selection, pool: Pool, signals: Signals) -> None:
        """Record a selection from ``pool``, with the cluster, embedding and grad_sketch that ``signals`` carries.

        Raises:
            PluginError: an embedding or gradient sketch has another width than those before.
        """
        rows = np.asarray(selection.rows, dtype=np.int64)
        tokens = pool.tokens[rows]
        self.n_selected += len(rows)
        self.tokens += int(tokens.sum())
        if "cluster" in signals:
            clusters = signals["cluster"]
            for cluster in np.unique(clusters).tolist():
                self.cluster_tokens.setdefault(cluster, 0)
                self.cluster_counts.setdefault(cluster, 0)
            for cluster, cost in zip(clusters[rows].tolist(), tokens.tolist(), strict=True):
                self.cluster_tokens[cluster] += cost
                self.cluster_counts[cluster] += 1
        if "embedding" in signals:
            self._remember(signals["embedding"][rows], tokens)
        if "grad_sketch" in signals:
            self.gradients.update(signals["grad_sketch"][rows])

    def count_anew(self, clusters: Int[np.ndarray, " m"]) -> None:
        """Count all picks by other clusters, which were fitted with `embeddings` among their points.

        Exact while the reservoir holds every pick; later the clusters' shares are those of this uniform sample.

        Args:
            clusters: cluster index of each row of `embeddings`; empty: no embedding was recorded, and nothing is known
                of the picks' clusters.
        """
        if any(self.cluster_counts.values()) and not len(clusters):
            _log.warning(
                "the history has counted %d picks by clusters of an earlier stage and holds no embeddings, so it "
                "begins to count anew. Name 'embedding' beside 'cluster' in the selector's requires.",
                self.n_selected,
            )
        sample = max(1, len(clusters))
        tokens = self._reservoir_tokens[: len(clusters)]
        self.cluster_counts, self.cluster_tokens = {}, {}
        for cluster in np.unique(clusters).tolist():
            inside = clusters == cluster
            self.cluster_counts[cluster] = round(self.n_selected * int(inside.sum()) / sample)
            self.cluster_tokens[cluster] = round(self.tokens * int(tokens[inside].sum()) / max(1, int(tokens.sum())))

    def _remember(self, embeddings: Float[np.ndarray, "k d"], tokens: Int[np.ndarray, " k"]) -> None:
        """Algorithm R (Vitter 1985): the i-th embedding replaces a random one with probability max_embeddings / i."""
        width = embeddings.shape[1]
        if not self._embedding_count:
            self._reservoir = np.zeros((self.max_embeddings, width), dtype=np.float32)
            self._reservoir_tokens = np.zeros(self.max_embeddings, dtype=np.int64)
        check_width(width, self._reservoir)
        for embedding, cost in zip(embeddings, tokens.tolist(), strict=True):
            self._embedding_count += 1
            place = self._embedding_count - 1
            if place >= self.max_embeddings:
                place = int(self._rng.integers(self._embedding_count))
            if place < self.max_embeddings:
                self._reservoir[place] = embedding
                self._reservoir_tokens[place] = cost

    @property
    def embeddings(self) -> Float[np.ndarray, "m d"]:
        """Uniform sample of the selected embeddings, float32; m = 0 before the first. A read-only view."""
        view = self._reservoir[: min(self._embedding_count, self.max_embeddings)]
        view.flags.writeable = False
        return view

    def top_gradient_direction(self) -> Float[np.ndarray, " d"] | None:
        """Unit vector along the top eigenvector of the sketched selected-gradient covariance; None without gradients.

        The eigenvalue behind it is below the true one by at most ``gradients.error_bound``.
        """
        return self.gradients.top_direction()

    def state_dict(self) -> dict[str, Any]:
        """NumPy arrays, strings and plain numbers from which `load_state_dict` continues bit for bit."""
        clusters = sorted(self.cluster_tokens)
        return {
            "n_selected": self.n_selected,
            "tokens": self.tokens,
            "clusters": np.asarray(clusters, dtype=np.int64),
            "cluster_tokens": np.asarray([self.cluster_tokens[key] for key in clusters], dtype=np.int64),
            "cluster_counts": np.asarray([self.cluster_counts[key] for key in clusters], dtype=np.int64),
            "embeddings": np.array(self.embeddings),
            "embedding_tokens": self._reservoir_tokens[: len(self.embeddings)].copy(),
            "embedding_count": self._embedding_count,
            "rng": self._rng.bit_generator.state,
            "gradients": self.gradients.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ResumeError: the state was saved by a history of another size.
        """
        saved = np.asarray(state["embeddings"], dtype=np.float32)
        count = int(state["embedding_count"])
        if len(saved) != min(count, self.max_embeddings):
            raise ResumeError(
                f"the saved history holds {len(saved)} of {count} embeddings but max_embeddings is "
                f"{self.max_embeddings}; resume with the setting the run was started with."
            )
        self.gradients.load_state_dict(state["gradients"])
        self.n_selected, self.tokens = int(state["n_selected"]), int(state["tokens"])
        clusters = np.asarray(state["clusters"]).tolist()
        self.cluster_tokens = dict(zip(clusters, np.asarray(state["cluster_tokens"]).tolist(), strict=True))
        self.cluster_counts = dict(zip(clusters, np.asarray(state["cluster_counts"]).tolist(), strict=True))
        self._reservoir = np.zeros((self.max_embeddings if count else 0, saved.shape[1]), dtype=np.float32)
        self._reservoir[: len(saved)] = saved
        # A state of an older version has no tokens: all count alike.
        costs = np.asarray(state.get("embedding_tokens", np.ones(len(saved))), dtype=np.int64)
        self._reservoir_tokens = np.zeros(len(self._reservoir), dtype=np.int64)
        self._reservoir_tokens[: len(saved)] = costs
        self._embedding_count = count
        self._rng.bit_generator.state = state["rng"]
