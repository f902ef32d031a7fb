"""TRL's SFTTrainer with selection; import it from `longgame.training.trainer`, which explains a missing TRL."""

from __future__ import annotations

from typing import Any

from trl import SFTTrainer

from longgame.training.trainer import SelectionMixin


class SelectionSFTTrainer(SelectionMixin, SFTTrainer):
    """TRL's SFTTrainer that selects what it trains on; arguments of both (see `SelectionMixin`)."""

    def _selection_prepare(self, dataset: Any) -> Any:
        tokenizer: Any = self.processing_class
        arguments: Any = self.args
        return self._prepare_dataset(dataset, tokenizer, arguments, False, self._formatting_func, "proxy")
