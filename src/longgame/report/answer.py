"""The sentences of a report: the answer, a verdict per selector, how to read it, its limits, and `--fail-if`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longgame.audit.learner import learner_kind
from longgame.audit.plan import REFERENCES, condition_label
from longgame.audit.run import Run
from longgame.errors import RecipeError, unknown
from longgame.metrics.catalog import METRICS
from longgame.metrics.longhorizon import chance_gap
from longgame.metrics.scorecard import IMMEDIATE, PRIMARY, SCORER_VIEWS, Scorecard
from longgame.metrics.stats import ALPHA, MOST_SEEDS, holm, paired
from longgame.metrics.verdict import (
    BETTER,
    EQUIVALENT,
    LEAST_SEEDS,
    MYOPIC,
    NO_DIFFERENCE,
    NOT_ENOUGH,
    NOW_ONLY,
    WORSE,
)
from longgame.recipe import Recipe
from longgame.report.tables import Cell, Column, Table, format_number, format_signed, selectors_in_order

_NAMED_CONDITIONS = 6
"""Conditions named for one selector's verdict; further ones are counted, and all are in the tables."""


_NAMED_SELECTORS = 8
"""Selectors named in a sentence; further ones are counted, and all are in the tables."""
MEANINGS = {
    BETTER: "shown to be ahead in the long run",
    MYOPIC: "shown to be ahead now and behind in the long run",
    WORSE: "shown to be behind in the long run",
    NOW_ONLY: "shown to differ now; no difference is shown in the long run",
    EQUIVALENT: "shown to differ by less than the margins, now and in the long run",
    NO_DIFFERENCE: "these seeds show no difference, which does not mean that there is none",
    NOT_ENOUGH: f"fewer than {LEAST_SEEDS} seeds show nothing",
}
"""Verdict → what it means, against the reference."""
_HARMS = {"forgetting": "forgetting", "worst_task": "worst task", "ood": "OOD score"}
"""Metric → its name in a sentence about what a selector loses."""


def listed(names: Sequence[str]) -> str:
    """The names with commas; the first eight of many, and how many more there are."""
    further = len(names) - _NAMED_SELECTORS
    return ", ".join(names[:_NAMED_SELECTORS]) + (f" and {further} more" if further > 0 else "")


def plural(count: int, noun: str) -> str:
    """``1 seed``, ``2 seeds``, ``1,000 seeds``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Effect:
    """A difference from the reference in points, with its 95 % interval; NaN where it is not measured."""

    mean: float
    low: float
    high: float
    seeds_needed: float = float("nan")
    """Seeds that would show a true difference of this size with 80 % power."""

    def __str__(self) -> str:
        mean, low, high = (format_signed(value, "points") for value in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]" if np.isfinite(self.low) else mean


def effect(card: Scorecard, selector: str, metric: str) -> Effect:
    """How far a selector lies from the reference by a metric of the primary view, in points."""
    table = card.summary
    rows = table[(table["view"] == PRIMARY) & (table["metric"] == metric) & (table["selector"] == selector)]
    if rows.empty:
        return Effect(float("nan"), float("nan"), float("nan"))
    row = rows.iloc[0]
    mean, low, high = (METRICS[metric].scale * float(row[name]) for name in ("diff_vs_reference", "ci_low", "ci_high"))
    return Effect(mean, low, high, float(row["seeds_needed"]))


@dataclass(frozen=True, slots=True)
class VerdictLine:
    """One selector's verdict as sentences, each without its full stop."""

    selector: str
    word: str
    reason: str
    now: Effect
    """Difference of the current score from the reference."""
    later: Effect
    """Difference of the long-horizon score from the reference."""
    other: str = ""
    """Where another scorer disagrees."""
    power: str = ""
    """What these seeds could have shown."""
    cost: str = ""
    """What choosing took."""

    @property
    def meaning(self) -> str:
        """What the word means, as a full sentence."""
        return f"{_capital(MEANINGS[self.word])}."

    @property
    def reasons(self) -> list[str]:
        """Everything behind the word, as full sentences."""
        first = f"{self.reason} ({self.other})" if self.other else self.reason
        return [f"{sentence}." for sentence in (first, self.power, self.cost) if sentence]


