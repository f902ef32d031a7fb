import numpy as np
import pytest

from longgame.metrics.comparisons import Across
from longgame.report.answer import answer
from longgame.report.compare import compare
from longgame.report.markdown import audit_card, escape


def lifted(results):
    """The results with `ahead` 40 points higher after every stage: it leads in the long run too."""
    changed = results.copy()
    better = (changed["selector"] == "ahead") & (changed["kind"] == "score") & (changed["stage"] > 0)
    changed.loc[better, "value"] += 40
    return changed


@pytest.fixture(scope="module")
def over_seeds(synthetic):
    """Scorecard and recipe of the run over these seeds."""
    make_results, make_card, make_recipe = synthetic

    def made(*seeds):
        results = make_results(seeds=max(seeds) + 1)
        return make_card(results[results["seed"].isin(seeds)]), make_recipe().model_copy(update={"seeds": seeds})

    return made


def test_the_answer_names_the_myopic_and_advises_nothing_that_was_not_shown(card, recipe):
    said = answer(card, recipe)
    assert "Myopic (ahead now, behind in the long run): ahead." in said.avoid
    assert said.use.startswith("No selector is shown to be better than random")
    assert "Use random" in said.use
    assert "5 seeds" in said.sure
    assert "80 % power" in said.sure
    assert "3,000 selected tokens per trial" in said.cost


def test_one_seed_advises_nothing(synthetic):
    make_results, make_card, make_recipe = synthetic
    card = make_card(make_results(seeds=1))
    said = answer(card, make_recipe(1))
    assert said.use.startswith("Too few seeds")
    assert said.sure.startswith("1 seed,")


def test_a_clear_winner_is_advised_with_its_interval(synthetic):
    make_results, make_card, make_recipe = synthetic
    results = make_results()
    said = answer(make_card(lifted(results)), make_recipe())
    assert said.use.startswith("Use ahead: long-horizon score ")
    assert "95 % interval +" in said.use
    assert "Not shown to differ" not in said.use


def test_the_card_escapes_names_and_tells_verdicts_and_limits(card, results, recipe, environment, hostile):
    text = audit_card(card, results, recipe, environment, "half done")
    assert "<script>" not in text
    assert escape(hostile) in text
    assert "*half done*" in text
    for part in ("### Verdicts", "### Limits", "- seeds: 5 (0, 1, 2, 3, 4)", "| ahead | myopic |"):
        assert part in text


def test_a_run_beside_itself_has_not_changed(card, recipe):
    same = compare("base", card, recipe, card, recipe)
    assert same.changed == []
    assert same.recipe == ()
    assert same.caveat == (
        "Both runs have the same recipe but for selectors and seeds. "
        "Differences are paired over 5 common seeds (0, 1, 2, 3, 4)."
    )
    assert {row[4].value for row in same.table.rows} <= {0.0} | {
        row[4].value for row in same.table.rows if row[4].text == "—"
    }
    assert not any(row[4].mark for row in same.table.rows)


def test_a_changed_score_verdict_and_recipe_are_told(synthetic, card, recipe):
    make_results, make_card, _ = synthetic
    results = make_results()
    now = make_card(lifted(results))
    told = compare("base", card, recipe, now, recipe.model_copy(update={"budget": 0.5}))
    assert ("ahead", "myopic", "long-horizon better") in told.changed
    assert told.recipe == (f"budget: {recipe.budget} → 0.5",)
    assert "may come from there" in told.caveat
    row = next(row for row in told.table.rows if row[0].text == "ahead" and row[1].text == "current score")
    assert row[4].value == 40
    assert row[4].mark == ""  # all seeds moved alike: no spread to test with, and 2^(1−5) is not below 5 % after Holm


