"""`longgame report` and `longgame watch` on a real run of the closed-form world, finished and partial."""

import io
import os
import re
import shutil

import pandas as pd
import pytest
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

from longgame.audit.picks import gather_picks
from longgame.audit.run import Run, condition_places, load_run
from longgame.cli import app
from longgame.commands.report import short_names
from longgame.commands.watch import finish_times, progress_line, seconds_left
from longgame.errors import RecipeError, ResumeError, StorageError
from longgame.recipe import parse_recipe
from longgame.report.answer import condition_note
from longgame.report.conditions import axes_figures
from longgame.report.picks import first_trials, trial_details
from longgame.storage import table_of, write_table
from support.run_parts import as_older_version, remove, rewrite

RECIPE = """
name: small
model: {name: quadratic}
data:
  sequence: quadratic
  stages: [{name: one}, {name: two}, {name: three}]
  ood: [{name: one-rotated}]
  pool_size: 60
selectors: [random, loss, lhas]
seeds: [0, 1, 2]
rounds: 2
training: {steps: 6, learning_rate: 0.1, warmup_steps: 1}
probe: {steps: 4, points: 5}
"""


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    (folder / "r.yaml").write_text(RECIPE)
    done = invoke("audit", folder / "r.yaml", "--out", folder / "run", "--workers", 1)
    assert done.exit_code == 0, done.output
    return folder / "run"


@pytest.fixture
def partial(run, tmp_path):
    shutil.copytree(run, tmp_path / "partial")
    shutil.rmtree(tmp_path / "partial" / "trials" / "loss-s2")
    remove(tmp_path / "partial" / "trials" / "random-s2", 3)
    return tmp_path / "partial"


def test_report_writes_the_requested_files(run, tmp_path):
    asked = ["--out", tmp_path / "r.html", "--figures", tmp_path / "figures", "--markdown", tmp_path / "r.md"]
    done = invoke("report", run, *asked, "--card", tmp_path / "card.md", "--trials", 2)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "r.html").read_text()
    assert page.count('<details class="trial">') == 2
    assert "Jaccard" in page
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".svg", ".png"}
    assert (tmp_path / "figures" / "terms.svg").is_file()  # LHAS has several terms
    assert (tmp_path / "r.md").read_text().startswith("# Scorecard: small")
    assert (tmp_path / "card.md").read_text().startswith("## Data-selection audit: small")


def test_partial_run_is_read_from_its_stages(run, partial):
    whole, part = load_run(run), load_run(partial)
    assert whole.finished
    assert whole.progress == ""
    assert not part.finished
    assert "7 of 9 trials, 23 of 27 stages" in part.progress
    assert set(whole.results["trial"]) - set(part.results["trial"]) == {"loss-s2"}
    columns = ["selector", "metric", "mean"]
    again = load_run(run).scorecard.summary[columns]
    assert whole.scorecard.summary[columns].equals(again)
    assert part.scorecard.wide(["long_horizon"], column="n")["long_horizon"].to_dict() == {
        "random": 2, "loss": 2, "lhas": 3,
    }  # fmt: skip


