"""The user-facing trainers: the Trainer's own steps and losses, resumable picks, clear refusals."""

import json
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from datasets import Dataset
from transformers import Trainer, TrainingArguments

import longgame
from longgame.errors import DataError, PluginError, RecipeError, ResumeError
from longgame.models.fused import ThinProducts
from longgame.selection.base import SELECTORS, build_selector
from longgame.selection.interventions import ClusterFloor, ProxyPenalty
from longgame.signals.quality.base import QualitySource
from longgame.training.candidates import content_ids
from longgame.training.sft import SelectionSFTTrainer
from longgame.training.trainer import SelectionTrainer
from support.trainers import lacks_online, losses, make_trainer, rows_of, sft, stream
from support.training import Coin, Peek, loss_scorer, make_model, make_policy, make_pool


def test_steps_and_learning_rates_are_those_of_a_quarter(tmp_path, tokenizer):
    picky = make_trainer(tmp_path, tokenizer, selector=Coin(), args={"gradient_accumulation_steps": 2})
    picky.train()
    plain = make_trainer(tmp_path, tokenizer, Trainer, pool=make_pool(10), args={"gradient_accumulation_steps": 2})
    plain.train()
    assert picky.state.global_step == plain.state.global_step == 6
    rates = [[e["learning_rate"] for e in t.state.log_history if "loss" in e] for t in (picky, plain)]
    assert rates[0] == rates[1]


def test_full_budget_gives_the_losses_of_the_plain_trainer(tmp_path, tokenizer):
    ours = make_trainer(tmp_path, tokenizer, selector=Coin(), budget=1.0, args={"gradient_accumulation_steps": 2})
    ours.train()
    plain = make_trainer(tmp_path, tokenizer, Trainer, args={"gradient_accumulation_steps": 2})
    plain.train()
    np.testing.assert_allclose(losses(ours), losses(plain), rtol=1e-4)


STATISTICS = {
    f"selection/{name}"
    for name in ("kept", "offered", "kept_tokens", "offered_tokens", "total_kept_tokens", "total_offered_tokens",
                 "overlap", "seconds", "time_share")
}  # fmt: skip


@pytest.mark.parametrize("log_statistics", [True, False])
def test_log_statistics_decides_what_is_logged(tmp_path, tokenizer, log_statistics):
    trainer = make_trainer(tmp_path, tokenizer, selector=Coin(), log_statistics=log_statistics)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = {name for name in entries[-1] if name.startswith("selection/")}
    assert names == (STATISTICS if log_statistics else set())
    assert trainer.selection_feed.spent > 0


def test_loss_counts_selected_tokens_only(tmp_path, tokenizer):
    model = make_model()
    before = loss_scorer(model)
    pool = make_pool(40)
    trainer = make_trainer(
        tmp_path, tokenizer, pool=pool, model=model, selector=Coin(), args={"max_steps": 1, "learning_rate": 0.0}
    )
    trainer.train()
    picks = trainer.selection_policy.rounds[0].picked_ids
    rows = [pool.index[i] for i in picks]
    nll = before(pool.take(rows), ("loss",))["loss"]
    expected = np.average(nll, weights=pool.response_tokens[rows])
    assert losses(trainer)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rounds", ["step", 1, 3])
def test_budget_and_rounds_hold_in_the_trainer(tmp_path, tokenizer, rounds):
    pool = make_pool(48)
    trainer = make_trainer(tmp_path, tokenizer, pool=pool, selector=Coin(), rounds=rounds, args={"num_train_epochs": 1})
    trainer.train()
    rounds_done = trainer.selection_policy.rounds
    spent = sum(done.selection.tokens for done in rounds_done)
    assert abs(spent - 0.25 * pool.tokens.sum()) <= pool.tokens.max()
    assert len(rounds_done) == (6 if rounds == "step" else rounds)
    assert trainer.state.global_step == 6