def test_another_verdict_in_another_condition_stands_in_the_answer_and_on_the_card(synthetic, environment):
    make_results, make_card, make_recipe = synthetic
    results, recipe = make_results(), make_recipe()
    own, other = make_card(results), make_card(lifted(results))
    across = Across.build({"": own, "budget=0.5": own, "data.noise=0.3": other}, {})
    said = answer(own, recipe, across)
    assert said.elsewhere.startswith("Long-horizon better: ahead (data.noise 0.3). All other verdicts of the 2 other")
    assert ("In other conditions", said.elsewhere) in said.lines
    text = audit_card(own, results, recipe, environment, across=across, notes=["a note of the run"], title="named")
    assert f"- **In other conditions**: {escape(said.elsewhere)}" in text
    assert "- a note of the run" in text
    assert text.startswith("## Data-selection audit: named\n")


def test_harm_in_other_conditions_is_named_first_and_long_lists_are_counted(synthetic):
    make_results, make_card, make_recipe = synthetic
    results = make_results()
    own, other = make_card(lifted(results)), make_card(results)
    across = Across.build({"": own, **{f"data.noise=0.{place}": other for place in range(1, 9)}}, {})
    said = answer(own, make_recipe(), across).elsewhere
    assert said.startswith("Myopic: ahead (data.noise 0.1; ")
    assert "data.noise 0.6; and 2 more)." in said


def test_conditions_that_agree_are_told_to_agree(card, recipe):
    alike = Across.build({"": card, "budget=0.5": card, "budget=0.1": card}, {})
    assert answer(card, recipe, alike).elsewhere == "Every verdict is the same in all 2 other conditions."
    assert answer(card, recipe, Across.build({"": card}, {})).elsewhere == ""
    assert "In other conditions" not in dict(answer(card, recipe).lines)


def test_one_selector_is_compared_with_nothing_so_no_test_is_named(synthetic):
    make_results, make_card, make_recipe = synthetic
    results = make_results()
    alone = answer(make_card(results[results["selector"] == "random"]), make_recipe())
    assert alone.use.startswith("Nothing was compared")
    assert list(dict(alone.lines)) == ["Which to use", "What it cost"]


def test_runs_without_a_common_seed_show_both_sides_and_no_difference(over_seeds):
    (before, there), (now, here) = over_seeds(0, 1), over_seeds(2, 3, 4)
    told = compare("base", before, there, now, here, "The baseline is half done.")
    assert "no seed in common (there 0, 1; now 2, 3, 4)" in told.caveat
    assert told.caveat.endswith("The baseline is half done.")
    assert {row[4].text for row in told.table.rows} == {"—"}
    for side, card in ((2, before), (3, now)):
        row = next(row for row in told.table.rows if row[0].text == "ahead" and row[1].text == "current score")
        assert row[side].value == pytest.approx(card.wide(["current"])["current"]["ahead"])


def test_means_are_over_own_seeds_and_differences_over_common_ones(over_seeds):
    (before, there), (now, here) = over_seeds(0, 1, 2), over_seeds(1, 2, 3, 4)
    told = compare("base", before, there, now, here)
    assert "paired over 2 common seeds (1, 2); means are over each run's own seeds (there 0, 1, 2; now 1, 2, 3, 4)" in (
        told.caveat
    )
    row = next(row for row in told.table.rows if row[0].text == "random" and row[1].text == "current score")
    means = [float(np.mean(card.trials.grid(card.views["primary"].metrics["current"])[0])) for card in (before, now)]
    assert before.plan.trials.selectors[0] == "random"
    assert [row[2].value, row[3].value] == pytest.approx(means)
    assert row[4].value == 0  # the seeds that both have are the same trials
    assert row[4].detail.startswith("paired over 2 seeds")


def test_one_common_seed_is_told_to_be_beyond_a_test(over_seeds):
    (before, there), (now, here) = over_seeds(0, 1), over_seeds(1, 2)
    told = compare("base", before, there, now, here)
    assert "paired over 1 common seed (1), and one seed cannot be tested; means" in told.caveat
    assert not any(row[4].mark for row in told.table.rows)
