"""Reports of many selectors: grouped by family, one screen in a terminal, a page that can be filtered by keyboard."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from html import unescape

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from longgame.metrics.efficiency import feasibility_of
from longgame.metrics.scorecard import Scorecard
from longgame.metrics.tidy import Measured
from longgame.recipe import load_recipe, parse_recipe
from longgame.report.charts import FAMILY_COLORS, GREY
from longgame.report.efficiency import Compared, efficiency_figures, efficiency_frame, efficiency_table
from longgame.report.families import overview_lines
from longgame.report.figures import outcome_figures, style_of, walk_figures
from longgame.report.layout import efficiency_layout, report_layout
from longgame.report.render import html_page, markdown, print_layout
from longgame.report.tables import MANY, selector_families, selectors_in_order
from longgame.selection.families import FAMILIES
from tests.report.conftest import make_run

TASKS = ["one", "two", "three"]
_ROW = {"task": "", "task_kind": "", "sub_skill": "", "scorer": "", "probe": "", "step": -1, "tokens": -1}


def results_of(names, seeds=3):
    rows = []
    for seed in range(seeds):
        for place, selector in enumerate(names):
            rng = np.random.default_rng([seed, place])
            trial = {"trial": f"{selector}-s{seed}", "selector": selector, "seed": seed, **_ROW}
            now, lost = 50 + 6 * np.sin(place), 3 + 3 * abs(np.cos(place))
            for stage in range(4):
                for column, task in enumerate(TASKS):
                    value = 30.0 if stage <= column else now - lost * (stage - column - 1)
                    score = {"kind": "score", "stage": stage, "task": task, "task_kind": "stage", "sub_skill": "x"}
                    score |= {"scorer": "token_accuracy", "name": "score", "unit": "points"}
                    rows.append(trial | score | {"value": value + seed + 0.3 * rng.standard_normal()})
            for stage in (1, 2):
                for probe in ("common", "own"):
                    curve = {"kind": "curve", "stage": stage, "task": TASKS[stage], "task_kind": "stage"}
                    curve |= {"scorer": "token_accuracy", "probe": probe, "name": "score", "unit": "points"}
                    rows += [trial | curve | {"step": n, "tokens": 10 * n, "value": 30.0 + n + place} for n in range(3)]
            for stage in (1, 2, 3):
                costs = {"selected_tokens": 100.0, "score_flops": 10.0 * place, "train_flops": 50.0}
                costs |= {"warmup_flops": 7.0} if selector == "less" else {}
                for name, value in costs.items():
                    rows.append(trial | {"kind": "cost", "stage": stage, "name": name, "value": value, "unit": "FLOP"})
    return pd.DataFrame(rows)


def run_of(count=None):
    recipe = load_recipe("field")
    recipe = recipe.replace({"selectors": recipe.selectors[:count]})
    names = [spec.key for spec in recipe.selectors]
    results = results_of(names)
    card = Scorecard.build(
        results,
        tasks=TASKS,
        ood=[],
        primary=dict.fromkeys(TASKS, "token_accuracy"),
        metric_spec=recipe.metrics,
        threshold=0.9,
        bases=None,
    )
    measured = {"": Measured.read(results, TASKS, [], recipe.metrics.reference)}
    return make_run(results, recipe, card, measured=measured)


@pytest.fixture(scope="module")
def run():
    return run_of()


@pytest.fixture(scope="module")
def page(run):
    return html_page([report_layout(run, trials=0)])


def test_few_selectors_are_not_grouped() -> None:
    few = run_of(MANY)
    assert selector_families(few.scorecard, few.recipe) == {}
    assert selectors_in_order(few.scorecard, few.recipe) == [spec.key for spec in few.recipe.selectors]
    assert "<form" not in html_page([report_layout(few, trials=0)], scripts=False)


def test_many_selectors_stand_family_by_family(run) -> None:
    families = selector_families(run.scorecard, run.recipe)
    order = selectors_in_order(run.scorecard, run.recipe)
    assert order == list(families)
    assert len(order) == len(run.recipe.selectors)
    places = [list(FAMILIES).index(families[name]) for name in order]
    assert places == sorted(places)


def test_colors_of_families_are_no_more_than_a_palette_holds(run) -> None:
    style = style_of(run)
    colors = {key.selector: key.color for key in style.legend}
    assert colors.pop("baseline") == GREY
    assert len(set(colors.values())) == len(colors) <= len(FAMILY_COLORS)
    pairs = {(key.color, key.glyph) for key in style.keys}
    assert len(pairs) >= len(style.keys) - 2  # a family of more than eight repeats a shape


def test_terminal_of_many_selectors_is_one_screen(run) -> None:
    console = Console(width=110, record=True, file=io.StringIO())
    print_layout(report_layout(run, trials=0), console, "summary")
    lines = console.export_text().splitlines()
    assert len(lines) < 50
    assert lines[1] == "The answer"
    text = " ".join(lines)
    assert all(spec.key in text for spec in run.recipe.selectors)


def test_lines_of_families_fall_by_long_horizon_score(run) -> None:
    lines = overview_lines(run.scorecard, run.recipe)
    assert next(iter(lines)) == "baseline"
    for text in lines.values():
        scores = [float(part) for part in re.findall(r" (\d\.\d+)", text)]
        assert scores == sorted(scores, reverse=True)


def test_no_figure_of_many_selectors_overlays_more_than_a_family(run) -> None:
    for figure in (*outcome_figures(run), *walk_figures(run)):
        for chart in figure.charts:
            marks = json.dumps(chart)
            if '"type": "line"' not in marks:
                continue
            data = next(iter(chart["datasets"].values()))
            families = {selector_families(run.scorecard, run.recipe)[row["selector"]] for row in data}
            assert len(families - {"baseline"}) == 1


def test_page_says_what_each_selector_was_given_and_cost(run) -> None:
    text = markdown(report_layout(run, trials=0))
    assert "What each selector was given besides the candidates" in text
    assert "a reference model trained on the stage's development items" in text.replace("\\", "")
    assert "Cost per trial" in text
    assert "of these warm-up" in text


MEASURE = """<script>
const watch = setInterval(() => {
  if (!document.documentElement.dataset.drawn) return;
  clearInterval(watch);
  const form = document.querySelector("form.filter");
  const table = document.querySelector("table.sortable");
  const count = () => [...table.tBodies[0].rows].filter((row) => row.offsetHeight > 0).length;
  const marks = () => document.querySelectorAll("#overview-1 path[aria-roledescription='point']").length;
  const found = { all: [count(), marks()] };
  const search = form.querySelector("[type=search]");
  search.focus();
  found.focused = document.activeElement === search;
  search.value = "dedup";
  search.dispatchEvent(new Event("input", { bubbles: true }));
  setTimeout(() => {
    found.dedup = [count(), marks(), form.querySelector("output").textContent];
    form.reset();
    setTimeout(() => {
      found.reset = [count(), marks()];
      const box = form.querySelector("[value=gradient]");
      box.click();
      setTimeout(() => {
        found.without = [count(), marks()];
        found.wide = document.documentElement.scrollWidth - innerWidth;
        document.documentElement.dataset.found = JSON.stringify(found);
      }, 600);
    }, 600);
  }, 600);
}, 50);
</script></body>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_chromium_filters_tables_and_charts(run, page, tmp_path) -> None:
    (tmp_path / "r.html").write_text(MEASURE.join(page.rsplit("</body>", 1)), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1440,2000", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=60000", "--dump-dom", (tmp_path / "r.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    assert "CONSOLE" not in done.stderr
    found = json.loads(unescape(re.search(r'data-found="(.*?)"', done.stdout).group(1)))
    families = selector_families(run.scorecard, run.recipe)
    n, gradient = len(families), sum(family == "gradient" for family in families.values())
    dedup = sum("dedup" in name for name in families)
    assert found["all"] == found["reset"] == [n, n]
    assert found["dedup"] == [dedup, dedup, f"{dedup} of {n} selectors"]
    assert found["without"] == [n - gradient, n - gradient]
    assert found["focused"]
    assert found["wide"] <= 0


# longgame compare


def compared(run):
    order = [spec.key for spec in run.recipe.selectors]
    rows = {"selector": order, "sdf_rows": np.linspace(0.2, 0.3, len(order)), "sdf_tokens": 0.25}
    for name in ("pir_now", "pir_later"):
        ratio = np.linspace(0.9, 1.05, len(order))
        rows |= {name: ratio, f"{name}_low": ratio - 0.02, f"{name}_high": ratio + 0.02, f"{name}_n": 3}
    known = {spec.key: feasibility_of(spec) for spec in run.recipe.selectors}
    return efficiency_frame([Compared("", pd.DataFrame(rows), known)])


def test_compare_groups_many_selectors_beside_published_ones(run) -> None:
    frame, style = compared(run), style_of(run)
    table = efficiency_table(frame, style)
    families = [row[1].text for row in table.rows]
    ours = families[: len(run.recipe.selectors)]
    assert ours == list(selector_families(run.scorecard, run.recipe).values())
    assert families[-1] == "published"
    now, later, published = efficiency_figures(frame, style)[0].charts
    assert all(len(next(iter(chart["datasets"].values()))) for chart in (now, later, published))
    vars(run)["full_data"] = None
    layout = efficiency_layout(frame, [run], "primary")
    console = Console(width=110, record=True, file=io.StringIO())
    print_layout(layout, console)
    text = console.export_text()
    assert len(text.splitlines()) < 50
    assert "published:" in text
    assert "<form" in html_page([layout])


def test_trained_models_count_in_the_feasibility_of_a_selector() -> None:
    specs = {spec.key: spec for spec in parse_recipe({"name": "q", "selectors": ["loss", "less", "rho"]}).selectors}
    assert [feasibility_of(specs[name]).trained_llms for name in ("loss", "less", "rho")] == [0, 1, 1]
