"""Every registered selector keeps every clause of the contract; a row is a selector with other parameters."""

from __future__ import annotations

from pathlib import Path

import pytest

from longgame.selection.base import SELECTORS, build_selector
from longgame.testing import CONTRACT

MY_SELECTOR = str(Path(__file__).parents[2] / "examples" / "my_selector.py") + ":MySelector"

TEST_CASES = [
    *((name, {}) for name in SELECTORS.names()),
    ("gradient", {"mode": "similarity"}),
    ("gradient", {"mode": "similarity", "similarity": "dot"}),
    ("diversity", {"use_history": True}),
    ("diversity", {"partitions": 3}),
    ("diversity", {"method": "k-means"}),
    ("diversity", {"method": "facility-location"}),
    ("diversity", {"method": "facility-location", "greedy": "stochastic", "references": 8}),
    ("diversity", {"method": "threshold", "threshold": 0.3}),
    ("utility-diversity", {"utility": "loss", "buffer_size": 5, "normalise": "z"}),
    ("utility-diversity", {"diversity_weight": 0}),
    ("lhas", {"normalise": "z", "refreshes": 1, "buffer_size": 5}),
    ("lhas", {"utility": "loss", "coverage": "cluster", "clusters": 5}),
    ("lhas", {"coverage_weight": 0, "future_weight": 0, "concentration_weight": 0}),
    ("lhas", {"utility_weight": 0}),
    ("lhas", {"target_weight": 1, "earlier_weight": 0.5, "gradient_power": 1, "drop_conflicts": True}),
    ("lhas", {"utility": "reducible_loss", "diversity_weight": 0, "drop_conflicts": True, "coverage": "cluster"}),
    ("lhas-adaptive", {"utility": "loss", "smoothing": 0, "utility_weight": 0, "coverage": "cluster"}),
    ("ppl-mid", {"low": 0, "high": 30}),
    ("flow", {"sample": False, "temperature": 2.0}),
    ("k-center", {"use_history": True}),
    ("prototypes", {"keep": "hard", "clusters": 3}),
    ("semdedup", {"epsilon": 0.8, "clusters": 2}),
    ("d4", {"epsilon": 0.8, "clusters": 3}),
    ("deita", {"complexity": "loss", "threshold": 0.2}),
    ("qdit", {"alpha": 0.9, "references": 8}),
    ("curriculum", {"order": "hard-first", "by": "loss", "rounds": 3}),
    ("selective-backprop", {"beta": 4, "memory": 7}),
    ("ocs", {"memory_weight": 3}),
    ("tsds", {"alpha": 0.9, "epsilon": 1.5}),
    ("svp", {"inner": {"name": "selective-backprop", "beta": 3}}),
    ("dsir", {"normalize": False, "sample": False}),
    ("dedup-exact", {"by": "quality"}),
    ("importance", {"size": "last-layer", "uniform_share": 0}),
    ("craig", {"references": 8}),
    ("greats", {"learning_rate": 0.01}),
    ("gradmatch", {"ridge": 0.01, "atoms": 3}),
    ("tagcos", {"clusters": 2}),
    ("forgetting-events", {"threshold": 0.9, "never_learned": "last"}),
    ("cartography", {"region": "hard"}),
    ("s2l", {"clusters": 4}),
    (MY_SELECTOR, {}),
]


def case_id(case: tuple[str, dict]) -> str:
    name, parameters = case
    return "-".join([name.rpartition(":")[2], *(f"{key}={value}" for key, value in parameters.items())])


@pytest.mark.parametrize("clause", CONTRACT)
@pytest.mark.parametrize("case", TEST_CASES, ids=case_id)
def test_selector_keeps_the_contract(case: tuple[str, dict], clause: str) -> None:
    CONTRACT[clause](lambda: build_selector(*case))


def test_the_example_selector_stays_within_twenty_lines() -> None:
    lines = Path(MY_SELECTOR.rpartition(":")[0]).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 20
