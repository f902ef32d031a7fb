"""What is written is what is read, whatever killed the writer in between."""

import dataclasses
import errno
import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longgame.errors import DataError, NumericalError, PluginError, ResumeError, StorageError
from longgame.seeding import generator
from longgame.signals import base
from longgame.signals import store as store_writer
from longgame.signals.base import Signals
from longgame.signals.store import SignalStore, SignalWriter, stream_signals
from support.signals import random_pool

COLUMNS = {"loss": "float32", "embedding": "float16"}
FORK = multiprocessing.get_context("fork")


def shard(number, rows=5, width=3):
    rng = generator(number, "shard")
    columns = {
        "loss": rng.normal(size=rows).astype(np.float32),
        "embedding": rng.normal(size=(rows, width)).astype(np.float32),
    }
    return [f"{number}-{row}" for row in range(rows)], columns


def write(path, numbers=range(3), columns=None):
    with SignalWriter(path, columns or COLUMNS, "f") as writer:
        for number in list(numbers)[len(writer.ranges) :]:
            writer.append(*shard(number))
        return writer.finish()


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@settings(max_examples=25, deadline=None)
@given(
    parts=st.lists(st.lists(st.text(max_size=6), min_size=1, max_size=5), min_size=1, max_size=5),
    width=st.integers(1, 4),
    half=st.booleans(),
    seed=st.integers(0, 9),
)
def test_any_ids_and_shards_come_back_bit_for_bit(tmp_path_factory, parts, width, half, seed):
    parts = [[f"{number}{text}" for number, text in enumerate(part)] for part in parts]
    parts = [[f"{number}:{text}" for text in part] for number, part in enumerate(parts)]
    path, rng = tmp_path_factory.mktemp("store") / "s", generator(seed, "values")
    dtype = "float16" if half else "float32"
    values = [rng.normal(size=(len(part), width)).astype(np.float32) for part in parts]
    with SignalWriter(path, {"a": dtype, "b": "float32"}, "f") as writer:
        for ids, block in zip(parts, values, strict=True):
            writer.append(ids, {"a": block, "b": block[:, 0]})
        store = writer.finish()
    ids = tuple(name for part in parts for name in part)
    complete = np.concatenate(values)
    assert tuple(store.ids) == ids == tuple(store.ids[row] for row in range(len(ids))) == store.ids[:]
    np.testing.assert_array_equal(store.column("a"), complete.astype(dtype), strict=True)
    signals = store.signals()
    assert signals.ids == ids
    np.testing.assert_array_equal(signals["a"], complete.astype(dtype).astype(np.float32), strict=True)
    np.testing.assert_array_equal(signals["b"], complete[:, 0], strict=True)
    np.testing.assert_array_equal(np.load(path / "a.npy"), complete.astype(dtype), strict=True)


def die_at(path, moment, share):
    """Write the store, and be killed in the middle of the ``moment``-th write, flush or rename."""
    count = 0

    def tick(act):
        nonlocal count
        count += 1
        if count == moment:
            act()
            os.kill(os.getpid(), signal.SIGKILL)

    def write_at(file, offset, data):
        file.seek(offset)
        tick(lambda: file.write(data[: int(share * len(data))]))
        file.write(data)

    fsync, rename, replace = os.fsync, Path.rename, Path.replace
    store_writer.write_at = write_at
    os.fsync = lambda handle: (tick(lambda: None), fsync(handle))
    Path.rename = lambda self, target: (tick(lambda: None), rename(self, target))
    Path.replace = lambda self, target: (tick(lambda: None), replace(self, target))
    write(path)
    os._exit(0)


@settings(max_examples=25, deadline=None)
@given(moments=st.lists(st.integers(1, 55), min_size=1, max_size=3), share=st.sampled_from([0.0, 0.5, 1.0]))
def test_a_killed_store_ends_with_the_same_bytes(tmp_path_factory, moments, share):
    folder = tmp_path_factory.mktemp("kill")
    for moment in moments:
        child = FORK.Process(target=die_at, args=(folder / "s", moment, share))
        child.start()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        if (folder / "s").exists():
            break
    store = SignalStore(folder / "s") if (folder / "s").exists() else write(folder / "s")
    write(folder / "whole")
    assert files(folder / "s") == files(folder / "whole")
    assert sorted(path.name for path in folder.iterdir()) == ["s", "whole"]
    assert len(store) == 15


def test_signals_are_memory_maps_and_float16_is_widened(tmp_path):
    store = write(tmp_path / "s")
    signals = store.signals(["embedding", "loss"])
    assert {name: column.dtype for name, column in signals.columns.items()} == {"loss": "f4", "embedding": "f4"}
    assert not signals["loss"].flags.writeable
    assert not signals["loss"].flags.owndata
    as_stored = store.signals(["embedding"], widen=False)["embedding"]
    assert as_stored.dtype == np.float16
    assert not as_stored.flags.owndata
    expected = np.concatenate([shard(number)[1]["embedding"] for number in range(3)])
    np.testing.assert_allclose(signals["embedding"], expected, rtol=2**-11, atol=3e-8)
    with pytest.raises(PluginError, match=r"unknown signal 'los'\. Did you mean 'loss'"):
        store.signals(["los"])


