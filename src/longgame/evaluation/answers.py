r"""Answers in free text: extraction and comparison, one small rule per function.

The rules are those of GSM8K, MATH and multiple-choice benchmarks (``#### N``, ``\boxed{}``, "the answer is X", the last
number, a letter, yes/no). No rule looks at the gold answer to decide what the text answers. Formulas are compared by
math-verify. Every pattern runs in time linear in the text, and nothing of a text is ever evaluated as code.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from longgame.data.examples import Example
from longgame.errors import DataError
from longgame.limits import time_limit

_log = logging.getLogger(__name__)
_MOST_DIGITS = 1000
"""Digits of a number; more are no answer (Python itself refuses more than 4,300)."""
_MOST_EXPONENT = 300
_LAST_CHARACTERS = 20_000
"""The end of a text in which its last number is looked for."""
_LONGEST_FORMULA = 500
"""Characters of a formula that math-verify reads."""
_FORMULA_SECONDS = 15
"""Seconds of the processor that math-verify may take to read two formulas and compare them."""
_FORMULA_PAIRS = 16_384
"""Formulas, and comparisons of them, that are remembered: a model repeats its answers as its training goes on."""

_TAGS = r"(?:seed:)?think|thinking|thoughts?|reasoning|scratchpad"
_THINKING = re.compile(rf"<(?:{_TAGS})>|\[think\]|◁think▷|<\|begin_of_thought\|>", re.IGNORECASE)
_THOUGHT = re.compile(rf"</(?:{_TAGS})>|\[/think\]|◁/think▷|<\|end_of_thought\|>", re.IGNORECASE)
_ANSWER_TAG = re.compile(r"<answer>", re.IGNORECASE)
_ANSWER_END = re.compile(r"</answer>", re.IGNORECASE)
_STATED = re.compile(
    r"\banswer[*_\"']*[ \t]*(?:is\b[ \t]*:?|[:=：])|答案[ \t]*(?:[是为]|[:：])[ \t]*[:：]?", re.IGNORECASE
)
_REASON = re.compile(r"\s(?:because|since)\b", re.IGNORECASE)
_CONTRAST = re.compile(
    r"(?<=\S)(?:,? (?:rather than|instead of)|, (?:but )?not)\b[^,.;!?\n]*(?:[.,]\d+)*", re.IGNORECASE
)
_ABBREVIATIONS = frozenset(
    re.findall(
        r"\w+",
        """dr mr mrs ms prof st vs jr sr etc approx fig gen col sgt capt lt maj adm gov sen rep pres rev hon mt ft ca cf
        al inc ltd co corp bros dept vol pp jan feb mar apr jun jul aug sep sept oct nov dec""",
    )
)
_NEW_SENTENCE = re.compile(
    r"\s{1,9}(?:It|They|He|She|This|That|These|Those|The|An?|I|We|You|There|In|But|And|So|As|If|However|Because|Since)\b"
)
"""Words that begin a sentence even behind an abbreviation ("It is the U.S. They …")."""
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname)\{([^{}]*)\}")
_MATH_MARKS = re.compile(r"\\[()\[\]]|\$\$")
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
"""Full-width digits and marks of East Asian texts, by their ASCII forms."""
_SPACES = "\u00a0\u2009\u202f"
"""No-break, thin and narrow no-break space: between groups of three digits they separate thousands."""
_HALVES = re.compile("[¼-¾⅐-⅞]")
_POWER_OF_TEN = re.compile(
    r"(?:(?<=\d)\s{0,2}(?:×|·|\*|x|\\times|\\cdot)\s{0,2}|(?<![\w.^}]))10"
    r"(?:\s?(?:\^|\*\*)\s?(?:\{([-+]?\d{1,4})\}|([-+]?\d{1,4}))|([⁻⁺]?[⁰¹²³⁴-⁹]{1,4}))(?![\d^])"
)
_LATEX_FRACTION = re.compile(
    r"\\[dt]?frac\s{0,3}(?:\{\s{0,3}(-?\d+)\s{0,3}\}|(\d))\s{0,3}(?:\{\s{0,3}(-?\d+)\s{0,3}\}|(\d))"
)
_CURRENCIES = "$€£¥₹₩"
_GROUPS = r"\d{1,3}(?:,\d{3})+"
_NUMBER = re.compile(
    rf"(?P<sign>[-+−]?)[{_CURRENCIES}]?(?:(?P<mixed>\d+) +(?P<above>\d+)/(?P<under>\d+)"
    rf"|(?P<whole>{_GROUPS}|\d+)?(?P<part>\.\d+)?(?P<power>[eE][-+]?\d+)?(?:/(?P<below>\d+))?)(?!/?\d|,\d{{3}})"
)
_PLAIN_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)(?:(?P<whole>{_GROUPS}|\d+)(?P<part>\.\d*)?|(?P<only>\.\d+))(?P<power>[eE][-+]?\d+)?"
)
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b")
_CLOCK = re.compile(r":\d\d(?!\d)")
_DIGITS = r"\d+(?:[.,]\d+)*"
_UNITS = (
    (r"years?|yrs?|y", r"months?|mos?", r"weeks?|wks?|w", r"days?|d", r"hours?|hrs?|h", r"minutes?|mins?|m",
     r"seconds?|secs?|s"),
    (r"kilomet(?:er|re)s?|km", r"met(?:er|re)s?|m", r"centimet(?:er|re)s?|cm", r"millimet(?:er|re)s?|mm"),
    (r"miles?|mi", r"yards?|yds?", r"foot|feet|ft", r"inch(?:es)?|in"),
    (r"kilograms?|kg", r"grams?|g"),
    (r"stones?|st", r"pounds?|lbs?", r"ounces?|oz"),
    (r"dollars?", r"cents?"),
    (r"pounds?", r"pence|p"),
    (r"degrees?|deg|°", r"arcminutes?|minutes?|['′’]", r"arcseconds?|seconds?|[\"″”]"),
)  # fmt: skip
"""Units of one kind, from large to small."""


def _quantities(units: Sequence[str]) -> str:
    """A number of one unit with numbers of smaller ones behind it; the last unit may be left out where it touches."""
    forms = []
    for place, unit in enumerate(units[:-1]):
        smaller = "|".join(units[place + 1 :])
        forms.append(
            rf"{_DIGITS}\s?(?:{unit})(?![^\W\d_])\.?(?:,?\s(?:and\s)?|\s?)(?:{_DIGITS}\s?(?:{smaller})(?![^\W\d_])"
            rf"\.?,?(?:\sand)?\s?)+(?:(?<=\S){_DIGITS}(?![\w]))?"
        )
    return "|".join(forms)


_COMPOUND = re.compile(
    rf"(?<!\d)(?<!\d[.,])(?:{'|'.join(map(_quantities, _UNITS))}"
    rf"|\d+(?:[-–]\d+){{2,}}|{_DIGITS}(?:/\d+){{2,}}|\d+(?:\.\d+){{2,}}"
    rf"|{_DIGITS}(?:[:x×]{_DIGITS})+|\d+['′’]\s?\d{{1,2}}(?!\d)|{_DIGITS}(?:h|hrs?|m|min|°)(?![23]\b)\d+\b)"
    rf"|(?<!\w)\(\s?[-+]?{_DIGITS}(?:\s?,\s[-+]?{_DIGITS})+\s?\)",
    re.IGNORECASE,
)
"""Numbers that are one value together, or none: dates, versions, ratios, sizes, points, 5h30, 5 ft 11 in."""
_WORD = re.compile(r"\b(yes|no|true|false|untrue)\b", re.IGNORECASE)
_PAIR = re.compile(r"\b(?:yes|true)\s{0,2}(?:/|\b(?:or|and)\b)\s{0,2}(?:no|false)\b", re.IGNORECASE)
"""Both words at once ("true or false?") answer nothing."""
_BECAUSE = re.compile(r"\s(?:because|since)\b[^.!?\n]*", re.IGNORECASE)
_NEGATION = re.compile(
    r"(?:\b(?:not|never|neither|nor|cannot)|n['’]t)\s{1,3}"
    r"(?:(?:be|been|the|an?|is|necessarily|always|quite|entirely|really|actually|option|choice|answer)\s{1,3}){0,2}"
    r"[\"'(\[]{0,2}$",
    re.IGNORECASE,
)
"""Behind it stands what a text denies; read in the 50 characters before."""
_TRUTH_WORDS = {"yes", "no", "true", "false"}
_OPPOSITE = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
_SIGNS = tuple("-+−$€£\\")
_DECORATION = "*_`\"'“”‘’ \t"


def without_thinking(text: str) -> str:
    """The text without its thinking: what follows the last closing tag, and nothing of a block that never closes."""
    closings = list(_THOUGHT.finditer(text))
    if closings:
        return text[closings[-1].end() :]
    opening = _THINKING.search(text)
    return text if opening is None else text[: opening.start()]


def boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{…}`` (with nested braces), or None."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed")
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin + 1 : position].strip()
    return None


def tagged(text: str) -> str | None:
    """The content of the last ``<answer>…</answer>``, or None; an open tag ends with the text."""
    openings = list(_ANSWER_TAG.finditer(text))
    return _ANSWER_END.split(text[openings[-1].end() :], maxsplit=1)[0].strip() if openings else None


def after_hashes(text: str) -> str | None:
    """The text after the last ``####`` on its line, or None.

    A line of ``####`` with more lines below it is a heading of Markdown, unless a number stands behind the hashes
    ("#### 42", but not "#### 2. Result"); then the last one that is no heading counts.
    """
    below = False  # whether any line below has text
    for written in reversed(text.split("\n")):
        _, mark, line = written.rpartition("####")
        line = line.strip()
        number = line.strip("*$ ")[:1].isdigit() or line[:1] in _SIGNS
        listed = re.match(r"\d{1,3}[.):]\s+[^\W\d]", line)
        if mark and line and (not below or (number and not listed)):
            return line
        below = below or bool(written.strip())
    return None


def stated(text: str) -> str | None:
    """X of the last "the answer is X" / "Answer: X" / "答案：X", or None.

    X ends with the sentence or line, and before "because" or "since". If nothing follows on the line, X is the next
    line with text. A full stop behind an initial or a common abbreviation ends no sentence.
    """
    matches_ = list(_STATED.finditer(text))
    if not matches_:
        return None
    line = text[matches_[-1].end() :].lstrip(_DECORATION + "\n\r").partition("\n")[0]
    reason = _REASON.search(line)
    return _sentence(line if reason is None else line[: reason.start()]).strip(" \t*_")


def _sentence(line: str) -> str:
    """The line up to the end of its first sentence."""
    begin = 0
    for match in re.finditer(r"[.。！!?？](?=\s|$|\*)|。", line):
        word = (line[begin : match.start()].split() or [""])[-1].lstrip("(\"'*_")
        begin = match.end()
        behind = line[begin : begin + 80].strip()
        short = (len(word) == 1 and word.isupper()) or word.casefold() in _ABBREVIATIONS or "." in word[:-1]
        short = (short and not word[-1:].isdigit()) or (word.casefold() == "no" and behind[:1].isdigit())
        if match[0] == "." and behind and short and not _NEW_SENTENCE.match(line, begin):
            continue
        return line[: match.start()]
    return line


def marked(text: str) -> str | None:
    r"""The answer that the text marks as such, or None.

    The order is ``\boxed{}``, ``<answer>``, ``####``, "the answer is". Thinking is left out.
    """
    text = without_thinking(text)
    return next((answer for rule in (boxed, tagged, after_hashes, stated) if (answer := rule(text)) is not None), None)


def marked_or_all(text: str) -> str:
    """The marked answer; where the text marks none, the text without its thinking."""
    answer = marked(text)
    return without_thinking(text) if answer is None else answer


_MINUS = re.compile(r"(^|[=:(,] ?|\b(?:is|are|be|was|equals) )(?:minus|negative) (?=[$€£¥₹₩]?\d)", re.IGNORECASE)
"""Words of a negative number; behind anything else "minus" may be a difference."""


def _as_written(text: str) -> str:
    r"""The text with one form of numbers: minus, ``\frac``, vulgar fractions, and thousands by commas."""
    text = (
        text.translate(_WIDE)
        .replace("−", "-")
        .replace("\\$", "$")
        .replace("\\%", "%")
        .replace("\\!", "")
        .replace("\\,", "\u2009")
    )
    text = _MATH_MARKS.sub(" ", text.replace("{,}", ","))
    text = _POWER_OF_TEN.sub(_exponent, text)
    text = re.sub(r"(?<![\w)])–(?=\d)", "-", text)
    text = _MINUS.sub(r"\1-", text)
    text = _LATEX_FRACTION.sub(lambda match: _behind(match, f"{match[1] or match[2]}/{match[3] or match[4]}"), text)
    text = _HALVES.sub(lambda match: _behind(match, _vulgar(match[0])), text)
    text = re.sub(r"(?<=\d) and (?=\d+/\d)", " ", text)
    return re.sub(rf"(?<=\d)[{_SPACES}'’_](?=\d{{3}}(?!\d))", ",", text)


def _exponent(match: re.Match[str]) -> str:
    """``e3`` of ``×10^3`` behind a number, ``1e3`` of ``10³`` alone."""
    power = match[1] or match[2] or unicodedata.normalize("NFKC", match[3]).replace("−", "-")
    return f"{'1' if match[0].startswith('10') else ''}e{power}"


def _behind(match: re.Match[str], fraction: str) -> str:
    """The fraction, with a space behind a digit: both are a mixed number."""
    return f" {fraction}" if match.string[match.start() - 1 : match.start()].isdigit() else fraction


def _vulgar(character: str) -> str:
    """``1/2`` of ``½``."""
    return unicodedata.normalize("NFKC", character).replace("\u2044", "/")


def parse_number(text: str) -> Fraction | None:
    r"""The exact value of a text that is one number and nothing else, or None.

    Allowed around the digits: ``$ € £``, a final ``%`` (dropped: "50%" is 50), thousands (commas, ``{,}``, ``\,``,
    no-break and thin spaces), trailing zeros, an exponent, a final full stop, LaTeX ``\$``, ``\%``, ``\frac{a}{b}`` and
    ``\frac12``, ½, and mixed numbers ("2 1/2"). "1/2" equals "0.5"; "1/3" equals no decimal. A number with a leading
    zero ("007") is a string of digits, not a number, and so is one of more than 1,000 digits.
    """
    text = text.strip().strip("*").strip()
    text = text.strip("$").strip() if text.startswith("$") and text.endswith("$") else text
    text = _as_written(text).strip().rstrip("%").strip()
    text = re.sub(rf"^([-+]?) ?[{_CURRENCIES}] ?", r"\1", text)
    above, slash, below = text.partition("/")
    if not slash:
        return _plain(text)
    whole, space, numerator = above.strip().rpartition(" ")
    bottom = _plain(below)
    if not bottom or not below.strip().isdigit():
        return None
    if not space:
        top = _plain(above)
        return None if top is None else top / bottom
    units, top = _plain(whole), _plain(numerator)
    if units is None or top is None or units.denominator != 1 or not numerator.isdigit() or not 0 < top < bottom:
        return None
    return units - top / bottom if whole.strip().startswith("-") else units + top / bottom


def _plain(text: str) -> Fraction | None:
    match = _PLAIN_NUMBER.fullmatch(text.strip())
    if match is None or len(text) > _MOST_DIGITS:
        return None
    digits = (match["whole"] or "").replace(",", "")
    power = int(match["power"][1:]) if match["power"] and len(match["power"]) < 6 else 0
    if (len(digits) > 1 and digits[0] == "0") or abs(power) > _MOST_EXPONENT or (match["power"] and not power):
        return None
    decimals = (match["part"] or match["only"] or "").rstrip(".")
    value = Fraction(f"{digits or 0}{decimals}") * Fraction(10) ** power
    return -value if match["sign"] == "-" else value


def numbers(text: str) -> list[Fraction]:
    """Every number of the text in order.

    A unit or a word of another script may touch a number ("15kg", "15元"). A letter before it ("H2O"), an exponent
    ("m^2"), an ordinal ("2nd") and a time ("12:30") make it none. A minus is a sign only where no digit or letter is
    before it. Numbers that make up one value of another kind are none, too: a date, a version, a ratio, a size
    ("3x4"), a point ("(3, 4)"), a quantity in several units ("5h30m").
    """
    text = _COMPOUND.sub("\ue001", _as_written(text))
    values = []
    for match in _NUMBER.finditer(text):
        start = match.start() + len(match["sign"])
        if match["mixed"] is None and match["whole"] is None and match["part"] is None:
            continue
        before, sign = text[max(0, match.start() - 1) : match.start()], match["sign"]
        if sign and before and (_is_letter(before) or before.isdigit() or before in ")_"):
            before, sign = match["sign"], ""  # a difference, or a hyphen
        if before and text[start] not in _CURRENCIES and (_is_letter(before) or before.isdigit() or before in "._^"):
            continue
        if before == ":" and text[max(0, match.start() - 2)].isdigit():
            continue
        if _ORDINAL.match(text, match.end()) or _CLOCK.match(text, match.end()):
            continue
        value = parse_number(sign + text[start : match.end()])
        if value is not None:
            values.append(value)
    return values


def _is_letter(character: str) -> bool:
    """Whether it is a letter of a script with capitals; a number may stand right behind any other."""
    return character.lower() != character.upper()


def number_answered(text: str) -> Fraction | None:
    """The number that a text gives as its answer: the last in its marked answer, else the last of the text.

    Of an equation in the marked answer, the last side counts. What stands in parentheses behind a number is an aside.
    """
    answer = marked(text)
    if answer is not None:
        answer = re.sub(r"^\s*([-+−])\s+", r"\1", _unwrapped(_without_contrast(answer)).rpartition("=")[2])
        answer = _MATH_MARKS.sub(" ", answer)
    value = parse_number(without_thinking(text) if answer is None else answer)
    if value is not None:
        return value
    end = (
        _without_contrast(without_thinking(text)[-_LAST_CHARACTERS:])
        if answer is None
        else re.sub(r"(?<=\S)\s{0,3}\([^()]*\)", "", answer)
    )
    inside = numbers(end[-_LAST_CHARACTERS:])
    return inside[-1] if inside else None


def _without_contrast(text: str) -> str:
    """The text without what the answer is not: "9, not 8" is "9"."""
    return _CONTRAST.sub("", text)


def _unwrapped(text: str) -> str:
    r"""The text without LaTeX's wrappers of words: ``\text{Rome}`` is ``Rome``."""
    return _WRAPPED.sub(r"\1", text)


