"""The same content is read from disk; whatever the numbers depend on, changed, is computed again."""

import copy
import dataclasses
import multiprocessing
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from longgame.data.examples import Pool
from longgame.errors import ModelError
from longgame.signals import cache as cache_module
from longgame.signals.cache import (
    SignalCache,
    model_fingerprint,
    pool_fingerprint,
    signal_fingerprint,
    tokenizer_fingerprint,
    try_fingerprint,
)
from longgame.signals.engine import BACKWARD, FORWARD, SignalEngine
from longgame.signals.source import SignalSource
from support.signals import llama, random_pool, with_lora

FORK = multiprocessing.get_context("fork")


class Counting:
    """An engine that counts how often it is asked."""

    def __init__(self, engine):
        self.engine, self.calls = engine, 0

    def __call__(self, pool, names):
        self.calls += 1
        return self.engine(pool, names)


def numbers(pool, names):
    total = np.array([ids.sum() for ids in pool.input_ids], dtype=np.float32)
    return {name: total + len(name) for name in names}


def fresh():
    return with_lora(llama())


def layer(model):
    return model.base_model.model.model.layers[1].self_attn.q_proj


@pytest.fixture(scope="module")
def before():
    return model_fingerprint(fresh())


def test_equal_models_have_equal_fingerprints(before):
    model = fresh()
    assert model_fingerprint(model) == before
    ids = torch.tensor([[1, 2, 3]])
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    model.eval()
    with torch.no_grad():
        model(input_ids=ids, output_hidden_states=True)
    SignalEngine(model, pad_token_id=0, sketch_dim=8)(random_pool(n=3), ("loss", "grad_sketch"))
    with model.disable_adapter():
        assert model_fingerprint(model) != before
    assert model_fingerprint(model) == before
    code = """
        from longgame.signals.cache import model_fingerprint
        from support.signals import llama, with_lora
        print(model_fingerprint(with_lora(llama())))
    """
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.stdout.split()[-1] == before


def set_entry(part, value):
    def change(model):
        weight = dict(model.named_parameters(remove_duplicate=False))[part]
        with torch.no_grad():
            weight.data.view(-1)[-1] = value  # past the version counter that torch keeps

    return change


