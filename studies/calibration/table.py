"""One value per seed and walk for any number of seeds, and the true means.

A seed draws one of the worlds and fresh label noise. The walks of a world (the picks of each selector) stay as
recorded. That is a population of known mean: the average over the worlds of each walk's closed-form expectation.
Seeds are independent, and the selectors of a seed share world and noise, so they are paired as in a real audit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from longgame.errors import DataError
from longgame.seeding import generator
from longgame.selection.base import Selector, build_selector
from studies.calibration.ensemble import Replay
from studies.calibration.walks import AnotherRandom, Diluted, WalkRecorder, calibration_recipe

SELECTORS = ("loss", "gradient", "diversity", "quality", "utility-diversity", "lhas")
"""Real selectors: different from random, each with an effect of its own."""
DOSED = "loss"
DOSES = (0.05, 0.1, 0.2, 0.4)
"""Shares of the choices in which a diluted selector follows `DOSED`."""

Progress = Callable[[str, int, int], None]
"""Called with (activity, done, total)."""


@dataclass(frozen=True)
class Table:
    """Metrics of every walk over many independent seeds."""

    random: int
    """Number of walks of uniform selection; they come first and are exchangeable."""
    names: tuple[str, ...]
    values: Mapping[str, Float[np.ndarray, "names seeds"]]
    """Metric → one value per walk and seed."""
    truth: Mapping[str, Float[np.ndarray, " names"]]
    """Metric → the population mean (not of ``long_horizon_best``, which has no closed form)."""

    @property
    def seeds(self) -> int:
        return next(iter(self.values.values())).shape[1]

    def row(self, name: str) -> int:
        """Row of a walk.

        Raises:
            DataError: there is none of this name.
        """
        if name not in self.names:
            raise DataError(f"the table holds no walk '{name}'; it holds {', '.join(self.names[self.random :])}.")
        return self.names.index(name)

    def effect(self, name: str, metric: str) -> float:
        """True mean difference from uniform selection."""
        truth = self.truth[metric]
        return float(truth[self.row(name)] - truth[: self.random].mean())

    def randoms(self, rng: np.random.Generator, count: int) -> Int[np.ndarray, "count seeds"]:
        """For every seed, ``count`` different walks of uniform selection.

        Raises:
            DataError: there are fewer.
        """
        if count > self.random:
            raise DataError(f"{count} walks of uniform selection were requested, and the table holds {self.random}.")
        order = rng.permuted(np.tile(np.arange(self.random), (self.seeds, 1)), axis=1)
        return order[:, :count].T


def dose_name(share: float) -> str:
    """Name of the walk that follows `DOSED` in this share of its choices."""
    return f"{DOSED} {share:.0%}"


def walkers(random: int, selectors: Sequence[str], doses: Sequence[float]) -> dict[str, Callable[[], Selector]]:
    """Name → maker of a fresh selector (they keep state)."""
    makers: dict[str, Callable[[], Selector]] = {f"random {i}": partial(AnotherRandom, i) for i in range(random)}
    makers |= {name: partial(build_selector, name) for name in selectors}
    return makers | {dose_name(share): partial(Diluted, DOSED, share) for share in doses}


def build_table(
    worlds: int,
    seeds: int,
    *,
    random: int = 8,
    selectors: Sequence[str] = SELECTORS,
    doses: Sequence[float] = DOSES,
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> Table:
    """Record the walks of every world, replay them under the noise of its seeds, and add up the truth.

    Args:
        worlds: number of worlds; they are those of the recipe's seeds 0, 1, …
        seeds: independent seeds to draw.
        random: walks of uniform selection per world.
        seed: of the draws.
    """
    recipe = calibration_recipe()
    makers = walkers(random, selectors, doses)
    world_of = generator(seed, "calibrate", "worlds").integers(worlds, size=seeds)
    values: dict[str, np.ndarray] = {}
    truth: dict[str, np.ndarray] = {}
    for number in range(worlds):
        recorder = WalkRecorder(recipe, number)
        mine = np.flatnonzero(world_of == number)
        labels = int(recorder.world.label_of.max()) + 1
        noise = generator(seed, "calibrate", "noise", number).standard_normal((len(mine), labels))
        for row, maker in enumerate(makers.values()):
            replay = Replay(recorder.world, recorder.walk(maker()))
            for name, scores in replay.measure(noise).metrics(recipe.metrics).items():
                values.setdefault(name, np.full((len(makers), seeds), np.nan))[row, mine] = scores
            for name, scores in replay.truth().metrics(recipe.metrics).items():
                truth.setdefault(name, np.zeros(len(makers)))[row] += float(scores[0]) / worlds
        progress("worlds", number + 1, worlds)
    del truth["long_horizon_best"]  # the best of several expectations is not the expectation of the best
    return Table(random, tuple(makers), values, truth)
