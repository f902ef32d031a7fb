"""Correlations of diagnostics and what interventions buy, as tables and sentences."""

import numpy as np
import pandas as pd
import pytest

from longgame.metrics.comparisons import Across
from longgame.metrics.diagnostics import association_table
from longgame.metrics.scorecard import Scorecard
from longgame.recipe import parse_recipe
from longgame.report.conditions import interventions_across
from longgame.report.figures import walk_figures
from longgame.report.layout import report_layout
from longgame.report.render import html_page, markdown
from longgame.report.tables import correlation_line, correlation_table, interventions_table
from tests.report.conftest import make_results, make_run

X = {("random", 0): 0.3, ("random", 1): 0.35, ("random", 2): 0.3, ("loss", 0): 0.6, ("loss", 1): 0.5, ("loss", 2): 0.7}
Y = {("random", 0): 4.0, ("random", 1): 5.0, ("random", 2): 4.5, ("loss", 0): 8.0, ("loss", 1): 9.0, ("loss", 2): 10.0}


def per_trial(seeds=3, x=X):
    rows = []
    for selector, seed in X:
        who = {"trial": f"{selector}-s{seed}", "selector": selector, "seed": seed}
        if seed < seeds:
            rows.append(who | {"view": "", "metric": "update_concentration", "value": x[selector, seed]})
            rows.append(who | {"view": "primary", "metric": "forgetting", "value": Y[selector, seed]})
    return pd.DataFrame(rows)


def sentence(frame):
    return correlation_line(association_table(frame, ["primary"]), "update_concentration", "forgetting")


def test_sentence_has_r_its_interval_and_the_seeds():
    row = association_table(per_trial(), ["primary"]).iloc[0]
    r, low, high = (f"{row[name]:+.2f}".replace("-", "−") for name in ("pearson", "pearson_low", "pearson_high"))
    text = sentence(per_trial())
    assert text.startswith(f"Within seeds, over 6 trials of 3 seeds, r = {r} (95 % interval {low} to {high}); rank")


def test_two_seeds_are_too_few_for_an_interval():
    text = sentence(per_trial(2))
    assert text.startswith("Within seeds, over 4 trials of 2 seeds, r = ")
    assert "too few seeds for an interval: 3 are needed" in text
    assert " to " not in text


def test_no_spread_and_no_measurement_have_words_of_their_own():
    text = sentence(per_trial(x=dict.fromkeys(X, 0.3)))
    assert text == "Within seeds, over 6 trials of 3 seeds there is no spread to correlate."
    assert correlation_line(association_table(per_trial(), ["primary"]), "adapter_drift", "forgetting") == ""


def test_the_table_has_a_row_for_each_pair_and_view():
    table = correlation_table(association_table(per_trial(), ["primary"]), "t")
    row = association_table(per_trial(), ["primary"]).iloc[0]
    (cells,) = table.rows
    assert [cell.text for cell in cells[:3]] == ["update concentration – forgetting", "6", "3"]
    assert [cell.value for cell in cells[3:5]] == [row["pearson"], row["spearman"]]
    assert cells[5].text == "—"  # two selectors: leaving one out leaves one
    assert not correlation_table(association_table(per_trial(), ["primary"]), "t", "exact_match")


@pytest.fixture(scope="module")
def replayed_run():
    """The synthetic run with concentrations, in which replay takes half of what `ahead` forgets away."""
    results = make_results()
    ahead = results[results["selector"] == "ahead"]
    replayed = ahead.assign(selector="ahead + replay", trial=ahead["trial"] + "r")
    lost = (replayed["kind"] == "score") & (replayed["stage"] == 3) & replayed["task"].isin(["one", "two <b>"])
    replayed.loc[lost, "value"] += 12.5 + 0.1 * replayed.loc[lost, "seed"]
    results = pd.concat([results, replayed], ignore_index=True)
    trials = results[["trial", "selector", "seed"]].drop_duplicates()
    level = trials["selector"].map({"random": 0.3, "ahead": 0.6, "ahead + replay": 0.4}).fillna(0.35)
    wobble = np.random.default_rng(0).normal(0, 0.02, len(trials))
    rows = trials.assign(
        kind="diagnostic", stage=1, name="update_concentration", value=level + wobble, unit="0–1",
        task="", task_kind="", sub_skill="", scorer="", probe="", step=-1, tokens=-1,
    )  # fmt: skip
    results = pd.concat([results, rows], ignore_index=True)
    recipe = parse_recipe(
        {
            "name": "synthetic",
            "selectors": [
                "random",
                {"name": "loss", "label": "ahead"},
                {"name": "loss", "label": "ahead + replay", "replay": 0.2},
            ],
            "seeds": list(range(5)),
        }
    )
    tasks, ood = ["one", "two <b>", "three"], ["shifted"]
    card = Scorecard.build(
        results, tasks=tasks, ood=ood, primary=dict.fromkeys(tasks + ood, "token_accuracy"),
        metric_spec=recipe.metrics, threshold=0.9,
    )  # fmt: skip
    return make_run(results, recipe, card)


def test_intervention_row_has_difference_interval_and_p(replayed_run):
    table = interventions_table(replayed_run.scorecard, replayed_run.recipe, "t")
    labels = [column.label for column in table.columns]
    assert labels == ["with − without", "current score", "forgetting", "OOD score", "long-horizon score"]
    (row,) = table.rows
    assert row[0].text == "ahead + replay − ahead"
    cell = row[labels.index("forgetting")]
    assert cell.value == pytest.approx(-12.7)  # 12.5 and the mean of 0.1 · seed
    assert cell.text.startswith("−12.7 (−12.9 to −12.5), p = ")
    assert cell.mark == "▲"
    assert row[labels.index("current score")].text == "0.0, p = 1"
    assert row[labels.index("current score")].mark == ""


def test_without_interventions_there_is_no_table(card, recipe):
    assert not interventions_table(card, recipe, "t")


def test_markdown_page_and_caption_show_both(replayed_run):
    line = correlation_line(replayed_run.scorecard.association, "update_concentration", "forgetting")
    assert line.startswith("Within seeds, over 20 trials of 5 seeds, r = +0.")
    figures = {figure.name: figure for figure in walk_figures(replayed_run)}
    assert figures["concentration-forgetting"].caption.endswith(line)
    layout = report_layout(replayed_run, trials=0)
    for text in (markdown(layout), html_page([layout])):
        assert "What each intervention buys" in text
        assert "ahead + replay − ahead" in text
        assert "Diagnostics and forgetting" in text
        assert "update concentration – forgetting" in text
        assert "Holm over the interventions" in text


def test_interventions_are_shown_for_every_other_condition(replayed_run):
    card, recipe = replayed_run.scorecard, replayed_run.recipe
    across = Across.build({"": card, "budget=0.1": card}, {})
    (table,) = interventions_across(across, recipe)
    assert table.title == "What each intervention buys, budget 0.1"
    assert repr(table.rows) == repr(interventions_table(card, recipe, "t").rows)  # a cell without a value holds NaN
