"""Conditions side by side, and selectors with and without their interventions: paired by seed."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from longgame.audit.store import records_table
from longgame.errors import DataError
from longgame.metrics.comparisons import Across, bare_selectors, intervention_table
from longgame.metrics.scorecard import Scorecard
from longgame.recipe import MetricSpec, parse_recipe

LONG = {  # selector → seed → final score on the first and second task of the walk, under two orders
    "random": {0: ((50, 60), (52, 58)), 1: ((48, 62), (54, 56)), 2: ((51, 63), (50, 60))},
    "loss": {0: ((60, 62), (58, 66)), 1: ((57, 66), (60, 64)), 2: ((61, 64), (59, 69))},
}


def card(place, tasks, drop=()):
    rows = []
    for selector, seeds in LONG.items():
        for seed, orders in seeds.items():
            if (selector, seed) in drop:
                continue
            first, second = orders[place]
            R = [[10, 10], [first + 5, 20], [first, second]]
            for stage, row in enumerate(R):
                for task, value in zip(tasks, row, strict=True):
                    rows.append(
                        {
                            "trial": f"{selector}-s{seed}",
                            "selector": selector,
                            "seed": seed,
                            "kind": "score",
                            "stage": stage,
                        }
                        | {"task": task, "task_kind": "stage", "scorer": "token_accuracy", "value": value}
                    )
    return Scorecard.build(
        records_table(rows),
        tasks=tasks,
        ood=(),
        primary=dict.fromkeys(tasks, "token_accuracy"),
        metric_spec=MetricSpec(),
        threshold=0.9,
    )  # fmt: skip


@pytest.fixture(scope="module")
def across():
    cards = {"": card(0, ("a", "b")), "order=2-1": card(1, ("b", "a"))}
    return Across.build(cards, {"order=*": ["", "order=2-1"]})


def row(across, condition, selector, metric="current"):
    table = across.summary
    found = table[(table.condition == condition) & (table.selector == selector) & (table.metric == metric)]
    return found[found["view"] == "primary"].iloc[0]


def current(selector, place=None):
    """Current score of each seed by hand: mean of R[1,1] and R[2,2]; over both orders where no place is given."""
    places = (0, 1) if place is None else (place,)
    return np.array(
        [np.mean([(orders[p][0] + 5 + orders[p][1]) / 2 for p in places]) for orders in LONG[selector].values()]
    )


@pytest.mark.parametrize(("condition", "place"), [("", 0), ("order=2-1", 1), ("order=*", None)])
def test_condition_is_compared_within_itself(across, condition, place):
    mine, base = current("loss", place), current("random", place)
    found = row(across, condition, "loss")
    assert found["n"] == 3
    assert found["mean"] == pytest.approx(mine.mean())
    assert found["sd"] == pytest.approx(mine.std(ddof=1))
    assert found["diff_vs_reference"] == pytest.approx((mine - base).mean())
    assert found["p"] == pytest.approx(ttest_rel(mine, base).pvalue)


def test_every_condition_and_mean_has_verdicts(across):
    verdicts = across.verdicts[across.verdicts["view"] == "primary"]
    assert list(verdicts["condition"]) == ["", "order=2-1", "order=*"]
    assert (verdicts["selector"] == "loss").all()
    own = across.cards[""].verdicts.set_index(["view", "selector"]).verdict
    assert verdicts.iloc[0]["verdict"] == own["primary", "loss"]


@pytest.mark.parametrize(("holm", "told"), [("selectors", True), ("selectors-conditions", False)])
def test_power_is_told_at_the_level_of_the_verdict_alone(holm, told):
    cards = {"": card(0, ("a", "b")), "order=2-1": card(1, ("b", "a"))}
    across = Across.build(cards, {}, holm=holm)
    assert (across.verdicts["power"] != "").all() == told
    assert (across.cards[""].verdicts["power"] != "").all()


def test_a_seed_that_one_order_lacks_has_no_mean():
    cards = {"": card(0, ("a", "b")), "order=2-1": card(1, ("b", "a"), drop={("loss", 1)})}
    across = Across.build(cards, {"order=*": ["", "order=2-1"]})
    found = row(across, "order=*", "loss")
    keep = [0, 2]
    assert found["n"] == 2
    assert found["mean"] == pytest.approx(current("loss")[keep].mean())
    assert row(across, "order=*", "random")["n"] == 3


def test_mean_over_orders_has_the_bootstrap():
    cards = {"": card(0, ("a", "b")), "order=2-1": card(1, ("b", "a"))}
    across = Across.build(cards, {"order=*": ["", "order=2-1"]}, bootstrap=1000)
    found = row(across, "order=*", "loss")
    assert found["boot_low"] <= found["diff_vs_reference"] <= found["boot_high"]
    assert found["boot_low"] < found["boot_high"]


def test_identical_orders_average_to_themselves():
    one = card(0, ("a", "b"))
    across = Across.build({"": one, "order=2-1": one}, {"order=*": ["", "order=2-1"]})
    parts = {
        name: part.drop(columns="condition").reset_index(drop=True)
        for name, part in across.summary.groupby("condition")
    }
    key = ["view", "metric", "selector"]
    same = [parts[name].sort_values(key).reset_index(drop=True) for name in ("", "order=*")]
    pd.testing.assert_frame_equal(*same, check_dtype=False)


def test_nothing_to_tell_is_an_error():
    with pytest.raises(DataError, match="no scorecard"):
        Across.build({}, {})
    with pytest.raises(DataError, match="order=2-1, which have no scorecard"):
        Across.build({"": card(0, ("a", "b"))}, {"order=*": ["", "order=2-1"]})


# With an intervention minus without it


SELECTORS = [
    "random",
    "loss",
    {"name": "loss", "replay": 0.2},
    {"name": "loss", "proxy_penalty": 0.5, "min_cluster_share": 0.05, "label": "guarded"},
    {"name": "gradient", "replay": 0.2},
    {"name": "lhas", "coverage_weight": 2.0, "label": "broad"},
    {"name": "lhas", "proxy_as_data": True},
    {"name": "lhas", "coverage_weight": 2.0, "proxy_as_data": True, "label": "broad + items"},
]
# selector → seed → the two stages' scores right after them, and the first one's at the end
SCORES = {
    "random": [(50, 60, 48), (52, 58, 50), (49, 61, 47)],
    "loss": [(60, 66, 40), (58, 68, 42), (61, 64, 41)],
    "loss + replay 20%": [(57, 65, 50), (56, 66, 49), (60, 61, 55)],
    "guarded": [(60, 66, 44), (57, 66, 44), (61, 66, 45)],
}


def recipe():
    return parse_recipe({"name": "t", "selectors": SELECTORS})


def intervention_card(scores, ood=()):
    rows = []
    for selector, seeds in scores.items():
        for seed, (first, second, end) in enumerate(seeds):
            who = {"trial": f"{selector}-s{seed}", "selector": selector, "seed": seed, "kind": "score"}
            cells = [(0, "a", 10), (0, "b", 20), (1, "a", first), (1, "b", 25), (2, "a", end), (2, "b", second)]
            cells += [(2, name, 30 + seed) for name in ood]
            rows += [
                who | {"stage": stage, "task": task, "task_kind": "stage", "scorer": "token_accuracy", "value": value}
                for stage, task, value in cells
            ]
    return Scorecard.build(
        records_table(rows), tasks=("a", "b"), ood=ood, primary=dict.fromkeys(("a", "b", *ood), "token_accuracy"),
        metric_spec=MetricSpec(), threshold=0.9,
    )  # fmt: skip


def test_bare_selector_has_the_same_parameters():
    assert bare_selectors(recipe()) == {"loss + replay 20%": "loss", "guarded": "loss", "broad + items": "broad"}


def test_interventions_are_paired_by_seed_with_holm():
    table = intervention_table(intervention_card(SCORES, ood=("o",)), recipe())
    rows = table[table["view"] == "primary"].set_index(["selector", "metric"])
    assert set(rows.index.get_level_values(0)) == {"loss + replay 20%", "guarded"}
    values = {name: np.array(seeds, dtype=float) for name, seeds in SCORES.items()}
    p = {}
    for name, bare in (("loss + replay 20%", "loss"), ("guarded", "loss")):
        lost = [values[who][:, 0] - values[who][:, 2] for who in (name, bare)]
        row = rows.loc[name, "forgetting"]
        found = ttest_rel(*lost)
        low, high = found.confidence_interval(0.95)
        assert (row["n"], row["bare"]) == (3, "loss")
        assert row["mean"] == pytest.approx((lost[0] - lost[1]).mean())
        assert (row["ci_low"], row["ci_high"], row["p"]) == pytest.approx((low, high, found.pvalue))
        p[name] = found.pvalue
    smaller, larger = sorted(p, key=p.get)
    assert rows.loc[smaller, "forgetting"]["p_holm"] == pytest.approx(2 * p[smaller])
    assert rows.loc[larger, "forgetting"]["p_holm"] == pytest.approx(max(p[larger], 2 * p[smaller]))
    assert rows.loc["guarded", "intervention"].unique() == ["proxy penalty 0.5 + min cluster 5%"]
    same = rows.loc["guarded", "ood"]  # every selector has the seed's OOD score
    assert (same["mean"], same["p"]) == (0, 1)


def test_interventions_need_bare_selector_and_scores():
    without = {name: seeds for name, seeds in SCORES.items() if name != "loss"}
    assert intervention_table(intervention_card(without), recipe()).empty
    assert set(intervention_table(intervention_card(SCORES), recipe())["metric"]) == {
        "current",
        "forgetting",
        "long_horizon",
    }


def test_a_seed_that_one_side_lacks_is_not_counted():
    table = intervention_table(intervention_card(SCORES | {"guarded": SCORES["guarded"][:2]}), recipe()).set_index(
        ["selector", "metric"]
    )
    assert (table.loc[("guarded", "current"), "n"] == 2).all()
    assert (table.loc[("loss + replay 20%", "current"), "n"] == 3).all()
