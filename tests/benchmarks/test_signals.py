import torch
from transformers import LlamaConfig

from benchmarks import workload
from benchmarks.harness import Machine, Report
from benchmarks.signals import ALL, plain_sides, run, table
from benchmarks.workload import mixed_lengths, random_pool, real, shaped
from longgame.errors import ModelError
from longgame.signals.engine import SignalEngine

HERE = Machine("a processor", 1, "cpu", 10.0, 100.0, 200.0, "2", "2", "3")
SMALL = LlamaConfig(
    vocab_size=128,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)


def small(dtype=torch.float32, count=6):
    return shaped(SMALL, dtype=dtype, lengths=[(3 + row, 2 + row) for row in range(count)], rank=4)


def test_every_side_is_timed_and_both_limits_become_figures():
    report = Report("signals", HERE)
    run(report, small(torch.bfloat16), repeats=1)
    assert [figure.name for figure in report.figures] == ["signals_forward_bfloat16", "signals_gradients_bfloat16"]
    assert [figure.required for figure in report.figures] == [1.1, 1.1]
    assert {row["side"] for row in report.rows} == {
        *plain_sides(small()),
        "signals: forward",
        "signals: forward + gradients",
    }
    assert len(table(report.rows).splitlines()) == 1 + len(report.rows)


def test_a_ratio_is_against_the_fastest_plain_pass_of_its_kind():
    report = Report("signals", HERE)
    run(report, small(), repeats=1, memory=False)
    seconds = {row["side"]: row["seconds"] for row in report.rows}
    limit = min(time for side, time in seconds.items() if side.startswith("forward + backward @"))
    assert report.figures[1].value == seconds["signals: forward + gradients"] / limit


def test_workload_adapter_has_no_zero_half_gradient():
    work = small()
    norms = SignalEngine(work.model, pad_token_id=0, sketch_dim=32)(work.pool, ALL)["grad_norm"]
    factors = [weight for name, weight in work.model.named_parameters() if ".lora_B." in name]
    assert factors
    assert all(bool(weight.any()) for weight in factors)
    assert (norms > 0).all()


def test_plain_passes_leave_no_gradient_behind():
    work = small()
    for side in plain_sides(work).values():
        side()
    assert all(weight.grad is None for weight in work.model.parameters())


def test_every_product_weight_counts_once():
    per_layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48  # q, o; k, v; gate, up, down
    factors = sum(weight.numel() for name, weight in small().model.named_parameters() if "lora_" in name)
    assert small().product_parameters == 2 * per_layer + factors


def test_lengths_are_mixed_and_fit():
    lengths = mixed_lengths(500, 256)
    assert all(prompt >= 8 and answer >= 1 and prompt + answer <= 256 for prompt, answer in lengths)
    assert len({prompt + answer for prompt, answer in lengths}) > 100
    pool = random_pool(lengths[:5], 50)
    assert [(int(p), int(r)) for p, r in zip(pool.prompt_tokens, pool.response_tokens, strict=True)] == lengths[:5]


def test_missing_weights_are_replaced_by_their_shape(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise ModelError("no weights here")

    monkeypatch.setattr(workload, "load_model", refuse)
    monkeypatch.setitem(workload.SHAPES, "smollm2-135m", SMALL)
    work = real(4, dtype="bfloat16", data_dir=None, max_length=32)
    assert "random weights" in work.name
    assert "no weights here" in work.name
    assert work.base.dtype == torch.bfloat16


def test_a_side_without_a_measured_peak_shows_a_dash():
    row = {"dtype": "float32", "side": "a", "ms_per_example": 1.0, "tokens_per_second": 2.0, "peak_mib": None}
    assert "–" in table([row | {"ratio": 1.0, "of": "b"}]).splitlines()[1]
