"""A kill at any durable operation of an audit: the same command goes on, and ends with the same numbers."""

import contextlib
import os
from pathlib import Path

import pandas as pd
import pytest

from longgame.report.render import write_report
from support.quadratic_audit import walk

OPERATIONS = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir")
"""Functions of `os` that everything durable goes through; `os.open` that creates the lock comes after a mkdir."""
SMALL = {
    "seeds": [0],
    "selectors": ["random"],
    "data": {"sequence": "quadratic", "pool_size": 24, "stages": [{"name": "a"}, {"name": "b"}]},
    "training": {"steps": 2, "warmup_steps": 0, "learning_rate": 0.1},
    "probe": {"kinds": ["common"], "steps": 1, "points": 2},
    "metrics": {"bootstrap": 100},
}
KILLED = 9


@contextlib.contextmanager
def counted(patch, last=None):
    """Count durable operations; before the one after ``last``, the process ends without any cleaning up."""
    count = [0]

    def wrap(function):
        def call(*arguments, **options):
            if count[0] == last:
                os._exit(KILLED)
            count[0] += 1
            return function(*arguments, **options)

        return call

    with patch.context() as patched:
        for name in OPERATIONS:
            patched.setattr(os, name, wrap(getattr(os, name)))
        yield count


def audit(folder):
    run, _ = walk(folder, **SMALL)
    write_report(run)
    return run


def killed_after(folder, operations, patch):
    """Run the audit in a child that is killed after so many operations."""
    child = os.fork()
    if not child:
        try:
            with counted(patch, operations):
                audit(folder)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def numbers(run):
    return run.results[run.results.unit != "s"].reset_index(drop=True)


@pytest.fixture
def _plain_page(monkeypatch):
    monkeypatch.setattr("longgame.report.render.html_page", lambda *_: "page")


@pytest.mark.usefixtures("_plain_page")
@pytest.mark.parametrize("every", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_durable_operation_is_survived(tmp_path, monkeypatch, every):
    with counted(monkeypatch) as count:
        expected = numbers(audit(tmp_path / "whole"))
    assert count[0] > 30
    for operations in sorted({*range(10), *range(0, count[0], every)}):
        folder = tmp_path / str(operations)
        assert killed_after(folder, operations, monkeypatch) == KILLED
        pd.testing.assert_frame_equal(numbers(audit(folder)), expected, check_exact=True)
        assert list(folder.rglob("*.part")) == [], operations
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            path.name for path in (tmp_path / "whole").iterdir()
        )


def kill_twice(folder, first, second, patch):
    assert killed_after(folder, first, patch) == KILLED
    return killed_after(folder, second, patch)


@pytest.mark.usefixtures("_plain_page")
@pytest.mark.parametrize("second", [1, 7])
def test_a_kill_while_resuming_is_survived_too(tmp_path, monkeypatch, second):
    expected = numbers(audit(tmp_path / "whole"))
    for first in (3, 5, 20):
        folder = tmp_path / str(first)
        kill_twice(folder, first, second, monkeypatch)
        pd.testing.assert_frame_equal(numbers(audit(folder)), expected, check_exact=True)


def test_a_run_directory_is_made_with_its_parents(tmp_path):
    folder = Path(tmp_path, "a", "b", "c")
    walk(folder, **SMALL)
    assert (folder / "run.json").is_file()
