"""The three renderers: the page, Markdown, the terminal. What is read stands out from its background (WCAG 2.2)."""

import io
import itertools
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import altair as alt
import pandas as pd
import pyarrow as pa
import pytest
import vl_convert
from rich.cells import cell_len
from rich.console import Console

from longgame.audit.picks import combine_shares, reduce_stage
from longgame.report import render
from longgame.report.charts import GREY, PALETTE, ink_on_cividis
from longgame.report.layout import Section, report_layout
from longgame.report.picks import TrialDetail, stage_detail
from longgame.report.render import column_parts, html_page, markdown, print_layout, print_table
from longgame.report.tables import MAIN, Cell, Column, Table, metric_table
from tests.report.conftest import make_run


@pytest.fixture(scope="module")
def page(run):
    return html_page([report_layout(run, trials=0)])


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


def test_every_chart_has_its_place_and_a_description(elements, run):
    raw = re.search(r"const charts = \{(.*?)\n\};", elements.scripts[2], re.DOTALL)
    charts = json.loads("{" + raw.group(1).rstrip().rstrip(",") + "}")
    assert charts == {
        f"{figure.name}-{i}": chart
        for figure in report_layout(run, trials=0).figures
        for i, chart in enumerate(figure.charts, 1)
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


def test_every_trial_is_in_the_page(card, page):
    rows = re.findall(r"<tr><th scope=\"row\">(\d-s\d)</th><td>", page)
    assert sorted(rows) == sorted(card.trials.names)


def test_the_papers_numbers_can_be_switched_on(page):
    assert 'class="paper"' in page


def with_trial(run, table, texts):
    """The layout of a run with its picks and one trial in full."""
    detail = TrialDetail("1-s0", {"seed": "0"}, Table("Measured", (), ()), (stage_detail(table, 1, "one", texts),))
    picks = combine_shares([reduce_stage("ahead", 0, 1, pa.Table.from_pandas(table))])
    layout = report_layout(make_run(run.results, card=run.scorecard, picks=picks), trials=0)
    return replace(layout, sections=[*layout.sections, Section("one", "One trial").show(detail)])


def selection(skill):
    return pd.DataFrame(
        {"round": 0, "sample_id": ["p", "q"], "picked": [0, -1], "tokens": [3, 4], "sub_skill": [skill, ""],
         "term_utility": [1.0, 0.0], "term_score": [1.0, 0.0]}
    )  # fmt: skip


def test_dataset_text_stays_text(run):
    trap = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>"
    page = html_page([with_trial(run, selection(trap), {"p": (trap, trap)})])
    elements = Elements(page)
    assert len(elements.scripts) == 3
    assert not [tag for tag, attributes in elements.tags if tag == "img" or "onerror" in attributes]
    assert "&lt;/pre&gt;&lt;script&gt;alert(1)" in page
    assert "utility +1.000 · score +1.000" in page
    assert "never picked" in page
    assert "alert(1)</script>" not in page


def test_several_runs_share_a_page_with_names_of_their_own(results, card):
    run = make_run(results, card=card)
    run.finished_stages["ahead-s0"] = 1
    page = html_page([report_layout(run, name, trials=0) for name in ("one", "two <b>")])
    elements = Elements(page)
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    refs = [attributes["href"][1:] for tag, attributes in elements.tags if tag == "a"]
    assert set(refs) <= set(ids)
    assert page.count('class="note">This run is not finished') == 2
    assert not [tag for tag, _ in elements.tags if tag == "b"]


@pytest.fixture(scope="module")
def complete(run):
    """A report with all its parts: picks and a trial in full."""
    return with_trial(run, selection("x"), {"p": ("prompt", "response")})


@pytest.fixture(scope="module")
def whole(complete):
    return Elements(html_page([complete]))


def test_tables_have_captions_and_scoped_headings(whole):
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


def test_scrolling_regions_have_a_name_and_keyboard_focus(whole):
    regions = [attributes for _, attributes in whole.tags if attributes.get("class") == "scroll"]
    assert regions
    assert all(region["tabindex"] == "0" and region["role"] == "region" and region["aria-label"] for region in regions)


@pytest.mark.parametrize("runs", [1, 2])
def test_headings_go_down_by_one_level_and_differ(complete, runs):
    page = html_page([complete] * runs)
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
    assert 'Highest scores<span class="sr-only">, stage 1 of 1-s0</span>' in texts
    assert all(texts.count(text) == runs for text in texts[1:])


def test_every_column_of_the_scorecard_is_explained(page):
    told = re.search(r"What the columns mean</summary>\s*<dl>(.*?)</dl>", page, re.DOTALL).group(1)
    scorecard = page[page.index('id="scorecard"') : page.index("What the columns mean")]
    labels = set(re.findall(r'<button type="button" title="[^"]*">(.*?)</button>', scorecard))
    labels = {label for label in labels if not label.startswith("paper: ")}
    assert {"sd over stages", "selected tokens"} <= labels
    assert labels <= set(re.findall(r"<dt>(.*?)</dt>", told))


def test_page_without_scripts_draws_svg(run):
    page = html_page([report_layout(run, trials=0)], scripts=False)
    elements = Elements(page)
    assert elements.scripts == []
    assert page.count("<svg") == len(report_layout(run, trials=0).figures)
    assert not [tag for tag, _ in elements.tags if tag == "button"]


@pytest.fixture
def fresh():
    for step in (render.begin_bundle, render.finish_bundle):
        step.cache_clear()
    yield
    for step in (render.begin_bundle, render.finish_bundle):
        step.cache_clear()


def test_script_from_another_process_is_the_one_made_here(fresh, monkeypatch):
    here = render.finish_bundle()
    render.finish_bundle.cache_clear()
    render.begin_bundle()
    monkeypatch.setattr(render.vl_convert, "javascript_bundle", None)  # the other process makes it
    assert render.finish_bundle() == here
    assert "</script" not in here.lower()


def test_failed_process_is_replaced(fresh, monkeypatch):
    here = render.finish_bundle()
    render.finish_bundle.cache_clear()
    monkeypatch.setattr(sys, "executable", "false")
    render.begin_bundle()
    assert render.finish_bundle() == here


def luminance(red, green, blue):
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (red / 255, green / 255, blue / 255)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def rgb(color):
    if color.startswith("rgb"):
        return [int(number) for number in re.findall(r"\d+", color)]
    digits = color.lstrip("#")
    return [int(digits[place : place + 2], 16) for place in (0, 2, 4)]


def contrast(one, other):
    low, high = sorted((luminance(*rgb(one)), luminance(*rgb(other))))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_on_white_is_21():
    assert contrast("#000000", "rgb(255, 255, 255)") == pytest.approx(21)


@pytest.fixture(scope="module")
def themes(page):
    found = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{([^}]*)\}", page)]
    assert len(found) == 2  # light, dark
    return found


