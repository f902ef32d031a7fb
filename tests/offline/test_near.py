"""Near-duplicates in parts: the picks of one process, from sketches beside the scores."""

import json
import random
import shutil
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from longgame.data.sources import open_source
from longgame.errors import BudgetError, RecipeError, ResumeError
from longgame.offline import near, partitioned, scoring
from longgame.offline.merging import merge_scores
from longgame.offline.near import NEAR_SKETCH, Sketches, write_sketches
from longgame.offline.options import SelectOptions
from longgame.offline.partitioned import select_in_parts
from longgame.offline.rows import DataRows
from longgame.offline.score_folder import BAD_ROWS, CONFIG, STORE, TABLE, ScoreFolder, shard_name
from longgame.offline.scorer import ModelOptions
from longgame.offline.scoring import score_into
from longgame.offline.selecting import select_to
from longgame.selection.algorithms import repeats
from longgame.signals.store import MANIFEST, SignalWriter
from longgame.signals.texts import near_duplicates_of
from support.cli import longgame_here

from .conftest import jsonl

pytest.importorskip("rensa")

TINY = ModelOptions(name="tiny")
WORDS = 30
"""Of a row. A row with one changed word shares 25 of 31 runs of three words with its origin: an index of 0.81."""


GENERATED = (Phase.generate,)
"""Failures are not made smaller: every trial writes folders of scores."""


def text_of(origin, changes):
    words = [f"w{origin}x{place}" for place in range(WORDS)]
    for place, word in changes:
        words[place] = f"new{word}"
    return {"prompt": " ".join(words[:10]), "response": " ".join(words[10:])}


CHANGES = st.lists(st.tuples(st.integers(0, WORDS - 1), st.integers(0, 2)), max_size=4)
DATA = st.lists(st.tuples(st.integers(0, 3), CHANGES), min_size=4, max_size=40)


def write_scores(folder, rows, edges, without):
    """Scores of shards that end at these rows, of all rows but some that could not be tokenized."""
    for number, (start, stop) in enumerate(zip([0, *edges], [*edges, len(rows)], strict=True), start=1):
        part = folder / shard_name(number, len(edges) + 1)
        part.mkdir(parents=True)
        inside = [row for row in range(start, stop) if row not in without]
        ids = [rows.ids[row] for row in inside]
        rng = np.random.default_rng(start)
        columns = {
            "prompt_tokens": rng.integers(1, 5, len(ids)).astype(np.float32),
            "response_tokens": rng.integers(1, 9, len(ids)).astype(np.float32),
            "loss": rng.integers(0, 6, len(ids)).astype(np.float32),  # with ties
        }
        with SignalWriter(part / f"{STORE}0", dict.fromkeys(columns, "float32"), "made") as writer:
            writer.append(ids, columns)
            writer.finish()
        files = pa.array([rows.file_of(row) for row in inside]).dictionary_encode()
        pq.write_table(
            pa.table({"sample_id": ids, "file": files, "row": rows.numbers[inside], "loss": columns["loss"]}),
            part / TABLE,
        )
        bad = [row for row in range(start, stop) if row in without]
        lines = [{"file": rows.file_of(row), "number": int(rows.numbers[row]), "reason": "made"} for row in bad]
        jsonl(part / BAD_ROWS, lines)
        config = {
            "rows": stop - start, "digest": "made", "turns": "all", "model": {"name": "made"}, "weights": "made",
            "fingerprint": "made", "seed": 0, "grading": {}, "versions": {}, "max_length": 9,
            "shard": {"number": number, "total": len(edges) + 1, "rows": len(rows), "digest": rows.digest},
        }  # fmt: skip
        (part / CONFIG).write_text(yaml.safe_dump(config), encoding="utf-8")
        (part / "tokenized.json").write_text('{"bad_rows": 0, "cut": 0}', encoding="utf-8")
        write_sketches(part, rows.take(np.arange(start, stop)))


