"""Files and folders without permission: one sentence that names them, at every entry point."""

import contextlib
import ctypes
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from longgame.audit.learner import sequence_of
from longgame.data.score_files import read_scores
from longgame.data.sources import load_examples
from longgame.errors import DataError, LonggameError, ModelError, ResumeError, StorageError
from longgame.models.load import load_model
from longgame.recipe import ModelSpec
from longgame.storage import read_state, write_state
from support.cli import longgame_here
from support.quadratic_audit import walk

SMALL = {"seeds": [0], "metrics": {"bootstrap": 100}, "full_data": True}
_OVERRIDES = 0b110
"""Root's rights to write and to read whatever the mode of a file says (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)."""


@contextlib.contextmanager
def user_without_rights():
    """The modes of files count, for root, too, whose overrides are given up for a while."""
    if os.geteuid():
        yield
        return
    libc, header, rights = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, rights) == 0
    before = rights[0]
    rights[0] = before & ~_OVERRIDES
    assert libc.capset(header, rights) == 0
    try:
        yield
    finally:
        rights[0] = before
        assert libc.capset(header, rights) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rights") / "home"
    run, _ = walk(folder / "q", **SMALL)
    text = yaml.safe_dump(run.recipe.model_dump(mode="json"))
    (folder / "r.yaml").write_text(text)
    ids = sequence_of(run.recipe, 0).stages[0].candidates
    (folder / "s.csv").write_text("sample_id,score\n" + "".join(f"{item.sample_id},1\n" for item in ids))
    (folder / "p.py").write_text("from longgame import Selector\n\n\nclass Mine(Selector):\n    name = 'mine'\n")
    (folder / "closed").mkdir()
    write_state(folder, "state", {"a": np.arange(3)})
    return folder


@pytest.fixture(scope="module")
def reported(made, tmp_path_factory):
    """A copy of it whose run has its report."""
    folder = tmp_path_factory.mktemp("reported") / "home"
    shutil.copytree(made, folder)
    assert longgame_here("audit", "q", cwd=folder).returncode == 0
    return folder


@pytest.fixture
def home(made, tmp_path):
    """A copy of it, which can be deleted afterwards."""
    shutil.copytree(made, tmp_path / "home")
    yield tmp_path / "home"
    (tmp_path / "home").chmod(0o755)
    for path in (tmp_path / "home").rglob("*"):
        path.chmod(0o755)


def close(home, names, mode=0):
    for name in names:
        for path in sorted(home.glob(name), reverse=True):
            path.chmod(mode)


CALLS = {
    "a recipe": (["r.yaml"], ("audit", "r.yaml"), "r.yaml"),
    "a recipe for pools": (["r.yaml"], ("pools", "r.yaml", "--out", "c"), "r.yaml"),
    "a run to report": (["q"], ("report", "q"), "q"),
    "a run to compare": (["q"], ("compare", "q"), "q"),
    "a run to watch": (["q"], ("watch", "q", "--once"), "q"),
    "a run to resume": (["q"], ("audit", "q"), "q"),
    "a run as output": (["q"], ("audit", "r.yaml", "--out", "q"), "q"),
    "a run to estimate": (["q"], ("audit", "q", "--dry-run"), "q"),
    "a run for pools": (["q"], ("pools", "q", "--out", "c"), "q"),
    "a baseline": (["q"], ("report", "r", "--compare", "q"), "q"),
    "the recipe of a run": (["q/recipe.yaml"], ("report", "q"), "recipe.yaml"),
    "the recipe of a run to resume": (["q/recipe.yaml"], ("audit", "q"), "recipe.yaml"),
    "the trials of a run": (["q/trials"], ("report", "q"), "q"),
    "the stages of a trial": (["q/trials/loss-s0"], ("report", "q"), "loss-s0"),
    "a stage of a trial": (["q/trials/loss-s0/stage-3.zip"], ("report", "q"), "stage-3.zip"),
    "stages of trials": (["q/trials/*/*.zip", "q/results.parquet"], ("report", "q"), "stage-1.zip"),
    "shared work": (["q/seeds/*/*.zip"], ("report", "q"), "base.zip"),
    "the environment of a run": (["q/environment.json"], ("report", "q"), "environment.json"),
    "a folder for a run": (["closed"], ("audit", "r.yaml", "--out", "closed/new"), "closed"),
    "a folder for pages": (["closed"], ("report", "q", "--out", "closed/r.html"), "closed"),
    "a folder for Markdown": (["closed"], ("report", "q", "--markdown", "closed/r.md"), "closed"),
    "a folder for cards": (["closed"], ("report", "q", "--card", "closed/r.md"), "closed"),
    "a folder for figures": (["closed"], ("report", "q", "--figures", "closed/f"), "closed"),
    "a folder for comparisons": (["closed"], ("compare", "q", "--out", "closed/c.csv"), "closed"),
    "a folder for their figures": (["closed"], ("compare", "q", "--figures", "closed/f"), "closed"),
    "a folder for pools of candidates": (["closed"], ("pools", "r.yaml", "--out", "closed/c"), "closed"),
    "scores": (["s.csv"], ("audit", "r.yaml", "--selector", "scores:s.csv", "--out", "n"), "s.csv"),
    "a selector": (["p.py"], ("audit", "r.yaml", "--selector", "p.py:Mine", "--out", "n"), "p.py"),
    "data": (["closed"], ("audit", "r.yaml", "--data-dir", "closed/d", "--out", "n"), "closed"),
}  # fmt: skip


