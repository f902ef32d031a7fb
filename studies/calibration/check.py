"""A check of the replay: real audits, their scorecards, and the replay of the same picks."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from longgame.audit.execute import RichDisplay, run_audit
from longgame.metrics.scorecard import IMMEDIATE, PRIMARY
from longgame.selection.base import build_selector
from studies.calibration.ensemble import Replay, world_noise
from studies.calibration.walks import WalkRecorder, calibration_recipe


def protocol_difference(selectors: Sequence[str] = ("random", "loss", "lhas"), seeds: Sequence[int] = (0, 1)) -> float:
    """Largest difference between an audit's scorecard and the replay of the same walks, scores as shares of 1.

    Runs `longgame audit` on the quadratic world (stores and tables included), replays the picks with the label noise
    that the world drew, and compares every cell of R, the current score, the future AUC and the long-horizon score.
    """
    recipe = calibration_recipe(tuple(selectors), tuple(seeds))
    with tempfile.TemporaryDirectory() as folder, RichDisplay(Console(quiet=True)) as quiet:
        card = run_audit(recipe, Path(folder) / "run", workers=1, threads=1, display=quiet).scorecard
    table = card.per_trial[card.per_trial["view"] == PRIMARY].set_index(["selector", "seed", "metric"])["value"]
    largest = 0.0
    for seed in seeds:
        recorder = WalkRecorder(recipe, seed)
        noise = world_noise(recorder.world)
        for name in selectors:
            replayed = Replay(recorder.world, recorder.walk(build_selector(name))).measure(noise)
            metrics = replayed.metrics(recipe.metrics)
            cells = (replayed.R[0] - card.R(PRIMARY, name, seed)) / 100
            if not (np.isnan(replayed.R[0]) == np.isnan(card.R(PRIMARY, name, seed))).all():
                return float("inf")
            gaps = [float(np.nanmax(np.abs(cells)))]
            for metric, scale in ((IMMEDIATE, 100), ("auc_common", 1), ("long_horizon", 1)):
                gaps.append(abs(float(metrics[metric][0]) - float(table[name, seed, metric])) / scale)
            largest = max(largest, *gaps)
    return largest
