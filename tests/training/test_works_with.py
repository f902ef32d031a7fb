"""Selection beside the options of transformers, TRL and PEFT: the rows of the table in docs/training.md."""

import copy
import re
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from datasets import Dataset

import longgame
from longgame.errors import ModelError, RecipeError, ResumeError
from longgame.selection.base import SELECTORS
from longgame.training.candidates import pool_of
from support.trainers import lacks_online, losses, make_trainer, rows_of, sft, stream
from support.training import Coin, loss_scorer, make_model, make_pool

SAVES = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}


def picks(trainer):
    return [done.picked_ids for done in trainer.selection_policy.rounds]


def trained(folder, tokenizer, make=make_trainer, **options):
    trainer = make(folder, tokenizer, **{"selector": "loss", **options})
    trainer.train()
    assert np.isfinite(losses(trainer)).all()
    return trainer


ADAPTERS = {
    "LoRA": peft.LoraConfig(r=2, target_modules="all-linear"),
    "DoRA": peft.LoraConfig(r=2, target_modules="all-linear", use_dora=True),
    "rsLoRA": peft.LoraConfig(r=2, target_modules="all-linear", use_rslora=True),
    "head saved": peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "IA3": peft.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "VeRA": peft.VeraConfig(target_modules=["q_proj"]),
    "LoHa": peft.LoHaConfig(target_modules=["q_proj"]),
    "OFT": peft.OFTConfig(target_modules=["q_proj"], oft_block_size=4),
    "LN": peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "p-tuning": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8),
}


def test_gradient_checkpointing_changes_nothing(tmp_path, tokenizer):
    runs = [
        trained(tmp_path, tokenizer, selector=selector, args={"gradient_checkpointing": on, "max_steps": 4})
        for selector in ("loss", "gradient")
        for on in (False, True)
    ]
    for plain, checkpointed in (runs[:2], runs[2:]):
        assert picks(plain) == picks(checkpointed)
        np.testing.assert_allclose(losses(plain), losses(checkpointed), rtol=1e-5)


@pytest.mark.parametrize("kind", ["full", "LoRA", "VeRA", "prompt", "prefix"])
def test_bf16_scores_in_the_precision_that_it_trains_in(tmp_path, tokenizer, kind):
    runs, kinds = [], []
    for bf16 in (False, True):
        model = make_model(lora=False)
        layer = model.model.layers[0].mlp.up_proj
        if kind != "full":
            model = peft.get_peft_model(model, ADAPTERS[kind])
        dtypes = {True: set(), False: set()}
        layer.register_forward_hook(lambda module, _, output, dtypes=dtypes: dtypes[module.training].add(output.dtype))
        args = {"bf16": bf16, "max_steps": 3}
        selector = "loss" if kind in ("prompt", "prefix", "VeRA") else "gradient"
        options = {"selector": selector, "keep_signals": True, "args": args}
        runs.append(trained(tmp_path, tokenizer, model=model, **options))
        kinds.append(dtypes)
    columns = [list(run.selection_policy.rounds[0].signals.columns.values()) for run in runs]
    for plain, halved in zip(*columns, strict=True):
        np.testing.assert_allclose(halved, plain, rtol=2e-2, atol=2e-2 * np.abs(plain).max())
        assert halved.dtype == np.float32
    assert kinds[0] == {True: {torch.float32}, False: {torch.float32}}
    assert kinds[1] == {
        True: {torch.bfloat16},
        False: {torch.bfloat16, torch.float32},
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="transformers trains in fp16 on a GPU only")
def test_fp16_trains_on_a_gpu(tmp_path, tokenizer):
    args = {"fp16": True, "use_cpu": False, "max_steps": 3}
    assert trained(tmp_path, tokenizer, args=args).state.global_step == 3


