"""The made runs that the tables and the report are timed on have as many trials as they should."""

import numpy as np

from benchmarks.audit import audited, many_trials, small
from benchmarks.report import run_of_many
from longgame.audit.learner import outline
from longgame.audit.run import load_run
from longgame.metrics.scorecard import Scorecard
from longgame.recipe import parse_recipe


def test_many_trials_are_whole_conditions_of_distinct_trials():
    recipe = parse_recipe({**small("quadratic", True).model_dump(mode="json"), "seeds": [0], "axes": {}})
    single = audited(recipe, 1)
    many = many_trials(recipe, single, trials=24, conditions=3)
    assert many.trial.nunique() == 24
    assert len(many) == 24 / single.trial.nunique() * len(single)
    trials = many[["trial", "selector", "seed", "condition"]].drop_duplicates()
    assert len(trials) == 24
    assert (trials.groupby("condition", observed=True).size() == 8).all()
    plan = outline(recipe)
    card = Scorecard.build(
        many[many.condition == ""],
        tasks=plan.stages,
        ood=plan.ood,
        primary=plan.primary,
        metric_spec=recipe.metrics,
        threshold=0.9,
    )
    assert len(card.trials) == 8
    assert np.isfinite(card.wide(["long_horizon"]).to_numpy()).all()


def test_every_trial_of_the_made_run_is_finished_and_read(tmp_path):
    run = run_of_many(tmp_path, 15)
    loaded = load_run(run.folder)
    assert loaded.finished
    assert len(loaded.plan.own_trials) == loaded.scorecard.per_trial["trial"].nunique() == 15
    picks = loaded.picks
    assert picks is not None
    assert (picks.seeds, picks.tables) == (3, 15 * len(loaded.plan.stages))
    first, second = (loaded.scorecard.per_trial.query("selector == 'loss' and seed == @seed") for seed in (0, 1))
    assert (first["value"].to_numpy() != second["value"].to_numpy()).any()  # noise tells the copies apart
