"""Every parameter of every selector meets odd values: it takes them, or refuses them in a sentence."""

from __future__ import annotations

import inspect
import math

import pytest

from longgame.errors import LonggameError
from longgame.selection.base import SELECTORS, Selector, build_selector

ODD = (
    -1, 0, -0.5, 1e300, 10**30, math.nan, math.inf, -math.inf, True, None, "", "nan", "odd \n text", [], {}, [1], (),
    b"x", object(),
)  # fmt: skip


@pytest.mark.parametrize("name", SELECTORS.builtin_names())
def test_odd_parameters_are_accepted_or_refused(name: str) -> None:
    for parameter in inspect.signature(type(build_selector(name))).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        for value in ODD:
            answer: object
            try:
                answer = build_selector(name, {parameter.name: value})
            except LonggameError as error:
                answer = str(error)
            named = isinstance(answer, str) and (parameter.name in answer or name in answer)
            assert named or isinstance(answer, Selector), (parameter.name, value, answer)
