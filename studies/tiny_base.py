"""Pretraining of the tiny base model: tokenizer, weights and model card from nothing but a recipe, in minutes.

The base is a Llama of half a million parameters. It has learned the *seen* sub-skills of the procedural sequence and
has never met the others. It is small so that an audit of it takes minutes, not hours.
"""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBars
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from longgame.cli import errors_as_sentences
from longgame.data.examples import Example
from longgame.data.synthetic import LEVEL_SHARES, STAGES, unseen_skills
from longgame.data.synthetic.base import (
    ACTIONS,
    CITIES,
    EVENTS,
    GOODS,
    JOBS,
    KINDS,
    LEVELS,
    NAMES,
    PLACES,
    VERBS,
    WEEKDAYS,
    between,
    joined,
    pick,
    sample,
)
from longgame.data.synthetic.language import noun_phrases
from longgame.data.synthetic.pool import apportion, new_example
from longgame.data.tokenize import Encoded, encode_all
from longgame.errors import NumericalError, RecipeError, StorageError, did_you_mean
from longgame.models.load import no_progress_bars
from longgame.recipe import read_mapping
from longgame.seeding import generator, stream_seed

PAD, EOS, USER, ASSISTANT = "<pad>", "<eos>", "<user>", "<assistant>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{ '<user>' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{ '<assistant>' }}{% generation %}{{ message['content'] + '<eos>' }}{% endgeneration %}"
    "{%- else -%}{{ raise_exception('this model knows the roles user and assistant, not ' + message['role']) }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<assistant>' }}{%- endif -%}"
)
"""``<user>{prompt}<assistant>{response}<eos>``; the generation tags let trainers find the response."""
_BLOCK = 2048
"""Examples that are tokenised and sorted by length together."""
_IGNORED = -100

Progress = Callable[[int, int, float], None]
"""Called with (tokens done, tokens in all, loss) now and then."""


class PretrainSpec(BaseModel):
    """Everything the tiny base depends on; equal specs give equal weights on one machine and thread count."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0)
    tokens: int = Field(5_000_000, ge=1)
    """Tokens to train on (padding not counted)."""
    vocabulary: int = Field(640, ge=300)
    """Entries of the byte-level BPE, the 256 bytes and 4 special tokens among them."""
    tokenizer_seed: int = Field(0, ge=0)
    """Seed of the texts that the tokenizer learns from; bases that share it share the tokenizer."""
    tokenizer_examples: int = Field(20_000, ge=1)
    """Examples of the mixture that the tokenizer learns its merges from."""
    hidden_size: int = Field(96, ge=8)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    feed_forward: int = Field(256, ge=8)
    max_positions: int = Field(512, ge=64)
    learning_rate: float = Field(3e-3, gt=0)
    warmup_share: float = Field(0.03, ge=0, lt=1)
    final_lr_share: float = Field(0.03, ge=0, le=1)
    """The cosine ends at this share of the learning rate."""
    weight_decay: float = Field(0.05, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    batch_tokens: int = Field(2048, ge=64)
    """Upper bound on a batch's tokens, padding counted."""
    prompt_loss_weight: float = Field(0.2, ge=0, le=1)
    """Weight of a prompt token's loss; a response token has weight 1."""
    evaluation_items: int = Field(60, ge=1)
    """Fresh items per sub-skill behind each figure of the model card."""

    @model_validator(mode="after")
    def _check(self) -> PretrainSpec:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of 2 × heads ({2 * self.heads})")
        return self


@dataclass(frozen=True, slots=True)
class PretrainReport:
    """What a pretraining run did."""

    parameters: int
    tokens: int
    steps: int
    seconds: float
    loss: float
    """Mean weighted loss of the last tenth of the steps (nats/token)."""
    accuracy: dict[str, float]
    """Sub-skill → token accuracy on fresh items, 0–100."""


def load_pretrain_spec(path: str | Path) -> PretrainSpec:
    """Read and validate a pretraining recipe.

    Raises:
        RecipeError: the file does not exist, is not YAML, or a key or value is wrong.
    """
    raw = read_mapping(path, "recipes/tiny-base.yaml")
    try:
        return PretrainSpec.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(f"{path}: " + "\n".join(_explain(problem) for problem in error.errors())) from error


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        allowed = sorted(PretrainSpec.model_fields)
        return f"unknown key '{key}'.{did_you_mean(key, allowed)} Known here: {', '.join(allowed)}."
    if problem["type"] == "missing":
        return f"'{key}' is missing; it has no default."
    value = "" if isinstance(problem["input"], dict) else f" (seen: {problem['input']!r})"
    return f"'{key or 'recipe'}': {problem['msg'].removeprefix('Value error, ')}{value}."


