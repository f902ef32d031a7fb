from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from longgame.errors import BudgetError, DataError, RecipeError
from longgame.recipe import SelectorSpec
from longgame.selection.base import build_selector
from longgame.selection.interventions import selector_of


@pytest.fixture
def scores(tmp_path):
    """Write a file of scores and give the selector's name."""

    def make(**columns):
        path = tmp_path / "mine.csv"
        pd.DataFrame(columns).to_csv(path, index=False)
        return f"scores:{path}"

    return make


def test_higher_scores_come_first_and_ties_go_by_id(world, scores) -> None:
    selector = build_selector(scores(sample_id=list("abcdx"), score=[1, 5, 2, 5, 99]))
    scene = world([2, 2, 2, 2])
    assert scene.picks(selector, 6) == "bdc"
    assert scene.select(selector, 6).scores["score"].tolist() == [1, 5, 2, 5]


def test_only_what_is_kept_is_taken_in_the_order_of_the_file(world, scores) -> None:
    selector = build_selector(scores(id=list("dbca"), keep=[1, 0, 1, 1]))
    scene = world([1] * 4)
    chosen = scene.select(selector, 4)
    assert scene.names(chosen) == "dca"
    assert chosen.scores["keep"].tolist() == [1, 0, 1, 1]


def test_with_both_the_score_orders_what_is_kept(world, scores) -> None:
    selector = build_selector(scores(id=list("abcd"), keep=[True, False, True, True], score=[1, 9, 2, 3]))
    assert world([1] * 4).picks(selector, 2) == "dc"


def test_missing_candidates_are_counted_named_or_skipped(world, scores) -> None:
    name = scores(id=["b"], score=[1])
    with pytest.raises(DataError, match=r"does not name 2 of 3 candidates: a, c\. Score them too"):
        world([1] * 3).select(build_selector(name), 2)
    scene = world([1] * 3)
    chosen = scene.select(build_selector(name, {"missing": "skip"}), 2)
    assert scene.names(chosen) == "b"
    assert np.isnan(chosen.scores["score"][[0, 2]]).all()
    with pytest.raises(DataError, match=r"does not name 1 of 2 candidates \(in seed 1\): a\."):
        build_selector(name).check(["a", "b"], " (in seed 1)")
    build_selector(name, {"missing": "skip"}).check(["a", "b"])


def test_what_is_not_kept_is_not_taken_by_an_intervention_either(world, scores) -> None:
    name = scores(id=list("abcd"), keep=[1, 1, 0, 0], score=[4, 3, 2, 1])
    scene = world([1] * 4, cluster=[0, 0, 1, 1], grad_sketch=[[-1, 0], [-1, 1], [1, 0], [1, 1]], future_proxy=[1, 0])
    assert sorted(scene.picks(selector_of(SelectorSpec(name=name, min_cluster_share=0.5)), 4)) == ["a", "b"]
    assert scene.picks(selector_of(SelectorSpec(name=name, proxy_penalty=5.0)), 4) == "ba"


def test_wrong_options_and_budgets_are_refused(world, scores) -> None:
    name = scores(id=list("ab"), score=[1, 2])
    with pytest.raises(RecipeError, match="missing is 'skp'.*Did you mean 'skip'"):
        build_selector(name, {"missing": "skp"})
    with pytest.raises(RecipeError, match="Did you mean 'missing'"):
        build_selector(name, {"mising": "skip"})
    with pytest.raises(BudgetError):
        world([5, 5]).select(build_selector(name), 4)
    with pytest.raises(DataError, match="does not exist"):
        build_selector("scores:nowhere.parquet")
