"""Models by name: a causal LM with its tokenizer, checked for what training needs."""

from __future__ import annotations

import copy
import importlib.resources
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import jinja2
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from longgame.errors import ModelError, did_you_mean
from longgame.limits import TEMPLATE_SECONDS, free_memory, located, missing, time_limit, why_no_file
from longgame.models import smollm2
from longgame.models.adaptation import ADAPTATIONS
from longgame.models.device import Attention
from longgame.models.hub import OTHER_SIZES, OWN_CODE, cached_commit, first_lines, load_or_fetch, require_repo
from longgame.recipe import ModelSpec

_log = logging.getLogger(__name__)
_Loaded = TypeVar("_Loaded")
TINY = ("tiny", "tiny-1", "tiny-2", "tiny-3", "tiny-4")
"""Bases of the package: one recipe, one tokenizer, five seeds of pretraining."""
SMOLLM2 = "smollm2-135m"
ALIASES = (*TINY, SMOLLM2)
"""Names that are neither a hub id nor a directory."""

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"
)
"""`model.chat_template: plain`: prompt, newline, response, EOS (behind BOS, where the tokenizer adds one)."""

_MARKER = "\ue000"
"""Stands for an answer while a template is rendered; a character of Unicode's private area."""

_LOADING_ERRORS = (
    *(OSError, ValueError, LookupError, RuntimeError, ImportError, SafetensorError, StrictDataclassError),
    *(TypeError, AttributeError, ArithmeticError, AssertionError, MemoryError),
)
"""What transformers raises for a checkpoint that is missing, incomplete, damaged or of an unknown architecture, and for
a config with values of a wrong kind or size."""
_MOST_LAYERS = 10_000
"""Layers of a model. Each is made before weights are looked for: a million take an hour and 50 GB."""

_NO_HUB = "Without network, give the path of a model directory, or one of " + ", ".join(ALIASES) + "."


@dataclass(frozen=True)
class LoadedModel:
    """A model on the CPU, in evaluation mode, ready to be moved, adapted and trained."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    """Origin of the weights: hub id and revision, directory, package data, or digest of a GGUF."""

    @property
    def pad_token_id(self) -> int:
        """Id that fills a batch. It may equal EOS, so mask by length, not by id."""
        return int(cast(int, self.tokenizer.pad_token_id))


def load_model(spec: ModelSpec, *, attention: Attention = "eager") -> LoadedModel:
    """Load the base model and tokenizer of a recipe; the global random state stays as it is.

    Args:
        spec: which one, and its dtype, template and padding token.
        attention: with ``eager``, padding and other examples of a batch leave an example's float32 logits bit-equal.
            ``sdpa`` may pick another kernel when a mask appears (differences near 1e-6 on the CPU, more with flash
            kernels), but does not hold the L × L weights of long contexts.

    Raises:
        ModelError: unknown model, no network, damaged or incomplete files, no chat template, padding or EOS token,
            a tokenizer that does not belong to the model, or ``max_length`` beyond the model's context.
    """
    with ExitStack() as stack:
        place, source, local = _resolve(spec.name, stack)
        tokenizer = _tokenizer(spec, place, local)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            model = _model(spec, place, attention, local)
    _check_together(model, tokenizer, spec)
    return LoadedModel(model.eval(), tokenizer, source or _hub_source(place))


def load_classifier(spec: ModelSpec) -> LoadedModel:
    """Load a sequence classifier, such as a reward model, with its tokenizer as it is; the random state stays.

    Raises:
        ModelError: unknown model, no network, damaged or incomplete files, or a checkpoint without its head.
    """
    with ExitStack() as stack:
        place, source, local = _resolve(spec.name, stack)
        tokenizer = _loaded_tokenizer(spec, place, local)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            model = _model(spec, place, "eager", local, AutoModelForSequenceClassification)
    return LoadedModel(model.eval(), tokenizer, source or _hub_source(place))


def _hub_source(place: str) -> str:
    commit = cached_commit(place)
    return f"hub {place}" + (f" at {commit}" if commit else "")


_kept: tuple[tuple[Any, ...], LoadedModel] | None = None
"""What `load_again` read last, and from where."""


def load_again(spec: ModelSpec, *, attention: Attention = "eager") -> LoadedModel:
    """As `load_model`, but weights that this process has read before are not read again.

    Trainings in turn start from one base model: its weights stay in memory, and each call gives modules of its own
    around them. Weights that the recipe's adaptation writes into are copied. One model is kept, where it takes at most
    a quarter of the free memory; quantized ones are not.

    Raises:
        ModelError: as `load_model`.
    """
    global _kept
    kind = ADAPTATIONS[spec.adaptation]
    if kind.load_options(spec):
        return load_model(spec, attention=attention)
    plain = ModelSpec()
    same = {name: getattr(plain, name) for name in ("adaptation", "lora", "peft", "device", "attention")}
    with ExitStack() as stack:
        place, _, _ = _resolve(spec.name, stack)
        files = sorted(Path(place).rglob("*")) if Path(place).is_dir() else []
        stamps = [(str(file), file.stat().st_mtime_ns) for file in files]
    key = (spec.model_copy(update=same).model_dump_json(), attention, located(spec.chat_template or ""), *stamps)
    if _kept is None or _kept[0] != key:
        _kept = None
        loaded = load_model(spec, attention=attention)
        if 4 * sum(tensor.nbytes for tensor in loaded.model.parameters()) > free_memory():
            return loaded
        _kept = key, loaded
    return replace(_kept[1], model=_around(_kept[1].model, kind.changes_base(spec)))


def forget_models() -> None:
    """Free the weights that `load_again` keeps."""
    global _kept
    _kept = None


def _around(model: PreTrainedModel, copied: bool) -> PreTrainedModel:
    """A copy of the modules around the same weights, or around copies of them."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        data = tensor.detach().clone() if copied else tensor.detach()
        memo[id(tensor)] = nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
    return copy.deepcopy(model, memo)


