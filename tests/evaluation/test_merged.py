"""Folding LoRA into its base for a measurement leaves no trace and changes nothing but rounding."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from longgame.models.lora import folded_lora


def adapted(base, **changes) -> PeftModel:
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **changes}
    model = get_peft_model(base, LoraConfig(**settings)).eval()
    source = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=source) * 0.3)
    return model


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(4, 40, (3, 11), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_folded_logits_equal_unfolded_ones_and_the_weights_come_back_bit_for_bit(build_model, ids) -> None:
    model = adapted(build_model())
    before = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    expected = model(input_ids=ids).logits
    with folded_lora(model) as folded:
        assert folded
        assert model.base_model.model.model.layers[0].mlp.up_proj.merged
        inside = model(input_ids=ids).logits
    assert not torch.equal(inside, expected), "the adapters were not folded"
    torch.testing.assert_close(inside, expected, rtol=1e-4, atol=1e-5)
    after = {name: (value.data_ptr(), value) for name, value in model.state_dict().items()}
    assert all(
        after[name][0] == pointer and torch.equal(after[name][1], value) for name, (pointer, value) in before.items()
    )
    assert torch.equal(model(input_ids=ids).logits, expected)


def test_an_error_inside_still_puts_the_weights_back(build_model, ids) -> None:
    model = adapted(build_model())
    weight = model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight
    original = weight.data
    with pytest.raises(KeyError), folded_lora(model):
        raise KeyError
    assert weight.data.data_ptr() == original.data_ptr()
    assert not model.base_model.model.model.layers[0].mlp.up_proj.merged


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda build: build(), id="no adapter"),
        pytest.param(lambda build: adapted(build().to(torch.bfloat16)), id="bfloat16"),
        pytest.param(lambda build: adapted(build(), use_dora=True), id="dora"),
        pytest.param(
            lambda build: adapted(build(tie_word_embeddings=True), target_modules=["q_proj", "lm_head"]),
            id="head tied to the embedding",
            marks=pytest.mark.filterwarnings("ignore"),
        ),
    ],
)
def test_what_folding_could_change_runs_as_it_is(build_model, ids, make) -> None:
    model = make(build_model)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with folded_lora(model) as folded:
            assert not folded
            assert torch.equal(model(input_ids=ids).logits, expected)


def test_a_disabled_adapter_stays_disabled(build_model, ids) -> None:
    base = build_model()
    model = adapted(build_model())
    with torch.no_grad(), model.disable_adapter(), folded_lora(model) as folded:
        assert not folded
        torch.testing.assert_close(model(input_ids=ids).logits, base(input_ids=ids).logits)
