"""The learner with a real language model behind it: transformers, PEFT, and the selection trainer."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from longgame.data.examples import Pool, SequenceData, Stage, Task, earlier_items
from longgame.errors import RecipeError, ResumeError
from longgame.evaluation.evaluator import Evaluator
from longgame.evaluation.scorers import Score
from longgame.models.adaptation import adapt
from longgame.models.device import attention_of, device_name, device_of
from longgame.models.embedders import Embedder, load_embedder
from longgame.models.load import load_again
from longgame.recipe import EMBEDDER, Recipe
from longgame.seeding import stream_seed
from longgame.selection.policy import SelectionPolicy
from longgame.signals.auxiliary import AuxiliarySpec
from longgame.signals.base import EMBEDDED, SIGNALS, Signals, needs_auxiliary
from longgame.signals.cache import SignalCache, try_fingerprint
from longgame.signals.engine import SignalEngine
from longgame.signals.frozen import FrozenSignals
from longgame.signals.quality.base import ANSWER_TOKENS, QualitySources
from longgame.signals.scorer_model import ScorerModel
from longgame.signals.source import SignalSource
from longgame.storage import cache_dir, read_json
from longgame.training.auxiliary import ModelAuxiliary
from longgame.training.config import SelectionConfig
from longgame.training.schedule import StepInfo, TrainingReport, warmup_of
from longgame.training.stage import run_stage


class HFLearner:
    """A transformers causal LM that is adapted as the recipe says, as the audit's `Learner`.

    Args:
        recipe: model, training, proxy and metric sections are read.
        seed: the trial's seed; fixes the adapter's initial A factors (B starts at 0, so ∂L/∂A = 0 at the first step).
    """

    def __init__(self, recipe: Recipe, seed: int) -> None:
        device = device_of(recipe.model.device)
        self._attention = attention_of(recipe.model.attention, device)
        loaded = load_again(recipe.model, attention=self._attention)
        self.recipe = recipe
        self.seed = seed
        self.tokenizer = loaded.tokenizer
        self.adaptation = adapt(loaded.model, recipe.model, stream_seed(seed, "adapter"))
        self.model = self.adaptation.model
        if device.type != "cpu":
            # after the adapter, so that its first factors are the same on every device
            torch.nn.Module.to(self.model, device)
        self._weights = loaded.source
        pad = loaded.pad_token_id
        settings: dict[str, Any] = {"pad_token_id": pad, "seed": stream_seed(seed, "sketch")}
        grading = QualitySources.of(recipe.quality, recipe.complexity)
        self.source = SignalSource(
            SignalEngine(self.model, **settings),
            quality=grading.quality,
            complexity=grading.complexity,
            answers=lambda pool: self.evaluator.answers(pool.examples, ANSWER_TOKENS),
            proxy_refresh=recipe.proxy.refresh_steps,
            clusters=recipe.metrics.clusters,
            scorer=self._scored,
            embedder=None if recipe.model.embedder == EMBEDDER else self._embedded,
            seed=stream_seed(seed, "clusters"),
            cache=SignalCache(cache_dir() / "signals"),
            fingerprint=lambda: try_fingerprint(self.model, tokenizer=self.tokenizer, settings=settings),
        )
        self.evaluator = Evaluator(
            self.model,
            self.tokenizer,
            pad_token_id=pad,
            max_length=recipe.model.max_length,
            run_model_code=recipe.data.run_model_code,
        )
        self.pad_token_id = pad
        self._stage = 0
        self._flops = self.adaptation.flops()

    def describe(self) -> dict[str, str]:
        parameter = next(self.model.parameters())
        device, dtype = device_name(parameter.device), str(parameter.dtype)
        return {"weights": self._weights, "device": device, "dtype": dtype, "attention": self._attention}

    def prepare(self, sequence: SequenceData) -> dict[str, np.ndarray]:
        pools = [stage.pool for stage in sequence.stages]
        return self.source.freeze(pools, sequence.proxy_pool, quality=True, also=self.source.named_grades()).to_arrays()

    def use(self, sequence: SequenceData, frozen: dict[str, np.ndarray], walked: Sequence[Stage] | None = None) -> None:
        self.source.frozen = FrozenSignals.from_arrays(frozen)
        proxy = sequence.proxy_pool
        self.source.proxy = None if proxy is None else lambda: proxy
        stages = sequence.stages if walked is None else walked
        self.source.target = lambda: stages[self._stage].target_pool
        self.source.earlier = lambda: earlier_items(stages[: self._stage])
        self.source.evaluation = lambda: sequence.evaluation_pool

    def signals(self, pool: Pool, names: Sequence[str]) -> Signals:
        return self.source(pool, names)

    def train(
        self,
        pool: Pool,
        policy: SelectionPolicy,
        selection: SelectionConfig,
        steps: int,
        on_step: Callable[[StepInfo], None] | None = None,
    ) -> TrainingReport:
        spec = self.recipe.training
        warmup = warmup_of(spec, steps)
        before = self.adaptation.copy()
        live = any(name in SIGNALS and SIGNALS[name].live for name in policy.selector.requires)
        # Online, trials would share one step's candidates only: less than looking them up costs.
        shared = live and self._stage == 0 and selection.rounds != "step"
        self.source.begin_stage(pool if shared else None)
        self.source.candidates = lambda: [pool]  # signals of texts are fitted over them
        started = time.perf_counter()
        needed = bool(needs_auxiliary(policy.required))
        auxiliary = self._auxiliary(pool, policy, selection, steps) if needed else None
        seconds = time.perf_counter() - started
        report = run_stage(
            self.model,
            pad_token_id=self.pad_token_id,
            pool=pool,
            policy=policy,
            selection=selection,
            spec=spec.model_copy(update={"warmup_steps": warmup, "steps": steps}),
            scorer=self.source,
            on_step=on_step,
            where=f"stage {self._stage + 1}",
            sketch_seed=stream_seed(self.seed, "sketch"),
        )
        graded = self.source.graded_tokens(pool, policy.required)
        self.source.end_stage()
        self.source.auxiliary = self.source.log = None
        self._stage += 1
        drift, norm = self.adaptation.movement(before)
        read, flops = self._other_models(pool, policy.required)
        return dataclasses.replace(
            report,
            drift=drift,
            update_norm=norm,
            model=self._flops,
            seconds={**report.seconds, "select": report.seconds["select"] + seconds},
            auxiliary_tokens=graded + read + (0 if auxiliary is None else auxiliary.tokens),
            auxiliary_flops=(math.nan if graded else 0.0) + flops + (0.0 if auxiliary is None else auxiliary.flops),
            embedded=self.recipe.model.embedder != EMBEDDER,
            proxy_passes=self.source.proxy_passes,
            target_passes=self.source.target_passes,
            earlier_passes=self.source.earlier_passes,
            evaluation_passes=self.source.evaluation_passes,
        )

    @cached_property
    def scorer(self) -> ScorerModel:
        """The scorer model, loaded at its first use.

        Raises:
            RecipeError: the recipe names none.
        """
        spec = self.recipe.model
        if spec.scorer_model is None:
            raise RecipeError(
                "a selector asks a scorer model, and the recipe names none. Set model.scorer_model to a model, such as "
                "a smaller one than model.name."
            )
        with self.recipe.paths():
            return ScorerModel(
                spec.scorer_model,
                device=str(next(self.model.parameters()).device),
                seed=stream_seed(self.seed, "sketch"),
                trust_remote_code=spec.trust_remote_code,
            )

    def _scored(self, pool: Pool, names: Sequence[str]) -> dict[str, np.ndarray]:
        return self.scorer(pool, names)

    @cached_property
    def embedder(self) -> Embedder:
        """The embedder, loaded at its first use."""
        spec, device = self.recipe.model, str(next(self.model.parameters()).device)
        with self.recipe.paths():
            return load_embedder(spec.embedder, device=device, trust_remote_code=spec.trust_remote_code)

    def _embedded(self, texts: Sequence[str]) -> np.ndarray:
        return self.embedder.encode(texts)

    def _other_models(self, pool: Pool, names: Sequence[str]) -> tuple[int, float]:
        """Tokens that other models than the trained one read to give a pool these signals, and their FLOPs."""
        asked = [name for name in names if name in SIGNALS and "scorer" in SIGNALS[name].needs]
        tokens, flops = self.scorer.work(pool, asked) if asked else (0, 0.0)
        if self.recipe.model.embedder == EMBEDDER or EMBEDDED.isdisjoint(names):
            return tokens, flops
        read = int(pool.tokens.sum())  # by the trained model's tokenizer: an encoder's own counts differ little
        return tokens + read, flops + 2.0 * self.embedder.parameters * read

    def _auxiliary(self, pool: Pool, policy: SelectionPolicy, selection: SelectionConfig, steps: int) -> ModelAuxiliary:
        """Do the trainings beside the stage's own that the selector needs, from the model as it is.

        Unless the selector says otherwise, their learning rate and steps are those of the stage.
        """
        spec = policy.selector.auxiliary or AuxiliarySpec()
        learned = len(pool) * selection.budget * (selection.epochs or 1)
        auxiliary = self.source.auxiliary = ModelAuxiliary(
            self.model,
            pad_token_id=self.pad_token_id,
            spec=dataclasses.replace(
                spec,
                learning_rate=spec.learning_rate or self.recipe.training.learning_rate,
                batch=spec.batch or max(1, round(learned / steps)),
            ),
            seed=stream_seed(selection.seed or 0, "auxiliary"),
            sketch_seed=stream_seed(self.seed, "sketch"),
            candidates=lambda: pool,
            target=self.source.target_items,
        )
        self.source.log = auxiliary.log
        self.source(pool, [name for name in policy.required if needs_auxiliary([name])])
        return auxiliary

    def score(self, tasks: Sequence[Task]) -> list[Score]:
        return self.evaluator.score(tasks)

    @contextmanager
    def fork(self) -> Iterator[HFLearner]:
        weights, stage = self.adaptation.copy(), self._stage
        try:
            yield self
        finally:
            self._stage = stage
            self.adaptation.restore(weights)

    def save(self, directory: Path) -> None:
        """Write the trained weights and the stage counter."""
        self.adaptation.save(directory)
        (directory / "learner.json").write_text(json.dumps({"stage": self._stage}) + "\n")

    def load(self, directory: Path) -> None:
        try:
            self._stage = int(read_json(directory / "learner.json")["stage"])
            self.adaptation.load(directory)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ResumeError(f"{directory} cannot be read ({error}).") from error
