from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longgame.errors import PluginError, RecipeError
from longgame.recipe import parse_recipe
from longgame.selection.base import Reserve, Selector, build_selector
from longgame.selection.budget import descending, fill_budget
from longgame.selection.history import History, Selection
from longgame.selection.interventions import ClusterFloor, ProxyPenalty, Replay, selector_of
from longgame.selection.policy import SelectionPolicy
from longgame.testing import example_pool, example_signals
from longgame.training.config import SelectionConfig
from longgame.training.feed import SelectionFeed


def reserve(own, earlier=(), proxy=None, budget=1000, seed=0):
    return Reserve(own, tuple(earlier), proxy, budget, np.random.default_rng(seed))


def walk(selector, pools, given_reserve, budget=120):
    """The policy after one stage with a round for each pool."""
    policy = SelectionPolicy(selector, History(max_embeddings=8), np.random.default_rng(0))
    policy.begin_stage(np.random.default_rng(1), given_reserve)
    for pool in pools:
        policy.choose(pool, budget, example_signals)
    return policy


def stage(selector, pools, given_reserve, budget):
    """The policy after one stage with a step for each pool, and the tokens it spent; ``budget`` is a share of them."""
    policy = SelectionPolicy(selector, History(max_embeddings=8), np.random.default_rng(0))
    policy.begin_stage(np.random.default_rng(1), given_reserve)
    feed = SelectionFeed(policy, example_signals, SelectionConfig(budget=budget), len(pools))
    for step, pool in enumerate(pools):
        feed.batch(step, pool)
    return policy, feed.spent


def joined(pools):
    own = pools[0]
    for pool in pools[1:]:
        own = own.join(pool)
    return own


def replayed_tokens(policy):
    return sum(
        int(cost)
        for entry in policy.rounds
        for cost, row in zip(entry.costs, entry.selection.rows, strict=True)
        if entry.selection.scores["replayed"][row]
    )


def replayed(policy):
    """Ids in the order in which they were replayed."""
    return [
        name
        for entry in policy.rounds
        for name, row in zip(entry.picked_ids, entry.selection.rows, strict=True)
        if entry.selection.scores["replayed"][row]
    ]


# Replay


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.05, 0.4), seed=st.integers(0, 99), rounds=st.integers(1, 8))
def test_replay_keeps_its_share_within_one_example(share, seed, rounds) -> None:
    pools = [example_pool(12, seed=100 * seed + number) for number in range(rounds)]
    own = pools[0]
    for pool in pools[1:]:
        own = own.join(pool)
    earlier = [example_pool(60, seed=1), example_pool(60, seed=2)]
    policy = walk(Replay(build_selector("loss"), share), pools, reserve(own, earlier))
    plain = walk(build_selector("loss"), pools, None)
    spent = sum(entry.selection.tokens for entry in policy.rounds)
    again = sum(
        int(cost)
        for entry in policy.rounds
        for cost, row in zip(entry.costs, entry.selection.rows, strict=True)
        if entry.selection.scores["replayed"][row]
    )
    longest = 40
    assert abs(spent - sum(entry.selection.tokens for entry in plain.rounds)) <= longest
    assert spent + policy.carry == 120 * rounds
    assert share * (spent + policy.carry) - longest < again <= share * (spent + policy.carry)


SMALL = [(10, 0.1), (20, 0.05), (20, 0.07), (30, 0.05), (30, 0.1)]
"""Candidates a step and budget: a step holds one to three examples of mean length."""
LONGEST = 40


@settings(max_examples=20, deadline=None)
@given(size=st.sampled_from(SMALL), share=st.sampled_from([0.1, 0.2, 0.5]), seed=st.integers(0, 99))
def test_replay_keeps_its_share_in_small_steps(size, share, seed) -> None:
    candidates, budget = size
    pools = [example_pool(candidates, seed=1000 * seed + number) for number in range(24)]
    own = joined(pools)
    total = round(budget * int(own.tokens.sum()))
    given_reserve = reserve(own, [example_pool(200, seed=7)], budget=total)
    policy, spent = stage(Replay(build_selector("loss"), share), pools, given_reserve, budget)
    _, bare = stage(build_selector("loss"), pools, None, budget)
    assert share * total - LONGEST < replayed_tokens(policy) <= share * (spent + policy.carry)
    assert policy.unmet == {"replay_missed_tokens": 0}
    assert abs(spent - bare) <= LONGEST
    assert spent <= total


