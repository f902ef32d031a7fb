"""Families of tests and of seeds: a leaderboard of many selectors, equivalence at its margin, seeds that share bases.

Scores are drawn directly, so that correlations, effects and the variance over base models are known. Noise is normal,
or skewed as much as the most skewed difference on the quadratic world. p values come from `longgame.metrics.stats`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import scipy.special
from jaxtyping import Float, Int

from longgame.metrics.stats import ALPHA, holm, moments, p_above, p_equivalent, unit_means
from longgame.seeding import generator
from studies.calibration.study import BASE_VARIANCE, Rate

Noise = Literal["normal", "skewed"]
NOISES: tuple[Noise, ...] = ("normal", "skewed")
BASES = (5, 8)
"""Base models per audit, a seed of each."""
BOARD = 40
"""Selectors of the leaderboard beside the reference."""
GROUPS = 8
"""Families of selectors on it, of equal size."""
EFFECTS = (0.5, 1.0, 1.5, 2.0)
"""True differences, in sd of one selector's paired difference."""
WITHIN = 0.8
"""Correlation of the scores of selectors of one family, where families are alike."""
_SHAPE = 4.0
"""Of the gamma distribution behind the skewed noise: skew 2/√4 = 1."""
_FAR = 10.0
"""An effect that every audit shows."""
_CHUNK = 2_000


def _draw(rng: np.random.Generator, noise: Noise, shape: tuple[int, ...]) -> np.ndarray:
    """Noise with mean 0 and sd 1."""
    if noise == "normal":
        return rng.standard_normal(shape)
    return (rng.gamma(_SHAPE, size=shape) - _SHAPE) / np.sqrt(_SHAPE)


def two_sided(difference: Float[np.ndarray, "... seeds"]) -> Float[np.ndarray, ...]:
    """Two-sided p of the paired t test, as `longgame.metrics.stats.paired` gives it for differences with spread."""
    n, mean, sd = moments(difference)
    return 2 * np.minimum(p_above(mean, sd, n), p_above(-mean, sd, n))


