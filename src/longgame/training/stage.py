"""One stage of the audit: `run_stage` trains a model on what a policy selects from a pool.

The loop is transformers' Trainer with `SelectionMixin`, so the audit measures what users run.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NoReturn

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from longgame.data.examples import Pool
from longgame.errors import BudgetError, ModelError, NumericalError
from longgame.limits import MEMORY_FIXES, is_out_of_memory
from longgame.models.head import evaluating, has_other_loss, labeled_places, response_loss
from longgame.recipe import MOST, TrainingSpec
from longgame.seeding import generator
from longgame.selection.policy import ComputeSignals, SelectionPolicy
from longgame.signals.engine import MAX_BATCH_TOKENS
from longgame.signals.gradients import AdamPreconditioner
from longgame.signals.projection import UpdateSketch
from longgame.signals.source import SignalSource
from longgame.training.candidates import Candidates, padded_batch
from longgame.training.compat import global_rng_restored, model_untouched
from longgame.training.config import SelectionConfig
from longgame.training.schedule import (
    StepInfo,
    TrainingReport,
    learning_rate_share,
    stage_order,
)
from longgame.training.trainer import SelectionMixin

OnStep = Callable[[StepInfo], None]


@dataclass
class Course:
    """A training that several calls of `run_stage` take on in turn: one schedule, and one AdamW.

    No gradients are recorded, so the reports hold no `TrainingReport.gradient_gram`.
    """

    steps: int
    """Optimizer steps of all calls together; the learning rate's schedule is over them."""
    taken: int = 0
    """Steps of the calls before."""
    adam: AdamPreconditioner | None = None
    """Adam's moments behind the last step; None before the first call."""

    def rates(self, spec: TrainingSpec) -> Float[np.ndarray, " steps"]:
        """Learning rates of the next ``spec.steps`` steps."""
        share = [
            learning_rate_share(step, self.steps, spec.warmup_steps, spec.final_lr_share)
            for step in range(self.taken, self.taken + spec.steps)
        ]
        return spec.learning_rate * np.asarray(share)


