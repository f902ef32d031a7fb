import errno
import fcntl
import os
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from safetensors import SafetensorError

from longgame.audit.parts import FinishedPart
from longgame.audit.plan import Trial
from longgame.audit.run import Run
from longgame.audit.store import StageStore, records_table
from longgame.errors import ResumeError, StorageError
from longgame.recipe import SelectorSpec, parse_recipe
from longgame.storage import (
    durable_folder,
    read_arrays,
    write_arrays,
    write_file,
    write_table,
)
from support.run_parts import as_older_version


def recipe(**more):
    return parse_recipe({"name": "t", "selectors": ["random", "loss"], "seeds": [0, 1], **more})


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), durable_folder(tmp_path / "a") as part:
        (part / "x").write_text("1")
        assert not (tmp_path / "a").exists()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with durable_folder(tmp_path / "a") as part:
        (part / "x").write_text("1")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "x").read_text() == "1"


def test_scratch_of_a_killed_process_gives_way_and_that_of_a_living_one_stays(tmp_path):
    for name in ("a.4242.part", "a.4243.part", "ab.4242.part", "mine.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("1")
    living = os.open(tmp_path / "a.4243.part", os.O_RDONLY)
    fcntl.flock(living, fcntl.LOCK_EX)
    with durable_folder(tmp_path / "a") as part:
        mine = os.open(part, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(mine)
    os.close(living)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.4243.part", "ab.4242.part", "mine.part"]


def test_a_full_disk_is_one_clear_sentence_and_leaves_the_old_file(tmp_path, monkeypatch):
    write_file(tmp_path / "f", "old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left on device.*what was finished stays"):
        write_file(tmp_path / "f", "new")
    with pytest.raises(StorageError), durable_folder(tmp_path / "d") as part:
        (part / "x").write_text("1")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_text() == "old"


@pytest.mark.parametrize("error", [SafetensorError("I/O error: No space left"), pa.ArrowInvalid("No space left")])
def test_a_failed_write_of_a_library_is_told_like_any_other(tmp_path, error):
    said = r"cannot write .*No space left.*what was finished stays"
    with pytest.raises(StorageError, match=said), durable_folder(tmp_path / "d"):
        raise error
    assert list(tmp_path.iterdir()) == []


def finish_a_stage(run):
    with run.trial_store(Trial(SelectorSpec(name="loss"), 0)).writing("stage-1") as part:
        (part / "x").write_text("1")


def test_a_folder_left_without_its_mark_gives_way_to_the_finished_one(tmp_path):
    run = Run.create(tmp_path / "run", recipe())
    finish_a_stage(run)
    as_older_version(run.folder)
    stage = run.folder / "trials" / "loss-s0" / "stage-1"
    (stage / "done.json").unlink()
    (stage / "x").write_text("old")
    finish_a_stage(run)
    assert FinishedPart.find(stage.parent, "stage-1").read("x") == b"1"
    assert not stage.exists()


def test_a_part_is_one_file_with_its_folders_beside_it(tmp_path):
    for _ in range(2):  # written again, it is the same
        with StageStore(tmp_path, "a").writing("stage-1") as part:
            (part / "x").write_text("1")
            (part / "learner").mkdir()
            (part / "learner" / "weights").write_text("2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage-1.learner", "stage-1.zip"]
    part = StageStore(tmp_path, "a").part("stage-1")
    part.check()
    assert (part.read("x"), (part.folder("learner") / "weights").read_text()) == (b"1", "2")
    with zipfile.ZipFile(part.path) as archive:
        assert archive.namelist() == ["done.json", "x"]
    (part.folder("learner") / "weights").write_text("3")
    with pytest.raises(ResumeError, match=r"stage-1\.zip/learner/weights cannot be read .*not what was written"):
        part.check()


def test_a_part_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), StageStore(tmp_path, "a").writing("stage-1") as part:
        (part / "learner").mkdir()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_part_with_a_compressed_file_is_refused(tmp_path):
    with StageStore(tmp_path, "a").writing("stage-1") as part:
        (part / "x").write_bytes(b"0" * 10_000)
    path = tmp_path / "stage-1.zip"
    with zipfile.ZipFile(path) as archive:
        files = {info: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in files.items():
            archive.writestr(info, content, zipfile.ZIP_DEFLATED if info.filename == "x" else zipfile.ZIP_STORED)
    with pytest.raises(ResumeError, match=r"stage-1\.zip/x cannot be read \(it is compressed\)"):
        StageStore(tmp_path, "a").part("stage-1").read("x")


def test_a_recipe_that_finished_nothing_leaves_the_directory_to_the_next_one(tmp_path):
    Run.create(tmp_path / "run", recipe(budget=0.5))
    write_file(tmp_path / "run" / "environment.json", "{}")
    Run.create(tmp_path / "run", recipe())
    assert Run.open(tmp_path / "run").recipe.replace({"relative_to": ()}) == recipe()
    assert not (tmp_path / "run" / "environment.json").exists()


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path):
    (tmp_path / "f").write_text("x")
    with pytest.raises(StorageError, match="is a file; results need a directory"):
        Run.create(tmp_path / "f", recipe())
    with pytest.raises(StorageError, match="cannot write"):
        Run.create(tmp_path / "f" / "run", recipe())


def test_the_data_may_lie_elsewhere_when_a_run_goes_on(tmp_path):
    finish_a_stage(Run.create(tmp_path / "run", recipe(data={"data_dir": "here"})))
    again = Run.create(tmp_path / "run", recipe(data={"data_dir": "there"}))
    assert again.recipe.data.data_dir == "here"  # what finished stages are keyed by


def test_a_damaged_file_of_a_trial_names_the_trial_to_delete(tmp_path):
    run = Run.create(tmp_path / "run", recipe())
    finish_a_stage(run)
    os.truncate(run.folder / "trials" / "loss-s0" / "stage-1.zip", 20)
    with pytest.raises(ResumeError, match=r"done\.json cannot be read .* Delete .*trials/loss-s0 and run"):
        run.trial_store(Trial(SelectorSpec(name="loss"), 0)).finished_stages(5)


def test_a_changed_recipe_is_refused_with_the_differing_keys(tmp_path):
    finish_a_stage(Run.create(tmp_path / "run", recipe()))
    Run.create(tmp_path / "run", recipe())
    with pytest.raises(ResumeError, match=r"budget: 0\.25 there, 0\.5 now") as caught:
        Run.create(tmp_path / "run", recipe(budget=0.5, training={"steps": 8, "warmup_steps": 1}, probe={"steps": 6}))
    assert "training.steps: 32 there, 8 now" in str(caught.value)
    assert "pool_size" not in str(caught.value)


def test_a_directory_with_other_things_in_it_is_refused(tmp_path):
    (tmp_path / "precious").write_text("x")
    with pytest.raises(ResumeError, match="not empty and holds no run"):
        Run.create(tmp_path, recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_opening_a_run_clears_scratch_and_keeps_what_is_finished(tmp_path):
    run = Run.create(tmp_path / "run", recipe())
    store = run.trial_store(Trial(SelectorSpec(name="loss"), 0))
    with store.writing("stage-1") as part:
        (part / "x").write_text("1")
    stale = [run.folder / "trials" / "loss-s0" / f"{name}.99999.part" for name in ("stage-2", "stage-2.zip")]
    stale[0].mkdir()
    (stale[0] / "half").write_text("1")
    stale[1].write_text("half")
    Run.create(tmp_path / "run", recipe())
    assert not any(path.exists() for path in stale)
    assert store.finished_stages(5) == 1


def test_a_stage_of_another_recipe_is_an_error_and_never_used(tmp_path):
    with StageStore(tmp_path, "a").writing("stage-1") as part:
        (part / "x").write_text("1")
    assert StageStore(tmp_path, "a").has("stage-1")
    with pytest.raises(ResumeError, match="made by another recipe"):
        StageStore(tmp_path, "b").has("stage-1")


def test_a_stage_counts_as_finished_only_when_all_before_it_are(tmp_path):
    store = StageStore(tmp_path, "a")
    for name in ("stage-1", "stage-3"):
        with store.writing(name):
            pass
    assert store.finished_stages(5) == 1


def test_a_trial_does_not_depend_on_its_siblings(tmp_path):
    one = Run(tmp_path, recipe()).trial_store(Trial(SelectorSpec(name="loss"), 0))
    two = Run(tmp_path, recipe(seeds=[0], name="u", selectors=["loss"])).trial_store(
        Trial(SelectorSpec(name="loss"), 0)
    )
    other = Run(tmp_path, recipe(budget=0.5)).trial_store(Trial(SelectorSpec(name="loss"), 0))
    assert one.key == two.key != other.key


def test_row_zero_stands_for_every_trial_of_its_seed_and_nan_stays_nan(tmp_path):
    run = Run.create(tmp_path / "run", recipe())
    row = {"kind": "score", "task": "a", "scorer": "exact_match", "value": float("nan")}
    for seed in (0, 1):
        with run.seed_store(seed).writing("base") as part:
            table = records_table([{"trial": "", "selector": "", "seed": seed, "stage": 0, **row}])
            write_table(part / "records.parquet", table)
        for name in ("random", "loss"):
            trial = f"{name}-s{seed}"
            with run.trial_store(Trial(SelectorSpec(name=name), seed)).writing("stage-1") as part:
                rows = [{"trial": trial, "selector": name, "seed": seed, "stage": 1, **row, "value": 50.0}]
                write_table(part / "records.parquet", records_table(rows))
    records = run.results
    assert len(records) == 8
    assert records.loc[records.stage == 0, "trial"].tolist() == ["loss-s0", "loss-s1", "random-s0", "random-s1"]
    assert records.loc[records.stage == 0, "value"].isna().all()
    assert records.loc[records.stage == 0, "value"].isna().sum() == 4


def test_arrays_round_trip_and_a_damaged_file_is_named(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2], dtype=np.int64)}
    path = tmp_path / "x.safetensors"
    write_arrays(path, arrays)
    again = read_arrays(path.read_bytes(), path)
    assert all(
        np.array_equal(again[name], value) and again[name].dtype == value.dtype for name, value in arrays.items()
    )
    os.truncate(path, 20)
    with pytest.raises(ResumeError, match=r"x\.safetensors cannot be read"):
        read_arrays(path.read_bytes(), path)
