"""Parts of a benchmark end in time, and a side that was measured is not measured again."""

import functools
import json
import multiprocessing
import os
import signal
import time

import pytest
import torch

from benchmarks import parts
from benchmarks.harness import Deadline
from benchmarks.parts import CUT_OFF, FAILED, MEASURED, NO_PACKAGE, OUT_OF_MEMORY, REFUSED, Sides, run_part
from longgame.errors import ModelError, ResumeError

pytestmark = pytest.mark.quick
ABOUT = {"device": "cpu"}


def sides_of(file, seconds=100.0):
    return Sides(file, Deadline(seconds), ABOUT)


def fails(error):
    def work():
        raise error

    return work


def out_of_memory():
    try:
        raise torch.OutOfMemoryError("CUDA out of memory")
    except torch.OutOfMemoryError as error:
        raise ModelError("example 3 does not fit into memory alone") from error


@pytest.mark.parametrize(
    ("work", "outcome", "again"),
    [
        (lambda: {"seconds": 1.0}, MEASURED, False),
        (fails(torch.OutOfMemoryError("CUDA out of memory")), OUT_OF_MEMORY, False),
        (out_of_memory, OUT_OF_MEMORY, False),
        (fails(ModuleNotFoundError("No module named 'trl'")), NO_PACKAGE, True),
        (fails(ModelError("no such model")), REFUSED, True),
        (fails(ValueError("a shape")), FAILED, True),
    ],
)
def test_every_outcome_is_a_result_and_the_next_side_runs(tmp_path, work, outcome, again):
    file = tmp_path / "part.json"
    sides = sides_of(file)
    sides.run("first", work)
    assert sides.run("second", lambda: {"n": 2}) == {"n": 2}
    entry = json.loads(file.read_text())["sides"]["first"]
    assert entry["outcome"] == outcome
    assert ("values" in entry) == (outcome == MEASURED)
    calls = []
    sides_of(file).run("first", lambda: calls.append(1) or {})
    assert bool(calls) == again


def test_a_side_that_does_not_fit_is_named_and_not_run(tmp_path):
    sides = sides_of(tmp_path / "part.json", seconds=5)
    assert sides.run("long", fails(AssertionError()), 60) is None
    assert sides.run("short", lambda: {"n": 1}, 1) == {"n": 1}
    assert sides.deadline.left_out == ["long"]


def test_a_side_cut_off_twice_is_not_tried_again(tmp_path):
    file = tmp_path / "part.json"
    for attempts, runs in ((1, True), (2, False)):
        entry = {"outcome": CUT_OFF, "attempts": attempts}
        file.write_text(json.dumps({"about": ABOUT, "sides": {"hangs": entry}}))
        assert (sides_of(file).run("hangs", lambda: {"n": 1}) == {"n": 1}) == runs


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"about": {"device": "cuda"}, "sides": {}}'])
def test_another_or_a_torn_file_is_refused(tmp_path, text):
    file = tmp_path / "part.json"
    file.write_text(text)
    with pytest.raises(ResumeError, match=r"part\.json"):
        sides_of(file)
    assert file.read_text() == text


def hang(sides, seconds):
    sides.run("first", lambda: {"n": 1})
    sides.run("hangs", lambda: time.sleep(seconds))
    sides.run("last", lambda: {"n": 3})


def leave(sides):
    sides.run("first", lambda: {"n": 1})
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def few_imports(monkeypatch):
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(parts, "process_context", lambda: context)


@pytest.mark.usefixtures("few_imports")
def test_a_part_that_hangs_is_stopped_and_goes_on_in_the_next_call(tmp_path):
    file = tmp_path / "part.json"
    start = time.monotonic()
    outcome = run_part(functools.partial(hang, seconds=1000), file, 4, ABOUT)
    assert time.monotonic() - start < 100
    assert outcome.values == {"first": {"n": 1}}
    assert outcome.notes[0].startswith("part: hangs: cut off")
    outcome = run_part(functools.partial(hang, seconds=0), file, 60, ABOUT)
    assert outcome.values.keys() == {"first", "last"}  # the side that hung returns no numbers
    assert "failed" in outcome.notes[0]


@pytest.mark.usefixtures("few_imports")
def test_a_part_whose_process_dies_keeps_its_sides(tmp_path):
    outcome = run_part(leave, tmp_path / "part.json", 60, ABOUT)
    assert outcome.values == {"first": {"n": 1}}
    assert "exit code -9" in outcome.notes[-1]
