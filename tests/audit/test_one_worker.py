"""One worker is this process, more are processes of their own: the same numbers, and nothing left behind here."""

import gc
import os

import pandas as pd
import pytest
import torch

from longgame.audit.execute import run_audit
from longgame.engines.local import Job, WorkerError, run_here
from longgame.errors import DataError, StorageError
from longgame.recipe import parse_recipe
from support import jobs
from support.quadratic_audit import Silent

TINY = {
    "name": "small",
    "model": {"name": "tiny"},
    "data": {"pool_size": 60, "items_per_skill": 1, "ood_items_per_skill": 1},
    "selectors": ["lhas"],
    "seeds": [0],
    "training": {"steps": 4, "warmup_steps": 1},
    "probe": {"steps": 2, "points": 2},
}


def nothing(*_): ...


@pytest.fixture
def thawed():
    """The state of an ordinary process; tests run with what they import frozen (tests/conftest.py)."""
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()


@pytest.mark.usefixtures("thawed")
def test_jobs_run_here_with_bounded_threads_and_leave_this_process_as_it_was(tmp_path):
    state = (torch.get_num_threads(), gc.get_freeze_count(), os.environ.get("OMP_NUM_THREADS"))
    torch.set_num_threads(2)
    try:
        finished, seen = [], []
        todo = [
            Job("late", jobs.write_what_is_there, (str(tmp_path), "late"), after="base"),
            Job("base", jobs.write_threads, (str(tmp_path), "base")),
            Job("again", jobs.tell_torch_threads, ("again",), after="not to be run"),
        ]
        run_here(todo, 1, lambda *progress: seen.append(progress), finished.append)
        assert finished == ["base", "late", "again"]
        assert (tmp_path / "base").read_text() == "1"
        assert (tmp_path / "late").read_text() == "base"
        assert seen == [("base", 1, "work", 1, 2), ("again", 0, "threads", 1, 1)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(state[0])
    assert state == (torch.get_num_threads(), gc.get_freeze_count(), os.environ.get("OMP_NUM_THREADS"))


@pytest.mark.usefixtures("thawed")
@pytest.mark.parametrize(
    ("job", "error", "message"),
    [
        (Job("bad", jobs.fail, ("line 7 is empty",)), DataError, "^line 7 is empty$"),
        (Job("bad", jobs.fill_the_disk, ()), StorageError, r"^bad: No space left on device \(/tmp/x\)\."),
        (Job("bad", jobs.crash, ()), WorkerError, "ZeroDivisionError: not of the family"),
    ],
)
def test_errors_here_are_those_of_workers_and_end_the_run(tmp_path, job, error, message):
    later = Job("later", jobs.write_threads, (str(tmp_path), "later"))
    with pytest.raises(error, match=message):
        run_here([job, later], 1, nothing, nothing)
    assert not (tmp_path / "later").exists()
    assert gc.get_freeze_count() == 0


@pytest.mark.slow
def test_one_worker_and_two_measure_the_same_to_the_last_bit(tmp_path, monkeypatch):
    monkeypatch.setattr("longgame.report.render.html_page", lambda *_: "")
    found = []
    for workers in (1, 2):
        monkeypatch.setenv("LONGGAME_CACHE", str(tmp_path / f"cache-{workers}"))
        run = tmp_path / f"run-{workers}"
        found.append(run_audit(parse_recipe(TINY), run, workers=workers, threads=1, display=Silent()).results)
    timeless = [frame[frame.unit != "s"].reset_index(drop=True) for frame in found]
    pd.testing.assert_frame_equal(*timeless, check_exact=True)
