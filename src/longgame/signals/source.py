"""`SignalSource`: the signals of candidates, for the trainers, the audit and the quadratic world alike.

Live signals come from an engine in one shared pass. Those of the frozen base are computed once per example
(`longgame.signals.frozen`). No torch here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.errors import DataError, ModelError, PluginError, RecipeError
from longgame.seeding import stream_seed
from longgame.signals.base import ALIGNMENTS, CONTEXT, SIGNALS, Engine, Past, Signals, check_names
from longgame.signals.frozen import COLUMNS, GRADED, FrozenSignals
from longgame.signals.quality.base import (
    GRADES,
    ColumnQuality,
    DefaultQuality,
    QualitySource,
    Ratings,
    RuleQuality,
    rate,
)
from longgame.signals.texts import GROUPS, ImportanceRatios, text_of

if TYPE_CHECKING:
    from torch import nn

    from longgame.models.processes import Processes
    from longgame.signals.cache import SignalCache
    from longgame.signals.gradients import AdamPreconditioner

_T = TypeVar("_T")

_NO_PROXY = (
    "a selector requires {name}, but there is no proxy mixture. Pass proxy_dataset= to the trainer, or set "
    "proxy.items_per_skill to 1 or more in the recipe."
)
_NO_TARGET = (
    "a selector requires {name}, which compares with a target set, but there is none. Pass target_dataset= to the "
    "trainer, give --target FILE, or set proxy.items_per_skill to 1 or more in the recipe."
)
Auxiliary = Callable[[Pool, str], np.ndarray]
"""(pool, name of the signal) → its column, from a training beside the one that goes on."""
_EMBEDDED_ROWS = 2048
"""Texts that an embedder gets at a time."""


ReadLog = Callable[[Pool], tuple[Float[np.ndarray, "n e"], Float[np.ndarray, "n e"] | None]]
"""Pool → loss and token accuracy of its examples at every epoch of a training log."""


class SignalSource:
    """``source(pool, names)`` gives `Signals` under the model as it is now.

    Whoever trains sets ``step`` to the number of optimizer steps taken, so that ``future_proxy`` and
    ``target_gradient`` are measured again every ``proxy_refresh`` steps; ``step = None`` (not training) measures them
    at every call.

    Args:
        engine: computes live signals, e.g. a `SignalEngine`. One that computes alignments has ``measure_directions``
            and ``directions`` (see `SignalEngine`).
        base: context manager in which the engine computes signals of the frozen base; None: the base is gone.
        candidates: returns the pools over which ``cluster`` and ``difficulty`` are fitted; None: a stream.
        proxy: returns the proxy mixture behind ``future_proxy``; None: there is none.
        target: returns the target set, what the stage is learned for; None: there is none.
        earlier: returns examples of an audit's earlier stages, behind ``earlier_alignment``; it returns None in the
            first stage, where the signal is 0. None: stages are not known.
        evaluation: returns an audit's evaluation items, behind ``evaluation_alignment``; None: there are none.
        log: returns losses and token accuracies (n × epochs each) of a pool's examples in a training log; accuracies
            may be None. None: there is no log.
        auxiliary: trainings beside the one that goes on, behind ``influence`` and ``reference_loss``; None: there are
            none.
        scorer: another model, behind signals named ``scorer_…`` (`ScorerModel`); None: there is none.
        embedder: texts → vectors, behind ``embedding``; None: mean hidden states of the frozen base.
        preconditioner: returns Adam's moments as they are now, for ``adam_…_alignment``; None before the first step,
            or where another optimizer trains: the alignment is then the plain one.
        proxy_refresh: optimizer steps after which context vectors and the directions of alignments are measured again.
        clusters: k of the k-means behind ``cluster``.
        past: what earlier stages selected, of which clusters are fitted, too (`longgame.signals.frozen.cluster`).
        seed: of the k-means.
        supported: names of the signals that have a meaning here; default: all.
        quality: grades examples, behind ``quality`` and ``grade``; None: the column where every candidate has it, else
            rules. Of a stream each call decides by its own pool.
        rated: returns whether every candidate has the column ``quality``, where that is known for less than making the
            pools of ``candidates``.
        complexity: grades requests, behind ``complexity``; None: there is none.
        answers: returns what the model itself answers to each prompt, behind ``own_answer_quality``; None: nothing here
            generates.
        cache: stores base signals, and first live signals (`begin_stage`), across runs.
        fingerprint: content of the model as it is now, for ``cache``; None where it cannot be determined.

    Attributes:
        frozen: columns looked up by id before anything is computed: a seed's frozen pass, or what was fitted here.
        ratios: of texts (DSIR), fitted at their first use, or before it; `begin_stage` drops them.
        proxy_passes, evaluation_passes, target_passes, earlier_passes: times that the model read the proxy mixture, the
            evaluation items, the target set and the examples of earlier stages since `begin_stage`.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        base: Callable[[], AbstractContextManager[Any]] | None = None,
        candidates: Callable[[], Sequence[Pool]] | None = None,
        proxy: Callable[[], Pool] | None = None,
        target: Callable[[], Pool | None] | None = None,
        earlier: Callable[[], Pool | None] | None = None,
        evaluation: Callable[[], Pool] | None = None,
        log: ReadLog | None = None,
        auxiliary: Auxiliary | None = None,
        scorer: Engine | None = None,
        embedder: Callable[[Sequence[str]], Float[np.ndarray, "n d"]] | None = None,
        preconditioner: Callable[[], AdamPreconditioner | None] = lambda: None,
        proxy_refresh: int = 8,
        clusters: int = 8,
        past: Past | None = None,
        seed: int = 0,
        supported: Collection[str] = tuple(SIGNALS),
        quality: QualitySource | None = None,
        rated: Callable[[], bool] | None = None,
        complexity: QualitySource | None = None,
        answers: Callable[[Pool], Sequence[str]] | None = None,
        cache: SignalCache | None = None,
        fingerprint: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.engine = engine
        self.candidates, self.proxy, self.proxy_refresh = candidates, proxy, proxy_refresh
        self.target, self.evaluation, self.preconditioner = target, evaluation, preconditioner
        self.earlier = earlier
        self.log, self.auxiliary, self.scorer, self.embedder = log, auxiliary, scorer, embedder
        self.frozen: FrozenSignals | None = None
        self.step: int | None = None
        self.proxy_passes = self.evaluation_passes = self.target_passes = self.earlier_passes = 0
        self._base, self._clusters, self._seed, self._supported = base, clusters, seed, frozenset(supported)
        self._past = past
        self.cache, self._fingerprint = cache, fingerprint
        self._base_columns: dict[str, dict[str, np.ndarray]] = {}
        self._vectors: dict[str, tuple[int, np.ndarray]] = {}
        """Context vectors, each with the step at which it was measured."""
        self._directed: dict[str, int] = {}
        """Step at which the directions of each alignment were measured."""
        self._first: tuple[int, str | None] = (0, None)
        self.ratios: ImportanceRatios | None = None
        self._groups: dict[str, dict[str, int]] = {}
        """Per signal of duplicates, the group of each candidate."""
        self.quality_source = DefaultQuality() if quality is None else quality
        self._rated_by_all = rated
        self._all_rated: bool | None = None
        """Whether every candidate has the column ``quality``; None: not looked up yet."""
        self.complexity_source, self.answers = complexity, answers
        self._answer_tokens = 0
        self._ratings: dict[str, tuple[tuple[str, ...], Ratings]] = {}
        """Ratings of the last pool, by source: two signals come of one call."""
        self._processes: Processes | None = None

    @classmethod
    def of_model(cls, model: nn.Module, *, pad_token_id: int | None, seed: int = 0, **options: Any) -> SignalSource:
        """A source whose engine is a `SignalEngine` on ``model`` and whose base is ``model`` without its adapters.

        Args:
            model: a causal LM or a PeftModel. A model trained in full has no base left; see `prepare`.
            pad_token_id: fills up batches; None is refused where a signal needs the model.
            seed: of sketches and clusters.
            options: candidates, proxy, target, log, scorer, embedder, preconditioner, proxy_refresh, clusters, past,
                cache of `SignalSource`.
        """
        from longgame.models.adaptation import adaptation_of
        from longgame.signals.cache import try_fingerprint
        from longgame.signals.engine import SignalEngine

        if pad_token_id is None:
            return cls(_no_padding, base=nullcontext, seed=seed, **options)
        settings = {"pad_token_id": pad_token_id, "seed": seed}
        adaptation = adaptation_of(model)
        return cls(
            SignalEngine(model, pad_token_id=pad_token_id, seed=seed),
            base=adaptation.frozen_base if adaptation.has_base else None,
            seed=seed,
            fingerprint=lambda: try_fingerprint(model, settings=settings),
            **options,
        )

    def __call__(self, pool: Pool, names: Sequence[str]) -> Signals:
        """Compute these columns for the pool's examples.

        Raises:
            PluginError: an unknown signal, or one of a frozen base or of all candidates where there are none.
            RecipeError: a signal that compares with a proxy mixture or target set, where there is none.
            DataError: a signal that has no meaning here, or an example without text or row in the frozen pass.
            ModelError: no padding token.
        """
        check_names(names, "the caller")
        names = tuple(dict.fromkeys(names))
        columns: dict[str, np.ndarray] = {}
        shared = []
        for name in (name for name in names if name in SIGNALS):
            compute = SIGNALS[name].compute
            if self.frozen is not None and name in self.frozen:
                columns[name] = self.frozen.lookup(pool, [name])[name]
            elif name not in self._supported:
                raise DataError(
                    f"signal '{name}' is not available: it has no meaning for this model (use a selector that does not "
                    "require it), or the frozen pass is missing (call use)."
                )
            elif compute is None:
                shared.append(name)
            else:
                columns[name] = compute(self, pool)
        if shared:
            size, fingerprint = self._first
            for name in [name for name in shared if name in ALIGNMENTS]:
                items = self._direct(name)
                if items is None:
                    shared.remove(name)
                    columns[name] = np.zeros((len(pool), 2), dtype=np.float32)
                elif fingerprint is not None:  # the column depends on these items and their groups, too
                    from longgame.signals.cache import pool_fingerprint

                    halves = blake2b(half_weights(items).astype("<f8").tobytes(), digest_size=16).hexdigest()
                    fingerprint = f"{fingerprint}-{pool_fingerprint(items)}-{halves}"
            if shared:
                columns |= self._run(pool, shared, fingerprint if self.step == 0 and len(pool) == size else None)
        context = {name: self._context(name) for name in names if name in CONTEXT}
        return Signals(pool.ids, _narrowed(columns), _narrowed(context))

    def share(self, processes: Processes) -> None:
        """Share the work between the processes of one training, which all call with the same pools.

        Engines share their batches. What an embedder, a quality source or ``auxiliary`` gives comes of one process.
        """
        self._processes = processes
        engines: tuple[Any, ...] = (self.engine, getattr(self.scorer, "engine", None))
        for engine in engines:
            if hasattr(engine, "processes"):
                engine.processes = processes

    def _in_one(self, work: Callable[[], _T]) -> _T:
        """What the work gives, done in one of the processes."""
        return work() if self._processes is None else self._processes.first(work)

    def begin_stage(self, first: Pool | None = None) -> None:
        """Start counting steps at 0 and forget context vectors.

        Args:
            first: a pool whose live signals before the first step are stored in the cache. Give it where the model is
                untouched: all trials of a seed then see the same signals at their first choice from the whole pool.
        """
        self.step, self._vectors, self._directed = 0, {}, {}
        self.proxy_passes = self.evaluation_passes = self.target_passes = self.earlier_passes = 0
        self.ratios, self._groups, self._all_rated = None, {}, None
        self._answer_tokens = 0
        self._first = (0, None) if first is None else (len(first), self._content())

    def end_stage(self) -> None:
        """Stop counting steps: from now on context vectors are measured at every call."""
        self.step, self._vectors, self._directed, self._first = None, {}, {}, (0, None)

    def prepare(self, names: Sequence[str]) -> None:
        """Compute base signals of all candidates now if the model will have no base once it is trained.

        Call it before training starts; with adapters, or where no name needs the base, it does nothing.
        """
        table = {**SIGNALS, **CONTEXT}
        needed = any("base" in table[name].needs for name in names if name in table)
        if needed and self._base is None and self.candidates is not None and self.frozen is None:
            items = self.target_items("target_embedding") if "target_embedding" in names else None
            self.frozen = self.freeze(self.candidates(), items)

    def freeze(
        self,
        pools: Sequence[Pool],
        extra: Pool | None = None,
        *,
        quality: bool = False,
        also: Sequence[str] = (),
    ) -> FrozenSignals:
        """Return base signals, difficulty and clusters of all candidates (a model without adapters must be untouched).

        Args:
            pools: candidates of each stage.
            extra: examples that are no candidates, such as proxy items (see `FrozenSignals.extended`).
            quality: add the column ``quality``.
            also: further columns of quality sources: ``grade``, ``complexity``.

        Raises:
            DataError, NumericalError: as `FrozenSignals.build`.
        """
        content = self._content()

        def columns_of(pool: Pool) -> dict[str, np.ndarray]:
            with (self._base or nullcontext)():
                columns = self._run(pool, ("loss",) if self.embedder else ("embedding", "loss"), content)
            columns = {"embedding": self.embedded(pool), **columns} if self.embedder else columns
            scores = {"quality": self._rated("quality", pool).quality} if quality else {}
            scores |= {name: self.grades(pool, name) for name in also}
            return {"embedding": columns["embedding"], "base_loss": columns["loss"], **scores}

        parts = [columns_of(pool) for pool in pools]
        columns = {name: [part[name] for part in parts] for name in parts[0]} if parts else {}
        frozen = FrozenSignals.build(pools, columns, self._clusters, self._seed, self._past)
        return frozen if extra is None else frozen.extended(extra, columns_of(extra))

    def state_dict(self) -> dict[str, Any]:
        """Return the context vectors in use with their steps, and the frozen columns where no base is left."""
        frozen = self.frozen.to_arrays() if self.frozen is not None and self._base is None else {}
        vectors = {name: {"step": step, "vector": vector} for name, (step, vector) in self._vectors.items()}
        engine: Any = self.engine
        directions = {"steps": dict(self._directed), "of": engine.directions} if self._directed else {}
        return {"vectors": vectors, "directions": directions, "frozen": frozen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._vectors = {
            name: (int(entry["step"]), np.asarray(entry["vector"])) for name, entry in state["vectors"].items()
        }
        if directions := state["directions"]:
            engine: Any = self.engine
            self._directed = {name: int(step) for name, step in directions["steps"].items()}
            engine.directions = directions["of"]
        if state["frozen"]:
            frozen = state["frozen"]
            self.frozen = FrozenSignals.from_arrays(frozen, [name for name in (*COLUMNS, *GRADED) if name in frozen])

    # What computed signals draw on (`longgame.signals.base.Provider`)

    def live(self, pool: Pool, name: str) -> np.ndarray:
        return self._run(pool, (name,))[name]

    def of_base(self, pool: Pool, name: str) -> np.ndarray:
        if name == "embedding" and self.embedder is not None:
            return self._once(name, pool, self.embedded)
        base = self._require_base(name)

        def measure(part: Pool) -> np.ndarray:
            with base():
                return self._run(part, (name,), self._content())[name]

        return self._once(name, pool, measure)

    def of_scorer(self, pool: Pool, name: str) -> np.ndarray:
        if self.scorer is None:
            raise RecipeError(
                f"signal '{name}' is that of a scorer model, and there is none. Give one: --scorer-model, "
                "model.scorer_model in a recipe, SelectionConfig(scorer_model=…) in a trainer."
            )
        scorer = self.scorer
        return self._once(name, pool, lambda part: scorer(part, (name,))[name])

    def _once(self, name: str, pool: Pool, measure: Callable[[Pool], np.ndarray]) -> np.ndarray:
        """A column that never changes, measured once for each example."""
        stored = self._base_columns.setdefault(name, {})
        fresh = [row for row, sample_id in enumerate(pool.ids) if sample_id not in stored]
        if fresh:
            column = measure(pool.take(fresh))
            stored.update(zip([pool.ids[row] for row in fresh], column, strict=True))
        return np.stack([stored[sample_id] for sample_id in pool.ids])

    def embedded(self, pool: Pool) -> Float[np.ndarray, "n d"]:
        """Return the vectors of the pool's texts by the embedder, float32."""
        embedder = self.embedder
        if embedder is None:
            raise PluginError("texts are to be embedded, and there is no embedder.")

        def embed() -> Float[np.ndarray, "n d"]:
            examples, parts = iter(pool.examples), []
            while texts := [text_of(example) for example in islice(examples, _EMBEDDED_ROWS)]:
                parts.append(np.asarray(embedder(texts), dtype=np.float32))
            return np.concatenate(parts)

        return self._in_one(embed)

    def fitted(self, pool: Pool, name: str) -> np.ndarray:
        pools = self._all_candidates(name)
        self._require_base(name)
        self.frozen = self.freeze(pools)
        return self.frozen.lookup(pool, [name])[name]

    def quality(self, pool: Pool) -> np.ndarray:
        is_default = isinstance(self.quality_source, DefaultQuality)
        if is_default and self._is_rated_alone(pool):  # by rules, as the others: one scale from choice to choice
            examples = tuple(dataclasses.replace(example, quality=None) for example in pool.examples)
            pool = dataclasses.replace(pool, examples=examples)
        if is_default and any(example.quality is None and not example.response for example in pool.examples):
            raise DataError(
                "quality is scored from the text, and candidates carry none. Pass the tokenizer as processing_class, "
                "or give the dataset a 'quality' column in [0, 1]."
            )
        return self._rated("quality", pool).quality

    def _is_rated_alone(self, pool: Pool) -> bool:
        """Whether these candidates have the column ``quality``, and others lack it; of a stream that is not known."""
        if (self._rated_by_all is None and self.candidates is None) or any(
            example.quality is None for example in pool.examples
        ):
            return False
        if self._all_rated is None and self._rated_by_all is not None:
            self._all_rated = self._rated_by_all()
        elif self._all_rated is None:
            pools = self._all_candidates("quality")
            self._all_rated = all(example.quality is not None for part in pools for example in part.examples)
        return not self._all_rated

    def grades(self, pool: Pool, name: str) -> np.ndarray:
        source = self.complexity_source if name == "complexity" else self.quality_source
        if source is None or isinstance(source, DefaultQuality):
            option = "complexity" if name == "complexity" else "quality"
            raise RecipeError(
                f"a selector requires {name}, which a {option} source gives, and none is named. Give --{option} SOURCE "
                f"({option}: in a recipe or SelectionConfig), such as judge:FILE.yaml, reward:MODEL or column:NAME."
            )
        return self._rated("complexity" if name == "complexity" else "quality", pool).grade

    def answer_quality(self, pool: Pool) -> np.ndarray:
        if self.answers is None:
            raise RecipeError(
                "a selector requires own_answer_quality, for which the model generates answers, and nothing generates "
                "here. Use it in longgame select, in an audit, or pass signals=SignalSource(…, answers=…)."
            )
        answers = self._in_one(functools.partial(self.answers, pool))
        graded = [row for row, answer in enumerate(answers) if answer.strip()]
        examples = [
            dataclasses.replace(pool.examples[row], response=answers[row], quality=None, columns=None, source=None)
            for row in graded
        ]
        source = RuleQuality() if isinstance(self.quality_source, DefaultQuality) else self.quality_source
        if source.columns or isinstance(source, ColumnQuality):
            raise RecipeError(
                "a selector requires own_answer_quality, and the quality source is a column, which cannot grade a new "
                "answer. Name another one (--quality rules, reward:MODEL or judge:FILE.yaml)."
            )
        quality = np.zeros(len(pool), dtype=np.float32)  # an empty answer is no answer
        quality[graded] = self._in_one(lambda: rate(source, examples)).quality
        self._answer_tokens += source.tokens(examples)
        return quality

    def named_grades(self) -> list[str]:
        """Columns of `GRADED` that named sources give."""
        named = [] if isinstance(self.quality_source, DefaultQuality) else ["grade"]
        return named if self.complexity_source is None else [*named, "complexity"]

    def graded_tokens(self, pool: Pool, names: Sequence[str]) -> int:
        """Tokens that judges and reward models read and wrote since `begin_stage` for these signals of the pool.

        Grades of the candidates count in full, whoever asked for them first.
        """
        sources = dict.fromkeys(
            self.complexity_source if name == "complexity" else self.quality_source for name in names if name in GRADES
        )
        return self._answer_tokens + sum(source.tokens(pool.examples) for source in sources if source is not None)

    def _rated(self, kind: str, pool: Pool) -> Ratings:
        source = self.complexity_source if kind == "complexity" else self.quality_source
        ids, ratings = self._ratings.get(kind, ((), None))
        if ratings is None or ids != pool.ids:
            ratings = self._in_one(lambda: rate(source or DefaultQuality(), pool.examples))
            self._ratings[kind] = (pool.ids, ratings)
        return ratings

    def _all_candidates(self, name: str) -> Sequence[Pool]:
        if self.candidates is None:
            raise PluginError(
                f"'{name}' is fitted over all candidates, but the candidates are a stream, which cannot be read as a "
                "whole. Use a dataset with a length, or pass signals=."
            )
        return self.candidates()

    def text_ratio(self, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
        if self.ratios is None:
            target = self.target_items("dsir_ratio").examples
            self.ratios = ImportanceRatios(target, self._all_candidates("dsir_ratio"))
        return self.ratios.of(pool)

    def duplicates(self, pool: Pool, name: str) -> np.ndarray:
        if name not in self._groups:
            pools = self._all_candidates(name)
            ids = [sample_id for part in pools for sample_id in part.ids]
            groups = GROUPS[name](ids, chain.from_iterable(part.examples for part in pools))
            self._groups[name] = dict(zip(ids, groups.tolist(), strict=True))
        number = self._groups[name]
        # an example of another stage that is replayed is a group of its own
        return np.asarray([number.get(name, -stream_seed(0, name) % 2**62 - 1) for name in pool.ids], dtype=np.int64)

    def logged(self, pool: Pool, name: str) -> np.ndarray:
        if self.log is None:
            raise RecipeError(
                f"signal '{name}' is read of a training log, and there is none. Give one: --training-log in longgame "
                "select (or --model, which is trained to make it), SelectionConfig(trajectories=…) in a trainer."
            )
        losses, accuracies = self.log(pool)
        if name == "loss_trajectory":
            return losses
        if accuracies is None:
            raise DataError(
                f"signal '{name}' reads token accuracies, and the training log has no column token_accuracy. Log it, "
                "or use a selector of loss trajectories, such as cartography."
            )
        return accuracies

    def of_auxiliary(self, pool: Pool, name: str) -> np.ndarray:
        if self.auxiliary is None:
            raise RecipeError(
                f"'{name}' comes from a training beside this one, which an audit and longgame select do. Use the "
                "selector there, or score the data and pass signals=ScoreFolder(…), of longgame.offline.scoring. A "
                "reference model is named by SelectionConfig(reference_model=…)."
            )
        return self._in_one(functools.partial(self.auxiliary, pool, name))

    def _run(self, pool: Pool, names: Sequence[str], fingerprint: str | None = None) -> dict[str, np.ndarray]:
        if self.cache is None:
            return dict(self.engine(pool, names))
        return self.cache(self.engine, pool, names, fingerprint)

    def _require_base(self, name: str) -> Callable[[], AbstractContextManager[Any]]:
        if self._base is None:
            raise PluginError(
                f"'{name}' of the frozen base model is needed, but no base is left: the model is trained in full, its "
                "adapter was taken out of the base weights (PiSSA, OLoRA), or no frozen pass was given (call use). "
                "Train an adapter, or pass signals= with stored columns."
            )
        return self._base

    def _content(self) -> str | None:
        """Content of the model as it is now, where there is a cache."""
        return None if self.cache is None else self._fingerprint()

    def _direct(self, name: str) -> Pool | None:
        """Measure the directions of this alignment, at most ``proxy_refresh`` steps old in training.

        Returns the items whose gradients they are; None in the first stage for those of earlier stages.
        """
        needs = SIGNALS[name].needs
        items: Pool | None
        if "earlier" in needs:
            if self.earlier is None:
                raise RecipeError(
                    f"a selector requires {name}, and only an audit knows the candidates of earlier stages. Use the "
                    "selector in an audit, or set earlier_weight to 0 and drop_conflicts to false."
                )
            items = self.earlier()
            if items is None:
                return None
        elif "target" in needs:
            items = self.target_items(name)
        elif "evaluation" in needs:
            if self.evaluation is None:
                raise RecipeError(
                    f"a selector requires {name}, and only an audit has evaluation items. Use the selector in an audit."
                )
            items = self.evaluation()
        elif self.proxy is None:
            raise RecipeError(_NO_PROXY.format(name=name))
        else:
            items = self.proxy()
        if self.step is None or name not in self._directed or self.step - self._directed[name] >= self.proxy_refresh:
            engine: Any = self.engine
            engine.measure_directions(
                items, half_weights(items), name, self.preconditioner() if "optimizer" in needs else None
            )
            self._directed[name] = self.step or 0
            source = next(need for need in ("earlier", "target", "evaluation", "proxy") if need in needs)
            setattr(self, passes := f"{source}_passes", getattr(self, passes) + 1)
        return items

    def target_items(self, name: str) -> Pool:
        """Return the target set for a signal of this name.

        Raises:
            RecipeError: there is none.
        """
        items = None if self.target is None else self.target()
        if items is None:
            raise RecipeError(_NO_TARGET.format(name=name))
        return items

    def _context(self, name: str) -> np.ndarray:
        if name != "target_embedding":
            return self._mean_gradient(name)
        items = self.target_items(name)
        if self.frozen is not None and "embedding" in self.frozen and self.frozen.names_all(items):
            return self.frozen.lookup(items, ["embedding"])["embedding"]
        return self.of_base(items, "embedding")

    def _mean_gradient(self, name: str) -> Float[np.ndarray, " d"]:
        """Mean gradient sketch of the proxy mixture or target set, at most ``proxy_refresh`` steps old in training."""
        of_target = "target" in CONTEXT[name].needs
        if of_target:
            items = self.target_items(name)
        elif self.proxy is None:
            raise RecipeError(_NO_PROXY.format(name=name))
        else:
            items = self.proxy()
        measured = self._vectors.get(name)
        if self.step is None or measured is None or self.step - measured[0] >= self.proxy_refresh:
            gradient = self._run(items, ("grad_sketch",))["grad_sketch"].mean(axis=0)
            measured = self._vectors[name] = (self.step or 0, gradient)
            self.target_passes += of_target
            self.proxy_passes += not of_target
        return measured[1]


def half_weights(pool: Pool) -> Float[np.ndarray, "n 2"]:
    """Weights of the items' unit gradients in the directions of both halves of the proxy mixture (or of other items).

    Items of one capability (`Example.skill`) are a group. Each group is split into two halves, every second item; a
    half's direction is the mean over groups of the mean of its gradients at unit length, so that neither a long
    gradient nor a large group rules it. Groups of one item take turns in the halves.
    """
    groups: dict[str, list[int]] = {}
    for row, example in enumerate(pool.examples):
        groups.setdefault(example.skill or "", []).append(row)
    weights, turn = np.zeros((len(pool), 2)), 0
    for rows in groups.values():
        halves = [rows[0::2], rows[1::2]]
        if len(rows) == 1:
            halves = halves[::-1] if turn else halves
            turn = 1 - turn
        for half, chosen in enumerate(halves):
            weights[chosen, half] = 1.0 / max(1, len(chosen))
    groups_in_half = [max(1, sum(bool(weights[rows, half].any()) for rows in groups.values())) for half in (0, 1)]
    return weights / groups_in_half


def _narrowed(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """These columns in float32 (integers stay as they are)."""
    return {
        name: column if column.dtype.kind == "i" else column.astype(np.float32, copy=False)
        for name, column in columns.items()
    }


def _no_padding(pool: Pool, names: Sequence[str]) -> Mapping[str, np.ndarray]:
    raise ModelError(
        f"no padding token is known, and {len(pool)} candidates are scored in padded batches for {', '.join(names)}. "
        "Pass a tokenizer with a pad token as processing_class."
    )