_UNIT_BYTES = 90
"""Bytes of activations per token, decoder layer and hidden unit (81 measured at 8B in bfloat16, trained with PEFT)."""
_PROCESS_BYTES = 1 << 30
"""Of a process on a GPU: CUDA's context, kernels, the allocator's slack."""


def trial_bytes(spec: ModelSpec, tokens: int = 4096) -> int:
    """Estimate the memory that one training of this model takes on a GPU; no weights are read.

    Args:
        tokens: of the largest forward pass with gradients.

    Raises:
        ModelError: as `load_model`, as far as the configuration goes.
    """
    kind = ADAPTATIONS[spec.adaptation]
    with ExitStack() as stack:
        place, _, local = _resolve(spec.name, stack)

        def load(local: bool) -> tuple[Any, PreTrainedModel]:
            config = _config(spec, place, local)
            _check_layers(config, spec)
            with torch.random.fork_rng(devices=()), torch.device("meta"):
                return config, AutoModelForCausalLM.from_config(config, trust_remote_code=spec.trust_remote_code)

        config, model = _read(spec, "the configuration of model", place, local, load)
    weights = sum(parameter.numel() for parameter in model.parameters())
    size = 0.5 if kind.load_options(spec) else getattr(torch, spec.dtype).itemsize
    text: Any = config.get_text_config()
    activations = max(tokens, spec.max_length) * text.num_hidden_layers * text.hidden_size * _UNIT_BYTES
    copies = 5 if kind.changes_base(spec) else 1.25  # weights, a stage's start, gradients and Adam's two moments
    return int(weights * size * copies) + activations + _PROCESS_BYTES


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `load_model` alone, prepared in the same way.

    Raises:
        ModelError: as `load_model`, as far as the tokenizer goes.
    """
    with ExitStack() as stack:
        place, _, local = _resolve(spec.name, stack)
        return _tokenizer(spec, place, local)


def model_place(name: str) -> str:
    """Return what ``from_pretrained`` takes for a model by name: a directory or a hub id.

    Raises:
        ModelError: there is no such model.
    """
    with ExitStack() as stack:
        return _resolve(name, stack)[0]


@dataclass(frozen=True)
class TokenizerCheck:
    """A tokenizer as it is, and what training with it would refuse."""

    tokenizer: PreTrainedTokenizerBase
    faults: tuple[ModelError, ...]
    config: Any
    """The model's configuration."""


