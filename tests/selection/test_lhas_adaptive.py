from __future__ import annotations

import functools

import numpy as np
import pytest

from longgame.errors import RecipeError
from longgame.selection.base import build_selector
from longgame.selection.history import History
from longgame.selection.methods.lhas import LHASSelector
from longgame.selection.methods.lhas_adaptive import AdaptiveLHASSelector
from longgame.testing import example_pool, example_signals

published = functools.partial(AdaptiveLHASSelector, alignment="sketch", concentration_history="all")
"""By sketches and the whole history."""


PLAIN = {"utility": "loss", "diversity_weight": 0.0}


def scene(world, proxy):
    return world(
        [1] * 4,
        loss=[4, 3, 2, 1],
        embedding=[[0, 0], [0, 1], [8, 0], [0, 4]],
        grad_sketch=[[1, 1], [1, -1], [1, 0], [1, 0]],  # mean (1, 0)
        cluster=[0, 0, 1, 2],
        future_proxy=proxy,
    )


@pytest.mark.parametrize(
    ("proxy", "alignment"), [([3, 0], 1.0), ([0, 2], 0.0), ([-1, 0], -1.0), ([1, 3**0.5], 0.5), ([-1, 1], -(0.5**0.5))]
)
def test_adaptive_weights_fall_with_the_alignment(world, proxy, alignment) -> None:
    selector = published(**PLAIN, future_weight=1.0, concentration_weight=0.5)
    terms = scene(world, proxy).select(selector, 2).scores
    assert terms["alignment"] == pytest.approx([alignment] * 4)
    assert terms["future_weight"] == pytest.approx([1 - alignment] * 4, abs=1e-6)
    assert terms["concentration_weight"] == pytest.approx([0.5 * (1 - alignment)] * 4, abs=1e-6)


def test_it_picks_what_lhas_with_these_weights_picks() -> None:
    selector, history, rng = published(smoothing=0.5), History(), np.random.default_rng(0)
    for number in range(4):
        pool = example_pool(30, seed=number)
        signals = example_signals(pool, selector.requires, seed=number)
        before = selector.state_dict()
        chosen = selector.select(pool, signals, history, 150, rng)
        used = {name: float(chosen.scores[name][0]) for name in ("future_weight", "concentration_weight")}
        plain = LHASSelector(**used, alignment="sketch", concentration_history="all")
        plain.load_state_dict({name: before[name] for name in ("buffer", "past", "agreement")})
        expected = plain.select(pool, signals, history, 150, rng)
        assert chosen.rows.tolist() == expected.rows.tolist()
        assert chosen.scores["score"] == pytest.approx(expected.scores["score"])
        history.update(chosen, pool, signals)
    assert len({used["future_weight"], 1.0}) == 2


def test_alignment_is_averaged_within_a_stage(world) -> None:
    selector = published(**PLAIN, smoothing=0.8)
    seen = [scene(world, proxy).select(selector, 2).scores["alignment"][0] for proxy in ([1, 0], [-1, 0], [0, 1])]
    assert seen == pytest.approx([1.0, 0.8 * 1 - 0.2, 0.8 * 0.6])
    fresh = published(**PLAIN, smoothing=0.8)
    fresh.load_state_dict(selector.state_dict())
    assert scene(world, [1, 0]).select(fresh, 2).scores["alignment"][0] == pytest.approx(0.8 * 0.48 + 0.2)
    selector.begin_stage()
    assert selector.state_dict()["alignment"] is None
    assert scene(world, [-1, 0]).select(selector, 2).scores["alignment"][0] == pytest.approx(-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothing": 1.0}, r"smoothing is 1\.0; give a number in \[0, 1\)"),
        ({"smoothing": "a"}, "smoothing is 'a'"),
        ({"future_weight": 0, "concentration_weight": 0}, "nothing to adapt"),
        ({"smoothnig": 0.5}, "Did you mean 'smoothing'"),
    ],
)
def test_wrong_options_are_refused(options, message) -> None:
    with pytest.raises(RecipeError, match=message):
        build_selector("lhas-adaptive", options)


def test_without_a_proxy_there_is_no_geometry_to_measure(world) -> None:
    with pytest.raises(RecipeError, match="no future-proxy gradient"):
        scene(world, [0, 0]).select(published(**PLAIN), 2)


def test_lhas_without_utility_ranks_by_the_other_terms(world) -> None:
    selector = LHASSelector(utility_weight=0, coverage_weight=0, concentration_weight=0, alignment="sketch")
    assert selector.requires == ("grad_sketch", "future_proxy")
    around = scene(world, [0, 1])
    chosen = around.select(selector, 2)
    assert np.isnan(chosen.scores["utility"]).all()
    assert around.names(chosen) == "ac"  # cosines √½, −√½, 0, 0
    with pytest.raises(RecipeError, match="all four weights are 0"):
        LHASSelector(utility_weight=0, coverage_weight=0, future_weight=0, concentration_weight=0)


def test_the_utility_weight_multiplies_the_utility(world) -> None:
    scene_ = scene(world, [0, 1])
    selectors = (LHASSelector(**PLAIN, utility_weight=w, coverage_weight=0, alignment="sketch") for w in (1.0, 2.5))
    one, two = (scene_.select(selector, 2).scores for selector in selectors)
    assert two["score"] - one["score"] == pytest.approx(1.5 * one["utility"])
