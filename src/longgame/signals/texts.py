"""What candidates' texts say without any model: log importance ratios of n-grams (DSIR), and groups of near-duplicates.

Texts are read in batches and are never held together. No torch here.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt32

from longgame.data.examples import Example, Pool
from longgame.errors import DataError, RecipeError
from longgame.storage import storage_errors

BUCKETS = 10_000
"""Buckets that n-grams are hashed into (arXiv 2302.03169, §4)."""
_SMALLEST = 1e-8
"""Added to every probability, so that a bucket of no target text has a logarithm; as in the published code."""
_BATCH_ROWS = 4096
_BATCH_BYTES = 1 << 16
"""Texts that are hashed together, at most so many rows or about so many bytes: numbers of 64 bits stay in the cache."""
_IN_MEMORY = 1 << 24
"""Bytes of hashed n-grams from which they stand in a temporary file."""

NEAR = 0.8
"""Jaccard index of word triples from which two rows are near-duplicates."""
PERMUTATIONS, BANDS = 128, 32
"""Bands of four values find pairs from an index of 0.42 on with one chance in two, and from 0.8 on nearly all; what
they find is compared by all values."""
_WORDS = 3
_WORD = re.compile(r"\w+|[^\w\s]")


def text_of(example: Example) -> str:
    """All turns of an example as one text; the token ids of one that came tokenized.

    Raises:
        DataError: it carries no text.
    """
    if example.tokens is not None:
        return " ".join(map(str, example.tokens[0].tolist()))
    if not example.response:
        raise DataError(
            "a signal of the text is asked for, and candidates carry none. Pass the tokenizer as processing_class."
        )
    if example.messages is None:
        return f"{example.prompt} {example.response}"
    return " ".join([*(text for _, text in example.messages), example.response])


# N-grams


def _byte_classes() -> np.ndarray:
    """Per byte: 0 white space, 1 a letter, digit or part of a character beyond ASCII, 2 punctuation."""
    classes = np.full(256, 2, dtype=np.uint8)
    classes[[*b" \t\n\r\x0b\x0c\x00"]] = 0
    classes[[*b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"]] = 1
    classes[128:] = 1
    return classes


_CLASSES = _byte_classes().tobytes()
_BASE, _FIRST, _SECOND, _MIX = (
    np.uint64(value) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93)
)
"""Odd numbers: base of the words' polynomials, factors of both words of a pair, and of the last mixing."""
_INVERSE = np.uint64(pow(int(_BASE), -1, 2**64))


class _Powers:
    """Powers of `_BASE` and of its inverse modulo 2⁶⁴, as many as were needed so far."""

    def __init__(self) -> None:
        self._up = self._down = np.ones(1, dtype=np.uint64)

    def __call__(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        while len(self._up) < n:  # the next power is that of an array: one of a scalar would warn of the overflow
            self._up = np.concatenate([self._up, self._up * (self._up[-1:] * _BASE)])
            self._down = np.concatenate([self._down, self._down * (self._down[-1:] * _INVERSE)])
        return self._up[:n], self._down[:n]


_powers = _Powers()


def ngram_buckets(texts: Sequence[str]) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " n"]]:
    """Hash the words and pairs of neighboring words of n texts.

    A word is a run of letters, digits and characters beyond ASCII, or of punctuation, in lower case. Words become
    polynomials of their bytes modulo 2⁶⁴, by sums over all bytes of the texts at once.

    Returns:
        Buckets of the words of all texts and, behind them, of the pairs, text after text (uint16); and the number of
        words of each text, which is one more than that of its pairs, or 0.
    """
    encoded = [text.lower().encode("utf-8", "surrogatepass") for text in texts]
    starts = np.cumsum([1, *(len(text) + 1 for text in encoded)])
    joined = b" ".join([b"", *encoded, b""])  # white space before every text and behind the last one
    codes = np.frombuffer(joined, dtype=np.uint8)
    classes = np.frombuffer(joined.translate(_CLASSES), dtype=np.uint8)
    changes = classes[1:] != classes[:-1]  # between runs of one class
    begins, ends = (np.flatnonzero(changes & (side != 0)) + 1 for side in (classes[1:], classes[:-1]))
    up, down = _powers(len(codes) + 1)
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(codes * up[: len(codes)], out=sums[1:])
    words = (sums[ends] - sums[begins]) * down[begins]
    words ^= words >> np.uint64(32)
    counts = np.diff(np.searchsorted(begins, starts))
    pairs = (words[:-1] * _FIRST) ^ (words[1:] * _SECOND)
    inside = np.ones(len(pairs), dtype=bool)
    last = np.cumsum(counts) - 1
    inside[last[(last >= 0) & (last < len(pairs))]] = False
    return np.concatenate([_bucket(words), _bucket(pairs[inside])]), counts


