"""Work that is done on the CPU and again on the pretend GPU, in a process of its own: ``python -m … CASE …``.

Prints a JSON object: case → differences from the CPU, and what the device counted.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForSeq2Seq, Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from longgame.audit.hf_learner import HFLearner
from longgame.audit.learner import sequence_of
from longgame.evaluation.evaluator import Evaluator
from longgame.models.adaptation import adapt
from longgame.models.fused import thin_lora
from longgame.models.load import load_model
from longgame.recipe import ModelSpec, parse_recipe
from longgame.seeding import generator
from longgame.selection.base import build_selector
from longgame.selection.history import History
from longgame.selection.policy import SelectionPolicy
from longgame.signals.engine import SignalEngine
from longgame.signals.gradients import AdamPreconditioner
from longgame.training.config import SelectionConfig
from support.pretend_gpu import GPU, OnGpu, moments_on_gpu, on_gpu, pretending, watching
from support.signals import llama, perturb, random_pool, with_lora
from support.trainers import arguments, rows_of
from support.training import make_model, make_pool

SIGNALS = ("loss", "token_accuracy", "el2n", "logit_nuclear_norm", "logit_sketch", "embedding", "grad_norm")
ALL = (*SIGNALS, "grad_sketch")


def gemma() -> Any:
    config = Gemma2Config(
        vocab_size=61,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    return Gemma2ForCausalLM(config)


def gpt2() -> Any:
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=24, n_layer=2, n_head=4, n_positions=64))
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True))
    perturb(model, "lora_B", 0.1, 2)
    return model


def full() -> Any:
    return llama().requires_grad_(True)


def checkpointed() -> Any:
    model = with_lora(llama())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


MODELS = {
    "checkpointed": checkpointed,
    "lora": lambda: with_lora(llama()),
    "lora-bf16": lambda: with_lora(llama().bfloat16()),
    "dora": lambda: with_lora(llama(), use_dora=True),
    "embedding": lambda: with_lora(llama(), target_modules=["q_proj", "embed_tokens"]),
    "full": full,
    "gemma": lambda: with_lora(gemma()),
    "gpt2": gpt2,
}


def signals(kind: str) -> dict[str, Any]:
    """Every signal of a model, of two batches; counted at the second call."""
    pool, names = random_pool(12), ALL
    options: dict[str, Any] = {"pad_token_id": 0, "sketch_dim": 32, "max_batch_tokens": 160}
    cpu, gpu = MODELS[kind](), on_gpu(MODELS[kind]())
    expected = SignalEngine(cpu, **options)(pool, names)
    with pretending():
        engine = SignalEngine(gpu, **options)
        engine(pool, names)
        batches = []
        batch = engine._batch
        engine._batch = lambda *work, **more: batches.append(1) or batch(*work, **more)  # type: ignore[method-assign]
        with watching() as counts:
            measured = engine(pool, names)
    return {"gap": gaps(measured, expected), "batches": len(batches), **counts.summary()}


def adam() -> dict[str, Any]:
    """The Adam-aware gradient sketch."""
    pool, options = random_pool(6), {"pad_token_id": 0, "sketch_dim": 32}
    cpu, gpu = with_lora(llama()), with_lora(llama())
    weights = [weight for weight in cpu.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    ids = torch.arange(10)[None]
    cpu(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    with torch.no_grad():
        for weight, moved in zip(cpu.parameters(), gpu.parameters(), strict=True):
            moved.copy_(weight)
    there = AdamPreconditioner.from_optimizer(optimizer, cpu)
    expected = SignalEngine(cpu, preconditioner=there, **options)(pool, ["adam_grad_sketch"])
    on_gpu(gpu)
    with pretending():
        here = AdamPreconditioner({name: moments_on_gpu(moments) for name, moments in there._moments.items()})
        measured = SignalEngine(gpu, preconditioner=here, **options)(pool, ["adam_grad_sketch"])
    return {"gap": gaps(measured, expected)}


def mixed() -> dict[str, Any]:
    """What the device refuses: it would be no test if it did not."""
    with pretending():
        there = OnGpu(torch.ones(3))
        try:
            there + torch.ones(3)
        except RuntimeError as error:
            return {"refusal": str(error), "scalar": float((there + 1).sum()), "device": str(GPU)}
    return {"refusal": ""}


RECIPE = {
    "name": "device",
    "data": {"pool_size": 24, "items_per_skill": 1, "ood_items_per_skill": 1},
    "selectors": ["random"],
    "seeds": [0],
    "training": {"steps": 4, "warmup_steps": 1},
    "probe": {"steps": 2, "points": 2},
}


def evaluator() -> dict[str, Any]:
    """Scores of a stage's items, decoding included."""
    sequence = sequence_of(parse_recipe(RECIPE), 0)
    scores = []
    for moves in (False, True):
        spec = ModelSpec(name="tiny")
        loaded = load_model(spec)
        model = adapt(loaded.model, spec, 0).model
        perturb(model, "lora_B", 0.02, 1)
        options: dict[str, Any] = {"pad_token_id": loaded.pad_token_id, "max_length": 256}
        if not moves:
            scores.append(Evaluator(model, loaded.tokenizer, **options).score(sequence.tasks[:2]))
            continue
        with pretending():
            there = Evaluator(on_gpu(model), loaded.tokenizer, **options)
            with watching() as counts:
                scores.append(there.score(sequence.tasks[:2]))
    pairs = list(zip(*scores, strict=True))
    same = sum(a.value == b.value or bool(np.isnan(a.value) and np.isnan(b.value)) for a, b in pairs)
    return {"equal": same, "scores": len(pairs), **counts.summary()}


