"""The calibration: its size, its tables, and their required values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Figure, at_least, at_most
from studies.calibration import families, study
from studies.calibration.check import protocol_difference
from studies.calibration.table import DOSES, SELECTORS, Progress, build_table

Rows = list[dict[str, Any]]

SAME_WALK = 1e-12
TRUTH_Z = 4.0
NOMINAL = 0.05
"""Of the tests, after Holm."""
PROMISED_POWER = 0.75
"""At the minimum detectable effect (80 % for normal differences), for the worst selector."""
SHARED_BASE = 0.2
"""False alarms, as claims about base models, of t tests over seeds of one: with fewer its verdicts need no "on this
base model"."""
COVERED = 0.93
"""By 95 % t intervals, for the worst selector and metric. Like the other limits, set before anything was measured."""


@dataclass(frozen=True)
class Plan:
    """Size of the simulation."""

    worlds: int
    seeds: int
    audits: int
    """Upper bound per setting; fewer if the seeds do not suffice."""
    boot_audits: int
    resamples: int
    selectors: tuple[str, ...] = SELECTORS
    doses: tuple[float, ...] = DOSES


FULL = Plan(worlds=64, seeds=160_000, audits=20_000, boot_audits=4_000, resamples=1_000)
QUICK = Plan(64, 30_000, 4_000, boot_audits=400, resamples=500, selectors=("loss", "diversity", "quality"), doses=())
"""It has fewer selectors rather than fewer worlds: for a population of a few worlds, t intervals are too narrow."""


