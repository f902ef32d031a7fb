"""Scores of a causal language model on tasks; all tasks and scorers share one pass of each kind."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from longgame.data.examples import Example, Task
from longgame.data.tokenize import Encoded, encode, encode_all
from longgame.errors import DataError, PluginError, RecipeError
from longgame.evaluation.decoding import Row, run_rows
from longgame.evaluation.scorers import Evidence, Score, Scorer, build_scorer, is_defined, refused_code
from longgame.models.adaptation import adaptation_of
from longgame.models.head import evaluating, float32_head
from longgame.registry import plugin_at_work
from longgame.seeding import generator

_log = logging.getLogger(__name__)
_FOLDING_GAP = 1e-3
"""Largest difference of logits, relative to the largest, that folding an adapter may make: rounding makes 1e-6."""


@dataclass
class _Item:
    """One item with the rows and scorers that measure it."""

    example: Example
    row: Row | None = None
    """The item's own response, with a decoding limit if a scorer of any task requires a generation."""
    options: dict[str, list[Row]] = field(default_factory=dict)
    """By scorer, a row per option text."""
    scorers: list[str] = field(default_factory=list)
    """Names of the scorers that measure the item."""
    generated: str | None = None


class Evaluator:
    """Scores one model, as it is at the moment of the call, on any tasks.

    Args:
        model: a causal LM of transformers or a PeftModel around one; read anew at every call, never copied.
        tokenizer: the tokenizer that `longgame.data.tokenize.encode` renders prompts with.
        pad_token_id: any id of the vocabulary; padded positions are never attended to.
        max_batch_tokens: rows × longest row of one forward pass (a longer row runs alone). Memory, not results.
        max_length: longest prompt + response (default: the model's ``max_position_embeddings``).
        seed: of the streams given to scorers that sample (the built-in ones do not).
        run_model_code: whether scorers may run programs that the model wrote, in a sandbox (`pass_at_1`).
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        pad_token_id: int,
        max_batch_tokens: int = 4096,
        max_length: int | None = None,
        seed: int = 0,
        run_model_code: bool = False,
    ) -> None:
        self.run_model_code = run_model_code
        self.model = model
        self.tokenizer = tokenizer
        self.pad_token_id = pad_token_id
        self.max_batch_tokens = max_batch_tokens
        self.seed = seed
        text_config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
        self.max_positions = int(getattr(text_config, "max_position_embeddings", None) or 2**31 - 1)
        self.max_length = min(max_length or self.max_positions, self.max_positions)
        self._special = frozenset(int(token) for token in tokenizer.all_special_ids)
        self._folds: bool | None = None
        self._scorers: dict[str, Scorer] = {}
        self._encoded: dict[tuple[str, str], Encoded] = {}

    def score(self, tasks: Sequence[Task]) -> list[Score]:
        """Return one `Score` per task × sub-skill × scorer, in this order (sub-skills sorted).

        The sub-skill is ``Example.skill``, or "all" where an item names none. ``value`` is the mean over the items that
        the scorer measures (0–100), NaN with ``items`` = 0 where it measures none. The model's modes, weights and
        hooks and every random generator are left as they were.

        Raises:
            DataError: a task without items, an item longer than the context, or one that a scorer finds contradictory.
            NumericalError: NaN or infinite likelihood; task and item are named.
            RecipeError, PluginError: an unknown scorer, or one that breaks its contract.
        """
        rows: dict[tuple[bytes, bytes], Row] = {}
        plans = [[self._plan(task, item, rows) for item in task.items] for task in tasks]
        self._run(list(rows.values()))
        self._to_text(tasks, plans)
        return [score for task, items in zip(tasks, plans, strict=True) for score in self._scores(task, items)]

    def answers(self, examples: Sequence[Example], max_new_tokens: int) -> list[str]:
        """Return what the model answers to each example's prompt, decoded greedily; empty where no token has room.

        Raises:
            DataError, ModelError: as `longgame.data.tokenize.encode_all`. NumericalError: as `score`.
        """
        if not examples:  # batch_decode([]) decodes one empty sequence
            return []
        rows: list[Row | None] = []
        for example, item in zip(examples, encode_all(examples, self.tokenizer), strict=True):
            room = self.max_positions - len(item.prompt_ids)
            cut = item.response_ids[:room]
            end = item.end_tokens if len(cut) == len(item.response_ids) else 0
            row = Row(item.prompt_ids, cut, f"example {example.sample_id}", limit=max_new_tokens, end=end)
            rows.append(row if room > 0 and len(item.prompt_ids) else None)
        decoded = [row for row in rows if row is not None]
        self._run(decoded)
        texts = self.tokenizer.batch_decode(
            [[] if row is None else row.decoded for row in rows],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return [self._until_end(text, row).strip() for text, row in zip(texts, rows, strict=True)]

    def _run(self, rows: Sequence[Row]) -> None:
        """Fill the rows under the model as it is; modes, weights and hooks are left as they were."""
        with evaluating(self.model.modules()), self._folded(rows), float32_head(self.model), torch.inference_mode():
            run_rows(
                self.model,
                rows,
                pad_token_id=self.pad_token_id,
                stop_ids=self._stop_ids(rows),
                max_batch_tokens=self.max_batch_tokens,
                max_positions=self.max_positions,
            )

    def _folded(self, rows: Iterable[Row]) -> AbstractContextManager[Any]:
        """Adapters folded into the base weights while scoring, where that gives the logits of the model as it is.

        Some architectures read weights past their layers' forward (Jamba's fused kernels), so it is tried once.
        """
        adaptation = adaptation_of(self.model)
        row = next(iter(rows), None)
        if self._folds is None and row is not None:
            device = self.model.get_input_embeddings().weight.device  # type: ignore[operator]
            tokens = np.concatenate([row.prompt, row.response])[:16].astype(np.int64)
            ids = torch.from_numpy(tokens)[None].to(device)
            with evaluating(self.model.modules()), torch.inference_mode():
                plain = self.model(input_ids=ids, use_cache=False).logits.float()
                with adaptation.merged() as folded:
                    other = self.model(input_ids=ids, use_cache=False).logits.float() if folded else plain
            gap = float((other - plain).abs().max() / plain.abs().max().clamp_min(1e-6))
            if gap == 0:  # nothing is learned yet, so nothing is shown
                return adaptation.merged()
            self._folds = not gap > _FOLDING_GAP  # NaN is reported with its item's name
            if not self._folds:
                _log.warning(
                    "folding the adapter changes the logits of %s by %.2g of their size; it is scored unfolded.",
                    type(self.model).__name__,
                    gap,
                )
        return nullcontext(False) if self._folds is False else adaptation.merged()

    def _scorer(self, name: str) -> Scorer:
        if name not in self._scorers:
            scorer = build_scorer(name)
            if scorer.runs_model_code and not self.run_model_code:
                raise RecipeError(refused_code(name))
            self._scorers[name] = scorer
        return self._scorers[name]

    def _plan(self, task: Task, example: Example, rows: dict[tuple[bytes, bytes], Row]) -> _Item:
        label = f"task '{task.name}', item {example.sample_id}"
        item = _Item(example)
        for name in dict.fromkeys(task.scorers):
            scorer = self._scorer(name)
            if "model" in scorer.requires:
                continue
            with plugin_at_work(f"scorer '{name}'", f"measures() of {label}"):
                measured = scorer.measures(example)
            if not measured:
                continue
            item.scorers.append(name)
            if "options" in scorer.requires:
                with plugin_at_work(f"scorer '{name}'", f"options() of {label}"):
                    texts = list(scorer.options(example))
                if not texts:
                    raise PluginError(f"scorer '{name}' measures {label} but gives no options for it.")
                item.options[name] = [self._row(rows, example, text, label) for text in texts]
            if {"response", "generation"} & set(scorer.requires):
                item.row = self._row(rows, example, example.response, label)
            if "generation" in scorer.requires and item.row is not None:
                item.row.limit = max(item.row.limit, task.max_new_tokens)
        return item

    def _row(self, rows: dict[tuple[bytes, bytes], Row], example: Example, text: str, label: str) -> Row:
        """The row of the example's prompt with this response; equal token sequences share one row."""
        if example.tokens is not None and text != example.response:
            raise DataError(
                f"{label} came as tokens, so no other response ({text[:40]!r}) can be put behind its prompt. Give the "
                "item as text, or leave scorers of options out of the task's."
            )
        key = (example.sample_id, text)
        if key not in self._encoded:
            try:
                self._encoded[key] = encode(replace(example, response=text), self.tokenizer, self.max_length)
            except DataError as error:
                raise DataError(f"{label}: {error}") from error
        encoded = self._encoded[key]
        prompt, response = encoded.prompt_ids, encoded.response_ids
        row = Row(prompt, response, label, end=encoded.end_tokens)
        return rows.setdefault((prompt.tobytes(), response.tobytes()), row)

    def _stop_ids(self, rows: Iterable[Row]) -> frozenset[int]:
        """Tokens that end a response: EOS of tokenizer and generation config, and the template's end-of-turn token."""
        config = getattr(self.model, "generation_config", None)
        tokens = [self.tokenizer.eos_token_id, getattr(config, "eos_token_id", None)]
        flat = [token for entry in tokens for token in (entry if isinstance(entry, list | tuple) else [entry])]
        ends = {int(row.response[-1]) for row in rows} & self._special
        return frozenset(int(token) for token in flat if token is not None) | ends

    def _to_text(self, tasks: Sequence[Task], plans: list[list[_Item]]) -> None:
        """Set the text of each item's decoded tokens, cut at its own task's limit."""
        decoded = [
            (item, item.row.decoded[: task.max_new_tokens])
            for task, items in zip(tasks, plans, strict=True)
            for item in items
            if item.row is not None and any("generation" in self._scorer(name).requires for name in item.scorers)
        ]
        if not decoded:  # batch_decode([]) decodes one empty sequence
            return
        texts = self.tokenizer.batch_decode(
            [tokens for _, tokens in decoded], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        for (item, _), text in zip(decoded, texts, strict=True):
            item.generated = self._until_end(text, item.row).strip()

    def _until_end(self, text: str, row: Row | None) -> str:
        """The text up to the end of the turn, where the template writes it in tokens that do not stop decoding."""
        closing = row.response[len(row.response) - row.end :] if row is not None else ()
        if row is None or len(closing) < 2 or {*map(int, closing)} & self._special:
            return text
        return text.partition(self.tokenizer.decode(closing))[0]

    def _scores(self, task: Task, items: list[_Item]) -> Iterator[Score]:
        names = list(dict.fromkeys(task.scorers))
        alone = [name for name in names if "model" in self._scorer(name).requires]
        if not items and len(alone) < len(names):
            raise DataError(f"task '{task.name}' has no items to score. Give it some, or leave the task out.")
        groups: dict[str, list[_Item]] = {}
        for item in items:
            groups.setdefault(item.example.skill or "all", []).append(item)
        for sub_skill in sorted(groups):
            for name in names:
                if name not in alone:
                    yield from self._mean(task, sub_skill, name, [i for i in groups[sub_skill] if name in i.scorers])
        for name in alone:
            yield from self._of_model(task, name)

    def _mean(self, task: Task, sub_skill: str, name: str, items: list[_Item]) -> Iterator[Score]:
        """The mean over the items with a result; of a scorer that may miss some, also the share that it missed."""
        values = self._judged(task, name, items)
        graded = [value for value in values if not math.isnan(value)]
        mean = 100 * math.fsum(graded) / len(graded) if graded else math.nan
        yield Score(task.name, sub_skill, name, mean, len(graded))
        if self._scorer(name).may_miss:
            missing = len(values) - len(graded)
            share = 100 * missing / len(values) if values else math.nan
            yield Score(task.name, sub_skill, f"{name} missing", share, len(values))
            if missing:
                where = f"{missing} of {len(values)} items of task '{task.name}'"
                _log.warning("scorer '%s' has no result for %s; their mean is over the others.", name, where)

    def _judged(self, task: Task, name: str, items: list[_Item]) -> list[float]:
        scorer = self._scorer(name)
        evidence = [self._evidence(task, name, item) for item in items]
        if not is_defined(type(scorer), "score_all"):
            return [self._judge(task, name, item, shown) for item, shown in zip(items, evidence, strict=True)]
        with plugin_at_work(f"scorer '{name}'", f"score_all() of task '{task.name}'"):
            values = list(map(float, scorer.score_all([item.example for item in items], evidence)))
        if len(values) != len(items):
            raise PluginError(f"scorer '{name}' gave {len(values)} values for {len(items)} items of '{task.name}'.")
        return [self._checked(task, name, item, value) for item, value in zip(items, values, strict=True)]

    def _of_model(self, task: Task, name: str) -> Iterator[Score]:
        """The scores of a scorer that brings items of its own."""
        with (
            plugin_at_work(f"scorer '{name}'", f"score_model() of task '{task.name}'"),
            evaluating(self.model.modules()),
            torch.inference_mode(),
        ):
            values = self._scorer(name).score_model(self.model, self.tokenizer, self.max_length)
        for sub_skill, (value, items) in values.items():
            if not 0 <= value <= 1:
                raise PluginError(f"scorer '{name}' gave {value} for '{sub_skill}'; it must be within 0…1.")
            yield Score(task.name, sub_skill, name, 100 * value, items)

    def _evidence(self, task: Task, name: str, item: _Item) -> Evidence:
        needs, row = self._scorer(name).requires, item.row
        options = [option.nll[option.content] for option in item.options.get(name, ())]
        return Evidence(
            response=(row.nll, row.correct) if "response" in needs and row is not None else None,
            end_tokens=row.end if row is not None else 0,
            generated=item.generated if "generation" in needs else None,
            options=tuple(options) if "options" in needs else None,
            rng=lambda: generator(self.seed, "scorer", name, task.name, item.example.sample_id),
        )

    def _judge(self, task: Task, name: str, item: _Item, evidence: Evidence) -> float:
        scorer = self._scorer(name)
        with plugin_at_work(f"scorer '{name}'", f"score() of task '{task.name}', item {item.example.sample_id}"):
            value = float(scorer.score(item.example, evidence))
        return self._checked(task, name, item, value)

    def _checked(self, task: Task, name: str, item: _Item, value: float) -> float:
        if not 0 <= value <= 1 and not (math.isnan(value) and self._scorer(name).may_miss):
            raise PluginError(
                f"scorer '{name}' gave {value} for task '{task.name}', item {item.example.sample_id}; it must be "
                "within 0…1. Leave items that cannot be judged out through measures()."
            )
        return value
