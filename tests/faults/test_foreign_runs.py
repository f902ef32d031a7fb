"""A run directory of a stranger: reading it reads its own files, and its recipe runs no code unasked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from unittest import mock

import pytest
import yaml

from longgame.audit.learner import learner_kind, outline, sequence_of
from longgame.audit.parts import FinishedPart
from longgame.audit.picks import texts_of, write_selection
from longgame.errors import RecipeError
from longgame.limits import load_yaml
from longgame.recipe import load_recipe, parse_recipe
from support.run_parts import selection
from tests.support.cli import longgame_here
from tests.support.quadratic_audit import recipe as quadratic_recipe
from tests.support.quadratic_audit import walk

PLUGIN = """
import pathlib

from longgame import Selector

pathlib.Path(__file__).with_name("ran").touch()


class Mine(Selector):
    name = "mine"

    def score(self, pool, signals, history):
        return pool.tokens
"""
READ = [("report", "--out", "r.html"), ("watch", "--once"), ("compare",), ("audit", "--dry-run")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign") / "run"
    walk(folder, full_data=True)
    return folder


@pytest.fixture
def foreign(finished, tmp_path):
    """A copy of a finished run, with a function that edits its recipe."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)

    def edit(**changes):
        first, _, text = (folder / "recipe.yaml").read_text().partition("\n")
        text = yaml.safe_dump(yaml.safe_load(text) | changes)
        digest = hashlib.sha256(text.encode()).hexdigest()  # whoever writes a recipe can seal it
        (folder / "recipe.yaml").write_text(f"{first[:-64]}{digest}\n{text}")
        return folder

    return edit


def read(folder, command, *options):
    start = time.monotonic()
    done = longgame_here(command, folder, *options, cwd=folder.parent)
    assert time.monotonic() - start < 60, command
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("command", READ, ids=lambda command: command[0])
def test_reading_a_run_imports_no_file_of_its_recipe(foreign, command):
    folder = foreign()
    (folder / "p.py").write_text(PLUGIN)
    plugin = f"{folder}/p.py:Mine"
    selectors = [{"name": "random"}, {"name": "loss"}, {"name": plugin, "label": "mine"}]
    stages = [{"name": name, "scorers": ["token_accuracy", plugin]} for name in "abc"]
    data = yaml.safe_load((folder / "recipe.yaml").read_text())["data"]
    foreign(selectors=selectors, data={**data, "stages": stages})
    read(folder, *command)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("command", READ, ids=lambda command: command[0])
@pytest.mark.parametrize("reference", ["local.jsonl", "hub:owner/name"])
def test_reading_a_run_reads_no_data_of_its_recipe(foreign, tmp_path, command, reference):
    secret = tmp_path / "local.jsonl"
    secret.write_text(json.dumps({"prompt": "SECRET", "response": "r"}) + "\n")
    name = str(secret) if reference == "local.jsonl" else reference
    stages = [{"name": stage, "train": [name], "eval": [name]} for stage in "abc"]
    folder = foreign(model={"name": "owner/model"}, data={"sequence": "files", "stages": stages})
    with mock.patch("longgame.data.sequences.load_examples", side_effect=AssertionError("data were read")):
        read(folder, *command)
    page = tmp_path / "r.html"
    assert not page.exists() or "SECRET" not in page.read_text()


