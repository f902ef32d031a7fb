"""A small run whose numbers are known: `ahead` is better now and worse later, `hostile` has a name full of traps."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from longgame.audit.run import Run
from longgame.metrics.comparisons import Across
from longgame.metrics.scorecard import Scorecard
from longgame.metrics.tidy import Measured
from longgame.recipe import parse_recipe

HOSTILE = "a|b <script>alert('x')</script> *_`"
TASKS, OOD = ["one", "two <b>", "three"], ["shifted"]
ENVIRONMENT = {
    "versions": {"longgame": "0.1.0", "numpy": "2.0"},
    "python": "3.11",
    "machine": "x86_64",
    "system": "Linux",
    "cores": 2,
    "workers": 2,
    "threads": 1,
    "sessions": [100.0, 20.0],
}
_EMPTY = {"task": "", "task_kind": "", "sub_skill": "", "scorer": "", "probe": "", "step": -1, "tokens": -1}
NOW = {"random": 50.0, "ahead": 60.0, HOSTILE: 50.5}
LOST = {"random": 5.0, "ahead": 25.0, HOSTILE: 5.2}


def make_results(seeds=5, scorers=("token_accuracy", "exact_match"), skills=("x", "y <i>")):
    rows = []
    for seed in range(seeds):
        for selector in NOW:
            wobble = np.random.default_rng(seed + 100 * list(NOW).index(selector))
            trial = {"trial": f"{list(NOW).index(selector)}-s{seed}", "selector": selector, "seed": seed, **_EMPTY}
            for stage in range(4):
                for column, task in enumerate(TASKS + OOD):
                    learned, last = stage > column, column == 3
                    value = 30.0 if last or not learned else NOW[selector] - LOST[selector] * (stage > column + 1)
                    kind = {"kind": "score", "stage": stage, "task": task, "task_kind": "ood" if last else "stage"}
                    for scorer in scorers:
                        for skill in skills:
                            point = value + seed + 0.3 * wobble.standard_normal()
                            rows.append(
                                trial
                                | kind
                                | {
                                    "sub_skill": skill,
                                    "scorer": scorer,
                                    "name": "score",
                                    "value": point,
                                    "unit": "points",
                                }
                            )
            for stage in (1, 2):
                for probe in ("common", "own"):
                    for step in range(3):
                        for scorer in scorers:
                            rows.append(
                                trial
                                | {"kind": "curve", "stage": stage, "task": TASKS[stage], "task_kind": "stage"}
                                | {"scorer": scorer, "probe": probe, "step": step, "tokens": 10 * step}
                                | {"name": "score", "value": 30.0 + 4 * step + seed, "unit": "points"}
                            )
            for stage in (1, 2, 3):
                for name, value in (("capability_entropy", 1.5), ("noisy_share", float("nan")), ("difficulty", 0.4)):
                    rows.append(
                        trial | {"kind": "diagnostic", "stage": stage, "name": name, "value": value, "unit": "1"}
                    )
                rows.append(
                    trial
                    | {"kind": "cost", "stage": stage, "name": "selected_tokens", "value": 1000.0, "unit": "count"}
                )
    return pd.DataFrame(rows)


def make_recipe(seeds=5):
    return parse_recipe(
        {
            "name": "synthetic",
            "selectors": ["random", {"name": "loss", "label": "ahead"}, {"name": "quality", "label": HOSTILE}],
            "seeds": list(range(seeds)),
        }
    )


def make_card(results, primary="token_accuracy", bases=None):
    recipe = make_recipe()
    return Scorecard.build(
        results,
        tasks=TASKS,
        ood=OOD,
        primary=dict.fromkeys(TASKS + OOD, primary),
        metric_spec=recipe.metrics,
        threshold=0.9,
        bases=bases,
    )


def make_run(results, recipe=None, card=None, cards=None, orders=None, **attributes):
    """A finished run whose measurements are these, without a folder.

    Args:
        cards: condition → scorecard, for a run of several conditions; ``orders`` as `Across.build` has them.
        attributes: further attributes of the run; ``measured`` where its tasks are others.
    """
    recipe = recipe or make_recipe()
    run = Run(Path("nowhere"), recipe)
    cards = cards or {"": card or make_card(results)}
    measured = {
        "results": results,
        "own_results": results,
        "scorecards": cards,
        "measured": attributes.get("measured") or {"": Measured.read(results, TASKS, OOD, recipe.metrics.reference)},
        "across": Across.build(cards, orders or {}) if len(cards) > 1 else None,
        "places": None,
        "full_data": None,
        "picks": None,
        "contamination": None,
        "environment": ENVIRONMENT,
        "finished_stages": {trial.name: len(run.plan.stages) for trial in run.plan.trials},
    }
    vars(run).update(measured | attributes)
    return run


def lifted(results):
    """The results with `ahead` 40 points higher after every stage: it leads in the long run too."""
    changed = results.copy()
    better = (changed["selector"] == "ahead") & (changed["kind"] == "score") & (changed["stage"] > 0)
    changed.loc[better, "value"] += 40
    return changed


@pytest.fixture(scope="session")
def results():
    return make_results()


@pytest.fixture(scope="session")
def recipe():
    return make_recipe()


@pytest.fixture(scope="session")
def card(results):
    return make_card(results)


@pytest.fixture(scope="session")
def run(results, recipe, card):
    return make_run(results, recipe, card)


@pytest.fixture(scope="session")
def hostile():
    return HOSTILE


@pytest.fixture(scope="session")
def synthetic():
    """(make_results, make_card, make_recipe) for runs of another shape."""
    return make_results, make_card, make_recipe
