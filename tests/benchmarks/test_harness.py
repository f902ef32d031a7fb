import json
import math
import sys

import numpy as np
import pytest

from benchmarks.harness import (
    Deadline,
    Machine,
    Report,
    Times,
    at_least,
    at_most,
    measure_machine,
    peak_memory,
    process_age,
    reported,
    take_turns,
)

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