def test_results_of_fewer_trials_than_planned_are_not_used(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    whole = load_run(run)
    less = whole.results[whole.results["trial"] != "loss-s1"]
    less.to_parquet(tmp_path / "run" / "results.parquet", index=False)
    assert set(load_run(tmp_path / "run").results["trial"]) == set(whole.results["trial"])


def test_partial_run_is_reported_as_partial_everywhere(partial, tmp_path):
    paths = [tmp_path / name for name in ("r.html", "r.md", "card.md")]
    done = invoke("report", partial, "--out", paths[0], "--markdown", paths[1], "--card", paths[2])
    assert done.exit_code == 0, done.output
    assert all("7 of 9 trials" in path.read_text() for path in paths)


@pytest.fixture
def _plain_page(monkeypatch):
    """For tests that do not read the page, whose charts take most of the time."""
    monkeypatch.setattr("longgame.report.render.html_page", lambda *_: "page")


@pytest.mark.usefixtures("_plain_page")
def test_folders_of_requested_files_are_made(run, tmp_path):
    paths = [tmp_path / folder / name for folder, name in (("a/b", "r.html"), ("c", "r.md"), ("d", "card.md"))]
    done = invoke("report", run, "--out", paths[0], "--markdown", paths[1], "--card", paths[2], "--trials", 0)
    assert done.exit_code == 0, done.output
    assert all(path.stat().st_size for path in paths)


@pytest.mark.usefixtures("_plain_page")
def test_unwritable_page_is_an_error(run, tmp_path):
    (tmp_path / "file").touch()
    for option, message in (("--out", "Choose another path"), ("--figures", "Give another --figures")):
        error = invoke("report", run, option, tmp_path / "file" / "report.html", "--trials", 0).exception
        assert isinstance(error, StorageError)
        assert message in str(error)


def test_short_names_distinguish_all_runs(tmp_path):
    folders = [tmp_path / path for path in ("monday/skill", "tuesday/skill", "tuesday/domain")]
    assert [str(name) for name in short_names(folders)] == ["monday/skill", "tuesday/skill", "domain"]
    deep = [tmp_path / path for path in ("x/monday/skill", "y/monday/skill", "skill")]
    assert [name.parts[-3:-1] for name in short_names(deep)[:2]] == [("x", "monday"), ("y", "monday")]
    assert len(set(short_names(deep))) == 3
    assert short_names([folders[0], folders[0]]) == [short_names(folders[:1])[0]] * 2  # a run beside itself


def test_runs_of_one_folder_name_have_their_own_titles(run, partial, tmp_path, monkeypatch):
    def note(figures, folder):
        folder.mkdir(parents=True)  # fails where another run has been
        (folder / "names").write_text(" ".join(figure.name for figure in figures))
        return [folder / "names"]

    monkeypatch.setattr("longgame.report.charts.write_figures", note)
    again = tmp_path / "other" / "run"
    shutil.copytree(partial, again)
    asked = ["--figures", tmp_path / "f", "--out", tmp_path / "r.html", "--card", tmp_path / "c.md", "--trials", 0]
    done = invoke("report", run, again, *asked)
    assert done.exit_code == 0, done.output
    assert all((tmp_path / "f" / name / "names").is_file() for name in short_names([run, again]))
    titles = [f"small ({name})" for name in short_names([run, again])]
    page, card = (tmp_path / "r.html").read_text(), (tmp_path / "c.md").read_text()
    assert all(f'<h2 class="title">{title}</h2>' in page for title in titles)
    assert [line.partition(": ")[2] for line in card.splitlines() if line.startswith("## ")] == titles


def test_guard_fails_passes_and_refuses(run, partial):
    verdicts = load_run(run).scorecard.verdicts
    word = str(verdicts[(verdicts["view"] == "primary") & (verdicts["selector"] == "loss")]["verdict"].iloc[0])
    names = {"myopic": "myopic", "long-horizon worse": "worse", "long-horizon better": "better",
             "differs now only": "now-only", "no difference shown": "no-difference",
             "equivalent within ±δ": "equivalent"}  # fmt: skip
    held = names.pop(word)
    failed = invoke("report", run, "--fail-if", f"{held}(loss)")
    assert failed.exit_code == 1
    assert f"failed: small: {held}(loss)" in failed.output
    passed = invoke("report", run, "--fail-if", " or ".join(f"{name}(loss)" for name in names.values()))
    assert passed.exit_code == 0, passed.output
    assert "passed" in passed.output
    assert isinstance(invoke("report", partial, "--fail-if", "myopic(loss)").exception, ResumeError)
    assert isinstance(invoke("report", run, "--fail-if", "myopic(los)").exception, RecipeError)


def test_undecided_guard_has_its_own_exit_code(run, partial, tmp_path):
    def code(*arguments):
        return invoke("report", *arguments).exception.exit_code

    guard = ("--fail-if", "myopic(loss)")
    assert code(tmp_path / "none", *guard) == 2
    assert code(partial, *guard) == 2
    assert code(run, "--fail-if", "myopic(los)") == 2
    assert code(run, *guard, "--compare", tmp_path / "none") == 2
    assert code(tmp_path / "none") == ResumeError.exit_code == 1


def test_baseline_that_is_the_same_run_changes_nothing(run, partial, tmp_path):
    done = invoke("report", run, "--compare", run, "--card", tmp_path / "card.md")
    assert done.exit_code == 0, done.output
    assert "No verdict changed." in (tmp_path / "card.md").read_text()
    done = invoke("report", run, "--compare", partial, "--out", tmp_path / "r.html")
    assert done.exit_code == 0, done.output
    assert "Against the baseline" in (tmp_path / "r.html").read_text()


def test_details_hold_every_stage_and_every_term(run):
    loaded = load_run(run)
    details = {detail.name: detail for detail in trial_details(loaded, first_trials(loaded, 3))}
    assert set(details) == {"random-s0", "loss-s0", "lhas-s0"}
    assert [stage.stage for stage in details["lhas-s0"].stages] == [1, 2, 3]
    terms = [name for name, _ in details["lhas-s0"].stages[1].highest[0].terms]
    assert {"utility", "future", "coverage", "score"} <= set(terms)
    assert loaded.picks.seeds == 3


def test_a_page_says_how_many_trials_it_leaves_out(run, tmp_path):
    count = len(first_trials(load_run(run), 1000))
    for shown, said in ((2, True), (count, False)):
        page = tmp_path / f"{shown}.html"
        done = invoke("report", run, "--trials", shown, "--out", page)
        assert done.exit_code == 0, done.output
        assert (f"{shown} of {count} trials in full" in page.read_text()) is said


def test_each_of_several_runs_shows_as_many_trials_as_are_asked_for(run, partial, tmp_path):
    for shown, left in ((1, 2), (1000, 0)):
        done = invoke("report", run, partial, "--trials", shown, "--out", tmp_path / "r.html")
        assert done.exit_code == 0, done.output
        assert len(re.findall(rf"\b{shown} of \d+ trials in full", (tmp_path / "r.html").read_text())) == left


def test_an_audit_leaves_the_page_that_a_report_makes(run, tmp_path):
    done = invoke("report", run, "--out", tmp_path / "r.html")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "r.html").read_text() == (run / "report.html").read_text()