def test_offline_picks_get_as_many_passes_as_the_dataset(tmp_path, tokenizer):
    trainer = make_trainer(
        tmp_path, tokenizer, pool=make_pool(48), selector=Coin(), rounds=1, args={"num_train_epochs": 3}
    )
    trainer.train()
    assert trainer.selection_feed.learned == 3 * trainer.selection_feed.spent
    sizes = [sum(map(len, step)) for step in trainer.picks.values()]
    assert np.mean(sizes) == pytest.approx(2, abs=0.7)


def test_accumulation_does_not_change_what_is_picked(tmp_path, tokenizer):
    picks = []
    for size, accumulation in ((4, 1), (2, 2), (1, 4)):
        model = make_model()
        trainer = make_trainer(
            tmp_path, tokenizer, model=model, selector=Peek(), signals=loss_scorer(model),
            args={"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "max_steps": 4,
                  "train_sampling_strategy": "sequential"},
        )  # fmt: skip
        trainer.train()
        picks.append((losses(trainer), [done.picked_ids for done in trainer.selection_policy.rounds]))
    for other in picks[1:]:
        assert other[1] == picks[0][1]
        np.testing.assert_allclose(other[0], picks[0][0], rtol=1e-4)


@pytest.mark.parametrize("make", [make_trainer, sft])
def test_losses_do_not_need_a_model_that_counts_tokens(tmp_path, tokenizer, make):
    """Remote code and some models of transformers take no ``num_items_in_batch``."""
    steps = []
    for size, accumulation, counts in ((8, 1, True), (8, 1, False), (2, 4, False), (1, 8, False)):
        model = make_model()
        model.base_model.model.accepts_loss_kwargs = counts
        args = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "max_steps": 2,
                "train_sampling_strategy": "sequential", "max_grad_norm": 1e9}  # fmt: skip
        trainer = make(tmp_path, tokenizer, model=model, selector="longest", budget=0.5, args=args)
        assert trainer.model_accepts_loss_kwargs == counts
        trainer.train()
        entries = [entry for entry in trainer.state.log_history if "loss" in entry]
        steps.append([(entry["loss"], entry["grad_norm"]) for entry in entries])
        assert all(len(entry.picked_ids) < 8 for entry in trainer.selection_policy.rounds)  # some have no pick
    for other in steps[1:]:
        np.testing.assert_allclose(other, steps[0], rtol=1e-4)


@pytest.mark.parametrize("rounds", ["step", 3])
def test_resumed_training_equals_an_uninterrupted_one(tmp_path, tokenizer, rounds):
    def build(folder):
        model = make_model(dropout=0.3)
        args = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 1}
        return make_trainer(
            folder, tokenizer, model=model, selector=Peek(), signals=loss_scorer(model), rounds=rounds, args=args
        )

    undisturbed = build(tmp_path / "undisturbed")
    undisturbed.train()
    assert undisturbed.state.global_step == 6
    for stop in (1, 2, 3, 4, 5):
        resumed = build(tmp_path / f"resumed-{stop}")
        resumed.train(resume_from_checkpoint=str(tmp_path / "undisturbed" / f"checkpoint-{stop}"))
        assert resumed.picks == {step: undisturbed.picks[step] for step in range(stop, 6)}
        assert losses(resumed) == losses(undisturbed)
        assert resumed.selection_policy.selector.rounds == undisturbed.selection_policy.selector.rounds
        for (name, a), (_, b) in zip(
            resumed.model.named_parameters(), undisturbed.model.named_parameters(), strict=True
        ):
            assert torch.equal(a, b), name


