"""The axes of a recipe: which of its own values an audit also varies. `Part` is what every section of a recipe is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Rounds = Literal["step"] | Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Part(BaseModel):
    """A section of a recipe: frozen, complete, and without keys that nobody reads."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class AdaptationValue(Part):
    """One way to adapt the model; what is left out stays as the recipe's `model` and `training` have it."""

    mode: Literal["lora", "full"] = "lora"
    r: int | None = Field(None, ge=1)
    """LoRA rank."""
    alpha: float | None = Field(None, gt=0)
    """LoRA alpha; left out, it follows `r`, so that the scale alpha / r stays the recipe's."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate: full fine-tuning often wants another one than LoRA."""

    @model_validator(mode="after")
    def _check(self) -> AdaptationValue:
        if self.mode == "full" and (self.r is not None or self.alpha is not None):
            raise ValueError("full fine-tuning has no r and no alpha; leave them out, or use mode: lora")
        return self


class OrderAxis(Part):
    """Orders in which the stages are also walked."""

    rotations: bool = False
    """Every rotation of the recipe's own order: each stage comes first once."""
    permutations: int = Field(0, ge=0)
    """So many other orders, drawn by `seed`; a larger number adds to those that a smaller one gives."""
    seed: int = 0
    given: tuple[tuple[str, ...], ...] = ()
    """Orders by the names of the stages."""


def _mode(value: Any) -> Any:
    """Accept `lora` and `full` beside the long form."""
    return {"mode": value} if isinstance(value, str) else value


def _order(value: Any) -> Any:
    """Accept `rotations`, one order, and a list of orders beside the long form."""
    if value == "rotations":
        return {"rotations": True}
    if isinstance(value, str):
        raise ValueError("must be rotations, {permutations: n, seed: s}, or a list of orders, each a list of stages")
    if isinstance(value, list | tuple):
        return {"given": [value] if value and all(isinstance(each, str) for each in value) else value}
    return value


class AxesSpec(Part):
    """What is varied around the recipe's own values, which always belong to every axis."""

    budget: tuple[Share, ...] = ()
    rounds: tuple[Rounds, ...] = ()
    adaptation: tuple[Annotated[AdaptationValue, BeforeValidator(_mode)], ...] = ()
    order: Annotated[OrderAxis, BeforeValidator(_order)] = OrderAxis()
    vary: dict[str, tuple[bool | int | float | str, ...]] = {}
    """Any other key of the recipe (dotted) → its values."""
    cross: bool = False
    """False: one axis at a time, the others at the recipe's own values; True: the full product."""

    @property
    def empty(self) -> bool:
        """Whether the recipe's own values are all there is."""
        return not (self.budget or self.rounds or self.adaptation or self.order != OrderAxis() or self.vary)