def normalize(text: str) -> str:
    """The text as it is compared: NFKC, case folded, white space collapsed, quotes and final punctuation dropped."""
    text = unicodedata.normalize("NFKC", _unwrapped(text)).casefold()
    text = " ".join(text.split()).strip("\"'`*“”‘’ ")
    return text.rstrip(".,;:!? ").strip("\"'`*“”‘’ ")


def truth_word(text: str) -> str | None:
    """``yes``, ``no``, ``true`` or ``false``: the marked answer, else the opening word, else the last one; or None.

    A negation turns the word ("not true" and "cannot be true" are ``false``). "No" before a noun ("no idea") and both
    words at once ("true or false?") answer nothing. A reason ("because …") is read only where nothing else answers.
    """
    answer = marked(text)
    given = _PAIR.sub(" ", without_thinking(text) if answer is None else _without_contrast(answer))
    words = list(_truth_words(_BECAUSE.sub("", given))) or list(_truth_words(given))
    if not words:
        return None
    if answer is not None:
        return words[0][1]
    return words[0][1] if words[0][0] else words[-1][1]


_IDLE = re.compile(
    r"\s{1,3}(?:idea|one|way|doubt|matter|longer|more|need|problem|clue|reason|answer|information|such|other|evidence)\b",
    re.IGNORECASE,
)


