"""Hostile text as name of a selector, task, sub-skill and candidate passes through every output as text."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from markdown_it import MarkdownIt
from rich.text import Text

from longgame.audit.picks import SHOWN_EXAMPLES
from longgame.commands.terminal import Terminal
from longgame.commands.watch import progress_line
from longgame.errors import DataError, LonggameError, RecipeError
from longgame.escape import csv_cell, csv_text, markdown_code, markdown_line, markdown_text, visible
from longgame.limits import load_yaml
from longgame.recipe import parse_recipe
from longgame.report.layout import Section, report_layout
from longgame.report.picks import TrialDetail, stage_detail
from longgame.report.render import html_page, markdown, markdown_card, print_layout
from longgame.report.tables import Table
from tests.report.conftest import HOSTILE as NAME
from tests.report.conftest import make_card, make_recipe, make_results, make_run

TEXTS = {
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "image": "![x](http://evil.example/x.png)",
    "link": "[click](javascript:alert(1))",
    "reference": "[click][1] [1]: http://evil.example",
    "autolink": "<http://evil.example> http://evil.example https://evil.example www.evil.example ftp://evil.example/x",
    "mail": "mailto:someone@evil.example someone@evil.example",
    "mention": "@octocat and @org/team, see #12, org/repo#7, GH-3 :tada:",
    "emphasis": "**bold** _it_ ~~gone~~ `code` $x^2$",
    "table": "a | b | c",
    "heading": "# heading",
    "list": "- item",
    "number": "1. item",
    "rule": "---",
    "underline": "===",
    "quote": "> quote",
    "fence": "````\ncode\n````",
    "lines": "one\n\n# two\n\n[x]: y",
    "ansi": "\x1b[31mred\x1b[0m\x1b]0;title\x07\x1b]8;;http://evil.example\x07link\x1b]8;;\x07",
    "cursor": "\x1b[2J\x1b[H\r\x08\x0b\x0cgone",
    "c1": "\x9b31m\x9d0;title\x9c",
    "direction": "abc\u202egpj.exe\u2066x\u2069",
    "half": "half a pair \ud800",
    "markup": "[bold red]x[/bold red][link=http://evil.example]y[/link]",
    "formula": '=HYPERLINK("http://evil.example")',
    "plus": "+1+1",
    "minus": "-1+cmd|' /C calc'!A0",
    "at": "@SUM(1)",
    "tab": "\t=1",
    "template": "{{ 7 * 7 }}{% raw %}${x}",
}
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
hostile = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)


def tokens(source):
    """All tokens that GitHub's dialect of Markdown makes of a source, with addresses turned into links."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return [token for block in parser.parse(source) for token in (block, *(block.children or []))]


def shape(source):
    return [token.type for token in tokens(source)]


GITHUB = re.compile(r"(?i)://|www\.|mailto:\w|(?<![\w`])@\w|\w@\w|#\d|\bgh-\d|:\w+:")
"""What GitHub links by itself, in rendered text."""


def rendered(source):
    return "".join(token.content for token in tokens(source) if token.type in ("text", "html_inline", "html_block"))


@hostile
def test_markdown_text_is_text_alone(text):
    for source in (markdown_text(text), markdown_line(text)):
        assert not CONTROL.search(source)
        assert "\n" not in source
        assert not GITHUB.search(rendered(f"x {source}"))
        assert set(shape(f"x {source}")) <= {"paragraph_open", "inline", "text", "text_special", "paragraph_close"}
    assert set(shape(markdown_line(text))) <= {"paragraph_open", "inline", "text", "text_special", "paragraph_close"}
    assert shape(f"| a |\n|---|\n| {markdown_text(text)} |").count("td_open") == 1
    words = re.sub(r"[\u2060\\]", "", markdown_text(text))
    assert words or not text.strip()


@hostile
def test_a_block_of_code_ends_where_it_should(text):
    blocks = [token for token in tokens(markdown_code(f"a: {text}\n", "yaml") + "\n\nafter") if token.type == "fence"]
    assert len(blocks) == 1
    assert shape(markdown_code(f"a: {text}\n", "yaml") + "\n\nafter")[-3:] == ["inline", "text", "paragraph_close"]


