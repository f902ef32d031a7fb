"""Select while you train: LoRA on the tiny model, a quarter of the tokens picked anew at every step.

    python examples/select_while_training.py          # transformers' Trainer
    python examples/select_while_training.py trl      # TRL's SFTTrainer

Seconds on one CPU core, nothing to download.
"""

import sys
import tempfile
from collections import Counter

from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, TrainingArguments

from longgame import SelectionConfig, SelectionTrainer
from longgame.data.synthetic import build_procedural_sequence
from longgame.data.tokenize import encode_all
from longgame.models.adaptation import adapt
from longgame.models.load import load_model
from longgame.recipe import DataSpec, ModelSpec, ProxySpec

ARGUMENTS = {
    "per_device_train_batch_size": 4,
    "num_train_epochs": 1,
    "learning_rate": 2e-3,
    "logging_steps": 5,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
}
SELECTION = SelectionConfig(selector="utility-diversity", budget=0.25, rounds="step")


def with_transformers(model, tokenizer, examples, folder):
    """Tokens and labels (−100 on the prompt), as for any Trainer; `sample_id` and `skill` reach the selector."""
    rows = [
        {
            "input_ids": encoded.ids.tolist(),
            "attention_mask": [1] * len(encoded),
            "labels": [-100] * len(encoded.prompt_ids) + encoded.response_ids.tolist(),
            "sample_id": example.sample_id,
            "skill": example.skill,
        }
        for example, encoded in zip(examples, encode_all(examples, tokenizer), strict=True)
    ]
    return SelectionTrainer(
        model,
        TrainingArguments(folder, **ARGUMENTS),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        selection=SELECTION,
    )


def with_trl(model, tokenizer, examples, folder):
    """TRL's prompt-completion format; SFTTrainer applies the chat template and puts the loss on the completion."""
    from trl import SFTConfig

    from longgame import SelectionSFTTrainer

    rows = [
        {
            "prompt": [{"role": "user", "content": example.prompt}],
            "completion": [{"role": "assistant", "content": example.response}],
            "sample_id": example.sample_id,
            "skill": example.skill,
        }
        for example in examples
    ]
    return SelectionSFTTrainer(
        model,
        SFTConfig(folder, bf16=False, **ARGUMENTS),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        selection=SELECTION,
    )


def main() -> None:
    loaded = load_model(ModelSpec(name="tiny"))
    model = adapt(loaded.model, ModelSpec(name="tiny"), seed=0).model
    sequence = build_procedural_sequence(DataSpec(pool_size=240), seed=0, proxy=ProxySpec())
    examples = sequence.stages[1].candidates  # the maths stage
    make = with_trl if sys.argv[1:] == ["trl"] else with_transformers
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(model, loaded.tokenizer, examples, folder)
        trainer.train()

    policy = trainer.selection_policy
    skill_of = {example.sample_id: example.skill for example in examples}
    picked = Counter(skill_of[sample_id] for done in policy.rounds for sample_id in done.picked_ids)
    print(f"{len(policy.rounds)} rounds picked {picked.total()} of {len(examples)} examples:", dict(picked))


if __name__ == "__main__":
    main()
