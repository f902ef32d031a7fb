from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longgame.errors import BudgetError, PluginError, RecipeError
from longgame.selection.base import Selector, build_selector, check_selector
from longgame.selection.budget import descending, fill_budget


def test_what_does_not_fit_is_passed_over_and_the_walk_goes_on() -> None:
    # 10 tokens: 6 fits, 5 does not, 3 does, 2 does not, 1 does
    order, tokens = np.array([0, 1, 2, 3, 4]), np.array([6, 5, 3, 2, 1])
    assert fill_budget(order, tokens, 10).tolist() == [0, 2, 4]


@given(
    tokens=st.lists(st.integers(1, 30), min_size=1, max_size=20), budget=st.integers(1, 200), seed=st.integers(0, 99)
)
def test_fill_budget_never_exceeds_and_leaves_nothing_that_fits(tokens: list[int], budget: int, seed: int) -> None:
    costs = np.array(tokens)
    order = np.random.default_rng(seed).permutation(len(costs))
    if costs.min() > budget:
        with pytest.raises(BudgetError, match=f"the shortest has {costs.min()}"):
            fill_budget(order, costs, budget)
        return
    kept = fill_budget(order, costs, budget)
    left = budget - costs[kept].sum()
    assert left >= 0
    assert (np.delete(costs, kept) > left).all()


def test_a_budget_of_zero_is_refused() -> None:
    with pytest.raises(BudgetError, match="must be at least 1"):
        fill_budget(np.array([0]), np.array([1]), 0)


def test_ties_go_to_the_smaller_id_wherever_it_stands() -> None:
    assert descending(np.array([1.0, 2.0, 2.0, 2.0]), ("a", "d", "b", "c")).tolist() == [2, 3, 1, 0]


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("lhas", {"utilty": "loss"}, "no parameter 'utilty'. Did you mean 'utility'?"),
        ("random", {"seed": 1}, "no parameter 'seed'. It takes none."),
        ("gradient", {"mode": "norms"}, "mode is 'norms'. Did you mean 'norm'? Allowed: norm, similarity"),
        ("lhas", {"future_weight": -1}, "future_weight is -1; give a finite number ≥ 0"),
        ("lhas", {"coverage_weight": float("nan")}, "coverage_weight is nan"),
        ("lhas", {"concentration_weight": True}, "concentration_weight is True"),
        ("lhas", {"refreshes": 0}, "refreshes is 0; give a whole number ≥ 1"),
        ("lhas", {"utility": "el2n"}, "selector 'lhas': utility is 'el2n'"),
        ("utility-diversity", {"buffer_size": 2.5}, "buffer_size is 2.5"),
        ("utility-diversity", {"normalise": "ranks"}, "Did you mean 'rank'?"),
        ("diversity", {"use_history": "yes"}, "use_history is 'yes'; give true or false"),
        ("diversity", {"method": "k-means", "use_history": True}, "use_history belongs to method: farthest-first"),
        ("diversity", {"clusters": 4}, "clusters belongs to method: k-means"),
        ("diversity", {"threshold": 0.5}, "threshold belongs to method: threshold, and method is farthest-first"),
        (
            "diversity",
            {"method": "threshold", "threshold": 1.5},
            "threshold is 1.5; give a finite number above -1, at most 1",
        ),
        ("diversity", {"method": "threshold", "partitions": 2}, "partitions belongs to method: farthest-first"),
        ("diversity", {"method": "facility-location", "greedy": "eager"}, "greedy is 'eager'"),
        ("diversity", {"device": "tpu"}, "device is 'tpu'. Did you mean 'cpu'? Allowed: cpu, cuda"),
        ("los", {}, "unknown selector 'los'. Did you mean 'loss'?"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(name: str, parameters: dict, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build_selector(name, parameters)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "parameters", "requires"),
    [
        ("gradient", {"mode": "similarity"}, {"grad_sketch"}),
        ("utility-diversity", {"diversity_weight": 0, "utility": "loss"}, {"loss"}),
        ("lhas", {"coverage": "cluster", "future_weight": 0, "concentration_weight": 0, "utility": "loss"},
         {"loss", "logit_sketch", "cluster", "embedding"}),
        ("lhas", {"coverage_weight": 0, "concentration_weight": 0, "diversity_weight": 0},
         {"logit_nuclear_norm", "adam_future_alignment"}),
        ("lhas", {"coverage_weight": 0, "concentration_weight": 0, "utility_weight": 0, "alignment": "sketch"},
         {"grad_sketch", "future_proxy"}),
    ],
)  # fmt: skip
def test_a_selector_asks_for_no_more_than_its_options_need(name: str, parameters: dict, requires: set) -> None:
    assert set(build_selector(name, parameters).requires) == requires


