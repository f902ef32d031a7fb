"""Online selection in SFTTrainer: the code of docs/guides/online-selection.md, which explains it.

    python examples/guides/online-selection.py

Run it in the folder of the repository. Generated from the page.
"""

from importlib.resources import files

from datasets import Dataset
from longgame import SelectionConfig, SelectionSFTTrainer
from peft import LoraConfig
from trl import SFTConfig

model = str(files("longgame") / "assets/tiny")
dataset = Dataset.from_json("examples/instructions.jsonl").rename_column("response", "completion")

trainer = SelectionSFTTrainer(
    model=model,
    args=SFTConfig(
        "runs/online",
        max_steps=6,
        save_steps=3,
        logging_steps=2,
        learning_rate=2e-3,
        bf16=False,
        use_cpu=True,
        report_to=[],
    ),
    train_dataset=dataset,
    peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    selection=SelectionConfig(selector="gradient", budget=0.25, rounds="step"),
)
trainer.train()
log = next(entry for entry in trainer.state.log_history if "selection/kept" in entry)
print("offered", log["selection/offered"], "kept", log["selection/kept"])

import longgame

picks = longgame.read_picks("runs/online")
print(sorted(picks.columns))

args = SFTConfig("runs/online", max_steps=8, learning_rate=2e-3, bf16=False, use_cpu=True, report_to=[])
again = SelectionSFTTrainer(
    model=model,
    args=args,
    train_dataset=dataset,
    peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    selection=SelectionConfig(selector="gradient", budget=0.25, rounds="step"),
)
again.train(resume_from_checkpoint="runs/online/checkpoint-3")
print(again.state.global_step, "steps")
