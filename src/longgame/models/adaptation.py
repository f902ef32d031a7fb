"""How a model is fine-tuned, and all that depends on it: which weights train, the frozen base, how far a stage moved
the weights, the files, the FLOPs.

A new kind of adaptation is a class here with a line in `ADAPTATIONS`, and a line in `recipe.ADAPTATION_KINDS`.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import itertools
import logging
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float
from peft import (
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from longgame.errors import ModelError, did_you_mean
from longgame.models.device import device_bytes
from longgame.models.flops import ModelFlops
from longgame.models.fused import folded_lora
from longgame.models.head import LogitHead, decoder_of, unwrap
from longgame.models.lora import Factors, dora_weights, factor_sizes, lora_factors
from longgame.recipe import ModelSpec
from longgame.seeding import stream_seed

Weights = Mapping[str, Tensor]
"""Copies of the trained parameters by name."""

_log = logging.getLogger(__name__)
_REPLACED = ".original_module."
"""In the name of a module that a trained copy stands in for."""


class Movement(NamedTuple):
    """What a stage did to the weights, in effective weight space (paper §3, trajectory diagnostics)."""

    drift: float
    """1 − cos(ΔW_t, Σ_{s<t} ΔW_s): 0 onwards, 1 across, 2 straight back; NaN at stage 1 or when nothing moved."""
    norm: float
    """‖ΔW_t‖, Frobenius."""


class Adaptation(ABC):
    """A causal LM together with the choice of the weights that fine-tuning changes.

    Args:
        model: the adapted model, as trainers take it.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def load_options(cls, _spec: ModelSpec) -> dict[str, Any]:
        """Keyword arguments that ``from_pretrained`` needs for the base model."""
        return {}

    @classmethod
    def changes_base(cls, _spec: ModelSpec) -> bool:
        """Whether attaching or training writes into the base model's own weights."""
        return False

    @classmethod
    @abstractmethod
    def attach(cls, model: PreTrainedModel, spec: ModelSpec, seed: int) -> Self:
        """Make the base model trainable, in place.

        Raises:
            ModelError: the model cannot be adapted as the spec says.
        """

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that training changes, by name."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def copy(self) -> Weights:
        """Copy the trained parameters."""
        return {name: parameter.detach().clone() for name, parameter in self.trained().items()}

    @torch.no_grad()
    def restore(self, weights: Weights) -> None:
        """Put a `copy` back.

        Raises:
            KeyError: a trained parameter is not among ``weights``.
        """
        for name, parameter in self.trained().items():
            parameter.copy_(weights[name])

    @property
    def has_base(self) -> bool:
        """Whether the model that fine-tuning began with can be had by `frozen_base`."""
        return True

    @abstractmethod
    def frozen_base(self) -> AbstractContextManager[None]:
        """Inside, the model is the one that fine-tuning began with.

        Raises:
            ModelError: that model is no longer there.
        """

    @abstractmethod
    def movement(self, before: Weights) -> Movement:
        """Movement of a stage that began at ``before`` and ended at the weights of now."""

    def merged(self) -> AbstractContextManager[bool]:
        """Inside, adapters may be folded into the base weights to save time; yields whether they are."""
        return nullcontext(False)

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the trained parameters."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises:
            OSError, SafetensorError, KeyError, ValueError: the files are missing, damaged, or of another model.
        """

    def flops(self) -> ModelFlops | None:
        """Return what a token costs in this model, or None (with a warning) where its weights do not tell.

        Linear layers are counted, quantized ones by their nominal size. A weight matrix outside of them (experts, of
        which a token uses a few) leaves the model uncounted.

        Raises:
            ModelError: not a causal LM with a decoder and a plain output head.
        """
        base = unwrap(self.model)
        head, decoder = LogitHead(base), decoder_of(base)
        lora, factors = factor_sizes(decoder)
        counted = set(factors)
        dense, trains_dense = 0, False
        for name, module in decoder.named_modules():
            if _REPLACED in f"{name}.":  # its copy in modules_to_save is used
                counted |= {id(weight) for weight in module.parameters()}
            elif isinstance(module, nn.Embedding):
                counted.add(id(module.weight))
            elif isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in factors:
                counted.add(id(module.weight))
                dense += (
                    module.in_features * module.out_features if isinstance(module, nn.Linear) else module.weight.numel()
                )
                trains_dense |= bool(module.weight.requires_grad)
        config = base.config.get_text_config()
        layers, heads = (getattr(config, name, None) for name in ("num_hidden_layers", "num_attention_heads"))
        others = [name for name, weight in decoder.named_parameters() if weight.dim() > 1 and id(weight) not in counted]
        if others or not layers or not heads:
            why = (
                f"'{others[0]}' is a weight outside linear layers" if others else "its config names no attention heads"
            )
            _log.warning("the FLOPs of %s are not counted: %s.", type(base).__name__, why)
            return None
        head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
        return ModelFlops(
            dense=dense,
            lora=lora,
            attention=layers * heads * head_size,
            hidden=head.module.in_features,
            head=head.module.in_features * head.module.out_features,
            trains_dense=trains_dense,
            trains_head=head.trainable,
            capped=head.cap is not None,
        )


def _check_same_shapes(loaded: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Raise KeyError for a tensor that is missing or surplus, and ValueError for one of another shape."""
    if lacking := sorted(expected.keys() - loaded.keys()):
        raise KeyError(f"{len(lacking)} of {len(expected)} tensors are missing, such as {lacking[0]}")
    if surplus := sorted(loaded.keys() - expected.keys()):
        raise KeyError(f"{len(surplus)} tensors are not of this model, such as {surplus[0]}")
    for name, tensor in loaded.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{name} has the shape {tuple(tensor.shape)}; this model's has {tuple(expected[name].shape)}"
            )


