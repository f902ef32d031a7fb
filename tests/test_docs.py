"""The documentation names what the code has: keys, parameters, columns, modules, commands; its example runs."""

import importlib
import importlib.util
import inspect
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer

from longgame import build_selector
from longgame.audit.store import RESULT_COLUMNS
from longgame.cli import app
from longgame.data.formats import FORMATS
from longgame.selection.base import SELECTORS
from longgame.signals.base import CONTEXT, SIGNALS
from longgame.testing import check_selector_contract
from studies import recipe_keys
from support.cli import longgame_here, run_python

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAPER_INDEX = (DOCS / "paper_index.md").read_text(encoding="utf-8")
NOT_PYTHON = {"longgame.selectors", "longgame.scorers", "longgame.share"}
"""Groups of entry points, and a key of Parquet metadata."""
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(page for folder in (".", "start", "guides") for page in (DOCS / folder).glob("*.md")),
    DOCS / "results" / "README.md",
]


def in_pages(pattern):
    """Every first group of the pattern in the pages, once each."""
    texts = (page.read_text(encoding="utf-8") for page in PAGES)
    return sorted({match for text in texts for match in re.findall(pattern, text, flags=re.MULTILINE)})


def rows(page):
    """The cells of every table row of a page."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_recipe_page_is_what_the_program_generates():
    assert recipe_keys.PAGE.read_text(encoding="utf-8") == recipe_keys.page()


def test_recipe_page_has_every_key_once():
    documented = [cells[0].strip("`") for cells in rows("recipe.md") if cells[0].startswith("`")]
    expected = [key.strip("`") for prefix in recipe_keys.sections() for key, *_ in recipe_keys.keys(prefix)]
    assert sorted(documented) == sorted(expected)


def test_every_recipe_key_has_a_meaning_and_links_are_of_keys():
    rows_of_keys = [row for prefix in recipe_keys.sections() for row in recipe_keys.keys(prefix)]
    assert [key for key, _, _, meaning in rows_of_keys if not meaning or meaning.startswith("See [")] == []
    assert {f"`{key}`" for key in recipe_keys.LINKS} <= {key for key, *_ in rows_of_keys}


@pytest.mark.parametrize("name", SELECTORS.names())
def test_the_selector_page_has_every_parameter(name):
    text = (DOCS / "selectors.md").read_text(encoding="utf-8")
    assert f"| `{name}` |" in text
    kind = type(build_selector(name))
    if kind.__init__ is not object.__init__:
        for parameter in inspect.signature(kind).parameters:
            assert f"`{parameter}`" in text, f"{name}: {parameter}"


def test_the_selector_page_has_every_signal():
    documented = {cells[0].strip("`") for cells in rows("selectors.md")}
    assert {*SIGNALS, *CONTEXT} <= documented


def test_the_page_of_the_methods_has_every_selector():
    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    assert [name for name in SELECTORS.builtin_names() if page.count(f"| `{name}` |") != 2] == []


def test_the_data_page_has_every_format():
    lines = [line for line in (DOCS / "data.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert [f"| `{form.name}` | {form.fields} |" for form in FORMATS] == lines[: len(FORMATS)]


def test_the_data_page_shows_what_check_prints(tmp_path):
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    data, output = re.search(
        r"```json title=.*?\n(.*?)\n```\n.*?\n```\n\n```\n(.*?)```", text, flags=re.DOTALL
    ).groups()
    (tmp_path / "train.jsonl").write_text(data)
    done = longgame_here("check", "train.jsonl", "--model", "tiny", "--example", "5", cwd=tmp_path)
    shown, printed = (
        [line.rstrip() for line in lines.splitlines() if not line.startswith("checked in")]
        for lines in (output, done.stdout)
    )
    assert printed == shown


def test_the_results_page_has_every_column():
    documented = {name for cells in rows("results-format.md") for name in re.findall(r"`(\w+)`", cells[0])}
    assert documented == set(RESULT_COLUMNS)


def resolve(dotted):
    """The module, or the attribute of one, that a dotted name stands for."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            target = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            target = getattr(target, part)
        return target
    raise ModuleNotFoundError(dotted)


@pytest.mark.parametrize("name", sorted({*in_pages(r"`((?:longgame|studies|benchmarks)(?:\.\w+)+)`")} - NOT_PYTHON))
def test_every_dotted_name_in_the_docs_exists(name):
    assert resolve(name) is not None


@pytest.mark.parametrize("name", in_pages(r"python -m ((?:studies|benchmarks)[\w.]*)"))
def test_every_module_that_the_docs_run_exists(name):
    assert importlib.util.find_spec(name) is not None


