"""Models by name: checked before they are trusted, adapted reproducibly, gradients free of the batch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from longgame.audit import learner as learner_module
from longgame.audit.learner import Placement, learner_kind
from longgame.audit.plan import measured_by
from longgame.errors import ModelError, RecipeError
from longgame.models import device as device_module
from longgame.models import load
from longgame.models.adaptation import adapt
from longgame.models.device import attention_of, device_of, logit_entries, sketch_table_bytes
from longgame.models.load import forget_models, load_again, load_model, load_tokenizer
from longgame.recipe import ModelSpec, parse_recipe
from support.chat_model import CHATML, chat_tokenizer, llama, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("model"), chat_tokenizer())


def test_directory_loads_with_its_dtype_in_evaluation_mode(folder: str) -> None:
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


def test_gradient_does_not_depend_on_padding_or_batch_mates(folder: str) -> None:
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


def test_adapter_draw_depends_on_the_seed_alone(folder: str) -> None:
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


def test_lora_is_float32_on_all_linear_layers_but_the_head(folder: str) -> None:
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


def test_padding_is_never_taken_from_eos_by_default(tmp_path: Path) -> None:
    name = save(tmp_path, chat_tokenizer(pad=False))
    with pytest.raises(ModelError, match=r"no padding token.*model\.pad_token.*<\|endoftext\|>"):
        load_model(ModelSpec(name=name))
    assert load_model(ModelSpec(name=name, pad_token="<|endoftext|>")).pad_token_id == 0
    with pytest.raises(ModelError, match=r"not in the vocabulary.*Did you mean '<\|endoftext\|>'"):
        load_model(ModelSpec(name=name, pad_token="<|endoftxt|>"))


def test_missing_or_broken_chat_template_is_refused(tmp_path: Path) -> None:
    name = save(tmp_path, chat_tokenizer(template=None))
    with pytest.raises(ModelError, match=r"no chat template.*model\.chat_template"):
        load_model(ModelSpec(name=name))
    own = tmp_path / "own.jinja"
    own.write_text(CHATML)
    assert load_tokenizer(ModelSpec(name=name, chat_template=str(own))).chat_template == CHATML
    with pytest.raises(ModelError, match="does not exist"):
        load_model(ModelSpec(name=name, chat_template="absent.jinja"))
    own.write_text("{% for %}")
    with pytest.raises(ModelError, match="does not render"):
        load_model(ModelSpec(name=name, chat_template=str(own)))


def test_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    name = save(tmp_path, tokenizer, llama(len(tokenizer) - 1))
    with pytest.raises(ModelError, match=f"has {len(tokenizer)} tokens but the model embeds {len(tokenizer) - 1}"):
        load_model(ModelSpec(name=name))


def test_max_length_beyond_the_context_is_refused(folder: str) -> None:
    with pytest.raises(ModelError, match="max_length is 257 .* at most 256"):
        load_model(ModelSpec(name=folder, max_length=257))


def test_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
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


def test_names_that_are_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_model(ModelSpec(name=str(tmp_path)))
    with pytest.raises(ModelError, match="does not exist"):
        load_model(ModelSpec(name=str(tmp_path / "absent")))
    with pytest.raises(ModelError, match="'bad name!' is neither a directory nor a hub id.*one of tiny, tiny-1"):
        load_model(ModelSpec(name="bad name!"))
    with pytest.raises(ModelError, match="no language model"):
        load_model(ModelSpec(name="quadratic"))


_UNKNOWN = """
import sys
from longgame.audit.plan import measured_by
from longgame.errors import ModelError, RecipeError
from longgame.models.load import load_model
from longgame.recipe import ModelSpec, parse_recipe
try:
    load_model(ModelSpec(name=sys.argv[1]))
except ModelError as error:
    print(error)
    sys.exit(7)
