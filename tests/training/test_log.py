"""What a training selected and learned: tables in every checkpoint, the same after a resume, cheap to write."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainerCallback
from transformers.integrations.integration_utils import rewrite_logs

import longgame
from longgame.errors import BudgetError, DataError, ResumeError
from longgame.training.candidates import fresh_first
from longgame.training.log import PICKS, TRAINING_LOG, Parts
from support.trainers import losses, make_trainer, sft, stream
from support.training import Coin, Peek, loss_scorer, make_model, make_pool

SAVES = {"save_strategy": "steps", "save_steps": 1}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=25), st.booleans())
def test_parts_hold_all_rows_in_few_files(tmp_path_factory, appends, reload):
    folder, table, rows = tmp_path_factory.mktemp("parts"), Parts(), 0
    for number, (n, write) in enumerate(appends):
        table.append({"value": np.arange(rows, rows + n), f"of_{number % 2}": np.ones(n)})
        rows += n
        if not write:
            continue
        table.write(folder / str(number))
        files = sorted((folder / str(number)).iterdir())
        assert len(files) <= np.log2(rows) + 2
        table = Parts.load(folder / str(number)) if reload else table
        assert table.frame()["value"].tolist() == list(range(rows))
        assert pd.read_parquet(folder / str(number))["value"].tolist() == list(range(rows))
    assert len(table) == rows


def test_parts_are_linked_not_written_again(tmp_path):
    table = Parts()
    table.append({"value": np.arange(1000)})
    table.write(tmp_path / "a")
    table.append({"value": np.arange(10)})
    table.write(tmp_path / "b")
    first = next(iter((tmp_path / "a").iterdir()))
    assert (tmp_path / "b" / first.name).stat().st_ino == first.stat().st_ino


@pytest.mark.parametrize("rounds", ["step", 2])
def test_picks_are_on_disk_in_every_checkpoint(tmp_path, tokenizer, rounds):
    model = make_model()
    options = {"model": model, "selector": Peek(), "signals": loss_scorer(model), "rounds": rounds}
    trainer = make_trainer(tmp_path, tokenizer, args=SAVES, **options)
    trainer.train()
    ids, terms = [], []
    for done in trainer.selection_policy.rounds:
        ids += done.picked_ids
        terms += done.selection.scores["score"][done.selection.rows].tolist()
    table = longgame.read_picks(tmp_path)
    assert table["sample_id"].tolist() == ids
    assert table["term_score"].tolist() == terms
    assert [trainer.train_dataset[row]["sample_id"] for row in table["row"]] == ids
    for step in range(1, trainer.state.global_step + 1):
        saved = longgame.read_picks(tmp_path / f"checkpoint-{step}")
        pd.testing.assert_frame_equal(saved, table[table["step"] < step])


@pytest.mark.parametrize("rounds", ["step", 2])
def test_resumed_tables_equal_uninterrupted_ones(tmp_path, tokenizer, rounds):
    def build(folder):
        model = make_model(dropout=0.3)
        options = {"signals": loss_scorer(model), "rounds": rounds, "training_log": True}
        args = {**SAVES, "gradient_accumulation_steps": 2}
        return make_trainer(folder, tokenizer, model=model, selector=Peek(), args=args, **options)

    build(tmp_path / "a").train()
    for stop in (1, 4):
        resumed = build(tmp_path / f"b{stop}")
        resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{stop}"))
        for read in (longgame.read_picks, longgame.read_training_log):
            pd.testing.assert_frame_equal(read(tmp_path / f"b{stop}"), read(tmp_path / "a"))


def test_training_log_has_losses_and_passes_of_each_example(tmp_path, tokenizer):
    model, pool = make_model(), make_pool(16)
    expected = loss_scorer(model)(pool, ("loss",))["loss"]
    args = {"learning_rate": 0.0, "gradient_accumulation_steps": 2, "num_train_epochs": 3, **SAVES}
    trainer = make_trainer(
        tmp_path, tokenizer, model=model, pool=pool, selector=Coin(), budget=1.0, training_log=True, args=args
    )
    trainer.train()
    table = longgame.read_training_log(tmp_path)
    assert len(table) == 3 * 16
    for (sample_id, epoch), entry in table.set_index(["sample_id", "epoch"]).iterrows():
        assert entry["loss"] == pytest.approx(expected[pool.index[sample_id]], rel=1e-4)
        assert entry["seen"] == epoch + 1
        assert entry["round"] == entry["step"]
    assert table["token_accuracy"].between(0, 1).all()
    assert table["step"].is_monotonic_increasing


@pytest.mark.parametrize("make", [make_trainer, sft])
def test_training_log_changes_no_loss_and_agrees_with_it(tmp_path, tokenizer, make):
    runs = []
    for log in (False, True):
        trainer = make(tmp_path / str(log), tokenizer, selector=Coin(), training_log=log, args={"max_steps": 4})
        trainer.train()
        runs.append(losses(trainer))
        trainer.save_selection(tmp_path / "saved")
    assert runs[0] == runs[1]
    table = longgame.read_training_log(tmp_path / "saved")
    tokens = {}
    for row in trainer.train_dataset:
        labels = row["labels"] if "labels" in row else row["completion_mask"]
        tokens[row["sample_id"]] = sum(label not in (-100, 0) for label in labels[1:])
    for step, loss in enumerate(runs[0]):
        part = table[table["step"] == step]
        assert np.average(part["loss"], weights=[tokens[i] for i in part["sample_id"]]) == pytest.approx(loss, rel=1e-3)


def test_token_accuracy_is_the_share_of_most_likely_tokens(tmp_path, tokenizer):
    model, pool = make_model(), make_pool(12)
    args = {"learning_rate": 0.0, "num_train_epochs": 1}
    trainer = make_trainer(
        tmp_path, tokenizer, model=model, pool=pool, selector=Coin(), budget=1.0, training_log=True, args=args
    )
    trainer.train()
    trainer.save_selection(tmp_path)
    table = longgame.read_training_log(tmp_path).set_index("sample_id")["token_accuracy"]
    for row, sample_id in enumerate(pool.ids):
        ids, start = torch.tensor(pool.input_ids[row]), int(pool.prompt_tokens[row])
        with torch.no_grad():
            best = model(input_ids=ids[None]).logits[0].argmax(-1)
        assert table[sample_id] == pytest.approx(float((best[start - 1 : -1] == ids[start:]).float().mean()))


@pytest.mark.parametrize("options", [{}, {"dataloader_num_workers": 2}, {"train_sampling_strategy": "group_by_length"}])
def test_nothing_is_selected_twice_without_repeat(tmp_path, tokenizer, options):
    def build(folder):
        args = {**SAVES, "num_train_epochs": 4, **options}
        return make_trainer(folder, tokenizer, pool=pool, selector=Coin(), repeat=False, args=args)

    pool = make_pool(40)
    trainer = build(tmp_path / "a")
    trainer.train()
    picks = [sample_id for done in trainer.selection_policy.rounds for sample_id in done.picked_ids]
    assert len(picks) == len(set(picks))
    assert trainer.selection_feed.spent >= pool.tokens.sum() - pool.tokens.max()
    assert trainer.state.global_step == 20
    for stop in (2, 10, 13):
        resumed = build(tmp_path / f"b{stop}")
        resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{stop}"))
        assert resumed.picks == {step: trainer.picks[step] for step in range(stop, 20)}
        assert losses(resumed) == losses(trainer)


def test_repeat_false_equals_repeat_in_the_first_epoch(tmp_path, tokenizer):
    picks = []
    for repeat in (True, False):
        trainer = make_trainer(tmp_path, tokenizer, selector=Coin(), repeat=repeat)
        trainer.train()
        picks.append([done.picked_ids for done in trainer.selection_policy.rounds])
        spent = [done.selection.tokens for done in trainer.selection_policy.rounds]
        assert np.mean(spent[5:]) == pytest.approx(np.mean(spent[:5]), rel=0.3)
    assert picks[0][:5] == picks[1][:5]
    assert picks[0][5:] != picks[1][5:]


def test_repeat_false_refuses_more_than_the_dataset(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, selector=Coin(), repeat=False, args={"num_train_epochs": 5})
    with pytest.raises(BudgetError, match=r"5 epochs with a budget of 0\.25 .* Train for at most 4 epochs"):
        trainer.train()
    args = {"max_steps": 4, "per_device_train_batch_size": 1}
    trainer = make_trainer(tmp_path, tokenizer, train=stream(4), selector=Coin(), repeat=False, args=args)
    trainer.train()
    args = {"max_steps": 5, "per_device_train_batch_size": 1}
    trainer = make_trainer(tmp_path, tokenizer, train=stream(4), selector=Coin(), repeat=False, args=args)
    with pytest.raises(BudgetError, match="all 4 candidates of step 5 were selected before"):
        trainer.train()


def test_resuming_with_another_repeat_is_refused(tmp_path, tokenizer):
    make_trainer(tmp_path, tokenizer, selector=Coin(), args={**SAVES, "max_steps": 2}).train()
    other = make_trainer(tmp_path, tokenizer, selector=Coin(), repeat=False, args={**SAVES, "max_steps": 2})
    with pytest.raises(ResumeError, match="repeat was True, is False"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.data())
def test_fresh_rows_are_spread_evenly(fresh, data):
    order = data.draw(st.permutations(range(len(fresh))))
    spread = fresh_first(order, np.asarray(fresh))
    assert sorted(spread) == sorted(order)
    assert [row for row in spread if fresh[row]] == [row for row in order if fresh[row]]
    size = data.draw(st.integers(1, len(fresh)))
    least = size * sum(fresh) // len(fresh)
    for start in range(len(fresh) - size + 1):
        assert sum(fresh[row] for row in spread[start : start + size]) >= least


def test_statistics_of_selections_are_in_the_log(tmp_path, tokenizer):
    model, pool = make_model(), make_pool(40)
    args = {"logging_steps": 2, "save_strategy": "steps", "save_steps": 10}
    trainer = make_trainer(tmp_path, tokenizer, model=model, pool=pool, selector="loss", keep_signals=True, args=args)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    rounds = trainer.selection_policy.rounds
    assert len(entries) == 5
    for number, entry in enumerate(entries):
        both = rounds[2 * number : 2 * number + 2]
        assert entry["selection/kept_tokens"] == sum(done.selection.tokens for done in both)
        assert entry["selection/offered"] == sum(len(done.candidate_ids) for done in both)
        kept = np.concatenate([done.signals["loss"][done.selection.rows] for done in both])
        offered = np.concatenate([done.signals["loss"] for done in both])
        assert entry["selection/loss_kept"] == pytest.approx(kept.mean())
        assert entry["selection/loss_offered"] == pytest.approx(offered.mean())
        assert 0 < entry["selection/time_share"] < 1
        assert entry["selection/seconds"] > 0
    assert entries[-1]["selection/total_kept_tokens"] == trainer.selection_feed.spent
    first, second = ({i for done in part for i in done.picked_ids} for part in (rounds[:5], rounds[5:]))
    overlap = [entries[n]["selection/overlap"] * entries[n]["selection/kept"] for n in (3, 4)]
    straddling = len({*rounds[5].picked_ids} & first)
    assert "selection/overlap" not in entries[1]
    assert entries[2]["selection/overlap"] == pytest.approx(straddling / len(rounds[5].picked_ids))
    assert straddling + sum(overlap) == pytest.approx(len(first & second))
    state = (tmp_path / "checkpoint-10" / "trainer_state.json").read_text()
    assert "selection/overlap" in state


def test_trackers_receive_the_statistics(tmp_path, tokenizer):
    class Tracker(TrainerCallback):
        def __init__(self):
            self.logged = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.logged.append(rewrite_logs(logs))

    tracker = Tracker()
    make_trainer(tmp_path, tokenizer, selector="loss", callbacks=[tracker], args={"max_steps": 1}).train()
    assert {"train/loss", "train/selection/loss_kept", "train/selection/time_share"} <= tracker.logged[0].keys()


@pytest.mark.parametrize(("options", "remembers"), [({}, True), ({"rounds": 1}, False), ({"train": stream(64)}, False)])
def test_only_what_is_compared_is_remembered(tmp_path, tokenizer, options, remembers):
    """The memory of an endless stream does not grow with what was picked."""
    trainer = make_trainer(tmp_path, tokenizer, selector=Coin(), args={"max_steps": 2}, **options)
    trainer.train()
    assert bool(trainer.selection_record.last_pick) == remembers
    assert len(trainer.selection_record.picks) > 0


def test_the_newest_table_of_an_output_directory_is_read(tmp_path, tokenizer):
    args = {**SAVES, "max_steps": 2}
    make_trainer(tmp_path, tokenizer, selector=Coin(), args=args).train()
    longer = make_trainer(tmp_path, tokenizer, selector=Coin(), args={**SAVES, "max_steps": 5})
    table = tmp_path / PICKS
    before = len(longgame.read_picks(table))
    # as if killed before its end: nothing is written into the output directory
    longer.save_selection = lambda folder, save=longer.save_selection: folder == str(tmp_path) or save(folder)
    longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert len(longgame.read_picks(tmp_path)) == len(longgame.read_picks(tmp_path / "checkpoint-5")) > before


def test_missing_tables_are_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no selection\.parquet"):
        longgame.read_picks(tmp_path)
    with pytest.raises(DataError, match=r"training_log=True"):
        longgame.read_training_log(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "lost", "gone", "other"])
def test_damaged_tables_are_refused_on_resume(tmp_path, tokenizer, damage):
    def build():
        return make_trainer(tmp_path, tokenizer, selector=Coin(), args={**SAVES, "max_steps": 4})

    build().train()
    table = tmp_path / "checkpoint-4" / PICKS
    files = sorted(table.iterdir())
    if damage == "cut":
        content = files[0].read_bytes()
        files[0].unlink()
        files[0].write_bytes(content[: len(content) // 2])
    elif damage == "lost":
        files[0].unlink()
    elif damage == "gone":
        for file in files:
            file.unlink()
        table.rmdir()
    else:
        other = Parts()
        other.append({"value": [1]})
        other.write(table)
    with pytest.raises(ResumeError, match=PICKS.replace(".", r"\.")):
        build().train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_a_training_log_cannot_start_in_the_middle(tmp_path, tokenizer):
    make_trainer(tmp_path, tokenizer, selector=Coin(), args={**SAVES, "max_steps": 2}).train()
    late = make_trainer(tmp_path, tokenizer, selector=Coin(), training_log=True, args={**SAVES, "max_steps": 3})
    with pytest.raises(ResumeError, match=f"has no {TRAINING_LOG}"):
        late.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("rounds", ["step", 2])
def test_a_log_of_one_training_selects_in_another(tmp_path, tokenizer, rounds):
    full = {"num_train_epochs": 2, "save_strategy": "epoch"}
    make_trainer(tmp_path / "log", tokenizer, selector="random", budget=1.0, training_log=True, args=full).train()
    options = {"selector": "s2l", "budget": 0.5, "rounds": rounds, "trajectories": tmp_path / "log"}
    trainer = make_trainer(tmp_path / "run", tokenizer, **options)
    trainer.train()
    assert sum(len(entry.picked_ids) for entry in trainer.selection_policy.rounds)
    other = make_trainer(tmp_path / "b", tokenizer, pool=make_pool(80), **options)
    with pytest.raises(DataError, match="it lacks"):
        other.train()
