"""SIGKILL at any moment, then the same command: the numbers of an undisturbed run (tiny substrate, one thread)."""

import os
import signal
import time

import pandas as pd
import pytest

from support.cli import longgame, start

RECIPE = """
name: small
model: {name: tiny}
data: {pool_size: 60, items_per_skill: 2, ood_items_per_skill: 1}
selectors: [loss, lhas]
seeds: [0]
training: {steps: 4, warmup_steps: 1}
probe: {kinds: [common, own], steps: 2, points: 3}
metrics: {gradient_every: 2}
"""


AUDIT = ("audit", "small.yaml", "--workers", 2, "--threads", 1)


def measured(folder):
    frame = pd.read_parquet(folder / "results.parquet")
    return frame[frame.unit != "s"].reset_index(drop=True)


def start_and_wait_for(home, pattern, extra):
    """Start the audit and come back ``extra`` seconds after something in the run directory matches the pattern."""
    (home / "small.yaml").write_text(RECIPE)
    process = start(*AUDIT, cwd=home)
    deadline = time.monotonic() + 240
    while not any((home / "runs" / "small").glob(pattern)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(extra)
    assert process.poll() is None, "the audit ended before it could be disturbed"
    return process


def finish(home, expected):
    done = longgame(*AUDIT, cwd=home)
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(expected, measured(home / "runs" / "small"), check_exact=True)
    assert not list(home.rglob("*.part"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    home = tmp_path_factory.mktemp("undisturbed")
    (home / "small.yaml").write_text(RECIPE)
    done = longgame(*AUDIT, cwd=home)
    assert done.returncode == 0, done.stderr
    return measured(home / "runs" / "small")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "extra"),
    [
        ("seeds/seed-0/base.zip", 0.5),
        ("trials/*/stage-1.zip", 0.2),
        ("trials/*/stage-2*", 0.0),
        ("trials/*/stage-3*", 0.05),
    ],
)
def test_killed_audit_resumes_with_the_same_numbers(tmp_path, undisturbed, pattern, extra):
    process = start_and_wait_for(tmp_path, pattern, extra)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finish(tmp_path, undisturbed)


@pytest.mark.slow
def test_workers_end_when_only_their_parent_is_killed(tmp_path, undisturbed):
    process = start_and_wait_for(tmp_path, "trials/*/stage-1.zip", 0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.2)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("a worker outlived its parent by 20 s")
    finish(tmp_path, undisturbed)


@pytest.mark.slow
def test_ctrl_c_ends_with_one_sentence_and_keeps_stages(tmp_path, undisturbed):
    process = start_and_wait_for(tmp_path, "trials/*/stage-1.zip", 0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"stopped. Finished stages are safe" in errors
    assert b"Traceback" not in errors
    assert list((tmp_path / "runs" / "small").glob("trials/*/stage-1.zip"))
    finish(tmp_path, undisturbed)


@pytest.mark.slow
def test_second_audit_in_the_same_directory_is_refused(tmp_path, undisturbed):
    process = start_and_wait_for(tmp_path, "seeds/seed-0/base.zip", 0.0)
    second = longgame(*AUDIT, cwd=tmp_path)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert second.returncode == 1
    assert "another audit is at work" in second.stderr
