"""LESS and RHO on files: one command, phases that are resumed, and a gradient store for many target sets."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from trl import SFTConfig

import longgame
from longgame.data.sources import open_source
from longgame.errors import BudgetError, DataError, ModelError, RecipeError, ResumeError
from longgame.models.load import load_model
from longgame.offline import auxiliary, scoring
from longgame.offline.options import SelectOptions
from longgame.offline.rows import DataRows, TokenizedRows
from longgame.offline.score_folder import ScoreFolder
from longgame.offline.scorer import ModelOptions
from longgame.offline.scoring import score_into
from longgame.offline.selecting import select_to
from longgame.recipe import ModelSpec
from longgame.seeding import stream_seed
from longgame.signals.auxiliary import AuxiliarySpec
from longgame.training import auxiliary as training
from longgame.training.auxiliary import ModelAuxiliary, with_adapter
from offline.conftest import ROWS, jsonl
from support.chat_model import chat_tokenizer, save

TINY = ModelOptions(name="tiny", store_dtype="float32")
SPEC = AuxiliarySpec(share=0.3, epochs=2, learning_rate=2e-3, batch=6)
LESS = SelectOptions(selector="less:share=0.3,epochs=2,learning_rate=0.002,batch=6", budget="20%")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "data.jsonl", ROWS[:40])


def target_of(path: Path, word: str) -> Path:
    rows = [{"prompt": f"{word} {row['prompt']}", "response": row["response"], "skill": row["skill"]} for row in ROWS]
    return jsonl(path, rows[:5])


def tree(folder: Path) -> dict[str, bytes]:
    """Bytes of what was computed; an epoch's file holds the seconds that it took."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "epoch.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_less_selects_a_file_in_one_command(data: Path, tmp_path: Path) -> None:
    target = target_of(tmp_path / "target.jsonl", "Say:")
    outcome, manifest = select_to(data, tmp_path / "o.jsonl", LESS, model=TINY, target=target, scores=tmp_path / "s")
    assert (manifest["target"]["label"], manifest["target"]["rows"]) == (str(target), 5)
    rows = DataRows(open_source(data))
    loaded = load_model(ModelSpec(name="tiny", max_length=8), attention="eager")
    (pool,) = TokenizedRows(rows, loaded.tokenizer, 256).shards()
    (items,) = TokenizedRows(DataRows(open_source(target)), loaded.tokenizer, 256).shards()
    seed = stream_seed(0, "auxiliary")
    with with_adapter(loaded.model, seed) as model:
        slow = ModelAuxiliary(
            model,
            pad_token_id=loaded.pad_token_id,
            spec=SPEC,
            seed=seed,
            sketch_seed=stream_seed(0, "sketch"),
            candidates=lambda: pool,
            target=lambda _name: items,
        )(pool, "influence")
    assert slow.shape == (40, 2)
    np.testing.assert_allclose(outcome.terms["score"], slow.max(axis=1), atol=1e-6)
    assert not list((tmp_path / "s").rglob("*.part"))


def test_less_scores_another_target_from_its_store(data: Path, tmp_path: Path, monkeypatch) -> None:
    first, second = (target_of(tmp_path / f"{word}.jsonl", word) for word in ("Say:", "Tell:"))
    fresh, _ = select_to(data, tmp_path / "a.jsonl", LESS, model=TINY, target=second, scores=tmp_path / "fresh")
    begun = time.perf_counter()
    one, _ = select_to(data, tmp_path / "b.jsonl", LESS, model=TINY, target=first, scores=tmp_path / "s")
    with_store = time.perf_counter() - begun
    before = tree(tmp_path / "s")
    for name in ("stream_signals", "SignalEngine"):
        if hasattr(auxiliary, name):
            monkeypatch.setattr(auxiliary, name, None)
    monkeypatch.setattr(training, "_learn", None)
    monkeypatch.setattr(auxiliary.AuxiliaryJob, "taken", None, raising=False)
    begun = time.perf_counter()
    two, _ = select_to(data, tmp_path / "c.jsonl", LESS, model=TINY, target=second, scores=tmp_path / "s")
    assert time.perf_counter() - begun < with_store
    np.testing.assert_array_equal(two.terms["score"], fresh.terms["score"])
    assert not np.array_equal(one.terms["score"], two.terms["score"])
    after = tree(tmp_path / "s")
    assert {name: after[name] for name in before} == before
    monkeypatch.setattr(scoring.LoadedScorer, "load", None)  # each target is looked up from now on
    again, _ = select_to(data, tmp_path / "d.jsonl", LESS, target=first, scores=tmp_path / "s")
    np.testing.assert_array_equal(again.terms["score"], one.terms["score"])
    with pytest.raises(RecipeError, match="holds influence for 2 target sets.*--target"):
        select_to(data, tmp_path / "e.jsonl", LESS, scores=tmp_path / "s")


