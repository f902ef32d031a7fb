"""The data of one seed: per stage its pool, validation, OOD and proxy items, generated or drawn from files."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from longgame.data.examples import Example, SequenceData, Stage, Task, with_unique_ids
from longgame.data.orders import pool_shares, resolve_order, walk
from longgame.data.sources import Split, load_examples, source_name
from longgame.data.synthetic.sequence import build_procedural_sequence
from longgame.errors import DataError, RecipeError
from longgame.recipe import RealTask, Recipe, brings_items
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


class TooFewRowsError(DataError):
    """Files hold fewer examples that can be used than a key of the recipe asks for.

    Attributes:
        key: of the recipe.
        rows: that can be used.
    """

    def __init__(self, message: str, key: str = "", rows: int = 0) -> None:
        super().__init__(message)
        self.key, self.rows = key, rows


class _Source:
    """One file in the seed's random order; every example is drawn at most once."""

    def __init__(self, name: str, examples: list[Example], fits: Fits | None, seed: int, *stream: str) -> None:
        self.name = name
        self.size = len(examples)
        self.too_long = 0
        self.used_before = 0
        self.too_alike = 0
        self.examples = examples
        self._fits = fits
        self._order: Iterator[int] = iter(generator(seed, "files", *stream, name).permutation(len(examples)).tolist())

    def next(self, used: set[str], evaluation: EvaluationPrompts | None = None) -> Example | None:
        """The next example that fits, is unused and repeats no evaluation prompt; None at the end of the file."""
        for row in self._order:
            example = self.examples[row]
            if example.sample_id in used:
                self.used_before += 1
            elif evaluation is not None and evaluation.has_like(example):
                self.too_alike += 1
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
        if self.too_alike:
            parts.append(f"{self.too_alike} with the prompt of an evaluation item, or nearly")
        return f"{self.name} ({', '.join(parts)})"


