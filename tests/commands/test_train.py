"""``longgame train``: every format is learned as elsewhere, keys are those of TRL, errors are one sentence."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors import SafetensorError
from transformers import TrainingArguments

import longgame
from longgame.commands.train import (
    _as_fields,
    _checkpoint,
    _read,
    build_trainer,
    card_section,
    tokenized,
    training_errors,
    write_card,
)
from longgame.data.sources import load_examples
from longgame.data.tokenize import build_pool
from longgame.errors import DataError, LonggameError, ModelError, RecipeError, StorageError
from longgame.models.load import load_tokenizer
from longgame.recipe import ModelSpec
from support.cli import longgame_here, run_python

ROWS = {
    "alpaca": {"instruction": "Add 1 and 2.", "input": "", "output": "3"},
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello."},
            {"from": "human", "value": "Bye"},
            {"from": "gpt", "value": "See you."},
        ]
    },
    "messages": {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello.", "weight": 0},
            {"role": "user", "content": "Bye"},
            {"role": "assistant", "content": "See you."},
        ]
    },
    "prompt": {"prompt": "1 + 2 =", "completion": " 3"},
    "text": {"text": "One and two are three."},
    "tokens": {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8]},
}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelSpec(name="tiny"))


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def sums(tmp_path):
    rows = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a in range(8) for b in range(4)]
    return write_rows(tmp_path / "sums.jsonl", rows)


def configuration(tmp_path, sums, **values):
    base = {
        "model_name_or_path": "tiny",
        "dataset_name": sums,
        "output_dir": str(tmp_path / "out"),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": "1e-3",
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "selection": {"selector": "loss", "budget": 0.5},
    }
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump({**base, **values}))
    return path


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_learned_as_score_and_select_do(tmp_path, tokenizer, name):
    path = write_rows(tmp_path / "rows.jsonl", [ROWS[name]] * 2)
    data = tokenized(path, tokenizer, "turns")
    examples = load_examples(path, data_dir=None, split="train")
    pool = build_pool(examples[:1], tokenizer, 256)
    assert data["input_ids"] == [pool.input_ids[0].tolist()] * 2
    learned = np.flatnonzero(np.asarray(data[0]["labels"]) != -100)
    learned = learned[learned > 0]
    np.testing.assert_array_equal(learned, pool.predicted(0))
    assert data["sample_id"] == [examples[0].sample_id, f"{examples[0].sample_id}#2"]


def test_keys_say_which_tokens_are_learned(tmp_path, tokenizer):
    path = write_rows(tmp_path / "rows.jsonl", [ROWS["sharegpt"]])
    counts = [sum(label != -100 for label in tokenized(path, tokenizer, how)[0]["labels"]) for how in
              ("last", "turns", "all")]  # fmt: skip
    assert counts[0] < counts[1] < counts[2] == len(tokenized(path, tokenizer, "all")[0]["input_ids"])


def test_quality_is_mapped_from_the_range_that_is_given(tmp_path, tokenizer):
    rows = [{**ROWS["alpaca"], "quality": quality} for quality in (1, 4, 5)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert list(tokenized(path, tokenizer, "turns", quality_range=(1, 5))["quality"]) == [0, 0.75, 1]
    for ends, options in (
        ("1,5", []),
        ([1, 5], []),
        ("0,1", ["--quality_range", "1,5"]),
        ("0,1", ["--quality-range=1,5"]),
    ):
        trainer = build_trainer(*_read(configuration(tmp_path, path, quality_range=ends), options))
        assert sorted(trainer.train_dataset["quality"]) == [0, 0.75, 1]


def test_a_stream_holds_the_rows_of_the_file(tmp_path, tokenizer, sums):
    assert list(tokenized(sums, tokenizer, "turns", stream=True)) == list(tokenized(sums, tokenizer, "turns"))


def test_options_win_over_the_file(tmp_path, sums):
    path = configuration(tmp_path, sums)
    options = ["--learning_rate", "0.5", "--selection.budget=0.1", "--selection.rounds", "3"]
    arguments, data, model, _, selection = _read(path, options)
    assert (arguments.learning_rate, arguments.max_steps) == (0.5, 2)
    assert (data.dataset_name, model.model_name_or_path) == (sums, "tiny")
    assert selection == {"selector": "loss", "budget": 0.1, "rounds": 3}


def test_selector_and_budget_are_written_as_for_select():
    fields = {"selector": "gradient:mode=similarity,query=0.5", "budget": "10%", "rounds": 1}
    parameters = {"mode": "similarity", "query": 0.5}
    assert _as_fields(fields) == {"selector": "gradient", "parameters": parameters, "budget": 0.1, "rounds": 1}
    assert _as_fields({"selector": {"name": "loss"}, "budget": 0.2}) == {"selector": {"name": "loss"}, "budget": 0.2}
    for budget in ("5000rows", "2M", "10%rows"):
        with pytest.raises(RecipeError, match="takes a share of the candidates' tokens"):
            _as_fields({"budget": budget})


def test_training_writes_model_tables_and_card(tmp_path, sums):
    path = configuration(tmp_path, sums, target_dataset_name=sums, use_peft=True, dataset_streaming=True,
                         selection={"selector": {"name": "gradient", "mode": "similarity"}, "training_log": True,
                                    "budget": 0.5})  # fmt: skip
    done = run_python(["-m", "longgame.cli", "train", "--config", str(path), "--save_strategy", "no"], tmp_path)
    assert done.returncode == 0, done.stderr
    picks = longgame.read_picks(tmp_path / "out")
    assert f"{len(picks)} examples selected" in done.stdout
    assert set(longgame.read_training_log(tmp_path / "out")["sample_id"]) == set(picks["sample_id"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Data selection" in card
    assert "| selector | gradient |\n| parameters | mode = similarity |" in card
    assert (tmp_path / "out" / "adapter_config.json").is_file()


@pytest.mark.slow
def test_training_runs_under_accelerate_launch(tmp_path, sums):
    path = configuration(tmp_path, sums)
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "longgame.cli"]
    done = run_python([*launch, "train", "--config", str(path)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(longgame.read_picks(tmp_path / "out"))


def test_card_states_share_and_seed(tmp_path, sums):
    trainer = build_trainer(*_read(configuration(tmp_path, sums), ["--seed", "5"]))
    trainer.train()
    section = card_section(trainer)
    assert f"{trainer.selection_feed.spent:,} tokens" in section
    assert "| seed | 5 |" in section
    write_card(trainer, str(sums), model_name="mine")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.count("## Data selection") == 1
    assert "mine" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"learning_rte": 1}, RecipeError, "unknown key 'learning_rte'. Did you mean 'learning_rate'"),
        ({"selecton": {}}, RecipeError, "Did you mean 'selection'"),
        ({"selection": {"selector": "los"}}, RecipeError, "Did you mean 'loss'"),
        ({"selection": {"budgett": 1}}, RecipeError, "Did you mean 'budget'"),
        ({"selection": "los"}, RecipeError, "Did you mean 'loss'"),
        ({"max_steps": "many"}, RecipeError, "max-steps: invalid int value: 'many'"),
        ({"eval_strategy": "steps"}, RecipeError, "Set eval_dataset_name"),
        ({"eval_strategy": "often"}, RecipeError, "often"),
        ({"model_name_or_path": None}, RecipeError, "model_name_or_path is missing"),
        ({"dataset_name": None}, RecipeError, "dataset_name is missing"),
        ({"dataset_name": "no.jsonl"}, DataError, "no.jsonl"),
        ({"model_name_or_path": "./nowhere"}, ModelError, "does not exist"),
        ({"eos_token": "<x>"}, RecipeError, "eos_token would change"),
        ({"packing": True}, RecipeError, "selects anew at every step"),
        ({"loss_type": "none"}, RecipeError, "cannot be used|invalid choice"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_wrong_configurations_are_refused_in_a_sentence(tmp_path, sums, values, error, message):
    path = configuration(tmp_path, sums, **values)
    with pytest.raises(error, match=message):
        build_trainer(*_read(path, []))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--learning_rte", "1"], "Did you mean 'learning_rate'"),
        (["--selection.budget"], "has no value"),
        (["--selection.budget", "["], "cannot be read"),
        (["--max_steps", "x"], "invalid int value"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(tmp_path, sums, options, message):
    with pytest.raises(RecipeError, match=message):
        _read(configuration(tmp_path, sums), options)


@pytest.mark.parametrize(
    ("named", "message"),
    [("true", "holds no checkpoint"), ("checkpoint-9", "'checkpoint-9' is no folder.*has checkpoint-2. Name")],
)
def test_resuming_from_no_checkpoint_is_refused(tmp_path, sums, named, message):
    (arguments, *_) = _read(configuration(tmp_path, sums, resume_from_checkpoint=named), [])
    if named != "true":
        (tmp_path / "out" / "checkpoint-2").mkdir(parents=True)
    with pytest.raises(RecipeError, match=message):
        _checkpoint(arguments)


def test_resume_true_takes_the_last_checkpoint(tmp_path, sums):
    (arguments, *_) = _read(configuration(tmp_path, sums, resume_from_checkpoint=True), [])
    for step in (2, 10):
        (tmp_path / "out" / f"checkpoint-{step}").mkdir(parents=True)
    assert _checkpoint(arguments).endswith("checkpoint-10")


@pytest.mark.parametrize(("values", "warned"), [({}, True), ({"resume_from_checkpoint": False}, False)])
def test_a_training_that_begins_anew_beside_checkpoints_says_so(tmp_path, sums, caplog, values, warned):
    (arguments, *_) = _read(configuration(tmp_path, sums, **values), [])
    assert _checkpoint(arguments) is None
    assert not caplog.records
    (tmp_path / "out" / "checkpoint-10").mkdir(parents=True)
    assert _checkpoint(arguments) is None
    assert ("begins anew. To go on: --resume_from_checkpoint true" in caplog.text) == warned


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "longgame train --config"),
        ("sf.yaml", "does not exist. Did you mean 'sft.yaml'"),
        (".", "is a directory"),
    ],
)
def test_missing_configurations_are_refused(tmp_path, sums, config, message):
    configuration(tmp_path, sums)
    with pytest.raises(RecipeError, match=message):
        _read(None if config is None else tmp_path / config, [])


def test_bad_rows_are_named_or_skipped(tmp_path, tokenizer, caplog):
    path = write_rows(tmp_path / "rows.jsonl", [ROWS["prompt"], {"prompt": "a"}])
    with pytest.raises(DataError, match="line 2"):
        tokenized(path, tokenizer, "turns")
    assert len(tokenized(path, tokenizer, "turns", on_bad_row="skip")) == 1
    assert "1 of 2 rows" in caplog.text
    with pytest.raises(DataError, match="holds no usable rows"):
        tokenized(write_rows(tmp_path / "empty.jsonl", []), tokenizer, "turns")


def test_weights_of_a_subset_reach_the_loss(tmp_path):
    rows = [{"prompt": f"{a} + 1 =", "completion": f" {a + 1}", "longgame_weight": 3.0} for a in range(8)]
    first = []
    for weighted in (False, True):
        part = [row if weighted else {**row, "longgame_weight": None} for row in rows]
        path = configuration(tmp_path, write_rows(tmp_path / "d.jsonl", part), max_steps=1, logging_steps=1)
        trainer = build_trainer(*_read(path, ["--selection.budget", "1"]))
        trainer.train()
        first.append(next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry))
    assert first[1] == pytest.approx(3 * first[0], rel=1e-4)


@pytest.mark.parametrize("weight", [0, -1, "2", True])
def test_an_unusable_weight_names_its_row(tmp_path, tokenizer, weight):
    path = write_rows(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "b", "longgame_weight": weight}])
    with pytest.raises(DataError, match="longgame_weight"):
        tokenized(path, tokenizer, "turns")


def test_gpus_in_one_process_are_refused_before_loading(tmp_path, sums, monkeypatch):
    parsed = _read(configuration(tmp_path, sums, model_name_or_path="./nowhere"), [])
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(RecipeError, match="2 GPUs in one process"):
        build_trainer(*parsed)


@pytest.mark.parametrize(
    ("cause", "error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), ModelError, "Lower per_device_train_batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), ModelError, "does not fit into memory"),
        (RuntimeError("PytorchStreamWriter failed writing file"), StorageError, "cannot write into out"),
        (SafetensorError("I/O error: No space left on device"), StorageError, "No space left"),
        (RuntimeError("another one"), RuntimeError, "another one"),
    ],
)
def test_full_disks_and_memories_are_sentences(cause, error, message):
    with pytest.raises(error, match=message), training_errors("out"):
        raise cause


def test_without_trl_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(LonggameError, match=r"pip install 'longgame\[trl\]'"):
        _read(None, [])


def test_errors_end_the_command_with_a_code(tmp_path, sums):
    path = configuration(tmp_path, sums, learning_rte=1)
    done = longgame_here("train", "--config", path, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().count("\n") == 0