class FullAdaptation(Adaptation):
    """Every parameter trains, in the model's dtype.

    Args:
        model: the causal LM.
        start: the weights before any training, where they were kept.
    """

    _FILE = "weights.safetensors"

    @classmethod
    def changes_base(cls, _spec: ModelSpec) -> bool:
        return True

    def __init__(self, model: Any, start: Weights | None = None) -> None:
        super().__init__(model)
        self._start = start

    @classmethod
    def attach(cls, model: PreTrainedModel, _spec: ModelSpec, _seed: int) -> Self:
        """Make every parameter trainable, and keep a copy of all of them."""
        return cls(model, cls(model.requires_grad_(True)).copy())

    def copy(self) -> Weights:
        """As `Adaptation.copy`; on the host where a GPU has no room for it beside weights, gradients and optimizer."""
        weights = self.trained()
        size = sum(parameter.nbytes for parameter in weights.values())
        far = any(size > device_bytes(parameter.device) // 16 for parameter in weights.values() if parameter.is_cuda)
        return {
            name: parameter.detach().to("cpu" if far else parameter.device, copy=True)
            for name, parameter in weights.items()
        }

    @property
    def has_base(self) -> bool:
        return self._start is not None

    @contextmanager
    def frozen_base(self) -> Iterator[None]:
        start, now = self._kept_start(), self.copy()
        self.restore(start)
        try:
            yield
        finally:
            self.restore(now)

    def movement(self, before: Weights) -> Movement:
        start = self._kept_start()
        return dense_movement(
            (_array(past - start[name].to(past.device)), _array(now.detach().to(past.device) - past))
            for name, now in self.trained().items()
            for past in (before[name],)
        )

    def save(self, folder: Path) -> None:
        save_file(dict(self.copy()), folder / self._FILE)

    def load(self, folder: Path) -> None:
        weights = load_file(folder / self._FILE)
        _check_same_shapes(weights, self.trained())
        self.restore(weights)

    def _kept_start(self) -> Weights:
        if self._start is None:
            raise ModelError(
                "the model is trained in full, and no copy of its weights before training was kept. Train an adapter, "
                "or compute what needs the frozen base (embedding, base_loss) before training."
            )
        return self._start


_EXPERTS = re.compile(r"(?:^|\.)experts?$")
_CHOOSING = re.compile(r"(?:^|\.)(?:router|gate|shared_expert_gate)$")
"""Last names of the parts of a mixture of experts: experts, of which a token meets only a few, and what chooses."""


def _without_experts(model: nn.Module) -> list[str]:
    """Names of the linear layers but the output head, routers and experts; empty for a model without experts."""
    names = dict(model.named_modules())
    routed = [name for name in names if _EXPERTS.search(name) or _CHOOSING.search(name)]
    if not any(_EXPERTS.search(name) for name in routed):
        return []
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    return [
        name
        for name, module in names.items()
        if isinstance(module, nn.Linear)
        and module is not head
        and not any(name == other or name.startswith(f"{other}.") for other in routed)
    ]


PEFT_KINDS = (*("DELORA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "MISS", "OFT", "ROAD", "SHIRA", "VERA"),)
"""Kinds of PEFT beside LoRA that change the layers alone and begin at the base model: no ranks that change on the way,
no prompts before the text, no random first change."""

_AUDIT_KEYS = ("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision")
_LORA_KEYS = {
    "r": "model.lora.r",
    "lora_alpha": "model.lora.alpha",
    "lora_dropout": "model.lora.dropout",
    "target_modules": "model.lora.target_modules",
}
"""Keys of PEFT's `LoraConfig` that a recipe writes elsewhere."""


def peft_config(spec: ModelSpec, **settings: Any) -> PeftConfig:
    """PEFT's configuration of the recipe's adapter.

    Args:
        settings: what the adaptation sets itself; it comes before `model.peft`.

    Raises:
        ModelError: `model.peft` names an unknown kind or key, or one that is set elsewhere or cannot be audited.
    """
    given = {key: value for key, value in spec.peft.items() if key != "type"}
    kind = str(spec.peft.get("type", "LORA")).upper()
    own = spec.adaptation == "peft"
    known = sorted(kind for kind in PEFT_KINDS if kind in PEFT_TYPE_TO_CONFIG_MAPPING)
    if own and kind not in known:
        use = " Use adaptation: lora." if kind == "LORA" else did_you_mean(kind, known)
        raise ModelError(f"model.peft.type '{kind}' is no kind that is audited.{use} Known: {', '.join(known)}.")
    if not own and kind != "LORA":
        raise ModelError(f"model.peft.type is '{kind}' but model.adaptation is '{spec.adaptation}'; set it to peft.")
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    fields = {field.name for field in dataclasses.fields(config)} - {*_AUDIT_KEYS, "inference_mode"}
    for key in given:
        if not own and key in _LORA_KEYS:
            raise ModelError(f"model.peft.{key} is written as {_LORA_KEYS[key]}.")
        if key == "use_dora" and spec.adaptation == "lora":
            raise ModelError("model.peft.use_dora is written as model.adaptation: dora.")
        if key not in fields:
            raise ModelError(
                f"model.peft has no key '{key}'.{did_you_mean(key, fields)} Keys of {config.__name__}: "
                f"{', '.join(sorted(fields - _LORA_KEYS.keys() if not own else fields))}."
            )
    if given.get("bias", "none") != "none":
        raise ModelError(
            f"model.peft.bias is {given['bias']!r}, which trains the base's own biases, so the base is lost. Use none."
        )
    if given.get("init_lora_weights") is False:
        raise ModelError("model.peft.init_lora_weights is false: training would not begin at the base. Leave it out.")
    try:
        return config(**{"task_type": "CAUSAL_LM", **settings, **given})
    except (TypeError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise ModelError(f"PEFT refuses model.peft: {' '.join(str(error).split())}. Correct these keys.") from error


_MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of PEFT's ``init_lora_weights`` whose adapters change the base weights when they are attached."""


def _moves_base(init: Any) -> bool:
    """Whether PEFT's ``init_lora_weights`` changes the base weights; PEFT reads some of its names in any case."""
    return str(init).lower().startswith(_MOVES_BASE)


class LoraAdaptation(Adaptation):
    """PEFT LoRA on the linear layers but the head; the base is frozen.

    The factors are float32 whatever the base's dtype. A is drawn from the seed and B is 0, so training begins at the
    base. Attach before moving to a GPU: then the draw is the same everywhere.
    """

    config: ClassVar[Mapping[str, Any]] = {}
    """What a variant of LoRA adds to PEFT's `LoraConfig`."""
    _FILE = "adapter_model.safetensors"

    def __init__(self, model: Any, start: Weights | None = None) -> None:
        """As `Adaptation`; ``start``: LoRA's weights before any training, None where B A was 0 then."""
        super().__init__(model)
        self._start = start

    @classmethod
    def changes_base(cls, spec: ModelSpec) -> bool:
        return _moves_base(spec.peft.get("init_lora_weights"))

    @classmethod
    def attach(cls, model: PreTrainedModel, spec: ModelSpec, seed: int) -> Self:
        lora = spec.lora
        target = lora.target_modules if isinstance(lora.target_modules, str) else [*lora.target_modules]
        if target == "all-linear":
            target = _without_experts(model) or target
        config = peft_config(
            spec,
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=target,
            **cls.config,
        )
        hint = "Set model.lora.target_modules to 'all-linear' or to names of linear layers."
        try:
            adaptation = cls(_with_adapter(model, config, seed))
        except (ValueError, re.error) as error:
            raise ModelError(
                f"LoRA cannot be put on target_modules {target!r} of {type(model).__name__}: {error}. {hint}"
            ) from error
        start = {
            name: weight.detach().clone() for name, weight in adaptation.trained().items() if _OF_LORA.search(name)
        }
        if adaptation._uses_dora or any(
            part.A.any() and part.B.any() for part in lora_factors(adaptation.model, start)
        ):
            adaptation._start = start
        return adaptation

    @property
    def has_base(self) -> bool:
        return not _moves_base(self._init)

    @property
    def _init(self) -> Any:
        """PEFT's ``init_lora_weights``; None for another kind of adapter."""
        return getattr(self.model.active_peft_config, "init_lora_weights", None)

    @property
    def _uses_dora(self) -> bool:
        return bool(self.model.active_peft_config.use_dora)

    def frozen_base(self) -> AbstractContextManager[None]:
        if not self.has_base:
            raise ModelError(
                f"init_lora_weights is {self._init!r}, which takes the adapter's "
                "first factors out of the base weights: without the adapter the model is another one. Signals of the "
                "base are measured before training begins."
            )
        return self.model.disable_adapter()

    def movement(self, before: Weights) -> Movement:
        """As `Adaptation.movement`; NaN where more than factors and whole modules (``modules_to_save``) trains."""
        after = self.trained()
        others = {name for name in after if not _OF_LORA.search(name)}
        if any(_SAVED not in name for name in others):
            return Movement(float("nan"), float("nan"))
        saved = [
            (_array(before[name] - start.to(before[name].device)), _array(after[name].detach() - before[name]))
            for name, start in self._saved_modules(others)
        ]
        if self._uses_dora:
            old, new, start = (dora_weights(self.model, weights) for weights in (before, after, self._start))
            changes = ((past - base, now - past) for past, now, base in zip(old, new, start, strict=True))
            return dense_movement(itertools.chain(changes, saved))
        return low_rank_movement(
            lora_factors(self.model, before),
            lora_factors(self.model, after),
            saved,
            None if self._start is None else lora_factors(self.model, self._start),
        )

    def _saved_modules(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Name of each trained weight of a whole module, and the base's weight that it is a copy of."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for name in sorted(names):
            yield name, parameters[re.sub(r"modules_to_save\.[^.]+", "original_module", name)].detach()

    def merged(self) -> AbstractContextManager[bool]:
        return folded_lora(self.model)

    def save(self, folder: Path) -> None:
        """Write the adapter as PEFT's own files, loadable by anyone; a base in a folder is named without its path."""
        config = copy.copy(self.model.active_peft_config)
        base = str(config.base_model_name_or_path or "")
        config.base_model_name_or_path = Path(base).name if Path(base).is_absolute() else base or None
        config.save_pretrained(str(folder))
        weights = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / self._FILE)

    def load(self, folder: Path) -> None:
        weights = load_file(folder / self._FILE)
        _check_same_shapes(weights, get_peft_model_state_dict(self.model, save_embedding_layers=False))
        set_peft_model_state_dict(self.model, weights)


_OF_LORA = re.compile(r"\.lora_(?:[AB]|embedding_[AB]|magnitude_vector)\.")
_SAVED = ".modules_to_save."
"""In the names of LoRA's parameters, and of those of modules that train as a whole."""


def _with_adapter(model: PreTrainedModel, config: PeftConfig, seed: int) -> Any:
    """The model under a new adapter, whose first weights are drawn from the seed."""
    layers = [name for name, _ in model.named_modules()]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), warnings.catch_warnings():
        torch.manual_seed(stream_seed(seed, "adapter"))
        # peft 0.21 still asks transformers 5.23 by a name that is deprecated there
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # and PEFT sets it right
        adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
    for key in ("target_modules", "modules_to_save"):  # PEFT passes over a name that fits nothing
        names = getattr(config, key, None)
        for name in names if isinstance(names, list | tuple | set) else ():
            if not any(f".{layer}".endswith(f".{name}") for layer in layers):
                hint = did_you_mean(name, {layer.rpartition(".")[2] for layer in layers})
                raise ModelError(
                    f"{key} names '{name}', which no layer of {type(model).__name__} is called.{hint} Correct the "
                    "name, or leave it out."
                )
    return adapted


class PeftAdaptation(LoraAdaptation):
    """Another kind of PEFT (`PEFT_KINDS`) with the keys of `model.peft`; its movement and FLOPs are not measured."""

    @classmethod
    def attach(cls, model: PreTrainedModel, spec: ModelSpec, seed: int) -> Self:
        config = peft_config(spec)
        try:
            return cls(_with_adapter(model, config, seed))
        except (ValueError, TypeError, KeyError, RuntimeError, re.error) as error:
            raise ModelError(
                f"PEFT cannot put {spec.adaptation_label} on {type(model).__name__}: {' '.join(str(error).split())}. "
                "Correct model.peft (target_modules, sizes)."
            ) from error

    def movement(self, _before: Weights) -> Movement:
        return Movement(float("nan"), float("nan"))

    def flops(self) -> None:
        return None


class DoraAdaptation(LoraAdaptation):
    """LoRA that learns the length of each weight row apart from its direction (DoRA, arXiv 2402.09353)."""

    config: ClassVar[Mapping[str, Any]] = {"use_dora": True}


class QLoraAdaptation(LoraAdaptation):
    """LoRA on a base whose linear layers hold 4-bit NF4 weights (arXiv 2305.14314); needs bitsandbytes."""

    @classmethod
    def load_options(cls, spec: ModelSpec) -> dict[str, Any]:
        """Quantize while loading; activations have the spec's dtype.

        Raises:
            ModelError: bitsandbytes is not installed.
        """
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ModelError(
                "model.adaptation 'qlora' needs bitsandbytes, which is not installed. "
                "Run: pip install 'longgame[qlora]', or use adaptation: lora."
            )
        return {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=getattr(torch, spec.dtype),
            )
        }


ADAPTATIONS: dict[str, type[Adaptation]] = {
    "full": FullAdaptation,
    "lora": LoraAdaptation,
    "dora": DoraAdaptation,
    "qlora": QLoraAdaptation,
    "peft": PeftAdaptation,
}
"""`model.adaptation` of a recipe → its class."""


def adapt(model: PreTrainedModel, spec: ModelSpec, seed: int) -> Adaptation:
    """Make a base model trainable in place, as the spec says; what is drawn comes from ``seed``.

    Raises:
        ModelError: no module matches ``target_modules``, or PEFT does not take them.
    """
    return ADAPTATIONS[spec.adaptation].attach(model, spec, seed)


def adaptation_of(model: nn.Module) -> Adaptation:
    """Return the adaptation of a model that its user has made trainable."""
    return LoraAdaptation(model) if isinstance(model, PeftModel) else FullAdaptation(model)


def low_rank_movement(
    before: Sequence[Factors],
    after: Sequence[Factors],
    dense: Iterable[Change] = (),
    start: Sequence[Factors] | None = None,
) -> Movement:
    """Movement of adapters, without ever forming a d × d matrix.

    ⟨B₁A₁, B₂A₂⟩ = Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ), and W' − W = [B' − B, B] [A'; A' − A]: in this form small steps do not drown in
    the rounding of large weights.

    Args:
        dense: changes of further parameters, which have no factors.
        start: the factors that training began with; None: W = 0 (LoRA: B = 0).
    """
    old, new = [_float64(module) for module in before], [_float64(module) for module in after]
    update = _differences(old, new)
    if start is not None:
        old = _differences([_float64(module) for module in start], old)
    sums = _sums(dense)
    squared = _inner(update, update) + sums.squared_update
    inner, past = _inner(update, old) + sums.inner, _inner(old, old) + sums.squared_past
    return Movement(_one_minus_cosine(inner, squared, past), float(np.sqrt(max(squared, 0))))


Change = tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]
"""Of one parameter, the sum of the earlier stages' changes W_{t−1} − W_0, and this stage's W_t − W_{t−1}."""


class _Sums(NamedTuple):
    """Inner products of changes, over all parameters."""

    inner: float
    squared_past: float
    squared_update: float
    squared_norm: float
    """That of the update, summed in its own precision."""


def _sums(changes: Iterable[Change]) -> _Sums:
    inner = squared_past = squared_update = squared_norm = 0.0
    for past, update in changes:
        a, b = past.astype(np.float64).ravel(), update.astype(np.float64).ravel()
        inner += float(a @ b)
        squared_past += float(a @ a)
        squared_update += float(b @ b)
        squared_norm += float((update**2).sum())
    return _Sums(inner, squared_past, squared_update, squared_norm)


def dense_movement(changes: Iterable[Change]) -> Movement:
    """Movement from the weight changes themselves."""
    sums = _sums(changes)
    drift = _one_minus_cosine(sums.inner, sums.squared_update, sums.squared_past)
    return Movement(drift, float(np.sqrt(sums.squared_norm)))


_Product = tuple[Float[np.ndarray, "out r"], Float[np.ndarray, "r in"]]


def _float64(module: Factors) -> _Product:
    """B and A, with the scale inside B."""
    return float(module.scale) * module.B.astype(np.float64), module.A.astype(np.float64)


def _differences(first: Sequence[_Product], second: Sequence[_Product]) -> list[_Product]:
    """W' − W of each module, as a product."""
    return [
        (np.hstack([B1 - B0, B0]), np.vstack([A1, A1 - A0])) for (B0, A0), (B1, A1) in zip(first, second, strict=True)
    ]


def _inner(first: Sequence[_Product], second: Sequence[_Product]) -> float:
    """Σ over modules of the Frobenius inner product ⟨B₁A₁, B₂A₂⟩."""
    total = 0.0
    for (B1, A1), (B2, A2) in zip(first, second, strict=True):
        total += float(((B1.T @ B2) * (A1 @ A2.T)).sum())
    return total


def _one_minus_cosine(inner: float, squared_first: float, squared_second: float) -> float:
    if not (squared_first > 0 and squared_second > 0):
        return float("nan")
    return 1.0 - float(np.clip(inner / np.sqrt(squared_first) / np.sqrt(squared_second), -1.0, 1.0))


def _array(tensor: Tensor) -> Float[np.ndarray, ...]:
    return tensor.float().cpu().numpy()
