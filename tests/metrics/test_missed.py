"""Replay that a stage could not give is told, with how much of it is missing."""

import numpy as np

from longgame.metrics.tidy import Trials
from longgame.metrics.verdict import missed_notes

NAN = float("nan")
TRIALS = Trials(("a", "b", "c"), ("random", "replay"), (0, 1), np.array([0, 1, 1]), np.array([0, 0, 1]))
"""One trial of random, two of replay."""


def tables(**columns):
    return {("cost", name): np.array(held, dtype=float) for name, held in columns.items()}


def test_missed_tokens_and_items_are_summed_over_the_stages_that_missed_some():
    held = tables(
        replay_missed_tokens=[[NAN, NAN, NAN], [NAN, 0, 100], [NAN, 0, 1150]],
        proxy_items_missed=[[NAN, NAN, NAN], [NAN, 3, 0], [NAN, 0, 0]],
    )
    replayed, items = missed_notes(held, TRIALS)
    assert replayed.startswith("replay: 2 of 4 stages replayed 1,250 tokens less than its share allows: ")
    assert items.startswith("replay: 1 of 4 stages left 3 proxy items unlearned: ")


def test_nothing_is_told_where_the_share_was_reached_or_nothing_is_replayed():
    assert missed_notes(tables(replay_missed_tokens=[[NAN, NAN], [NAN, 0], [NAN, 0]]), TRIALS) == []
    assert missed_notes(tables(selected_tokens=[[NAN, 5], [NAN, 5], [NAN, 5]]), TRIALS) == []
