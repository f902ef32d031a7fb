"""Choices of replay around a selector, in audits: same tokens, charged, resumed with equal numbers."""

from __future__ import annotations

import pandas as pd
import pytest

from longgame.audit.execute import run_audit
from longgame.audit.plan import measured_by
from longgame.errors import RecipeError
from longgame.recipe import parse_recipe
from longgame.selection.interventions import REPLAY_CHOICES
from support.quadratic_audit import Silent, recipe, walk
from support.run_parts import selection

CHOICES = sorted(REPLAY_CHOICES.builtin_names())
ENTRIES = [{"name": "loss"}, *({"name": "loss", "replay": {"share": 0.3, "choice": name}} for name in CHOICES)]
SKILLS = ("extract-field", "redact", "penalty")
LONGEST = 24
"""Tokens of the longest example of the quadratic world."""


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    return walk(tmp_path_factory.mktemp("choices") / "q", selectors=ENTRIES, seeds=[0])[0]


def numbers(audit, selector):
    """Results of a selector without wall-clock."""
    rows = audit.results[(audit.results.unit != "s") & (audit.results.selector == selector)].reset_index(drop=True)
    return rows.astype(dict.fromkeys(rows.select_dtypes("category"), str))


def key(name):
    return "loss + replay 30%" + ("" if name == "uniform" else f" {name}")


def log(audit, name, stage):
    return selection(audit.folder, f"{key(name).replace(' ', '-').replace('+', '-').replace('%', '-')}-s0", stage)


def test_every_choice_spends_the_same_tokens(audit) -> None:
    spent = audit.results[audit.results.name == "selected_tokens"].pivot(
        index="stage", columns="selector", values="value"
    )
    assert set(spent.columns) == {"loss", *map(key, CHOICES)}
    assert (spent.max(axis=1) - spent.min(axis=1) <= LONGEST).all()


@pytest.mark.parametrize("name", CHOICES)
def test_choice_replays_its_share_of_earlier_stages(audit, name) -> None:
    for stage in (2, 3):
        frame = log(audit, name, stage)
        picked = frame[frame.picked >= 0]
        again = picked[picked.term_replayed == 1]
        assert again.sample_id.is_unique
        assert again.tokens.sum() / picked.tokens.sum() == pytest.approx(0.3, abs=2 * LONGEST / picked.tokens.sum())


def test_choices_replay_different_examples(audit) -> None:
    replayed = {}
    for name in CHOICES:
        frame = log(audit, name, 3)
        replayed[name] = frozenset(frame[(frame.picked >= 0) & (frame.term_replayed == 1)].sample_id)
    assert len(set(replayed.values())) == len(CHOICES)


def test_measured_losses_are_charged_to_the_trial(audit) -> None:
    costs = audit.results[audit.results.kind == "cost"]
    scored = costs[costs.name == "scored_tokens"].groupby("selector").value.sum()
    for name in CHOICES:
        more = scored[key(name)] > scored[key("uniform")]
        assert more == (name != "uniform")
    timed = set(costs[costs.name == "replay_seconds"].selector)
    assert timed == {key(name) for name in ("targeted", "damage", "surprise")}


class StopError(BaseException): ...


class Stopping(Silent):
    def progress(self, job, stage, activity, step, steps):
        if stage == 3 and activity == "evaluate":
            raise StopError


@pytest.mark.parametrize("name", CHOICES)
def test_audit_resumed_between_stages_replays_alike(audit, tmp_path, name) -> None:
    plan = recipe(selectors=[{"name": "loss", "replay": {"share": 0.3, "choice": name}}], seeds=[0])
    with pytest.raises(StopError):
        run_audit(plan, tmp_path / "q", workers=1, threads=1, display=Stopping())
    again = run_audit(plan, tmp_path / "q", workers=1, threads=1, display=Silent())
    pd.testing.assert_frame_equal(numbers(again, key(name)), numbers(audit, key(name)))


def test_uniform_choice_leaves_the_key_of_a_trial_alone() -> None:
    one, two = (
        recipe(selectors=[{"name": "loss", "replay": replay}])
        for replay in (0.3, ENTRIES[-1]["replay"] | {"choice": "uniform"})
    )
    assert measured_by(one) == measured_by(two)
    assert "choice" not in measured_by(one)["selectors"][0]["replay"]


@pytest.mark.parametrize(
    ("choice", "words"),
    [("surprize", "surprise"), ({"name": "targeted", "cap": 0}, "cap is 0"), ({"name": "fit", "items": 2}, "items")],
)
def test_wrong_choice_stops_the_audit_before_its_work(tmp_path, choice, words) -> None:
    plan = recipe(selectors=[{"name": "loss", "replay": {"share": 0.3, "choice": choice}}])
    with pytest.raises(RecipeError, match=words):
        run_audit(plan, tmp_path / "q", workers=1, threads=1, display=Silent())


@pytest.mark.slow
def test_every_choice_walks_the_tiny_model(tmp_path) -> None:
    plan = parse_recipe(
        {
            "name": "t",
            "model": {"name": "tiny"},
            "data": {
                "pool_size": 24,
                "items_per_skill": 1,
                "ood_items_per_skill": 1,
                "stages": [{"name": name, "skills": [name], "scorers": ["token_accuracy"]} for name in SKILLS],
            },
            "selectors": [entry for entry in ENTRIES[1:] if entry["replay"]["choice"] != "uniform"],
            "seeds": [0],
            "budget": 0.3,
            "rounds": 1,
            "training": {"steps": 2},
            "probe": {"steps": 1, "points": 2, "kinds": ["own"]},
        }
    )
    display = Silent()
    audit = run_audit(plan, tmp_path / "t", workers=1, threads=1, display=display)
    assert not display.failures
    flops = audit.results[audit.results.name == "replay_flops"]
    assert set(flops.selector) == {key(name) for name in ("targeted", "damage", "surprise")}
    assert (flops.value > 0).all()
