"""Families of selectors and what an audit gives them; the recipe of the field holds every one without a judge."""

from __future__ import annotations

import pytest

from longgame.audit.estimate import auxiliary_tokens, passes_apart, replay_tokens
from longgame.recipe import SelectorSpec, load_recipe, packaged_recipes
from longgame.selection.base import SELECTORS, build_selector
from longgame.selection.families import (
    FAMILIES,
    family_of,
    further_information,
    needs_of,
    spec_family,
    spec_information,
)
from longgame.selection.interventions import Replay, build_choice
from longgame.testing import example_pool

NAMES = SELECTORS.builtin_names()


@pytest.mark.parametrize("name", NAMES)
def test_every_selector_has_a_family_of_the_table(name) -> None:
    assert family_of(build_selector(name)) in set(FAMILIES) - {"own", "reference"}
    assert spec_family(SelectorSpec(name=name)) == family_of(build_selector(name))


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("random", "baseline"),
        ("longest", "text"),
        ("dedup-exact", "text"),
        ("dsir", "target"),
        ("ifd", "loss"),
        ("rho", "loss"),
        ("grand", "gradient"),
        ("k-center", "diversity"),
        ("quality", "quality"),
        ("deita", "mixed"),
        ("less", "target"),
        ("cartography", "training log"),
        ("curriculum", "curriculum"),
        ("lhas-adaptive", "long-horizon"),
        ("oracle", "reference"),
        ("scores:mine.csv", "own"),
        ("mine.py:Mine", "own"),
    ],
)
def test_family_is_told_by_what_the_method_reads(name, family) -> None:
    assert spec_family(SelectorSpec(name=name)) == family


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"name": "loss"}, []),
        ({"name": "less"}, ["the stage's development items", "a warm-up training"]),
        ({"name": "rho"}, ["a reference model trained on the stage's development items"]),
        ({"name": "s2l"}, ["a log of a training on the stage's pool"]),
        ({"name": "loss", "proxy_as_data": True}, ["development items of all stages"]),
        ({"name": "loss", "replay": {"share": 0.2}}, ["candidates of earlier stages"]),
        ({"name": "scores:mine.csv"}, ["what its code or scores rest on"]),
    ],
)
def test_information_beyond_the_candidates_is_named(entry, words) -> None:
    assert spec_information(SelectorSpec(**entry)) == words


def test_needs_in_words_leave_out_what_all_have() -> None:
    assert needs_of(build_selector("tailsft")) == ["model", "base model"]
    assert further_information(build_selector("tailsft")) == []


def test_field_recipe_holds_every_selector_without_a_judge(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "field" in packaged_recipes()
    names = [spec.name for spec in load_recipe("field").selectors]
    assert len(names) == len(set(names))
    judged = {name for name in NAMES if any(word.startswith("judge") for word in needs_of(build_selector(name)))}
    assert set(names) == set(NAMES) - judged


# What the plan counts beside scoring


def test_auxiliary_trainings_are_counted_by_their_tokens() -> None:
    pools, targets = [example_pool(10, seed=1), example_pool(12, seed=2)], [example_pool(3, seed=3)]
    candidates, items = sum(int(pool.tokens.sum()) for pool in pools), int(targets[0].tokens.sum())
    assert auxiliary_tokens(build_selector("loss"), pools, targets) == (0, 0)
    warm = build_selector("less", {"share": 0.5, "epochs": 2})
    assert auxiliary_tokens(warm, pools, targets) == (0, round(2 * (1.5 * candidates + items)))
    rho = build_selector("rho")
    epochs = rho.auxiliary.epochs if rho.auxiliary else 4
    assert auxiliary_tokens(rho, pools, targets) == (candidates, epochs * items)
    assert passes_apart(build_selector("ifd").requires) == 1
    assert passes_apart(build_selector("loss").requires) == 0


@pytest.mark.parametrize("name", ["uniform", "fit", "distance", "surprise", "damage", "targeted"])
def test_replay_choices_are_counted_by_what_they_measure(name) -> None:
    pools = [example_pool(10, seed=number) for number in (1, 2, 3)]
    tokens = replay_tokens(Replay(build_selector("loss"), 0.2, choice=build_choice(name)), pools)
    one, two = (int(pool.tokens.sum()) for pool in pools[:2])
    if name == "surprise":
        assert tokens == 2 * one + two
    else:
        assert (tokens > 0) == (name in ("damage", "targeted"))
