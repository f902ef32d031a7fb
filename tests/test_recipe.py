import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longgame.errors import RecipeError
from longgame.recipe import Recipe, find_recipe, load_recipe, packaged_recipes, parse_recipe

GOOD = {"name": "a", "selectors": ["loss"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": {}}, "unknown key 'modle'. Did you mean 'model'?"),
        ({"training": {"stpes": 3}}, "unknown key 'training.stpes'. Did you mean 'steps'?"),
        ({"model": {"lora": {"rank": 3}}}, "unknown key 'model.lora.rank'."),
        ({"budget": 0}, "'budget': must be greater than 0 (seen: 0)"),
        ({"budget": 1.5}, "'budget': must be less than or equal to 1 (seen: 1.5)"),
        ({"selectors": []}, "'selectors': is empty; name at least one (seen: [])"),
        ({"selectors": ["loss", "loss"]}, "selector loss stands twice"),
        ({"seeds": [1, 1]}, "seeds [1, 1] repeat"),
        ({"rounds": 33}, "rounds is 33 but there are only 32 steps"),
        ({"probe": {"points": 30}}, "points is 30 but 10 steps give at most 11 points"),
        ({"training": {"epochs": 2}}, "training.epochs is 2 but rounds is 'step'"),
        ({"data": {"pool_size": 20}}, "data.pool_size is 20, fewer than one candidate for each of 32 steps"),
        ({"data": {"sequence": "files"}}, "data.stages is empty"),
        ({"rounds": "stepp"}, "'rounds': must be 'step' or must be a valid integer, unable to parse"),
        ({"max-length": 3}, "unknown key 'max-length'"),
        ({"selectors": ["loss", {"label": "a"}]}, "'selectors.1.name' is missing"),
        ({"metrics": {"reference": "lhas"}}, "metrics.reference is 'lhas', which is no selector here; use loss"),
        ({"model": {"name": "org/a", "per_seed": ["b", "c"]}}, "model.name is 'org/a' but model.per_seed names"),
        ({"name": "../up"}, "'name': must begin with a letter or digit"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_is_allowed(change, message):
    with pytest.raises(RecipeError) as caught:
        parse_recipe({**GOOD, **change})
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_selectors_come_as_a_name_or_with_parameters():
    recipe = parse_recipe({"name": "a", "selectors": ["loss", {"name": "lhas", "label": "mine", "future_weight": 2}]})
    assert [selector.key for selector in recipe.selectors] == ["loss", "mine"]
    assert recipe.selectors[1].parameters == {"future_weight": 2}


@given(
    budget=st.floats(0.01, 1),
    seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=5, unique=True),
    steps=st.integers(10, 99),
)
def test_a_resolved_recipe_reads_back_as_itself(budget, seeds, steps):
    recipe = parse_recipe({**GOOD, "budget": budget, "seeds": seeds, "training": {"steps": steps}})
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_a_missing_file_suggests_its_neighbour(tmp_path):
    (tmp_path / "quickstart.yaml").write_text("name: a\nselectors: [loss]\n")
    with pytest.raises(RecipeError, match=r"Did you mean 'quickstart\.yaml'"):
        load_recipe(tmp_path / "quikstart.yaml")


@pytest.mark.parametrize("name", packaged_recipes())
def test_a_packaged_recipe_is_named_and_valid(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe(name).name == name


def test_a_file_or_run_hides_a_packaged_recipe_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert find_recipe("quickstart") == packaged_recipes()["quickstart"]
    (tmp_path / "quickstart" / "recipe.yaml").write_text("name: mine\nselectors: [loss]\n")
    assert find_recipe("quickstart").is_dir()
    (tmp_path / "domain").write_text("name: mine\nselectors: [loss]\n")
    assert load_recipe("domain").name == "mine"


@pytest.mark.parametrize("name", ["quikstart", "tiny-base", "recipes/quickstart"])
def test_an_unknown_recipe_names_those_of_the_package(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=f"recipe '{name}' does not exist") as caught:
        load_recipe(name)
    assert ("Did you mean 'quickstart'?" in str(caught.value)) is (name == "quikstart")
    assert ("domain, field, interleaved" in str(caught.value)) is ("/" not in name)


def test_the_wheel_holds_the_folder_of_recipes():
    root = Path(__file__).parents[1]
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"recipes": "longgame/recipes"}
    assert {path.parent for path in packaged_recipes().values()} == {root / "recipes"}


def test_overrides_reach_nested_keys_and_are_validated(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("name: a\nselectors: [loss]\n")
    assert load_recipe(path, {"model.name": "org/model", "budget": 0.5}).model.name == "org/model"
    with pytest.raises(RecipeError, match="budget"):
        load_recipe(path, {"budget": 7})


def test_yaml_that_does_not_parse_or_is_no_mapping_is_a_recipe_error(tmp_path):
    for text in ("a: [", "- a\n- b\n"):
        path = tmp_path / "r.yaml"
        path.write_text(text)
        with pytest.raises(RecipeError, match=r"r\.yaml"):
            load_recipe(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: [a", "is not valid YAML: line 1, column 9: expected ',' or ']', but got '<stream end>'."),
        (b"\xff\x00", "is not a text in UTF-8"),
        (b"\x00", "is not valid YAML"),
        (b"", "holds a NoneType"),
    ],
)
def test_a_file_that_is_no_recipe_is_told_in_one_line(tmp_path, content, message):
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
