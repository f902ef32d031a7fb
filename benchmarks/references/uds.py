"""UDS signals the published way: the whole logit matrix of a batch, then its singular values and a sketch of it.

UDS (Utility-Diversity Sampling, arXiv 2510.16882) scores an example by the nuclear norm of its logit matrix L and by
the distance of a small two-sided random projection of L to those of earlier picks. Its implementation takes the logits
from an ordinary forward pass and the norm from `torch.linalg.svdvals`; so does this one. There L has a row for every
position of the padded batch. Restricted to the response, which is what longgame measures, the values can be compared,
and the published way is spared the larger part of its work; `uds_signals` does either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from benchmarks.references import synchronised
from longgame.data.examples import Pool

Sketch = Callable[[Float[Tensor, "N V"]], Float[Tensor, "rows columns"]]


def bilinear(left: Float[Tensor, "positions rows"], right: Float[Tensor, "V columns"]) -> Sketch:
    """Return L → R₁ L R₂ with R₁ = the first N rows of ``left``, transposed, and R₂ = ``right`` (dense matrices).

    Given longgame's own matrices the sketches must equal longgame's.
    """
    return lambda logits: (left[: len(logits)].T @ logits) @ right


def fourier(
    positions: int, vocabulary: int, shape: tuple[int, int], generator: torch.Generator, device: torch.device
) -> Sketch:
    """Return the subsampled randomised Fourier transform that UDS' implementation uses in place of dense matrices.

    On either side: random signs, a Fourier transform, its real part at a few random frequencies, √(length/kept). The
    transform over the positions is as long as ``positions``, with zeros after the response's end. Unnormalised, as
    published: distances come out about √(positions · vocabulary)/2 times those of `bilinear`.

    Args:
        positions: most rows that L can have.
        vocabulary: V.
        shape: rows and columns of the sketch.
        generator: CPU generator that the signs and frequencies are drawn from.
        device: of the logits.
    """

    def side(length: int, rows: int) -> tuple[Tensor, Tensor]:
        sign = torch.randint(0, 2, (length,), generator=generator) * 2 - 1
        frequency = torch.randint(0, length, (rows,), generator=generator)
        return sign.float().mul_((length / rows) ** 0.5).to(device), frequency.to(device)

    (row_sign, row_at), (column_sign, column_at) = side(positions, shape[0]), side(vocabulary, shape[1])

    def sketch(logits: Float[Tensor, "N V"]) -> Float[Tensor, "rows columns"]:
        narrow = torch.fft.fft(logits * column_sign).real[:, column_at]
        return torch.fft.fft(narrow * row_sign[: len(narrow), None], n=positions, dim=0).real[row_at]

    return sketch


@dataclass(frozen=True)
class UdsSignals:
    """Both signals, float32, and the seconds that went into the logits and into what is made of them."""

    nuclear_norm: Float[np.ndarray, " n"]
    sketch: Float[np.ndarray, "n size"]
    forward_seconds: float
    signal_seconds: float


@torch.no_grad()
def uds_signals(
    model: nn.Module,
    pool: Pool,
    groups: Sequence[Int[np.ndarray, " b"]],
    sketch: Sketch,
    *,
    pad_token_id: int,
    everywhere: bool = False,
) -> UdsSignals:
    """Return the nuclear norm and the flattened sketch of each example's logits.

    Args:
        model: causal LM whose ``logits`` are used, in evaluation mode.
        pool: the examples.
        groups: the pool's rows, batch by batch; a batch is right-padded, and its logits exist as a whole, in float32.
        sketch: `bilinear` or `fourier`, for as many positions as L has.
        pad_token_id: fills a batch; under causal attention nothing sees it.
        everywhere: L's rows are all positions of the padded batch, as published, and not the response's alone.
    """
    device = next(model.parameters()).device
    norms = np.zeros(len(pool), dtype=np.float32)
    sketches: dict[int, np.ndarray] = {}
    forward = signal = 0.0
    for rows in groups:
        start = synchronised(device)
        logits = model(input_ids=_padded(pool, rows, pad_token_id).to(device), use_cache=False).logits.float()
        between = synchronised(device)
        for row, padded in zip(rows, logits, strict=True):
            first, end = max(1, int(pool.prompt_tokens[row])), int(pool.tokens[row])
            matrix = padded if everywhere else padded[first - 1 : end - 1]
            norms[row] = float(torch.linalg.svdvals(matrix).sum())
            sketches[row] = sketch(matrix).flatten().cpu().numpy()
        forward, signal = forward + between - start, signal + synchronised(device) - between
        del logits, padded, matrix  # before the next batch's logits come
    return UdsSignals(norms, np.stack([sketches[row] for row in range(len(pool))]), forward, signal)


def _padded(pool: Pool, rows: Int[np.ndarray, " b"], pad: int) -> Int[Tensor, "b T"]:
    ids = [torch.from_numpy(np.asarray(pool.input_ids[row])) for row in rows]
    return nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad)
