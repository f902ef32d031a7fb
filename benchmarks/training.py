"""What the audit's training step costs over a bare PyTorch loop on the same batches.

```
python -m benchmarks.training                         # both models, required: ≤ 1.05 on smollm2-135m
python -m benchmarks.training --model tiny-like --json training.json
python -m benchmarks.training --thin                  # bfloat16: LoRA by thin products with PEFT's own layers
```

Both sides run in one process, by turns, on the same model, batches, loss, optimiser, clipping and schedule; the best
run of each counts, since whatever else the machine does can only add time. The bare loop gets its batches ready-made;
`run_stage` selects at random (its selection and callback seconds are left out), collates, checks for NaN, records
updates, and builds and clears away its Trainer. Weights are random: time does not depend on them.

``--thin`` compares two bare loops over a bfloat16 base with float32 factors: through PEFT's layers, and by thin
products (`longgame.models.fused.thin_lora`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.harness import Form, Report, at_most, measure_machine, quick_deadline, reported, run_parts
from longgame.data.examples import Example, Pool
from longgame.models.fused import thin_lora
from longgame.models.head import response_loss
from longgame.recipe import TrainingSpec
from longgame.seeding import generator
from longgame.selection.base import build_selector
from longgame.selection.history import History
from longgame.selection.policy import SelectionPolicy
from longgame.signals.base import Signals
from longgame.training.candidates import padded_batch
from longgame.training.config import SelectionConfig
from longgame.training.stage import learning_rate_share, run_stage

PAD = 0


@dataclass(frozen=True)
class Case:
    """A model shape and the stage it is timed on."""

    config: dict
    candidates: int
    prompt: tuple[int, int]
    response: tuple[int, int]
    required: float | None
    required_thin: float | None = None
    """Of thin products, over PEFT's layers."""


CASES = {
    "tiny-like": Case(
        {
            "vocab_size": 640,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "tie_word_embeddings": True,
        },
        candidates=30,
        prompt=(15, 50),
        response=(5, 30),
        required=None,
    ),
    "smollm2-135m": Case(
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
        candidates=16,
        prompt=(30, 90),
        response=(20, 60),
        required=1.05,
        required_thin=0.9,
    ),
}


