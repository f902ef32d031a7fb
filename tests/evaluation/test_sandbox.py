"""Programs that try to get out of the sandbox, or to pass without passing: none does, and nothing outside changes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from longgame.errors import ModelError
from longgame.evaluation import sandbox
from longgame.evaluation.sandbox import Limits, run_program, why_no_namespaces

QUICK = Limits(seconds=1, memory=512 * 2**20, disk=2**20)
SECRET = "sk-longgame-sandbox-secret"


@pytest.fixture(params=[True, False], ids=["namespaces", "audit hooks"])
def run(request, monkeypatch, tmp_path):
    """Runs a program in both ways; every trace of a temporary folder must be gone afterwards."""
    if request.param and why_no_namespaces():
        pytest.skip("the kernel gives no namespaces")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("LONGGAME_SANDBOX_SECRET", SECRET)
    yield lambda program, tests="", limits=QUICK: run_program(program, tests, limits, namespaces=request.param)
    assert list(temporary.iterdir()) == []


def test_a_right_program_passes_and_a_wrong_one_does_not(run) -> None:
    assert run("def f(x):\n    return x + 1", "assert f(1) == 2").passed
    assert run("def f(x):\n    return x", "assert f(1) == 2").reason == "AssertionError"
    assert run("def f(x", "assert f(1) == 2").reason == "SyntaxError"
    assert run("def f(x):\n    return 1 / 0", "f(1)").reason == "ZeroDivisionError"
    assert run("import math, re, collections, json, numpy", "assert numpy.ones(3).sum() == 3").passed


DATA = "from dataclasses import dataclass\n\n\n@dataclass\nclass A:\n    x: int\n    next: 'A' = None\n"


def test_a_program_runs_as_a_module_of_its_own(run) -> None:
    assert run(DATA, "assert A(1).x == 1").passed
    assert run(DATA + "import pickle", "assert pickle.loads(pickle.dumps(A(2))).x == 2").passed
    assert run("def f(x: int): return x", "assert f.__annotations__['x'] is int").passed
    assert run("def f(x: List[int]): return x", "assert f([1]) == [1]").reason == "NameError"


ENDINGS = {
    "exits at once": "import os\nos._exit(0)",
    "exits": "import sys\nsys.exit(0)",
    "raises SystemExit in the function": "def f():\n    raise SystemExit(0)",
    "exits in the function": "import os\ndef f():\n    os._exit(0)",
    "kills itself": "import ctypes\nctypes.string_at(0)",
    "prints what passing may look like": "print('passed'); print('OK')\ndef f():\n    return 3",
    "writes to every pipe": "import os\nfor n in range(3, 64):\n    try:\n        os.write(n, b'passed')\n"
    "    except OSError:\n        pass\ndef f():\n    return 3",
    "closes every pipe": "import os\nos.closerange(0, 64)\ndef f():\n    return 3",
    "replaces the error of assert": "import builtins\nclass Quiet(Exception):\n    pass\n"
    "builtins.AssertionError = Quiet\ndef f():\n    return 3",
    "replaces exec and compile": "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None\n"
    "def f():\n    return 3",
    "replaces what the checker reads": "import os\nos.read = lambda *a: b'passed'\nos.write = lambda *a: 6\n"
    "def f():\n    return 3",
    "empties the checker": "import sys\nvars(sys.modules['__main__']).clear()\ndef f():\n    return 3",
    "defines a check of its own": "def check(f):\n    pass\ndef f():\n    return 3",
    "traces": "import sys\nsys.settrace(lambda *a: (_ for _ in ()).throw(SystemExit(0)))\ndef f():\n    return 3",
    "handles its end": "import atexit, os\natexit.register(os._exit, 0)\ndef f():\n    return 3",
    "is a deep recursion": "def f():\n    return f()",
    "asks stdin": "def f():\n    return int(input())",
}


@pytest.mark.parametrize("program", ENDINGS.values(), ids=ENDINGS)
def test_no_way_of_ending_counts_as_passed(run, program) -> None:
    assert not run(program, "def check(f):\n    assert f() == 4\n\ncheck(f)").passed


def test_the_environment_and_other_processes_are_hidden(run) -> None:
    assert not run("import os", f"assert {SECRET!r} in str(dict(os.environ))").passed
    leaks = (
        "import os, glob\nseen = b''\n"
        "for place in [f'/proc/{os.getppid()}', '/proc/self', *glob.glob('/proc/[0-9]*')]:\n"
        "    for name in ('environ', 'cmdline', 'maps'):\n"
        "        try:\n            seen += open(f'{place}/{name}', 'rb').read()\n"
        "        except OSError:\n            pass\n"
    )
    assert not run(leaks, f"assert {SECRET.encode()!r} in seen").passed


def test_files_outside_cannot_be_read_written_or_deleted(run, tmp_path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "data.txt").write_text(SECRET)
    assert not run("", f"assert open({str(victim / 'data.txt')!r}).read()").passed
    places = [victim / "new.txt", Path("/tmp") / f"longgame-{os.getpid()}.txt", Path.home() / "longgame-new.txt"]
    for place in (*places, Path("../out.txt"), Path(sandbox.__file__).with_name("new.py")):
        assert not run("", f"open({str(place)!r}, 'w').write('x')").passed, place
        assert not place.is_absolute() or not place.exists()
    run(f"import shutil\nshutil.rmtree({str(victim)!r}, ignore_errors=True)")
    run(f"import os\nos.remove({str(victim / 'data.txt')!r})")
    run(f"import os\nos.rename({str(victim)!r}, {str(tmp_path / 'moved')!r})")
    assert (victim / "data.txt").read_text() == SECRET


def test_files_of_the_own_folder_work_and_are_bounded(run) -> None:
    assert run("open('a.txt', 'w').write('x')", "assert open('a.txt').read() == 'x'").passed
    assert not run("open('a.txt', 'w').write('x' * 2**22)").passed


def test_no_connection_leaves_the_sandbox(run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        assert not run("import socket", f"socket.create_connection(('127.0.0.1', {port}), 1)").passed
        with pytest.raises(TimeoutError):
            server.accept()


def test_no_process_starts_and_none_is_signalled(run) -> None:
    blocked = "blocked = False\ntry:\n    import os, subprocess\n    blocked = {}\nexcept OSError:\n    blocked = True"
    for call in (
        "os.fork() < 0",
        "os.system('true') != 0",
        "subprocess.call(['/bin/true']) != 0",
    ):
        assert run(blocked.format(call), "assert blocked").passed, call
    run("import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass")
    arrived: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: arrived.append(number))
    try:
        for target in ("os.getppid()", str(os.getpid())):
            run(f"import os, signal\nos.kill({target}, signal.SIGUSR1)\nos.killpg({target}, signal.SIGUSR1)")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert arrived == []


def test_time_memory_and_output_are_bounded(run, monkeypatch) -> None:
    assert run("x = bytearray(10**10)").reason == "MemoryError"
    assert not run("x = []\nwhile True:\n    x.append('y' * 10**6)").passed
    assert run("for _ in range(300):\n    print('x' * 10**5)").passed  # thrown away
    assert run("while True:\n    pass").reason == sandbox.OUT_OF_TIME
    monkeypatch.setattr(sandbox, "_WALL", 0.3)
    sleeps = run("import time\ntime.sleep(600)")
    assert (sleeps.passed, sleeps.reason, sleeps.decided) == (False, "waits", True)
    assert run("x = 1", "y" * 300_000).reason == "too long"


WORKS = "import time\nwhile time.process_time() < {}:\n    pass"


def test_a_busy_machine_does_not_fail_a_right_program(run, monkeypatch) -> None:
    """A program of 0.4 s of processor time, on one core beside a busy process, takes longer than it may wait.

    Beside more work than that, the run may be undecided; it is never judged as wrong.
    """
    if sandbox._busy_seconds(os.getpid()) is None:
        pytest.skip("the kernel does not count the time that a process waits for a processor")
    monkeypatch.setattr(sandbox, "_WALL", 0.2)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        outcome = run(WORKS.format(0.4), "assert True")
        assert outcome.passed or not outcome.decided
    finally:
        busy.kill()
        busy.wait()
        os.sched_setaffinity(0, cores)


BUSY = {
    "all of the time": (lambda: time.monotonic(), "passed", True),
    "none of it": (lambda: 0.0, "waits", True),
    "unknown": (lambda: None, "the machine was too busy", False),
}


@pytest.mark.parametrize(("busy", "reason", "decided"), BUSY.values(), ids=BUSY)
def test_only_waiting_of_its_own_ends_a_program(run, monkeypatch, busy, reason, decided) -> None:
    monkeypatch.setattr(sandbox, "_WALL", 0.2)
    monkeypatch.setattr(sandbox, "_busy_seconds", lambda _pid: busy())
    outcome = run("import time\ntime.sleep(1)", "assert True")
    assert (outcome.reason, outcome.decided) == (reason, decided)


def test_a_run_that_the_machine_prevents_is_undecided(run, monkeypatch) -> None:
    monkeypatch.setattr(sandbox, "_WALL", 0.1)
    monkeypatch.setattr(sandbox, "_PATIENCE", 0.3)
    monkeypatch.setattr(sandbox, "_busy_seconds", lambda _pid: time.monotonic())
    late = run("import time\ntime.sleep(600)")
    assert (late.passed, late.decided, late.reason) == (False, False, "the machine was too busy")
    monkeypatch.setattr(sandbox, "_START_SECONDS", 0.0)
    assert run("").reason == "did not start"
    assert not run("").decided
    monkeypatch.setattr(sandbox, "_run", lambda *_: (b'{"refused": "unshare: no space"}', b"x", "ended early"))
    assert not run("").decided


def test_a_program_cannot_make_its_own_run_undecided(run) -> None:
    for word in ("starved", "the machine was too busy", "waits", ""):
        writes = f"import os\nfor n in range(3, 64):\n    try:\n        os.write(n, {word.encode()!r})\n"
        outcome = run(f"{writes}    except OSError:\n        pass\nos._exit(0)")
        assert (outcome.passed, outcome.decided) == (False, True), word


def test_time_in_which_the_audit_was_stopped_fails_no_program(run, monkeypatch) -> None:
    """A finished program's result is read even if the clock has passed every limit meanwhile."""
    real, jumps = time.monotonic, []

    def clock() -> float:
        jumps.append(0.0)
        return real() + (1e6 if len(jumps) > 2 else 0.0)

    monkeypatch.setattr(sandbox.time, "monotonic", clock)
    monkeypatch.setattr(sandbox.select, "select", lambda *_: ([1], [], []))
    assert run("x = 1", "assert x == 1").passed


def test_root_without_namespaces_runs_nothing(monkeypatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(sandbox, "_run", lambda *_: (b'{"refused": "unshare: not permitted"}', b"", ""))
    why_no_namespaces.cache_clear()
    try:
        with pytest.raises(ModelError, match="as root.*unshare: not permitted.*another user"):
            run_program("", "")
        monkeypatch.setattr(sandbox, "_run", lambda *_: (b"", b"", ""))
        with pytest.raises(ModelError, match="does not start"):
            run_program("", "")
    finally:
        why_no_namespaces.cache_clear()
