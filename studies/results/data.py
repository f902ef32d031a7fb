"""The committed part of a run: measurements of finished trials, and a few facts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
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
from longgame.storage import refresh_file
from studies.results.steps import STEPS

DATA = Path("docs/results/data")
FACTS = "runs.json"
_KEYS = b"longgame.trials"
"""Metadata of a kept file: trial → key of what it measures, as JSON."""


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


def keep(folder: Path, only: Collection[str] = ()) -> None:
    """Write the measurements of every run's finished trials, and the facts of all runs.

    Args:
        folder: where they are kept.
        only: names of the runs; empty: all.

    What was kept of a run that is not here stays. So do trials that were kept of a run elsewhere, as long as they
    would measure the same here: a study may be finished on several machines, a few seeds on each.

    Raises:
        DataError: such trials were measured with other versions.
    """
    file = folder / FACTS
    facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    written: set[str] = set()
    for step in dict.fromkeys(STEPS):
        if step.name in written or (only and step.name not in only) or not (step.folder / RECIPE).is_file():
            continue
        run = Run.open(step.folder)
        stages = len(stage_names(run.recipe))
        finished = [trial.name for trial in run.plan.trials if run.trial_store(trial).finished_stages(stages) == stages]
        if not finished:
            continue
        here = _of_run(run, finished)
        if step.name in facts:
            here = here.joined(_Kept.read(folder, step.name, facts[step.name]))
        written.add(step.name)
        facts[step.name] = here.facts
        refresh_file(folder / f"{step.name}.parquet", _compact(here.results, here.keys))
        count = f"{here.facts['finished']} of {here.facts['trials']}"
        print(f"{step.name}: {count} trials, {len(here.results):,} measurements", flush=True)
    refresh_file(file, (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode())


def _of_run(run: Run, finished: Sequence[str]) -> _Kept:
    """What is kept of a run here."""
    environment = run.environment
    keys = {name: key for name, key in _keys(run.recipe).items() if name in finished}
    results = run.results
    return _Kept(
        run.recipe,
        results[results["trial"].isin(finished)].astype({"value": "float32"}),
        keys,
        environment["versions"],
        [environment["sessions"]],
    )


@dataclass(frozen=True)
class _Kept:
    """Finished trials of a run, and on which machines they ran."""

    recipe: Recipe
    results: pd.DataFrame
    keys: dict[str, str]
    """Trial → key of what it measures; empty of a run that was kept without them."""
    versions: dict[str, str]
    sessions: list[list[float]]
    """Seconds of the sessions, a list per machine."""

    @classmethod
    def read(cls, folder: Path, name: str, facts: dict[str, Any]) -> _Kept:
        table = pq.read_table(folder / f"{name}.parquet")
        keys = json.loads((table.schema.metadata or {}).get(_KEYS, b"{}"))
        recipe = parse_recipe(facts["recipe"], name)
        return cls(recipe, table.to_pandas(), keys, facts["versions"], facts.get("sessions", []))

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.model_dump(mode="json", exclude_defaults=True, exclude={"relative_to"}),
            "trials": len(Plan(self.recipe).trials),
            "finished": len(self.keys),
            "minutes": round(sum(map(sum, self.sessions)) / 60, 1),
            "sessions": self.sessions,
            "versions": self.versions,
        }

    def joined(self, other: _Kept) -> _Kept:
        """The trials of both that measure what this recipe does; each seed from where more of its trials are.

        Machines differ in the last bits of their sums, so selectors are only compared within one.
        """
        selectors = {item.key: item for item in (*other.recipe.selectors, *self.recipe.selectors)}
        seeds = sorted({*self.recipe.seeds, *other.recipe.seeds})
        both = self.recipe.replace({"selectors": tuple(selectors.values()), "seeds": tuple(seeds)})
        seed_of = {trial.name: trial.seed for trial in Plan(both).trials}
        same = _matching(both, other.keys)
        here, there = (Counter(seed_of[name] for name in names) for names in (self.keys, same))
        theirs = {name for name in same if there[seed_of[name]] > here[seed_of[name]]}
        if not theirs:
            return self
        if self.versions != other.versions:
            raise DataError(
                f"{both.name}: {len(theirs)} trials were kept with other versions "
                f"({_differing(other.versions, self.versions)}). Install those, or delete the kept file and run every "
                "seed here."
            )
        others = {seed_of[name] for name in theirs}
        ours = {name: key for name, key in self.keys.items() if seed_of[name] not in others}
        parts = ((other.results, theirs), (self.results, ours))
        results = pd.concat([table[table["trial"].isin(names)] for table, names in parts], ignore_index=True)
        for column in self.results.columns[[str(kind) == "category" for kind in self.results.dtypes]]:
            results[column] = results[column].astype("category")
        keys = {name: other.keys[name] for name in sorted(theirs)} | ours
        elsewhere = [times for times in other.sessions if times[:1] != self.sessions[0][:1]]
        return _Kept(both, results, keys, self.versions, [*elsewhere, *self.sessions])


def _keys(recipe: Recipe) -> dict[str, str]:
    """Trial → key of what it measures, wherever the data lie."""
    run = Run(Path(recipe.name), recipe.replace({"data.data_dir": None}))
    return {trial.name: run.trial_store(trial).key for trial in run.plan.trials}


def _matching(recipe: Recipe, keys: Mapping[str, str]) -> set[str]:
    """Names of the recipe's trials that ``keys`` (trial → key) holds and that would measure the same now."""
    return {name for name, key in _keys(recipe).items() if keys.get(name) == key}


def missing_seeds(recipe: Recipe, file: Path) -> list[int]:
    """Seeds of which some trial is not in the kept file, or would not measure the same now."""
    keys = json.loads((pq.read_schema(file).metadata or {}).get(_KEYS, b"{}")) if file.is_file() else {}
    kept = _matching(recipe, keys)
    return sorted({trial.seed for trial in Plan(recipe).trials if trial.name not in kept})


def _differing(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return ", ".join(
        f"{name} {old.get(name, 'not installed')}, here {new.get(name, 'not installed')}" for name in names
    )


def _compact(results: pd.DataFrame, keys: Mapping[str, str]) -> bytes:
    """Return a Parquet file of what the pages need: probes without sub-skills, in single precision."""
    curves = (results["kind"] == "curve") & (results["sub_skill"] != "")
    table = pa.Table.from_pandas(results[~curves], preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _KEYS: json.dumps(keys).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=19)
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
