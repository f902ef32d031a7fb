"""TRL's SFTTrainer with selection; a module of its own, because TRL is an extra and slow to import."""

from __future__ import annotations

from typing import Any

try:
    from trl import SFTTrainer
except ModuleNotFoundError as error:
    raise ImportError(
        "SelectionSFTTrainer needs TRL, which is not installed. Run: pip install 'longgame[trl]'"
    ) from error

from longgame.training.trainer import SelectionMixin


class SelectionSFTTrainer(SelectionMixin, SFTTrainer):
    """TRL's SFTTrainer that selects what it trains on; arguments of both (see `SelectionMixin`)."""

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        """Leave the training dataset unpacked: what was selected is joined without padding when a batch is made."""
        packing = packing and dataset_name != "train"
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    def _selection_prepare(self, dataset: Any) -> Any:
        tokenizer: Any = self.processing_class
        arguments: Any = self.args
        return self._prepare_dataset(dataset, tokenizer, arguments, False, self._formatting_func, "proxy")
