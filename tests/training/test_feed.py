"""The token ledger, the rounds, and how picks are dealt over steps."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longgame.errors import BudgetError, RecipeError, ResumeError
from longgame.models.processes import split_by_length, split_evenly, split_micro_batches
from longgame.selection.base import build_selector
from longgame.selection.interventions import ClusterFloor
from longgame.signals.base import Signals
from longgame.storage import read_state, write_state
from longgame.training.config import SelectionConfig
from longgame.training.feed import SelectionFeed, deal, round_of
from support.training import Coin, make_policy, make_pool


def nothing(pool, names):
    return Signals(pool.ids, {})


def make_feed(rounds, steps, budget=0.25, epochs=1, seed=0, pool=None, score=nothing):
    selection = SelectionConfig(budget=budget, rounds=rounds, epochs=epochs, seed=seed)
    return SelectionFeed(make_policy(Coin(), seed), score, selection, steps, None if rounds == "step" else pool)


def run(feed, pool, steps, start=0):
    """Ids of the batches of these steps; step by step, each step's candidates are its share of the pool."""
    chunks = np.array_split(np.arange(len(pool)), feed.steps)
    batches = []
    for step in range(start, steps):
        offered, rows = feed.batch(step, pool.take(chunks[step]) if feed.rounds == "step" else None)
        batches.append([offered.ids[row] for row in rows])
    return batches


@given(st.integers(1, 40), st.data())
def test_round_of_a_step_covers_it(steps, data):
    rounds = data.draw(st.integers(1, steps))
    for step in range(steps):
        number = round_of(step, steps, rounds)
        assert steps * number // rounds <= step < steps * (number + 1) // rounds


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 3), st.data())
def test_deal_gives_every_pick_once_per_pass(tokens, epochs, data):
    tokens = np.asarray(tokens)
    steps = data.draw(st.integers(1, len(tokens) * epochs))
    dealt = deal(tokens, steps, epochs, np.random.default_rng(0))
    flat = [row for rows in dealt for row in rows]
    assert len(dealt) == steps
    assert all(dealt)
    for start in range(0, len(flat), len(tokens)):
        assert sorted(flat[start : start + len(tokens)]) == list(range(len(tokens)))


def test_deal_cuts_nearest_to_equal_shares():
    dealt = deal(np.asarray([10] * 12), 4, 1, np.random.default_rng(1))
    assert [len(rows) for rows in dealt] == [3, 3, 3, 3]
    uneven = deal(np.asarray([1, 1, 1, 1, 1, 1, 30]), 2, 1, np.random.default_rng(0))
    assert all(uneven)


def test_deal_refuses_more_steps_than_examples():
    with pytest.raises(BudgetError, match="3 selected examples × 2 epochs cannot fill 7 steps"):
        deal(np.asarray([4, 4, 4]), 7, 2, np.random.default_rng(0))


def test_work_is_split_longest_first_into_the_lightest():
    assert split_evenly([5, 9, 4, 8], 2) == [[1, 2], [0, 3]]
    assert split_evenly([5, 9], 3) == [[1], [0], []]
    assert split_evenly([5, 9, 1], 1) == [[0, 1, 2]]


def test_micro_batches_hold_few_long_rows_or_many_short_ones():
    assert split_by_length([10, 100, 11, 12, 90, 9], 2) == [[1, 4], [0, 2, 3, 5]]
    assert split_by_length([5, 9], 3) == [[1], [0], []]
    assert split_by_length([100, 1, 1, 1], 3) == [[0], [1, 2], [3]]
    assert split_by_length([5, 9, 1], 1) == [[0, 1, 2]]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 3))
def test_no_other_split_of_micro_batches_pads_the_largest_to_less(lengths, parts):
    def largest(split):
        return max(len(part) * max(lengths[place] for place in part) for part in split if part)

    split = split_by_length(lengths, parts)
    assert sorted(place for part in split for place in part) == list(range(len(lengths)))
    assert sum(map(bool, split)) == min(parts, len(lengths))
    assert len(split) == parts
    every = (
        [[place for place, part in enumerate(choice) if part == number] for number in range(parts)]
        for choice in product(range(parts), repeat=len(lengths))
    )
    assert largest(split) == min(map(largest, every))