def make_model(case: Case, device: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """LoRA with float32 factors over a base of this dtype."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**case.config, pad_token_id=PAD, attn_implementation="eager")).to(dtype)
        adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", exclude_modules=["lm_head"])
        return get_peft_model(model, adapter).to(device)


def make_pool(case: Case, steps: int) -> Pool:
    rng = np.random.default_rng(0)
    n = case.candidates * steps
    prompt, response = rng.integers(*case.prompt, n), rng.integers(*case.response, n)
    ids = tuple(rng.integers(3, case.config["vocab_size"], p + r) for p, r in zip(prompt, response, strict=True))
    return Pool(tuple(Example(f"{row:05d}", "p", "r") for row in range(n)), ids, prompt, response)


def no_signals(pool: Pool, _names: object) -> Signals:
    return Signals(pool.ids, {})


def stage(model: nn.Module, pool: Pool, spec: TrainingSpec) -> tuple[float, list[list[int]], np.ndarray]:
    """Seconds of one `run_stage` without selection, the rows of every step, and its losses."""
    policy = SelectionPolicy(build_selector("random"), History(), generator(0, "select"))
    report = run_stage(
        model,
        pad_token_id=PAD,
        pool=pool,
        policy=policy,
        selection=SelectionConfig(budget=0.25),
        spec=spec,
        scorer=no_signals,
    )
    rows = [[pool.index[sample_id] for sample_id in done.picked_ids] for done in policy.rounds]
    return report.seconds["train"], rows, report.losses


def bare_loop(
    model: nn.Module, batches: list[dict], spec: TrainingSpec, loss_of: Callable
) -> tuple[float, list[float]]:
    """Seconds and losses of the loop that one would write by hand."""
    start = time.perf_counter()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_share(step, spec.steps, spec.warmup_steps, spec.final_lr_share)
    )
    model.train()
    losses = []
    for batch in batches:
        loss = loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, spec.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return time.perf_counter() - start, losses


def measure(name: str, steps: int, repeats: int, device: str, all_logits: bool) -> dict[str, float]:
    """Best seconds of each side and the ratios."""
    case = CASES[name]
    model, pool = make_model(case, device), make_pool(case, steps)
    spec = TrainingSpec(steps=steps, learning_rate=1e-3)
    start = {key: value.detach().clone() for key, value in model.named_parameters() if value.requires_grad}

    def again() -> None:
        with torch.no_grad():
            for key, value in model.named_parameters():
                if key in start:
                    value.copy_(start[key])

    def short(batch: dict) -> torch.Tensor:
        return response_loss(model, batch, batch["labels"][:, 1:].ne(-100).sum())

    def full(batch: dict) -> torch.Tensor:
        return model(**batch, use_cache=False).loss

    _, rows, expected = stage(model, pool, spec)  # warms up, and tells which rows every step learns
    batches = [{k: v.to(device) for k, v in padded_batch(pool, picked, PAD).items()} for picked in rows]
    times: dict[str, list[float]] = {"stage": [], "bare": [], **({"bare, all logits": []} if all_logits else {})}
    for _ in range(repeats):
        again()
        times["stage"].append(stage(model, pool, spec)[0])
        again()
        seconds, losses = bare_loop(model, batches, spec, short)
        np.testing.assert_allclose(losses, expected, rtol=1e-4, err_msg="the two sides do not train alike")
        times["bare"].append(seconds)
        if all_logits:
            again()
            times["bare, all logits"].append(bare_loop(model, batches, spec, full)[0])
    best = {side: min(seconds) for side, seconds in times.items()}
    tokens = sum(len(pool.input_ids[row]) for picked in rows for row in picked)
    for side, seconds in times.items():
        every = " ".join(f"{value:.3f}" for value in seconds)
        rate = f"{best[side] / steps * 1e3:9.2f} ms/step {tokens / best[side]:9.0f} tokens/s"
        print(f"{name:13s} {side:17s} {rate}  [{every}]")
    ratios = {"ratio": best["stage"] / best["bare"]}
    if all_logits:
        ratios["ratio_all_logits"] = best["stage"] / best["bare, all logits"]
    return {
        "steps": steps,
        "tokens_per_step": tokens / steps,
        "bare_ms_per_step": best["bare"] / steps * 1e3,
        "stage_ms_per_step": best["stage"] / steps * 1e3,
        **ratios,
    }


def measure_thin(name: str, steps: int, repeats: int, device: str) -> dict[str, float]:
    """Best seconds of a step through PEFT's layers and by thin products, over a bfloat16 base, and their ratio."""
    case = CASES[name]
    model, pool = make_model(case, device, torch.bfloat16), make_pool(case, steps)
    spec = TrainingSpec(steps=steps, learning_rate=1e-3)
    start = {key: value.detach().clone() for key, value in model.named_parameters() if value.requires_grad}
    share = max(1, case.candidates // 4)
    rows = [list(range(case.candidates * step, case.candidates * step + share)) for step in range(steps)]
    batches = [{k: v.to(device) for k, v in padded_batch(pool, picked, PAD).items()} for picked in rows]
    times: dict[str, list[float]] = {"peft": [], "thin": []}
    losses: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):  # the first round warms up
        for side, context in (("peft", nullcontext), ("thin", thin_lora)):
            with torch.no_grad():
                for key, value in model.named_parameters():
                    if key in start:
                        value.copy_(start[key])
            with context(model):
                seconds, losses[side] = bare_loop(
                    model,
                    batches,
                    spec,
                    lambda batch: response_loss(model, batch, batch["labels"][:, 1:].ne(-100).sum()),
                )
            if repeat:
                times[side].append(seconds)
    np.testing.assert_allclose(losses["thin"], losses["peft"], rtol=2e-2, err_msg="the two sides do not train alike")
    best = {side: min(seconds) for side, seconds in times.items()}
    for side, seconds in times.items():
        every = " ".join(f"{value:.3f}" for value in seconds)
        print(f"{name:13s} {side:17s} {best[side] / steps * 1e3:9.2f} ms/step  [{every}]")
    return {f"{side}_ms_per_step": value / steps * 1e3 for side, value in best.items()} | {
        "thin_ratio": best["thin"] / best["peft"]
    }


def figures_of(report: Report, name: str, steps: int, repeats: int, device: str, *, full: bool, thin: bool) -> None:
    """Add the ratios of a model as figures, and its milliseconds as a row."""
    ratios = measure_thin(name, steps, repeats, device) if thin else measure(name, steps, repeats, device, full)
    required = {"ratio": CASES[name].required, "thin_ratio": CASES[name].required_thin}
    for key in [key for key in ratios if "ratio" in key]:
        limit, figure = required.get(key), f"training.{name}.{key}"
        report.add([reported(figure, ratios[key]) if limit is None else at_most(figure, ratios[key], limit)])
    if not thin:
        overhead = ratios["stage_ms_per_step"] - ratios["bare_ms_per_step"]
        report.add([reported(f"training.{name}.overhead_ms", overhead)])
    report.add(rows=[{"model": name, **ratios}])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=[*CASES, "both"], default="both")
    parser.add_argument("--quick", action="store_true", help="few steps, at most a minute")
    parser.add_argument("--thin", action="store_true", help="LoRA over bfloat16: thin products with PEFT's layers")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    report = Report("training", measure_machine(torch.device(options.device)), quick=options.quick)
    print(f"{report.machine}; {'bfloat16' if options.thin else 'float32'}, LoRA r=16")

    def form(name: str, steps: int, repeats: int, seconds: float = 0.0) -> Form:
        kinds = {"full": not options.quick, "thin": options.thin}
        return Form(partial(figures_of, report, name, steps, repeats, options.device, **kinds), seconds)

    forms = {
        "tiny-like": [form("tiny-like", 32, 3, 12), form("tiny-like", 8, 2, 4)]
        if options.quick
        else [form("tiny-like", 32, 9)],
        "smollm2-135m": [form("smollm2-135m", 3, 2, 60), form("smollm2-135m", 2, 1, 25)]
        if options.quick
        else [form("smollm2-135m", 8, 3)],
    }
    parts = {name: part for name, part in forms.items() if options.model in (name, "both")}
    return int(not run_parts(report, parts, options.json, quick_deadline(options.quick)))


if __name__ == "__main__":
    raise SystemExit(main())
