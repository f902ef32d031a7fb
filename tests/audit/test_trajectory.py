"""The walk on the quadratic world: closed form, milliseconds."""

import dataclasses
import fcntl
import os
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest

from longgame.audit import execute
from longgame.audit.execute import _walk_trial, run_audit, seed_job, trial_job
from longgame.audit.learner import sequence_of
from longgame.audit.plan import Plan
from longgame.audit.run import Run, read_environment, write_environment
from longgame.audit.walk import probe_steps
from longgame.errors import NumericalError, RecipeError, ResumeError
from longgame.recipe import parse_recipe
from longgame.report.render import write_report
from support.quadratic_audit import Silent
from support.run_parts import rewrite

SELECTORS = ["random", "loss", "gradient", "diversity", "quality", "utility-diversity", "lhas"]


def recipe(**more):
    base = {
        "name": "q",
        "model": {"name": "quadratic"},
        "data": {"sequence": "quadratic", "pool_size": 96},
        "selectors": SELECTORS,
        "seeds": [0, 1],
        "training": {"steps": 12},
        "probe": {"steps": 6, "points": 4},
    }
    return parse_recipe({**base, **more})


class StopHereError(BaseException):
    """Stands for a kill: raised by the progress callback in the middle of a stage."""


def numbers(frame):
    """The measurements without wall-clock."""
    frame = frame[frame.unit != "s"].reset_index(drop=True)
    return frame.astype({name: "string" for name in frame if frame[name].dtype == "category"})


def walk(rec, folder, selector="loss", seed=0, notify=lambda *_: None):
    run = Run.create(folder, rec)
    trial = next(t for t in Plan(rec).trials if t.selector.name == selector and t.seed == seed)
    seed_job(str(folder), rec.data.data_dir, seed, "", notify=lambda *_: None)
    trial_job(str(folder), rec.data.data_dir, trial, keep_models=False, notify=notify)
    return run


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit") / "q"
    return run_audit(recipe(), folder, workers=1, threads=1, display=Silent())


@pytest.mark.parametrize(("stages", "kept"), [(2, None), (5, None), (2, "first"), (5, "first"), (2, "second")])
def test_a_model_that_a_kill_left_is_deleted(stages, kept, tmp_path, monkeypatch):
    """A kill comes behind a stage, before the model of the stage before is deleted."""

    def kill(*_, **__):
        raise StopHereError

    rec, folder = recipe(selectors=["loss"], seeds=[0]), tmp_path / "q"
    trial = folder / "trials" / "loss-s0"
    with monkeypatch.context() as patch, pytest.raises(StopHereError):
        patch.setattr(execute, "_walk_trial", partial(_killed_behind, stages, kill))
        run_audit(rec, folder, workers=1, threads=1, display=Silent(), keep_models=kept == "first")
    assert {"stage-1.learner", f"stage-{stages}.learner"} - {path.name for path in trial.iterdir()} == set()
    run_audit(rec, folder, workers=1, threads=1, display=Silent(), keep_models=kept == "second")
    run_audit(rec, folder, workers=1, threads=1, display=Silent())
    assert (trial / "stage-1.learner").exists() == (kept is not None)
    assert (trial / "stage-5.learner").is_dir()


def _killed_behind(stage, kill, run, data_dir, trial, keep_models, notify):
    """The walk of a trial that keeps its models, killed when this stage is saved."""

    def told(name, number, activity, step, steps):
        if number > stage:
            kill()

    _walk_trial(run, data_dir, trial, True, told)
    kill()


def test_an_audit_measures_every_cell_of_every_matrix(audit):
    scores = audit.results[(audit.results.kind == "score") & (audit.results.trial == "lhas-s1")]
    stages = [task for task in scores.task.unique() if (scores[scores.task == task].task_kind == "stage").all()]
    assert len(stages) == 5
    for scorer in scores.scorer.unique():
        for stage in range(6):
            cells = scores[(scores.stage == stage) & (scores.scorer == scorer)]
            assert set(cells.task) == (set(scores.task) if stage in (0, 5) else set(stages))
            assert cells.value.between(0, 100).all()