def run_stage(
    model: nn.Module,
    *,
    pad_token_id: int,
    pool: Pool,
    policy: SelectionPolicy,
    selection: SelectionConfig,
    spec: TrainingSpec,
    scorer: ComputeSignals,
    on_step: OnStep | None = None,
    where: str = "stage 1",
    course: Course | None = None,
    sketch_seed: int | None = None,
) -> TrainingReport:
    """Train ``model`` in place through one stage, with a fresh AdamW, on the device and in the dtype it comes in.

    The loss of a step is the mean over all response tokens of its picks, each pick's times its weight
    (`Selection.weights`). The candidate stream (`stage_order`) and the
    dealing depend on ``selection.seed`` and the pool alone, so every selector of a seed is offered the same candidates
    at the same steps. Only trainable weights change: the model's patches, hooks, flags and gradients and all global
    random states are restored.

    Args:
        model: a causal LM, or a PeftModel around one; whatever requires a gradient is trained.
        pad_token_id: fills up batches; never attended to, and without loss.
        policy: selects; the caller has called its `begin_stage`.
        selection: budget, rounds, epochs, seed; its selector is not read.
        spec: steps, learning rate, warm-up, decay, weight decay, clipping, accumulation; ``epochs`` is not read.
        scorer: (pool, names) → signals under the model as it is when called.
        on_step: called before the first update and after every step, with the model in eval mode; what it draws from
            global generators does not reach the training.
        where: names the stage in errors.
        course: the longer training that this call takes on and brings up to date; None: it is a training of its own.
        sketch_seed: of gradients too many to store (`GradientRecorder`), one for all stages of a trial: its tables
            take seconds to draw at 8B. None: ``selection.seed``.

    Returns:
        The report, with ``drift`` and ``update_norm`` NaN: they need the stages before, which the caller knows.

    Raises:
        BudgetError: the pool or the budget is too small for the steps.
        NumericalError: a loss or gradient is NaN or infinite; the weights are those of the last good step.
        ModelError: nothing is trainable, or a step does not fit into memory.
    """
    if selection.rounds == "step" and len(pool) < spec.steps:
        raise BudgetError(
            f"{where}: {len(pool)} candidates cannot be dealt to {spec.steps} steps. "
            "Use a larger pool, fewer steps, or a number of rounds."
        )
    # the diagnostics of the audit read what the selector saw
    selection = dataclasses.replace(selection, selector=policy, candidate_ratio=1, keep_signals=True)
    started = time.perf_counter()
    with model_untouched(model), global_rng_restored():
        arguments = TrainingArguments(
            output_dir=tempfile.gettempdir(),  # nothing is written there: no checkpoints, no logs
            max_steps=spec.steps,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=spec.accumulation,
            learning_rate=spec.learning_rate,
            weight_decay=spec.weight_decay,
            max_grad_norm=spec.max_grad_norm,
            # One kernel for all parameters instead of some ten per parameter, and elementwise: the same bits each time.
            optim="adamw_torch_fused",
            seed=(selection.seed or 0) % 2**32,
            use_cpu=next(model.parameters()).device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            logging_nan_inf_filter=False,
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # a trial trains on one GPU, however many are visible
        if spec.gradient_checkpointing:
            _checkpoint_activations(model)
        trainer = StageTrainer(model, arguments, pool, pad_token_id, selection, scorer, spec, on_step, where, course)
        if sketch_seed is not None:
            trainer.gradients.seed = sketch_seed
        with memory_located(trainer):
            trainer.train()
        if course is not None:
            course.taken, course.adam = course.taken + spec.steps, trainer._selection_preconditioner()
        return trainer.report(time.perf_counter() - started)


class StageTrainer(SelectionMixin, Trainer):
    """The selection trainer on a tokenized pool: no columns, no files, no logging; built and used by `run_stage`."""

    selection_shares = False

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        pool: Pool,
        pad_token_id: int,
        selection: SelectionConfig,
        scorer: ComputeSignals,
        spec: TrainingSpec,
        on_step: OnStep | None,
        where: str,
        course: Course | None = None,
    ) -> None:
        trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not trainable:
            raise ModelError("the model has no trainable parameter; attach an adapter or unfreeze its weights.")
        self.spec, self.where = spec, where
        self.course = course
        self.losses = np.zeros(spec.steps)
        self._step_losses: list[Tensor] = []
        self._places: Tensor | None = None
        self._pad = pad_token_id
        on_cpu = next(model.parameters()).device.type == "cpu"
        self._most_tokens = spec.micro_tokens or (MOST if on_cpu else MAX_BATCH_TOKENS)
        self._parameters = [parameter for _, parameter in trainable]
        ticks = _ticks(pool, selection, spec)
        super().__init__(model, arguments, train_dataset=ticks, selection=selection, signals=scorer)
        self._selection_pool = pool
        # `response_loss` divides by the step's tokens itself, whatever arguments the model's own loss takes
        self.model_accepts_loss_kwargs |= not has_other_loss(model)
        if isinstance(scorer, SignalSource):
            scorer.preconditioner = self._selection_preconditioner
        steps = spec.steps if course is None else 0
        self.gradients = GradientRecorder(trainable, steps, seed=selection.seed or 0)
        self.remove_callback(PrinterCallback)
        # train() begins with Accelerator.free_memory, which collects all garbage. This accelerator is new and holds
        # nothing: on the tiny model the collection adds 18 % to a stage (0.26 to 1.45 s).
        vars(self.accelerator)["free_memory"] = lambda *objects: objects
        _walk_once(model, self._parameters)
        self.watch = _Watch(self, on_step)
        self.add_callback(self.watch)

    def report(self, seconds: float) -> TrainingReport:
        """Return the report of a finished stage that took this long."""
        feed, measuring = self.selection_feed, self.selection_policy.measuring
        return TrainingReport(
            steps=self.spec.steps,
            selected_tokens=feed.spent,
            optimiser_tokens=feed.learned,
            candidate_tokens=feed.scored,
            losses=self.losses,
            gradient_gram=self.gradients.gram(),
            gradient_width=self.gradients.width,
            drift=math.nan,
            update_norm=math.nan,
            seconds={
                "train": seconds - self.selection_seconds - self.watch.seconds,
                "select": self.selection_seconds - measuring,
                "diagnose": measuring,
                "callbacks": self.watch.seconds,
            },
        )

    # Data: the stream is fixed beforehand, one tick of pool rows per micro-batch

    def get_train_dataloader(self) -> DataLoader:
        self._selection_fuse()
        ticks: Any = self.train_dataset
        return self.accelerator.prepare(DataLoader(ticks, sampler=SequentialSampler(ticks), collate_fn=itemgetter(0)))

    def _selection_new_record(self) -> None:
        """None: an audit keeps records of its own."""

    def _selection_dataset(self, dataset: Any) -> Any:
        return dataset

    def _selection_budget(self, steps: int, epochs: int) -> float:  # noqa: ARG002 - a stage's steps take all of it
        return self.selection.budget

    def _selection_seed(self) -> int:
        return self.selection.seed or 0

    def _selection_offer(self, candidates: Sequence[int]) -> Pool:
        return self._selection_candidates().take(candidates)

    def _selection_collate(self, pool: Pool, rows: Sequence[int], most: int | None = None) -> Any:
        return {name: values[:, :most] for name, values in padded_batch(pool, rows, self._pad).items()}

    # The step: the Trainer's, without what a stage does not need

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Linear warm-up and decay to ``final_lr_share`` (`learning_rate_share`)."""
        spec, course = self.spec, self.course or Course(num_training_steps)
        target: Any = self.optimizer if optimizer is None else optimizer
        first, steps = course.taken, course.steps
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            target,
            lambda step: learning_rate_share(first + step, steps, spec.warmup_steps, spec.final_lr_share),
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean response NLL; the head runs on response positions only where that gives the model's own logits."""
        if return_outputs or has_other_loss(model):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        weights = self._selection_take_weights(inputs["labels"].device)
        return response_loss(model, inputs, num_items_in_batch, weights, self._places)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        parts = split_batch(inputs, self._most_tokens)
        losses = []
        for part in parts:
            self._places = labeled_places(part["labels"])
            losses.append(super().training_step(model, part, num_items_in_batch))
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        self._step_losses.append(loss.detach())
        return loss

    def _clip_grad_norm(self, _model: Any) -> torch.Tensor:
        if self.course is None:
            self.gradients.record()
        norm = nn.utils.clip_grad_norm_(self._parameters, self.spec.max_grad_norm)
        # the one time in a step that the host waits for a GPU
        *losses, length = torch.stack([*self._step_losses, norm.to(self._step_losses[0].dtype)]).cpu().tolist()
        self._step_losses.clear()
        for loss in losses:
            if not math.isfinite(loss):
                self._stop("loss", loss)
            self.losses[self.state.global_step] += loss
        if not math.isfinite(length):
            self._stop("gradient norm", length)
        return norm

    def floating_point_ops(self, _inputs: Any) -> int:
        """Return 0: counting visits all modules at every step, and the report counts FLOPs itself."""
        return 0

    def _stop(self, quantity: str, value: float) -> NoReturn:
        pool, rows = self.selection_picks
        ids = [pool.ids[row] for row in rows]
        named = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        raise NumericalError(
            f"{self.where}, step {self.state.global_step + 1} of {self.spec.steps}: the {quantity} is {value} "
            f"(examples {named}). The weights are those of the step before. Lower training.learning_rate, use "
            "float32, or look at these examples."
        )


