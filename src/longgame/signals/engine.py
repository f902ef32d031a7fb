"""`SignalEngine`: one pass over a pool computes all signals that are asked for.

Batches are bucketed by length, bounded by padded tokens, and right-padded.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from longgame.data.examples import Pool
from longgame.errors import DataError, ModelError, PluginError, unknown
from longgame.limits import is_out_of_memory
from longgame.models.device import to_device, to_host
from longgame.models.fused import Layers, fused_lora, plain_layers
from longgame.models.head import (
    LogitHead,
    decoder_of,
    evaluating,
    last_hidden,
    prompt_learning,
    refuse_joint_adapters,
    unwrap,
    without_autocast,
)
from longgame.models.lora import GradientTargets, gradient_targets, recomputing, recording
from longgame.models.processes import Processes, split_evenly
from longgame.models.sharding import passes, run_to_head, shards
from longgame.signals.base import ALIGNMENTS, SIGNALS, check_finite
from longgame.signals.gradients import (
    AdamPreconditioner,
    BatchGradients,
    GradientSketch,
    UnitSum,
    check_preconditioner,
    loss_scale,
)
from longgame.signals.logits import PositionLogits
from longgame.signals.projection import OuterSketch

LOGITS = ("logit_nuclear_norm", "logit_sketch")
RESPONSE_LOGITS = ("response_logit_nuclear_norm", "response_logit_sketch")
ERRORS = "logit_error_sketch"
FORWARD = ("loss", "token_accuracy", "el2n", ERRORS, *LOGITS, *RESPONSE_LOGITS, "embedding")
BACKWARD = ("grad_norm", "grad_sketch")
ADAM = "adam_grad_sketch"

MAX_BATCH_TOKENS = 4096
"""Default padded tokens of a batch."""
_CPU_BYTES = 3 << 29
"""Bytes of activations of a gradient batch on a CPU, where more than some hundred tokens are no faster."""
_UNIT_BYTES = 90
"""Bytes of activations per token, decoder layer and hidden unit (float32, eager attention)."""
_PADDING = 256
"""Padding tokens of a batch at most. On a 0.5M-parameter model the time is flat from 64 to 384, worse at 1024."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Batch:
    """b examples of at most T tokens. Response positions are flat (m of them), example after example."""

    rows: Int[np.ndarray, " b"]
    """Rows in the pool."""
    lengths: Int[np.ndarray, " b"]
    """Tokens of prompt and response."""
    counts: Int[np.ndarray, " b"]
    """Predicted response tokens, ≥ 1."""
    input_ids: Int[Tensor, "b T"]
    """Right-padded. No attention mask goes with it: under causal attention nothing before a pad can see it."""
    example: Int[Tensor, " m"]
    """Row in the batch of each response position."""
    position: Int[Tensor, " m"]
    """Token position whose hidden state predicts the response token (the one before it)."""
    tokens: Int[Tensor, " b"]
    """``lengths`` on the device."""
    predicted: Int[Tensor, " b"]
    """``counts`` on the device."""
    rank: Int[Tensor, " m"]
    """0, 1, 2 … within the response."""
    target: Int[Tensor, " m"]
    """The response token that is predicted."""

    @property
    def starts(self) -> Int[np.ndarray, " b"]:
        """Where each example's response positions begin in the flat arrays."""
        return np.cumsum(self.counts) - self.counts


def batches(pool: Pool, pad_token_id: int, max_tokens: int, device: torch.device) -> Iterator[Batch]:
    """Yield the batches that `plan` makes of the pool."""
    return (collate(pool, rows, pad_token_id, device) for rows in plan(pool, max_tokens))


