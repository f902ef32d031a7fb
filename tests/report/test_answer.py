import pandas as pd
import pytest

from longgame.data.sequences import Contamination
from longgame.errors import RecipeError
from longgame.escape import markdown_text
from longgame.report.answer import (
    VERDICTS,
    Claim,
    answer,
    base_models,
    contamination_note,
    cost_line,
    differences_table,
    headline,
    parse_condition,
    run_facts,
    seeds_caveat,
    set_gap_line,
    true_claims,
    verdict_lines,
)
from longgame.report.layout import report_layout
from longgame.report.render import markdown, markdown_card
from longgame.report.tables import COSTS, LEVEL_ONE, NOT_MEASURED, metric_table
from tests.report.conftest import HOSTILE, NOW, lifted, make_card, make_recipe, make_results, make_run


def test_answer_names_the_myopic_and_claims_nothing_more(run):
    sentences = answer(run)
    assert "Myopic (ahead now, behind in the long run): ahead." in sentences["Which are myopic"]
    assert sentences["Which to use"].startswith("Use random, which costs nothing, or measure more seeds.")
    assert "5 seeds" in sentences["How sure"]
    assert "80 % power" in sentences["How sure"]
    assert "3,000 selected tokens per trial" in sentences["What it cost"]


def test_seeds_beyond_the_table_are_told_as_more_than_its_end(results):
    card = make_card(results)
    card.summary["seeds_needed"] = float("inf")
    seeds = {str(cell) for row in differences_table(card, make_recipe()).rows for cell in row[-2:]}
    assert seeds == {"> 1,000"}


def test_one_seed_advises_nothing():
    sentences = answer(make_run(make_results(seeds=1), make_recipe(1)))
    assert sentences["Which to use"].startswith("Too few seeds")
    assert sentences["How sure"].startswith("1 seed,")


def test_a_clear_winner_is_advised_with_its_interval(results):
    advice = answer(make_run(lifted(results)))["Which to use"]
    assert advice.startswith("Use ahead: long-horizon score ")
    assert "95 % interval +" in advice
    assert "Not shown to differ" not in advice


def test_card_escapes_names_and_holds_verdicts_and_limits(results, hostile):
    run = make_run(results)
    run.finished_stages["ahead-s0"] = 1
    text = markdown_card(report_layout(run))
    assert "<script>" not in text
    assert markdown_text(hostile) in text
    assert "> This run is not finished: 14 of 15 trials" in text
    parts = ("### Verdicts", "The base model is the same in all seeds", "- **seeds**: 5 (0, 1, 2, 3, 4)")
    for part in (*parts, "- **ahead**: *myopic*. against random"):
        assert part in text


def test_verdicts_of_other_conditions_are_in_answer_and_card(results, card):
    cards = {"": card, "budget=0.5": card, "data.noise=0.3": make_card(lifted(results))}
    run = make_run(results, cards=cards)
    others = answer(run)["In other conditions"]
    assert others.startswith("Long-horizon better: ahead (data.noise 0.3). All other verdicts of the 2 other")
    text = markdown_card(report_layout(run, "named"))
    assert f"- **In other conditions**: {markdown_text(others)}" in text
    assert "- Answer, scorecard and most figures are about the recipe's own condition" in text
    assert text.startswith("## Data-selection audit: named\n")


def test_harm_elsewhere_comes_first_and_long_lists_are_counted(results, card):
    cards = {"": make_card(lifted(results)), **{f"data.noise=0.{place}": card for place in range(1, 9)}}
    others = answer(make_run(results, cards=cards))["In other conditions"]
    assert others.startswith("Myopic: ahead (data.noise 0.1; ")
    assert "data.noise 0.6; and 2 more)." in others


def test_agreeing_conditions_are_one_sentence(results, card, run):
    alike = answer(make_run(results, cards=dict.fromkeys(("", "budget=0.5", "budget=0.1"), card)))
    assert alike["In other conditions"] == (
        "Every verdict is the same in all 2 other conditions (p after Holm over 2 selectors × 3 conditions)."
    )
    assert "In other conditions" not in answer(run)


def test_one_selector_alone_is_compared_with_nothing(results):
    alone = answer(make_run(results[results["selector"] == "random"]))
    assert alone["Which to use"].startswith("Nothing was compared")
    assert list(alone) == ["Which to use", "What it cost"]


def test_verdicts_and_headline_name_the_myopic(card, recipe):
    lines = {line.selector: line for line in verdict_lines(card, recipe)}
    assert "random" not in lines
    assert lines["ahead"].word == "myopic"
    text = headline(card, recipe)
    assert text.startswith("Nothing is shown to beat random. Myopic: ahead. ")
    assert "3 selectors, 5 seeds" in text


