"""The results that the tables are timed on are those of as many trials, each condition and seed whole."""

import numpy as np

from longgame.audit.learner import outline
from longgame.metrics.scorecard import Scorecard
from longgame.recipe import parse_recipe
from suite.audit import audited, many_trials, small


def test_many_trials_are_whole_conditions_of_distinct_trials():
    recipe = parse_recipe({**small("quadratic", True).model_dump(mode="json"), "seeds": [0], "axes": {}})
    one = audited(recipe, 1)
    many = many_trials(recipe, one, trials=24, conditions=3)
    assert many.trial.nunique() == 24
    assert len(many) == 24 / one.trial.nunique() * len(one)
    who = many[["trial", "selector", "seed", "condition"]].drop_duplicates()
    assert len(who) == 24
    assert (who.groupby("condition", observed=True).size() == 8).all()
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
