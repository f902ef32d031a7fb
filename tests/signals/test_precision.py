"""Bases in half precision, gradient checkpointing, and LoRA options that change what a layer computes."""

import numpy as np
import pytest
import torch

from longgame.signals.engine import BACKWARD, FORWARD
from longgame.signals.gradients import BatchGradients, loss_scale
from support.signals import llama, perturb, random_pool, with_lora
from support.signals_exact import assert_exact, engine_of

ALL = (*FORWARD, *BACKWARD)


def relative(result, true):
    return np.linalg.norm(result - true) / (np.linalg.norm(true) or 1.0)


def with_lora_in(base, dtype):
    model = with_lora(base)
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            weight.data = weight.data.to(dtype)
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factors", ["float32", "as the base"])
def test_half_precision_signals_are_those_of_float32(dtype, factors, pool):
    """Tolerance: 8 bits of mantissa (bfloat16) or 11 (float16) over two layers."""
    model = with_lora_in(llama().to(dtype), torch.float32 if factors == "float32" else dtype)
    wide = with_lora(llama())
    wide.load_state_dict(model.state_dict())
    result, true = (engine_of(single)(pool, ALL) for single in (model, wide))
    for name in ALL:
        assert result[name].dtype == np.float32
        assert relative(result[name], true[name]) < (0.03 if dtype == torch.bfloat16 else 0.005), name


def test_float16_gradients_of_long_responses_do_not_underflow(monkeypatch):
    """Behind a head of small weights the slope at a token is ≈ 1e-8: float16 rounds it to 0 unless it is scaled."""
    pool = random_pool(n=3, shortest=100, longest=120)
    base = llama(tie_word_embeddings=False)
    with torch.no_grad():
        base.lm_head.weight *= 1e-5
    model = with_lora_in(base.half(), torch.float32)
    wide = with_lora(llama(tie_word_embeddings=False))
    wide.load_state_dict(model.state_dict())
    true = engine_of(wide)(pool, BACKWARD)
    scaled = engine_of(model)(pool, BACKWARD)
    monkeypatch.setattr("longgame.signals.engine.loss_scale", lambda counts, hidden: None)
    plain = engine_of(model)(pool, BACKWARD)
    for name in BACKWARD:
        assert max(map(relative, scaled[name], true[name])) < 0.05, name
        assert max(map(relative, plain[name], true[name])) > 0.5, name


@pytest.mark.parametrize("slope", [2.0, 200.0, 20000.0])  # ×1024 is above float16's 65504 but for the first
def test_float16_overflow_runs_again_at_a_smaller_scale(slope):
    gradients = BatchGradients(1, None, norm=True, lora=True, device=torch.device("cpu"))
    entrance = torch.zeros(1, 4, 3, dtype=torch.float16, requires_grad=True)
    inner = entrance * 1.0
    inner.register_hook(lambda delta: gradients.add("w", delta, torch.ones(1, 4, 1)))
    hidden = inner * slope
    scale = loss_scale(np.array([4]), hidden)
    assert scale.tolist() == [1024.0]
    gradients.backward(hidden, [entrance], torch.full_like(hidden, float(scale)), scale)
    assert float(gradients.signals()["grad_norm"][0]) == pytest.approx(4 * slope * 3**0.5, rel=1e-3)


def test_only_float16_is_scaled():
    for dtype in (torch.float32, torch.bfloat16):
        assert loss_scale(np.array([4]), torch.zeros(1, 2, 3, dtype=dtype)) is None


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("adapter", [True, False])
def test_gradient_checkpointing_changes_no_signal_and_stays_on(reentrant, adapter, pool):
    def make():
        return with_lora(llama()) if adapter else llama()

    plain, model = make(), make()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model.train()
    result, true = engine_of(model)(pool, ALL), engine_of(plain)(pool, ALL)
    for name in ALL:
        np.testing.assert_array_equal(result[name], true[name], err_msg=name)
    base = model.get_base_model() if adapter else model
    assert base.is_gradient_checkpointing
    assert all(layer.gradient_checkpointing and layer.training for layer in base.model.layers)


@pytest.mark.parametrize(
    "changes",
    [
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 7}},
        {"alpha_pattern": {"v_proj": 32, "up_proj": 1}},
        {"rank_pattern": {"q_proj": 2}, "use_rslora": True},
        {"init_lora_weights": "orthogonal"},
        {"layers_to_transform": [1], "target_modules": ["q_proj", "up_proj"]},
    ],
)
def test_lora_options_are_in_the_gradient(changes, pool):
    assert_exact(with_lora(llama(), **changes), pool)


def test_a_bias_of_the_factor_b_is_part_of_the_gradient(pool):
    model = with_lora(llama(attention_bias=True), target_modules=["q_proj", "v_proj"], lora_bias=True)
    perturb(model, "lora_B.default.bias", 0.1, 7)
    assert sum(name.endswith("lora_B.default.bias") for name, _ in model.named_parameters()) == 4
    assert_exact(model, pool)