@pytest.mark.parametrize(("names", "arguments", "place"), CALLS.values(), ids=CALLS)
def test_what_may_not_be_read_or_written_is_named(home, names, arguments, place, monkeypatch):
    monkeypatch.setattr("longgame.report.render.html_page", lambda *_: "page")
    if "r" in arguments:
        shutil.copytree(home / "q", home / "r")
    close(home, names)
    with user_without_rights():
        done = (
            longgame_here(*arguments, "--workers", "1", cwd=home)
            if arguments[0] == "audit"
            else longgame_here(*arguments, cwd=home)
        )
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert place in done.stderr, done.stderr
    assert "ermission" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("longgame: ") == 1, done.stderr


OUTPUTS = {
    "a page here": (".", ("report", "q"), "report.html"),
    "a run here": (".", ("audit", "r.yaml"), "runs"),
    "a page in the run": ("q", ("report", "q", "--out", "q/report.html"), "report.html"),
    "a new trial in a run": ("q", ("audit", "r.yaml", "--out", "q", "--seeds", "0,1"), "q"),
    "a new trial beside others": ("q/trials", ("audit", "r.yaml", "--out", "q", "--seeds", "0,1"), "trials"),
}


@pytest.mark.parametrize(("folder", "arguments", "place"), OUTPUTS.values(), ids=OUTPUTS)
def test_a_folder_that_may_only_be_read_keeps_what_it_has(home, folder, arguments, place):
    before = {path: path.read_bytes() for path in (home / folder).rglob("*") if path.is_file()}
    (home / folder).chmod(0o555)
    with user_without_rights():
        done = longgame_here(*arguments, cwd=home)
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert place in done.stderr, done.stderr
    assert "ermission" in done.stderr, done.stderr
    assert done.stderr.count("longgame: ") == 1
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    "command", [("report", "q", "--fail-if", "worse(*)"), ("watch", "q", "--once"), ("audit", "q")]
)
def test_a_finished_run_is_shown_where_nothing_can_be_written(home, reported, command):
    shutil.copytree(reported / "q", home / "q", dirs_exist_ok=True)
    for path in (home, *home.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    with user_without_rights():
        done = longgame_here(*command, cwd=home)
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout
    assert done.stderr == ""


ROW = '{"prompt": "p", "response": "r"}\n'
READ = {
    "jsonl": ("d.jsonl", load_examples, DataError),
    "gzip": ("d.jsonl.gz", load_examples, DataError),
    "parquet": ("d.parquet", load_examples, DataError),
    "scores": ("s.csv", read_scores, DataError),
    "scores in JSON": ("s.jsonl", read_scores, DataError),
    "scores in Parquet": ("s.parquet", read_scores, DataError),
    "a chat template": (
        "t.jinja", lambda path: load_model(ModelSpec(name="tiny", chat_template=path)), ModelError),
    "a state": ("state.json", lambda path: read_state(Path(path).parent, "state"), ResumeError),
    "tensors of a state": ("state.safetensors", lambda path: read_state(Path(path).parent, "state"), ResumeError),
}  # fmt: skip


@pytest.mark.parametrize(("name", "read", "error"), READ.values(), ids=READ)
def test_a_closed_file_is_named_by_what_reads_it(home, name, read, error):
    path = home / name
    path.write_text(ROW) if not path.exists() else None
    path.chmod(0)
    with user_without_rights(), pytest.raises(error, match=r"[Pp]ermission") as caught:
        read(str(path)) if read is not load_examples else read(str(path), data_dir=None, split="eval")
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "."])
def test_a_closed_file_of_a_model_is_one_sentence(home, name):
    import longgame

    folder = home / "model"
    shutil.copytree(Path(longgame.__file__).parent / "assets" / "tiny", folder)
    (folder / name).chmod(0)
    with user_without_rights(), pytest.raises(LonggameError) as caught:
        load_model(ModelSpec(name=str(folder)))
    assert "model" in str(caught.value)


def test_a_state_in_a_closed_folder_is_one_sentence(home):
    home.chmod(0o555)
    with user_without_rights(), pytest.raises(StorageError, match="Permission denied"):
        write_state(home, "new", {"a": 1})