def check_tokenizer(spec: ModelSpec) -> TokenizerCheck:
    """Load the tokenizer of `load_model` without its weights, and collect what `load_tokenizer` would raise.

    Raises:
        ModelError: there is no such model, its tokenizer cannot be read, or the template or padding token of ``spec``
            cannot be used.
    """
    with ExitStack() as stack:
        place, _, local = _resolve(spec.name, stack)
        tokenizer = _loaded_tokenizer(spec, place, local)
        config = _read(spec, "the configuration of model", place, local, partial(_config, spec, place))
    if spec.chat_template is not None:
        _set_template(tokenizer, spec)
    if spec.pad_token is not None:
        _set_padding(tokenizer, spec)
    faults = tuple(tokenizer_faults(tokenizer, spec))
    return TokenizerCheck(tokenizer, faults, config)


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, spec: ModelSpec) -> PreTrainedTokenizerBase:
    """Give the tokenizer the recipe's template and padding token, and check that it has all that is needed.

    Raises:
        ModelError: the first of `tokenizer_faults`.
    """
    for fault in tokenizer_faults(tokenizer, spec):
        raise fault
    return tokenizer


def tokenizer_faults(tokenizer: PreTrainedTokenizerBase, spec: ModelSpec) -> Iterator[ModelError]:
    """Give the tokenizer the template and padding token of ``spec``, and yield what it lacks.

    No EOS, padding token or chat template; a padding token outside the vocabulary; a template that is missing, not
    valid Jinja, or ends an answer with no token of its own.
    """
    for step in (_check_eos, _set_padding, _set_template, _check_end_of_turn):
        try:
            step(tokenizer, spec)
        except ModelError as error:
            yield error


def _check_eos(tokenizer: PreTrainedTokenizerBase, spec: ModelSpec) -> None:
    if tokenizer.eos_token is None:
        raise ModelError(f"the tokenizer of '{spec.name}' has no EOS token, so a response has no end. Add one to it.")


def _set_padding(tokenizer: PreTrainedTokenizerBase, spec: ModelSpec) -> None:
    if spec.pad_token is not None:
        if spec.pad_token not in tokenizer.get_vocab():
            hint = did_you_mean(spec.pad_token, tokenizer.all_special_tokens)
            raise ModelError(
                f"model.pad_token '{spec.pad_token}' is not in the vocabulary of '{spec.name}'.{hint} "
                f"Its special tokens: {', '.join(tokenizer.all_special_tokens)}."
            )
        tokenizer.pad_token = spec.pad_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"the tokenizer of '{spec.name}' has no padding token, and EOS is not used in its place by default. "
            f"Set model.pad_token to one of its special tokens: {', '.join(tokenizer.all_special_tokens)}."
        )


def _set_template(tokenizer: PreTrainedTokenizerBase, spec: ModelSpec) -> None:
    if spec.chat_template is not None:
        tokenizer.chat_template = _template(spec.chat_template, tokenizer)
        try:
            turn = [{"role": "user", "content": "a"}]
            with time_limit(TEMPLATE_SECONDS, endless_template(spec.chat_template)):
                tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError as error:
            raise ModelError(
                f"model.chat_template '{spec.chat_template}' does not render: {error}. Correct the template."
            ) from error
    elif not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer of '{spec.name}' has no chat template. Set model.chat_template to the path of a Jinja "
            "template, or to 'plain' (prompt, newline, response)."
        )


def endless_template(label: str) -> ModelError:
    """The error for a chat template that does not come to an end."""
    return ModelError(
        f"the chat template of '{label}' was not rendered within {TEMPLATE_SECONDS:g} seconds. Correct its loops, or "
        "set model.chat_template."
    )


def _check_end_of_turn(tokenizer: PreTrainedTokenizerBase, spec: ModelSpec) -> None:
    """Raise ModelError where a turn ends in ordinary words: a model that learned them would not stop behind them."""
    end = ""
    for wrap in (str, lambda text: [{"type": "text", "text": text}]):  # templates of vision models read blocks only
        turns: Any = [{"role": role, "content": wrap(text)} for role, text in (("user", "a"), ("assistant", _MARKER))]
        try:
            with time_limit(TEMPLATE_SECONDS, endless_template(spec.name)):
                text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        except (jinja2.TemplateError, AttributeError, LookupError, TypeError, ValueError):
            continue  # a real conversation gets the error that names it
        if _MARKER in text:
            end = text.rpartition(_MARKER)[2].strip()
            break
    pieces = tokenizer(end, add_special_tokens=False)["input_ids"] if end else []
    if pieces and not set(pieces) & {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}:
        raise ModelError(
            f"the chat template of '{spec.name}' ends an answer with {end!r}, which is {len(pieces)} ordinary tokens "
            "of its tokenizer, so nothing stops the model after an answer. Use the tokenizer that the template was "
            "written for, end the assistant's turn with eos_token, or set model.chat_template to 'plain'."
        )