class _Watch(TrainerCallback):
    """Calls `on_step`."""

    def __init__(self, trainer: StageTrainer, on_step: OnStep | None) -> None:
        self._trainer, self._on_step = trainer, on_step
        self._modules = list(trainer.model.modules())
        self.seconds = 0.0

    def on_train_begin(self, *_event: Any, **_state: Any) -> None:
        course = self._trainer.course
        if course is not None and course.adam is not None:
            optimizer: Any = self._trainer.optimizer
            course.adam.restore(optimizer, self._trainer.model)
        self._notify(0, math.nan)

    def on_step_end(self, *_event: Any, **_state: Any) -> None:
        step = self._trainer.state.global_step
        self._notify(step, float(self._trainer.losses[step - 1]))

    def _notify(self, step: int, loss: float) -> None:
        if self._on_step is None:
            return
        trainer, started = self._trainer, time.perf_counter()
        with evaluating(self._modules), global_rng_restored():
            self._on_step(StepInfo(step, trainer.spec.steps, trainer.selection_feed.learned, loss))
        self.seconds += time.perf_counter() - started


def _walk_once(model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Let a Trainer's calls of ``train`` and ``zero_grad`` at every step do without a walk over all modules.

    On the tiny model with LoRA they take 1.5 and 0.6 ms of a step's 60. `model_untouched` takes them off again.
    """
    modules, kind = [*model.modules()], type(model)

    def train(mode: bool = True) -> nn.Module:
        return model if all(module.training == mode for module in modules) else kind.train(model, mode)

    def zero_grad(set_to_none: bool = True) -> None:
        if not set_to_none:
            kind.zero_grad(model, set_to_none)
        for parameter in parameters if set_to_none else ():
            parameter.grad = None

    vars(model).update(train=train, zero_grad=zero_grad)


def _checkpoint_activations(model: Any) -> None:
    # transformers 5.23 has it under a new name
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(f"training.gradient_checkpointing: {error} Set it to false.") from error


@contextmanager
def memory_located(trainer: StageTrainer) -> Iterator[None]:
    """Name the step where torch has no memory left, and what helps.

    Raises:
        ModelError: instead of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        reason, step = " ".join(str(error).split()), trainer.state.global_step + 1
        raise ModelError(
            f"{trainer.where}, step {step} of {trainer.spec.steps}: the training does not fit into memory "
            f"({reason[:120]}). {MEMORY_FIXES}"
        ) from error


def split_batch(inputs: Mapping[str, Tensor], most_tokens: int) -> list[dict[str, Tensor]]:
    """Split a micro-batch by rows into parts of at most so many padded tokens (one row may exceed it alone).

    Parts hold rows of like length, without the columns behind their last label, which no loss depends on.
    """
    labels = inputs["labels"]
    if labels.numel() <= most_tokens:
        return [dict(inputs)]
    learned = labels != -100
    ends = torch.where(learned, torch.arange(1, labels.shape[1] + 1, device=labels.device), 0).amax(1).tolist()
    groups: list[list[int]] = []
    for row in sorted(range(len(ends)), key=lambda row: (-ends[row], row)):
        if not groups or (len(groups[-1]) + 1) * ends[groups[-1][0]] > most_tokens:
            groups.append([])
        groups[-1].append(row)
    return [{name: values[group, : max(1, ends[group[0]])] for name, values in inputs.items()} for group in groups]


def _ticks(pool: Pool, selection: SelectionConfig, spec: TrainingSpec) -> list[Candidates]:
    """Return the candidate stream: one tick of pool rows per micro-batch; a step's ticks hold its share of the pool."""
    if selection.rounds != "step":
        return [Candidates() for _ in range(spec.steps * spec.accumulation)]
    order = stage_order(pool, generator(selection.seed or 0, "candidates"))
    chunks = np.array_split(order, spec.steps)
    return [Candidates(part.tolist()) for chunk in chunks for part in np.array_split(chunk, spec.accumulation)]


EXACT_FLOATS = 64_000_000
"""Parameters × steps up to which the gradients themselves are stored (float32, 256 MB)."""

SKETCH_DIM = 8192
"""Numbers per gradient above that; an inner product is then off by about √(2/8192) = 1.6 % of the norms' product."""


class GradientRecorder:
    """Records the gradient of every step and gives their inner products (the input of update concentration).

    The gradient is that of the step's mean loss, before clipping and optimizer: momentum and the learning rate's
    schedule would make even white noise look concentrated. Exact while parameters × steps stay under `EXACT_FLOATS`;
    above, each gradient is projected to `SKETCH_DIM` numbers by a count sketch, whose inner products are unbiased.

    Args:
        parameters: (name, tensor) of everything the optimizer changes.
        steps: number of gradients to record.
    """

    def __init__(self, parameters: Sequence[tuple[str, nn.Parameter]], steps: int, *, seed: int = 0) -> None:
        self._parameters = tuple(parameters)
        size = sum(parameter.numel() for _, parameter in parameters)
        self.exact = size * steps <= EXACT_FLOATS
        self.width = size if self.exact else SKETCH_DIM
        self.seed = seed
        self._gradients = torch.zeros(steps, self.width, device=parameters[0][1].device)
        self._count = 0

    def record(self) -> None:
        """Record the gradients as they are; call it once before every optimizer step."""
        parts = [
            (name, torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
            for name, parameter in self._parameters
        ]
        if self.exact:
            torch.cat([part.reshape(-1).float() for _, part in parts], out=self._gradients[self._count])
        else:
            sketch = UpdateSketch(SKETCH_DIM, self.seed)
            for name, part in parts:
                sketch.add(name, part)
            self._gradients[self._count] = sketch.tensor()
        self._count += 1

    def gram(self) -> Float[np.ndarray, "steps steps"]:
        """Inner products of the recorded gradients, float64."""
        gradients = self._gradients[: self._count]
        return (gradients @ gradients.T).double().cpu().numpy()
