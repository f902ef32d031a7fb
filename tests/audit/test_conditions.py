"""The axes of a recipe become conditions: the same ones however the recipe lists them, none twice."""

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longgame.audit.learner import sequence_of
from longgame.audit.plan import Plan, Trial, expand, order_groups, stage_names
from longgame.audit.run import Run
from longgame.errors import RecipeError
from longgame.recipe import parse_recipe

GOOD = {"name": "a", "selectors": ["random", "loss"], "seeds": [0, 1]}
SKILL = ("general", "math", "code", "reasoning", "safety")

budgets = st.lists(st.sampled_from([0.1, 0.2, 0.25, 0.5, 1.0]), max_size=4)
rounds = st.lists(st.sampled_from([1, 2, 8, "step"]), max_size=4)
adaptations = st.lists(
    st.sampled_from(["lora", "full", "r4", "r16"]).map(lambda x: {"r": int(x[1:])} if x[0] == "r" else x), max_size=4
)
orders = st.lists(st.permutations(SKILL).map(list), max_size=3)
noises = st.lists(st.sampled_from([0.0, 0.05, 0.15]), max_size=3)
axes = st.fixed_dictionaries(
    {"budget": budgets, "rounds": rounds, "adaptation": adaptations, "order": orders, "vary": noises.map(
        lambda values: {"data.noise": values} if values else {}
    )}
)  # fmt: skip


def recipe(**more):
    return parse_recipe({**GOOD, **more})


def names(rec):
    return [condition.name for condition in expand(rec)]


def sizes(spec):
    """How many values other than the recipe's own each axis has, counted by hand."""
    ranks = {16 if value == "lora" else value if value == "full" else value["r"] for value in spec["adaptation"]}
    return [
        len(set(spec["budget"]) - {0.25}),
        len(set(spec["rounds"]) - {"step"}),
        len(ranks - {16}),
        len({tuple(order) for order in spec["order"]} - {SKILL}),
        len(set(spec["vary"].get("data.noise", ())) - {0.05}),
    ]


@settings(max_examples=40, deadline=None)
@given(axes)
def test_one_axis_at_a_time_adds_up_and_the_product_multiplies(spec):
    apart, crossed = names(recipe(axes=spec)), names(recipe(axes={**spec, "cross": True}))
    assert apart[0] == crossed[0] == ""
    assert len(set(apart)) == len(apart) == 1 + sum(sizes(spec))
    assert len(set(crossed)) == len(crossed) == math.prod(size + 1 for size in sizes(spec))
    assert set(apart) == {name for name in crossed if name.count("=") <= 1}


@settings(max_examples=25, deadline=None)
@given(axes, st.booleans(), st.randoms(use_true_random=False))
def test_how_a_recipe_lists_its_values_changes_no_condition_and_no_key(spec, cross, random):
    turned = {
        key: random.sample(value, len(value)) if isinstance(value, list) else value for key, value in spec.items()
    }
    turned = dict(random.sample(sorted(turned.items()), len(turned)))
    one, two = recipe(axes={**spec, "cross": cross}), recipe(axes={**turned, "cross": cross})
    assert expand(one) == expand(two)
    turned_more = {"seeds": [1, 0], "selectors": ["loss", "random"], "axes": {**turned, "cross": cross}}
    runs = [Run(Path("run"), rec) for rec in (one, recipe(**turned_more))]
    keys = [{trial.name: run.trial_store(trial).key for trial in run.plan.trials} for run in runs]
    assert keys[0] == keys[1]
    assert len(set(keys[0].values())) == len(keys[0])


@settings(max_examples=25, deadline=None)
@given(axes, st.booleans())
def test_a_condition_is_the_recipe_that_says_the_same_without_axes(spec, cross):
    for condition in expand(recipe(axes={**spec, "cross": cross})):
        alone = parse_recipe({**condition.recipe.model_dump(mode="json"), "axes": {}})
        assert alone == condition.recipe
        (own,) = expand(alone)
        assert (own.name, own.order, own.values) == ("", condition.order, condition.values)


