"""The recipes behind the results, their order, and trials that several recipes share."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longgame.audit.parts import FinishedPart
from longgame.audit.plan import Plan, stage_names
from longgame.audit.run import ENVIRONMENT, RECIPE, Run, write_environment
from longgame.audit.store import StageStore
from longgame.commands.options import parse_seeds
from longgame.recipe import Recipe, load_recipe
from longgame.storage import durable_folder

RUNS = Path("runs/results")
_ADVICE = "Free the disk and run the same command again."


@dataclass(frozen=True)
class Step:
    """One audit of the study."""

    name: str
    """Its run directory is ``RUNS / name``."""
    recipe: Path
    seeds: str = ""
    """Seeds instead of the recipe's, as ``--seeds`` takes them."""
    selectors: str = ""
    """Selectors instead of the recipe's, as ``--selectors`` takes them."""
    real_data: bool = False
    """Whether it reads data files (``--data-dir``); without them it is skipped."""
    question: str = field(default="", compare=False)
    """Its question, for the table of runs."""

    @property
    def folder(self) -> Path:
        return RUNS / self.name

    @property
    def started_seeds(self) -> tuple[int, ...]:
        """Seeds of the run that is here; a run may grow, but not lose seeds."""
        return Run.open(self.folder).recipe.seeds if (self.folder / RECIPE).is_file() else ()

    def arguments(self, data_dir: Path | None, workers: int) -> list[str]:
        """Arguments of ``longgame``."""
        arguments = ["audit", str(self.recipe), "--out", str(self.folder), "--workers", str(workers), "--threads", "1"]
        arguments += ["--seeds", self.seeds] if self.seeds else []
        arguments += ["--selectors", self.selectors] if self.selectors else []
        return arguments + (["--data-dir", str(data_dir)] if self.real_data and data_dir else [])

    def loaded(self, data_dir: Path | None = None) -> Recipe:
        """The recipe with this step's seeds and selectors, and with the folder of real data."""
        changes: dict[str, Any] = {"data.data_dir": str(data_dir)} if self.real_data and data_dir else {}
        if self.seeds:
            changes["seeds"] = parse_seeds(self.seeds)
        if self.selectors:
            changes["selectors"] = self.selectors.split(",")
        return load_recipe(self.recipe, changes)


def _tiny(name: str, question: str, seeds: str = "", selectors: str = "") -> Step:
    return Step(name, Path("recipes/results") / f"{name}.yaml", seeds, selectors, question=question)


def _real(name: str, question: str) -> Step:
    return Step(name, Path("recipes/results") / f"{name}.yaml", real_data=True, question=question)


DEVELOPMENT = ("lhas-grid", "lhas-finals", "replay-development", "selector-development", "smollm2-pilot")
"""Steps on development seeds; they start from a base model of their own."""
STEPS = (
    _tiny("lhas-grid", "forms of LHAS on one development seed"),
    _tiny("lhas-finals", "whether another form than the published one leads (development seeds)"),
    _tiny("skill", "RQ1-RQ5 on the skill sequence"),
    _tiny("domain", "RQ1-RQ5 on the domain sequence", "0-2"),
    _tiny("regimes", "where myopia is largest", "0-2", "random,loss"),
    _tiny("conditions", "budgets, rounds, LoRA or full, two orders", "0-2", "random,loss"),
    _tiny("interleaved", "RQ1-RQ5 on the interleaved sequence", "0-2"),
    _tiny("domain", "RQ1-RQ5 on the domain sequence"),
    _tiny("interleaved", "RQ1-RQ5 on the interleaved sequence"),
    _tiny("proxy-items", "the value of LHAS's extra information as training data"),
    _tiny("interventions", "the effect of interventions around loss selection"),
    _tiny("conditions", "budgets, rounds, LoRA or full, two orders", "", "random,loss,gradient"),
    _tiny("regimes", "where myopia is largest"),
    _tiny("lhas-ablation", "the effect of each term of LHAS"),
    _tiny("conditions", "budgets, rounds, LoRA or full, two orders"),
    _tiny("replay-development", "practices around random on development seeds"),
    _tiny("replay-skill", "practices that may beat random: skill sequence"),
    _tiny("replay-domain", "practices that may beat random: domain sequence"),
    _tiny("replay-interleaved", "practices that may beat random: interleaved sequence"),
    _tiny("replay-conditions", "whether practices hold at 10 %, in full fine-tuning, in the reverse order"),
    _tiny("selector-development", "forms of LHAS beyond eq. 5 on development seeds"),
    _tiny("selector-skill", "whether a selector adds to replay: skill sequence"),
    _tiny("selector-domain", "whether a selector adds to replay: domain sequence"),
    _tiny("selector-interleaved", "whether a selector adds to replay: interleaved sequence"),
    _tiny("field-skill", "the field's selectors on the skill sequence"),
    _tiny("field-domain", "the field's selectors on the domain sequence"),
    _tiny("field-interleaved", "the field's selectors on the interleaved sequence"),
    _tiny("field-tenth-skill", "selectors that differ from random, at 10 %: skill sequence"),
    _tiny("field-judges-skill", "selectors with rules in place of a judge, skill sequence"),
    _tiny("field-judges-domain", "selectors with rules in place of a judge, domain sequence"),
    _tiny("field-judges-interleaved", "selectors with rules in place of a judge, interleaved sequence"),
    _real("smollm2-pilot", "cost and spread on SmolLM2-135M and real data (development seeds)"),
    _real("smollm2-primary", "whether replay helps and loss harms on SmolLM2-135M and real data"),
    _real("smollm2-field", "the field's selectors on SmolLM2-135M and real data"),
)
"""Most important first, so that a study that is stopped early has answered the first questions. A run that is listed
several times grows: selectors and seeds are added, and its finished trials are used again."""


