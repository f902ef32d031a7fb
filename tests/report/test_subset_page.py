"""The page of a selection and its summaries, for every shape that an outcome has."""

import dataclasses
import datetime
import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser

import altair as alt
import numpy as np
import pytest
from datasets import Dataset
from rich.console import Console

import longgame
from longgame.data.sources import open_source
from longgame.offline.options import SelectOptions
from longgame.offline.outcome import manifest_of
from longgame.offline.selecting import choose
from longgame.offline.summary import SubsetFacts, audit_line, largest_shift, subset_html, subset_summary
from longgame.report.subset import subset_page

HOSTILE = "</script><script>alert('x')</script>\x1b[31m\u202e{{ 7*7 }}<img src=x onerror=alert(1)>"


def outcome_of(tmp_path, rows, **options):
    """A selection of these rows without a model, and its manifest."""
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = SelectOptions(**{"selector": "longest", "budget": "20%rows", **options})
    outcome, _ = choose(open_source(path), chosen)
    return outcome, manifest_of(outcome, {"subset.jsonl": "0" * 64}, "longgame select data.jsonl --model tiny")


def rows_of(n, skills=("math", "code"), text="a question"):
    return [
        {"prompt": f"{text} {row}", "completion": "an answer " * (row % 17 + 1), "skill": skills[row % len(skills)]}
        for row in range(n)
    ]


def with_map(outcome, seed=0):
    """The outcome with embeddings and clusters, some rows without either."""
    draw, n = np.random.default_rng(seed), len(outcome.rows)
    embedding, clusters = draw.normal(size=(n, 2)), draw.integers(0, 4, n)
    embedding[:2], clusters[:2] = np.nan, -1
    return dataclasses.replace(outcome, embedding=embedding, clusters=clusters)


def specs(page):
    lines = page.rpartition("const charts = {")[2].partition("};")[0].strip().splitlines()
    return [json.loads(line.strip().rstrip(",").split(": ", 1)[1]) for line in lines]


def tags(page):
    """Every start tag with its attributes; what stands in scripts is none."""
    result = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, names: result.append((tag, dict(names)))
    parser.feed(page)
    return result


def printed(outcome, manifest):
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(subset_summary(outcome, manifest))
    return console.export_text()