@pytest.mark.parametrize("command", READ, ids=lambda command: command[0])
@pytest.mark.parametrize("sequence", ["quadratic", "procedural-skill"])
def test_reading_a_run_makes_no_pool(foreign, command, sequence):
    model = {"name": "quadratic" if sequence == "quadratic" else "tiny"}
    read(foreign(model=model, data={"sequence": sequence, "pool_size": 10**8}), *command)


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": list(range(600)), "axes": {"vary": {"data.noise": [n / 1e3 for n in range(1, 101)]}}},
        {
            "axes": {
                "cross": True,
                "vary": {f"data.{key}": [n / 1e6 for n in range(500)] for key in ("noise", "unseen")},
            }
        },
        {"axes": {"order": {"permutations": 10**9}}},
        {"metrics": {"bootstrap": 10**9}},
    ],
)
@pytest.mark.parametrize("command", READ, ids=lambda command: command[0])
def test_a_recipe_that_asks_for_millions_is_an_error(foreign, command, changes):
    done = read(foreign(**changes), *command)
    assert done.returncode != 0
    assert done.stderr.startswith("longgame: ")


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
YAMLS = {
    "nested aliases": (BOMB, "aliases stand for more than 100,000 values"),
    "alias in itself": ("a: &a [*a]", "its aliases stand for"),
    "depth": ("[" * 20_000, "nested too deeply"),
    "a number of many digits": (f"a: {'9' * 5000}", "not valid YAML"),
    "an impossible date": ("a: 2001-13-40", "not valid YAML"),
    "a tag that runs code": ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
    "size": ("a: " + "x" * 2_000_000, "bytes; give at most"),
}


@pytest.mark.parametrize(("text", "message"), YAMLS.values(), ids=YAMLS)
def test_a_yaml_that_grows_is_one_sentence(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "r.yaml")


def test_ordinary_aliases_are_read():
    assert load_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}


def test_merged_keys_may_be_overridden_and_written_ones_not():
    text = "a: {<<: &b {<<: &c {x: 1, y: 1}, x: 2}}\nb: *b\nc: {<<: [*b, *c], y: 3}"
    assert load_yaml(text) == {"a": {"x": 2, "y": 1}, "b": {"x": 2, "y": 1}, "c": {"x": 2, "y": 3}}
    for twice in ("a: 1\n'a': 2", "c: {<<: {x: 1, x: 2}}", "a: &b {x: 1, x: 2}\nc: {<<: *b}", "yes: 1\ntrue: 2"):
        with pytest.raises(ValueError, match="stands twice"):
            load_yaml(twice)


def test_a_time_of_day_is_a_text_and_no_number():
    assert load_yaml("a: 1:30\nb: [2:05:00, 1:30.5, 7]") == {"a": "1:30", "b": ["2:05:00", "1:30.5", 7]}
    with pytest.raises(RecipeError, match=r"training\.steps.*1:30"):
        parse_recipe(load_yaml("{name: r, training: {steps: 1:30}}"))


def test_code_of_a_run_directory_needs_a_word(foreign, tmp_path):
    (tmp_path / "p.py").write_text(PLUGIN)
    plugin = f"{tmp_path}/p.py:Mine"
    folder = foreign(selectors=[{"name": "random"}, {"name": "loss"}, {"name": plugin, "label": "mine"}])
    for path in (folder, folder / "recipe.yaml"):
        refused = read(path, "audit", "--workers", 1) if path is folder else longgame_here("audit", path, cwd=tmp_path)
        assert refused.returncode == 2
        assert "--trust-code" in refused.stderr
        assert not (tmp_path / "ran").exists()
    trusted = read(folder, "audit", "--workers", 1, "--trust-code")
    assert trusted.returncode == 0, trusted.stderr
    assert (tmp_path / "ran").exists()


STAGE = {"name": "s", "train": ["/etc/passwd"], "eval": ["hub:owner/name"]}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"data": {"sequence": "files", "stages": [STAGE]}}, "/etc/passwd, hub:owner/name"),
        ({"model": {"name": "owner/model"}, "data": {}}, "owner/model"),
        ({"model": {"per_seed": ["tiny", "/home"]}, "data": {}}, "/home"),
        ({"model": {"name": "tiny", "chat_template": "/etc/passwd"}, "data": {}}, "/etc/passwd"),
        ({"model": {"name": "tiny", "trust_remote_code": True}, "data": {}}, "model.trust_remote_code"),
        ({"selectors": ["random", "p.py:Mine"]}, "p.py:Mine"),
    ],
)
def test_pools_of_a_run_directory_need_a_word(foreign, changes, name):
    folder = foreign(**changes)
    with mock.patch("longgame.commands.pools.write_pools", side_effect=AssertionError("pools were made")):
        for path in (folder, folder / "recipe.yaml"):
            refused = longgame_here("pools", path, "--out", "c", cwd=folder.parent)
            assert refused.returncode == 2, refused.stderr
            assert f"names what would be read: {name}" in " ".join(refused.stderr.split())
            assert "--trust-code" in refused.stderr
    assert not (folder.parent / "c").exists()
    with mock.patch("longgame.commands.pools.write_pools", return_value={}):
        assert longgame_here("pools", folder, "--out", "c", "--trust-code", cwd=folder.parent).returncode == 0


