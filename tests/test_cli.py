"""Options of the command line, without starting a process."""

import pytest

from longgame.cli import _seeds
from longgame.errors import RecipeError


def test_seeds_are_numbers_and_ranges():
    assert _seeds("0, 2-4,7") == [0, 2, 3, 4, 7]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "write numbers like"),
        ("0,,1", "write numbers like"),
        ("-1", "write numbers like"),
        ("²", "write numbers like"),
        ("4-0", "4 is more than 0; write 0-4"),
        ("0-999999999", "at most 10000"),
    ],
)
def test_seeds_that_cannot_be_meant_are_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        _seeds(text)
