"""A selector that is a file is known by what is in it: an edited one never goes on with a run of the old one."""

import shutil

import pandas as pd
import pytest

from longgame.audit.checks import file_contents, file_of, plugin_names
from longgame.audit.execute import run_audit
from longgame.audit.learner import sequence_of
from longgame.audit.run import Run
from longgame.errors import ResumeError
from longgame.recipe import load_recipe, parse_recipe
from support.quadratic_audit import Silent
from support.run_parts import as_older_version

SELECTOR = """
import numpy as np
from longgame import Selection, Selector

class Ends(Selector):
    name = "ends"

    def select(self, pool, signals, history, budget, rng):
        order = np.argsort(pool.ids)[::STEP]
        fits = order[np.cumsum(pool.tokens[order]) <= budget]
        return Selection.of(pool, fits, {})
"""


@pytest.fixture(autouse=True)
def _no_page(monkeypatch):
    monkeypatch.setattr("longgame.report.render.html_page", lambda *_: "")


def recipe(selector):
    return parse_recipe(
        {
            "name": "q",
            "model": {"name": "quadratic"},
            "data": {"sequence": "quadratic", "pool_size": 48, "stages": [{"name": "a"}, {"name": "b"}]},
            "selectors": ["random", selector],
            "seeds": [0],
            "rounds": 1,
            "training": {"steps": 4, "warmup_steps": 1, "learning_rate": 0.1},
            "probe": {"steps": 2, "points": 2},
        }
    )


def audit(selector, folder):
    return run_audit(recipe(selector), folder, workers=1, threads=1, display=Silent())


def numbers(result):
    return result.results[result.results.unit != "s"].reset_index(drop=True)


def plugin(folder, step):
    """A selector file that takes ids upwards (step 1) or downwards (−1)."""
    (folder / "mine.py").write_text(SELECTOR.replace("STEP", str(step)))
    return f"{folder / 'mine.py'}:Ends"


def scores(folder, step):
    """A score file that ranks by id, upwards or downwards."""
    sequence = sequence_of(recipe("loss"), 0)
    ids = sorted({example.sample_id for stage in sequence.stages for example in stage.candidates})
    table = pd.DataFrame({"sample_id": ids, "score": range(0, step * len(ids), step)})
    table.to_csv(folder / "mine.csv", index=False)
    return f"scores:{folder / 'mine.csv'}"


@pytest.mark.parametrize("write", [plugin, scores])
def test_an_edited_file_is_refused_until_its_parts_are_measured_anew(tmp_path, write):
    name = write(tmp_path, 1)
    first = audit(name, tmp_path / "q")
    write(tmp_path, -1)
    trial = next(trial.name for trial in first.plan.trials if trial.selector.name == name)
    with pytest.raises(
        ResumeError, match=rf"{file_of(name)} is not what it was .*: trials/{trial}\. Put the file back"
    ):
        audit(name, tmp_path / "q")
    shutil.rmtree(tmp_path / "q" / "trials" / trial)
    anew = audit(name, tmp_path / "q")
    fresh = audit(name, tmp_path / "fresh")
    pd.testing.assert_frame_equal(numbers(anew), numbers(fresh), check_exact=True)
    assert not numbers(anew).value.equals(numbers(first).value)
    write(tmp_path, 1)
    with pytest.raises(ResumeError, match="is not what it was"):
        audit(name, tmp_path / "q")


def test_a_finished_run_is_printed_where_the_file_is_not_or_is_another(tmp_path):
    name = plugin(tmp_path, 1)
    first = audit(name, tmp_path / "q")
    (tmp_path / "mine.py").write_text("edited")
    pd.testing.assert_frame_equal(Run.open(tmp_path / "q").results, first.results)
    (tmp_path / "mine.py").unlink()
    pd.testing.assert_frame_equal(numbers(audit(name, tmp_path / "q")), numbers(first))


def test_parts_of_before_contents_were_noted_are_taken_as_they_are(tmp_path):
    name = plugin(tmp_path, 1)
    first = audit(name, tmp_path / "q")
    as_older_version(tmp_path / "q", lambda mark: {"key": mark["key"]})
    plugin(tmp_path, -1)
    pd.testing.assert_frame_equal(numbers(audit(name, tmp_path / "q")), numbers(first))


def test_only_files_that_are_there_have_contents(tmp_path):
    (tmp_path / "a.py").write_text("x")
    names = ("loss", f"{tmp_path / 'a.py'}:A", f"scores:{tmp_path / 'gone.csv'}")
    assert list(file_contents(names)) == [names[1]]
    assert plugin_names(recipe(names[1])) == ("random", names[1], *recipe("loss").data.stages[0].scorers)


KEYS = {
    "quickstart": ("7da20ed9b9ca9910", "d2147bdde0e49137"),
    "domain": ("0ec1f05f24e2fdf6", "4f473e6972870aa4"),
    "interventions": ("7ab7de1a91b0e365", "18bd1e168b181373"),
    "quadratic": ("4cba2364627fe197", "6b02bcc67bcc4245"),
    "smollm2-skill": ("1e8ad8883eae70b1", "1c98bc0862cc7cc1"),
}
"""Packaged recipe → keys of the shared work of its first seed and of its last trial, as the first runs have them."""


@pytest.mark.parametrize("name", KEYS)
def test_keys_of_packaged_recipes_never_change(name, tmp_path):
    """A key that a recipe gets is added to `longgame.audit.plan._ADDED`: otherwise no run of before can be resumed."""
    run = Run(tmp_path, load_recipe(name))
    assert (run.seed_store(run.recipe.seeds[0]).key, run.trial_store(run.plan.trials[-1]).key) == KEYS[name]
