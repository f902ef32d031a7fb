"""What a scorecard says in sentences: the answer, one verdict per selector, how to read it, what it leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from longgame.audit.plan import condition_label
from longgame.metrics.comparisons import Across
from longgame.metrics.longhorizon import chance_gap
from longgame.metrics.scorecard import IMMEDIATE, PRIMARY, SCORER_VIEWS, Scorecard
from longgame.metrics.verdict import BETTER, MYOPIC, NOW_ONLY, WORSE
from longgame.recipe import Recipe
from longgame.report.tables import ALPHA, number, selectors_in_order

_MOST_CONDITIONS = 6
"""Conditions named for one selector's verdict; the rest are counted, and all stand in the tables."""


@dataclass(frozen=True, slots=True)
class VerdictLine:
    """One selector's verdict in a sentence.

    ``other``: where another scorer disagrees; ``power``: what was in reach; ``cost``: what choosing took.
    """

    selector: str
    word: str
    reason: str
    other: str = ""
    power: str = ""
    cost: str = ""


def verdict_lines(card: Scorecard, recipe: Recipe) -> list[VerdictLine]:
    """One line per selector but the reference, by the primary view, with disagreements of the other views."""
    rows = card.verdicts.to_dict("records")
    table = {
        (str(row["view"]), str(row["selector"])): (str(row["verdict"]), str(row["reason"]), str(row["power"]))
        for row in rows
    }
    lines = []
    for selector in selectors_in_order(card, recipe):
        if (PRIMARY, selector) not in table:
            continue
        word, reason, power = table[PRIMARY, selector]
        differing = [
            f"under {view.replace('_', ' ')}: {table[view, selector][0]}"
            for view in SCORER_VIEWS
            if (view, selector) in table and table[view, selector][0] != word
        ]
        lines.append(VerdictLine(selector, word, reason, "; ".join(differing), power, cost_line(card, selector)))
    return lines


def cost_line(card: Scorecard, selector: str) -> str:
    """What this selector's choices took per trial, in FLOPs and seconds, beside training; empty where not measured."""
    rows = card.summary[(card.summary["view"] == "") & (card.summary["selector"] == selector)]
    mean = dict(zip(rows["metric"].astype(str), rows["mean"].astype(float), strict=True))
    flops, seconds = mean.get("score_flops", float("nan")), mean.get("select_seconds", float("nan"))
    said = []
    if flops == 0:
        said.append("no FLOPs of the model")
    elif flops > 0:
        said.append(f"{number(flops, 'FLOP')}FLOP{_of_training(mean, 'flops_share', 'FLOPs')}")
    if seconds >= 0:
        said.append(f"{number(seconds, 's')} s{_of_training(mean, 'seconds_share', 'time')}")
    return f"Choosing took {' and '.join(said)} per trial" if said else ""


def _of_training(mean: Mapping[str, float], share: str, what: str) -> str:
    return f" ({mean[share]:.1%} of the training {what})" if mean.get(share, float("nan")) >= 0 else ""


def elsewhere(across: Across | None) -> str:
    """The verdicts of other conditions (means over orders among them) that are not those of the recipe's own.

    By the primary view. Empty where the run has no other condition or nothing was compared.
    """
    if across is None:
        return ""
    rows = across.verdicts[across.verdicts["view"] == PRIMARY]
    told = list(rows[["condition", "selector", "verdict"]].astype(str).itertuples(index=False, name=None))
    own = {selector: word for condition, selector, word in told if not condition}
    others = list(dict.fromkeys(condition for condition, _, _ in told if condition))
    if not others:
        return ""
    places: dict[str, dict[str, list[str]]] = {word: {} for word in (MYOPIC, WORSE, BETTER, NOW_ONLY)}
    for condition, selector, word in told:
        if condition and own.get(selector) != word:
            places.setdefault(word, {}).setdefault(selector, []).append(condition_label(condition))
    said = [
        f"{word[0].upper()}{word[1:]}: {', '.join(f'{name} ({_some(where)})' for name, where in held.items())}."
        for word, held in places.items()
        if held
    ]
    count = f"{len(others)} other condition{'s' if len(others) > 1 else ''}"
    if not said:
        return f"Every verdict is the same in {'the' if len(others) == 1 else 'all'} {count}."
    return (
        f"{' '.join(said)} All other verdicts of the {count} are those of the recipe's own. Each condition is compared "
        "for itself, without a correction over conditions."
    )


def _some(labels: list[str]) -> str:
    more = f"; and {len(labels) - _MOST_CONDITIONS} more" if len(labels) > _MOST_CONDITIONS else ""
    return "; ".join(labels[:_MOST_CONDITIONS]) + more


def reversal_line(card: Scorecard) -> str:
    """Pairs whose order turns round between the current and the long-horizon score, both sides significant."""
    rows = [row for row in card.reversals.to_dict("records") if row["view"] == PRIMARY]
    if not rows:
        return "Rank reversals with both sides significant: none."
    pairs = "; ".join(
        f"{row['ahead']} leads {row['behind']} by {row['immediate_diff']:.1f} points now and trails it by "
        f"{-row['long_diff']:.3f} in the long run"
        for row in rows
    )
    return f"Rank reversals with both sides significant ({len(rows)}): {pairs}."