def _bucket(hashes: np.ndarray) -> np.ndarray:
    mixed = (hashes ^ (hashes >> np.uint64(29))) * _MIX
    return (((mixed >> np.uint64(32)) * np.uint64(BUCKETS)) >> np.uint64(32)).astype(np.uint16)


class HashedTexts:
    """Hashed n-grams of texts, in the order in which they were added; beyond 16 MiB they stand in a temporary file."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - lives as long as this object
        self._batch: list[str] = []
        self._size = 0
        self._words: list[Int[np.ndarray, " n"]] = []

    @classmethod
    def of(cls, examples: Iterable[Example]) -> HashedTexts:
        """Hash the texts of these examples."""
        texts = cls()
        for example in examples:
            texts.add(example)
        return texts

    def add(self, example: Example) -> None:
        """Hash an example's text.

        Raises:
            DataError: it carries none. StorageError: the disk is full.
        """
        text = text_of(example)
        self._batch.append(text)
        self._size += len(text)
        if len(self._batch) == _BATCH_ROWS or self._size >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._batch:
            buckets, words = ngram_buckets(self._batch)
            with storage_errors(Path(tempfile.gettempdir())):
                self._file.write(buckets.tobytes())
            self._words.append(words)
            self._batch, self._size = [], 0

    def batches(self) -> Iterator[tuple[np.ndarray, Int[np.ndarray, " n"]]]:
        """Yield what `ngram_buckets` returned, batch by batch."""
        self._flush()
        self._file.seek(0)
        for words in self._words:
            yield np.frombuffer(self._file.read(2 * int(_ngrams(words).sum())), dtype=np.uint16), words

    def close(self) -> None:
        """Delete the temporary file."""
        self._file.close()


class ImportanceRatios:
    """Log importance ratios of texts (DSIR, Xie et al. 2023, arXiv 2302.03169): how likely as a target text, or raw.

    r(x) = Σ over the n-grams of x of log p_target(bucket) − log p_raw(bucket), in nats. Both p are shares of all
    n-grams, words and pairs of words in `BUCKETS` hashed buckets; p_raw is of all candidates. No row is left out for
    its length.

    Args:
        target: examples of the target set.
        candidates: pools of all candidates. Their texts are read once.
        hashed: texts of which the candidates are a part, where they were hashed already; closed afterwards.
        places: which of these texts are the candidates, in their order.
    """

    def __init__(
        self,
        target: Iterable[Example],
        candidates: Sequence[Pool],
        hashed: HashedTexts | None = None,
        places: Int[np.ndarray, " n"] | None = None,
    ) -> None:
        if hashed is None:
            hashed = HashedTexts.of(chain.from_iterable(pool.examples for pool in candidates))
        with closing(hashed):
            self._fit(HashedTexts.of(target), hashed, places)
        self._pools = list(candidates)
        self._starts = np.cumsum([0, *map(len, candidates)])

    def _fit(self, target: HashedTexts, hashed: HashedTexts, places: Int[np.ndarray, " n"] | None) -> None:
        target_counts, raw_counts = np.zeros(BUCKETS, dtype=np.int64), np.zeros(BUCKETS, dtype=np.int64)
        with closing(target):
            for buckets, _ in target.batches():
                target_counts += np.bincount(buckets, minlength=BUCKETS)
        counts, start = [], 0
        for buckets, words in hashed.batches():
            if places is not None:
                chosen = np.zeros(len(words), dtype=bool)
                chosen[places[(places >= start) & (places < start + len(words))] - start] = True
                buckets = buckets if chosen.all() else buckets[chosen[_owners(words)]]
            raw_counts += np.bincount(buckets, minlength=BUCKETS)
            counts.append(_ngrams(words))
            start += len(words)
        self._log_ratio = _log_share(target_counts) - _log_share(raw_counts)
        ratios = [self._sums(*batch) for batch in hashed.batches()]
        self._ratios, self._counts = np.concatenate(ratios), np.concatenate(counts)
        if places is not None:
            self._ratios, self._counts = self._ratios[places], self._counts[places]

    def of(self, pool: Pool) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Return ratio (nats) and number of n-grams of each example; a text without any has 0 and 0."""
        rows = np.full(len(pool), -1, dtype=np.int64)
        for start, candidates in zip(self._starts, self._pools, strict=False):
            if pool is candidates:
                rows = start + np.arange(len(pool))
                break
            places = (candidates.index.get(sample_id, -1) for sample_id in pool.ids)
            matches = np.fromiter(places, dtype=np.int64, count=len(pool))
            rows = np.where((rows < 0) & (matches >= 0), start + matches, rows)
        ratios, counts = self._ratios[rows], self._counts[rows]
        others = np.flatnonzero(rows < 0)
        if len(others):
            with closing(HashedTexts.of(pool.examples[row] for row in others.tolist())) as hashed:
                parts = [(self._sums(*batch), _ngrams(batch[1])) for batch in hashed.batches()]
            ratios[others] = np.concatenate([part for part, _ in parts])
            counts[others] = np.concatenate([part for _, part in parts])
        return ratios, counts

    def _sums(self, buckets: np.ndarray, words: np.ndarray) -> Float[np.ndarray, " n"]:
        """Sum of the log ratios of each text's n-grams, as `ngram_buckets` gives them."""
        return np.bincount(_owners(words), self._log_ratio[buckets], minlength=len(words))


