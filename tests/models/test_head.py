"""The output head on response positions only gives the model's own logits and loss."""

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from torch.nn import functional
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from longgame.errors import ModelError
from longgame.models.head import LogitHead, evaluating, float32_head, response_logits, response_loss
from support.training import make_model

IDS = torch.tensor([[5, 6, 7, 8, 0], [9, 10, 11, 12, 13]])
LABELS = torch.tensor([[-100, -100, 7, 8, -100], [-100, 10, 11, -100, 13]])
INDEX = torch.tensor([1, 2, 5, 6, 8])
"""Flattened positions that predict a labelled token."""


def soft_capped():
    config = Gemma2Config(
        vocab_size=31, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.1, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gemma2ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(50)
    return model


@pytest.mark.parametrize("make", [make_model, lambda: make_model(tie_word_embeddings=True), soft_capped])
def test_response_loss_is_the_models_own_loss(make):
    model = make()
    ours = response_loss(model, {"input_ids": IDS, "labels": LABELS}, 5)
    theirs = model(input_ids=IDS, labels=LABELS, num_items_in_batch=torch.tensor(5)).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    parameters = [value for value in model.parameters() if value.requires_grad]
    for a, b in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_response_logits_of_a_model_that_skips_its_head_module():
    model = make_model(lora=False)
    expected = response_logits(model, INDEX, input_ids=IDS)
    model.__class__ = type("Skipping", (LlamaForCausalLM,), {"forward": skipping_head})
    torch.testing.assert_close(response_logits(model, INDEX, input_ids=IDS), expected)


def skipping_head(model, input_ids):
    hidden = model.model(input_ids).last_hidden_state
    return type("Output", (), {"logits": functional.linear(hidden, model.lm_head.weight)})


@torch.no_grad()
def test_response_logits_of_prompt_learning_are_refused():
    model = get_peft_model(make_model(lora=False), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ModelError, match="14 positions of an input of 10 tokens.*LoRA"):
        response_logits(model, INDEX, input_ids=IDS, attention_mask=torch.ones_like(IDS))
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_evaluating_puts_each_module_back_into_its_mode():
    model = make_model().train()
    model.base_model.model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    with evaluating(model.modules()):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes


def test_half_precision_heads_give_float32_logits():
    """The argmax is that of exact products of the 16-bit weights; the head's own product ties or flips some."""
    model = (
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=4000, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
            )
        )
        .bfloat16()
        .eval()
    )
    ids = torch.arange(300)[None] % 4000
    with torch.no_grad():
        hidden = model.model(input_ids=ids).last_hidden_state
        exact = hidden.double() @ model.lm_head.weight.double().T
        own = model(input_ids=ids).logits
        with float32_head(model):
            wide = model(input_ids=ids).logits
    assert (own.dtype, wide.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(wide.double(), exact, rtol=1e-4, atol=1e-5)
    assert torch.equal(wide.argmax(-1), exact.argmax(-1))
    assert (own == own.amax(-1, keepdim=True)).sum(-1).gt(1).any()
    assert "forward" not in vars(model.lm_head)
    assert LogitHead(model).logits(hidden[0]).dtype == torch.float32
    torch.testing.assert_close(LogitHead(model).logits(hidden[0]).double(), exact[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("make", "largest"), [(make_model, 500), (soft_capped, 0.01)])
def test_el2n_and_slope_keep_their_digits_near_certainty(make, largest, dtype):
    """Against the direct form in float64, for tokens of probability 1e-20 to 1 − 1e-20 (but for a cap)."""
    head = LogitHead(make().eval().to(dtype))
    wide, draw = head.module.weight.detach().double(), torch.Generator().manual_seed(0)
    hidden = torch.randn(64, wide.shape[1], generator=draw) * torch.linspace(largest / 100, largest, 64)[:, None]
    hidden = hidden.to(dtype)
    logits = hidden.double() @ wide.T * head.scale
    bend = torch.ones_like(logits)
    if head.cap is not None:
        bend = 1 - (logits / head.cap).tanh().square()
        logits = head.cap * (logits / head.cap).tanh()
    target = torch.where(torch.arange(64) % 3 > 0, logits.argmax(1), logits.argmin(1))
    miss = logits.softmax(1)
    miss.scatter_(1, target[:, None], 0.0)
    miss.scatter_(1, target[:, None], -miss.sum(1, keepdim=True))
    tokens = head.tokens(hidden, target, el2n=True, weight=torch.linspace(0.1, 2, 64))
    torch.testing.assert_close(tokens.error.double(), miss.norm(dim=1), rtol=2e-4, atol=0)
    slope = torch.linspace(0.1, 2, 64)[:, None].double() * head.scale * ((miss * bend) @ wide)
    gap = (tokens.slope.double() - slope).norm(dim=1) / slope.norm(dim=1).clamp_min(1e-30)
    certain = slope.norm(dim=1) < torch.finfo(dtype).smallest_normal  # below what the hidden state's dtype holds
    assert float(gap[~certain].max()) < {torch.float32: 2e-4, torch.bfloat16: 1e-2, torch.float16: 2e-2}[dtype]
    assert bool((tokens.error >= 0).all())