"""


def test_unknown_id_without_network_ends_fast_with_help(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    "adaptation",
    [
        {"adaptation": "lora", "lora": {"r": 4}},
        {"adaptation": "dora"},
        {"adaptation": "full"},
        {"adaptation": "peft", "peft": {"type": "LN_TUNING"}},
        {"adaptation": "peft", "peft": {"type": "VERA"}},
        *({"peft": {"init_lora_weights": init}} for init in ("pissa", "OLoRA")),
        {"peft": {"modules_to_save": ["embed_tokens"]}},
    ],
    ids=str,
)
def test_weights_read_once_give_the_model_that_is_read_anew(adaptation: dict[str, Any]) -> None:
    spec = parse_recipe({"model": {"device": "cpu", **adaptation}}).model
    forget_models()
    anew = adapt(load_model(spec).model, spec, 3)
    for _ in range(2):  # what the first training changed is no part of the second
        again = adapt(load_again(spec).model, spec, 3)
        states = [model.model.state_dict() for model in (anew, again)]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
        assert {*anew.trained()} == {*again.trained()}
        ids = torch.arange(8)[None]
        assert torch.equal(anew.model(ids).logits, again.model(ids).logits)
        again.model(input_ids=ids, labels=ids).loss.backward()
        torch.optim.SGD(again.trained().values(), lr=1.0).step()
        again.model.register_forward_hook(lambda *_: None)
        again.model.config.use_cache = False
    assert again.trained().keys() == anew.trained().keys()
    forget_models()


def test_weights_are_read_again_where_model_or_file_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(load, "load_model", lambda spec, **more: read.append(spec.name) or load_model(spec, **more))
    folder = tmp_path / "model"
    loaded = load_model(ModelSpec())
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    forget_models()
    for name in ("tiny", "tiny", str(folder), str(folder)):
        load_again(ModelSpec(name=name))
    assert read == ["tiny", str(folder)]
    loaded.model.lm_head.weight.data.zero_()
    loaded.model.save_pretrained(folder)
    assert not load_again(ModelSpec(name=str(folder))).model.lm_head.weight.any()
    monkeypatch.setattr(load, "free_memory", lambda: 1)
    for _ in range(2):
        load_again(ModelSpec(name="tiny"))
    assert read[3:] == ["tiny", "tiny"]
    forget_models()


ATTENTION = [
    ("auto", "cpu", "eager"),
    ("auto", "cuda", "sdpa"),
    ("sdpa", "cpu", "sdpa"),
    ("eager", "cuda", "eager"),
    ("flash", "cuda", "flash_attention_2"),
]


@pytest.mark.parametrize(("setting", "device", "kernel"), ATTENTION)
def test_attention_is_eager_on_a_cpu_and_sdpa_on_a_gpu(setting: str, device: str, kernel: str) -> None:
    assert attention_of(setting, torch.device(device)) == kernel


def test_flash_attention_is_refused_where_it_cannot_run() -> None:
    with pytest.raises(ModelError, match="runs on CUDA GPUs only"):
        attention_of("flash", torch.device("cpu"))
    with pytest.raises(RecipeError, match="flash computes in 16 bits; set model.dtype: bfloat16"):
        parse_recipe({"model": {"attention": "flash"}})


def test_a_cpu_keeps_its_pieces_and_a_gpu_sizes_them_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert (logit_entries(cpu), sketch_table_bytes(cpu)) == (1 << 22, 1 << 28)
    for memory, entries in ((80 << 30, 1 << 28), (24 << 30, 1 << 26), (1 << 20, 1 << 22)):
        monkeypatch.setattr(device_module, "device_bytes", lambda _, memory=memory: memory)
        assert logit_entries(gpu) == entries
        assert sketch_table_bytes(gpu) == max(1 << 28, memory // 32)


GPU_PLACES = [
    ({}, (None, None), {"gpus": 2, "memory": 3 << 30}, Placement(4, ("0", "1"))),
    ({}, (None, 1), {"gpus": 2, "memory": 3 << 30}, Placement(2, ("0",))),
    ({}, (None, None), {"gpus": 2, "memory": 1 << 30, "visible": "5,3"}, Placement(2, ("5", "3"))),
    ({}, (None, None), {"gpus": 2, "memory": 80 << 30}, Placement(8, ("0", "1"))),
    ({"model": {"device": "cuda:0"}}, (3, None), {"gpus": 2, "memory": 1 << 30}, Placement(3, ("0",))),
    ({"model": {"device": "cpu"}}, (None, None), {"gpus": 2}, Placement(8)),
    ({}, (None, None), {"gpus": 0}, Placement(8)),
    ({"model": {"name": "quadratic"}, "data": {"sequence": "quadratic"}}, (None, None), {"gpus": 2}, Placement(8)),
]


@pytest.mark.parametrize(("changes", "asked", "machine", "placement"), GPU_PLACES)
def test_workers_follow_gpus_and_their_memory(
    changes: dict[str, Any],
    asked: tuple[int | None, int | None],
    machine: dict[str, Any],
    placement: Placement,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = parse_recipe(changes)
    patch_gpus(monkeypatch, **machine)
    assert learner_kind(recipe).place(recipe, *asked) == placement


@pytest.mark.parametrize(
    ("changes", "gpus", "message"),
    [
        ({}, 3, "--gpus is 3, but there are 2"),
        ({"model": {"device": "cpu"}}, 1, "--gpus is 1, but the audit runs on the cpu"),
        ({"model": {"name": "quadratic"}, "data": {"sequence": "quadratic"}}, 1, "the quadratic world runs on the cpu"),
    ],
)
def test_gpus_that_are_not_there_are_refused(
    changes: dict[str, Any], gpus: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse_recipe(changes)
    patch_gpus(monkeypatch, gpus=2)
    with pytest.raises(RecipeError, match=message):
        learner_kind(recipe).place(recipe, None, gpus)


def patch_gpus(monkeypatch: pytest.MonkeyPatch, gpus: int, memory: int = 0, visible: str | None = None) -> None:
    """A machine of 8 cores with so many GPUs of so much memory."""
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(learner_module, "may_have_gpu", lambda: gpus > 0)
    places = {"auto": "cuda", "cuda:0": "cuda:0", "cpu": "cpu"}
    monkeypatch.setattr(device_module, "device_of", lambda name: torch.device(places[name]))
    monkeypatch.setattr(device_module, "device_bytes", lambda _: memory)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_does_not_exist_is_one_sentence(name: str) -> None:
    with pytest.raises(ModelError, match=f"device '{name}' cannot be used .*Give auto, cpu"):
        device_of(name)
    assert device_of("auto") == device_of("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("name", "message"), [("gpu", "unknown device 'gpu'"), ("cuda:1", "CUDA_VISIBLE_DEVICES")])
def test_a_device_of_a_recipe_is_checked_when_it_is_read(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe({"model": {"device": name}})


def test_device_and_peft_change_keys_only_where_results_change() -> None:
    plain = measured_by(parse_recipe({}))
    assert not {"device", "peft"} & plain["model"].keys()
    assert measured_by(parse_recipe({"model": {"device": "cpu"}})) == plain
    assert "attention" not in plain["model"]
    assert not {"micro_tokens", "gradient_checkpointing"} & plain["training"].keys()
    assert measured_by(parse_recipe({"model": {"attention": "sdpa"}})) != plain
    assert measured_by(parse_recipe({"model": {"peft": {"use_rslora": True}}})) != plain
