"""What signals cost: beside the passes that bound them, and beside the published ways to get the same numbers.

```
python -m benchmarks.signals --data-dir DATA                  # SmolLM2-135M, real examples, bfloat16 and float32
python -m benchmarks.signals --quick                          # at most a minute
python -m benchmarks.signals --shape llama-8b --device cuda   # random weights: throughput, memory, share of the peak
python -m benchmarks.signals --growth                         # cost against length, rank, vocabulary and pool size
```

All sides run in one process, by turns, on the same model and examples; the best round of each counts. DATA is a folder
with train/math_gsm8k.jsonl.gz and the like (``../shared/data`` is taken where it exists); without one the examples are
random tokens of the same lengths. Every line of the end reads ``figure NAME VALUE REQUIRED ok|short``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import (
    Form,
    Report,
    Times,
    at_least,
    at_most,
    measure_machine,
    peak_memory,
    quick_deadline,
    run_parts,
    take_turns,
)
from benchmarks.references import bergson_side, less, uds
from benchmarks.workload import SHAPES, Workload, mixed_lengths, real, shaped
from longgame.signals.engine import MAX_BATCH_TOKENS, Batch, SignalEngine, batches, plan

FORWARD = ("loss", "el2n", "response_logit_nuclear_norm", "response_logit_sketch", "embedding")
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
    loss: Tensor = work.base(input_ids=batch.input_ids, labels=labels, use_cache=False).loss
    return loss


UDS = ("response_logit_nuclear_norm", "response_logit_sketch")
DATA = Path("../shared/data")
LESS_SIZE = 8192
BERGSON_SIDE = 4
"""p: bergson keeps p × p numbers of each LoRA factor."""


def uds_figures(report: Report, work: Workload, repeats: int) -> None:
    """UDS' signals from full logits and singular values, against ours."""
    engine = SignalEngine(work.model, pad_token_id=work.pad_token_id)
    groups = plan(work.pool, MAX_BATCH_TOKENS)
    vocabulary = int(work.base.config.vocab_size)
    longest, responses = int(work.pool.tokens.max()), int(work.pool.response_tokens.max())
    projected = uds.bilinear(
        engine._logits._left_signs(responses + 1, work.device),
        engine._logits._right_signs(0, vocabulary).to(work.device),
    )
    shape = (8, 128)
    published = uds.fourier(longest, vocabulary, shape, torch.Generator().manual_seed(0), work.device)
    results: dict[str, list[uds.UdsSignals]] = {"published": [], "response": []}

    def theirs(kind: str) -> None:
        everywhere = kind == "published"
        sketch = published if everywhere else projected
        results[kind].append(
            uds.uds_signals(work.base, work.pool, groups, sketch, pad_token_id=work.pad_token_id, everywhere=everywhere)
        )

    states = _hidden_states(work)
    sides: dict[str, Callable[[], object]] = {
        "UDS: published": partial(theirs, "published"),
        "UDS: full logits, response": partial(theirs, "response"),
        "UDS: ours": lambda: engine(work.pool, UDS),
        "UDS: ours, from hidden states": lambda: [_from_states(engine, *pair) for pair in states],
    }
    times = take_turns(sides, repeats, device=work.device)
    peaks = {name: peak_memory(side, work.device) for name, side in list(sides.items())[:3]}
    ours = times["UDS: ours"].best
    for name, time in times.items():
        report.add(rows=[row(work, dtype_of(work), name, time, peaks.get(name), time.best / ours, "ours")])
    name = f"forward @{MAX_BATCH_TOKENS}"
    plain = {name: plain_sides(work, (MAX_BATCH_TOKENS,))[name]}
    forward = take_turns(plain, repeats, device=work.device)[name].best
    # what a forward pass to the last hidden state leaves to be done: the logits, and what is made of them
    bare = min(item.forward_seconds + item.signal_seconds for item in results["published"]) - forward
    values = engine(work.pool, UDS)
    reference = results["response"][0]
    norm = float(np.max(np.abs(values[UDS[0]] / reference.nuclear_norm - 1)))
    gap = np.linalg.norm(values[UDS[1]] - reference.sketch, axis=1) / np.linalg.norm(reference.sketch, axis=1)
    dtype = dtype_of(work)
    report.add(
        [
            at_least(f"uds_added_cost_{dtype}", bare / times["UDS: ours, from hidden states"].best, 5),
            at_least(f"uds_end_to_end_{dtype}", times["UDS: published"].best / ours, 5),
            at_least(f"uds_memory_{dtype}", peaks["UDS: published"] / peaks["UDS: ours"], 5),
        ]
    )
    if dtype == "float32":  # in bfloat16 the reference's own logits are rounded to 8 bits
        report.add([at_most(f"uds_error_{dtype}", max(norm, float(gap.max())), 1e-4)])


