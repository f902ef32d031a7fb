"""Every selector of the package walks a small audit of the closed-form world, at the same tokens."""

from __future__ import annotations

import pytest

from longgame.audit.execute import run_audit
from longgame.audit.learner import learner_kind
from longgame.errors import LonggameError
from longgame.quadratic.learner import LIVE
from longgame.selection.base import SELECTORS, build_selector
from longgame.signals.base import SIGNALS, needs_auxiliary
from support.quadratic_audit import Silent, recipe


def lives_here(name: str) -> bool:
    """Whether the closed-form world has the signals: it has no texts, and no training beside the trial's own."""
    needs = build_selector(name).requires
    return (
        not needs_auxiliary(needs)
        and all(signal in LIVE or signal not in SIGNALS or SIGNALS[signal].cost == "none" for signal in needs)
        and not any(
            {"text", "candidates"} <= {*SIGNALS[signal].needs} or {"scorer", "judge"} & {*SIGNALS[signal].needs}
            for signal in needs
            if signal in SIGNALS
        )
    )


HERE = [name for name in SELECTORS.builtin_names() if lives_here(name)]


def test_few_selectors_lack_their_signals_in_the_quadratic_world() -> None:
    of_a_log = {"forgetting-events", "cartography", "s2l"}
    of_texts = {"dsir", "dedup-exact", "dedup-minhash"}
    of_others = {"superfiltering", "svp", "alpagasus", "mods"}
    assert set(SELECTORS.builtin_names()) - set(HERE) == {"ifd", "less", "rho", *of_a_log, *of_texts, *of_others}


@pytest.mark.parametrize("rounds", ["step", 1])
def test_every_selector_spends_the_same_tokens_in_an_audit(tmp_path, rounds) -> None:
    display = Silent()
    plan = recipe(selectors=HERE, seeds=[0], rounds=rounds)
    audit = run_audit(plan, tmp_path / "q", workers=1, threads=1, display=display)
    assert not display.failures
    spent = audit.results[(audit.results.kind == "cost") & (audit.results.name == "selected_tokens")]
    assert set(spent.trial) == {f"{name}-s0" for name in HERE}
    stages = learner_kind(plan).sequence(plan, 0).stages
    for number, tokens in spent.groupby("stage").value:
        pool = stages[int(number) - 1].pool
        budget = round(plan.budget * int(pool.costs.sum()))
        assert tokens.max() <= budget
        assert tokens.min() > budget - pool.costs.max()  # what is left would not hold a long candidate


def test_ifd_in_the_quadratic_world_is_refused_by_name(tmp_path) -> None:
    display = Silent()
    with pytest.raises(LonggameError, match="loss_without_prompt"):
        run_audit(recipe(selectors=["ifd"], seeds=[0]), tmp_path / "q", workers=1, threads=1, display=display)
