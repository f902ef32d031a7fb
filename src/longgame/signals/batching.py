"""Length-bucketed, token-budgeted batches of a pool, right-padded, with the positions that predict the response."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from longgame.data.examples import Pool
from longgame.errors import DataError

_PADDING = 256
"""Padded tokens a batch may hold. On a 0.5M-parameter model the time is flat from 64 to 384, worse at 1024."""


@dataclass(frozen=True)
class Batch:
    """b examples of at most T tokens. Response positions are flat (m of them), example after example."""

    rows: Int[np.ndarray, " b"]
    """Rows in the pool."""
    lengths: Int[np.ndarray, " b"]
    """Tokens of prompt and response."""
    counts: Int[np.ndarray, " b"]
    """Predicted response tokens, ≥ 1."""
    input_ids: Int[Tensor, "b T"]
    """Right-padded. No attention mask goes with it: under causal attention nothing before a pad can see it."""
    example: Int[Tensor, " m"]
    """Row in the batch of each response position."""
    position: Int[Tensor, " m"]
    """Token position whose hidden state predicts the response token (the one before it)."""
    rank: Int[Tensor, " m"]
    """0, 1, 2 … within the response."""
    target: Int[Tensor, " m"]
    """The response token that is predicted."""

    @property
    def starts(self) -> Int[np.ndarray, " b"]:
        """Where each example's response positions begin in the flat arrays."""
        return np.cumsum(self.counts) - self.counts


def batches(pool: Pool, pad_token_id: int, max_tokens: int, device: torch.device) -> Iterator[Batch]:
    """Yield the batches that `plan` makes of the pool."""
    return (collate(pool, rows, pad_token_id, device) for rows in plan(pool, max_tokens))


def plan(pool: Pool, max_tokens: int) -> list[Int[np.ndarray, " b"]]:
    """Group a pool's rows into batches of at most ``max_tokens`` padded tokens (one example may exceed it alone).

    Examples are ordered by (length, id), so what stands together does not depend on the pool's order. A batch also ends
    where its padding would cost more than another pass over the model's layers (256 tokens).

    Raises:
        DataError: an example's token ids do not match its token counts, or it has no token to predict.
    """
    prompt = np.asarray(pool.prompt_tokens, dtype=np.int64)
    lengths = np.asarray(pool.tokens, dtype=np.int64)
    first = np.maximum(prompt, 1)  # the first token of a text without prompt has nothing before it to predict it
    for row, ids in enumerate(pool.input_ids):
        if len(ids) != lengths[row]:
            raise DataError(
                f"example {pool.ids[row]} has {len(ids)} token ids but counts {lengths[row]} (prompt + response). "
                "Build the pool with the tokenizer of this model."
            )
        if lengths[row] <= first[row]:
            raise DataError(
                f"example {pool.ids[row]} has {lengths[row]} token(s), {prompt[row]} of them prompt: no response token "
                "has a token before it. Give it a prompt or a longer response."
            )
    order = sorted(range(len(pool)), key=lambda row: (lengths[row], pool.ids[row]))
    groups: list[list[int]] = []
    held = 0
    for row in order:
        padded = (len(groups[-1]) + 1) * int(lengths[row]) if groups else 0
        if not groups or padded > max_tokens or padded - held - lengths[row] > _PADDING:
            groups.append([])
            held = 0
        groups[-1].append(row)
        held += int(lengths[row])
    return [np.asarray(group) for group in groups]


def halves(rows: Int[np.ndarray, " b"]) -> tuple[Int[np.ndarray, " c"], Int[np.ndarray, " e"]]:
    """Split a batch of at least two rows; the first half is never the longer one."""
    middle = len(rows) // 2
    return rows[:middle], rows[middle:]


def padded_tokens(pool: Pool, rows: Int[np.ndarray, " b"]) -> int:
    """Tokens of a batch of these rows, padding included."""
    return len(rows) * int(_lengths(pool, rows).max())


def _lengths(pool: Pool, rows: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
    return np.asarray(pool.prompt_tokens[rows] + pool.response_tokens[rows], dtype=np.int64)


def collate(pool: Pool, rows: Int[np.ndarray, " b"], pad: int, device: torch.device) -> Batch:
    """Pad these rows of a pool into one batch."""
    lengths = _lengths(pool, rows)
    first = np.maximum(np.asarray(pool.prompt_tokens[rows], dtype=np.int64), 1)
    counts = lengths - first
    ids = np.full((len(rows), int(lengths.max())), pad, dtype=np.int64)
    for k, row in enumerate(rows):
        ids[k, : lengths[k]] = pool.input_ids[row]
    example = np.repeat(np.arange(len(rows)), counts)
    rank = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    position = rank + first[example] - 1
    columns = (ids, example, position, rank, ids[example, position + 1])
    return Batch(rows, lengths, counts, *(torch.from_numpy(column).to(device) for column in columns))
