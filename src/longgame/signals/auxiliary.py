"""Trainings beside the trial's own: their settings, and the influence that LESS reads from one. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from longgame.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class AuxiliarySpec:
    """How a copy of the trainable weights is trained for a signal; the model itself does not change.

    Raises:
        RecipeError: a value is out of range.
    """

    share: float = 0.05
    """Share of the candidates' tokens that a warm-up learns, drawn once; in (0, 1]. Other trainings learn all."""
    epochs: int = 4
    learning_rate: float | None = None
    """Peak; None: that of the audit's stages, and 2e-4 offline."""
    batch: int | None = None
    """Examples of an optimizer step, on average; None: as many as a step of the audit learns, and 16 offline."""
    published: bool = False
    """Influence as the published code of LESS computes it: ε under the root, moments not corrected, and the mean of
    the cosines with a task's examples."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise RecipeError(f"share is {self.share}; it is a share of the examples' tokens, in (0, 1].")
        for name in ("epochs", "batch"):
            value = getattr(self, name)
            if value is None and name == "batch":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RecipeError(f"{name} is {value!r}; use a whole number from 1 on.")
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise RecipeError(f"learning_rate is {rate}; use a number above 0.")

    @classmethod
    def of_log(cls, epochs: int) -> AuxiliarySpec:
        """Return the spec of a training that gives a log.

        Raises:
            RecipeError: ``epochs`` is not a whole number from 2 on: a trajectory has two points or more.
        """
        spec = cls(epochs=epochs)
        if epochs < 2:
            raise RecipeError(f"epochs is {epochs}, and a training log needs two or more.")
        return spec


class Influence:
    """LESS: how much an Adam step on each example would lower the loss of each target task (arXiv 2402.04333, §4).

    Inf(z, D) = Σ_i η̄_i · cos(Γ(z, θ_i), mean over D of ∇ℓ(z', θ_i)) over the checkpoints θ_i of a warm-up, η̄_i the mean
    learning rate of its epoch.

    Args:
        skills: task of each target example; examples of one task are averaged, ``None`` is a task, too.
        published: take the mean of the cosines with a task's gradients, as the published code does, in place of the
            cosine with their mean.
    """

    def __init__(self, skills: Sequence[str | None], published: bool = False) -> None:
        self._published = published
        self.tasks = tuple(dict.fromkeys(skill or "" for skill in skills))
        """In order of their first examples."""
        self._of_task = np.asarray([[(skill or "") == task for skill in skills] for task in self.tasks])

    def of_checkpoint(
        self, rate: float, steps: Float[np.ndarray, "n d"], targets: Float[np.ndarray, "m d"]
    ) -> Float[np.ndarray, "n tasks"]:
        """Return one checkpoint's term, float64; a zero vector has the cosine 0.

        Args:
            rate: η̄, mean learning rate of the checkpoint's epoch.
            steps: sketch of Adam's step on each example (``adam_grad_sketch``).
            targets: sketch of each target example's gradient (``grad_sketch``).
        """
        wide = _unit(targets) if self._published else np.asarray(targets, dtype=np.float64)
        means = np.stack([wide[rows].mean(axis=0) for rows in self._of_task])
        return rate * (_unit(steps) @ (means if self._published else _unit(means)).T)


def _unit(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    wide = np.asarray(rows, dtype=np.float64)
    lengths = np.sqrt(np.einsum("nd,nd->n", wide, wide))[:, None]
    return np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0)
