"""What a stage replays is learned: by the trainer, in the step in which it was picked, from its own tokens."""

import numpy as np
import pytest

from longgame.recipe import TrainingSpec
from longgame.selection.base import Reserve, build_selector
from longgame.selection.history import History
from longgame.selection.interventions import Replay
from longgame.selection.policy import SelectionPolicy
from longgame.signals.base import Signals
from longgame.training import stage as module
from longgame.training.config import SelectionConfig
from longgame.training.stage import run_stage
from support.training import PAD, make_model, make_pool


@pytest.mark.parametrize("rounds", ["step", 2])
def test_the_trainer_learns_the_picks_of_each_step_replayed_ones_included(monkeypatch, rounds):
    both = make_pool()
    half = len(both) // 2
    own, earlier = both.take(range(half)), both.take(range(half, len(both)))
    policy = SelectionPolicy(Replay(build_selector("random"), 0.4), History(), np.random.default_rng(0))
    policy.begin_stage(np.random.default_rng(1), Reserve(own, (earlier,), None, 1, np.random.default_rng(2)))
    learned = []

    def spy(pool, rows, pad):
        batch = padded(pool, rows, pad)
        learned.extend(pool.ids[row] for row in rows)
        for row, ids in zip(rows, batch["input_ids"].tolist(), strict=True):
            known = both.input_ids[both.index[pool.ids[row]]].tolist()
            assert ids[: len(known)] == known
        return batch

    padded = module.padded_batch
    monkeypatch.setattr(module, "padded_batch", spy)
    report = run_stage(
        make_model(),
        pad_token_id=PAD,
        pool=own,
        policy=policy,
        selection=SelectionConfig(budget=0.5, rounds=rounds, seed=3),
        spec=TrainingSpec(steps=2, warmup_steps=1),
        scorer=lambda pool, names: Signals(pool.ids, {}),
    )
    picks = [name for entry in policy.rounds for name in entry.picked_ids]
    assert sorted(learned) == sorted(picks)
    assert set(picks) & set(own.ids)
    assert set(picks) & set(earlier.ids)
    assert report.selected_tokens == report.optimiser_tokens == sum(both.tokens[both.index[name]] for name in picks)
    assert report.selected_tokens <= 0.5 * own.tokens.sum()
    assert report.candidate_tokens >= own.tokens.sum()
