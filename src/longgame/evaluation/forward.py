"""Teacher-forced passes and greedy decoding of many rows with one model, each row as if it were alone.

Two exact shortcuts make this cheap enough to be called at every probe point:

- the head (hidden state → vocabulary) runs on response positions only;
- the teacher-forced pass over the gold response already decides how greedy decoding begins: both agree up to and
  including the first token where the argmax differs from the gold one. Decoding therefore starts behind that token, on
  the keys and values of the same pass, and not at all where the argmax is right to the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import nn
from transformers import DynamicCache

from longgame.errors import NumericalError
from longgame.evaluation.decode import Prefix, decode, generate, input_device, keeps_keys_and_values
from longgame.models.head import response_logits

_LOGIT_ELEMENTS = 2**26
"""Largest response-positions × vocabulary matrix of one batch (256 MiB in float32)."""
_CACHE_FACTOR = 8
"""Decoding starts once the prefixes waiting for it hold this many times max_batch_tokens."""


@dataclass
class Row:
    """One prompt with a response, asked for once however many tasks and scorers want it."""

    prompt: Int[np.ndarray, " p"]
    response: Int[np.ndarray, " r"]
    label: str
    """Task and item, for messages."""
    limit: int = 0
    """New tokens of greedy decoding from the prompt; 0 = none wanted."""
    nll: Float[np.ndarray, " r"] = field(default_factory=lambda: np.empty(0, np.float32))
    """Nats per response token."""
    correct: Bool[np.ndarray, " r"] = field(default_factory=lambda: np.empty(0, bool))
    decoded: list[int] = field(default_factory=list)
    """Greedily decoded tokens, the stop token left out."""

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.response)


def run_rows(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    pad_token_id: int,
    stop_ids: frozenset[int],
    max_batch_tokens: int,
    max_positions: int,
) -> None:
    """Fill ``nll``, ``correct`` and (where ``limit`` > 0) ``decoded`` of every row.

    Args:
        model: a causal LM of transformers, or a PeftModel around one, in eval mode.
        rows: prompt and response hold one token at least.
        pad_token_id: any id of the vocabulary; padded positions are never attended to.
        stop_ids: tokens that end decoding.
        max_batch_tokens: upper bound on rows × longest row of one pass (a longer row runs alone).
        max_positions: prompt + decoded tokens never exceed it.

    Raises:
        NumericalError: a logit that matters is NaN or infinite; the message names the row.
    """
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)  # type: ignore[union-attr, operator]
    native = keeps_keys_and_values(model)
    waiting: list[Prefix] = []
    plain: list[Row] = []
    for batch in _batches(rows, max_batch_tokens, max(1, _LOGIT_ELEMENTS // vocabulary)):
        unfinished = _teacher_forced(model, batch, pad_token_id, stop_ids, max_positions, native)
        if isinstance(unfinished, Prefix):
            waiting.append(unfinished)
        else:
            plain.extend(unfinished)
        if sum(prefix.cells for prefix in waiting) > _CACHE_FACTOR * max_batch_tokens:
            decode(model, waiting, stop_ids)
            waiting = []
    if waiting:
        decode(model, waiting, stop_ids)
    for batch in _batches(plain, max_batch_tokens, len(plain)):
        generate(model, batch, pad_token_id, stop_ids, max_positions)


def _batches(rows: Sequence[Row], max_tokens: int, max_predictions: int) -> Iterator[list[Row]]:
    """Rows of similar length together, longest first, within both bounds (one row at least)."""
    batch: list[Row] = []
    predictions = 0
    for row in sorted(rows, key=lambda row: (-row.length, -len(row.prompt), row.label)):
        longest = batch[0].length if batch else row.length
        full = (len(batch) + 1) * longest > max_tokens or predictions + len(row.response) > max_predictions
        if batch and full:
            yield batch
            batch, predictions = [], 0
        batch.append(row)
        predictions += len(row.response)
    if batch:
        yield batch


def _teacher_forced(
    model: nn.Module,
    rows: list[Row],
    pad_token_id: int,
    stop_ids: frozenset[int],
    max_positions: int,
    native: bool,
) -> Prefix | list[Row]:
    """Fill nll and correct; finish `decoded` where the pass decides it; return the rest, with its keys and values.

    Rows are padded on the right, so with causal attention no real position sees padding and no mask is needed.
    """
    width = rows[0].length
    ids = np.full((len(rows), width), pad_token_id, dtype=np.int64)
    index, gold = [], []
    for at, row in enumerate(rows):
        ids[at, : row.length] = np.concatenate([row.prompt, row.response])
        index.append(at * width + np.arange(len(row.prompt) - 1, row.length - 1))
        gold.append(row.response)
    flat = torch.from_numpy(np.concatenate(index))
    target = torch.from_numpy(np.concatenate(gold).astype(np.int64))
    input_ids = torch.from_numpy(ids).to(input_device(model))
    wanted = native and any(row.limit for row in rows)
    cache = DynamicCache() if wanted else None  # without a config every layer keeps all of its keys and values
    logits = response_logits(
        model,
        flat,
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        past_key_values=cache,
        use_cache=wanted,
    ).float()
    of_gold = logits.gather(1, target.to(logits.device)[:, None]).squeeze(1)
    nll = (torch.logsumexp(logits, dim=-1) - of_gold).cpu().numpy()
    best = logits.argmax(dim=-1).cpu().numpy()

    cuts = np.cumsum([len(part) for part in gold])[:-1]
    left: list[tuple[int, int, list[int]]] = []  # row of the batch, cached positions, tokens decoded so far
    for at, (row, losses, tokens) in enumerate(zip(rows, np.split(nll, cuts), np.split(best, cuts), strict=True)):
        if not np.isfinite(losses).all():
            raise NumericalError(
                f"{row.label}: the likelihood of response token {int(np.argmin(np.isfinite(losses)))} is NaN or "
                "infinite. Lower the learning rate, check the weights, or use float32."
            )
        row.nll, row.correct = losses, tokens == row.response
        if row.limit:
            known = _known(row, tokens)
            stopped = [place for place, token in enumerate(known) if token in stop_ids]
            row.decoded = known[: stopped[0]] if stopped else known
            row.decoded = row.decoded[: _room(row, max_positions)]
            if not stopped and len(row.decoded) < _room(row, max_positions):
                left.append((at, len(row.prompt) + len(known) - 1, known))
    unfinished = [rows[at] for at, _, _ in left]
    return Prefix.of(cache, unfinished, left, max_positions) if cache is not None and left else unfinished


def _known(row: Row, best: Int[np.ndarray, " r"]) -> list[int]:
    """What greedy decoding begins with: the gold tokens up to the first wrong argmax, and that argmax."""
    wrong = np.flatnonzero(~row.correct)
    return best[: int(wrong[0]) + 1 if len(wrong) else len(best)].tolist()


def _room(row: Row, max_positions: int) -> int:
    """New tokens this row may have."""
    return min(row.limit, max_positions - len(row.prompt))