def test_a_trial_s_key_under_a_condition_is_that_of_the_recipe_that_is_this_condition():
    varied = Run(Path("run"), recipe(axes={"budget": [0.1], "adaptation": ["full"]}))
    alone = Run(Path("run"), recipe(budget=0.1))
    under = next(trial for trial in varied.plan.trials if trial.name == "loss-s1@budget=0.1")
    assert varied.trial_store(under).key == alone.trial_store(Trial(under.selector, 1)).key
    assert {trial.name for trial in varied.plan.trials} >= {"random-s0", "random-s0@adaptation=full"}


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": {"alpha": 2.0, "forgetting_reference": "first", "bootstrap": 100, "reference": "loss"}},
        {"probe": {"threshold": 0.5}},
        {"name": "other"},
        {"seeds": [0, 1, 2, 3]},
        {"selectors": ["random", "loss", "gradient"]},
        {"axes": {"budget": [0.1]}},
    ],
)
def test_what_changes_no_measurement_changes_no_key(change):
    before, after = Run(Path("run"), recipe()), Run(Path("run"), recipe(**change))
    names = {trial.name for trial in before.plan.trials}
    assert [before.trial_store(trial).key for trial in before.plan.trials] == [
        after.trial_store(trial).key for trial in after.plan.trials if trial.name in names
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": {"clusters": 4}},
        {"metrics": {"gradient_every": 2}},
        {"probe": {"steps": 12}},
        {"data": {"order": ["math", "general", "code", "reasoning", "safety"]}},
        {"model": {"per_seed": ["other"]}},
        {"training": {"learning_rate": 1e-3}},
    ],
)
def test_what_changes_a_measurement_changes_the_key(change):
    before, after = Run(Path("run"), recipe()), Run(Path("run"), recipe(**change))
    assert before.trial_store(before.plan.trials[0]).key != after.trial_store(after.plan.trials[0]).key


def test_a_base_model_of_its_own_changes_the_keys_of_its_seeds_alone():
    one, two = recipe(model={"per_seed": ["tiny", "a"]}), recipe(model={"per_seed": ["tiny", "b"]})
    keys = [
        [run.trial_store(trial).key for trial in run.plan.trials] for run in (Run(Path("r"), one), Run(Path("r"), two))
    ]
    same = [a == b for a, b in zip(*keys, strict=True)]
    assert same == [True, True, False, False]
    assert keys[0][:2] == [Run(Path("r"), recipe()).trial_store(trial).key for trial in Plan(recipe()).trials[:2]]


def test_one_order_may_stand_without_a_list_around_it():
    turned = SKILL[::-1]
    short, long = (recipe(axes={"order": order}) for order in (turned, [turned]))
    assert names(short) == names(long) == ["", "order=5-4-3-2-1"]


@pytest.mark.parametrize(
    ("model", "vary", "message"),
    [
        ({}, {"data.data_dir": ["elsewhere"]}, "data.data_dir"),
        ({"per_seed": ["a", "b"]}, {"model.name": ["smollm2-135m"]}, "model.per_seed names the base models"),
    ],
)
def test_a_key_that_would_be_overruled_cannot_be_varied(model, vary, message):
    with pytest.raises(RecipeError, match=message):
        expand(recipe(model=model, axes={"vary": vary}))


def test_full_data_trials_have_a_reference_whatever_the_others_are_compared_with():
    full = expand(recipe(metrics={"reference": "loss"}, full_data=True))[-1]
    assert full.name == "full-data"
    assert [spec.key for spec in full.recipe.selectors] == ["all data"]


def test_rotations_start_with_each_stage_once_and_permutations_only_add():
    rotated = expand(recipe(axes={"order": "rotations"}))
    assert [condition.order for condition in rotated] == [tuple((i + j) % 5 for j in range(5)) for i in range(5)]
    few, many = (set(names(recipe(axes={"order": {"permutations": n, "seed": 3}}))) for n in (2, 7))
    assert len(few) == 3
    assert few < many
    assert set(names(recipe(axes={"order": {"permutations": 2, "seed": 4}}))) != few
    every = expand(recipe(axes={"order": {"permutations": 119}}))
    assert {condition.order for condition in every} == set(itertools.permutations(range(5)))


def test_an_order_of_the_recipe_itself_is_the_one_that_is_turned():
    own = ["safety", "general", "math", "code", "reasoning"]
    rec = recipe(data={"order": own}, axes={"order": "rotations"})
    assert [list(condition.recipe.data.order) for condition in expand(rec)] == [
        own, *sorted((own[i:] + own[:i] for i in range(1, 5)), key=lambda order: [SKILL.index(x) for x in order])
    ]  # fmt: skip


def test_lora_alpha_follows_the_rank_unless_it_is_given():
    conditions = {c.name: c.recipe for c in expand(recipe(axes={"adaptation": [{"r": 4}, {"r": 4, "alpha": 32}]}))}
    assert conditions["adaptation=lora-r4"].model.lora.alpha == 8
    assert conditions["adaptation=lora-r4-alpha32"].model.lora.alpha == 32
    full = expand(recipe(axes={"adaptation": [{"mode": "full", "learning_rate": 1e-4}]}))[1]
    assert (full.name, full.recipe.training.learning_rate) == ("adaptation=full-lr0.0001", 1e-4)