def test_every_text_color_is_legible_light_and_dark(themes):
    for colors in themes:
        backgrounds = {name for name in colors if name in ("paper", "panel")}
        texts = set(colors) - backgrounds - {"line"}
        assert backgrounds == {"paper", "panel"}
        assert {"ink", "soft", "good", "bad", "accent"} <= texts
        for text in texts:
            for behind in backgrounds:
                assert contrast(colors[text], colors[behind]) >= 4.5, (text, behind)


def test_marks_of_charts_stand_out_from_the_page_light_and_dark(themes):
    for colors in themes:
        for mark in (*PALETTE, GREY):
            assert contrast(mark, colors["paper"]) >= 3, (mark, colors["paper"])


def test_numbers_in_heat_maps_are_legible_on_every_shade():
    values = pd.DataFrame({"value": [step / 50 for step in range(51)]})
    base = alt.Chart(values).encode(alt.X("value:O"))
    scale = alt.Scale(scheme="cividis", domain=[0, 1])
    cells = base.mark_rect().encode(color=alt.Color("value:Q", scale=scale, legend=None))
    text = base.mark_text().encode(text="value:Q", color=ink_on_cividis("value", 0.0, 1.0))
    svg = vl_convert.vegalite_to_svg(alt.layer(cells, text).to_dict())
    shades = re.findall(r'<path aria-label="value: [^>]*fill="(rgb\([^"]*\))"', svg)
    inks = re.findall(r'<text aria-label="value: [^>]*fill="(#\w{6})"', svg)
    assert len(shades) == len(inks) == 51
    assert set(inks) == {"#000000", "#ffffff"}
    for ink, shade in zip(inks, shades, strict=True):
        assert contrast(ink, shade) >= 4.5, (ink, shade)


