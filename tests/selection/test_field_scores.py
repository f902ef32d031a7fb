"""Rankers of the field, each against its formula on numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from longgame.data.examples import Example, Pool
from longgame.errors import RecipeError
from longgame.selection.base import build_selector
from longgame.selection.budget import gumbel_by_id
from longgame.selection.methods.el2n import EL2NSelector
from longgame.selection.methods.flow import FLOWSelector
from longgame.selection.methods.gradient import GradientSelector
from longgame.selection.methods.grand import GraNdSelector
from longgame.selection.methods.ifd import IFDSelector
from longgame.selection.methods.ppl_mid import MiddlePerplexitySelector
from longgame.selection.methods.tailsft import TailSFTSelector

LOSSES = {"loss": [1.0, 2.0, 3.0, 0.5, 0.0], "loss_without_prompt": [2.0, 2.0, 2.0, 0.25, 1.0]}
"""Ratios ½, 1, 1½, 2, 0."""


def test_ifd_picks_the_highest_ratio_up_to_one_first(world) -> None:
    scene = world([1] * 5, **LOSSES)
    selection = scene.select(IFDSelector(), 5)
    assert scene.names(selection) == "baecd"
    assert selection.scores["ifd"].tolist() == [0.5, 1.0, 1.5, 2.0, 0.0]
    assert selection.scores["score"].tolist() == [0.5, 1.0, -1.5, -2.0, 0.0]


def test_ifd_above_one_is_never_picked_if_it_is_left_out(world) -> None:
    scene = world([1] * 5, **LOSSES)
    assert scene.picks(IFDSelector("never"), 5) == "bae"
    assert scene.picks(IFDSelector("never"), 2) == scene.picks(IFDSelector(), 2) == "ba"


def test_ifd_budget_counts_all_candidates_not_the_kept_ones(world) -> None:
    # 40 % of five candidates are two, not 40 % of the three with a ratio up to 1
    scene = world([1] * 5, **LOSSES)
    for rejected in ("last", "never"):
        assert len(scene.select(IFDSelector(rejected), 2).rows) == 2


def test_ifd_with_every_ratio_above_one_still_fills_the_budget(world) -> None:
    scene = world([1] * 3, loss=[3.0, 2.0, 4.0], loss_without_prompt=[1.0, 1.0, 1.0])
    assert scene.picks(IFDSelector(), 2) == "ba"


def test_ifd_of_a_response_without_loss_is_a_number(world) -> None:
    scene = world([1] * 3, loss=[0.0, 1.0, 0.5], loss_without_prompt=[0.0, 0.0, 1.0])
    selection = scene.select(IFDSelector(), 3)
    assert np.isfinite(selection.scores["score"]).all()
    assert scene.names(selection) == "cab"


def two_turns() -> Pool:
    """BOS, a prompt of three tokens, an answer of two, a prompt of two, an answer of four (with its end)."""
    tokens = np.array([1, 50, 51, 9, 60, 61, 52, 9, 70, 71, 72, 73])
    mask = np.isin(np.arange(12), [4, 5, 8, 9, 10, 11])
    example = Example("a", "p", "r")
    return Pool((example,), (tokens,), np.array([6]), np.array([6]), loss_masks=(mask,))


def test_ifd_scores_the_same_tokens_behind_bos_with_and_without_prompt() -> None:
    pool = two_turns()
    turns, rows = pool.without_prompts()
    assert rows.tolist() == [0, 0]
    # first token (BOS) and the end of the header stay in front, so the first answer token has a predecessor
    assert [ids.tolist() for ids in turns.input_ids] == [[1, 9, 60, 61], [1, 9, 70, 71, 72, 73]]
    assert int(np.sum(turns.response_tokens)) == int(pool.response_tokens[0])


def test_el2n_and_grand_take_the_highest_first(world) -> None:
    scene = world([1] * 4, ids="dcba", el2n=[0.3, 1.2, 0.9, 0.9], grad_norm=[1.0, 3.0, 4.0, 4.0])
    assert scene.picks(EL2NSelector(), 4) == "cabd"
    assert scene.picks(GraNdSelector(), 4) == scene.picks(GradientSelector("norm"), 4) == "abcd"


def test_grand_norm_is_of_the_example_not_of_its_tokens(world) -> None:
    scene = world([9, 9], grad_norm=[2.0, 1.0])
    scene.pool = replace(scene.pool, prompt_tokens=np.array([8, 1]), response_tokens=np.array([1, 8]))
    assert scene.picks(GraNdSelector(), 9) == "a"


def test_ppl_mid_picks_from_the_middle_outwards(world) -> None:
    scene = world([1] * 5, difficulty=[0.125, 0.25, 0.5, 0.75, 0.875])
    selection = scene.select(MiddlePerplexitySelector(), 5)
    assert scene.names(selection) == "cbdae"
    assert selection.scores["percentile"] == pytest.approx([12.5, 25, 50, 75, 87.5])
    assert scene.picks(MiddlePerplexitySelector(0, 40), 3) == "bac"
    assert scene.picks(MiddlePerplexitySelector(rejected="never"), 5) == "cbd"


def test_ppl_mid_percentiles_are_of_the_stage_not_of_the_round(world) -> None:
    # a round that offers the hard half alone still prefers its easiest
    scene = world([1] * 3, difficulty=[0.9, 0.6, 0.8])
    assert scene.picks(MiddlePerplexitySelector(), 3) == "bca"
    assert MiddlePerplexitySelector.requires == ("difficulty",)


@pytest.mark.parametrize("band", [{"low": 75, "high": 25}, {"high": 101}, {"low": -1}, {"low": 30, "high": 30}])
def test_ppl_mid_refuses_a_band_that_is_none(band) -> None:
    with pytest.raises(RecipeError, match=r"low|high"):
        build_selector("ppl-mid", band)


def test_tailsft_leaves_out_what_improved_most(world) -> None:
    scene = world([1] * 3, loss=[1.0, 0.5, 2.0], base_loss=[3.0, 0.75, 1.0])  # learned: 2, ¼, −1 nats
    assert scene.picks(TailSFTSelector(), 3) == "cba"
    assert scene.select(TailSFTSelector(), 3).scores["score"].tolist() == [-2.0, -0.25, 1.0]


def test_flow_weight_is_exp_of_minus_loss_by_the_median(world) -> None:
    scene = world([1] * 3, base_loss=[1.0, 2.0, 8.0])
    selection = scene.select(FLOWSelector(sample=False), 3)
    assert scene.names(selection) == "abc"
    assert selection.scores["preference"] == pytest.approx([math.exp(-0.5), math.exp(-1), math.exp(-4)])
    assert scene.select(FLOWSelector(temperature=4), 3).scores["preference"][2] == pytest.approx(math.exp(-2))


def test_flow_draws_in_proportion_to_its_weights(world) -> None:
    scene = world([1] * 3, base_loss=[1.0, 2.0, 4.0])
    weights = np.exp([-0.5, -1.0, -2.0])
    share = weights / weights.sum()
    pairs = [scene.picks(FLOWSelector(), 2, seed=seed) for seed in range(3000)]
    for first, second in itertools.permutations(range(3), 2):
        expected = share[first] * share[second] / (1 - share[first])
        assert pairs.count("abc"[first] + "abc"[second]) / 3000 == pytest.approx(expected, abs=0.03)


def test_gumbel_draws_hang_on_the_id_not_on_the_row() -> None:
    forward = gumbel_by_id(("a", "b", "c"), np.random.default_rng(0))
    backward = gumbel_by_id(("c", "b", "a"), np.random.default_rng(0))
    assert forward.tolist() == backward[::-1].tolist()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("ifd", {"rejected": "maybe"}), ("flow", {"temperature": 0}), ("flow", {"temperature": math.nan})],
)
def test_parameters_out_of_range_are_refused(name, parameters) -> None:
    with pytest.raises(RecipeError, match=f"selector '{name}'"):
        build_selector(name, parameters)