def test_weights_in_bfloat16_are_selected_for(tmp_path, tokenizer):
    model = make_model().to(torch.bfloat16)
    assert trained(tmp_path, tokenizer, model=model, selector="gradient", args={"max_steps": 3}).state.global_step == 3


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_torch_compile_picks_as_without(tmp_path, tokenizer, backend):
    runs = []
    for compiled in ({}, {"torch_compile": True, "torch_compile_backend": backend}):
        torch.compiler.reset()
        runs.append(trained(tmp_path, tokenizer, args={"max_steps": 4, **compiled}, training_log=True))
    assert picks(runs[0]) == picks(runs[1])
    np.testing.assert_allclose(losses(runs[0]), losses(runs[1]), rtol=1e-3)


@pytest.mark.parametrize("rounds", ["step", 2])
def test_dataloader_workers_change_nothing(tmp_path, tokenizer, rounds):
    runs = []
    for workers in ({}, {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}):
        runs.append(trained(tmp_path, tokenizer, rounds=rounds, args={"max_steps": 6, **workers}))
    assert picks(runs[0]) == picks(runs[1])
    assert losses(runs[0]) == losses(runs[1])


@pytest.mark.parametrize(
    ("args", "shuffle"),
    [({}, False), ({}, True), ({"gradient_accumulation_steps": 2}, False), ({"dataloader_num_workers": 1}, True)],
)
def test_streams_are_resumed_in_every_pass(tmp_path, tokenizer, args, shuffle):
    """20 rows are read again and again: a pass of three batches, the last one smaller."""

    def build(folder):
        rows = stream(20).shuffle(seed=3, buffer_size=8) if shuffle else stream(20)
        options = {**SAVES, "save_steps": 1, "max_steps": 10, **args}
        return make_trainer(folder, tokenizer, train=rows, selector="loss", args=options)

    uninterrupted = build(tmp_path / "a")
    uninterrupted.train()
    assert uninterrupted.state.global_step == 10
    for stop in (4, 8) if args or shuffle else (1, 3, 4, 8):
        resumed = build(tmp_path / f"b{stop}")
        resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{stop}"))
        assert picks(resumed) == picks(uninterrupted)[stop:]
        assert losses(resumed) == losses(uninterrupted)
        assert resumed.selection_feed.spent == uninterrupted.selection_feed.spent


@pytest.mark.parametrize("rows", [12, 20, 28, 30])
def test_passes_of_a_stream_end_in_a_step_of_their_own(tmp_path, tokenizer, rows):
    """Three micro-batches of four candidates: a pass ends after one, two or three of them, or inside one."""
    runs = []
    for name, sizes in (("a", (2, 3)), ("b", (6, 1))):
        args = dict(zip(("per_device_train_batch_size", "gradient_accumulation_steps"), sizes, strict=True))
        args |= {"max_steps": 7, "save_strategy": "steps", "save_steps": 1}
        options = {"train": stream(rows), "budget": 0.5, "training_log": True, "selector": "loss", "args": args}
        runs.append(make_trainer(tmp_path / name, tokenizer, **options))
        runs[-1].train()
        resumed = make_trainer(tmp_path / f"{name} resumed", tokenizer, **{**options, "train": stream(rows)})
        resumed.train(resume_from_checkpoint=str(tmp_path / name / "checkpoint-5"))
        assert picks(resumed) == picks(runs[-1])[5:]
    accumulated, at_once = runs
    assert len(picks(accumulated)) == 7
    assert picks(accumulated) == picks(at_once)
    np.testing.assert_allclose(losses(accumulated), losses(at_once), rtol=1e-4)
    log = accumulated.selection_record.learned.frame()
    assert log["step"].nunique() == 7


def test_workers_of_a_stream_in_a_later_pass_are_refused(tmp_path, tokenizer):
    args = {**SAVES, "max_steps": 8}
    trained(tmp_path, tokenizer, train=stream(20), args=args)
    workers = make_trainer(
        tmp_path, tokenizer, train=stream(20), selector="loss", args={**args, "dataloader_num_workers": 2}
    )
    with pytest.raises(ResumeError, match="the stream is in pass 2.*dataloader_num_workers=1"):
        workers.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