def _template(setting: str, tokenizer: PreTrainedTokenizerBase) -> str:
    if setting == "plain":
        adds_bos = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
        return ("{{ bos_token }}" if adds_bos else "") + PLAIN_TEMPLATE
    path = Path(located(setting)).expanduser()
    if reason := why_no_file(path):
        raise ModelError(f"model.chat_template '{setting}' {reason}. Give the path of a Jinja file, or 'plain'.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"model.chat_template '{setting}' is no text in UTF-8 ({error}). Save it as one.") from error


def _resolve(name: str, stack: ExitStack) -> tuple[str, str, bool]:
    """Return where to load from, the source to record ("" = the loaded model's revision), and whether it is local.

    A model of the hub counts as local where its configuration is in the cache; `_read` fetches what else is missing.
    """
    if name == "quadratic":
        raise ModelError("model 'quadratic' is a closed-form world without text; it has no language model to load.")
    if name in TINY:
        folder = importlib.resources.files("longgame").joinpath("assets").joinpath(name)
        if not folder.joinpath("config.json").is_file():
            raise ModelError(
                f"the package data of model '{name}' (longgame/assets/{name}) is missing. Install the package again, "
                f"or rebuild it: python -m studies.tiny_base recipes/tiny-base.yaml --seed {TINY.index(name)}."
            )
        place = str(stack.enter_context(importlib.resources.as_file(folder)))
        return place, f"package data longgame/assets/{name}", True
    if name == SMOLLM2:
        model = smollm2.locate()
        return model.place, model.source, True
    folder_path = Path(located(name)).expanduser()
    if folder_path.is_dir():
        if not os.access(folder_path, os.R_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise ModelError(f"model directory '{name}' may not be read (no permission). Change its mode.")
        if not (folder_path / "config.json").is_file():
            raise ModelError(f"model directory '{name}' holds no config.json. Give a directory in Hugging Face layout.")
        return str(folder_path), f"directory {name}", True
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"model directory '{name}' {missing(folder_path)}. Give an existing directory or a hub id.")
    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError as error:
        raise ModelError(
            f"model '{name}' is neither a directory nor a hub id (owner/name).{did_you_mean(name, ALIASES)} {_NO_HUB}"
        ) from error
    if not cached:
        require_repo(name, "model", ModelError, (did_you_mean(name, ALIASES) + " " + _NO_HUB).strip())
    return name, "", cached


def _tokenizer(spec: ModelSpec, place: str, local: bool) -> PreTrainedTokenizerBase:
    return prepare_tokenizer(_loaded_tokenizer(spec, place, local), spec)


def _loaded_tokenizer(spec: ModelSpec, place: str, local: bool) -> PreTrainedTokenizerBase:
    def load(local: bool) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(place, local_files_only=local, trust_remote_code=spec.trust_remote_code)

    folder = Path(place)
    if folder.is_dir() and not _has_vocabulary(folder) and not (folder / "tokenizer_config.json").is_file():
        raise ModelError(
            f"the model directory '{spec.name}' holds no tokenizer (tokenizer.json or its vocabulary). Save "
            "it there: tokenizer.save_pretrained(directory)."
        )
    lack = ""
    if local and not folder.is_dir():  # without these files transformers makes an empty tokenizer of some architectures
        snapshot = Path(str(try_to_load_from_cache(place, "config.json"))).parent
        if not _has_vocabulary(snapshot) and try_to_load_from_cache(place, "tokenizer.json") is None:
            lack = "it holds no tokenizer"
    return _read(spec, "the tokenizer of model", place, local, load, lack=lack)


_VOCABULARIES = ("*vocab*", "*tokenizer*", "*.model", "*.tiktoken", "tekken.json")
"""Names of files that hold the tokens of a tokenizer."""


def _has_vocabulary(folder: Path) -> bool:
    """Whether a folder holds the tokens of a tokenizer; one that splits text into bytes has only its configuration."""
    return any(file.name != "tokenizer_config.json" for pattern in _VOCABULARIES for file in folder.glob(pattern))


def _read(
    spec: ModelSpec,
    subject: str,
    place: str,
    local: bool,
    load: Callable[[bool], _Loaded],
    *,
    lack: str = "",
    kind: str = "causal-LM",
) -> _Loaded:
    """Return what ``load(local)`` returns; what the cache lacks of a model of the hub is fetched.

    Raises:
        ModelError: the model cannot be loaded, or the hub does not give what is missing.
    """
    try:
        return load_or_fetch(place, load, local, _LOADING_ERRORS, _NO_HUB, lack)
    except _LOADING_ERRORS as error:
        raise _cannot_load(spec, subject, error, kind) from error


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Switch transformers' bars and reports off, since longgame shows its own progress and checks what is missing."""
    enabled, level = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if enabled:
            hf_logging.enable_progress_bar()


def _model(
    spec: ModelSpec, place: str, attention: str, local: bool, auto: Any = AutoModelForCausalLM
) -> PreTrainedModel:
    kind = "causal-LM" if auto is AutoModelForCausalLM else "sequence-classification"

    def load(local: bool) -> Any:
        _check_layers(_config(spec, place, local), spec)
        with no_progress_bars():
            return auto.from_pretrained(
                place,
                dtype=getattr(torch, spec.dtype),
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=spec.trust_remote_code,
                local_files_only=local,
                output_loading_info=True,
                **ADAPTATIONS[spec.adaptation].load_options(spec),
            )

    model, info = _read(spec, "model", place, local, load, kind=kind)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"model '{spec.name}' lacks {len(missing)} weights (the first: {missing[0]}), which would be random. "
            f"Give a complete {kind} checkpoint."
        )
    unused = sorted(info["unexpected_keys"])
    if unused:
        _log.warning(
            "model '%s' holds %d weights that %s has no place for (the first: %s); they are not used",
            *(spec.name, len(unused), type(model).__name__, unused[0]),
        )
    return cast(PreTrainedModel, model)


