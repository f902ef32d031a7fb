"""A tokenised dataset as shards of a pool, for signals of more examples than memory holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from longgame.data.examples import Pool
from longgame.errors import DataError
from longgame.training.candidates import ID, content_ids, pool_of

_COLUMNS = (ID, "input_ids", "labels", "attention_mask", "skill", "quality")


def dataset_pools(dataset: Any, rows: int = 8192, decode: Callable[[Any], str] | None = None) -> Iterator[Pool]:
    """Walk through a `datasets.Dataset` (memory-mapped Arrow), ``rows`` examples at a time.

    Args:
        dataset: columns ``input_ids`` and, where present, ``labels``, ``attention_mask``, ``sample_id``, ``skill``,
            ``quality``. Without ``sample_id`` ids are made from the content, as `SelectionTrainer` makes them; their
            counts are kept, some 100 bytes an example.
        rows: examples of a shard; the last one may be smaller.
        decode: token ids to text, as for `longgame.training.candidates.pool_of`.

    Raises:
        DataError: the dataset is empty or has no ``input_ids``, an example has no token to learn, or an id stands twice
            in a shard.
    """
    if rows < 1:
        raise DataError(f"a shard of {rows} examples was asked for; it needs at least one.")
    if len(dataset) == 0:
        raise DataError("the dataset is empty; there is nothing to compute signals of.")
    if "input_ids" not in dataset.column_names:
        raise DataError(
            f"the dataset has the columns {dataset.column_names} and no 'input_ids'. Tokenise it first (dataset.map)."
        )
    names = [name for name in _COLUMNS if name in dataset.column_names]
    table = dataset.select_columns(names)
    seen: dict[str, int] = {}
    for start in range(0, len(dataset), rows):
        columns = table[start : start + rows]
        features = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        if ID not in names:
            for feature, sample_id in zip(features, content_ids(features, seen), strict=True):
                feature[ID] = sample_id
        yield pool_of(features, decode)