@settings(max_examples=20, deadline=None)
@given(size=st.sampled_from(SMALL), seed=st.integers(0, 99))
def test_every_proxy_item_is_learned_however_small_the_steps(size, seed) -> None:
    candidates, budget = size
    pools = [example_pool(candidates, seed=1000 * seed + number) for number in range(24)]
    own, proxy = joined(pools), example_pool(8, seed=99 + seed)
    given_reserve = reserve(own, (), proxy, budget=round(budget * int(own.tokens.sum())))
    policy, spent = stage(Replay(build_selector("random"), proxy_as_data=True), pools, given_reserve, budget)
    assert sorted(replayed(policy)) == sorted(proxy.ids)
    assert policy.unmet == {"proxy_items_missed": 0}
    assert abs(spent - given_reserve.budget) <= LONGEST


def walked(selector, own, budgets):
    """Picks of rounds over the same candidates, each with this budget (what a round leaves is not carried here)."""
    picks, rng = [], np.random.default_rng(0)
    for budget in budgets:
        offered = selector.offer(own, budget)
        signals = example_signals(offered, ("loss",))
        chosen = selector.select(offered, signals, History(), budget, rng)
        selector.remember(offered, signals, chosen.rows)
        picks.append("".join(offered.ids[row] for row in chosen.rows))
    return picks


def begun(selector, given_reserve):
    selector.begin_stage()
    selector.use_reserve(given_reserve)
    return selector


def test_replayed_example_without_room_beside_is_the_only_pick(world) -> None:
    own, old = world([2] * 4).pool, world([3], ids=["x"]).pool
    selector = begun(Replay(build_selector("random"), 0.5), reserve(own, [old]))
    # 4 tokens a round: a half of 4 holds none of 3; a half of 8 does, and 1 token is left, with an own one of 2
    picks = walked(selector, own, [4, 4, 5])
    assert (len(picks[0]), picks[1], len(picks[2])) == (2, "x", 2)


def test_replay_saves_its_share_for_a_longer_example(world) -> None:
    own, old = world([1] * 4).pool, world([5], ids=["x"]).pool
    selector = begun(Replay(build_selector("random"), 0.5), reserve(own, [old]))
    # 2 tokens a round and what was kept: the share of 2, 4, 6, 8 and 10 tokens holds 1, 2, 3, 4 and then 5
    picks = walked(selector, own, [2, 3, 4, 5, 6])
    assert [len(names) for names in picks] == [1, 1, 1, 1, 2]
    assert "x" in picks[4]


