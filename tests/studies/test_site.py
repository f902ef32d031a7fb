"""The site has a page for every command, public name and method; its configuration names pages that exist."""

import re
import tomllib

import pytest
import typer

import longgame
from longgame.cli import app
from longgame.selection.base import SELECTORS
from studies import site


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    site.write_pages(folder / "pages")
    site.write_configuration(folder / "zensical.toml")
    return folder


def test_commands_page_has_every_command_and_option(folder):
    page = (folder / "pages" / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    for name, command in typer.main.get_command(app).commands.items():
        assert f"## longgame {name}\n" in page
        for parameter in command.params:
            assert all(f"`{option}`" in page for option in parameter.opts if option.startswith("-"))


def test_api_page_has_every_public_name_once(folder):
    page = (folder / "pages" / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    names = re.findall(r"^::: longgame\.(?:\w+\.)*(\w+)$", page, flags=re.MULTILINE)
    assert sorted(names) == sorted(set(longgame.__all__) - {"__version__"})


def test_every_method_has_a_page_with_its_parameters(folder):
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (folder / "pages" / "docs" / "methods").iterdir()}
    assert set(pages) == set(SELECTORS.builtin_names())
    assert "`rejected`" in pages["ifd"]
    assert "It has none." in pages["random"]


def test_navigation_names_every_page_for_users(folder):
    configuration = tomllib.loads((folder / "zensical.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"'([^']+\.md)'", str(configuration["nav"]))
    existing = {str(path.relative_to(folder / "pages")) for path in (folder / "pages").rglob("*.md")}
    assert len(named) == len(set(named))
    assert set(named) == existing