def _config(spec: ModelSpec, place: str, local: bool) -> PreTrainedConfig:
    return AutoConfig.from_pretrained(place, local_files_only=local, trust_remote_code=spec.trust_remote_code)


def _check_layers(config: PreTrainedConfig, spec: ModelSpec) -> None:
    layers = getattr(config.get_text_config(), "num_hidden_layers", 1)
    if not (isinstance(layers, int) and 1 <= layers <= _MOST_LAYERS):
        raise ModelError(
            f"the config.json of model '{spec.name}' says num_hidden_layers is {layers}; give a number from 1 to "
            f"{_MOST_LAYERS:,}, that of its weights."
        )


def _cannot_load(spec: ModelSpec, subject: str, error: Exception, kind: str = "causal-LM") -> ModelError:
    if OWN_CODE in str(error):
        return ModelError(
            f"{subject} '{spec.name}' comes with Python code of its own, which is not run. Read the code, and set "
            "model.trust_remote_code: true (or give --trust-remote-code) if you trust it."
        )
    if OTHER_SIZES in str(error):
        return ModelError(
            f"{subject} '{spec.name}' cannot be loaded: its weights have other sizes than its config.json says. Give "
            "a checkpoint whose files belong together."
        )
    return ModelError(
        f"{subject} '{spec.name}' cannot be loaded: {first_lines(error)} It must be "
        f"{'a causal language' if kind == 'causal-LM' else 'a sequence-classification'} model of a known architecture, "
        "complete, with safetensors weights and a tokenizer."
    )


def _check_together(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: ModelSpec) -> None:
    embeddings: Any = model.get_input_embeddings()
    rows = int(embeddings.weight.shape[0])
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer of '{spec.name}' has {len(tokenizer)} tokens but the model embeds {rows}, so they do not "
            "belong together. Use the tokenizer that the model was trained with."
        )
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and spec.max_length > context:
        raise ModelError(
            f"model.max_length is {spec.max_length} but '{spec.name}' takes at most {context} tokens. Lower max_length."
        )