def test_replay_passes_over_what_no_round_can_hold(world) -> None:
    own, old = world([4] * 4).pool, world([9, 4, 4], ids=["x", "y", "z"]).pool
    selector = begun(Replay(build_selector("random"), 0.5), reserve(own, [old], budget=24))
    selector._queues[0].waiting = [0, 1, 2]
    # 4 tokens a round, all of which the shortest own candidate takes: nothing can be kept back for x
    picks = walked(selector, own, [4] * 6)
    assert [names for names in picks if names in "xyz"] == ["y"]  # in the fifth round, in which x was due
    assert selector.unmet() == {"replay_missed_tokens": 0}  # 8 of 12 tokens are missing, less than x has
    assert "z" in walked(selector, own, [4] * 12)
    assert selector.unmet() == {"replay_missed_tokens": 18 * 4 // 2 - 8}


def test_replay_without_examples_left_gives_up_its_budget(world) -> None:
    own, old = world([1] * 8).pool, world([1, 1], ids=["x", "y"]).pool
    selector = begun(Replay(build_selector("random"), 0.5), reserve(own, [old], budget=16))
    picks = walked(selector, own, [4] * 4)
    assert [len(names) for names in picks] == [4, 4, 4, 4]
    assert sorted(name for names in picks for name in names if name in "xy") == ["x", "y"]
    assert selector.unmet() == {"replay_missed_tokens": 8 - 2}
    first = begun(Replay(build_selector("random"), 0.5), reserve(own, budget=16))  # nothing is earlier than this stage
    assert [len(names) for names in walked(first, own, [4] * 4)] == [4, 4, 4, 4]
    assert first.unmet() == {"replay_missed_tokens": 0}


def test_proxy_items_beyond_half_of_the_stage_are_reported() -> None:
    own, proxy = example_pool(30, seed=1), example_pool(60, seed=2)
    policy = walk(Replay(build_selector("loss"), proxy_as_data=True), [own], reserve(own, (), proxy, 100), budget=100)
    assert policy.unmet == {"proxy_items_missed": 60 - len(replayed(policy))}
    assert walk(build_selector("loss"), [own], None).unmet == {}


def test_a_share_is_counted_in_whole_tokens(world) -> None:
    own = world([1] * 3).pool
    for items, budget in ((7, 25), (29, 107), (57, 190), (58, 203)):  # several of these lose a token in float64
        proxy = world([items - 1, 1], ids=["x", "y"]).pool
        selector = begun(Replay(build_selector("random"), proxy_as_data=True), reserve(own, (), proxy, budget))
        assert set("xy") <= set(walked(selector, own, [budget])[0])
    assert any(items / budget * budget < items for items, budget in ((7, 25), (29, 107), (57, 190), (58, 203)))


def test_replay_uses_only_earlier_stages_and_none_twice() -> None:
    own, earlier = example_pool(30, seed=5), example_pool(30, seed=6)
    shared = earlier.join(own.take(range(10)))  # ten of the stage's own candidates stood in an earlier stage, too
    pools = [own.take(range(start, start + 10)) for start in (0, 10, 20)]
    found = replayed(walk(Replay(build_selector("loss"), 0.4), pools, reserve(own, [shared, earlier])))
    assert len(found) == len(set(found)) > 3
    assert set(found) <= set(earlier.ids)


def test_an_example_that_does_not_fit_waits_for_the_next_round(world) -> None:
    own, old = world([1] * 8, loss=range(8)).pool, world([3, 3], ids=["x", "y"]).pool
    selector = Replay(build_selector("loss"), 0.3)
    selector.begin_stage()
    selector.use_reserve(reserve(own, [old]))
    rng, history, counts = np.random.default_rng(0), History(), []
    for _ in range(5):  # 4 tokens a round: 1.2, 2.4, 3.6 (one of 3), 4.8, 6 (the other)
        offered = selector.offer(own, 4)
        signals = example_signals(offered, ("loss",))
        chosen = selector.select(offered, signals, history, 4, rng)
        selector.remember(offered, signals, chosen.rows)
        counts.append(len(offered) - len(own))
        assert chosen.tokens == 4
    assert counts == [0, 0, 1, 0, 1]


def test_the_selector_inside_sees_its_own_candidates_only() -> None:
    seen = []

    class Watcher(type(build_selector("loss"))):
        def select(self, pool, signals, history, budget, rng):
            assert signals.ids == pool.ids
            seen.append(pool.ids)
            return super().select(pool, signals, history, budget, rng)

    own = example_pool(20, seed=3)
    policy = walk(Replay(Watcher(), 0.5), [own], reserve(own, [example_pool(20, seed=4)]))
    assert seen == [own.ids]
    chosen = policy.rounds[0].selection
    assert np.isnan(chosen.scores["score"][len(own) :]).all()
    assert replayed(policy)
    assert policy.history.n_selected == len(chosen.rows)  # what is replayed is selected history


def test_all_selectors_of_a_seed_replay_the_same_examples() -> None:
    own, earlier = example_pool(20, seed=3), [example_pool(40, seed=4)]
    one = walk(Replay(build_selector("loss"), 0.4), [own], reserve(own, earlier))
    two = walk(Replay(build_selector("quality"), 0.4), [own], reserve(own, earlier))
    assert replayed(one) == replayed(two) != []


def test_replay_of_selected_uses_only_earlier_selections() -> None:
    first, second = example_pool(30, seed=1), example_pool(30, seed=2)
    selector = Replay(build_selector("loss"), 0.5, "selected")
    policy = walk(selector, [first], reserve(first))
    chosen = set(policy.rounds[0].picked_ids)
    assert not replayed(policy)
    fresh = Replay(build_selector("loss"), 0.5, "selected")
    fresh.load_state_dict(selector.state_dict())
    found = [replayed(walk(kind, [second], reserve(second, [first]))) for kind in (selector, fresh)]
    assert found[0] == found[1] != []
    assert set(found[0]) <= chosen


def test_proxy_items_are_spread_over_the_rounds() -> None:
    pools = [example_pool(15, seed=number) for number in range(6)]
    own = pools[0]
    for pool in pools[1:]:
        own = own.join(pool)
    proxy = example_pool(6, seed=99)
    policy = walk(Replay(build_selector("loss"), proxy_as_data=True), pools, reserve(own, (), proxy, budget=6 * 120))
    assert sorted(replayed(policy)) == sorted(proxy.ids)
    rounds = [int(entry.selection.scores["replayed"].sum()) for entry in policy.rounds]
    assert max(rounds) <= 2
    assert sum(entry.selection.tokens for entry in policy.rounds) + policy.carry == 6 * 120


def test_at_most_half_of_a_stage_goes_to_the_proxy_items() -> None:
    own, proxy = example_pool(30, seed=1), example_pool(60, seed=2)
    selector = Replay(build_selector("loss"), proxy_as_data=True)
    policy = walk(selector, [own], reserve(own, (), proxy, budget=100), budget=100)
    spent = int(policy.rounds[0].costs[-len(replayed(policy)) :].sum())
    assert 100 / 2 - 40 < spent <= 100 / 2


def test_replay_outside_an_audit_is_refused() -> None:
    with pytest.raises(PluginError, match="only an audit has"):
        walk(Replay(build_selector("loss"), 0.2), [example_pool(5)], None)


def test_proxy_items_that_do_not_exist_cannot_be_data() -> None:
    own = example_pool(5)
    with pytest.raises(RecipeError, match=r"Set proxy\.items_per_skill"):
        walk(Replay(build_selector("loss"), proxy_as_data=True), [own], reserve(own))


# Coverage constraint


def test_a_cluster_in_debt_is_filled_in_the_selectors_own_order(world) -> None:
    scene = world([1] * 8, loss=[8, 7, 6, 5, 4, 3, 2, 1], cluster=[0, 0, 0, 0, 0, 1, 1, 2])
    assert scene.picks(build_selector("loss"), 4) == "abcd"
    chosen = scene.select(ClusterFloor(build_selector("loss"), 0.25), 4)  # one token each for clusters 0, 1 and 2
    assert sorted(scene.names(chosen)) == ["a", "b", "f", "h"]
    assert chosen.scores["cluster_floor"].tolist() == [1, 0, 0, 0, 0, 1, 0, 1]
    assert chosen.scores["score"].tolist() == [8, 7, 6, 5, 4, 3, 2, 1]


def test_what_is_replayed_counts_for_the_floor_of_its_cluster(world) -> None:
    scene = world([1] * 8, loss=[8, 7, 6, 5, 4, 3, 2, 1], cluster=[0, 0, 0, 0, 0, 1, 1, 2])
    floor = ClusterFloor(build_selector("loss"), 0.25)
    floor.begin_stage()
    floor.count_replayed(scene.pool, scene.signals, np.array([5, 6]))  # two tokens of cluster 1, beside the round's 4
    # of 6 tokens each cluster is owed 1: cluster 1 has it, and 2 gets one of the round's
    assert sorted(scene.picks(floor, 4)) == ["a", "b", "c", "h"]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99))