@pytest.fixture(scope="module")
def text(run):
    return markdown(report_layout(run))


def markdown_tables(text):
    block = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            block.append(line)
        elif block:
            yield block
            block = []


def cells(line):
    return len(re.findall(r"(?<!\\)\|", line)) - 1


def test_markdown_rows_have_the_cells_of_their_heading(text):
    found = list(markdown_tables(text))
    assert len(found) >= 9
    for block in found:
        assert {cells(line) for line in block} == {cells(block[0])}
        assert len(block) > 2


def test_names_stay_text_in_markdown(text):
    before_recipe = text.partition("<details><summary>Resolved recipe")[0]
    assert "<script>" not in before_recipe
    assert "<b>" not in before_recipe
    assert r"a\|b &lt;script&gt;alert('x')&lt;/script&gt; \*\_\`" in before_recipe


def test_markdown_has_all_tables_meanings_and_facts(text):
    for heading in (
        "# Scorecard: synthetic",
        "## Scorecard",
        "### Scorecard, token accuracy (primary)",
        "### Scorecard, exact match",
        "### By stage, exact match",
        "### By sub-skill, token accuracy (primary)",
        "## Diagnostics",
        "### Cost per trial",
        "## The run",
    ):
        assert heading in text.splitlines()
    assert "- **forgetting**: " in text
    assert "- **seeds**: 5 (0, 1, 2, 3, 4)" in text
    assert "The base model is the same in all seeds" in text
    assert "**ahead**: *myopic*. against random" in text


def test_equal_runs_give_equal_text(text, run):
    assert markdown(report_layout(run)) == text


def printed(run, width):
    out = io.StringIO()
    print_layout(report_layout(run), Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_terminal_fits_its_width_and_cuts_off_nothing(run, width):
    text = printed(run, width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    words = text.split()
    for heading in ("forgetting", "horizon", "entropy", "difficulty", "selected"):
        assert heading in words
    for task in ("one", "three"):
        assert task in words


def test_the_scorecard_is_one_table_at_120_columns(card, recipe):
    table = metric_table(card, recipe, MAIN, "t", "token_accuracy")
    short = [row for row in table.rows if len(row[0].text) <= 17]
    narrow = replace(table, rows=tuple(short))
    assert len(column_parts(narrow, 120)) == 1
    parts = column_parts(narrow, 80)
    assert len(parts) == 2
    assert sorted(position for part in parts for position in part[1:]) == list(range(1, len(table.columns)))
    assert all(part[0] == 0 for part in parts)


@pytest.mark.parametrize("width", [16, 40])
def test_a_narrow_terminal_leaves_out_minor_columns_before_it_cuts(width):
    columns = (Column("name"), Column("score"), Column("seeds" * 3, minor=True))
    text = io.StringIO()
    print_table(Table("t", columns, ((Cell("a"), Cell("1.5"), Cell("7")),)), Console(file=text, width=width))
    assert ("7" in text.getvalue()) == (width == 40)
    assert text.getvalue().count("a ") == 1


def test_names_are_text_not_markup(run, hostile):
    assert "<script>" in printed(run, 200)
    assert hostile in printed(run, 200)


def test_every_selector_has_its_verdict_line(run, hostile):
    lines = printed(run, 300).splitlines()
    assert any(line.startswith("ahead: myopic — against random: current score +10.0 points: ahead") for line in lines)
    assert any(line.startswith(f"{hostile}: ") for line in lines)


def test_terminal_begins_with_answer_and_verdicts(run):
    titles = ["The answer", "Verdicts", "Scorecard", "Diagnostics", "More tables", "The run"]
    assert [line for line in printed(run, 200).splitlines() if line in titles] == titles


def test_stages_section_shows_mean_tokens_per_stage(run):
    pools = run.results[run.results["name"] == "selected_tokens"].assign(name="pool_tokens")
    pools["value"] = 4000.0 * pools["stage"] + pools["seed"].map({0: 50.0}).fillna(-12.5)  # mean of 5 seeds: 0
    text = markdown(report_layout(make_run(pd.concat([run.results, pools]), card=run.scorecard)))
    assert "The stages" in text
    assert "8,000 tokens offered, 1,000 selected" in text
    assert "The stages" not in markdown(report_layout(run))  # without sizes of the pools
