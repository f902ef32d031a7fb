"""The run that the report's benchmark makes is one: finished, of as many trials as asked for, and told whole."""

from __future__ import annotations

from pathlib import Path

from longgame.audit.loaded import load_picks, load_run
from suite.report import run_of_many


def test_every_trial_of_the_made_run_is_finished_and_read(tmp_path: Path) -> None:
    run = run_of_many(tmp_path, 15)
    loaded = load_run(run.folder)
    assert loaded.finished
    assert len(loaded.trials) == loaded.scorecard.per_trial["trial"].nunique() == 15
    picks = load_picks(loaded)
    assert picks is not None
    assert (picks.seeds, picks.tables) == (3, 15 * len(loaded.plan.stages))
    first, second = (loaded.scorecard.per_trial.query("selector == 'loss' and seed == @seed") for seed in (0, 1))
    assert (first["value"].to_numpy() != second["value"].to_numpy()).any()  # noise tells the copies apart