def verdict_lines(card: Scorecard, recipe: Recipe) -> list[VerdictLine]:
    """One line per selector but the reference, by the primary view, with disagreements of the other views."""
    rows = {(str(row["view"]), str(row["selector"])): row for row in card.verdicts.to_dict("records")}
    lines = []
    for selector in selectors_in_order(card, recipe):
        if (PRIMARY, selector) not in rows:
            continue
        row = rows[PRIMARY, selector]
        words = {view: str(rows[view, selector]["verdict"]) for view in SCORER_VIEWS if (view, selector) in rows}
        word = str(row["verdict"])
        others = [f"under {view.replace('_', ' ')}: {other}" for view, other in words.items() if other != word]
        cost = cost_line(card, selector)
        now, later = (effect(card, selector, metric) for metric in ("current", "long_horizon"))
        reason, power = str(row["reason"]), str(row["power"])
        lines.append(VerdictLine(selector, word, reason, now, later, "; ".join(others), power, cost))
    return lines


def differences_table(card: Scorecard, recipe: Recipe) -> Table:
    """A row per selector: the verdict, both differences in points, and the seeds that would show them."""
    columns = (
        Column("selector", numeric=False),
        Column("verdict", meaning=f"against {card.reference}", numeric=False),
        Column("now [points]", "now", f"difference of the current score from {card.reference}, 95 % interval"),
        Column("later [points]", "later", f"difference of the long-horizon score from {card.reference}"),
        Column("seeds, now", "seeds now", "seeds that show a true difference of this size with 80 % power", minor=True),
        Column("seeds, later", "seeds later", "the same for the long-horizon score", minor=True),
    )
    rows = []
    for line in verdict_lines(card, recipe):
        effects = (line.now, line.later)
        seeds = (Cell(_seeds(part.seeds_needed), value=part.seeds_needed) for part in effects)
        differences = (Cell(str(part), value=part.mean) for part in effects)
        rows.append((Cell(line.selector), Cell(line.word, detail=line.meaning), *differences, *seeds))
    words = dict.fromkeys(line.word for line in verdict_lines(card, recipe))
    note = " ".join(f"{_capital(word)}: {MEANINGS[word]}." for word in words)
    return Table(
        f"Against {card.reference}, in points", columns if rows else columns[:1], tuple(rows), note, of_selectors=True
    )


def _seeds(count: float) -> str:
    return f"> {MOST_SEEDS:,}" if count == np.inf else format_number(count, "count")


def cost_line(card: Scorecard, selector: str) -> str:
    """FLOPs and seconds per trial of a selector's choices, as shares of training too; empty if not measured."""
    rows = card.summary[(card.summary["view"] == "") & (card.summary["selector"] == selector)]
    mean = dict(zip(rows["metric"].astype(str), rows["mean"].astype(float), strict=True))
    flops, seconds = mean.get("score_flops", float("nan")), mean.get("select_seconds", float("nan"))
    parts = []
    if flops == 0:
        parts.append("no FLOPs of the model")
    elif flops > 0:
        parts.append(f"{format_number(flops, 'FLOP')}FLOP{_of_training(mean, 'flops_share', 'FLOPs')}")
    if seconds >= 0:
        parts.append(f"{format_number(seconds, 's')} s{_of_training(mean, 'seconds_share', 'time')}")
    return f"Choosing took {' and '.join(parts)} per trial" if parts else ""


def _of_training(mean: Mapping[str, float], share: str, noun: str) -> str:
    return f" ({100 * mean[share]:.1f} % of the training {noun})" if mean.get(share, float("nan")) >= 0 else ""


