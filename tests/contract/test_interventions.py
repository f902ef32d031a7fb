"""Every intervention around every selector keeps the whole contract."""

from __future__ import annotations

import pandas as pd
import pytest

from longgame.recipe import SelectorSpec
from longgame.selectors.base import SELECTORS, build_selector
from longgame.selectors.interventions import selector_of
from longgame.testing import check_selector_contract, example_pool

INTERVENTIONS = {
    "replay": {"replay": {"share": 0.2, "source": "selected"}},
    "floor": {"min_cluster_share": 0.15},
    "penalty": {"proxy_penalty": 0.7},
    "all": {"replay": {"share": 0.2}, "min_cluster_share": 0.15, "proxy_penalty": 0.7, "proxy_as_data": True},
}
SEEDS = (0, *range(1000, 1006))
"""Pools that the contract draws."""


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """A score for every candidate of the contract's pools that hangs on its id."""
    ids = sorted({name for seed in SEEDS for n in (1, 2, 30) for name in example_pool(n, seed).ids})
    path = tmp_path_factory.mktemp("scores") / "mine.csv"
    pd.DataFrame({"sample_id": ids, "score": [int(name[:6], 16) % 7 for name in ids]}).to_csv(path, index=False)
    return str(path)


@pytest.mark.parametrize("around", INTERVENTIONS)
@pytest.mark.parametrize("name", SELECTORS.names())
def test_an_intervention_keeps_the_contract(name, around):
    spec = SelectorSpec(name=name, **INTERVENTIONS[around])
    check_selector_contract(lambda: selector_of(spec))


@pytest.mark.parametrize("around", INTERVENTIONS)
def test_an_intervention_around_scores_keeps_the_contract(scores, around):
    spec = SelectorSpec(name=f"scores:{scores}", **INTERVENTIONS[around])
    check_selector_contract(lambda: selector_of(spec))


def test_scores_of_a_file_keep_the_contract(scores):
    check_selector_contract(lambda: build_selector(f"scores:{scores}"))
