"""PIR, SDF and feasibility: hand-computed values; what is not measured or not defined is NaN, never 0."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from longgame.errors import DataError
from longgame.metrics.efficiency import (
    Feasibility,
    dense_rank,
    efficiency,
    feasibility_of,
    feasibility_ranks,
    performance_improvement_ratio,
    published,
    published_feasibility,
    selected_fraction,
    trial_efficiency,
    undefined_ratios,
)
from longgame.metrics.scorecard import Scorecard
from longgame.recipe import MetricSpec, SelectorSpec

NAN = float("nan")
EXAMPLES = Path(__file__).parents[2] / "examples"
EMPTY = {"task_kind": "", "sub_skill": "", "scorer": "", "probe": "", "step": -1, "tokens": -1, "unit": ""}


def rows(selector, seed, now, later, tokens, examples):
    """Two stages, tasks a and b: now = scores right after each stage, later = a's score at the end."""
    who = {"trial": f"{selector}-s{seed}", "selector": selector, "seed": seed, **EMPTY}
    cells = [(0, "a", 10.0), (0, "b", 10.0), (1, "a", now[0]), (1, "b", 10.0), (2, "a", later), (2, "b", now[1])]
    found = [
        {**who, "kind": "score", "stage": stage, "task": task, "task_kind": "stage", "scorer": "token_accuracy",
         "sub_skill": "x", "name": "score", "value": value}
        for stage, task, value in cells
    ]  # fmt: skip
    for name, value in (("selected_tokens", tokens), ("selected_examples", examples)):
        found += [{**who, "kind": "cost", "stage": stage, "name": name, "value": value / 2} for stage in (1, 2)]
    return found


def card(records, reference="random", tasks=("a", "b")):
    return Scorecard.build(
        pd.DataFrame(records),
        tasks=list(tasks),
        ood=[],
        primary=dict.fromkeys(tasks, "token_accuracy"),
        metric_spec=MetricSpec(),
        threshold=0.9,
        reference=reference,
    )


@pytest.fixture(scope="module")
def cards():
    ours = [
        *rows("random", 0, (40, 60), 30, tokens=250, examples=25),
        *rows("random", 1, (40, 40), 20, tokens=250, examples=26),
        *rows("loss", 0, (60, 60), 20, tokens=240, examples=10),
        *rows("loss", 1, (50, 50), 20, tokens=240, examples=12),
    ]
    full = [
        *rows("all data", 0, (50, 60), 40, tokens=1000, examples=100),
        *rows("all data", 1, (40, 50), 40, tokens=1000, examples=100),
    ]
    return card(ours), card(full, reference="all data")


def test_pir_is_the_mean_over_benchmarks_of_score_ratios():
    assert performance_improvement_ratio(np.array([60.0, 30.0]), np.array([50.0, 40.0])) == pytest.approx(0.975)
    many = performance_improvement_ratio(np.array([[1.2, 3.0], [2.0, 2.0]]), np.array([[4.0, 4.0], [4.0, 1.0]]))
    np.testing.assert_allclose(many, [(0.3 + 0.75) / 2, (0.5 + 2.0) / 2])


def test_what_is_not_measured_or_not_defined_is_nan_and_never_0():
    scores, full = np.array([[50.0, NAN, 40.0], [50.0, NAN, NAN]]), np.array([[50.0, NAN, 20.0], [25.0, NAN, 20.0]])
    np.testing.assert_allclose(performance_improvement_ratio(scores, full), [1.5, NAN])
    zero = performance_improvement_ratio(np.array([[0.0, 5.0], [5.0, 5.0]]), np.array([[0.0, 5.0], [5.0, 5.0]]))
    np.testing.assert_array_equal(zero, [NAN, 1.0])  # 0 / 0 does not turn a benchmark into one that was not measured
    assert performance_improvement_ratio(np.array([0.0]), np.array([5.0])) == 0.0
    assert np.isnan(performance_improvement_ratio(np.array([NAN]), np.array([5.0])))
    np.testing.assert_array_equal(selected_fraction([5, NAN, 5, 5], [20, 20, NAN, 0]), [0.25, NAN, NAN, NAN])
    with pytest.raises(DataError, match=r"\(2,\) and \(3,\)"):
        performance_improvement_ratio(np.ones(2), np.ones(3))


def test_trial_is_divided_by_full_data_of_its_seed(cards):
    found = trial_efficiency(*cards).set_index("trial")
    np.testing.assert_allclose(found.loc["random-s0", ["pir_now", "pir_later"]].astype(float), [0.9, 0.875])
    np.testing.assert_allclose(found.loc["loss-s1", ["pir_now", "pir_later"]].astype(float), [1.125, 0.75])
    np.testing.assert_allclose(found.loc["loss-s0", ["sdf_rows", "sdf_tokens"]].astype(float), [0.1, 0.24])


def test_intervals_are_over_ratios_paired_by_seed(cards):
    found = efficiency(*cards).set_index("selector")
    # random now: 0.9 and 0.9, no spread: no interval. loss now: (1.2 + 1) / 2 = 1.1 and 1.125.
    assert found.pir_now["random"] == pytest.approx(0.9)
    assert np.isnan(found.pir_now_low["random"])
    assert found.pir_now["loss"] == pytest.approx(1.1125)
    half = 12.706204736 * np.sqrt(2) * 0.0125 / np.sqrt(2)  # t(0.975, 1) · sd / √n
    assert found.pir_now_low["loss"] == pytest.approx(1.1125 - half)
    assert found.pir_now_high["loss"] == pytest.approx(1.1125 + half)
    assert list(found.pir_now_n) == [2, 2]
    assert found.sdf_rows["random"] == pytest.approx(0.255)
    assert found.sdf_tokens["random"] == pytest.approx(0.25)