def stage(selector: str) -> dict[str, Any]:
    """A stage of the audit, with its diagnostics."""
    recipe = parse_recipe(RECIPE)
    sequence = sequence_of(recipe, 0)
    reports, picks = [], []
    for moves in (False, True):
        learner = HFLearner(recipe, 0)
        learner.source.cache = None
        learner.use(sequence, learner.prepare(sequence))
        policy = SelectionPolicy(build_selector(selector), History(), generator(0, "select"))
        policy.begin_stage(generator(0, "stage"))
        work = (sequence.stages[0].pool, policy, SelectionConfig(budget=0.25, seed=7), 4)
        if moves:
            on_gpu(learner.model)
            with pretending(), watching() as counts:
                reports.append(learner.train(*work))
        else:
            reports.append(learner.train(*work))
        picks.append([list(decision.picked_ids) for decision in policy.rounds])
    here, there = reports
    return {
        "same_picks": picks[0] == picks[1],
        "loss_gap": float(np.abs(here.losses - there.losses).max()),
        "gram_gap": float(np.abs(here.gradient_gram - there.gradient_gram).max() / np.abs(here.gradient_gram).max()),
        "steps": 4,
        **counts.summary(),
    }


def trainer(selector: str) -> dict[str, Any]:
    """The trainer that users have."""
    from longgame.training.trainer import SelectionTrainer

    losses, picks = [], []
    for moves in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            options = {"use_cpu": not moves, "dataloader_pin_memory": False, "max_steps": 4, "logging_strategy": "no"}
            built: dict[str, Any] = {
                "model": make_model(),
                "args": arguments(folder, **options),
                "train_dataset": Dataset.from_list(rows_of(make_pool(40))),
                "data_collator": DataCollatorForSeq2Seq(_Padding(), padding=True),
                "selection": SelectionConfig(selector=selector, budget=0.5),
            }
            if not moves:
                there = SelectionTrainer(**built)
                losses.append(there.train().training_loss)
            else:
                on_gpu(built["model"])
                with pretending():
                    there = SelectionTrainer(**built)
                    with watching() as counts:
                        losses.append(there.train().training_loss)
        picks.append([list(decision.picked_ids) for decision in there.selection_policy.rounds])
    gap = abs(losses[0] - losses[1])
    return {"same_picks": picks[0] == picks[1], "loss_gap": gap, "steps": 4, **counts.summary()}


def thin() -> dict[str, Any]:
    """A training step of LoRA over a bfloat16 base by thin products, and the kernels of PEFT's own."""
    ids = torch.randint(4, 40, (3, 17), generator=torch.Generator().manual_seed(0))
    losses, kernels = [], {}
    for moves in (False, True):
        model = with_lora(llama().bfloat16(), lora_dropout=0.0).train()
        if not moves:
            with thin_lora(model):
                losses.append(float(model(input_ids=ids, labels=ids, use_cache=False).loss))
            continue
        on_gpu(model)
        with pretending():
            for name, context in (("peft", nullcontext), ("thin", thin_lora)):
                with context(model), watching() as counts:
                    loss = model(input_ids=OnGpu(ids), labels=OnGpu(ids), use_cache=False).loss
                    loss.backward()
                    kernels[name] = counts.kernels
                    losses.append(float(loss))
    return {"gap": {"loss": abs(losses[0] - losses[2])}, "kernels": kernels}


class _Padding:
    """As much of a tokenizer as the collator needs."""

    padding_side, pad_token_id, deprecation_warnings = "right", 0, {}

    def pad(self, rows: list[dict[str, Any]], **_: Any) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        return {
            key: torch.tensor([list(row[key]) + [fill[key]] * (width - len(row[key])) for row in rows])
            for key in rows[0]
        }


def gaps(measured: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """Per signal, the largest difference in units of the largest value."""
    return {
        name: float(np.abs(measured[name] - values).max() / (np.abs(values).max() + 1e-30))
        for name, values in expected.items()
    }


CASES = {
    "signals": signals,
    "adam": adam,
    "thin": thin,
    "mixed": mixed,
    "evaluator": evaluator,
    "stage": stage,
    "trainer": trainer,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    answers = {}
    for case in sys.argv[1:]:
        name, _, argument = case.partition(":")
        answers[case] = CASES[name](*([argument] if argument else []))  # type: ignore[operator]
    print(json.dumps(answers))