def _truth_words(text: str) -> Sequence[tuple[bool, str]]:
    """(whether it opens the text, word) of each word that says yes or no."""
    opening = len(text) - len(text.lstrip("\"'`*( \n"))
    words = []
    for match in _WORD.finditer(text):
        word = match[1].lower().replace("untrue", "false")
        opens = match.start() == opening
        if word == "no" and (_IDLE.match(text, match.end()) or not (opens or _ends_clause(text, match.end()))):
            continue
        words.append((opens, _OPPOSITE[word] if _denied(text, match.start()) else word))
    return words


def _denied(text: str, start: int) -> bool:
    """Whether a negation stands right before this place."""
    return _NEGATION.search(text[max(0, start - 50) : start]) is not None


def _ends_clause(text: str, end: int) -> bool:
    behind = text[end:].lstrip("\"'`*)")
    return not behind or not behind[0].isspace() or not behind.strip()


_DENIAL = re.compile(
    r"\)?\s{1,3}(?:(?:is|are|was|would be|must be)\s{1,3}(?:not|wrong|incorrect|false|untrue)\b"
    r"|(?:isn['’]t|can['’]t|cannot|does not|doesn['’]t)\b)",
    re.IGNORECASE,
)
_PRAISE = re.compile(
    r"\)?\s{1,3}(?:is|seems|must be)\s{1,3}(?:the\s{1,3})?(?:(?:most|only)\s{1,3})?"
    r"(?:correct|right|answer|best|true)\b",
    re.IGNORECASE,
)
_NAMING = re.compile(
    r"(?:\b(?:option|choice|letter|answer|choose|chose|pick|select|with|so|thus|hence|therefore)\b,?\s{1,3}"
    r"(?:is\s{1,3})?|[选選]\s?)"
    r"[\"'(\[]{0,2}$",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"\s{1,3}(?!(?:is|because|since|as|and|or)\b)[a-z]|['’]m\b")
