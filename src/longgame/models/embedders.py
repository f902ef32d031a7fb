"""Text encoders beside the trained model: sentence-transformers and static model2vec models, by name."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from jaxtyping import Float
from safetensors import SafetensorError

from longgame.errors import ModelError, RecipeError
from longgame.limits import located, missing
from longgame.models.hub import first_lines, load_or_fetch, require_repo
from longgame.models.load import no_progress_bars
from longgame.recipe import EMBEDDER, EMBEDDERS, parse_embedder

_FORMS = "Write model, sentence-transformers:NAME or model2vec:NAME, NAME a hub id or a directory."
_NO_HUB = "Without network, give the path of a directory."
_LOADING_ERRORS = (
    *(OSError, ValueError, LookupError, RuntimeError, ImportError, TypeError, AttributeError, AssertionError),
    *(MemoryError, SafetensorError),
)
_PROBE = "The quick brown fox jumps over the lazy dog."


@dataclass(frozen=True)
class Embedder:
    """A text encoder, loaded."""

    name: str
    """As `load_embedder` takes it."""
    encode: Callable[[Sequence[str]], Float[np.ndarray, "n d"]]
    """Texts → vectors, float32, on the scale that the encoder gives them."""
    parameters: int
    """That each token passes; 0 of a static model, which looks vectors up."""

    @property
    def digest(self) -> str:
        """Of the content: the vector of a fixed text, to three decimals, so that it is the same on every machine."""
        return blake2b(self.encode([_PROBE]).round(3).tobytes(), digest_size=8).hexdigest()


def check_embedder(name: str) -> None:
    """Raise what `load_embedder` would, as far as it is known without loading it."""
    kind, place = parse_embedder(name)
    if kind:
        _locate(kind, place)


def load_embedder(name: str, *, device: str = "cpu", trust_remote_code: bool = False) -> Embedder:
    """Load a text encoder.

    Args:
        name: ``sentence-transformers:NAME`` or ``model2vec:NAME``; NAME is a hub id or a directory.
        device: of sentence-transformers; a static model needs none.
        trust_remote_code: run the Python code that comes with a model of sentence-transformers.

    Raises:
        RecipeError: ``name`` is no embedder. ModelError: its package is not installed, there is no such model, the hub
            cannot be reached, or it cannot be loaded.
    """
    kind, place = parse_embedder(name)
    if not kind:
        raise RecipeError(f"embedder '{name}' is the model itself and no encoder of texts. {_FORMS}")
    path, local = _locate(kind, place)

    def load(local: bool) -> Embedder:
        if kind == "model2vec":
            return _static(name, path, local)
        return _sentence_transformer(name, path, local, device, trust_remote_code)

    try:
        return load_or_fetch(path, load, local, _LOADING_ERRORS, _NO_HUB)
    except _LOADING_ERRORS as error:
        raise ModelError(
            f"embedder '{name}' cannot be loaded: {first_lines(error)} Give a complete {kind} model."
        ) from error


def encoder_of(
    name: str, device: str = "cpu", trust_remote_code: bool = False
) -> Callable[[Sequence[str]], Float[np.ndarray, "n d"]] | None:
    """Return what embeds texts, loaded at its first call; None for ``model``.

    Raises:
        RecipeError, ModelError: as `check_embedder`.
    """
    check_embedder(name)
    if name == EMBEDDER:
        return None
    load = functools.cache(lambda: load_embedder(name, device=device, trust_remote_code=trust_remote_code))
    return lambda texts: load().encode(texts)


def embedder_place(name: str) -> str:
    """Return the directory or hub id of a text encoder; empty for ``model``.

    Raises:
        RecipeError: ``name`` is no embedder.
    """
    kind, place = parse_embedder(name)
    if kind == "sentence-transformers" and "/" not in place and not Path(located(place)).expanduser().is_dir():
        return f"sentence-transformers/{place}"  # as the package itself reads a bare name
    return place


def _locate(kind: str, place: str) -> tuple[str, bool]:
    """Where to load from, and whether that is on this machine."""
    if importlib.util.find_spec(EMBEDDERS[kind]) is None:
        raise ModelError(
            f"embedder '{kind}:{place}' needs the package {kind}, which is not installed. Run: pip install "
            "'longgame[embed]'"
        )
    folder = Path(located(place)).expanduser()
    if folder.is_dir():
        return str(folder), True
    if place.startswith((".", "/", "~")) or place.count("/") > 1:
        raise ModelError(f"embedder '{kind}:{place}': {missing(folder)}. Give an existing directory or a hub id.")
    place = embedder_place(f"{kind}:{place}")
    try:
        cached = isinstance(try_to_load_from_cache(place, "config.json"), str)
    except HFValidationError as error:
        raise ModelError(f"embedder '{kind}:{place}' is neither a directory nor a hub id. {_NO_HUB}") from error
    if not cached:
        require_repo(place, "model", ModelError, _NO_HUB)
    return place, cached


def _static(name: str, path: str, local: bool) -> Embedder:
    from model2vec import StaticModel

    fetch = not local and not Path(path).is_dir()  # it would take any folder of the cache, also one that lacks files
    model = StaticModel.from_pretrained(path, force_download=fetch)

    def encode(texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        vectors = model.encode(list(texts), show_progress_bar=False, use_multiprocessing=False)
        return np.asarray(vectors, dtype=np.float32)

    return Embedder(name, encode, 0)


def _sentence_transformer(name: str, path: str, local: bool, device: str, trust_remote_code: bool) -> Embedder:
    import torch
    from sentence_transformers import SentenceTransformer

    with no_progress_bars():
        model: Any = SentenceTransformer(
            path,
            device=device,
            local_files_only=local,
            trust_remote_code=trust_remote_code,
            model_kwargs={"dtype": torch.float32},
        ).eval()
    layers = sum(parameter.numel() for parameter in model.parameters())
    tables = sum(
        module.weight.numel() for module in model.modules() if type(module).__name__ == "Embedding"
    )  # looked up, not multiplied

    def encode(texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        vectors = model.encode(list(texts), show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(vectors, dtype=np.float32)

    return Embedder(name, encode, layers - tables)