def headline(card: Scorecard, recipe: Recipe) -> str:
    """The verdicts in a few words: who beat the reference, who is behind, and what else is shown to be lost."""
    runs = f"{plural(len(card.trials.selectors), 'selector')}, {replications(card)}"
    by_word: dict[str, list[str]] = {}
    for line in verdict_lines(card, recipe):
        by_word.setdefault(line.word, []).append(line.selector)
    if not by_word:
        return f"Nothing was compared ({runs}; the reference selector '{card.reference}' has no trial or stands alone)."
    means = card.wide(["long_horizon"])["long_horizon"].dropna()
    for names in by_word.values():
        if len(names) > _NAMED_SELECTORS:  # the first ones are named
            names.sort(key=lambda name: -float(means.get(name, -np.inf)))
    if set(by_word) == {NOT_ENOUGH}:
        return f"Not enough seeds to say anything ({runs})."
    better = by_word.pop(BETTER, [])
    first = f"{_capital(BETTER)}: {listed(better)}." if better else f"Nothing is shown to beat {card.reference}."
    words = [word for word in MEANINGS if word in by_word]
    others = [f"{_capital(word)}: {listed(by_word[word])}." for word in words if word != NO_DIFFERENCE]
    if len(by_word.get(NO_DIFFERENCE, ())) == 1 or (by_word.get(NO_DIFFERENCE) and others):
        others.append(f"{_capital(NO_DIFFERENCE)}: {listed(by_word[NO_DIFFERENCE])}.")
    return " ".join([first, *others, *_harms(card, recipe), f"({_capital(runs)}.)"])


def _harms(card: Scorecard, recipe: Recipe) -> list[str]:
    """What selectors are shown to lose beside the long-horizon score, one sentence a metric."""
    sentences = []
    p = card.wide(list(_HARMS), column="p_holm")
    for metric, noun in _HARMS.items():
        worse = -1.0 if METRICS[metric].better == "higher" else 1.0
        losses = {name: effect(card, name, metric) for name in selectors_in_order(card, recipe)}
        shown = [
            f"{name} {format_signed(loss.mean, 'points')}"
            for name, loss in losses.items()
            if p[metric].get(name, 1.0) < ALPHA and worse * loss.mean > 0
        ]
        if shown:
            sentences.append(f"Shown to lose, {noun} in points: {listed(shown)}.")
    return sentences


def audited_line(run: Run) -> str:
    """What was audited, in a line: model, data and stages, budget and rounds, seeds, date."""
    facts, tasks = run_facts(run), run.scorecard.tasks
    parts = [
        facts["model"],
        f"{facts['data']}: {' → '.join(tasks)}",
        facts["budget"],
        f"{plural(len(run.recipe.seeds), 'seed')}",
        str(facts.get("date", "")),
    ]
    return " · ".join(part for part in parts if part)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def answer(run: Run) -> dict[str, str]:
    """Question → sentence, by the primary view of the recipe's own condition; it claims no more than the tests show."""
    card = run.scorecard
    rows = card.verdicts[card.verdicts["view"] == PRIMARY]
    verdicts = dict(zip(rows["selector"].astype(str), rows["verdict"].astype(str), strict=True))
    sentences = {
        "Which to use": _advice(card, verdicts),
        "Which are myopic": _myopic(card, run.recipe, verdicts),
        "In other conditions": elsewhere(run),
        "How sure": _certainty(card) if verdicts else "",
        "What it cost": _cost(card),
    }
    return {question: text for question, text in sentences.items() if text}


def _advice(card: Scorecard, verdicts: Mapping[str, str]) -> str:
    if not verdicts:
        return f"Nothing was compared: the reference selector '{card.reference}' has no trial or stands alone."
    means = card.wide(["long_horizon"])["long_horizon"].dropna()
    if means.empty:
        return "No long-horizon score was measured yet, so nothing can be advised."
    leader = str(means.idxmax())
    better = [name for name, word in verdicts.items() if word == BETTER]
    if better:
        best = max(better, key=lambda name: float(means[name]))
        rivals = _not_shown_to_differ(card, best)
        text = f"Use {best}: long-horizon score {_against_reference(card, best)}."
        return f"{text} Not shown to differ from it: {listed(rivals)}." if rivals else text
    if all(word == NOT_ENOUGH for word in verdicts.values()):
        return f"Too few seeds to advise anything. Highest long-horizon score so far: {leader}."
    cheap = ", which costs nothing" if card.reference == "random" else ""
    text = f"Use {card.reference}{cheap}, or measure more seeds."
    if leader != card.reference:
        text += f" The highest long-horizon score is that of {leader}, {_against_reference(card, leader)}."
    return text


