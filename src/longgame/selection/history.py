"""What earlier stages and rounds selected, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.errors import PluginError, ResumeError
from longgame.seeding import generator
from longgame.selection.algorithms.directions import FrequentDirections
from longgame.selection.base import Selection
from longgame.signals.base import Signals


class History:
    """The selected history H_t and S_{1:t−1} of eq. 5; selectors read it, `update` alone writes it.

    It holds only what the signals of each round carried: a selector that asks for no embedding has a history without
    embeddings. Size is bounded whatever the run's length: a reservoir of ``max_embeddings`` embeddings (each selected
    example is in it with the same probability), a frequent-directions sketch of 2·``gradient_rows`` gradient rows, two
    counters per cluster, and the last ``max_ids`` ids.

    Args:
        max_embeddings: size of the reservoir.
        gradient_rows: rows of the gradient sketch; its error bound falls as 1 / (gradient_rows + 1).
        seed: seed of the reservoir's own generator (its state is saved; no selector's draws disturb it).
        max_ids: how many of the latest ids are kept.
    """

    def __init__(self, max_embeddings: int = 1024, gradient_rows: int = 32, seed: int = 0, max_ids: int = 4096) -> None:
        for name, value in (
            ("max_embeddings", max_embeddings),
            ("gradient_rows", gradient_rows),
            ("max_ids", max_ids),
        ):
            if value < 1:
                raise PluginError(f"History: {name} is {value}; it must be at least 1.")
        self.max_embeddings = max_embeddings
        self.n_selected = 0
        """Examples selected so far (an example picked twice counts twice)."""
        self.tokens = 0
        """Prompt + response tokens selected so far."""
        self.cluster_tokens: dict[int, int] = {}
        """Tokens selected per cluster index; a cluster that was offered but never picked stands with 0."""
        self.cluster_counts: dict[int, int] = {}
        """Examples selected per cluster index, with the same keys."""
        self.gradients = FrequentDirections(gradient_rows)
        """Sketch of the selected gradients: ``.energy``, ``.error_bound``, ``.matrix``."""
        self._ids: deque[str] = deque(maxlen=max_ids)
        self._reservoir: Float[np.ndarray, "max_embeddings d"] = np.zeros((0, 0), dtype=np.float32)
        self._embeddings_seen = 0
        self._rng = generator(seed, "history", "reservoir")

    def update(self, selection: Selection, pool: Pool, signals: Signals) -> None:
        """Remember a selection from ``pool``, with whichever of cluster, embedding and grad_sketch ``signals`` carries.

        Raises:
            PluginError: an embedding or gradient sketch has another width than those before.
        """
        rows = np.asarray(selection.rows, dtype=np.int64)
        tokens = pool.tokens[rows]
        self.n_selected += len(rows)
        self.tokens += int(tokens.sum())
        self._ids.extend(selection.ids)
        if "cluster" in signals:
            offered = signals["cluster"]
            for cluster in np.unique(offered).tolist():
                self.cluster_tokens.setdefault(cluster, 0)
                self.cluster_counts.setdefault(cluster, 0)
            for cluster, cost in zip(offered[rows].tolist(), tokens.tolist(), strict=True):
                self.cluster_tokens[cluster] += cost
                self.cluster_counts[cluster] += 1
        if "embedding" in signals:
            self._remember(signals["embedding"][rows])
        if "grad_sketch" in signals:
            self.gradients.update(signals["grad_sketch"][rows])

    def _remember(self, embeddings: Float[np.ndarray, "k d"]) -> None:
        """Algorithm R (Vitter 1985): the i-th embedding replaces a random one with probability max_embeddings / i."""
        width = embeddings.shape[1]
        if not self._embeddings_seen:
            self._reservoir = np.zeros((self.max_embeddings, width), dtype=np.float32)
        if width != self._reservoir.shape[1]:
            raise PluginError(
                f"an embedding of width {width} came after ones of width {self._reservoir.shape[1]}; "
                "keep one embedding model through a run."
            )
        for embedding in embeddings:
            self._embeddings_seen += 1
            place = self._embeddings_seen - 1
            if place >= self.max_embeddings:
                place = int(self._rng.integers(self._embeddings_seen))
            if place < self.max_embeddings:
                self._reservoir[place] = embedding

    @property
    def embeddings(self) -> Float[np.ndarray, "m d"]:
        """Uniform sample of the selected embeddings, float32; m = 0 before the first. A read-only view."""
        view = self._reservoir[: min(self._embeddings_seen, self.max_embeddings)]
        view.flags.writeable = False
        return view

    @property
    def recent_ids(self) -> tuple[str, ...]:
        """The latest selected ids, oldest first."""
        return tuple(self._ids)

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
            "ids": list(self._ids),
            "clusters": np.asarray(clusters, dtype=np.int64),
            "cluster_tokens": np.asarray([self.cluster_tokens[key] for key in clusters], dtype=np.int64),
            "cluster_counts": np.asarray([self.cluster_counts[key] for key in clusters], dtype=np.int64),
            "embeddings": np.array(self.embeddings),
            "embeddings_seen": self._embeddings_seen,
            "rng": self._rng.bit_generator.state,
            "gradients": self.gradients.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned.

        Raises:
            ResumeError: the state was saved by a history of another size.
        """
        saved = np.asarray(state["embeddings"], dtype=np.float32)
        seen = int(state["embeddings_seen"])
        if len(saved) != min(seen, self.max_embeddings):
            raise ResumeError(
                f"the saved history holds {len(saved)} of {seen} embeddings but max_embeddings is "
                f"{self.max_embeddings}; resume with the setting the run was started with."
            )
        self.gradients.load_state_dict(state["gradients"])
        self.n_selected, self.tokens = int(state["n_selected"]), int(state["tokens"])
        self._ids = deque(state["ids"], maxlen=self._ids.maxlen)
        clusters = np.asarray(state["clusters"]).tolist()
        self.cluster_tokens = dict(zip(clusters, np.asarray(state["cluster_tokens"]).tolist(), strict=True))
        self.cluster_counts = dict(zip(clusters, np.asarray(state["cluster_counts"]).tolist(), strict=True))
        self._reservoir = np.zeros((self.max_embeddings if seen else 0, saved.shape[1]), dtype=np.float32)
        self._reservoir[: len(saved)] = saved
        self._embeddings_seen = seen
        self._rng.bit_generator.state = state["rng"]
