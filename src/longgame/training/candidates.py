"""Rows of a tokenized dataset as candidates: ids by content, token counts, pools, batches, and their order."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch.utils.data import Dataset, IterableDataset, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from longgame.data.examples import WEIGHT, Example, Pool, is_weight
from longgame.data.formats import LOSS_MASKS, labels_of_masks
from longgame.errors import DataError
from longgame.seeding import stream_seed

ID = "sample_id"
SELECTION_COLUMNS = (ID, "skill", "quality", WEIGHT)
"""Columns that selection reads and the model never sees."""
MODEL_COLUMNS = ("input_ids", "labels", "attention_mask", *LOSS_MASKS)


@dataclass
class Candidates:
    """What one tick of the clock offers: rows of the dataset, unchanged.

    A class, because accelerate and pin_memory walk through lists and dicts element by element.
    """

    rows: list[Any] = field(default_factory=list)


def tokens_and_labels(feature: Mapping[str, Any]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Return a feature's token ids and labels without padding (``attention_mask`` 0); no labels means all tokens.

    Raises:
        DataError: there are no ``input_ids``, the columns differ in length, or they hold no whole numbers.
    """
    if "input_ids" not in feature:
        raise DataError(
            f"a candidate has the columns {sorted(feature)} and no 'input_ids'. Tokenize the dataset before training "
            "(SFTTrainer does), and leave image or audio datasets to a trainer without selection."
        )
    ids = _whole_numbers(feature, "input_ids")
    labels = _whole_numbers(feature, "labels") if "labels" in feature else labels_of_masks(feature, ids)
    mask = np.asarray(feature.get("attention_mask", np.ones_like(ids)), dtype=bool)
    if ids.ndim != 1 or labels.shape != ids.shape or mask.shape != ids.shape:
        raise DataError(
            f"candidate {feature.get(ID, '')} has input_ids, labels and attention_mask of shapes {ids.shape}, "
            f"{labels.shape} and {mask.shape}; they must be equally long lists."
        )
    return ids[mask], labels[mask]


def first_tokens(feature: Mapping[str, Any], most: int) -> dict[str, Any]:
    """Return a feature with its first ``most`` tokens that are not padding, and all that goes with tokens cut alike."""
    tokens, mask = len(feature["input_ids"]), feature.get("attention_mask")
    start = 0 if mask is None else int(np.argmax(np.asarray(mask, dtype=bool)))
    return {
        name: value[start : start + most]
        if hasattr(value, "__len__") and not isinstance(value, str) and len(value) == tokens
        else value
        for name, value in feature.items()
    }


def _whole_numbers(feature: Mapping[str, Any], name: str) -> Int[np.ndarray, " n"]:
    try:
        return np.asarray(feature[name], dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"candidate {feature.get(ID, '')} has {name} that are no whole numbers ({error}). Tokenize the dataset."
        ) from error


def pool_of(features: Sequence[Mapping[str, Any]], decode: Callable[[Any], str] | None = None) -> Pool:
    """Make a pool of features: ``sample_id``, ``input_ids``, and where present ``labels``, ``skill``, ``quality``.

    The weights of a subset (``longgame_weight``) become a row-aligned array of ``info``; an empty one is 1.

    Tokens are counted as the loss sees them: a token is response if it is labeled and something predicts it, so the
    first token of a plain text counts as prompt.

    Args:
        decode: token ids to text, for selectors that read it; without it the examples carry no text.

    Raises:
        DataError: a feature has no token with a loss, an id repeats, a weight is not finite and above 0, a quality is
            not in [0, 1], or a skill is no text.
    """
    examples, inputs, prompt, masks = [], [], [], []
    for feature in features:
        ids, labels = tokens_and_labels(feature)
        labeled = labels != -100
        labeled[:1] = False
        responses = int(labeled.sum())
        sample_id = str(feature[ID])
        if responses == 0:
            raise DataError(
                f"candidate {sample_id} has no token to learn (all labels are -100). Drop it, or raise max_length if "
                "its response was cut off."
            )
        examples.append(
            Example(
                sample_id=sample_id,
                prompt=decode(ids[~labeled]) if decode else "",
                response=decode(ids[labeled]) if decode else "",
                skill=_skill(feature),
                quality=_quality(feature),
            )
        )
        inputs.append(ids)
        prompt.append(len(ids) - responses)
        masks.append(None if labeled[len(ids) - responses :].all() else labeled)
    lengths = np.asarray([len(ids) for ids in inputs], dtype=np.int64)
    prompts = np.asarray(prompt, dtype=np.int64)
    several_turns = any(mask is not None for mask in masks)
    loss_masks = tuple(masks) if several_turns else None
    info = {WEIGHT: np.asarray([_weight(feature) for feature in features])} if _is_weighted(features) else {}
    return Pool(tuple(examples), tuple(inputs), prompts, lengths - prompts, info, loss_masks=loss_masks)


