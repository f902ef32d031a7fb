"""Diagnostics of picks and updates, and their correlation over trials that are not independent."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.extra.numpy import arrays

from longgame.errors import DataError, NumericalError
from longgame.metrics import diagnostics
from longgame.metrics.diagnostics import associate, association_table
from longgame.seeding import generator


def test_entropy_equals_hand_values():
    assert diagnostics.capability_entropy(np.full(8, 100)) == pytest.approx(2.0794415)  # ln 8
    assert diagnostics.capability_entropy(np.array([0, 500, 0])) == 0
    # shares 1/2, 1/4, 1/4: ½ ln 2 + ½ ln 4 = 1.5 ln 2
    assert diagnostics.capability_entropy(np.array([50, 25, 25, 0])) == pytest.approx(1.5 * np.log(2))


def test_entropy_of_nothing_is_nan():
    assert np.isnan(diagnostics.capability_entropy(np.zeros(8)))
    with pytest.raises(DataError, match="-1"):
        diagnostics.capability_entropy(np.array([-1, 2]))


@given(hnp.arrays(np.int64, st.integers(1, 10), elements=st.integers(0, 1000)), st.integers(1, 50))
def test_entropy_is_bounded_and_ignores_the_total(counts, factor):
    if counts.sum() == 0:
        return
    entropy = diagnostics.capability_entropy(counts)
    assert 0 <= entropy <= np.log(len(counts)) + 1e-12
    assert diagnostics.capability_entropy(counts * factor) == pytest.approx(entropy)


def test_concentration_equals_hand_values():
    assert diagnostics.selection_concentration(np.array([[1.0, 2.0], [-2.0, -4.0]])) == pytest.approx(1)
    assert diagnostics.selection_concentration(np.eye(4)) == pytest.approx(1 / 4)
    # M = diag(9 + 1, 4)/3: λ_max / tr = 10/14
    assert diagnostics.selection_concentration(np.array([[3.0, 0], [1, 0], [0, 2]])) == pytest.approx(10 / 14)
    # ε is added to the trace 14/3
    assert diagnostics.selection_concentration(np.array([[3.0, 0], [1, 0], [0, 2]]), eps=1.0) == pytest.approx(10 / 17)


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (1, 7), (7, 1), (6, 6)])
def test_concentration_is_the_top_singular_value_share(shape):
    g = generator(0, "g", *shape).standard_normal(shape)
    singular = np.linalg.svd(g, compute_uv=False)
    assert diagnostics.selection_concentration(g) == pytest.approx(singular[0] ** 2 / (singular**2).sum())


@given(hnp.arrays(float, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(-9, 9).map(float)))
def test_concentration_is_bounded_and_scale_free(g):
    if not g.any():
        assert np.isnan(diagnostics.selection_concentration(g))
        return
    share = diagnostics.selection_concentration(g)
    assert 1 / min(g.shape) - 1e-9 <= share <= 1
    assert diagnostics.selection_concentration(g * 1e-7) == pytest.approx(share)


def test_concentration_of_gram_equals_that_of_gradients():
    gradients = generator(1).standard_normal((6, 40)) * np.arange(1, 7)[:, None]
    result = diagnostics.update_concentration(gradients @ gradients.T, 40)
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    assert result.value == pytest.approx(diagnostics.selection_concentration(gradients))
    assert result.unit == pytest.approx(diagnostics.selection_concentration(unit))
    for empty in (np.zeros((3, 3)), np.empty((0, 0))):
        assert np.isnan(dataclasses.astuple(diagnostics.update_concentration(empty, 40))).all()


@pytest.mark.parametrize("width", [64, 20_000])
def test_white_noise_has_the_concentration_of_its_null(width):
    """Whatever the lengths, and for few and many steps: gradients without a common direction lie at the null."""
    for steps in (6, 28):
        lengths = np.linspace(0.2, 3.0, steps)
        noise = generator(3, steps, width).standard_normal((16, steps, width))
        noise *= (lengths / np.linalg.norm(noise, axis=2))[..., None]
        results = [diagnostics.update_concentration(rows @ rows.T, width) for rows in noise]
        for value, null in (("value", "null"), ("unit", "unit_null")):
            measured = np.mean([getattr(result, value) for result in results])
            assert measured == pytest.approx(getattr(results[0], null), rel=0.05)


def test_null_of_long_vectors_is_the_longest_share():
    lengths = np.array([1.0, 2.0, 2.0, 4.0])  # squares 1 + 4 + 4 + 16; so wide that directions hardly meet
    assert diagnostics.isotropic_concentration(lengths, 10**9) == pytest.approx(16 / 25, rel=1e-3)
    assert diagnostics.isotropic_concentration(np.ones(5), 1) == pytest.approx(1)


def test_number_of_picks_does_not_move_concentration_at_one_size():
    draw = generator(5, "picks")
    few, many = draw.standard_normal((40, 300)), draw.standard_normal((400, 300))
    assert diagnostics.selection_concentration(few) > 3 * diagnostics.selection_concentration(many)
    values = [diagnostics.subsampled_concentration(rows, 16, generator(0)) for rows in (few, many)]
    assert values[0][0] == pytest.approx(values[1][0], rel=0.05)
    assert values[0][1] == pytest.approx(values[0][2], rel=0.05)
    assert np.isnan(diagnostics.subsampled_concentration(few[:15], 16, generator(0))).all()


def test_one_long_gradient_rules_concentration_but_not_at_unit_length():
    rows = generator(6).standard_normal((16, 500))
    rows[0] *= 50
    value, unit, null = diagnostics.subsampled_concentration(rows, 16, generator(0))
    assert value > 0.9
    assert unit == pytest.approx(null, rel=0.1)


def test_concentration_refuses_bad_matrices():
    with pytest.raises(NumericalError, match="row 1"):
        diagnostics.selection_concentration(np.array([[1.0], [np.nan]]))
    with pytest.raises(NumericalError):
        diagnostics.update_concentration(np.array([[np.inf]]), 3)
    with pytest.raises(DataError, match="symmetric"):
        diagnostics.update_concentration(np.array([[1.0, 0.5], [0.0, 1.0]]), 3)
    with pytest.raises(DataError, match="square"):
        diagnostics.update_concentration(np.ones((2, 3)), 3)


def test_means_are_weighted_by_tokens_by_hand():
    tokens = np.array([10, 30])
    assert diagnostics.token_weighted_mean(np.array([0.2, 0.6]), tokens) == pytest.approx(0.5)  # (2 + 18)/40
    assert diagnostics.token_weighted_mean(np.array([1.0, 0.0]), tokens) == pytest.approx(0.25)
    assert diagnostics.token_weighted_mean(np.array([False, True]), tokens) == pytest.approx(0.75)


def test_an_unknown_value_makes_the_mean_unknown():
    assert np.isnan(diagnostics.token_weighted_mean(np.array([1.0, np.nan]), np.array([1, 1])))
    assert np.isnan(diagnostics.token_weighted_mean(np.array([]), np.array([])))
    with pytest.raises(DataError, match=r"\(2,\) values"):
        diagnostics.token_weighted_mean(np.array([1.0, 2.0]), np.array([1]))


# Correlations with forgetting: by hand, against SciPy, and where the truth is known


SEED = np.repeat([0, 1, 2, 3], 3)
SELECTOR = np.tile([0, 1, 2], 4)
# Halves and whole numbers, so that sums are exact whatever their order.
X = np.array([1.0, 2, 4, 2, 3, 5, 1, 4, 3, 2, 2, 6])
Y = np.array([2.0, 3, 3, 4, 4, 6, 1, 2, 4, 5, 3, 8])


def column(draw, length):
    return draw(arrays(float, length, elements=st.integers(-40, 40).map(lambda each: each / 2)))


@st.composite
def trials(draw):
    seeds, selectors = draw(st.integers(3, 6)), draw(st.integers(2, 4))
    n = seeds * selectors
    return (
        column(draw, n),
        column(draw, n),
        np.repeat(np.arange(seeds), selectors),
        np.tile(np.arange(selectors), seeds),
    )


def everything(found):
    parts = (found.pearson, found.spearman)
    numbers = itertools.chain.from_iterable((each.r, each.low, each.high) for each in parts)
    return np.array([found.trials, found.seeds, *numbers, found.least, found.greatest], dtype=float)


def test_two_seeds_by_hand():
    # Less the seeds' means, x: ∓½ ∓1½; y: ∓1, 0 0: Σxy 1, Σxx 5, Σyy 2. Ranks, x: ∓½ ∓½; y: ∓½, 0 0: ½, 1, ½.
    found = associate(
        np.array([0.0, 1, 2, 5]), np.array([1.0, 3, 4, 4]), np.array([7, 7, 9, 9]), np.array([0, 1, 0, 1])
    )
    assert (found.trials, found.seeds) == (4, 2)
    assert found.pearson.r == pytest.approx(1 / np.sqrt(5 * 2))
    assert found.spearman.r == pytest.approx(0.5 / np.sqrt(1 * 0.5))
    for each in (found.pearson, found.spearman):  # two seeds give no interval
        assert np.isnan([each.low, each.high]).all()
    assert np.isnan([found.least, found.greatest]).all()  # nor do two selectors give a range


@given(trials())
@settings(max_examples=60, deadline=None)
def test_correlation_equals_scipy_and_the_jackknife(drawn):
    x, y, seed, selector = drawn
    found = associate(x, y, seed, selector)

    def centred(values, keep):
        return np.concatenate([values[keep & (seed == s)] - values[keep & (seed == s)].mean() for s in set(seed[keep])])

    def ranked(values):
        ranks = np.empty(len(values))
        for s in set(seed):
            ranks[seed == s] = scipy.stats.rankdata(values[seed == s])
        return ranks

    ways = {
        "pearson": lambda keep: (centred(x, keep), centred(y, keep)),
        "spearman": lambda keep: (centred(ranked(x), keep), centred(ranked(y), keep)),
    }
    for name, way in ways.items():

        def r(keep, way=way):
            a, b = way(keep)
            flat = np.ptp(a) < 1e-9 or np.ptp(b) < 1e-9
            return np.nan if flat else np.corrcoef(a, b)[0, 1]

        whole = r(seed >= 0)
        got = getattr(found, name)
        assert got.r == pytest.approx(whole, abs=1e-9, nan_ok=True)
        without = np.array([r(seed != each) for each in np.unique(seed)])
        if not (np.abs([whole, *without]) < 1 - 1e-9).all():
            assert np.isnan([got.low, got.high]).all()
            continue
        z, n = np.arctanh(without), len(without)
        half = scipy.stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * ((z - z.mean()) ** 2).sum())
        assert (got.low, got.high) == pytest.approx(
            tuple(np.tanh(np.arctanh(whole) + np.array([-half, half]))), abs=1e-6
        )


@given(trials(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_trials_and_the_names_of_seeds_play_no_part(drawn, shuffle):
    x, y, seed, selector = drawn
    order = list(range(len(x)))
    shuffle.shuffle(order)
    again = associate(x[order], y[order], 100 - seed[order], selector[order] + 5)
    np.testing.assert_allclose(everything(again), everything(associate(x, y, seed, selector)), atol=1e-9)


@given(trials())
@settings(max_examples=40, deadline=None)
def test_sides_may_be_swapped_and_units_changed(drawn):
    x, y, seed, selector = drawn
    found = everything(associate(x, y, seed, selector))
    np.testing.assert_allclose(everything(associate(y, x, seed, selector)), found, atol=1e-9)
    np.testing.assert_allclose(everything(associate(4 * x + 8, y / 2, seed, selector)), found, atol=1e-9)
    turned = associate(x, -y, seed, selector)
    assert turned.pearson.r == pytest.approx(-found[2], nan_ok=True)
    assert (turned.pearson.low, turned.pearson.high) == pytest.approx((-found[4], -found[3]), nan_ok=True)


def test_differences_between_seeds_are_no_correlation():
    """Seeds move both sides together, and nothing else does: over all trials r is .9, within seeds there is none."""
    level = np.repeat([0.0, 10, 20, 30], 3)
    x, y = X + level, np.tile([1.0, -1, 0], 4) + level
    assert np.corrcoef(x, y)[0, 1] > 0.9
    within = associate(x, y, SEED, SELECTOR)
    assert within.pearson.r < 0
    assert within.pearson.r == pytest.approx(associate(x - level, y - level, SEED, SELECTOR).pearson.r)
    assert np.isnan(associate(x, level, SEED, SELECTOR).pearson.r)


def test_the_range_without_a_selector_is_that_of_the_others():
    found = associate(X, Y, SEED, SELECTOR)
    each = [associate(*(column[one != SELECTOR] for column in (X, Y, SEED, SELECTOR))).pearson.r for one in range(3)]
    assert (found.least, found.greatest) == pytest.approx((min(each), max(each)))


def test_a_trial_alone_in_its_group_counts_nothing():
    more = associate(np.append(X, 50.0), np.append(Y, 90.0), np.append(SEED, 77), np.append(SELECTOR, 0))
    np.testing.assert_allclose(everything(more), everything(associate(X, Y, SEED, SELECTOR)))


def test_unmeasured_trials_are_left_out_of_correlations():
    holed = np.where(np.arange(12) == 4, np.nan, X)
    keep = np.arange(12) != 4
    np.testing.assert_allclose(
        everything(associate(holed, Y, SEED, SELECTOR)),
        everything(associate(X[keep], Y[keep], SEED[keep], SELECTOR[keep])),
    )
    line = associate(X, 3 * X, SEED, SELECTOR).pearson
    assert line.r == pytest.approx(1)
    assert np.isnan([line.low, line.high]).all()
    nothing = associate(np.full(12, np.nan), Y, SEED, SELECTOR)
    assert (nothing.trials, nothing.seeds) == (0, 0)
    assert np.isnan(everything(nothing)[2:]).all()
    assert np.isnan(associate(np.full(12, 0.3), Y, SEED, SELECTOR).pearson.r)


@pytest.mark.parametrize(
    ("columns", "more", "says"),
    [
        ((X[:-1], Y, SEED, SELECTOR), {}, "cannot be correlated"),
        ((np.where(X > 5, np.inf, X), Y, SEED, SELECTOR), {}, "infinite"),
        ((X, Y, SEED, SELECTOR), {"confidence": 95}, "between 0 and 1"),
    ],
)
def test_columns_that_cannot_be_correlated_are_errors(columns, more, says):
    with pytest.raises(DataError, match=says):
        associate(*columns, **more)


def drawn_trials(rng, seeds, selectors=7):
    """Selectors that differ on both sides, seeds that move all of their trials, and noise."""
    base = np.linspace(-1, 1, selectors)
    x = base + 0.7 * rng.normal(size=(seeds, 1)) + 0.4 * rng.normal(size=(seeds, selectors))
    y = 0.5 * base + 0.7 * rng.normal(size=(seeds, 1)) + 0.5 * rng.normal(size=(seeds, selectors))
    seed, selector = np.repeat(np.arange(seeds), selectors), np.tile(np.arange(selectors), seeds)
    return x.ravel(), y.ravel(), seed, selector


def test_jackknife_intervals_hold_the_truth():
    # Variances within seeds: of the selectors' levels, and of noise less its mean over seven; the levels covary.
    spread = np.mean(np.linspace(-1, 1, 7) ** 2)
    within = 0.5 * spread / np.sqrt((spread + 0.16 * 6 / 7) * (0.25 * spread + 0.25 * 6 / 7))
    rng = generator(0, "association")
    audits, held = 300, np.zeros(2)
    for _ in range(audits):
        x, y, seed, selector = drawn_trials(rng, 5)
        found = associate(x, y, seed, selector).pearson
        X5, Y5 = (side - side.mean(axis=1, keepdims=True) for side in (x.reshape(5, 7), y.reshape(5, 7)))
        again = [np.corrcoef(X5[rows].ravel(), Y5[rows].ravel())[0, 1] for rows in rng.integers(0, 5, (100, 5))]
        low, high = np.quantile(again, [0.025, 0.975])
        held += [found.low <= within <= found.high, low <= within <= high]
    jackknife, bootstrap = held / audits
    assert 0.88 <= jackknife <= 0.99
    assert bootstrap < jackknife - 0.05


def test_many_seeds_are_left_out_in_groups():
    x, y, seed, selector = drawn_trials(generator(1, "association"), 4 * diagnostics.MOST_GROUPS)
    found = associate(x, y, seed, selector).pearson
    sides = [(column.reshape(-1, 7) - column.reshape(-1, 7).mean(axis=1, keepdims=True)).ravel() for column in (x, y)]
    assert found.r == pytest.approx(np.corrcoef(*sides)[0, 1])
    assert 0 < found.high - found.low < 0.3


def frame(conditions=("",)):
    rows = []
    for condition, (place, selector, seed) in itertools.product(conditions, enumerate_trials()):
        who = {"trial": f"{selector}-s{seed}{condition}", "selector": selector, "seed": seed, "condition": condition}
        shift = 10.0 * len(condition)
        values = (("", "capability_entropy", X[place]), ("", "update_concentration", -X[place] - Y[place] / 4))
        values += (("primary", "forgetting", Y[place] + shift), ("exact_match", "forgetting", -Y[place]))
        rows += [who | {"view": view, "metric": metric, "value": value} for view, metric, value in values]
        rows.append(who | {"view": "primary", "metric": "current", "value": 1.0})
    return pd.DataFrame(rows)


def enumerate_trials():
    return [(place, f"s{SELECTOR[place]}", int(SEED[place])) for place in range(12)]


def test_the_table_has_every_view_and_pair_that_was_measured():
    table = association_table(frame().drop(columns="condition"), ["primary", "exact_match"]).set_index(
        ["view", "x", "y"]
    )
    expected = [
        ("primary", "capability_entropy", "forgetting"),
        ("exact_match", "capability_entropy", "forgetting"),
        ("primary", "update_concentration", "forgetting"),
        ("exact_match", "update_concentration", "forgetting"),
        ("", "capability_entropy", "update_concentration"),
    ]
    assert list(table.index) == expected
    np.testing.assert_allclose(
        table.loc["primary", "capability_entropy", "forgetting"].to_numpy(float),
        everything(associate(X, Y, SEED, SELECTOR)),
    )
    row = table.loc["exact_match", "capability_entropy", "forgetting"]
    assert row["pearson"] == pytest.approx(-associate(X, Y, SEED, SELECTOR).pearson.r)
    assert association_table(frame().head(0), ["primary"]).empty


def test_conditions_share_seeds_and_are_centered_apart():
    one = association_table(frame(), ["primary"]).iloc[0]
    two = association_table(frame(("", "budget=0.1")), ["primary"]).iloc[0]
    assert (one["trials"], two["trials"]) == (12, 24)
    assert one["seeds"] == two["seeds"] == 4
    assert two["pearson"] == pytest.approx(one["pearson"])  # the second condition's level of forgetting is taken off


def test_repeated_base_models_are_the_replications_of_a_correlation():
    units = {int(seed): place // 2 for place, seed in enumerate(np.unique(SEED))}
    by_base = association_table(frame(), ["primary"], units=units).iloc[0]
    by_seed = association_table(frame(), ["primary"]).iloc[0]
    assert (by_base["seeds"], by_seed["seeds"]) == (2, 4)
    assert by_base["pearson"] == pytest.approx(by_seed["pearson"])
    assert np.isnan(by_base["pearson_low"])  # two base models give no interval


# Entropy per stage and over the run


def test_entropy_over_the_run_pools_the_stages():
    """Two stages of two labels each: ln 2 at most within a stage, ln 4 over the run."""
    tokens = np.array([[[5.0, 5, 0, 0], [0, 0, 5, 5]], [[10, 0, 0, 0], [0, 0, 10, 0]], [[5, 5, 0, 0], [np.nan] * 4]])
    means, together = diagnostics.picks_entropy(tokens)
    np.testing.assert_allclose(means, [np.log(2), 0, np.nan])
    np.testing.assert_allclose(together, [np.log(4), np.log(2), np.nan])
    for trial in range(2):
        assert together[trial] == pytest.approx(scipy.stats.entropy(tokens[trial].sum(axis=0)))
        assert means[trial] == pytest.approx(np.mean([scipy.stats.entropy(stage) for stage in tokens[trial]]))


def test_stages_that_nobody_measured_do_not_count():
    tokens = np.full((2, 3, 2), np.nan)
    tokens[:, 1] = [[3, 1], [2, 2]]
    means, together = diagnostics.picks_entropy(tokens)
    np.testing.assert_allclose(means, together)
    assert means[1] == pytest.approx(np.log(2))
    assert np.isnan(diagnostics.picks_entropy(np.full((1, 2, 2), np.nan))[1]).all()