def test_less_killed_in_every_phase_ends_with_equal_bytes(data: Path, tmp_path: Path, monkeypatch) -> None:
    target = DataRows(open_source(target_of(tmp_path / "target.jsonl", "Say:")))

    def run(folder: str) -> None:
        score_into(DataRows(open_source(data)), ["influence"], tmp_path / folder, TINY, target=target, auxiliary=SPEC)

    run("whole")
    phases = [(auxiliary, "stream_signals"), (training, "_learn"), (auxiliary, "stream_signals")]
    for module, name in [*phases, (auxiliary.AuxiliaryJob, "_write")]:

        def die(*_args: Any, **_options: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, name, die)
            run("again")
    stores = ["gradients-1", "gradients-2"]
    assert sorted(path.name for path in (tmp_path / "again").glob("warmup-*/gradients-*")) == stores
    run("again")
    assert tree(tmp_path / "again") == tree(tmp_path / "whole")


def test_rho_trains_its_reference_on_the_target(data: Path, tmp_path: Path) -> None:
    target = target_of(tmp_path / "target.jsonl", "Say:")
    options = SelectOptions(selector="rho:epochs=2,learning_rate=0.005,batch=2", budget="20%")
    outcome, _ = select_to(data, tmp_path / "o.jsonl", options, model=TINY, target=target, scores=tmp_path / "s")
    terms = outcome.terms
    np.testing.assert_allclose(terms["score"], terms["loss"] - terms["reference_loss"], atol=1e-6)
    assert np.abs(terms["score"]).max() > 1e-2
    plain = longgame.score(data, ["loss"], model="tiny")
    np.testing.assert_allclose(terms["loss"], plain["longgame_loss"], atol=1e-6)  # the model is as it was


def test_rho_takes_a_reference_model_with_its_own_tokenizer(data: Path, tmp_path: Path) -> None:
    save(tmp_path / "other", chat_tokenizer())
    options, terms = SelectOptions(selector="rho", budget="20%"), {}
    for name in ("tiny-1", str(tmp_path / "other")):
        model = dataclasses.replace(TINY, reference=name)
        outcome, manifest = select_to(
            data, tmp_path / "o.jsonl", options, model=model, scores=tmp_path / "s", overwrite=True
        )
        assert (manifest["reference_model"], manifest["target"]) == (name, None)
        terms[name] = outcome.terms
        alone = longgame.score(data, ["loss"], model=name)
        tokens = outcome.response_tokens / np.asarray(alone["longgame_response_tokens"])
        np.testing.assert_allclose(
            outcome.terms["reference_loss"] * tokens, alone["longgame_loss"], rtol=1e-5
        )  # nats by response token of the model that scores
        assert (tokens == 1).all() == (name == "tiny-1")
    assert len({tuple(term["loss"]) for term in terms.values()}) == 1
    with pytest.raises(ModelError, match="no-such-model"):
        model = dataclasses.replace(TINY, reference=str(tmp_path / "no-such-model"))
        select_to(data, tmp_path / "p.jsonl", options, model=model, scores=tmp_path / "s")


def test_a_folder_of_scores_serves_a_trainer(data: Path, tmp_path: Path) -> None:
    target = DataRows(open_source(target_of(tmp_path / "target.jsonl", "Say:")))
    rows = DataRows(open_source(data))
    scores = score_into(rows, ["influence", "loss"], tmp_path / "s", TINY, target=target, auxiliary=SPEC)
    pool = rows.pool().take([7, 3, 30])
    signals = ScoreFolder(tmp_path / "s")(pool, ["influence", "loss"])
    place = [scores.ids.index(sample_id) for sample_id in pool.ids]
    np.testing.assert_array_equal(signals["influence"], scores.column("influence")[place])
    other = DataRows(open_source(jsonl(tmp_path / "other.jsonl", ROWS[50:])))
    with pytest.raises(DataError, match=r"of 10 of 10 examples.*sample_id"):
        scores(other.pool(), ["loss"])


def test_a_trainer_selects_by_scores_of_a_folder(tmp_path: Path) -> None:
    loaded = load_model(ModelSpec(name="tiny", max_length=8))
    dataset = Dataset.from_list([{"prompt": row["prompt"], "completion": row["response"]} for row in ROWS[:12]])
    scored = longgame.score(dataset, ["loss"], model="tiny", out=tmp_path / "s")
    dataset = dataset.add_column("sample_id", scored["longgame_sample_id"])
    arguments = SFTConfig(output_dir=str(tmp_path / "out"), max_steps=2, use_cpu=True, report_to=[], bf16=False)
    trainer = longgame.SelectionSFTTrainer(
        loaded.model,
        arguments,
        train_dataset=dataset,
        processing_class=loaded.tokenizer,
        selection={"selector": "loss", "rounds": 1, "budget": 0.3},
        signals=ScoreFolder(tmp_path / "s"),
    )
    trainer.train()
    (choice,) = trainer.selection_policy.rounds
    losses = dict(zip(scored["longgame_sample_id"], scored["longgame_loss"], strict=True))
    assert losses[choice.picked_ids[0]] == max(losses.values())


