import itertools

import altair as alt
import numpy as np
import pytest
import vl_convert

from longgame.report.charts import PALETTE, Style, interval_half, write_figures
from longgame.report.figures import curve_table, outcome_figures, walk_figures
from longgame.report.layout import report_layout
from longgame.report.render import html_page
from tests.report.conftest import make_recipe, make_results, make_run


def figures_of(run):
    return [*outcome_figures(run), *walk_figures(run)]


def test_every_figure_compiles_to_marks(run):
    made = figures_of(run)
    names = {"immediate-long", "curves-common", "curves-own", "ood-forgetting", "matrices", "diagnostics"}
    names |= {"myopia-gap", "trajectories", "sensitivity", "worst-transfer"}
    assert {figure.name for figure in made} == names
    assert len(next(f for f in made if f.name == "matrices").charts) == 3
    for figure in made:
        for chart in figure.charts:
            alt.Chart.from_dict(chart, validate=True)
        svg = vl_convert.vegalite_to_svg({**figure.charts[0], "width": 300})
        assert svg.count("<path") > 3, figure.name


def test_curves_are_seed_means_of_the_primary_scorer(card, run):
    table = curve_table(card, run.measured[""].curves, "common")
    row = table.query("stage == 1 and selector == 'ahead' and step == 2").iloc[0]
    # 30 + 8 + seed, seeds 0…4: mean 40, sd √2.5, t(0.975, 4) = 2.776445
    assert row["mean"] == pytest.approx(40.0)
    assert row["tokens"] == 20
    assert row["high"] - row["mean"] == pytest.approx(2.776445 * np.sqrt(2.5 / 5), rel=1e-6)
    assert len(table) == 2 * 3 * 3


def test_interval_needs_two_seeds():
    half = interval_half(np.array([1.0, 1.0]), np.array([1, 4]))
    assert np.isnan(half[0])
    assert half[1] == pytest.approx(3.182446 / 2, rel=1e-6)


def test_figures_are_written_as_svg_and_png_with_legend(tmp_path, run):
    made = [figure for figure in outcome_figures(run) if figure.name in ("immediate-long", "myopia-gap")]
    written = write_figures(made, tmp_path / "new")
    assert sorted(path.name for path in written) == [
        "immediate-long.png", "immediate-long.svg", "myopia-gap.png", "myopia-gap.svg",
    ]  # fmt: skip
    svg = (tmp_path / "new" / "immediate-long.svg").read_text()
    assert svg.count("role-legend-entry") >= 1
    assert "ahead" in svg
    assert (tmp_path / "new" / "myopia-gap.png").read_bytes().startswith(b"\x89PNG")


def test_an_arrow_joins_each_pair_of_a_rank_reversal(run, card):
    chart = outcome_figures(run)[0].charts[0]
    arrows = [row["reversal"] for rows in chart["datasets"].values() for row in rows if "reversal" in row]
    pairs = {(row["ahead"], row["behind"]) for row in card.reversals.to_dict("records") if row["view"] == "primary"}
    assert pairs
    assert set(arrows) == {f"{ahead} leads {behind} now and trails it in the long run" for ahead, behind in pairs}


def test_one_seed_without_probes_has_the_figures_of_scores():
    results = make_results(seeds=1)
    run = make_run(results[results["kind"] == "score"], make_recipe(1))
    names = {figure.name for figure in figures_of(run)}
    assert names == {
        "immediate-long", "ood-forgetting", "matrices", "myopia-gap", "trajectories", "sensitivity", "worst-transfer",
    }  # fmt: skip
    assert "not enough seeds" in html_page([report_layout(run, trials=0)])


def test_no_two_of_many_selectors_look_alike():
    keys = Style([f"s{i}" for i in range(3 * len(PALETTE))], "s0").keys
    for one, other in itertools.combinations(keys, 2):
        assert (one.color, one.glyph) != (other.color, other.glyph)