def headline(card: Scorecard, recipe: Recipe) -> str:
    """The answer in one or two sentences: who is myopic, who leads in the long run, and over how many seeds."""
    seeds = len(card.trials.seeds)
    selectors = len(card.trials.selectors)
    runs = f"{selectors} selector{'s' if selectors != 1 else ''}, {seeds} seed{'s' if seeds != 1 else ''}"
    lines = verdict_lines(card, recipe)
    if not lines:
        return f"Nothing was compared ({runs}; the reference selector '{card.reference}' has no trial or stands alone)."
    by_word: dict[str, list[str]] = {}
    for line in lines:
        by_word.setdefault(line.word, []).append(line.selector)
    said = ". ".join(f"{word[0].upper()}{word[1:]}: {', '.join(names)}" for word, names in by_word.items())
    means = card.wide(["long_horizon"])["long_horizon"].dropna()
    if means.empty:
        return f"{said} ({runs})."
    leader = str(means.idxmax())
    text = f"{said} ({runs}). Highest long-horizon score: {leader} ({number(float(means.max()), '0–1')})"
    p = float(card.wide(["long_horizon"], column="p_holm")["long_horizon"][leader])
    if leader != card.reference and not p < ALPHA:
        text += f", which is not shown to differ from {card.reference}"
    return text + "."


def set_gap_line(card: Scorecard) -> str:
    """Eq. 3 for the whole set of selectors, by the primary view: rank disagreement of seed means."""
    rows = card.set_gap.to_dict("records")
    row = next(row for row in rows if row["view"] == PRIMARY and row["immediate"] == IMMEDIATE)
    gap, selectors, seeds = float(row["gap"]), int(row["selectors"]), int(row["seeds"])
    over = f"{selectors} selectors, {seeds} seed{'s' if seeds != 1 else ''}"
    chance = (
        f"; ranks by chance alone give {number(chance_gap(selectors), 'ratio')} on average" if selectors > 1 else ""
    )
    return f"Myopia gap of the set (eq. 3, current against long-horizon ranks): {number(gap, 'ratio')} ({over}){chance}"


def base_models(recipe: Recipe) -> list[str]:
    """The base models that the run's seeds start from, in the order of the seeds, each once."""
    return list(dict.fromkeys(recipe.for_seed(seed).model.name for seed in recipe.seeds))


def seeds_caveat(recipe: Recipe) -> str:
    """What differs between the seeds of this run, and so what its intervals cover and do not cover."""
    if recipe.data.sequence == "quadratic":
        return (
            "A seed draws a whole world: geometry, base parameters, pools and order. Scores are exact population "
            "values, so the intervals cover worlds of this recipe, without evaluation noise."
        )
    drawn = (
        "A seed draws the candidates and items that the data source leaves open, their order, and the selectors' own "
        "randomness"
    )
    bases = len(base_models(recipe))
    if 1 < bases < len(recipe.seeds):
        return (
            f"{drawn}, and starts from one of {bases} base models in turn, the same for all selectors. As "
            f"{len(recipe.seeds)} seeds share {bases} base models, the intervals are too narrow where the base model "
            "matters: seeds of one base model are not independent. Name as many base models as seeds."
        )
    if bases > 1:
        return (
            f"{drawn}, and starts from one of {bases} base models in turn, the same for all selectors. The intervals "
            "cover such base models, but no other data source, and scores on small validation sets move by chance as "
            "well."
        )
    return (
        f"{drawn}. The base model is the same in all seeds, so the intervals do not cover another base model or "
        "another data source, and scores on small validation sets move by chance as well."
    )


def legend(card: Scorecard) -> str:
    """How to read the cells of a metric table."""
    return (
        f"mean ± sd over seeds. ▲ better, ▼ worse than {card.reference} (paired by seed, p < {ALPHA:g} after Holm over "
        "the selectors); * different where neither direction is better; — not measured. Bold: the best mean of its "
        "column, shown to differ or not."
    )


def run_facts(recipe: Recipe, results: pd.DataFrame, environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was run, on what, for how long: (name, value) pairs.

    Args:
        environment: ``versions`` (package → version), and where known ``python``, ``machine``, ``system``, ``cores``,
            ``threads``, ``workers`` and ``sessions`` (seconds of each time the audit was at work).
    """
    rounds = "a choice every step" if recipe.rounds == "step" else f"{recipe.rounds} round(s) per stage"
    names = ", ".join(base_models(recipe))
    model = names if names == "quadratic" else f"{names}, {recipe.model.adaptation}"
    facts = [
        ("model", model),
        ("data", f"{recipe.data.sequence}, pools of {recipe.data.pool_size}"),
        ("budget", f"{recipe.budget:.0%} of each pool's tokens, {rounds}, {recipe.training.steps} steps per stage"),
        ("seeds", f"{len(recipe.seeds)} ({', '.join(map(str, recipe.seeds))})"),
        ("measurements", f"{len(results):,}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in environment["versions"].items())),
    ]
    machine = [str(environment[key]) for key in ("system", "machine") if environment.get(key)]
    if environment.get("python"):
        machine.append(f"Python {environment['python']}")
    for key, label in (("cores", "cores"), ("workers", "workers"), ("threads", "threads per worker")):
        if environment.get(key) is not None:
            machine.append(f"{label} {environment[key]}")
    if machine:
        facts.append(("machine", ", ".join(machine)))
    if environment.get("sessions"):
        sessions = environment["sessions"]
        facts.append(("duration", _duration(sum(sessions)) + (f" in {len(sessions)} sessions" if sessions[1:] else "")))
    return facts


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