def test_a_class_that_breaks_the_contract_is_refused() -> None:
    class NoSelect(Selector):
        name = "no-select"

    class OneString(Selector):
        name = "one-string"
        requires = "loss"  # type: ignore[assignment]

        def select(self, *args):
            return None

    class Foreign:
        name = "foreign"

    for cls, message in (
        (NoSelect, "neither score.* nor select"),
        (OneString, r"write it as a tuple: \('loss',\)"),
        (Foreign, "does not derive from longgame.Selector"),
    ):
        with pytest.raises(PluginError, match=message):
            check_selector(cls.name, cls)


def test_state_for_a_selector_without_memory_is_refused() -> None:
    with pytest.raises(PluginError, match=r"keeps no state but was given \['buffer'\]"):
        build_selector("loss").load_state_dict({"buffer": 1})


class Scores(Selector):
    """Returns what it was made with as its score; candidates named x are not eligible."""

    name = "scores-of-mine"

    def __init__(self, score) -> None:
        self.value = score

    def score(self, pool, signals, history):
        return self.value

    def eligible(self, pool):
        return np.array([name != "x" for name in pool.ids])


def test_default_select_fills_the_budget_by_score(world) -> None:
    scene = world([2, 2, 2, 3], ids="dcba")
    chosen = scene.select(Scores(np.array([1.0, 3.0, 1.0, 2.0])), 7)
    assert scene.names(chosen) == "cab"  # a costs 3; b and d tie, and only one of them fits
    assert chosen.scores["score"].tolist() == [1, 3, 1, 2]
    assert chosen.tokens == 7


def test_default_select_never_picks_nan_or_ineligible(world) -> None:
    scene = world([1] * 4, ids="abxd")
    chosen = scene.select(Scores(np.array([np.nan, 1.0, 9.0, 2.0])), 4)
    assert scene.names(chosen) == "db"
    assert len(scene.select(Scores(np.full(4, np.nan)), 4).rows) == 0


def test_default_select_logs_every_term_and_score_decides(world) -> None:
    scene = world([1] * 3)
    terms = {"difficulty": np.array([3.0, 2.0, 1.0]), "score": np.array([1.0, 2.0, 3.0])}
    chosen = scene.select(Scores(terms), 2)
    assert scene.names(chosen) == "cb"
    assert {name: column.tolist() for name, column in chosen.scores.items()} == {
        "difficulty": [3, 2, 1],
        "score": [1, 2, 3],
    }


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (np.zeros(2), r"'score' of score\(\) has the shape \(2,\) for 3 candidates\. Give one real number for each"),
        (1.0, r"the shape \(\) for 3"),
        (None, r"the shape \(\) for 3"),
        ({"utility": np.zeros(3)}, r"the terms \['utility'\]; one of them must be 'score'"),
    ],
)
def test_score_of_another_shape_is_refused(world, score, message) -> None:
    with pytest.raises(PluginError, match=message):
        world([1] * 3).select(Scores(score), 3)


def test_default_select_refuses_a_budget_below_every_candidate(world) -> None:
    with pytest.raises(BudgetError, match="the shortest has 2"):
        world([2, 3]).select(Scores(np.zeros(2)), 1)
