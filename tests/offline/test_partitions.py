"""Selection in parts: exact where rows are scored by themselves; bounded, and the same anywhere, in two rounds."""

import itertools
import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import longgame
from longgame.data.formats import RowRules
from longgame.data.sources import open_source
from longgame.errors import LonggameError, RecipeError
from longgame.offline import scoring
from longgame.offline.options import SelectOptions
from longgame.offline.partitioned import partitioned_lines, select_in_parts
from longgame.offline.rows import DataRows
from longgame.offline.score_folder import shard_name
from longgame.offline.scorer import ModelOptions
from longgame.offline.scoring import score_into, shard_rows
from longgame.offline.selecting import select_to
from longgame.selection.algorithms.farthest import distances_to
from longgame.signals.quality.base import QualitySources
from longgame.signals.store import SignalWriter
from support.cli import longgame_here

from .conftest import ROWS, jsonl

TINY = ModelOptions(name="tiny")
NAMES = ["loss", "grad_norm", "embedding", "quality"]
EXACT = ["loss", "loss:per=step", "grand", "longest", "quality", "gradient:mode=norm", "dedup-exact"]
ROUNDS = [
    "diversity",
    "k-center",
    "diversity:method=k-means",
    "diversity:method=facility-location",
    "diversity:method=threshold",
    "prototypes",
    "semdedup",
    "d4",
    "random",
]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder with data in two files, its scores, and those of three shards."""
    folder = tmp_path_factory.mktemp("job")
    long = {"prompt": "word " * 900, "response": "x"}
    rows = [*ROWS[:20], long, *ROWS[20:], *ROWS[:15]]
    (folder / "data").mkdir()
    jsonl(folder / "data" / "a.jsonl", rows[:33])
    jsonl(folder / "data" / "b.jsonl", rows[33:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "SHARD_ROWS", 16)
        patch.setattr("longgame.offline.rows.SHARD_ROWS", 16)
        data = DataRows(open_source(folder / "data"))
        score_into(data, NAMES, folder / "scores", TINY, on_bad_row="skip")
        for number in (1, 2, 3):
            part = folder / "shards" / shard_name(number, 3)
            score_into(shard_rows(data, number, 3), NAMES, part, TINY, on_bad_row="skip")
    return folder


def in_parts(job, out, selector, scores="scores", **settings):
    named = {name: settings.pop(name) for name in ("partitions", "engine", "workers") if name in settings}
    options = SelectOptions(selector=selector, on_bad_row="skip", **settings)
    return select_in_parts(job / "data", out, options, scores=job / scores, overwrite=True, **named)


@pytest.mark.parametrize(
    ("selector", "budget"),
    [*itertools.product(["loss"], ["5%", "30%", "100%", "7rows", "400"]), *itertools.product(EXACT[1:], ["30%"])],
)
def test_parts_of_a_row_wise_selector_equal_one_pool(selector, budget, job, tmp_path):
    options = SelectOptions(selector=selector, budget=budget, on_bad_row="skip")
    _, whole = select_to(job / "data", tmp_path / "one.jsonl", options, scores=job / "scores")
    ways = [("scores", 1), ("scores", 4), ("scores", 75), ("shards", None), ("shards", 5)]
    for scores, partitions in ways if (selector, budget) == ("loss", "30%") else ways[1::2]:
        _, manifest = in_parts(job, tmp_path / "parts.jsonl", selector, scores, partitions=partitions, budget=budget)
        assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
        for key in ("picked", "budget", "sha256", "model"):
            assert [*manifest[key].values()][:-1] == [*whole[key].values()][:-1] if key == "sha256" else True
            if key != "sha256":
                assert manifest[key] == whole[key]
        assert manifest["data"]["digest"] == whole["data"]["digest"]
        assert manifest["data"]["candidates"] == whole["data"]["candidates"]
        assert manifest["partitions"]["exact"]


@pytest.mark.parametrize("weighted", [ROWS[::3], []])
def test_parts_keep_the_weights_of_an_earlier_selection(weighted, tmp_path):
    rows = [row | ({"longgame_weight": 2.5} if row in weighted else {}) for row in ROWS]
    data = jsonl(tmp_path / "d.jsonl", rows)
    score_into(DataRows(open_source(data)), ["loss"], tmp_path / "scores", TINY)
    options = SelectOptions(selector="loss", budget="20%")
    select_to(data, tmp_path / "one.jsonl", options, scores=tmp_path / "scores")
    select_in_parts(data, tmp_path / "parts.jsonl", options, scores=tmp_path / "scores", partitions=3)
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert ('"longgame_weight": 2.5' in (tmp_path / "parts.jsonl").read_text()) == bool(weighted)


@pytest.mark.parametrize("out", ["s.jsonl.gz", "s.parquet", "folder"])
def test_parts_write_every_kind_of_output(out, job, tmp_path):
    options = SelectOptions(selector="loss", budget="20%", dedup="exact", on_bad_row="skip", budget_of="response")
    select_to(job / "data", tmp_path / "one" / out, options, scores=job / "scores")
    in_parts(job, tmp_path / "parts" / out, "loss", partitions=3, budget="20%", dedup="exact", budget_of="response")
    rows = [[read() for *_, read in open_source(tmp_path / name / out).rows()] for name in ("one", "parts")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("selector", ROUNDS)
def test_two_rounds_do_not_depend_on_workers_or_shards(selector, job, tmp_path):
    outcome, manifest = in_parts(job, tmp_path / "a.jsonl", selector, partitions=4, budget="20%")
    again, _ = in_parts(job, tmp_path / "b.jsonl", selector, "shards", partitions=4, budget="20%")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert outcome.spent == again.spent <= outcome.asked
    assert sorted(outcome.rank.tolist()) == list(range(1, len(outcome.rank) + 1))
    claim = manifest["partitions"]
    assert (claim["partitions"], claim["rounds"], claim["exact"]) == (4, 2, False)
    assert claim["holds"]


@pytest.mark.parametrize(("budget", "far"), [("10%", False), ("25%", True)])
def test_prototypes_decide_by_the_whole_budget_in_parts(budget, far, job, tmp_path):
    options = SelectOptions(selector="prototypes", budget=budget, dedup="exact", on_bad_row="skip")
    one, _ = select_to(job / "data", tmp_path / "one.jsonl", options, scores=job / "scores")
    assert (np.nanmax(one.terms["score"]) > 0) == far
    for partitions in (2, 8):
        outcome, _ = in_parts(
            job, tmp_path / "parts.jsonl", "prototypes", partitions=partitions, budget=budget, dedup="exact"
        )
        assert (outcome.picks.terms["score"].max() > 0) == far


@pytest.mark.parametrize("selector", ["loss", "k-center"])
def test_select_in_python_has_the_parts_of_the_command(selector, job, tmp_path):
    _, manifest = in_parts(job, tmp_path / "a.jsonl", selector, partitions=3, budget="20%")
    options = {"selector": selector, "budget": "20%", "on_bad_row": "skip", "scores": job / "scores", "partitions": 3}
    subset = longgame.select(job / "data", **options)
    written = longgame.select(job / "data", **options, out=tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert subset.to_dict() == written.to_dict()
    assert len(subset) == manifest["picked"]["rows"]
    assert subset.manifest["picked"] == written.manifest["picked"] == manifest["picked"]
    assert "in 3 parts" in subset._repr_html_()
    with pytest.raises(RecipeError, match="a selection in parts explains no rows"):
        subset.explain()
    with pytest.raises(RecipeError, match="model, target reads more than a folder of scores"):
        longgame.select(job / "data", **options, model="tiny", target=job / "data")
    with pytest.raises(RecipeError, match="Run longgame score first"):
        longgame.select(job / "data", **{**options, "scores": None})


def test_processes_give_the_same_bytes(job, tmp_path):
    for selector in ("loss", "diversity"):
        in_parts(job, tmp_path / "a.jsonl", selector, partitions=4, workers=1)
        in_parts(job, tmp_path / "b.jsonl", selector, partitions=4, workers=2)
        assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


@settings(max_examples=8, deadline=None)
@given(partitions=st.integers(2, 12), share=st.sampled_from(["3rows", "9rows", "10%", "45%"]), seed=st.integers(0, 3))
def test_the_radius_of_two_rounds_holds(job, tmp_path_factory, partitions, share, seed):
    out = tmp_path_factory.mktemp("radius") / "s.jsonl"
    outcome, manifest = in_parts(job, out, "diversity", partitions=partitions, budget=share, seed=seed)
    embeddings = scoring.ScoreFolder(job / "scores").column("embedding")
    picks = outcome.picks.rows
    distance = distances_to(np.delete(embeddings, picks, axis=0), embeddings[picks])
    assert distance.max(initial=0.0) <= manifest["partitions"]["radius"]
    one = SelectOptions(selector="diversity", budget=share, on_bad_row="skip", seed=seed)
    exact, _ = select_to(job / "data", out.with_name("one.jsonl"), one, scores=job / "scores")
    if share.endswith("rows") and partitions <= 4:  # equal costs, and every part picks as many as the pool
        rest = np.delete(embeddings, exact.picks - (exact.picks > 20), axis=0)
        best = distances_to(rest, embeddings[exact.picks - (exact.picks > 20)]).max(initial=0.0)
        assert distance.max(initial=0.0) <= 4 * best * (1 + 1e-5)


def scores_of(folder, embeddings, costs):
    """A data file and a folder of scores of it: these embeddings, and responses of so many tokens."""
    folder.mkdir(parents=True)
    data = jsonl(folder / "data.jsonl", [{"prompt": f"q {row}", "response": "a"} for row in range(len(costs))])
    rows, scores = DataRows(open_source(data)), folder / "scores"
    columns = {"prompt_tokens": 0 * costs, "response_tokens": costs, "embedding": embeddings}
    with SignalWriter(scores / "signals-x", dict.fromkeys(columns, "float32"), "f") as writer:
        writer.append(list(rows.ids), {name: column.astype(np.float32) for name, column in columns.items()})
        writer.finish()
    config = {"fingerprint": "f", "rows": len(rows), "digest": rows.digest, "turns": "all", "max_length": 9}
    config |= {"model": {"name": "m"}, "weights": "w"}
    (scores / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    table = {"sample_id": list(rows.ids), "file": list(rows.files()), "row": rows.numbers}
    pq.write_table(pa.table(table), scores / "scores.parquet")
    return data, scores


@pytest.mark.parametrize("selector", ["diversity", "diversity:partitions=2"])
@pytest.mark.parametrize("costs", ["equal", "alike", "unequal"])
@pytest.mark.parametrize("clustered", [False, True])
def test_the_factor_is_above_the_ratio_to_the_best_picks(selector, costs, clustered, tmp_path):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        points = rng.standard_normal((10, 2)) + clustered * 100 * np.eye(5, 2)[rng.integers(0, 3, 10)]
        tokens = {"equal": np.full(10, 4), "alike": rng.integers(4, 6, 10), "unequal": rng.integers(1, 9, 10)}[costs]
        data, scores = scores_of(tmp_path / str(seed), points, tokens)
        options = SelectOptions(selector=selector, budget="14")
        outcome, manifest = select_in_parts(data, None, options, scores=scores, partitions=3)
        gaps = np.sqrt(((points[:, None] - points) ** 2).sum(axis=2))
        choices = (list(rows) for k in range(1, 10) for rows in itertools.combinations(range(10), k))
        best = min(gaps[:, rows].min(axis=1).max() for rows in choices if tokens[rows].sum() <= 14)
        radius, factor = (manifest["partitions"][name] for name in ("radius", "factor"))
        assert gaps[:, outcome.picks.rows].min(axis=1).max() <= radius
        if costs == "equal" and selector == "diversity":
            assert factor >= radius / best * (1 - 1e-6) >= 1 - 1e-6
        assert factor is None or factor >= radius / best * (1 - 1e-6)
        line = next(line for line in partitioned_lines(outcome, manifest) if "is within" in line)
        printed = [float(number) for number in re.findall(r"\d+\.?\d*", line)]
        assert all(shown >= known for shown, known in zip(printed, filter(None, (radius, factor)), strict=True))


def test_no_two_exact_duplicates_are_picked(job, tmp_path):
    outcome, _ = in_parts(job, tmp_path / "a.jsonl", "dedup-exact:rejected=never", partitions=5, budget="90%")
    contents = [sample_id.partition("#")[0] for sample_id in outcome.picks.ids]
    assert len(set(contents)) == len(contents)


def test_one_part_is_the_selection_itself(job, tmp_path):
    line = ["select", job / "data", "--scores", "scores", "--selector", "diversity", "--no-page"]
    line += ["--on-bad-row", "skip", "--out"]
    for name, further in (("one", []), ("parts", ["--partitions", "1"])):
        done = longgame_here(*line, tmp_path / f"{name}.jsonl", *further, cwd=job)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "parts.jsonl").read_bytes()


def test_the_command_prints_the_bound(job, tmp_path):
    line = [
        "select",
        job / "data",
        "--scores",
        "shards",
        "--selector",
        "k-center",
        "--budget",
        "20%",
        "--engine",
        "local",
    ]
    done = longgame_here(*line, "--out", tmp_path / "s.jsonl", cwd=job)
    assert done.returncode == 0, done.stderr
    assert "in 3 parts: two rounds (every candidate lies within the radius of a pick)" in done.stdout
    radius = json.loads((tmp_path / "s.manifest.json").read_text(encoding="utf-8"))["partitions"]["radius"]
    printed = re.search(r"every candidate is within (\S+) of a pick", done.stdout)
    assert radius <= float(printed[1]) <= radius * (1 + 1e-5)


def test_a_budget_above_the_pool_is_said(job, tmp_path):
    outcome, _ = in_parts(job, tmp_path / "s.jsonl", "loss", partitions=2, budget="9999rows")
    assert outcome.notes == ("the budget holds all 75 candidates, so nothing was left out",)
    options = SelectOptions(selector="loss", budget="9999rows", on_bad_row="skip")
    whole, _ = select_to(job / "data", tmp_path / "t.jsonl", options, scores=job / "scores")
    assert whole.notes == outcome.notes


OWN = """
from longgame import Selector
from longgame.selection.methods.loss import LossSelector

