"""`longgame merge`: shards of a job become one folder of scores, or are refused by name."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from longgame.data.sources import open_source
from longgame.errors import LonggameError, ResumeError, StorageError
from longgame.offline import merging, scoring
from longgame.offline.merging import merge_scores
from longgame.offline.options import SelectOptions
from longgame.offline.rows import DataRows
from longgame.offline.score_folder import CONFIG, ScoreFolder, shard_name
from longgame.offline.scorer import ModelOptions
from longgame.offline.scoring import score_into, shard_rows
from longgame.offline.selecting import select_to
from longgame.signals.store import SignalWriter, remove_begun
from longgame.storage import write_state
from support.cli import environment, longgame_here

from .conftest import ROWS, jsonl

TINY = ModelOptions(name="tiny", store_dtype="float16")
NAMES = ["loss", "grad_sketch"]
DOCS = Path(__file__).parents[2] / "docs" / "scale.md"


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder with data, its scores (``whole``), and those of three shards (``parts``)."""
    folder = tmp_path_factory.mktemp("job")
    long = {"prompt": "word " * 900, "response": "x"}
    bad = {"prompt": "of no response"}
    data = jsonl(folder / "data.jsonl", [bad, *ROWS[:16], bad, *ROWS[16:20], long, *ROWS[20:], *ROWS[:5], bad])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "SHARD_ROWS", 16)
        patch.setattr("longgame.offline.rows.SHARD_ROWS", 16)
        rows = DataRows(open_source(data), on_bad_row="skip")
        score_into(rows, NAMES, folder / "whole", TINY, on_bad_row="skip")
        for number in (1, 2, 3):
            command = f"longgame score data.jsonl --signals loss --out parts --shard {number}/3"
            part = folder / "parts" / shard_name(number, 3)
            score_into(shard_rows(rows, number, 3), NAMES, part, TINY, on_bad_row="skip", command=command)
    return folder


@pytest.fixture
def parts(job, tmp_path):
    return shutil.copytree(job / "parts", tmp_path / "parts")


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_merged_shards_select_as_one_job_does(job, tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "_ROWS", 7)
    merged = merge_scores(tmp_path / "all", [job / "parts"])
    whole = scoring.ScoreFolder(job / "whole")
    assert merged.ids == whole.ids
    assert merged.names == whole.names
    for name in merged.names:
        np.testing.assert_array_equal(merged.column(name), whole.column(name))
    assert merged.config["digest"] == whole.config["digest"]
    tables = [pq.read_table(folder / "scores.parquet").to_pylist() for folder in (job / "whole", tmp_path / "all")]
    assert tables[0] == tables[1]
    for name in ("bad-rows.jsonl", "tokenized.json"):
        assert (tmp_path / "all" / name).read_bytes() == (job / "whole" / name).read_bytes()
    options = SelectOptions(selector="loss", budget="20%", on_bad_row="skip")
    for name, scores in (("a", job / "whole"), ("b", tmp_path / "all"), ("c", job / "parts")):
        select_to(job / "data.jsonl", tmp_path / f"{name}.jsonl", options, scores=scores)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "c.jsonl").read_bytes()


def test_shards_share_out_the_bad_rows_in_the_order_of_the_data(job):
    parts = [job / "parts" / shard_name(number, 3) / "bad-rows.jsonl" for number in (1, 2, 3)]
    numbers = [
        [json.loads(line)["number"] for line in path.read_text().splitlines()] for path in parts if path.exists()
    ]
    assert [number for shard in numbers for number in shard] == [1, 18, 23, 69]


def test_merging_again_changes_nothing(job, tmp_path):
    shards = [job / "parts" / shard_name(number, 3) for number in (2, 3, 1)]
    merge_scores(tmp_path / "all", shards)
    before = content(tmp_path / "all")
    merge_scores(tmp_path / "all", [job / "parts"])
    assert content(tmp_path / "all") == before
    with pytest.raises(StorageError, match="holds other scores already"):
        merge_scores(job / "whole", [job / "parts"])


def test_a_killed_merge_leaves_no_folder(job, tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(merging, "_copy_table", die)
        merge_scores(tmp_path / "all", [job / "parts"])
    assert list(tmp_path.iterdir()) == []
    merge_scores(tmp_path / "all", [job / "parts"])


def _edit(folder, **values):
    path = folder / CONFIG
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in values.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(config), encoding="utf-8")


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _blank(path):
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(200) + data[204:])


def _drop(path, name):
    pq.write_table(pq.read_table(path).drop_columns([name]), path)