@pytest.mark.parametrize(
    ("strategy", "rounds"), [("random", "step"), ("random", 2), ("group_by_length", 2), ("sequential", "step")]
)
def test_sampling_strategies_are_resumed_exactly(tmp_path, tokenizer, strategy, rounds):
    args = {**SAVES, "train_sampling_strategy": strategy, "max_steps": 12}  # an epoch has five
    options = {"selector": "loss", "rounds": rounds}
    uninterrupted = trained(tmp_path / "a", tokenizer, args=args, **options)
    for stop in (4, 8):
        resumed = make_trainer(tmp_path / f"b{stop}", tokenizer, args=args, **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{stop}"))
        assert resumed.picks == {step: uninterrupted.picks[step] for step in range(stop, 12)}
        assert losses(resumed) == losses(uninterrupted)


def test_evaluation_in_training_changes_no_pick(tmp_path, tokenizer):
    validation = Dataset.from_list(rows_of(make_pool(6, 3)))
    plain = trained(tmp_path, tokenizer, args={"max_steps": 6})
    options = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 6}
    evaluated = trained(tmp_path, tokenizer, eval_dataset=validation, training_log=True, args=options)
    assert picks(plain) == picks(evaluated)
    assert losses(plain) == losses(evaluated)
    assert sum("eval_loss" in entry for entry in evaluated.state.log_history) == 3