def test_floor_with_replay_is_a_share_of_all_tokens(seed) -> None:
    pools = [example_pool(40, seed=1000 * seed + number) for number in range(6)]
    selector = Replay(ClusterFloor(build_selector("loss"), 0.12), 0.5)
    policy = walk(selector, pools, reserve(joined(pools), [example_pool(200, seed=7)]), budget=300)
    spent: dict[int, int] = {}
    for entry in policy.rounds:
        clusters = entry.signals["cluster"][entry.selection.rows].tolist()
        for cluster, cost in zip(clusters, entry.costs.tolist(), strict=True):
            spent[cluster] = spent.get(cluster, 0) + cost
    assert min(spent.values()) > 0.12 * sum(spent.values()) - LONGEST
    assert len(spent) == 5


def test_the_inner_selector_remembers_its_own_candidates_alone() -> None:
    pools = [example_pool(12, seed) for seed in (1, 2, 3)]
    inner = build_selector("selective-backprop")
    policy = walk(Replay(inner, 0.5), pools[1:], reserve(joined(pools[1:]), pools[:1]), budget=400)
    assert any(entry.selection.scores["replayed"].any() for entry in policy.rounds)
    own = [example_signals(pool, ("loss",))["loss"] for pool in pools[1:]]
    assert sorted(inner._recent.tolist()) == sorted(np.concatenate(own).tolist())


