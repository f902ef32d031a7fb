"""What is written is what is read: types, dtypes, big integers, NaN and infinities."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longgame.errors import PluginError, ResumeError, StorageError
from longgame.storage import read_state, unreadable, write_state

arrays = hnp.arrays(
    st.sampled_from(["float32", "float64", "float16", "int64", "uint32", "uint64", "bool", "int8"]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | arrays
states = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.just("$"), inner, max_size=3)
    ),
    max_leaves=8,
)


def same(a, b):
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    return a == b


@given(states)
def test_state_round_trips(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("state")
    write_state(folder, "s", state)
    assert same(read_state(folder, "s"), state)


@pytest.mark.parametrize("name", ["PCG64", "MT19937", "Philox", "SFC64"])
def test_bit_generator_goes_on_where_it_was(tmp_path, name):
    rng = np.random.Generator(getattr(np.random, name)(7))
    rng.random(5)
    write_state(tmp_path, "rng", rng.bit_generator.state)
    expected = rng.random(4)
    other = np.random.Generator(getattr(np.random, name)(0))
    other.bit_generator.state = read_state(tmp_path, "rng")
    np.testing.assert_array_equal(other.random(4), expected)


def test_numpy_scalars_and_views_keep_their_type(tmp_path):
    state = {"x": np.float32(1.5), "ids": np.array([["a", "bcd"]]), "t": np.arange(6.0).reshape(2, 3).T}
    write_state(tmp_path, "s", state)
    back = read_state(tmp_path, "s")
    assert type(back["x"]) is np.float32
    assert back["x"] == np.float32(1.5)
    np.testing.assert_array_equal(back["ids"], state["ids"])
    np.testing.assert_array_equal(back["t"], state["t"])


def test_files_are_strict_json_and_safetensors_and_nothing_else(tmp_path):
    write_state(tmp_path, "s", {"a": float("nan"), "b": np.ones(2)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.json", "s.safetensors"]

    def refuse(token):
        raise AssertionError(token)

    json.loads((tmp_path / "s.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize("bad", [object(), {1, 2}, np.array([object()]), np.ones(1, complex), b"x"])
def test_what_cannot_be_saved_is_named_by_its_place(tmp_path, bad):
    with pytest.raises(PluginError, match=r"s\.buffer\[1\]"):
        write_state(tmp_path, "s", {"buffer": [0, bad]})
    assert not list(tmp_path.iterdir())


def test_missing_damaged_and_torn_pairs_are_refused(tmp_path):
    with pytest.raises(ResumeError, match="'s'"):
        read_state(tmp_path, "s")
    write_state(tmp_path, "s", {"a": np.zeros(3)})
    old = (tmp_path / "s.safetensors").read_bytes()
    write_state(tmp_path, "s", {"a": np.ones(3)})
    (tmp_path / "s.safetensors").write_bytes(old)
    with pytest.raises(ResumeError, match="do not belong together"):
        read_state(tmp_path, "s")
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(ResumeError, match="cannot be read"):
        read_state(tmp_path, "s")


@pytest.mark.parametrize("mark", ["run.json", "recipe.yaml"])
def test_a_trial_to_delete_lies_in_a_run(tmp_path, mark):
    run = tmp_path / "trials" / "mine"
    (tmp_path / "recipe.yaml").write_text("name: of the user")
    (run / "trials" / "loss-s0").mkdir(parents=True)
    for name in ("results.parquet", "trials/loss-s0/stage-1.zip"):
        assert f"Delete {run / name} and" in str(unreadable(run / name, ValueError("cut")))
    (run / mark).write_text("{}")
    for name, remedy in (
        ("results.parquet", run / "results.parquet"),
        ("trials/loss-s0/stage-1.zip", run / "trials" / "loss-s0"),
        ("seeds/seed-0/base/done.json", run / "seeds" / "seed-0"),
    ):
        assert f"Delete {remedy} and" in str(unreadable(run / name, ValueError("cut")))


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write_state(tmp_path / "file" / "x", "s", {})