@pytest.mark.parametrize("command", in_pages(r"(?:`|^)longgame ([a-z][^`#\n]*[^`#\s])"))
def test_every_command_in_the_docs_parses(command):
    name, *arguments = shlex.split(command)
    parser = typer.main.get_command(app).commands[name]
    context = parser.context_class(parser, info_name=name, resilient_parsing=True)
    _, unknown, _ = parser.make_parser(context).parse_args([a for a in arguments if a not in ("…", "...")])
    assert not unknown
    for recipe in (argument for argument in arguments if argument.startswith("recipes/")):
        assert (ROOT / recipe).is_file()


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_relative_link_has_a_target(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        place, _, anchor = link.partition("#")
        target = page if not place else (page.parent / place).resolve()
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, link


def test_equal_numbers_are_promised_per_machine_only():
    promise = re.compile(r"with the same numbers|resumes? exactly|bit-equal|equal bits", re.IGNORECASE)
    for page in PAGES:
        text = " ".join(page.read_text(encoding="utf-8").split())
        for sentence in re.split(r"(?<=[.!?]) ", text):
            assert not promise.search(sentence) or re.search("machine|processor", sentence), f"{page.name}: {sentence}"


def test_readme_is_short_and_starts_with_an_example():
    lines = README.splitlines()
    assert len(README.split()) <= 800
    assert any("pip install" in line for line in lines[:40])
    assert lines.index("## Select") < lines.index("## Train") < lines.index("trainer.train()") < 60


def test_readme_select_prints_what_it_says(tmp_path):
    pattern = r"```bash\n(longgame select .*?)\n```\n\n```\n(.*?)```"
    command, output = re.search(pattern, README, flags=re.DOTALL).groups()
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    done = longgame_here(*shlex.split(command)[1:], cwd=tmp_path)
    printed = done.stdout.splitlines()
    for line in (line for line in output.splitlines() if line != "…"):
        numbers = [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.?\d*", line)]
        words = re.sub(r"[\d,.%\s]+", " ", line).strip()
        match = next(text for text in printed if re.sub(r"[\d,.%\s]+", " ", text).strip() == words)
        shown = [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.?\d*", match)]
        assert shown == pytest.approx(numbers, rel=0.3, abs=2)  # ties in the loss depend on the processor


def test_readme_example_prints_what_it_says(tmp_path):
    code, output = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", README, flags=re.DOTALL).groups()
    done = run_python(["-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    printed, promised = ([int(n) for n in re.findall(r"\d+", text)] for text in (done.stdout.splitlines()[-1], output))
    assert printed[1:] == promised[1:]
    assert printed[0] == pytest.approx(promised[0], abs=5)  # ties in the loss depend on the processor


def test_readme_quotes_the_verdicts_of_the_quickstart():
    (quote,) = re.findall(r"^> (.*)$", README, flags=re.MULTILINE)
    assert quote in (DOCS / "results" / "quickstart" / "scorecard.md").read_text(encoding="utf-8")


def test_the_paper_index_has_every_equation_table_and_figure():
    documented = " ".join(cells[0] for cells in rows("paper_index.md"))
    numbers = {
        int(n)
        for low, high in re.findall(r"eq\. (\d)(?:–(\d))?", documented)
        for n in range(int(low), int(high or low) + 1)
    }
    assert numbers == set(range(1, 10))
    for item in ("Def. 1", "Prop. 1", "B.2", "Table 1", "Table 2", "Table 3", "Figure 1"):
        assert item in documented
    assert set(re.findall(r"Figure (\d \(\w\))", documented)) == {
        f"{n} ({part})" for n, parts in ((2, "abcd"), (3, "abcd"), (4, "ab")) for part in parts
    }


def test_paper_index_deviations_are_explained_and_used():
    body, _, last = PAPER_INDEX.partition("## Deviations")
    explained = re.findall(r"^\| (\d+) \|", last, flags=re.MULTILINE)
    assert explained == [str(n) for n in range(1, len(explained) + 1)]
    assert set(re.findall(r"▲(\d+)", body)) == set(explained)


def test_contributing_selector_keeps_the_contract():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    namespace = {}
    exec(code, namespace)
    check_selector_contract(namespace["MiddleLoss"])


def sentences(page):
    """The sentences of a page's prose: no code, tables, headings or link addresses."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    prose = "\n".join("" if line.startswith(("|", "#", "!")) else line for line in text.splitlines())
    for paragraph in re.split(r"\n\s*\n|\n(?=- )", prose):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
        yield from filter(None, re.split(r"(?<=[.!?:]) (?=\W*[A-Z]|longgame )", plain))


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", *sorted((DOCS / "start").glob("*.md")), *sorted((DOCS / "guides").glob("*.md"))],
    ids=lambda page: page.stem,
)
def test_pages_for_newcomers_have_short_sentences(page):
    counts = {sentence: len(sentence.split()) for sentence in sentences(page)}
    assert [sentence for sentence, count in counts.items() if count > 30] == []
    assert sum(counts.values()) / len(counts) < 18