def test_floor_keeps_picks_that_pay_every_debt(world) -> None:
    scene = world([1] * 6, loss=[6, 5, 4, 3, 2, 1], cluster=[0, 1, 0, 1, 0, 1])
    plain, held = scene.select(build_selector("loss"), 4), scene.select(ClusterFloor(build_selector("loss"), 0.5), 4)
    assert scene.names(held) == scene.names(plain) == "abcd"
    assert not held.scores["cluster_floor"].any()


def test_floor_debt_grows_over_rounds_and_ends_with_the_stage(world) -> None:
    scene = world([2] * 6, loss=[6, 5, 4, 3, 2, 1], cluster=[0, 0, 0, 0, 1, 1])
    selector = ClusterFloor(build_selector("loss"), 0.2)
    # cluster 1 is owed 0.8, 1.6, 2.4 tokens: its first example comes in the third round
    assert [scene.picks(selector, 4) for _ in range(3)] == ["ab", "ab", "ea"]
    held = selector.state_dict()
    assert [scene.picks(selector, 4) for _ in range(3)] == ["ab", "ea", "ab"]  # owed 1.2, 2, then 0.8 again
    selector.begin_stage()
    assert scene.picks(selector, 4) == "ab"
    selector.load_state_dict(held)
    assert [scene.picks(selector, 4) for _ in range(2)] == ["ab", "ea"]


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["random", "loss", "diversity", "lhas"]), share=st.floats(0.02, 0.3), seed=st.integers(0, 99)
)
def test_no_cluster_stays_an_example_behind_its_floor(name, share, seed) -> None:
    selector = ClusterFloor(build_selector(name), share)
    history, rng, spent, total = History(), np.random.default_rng(seed), {}, 0
    for number in range(4):
        pool = example_pool(40, seed=1000 * seed + number)
        signals = example_signals(pool, selector.requires, seed)
        budget = int(pool.tokens.sum()) // 4
        chosen = selector.select(pool, signals, history, budget, rng)
        selector.remember(pool, signals, chosen.rows)
        history.update(chosen, pool, signals)
        clusters = signals["cluster"]
        total_before, total = total, total + chosen.tokens
        for row in chosen.rows:
            spent[clusters[row]] = spent.get(clusters[row], 0) + int(pool.tokens[row])
        floor = min(share, 1 / len(set(clusters.tolist()))) * (total_before + budget)
        free = np.setdiff1d(np.arange(len(pool)), chosen.rows)
        if number == 0:  # later rounds may be short of a cluster that an earlier round paid too much for
            for cluster in set(clusters.tolist()):
                left = [int(cost) for cost in pool.tokens[free[clusters[free] == cluster]]]
                assert not left or floor - spent.get(cluster, 0) < min(left) + 1
        assert chosen.tokens <= budget


@pytest.mark.parametrize("name", ["lhas", "lhas-adaptive"])
def test_a_floor_counts_one_measurement_a_round(name) -> None:
    pools = [example_pool(24, seed) for seed in range(5)]
    plain, inner = build_selector(name), build_selector(name)
    alone = walk(plain, pools, None)
    floor = walk(ClusterFloor(inner, 0.1), pools, None)
    assert any(entry.selection.scores["cluster_floor"].any() for entry in floor.rounds)
    assert inner._agreement == plain._agreement  # of all candidates of each round
    assert inner._agreement["future"][1] == 5
    assert getattr(inner, "alignment", None) == getattr(plain, "alignment", None)
    for entry, other in zip(floor.rounds, alone.rounds, strict=True):
        scores = [part.selection.scores["reliability"] for part in (entry, other)]
        assert scores[0].tolist() == scores[1].tolist()


