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

    _selection_stand_ins: list[tuple[int, ...]]
    """Per micro-batch of the step that is to come, the tokens that stand in for picks, by process; 0 for picks."""

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        """Leave the training dataset unpacked: what was selected is joined without padding when a batch is made."""
        packing = packing and dataset_name != "train"
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        pairs = zip(self._selection_micro, batches, strict=False)  # no batches where an epoch is over
        counted = [0 if ids else _counted_tokens(batch) for ids, batch in pairs]
        self._selection_stand_ins = [*zip(*self._selection_processes.each(lambda: counted), strict=True)]
        return batches, items

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Train on a micro-batch; TRL's metrics count picks alone, not what stands in where there are none."""
        stand_ins, metrics = self._selection_stand_ins.pop(0), self._metrics["train"]
        before = {name: [*values] for name, values in metrics.items()} if all(stand_ins) else None
        loss = super().training_step(model, inputs, num_items_in_batch)
        if any(stand_ins):
            self._total_train_tokens -= sum(stand_ins)
            if before is not None:
                metrics.clear()
                metrics.update(before)
            metrics["num_tokens"] = [self._total_train_tokens]
        return loss

    def _selection_prepare(self, dataset: Any) -> Any:
        tokenizer: Any = self.processing_class
        arguments: Any = self.args
        return self._prepare_dataset(dataset, tokenizer, arguments, False, self._formatting_func, "proxy")


def _counted_tokens(batch: Any) -> int:
    """Tokens of a batch as TRL counts them."""
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["position_ids"].shape[1]
