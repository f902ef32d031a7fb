"""What studies write for pages and other programs."""

import json

import numpy as np
import pytest

from longgame.errors import StorageError
from studies.output import write_json


def test_json_has_six_digits_and_a_line_per_flat_object(tmp_path):
    rows = [
        {"name": "a {b}\nc", "share": 0.9916579770594369},
        {"name": "d", "share": np.float64(3.552713678800501e-16)},
    ]
    path = tmp_path / "new" / "figures.json"
    write_json(path, {"seed": 12345678, "tables": {"rows": rows, "none": []}, "ok": True})
    assert json.loads(path.read_text()) == {
        "seed": 12345678,
        "tables": {"rows": [{"name": "a {b}\nc", "share": 0.991658}, {"name": "d", "share": 3.55271e-16}], "none": []},
        "ok": True,
    }
    assert '   {"name": "d", "share": 3.55271e-16}' in path.read_text().splitlines()


def test_json_has_null_for_what_is_no_number(tmp_path):
    write_json(tmp_path / "figures.json", {"rates": [float("nan"), np.float64("inf"), 0.5]})
    assert json.loads((tmp_path / "figures.json").read_text()) == {"rates": [None, None, 0.5]}


def test_unwritable_place_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Give another place"):
        write_json(tmp_path / "file" / "figures.json", {})
