"""LoRA trained by thin products: PEFT's numbers to rounding, fewer bytes, and PEFT's own forward for all else."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import distributed, nn

from longgame.models.fused import ThinForward, ThinProducts, thin_lora
from longgame.signals.engine import SignalEngine
from support.activations import saved_bytes
from support.signals import llama, random_pool, with_lora

IDS = torch.randint(4, 40, (3, 17), generator=torch.Generator().manual_seed(0))


def narrow(**changes):
    """A bfloat16 base in training mode, with float32 factors away from B = 0."""
    model = with_lora(llama(intermediate_size=72).bfloat16(), **({"lora_dropout": 0.0} | changes))
    return model.train()


def learned(model):
    """Loss and gradients of the factors."""
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    grads = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return loss.detach(), grads


def layer_of(model):
    return model.base_model.model.model.layers[0].mlp.up_proj


def patched(model):
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_thin_products_pass_gradcheck(shape, with_bias):
    draw = torch.Generator().manual_seed(0)
    x, weight, bias, a, b = (
        torch.randn(size, generator=draw, dtype=torch.float64) for size in (shape, (4, 6), (4,), (2, 6), (4, 2))
    )
    inputs = [part.requires_grad_() for part in (x, a, b)]

    def layer(x, a, b):
        return ThinProducts.apply(x, weight, bias if with_bias else None, a, b, 1.5)

    assert torch.autograd.gradcheck(layer, inputs)
    expected = x @ (weight + 1.5 * b @ a).T + (bias if with_bias else 0)
    torch.testing.assert_close(layer(*inputs), expected)


def test_thin_products_are_pefts_forward_in_float32():
    layer = layer_of(with_lora(llama(), lora_dropout=0.0).train())
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    results = []
    for forward in (layer, lambda x: ThinProducts.apply(x, layer.base_layer.weight, None, a, b, 2.0)):
        x = torch.randn(3, 7, layer.in_features, generator=torch.Generator().manual_seed(1)).requires_grad_()
        output = forward(x)
        results.append([output, *torch.autograd.grad(output.sin().sum(), (x, a, b))])
    for peft, thin in zip(*results, strict=True):
        torch.testing.assert_close(thin, peft, rtol=1e-5, atol=1e-6)


def test_thin_training_is_as_near_to_the_truth_as_pefts():
    model = narrow()
    _, peft = learned(model)
    with thin_lora(model) as layers:
        assert layers == 14
        _, thin = learned(model)
    _, truth = learned(copy.deepcopy(model).double())
    assert thin.keys() == peft.keys()
    for name, grad in thin.items():
        assert grad.dtype == torch.float32
        size = truth[name].norm()
        allowed = 1.5 * (peft[name] - truth[name]).norm() + 2**-7 * size
        assert (grad - truth[name]).norm() < allowed, name
    assert any(not torch.equal(thin[name], peft[name]) for name in thin)


@pytest.mark.parametrize(
    ("changes", "change"),
    [
        pytest.param({"lora_dropout": 0.3}, None, id="dropout"),
        pytest.param({"use_dora": True}, None, id="dora"),
        pytest.param({}, lambda model: model.float(), id="float32"),
        pytest.param({}, lambda model: model.half(), id="float16"),
        pytest.param({}, lambda model: model.bfloat16(), id="bfloat16 factors"),
        pytest.param({}, lambda model: model.requires_grad_(True), id="a base that trains"),
        pytest.param({}, lambda model: model.eval(), id="evaluation"),
        pytest.param({}, lambda model: model.base_model.disable_adapter_layers(), id="disabled"),
        pytest.param({}, lambda model: model.merge_adapter(), id="merged"),
        pytest.param(
            {}, lambda model: [m.register_forward_hook(lambda *_: None) for m in model.modules()], id="hooked"
        ),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_all_else_runs_as_peft_bit_for_bit(changes, change, inside):
    """Whether the model is so when training begins, or becomes so later."""
    results = []
    for context in (nullcontext, thin_lora):
        model = narrow(**changes)
        if change is not None and not inside:
            change(model)
        with context(model), torch.random.fork_rng():
            torch.manual_seed(0)
            if change is not None and inside:
                change(model)
            results.append(model(input_ids=IDS).logits)
        assert not patched(model)
    assert torch.equal(*results)


def test_thin_layers_go_with_checkpointing_accumulation_and_files(tmp_path):
    model = narrow()
    names = [*model.state_dict()]
    with thin_lora(model):
        loss, once = learned(model)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
        again = learned(model)
        assert torch.equal(again[0], loss)
        assert all(torch.equal(again[1][name], grad) for name, grad in once.items())
        model.gradient_checkpointing_disable()
        model(input_ids=IDS, labels=IDS).loss.backward()
        twice = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        for name, grad in once.items():
            torch.testing.assert_close(twice[name], 2 * grad)
        assert [*model.state_dict()] == names
        model.save_pretrained(tmp_path)
        copied = copy.deepcopy(model)
        with torch.no_grad():
            for weight in copied.parameters():
                weight.zero_()
        assert not copied(input_ids=IDS).logits.any()
        assert torch.equal(learned(model)[0], loss)
    other = narrow(b_scale=0.0)
    other.load_adapter(tmp_path, "default")
    other.set_adapter("default")
    with thin_lora(other.train()):
        assert torch.equal(learned(other)[0], loss)


def test_thin_layers_train_under_ddp(tmp_path):
    model = narrow()
    with thin_lora(model):
        loss, alone = learned(model)
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        try:
            buckets = []
            shared = nn.parallel.DistributedDataParallel(model)
            shared.register_comm_hook(buckets, counted)
            assert torch.equal(learned(shared)[0], loss)
        finally:
            distributed.destroy_process_group()
        assert buckets
        for name, weight in model.named_parameters():
            assert name not in alone or torch.equal(weight.grad, alone[name]), name


def counted(buckets, bucket):
    buckets.append(bucket.index())
    future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def test_signals_of_a_model_in_training_are_those_outside():
    model, pool, names = narrow(), random_pool(), ("loss", "grad_norm", "grad_sketch")
    expected = SignalEngine(model, pad_token_id=0, sketch_dim=64)(pool, names)
    with thin_lora(model):
        thin = patched(model)
        inside = SignalEngine(model, pad_token_id=0, sketch_dim=64)(pool, names)
        assert patched(model) == thin
        assert thin
    assert all(np.array_equal(inside[name], expected[name]) for name in names)


def test_thin_layers_are_put_back_after_an_error():
    model = narrow()
    with pytest.raises(KeyError), thin_lora(model):
        assert isinstance(vars(layer_of(model))["forward"], ThinForward)
        raise KeyError
    assert not patched(model)


def test_thin_training_saves_fewer_bytes_for_the_backward_pass():
    """PEFT copies the input of every adapted layer to float32."""
    model = narrow()
    saved = {}
    for name, context in (("peft", nullcontext), ("thin", thin_lora)):
        with context(model):
            saved[name] = saved_bytes(lambda: model(input_ids=IDS)) / IDS.numel()
    assert saved["thin"] < 0.6 * saved["peft"], saved
