"""Correlations of diagnostics and what interventions buy, as tables and sentences."""

import numpy as np
import pandas as pd
import pytest

from longgame.metrics.comparisons import Across, intervention_table
from longgame.metrics.diagnostics import association_table as associate
from longgame.metrics.scorecard import Scorecard
from longgame.recipe import parse_recipe
from longgame.report.conditions import across_tables, association_line, association_table
from longgame.report.figures import figures
from longgame.report.markdown import scorecard_markdown
from longgame.report.page import render_html
from longgame.report.tables import interventions_table

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


def said(frame):
    return association_line(associate(frame, ["primary"]), "update_concentration", "forgetting")


def test_a_sentence_tells_r_its_interval_and_how_many_seeds():
    row = associate(per_trial(), ["primary"]).iloc[0]
    r, low, high = (f"{row[name]:+.2f}".replace("-", "−") for name in ("pearson", "pearson_low", "pearson_high"))
    assert said(per_trial()).startswith(f"Over all 6 trials of 3 seeds, r = {r} (95 % interval {low} to {high}); rank")
    assert "with each seed's mean taken off" in said(per_trial())


def test_two_seeds_are_told_to_be_too_few():
    text = said(per_trial(2))
    assert text.startswith("Over all 4 trials of 2 seeds, r = ")
    assert "too few seeds for an interval: 3 are needed" in text
    assert " to " not in text


def test_no_spread_and_no_measurement_have_words_of_their_own():
    assert said(per_trial(x=dict.fromkeys(X, 0.3))) == "Over all 6 trials of 3 seeds there is no spread to correlate."
    assert association_line(associate(per_trial(), ["primary"]), "adapter_drift", "forgetting") == ""


def test_the_table_has_a_row_for_each_pair_and_view():
    table = association_table(associate(per_trial(), ["primary"]), "t")
    row = associate(per_trial(), ["primary"]).iloc[0]
    (cells,) = table.rows
    assert [cell.text for cell in cells[:3]] == ["update concentration – forgetting", "6", "3"]
    assert [cell.value for cell in cells[3:6]] == [row["pearson"], row["spearman"], row["within"]]
    assert cells[6].text == "—"  # two selectors: leaving one out leaves one
    assert len(association_table(associate(per_trial(), ["primary"]), "t", "exact_match").columns) == 1


@pytest.fixture(scope="module")
def run(synthetic):
    """The synthetic run with concentrations, in which replay takes half of what `ahead` forgets away."""
    make_results, _, _ = synthetic
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
    return card, results, recipe


def test_an_intervention_s_row_tells_difference_interval_and_p(run):
    card, _, recipe = run
    table = interventions_table(intervention_table(card, recipe), "t")
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
    assert len(interventions_table(intervention_table(card, recipe), "t").columns) == 1


def test_scorecard_page_and_caption_tell_both(run, environment):
    card, results, recipe = run
    line = association_line(card.association, "update_concentration", "forgetting")
    assert line.startswith("Over all 20 trials of 5 seeds, r = +0.")
    caption = next(each.caption for each in figures(card, results, recipe) if each.name == "concentration-forgetting")
    assert caption.endswith(line)
    text = scorecard_markdown(card, results, recipe, environment)
    page = render_html(card, results, recipe, environment)
    for told in (text, page):
        assert "What each intervention buys" in told
        assert "ahead + replay − ahead" in told
        assert "Diagnostics and forgetting" in told
        assert "update concentration – forgetting" in told
        assert "Holm over the interventions" in told


def test_what_interventions_buy_is_told_of_every_other_condition_too(run):
    card, _, recipe = run
    across = Across.build({"": card, "budget=0.1": card}, {})

    def bought(compact):
        tables = across_tables(across, recipe, compact=compact)
        return [table for table in tables if table.title.startswith("What each intervention buys")]

    (table,) = bought(compact=False)
    assert table.title == "What each intervention buys, budget 0.1"
    assert table.rows == interventions_table(intervention_table(card, recipe), "t").rows
    assert bought(compact=True) == []
