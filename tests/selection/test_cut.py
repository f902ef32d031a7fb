"""The cut over parts picks, row by row, what `fill_by_score` picks of the pool."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longgame.errors import BudgetError
from longgame.selection.algorithms import cut
from longgame.selection.algorithms.cut import RankedPart, exact_cut
from longgame.selection.budget import descending, fill_budget

SCORES = st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.5, -3.0, np.inf, -np.inf, np.nan])


@st.composite
def pools(draw):
    n = draw(st.integers(1, 60))
    scores = draw(st.lists(SCORES | st.floats(-1, 1), min_size=n, max_size=n))
    costs = draw(st.lists(st.integers(1, 12), min_size=n, max_size=n))
    ids = draw(st.permutations([f"{number:03d}" for number in range(n)]))
    edges = sorted(draw(st.lists(st.integers(0, n), max_size=5)))
    return np.array(scores), np.array(costs), tuple(ids), [0, *edges, n], draw(st.integers(1, sum(costs) + 5))


def picks_of_parts(scores, costs, ids, edges, budget):
    parts = [RankedPart(scores[a:b], ids[a:b], costs[a:b]) for a, b in pairwise(edges)]
    sizes = []

    def ask(answers):
        sizes.append(max(len(stretch.rows) for stretch in answers))
        return answers

    answer = exact_cut(
        [part.sketch() for part in parts],
        budget,
        lambda low, high: ask([part.between(low, high) for part in parts]),
        lambda place, most: ask([part.behind(place, most) for part in parts]),
    )
    rows = []
    for start, part, further in zip(edges, parts, answer.rows, strict=False):
        rows += [start + row for row in [*part.rows_to(answer.place).tolist(), *further.tolist()]]
    return sorted(rows), answer.spent, sizes


@pytest.mark.parametrize(("quantiles", "tail"), [(1024, 1024), (3, 2), (2, 1)])
@settings(max_examples=80, deadline=None)
@given(pool=pools())
def test_cut_over_parts_equals_one_pool(quantiles, tail, pool):
    scores, costs, ids, edges, budget = pool
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cut, "_EDGES", quantiles)
        patch.setattr(cut, "_TAIL", tail)
        allowed = np.flatnonzero(~np.isnan(scores))
        if not len(allowed) or costs[allowed].min() > budget:
            with pytest.raises(BudgetError, match="holds none of"):
                picks_of_parts(scores, costs, ids, edges, budget)
            return
        order = descending(scores, ids)[: len(allowed)]
        expected = fill_budget(order, costs, budget)
        rows, spent, _ = picks_of_parts(scores, costs, ids, edges, budget)
    assert rows == sorted(expected.tolist())
    assert spent == costs[expected].sum()


def test_cut_gathers_few_rows_even_of_equal_scores(monkeypatch):
    monkeypatch.setattr(cut, "_EDGES", 64)
    rng = np.random.default_rng(0)
    n = 40_000
    ids = tuple(f"{number:06d}" for number in rng.permutation(n))
    costs = rng.integers(10, 100, n)
    for scores in (rng.random(n), np.ones(n)):
        rows, _, sizes = picks_of_parts(scores, costs, ids, list(range(0, n + 1, n // 8)), int(costs.sum() // 10))
        assert rows == sorted(fill_budget(descending(scores, ids), costs, int(costs.sum() // 10)).tolist())
        assert max(sizes) <= max(cut._TAIL, 4 * n // 8 // 64)