def test_pools_of_a_run_of_the_package_are_written(foreign, tmp_path):
    done = longgame_here("pools", foreign(), "--out", "c", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "c" / "candidates.parquet").is_file()


@pytest.mark.parametrize("order", [(), (2, 0, 1)])
@pytest.mark.parametrize("sequence", ["quadratic", "procedural-skill", "procedural-interleaved", "procedural"])
def test_the_outline_is_that_of_the_data(sequence, order):
    if sequence == "quadratic":
        recipe = quadratic_recipe(data={"sequence": sequence, "stages": [{"name": name} for name in "abc"]})
    else:
        skills = {"x": ["past-tense"], "y": ["chain-sum"], "z": ["redact"]}
        stages = [{"name": name, "skills": of, "scorers": ["exact_match"]} for name, of in skills.items()]
        data = {"sequence": sequence, "stages": stages if sequence == "procedural" else [], "pool_size": 40}
        recipe = parse_recipe({"name": "r", "data": data, "selectors": ["random"], "training": {"steps": 2}})
    names = learner_kind(recipe).stages(recipe)
    rows = order and (*order, *range(3, len(names)))
    recipe = recipe.replace({"data.order": tuple(names[row] for row in rows)})
    sequence_data = sequence_of(recipe, 0)
    parts = outline(recipe)
    assert parts.stages == tuple(stage.task.name for stage in sequence_data.stages)
    assert parts.ood == tuple(task.name for task in sequence_data.ood)
    assert parts.primary == {task.name: task.scorers[0] for task in sequence_data.tasks}


def test_a_run_stores_the_texts_that_its_report_shows(finished, tmp_path):
    table = selection(finished, "loss-s0", 1)
    names = table["sample_id"].unique()
    texts = {name: (f"prompt of {name}", "r" * 20_000) for name in names}
    write_selection(tmp_path / "s.parquet", table, texts)
    stored = texts_of((tmp_path / "s.parquet").read_bytes(), tmp_path / "s.parquet")
    assert set(stored) < set(names)
    assert len(stored) == 6
    for name, (prompt, response) in stored.items():
        assert prompt == f"prompt of {name}"
        assert len(response) < 10_010
    part = FinishedPart(finished / "trials" / "loss-s0" / "stage-1.zip")
    assert texts_of(part.read("selection.parquet"), part.path) == {}


STRANGE = [
    "run.json",
    "recipe.yaml",
    "environment.json",
    "results.parquet",
    "measured.safetensors",
    "tables.json",
    "trials/loss-s0/stage-1.zip",
    "trials/loss-s0/stage-3.zip",
    "seeds/seed-0/base.zip",
]


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_run_with_a_pipe_or_device_for_a_file_does_not_hang(foreign, name, kind):
    path = foreign() / name
    if not path.parent.is_dir():
        pytest.skip(f"this run has no {path.parent}")
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    start = time.monotonic()
    done = longgame_here("report", path.parents[len(Path(name).parts) - 1], cwd=path.parents[len(Path(name).parts)])
    assert time.monotonic() - start < 60
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or done.stderr.startswith("longgame: ")


def test_a_loop_of_links_is_no_run(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for command in (("report", "loop"), ("compare", "loop"), ("watch", "loop", "--once"), ("audit", "loop")):
        done = longgame_here(*command, cwd=tmp_path)
        assert done.returncode in (1, 2), command
        assert done.stderr.startswith("longgame: "), command
