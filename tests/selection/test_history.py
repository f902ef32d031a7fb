from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from longgame.data.examples import Pool
from longgame.errors import PluginError, ResumeError
from longgame.selection.history import History, Selection
from longgame.signals.base import Signals
from longgame.testing import example_pool, example_signals

COLUMNS = ("cluster", "embedding", "grad_sketch")


def feed(history: History, numbers: range, names: tuple[str, ...] = COLUMNS) -> None:
    for number in numbers:
        pool = example_pool(12, seed=number)
        history.update(Selection.of(pool, np.arange(0, 12, 2)), pool, example_signals(pool, names, seed=number))


def marked(pool: Pool, values: np.ndarray) -> Signals:
    return Signals(pool.ids, {"embedding": values.astype(np.float32)[:, None]})


def test_history_counts_equal_hand_computed() -> None:
    pool = example_pool(4)
    signals = Signals(pool.ids, {"cluster": np.array([2, 0, 2, 7])})
    history = History()
    history.update(Selection.of(pool, np.array([2, 0])), pool, signals)
    spent = int(pool.tokens[2] + pool.tokens[0])
    assert history.cluster_tokens == {0: 0, 2: spent, 7: 0}
    assert history.cluster_counts == {0: 0, 2: 2, 7: 0}
    assert (history.n_selected, history.tokens) == (2, spent)


def picked(history: History, embeddings: list[float], seed: int) -> Pool:
    """Record a pool with these embeddings, all picked."""
    pool = example_pool(len(embeddings), seed=seed)
    history.update(Selection.of(pool, np.arange(len(pool))), pool, marked(pool, np.array(embeddings)))
    return pool


def test_other_clusters_count_every_pick_while_the_reservoir_holds_all() -> None:
    history = History(max_embeddings=5)
    first, second = picked(history, [1.0, 2.0], 0), picked(history, [3.0, 4.0, 5.0], 1)
    history.count_anew(np.array([7, 3, 7, 7, 3]))
    assert history.cluster_counts == {3: 2, 7: 3}
    assert history.cluster_tokens == {
        3: int(first.tokens[1] + second.tokens[2]),
        7: int(first.tokens[0] + second.tokens[0] + second.tokens[1]),
    }


def test_other_clusters_share_all_picks_as_the_sample_does() -> None:
    history = History(max_embeddings=4, seed=3)
    picked(history, list(range(40)), 0)
    history.count_anew(np.array([0, 1, 1, 1]))
    assert history.cluster_counts == {0: 10, 1: 30}
    assert sum(history.cluster_tokens.values()) == history.tokens
    restored = History(max_embeddings=4)
    restored.load_state_dict(history.state_dict())
    tokens = dict(history.cluster_tokens)
    restored.count_anew(np.array([0, 1, 1, 1]))
    assert restored.cluster_tokens == tokens


def test_clusters_without_embeddings_are_counted_from_now_on_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    history = History()
    history.count_anew(np.zeros(0, dtype=np.int64))
    assert not caplog.records
    feed(history, range(1), ("cluster",))
    history.count_anew(np.zeros(0, dtype=np.int64))
    assert not history.cluster_counts
    assert "Name 'embedding' beside 'cluster'" in caplog.text


def test_history_holds_only_what_the_signals_carry() -> None:
    history = History()
    feed(history, range(2), names=())
    assert history.n_selected == 12
    assert len(history.embeddings) == 0
    assert history.top_gradient_direction() is None
    assert history.cluster_tokens == {}


def test_history_size_is_bounded() -> None:
    history = History(max_embeddings=5, gradient_rows=2)
    feed(history, range(30))
    assert history.embeddings.shape == (5, 12)
    assert len(history.gradients.matrix) <= 4


def test_the_reservoir_is_a_uniform_sample() -> None:
    n, kept, trials = 40, 8, 600
    pool = example_pool(n)
    signals = marked(pool, np.arange(n))
    hits = np.zeros(n)
    for seed in range(trials):
        history = History(max_embeddings=kept, seed=seed)
        history.update(Selection.of(pool, np.arange(n)), pool, signals)
        held = history.embeddings[:, 0].astype(int)
        assert len(set(held.tolist())) == kept
        hits[held] += 1
    variance_correction = (n - 1) / (n - kept)  # draws without replacement
    statistic = ((hits - trials * kept / n) ** 2 / (trials * kept / n)).sum() * variance_correction
    assert stats.chi2.sf(statistic, n - 1) > 1e-3


def test_a_full_reservoir_keeps_all_in_order() -> None:
    pool = example_pool(6)
    history = History(max_embeddings=6)
    history.update(Selection.of(pool, np.array([5, 1, 0])), pool, marked(pool, np.arange(6)))
    assert history.embeddings[:, 0].tolist() == [5.0, 1.0, 0.0]


def test_embeddings_cannot_be_written_to() -> None:
    history = History()
    feed(history, range(1))
    with pytest.raises(ValueError, match="read-only"):
        history.embeddings[0] = 0
    feed(history, range(1, 2))  # and it still takes updates


def test_restoring_continues_identically() -> None:
    one, two = (History(max_embeddings=4, gradient_rows=2, seed=3) for _ in range(2))
    feed(one, range(5))
    state = one.state_dict()
    frozen = json.dumps(state, default=lambda array: array.tolist())
    two.load_state_dict(state)
    feed(one, range(5, 11))
    feed(two, range(5, 11))
    assert json.dumps(state, default=lambda array: array.tolist()) == frozen, "a saved state must not move on"
    first, second = one.state_dict(), two.state_dict()
    assert first.keys() == second.keys()
    np.testing.assert_equal(first, second)
    assert np.array_equal(one.top_gradient_direction(), two.top_gradient_direction())


def test_an_empty_history_can_be_saved_and_restored() -> None:
    one, two = History(), History()
    two.load_state_dict(one.state_dict())
    feed(one, range(2))
    feed(two, range(2))
    np.testing.assert_equal(one.state_dict(), two.state_dict())


def test_another_size_or_width_is_refused() -> None:
    history = History(max_embeddings=4)
    feed(history, range(2))
    with pytest.raises(ResumeError, match="max_embeddings is 3"):
        History(max_embeddings=3).load_state_dict(history.state_dict())
    pool = example_pool(2)
    with pytest.raises(PluginError, match="embedding of width 1 came after ones of width 12"):
        history.update(Selection.of(pool, np.array([0])), pool, marked(pool, np.arange(2)))
    with pytest.raises(PluginError, match="max_embeddings is 0"):
        History(max_embeddings=0)
