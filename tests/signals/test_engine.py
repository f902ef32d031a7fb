"""The engine against a loop that takes one example at a time through the whole model and autograd."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma4Config,
    GPT2Config,
    GPT2LMHeadModel,
)

from longgame.data.examples import Example, Pool
from longgame.errors import DataError, ModelError, NumericalError, PluginError
from longgame.signals.engine import BACKWARD, ERRORS, FORWARD, SignalEngine
from longgame.signals.projection import CountSketch, OuterSketch, UpdateSketch, signs
from longgame.signals.source import SignalSource
from support.signals import VOCABULARY, autograd_gradients, llama, perturb, random_pool, response_logits, with_lora
from support.signals_exact import assert_alignment_exact

ALL = (*FORWARD, *BACKWARD)
DIM = 64


def engine(model, **options):
    return SignalEngine(model, **({"pad_token_id": 0, "sketch_dim": DIM, "seed": 5} | options))


def is_lora(name):
    return ".lora_" in name


def relative(measured, true):
    """Of two columns; 0 where both are 0, as token accuracies of a random model are."""
    return np.linalg.norm(measured - true) / (np.linalg.norm(true) or 1.0)


def slow_forward(model, pool):
    """Signals of the forward pass but the sketches: one example at a time, float64 after the logits."""
    model.eval()
    rows = []
    with torch.no_grad():
        for row in range(len(pool)):
            logits, targets = response_logits(model, pool, row)
            logits = logits.double()
            probability = logits.softmax(1)
            ids = torch.tensor(pool.input_ids[row])[None]
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
            rows.append(
                (
                    float(torch.nn.functional.cross_entropy(logits, targets)),
                    float((logits.argmax(1) == targets).double().mean()),
                    float((probability - torch.eye(logits.shape[1])[targets]).norm(dim=1).mean()),
                    float(torch.linalg.svdvals(model(input_ids=ids).logits[0].double()).sum()),
                    float(torch.linalg.svdvals(logits).sum()),
                    hidden[0].mean(0).double().numpy(),
                )
            )
    loss, accuracy, el2n, nuclear, response_nuclear, embedding = zip(*rows, strict=True)
    return {
        "loss": np.array(loss),
        "token_accuracy": np.array(accuracy),
        "el2n": np.array(el2n),
        "logit_nuclear_norm": np.array(nuclear),
        "response_logit_nuclear_norm": np.array(response_nuclear),
        "embedding": np.array(embedding),
    }


def slow_logit_sketch(model, pool, seed, shape, positions):
    """R₁ L R₂ with the logits written out."""
    left = signs(seed, "logit-rows", 0, shape=(256, shape[0])) / shape[0] ** 0.5
    right = signs(seed, "logit-columns", 0, shape=(256, shape[1]))[:VOCABULARY] / shape[1] ** 0.5
    result = []
    for row in range(len(pool)):
        logits = response_logits(model, pool, row)[0].detach()
        if positions == "all":
            logits = model(input_ids=torch.tensor(pool.input_ids[row])[None]).logits[0].detach()
        result.append((left[: len(logits)].T @ logits @ right).flatten().numpy())
    return np.array(result)


def assert_forward_signals_match(model, pool, tolerance=1e-5):
    measured = engine(model, logit_sketch_shape=(3, 17))(pool, FORWARD)
    for name, true in slow_forward(model, pool).items():
        assert relative(measured[name], true) < tolerance, name
        np.testing.assert_allclose(measured[name], true, rtol=20 * tolerance, atol=tolerance, err_msg=name)
    for positions, name in (("all", "logit_sketch"), ("response", "response_logit_sketch")):
        assert relative(measured[name], slow_logit_sketch(model, pool, 5, (3, 17), positions)) < tolerance


def assert_gradient_signals_match(model, pool, keep, sketch_of=None):
    measured = engine(model)(pool, BACKWARD)
    gradients = autograd_gradients(model, pool, keep)
    for row, gradient in enumerate(gradients):
        norm = torch.stack([part.double().norm() for part in gradient.values()]).norm()
        assert measured["grad_norm"][row] == pytest.approx(float(norm), rel=1e-5)
        assert relative(measured["grad_sketch"][row], (sketch_of or sketch)(gradient)) < 1e-5


def sketch(gradient):
    total = UpdateSketch(DIM, 5)
    for name, part in gradient.items():
        total.add(name, part)
    return total.vector()


def test_forward_signals_equal_the_per_example_loop(adapted, pool):
    assert_forward_signals_match(adapted, pool)


def error_matrices(model, pool):
    """Mean over response tokens of (softmax − one-hot of the gold token) ⊗ hidden state, written out (V × d)."""
    matrices = []
    with torch.no_grad():
        for row in range(len(pool)):
            logits, targets = response_logits(model, pool, row)
            errors = logits.double().softmax(1) - torch.eye(logits.shape[1])[targets]
            ids = torch.tensor(pool.input_ids[row])[None]
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].double()
            states = hidden[torch.tensor(pool.predicted(row)) - 1]
            matrices.append((errors.T @ states / len(states)).numpy())
    return matrices


def test_logit_error_sketch_is_that_of_the_explicit_outer_product(adapted, pool):
    measured = engine(adapted)(pool, [ERRORS])[ERRORS]
    outer = OuterSketch(DIM, 5)
    adapted.eval()
    for row, matrix in enumerate(error_matrices(adapted, pool)):
        left, right = torch.eye(matrix.shape[0]), torch.eye(matrix.shape[1])
        spectra = torch.stack(
            [outer.spectrum(left, right[column].expand(len(left), -1)) for column in range(len(right))]
        )
        expected = outer.sketch(np.einsum("jif,ij->f", spectra.numpy(), matrix)[None])[0]
        assert relative(measured[row], expected) < 1e-4


def test_logit_error_sketch_keeps_inner_products_in_expectation(adapted, pool):
    part = pool.take([0, 1, 2])
    sketches = [engine(adapted, seed=seed, sketch_dim=32)(part, [ERRORS])[ERRORS] for seed in range(300)]
    products = np.array([sketch.astype(np.float64) @ sketch.astype(np.float64).T for sketch in sketches])
    matrices = np.stack([matrix.ravel() for matrix in error_matrices(adapted, part)])
    error = products.std(axis=0) / len(products) ** 0.5
    assert np.all(np.abs(products.mean(axis=0) - matrices @ matrices.T) < 4.5 * error)


def test_logit_errors_are_those_of_the_gold_token(adapted):
    """BADGE guesses the label; here it is known. An example of another response has another error."""
    one = random_pool(n=4)
    ids = tuple(np.concatenate([tokens[:-1], [(int(tokens[-1]) + 1) % VOCABULARY]]) for tokens in one.input_ids)
    other = Pool(one.examples, ids, one.prompt_tokens, one.response_tokens)
    first, second = (engine(adapted)(part, [ERRORS])[ERRORS] for part in (one, other))
    assert (np.abs(first - second).max(axis=1) > 1e-3).all()


def test_token_accuracy_counts_the_most_likely_tokens():
    model, ids = llama().eval(), [3, 1, 4, 1]
    for place in range(6):  # greedy but for two tokens
        with torch.no_grad():
            best = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        ids.append((best + 1) % VOCABULARY if place in (2, 3) else best)
    example = Example(sample_id="a", prompt="p", response="r")
    pool = Pool((example,), (np.asarray(ids),), np.asarray([4]), np.asarray([6]))
    both = engine(model)(pool, ("token_accuracy", "grad_norm"))
    assert engine(model)(pool, ("token_accuracy",))["token_accuracy"] == both["token_accuracy"] == np.float32(4 / 6)


def test_lora_gradients_equal_the_autograd_loop(adapted, pool):
    assert_gradient_signals_match(adapted, pool, is_lora)


def test_lora_gradients_equal_the_autograd_loop_at_start(pool):
    model = with_lora(llama(), b_scale=0.0)
    assert_gradient_signals_match(model, pool, is_lora)
    gradient = autograd_gradients(model, pool, lambda name: "lora_A" in name)[0]
    assert all(float(part.abs().max()) == 0 for part in gradient.values())  # B = 0 silences A


def test_rank_stabilised_scaling_is_in_the_gradient(pool):
    assert_gradient_signals_match(with_lora(llama(), use_rslora=True), pool, is_lora)


def test_lora_on_conv1d_with_a_bias_in_the_head_equals_the_loops(pool):
    torch_model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=24, n_layer=2, n_head=2))
    torch_model.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY))
    perturb(torch_model, "", 0.05, 3)
    model = with_lora(torch_model, target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True)
    assert_forward_signals_match(model, pool)
    assert_gradient_signals_match(model, pool, is_lora)


@pytest.mark.parametrize("longest", [23, 8])  # 8 tokens: the ghost norm is the cheaper form
def test_full_gradients_equal_the_autograd_loop(longest):
    model, pool = llama(), random_pool(longest=longest)

    def two_sided(gradient):
        count, total = CountSketch(DIM, 5), 0
        for name, part in gradient.items():
            total = total + count.project(name, part.reshape(1, -1))  # every side is ≤ 64, so no side projection
        return total[0].numpy()

    assert_gradient_signals_match(model, pool, lambda name: name.endswith("proj.weight"), two_sided)


def test_full_sketch_of_wide_layers_is_the_projected_gradient(pool):
    model = llama(intermediate_size=100)

    def two_sided(gradient):
        count, total = CountSketch(DIM, 5), 0
        for name, part in gradient.items():
            left, right = (
                torch.eye(size) if size <= 64 else signs(5, "gradient-side", name, side, shape=(size, 64)) / 8
                for side, size in (("out", part.shape[0]), ("in", part.shape[1]))
            )
            total = total + count.project(name, (left.T @ part @ right).reshape(1, -1))
        return total[0].numpy()

    assert_gradient_signals_match(model, pool, lambda name: name.endswith("proj.weight"), two_sided)


def test_soft_capped_logits_take_the_exact_way_through_logits(pool):
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        intermediate_size=40,
        final_logit_softcapping=0.7,
    )
    model = Gemma2ForCausalLM(config)
    perturb(model, "", 0.2, 4)
    adapted = with_lora(model)
    with torch.no_grad():
        assert float(response_logits(adapted.eval(), pool, 0)[0].abs().max()) > 0.5  # the cap bends these logits
    assert_forward_signals_match(adapted, pool)
    assert_gradient_signals_match(adapted, pool, is_lora)


def test_the_soft_cap_of_a_nested_text_configuration_is_found(pool):
    text = {
        "vocab_size": VOCABULARY,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size": 24,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 0,
        "head_dim": 12,
        "global_head_dim": 12,
        "layer_types": ["sliding_attention", "full_attention"],
        "final_logit_softcapping": 0.7,
    }
    config = Gemma4Config(text_config=text, vision_config=None, audio_config=None)
    assert not hasattr(config, "final_logit_softcapping")
    model = AutoModelForCausalLM.from_config(config).eval()
    perturb(model, "", 0.2, 4)
    with torch.no_grad():
        assert float(response_logits(model, pool, 0)[0].abs().max()) > 0.5  # the cap bends these logits
    assert relative(engine(model)(pool, ["loss"])["loss"], slow_forward(model, pool)["loss"]) < 1e-5


def test_scaled_logits_are_scaled_everywhere(pool):
    config = Cohere2Config(
        vocab_size=VOCABULARY,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=40,
        logit_scale=0.25,
    )
    model = Cohere2ForCausalLM(config)
    perturb(model, "", 0.2, 4)
    adapted = with_lora(model)
    assert_forward_signals_match(adapted, pool)
    assert_gradient_signals_match(adapted, pool, is_lora)


def test_long_responses_keep_the_nuclear_norm(adapted):
    pool = random_pool(n=4, shortest=40, longest=60, seed=3)
    assert int(pool.response_tokens.max()) > 24
    measured = engine(adapted)(pool, ["logit_nuclear_norm"])["logit_nuclear_norm"]
    assert relative(measured, slow_forward(adapted, pool)["logit_nuclear_norm"]) < 1e-5


def test_chunks_of_the_vocabulary_projection_change_nothing(adapted, pool, monkeypatch):
    complete = engine(adapted)(pool, ALL)
    monkeypatch.setattr("longgame.models.device._CPU_LOGITS", 3 * VOCABULARY)
    chunked = engine(adapted)(pool, ALL)
    for name in ALL:
        assert relative(chunked[name], complete[name]) < 1e-6, name


def test_batch_size_order_and_companions_change_no_signal(adapted, pool):
    complete = engine(adapted)(pool, ALL)
    single = engine(adapted, max_batch_tokens=1)(pool, ALL)
    order = np.arange(len(pool))[::-1]
    turned = engine(adapted)(pool.take(order), ALL)
    some = engine(adapted)(pool.take([2, 5]), ALL)
    for name in ALL:
        assert relative(single[name], complete[name]) < 1e-5, name
        np.testing.assert_array_equal(turned[name], complete[name][order], err_msg=name)
        assert relative(some[name], complete[name][[2, 5]]) < 1e-5, name


def test_the_pad_token_changes_no_signal(adapted, pool):
    alone, other = (engine(adapted, pad_token_id=pad)(pool, ALL) for pad in (0, 7))
    for name in ALL:
        np.testing.assert_array_equal(alone[name], other[name], err_msg=name)


def test_the_union_equals_each_signal_alone(adapted, pool):
    union = engine(adapted)(pool, ALL)
    assert list(union) == list(ALL)
    for name in ALL:
        alone = engine(adapted)(pool, [name])
        assert list(alone) == [name]
        assert alone[name].dtype == np.float32
        assert relative(alone[name], union[name]) < 1e-5, name


def test_same_seed_same_numbers_and_another_seed_another_sketch(adapted, pool):
    alone, again, other = (engine(adapted, seed=seed)(pool, ALL) for seed in (5, 5, 6))
    for name in ALL:
        np.testing.assert_array_equal(alone[name], again[name], err_msg=name)
        assert (relative(alone[name], other[name]) > 0.1) == name.endswith("sketch"), name


def test_the_model_is_left_as_it_was(pool):
    model = with_lora(llama())
    model.train()
    model.base_model.model.model.layers[1].eval()
    first = next(weight for name, weight in model.named_parameters() if "lora_A" in name)
    first.grad = torch.full_like(first, 3.0)

    def state():
        return (
            [module.training for module in model.modules()],
            [(weight.requires_grad, weight.grad is not None) for weight in model.parameters()],
            [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
            [("forward" in vars(module)) for module in model.modules()],
            torch.random.get_rng_state().tolist(),
            torch.is_grad_enabled(),
        )

    before = state()
    engine(model)(pool, ALL)
    assert state() == before
    assert float(first.grad.min()) == 3.0
    with torch.no_grad():  # gradient signals do not depend on the caller's grad mode
        engine(model)(pool, ALL)
    with torch.no_grad():
        model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight.fill_(float("nan"))
    with pytest.raises(NumericalError):
        engine(model)(pool, ALL)
    assert state() == before


def test_a_changed_head_is_noticed(pool):
    model = llama()
    measure = engine(model)
    names = ("logit_nuclear_norm", "logit_sketch")
    for trainable in (True, False):
        model.requires_grad_(trainable)
        before = measure(pool, names)
        with torch.no_grad():
            model.lm_head.weight.mul_(2.0)
        after = measure(pool, names)
        fresh = engine(model)(pool, names)
        for name in names:
            np.testing.assert_array_equal(after[name], fresh[name])
            assert relative(after[name], before[name]) > 1e-3


def test_nan_names_the_example_and_the_signal():
    pool = random_pool(vocabulary=VOCABULARY - 1)
    poisoned = Pool(
        (*pool.examples, Example(sample_id="poisoned", prompt="p", response="r")),
        (*pool.input_ids, np.array([1, VOCABULARY - 1, 2, 3])),
        np.append(pool.prompt_tokens, 2),
        np.append(pool.response_tokens, 2),
    )
    model = with_lora(llama(tie_word_embeddings=False))
    with torch.no_grad():
        model.get_input_embeddings().weight[VOCABULARY - 1] = float("nan")
    assert np.isfinite(engine(model)(pool, ALL)["grad_norm"]).all()
    for name in ALL:
        with pytest.raises(NumericalError, match=f"'{name}'.*example poisoned"):
            engine(model)(poisoned, [name])


def test_alignment_is_the_exact_inner_product_with_the_proxy(adapted, pool):
    assert_alignment_exact(adapted, pool)
    assert_alignment_exact(llama(), pool, lambda name: name.endswith("proj.weight"))
    first = engine(adapted)
    first.measure_directions(pool, np.ones((len(pool), 2)))
    again = engine(adapted)
    again.directions = first.directions
    columns = [part(pool, ("future_alignment",))["future_alignment"] for part in (first, again)]
    np.testing.assert_array_equal(*columns)


def test_alignment_without_directions_is_refused(adapted, pool):
    with pytest.raises(PluginError, match="call measure_directions first"):
        engine(adapted)(pool, ("future_alignment",))


def test_loss_without_prompt_scores_the_same_response_tokens(adapted, pool):
    adapted.eval()
    signals = SignalSource(engine(adapted))(pool, ("loss", "loss_without_prompt"))
    for row, (ids, start) in enumerate(zip(pool.input_ids, pool.prompt_tokens, strict=True)):
        header = [ids[0], ids[start - 1]] if start > 1 else [ids[0]]
        response = ids[max(start, 1) :]
        logits = adapted(input_ids=torch.tensor([[*header, *response]])).logits[0, len(header) - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(response)).item()
        assert signals["loss_without_prompt"][row] == pytest.approx(expected, rel=1e-5)
        same = signals["loss"][row] == pytest.approx(expected, rel=1e-5)
        assert same == (start <= 2)


def test_a_text_without_prompt_is_scored_from_its_second_token(adapted):
    ids = np.array([4, 8, 15, 16])
    text = Pool((Example(sample_id="t", prompt="", response="r"),), (ids,), np.array([0]), np.array([4]))
    split = Pool((Example(sample_id="t", prompt="p", response="r"),), (ids,), np.array([1]), np.array([3]))
    measure = engine(adapted)
    assert measure(text, ["loss"])["loss"] == measure(split, ["loss"])["loss"]


@pytest.mark.parametrize(("prompt", "response", "count"), [(0, 1, 1), (3, 0, 3), (1, 1, 3)])
def test_examples_without_predicted_token_are_refused(adapted, prompt, response, count):
    alone = Pool(
        (Example(sample_id="short", prompt="p", response="r"),),
        (np.arange(count),),
        np.array([prompt]),
        np.array([response]),
    )
    with pytest.raises(DataError, match="short"):
        engine(adapted)(alone, ["loss"])


def test_an_empty_pool_gives_empty_columns(adapted, pool):
    measured = engine(adapted, logit_sketch_shape=(2, 3))(pool.take([]), ALL)
    shapes = {name: column.shape for name, column in measured.items()}
    wide = {"embedding": 24, "logit_sketch": 6, "response_logit_sketch": 6, "grad_sketch": DIM, ERRORS: DIM}
    assert shapes == dict.fromkeys(ALL, (0,)) | {name: (0, width) for name, width in wide.items()}


def test_an_unknown_signal_is_refused_with_a_suggestion(adapted, pool):
    with pytest.raises(PluginError, match="Did you mean 'grad_norm'"):
        engine(adapted)(pool, ["grad_nrm"])
    with pytest.raises(PluginError, match="quality"):
        engine(adapted)(pool, ["quality"])


def test_a_sketch_larger_than_the_gradient_is_refused(adapted, pool):
    with pytest.raises(PluginError, match="larger than the gradient"):
        engine(adapted, sketch_dim=10**7)(pool, ["grad_sketch"])


def unfrozen_norm():
    model = with_lora(llama())
    model.base_model.model.model.norm.weight.requires_grad_(True)
    return model


def disabled():
    model = with_lora(llama())
    model.base_model.disable_adapter_layers()
    return model


def merged():
    model = with_lora(llama())
    model.merge_adapter()
    return model


def prepared(kind):
    from peft import IA3Config, get_peft_model

    return get_peft_model(llama(), IA3Config(target_modules=["k_proj"], feedforward_modules=[]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: with_lora(llama(), bias="lora_only", target_modules=["q_proj"]), None),
        (unfrozen_norm, "model.norm.weight' is trainable too"),
        (disabled, "it is disabled"),
        (merged, "it is merged"),
        (lambda: prepared("ia3"), "LoRA only"),
        (lambda: llama().requires_grad_(False), "no trainable linear layer"),
    ],
)
def test_incomplete_gradients_are_refused(make, message, pool):
    model = make()
    assert np.isfinite(engine(model)(pool, ["loss"])["loss"]).all()
    if message is None:  # no bias exists in a Llama, so bias="lora_only" trains nothing else
        assert_gradient_signals_match(model, pool, is_lora)
    else:
        with pytest.raises(ModelError, match=message):
            engine(model)(pool, ["grad_norm"])


def test_an_adapter_on_the_head_is_refused():
    with pytest.raises(ModelError, match="output head"):
        engine(with_lora(llama(tie_word_embeddings=False), target_modules=["q_proj", "lm_head"]))


def test_unknown_transforms_of_logits_are_refused(pool):
    class Warped(type(llama())):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 1.5
            return output

    model = llama()
    model.__class__ = Warped
    with pytest.raises(ModelError, match="read as scale 1 .*soft cap none .*transforms them in another way"):
        engine(model)(pool, ["loss"])


def test_a_model_that_is_no_causal_lm_is_refused():
    with pytest.raises(ModelError, match="Linear"):
        engine(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("options", [{"sketch_dim": 0}, {"logit_sketch_shape": (0, 4)}, {"max_batch_tokens": 0}])
def test_a_size_below_one_is_refused(adapted, options):
    with pytest.raises(PluginError, match="at least 1"):
        engine(adapted, **options)


@pytest.mark.parametrize("names", [["grad_sketch"], ["grad_norm", "loss"]])
def test_gradients_of_a_model_on_two_devices_are_refused(names):
    model = with_lora(llama())
    signals = engine(model)
    model.get_input_embeddings().to("meta")
    with pytest.raises(
        ModelError, match=r"gradient signals need the model on one device, .* on cpu, meta \(device_map"
    ):
        signals(random_pool(3), names)