@hostile
def test_csv_cells_are_no_formulas(text):
    cell = csv_cell(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    frame = pd.DataFrame({"method": pd.Series([cell], dtype=object), visible(text): [1.5], "n": [-2]})
    again = pd.read_csv(io.StringIO(csv_text(frame)), keep_default_na=False)
    assert again["method"][0] == cell.replace("\r\n", "\n")
    assert again.iloc[0, 1] == 1.5
    assert again["n"][0] == -2


@hostile
def test_an_error_shows_what_it_names(text):
    message = str(DataError(f"unknown name '{text}'."))
    assert not CONTROL.search(message)
    assert message == visible(message)
    assert isinstance(DataError(text), LonggameError)


STORED = {name: text for name, text in TEXTS.items() if name != "half"}
"""What a data set or a recipe can hold: half a surrogate pair is refused where it is read."""


@pytest.fixture(scope="module", params=STORED.values(), ids=STORED)
def layout(request):
    """(text, report of a run in which a selector, sub-skills, tasks and candidates are called so)."""
    text = request.param
    results = make_results(skills=("x", text)).replace({NAME: text})
    recipe = make_recipe()
    last = recipe.selectors[-1].model_copy(update={"label": text})
    recipe = recipe.model_copy(update={"selectors": (*recipe.selectors[:-1], last)})
    run = make_run(results, recipe, make_card(results))
    columns = {"round": 0, "sample_id": ["p", "q"], "picked": [0, -1], "tokens": [3, 4], "sub_skill": [text, ""]}
    stage = stage_detail(pd.DataFrame(columns | {"term_score": [1.0, 0.0]}), 1, text, {"p": (text, text)})
    assert len(stage.highest) <= SHOWN_EXAMPLES
    detail = TrialDetail(text, {text: text}, Table(text, (), ()), (stage,))
    layout = report_layout(run, text, trials=0)
    layout.sections.append(Section("one", text).show(detail))
    return text, layout


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


PLAIN = "plain name"


@pytest.fixture(scope="module")
def scripts():
    """How many script elements a page has."""
    run = make_run(make_results())
    return [tag for tag, _ in Tags(html_page([report_layout(run, PLAIN, trials=0)])).tags].count("script")


def test_the_page_holds_text_as_text(layout, scripts):
    _, report = layout
    page = html_page([report])
    page.encode()
    found = Tags(page).tags
    assert [tag for tag, _ in found].count("script") == scripts
    assert not {"img", "iframe", "object"} & {tag for tag, _ in found}
    assert not [name for _, attributes in found for name in attributes if name.startswith("on")]
    assert all(attributes.get("href", "#").startswith(("#", "data:")) for _, attributes in found)
    body = page.partition("<body")[2].partition("<script")[0]
    assert not CONTROL.search(body)


@pytest.mark.parametrize("write", [markdown, markdown_card])
def test_markdown_files_hold_text_as_text(layout, write):
    _, report = layout
    source = write(report)
    source.encode()
    assert not CONTROL.search(source)
    types = set(shape(source))
    assert not types & {"image", "link_open", "s_open", "code_block"}
    assert not GITHUB.search(rendered(source.partition("<details>")[0]))
    html_parts = {token.content.strip() for token in tokens(source) if token.type in ("html_block", "html_inline")}
    allowed = r"</?details>|</?summary>|<details><summary>Resolved recipe</summary>"
    assert all(re.fullmatch(allowed, part) for part in html_parts), html_parts


def test_the_terminal_shows_no_sequence_of_a_stranger(layout):
    text, report = layout
    for color in (True, False):
        console = Terminal(
            file=io.StringIO(), width=120, force_terminal=color, color_system="standard" if color else None
        )
        print_layout(report, console)
        console.print(progress_line(text, [0.0], 3, 1.0, 120))
        console.print(Text(text))
        printed = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue()) if color else console.file.getvalue()
        assert not CONTROL.search(printed)
        assert color or "evil.example\x07" not in printed


def test_cursor_moves_of_a_stranger_never_reach_a_terminal():
    console = Terminal(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
    for text in TEXTS.values():
        console.print(Text(text), style="red")
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    own = re.sub(r"\x1b\[(31|0)m", "", console.file.getvalue())
    assert not CONTROL.search(own)


def test_half_a_surrogate_pair_is_refused_in_recipes():
    with pytest.raises(RecipeError, match="half a surrogate pair"):
        parse_recipe(load_yaml('{name: r, selectors: [{name: random, label: "\\ud800"}]}'))


def test_clean_text_is_unchanged():
    for text in ("loss + replay 20%", "lhas (α = 0.5), n=3", "-0.12 ± 0.3", "答案 ½ 😀", "a-b_c.d"):
        assert visible(text) == text
        assert re.sub(r"\\(.)", r"\1", markdown_text(text)) == text
