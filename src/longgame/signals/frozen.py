"""Signals of the untouched base model, computed once per example: losses, embeddings, clusters, difficulty, grades.

``cluster`` and ``difficulty`` are fitted over all candidates of all stages. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import Pool
from longgame.errors import DataError, PluginError, unknown
from longgame.seeding import stream_seed
from longgame.signals.base import Past, check_finite, check_width

COLUMNS = ("embedding", "base_loss", "difficulty", "quality", "cluster")
"""Columns of the frozen pass of a seed, in the order of its file; those of `GRADED` follow where a run needs them."""
GRADED = ("grade", "complexity")
"""Columns that only a named quality source gives."""
_MINI_BATCH_FROM = 50_000
"""Distinct examples from which k-means runs on mini-batches."""


class FrozenSignals:
    """Columns that the untouched base model or the text fixes, addressed by example id.

    Args:
        ids: n distinct example ids.
        columns: row-aligned arrays, by names of `COLUMNS`.

    Raises:
        DataError: a column of the wrong length, or a repeated id.
    """

    def __init__(self, ids: Sequence[str], columns: Mapping[str, np.ndarray]) -> None:
        self.ids = tuple(ids)
        for name, column in columns.items():
            if len(column) != len(self.ids):
                raise DataError(f"frozen signals need '{name}' for {len(self.ids)} examples, but have {len(column)}.")
        self._columns = {
            name: np.asarray(columns[name], dtype=np.int64 if name == "cluster" else np.float32)
            for name in (*COLUMNS, *GRADED)
            if name in columns
        }
        self._index = {sample_id: row for row, sample_id in enumerate(self.ids)}
        if len(self._index) != len(self.ids):
            raise DataError("frozen signals have an example id twice; build them with FrozenSignals.build().")

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def names_all(self, pool: Pool) -> bool:
        """Whether each of the pool's examples has a row."""
        return all(sample_id in self._index for sample_id in pool.ids)

    @classmethod
    def build(
        cls,
        pools: Sequence[Pool],
        columns: Mapping[str, Sequence[np.ndarray]],
        clusters: int,
        seed: int,
        past: Past | None = None,
    ) -> FrozenSignals:
        """Concatenate the stages' columns, rank difficulty within each pool and cluster over all of them.

        difficulty = (mid-rank of base_loss − ½)/n within the stage's pool: in (0, 1), mean ½, ties share a value
        (FORMULAS: mean difficulty). cluster: see the function `cluster`. An example of several pools keeps the row of
        the first.

        Args:
            pools: candidates of each stage.
            columns: ``embedding``, ``base_loss`` and optionally ``quality``: one array per stage, row-aligned.
            clusters: k, at least 1.
            seed: of the k-means initialization.
            past: see the function `cluster`.

        Raises:
            DataError: no example at all, or arrays that do not match their pools. PluginError: ``clusters`` below 1.
            NumericalError: a value is NaN or infinite (names the example).
        """
        from scipy.stats import rankdata  # slow to import, and the closed-form world does not need it

        if clusters < 1:
            raise PluginError(f"clusters is {clusters}; k-means needs at least 1.")
        if not sum(len(pool) for pool in pools):
            raise DataError("frozen signals were asked for, but every pool is empty.")
        for name, parts in columns.items():
            sizes = ([len(part) for part in parts], [len(pool) for pool in pools])
            if sizes[0] != sizes[1]:
                raise DataError(f"'{name}' has {sizes[0]} rows for pools of {sizes[1]}; give one row per candidate.")
        all_ids = [sample_id for pool in pools for sample_id in pool.ids]
        place = {sample_id: row for row, sample_id in reversed(list(enumerate(all_ids)))}
        first = sorted(place.values())
        ids = [all_ids[row] for row in first]
        joined = {name: np.concatenate([np.asarray(part) for part in parts])[first] for name, parts in columns.items()}
        for name, column in joined.items():
            check_finite(name, column, ids)
        ranks = [(rankdata(part, method="average") - 0.5) / max(1, len(part)) for part in columns["base_loss"]]
        joined["difficulty"] = np.concatenate(ranks)[first]
        joined["cluster"] = cluster(ids, joined["embedding"], clusters, seed, past)
        return cls(ids, joined)

    def extended(self, pool: Pool, columns: Mapping[str, np.ndarray]) -> FrozenSignals:
        """Add rows for examples that are no candidates (proxy items) without moving any cluster.

        Their cluster is the one whose mean normalized embedding is nearest, their difficulty the percentile of
        base_loss among all candidates. An example that has a row keeps it.

        Raises:
            DataError: a column does not have one row per example of the pool.
        """
        for name, column in columns.items():
            if len(column) != len(pool):
                raise DataError(f"'{name}' has {len(column)} rows for {len(pool)} examples; give one row for each.")
        fresh = np.asarray([row for row, name in enumerate(pool.ids) if name not in self._index], dtype=np.int64)
        added = {name: np.asarray(column)[fresh] for name, column in columns.items()}
        units, k = _unit(self._columns["embedding"]), int(self._columns["cluster"].max()) + 1
        centers = np.stack([units[self._columns["cluster"] == number].mean(axis=0) for number in range(k)])
        gaps = np.square(_unit(added["embedding"])[:, None] - centers).sum(axis=2)
        added["cluster"] = gaps.argmin(axis=1)
        losses = np.sort(self._columns["base_loss"])
        left, right = (np.searchsorted(losses, added["base_loss"], side=side) for side in ("left", "right"))
        added["difficulty"] = (left + right) / (2 * len(losses))
        ids = (*self.ids, *(pool.ids[row] for row in fresh))
        return FrozenSignals(ids, {name: np.concatenate([self._columns[name], added[name]]) for name in self._columns})

    def lookup(self, pool: Pool, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return these columns for the pool's examples, row-aligned (float32; ``cluster`` int64).

        Raises:
            PluginError: a column that is not here. DataError: an example that was not in any pool of `build`.
        """
        for name in names:
            if name not in self._columns:
                raise PluginError("frozen signals were asked for an " + unknown("signal", name, self._columns))
        missing = [sample_id for sample_id in pool.ids if sample_id not in self._index]
        if missing:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DataError(
                f"example {missing[0]}{others} is unknown to the frozen signals ({len(self.ids)} examples). "
                "Build them from every stage's candidates."
            )
        rows = np.asarray([self._index[sample_id] for sample_id in pool.ids], dtype=np.int64)
        return {name: self._columns[name][rows] for name in names}

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as numeric arrays (ids: UTF-8 bytes, zero-padded, uint8) for safetensors or npz."""
        encoded = [sample_id.encode() for sample_id in self.ids]
        width = max(map(len, encoded), default=1)
        padded = b"".join(item.ljust(width, b"\0") for item in encoded)
        return {"ids": np.frombuffer(padded, dtype=np.uint8).reshape(len(encoded), width).copy(), **self._columns}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], names: Sequence[str] = COLUMNS) -> FrozenSignals:
        """Restore columns from what `to_arrays` returned.

        Raises:
            DataError: arrays are missing or do not fit together.
        """
        names = (*names, *(name for name in GRADED if name in arrays and name not in names))
        missing = [name for name in ("ids", *names) if name not in arrays]
        if missing or np.asarray(arrays["ids"]).dtype != np.uint8:
            raise DataError(f"the stored frozen signals lack '{(missing or ['ids'])[0]}'; compute them again.")
        ids = [bytes(row).rstrip(b"\0").decode() for row in np.asarray(arrays["ids"])]
        return cls(ids, {name: arrays[name] for name in names})


