"""What an audit is refused for or warned of before any training, where a selector is a file of scores."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from longgame.audit.checks import _empty_step, check_models, check_scores, score_warnings, seed_warnings
from longgame.audit.estimate import print_plan
from longgame.audit.execute import run_audit
from longgame.audit.learner import sequence_of
from longgame.audit.parts import has_parts
from longgame.audit.plan import Plan
from longgame.errors import DataError, RecipeError, ResumeError
from longgame.recipe import parse_recipe
from support.quadratic_audit import Silent, recipe, walk
from support.run_parts import as_older_version


@pytest.fixture(autouse=True)
def _no_page(monkeypatch):
    monkeypatch.setattr("longgame.report.render.html_page", lambda *_: "")


def ids_of(rec, seed):
    return [example.sample_id for stage in sequence_of(rec, seed).stages for example in stage.candidates]


def write(folder, seeds=(0, 1), rec=None, **columns):
    """A file that scores the candidates of these seeds by their place, or has these columns instead; its selector."""
    ids = [name for seed in seeds for name in ids_of(rec or recipe(), seed)]
    made = {name: make(len(ids)) for name, make in columns.items()} or {"score": np.arange(len(ids))}
    pd.DataFrame({"sample_id": ids, **made}).to_csv(folder / "mine.csv", index=False)
    return f"scores:{folder / 'mine.csv'}"


def share(kept):
    """A keep column with this share of each run of candidates."""
    return lambda n: (np.arange(n) % 64) < kept * 64


def test_candidates_that_a_file_lacks_are_told_of_all_seeds_before_any_training(tmp_path):
    name = write(tmp_path, seeds=[1])
    with pytest.raises(DataError, match=r"does not name 384 of 576 candidates \(in seed 0, seed 2\)"):
        walk(tmp_path / "q", selectors=["random", name], seeds=[0, 1, 2])
    assert not has_parts(tmp_path / "q")


def test_a_selector_that_is_added_to_a_finished_run_is_checked_before_its_first_trial(tmp_path):
    walk(tmp_path / "q")
    name = write(tmp_path, seeds=[0])
    with pytest.raises(DataError, match=r"192 of 384 candidates \(in seed 1\)"):
        walk(tmp_path / "q", selectors=["random", "loss", name])
    assert {path.name for path in (tmp_path / "q" / "trials").iterdir()} == {
        f"{name}-s{seed}" for name in ("random", "loss") for seed in (0, 1)
    }


def test_candidates_of_another_condition_are_looked_for_and_only_where_work_is_left(tmp_path):
    name = write(tmp_path)
    walk(tmp_path / "q", selectors=["random", name])
    axes = {"vary": {"data.noise": [0.4]}, "budget": [0.5]}
    varied = recipe(selectors=["random", name], axes=axes)
    with pytest.raises(DataError, match=r"\(in seed 0 of data\.noise=0\.4, seed 1 of data\.noise=0\.4\)"):
        check_scores(Plan(varied), Plan(varied).trials)
    check_scores(Plan(varied), [trial for trial in Plan(varied).trials if "noise" not in trial.condition])


def test_a_plan_is_refused_as_its_audit_would_be(tmp_path):
    name = write(tmp_path, seeds=[0])
    with pytest.raises(DataError, match=r"does not name 192 of 384 candidates \(in seed 1\)"):
        print_plan(Plan(recipe(selectors=["random", name])), tmp_path / "q", 1, 1, Console())


def test_a_file_grows_with_the_seeds_of_a_run(tmp_path):
    name = write(tmp_path, seeds=[0])
    first, _ = walk(tmp_path / "q", selectors=["random", name], seeds=[0])
    write(tmp_path, seeds=[1, 0])
    frame = pd.read_csv(tmp_path / "mine.csv")
    frame["score"] = frame.groupby(frame.index // 192).cumcount()  # each seed's scores are as before
    frame.to_csv(tmp_path / "mine.csv", index=False)
    again, done = walk(tmp_path / "q", selectors=["random", name], seeds=[0])
    assert done == []
    pd.testing.assert_frame_equal(again.results, first.results)
    _, done = walk(tmp_path / "q", selectors=["random", name], seeds=[0, 1])
    assert {trial.rpartition("-s")[2] for trial in done} == {"1"}


@pytest.mark.parametrize("change", ["score", "keep"])
def test_another_word_about_a_measured_candidate_is_refused_though_the_file_grew(tmp_path, change):
    name = write(tmp_path, seeds=[0], score=np.arange, keep=lambda n: np.ones(n, dtype=int))
    walk(tmp_path / "q", selectors=["random", name], seeds=[0])
    write(tmp_path, seeds=[0, 1], score=np.arange, keep=lambda n: np.ones(n, dtype=int))
    frame = pd.read_csv(tmp_path / "mine.csv")
    frame.loc[5, change] = 0
    frame.to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(ResumeError, match=r"mine\.csv is not what it was"):
        walk(tmp_path / "q", selectors=["random", name], seeds=[0, 1])


def test_a_stopped_trial_goes_on_with_a_grown_file_and_not_with_an_edited_one(tmp_path):
    class StopError(BaseException): ...

    class Stopping(Silent):
        def progress(self, job, stage, activity, step, steps):
            if stage == 2 and "scores" in job:
                raise StopError

    name = write(tmp_path, seeds=[0])
    rec = recipe(selectors=["random", name], seeds=[0])
    with pytest.raises(StopError):
        run_audit(rec, tmp_path / "q", workers=1, threads=1, display=Stopping())
    text = (tmp_path / "mine.csv").read_text()
    head, *rows = text.splitlines()
    (tmp_path / "mine.csv").write_text("\n".join([head, *rows[:-1], rows[-1].replace("191", "-1")]))  # of stage 3
    with pytest.raises(ResumeError, match="is not what it was"):
        walk(tmp_path / "q", selectors=["random", name], seeds=[0])
    (tmp_path / "mine.csv").write_text(text + "another,7\n")
    result, _ = walk(tmp_path / "q", selectors=["random", name], seeds=[0])
    whole, _ = walk(tmp_path / "whole", selectors=["random", name], seeds=[0])
    frames = [each.results[each.results.unit != "s"].reset_index(drop=True) for each in (result, whole)]
    pd.testing.assert_frame_equal(*frames)


def test_a_finished_run_is_told_and_added_to_where_its_file_is_not(tmp_path):
    name = write(tmp_path)
    first, _ = walk(tmp_path / "q", selectors=["random", name], full_data=True)
    (tmp_path / "mine.csv").unlink()
    again, done = walk(tmp_path / "q", selectors=["random", name], full_data=True)
    assert done == []
    pd.testing.assert_frame_equal(again.results, first.results)
    _, done = walk(tmp_path / "q", selectors=["random", name, "loss"], full_data=True)
    assert done == ["loss-s0", "loss-s1"]
    with pytest.raises(DataError, match="does not exist"):
        walk(tmp_path / "q", selectors=["random", name, "loss"], full_data=True, seeds=[0, 1, 2])


def test_a_run_whose_marks_are_of_whole_files_is_told_and_refuses_a_grown_one(tmp_path):
    name = write(tmp_path, seeds=[0])
    first, _ = walk(tmp_path / "q", selectors=["random", name], seeds=[0])
    as_older_version(tmp_path / "q", lambda mark: {name: mark[name] for name in ("key", "files") if name in mark})
    again, _ = walk(tmp_path / "q", selectors=["random", name], seeds=[0])
    pd.testing.assert_frame_equal(again.results, first.results)
    with (tmp_path / "mine.csv").open("a") as file:
        file.write("another,7\n")
    with pytest.raises(ResumeError, match="is not what it was"):
        walk(tmp_path / "q", selectors=["random", name], seeds=[0])
    (tmp_path / "mine.csv").unlink()
    assert walk(tmp_path / "q", selectors=["random", name], seeds=[0])[1] == []


def warnings_of(**more):
    rec = recipe(**more)
    return score_warnings(Plan(rec), Plan(rec).trials)


def test_a_share_below_the_budget_is_warned_of_under_every_schedule(tmp_path):
    name = write(tmp_path, keep=share(0.125))
    selectors = ["random", {"name": name, "label": "mine"}]
    (step,) = warnings_of(selectors=selectors)
    assert step.startswith(
        "mine: of some stage only 12.5 % of the candidates may be selected, and the budget is 25 % of"
    )
    assert "has a probability of 100 % and ends the audit there. Use rounds: 1." in step
    (several,) = warnings_of(selectors=selectors, rounds=3)
    assert several.endswith("The last of 3 rounds may find none left, which ends the audit there. Use rounds: 1.")
    (once,) = warnings_of(selectors=selectors, rounds=1)
    assert "so fewer tokens may be learned than by other selectors. They are 1.3 for each of a stage's 6 steps;" in once
    twice = {"rounds": 1, "training": {"steps": 6, "epochs": 2}}
    (amount,) = warnings_of(selectors=selectors, **twice)
    assert amount.endswith("so fewer tokens may be learned than by other selectors.")
    assert warnings_of(selectors=selectors, budget=0.1, **twice) == []
    (under,) = warnings_of(selectors=selectors, budget=0.1, axes={"budget": [0.05, 0.5]}, **twice)
    assert under.startswith("mine under budget=0.5: ")


def test_steps_that_may_find_nothing_are_warned_of_though_enough_is_kept(tmp_path):
    name = write(tmp_path, keep=share(0.3))
    (text,) = warnings_of(selectors=["random", name])
    assert "the budget" not in text
    assert text.startswith(f"{name}: A step chooses among 10 candidates or so; that one finds none")
    assert warnings_of(selectors=["random", name], rounds=1) == []
    every = write(tmp_path, score=np.arange)
    assert warnings_of(selectors=["random", every, "loss"]) == []


def test_what_a_file_skips_may_not_be_selected_either(tmp_path):
    name = write(tmp_path, seeds=[0])
    (text,) = warnings_of(selectors=["random", {"name": name, "missing": "skip", "label": "s"}])
    assert text.startswith("s: of some stage only 0.0 % of the candidates")


def test_the_chance_of_an_empty_step_is_that_of_all_ways_to_draw_it():
    """5 candidates, 2 kept, 2 steps of 2: three of the ten pairs hold none that is kept."""
    flags = np.array([True, False, True, False, False])
    empty = sum(not flags[list(pair)].any() for pair in itertools.combinations(range(5), 2)) / math.comb(5, 2)
    assert _empty_step([flags], 2) == pytest.approx(1 - (1 - empty) ** 2)
    assert _empty_step([flags, flags], 2) == pytest.approx(1 - (1 - empty) ** 4)
    assert _empty_step([np.ones(5, dtype=bool)], 2) == 0
    assert _empty_step([np.zeros(5, dtype=bool)], 2) == 1


def test_warnings_come_before_the_work_and_in_the_plan(tmp_path):
    name = write(tmp_path, keep=share(0.2))
    rec = recipe(selectors=["random", {"name": name, "label": "mine"}], rounds=1)
    display = Silent()
    run_audit(rec, tmp_path / "q", workers=1, threads=1, display=display)
    assert [text.partition(":")[0] for text in display.warnings if "verdict" not in text] == ["mine"]
    console = Console(record=True, width=400)
    print_plan(Plan(rec), tmp_path / "r", 1, 1, console)
    assert f"Warning: {display.warnings[0]}" in console.export_text()
    again = Silent()
    run_audit(rec, tmp_path / "q", workers=1, threads=1, display=again)
    assert again.warnings == []  # nothing is left to do


def test_a_file_that_keeps_less_than_the_budget_has_a_note_and_a_verdict_that_say_so(tmp_path):
    name = write(tmp_path, keep=share(0.125))
    schedule = {"rounds": 1, "training": {"steps": 3}, "probe": {"kinds": []}}
    card = walk(tmp_path / "q", selectors=["random", "loss", {"name": name, "label": "mine"}], **schedule)[0].scorecard
    notes = [note for note in card.notes if "tokens learned" in note]
    assert [note.partition(":")[0] for note in notes] == ["mine"]
    reasons = card.verdicts.set_index("selector").reason
    assert reasons["mine"].str.contains("fewer tokens learned than by random").all()
    assert not reasons["loss"].str.contains("tokens learned").any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 1]}, "2 seeds give no verdict on any selector; at least 3 are needed"),
        ({"seeds": [0, 1, 2]}, None),
        ({"seeds": [0, 1], "selectors": ["random"]}, None),
    ],
)
def test_an_audit_of_too_few_seeds_says_so_before_it_begins(changes, message) -> None:
    said = [text.partition(". Seeds")[0] for text in seed_warnings(recipe(**changes))]
    assert said == ([] if message is None else [message])


def test_base_models_count_where_they_repeat() -> None:
    model = {"per_seed": ["tiny", "tiny-1"]}
    few = parse_recipe({"name": "t", "selectors": ["random", "loss"], "model": model, "seeds": [0, 1, 2, 3]})
    assert seed_warnings(few)[0].startswith("2 base models give no verdict")


@pytest.mark.parametrize(
    ("model", "more", "refused"),
    [
        ({"peft": {"modules_to_save": ["lm_head"]}}, {}, "lhas"),
        ({"adaptation": "peft", "peft": {"type": "LOHA"}}, {}, "lhas"),
        ({"adaptation": "peft", "peft": {"type": "LOHA"}}, {"selectors": ["loss"], "oracle": True}, "oracle"),
        ({"adaptation": "peft", "peft": {"type": "LOHA"}}, {"selectors": ["loss"]}, ""),
        ({"peft": {"use_rslora": True}}, {}, ""),
    ],
)
def test_gradients_of_more_than_lora_are_refused_before_any_work(model, more, refused):
    plan = Plan(parse_recipe({"model": {**model, "device": "cpu"}, **more}))
    if not refused:
        assert check_models(plan) == "cpu"
        return
    with pytest.raises(RecipeError, match=f"selector '{refused}' needs gradients"):
        check_models(plan)
