from longgame.report.answer import answer
from longgame.report.card import audit_card
from longgame.report.compare import compare
from longgame.report.markdown import escape


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
    better = (results["selector"] == "ahead") & (results["kind"] == "score") & (results["stage"] > 0)
    results.loc[better, "value"] += 40
    said = answer(make_card(results), make_recipe())
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
    assert {row[4].value for row in same.table.rows} <= {0.0} | {
        row[4].value for row in same.table.rows if row[4].text == "—"
    }
    assert not any(row[4].mark for row in same.table.rows)


def test_a_changed_score_verdict_and_recipe_are_told(synthetic, card, recipe):
    make_results, make_card, _ = synthetic
    results = make_results()
    better = (results["selector"] == "ahead") & (results["kind"] == "score") & (results["stage"] > 0)
    results.loc[better, "value"] += 40
    now = make_card(results)
    told = compare("base", card, recipe, now, recipe.model_copy(update={"budget": 0.5}))
    assert ("ahead", "myopic", "long-horizon better") in told.changed
    assert told.recipe == (f"budget: {recipe.budget} → 0.5",)
    assert "may come from there" in told.caveat
    row = next(row for row in told.table.rows if row[0].text == "ahead" and row[1].text == "current score")
    assert row[4].value == 40
    assert row[4].mark == ""  # all seeds moved alike: no spread to test with, and 2^(1−5) is not below 5 % after Holm
