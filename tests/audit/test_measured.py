"""measured.safetensors stands for the records of a run: equal numbers, never stale, and checked when it is read."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load, save

from longgame.audit.execute import run_audit
from longgame.audit.measured import measure_results
from longgame.audit.results import MEASURED, stamp_of, write_run_table
from longgame.audit.run import Run
from longgame.errors import ResumeError
from longgame.metrics.tidy import Curves, Measured, Scores, Trials
from support.quadratic_audit import Silent, recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    small = recipe(selectors=["loss", "random", "diversity"], seeds=[0, 10, 2], axes={"budget": [0.5]}, full_data=True)
    folder = tmp_path_factory.mktemp("measured") / "run"
    run_audit(small, folder, workers=1, threads=1, display=Silent())
    return folder


def assert_equal(one, other):
    """Two values hold the same numbers, bit by bit."""
    assert type(one) is type(other)
    if isinstance(one, Measured | Scores | Curves | Trials):
        for field in dataclasses.fields(one):
            assert_equal(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    else:
        np.testing.assert_array_equal(one, other)


def without_records(monkeypatch):
    monkeypatch.setattr(Run, "results", property(lambda _: pytest.fail("the records were read")))


def test_what_is_read_equals_what_the_records_give(finished, monkeypatch):
    run = Run.open(finished)
    expected = measure_results(run.plan, run.results)
    assert {"", "budget=0.5", "full-data"} == set(expected)
    without_records(monkeypatch)
    assert_equal(Run.open(finished).measured, expected)


def test_the_scorecards_need_no_record(finished, monkeypatch):
    run = Run.open(finished)
    run.measured = measure_results(run.plan, run.results)
    without_records(monkeypatch)
    again = Run.open(finished)
    for name, card in run.scorecards.items():
        pd.testing.assert_frame_equal(again.scorecards[name].summary, card.summary, check_exact=True)
        pd.testing.assert_frame_equal(again.scorecards[name].per_stage, card.per_stage, check_exact=True)
    pd.testing.assert_frame_equal(again.across.association, run.across.association, check_exact=True)


def test_another_reference_keeps_every_trial_its_values(finished, monkeypatch):
    recipe = Run.open(finished).recipe.replace({"metrics.reference": "loss"})
    records = Run(finished, recipe)
    records.measured = measure_results(records.plan, Run.open(finished).results)
    without_records(monkeypatch)
    changed = Run(finished, recipe)
    assert changed.measured[""].trials.selectors[0] == "loss"
    assert_equal(changed.measured[""].scores, records.measured[""].scores)
    for name, card in records.scorecards.items():
        pd.testing.assert_frame_equal(changed.scorecards[name].summary, card.summary, check_exact=True)


@pytest.mark.parametrize("damage", ["gone", "cut", "another stage"])
def test_a_file_that_does_not_fit_is_made_again(finished, tmp_path, damage):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    whole = Run.open(finished).scorecard.summary
    if damage == "another stage":
        (folder / "trials" / "loss-s2" / "stage-3.zip").unlink()
        now = Run.open(folder)
        assert now.measured[""].records < Run.open(finished).measured[""].records
        assert not now.scorecard.summary.equals(whole)
        return
    content = (folder / MEASURED).read_bytes()
    (folder / MEASURED).unlink()
    if damage == "cut":
        (folder / MEASURED).write_bytes(content[:-8])
    pd.testing.assert_frame_equal(Run.open(folder).scorecard.summary, whole, check_exact=True)


def strange(tensors, header):
    """Name of a change → the file's tensors after it; a stranger's run has a digest that fits."""
    first = "0.scores"
    yield "fewer trials", {**tensors, first: tensors[first][:-1]}
    yield "other numbers", {**tensors, first: tensors[first].astype(np.float32)}
    yield "no scores", {name: array for name, array in tensors.items() if name != first}
    yield "a curve of no trial", {**tensors, "0.curves.trial": tensors["0.curves.trial"] + 1000}
    yield "curves without end", {**tensors, "0.curves.length": tensors["0.curves.length"] * 1000}
    for key, value in (
        ("trials", ["mine"]),
        ("trials", [*header[0]["trials"][1:], header[0]["trials"][1]]),
        ("condition", "elsewhere"),
        ("items", [["mine", "", "accuracy"]] * len(header[0]["items"])),
        ("records", "many"),
    ):
        names = json.dumps([{**header[0], key: value}, *header[1:]]).encode()
        yield f"{key} {value!r:.30}", {**tensors, "names": np.frombuffer(names, dtype=np.uint8)}
    yield "no names", {**tensors, "names": np.frombuffer(b"[" * 100_000, dtype=np.uint8)}


def test_a_strange_file_with_a_fitting_digest_is_named(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    run = Run.open(folder)
    stamp = stamp_of(folder, run.plan, run.finished_stages)
    tensors = load((folder / MEASURED).read_bytes())
    for name, changed in strange(tensors, json.loads(tensors["names"].tobytes())):
        write_run_table(folder, MEASURED, save(changed), stamp)
        with pytest.raises(ResumeError, match=MEASURED):
            print(name, Run.open(folder).measured)
    for content in (b"", b"\xff" * 64):
        write_run_table(folder, MEASURED, content, stamp)
        with pytest.raises(ResumeError, match=MEASURED):
            _ = Run.open(folder).measured