"""What makes a letter A or I a word of the sentence."""


def letter(text: str, options: int) -> int | None:
    """The index of the option that a text names by its letter (A = 0), or None.

    Read from the marked answer, else from the text, in this order: the letter alone, in any decoration or case ("b",
    "(B)", "**B**", "\\text{B}"); a letter that opens it ("B. …", "b) …", "B because …"); the last "option B", "choice
    is B", "I choose B" or "B is correct"; the last one in parentheses. A letter that the text denies ("not B", "B is
    wrong") and an "A" that is a word ("A dog …") do not count.
    """
    answer = _without_marks(text)
    if not 1 <= options <= 26:
        return None
    allowed = f"A-{chr(64 + options)}"
    alone = answer.strip(_DECORATION + "\n()[]{}.:,")
    if len(alone) == 1 and re.fullmatch(f"[{allowed}]", alone.upper()):
        return ord(alone.upper()) - 65
    small = allowed.lower()
    opening = re.match(
        rf"\s*(?:[(\[]([{allowed}{small}])[)\]]|([{small}])[).:](?=\s|$)"
        rf"|([{allowed}])(?:[.):,;]|\s*(?:\n|$)|\s+(?:because|since|as)\b|\s+\(|\s*[-–—]\s))",
        answer,
    )
    if opening is not None and not _DENIAL.match(answer, opening.end(opening.lastindex or 0)):
        return ord((opening[1] or opening[2] or opening[3]).upper()) - 65
    spelled = re.findall(rf"\b(?i:option|choice|letter)\s{{1,3}}[\"'(]?([{small}])(?=[\"')\].,:;]|\s*$)", answer)
    if spelled:
        return ord(spelled[-1].upper()) - 65
    places = _letters(answer, allowed)
    named = [at for at in places if _NAMING.search(answer[max(0, at - 20) : at]) or _PRAISE.match(answer, at + 1)] or [
        at for at in places if answer[at - 1 : at] == "(" and answer[at + 1 : at + 2] == ")"
    ]
    return ord(answer[named[-1]]) - 65 if named else None


