"""Several processes train as one: same picks, same losses, one writer."""

import os
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from longgame.errors import LonggameError, ModelError, NumericalError
from longgame.models.processes import Processes
from longgame.signals.base import Signals
from longgame.training.log import read_picks, read_training_log
from support.processes import run_in_processes
from support.trainers import losses, make_trainer, rows_of, sft, stream
from support.training import VOCAB, make_model, make_pool

CASES = {
    "loss": {"selector": "loss", "training_log": True},
    "lhas": {"selector": "lhas", "proxy": True},
    "craig": {"selector": "craig"},
    "rounds": {"selector": "gradient", "rounds": 2},
}
"""One selector for each kind of work: forward, proxy directions, weights, rounds."""
OTHERS = {
    "random": {"selector": "random"},
    "diversity": {"selector": "diversity"},
    "utility-diversity": {"selector": "utility-diversity"},
    "importance": {"selector": "importance"},
    "gradient": {"selector": "gradient"},
    "greats": {"selector": "greats", "proxy": True},
    "el2n": {"selector": "el2n"},
    "one round": {"selector": "craig", "rounds": 1},
    "stream": {"selector": "loss", "stream": True},
    "never again": {"selector": "loss", "repeat": False, "budget": 0.5},
    "full": {"selector": "loss", "full": True},
}


def trained(folder, cases, places, accumulation=1, resume=None):
    """Train each case in this process and its peers; return what the tests compare, by case."""
    words = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
    sizes = {"per_device_train_batch_size": places, "gradient_accumulation_steps": accumulation}
    results = {}
    for name, case in cases.items():
        options = {key: value for key, value in case.items() if key not in ("args", "proxy", "stream", "full")}
        if case.get("proxy"):
            options["proxy_dataset"] = Dataset.from_list(rows_of(make_pool(8, seed=5)))
        if case.get("stream"):
            options["train"] = stream(80)
        if case.get("full"):
            options["model"] = make_model(lora=False)
        args = {"max_steps": 3, **sizes, **case.get("args", {})}
        trainer = make_trainer(Path(folder) / name.replace(" ", "-"), tokenizer, args=args, **options)
        trainer.train(resume_from_checkpoint=resume)
        results[name] = outcome_of(trainer)
    return results


def outcome_of(trainer):
    return {
        "picks": [entry.picked_ids for entry in trainer.selection_policy.rounds],
        "losses": losses(trainer),
        "square": float(sum(part.detach().double().square().sum() for part in trainer.model.parameters())),
        "learned": trainer.selection_feed.learned,
        "log": trainer.selection_record.learned.frame() if trainer.selection_record.learned else None,
    }


def check_equal(answers, expected):
    """Every process made these picks and learned as one process does."""
    for answer in answers:
        assert isinstance(answer, dict), answer
        for name, result in expected.items():
            assert answer[name]["picks"] == result["picks"], name
            np.testing.assert_allclose(answer[name]["losses"], result["losses"], rtol=2e-3, err_msg=name)
            assert answer[name]["square"] == pytest.approx(result["square"], rel=1e-6), name
            assert answer[name]["learned"] == result["learned"], name


def by_example(log):
    columns = ["sample_id", "epoch", "round", "step", "loss", "token_accuracy", "seen"]
    return log[columns].sort_values(["step", "sample_id"]).reset_index(drop=True)


def test_two_processes_pick_and_learn_as_one(tmp_path):
    cases = {**CASES, "loss": {**CASES["loss"], "args": {"save_strategy": "steps", "save_steps": 2}}}
    one = trained(tmp_path / "1", cases, 4)
    two = run_in_processes(trained, 2, str(tmp_path / "2"), cases, 2)
    check_equal(two, one)
    logs = [by_example(result["loss"]["log"]) for result in (*two, one)]
    for log in logs[:2]:
        assert log.drop(columns="loss").equals(logs[2].drop(columns="loss"))
        np.testing.assert_allclose(log["loss"], logs[2]["loss"], rtol=1e-4)

    checkpoint = tmp_path / "2" / "loss" / "checkpoint-2"
    assert read_picks(checkpoint).equals(read_picks(tmp_path / "1" / "loss" / "checkpoint-2"))
    assert read_training_log(checkpoint)["step"].tolist() == sorted(read_training_log(checkpoint)["step"])
    resumed = trained(tmp_path / "3", {"loss": cases["loss"]}, 4, resume=str(checkpoint))["loss"]
    assert resumed["picks"] == one["loss"]["picks"][2:]
    assert resumed["square"] == pytest.approx(one["loss"]["square"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "accumulation"), [(2, 2), (4, 1)])