@pytest.mark.parametrize("padded", [True, False])
def test_micro_batches_are_dealt_to_and_fro_from_the_most_expensive(padded):
    dealt = split_micro_batches([8, 1, 7, 5, 6, 2, 4, 3], 4, 2, padded)
    assert dealt == [[[0], [3], [6], [1]], [[2], [4], [7], [5]]]
    assert split_micro_batches([5, 9], 2, 2, padded) == [[[1], []], [[0], []]]
    assert split_micro_batches([5, 9], 1) == [[[0, 1]]]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_no_process_has_more_to_do_than_another_by_above_its_largest_micro_batch(lengths, parts, processes, padded):
    dealt = split_micro_batches(lengths, parts, processes, padded)
    assert [len(split) for split in dealt] == [parts] * processes
    assert sorted(place for split in dealt for part in split for place in part) == list(range(len(lengths)))

    def cost(part):
        tokens = [lengths[place] for place in part]
        return len(part) * max(tokens, default=0) if padded else sum(tokens)

    work = [sum(map(cost, split)) for split in dealt]
    assert max(work) - min(work) <= max(cost(part) for split in dealt for part in split)


@given(
    st.sampled_from([0.1, 0.25, 0.5, 0.9, 1.0]),
    st.sampled_from(["step", 1, 2, 5]),
    st.integers(0, 20),
)
def test_every_plan_spends_its_share_to_within_one_example(budget, rounds, seed):
    pool = make_pool(120, seed)
    feed = make_feed(rounds, 6, budget, seed=seed, pool=pool)
    batches = run(feed, pool, 6)
    picked = [sample_id for ids in batches for sample_id in ids]
    assert len(set(picked)) == len(picked)
    assert feed.spent == feed.learned == sum(int(pool.tokens[pool.index[i]]) for i in picked)
    assert abs(feed.spent - budget * pool.tokens.sum()) <= pool.tokens.max()


def test_rounds_offer_only_what_was_not_picked_before():
    pool = make_pool(60)
    offered = []

    def note(pool, names):
        offered.append(set(pool.ids))
        return Signals(pool.ids, {})

    feed = make_feed(3, 6, 0.5, pool=pool, score=note)
    batches = run(feed, pool, 6)
    assert len(offered) == 3
    assert offered[0] == set(pool.ids)
    assert offered[1] == offered[0] - {i for ids in batches[:2] for i in ids}
    assert offered[2] == offered[1] - {i for ids in batches[2:4] for i in ids}


def test_epochs_repeat_picks_and_count_as_learned():
    pool = make_pool(60)
    feed = make_feed(1, 6, 0.25, epochs=3, pool=pool)
    flat = [i for ids in run(feed, pool, 6) for i in ids]
    assert {flat.count(i) for i in flat} == {3}
    assert feed.learned == 3 * feed.spent


def test_short_chunk_is_granted_one_example_in_advance():
    pool = make_pool(9, 1)
    feed = make_feed("step", 2, 0.25)
    big, small = pool.take(range(8)), pool.take([8])
    assert len(feed.batch(0, big)[1]) >= 1
    offered, rows = feed.batch(1, small)
    assert [offered.ids[row] for row in rows] == [pool.ids[8]]
    feed = make_feed("step", 9, 0.05)
    with pytest.raises(BudgetError, match="Raise the budget"):
        run(feed, pool, 9)


@pytest.mark.parametrize("rounds", ["step", 1, 3])
@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_restored_feed_continues_identically(tmp_path, rounds, stop):
    pool = make_pool(60)
    expected = run(make_feed(rounds, 6, seed=4, pool=pool), pool, 6)
    feed = make_feed(rounds, 6, seed=4, pool=pool)
    run(feed, pool, stop)
    write_state(tmp_path, "feed", feed.state_dict())
    other = make_feed(rounds, 6, seed=4, pool=pool)
    other.load_state_dict(read_state(tmp_path, "feed"))
    assert run(other, pool, 6, start=stop) == expected[stop:]
    assert other.spent >= feed.spent


def test_a_state_of_another_plan_is_refused_with_what_differs():
    state = make_feed(2, 6, pool=make_pool(8)).state_dict()
    with pytest.raises(ResumeError, match=r"budget was 0\.25, is 0\.5"):
        make_feed(2, 6, 0.5, pool=make_pool(8)).load_state_dict(state)


def test_more_rounds_than_steps_and_rounds_without_a_pool_are_refused():
    with pytest.raises(RecipeError, match="only 6 steps"):
        make_feed(7, 6, pool=make_pool(8))
    with pytest.raises(RecipeError, match="there is no pool"):
        make_feed(2, 6)


