"""The page of the methods: every selector has costs, places and tests."""

import pytest

from longgame.selection.base import SELECTORS
from studies import methods

ROWS = [
    {"task": "offline", "selector": "loss", "passes": 1.26},
    {"task": "online", "selector": "loss", "share": 0.284},
    {"task": "online", "selector": "less", "refused": "it needs a training"},
    {"task": "less", "rows": 3},
]
SOURCE = {"machine": {"processor": "a processor", "torch": "2.x"}}


@pytest.fixture(scope="module")
def tests():
    return methods.tests_of(methods.ROOT / "tests")


def test_every_method_has_a_test_of_its_own(tests):
    assert [name for name in SELECTORS.builtin_names() if not tests[name]] == []


def test_the_page_has_places_and_costs_of_each_method(tests):
    page = methods.page(ROWS, SOURCE, tests)
    assert all(page.count(f"| `{name}` |") == 2 for name in SELECTORS.builtin_names())
    loss, less = (
        next(line for line in page.splitlines() if line.startswith(f"| `{name}` |")) for name in ("loss", "less")
    )
    assert loss.endswith("| F | 1.3 × | 28% | yes |")
    assert less.endswith("| T | – | with an option | yes |")