class Mine(Selector):
    name = "mine"
    requires = ("loss",)
    def score(self, pool, signals, history):
        return signals["loss"] - signals["loss"].mean()

class Child(LossSelector):
    name = "child"
    def score(self, pool, signals, history):
        return signals["loss"] - signals["loss"].mean()

class Rowwise(Mine):
    by_row = True
    def score(self, pool, signals, history):
        return -signals["loss"]

class Near(Rowwise):
    requires = ("loss", "near_group")

class Reader(Mine):
    by_row = True
    def score(self, pool, signals, history):
        return signals["loss"] + len(pool.examples[0].prompt)
"""


FAULTS = {
    "other selector": ({"selector": "ppl-mid"}, "'ppl-mid' has no form in parts.*Use --partitions 1, or one of d4"),
    "own selector": ({"selector": "own.py:Mine"}, "'own.py:Mine' has no form in parts.*sets by_row = True where score"),
    "own child": ({"selector": "own.py:Child"}, "'own.py:Child' has no form in parts"),
    "texts": ({"selector": "own.py:Reader"}, "'own.py:Reader' reads texts, which a folder of scores does not hold"),
    "near": ({"selector": "dedup-minhash"}, "lacks near_sketch, by which near-duplicates are found. Compute it into"),
    "own groups": ({"selector": "own.py:Near"}, "needs near_group, which is made of all candidates at once"),
    "column": ({"selector": "el2n"}, "lacks el2n, which selector 'el2n' needs. Compute it into that folder"),
    "where": ({"where": "prompt != ''"}, "--where reads the rows"),
    "dedup": ({"dedup": "near"}, "lacks near_sketch, by which near-duplicates are found. Compute it into"),
    "parts": ({"partitions": 76}, "partitions is 76, and the scores have 75 rows. Use 1 to 75"),
    "engine": ({"engine": "slurm"}, "--engine is 'slurm'"),
    "rounds": ({"selector": "diversity", "partitions": None}, "depend on the number of parts. Give --partitions"),
    "budget": ({"budget": "3"}, "the budget of 3tokens is 3 tokens here, and the shortest of 75"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_has_no_form_in_parts_is_named(fault, job, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    settings, message = FAULTS[fault]
    with pytest.raises(LonggameError, match=message):
        in_parts(job, tmp_path / "s.jsonl", **{"selector": "loss", "partitions": 2, **settings})
    assert not (tmp_path / "s.jsonl").exists()


def test_own_row_wise_selectors_are_exact(job, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    options = SelectOptions(selector="own.py:Rowwise", on_bad_row="skip")
    select_to(job / "data", tmp_path / "one.jsonl", options, scores=job / "scores")
    in_parts(job, tmp_path / "parts.jsonl", "own.py:Rowwise", partitions=7)
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--model", "tiny"], "--model reads more than a folder of scores"),
        (["--explain"], "--explain reads more than"),
        (["--scores", ""], "Run longgame score first"),
    ],
)
def test_the_command_refuses_what_parts_cannot_read(option, message, job, tmp_path):
    line = ["select", "data", "--selector", "loss", "--partitions", "3", "--out", tmp_path / "s.jsonl"]
    scores = [] if "--scores" in option else ["--scores", "scores", *option]
    done = longgame_here(*line, *scores, cwd=job)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())


def test_changed_data_is_refused(job, tmp_path):
    data = shutil.copytree(job / "data", tmp_path / "data")
    options = SelectOptions(selector="loss", on_bad_row="skip")
    with pytest.raises(LonggameError, match="The data has .*: name it as it was scored"):
        select_in_parts(data, tmp_path / "s.jsonl", options, scores=job / "scores", partitions=2)
    file = job / "data" / "a.jsonl"
    before = file.read_bytes()
    try:
        file.write_bytes(before.replace(b"What is", b"Who is"))
        with pytest.raises(LonggameError, match="is another one than was scored into"):
            in_parts(job, tmp_path / "s.jsonl", "loss", partitions=2)
    finally:
        file.write_bytes(before)


def test_rows_are_found_again_whatever_the_scale_of_quality(tmp_path):
    data = jsonl(tmp_path / "data.jsonl", [{**row, "quality": 1 + number % 5} for number, row in enumerate(ROWS)])
    grading = QualitySources.of("column:quality,low=1,high=5", None)
    table = DataRows(open_source(data), RowRules(columns=grading.columns))
    score_into(table, ["quality"], tmp_path / "scores", TINY, grading=grading)
    options = SelectOptions(selector="quality", budget="7rows")
    outcome, _ = select_in_parts(data, None, options, scores=tmp_path / "scores", partitions=3)
    assert {(1 + place % 5) for place in outcome.positions.tolist()} == {5}


def test_quality_that_is_missing_is_refused_in_parts(tmp_path, monkeypatch):
    rows = [{**row, **({"quality": 0.5} if number % 2 else {})} for number, row in enumerate(ROWS)]
    data = jsonl(tmp_path / "data.jsonl", rows)
    grading = QualitySources.of("column:quality", None)
    table = DataRows(open_source(data))
    score_into(table, ["quality"], tmp_path / "scores", TINY, grading=grading)
    with pytest.raises(RecipeError, match="quality is missing of some rows"):
        select_in_parts(
            data, tmp_path / "s.jsonl", SelectOptions(selector="quality"), scores=tmp_path / "scores", partitions=3
        )
