"""The short decoding step of a Llama: the model's own bits, and only where nothing was changed."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Cache, LlamaConfig, LlamaForCausalLM

from longgame.evaluation import decoding
from longgame.evaluation.decoding import _Buffer
from longgame.evaluation.evaluator import Evaluator
from longgame.models.fused import folded_lora
from longgame.models.llama import LlamaStep

ROWS, CACHED, ROOM = 5, 7, 3
KINDS = {
    "heads in groups": {},
    "one head a group": {"num_key_value_heads": 4},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "its own head size": {"head_dim": 16},
    "scaled positions": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}},
}


def llama(dtype=torch.float32, **changes):
    settings = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attn_implementation": "eager",
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).to(dtype).eval()


def adapted():
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    return model.eval()


def buffers(model, dtype):
    """A cache of positions for every layer, with room for more."""
    config, rng = model.config, torch.Generator().manual_seed(1)
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (ROWS, config.num_key_value_heads, CACHED + ROOM, dim)

    def drawn():
        return torch.randn(shape, generator=rng).to(dtype)

    return [_Buffer(drawn(), drawn(), CACHED) for _ in range(config.num_hidden_layers)]


def both(model, dtype=torch.float32):
    """Logits and caches of three steps, by the short step and by the model."""
    outcomes = []
    for short in (True, False):
        layers, step = buffers(model, dtype), LlamaStep.of(model)
        attention = torch.ones(ROWS, CACHED + ROOM, dtype=torch.int64)
        attention[1, :4] = attention[2, :2] = 0
        position = attention[:, :CACHED].sum(1, keepdim=True)
        token, found = torch.arange(ROWS)[:, None], []
        with torch.inference_mode():
            for used in range(CACHED + 1, CACHED + ROOM + 1):
                mask = attention[:, :used]
                if short:
                    logits = step(token, mask, position, layers)
                else:
                    cache = Cache(layers=list(layers))
                    logits = model(
                        input_ids=token,
                        attention_mask=mask,
                        position_ids=position,
                        past_key_values=cache,
                        use_cache=True,
                    ).logits[:, -1]
                found.append(logits)
                token, position = logits.argmax(-1)[:, None], position + 1
        outcomes.append([*found, *(layer.keys for layer in layers), *(layer.values for layer in layers)])
    return outcomes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_the_short_step_gives_the_bits_of_the_model(changes, dtype):
    short, own = both(llama(dtype, **changes), dtype)
    assert all(map(torch.equal, short, own))


def test_the_short_step_gives_the_bits_of_a_folded_adapter():
    model = adapted()
    with folded_lora(model) as folded:
        assert folded
        short, own = both(model)
    assert all(map(torch.equal, short, own))


def hooked():
    model = llama()
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    return model


def patched():
    model = llama()
    model.model.norm.forward = lambda x: x
    return model


def swapped():
    model = llama()
    model.model.layers[0].mlp.up_proj = torch.nn.Sequential(model.model.layers[0].mlp.up_proj)
    return model


CHANGED = {
    "a hook": hooked,
    "a patched layer": patched,
    "a layer of another kind": swapped,
    "another attention": lambda: llama(attn_implementation="sdpa"),
    "training": lambda: llama().train(),
    "an adapter that is not folded": adapted,
}


@pytest.mark.parametrize("make", CHANGED.values(), ids=CHANGED)
def test_a_changed_model_has_no_short_step(make):
    assert LlamaStep.of(make()) is None


def test_scores_are_those_without_the_short_step(tokenizer, tasks, monkeypatch):
    model = llama(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1)
    judge = Evaluator(model, tokenizer, pad_token_id=0)
    short = judge.score(tasks)
    assert decoding._SAME_BITS[model]
    monkeypatch.setattr(LlamaStep, "of", lambda _: None)
    assert judge.score(tasks) == short


def test_scores_of_a_task_are_the_same_beside_other_tasks(tokenizer, tasks):
    judge = Evaluator(llama(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1), tokenizer, pad_token_id=0)
    assert judge.score(tasks) == [score for task in tasks for score in judge.score([task])]