def _without_marks(text: str) -> str:
    """What a choice is read from, without Markdown and LaTeX: the marked answer, or the text where that only denies."""
    answer = marked(text)
    if answer is None or re.match(r"not\b", answer):
        answer = without_thinking(text)
    return _without_contrast(_unwrapped(answer)).translate(_WIDE).replace("*", "").replace("$", "")


def _letters(text: str, allowed: str) -> list[int]:
    """Places of the capitals that stand alone and name an option."""
    return [
        match.start()
        for match in re.finditer(rf"(?<![a-zA-Z0-9_'’&])[{allowed}](?![a-zA-Z0-9_&]|['’]s)", text)
        if not (match[0] in "AI" and _ARTICLE.match(text, match.end()))
        and not _DENIAL.match(text, match.end())
        and not _denied(text, match.start())
    ]


def option(text: str, choices: Sequence[str]) -> int | None:
    """The first option whose text is the marked answer or the text; else the longest that opens it; or None.

    Options that are all numbers are read as a number is (`number_answered`), and words of truth as `truth_word` reads.
    """
    texts = [normalize(choice) for choice in choices]
    answer = normalize(marked_or_all(text))
    if answer in texts:
        return texts.index(answer)
    if {*texts} <= _TRUTH_WORDS and letter(text, len(choices)) is None:
        word = truth_word(text)
        return texts.index(word) if word in texts else None
    values = [parse_number(choice) for choice in choices]
    if None not in values:
        value = number_answered(text)
        return values.index(value) if value in values else None
    opening = [index for index, choice in enumerate(texts) if choice and re.match(rf"{re.escape(choice)}\b", answer)]
    return max(opening, key=lambda index: len(texts[index])) if opening else None


