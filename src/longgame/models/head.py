"""The parts of a causal LM: the model inside PEFT's wrapper, its decoder, its modes, and its output head.

The vocabulary projection is the largest matrix of a small model, so it runs only where a response token is predicted:
no (batch, length, vocabulary) block ever exists.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, masking_utils

from longgame.errors import ModelError
from longgame.models.device import logit_entries

_REPACKS = "support_avx512bf16_for_cpu"
"""Attribute of bitsandbytes' Linear4bit: whether it may repack its weights for inference."""


def unwrap(model: nn.Module) -> PreTrainedModel:
    """Return the causal LM itself, with adapter layers in place where PEFT has put them.

    Raises:
        ModelError: not a transformers model.
    """
    if isinstance(model, PeftModel):
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        kind = type(model).__name__
        raise ModelError(f"signals need a transformers causal LM or a PeftModel around one, not {kind}.")
    return model


def prompt_learning(model: nn.Module) -> str | None:
    """Return the kind of a model's prompt-learning adapter, which lives outside the layers; None without one."""
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return str(model.active_peft_config.peft_type.value)
    return None


_NOT_ALONE = {
    "LILY": "routes by the mean over all tokens of a batch, so no example has a loss of its own",
    "MULTITASK_PROMPT_TUNING": "needs task ids, which examples do not carry",
    "POLY": "needs task ids, which examples do not carry",
}
"""Kinds of adapters under which the loss of an example is not determined by the example, and why."""


def refuse_joint_adapters(model: nn.Module) -> None:
    """Raise ModelError where an adapter does not let examples be measured one by one."""
    if isinstance(model, PeftModel):
        kind = str(model.active_peft_config.peft_type.value)
        if kind in _NOT_ALONE:
            raise ModelError(f"signals do not support the adapter type {kind}: it {_NOT_ALONE[kind]}. Use LoRA.")


def _inside_layers(model: nn.Module, base: PreTrainedModel) -> bool:
    """Whether the decoder alone computes what the model does: adapters have no part outside its layers."""
    if not isinstance(model, PeftModel):
        return True
    config = model.active_peft_config
    if config.is_prompt_learning or getattr(config, "alora_invocation_tokens", None):
        return False
    outside = list(_parameters_outside(model, base))
    inside = {id(parameter) for parameter in base.parameters()} if outside else set()
    return all(id(parameter) in inside for parameter in outside)


