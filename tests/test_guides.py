"""Every code block of the pages for users runs, and prints what the page shows."""

import shutil
from pathlib import Path

import pytest

from support.pages import blocks, run_page

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
    code = [block for block in blocks(page) if block.language]
    assert sum(1 for block in code if not block.reason) * 2 >= len(code)
