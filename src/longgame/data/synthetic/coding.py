"""Stage `code`: what a short piece of Python shows, and closing brackets; unseen: list methods and filters."""

from __future__ import annotations

import numpy as np

from longgame.data.synthetic.base import (
    CODE_WORDS,
    Draft,
    SubSkill,
    between,
    gym_skill,
    pick,
    plain,
    sample,
    span,
    worked,
)


def _eval_expression(rng: np.random.Generator, level: str) -> Draft:
    top = {"easy": 30, "mid": 20, "hard": 30, "ood": 200}[level]
    a, b, c, d = (int(number) for number in rng.integers(2, top, 4))
    small = between(rng, 2, 9)
    forms: dict[str, list[tuple[str, object]]] = {
        "easy": [
            (f"{a} + {b}", a + b),
            (f"{a} - {b}", a - b),
            (f"{a} > {b}", a > b),
            (f"max({a}, {b})", max(a, b)),
            (f"min({a}, {b})", min(a, b)),
        ],
        "mid": [
            (f"{a} + {b} * {small}", a + b * small),
            (f"{a} - {b} + {c}", a - b + c),
            (f"{a} // {small}", a // small),
            (f"{a} % {small}", a % small),
            (f"{a} + {b} > {c}", a + b > c),
            (f"max({a}, {b}, {c})", max(a, b, c)),
        ],
        "hard": [
            (f"({a} + {b}) * {small}", (a + b) * small),
            (f"abs({a} - {b}) + {c}", abs(a - b) + c),
            (f"({a} + {b}) % {small}", (a + b) % small),
            (f"max({a}, {b}) - min({c}, {d})", max(a, b) - min(c, d)),
            (f"{a} > {b} and {c} > {d}", a > b and c > d),
        ],
        "ood": [
            (f"({a} + {b}) * {small} - {c}", (a + b) * small - c),
            (f"max({a}, {b}, {c}) + min({b}, {c}, {d})", max(a, b, c) + min(b, c, d)),
            (f"abs({a} - {b}) + abs({c} - {d})", abs(a - b) + abs(c - d)),
            (f"({a} + {b} + {c}) // {small}", (a + b + c) // small),
        ],
    }
    expression, value = pick(rng, forms[level])
    return plain(f"What does this show?\nprint({expression})", str(value))


def _trace_variables(rng: np.random.Generator, level: str) -> Draft:
    names = sample(rng, "abcdkmnpxyz", 2)
    top = {"easy": 9, "mid": 12, "hard": 20, "ood": 60}[level]
    values = {names[0]: between(rng, 1, top)}
    lines = [f"{names[0]} = {values[names[0]]}"]
    working = [f"{names[0]}={values[names[0]]}"]
    for step in range(span(rng, level, easy=(1, 1), mid=(2, 2), hard=(3, 3), ood=(5, 5))):
        target = names[1] if step == 0 else pick(rng, names)
        source = pick(rng, list(values))
        number = between(rng, 1, top)
        operator = pick(rng, "+-*") if level != "easy" else pick(rng, "+-")
        if operator == "*":
            number = between(rng, 2, 3)
        old = values[source]
        values[target] = {"+": old + number, "-": old - number, "*": old * number}[operator]
        lines.append(f"{target} = {source} {operator} {number}")
        working.append(f"{target}={values[target]}")
    shown = pick(rng, list(values))
    program = "\n".join([*lines, f"print({shown})"])
    return worked(f"Trace this program.\n{program}", ", ".join(working), str(values[shown]))


_PAIRS = {"(": ")", "[": "]", "{": "}"}


def _close_brackets(rng: np.random.Generator, level: str) -> Draft:
    text = ""
    still_open: list[str] = []
    for _ in range(span(rng, level, easy=(2, 3), mid=(3, 4), hard=(5, 6), ood=(8, 9))):
        if still_open and rng.random() < 0.2:
            text += _PAIRS[still_open.pop()]
        opening = pick(rng, "([{")
        still_open.append(opening)
        text += f"{pick(rng, 'abcdfgkmnpqrstxyz')}{opening}"
    text += pick(rng, "abcdxyz")
    return plain(f"Close the brackets: {text}", " ".join(_PAIRS[opening] for opening in reversed(still_open)))


def _slice_string(rng: np.random.Generator, level: str) -> Draft:
    word = pick(rng, CODE_WORDS)
    if level in ("hard", "ood"):
        word = f"{word} {pick(rng, CODE_WORDS)}" if level == "ood" else word
        start = between(rng, 0, len(word) // 2)
        stop = between(rng, start + 2, len(word))
        subscript, value = pick(
            rng,
            (
                (f"[{start}:{stop}] * 2", word[start:stop] * 2),
                (f"[-{stop - start}:]", word[-(stop - start) :]),
                ("[::-1]", word[::-1]),
                (f"[{start}:{stop}] + '{word[0]}'", word[start:stop] + word[0]),
            ),
        )
    elif level == "mid":
        start = between(rng, 1, 3)
        stop = between(rng, start + 1, len(word))
        subscript, value = f"[{start}:{stop}]", word[start:stop]
    else:
        cut = between(rng, 1, len(word) - 1)
        subscript, value = pick(rng, ((f"[:{cut}]", word[:cut]), (f"[{cut}:]", word[cut:])))
    name = pick(rng, ("s", "t", "word", "text", "name"))
    return plain(f"{name} = '{word}'\nprint({name}{subscript})", value.strip())


def _list_method(rng: np.random.Generator, level: str) -> Draft:
    size = span(rng, level, easy=(2, 3), mid=(3, 4), hard=(4, 5), ood=(6, 7))
    values = [int(number) for number in rng.permutation(60)[:size]]
    name = pick(rng, ("xs", "items", "nums"))
    lines = [f"{name} = {values}"]
    for _ in range(span(rng, level, easy=(1, 1), mid=(1, 1), hard=(2, 2), ood=(3, 3))):
        method = pick(rng, ("append", "pop", "sort", "reverse", "insert", "remove"))
        number = between(rng, 60, 99)
        if method == "append":
            call = f"append({number})"
            values = [*values, number]
        elif method == "insert":
            call = f"insert(0, {number})"
            values = [number, *values]
        elif method == "remove":
            gone = pick(rng, values)
            call = f"remove({gone})"
            values = [value for value in values if value != gone]
        elif method == "pop":
            call = "pop(0)"
            values = values[1:]
        elif method == "sort":
            call = "sort()"
            values = sorted(values)
        else:
            call = "reverse()"
            values = values[::-1]
        lines.append(f"{name}.{call}")
    program = "\n".join([*lines, f"print({name})"])
    return plain(f"List after this code?\n{program}", str(values))


def _filter_parameters(low: int, high: int, bound: int) -> dict[str, int]:
    return {
        "min_numbers": low,
        "max_numbers": high,
        "min_decimals": 0,
        "max_decimals": 0,
        "min_value": -bound,
        "max_value": bound,
    }


CODING = (
    SubSkill("eval-expression", _eval_expression, (7, 9)),
    SubSkill("trace-variables", _trace_variables, (40, 60)),
    SubSkill("close-brackets", _close_brackets, (15, 22)),
    SubSkill("slice-string", _slice_string, (12, 20)),
    SubSkill("list-method", _list_method, (32, 46), pretrained=False),
    gym_skill(
        "filter-list",
        "number_filtering",
        (31, 47),
        pretrained=False,
        easy=_filter_parameters(2, 3, 30),
        mid=_filter_parameters(3, 4, 50),
        hard=_filter_parameters(4, 5, 90),
        ood=_filter_parameters(6, 7, 500),
    ),
)
