"""Options of the command line, without starting a process."""

import re

import pytest
import typer
from typer.testing import CliRunner

import longgame
from longgame.cli import _application, app
from longgame.commands.options import parse_seeds, varied_keys
from longgame.errors import RecipeError
from support.cli import longgame_here, run_python


def test_seeds_are_numbers_and_ranges():
    assert parse_seeds("0, 2-4,7") == [0, 2, 3, 4, 7]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "write numbers like"),
        ("0,,1", "write numbers like"),
        ("-1", "write numbers like"),
        ("²", "write numbers like"),
        ("4-0", "4 is more than 0; write 0-4"),
        ("0-999999999", "at most 10000"),
    ],
)
def test_seeds_that_cannot_be_meant_are_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        parse_seeds(text)


def test_an_installed_selector_that_cannot_be_imported_does_not_hide_the_others(tmp_path, monkeypatch):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[longgame.selectors]\nbroken = no_such_module:Bad\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    done = CliRunner().invoke(app, ["selectors"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert "cannot be used: selector 'broken' failed in the import of no_such_module:Bad" in done.output
    assert "utility-diversity" in done.output


SMALL = "name: a\nselectors: [loss]\ndata: {pool_size: 60}\ntraining: {steps: 4, warmup_steps: 1}\n"


def test_an_axis_on_the_command_line_leaves_the_recipe_s_other_varied_keys(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(SMALL + "axes: {vary: {data.noise: [0.3], data.unseen: [0.0]}}\n")
    asked = ["audit", str(path), "--dry-run", "--axis", "data.duplicates=0.2", "--axis", "data.unseen=0.5"]
    done = CliRunner().invoke(app, asked, env={"COLUMNS": "250"})
    told = " ".join(done.output.split())
    assert varied_keys(path) == {"data.noise": [0.3], "data.unseen": [0.0]}
    assert done.exit_code == 0, done.output
    for name, there in [("noise=0.3", True), ("duplicates=0.2", True), ("unseen=0.5", True), ("unseen=0.0", False)]:
        assert (f"data.{name}" in told) is there


def test_a_model_on_the_command_line_stands_instead_of_base_models_by_seed(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(SMALL + "seeds: [0, 1]\nmodel: {per_seed: [none, neither]}\n")
    done = CliRunner().invoke(app, ["audit", str(path), "--dry-run", "--model", "tiny"])
    assert done.exit_code == 0, done.output
    assert "neither" not in done.output
    assert "Evaluation prompts in the pools (seed 0): of 300 candidates 0 have" in " ".join(done.output.split())


def test_help_of_every_command_has_an_example_that_starts_with_it():
    for name, command in typer.main.get_command(app).commands.items():
        assert f"Example: longgame {name} " in command.help


def test_the_home_folder_is_meant_behind_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "d.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 2)
    done = longgame_here(
        "select", "d.jsonl", "--selector=random", "--budget=1rows", "--out=~/s.jsonl", "--card", "~/c.md", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "home").iterdir()}
    assert names == {"s.jsonl", "s.manifest.json", "s.html", "c.md"}
    assert {path.name for path in tmp_path.iterdir()} == {"home", "d.jsonl"}


def test_the_version_is_told_without_loading_the_commands(tmp_path):
    done = run_python(["-X", "importtime", "-m", "longgame.cli", "--version"], tmp_path)
    assert done.stdout == f"longgame {longgame.__version__}\n"
    assert "longgame.errors" in done.stderr
    assert not re.search(r"pandas|torch|scipy|longgame\.commands\.", done.stderr)


def modules_of(*arguments, cwd):
    """Modules that a command has loaded when it ends."""
    told = "atexit.register(lambda: print(*sys.modules, file=sys.stderr))"
    code = f"import atexit, sys; from longgame.cli import main; {told}; main()"
    return set(run_python(["-c", code, *arguments], cwd).stderr.split())


def test_help_loads_no_library_of_models_or_of_the_hub(tmp_path):
    loaded = modules_of("--help", cwd=tmp_path)
    assert "longgame.commands.select" in loaded
    assert not loaded & {"torch", "transformers", "datasets", "huggingface_hub", "peft", "ray", "scipy"}


@pytest.mark.parametrize("name", typer.main.get_command(app).commands)
def test_a_command_that_is_named_is_loaded_alone_and_as_among_the_others(name):
    (alone,) = (commands := typer.main.get_command(_application(name)).commands).values()
    among = typer.main.get_command(app).commands[name]
    assert list(commands) == [name]
    assert alone.callback.__wrapped__ is among.callback.__wrapped__
    assert (alone.help, alone.rich_help_panel) == (among.help, among.rich_help_panel)
    assert alone.context_settings == among.context_settings


def test_a_command_loads_no_other(tmp_path):
    loaded = modules_of("watch", "--help", cwd=tmp_path)
    commands = {name for name in loaded if name.startswith("longgame.commands.")}
    assert commands == {"longgame.commands.terminal", "longgame.commands.watch"}
