from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest

from longgame.errors import PluginError
from longgame.recipe import SelectorSpec
from longgame.selection.base import Selector, build_selector
from longgame.selection.history import History, Selection
from longgame.selection.interventions import selector_of
from longgame.selection.policy import SelectionPolicy
from longgame.testing import example_pool, example_signals


def policy_of(selector: Selector, **options) -> SelectionPolicy:
    return SelectionPolicy(selector, History(max_embeddings=8), np.random.default_rng(0), **options)


class Fixed(Selector):
    name = "fixed"

    def __init__(self, make) -> None:
        self.make = make

    def select(self, pool, signals, history, budget, rng):
        return self.make(pool)


def test_tokens_left_over_are_carried_into_the_next_round() -> None:
    policy = policy_of(build_selector("loss"))
    for number in range(5):
        policy.choose(example_pool(10, seed=number), 60, example_signals)
    spent = sum(entry.selection.tokens for entry in policy.rounds)
    assert spent + policy.carry == 5 * 60
    assert [entry.budget for entry in policy.rounds[1:]] == [
        60 + entry.budget - entry.selection.tokens for entry in policy.rounds[:-1]
    ]
    policy.begin_stage(np.random.default_rng(1))
    assert (policy.rounds, policy.carry) == ([], 0)
    assert policy.history.n_selected > 0


def test_a_required_signal_is_computed_once() -> None:
    asked = []

    def score(pool, names):
        asked.append(tuple(names))
        return example_signals(pool, names)

    selector = build_selector("loss")
    selector.requires = ("loss", "loss", "embedding")
    policy = policy_of(selector)
    policy.choose(example_pool(6), 50, score)
    assert asked == [("loss", "embedding")]
    assert len(policy.history.embeddings) == len(policy.rounds[0].selection.rows)


def test_gradients_of_the_picks_are_measured_every_nth_round() -> None:
    policy = policy_of(build_selector("loss"), gradient_every=2)
    for number in range(4):
        policy.choose(example_pool(6, seed=number), 50, example_signals)
    assert [entry.gradients is not None for entry in policy.rounds] == [True, False, True, False]
    first = policy.rounds[0]
    assert first.gradients is not None
    assert len(first.gradients) == len(first.selection.rows)
    assert policy.measuring > 0  # told apart from the cost of selecting
    policy.begin_stage(np.random.default_rng(1))
    assert policy.measuring == 0


class Stepped(Selector):
    """Scores candidates by the values it is given."""

    name = "stepped"

    def __init__(self, values) -> None:
        self.values = np.array(values, dtype=float)

    def score(self, pool, signals, history):
        return self.values


@pytest.mark.parametrize(
    ("values", "tied"),
    [([1.0] * 39 + [0.0], 39 / 40), (list(range(40)), 0.0), ([1.0] * 20 + [0.0] * 20, 0.5)],
    ids=["constant", "distinct", "half"],
)
def test_a_cut_within_a_tie_of_most_candidates_is_logged(caplog, values, tied) -> None:
    policy = policy_of(Stepped(values))
    pool = example_pool(40)
    for _ in range(2):
        policy.choose(pool, int(pool.tokens.sum()) // 4, example_signals)
    assert policy.tied_share == pytest.approx(tied)
    messages = [record.getMessage() for record in caplog.records]
    if tied > 0.5:
        assert len(messages) == 1  # once, not every round
        assert messages[0].startswith("selector 'stepped': 98 % of 40 candidates share the score")
    else:
        assert messages == []


def test_ties_of_a_few_candidates_or_without_score_are_not_logged(caplog) -> None:
    few = policy_of(Stepped([1.0] * 10))
    few.choose(example_pool(10), 60, example_signals)
    assert few.tied_share == 1
    scoreless = policy_of(Fixed(lambda pool: Selection.of(pool, np.array([0]))))
    scoreless.choose(example_pool(40), 100, example_signals)
    assert np.isnan(scoreless.tied_share)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda pool: Selection.of(pool, np.array([], dtype=int)),
            "selected nothing from 4 candidates .* 4 of them fit",
        ),
        (lambda pool: Selection.of(pool, np.array([1, 1])), "returned a row twice"),
        (lambda pool: Selection(np.array([9]), 1), "rows outside 0…3"),
        (lambda pool: Selection(np.array([0]), 0), "and reported 0"),
        (lambda pool: Selection.of(pool, np.arange(4)), "tokens of 20 and reported"),
        (lambda pool: None, "returned a NoneType; return Selection.of"),
        (lambda pool: [0], "returned a list"),
        (lambda pool: Selection.of(pool, np.array([0.5])), "selector 'fixed': a selection .* give the row numbers"),
        (lambda pool: Selection.of(pool, pool.tokens < 9), "np.flatnonzero"),
        (lambda pool: Selection.of(pool, np.array([-1])), "rows outside 0…3"),
        (lambda pool: Selection.of(pool, np.array([4])), "rows outside 0…3"),
        (
            lambda pool: Selection.of(pool, np.array([0]), {"score": np.zeros(3)}),
            "'score' has the shape \\(3,\\) for 4",
        ),
        (lambda pool: {}["no such key"], "failed in select\\(\\): KeyError: 'no such key'"),
        (lambda pool: sys.exit(3), "failed in select\\(\\): SystemExit: 3"),
        (lambda: None, "failed in select\\(\\): TypeError"),
    ],
)
def test_invalid_selection_is_refused(make, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        policy_of(Fixed(make)).choose(example_pool(4, seed=3), 20, example_signals)


@pytest.mark.parametrize("around", [{}, {"min_cluster_share": 0.1}, {"proxy_penalty": 1.0}])
def test_empty_round_names_the_score_file_cause_and_fix(tmp_path, around) -> None:
    pool = example_pool(4, seed=3)
    path = tmp_path / "mine.csv"
    for keep, cause in (
        ([0, 0, 0, 0], "keeps none of the 4 candidates of round 1, so"),
        ([1, 0, 0, 0], f"keeps 1 of the 4 candidates of round 1, the shortest of {pool.tokens[0]} tokens; 12 may be"),
    ):
        pd.DataFrame({"sample_id": pool.ids, "keep": keep}).to_csv(path, index=False)
        policy = policy_of(selector_of(SelectorSpec(name=f"scores:{path}", **around)))
        with pytest.raises(PluginError) as caught:
            policy.choose(pool, 12, example_signals)
        assert f"score file '{path}' {cause}" in str(caught.value)
        assert "Keep more, or set rounds: 1: then it chooses once, from all candidates" in str(caught.value)


def test_signals_of_other_candidates_are_refused() -> None:
    def score(pool, names):
        return example_signals(pool.take(np.arange(len(pool))[::-1]), names)

    with pytest.raises(PluginError, match="signals are not those of the candidates"):
        policy_of(build_selector("loss")).choose(example_pool(4), 50, score)


@pytest.mark.parametrize("name", ["random", "utility-diversity", "lhas"])
def test_restoring_continues_identically(name: str) -> None:
    one, two = policy_of(build_selector(name)), policy_of(build_selector(name))
    for number in range(3):
        one.choose(example_pool(12, seed=number), 70, example_signals)
    two.load_state_dict(one.state_dict())
    for number in range(3, 6):
        pool = example_pool(12, seed=number)
        first, second = (policy.choose(pool, 70, example_signals)[1] for policy in (one, two))
        assert first.picked_ids == second.picked_ids
        np.testing.assert_equal(dict(first.selection.scores), dict(second.selection.scores))
    assert one.carry == two.carry