def test_load_best_model_at_end_loads_it(tmp_path, tokenizer):
    validation = Dataset.from_list(rows_of(make_pool(6, 3)))
    best = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "save_total_limit": 1}
    trainer = trained(tmp_path, tokenizer, eval_dataset=validation, args={**SAVES, **best})
    assert trainer.state.best_model_checkpoint is not None
    lowest = min(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(lowest, rel=1e-4)
    assert len(longgame.read_picks(tmp_path)) == sum(map(len, picks(trainer)))


@pytest.mark.parametrize("kind", ADAPTERS)
def test_forward_signals_work_with_any_adapter(tmp_path, tokenizer, kind):
    model = peft.get_peft_model(make_model(lora=False), ADAPTERS[kind])
    pool = make_pool(40)
    rows = Dataset.from_list(rows_of(pool))
    trainer = make_trainer(
        tmp_path, tokenizer, model=model, train=rows, selector="loss", keep_signals=True, training_log=True,
        args={"max_steps": 2, "learning_rate": 0.0},
    )  # fmt: skip
    trainer.train()
    trainer.save_selection(tmp_path)
    log = longgame.read_training_log(tmp_path).set_index("sample_id")["loss"]
    for done in trainer.selection_policy.rounds:
        for row in done.selection.rows:
            assert log[done.candidate_ids[row]] == pytest.approx(done.signals["loss"][row], rel=1e-3)


@pytest.mark.parametrize("kind", ["prompt", "prefix", "p-tuning"])
def test_gradients_of_prompt_learning_are_refused(tmp_path, tokenizer, kind):
    model = peft.get_peft_model(make_model(lora=False), ADAPTERS[kind])
    with pytest.raises(ModelError, match="gradient signals are those of adapter layers or weights"):
        make_trainer(tmp_path, tokenizer, model=model, selector="gradient").train()


@pytest.mark.parametrize("rounds", [1, 2])
def test_packing_joins_what_was_selected(tmp_path, tokenizer, rounds):
    args = {"packing": True, "max_length": 32, "num_train_epochs": 2, "learning_rate": 0.0, **SAVES, "max_steps": -1}
    model = make_model()
    uninterrupted = sft(tmp_path / "a", tokenizer, args=args, model=model, selector=Coin(), budget=0.5, rounds=rounds,
                training_log=True)  # fmt: skip
    uninterrupted.train()
    rows = [uninterrupted.train_dataset[row] for row in range(len(uninterrupted.train_dataset))]
    pool = pool_of(rows)
    expected = loss_scorer(model)(pool, ("loss",))["loss"]
    table = longgame.read_training_log(tmp_path / "a")
    assert set(table["sample_id"]) == {sample_id for ids in picks(uninterrupted) for sample_id in ids}
    assert table["seen"].max() == 2
    for sample_id, loss in zip(table["sample_id"], table["loss"], strict=True):  # no example sees another one
        assert loss == pytest.approx(expected[pool.index[sample_id]], rel=1e-4)
    steps = table.groupby("step")["sample_id"].agg(lambda ids: sum(pool.tokens[pool.index[i]] for i in ids))
    assert steps.max() <= 2 * 32 + pool.tokens.max()
    assert len(steps) == uninterrupted.state.global_step == 2 * -(-int(np.ceil(0.5 * pool.tokens.sum() / 32)) // 2)
    resumed = sft(tmp_path / "b", tokenizer, args=args, selector=Coin(), budget=0.5, rounds=rounds, training_log=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert losses(resumed) == losses(uninterrupted)


def test_padding_free_batches_train_as_padded_ones(tmp_path, tokenizer):
    args = {"gradient_accumulation_steps": 2, "max_steps": 4, "max_length": None}
    runs = [trained(tmp_path, tokenizer, sft, args={**args, "padding_free": free}) for free in (False, True)]
    assert picks(runs[0]) == picks(runs[1])
    np.testing.assert_allclose(losses(runs[0]), losses(runs[1]), rtol=1e-4)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ({}, {}, "selects anew at every step"),
        ({"packing_strategy": "wrapped"}, {"rounds": 1}, "cuts examples"),
        ({"packing_strategy": "bfd_split"}, {"rounds": 1}, "cuts examples"),
        ({"max_length": None}, {"rounds": 1}, "needs max_length"),
        ({}, {"rounds": 1, "budget_of": "response"}, "needs a budget of tokens"),
    ],
)
def test_packing_that_cuts_or_repeats_is_refused(tmp_path, tokenizer, args, options, message):
    with pytest.raises(RecipeError, match=message):
        sft(tmp_path, tokenizer, args={"packing": True, **args}, **options)


@pytest.mark.parametrize(
    "args",
    [{"loss_type": "dft"}, {"label_smoothing_factor": 0.1}, {"neftune_noise_alpha": 5.0}, {"optim": "adafactor"}],
)
def test_other_losses_and_optimizers_keep_the_first_picks(tmp_path, tokenizer, args):
    runs = [trained(tmp_path, tokenizer, sft, training_log=True, args={"max_steps": 2, **a}) for a in ({}, args)]
    assert picks(runs[0])[0] == picks(runs[1])[0]


def test_completion_only_loss_scores_the_completion(tmp_path, tokenizer):
    rows = [{"prompt": f"w{i} w4 ", "completion": f"w{i + 1} w6", "sample_id": f"s{i}"} for i in range(3, 43)]
    for only in (True, False):
        args = {"completion_only_loss": only, "max_steps": 1, "learning_rate": 0.0}
        trainer = sft(tmp_path, tokenizer, args=args, data=Dataset.from_list(rows), selector="loss", budget=1.0)
        trainer.train()
        (done,) = trainer.selection_policy.rounds
        pool = pool_of([trainer.train_dataset[int(i.removeprefix("s")) - 3] for i in done.candidate_ids])
        assert (pool.response_tokens < pool.tokens - 1).all() == only
        expected = loss_scorer(trainer.model)(pool, ("loss",))["loss"]
        kept = trainer.state.log_history[0]["selection/loss_offered"]
        assert kept == pytest.approx(expected.mean(), rel=1e-4)


TEMPLATE = (
    "{% for turn in messages %}{% if turn.role == 'assistant' %}<s> {% generation %}{{ turn.content }} </s>"
    "{% endgeneration %} {% else %}{{ turn.content }} {% endif %}{% endfor %}"
)


def chats(turns, n=24):
    rng = np.random.default_rng(turns)

    def words():
        return " ".join(f"w{i}" for i in rng.integers(3, 61, 4))

    def conversation():
        return [{"role": role, "content": words()} for _ in range(turns) for role in ("user", "assistant")]

    return [{"messages": conversation(), "sample_id": f"s{row}"} for row in range(n)]


@pytest.mark.parametrize("selector", ["loss", "gradient"])
@pytest.mark.parametrize("turns", [1, 3])
def test_assistant_only_loss_learns_the_turns_of_trl(tmp_path, tokenizer, turns, selector):
    """Labels are those of the template's generation marks, and picks those of losses and gradients one by one."""
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = TEMPLATE
    rows, model = chats(turns), make_model(dropout=0.0)
    values = {}
    for row in rows:
        encoded = chat.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        ids = torch.tensor(encoded["input_ids"])
        mask = torch.tensor(encoded["assistant_masks"], dtype=torch.bool)
        row["expected"] = torch.where(mask, ids, -100).tolist()
        logits = model.eval()(input_ids=ids[None]).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits[mask[1:]], ids[1:][mask[1:]])
        weights = [value for value in model.parameters() if value.requires_grad]
        gradient = torch.autograd.grad(loss, weights)
        norm = sum(float(part.square().sum()) for part in gradient) ** 0.5
        values[row["sample_id"]] = loss.item() if selector == "loss" else norm
    data = Dataset.from_list([{key: row[key] for key in ("messages", "sample_id")} for row in rows])
    options = {"data": data, "model": model, "selector": selector, "rounds": 1, "keep_signals": True}
    trainer = sft(tmp_path, chat, args={"assistant_only_loss": True, "max_length": None}, **options)
    trainer.train()
    assert [row["labels"] for row in trainer.train_dataset] == [row["expected"] for row in rows]
    (done,) = trainer.selection_policy.rounds
    measured = done.signals["loss" if selector == "loss" else "grad_norm"]
    np.testing.assert_allclose(measured, [values[i] for i in done.candidate_ids], rtol=1e-3)
    best = sorted(values, key=values.__getitem__, reverse=True)
    assert list(done.picked_ids) == best[: len(done.picked_ids)]
    assert len(done.picked_ids) == len(rows) // 4


