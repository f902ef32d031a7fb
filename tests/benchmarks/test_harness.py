import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks import harness
from benchmarks.harness import (
    Deadline,
    Form,
    Machine,
    Report,
    Times,
    at_least,
    at_most,
    measure_machine,
    peak_memory,
    process_age,
    reported,
    run_parts,
    take_turns,
)

ROOT = Path(__file__).parents[2]
HERE = Machine("a processor", 1, "cpu", 10.0, 100.0, 200.0, "2", "2", "3")


@pytest.mark.parametrize(
    ("figure", "line"),
    [
        (at_most("cost", 1.04, 1.1), "figure cost 1.04 <=1.1 ok"),
        (at_most("cost", 1.2, 1.1), "figure cost 1.2 <=1.1 short"),
        (at_least("speed", 13.2, 10), "figure speed 13.2 >=10 ok"),
        (at_least("speed", 9.99, 10), "figure speed 9.99 >=10 short"),
        (at_most("cost", math.nan, 1.1), "figure cost nan <=1.1 short"),
        (at_least("speed", math.nan, 10), "figure speed nan >=10 short"),
        (at_least("speed", 12, 10, 15), "figure speed 12 >=10 ok (predicted 15, measured 12)"),
        (reported("seconds", 2.5), "figure seconds 2.5 - ok"),
        (reported("seconds", 2.5, 2.0), "figure seconds 2.5 - ok (predicted 2, measured 2.5)"),
    ],
)
def test_a_figure_is_one_line_and_meets_its_limit_or_is_short(figure, line):
    assert str(figure) == line


def test_sides_take_turns_and_warming_up_is_not_timed():
    calls = []
    times = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert {name: len(time.seconds) for name, time in times.items()} == {"a": 3, "b": 3}


