"""The oracle trials: they pick by the evaluation items, and nothing else of the run changes."""

import numpy as np
import pandas as pd
import pytest

from longgame.audit.plan import ORACLE, expand
from longgame.errors import RecipeError
from longgame.quadratic.learner import QuadraticLearner
from longgame.selection.base import SELECTORS, build_selector
from longgame.testing import example_pool
from support.quadratic_audit import recipe, walk


def test_oracle_ranks_by_the_mean_gradient_of_all_items() -> None:
    learner = QuadraticLearner(recipe(), 0)
    world, sequence = learner.world, learner.world.sequence
    items, pool = sequence.evaluation_pool, sequence.stages[0].pool
    assert len(items) == sum(len(task.items) for task in sequence.tasks)
    learner.theta = learner.theta + 0.1
    skills = np.array([example.skill for example in items.examples])
    residual = items.info["features"] @ learner.theta - items.info["label"]
    units = np.sign(residual)[:, None] * items.info["features"]
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    direction = np.mean([units[skills == skill].mean(axis=0) for skill in np.unique(skills)], axis=0)
    a = pool.info["features"]
    gradient = (a @ learner.theta - pool.info["label"])[:, None] * a
    expected = gradient @ direction / np.linalg.norm(gradient, axis=1)
    signals = learner.signals(pool, ("evaluation_alignment",))
    # halves hold every second item of a sub-skill, so they are the mean over all where its items are even in number
    score = build_selector(ORACLE).score(pool, signals, None)
    assert world.spec.items_per_skill % 2 == 0
    np.testing.assert_allclose(score, expected, atol=1e-6)


def test_oracle_competes_with_no_selector_and_says_the_head_room(tmp_path) -> None:
    beside, alone = walk(tmp_path / "a", oracle=True)[0], walk(tmp_path / "b")[0]
    assert beside.across is None
    assert set(beside.results.condition.unique()) == {"", ORACLE}
    for table in ("summary", "verdicts", "set_gap", "sensitivity"):
        ours, other = (getattr(run.scorecard, table) for run in (beside, alone))
        if table == "summary":
            ours, other = (part[~part.metric.str.contains("seconds")] for part in (ours, other))
        pd.testing.assert_frame_equal(ours, other)
    room = beside.scorecard.head_room.set_index(["view", "metric"])["diff"]
    final = {}
    for name in ("random-s0", "oracle-s0@oracle", "random-s1", "oracle-s1@oracle"):
        rows = beside.results.query("trial == @name and kind == 'score' and scorer == 'token_accuracy'")
        rows = rows[rows.task_kind == "stage"]
        tasks = list(beside.scorecard.tasks)
        own = rows[[row.stage == tasks.index(row.task) + 1 for row in rows.itertuples()]]
        final[name] = own.groupby("task", observed=True).value.mean().mean()
    gains = [final[f"oracle-s{seed}@oracle"] - final[f"random-s{seed}"] for seed in (0, 1)]
    assert room["token_accuracy", "current"] == pytest.approx(np.mean(gains))
    later = 100 * room["primary", "long_horizon"]
    assert any(f"differs from random by {later:+.1f} points (n = 2, 95 %" in note for note in beside.scorecard.notes)
    assert alone.scorecard.head_room.empty


def test_oracle_is_added_to_a_finished_run_whose_trials_are_kept(tmp_path) -> None:
    walk(tmp_path / "q", seeds=[0])
    marks = {path: path.stat().st_mtime_ns for path in (tmp_path / "q" / "trials").rglob("*.zip")}
    result, done = walk(tmp_path / "q", seeds=[0], oracle=True)
    assert done == ["oracle-s0@oracle"]
    assert all(path.stat().st_mtime_ns == when for path, when in marks.items())
    assert set(result.results.condition.unique()) == {"", ORACLE}
    assert "nan" not in next(note for note in result.scorecard.notes if note.startswith("Head-room"))
    with pytest.raises(RecipeError, match="axes.vary cannot vary 'oracle': it stands above the axes"):
        expand(recipe(axes={"vary": {"oracle": [True]}}))


def test_oracle_is_no_selector_to_choose_and_needs_an_audit() -> None:
    assert ORACLE not in SELECTORS.names()
    with pytest.raises(RecipeError, match="selector 'oracle' .* set oracle: true"):
        recipe(selectors=["random", ORACLE])
    assert [condition.name for condition in expand(recipe(oracle=True))] == ["", ORACLE]
    pool = example_pool(4)
    source = QuadraticLearner(recipe(), 0).source
    source.evaluation = None
    with pytest.raises(RecipeError, match="only an audit has evaluation items"):
        source(pool, ("evaluation_alignment",))