@contextmanager
def in_any_order(seed):
    """Parts are worked on in a drawn order; small slices and blocks."""

    @contextmanager
    def mapper(function, engine, workers):
        def answers(questions):
            asked = list(questions)
            results = {}
            for place in random.Random(seed).sample(range(len(asked)), len(asked)):
                results[place] = function(asked[place])
            return [results[place] for place in range(len(asked))]

        yield answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitioned, "mapper", mapper)
        patch.setattr(near, "_SLICE", 1 + seed)
        patch.setattr(near, "_READ", 1 + seed)
        patch.setattr(repeats, "_BLOCK", 1 + seed)
        patch.setattr(repeats, "_PAIRS", 1 + seed)
        yield


@st.composite
def cases(draw):
    """Rows with planted duplicates, where shards end, and rows without scores."""
    data = draw(DATA)
    n = len(data)
    edges = sorted(draw(st.sets(st.integers(1, n - 1), max_size=3)))
    without = draw(st.sets(st.integers(0, n - 1), max_size=3))
    # every shard has a row with scores
    without -= {0, *edges}
    return data, edges, without


SELECTIONS = st.sampled_from(
    [
        ("loss", "near"),
        ("loss", "near:0.4"),
        ("loss", "near:0.65"),
        ("loss", "near:1"),
        ("dedup-minhash", None),
        ("dedup-minhash:rejected=never", "exact"),
        ("dedup-minhash:by=loss", None),
        ("dedup-minhash:by=loss,rejected=never", "near:0.9"),
        ("dedup-exact", None),
        ("dedup-exact:by=loss,rejected=never", None),
        ("dedup-exact:by=loss", "near:0.65"),
    ]
)


@settings(max_examples=25, deadline=None, phases=GENERATED)
@given(
    case=cases(),
    selection=SELECTIONS,
    budget=st.sampled_from(["20%", "60%", "3rows", "100%"]),
    partitions=st.integers(1, 6),
    seed=st.integers(0, 9),
)
def test_picks_of_parts_are_those_of_one_process(tmp_path_factory, case, selection, budget, partitions, seed):
    data, edges, without = case
    folder = tmp_path_factory.mktemp("near")
    file = jsonl(folder / "data.jsonl", [text_of(*row) for row in data])
    rows = DataRows(open_source(file))
    write_scores(folder / "scores", rows, edges, without)
    scores = folder / "scores" if edges else folder / "scores" / shard_name(1, 1)
    selector, dedup = selection
    options = SelectOptions(selector=selector, dedup=dedup, budget=budget, seed=seed)
    partitions = min(partitions, len(rows) - len(without))
    try:
        _, whole = select_to(file, folder / "one.jsonl", options, scores=scores)
    except BudgetError:
        with in_any_order(seed), pytest.raises(BudgetError):
            select_in_parts(file, None, options, scores=scores, partitions=partitions)
        return
    with in_any_order(seed):
        _, manifest = select_in_parts(file, folder / "parts.jsonl", options, scores=scores, partitions=partitions)
    assert (folder / "parts.jsonl").read_bytes() == (folder / "one.jsonl").read_bytes()
    assert manifest["picked"] == whole["picked"]
    assert manifest["data"]["candidates"] == whole["data"]["candidates"]
    assert manifest["partitions"]["exact"]
    shutil.rmtree(folder)


@settings(max_examples=15, deadline=None, phases=GENERATED)
@given(case=cases(), threshold=st.sampled_from([0.2, 0.5, 0.65, 0.8, 0.9, 1.0]), seed=st.integers(0, 9))
def test_repeats_are_those_of_an_index_of_texts(tmp_path_factory, case, threshold, seed):
    data, edges, _ = case
    folder = tmp_path_factory.mktemp("near")
    rows = DataRows(open_source(jsonl(folder / "data.jsonl", [text_of(*row) for row in data])))
    write_scores(folder / "scores", rows, edges, set())
    sketches = Sketches(folder / "scores" if edges else folder / "scores" / shard_name(1, 1))
    order = np.random.default_rng(seed).permutation(len(rows))
    with in_any_order(seed):
        as_they_come = sketches.repeats(threshold, lambda questions: [sketches.shared(slice_) for slice_ in questions])
        in_order = sketches.repeats(
            threshold, lambda questions: [sketches.shared(slice_) for slice_ in questions], order
        )
    np.testing.assert_array_equal(as_they_come, near_duplicates_of(rows.examples(), len(rows), threshold))
    np.testing.assert_array_equal(in_order, near_duplicates_of(rows.examples(), len(rows), threshold, order))
    shutil.rmtree(folder)