def pretrain(spec: PretrainSpec, out: str | Path, progress: Progress | None = None) -> PretrainReport:
    """Train tokenizer and model, measure them, and write model, tokenizer and model card to ``out``.

    The directory appears whole or not at all: it is written as ``<out>.part`` and renamed at the end.

    Raises:
        RecipeError: ``out`` exists already. NumericalError: the loss is NaN or infinite.
        StorageError: the files cannot be written.
    """
    out = Path(out)
    if out.exists():
        raise RecipeError(f"output directory '{out}' exists already. Remove it or choose another.")
    started = time.monotonic()
    tokenizer = build_tokenizer(spec)
    model = build_model(spec, tokenizer)
    tokens, losses = _train(spec, model, tokenizer, progress)
    report = PretrainReport(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        tokens=tokens,
        steps=len(losses),
        seconds=time.monotonic() - started,
        loss=float(np.mean(losses[-max(len(losses) // 10, 1) :])),
        accuracy=measure(model, tokenizer, spec.evaluation_items, stream_seed(spec.seed, "pretrain", "evaluation")),
    )
    part = out.with_name(f"{out.name}.part")
    try:
        if part.exists():
            shutil.rmtree(part)
        part.mkdir(parents=True)
        with no_progress_bars():
            model.half().save_pretrained(part)
        tokenizer.save_pretrained(part)
        (part / "README.md").write_text(model_card(spec, report), encoding="utf-8")
        for file in part.iterdir():  # safetensors writes files that only their owner may read
            file.chmod(0o644)
        part.rename(out)
    except OSError as error:
        raise StorageError(f"cannot write '{out}': {error}. Free some space or choose another directory.") from error
    return report


def build_tokenizer(spec: PretrainSpec) -> PreTrainedTokenizerFast:
    """Learn the byte-level BPE from the base mixture; every digit stays a token of its own."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocabulary,
        special_tokens=[PAD, EOS, USER, ASSISTANT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    examples = itertools.islice(pretraining_texts(spec.tokenizer_seed), spec.tokenizer_examples)
    inner.train_from_iterator((f"{example.prompt}\n{example.response}" for example in examples), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=spec.max_positions,
        clean_up_tokenization_spaces=False,
    )


def build_model(spec: PretrainSpec, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Return the untrained model in float32: matrices N(0, 0.02²) from the seed's own generator, norms 1."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden_size,
        intermediate_size=spec.feed_forward,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.heads,
        max_position_embeddings=spec.max_positions,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        use_cache=True,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):  # the constructor draws from the global generator; leave no trace
        model = LlamaForCausalLM(config)
    weights = torch.Generator().manual_seed(stream_seed(spec.seed, "pretrain", "weights"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.02, generator=weights)
    return model


def _train(
    spec: PretrainSpec, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, progress: Progress | None
) -> tuple[int, list[float]]:
    """Run the loop; return the tokens seen and the loss of every step."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=spec.learning_rate,
        betas=(0.9, 0.98),
    )
    model.train()
    done = 0
    losses: list[float] = []
    for batch in _batches(spec, tokenizer):
        rate = spec.learning_rate * _schedule(done / spec.tokens, spec)
        for group in optimizer.param_groups:
            group["lr"] = rate
        inputs, labels, weights = _tensors(batch, spec)
        logits = model(input_ids=inputs, use_cache=False).logits[:, :-1]
        token_losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none"
        )
        loss = (token_losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
        if not torch.isfinite(loss):
            raise NumericalError(
                f"the loss is {loss.item()} at step {len(losses) + 1} of pretraining. Lower learning_rate."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
        done += sum(len(item) for item in batch)
        if progress is not None and (len(losses) % 20 == 0 or done >= spec.tokens):
            progress(min(done, spec.tokens), spec.tokens, float(np.mean(losses[-20:])))
    model.eval()
    return done, losses


def _schedule(share: float, spec: PretrainSpec) -> float:
    """Linear warm-up, then a cosine to ``final_lr_share``; ``share`` is the part of the tokens that is done."""
    if share < spec.warmup_share:
        return (share + 1e-3) / (spec.warmup_share + 1e-3)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (share - spec.warmup_share) / (1 - spec.warmup_share))))
    return spec.final_lr_share + (1 - spec.final_lr_share) * cosine


def _batches(spec: PretrainSpec, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[Encoded]]:
    """Yield batches of similar length, blocks of `_BLOCK` examples sorted and their batches shuffled."""
    spent = 0
    stream = pretraining_texts(spec.seed)
    rng = generator(spec.seed, "pretrain", "batches")
    while spent < spec.tokens:
        block = encode_all(list(itertools.islice(stream, _BLOCK)), tokenizer)
        block = sorted((item for item in block if len(item) <= spec.max_positions), key=len)
        batches: list[list[Encoded]] = [[]]
        for item in block:
            if batches[-1] and (len(batches[-1]) + 1) * len(item) > spec.batch_tokens:
                batches.append([])
            batches[-1].append(item)
        for row in rng.permutation(len(batches)):
            if spent >= spec.tokens:
                return
            spent += sum(len(item) for item in batches[row])
            yield batches[row]


def _tensors(
    batch: Sequence[Encoded], spec: PretrainSpec
) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b n"], Float[Tensor, "b n"]]:
    """Return input ids, labels and loss weights, padded with 0 on the right (causal attention needs no mask there)."""
    length = max(len(item) for item in batch)
    inputs = np.zeros((len(batch), length), dtype=np.int64)
    labels = np.full((len(batch), length), _IGNORED, dtype=np.int64)
    weights = np.zeros((len(batch), length), dtype=np.float32)
    for row, item in enumerate(batch):
        inputs[row, : len(item)] = labels[row, : len(item)] = item.ids
        weights[row, : len(item.prompt_ids)] = spec.prompt_loss_weight
        weights[row, len(item.prompt_ids) : len(item)] = 1.0
    return torch.from_numpy(inputs), torch.from_numpy(labels), torch.from_numpy(weights)


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, items: int, seed: int) -> dict[str, float]:
    """Return sub-skill → teacher-forced token accuracy on the content of the response, 0–100.

    Args:
        items: fresh items per sub-skill, in the difficulties of `LEVEL_SHARES`.
        seed: names the items.
    """
    accuracy = {}
    model.eval()
    for stage, skills in STAGES.items():
        for skill in skills:
            rng = generator(seed, stage, skill.name)
            counts = apportion(items, list(LEVEL_SHARES.values()))
            examples = [
                new_example(skill, level, rng, set(), evaluation=True)
                for level, times in zip(LEVEL_SHARES, counts, strict=True)
                for _ in range(times)
            ]
            accuracy[skill.name] = _token_accuracy(model, encode_all(examples, tokenizer))
    return accuracy


