"""Equal token counts: what counts as equal, and what is said where they are not."""

import numpy as np
import pandas as pd
import pytest

from longgame.metrics.tidy import Trials
from longgame.metrics.verdict import amount_notes, unequal_amounts, with_amounts

NAN = float("nan")


def trials_of(*selectors, seeds=1):
    places = [(row, seed) for row in range(len(selectors)) for seed in range(seeds)]
    return Trials(
        tuple(f"{selectors[row]}-s{seed}" for row, seed in places),
        selectors,
        tuple(range(seeds)),
        np.array([row for row, _ in places]),
        np.array([seed for _, seed in places]),
    )


def tables(tokens, examples):
    names = ("selected_tokens", "selected_examples")
    return {("cost", name): np.array(held, dtype=float) for name, held in zip(names, (tokens, examples), strict=True)}


def test_more_than_one_example_a_stage_is_told_with_both_amounts():
    """Examples of 10 tokens; keep learns 40 and 50 of 100 and 100: 55 less a stage."""
    held = tables([[NAN, 100, 100], [NAN, 40, 50]], [[NAN, 10, 10], [NAN, 4, 5]])
    found = unequal_amounts(held, trials_of("random", "keep"), "random")
    assert found == {"keep": "55% fewer tokens learned than by random (45 against 100 per stage)"}
    (note,) = amount_notes(found)
    assert note.startswith("keep: 55% fewer tokens")
    assert "the amount and not from the choice" in note


@pytest.mark.parametrize(("tokens", "told"), [(90, False), (89, True), (110, False), (111, True)])
def test_one_example_is_what_a_budget_in_whole_examples_leaves_over(tokens, told):
    held = tables([[NAN, 100], [NAN, tokens]], [[NAN, 10], [NAN, tokens / 10]])
    assert bool(unequal_amounts(held, trials_of("random", "loss"), "random")) == told


def test_the_larger_example_is_what_counts():
    """40 tokens fewer are one example of a selector whose examples have 60 tokens."""
    held = tables([[NAN, 100], [NAN, 60]], [[NAN, 10], [NAN, 1]])
    assert unequal_amounts(held, trials_of("random", "long"), "random") == {}


def test_differences_that_cancel_over_seeds_are_none_and_unfinished_stages_are_not_compared():
    seeds = tables([[NAN, 100], [NAN, 100], [NAN, 140], [NAN, 60]], [[NAN, 10], [NAN, 10], [NAN, 14], [NAN, 6]])
    assert unequal_amounts(seeds, trials_of("random", "even", seeds=2), "random") == {}
    partial = tables([[NAN, 100, 900], [NAN, 95, NAN]], [[NAN, 10, 90], [NAN, 9, NAN]])
    assert unequal_amounts(partial, trials_of("random", "loss"), "random") == {}


def test_nothing_is_said_without_the_reference_or_the_costs():
    held = tables([[NAN, 100], [NAN, 10]], [[NAN, 10], [NAN, 1]])
    assert unequal_amounts(held, trials_of("a", "b"), "random") == {}
    del held["cost", "selected_examples"]
    assert unequal_amounts(held, trials_of("random", "b"), "random") == {}


def test_the_reason_of_every_verdict_of_the_selector_says_it():
    frame = pd.DataFrame({"view": ["p", "p", "q"], "selector": ["a", "b", "a"], "reason": ["x", "y", "z"]})
    said = with_amounts(frame, {"a": "fewer"})
    assert said.reason.tolist() == ["x; fewer", "y", "z; fewer"]
    pd.testing.assert_frame_equal(with_amounts(frame, {}), frame)