@settings(max_examples=40, deadline=None)
@given(value=st.floats(-65504, 65504, width=32))
def test_float16_rounds_within_what_is_promised(value):
    rounded = float(store_writer._narrowed("x", np.array([value], dtype=np.float32), np.dtype("float16"), ["a"])[0])
    assert abs(rounded - value) <= max(abs(value) * 2**-11, 3e-8)


@pytest.mark.parametrize("value", [65520.0, -1e30])
def test_float16_overflow_is_refused_and_leaves_no_row(tmp_path, value):
    ids, columns = shard(0)
    columns["embedding"][3, 1] = value
    with SignalWriter(tmp_path / "s", COLUMNS, "f") as writer:
        with pytest.raises(NumericalError, match=r"'embedding' of example 0-3 is .* Store it as float32"):
            writer.append(ids, columns)
        assert writer.rows == 0
        columns["embedding"][3, 1] = np.nan
        with pytest.raises(NumericalError, match="'embedding' is NaN or infinite for example 0-3"):
            writer.append(ids, columns)
        writer.append(*shard(1))
        assert tuple(writer.finish().ids) == tuple(shard(1)[0])


def test_a_repeated_id_is_refused_also_after_a_kill(tmp_path):
    with SignalWriter(tmp_path / "s", COLUMNS, "f") as writer:
        for number in range(5):
            writer.append(*shard(number))
        ids, columns = shard(7)
        with pytest.raises(DataError, match="'7-0' stands twice"):
            writer.append(["7-0", "7-0", "7-1", "7-2", "7-3"], columns)
    with SignalWriter(tmp_path / "s", COLUMNS, "f") as writer:
        for double in ("0-0", "2-4", "4-3"):
            with pytest.raises(DataError, match=f"'{double}' stands twice"):
                writer.append([*ids[:4], double], columns)
        writer.append(ids, columns)
        assert writer.rows == 30


@pytest.mark.parametrize("call", range(1, 6))
def test_the_writer_continues_after_a_full_disk(tmp_path, monkeypatch, call):
    calls, real = [], store_writer.write_at

    def full(file, offset, data):
        calls.append(1)
        if len(calls) == call:
            real(file, offset, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, offset, data)

    with SignalWriter(tmp_path / "s", COLUMNS, "f") as writer:
        writer.append(*shard(0))
        monkeypatch.setattr(store_writer, "write_at", full)
        with pytest.raises(StorageError, match="No space left on device"):
            writer.append(*shard(1))
        assert writer.rows == 5
        for number in (1, 2):
            writer.append(*shard(number))
        writer.finish()
    write(tmp_path / "whole")
    assert files(tmp_path / "s") == files(tmp_path / "whole")


def test_one_writer_at_a_time_and_never_over_a_finished_store(tmp_path):
    with SignalWriter(tmp_path / "s", COLUMNS, "f") as writer:
        writer.append(*shard(0))
        with pytest.raises(StorageError, match="another process is writing"):
            SignalWriter(tmp_path / "s", COLUMNS, "f")
        writer.finish()
    with pytest.raises(StorageError, match="exists already"):
        SignalWriter(tmp_path / "s", COLUMNS, "f")


@pytest.mark.parametrize(
    ("columns", "fingerprint", "word"),
    [({"loss": "float32"}, "f", "columns"), ({**COLUMNS, "loss": "float16"}, "f", "columns"), (COLUMNS, "g", "finger")],
)
def test_what_was_begun_otherwise_is_not_gone_on_with(tmp_path, columns, fingerprint, word):
    with SignalWriter(tmp_path / "s", COLUMNS, "f") as writer:
        writer.append(*shard(0))
    before = files(tmp_path / "s.part")
    with pytest.raises(ResumeError, match=f"other {word}"):
        SignalWriter(tmp_path / "s", columns, fingerprint)
    assert files(tmp_path / "s.part") == before


def spoil(path, how):
    data = path.read_bytes()
    path.write_bytes(
        {"cut": data[:-3], "flip": data[:-2] + bytes([data[-2] ^ 1]) + data[-1:], "foreign": b"hello"}[how]
    )


@pytest.mark.parametrize("how", ["cut", "flip", "foreign"])
@pytest.mark.parametrize("name", ["loss.npy", "embedding.npy", "ids.npy", "id_ends.npy"])
def test_a_damaged_column_is_named_finished_or_not(tmp_path, name, how):
    write(tmp_path / "s")
    spoil(tmp_path / "s" / name, how)
    with pytest.raises(ResumeError, match=rf"damaged \({name}"):
        SignalStore(tmp_path / "s").signals()
    with SignalWriter(tmp_path / "t", COLUMNS, "f") as writer:
        writer.append(*shard(0))
    spoil(tmp_path / "t.part" / name, how)
    with pytest.raises(ResumeError, match=rf"damaged \({name}"):
        SignalWriter(tmp_path / "t", COLUMNS, "f")


