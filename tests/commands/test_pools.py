"""`longgame pools` writes just the candidates that an audit of the recipe, with its axes, offers."""

import json

import pandas as pd
import pytest

from longgame.audit.checks import candidates_in, check_scores, row_contents, score_warnings
from longgame.audit.learner import sequence_of
from longgame.audit.plan import Plan, expand
from longgame.commands.pools import write_pools
from longgame.errors import DataError
from longgame.recipe import SelectorSpec, parse_recipe
from longgame.selection.base import build_selector
from longgame.selection.history import History
from longgame.signals.base import Signals
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


def file_recipe(folder, ids, **changes):
    """Two stages from files; `ids`: of the rows of each file; `quality` adds one from 1 to 5 to them."""
    for name in ("a", "b"):
        rows = [
            {"id": ids(name, n), "question": f"{name}: {n * n} and?", "answer": f"{n}", "price": n / 2, "tags": [name]}
            for n in range(30)
        ]
        if "quality" in changes:
            rows = [row | {"quality": 1 + place % 5} for place, row in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = {name: str(folder / f"{name}.jsonl") for name in "ab"}
    stages = [{"name": name, "train": path, "eval": path} for name, path in paths.items()]
    data = {"stages": stages, "pool_size": 12, "items_per_skill": 4}
    small = {"training": {"steps": 2}, "probe": {"steps": 1, "points": 2}, "proxy": {"items_per_skill": 1}}
    return parse_recipe({"name": "f", "selectors": ["random"], "seeds": [0, 1], "data": data, **small, **changes})


def test_rows_keep_their_own_id_and_columns(tmp_path):
    rec = file_recipe(tmp_path, lambda name, n: f"{name}-{n}")
    _, candidates = written(rec, tmp_path / "c")
    assert {"sample_id", "id", "price", "tags"} <= set(candidates)
    assert not {"question", "answer"} & set(candidates)
    for row in candidates.itertuples():
        name, n = row.id.split("-")
        assert row.prompt == f"{name}: {int(n) ** 2} and?"
        assert row.price == int(n) / 2
        assert json.loads(row.tags) == [name]


def test_quality_from_a_column_keeps_its_scale(tmp_path):
    rec = file_recipe(tmp_path, lambda name, n: f"{name}-{n}", quality="column:quality,low=1,high=5")
    _, candidates = written(rec, tmp_path / "c")
    assert set(candidates.quality) == {1, 2, 3, 4, 5}


def test_generated_rows_have_no_columns_of_their_own(tmp_path):
    _, candidates = written(recipe(), tmp_path)
    assert "id" not in candidates


@pytest.mark.parametrize("number", [False, True])
def test_a_score_file_may_name_rows_by_their_own_id(number, tmp_path):
    rec = file_recipe(tmp_path, lambda name, n: 100 * (name == "b") + n if number else f"{name}-{n}")
    _, candidates = written(rec, tmp_path / "c")
    candidates = candidates.assign(score=range(len(candidates)))
    files = {}
    for column in ("id", "sample_id"):
        rows = candidates[[column, "score"]].to_dict("records")
        if number and column == "id":
            rows = [{**row, "id": int(row["id"])} for row in rows]
        files[column] = tmp_path / f"{column}.jsonl"
        files[column].write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool = sequence_of(rec, 0).stages[0].pool
    scored = {
        column: build_selector(f"scores:{file}").score(pool, Signals(tuple(pool.ids), {}), History())["score"].tolist()
        for column, file in files.items()
    }
    assert scored["id"] == scored["sample_id"]
    named = rec.replace({"selectors": (SelectorSpec(name=f"scores:{files['id']}"),)})
    plan = Plan(named)
    check_scores(plan, plan.trials)
    assert score_warnings(plan, plan.trials) == []
    names = candidates_in(sequence_of(rec, 0))
    digest = row_contents([f"scores:{files['id']}"], names)
    lines = files["id"].read_text().splitlines()
    files["id"].write_text("\n".join(lines[1:]) + "\n")
    assert row_contents([f"scores:{files['id']}"], names) != digest
    with pytest.raises(DataError, match="does not name 1 of"):
        check_scores(plan, plan.trials)


def test_an_id_of_several_candidates_is_refused(tmp_path):
    rec = file_recipe(tmp_path, lambda _, n: n)
    file = tmp_path / "s.csv"
    file.write_text("id,score\n" + "".join(f"{n},1\n" for n in range(30)))
    plan = Plan(rec.replace({"selectors": (SelectorSpec(name=f"scores:{file}"),)}))
    with pytest.raises(DataError, match="is that of several candidates .* Name candidates by sample_id"):
        check_scores(plan, plan.trials)
