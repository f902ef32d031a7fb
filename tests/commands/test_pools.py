"""`longgame pools` writes just the candidates that an audit of the recipe, with its axes, offers."""

import pandas as pd

from longgame.audit.checks import check_scores
from longgame.audit.learner import sequence_of
from longgame.audit.plan import Plan, expand
from longgame.commands.pools import write_pools
from longgame.recipe import parse_recipe
from support.quadratic_audit import recipe, walk


def offered(rec):
    """(condition, seed, stage, sample_id) of every candidate of every condition that has pools of its own."""
    return {
        (condition.base, seed, number, example.sample_id)
        for condition in reversed(expand(rec))
        if condition.name == condition.base
        for seed in rec.seeds
        for number, stage in enumerate(sequence_of(condition.recipe, seed).stages, start=1)
        for example in stage.candidates
    }


def written(rec, folder):
    write_pools(rec, folder)
    pools, candidates = (pd.read_parquet(folder / f"{name}.parquet") for name in ("pools", "candidates"))
    assert candidates.sample_id.is_unique
    assert set(pools.sample_id) == set(candidates.sample_id)
    return pools, candidates


def rows(pools):
    return list(pools[["condition", "seed", "stage", "sample_id"]].itertuples(index=False, name=None))


def test_conditions_with_other_data_have_rows_of_their_own_and_the_rest_share_them(tmp_path):
    rec = recipe(axes={"vary": {"data.noise": [0.4]}, "budget": [0.1, 0.5], "order": "rotations"})
    pools, candidates = written(rec, tmp_path)
    assert list(pools.condition.unique()) == ["", "data.noise=0.4"]
    assert sorted(rows(pools)) == sorted(offered(rec))
    own = set(pools[pools.condition == ""].sample_id)
    assert len(own) < len(candidates)
    crossed = written(rec.model_copy(update={"axes": rec.axes.model_copy(update={"cross": True})}), tmp_path / "x")
    pd.testing.assert_frame_equal(crossed[0], pools)


def test_orders_of_mixed_stages_have_rows_of_their_own(tmp_path):
    rec = parse_recipe(
        {
            "name": "m",
            "data": {"sequence": "procedural-skill", "pool_size": 24, "items_per_skill": 2, "mixing": 0.5},
            "selectors": ["random"],
            "seeds": [0],
            "training": {"steps": 2},
            "axes": {"order": {"permutations": 1}},
        }
    )
    pools, _ = written(rec, tmp_path)
    assert [name.partition("=")[0] for name in pools.condition.unique()] == ["", "order"]
    assert sorted(rows(pools)) == sorted(offered(rec))


def test_what_was_written_for_a_recipe_with_axes_is_all_that_its_audit_asks_for(tmp_path, monkeypatch):
    monkeypatch.setattr("longgame.report.render.html_page", lambda *_: "")
    axes = {"vary": {"data.noise": [0.4]}, "budget": [0.5]}
    _, candidates = written(recipe(axes=axes), tmp_path / "c")
    candidates.assign(score=range(len(candidates))).to_parquet(tmp_path / "mine.parquet")
    rec = recipe(selectors=["random", f"scores:{tmp_path / 'mine.parquet'}"], axes=axes)
    check_scores(Plan(rec), Plan(rec).trials)
    assert len(walk(tmp_path / "q", selectors=[f"scores:{tmp_path / 'mine.parquet'}"], seeds=[0], axes=axes)[1]) == 3