def mentioned(text: str, choices: Sequence[str]) -> int | None:
    """The only option that a text mentions without denying it: by its text, else by its letter; or None.

    Options that are numbers or words of truth are left to their own rules, since a sentence mentions them in passing.
    """
    answer = _without_marks(text)
    texts = [normalize(choice) for choice in choices]
    words = sorted({text for text in texts if re.search(r"[^\W\d_]{2}", text)} - _TRUTH_WORDS, key=len, reverse=True)
    if words:
        flat = " ".join(unicodedata.normalize("NFKC", answer).casefold().split())
        places = re.finditer(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)", flat)
        mentions = {match[0] for match in places if not _denied(flat, match.start())}
        if len(mentions) == 1:
            return texts.index(mentions.pop())
        if mentions:
            return None
    if not 1 <= len(choices) <= 26:
        return None
    capitals = {answer[at] for at in _letters(answer, f"A-{chr(64 + len(choices))}")}
    return ord(capitals.pop()) - 65 if len(capitals) == 1 else None


def golds(example: Example) -> tuple[str, ...]:
    """The accepted answers, without those that are empty as they are compared (white space, punctuation)."""
    answer = example.answer
    accepted = () if answer is None else (answer,) if isinstance(answer, str) else answer
    return tuple(part.strip() for part in accepted if normalize(part))


