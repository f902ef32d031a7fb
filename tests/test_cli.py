"""Options of the command line, without starting a process."""

import pytest
from typer.testing import CliRunner

from longgame.cli import _seeds, app
from longgame.errors import RecipeError


def test_seeds_are_numbers_and_ranges():
    assert _seeds("0, 2-4,7") == [0, 2, 3, 4, 7]


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
        _seeds(text)


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
