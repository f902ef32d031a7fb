"""Trainers with selection built in: `SelectionTrainer` (transformers) and `SelectionSFTTrainer` (TRL).

```python
from longgame.training.trainers import SelectionSFTTrainer

trainer = SelectionSFTTrainer(model, args, train_dataset=dataset, selection="loss")
trainer.train()
```
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from transformers import Trainer

from longgame.training.trainer import SelectionMixin

if TYPE_CHECKING:
    from longgame.training.sft import SelectionSFTTrainer

__all__ = ["SelectionSFTTrainer", "SelectionTrainer"]


class SelectionTrainer(SelectionMixin, Trainer):
    """transformers' Trainer that picks what it trains on; arguments of both (see `SelectionMixin`)."""


def __getattr__(name: str) -> Any:
    if name != "SelectionSFTTrainer":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    if importlib.util.find_spec("trl") is None:
        raise ImportError("SelectionSFTTrainer needs TRL, which is not installed. Run: pip install 'longgame[trl]'")
    from longgame.training.sft import SelectionSFTTrainer

    return SelectionSFTTrainer
