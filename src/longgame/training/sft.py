"""TRL's SFTTrainer with selection; import it from `longgame.training.trainers`, which explains a missing TRL."""

from __future__ import annotations

from trl import SFTTrainer

from longgame.training.trainer import SelectionMixin


class SelectionSFTTrainer(SelectionMixin, SFTTrainer):
    """TRL's SFTTrainer that picks what it trains on; arguments of both (see `SelectionMixin`)."""
