"""`longgame compare` and its figures: what the run measured beside what the survey publishes."""

import re

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from longgame.audit.run import load_run
from longgame.cli import app
from longgame.errors import RecipeError, ResumeError
from longgame.metrics.efficiency import Feasibility, published
from longgame.report.charts import Style
from longgame.report.efficiency import (
    Compared,
    compared_conditions,
    efficiency_figures,
    efficiency_frame,
    efficiency_table,
    feasibility_table,
)
from longgame.report.layout import efficiency_layout, report_layout
from longgame.report.render import html_page
from longgame.report.tables import selectors_in_order
from tests.report.conftest import make_run

RECIPE = """
name: small
model: {name: quadratic}
data: {sequence: quadratic, pool_size: 64, stages: [{name: a}, {name: b}]}
selectors: [random, loss]
seeds: [0, 1]
budget: 0.25
training: {steps: 6, learning_rate: 0.1, warmup_steps: 1}
probe: {steps: 4, points: 3}
"""
EASY = Feasibility(0, 1, reproducible=True, model_free=True, dataset_free=True, gpt_free=True)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def audit(folder, more=""):
    folder.mkdir(exist_ok=True)
    (folder / "r.yaml").write_text(RECIPE + more)
    done = invoke("audit", folder / "r.yaml", "--out", folder / "run", "--workers", 1)
    assert done.exit_code == 0, done.output
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return audit(tmp_path_factory.mktemp("full"), "full_data: true\naxes: {budget: [0.5], vary: {data.noise: [0.3]}}\n")


def frame_of(ratio, low=np.nan, high=np.nan, feasibility=EASY):
    row = {"selector": ["a <b>"], "sdf_rows": [0.2], "sdf_tokens": [0.25]}
    for name in ("pir_now", "pir_later"):
        row |= {name: [ratio], f"{name}_low": [low], f"{name}_high": [high], f"{name}_n": [3]}
    return efficiency_frame([Compared("", pd.DataFrame(row), {"a <b>": feasibility})])


def test_run_without_full_data_trials_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("longgame.report.render.html_page", lambda *_: "page")
    plain = audit(tmp_path / "q")
    error = invoke("compare", plain).exception
    assert isinstance(error, ResumeError)
    assert "this run holds no full-data trial; add full_data: true and run again: finished trials are kept." in str(
        error
    )
    audit(tmp_path / "q", "full_data: true\n")
    assert invoke("compare", plain).exit_code == 0


def test_files_hold_every_method_once_with_its_source(run, tmp_path):
    paths = [tmp_path / name for name in ("c.csv", "c.md", "c.html")]
    for path in paths:
        figures = ["--figures", tmp_path / "figures"] if path == paths[0] else []
        done = invoke("compare", run, "--out", path, *figures)
        assert done.exit_code == 0, done.output
        assert "data.noise=0.3" in done.output  # differs in more than the budget: left out, and said
    table = pd.read_csv(paths[0])
    assert list(table["method"]) == [
        "random", "loss", "random (budget 0.5)", "loss (budget 0.5)", "all data", *published()["method"]
    ]  # fmt: skip
    assert table["source"].notna().all()
    assert table.loc[table["kind"] == "published", ["pir_now", "pir_later", "sdf_tokens"]].isna().all(axis=None)
    assert table.loc[table["kind"] != "published", "pir_published"].isna().all()
    for path in paths[1:]:
        assert all(name in path.read_text() for name in ("Superfiltering", "2406.14115", "PIR now"))
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("efficiency", "feasibility") for kind in ("svg", "png")
    }


def test_the_numbers_are_those_of_the_score_matrix(run):
    loaded = load_run(run)
    own, half = compared_conditions(loaded)
    assert (own.label, half.label) == ("", "budget 0.5")
    expected = []
    for seed in (0, 1):
        R, full = loaded.scorecard.R("primary", "loss", seed), loaded.full_data.R("primary", "all data", seed)
        expected.append(np.mean([R[1, 0] / full[1, 0], R[2, 1] / full[2, 1]]))
    found = own.efficiency.set_index("selector")
    assert found["pir_now"]["loss"] == pytest.approx(np.mean(expected))
    assert found["sdf_tokens"]["loss"] == pytest.approx(0.25, abs=0.05)
    assert half.efficiency.set_index("selector")["sdf_tokens"]["loss"] == pytest.approx(0.5, abs=0.05)


