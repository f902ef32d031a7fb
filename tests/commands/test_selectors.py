"""What `selectors` and `check-selector` print, and their exit codes."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longgame.cli import app
from longgame.commands.selectors import meaning_of
from longgame.errors import PluginError, RecipeError
from longgame.selection.base import SELECTORS, build_selector, notes_of
from longgame.selection.families import needs_of
from longgame.signals.base import SIGNALS, cost_class
from longgame.testing import CONTRACT

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "my_selector.py") + ":MySelector"


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "250"})


def words(output: str) -> str:
    return " ".join(output.split())


def test_the_list_has_paper_needs_and_cost_of_each() -> None:
    done = run("selectors")
    assert done.exit_code == 0
    lines = {line.split("│")[1].strip(): line for line in done.output.splitlines() if line.startswith("│")}
    assert set(SELECTORS.names()) <= set(lines)
    cells = [cell.strip() for cell in lines["ifd"].split("│")]
    assert [cells[2], *cells[4:7]] == [
        "loss",
        "model",
        "2F",
        "Li et al. 2024, arXiv 2308.12032",
    ]
    assert "quality column or rules" in lines["qdit"]


def test_list_in_a_narrow_terminal_keeps_names_and_is_short() -> None:
    done = CliRunner().invoke(app, ["selectors"], env={"COLUMNS": "80"})
    lines = done.output.splitlines()
    assert {line.split()[0] for line in lines if line.strip()} >= set(SELECTORS.names())
    assert max(map(len, lines)) <= 80
    assert len(lines) < 5 * len(SELECTORS.names())
    assert "longgame selectors NAME (its paper" in words(done.output)


@pytest.mark.parametrize("name", SELECTORS.builtin_names())
def test_first_lines_of_a_method_name_paper_formula_and_cost(name) -> None:
    selector = build_selector(name)
    notes = notes_of(type(selector))
    assert notes.summary.endswith(".")
    assert "arXiv" in notes.paper or "NeurIPS" in notes.paper
    assert notes.formula
    assert notes.cost.partition(",")[0] == cost_class(selector.requires)


@pytest.mark.parametrize("name", SELECTORS.builtin_names())
def test_every_parameter_of_a_method_is_explained(name) -> None:
    kind = type(build_selector(name))
    for parameter in inspect.signature(kind).parameters:
        assert meaning_of(kind, parameter), f"{name}: {parameter}"
        assert "those of" not in meaning_of(kind, parameter)


def test_one_selector_is_explained_with_its_parameters() -> None:
    done = run("selectors", "semdedup")
    assert done.exit_code == 0
    for part in ("Paper: Abbas et al. 2023, arXiv 2303.09540.", "Formula: in each k-means cell", "Cost: E, one pass"):
        assert part in done.output
    assert "Needs: base model." in done.output
    assert "Feasibility penalties: simplicity 2, flexibility 3" in done.output
    assert "0.05" in done.output
    assert "the larger, the more is dropped" in words(done.output)
    assert "It has no parameters." in run("selectors", "grand").output


def test_a_selector_of_a_file_is_explained_too() -> None:
    done = run("selectors", EXAMPLE)
    assert done.exit_code == 0
    assert "medium-loss: A selector of your own: medium difficulty first" in done.output
    assert "target" in done.output


def test_an_unknown_selector_is_refused_with_the_nearest_name() -> None:
    assert isinstance(run("selectors", "semdedupe").exception, RecipeError)
    with pytest.raises(RecipeError, match="Did you mean 'semdedup'"):
        build_selector("semdedupe")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), "0"),
        (("quality",), "0"),
        (("embedding", "quality"), "E"),
        (("cluster",), "E"),
        (("base_loss",), "F"),
        (("difficulty", "embedding"), "F"),
        (("loss", "el2n"), "F"),
        (("loss_without_prompt",), "F"),
        (("loss", "loss_without_prompt"), "2F"),
        (("loss", "grad_norm"), "B"),
        (("future_proxy",), "B"),
    ],
)
def test_cost_class_is_the_dearest_pass(names, expected) -> None:
    assert cost_class(names) == expected


def test_needs_name_what_must_be_there() -> None:
    assert needs_of(build_selector("random")) == []
    assert needs_of(build_selector("tailsft")) == ["model", "base model"]
    assert "proxy items" in needs_of(build_selector("lhas"))
    assert all(need in SIGNALS["difficulty"].needs for need in ("base", "candidates"))


def test_check_selector_passes_what_keeps_the_contract() -> None:
    done = run("check-selector", EXAMPLE)
    assert done.exit_code == 0, done.output
    assert done.output.count("ok ") == len(CONTRACT)
    assert "keeps the contract" in done.output


BROKEN = """
import time
from longgame import Selection, Selector