def run_step(step: Step, data_dir: Path | None, workers: int, deadline: float) -> bool:
    """Run or resume one audit; False if the time runs out (its finished stages stay)."""
    if is_finished(step.loaded(), step.folder):
        return True
    copied = take_over(step.loaded(), step.folder, [folder for folder in _run_folders() if folder != step.folder])
    if copied:
        print(f"{step.name}: {copied} trials are copied from other runs", flush=True)
    process = _longgame(step.arguments(data_dir, workers))
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.5)
    finally:
        _stop([process])
    if process.returncode:
        raise SystemExit(f"{step.name} ended with code {process.returncode}")
    return True


def is_finished(recipe: Recipe, folder: Path) -> bool:
    """Whether the run in ``folder`` has finished every trial of this recipe; it may hold more."""
    if not (folder / RECIPE).is_file():
        return False
    run = Run.open(folder)
    stages = len(stage_names(recipe))
    done = {trial.name for trial in run.plan.trials if run.trial_store(trial).finished_stages(stages) == stages}
    return done >= {trial.name for trial in Plan(recipe).trials}


def _run_folders() -> list[Path]:
    return sorted(path.parent for path in RUNS.glob(f"*/{RECIPE}"))


def take_over(recipe: Recipe, folder: Path, others: Sequence[Path]) -> int:
    """Copy finished trials, and the shared work of their seeds, from other runs.

    Two trials are the same if their names and content keys are equal. Their records then hold the same numbers.

    Returns:
        Number of copied trials.

    Raises:
        ResumeError: ``folder`` holds a run of another recipe. StorageError: it cannot be written.
    """
    stages = len(stage_names(recipe))
    finished: dict[tuple[str, str], Path] = {}
    environment: dict[str, Any] | None = None
    for other in map(Run.open, others):
        environment = environment or other.environment
        for store in _stores(other):
            parts = ["base"] if store.folder.parent.name == "seeds" else [f"stage-{n + 1}" for n in range(stages)]
            if all(FinishedPart.find(store.folder, part) for part in parts):
                finished[store.folder.name, store.key] = store.folder
    if not finished:
        return 0
    run = Run.create(folder, recipe)
    if environment and not (folder / ENVIRONMENT).is_file():  # versions and threads that the copied trials rest on
        write_environment(folder, {**environment, "sessions": []})
    trials = 0
    for store in _stores(run):
        source = finished.get((store.folder.name, store.key))
        if source is not None and not store.folder.exists():
            with durable_folder(store.folder, _ADVICE) as part:
                shutil.copytree(source, part, dirs_exist_ok=True)
            trials += store.folder.parent.name == "trials"
    return trials


def _stores(run: Run) -> list[StageStore]:
    """The trials of a run and the shared work that they start from."""
    bases = {(trial.seed, trial.condition) for trial in run.plan.trials}
    shared = {store.folder: store for store in (run.seed_store(*base) for base in sorted(bases))}
    return [*map(run.trial_store, run.plan.trials), *shared.values()]


def _longgame(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "from longgame.cli import main; main()", *arguments])


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()
