"""On a pretend GPU (`support.pretend_gpu`): the numbers of the CPU, and budgets of waits and bytes.

Speed on a GPU is lost where the host waits for it. The budgets hold the number of waits, bytes to the host and uploads
of each batch and step, so that a change that adds one fails here, without a GPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
QUICK = ("mixed", "adam", "thin", "signals:lora", "signals:lora-bf16", "signals:full", "trainer:gradient")
LONG = (
    *("signals:dora", "signals:embedding", "signals:gemma", "signals:gpt2", "signals:checkpointed"),
    *("evaluator", "stage:random", "stage:lhas"),
)


def answers_of(cases, folder):
    """Run the cases in one process: registering a device changes torch for all that follows."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "support.pretend_cases", *cases]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return answers_of(QUICK, tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    return answers_of(LONG, tmp_path_factory.mktemp("long"))


@pytest.fixture
def answer(request):
    """What the case that a test names gave."""
    case = request.getfixturevalue("case")
    return request.getfixturevalue("quick" if case in QUICK else "long")[case]


def each(*names):
    """Cases whose name begins so; the long ones are slow."""
    return [
        pytest.param(case, marks=[pytest.mark.slow] if case in LONG else [])
        for case in (*QUICK, *LONG)
        if case.startswith(names)
    ]


def test_the_device_refuses_what_a_gpu_refuses(quick):
    assert "tensors are on gpu:0 and on the cpu" in quick["mixed"]["refusal"]
    assert quick["mixed"]["scalar"] == 6.0


@pytest.mark.parametrize("case", each("signals", "adam"))
def test_signals_on_a_gpu_are_those_of_the_cpu(case, answer):
    """In bfloat16 the fused products round in another order."""
    bound = 3e-2 if case.endswith("bf16") else 1e-5
    assert {name: gap for name, gap in answer["gap"].items() if gap > bound} == {}


@pytest.mark.parametrize("case", each("stage", "trainer"))
def test_a_training_on_a_gpu_selects_the_picks_of_the_cpu(case, answer):
    assert answer["same_picks"]
    assert answer["loss_gap"] < 1e-5
    assert answer.get("gram_gap", 0.0) < 1e-4


@pytest.mark.parametrize("case", each("evaluator"))
def test_scores_on_a_gpu_are_those_of_the_cpu(case, answer):
    assert answer["equal"] == answer["scores"]


# All signals of 12 examples in two batches, at the second call. Each batch waits for the eigenvalues, and for its one
# copy to the host. DoRA looks once a call whether a magnitude is 0. Kernels of 14 factors a layer are started together:
# one by one, two batches of plain LoRA took 1,432 (716 a batch).
SIGNAL_BUDGET = {
    "signals:lora": {"waits": 4, "bytes_down": 52_692, "uploads": 2, "kernels": 960},
    "signals:lora-bf16": {"waits": 4, "bytes_down": 52_692, "uploads": 2, "kernels": 1_120},
    "signals:full": {"waits": 5, "bytes_down": 52_692, "uploads": 3, "kernels": 880},
    "signals:dora": {"waits": 5, "bytes_down": 52_748, "uploads": 2, "kernels": 1_590},
    "signals:embedding": {"waits": 4, "bytes_down": 52_692, "uploads": 2, "kernels": 890},
    "signals:gemma": {"waits": 4, "bytes_down": 52_692, "uploads": 4, "kernels": 1_190},
    "signals:gpt2": {"waits": 4, "bytes_down": 52_692, "uploads": 2, "kernels": 490},
    "signals:checkpointed": {"waits": 4, "bytes_down": 52_692, "uploads": 2, "kernels": 1_190},
}


@pytest.mark.parametrize("case", each("signals"))
def test_a_batch_of_signals_keeps_its_budget(case, answer):
    assert answer["batches"] == 2
    spent = {name: answer[name] for name in SIGNAL_BUDGET[case]}
    assert all(spent[name] <= most for name, most in SIGNAL_BUDGET[case].items()), answer["places"]


# Four steps. A stage also reads its factors before and after, each time in one copy, and each step waits once, for loss
# and norm together. A decoded token is one wait.
TRAINING_BUDGET = {
    "trainer:gradient": {"waits": 24, "bytes_down": 128, "uploads": 21, "kernels": 4_150},
    "stage:random": {"waits": 8, "bytes_down": 934_048, "uploads": 17, "kernels": 3_830},
    "stage:lhas": {"waits": 17, "bytes_down": 1_934_128, "uploads": 44, "kernels": 14_200},
    "evaluator": {"waits": 33, "bytes_down": 3_892, "uploads": 31},
}


@pytest.mark.parametrize("case", each(*TRAINING_BUDGET))
def test_a_step_keeps_its_budget(case, answer):
    spent = {name: answer[name] for name in TRAINING_BUDGET[case]}
    assert all(spent[name] <= most for name, most in TRAINING_BUDGET[case].items()), answer["places"]


def test_thin_training_starts_fewer_kernels_than_peft(quick):
    assert quick["thin"]["gap"]["loss"] < 1e-3
    assert quick["thin"]["kernels"]["thin"] < quick["thin"]["kernels"]["peft"]