def less_figures(report: Report, work: Workload, repeats: int, dim: int) -> None:
    """Gradient features by one backward pass an example and a dense sign matrix, against ours of the same size.

    Figures come of the published size, 8192, alone.
    """
    engine = SignalEngine(work.model, pad_token_id=work.pad_token_id, sketch_dim=dim)
    sides: dict[str, Callable[[], object]] = {
        f"LESS: dense {dim}": lambda: less.less_features(work.model, work.pool, dim=dim),
        f"gradient sketch {dim}": lambda: engine(work.pool, ["grad_sketch"]),
    }
    times = take_turns(sides, repeats, device=work.device)
    theirs, ours = (time.best for time in times.values())
    for name, time in times.items():
        report.add(rows=[row(work, dtype_of(work), name, time, None, time.best / ours, "gradient sketch")])
    if dim != LESS_SIZE:
        return
    required = 15 if work.device.type == "cuda" else 3
    report.add([at_least(f"less_speed_{dtype_of(work)}", theirs / ours, required)])
    share = 16  # of R's rows: the draw costs the same for each
    size = sum(weight.numel() for weight in work.model.parameters() if weight.requires_grad) // share
    gradients = torch.ones(16, size, device=work.device)
    drawn = take_turns(
        {
            "bits": lambda: less.project(gradients, dim, 0, "bits"),
            "randint": lambda: less.project(gradients, dim, 0, "randint"),
        },
        1,
        device=work.device,
    )
    extra = (drawn["randint"].best - drawn["bits"].best) * share * -(-len(work.pool) // 16)
    report.add([at_least(f"less_speed_one_draw_a_sign_{dtype_of(work)}", (theirs + extra) / ours, required)])


def bergson_figures(report: Report, work: Workload, repeats: int) -> None:
    """Gradient features of bergson, against ours of the same size."""
    if not bergson_side.available():
        print(f"bergson is not installed, so nothing is compared with it. To do so: {bergson_side.HOW_TO_INSTALL}")
        return
    size = bergson_side.feature_size(work.model, BERGSON_SIDE)
    engine = SignalEngine(work.model, pad_token_id=work.pad_token_id, sketch_dim=size)
    theirs = f"bergson {bergson_side.version()}, {size} numbers"
    ours = f"gradient sketch, {size} numbers"
    times = take_turns(
        {
            theirs: lambda: bergson_side.bergson_features(work.model, work.pool, projection_dim=BERGSON_SIDE),
            ours: lambda: engine(work.pool, ["grad_sketch"]),
        },
        repeats,
        device=work.device,
    )
    for name, time in times.items():
        ratio = time.best / times[ours].best
        report.add(rows=[row(work, dtype_of(work), name, time, None, ratio, "gradient sketch")])
    report.add([at_least(f"bergson_speed_{dtype_of(work)}", times[theirs].best / times[ours].best, 1.1)])


def growth(report: Report, device: torch.device) -> None:
    """How time grows with length, rank, vocabulary and pool size, on a six-layer cut of SmolLM2-135M's shape."""
    base = {"count": 32, "length": 128, "rank": 16, "vocabulary": 49152}
    cases = [base]
    for key, values in (
        ("length", (32, 512)),
        ("rank", (4, 64)),
        ("vocabulary", (8192, 131072)),
        ("count", (8, 128)),
    ):
        cases += [base | {key: value} for value in values]
    for case in cases:
        config = type(SHAPES["smollm2-135m"])(
            **SHAPES["smollm2-135m"].to_dict() | {"num_hidden_layers": 6, "vocab_size": case["vocabulary"]}
        )
        half = case["length"] // 2
        work = shaped(
            config,
            dtype=torch.bfloat16,
            device=device,
            lengths=[(half, half)] * case["count"],
            rank=case["rank"],
            name=", ".join(f"{key} {value}" for key, value in case.items()),
        )
        before = len(report.rows)
        run(report, work, repeats=2, required=False, budgets=(MAX_BATCH_TOKENS,), memory=False)
        print(f"{work.name}\n{table(report.rows[before:])}", flush=True)
        for line in report.rows[before:]:
            line.update(case)


def uds_growth(report: Report, device: torch.device) -> None:
    """Rows: UDS' signals the published way against ours by the examples' length, on SmolLM2-135M's shape.

    Both sides need a forward pass, whose cost grows with the length; that of singular values grows with its square.
    """
    for length in (64, 256, 1024):
        half = length // 2
        work = shaped(SHAPES["smollm2-135m"], dtype=torch.bfloat16, device=device, lengths=[(half, half)] * 4)
        engine, groups = SignalEngine(work.model, pad_token_id=work.pad_token_id), plan(work.pool, MAX_BATCH_TOKENS)
        draw = torch.Generator().manual_seed(0)
        sketch = uds.fourier(length, int(work.base.config.vocab_size), (8, 128), draw, work.device)
        theirs = partial(
            uds.uds_signals, work.base, work.pool, groups, sketch, pad_token_id=work.pad_token_id, everywhere=True
        )
        sides: dict[str, Callable[[], object]] = {
            f"UDS: published, length {length}": theirs,
            f"UDS: ours, length {length}": partial(engine, work.pool, UDS),
        }
        times = take_turns(sides, 2, device=work.device)
        ours = min(time.best for name, time in times.items() if "ours" in name)
        lines = [row(work, dtype_of(work), name, time, None, time.best / ours, "ours") for name, time in times.items()]
        report.add(rows=[line | {"length": length} for line in lines])
        print(table(report.rows[-2:]), flush=True)


@torch.no_grad()
def _hidden_states(work: Workload) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each batch: last hidden states of the response positions, padded, and which are valid."""
    states = []
    for batch in batches(work.pool, work.pad_token_id, MAX_BATCH_TOKENS, work.device):
        hidden = work.base.get_decoder()(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        padded = hidden.new_zeros(len(batch.rows), int(batch.counts.max()), hidden.shape[2])
        valid = padded.new_zeros(padded.shape[:2], dtype=torch.float32)
        padded[batch.example, batch.rank] = hidden[batch.example, batch.position]
        valid[batch.example, batch.rank] = 1
        states.append((padded, valid))
    return states


def _from_states(engine: SignalEngine, padded: torch.Tensor, valid: torch.Tensor) -> None:
    engine._logits.nuclear_norms(padded, valid)
    engine._logits.sketches(padded, valid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few short examples, bfloat16 only")
    parser.add_argument("--json", type=Path, help="write figures, rows and machine to this file")
    parser.add_argument("--data-dir", type=Path, default=DATA if DATA.is_dir() else None)
    parser.add_argument("--examples", type=int, help="how many (default 32, --quick 6)")
    parser.add_argument("--repeats", type=int, help="timed rounds (default 3, --quick 1)")
    parser.add_argument("--dtype", nargs="+", choices=["bfloat16", "float32"], help="default: both, --quick bfloat16")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--growth", action="store_true", help="rows only: how cost grows")
    options = parser.parse_args()
    count, repeats = options.examples or (6 if options.quick else 32), options.repeats or (1 if options.quick else 3)
    longest = 128 if options.quick else 512
    report = Report("signals", measure_machine(options.device), quick=options.quick)
    print(report.machine, flush=True)
    if options.growth:
        growth(report, options.device)
        uds_growth(report, options.device)
        report.finish(options.json)
        return
    deadline = quick_deadline(options.quick)
    parts: dict[str, list[Form]] = {}
    for dtype in options.dtype or (["bfloat16"] if options.quick else ["bfloat16", "float32"]):
        work = functools.cache(partial(_workload, options, dtype, count, longest))
        parts |= _parts(report, work, dtype, options, repeats)
    run_parts(report, parts, options.json, deadline)


def _workload(options: argparse.Namespace, dtype: str, count: int, longest: int) -> Workload:
    """Model and examples that the options name."""
    if options.shape:
        lengths, precision = mixed_lengths(count, longest), getattr(torch, dtype)
        shape = SHAPES[options.shape]
        work = shaped(shape, dtype=precision, device=options.device, lengths=lengths, name=options.shape)
    else:
        work = real(count, dtype=dtype, data_dir=options.data_dir, max_length=longest)
        work.model.to(options.device)
    tokens, answered = int(work.pool.tokens.sum()), int(work.pool.response_tokens.sum())
    print(f"{work.name}: {len(work.pool)} examples, {tokens} tokens, {answered} of them response", flush=True)
    return work


_QUICK_SECONDS = {"passes": 30.0, "UDS": 25.0, "bergson": 25.0, "LESS": 12.0}
"""Processor time of each part of a quick run with 6 examples; that of loading is part of the first."""


def _parts(
    report: Report, work: Callable[[], Workload], dtype: str, options: argparse.Namespace, repeats: int
) -> dict[str, list[Form]]:
    """The parts of one dtype; in a quick run also with a third of the examples."""
    budgets = (1024,) if options.quick else BUDGETS
    kinds: dict[str, Callable[[Report, Workload, int], None]] = {
        "passes": lambda report, work, repeats: run(
            report, work, repeats=repeats, memory=not options.quick, budgets=budgets
        ),
        "UDS": uds_figures,
        "LESS": partial(less_figures, dim=512 if options.quick else LESS_SIZE),
        "bergson": bergson_figures,
    }

    def measured(kind: str, share: int) -> None:
        full = work()
        part = dataclasses.replace(full, pool=full.pool.take(range(-(-len(full.pool) // share))))
        before = len(report.rows)
        kinds[kind](report, part, repeats)
        print("\n".join(table(report.rows[before:]).splitlines()[kind != "passes" :]), flush=True)
        report.save(options.json)

    return {
        f"{kind} in {dtype}": [
            Form(partial(measured, kind, share), _QUICK_SECONDS[kind] / share)
            for share in ((1, 3) if options.quick else (1,))
        ]
        for kind in kinds
    }


if __name__ == "__main__":
    main()
