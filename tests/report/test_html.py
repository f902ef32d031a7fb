import itertools
import json
import re
from html.parser import HTMLParser

import altair as alt
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import vl_convert

from longgame.audit.picks import combine_shares, reduce_stage
from longgame.errors import StorageError
from longgame.recipe import parse_recipe
from longgame.report.charts import write_figures
from longgame.report.figures import curve_table, figures, interval_half
from longgame.report.page import RunReport, render_html, render_reports, write_html
from longgame.report.picks import trial_detail
from longgame.report.tables import Cell, Column, Table, beside


@pytest.fixture(scope="module")
def page(card, results, recipe, environment):
    return render_html(card, results, recipe, environment)


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text of every script."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts, self._script = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._script = tag == "script"
        if self._script:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._script = False

    def handle_data(self, data):
        if self._script:
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def elements(page):
    return Elements(page)


def test_dataset_and_selector_text_stays_text(page, elements):
    assert len(elements.scripts) == 3  # the sorting, the bundle, and the page's own
    assert not [tag for tag, _ in elements.tags if tag in ("b", "i")]
    assert "alert('x')" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page


def test_page_loads_nothing(elements):
    for tag, attributes in elements.tags:
        assert tag not in ("iframe", "object", "embed", "img")
        for name in ("src", "href", "action"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))
    policy = next(a["content"] for t, a in elements.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_every_chart_has_its_place_and_a_description(elements, card, results, recipe):
    raw = re.search(r"const charts = \{(.*?)\n\};", elements.scripts[2], re.DOTALL)
    charts = json.loads("{" + raw.group(1).rstrip().rstrip(",") + "}")
    assert charts == {
        f"{f.name}-{i}": chart for f in figures(card, results, recipe) for i, chart in enumerate(f.charts, 1)
    }
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert set(charts) <= set(ids)
    assert all(chart["description"] for chart in charts.values())


def test_labels_refer_to_headings_that_exist(elements):
    ids = {attributes["id"] for _, attributes in elements.tags if "id" in attributes}
    refs = [attributes["aria-labelledby"] for _, attributes in elements.tags if "aria-labelledby" in attributes]
    assert refs
    assert set(refs) <= ids


def test_every_figure_compiles_to_marks(card, results, recipe):
    made = figures(card, results, recipe)
    names = {"immediate-long", "curves-common", "curves-own", "ood-forgetting", "matrices", "diagnostics"}
    names |= {"myopia-gap", "trajectories", "sensitivity", "worst-transfer"}
    assert {figure.name for figure in made} == names
    assert len(next(f for f in made if f.name == "matrices").charts) == 3
    for figure in made:
        for chart in figure.charts:
            alt.Chart.from_dict(chart, validate=True)
        svg = vl_convert.vegalite_to_svg({**figure.charts[0], "width": 300})
        assert svg.count("<path") > 3, figure.name


def test_curves_are_means_over_seeds_of_the_primary_scorer_with_t_intervals(card, results):
    table = curve_table(card, results, "common")
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


def test_a_run_of_one_seed_without_probes_or_diagnostics_still_gives_a_page(synthetic, environment):
    make_results, make_card, make_recipe = synthetic
    results = make_results(seeds=1)
    results = results[results["kind"] == "score"]
    recipe = make_recipe(1)
    card = make_card(results)
    names = {figure.name for figure in figures(card, results, recipe)}
    assert names == {
        "immediate-long", "ood-forgetting", "matrices", "myopia-gap", "trajectories", "sensitivity", "worst-transfer",
    }  # fmt: skip
    assert "not enough seeds" in render_html(card, results, recipe, environment)


def test_a_page_that_cannot_be_written_is_a_sentence(tmp_path, card, results, recipe, environment):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Choose another path"):
        write_html(tmp_path / "file" / "report.html", card, results, recipe, environment)


def test_every_trial_is_in_the_page_with_what_it_reached(card, page):
    rows = re.findall(r"<tr><th scope=\"row\">(\d-s\d)</th><td>", page)
    assert sorted(rows) == sorted(card.trials.names)


def test_the_papers_numbers_stand_beside_on_demand_where_the_selector_is_the_papers(page):
    assert 'class="paper"' in page
    table = beside(metric("long_horizon"), {"long-horizon score": "long_horizon"}, recipe_of("random", "loss"))
    assert [column.label for column in table.columns] == ["selector", "long-horizon score", "paper: long horizon"]
    assert [row[2].text for row in table.rows] == ["0.59", "0.51", ""]
    assert beside(metric("final"), {"final score": "final"}, recipe_of("random")) == metric("final")


def metric(name):
    label = {"long_horizon": "long-horizon score", "final": "final score"}[name]
    columns = (
        Column("selector", "selector", numeric=False),
        Column(label, label.removesuffix(" score").replace("-", " ")),
    )
    return Table("t", columns, tuple((Cell(selector), Cell("1", value=1.0)) for selector in ("random", "loss", "own")))


def recipe_of(*names):
    return parse_recipe({"name": "r", "selectors": list(names), "seeds": [0], "budget": 0.25})


def test_dataset_text_stays_text(card, results, recipe, environment):
    trap = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>"
    table = pd.DataFrame(
        {"round": 0, "sample_id": ["p", "q"], "picked": [0, -1], "tokens": [3, 4], "sub_skill": [trap, ""],
         "term_utility": [1.0, 0.0], "term_score": [1.0, 0.0]}
    )  # fmt: skip
    rows = results[results["trial"] == "1-s0"]
    texts = {"p": (trap, trap)}
    detail = trial_detail("1-s0", "ahead", 0, card.tasks, {1: table}, rows, [("seed", trap)], texts.get)
    picks = combine_shares([reduce_stage("ahead", 0, 1, pa.Table.from_pandas(table))])
    page = render_reports([RunReport(card, results, recipe, environment, picks=picks, trials=[detail])])
    elements = Elements(page)
    assert len(elements.scripts) == 3
    assert not [tag for tag, attributes in elements.tags if tag == "img" or "onerror" in attributes]
    assert "&lt;/pre&gt;&lt;script&gt;alert(1)" in page
    assert "utility +1.000 · score +1.000" in page
    assert "never picked" in page
    assert "alert(1)</script>" not in page


def test_several_runs_stand_in_one_page_with_names_of_their_own(card, results, recipe, environment):
    runs = [RunReport(card, results, recipe, environment, title=name, progress="half") for name in ("one", "two <b>")]
    page = render_reports(runs)
    elements = Elements(page)
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    refs = [attributes["href"][1:] for tag, attributes in elements.tags if tag == "a"]
    assert set(refs) <= set(ids)
    assert page.count('class="note">half') == 2
    assert not [tag for tag, _ in elements.tags if tag == "b"]


@pytest.fixture(scope="module")
def complete(card, results, recipe, environment):
    """A report with all its parts: picks and a trial in full."""
    table = pd.DataFrame(
        {"round": 0, "sample_id": ["p", "q"], "picked": [0, -1], "tokens": [3, 4], "sub_skill": ["x", "y"],
         "term_score": [1.0, 0.0]}
    )  # fmt: skip
    rows = results[results["trial"] == "1-s0"]
    detail = trial_detail("1-s0", "ahead", 0, card.tasks, {1: table}, rows, [], lambda name: ("prompt", "response"))
    picks = combine_shares([reduce_stage("ahead", 0, 1, pa.Table.from_pandas(table))])
    return RunReport(card, results, recipe, environment, picks=picks, trials=[detail])


@pytest.fixture(scope="module")
def whole(complete):
    return Elements(render_reports([complete]))


def test_every_table_says_what_it_is_and_what_its_cells_belong_to(whole):
    tags = [(tag, attributes) for tag, attributes in whole.tags if tag in ("table", "caption", "th")]
    assert tags
    for place, (tag, attributes) in enumerate(tags):
        if tag == "table":
            assert tags[place + 1][0] == "caption"
        elif tag == "th":
            assert attributes["scope"] in ("row", "col")


def test_a_heading_of_a_column_is_a_button(whole):
    after = [
        (attributes, whole.tags[place + 1][0]) for place, (tag, attributes) in enumerate(whole.tags) if tag == "th"
    ]
    assert {tag for attributes, tag in after if attributes["scope"] == "col"} == {"button"}


def test_what_scrolls_can_be_reached_by_keyboard_and_has_a_name(whole):
    regions = [attributes for _, attributes in whole.tags if attributes.get("class") == "scroll"]
    assert regions
    assert all(region["tabindex"] == "0" and region["role"] == "region" and region["aria-label"] for region in regions)


@pytest.mark.parametrize("runs", [1, 2])
def test_headings_go_down_one_level_at_a_time_and_no_two_of_a_run_are_alike(complete, runs):
    page = render_reports([complete] * runs)
    headings = re.findall(r"<h([1-6])[^>]*>(.*?)</h", page[: page.index("<script>")], re.DOTALL)
    levels = [int(level) for level, _ in headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    parts = page.count('class="part"')
    assert levels.count(2) == (runs if runs > 1 else parts)
    assert levels.count(3) >= (parts if runs > 1 else 1)
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    texts = [text for _, text in headings]
    assert "1-s0" in texts
    assert 'Most wanted<span class="said">, stage 1 of 1-s0</span>' in texts
    assert all(texts.count(text) == runs for text in texts[1:])


def test_every_column_of_the_scorecard_is_explained_in_words(page):
    told = re.search(r"What the columns mean</summary>\s*<dl>(.*?)</dl>", page, re.DOTALL).group(1)
    scorecard = page[page.index('id="scorecard"') : page.index("What the columns mean")]
    labels = set(re.findall(r'<button type="button" title="[^"]*">(.*?)</button>', scorecard))
    labels = {label for label in labels if not label.startswith("paper: ")}
    assert {"sd over stages", "selected tokens"} <= labels
    assert labels <= set(re.findall(r"<dt>(.*?)</dt>", told))


def test_every_figure_is_written_as_svg_and_png_with_its_legend(tmp_path, card, results, recipe):
    made = [figure for figure in figures(card, results, recipe) if figure.name in ("immediate-long", "myopia-gap")]
    written = write_figures(made, tmp_path / "new")
    assert sorted(path.name for path in written) == [
        "immediate-long.png", "immediate-long.svg", "myopia-gap.png", "myopia-gap.svg",
    ]  # fmt: skip
    svg = (tmp_path / "new" / "immediate-long.svg").read_text()
    assert svg.count("role-legend-entry") >= 1
    assert "ahead" in svg
    assert (tmp_path / "new" / "myopia-gap.png").read_bytes().startswith(b"\x89PNG")


def test_an_arrow_leads_from_who_is_ahead_now_to_who_is_ahead_later(card, results, recipe):
    chart = figures(card, results, recipe)[0].charts[0]
    arrows = [row["reversal"] for rows in chart["datasets"].values() for row in rows if "reversal" in row]
    pairs = {(row["ahead"], row["behind"]) for row in card.reversals.to_dict("records") if row["view"] == "primary"}
    assert pairs
    assert set(arrows) == {f"{ahead} leads {behind} now and trails it in the long run" for ahead, behind in pairs}