def test_any_number_of_processes_picks_as_one(tmp_path, size, accumulation):
    cases = {**CASES, **OTHERS}
    one = trained(tmp_path / "1", cases, 4)
    many = run_in_processes(trained, size, str(tmp_path / "2"), cases, 4 // (size * accumulation), accumulation)
    check_equal(many, one)


@pytest.mark.slow
def test_a_training_goes_on_with_more_processes(tmp_path):
    saved = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    cases = {name: {**CASES[name], "args": saved} for name in ("lhas", "rounds")}
    one = trained(tmp_path / "1", cases, 4)
    for name, first in (("lhas", 2), ("rounds", 1)):
        folder = str(tmp_path / "1" / name / "checkpoint-2")
        for answer in run_in_processes(trained, 2, str(tmp_path / "2"), {name: cases[name]}, 2, 1, folder):
            assert answer[name]["picks"] == one[name]["picks"][first:]
            assert answer[name]["square"] == pytest.approx(one[name]["square"], rel=1e-6)


def trained_sft(folder, places):
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    model = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    model.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, **special)
    results = {}
    for name, args, options in (
        ("step", {}, {"selector": "loss"}),
        ("weights", {}, {"selector": "craig"}),
        ("packed", {"packing": True, "max_length": 32}, {"selector": "loss", "rounds": 2}),
    ):
        args = {"max_steps": 3, "per_device_train_batch_size": places, **args}
        trainer = sft(Path(folder) / name, tokenizer, args=args, **options)
        trainer.train()
        results[name] = outcome_of(trainer)
    return results


@pytest.mark.slow
def test_sft_in_two_processes_picks_and_learns_as_in_one(tmp_path):
    one = trained_sft(tmp_path / "1", 4)
    check_equal(run_in_processes(trained_sft, 2, str(tmp_path / "2"), 2), one)


def differing(folder):
    """What each process says where the processes do not fit together; none waits for another."""
    words = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
    rank = int(os.environ["RANK"])
    answers = {}

    def record(name, work):
        try:
            work()
        except LonggameError as error:
            answers[name] = f"{type(error).__name__}: {error}"

    def train(**options):
        args = {"max_steps": 2, **options.pop("args", {})}
        make_trainer(Path(folder), tokenizer, args=args, **options).train()

    def own_scores(pool, names):
        values = np.random.default_rng(rank).normal(size=len(pool))
        return Signals(pool.ids, {name: values.astype(np.float32) for name in names})

    def one_fails():
        if rank == 1:
            raise NumericalError("a signal is NaN (example e1).")

    record("rows", lambda: train(pool=make_pool(40 - 4 * rank)))
    record("content", lambda: train(pool=make_pool(40, seed=rank)))
    record("budget", lambda: train(budget=0.2 + 0.1 * rank))
    record("batch", lambda: train(args={"per_device_train_batch_size": 2 + rank}))
    record("picks", lambda: train(selector="loss", signals=own_scores))
    record("error", lambda: Processes.current().each(one_fails))
    if rank == 0:
        record("foreign", lambda: Processes.current().each(lambda: 1))
    else:
        with pytest.raises(ZeroDivisionError):
            Processes.current().each(lambda: 1 // 0)
    return answers


def test_processes_that_differ_are_refused_by_all(tmp_path):
    first, second = run_in_processes(differing, 2, str(tmp_path))
    assert "ModelError: process 1 failed: ZeroDivisionError" in first["foreign"]
    for answers in (first, second):
        assert isinstance(answers, dict), answers
        assert "process 1 of 2 has a training dataset other than process 0" in answers["rows"]
        assert "process 1 of 2 has candidates other than process 0" in answers["content"]
        assert "process 1 of 2 has a selection other than process 0" in answers["budget"]
        assert "process 1 of 2 has a batch size, accumulation or seed other" in answers["batch"]
        assert "process 1 of 2 has picks of step 1 other than process 0" in answers["picks"]
        assert answers["error"] == "NumericalError: a signal is NaN (example e1)."


def one_ends():
    import torch.distributed as dist

    dist.init_process_group("gloo")
    if dist.get_rank() == 1:
        return None
    try:
        Processes.current().each(lambda: 1)
    except ModelError as error:
        return str(error)


def test_a_process_that_ended_is_named_as_the_cause():
    message, _ = run_in_processes(one_ends, 2)
    assert "process 0 of 2 cannot reach the others" in message
    assert "one of them ended" in message