def test_checkpoint_without_selection_is_refused(tmp_path, tokenizer):
    args = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    make_trainer(tmp_path, tokenizer, selector=Coin(), args=args).train()
    folder = tmp_path / "checkpoint-2"
    assert json.loads((folder / "selection.json").read_text())["format"] == 1
    for name in ("selection.json", "selection.safetensors"):
        (folder / name).write_bytes((tmp_path / "checkpoint-4" / name).read_bytes())
    with pytest.raises(ResumeError, match=r"selection state of step 4 .* training state of step 2\. Put back"):
        make_trainer(tmp_path, tokenizer, selector=Coin(), args=args).train(resume_from_checkpoint=str(folder))
    (folder / "selection.json").unlink()
    with pytest.raises(ResumeError, match="'selection'"):
        make_trainer(tmp_path, tokenizer, selector=Coin(), args=args).train(resume_from_checkpoint=str(folder))
    with pytest.raises(ResumeError, match=r"budget was 0\.25, is 0\.5"):
        make_trainer(tmp_path, tokenizer, selector=Coin(), budget=0.5, candidate_ratio=4, args=args).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-4")
        )


@pytest.mark.parametrize("rounds", [1, 2])
def test_few_steps_keep_the_batch_size_and_select_what_they_hold(tmp_path, tokenizer, rounds, caplog):
    pool = make_pool(80)
    trainer = make_trainer(tmp_path, tokenizer, pool=pool, selector=Coin(), rounds=rounds, args={"max_steps": 4})
    trainer.train()
    sizes = [len(batch) for batches in trainer.picks.values() for batch in batches]
    assert max(sizes) <= 4  # 2 a step; dealt by tokens, not by examples
    held = 4 * 2 * 4  # steps × batch size × candidates per place
    share = 0.25 * held / 80
    assert abs(trainer.selection_feed.spent - share * pool.tokens.sum()) <= pool.tokens.max()
    assert "4 steps of this batch size hold 0.4 of what a budget of 0.25 selects" in caplog.text


@pytest.mark.parametrize("rounds", ["step", 2])
def test_resuming_with_other_rows_is_refused(tmp_path, tokenizer, rounds):
    args = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    make_trainer(tmp_path, tokenizer, selector=Coin(), rounds=rounds, args=args).train()
    for other in (make_pool(38), make_pool(40).take(np.arange(40)[::-1])):
        trainer = make_trainer(tmp_path, tokenizer, pool=other, selector=Coin(), rounds=rounds, args=args)
        with pytest.raises(ResumeError, match=rf"another training dataset .* this one has {len(other)}"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_choice_at_every_step_resumes_into_a_longer_training(tmp_path, tokenizer):
    args = {"save_strategy": "steps", "save_steps": 5, "num_train_epochs": 1}
    make_trainer(tmp_path, tokenizer, selector=Coin(), args=args).train()
    longer = make_trainer(tmp_path, tokenizer, selector=Coin(), args={**args, "num_train_epochs": 2})
    longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert longer.state.global_step == 10
    make_trainer(tmp_path / "n", tokenizer, selector=Coin(), rounds=1, args=args).train()
    planned = make_trainer(tmp_path / "n", tokenizer, selector=Coin(), rounds=1, args={**args, "num_train_epochs": 2})
    with pytest.raises(ResumeError, match="steps was 5, is 10.*needs rounds='step'"):
        planned.train(resume_from_checkpoint=str(tmp_path / "n" / "checkpoint-5"))


def test_what_stands_in_for_picks_is_two_tokens_of_the_shortest(tmp_path, tokenizer):
    rows = rows_of(make_pool(40))
    padded = [{**row, **{name: [pad] * 3 + row[name] for name, pad in PADS.items()}} for row in rows]
    args = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "max_steps": 1}
    trainer = make_trainer(tmp_path, tokenizer, train=Dataset.from_list(padded), selector="longest", args=args)
    trainer.train()
    picked = trainer.selection_policy.rounds[0].picked_ids
    lengths = [len(row["input_ids"]) for row in rows if row["sample_id"] in picked]
    shortest = [
        row["input_ids"] for row in rows if row["sample_id"] in picked and len(row["input_ids"]) == min(lengths)
    ]
    stand_ins = trainer.picks[0][len(picked) :]
    assert len(stand_ins) == 8 - len(picked) > 0
    assert all(batch in [[ids[:2]] for ids in shortest] for batch in stand_ins)
    assert np.isfinite(losses(trainer)).all()


