"""Adam's step on one example, against the optimizer itself and against the formula on autograd's gradients."""

import numpy as np
import pytest
import torch
from transformers import Adafactor, GPT2Config, GPT2LMHeadModel

from longgame.errors import PluginError
from longgame.signals.cache import signal_fingerprint
from longgame.signals.gradients import AdamPreconditioner, Moments, is_adam
from longgame.signals.projection import UpdateSketch
from support.signals import VOCABULARY, autograd_gradients, llama, perturb, random_pool, with_lora
from support.signals_exact import DIM, SEED, assert_exact, engine_of, is_lora

ADAM = "adam_grad_sketch"


def trained(model, optimizer=torch.optim.AdamW, steps=3, **options):
    """The optimizer after some steps on random tokens."""
    adam = optimizer([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3, **options)
    ids = torch.arange(40).reshape(2, 20)
    for step in range(steps):
        loss = model(input_ids=(ids + step) % 61, labels=ids).loss
        loss.backward()
        adam.step()
        adam.zero_grad()
    return adam


def by_formula(optimizer, model, gradient, correct=False):
    """Γ of one example as the formula reads, float64, sketched."""
    total = UpdateSketch(DIM, SEED)
    for name, weight in model.named_parameters():
        if name not in gradient:
            continue
        state, group = optimizer.state[weight], optimizer.param_groups[0]
        (beta1, beta2), g = group["betas"], gradient[name].double()
        m = beta1 * state["exp_avg"].double() + (1 - beta1) * g
        v = beta2 * state["exp_avg_sq"].double() + (1 - beta2) * g**2
        if correct:
            step = int(state["step"]) + 1
            m, v = m / (1 - beta1**step), v / (1 - beta2**step)
        total.add(name, m / (v.sqrt() + group["eps"]))
    return total.vector()


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("target_modules", ["all-linear", ["embed_tokens", "v_proj"]])
def test_adam_sketch_is_the_formula_on_autograd_gradients(correct, target_modules, pool):
    model = with_lora(llama(), target_modules=target_modules)
    perturb(model, "lora_embedding_A", 0.1, 5)
    optimizer = trained(model, betas=(0.8, 0.95), eps=1e-6)
    preconditioner = AdamPreconditioner.from_optimizer(optimizer, model, bias_correction=correct)
    result = engine_of(model, preconditioner=preconditioner)(pool, [ADAM])[ADAM]
    for row, gradient in enumerate(autograd_gradients(model, pool, is_lora)):
        true = by_formula(optimizer, model, gradient, correct)
        assert np.linalg.norm(result[row] - true) < 1e-4 * np.linalg.norm(true)  # Γ divides by √v: errors grow


def test_the_bias_corrected_step_is_the_one_that_adam_takes():
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 6))
    optimizer = torch.optim.Adam([weight], lr=1e-2, betas=(0.7, 0.9), eps=1e-3)
    model = torch.nn.ParameterDict({"w": weight})
    for step in range(3):
        weight.grad = torch.sin(weight.detach() + step)
        optimizer.step()
    before, gradient = weight.detach().clone(), torch.cos(3 * weight.detach())
    gamma = AdamPreconditioner.from_optimizer(optimizer, model, bias_correction=True)("w", gradient[None])[0]
    weight.grad = gradient
    optimizer.step()
    torch.testing.assert_close(before - weight.detach(), 1e-2 * gamma, rtol=1e-4, atol=1e-8)


def test_epsilon_stands_outside_of_the_root():
    """m = 0, v = 0, g = 1e-3: (0.1·g)/(√(0.001·g²) + ε) with ε = 1e-8 is 3.1623 − 0.001; inside the root it is 1.0."""
    zero = torch.zeros(1)
    adam = AdamPreconditioner({"w": Moments(zero, zero, (0.9, 0.999), 1e-8, 1)})
    assert float(adam("w", torch.full((1, 1), 1e-3))) == pytest.approx(1e-4 / (0.001**0.5 * 1e-3 + 1e-8), rel=1e-5)
    assert float(adam("w", torch.full((1, 1), 1e-3))) > 3


def test_raw_gradients_are_left_as_they_are(pool):
    model = with_lora(llama())
    adam = AdamPreconditioner.from_optimizer(trained(model), model)
    both = engine_of(model, preconditioner=adam)(pool, ["grad_norm", "grad_sketch", ADAM])
    raw = engine_of(model)(pool, ["grad_norm", "grad_sketch"])
    for name in raw:
        np.testing.assert_array_equal(both[name], raw[name])
    np.testing.assert_array_equal(engine_of(model, preconditioner=adam)(pool, [ADAM])[ADAM], both[ADAM])
    assert_exact(model, pool, preconditioner=adam)


def test_moments_are_a_copy_of_the_moment(pool):
    model = with_lora(llama())
    optimizer = trained(model)
    measure = engine_of(model, preconditioner=AdamPreconditioner.from_optimizer(optimizer, model))
    before = measure(pool, [ADAM])[ADAM]
    for state in optimizer.state.values():
        state["exp_avg"].add_(1.0)
    np.testing.assert_array_equal(measure(pool, [ADAM])[ADAM], before)
    measure.preconditioner = AdamPreconditioner.from_optimizer(optimizer, model)
    assert np.linalg.norm(measure(pool, [ADAM])[ADAM] - before) > 0.1 * np.linalg.norm(before)