def again(run):
    return gather_picks(run.plan, run.finished_stages, run.stores)


def test_picks_are_stored_and_made_anew_where_stages_differ(run, partial, tmp_path):
    whole = load_run(run).picks
    assert whole.tables == 27
    gathered = again(load_run(run))
    pd.testing.assert_frame_equal(whole.frame(), gathered.frame())
    part = load_run(partial).picks
    assert part.tables == 23
    assert (part.overlap["n"] < whole.overlap["n"]).any()
    shutil.copytree(run, tmp_path / "old")
    as_older_version(tmp_path / "old", lambda mark: {"key": mark["key"]})
    for table in (tmp_path / "old").glob("trials/*/stage-*/selection.parquet"):
        write_table(table, table_of(table.read_bytes(), table))  # as of a version without either
    pd.testing.assert_frame_equal(again(load_run(tmp_path / "old")).frame(), whole.frame())
    shutil.copytree(run, tmp_path / "run")
    for path in (tmp_path / "run").glob("trials/*/stage-*.zip"):
        rewrite(path, "selection.parquet", b"damaged")
    assert load_run(tmp_path / "run").picks.frame().equals(whole.frame())  # from picks.parquet alone
    (tmp_path / "run" / "picks.parquet").write_bytes(b"damaged")
    with pytest.raises(ResumeError, match="run the command again"):
        _ = load_run(tmp_path / "run").picks


def test_missing_or_repeated_run_is_an_error(run, tmp_path):
    assert isinstance(invoke("report", tmp_path, "--out", tmp_path / "x.html").exception, ResumeError)
    assert isinstance(invoke("report", run, run, "--out", tmp_path / "x.html").exception, RecipeError)


