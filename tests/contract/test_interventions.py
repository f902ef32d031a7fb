"""Every intervention around every selector keeps the whole contract."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from longgame.errors import RecipeError
from longgame.recipe import SelectorSpec
from longgame.selection.base import SELECTORS, Selector, build_selector
from longgame.selection.budget import fill_by_score
from longgame.selection.families import spec_family
from longgame.selection.history import History, Selection
from longgame.selection.interventions import ClusterFloor, ProxyPenalty, Replay, selector_of
from longgame.testing import check_selector_contract, example_pool, example_signals

INTERVENTIONS = {
    "replay": {"replay": {"share": 0.2, "source": "selected"}},
    "floor": {"min_cluster_share": 0.15},
    "penalty": {"proxy_penalty": 0.7},
    "all": {"replay": {"share": 0.2}, "min_cluster_share": 0.15, "proxy_penalty": 0.7, "proxy_as_data": True},
}
WEIGHTED = ("importance", "craig", "gradmatch", "tagcos")
"""Selectors that weight their picks, which the proxy penalty and the cluster floor refuse."""
SEEDS = (0, *range(1000, 1006))
"""Pools that the contract draws."""


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """A score for every candidate of the contract's pools that hangs on its id."""
    ids = sorted({name for seed in SEEDS for n in (1, 2, 30) for name in example_pool(n, seed).ids})
    path = tmp_path_factory.mktemp("scores") / "mine.csv"
    pd.DataFrame({"sample_id": ids, "score": [int(name[:6], 16) % 7 for name in ids]}).to_csv(path, index=False)
    return str(path)


OF_FAMILIES = {spec_family(SelectorSpec(name=name)): name for name in SELECTORS.names() if name not in WEIGHTED}
"""Family → one of its selectors."""


@pytest.mark.parametrize(
    ("name", "around"),
    [
        *((name, "all") for name in SELECTORS.names() if name not in WEIGHTED),
        *((name, around) for name in OF_FAMILIES.values() for around in ("replay", "floor", "penalty")),
        *((name, "replay") for name in WEIGHTED),
    ],
)
def test_an_intervention_keeps_the_contract(name, around):
    spec = SelectorSpec(name=name, **INTERVENTIONS[around])
    check_selector_contract(lambda: selector_of(spec))


def test_selectors_that_give_weights_say_so():
    assert {name for name in SELECTORS.builtin_names() if build_selector(name).weighs} == {*WEIGHTED}

    assert build_selector("svp", {"inner": {"name": "importance", "size": "last-layer"}}).weighs


@pytest.mark.parametrize("around", ["penalty", "floor"])
@pytest.mark.parametrize("name", WEIGHTED)
def test_an_intervention_that_picks_otherwise_refuses_weights(name, around):
    with pytest.raises(RecipeError, match="gives weights to its own picks"):
        selector_of(SelectorSpec(name=name, **INTERVENTIONS[around]))


@pytest.mark.parametrize("around", INTERVENTIONS)
def test_an_intervention_around_scores_keeps_the_contract(scores, around):
    spec = SelectorSpec(name=f"scores:{scores}", **INTERVENTIONS[around])
    check_selector_contract(lambda: selector_of(spec))


def test_scores_of_a_file_keep_the_contract(scores):
    check_selector_contract(lambda: build_selector(f"scores:{scores}"))


class Plain(Selector):
    """The highest loss first; the log is empty."""

    name = "plain"
    requires = ("loss",)

    def select(self, pool, signals, history, budget, rng):
        return Selection.of(pool, fill_by_score(signals["loss"], pool.ids, pool.costs, budget))


class Subset(Plain):
    """The highest loss first among what it takes at all; what it rejects is scored NaN."""

    name = "subset"

    def taken(self, pool, signals):
        return signals["loss"] > 0.4

    def select(self, pool, signals, history, budget, rng):
        taken = self.taken(pool, signals)
        rows = np.flatnonzero(taken & (pool.tokens <= budget))
        if len(rows):
            part = pool.take(rows)
            rows = rows[fill_by_score(signals["loss"][rows], part.ids, part.tokens, budget)]
        return Selection.of(pool, rows, self.log(np.where(taken, signals["loss"], np.nan)))

    def log(self, score):
        return {"score": score}


class Eligible(Subset):
    """Takes a subset by what it knows of the examples, and says so; the log is empty."""

    name = "eligible"

    def taken(self, pool, signals):
        return self.eligible(pool)

    def eligible(self, pool):
        return np.array([int(name[:6], 16) % 3 > 0 for name in pool.ids])

    def log(self, score):
        return {}


@pytest.mark.parametrize("around", INTERVENTIONS)
def test_intervention_keeps_the_contract_without_a_score(around):
    check_selector_contract(lambda: around_of(Plain(), around), skip=("explains_its_scores",))


@pytest.mark.parametrize("around", INTERVENTIONS)
@pytest.mark.parametrize("kind", [Subset, Eligible])
def test_intervention_never_picks_what_the_selector_rejects(kind, around):
    history, rng = History(), np.random.default_rng(0)
    for seed in range(12):
        selector = around_of(kind(), around)
        pool = example_pool(30, seed)
        signals = example_signals(pool, selector.requires, seed)
        taken = kind().taken(pool, signals)
        for budget in (60, 150, int(pool.tokens.sum())):
            chosen = selector.select(pool, signals, history, budget, rng)
            assert taken[chosen.rows].all()
            assert chosen.tokens <= budget
            left = np.setdiff1d(np.flatnonzero(taken), chosen.rows)
            assert not np.any(pool.tokens[left] <= budget - chosen.tokens)


def around_of(selector, around):
    """The interventions of this name around a selector that is already made, as `selector_of` puts them."""
    asked = INTERVENTIONS[around]
    if "proxy_penalty" in asked:
        selector = ProxyPenalty(selector, asked["proxy_penalty"])
    if "min_cluster_share" in asked:
        selector = ClusterFloor(selector, asked["min_cluster_share"])
    if "replay" in asked:
        source = asked["replay"].get("source", "pools")
        selector = Replay(selector, asked["replay"]["share"], source, asked.get("proxy_as_data", False))
    return selector