def test_a_missing_file_and_a_foreign_directory_are_named(tmp_path):
    with pytest.raises(ResumeError, match=r"holds no signal store"):
        SignalStore(tmp_path)
    write(tmp_path / "s")
    (tmp_path / "s" / "loss.npy").unlink()
    with pytest.raises(ResumeError, match=r"loss\.npy"):
        SignalStore(tmp_path / "s")
    (tmp_path / "s" / "manifest.json").write_text(json.dumps({"format": "other", "columns": {}, "fingerprint": ""}))
    with pytest.raises(ResumeError, match="is not that of a signal store"):
        SignalStore(tmp_path / "s")
    (tmp_path / "s" / "manifest.json").write_text("{")
    with pytest.raises(ResumeError, match=r"manifest\.json"):
        SignalStore(tmp_path / "s")
    (tmp_path / "mine.part").mkdir()
    (tmp_path / "mine.part" / "precious").write_text("x")
    with pytest.raises(StorageError, match="holds 'precious'"):
        SignalWriter(tmp_path / "mine", COLUMNS, "f")
    with SignalWriter(tmp_path / "u", COLUMNS, "f") as writer:
        writer.append(*shard(0))
    with pytest.raises(ResumeError, match="It is not finished"):
        SignalStore(tmp_path / "u")


def test_columns_that_do_not_fit_are_refused(tmp_path):
    for columns, message in (
        ({"loss": "float64"}, "dtype 'float64'"),
        ({"../x": "float32"}, "column's name"),
        ({}, "one"),
    ):
        with pytest.raises(PluginError, match=message):
            SignalWriter(tmp_path / "s", columns, "f")
    ids, columns = shard(0)
    with SignalWriter(tmp_path / "s", COLUMNS, "f") as writer:
        with pytest.raises(DataError, match="needs at least one"):
            writer.finish()
        with pytest.raises(PluginError, match="'loss' of a shard of 5 rows is missing"):
            writer.append(ids, {"embedding": columns["embedding"]})
        writer.append(ids, columns)
        with pytest.raises(PluginError, match="earlier shards"):
            writer.append(*shard(1, width=4))


def engine(pool, names):
    """Numbers that depend on the tokens and on nothing else."""
    total = np.array([ids.sum() for ids in pool.input_ids], dtype=np.float32)
    return {name: total if name == "loss" else np.stack([total, total + 1], axis=1) for name in names}


def pools():
    complete = random_pool(n=30)
    return [complete.take(range(start, min(start + 8, 30))) for start in range(0, 30, 8)]


def test_a_resumed_stream_equals_one_pass(tmp_path):
    names = ("loss", "embedding")
    complete = engine(random_pool(n=30), names)
    first_calls = []

    def dying(pool, wanted_names):
        if len(first_calls) == 2:
            raise KeyboardInterrupt
        first_calls.append(pool.ids[0])
        return engine(pool, wanted_names)

    with pytest.raises(KeyboardInterrupt):
        stream_signals(dying, pools(), names, tmp_path / "s", fingerprint="f")
    progress, again = [], []
    store = stream_signals(
        lambda pool, wanted_names: again.append(pool.ids[0]) or engine(pool, wanted_names),
        iter(pools()),
        names,
        tmp_path / "s",
        fingerprint="f",
        on_shard=progress.append,
    )
    assert first_calls + again == ["id000", "id008", "id016", "id024"]
    assert progress == [8, 16, 24, 30]
    for name in names:
        np.testing.assert_array_equal(store.signals()[name], complete[name])


@pytest.mark.parametrize("change", ["tokens", "shards", "order", "shorter"])
def test_a_resumed_stream_refuses_another_source(tmp_path, change):
    with SignalWriter(tmp_path / "s", {"loss": "float32"}, "f"):
        pass
    with pytest.raises(ZeroDivisionError):
        stream_signals(
            lambda pool, names: engine(pool, names) if pool.ids[0] != "id016" else 1 / 0,
            pools(),
            ["loss"],
            tmp_path / "s",
            fingerprint="f",
        )
    others = pools()
    if change == "tokens":
        ids = [tokens.copy() for tokens in others[1].input_ids]
        ids[3][0] += 1
        others[1] = dataclasses.replace(others[1], input_ids=tuple(ids))
    elif change == "shards":
        others = [random_pool(n=30).take(range(start, start + 6)) for start in range(0, 30, 6)]
    elif change == "order":
        others[:2] = others[1::-1]
    else:
        others = others[:1]
    with pytest.raises(ResumeError, match="begun with another source"):
        stream_signals(engine, others, ["loss"], tmp_path / "s", fingerprint="f")


def test_columns_are_checked_block_by_block(monkeypatch):
    monkeypatch.setattr(base, "_CHECKED_ENTRIES", 4)
    column = np.zeros((9, 2), dtype=np.float32)
    column[[3, 8], 1] = np.nan, np.inf
    with pytest.raises(NumericalError, match="example c and 1 more"):
        Signals(tuple("abccdefgh".replace("cc", "bc")), {"embedding": column})
    Signals(tuple("abcdefgh"), {"embedding": np.zeros((8, 2), dtype=np.float32)})
