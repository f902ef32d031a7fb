"""The user-facing trainers on small models and data, with the fields of `SelectionConfig` as keyword arguments."""

from __future__ import annotations

import dataclasses

import numpy as np
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, TrainingArguments
from trl import SFTConfig

from longgame.selection.base import build_selector
from longgame.signals.base import CONTEXT, SIGNALS
from longgame.training.config import SelectionConfig
from longgame.training.sft import SelectionSFTTrainer
from longgame.training.trainer import SelectionTrainer
from support.training import VOCAB, make_model, make_pool


def rows_of(pool, ids=True):
    rows = []
    for row, tokens in enumerate(pool.input_ids):
        start = int(pool.prompt_tokens[row])
        labels = [-100] * start + tokens[start:].tolist()
        feature = {"input_ids": tokens.tolist(), "labels": labels, "attention_mask": [1] * len(tokens)}
        rows.append({**feature, "sample_id": pool.ids[row]} if ids else feature)
    return rows


def stream(n=8, ids=True):
    return Dataset.from_list(rows_of(make_pool(n), ids)).to_iterable_dataset()


def arguments(folder, **options):
    base = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "learning_rate": 2e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 7,
    }
    return TrainingArguments(**{**base, **options})


class Recording(SelectionTrainer):
    """Notes the ids of every step."""

    def get_batch_samples(self, *args):
        batches, items = super().get_batch_samples(*args)
        if not hasattr(self, "picks"):
            self.picks = {}
        if batches:
            self.picks[self.state.global_step] = [batch["input_ids"].tolist() for batch in batches]
        return batches, items


def make_trainer(
    folder, tokenizer, cls=Recording, pool=None, model=None, train=None, dropout=0.0, args=None, **options
):
    options = with_selection(options)
    model = model or make_model(dropout=dropout)
    return cls(
        model,
        arguments(folder, **(args or {})),
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
        train_dataset=train if train is not None else Dataset.from_list(rows_of(pool or make_pool(40))),
        processing_class=tokenizer,
        **options,
    )


def with_selection(options):
    """Fields of SelectionConfig among these arguments, put into one."""
    fields = {item.name for item in dataclasses.fields(SelectionConfig)}
    selection = {name: value for name, value in options.items() if name in fields}
    others = {name: value for name, value in options.items() if name not in fields}
    return {**others, "selection": selection} if selection else others


def lacks_online(selector):
    """Whether a trainer by itself has not all that the selector needs."""
    needs = {need for name in build_selector(selector).requires for need in {**SIGNALS, **CONTEXT}[name].needs}
    return bool(needs & {"log", "warmup", "reference", "scorer", "judge", "generation"})


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def sft(folder, tokenizer, args=None, data=None, model=None, **options):
    """A `SelectionSFTTrainer` on 40 rows of prompt and completion, or on these."""
    rng = np.random.default_rng(0)

    def text():
        return " ".join(f"w{i}" for i in rng.integers(3, VOCAB, rng.integers(2, 6)))

    rows = [{"prompt": text() + " ", "completion": text(), "sample_id": f"s{i}"} for i in range(40)]
    base = {name: value for name, value in arguments(folder).to_dict().items() if value is not None}
    fields = {name: value for name, value in base.items() if name in SFTConfig.__dataclass_fields__}
    config = SFTConfig(**{**fields, "max_length": 32, **(args or {})})
    data = Dataset.from_list(rows) if data is None else data
    return SelectionSFTTrainer(
        model or make_model(), config, train_dataset=data, processing_class=tokenizer, **with_selection(options)
    )
