"""The data of one seed: per stage its pool, validation, OOD and proxy items, generated or drawn from files."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from longgame.data.examples import Example, SequenceData, Stage, Task, with_unique_ids
from longgame.data.orders import pool_shares, resolve_order, walk
from longgame.data.sources import Split, load_examples, source_name
from longgame.data.synthetic.sequence import build_procedural_sequence
from longgame.errors import DataError, RecipeError
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
        fits: with ``data.too_long: drop``, whether an example is short enough; longer ones are skipped before sampling
            (see `longgame.data.tokenize.fits_within`). Procedural items always fit.
        order: of the walk (names or rows, see `resolve_order`); empty: the recipe's. Validation, OOD and proxy items
            and a stage's own candidates are the same in every order; what ``data.mixing`` adds to a pool comes from
            its neighbors in this order.

    Raises:
        DataError: a file cannot be used, or holds fewer examples than the recipe asks for.
        RecipeError: a stage without files, a repeated name, an impossible order or mixing share, or ``quadratic``,
            which has no text.
    """
    if recipe.data.sequence.startswith("procedural"):
        return build_procedural_sequence(recipe.data, seed, recipe.proxy, order)
    if recipe.data.sequence == "files":
        return _FileSequence(recipe, seed, fits if recipe.data.too_long == "drop" else None).build(order)
    raise RecipeError(
        f"data.sequence '{recipe.data.sequence}' has no text. It belongs to model.name: quadratic, which makes its "
        "own stages; for text choose a procedural sequence or files."
    )


class _Source:
    """One file in the seed's random order; every example is drawn at most once."""

    def __init__(self, name: str, examples: list[Example], fits: Fits | None, seed: int, *stream: str) -> None:
        self.name = name
        self.size = len(examples)
        self.too_long = 0
        self.used_before = 0
        self._examples = examples
        self._fits = fits
        self._order: Iterator[int] = iter(generator(seed, "files", *stream, name).permutation(len(examples)).tolist())

    def next(self, used: set[str], prompts: set[str] | None = None) -> Example | None:
        """The next example that fits and whose content (and prompt) is unused; None at the end of the file."""
        for row in self._order:
            example = self._examples[row]
            if example.sample_id in used or (prompts is not None and _prompt_key(example) in prompts):
                self.used_before += 1
            elif self._fits is not None and not self._fits(example):
                self.too_long += 1
            else:
                return dataclasses.replace(example, skill=self.name)
        return None

    def __str__(self) -> str:
        parts = [f"{self.size} examples"]
        if self.too_long:
            parts.append(f"{self.too_long} longer than model.max_length")
        if self.used_before:
            parts.append(f"{self.used_before} used elsewhere in the sequence")
        return f"{self.name} ({', '.join(parts)})"


class _FileSequence:
    """Draws evaluation items first, then proxy items, then pools, so that all are disjoint by content.

    A candidate or proxy item with the prompt of an evaluation item is skipped, too. What is mixed into a pool from its
    neighbors' files is drawn last, so a stage's own candidates do not depend on it.
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
        for row, share in enumerate(shares):
            for giver, count in share.items():
                if giver != row:
                    pools[row] += self._pool(stages[row], self._foreign(stages[row], stages[giver]), count)
        unique = [with_unique_ids(pool) for pool in pools]
        built = (Stage(s.name, p, t, x) for s, p, t, x in zip(stages, unique, tasks, proxies, strict=True))
        return walk(SequenceData(self.recipe.name, tuple(built), shifted, self.data.mixing), rows)

    def _foreign(self, stage: RealTask, giver: RealTask) -> list[_Source]:
        """The giver's training files that the stage does not have, in a random order of their own."""
        names = {source_name(reference) for reference in stage.train}
        references = tuple(reference for reference in giver.train if source_name(reference) not in names)
        if not references:
            raise RecipeError(
                f"data.mixing: stage '{giver.name}' has no train file that its neighbor '{stage.name}' lacks, so it "
                "has nothing to mix in. Use data.mixing: 0, another order, or other files."
            )
        return self._sources(stage, references, "train", "mixed")

    def _check(self) -> None:
        names = [task.name for task in (*self.data.stages, *self.data.ood)]
        for name in names:
            if names.count(name) > 1:
                raise RecipeError(f"the name '{name}' is used twice in data.stages and data.ood; names must differ.")
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
        """``size`` candidates in equal shares of the files; the other files replace what an exhausted one lacks."""
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
