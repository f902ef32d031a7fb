"""The calibration's own truth: replays equal the protocol, expectations equal averages, studies count what they say."""

from functools import partial

import numpy as np
import pytest
from scipy.stats import binomtest, t
from typer.testing import CliRunner

from longgame.errors import DataError, RecipeError
from longgame.metrics.scorecard import IMMEDIATE
from longgame.seeding import generator
from longgame.selection.base import build_selector
from longgame.testing import check_selector_contract
from studies.calibration import families, study
from studies.calibration.__main__ import app
from studies.calibration.check import protocol_difference
from studies.calibration.ensemble import Replay, world_noise
from studies.calibration.measure import Plan, measure, requirements
from studies.calibration.table import Table, build_table
from studies.calibration.walks import AnotherRandom, Diluted, WalkRecorder, calibration_recipe


@pytest.fixture(scope="module")
def recorder():
    return WalkRecorder(calibration_recipe(), 0)


@pytest.fixture(scope="module")
def table():
    return build_table(2, 900, random=7, selectors=("loss", "quality"), doses=(0.3,))


def test_replayed_picks_give_the_scorecard_of_a_real_audit():
    assert protocol_difference(("random", "loss"), (3,)) < 1e-12


def test_a_replay_ends_where_the_worlds_own_closed_form_does(recorder):
    walk = recorder.walk(build_selector("loss"))
    replay = Replay(recorder.world, walk)
    batches = [leg.batches for leg in walk.stages]
    ids = {row: name for name, row in recorder.world.index.items()}
    picks = [[ids[int(row)] for row in rows] for stage in batches for rows in stage]
    rates = np.array([rate for leg in walk.stages for rate in leg.rates])
    outcome = recorder.world.outcome(picks, rates)
    state = replay._after[-1]
    theta = state.mean + state.spread @ world_noise(recorder.world)[0, replay.used]
    np.testing.assert_allclose(theta, outcome.theta, atol=1e-12)
    for name, population in recorder.world.populations.items():
        away = state.mean - population.optimum
        excess = 0.5 * (
            away @ population.curvature @ away + np.trace(population.curvature @ state.spread @ state.spread.T)
        )
        assert excess == pytest.approx(outcome.expected[name])


def test_the_closed_form_truth_is_the_average_over_label_noise(recorder):
    replay = Replay(recorder.world, recorder.walk(build_selector("gradient")))
    spec = calibration_recipe().metrics
    noise = generator(0, "test noise").standard_normal((20_000, int(recorder.world.label_of.max()) + 1))
    drawn, truth = replay.measure(noise), replay.truth()
    error = drawn.R.std(axis=0) / np.sqrt(len(noise))
    gap = np.abs(drawn.R.mean(axis=0) - truth.R[0])
    measured = ~np.isnan(gap)
    assert (gap[measured] <= 5 * error[measured] + 1e-9).all()
    simulated, expected = drawn.metrics(spec), truth.metrics(spec)
    for name in (IMMEDIATE, "auc_common", "long_horizon"):
        assert abs(simulated[name].mean() - expected[name][0]) < 5 * simulated[name].std() / np.sqrt(len(noise))


def test_random_walks_differ_by_stream_and_doses_mix(recorder):
    def picks(selector):
        return [tuple(rows) for leg in recorder.walk(selector).stages for rows in leg.batches]

    assert picks(AnotherRandom(0)) == picks(AnotherRandom(0)) != picks(AnotherRandom(1))
    loss, half = set(picks(build_selector("loss"))[:12]), picks(Diluted("loss", 0.5))[:12]
    assert 0 < sum(batch in loss for batch in half) < 12  # the first stage, before the walks part further
    assert picks(Diluted("loss", 1.0)) == picks(build_selector("loss"))
    with pytest.raises(RecipeError, match="share of followed choices is 2"):
        Diluted("loss", 2.0)


def test_the_walks_selectors_keep_the_selector_contract():
    check_selector_contract(partial(AnotherRandom, 3))
    check_selector_contract(partial(Diluted, "utility-diversity", 0.5))


