import json

from typer.testing import CliRunner

from longgame.bench import selection, signals
from longgame.bench.harness import at_most
from longgame.cli import app


def test_the_short_form_prints_the_machine_both_tables_and_a_line_a_figure(monkeypatch, tmp_path):
    def small(report, quick):
        assert quick
        row = {"what": "farthest-first", "data": "gaussian", "n": 10, "k": None, "seconds": 0.5, "same": 1.0}
        report.add([at_most("growth", 1.0, 1.15)], [row])

    monkeypatch.setattr(selection, "run", small)
    file = tmp_path / "bench.json"
    told = CliRunner().invoke(app, ["bench", "--model", "tiny", "--dtype", "float32", "--json", str(file)])
    assert told.exit_code == 0, told.output
    held = json.loads(file.read_text())
    assert held["machine"]["processor"] in told.output.replace("\n", " ")
    assert {row["side"] for row in held["rows"][:-1]} > {"signals: forward", "signals: forward + gradients"}
    assert held["rows"][-1]["what"] == "farthest-first"
    lines = [line for line in told.output.splitlines() if line.startswith("figure ")]
    assert [line.split()[1] for line in lines] == ["signals_forward_float32", "signals_gradients_float32", "growth"]
    assert lines[-1] == "figure growth 1 <=1.15 ok"


def test_every_row_of_the_selection_benchmark_becomes_one_line():
    rows = [
        {"what": "top-k", "data": "random scores", "n": 1000, "k": None, "seconds": 0.25},
        {"what": "farthest-first", "data": "mixture", "n": 1000, "k": 10, "seconds": 1.5, "memory": 1.25},
    ]
    lines = selection.table(rows).splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["top-k", "random", "scores", "1000", "–", "0.25"]
    assert lines[2].endswith("1.5  memory 1.25")


def test_a_side_without_a_measured_peak_shows_a_dash():
    row = {"dtype": "float32", "side": "a", "ms_per_example": 1.0, "tokens_per_second": 2.0, "peak_mib": None}
    assert "–" in signals.table([row | {"ratio": 1.0, "of": "b"}]).splitlines()[1]