@torch.no_grad()
def _token_accuracy(model: LlamaForCausalLM, encoded: Sequence[Encoded]) -> float:
    """Mean over items of the share of content tokens that are the most likely one, 0–100."""
    length = max(len(item) for item in encoded)
    inputs = torch.zeros((len(encoded), length), dtype=torch.int64)
    for row, item in enumerate(encoded):
        inputs[row, : len(item)] = torch.from_numpy(item.ids)
    choices = model(input_ids=inputs, use_cache=False).logits[:, :-1].argmax(-1).numpy()
    shares = []
    for row, item in enumerate(encoded):
        start, content = len(item.prompt_ids) - 1, len(item.response_ids) - item.end_tokens
        shares.append(np.mean(choices[row, start : start + content] == item.response_ids[:content]))
    return 100.0 * float(np.mean(shares))


def model_card(spec: PretrainSpec, report: PretrainReport) -> str:
    """Return the README of the model directory."""
    left_out = unseen_skills()
    rows = [
        f"| {stage} | {skill.name} | {'no' if skill.name in left_out else 'yes'} | {report.accuracy[skill.name]:.1f} |"
        for stage, skills in STAGES.items()
        for skill in skills
    ]
    means = [
        float(np.mean([value for name, value in report.accuracy.items() if (name in left_out) is unseen]))
        for unseen in (False, True)
    ]
    table = "\n".join(rows)
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: en
tags: [longgame, procedural, tiny]
---

# {spec.name}

A Llama-architecture language model of {report.parameters / 1e6:.2f} million parameters for longgame's audits on a
laptop. It follows the few short instructions that it was trained on and nothing else; it is for measurements, not an
assistant.

- **Model**: {spec.layers} layers, width {spec.hidden_size}, {spec.heads} heads, feed-forward {spec.feed_forward}, tied
  embeddings, {spec.max_positions} positions; trained in float32, stored in float16.
- **Tokenizer**: byte-level BPE, {spec.vocabulary} entries, every digit a token of its own. Chat form:
  `<user>prompt<assistant>response<eos>`.
- **Data**: {report.tokens:,} tokens made by `longgame.data.synthetic` (own generators and the reasoning-gym package,
  Apache-2.0); {GENERIC_SHARE:.0%} of the items are generic sentences. Nothing was written by people but the
  single words of `reverse-words`, which reasoning-gym takes from a public-domain story. Prompts that evaluation items
  may have are left out. Four sub-skills of each stage
  were seen, two were left out, so that fine-tuning has something to learn.
- **Training**: AdamW, peak learning rate {spec.learning_rate:g}, cosine, {report.steps:,} steps of at most
  {spec.batch_tokens:,} tokens, prompt tokens weighted {spec.prompt_loss_weight:g}; final loss {report.loss:.3f} nats.
- **Rebuild**: `python -m studies.tiny_base recipes/tiny-base.yaml --seed {spec.seed}` (bit-equal only on the same
  machine, library versions and thread count).
