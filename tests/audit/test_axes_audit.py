"""Audits with axes on the quadratic world: what is shared changes no number, and a run grows by what is added."""

import numpy as np
import pandas as pd
import pytest

from longgame.audit import execute
from longgame.audit.execute import run_audit
from longgame.audit.learner import QuadraticWorlds, sequence_of
from longgame.errors import ResumeError
from support import quadratic_audit

AXES = {"budget": [0.5], "rounds": [1], "order": [["c", "a", "b"]], "vary": {"data.noise": [0.3]}}


def recipe(**more):
    return quadratic_audit.recipe(**{"selectors": ["random", "lhas"], **more})


def walk(folder, **more):
    return quadratic_audit.walk(folder, **{"selectors": ["random", "lhas"], **more})


def numbers(frame, condition=""):
    """The measurements of one condition without wall-clock, as if it were the run's own."""
    part = frame[(frame.condition == condition) & (frame.unit != "s")].drop(columns="condition")
    text = {name: "string" for name in part if part[name].dtype == "category"}
    part = part.astype(text)
    part["trial"] = part.trial.str.partition("@")[0].astype("string")
    return part.sort_values([name for name in part if name != "value"]).reset_index(drop=True)


@pytest.fixture(scope="module", autouse=True)
def _no_page():
    """The page is not looked at here and takes longer than the walks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("longgame.report.render.html_page", lambda *_: "")
        yield


@pytest.fixture(scope="module")
def varied(tmp_path_factory, _no_page):
    return walk(tmp_path_factory.mktemp("axes") / "q", axes=AXES)[0]


@pytest.mark.parametrize(
    ("condition", "change"),
    [
        ("", {}),
        ("budget=0.5", {"budget": 0.5}),
        ("rounds=1", {"rounds": 1}),
        ("order=3-1-2", {"data": {**recipe().data.model_dump(mode="json"), "order": ["c", "a", "b"]}}),
        ("data.noise=0.3", {"data": {**recipe().data.model_dump(mode="json"), "noise": 0.3}}),
    ],
)
def test_a_condition_has_the_numbers_of_the_recipe_that_says_the_same_without_axes(tmp_path, varied, condition, change):
    alone = walk(tmp_path / "q", **change)[0]
    pd.testing.assert_frame_equal(numbers(varied.results, condition), numbers(alone.results), check_exact=True)
    pd.testing.assert_frame_equal(
        varied.across.cards[condition].per_trial.drop(columns="trial").query("not metric.str.contains('seconds')"),
        alone.scorecard.per_trial.drop(columns="trial").query("not metric.str.contains('seconds')"),
    )


def test_conditions_do_differ(varied):
    own = numbers(varied.results)
    for name in varied.plan.conditions:
        other = numbers(varied.results, name)
        assert name == "" or not np.array_equal(own.value.sort_values(), other.value.sort_values(), equal_nan=True)


def test_every_row_says_its_condition(varied):
    told = varied.results[["condition", "budget", "rounds", "adaptation", "order"]].drop_duplicates()
    assert {tuple(row) for row in told.itertuples(index=False)} == {
        ("", 0.25, "step", "lora-r16", "1-2-3"),
        ("budget=0.5", 0.5, "step", "lora-r16", "1-2-3"),
        ("rounds=1", 0.25, "1", "lora-r16", "1-2-3"),
        ("order=3-1-2", 0.25, "step", "lora-r16", "3-1-2"),
        ("data.noise=0.3", 0.25, "step", "lora-r16", "1-2-3"),
    }
    assert varied.results.groupby("condition", observed=True).trial.nunique().eq(4).all()
    again = pd.read_parquet(varied.folder / "results.parquet")
    pd.testing.assert_frame_equal(varied.results, again, check_dtype=False, check_categorical=False)


def test_an_order_is_walked_and_its_columns_are_named_by_task(varied):
    own, turned = varied.across.cards[""], varied.across.cards["order=3-1-2"]
    assert (own.tasks, turned.tasks) == (("a", "b", "c"), ("c", "a", "b"))
    assert sorted(own.ood) == sorted(turned.ood)
    for view in own.views:
        for seed in (0, 1):
            first = dict(zip((*own.tasks, *own.ood), own.R(view, "lhas", seed)[0], strict=True))
            other = dict(zip((*turned.tasks, *turned.ood), turned.R(view, "lhas", seed)[0], strict=True))
            assert first == other  # the model before any stage knows no order
    stages = {stage.name: {item.sample_id for item in stage.candidates} for stage in sequence_of(recipe(), 0).stages}
    for number, name in enumerate(("c", "a", "b"), start=1):
        assert set(varied.selection("lhas-s0@order=3-1-2", number).sample_id) <= stages[name]
    results = varied.results[(varied.results.condition == "order=3-1-2") & (varied.results.kind == "curve")]
    assert set(results[["stage", "task"]].drop_duplicates().itertuples(index=False, name=None)) == {(1, "a"), (2, "b")}


def test_a_stage_learns_its_own_task_whatever_its_place(varied):
    for name, card in varied.across.cards.items():
        gain = card.per_stage.query("view == 'primary' and metric == 'immediate_gain'").groupby("stage").value.mean()
        assert (gain > 0).all(), name


def test_shared_work_is_done_once_for_conditions_that_share_it(varied):
    seeds = sorted(path.name for path in (varied.folder / "seeds").iterdir())
    assert seeds == ["seed-0", "seed-0@data.noise=0.3", "seed-1", "seed-1@data.noise=0.3"]


def test_a_run_grows_by_what_is_added_and_keeps_the_rest(tmp_path, varied):
    first, done = walk(tmp_path / "q", seeds=[0])
    assert sorted(done) == ["lhas-s0", "random-s0"]
    marks = {path: path.stat().st_mtime_ns for path in (tmp_path / "q" / "trials").rglob("*.zip")}
    _, done = walk(tmp_path / "q", seeds=[0], axes={"budget": [0.5]})
    assert sorted(done) == ["lhas-s0@budget=0.5", "random-s0@budget=0.5"]
    _, done = walk(tmp_path / "q", axes={"order": [["c", "a", "b"]], "rounds": [1], "budget": [0.5, 0.25]})
    assert len(done) == 12
    _, done = walk(tmp_path / "q", selectors=["lhas", "loss", "random"], axes=AXES)
    assert sorted(done) == sorted(
        [f"loss-s{seed}{at}" for seed in (0, 1) for at in ("", "@budget=0.5", "@rounds=1", "@order=3-1-2")]
        + [f"{name}-s{seed}@data.noise=0.3" for name in ("lhas", "loss", "random") for seed in (0, 1)]
    )
    result, done = walk(tmp_path / "q", selectors=["lhas", "loss", "random"], axes={**AXES, "cross": False})
    assert done == []
    for path, when in marks.items():
        assert path.stat().st_mtime_ns == when
    kept = result.results[result.results.selector != "loss"]
    for name in varied.plan.conditions:
        pd.testing.assert_frame_equal(numbers(kept, name), numbers(varied.results, name), check_exact=True)
    pd.testing.assert_frame_equal(numbers(first.results), numbers(kept[kept.seed == 0]), check_exact=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [0]}, "does not ask for: .*lhas-s1"),
        ({"selectors": ["random"]}, "does not ask for: .*lhas-s0"),
        ({"axes": {}}, r"does not ask for: .*random-s0@budget=0\.5"),
        ({"selectors": ["random", {"name": "lhas", "future_weight": 0}]}, "lhas.parameters.future_weight: None there"),
        ({"budget": 0.5}, r"budget: 0\.25 there, 0\.5 now"),
        ({"data": {"sequence": "quadratic", "pool_size": 65, "stages": [{"name": name} for name in "abc"]}},
         "data.pool_size: 64 there, 65 now"),
    ],
)  # fmt: skip
def test_a_recipe_that_would_lose_or_change_trials_is_refused(varied, change, message):
    before = {path: path.stat().st_mtime_ns for path in varied.folder.rglob("*")}
    with pytest.raises(ResumeError, match=message):
        run_audit(
            recipe(**{"axes": AXES, **change}),
            varied.folder,
            workers=1,
            threads=1,
            display=quadratic_audit.Silent(),
        )
    assert before == {path: path.stat().st_mtime_ns for path in varied.folder.rglob("*")}


def test_other_weights_tell_the_same_trials_anew(tmp_path):
    first, _ = walk(tmp_path / "q", seeds=[0])
    again, done = walk(tmp_path / "q", seeds=[0], metrics={"beta": 0.0})
    assert done == []
    pd.testing.assert_frame_equal(first.results, again.results)
    long = [card.wide(["long_horizon"]).long_horizon.to_numpy() for card in (first.scorecard, again.scorecard)]
    assert not np.allclose(*long)


def test_a_trial_is_done_by_no_worker_before_what_it_starts_from(tmp_path, monkeypatch):
    monkeypatch.setattr(QuadraticWorlds, "process_trials", 2)
    jobs = []
    monkeypatch.setattr(execute, "run_local", lambda given, *_: jobs.extend(given))
    with pytest.raises(ResumeError, match="not finished"):
        run_audit(recipe(axes=AXES), tmp_path / "q", workers=2, threads=1, display=quadratic_audit.Silent())
    names = [job.name for job in jobs]
    assert len(names) == len(set(names)) == 24
    for job in jobs:
        if "seed" not in job.name.partition("@")[0]:
            assert names.index(job.after) < names.index(job.name)
            assert job.after == f"seed-{job.arguments[2].seed}" + "@data.noise=0.3" * ("noise" in job.name)


def test_two_workers_end_with_the_numbers_of_one(tmp_path, varied, monkeypatch):
    monkeypatch.setattr(QuadraticWorlds, "process_trials", 2)
    result = run_audit(recipe(axes=AXES), tmp_path / "q", workers=2, threads=1, display=quadratic_audit.Silent())
    for name in varied.plan.conditions:
        pd.testing.assert_frame_equal(numbers(result.results, name), numbers(varied.results, name), check_exact=True)
