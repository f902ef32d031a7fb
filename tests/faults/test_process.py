"""Odd files, outputs, sizes and signals: one sentence each, nothing lost, no hang."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from longgame.audit.checks import check_size
from longgame.audit.plan import Plan
from longgame.commands.pools import write_pools
from longgame.data.examples import Example
from longgame.data.sources import load_examples
from longgame.errors import DataError, ModelError, PluginError, RecipeError, StorageError
from longgame.evaluation.answers import matches
from longgame.limits import time_limit, why_no_file
from longgame.models.load import load_model, load_tokenizer
from longgame.recipe import ModelSpec
from longgame.selection.base import build_selector
from longgame.storage import write_file
from support.cli import environment, longgame_here, start
from support.quadratic_audit import recipe, walk

LONG = "x" * 300
SMALL = {"seeds": [0], "selectors": ["random"], "metrics": {"bootstrap": 100}}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a recipe r.yaml, a run q, a pipe and a folder."""
    folder = tmp_path_factory.mktemp("home")
    small = recipe(**SMALL)
    (folder / "r.yaml").write_text(yaml.safe_dump(small.model_dump(mode="json")))
    walk(folder / "q", **SMALL)
    for name in ("pipe", "pipe.csv", "pipe.py", "pipe.jsonl"):
        os.mkfifo(folder / name)
    (folder / "folder").mkdir()
    (folder / "folder.csv").mkdir()
    return folder


AUDIT = ("audit", "r.yaml", "--out", "new")
CALLS = {
    "a pipe as recipe": (("audit", "pipe"), "recipe 'pipe' is a pipe or a device"),
    "a device as recipe": (("audit", "/dev/zero"), "is a pipe or a device"),
    "a folder as recipe": (("audit", "folder"), "is a directory without a run"),
    "a folder for pools": (("pools", "folder", "--out", "p"), "is a directory without a run"),
    "a recipe with a long name": (("audit", LONG), "File name too long"),
    "a long name for a run": (("audit", "r.yaml", "--out", LONG), "File name too long"),
    "a run over its recipe": (("audit", "r.yaml", "--out", "r.yaml"), "is a file; results need a directory"),
    "a run in a device": (("audit", "r.yaml", "--out", "/dev/null/x"), "cannot write /dev/null/x"),
    "a run in a pipe": (("audit", "r.yaml", "--out", "pipe"), "is a file; results need a directory"),
    "a pipe as selector": ((*AUDIT, "--selector", "pipe.py:Mine"), "is a pipe or a device"),
    "a folder as selector": ((*AUDIT, "--selector", "folder.py:Mine"), "does not exist"),
    "a pipe of scores": ((*AUDIT, "--selector", "scores:pipe.csv"), "is a pipe or a device"),
    "a folder of scores": ((*AUDIT, "--selector", "scores:folder.csv"), "is a directory"),
    "scores with a long name": ((*AUDIT, "--selector", f"scores:{LONG}.csv"), "File name too long"),
    "a million threads": ((*AUDIT, "--threads", 10**6), "threads is 1,000,000; give a number from 1 to 1,024"),
    "a page in a pipe": (("report", "q", "--out", "pipe"), "it is a pipe or a device"),
    "a page with a long name": (("report", "q", "--out", LONG), "File name too long"),
    "a page over the run": (("report", "q", "--out", "q"), "--out 'q' would replace a part of the run"),
    "a card over a recipe": (("report", "q", "--card", "q/recipe.yaml"), "--card .* would replace a part of the run"),
    "a card over a stage": (
        ("report", "q", "--markdown", "q/trials/random-s0/stage-1.zip"),
        "would replace a part of the run",
    ),
    "two outputs at one path": (("report", "q", "--out", "a", "--card", "./a"), "--out and --card are both"),
    "three outputs, two equal": (("report", "q", "--out", "b", "--markdown", "a", "--card", "a"), "are both"),
    "a comparison over the run": (("compare", "q", "--out", "q/results.parquet"), "must end in"),
    "a pipe to watch": (("watch", "pipe", "--once"), "holds no run"),
    "a pipe to report": (("report", "pipe"), "holds no run"),
}