def test_inner_selector_remembers_only_the_final_picks() -> None:
    for make in (lambda inner: ClusterFloor(inner, 0.19), lambda inner: ProxyPenalty(inner, 3.0)):
        selector = make(build_selector("utility-diversity"))
        pool = example_pool(40, seed=7)
        signals = example_signals(pool, selector.requires)
        plain = build_selector("utility-diversity").select(pool, signals, History(), 200, np.random.default_rng(0))
        chosen = selector.select(pool, signals, History(), 200, np.random.default_rng(0))
        selector.remember(pool, signals, chosen.rows)
        assert set(chosen.rows.tolist()) != set(plain.rows.tolist())
        held = selector.state_dict()["inner"]["buffer"]["sketches"]
        wanted = signals["logit_sketch"][chosen.rows]
        assert sorted(map(tuple, held.tolist())) == sorted(map(tuple, wanted.tolist()))


# Future-proxy penalty


def test_penalty_ranks_the_misalignment(world) -> None:
    scene = world(
        [1] * 4,
        loss=[4, 3, 2, 1],
        grad_sketch=[[-1, 0], [1, 0], [-1, 1], [0, 1]],
        future_proxy=[2, 0],
    )
    chosen = scene.select(ProxyPenalty(build_selector("loss"), 1.0), 2)
    # loss by rank 1, ⅓, −⅓, −1; misalignment 1, 0, √½, 0 by rank 1, −⅔, ⅓, −⅔
    assert chosen.scores["misalignment"] == pytest.approx([1, 0, 0.5**0.5, 0])
    assert chosen.scores["score"] == pytest.approx([0, 1, -2 / 3, -1 / 3])
    assert chosen.scores["selector_score"].tolist() == [4, 3, 2, 1]
    assert scene.names(chosen) == "ba"


def test_penalty_without_opponents_keeps_the_picks(world) -> None:
    scene = world([1] * 3, loss=[3, 2, 1], grad_sketch=[[1, 0], [0, 1], [1, 1]], future_proxy=[1, 1])
    assert scene.picks(ProxyPenalty(build_selector("loss"), 9.0), 2) == "ab"


class Own(Selector):
    """The highest loss first among what it does not reject; ``scores``: the log it gives."""

    name = "own"
    requires = ("loss",)

    def __init__(self, scores, rejects=()) -> None:
        self.scores, self.rejects = scores, rejects

    def select(self, pool, signals, history, budget, rng):
        rows = np.array([row for row in descending(signals["loss"], pool.ids) if pool.ids[row] not in self.rejects])
        return Selection.of(pool, fill_budget(rows, pool.costs, budget), self.scores(pool, signals))


def test_penalty_never_picks_what_the_selector_scores_nan(world) -> None:
    scene = world([1] * 4, loss=[4, 3, 2, 1], grad_sketch=[[1, 0], [-1, 0], [1, 0], [1, 0]], future_proxy=[1, 0])

    def scores(pool, signals):
        return {"score": np.where([name in "ac" for name in pool.ids], np.nan, signals["loss"])}

    chosen = scene.select(ProxyPenalty(Own(scores, rejects="ac"), 2.0), 2)
    assert scene.names(chosen) == "db"  # of the two that it scores, b opposes the proxy; a and c were never in question
    assert chosen.scores["score"].tolist() == [-6, -1, -6, 1]
    taken = scene.select(ProxyPenalty(Own(scores), 1.0), 4)  # it picked a and c although it could not score them
    assert set(scene.names(taken)) == set("abcd")
    assert taken.scores["score"][0] < taken.scores["score"][3]


def test_penalty_ranks_a_selector_without_score_by_pick_order(world) -> None:
    scene = world([1] * 4, loss=[4, 3, 2, 1], grad_sketch=[[-1, 0], [1, 0], [1, 0], [1, 0]], future_proxy=[1, 0])
    chosen = scene.select(ProxyPenalty(Own(lambda pool, signals: {}), 1.0), 2)
    # picks a and b: 1 and ¾, by rank 1 and ⅓, the rest −⅔; misalignment of a by rank 1, of the others −⅓
    assert chosen.scores["selector_score"].tolist() == [1, 0.75, 0, 0]
    assert chosen.scores["score"] == pytest.approx([0, 2 / 3, -1 / 3, -1 / 3])
    assert scene.names(chosen) == "ba"


