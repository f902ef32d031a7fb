"""What commands write for pages and other programs."""

import json

import numpy as np
import pytest

from longgame.commands.report import write_json
from longgame.errors import StorageError


def test_json_has_a_line_for_each_flat_object_and_no_digits_that_nobody_knows(tmp_path):
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


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Give another place"):
        write_json(tmp_path / "file" / "figures.json", {})