def test_watch_shows_progress_and_the_scorecard(run, partial):
    shown = invoke("watch", run, "--once")
    assert shown.exit_code == 0, shown.output
    assert "27/27 stages" in shown.output
    assert "finished" in shown.output
    assert "long" in shown.output
    part = invoke("watch", partial, "--once")
    assert "23/27 stages" in part.output


def test_watch_before_anything_is_finished_says_so(run, tmp_path):
    (tmp_path / "new").mkdir()
    for name in ("run.json", "recipe.yaml"):
        shutil.copy(run / name, tmp_path / "new")
    shown = invoke("watch", tmp_path / "new", "--once")
    assert "0/27 stages" in shown.output
    assert "No stage is finished yet" in shown.output


def test_finished_stages_end_at_the_first_gap(tmp_path):
    for stage, at in ((1, 100.0), (3, 50.0)):
        mark = tmp_path / "trials" / "a" / f"stage-{stage}.zip"
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_bytes(b"")
        os.utime(mark, (at, at))
    assert finish_times(tmp_path, ["a", "b"], 3) == [("a", 100.0)]


def test_time_left_follows_the_pace_of_the_last_stages():
    assert seconds_left([0.0, 10.0, 20.0], 5, 20.0) == 20.0
    assert seconds_left([0.0, 10.0, 20.0], 5, 40.0) == 40.0  # a pause counts
    assert seconds_left([0.0, 10.0], 5, 20.0) is None
    assert seconds_left([0.0, 10.0, 20.0], 3, 20.0) is None


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("name", ["small", "a recipe with a name that is longer than a terminal is wide", "名前" * 30])
def test_progress_is_one_line_however_narrow_the_terminal(name, width):
    out = io.StringIO()
    Console(file=out, width=width).print(progress_line(name, [0.0, 10.0, 20.0], 1_000, 20.0, width))
    (line,) = out.getvalue().splitlines()
    assert cell_len(line) <= width
    assert "3/1,000 stages" in line
    assert "about 2:46:10 left" in line


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("axes")
    axes = "axes: {budget: [0.5], rounds: [1], order: rotations, vary: {training.learning_rate: [0.02]}}\n"
    text = RECIPE.replace("pool_size: 60", "pool_size: 120") + axes
    (folder / "r.yaml").write_text(text.replace("random, loss, lhas", "random, loss"))
    done = invoke("audit", folder / "r.yaml", "--out", folder / "run", "--workers", 1)
    assert done.exit_code == 0, done.output
    return folder / "run"


def test_run_with_axes_reports_its_conditions(varied, tmp_path, monkeypatch):
    monkeypatch.setattr("vl_convert.svg_to_png", lambda *_, **__: b"png")  # slow, and drawn of a run without axes above
    asked = ["--out", tmp_path / "r.html", "--figures", tmp_path / "f", "--markdown", tmp_path / "r.md"]
    done = invoke("report", varied, *asked)
    assert done.exit_code == 0, done.output
    written = {path.stem for path in (tmp_path / "f").iterdir()}
    assert {"axis-budget", "axis-rounds", "axis-order", "vary-training.learning_rate"} <= written
    assert "Across conditions" in (tmp_path / "r.html").read_text()
    assert "budget 0.5" in (tmp_path / "r.md").read_text()


def test_axis_figure_varies_one_axis(varied):
    loaded = load_run(varied)
    made = axes_figures(loaded)
    budget = next(figure for figure in made if figure.name == "axis-budget")
    rows = [row for data in budget.charts[1]["datasets"].values() for row in data]
    assert {row["at"] for row in rows} == {0.25, 0.5}
    half = next(row for row in rows if row["selector"] == "loss" and row["at"] == 0.5)
    summary = loaded.across.cards["budget=0.5"].wide(["long_horizon"])
    assert half["mean"] == pytest.approx(100 * summary["long_horizon"]["loss"])  # points of 100
    orders = next(figure for figure in made if figure.name == "axis-order")
    assert {row["at"] for data in orders.charts[0]["datasets"].values() for row in data} == {"1-2-3", "2-3-1", "3-1-2"}


