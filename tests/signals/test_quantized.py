"""LoRA on quantized bases: the factors' gradients equal autograd's on the same quantized model.

Each test needs the package that quantizes (bitsandbytes, torchao, gguf) and is skipped where it is not installed.
"""

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from longgame.errors import ModelError
from longgame.models.fused import plain_layers
from longgame.models.lora import is_repacked
from support.signals import llama, random_pool, with_lora
from support.signals_exact import assert_exact, engine_of, is_lora, reference


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


bitsandbytes = pytest.mark.skipif(not has("bitsandbytes"), reason="bitsandbytes is not installed")
torchao = pytest.mark.skipif(not has("torchao"), reason="torchao is not installed")


def replaced(model: nn.Module, make) -> nn.Module:
    """The model with every linear layer of the decoder replaced by what ``make`` makes of it."""
    for name, module in list(model.model.named_modules()):
        if type(module) is nn.Linear:
            parent = model.model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], make(module))
    return model


def four_bits(module: nn.Linear) -> nn.Module:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(
        module.in_features, module.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4"
    )
    layer.weight = bnb.nn.Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
    return layer.to("cpu")


def eight_bits(module: nn.Linear) -> nn.Module:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear8bitLt(module.in_features, module.out_features, bias=False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(module.weight.data, requires_grad=False, has_fp16_weights=False)
    return layer.to("cpu")


def quantized(make, **changes):
    base = replaced(llama(hidden_size=64, intermediate_size=128), make)
    base.is_loaded_in_8bit, base.is_loaded_in_4bit = make is eight_bits, make is four_bits
    model = with_lora(base, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"], **changes)
    assert not plain_layers(dict(model.get_base_model().named_modules()))
    return model


def never_repacking(model):
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


@bitsandbytes
@pytest.mark.parametrize("dora", [False, True])
def test_four_bit_gradients_equal_the_autograd_loop(dora, pool):
    model = quantized(four_bits, use_dora=dora)
    assert "Linear4bit" in type(model.get_base_model().model.layers[0].mlp.up_proj).__name__
    assert_exact(never_repacking(model), pool)


@bitsandbytes
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_four_bit_weights_are_not_repacked_by_signals(mode, pool):
    """On a CPU with bfloat16 instructions they would pass no gradient on afterwards, neither here nor in training."""
    model = getattr(quantized(four_bits), mode)()
    flags = [vars(module).get("support_avx512bf16_for_cpu") for module in model.modules()]
    engine_of(model)(pool, ["loss", "embedding"])
    result = engine_of(model)(pool, ["grad_norm"])["grad_norm"]
    assert not any(is_repacked(module) for module in model.modules())
    assert [vars(module).get("support_avx512bf16_for_cpu") for module in model.modules()] == flags
    np.testing.assert_allclose(result, reference(never_repacking(model), pool, is_lora)[0], rtol=1e-5)


@bitsandbytes
def test_four_bit_weights_that_were_repacked_are_refused(pool):
    model = quantized(four_bits).eval()
    with torch.no_grad():
        model(input_ids=torch.ones(1, 3, dtype=torch.int64))
    if not any(is_repacked(module) for module in model.modules()):
        pytest.skip("bitsandbytes repacks only on a CPU with bfloat16 instructions")
    with pytest.raises(ModelError, match="repacks its weights"):
        engine_of(model)(pool, ["grad_norm"])


@bitsandbytes
def test_eight_bit_gradients_are_exact_one_at_a_time():
    """LLM.int8 picks outlier columns and scales from the batch it sees: signals depend on it a little by design."""
    pool = random_pool()
    model = quantized(eight_bits)
    assert_exact(model, pool, tolerance=1e-4, max_batch_tokens=1)
    norms, _ = reference(model, pool, is_lora)
    result = engine_of(model)(pool, ["grad_norm"])["grad_norm"]
    np.testing.assert_allclose(result, norms, rtol=0.05)


@torchao
def test_torchao_int8_gradients_equal_the_autograd_loop(pool):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    base = llama(hidden_size=64, intermediate_size=128)
    quantize_(base.model, Int8WeightOnlyConfig())
    model = with_lora(base, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])
    assert type(model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight) is not nn.Parameter
    assert not plain_layers(dict(model.get_base_model().named_modules()))
    assert_exact(model, pool)


def write_gguf(path, model) -> None:
    """The Llama as a GGUF file, its matrices in Q8_0.

    The rows of q and k are not put into GGUF's order, so what is loaded is another model; it is compared with itself.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    config = model.config
    writer = GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        for theirs, ours in GGUF_NAMES.items():
            name = name.replace(theirs, ours)
        array = weight.numpy()
        if array.ndim == 2:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


GGUF_NAMES = {
    "model.layers.": "blk.",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
}


@pytest.mark.skipif(not has("gguf"), reason="gguf is not installed")
def test_gguf_gradients_equal_the_autograd_loop(tmp_path, pool):
    """transformers turns GGUF back into plain weights, so LoRA on it runs fused."""
    write_gguf(tmp_path / "small.gguf", llama(hidden_size=64, intermediate_size=128, num_key_value_heads=4))
    base = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="small.gguf", dtype=torch.float32)
    assert base.is_quantized
    model = with_lora(base)
    assert plain_layers(dict(base.named_modules()))
    assert_exact(model, pool)