def _parameters_outside(module: nn.Module, base: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of a wrapper without those of what it wraps, which are many."""
    if module is not base:
        yield from module.parameters(recurse=False)
        for child in module.children():
            yield from _parameters_outside(child, base)


@contextmanager
def without_autocast(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes in the dtype of its weights: accelerate's mixed precision wraps its ``forward``.

    Every Trainer that prepares the model wraps it once more.
    """
    attributes = vars(model)
    wrapper = attributes.get("forward") if "_original_forward" in attributes else None
    # PEFT also replaces `forward`, by that of another module, where a prompt-learning adapter is disabled
    if getattr(wrapper, "__self__", None) is not model:
        yield
        return
    del attributes["forward"]
    try:
        yield
    finally:
        attributes["forward"] = wrapper


class _PackingCheck:
    """Switches off transformers' look for packed sequences in the threads that ask for it.

    `masking_utils.find_packed_sequence_indices` reads the position ids at every forward pass without a mask, and the
    host waits for a GPU until it has them. Positions that a model numbers itself are 0, 1, 2 … in every row.
    """

    _NAME = "find_packed_sequence_indices"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth: dict[int, int] = {}
        """Thread → how many blocks it is in."""
        self._original: Any = None

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, in this thread, no batch counts as packed; it must come without position ids."""
        thread = threading.get_ident()
        with self._lock:
            if not self._depth:
                self._original = getattr(masking_utils, self._NAME, None)
                if self._original is not None:
                    setattr(masking_utils, self._NAME, functools.partial(self._find, self._original))
            self._depth[thread] = self._depth.get(thread, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._depth[thread] -= 1
                if not self._depth[thread]:
                    del self._depth[thread]
                if not self._depth and self._original is not None:
                    setattr(masking_utils, self._NAME, self._original)

    def _find(self, original: Callable[[Tensor], Tensor | None], position_ids: Tensor) -> Tensor | None:
        if not torch.compiler.is_compiling() and threading.get_ident() in self._depth:
            return None
        return original(position_ids)


_packing_check = _PackingCheck()


def last_hidden(model: nn.Module, input_ids: Int[Tensor, "b T"]) -> Float[Tensor, "b T d"]:
    """Return the last hidden states of these tokens, as the model with its adapters computes them."""
    with _packing_check.off():
        return _last_hidden(model, input_ids)


def _last_hidden(model: nn.Module, input_ids: Int[Tensor, "b T"]) -> Float[Tensor, "b T d"]:
    base = unwrap(model)
    decoder = decoder_of(base)
    if _inside_layers(model, base):
        return decoder(input_ids=input_ids, use_cache=False).last_hidden_state
    options = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}
    states: list[Tensor] = []
    handle = decoder.register_forward_hook(lambda _module, _inputs, output: states.append(output.last_hidden_state))
    try:
        with without_autocast(model):
            model(input_ids=input_ids, use_cache=False, **options)
    finally:
        handle.remove()
    return states[-1][:, -input_ids.shape[1] :]  # a prompt-learning adapter puts its prompt before them


def decoder_of(base: PreTrainedModel) -> nn.Module:
    """Return the stack from token ids to the last hidden state, without the output head.

    Raises:
        ModelError: the model names no decoder.
    """
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
    if decoder is None or decoder is base:
        raise ModelError(
            f"{type(base).__name__} names no decoder (get_decoder()). Signals need a decoder-only causal LM."
        )
    return decoder


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put each of these modules into evaluation mode, and back into its previous mode afterwards.

    bitsandbytes' 4-bit layers must not repack their weights: on a CPU with bfloat16 instructions they do so at the
    first forward pass in evaluation mode without gradient, and never pass a gradient on again.
    """
    modules = list(modules)
    training = [module for module in modules if module.training]
    packing = [module for module in modules if vars(module).get(_REPACKS)]
    try:
        for module in training:
            _set_training(module, False)
        for module in packing:
            vars(module)[_REPACKS] = False
        yield
    finally:
        for module in training:
            _set_training(module, True)
        for module in packing:
            vars(module)[_REPACKS] = True


def _set_training(module: nn.Module, value: bool) -> None:
    """Set ``module.training`` without the checks of ``nn.Module``, unless it is a property (of compiled modules)."""
    if hasattr(type(module), "training"):
        module.training = value
    else:
        vars(module)["training"] = value


def float32_product(head: nn.Linear, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... V"]:
    """h Wᵀ + b in float32, whatever the dtype of the weights, which are widened slice by slice.

    A bfloat16 product rounds logits to 8 bits: on a vocabulary of 50,000, up to 6 % of positions then have another
    argmax, or several.
    """
    weight, bias = head.weight, head.bias
    if weight.dtype == torch.float32:
        return functional.linear(hidden, weight, bias).float()
    rows = max(1, logit_entries(weight.device) // weight.shape[1])
    wide = hidden.float()
    logits = torch.cat([wide @ part.float().T for part in weight.split(rows)], dim=-1)
    return logits if bias is None else logits.add_(bias.float())


@contextmanager
def float32_head(model: nn.Module) -> Iterator[None]:
    """Inside, the model's output head gives float32 logits (`float32_product`) where its weights have 16 bits."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    if type(head) is not nn.Linear or head.weight.dtype not in (torch.bfloat16, torch.float16):
        yield
        return
    vars(head)["forward"] = functools.partial(float32_product, head)
    try:
        yield
    finally:
        del vars(head)["forward"]


def response_logits(model: nn.Module, index: Int[Tensor, " k"], **inputs: Any) -> Float[Tensor, "k V"]:
    """Run a causal LM and return its logits at these positions only.

    A hook lets the head see no other hidden states, so whatever the model does to its logits afterwards (scale, soft
    cap) still happens. A model that computes logits without its head module is gathered from afterwards.

    Args:
        model: a causal LM of transformers, or a PeftModel around one.
        index: rows of the flattened (batch × length) input.
        inputs: the model's arguments without labels.

    Raises:
        ModelError: the head sees another number of positions than the input has (prompt learning).
    """
    positions, head_ran = inputs["input_ids"].numel(), False

    def narrow(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal head_ran
        head_ran = True
        hidden = args[0].reshape(-1, args[0].shape[-1])
        if len(hidden) != positions:
            raise ModelError(
                f"the output head sees {len(hidden)} positions of an input of {positions} tokens: the model adds or "
                "leaves out some (prompt learning?). Use LoRA or full fine-tuning."
            )
        return (hidden[index.to(hidden.device)].unsqueeze(0), *args[1:])  # (1, k, d)

    handle = model.get_output_embeddings().register_forward_pre_hook(narrow)  # type: ignore[operator]
    try:
        with nullcontext() if "position_ids" in inputs else _packing_check.off():
            logits = model(**inputs).logits
    finally:
        handle.remove()
    logits = logits.reshape(-1, logits.shape[-1])  # (k, V), or (batch · length, V) where the head did not run
    return logits if head_ran else logits[index.to(logits.device)]


def response_loss(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    items: Tensor | int,
    weights: Float[Tensor, "b n"] | None = None,
    places: Int[Tensor, "k 2"] | None = None,
) -> Float[Tensor, ""]:
    """Sum of response NLL in a micro-batch over ``items``, the labelled tokens of the whole step (nats/token).

    The same sum over the same tokens as the model's own loss, each token's NLL times its weight.

    Args:
        model: a causal LM whose loss has no other terms (see `has_other_loss`).
        inputs: what the model takes, with ``labels`` [b, n] that are −100 where no loss is taken.
        items: labelled tokens.
        weights: of each token of ``labels``; None: 1.
        places: `labeled_places` of the labels, where they were read on the host: a GPU would make it wait.
    """
    labels = inputs["labels"]
    rows, columns = (labeled_places(labels) if places is None else places.to(labels.device)).T
    others = {name: value for name, value in inputs.items() if name != "labels"}
    logits = response_logits(model, rows * labels.shape[1] + columns, **others, use_cache=False)
    targets = labels[rows, columns + 1]
    if weights is None:
        return functional.cross_entropy(logits.float(), targets, reduction="sum") / items
    nll = functional.cross_entropy(logits.float(), targets, reduction="none")
    return (weights[rows, columns + 1] * nll).sum() / items


def labeled_places(labels: Int[Tensor, "b n"]) -> Int[Tensor, "k 2"]:
    """Row and column of each position whose next token is labeled."""
    return (labels[:, 1:] != -100).nonzero()


def has_other_loss(model: nn.Module) -> bool:
    """Whether the model's loss is more than the NLL of labels: mixtures of experts add a load-balancing term."""
    config: Any = model.config
    return bool(getattr(config.get_text_config(), "output_router_logits", False))


class TokenOutcomes(NamedTuple):
    """How well response tokens are predicted; None for what was not asked for."""

    nll: Float[Tensor, " m"]
    """Nats."""
    error: Float[Tensor, " m"] | None = None
    """‖softmax − one-hot‖₂."""
    slope: Float[Tensor, "m d"] | None = None
    """weight · ∂NLL/∂hidden."""
    hits: Float[Tensor, " m"] | None = None
    """1 where the token is the most likely one (of equal logits the first), else 0."""


def _is_linear(module: Any) -> bool:
    """Whether this is a plain linear layer; FSDP2 gives the layers that it divides a class of their own."""
    kind = type(module)
    return kind is nn.Linear or (kind.__name__ == "FSDPLinear" and kind.__mro__[2] is nn.Linear)


class LogitHead:
    """Output head of a causal LM: logits = cap(scale · (h Wᵀ + b)), with cap the identity or c·tanh(·/c).

    The scale is read from ``logit_scale`` (Cohere) or ``logits_scaling`` (Granite, a divisor), the cap from
    ``final_logit_softcapping`` (Gemma); `SignalEngine` compares with the model's own logits before it trusts them.

    Args:
        base: the causal LM (not the PEFT wrapper).

    Raises:
        ModelError: there is no output head, or an adapter or wrapper sits on it.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self._head: Any = base.get_output_embeddings()
        self._merged: tuple[tuple[Any, ...], nn.Linear] | None = None
        if not _is_linear(self.module):
            kind = "none" if self._head is None else f"{type(self._head).__module__}.{type(self._head).__name__}"
            raise ModelError(
                f"the model's output head is {kind}; signals need a plain torch.nn.Linear. "
                "Load a causal LM, and keep adapters off its head (e.g. off `lm_head`)."
            )
        config = base.config.get_text_config()
        multiply, divide = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
        cap = getattr(config, "final_logit_softcapping", None)
        self.scale = (1.0 if multiply is None else float(multiply)) / (1.0 if divide is None else float(divide))
        self.cap = float(cap) if cap else None

    @property
    def module(self) -> nn.Linear:
        """The head in use: a copy that PEFT trains (``modules_to_save``) unless adapters are off.

        Tokens that PEFT trains (``trainable_token_indices``) are rows of a tied head; the head is made of both, anew
        when either has changed.
        """
        head = self._head
        if isinstance(head, TrainableTokensWrapper):
            return self._with_tokens(head)
        if isinstance(head, ModulesToSaveWrapper):
            copies = (
                [] if head.disable_adapters else [name for name in head.active_adapters if name in head.modules_to_save]
            )
            head = head.modules_to_save[copies[0]] if copies else head.original_module
        return head

    def _with_tokens(self, head: TrainableTokensWrapper) -> nn.Linear:
        layer, plain = head.token_adapter, head.original_module
        if type(plain) is not nn.Linear:
            return plain
        names = () if layer.disable_adapters else tuple(layer.active_adapters)
        tokens = [layer.trainable_tokens_delta[name] for name in names]
        versions = [(weight.data_ptr(), weight._version) for weight in (plain.weight, *tokens)]
        key = (names, *versions)
        if self._merged is None or self._merged[0] != key:
            with torch.no_grad():
                merged = nn.Linear(plain.in_features, plain.out_features, bias=False, device="meta")
                merged.weight = nn.Parameter(layer.get_merged_weights(names), requires_grad=False)
                merged.bias = plain.bias
            merged.weight.requires_grad_(any(weight.requires_grad for weight in tokens))
            self._merged = (key, merged)
        return self._merged[1]

    @property
    def version(self) -> tuple[int, ...]:
        """Changes whenever the head's weights are written in place or replaced.

        One that is divided between processes (FSDP2) has no content here; while it is frozen, it is the same.
        """
        weight, bias = self.module.weight, self.module.bias
        if hasattr(weight, "full_tensor"):
            return (-1,)
        return (weight.data_ptr(), weight._version, -1 if bias is None else bias._version)

    @property
    def trainable(self) -> bool:
        """Whether training moves the head (also when it is tied to trained input embeddings)."""
        return self.module.weight.requires_grad

    def logits(self, hidden: Float[Tensor, "m d"]) -> Float[Tensor, "m V"]:
        """Return the float32 logits of these hidden states."""
        return self.finish(float32_product(self.module, hidden))

    def finish(self, raw: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """Turn h Wᵀ + b into logits (scale, then soft cap), in place."""
        if self.scale != 1.0:
            raw *= self.scale
        if self.cap is not None:
            raw.div_(self.cap).tanh_().mul_(self.cap)
        return raw

    @torch.no_grad()
    def tokens(
        self,
        hidden: Float[Tensor, "m d"],
        target: Int[Tensor, " m"],
        *,
        el2n: bool = False,
        weight: Float[Tensor, " m"] | None = None,
        hits: bool = False,
        errors: Callable[[slice, Float[Tensor, "c V"]], None] | None = None,
    ) -> TokenOutcomes:
        """Measure response tokens under these hidden states, in chunks of `logit_entries` logits.

        Args:
            target: the tokens.
            errors: called with each chunk of tokens and its softmax − one-hot, which it must not change.
            el2n, hits: measure `TokenOutcomes.error` and `TokenOutcomes.hits`, too.
            weight: of each token in `TokenOutcomes.slope`; None: no slope.
        """
        vocabulary = self.module.weight
        nll = hidden.new_empty(len(target), dtype=torch.float32)
        error = torch.empty_like(nll) if el2n else None
        top = torch.empty_like(nll) if hits else None
        gradient = None if weight is None else torch.empty_like(hidden)
        chunk = max(1, logit_entries(vocabulary.device) // len(vocabulary))
        for start in range(0, len(target), chunk):
            part = slice(start, start + chunk)
            logits, at = self.logits(hidden[part]), target[part, None]
            bend = None
            if gradient is not None and self.cap is not None:
                bend = 1 - (logits / self.cap).square_()  # derivative of c·tanh(z/c)
            best = None if top is None else logits.argmax(1)
            logits -= logits.amax(1, keepdim=True)
            picked = logits.gather(1, at)
            mass = logits.exp_().sum(1, keepdim=True)
            nll[part] = (mass.log() - picked)[:, 0]
            if top is not None and best is not None:  # NaN where the logits are, which argmax hides
                top[part] = (best == target[part]).float().masked_fill_(nll[part].isnan(), torch.nan)
            if error is None and gradient is None and errors is None:
                continue
            # What is left without the token itself: 1 − p_y = remainder / mass, where 1 minus p_y would cancel near 1.
            # A scatter that adds would have no fixed order on a GPU.
            others = logits.scatter_(1, at, 0.0)
            remainder = others.sum(1, keepdim=True)
            if errors is not None:  # of a copy: the other columns have the same bits with and without this one
                errors(part, (others / mass).scatter_(1, at, -remainder / mass))
            if error is not None:
                error[part] = (torch.linalg.vector_norm(others, dim=1).hypot(remainder[:, 0])).div_(mass[:, 0])
            if gradient is not None and weight is not None:
                gradient[part] = self._slopes(others, remainder, weight[part, None] * self.scale / mass, at[:, 0], bend)
        return TokenOutcomes(nll, error, gradient, top)

    def _slopes(
        self,
        others: Float[Tensor, "c V"],
        remainder: Float[Tensor, "c 1"],
        factor: Float[Tensor, "c 1"],
        target: Int[Tensor, " c"],
        bend: Float[Tensor, "c V"] | None,
    ) -> Float[Tensor, "c d"]:
        """factor · ((exp z without the token) W − remainder · W[token]): w · (softmax W − W[token]), without a one-hot.

        Args:
            others: exp z, 0 at the token; changed in place.
            remainder: its sums.
            factor: weight · scale / Σ exp z.
            bend: derivative of the logits by the raw ones; None: 1.
        """
        vocabulary = self.module.weight
        if bend is not None:
            remainder = remainder * bend.gather(1, target[:, None])
            others *= bend
        if vocabulary.dtype == torch.float16:  # which holds no small weights, unless they are scaled
            others *= factor
            remainder, factor = remainder * factor, torch.ones_like(factor)
        toward = (others.to(vocabulary.dtype) @ vocabulary).float()
        return toward.addcmul_(remainder, vocabulary[target].float(), value=-1).mul_(factor)
