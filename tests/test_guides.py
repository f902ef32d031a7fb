"""Every code block of the pages for users runs, and prints what the page shows."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from studies import guides
from support.cli import environment
from support.pages import run_page

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs" / "start").glob("*.md"), *(ROOT / "docs" / "guides").glob("*.md")])
MARKS = {"many-machines": pytest.mark.slow}
"""Pages that start several processes, or a Ray."""


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem, marks=MARKS.get(page.stem, ())) for page in PAGES])
def test_page_runs_as_it_stands(page, tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    run_page(page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_page_runs_half_of_its_blocks_at_least(page):
    code = [block for block in guides.blocks(page) if block.language]
    assert sum(1 for block in code if not block.reason) * 2 >= len(code)


def test_scripts_of_the_guides_are_what_the_pages_give():
    kept = {path: path.read_text(encoding="utf-8") for path in guides.SCRIPTS.iterdir()}
    assert kept == guides.scripts()


@pytest.mark.parametrize("script", [pytest.param(path, id=path.stem) for path in guides.scripts()])
def test_page_links_its_script(script):
    page = (guides.PAGES / f"{script.stem}.md").read_text(encoding="utf-8")
    assert f"(../../examples/guides/{script.name})" in page


@pytest.mark.slow
@pytest.mark.parametrize("script", [pytest.param(path, id=path.stem) for path in guides.scripts()])
def test_script_of_a_guide_runs(script, tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    starter = [sys.executable] if script.suffix == ".py" else ["bash"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [*starter, script, *([] if script.suffix == ".py" else ["new"])],
        cwd=tmp_path,
        env={**environment(), "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