def _owners(words: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """Text of every n-gram, in the order of `ngram_buckets`."""
    rows = np.arange(len(words))
    return np.concatenate([np.repeat(rows, words), np.repeat(rows, np.maximum(words - 1, 0))])


def _ngrams(words: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Number of n-grams of texts with these numbers of words."""
    return words + np.maximum(words - 1, 0)


def _log_share(counts: Int[np.ndarray, " buckets"]) -> Float[np.ndarray, " buckets"]:
    return np.log(counts / max(1, counts.sum()) + _SMALLEST)


# Duplicates


def exact_groups(ids: Sequence[str], examples: Iterable[Example]) -> Int[np.ndarray, " n"]:
    """Number the groups of examples with equal turns by their smallest ids, in the order of ids.

    Raises:
        DataError: an example carries no text.
    """
    keys = [_turns_of(example) for example in examples]
    first: dict[bytes, int] = {}
    groups = np.empty(len(ids), dtype=np.int64)
    for row in _by_id(ids).tolist():
        groups[row] = first.setdefault(keys[row], len(first))
    return groups


def _turns_of(example: Example) -> bytes:
    """Digest of an example's turns."""
    text_of(example)
    turns = [*example.turns, ("assistant", example.response)] if example.tokens is None else example.tokens[0].tolist()
    return blake2b(json.dumps(turns).encode(), digest_size=16).digest()


def near_groups(ids: Sequence[str], examples: Iterable[Example]) -> Int[np.ndarray, " n"]:
    """Number the groups of near-duplicates by their smallest ids, in the order of ids.

    In this order, an example joins the first group whose smallest id has a Jaccard index of at least `NEAR` with it.

    Raises:
        RecipeError: the package rensa is missing. DataError: an example carries no text.
    """
    order = _by_id(ids)
    repeats = near_duplicates_of(examples, len(ids), NEAR, order)
    leaders = np.where(repeats < 0, np.arange(len(ids)), repeats)
    number = np.full(len(ids), -1, dtype=np.int64)
    fresh = order[repeats[order] < 0]
    number[fresh] = np.arange(len(fresh))
    return number[leaders]


GROUPS: Mapping[str, Callable[[Sequence[str], Iterable[Example]], Int[np.ndarray, " n"]]] = {
    "exact_group": exact_groups,
    "near_group": near_groups,
}
"""Signal → its function of ids and examples."""


def _by_id(ids: Sequence[str]) -> Int[np.ndarray, " n"]:
    return np.asarray(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)


def near_duplicates_of(
    examples: Iterable[Example], n: int, threshold: float, order: Int[np.ndarray, " n"] | None = None
) -> Int[np.ndarray, " n"]:
    """Return for each of n examples the earlier one that it nearly repeats, −1 for one that stays.

    Args:
        threshold: Jaccard index of near-duplicates, as MinHash estimates it.
        order: rows in the order in which they are considered; None: as they come. All sketches are then in memory.

    Raises:
        RecipeError: the package rensa is missing.
    """
    rensa = _rensa()

    def sketch_of(example: Example) -> Any:
        sketch = rensa.RMinHash(num_perm=PERMUTATIONS, seed=0)
        sketch.update(shingles(example))
        return sketch

    index = rensa.RMinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, num_bands=BANDS)
    hashes: dict[int, Any] = {}
    result = np.full(n, -1, dtype=np.int64)
    place = np.arange(n) if order is None else np.argsort(order)
    sketches: Iterable[tuple[int, Any]] = enumerate(map(sketch_of, examples))
    if order is not None:
        everything = dict(sketches)
        sketches = ((row, everything[row]) for row in order.tolist())
    for row, sketch in sketches:
        near = [other for other in index.query(sketch) if hashes[other].jaccard(sketch) >= threshold]
        if near:
            result[row] = min(near, key=place.__getitem__)
        else:
            index.insert(row, sketch)
            hashes[row] = sketch
    return result


def near_sketches(examples: Iterable[Example]) -> UInt32[np.ndarray, "n permutations"]:
    """Return the MinHash of each example, the one that `near_duplicates_of` compares.

    Two rows are compared if one of their bands of PERMUTATIONS / BANDS neighboring values is equal. The share of equal
    values estimates their Jaccard index.

    Raises:
        RecipeError: the package rensa is missing. DataError: an example carries no text.
    """
    digests = _rensa().RMinHash.digests_from_token_sets([shingles(example) for example in examples], PERMUTATIONS, 0)
    return np.asarray(digests, dtype=np.uint32).reshape(-1, PERMUTATIONS)


SKETCH = f"{PERMUTATIONS} values in {BANDS} bands, of runs of {_WORDS} words"
"""What `near_sketches` holds."""


def sketch_version() -> str:
    """What `near_sketches` holds, and the version of rensa that makes it."""
    algorithm = getattr(_rensa().RMinHash, "ALGORITHM_VERSION", 1)
    return f"{SKETCH}, by rensa {importlib.metadata.version('rensa')} (algorithm {algorithm})"


def _rensa() -> Any:
    try:
        import rensa
    except ModuleNotFoundError as error:
        raise RecipeError(
            "near-duplicates are found by rensa, which is not installed. Run: pip install 'longgame[dedup]'"
        ) from error
    return rensa


def shingles(example: Example) -> list[str]:
    """Runs of three words of a row's turns, without case; a shorter text is one run."""
    words = _WORD.findall(text_of(example).lower())
    return [" ".join(words[start : start + _WORDS]) for start in range(max(1, len(words) - _WORDS + 1))]
