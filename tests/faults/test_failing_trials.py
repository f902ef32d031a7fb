"""A failing trial is named with its reason wherever a run is shown; the others are finished."""

import json

import pandas as pd
import pytest
import yaml

from longgame.audit.execute import run_audit
from longgame.audit.learner import QuadraticWorlds
from longgame.audit.run import Run
from longgame.engines.local import Job, WorkerError, run_here, run_local
from longgame.errors import DataError, LonggameError, PluginError, StorageError
from longgame.report.render import write_report
from support import jobs
from support.cli import longgame_here
from support.quadratic_audit import Silent, recipe

SELECTOR = """
import os, signal
import numpy as np
from longgame import Selector

class Mine(Selector):
    name = "mine"
    stages = 0  # a probe begins the next one

    def begin_stage(self):
        self.stages += 1

    def score(self, pool, signals, history):
        if self.stages >= {stage}:
            {act}
        return np.arange(len(pool))
"""
FAILURES = {
    "raises": ("raise ValueError('no such key')", "failed in select.*ValueError: no such key"),
    "exits": ("os._exit(0)", r"os\._exit\(0\)"),
    "leaves": ("raise SystemExit(0)", "SystemExit: 0"),
    "stops": ("raise GeneratorExit", "GeneratorExit"),
    "text": ("return ['x'] * len(pool)", "holds <U1 values"),
    "escapes": ("raise ValueError(chr(27) + '[31mred')", r"ValueError: \\x1b\[31mred"),
}
SMALL = {"seeds": [0], "metrics": {"bootstrap": 100}}


def selector(folder, act, stage=3):
    (folder / "mine.py").write_text(SELECTOR.format(act=act, stage=stage))
    return f"{folder / 'mine.py'}:Mine"


def small(folder, act, stage=3, **changes):
    name = {"name": selector(folder, act, stage), "label": "mine"}
    return recipe(selectors=["random", name, "loss"], **{**SMALL, **changes})


def numbers(run):
    table = run.results[(run.results.unit != "s") & (run.results.selector != "mine")]
    return table.drop(columns=["trial", "selector"]).reset_index(drop=True)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """The numbers of the other trials, where none fails."""
    run = run_audit(
        recipe(selectors=["random", "loss"], **SMALL),
        tmp_path_factory.mktemp("others") / "q",
        workers=1,
        threads=1,
        display=Silent(),
    )
    return numbers(run)


