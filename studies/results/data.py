"""The committed part of a run: measurements of finished trials, and a few facts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from longgame.audit.learner import outline, seed_bases
from longgame.audit.plan import REFERENCES, Condition, Plan, order_groups, stage_names
from longgame.audit.run import RECIPE, Run
from longgame.errors import DataError
from longgame.metrics.comparisons import Across
from longgame.metrics.scorecard import Scorecard
from longgame.recipe import Recipe, parse_recipe
from longgame.storage import read_json, refresh_file
from studies.results.steps import STEPS

DATA = Path("docs/results/data")
FACTS = "runs.json"


@dataclass(frozen=True)
class StudyRun:
    """One run of the study, from its committed measurements."""

    name: str
    recipe: Recipe
    results: pd.DataFrame
    facts: dict[str, Any]
    """trials, finished, minutes, versions."""

    @property
    def conditions(self) -> dict[str, Condition]:
        return Plan(self.recipe).conditions

    def complete_seeds(self, condition: str = "") -> list[int]:
        """Seeds in which every selector's trial of this condition is finished: all means are over these seeds."""
        here = self.results[self.results["condition"] == condition]
        names = here[["selector", "seed"]].drop_duplicates().groupby("seed", observed=True)["selector"].nunique()
        selectors = len(self.conditions[condition].recipe.selectors)
        return [int(seed) for seed in names.index[names == selectors]]

    def card(self, condition: str = "", reference: str = "random") -> Scorecard:
        """Scorecard of a condition over its complete seeds.

        Raises:
            DataError: no seed is complete.
        """
        here = self.results
        here = here[(here["condition"] == condition) & here["seed"].isin(self.complete_seeds(condition))]
        if here.empty:
            raise DataError(f"{self.name}: condition '{condition}' has no seed in which every selector is finished.")
        recipe = self.conditions[condition].recipe
        plan = outline(recipe)
        beside = [self._reference(name) if condition == "" else None for name in REFERENCES]
        return Scorecard.build(
            here,
            tasks=plan.stages,
            ood=plan.ood,
            primary=plan.primary,
            metric_spec=recipe.metrics,
            threshold=recipe.probe.threshold,
            reference=reference,
            bases=seed_bases(recipe),
            all_data=beside[0],
            oracle=beside[1],
        )

    def _reference(self, name: str) -> Scorecard | None:
        """Scorecard of the condition of `REFERENCES`; None where the run has none, or no seed of it is complete."""
        if name not in self.conditions or not self.complete_seeds(name):
            return None
        return self.card(name, self.conditions[name].recipe.selectors[0].key)

    def across(self) -> Across:
        """All conditions with a complete seed, side by side."""
        cards = {
            name: self.card(name) for name in self.conditions if name not in REFERENCES and self.complete_seeds(name)
        }
        groups = {
            name: members for name, members in order_groups(self.conditions).items() if set(members) <= set(cards)
        }
        return Across.build(cards, groups, margins=self.recipe.metrics.equivalence, holm=self.recipe.metrics.holm)


def keep(folder: Path) -> None:
    """Write the measurements of every run's finished trials, and the facts of all runs.

    What was kept of a run that is not here stays.
    """
    file = folder / FACTS
    facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    written: set[str] = set()
    for step in dict.fromkeys(STEPS):
        if step.name in written or not (step.folder / RECIPE).is_file():
            continue
        run = Run.open(step.folder)
        stages = len(stage_names(run.recipe))
        finished = [trial.name for trial in run.plan.trials if run.trial_store(trial).finished_stages(stages) == stages]
        if not finished:
            continue
        results = run.results
        results = results[results["trial"].isin(finished)]
        environment = read_json(step.folder / "environment.json")
        written.add(step.name)
        facts[step.name] = {
            "recipe": run.recipe.model_dump(mode="json", exclude_defaults=True, exclude={"relative_to"}),
            "trials": len(run.plan.trials),
            "finished": len(finished),
            "minutes": round(sum(environment["sessions"]) / 60, 1),
            "versions": environment["versions"],
        }
        refresh_file(folder / f"{step.name}.parquet", _compact(results))
        print(
            f"{step.name}: {len(finished)} of {len(run.plan.trials)} trials, {len(results):,} measurements", flush=True
        )
    refresh_file(file, (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode())


def _compact(results: pd.DataFrame) -> bytes:
    """Return a Parquet file of what the pages need: probes without sub-skills, in single precision."""
    curves = (results["kind"] == "curve") & (results["sub_skill"] != "")
    table = results[~curves].astype({"value": "float32"})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), sink, compression="zstd", compression_level=19)
    return sink.getvalue().to_pybytes()


def load(folder: Path) -> dict[str, StudyRun]:
    """Read the committed runs, by name.

    Raises:
        DataError: the folder holds no runs.
    """
    if not (folder / FACTS).is_file():
        raise DataError(f"{folder} holds no {FACTS}. Run `python -m studies.results keep` first.")
    runs = {}
    for name, facts in json.loads((folder / FACTS).read_text(encoding="utf-8")).items():
        recipe = parse_recipe(facts["recipe"], name)
        results = pq.read_table(folder / f"{name}.parquet").to_pandas().astype({"value": np.float64})
        runs[name] = StudyRun(name, recipe, results, facts)
    return runs