SHAPES = {
    "one row": (1, {}, False),
    "no scores": (30, {"selector": "random"}, False),
    "scores": (60, {}, False),
    "map and clusters": (60, {}, True),
    "everything picked": (12, {"budget": "100%rows"}, True),
    "duplicates": (40, {"dedup": "exact"}, False),
    "budget in characters": (40, {"budget": "25%"}, True),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_has_page_and_summaries(name, tmp_path):
    n, options, mapped = SHAPES[name]
    rows = rows_of(n) + (rows_of(3) if name == "duplicates" else [])
    outcome, manifest = outcome_of(tmp_path, rows, **options) if n > 1 else outcome_of(tmp_path, rows, budget="1rows")
    outcome = with_map(outcome) if mapped else outcome
    page = subset_page(outcome, manifest)
    assert len(page.encode()) < 2e6
    charts = specs(page)
    for chart in charts:
        alt.Chart.from_dict(chart, validate=True)
        assert chart["description"]
    assert len(charts) == page.count('<div class="chart"')
    assert ("Map of the pool" in page) == mapped
    assert ("Score, with the cut" in page) == ("score" in outcome.terms)
    assert f"{len(outcome.picks):,} of {len(outcome.candidates):,} rows" in page
    assert page.count('class="example"') == min(10, len(outcome.picks)) + min(
        10, len(outcome.candidates) - len(outcome.picks)
    )
    assert "By cluster" in page or not mapped
    text, notebook = printed(outcome, manifest), subset_html(outcome, manifest)
    for view in (text, notebook):
        assert f"{len(outcome.picks):,} of {len(outcome.candidates):,}" in view
        assert outcome.options.label in view
    if name == "duplicates":
        assert "3 duplicates" in page


def first_screen(page):
    return page.partition('id="answer"')[2].partition('id="numbers"')[0]


@pytest.mark.parametrize(
    ("options", "skills", "figure", "table"),
    [
        ({}, ("math", "code"), "By skill", "Shares of the rows, in percent"),
        ({}, ("math",), "Length", "Length in characters"),
    ],
)
def test_first_screen_has_one_figure_and_one_table(options, skills, figure, table, tmp_path):
    outcome, manifest = outcome_of(tmp_path, rows_of(60, skills), **options)
    screen = first_screen(subset_page(outcome, manifest, datetime.date(2026, 1, 2)))
    assert screen.count("<figure") == screen.count("<table") == 1
    assert re.findall(r"<h3[^>]*>(.*?)</h3>", screen) == [figure, table]
    for part in ("60 rows", "seed 0", "2026-01-02", "budget 20%rows", outcome.options.label, "12 of 60 rows"):
        assert part in screen


def test_first_table_has_one_scale_and_the_lead_its_largest_shift(tmp_path):
    rows = [{"prompt": f"{n}", "completion": "a" * (n + 1), "skill": "code" if n < 15 else "math"} for n in range(20)]
    outcome, manifest = outcome_of(tmp_path, rows, budget="25%rows")
    screen = first_screen(subset_page(outcome, manifest))
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", screen.partition("<tbody>")[2])
    assert cells == ["code", "75.0", "0.0", "−75.0", "math", "25.0", "100.0", "+75.0"]
    assert "code is 75.0 % of the pool&#39;s rows and 0.0 % of the selected, the largest shift." in screen


def test_equal_shares_have_no_shift(tmp_path):
    rows = rows_of(20)
    outcome, manifest = outcome_of(tmp_path, rows, budget="100%rows")
    assert largest_shift(SubsetFacts.of(outcome, manifest)) == ""


def test_replayed_rows_are_named(tmp_path):
    earlier = tmp_path / "earlier.jsonl"
    earlier.write_text("".join(json.dumps(row) + "\n" for row in rows_of(40, text="earlier")))
    outcome_of(tmp_path, rows_of(60))
    chosen = SelectOptions(selector="longest", budget="50%rows", replay_share=0.2)
    outcome, _ = choose(open_source(tmp_path / "data.jsonl"), chosen, replay=str(earlier))
    view = SubsetFacts.of(outcome, manifest_of(outcome, {}, ""))
    assert view.facts["replayed"] == f"6 rows of {earlier} (20.0 % of the budget)"
    assert "24 rows beside the replay" in view.facts["budget"]
    assert view.audit.endswith("--budget 0.5")


def test_texts_of_strangers_stay_text(tmp_path):
    rows = rows_of(20, skills=(HOSTILE, "math"), text=HOSTILE)
    outcome, manifest = outcome_of(tmp_path, rows)
    manifest["command"] = HOSTILE
    source = outcome.rows.source
    source.label = HOSTILE
    page, notebook = subset_page(with_map(outcome), manifest), subset_html(outcome, manifest)
    for view in (page, notebook):
        assert "alert('x')</script>" not in view
        assert "img" not in [tag for tag, _ in tags(view)]
        assert "\x1b" not in view
        assert "\u202e" not in view
    assert "49" not in re.findall(r"<h1>(.*?)</h1>", page)[0]
    assert [tag for tag, _ in tags(page)].count("script") == 2


def test_the_page_loads_nothing(tmp_path):
    page = subset_page(*outcome_of(tmp_path, rows_of(20)))
    addresses = [value for _, names in tags(page) for name, value in names.items() if name in ("src", "href")]
    assert [address for address in addresses if not address.startswith("#")] == ["data:,"]
    assert "default-src 'none'" in page


def test_long_texts_and_many_rows_keep_the_page_small(tmp_path):
    rows = rows_of(20_000, skills=[f"skill {n}" for n in range(300)], text="x" * 50)
    rows[5]["completion"] = "long " * 100_000
    outcome, manifest = outcome_of(tmp_path, rows)
    page = subset_page(with_map(outcome), manifest)
    assert len(page.encode()) < 1.6e6
    assert "2,000 not selected and 2,000 selected rows are drawn of" in page
    assert "288 others" in page
    assert "characters…]" in page


def test_a_notebook_shows_the_subset(tmp_path):
    subset = longgame.select(Dataset.from_list(rows_of(40)), selector="longest", budget="10rows")
    assert "10 of 40 rows" in subset._repr_html_()
    assert "longgame audit" in subset._repr_html_()


def test_counts_of_groups_add_up(tmp_path):
    outcome, manifest = outcome_of(tmp_path, [*rows_of(50), {"prompt": "a", "completion": "b"}])
    shares = SubsetFacts.of(with_map(outcome), manifest).groups
    assert set(shares) == {"skill", "cluster"}
    for values in shares.values():
        assert sum(share.pool for share in values) == len(outcome.candidates)
        assert sum(share.picked for share in values) == len(outcome.picks)
    assert "(none)" in {share.name for share in shares["skill"]}


def test_the_cut_is_the_lowest_picked_score(tmp_path):
    outcome, manifest = outcome_of(tmp_path, rows_of(50))
    assert SubsetFacts.of(outcome, manifest).cut.score == outcome.terms["score"][outcome.picks].min()


def scored(tmp_path, scores, lengths, budget):
    """A selection by these scores, of rows of these lengths, within as many characters."""
    pairs = enumerate(zip(scores, lengths, strict=True))
    rows = [{"prompt": f"{n}", "completion": "a" * (length - 1), "quality": score} for n, (score, length) in pairs]
    return outcome_of(tmp_path, rows, selector="quality", budget=(budget + 0.1) / sum(lengths))


def test_a_small_row_that_fills_the_budget_is_not_the_cut(tmp_path):
    outcome, manifest = scored(tmp_path, [0.9, 0.8, 0.7, 0.6, 0.1, 0.0], [10, 10, 30, 30, 5, 5], 25)
    whys = {entry["row"]: entry["why"] for entry in outcome.explain()}
    assert [entry["row"] for entry in outcome.explain() if entry["picked"]] == [1, 2, 5]
    assert whys[1] == "score 0.9 is at or above the cut of 0.8"
    assert (
        whys[3]
        == whys[4].replace("0.6", "0.7")
        == ("score 0.7 is below the cut of 0.8, and what was left of the budget was too small for the row")
    )
    assert whys[5] == "score 0.1 is below the cut of 0.8; the row fills what was left of the budget"
    assert whys[6] == "score 0 is below the cut of 0.8"
    words = "selected from 0.8 on; 1 row below it, down to 0.1, fills what was left of the budget"
    assert words in " ".join(printed(outcome, manifest).split())
    page = subset_page(outcome, manifest)
    assert words[1:] in unescape(page)
    assert whys[5] in unescape(page)


@pytest.mark.parametrize("selector", ["random", "longest"])
def test_a_whole_pool_is_a_note_and_no_grade(selector, tmp_path):
    outcome, manifest = outcome_of(tmp_path, rows_of(8), selector=selector, budget="100%rows")
    facts = SubsetFacts.of(outcome, manifest).facts
    assert facts["note"].startswith("the budget holds all 8 candidates")
    assert "grades" not in facts


def test_a_first_row_beyond_the_budget_leaves_no_cut(tmp_path):
    outcome, manifest = scored(tmp_path, [0.9, 0.8, 0.1], [30, 10, 10], 20)
    assert "the budget does not hold the row of the highest score; 2 rows" in " ".join(
        printed(outcome, manifest).split()
    )
    assert "at or above" not in str(outcome.explain())
    assert "does not hold the row of the highest score" in unescape(subset_page(outcome, manifest))


def test_a_selector_that_passes_rows_over_has_no_fillers(tmp_path):
    outcome, _ = outcome_of(tmp_path, rows_of(50))
    picks = outcome.picks[::-1]  # in another order than that of the scores
    cut = dataclasses.replace(outcome, picks=picks[:-1]).cut
    assert (cut.score, cut.fillers) == (outcome.terms["score"][picks].min(), 0)
    best = dataclasses.replace(outcome, picks=picks[:-1]).why(int(picks[-1]), None)
    assert best.endswith("but the selector did not pick it")


@pytest.mark.parametrize(
    ("options", "model", "line"),
    [
        ({}, "tiny", "--selectors random,longest --budget 0.2 --model tiny"),
        ({"budget": "50%"}, "a b", "--selectors random,longest --budget 0.5 --model 'a b'"),
        ({"selector": "random"}, "", "--selectors random --budget 0.2"),
        ({"budget": "5rows"}, "", "--selectors random,longest --budget 0.1"),
        ({"budget": "99999rows"}, "", "--selectors random,longest --budget 1"),
    ],
)
def test_the_audit_line_repeats_selector_budget_model(options, model, line, tmp_path):
    outcome, _ = outcome_of(tmp_path, rows_of(50), **options)
    outcome = dataclasses.replace(outcome, model=model)
    assert audit_line(outcome) == f"longgame init stages && longgame audit stages/recipe.yaml {line}"
    small = dataclasses.replace(outcome, options=dataclasses.replace(outcome.options, budget="0.002%"))
    assert "--budget 0.00002" in audit_line(small)


MEASURE = """<script>
const watch = setInterval(() => {
  if (!document.documentElement.dataset.drawn) return;
  clearInterval(watch);
  const beyond = [];
  for (const svg of document.querySelectorAll(".chart svg")) {
    const box = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll("text")) {
      const at = text.getBoundingClientRect();
      const out = Math.max(at.right - box.right, box.left - at.left, at.bottom - box.bottom, box.top - at.top);
      if (at.width && out > 1) beyond.push([svg.closest(".chart").id, text.textContent, out]);
    }
  }
  const wide = document.documentElement.scrollWidth - innerWidth;
  const shapes = ".mark-rect path, .mark-symbol path";
  const marks = [...document.querySelectorAll(".chart")].map((chart) => chart.querySelectorAll(shapes).length);
  document.documentElement.dataset.measured = JSON.stringify({ beyond, wide, marks });
}, 50);
</script></body>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1440])
def test_chromium_draws_every_chart(tmp_path, width):
    outcome, manifest = outcome_of(tmp_path, rows_of(200, skills=("a-rather-long-name-of-a-skill" * 3, "math")))
    page = subset_page(with_map(outcome), manifest)
    (tmp_path / "page.html").write_text(MEASURE.join(page.rsplit("</body>", 1)), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=30000", "--dump-dom", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    measured = json.loads(unescape(re.search(r'data-measured="(.*?)"', done.stdout).group(1)))
    assert measured["beyond"] == []
    assert measured["wide"] <= 0
    assert len(measured["marks"]) == 5
    assert min(measured["marks"]) >= 4