def _against_reference(card: Scorecard, selector: str) -> str:
    table = card.summary
    at = (table["view"] == PRIMARY) & (table["metric"] == "long_horizon") & (table["selector"] == selector)
    row, difference = table[at].iloc[0], effect(card, selector, "long_horizon")
    text = f"{format_number(METRICS['long_horizon'].scale * float(row['mean']), 'points')} points of 100"
    if np.isfinite(difference.mean):
        text += f", {format_signed(difference.mean, 'points')} against {card.reference}"
    if np.isfinite(difference.low):
        low, high = (format_signed(value, "points") for value in (difference.low, difference.high))
        text += f" (95 % interval {low} to {high}"
        text += f", p = {float(row['p_holm']):.2g} after Holm)" if np.isfinite(row["p_holm"]) else ")"
    return text


def _not_shown_to_differ(card: Scorecard, best: str) -> list[str]:
    """Selectors whose long-horizon score is not shown to differ from this one's (paired by seed, Holm)."""
    values = card.trials.grid(card.views[PRIMARY].metrics["long_horizon"])  # (selectors, seeds)
    names = list(card.trials.selectors)
    others = [place for place, name in enumerate(names) if name != best]
    if not others:
        return []
    against = np.broadcast_to(values[names.index(best)], values[others].shape).copy()
    difference = paired(values[others], against, unit_of=card.trials.unit_of)
    return [names[place] for place, p in zip(others, holm(difference.p), strict=True) if not p < ALPHA]


def _myopic(card: Scorecard, recipe: Recipe, verdicts: Mapping[str, str]) -> str:
    if not verdicts:
        return ""
    order = [name for name in selectors_in_order(card, recipe) if name in verdicts]
    myopic, worse = ([name for name in order if verdicts[name] == word] for word in (MYOPIC, WORSE))
    text = "None is shown to be myopic."
    if myopic:
        text = f"Myopic (ahead now, behind in the long run): {listed(myopic)}."
    if worse:
        text += f" Behind in the long run, and not shown to be ahead now: {listed(worse)}."
    return text


def _certainty(card: Scorecard) -> str:
    unit = "base model" if card.trials.repeats_bases else "seed"
    text = f"{replications(card)}, compared by {unit}, Holm over the selectors, 5 % level."
    if card.trials.shares_base:
        text += " Every verdict is about this base model; another one may give another."
    now, later = (_detectable(card, metric) for metric in ("current", "long_horizon"))
    if np.isfinite(now) and np.isfinite(later):
        text += (
            f" A true difference of {now:.1f} points now and of {later:.1f} in the long run would be shown with 80 % "
            "power (from the spread of all selectors); smaller ones may be missed."
        )
    elif len(card.trials.seeds) > 1:
        text += " The smallest difference that would be shown cannot be told from so few seeds."
    return text


def _detectable(card: Scorecard, metric: str) -> float:
    rows = card.summary[(card.summary["view"] == PRIMARY) & (card.summary["metric"] == metric)]
    values = rows["mde"].to_numpy(float)
    values = METRICS[metric].scale * values[np.isfinite(values)]
    return float(np.median(values)) if values.size else float("nan")


def _cost(card: Scorecard) -> str:
    measured = set(card.summary.loc[card.summary["view"] == "", "metric"])
    sentences = []
    if "selected_tokens" in measured:
        tokens = card.wide(["selected_tokens"])["selected_tokens"].dropna()
        if len(tokens):
            low, high = float(tokens.min()), float(tokens.max())
            span = f"{low:,.0f}" if high - low < 0.5 else f"{low:,.0f} to {high:,.0f}"
            sentences.append(f"{span} selected tokens per trial.")
    if "select_seconds" in measured:
        seconds = card.wide(["select_seconds"])["select_seconds"].dropna()
        if len(seconds) > 1:
            fast, slow = (f"{format_number(float(value), 's')} s" for value in (seconds.min(), seconds.max()))
            span = f"from {fast} ({seconds.idxmin()}) to {slow} ({seconds.idxmax()})"
            sentences.append(f"Choosing took {span} per trial.")
    return " ".join(sentences)


