"""The page in Chromium: it draws every chart, says nothing in the console, and cuts off no word."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from longgame.audit.picks import combine_shares, reduce_stage
from longgame.metrics.efficiency import feasibility_of
from longgame.recipe import SelectorSpec
from longgame.report.efficiency import Compared, efficiency_figures, efficiency_frame
from longgame.report.figures import style_of
from longgame.report.layout import Section, report_layout
from longgame.report.render import html_page
from tests.report.conftest import make_recipe, make_results, make_run

pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")

MEASURE = """<script>
const watch = setInterval(() => {
  if (!document.documentElement.dataset.drawn) return;
  clearInterval(watch);
  const beyond = [];
  for (const svg of document.querySelectorAll(".chart svg")) {
    const box = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll("text")) {
      const own = text.getBoundingClientRect();
      const out = Math.max(own.right - box.right, box.left - own.left, own.bottom - box.bottom, box.top - own.top);
      if (own.width && out > 1) beyond.push([svg.closest(".chart").id, text.textContent, out]);
    }
  }
  const heading = document.querySelector("section[aria-labelledby=scorecard] table.sortable thead th:nth-child(2)");
  heading.querySelector("button").click();
  setTimeout(() => {
    const sorted = heading.getAttribute("aria-sort");
    const order = [...heading.closest("table").tBodies[0].rows].map((row) => Number(row.cells[1].dataset.sort));
    const wide = document.documentElement.scrollWidth - innerWidth;
    const plots = [...document.querySelectorAll(".charts.named .chart")]
      .map((chart) => chart.querySelector(".role-frame .background").getBoundingClientRect().width);
    const isName = (text) => text.textContent.includes(": ");
    const names = [...document.querySelectorAll(".charts.named .chart")]
      .map((chart) => [...chart.querySelectorAll(".role-axis-label text")].filter(isName).length);
    document.documentElement.dataset.found = JSON.stringify({ beyond, wide, sorted, order, plots, names });
  }, 50);
}, 50);
</script></body>"""


def with_costs(results):
    """The records with every part of a trial's time, another one in each trial."""
    stages = results.loc[results["name"] == "selected_tokens"]
    parts = []
    for place, name in enumerate(("train", "select", "diagnose", "evaluate", "probe")):
        seconds = 1.0 + place + 3.0 * stages["seed"] + np.arange(len(stages)) % 5
        parts.append(stages.assign(name=f"{name}_seconds", value=seconds, unit="s"))
    return pd.concat([results, *parts], ignore_index=True)


def full_data_figures(run, seeds):
    """What a run with full-data trials adds."""
    order = [spec.key for spec in run.recipe.selectors]
    n = len(order)
    rows = {"selector": sorted(order), "sdf_rows": np.linspace(0.2, 0.3, n), "sdf_tokens": 0.25}
    for name in ("pir_now", "pir_later"):
        ratio = np.linspace(0.9, 1.05, n)
        half = 0.02 if seeds > 1 else np.nan
        rows |= {name: ratio, f"{name}_low": ratio - half, f"{name}_high": ratio + half, f"{name}_n": seeds}
    known = ("random", "loss", "lhas", "quality", "diversity", "utility-diversity")
    feasibility = {name: feasibility_of(SelectorSpec(name=key)) for name, key in zip(order, known, strict=False)}
    return efficiency_figures(efficiency_frame([Compared("", pd.DataFrame(rows), feasibility)]), style_of(run))


def picks_of(order):
    """Two stages whose sub-skills have long names, eight of them in either."""
    stages = []
    for number in (1, 2):
        skills = [f"a-rather-long-sub-skill-{number}-{place}" for place in range(8)]
        for place, selector in enumerate(order):
            picked = [-1] * 8
            picked[place], picked[place + 2] = 0, 1
            table = pd.DataFrame(
                {"round": 0, "sample_id": [f"i{i}" for i in range(8)], "picked": picked, "tokens": range(1, 9),
                 "sub_skill": skills, "term_loss": np.arange(8.0), "term_far": np.arange(8.0)[::-1] ** 2,
                 "term_score": np.arange(8.0)}
            )  # fmt: skip
            stages.append(reduce_stage(selector, 0, number, pa.Table.from_pandas(table)))
    return combine_shares(stages)


@pytest.mark.parametrize(("width", "seeds"), [(390, 5), (760, 5), (1440, 1)])
def test_chromium_draws_every_chart_and_cuts_off_none(tmp_path, width, seeds):
    recipe = make_recipe(seeds)
    picks = picks_of([spec.key for spec in recipe.selectors])
    run = make_run(with_costs(make_results(seeds=seeds)), recipe, picks=picks)
    layout = report_layout(run, trials=0)
    more = Section("more-figures", "More figures").draw(lambda: full_data_figures(run, seeds))
    page = html_page([replace(layout, sections=[*layout.sections, more])])
    (tmp_path / "report.html").write_text(MEASURE.join(page.rsplit("</body>", 1)), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=30000", "--dump-dom", (tmp_path / "report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    places = {f'id="{name}-{place}"' for name in ("costs", "skill-mix", "efficiency", "feasibility") for place in (1,)}
    assert all(place in done.stdout for place in places)
    charts = len(re.findall(r'<div class="chart"', page))
    assert f'data-drawn="{charts}"' in done.stdout
    assert done.stdout.count('role="graphics-document"') == charts
    found = json.loads(unescape(re.search(r'data-found="(.*?)"', done.stdout).group(1)))
    assert found["beyond"] == []
    assert found["wide"] <= 0
    assert found["sorted"] == "descending"
    assert found["order"] == sorted(found["order"], reverse=True)
    assert len(found["plots"]) == 2
    assert found["plots"][0] == pytest.approx(found["plots"][1], abs=4)  # a point is as long in both
    rows = len(recipe.selectors) - 1
    assert found["names"] == [rows, rows if width < 700 else 0]