PADS = {"input_ids": 0, "labels": -100, "attention_mask": 0}


def test_training_twice_counts_rounds_and_budget_anew(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, selector=Coin(), rounds=2)
    trainer.train()
    spent = trainer.selection_feed.spent
    trainer.train()
    assert abs(trainer.selection_feed.spent - spent) <= 13
    assert len(trainer.selection_policy.rounds) == 4


def test_rows_without_ids_get_them_by_content(tmp_path, tokenizer):
    rows = rows_of(make_pool(12), ids=False)
    rows[5] = dict(rows[2])
    ids = content_ids(rows)
    assert ids[5] == f"{ids[2]}#2"
    assert set(content_ids(rows[::-1])) == set(ids)
    for train in (Dataset.from_list(rows), rows):
        trainer = make_trainer(tmp_path, tokenizer, train=train, selector=Coin(), args={"max_steps": 1})
        trainer.train()
        assert set(trainer.selection_policy.rounds[0].candidate_ids) <= set(ids)


def test_eval_dataset_with_ids_is_evaluated(tmp_path, tokenizer):
    validation = Dataset.from_list(rows_of(make_pool(6, 3)))
    trainer = make_trainer(tmp_path, tokenizer, selector=Coin(), eval_dataset=validation, args={"max_steps": 1})
    trainer.train()
    assert np.isfinite(trainer.evaluate()["eval_loss"])


def test_policy_log_drops_signals_of_earlier_rounds(tmp_path, tokenizer):
    model = make_model()
    trainer = make_trainer(tmp_path, tokenizer, model=model, selector=Peek(), signals=loss_scorer(model))
    trainer.train()
    earlier = trainer.selection_policy.rounds[:-1]
    assert earlier
    assert not any(done.signals.columns for done in earlier)


def test_a_stream_with_ids_is_selected_from_step_by_step(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, train=stream(64), selector=Coin(), args={"max_steps": 4})
    trainer.train()
    assert len(trainer.selection_policy.rounds) == 4


def test_default_source_gives_live_base_and_quality_signals(tmp_path, tokenizer):
    class Wide(Coin):
        name = "wide"
        requires = ("loss", "grad_norm", "embedding", "base_loss", "quality")

        def __init__(self):
            self.values = {}

        def select(self, pool, signals, history, budget, rng):
            for row, sample_id in enumerate(pool.ids):
                self.values[sample_id] = {name: signals[name][row] for name in self.requires}
            return super().select(pool, signals, history, budget, rng)

    model, pool = make_model(), make_pool(32)
    trainer = make_trainer(tmp_path, tokenizer, model=model, pool=pool, selector=Wide(), args={"max_steps": 4})
    expected = loss_scorer(model)(pool, ("loss",))["loss"]
    trainer.train()
    values = trainer.selection_policy.selector.values
    assert len(values) == 32
    np.testing.assert_allclose([values[i]["base_loss"] for i in pool.ids], expected, rtol=1e-4)
    first = trainer.selection_policy.rounds[0].candidate_ids
    np.testing.assert_allclose([values[i]["loss"] for i in first], [expected[pool.index[i]] for i in first], rtol=1e-4)
    assert not np.allclose([values[i]["loss"] for i in pool.ids], expected, rtol=1e-4)


@pytest.mark.parametrize(
    "selector",
    [
        *(name for name in SELECTORS.names() if not lacks_online(name)),
        ProxyPenalty(build_selector("loss"), 0.5),
        ClusterFloor(build_selector("loss"), 0.05),
    ],
    ids=lambda selector: selector if isinstance(selector, str) else type(selector).__name__,
)
def test_every_registered_selector_trains(tmp_path, tokenizer, selector):
    proxy = Dataset.from_list(rows_of(make_pool(4, seed=9)))
    trainer = make_trainer(tmp_path, tokenizer, selector=selector, proxy_dataset=proxy, args={"max_steps": 2})
    trainer.train()
    assert len(trainer.selection_policy.rounds) == 2
    assert trainer.selection_feed.spent > 0


