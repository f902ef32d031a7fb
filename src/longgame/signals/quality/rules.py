"""Quality without a model: the score in the data if there is one, else rules over the text.

A rule reads prompt and response only (`noisy`, `answer` and `verifier` would be an oracle) and returns 1.0 if it finds
nothing. Its weight is the share of quality lost at worst; the shares multiply: quality = Π (1 − weight · (1 − rule)).
A short response is never penalized: "42" and "yes" are complete answers, and rules that need words return 1.0 below
their threshold. Rules cannot detect a wrong answer that reads well, or another item's answer of the right form.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Example
from longgame.errors import DataError

_LONG_FROM, _LONG_TO = 6_000, 24_000
_DOUBLED = frozenset(
    {"the", "a", "an", "of", "to", "and", "or", "with", "at", "for", "from", "by", "are", "was", "were"}
)
_UNFINISHED = frozenset(
    {"the", "a", "an", "and", "or", "but", "of", "to", "with", "because", "if", "than", "is", "are", "was"}
)
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """the and that for was are with his they this have from had not but what all were when your can there which
        their will each about out them then she many some these would her him has you our more who its how any may also
        into than been other only over such most where after first two one used use
        der die das und ist nicht ein eine den mit von auf les des une est que pas pour dans qui los las por con para
        che per non sono uma het een van del una como mais aux sur sich dem
        och att det som inte jag han men var til med ikke jeg har kan hun skal ble
        yang dan untuk dengan ini itu tidak dari dalam saya akan ang mga nga siya hindi kwa katika hii yake
        nie jest jak ale tak przez oraz jsem jako pro bylo oli mutta kun niin ovat hogy nem egy meg csak
        bir ile icin gibi daha cok din sau este sunt iar dar amb els les pels
        sed cum quod sunt autem enim""",
    )
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:etc|vs|cf|al|approx|no|fig|dr|mr|mrs|ms|st|prof|inc|jr|sr|lbs?|sq|ft|oz|min|max|bros|co|corp|ltd|dept|vol|pp?"
    r"|[a-z])|\.\.)\.$",
    re.I,
)
_CODE = re.compile(
    r"```|^[^\S\n]*(?:def |class |import |from \w+ import|#include|<\?php|function )"
    r"|[;{}][^\S\n]*$|</\w+>|\$[\w({]| \| |[\\]\W",
    re.M,
)
_ADDRESS = re.compile(r"https?://\S+|www\.\S+|(?<!\S)\S[^\s@]*+@\S+\.\w+")
_ODD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ue000-\uf8ff\ufffd\ud800-\udfff]")
_MOJIBAKE = re.compile(r"Ã[\x80-\xbf©¨¤¶¼Ÿ±³¡]|â€[™œ\x9d“”˜¦]|Â[\xa0°·»«]|ï»¿")
_BOILERPLATE = re.compile(
    r"as an ai (?:language )?model|as a large language model|my (?:knowledge|training) (?:cut-?off|data)|lorem ipsum"
    r"|\[(?:your|insert|company|recipient)[^\]\n]{0,40}\]|<no ?(?:input|output)>|click here to|all rights reserved"
    r"|subscribe to (?:our|my)|\b(?:todo|tbd|fixme)\b:?|&(?:nbsp|amp|lt|gt|quot);",
    re.I,
)
_REFUSAL = re.compile(
    r"^\W*(?:i['’]?m sorry,? (?:but )?i (?:can(?:no|['’])t|am (?:not able|unable))"
    r"|i (?:can(?:no|['’])t|am (?:unable|not able) to) (?:help|assist|answer|provide|fulfil|comply|do that)"
    r"|sorry,? (?:but )?i can(?:no|['’])t)",
    re.I,
)
_INTERVAL = re.compile(r"[\[(] ?[^][(){}\s,;]{1,20} ?[,;] ?[^][(){}\s,;]{1,20} ?[\])]")
"""An interval of mathematics, closed or open at either end."""
_YES_NO = re.compile(r"\b(?:answer|respond|reply)\b[^.\n]{0,30}\byes\b[^.\n]{0,12}\bno\b", re.I)
_ONE_WORD = re.compile(r"\b(?:single word|(?:one|1) word only|(?:in|with|as) (?:one|a single) word)\b", re.I)
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_EQUATION = re.compile(
    rf"(?<![\w.,:)\]%$+*/^-])(?<![-+*/^(x×%] )(-?{_NUMBER}(?: ?[-+*/] ?{_NUMBER})+) ?= ?\$?(-?{_NUMBER})"
    r"(?![\w%.,]*[\d%(])(?! ?[-+*/^(])"
)

Rule = Callable[[str, str], float]
"""(prompt, response) → score in [0, 1]; 1 = nothing found."""


def charset(prompt: str, response: str) -> float:  # noqa: ARG001
    """Replacement, control or private-use characters, and text decoded with the wrong charset; a tenth of them is 0."""
    odd = len(_ODD.findall(response)) + 2 * len(_MOJIBAKE.findall(response))
    return max(0.0, 1.0 - 10.0 * odd / max(len(response), 1))


def words(prompt: str, response: str) -> float:
    """Non-words: case changing inside (`hElLo`, `hELLO`), digits inside, no vowel; or no function words.

    camelCase, acronyms, code and words of the prompt are ignored. The function words need 20 words of Latin script
    outside code and lists: in running text of some twenty languages at least one word in 20 is a function word of
    three letters or more, or is in the prompt. A text where one word in ten has a letter beyond ASCII may be in any
    language, and is not judged by them.
    """
    text = _ADDRESS.sub(" ", response)
    prompt_words = set(re.findall(r"\w+", prompt))
    new_words = [word for word in re.findall(r"[^\W_]{4,}", text) if word[0].isalpha() and word not in prompt_words]
    strange = sum(_strange(word) for word in new_words)
    score = max(0.0, 1.0 - 3.0 * strange / len(new_words)) if new_words else 1.0
    latin = [word.lower() for word in re.findall(r"[^\W\d_]+", text) if max(word) < "ɐ"]
    if len(latin) >= 20 and not _CODE.search(response):
        listed = text.count(",") + text.count("\n") + text.count("|") > len(latin) / 4
        foreign = 10 * sum(not word.isascii() for word in latin) >= len(latin)
        familiar = _FUNCTION_WORDS | {word.lower() for word in prompt_words if len(word) > 2}
        if not (listed or foreign) and sum(word in familiar for word in latin) < 0.05 * len(latin):
            score = min(score, 0.2)
    return score


def _strange(word: str) -> bool:
    if not word.isascii():
        return False
    rises = sum(low.islower() and high.isupper() for low, high in itertools.pairwise(word))
    if 4 * rises > len(word) or (word[0].islower() and word[1:].isupper()):
        return True
    if re.search(r"[a-z]{2}\d[a-z]{2}", word):
        return True
    return word.isalpha() and len(word) > 4 and not word.isupper() and not re.search("[aeiouy]", word, re.I)


def order(prompt: str, response: str) -> float:  # noqa: ARG001
    """Words out of order: a sentence end before a small letter, or a doubled article or preposition.

    Outside code, and only where there are four words or more.
    """
    parts = response.split()
    if len(parts) < 4 or _CODE.search(response):
        return 1.0
    slips = 0
    for word, following in itertools.pairwise(parts):
        ends = word[-1] in ".!?" and word[:-1].isalpha() and len(word) > 2 and not _ABBREVIATION.search(word)
        slips += ends and following[0].islower()
        slips += word.lower() == following.lower() and word.lower() in _DOUBLED
    return max(0.0, 1.0 - slips / max(1.0, len(parts) / 20.0))


def ending(prompt: str, response: str) -> float:  # noqa: ARG001
    """Cut off: an unclosed bracket, quote or code fence, or an end on a comma, hyphen or joining word.

    A long text (12 words, with a finished sentence in it) that stops on a bare word counts half.
    """
    text = _INTERVAL.sub(" ", response.rstrip()) or response.rstrip()
    has_words = any(letter.isalnum() for letter in text)
    opened = has_words and sum(text.count(left) > text.count(right) for left, right in ("()", "[]", "{}"))
    if (opened and not re.search(r"[\\][()\[\]{}]", text)) or text.count("```") % 2:
        return 0.0
    parts = text.split()
    if len(parts) > 1 and text[-1] in ",(-" and not text.endswith("--"):
        return 0.0
    if len(parts) > 2 and parts[-1] in _UNFINISHED and parts[-2][-1].isalnum():
        return 0.0
    if len(parts) >= 3 and not _CODE.search(text) and text.count('"') % 2 and not re.search(r'\d"', text):
        return 0.3
    last_line = text.splitlines()[-1]
    prose = len(parts) >= 12 and not _CODE.search(text) and re.search(r"[a-z]{2}[.!?]\s+[A-Z]", text)
    listed = re.match(r"\s*(?:[-*•]|\d+[.)]|[\w ]{1,20}:)\s", last_line)
    return 0.5 if prose and text[-1].islower() and not listed and len(last_line.split()) > 3 else 1.0


def repetition(prompt: str, response: str) -> float:  # noqa: ARG001
    """Repetition: runs of one letter, repeated three-word phrases, or text that compresses far (zlib)."""
    score = 1.0
    if re.search(r"([^\W\d_])\1{5,}", response):
        score = 0.5
    parts = response.lower().split()
    if len(parts) >= 24:
        phrases = list(zip(parts, parts[1:], parts[2:], strict=False))
        repeated = 1.0 - len(set(phrases)) / len(phrases)
        score = min(score, float(np.clip((0.8 - repeated) / 0.5, 0.0, 1.0)))
    raw = response.encode()
    if len(raw) >= 400:
        ratio = len(zlib.compress(raw)) / len(raw)
        score = min(score, float(np.clip((ratio - 0.05) / 0.15, 0.0, 1.0)))
    return score


def echo(prompt: str, response: str) -> float:
    """The prompt repeated: equal to it, or with 80 % of the five-word phrases in common (both of 8 words or more)."""
    request, answer = prompt.lower().split(), response.lower().split()
    if len(answer) >= 4 and request == answer:
        return 0.0
    if min(len(request), len(answer)) < 8:
        return 1.0
    first, second = ({tuple(text[at : at + 5]) for at in range(len(text) - 4)} for text in (request, answer))
    shared = len(first & second) / len(first | second)
    return 1.0 if shared < 0.8 else 0.0


def form(prompt: str, response: str) -> float:
    """The form that was asked for: yes or no (or true, false, maybe …), one word."""
    parts = re.findall(r"\w+", response.lower())
    if not parts:
        return 1.0
    if _YES_NO.search(prompt):
        near_ends = {*parts[:3], *parts[-8:]}
        return 1.0 if near_ends & {"yes", "no", "maybe", "true", "false", "unknown", "uncertain", "unclear"} else 0.0
    return 0.0 if _ONE_WORD.search(prompt) and len(parts) > 3 else 1.0


def arithmetic(prompt: str, response: str) -> float:  # noqa: ARG001
    """Share of the plain equations in the response (`12 + 3*2 = 18`) that hold, to the digits given."""
    equations = _EQUATION.findall(response)
    return sum(_holds(left, right) for left, right in equations) / len(equations) if equations else 1.0


def _holds(left: str, right: str) -> bool:
    total, term, operator = Fraction(0), Fraction(0), "+"
    pieces = re.findall(rf"[-+*/]|{_NUMBER}", left.replace(",", ""))
    if pieces[0] == "-":
        operator, pieces = "-", pieces[1:]
    for piece in pieces:
        if piece in "+-*/":
            operator = piece
        elif operator in "+-":
            total, term = total + term, Fraction(piece) * (1 if operator == "+" else -1)
        elif operator == "*":
            term *= Fraction(piece)
        elif Fraction(piece) == 0:
            return False
        else:
            term /= Fraction(piece)
    digits = len(right.partition(".")[2])
    rounding = Fraction(1, 2 * 10**digits) if digits or "/" in left else Fraction(0)
    return abs(total + term - Fraction(right.replace(",", ""))) <= rounding


def boilerplate(prompt: str, response: str) -> float:
    """Template text, HTML entities, adverts, or unrequested talk of being a language model."""
    hits = sum(match.lower() not in prompt.lower() for match in _BOILERPLATE.findall(response))
    return max(0.0, 1.0 - 0.5 * hits)


def refusal(prompt: str, response: str) -> float:  # noqa: ARG001
    """A bare refusal. One followed by another sentence (a reason, an alternative) is an answer, as in safety data."""
    match = _REFUSAL.search(response)
    return 0.0 if match and not re.search(r"[.!?:]\s+\w", response[match.end() :]) else 1.0


def length(prompt: str, response: str) -> float:  # noqa: ARG001
    """Falls linearly from 6,000 characters to 0 at 24,000. There is no lower end."""
    return float(np.clip((_LONG_TO - len(response)) / (_LONG_TO - _LONG_FROM), 0.0, 1.0))


RULES: Mapping[str, tuple[Rule, float]] = {
    "charset": (charset, 0.6),
    "words": (words, 0.6),
    "order": (order, 0.5),
    "ending": (ending, 0.5),
    "repetition": (repetition, 0.5),
    "echo": (echo, 0.5),
    "form": (form, 0.5),
    "arithmetic": (arithmetic, 0.5),
    "boilerplate": (boilerplate, 0.3),
    "length": (length, 0.3),
    "refusal": (refusal, 0.3),
}
"""Name → rule and its weight: the share of quality lost where the rule returns 0."""


def quality_report(example: Example) -> dict[str, float]:
    """Return what each rule gives for one example, in [0, 1], by the rule's name."""
    request = example.prompt
    if example.messages:
        request = "\n".join(content for role, content in example.messages if role != "assistant")
    return {name: rule(request, example.response) for name, (rule, _) in RULES.items()}


def rule_scores(examples: Sequence[Example]) -> Float[np.ndarray, " n"]:
    """Return the product of the rules' shares for each example, in [0, 1], float32."""
    shares = [
        np.prod([1.0 - RULES[name][1] * (1.0 - value) for name, value in quality_report(example).items()])
        for example in examples
    ]
    return np.asarray(shares, dtype=np.float32)


def quality_scores(examples: Sequence[Example]) -> Float[np.ndarray, " n"]:
    """Return one quality per example, in [0, 1], float32.

    The examples' ``quality`` if all of them have it, else the rules for *all* of them. The two scales are never mixed
    within one call, so pass a whole pool.

    Raises:
        DataError: an example's ``quality`` lies outside [0, 1].
    """
    scores = [example.quality for example in examples if example.quality is not None]
    if len(scores) < len(examples):
        return rule_scores(examples)
    for example, value in zip(examples, scores, strict=True):
        if not 0.0 <= value <= 1.0:
            raise DataError(
                f"example {example.sample_id} has quality {value}; it must lie in [0, 1]. Rescale the column."
            )
    return np.asarray(scores, dtype=np.float32)