class Greedy(Selector):
    name = "greedy"
    requires = ()
    def select(self, pool, signals, history, budget, rng):
        return Selection.of(pool, list(range(len(pool))))

class Raises(Selector):
    name = "raises"
    requires = ("loss",)
    def score(self, pool, signals, history):
        return signals["losses"]

class Unnamed(Selector):
    def score(self, pool, signals, history): ...

class Sleeps(Selector):
    name = "sleeps"
    def score(self, pool, signals, history):
        time.sleep(60)

class Sized(Selector):
    name = "sized"
    def __init__(self, size):
        self.size = size
    def score(self, pool, signals, history):
        return -abs(pool.response_tokens - float(self.size))

class Leaves(Selector):
    name = "leaves"
    def score(self, pool, signals, history):
        raise SystemExit(0)
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Greedy", "tokens of"),
        ("Raises", "signal 'losses' was not asked for"),
        ("Leaves", "SystemExit"),
    ],
)
def test_check_selector_says_what_is_wrong_in_words(tmp_path, name, message) -> None:
    (tmp_path / "mine.py").write_text(BROKEN)
    done = run("check-selector", f"{tmp_path / 'mine.py'}:{name}")
    assert done.exit_code == 1
    assert "BROKEN" in done.output
    assert message in words(done.output)
    assert isinstance(done.exception, PluginError)
    assert "clauses of the contract" in str(done.exception)


def test_check_selector_ends_a_clause_that_does_not_end(tmp_path, monkeypatch) -> None:
    (tmp_path / "mine.py").write_text(BROKEN)
    monkeypatch.setattr("longgame.commands.selectors._CLAUSE_SECONDS", 0.05)
    done = run("check-selector", f"{tmp_path / 'mine.py'}:Sleeps")
    assert done.exit_code == 1
    assert done.output.count("did not end within 0.05 seconds") == len(CONTRACT) - 1  # one clause calls nothing


def test_check_selector_takes_the_parameters_of_a_selector(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(BROKEN)
    name = f"{tmp_path / 'mine.py'}:Sized"
    assert run("check-selector", f"{name}:size=9").exit_code == 0
    missing = run("check-selector", name)
    assert missing.exit_code == 1
    assert "size" in str(missing.exception)


def test_check_selector_refuses_what_is_no_selector(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(BROKEN)
    with pytest.raises(PluginError, match="lacks `name`"):
        raise run("check-selector", f"{tmp_path / 'mine.py'}:Unnamed").exception
    with pytest.raises(RecipeError, match="no such file|does not exist|is no file"):
        raise run("check-selector", f"{tmp_path / 'none.py'}:X").exception


def test_check_selector_leaves_out_the_clauses_named(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(BROKEN)
    done = run("check-selector", EXAMPLE, "--skip", "fills_the_budget")
    assert done.exit_code == 0
    assert "skipped  fills_the_budget" in done.output
    with pytest.raises(PluginError, match="Did you mean 'fills_the_budget'"):
        raise run("check-selector", EXAMPLE, "--skip", "fills_budget").exception
