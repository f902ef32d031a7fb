"""Embeddings of another encoder, and signals of a scorer model, wherever candidates are measured."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from datasets import Dataset

import longgame
from longgame.audit import cluster
from longgame.audit.checks import check_models
from longgame.audit.hf_learner import HFLearner
from longgame.audit.learner import sequence_of
from longgame.audit.plan import Plan
from longgame.audit.walk import stage_work
from longgame.data.examples import Example, Pool
from longgame.data.tokenize import build_pool
from longgame.errors import DataError, LonggameError, ModelError, NumericalError, RecipeError, ResumeError
from longgame.models import embedders
from longgame.models.embedders import Embedder, load_embedder
from longgame.models.load import load_model, load_tokenizer
from longgame.recipe import ModelSpec, parse_recipe
from longgame.seeding import generator
from longgame.selection.base import build_selector
from longgame.selection.history import History
from longgame.selection.policy import SelectionPolicy
from longgame.signals.scorer_model import ScorerModel
from longgame.signals.source import SignalSource
from longgame.training.config import SelectionConfig
from support.embedders import static_model
from support.signals import response_logits
from support.trainers import make_trainer
from support.training import make_pool

NAME = "model2vec:letters"


@pytest.fixture
def tokenizer():
    return load_tokenizer(ModelSpec(name="tiny-1"))


def letters(texts):
    """Counts of some letters: an encoder that needs no package."""
    return np.asarray([[text.count(letter) for letter in "aeiou123"] for text in texts], dtype=np.float32)


@pytest.fixture
def encoder(monkeypatch):
    """`letters` under the name `NAME`."""
    monkeypatch.setattr(embedders, "_locate", lambda kind, place: (place, True))
    monkeypatch.setattr(embedders, "_static", lambda name, path, local: Embedder(name, letters, 0))


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": f"What is {row} + {row % 7}?", "response": "aeiou"[: row % 5] + f" {row}"} for row in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts_of(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [f"{row['prompt']} {row['response']}" for row in rows]


def test_an_embedder_replaces_the_hidden_states(encoder, data, tmp_path):
    folder = tmp_path / "s"
    table = longgame.score(data, "embedding,loss", model="tiny-1", out=folder, embedder=NAME)
    np.testing.assert_array_equal(np.asarray(table["longgame_embedding"]), letters(texts_of(data)))
    plain = longgame.score(data, "embedding,loss", model="tiny-1", out=tmp_path / "p")
    assert table["longgame_loss"][:] == plain["longgame_loss"][:]
    assert len(plain["longgame_embedding"][0]) != 8
    with pytest.raises(ResumeError, match="another model"):
        longgame.score(data, "embedding,el2n", model="tiny-1", out=folder)
    with pytest.raises(ResumeError, match="embedder"):
        longgame.select(data, selector="k-center", model="tiny-1", scores=tmp_path / "p", embedder=NAME)


def test_an_embedder_needs_no_model(encoder, data, tmp_path):
    target = tmp_path / "t.jsonl"
    target.write_text(json.dumps({"prompt": "What is 123?", "response": "aaa"}) + "\n")
    with_model = longgame.select(data, selector="k-center", budget="9rows", model="tiny-1", embedder=NAME)
    without = longgame.select(data, selector="k-center", budget="9rows", embedder=NAME)
    assert with_model["longgame_sample_id"][:] == without["longgame_sample_id"][:]
    subset = longgame.select(data, selector="tsds", budget="9rows", embedder=NAME, target=target)
    again = longgame.select(data, selector="tsds", budget="9rows", model="tiny-1", embedder=NAME, target=target)
    assert subset["longgame_sample_id"][:] == again["longgame_sample_id"][:]
    with pytest.raises(RecipeError, match="--embedder model2vec:NAME"):
        longgame.select(data, selector="k-center")
    with pytest.raises(RecipeError, match="--target"):
        longgame.select(data, selector="tsds", embedder=NAME)


def recipe(**model):
    base = {
        "data": {"pool_size": 40, "items_per_skill": 1, "ood_items_per_skill": 1},
        "selectors": ["random", "tsds"],
        "seeds": [0],
        "training": {"steps": 2, "warmup_steps": 1},
        "probe": {"steps": 2, "points": 2},
    }
    return parse_recipe({**base, "model": {"name": "tiny", **model}})


def trained(recipe, selector, **selection):
    sequence, learner = sequence_of(recipe, 0), HFLearner(recipe, 0)
    learner.use(sequence, learner.prepare(sequence))
    policy = SelectionPolicy(build_selector(selector), History(), generator(0, "select", 1))
    pool = sequence.stages[0].pool
    return learner, pool, policy, learner.train(pool, policy, SelectionConfig(budget=0.25, seed=7, **selection), 2)


@pytest.mark.parametrize("adaptation", ["lora", "full"])
def test_an_audit_embeds_candidates_and_target_alike(encoder, adaptation):
    learner, pool, policy, _ = trained(recipe(embedder=NAME, adaptation=adaptation), "tsds", rounds=1)
    signals = policy.rounds[0].signals
    texts = [f"{example.prompt} {example.response}" for example in pool.examples]
    np.testing.assert_array_equal(signals["embedding"], letters(texts))
    target = [f"{example.prompt} {example.response}" for example in sequence_of(recipe(), 0).stages[0].proxy]
    np.testing.assert_array_equal(signals["target_embedding"], letters(target))
    assert learner.source.frozen is not None


def test_models_of_an_audit_on_nodes_have_the_ids_of_the_hub(monkeypatch):
    monkeypatch.setattr(cluster, "model_digest", lambda name: name)
    contents = cluster.contents_of(recipe(embedder="sentence-transformers:mini", scorer_model="tiny-2"))
    assert list(contents) == ["model sentence-transformers/mini", "model tiny", "model tiny-2"]


def test_an_embedder_works_in_a_trainer(encoder, tmp_path, tokenizer):
    options = {"selector": "k-center", "budget": 0.5, "rounds": 1, "embedder": NAME, "keep_signals": True}
    trainer = make_trainer(tmp_path, tokenizer, **options)
    trainer.train()
    assert trainer.selection_policy.rounds[0].signals["embedding"].shape[1] == 8


FAULTS = {
    "no colon": ("model2vec", RecipeError, "NAME is a hub id or a directory"),
    "unknown kind": ("word2vec:x", RecipeError, "embedder"),
    "no name": ("sentence-transformers:", RecipeError, "embedder"),
    "missing folder": ("model2vec:./nowhere", ModelError, "nowhere"),
    "no hub": ("model2vec:owner/nothing", ModelError, "HF_HUB_OFFLINE"),
    "not an id": ("model2vec:a b", ModelError, "neither a directory nor a hub id"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_embedder_ends_in_one_sentence(fault, data, monkeypatch):
    monkeypatch.setattr(embedders.importlib.util, "find_spec", lambda _name: object())
    name, kind, message = FAULTS[fault]
    with pytest.raises(kind, match=message):
        longgame.select(data, selector="k-center", embedder=name)
    with pytest.raises(LonggameError, match=message):
        check_models(Plan(recipe(embedder=name)))


def test_a_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setattr(embedders.importlib.util, "find_spec", lambda _name: None)
    for kind in ("model2vec", "sentence-transformers"):
        with pytest.raises(ModelError, match=r"longgame\[embed\]"):
            load_embedder(f"{kind}:x")


def test_a_static_model_embeds_without_a_network(tmp_path, data):
    name = static_model(tmp_path / "m")
    subset = longgame.select(data, selector="semdedup", budget="9rows", embedder=name)
    assert len(subset) == 9
    assert load_embedder(name).digest != load_embedder(static_model(tmp_path / "n", seed=1)).digest
    (tmp_path / "m" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_embedder(name)


@pytest.mark.parametrize("reached", [True, False])
def test_an_encoder_partly_in_the_cache_is_fetched(reached, monkeypatch):
    def load(name, path, local, *_):
        if local:
            raise OSError("no file named model.safetensors.")
        return Embedder(name, letters, 0)

    monkeypatch.setattr(embedders, "_locate", lambda kind, place: (place, True))
    monkeypatch.setattr(embedders, "_sentence_transformer", load)
    if reached:
        monkeypatch.setattr("longgame.models.hub.require_repo", lambda *_: None)
        assert load_embedder("sentence-transformers:owner/name").encode(["a"]).shape == (1, 8)
    else:
        with pytest.raises(ModelError, match=r"cache \(no file named model\.safetensors\), and HF_HUB_OFFLINE is set"):
            load_embedder("sentence-transformers:owner/name")


@pytest.mark.slow
def test_sentence_transformers_embed_texts(tmp_path):
    package = pytest.importorskip("sentence_transformers")
    from sentence_transformers.models import Pooling, Transformer

    from longgame.models.load import model_place

    words = Transformer(model_place("tiny-1"))
    words.tokenizer.pad_token = words.tokenizer.pad_token or words.tokenizer.eos_token
    package.SentenceTransformer(modules=[words, Pooling(96)]).save(str(tmp_path / "st"))
    embedder = load_embedder(f"sentence-transformers:{tmp_path / 'st'}")
    vectors = embedder.encode(["What is 1?", "a cat"])
    assert vectors.shape == (2, 96)
    assert vectors.dtype == np.float32
    assert embedder.parameters > 0


# The scorer model


def examples(n=6):
    return [Example.make(f"What is {row} + 1?", f"It is {row + 1}.") for row in range(n)]


@pytest.fixture(scope="module")
def scorer():
    return ScorerModel("tiny-2")


def test_a_scorer_model_reads_through_its_own_tokenizer(scorer):
    loaded = load_model(ModelSpec(name="tiny-2"))
    own = build_pool(examples(), loaded.tokenizer, 256)
    # the candidates' token ids are those of another vocabulary
    foreign = Pool(own.examples, (np.asarray([900_001]),) * 6, np.ones(6, dtype=np.int64), np.ones(6, dtype=np.int64))
    names = ("scorer_loss", "scorer_token_accuracy", "scorer_loss_without_prompt", "scorer_embedding")
    columns = scorer(foreign, names)
    expected = []
    with torch.no_grad():
        for row in range(6):
            logits, targets = response_logits(loaded.model.float(), own, row)
            expected.append(float(torch.nn.functional.cross_entropy(logits.double(), targets)))
    np.testing.assert_allclose(columns["scorer_loss"], expected, rtol=1e-5)
    assert (columns["scorer_loss_without_prompt"] != columns["scorer_loss"]).all()
    assert columns["scorer_embedding"].shape == (6, 96)
    assert columns["scorer_token_accuracy"].max() <= 1
    assert scorer.work(foreign, names)[0] == 2 * int(own.tokens.sum())
    assert scorer.work(foreign, ("scorer_loss",))[1] > 0


def test_a_scorer_model_scores_offline_with_and_without_a_model(data, tmp_path):
    folder = tmp_path / "s"
    options = {"selector": "superfiltering", "budget": "9rows", "scorer_model": "tiny-2"}
    without = longgame.select(data, **options)
    stored = longgame.select(data, model="tiny-1", scores=folder, **options)
    again = longgame.select(data, model="tiny-1", scores=folder, **options)
    assert without["longgame_sample_id"][:] == stored["longgame_sample_id"][:] == again["longgame_sample_id"][:]
    with pytest.raises(ResumeError, match="tiny-3"):
        longgame.select(data, model="tiny-1", scores=folder, **{**options, "scorer_model": "tiny-3"})
    for model in ({}, {"model": "tiny-1"}):
        with pytest.raises(RecipeError, match="--scorer-model"):
            longgame.select(data, selector="superfiltering", **model)
    with pytest.raises(ModelError, match="nowhere"):
        longgame.select(data, selector="svp", scorer_model="./nowhere")


def test_superfiltering_never_turns_a_failure_into_zero(scorer):
    # published code catches every exception and counts the ratio as 0
    broken, ones = copy.deepcopy(scorer), np.ones(6, dtype=np.int64)
    with torch.no_grad():
        next(broken._model.parameters()).fill_(torch.nan)
    pool = Pool(tuple(examples()), (np.zeros(0, dtype=np.int64),) * 6, ones, ones)
    assert np.isfinite(SignalSource(lambda *_: {}, scorer=scorer)(pool, ("scorer_loss",))["scorer_loss"]).all()
    with pytest.raises(NumericalError, match="NaN"):
        SignalSource(lambda *_: {}, scorer=broken)(pool, ("scorer_loss",))


def test_an_audit_charges_what_the_scorer_model_reads():
    _, pool, policy, report = trained(recipe(scorer_model="tiny-3"), "superfiltering")
    assert {"scorer_loss", "scorer_loss_without_prompt"} == {*policy.rounds[0].signals.columns}
    tokens, flops = ScorerModel("tiny-3").work(pool, policy.required)
    assert (report.auxiliary_tokens, report.auxiliary_flops) == (tokens, flops)
    assert tokens > int(pool.tokens.sum())
    counts = stage_work(report, policy, pool, [], 1)
    assert (counts["scorer_tokens"], counts["scorer_flops"]) == (tokens, flops)
    assert (counts["scored_tokens"], counts["score_flops"]) == (tokens, flops)
    plain = trained(recipe(), "loss")[3]
    assert (plain.auxiliary_tokens, plain.auxiliary_flops) == (0, 0)


def test_an_audit_charges_the_encoder_not_the_base(encoder):
    _, pool, policy, report = trained(recipe(embedder=NAME), "k-center")
    counts = stage_work(report, policy, pool, [], 1)
    assert counts["embedder_tokens"] == counts["scored_tokens"] == int(pool.tokens.sum())
    assert counts["embedder_flops"] == counts["frozen_flops"] == counts["score_flops"] == 0  # a static model looks up
    _, pool, policy, report = trained(recipe(), "k-center")
    assert stage_work(report, policy, pool, [], 1)["frozen_flops"] > 0


def test_an_audit_without_a_scorer_model_stops_before_any_work():
    plan = parse_recipe({"selectors": ["superfiltering"], "seeds": [0]})
    with pytest.raises(RecipeError, match=r"model\.scorer_model"):
        check_models(Plan(plan))
    missing = parse_recipe({"selectors": ["random"], "seeds": [0], "model": {"scorer_model": "./nowhere"}})
    with pytest.raises(ModelError, match="nowhere"):
        check_models(Plan(missing))


def test_a_scorer_model_works_in_a_trainer(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, selector="svp", budget=0.5, scorer_model="tiny-1", keep_signals=True)
    trainer.train()
    assert "scorer_loss" in trainer.selection_policy.rounds[0].signals
    with pytest.raises(RecipeError, match="scorer_model"):
        make_trainer(tmp_path, tokenizer, selector="svp", budget=0.5).train()


def test_a_scorer_model_refuses_what_it_cannot_read(scorer):
    ones = np.ones(1, dtype=np.int64)
    tokens = Example("a", "", "x", tokens=(np.asarray([1, 2]), np.asarray([False, True])))
    with pytest.raises(DataError, match="came tokenized"):
        scorer(Pool((tokens,), (np.zeros(0, dtype=np.int64),), ones, ones), ("scorer_loss",))
    with pytest.raises(RecipeError, match="--scorer-model"):
        SignalSource(lambda *_: {})(make_pool(1), ("scorer_loss",))


@pytest.mark.parametrize("turns", [False, True])
def test_a_scorer_model_reads_the_prompt_nearest_to_what_is_learned(scorer, turns):
    end = " ".join(f"near {number}" for number in range(300))
    messages = (("user", "far " * 900 + end), ("assistant", "yes"), ("user", "and?")) if turns else None
    learned = {"messages": messages, "learned": (1,)} if turns else {}
    long = Example.make("far " * 900 + end, "answer", **learned)
    ones = np.ones(1, dtype=np.int64)
    pool = Pool((long,), (np.zeros(0, dtype=np.int64),), ones, ones)
    tokens = scorer.tokenized(pool)
    whole = build_pool([long], scorer.tokenizer, 10**6)
    ids, places = tokens.input_ids[0], tokens.predicted(0)
    assert len(ids) <= scorer.max_length
    assert ids[0] == whole.input_ids[0][0]
    assert ids[places].tolist() == whole.input_ids[0][whole.predicted(0)].tolist()
    kept = len(ids) - 1
    assert ids[1:].tolist() == whole.input_ids[0][-kept:].tolist()
    assert np.isfinite(scorer(pool, ("scorer_loss", "scorer_loss_without_prompt"))["scorer_loss"]).all()


@pytest.mark.parametrize("rounds", ["step", 1])
def test_methods_of_texts_and_targets_work_in_a_trainer(tmp_path, tokenizer, rounds):
    texts = [tokenizer(text)["input_ids"] for text in (*(f"row {row} of many" for row in range(24)), "row 3 of 3")]
    rows = [{"input_ids": ids, "labels": ids, "attention_mask": [1] * len(ids)} for ids in texts]
    dataset, target = Dataset.from_list(rows[:-1]), Dataset.from_list(rows[-1:])
    options = {"budget": 0.5, "rounds": rounds, "train": dataset, "keep_signals": True}
    options["model"] = load_model(ModelSpec(name="tiny-1")).model
    for selector in ("dsir", "tsds"):
        trainer = make_trainer(tmp_path, tokenizer, selector=selector, target_dataset=target, **options)
        trainer.train()
        assert trainer.selection_policy.rounds[0].signals.columns.keys() >= {*build_selector(selector).requires} - {
            "target_embedding"
        }
        with pytest.raises(RecipeError, match="target_dataset"):
            make_trainer(tmp_path, tokenizer, selector=selector, **options).train()
    trainer = make_trainer(tmp_path, tokenizer, selector="dedup-exact", **options)
    trainer.train()
    assert trainer.selection_policy.rounds