def test_signals_of_all_candidates_need_a_dataset_with_a_length(tmp_path, tokenizer):
    class Clustered(Coin):
        name = "clustered"
        requires = ("cluster", "difficulty")

        def select(self, pool, signals, history, budget, rng):
            self.columns = [signals[name] for name in self.requires]
            return super().select(pool, signals, history, budget, rng)

    trainer = make_trainer(tmp_path, tokenizer, selector=Clustered(), clusters=3, args={"max_steps": 1})
    trainer.train()
    cluster, difficulty = trainer.selection_policy.selector.columns
    assert set(cluster) <= {0, 1, 2}
    assert ((difficulty > 0) & (difficulty < 1)).all()
    with pytest.raises(PluginError, match="candidates are a stream"):
        make_trainer(tmp_path, tokenizer, train=stream(), selector=Clustered(), args={"max_steps": 1}).train()


def test_lhas_aligns_exactly_under_an_optimizer_that_is_not_adam(tmp_path, tokenizer):
    picks = []
    for alignment in ("adam", "exact"):
        trainer = make_trainer(
            tmp_path, tokenizer, model=make_model(lora=False), selector={"name": "lhas", "alignment": alignment},
            proxy_refresh_steps=1, proxy_dataset=Dataset.from_list(rows_of(make_pool(8, seed=5))),
            args={"max_steps": 3, "optim": "adafactor"},
        )  # fmt: skip
        trainer.train()
        assert any("exp_avg_sq" in state for state in trainer.optimizer.state.values())  # of the norms
        picks.append([entry.picked_ids for entry in trainer.selection_policy.rounds])
    assert picks[0] == picks[1]


def test_a_future_term_without_a_proxy_dataset_is_refused(tmp_path, tokenizer):
    with pytest.raises(RecipeError, match="Pass proxy_dataset="):
        make_trainer(tmp_path, tokenizer, selector="lhas").train()


def test_target_and_proxy_dataset_are_two_names_of_one(tmp_path, tokenizer):
    items = Dataset.from_list(rows_of(make_pool(4, seed=9)))
    picks = []
    for name in ("proxy_dataset", "target_dataset"):
        trainer = make_trainer(tmp_path, tokenizer, selector="lhas", args={"max_steps": 2}, **{name: items})
        trainer.train()
        picks.append([done.picked_ids for done in trainer.selection_policy.rounds])
    assert picks[0] == picks[1]
    with pytest.raises(RecipeError, match="two names of one set"):
        make_trainer(tmp_path, tokenizer, selector="lhas", proxy_dataset=items, target_dataset=items)


def test_items_that_no_selector_reads_are_reported(tmp_path, tokenizer, caplog):
    items = Dataset.from_list(rows_of(make_pool(4, seed=9)))
    make_trainer(tmp_path, tokenizer, selector="loss", target_dataset=items)
    assert "the proxy or target dataset is not read" in caplog.text
    caplog.clear()
    make_trainer(tmp_path, tokenizer, selector="lhas", target_dataset=items)
    assert "is not read" not in caplog.text


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("train_datset", "no argument 'train_datset'. Did you mean 'train_dataset'"),
        ("proxy_datset", "Did you mean 'proxy_dataset'"),
        ("data_colator", "Did you mean 'data_collator'"),
        ("budget", r"It is a field of selection=SelectionConfig\(budget=…\)"),
    ],
)
@pytest.mark.parametrize("cls", [SelectionTrainer, SelectionSFTTrainer])
def test_misspelt_arguments_get_a_suggestion(cls, argument, message):
    with pytest.raises(RecipeError, match=message):
        cls(make_model(), **{argument: 0.5})


