from __future__ import annotations

import numpy as np
import pytest

from longgame.selection.methods.utility_diversity import UtilityDiversitySelector

UDS = UtilityDiversitySelector


def test_the_first_round_has_no_diversity(world) -> None:
    scene = world([1] * 3, logit_nuclear_norm=[1, 3, 2], logit_sketch=[[0], [1], [9]])
    chosen = scene.select(UDS(), 1)
    assert scene.names(chosen) == "b"
    assert chosen.scores["diversity"].tolist() == [0, 0, 0]
    assert chosen.scores["score"].tolist() == [-1, 1, 0]


def test_the_second_round_is_pushed_away_from_the_first(world) -> None:
    # buffer holds b = 1: mean distances 1, 0, 8 → ranks 0, −1, 1; utility ranks −1, 1, 0
    scene, selector = world([1] * 3, logit_nuclear_norm=[1, 3, 2], logit_sketch=[[0], [1], [9]]), UDS()
    scene.select(selector, 1)
    chosen = scene.select(selector, 1)
    assert chosen.scores["diversity"].tolist() == [0, -1, 1]
    assert chosen.scores["score"].tolist() == [-1, 0, 1]
    assert scene.names(chosen) == "c"


def test_picks_of_one_round_do_not_push_each_other_apart(world) -> None:
    scene = world([1] * 4, logit_nuclear_norm=[4, 3, 2, 1], logit_sketch=[[5], [5], [0], [0]])
    assert scene.picks(UDS(), 2) == "ab"


def test_the_weight_scales_diversity_and_loss_can_be_the_utility(world) -> None:
    scene = world([1] * 3, loss=[1, 3, 2], logit_sketch=[[0], [1], [9]])
    selector = UDS(utility="loss", diversity_weight=0.25)
    scene.select(selector, 1)
    chosen = scene.select(selector, 1)
    assert chosen.scores["score"].tolist() == [-1, 0.75, 0.25]


def test_z_scales_by_standard_deviations(world) -> None:
    scene = world([1] * 2, logit_nuclear_norm=[1, 5], logit_sketch=[[0], [0]])
    assert scene.select(UDS(normalise="z"), 1).scores["score"] == pytest.approx([-1, 1])


def test_the_buffer_forgets_the_oldest(world) -> None:
    scene, selector = world([1] * 2, logit_nuclear_norm=[1, 2], logit_sketch=[[0], [4]]), UDS(buffer_size=1)
    for _ in range(3):
        assert len(selector.buffer) <= 1
        scene.select(selector, 2)
    assert selector.state_dict()["buffer"]["sketches"].tolist() == [[0.0]]


def test_without_weight_diversity_is_not_measured(world) -> None:
    scene = world([1] * 2, loss=[1, 2])
    chosen = scene.select(UDS("loss", diversity_weight=0), 1)
    assert np.isnan(chosen.scores["diversity"]).all()
    assert scene.names(chosen) == "b"


def test_positions_choose_whose_logits_are_read(world) -> None:
    assert UDS().requires == ("logit_nuclear_norm", "logit_sketch")
    selector = UDS(positions="response", diversity_weight=0)
    scene = world([1] * 3, logit_nuclear_norm=[1, 3, 2], response_logit_nuclear_norm=[3, 1, 2])
    assert (selector.requires, scene.picks(selector, 2)) == (("response_logit_nuclear_norm",), "ac")


@pytest.mark.parametrize(("utility", "signal"), [("excess_loss", "base_loss"), ("reducible_loss", "reference_loss")])
def test_a_difference_of_losses_is_not_led_by_noise(world, utility: str, signal: str) -> None:
    # a is damaged: 5 nats under any model. b is mastered. c is what the other model knows better: 2 − 0.5
    scene = world([1] * 3, loss=[5, 0.1, 2], **{signal: [5, 0.2, 0.5]})
    selector = UDS(utility, diversity_weight=0)
    assert selector.requires == ("loss", signal)
    chosen = scene.select(selector, 3)
    assert scene.names(chosen) == "cab"
    assert chosen.scores["score"].tolist() == [0, -1, 1]
