import os
import time

import pytest

from longgame.engines import local
from longgame.engines.local import Job, WorkerError, raise_at_once, run_here, run_local
from longgame.errors import DataError, StorageError
from support import jobs


def test_every_job_runs_once_with_bounded_threads_and_progress_arrives(tmp_path):
    progress, finished = [], []
    todo = [Job(f"job-{i}", jobs.write_threads, (str(tmp_path), f"job-{i}")) for i in range(5)]
    run_local(todo, 2, 1, lambda *args: progress.append(args), finished.append)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(finished) == [f"job-{i}" for i in range(5)]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"1"}
    assert sorted(name for name, *_ in progress) == sorted(finished)


def test_an_error_of_the_family_reaches_the_caller_as_it_was_raised():
    with pytest.raises(DataError, match="line 7 is empty"):
        run_local([Job("bad", jobs.fail, ("line 7 is empty",))], 2, 1, lambda *_: None, lambda _: None)


def test_a_full_disk_outside_the_run_directory_is_one_sentence():
    with pytest.raises(StorageError, match=r"^bad: No space left on device \(/tmp/x\)\. Finished stages are safe"):
        run_local([Job("bad", jobs.fill_the_disk, ())], 1, 1, lambda *_: None, lambda _: None)


def test_an_unforeseen_error_arrives_with_its_traceback():
    with pytest.raises(WorkerError, match="ZeroDivisionError"):
        run_local([Job("bad", jobs.crash, ())], 1, 1, lambda *_: None, lambda _: None)


def test_a_killed_worker_is_reported_and_not_waited_for():
    with pytest.raises(WorkerError, match="exit code -9"):
        run_local([Job("bad", jobs.kill_self, ())], 1, 1, lambda *_: None, lambda _: None)


def test_an_idle_worker_that_is_killed_is_reported_and_its_job_waits():
    crew = local._Crew([Job("a", jobs.fail, ("never run",))], 1, 1, ())
    try:
        assert crew.events() == [("ready", "", None)]
        (worker,) = crew._workers
        worker.process.kill()
        worker.process.join()
        crew.hand_out()
        assert list(crew.waiting) == ["a"]
        with pytest.raises(WorkerError, match=r"ended between two jobs \(exit code -9; .* with 1 jobs left"):
            crew.events()
    finally:
        crew.end()


def test_the_first_error_ends_the_other_workers(tmp_path):
    todo = [
        Job("bad", jobs.fail, ("stop",)),
        Job("late", jobs.sleep_then_write, (str(tmp_path), "late", 30.0)),
    ]
    begun = time.monotonic()
    with pytest.raises(DataError):
        run_local(todo, 2, 1, lambda *_: None, lambda _: None)
    assert not (tmp_path / "late").exists()
    assert time.monotonic() - begun < 25


def test_a_job_waits_for_the_one_that_it_comes_after_and_others_go_before(tmp_path):
    todo = [
        Job("base", jobs.write_after, (str(tmp_path), "base", "free")),
        Job("late", jobs.write_what_is_there, (str(tmp_path), "late"), after="base"),
        Job("free", jobs.write_what_is_there, (str(tmp_path), "free")),
        Job("again", jobs.write_what_is_there, (str(tmp_path), "again"), after="not to be run"),
    ]
    finished = []
    run_local(todo, 2, 1, lambda *_: None, finished.append)
    assert sorted(finished) == ["again", "base", "free", "late"]
    assert "base" in (tmp_path / "late").read_text().split()


def test_workers_take_gpus_in_turn_and_keep_them_when_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    lost = []
    crash = [Job(f"bad-{i}", jobs.kill_self, ()) for i in range(2)]
    todo = [Job(f"job-{i}", jobs.write_gpu_with_both_at_work, (str(tmp_path), f"job-{i}", 2)) for i in range(2)]
    run_local(crash + todo, 2, 1, lambda *_: None, lambda _: None, lambda job, _: lost.append(job), gpus=("4", "7"))
    assert sorted(lost) == ["bad-0", "bad-1"]
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["4", "7"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"


@pytest.mark.parametrize("engine", [run_here, lambda todo, *rest: run_local(todo, 2, *rest)], ids=["here", "local"])
def test_warnings_of_jobs_are_shown_once(engine, capfd):
    todo = [Job(name, jobs.log, (text,)) for name, text in (("a", "odd"), ("b", "odd"), ("c", "100% odd"))]
    texts = []
    engine(todo, 1, lambda *_: None, lambda _: None, raise_at_once, texts.append)
    assert sorted(texts) == ["100% odd", "odd"]
    assert capfd.readouterr().err == ""