def elsewhere(run: Run) -> str:
    """Verdicts of other conditions (and of means over orders) that differ from the recipe's own, by the primary view.

    All are corrected over the family that `metrics.holm` names, the recipe's own here too. Empty where the run has no
    other condition or nothing was compared.
    """
    if run.across is None:
        return ""
    rows = run.across.verdicts[run.across.verdicts["view"] == PRIMARY]
    family = f"p after Holm over {rows['family'].iloc[0]}" if len(rows) else ""
    verdicts = list(rows[["condition", "selector", "verdict"]].astype(str).itertuples(index=False, name=None))
    recipe_words = {selector: word for condition, selector, word in verdicts if not condition}
    others = {condition for condition, _, _ in verdicts if condition}
    if not others:
        return ""
    by_word: dict[str, dict[str, list[str]]] = {word: {} for word in (MYOPIC, WORSE, BETTER, NOW_ONLY)}
    for condition, selector, word in verdicts:
        if condition and recipe_words.get(selector) != word:
            by_word.setdefault(word, {}).setdefault(selector, []).append(condition_label(condition))
    sentences = [
        f"{_capital(word)}: {', '.join(f'{name} ({_some(labels)})' for name, labels in selectors.items())}."
        for word, selectors in by_word.items()
        if selectors
    ]
    count = plural(len(others), "other condition")
    if not sentences:
        return f"Every verdict is the same in {'the' if len(others) == 1 else 'all'} {count} ({family})."
    text = f"{' '.join(sentences)} All other verdicts of the {count} are those of the recipe's own ({family})."
    card = run.scorecard.verdicts
    alone = card[card["view"] == PRIMARY].set_index("selector")["verdict"]
    changed = [f"{name} {word}" for name, word in recipe_words.items() if alone.get(name, word) != word]
    return text + (f" With this correction the recipe's own are: {', '.join(changed)}." if changed else "")


def _some(labels: Sequence[str]) -> str:
    further = f"; and {len(labels) - _NAMED_CONDITIONS} more" if len(labels) > _NAMED_CONDITIONS else ""
    return "; ".join(labels[:_NAMED_CONDITIONS]) + further


def reversal_line(card: Scorecard) -> str:
    """Pairs whose order changes between the current and the long-horizon score, both differences significant."""
    rows = card.reversals[card.reversals["view"] == PRIMARY].to_dict("records")
    if not rows:
        return "Rank reversals with both sides significant: none."
    pairs = "; ".join(
        f"{row['ahead']} leads {row['behind']} by {row['immediate_diff']:.1f} points now and trails it by "
        f"{-METRICS['long_horizon'].scale * row['long_diff']:.1f} in the long run"
        for row in rows
    )
    return f"Rank reversals with both sides significant ({len(rows)}): {pairs}."


def set_gap_line(card: Scorecard) -> str:
    """Eq. 3 for all selectors together, by the primary view: rank disagreement of seed means."""
    rows = card.set_gap[(card.set_gap["view"] == PRIMARY) & (card.set_gap["immediate"] == IMMEDIATE)]
    row = rows.iloc[0]
    selectors = int(row["selectors"])
    text = f"Myopia gap of the set (eq. 3, current against long-horizon ranks): {format_number(row['gap'], 'ratio')}"
    text += f" ({selectors} selectors, {plural(int(row['seeds']), 'seed')})"
    if selectors > 1:
        text += f"; ranks by chance alone give {format_number(chance_gap(selectors), 'ratio')} on average"
    if not np.isnan(row["ci_low"]):
        low, high = (format_number(row[name], "ratio") for name in ("ci_low", "ci_high"))
        text += (
            f". Single seeds have {format_number(row['seed_gap'], 'ratio')} on average (95 % interval {low} to {high})"
        )
    return text + "."