def test_full_fine_tuning_resumes_with_its_base_signals(tmp_path, tokenizer):
    def build(folder):
        args = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
        return make_trainer(folder, tokenizer, model=make_model(lora=False), selector="utility-diversity", args=args)

    first = build(tmp_path / "first")
    first.train()
    resumed = build(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-2"))
    assert resumed.picks == {step: first.picks[step] for step in (2, 3)}
    assert losses(resumed) == losses(first)


def test_interleaved_labels_are_selected_and_learned(tmp_path, tokenizer):
    rows = rows_of(make_pool(16))
    for row in rows:
        row["input_ids"] += [5, 6]
        row["labels"] += [-100, 6]
        row["attention_mask"] += [1, 1]
    train = Dataset.from_list(rows)
    trainer = make_trainer(tmp_path, tokenizer, train=train, selector=Peek(), args={"max_steps": 1})
    trainer.train()
    pool, picks = trainer.selection_picks
    assert len(picks)
    assert all(not pool.loss_masks[row].all() for row in picks)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"selector": "los"}, RecipeError, "Did you mean 'loss'"),
        ({"selector": 3}, RecipeError, "selector is a int"),
        ({"budget": 0.0}, RecipeError, "budget is 0.0"),
        ({"candidate_ratio": 0}, RecipeError, "candidate_ratio is 0"),
        ({"args": {"auto_find_batch_size": True}}, RecipeError, "auto_find_batch_size"),
        ({"args": {"train_sampling_strategy": "batch_rebalance"}}, RecipeError, "batch_rebalance"),
        ({"train": lambda: Dataset.from_list(rows_of(make_pool(2)) * 2)}, DataError, "'id000' repeats"),
        ({"train": lambda: Dataset.from_dict({"input_ids": []})}, DataError, "is empty"),
        ({"train": lambda: stream(ids=False), "args": {"max_steps": 1}}, DataError, "stream without a 'sample_id'"),
        ({"train": stream, "rounds": 2, "args": {"max_steps": 2}}, DataError, "cannot be scored as a whole"),
    ],
)
def test_unsupported_setups_are_refused_before_training(tmp_path, tokenizer, options, error, message):
    if "train" in options:
        options = {**options, "train": options["train"]()}
    with pytest.raises(error, match=message):
        make_trainer(tmp_path, tokenizer, **options)


def zero(stage):
    """accelerate's plugin of a configuration of DeepSpeed."""
    return SimpleNamespace(hf_ds_config=HfDeepSpeedConfig({"zero_optimization": {"stage": stage}}))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("get_tp_size", lambda: 2, "tensor, context or sequence parallelism: it divides"),
        ("get_cp_size", lambda: 2, "tensor, context or sequence parallelism: it divides"),
        ("get_sp_size", lambda: 2, "tensor, context or sequence parallelism: it divides"),
    ],
)
def test_divided_models_are_refused_with_the_reason(tmp_path, tokenizer, name, value, message):
    trainer = make_trainer(tmp_path, tokenizer)
    setattr(trainer, name, value)
    with pytest.raises(RecipeError, match=message):
        trainer._refuse_selection()


@pytest.mark.parametrize(
    ("name", "plugin", "value", "message"),
    [
        ("fsdp", "fsdp_plugin", SimpleNamespace(fsdp_version=1), r"FSDP1: .* Set fsdp_config=.'version': 2"),
        ("fsdp", "fsdp_plugin", SimpleNamespace(fsdp_version=2), None),
        ("deepspeed", "deepspeed_plugin", zero(3), "DeepSpeed ZeRO-3: .* Use ZeRO-1, ZeRO-2 or FSDP2"),
        ("deepspeed", "deepspeed_plugin", zero(2), None),
        ("deepspeed", "deepspeed_plugin", zero(1), None),
    ],
)
def test_weights_that_stay_divided_are_refused(tmp_path, tokenizer, name, plugin, value, message):
    trainer = make_trainer(tmp_path, tokenizer)
    setattr(trainer, f"is_{name}_enabled", True)
    trainer.accelerator = SimpleNamespace(state=SimpleNamespace(**{plugin: value}))
    with nullcontext() if message is None else pytest.raises(RecipeError, match=message):
        trainer._refuse_selection()