def cluster(
    ids: Sequence[str], embeddings: Float[np.ndarray, "n d"], clusters: int, seed: int, past: Past | None = None
) -> Int[np.ndarray, " n"]:
    """Return the k-means cluster of each L2-normalized embedding, numbered by falling size (ties: smallest id first).

    Deterministic for a seed, whatever the row order and the number of threads. From 50 000 examples on, mini-batches.
    With fewer distinct points (to 6 decimals) than ``clusters``, k is their number. A zero embedding stays zero.

    Args:
        past: what was selected before. The embeddings that it keeps are points of the k-means, too, and it counts by
            these clusters from now on, so that a cluster's number means the same in all stages.

    Raises:
        PluginError: the embeddings of the past have another width.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    order = sorted(range(len(ids)), key=ids.__getitem__)
    points = _unit(np.asarray(embeddings)[order])
    before = np.zeros((0, points.shape[1])) if past is None else past.embeddings
    if len(before):
        check_width(points.shape[1], before)
        points = np.concatenate([points, _unit(before)])
    k = min(int(clusters), len(np.unique(points.round(6), axis=0)))
    state = stream_seed(seed, "k-means") % 2**32
    method = MiniBatchKMeans if len(points) >= _MINI_BATCH_FROM else KMeans
    with threadpool_limits(limits=1):  # the order in which threads add up centers would decide the last digits
        fitted = method(n_clusters=k, n_init=4, random_state=state).fit_predict(points)
    labels = fitted[: len(ids)]
    sizes = np.bincount(labels, minlength=k)
    leader = np.full(k, len(labels))
    np.minimum.at(leader, labels, np.arange(len(labels)))
    number = np.empty(k, dtype=np.int64)
    number[np.lexsort((leader, -sizes))] = np.arange(k)
    result = np.empty(len(ids), dtype=np.int64)
    result[order] = number[labels]
    if past is not None:
        past.count_anew(number[fitted[len(ids) :]])
    return result


def _unit(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows of length 1, in float64; a zero row stays zero."""
    wide = np.asarray(rows, dtype=np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