def test_page_shows_efficiency_only_with_full_data_trials(run, tmp_path):
    assert "Performance improvement ratio" in (run / "report.html").read_text()
    assert "Performance improvement ratio" not in (audit(tmp_path / "q") / "report.html").read_text()


def test_all_data_is_a_reference_of_one():
    frame = frame_of(1.2, 1.1, 1.3, feasibility=None).set_index("method")
    assert (frame.loc["all data", ["pir_now", "pir_later", "sdf_rows", "sdf_tokens"]] == 1).all()
    assert frame.loc[["a <b>", "all data"], ["steps", "feasibility"]].isna().all(axis=None)
    rows = {str(row[0]): [str(cell) for cell in row[1:]] for row in efficiency_table(frame.reset_index()).rows}
    assert rows["a <b>"] == ["1.200 [1.100, 1.300] ▲", "1.200 [1.100, 1.300] ▲", "—", "0.200", "0.250", "—"]
    assert rows["IFD"] == ["—", "—", "1.747", "0.050", "—", "4"]
    assert "a <b>" not in {str(row[0]) for row in feasibility_table(frame.reset_index()).rows}


def test_a_mark_needs_an_interval_that_leaves_1_out():
    marks = [
        efficiency_table(frame_of(*values)).rows[0][1].mark
        for values in ((1.2, 1.1, 1.3), (1.2, 0.9, 1.5), (0.8, 0.7, 0.9), (1.2,))
    ]
    assert marks == ["▲", "", "▼", ""]


def test_no_ratio_draws_no_efficiency_figure():
    style = Style(["a <b>"], "random")
    assert [figure.name for figure in efficiency_figures(frame_of(np.nan), style)] == ["feasibility"]
    (efficiency, feasibility) = efficiency_figures(frame_of(1.2, 1.1, 1.3), style)
    assert len(efficiency.charts) == 3
    rows = [row for data in feasibility.charts[0]["datasets"].values() for row in data if "simplicity" in row]
    ranks = {row["method"]: (row["simplicity"], row["flexibility"]) for row in rows}
    assert {row["method"] for row in rows if row["kind"] == "audit"} == {"a <b>"}
    assert ranks["a <b>"] == (1, 1)
    assert ranks["Nuggets"] == ranks["CaR"] == ranks["SelectIT"] == (3, 1)


def test_a_selector_looks_the_same_on_the_whole_page(run):
    loaded = load_run(run)
    own = {key.selector: key for key in Style(selectors_in_order(loaded.scorecard, loaded.recipe), "random").keys}
    keyed = [figure for figure in report_layout(loaded).figures if figure.keys]
    assert {"immediate-long", "efficiency"} <= {figure.name for figure in keyed}
    for figure in keyed:
        assert all(key == own[key.selector] for key in figure.keys), figure.name


def test_keys_follow_the_style_and_not_the_frame():
    row = {"selector": ["a", "b", "own"], "sdf_rows": [0.2] * 3, "sdf_tokens": [0.2] * 3}
    for name in ("pir_now", "pir_later"):
        row |= {name: [1.0] * 3, f"{name}_low": [0.9] * 3, f"{name}_high": [1.1] * 3, f"{name}_n": [3] * 3}
    parts = [Compared(label, pd.DataFrame(row), {}) for label in ("", "budget 0.5")]
    efficiency = efficiency_figures(efficiency_frame(parts), Style(["own", "b", "a"], "own"))[0]
    assert efficiency.keys == Style(["own", "b", "a"], "own").keys
    titles = [chart["title"] for chart in efficiency.charts]
    assert titles[:4] == [
        f"{label}: {when}" for label in ("audit", "budget 0.5") for when in ("right after each stage", "at the end")
    ]


def test_names_are_text_on_the_page_and_it_loads_nothing(results, recipe):
    named = make_run(results)
    named.recipe = recipe.model_copy(update={"name": "t <i>"})
    page = html_page([efficiency_layout(frame_of(1.2, 1.1, 1.3), [named], "primary")], scripts=False)
    assert "t &lt;i&gt;" in page
    assert ">a &lt;b&gt;</th>" in page
    assert "a <b>" not in page
    assert not re.search(r"<script|(?:src|href)=\"http", page)


def test_wrong_options_are_named(run, tmp_path):
    for arguments, message in (
        ((run, run), "given twice"),
        ((run, "--out", tmp_path / "c.txt"), "must end in .html, .md or .csv"),
        ((run, "--view", "exact"), "unknown view 'exact'"),
    ):
        error = invoke("compare", *arguments).exception
        assert isinstance(error, RecipeError), arguments
        assert message in str(error)
