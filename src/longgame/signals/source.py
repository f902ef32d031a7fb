"""Signals that the untouched base model or the text fixes: computed once per seed, looked up by id ever after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits

from longgame.data.examples import Pool
from longgame.errors import DataError, NumericalError, PluginError, unknown
from longgame.seeding import stream_seed

COLUMNS = ("embedding", "base_loss", "difficulty", "quality", "cluster")
_MINI_BATCH_FROM = 50_000
"""Distinct examples from which k-means runs on mini-batches."""


class FrozenSignals:
    """Rows of embedding, base_loss, difficulty, quality and cluster, addressed by example id.

    Args:
        ids: n distinct example ids.
        columns: one row-aligned array for each name in `COLUMNS`.

    Raises:
        DataError: a missing column, a column of the wrong length, or an id that stands twice.
    """

    def __init__(self, ids: Sequence[str], columns: Mapping[str, np.ndarray]) -> None:
        self.ids = tuple(ids)
        for name in COLUMNS:
            rows = len(columns[name]) if name in columns else 0
            if rows != len(self.ids):
                raise DataError(f"frozen signals need '{name}' for {len(self.ids)} examples, but hold {rows} rows.")
        self._columns = {
            name: np.asarray(columns[name], dtype=np.int64 if name == "cluster" else np.float32) for name in COLUMNS
        }
        self._index = {sample_id: row for row, sample_id in enumerate(self.ids)}
        if len(self._index) != len(self.ids):
            raise DataError("frozen signals hold an example id twice; build them with FrozenSignals.build().")

    @classmethod
    def build(
        cls,
        pools: Sequence[Pool],
        embeddings: Sequence[Float[np.ndarray, "n d"]],
        base_loss: Sequence[Float[np.ndarray, " n"]],
        quality: Sequence[Float[np.ndarray, " n"]],
        clusters: int,
        seed: int,
    ) -> FrozenSignals:
        """Gather the stages' columns; rank difficulty within each pool and cluster over all of them.

        difficulty = (mid-rank of base_loss − ½)/n within the stage's pool: in (0, 1), mean ½, ties share a value
        (FORMULAS: mean difficulty). cluster = k-means on L2-normalised embeddings of all stages together, numbered by
        falling size; examples are sorted by id first, so the order of stages or candidates changes nothing. With fewer
        distinct normalised embeddings (to 6 decimals) than ``clusters``, k is their number.

        An example that stands in several pools keeps the row of the first.

        Args:
            pools: candidates of each stage.
            embeddings, base_loss, quality: one array per stage, row-aligned with its pool.
            clusters: k, at least 1.
            seed: of the k-means initialisation.

        Raises:
            DataError: no example at all, or arrays that do not match their pools. PluginError: ``clusters`` below 1.
            NumericalError: a value is NaN or infinite (names the example).
        """
        if clusters < 1:
            raise PluginError(f"clusters is {clusters}; k-means needs at least 1.")
        given = {"embedding": embeddings, "base_loss": base_loss, "quality": quality}
        for name, parts in given.items():
            if [len(part) for part in parts] != [len(pool) for pool in pools]:
                sizes = ([len(part) for part in parts], [len(pool) for pool in pools])
                raise DataError(f"'{name}' has {sizes[0]} rows for pools of {sizes[1]}; give one row per candidate.")
        if not sum(len(pool) for pool in pools):
            raise DataError("frozen signals were asked for, but every pool is empty.")
        all_ids = [sample_id for pool in pools for sample_id in pool.ids]
        place = {sample_id: row for row, sample_id in reversed(list(enumerate(all_ids)))}
        first = sorted(place.values())
        ids = [all_ids[row] for row in first]
        columns = {name: np.concatenate([np.asarray(part) for part in parts])[first] for name, parts in given.items()}
        for name, column in columns.items():
            good = np.isfinite(column.reshape(len(column), -1)).all(axis=1)
            if not good.all():
                raise NumericalError(
                    f"signal '{name}' of the frozen base model is NaN or infinite for example "
                    f"{ids[int(np.flatnonzero(~good)[0])]}. Check the example's text and the model, or use float32."
                )
        ranks = [(rankdata(part, method="average") - 0.5) / max(1, len(part)) for part in base_loss]
        columns["difficulty"] = np.concatenate(ranks)[first]
        columns["cluster"] = cluster(ids, columns["embedding"], clusters, seed)
        return cls(ids, columns)

    def extended(
        self,
        pool: Pool,
        embedding: Float[np.ndarray, "n d"],
        base_loss: Float[np.ndarray, " n"],
        quality: Float[np.ndarray, " n"],
    ) -> FrozenSignals:
        """These signals and rows for examples that are no candidates (proxy items), without moving any cluster.

        Their cluster is the one whose mean normalised embedding is nearest, their difficulty the percentile of
        base_loss among all candidates. An example that is already known keeps its row.

        Raises:
            DataError: a column does not have one row per example of the pool.
        """
        fresh = np.asarray([row for row, name in enumerate(pool.ids) if name not in self._index], dtype=np.int64)
        given = {"embedding": embedding, "base_loss": base_loss, "quality": quality}
        for name, column in given.items():
            if len(column) != len(pool):
                raise DataError(f"'{name}' has {len(column)} rows for {len(pool)} examples; give one row for each.")
        columns = {name: np.asarray(column)[fresh] for name, column in given.items()}
        held, k = _unit(self._columns["embedding"]), int(self._columns["cluster"].max()) + 1
        centres = np.stack([held[self._columns["cluster"] == number].mean(axis=0) for number in range(k)])
        gaps = np.square(_unit(columns["embedding"])[:, None] - centres).sum(axis=2)
        columns["cluster"] = gaps.argmin(axis=1)
        losses = np.sort(self._columns["base_loss"])
        left, right = (np.searchsorted(losses, columns["base_loss"], side=side) for side in ("left", "right"))
        columns["difficulty"] = (left + right) / (2 * len(losses))
        ids = (*self.ids, *(pool.ids[row] for row in fresh))
        return FrozenSignals(ids, {name: np.concatenate([self._columns[name], columns[name]]) for name in COLUMNS})

    def lookup(self, pool: Pool, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return these columns for the pool's examples, row-aligned (float32; ``cluster`` int64).

        Raises:
            PluginError: a name that is not in `COLUMNS`. DataError: an example that was not in any pool of `build`.
        """
        for name in names:
            if name not in self._columns:
                raise PluginError("frozen signals were asked for an " + unknown("signal", name, COLUMNS))
        missing = [sample_id for sample_id in pool.ids if sample_id not in self._index]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DataError(
                f"example {missing[0]}{more} is unknown to the frozen signals ({len(self.ids)} examples). "
                "Build them from every stage's candidates."
            )
        rows = np.asarray([self._index[sample_id] for sample_id in pool.ids], dtype=np.int64)
        return {name: self._columns[name][rows] for name in names}

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as plain numeric arrays (ids: UTF-8 bytes, zero-padded, uint8) for safetensors or npz."""
        encoded = [sample_id.encode() for sample_id in self.ids]
        width = max(map(len, encoded), default=1)
        padded = b"".join(item.ljust(width, b"\0") for item in encoded)
        return {"ids": np.frombuffer(padded, dtype=np.uint8).reshape(len(encoded), width).copy(), **self._columns}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FrozenSignals:
        """Take back what `to_arrays` returned.

        Raises:
            DataError: arrays are missing or do not fit together.
        """
        if "ids" not in arrays or np.asarray(arrays["ids"]).dtype != np.uint8:
            raise DataError("the stored frozen signals hold no uint8 array 'ids'; compute them again.")
        ids = [bytes(row).rstrip(b"\0").decode() for row in np.asarray(arrays["ids"])]
        return cls(ids, {name: column for name, column in arrays.items() if name != "ids"})


def cluster(
    ids: Sequence[str], embeddings: Float[np.ndarray, "n d"], clusters: int, seed: int
) -> Int[np.ndarray, " n"]:
    """Return the k-means cluster of each L2-normalised embedding, numbered by falling size (ties: smallest id first).

    Deterministic for a seed, whatever the row order and the number of threads. From 50 000 examples on, mini-batches.
    With fewer distinct points (to 6 decimals) than ``clusters``, k is their number. A zero embedding stays zero.
    """
    order = sorted(range(len(ids)), key=ids.__getitem__)
    points = _unit(np.asarray(embeddings)[order])
    k = min(int(clusters), len(np.unique(points.round(6), axis=0)))
    state = stream_seed(seed, "k-means") % 2**32
    method = MiniBatchKMeans if len(points) >= _MINI_BATCH_FROM else KMeans
    with threadpool_limits(limits=1):  # the order in which threads add up centres would decide the last digits
        labels = method(n_clusters=k, n_init=4, random_state=state).fit_predict(points)
    sizes = np.bincount(labels, minlength=k)
    leader = np.full(k, len(labels))
    np.minimum.at(leader, labels, np.arange(len(labels)))
    number = np.empty(k, dtype=np.int64)
    number[np.lexsort((leader, -sizes))] = np.arange(k)
    result = np.empty(len(ids), dtype=np.int64)
    result[order] = number[labels]
    return result


def _unit(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows of length 1, in float64; a zero row stays zero."""
    wide = np.asarray(rows, dtype=np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