def test_disagreement_between_scorers_is_in_the_verdict(recipe):
    results = make_results()
    flat = (results["scorer"] == "exact_match") & (results["kind"] == "score")
    results.loc[flat, "value"] = 40.0
    lines = {line.selector: line for line in verdict_lines(make_card(results), recipe)}
    assert lines["ahead"].word == "myopic"
    assert lines["ahead"].other == "under exact match: no difference shown"


def test_few_seeds_give_no_verdict():
    card, recipe = make_card(make_results(seeds=1)), make_recipe(1)
    assert {line.word for line in verdict_lines(card, recipe)} == {"not enough seeds"}
    assert "1 seed)" in set_gap_line(card)


def test_headline_without_reference_compares_nothing(results, recipe):
    card = make_card(results[results["selector"] != "random"])
    assert headline(card, recipe).startswith("Nothing was compared")


def test_facts_hold_versions_seeds_and_duration(run):
    facts = run_facts(run)
    assert facts["duration"] == "2.0 min in 2 sessions"
    assert facts["versions"] == "longgame 0.1.0, numpy 2.0"
    assert facts["seeds"] == "5 (0, 1, 2, 3, 4)"


def test_budget_is_a_fact_with_its_digits_and_what_it_counts(results, recipe):
    def budget(value, of):
        run = make_run(results, recipe.replace({"budget": value, "budget_of": of}))
        return run_facts(run)["budget"].partition(",")[0]

    assert budget(0.25, "tokens") == "25 % of each pool's tokens"
    assert budget(0.125, "tokens") == "12.5 % of each pool's tokens"
    assert budget(0.001, "response") == "0.1 % of each pool's response tokens"


@pytest.mark.parametrize(("same", "shared", "warned"), [(0, 0, False), (0, 20, False), (0, 26, True), (1, 1, True)])
def test_evaluation_prompts_in_pools_are_a_fact_and_warned_of(results, same, shared, warned):
    contamination = Contamination(100, same, shared)
    run = make_run(results, contamination=contamination)
    assert run_facts(run)["evaluation prompts in pools"] == str(contamination)
    assert (str(contamination) in contamination_note(run)) is warned
    assert ("Scores may reward remembering" in markdown(report_layout(run))) is warned
    assert contamination_note(make_run(results)) == ""


def test_caveat_says_what_the_tests_count(recipe):
    def caveat(bases):
        return seeds_caveat(recipe.model_copy(update={"model": recipe.model.model_copy(update={"per_seed": bases})}))

    assert (
        "differences are averaged per base model first, and tests and intervals of differences count base models"
        in caveat(("a", "b"))
    )
    assert "The intervals cover such base models" in caveat(tuple("abcde"))
    assert "The base model is the same in all seeds, so every verdict is about this base model" in caveat(("a", "a"))


def test_verdict_and_headline_name_a_base_model_that_all_seeds_share(results, recipe):
    card = make_card(results, bases=dict.fromkeys(range(5), "tiny"))
    assert all(line.reason.startswith("on this base model, against random: ") for line in verdict_lines(card, recipe))
    assert "(3 selectors, 5 seeds of one base model.)" in headline(card, recipe)
    assert "about this base model" in answer(make_run(results, card=card))["How sure"]
    alone = make_card(results, bases={seed: f"tiny-{seed}" for seed in range(5)})
    assert all(line.reason.startswith("against random: ") for line in verdict_lines(alone, recipe))
    pd.testing.assert_frame_equal(alone.summary, make_card(results).summary)


def test_only_base_models_of_the_seeds_are_named(recipe, results, card):
    bases = tuple("abcdefgh")
    changed = recipe.model_copy(
        update={"seeds": (9, 2), "model": recipe.model.model_copy(update={"per_seed": bases})}
    )  # a seed takes the base at its number, counted round
    assert base_models(changed) == ["b", "c"]
    assert run_facts(make_run(results, changed, card))["model"] == "b, c, lora"
    assert "one of 2 base models" in seeds_caveat(changed)


SPENT = {
    "random": {"score_flops": 0.0, "train_flops": 4e9, "select_seconds": 0.0, "train_seconds": 2.0},
    "ahead": {"score_flops": 1e9, "train_flops": 4e9, "select_seconds": 0.5, "train_seconds": 2.0},
    HOSTILE: {"score_flops": float("nan"), "train_flops": 4e9, "select_seconds": 0.1, "train_seconds": 2.0},
}


@pytest.fixture(scope="module")
def counted(results):
    rows = results[results["name"] == "selected_tokens"]
    more = [
        rows.assign(name=name, value=rows["selector"].map({who: SPENT[who][name] for who in NOW}), unit="")
        for name in SPENT["random"]
    ]
    return make_card(pd.concat([results, *more], ignore_index=True))