def test_several_gpus_in_one_process_are_refused(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(RecipeError, match=r"2 GPUs in one process .*torchrun --nproc_per_node 2"):
        make_trainer(tmp_path, tokenizer)


def test_processes_that_weigh_by_their_own_tokens_are_refused(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: 2))
    with pytest.raises(RecipeError, match="average_tokens_across_devices is False"):
        make_trainer(tmp_path, tokenizer, args={"average_tokens_across_devices": False})


def test_a_policy_brings_its_own_history(tmp_path, tokenizer):
    policy = make_policy(Coin())
    trainer = make_trainer(tmp_path, tokenizer, selector=policy, args={"max_steps": 2})
    trainer.train()
    assert trainer.selection_policy is policy
    assert policy.history.n_selected == sum(len(done.picked_ids) for done in policy.rounds)


def test_a_policy_of_two_trainings_counts_all_picks_by_the_clusters_of_the_second(tmp_path, tokenizer):
    selector = {"name": "lhas", "future_weight": 0}
    first = make_trainer(tmp_path, tokenizer, selector=selector, clusters=3, args={"max_steps": 2})
    first.train()
    history = first.selection_policy.history
    before = history.n_selected
    second = make_trainer(tmp_path, tokenizer, selector=first.selection_policy, clusters=2, args={"max_steps": 2})
    second.train()
    assert second.selection_policy.history is history
    assert set(history.cluster_counts) == {0, 1}
    assert sum(history.cluster_counts.values()) == history.n_selected > before > 0
    assert sum(history.cluster_tokens.values()) == history.tokens


def test_sft_trainer_selects_and_resumes(tmp_path, tokenizer):
    args = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    undisturbed = sft(tmp_path / "a", tokenizer, selector="loss", args=args)
    undisturbed.train()
    assert {i for done in undisturbed.selection_policy.rounds for i in done.candidate_ids} <= {
        f"s{i}" for i in range(40)
    }
    for stop in (2, 4):
        resumed = sft(tmp_path / f"b{stop}", tokenizer, selector="loss", args=args)
        resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{stop}"))
        picks = [[done.picked_ids for done in run.selection_policy.rounds] for run in (undisturbed, resumed)]
        assert picks[1] == picks[0][stop:]
        assert losses(resumed) == losses(undisturbed)


def test_sft_trainer_tokenizes_the_proxy_dataset(tmp_path, tokenizer):
    proxy = Dataset.from_list([{"prompt": "w3 w4 ", "completion": "w5 w6"}, {"prompt": "w7 ", "completion": "w8"}])
    trainer = sft(tmp_path, tokenizer, selector="lhas", proxy_dataset=proxy, args={"max_steps": 1})
    trainer.train()
    assert trainer.proxy_dataset[0]["input_ids"][:4] == [3, 4, 5, 6]


@pytest.mark.parametrize("args", [{}, {"padding_free": True, "max_length": None}])
def test_metrics_of_trl_count_picks_alone(tmp_path, tokenizer, args):
    runs = []
    for size, accumulation in ((8, 1), (1, 8)):
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "max_steps": 2}
        trainer = sft(tmp_path, tokenizer, args={**sizes, **args}, selector="longest", budget=0.5, training_log=True)
        trainer.train()
        runs.append([entry for entry in trainer.state.log_history if "loss" in entry])
    assert all(len(entry.picked_ids) < 8 for entry in trainer.selection_policy.rounds)
    assert [entry["num_tokens"] for entry in runs[0]] == [entry["num_tokens"] for entry in runs[1]]
    assert runs[1][-1]["num_tokens"] == trainer.selection_feed.learned
    log = trainer.selection_record.learned.frame()
    accuracy = log.groupby("step")["token_accuracy"].mean()  # a micro-batch has one pick, or none
    np.testing.assert_allclose([entry["mean_token_accuracy"] for entry in runs[1]], accuracy, rtol=1e-5)