def plan(pool: Pool, max_tokens: int) -> list[Int[np.ndarray, " b"]]:
    """Group a pool's rows into batches of at most ``max_tokens`` padded tokens (one example may exceed it alone).

    Examples are ordered by (length, id), so batches do not depend on the pool's order. A batch also ends where its
    padding would cost more than another pass over the model's layers (256 tokens).

    Raises:
        DataError: an example's token ids do not match its token counts, or it has no token to predict.
    """
    prompt = np.asarray(pool.prompt_tokens, dtype=np.int64)
    lengths = np.asarray(pool.tokens, dtype=np.int64)
    for row, ids in enumerate(pool.input_ids):
        if len(ids) != lengths[row]:
            raise DataError(
                f"example {pool.ids[row]} has {len(ids)} token ids but counts {lengths[row]} (prompt + response). "
                "Build the pool with the tokenizer of this model."
            )
        mask = None if pool.loss_masks is None else pool.loss_masks[row]
        if mask is not None and (len(mask) != len(ids) or int(mask.sum()) != pool.response_tokens[row]):
            raise DataError(
                f"example {pool.ids[row]} has a loss mask of {int(mask.sum())} in {len(mask)} tokens but counts "
                f"{pool.response_tokens[row]} response tokens in {len(ids)}. Build the pool with build_pool or pool_of."
            )
        # the first token of a text without prompt has nothing before it to predict it
        if (lengths[row] <= max(1, prompt[row])) if mask is None else not mask[1:].any():
            raise DataError(
                f"example {pool.ids[row]} has {lengths[row]} token(s), {prompt[row]} of them prompt: no response token "
                "has a token before it. Give it a prompt or a longer response."
            )
    order = sorted(range(len(pool)), key=lambda row: (lengths[row], pool.ids[row]))
    groups: list[list[int]] = []
    tokens = 0
    for row in order:
        padded = (len(groups[-1]) + 1) * int(lengths[row]) if groups else 0
        if not groups or padded > max_tokens or padded - tokens - lengths[row] > _PADDING:
            groups.append([])
            tokens = 0
        groups[-1].append(row)
        tokens += int(lengths[row])
    return [np.asarray(group) for group in groups]


def padded_tokens(pool: Pool, rows: Int[np.ndarray, " b"]) -> int:
    """Tokens of a batch of these rows, padding included."""
    return len(rows) * int(_lengths(pool, rows).max())


