"""Trainings beside the trial's own: LESS' warm-up, a reference model, the runs that give a training log.

`auxiliary_run` trains a copy of the trainable weights and shows its caller the model after every epoch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from longgame.data.examples import Pool
from longgame.errors import BudgetError, ModelError, ResumeError
from longgame.models.adaptation import Adaptation, Weights, adapt, adaptation_of
from longgame.models.head import LogitHead, decoder_of, evaluating, unwrap
from longgame.recipe import ModelSpec, TrainingSpec
from longgame.seeding import generator, stream_seed
from longgame.selection.base import build_selector
from longgame.selection.budget import fill_budget
from longgame.selection.history import History
from longgame.selection.policy import SelectionPolicy
from longgame.signals.auxiliary import AuxiliarySpec, Influence
from longgame.signals.base import Signals
from longgame.signals.engine import SignalEngine, gradient_tokens
from longgame.signals.flops import signal_flops, training_flops
from longgame.signals.gradients import AdamPreconditioner, Moments
from longgame.storage import durable_folder, part_file, read_sealed, sealed, write_file
from longgame.training.config import SelectionConfig
from longgame.training.stage import Course, run_stage

LEARNING_RATE, BATCH = 2e-4, 16
"""Peak learning rate, and examples of a step, where neither a selector nor an audit names them."""
WARMUP_SHARE = 0.03
"""Share of all steps over which the learning rate rises; at least one step. Then it falls to a tenth."""
_RUN, _EPOCH, _WEIGHTS = "run.json", "epoch.json", "weights.safetensors"


@dataclass(frozen=True)
class Epoch:
    """The state at the end of an epoch, while the model is in it and in eval mode."""

    number: int
    """From 1."""
    adam: AdamPreconditioner
    """The optimizer's moments; its steps are bias-corrected, unless they are those of the published code."""
    learning_rate: float
    """Mean over the epoch's steps."""
    losses: tuple[float, ...]
    """Mean loss of each step, nats/token."""
    seconds: float
    """That its training took."""


@dataclass(frozen=True)
class AuxiliaryReport:
    """What an auxiliary run did, the calls of ``at_epoch`` left out."""

    examples: int
    """That were learned in every epoch."""
    tokens: int
    """Over all epochs."""
    flops: float
    """Over all epochs; NaN where the model's FLOPs are not known."""
    seconds: float
    """Of the epochs, those of an earlier call included."""


def auxiliary_run(
    model: nn.Module,
    pool: Pool | Callable[[], Pool],
    spec: AuxiliarySpec,
    *,
    pad_token_id: int,
    seed: int,
    at_epoch: Callable[[Epoch], None],
    folder: Path | None = None,
    content: str = "",
    where: str = "the auxiliary training",
) -> AuxiliaryReport:
    """Train the trainable weights for some epochs, with a fresh AdamW, and put them back.

    Each epoch learns every example once, in an order of its own. The model is the same afterwards, bit for bit.

    Args:
        model: a PeftModel, or a model with trainable weights (see `with_adapter`).
        pool: the examples; a callable is called only where an epoch has still to be trained.
        pad_token_id: fills up batches.
        seed: of the drawn share, of the epochs' orders and of dropout.
        at_epoch: called after every epoch with the model in its state.
        folder: keeps every epoch durably. Called again, a finished epoch is read instead of trained; a killed run goes
            on and ends with the same weights.
        content: what else the weights depend on (model, data); another one is refused in the same folder.
        where: names the training in errors.

    Raises:
        ModelError: nothing is trainable. BudgetError: the share holds no example.
        ResumeError: the folder holds another run, or is damaged. NumericalError: as `run_stage`.
    """
    adaptation = adaptation_of(model)
    if not adaptation.trained():
        raise ModelError(
            f"{where} needs trainable weights, and the model has none. Attach an adapter, or unfreeze its weights."
        )
    store = None if folder is None else _EpochStore(folder, adaptation, _identity(spec, seed, content))
    before, course = adaptation.copy(), Course(0)
    part: Pool | None = None
    examples = tokens = 0
    flops = seconds = 0.0
    try:
        for number in range(1, spec.epochs + 1):
            state = None if store is None else store.read(number)
            if state is None:
                if part is None:
                    part = pool if isinstance(pool, Pool) else pool()
                    part = part.take(drawn_rows(part.ids, part.tokens, spec.share, seed, where))
                state = _learn(adaptation, part, spec, course, number, pad_token_id, seed, where)
                if store is not None:
                    store.write(state)
            course = state.course(spec)
            examples = state.examples
            tokens += state.tokens
            flops += state.flops
            seconds += state.seconds
            with evaluating(model.modules()):
                at_epoch(state.epoch(spec.published))
    finally:
        adaptation.restore(before)
    return AuxiliaryReport(examples, tokens, flops, seconds)