PLANTED = [text_of(row % 9, [(row % 7, 0)] * (row % 3)) if row % 2 else text_of(100 + row, []) for row in range(60)]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Data, and its scores with sketches by the command: of one job, and of three shards."""
    folder = tmp_path_factory.mktemp("job")
    long = {"prompt": "word " * 900, "response": "x"}
    jsonl(folder / "data.jsonl", [*PLANTED[:20], long, *PLANTED[20:], long | {"response": "y"}, *PLANTED[:4]])
    line = [
        "score",
        folder / "data.jsonl",
        "--model",
        "tiny",
        "--signals",
        f"loss,{NEAR_SKETCH}",
        "--on-bad-row",
        "skip",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "SHARD_ROWS", 16)
        patch.setattr("longgame.offline.rows.SHARD_ROWS", 16)
        for further in (["--out", "scores"], *(["--out", "shards", "--shard", f"{number}/3"] for number in (3, 1, 2))):
            done = longgame_here(*line, *further, cwd=folder)
            assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def shards(job, tmp_path):
    shutil.copytree(job / "shards", tmp_path / "shards")
    return tmp_path / "shards"


@pytest.mark.parametrize("selection", [("loss", "near"), ("dedup-minhash:rejected=never", None)])
def test_commands_on_shards_give_the_subset_of_one_process(selection, job, tmp_path):
    selector, dedup = selection
    done = longgame_here("merge", tmp_path / "merged", "shards", cwd=job)
    assert done.returncode == 0, done.stderr
    line = [
        "select",
        job / "data.jsonl",
        "--selector",
        selector,
        "--budget",
        "40%",
        "--on-bad-row",
        "skip",
        "--no-page",
    ]
    line += ["--dedup", dedup] if dedup else []
    ways = {
        "one": ["--scores", "scores"],
        "merged": ["--scores", tmp_path / "merged", "--partitions", 4],
        "shards": ["--scores", "shards", "--engine", "local"],
    }
    for name, further in ways.items():
        done = longgame_here(*line, *further, "--out", tmp_path / f"{name}.jsonl", cwd=job)
        assert done.returncode == 0, done.stderr
    one = (tmp_path / "one.jsonl").read_bytes()
    assert one == (tmp_path / "merged.jsonl").read_bytes() == (tmp_path / "shards.jsonl").read_bytes()
    manifest = json.loads((tmp_path / "shards.manifest.json").read_text(encoding="utf-8"))
    assert "rensa" in manifest["partitions"]["near_sketch"]
    if dedup:
        assert manifest["data"]["duplicates"] > 0


def test_processes_find_the_same_near_duplicates(job, tmp_path):
    options = SelectOptions(selector="dedup-minhash", dedup="near:0.9", budget="50%", on_bad_row="skip")
    for name, workers in (("a", 1), ("b", 2)):
        out = tmp_path / f"{name}.jsonl"
        select_in_parts(job / "data.jsonl", out, options, scores=job / "scores", partitions=3, workers=workers)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_two_rounds_choose_among_rows_without_repeats(job, tmp_path):
    options = SelectOptions(selector="random", dedup="near", budget="90%", on_bad_row="skip")
    outcome, manifest = select_in_parts(job / "data.jsonl", None, options, scores=job / "scores", partitions=3)
    rows = DataRows(open_source(job / "data.jsonl"), on_bad_row="skip")
    repeating = near_duplicates_of(rows.examples(), len(rows), 0.8) >= 0
    assert repeating.any()
    assert not {rows.ids[row] for row in np.flatnonzero(repeating)} & {*outcome.picks.ids}
    assert manifest["partitions"]["rounds"] == 2


def test_sketches_are_added_to_scores_without_the_model(job, tmp_path, monkeypatch):
    scores = shutil.copytree(job / "scores", tmp_path / "scores")
    before = (scores / NEAR_SKETCH / "band_3.npy").read_bytes()
    shutil.rmtree(scores / NEAR_SKETCH)
    rows = DataRows(open_source(job / "data.jsonl"), on_bad_row="skip")
    monkeypatch.setattr(scoring.LoadedScorer, "load", lambda options: pytest.fail("the model is loaded"))
    score_into(rows, [NEAR_SKETCH], scores, TINY, on_bad_row="skip")
    assert (scores / NEAR_SKETCH / "band_3.npy").read_bytes() == before


def test_killed_sketches_are_resumed_with_the_same_bytes(job, tmp_path, monkeypatch):
    monkeypatch.setattr(near, "_SKETCHED", 4)
    monkeypatch.setattr(near, "_WRITTEN", 16)
    rows = DataRows(open_source(job / "data.jsonl"), on_bad_row="skip")

    def die(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sketches(tmp_path / "a", rows, die)
    steps = []
    write_sketches(tmp_path / "a", rows, steps.append)
    assert steps == [32, 48, 64, len(rows)]
    write_sketches(tmp_path / "b", rows)
    for file in (tmp_path / "b" / NEAR_SKETCH).glob("*.npy"):
        assert (tmp_path / "a" / NEAR_SKETCH / file.name).read_bytes() == file.read_bytes()


def _remade(folder, version):
    path = folder / NEAR_SKETCH / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(manifest | {"fingerprint": version(manifest["fingerprint"])}), encoding="utf-8")


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


FAULTS = {
    "no sketches": (
        lambda second: shutil.rmtree(second / NEAR_SKETCH),
        r"0002-of-0003' lacks near_sketch.*longgame score … --signals near_sketch",
    ),
    "missing": (lambda second: shutil.rmtree(second), r"1 of 3 shards .*shard-0002-of-0003"),
    "other rensa": (
        lambda second: _remade(second, lambda text: text.replace("by rensa ", "by rensa 9.")),
        r"0002-of-0003.*by rensa 9\..*0001-of-0003.*with the same rensa",
    ),
    "other settings": (
        lambda second: _remade(second, lambda text: text.replace("32 bands", "16 bands")),
        r"0002-of-0003.*128 values in 16 bands.*this longgame compares 128 values in 32 bands.*Delete that folder",
    ),
    "damaged": (lambda second: _flip(second / NEAR_SKETCH / "band_7.npy"), r"0002-of-0003.* is damaged"),
    "other data": (
        lambda second: (
            shutil.rmtree(second / NEAR_SKETCH),
            shutil.copytree(second.with_name(shard_name(1, 3)) / NEAR_SKETCH, second / NEAR_SKETCH),
        ),
        r"0002-of-0003.*lacks the sketch of [0-9a-f]{16}, which was scored\. Delete that folder",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("selection", [("loss", "near"), ("dedup-minhash", None)])
def test_wrong_sketches_are_named_with_their_fix(fault, selection, shards, job, tmp_path):
    change, message = FAULTS[fault]
    change(shards / shard_name(2, 3))
    selector, dedup = selection
    options = SelectOptions(selector=selector, dedup=dedup, on_bad_row="skip")
    with pytest.raises(ResumeError, match=message):
        select_in_parts(job / "data.jsonl", tmp_path / "s.jsonl", options, scores=shards, partitions=3)
    assert not (tmp_path / "s.jsonl").exists()


@pytest.mark.parametrize("fault", ["no sketches", "other rensa", "other settings", "damaged"])
def test_wrong_sketches_are_not_merged(fault, shards, tmp_path):
    FAULTS[fault][0](shards / shard_name(2, 3))
    with pytest.raises(ResumeError, match="0002-of-0003"):
        merge_scores(tmp_path / "merged", [shards])
    assert not (tmp_path / "merged").exists()


def test_without_rensa_scoring_ends_before_the_model(job, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rensa", None)
    rows = DataRows(open_source(job / "data.jsonl"), on_bad_row="skip")
    with pytest.raises(RecipeError, match=r"pip install 'longgame\[dedup\]'"):
        score_into(rows, ["loss", NEAR_SKETCH], tmp_path / "scores", TINY)
    assert not (tmp_path / "scores").exists()


def test_ids_of_equal_length_hold_their_order(job):
    ids = ScoreFolder(job / "scores").ids_of_folders()[0]
    assert [name.decode() for name in np.sort(ids.fixed())] == sorted(ids)
