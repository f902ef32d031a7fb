"""Stages in time: the order in which a sequence is walked, and how far its stages run into one another."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from longgame.data.examples import SequenceData
from longgame.errors import RecipeError, unknown


def resolve_order(names: Sequence[str], order: Sequence[str] | Sequence[int]) -> tuple[int, ...]:
    """The rows of the stages, in the order of the walk.

    Args:
        names: the stages in the order of the sequence.
        order: the same names in another order, or their rows (0 is the first); empty: the order of the sequence.

    Raises:
        RecipeError: an unknown name or row, or an order that does not hold every stage once.
    """
    rows = []
    for part in order:
        if isinstance(part, str):
            if part not in names:
                raise RecipeError(f"task order {list(order)}: {unknown('stage', part, names)}")
            rows.append(list(names).index(part))
        else:
            rows.append(int(part))
    if order and sorted(rows) != list(range(len(names))):
        raise RecipeError(
            f"task order {list(order)} is no order of the {len(names)} stages {', '.join(names)}. Name every stage "
            f"once, or give every row from 0 to {len(names) - 1} once."
        )
    return tuple(rows) if order else tuple(range(len(names)))


def reorder(sequence: SequenceData, order: Sequence[str] | Sequence[int]) -> SequenceData:
    """The same stages, pools and items in another order of time.

    The columns of the score matrix follow: stage tasks in the order of the walk, then the OOD sets that belong to a
    stage (`Task.stage`) in the same order, then the others as before.

    Raises:
        RecipeError: not an order of the stages (see `resolve_order`), or pools with a mixing share: it comes from the
            neighbors in time, so such a sequence has to be built in its order (``build_sequence(…, order=order)``).
    """
    names = [stage.name for stage in sequence.stages]
    rows = resolve_order(names, order)
    if sequence.mixing > 0 and rows != tuple(range(len(names))):
        raise RecipeError(
            f"the pools of '{sequence.name}' hold a mixing share of {sequence.mixing:g} from the stages before and "
            "after, which another order changes. Build the sequence in that order: build_sequence(…, order=…)."
        )
    return walk(sequence, rows)


def walk(sequence: SequenceData, rows: Sequence[int]) -> SequenceData:
    """The sequence with its stages, and the OOD sets that belong to them, in the order of these rows."""
    stages = tuple(sequence.stages[row] for row in rows)
    place = {stage.name: place for place, stage in enumerate(stages)}
    ood = sorted(sequence.ood, key=lambda task: place.get(task.stage or "", len(stages)))
    return dataclasses.replace(sequence, stages=stages, ood=tuple(ood))


def pool_shares(pool_size: int, rows: Sequence[int], mixing: float) -> list[dict[int, int]]:
    """For every row of the sequence, the rows that give candidates to its pool, with their numbers of candidates.

    ``round(mixing · pool_size)`` candidates of a pool are foreign. The stage before in the walk gives half of them (and
    the odd one), the stage after the others; the first and the last stage have one neighbor, which gives all. A stage's
    own number is first; rows that give none are left out.

    Args:
        pool_size: candidates of a pool.
        rows: the order of the walk.
        mixing: share in [0, 1).

    Raises:
        RecipeError: a mixing share above 0 with a single stage.
    """
    foreign = round(mixing * pool_size)
    if foreign and len(rows) < 2:
        raise RecipeError(
            f"data.mixing is {mixing:g}, but the sequence has one stage and so no neighbor. Use data.mixing: 0."
        )
    shares: list[dict[int, int]] = [{} for _ in rows]
    for place, row in enumerate(rows):
        if len(rows) < 2:
            neighbors = {}
        elif place in (0, len(rows) - 1):
            neighbors = {rows[1] if place == 0 else rows[place - 1]: foreign}
        else:
            neighbors = {rows[place - 1]: foreign - foreign // 2, rows[place + 1]: foreign // 2}
        shares[row] = {row: pool_size - foreign, **{giver: count for giver, count in neighbors.items() if count}}
    return shares
