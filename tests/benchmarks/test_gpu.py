"""Every part of the GPU benchmark runs in its smallest form on a CPU, so that it is right when it meets a GPU."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu
from benchmarks.harness import Deadline
from benchmarks.parts import Sides

ROOT = Path(__file__).parents[2]
FULL = gpu.Setting("cuda", quick=False, out=Path())
SLOW = {"select", "ddp", "audit"}
"""They compile, or start processes of their own."""


@pytest.mark.quick
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in gpu.PARTS]
)
def test_a_part_measures_all_its_sides_on_a_cpu(tmp_path, name):
    setting = gpu.Setting("cpu", quick=True, out=tmp_path)
    sides = Sides(tmp_path / f"{name}.json", Deadline(600), {})
    gpu.PARTS[name].run(sides, setting)
    assert {side: entry for side, entry in sides.entries.items() if entry["outcome"] != "measured"} == {}
    assert sides.deadline.left_out == []
    figures = gpu.PARTS[name].figures(sides.values(), setting)
    assert figures
    assert [str(figure) for figure in figures if not figure.ok] == []
    assert gpu.PARTS[name].figures({}, setting) == []


RATE = {"product bfloat16": {"tflops": 650.0}}
TRAININGS = {f"{size} process": {"picks": size, "loss": 1, "seconds": 1} for size in (1, 2)}
PASSES = {
    **{"forward + logits": 1.0, "forward + backward": 2.0, "signals: forward": 1.0, "signals: all": 1.6},
    **{"forward": 0.9, "peaks_gib": {"signals: forward": 15.8, "signals: all": 40.0}},
}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("part", "values", "line"),
    [
        ("env", RATE, "gpu_env_bfloat16_tflops 650 - ok (predicted 700, measured 650)"),
        ("8b", {"sdpa": PASSES}, "gpu_8b_all_over_plain 0.8 <=1.1 ok (predicted 0.83, measured 0.8)"),
        ("8b", {"sdpa": PASSES}, "gpu_8b_sdpa_all_peak_gib 40 - ok (predicted 40, measured 40)"),
        ("135m", {"batches of 4096": PASSES}, "gpu_135m_all_4096 0.8 <=1.1 ok (predicted 1.6, measured 0.8)"),
        ("less", {"135m": {"dense": 30.0, "sketch": 1.0}}, "gpu_less_speed 30 >=15 ok"),
        ("correct", {"tiny lora": {"loss": 2e-5}}, "gpu_correct_loss 2e-05 <=1e-05 short"),
        ("correct", {"waits lora": {"counted": True, "waits": 9}}, "gpu_waits_lora 9 <=6 short"),
        ("ddp", TRAININGS, "gpu_ddp_other_picks 1 <=0 short"),
    ],
)
def test_a_figure_stands_beside_what_is_required_and_predicted(part, values, line):
    assert f"figure {line}" in [str(figure) for figure in gpu.PARTS[part].figures(values, FULL)]


@pytest.mark.quick
def test_the_share_of_the_peak_counts_each_product_once():
    load = {"card": "NVIDIA H100 80GB HBM3", "product_parameters": 7e9, "head_parameters": 5e8, "gib": 15.3}
    call = {"tokens": 65536, "response_tokens": 32768, "forward": 2.0, "all": 5.0}
    figures = {figure.name: figure.value for figure in gpu.figures_8b({"load": load, "one call": call}, FULL)}
    forward = 2 * (7e9 * 65536 + 5e8 * 32768)
    assert figures["gpu_8b_forward_mfu"] == pytest.approx(forward / 2.0 / 990e12)
    assert figures["gpu_8b_all_mfu"] == pytest.approx(2 * forward / 5.0 / 990e12)


@pytest.mark.quick
def test_budgets_of_waits_are_those_of_the_pretend_gpu():
    namespace = {}
    text = (ROOT / "tests" / "device" / "test_pretend_gpu.py").read_text()
    start = text.index("SIGNAL_BUDGET = ")
    exec(text[start : text.index("\n}\n", start) + 3], namespace)
    for kind, budget in gpu.WAITS.items():
        counted = namespace["SIGNAL_BUDGET"]["signals:" + kind.replace(" bfloat16", "-bf16")]
        assert budget == counted["waits"] + counted["uploads"]


@pytest.mark.quick
def test_low_bits_count_the_numbers_between_two_floats():
    ones = np.ones(2, dtype=np.float32)
    assert gpu.low_bits(ones, ones) == 0
    assert gpu.low_bits(ones, np.nextafter(ones, np.float32(2))) == 1
    assert gpu.low_bits(np.float32([-1e-45]), np.float32([1e-45])) == pytest.approx(math.log2(3))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["--part", "egih"], "unknown part 'egih'. Did you mean 'eigh'?", 2),
        (["--part", ","], "--part names no part", 2),
        (["--device", "cuda"], "finds no CUDA GPU here", 1),
        (["--data-dir", "/nowhere"], "which is no folder", 2),
        (["--seconds", "0"], "it must be above 0", 2),
        (["--seconds", "nan"], "it must be above 0", 2),
        (["--out", "/dev/null/gpu"], "which is no folder that can be made", 2),
    ],
)
def test_a_wrong_option_is_one_sentence(arguments, words, code, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(arguments) == code
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def program(*arguments):
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", *arguments]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, **pipes)


def test_a_killed_call_goes_on_where_it_was(tmp_path):
    options = ("--part", "env,eigh", "--out", str(tmp_path), "--seconds", "900")
    first = program(*options)
    while not (tmp_path / "env.json").exists() or '"copies"' not in (tmp_path / "env.json").read_text():
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before = json.loads((tmp_path / "env.json").read_text())["sides"]
    second = program(*options)
    output = second.communicate(timeout=600)[0]
    assert second.returncode == 0, output
    after = json.loads((tmp_path / "env.json").read_text())["sides"]
    assert after["versions"] == before["versions"]
    assert {entry["outcome"] for entry in after.values()} == {"measured"}
    assert "env: versions" not in output
    assert "figure gpu_env_launch_us" in output
    assert all(line.endswith(" quick") for line in output.splitlines() if line.startswith("figure "))


def test_results_of_another_size_are_refused(tmp_path):
    (tmp_path / "env.json").write_text(json.dumps({"about": {"device": "cpu", "quick": False}, "sides": {}}))
    process = program("--part", "env", "--out", str(tmp_path))
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 1
    assert "holds measurements of" in output
    assert "Traceback" not in output