def test_rho_trains_online_beside_a_reference_model(tmp_path: Path) -> None:
    loaded = load_model(ModelSpec(name="tiny", max_length=8))
    rows = [
        {"prompt": row["prompt"], "completion": row["response"], "sample_id": f"s{n}"} for n, row in enumerate(ROWS)
    ]
    trainer = longgame.SelectionSFTTrainer(
        loaded.model,
        SFTConfig(output_dir=str(tmp_path / "out"), max_steps=2, use_cpu=True, report_to=[], bf16=False),
        train_dataset=Dataset.from_list(rows[:12]),
        processing_class=loaded.tokenizer,
        selection={"selector": "rho", "budget": 0.5, "reference_model": "tiny-1", "keep_signals": True},
    )
    trainer.train()
    decision = trainer.selection_policy.rounds[0]
    terms = decision.selection.scores
    np.testing.assert_allclose(terms["score"], terms["loss"] - terms["reference_loss"], atol=1e-5)
    assert (terms["reference_loss"] > 0).all()
    assert np.ptp(terms["reference_loss"]) > 0


def test_a_log_is_trained_where_none_is_given(data: Path, tmp_path: Path, monkeypatch) -> None:
    options = SelectOptions(selector="cartography:epochs=2", budget="20%")
    with pytest.raises(RecipeError, match=r"--training-log.*--model"):
        select_to(data, tmp_path / "o.jsonl", options)
    first, manifest = select_to(data, tmp_path / "o.jsonl", options, model=TINY, scores=tmp_path / "s")
    assert "the log trained in" in manifest["training_log"]["label"]
    monkeypatch.setattr(training, "_learn", None)  # the epochs, and what was measured after them, are kept
    monkeypatch.setattr(auxiliary, "stream_signals", None)
    again, _ = select_to(data, tmp_path / "p.jsonl", options, model=TINY, scores=tmp_path / "s")
    np.testing.assert_array_equal(again.terms["variability"], first.terms["variability"])
    assert first.terms["variability"].max() > 0


def damage(folder: Path) -> None:
    path = next(folder.glob("warmup-*/epoch-1/weights.safetensors"))
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(bytes(content))
    for store in folder.glob("influence-*"):
        shutil.rmtree(store)


@pytest.mark.parametrize(
    ("selector", "has_target", "error", "words"),
    [
        ("less", False, RecipeError, "--target"),
        ("rho", False, RecipeError, "--target"),
        ("less:share=0.0001", True, BudgetError, "Raise the share"),
        ("less:epochs=0", True, RecipeError, "epochs is 0"),
        ("less:share=2", True, RecipeError, "share is 2"),
        ("s2l:epochs=1", False, RecipeError, "two or more"),
        ("damaged", True, ResumeError, "Delete it and every later epoch"),
    ],
)
def test_trainings_refuse_each_fault_in_one_error(
    selector: str, has_target: bool, error: type[Exception], words: str, data: Path, tmp_path: Path
) -> None:
    target = target_of(tmp_path / "target.jsonl", "Say:") if has_target else None
    options = LESS if selector == "damaged" else SelectOptions(selector=selector, budget="20%")
    if selector == "damaged":
        select_to(data, tmp_path / "o.jsonl", options, model=TINY, target=target, scores=tmp_path / "s")
        damage(tmp_path / "s")
    with pytest.raises(error, match=words):
        select_to(data, tmp_path / "o.jsonl", options, model=TINY, target=target, scores=tmp_path / "s", overwrite=True)


def test_another_target_leaves_the_other_columns(data: Path, tmp_path: Path) -> None:
    """Alignments and vectors of a second target stand beside those of the first."""
    rows, names = DataRows(open_source(data)), ["loss", "future_alignment", "target_gradient"]
    targets = [DataRows(open_source(target_of(tmp_path / f"{word}.jsonl", word))) for word in ("Say:", "Tell:")]
    folders = [score_into(rows, names, tmp_path / "both", TINY, target=target) for target in targets]
    alone = score_into(rows, names, tmp_path / "alone", TINY, target=targets[1])
    np.testing.assert_allclose(folders[1].column("future_alignment"), alone.column("future_alignment"), atol=1e-6)
    np.testing.assert_array_equal(folders[1].context("target_gradient"), alone.context("target_gradient"))
    assert not np.allclose(folders[0].column("future_alignment"), folders[1].column("future_alignment"))
    assert len(list((tmp_path / "both").glob("signals-*"))) == 1
    first = score_into(rows, names, tmp_path / "both", TINY, target=targets[0])
    np.testing.assert_array_equal(first.column("future_alignment"), folders[0].column("future_alignment"))
    assert isinstance(first, ScoreFolder)
