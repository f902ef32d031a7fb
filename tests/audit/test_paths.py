"""Relative paths of a recipe start from its own folder; options start from the working directory."""

import json
from pathlib import Path

import numpy as np
import pytest

from longgame.audit.checks import check_trusted, file_of
from longgame.audit.cluster import contents_of
from longgame.audit.execute import run_audit
from longgame.audit.learner import sequence_of
from longgame.audit.plan import Plan
from longgame.audit.run import Run
from longgame.commands.options import given_selectors, path_from_here, recipe_changes, recipe_folders
from longgame.data.sources import load_examples
from longgame.errors import LonggameError, RecipeError
from longgame.evaluation.scorers import build_scorer
from longgame.limits import located, relative_to
from longgame.models.embedders import check_embedder
from longgame.models.load import load_tokenizer, model_place
from longgame.recipe import ModelSpec, load_recipe
from longgame.selection.base import build_selector
from support.chat_model import chat_tokenizer, save
from support.embedders import static_model
from support.quadratic_audit import Silent

SELECTOR = "from longgame.selection.methods.random import RandomSelector\n\nclass Mine(RandomSelector):\n    pass\n"
RECIPE = """
name: q
model: {name: quadratic}
data: {sequence: quadratic, pool_size: 48, stages: [{name: a}, {name: b}]}
selectors: [random, "mine.py:Mine"]
seeds: [0]
rounds: 1
training: {steps: 4, warmup_steps: 1, learning_rate: 0.1}
probe: {steps: 2, points: 2}
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working directory with a folder `project`, where the recipe is."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_data(folder):
    (folder / "data" / "train").mkdir(parents=True)
    rows = [json.dumps({"prompt": f"{folder.name} {n}", "response": "yes"}) for n in range(3)]
    (folder / "data" / "train" / "toy.jsonl").write_text("\n".join(rows) + "\n")


def write_selector(folder):
    (folder / "mine.py").write_text(SELECTOR + f"    place = {folder.name!r}\n")


def write_scores(folder):
    (folder / "scores.csv").write_text(f"sample_id,score\n{folder.name},1\n")


def write_template(folder):
    (folder / "chat.jinja").write_text("{{ messages[0]['content'] }}\n" + folder.name + "{{ eos_token }}")


def write_model(folder):
    save(folder / "model", chat_tokenizer())
    (folder / "model" / "chat_template.jinja").write_text(
        "{{ messages[0]['content'] }}" + folder.name + "{{ eos_token }}"
    )


def write_judge(folder):
    (folder / "judge.yaml").write_text(f"model: {folder.name}\nurl: http://localhost:1/v1\n")


def write_encoder(folder):
    static_model(folder / "encoder")


def folder_of(place):
    """Name of the folder that holds a located file or folder."""
    return Path(place).resolve().parent.name


def encoder_folder():
    check_embedder("model2vec:./encoder")
    return folder_of(located("./encoder"))


def judge_model():
    return build_scorer("judge:judge.yaml").judge.options.model


def train_prompts(reference, data_dir=None):
    return load_examples(reference, data_dir=data_dir, split="train")[0].prompt


KINDS = {
    "file": (write_data, lambda: train_prompts("data/train/toy.jsonl")),
    "glob": (write_data, lambda: train_prompts("data/train/*.jsonl")),
    "folder": (write_data, lambda: train_prompts("data/train")),
    "data_dir": (write_data, lambda: train_prompts("toy", Path("data"))),
    "selector": (write_selector, lambda: build_selector("mine.py:Mine").place),
    "scores": (write_scores, lambda: build_selector("scores:scores.csv").file.ids[0]),
    "template": (write_template, lambda: load_tokenizer(ModelSpec(chat_template="chat.jinja")).chat_template),
    "model": (write_model, lambda: load_tokenizer(ModelSpec(name="./model")).chat_template),
    "scorer model": (write_model, lambda: folder_of(model_place("./model"))),
    "embedder": (write_encoder, encoder_folder),
    "judge": (write_judge, judge_model),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_is_found_in_the_first_folder_that_has_it(home, kind):
    write, read = KINDS[kind]
    with relative_to([home / "project", home]):
        with pytest.raises(LonggameError, match=r"nor in the working directory|matches no file|neither"):
            read()
        write(home)
        assert home.name in read()
        write(home / "project")
        assert "project" in read()
    assert home.name in read()


def test_a_located_path_is_relative_to_the_working_directory_below_it(home):
    write_scores(home / "project")
    with relative_to([home / "project", home]):
        assert located("scores.csv") == "project/scores.csv"
        assert located(str(home / "a")) == str(home / "a")
        assert located("none") == "project/none"
    assert located("scores.csv") == "scores.csv"


def test_a_recipe_names_the_folder_of_its_paths(home):
    file = home / "project" / "r.yaml"
    for text, folders in (
        ("", ["project", "."]),
        ("relative_to: ..\n", ["."]),
        ("relative_to: [data, .]\n", ["project/data", "project"]),
    ):
        file.write_text(RECIPE + text)
        assert load_recipe(file).relative_to == tuple(str((home / name).resolve()) for name in folders)
        assert load_recipe(file).relative_to == recipe_folders(file)
    assert load_recipe("quickstart").relative_to == (str(home),)


def test_options_mean_files_of_the_working_directory(home):
    folders = (str(home / "project"), str(home))
    write_selector(home)
    assert path_from_here("mine.py", folders) == "mine.py"
    write_selector(home / "project")
    assert path_from_here("mine.py", folders) == "../mine.py"
    (home / "mine.py").unlink()
    assert path_from_here("mine.py", folders) == "../mine.py"
    assert path_from_here(str(home / "mine.py"), folders) == str(home / "mine.py")


def test_a_selector_option_takes_a_label(home):
    entries = given_selectors(["loss", "mine=scores:s.csv", " a = ./x=1.py:C ", "./b=2.py:C", "old=lhas"], (str(home),))
    assert entries == [
        {"name": "loss"},
        {"name": "scores:s.csv", "label": "mine"},
        {"name": "./x=1.py:C", "label": "a"},
        {"name": "./b=2.py:C"},
        {"name": "lhas", "label": "old"},
    ]
    for wrong in ("=loss", "mine="):
        with pytest.raises(RecipeError, match="LABEL=NAME"):
            given_selectors([wrong], (str(home),))


@pytest.mark.parametrize(
    "changes",
    [
        {"model.scorer_model": "small"},
        {"model.embedder": "model2vec:small"},
        {"model.embedder": "sentence-transformers:small"},
        {"axes.vary": {"model.scorer_model": ["small"]}},
        {"axes.vary": {"model.chat_template": ["plain", "chat"]}},
        {"axes.vary": {"quality": ["judge:j.yaml"]}},
        {"selectors": [{"name": "svp", "inner": {"name": "mine.py:Mine"}}]},
        *(
            {"data.stages": [{"name": "a", "scorers": [name]}, {"name": "b"}]}
            for name in ("judge:judge.yaml", "judge(file = small)", "lm_eval:arc_easy(include=small, limit=0.5)")
        ),
    ],
    ids=str,
)
def test_a_run_stores_where_its_relative_paths_start(home, changes):
    (home / "project" / "small").mkdir()
    file = home / "project" / "r.yaml"
    file.write_text(RECIPE.replace(', "mine.py:Mine"', ""))
    assert load_recipe(file).stored_in(home / "runs").relative_to == ()
    assert load_recipe(file, changes).stored_in(home / "runs").relative_to == ("../project", "..")
    plain = {"data.stages": [{"name": "a", "scorers": ["lm_eval:arc_easy(limit=0.5)"]}, {"name": "b"}]}
    assert load_recipe(file, plain).stored_in(home / "runs").relative_to == ()


JUDGED = {"judge.yaml", "rubric.jinja"}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"quality": "judge:judge.yaml,cache=replies"}, JUDGED),
        ({"complexity": {"name": "judge", "file": "judge.yaml", "cache": "replies"}}, JUDGED),
        ({"axes.vary": {"quality": ["judge:judge.yaml"]}}, JUDGED),
        ({"selectors": [{"name": "svp", "inner": {"name": "mine.py:Mine"}}]}, {"mine.py:Mine"}),
        *(
            ({"data.stages": [{"name": stage, "scorers": [name]} for stage in "ab"]}, names)
            for name, names in (
                ("judge:judge.yaml", JUDGED),
                ("judge(file = judge.yaml, cache=replies)", JUDGED),
                ("lm_eval:arc_easy(include=tasks, limit=0.5)", {"tasks"}),
            )
        ),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),  # the same in every process
)
def test_a_node_must_have_every_file_that_a_recipe_names(home, changes, names):
    folder = home / "project"
    (folder / "tasks").mkdir()
    for name in ("rubric.jinja", "replies", "tasks/mine.yaml"):
        (folder / name).write_text("{{ instruction }}")
    (folder / "judge.yaml").write_text("{model: m, rubric: rubric.jinja, low: 1, high: 5, views: 1}")
    write_selector(folder)
    (folder / "r.yaml").write_text(RECIPE.replace(', "mine.py:Mine"', ""))
    recipe = load_recipe(folder / "r.yaml", changes)
    before = contents_of(recipe)
    assert set(before) == names
    (folder / "rubric.jinja").write_text("{{ response }}")
    assert (contents_of(recipe) != before) == (names == JUDGED)


def numbers(run):
    return run.results[run.results.unit != "s"].reset_index(drop=True)


def test_a_run_is_resumed_from_any_working_directory(home, monkeypatch):
    file = home / "project" / "r.yaml"
    file.write_text(RECIPE)
    write_selector(home / "project")
    monkeypatch.setattr("longgame.report.render.html_page", lambda *_: "")
    audit = {"workers": 1, "threads": 1, "display": Silent()}
    first = run_audit(load_recipe(file), home / "runs" / "q", **audit)
    stored = (home / "runs" / "q" / "recipe.yaml").read_text()
    assert "mine.py:Mine" in stored
    assert str(home) not in stored
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    again = Run.open(home / "runs" / "q")
    assert again.recipe == first.recipe
    wider = again.recipe.replace({"seeds": (0, 1)})
    more = run_audit(wider, home / "runs" / "q", **audit)
    assert more.finished
    values = numbers(more)
    np.testing.assert_array_equal(values[values.seed == 0].value, numbers(first).value)
    run_audit(load_recipe(file).replace({"seeds": (0, 1)}), home / "runs" / "q", **audit)


def test_where_files_are_is_no_part_of_a_key(home):
    write_selector(home)
    file = home / "r.yaml"
    file.write_text(RECIPE)
    recipe = load_recipe(file)
    places = ((), (str(home),), ("/x", "/y"))
    keys = {Run(home, recipe.replace({"relative_to": place})).seed_store(0).key for place in places}
    assert len(keys) == 1
    with pytest.raises(RecipeError, match="cannot vary 'relative_to'"):
        Plan(recipe.replace({"axes": recipe.axes.model_copy(update={"vary": {"relative_to": ("a",)}})}))


def test_a_run_cannot_stand_in_for_a_file_that_its_reader_names(home):
    """A stranger's run with a file of the same name: the option still means the reader's own file."""
    stranger = home / "project"
    (stranger / "recipe.yaml").write_text(RECIPE + "relative_to: .\n")
    write_selector(stranger)
    write_selector(home)
    changes = recipe_changes(stranger / "recipe.yaml", added_selectors=["mine.py:Mine"])
    recipe = load_recipe(stranger / "recipe.yaml", changes)
    names = [spec["name"] for spec in given_selectors(["mine.py:Mine"], recipe_folders(stranger / "recipe.yaml"))]
    assert names == ["../mine.py:Mine"]
    with recipe.paths():
        assert file_of(names[0]).resolve() == home / "mine.py"
    with pytest.raises(RecipeError, match=r"names code that would be run: mine\.py:Mine\. "):
        check_trusted(Plan(recipe), stranger, names)


def test_recipes_of_two_folders_never_share_data(home):
    for folder in (home, home / "project"):
        write_data(folder)
        rows = [json.dumps({"prompt": f"{folder.name} eval {n}", "response": "yes"}) for n in range(2)]
        (folder / "eval.jsonl").write_text("\n".join(rows) + "\n")
        text = (
            "name: f\nselectors: [random]\nmodel: {name: tiny}\ntraining: {steps: 2}\nprobe: {steps: 1, points: 2}\n"
            "proxy: {items_per_skill: 0}\ndata: {sequence: files, pool_size: 2, items_per_skill: 1, "
            "stages: [{name: a, train: [data/train/toy.jsonl], eval: [eval.jsonl]}]}\n"
        )
        (folder / "r.yaml").write_text(text)
    prompts = [
        sequence_of(load_recipe(file), 0).stages[0].candidates[0].prompt
        for file in (home / "r.yaml", home / "project" / "r.yaml")
    ]
    assert prompts[1].startswith("project")
    assert not prompts[0].startswith("project")