@pytest.mark.parametrize(
    ("spec", "mixing", "bases"),
    [
        ({"budget": [0.1], "rounds": [1], "adaptation": ["full", {"r": 4}], "order": "rotations"}, 0, {""}),
        ({"adaptation": ["full", "qlora"]}, 0, {"", "adaptation=qlora-r16"}),
        ({"vary": {"training.steps": [16], "probe.steps": [12], "proxy.refresh_steps": [2]}}, 0, {""}),
        ({"vary": {"data.noise": [0.2]}, "budget": [0.1]}, 0, {"", "data.noise=0.2"}),
        ({"vary": {"metrics.clusters": [4]}}, 0, {"", "metrics.clusters=4"}),
        ({"order": [SKILL[::-1]], "budget": [0.1]}, 0.2, {"", "order=5-4-3-2-1"}),
        ({"order": [SKILL[::-1]], "vary": {"data.mixing": [0.2]}, "cross": True}, 0,
         {"", "data.mixing=0.2", "order=5-4-3-2-1,data.mixing=0.2"}),
    ],
)  # fmt: skip
def test_shared_work_is_done_again_only_where_model_or_data_differ(spec, mixing, bases):
    found = expand(recipe(axes=spec, data={"mixing": mixing}))
    assert {condition.base for condition in found} == bases
    for condition in found:
        if mixing == 0 and "mixing" not in condition.base:
            assert condition.base_recipe.data.order == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": {"order": [["math", "code"]]}}, "no order of the 5 stages"),
        ({"axes": {"order": [["math", "cod", "general", "reasoning", "safety"]]}}, "Did you mean 'code'?"),
        ({"axes": {"order": {"permutations": 120}}}, "5 stages have 119 other orders"),
        ({"axes": {"vary": {"data.nois": [0.1]}}}, "condition 'data.nois=0.1': unknown key 'data.nois'"),
        ({"axes": {"vary": {"data.noise": [2]}}}, "condition 'data.noise=2': 'data.noise': must be less than or equal"),
        ({"axes": {"vary": {"seeds": [1]}}}, "axes.vary cannot vary 'seeds'"),
        ({"axes": {"vary": {"metrics.alpha": [1]}}}, "how results are told"),
        ({"axes": {"vary": {"budget": [1]}}}, "axis of its own"),
        ({"axes": {"vary": {"budget.x": [1]}}}, "axes.vary cannot vary 'budget.x'"),
        ({"axes": {"vary": {"data.noise.x": [1]}}}, "'data.noise.x' is no key of a recipe; 'noise' holds 0.05"),
        ({"axes": {"rounds": [33]}}, "rounds is 33 but there are only 32 steps"),
        ({"axes": {"order": "rotation"}}, "'axes.order': must be rotations"),
        ({"axes": {"adaptation": [{"mode": "full", "r": 4}]}}, "full fine-tuning has no r"),
        ({"model": {"name": "quadratic"}, "data": {"sequence": "quadratic"}, "axes": {"adaptation": ["full"]}},
         "no adapter"),
        ({"model": {"name": "quadratic"}}, "belong together"),
        ({"data": {"sequence": "quadratic"}}, "belong together"),
        ({"model": {"per_seed": ["quadratic"]}}, "which is no language model"),
        ({"model": {"name": "quadratic"}, "data": {"sequence": "quadratic", "mixing": 0.1}}, "no mixing share"),
    ],
)  # fmt: skip
def test_a_wrong_axis_is_named_with_what_is_allowed(change, message):
    with pytest.raises(RecipeError) as caught:
        Plan(recipe(**change))
    assert message in str(caught.value)


def test_orders_are_grouped_with_what_else_they_share():
    assert order_groups(["", "budget=0.1", "order=2-1", "budget=0.1,order=2-1", "rounds=1"]) == {
        "order=*": ["", "order=2-1"],
        "budget=0.1,order=*": ["budget=0.1", "budget=0.1,order=2-1"],
    }


def test_stages_are_known_without_data(tmp_path):
    assert stage_names(recipe()) == SKILL
    files = recipe(
        data={
            "sequence": "files",
            "stages": [{"name": "x", "train": ["x"], "eval": ["x"]}, {"name": "y"}],
            "order": ["y", "x"],
        }
    )
    assert stage_names(files) == ("x", "y")
    assert expand(files)[0].order == (1, 0)


def test_what_a_budget_counts_is_a_condition_of_its_own() -> None:
    varied = recipe(axes={"vary": {"budget_of": ["response"]}})
    own, other = (sequence_of(condition.recipe, 0) for condition in expand(varied))
    for first, second in zip(own.stages, other.stages, strict=True):
        assert first.pool.costs.tolist() == first.pool.tokens.tolist()
        assert second.pool.costs.tolist() == first.pool.response_tokens.tolist()
    assert other.proxy_pool.budget_of == "response"
