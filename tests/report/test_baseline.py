import numpy as np
import pytest

from longgame.report.baseline import _differences, compare_with
from tests.report.conftest import lifted, make_recipe, make_results, make_run


def over_seeds(*seeds):
    """The run over these seeds."""
    results = make_results(seeds=max(seeds) + 1)
    recipe = make_recipe().model_copy(update={"seeds": seeds})
    return make_run(results[results["seed"].isin(seeds)], recipe)


def test_run_against_itself_has_not_changed(run):
    same = compare_with(run, run, "base")
    assert same.changed == ()
    assert same.recipe == ()
    assert same.caveat == (
        "Both runs have the same recipe but for selectors and seeds. "
        "Differences are paired over 5 common seeds (0, 1, 2, 3, 4)."
    )
    assert {row[4].value for row in same.table.rows} <= {0.0} | {
        row[4].value for row in same.table.rows if row[4].text == "—"
    }
    assert not any(row[4].mark for row in same.table.rows)


def test_changed_score_verdict_and_recipe_are_shown(run, results, recipe):
    now = make_run(lifted(results), recipe.model_copy(update={"budget": 0.5}))
    comparison = compare_with(run, now, "base")
    assert ("ahead", "myopic", "long-horizon better") in comparison.changed
    assert comparison.recipe == (f"budget: {recipe.budget} → 0.5",)
    assert "may come from there" in comparison.caveat
    row = next(row for row in comparison.table.rows if row[0].text == "ahead" and row[1].text == "current score")
    assert row[4].value == 40
    assert row[4].mark == ""  # all seeds moved alike: no spread to test with, and 2^(1−5) is not below 5 % after Holm


def test_selectors_that_are_called_alike_and_are_not_the_same_are_named(run, results, recipe):
    random, ahead, hostile = recipe.selectors
    other = ahead.model_copy(update={"parameters": {"mode": "similarity"}})
    now = make_run(results, recipe.model_copy(update={"selectors": (random, other, hostile)}))
    comparison = compare_with(run, now, "base")
    assert comparison.recipe == ("selectors ahead.parameters.mode: None → similarity",)
    assert "Called alike, and not the same in both runs: ahead." in comparison.caveat
    fewer = recipe.model_copy(update={"selectors": (random, ahead)})
    for before, after, change in ((run, make_run(results, fewer), "−"), (make_run(results, fewer), run, "+")):
        comparison = compare_with(before, after, "base")
        assert comparison.recipe == (f"selectors: {change} {hostile.key}",)
        assert "Called alike" not in comparison.caveat


def test_another_order_of_what_has_names_is_a_difference():
    there, now = ([{"name": name} for name in names] for names in ("ab", "ba"))
    assert [*_differences({"stages": there}, {"stages": now})] == ["stages: in another order"]
    assert len([*_differences({"stages": there * 2}, {"stages": now * 2})]) == 1  # called alike: shown as a whole


def test_runs_without_a_common_seed_have_no_difference():
    before, now = over_seeds(0, 1), over_seeds(2, 3, 4)
    before.finished_stages["ahead-s0"] = 1
    comparison = compare_with(before, now, "base")
    assert "no seed in common (there 0, 1; now 2, 3, 4)" in comparison.caveat
    assert comparison.caveat.endswith(before.progress)
    assert before.progress
    assert {row[4].text for row in comparison.table.rows} == {"—"}
    for side, card in ((2, before.scorecard), (3, now.scorecard)):
        row = next(row for row in comparison.table.rows if row[0].text == "ahead" and row[1].text == "current score")
        assert row[side].value == pytest.approx(card.wide(["current"])["current"]["ahead"])


def test_means_are_over_own_seeds_differences_over_common():
    before, now = over_seeds(0, 1, 2), over_seeds(1, 2, 3, 4)
    comparison = compare_with(before, now, "base")
    assert "paired over 2 common seeds (1, 2); means are over each run's own seeds (there 0, 1, 2; now 1, 2, 3, 4)" in (
        comparison.caveat
    )
    row = next(row for row in comparison.table.rows if row[0].text == "random" and row[1].text == "current score")
    means = [
        float(np.mean(card.trials.grid(card.views["primary"].metrics["current"])[0]))
        for card in (before.scorecard, now.scorecard)
    ]
    assert before.scorecard.trials.selectors[0] == "random"
    assert [row[2].value, row[3].value] == pytest.approx(means)
    assert row[4].value == 0  # the seeds that both have are the same trials
    assert row[4].detail.startswith("paired over 2 seeds")


def test_one_common_seed_cannot_be_tested():
    comparison = compare_with(over_seeds(0, 1), over_seeds(1, 2), "base")
    assert "paired over 1 common seed (1), and one seed cannot be tested; means" in comparison.caveat
    assert not any(row[4].mark for row in comparison.table.rows)