def _is_weighted(features: Sequence[Mapping[str, Any]]) -> bool:
    return any(feature.get(WEIGHT) is not None for feature in features)


def _skill(feature: Mapping[str, Any]) -> str | None:
    value = feature.get("skill")
    if value is not None and not isinstance(value, str):
        raise DataError(f"candidate {feature[ID]} has the skill {value!r}, which is no text. Write names of skills.")
    return value


def _quality(feature: Mapping[str, Any]) -> float | None:
    value = feature.get("quality")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise DataError(
            f"candidate {feature[ID]} has the quality {value!r}, which is no number from 0 to 1. Map the column to "
            "this range, or remove it."
        )
    return float(value)


def _weight(feature: Mapping[str, Any]) -> float:
    value = feature.get(WEIGHT)
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, Real) or not is_weight(value):
        raise DataError(
            f"candidate {feature[ID]} has the {WEIGHT} {value!r}, which is no finite number above 0. Correct it, or "
            "remove the column for equal weights."
        )
    return float(value)


def content_ids(features: Iterable[Mapping[str, Any]], copies: dict[str, int] | None = None) -> list[str]:
    """Return an id per feature: 16 hex digits of SHA-256 over its tokens and labels, ``#2``, ``#3`` … for copies.

    ``copies`` counts the copies; pass the same dict to every call where a dataset comes in parts.
    """
    copies = {} if copies is None else copies
    sample_ids = []
    for feature in features:
        ids, labels = tokens_and_labels(feature)
        base = hashlib.sha256(ids.tobytes() + b"\x1e" + labels.tobytes()).hexdigest()[:16]
        copies[base] = copies.get(base, 0) + 1
        sample_ids.append(base if copies[base] == 1 else f"{base}#{copies[base]}")
    return sample_ids


