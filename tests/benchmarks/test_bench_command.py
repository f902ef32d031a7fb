from suite import selection, signals


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
