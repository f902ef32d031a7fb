"""What signals cost beside the passes that bound them: a plain batched forward, and a plain forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from longgame.signals.engine import MAX_BATCH_TOKENS, Batch, SignalEngine, batches
from suite.harness import Report, Times, at_most, peak_memory, take_turns
from suite.workload import Workload

FORWARD = ("loss", "el2n", "logit_nuclear_norm", "logit_sketch", "embedding")
ALL = (*FORWARD, "grad_norm", "grad_sketch")
LIMIT = 1.10

BUDGETS = (1024, MAX_BATCH_TOKENS)
"""Padded tokens of a batch of the plain passes; the faster of the two is the limit."""


def plain_sides(work: Workload, budgets: Iterable[int] = BUDGETS) -> dict[str, Callable[[], object]]:
    """The passes that bound signals, on the batches that signals are computed on (length-bucketed).

    ``forward`` stops at the last hidden state, ``forward + logits`` makes the logits of every position as the model
    does, ``forward + backward`` is the model's own loss and gradients of the adapter. ``… response`` computes the
    logits where the response is predicted only: what an informed user would write.
    """
    sides: dict[str, Callable[[], object]] = {}
    for budget in budgets:
        ready = list(batches(work.pool, work.pad_token_id, budget, work.device))
        sides |= {
            f"forward @{budget}": partial(_forward, work, ready, logits=False),
            f"forward + logits @{budget}": partial(_forward, work, ready, logits=True),
            f"forward + backward @{budget}": partial(_backward, work, ready, response=False),
            f"forward + backward, response @{budget}": partial(_backward, work, ready, response=True),
        }
    return sides


def run(
    report: Report,
    work: Workload,
    *,
    repeats: int = 3,
    required: bool = True,
    budgets: Iterable[int] = BUDGETS,
    memory: bool = True,
) -> None:
    """Time signals against the passes that bound them and add rows and figures to the report.

    Args:
        required: whether figures come of it (otherwise rows only).
        budgets: padded tokens of a batch of the plain passes.
        memory: whether every side runs once more for its peak memory.
    """
    dtype = dtype_of(work)
    engine = SignalEngine(work.model, pad_token_id=work.pad_token_id)
    plain = plain_sides(work, budgets)
    sides = plain | {
        "signals: forward": lambda: engine(work.pool, FORWARD),
        "signals: forward + gradients": lambda: engine(work.pool, ALL),
    }
    times = take_turns(sides, repeats, device=work.device)
    peaks = {name: peak_memory(side, work.device) for name, side in sides.items()} if memory else {}

    def limit(kind: str) -> float:
        return min(time.best for name, time in times.items() if name.startswith(f"{kind} @"))

    for name, time in times.items():
        kind = "forward + backward" if "backward" in name or "gradients" in name else "forward + logits"
        report.add(rows=[row(work, dtype, name, time, peaks.get(name), time.best / limit(kind), kind)])
    if required:
        forward = times["signals: forward"].best / limit("forward + logits")
        gradients = times["signals: forward + gradients"].best / limit("forward + backward")
        report.add(
            [
                at_most(f"signals_forward_{dtype}", forward, LIMIT),
                at_most(f"signals_gradients_{dtype}", gradients, LIMIT),
            ]
        )


def dtype_of(work: Workload) -> str:
    """The base model's dtype by name, e.g. ``bfloat16``."""
    return str(work.base.dtype).removeprefix("torch.")


def table(rows: Iterable[dict[str, object]]) -> str:
    """Aligned text of the rows, one line a side."""
    lines = [f"{'dtype':9} {'side':38} {'ms/example':>10} {'tokens/s':>9} {'peak MiB':>9}  ratio"]
    for line in rows:
        peak = "–" if line["peak_mib"] is None else f"{line['peak_mib']:.0f}"
        lines.append(
            f"{line['dtype']:9} {line['side']:38} {line['ms_per_example']:>10.1f} {line['tokens_per_second']:>9.0f} "
            f"{peak:>9}  {line['ratio']:.2f} × {line['of']}"
        )
    return "\n".join(lines)


def row(
    work: Workload, dtype: str, side: str, time: Times, memory: int | None, ratio: float, of: str
) -> dict[str, object]:
    """One line of the table: what a side took, and by how much it exceeds ``of``."""
    tokens = int(work.pool.tokens.sum())
    passes = 2 if "backward" in side or "gradients" in side else 1  # of frozen weights: forward, and δ through them
    return {
        "dtype": dtype,
        "side": side,
        "examples": len(work.pool),
        "tokens": tokens,
        "seconds": time.best,
        "median_seconds": time.median,
        "ms_per_example": 1e3 * time.best / len(work.pool),
        "tokens_per_second": tokens / time.best,
        "gflops": 2 * passes * work.product_parameters * tokens / time.best / 1e9,
        "peak_mib": None if memory is None else memory / 2**20,
        "ratio": ratio,
        "of": of,
    }


@torch.no_grad()
def _forward(work: Workload, ready: list[Batch], *, logits: bool) -> None:
    model = work.base if logits else work.base.get_decoder()
    for batch in ready:
        model(input_ids=batch.input_ids, use_cache=False)


def _backward(work: Workload, ready: list[Batch], *, response: bool) -> None:
    for batch in ready:
        _loss(work, batch, response).backward()
    work.model.zero_grad()


def _loss(work: Workload, batch: Batch, response: bool) -> Tensor:
    if response:
        hidden = work.base.get_decoder()(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        logits = work.base.get_output_embeddings()(hidden[batch.example, batch.position])
        return nn.functional.cross_entropy(logits.float(), batch.target)
    labels = torch.full_like(batch.input_ids, -100)
    labels[batch.example, batch.position + 1] = batch.target
    found: Tensor = work.base(input_ids=batch.input_ids, labels=labels, use_cache=False).loss
    return found