def row(table, name):
    cells = next(cells for cells in table.rows if cells[0].text == name)
    return {column.short: cell.short for column, cell in zip(table.columns, cells, strict=True)}


def test_level_one_sums_stages_and_relates_them_to_training(counted, recipe):
    table = metric_table(counted, recipe, LEVEL_ONE, "", "primary")
    ahead = row(table, "ahead")
    assert ahead["scoring FLOPs"] == "3 G±0"
    assert row(metric_table(counted, recipe, COSTS, "", "primary"), "ahead")["train FLOPs"] == "12 G±0"
    assert ahead["FLOPs share"] == ".25±.00"
    assert ahead["time share"] == ".25±.00"
    assert row(table, HOSTILE)["scoring FLOPs"] == row(table, HOSTILE)["FLOPs share"] == NOT_MEASURED
    assert row(table, "random")["scoring FLOPs"] == "0±0"


def test_verdict_names_the_cost_of_choosing(counted, recipe):
    lines = {line.selector: line.cost for line in verdict_lines(counted, recipe)}
    assert lines["ahead"] == (
        "Choosing took 3 GFLOP (25.0 % of the training FLOPs) and 1.50 s (25.0 % of the training time) per trial"
    )
    assert lines[HOSTILE] == "Choosing took 0.30 s (5.0 % of the training time) per trial"
    assert cost_line(counted, "random").startswith("Choosing took no FLOPs of the model and 0.00 s")


def test_uncounted_costs_are_left_out(card, recipe):
    assert {line.cost for line in verdict_lines(card, recipe)} == {""}
    assert "scoring FLOPs" not in {column.short for column in metric_table(card, recipe, LEVEL_ONE, "").columns}


def test_claims_keep_selector_names():
    text = "myopic(my-selector) or  worse( path/to/file.py:Class ) or better(a (b) c)"
    assert parse_condition(text) == (
        Claim("myopic", "my-selector"), Claim("worse", "path/to/file.py:Class"), Claim("better", "a (b) c"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("myopic", "cannot be read"),
        ("myopic()", "cannot be read"),
        ("myopic(loss", "cannot be read"),
        ("myopic(loss) and worse(loss)", "' or '"),
        ("myopic(loss) or", "' or '"),
        ("myopic(loss) or ", "' or '"),
        ("myopic(loss)or worse(loss)", "' or '"),
        ("not myopic(loss)", "cannot be read"),
        ("myopc(loss)", "Did you mean 'myopic'"),
        ("__import__('os').system('x')", "cannot be read"),
    ],
)
def test_unreadable_condition_is_an_error(text, message):
    with pytest.raises(RecipeError) as error:
        parse_condition(text)
    assert message in str(error.value)


def test_claims_hold_as_the_verdicts_say(run, card, hostile):
    assert [line.split(":")[0] for line in true_claims(parse_condition("myopic(ahead) or worse(ahead)"), run)] == [
        "myopic(ahead)"
    ]
    assert len(true_claims(parse_condition("myopic(*)"), run)) == 1
    assert true_claims(parse_condition("worse(*) or better(*)"), run) == []
    words = dict(zip(card.verdicts["selector"], card.verdicts["verdict"], strict=False))
    word = next(name for name, text in VERDICTS.items() if text.format(reference="random") == words[hostile])
    assert len(true_claims((Claim(word, hostile),), run)) == 1


def test_guard_does_not_pass_because_of_a_wrong_name(run):
    with pytest.raises(RecipeError, match="Did you mean 'ahead'"):
        true_claims(parse_condition("myopic(ahed)"), run)
    with pytest.raises(RecipeError, match="compared with"):
        true_claims(parse_condition("myopic(random)"), run)


def test_claim_that_holds_only_in_another_condition_names_it(results, card):
    own, claims = make_card(lifted(results)), parse_condition("myopic(ahead)")
    assert true_claims(claims, make_run(results, card=own)) == []
    run = make_run(results, cards={"": own, "data.noise=0.3": card})
    (line,) = true_claims(claims, run)
    assert line.startswith("myopic(ahead) in condition 'data.noise 0.3': against random: ")
    (line,) = true_claims(parse_condition("better(*)"), run)
    assert line.startswith("better(ahead): ")


def test_guard_checks_the_mean_over_orders(results, card):
    orders = {"order=*": ["", "order=2-1-3"]}
    run = make_run(results, cards={"": card, "order=2-1-3": card}, orders=orders)
    claims = [line.partition(":")[0] for line in true_claims(parse_condition("myopic(ahead)"), run)]
    assert claims == [
        "myopic(ahead)", "myopic(ahead) in condition 'order 2-1-3'", "myopic(ahead) in condition 'mean of orders'",
    ]  # fmt: skip