def option_of(gold: str, choices: Sequence[str]) -> int | None:
    """The place of the option that an accepted answer names: by letter, else by text; None where it names none."""
    if len(gold) == 1 and 0 <= ord(gold) - 65 < len(choices):
        return ord(gold) - 65
    texts = [normalize(choice) for choice in choices]
    return texts.index(normalize(gold)) if normalize(gold) in texts else None


def gold_options(example: Example) -> list[int]:
    """The places of the right options, that of the first accepted answer first; empty without choices or a match."""
    places = (option_of(gold, example.choices or ()) for gold in golds(example))
    return list(dict.fromkeys(place for place in places if place is not None))


def is_short(example: Example) -> bool:
    """Whether there is a gold answer that can be compared as a text: one line, or the response itself.

    A test program (MBPP, HumanEval) has several lines and is not an answer that a model could give.
    """
    accepted = golds(example)
    return any("\n" not in gold or normalize(gold) == normalize(example.response) for gold in accepted)


def matches(example: Example, text: str) -> bool:
    """Whether the text gives the example's gold answer (without a library's verifier).

    The kind of the gold answer decides the rule: an option (letter or its text), a number, a formula in LaTeX,
    yes/no/true/false, or text (the marked answer, else the text, both normalized).

    Raises:
        DataError: the example has no answer.
    """
    accepted = golds(example)
    if not accepted:
        raise DataError(f"item {example.sample_id} has no `answer` to compare with; exact_match leaves such items out.")
    choices = example.choices or ()
    rights = gold_options(example)
    if rights:
        by_letter = accepted[0] == chr(65 + rights[0])
        chosen = letter(text, len(choices)) if by_letter else None
        if chosen is not None:
            right = chosen in rights
        else:
            chosen = option(text, choices)
            if chosen is None:
                chosen = letter(text, len(choices))
            if chosen is None:
                chosen = mentioned(text, choices)
            right = chosen is not None and normalize(choices[chosen]) in {normalize(choices[place]) for place in rights}
        if right:
            return True
        if by_letter or chosen is not None:  # the options decide, but for accepted answers that are none of them
            accepted = tuple(gold for gold in accepted if option_of(gold, choices) is None)
    return any(_matches_one(gold, text) for gold in accepted)


