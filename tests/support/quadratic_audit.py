"""Small audits of the closed-form world, each a fraction of a second."""

from longgame.audit.execute import run_audit
from longgame.recipe import parse_recipe


class Silent:
    """A display that notes which jobs were finished, and what was warned of."""

    def __init__(self):
        self.done = []
        self.warnings = []
        self.failures = {}

    def warn(self, text):
        self.warnings.append(text)

    def begin(self, phase, jobs, stages): ...
    def progress(self, job, stage, activity, step, steps): ...
    def finished(self, job):
        self.done.append(job)

    def failed(self, job, reason):
        self.failures[job] = reason


def recipe(**changes):
    """Three stages a, b, c, two seeds; random and loss unless told otherwise."""
    base = {
        "name": "q",
        "model": {"name": "quadratic"},
        "data": {"sequence": "quadratic", "pool_size": 64, "stages": [{"name": name} for name in "abc"]},
        "selectors": ["random", "loss"],
        "seeds": [0, 1],
        "training": {"steps": 6, "warmup_steps": 1, "learning_rate": 0.1},
        "probe": {"steps": 4, "points": 3},
    }
    return parse_recipe({**base, **changes})


def walk(folder, **changes):
    """Run or go on with an audit: its result, and the trials (not what they share) that were finished now."""
    display = Silent()
    result = run_audit(recipe(**changes), folder, workers=1, threads=1, display=display)
    return result, [name for name in display.done if not name.startswith("seed-")]
