"""What a stage may replay: earlier stages' candidates and the proxy items, as pools of the learner."""

from __future__ import annotations

from longgame.data.examples import Pool, SequenceData
from longgame.protocol.learner import Learner
from longgame.recipe import Recipe
from longgame.seeding import generator
from longgame.selectors.interventions import Reserve


def reserve_of(learner: Learner, sequence: SequenceData, number: int, pool: Pool, recipe: Recipe, seed: int) -> Reserve:
    """The reserve of stage ``number`` (1-based), or of a probe on it, whose candidates are ``pool``.

    The order of replay hangs on the seed and the stage alone, so that all selectors of a seed replay alike.
    """
    items = [item for stage in sequence.stages for item in stage.proxy]
    return Reserve(
        own=pool,
        earlier=tuple(learner.pool(stage.candidates) for stage in sequence.stages[: number - 1]),
        proxy=learner.pool(items) if items else None,
        budget=round(recipe.budget * int(pool.tokens.sum())),
        rng=generator(seed, "replay", number),
    )