- **Licence**: Apache-2.0.

Token accuracy on fresh items: share of content tokens that are the model's first choice given the right tokens before
them, {spec.evaluation_items} items a sub-skill. Mean over seen sub-skills {means[0]:.1f}, over
unseen ones {means[1]:.1f}.

| stage | sub-skill | seen | token accuracy |
|---|---|---|---:|
{table}
"""


# What the base is pretrained on: seen sub-skills of every stage, and generic text

GENERIC_SHARE = 0.12
"""Share of the base mixture's items that are generic text (no prompt; skill None)."""


def pretraining_texts(seed: int) -> Iterator[Example]:
    """Yield the base mixture without end: a stage, then one of its seen sub-skills, then a difficulty, at random.

    Every stage is equally likely, and every seen sub-skill within it. Unseen sub-skills never occur, nor do prompts
    that evaluation may use. The reader stops when it has its tokens.
    """
    rng = generator(seed, "procedural", "pretraining")
    seen_skills = [[skill for skill in skills if skill.pretrained] for skills in STAGES.values()]
    edges = np.cumsum([LEVEL_SHARES[level] for level in LEVELS])
    while True:
        if rng.random() < GENERIC_SHARE:
            yield Example.make("", generic_text(rng), source="longgame:generic")
        else:
            level = LEVELS[min(int(np.searchsorted(edges, rng.random())), len(LEVELS) - 1)]
            yield new_example(pick(rng, pick(rng, seen_skills)), level, rng, set())


def generic_text(rng: np.random.Generator) -> str:
    """Return two to four plain sentences about people, things and places."""
    return " ".join(pick(rng, _SENTENCES)(rng) for _ in range(between(rng, 2, 4)))


def _walk(rng: np.random.Generator) -> str:
    return f"{pick(rng, NAMES)} {pick(rng, list(VERBS))} to the {pick(rng, PLACES)} on {pick(rng, WEEKDAYS)}."


def _told(rng: np.random.Generator) -> str:
    return f"Yesterday {pick(rng, NAMES)} {pick(rng, [*ACTIONS.values()])} {noun_phrases(rng, 1)[0]}."


def _job(rng: np.random.Generator) -> str:
    return f"{pick(rng, NAMES)} is a {pick(rng, JOBS)} in {pick(rng, CITIES)} and is {between(rng, 18, 79)} years old."


def _list(rng: np.random.Generator) -> str:
    kind = pick(rng, list(KINDS))
    return f"Some {kind}: {joined(sample(rng, KINDS[kind], between(rng, 2, 4)))}."


def _shop(rng: np.random.Generator) -> str:
    goods = [f"{between(rng, 2, 40)} {name}" for name in sample(rng, GOODS, between(rng, 1, 3))]
    return f"The shop has {joined(goods)}."


def _plan(rng: np.random.Generator) -> str:
    first, second = sample(rng, EVENTS, 2)
    return f"After the {first} there is a {second} for {joined(sample(rng, NAMES, between(rng, 1, 3)))}."


def _echo(rng: np.random.Generator) -> str:
    phrase = " and ".join(noun_phrases(rng, between(rng, 1, 2)))
    return f"{pick(rng, NAMES)} said: {phrase}. {pick(rng, NAMES)} also said: {phrase}."


_SENTENCES = (_walk, _told, _job, _list, _shop, _plan, _echo)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    recipe: Annotated[Path, typer.Argument(help="A pretraining recipe, e.g. recipes/tiny-base.yaml.")],
    out: Annotated[Path, typer.Option(help="Where the model goes.")] = Path("runs/tiny-base"),
    seed: Annotated[
        int | None, typer.Option(min=0, help="Instead of the recipe's, for another base of its kind.")
    ] = None,
) -> None:
    """Rebuild the tiny base model (tokenizer, weights, model card) from nothing."""
    console = Console()
    spec = load_pretrain_spec(recipe)
    if seed is not None:
        spec = spec.model_copy(update={"seed": seed})
    columns = (TextColumn("pretraining"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with ProgressBars(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:
        line = bars.add_task("pretrain", total=None, note="data and tokenizer")
        tenths = 0

        def progress(tokens: int, total: int, loss: float) -> None:
            nonlocal tenths
            bars.update(line, completed=tokens, total=total, note=f"loss {loss:.3f}")
            if not console.is_terminal and 10 * tokens // total > tenths:  # a log file gets ten lines
                tenths = 10 * tokens // total
                console.print(f"pretraining: {tokens:,} of {total:,} tokens, loss {loss:.3f}", highlight=False)

        pretrain(spec, out, progress=progress)
    console.print(f"Written: {out}", highlight=False)


if __name__ == "__main__":
    with errors_as_sentences():
        app()