def test_seed_without_full_data_is_left_out(cards):
    ours, _ = cards
    full = card(rows("all data", 1, (40, 50), 40, tokens=1000, examples=100), reference="all data")
    found = efficiency(ours, full).set_index("selector")
    assert list(found.pir_now_n) == [1, 1]
    assert found.pir_now["loss"] == pytest.approx(1.125)
    assert np.isnan(found.pir_now_low["loss"])
    assert found.sdf_rows["loss"] == pytest.approx(0.12)


def test_a_full_data_score_of_0_is_told(cards):
    assert undefined_ratios(cards[1]) == ()
    zero = card(rows("all data", 0, (50, 0), 40, tokens=1000, examples=100), reference="all data")
    assert undefined_ratios(zero) == ("b",)
    assert efficiency(cards[0], zero).pir_now.isna().all()


def test_full_data_trials_of_another_walk_are_refused(cards):
    ours, full = cards
    other = card(rows("all data", 0, (50, 60), 40, 1000, 100), reference="all data", tasks=("b", "a"))
    with pytest.raises(DataError, match="walk b, a and these walk a, b"):
        efficiency(ours, other)
    with pytest.raises(DataError, match="have 2 selectors"):
        efficiency(ours, ours)
    with pytest.raises(DataError, match="unknown view 'exact'"):
        efficiency(ours, full, view="exact")


def test_equal_penalties_share_a_rank_and_leave_no_gap():
    assert list(dense_rank(np.array([4.0, 3.0, 4.0, 9.0]))) == [2, 1, 2, 3]
    with pytest.raises(DataError, match="NaN"):
        dense_rank(np.array([1.0, NAN]))


def test_penalties_by_hand():
    hard = Feasibility(2, 5, reproducible=False, model_free=False, dataset_free=False, gpt_free=False)
    assert (hard.simplicity_penalty, hard.flexibility_penalty) == (2 * 2 + 5 + 1, 3 + 2 + 1)
    easy = Feasibility(0, 1, reproducible=True, model_free=True, dataset_free=True, gpt_free=True)
    assert (easy.simplicity_penalty, easy.flexibility_penalty) == (1, 0)
    many = Feasibility(101, 1, reproducible=True, model_free=True, dataset_free=True, gpt_free=True)
    assert many.simplicity_penalty == 200


def test_survey_methods_rank_by_their_indicators():
    ranks = feasibility_ranks(published_feasibility())
    found = dict(zip(published()["method"], ranks.itertuples(index=False, name=None), strict=True))
    assert found == {
        "AlpaGasus": (1, 2, 1), "Superfiltering": (3, 4, 3), "InsTag": (2, 2, 2), "DEITA": (6, 5, 7),
        "InstructionGPT-4": (7, 3, 6), "Nuggets": (2, 1, 1), "IFD": (4, 4, 4), "LESS": (5, 4, 5),
        "Instruction-Mining": (8, 3, 7), "SHED": (8, 4, 8), "CaR": (2, 1, 1), "SelectIT": (2, 1, 1),
    }  # fmt: skip


def test_published_points_are_the_survey_s_and_name_their_source():
    table = published().set_index("method")
    told = {
        "AlpaGasus": (0.173, 1.284), "Superfiltering": (0.05, 1.475), "InsTag": (0.02, 1.344), "DEITA": (0.1, 1.426),
        "Nuggets": (0.145, 1.519), "IFD": (0.05, 1.747), "LESS": (0.05, 1.491), "Instruction-Mining": (0.025, 1.4),
        "SHED": (0.09, 1.46), "CaR": (0.0196, 1.343), "SelectIT": (0.2, 1.653), "InstructionGPT-4": (0.058, 1.443),
    }  # fmt: skip
    assert {name: (row.sdf, row.pir) for name, row in table.iterrows()} == told
    assert table["source"].str.contains("2406.14115").all()


@pytest.mark.parametrize(
    ("spec", "steps", "model_free"),
    [
        ({"name": "random"}, 1, True),
        ({"name": "quality"}, 2, True),
        ({"name": "quality", "min_cluster_share": 0.05}, 3, False),
        ({"name": "random", "replay": {"share": 0.2}}, 2, True),
        ({"name": "loss"}, 2, False),
        ({"name": "gradient"}, 2, False),
        ({"name": "diversity"}, 2, False),
    ],
)
def test_our_selectors_indicators_follow_from_what_they_need(spec, steps, model_free):
    found = feasibility_of(SelectorSpec.model_validate(spec))
    assert (found.steps, found.model_free, found.trained_llms, found.gpt_free) == (steps, model_free, 0, True)


def test_a_plug_in_s_feasibility_is_its_author_s_to_tell():
    assert feasibility_of(SelectorSpec(name=f"{EXAMPLES / 'my_selector.py'}:MySelector")) is None


@pytest.mark.parametrize("name", ["scores:gone.parquet", "gone.py:MySelector"])
def test_a_file_s_feasibility_needs_no_file(name):
    assert feasibility_of(SelectorSpec(name=name)) is None
