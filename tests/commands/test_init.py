"""`longgame init`: a recipe for what a folder holds, which the audit accepts."""

import itertools
import json
from pathlib import Path

import pytest

from longgame.commands.init import describe, find_data, recipe_text
from longgame.data.sources import open_source
from longgame.errors import DataError, RecipeError
from longgame.limits import load_yaml
from longgame.recipe import load_recipe, parse_recipe
from support.cli import longgame_here


def write(path, count=60, word=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"{path.stem} {word} question {n * n}", "response": f"answer {n}"} for n in range(count)]
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        path.write_text("prompt,response\n" + "".join(f"{row['prompt']},{row['response']}\n" for row in rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


LAYOUTS = {
    "pairs": ["math_train.jsonl", "math_eval.jsonl", "code-train.csv", "code-test.csv"],
    "folders of splits": ["train/math.jsonl", "validation/math.jsonl", "train/code.json", "validation/code.json"],
    "folders of stages": ["math/train.jsonl", "math/dev.jsonl", "code/train.jsonl", "code/test.jsonl"],
    "shards": [
        *("data/math/train-00000-of-00002.jsonl", "data/math/train-00001-of-00002.jsonl"),
        *("data/math/test-00000-of-00001.jsonl", "data/code/training.jsonl", "data/code/val.jsonl"),
    ],
    "no evaluation": ["math.jsonl", "code.jsonl"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_are_sorted_by_the_words_of_their_names(layout, tmp_path):
    names = LAYOUTS[layout]
    for name in names:
        write(tmp_path / name)
    findings = find_data(tmp_path, tmp_path)
    assert [stage.name for stage in findings.stages] == ["code", "math"]
    assert not findings.ood
    assert not findings.unused
    assert sum(len(stage.train) + len(stage.eval) for stage in findings.stages) == len(names)
    assert all(bool(stage.eval) is (layout != "no evaluation") for stage in findings.stages)
    assert sum(file.rows for stage in findings.stages for file in stage.train + stage.eval) == 60 * len(names)


def test_other_files_are_named_with_the_reason(tmp_path):
    for name in ("a_train", "a_valid", "a_test", "b", "ood_c", "d_eval", "x/a_train"):
        write(tmp_path / f"{name}.jsonl")
    (tmp_path / "package.json").write_text("{}")
    (tmp_path / "empty.jsonl").write_text("")
    for hidden in (".cache/e.jsonl", "runs/q/run.json", "runs/q/results.parquet", "node_modules/f.json"):
        write(tmp_path / hidden)
    findings = find_data(tmp_path, tmp_path)
    assert [stage.name for stage in findings.stages] == ["a", "b"]
    assert [task.name for task in findings.ood] == ["c-ood", "d"]
    assert set(findings.unused) == {"a_test.jsonl", "package.json", "empty.jsonl", "x/a_train.jsonl"}
    told = "\n".join(describe(findings))
    assert "Missing: evaluation files for b." in told
    assert "Not used: a_test.jsonl: stage 'a' is evaluated by its valid file" in told


@pytest.mark.parametrize(
    ("first", "second", "ends"), [((1, 5), (0, 1), (0, 5)), ((0.5, 1), (0, 1), (0, 1)), ((3, 3), None, (0, 3))]
)
def test_quality_of_any_scale_leaves_a_file_usable(first, second, ends, tmp_path):
    for name, values in (("math_train", first), ("math_eval", None), ("code", second)):
        path = tmp_path / f"{name}.jsonl"
        write(path)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        grades = itertools.cycle(values or [None])
        path.write_text("".join(json.dumps(row | {"quality": next(grades)}) + "\n" for row in rows))
    findings = find_data(tmp_path, tmp_path)
    assert not findings.unused
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(findings, path, "tiny"))
    assert load_recipe(path).data.quality_range == ends


def test_a_recipe_of_init_is_accepted_and_never_overwritten(tmp_path):
    for name in ("math_train.jsonl", "math_eval.jsonl", "code.jsonl"):
        write(tmp_path / "my data" / name)
    done = longgame_here("init", "my data", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "math_train.jsonl (60 rows)" in done.stdout
    path = tmp_path / "my data" / "recipe.yaml"
    text = path.read_text()
    assert str(tmp_path) not in text
    recipe = load_recipe(path)
    assert recipe.name == "my-data"
    assert recipe.data.stages[0].train == recipe.data.stages[0].eval == ("code.jsonl",)
    plan = longgame_here("audit", "my data/recipe.yaml", "--dry-run", cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    assert "9 trials" in plan.stdout
    again = longgame_here("init", "my data", cwd=tmp_path)
    assert again.returncode != 0
    assert "exists and is not overwritten" in again.stderr
    assert path.read_text() == text


def test_paths_are_relative_to_the_recipe(tmp_path):
    for name in ("math_train.jsonl", "math_eval.jsonl"):
        write(tmp_path / "data" / name)
    out = tmp_path / "recipes" / "r.yaml"
    text = recipe_text(find_data(tmp_path / "data", out.parent), out, "tiny")
    assert '"../data/math_train.jsonl"' in text


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ([], DataError, "holds no file of examples"),
        (["a_eval.jsonl"], DataError, "no training file was recognized among a_eval.jsonl"),
        (None, RecipeError, "is not a directory"),
    ],
)
def test_a_folder_without_training_data_is_one_sentence(names, error, message, tmp_path):
    folder = tmp_path / "data"
    for name in names or ():
        write(folder / name)
    if names is not None:
        folder.mkdir(exist_ok=True)
    with pytest.raises(error, match=message):
        find_data(folder, Path(folder))


def test_too_few_rows_are_refused(tmp_path):
    write(tmp_path / "a_train.jsonl", 6)
    with pytest.raises(DataError, match="too few rows"):
        recipe_text(find_data(tmp_path, tmp_path), tmp_path / "recipe.yaml", "tiny")


@pytest.mark.parametrize("out", ["math.jsonl", "math.parquet", "math"])
def test_files_beside_a_subset_are_no_data(out, tmp_path):
    write(tmp_path / "pool.jsonl")
    (tmp_path / "stages").mkdir()
    subset = ["--selector", "longest", "--budget", "50rows", "--explain", "--out", f"stages/{out}"]
    assert longgame_here("select", "pool.jsonl", *subset, cwd=tmp_path).returncode == 0
    findings = find_data(tmp_path / "stages", tmp_path / "stages")
    assert [stage.name for stage in findings.stages] == ["math"]
    assert findings.unused == {}
    if out != "math":  # a folder of folders is no data set
        rows = open_source(tmp_path / "stages").rows()
        assert len([*rows]) == 50


def test_manifest_alone_is_read_as_data(tmp_path):
    (tmp_path / "mine.manifest.json").write_text('[{"prompt": "a", "response": "b"}]')
    assert len([*open_source(tmp_path).rows()]) == 1


def test_only_the_size_that_files_cannot_give_is_lowered(tmp_path):
    write(tmp_path / "math_train.jsonl", 200)
    write(tmp_path / "math_eval.jsonl", 40)
    long = [json.dumps({"prompt": f"long {n} " + "word " * 3000, "response": "a"}) + "\n" for n in range(20)]
    text = (tmp_path / "math_eval.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "math_eval.jsonl").write_text("".join([*text[:20], *long]))
    whole = recipe_text(find_data(tmp_path, tmp_path), tmp_path / "recipe.yaml", "tiny")
    recipe = parse_recipe(load_yaml(whole))
    assert (recipe.data.pool_size, recipe.data.items_per_skill) == (172, 18)  # 0.9 of 200 − 8, and of the 20 that fit
    assert "20 rows can be used" in next(line for line in whole.splitlines() if "items_per_skill: 18" in line)
