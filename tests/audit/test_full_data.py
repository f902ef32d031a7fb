"""The full-data trial: every candidate is learned, and nothing else of the run changes."""

from pathlib import Path

import pandas as pd
import pytest

from longgame.audit.estimate import Rates, estimate
from longgame.audit.plan import FULL_DATA, expand
from longgame.audit.run import Run
from longgame.errors import RecipeError
from support.quadratic_audit import recipe, walk


def cost(results, trial, name):
    return results.query("trial == @trial and kind == 'cost' and name == @name").value.to_numpy()


@pytest.mark.parametrize("schedule", [{"rounds": "step"}, {"rounds": 1, "training": {"steps": 6, "epochs": 2}}])
def test_every_token_is_learned_as_often_as_a_pick_in_steps_of_equal_size(tmp_path, schedule):
    results = walk(tmp_path / "q", seeds=[0], full_data=True, **schedule)[0].results
    epochs = schedule.get("training", {}).get("epochs", 1)
    full, part = "all-data-s0@full-data", "random-s0"
    offered = cost(results, part, "candidate_tokens")
    assert (cost(results, full, "selected_tokens") == offered).all()
    assert (cost(results, full, "optimiser_tokens") == epochs * offered).all()
    assert (cost(results, full, "selected_examples") == 64).all()
    (own, whole) = expand(recipe(full_data=True, **schedule))
    assert (own.recipe.training.steps, whole.recipe.training.steps) == (6, 24)
    a_step = [cost(results, t, "optimiser_tokens") / n for t, n in ((full, 24), (part, 6))]
    assert a_step[0] == pytest.approx(a_step[1], rel=0.1)


def test_the_schedule_is_stretched_and_the_probe_is_not(tmp_path):
    (_, whole) = expand(recipe(full_data=True, budget=0.1, training={"steps": 6, "warmup_steps": 2}))
    assert (whole.recipe.training.steps, whole.recipe.training.warmup_steps) == (60, 20)
    results = walk(tmp_path / "q", seeds=[0], full_data=True)[0].results
    curves = results[(results.kind == "curve") & (results.probe == "common")]
    last = curves.groupby(["trial", "stage"], observed=True).agg(step=("step", "max"), tokens=("tokens", "max"))
    assert (last.loc["all-data-s0@full-data"].step == 4).all()
    ratio = last.loc["all-data-s0@full-data"].tokens / last.loc["random-s0"].tokens
    assert ratio.between(0.6, 1.5).all()
    assert set(results[results.condition == FULL_DATA].probe.unique()) <= {"", "common"}


def test_it_competes_with_no_selector(tmp_path):
    with_full, alone = walk(tmp_path / "a", full_data=True)[0], walk(tmp_path / "b")[0]
    assert with_full.across is None
    assert with_full.scorecard.trials.selectors == ("random", "loss")
    for table in ("summary", "verdicts", "reversals", "set_gap", "sensitivity"):
        held, other = (getattr(result.scorecard, table) for result in (with_full, alone))
        if table == "summary":
            # the imbalance divides by the all-data scores where there are any
            held, other = (part[~part.metric.str.contains("seconds|^imbalance$")] for part in (held, other))
        pd.testing.assert_frame_equal(held, other)
    assert set(with_full.results.condition.unique()) == {"", FULL_DATA}


def test_it_is_added_to_a_finished_run_whose_trials_are_kept(tmp_path):
    walk(tmp_path / "q")
    marks = {path: path.stat().st_mtime_ns for path in (tmp_path / "q" / "trials").rglob("*.zip")}
    _, done = walk(tmp_path / "q", full_data=True)
    assert sorted(done) == ["all-data-s0@full-data", "all-data-s1@full-data"]
    assert all(path.stat().st_mtime_ns == when for path, when in marks.items())
    with_axis, done = walk(tmp_path / "q", full_data=True, axes={"budget": [0.5]})
    assert sorted(done) == [f"{name}-s{seed}@budget=0.5" for name in ("loss", "random") for seed in (0, 1)]
    assert list(with_axis.across.cards) == ["", "budget=0.5"]


def test_it_changes_no_key_of_another_trial():
    plain, asked = (Run(Path("run"), recipe(full_data=value)) for value in (False, True))
    keys = {trial.name: asked.trial_store(trial).key for trial in asked.plan.trials}
    assert {trial.name: plain.trial_store(trial).key for trial in plain.plan.trials} == {
        name: key for name, key in keys.items() if "@" not in name
    }
    assert plain.seed_store(0).key == asked.seed_store(0, FULL_DATA).key
    assert len(set(keys.values())) == len(keys)


def test_its_cost_is_planned():
    rates = Rates(forward=1e5, backward=1e4, items=1e3, step=0.1, startup=1.0)
    own, whole = (estimate(each.recipe, 1, rates) for each in expand(recipe(full_data=True)))
    (random, loss), (full,) = own.trials, whole.trials
    assert full.selector == "all data"
    assert full.scored_tokens == random.scored_tokens == 0
    assert full.trained_tokens > 2 * loss.trained_tokens


def test_a_pool_too_small_for_its_steps_is_told_before_any_work():
    with pytest.raises(RecipeError, match="condition 'full-data': .*pool_size is 64, fewer than one .* 600 steps"):
        expand(recipe(full_data=True, budget=0.01))
    with pytest.raises(RecipeError, match="axes.vary cannot vary 'full_data': it stands above the axes"):
        expand(recipe(axes={"vary": {"full_data": [True]}}))