def test_missing_trl_error_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "longgame.training.sft", raising=False)
    monkeypatch.delitem(vars(longgame), "SelectionSFTTrainer", raising=False)  # kept at the first look
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ImportError, match=r"pip install 'longgame\[trl\]'"):
        longgame.SelectionSFTTrainer  # noqa: B018
    with pytest.raises(AttributeError):
        longgame.Other  # noqa: B018


@pytest.mark.parametrize("rated", [39, 40])
def test_the_column_of_quality_is_read_where_all_rows_have_it(tmp_path, tokenizer, rated):
    rows, column, picks = rows_of(make_pool(40)), np.linspace(1, 0, 40), []
    partly = [{**row, "quality": column[number] if number < rated else None} for number, row in enumerate(rows)]
    for train, source in ((partly, None), (rows, None), (partly, Column())):
        trainer = make_trainer(
            tmp_path, tokenizer, train=Dataset.from_list(train), selector="quality", quality=source,
            args={"max_steps": 5},
        )  # fmt: skip
        trainer.train()
        picks.append([entry.picked_ids for entry in trainer.selection_policy.rounds])
    assert picks[1] != picks[2]
    assert picks[0] == picks[2 if rated == 40 else 1]


@pytest.mark.parametrize("rated", [0, 1])
def test_a_named_column_is_missing_only_where_no_row_of_the_dataset_has_it(tmp_path, tokenizer, rated):
    rows = [{**row, "quality": 0.5 if number < rated else None} for number, row in enumerate(rows_of(make_pool(40)))]
    trainer = make_trainer(
        tmp_path, tokenizer, train=Dataset.from_list(rows), selector="quality", quality="column", args={"max_steps": 5}
    )
    with nullcontext() if rated else pytest.raises(DataError, match="has a number in the column 'quality'"):
        trainer.train()


class Column(QualitySource):
    """The column where a row has it, else the best grade."""

    name = "column-or-best"

    def grade(self, examples):
        return np.asarray([1.0 if example.quality is None else example.quality for example in examples])


def test_a_named_source_of_quality_decides_the_picks(tmp_path, tokenizer):
    (tmp_path / "first.py").write_text(
        "from longgame.signals.quality.base import QualitySource\n\n\n"
        "class First(QualitySource):\n    name = 'first'\n\n"
        "    def grade(self, examples):\n        return [1.0 if e.sample_id in GOOD else 0.5 for e in examples]\n\n\n"
        f"GOOD = {set(make_pool(40).ids[:4])!r}\n"
    )
    trainer = make_trainer(
        *(tmp_path, tokenizer),
        selector="alpagasus",
        parameters={"threshold": 1},
        quality=f"{tmp_path / 'first.py'}:First",
        rounds=1,
        budget=0.25,
        args={"max_steps": 1},
    )
    trainer.train()
    picked = trainer.selection_policy.rounds[0].picked_ids
    assert set(picked[:2]) < set(make_pool(40).ids[:4])  # what is left of the budget holds none of the other two


@pytest.mark.parametrize(
    ("fused", "dtype", "thin"), [(True, "bfloat16", 14), (False, "bfloat16", 0), (True, "float32", 0)]
)
def test_a_bfloat16_base_trains_by_thin_products(tmp_path, tokenizer, monkeypatch, fused, dtype, thin):
    model = make_model().to(getattr(torch, dtype))
    for name, weight in model.named_parameters():
        weight.data = weight.data.float() if "lora_" in name else weight.data
    calls = []
    apply = ThinProducts.apply
    monkeypatch.setattr(ThinProducts, "apply", lambda *inputs: calls.append(1) or apply(*inputs))
    trainer = make_trainer(tmp_path, tokenizer, model=model, selector="loss", fused_lora=fused, args={"max_steps": 2})
    trainer.train()
    assert len(calls) == 2 * thin  # and none while candidates are scored
    assert not any("forward" in vars(module) for module in model.modules())
