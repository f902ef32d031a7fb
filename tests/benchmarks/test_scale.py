"""The benchmark of scale: its made-up pools are those that select reads, and its lines are lines."""

import pytest

from benchmarks import scale
from longgame.offline.options import SelectOptions
from longgame.offline.partitioned import select_in_parts


def test_made_up_pools_are_selected_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "_WRITTEN", 70)
    pool = scale.write_pool(tmp_path / "pool", 200, True)
    for selector in ("loss", "diversity"):
        options = SelectOptions(selector=selector)
        outcome, manifest = select_in_parts(
            pool / "data.jsonl", tmp_path / f"{selector}.jsonl", options, scores=pool / "scores", partitions=3
        )
        assert manifest["data"]["candidates"] == 200
        assert 0 < outcome.spent <= outcome.asked


def test_the_fit_of_a_line_has_no_residual():
    slope, intercept, residual = scale.fit([1, 2, 4], [5.0, 7.0, 11.0])
    assert (slope, intercept) == (pytest.approx(2.0), pytest.approx(3.0))
    assert residual == pytest.approx(0.0, abs=1e-9)


def test_the_docs_have_the_computed_table():
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    assert "\n".join(scale.table()) in text
