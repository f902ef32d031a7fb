"""Text of strangers (data sets, names, labels, file names), made safe for each medium that shows it.

Whoever writes a page, a Markdown file, a table of numbers or a terminal passes such text through here; the page's
templates escape HTML by themselves.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Characters that move the cursor, turn the direction of the text, or cannot be encoded."""
_JOINER = "\u2060"
"""Word joiner: has no width, and no renderer takes it for a part of an address or a name."""
_MARKS = re.compile(r"([\\|*_`\[\]~$])")
_ADDRESS = re.compile(r"(?i):(?=//)|\b(?:mailto|xmpp|javascript|data|vbscript):(?=\S)")
_HOST = re.compile(r"(?i)\b(www)\.")
_MENTION = re.compile(r"@(?=\w)")
_REFERENCE = re.compile(r"(?i)(?:#|\bGH-|(?<!\w):)(?=\w)")
_BLOCK = re.compile(r"^(#{1,6}(?=\s|$)|[-+](?=\s|$)|[-=]+$|\d+(?=[.)](?:\s|$)))")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def visible(text: str) -> str:
    r"""The text with its control characters written out (ESC as ``\x1b``); line ends and tabs stay."""
    return _HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def markdown_text(text: str) -> str:
    """Text in one line of Markdown that stays text: no HTML, emphasis, table, link, address, mention or image in it."""
    plain = html.escape(visible(" ".join(text.split())), quote=False)
    plain = _ADDRESS.sub(rf"\g<0>{_JOINER}", plain)
    plain = _HOST.sub(rf"\1{_JOINER}.", plain)
    plain = _MENTION.sub("@" + _JOINER, plain)
    plain = _REFERENCE.sub(rf"\g<0>{_JOINER}", plain)
    return _MARKS.sub(r"\\\1", plain)


def markdown_line(text: str) -> str:
    """`markdown_text` that begins a paragraph: no heading, list or rule either."""
    return _BLOCK.sub(lambda match: match[0] + "\\" if match[0][0].isdigit() else "\\" + match[0], markdown_text(text))


def markdown_code(text: str, language: str) -> str:
    """A text of several lines as a block of code, with a fence that is in none of them."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(4, longest + 1)
    return f"{fence}{language}\n{visible(text)}{fence}"


def csv_cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: a text that begins like one gets an apostrophe before it."""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


def csv_text(frame: pd.DataFrame) -> str:
    """The table as CSV, its texts and headings by `csv_cell`."""
    safe = frame.copy()
    for name in frame.select_dtypes(exclude=["number", "bool"]):
        safe[name] = frame[name].map(csv_cell)
    return safe.rename(columns=csv_cell).to_csv(index=False)
