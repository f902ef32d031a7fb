"""The stages of one seed: what may be selected, what is validated on, what is shifted, what the proxy shows."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from longgame.data.examples import Example, SequenceData, Stage, Task, with_unique_ids
from longgame.data.sources import Split, load_examples, source_name
from longgame.errors import DataError, RecipeError, unknown
from longgame.recipe import RealTask, Recipe
from longgame.seeding import generator

_log = logging.getLogger(__name__)

Fits = Callable[[Example], bool]


def build_sequence(
    recipe: Recipe, seed: int, fits: Fits | None = None, order: Sequence[str] | Sequence[int] = ()
) -> SequenceData:
    """Build all stages and OOD tasks of one seed; equal arguments give equal sequences.

    Args:
        recipe: ``data.sequence`` decides: ``procedural…`` generates, ``files`` reads.
        seed: of this replication; pools, validation items and proxy items are drawn from its own streams.
        fits: where ``data.too_long`` is ``drop``, says whether an example is short enough; others are passed over
            before sampling (see `longgame.data.tokenize.fits_within`). Procedural items are made to fit.
        order: in which the stages are walked (names or rows, see `resolve_order`); empty: as the
            recipe has them. Validation, OOD and proxy items and a stage's own candidates are the same in every order;
            what ``data.mixing`` adds to a pool comes from its neighbours in this order.

    Raises:
        DataError: a file cannot be used, or holds fewer examples than the recipe asks for.
        RecipeError: a stage without files, a name that stands twice, an order or a mixing share that cannot be, or
            ``quadratic`` (it has a world of its own).
    """
    if recipe.data.sequence.startswith("procedural"):
        from longgame.data.synthetic import build_procedural_sequence  # reasoning-gym is slow to import

        return build_procedural_sequence(recipe.data, seed, recipe.proxy, order)
    if recipe.data.sequence == "files":
        return _FileSequence(recipe, seed, fits if recipe.data.too_long == "drop" else None).build(order)
    raise RecipeError(
        f"data.sequence '{recipe.data.sequence}' has no text. It belongs to model.name: quadratic, which makes its "
        "own stages; for text choose a procedural sequence or files."
    )


class _Source:
    """One file in the seed's random order; examples are taken from it one by one, never twice."""

    def __init__(self, name: str, examples: list[Example], fits: Fits | None, seed: int, *stream: str) -> None:
        self.name = name
        self.held = len(examples)
        self.too_long = 0
        self.taken_before = 0
        self._examples = examples
        self._fits = fits
        self._order: Iterator[int] = iter(generator(seed, "files", *stream, name).permutation(len(examples)).tolist())

    def next(self, used: set[str], prompts: set[str] | None = None) -> Example | None:
        """The next example that fits and whose content (and prompt) is not used yet; None when there is no more."""
        for row in self._order:
            example = self._examples[row]
            if example.sample_id in used or (prompts is not None and _prompt_key(example) in prompts):
                self.taken_before += 1
            elif self._fits is not None and not self._fits(example):
                self.too_long += 1
            else:
                return dataclasses.replace(example, skill=self.name)
        return None

    def __str__(self) -> str:
        parts = [f"{self.held} examples"]
        if self.too_long:
            parts.append(f"{self.too_long} longer than model.max_length")
        if self.taken_before:
            parts.append(f"{self.taken_before} used elsewhere in the sequence")
        return f"{self.name} ({', '.join(parts)})"