FAULTS = {
    "missing": (
        lambda parts, second: shutil.rmtree(second),
        r"1 of 3 shards .*shard-0002-of-0003\. .*longgame score data\.jsonl --signals loss --out parts --shard 2/3",
    ),
    "no config": (lambda parts, second: (second / CONFIG).unlink(), r"shard-0002-of-0003' holds no scores"),
    "no table": (
        lambda parts, second: (second / "scores.parquet").unlink(),
        r"shard-0002-of-0003' is not finished.*--shard 2/3",
    ),
    "no store": (
        lambda parts, second: shutil.rmtree(next(second.glob("signals-*"))),
        r"shard-0002-of-0003' is not finished.*--shard 2/3",
    ),
    "half a store": (
        lambda parts, second: (second / "signals-12345678.part").mkdir(),
        r"shard-0002-of-0003' is not finished.*--shard 2/3",
    ),
    "half a table": (
        lambda parts, second: _cut(second / "scores.parquet"),
        r"shard-0002-of-0003' is not finished: scores\.parquet cannot be read.*--shard 2/3",
    ),
    "damaged table": (
        lambda parts, second: _blank(second / "scores.parquet"),
        r"shard-0002-of-0003/scores\.parquet' cannot be read.*Delete '.*scores\.parquet'.*--shard 2/3",
    ),
    "table of fewer signals": (
        lambda parts, second: _drop(second / "scores.parquet", "loss"),
        r"shard-0002-of-0003' is not finished: scores\.parquet lacks loss.*--shard 2/3",
    ),
    "no lists": (
        lambda parts, second: (second / "tokenized.json").unlink(),
        r"shard-0002-of-0003' is not finished: tokenized\.json is missing.*--shard 2/3",
    ),
    "damaged lists": (
        lambda parts, second: _cut(second / "tokenized.json"),
        r"shard-0002-of-0003/tokenized\.json' cannot be read.*Delete '.*tokenized\.json'.*--shard 2/3",
    ),
    "other model": (
        lambda parts, second: _edit(second, fingerprint="0" * 16),
        r"another model, tokenizer or settings than .*--shard 2/3",
    ),
    "other version": (lambda parts, second: _edit(second, versions={"torch": "1.0"}), r"another version of a library"),
    "other seed": (lambda parts, second: _edit(second, seed=3), r"another seed"),
    "other dtype": (lambda parts, second: _edit(second, model={"store_dtype": "float32"}), r"another --store-dtype"),
    "other data": (lambda parts, second: _edit(second, shard={"digest": "0" * 16}), r"Score the same data with one n"),
    "other n": (lambda parts, second: _edit(second, shard={"total": 4}), r"Score the same data with one n"),
    "twice": (
        lambda parts, second: shutil.copytree(second, parts / "shard-0009-of-0003"),
        r"shard 2/3 stands twice",
    ),
    "other job": (
        lambda parts, second: shutil.copytree(second, parts / "shard-0002-of-0004"),
        r"shard 2/3 stands twice",
    ),
    "no shard": (lambda parts, second: _edit(second, shard=None), r"was not scored as a shard"),
    "damaged": (lambda parts, second: _flip(next(second.glob("signals-*/loss.npy"))), r"is damaged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_shard_is_named_with_its_fix(fault, parts, tmp_path):
    change, message = FAULTS[fault]
    change(parts, parts / shard_name(2, 3))
    with pytest.raises(LonggameError, match=message):
        merge_scores(tmp_path / "all", [parts])
    assert not (tmp_path / "all").exists()


def _again(job, second, monkeypatch):
    """Run the command of the second shard again."""
    monkeypatch.setattr(scoring, "SHARD_ROWS", 16)
    rows = DataRows(open_source(job / "data.jsonl"), on_bad_row="skip")
    score_into(shard_rows(rows, 2, 3), NAMES, second, TINY, on_bad_row="skip")


@pytest.mark.parametrize("fault", ["half a table", "table of fewer signals", "no table", "no lists"])
def test_the_command_of_an_unfinished_shard_finishes_it(fault, job, parts, tmp_path, monkeypatch):
    second = parts / shard_name(2, 3)
    FAULTS[fault][0](parts, second)
    _again(job, second, monkeypatch)
    assert content(parts) == content(job / "parts")
    merge_scores(tmp_path / "all", [parts])


def test_a_shard_that_was_stopped_once_is_merged_when_finished(job, parts, tmp_path, monkeypatch):
    second = parts / shard_name(2, 3)
    old, new = (second / f"scores.parquet.{number}.part" for number in (4242, 4243))
    for path in (old, new):
        path.write_bytes(b"PAR1")
    os.utime(old, (0, 0))
    merge_scores(tmp_path / "before", [parts])
    for name in ("loss", "el2n"):
        with SignalWriter(second / f"signals-{name}", {"prompt_tokens": "float32", name: "float16"}, "f"):
            pass
    _again(job, second, monkeypatch)
    assert {path.name for path in second.glob("*.part")} == {new.name, "signals-el2n.part"}  # el2n is not finished
    with pytest.raises(ResumeError, match=r"signals-el2n\.part holds el2n of some rows.*or delete signals-el2n\.part"):
        merge_scores(tmp_path / "all", [parts])
    shutil.rmtree(second / "signals-el2n.part")
    merged = merge_scores(tmp_path / "all", [parts])
    assert content(merged.folder) == content(tmp_path / "before")


def test_an_unfinished_store_stays_while_it_is_written(parts):
    second = parts / shard_name(2, 3)
    with SignalWriter(second / "signals-old", {"loss": "float16"}, "f"):
        remove_begun(second / "signals-old.part", ["loss"])
        assert (second / "signals-old.part").is_dir()
    remove_begun(second / "signals-old.part", ["loss"])
    assert not (second / "signals-old.part").exists()


def test_a_table_that_cannot_be_written_leaves_no_scratch(job, parts, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    second = parts / shard_name(2, 3)
    (second / "scores.parquet").unlink()
    rows = DataRows(open_source(job / "data.jsonl"), on_bad_row="skip")
    monkeypatch.setattr("longgame.storage.os.fsync", full)
    with pytest.raises(StorageError, match=r"cannot write .*scores\.parquet: No space left"):
        scoring._write_table(second, ScoreFolder(second), rows)
    assert not [*second.glob("scores.parquet*")]


def test_a_column_of_some_shards_is_named(job, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "SHARD_ROWS", 16)
    rows = DataRows(open_source(job / "data.jsonl"), on_bad_row="skip")
    first = parts / shard_name(1, 3)
    score_into(shard_rows(rows, 1, 3), ["el2n"], first, TINY, on_bad_row="skip")
    with pytest.raises(ResumeError, match=r"0002-of-0003' lacks el2n, which another shard has"):
        merge_scores(tmp_path / "all", [parts])


def test_vectors_of_a_target_set_are_those_of_all_shards(job, parts, tmp_path):
    first, second, third = (parts / shard_name(number, 3) for number in (1, 2, 3))
    vector = np.arange(4, dtype=np.float32)
    write_state(second, "context", {"target_sketch": vector})
    write_state(third, "context", {"target_sketch": vector * np.float32(1.001), "target_embedding": vector})
    merged = merge_scores(tmp_path / "all", [parts])
    for folder in (merged, ScoreFolder(parts)):
        np.testing.assert_array_equal(folder.context("target_sketch"), vector)
        np.testing.assert_array_equal(folder.context("target_embedding"), vector)
    for other in (vector[::-1].copy(), vector[:3]):
        write_state(first, "context", {"target_sketch": other})
        with pytest.raises(ResumeError, match=r"0002-of-0003' holds another vector target_sketch .*0001-of-0003'"):
            merge_scores(tmp_path / "other", [parts])
        assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_the_slurm_script_of_the_docs_scores_and_merges(tmp_path):
    text = DOCS.read_text(encoding="utf-8")
    script, after = re.findall(r"```bash\n(.*?)```", text.split("## Slurm", 1)[1], flags=re.DOTALL)[:2]
    assert script.startswith("#!/bin/bash\n#SBATCH")
    (tmp_path / "score.sh").write_text(script, encoding="utf-8")
    rows = [{**ROWS[number % len(ROWS)], "response": f"It is {number}."} for number in range(2100)]
    (tmp_path / "data").mkdir()
    jsonl(tmp_path / "data" / "a.jsonl", rows[:900])
    jsonl(tmp_path / "data" / "b.jsonl", rows[900:])
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "longgame"
    program.write_text(f'#!/bin/bash\nexec {sys.executable} -m longgame.cli "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    base = environment() | {"MODEL": "tiny"}
    base["PATH"] = f"{program.parent}:{base['PATH']}"
    array = [{"SLURM_ARRAY_TASK_ID": number, "SLURM_ARRAY_TASK_COUNT": "2"} for number in ("1", "2")]
    jobs = [subprocess.Popen(["bash", "score.sh"], cwd=tmp_path, env=base | task) for task in array]
    assert [job.wait(timeout=300) for job in jobs] == [0, 0]
    subprocess.run(["bash", "-e"], input=after, cwd=tmp_path, env=base, check=True, text=True, timeout=300)
    whole = longgame_here("score", "data", "--model", "tiny", "--signals", "loss,embedding", "--out", "w", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    line = ["--selector", "loss", "--budget", "10%", "--scores", "w", "--out", "w.jsonl", "--no-page"]
    assert longgame_here("select", "data", *line, cwd=tmp_path).returncode == 0
    assert (tmp_path / "subset.jsonl").read_bytes() == (tmp_path / "w.jsonl").read_bytes()
    manifest = json.loads((tmp_path / "subset.manifest.json").read_text(encoding="utf-8"))
    assert manifest["data"]["rows"] == 2100
