"""The types of the data: an example, a task, a stage, a sequence of stages, and a tokenized pool."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from longgame.errors import DataError
from longgame.recipe import BudgetOf
from longgame.seeding import generator

WEIGHT = "longgame_weight"
"""Column of a subset, and row-aligned key of `Pool.info`: factor of each example's loss, > 0."""


def is_weight(value: Any) -> Any:
    """Return whether a number, or each of an array, is above 0 and finite in float32, the dtype of losses."""
    limits = np.finfo(np.float32)
    return (value >= float(limits.tiny)) & (value <= float(limits.max))


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with the response to learn.

    ``sample_id`` is a hash of the content, the same on every machine and in every order; the k-th exact copy within
    one pool has the suffix ``#k`` (see `with_unique_ids`). Examples are identified by this id, never by position.
    """

    sample_id: str
    prompt: str
    """Text of the user; empty for plain text (then the loss is on the whole text)."""
    response: str
    """Text to learn; never empty."""
    messages: tuple[tuple[str, str], ...] | None = None
    """(role, content) turns before the response, where the source was a conversation; replaces ``prompt``."""
    learned: tuple[int, ...] = ()
    """Places in ``messages`` of the assistant turns that are learned beside the response."""
    chat: Mapping[str, Any] | None = None
    """What the chat template gets beside role and content, as plain JSON values: ``tools``, and under ``turns`` the
    fields of a turn (such as ``tool_calls``) by its place; the response's place is ``len(messages)``."""
    tokens: tuple[Int[np.ndarray, " length"], Bool[np.ndarray, " length"]] | None = None
    """Token ids and loss mask of a row that came tokenized; they replace its text."""
    skill: str | None = None
    """Sub-skill or source inside a stage; scores are macro-averaged over it."""
    quality: float | None = None
    """External quality score in [0, 1], where the source carries one."""
    answer: str | tuple[str, ...] | None = None
    """Short gold answer for exact match, or several that are accepted alike."""
    choices: tuple[str, ...] | None = None
    """Option texts of a multiple-choice item."""
    source: str | None = None
    weight: float | None = None
    """Factor of its loss, > 0, where a selection gave it one (column ``longgame_weight``)."""
    noisy: bool | None = None
    """Whether the response was damaged on purpose (procedural pools record it); None: unknown."""
    difficulty: str | None = None
    verifier: Mapping[str, Any] | None = None
    """Data with which the item's library verifies an answer (e.g. the reasoning-gym entry)."""
    row_id: str | None = None
    """The row's own ``id``, where it came from a file of an audit's recipe that has this column."""
    columns: Mapping[str, float] | None = None
    """Numbers of the row that a quality source reads (`RowRules.columns`), by column; missing ones are left out."""

    @staticmethod
    def make(prompt: str, response: str, **fields: Any) -> Example:
        """Build an example whose id is the hash of its content.

        Raises:
            DataError: the response is empty or only white space.
        """
        if not response.strip():
            raise DataError("an example has an empty response; give it a response or drop the line.")
        further = {name: fields[name] for name in ("learned", "chat") if fields.get(name)} if fields else None
        sample_id = content_id(prompt, response, fields.get("messages"), further)
        return Example(sample_id=sample_id, prompt=prompt, response=response, **fields)

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """(role, content) turns before the response."""
        return self.messages if self.messages is not None else (("user", self.prompt),)


