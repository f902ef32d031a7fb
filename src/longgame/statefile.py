"""State dicts on disk: NumPy arrays in one .safetensors file, everything else in one .json file, no pickle.

Whatever has state in longgame speaks nested dicts, lists and tuples of NumPy arrays and plain values (None, bool, int
of any size, float, str). `write_state` puts such a value into ``NAME.json`` + ``NAME.safetensors``; `read_state` gives
back an equal one: same types, same dtypes, NaN and infinities included.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from longgame.durable import write_file
from longgame.errors import PluginError, ResumeError

_MARK = "$"
"""Key of an encoded node; a dict of the state that holds it itself is written as a list of items."""

_TENSOR_KINDS = "biuf"


def write_state(directory: str | Path, name: str, state: Any, *, flushed: bool = True) -> None:
    """Write a state to ``directory/name.json`` and ``directory/name.safetensors``, flushed to disk and renamed.

    The JSON file carries the digest of the tensor file, so a pair torn by a kill between the two renames is noticed.

    Args:
        flushed: False inside a folder that is flushed and renamed as a whole (`longgame.durable.durable_folder`).

    Raises:
        PluginError: the state holds something that is neither an array nor a plain value (the place is named).
        StorageError: the disk is full or not writable; nothing half-written stands under the final names.
    """
    directory = Path(directory)
    arrays: dict[str, np.ndarray] = {}
    tree = _encode(state, name, arrays)
    tensors = save(arrays)
    document = {"format": 1, "tensors": hashlib.sha256(tensors).hexdigest(), "state": tree}
    text = json.dumps(document, allow_nan=False)
    if flushed:
        write_file(directory / f"{name}.safetensors", tensors)
        write_file(directory / f"{name}.json", text)
    else:
        (directory / f"{name}.safetensors").write_bytes(tensors)
        (directory / f"{name}.json").write_text(text, encoding="utf-8")


def read_state(directory: str | Path, name: str) -> Any:
    """Read what `write_state` wrote.

    Raises:
        ResumeError: a file is missing or damaged, or the two do not belong together.
    """
    directory = Path(directory)
    path = directory / f"{name}.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        tensors = (directory / f"{name}.safetensors").read_bytes()
        if hashlib.sha256(tensors).hexdigest() != document["tensors"]:
            raise ResumeError(
                f"{name}.json and {name}.safetensors in {directory} do not belong together (one of them was not "
                "written to the end). Go back to an earlier checkpoint."
            )
        return _decode(document["state"], load(tensors))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ResumeError(
            f"state '{name}' in {directory} cannot be read ({type(error).__name__}: {error}). "
            "Go back to an earlier checkpoint, or start again."
        ) from error


def _encode(value: Any, place: str, arrays: dict[str, np.ndarray]) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {_MARK: "float", "value": repr(value)}
    if isinstance(value, np.ndarray):
        return _encode_array(value, place, arrays)
    if isinstance(value, np.generic):
        return {_MARK: "scalar", "value": _encode_array(np.asarray(value), place, arrays)}
    if isinstance(value, Mapping):
        if _MARK not in value and all(type(key) is str for key in value):
            return {key: _encode(item, f"{place}.{key}", arrays) for key, item in value.items()}
        items = [
            [_encode(key, f"{place} key", arrays), _encode(item, f"{place}.{key}", arrays)]
            for key, item in value.items()
        ]
        return {_MARK: "dict", "items": items}
    if isinstance(value, list):
        return [_encode(item, f"{place}[{i}]", arrays) for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {_MARK: "tuple", "items": [_encode(item, f"{place}[{i}]", arrays) for i, item in enumerate(value)]}
    raise PluginError(
        f"state '{place}' is a {type(value).__name__}; a state dict holds NumPy arrays, None, bool, int, float, str, "
        "and lists, tuples and dicts of them. Convert it in state_dict()."
    )


def _encode_array(array: np.ndarray, place: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    if array.dtype.kind == "U":
        return {_MARK: "text", "dtype": array.dtype.str, "shape": list(array.shape), "values": array.ravel().tolist()}
    if array.dtype.kind not in _TENSOR_KINDS or array.dtype.itemsize > 8:
        raise PluginError(
            f"state '{place}' is an array of {array.dtype}; numbers, booleans and text can be saved. "
            "Convert it in state_dict()."
        )
    key = f"{len(arrays):05d}"
    arrays[key] = np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=True)
    return {_MARK: "array", "key": key, "place": place}


def _decode(node: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(node, list):
        return [_decode(item, arrays) for item in node]
    if not isinstance(node, dict):
        return node
    kind = node.get(_MARK)
    if kind is None:
        return {key: _decode(item, arrays) for key, item in node.items()}
    if kind == "float":
        return float(node["value"])
    if kind == "array":
        return np.array(arrays[node["key"]], copy=True)
    if kind == "scalar":
        return _decode(node["value"], arrays)[()]
    if kind == "text":
        return np.array(node["values"], dtype=node["dtype"]).reshape(node["shape"])
    if kind == "tuple":
        return tuple(_decode(item, arrays) for item in node["items"])
    if kind == "dict":
        return {_decode(key, arrays): _decode(item, arrays) for key, item in node["items"]}
    raise ValueError(f"unknown node '{kind}'")