def legend(card: Scorecard) -> str:
    """How to read the cells of a metric table."""
    return (
        f"Scores are in points of 100, mean ± sd over seeds. ▲ better, ▼ worse than {card.reference} (paired by seed, "
        f"p < {ALPHA:g} after Holm over the selectors); * different where neither direction is better; — not measured. "
        "Bold: the best mean of its column, shown to differ or not."
    )


def base_models(recipe: Recipe) -> list[str]:
    """The base models that the run's seeds start from, in the order of the seeds, each once."""
    return list(dict.fromkeys(recipe.for_seed(seed).model.name for seed in recipe.seeds))


def replications(card: Scorecard) -> str:
    """The seeds and base models behind the numbers: ``3 seeds of one base model``, ``10 seeds of 5 base models``."""
    trials, seeds = card.trials, plural(len(card.trials.seeds), "seed")
    if not trials.bases:
        return seeds
    bases = len(set(trials.bases))
    return f"{seeds} of {'one base model' if bases == 1 else f'{bases} base models'}"


def seeds_caveat(recipe: Recipe) -> str:
    """What differs between the seeds of this run, so what its intervals cover and do not cover."""
    if not learner_kind(recipe).has_texts:
        return (
            "A seed draws a whole world: geometry, base parameters, pools and order. Scores are exact population "
            "values, so the intervals cover worlds of this recipe, without evaluation noise."
        )
    draws = (
        "A seed draws the candidates and items that the data source leaves open, their order, and the selectors' own "
        "randomness"
    )
    noise = "and scores on small validation sets move by chance as well."
    bases, seeds = len(base_models(recipe)), len(recipe.seeds)
    if bases == 1:
        return (
            f"{draws}. The base model is the same in all seeds, so every verdict is about this base model, and the "
            f"intervals do not cover another base model or another data source, {noise}"
        )
    text = f"{draws}, and starts from one of {bases} base models in turn, the same for all selectors."
    if bases < seeds:
        return (
            f"{text} As {seeds} seeds share {bases} base models, differences are averaged per base model first, and "
            "tests and intervals of differences count base models. More base models show more than more seeds."
        )
    return f"{text} The intervals cover such base models, but no other data source, {noise}"


def condition_note(run: Run) -> str:
    """Which condition the parts of a report are about; empty for a recipe without axes."""
    if run.across is None:
        return ""
    return (
        f"Answer, scorecard and most figures are about the recipe's own condition; {len(run.scorecards)} of "
        f"{len(run.plan.conditions.keys() - {*REFERENCES})} conditions have measurements of every selector and stand "
        "side by side."
    )


def contamination_note(run: Run) -> str:
    """A warning of evaluation prompts in the pools; empty where there are few."""
    contamination = run.contamination
    if contamination is None or not contamination.is_much:
        return ""
    return f"Evaluation prompts in the pools: {contamination}. Scores may reward remembering them. Use other data."


_FOLDERS = re.compile(r"^((?:[\w-]+:)*)(?:~|/(?!/))[^:]*/(?=[^/:])")


