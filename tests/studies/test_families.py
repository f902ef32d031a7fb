"""Leaderboards, equivalence and shared bases: drawn as described, tested as the package tests."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from scipy.optimize import minimize_scalar

from longgame.metrics.stats import paired
from longgame.seeding import generator
from studies.calibration import families


def test_two_sided_p_is_that_of_the_paired_t_test():
    differences = generator(0, "families").normal(0.4, 1, (50, 6))
    expected = scipy.stats.ttest_1samp(differences, 0, axis=1).pvalue
    np.testing.assert_allclose(families.two_sided(differences), expected)
    np.testing.assert_allclose(expected, paired(differences, np.zeros_like(differences)).p)


@pytest.mark.parametrize("noise", families.NOISES)
@pytest.mark.parametrize("alike", [0.0, 0.8])
def test_differences_share_the_reference_and_the_family(noise, alike):
    (board,) = families._boards(generator(1, "board"), noise, alike, 10, 2_000)
    correlation = np.corrcoef(board.transpose(1, 0, 2).reshape(families.BOARD, -1))
    members = families.BOARD // families.GROUPS
    family = np.arange(families.BOARD) // members
    same = family[:, None] == family
    np.testing.assert_allclose(correlation[~same], 0.5, atol=0.04)
    np.testing.assert_allclose(correlation[same & ~np.eye(len(family), dtype=bool)], 0.5 + alike / 2, atol=0.04)
    assert board.std() == pytest.approx(1, abs=0.02)
    assert scipy.stats.skew(families._draw(generator(2), noise, (200_000,))) == pytest.approx(
        1.0 if noise == "skewed" else 0.0, abs=0.05
    )


def test_mixed_model_maximizes_the_restricted_likelihood():
    base_of = np.repeat(np.arange(5), (4, 3, 2, 1, 1))
    rng = generator(3, "mixed")
    values = 0.5 + 1.2 * rng.normal(size=(6, 5))[:, base_of] + rng.normal(size=(6, 11))
    same = (base_of[:, None] == base_of).astype(float)
    ones = np.ones(11)

    def fit(y, ratio):
        inverse = np.linalg.inv(np.eye(11) + ratio * same)
        mean = ones @ inverse @ y / (ones @ inverse @ ones)
        variance = (y - mean) @ inverse @ (y - mean) / 10
        logs = np.linalg.slogdet(np.eye(11) + ratio * same)[1] + np.log(ones @ inverse @ ones)
        return mean, np.sqrt(variance / (ones @ inverse @ ones)), -0.5 * (10 * np.log(variance) + logs)

    means, errors, ratios = families.mixed_model(values, base_of)
    for y, mean, error, ratio in zip(values, means, errors, ratios, strict=True):
        np.testing.assert_allclose([mean, error], fit(y, ratio)[:2])
        best = minimize_scalar(lambda log, y=y: -fit(y, np.exp(log))[2], bounds=(-9, 9), method="bounded")
        assert fit(y, ratio)[2] >= -best.fun - 0.01


def test_holm_keeps_its_level_and_shows_larger_effects_more():
    rows = families.leaderboard(sizes=(8,), limit=400)
    assert max(row["rate"] for row in rows) < 0.1
    for over in ("selectors", "families"):
        shown = [
            row["shown"]
            for row in rows
            if (row["noise"], row["alike"], row["over"], row["better"]) == ("normal", 0.0, over, 20)
        ]
        assert shown == sorted(shown)
        assert shown[-1] > 0.5
    (far,) = {row["shown"] for row in rows if row["effect"] == families._FAR and row["noise"] == "normal"}
    assert far == 1
    assert all(row["any"] >= row["shown"] for row in rows if row["effect"])


def test_equivalence_is_false_at_the_margin_in_one_of_twenty():
    rows = families.margins(sizes=(5,), limit=4_000)
    normal = {(row["margin"], row["truth"]): row["rate"] for row in rows if row["noise"] == "normal"}
    for end in ("upper end", "lower end"):
        assert normal[4.0, end] == pytest.approx(0.05, abs=0.015)
        assert normal[0.5, end] <= normal[4.0, end]
    assert normal[0.5, "equal"] < normal[2.0, "equal"] < normal[4.0, "equal"]


def test_averages_per_base_keep_their_level_and_seeds_do_not():
    rows = families.shared_seeds(limit=2_000)
    rate = {(r["bases"], r["design"], r["ratio"], r["analysis"]): r["rate"] for r in rows if r["effect"] == 0}
    for size in families.BASES:
        for design in families.SHARES[size]:
            assert rate[size, design, 3.9, "averages per base"] < 0.07
            assert rate[size, design, 3.9, "seeds"] > 0.12
            assert rate[size, design, 1.0, "seeds"] < 0.07
            assert rate[size, design, 3.9, "mixed model, normal"] > rate[size, design, 3.9, "mixed model, t"]
    setting = (8, "2 each", 1.0, "seeds")
    power = {r["effect"]: r["rate"] for r in rows if (r["bases"], r["design"], r["ratio"], r["analysis"]) == setting}
    assert power[0.0] < power[1.0] < power[1.5]
