"""Random, loss, gradient, quality: one number a candidate, highest first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from longgame.selection.methods.gradient import GradientSelector
from longgame.selection.methods.longest import LongestSelector
from longgame.selection.methods.loss import LossSelector
from longgame.selection.methods.quality import QualitySelector
from longgame.selection.methods.random import RandomSelector


def test_loss_takes_the_highest_first_and_ties_by_id(world) -> None:
    scene = world([4, 4, 4, 4], ids="dcba", loss=[0.5, 2.0, 1.0, 1.0])
    assert scene.picks(LossSelector(), 12) == "cab"


def test_loss_passes_over_what_does_not_fit(world) -> None:
    assert world([9, 5, 4, 3], loss=[4, 3, 2, 1]).picks(LossSelector(), 8) == "bd"


def test_longest_counts_response_tokens_not_prompt_tokens(world) -> None:
    scene = world([9, 9, 9, 2], ids="dcba")
    scene.pool = replace(scene.pool, prompt_tokens=np.array([8, 4, 4, 1]), response_tokens=np.array([1, 5, 5, 1]))
    assert scene.picks(LongestSelector(), 18) == "bc"


def test_quality_takes_the_highest_first(world) -> None:
    assert world([2, 2, 2], quality=[0.1, 0.9, 0.5]).picks(QualitySelector(), 4) == "bc"


def test_gradient_norm_takes_the_largest_first(world) -> None:
    assert world([2, 2, 2], grad_norm=[3, 1, 2]).picks(GradientSelector(), 4) == "ac"


def test_similarity_is_to_the_mean_of_the_candidates(world) -> None:
    # mean = (2, 1)/… ∝ (2, 1): cosines .894 (a), .447 (b), .949 (c); dots 2, 1, 6 (times 1/3·…)
    scene = world([2, 2, 2], grad_sketch=[[1, 0], [0, 1], [9, 4]])
    cosine = scene.select(GradientSelector("similarity"), 6)
    mean = np.array([10.0, 5.0]) / 3
    unit = mean / np.linalg.norm(mean)
    assert scene.names(cosine) == "cab"
    assert cosine.scores["score"] == pytest.approx([unit[0], unit[1], (9 * unit[0] + 4 * unit[1]) / np.sqrt(97)])
    dot = scene.select(GradientSelector("similarity", "dot"), 6)
    assert dot.scores["score"] == pytest.approx([mean[0], mean[1], 9 * mean[0] + 4 * mean[1]])


def test_random_is_uniform_over_first_picks(world) -> None:
    scene, selector = world([1] * 5), RandomSelector()
    first = [scene.picks(selector, 1, seed=seed) for seed in range(1000)]
    counts = np.array([first.count(name) for name in "abcde"])
    assert ((counts - 200) ** 2 / 200).sum() < 18.5  # chi-square, 4 degrees of freedom, p = .001


def test_random_draws_by_id_and_consecutive_rounds_differ(world) -> None:
    forward, backward = world([1] * 6), world([1] * 6, ids="fedcba")
    assert forward.picks(RandomSelector(), 4, seed=3) == backward.picks(RandomSelector(), 4, seed=3)
    rng = np.random.default_rng(0)
    rounds = {tuple(RandomSelector().select(forward.pool, forward.signals, None, 4, rng).rows) for _ in range(5)}
    assert len(rounds) > 1


def test_per_step_counts_a_candidate_by_its_response_tokens(world) -> None:
    scene = world([9, 9, 9], loss=[1.0, 2.0, 3.0], grad_norm=[1.0, 2.0, 3.0], grad_sketch=[[1, 0], [2, 0], [3, 1]])
    lengths = np.array([8, 3, 1])
    scene.pool = replace(scene.pool, prompt_tokens=9 - lengths, response_tokens=lengths)
    assert scene.picks(LossSelector(), 27) == scene.picks(GradientSelector(), 27) == "cba"
    assert scene.picks(LossSelector(per="step"), 27) == "abc"  # 8, 6, 3
    assert scene.picks(GradientSelector(per="step"), 27) == "abc"
    dot = scene.select(GradientSelector("similarity", "dot", per="step"), 27).scores["score"]
    scaled = lengths[:, None] * np.array([[1, 0], [2, 0], [3, 1]])
    assert dot == pytest.approx(scaled @ scaled.mean(axis=0))
    cosine = scene.select(GradientSelector("similarity", per="step"), 27).scores["score"]
    lengths_of = np.linalg.norm(scaled, axis=1) * np.linalg.norm(scaled.mean(axis=0))
    assert cosine == pytest.approx(scaled @ scaled.mean(axis=0) / lengths_of)
