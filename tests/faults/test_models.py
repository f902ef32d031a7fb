"""Models of other families: exact gradients, or one clear sentence."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, OFTConfig, VeraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from transformers import AutoConfig, AutoModelForCausalLM

import longgame
from longgame.data.examples import Example, Task
from longgame.errors import ModelError
from longgame.evaluation.evaluator import Evaluator
from longgame.models.adaptation import adapt
from longgame.models.load import load_model
from longgame.recipe import ModelSpec
from longgame.selection.base import build_selector
from longgame.selection.history import History
from longgame.selection.policy import SelectionPolicy
from longgame.signals.base import Signals
from longgame.signals.engine import SignalEngine
from longgame.signals.source import SignalSource
from longgame.testing import example_pool, example_signals
from support.signals import llama, random_pool
from support.signals_exact import assert_exact

EXPERTS = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                  "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "eos_token_id": 2},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip


def adapted(kind, **options):
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **options}))
    return adapt(model, ModelSpec(), 0).model


@pytest.mark.parametrize("kind", EXPERTS)
def test_adapters_leave_routers_and_experts_alone(kind) -> None:
    names = adapted(kind, **EXPERTS[kind]).targeted_module_names
    assert names
    assert not [
        name for name in names if name.endswith(("router", ".gate", "shared_expert_gate")) or ".experts" in name
    ]


@pytest.mark.parametrize("kind", ["opt", *EXPERTS])
def test_gradients_of_layers_that_see_tokens_in_a_row_are_exact(kind) -> None:
    options = {"ffn_dim": 48, "word_embed_proj_dim": 32} if kind == "opt" else EXPERTS[kind]
    assert_exact(adapted(kind, **options), random_pool())


def test_a_model_that_writes_in_place_is_refused_for_gradients_alone() -> None:
    model = adapted("ctrl", n_embd=32, dff=48, n_layer=2, n_head=4, n_positions=128)
    engine = SignalEngine(model, pad_token_id=0)
    assert np.isfinite(engine(random_pool(), ("loss",))["loss"]).all()
    with pytest.raises(ModelError, match="CTRLLMHeadModel changes its activations in place"):
        engine(random_pool(), ("grad_norm",))


def test_a_gradient_that_only_a_diagnostic_reads_is_not_needed(caplog) -> None:
    def refuse(pool, names):
        if "grad_sketch" in names:
            raise ModelError("no gradients here.")
        return Signals(pool.ids, {}) if not names else example_signals(pool, names)

    policy = SelectionPolicy(build_selector("loss"), History(), np.random.default_rng(0), gradient_every=1)
    for number in range(2):
        policy.choose(example_pool(10, seed=number), 60, refuse)
    assert [entry.gradients for entry in policy.rounds] == [None, None]
    assert caplog.messages == ["selection concentration is not measured: no gradients here."]
    wanting = SelectionPolicy(build_selector("gradient", {"mode": "similarity"}), History(), np.random.default_rng(0))
    with pytest.raises(ModelError, match="no gradients here"):
        wanting.choose(example_pool(10), 60, refuse)


OTHERS = {
    "modules_to_save": (LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]), "is trainable too"),
    "embeddings to save": (
        LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
        "is trainable",
    ),
    "tokens of a tied head": (
        LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[5, 6, 40]),
        "token_adapter' is trainable_tokens's TrainableTokensLayer. Use LoRA",
    ),
    "ia3": (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "is ia3's Linear. Use LoRA"),
    "vera": (VeraConfig(r=4, target_modules=["q_proj"]), "is vera's Linear. Use LoRA"),
    "oft": (OFTConfig(r=0, oft_block_size=4, target_modules=["q_proj"]), "is oft's Linear. Use LoRA"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_adapters_give_the_models_own_losses_and_name_what_gradients_lack(kind) -> None:
    config, message = OTHERS[kind]
    torch.manual_seed(0)
    model, pool = get_peft_model(llama(), config).eval(), random_pool()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight) if weight.requires_grad else 0)
        expected = []
        for ids, start in zip(pool.input_ids, pool.prompt_tokens, strict=True):
            tokens = torch.from_numpy(ids.copy())[None]
            labels = tokens.clone()
            labels[:, : max(int(start), 1)] = -100
            expected.append(model(input_ids=tokens, labels=labels).loss.item())
    source = SignalSource.of_model(model, pad_token_id=0, candidates=lambda: [pool])
    np.testing.assert_allclose(source(pool, ("loss",))["loss"], expected, rtol=1e-4)
    base = SignalSource.of_model(llama(), pad_token_id=0, candidates=lambda: [pool])(pool, ("loss",))["loss"]
    np.testing.assert_allclose(source(pool, ("base_loss",))["base_loss"], base, rtol=1e-4)
    with pytest.raises(ModelError, match=message):
        source(pool, ("grad_norm",))


def test_tokens_that_are_trained_on_move_the_tied_head() -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[5, 6, 40])
    model, pool = get_peft_model(llama(), config).eval(), random_pool()
    engine = SignalEngine(model, pad_token_id=0)
    losses = [engine(pool, ("loss",))["loss"]]
    for step in range(2):
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "trainable_tokens_delta" in name:
                    weight.add_(0.5 + step)
        losses.append(engine(pool, ("loss",))["loss"])
        fresh = SignalEngine(model, pad_token_id=0)(pool, ("loss",))["loss"]
        np.testing.assert_array_equal(losses[-1], fresh)
        assert not np.allclose(losses[-1], losses[-2])


@pytest.mark.parametrize("differs", [False, True])
def test_an_adapter_is_folded_only_where_that_changes_nothing(differs, caplog, monkeypatch) -> None:
    loaded = load_model(ModelSpec())
    model = adapt(loaded.model, ModelSpec(), 0).model
    evaluator = Evaluator(model, loaded.tokenizer, pad_token_id=loaded.pad_token_id)
    task = Task("t", tuple(Example.make(f"What is {n}?", f"It is {n}.") for n in range(3)), scorers=("likelihood",))
    evaluator.score([task])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    if differs:  # a block that reads weights past the layers whose forward knows of the adapter
        block = model.get_base_model().model.layers[0].mlp
        forward, layer = block.forward, next(part for part in block.modules() if isinstance(part, LoraLinear))
        monkeypatch.setattr(block, "forward", lambda x: forward(x) * (0.5 if layer.merged else 1.0))
    expected = Evaluator(model, loaded.tokenizer, pad_token_id=loaded.pad_token_id)
    monkeypatch.setattr(expected, "_folded", lambda rows: nullcontext(False))
    got, plain = evaluator.score([task])[0].value, expected.score([task])[0].value
    assert got == pytest.approx(plain, rel=1e-4)
    assert ("it is scored unfolded" in caplog.text) is differs


CONFIGS = {
    "a million layers": ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000; give a number from 1 to 10,000"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0; give a number"),
    "fewer than no layers": ({"num_hidden_layers": -1}, "num_hidden_layers is -1; give a number"),
    "layers in words": ({"num_hidden_layers": "four"}, "num_hidden_layers"),
    "layers without a number": ({"num_hidden_layers": None}, "num_hidden_layers"),
    "width beyond memory": ({"hidden_size": 10**7}, "its weights have other sizes than its config.json says"),
    "no width": ({"hidden_size": 0}, "its weights have other sizes"),
    "words beyond memory": ({"vocab_size": 10**9}, "its weights have other sizes"),
    "fewer than no words": ({"vocab_size": -5}, "negative dimension"),
    "heads beyond width": ({"num_attention_heads": 10**8}, "cannot be loaded"),
    "no heads": ({"num_attention_heads": 0}, "cannot be loaded"),
    "another number of key heads": ({"num_key_value_heads": 3}, "its weights have other sizes"),
    "a wide block": ({"intermediate_size": 10**9}, "its weights have other sizes"),
    "a context in words": ({"max_position_embeddings": "long"}, "max_position_embeddings"),
    "a padding token beyond the words": ({"pad_token_id": 10**7}, "Padding_idx"),
    "an end in words": ({"eos_token_id": "end"}, "eos_token_id"),
    "an unknown family": ({"model_type": "nonsense"}, "`nonsense`"),
    "a family that is a number": ({"model_type": 5}, "model type `5`"),
    "an unknown dtype": ({"dtype": "float7"}, "float7"),
    "an unknown activation": ({"hidden_act": "os.system"}, "os.system"),
    "an unknown rope": ({"rope_parameters": {"rope_type": "evil"}}, "evil"),
    "a truth in words": ({"tie_word_embeddings": "maybe"}, "tie_word_embeddings"),
    "a list": ([], "mapping"),
    "nothing": ({None: None}, "model_type"),
    "no JSON": ("{", "not a valid JSON|JSON"),
    "depth": ("[" * 100_000, "cannot be loaded"),
}


@pytest.mark.parametrize(("changes", "message"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_of_a_wrong_kind_or_size_is_one_sentence(tmp_path, changes, message) -> None:
    folder = tmp_path / "model"
    shutil.copytree(Path(longgame.__file__).parent / "assets" / "tiny", folder)
    config = json.loads((folder / "config.json").read_text())
    if isinstance(changes, dict):
        changes = {} if None in changes else config | changes
    (folder / "config.json").write_text(changes if isinstance(changes, str) else json.dumps(changes))
    with pytest.raises(ModelError, match=message):
        load_model(ModelSpec(name=str(folder)))