def _lengths(pool: Pool, rows: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
    return np.asarray(pool.prompt_tokens[rows] + pool.response_tokens[rows], dtype=np.int64)


def collate(pool: Pool, rows: Int[np.ndarray, " b"], pad: int, device: torch.device) -> Batch:
    """Pad these rows of a pool into one batch."""
    lengths = _lengths(pool, rows)
    predicted = [pool.predicted(int(row)) for row in rows]
    counts = np.asarray([len(places) for places in predicted], dtype=np.int64)
    ids = np.full((len(rows), int(lengths.max())), pad, dtype=np.int64)
    for k, row in enumerate(rows):
        ids[k, : lengths[k]] = pool.input_ids[row]
    example = np.repeat(np.arange(len(rows)), counts)
    rank = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    position = np.concatenate(predicted) - 1
    columns = (ids, example, position, lengths, counts, rank, ids[example, position + 1])
    return Batch(rows, lengths, counts, *to_device(columns, device))


class SignalEngine:
    """Signals of a pool under a causal LM as it is now, each float32 and row-aligned with the pool.

    =====================  =========  ====================================================================
    ``loss``               (n,)       mean NLL per response token, nats/token
    ``token_accuracy``     (n,)       share of response tokens that are the most likely token
    ``el2n``               (n,)       mean ‖softmax − one-hot‖₂ over response tokens
    ``logit_error_sketch`` (n, k)     sketch of the mean of (softmax − one-hot) ⊗ hidden state over response tokens: the
                                      gradient by the output head (BADGE); E⟨s(A), s(B)⟩ = ⟨A, B⟩
    ``logit_nuclear_norm`` (n,)       nuclear norm of the logits at all positions, prompt and response (UDS), exact
    ``logit_sketch``       (n, r·c)   bilinear sketch of the same logits (UDS)
    ``response_logit_…``   the same   both on response positions only
    ``embedding``          (n, d)     last hidden state (after the final norm), mean over prompt and response
    ``grad_norm``          (n,)       ‖∂loss/∂(LoRA factors)‖₂, exact; 0 for A's share while B = 0
    ``grad_sketch``        (n, k)     count sketch of that gradient: E⟨s(g), s(h)⟩ = ⟨g, h⟩
    ``…_alignment``        (n, h)     exact inner product of that gradient, at unit length, with `directions`
    ``adam_grad_sketch``   (n, k)     the same sketch of Γ(g), Adam's step on the example (LESS); needs
                                      ``preconditioner`` and LoRA
    =====================  =========  ====================================================================

    All signals share one batched forward pass, and gradient signals one backward pass over activations. The vocabulary
    projection runs on response positions only, in chunks. In full fine-tuning the gradient is that of the decoder's
    trainable linear weights, without embeddings, output head, norms and biases. Decoder layers under gradient
    checkpointing keep what enters them, and run again in that backward pass: less memory, the same signals.

    Under bfloat16 autocast the model's layers compute in it, and all behind the last hidden state in float32.

    Modes, gradients, ``requires_grad`` and hooks of the model are restored; no global generator is used.

    Args:
        model: a transformers causal LM, or a PeftModel around one.
        pad_token_id: any valid token id; padded positions influence nothing.
        sketch_dim: k, numbers in a sketch of gradients or logit errors. The cosine of two gradient sketches has a
            standard deviation of at most √(2/k) around the cosine of the gradients (1/√k around 0).
        logit_sketch_shape: r, c of the logit sketch.
        seed: fixes the projections, the same on every machine.
        max_batch_tokens: padded tokens of a batch. Default: 4,096, and on a CPU fewer where gradients of a larger
            model are computed (about 1.5 GiB of activations). A batch that does not fit into memory is halved, and so
            are those after it.
        gradient_layers: gradients of the last so many decoder layers only; earlier layers cost no backward pass.
        preconditioner: Adam's moments for ``adam_grad_sketch``; may be replaced as training goes on.

    Attributes:
        processes: those of one training, which share the batches of a pool; all call with the same pool.

    Raises:
        ModelError: no plain output head, no decoder, an unsupported adapter.
        PluginError: a size below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        pad_token_id: int,
        sketch_dim: int = 1024,
        logit_sketch_shape: tuple[int, int] = (8, 128),
        seed: int = 0,
        max_batch_tokens: int | None = None,
        gradient_layers: int | None = None,
        preconditioner: AdamPreconditioner | None = None,
    ) -> None:
        if max_batch_tokens is not None and max_batch_tokens < 1:
            raise PluginError(f"max_batch_tokens is {max_batch_tokens}; it must be at least 1.")
        self.pad_token_id = int(pad_token_id)
        self.max_batch_tokens = max_batch_tokens
        self.gradient_layers = gradient_layers
        self.preconditioner = preconditioner
        self.processes = Processes()
        refuse_joint_adapters(model)
        self._model, self._base = model, unwrap(model)
        self._decoder = decoder_of(self._base)
        self._head = LogitHead(self._base)
        self._outer = OuterSketch(sketch_dim, seed)
        self._logits = PositionLogits(self._head, logit_sketch_shape, seed)
        self._sketch = GradientSketch(sketch_dim, seed)
        self._logits_checked = False
        self._layers_in: torch.dtype | None = None
        """Dtype of the layers' products where the caller has autocast on; None: that of the weights."""
        self._fitting: dict[bool, int] = {}
        """Tokens that fit into memory, with and without gradients, once a batch did not."""
        self._directions: dict[str, dict[str, Tensor]] = {}
        self._is_divided = False
        """Whether FSDP2 divides the weights between processes (`longgame.models.sharding`)."""

    def __call__(self, pool: Pool, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Compute these signals for every example of the pool.

        Raises:
            PluginError: a name that is not computed here.
            ModelError: gradient signals of an unsupported adapter; logits that are not head(last hidden state).
            DataError: an example without a token to predict, or with wrong counts.
            NumericalError: a signal is NaN or infinite (names the example and the signal).
        """
        allowed = (*FORWARD, *BACKWARD, ADAM, *ALIGNMENTS)
        for name in names:
            if name not in allowed:
                raise PluginError("the signal engine was asked for an " + unknown("signal", name, allowed))
        modules = dict(self._base.named_modules())  # walked at every call: adapters may have been added or switched
        targets = None
        for name in {*names} & {*ALIGNMENTS} - self._directions.keys():
            raise PluginError(f"{name} needs directions to compare with; call measure_directions first.")
        if {*names} & {*BACKWARD, ADAM, *ALIGNMENTS}:
            targets = self._targets(modules)
            if ADAM in names:
                check_preconditioner(self.preconditioner, targets)
            if {*names} & {"grad_sketch", ADAM} and targets.size < self._sketch.dim:
                raise PluginError(
                    f"sketch_dim is {self._sketch.dim}, larger than the gradient ({targets.size} entries). "
                    "Use a smaller sketch_dim, or a larger LoRA rank."
                )
        columns = {name: np.zeros((len(pool), *self._shape(name)), dtype=np.float32) for name in dict.fromkeys(names)}
        self._is_divided = bool(shards(self._model))
        with evaluating(modules.values()), self._autocast_for_layers(), passes(self._model):
            fused = plain_layers(modules) if self._layers_in is None else {}
            self._logits.refresh()
            work = functools.partial(self._batch, names=frozenset(names), targets=targets, fused=fused)
            gradients = targets is not None
            limit = min(self.processes.each(lambda: self._limit(gradients)))  # one process may have run out of memory

            def compute() -> list[Int[np.ndarray, " b"]]:
                done: list[Int[np.ndarray, " b"]] = []
                for rows, values in self._batches(pool, gradients, work, limit, self.processes):
                    for name, part in values.items():
                        if not self._is_divided:
                            check_finite(name, part, [pool.ids[row] for row in rows])
                        columns[name][rows] = part
                    done.append(rows)
                return done

            # Passes through divided weights are shared operations: an error in between is no message to the others.
            computed_first = compute() if self._is_divided else None

            def share() -> tuple[Int[np.ndarray, " k"], dict[str, np.ndarray]]:
                done = compute() if computed_first is None else computed_first
                if self._is_divided:
                    for rows in done:
                        for name in columns:
                            check_finite(name, columns[name][rows], [pool.ids[row] for row in rows])
                if self.processes.size == 1:
                    return np.zeros(0, dtype=np.int64), {}
                computed = np.concatenate([np.zeros(0, dtype=np.int64), *done])
                return computed, {name: column[computed] for name, column in columns.items()}

            # A batch is the same for any number of processes, and so are its numbers.
            for rows, parts in self.processes.each(share):
                for name, part in parts.items():
                    columns[name][rows] = part
        return columns

    def measure_directions(
        self,
        pool: Pool,
        weights: Float[np.ndarray, "n h"],
        name: str = "future_alignment",
        preconditioner: AdamPreconditioner | None = None,
    ) -> None:
        """Set `directions` to Σ_i weights[i, h] · g_i / ‖g_i‖, exact sums of gradients under the model as it is now.

        Args:
            pool, weights: n examples, and their weights in h sums.
            name: the signal of `ALIGNMENTS` that compares with them.
            preconditioner: scales the sums by Adam's second moments (`AdamPreconditioner.scale`).

        Raises:
            ModelError, DataError, PluginError: as `__call__`; moments of another model.
        """
        modules = dict(self._base.named_modules())
        targets, fused = self._targets(modules), plain_layers(modules)
        if preconditioner is not None:
            preconditioner.check(targets.weights)
        total: dict[str, Tensor] = {}

        def work(batch: Batch) -> dict[str, np.ndarray]:
            device = batch.input_ids.device
            part = UnitSum(torch.from_numpy(weights[batch.rows]).to(device, torch.float32), targets.lora, device)
            with (
                recording(self._base, targets, part.add) as record,
                fused_lora(fused, record),
                torch.enable_grad(),
            ):  # the scale is of no matter: gradients are brought to unit length
                hidden, slope, _, _ = self._to_head(batch, functools.partial(self._with_slope, batch, frozenset()))
            torch.autograd.grad(hidden, record.inputs, slope)
            for weight, value in part.total().items():  # last, as a batch that does not fit is taken again in halves
                total[weight] = total[weight] + value if weight in total else value
            return {}

        self._is_divided = bool(shards(self._model))
        with evaluating(modules.values()), self._autocast_for_layers(), passes(self._model):
            for _ in self._batches(pool, True, work):
                pass
        if preconditioner is not None:
            total = {
                weight: preconditioner.scale(weight, value, transposed=weight in targets.transposed)
                for weight, value in total.items()
            }
        self._directions[name] = total

    def _targets(self, modules: Mapping[str, nn.Module]) -> GradientTargets:
        devices = sorted({str(parameter.device) for parameter in self._base.parameters()})
        if len(devices) > 1:
            raise ModelError(
                f"gradient signals need the model on one device, and its layers lie on {', '.join(devices)} "
                "(device_map). Load it on one, or use signals of the forward pass, such as loss."
            )
        kind = prompt_learning(self._model)
        if kind is not None:
            raise ModelError(
                f"gradient signals are those of adapter layers or weights, and {kind} (prompt learning) trains "
                "neither. Use signals of the forward pass, such as loss, or train LoRA."
            )
        targets = gradient_targets(self._base, modules, self.gradient_layers)
        if shards(self._model) and (targets.embedding is not None or targets.magnitudes):
            raise ModelError(
                "under FSDP2, gradient signals are those of plain LoRA on linear layers or of full fine-tuning, and "
                "this adapter is DoRA or on the input embedding. Change it, or use signals of the forward pass, such "
                "as loss."
            )
        return targets

    @property
    def directions(self) -> dict[str, dict[str, np.ndarray]]:
        """Per signal and weight, the flattened directions (h × n) that it compares with; they may be set."""
        return {
            name: {weight: value.cpu().numpy() for weight, value in directions.items()}
            for name, directions in self._directions.items()
        }

    @directions.setter
    def directions(self, values: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        device = self._head.module.weight.device
        self._directions = {
            name: {weight: torch.from_numpy(value).to(device) for weight, value in directions.items()}
            for name, directions in values.items()
        }

    def _shape(self, name: str) -> tuple[int, ...]:
        """Of one example's value."""
        hidden, width = self._head.module.in_features, SIGNALS[name].width
        sizes = {"hidden": hidden, "sketch_dim": self._sketch.dim, "logit_sketch": self._logits.width}
        sizes["halves"] = len(next(iter(self._directions.get(name, {}).values()), ()))
        return (sizes[width],) if width else ()

    def _batches(
        self,
        pool: Pool,
        gradients: bool,
        work: Callable[[Batch], Mapping[str, np.ndarray]],
        limit: int | None = None,
        processes: Processes = Processes(),
    ) -> Iterator[tuple[Int[np.ndarray, " b"], Mapping[str, np.ndarray]]]:
        """(rows, what ``work`` gives) batch by batch; a batch that does not fit into memory is halved."""
        device = self._head.module.weight.device
        limit = limit or self._limit(gradients)
        planned = plan(pool, limit)
        parts = split_evenly([padded_tokens(pool, rows) for rows in planned], processes.size)
        waiting = deque(planned[number] for number in parts[processes.rank])
        missing = max(map(len, parts)) - len(waiting)  # passes that another process makes and this one does not
        while waiting:
            rows = waiting.popleft()
            if len(rows) > 1 and padded_tokens(pool, rows) > limit:
                middle = len(rows) // 2
                waiting.extendleft((rows[middle:], rows[:middle]))
                continue
            batch = collate(pool, rows, self.pad_token_id, device)
            if not self._logits_checked and not self._is_divided:
                self._check_logits(batch)
            try:
                values: Mapping[str, np.ndarray] | None = work(batch)
            except RuntimeError as error:
                if "in-place operation" in str(error):
                    raise ModelError(
                        f"{type(self._base).__name__} changes its activations in place, so gradients of single "
                        "examples cannot be recorded. Use signals of the forward pass, or another model."
                    ) from error
                if not is_out_of_memory(error):
                    raise
                if self._is_divided:
                    raise ModelError(
                        f"a batch of {padded_tokens(pool, rows)} tokens does not fit into memory ({device}), and a "
                        "pass through weights that FSDP2 divides cannot be repeated by one process. Use shorter "
                        "examples (max_length), bfloat16, or more devices."
                    ) from error
                if len(rows) == 1:
                    raise ModelError(
                        f"example {pool.ids[rows[0]]} of {batch.input_ids.shape[1]} tokens does not fit into memory "
                        f"alone ({device}). Use shorter examples (max_length), bfloat16, or a larger device."
                    ) from error
                values = None
            if values is not None:
                yield rows, values
                continue
            # outside the handler, whose traceback holds the activations
            self._fitting[gradients] = limit = max(1, padded_tokens(pool, rows) // 2)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            _log.warning("out of memory on a batch of %d tokens; continuing with at most %d", 2 * limit, limit)
            waiting.appendleft(rows)
        for _ in range(missing if self._is_divided else 0):
            work(collate(pool, planned[0], self.pad_token_id, device))

    def _limit(self, gradients: bool) -> int:
        """Padded tokens of a batch at most."""
        limit = self.max_batch_tokens or self._default_batch_tokens(gradients, self._head.module.weight.device)
        return min(limit, self._fitting.get(gradients, limit))

    def _default_batch_tokens(self, gradients: bool, device: torch.device) -> int:
        if not gradients:
            return MAX_BATCH_TOKENS
        return gradient_tokens(self._decoder, self._head.module.in_features, device)

    def _batch(
        self, batch: Batch, names: frozenset[str], targets: GradientTargets | None, fused: Layers
    ) -> Mapping[str, np.ndarray]:
        if targets is None:
            with fused_lora(fused), torch.no_grad():
                values = self._to_head(batch, lambda hidden: self._forward_signals(batch, names, hidden, None))
                return _on_host(values, batch, self._outer)
        gradients = BatchGradients(
            len(batch.rows),
            self._sketch if "grad_sketch" in names else None,
            "grad_norm" in names,
            targets.lora,
            batch.input_ids.device,
            (self._sketch, self.preconditioner) if ADAM in names and self.preconditioner is not None else None,
            {name: directions for name, directions in self._directions.items() if name in names},
        )
        with (
            recording(self._base, targets, gradients.add) as record,
            fused_lora(fused, record),
            recomputing(self._base, record),
        ):
            with torch.enable_grad():
                measure = functools.partial(self._with_slope, batch, names)
                hidden, slope, scale, values = self._to_head(batch, measure)
            if not record.used:
                raise PluginError(
                    "no adapted layer took part in the forward pass; gradient signals cannot be computed."
                )
            gradients.backward(hidden, record.inputs, slope, scale)
        return _on_host(values | gradients.signals(), batch, self._outer)

    def _with_slope(
        self, batch: Batch, names: frozenset[str], hidden: Float[Tensor, "b T d"]
    ) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Tensor]]:
        """The hidden states, scale · ∂(mean NLL)/∂hidden, the scale, and what `_on_host` makes signals from."""
        slope = torch.zeros_like(hidden)
        scale = loss_scale(batch.counts, hidden)
        with torch.no_grad():
            values = self._forward_signals(batch, names, hidden.detach(), slope, scale)
        return hidden, slope, scale, values

    def _to_head(self, batch: Batch, measure: Callable[[Float[Tensor, "b T d"]], _T]) -> _T:
        """Run the model up to its output head, and return what ``measure`` makes of the last hidden states."""
        if not self._is_divided:
            return measure(self._hidden(batch))
        kind, dtype = batch.input_ids.device.type, self._head.module.weight.dtype
        own: list[Tensor] = []

        def at_head(hidden: Float[Tensor, "b T d"]) -> _T:
            with torch.autocast(kind, enabled=False):
                hidden = hidden if self._layers_in is None else hidden.to(dtype)
                if not self._logits_checked:
                    with torch.no_grad():
                        own.append(self._head.logits(hidden[:, -1:]))
                return measure(hidden)

        with torch.autocast(kind, self._layers_in, enabled=self._layers_in is not None):
            result, logits = run_to_head(self._model, batch.input_ids, at_head)
        if own:
            self._compare_logits(logits.detach().float(), own[0])
        return result

    @contextmanager
    def _autocast_for_layers(self) -> Iterator[None]:
        """Inside, bfloat16 autocast of the caller is on in the model's layers (`_hidden`), and off behind them.

        Logits, sums and sketches stay in float32: in 16 bits up to 6 % of positions have another argmax. Float16 would
        lose the gradients of single examples, so under its autocast all is float32.
        """
        kind = self._head.module.weight.device.type
        if not torch.is_autocast_enabled(kind):
            yield
            return
        dtype = torch.get_autocast_dtype(kind)
        self._layers_in = None if dtype == torch.float16 else dtype
        try:
            with torch.autocast(kind, enabled=False):
                yield
        finally:
            self._layers_in = None

    def _hidden(self, batch: Batch) -> Float[Tensor, "b T d"]:
        if self._layers_in is None:
            return last_hidden(self._model, batch.input_ids)
        with torch.autocast(batch.input_ids.device.type, self._layers_in):
            return last_hidden(self._model, batch.input_ids).to(self._head.module.weight.dtype)

    def _forward_signals(
        self,
        batch: Batch,
        names: frozenset[str],
        hidden: Float[Tensor, "b T d"],
        slope: Float[Tensor, "b T d"] | None,
        scale: Float[Tensor, " b"] | None = None,
    ) -> dict[str, Tensor]:
        """What `_on_host` makes signals of the last hidden state from.

        Fills ``slope`` with scale · ∂(mean NLL)/∂hidden per example.
        """
        values: dict[str, Tensor] = {}
        states = hidden[batch.example, batch.position]
        if names & {"loss", "token_accuracy", "el2n", ERRORS} or slope is not None:
            weight = None
            if slope is not None:
                weight = (1.0 / batch.predicted.float())[batch.example]
                weight = weight if scale is None else weight * scale[batch.example]
            spectra: list[Tensor] = []

            def keep(part: slice, errors: Tensor) -> None:
                spectra.append(self._outer.spectrum(errors, states[part]))

            tokens = self._head.tokens(
                states,
                batch.target,
                el2n="el2n" in names,
                weight=weight,
                hits="token_accuracy" in names,
                errors=keep if ERRORS in names else None,
            )
            if spectra:
                values[ERRORS] = torch.cat(spectra)
            if "loss" in names:
                values["loss"] = tokens.nll
            if tokens.hits is not None:
                values["token_accuracy"] = tokens.hits
            if tokens.error is not None:
                values["el2n"] = tokens.error
            if slope is not None and tokens.slope is not None:
                slope[batch.example, batch.position] = tokens.slope
        lengths = batch.tokens[:, None]
        inside = torch.arange(hidden.shape[1], device=hidden.device) < lengths
        if names & {*LOGITS}:
            masked = hidden.masked_fill(~inside[..., None], 0)
            values |= self._logit_signals(names, LOGITS, masked, inside.float())
        if names & {*RESPONSE_LOGITS}:
            padded = hidden.new_zeros(len(batch.rows), int(batch.counts.max()), hidden.shape[2])
            valid = padded.new_zeros(padded.shape[:2], dtype=torch.float32)
            padded[batch.example, batch.rank] = states
            valid[batch.example, batch.rank] = 1
            values |= self._logit_signals(names, RESPONSE_LOGITS, padded, valid)
        if "embedding" in names:
            total = hidden.float().masked_fill(~inside[..., None], 0).sum(1)
            values["embedding"] = total / lengths
        return values

    def _logit_signals(
        self,
        names: frozenset[str],
        kinds: tuple[str, str],
        hidden: Float[Tensor, "b N d"],
        valid: Float[Tensor, "b N"],
    ) -> dict[str, Tensor]:
        """Those of the two signals ``kinds`` (nuclear norm, sketch) that are in ``names``."""
        values = {}
        nuclear_norm, sketch = kinds
        if sketch in names:
            values[sketch] = self._logits.sketches(hidden, valid)
        if nuclear_norm in names:
            values[nuclear_norm] = self._logits.nuclear_norms(hidden, valid)
        return values

    @torch.no_grad()
    def _check_logits(self, batch: Batch) -> None:
        """Compare with the model's own logits once, on a few tokens.

        Raises:
            ModelError: they differ, so the model transforms its logits in a way that is not known here.
        """
        ids = batch.input_ids[:1, : min(8, int(batch.lengths[0]))]
        with without_autocast(self._model):
            expected = self._model(input_ids=ids, use_cache=False).logits[:, -ids.shape[1] :].float()
        self._compare_logits(expected, self._head.logits(last_hidden(self._model, ids)))

    def _compare_logits(self, expected: Float[Tensor, ...], logits: Float[Tensor, ...]) -> None:
        exact = self._head.module.weight.dtype == torch.float32
        tolerance = (1e-4 if exact else 5e-2) * float(expected.abs().amax())
        gap = float((logits - expected).abs().amax())
        if gap > tolerance:  # NaN passes here and is reported with its example's name
            raise ModelError(
                f"{type(self._base).__name__}'s logits differ from head(last hidden state) by {gap:.3g}. Its "
                f"configuration was read as scale {self._head.scale:g} (logit_scale, 1 / logits_scaling) and soft cap "
                f"{self._head.cap or 'none'} (final_logit_softcapping), but it transforms them in another way. "
                "Signals of this model would be wrong; use another model."
            )
        self._logits_checked = bool(np.isfinite(gap))


def gradient_tokens(decoder: nn.Module, hidden: int, device: torch.device) -> int:
    """Padded tokens of a batch whose backward pass takes some GiB at most; on a CPU fewer for a larger model."""
    if device.type != "cpu":
        return MAX_BATCH_TOKENS
    layers = sum(isinstance(module, nn.ModuleList) and len(module) for module in decoder.children())
    token_bytes = max(1, layers) * hidden * _UNIT_BYTES
    return min(MAX_BATCH_TOKENS, max(512, _CPU_BYTES // token_bytes))


_BY_TOKEN = ("loss", "token_accuracy", "el2n", ERRORS)
"""Signals that are means over response positions."""


def _on_host(values: Mapping[str, Tensor], batch: Batch, outer: OuterSketch) -> dict[str, np.ndarray]:
    """Signals of each example; those of `_BY_TOKEN` come as a row per response position, and are summed in float64."""
    arrays = to_host(values)
    for name in {*_BY_TOKEN} & arrays.keys():
        if name == ERRORS:
            arrays[name] = outer.sketch(np.add.reduceat(arrays[name], batch.starts) / batch.counts[:, None])
        else:
            arrays[name] = np.add.reduceat(arrays[name].astype(np.float64), batch.starts) / batch.counts
    return arrays