class _FileSequence:
    """Draws evaluation items first, then proxy items, then pools, so that all are disjoint by content.

    A candidate or proxy item with the prompt of an evaluation item, or nearly (`EvaluationPrompts`), is skipped, too.
    What is mixed into a pool from its neighbors' files is drawn last, so a stage's own candidates do not depend on it.
    """

    def __init__(self, recipe: Recipe, seed: int, fits: Fits | None) -> None:
        self.recipe, self.seed, self.fits = recipe, seed, fits
        self.data = recipe.data
        self.folder = Path(recipe.data.data_dir) if recipe.data.data_dir is not None else None
        self.used: set[str] = set()
        self.evaluation = EvaluationPrompts()
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
                    if not references and not (key == "eval" and brings_items(task.scorers)):
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
                self._read[key] = load_examples(
                    reference,
                    data_dir=self.folder,
                    split=split,
                    turns=self.data.turns,
                    quality=self.data.quality_range,
                    columns=self.recipe.graded_columns(),
                )
            name = source_name(reference)
            sources.append(_Source(name, self._read[key], self.fits, self.seed, task.name, split, *stream))
        return sources

    def _task(self, spec: RealTask, kind: str, items: int) -> Task:
        """``items`` per evaluation file; a file is a sub-skill."""
        drawn: list[Example] = []
        option = "items_per_skill" if kind == "stage" else "ood_items_per_skill"
        for source in self._sources(spec, spec.eval, "eval"):
            self.evaluation.add_wording(_text_of(example) for example in source.examples)
            for number in range(items):
                example = source.next(self.used)
                if example is None:
                    raise TooFewRowsError(
                        f"'{spec.name}' needs {items} evaluation items of {source}, but only {number} can be used. "
                        f"Lower data.{option} to {number}, raise model.max_length, or give a larger file.",
                        f"data.{option}",
                        number,
                    )
                self.used.add(example.sample_id)
                self.evaluation.add(example)
                drawn.append(example)
            self._report(spec.name, source)
        return Task(spec.name, tuple(drawn), kind, spec.scorers, spec.max_new_tokens)

    def _proxy(self, sources: list[_Source]) -> tuple[Example, ...]:
        """``proxy.items_per_skill`` of every training file."""
        drawn = []
        for source in sources:
            for number in range(self.recipe.proxy.items_per_skill):
                example = source.next(self.used, self.evaluation)
                if example is None:
                    raise TooFewRowsError(
                        f"the future-proxy mixture needs {self.recipe.proxy.items_per_skill} items of {source}, but "
                        f"only {number} can be used. Lower proxy.items_per_skill or give a larger file.",
                        "proxy.items_per_skill",
                        number,
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
                example = source.next(self.used, self.evaluation)
                if example is None:
                    open_sources.remove(source)
                else:
                    drawn.append(example)
        if len(drawn) < size:
            raise TooFewRowsError(
                f"stage '{spec.name}' needs a pool of {size} candidates but its files give "
                f"{len(drawn)}: {'; '.join(str(source) for source in sources)}. "
                f"Lower data.pool_size to {len(drawn)}, raise model.max_length, or add files."
                if size == self.data.pool_size
                else f"the pool of stage '{spec.name}' needs {size} candidates (data.mixing {self.data.mixing:g}) of "
                f"these files, which give {len(drawn)}: {'; '.join(str(source) for source in sources)}. "
                "Lower data.pool_size, change data.mixing, raise model.max_length, or add files.",
                "data.pool_size",
                len(drawn),
            )
        self.used.update(example.sample_id for example in drawn)
        for source in sources:
            self._report(spec.name, source)
        return tuple(drawn)

    def _report(self, task: str, source: _Source) -> None:
        if source.too_long:
            _log.info("'%s': passed over while drawing from %s", task, source)


# Evaluation prompts in training data: files never give a near-duplicate of one, and any sequence's are counted.

Words = tuple[str, ...]

_WORD = re.compile(r"\w+|[-+*/=<>^%]")
_QUOTED = re.compile(r"`[^`]*`|\"[^\"]*\"|(?<!\w)'[^']*'")
_CHUNK, _OF_PATH = re.compile(r"\S+"), re.compile(r"[/~][a-z.]")
"""Text without blanks, and what makes a path of it."""
_ALIKE = 0.5
"""Jaccard index of two prompts' word triples from which one nearly repeats the other."""
_RUN = 8
"""Words in a row that count as shared text."""
_WORDING, _LEAST_WORDING = 0.05, 2
"""A run of words in more than this share of a file's or sub-skill's prompts, and in more than two, is its wording."""
_WORTH_A_WARNING = 0.25
"""Share of candidates with shared text that is warned of."""


def _text_of(example: Example) -> str:
    """The prompt with all turns; empty for plain text."""
    turns = example.turns
    return " ".join(content for _, content in turns)


def _prompt_key(example: Example) -> str:
    """The prompt without case and spacing; empty for plain text."""
    return " ".join(_text_of(example).casefold().split())


def _runs(text: str, length: int) -> set[Words]:
    """Runs of so many words (and signs of arithmetic), without case; a shorter text is one run, an empty one none."""
    words = tuple(_WORD.findall(text.casefold()))
    return {words[start : start + length] for start in range(max(1, len(words) - length + 1))} - {()}


def _triples(text: str) -> set[Words]:
    """Runs of three words, with one word for each quoted text or path."""
    return _runs(without_values(text.casefold()), 3)


def without_values(text: str) -> str:
    """The text with the word "value" for each quoted text and path, which are what a template is filled with.

    The leftmost wins, a quoted text before a path; a path ends at the next blank. Time is linear in the text.
    """
    paths = []
    for chunk in _CHUNK.finditer(text):
        marks = [mark.start() for mark in _OF_PATH.finditer(text, *chunk.span())]
        if marks:
            paths.append((chunk.start(), marks[-1], chunk.end()))
    paths.reverse()
    pieces: list[str] = []
    place, quoted = 0, _QUOTED.search(text)
    while True:
        if quoted is not None and quoted.start() < place:
            quoted = _QUOTED.search(text, place)
        while paths and paths[-1][1] < place:
            paths.pop()
        begin = max(place, paths[-1][0]) if paths else None
        if quoted is not None and (begin is None or quoted.start() <= begin):
            begin, end = quoted.span()
        elif begin is not None:
            end = paths[-1][2]
        else:
            return "".join(pieces) + text[place:]
        pieces.append(text[place:begin] + " value ")
        place = end


def _wording(runs: Sequence[set[Words]]) -> set[Words]:
    """Runs that many of the texts have: the instruction around the content."""
    least = max(_LEAST_WORDING, _WORDING * len(runs))
    return {run for run, count in Counter(itertools.chain.from_iterable(runs)).items() if count > least}


class EvaluationPrompts:
    """Prompts of evaluation items; finds what repeats one, or nearly.

    A prompt nearly repeats another if the Jaccard index of their word triples is at least `_ALIKE`: the same scenario
    with another ending, or the same template, as quoted texts and paths all count as one word. Triples of the wording
    that an evaluation file's prompts share do not count: two tasks behind one instruction are not alike.
    """

    def __init__(self) -> None:
        self._exact: set[str] = set()
        self._wording: set[Words] = set()
        self._triples: list[set[Words]] = []
        self._with: dict[Words, list[int]] = {}

    def add_wording(self, texts: Iterable[str]) -> None:
        """Add what all the prompts of an evaluation file have in common."""
        self._wording |= _wording([_triples(text) for text in texts])

    def add(self, example: Example) -> None:
        """Add an evaluation item, after the wording of its file."""
        key = _prompt_key(example)
        if not key:
            return
        self._exact.add(key)
        triples = _triples(key) - self._wording
        for triple in triples:
            self._with.setdefault(triple, []).append(len(self._triples))
        self._triples.append(triples)

    def has_like(self, example: Example) -> bool:
        """Whether the example's prompt is that of an evaluation item, or nearly."""
        key = _prompt_key(example)
        if key in self._exact:
            return True
        triples = _triples(key) - self._wording
        shared = Counter(row for triple in triples for row in self._with.get(triple, ()))
        return any(count >= _ALIKE * (len(triples) + len(self._triples[row]) - count) for row, count in shared.items())


@dataclass(frozen=True, slots=True)
class Contamination:
    """How much of the evaluation items' prompts stands in the pools."""

    candidates: int
    """Of all stages."""
    same_prompt: int
    """Candidates with the prompt of an evaluation item of any stage or OOD set, but for case and spacing."""
    shared_text: int
    """Candidates whose prompt shares a run of eight words with one, these included; the wording of a sub-skill's items
    does not count (a run in more than 5 % of them)."""

    @property
    def is_much(self) -> bool:
        """Whether it is worth a warning: a prompt is the same, or a quarter of the candidates shares text."""
        return self.same_prompt > 0 or self.shared_text > _WORTH_A_WARNING * self.candidates

    def __str__(self) -> str:
        share = self.shared_text / max(1, self.candidates)
        return (
            f"of {self.candidates:,} candidates {self.same_prompt:,} have the prompt of an evaluation item and "
            f"{self.shared_text:,} ({100 * share:.1f} %) share eight words in a row with one"
        )

    @staticmethod
    def total(parts: Collection[Contamination]) -> Contamination:
        """The sum over sequences."""
        names = [field.name for field in dataclasses.fields(Contamination)]
        return Contamination(*(sum(getattr(part, name) for part in parts) for name in names))


def measure_contamination(sequence: SequenceData) -> Contamination:
    """Compare the prompts of all candidates with those of the evaluation items of all stages and OOD sets."""
    skills: dict[tuple[str, str | None], list[str]] = {}
    for task in sequence.tasks:
        for item in task.items:
            skills.setdefault((task.name, item.skill), []).append(_prompt_key(item))
    exact = {key for keys in skills.values() for key in keys} - {""}
    wording = {run for keys in skills.values() for run in _wording([_runs(key, _RUN) for key in keys])}
    runs = {run for key in exact for run in _runs(key, _RUN)} - wording
    keys = [_prompt_key(candidate) for stage in sequence.stages for candidate in stage.candidates]
    same = [key in exact for key in keys]
    shared = [repeats or not runs.isdisjoint(_runs(key, _RUN)) for repeats, key in zip(same, keys, strict=True)]
    return Contamination(len(keys), sum(same), sum(shared))