def _matches_one(gold: str, text: str) -> bool:
    value = parse_number(gold)
    if value is not None:
        return number_answered(text) == value
    if normalize(gold) in _TRUTH_WORDS:
        return truth_word(text) == normalize(gold)
    if re.fullmatch(r"[A-J]", gold):  # an option whose choices stand in the prompt
        chosen = letter(text, 10)
        chosen = mentioned(text, [""] * 10) if chosen is None else chosen
        if chosen is not None:
            return chosen == ord(gold) - 65
    answer = marked_or_all(text)
    sums = [answer.rpartition("=")[2]] if re.search(r"\d", gold) else []  # "(4+2)/2 = 3 thousand" gives "3 thousand"
    if _compared(gold) in map(_compared, (answer, *sums)):
        return True
    if not is_formula(gold):
        return False
    return "".join(gold.split()) == "".join(answer.split()) or _same_formula(gold, answer)


def _compared(text: str) -> str:
    """The normalized text without Markdown's sign of a line, and without space around commas and before units."""
    text = re.sub(r"^\s*(?:[-*>•]|#{1,6})\s+", "", text)
    return re.sub(r"(?<=\d) (?=[^\W\d_])| ?(?=,)|(?<=,) ", "", normalize(text))


def is_formula(text: str) -> bool:
    r"""Whether a gold answer is a formula.

    It stands between ``$`` signs, has a LaTeX command such as ``\sqrt``, is a tuple or interval, or joins single
    letters and numbers by operators ("x^2+1").
    """
    inside = _unwrapped(text).strip()
    if len(inside) > _LONGEST_FORMULA or re.fullmatch(r"[\w\s]*", inside):
        return False
    latex = (len(inside) > 2 and inside[0] == inside[-1] == "$") or re.search(r"\\[a-zA-Z{]", inside)
    interval = re.fullmatch(r"[(\[][-+\d./\sa-z]+(?:,[-+\d./\sa-z]+)+[)\]]", inside)
    terms = re.fullmatch(r"[\d.\sa-z+*/^=(){}-]+", inside) and not re.search("[a-z]{2}", inside)
    joined = re.search(r"[a-z]|\d\^", inside) and re.search(r"[+*/^=]", inside)
    return bool(latex or interval or (terms and joined))


@lru_cache(maxsize=_FORMULA_PAIRS)
def _same_formula(gold: str, answer: str) -> bool:
    """Whether math-verify finds both formulas equal; what it cannot read within its time limit is no match (warned)."""
    if len(answer) > _LONGEST_FORMULA:
        return False
    from math_verify import verify  # sympy; 0.5 s
    from math_verify.errors import TimeoutException  # of a class that the library does not take for a fault of its own

    # The library's own limits are alarms of the clock: on a busy machine right answers would count as wrong.
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of having no limit of its own
    try:
        with time_limit(_FORMULA_SECONDS, TimeoutException(), of_processor=True):
            pair = [list(_formula(part)) for part in (gold, answer)]
            return bool(all(pair)) and bool(verify(*pair, raise_on_error=False, timeout_seconds=None))
    except TimeoutException:
        _log.warning(
            "math-verify compares %r with %r for more than %d seconds of processor time; it counts as wrong.",
            answer[:80],
            gold[:80],
            _FORMULA_SECONDS,
        )
        return False


@lru_cache(maxsize=_FORMULA_PAIRS)
def _formula(text: str) -> tuple[Any, ...]:
    """What math-verify reads of a text, as LaTeX alone: plain expressions go through Python's own evaluator."""
    from math_verify import LatexExtractionConfig, parse

    latex = [LatexExtractionConfig()]
    return tuple(parse(f"${text.strip().strip('$')}$", latex, raise_on_error=False, parsing_timeout=None))