def test_the_selectors_of_a_seed_share_its_world_and_its_noise(table):
    long = table.values["long_horizon"]
    independent = np.sqrt(2) * long[0].std()
    assert (long[0] - long[1]).std() < 0.8 * independent
    assert np.isfinite(long).all()


def test_truth_of_the_table_is_the_mean_of_its_seeds(table):
    for row in study.truth_errors(table, ("loss", "quality")):
        assert abs(row["z"]) < 4.5
    with pytest.raises(DataError, match="no walk 'lhas'"):
        table.row("lhas")
    with pytest.raises(DataError, match="8 walks of uniform selection"):
        table.randoms(generator(0), 8)


@pytest.mark.parametrize(("hits", "of"), [(0, 50), (3, 50), (50, 50)])
def test_rates_have_clopper_pearson_intervals(hits, of):
    rate = study.Rate(hits, of)
    interval = binomtest(hits, of).proportion_ci(method="exact")
    assert (rate.low, rate.high) == pytest.approx((interval.low, interval.high))
    assert rate.value == hits / of


def test_audits_are_cut_from_seeds_that_are_used_once():
    groups = study.cut(np.arange(20.0).reshape(2, 10), 3, 99)
    np.testing.assert_array_equal(groups[:, 0], [[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    np.testing.assert_array_equal(groups[:, 1], groups[:, 0] + 10)
    assert len(study.cut(np.zeros((2, 10)), 3, 2)) == 2


def planted(now, later, noise=0.01, seeds=400):
    """A table whose selector is `now` points ahead and `later` off in the long run, with known noise."""
    rng = generator(0, "planted")
    values = {
        IMMEDIATE: rng.normal(50, 1, (8, seeds)),
        "long_horizon": rng.normal(0.5, noise, (8, seeds)),
    }
    values[IMMEDIATE][7] += now
    values["long_horizon"][7] += later
    truth = {IMMEDIATE: np.full(8, 50.0), "long_horizon": np.full(8, 0.5)}
    truth[IMMEDIATE][7] += now
    truth["long_horizon"][7] += later
    names = (*(f"random {i}" for i in range(7)), "planted")
    return Table(7, names, values | {"long_horizon_best": values["long_horizon"]}, truth)


def test_large_planted_effect_is_always_shown_and_none_rarely():
    sure = study.power(planted(20, -0.2), ("planted",), sizes=(5,))[0]
    assert (sure["rate"], sure["myopic"]) == (1, 1)
    assert sure["predicted"] == pytest.approx(1, abs=1e-6)
    none = study.power(planted(0, 1e-9), ("planted",), sizes=(5,))[0]
    assert none["rate"] < 0.15
    alarms = {row["claim"]: row["rate"] for row in study.false_alarms(planted(0, 0), sizes=(5,))}
    assert alarms["myopic"] == alarms["rank reversal"] == alarms["long-horizon difference (sign flip)"] == 0
    assert alarms["long-horizon difference"] < 0.2


def test_normal_differences_are_covered_and_shown_as_promised():
    table = planted(3, -0.01, seeds=6_000)
    rows = study.coverage(table, ("planted",), sizes=(4,), resamples=300)
    rate = {(row["metric"], row["interval"]): row["rate"] for row in rows}
    assert rate["long_horizon", "t"] == pytest.approx(0.95, abs=0.025)
    assert rate["long_horizon", "bootstrap"] < 0.9
    (shown,) = study.power_at_mde(table, ("planted",), sizes=(4,))
    assert shown["rate"] == pytest.approx(0.8, abs=0.04)
    (first, second) = study.spread([{"a": 1, "rate": 0.1}, {"a": 1, "rate": 0.3}, {"a": 2, "rate": 0.5}], "a")
    assert first == {"a": 1, "lowest": 0.1, "mean": 0.2, "highest": 0.3, "rows": 2}
    assert second["a"] == 2


def test_the_sets_gap_is_covered_for_a_single_seed(table):
    rows = study.gap_coverage(table, ("loss", "quality"), sizes=(3, 20))
    assert {row["set"]: row["members"] for row in rows} == {
        "selectors": 3, "three": 3, "all walks": 4, "exchangeable": 7
    }  # fmt: skip
    for name in ("selectors", "exchangeable"):
        for interval in ("log-odds", "t"):
            few, many = (row for row in rows if (row["set"], row["interval"]) == (name, interval))
            assert [row["audits"] + round(row["without"] * (900 // row["seeds"])) for row in (few, many)] == [300, 45]
            assert few["truth"] == many["truth"]
            assert many["rate"] > 0.8
            assert many["width"] < few["width"]


def test_hardest_null_has_leads_and_no_long_horizon_effect():
    rows = study.hardest_null(planted(0, -0.5, seeds=3_000), ("planted",), sizes=(5,))
    rate = {row["claim"]: row["rate"] for row in rows}
    assert rate["myopic"] == pytest.approx(0.05, abs=0.025)  # a one-sided 5 % test
    assert rate["long-horizon difference"] == pytest.approx(0.05, abs=0.025)


def test_seeds_of_one_base_model_give_false_alarms_about_base_models():
    """With 3.9 times the variance: t over n seeds of one base alone is off by √(1 + 2.9 n)."""
    rows = study.shared_bases(planted(0, 0, seeds=30_000), sizes=(3, 6), limit=3_000)
    rate = {(row["seeds"], row["bases"]): row["rate"] for row in rows if row["claim"] == "single"}
    for size in (3, 6):
        critical = t.ppf(0.975, size - 1) / np.sqrt(1 + 2.9 * size)
        assert rate[size, "one"] == pytest.approx(2 * t.sf(critical, size - 1), abs=0.03)
        assert rate[size, "own"] == pytest.approx(0.05, abs=0.015)
    assert rate[6, "repeated"] == pytest.approx(0.05, abs=0.015)
    assert rate[6, "repeated, by seed"] > 0.08
    assert (3, "repeated") not in rate
    family = {(row["seeds"], row["bases"]): row["rate"] for row in rows if row["claim"] == "any"}
    assert family[3, "own"] < 0.07 < 0.2 < family[3, "one"]


def test_equivalence_is_rarely_said_at_the_margin_and_often_of_equals():
    rows = study.equivalence(planted(5, -0.3, seeds=12_000), ("planted",), sizes=(5, 20), limit=500)
    rate = {(row["truth"], row["seeds"]): row["rate"] for row in rows}
    assert rate["edge", 5] <= 0.08
    assert rate["edge", 20] <= 0.08
    assert rate["equal", 20] > rate["equal", 5]


def test_command_ends_with_its_figures_and_writes_tables(tmp_path, monkeypatch):

    small = Plan(worlds=1, seeds=240, audits=40, boot_audits=20, resamples=50)
    monkeypatch.setattr("studies.calibration.measure.QUICK", small)
    done = CliRunner().invoke(app, ["--quick", "--out", str(tmp_path), "--json", str(tmp_path / "a.json")])
    lines = [line for line in done.output.splitlines() if line.startswith("figure ")]
    assert len(lines) == 2 + 12 * len(study.SEEDS) + sum(size > 4 for size in study.SEEDS) + 3 * len(families.BASES) + 4
    assert done.output.rstrip().endswith(lines[-1])
    short = any(line.endswith(" short") for line in lines)
    assert done.exit_code == int(short)
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.json",
        *(f"calibration-{name}.{kind}" for name in ("false-alarms", "power", "coverage") for kind in ("svg", "png")),
    }


def test_equal_seeds_give_equal_tables():
    small = Plan(worlds=1, seeds=60, audits=10, boot_audits=5, resamples=20)
    first, again = measure(small), measure(small)
    assert str(first) == str(again)  # NaN equals itself as text
    assert [str(figure) for figure in requirements(first)] == [str(figure) for figure in requirements(again)]