class _FileSequence:
    """Draws evaluation items first, then proxy items, then pools, so that all are disjoint by content.

    A candidate or proxy item is also passed over where its prompt is that of an evaluation item. What is mixed into a
    pool from its neighbours' files is drawn last, so that it takes nothing from the stages' own candidates.
    """

    def __init__(self, recipe: Recipe, seed: int, fits: Fits | None) -> None:
        self.recipe, self.seed, self.fits = recipe, seed, fits
        self.data = recipe.data
        self.folder = Path(recipe.data.data_dir) if recipe.data.data_dir is not None else None
        self.used: set[str] = set()
        self.prompts: set[str] = set()
        self._read: dict[tuple[str, Split], list[Example]] = {}

    def build(self, order: Sequence[str] | Sequence[int]) -> SequenceData:
        self._check()
        stages, ood = self.data.stages, self.data.ood
        rows = resolve_order([stage.name for stage in stages], order)
        shares = pool_shares(self.data.pool_size, rows, self.data.mixing)
        tasks = [self._task(stage, "stage", self.data.items_per_skill) for stage in stages]
        shifted = tuple(self._task(spec, "ood", self.data.ood_items_per_skill) for spec in ood)
        sources = [self._sources(stage, stage.train, "train") for stage in stages]
        proxies = [self._proxy(stage_sources) for stage_sources in sources]
        pools = [self._pool(stages[row], sources[row], shares[row][row]) for row in range(len(stages))]
        for row, given in enumerate(shares):
            for giver, count in given.items():
                if giver != row:
                    pools[row] += self._pool(stages[row], self._foreign(stages[row], stages[giver]), count)
        unique = [with_unique_ids(pool) for pool in pools]
        built = (Stage(s.name, p, t, x) for s, p, t, x in zip(stages, unique, tasks, proxies, strict=True))
        return walk(SequenceData(self.recipe.name, tuple(built), shifted, self.data.mixing), rows)

    def _foreign(self, stage: RealTask, giver: RealTask) -> list[_Source]:
        """The giver's training files that the stage does not have, in an order of their own."""
        own = {source_name(reference) for reference in stage.train}
        references = tuple(reference for reference in giver.train if source_name(reference) not in own)
        if not references:
            raise RecipeError(
                f"data.mixing: stage '{giver.name}' has no train file that its neighbour '{stage.name}' lacks, so it "
                "has nothing to mix in. Use data.mixing: 0, another order, or other files."
            )
        return self._sources(stage, references, "train", "mixed")

    def _check(self) -> None:
        names = [task.name for task in (*self.data.stages, *self.data.ood)]
        for name in names:
            if names.count(name) > 1:
                raise RecipeError(f"the name '{name}' stands twice in data.stages and data.ood; names must differ.")
        for kind, tasks in (("stages", self.data.stages), ("ood", self.data.ood)):
            for task in tasks:
                for key in ("train", "eval") if kind == "stages" else ("eval",):
                    references = getattr(task, key)
                    if not references:
                        raise RecipeError(f"data.{kind} '{task.name}' names no {key} files. Add `{key}: [NAME, …]`.")
                    short = [source_name(reference) for reference in references]
                    if len(set(short)) != len(short):
                        raise RecipeError(
                            f"data.{kind} '{task.name}' names two {key} files alike ({', '.join(short)}). Scores are "
                            "kept by file name: rename one, or leave it out."
                        )

    def _sources(self, task: RealTask, references: tuple[str, ...], split: Split, *stream: str) -> list[_Source]:
        sources = []
        for reference in references:
            key = (reference, split)
            if key not in self._read:
                self._read[key] = load_examples(reference, data_dir=self.folder, split=split)
            name = source_name(reference)
            sources.append(_Source(name, self._read[key], self.fits, self.seed, task.name, split, *stream))
        return sources

    def _task(self, spec: RealTask, kind: str, items: int) -> Task:
        """``items`` per evaluation file; a file is a sub-skill."""
        drawn: list[Example] = []
        option = "items_per_skill" if kind == "stage" else "ood_items_per_skill"
        for source in self._sources(spec, spec.eval, "eval"):
            for number in range(items):
                example = source.next(self.used)
                if example is None:
                    raise DataError(
                        f"'{spec.name}' needs {items} evaluation items of {source}, but only {number} can be used. "
                        f"Lower data.{option} to {number}, raise model.max_length, or give a larger file."
                    )
                self.used.add(example.sample_id)
                self.prompts.add(_prompt_key(example))
                drawn.append(example)
            self._report(spec.name, source)
        self.prompts.discard("")
        return Task(spec.name, tuple(drawn), kind, spec.scorers, spec.max_new_tokens)

    def _proxy(self, sources: list[_Source]) -> tuple[Example, ...]:
        """``proxy.items_per_skill`` of every training file."""
        drawn = []
        for source in sources:
            for number in range(self.recipe.proxy.items_per_skill):
                example = source.next(self.used, self.prompts)
                if example is None:
                    raise DataError(
                        f"the future-proxy mixture needs {self.recipe.proxy.items_per_skill} items of {source}, but "
                        f"only {number} can be used. Lower proxy.items_per_skill or give a larger file."
                    )
                self.used.add(example.sample_id)
                drawn.append(example)
        return tuple(drawn)

    def _pool(self, spec: RealTask, sources: list[_Source], size: int) -> tuple[Example, ...]:
        """``size`` candidates in equal shares of the files; a file that runs out leaves its share to the rest."""
        drawn: list[Example] = []
        open_sources = list(sources)
        while open_sources and len(drawn) < size:
            for source in list(open_sources):
                if len(drawn) == size:
                    break
                example = source.next(self.used, self.prompts)
                if example is None:
                    open_sources.remove(source)
                else:
                    drawn.append(example)
        if len(drawn) < size:
            raise DataError(
                f"stage '{spec.name}' needs a pool of {size} candidates but its files give "
                f"{len(drawn)}: {'; '.join(str(source) for source in sources)}. "
                f"Lower data.pool_size to {len(drawn)}, raise model.max_length, or add files."
                if size == self.data.pool_size
                else f"the pool of stage '{spec.name}' needs {size} candidates (data.mixing {self.data.mixing:g}) of "
                f"these files, which give {len(drawn)}: {'; '.join(str(source) for source in sources)}. "
                "Lower data.pool_size, change data.mixing, raise model.max_length, or add files."
            )
        self.used.update(example.sample_id for example in drawn)
        for source in sources:
            self._report(spec.name, source)
        return tuple(drawn)

    def _report(self, task: str, source: _Source) -> None:
        if source.too_long:
            _log.info("'%s': passed over while drawing from %s", task, source)


