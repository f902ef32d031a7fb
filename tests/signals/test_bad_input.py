"""What the engine cannot measure is refused by name, never measured wrongly."""

import numpy as np
import pytest
import torch
from peft import (
    BOFTConfig,
    LNTuningConfig,
    LoHaConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from torch import nn
from torch.nn import functional

from longgame.errors import ModelError, NumericalError, PluginError
from longgame.signals.engine import BACKWARD, FORWARD
from support.signals import llama, with_lora
from support.signals_exact import engine_of


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (VeraConfig(target_modules=["q_proj"]), "LoRA only; layer 'model.layers.0.self_attn.q_proj' is vera's Linear"),
        (LoHaConfig(target_modules=["q_proj"]), "LoRA only; layer 'model.layers.0.self_attn.q_proj'"),
        (BOFTConfig(target_modules=["q_proj"], boft_block_size=4), "LoRA only; layer 'model.layers.0"),
        (LNTuningConfig(target_modules=["input_layernorm"]), "LoRA only; layer 'model.layers.0.input_layernorm'"),
    ],
)
def test_other_adapters_are_measured_forward_only(config, message, pool):
    model = get_peft_model(llama(), config)
    assert np.isfinite(engine_of(model)(pool, ["loss"])["loss"]).all()
    with pytest.raises(ModelError, match=message):
        engine_of(model)(pool, ["grad_norm"])


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig, PromptEncoderConfig])
def test_prompt_learning_is_measured_forward_only(kind, pool):
    options = {"encoder_hidden_size": 8} if kind is PromptEncoderConfig else {}
    model = get_peft_model(llama(), kind(task_type="CAUSAL_LM", num_virtual_tokens=3, **options)).eval()
    engine = engine_of(model)
    columns = engine(pool, ["loss", "embedding"])
    with model.disable_adapter():
        base = engine(pool, ["loss"])["loss"]
    for row, ids in enumerate(pool.input_ids):
        start = max(1, int(pool.prompt_tokens[row]))
        for active, value in ((model, columns["loss"][row]), (model.get_base_model(), base[row])):
            with torch.no_grad():
                logits = active(input_ids=torch.tensor(ids)[None]).logits[0, -len(ids) :]
            expected = functional.cross_entropy(logits[start - 1 : -1], torch.tensor(ids[start:]))
            assert value == pytest.approx(float(expected), rel=1e-4)
    assert not np.allclose(base, columns["loss"], rtol=1e-3)
    with pytest.raises(ModelError, match="prompt learning.*or train LoRA"):
        engine(pool, ["grad_norm"])


class Mixer(nn.Module):
    """A decoder layer with a convolution over tokens behind it."""

    def __init__(self, layer: nn.Module, size: int) -> None:
        super().__init__()
        self.layer = layer
        self.mix = nn.Conv1d(size, size, 1)

    def forward(self, *args, **kwargs):
        return self.mix(self.layer(*args, **kwargs).mT).mT


def test_lora_on_a_convolution_is_refused(pool):
    base = llama()
    base.model.layers[1] = Mixer(base.model.layers[1], 24)
    model = with_lora(base, target_modules=["q_proj", "mix"])
    with pytest.raises(ModelError, match=r"layer 'model.layers.1.mix' is LoRA's Conv1d"):
        engine_of(model)(pool, ["grad_norm"])


def test_lora_on_a_parameter_is_refused(pool):
    """Its factors are never run as modules: hooks would see nothing, and the signal would leave them out."""
    model = with_lora(llama(), target_modules=["q_proj"], target_parameters=["mlp.up_proj.weight"], lora_dropout=0.0)
    with pytest.raises(ModelError, match="is LoRA's ParamWrapper"):
        engine_of(model)(pool, ["grad_norm"])


def test_two_adapters_and_weights_saved_beside_lora_are_refused(pool):
    model = with_lora(llama())
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ModelError, match="2 active adapters"):
        engine_of(model)(pool, ["grad_norm"])
    beside = with_lora(llama(), modules_to_save=["input_layernorm"], target_modules=["q_proj"])
    with pytest.raises(ModelError, match="input_layernorm.* is trainable too"):
        engine_of(beside)(pool, ["grad_norm"])


def test_nan_activations_are_reported_for_every_signal(pool):
    model = with_lora(llama())
    with torch.no_grad():
        model.get_base_model().model.layers[1].mlp.gate_proj.base_layer.weight[0, 0] = float("inf")
    for name in (*FORWARD, *BACKWARD):
        with pytest.raises(NumericalError, match=f"'{name}' is NaN or infinite for example id"):
            engine_of(model)(pool, [name])


def test_a_sketch_larger_than_the_gradient_is_refused(pool):
    """Rank 4 on q_proj (24 → 24) of one layer: 4·24 + 24·4 = 192 entries."""
    model = with_lora(llama(), target_modules=["q_proj"], layers_to_transform=[1])
    with pytest.raises(PluginError, match=r"sketch_dim is 193, larger than the gradient \(192 entries\)"):
        engine_of(model, sketch_dim=193)(pool, ["grad_sketch"])
    result = engine_of(model, sketch_dim=192)(pool, ["grad_sketch", "grad_norm"])
    assert result["grad_sketch"].shape == (len(pool), 192)
    # each factor's entries fall into buckets of their own; only the two factors meet, at random signs
    ratio = np.linalg.norm(result["grad_sketch"], axis=1) / result["grad_norm"]
    assert 0.7 < ratio.min() <= ratio.max() < 1.3