@pytest.mark.parametrize("answer", [lambda pool: [True], lambda pool: np.ones(len(pool)), lambda pool: None])
def test_an_eligibility_that_is_no_mask_is_refused(world, answer) -> None:
    selector = Own(lambda pool, signals: {})
    selector.eligible = answer
    scene = world([1] * 2, loss=[2, 1], cluster=[0, 1])
    with pytest.raises(PluginError, match=r"selector 'own': eligible\(\) returned an array .* each of the 2"):
        scene.select(ClusterFloor(selector, 0.2), 2)


def test_a_penalty_without_proxy_items_is_an_error(world) -> None:
    scene = world([1], loss=[1], grad_sketch=[[1]], future_proxy=[0])
    with pytest.raises(RecipeError, match=r"or leave out proxy_penalty"):
        scene.select(ProxyPenalty(build_selector("loss"), 1.0), 1)


class Doubled(Own):
    """Highest loss first, the k-th pick with the weight k."""

    def select(self, pool, signals, history, budget, rng):
        picked = super().select(pool, signals, history, budget, rng)
        return dataclasses.replace(picked, weights=np.arange(1.0, len(picked.rows) + 1))


def test_replayed_examples_weigh_one_and_picks_keep_theirs() -> None:
    pools = [example_pool(12, seed) for seed in (1, 2, 3)]
    selector = Replay(Doubled(lambda pool, signals: {"score": pool.tokens.astype(float)}), 0.5)
    policy = walk(selector, pools[1:], reserve(joined(pools[1:]), pools[:1]), budget=400)
    checked = 0
    for entry in policy.rounds:
        again = entry.selection.scores["replayed"][entry.selection.rows] > 0
        weights = entry.selection.weights
        assert weights[again].tolist() == [1.0] * again.sum()
        assert weights[~again].tolist() == list(range(1, (~again).sum() + 1))
        checked += again.any()
    assert checked


def test_a_floor_refuses_a_selector_with_weights(world) -> None:
    scene = world([1] * 4, loss=[4, 3, 2, 1], cluster=[0, 0, 0, 1])
    selector = Doubled(lambda pool, signals: {"score": signals["loss"]})
    with pytest.raises(RecipeError, match="min_cluster_share picks others. Leave out min_cluster_share"):
        scene.select(ClusterFloor(selector, 0.34), 3)


def test_a_penalty_refuses_a_selector_with_weights(world) -> None:
    scene = world([1] * 2, loss=[1, 2], grad_sketch=[[1], [-1]], future_proxy=[1])
    selector = Doubled(lambda pool, signals: {"score": signals["loss"]})
    with pytest.raises(RecipeError, match="gives weights to its own picks"):
        scene.select(ProxyPenalty(selector, 1.0), 2)


# From a recipe


def test_recipe_and_tables_name_interventions() -> None:
    entries = [
        "loss",
        {"name": "loss", "replay": 0.2},
        {"name": "loss", "replay": {"share": 0.2, "source": "selected"}},
        {"name": "lhas", "future_weight": 0, "min_cluster_share": 0.05, "proxy_penalty": 0.5, "proxy_as_data": True},
        {"name": "random", "proxy_as_data": True, "label": "mine"},
    ]
    specs = parse_recipe({"name": "a", "selectors": entries}).selectors
    assert [spec.key for spec in specs] == [
        "loss",
        "loss + replay 20%",
        "loss + replay 20% selected",
        "lhas + proxy penalty 0.5 + min cluster 5% + proxy items",
        "mine",
    ]
    assert specs[3].parameters == {"future_weight": 0}
    assert [selector_of(spec).name for spec in specs[:4]] == [spec.key for spec in specs[:4]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replay": 1.0}, "must be less than 1"),
        ({"replay": {"share": 0.1, "source": "all"}}, "must be 'pools' or 'selected'"),
        ({"min_cluster_share": -0.1}, "must be greater than or equal to 0"),
        ({"proxy_penalty": -1}, "must be greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_named_when_the_recipe_is_read(change, message) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"name": "a", "selectors": [{"name": "loss", **change}]})
    assert message in str(caught.value)


def test_an_unknown_parameter_beside_interventions_is_named() -> None:
    spec = parse_recipe({"name": "a", "selectors": [{"name": "lhas", "replay": 0.1, "future_wieght": 2}]}).selectors[0]
    with pytest.raises(RecipeError, match="Did you mean 'future_weight'"):
        selector_of(spec)