def content_id(
    prompt: str,
    response: str,
    messages: Sequence[tuple[str, str]] | None = None,
    further: Mapping[str, Any] | None = None,
) -> str:
    """Return the id of a content: 16 hex digits of SHA-256 over its turns, and what else decides its tokens."""
    text = f"user\x1f{prompt}\x1eassistant\x1f{response}"
    if messages is not None:
        text = "\x1e".join([*(f"{role}\x1f{content}" for role, content in messages), f"assistant\x1f{response}"])
    if further:
        text += "\x1d" + json.dumps(further, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_unique_ids(examples: Iterable[Example]) -> tuple[Example, ...]:
    """Return the examples with ``#2``, ``#3`` … put behind the id of every further exact copy."""
    copies: dict[str, int] = {}
    result = []
    for example in examples:
        base = example.sample_id.partition("#")[0]
        copies[base] = copies.get(base, 0) + 1
        new_id = base if copies[base] == 1 else f"{base}#{copies[base]}"
        result.append(example if new_id == example.sample_id else dataclasses.replace(example, sample_id=new_id))
    return tuple(result)


@dataclass(frozen=True, slots=True)
class Task:
    """A fixed set of items a model is scored on."""

    name: str
    items: tuple[Example, ...]
    kind: str = "stage"
    """``stage`` (the validation set of a stage) or ``ood`` (a shifted set, scored but never trained on)."""
    scorers: tuple[str, ...] = ("token_accuracy", "exact_match", "ends")
    """Names in the scorer registry; the first one is the task's own (primary) scorer."""
    max_new_tokens: int = 48
    stage: str | None = None
    """Of an OOD set: the stage whose skills it shifts; None where it belongs to none."""


MakePool = Callable[[Sequence[Example]], "Pool"]
"""Tokenizes candidates."""


def _no_tokenizer(examples: Sequence[Example]) -> Pool:
    raise DataError(
        f"{len(examples)} examples have no tokenizer; give the sequence one: sequence.with_pools(make_pool)."
    )


@dataclass(frozen=True)
class Stage:
    """One stage: what may be selected, and what the stage is validated on."""

    name: str
    candidates: tuple[Example, ...]
    task: Task
    proxy: tuple[Example, ...] = ()
    """A few items of the future-proxy mixture that this stage contributes (disjoint from pool and task)."""
    make_pool: MakePool = field(default=_no_tokenizer, repr=False, compare=False)

    @cached_property
    def pool(self) -> Pool:
        """The candidates, tokenized at the first access.

        Raises:
            DataError: a candidate is longer than the context (names it), or there is no tokenizer (`with_pools`).
        """
        return self.make_pool(self.candidates)

    @cached_property
    def target_pool(self) -> Pool | None:
        """The stage's own development items (``proxy``), tokenized: its target set; None where there are none."""
        return self.make_pool(self.proxy) if self.proxy else None


EARLIER_ITEMS = 64
"""Candidates of each earlier stage in `earlier_items`."""


def earlier_items(stages: Sequence[Stage]) -> Pool | None:
    """Return a fixed sample of these stages' candidates, `EARLIER_ITEMS` of each, none twice; None without stages.

    The sample depends on ids alone, so it is the same for every selector, whoever selected its examples.
    """
    items: Pool | None = None
    for stage in stages:
        order = np.argsort(np.asarray(stage.pool.ids))
        order = order[generator(0, "earlier", stage.name).permutation(len(order))][:EARLIER_ITEMS]
        part = stage.pool.take(order)
        if items is None:
            items = part
        else:
            present = items.index
            items = items.join(part.take([row for row, name in enumerate(part.ids) if name not in present]))
    return items


@dataclass(frozen=True)
class SequenceData:
    """All stages of one seed, in order, and the OOD tasks."""

    name: str
    stages: tuple[Stage, ...]
    ood: tuple[Task, ...] = ()
    mixing: float = 0.0
    """Share of each pool that comes from the stages before and after (see `longgame.data.sequences`)."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Columns of the score matrix: the stages' tasks, then the OOD tasks."""
        return (*(stage.task for stage in self.stages), *self.ood)

    @cached_property
    def proxy_pool(self) -> Pool | None:
        """The future-proxy mixture: the proxy items of all stages, tokenized; None where there are none."""
        items = [example for stage in self.stages for example in stage.proxy]
        return self.stages[0].make_pool(items) if items else None

    @cached_property
    def evaluation_pool(self) -> Pool:
        """The items of all tasks, tokenized as candidates are."""
        return self.stages[0].make_pool(with_unique_ids(item for task in self.tasks for item in task.items))

    def with_pools(self, make_pool: MakePool) -> SequenceData:
        """Return the sequence with stages that tokenize their candidates by ``make_pool``."""
        stages = tuple(dataclasses.replace(stage, make_pool=make_pool) for stage in self.stages)
        return dataclasses.replace(self, stages=stages)


def read_only(values: Any) -> np.ndarray:
    """Return a view of an array that cannot be written to, nor be made writable; the array itself stays as it is."""
    array = np.asarray(values)
    if not array.flags.writeable:
        return array
    if array.dtype.kind in "biuf":
        buffer: Any = array
        return np.asarray(memoryview(buffer).toreadonly())
    view = array.view()
    view.flags.writeable = False
    return view


def read_only_columns(columns: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a mapping that cannot be changed, with read-only views of its arrays."""
    return MappingProxyType(
        {name: read_only(value) if isinstance(value, np.ndarray) else value for name, value in columns.items()}
    )


class ExamplesOnDisk(Sequence[Example]):
    """Examples that are read where they are looked at: a pool of millions holds their ids and counts only.

    Looking at rising rows one by one costs one reading of the source; a smaller row than the last one starts over.

    Args:
        ids: of all n examples, distinct.
        read: yields the examples of these rising rows.
        in_memory: up to so many examples are kept once one of them was looked at.
    """

    def __init__(
        self, ids: tuple[str, ...], read: Callable[[Sequence[int]], Iterator[Example]], in_memory: int
    ) -> None:
        self.ids, self._read, self._in_memory = ids, read, in_memory
        self._examples: tuple[Example, ...] | None = None
        self._next, self._rest = 0, read(())

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return tuple(self[place] for place in range(*row.indices(len(self))))
        row = range(len(self))[row]
        if len(self) <= self._in_memory and self._examples is None:
            self._examples = tuple(self._read(range(len(self))))
        if self._examples is not None:
            return self._examples[row]
        if row < self._next or not self._next:
            self._next, self._rest = 0, self._read(range(len(self)))
        while True:
            example = next(self._rest)
            self._next += 1
            if self._next == row + 1:
                return example

    def __iter__(self) -> Iterator[Example]:
        return iter(self._examples) if self._examples is not None else self._read(range(len(self)))


@dataclass(frozen=True)
class Pool:
    """Tokenized candidates: rows inside the program, ids on disk.

    Selectors are handed pools, so all arrays are read-only.
    """

    examples: Sequence[Example]
    input_ids: Sequence[Int[np.ndarray, " length"]]
    """Prompt and response tokens of each example (empty arrays on substrates without text)."""
    prompt_tokens: Int[np.ndarray, " n"]
    """Tokens on which no loss is taken."""
    response_tokens: Int[np.ndarray, " n"]
    """Tokens on which the loss is taken; ≥ 1."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Further data of a substrate, such as row-aligned arrays (the quadratic world's features)."""
    budget_of: BudgetOf | Literal["rows"] = "tokens"
    """What a budget counts: prompt and response tokens, response tokens alone, or examples."""
    loss_masks: Sequence[Bool[np.ndarray, " length"] | None] | None = None
    """Per example, on which tokens the loss is taken, where several turns are learned. None: on those at its end."""

    def __post_init__(self) -> None:
        n = len(self.examples)
        if not (len(self.input_ids) == len(self.prompt_tokens) == len(self.response_tokens) == n):
            raise DataError(f"a pool of {n} examples needs {n} rows in every column.")
        if len(self.index) != n:
            raise DataError("a pool has a sample_id twice; make ids unique with with_unique_ids().")
        if isinstance(self.input_ids, tuple):
            for ids in self.input_ids:
                ids.flags.writeable = False
        for mask in self.loss_masks or ():
            if mask is not None:
                mask.flags.writeable = False
        object.__setattr__(self, "prompt_tokens", read_only(self.prompt_tokens))
        object.__setattr__(self, "response_tokens", read_only(self.response_tokens))
        object.__setattr__(self, "info", read_only_columns(self.info))

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        if isinstance(self.examples, ExamplesOnDisk):
            return self.examples.ids
        return tuple(example.sample_id for example in self.examples)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Id → row."""
        return MappingProxyType({sample_id: row for row, sample_id in enumerate(self.ids)})

    @cached_property
    def tokens(self) -> Int[np.ndarray, " n"]:
        """Prompt + response tokens of each example."""
        return read_only(np.asarray(self.prompt_tokens) + np.asarray(self.response_tokens))

    @property
    def costs(self) -> Int[np.ndarray, " n"]:
        """Tokens of each example that a budget counts (`budget_of`): what a selection spends."""
        if self.budget_of == "rows":
            return read_only(np.ones(len(self), dtype=np.int64))
        return self.tokens if self.budget_of == "tokens" else np.asarray(self.response_tokens)

    def __deepcopy__(self, memo: Any) -> Pool:
        """The pool itself; it is never written to."""
        return self

    def join(self, other: Pool) -> Pool:
        """Return a pool of these candidates followed by those of ``other``; row-aligned arrays of ``info`` follow.

        Raises:
            DataError: an id is in both, or the other pool lacks a row-aligned array of ``info``.
        """
        if not len(other):
            return self
        info = dict(self.info)
        for key, value in self.info.items():
            if isinstance(value, np.ndarray) and len(value) == len(self):
                if key not in other.info:
                    raise DataError(f"pools of two substrates cannot be joined: one of them has no '{key}'.")
                info[key] = np.concatenate([value, other.info[key]])
        masks = None
        if self.loss_masks is not None or other.loss_masks is not None:
            masks = (*(self.loss_masks or (None,) * len(self)), *(other.loss_masks or (None,) * len(other)))
        return Pool(
            (*self.examples, *other.examples),
            (*self.input_ids, *other.input_ids),
            np.concatenate([self.prompt_tokens, other.prompt_tokens]),
            np.concatenate([self.response_tokens, other.response_tokens]),
            info,
            self.budget_of,
            masks,
        )

    def take(self, rows: Sequence[int] | Int[np.ndarray, " k"]) -> Pool:
        """Return the sub-pool of these rows, in this order; row-aligned arrays of ``info`` follow."""
        rows = np.asarray(rows, dtype=np.int64)
        info = {
            key: value[rows] if isinstance(value, np.ndarray) and len(value) == len(self) else value
            for key, value in self.info.items()
        }
        return Pool(
            tuple(self.examples[row] for row in rows),
            tuple(self.input_ids[row] for row in rows),
            np.asarray(self.prompt_tokens)[rows],
            np.asarray(self.response_tokens)[rows],
            info,
            self.budget_of,
            None if self.loss_masks is None else tuple(self.loss_masks[row] for row in rows),
        )

    def predicted(self, row: int) -> Int[np.ndarray, " k"]:
        """Return the positions of the tokens of this row that the loss is taken on; the first token is never one."""
        mask = None if self.loss_masks is None else self.loss_masks[row]
        if mask is None:
            return np.arange(max(1, int(self.prompt_tokens[row])), int(self.tokens[row]))
        positions = np.flatnonzero(mask)
        return positions[positions > 0]

    def without_prompts(self) -> tuple[Pool, Int[np.ndarray, " m"]]:
        """Return every learned turn alone, behind an empty prompt, and the row that each of them is from.

        Before its first token stand the example's first token (BOS, where there is one) and the last of what the turn
        followed (the end of the assistant's header), so that every response token still has a predecessor.
        """
        ids, prompts, responses, owners = [], [], [], []
        for row, tokens in enumerate(self.input_ids):
            positions = self.predicted(row)
            for turn in (
                np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1) if len(positions) else [positions]
            ):
                start, stop = (int(turn[0]), int(turn[-1]) + 1) if len(turn) else (len(tokens), len(tokens))
                ids.append(tokens[:stop] if start <= 2 else np.concatenate([tokens[:1], tokens[start - 1 : stop]]))
                prompts.append(min(start, 2))
                responses.append(len(turn))
                owners.append(row)
        rows = np.asarray(owners, dtype=np.int64)
        parts = np.r_[0, np.flatnonzero(np.diff(rows)) + 1] if len(rows) else rows
        turn_of = np.arange(len(rows)) - np.repeat(parts, np.diff(np.r_[parts, len(rows)]))
        examples = tuple(
            dataclasses.replace(self.examples[row], sample_id=f"{self.ids[row]}/{turn}") if turn else self.examples[row]
            for row, turn in zip(owners, turn_of.tolist(), strict=True)
        )
        turns = Pool(examples, tuple(ids), np.asarray(prompts), np.asarray(responses), budget_of=self.budget_of)
        return turns, rows