@pytest.mark.parametrize(("act", "reason"), FAILURES.values(), ids=FAILURES)
def test_the_others_finish_and_the_failed_trial_is_named(tmp_path, others, act, reason, monkeypatch):
    texts = ["scorecard.md"]
    if act == FAILURES["escapes"][0]:
        texts.append("report.html")
    else:  # whose charts take most of the time
        monkeypatch.setattr("longgame.report.render.html_page", lambda *_: "page")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(small(tmp_path, act).model_dump(mode="json")))
    done = longgame_here("audit", "r.yaml", "--out", "q", "--workers", 1, "--threads", 1, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    run = Run.open(tmp_path / "q")
    pd.testing.assert_frame_equal(numbers(run), others, check_exact=True)
    assert run.finished_stages == {"random-s0": 3, "mine-s0": 1, "loss-s0": 3}
    assert list(run.failures) == ["mine-s0"]
    for text in (done.stderr, *((run.folder / name).read_text() for name in texts)):
        assert "1 of 3 trials failed: mine-s0" in text
        assert "\x1b" not in text.partition("<script")[0]
    assert pd.Series([done.stderr.replace("\n", " ")]).str.contains(reason, regex=True).all(), done.stderr
    assert "Traceback" not in done.stderr


def test_a_mended_trial_goes_on_and_the_failure_is_forgotten(tmp_path):
    broken = small(tmp_path, "raise ValueError('broken')", stage=1)
    display = Silent()
    run = run_audit(broken, tmp_path / "q", workers=1, threads=1, display=display)
    assert list(display.failures) == ["mine-s0"]
    with pytest.raises(LonggameError, match="1 of 3 trials failed: mine-s0: .*broken.* Mend the cause"):
        run.check_failures()
    selector(tmp_path, "pass")
    again = run_audit(broken, tmp_path / "q", workers=1, threads=1, display=Silent())
    again.check_failures()
    assert again.finished
    assert not (tmp_path / "q" / "failures.json").exists()


def test_fail_fast_ends_at_the_first_failed_trial(tmp_path):
    broken = small(tmp_path, "raise ValueError('broken')", stage=1)
    with pytest.raises(PluginError, match="broken"):
        run_audit(broken, tmp_path / "q", workers=1, threads=1, display=Silent(), fail_fast=True)
    assert not (tmp_path / "q" / "results.parquet").exists()


def test_an_audit_in_which_all_fails_ends_with_the_first_reason(tmp_path):
    name = {"name": selector(tmp_path, "raise ValueError('broken')", 1), "label": "mine"}
    alone = recipe(selectors=[name], **{**SMALL, "metrics": {"bootstrap": 100, "reference": "mine"}})
    with pytest.raises(PluginError, match="selector 'mine' failed in select.*broken"):
        run_audit(alone, tmp_path / "q", workers=1, threads=1, display=Silent())


def test_a_damaged_list_of_failures_is_named(tmp_path):
    run = run_audit(small(tmp_path, "raise ValueError('x')"), tmp_path / "q", workers=1, threads=1, display=Silent())
    path = run.folder / "failures.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "trials": {"mine-s0": "nothing"}}))
    with pytest.raises(LonggameError, match=r"failures\.json cannot be read .* Delete"):
        _ = Run.open(run.folder).failures


@pytest.mark.parametrize("act", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)"])
def test_a_worker_that_is_ended_fails_its_trial_alone(tmp_path, others, act, monkeypatch):
    monkeypatch.setattr(QuadraticWorlds, "process_trials", 0)
    run = run_audit(small(tmp_path, act), tmp_path / "q", workers=2, threads=1, display=Silent())
    assert list(run.failures) == ["mine-s0"]
    pd.testing.assert_frame_equal(numbers(run), others, check_exact=True)


@pytest.mark.parametrize("engine", [run_here, lambda todo, *rest: run_local(todo, 2, *rest)])
def test_jobs_that_wait_for_a_failed_one_fail_with_it(tmp_path, engine):
    todo = [
        Job("base", jobs.fail, ("line 7 is empty",)),
        Job("a", jobs.write_threads, (str(tmp_path), "a"), after="base"),
        Job("b", jobs.write_threads, (str(tmp_path), "b"), after="a"),
        Job("free", jobs.write_threads, (str(tmp_path), "free")),
    ]
    errors, finished = {}, []
    engine(todo, 1, lambda *_: None, finished.append, errors.__setitem__)
    assert finished == ["free"]
    assert {name: type(error) for name, error in errors.items()} == dict.fromkeys(("base", "a", "b"), DataError)
    assert str(errors["b"]).endswith("base, which it needs, failed: line 7 is empty")


def test_processes_that_end_without_a_word_are_errors(tmp_path):
    todo = [
        Job("zero", jobs.leave, (0,)),
        Job("seven", jobs.leave, (7,)),
        Job("killed", jobs.kill_self, ()),
        Job("free", jobs.write_threads, (str(tmp_path), "free")),
    ]
    errors, finished = {}, []
    run_local(todo, 2, 1, lambda *_: None, finished.append, errors.__setitem__)
    assert finished == ["free"]
    assert {name: type(error) for name, error in errors.items()} == dict.fromkeys(
        ("zero", "seven", "killed"), WorkerError
    )
    assert "exit code 0" in str(errors["zero"])
    assert "exit code 7" in str(errors["seven"])
    assert "out of memory" in str(errors["killed"])


def test_a_full_disk_ends_all_trials(tmp_path, monkeypatch):
    def full(*_):
        raise StorageError("the disk is full")

    monkeypatch.setattr("longgame.audit.walk.Walk.save", full)
    with pytest.raises(StorageError, match="the disk is full"):
        run_audit(recipe(**SMALL), tmp_path / "q", workers=1, threads=1, display=Silent())


def test_a_failed_reference_is_not_measured(tmp_path):
    broken = small(tmp_path, "raise ValueError('x')", 1, metrics={"bootstrap": 100, "reference": "mine"})
    run = run_audit(broken, tmp_path / "q", workers=1, threads=1, display=Silent())
    write_report(run)
    assert "1 of 3 trials failed: mine-s0" in (run.folder / "scorecard.md").read_text()