def _prompt_key(example: Example) -> str:
    """The prompt without case and spacing; empty for plain text."""
    turns = example.messages if example.messages is not None else (("user", example.prompt),)
    return " ".join(" ".join(content for _, content in turns).casefold().split())


# Stages in time: in which order a sequence is walked, and how far its stages run into one another.


def resolve_order(names: Sequence[str], order: Sequence[str] | Sequence[int]) -> tuple[int, ...]:
    """Return the rows of the stages in the order in which they are walked.

    Args:
        names: the stages as they stand in the sequence.
        order: the same names in another order, or their rows (0 is the first); empty: as they stand.

    Raises:
        RecipeError: a name or row that does not exist, or an order that does not hold every stage just once.
    """
    rows = []
    for part in order:
        if isinstance(part, str):
            if part not in names:
                raise RecipeError(f"task order {list(order)}: {unknown('stage', part, names)}")
            rows.append(list(names).index(part))
        else:
            rows.append(int(part))
    if order and sorted(rows) != list(range(len(names))):
        raise RecipeError(
            f"task order {list(order)} is no order of the {len(names)} stages {', '.join(names)}. Name every stage "
            f"once, or give every row from 0 to {len(names) - 1} once."
        )
    return tuple(rows) if order else tuple(range(len(names)))


def reorder(sequence: SequenceData, order: Sequence[str] | Sequence[int]) -> SequenceData:
    """Return the same stages, pools and items in another order of time.

    The columns of the score matrix follow: stage tasks in the order of the walk, then the OOD sets that belong to a
    stage (`Task.stage`) in the same order, then those that belong to none, as they stood.

    Raises:
        RecipeError: not an order of the stages (see `resolve_order`), or pools with a mixing share: what is mixed in
            comes from the neighbours in time, so such a sequence has to be built in its order
            (``build_sequence(…, order=order)``).
    """
    names = [stage.name for stage in sequence.stages]
    rows = resolve_order(names, order)
    if sequence.mixing > 0 and rows != tuple(range(len(names))):
        raise RecipeError(
            f"the pools of '{sequence.name}' hold a mixing share of {sequence.mixing:g} from the stages before and "
            "after, which another order changes. Build the sequence in that order: build_sequence(…, order=…)."
        )
    return walk(sequence, rows)


def walk(sequence: SequenceData, rows: Sequence[int]) -> SequenceData:
    """Put stages, and the OOD sets that belong to them, in the order of these rows (see `reorder`)."""
    stages = tuple(sequence.stages[row] for row in rows)
    place = {stage.name: place for place, stage in enumerate(stages)}
    ood = sorted(sequence.ood, key=lambda task: place.get(task.stage or "", len(stages)))
    return dataclasses.replace(sequence, stages=stages, ood=tuple(ood))


def pool_shares(pool_size: int, rows: Sequence[int], mixing: float) -> list[dict[int, int]]:
    """How many candidates of each stage's pool come from which stage.

    ``round(mixing · pool_size)`` candidates of a pool are foreign. The stage walked just before gives half of them (the
    odd one too) and the stage just after the rest; the first and the last stage have one neighbour, which gives all.

    Args:
        pool_size: candidates of a pool.
        rows: the order of the walk.
        mixing: share in [0, 1).

    Returns:
        For every row of the sequence (not of the walk): row that gives → candidates; the stage's own stand first, and
        rows that would give none are left out.

    Raises:
        RecipeError: a mixing share above 0 with a single stage.
    """
    foreign = round(mixing * pool_size)
    if foreign and len(rows) < 2:
        raise RecipeError(
            f"data.mixing is {mixing:g}, but the sequence has one stage and so no neighbour. Use data.mixing: 0."
        )
    shares: list[dict[int, int]] = [{} for _ in rows]
    for place, row in enumerate(rows):
        before, after = foreign - foreign // 2, foreign // 2
        if place == 0 or place == len(rows) - 1:
            given = {rows[1] if place == 0 else rows[place - 1]: foreign} if foreign else {}
        else:
            given = {rows[place - 1]: before, rows[place + 1]: after}
        shares[row] = {row: pool_size - foreign, **{giver: count for giver, count in given.items() if count}}
    return shares