def test_condition_without_a_selector_is_left_out(varied, tmp_path):
    shutil.copytree(varied, tmp_path / "run")
    for trial in (tmp_path / "run" / "trials").glob("loss-s*@budget=0.5"):
        shutil.rmtree(trial)
    loaded = load_run(tmp_path / "run")
    assert "budget=0.5" not in loaded.across.cards
    assert "5 of 6 conditions" in condition_note(loaded)


def test_missing_trials_of_a_condition_leave_run_unfinished(varied, tmp_path):
    whole = load_run(varied)
    assert whole.finished
    assert whole.progress == ""
    shutil.copytree(varied, tmp_path / "run")
    for trial in (tmp_path / "run" / "trials").glob("*@budget=0.5"):
        shutil.rmtree(trial)
    part = load_run(tmp_path / "run")
    own = [trial.name for trial in part.plan.own_trials]
    assert all(part.finished_stages[name] == 3 for name in own)
    assert not part.finished
    assert "30 of 36 trials, 90 of 108 stages" in part.progress
    assert part.progress.endswith("Unfinished trials by condition: budget 0.5 (6).")
    refused = invoke("report", tmp_path / "run", "--fail-if", "worse(loss)")
    assert isinstance(refused.exception, ResumeError)
    assert "budget 0.5 (6)" in str(refused.exception)
    done = invoke("report", tmp_path / "run", "--card", tmp_path / "card.md", "--markdown", tmp_path / "r.md")
    assert done.exit_code == 0, done.output
    assert all("30 of 36 trials" in (tmp_path / name).read_text() for name in ("card.md", "r.md"))


def test_guard_checks_every_condition(varied, tmp_path):
    across = load_run(varied).across
    rows = across.verdicts[(across.verdicts["view"] == "primary") & (across.verdicts["selector"] == "loss")]
    words = {"myopic": "myopic", "long-horizon worse": "worse", "long-horizon better": "better",
             "differs now only": "now-only", "no difference shown": "no-difference",
             "equivalent within ±δ": "equivalent"}  # fmt: skip
    true, false = (next(word for word in words if (word in set(rows["verdict"])) is there) for there in (True, False))
    for word in (true, false):
        name = words[word]
        asked = invoke("report", varied, "--fail-if", f"{name}(loss)")
        holds = int((rows["verdict"] == word).sum())
        assert asked.exit_code == int(holds > 0)
        assert asked.output.count(f"failed: small: {name}(loss)") == holds
        assert ("in any of 6 conditions" in asked.output) == (holds == 0)
    paths = [tmp_path / name for name in ("r.html", "card.md", "r.md")]
    invoke("report", varied, "--out", paths[0], "--card", paths[1], "--markdown", paths[2])
    assert all("In other conditions" in path.read_text() for path in paths)


def test_varied_key_shows_differences_from_the_reference(varied):
    loaded = load_run(varied)
    made = axes_figures(loaded)
    figure = next(figure for figure in made if figure.name == "vary-training.learning_rate")
    assert [key.selector for key in figure.keys] == ["loss"]
    rows = [row for data in figure.charts[1]["datasets"].values() for row in data if "at" in row]
    assert {(row["selector"], row["at"]) for row in rows} == {("loss", "0.1"), ("loss", "0.02")}
    summary = loaded.across.cards["training.learning_rate=0.02"].summary.query(
        "view == 'primary' and metric == 'long_horizon' and selector == 'loss'"
    )
    changed = next(row for row in rows if row["at"] == "0.02")
    assert [changed[name] for name in ("difference", "low", "high")] == pytest.approx(
        (100 * summary[["diff_vs_reference", "ci_low", "ci_high"]].iloc[0]).to_list()
    )


def test_adaptations_have_their_own_place(tmp_path):
    axes = {"adaptation": ["full", {"mode": "full", "learning_rate": 0.01}]}
    recipe = parse_recipe({"name": "r", "selectors": ["random"], "seeds": [0], "axes": axes})
    run = Run(tmp_path, recipe)
    places = condition_places(run.plan, list(run.plan.conditions))
    assert list(places["adaptation"]) == ["lora-r16", "full", "full-lr0.01"]
    assert set(places["budget"]) == {0.25}
