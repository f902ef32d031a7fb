"""Time at work: what a killed session noted stays, and the next one is added."""

import json

from longgame.audit import execute
from longgame.audit.execute import SessionClock
from longgame.audit.run import read_environment


class Told:
    def __init__(self):
        self.calls = []

    def begin(self, *args):
        self.calls.append(args)

    progress = finished = begin


def held(path):
    return json.loads(path.read_text())["sessions"]


def test_a_session_that_never_ends_well_is_counted_and_the_next_one_added(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(execute.time, "perf_counter", lambda: now[0])
    path, display = tmp_path / "environment.json", Told()
    killed = SessionClock(display, tmp_path, {"versions": {}, "threads": 1, "sessions": []})
    killed.begin("trials", ["a"], 5)
    for seconds in (4, 9, 11, 15, 23):
        now[0] = 100.0 + seconds
        killed.progress("a", 1, "train", 1, 2)
    assert held(path) == [23.0]
    assert len(display.calls) == 6  # all of it was handed on
    again = SessionClock(Told(), tmp_path, read_environment(tmp_path))
    now[0] += 7
    again.finished("a")
    again.save()
    assert held(path) == [23.0, 7.0]