class _WithIds(Dataset):
    """A map-style dataset of dicts with an id added to each."""

    def __init__(self, rows: Any, ids: Sequence[str]) -> None:
        self._rows, self.ids = rows, list(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {**self._rows[row], ID: self.ids[row]}


class Passes(IterableDataset):
    """A stream that is read again and again, and can be resumed in any pass.

    transformers counts the batches to skip over all passes, but a stream ends after one. So blank rows, which are
    skipped without a look, stand for the passes that were finished.

    Attributes:
        finished: passes that were read to their end.
        start: optimizer step at which the current pass began.
        blanks: rows that stand for the finished passes, where a training was resumed.
    """

    def __init__(self, stream: IterableDataset) -> None:
        self.stream = stream
        self.finished = self.start = self.blanks = 0
        self._resumed = self._epoch = 0
        self._iterator: Any = None

    def __iter__(self) -> Iterator[Any]:
        if self._epoch == 0:
            for _ in range(self.blanks):
                yield {}
        yield from self.stream

    def set_epoch(self, epoch: int) -> None:
        """Tell the stream its pass, by which it may shuffle; ``epoch`` counts those since the training was resumed."""
        self._epoch = epoch
        if hasattr(self.stream, "set_epoch"):
            self.stream.set_epoch(self._resumed + epoch)

    def follow(self, iterator: Any, step: int) -> None:
        """Take note of the iterator that a step reads from: another one than before is another pass."""
        if self._iterator is not None and iterator is not self._iterator:
            self.finished, self.start = self.finished + 1, step
        self._iterator = iterator

    def resume(self, finished: int, start: int, rows: int) -> None:
        """Begin in a pass that was begun at this step; ``rows`` are those of a step."""
        self.finished = self._resumed = finished
        self.start, self.blanks = start, start * rows


class SeededByEpoch(Sampler):
    """A `LengthGroupedSampler` whose order depends on the epoch alone.

    By itself it draws on torch's global generator, which a resumed training has in another state at that point.
    """

    def __init__(self, sampler: LengthGroupedSampler, seed: int) -> None:
        self._sampler, self._seed = sampler, seed
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[int]:
        return iter(self._sampler)

    def set_epoch(self, epoch: int) -> None:
        """Fix the order of this epoch."""
        self._sampler.generator = torch.Generator().manual_seed(stream_seed(self._seed, "order", epoch) % 2**63)


class FreshFirst(Sampler):
    """An epoch's order in which rows that no earlier epoch selected are spread evenly (`fresh_first`)."""

    def __init__(self, sampler: Any, fresh_rows: Callable[[], Bool[np.ndarray, " n"]]) -> None:
        self._sampler, self._fresh_rows = sampler, fresh_rows

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[int]:
        return iter(fresh_first(list(self._sampler), self._fresh_rows()))

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the sampler that shuffles."""
        if hasattr(self._sampler, "set_epoch"):
            self._sampler.set_epoch(epoch)


def fresh_first(order: Sequence[int], is_fresh: Bool[np.ndarray, " n"]) -> list[int]:
    """Return the rows in an order in which the fresh ones are spread evenly, and the others fill up.

    Of k rows in a row at least ⌊k · f / n⌋ are fresh, f of n in all. Fresh rows keep their order, and so do the others.

    Args:
        order: n rows.
        is_fresh: per dataset row, whether it is still offered.
    """
    fresh = [row for row in order if is_fresh[row]]
    others = [row for row in order if not is_fresh[row]]
    n, f = len(order), len(fresh)
    takes_fresh = [(place + 1) * f // n > place * f // n for place in range(n)]
    sources = {True: iter(fresh), False: iter(others)}
    return [next(sources[turn]) for turn in takes_fresh]


def with_ids(dataset: Any, rounds: int | str) -> Any:
    """Return the dataset with a ``sample_id`` per row; one without the column gets ids by content (`content_ids`).

    Raises:
        DataError: ids repeat, or the dataset is a stream without ids, or one to be selected from in rounds.
    """
    if isinstance(dataset, IterableDataset):
        if rounds != "step":
            raise DataError(
                f"rounds is {rounds} but the training dataset is a stream, which cannot be scored as a whole. "
                "Use rounds='step', or a dataset with a length."
            )
        if ID not in next(iter(dataset), {}):
            raise DataError(
                "the training dataset is a stream without a 'sample_id' column, and examples of a stream have no "
                "position to know them by. Add the column (any unique text), or use a dataset with a length."
            )
        return dataset
    if len(dataset) == 0:
        raise DataError("the training dataset is empty; there is nothing to select from.")
    table = hasattr(dataset, "add_column")
    if ID not in dataset[0]:
        columns = [name for name in MODEL_COLUMNS if table and name in dataset.column_names]
        rows = dataset.select_columns(columns) if columns else dataset
        ids = content_ids(rows[row] for row in range(len(dataset)))
        return dataset.add_column(ID, ids) if table else _WithIds(dataset, ids)
    ids = ids_of(dataset)
    if len(set(ids)) != len(ids):
        repeated = next(sample_id for sample_id, count in Counter(ids).items() if count > 1)
        raise DataError(
            f"sample_id '{repeated}' repeats in the training dataset; selection knows examples by id. "
            "Make ids unique, or drop the column to have them made from the content."
        )
    return dataset


def ids_of(dataset: Any) -> list[str]:
    """The ids of a dataset that has them (`with_ids`), in its order."""
    if isinstance(dataset, _WithIds):
        return dataset.ids
    table = hasattr(dataset, "add_column")
    return [str(name) for name in (dataset[ID] if table else [dataset[row][ID] for row in range(len(dataset))])]


def ratings(dataset: Any) -> Iterator[bool]:
    """Whether each row of a dataset with a length has a ``quality``."""
    if not hasattr(dataset, "add_column"):
        return (dataset[row].get("quality") is not None for row in range(len(dataset)))
    column = dataset["quality"][:] if "quality" in dataset.column_names else [None] * len(dataset)
    return (value is not None for value in column)


def padded_batch(pool: Pool, rows: Sequence[int], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Right-pad rows of a pool: ``input_ids`` and ``labels`` [b, n], −100 on prompt and padding.

    No attention mask goes with them: under causal attention no token before a pad can see it.
    """
    width = max(len(pool.input_ids[row]) for row in rows)
    ids = np.full((len(rows), width), pad_token_id, dtype=np.int64)
    labels = np.full((len(rows), width), -100, dtype=np.int64)
    for place, row in enumerate(rows):
        tokens, learned = pool.input_ids[row], pool.predicted(row)
        ids[place, : len(tokens)] = tokens
        labels[place, learned] = tokens[learned]
    return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
