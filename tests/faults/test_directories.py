"""A directory that an audit did not make is never written to, whatever lies in it."""

import shutil

import pytest
import yaml

from longgame.audit.run import Run
from longgame.errors import LonggameError, ResumeError
from support.cli import longgame_here
from support.quadratic_audit import recipe, walk
from support.run_parts import as_older_version

RECIPE = yaml.safe_dump(recipe(seeds=[0]).model_dump(mode="json"))

FOREIGN = {
    "a recipe alone": {"recipe.yaml": RECIPE},
    "a recipe and an environment": {"recipe.yaml": RECIPE, "environment.json": '{"mine": 1}'},
    "a recipe and downloads": {"recipe.yaml": RECIPE, "film.part": "x", "data/a.jsonl.part": "x", "data/b/c.part": "x"},
    "scratch of another program": {"thesis.1234.part": "x"},
    "a lock and a note": {"audit.lock": "", "note.txt": "x"},
    "another run.json": {"run.json": '{"format": 1}', "recipe.yaml": RECIPE},
    "a table of results": {"results.parquet": "mine", "recipe.yaml": RECIPE},
    "deep done.json of another program": {"recipe.yaml": RECIPE, "a/b/c/done.json": '{"ok": true}'},
    "no JSON in done.json": {"recipe.yaml": RECIPE, "a/b/c/done.json": "yes"},
    "a hidden file": {".git/config": "x"},
    "a folder": {"src/": ""},
    "a link to nothing": {"link": None},
}


def lay_out(folder, files):
    folder.mkdir()
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            path.symlink_to("nowhere")
        elif name.endswith("/"):
            path.mkdir()
        else:
            path.write_text(text)


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_foreign_directories_are_left_alone(tmp_path, files):
    lay_out(tmp_path / "proj", files)
    (tmp_path / "r.yaml").write_text(RECIPE)
    before = contents(tmp_path)
    calls = [
        (["audit", "r.yaml", "--out", "proj"], tmp_path, "is not empty and holds no run"),
        (["audit", "../r.yaml", "--out", "."], tmp_path / "proj", "is not empty and holds no run"),
        (["audit", "proj"], tmp_path, "is a directory without a run"),
        (["report", "proj"], tmp_path, "holds no run"),
        (["compare", "proj"], tmp_path, "holds no run"),
        (["watch", "proj", "--once"], tmp_path, "holds no run"),
    ]
    for arguments, cwd, sentence in calls:
        done = longgame_here(*arguments, cwd=cwd)
        assert done.returncode, arguments
        assert sentence in done.stderr, arguments
        assert contents(tmp_path) == before, arguments
    with pytest.raises(LonggameError, match="holds no run"):
        Run.create(tmp_path / "proj", recipe())


def test_only_scratch_of_a_run_is_deleted(tmp_path):
    run, _ = walk(tmp_path / "q", seeds=[0])
    shutil.rmtree(run.folder / "trials" / "loss-s0")
    mine = ["film.part", "results.parquet.part", "notes.12.part", "trials/loss-s0/film.3.part", "seeds/x.7.part"]
    stale = [
        "results.parquet.12.part",
        "run.json.7.part",
        "trials/loss-s0/stage-3.99.part/x",
        "trials/loss-s0/stage-3.zip.99.part",
        "seeds/seed-0/base.1.part/x",
    ]
    for name in (*mine, *stale):
        (run.folder / name).parent.mkdir(exist_ok=True)
        (run.folder / name).write_text("x")
    walk(run.folder, seeds=[0])
    assert [name for name in mine if not (run.folder / name).is_file()] == []
    assert [name for name in stale if (run.folder / name).exists()] == []


def test_a_run_of_an_older_version_is_known_by_its_stages(tmp_path):
    run, _ = walk(tmp_path / "q", seeds=[0])
    as_older_version(run.folder, lambda mark: {"key": mark["key"]})
    (run.folder / "run.json").unlink()
    text = (run.folder / "recipe.yaml").read_text().split("\n", 1)[1]
    (run.folder / "recipe.yaml").write_text(text)
    unplaced = {"relative_to": ()}
    assert Run.open(run.folder).recipe.replace(unplaced) == run.recipe.replace(unplaced)
    again, done = walk(run.folder, seeds=[0, 1])
    assert sorted(done) == ["loss-s1", "random-s1"]
    assert (run.folder / "run.json").is_file()
    assert Run.open(again.folder).recipe.seeds == (0, 1)


@pytest.mark.parametrize(
    "edit", [lambda text: text.replace("budget: 0.25", "budget: 0.5"), lambda text: "#" + text, str.upper]
)
def test_an_edited_recipe_of_a_run_is_refused_by_name(tmp_path, edit):
    run, _ = walk(tmp_path / "q", seeds=[0])
    file = run.folder / "recipe.yaml"
    file.write_text(edit(file.read_text()))
    for call in (Run.open, lambda folder: walk(folder, seeds=[0])):
        with pytest.raises(ResumeError, match=r"recipe\.yaml was edited or damaged .* Put it back"):
            call(run.folder)
    file.unlink()
    with pytest.raises(ResumeError, match=r"recipe\.yaml cannot be read .*Put it back"):
        Run.open(run.folder)
