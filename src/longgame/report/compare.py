"""What changed between two runs: verdicts, scores and recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longgame.metrics.catalog import METRICS
from longgame.metrics.scorecard import PRIMARY, Scorecard
from longgame.metrics.stats import holm, moments, paired
from longgame.recipe import Recipe
from longgame.report.tables import Cell, Column, Table, difference_mark, mean_sd, number

_MOST_SEEDS = 10
"""Seeds that are named; the rest are counted."""
METRICS_COMPARED = ("current", "long_horizon", "auc_common", "forgetting", "ood", "worst_task", "myopia_gap")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run beside a baseline."""

    baseline: str
    verdicts: tuple[tuple[str, str, str], ...]
    """(selector, verdict there, verdict now); "" where a side has none."""
    table: Table
    recipe: tuple[str, ...]
    """Keys of the recipe that differ, with both values."""
    caveat: str

    @property
    def changed(self) -> list[tuple[str, str, str]]:
        """The verdicts that are not the same."""
        return [row for row in self.verdicts if row[1] != row[2]]


def compare(
    baseline: str,
    before: Scorecard,
    before_recipe: Recipe,
    now: Scorecard,
    recipe: Recipe,
    before_progress: str = "",
) -> Comparison:
    """Compare two runs by the primary view, selector by selector.

    Means are over each run's own seeds, differences are paired over the seeds that both have; the caveat says which.
    A seed draws the same pools and items only where data and model are the same: where the recipes differ beyond
    selectors and seeds, the caveat says that too. p is Holm-adjusted over the selectors of a metric.

    Args:
        baseline: what the earlier run is called.
        before_progress: how much of it is done, where it is not finished.
    """
    common = [name for name in now.trials.selectors if name in before.trials.selectors]
    differing = tuple(_differences(before_recipe.model_dump(mode="json"), recipe.model_dump(mode="json")))
    apart = [line for line in differing if not line.startswith(("name:", "seeds", "selectors"))]
    caveat = (
        "The recipes differ in more than selectors and seeds, so a difference may come from there."
        if apart
        else "Both runs have the same recipe but for selectors and seeds."
    )
    caveat = " ".join(part for part in (caveat, _seeds_caveat(before, now), before_progress) if part)
    words = [_verdicts(card) for card in (before, now)]
    names = list(dict.fromkeys([*words[1], *words[0]]))
    verdicts = tuple((name, words[0].get(name, ""), words[1].get(name, "")) for name in names)
    return Comparison(baseline, verdicts, _table(before, now, common), differing, caveat)


def _verdicts(card: Scorecard) -> dict[str, str]:
    rows = card.verdicts[card.verdicts["view"] == PRIMARY]
    return dict(zip(rows["selector"].astype(str), rows["verdict"].astype(str), strict=True))


def _common_seeds(before: Scorecard, now: Scorecard) -> list[int]:
    return [seed for seed in now.trials.seeds if seed in before.trials.seeds]


def _seeds_caveat(before: Scorecard, now: Scorecard) -> str:
    """Over which seeds means and differences are."""
    there, here, both = before.trials.seeds, now.trials.seeds, _common_seeds(before, now)
    if not both:
        return (
            f"The runs have no seed in common (there {_named(there)}; now {_named(here)}), so nothing can be paired: "
            "no difference is told, and each mean is over its own run's seeds. Audit both over the same seeds."
        )
    count = f"{len(both)} common seed{'s' if len(both) > 1 else ''} ({_named(both)})"
    text = f"Differences are paired over {count}"
    if len(both) == 1:
        text += ", and one seed cannot be tested"
    if len(there) == len(here) == len(both):
        return f"{text}."
    return f"{text}; means are over each run's own seeds (there {_named(there)}; now {_named(here)})."


def _named(seeds: Sequence[int]) -> str:
    more = f" and {len(seeds) - _MOST_SEEDS} more" if len(seeds) > _MOST_SEEDS else ""
    return ", ".join(map(str, seeds[:_MOST_SEEDS])) + more


def _table(before: Scorecard, now: Scorecard, common: Sequence[str]) -> Table:
    seeds = _common_seeds(before, now)
    columns = [Column("selector", "selector", numeric=False), Column("metric", "metric", numeric=False)]
    columns += [Column(name, name, "mean ± sd over the seeds of that run") for name in ("there", "now")]
    columns += [Column("difference", "difference", f"paired over {len(seeds)} common seeds; ▲ better, ▼ worse")]
    rows = []
    for name in METRICS_COMPARED:
        sides = [card.views[PRIMARY].metrics.get(name) for card in (before, now)]
        if sides[0] is None or sides[1] is None or not common:
            continue
        there, here = (
            card.trials.grid(side)[[card.trials.selectors.index(name) for name in common]]
            for card, side in ((before, sides[0]), (now, sides[1]))
        )  # (common selectors, own seeds)
        pair = paired(
            here[:, [now.trials.seeds.index(seed) for seed in seeds]],
            there[:, [before.trials.seeds.index(seed) for seed in seeds]],
        )
        adjusted = holm(pair.p)
        unit = "long horizon" if name == "long_horizon" else METRICS[name].unit
        (_, mean0, sd0), (_, mean1, sd1) = moments(there), moments(here)
        for place, selector in enumerate(common):
            difference = float(pair.mean[place])
            rows.append(
                (
                    Cell(selector),
                    Cell(METRICS[name].label),
                    Cell(mean_sd(float(mean0[place]), float(sd0[place]), unit), value=float(mean0[place])),
                    Cell(mean_sd(float(mean1[place]), float(sd1[place]), unit), value=float(mean1[place])),
                    Cell(
                        number(difference, unit),
                        difference_mark(float(adjusted[place]), difference, METRICS[name].better),
                        _tested(int(pair.n[place]), float(adjusted[place])),
                        value=difference,
                    ),
                )
            )
    return Table("Against the baseline", tuple(columns), tuple(rows))


def _tested(seeds: int, p: float) -> str:
    over = f"paired over {seeds} seed{'s' if seeds != 1 else ''}"
    return f"{over}, p = {p:.2g} after Holm" if np.isfinite(p) else over


def _differences(there: Any, now: Any, where: str = "") -> Iterator[str]:
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*there, *now]):
            yield from _differences(there.get(key), now.get(key), f"{where}.{key}" if where else str(key))
    elif there != now:
        yield f"{where}: {_short(there)} → {_short(now)}"


def _short(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, Mapping) and "name" in item for item in value):
        value = [item.get("label") or item["name"] for item in value]
    text = str(value)
    return text if len(text) <= 120 else text[:119] + "…"
