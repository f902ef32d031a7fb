"""SelectionConfig: validated where it is made, plain values there and back, short forms."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest

from longgame.errors import PluginError, RecipeError
from longgame.selection.base import build_selector
from longgame.selection.methods.gradient import GradientSelector
from longgame.signals.quality.base import RuleQuality
from longgame.training.config import SelectionConfig
from support.training import Coin, make_policy


def test_plain_values_round_trip():
    config = SelectionConfig(selector="loss", budget=0.1, rounds=3, epochs=2, seed=7)
    assert SelectionConfig.from_dict(config.to_dict()) == config
    assert set(config.to_dict()) == {item.name for item in dataclasses.fields(SelectionConfig)}


def test_short_forms_mean_a_config():
    selector = Coin()
    assert SelectionConfig.of("loss") == SelectionConfig(selector="loss")
    assert SelectionConfig.of({"selector": "loss", "budget": 0.5}).budget == 0.5
    assert SelectionConfig.of(selector).selector is selector
    config = SelectionConfig()
    assert SelectionConfig.of(config) is config


def test_policies_of_one_config_share_nothing_but_the_seed():
    config = SelectionConfig(selector="utility-diversity", parameters={"diversity_weight": 0.5})
    first, second = config.build_policy(3), config.build_policy(3)
    assert first.selector is not second.selector
    assert first.selector.diversity_weight == 0.5
    assert first.rng.random() == second.rng.random()
    policy = make_policy()
    assert SelectionConfig(selector=policy).build_policy(3) is policy


@pytest.mark.parametrize(
    "fields",
    [
        {"selector": "gradient", "parameters": {"mode": "similarity"}},
        {"selector": {"name": "gradient", "mode": "similarity"}},
        {"selector": {"name": "gradient", "parameters": {"mode": "similarity"}}},
        {"selector": GradientSelector, "parameters": {"mode": "similarity"}},
        {"selector": GradientSelector(mode="similarity")},
    ],
    ids=["name", "mapping", "long mapping", "class", "instance"],
)
def test_every_form_of_a_selector_gives_the_same_one(fields):
    selector = SelectionConfig(**fields).build_policy(3).selector
    assert isinstance(selector, GradientSelector)
    assert selector.mode == "similarity"
    assert SelectionConfig.of(SelectionConfig(**fields)).selector == fields["selector"]


def test_a_mapping_of_a_selector_round_trips():
    config = SelectionConfig(selector={"name": "gradient", "mode": "similarity"})
    assert SelectionConfig.from_dict(config.to_dict()) == config


def test_configs_of_a_class_share_no_selector():
    config = SelectionConfig.of(GradientSelector)
    assert config.build_policy(3).selector is not config.build_policy(3).selector


@pytest.mark.parametrize(("budget", "ratio"), [(1.0, 1), (0.5, 2), (0.3, 4), (0.1, 10)])
def test_candidates_per_place_follow_from_the_budget(budget, ratio):
    assert SelectionConfig(budget=budget).ratio == ratio
    assert SelectionConfig(budget=budget, candidate_ratio=7).ratio == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"budget": 0}, "budget is 0;"),
        ({"budget": 1.5}, "budget is 1.5"),
        ({"rounds": 0}, "rounds is 0"),
        ({"rounds": "epoch"}, "rounds is 'epoch'"),
        ({"epochs": 0, "rounds": 1}, "epochs is 0"),
        ({"epochs": 2}, "epochs is 2 but rounds is 'step'"),
        ({"candidate_ratio": 0}, "candidate_ratio is 0"),
        ({"clusters": 0}, "clusters is 0"),
        ({"selector": "los"}, "Did you mean 'loss'"),
        ({"selector": 3}, "selector is a int"),
        ({"selector": {"nam": "loss"}}, "without a 'name'"),
        ({"selector": {"name": "gradient", "mod": "norm"}}, "no parameter 'mod'. Did you mean 'mode'"),
        ({"selector": {"name": "los"}}, "Did you mean 'loss'"),
        ({"selector": {"name": "gradient", "mode": "norm"}, "parameters": {"a": 1}}, "Put the parameters into one"),
        ({"selector": GradientSelector, "parameters": {"mod": "norm"}}, "no parameter 'mod'. Did you mean 'mode'"),
        ({"rounds": "steps"}, "Did you mean 'step'"),
        ({"budget": "10%"}, "budget is '10%'; use a number"),
        ({"seed": 1.5}, "seed is 1.5; use a whole number"),
        ({"clusters": None}, "clusters is None; use a whole number"),
        ({"rounds": True}, "rounds is True"),
        ({"repeat": "no"}, "repeat is 'no'; use true or false"),
        ({"training_log": 1}, "training_log is 1; use true or false"),
        ({"parameters": ["a"]}, "use a mapping"),
        ({"budget_of": "token"}, "Did you mean 'tokens'"),
        ({"selector": "loss", "parameters": {"weight": 1}}, "no parameter 'weight'"),
        ({"selector": build_selector("loss"), "parameters": {"a": 1}}, "LossSelector already"),
        ({"budgett": 0.1}, "unknown field 'budgett'. Did you mean 'budget'"),
    ],
)
def test_wrong_values_are_refused_where_the_config_is_made(values, message):
    with pytest.raises(RecipeError, match=message):
        SelectionConfig.from_dict(values)


def test_numbers_of_numpy_are_numbers():
    config = SelectionConfig(budget=np.float32(0.5), rounds=np.int64(2), seed=np.int32(3))
    assert (config.ratio, config.rounds) == (2, 2)


def test_a_class_that_is_no_selector_is_refused():
    with pytest.raises(PluginError, match="does not derive from longgame.Selector"):
        SelectionConfig(selector=dict)


def test_misspelt_fields_get_a_suggestion_in_both_forms():
    for make in (SelectionConfig, lambda **fields: SelectionConfig.of(fields)):
        with pytest.raises(RecipeError, match="unknown field 'round'. Did you mean 'rounds'"):
            make(round=1)
    config = SelectionConfig(budget=0.5)
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == dataclasses.replace(config, seed=None)


def test_a_selector_object_has_no_plain_values():
    with pytest.raises(RecipeError, match="selector is a Coin, which has no plain form"):
        SelectionConfig(selector=Coin()).to_dict()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quality": "jugde"}, "Did you mean 'judge'"),
        ({"quality": "column:stars,low=1,high=5"}, "reads quality alone"),
        ({"complexity": {"name": "column", "column": "stars"}}, "reads quality alone"),
    ],
)
def test_a_source_that_a_trainer_cannot_read_is_refused(fields, words):
    with pytest.raises(RecipeError, match=words):
        SelectionConfig(selector="quality", **fields)


def test_a_source_by_name_has_a_plain_form_and_an_object_has_not():
    config = SelectionConfig(selector="quality", quality={"name": "reward", "model": "any/model"})
    assert SelectionConfig.from_dict(config.to_dict()) == config
    with pytest.raises(RecipeError, match="no plain form"):
        SelectionConfig(selector="quality", quality=RuleQuality()).to_dict()