@pytest.mark.parametrize("correct", [False, True])
def test_weights_without_gradients_have_moments_of_zero(correct):
    used, unused = (torch.nn.Parameter(torch.linspace(-1, 1, 6)) for _ in range(2))
    model = torch.nn.ParameterDict({"used": used, "unused": unused})
    optimizer = torch.optim.AdamW([used, unused], lr=1e-2)
    used.grad = torch.ones(6)
    optimizer.step()
    adam = AdamPreconditioner.from_optimizer(optimizer, model, bias_correction=correct)
    gradient = torch.full((1, 6), 1e-3)
    first = (0.1, 1e-3) if not correct else (1.0, 1.0)  # 1 − β, and 1 once corrected for the first step
    expected = first[0] * 1e-3 / (first[1] ** 0.5 * 1e-3 + 1e-8)
    torch.testing.assert_close(adam("unused", gradient), torch.full((1, 6), expected), rtol=1e-4, atol=0)
    assert not adam.scale("unused", gradient).any()
    assert adam.scale("used", gradient).all()
    fresh = torch.optim.AdamW([used, unused], lr=1e-2)
    adam.restore(fresh, model)
    assert used in fresh.state
    assert unused not in fresh.state


def test_other_moments_are_another_fingerprint_or_none():
    model = with_lora(llama())
    optimizer = trained(model)
    first = AdamPreconditioner.from_optimizer(optimizer, model)
    for state in optimizer.state.values():
        state["exp_avg"].add_(1.0)
    second = AdamPreconditioner.from_optimizer(optimizer, model)
    digest, again, other = (
        signal_fingerprint(model, settings={"preconditioner": adam.settings()}) for adam in (first, first, second)
    )
    assert digest == again != other


def test_a_preconditioner_of_another_model_is_refused(pool):
    model = with_lora(llama())
    fresh = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    with pytest.raises(PluginError, match="adam_grad_sketch needs Adam's moments"):
        engine_of(model)(pool, [ADAM])
    with pytest.raises(PluginError, match="no moments yet.* at least one optimizer step"):
        AdamPreconditioner.from_optimizer(fresh, model)
    with pytest.raises(PluginError, match="does not train"):
        AdamPreconditioner.from_optimizer(fresh, with_lora(llama()))
    with pytest.raises(PluginError, match="SGD keeps"):
        AdamPreconditioner.from_optimizer(trained(model, torch.optim.SGD, momentum=0.9), model)
    with pytest.raises(PluginError, match="amsgrad"):
        AdamPreconditioner.from_optimizer(trained(model, amsgrad=True), model)
    other = with_lora(llama(), r=2)
    adam = AdamPreconditioner.from_optimizer(trained(model), model)
    with pytest.raises(PluginError, match=r"moments of shape \(4, 24\) for .*lora_A.weight' of shape \(2, 24\)"):
        engine_of(other, preconditioner=adam)(pool, [ADAM])


@pytest.mark.parametrize(
    ("optimizer", "options", "adam"),
    [
        (torch.optim.AdamW, {}, True),
        (torch.optim.Adam, {}, True),
        (torch.optim.AdamW, {"amsgrad": True}, False),
        (torch.optim.SGD, {"momentum": 0.9}, False),
        (Adafactor, {"relative_step": False}, False),
        (Adafactor, {"relative_step": False, "beta1": 0.9}, False),
    ],
)
def test_adam_is_known_by_its_moments(optimizer, options, adam):
    model = llama()
    fresh = optimizer(model.parameters(), lr=1e-3, **options)
    assert not is_adam(fresh)
    assert is_adam(trained(model, optimizer, steps=1, **options)) == adam


def test_moments_of_another_shape_are_not_those_of_adam():
    model = llama()
    optimizer = trained(model, steps=1)
    optimizer.state[model.lm_head.weight]["exp_avg_sq"] = torch.zeros(4)  # as GaLore projects them
    assert not is_adam(optimizer)


def test_full_fine_tuning_is_refused():
    model = llama()
    adam = AdamPreconditioner.from_optimizer(trained(model), model)
    with pytest.raises(PluginError, match="needs LoRA"):
        engine_of(model, preconditioner=adam)(random_pool(), [ADAM])


def conv1d():
    """A GPT-2, whose weights are stored (in × out)."""
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=24, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0)
    )


@pytest.mark.parametrize(
    ("make", "keep"),
    [
        (lambda: with_lora(llama()), is_lora),
        (llama, lambda name: name.endswith("proj.weight")),
        (conv1d, lambda name: ".h." in name and ".c_" in name and name.endswith("weight")),
    ],
    ids=["lora", "full", "full conv1d"],
)
def test_adam_alignment_is_the_inner_product_with_the_scaled_sum(make, keep, pool):
    model = make()
    optimizer = trained(model, betas=(0.8, 0.95), eps=1e-6)
    weights = np.stack([np.linspace(0.1, 1, len(pool)), np.linspace(1, 0, len(pool)) ** 2], axis=1)
    engine = engine_of(model)
    adam = AdamPreconditioner.from_optimizer(optimizer, model)
    engine.measure_directions(pool, weights, "adam_future_alignment", adam)
    engine.measure_directions(pool, weights[:, ::-1].copy())
    both = ("future_alignment", "adam_future_alignment")
    columns = engine(pool, both)
    np.testing.assert_array_equal(columns[both[0]], engine(pool, both[:1])[both[0]])
    flat, scales = [], []
    for gradient in autograd_gradients(model, pool, keep):
        flat.append(torch.cat([part.double().flatten() for part in gradient.values()]).numpy())
    for name, weight in model.named_parameters():
        if keep(name):
            second = optimizer.state[weight]["exp_avg_sq"].double().flatten() / (1 - 0.95**3)
            scales.append(1 / (second.sqrt() + 1e-6))
    rows = np.stack(flat)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    directions = weights.T @ units * torch.cat(scales).numpy()
    gaps = np.abs(columns[both[1]] - units @ directions.T) / np.linalg.norm(directions, axis=1)
    assert gaps.max() < 1e-4
