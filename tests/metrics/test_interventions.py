"""With an intervention minus without it: paired by seed, within one selector, Holm over the interventions."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from longgame.audit.store import records_table
from longgame.metrics.comparisons import bare_selectors, intervention_table
from longgame.metrics.scorecard import Scorecard
from longgame.recipe import MetricSpec, parse_recipe

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


def card(scores, ood=()):
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


def test_the_bare_selector_is_the_same_one_with_the_same_parameters():
    assert bare_selectors(recipe()) == {"loss + replay 20%": "loss", "guarded": "loss", "broad + items": "broad"}


def test_differences_are_paired_by_seed_and_holm_counts_the_interventions():
    table = intervention_table(card(SCORES, ood=("o",)), recipe())
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


def test_nothing_is_told_without_the_bare_selector_or_of_scores_that_nobody_measured():
    without = {name: seeds for name, seeds in SCORES.items() if name != "loss"}
    assert intervention_table(card(without), recipe()).empty
    assert set(intervention_table(card(SCORES), recipe())["metric"]) == {"current", "forgetting", "long_horizon"}


def test_a_seed_that_one_side_lacks_is_not_counted():
    table = intervention_table(card(SCORES | {"guarded": SCORES["guarded"][:2]}), recipe()).set_index(
        ["selector", "metric"]
    )
    assert (table.loc[("guarded", "current"), "n"] == 2).all()
    assert (table.loc[("loss + replay 20%", "current"), "n"] == 3).all()