def contents(home):
    """Files but those of a run that was refused before its work, and their times."""
    paths = [path for path in home.rglob("*") if "new" not in path.parts and path.name != "audit.lock"]
    return sorted((str(path), path.stat().st_mtime_ns) for path in paths if not path.is_dir())


@pytest.mark.parametrize(("arguments", "sentence"), CALLS.values(), ids=CALLS)
def test_odd_paths_end_in_one_sentence(home, arguments, sentence):
    before = contents(home)
    done = longgame_here(*arguments, cwd=home)
    assert done.returncode in (1, 2), done.stdout
    assert re.search(sentence, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 2
    assert contents(home) == before


HUGE = 10**9
SIZES = {
    "pool": {"data": {"sequence": "quadratic", "pool_size": HUGE}},
    "items": {"data": {"sequence": "quadratic", "items_per_skill": HUGE}},
    "steps": {"training": {"steps": HUGE}},
    "epochs": {"training": {"epochs": HUGE}},
    "probe": {"probe": {"steps": HUGE}},
    "points": {"probe": {"points": HUGE}},
    "rounds": {"rounds": HUGE},
    "bootstrap": {"metrics": {"bootstrap": HUGE}},
    "clusters": {"metrics": {"clusters": HUGE}},
    "rank": {"model": {"name": "quadratic", "lora": {"r": HUGE}}},
    "length": {"model": {"name": "quadratic", "max_length": HUGE}},
    "pool beyond memory": {"data": {"sequence": "quadratic", "pool_size": 99_000_000}},
    "items beyond memory": {"data": {"sequence": "quadratic", "pool_size": 64, "items_per_skill": 99_000_000}},
    "steps beyond a month": {"rounds": 1, "training": {"steps": 99_000_000, "warmup_steps": 0, "epochs": 1}},
}


@pytest.mark.parametrize("changes", SIZES.values(), ids=SIZES)
def test_sizes_beyond_the_machine_are_refused_before_work(changes, monkeypatch):
    monkeypatch.setattr("longgame.audit.checks.free_memory", lambda: 16 * 10**9)
    begun = time.monotonic()
    with pytest.raises(RecipeError, match=r"must be|memory|days|fewer than one candidate"):
        check_size(Plan(recipe(seeds=list(range(20)), **changes)))
    assert time.monotonic() - begun < 20


def test_pools_beyond_memory_are_refused_before_work(tmp_path, monkeypatch):
    monkeypatch.setattr("longgame.audit.checks.free_memory", lambda: 16 * 10**9)
    with pytest.raises(RecipeError, match=r"at least [0-9,]+ GB of memory"):
        write_pools(recipe(data={"sequence": "quadratic", "pool_size": 99_000_000}), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_files_beyond_memory_are_refused_before_they_are_read(tmp_path, monkeypatch):
    with (tmp_path / "d.jsonl").open("wb") as file:
        file.truncate(10**12)  # a hole: it takes no space
    with pytest.raises(DataError, match=r"d\.jsonl' has 1,000\.0 GB, and .* are free.*Give a part of it"):
        load_examples(str(tmp_path / "d.jsonl"), data_dir=None, split="train")


def test_ordinary_sizes_are_taken():
    check_size(Plan(recipe()))


PATHS = {
    "nothing": ("gone", "does not exist"),
    "a folder": ("folder", "is a directory"),
    "a pipe": ("pipe", "is a pipe or a device, not a file"),
    "a long name": (LONG, "is no possible name of a file (File name too long)"),
    "a NUL": ("a\0b", "does not exist"),
    "a file": ("r.yaml", ""),
}


@pytest.mark.parametrize(("name", "reason"), PATHS.values(), ids=PATHS)
def test_why_a_file_cannot_be_read_is_said(home, name, reason):
    assert why_no_file(home / name) in (
        reason,
        "is no possible name of a file (embedded null byte)" if "\0" in name else reason,
    )


@pytest.mark.parametrize("name", ["pipe", "folder", "/dev/full", "/dev/null"])
def test_only_files_are_written_over(home, name):
    before = (home / name).stat()
    with pytest.raises(StorageError, match=r"it is (a directory|a pipe or a device), not a file"):
        write_file(home / name, "x")
    assert (home / name).stat().st_ino == before.st_ino


LOOPS = {"sleeps": "import time; time.sleep(60)", "spins": "while True: pass"}


@pytest.mark.parametrize("line", LOOPS.values(), ids=LOOPS)
def test_an_import_that_hangs_is_ended(tmp_path, monkeypatch, line):
    monkeypatch.setattr("longgame.registry.IMPORT_SECONDS", 0.3)
    (tmp_path / "mine.py").write_text(line)
    with pytest.raises(PluginError, match=r"mine\.py' was not imported within 0\.3 seconds"):
        build_selector(f"{tmp_path / 'mine.py'}:Mine")


def test_a_time_limit_raises_its_error_and_gives_the_timer_back():
    outer = signal.getitimer(signal.ITIMER_REAL)[0], signal.getsignal(signal.SIGALRM)
    with pytest.raises(DataError, match="late"), time_limit(0.1, DataError("late")):
        time.sleep(20)
    with time_limit(0.1, DataError("late")):
        pass
    time.sleep(0.2)
    assert signal.getsignal(signal.SIGALRM) == outer[1]
    assert outer[0] - 10 <= signal.getitimer(signal.ITIMER_REAL)[0] <= outer[0]


def test_a_limit_of_processor_time_ignores_a_busy_machine():
    with time_limit(0.05, DataError("late"), of_processor=True):
        time.sleep(0.2)  # as if other work had the cores
    with pytest.raises(DataError, match="late"), time_limit(0.05, DataError("late"), of_processor=True):
        while True:
            pass
    assert signal.getitimer(signal.ITIMER_PROF)[0] == 0


def cli(*arguments, cwd, variables=None, **options):
    command = [sys.executable, "-m", "longgame.cli", *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(
        command, cwd=cwd, env={**environment(), **(variables or {})}, timeout=200, check=False, **options
    )


def test_a_full_output_is_one_sentence(home):
    with Path("/dev/full").open("wb") as full:
        done = cli("selectors", cwd=home, stdout=full)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "longgame: cannot use the output: No space left on device. Give another path, or make room."
    ]


def test_a_reader_that_leaves_is_no_error(home):
    reader, writer = os.pipe()
    os.close(reader)
    done = cli("selectors", cwd=home, stdout=writer)
    os.close(writer)
    assert done.stderr == b""


@pytest.mark.parametrize("closed", ["1", "2"])
def test_closed_outputs_are_no_error(home, closed):
    command = f"{sys.executable} -m longgame.cli selectors {closed}>&-"
    done = subprocess.run(
        command, shell=True, cwd=home, env=environment(), capture_output=True, timeout=200, check=False
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


def test_an_ascii_terminal_shows_what_it_can(home):
    ascii_only = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = cli("selectors", cwd=home, variables=ascii_only)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert b"lhas-adaptive" in done.stdout


def test_python_without_docstrings_is_refused_in_one_sentence(home):
    done = cli("selectors", cwd=home, variables={"PYTHONOPTIMIZE": "2"})
    assert done.returncode == 1
    assert b"Python runs with -OO" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "variables", [{"HOME": "/nonexistent"}, {"HOME": "", "XDG_CACHE_HOME": "", "LONGGAME_CACHE": ""}]
)
def test_a_home_that_is_not_there_is_no_error(home, variables):
    done = cli("report", "q", "--markdown", "m.md", cwd=home, variables=variables)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_termination_with_two_workers_is_one_sentence(tmp_path):
    many = recipe(seeds=list(range(40)), metrics={"bootstrap": 100})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(many.model_dump(mode="json")))
    process = start("audit", "r.yaml", "--out", "q", "--workers", 2, "--threads", 1, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("q/trials/*/*.zip")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert b"Traceback" not in errors
    assert b"semaphore" not in errors
    assert errors.count(b"longgame: stopped.") == 1


@pytest.mark.slow
def test_three_interrupts_with_two_workers_leave_one_sentence(tmp_path):
    many = recipe(seeds=list(range(40)), metrics={"bootstrap": 100})  # more trials than one process does
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(many.model_dump(mode="json")))
    process = start("audit", "r.yaml", "--out", "q", "--workers", 2, "--threads", 1, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("q/trials/*/*.zip")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for _ in range(3):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.05)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert b"Traceback" not in errors
    assert errors.count(b"longgame: stopped.") == 1


def in_a_thread(call):
    """What the call returns or raises in a thread of its own, as a notebook's or a server's worker has it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(timeout=100)


def spin(seconds):
    with time_limit(seconds, DataError("late")):
        while True:
            pass


def spin_twice():
    with time_limit(60, PluginError("outer")):
        with pytest.raises(DataError, match="late"):
            spin(0.1)
        sum(range(10**6))
        return "went on"


def test_a_time_limit_holds_in_a_thread():
    with pytest.raises(DataError, match="late"):
        in_a_thread(lambda: spin(0.2))
    assert in_a_thread(spin_twice) == "went on"
    threads = threading.active_count()

    def many():
        for _ in range(50):
            with time_limit(60, DataError("late")):
                pass
        return True

    assert in_a_thread(many)
    assert threading.active_count() <= threads


def hanging_import(tmp_path):
    (tmp_path / "mine.py").write_text("while True: pass")
    build_selector(f"{tmp_path / 'mine.py'}:Mine")


def test_an_import_that_hangs_in_a_thread_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("longgame.registry.IMPORT_SECONDS", 0.3)
    with pytest.raises(PluginError, match=r"mine\.py' was not imported within 0\.3 seconds"):
        in_a_thread(lambda: hanging_import(tmp_path))


def endless_template(tmp_path):
    (tmp_path / "t.jinja").write_text(
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ a + b }}{% endfor %}{% endfor %}{{ eos_token }}"
    )
    load_tokenizer(ModelSpec(name="tiny", chat_template=str(tmp_path / "t.jinja")))


def test_a_template_without_end_in_a_thread_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("longgame.models.load.TEMPLATE_SECONDS", 0.3)
    with pytest.raises(ModelError, match="was not rendered within"):
        in_a_thread(lambda: endless_template(tmp_path))


GOLD = r"$\frac{\sqrt3}{2}$"


@pytest.mark.parametrize(("text", "right"), [(r"\boxed{\frac12\sqrt3}", True), (r"\boxed{\frac13\sqrt3}", False)])
def test_formulas_are_compared_in_a_thread_as_in_the_main_one(text, right):
    example = Example.make("p", GOLD, answer=GOLD)
    assert in_a_thread(lambda: matches(example, text)) == matches(example, text) == right


def test_data_and_models_are_loaded_in_a_thread(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"prompt": "p", "response": "r"}\n')
    load = lambda: load_examples(str(tmp_path / "d.jsonl"), data_dir=None, split="train")  # noqa: E731
    assert in_a_thread(load) == load()
    assert in_a_thread(lambda: load_model(ModelSpec(name="tiny")).source) == load_model(ModelSpec(name="tiny")).source


def _burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.mark.parametrize("main", [True, False], ids=["main thread", "another thread"])
def test_a_processor_limit_counts_its_own_thread_alone(main):
    outcomes: list[str] = []

    def limited() -> None:
        for work in (lambda: time.sleep(0.4), lambda: _burn(0.1), lambda: _burn(60)):
            try:
                with time_limit(0.2, DataError("late"), of_processor=True):
                    work()
                outcomes.append("done")
            except DataError:
                outcomes.append("late")

    stop = threading.Event()

    def beside() -> None:
        while not stop.is_set():
            pass

    other = threading.Thread(target=beside, daemon=True)
    other.start()
    try:
        if main:
            limited()
        else:
            thread = threading.Thread(target=limited)
            thread.start()
            thread.join()
    finally:
        stop.set()
        other.join()
    assert outcomes == ["done", "done", "late"]