def test_every_selector_spends_the_same_tokens_within_one_example_a_stage(audit):
    cost = audit.results[(audit.results.kind == "cost") & (audit.results.name == "selected_tokens")]
    spread = cost.groupby(["seed", "stage"]).value.agg(lambda column: column.max() - column.min())
    assert cost.trial.nunique() == 14
    assert (spread <= 24).all()  # the longest example of the quadratic world


def test_common_probes_train_every_selector_on_the_same_tokens(audit):
    curves = audit.results[(audit.results.kind == "curve") & (audit.results.probe == "common")]
    for _, group in curves.groupby(["seed", "stage", "step", "scorer", "sub_skill"]):
        assert group.tokens.nunique() == 1
        assert len(group) == 7


def test_probes_leave_no_trace(tmp_path):
    with_probes = walk(recipe(), tmp_path / "a").results
    without = walk(recipe(probe={"steps": 6, "points": 4, "kinds": []}), tmp_path / "b").results
    assert (with_probes.kind == "curve").any()
    pd.testing.assert_frame_equal(
        numbers(with_probes[with_probes.kind != "curve"]), numbers(without[without.kind != "curve"])
    )


def test_a_point_of_a_curve_is_the_mean_over_its_sub_skills(audit):
    curves = audit.results[audit.results.kind == "curve"]
    key = ["trial", "stage", "probe", "scorer", "step"]
    macro = curves[curves.sub_skill == ""].set_index(key).value.sort_index()
    parts = curves[curves.sub_skill != ""].groupby(key).value.mean().sort_index()
    assert len(macro) == len(parts) > 100
    np.testing.assert_allclose(macro, parts, rtol=1e-12)


@pytest.mark.parametrize("rounds", [1, 3, "step"])
def test_a_curve_counts_the_tokens_learned_so_far_whatever_the_rounds(tmp_path, rounds):
    records = walk(recipe(rounds=rounds, probe={"steps": 6, "points": 7}), tmp_path, "loss").results
    curves = records[(records.kind == "curve") & (records.sub_skill == "") & (records.scorer == "token_accuracy")]
    for _, curve in curves.groupby(["stage", "probe"]):
        tokens = curve.sort_values("step").tokens.to_numpy()
        assert tokens[0] == 0
        assert (np.diff(tokens) > 0).all()
        assert np.diff(tokens).max() < tokens[-1] / 2


def test_a_probe_starts_where_the_stage_before_it_ended(audit):
    results = audit.results[audit.results.trial == "gradient-s0"]
    starts = results[(results.kind == "curve") & (results.step == 0) & (results.sub_skill != "")]
    key = ["stage", "task", "scorer", "sub_skill"]
    joined = starts.merge(results[results.kind == "score"], on=key, suffixes=("", "_R"))
    assert len(joined) == len(starts) > 0
    np.testing.assert_allclose(joined.value, joined.value_R, rtol=1e-12)


@pytest.mark.parametrize("selector", ["random", "utility-diversity", "lhas"])
@pytest.mark.parametrize("moment", [3, 40, 71])
def test_a_walk_stopped_anywhere_and_started_again_ends_with_the_same_numbers(tmp_path, selector, moment):
    undisturbed = walk(recipe(), tmp_path / "a", selector).results
    calls = []

    def interrupt(*progress):
        calls.append(progress)
        if len(calls) == moment:
            raise StopHereError

    with pytest.raises(StopHereError):
        walk(recipe(), tmp_path / "b", selector, notify=interrupt)
    assert not list((tmp_path / "b").rglob("*.part"))
    resumed = walk(recipe(), tmp_path / "b", selector).results
    pd.testing.assert_frame_equal(numbers(undisturbed), numbers(resumed))


