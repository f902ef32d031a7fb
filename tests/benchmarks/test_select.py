"""The benchmark of select: rows that repeat differ, and both sides read the same files."""

from benchmarks import select
from longgame.data.sources import open_source
from longgame.offline.rows import DataRows


def test_rows_that_repeat_are_numbered_apart(tmp_path):
    rows = select.rows_of(None, 11_000)
    data = select.write(tmp_path / "d.jsonl", rows)
    read = DataRows(open_source(data))
    assert len(read) == 11_000
    assert not [sample_id for sample_id in read.ids if "#" in sample_id]


def test_a_million_rows_are_selected_in_a_process_of_their_own(tmp_path):
    class Report:
        figures: list = []  # noqa: RUF012
        rows: list = []  # noqa: RUF012

        def add(self, figures=(), rows=()):
            self.figures += figures
            self.rows += rows

    report = Report()
    select.million(report, select.write(tmp_path / "d.jsonl", select.rows_of(None, 300)), tmp_path)
    assert [row["rows"] for row in report.rows] == [300] * 3
    assert {figure.name for figure in report.figures} >= {"rows_per_second_longest", "peak_gib_random_exact"}
