"""Several processes train as one: same picks, same losses, one writer."""

import functools
import json
import os
import re
import time
from datetime import timedelta
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from datasets import Dataset
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedTokenizerFast

from longgame.errors import LonggameError, ModelError, NumericalError
from longgame.models.head import unwrap
from longgame.models.processes import Processes
from longgame.models.sharding import shards, whole
from longgame.selection.base import SELECTORS
from longgame.signals.base import Signals
from longgame.signals.engine import BACKWARD, FORWARD, SignalEngine
from longgame.signals.quality.base import QualitySource
from longgame.signals.source import SignalSource
from longgame.training import trainer as trainer_module
from longgame.training.config import SelectionConfig
from longgame.training.log import read_picks, read_training_log
from support.cli import longgame_here, run_python
from support.processes import Threads, run_in_processes
from support.signals import llama, random_pool, with_lora
from support.trainers import lacks_online, losses, make_trainer, rows_of, sft, stream
from support.training import PAD, VOCAB, Coin, make_model, make_pool

CASES = {
    "loss": {"selector": "loss", "training_log": True},
    "lhas": {"selector": "lhas", "proxy": True},
    "craig": {"selector": "craig"},
    "rounds": {"selector": "gradient", "rounds": 2},
    "uncounted": {"selector": "craig", "rounds": 1, "uncounted": True},
}
"""One selector for each kind of work: forward, proxy directions, weights, rounds; a model that counts no tokens."""
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

AUTO = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
"""What DeepSpeed takes from the Trainer's arguments."""

SET_UPS = ("args", "proxy", "stream", "full", "uncounted", "zero", "fsdp")
"""Keys of a case that are no options of the trainer."""


def trained(folder, cases, places, accumulation=1, resume=None):
    """Train each case in this process and its peers; return what the tests compare, by case."""
    words = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
    sizes = {"per_device_train_batch_size": places, "gradient_accumulation_steps": accumulation}
    results = {}
    for name, case in cases.items():
        options = {key: value for key, value in case.items() if key not in SET_UPS}
        if case.get("proxy"):
            options["proxy_dataset"] = Dataset.from_list(rows_of(make_pool(8, seed=5)))
        if case.get("stream"):
            options["train"] = stream(80)
        if case.get("full"):
            options["model"] = make_model(lora=False)
        if case.get("uncounted"):
            options["model"] = make_model()
            options["model"].base_model.model.accepts_loss_kwargs = False
        args = {"max_steps": 3, **sizes, **case.get("args", {})}
        if "zero" in case and "WORLD_SIZE" in os.environ:
            args["deepspeed"] = {**dict.fromkeys(AUTO, "auto"), "zero_optimization": {"stage": case["zero"]}}
        trainer = make_trainer(Path(folder) / name.replace(" ", "-"), tokenizer, args=args, **options)
        if case.get("fsdp") and "WORLD_SIZE" in os.environ:
            divide(trainer)
        trainer.train(resume_from_checkpoint=resume)
        results[name] = outcome_of(trainer)
    return results


def divide(trainer):
    """Set up FSDP2 as accelerate does on GPUs; on a CPU it leaves ``fsdp`` without effect."""
    state = trainer.accelerator.state
    wrap = {"auto_wrap_policy": "transformer_based_wrap", "transformer_cls_names_to_wrap": ["LlamaDecoderLayer"]}
    state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, reshard_after_forward=True, **wrap)
    state.distributed_type = DistributedType.FSDP
    trainer.is_fsdp_enabled = True
    trainer._refuse_selection()