CHANGES = {
    "a base weight": set_entry("base_model.model.model.layers.0.mlp.up_proj.base_layer.weight", 0.5),
    "the tied embedding": set_entry("base_model.model.lm_head.weight", 0.5),
    "a norm's last bit": lambda model: model.base_model.model.model.norm.weight.data.copy_(
        torch.nextafter(model.base_model.model.model.norm.weight.data, torch.tensor(9.0))
    ),
    "an adapter's factor": set_entry("base_model.model.model.layers.0.mlp.up_proj.lora_B.default.weight", 0.5),
    "a buffer that is not saved": lambda model: model.base_model.model.model.rotary_emb.inv_freq.mul_(1.5),
    "the LoRA scaling": lambda model: layer(model).scaling.update(default=3.0),
    "a merge": lambda model: model.merge_adapter(),
    "another adapter": lambda model: model.add_adapter("other", LoraConfig(r=2, target_modules="all-linear")),
    "adapters off": lambda model: model.base_model.disable_adapter_layers(),
    "what is trained": lambda model: layer(model).lora_A["default"].requires_grad_(False),
    "a dtype": lambda model: model.base_model.model.model.norm.to(torch.float64),
    "rope": lambda model: setattr(model.base_model.model.model.rotary_emb, "attention_scaling", 2.0),
    "an eps": lambda model: setattr(model.base_model.model.model.norm, "variance_epsilon", 1e-3),
    "a soft cap": lambda model: setattr(model.base_model.model.config, "final_logit_softcapping", 30.0),
    "the attention kernel": lambda model: model.base_model.model.set_attn_implementation("eager"),
    "an activation": lambda model: setattr(model.base_model.model.model.layers[0].mlp, "act_fn", torch.nn.GELU()),
    "a tensor beside the buffers": lambda model: setattr(layer(model), "steering", torch.ones(3)),
    "a module more": lambda model: model.base_model.model.model.layers.append(torch.nn.Identity()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_all_that_the_forward_pass_reads_changes_the_fingerprint(before, change):
    model = fresh()
    CHANGES[change](model)
    assert model_fingerprint(model) != before


def test_which_adapter_is_active_changes_the_fingerprint():
    model = fresh()
    model.add_adapter("other", LoraConfig(r=2, target_modules="all-linear"))
    first = model_fingerprint(model)
    model.set_adapter("other")
    for name, weight in model.named_parameters():  # set_adapter also switches what is trained; leave only the choice
        weight.requires_grad_(".default." in name)
    assert model_fingerprint(model) != first


class Unversioned(torch.nn.Identity):
    """A module class of no installed library."""


UNKNOWN = {
    "a hook": lambda model: layer(model).register_forward_hook(lambda module, args, output: output * 2),
    "a replaced forward": lambda model: setattr(layer(model), "forward", lambda x: x * 0),
    "an iterator": lambda model: setattr(layer(model), "secret", iter(())),
    "a module class": lambda model: setattr(layer(model), "more", Unversioned()),
}


@pytest.mark.parametrize("change", UNKNOWN)
def test_unknown_code_is_refused_by_its_place(change, caplog):
    model = fresh()
    UNKNOWN[change](model)
    with pytest.raises(ModelError, match=r"Cannot hash \S*q_proj.* cannot be cached"):
        model_fingerprint(model)
    assert try_fingerprint(model) is None
    assert "signals are not cached: Cannot hash" in caplog.text


@settings(max_examples=60, deadline=None)
@given(part=st.integers(0, 10**6), entry=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_any_flipped_bit_of_any_weight_changes_the_fingerprint(before, part, entry, bit):
    model = flipped_model()
    tensors = [*model.parameters(), *model.buffers()]
    data = tensors[part % len(tensors)].data.view(-1).view(torch.uint8)
    place = entry % len(data)
    data[place] ^= 1 << bit
    try:
        assert model_fingerprint(model) != before
    finally:
        data[place] ^= 1 << bit
    assert model_fingerprint(model) == before


_MODEL = []


def flipped_model():
    if not _MODEL:
        _MODEL.append(fresh())
    return _MODEL[0]


def tokenizer(words=("a", "b", "c"), **options):
    inner = Tokenizer(models.WordLevel({"<unk>": 0, **{word: row for row, word in enumerate(words, 1)}}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", **options)


def test_tokenizer_fingerprint_ignores_only_padding():
    plain = tokenizer()
    padded = tokenizer(pad_token="<unk>")
    template = tokenizer()
    template.chat_template = "{{ messages }}"
    split = tokenizer()
    split.backend_tokenizer.pre_tokenizer = pre_tokenizers.Digits()
    added = tokenizer()
    added.add_tokens(["new"])
    others = [tokenizer(("a", "c", "b")), padded, template, split, added]
    result = {tokenizer_fingerprint(item) for item in (plain, *others)}
    assert len(result) == 1 + len(others)
    first = tokenizer_fingerprint(padded)
    padded(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(padded) == first


def altered(pool: Pool, change: str) -> Pool:
    ids = [tokens.copy() for tokens in pool.input_ids]
    prompts, responses = pool.prompt_tokens.copy(), pool.response_tokens.copy()
    examples = list(pool.examples)
    if change == "token":
        ids[4][2] += 1
    elif change == "border":
        prompts[4] += 1
        responses[4] -= 1
    elif change == "id":
        examples[4] = dataclasses.replace(examples[4], sample_id="else")
    elif change == "moved":  # one token changes hands; all tokens end to end are the same
        ids[4], ids[5] = np.append(ids[4], ids[5][0]), ids[5][1:]
        responses[4] += 1
        responses[5] -= 1
    return Pool(tuple(examples), tuple(ids), prompts, responses)


def test_pool_fingerprint_ignores_only_text():
    pool = random_pool()
    texts = [dataclasses.replace(example, prompt="q", skill="s") for example in pool.examples]
    assert pool_fingerprint(dataclasses.replace(pool, examples=tuple(texts))) == pool_fingerprint(altered(pool, ""))
    others = [altered(pool, change) for change in ("token", "border", "id", "moved")]
    others += [pool.take([1, 0, *range(2, 9)]), pool.take(range(8))]
    assert len({pool_fingerprint(item) for item in (pool, *others)}) == 1 + len(others)


def test_settings_code_and_threads_change_the_fingerprint(monkeypatch):
    model = fresh()
    words = tokenizer()
    options = {"pad_token_id": 0, "seed": 0, "sketch_dim": 8}
    result = [signal_fingerprint(model, tokenizer=words, settings=options)]
    assert signal_fingerprint(model, tokenizer=copy.deepcopy(words), settings=dict(options)) == result[0]
    result.append(signal_fingerprint(model, settings=options))
    for change in ({"seed": 1}, {"pad_token_id": 1}, {"sketch_dim": 9}, {"logit_sketch_shape": (8, 8)}):
        result.append(signal_fingerprint(model, tokenizer=words, settings=options | change))
    for scale in (1.0, 2.0):
        state = {"precondition": {"moment": torch.full((3,), scale)}}
        result.append(signal_fingerprint(model, tokenizer=words, settings=options | state))
    with torch.autocast("cpu", torch.bfloat16):
        result.append(signal_fingerprint(model, tokenizer=words, settings=options))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    result.append(signal_fingerprint(model, tokenizer=words, settings=options))
    monkeypatch.setattr(cache_module, "_code", lambda: "another version")
    result.append(signal_fingerprint(model, tokenizer=words, settings=options))
    assert len(set(result)) == len(result)


def test_the_same_content_is_a_hit_and_anything_else_a_miss(tmp_path):
    engine, cache, pool = Counting(numbers), SignalCache(tmp_path / "c"), random_pool()
    first = cache(engine, pool, ("loss", "el2n"), "f")
    again = SignalCache(tmp_path / "c")(engine, random_pool(), ("el2n", "loss"), "f")
    assert engine.calls == 1
    assert list(again) == ["el2n", "loss"]
    for name, column in first.items():
        np.testing.assert_array_equal(again[name], column, strict=True)
    cache(engine, pool, ("loss",), "f")
    assert engine.calls == 1
    misses = [(pool, ("loss",), "g"), (pool, ("loss", "base_loss"), "f"), (altered(pool, "token"), ("loss",), "f")]
    misses += [(pool, ("loss", "grad_norm"), "f"), (pool, ("loss",), None), (pool, ("loss",), None)]
    for calls, arguments in enumerate(misses, start=2):
        cache(engine, *arguments)
        assert engine.calls == calls


@pytest.mark.parametrize("names", [FORWARD, ("loss", "el2n", *BACKWARD)])
def test_column_bits_do_not_depend_on_other_columns(names):
    """The cache keeps column by column; only whether gradients are taken along is part of a column's key."""
    engine, pool = SignalEngine(fresh(), pad_token_id=0, sketch_dim=8), random_pool(n=40)
    complete = engine(pool, names)
    along = [name for name in names if name in BACKWARD][:1]
    for name in names:
        np.testing.assert_array_equal(engine(pool, [name, *along])[name], complete[name])


def test_a_hit_has_the_engines_bits_and_training_is_a_miss(tmp_path):
    model, pool, cache = fresh(), random_pool(), SignalCache(tmp_path / "c")
    engine = Counting(SignalEngine(model, pad_token_id=0, sketch_dim=8))
    names = ("loss", "grad_norm", "grad_sketch")
    first = cache(engine, pool, names, signal_fingerprint(model))
    again = cache(engine, pool, names, signal_fingerprint(model))
    assert engine.calls == 1
    expected = engine.engine(pool, names)
    for name in names:
        np.testing.assert_array_equal(again[name], first[name], strict=True)
        np.testing.assert_array_equal(again[name], expected[name], strict=True)
    set_entry("base_model.model.model.layers.0.mlp.up_proj.lora_B.default.weight", 0.5)(model)
    moved = cache(engine, pool, names, signal_fingerprint(model))
    assert engine.calls == 2
    assert not np.array_equal(moved["loss"], first["loss"])


def test_the_longest_unused_columns_make_room(tmp_path):
    pools = [random_pool(seed=seed) for seed in range(4)]
    cache, engine = SignalCache(tmp_path / "c"), Counting(numbers)
    cache(engine, pools[0], ("loss",), "f")
    size = next((tmp_path / "c").iterdir()).stat().st_size
    cache.max_bytes = 3 * size
    for pool in pools[1:3]:
        cache(engine, pool, ("loss",), "f")
    age(tmp_path / "c", 100)
    cache(engine, pools[0], ("loss",), "f")  # used again
    assert engine.calls == 3
    cache(engine, pools[3], ("loss",), "f")
    assert len(list((tmp_path / "c").iterdir())) == 3
    cache(engine, pools[0], ("loss",), "f")
    cache(engine, pools[3], ("loss",), "f")
    assert engine.calls == 4
    cache(engine, pools[1], ("loss",), "f")
    cache(engine, pools[2], ("loss",), "f")
    assert engine.calls > 4


def age(folder, seconds):
    for path in folder.iterdir():
        os.utime(path, (time.time() - seconds, time.time() - seconds))


def test_a_column_larger_than_the_bound_is_left_out(tmp_path):
    cache, engine = SignalCache(tmp_path / "c", max_bytes=8), Counting(numbers)
    cache(engine, random_pool(), ("loss",), "f")
    assert not (tmp_path / "c").exists()


def test_only_old_half_written_files_are_cleared_away(tmp_path):
    cache, engine = SignalCache(tmp_path / "c"), Counting(numbers)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "old.safetensors.1.part").write_text("x")
    age(tmp_path / "c", 7200)
    (tmp_path / "c" / "new.safetensors.2.part").write_text("x")
    cache(engine, random_pool(), ("loss",), "f")
    assert sorted(path.name for path in (tmp_path / "c").glob("*.part")) == ["new.safetensors.2.part"]


@pytest.mark.parametrize("how", ["cut", "flip", "foreign"])
def test_a_damaged_column_is_computed_again_with_a_warning(tmp_path, caplog, how):
    cache, engine, pool = SignalCache(tmp_path / "c"), Counting(numbers), random_pool()
    first = cache(engine, pool, ("loss",), "f")
    path = next((tmp_path / "c").iterdir())
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-3], "flip": data[:-2] + bytes([data[-2] ^ 1]) + data[-1:], "foreign": b"x"}[how])
    again = cache(engine, pool, ("loss",), "f")
    assert engine.calls == 2
    assert "computed again" in caplog.text
    np.testing.assert_array_equal(again["loss"], first["loss"])
    cache(engine, pool, ("loss",), "f")
    assert engine.calls == 2


def test_signals_come_where_nothing_can_be_written(tmp_path, caplog):
    (tmp_path / "c").write_text("a file")
    cache, engine = SignalCache(tmp_path / "c"), Counting(numbers)
    for calls in (1, 2):
        np.testing.assert_array_equal(
            cache(engine, random_pool(), ("loss",), "f")["loss"], numbers(random_pool(), ("loss",))["loss"]
        )
        assert engine.calls == calls
    assert caplog.text.count("signals are not cached") == 1


def hammer(folder, seed):
    """Write and read the same few entries over and over in a directory that holds only some of them."""
    cache_module._log.warning = pytest.fail
    order = np.random.default_rng(seed).permutation(60) % 6
    for number in order:
        pool = random_pool(seed=int(number))
        result = SignalCache(folder, max_bytes=900)(numbers, pool, ("loss", "el2n"), "f")
        for name, column in numbers(pool, ("loss", "el2n")).items():
            np.testing.assert_array_equal(result[name], column)


def test_two_processes_at_once_read_whole_columns(tmp_path):
    children = [FORK.Process(target=hammer, args=(tmp_path / "c", seed)) for seed in (1, 2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert not list((tmp_path / "c").glob("*.part"))
    assert sum(path.stat().st_size for path in (tmp_path / "c").iterdir()) <= 1500


def test_base_signals_are_read_from_an_earlier_run(tmp_path, monkeypatch):
    pool, cache = random_pool(), SignalCache(tmp_path / "c")
    first = SignalSource.of_model(fresh(), pad_token_id=0, cache=cache)(pool, ("base_loss", "embedding"))
    monkeypatch.setattr(SignalEngine, "__call__", lambda *_: pytest.fail("the model was asked"))
    again = SignalSource.of_model(fresh(), pad_token_id=0, cache=cache)(pool, ("base_loss", "embedding"))
    for name in ("base_loss", "embedding"):
        np.testing.assert_array_equal(first[name], again[name])