def test_a_finished_audit_is_printed_again_without_training(tmp_path, monkeypatch):
    small = recipe(selectors=["random", "loss"], seeds=[0])
    first = run_audit(small, tmp_path / "q", workers=1, threads=1, display=Silent())
    monkeypatch.setattr("longgame.quadratic.learner.QuadraticLearner.train", None)
    monkeypatch.setattr("longgame.audit.execute.selector_of", None)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "q").rglob("*")}
    again = run_audit(small, tmp_path / "q", workers=1, threads=4, display=Silent())
    pd.testing.assert_frame_equal(first.results, again.results)
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "q").rglob("*")}
    os.truncate(tmp_path / "q" / "results.parquet", 100)
    write_report(run_audit(small, tmp_path / "q", workers=1, threads=4, display=Silent()))
    pd.testing.assert_frame_equal(first.results, pd.read_parquet(tmp_path / "q" / "results.parquet"), check_dtype=False)
    assert (tmp_path / "q" / "report.html").stat().st_size > 1000
    assert "random" in (tmp_path / "q" / "scorecard.md").read_text()


def test_a_second_audit_leaves_the_scratch_of_the_first_alone(tmp_path):
    small = recipe(selectors=["random"], seeds=[0])
    run_audit(small, tmp_path / "q", workers=1, threads=1, display=Silent())
    scratch = tmp_path / "q" / "stage-9.1.part"
    scratch.mkdir()
    with (tmp_path / "q" / "audit.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ResumeError, match="another audit is at work"):
            run_audit(small, tmp_path / "q", workers=1, threads=1, display=Silent())
    assert scratch.exists()


def stopped_after_first_stage(folder, **more):
    """A run whose only trial has finished one stage."""

    def stop(_trial, stage, *_):
        if stage == 2:
            raise StopHereError

    with pytest.raises(StopHereError):
        walk(recipe(**more), folder, notify=stop)


def test_damaged_state_names_the_trial_to_delete_and_then_the_run_goes_on(tmp_path):
    stopped_after_first_stage(tmp_path / "q")
    trial = tmp_path / "q" / "trials" / "loss-s0"
    rewrite(trial / "stage-1.zip", "policy.json", b"{")
    with pytest.raises(ResumeError, match=r"loss-s0 cannot be resumed after stage 1: .*Delete .*loss-s0 and run"):
        walk(recipe(), tmp_path / "q")
    shutil.rmtree(trial)
    resumed = walk(recipe(), tmp_path / "q").results
    pd.testing.assert_frame_equal(numbers(walk(recipe(), tmp_path / "a").results), numbers(resumed))


def test_data_that_changed_under_a_run_is_refused(tmp_path, monkeypatch):
    stopped_after_first_stage(tmp_path / "q")
    sequence = sequence_of(recipe(), 0)
    first = sequence.stages[0]
    other = dataclasses.replace(first, candidates=first.candidates[::-1])
    changed = dataclasses.replace(sequence, stages=(other, *sequence.stages[1:]))
    monkeypatch.setattr("longgame.audit.execute.sequence_of", lambda *_: changed)
    with pytest.raises(ResumeError, match=r"other data. Differing: data: \w+ there, \w+ now"):
        walk(recipe(), tmp_path / "q")


def test_a_diverging_trial_names_trial_stage_and_step(tmp_path):
    wild = recipe(training={"steps": 12, "learning_rate": 1e200})
    with (
        np.errstate(all="ignore"),
        pytest.raises(NumericalError, match=r"^loss-s0, stage 1, train, after step \d+ of 12: .* for example \w+"),
    ):
        walk(wild, tmp_path / "q")


def test_a_run_goes_on_with_the_versions_it_was_begun_with(tmp_path):
    small = recipe(selectors=["random"], seeds=[0])
    run_audit(small, tmp_path / "q", workers=1, threads=1, display=Silent())
    shutil.rmtree(tmp_path / "q" / "trials")
    environment = read_environment(tmp_path / "q")
    environment["versions"]["torch"] = "1.0"
    write_environment(tmp_path / "q", environment)
    with pytest.raises(ResumeError, match=r"begun with torch==1\.0, now torch==[2-9]"):
        run_audit(small, tmp_path / "q", workers=1, threads=1, display=Silent())


def test_the_order_of_trials_and_of_selectors_changes_nothing(tmp_path, audit):
    turned = recipe(selectors=SELECTORS[::-1], seeds=[1, 0])
    other = run_audit(turned, tmp_path / "q", workers=1, threads=1, display=Silent())
    pd.testing.assert_frame_equal(numbers(audit.results), numbers(other.results))


@pytest.mark.parametrize("rounds", [1, 3, "step"])
def test_rounds_once_several_or_every_step_spend_the_same_budget(tmp_path, rounds):
    records = walk(recipe(rounds=rounds), tmp_path / "q").results
    spent = records[(records.kind == "cost") & (records.name == "selected_tokens")].value
    pool = sequence_of(recipe(), 0).stages[0].pool
    assert len(spent) == 5
    assert spent.iloc[0] == pytest.approx(0.25 * pool.tokens.sum(), abs=24)


def test_probe_points_are_even_and_hold_both_ends():
    assert probe_steps(10, 6) == [0, 2, 4, 6, 8, 10]
    assert probe_steps(8, 5) == [0, 2, 4, 6, 8]
    assert probe_steps(3, 4) == [0, 1, 2, 3]


def test_both_probes_of_uniform_picks_are_one_training(tmp_path, monkeypatch):
    once = walk(recipe(), tmp_path / "a", "random").results
    assert not once[once.probe == "own"].empty
    monkeypatch.setattr("longgame.audit.walk.RandomSelector", type(None))  # so that each probe is trained
    pd.testing.assert_frame_equal(numbers(once), numbers(walk(recipe(), tmp_path / "b", "random").results))


def test_a_curve_begins_with_the_row_of_its_stage(audit):
    own = audit.results[audit.results.trial == "lhas-s0"]
    curve = own[(own.kind == "curve") & (own.step == 0) & (own.sub_skill != "")]
    row = own[own.kind == "score"].set_index(["stage", "task", "sub_skill", "scorer"]).value
    assert len(curve) > 0
    assert [row[key] for key in curve[["stage", "task", "sub_skill", "scorer"]].itertuples(index=False, name=None)] == (
        curve.value.tolist()
    )


def test_generations_at_the_ends_of_probes_leave_all_else(tmp_path):
    probe = {"steps": 6, "points": 4, "generations": "ends"}
    ends, every = walk(recipe(probe=probe), tmp_path / "a").results, walk(recipe(), tmp_path / "b").results
    between = (every.kind == "curve") & (every.scorer == "exact_match") & ~every.step.isin([0, 6])
    assert between.any()
    pd.testing.assert_frame_equal(numbers(ends), numbers(every[~between]))


def test_two_labels_of_one_selector_are_two_trials():
    rec = recipe(selectors=[{"name": "loss", "label": "a"}, {"name": "loss", "label": "b/c"}], seeds=[4])
    assert [trial.name for trial in Plan(rec).trials] == ["a-s4", "b-c-s4"]


def test_two_labels_that_would_share_a_folder_are_refused():
    rec = recipe(selectors=[{"name": "loss", "label": "b-c"}, {"name": "loss", "label": "b/c"}], seeds=[4])
    with pytest.raises(RecipeError, match="'b-c' and 'b/c' would share the folder 'b-c-s4'"):
        Plan(rec)


def test_every_pick_of_a_stage_is_explained(audit):
    picks = audit.selection("lhas-s0", 2)
    terms = {"term_utility", "term_coverage", "term_future", "term_concentration", "term_score"}
    assert terms <= set(picks.columns)
    assert picks[list(terms)].notna().all().all()
    chosen = picks[picks.picked >= 0]
    assert chosen.groupby("round").picked.apply(lambda column: sorted(column) == list(range(len(column)))).all()
    records = audit.results[(audit.results.trial == "lhas-s0") & (audit.results.stage == 2)]
    assert chosen.tokens.sum() == records[records.name == "selected_tokens"].value.item()
