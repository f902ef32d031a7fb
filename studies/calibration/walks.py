"""Walks of the quadratic world with recorded picks, which can be replayed with other label noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from longgame.audit.walk import Walk as AuditWalk
from longgame.audit.walk import probe_steps
from longgame.data.examples import Pool
from longgame.errors import RecipeError
from longgame.quadratic.learner import QuadraticLearner, build_quadratic_sequence
from longgame.quadratic.world import QuadraticWorld
from longgame.recipe import Recipe, parse_recipe
from longgame.seeding import generator, stream_seed
from longgame.selection.base import Selector, build_selector
from longgame.selection.history import History, Selection
from longgame.selection.methods.random import RandomSelector
from longgame.selection.policy import SelectionPolicy
from longgame.signals.base import Signals
from longgame.training.config import SelectionConfig

Batches = tuple[Int[np.ndarray, " batch"], ...]
"""World rows that each optimiser step learns from."""


def calibration_recipe(selectors: tuple[str, ...] = ("random",), seeds: tuple[int, ...] = (0,)) -> Recipe:
    """Three stages and two OOD sets of the quadratic world, small enough for thousands of audits.

    ``forgetting_reference`` is ``first``, so that the long-horizon score is affine in the scores and its expectation
    has a closed form; everything else is as in recipes/quadratic.yaml, in small.
    """
    return parse_recipe(
        {
            "name": "calibration",
            "model": {"name": "quadratic"},
            "data": {
                "sequence": "quadratic",
                "stages": [{"name": f"stage-{t}", "scorers": ["token_accuracy"]} for t in (1, 2, 3)],
                "ood": [{"name": name, "scorers": ["token_accuracy"]} for name in ("ood-rotated", "ood-shifted")],
                "pool_size": 120,
                "items_per_skill": 1,
                "ood_items_per_skill": 1,
            },
            "selectors": list(selectors),
            "seeds": list(seeds),
            "training": {"steps": 12, "learning_rate": 0.1, "warmup_steps": 2},
            "probe": {"kinds": ["common"], "steps": 4, "points": 5},
            "metrics": {"forgetting_reference": "first"},
        }
    )


class AnotherRandom(RandomSelector):
    """Uniform selection from its own random stream: any number of exchangeable selectors."""

    name = "another-random"

    def __init__(self, stream: int) -> None:
        self.stream = stream

    def select(
        self, pool: Pool, signals: Signals, history: History, budget: int, rng: np.random.Generator
    ) -> Selection:
        stream = generator(int(rng.integers(2**62)), "stream", self.stream)
        return super().select(pool, signals, history, budget, stream)


class Diluted(Selector):
    """Follows another selector in a share of its choices and picks at random in the others."""

    name = "diluted"

    def __init__(self, selector: str, share: float) -> None:
        if not 0 <= share <= 1:
            raise RecipeError(f"the share of followed choices is {share}; it must lie in [0, 1].")
        self.inner, self.share = build_selector(selector), share
        self._random = RandomSelector()
        self.requires = self.inner.requires

    def select(
        self, pool: Pool, signals: Signals, history: History, budget: int, rng: np.random.Generator
    ) -> Selection:
        chosen = self.inner if rng.random() < self.share else self._random
        return chosen.select(pool, signals, history, budget, rng)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state)


class RecordingLearner(QuadraticLearner):
    """A quadratic learner that records the batches of its forks (the probes)."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__(recipe, seed)
        self.probes: list[tuple[list[tuple[str, ...]], list[float]]] = []

    @contextmanager
    def fork(self) -> Iterator[QuadraticLearner]:
        start = len(self.picks)
        with super().fork() as twin:
            yield twin
        self.probes.append((twin.picks[start:], twin.rates[start:]))


@dataclass(frozen=True)
class Leg:
    """The batches between two states: of a stage, or of the probe after it."""

    batches: Batches
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Walk:
    """The batches of one selector in one world, step by step."""

    stages: tuple[Leg, ...]
    probes: tuple[Leg, ...]
    """After stage 1 … T−1."""
    probe_at: tuple[int, ...]
    """Probe steps after which the fork is scored, from 0 on."""
    probe_tokens: Float[np.ndarray, "T-1 points"]
    """Selected tokens at these steps."""


class WalkRecorder:
    """Walks selectors through the world of one seed as an audit does, and records their picks.

    Attributes:
        world: the world of the seed.
    """

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.recipe, self.seed = recipe, seed
        self.sequence = build_quadratic_sequence(recipe, seed)
        learner = RecordingLearner(recipe, seed)
        self._frozen = learner.prepare(self.sequence)
        self.world: QuadraticWorld = learner.world

    def walk(self, selector: Selector) -> Walk:
        """Train through all stages with the recipe's protocol; probe after each but the last."""
        recipe, seed, stages = self.recipe, self.seed, self.sequence.stages
        learner = RecordingLearner(recipe, seed)
        learner.use(self.sequence, self._frozen)
        policy = SelectionPolicy(selector, History(seed=stream_seed(seed, "history")), generator(seed, "select", 0))
        for number, stage in enumerate(stages, start=1):
            policy.begin_stage(generator(seed, "select", number))
            selection = SelectionConfig.of_recipe(recipe, stream_seed(seed, "stage", number))
            learner.train(stage.pool, policy, selection, recipe.training.steps)
            if number < len(stages):
                scores = learner.score([stages[number].task])
                AuditWalk(recipe, seed, learner, self.sequence, policy).probe(number, scores)
        steps = recipe.training.steps
        cuts = range(0, len(learner.picks), steps)
        probes = tuple(self._leg(*probe) for probe in learner.probes)
        at = tuple(probe_steps(recipe.probe.steps, recipe.probe.points))
        return Walk(
            tuple(self._leg(learner.picks[cut : cut + steps], learner.rates[cut : cut + steps]) for cut in cuts),
            probes,
            at,
            np.array([self._tokens(probe)[list(at)] for probe in probes]),
        )

    def _leg(self, picks: list[tuple[str, ...]], rates: list[float]) -> Leg:
        return Leg(tuple(self.world.rows(batch) for batch in picks), tuple(rates))

    def _tokens(self, leg: Leg) -> Float[np.ndarray, " steps"]:
        """Tokens learned after 0, 1, … steps."""
        cost = self.world.prompt_tokens + self.world.response_tokens
        return np.cumsum([0.0, *(float(cost[rows].sum()) for rows in leg.batches)])