def _boards(
    rng: np.random.Generator, noise: Noise, alike: float, bases: int, audits: int
) -> Iterator[Float[np.ndarray, "audits selectors bases"]]:
    """Differences of `BOARD` selectors from one reference, with sd 1 and without effects.

    A selector's score has variance ½, of which the members of a family share the part ``alike``, and so has the
    reference. The differences of two selectors correlate by ½ across families and ½ + alike/2 within one.
    """
    for low in range(0, audits, _CHUNK):
        count = min(_CHUNK, audits - low)
        shared = np.repeat(_draw(rng, noise, (count, GROUPS, bases)), BOARD // GROUPS, axis=1)
        scores = np.sqrt(alike) * shared + np.sqrt(1 - alike) * _draw(rng, noise, (count, BOARD, bases))
        yield (scores - _draw(rng, noise, (count, 1, bases))) / np.sqrt(2)


def leaderboard(*, sizes: Sequence[int] = BASES, limit: int = 10_000, seed: int = 0) -> list[dict[str, Any]]:
    """False alarms and power of Holm over `BOARD` selectors, and over the means of their `GROUPS` families.

    The first ``better`` selectors (whole families, every other one worse than the reference) have a true effect.
    ``rate`` is the share of audits in which any selector (family) without an effect is shown to differ; ``shown`` the
    share of true effects that are shown with their sign, ``any`` the share of audits that show one of them. A family's
    difference is the mean of its members' per base model; effects are in sd of one selector's difference.
    """
    rows: list[dict[str, Any]] = []
    members = BOARD // GROUPS
    truths = [(0, 0.0), *((count, effect) for count in (members, BOARD // 2) for effect in EFFECTS)]
    truths.append((BOARD - members, _FAR))  # all but one family: the last tests are hardly corrected
    signs = np.where(np.arange(BOARD) // members % 2 == 0, 1.0, -1.0)
    settings: list[tuple[Noise, float]] = [("normal", 0.0), ("normal", WITHIN), ("skewed", 0.0)]
    for size in sizes:
        for noise, alike in settings:
            rng = generator(seed, "calibrate", "leaderboard", size, noise, int(100 * alike))
            hits: dict[tuple[str, int, float], list[np.ndarray]] = {}
            for chunk in _boards(rng, noise, alike, size, limit):
                for better, effect in truths:
                    true = np.where(np.arange(BOARD) < better, effect * signs, 0.0)
                    moved = chunk + true[:, None]
                    families = moved.reshape(len(moved), GROUPS, members, size).mean(axis=2)
                    for over, part, effects in (("selectors", moved, true), ("families", families, true[::members])):
                        hits.setdefault((over, better, effect), []).append(_claims(part, effects))
            for (over, better, effect), parts in hits.items():
                false, share, some = np.concatenate(parts, axis=1)
                setting = {"bases": size, "noise": noise, "alike": alike, "over": over, "better": better}
                rows.append(
                    setting
                    | {"effect": effect}
                    | Rate.of_audits(false.astype(bool)).columns()
                    | {"shown": float(share.mean()), "any": float(some.mean())}
                )
    return rows


def _claims(
    differences: Float[np.ndarray, "audits tests bases"], effects: Float[np.ndarray, " tests"]
) -> Float[np.ndarray, "3 audits"]:
    """After Holm: whether any false claim is made, the share of true effects shown, whether any is; NaN without any."""
    shown = holm(two_sided(differences)) < ALPHA
    right = shown & (np.sign(differences.mean(axis=-1)) == np.sign(effects))
    null = effects == 0
    false = (shown & null).any(axis=1)
    if null.all():
        return np.stack([false, np.full(len(false), np.nan), np.full(len(false), np.nan)])
    return np.stack([false, right[:, ~null].mean(axis=1), right.any(axis=1)])


MARGINS = (0.5, 1.0, 2.0, 4.0)
"""Margins of equivalence, in sd of the paired differences."""


def margins(*, sizes: Sequence[int] = (3, *BASES, 20), limit: int = 10_000, seed: int = 0) -> list[dict[str, Any]]:
    """How often two one-sided tests show equivalence of one difference, at the margin (false) and of none (true).

    Truth: at either end of the margin (skewed noise tells them apart: its long tail points upwards), or ``equal``.
    """
    rows = []
    for size in sizes:
        for noise in NOISES:
            rng = generator(seed, "calibrate", "margins", size, noise)
            n, mean, sd = moments(_draw(rng, noise, (limit, size)))
            for margin in MARGINS:
                for truth, shift in (("upper end", margin), ("lower end", -margin), ("equal", 0.0)):
                    shown = p_equivalent(mean + shift, sd, n, margin) < ALPHA
                    setting = {"seeds": size, "noise": noise, "margin": margin, "truth": truth}
                    rows.append(setting | Rate.of_audits(shown).columns())
    return rows


SHARES: dict[int, dict[str, tuple[int, ...]]] = {
    5: {"2 each": (2,) * 5, "unequal": (4, 3, 2, 1, 1), "one has most": (10, 1, 1, 1, 1)},
    8: {"2 each": (2,) * 8, "unequal": (5, 3, 2, 2, 1, 1, 1, 1), "one has most": (10, 1, 1, 1, 1, 1, 1, 1)},
}
"""Base models → seeds of each."""
RATIOS = (1.0, 1.5, BASE_VARIANCE)
"""Variance of a difference over base models (a seed each), over that of the seeds of one; 1: base models do not
matter."""
_GRID = np.concatenate([[0.0], np.logspace(-3, 3, 181)])


def mixed_model(
    values: Float[np.ndarray, "audits seeds"], base_of: Int[np.ndarray, " seeds"]
) -> tuple[Float[np.ndarray, " audits"], Float[np.ndarray, " audits"], Float[np.ndarray, " audits"]]:
    """Mean, its standard error, and the variance ratio λ = between/within, by REML with a random intercept per base.

    For λ the means ȳ of bases with n seeds weigh w = n/(1 + nλ); the restricted likelihood is maximized over a grid of
    λ (0 and 30 steps per power of ten). At least one base needs two seeds.
    """
    counts = np.bincount(base_of).astype(float)
    means = unit_means(values, base_of)
    inside = ((values - means[:, base_of]) ** 2).sum(axis=1)
    freedom = len(base_of) - 1
    best = np.full(len(values), -np.inf)
    result = np.zeros((3, len(values)))
    for ratio in _GRID:
        weights = counts / (1 + counts * ratio)
        total = weights.sum()
        center = means @ weights / total
        squares = inside + ((means - center[:, None]) ** 2) @ weights
        likelihood = -0.5 * (freedom * np.log(squares) + np.log1p(counts * ratio).sum() + np.log(total))
        better = likelihood > best
        best = np.where(better, likelihood, best)
        fit = np.stack([center, np.sqrt(squares / freedom / total), np.full(len(values), ratio)])
        result = np.where(better, fit, result)
    return result[0], result[1], result[2]


def shared_seeds(*, limit: int = 10_000, seed: int = 0) -> list[dict[str, Any]]:
    """Type-I error and power of one paired comparison where bases have several seeds, equally many or not.

    Noise is normal. Analyses: t over seeds (bases ignored), t over the averages per base (the scorecard), and a mixed
    model with a random intercept per base, whose statistic is compared with t on bases − 1 degrees of freedom, or with
    the normal distribution as common software does. Effects are in sd of a difference with a base of its own.
    """
    rows = []
    for size, designs in SHARES.items():
        for design, counts in designs.items():
            base_of = np.repeat(np.arange(size), counts)
            for ratio in RATIOS:
                rng = generator(seed, "calibrate", "shared seeds", size, design, int(100 * ratio))
                within, between = np.sqrt(1 / ratio), np.sqrt(1 - 1 / ratio)
                noise = between * rng.standard_normal((limit, size))[:, base_of]
                noise += within * rng.standard_normal((limit, len(base_of)))
                mean, error, _ = mixed_model(noise, base_of)  # both shift with an effect
                for effect in (0.0, 1.0, 1.5):
                    values = noise + effect
                    score = np.abs(mean + effect) / error
                    tests = {
                        "seeds": two_sided(values),
                        "averages per base": two_sided(unit_means(values, base_of)),
                        "mixed model, t": 2 * scipy.special.stdtr(size - 1, -score),
                        "mixed model, normal": 2 * scipy.special.ndtr(-score),
                    }
                    for name, p in tests.items():
                        rows.append(
                            {"bases": size, "design": design, "ratio": ratio, "effect": effect, "analysis": name}
                            | Rate.of_audits(p < ALPHA).columns()
                        )
    return rows
