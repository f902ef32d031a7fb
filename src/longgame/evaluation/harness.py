"""Tasks of EleutherAI's lm-evaluation-harness as scorers: ``lm_eval:TASK``. The harness brings items and prompts."""

from __future__ import annotations

import copy
import importlib.util
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from longgame.errors import ModelError, PluginError, RecipeError
from longgame.evaluation.scorers import Scorer
from longgame.limits import located


class LmEval(Scorer):
    """A task of lm-evaluation-harness on the model as it is; a group's tasks are its sub-skills.

    Args:
        task: name of a task or group.
        metric: one of the task's, such as ``acc_norm`` or ``exact_match``; default: the first one that it lists.
        filter: of the outputs, such as ``flexible-extract``; default: the task's first one.
        num_fewshot: examples in the prompt; default: the task's own number.
        limit: items of every task at most.
        include: folder with task files of your own.
        chat_template: whether the tokenizer's chat template wraps the prompts.
        batch_size: rows of a forward pass.

    Raises:
        RecipeError: the harness is not installed, or has no such task. ModelError: the task's data cannot be read.
    """

    name: ClassVar[str] = "lm_eval"
    asks_outside: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("model",)

    def __init__(
        self,
        task: str = "",
        metric: str | None = None,
        filter: str | None = None,
        num_fewshot: int | None = None,
        limit: int | None = None,
        include: str | None = None,
        chat_template: bool = False,
        batch_size: int = 8,
    ) -> None:
        if not task:
            raise RecipeError("scorer 'lm_eval' names no task. Write lm_eval:TASK, such as lm_eval:arc_easy.")
        if importlib.util.find_spec("lm_eval") is None:
            raise RecipeError(
                f"scorer 'lm_eval:{task}' needs lm-evaluation-harness, which is not installed. Run: "
                "pip install 'longgame[eval]'"
            )
        self.task, self.metric, self.filter = task, metric, filter
        self.num_fewshot, self.limit, self.batch_size = num_fewshot, limit, batch_size
        self.chat_template = chat_template
        self.include = None if include is None else located(include)
        self._tasks: Any = None

    def score_model(self, model: Any, tokenizer: Any, max_length: int) -> Mapping[str, tuple[float, int]]:
        """Each task's metric and number of items, as the harness reports them.

        Raises:
            RecipeError: an unknown task, metric or filter. ModelError: the task's data cannot be read.
        """
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        with _random_state_kept():
            wrapped = HFLM(
                pretrained=model,
                tokenizer=copy.deepcopy(tokenizer),  # the harness sets its padding
                batch_size=self.batch_size,
                max_length=max_length,
            )
            try:
                results = simple_evaluate(
                    model=wrapped,
                    tasks=[self.task],
                    task_manager=self._manager(),
                    num_fewshot=self.num_fewshot,
                    limit=self.limit,
                    apply_chat_template=self.chat_template,
                    bootstrap_iters=0,
                    log_samples=False,
                    random_seed=None,
                    numpy_random_seed=None,
                    torch_random_seed=None,
                )
            except (OSError, ConnectionError) as error:
                raise ModelError(
                    f"the data of the task '{self.task}' of lm-evaluation-harness cannot be read: "
                    f"{' '.join(str(error).split())[:300]}. Load it once with network, or name a task with local files."
                ) from error
        counts = results["n-samples"]
        better = results.get("higher_is_better") or {}
        return {
            name: (self._value(name, results["results"][name], better.get(name) or {}), counts[name]["effective"])
            for name in counts
        }

    def _manager(self) -> Any:
        """The harness's index of tasks: of the own folder where it has the task, else of all."""
        if self._tasks is None:
            from lm_eval.tasks import TaskManager

            alone = None if self.include is None else TaskManager(include_path=self.include, include_defaults=False)
            if alone is not None and self.task in alone.all_tasks:
                self._tasks = alone  # the harness reads thousands of files for the other index
            else:
                self._tasks = TaskManager(include_path=self.include)
            if self.task not in self._tasks.all_tasks:
                raise RecipeError(
                    f"lm-evaluation-harness has no task '{self.task}'. List them with `lm_eval ls tasks`, or name a "
                    "folder of task files: lm_eval:TASK(include=FOLDER)."
                )
        return self._tasks

    def _value(self, task: str, values: Mapping[str, Any], higher_is_better: Mapping[str, bool]) -> float:
        """The metric of a task's results, whose keys read ``metric,filter``: the first of which more is better.

        Args:
            higher_is_better: metric → direction, as far as the harness tells it.
        """
        keys = [key for key, value in values.items() if "," in key and "_stderr" not in key and _is_number(value)]
        matching = [
            key
            for key in keys
            if self.metric in (None, key.partition(",")[0]) and self.filter in (None, key.partition(",")[2])
        ]
        if not matching:
            raise RecipeError(
                f"task '{task}' of lm-evaluation-harness gives {', '.join(keys) or 'no number'} (metric,filter), not "
                f"{self.metric or 'any metric'},{self.filter or 'any filter'}. Name one with metric= and filter=."
            )
        rising = [key for key in matching if higher_is_better.get(key.partition(",")[0]) is not False]
        if not rising:
            raise PluginError(
                f"task '{task}': of {matching[0].partition(',')[0]}, less is better, and a score has to rise. Name "
                "another metric with metric=, or another task."
            )
        value = float(values[rising[0]])
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise PluginError(f"task '{task}': {rising[0]} is {value:g}, no share of items. Name another metric.")
        return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """The global random generators as they were; the harness draws from them."""
    import torch

    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
