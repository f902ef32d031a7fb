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


def measured(folder):
    frame = pd.read_parquet(folder / "results.parquet")
    return frame[frame.unit != "s"].reset_index(drop=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    home = tmp_path_factory.mktemp("undisturbed")
    (home / "small.yaml").write_text(RECIPE)
    begun = time.monotonic()
    done = longgame("audit", "small.yaml", "--workers", 2, "--threads", 1, cwd=home)
    assert done.returncode == 0, done.stderr
    return measured(home / "runs" / "small"), time.monotonic() - begun


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.45, 0.7, 0.9])
def test_killed_at_any_moment_and_started_again_ends_with_the_same_numbers(tmp_path, undisturbed, share):
    expected, seconds = undisturbed
    (tmp_path / "small.yaml").write_text(RECIPE)
    arguments = ("audit", "small.yaml", "--workers", 2, "--threads", 1)
    process = start(*arguments, cwd=tmp_path)
    time.sleep(share * seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = longgame(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(expected, measured(tmp_path / "runs" / "small"), check_exact=True)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_workers_end_when_only_their_parent_is_killed(tmp_path, undisturbed):
    expected, seconds = undisturbed
    (tmp_path / "small.yaml").write_text(RECIPE)
    arguments = ("audit", "small.yaml", "--workers", 2, "--threads", 1)
    process = start(*arguments, cwd=tmp_path)
    time.sleep(0.6 * seconds)
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
    done = longgame(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(expected, measured(tmp_path / "runs" / "small"), check_exact=True)


@pytest.mark.slow
def test_ctrl_c_ends_with_one_sentence_and_keeps_what_is_finished(tmp_path, undisturbed):
    _, seconds = undisturbed
    (tmp_path / "small.yaml").write_text(RECIPE)
    process = start("audit", "small.yaml", "--workers", 2, "--threads", 1, cwd=tmp_path)
    time.sleep(0.75 * seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"stopped. Finished stages are safe" in errors
    assert b"Traceback" not in errors
    assert (tmp_path / "runs" / "small" / "seeds" / "seed-0" / "base" / "done.json").is_file()