def test_the_best_of_a_side_is_its_fastest_round():
    assert (Times((3.0, 1.0, 2.0)).best, Times((3.0, 1.0, 2.0)).median) == (1.0, 2.0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_peak_memory_sees_what_was_held_for_a_moment():
    size = 200 << 20
    peak = peak_memory(lambda: np.ones(size, dtype=np.uint8).sum())
    assert 0.95 * size < peak < 1.3 * size
    assert peak_memory(lambda: None) < 0.1 * size


def test_report_holds_every_figure_and_its_result(tmp_path, capsys):
    report = Report("sides", HERE)
    report.add([at_most("cost", 1.0, 1.1)], [{"side": "plain", "seconds": 2.0}])
    assert report.finish(tmp_path / "new" / "sides.json")
    report.add([at_least("speed", 1.0, 3.0)])
    assert not report.finish(tmp_path / "sides.json")
    payload = json.loads((tmp_path / "sides.json").read_text())
    assert [figure["ok"] for figure in payload["figures"]] == [True, False]
    assert payload["rows"] == [{"side": "plain", "seconds": 2.0}]
    assert payload["machine"]["processor"] == "a processor"
    assert capsys.readouterr().out.splitlines()[-1] == "figure speed 1 >=3 short"


def test_the_machines_limits_are_measured_and_positive():
    limits = measure_machine()
    assert min(limits.memory_gb_per_s, limits.float32_gflops, limits.bfloat16_gflops) > 0
    assert str(limits.threads) in str(limits)


def test_a_deadline_names_once_what_does_not_fit_before_it():
    now = [100.0]
    deadline = Deadline(60, clock=lambda: now[0])
    assert deadline.left == 60
    assert deadline.allows("first", 60)
    now[0] += 45
    assert [deadline.allows("long", 20), deadline.allows("short", 15), deadline.allows("long", 20)] == [
        False,
        True,
        False,
    ]
    now[0] += 30
    assert deadline.left == -15
    assert not deadline.allows("last")
    assert deadline.left_out == ["long", "last"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the start of a process is read from /proc")
def test_the_age_of_a_process_grows_from_its_start():
    first = process_age()
    assert 0 < first <= process_age()


def fake_parts(calls, now, costs):
    """Parts whose forms take as many seconds of a fake clock as they say."""

    def work(name, seconds):
        calls.append((name, seconds))
        now[0] += seconds

    return {name: [Form(partial(work, name, cost), cost) for cost in forms] for name, forms in costs.items()}


@pytest.mark.parametrize(
    ("pace", "run", "left_out"),
    [
        (1.0, [("first", 30), ("second", 20), ("third", 5)], []),
        (2.0, [("first", 10), ("second", 20)], ["third"]),  # a form is taken only if it ends in time
        (5.0, [("first", 10), ("third", 2)], ["second"]),
        (40.0, [], ["first", "second", "third"]),
    ],
)
def test_a_quick_run_takes_the_largest_forms_that_fit(monkeypatch, capsys, pace, run, left_out):
    calls, now = [], [0.0]
    monkeypatch.setattr(harness, "unit_seconds", lambda: pace * harness.UNIT_SECONDS)
    report = Report("parts", HERE, quick=True)
    report.add([at_most("cost", 1, 2)])
    costs = {"first": [30, 10], "second": [20], "third": [5, 2]}
    parts = fake_parts(calls, now, costs)
    parts = {
        name: [Form(lambda form=form: (form.work(), slower(now, form, pace)), form.seconds) for form in forms]
        for name, forms in parts.items()
    }
    met = run_parts(report, parts, None, Deadline(60, clock=lambda: now[0]))
    assert calls == run
    assert report.left_out == left_out
    assert met == (not left_out)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "figure cost 1 <=2 ok quick"
    assert [line.split(",")[0] for line in lines[1:]] == [f"left out: {name}" for name in left_out]
    for name, line in zip(left_out, lines[1:], strict=True):
        takes = f"about {pace * costs[name][-1]:.0f} s on this machine, which now takes {pace:.1f} times as long"
        assert takes in line
        assert line.endswith("s were left. Run it without --quick, or on an idle machine")
    assert now[0] <= 60


def slower(now, form, pace):
    now[0] += (pace - 1) * form.seconds


def test_without_a_deadline_every_part_runs_in_full():
    calls = []
    report = Report("parts", HERE)
    assert run_parts(report, fake_parts(calls, [0.0], {"first": [1e9, 1], "second": [1e9]}), None)
    assert calls == [("first", 1e9), ("second", 1e9)]
    assert report.left_out == []


CUT_OFF = """
import ctypes, subprocess, sys
from benchmarks.harness import Deadline, Form, Machine, Report, at_most, run_parts
report = Report("parts", Machine("a processor", 1, "cpu", 10.0, 100.0, 200.0, "2", "2", "3"), quick=True)
def hang():
    report.add([at_most("cost", 1, 2)])
    subprocess.run([sys.executable, "-c", "print('child', flush=True); import time; time.sleep(1000)"])
def lock():
    ctypes.PyDLL(None).sleep(1000)
hang = {"hang": hang, "lock": lock}[sys.argv[1]]
run_parts(report, {"hangs": [Form(hang)], "after": [Form(hang)]}, None, Deadline(10))
"""


def test_a_part_that_hangs_is_cut_off_and_named():
    command = [sys.executable, "-c", CUT_OFF, "hang"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    lines = [line.split(",")[0] for line in done.stdout.splitlines()]
    assert lines == ["child", "figure cost 1 <=2 ok quick", "left out: hangs (cut off)", "left out: after"]


def test_a_part_that_keeps_the_interpreters_lock_ends():
    command = [sys.executable, "-c", CUT_OFF, "lock"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert "Timeout" in done.stderr


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_every_benchmark_bounds_its_quick_run(name):
    source = (ROOT / "benchmarks" / f"{name}.py").read_text()
    if '"--quick"' in source and name != "gpu":  # gpu kills its parts in time
        assert "quick_deadline(" in source
        assert "run_parts(" in source
