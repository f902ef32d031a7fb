import gc
import weakref

import numpy as np
import pytest
import torch

from longgame.errors import ModelError
from longgame.models.head import LogitHead
from longgame.signals import engine as module
from longgame.signals import logits
from longgame.signals.engine import BACKWARD, FORWARD, MAX_BATCH_TOKENS, SignalEngine
from support.activations import live_bytes
from support.signals import llama, random_pool, with_lora

ALL = (*FORWARD, *BACKWARD)


def engine(model, **options):
    return SignalEngine(model, pad_token_id=0, sketch_dim=64, **options)


@pytest.fixture
def cramped(adapted):
    """Make every forward pass over more tokens than this run out of memory, as a device or an allocator would."""
    handles = []

    def limit(tokens, error):
        def refuse(_module, _args, kwargs):
            if kwargs["input_ids"].numel() > tokens:
                raise error

        handles.append(adapted.get_base_model().model.register_forward_pre_hook(refuse, with_kwargs=True))
        return adapted

    yield limit
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
@pytest.mark.parametrize("names", [FORWARD, ALL])
def test_halving_a_batch_changes_no_signal(adapted, pool, cramped, caplog, error, names):
    longest = max(map(len, pool.input_ids))
    complete = engine(adapted)(pool, names)
    halved = engine(cramped(2 * longest, error))(pool, names)
    assert "out of memory on a batch of" in caplog.text
    for name in names:
        assert np.linalg.norm(halved[name] - complete[name]) <= 1e-5 * np.linalg.norm(complete[name]), name


def test_an_example_that_does_not_fit_alone_is_named(pool, cramped):
    longest = max(range(len(pool)), key=lambda row: len(pool.input_ids[row]))
    tokens = len(pool.input_ids[longest])
    model = cramped(tokens - 1, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(ModelError, match=f"of {tokens} tokens does not fit into memory alone"):
        engine(model)(pool, ["loss", "grad_norm"])


def test_other_errors_are_not_taken_for_lack_of_memory(pool, cramped):
    with pytest.raises(RuntimeError, match="wrong shape"):
        engine(cramped(0, RuntimeError("wrong shape")))(pool, ["loss"])


def test_gradient_batches_of_deep_models_are_smaller_on_a_cpu():
    small, deep = engine(with_lora(llama())), engine(with_lora(llama()))
    deep._decoder.layers.extend(deep._decoder.layers[0] for _ in range(40_000))
    cpu = torch.device("cpu")
    assert small._default_batch_tokens(True, cpu) == deep._default_batch_tokens(False, cpu) == MAX_BATCH_TOKENS
    assert 512 <= deep._default_batch_tokens(True, cpu) < MAX_BATCH_TOKENS
    assert deep._default_batch_tokens(True, torch.device("cuda")) == MAX_BATCH_TOKENS


@pytest.mark.parametrize("make", [lambda: with_lora(llama()), llama])
def test_directions_leave_no_graph_in_memory(make, pool, monkeypatch):
    """An activation kept with its graph would hold the graph's hooks, which hold the activation: nothing frees that."""
    sums = []

    class Watched(module.UnitSum):
        def __init__(self, *args):
            super().__init__(*args)
            sums.append(weakref.ref(self))

    monkeypatch.setattr(module, "UnitSum", Watched)
    measured = engine(make(), max_batch_tokens=64)
    measured.measure_directions(pool, np.ones((len(pool), 2)))
    gc.collect()
    assert len(sums) > 1
    assert not any(reference() for reference in sums)


@pytest.mark.parametrize("kind", ["lora", "full", "dora", "bfloat16", "last layer"])
def test_checkpointed_layers_run_again_and_change_no_signal(kind):
    """The same bits, and of six layers about the activations of one."""
    long = random_pool(4, shortest=30, longest=30)
    base = llama(num_hidden_layers=6)
    base = base.bfloat16() if kind == "bfloat16" else base
    model = base if kind == "full" else with_lora(base, use_dora=kind == "dora")
    options = {"gradient_layers": 1} if kind == "last layer" else {}
    results, peaks = [], []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        measured = engine(model, **options)
        measured(long, BACKWARD)  # tables are drawn once
        with live_bytes() as counted:
            results.append(measured(long, (*BACKWARD, "loss")))
        peaks.append(counted.peak)
    assert all(np.array_equal(results[0][name], results[1][name]) for name in results[0])
    assert peaks[1] <= (1.05 if kind == "last layer" else 0.5) * peaks[0], peaks
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("kind", ["capped", "trained head", "frozen head"])
def test_signs_of_the_logit_sketch_are_drawn_once(pool, monkeypatch, kind):
    """A soft cap needs them at every batch, a trained head at every step, a frozen one never again."""
    model = llama(tie_word_embeddings=False)
    if kind == "capped":
        model.config.final_logit_softcapping = 5.0
    model.requires_grad_(kind == "trained head")
    measured = engine(model, max_batch_tokens=64)
    monkeypatch.setattr(measured, "_logits_checked", True)  # this Llama does not cap its own logits
    first = measured(pool, ["logit_sketch"])["logit_sketch"]
    drawn = []
    draw = logits.signs
    monkeypatch.setattr(logits, "signs", lambda *path, **shape: drawn.append(path) or draw(*path, **shape))
    second = measured(pool, ["logit_sketch"])["logit_sketch"]
    assert np.array_equal(first, second)
    assert not drawn
    assert (measured._logits._right is not None) == (kind != "frozen head")
    monkeypatch.setattr(logits, "sketch_table_bytes", lambda _: 0)
    frugal = engine(model, max_batch_tokens=64)
    monkeypatch.setattr(frugal, "_logits_checked", True)
    assert np.array_equal(frugal(pool, ["logit_sketch"])["logit_sketch"], first)
    assert frugal._logits._right is None


def test_signs_are_kept_once_whatever_the_batches(monkeypatch):
    model = llama(vocab_size=1500, tie_word_embeddings=False)
    model.config.final_logit_softcapping = 5.0
    monkeypatch.setattr(logits, "logit_entries", lambda _: 1 << 15)  # chunks of 256 to 1,024 words

    def position_logits():
        return logits.PositionLogits(LogitHead(model), (4, 8), seed=0)

    kept = position_logits()
    for rows, positions in ((2, 50), (3, 10), (1, 40), (1, 20), (5, 7)):
        hidden, valid = torch.randn(rows, positions, model.config.hidden_size), torch.ones(rows, positions)
        assert torch.equal(kept.sketches(hidden, valid), position_logits().sketches(hidden, valid))
        assert kept._right.untyped_storage().nbytes() == 1500 * 8 * 4