class ModelAuxiliary:
    """Signals of trainings beside the one that goes on, of the model as it is when they are first asked for.

    Each training runs once. Its epochs stay in memory, so that examples that come later are measured, too; what was
    measured is looked up by id.

    Args:
        model: a PeftModel, or a model with trainable weights.
        pad_token_id: fills up batches.
        spec: of the trainings; ``share`` is that of a warm-up.
        seed: of the trainings.
        sketch_seed: of the gradients' sketches.
        candidates: returns what a warm-up, or the training behind a log, learns from.
        target: returns the target set for a signal of this name.

    Attributes:
        tokens, flops: of the trainings and of all passes under their epochs; FLOPs are NaN where the model's are not
            known.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        pad_token_id: int,
        spec: AuxiliarySpec,
        seed: int,
        sketch_seed: int = 0,
        candidates: Callable[[], Pool],
        target: Callable[[str], Pool],
    ) -> None:
        self._adaptation, self._pad, self.spec, self._seed = adaptation_of(model), pad_token_id, spec, seed
        self._candidates, self._target = candidates, target
        self._engine = SignalEngine(model, pad_token_id=pad_token_id, seed=sketch_seed)
        self._sizes = self._adaptation.flops()
        self._epochs: dict[str, list[tuple[Weights, Epoch]]] = {}
        self._columns: dict[str, dict[str, np.ndarray]] = {}
        self._targets: dict[int, np.ndarray] = {}
        """Gradient sketches of the target set, by epoch."""
        self.tokens, self.flops = 0, 0.0

    def __call__(self, pool: Pool, name: str) -> np.ndarray:
        """Return ``influence`` [n, tasks] or ``reference_loss`` [n].

        Raises:
            RecipeError: there is no target set. ModelError, BudgetError, NumericalError: as `auxiliary_run`.
            PluginError: influence without LoRA.
        """
        measure = {"influence": self._influence, "reference_loss": self._reference_loss}[name]
        return self._looked_up(name, pool, measure)

    def log(self, pool: Pool) -> tuple[Float[np.ndarray, "n epochs"], Float[np.ndarray, "n epochs"]]:
        """Return loss and token accuracy of each example at the end of each epoch over all candidates."""
        both = self._looked_up("log", pool, self._log)
        return both[:, 0], both[:, 1]

    def _looked_up(self, name: str, pool: Pool, measure: Callable[[Pool], np.ndarray]) -> np.ndarray:
        stored = self._columns.setdefault(name, {})
        fresh = [row for row, sample_id in enumerate(pool.ids) if sample_id not in stored]
        if fresh:
            stored.update(zip([pool.ids[row] for row in fresh], measure(pool.take(fresh)), strict=True))
        return np.stack([stored[sample_id] for sample_id in pool.ids])

    def _influence(self, pool: Pool) -> np.ndarray:
        if not hasattr(self._adaptation.model, "peft_config"):
            raise ModelError(
                "influence (LESS) needs LoRA: in full fine-tuning no example's gradient is ever formed. Train a LoRA "
                "adapter (model.adaptation: lora), or use another selector."
            )
        target = self._target("influence")
        influence = Influence([example.skill for example in target.examples], self.spec.published)
        total = np.zeros((len(pool), len(influence.tasks)))
        for epoch in self._under("warmup", self._candidates, self.spec):
            self._engine.preconditioner = epoch.adam
            if epoch.number not in self._targets:
                self._targets[epoch.number] = self._columns_of(target, "grad_sketch")["grad_sketch"]
            steps = self._columns_of(pool, "adam_grad_sketch")["adam_grad_sketch"]
            total += influence.of_checkpoint(epoch.learning_rate, steps, self._targets[epoch.number])
        return total.astype(np.float32)

    def _reference_loss(self, pool: Pool) -> np.ndarray:
        spec = dataclasses.replace(self.spec, share=1.0)
        epochs = self._under("reference", lambda: self._target("reference_loss"), spec, last=True)
        return next(self._columns_of(pool, "loss")["loss"] for _ in epochs)

    def _log(self, pool: Pool) -> np.ndarray:
        spec = dataclasses.replace(self.spec, share=1.0)
        columns = [self._columns_of(pool, "loss", "token_accuracy") for _ in self._under("log", self._candidates, spec)]
        return np.stack([np.stack(list(column.values()), axis=1) for column in columns], axis=2)

    def _under(self, kind: str, pool: Callable[[], Pool], spec: AuxiliarySpec, last: bool = False) -> Iterator[Epoch]:
        """Put the model into the state of each epoch (or the last one) of a training in turn, and back at the end."""
        if kind not in self._epochs:
            epochs: list[tuple[Weights, Epoch]] = []
            report = auxiliary_run(
                self._adaptation.model,
                pool,
                spec,
                pad_token_id=self._pad,
                seed=self._seed,
                at_epoch=lambda epoch: epochs.append((self._adaptation.copy(), epoch)),
                where=_WORDS[kind],
            )
            self._epochs[kind] = epochs[-1:] if last else epochs
            self.tokens += report.tokens
            self.flops += report.flops
        before = self._adaptation.copy()
        try:
            for weights, epoch in self._epochs[kind]:
                self._adaptation.restore(weights)
                yield epoch
        finally:
            self._adaptation.restore(before)

    def _columns_of(self, pool: Pool, *names: str) -> dict[str, np.ndarray]:
        self.tokens += int(pool.tokens.sum())
        self.flops += float("nan") if self._sizes is None else float(signal_flops(self._sizes, pool, names).sum())
        return self._engine(pool, names)


_WORDS = {"warmup": "the warm-up", "reference": "the reference model", "log": "the training of the log"}


@contextmanager
def with_adapter(model: nn.Module, seed: int) -> Iterator[nn.Module]:
    """Give a base model a LoRA adapter for an auxiliary training, and take it off again; others are given as they are.

    The adapter is that of the recipe's defaults: r 16, alpha 32, on all linear layers but the head (LESS takes r 128,
    alpha 512 on the attention of 7B models). A PeftModel keeps its own adapter.
    """
    if hasattr(model, "peft_config"):
        yield model
        return
    flags = [(weight, weight.requires_grad) for weight in model.parameters()]
    base: Any = model
    adaptation = adapt(base, ModelSpec(adaptation="lora"), seed)
    try:
        yield adaptation.model
    finally:
        adaptation.model.unload()
        for weight, flag in flags:
            weight.requires_grad_(flag)
        vars(base).pop("peft_config", None)


@dataclass(frozen=True)
class _State:
    """An epoch that is trained: its numbers, and Adam's moments; the weights are in the model."""

    number: int
    steps: int
    """Of each epoch."""
    examples: int
    tokens: int
    flops: float
    learning_rate: float
    losses: tuple[float, ...]
    seconds: float
    adam: AdamPreconditioner

    def course(self, spec: AuxiliarySpec) -> Course:
        """Where training stands behind this epoch."""
        return Course(self.steps * spec.epochs, self.steps * self.number, self.adam)

    def epoch(self, published: bool) -> Epoch:
        adam = AdamPreconditioner(self.adam.moments, bias_correction=not published, epsilon_inside=published)
        return Epoch(self.number, adam, self.learning_rate, self.losses, self.seconds)

    def numbers(self) -> dict[str, Any]:
        names = ("number", "steps", "examples", "tokens", "flops", "learning_rate", "losses", "seconds")
        return {name: getattr(self, name) for name in names}


