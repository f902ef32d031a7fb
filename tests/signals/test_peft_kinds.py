"""Forward signals of every kind of PEFT adapter are those of the model that PEFT runs, or the kind is refused."""

import numpy as np
import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch.nn import functional

from longgame.errors import ModelError
from support.signals import llama
from support.signals_exact import engine_of

PROMPT = {"num_virtual_tokens": 3}
OPTIONS = {
    "ADALORA": {"target_modules": ["q_proj"], "total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 3, "adapter_layers": 1, "target_modules": "self_attn"},
    "BOFT": {"target_modules": ["q_proj"], "boft_block_size": 4},
    "C3A": {"target_modules": ["q_proj"], "block_size": 4},
    "CARTRIDGE": PROMPT,
    "CPT": {"cpt_token_ids": [3, 4], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]},
    "FOURIERFT": {"target_modules": ["q_proj"], "n_frequency": 20},
    "IA3": {"target_modules": ["q_proj"], "feedforward_modules": []},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "MISS": {"target_modules": ["q_proj"], "r": 4},
    "MULTITASK_PROMPT_TUNING": {**PROMPT, "num_tasks": 2},
    "OFT": {"target_modules": ["q_proj"], "oft_block_size": 4},
    "POLY": {"target_modules": ["q_proj"], "r": 4, "n_tasks": 2},
    "PREFIX_TUNING": PROMPT,
    "PROMPT_TUNING": PROMPT,
    "PSOFT": {"target_modules": ["q_proj"], "r": 4},
    "P_TUNING": {**PROMPT, "encoder_hidden_size": 8},
    "ROAD": {"target_modules": ["q_proj"], "group_size": 4},
    "SHADOW": {},
    "SHIRA": {"target_modules": ["q_proj"], "r": 2},
    "TRAINABLE_TOKENS": {"token_indices": [3, 4, 5]},
    "VBLORA": {"target_modules": ["q_proj"], "vector_length": 4, "num_vectors": 8},
    "WAVEFT": {"target_modules": ["q_proj"], "n_frequency": 20},
}
REFUSED = {"LILY": "mean over all tokens", "MULTITASK_PROMPT_TUNING": "task ids", "POLY": "task ids"}
KINDS = sorted(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind.value != "XLORA")  # mixes saved adapters


def adapted(kind, **options):
    config = {key.value: value for key, value in PEFT_TYPE_TO_CONFIG_MAPPING.items()}[kind]
    values = options or OPTIONS.get(kind, {"target_modules": ["q_proj"]})
    tied = kind != "TRAINABLE_TOKENS"  # which would change the output head, too
    model = peft.get_peft_model(llama(tie_word_embeddings=tied), config(task_type="CAUSAL_LM", **values))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def losses_of(model, pool):
    values = []
    for ids, prompt in zip(pool.input_ids, pool.prompt_tokens, strict=True):
        tokens, start = torch.tensor(ids), max(1, int(prompt))
        logits = model(input_ids=tokens[None]).logits[0, -len(ids) :]
        values.append(float(functional.cross_entropy(logits[start - 1 : -1], tokens[start:])))
    return values


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_losses_under_an_adapter_are_those_of_peft(kind, pool):
    model = adapted(kind)
    if kind in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[kind]):
            engine_of(model)
        return
    engine = engine_of(model)
    np.testing.assert_allclose(engine(pool, ["loss"])["loss"], losses_of(model, pool), rtol=1e-4)
    with model.disable_adapter():
        np.testing.assert_allclose(engine(pool, ["loss"])["loss"], losses_of(model, pool), rtol=1e-4)


def test_activated_lora_is_active_behind_its_tokens_only(pool):
    tokens = [int(pool.input_ids[0][1])]
    model = adapted("LORA", target_modules=["q_proj", "v_proj"], alora_invocation_tokens=tokens)
    np.testing.assert_allclose(engine_of(model)(pool, ["loss"])["loss"], losses_of(model, pool), rtol=1e-4)