def test_a_state_of_other_candidates_is_refused():
    feed = make_feed(1, 2, pool=make_pool(24))
    feed.batch(0)
    with pytest.raises(ResumeError, match="not among the 4 candidates"):
        make_feed(1, 2, pool=make_pool(24).take(range(4))).load_state_dict(feed.state_dict())


@pytest.mark.parametrize("rounds", ["step", 3])
def test_round_spends_its_share_and_what_others_left(rounds):
    pool = make_pool(120, 2)
    feed = make_feed(rounds, 6, 0.5, pool=pool)
    run(feed, pool, 6)
    spent, offered, budgets, expected = 0, 0, [], []
    for done in feed.policy.rounds:
        offered += sum(int(pool.tokens[pool.index[i]]) for i in done.candidate_ids)
        due = 0.5 * offered if rounds == "step" else 0.5 * pool.tokens.sum() * (done.number + 1) / 3
        expected.append(round(due) - spent)
        budgets.append(done.budget)
        spent += done.selection.tokens
    assert budgets == expected


@given(st.sampled_from(["step", 1, 3]), st.integers(0, 30))
def test_no_round_but_the_last_prefers_a_worse_pick_that_fits(rounds, seed):
    pool = make_pool(90, seed)
    policy = make_policy(build_selector("random"), seed)
    selection = SelectionConfig(budget=0.25, rounds=rounds, epochs=1, seed=seed)
    feed = SelectionFeed(policy, nothing, selection, 6, None if rounds == "step" else pool)
    run(feed, pool, 6)
    for entry in policy.rounds[:-1]:
        score, costs = entry.selection.scores["score"], pool.take([pool.index[i] for i in entry.candidate_ids]).costs
        order = np.argsort(-score)
        fitting = np.cumsum(costs[order]) <= entry.budget
        # the picks are a prefix of the ranking, and at least the steps of the round
        assert entry.selection.rows[: fitting.sum()].tolist() == order[fitting][: len(entry.selection.rows)].tolist()
        assert len(entry.selection.rows) == max(int(fitting.sum()), 1 if rounds == "step" else 2)
    last = policy.rounds[-1]
    costs = pool.take([pool.index[i] for i in last.candidate_ids]).costs
    assert np.delete(costs, last.selection.rows).min(initial=last.budget + 1) > last.budget - last.selection.tokens


@pytest.mark.parametrize("around", ["", "svp", "floor"])
@pytest.mark.parametrize("budget", [0.25, 0.1])
def test_prototypes_decide_by_the_budget_of_the_stage(budget, around):
    pool = make_pool(160, 3)

    def signals(offered, names):
        points = np.random.default_rng(0).normal(size=(len(pool), 4)).astype(np.float32)
        rows = [pool.index[name] for name in offered.ids]
        columns = {"cluster": np.zeros(len(rows), dtype=np.int64)}
        return Signals(offered.ids, {name: columns.get(name, points[rows]) for name in names})

    for rounds in ("step", 1, 2, 4):
        selector = build_selector("svp", {"inner": "prototypes"}) if around == "svp" else build_selector("prototypes")
        policy = make_policy(ClusterFloor(selector, 0.1) if around == "floor" else selector)
        selection = SelectionConfig(budget=budget, rounds=rounds, epochs=1, seed=0)
        feed = SelectionFeed(policy, signals, selection, 4, None if rounds == "step" else pool)
        run(feed, pool, 4)
        far = [bool(entry.selection.scores["score"].max() > 0) for entry in policy.rounds]
        assert far == [budget > 0.15] * (4 if rounds == "step" else rounds)


@given(st.sampled_from(["step", 1, 3]), st.integers(0, 20))
def test_a_budget_of_responses_spends_its_share_of_them(rounds, seed):
    pool = make_pool(90, seed)
    selection = SelectionConfig(budget=0.25, budget_of="response", rounds=rounds, epochs=1, seed=seed)
    policy = make_policy(build_selector("random"), seed)
    feed = SelectionFeed(policy, nothing, selection, 6, None if rounds == "step" else pool)
    picked = [pool.index[name] for ids in run(feed, pool, 6) for name in ids]
    share = 0.25 * pool.response_tokens.sum()
    assert abs(int(pool.response_tokens[picked].sum()) - share) <= pool.response_tokens.max()
    assert feed.spent == int(pool.tokens[picked].sum())