def drawn_rows(
    ids: Sequence[str], tokens: Int[np.ndarray, " n"], share: float, seed: int, where: str
) -> Int[np.ndarray, " k"]:
    """Return the rising rows of a random part with this share of the tokens, the same whatever the order of the rows.

    Raises:
        BudgetError: it holds no example.
    """
    if share == 1:
        return np.arange(len(ids))
    budget = round(share * int(tokens.sum()))
    if budget < int(tokens.min()):
        raise BudgetError(
            f"a share of {share:g} of {len(ids)} examples is {budget} tokens, and the shortest has "
            f"{int(tokens.min())}, so {where} has nothing to learn. Raise the share."
        )
    order = np.asarray(sorted(range(len(ids)), key=ids.__getitem__))
    return np.sort(fill_budget(order[generator(seed, "auxiliary", "share").permutation(len(ids))], tokens, budget))


def _learn(
    adaptation: Adaptation,
    part: Pool,
    spec: AuxiliarySpec,
    course: Course,
    number: int,
    pad_token_id: int,
    seed: int,
    where: str,
) -> _State:
    """Train the next epoch."""
    batch = spec.batch or BATCH
    steps = max(1, round(len(part) / batch))
    course.steps = steps * spec.epochs
    longest, base = int(part.tokens.max()), unwrap(adaptation.model)
    weight = next(adaptation.model.parameters())
    tokens = gradient_tokens(decoder_of(base), LogitHead(base).module.in_features, weight.device)
    training = TrainingSpec(
        steps=steps,
        learning_rate=spec.learning_rate or LEARNING_RATE,
        warmup_steps=0,
        accumulation=max(1, -(-min(batch, len(part)) * longest // tokens)),
    ).model_copy(update={"warmup_steps": max(1, round(WARMUP_SHARE * course.steps))})
    rates = course.rates(training)
    epoch_seed = stream_seed(seed, "auxiliary", "epoch", number)
    report = run_stage(
        adaptation.model,
        pad_token_id=pad_token_id,
        pool=part,
        policy=SelectionPolicy(build_selector("random"), History(), generator(epoch_seed, "order")),
        selection=SelectionConfig(budget=1.0, rounds=1, epochs=1, seed=epoch_seed),
        spec=training,
        scorer=lambda pool, _names: Signals(pool.ids, {}),
        where=f"{where}, epoch {number}",
        course=course,
    )
    if course.adam is None:
        raise ModelError(f"{where} kept no moments of Adam, so its weights were not trained.")
    sizes = adaptation.flops()
    return _State(
        number=number,
        steps=steps,
        examples=len(part),
        tokens=int(part.tokens.sum()),
        flops=float("nan") if sizes is None else float(training_flops(sizes, part).sum()),
        learning_rate=float(rates.mean()),
        losses=tuple(report.losses.tolist()),
        seconds=sum(report.seconds.values()),
        adam=course.adam,
    )


def _identity(spec: AuxiliarySpec, seed: int, content: str) -> dict[str, Any]:
    return {"spec": asdict(spec), "seed": seed, "content": content}


class _EpochStore:
    """Epochs of an auxiliary run in a folder: weights, moments and numbers of each, whole or absent."""

    def __init__(self, folder: Path, adaptation: Adaptation, identity: Mapping[str, Any]) -> None:
        self._folder, self._adaptation = folder, adaptation
        path = folder / _RUN
        if not path.is_file():
            write_file(path, sealed(identity))
            return
        before = read_sealed(path, [*identity])
        changed = [name for name, value in identity.items() if before[name] != json.loads(json.dumps(value))]
        if changed:
            words = {"spec": "settings", "content": "model or data"}
            raise ResumeError(
                f"'{folder}' holds a training with another {' and '.join(words.get(name, name) for name in changed)}. "
                "Use what it was made with, or another folder."
            )

    def read(self, number: int) -> _State | None:
        """Put the weights of a finished epoch into the model; None where it is not finished.

        Raises:
            ResumeError: its files are damaged.
        """
        place = self._folder / f"epoch-{number}"
        if not place.is_dir():
            return None
        try:
            numbers = read_sealed(place / _EPOCH, ["number", "adam", "sha256"], [*_State.__dataclass_fields__])
            content = part_file(place / _WEIGHTS)
            if hashlib.sha256(content).hexdigest() != numbers.pop("sha256"):
                raise ResumeError(f"{place / _WEIGHTS} is not what was written.")
            tensors = load(content)
            settings = numbers.pop("adam")
            moments = {
                name: Moments(
                    tensors[f"first {name}"], tensors[f"second {name}"], (values[0], values[1]), values[2], values[3]
                )
                for name, values in settings.items()
            }
            self._adaptation.restore({name: tensors[f"weight {name}"] for name in self._adaptation.trained()})
            numbers["losses"] = tuple(numbers["losses"])
            return _State(**numbers, adam=AdamPreconditioner(moments))
        except (ResumeError, SafetensorError, KeyError, TypeError, RuntimeError, IndexError) as error:
            reason = str(error).partition(" Delete ")[0]
            raise ResumeError(
                f"{place} cannot be read ({reason}). Delete it and every later epoch, and run the command again."
            ) from error

    def write(self, state: _State) -> None:
        """Write the epoch that the model is in.

        Raises:
            StorageError: the disk is full or not writable.
        """
        tensors: dict[str, Tensor] = {f"weight {name}": value for name, value in self._adaptation.copy().items()}
        settings = {}
        for name, moment in state.adam.moments.items():
            tensors |= {f"first {name}": moment.first, f"second {name}": moment.second}
            settings[name] = [*moment.betas, moment.eps, moment.step]
        with durable_folder(self._folder / f"epoch-{state.number}") as place:
            save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, place / _WEIGHTS)
            digest = hashlib.sha256((place / _WEIGHTS).read_bytes()).hexdigest()
            (place / _EPOCH).write_text(sealed({**state.numbers(), "adam": settings, "sha256": digest}))