def outcome_of(trainer):
    return {
        "picks": [entry.picked_ids for entry in trainer.selection_policy.rounds],
        "losses": losses(trainer),
        "square": float(sum(whole(part.detach()).double().square().sum() for part in trainer.model.parameters())),
        "learned": trainer.selection_feed.learned,
        "units": len(shards(trainer.model)),
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
    picks, of_one = read_picks(checkpoint), read_picks(tmp_path / "1" / "loss" / "checkpoint-2")
    assert picks.drop(columns="term_score").equals(of_one.drop(columns="term_score"))
    np.testing.assert_allclose(picks["term_score"], of_one["term_score"], rtol=1e-5)  # batches of another size
    assert read_training_log(checkpoint)["step"].tolist() == sorted(read_training_log(checkpoint)["step"])
    resumed = trained(tmp_path / "3", {"loss": cases["loss"]}, 4, resume=str(checkpoint))["loss"]
    assert resumed["picks"] == one["loss"]["picks"][2:]
    assert resumed["square"] == pytest.approx(one["loss"]["square"], rel=1e-6)


def choices(selector, models, processes):
    """Ids and weights of the picks of three rounds, and the state that the policy is left in."""
    pool, items = make_pool(36), make_pool(8, seed=5)
    options = {"candidates": lambda: [pool], "proxy": lambda: items, "target": lambda: items, "clusters": 3}
    source = SignalSource.of_model(models[processes.rank], pad_token_id=PAD, **options)
    source.engine.max_batch_tokens = 40  # several batches of a choice, which are shared
    source.share(processes)
    source.begin_stage()
    policy = SelectionConfig(selector=selector).build_policy(7)
    picks = []
    for step, rows in enumerate(np.arange(36).reshape(3, 12)):
        source.step = step
        offered = pool.take(rows)
        _, decision = policy.choose(offered, int(offered.tokens.sum()) // 3, source, 1)
        weights = decision.selection.weights
        picks.append((decision.picked_ids, None if weights is None else weights.tolist()))
    return picks, json.dumps(policy.state_dict(), default=np.ndarray.tolist)


@pytest.mark.parametrize("selector", [name for name in SELECTORS.names() if not lacks_online(name)])
def test_processes_choose_as_one_for_every_selector(selector):
    models = [make_model() for _ in range(4)]  # drawn from torch's global generator, which threads share
    one = choices(selector, models, Processes())
    for size in (2, 4):
        for result in Threads.together(functools.partial(choices, selector, models), size):
            assert result == one


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


@pytest.mark.slow
def test_deepspeed_picks_and_learns_as_one_process(tmp_path):
    """ZeRO-1 and 2 divide the optimizer; LHAS reads Adam's moments of it."""
    pytest.importorskip("deepspeed")
    cases = {
        "loss": {**CASES["loss"], "zero": 1},
        "lhas": {**CASES["lhas"], "zero": 1},
        "two": {**CASES["lhas"], "zero": 2},
    }
    one = trained(tmp_path / "1", cases, 4)
    check_equal(run_in_processes(trained, 2, str(tmp_path / "2"), cases, 2), one)


def signals_of_divided(lora):
    """Largest relative differences of signals under FSDP2 from those of the whole model, by signal."""
    torch.distributed.init_process_group("gloo")
    model, again = (with_lora(llama()) if lora else llama() for _ in range(2))
    pool = random_pool(11)
    names = (*FORWARD, *BACKWARD, "future_alignment")
    weights = np.linspace(0.1, 1, 22).reshape(11, 2)
    columns = []
    for part in (again, model):
        if part is model:
            base, mesh = unwrap(model), init_device_mesh("cpu", (2,))
            for layer in base.model.layers:
                fully_shard(layer, mesh=mesh)
            tail = [base.model.norm, base.model.embed_tokens, base.lm_head]  # tied: a unit, as accelerate makes it
            fully_shard(tail, mesh=mesh, reshard_after_forward=False)
            fully_shard(model, mesh=mesh)
        engine = SignalEngine(part, pad_token_id=PAD, sketch_dim=64, max_batch_tokens=48)
        engine.processes = Processes.current()
        engine.measure_directions(pool, weights)
        columns += [engine(pool, names[:1]), engine(pool, names), engine(pool, names)]
    expected = columns[1]
    differing = {}
    for name in names:
        scale = np.abs(expected[name]).max()
        for measured in columns[4:]:
            differing[name] = max(differing.get(name, 0), float(np.abs(measured[name] - expected[name]).max() / scale))
    return differing, len(shards(model)), {type(weight).__name__ for weight in model.parameters()}


@pytest.mark.parametrize("lora", [True, False])
def test_signals_of_divided_weights_are_those_of_whole_ones(lora):
    for differing, units, kinds in run_in_processes(signals_of_divided, 2, lora):
        assert units == 6
        assert kinds == {"DTensor"}
        assert max(differing.values()) < 1e-4, differing


@pytest.mark.slow
def test_fsdp2_picks_and_learns_as_one_process(tmp_path):
    """Adam's moments (lhas), weights of the loss (craig) and all weights (full)."""
    cases = {name: {**CASES[name], "fsdp": True} for name in ("lhas", "craig", "rounds")}
    cases["full"] = {**OTHERS["full"], "fsdp": True}
    one = trained(tmp_path / "1", cases, 4)
    two = run_in_processes(trained, 2, str(tmp_path / "2"), cases, 2)
    check_equal(two, one)
    assert all(result["units"] > 3 for answers in two for result in answers.values())


DIVIDED = {
    "fsdp2": {"lhas": {**CASES["lhas"], "fsdp": True}, "full": {**OTHERS["full"], "fsdp": True}},
    "zero-1": {"lhas": {**CASES["lhas"], "zero": 1}},
    "zero-2": {"rounds": {**CASES["rounds"], "zero": 2}},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", DIVIDED)
def test_a_divided_training_is_resumed_as_it_went_on(tmp_path, way):
    """Two processes stop behind a checkpoint of step 2 and start again; four steps in all."""
    if way != "fsdp2":
        pytest.importorskip("deepspeed")
    saved = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    for name, case in DIVIDED[way].items():
        cases = {name: {**case, "args": saved}}
        expected = run_in_processes(trained, 2, str(tmp_path / "first"), cases, 2)[0]
        assert isinstance(expected, dict), expected
        resumed = run_in_processes(
            trained, 2, str(tmp_path / "again"), cases, 2, 1, str(tmp_path / "first" / name / "checkpoint-2")
        )
        first = len(expected[name]["picks"]) - len(resumed[0][name]["picks"]) if isinstance(resumed[0], dict) else 0
        assert first > 0, resumed
        expected[name]["picks"] = expected[name]["picks"][first:]
        check_equal(resumed, expected)


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
}
"""On a CPU accelerate starts several processes only by --multi_gpu; ``use_cpu`` is in the configuration."""


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("accelerate", marks=pytest.mark.slow)])
def test_launched_processes_of_the_command_pick_as_one(tmp_path, launcher):
    rows = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a in range(6) for b in range(4)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fixed = {"model_name_or_path": "tiny", "dataset_name": "sums.jsonl", "max_steps": 2, "bf16": False, "use_cpu": True}
    configuration = {**fixed, "report_to": "none", "selection": {"selector": "loss", "budget": 0.5}}
    (tmp_path / "sft.yaml").write_text(json.dumps(configuration))

    def options(folder, places):
        return ["train", "--config", "sft.yaml", "--output_dir", folder, "--per_device_train_batch_size", places]

    one = longgame_here(*options("one", "4"), cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    two = run_python(["-m", *LAUNCHERS[launcher], "-m", "longgame.cli", *options("two", "2")], tmp_path)
    assert two.returncode == 0, two.stderr
    picks = [read_picks(tmp_path / name) for name in ("one", "two")]
    assert picks[0].drop(columns="term_score").equals(picks[1].drop(columns="term_score"))
    np.testing.assert_allclose(picks[0]["term_score"], picks[1]["term_score"], rtol=1e-5)


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
    with mock.patch.object(trainer_module, "_version", return_value=f"{rank}.0"):
        record("version", lambda: train())
    record("error", lambda: Processes.current().each(one_fails))
    if rank == 0:
        record("foreign", lambda: Processes.current().each(lambda: 1))
    else:
        with pytest.raises(ZeroDivisionError):
            Processes.current().each(lambda: 1 // 0)
    return answers


class Graded(QualitySource):
    """Another object in every process; only what decides the grades is its identity."""

    name = "graded"

    def __init__(self, grade=0.5):
        self.value = grade

    def identity(self):
        return f"{self.name} {self.value}"

    def grade(self, examples):
        return np.full(len(examples), self.value)


class Takes(Coin):
    name = "takes"

    def __init__(self, helper=None):
        self.helper = helper


class Notes(Processes):
    """Two processes, of which this one notes what they are to agree on."""

    def __init__(self):
        super().__init__(0, 2)
        self.notes = []

    def agree(self, what, value, fix):
        self.notes.append((what, value))


@pytest.mark.parametrize("field", ["quality", "complexity", "parameters"])
def test_objects_of_a_selection_agree_by_what_they_are(tmp_path, tokenizer, field):
    def notes(value):
        options = {"selector": Takes, "parameters": {"helper": value}} if field == "parameters" else {field: value}
        trainer = make_trainer(tmp_path, tokenizer, **{"selector": "quality", **options})
        trainer._selection_processes = Notes()
        trainer._selection_agree()
        return trainer._selection_processes.notes

    first, second = Graded(), Graded()  # both alive, so at two addresses
    assert notes(first) == notes(second)
    assert notes(first) != notes(0.7 if field == "parameters" else Graded(0.7))


def test_processes_that_differ_are_refused_by_all(tmp_path):
    first, second = run_in_processes(differing, 2, str(tmp_path))
    assert "ModelError: process 1 failed: ZeroDivisionError" in first["foreign"]
    for answers in (first, second):
        assert isinstance(answers, dict), answers
        assert "process 1 of 2 has a training dataset other than process 0" in answers["rows"]
        assert "process 1 of 2 has candidates other than process 0" in answers["content"]
        assert "process 1 of 2 has a selection other than process 0" in answers["budget"]
        assert "process 1 of 2 has a batch size, accumulation or seed other" in answers["batch"]
        assert "process 1 of 2 has versions other than process 0" in answers["version"]
        assert "process 1 of 2 has picks of step 1 other than process 0" in answers["picks"]
        assert answers["error"] == "NumericalError: a signal is NaN (example e1)."


def one_ends(where, folder):
    """What the first process says once the second has ended, or does not answer."""
    rank = int(os.environ["RANK"])
    try:
        if where == "training":
            words = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
            trainer = make_trainer(Path(folder), tokenizer, args={"max_steps": 3}, selector="loss")
            if rank == 1:  # the other waits for its gradients
                trainer.training_step = lambda *_: os._exit(1)
            trainer.train()
        else:
            torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=2))
            if rank == 1:
                time.sleep(10 if where == "stuck" else 0)
                os._exit(1)
            Processes.current().each(lambda: 1)
    except ModelError as error:
        return str(error)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("gathering", "process 0 of 2 cannot reach the others .*one of them ended"),
        ("training", "process 0 of 2 cannot reach the others .*one of them ended"),
        ("stuck", "process 0 of 2 got no answer from the others in time .*raise ddp_timeout"),
    ],
)
def test_a_process_that_ended_is_named_as_the_cause(tmp_path, where, message):
    answer, _ = run_in_processes(one_ends, 2, where, str(tmp_path), timeout=120)
    assert re.search(message, answer), answer
