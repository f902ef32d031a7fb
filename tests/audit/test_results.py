"""results.parquet stands for thousands of files, as long as it was made of just these."""

import os
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longgame.audit import results
from longgame.audit.results import sorted_rows, stamp_of, write_results
from longgame.audit.run import Run
from longgame.audit.store import RECORD_COLUMNS, records_table
from longgame.errors import ResumeError
from longgame.recipe import parse_recipe
from longgame.storage import write_table


@pytest.fixture
def run(tmp_path):
    recipe = parse_recipe({"name": "t", "selectors": ["random", "loss"], "seeds": [0, 1], "axes": {"budget": [0.5]}})
    run = Run.create(tmp_path / "run", recipe)
    for trial in run.plan.trials:
        shared = run.seed_store(trial.seed, trial.condition)
        if not shared.has("base"):
            with shared.writing("base") as part:
                write_table(part / "records.parquet", records_table([row(trial, 0, "", selector="")]))
        for stage in (1, 2):
            finish(run, trial, stage)
    return run


def row(trial, stage, name, value=0.5, selector=None):
    who = {"trial": name, "selector": trial.selector.key if selector is None else selector, "seed": trial.seed}
    return {**who, "kind": "score", "stage": stage, "task": "a", "scorer": "exact_match", "value": value}


def finish(run, trial, stage, value=0.5):
    with run.trial_store(trial).writing(f"stage-{stage}") as part:
        write_table(part / "records.parquet", records_table([row(trial, stage, trial.name, value)]))


def stamp(run):
    return stamp_of(run.folder, run.plan, run.finished_stages)


def test_a_table_that_was_made_of_these_stages_is_read_instead_of_them(run, monkeypatch):
    frame = run.results
    assert len(frame) == 8 * 3
    assert list(frame.condition.cat.categories) == ["", "budget=0.5"]
    write_results(run.folder, stamp(run), run.results)
    monkeypatch.setattr(results, "gather", lambda *_: pytest.fail("the trials were read"))
    pd.testing.assert_frame_equal(Run.open(run.folder).results, frame)


def test_a_stage_that_was_done_again_or_added_or_a_damaged_table_is_seen(run):
    write_results(run.folder, stamp(run), run.results)
    shutil.rmtree(run.trial_store(run.plan.trials[0]).folder)
    assert len(Run.open(run.folder).results) == 7 * 3
    for stage in (1, 2):
        finish(run, run.plan.trials[0], stage, value=0.75)
    again = Run.open(run.folder)
    assert (again.results[again.results.trial == run.plan.trials[0].name].value == 0.75).sum() == 2
    write_results(run.folder, stamp(again), again.results)
    os.truncate(run.folder / "results.parquet", 50)
    pd.testing.assert_frame_equal(Run.open(run.folder).results, again.results)


def test_a_run_with_nothing_finished_has_an_empty_table_of_all_columns(tmp_path):
    recipe = parse_recipe({"name": "t", "selectors": ["random"], "seeds": [0]})
    frame = Run.create(tmp_path / "run", recipe).results
    assert frame.empty
    assert set(RECORD_COLUMNS) < set(frame.columns)


def test_rows_are_sorted_as_by_all_columns_however_wide_their_range():
    rng = np.random.default_rng(0)
    rows = []
    for number in range(400):
        trial, task, skill = (f"{letter}{rng.integers(7)}" for letter in "txs")
        who = {"trial": trial, "selector": "a", "seed": 0, "kind": "curve", "stage": int(rng.integers(5)), "value": 0.0}
        rows.append(who | {"task": task, "sub_skill": skill, "step": int(rng.integers(2**40)), "tokens": number})
    frame = records_table([row for row in rows for _ in range(2)])
    order = ["trial", "kind", "stage", "probe", "task", "scorer", "sub_skill", "name", "step"]
    text = {name: "category" for name, kind in RECORD_COLUMNS.items() if kind == "string"}
    expected = frame.sort_values(order, kind="stable").index.to_numpy()
    np.testing.assert_array_equal(sorted_rows(frame.astype(text)), expected)


def test_a_table_edited_by_hand_is_made_again_of_the_stages(run):
    write_results(run.folder, stamp(run), run.results)
    path = run.folder / "results.parquet"
    table = pq.read_table(path)
    frame = table.to_pandas().assign(value=99.0)
    pq.write_table(
        pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(table.schema.metadata), path
    )
    assert set(Run.open(run.folder).results.value) == {0.5}


def test_stages_of_another_recipe_under_these_names_are_refused(run):
    write_results(run.folder, stamp(run), run.results)
    other = Run(run.folder, run.recipe.replace({"training.steps": 7}))
    with pytest.raises(ResumeError, match="was made by another recipe"):
        _ = other.results


@pytest.mark.parametrize("part", ["seeds/seed-0/base.zip", "trials/loss-s0/stage-1.zip"])
def test_a_missing_part_below_finished_stages_is_named(run, part):
    (run.folder / part).unlink()
    with pytest.raises(ResumeError, match=rf"{part} cannot be read .*Delete .*run the command again"):
        _ = Run.open(run.folder).results