ROOT = Path(__file__).parents[2]


def table_of_the_docs():
    """(option, result, what proves it) of every row of the table."""
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").partition("## Works with")[2]
    lines = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in cells] for cells in lines if cells[0].strip() != "option"]


def source_text():
    """The code of the trainers and signals, with strings that span lines joined."""
    files = [path for name in ("training", "signals", "models") for path in (ROOT / "src/longgame" / name).glob("*.py")]
    return re.sub(r'"\s*\n\s*f?"', "", "".join(path.read_text(encoding="utf-8") for path in files))


@pytest.mark.parametrize("row", table_of_the_docs(), ids=lambda row: row[0][:40])
def test_the_table_of_the_docs_names_tests_and_messages(row):
    _, result, proof = row
    tests, messages = re.findall(r"`(test_\w+)`", proof), re.findall(r'"([^"]+)"', proof)
    assert bool(messages) == result.startswith("refused")
    assert bool(tests) == result.startswith("works")
    code = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    for name in tests:
        assert f"def {name}(" in code
    text = source_text()
    for message in messages:
        assert message in text


@pytest.mark.parametrize("selector", [name for name in SELECTORS.builtin_names() if lacks_online(name)])
def test_a_selector_that_lacks_signals_says_where_it_runs(tmp_path, tokenizer, selector):
    items = [{"prompt": f"w{n + 3} w4 ", "completion": f"w{n + 5} w{n + 3}"} for n in range(12)]
    with pytest.raises(RecipeError, match=r"in an audit|longgame select|SelectionConfig"):
        sft(
            tmp_path,
            tokenizer,
            data=Dataset.from_list(items[:8]),
            target_dataset=Dataset.from_list(items[8:]),
            selector=selector,
            args={"max_steps": 2},
        ).train()
