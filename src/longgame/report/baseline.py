"""What changed since a baseline run: verdicts, scores and recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longgame.audit.run import Run
from longgame.metrics.catalog import METRICS
from longgame.metrics.scorecard import PRIMARY, Scorecard
from longgame.metrics.stats import holm, moments, paired
from longgame.report.answer import plural
from longgame.report.tables import Cell, Column, Table, difference_mark, format_number, mean_sd

_NAMED_SEEDS = 10
"""Seeds that are named; further ones are counted."""
METRICS_COMPARED = ("current", "long_horizon", "auc_common", "forgetting", "ood", "worst_task", "myopia_gap")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run against a baseline."""

    baseline: str
    changed: tuple[tuple[str, str, str], ...]
    """(selector, verdict then, verdict now) where they differ; "" where a side has none."""
    table: Table
    recipe: tuple[str, ...]
    """Keys of the recipe that differ, with both values."""
    caveat: str


def compare_with(baseline: Run, run: Run, name: str) -> Comparison:
    """Compare two runs by the primary view, selector by selector.

    Means are over each run's own seeds, differences are paired over the seeds that both have; the caveat says which.
    A seed draws the same pools and items only where data and model are the same: where the recipes differ beyond
    selectors and seeds, the caveat says that too. p is Holm-adjusted over the selectors of a metric.

    Args:
        name: what the baseline is called.
    """
    before, now = baseline.scorecard, run.scorecard
    first, second = (each.recipe.model_dump(mode="json", exclude={"relative_to"}) for each in (baseline, run))
    for recipe, each in ((first, baseline), (second, run)):
        for item, spec in zip(recipe["selectors"], each.recipe.selectors, strict=True):
            item["label"] = spec.key
    differing = tuple(_differences(first, second))
    same = all(line.startswith(("name:", "seeds", "selectors")) for line in differing)
    caveats = [
        "Both runs have the same recipe but for selectors and seeds."
        if same
        else "The recipes differ in more than selectors and seeds, so a difference may come from there.",
        _redefined(first["selectors"], second["selectors"]),
        _seeds_caveat(before, now),
        baseline.progress,
    ]
    old, new = _verdicts(before), _verdicts(now)
    verdicts = ((selector, old.get(selector, ""), new.get(selector, "")) for selector in dict.fromkeys([*new, *old]))
    changed = tuple((selector, was, is_now) for selector, was, is_now in verdicts if was != is_now)
    return Comparison(name, changed, _table(before, now), differing, " ".join(filter(None, caveats)))


def _redefined(there: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on selectors that are called alike and are not the same."""
    before, after = _by_name(there), _by_name(now)
    other = [name for name in after if name in before and after[name] != before[name]]
    return f"Called alike, and not the same in both runs: {_short(', '.join(other))}." if other else ""


def _verdicts(card: Scorecard) -> dict[str, str]:
    rows = card.verdicts[card.verdicts["view"] == PRIMARY]
    return dict(zip(rows["selector"].astype(str), rows["verdict"].astype(str), strict=True))


def _common_seeds(before: Scorecard, now: Scorecard) -> list[int]:
    return [seed for seed in now.trials.seeds if seed in before.trials.seeds]


def _seeds_caveat(before: Scorecard, now: Scorecard) -> str:
    """Over which seeds means and differences are."""
    both = _common_seeds(before, now)
    sides = f"(there {_named(before.trials.seeds)}; now {_named(now.trials.seeds)})"
    if not both:
        return (
            f"The runs have no seed in common {sides}, so nothing can be paired: no difference is shown, and each mean "
            "is over its own run's seeds. Audit both over the same seeds."
        )
    text = f"Differences are paired over {plural(len(both), 'common seed')} ({_named(both)})"
    if len(both) == 1:
        text += ", and one seed cannot be tested"
    if len(before.trials.seeds) == len(now.trials.seeds) == len(both):
        return f"{text}."
    return f"{text}; means are over each run's own seeds {sides}."


def _named(seeds: Sequence[int]) -> str:
    further = f" and {len(seeds) - _NAMED_SEEDS} more" if len(seeds) > _NAMED_SEEDS else ""
    return ", ".join(map(str, seeds[:_NAMED_SEEDS])) + further


def _table(before: Scorecard, now: Scorecard) -> Table:
    seeds = _common_seeds(before, now)
    common = [name for name in now.trials.selectors if name in before.trials.selectors]
    columns = [Column("selector", numeric=False), Column("metric", numeric=False)]
    columns += [Column(name, meaning="mean ± sd over the seeds of that run") for name in ("there", "now")]
    columns += [Column("difference", meaning=f"paired over {len(seeds)} common seeds; ▲ better, ▼ worse")]
    rows = []
    for name in METRICS_COMPARED:
        values = []  # of each run: (common selectors, its seeds)
        for card in (before, now):
            if name in card.views[PRIMARY].metrics:
                grid = card.trials.grid(card.views[PRIMARY].metrics[name])
                values.append(
                    METRICS[name].scale * grid[[card.trials.selectors.index(selector) for selector in common]]
                )
        if len(values) < 2 or not common:
            continue
        there, here = (
            side[:, [card.trials.seeds.index(seed) for seed in seeds]]
            for side, card in zip(values, (before, now), strict=True)
        )
        places = [now.trials.seeds.index(seed) for seed in seeds]
        difference = paired(here, there, unit_of=np.unique(now.trials.unit_of[places], return_inverse=True)[1])
        adjusted = holm(difference.p)
        unit, better = METRICS[name].shown_unit, METRICS[name].better
        sides = [moments(side) for side in values]
        for place, selector in enumerate(common):
            change, p = float(difference.mean[place]), float(adjusted[place])
            means = [
                Cell(mean_sd(float(mean[place]), float(sd[place]), unit), value=float(mean[place]))
                for _, mean, sd in sides
            ]
            detail = f"paired over {plural(int(difference.n[place]), 'seed')}"
            detail += f", p = {p:.2g} after Holm" if np.isfinite(p) else ""
            cell = Cell(format_number(change, unit), difference_mark(p, change, better), detail, value=change)
            rows.append((Cell(selector), Cell(METRICS[name].label), *means, cell))
    return Table("Scores", tuple(columns), tuple(rows))


def _differences(there: Any, now: Any, key: str = "") -> Iterator[str]:
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*there, *now]):
            yield from _differences(there.get(name), now.get(name), f"{key}.{name}" if key else str(name))
    elif there != now and _has_names(there) and _has_names(now):
        before, after = _by_name(there), _by_name(now)
        for sign, names in (("−", before.keys() - after.keys()), ("+", after.keys() - before.keys())):
            if names:
                yield f"{key}: {sign} {_short(', '.join(sorted(names)))}"
        common = [name for name in before if name in after]
        if common != [name for name in after if name in before]:
            yield f"{key}: in another order"
        for name in common:
            yield from _differences(before[name], after[name], f"{key} {name}")
    elif there != now:
        yield f"{key}: {_short(there)} → {_short(now)}"


def _has_names(value: Any) -> bool:
    """Whether it is a list of objects that are each called something else."""
    is_list = isinstance(value, list) and all(isinstance(item, Mapping) and "name" in item for item in value)
    return is_list and 0 < len(value) == len(_by_name(value))


def _by_name(items: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Selectors, stages or sets by what tables call them."""
    return {str(item.get("label") or item["name"]): item for item in items}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:119] + "…"
