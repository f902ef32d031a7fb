"""The scripts of examples/guides: the code blocks of each guide in docs/guides, as one program.

```
python -m studies.guides          # writes them; a test compares
```

Blocks that a page marks as not run, and what commands print, are left out. A guide of Python alone becomes a Python
script, and any other a shell script.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from studies.methods import ROOT

PAGES = ROOT / "docs" / "guides"
SCRIPTS = ROOT / "examples" / "guides"
_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_SKIP = re.compile(r"<!-- not run: (.+?) -->\s*\Z")
_SHELL = """\
#!/usr/bin/env bash
# {title}: the commands of {page}, which explains them.
#
#   bash {script} [FOLDER]
#
# FOLDER: a new folder for what the commands write; else a temporary one. Generated from the page.
set -euo pipefail
examples="$(cd "$(dirname "$0")/.." && pwd)"
folder="${{1:-$(mktemp -d)}}"
mkdir -p "$folder"
cd "$folder"
cp -r "$examples" examples
echo "The files are in $PWD"
set -x
"""
_PYTHON = '''\
"""{title}: the code of {page}, which explains it.

    python {script}

Run it in the folder of the repository. Generated from the page.
"""
'''


@dataclass(frozen=True)
class Block:
    """A fenced block: language ("" for output), the file that it is, text, first line, the reason why it is not run."""

    language: str
    file: str
    text: str
    line: int
    reason: str = ""


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    result = []
    for match in _FENCE.finditer(text):
        language, _, options = match["info"].strip().partition(" ")
        title = re.search(r'title="([^"]+)"', options)
        before = text[: match.start()]
        skip = _SKIP.search(before)
        result.append(
            Block(
                language,
                title[1] if title else "",
                match["text"],
                before.count("\n") + 1,
                skip[1] if skip else "",
            )
        )
    return result


def scripts() -> dict[Path, str]:
    """Path → text of the script of every guide."""
    return dict(_script(page) for page in sorted(PAGES.glob("*.md")))


def _script(page: Path) -> tuple[Path, str]:
    run = [block for block in blocks(page) if block.language and not block.reason]
    python = all(block.language == "python" and not block.file for block in run)
    path = SCRIPTS / f"{page.stem}.{'py' if python else 'sh'}"
    head = (_PYTHON if python else _SHELL).format(
        title=page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# "),
        page=page.relative_to(ROOT),
        script=path.relative_to(ROOT),
    )
    parts = (block.text for block in run) if python else map(_shell, run)
    return path, "\n".join([head, *parts])


def _shell(block: Block) -> str:
    if block.file:
        return f"cat > {block.file} <<'END'\n{block.text}END\n"
    if block.language == "python":
        return f"python - <<'END'\n{block.text}END\n"
    return block.text


def main() -> None:
    """Write the scripts, and delete those of guides that are gone."""
    SCRIPTS.mkdir(exist_ok=True)
    texts = scripts()
    for path in {*SCRIPTS.iterdir()} - texts.keys():
        path.unlink()
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
