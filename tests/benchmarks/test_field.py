"""The benchmark of the field's selectors: both sides do what they are named for."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import field
from benchmarks.harness import Report, measure_machine
from benchmarks.select import rows_of
from benchmarks.workload import real
from longgame.selection.algorithms.clusters import without_near_duplicates


@pytest.fixture
def report():
    return Report("field", measure_machine())


def test_the_published_loop_keeps_no_more_than_the_slow_rule():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 8)).astype(np.float32)
    rows[rng.random(200) < 0.5] = rows[3] + 0.1 * rng.normal(size=8).astype(np.float32)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    labels, order = rng.integers(0, 3, 200), rng.permutation(200)
    slow = field.slow_semdedup(units, labels, order, 0.1)
    assert (without_near_duplicates(units, labels, order, 0.1)[0] == slow).all()
    assert not (field.textbook_semdedup(units, labels, order, 0.1) & ~slow).any()
    assert slow.sum() < 200


def test_the_clock_divides_the_time_between_two_ends_of_steps(monkeypatch):
    times = iter([10.0, 14.0, 16.0])
    monkeypatch.setattr(field.time, "perf_counter", lambda: next(times))
    trainer = SimpleNamespace(selection_seconds=0.0)
    clock = field.Clock(trainer)
    clock.on_train_begin()
    for trainer.selection_seconds in (1.0, 2.0):
        clock.on_step_end()
    assert clock.seconds == [4.0, 2.0]
    assert clock.shares == [0.25, 0.5]


@pytest.mark.parametrize(
    ("part", "names"), [("ifd", ["ifd_over_forward"]), ("greats", ["greats_over_forward_and_backward"])]
)
def test_each_part_gives_its_figure(report, part, names):
    getattr(field, part)(report, real(24, dtype="float32", data_dir=None, model="tiny"), True)
    assert [figure.name for figure in report.figures] == names
    assert report.figures[0].value > 0


def test_less_and_dsir_run_from_files(report, monkeypatch):
    monkeypatch.setattr(field, "rows_of", lambda folder, _: rows_of(folder, 260))
    field.dsir(report, None, quick=True)
    field.less(report, None, 260)
    assert report.rows[0]["rows"] == report.rows[1]["rows"] == 260
    assert len(report.rows[1]["other_seconds"]) == field.TARGETS


def test_both_seedings_draw_distinct_rows(report):
    points = np.random.default_rng(0).normal(size=(50, 4))
    assert len(set(field.textbook_seeding(points, 20, np.random.default_rng(1)).tolist())) == 20
    field.badge(report, quick=True)
    assert report.figures[0].value > 0
