from __future__ import annotations

import dataclasses
import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import longgame
from longgame.data.examples import Example
from longgame.data.synthetic import STAGES, build_procedural_sequence, unseen_skills
from longgame.data.tokenize import encode, encode_all
from longgame.errors import NumericalError, RecipeError
from longgame.models.load import TINY, load_model
from longgame.recipe import DataSpec, ModelSpec, ProxySpec
from studies.tiny_base import (
    PretrainSpec,
    _batches,
    _schedule,
    _tensors,
    _token_accuracy,
    build_model,
    build_tokenizer,
    load_pretrain_spec,
    measure,
    pretrain,
)
from support.cli import run_python

SHIPPED = Path(longgame.__file__).parent / "assets" / "tiny"
RECIPE = Path(__file__).parents[2] / "recipes" / "tiny-base.yaml"
SMALL = PretrainSpec(
    name="small",
    tokens=20_000,
    vocabulary=400,
    tokenizer_examples=300,
    hidden_size=32,
    layers=1,
    heads=2,
    feed_forward=32,
    batch_tokens=512,
    evaluation_items=4,
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(SHIPPED, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    return load_model(ModelSpec(name="tiny")).model


@pytest.fixture(scope="module")
def accuracy(model, tokenizer):
    return measure(model, tokenizer, 20, seed=5)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrain") / "small"
    seen: list[tuple[int, int, float]] = []
    report = pretrain(SMALL, out, lambda done, total, loss: seen.append((done, total, loss)))
    return out, report, seen


def test_shipped_bases_differ_in_weights_and_share_the_tokenizer():
    loaded = [load_model(ModelSpec(name=name)) for name in TINY]
    weights = [base.model.model.embed_tokens.weight for base in loaded]
    assert all(not torch.equal(one, two) for one, two in itertools.combinations(weights, 2))
    assert len({base.tokenizer.backend_tokenizer.to_str() for base in loaded}) == 1
    files = [file for name in TINY for file in (SHIPPED.parent / name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 6_000_000  # the wheel's limit, before compression


def test_shipped_model_is_the_recipes_and_loads_as_float32(model, tokenizer):
    spec = load_pretrain_spec(RECIPE)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.model_type == "llama"
    assert model.config.hidden_size == spec.hidden_size == 96
    assert model.config.num_hidden_layers == spec.layers == 4
    assert model.config.intermediate_size == spec.feed_forward == 256
    assert model.config.max_position_embeddings == spec.max_positions >= 512
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert len(tokenizer) == model.config.vocab_size == spec.vocabulary == 640
    assert sum(parameter.numel() for parameter in model.parameters()) < 600_000
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 3_000_000


def test_digits_are_single_tokens(tokenizer):
    assert all(len(token) == 1 for token in tokenizer.get_vocab() if any(letter.isdigit() for letter in token))
    ids = tokenizer("room 2048, 17", add_special_tokens=False)["input_ids"]
    texts = [tokenizer.decode([token]) for token in ids]
    assert [text for text in texts if text.strip().isdigit()] == list("204817")


def test_any_text_survives_the_tokenizer(tokenizer):
    text = "Ünï ∑ 🦉\n\tprint('x')  two  blanks <tag>"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_chat_template_renders_prompt_then_response_then_eos(tokenizer):
    user = [{"role": "user", "content": "Say hi."}]
    turns = [*user, {"role": "assistant", "content": "hi"}]
    assert tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True) == "<user>Say hi.<assistant>"
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<user>Say hi.<assistant>hi<eos>"
    encoded = encode(Example.make("Say hi.", "hi"), tokenizer, 64)
    assert tokenizer.decode(encoded.prompt_ids) == "<user>Say hi.<assistant>"
    assert tokenizer.decode(encoded.response_ids) == "hi<eos>"
    assert encoded.ids[-1] == tokenizer.eos_token_id != tokenizer.pad_token_id


def test_chat_template_refuses_a_role_it_does_not_know(tokenizer):
    with pytest.raises(Exception, match="roles user and assistant, not system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


def test_generation_tags_mark_exactly_the_response(tokenizer):
    turns = [{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "hi there"}]
    out = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    ids = [token for token, mask in zip(out["input_ids"], out["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(ids) == "hi there<eos>"


def test_shipped_model_is_better_on_seen_sub_skills(accuracy):
    for skills in STAGES.values():
        seen = [accuracy[skill.name] for skill in skills if skill.pretrained]
        unseen = [accuracy[skill.name] for skill in skills if not skill.pretrained]
        assert np.mean(seen) > np.mean(unseen) + 15
        assert np.mean(seen) < 99.5


def test_model_card_states_what_is_measured(accuracy):
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    assert "python -m studies.tiny_base recipes/tiny-base.yaml" in card
    for stage, skills in STAGES.items():
        for skill in skills:
            (row,) = [line for line in card.splitlines() if line.startswith(f"| {stage} | {skill.name} |")]
            _, _, _, seen, value, _ = (cell.strip() for cell in row.split("|"))
            assert seen == ("no" if skill.name in unseen_skills() else "yes")
            assert float(value) == pytest.approx(accuracy[skill.name], abs=25)  # other items: sampling error only


def test_pretraining_lowers_the_loss_and_its_model_loads(small):
    out, report, seen = small
    assert seen[-1][2] < seen[0][2] - 0.5
    assert report.tokens >= SMALL.tokens
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert {total for _, total, _ in seen} == {SMALL.tokens}
    assert set(report.accuracy) == {skill.name for skills in STAGES.values() for skill in skills}
    loaded = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    assert sum(parameter.numel() for parameter in loaded.parameters()) == report.parameters
    assert AutoTokenizer.from_pretrained(out, local_files_only=True).eos_token == "<eos>"
    assert not out.with_name("small.part").exists()


def test_same_spec_gives_the_same_bytes_and_another_seed_others(small, tmp_path):
    out, _, _ = small
    random_state = torch.get_rng_state()
    pretrain(SMALL, tmp_path / "again")
    pretrain(SMALL.model_copy(update={"seed": 1, "tokens": 2000}), tmp_path / "other")
    assert torch.equal(torch.get_rng_state(), random_state)
    digest = {
        path: hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
        for path in (out, tmp_path / "again", tmp_path / "other")
    }
    assert digest[out] == digest[tmp_path / "again"] != digest[tmp_path / "other"]
    for name in ("tokenizer.json", "README.md"):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_an_existing_output_is_refused_before_any_work(small):
    out, _, _ = small
    with pytest.raises(RecipeError, match="exists already"):
        pretrain(SMALL, out)


def test_a_loss_that_explodes_is_an_error_that_names_the_step(tmp_path):
    wild = SMALL.model_copy(update={"learning_rate": 1e30, "warmup_share": 0.0})
    with pytest.raises(NumericalError, match=r"at step \d+ of pretraining"):
        pretrain(wild, tmp_path / "wild")
    assert not (tmp_path / "wild").exists()


def test_batches_hold_whole_examples_within_the_token_bound():
    tokenizer = build_tokenizer(SMALL)
    batches = list(_batches(SMALL, tokenizer))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= SMALL.batch_tokens
    total = sum(len(item) for batch in batches for item in batch)
    assert SMALL.tokens <= total < SMALL.tokens + SMALL.batch_tokens


def test_loss_weights_follow_prompt_and_response(tokenizer):
    items = encode_all([Example.make("Say hi.", "hi"), Example.make("Say it twice, please.", "hi hi hi")], tokenizer)
    spec = SMALL.model_copy(update={"prompt_loss_weight": 0.25})
    inputs, labels, weights = _tensors(items, spec)
    for row, item in enumerate(items):
        n, m = len(item.prompt_ids), len(item)
        assert inputs[row, :m].tolist() == labels[row, :m].tolist() == item.ids.tolist()
        assert weights[row].tolist() == [0.25] * n + [1.0] * (m - n) + [0.0] * (inputs.shape[1] - m)
        assert (labels[row, m:] == -100).all()


def test_token_accuracy_of_a_batch_is_that_of_its_items_alone(model, tokenizer):
    """Padding must not reach the score; a plain loop over unpadded items is the reference."""
    examples = [skill.example(np.random.default_rng(3), "mid") for skills in STAGES.values() for skill in skills]
    shares = []
    for item in encode_all(examples, tokenizer):
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(item.ids)[None]).logits[0]
        n = len(item.prompt_ids)
        content = item.response_ids[:-1]
        hits = [int(logits[n - 1 + k].argmax()) == token for k, token in enumerate(content)]
        shares.append(sum(hits) / len(hits))
    assert _token_accuracy(model, encode_all(examples, tokenizer)) == pytest.approx(100 * np.mean(shares), abs=1e-6)


def test_schedule_warms_up_peaks_and_ends_at_the_final_share():
    spec = SMALL.model_copy(update={"warmup_share": 0.1, "final_lr_share": 0.05})
    assert _schedule(0.0, spec) < 0.02
    assert _schedule(0.1, spec) == pytest.approx(1.0)
    assert _schedule(0.55, spec) == pytest.approx(0.05 + 0.95 * 0.5)
    assert _schedule(1.0, spec) == pytest.approx(0.05)


def test_untrained_weights_come_from_the_seed():
    tokenizer = build_tokenizer(SMALL)
    first, again = (build_model(SMALL, tokenizer).state_dict() for _ in range(2))
    other = build_model(SMALL.model_copy(update={"seed": 3}), tokenizer).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nlearning_rat: 1", "unknown key 'learning_rat'. Did you mean 'learning_rate'"),
        ("seed: 1", "'name' is missing"),
        ("name: x\ntokens: 0", r"'tokens': .* \(seen: 0\)"),
        ("name: x\nhidden_size: 50", "multiple of 2 × heads"),
        ("- a", "must be a mapping"),
        ("name: [", "not valid YAML"),
    ],
)
def test_a_wrong_recipe_is_one_clear_error(tmp_path, text, message):
    path = tmp_path / "base.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        load_pretrain_spec(path)


def test_a_missing_recipe_suggests_the_nearest_name():
    with pytest.raises(RecipeError, match=r"does not exist\. Did you mean 'tiny-base.yaml'"):
        load_pretrain_spec(RECIPE.with_name("tiny-bas.yaml"))


def test_command_with_a_missing_recipe_ends_with_one_sentence(tmp_path):
    done = run_python(["-m", "studies.tiny_base", str(tmp_path / "none.yaml")], RECIPE.parents[1])
    assert done.returncode == 2
    assert "none.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_specs_and_reports_are_frozen(small):
    with pytest.raises(ValueError, match="frozen"):
        SMALL.seed = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        small[1].tokens = 0


def test_every_procedural_answer_fits_the_task_and_the_context(tokenizer):
    sequence = build_procedural_sequence(DataSpec(pool_size=200), 2, ProxySpec())
    for task in sequence.tasks:
        encoded = encode_all(task.items, tokenizer)
        assert max(len(item.response_ids) for item in encoded) <= task.max_new_tokens
        assert max(map(len, encoded)) <= 256
    for stage in sequence.stages:
        assert max(map(len, encode_all(stage.candidates, tokenizer))) <= 256
