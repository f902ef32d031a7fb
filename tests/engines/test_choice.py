"""Work on local processes, and the choice of an engine."""

import multiprocessing
import os
import subprocess
import sys
import time
from functools import partial

import pytest

from longgame.engines.choice import check_engine, mapped, mapper
from longgame.engines.local import WorkerError
from longgame.errors import DataError, RecipeError
from support import jobs


def is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("engine", ["local", "ray", "auto", "ray://host:10001"])
def test_an_engine_of_the_list_is_returned(engine):
    assert check_engine(engine) == engine


@pytest.mark.parametrize("engine", ["", "dask", "ray://", "ray://host", "ray://host:port", "ray://a/b:1", "host:6379"])
def test_another_engine_is_refused_with_those_that_exist(engine):
    with pytest.raises(RecipeError, match=r"Use local, ray .*auto .*ray://HOST:PORT"):
        check_engine(engine)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_parts(workers):
    assert list(mapped(partial(jobs.power, exponent=2), range(9), workers=workers)) == [n * n for n in range(9)]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_workers_of_a_mapper_serve_every_call(workers):
    with mapper(jobs.process_id, workers=workers) as process_ids:
        calls = [set(process_ids(range(6))) for _ in range(3)]
    assert len(set.union(*calls)) <= workers
    assert (os.getpid() in calls[0]) == (workers == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_part_arrives_with_its_class(workers):
    with pytest.raises(DataError, match="part 3 is empty"):
        list(mapped(jobs.fail_at_three, range(5), workers=workers))


def test_a_process_that_ends_is_reported():
    with pytest.raises(WorkerError, match=r"a worker process ended \(exit code 9\): its own code ended it"):
        list(mapped(jobs.leave_at_three, range(5), workers=2))


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), DataError("no")])
def test_an_exception_ends_running_parts_at_once(stop):
    start, workers = time.monotonic(), []
    with pytest.raises((KeyboardInterrupt, DataError)), mapper(jobs.process_id_after, workers=2) as process_ids:
        for process in process_ids([0, 600, 600, 600]):
            workers += [process, *(child.pid for child in multiprocessing.active_children())]
            raise stop
    assert len({*workers}) == 2
    assert not any(map(is_alive, workers))
    assert time.monotonic() - start < 60


NO_GUARD = """
from longgame.engines.choice import mapped
from longgame.engines.local import Job, WorkerError, run_local
from support import jobs
try:
    if {whole}:
        run_local([Job(name, jobs.leave, (0,)) for name in "ab"], 2, 1, print, print)
    else:
        print(*mapped(jobs.process_id, range(3), workers=2))
except WorkerError as error:
    print(error)
"""


@pytest.mark.parametrize("whole", [False, True])
def test_a_script_without_a_guard_is_told_its_line(whole, tmp_path):
    (tmp_path / "script.py").write_text(NO_GUARD.format(whole=whole))
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=paths, capture_output=True, text=True, check=False
    )
    assert "exit code 1" in done.stdout
    assert 'under the line: if __name__ == "__main__":' in done.stdout


def test_the_workers_of_a_mapper_end_with_a_process_that_is_killed():
    code = (
        "from functools import partial\n"
        "from longgame.engines.choice import mapper\n"
        "from support import jobs\n"
        "if __name__ == '__main__':\n"
        "    with mapper(jobs.process_id, workers=2) as process_ids:\n"
        "        print(*set(process_ids(range(6))), flush=True)\n"
        "        input()\n"
    )
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], env=paths, text=True, **pipes) as process:
        workers = [int(number) for number in process.stdout.readline().split()]
        process.kill()
    assert workers
    deadline = time.monotonic() + 60
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, workers))


def test_no_other_module_imports_ray():
    code = (
        "import sys, longgame.engines.choice, longgame.audit.execute, longgame.commands.audit\n"
        "import longgame.commands.score, longgame.offline.api\n"
        "sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode == 0