def measure(plan: Plan, seed: int = 0, progress: Progress = lambda *_: None) -> dict[str, Rows]:
    """All tables: name → rows of plain numbers and strings.

    Args:
        seed: of the draws; the worlds are always the same.
    """
    table = build_table(
        plan.worlds, plan.seeds, selectors=plan.selectors, doses=plan.doses, seed=seed, progress=progress
    )
    limit, selectors = plan.audits, plan.selectors
    same = [{"metric": "R, current, AUC, long-horizon", "difference": protocol_difference()}]
    walks = table.names[table.random :]
    return {
        "replay against protocol": same,
        "truth": study.truth_errors(table, walks, seed),
        "false alarms": study.false_alarms(table, limit=limit, seed=seed),
        "hardest null": study.hardest_null(table, selectors, limit=limit, seed=seed),
        "shared base models": study.shared_bases(table, limit=limit, seed=seed),
        "equivalence": study.equivalence(table, selectors, limit=limit // 2, seed=seed),
        "power": study.power(table, walks, limit=limit, seed=seed),
        "power at the minimum detectable effect": study.power_at_mde(table, selectors, limit=limit, seed=seed),
        "coverage of the set's gap": study.gap_coverage(table, selectors, limit=limit, seed=seed),
        "leaderboard": families.leaderboard(limit=limit, seed=seed),
        "equivalence at its margin": families.margins(limit=limit, seed=seed),
        "seeds that share bases": families.shared_seeds(limit=limit, seed=seed),
        "coverage": study.coverage(
            table, selectors, limit=limit, boot_limit=plan.boot_audits, resamples=plan.resamples, seed=seed
        ),
    }


def requirements(tables: Mapping[str, Rows]) -> list[Figure]:
    """Return the figures with their limits.

    Where selectors do not differ at all, the upper limit of *myopic*'s interval must be below 5 %. A rate whose nominal
    level is exactly 5 % (all others, and *myopic* where all lead now) fails only if its lower limit is above 5 %.
    """
    figures = [
        at_most("calibrate.replay_difference", tables["replay against protocol"][0]["difference"], SAME_WALK),
        at_most("calibrate.truth_z", max(abs(row["z"]) for row in tables["truth"]), TRUTH_Z),
    ]
    for size in sorted({row["seeds"] for row in tables["false alarms"]}):
        rates = {row["claim"]: row for row in tables["false alarms"] if row["seeds"] == size}
        hardest = {row["claim"]: row for row in tables["hardest null"] if row["seeds"] == size}
        at_size = [row for row in tables["coverage"] if row["seeds"] == size]
        bases = {
            row["bases"]: row
            for row in tables["shared base models"]
            if row["seeds"] == size and row["claim"] == "single"
        }
        wrong = [r["low"] for r in tables["equivalence"] if r["seeds"] == size and r["truth"] == "edge"]
        covered = {kind: min(r["rate"] for r in at_size if r["interval"] == kind) for kind in ("t", "bootstrap")}
        gaps = [
            row["rate"]
            for row in tables["coverage of the set's gap"]
            if row["seeds"] == size and row["interval"] == "log-odds" and row["audits"]
        ]
        mde = [row["rate"] for row in tables["power at the minimum detectable effect"] if row["seeds"] == size]
        n = f"n{size}"
        figures += [
            at_most(f"calibrate.false_alarms.myopic.{n}", rates["myopic"]["high"], NOMINAL),
            at_most(f"calibrate.false_alarms.myopic_hardest.{n}", hardest["myopic"]["low"], NOMINAL),
            at_most(f"calibrate.false_alarms.reversal.{n}", rates["rank reversal"]["high"], NOMINAL),
            at_most(f"calibrate.false_alarms.long_horizon.{n}", rates["long-horizon difference"]["low"], NOMINAL),
            at_most(f"calibrate.false_alarms.current.{n}", rates["current difference"]["low"], NOMINAL),
            at_most(f"calibrate.false_alarms.equivalent.{n}", max(wrong), NOMINAL),
            at_least(f"calibrate.shared_base.one_base.{n}", bases["one"]["rate"], SHARED_BASE),
            at_most(f"calibrate.shared_base.own_base.{n}", bases["own"]["low"], NOMINAL),
            at_least(f"calibrate.power_at_mde.{n}", min(mde), PROMISED_POWER),
            at_least(f"calibrate.coverage.t.{n}", covered["t"], COVERED),
            at_least(f"calibrate.coverage.set_gap.{n}", min(gaps, default=float("nan")), COVERED),
            at_least(f"calibrate.coverage.t_over_bootstrap.{n}", covered["t"] - covered["bootstrap"], 0.0),
        ]
        if "repeated" in bases:
            figures.append(at_most(f"calibrate.shared_base.per_base.{n}", bases["repeated"]["low"], NOMINAL))
    return figures + _family_requirements(tables)


def _family_requirements(tables: Mapping[str, Rows]) -> list[Figure]:
    """Figures of `families`, each of the worst setting, for normal noise; other noise is in the tables.

    The worst of k rates with a nominal level of exactly 5 % lies above it by chance. So each has the lower limit of an
    interval of 1 − 0.05/k.
    """
    board, margins, shared = (
        tables[name] for name in ("leaderboard", "equivalence at its margin", "seeds that share bases")
    )
    figures = []
    for size in families.BASES:
        for over in ("selectors", "families"):
            rows = [r for r in board if (r["bases"], r["over"], r["noise"]) == (size, over, "normal")]
            figures.append(at_most(f"calibrate.leaderboard.{over}.b{size}", _worst(rows), NOMINAL))
        rows = [r for r in shared if (r["bases"], r["analysis"], r["effect"]) == (size, "averages per base", 0.0)]
        figures.append(at_most(f"calibrate.shared_seeds.averages.b{size}", _worst(rows), NOMINAL))
    for size in sorted({row["seeds"] for row in margins}):
        rows = [r for r in margins if r["seeds"] == size and r["noise"] == "normal" and r["truth"] != "equal"]
        figures.append(at_most(f"calibrate.equivalence.margin.n{size}", _worst(rows), NOMINAL))
    return figures


def _worst(rows: Rows) -> float:
    """Largest lower limit of the rates, which hold together with 95 % confidence."""
    tail = 0.025 / len(rows)
    return max(study.Rate(round(row["rate"] * row["audits"]), row["audits"]).lower(tail) for row in rows)
