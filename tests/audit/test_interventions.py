"""Interventions and files of scores, walked through the closed-form world."""

import numpy as np
import pandas as pd
import pytest

from longgame.audit.execute import run_audit
from longgame.audit.learner import sequence_of
from longgame.commands.pools import write_pools
from longgame.errors import DataError
from longgame.recipe import parse_recipe
from support.quadratic_audit import Silent

ENTRIES = [
    {"name": "loss"},
    {"name": "loss", "replay": 0.3},
    {"name": "loss", "replay": {"share": 0.3, "source": "selected"}},
    {"name": "lhas", "proxy_as_data": True},
    {"name": "loss", "min_cluster_share": 0.1, "proxy_penalty": 1.0},
    {"name": "lhas-adaptive"},
]
LONGEST = 24
"""Tokens of the longest example of the quadratic world."""


def recipe(selectors=ENTRIES, **more):
    base = {
        "name": "q",
        "model": {"name": "quadratic"},
        "data": {"sequence": "quadratic", "pool_size": 360},
        "selectors": selectors,
        "seeds": [0],
        "training": {"steps": 12},
        "probe": {"steps": 6, "points": 4},
        "proxy": {"items_per_skill": 1},
    }
    return parse_recipe({**base, **more})


def run(rec, folder, display=None):
    return run_audit(rec, folder, workers=1, threads=1, display=display or Silent())


def log(result, key, stage):
    """The selection log of a stage."""
    trial = result.results[result.results.selector == key].trial.iloc[0]
    return result.selection(trial, stage)


@pytest.fixture(scope="module", params=["step", 3])
def audit(request, tmp_path_factory):
    return run(recipe(rounds=request.param), tmp_path_factory.mktemp("audit") / "q")


def pools(result):
    sequence = sequence_of(result.recipe, 0)
    return [{example.sample_id for example in stage.candidates} for stage in sequence.stages], {
        item.sample_id for stage in sequence.stages for item in stage.proxy
    }


def test_every_selector_spends_the_same_number_of_tokens_within_one_example(audit):
    spent = audit.results[audit.results.name == "selected_tokens"].pivot(
        index="stage", columns="selector", values="value"
    )
    assert spent.shape == (5, len(ENTRIES))
    assert (spent.max(axis=1) - spent.min(axis=1) <= LONGEST).all()


@pytest.mark.parametrize("key", ["loss + replay 30%", "loss + replay 30% selected"])
def test_replay_comes_from_earlier_stages_and_holds_its_share(audit, key):
    own, _ = pools(audit)
    earlier_picks: set[str] = set()
    for stage in range(1, 6):
        frame = log(audit, key, stage)
        picked = frame[frame.picked >= 0]
        again = picked[picked.term_replayed == 1]
        if stage == 1:
            assert again.empty
        else:
            share = again.tokens.sum() / picked.tokens.sum()
            assert 0.3 - 2 * LONGEST / picked.tokens.sum() < share < 0.31
            source = earlier_picks if key.endswith("selected") else set().union(*own[: stage - 1])
            assert set(again.sample_id) <= source - own[stage - 1]
            assert again.sample_id.is_unique
        rest = picked[picked.term_replayed == 0]
        assert set(rest.sample_id) <= own[stage - 1]
        earlier_picks |= set(rest.sample_id)


def test_every_proxy_item_is_learned_once_in_every_stage(audit):
    _, proxy = pools(audit)
    for stage in range(1, 6):
        frame = log(audit, "lhas + proxy items", stage)
        again = frame[(frame.picked >= 0) & (frame.term_replayed == 1)]
        assert set(again.sample_id) <= proxy
        assert again.sample_id.is_unique
        assert len(again) >= len(proxy) - 1  # the last one may not fit any more


def test_the_adaptive_weights_stand_in_the_log_of_every_round(audit):
    for stage in (1, 5):
        rounds = log(audit, "lhas-adaptive", stage).groupby("round")
        assert (rounds.term_alignment.nunique() == 1).all()
        first = rounds.first()
        np.testing.assert_allclose(first.term_future_weight, 1 - first.term_alignment, rtol=1e-5)
        assert first.term_future_weight.between(0, 2).all()


def test_an_audit_that_was_stopped_between_stages_ends_with_the_same_numbers(audit, tmp_path):
    class StopError(BaseException): ...

    class Stopping(Silent):
        def progress(self, job, stage, activity, step, steps):
            if stage == 4 and "replay" in job:
                raise StopError

    rec = recipe([ENTRIES[2]], rounds=audit.recipe.rounds)
    with pytest.raises(StopError):
        run(rec, tmp_path / "q", Stopping())
    again = run(rec, tmp_path / "q").results
    whole = audit.results[audit.results.selector == "loss + replay 30% selected"]
    frames = (frame[frame.unit != "s"].reset_index(drop=True) for frame in (again[again.selector != ""], whole))
    one, two = (frame.astype(dict.fromkeys(frame.select_dtypes("category"), str)) for frame in frames)
    pd.testing.assert_frame_equal(one, two)


def test_candidates_written_scored_and_audited_are_selected_by_their_scores(tmp_path):
    rec = recipe(["random"])
    written = write_pools(rec, tmp_path / "c")
    assert sorted(written.values()) == [5 * 360, 5 * 360]
    candidates = pd.read_parquet(tmp_path / "c" / "candidates.parquet")
    offered = pd.read_parquet(tmp_path / "c" / "pools.parquet")
    assert set(offered.sample_id) == set(candidates.sample_id)
    assert candidates.sample_id.is_unique
    scores = pd.DataFrame({"sample_id": candidates.sample_id, "score": -candidates.response_tokens})
    scores.to_parquet(tmp_path / "mine.parquet")
    name = f"scores:{tmp_path / 'mine.parquet'}"
    result = run(
        recipe(["random", {"name": name, "label": "mine"}, {"name": name, "replay": 0.2, "label": "r"}]), tmp_path / "q"
    )
    frame = log(result, "mine", 3)
    for _, offered in frame.groupby("round"):
        picked = offered[offered.picked >= 0].sort_values("picked")
        assert picked.term_score.is_monotonic_decreasing
        assert picked.term_score.iloc[0] == offered.term_score.max()
    scores.iloc[2:].to_parquet(tmp_path / "mine.parquet")
    with pytest.raises(DataError, match="does not name 2 of 1800 candidates"):
        run(recipe([name]), tmp_path / "r")