def without_folders(value: Any) -> Any:
    """The values with the folders of absolute paths left out: a page is shown to others."""
    if isinstance(value, dict):
        return {key: without_folders(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_folders(part) for part in value]
    return _FOLDERS.sub(r"\1…/", value) if isinstance(value, str) else value


def run_facts(run: Run) -> dict[str, str]:
    """What was run, on which machine, for how long: name → value."""
    recipe, environment = run.recipe, run.environment
    rounds = "a choice every step" if recipe.rounds == "step" else f"{recipe.rounds} round(s) per stage"
    names = ", ".join(map(without_folders, base_models(recipe)))
    machine = [str(environment[key]) for key in ("system", "machine") if environment.get(key)]
    if environment.get("python"):
        machine.append(f"Python {environment['python']}")
    counts = {"cores": "cores", "workers": "workers", "threads": "threads per worker"}
    machine += [f"{label} {environment[key]}" for key, label in counts.items() if environment.get(key) is not None]
    sessions = environment.get("sessions") or []
    facts = {
        "model": names if not learner_kind(recipe).has_texts else f"{names}, {recipe.model.adaptation}",
        "data": f"{recipe.data.sequence}, pools of {recipe.data.pool_size}",
        "evaluation prompts in pools": str(run.contamination or ""),
        "budget": f"{100 * recipe.budget:g} % of each pool's {recipe.counted_tokens}, {rounds}, "
        f"{recipe.training.steps} steps per stage",
        "seeds": f"{len(recipe.seeds)} ({', '.join(map(str, recipe.seeds))})",
        "measurements": f"{run.measured[''].records:,}",
        "versions": ", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
        "machine": ", ".join(machine),
        "date": str(environment.get("date", "")),
        "duration": _duration(sum(sessions)) + (f" in {len(sessions)} sessions" if sessions[1:] else ""),
    }
    if not sessions:
        del facts["duration"]
    return {name: value for name, value in facts.items() if value}


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


# The condition of `longgame report --fail-if`: ``myopic(my-selector) or worse(loss)``.

VERDICTS = {
    "myopic": MYOPIC,
    "worse": WORSE,
    "better": BETTER,
    "now-only": NOW_ONLY,
    "equivalent": EQUIVALENT,
    "no-difference": NO_DIFFERENCE,
    "not-enough-seeds": NOT_ENOUGH,
}
"""Word of a condition → verdict of a scorecard."""
ANY = "*"
_CLAIM = re.compile(r"([A-Za-z][A-Za-z-]*)\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)")
_OR = re.compile(r"\s+or\s+")


@dataclass(frozen=True, slots=True)
class Claim:
    """``verdict(selector)``."""

    verdict: str
    selector: str

    def __str__(self) -> str:
        return f"{self.verdict}({self.selector})"


def parse_condition(text: str) -> tuple[Claim, ...]:
    """Read a condition; nothing in it is executed.

    Raises:
        RecipeError: it is not claims joined by ``or``, or a verdict is unknown.
    """
    claims: list[Claim] = []
    place, condition = 0, text.strip()
    while True:
        match = _CLAIM.match(condition, place)
        if match is None or not match[2].strip():
            raise RecipeError(
                f"--fail-if is '{text}'; it cannot be read at '{condition[place : place + 30]}'. Write "
                'VERDICT(SELECTOR), joined by or, e.g. "myopic(loss) or worse(loss)". '
                f"Verdicts: {', '.join(VERDICTS)}."
            )
        if match[1] not in VERDICTS:
            raise RecipeError(f"--fail-if is '{text}': " + unknown("verdict", match[1], VERDICTS))
        claims.append(Claim(match[1], match[2].strip()))
        if match.end() == len(condition):
            return tuple(claims)
        joint = _OR.match(condition, match.end())
        if joint is None:
            raise RecipeError(f"--fail-if is '{text}'; only ' or ' can follow '{claims[-1]}'.")
        place = joint.end()


def true_claims(claims: Sequence[Claim], run: Run) -> list[str]:
    """The claims that hold by the primary view in any condition, each with its selector, condition and reason.

    Raises:
        RecipeError: the run does not compare a selector: a guard must not pass because of a wrong name.
    """
    reference = run.scorecard.reference
    table = run.scorecard.verdicts.assign(condition="") if run.across is None else run.across.verdicts
    columns = ["condition", "selector", "verdict", "reason"]
    rows = list(table.loc[table["view"] == PRIMARY, columns].astype(str).itertuples(index=False, name=None))
    compared = {selector for _, selector, _, _ in rows}
    holding = []
    for claim in claims:
        if claim.selector == ANY:
            if not compared:
                raise RecipeError(f"--fail-if asks for '{claim}', but the run compares no selector with {reference}.")
        elif claim.selector == reference and reference not in compared:
            raise RecipeError(f"--fail-if asks for '{claim}', but {reference} is what others are compared with.")
        elif claim.selector not in compared:
            raise RecipeError("--fail-if: " + unknown("selector", claim.selector, compared))
        verdict = VERDICTS[claim.verdict]
        for condition, selector, word, reason in rows:
            if word == verdict and claim.selector in (ANY, selector):
                where = f" in condition '{condition_label(condition)}'" if condition else ""
                holding.append(f"{claim.verdict}({selector}){where}: {reason}")
    return holding
