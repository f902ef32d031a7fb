"""Recipes: what an audit is, validated where it is made; an unknown key is an error with a suggestion.

`Part` is the base of every section. `AxesSpec` says which of its own values an audit also varies.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from longgame.errors import RecipeError, did_you_mean, did_you_mean_file, unknown
from longgame.limits import load_yaml, located, relative_to, why_no_file

MOST = 100_000_000
"""Steps, candidates, items or tokens that a recipe may ask for; `longgame.audit.checks.check_size` compares with the
machine."""
Rounds = Literal["step"] | Annotated[int, Field(ge=1, le=MOST)]
BudgetOf = Literal["tokens", "response"]
Share = Annotated[float, Field(gt=0, le=1)]


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty; give it a name")
    return value


Name = Annotated[str, AfterValidator(_not_blank)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Part(BaseModel):
    """A section of a recipe: frozen, complete, and without keys that nobody reads."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, values: Any) -> Any:
        """Refuse true and false where a number or a text is meant, and the other way: Python takes them for 1 and 0."""
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            if field is not None and field.annotation is bool and not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}; give true or false")
            if field is None or _takes_truth(field.annotation):
                continue
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, bool):
                    raise ValueError(f"{name} is {str(item).lower()}; give a number, or a text in quotes")
        return values


def _takes_truth(annotation: Any) -> bool:
    """Whether a field of this type may be true or false."""
    return annotation in (bool, Any) or any(_takes_truth(part) for part in get_args(annotation))


@dataclass(frozen=True, slots=True)
class AdaptationKind:
    """What a recipe and its plan know of a kind of adaptation; `longgame.models.adaptation` holds its class."""

    low_rank: bool = True
    """Whether `model.lora` applies."""
    own_base: bool = False
    """Whether training may begin at another model (quantized, say), so that the frozen pass and row 0 of R differ."""


ADAPTATION_KINDS = {
    "full": AdaptationKind(low_rank=False),
    "lora": AdaptationKind(),
    "dora": AdaptationKind(),
    "qlora": AdaptationKind(own_base=True),
    "peft": AdaptationKind(low_rank=False, own_base=True),
}
"""Values of `model.adaptation`."""


def _known_adaptation(value: str) -> str:
    if value not in ADAPTATION_KINDS:
        raise ValueError(unknown("adaptation", value, ADAPTATION_KINDS).removesuffix("."))
    return value


AdaptationName = Annotated[str, AfterValidator(_known_adaptation)]


class AdaptationValue(Part):
    """One way to adapt the model; what is left out stays as the recipe's `model` and `training` have it."""

    mode: AdaptationName = "lora"
    """`lora`, `dora`, `full` or `qlora`; this word alone may stand for the mapping."""
    r: int | None = Field(None, ge=1, le=65_536)
    """LoRA rank."""
    alpha: float | None = Field(None, gt=0)
    """LoRA alpha; left out, it follows `r`, so that the scale alpha / r stays the recipe's."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate: full fine-tuning often wants another one than LoRA."""

    @model_validator(mode="after")
    def _check(self) -> AdaptationValue:
        if self.mode == "peft":
            raise ValueError("adaptation peft is no value of an axis; make it the recipe's own model.adaptation")
        if not ADAPTATION_KINDS[self.mode].low_rank and (self.r is not None or self.alpha is not None):
            raise ValueError("full fine-tuning has no r and no alpha; leave them out, or use mode: lora")
        return self


class OrderAxis(Part):
    """Orders in which the stages are also walked."""

    rotations: bool = False
    """Every rotation of the recipe's own order, so that each stage comes first once; `order: rotations` for short."""
    permutations: int = Field(0, ge=0, le=10_000)
    """Number of other orders, drawn at random; a larger number adds to the orders of a smaller one."""
    seed: Seed = 0
    """Seed of the draw."""
    given: tuple[tuple[str, ...], ...] = ()
    """Orders by the names of the stages; `order: [[math, general, …], …]` for short."""


def _mode(value: Any) -> Any:
    """Accept the kind alone beside the long form."""
    return {"mode": value} if isinstance(value, str) else value


def _order(value: Any) -> Any:
    """Accept `rotations`, one order, and a list of orders beside the long form."""
    if value == "rotations":
        return {"rotations": True}
    if isinstance(value, str):
        raise ValueError("must be rotations, {permutations: n, seed: s}, or a list of orders, each a list of stages")
    if isinstance(value, list | tuple):
        return {"given": [value] if value and all(isinstance(each, str) for each in value) else value}
    return value


class AxesSpec(Part):
    """What is varied around the recipe's own values, which always belong to every axis."""

    budget: tuple[Share, ...] = ()
    """Budgets, e.g. `[0.1, 0.5]`."""
    rounds: tuple[Rounds, ...] = ()
    """Rounds, e.g. `[1, 4, step]`."""
    adaptation: tuple[Annotated[AdaptationValue, BeforeValidator(_mode)], ...] = ()
    """`lora`, `dora`, `full`, `qlora`, or mappings such as `{r: 4, alpha: 32}` and `{mode: full, learning_rate:
    5.0e-4}`."""
    order: Annotated[OrderAxis, BeforeValidator(_order)] = OrderAxis()
    vary: dict[str, tuple[bool | int | float | str, ...]] = {}
    """Any other key of the recipe → its values, e.g. `{data.noise: [0, 0.15], training.learning_rate: [1.0e-3]}`."""
    cross: bool = False
    """`false`: one axis at a time, the others at the recipe's own values; `true`: every combination."""

    @property
    def empty(self) -> bool:
        """Whether the recipe's own values are all there is."""
        return not (self.budget or self.rounds or self.adaptation or self.order != OrderAxis() or self.vary)


class LoraSpec(Part):
    """Adapter of the audit (PEFT LoRA on every linear layer but the head)."""

    r: int = Field(16, ge=1, le=65_536)
    """Rank."""
    alpha: float = Field(32, gt=0)
    """The update is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: Name | tuple[Name, ...] = "all-linear"
    """`all-linear` (every linear layer but the head), or names of layers."""

    @model_validator(mode="after")
    def _check(self) -> LoraSpec:
        if not self.target_modules:
            raise ValueError("target_modules is empty; name linear layers, or leave it out for all of them")
        return self


_DEVICES = ("auto", "cpu", "cuda", "cuda:0", "mps")


EMBEDDER = "model"
"""The embedder that is none: mean hidden states of the frozen base model."""
EMBEDDERS = {"sentence-transformers": "sentence_transformers", "model2vec": "model2vec"}
"""Kind of an embedder, the word before the colon → its package."""


def parse_embedder(name: str) -> tuple[str, str]:
    """Return kind and place of an embedder: ``("model2vec", "owner/name")``; both are empty for `EMBEDDER`.

    Raises:
        RecipeError: it is not written as one.
    """
    if name == EMBEDDER:
        return "", ""
    kind, _, place = name.partition(":")
    if kind not in EMBEDDERS or not place:
        forms = (EMBEDDER, *(f"{kind}:NAME" for kind in EMBEDDERS))
        raise RecipeError(f"{unknown('embedder', name, forms)} NAME is a hub id or a directory.")
    return kind, place


def _embedder(value: str) -> str:
    try:
        parse_embedder(value)
    except RecipeError as error:
        raise ValueError(str(error).removesuffix(".")) from error
    return value


def _known_device(value: str) -> str:
    if value.startswith("cuda:") and value not in _DEVICES:
        raise ValueError("an audit trains on the first visible GPU; set CUDA_VISIBLE_DEVICES, and write cuda")
    if value not in _DEVICES:
        raise ValueError(unknown("device", value, _DEVICES).removesuffix("."))
    return value


class ModelSpec(Part):
    """Which model is fine-tuned."""

    name: Name = "tiny"
    """`tiny` and `tiny-1` … `tiny-4` (one recipe, five seeds of pretraining), `smollm2-135m`, `quadratic`, a Hugging
    Face id, or a directory."""
    per_seed: tuple[Name, ...] = ()
    """Base models in turn, instead of `name`: seed s starts from the (s mod n)-th of n."""
    adaptation: AdaptationName = "lora"
    """`lora`, `dora` (weight-decomposed LoRA), `full` (every weight trains), `qlora` (LoRA on a 4-bit base; `pip
    install 'longgame[qlora]'`), or `peft` (another kind)."""
    lora: LoraSpec = LoraSpec()
    peft: dict[str, Any] = {}
    """Further keys of PEFT's configuration: of `LoraConfig`, or with `adaptation: peft` of that of `type`."""
    device: Annotated[str, AfterValidator(_known_device)] = "auto"
    """`auto` is a GPU where there is one. Trials run one per GPU, or several where its memory holds them (`--gpus`,
    `--workers`). The run records the card, and is not resumed on another."""
    attention: Literal["auto", "eager", "sdpa", "flash"] = "auto"
    """Kernels of attention; `flash` needs CUDA, bfloat16 and the package flash-attn. `auto` is sdpa on a GPU and eager
    elsewhere; a run is not resumed under another."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the base weights; LoRA factors are always float32."""
    max_length: int = Field(256, ge=8, le=MOST)
    """Tokens of prompt + response; a longer example is an error unless the data section says otherwise."""
    chat_template: Name | None = None
    """Path of a Jinja chat template, or `plain` (prompt, newline, response), for a tokenizer that has none. A template
    that writes today's date gets 1 January 2026 instead."""
    pad_token: Name | None = None
    """Padding token, for a tokenizer that has none."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the model (`--trust-remote-code`); without it, such a model is refused."""
    embedder: Annotated[str, AfterValidator(_embedder)] = EMBEDDER
    """What gives embeddings: `model` (mean hidden states of the base model), `sentence-transformers:NAME` or
    `model2vec:NAME`, NAME a hub id or a directory."""
    scorer_model: Name | None = None
    """Another model, with its own tokenizer, that measures candidates for selectors that ask it (`superfiltering`,
    `svp`)."""

    @model_validator(mode="after")
    def _check(self) -> ModelSpec:
        if self.adaptation == "full" and self.peft:
            raise ValueError("full fine-tuning has no adapter; leave model.peft out, or use adaptation: lora")
        if self.adaptation == "peft" and not isinstance(self.peft.get("type"), str):
            raise ValueError("adaptation peft needs the kind of adapter; add it, e.g. peft: {type: LOHA, r: 8}")
        if self.attention == "flash" and self.dtype != "bfloat16":
            raise ValueError("attention flash computes in 16 bits; set model.dtype: bfloat16, or attention: sdpa")
        return self

    @property
    def adaptation_label(self) -> str:
        """``lora-r16``, ``full``, ``loha``: how results and tables name the adaptation."""
        if self.adaptation == "peft":
            return str(self.peft["type"]).lower()
        return self.adaptation + (f"-r{self.lora.r}" if ADAPTATION_KINDS[self.adaptation].low_rank else "")


def brings_items(scorers: Iterable[str]) -> bool:
    """Whether every one of these scorers has items of its own (`lm_eval:TASK`), so that a task needs none."""
    return all(name.partition("(")[0].partition(":")[0].strip() == "lm_eval" for name in scorers)


def _names(value: Any) -> Any:
    """Accept one name beside a list."""
    return (value,) if isinstance(value, str) else value


class RealTask(Part):
    """One stage (or OOD set) made of files or hub ids, or of procedural sub-skills."""

    name: Name
    """Name of the stage or OOD set."""
    skills: tuple[Name, ...] = ()
    """Procedural sub-skills of the stage (`sequence: procedural`)."""
    train: Annotated[tuple[Name, ...], BeforeValidator(_names)] = ()
    """Sources of the pool, in equal shares: a name in `data_dir/train`, a path, or `hub:owner/name[:config[:split]]`.
"""
    eval: Annotated[tuple[Name, ...], BeforeValidator(_names)] = ()
    """Sources of the validation items, likewise (`data_dir/eval`). None are needed where every scorer is
    `lm_eval:TASK`."""
    scorers: tuple[Name, ...] = Field(("token_accuracy", "exact_match", "ends"), min_length=1)
    """The first is the task's own."""
    max_new_tokens: int = Field(48, ge=1, le=MOST)
    """Longest decoded response, in tokens; a procedural stage decodes at least as many as its sub-skills need."""


class DataSpec(Part):
    """Where candidates, validation items and OOD items come from."""

    sequence: Literal[
        "procedural-skill", "procedural-domain", "procedural-interleaved", "procedural", "files", "quadratic"
    ] = "procedural-skill"
    """A generated sequence (`procedural…`), `files` (files or hub data sets), or `quadratic` (closed form). Stages
    that name files, or sub-skills, imply `files` or `procedural`."""
    stages: tuple[RealTask, ...] = ()
    """Stages of `sequence: files` or `procedural`, in order."""
    order: tuple[str, ...] = ()
    """Names of all stages in the order in which they are walked; `[]`: as the sequence has them."""
    ood: tuple[RealTask, ...] = ()
    """OOD sets of `sequence: files` (only `eval` is read)."""
    data_dir: Name | None = None
    """Folder with `train/NAME` and `eval/NAME`, each `.jsonl`, `.jsonl.gz` or `.parquet`; a path in a stage is used as
    it is."""
    turns: Literal["all", "last"] = "all"
    """Assistant turns of a conversation that are learned: `all`, or the `last` one. Of an evaluation item, the last
    one is scored."""
    quality_range: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest value of the column `quality` in files."""
    pool_size: int = Field(960, ge=2, le=MOST)
    """Candidates per stage."""
    unseen: float = Field(0.2, ge=0, le=1)
    """Share of a procedural pool drawn from sub-skills of a form that the tiny base model never saw."""
    noise: float = Field(0.05, ge=0, le=1)
    """Share of a procedural pool whose response is damaged (recorded per example)."""
    duplicates: float = Field(0.10, ge=0, lt=1)
    """Share of a procedural pool that repeats another candidate."""
    mixing: float = Field(0.0, ge=0, lt=1)
    """Share of a pool drawn from skills that only the stages just before and after train; 0: sharp borders."""
    items_per_skill: int = Field(10, ge=1, le=MOST)
    """Validation items per sub-skill (procedural) or per source file (files)."""
    ood_items_per_skill: int = Field(6, ge=1, le=MOST)
    """The same for OOD sets."""
    ood_after: Literal["ends", "every-stage"] = "ends"
    """When the OOD sets are scored: `ends`, before any stage and after the last one; or `every-stage`."""
    run_model_code: bool = False
    """Let scorers run programs that the model wrote, in a sandbox; without it `pass_at_1` is refused."""
    too_long: Literal["error", "drop"] = "error"
    """An example longer than `model.max_length` is an error (`error`), or dropped and counted (`drop`)."""

    @model_validator(mode="before")
    @classmethod
    def _sequence_of_stages(cls, values: Any) -> Any:
        """Stages that name files, or sub-skills, say which sequence they belong to."""
        if not isinstance(values, dict) or "sequence" in values or not isinstance(values.get("stages"), list | tuple):
            return values
        keys = {key for stage in values["stages"] if isinstance(stage, dict) for key in stage}
        kind = "files" if keys & {"train", "eval"} else "procedural" if "skills" in keys else None
        return values if kind is None else {**values, "sequence": kind}


class ChoiceSpec(Part):
    """What of the earlier stages is replayed first, by name, with its parameters."""

    name: Name = "uniform"
    parameters: dict[str, Any] = Field(default_factory=dict)


def _choice(value: Any) -> Any:
    """Accept `targeted` and `{name: targeted, …parameters}` beside the long form."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and "parameters" not in value:
        parameters = {key: item for key, item in value.items() if key != "name"}
        return {**{key: item for key, item in value.items() if key == "name"}, "parameters": parameters}
    return value


class ReplaySpec(Part):
    """Replay mixture: a share of each stage's budget for examples of earlier stages."""

    share: float = Field(gt=0, lt=1)
    """Share of a stage's budget for rows of earlier stages; `replay: 0.2` for short."""
    source: Literal["pools", "selected"] = "pools"
    """From all candidates of earlier stages, or from what the selector selected of them."""
    choice: Annotated[ChoiceSpec, BeforeValidator(_choice)] = ChoiceSpec()
    """`uniform`, or what of them comes first: `targeted`, `damage`, `distance`, `surprise`, `fit`, with parameters as
    further keys."""

    @property
    def label(self) -> str:
        """What tables call it: ``replay 20% targeted selected``."""
        words = [self.choice.name] * (self.choice.name != "uniform") + ["selected"] * (self.source == "selected")
        return " ".join([f"replay {100 * self.share:g}%", *words])


def _replay(value: Any) -> Any:
    """Accept a share beside the long form."""
    return {"share": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class SelectorSpec(Part):
    """A selector by name, with its parameters and the interventions around it."""

    name: Name
    """Name of a selector, `path/to/file.py:Class`, or `scores:FILE`. Further keys are the selector's parameters."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    label: Name | None = None
    """How it is called in tables (default: its name and interventions); needed when one stands twice."""
    replay: Annotated[ReplaySpec | None, BeforeValidator(_replay)] = None
    """Replay around the selector; a share alone may stand for the mapping."""
    min_cluster_share: float = Field(0.0, ge=0, lt=1)
    """Least share of a stage's tokens for every skill cluster; 0: none."""
    proxy_penalty: float = Field(0.0, ge=0)
    """Weight of the penalty on candidates whose gradient opposes the future proxy's; 0: none."""
    proxy_as_data: bool = False
    """Learn the items of the future-proxy mixture, too, once a stage and in the same budget."""

    @property
    def key(self) -> str:
        return self.label or " + ".join([self.name, *self.interventions])

    @property
    def interventions(self) -> tuple[str, ...]:
        """What stands around the selector, innermost first, in the words of tables."""
        words = [f"proxy penalty {self.proxy_penalty:g}"] if self.proxy_penalty else []
        words += [f"min cluster {100 * self.min_cluster_share:g}%"] if self.min_cluster_share else []
        if self.replay is not None:
            words.append(self.replay.label)
        return (*words, *(["proxy items"] if self.proxy_as_data else []))


def _selector(value: Any) -> Any:
    """Accept `loss` and `{name: loss, …parameters}` beside the long form."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and "parameters" not in value:
        known = {key: item for key, item in value.items() if key in SelectorSpec.model_fields}
        return {**known, "parameters": {key: item for key, item in value.items() if key not in known}}
    return value


class TrainingSpec(Part):
    """The training step (transformers' Trainer, AdamW)."""

    steps: int = Field(32, ge=1, le=MOST)
    """Optimiser steps per stage."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak learning rate of AdamW."""
    warmup_steps: int = Field(5, ge=0, le=MOST)
    """Linear warm-up, in steps; default: 5, or all steps where a stage has fewer."""
    final_lr_share: float = Field(0.1, ge=0, le=1)
    """Linear decay ends at this share of the learning rate."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    epochs: int = Field(1, ge=1, le=MOST)
    """Passes over what a round selected."""
    accumulation: int = Field(1, ge=1, le=MOST)
    """Micro-batches per optimiser step (memory, not mathematics)."""
    micro_tokens: int | None = Field(None, ge=1, le=MOST)
    """Padded tokens of a forward pass at most; a larger micro-batch is passed in parts. Default: 4,096 on a GPU, no
    bound on a CPU."""
    gradient_checkpointing: bool = False
    """Keep one activation per layer and compute the others again: less memory, about a third more time. Gradient
    signals do so, too, with equal numbers."""

    @model_validator(mode="before")
    @classmethod
    def _shorten_warmup(cls, values: Any) -> Any:
        """Let the default warm-up end within a short stage."""
        if isinstance(values, dict) and "warmup_steps" not in values and values.get("steps") in range(1, 5):
            return {**values, "warmup_steps": values["steps"]}
        return values

    @model_validator(mode="after")
    def _check(self) -> TrainingSpec:
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps} but a stage has {self.steps} steps, so the learning rate would "
                "never arrive; lower warmup_steps"
            )
        return self


class ProbeSpec(Part):
    """Short training on the next stage from a fork of the model, to see how fast it still learns."""

    kinds: tuple[Literal["common", "own"], ...] = ("common", "own")
    """`common` trains every model on the same uniform sample; `own` trains on the selector's picks."""
    steps: int = Field(10, ge=1, le=MOST)
    """Optimiser steps of a probe."""
    points: int = Field(6, ge=2, le=MOST)
    """Token counts at which the fork is scored, the first at 0 and the last at the end."""
    generations: Literal["every-point", "ends"] = "every-point"
    """Where scorers that need a generation (`exact_match`) measure a probe: at `every-point`, or at its `ends` alone.
    Generations are most of what a point costs."""
    threshold: float = Field(0.9, gt=0)
    """Tokens-to-threshold: share of the mean end-of-probe score over all selectors."""

    @model_validator(mode="after")
    def _check(self) -> ProbeSpec:
        if self.points > self.steps + 1:
            raise ValueError(f"points is {self.points} but {self.steps} steps give at most {self.steps + 1} points")
        return self


class ProxySpec(Part):
    """The future-proxy mixture: a few items of every stage, shown only to selectors that ask for it."""

    items_per_skill: int = Field(8, ge=0, le=MOST)
    """Items per sub-skill (or source file) of every stage in the mixture."""
    refresh_steps: int = Field(8, ge=1, le=MOST)
    """Its gradient is measured again after this many steps."""


HolmFamily = Literal["selectors-conditions", "selectors", "conditions"]


class EquivalenceSpec(Part):
    """δ of the verdict *equivalent within ±δ*: differences from the reference that are too small to matter."""

    now: float = Field(1.0, gt=0)
    """δ of the verdict *equivalent within ±δ*, in points of the current score: a smaller true difference does not
    matter to you. Choose both margins before you see results."""
    long_horizon: float = Field(0.02, gt=0)
    """The same for the long-horizon score, on its 0–1 scale."""


class MetricSpec(Part):
    """Weights and options of the long-horizon metrics."""

    alpha: float = Field(1.0, ge=0)
    """Weight of the future AUC in the long-horizon score."""
    beta: float = Field(1.0, ge=0)
    """Weight of forgetting (a penalty)."""
    gamma: float = Field(1.0, ge=0)
    """Weight of the OOD score."""
    forgetting_reference: Literal["best-ever", "best", "first"] = "best-ever"
    """`best-ever`: from the best earlier score of any row, row 0 included; `best`: from the best score since the
    task's own stage; `first`: from the score right after that stage."""
    clusters: int = Field(8, ge=2, le=MOST)
    """Skill clusters of the capability entropy (k-means on frozen embeddings)."""
    gradient_every: int = Field(4, ge=1, le=MOST)
    """Selection concentration is measured on the picks of every n-th round."""
    concentration_size: int = Field(16, ge=2, le=MOST)
    """Number of gradients at which selection concentration is measured, the same for all selectors."""
    bootstrap: int = Field(0, ge=0, le=100_000)
    """Resamples of a bootstrap over seeds, whose 95 % intervals are added to the summary (`boot_low`, `boot_high`); 0:
    none. They are too narrow with 20 seeds and far too narrow with fewer. Marks and verdicts never use them."""
    reference: str = "random"
    """Label of the selector that all others are compared with. It changes only tables and verdicts, so a finished run
    can be reported with another one at once."""
    equivalence: EquivalenceSpec = EquivalenceSpec()
    holm: HolmFamily = "selectors-conditions"
    """What the verdicts of a run with several conditions are corrected over: all comparisons together, the
    `selectors` of each condition, or the `conditions` of each selector. A finished run can be reported with any."""


DEFAULT_SELECTORS: Any = ("random", "loss", "lhas")
"""The reference, a myopic method and a far-sighted one; names, as a recipe writes them."""


class Recipe(Part):
    """Everything an audit depends on; two recipes that are equal give equal numbers on one machine."""

    name: str = Field("audit", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its directory is `runs/NAME` unless `--out` says otherwise."""
    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    selectors: tuple[Annotated[SelectorSpec, BeforeValidator(_selector)], ...] = Field(DEFAULT_SELECTORS, min_length=1)
    """The selectors to compare: `loss`, or with parameters `{name: lhas, future_weight: 0, label: lhas-blind}`."""
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1)
    """Replications; each has its own pools, candidate order, adapter and selector randomness."""
    budget: Share = 0.25
    """Share of each pool's tokens (see `budget_of`) that a selector may spend."""
    budget_of: BudgetOf = "tokens"
    """What the budget counts: prompt and response (equal computation), or the `response` alone, which the loss is
    taken over (equal supervision)."""
    rounds: Rounds = "step"
    """How often a stage selects. `step`: online, at every optimiser step from fresh candidates; 1: one offline choice;
    n: the rest of the pool is scored again before each of n shares."""
    full_data: bool = False
    """One more trial per seed that learns every candidate as often as a selector's pick; `longgame compare` divides by
    it."""
    oracle: bool = False
    """One more trial per seed that picks by the gradients of the evaluation items: the head-room of selection."""
    quality: str | dict[str, Any] | None = None
    """Source of quality for selectors that read one: `rules`, `column:NAME`, `reward:MODEL`, `judge:FILE.yaml`, or a
    mapping of `name` and parameters. Default: the column `quality`, or rules."""
    complexity: str | dict[str, Any] | None = None
    """Source of complexity (`deita`), written as that of quality."""
    axes: AxesSpec = AxesSpec()
    training: TrainingSpec = TrainingSpec()
    probe: ProbeSpec = ProbeSpec()
    proxy: ProxySpec = ProxySpec()
    metrics: MetricSpec = MetricSpec()
    relative_to: Annotated[tuple[Name, ...], BeforeValidator(_names)] = ()
    """Folder, or folders, that relative paths start from (`longgame.limits.located`), themselves relative to the
    recipe's file."""

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        keys = [selector.key for selector in self.selectors]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"selector {', '.join(twice)} stands twice; give each its own `label`")
        if len(self.selectors) > 1 and any(selector.name == "oracle" for selector in self.selectors):
            raise ValueError(
                "selector 'oracle' looks at the evaluation items and is compared with no selector; leave it out and "
                "set oracle: true"
            )
        if self.metrics.reference not in ("random", *keys):
            raise ValueError(
                f"metrics.reference is '{self.metrics.reference}', which is no selector here; use {' or '.join(keys)}"
            )
        if self.model.per_seed and self.model.name != ModelSpec().name:
            raise ValueError(
                f"model.name is '{self.model.name}' but model.per_seed names the base models instead; leave one of "
                "them out"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} repeat; each seed is one replication")
        for rounds in (self.rounds, *self.axes.rounds):
            if rounds != "step" and rounds > self.training.steps:
                raise ValueError(f"rounds is {rounds} but there are only {self.training.steps} steps per stage")
            if rounds == "step" and self.training.epochs > 1:
                raise ValueError(
                    f"training.epochs is {self.training.epochs} but rounds is 'step', which passes once over each "
                    "step's picks; set training.epochs: 1, or a number of rounds"
                )
        if self.data.pool_size < self.training.steps:
            raise ValueError(
                f"data.pool_size is {self.data.pool_size}, fewer than one candidate for each of "
                f"{self.training.steps} steps; raise data.pool_size or lower training.steps"
            )
        if self.data.sequence in ("files", "procedural") and not self.data.stages:
            raise ValueError(f"data.sequence is '{self.data.sequence}' but data.stages is empty")
        self._check_stages()
        return self

    def for_seed(self, seed: int) -> Recipe:
        """The recipe with the base model that this seed starts from."""
        bases = self.model.per_seed
        return self.replace({"model.name": bases[seed % len(bases)], "model.per_seed": ()}) if bases else self

    def replace(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with other values, which are not validated.

        Args:
            changes: key, or ``section.key``, → value.
        """
        update: dict[str, Any] = {}
        for name, value in changes.items():
            section, _, key = name.partition(".")
            part = update.get(section, getattr(self, section))
            update[section] = part.model_copy(update={key: value}) if key else value
        return self.model_copy(update=update)

    @property
    def counted_tokens(self) -> str:
        """What the budget counts, in words."""
        return "response tokens" if self.budget_of == "response" else "tokens"

    def graded_columns(self) -> tuple[str, ...]:
        """Columns of the rows that a quality source ``column`` reads as they are; `data.quality_range` maps none."""
        names: dict[str, None] = {}
        for source in (self.quality, self.complexity):
            text = source if isinstance(source, str) else ""
            if isinstance(source, dict) and source.get("name") == "column" and len(source) > 1:
                names[str(source.get("column", "quality"))] = None
            elif text.startswith("column:"):
                name = text.removeprefix("column:").partition(",")[0].removeprefix("column=")
                names["quality" if "=" in name else name] = None
        return tuple(names)

    def paths(self) -> AbstractContextManager[None]:
        """Inside, relative paths start from the recipe's folders."""
        return relative_to(self.relative_to)

    def stored_in(self, folder: Path) -> Recipe:
        """The recipe as a file of this folder: `relative_to` starts from there, and is empty where no path needs it."""
        with self.paths():
            places = (self.relative_to or (str(Path.cwd()),)) if self._has_paths() else ()
        return self.replace({"relative_to": tuple(os.path.relpath(place, folder.resolve()) for place in places)})

    def _has_paths(self) -> bool:
        """Whether a value may be a relative path."""
        tasks, model, vary = (*self.data.stages, *self.data.ood), self.model, self.axes.vary
        sources = (self.quality, self.complexity, *vary.get("quality", ()), *vary.get("complexity", ()))
        if any(source not in (None, "auto", "rules") for source in sources):
            return True
        references = [name for task in tasks for name in (*task.train, *task.eval) if not name.startswith("hub:")]
        scorers = [name for task in tasks for name in task.scorers]
        plugins = [*texts_in([selector.model_dump() for selector in self.selectors]), *scorers]
        embedders = texts_in([model.embedder, *vary.get("model.embedder", ())])
        models = texts_in([model.name, *vary.get("model.name", ()), model.per_seed])
        models += texts_in([model.scorer_model, *vary.get("model.scorer_model", ())])
        models += [name.partition(":")[2] for name in embedders if ":" in name]
        texts = [
            *(name.removeprefix("scores:") for name in plugins if name.startswith("scores:") or ".py:" in name),
            *(name for name in references if {*"/.*?["} & {*name}),
            *(word for name in scorers for word in re.split(r"[:(,=)\s]+", name)[1:] if _may_be_path(word)),
            *(name for name in models if Path(located(name)).is_dir()),
            *texts_in([self.data.data_dir, model.chat_template, *vary.get("model.chat_template", ())]),
        ]
        return any(not Path(text).expanduser().is_absolute() and text != "plain" for text in texts)

    def _check_stages(self) -> None:
        sequence, stages = self.data.sequence, self.data.stages
        if sequence.startswith("procedural-") and stages:
            raise ValueError(f"data.sequence '{sequence}' has stages of its own; use sequence: procedural or files")
        if sequence.startswith("procedural") and self.data.ood:
            raise ValueError(f"data.sequence '{sequence}' makes its own OOD sets; leave data.ood out")
        for task in self.data.ood:
            if task.train:
                raise ValueError(f"OOD set '{task.name}' names train files, which are never read; leave them out")
        for stage in stages:
            if sequence == "procedural" and (stage.train or stage.eval or not stage.skills):
                raise ValueError(f"stage '{stage.name}' of sequence: procedural names `skills`, and no train or eval")
            if sequence != "procedural" and stage.skills:
                raise ValueError(f"stage '{stage.name}' names skills, which only sequence: procedural has")


_LONGEST_YAML = 1_000_000
"""Bytes of a YAML file that is read; a recipe of a thousand stages has a tenth of them."""


def packaged_recipes() -> dict[str, Path]:
    """Name → file of every recipe that comes with the package, sorted by name.

    The wheel holds them beside the modules; in a clone they are its folder ``recipes``.
    """
    installed = Path(__file__).parent / "recipes"
    folder = installed if installed.is_dir() else Path(__file__).parents[2] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml")) if path.stem != _PRETRAINING}


_PRETRAINING = "tiny-base"
"""The file among the recipes that says how the tiny models were made, and is no audit."""


def find_recipe(name: str | Path) -> Path:
    """The path itself, or the file of the packaged recipe of this name where no such file or run directory exists."""
    path = Path(name)
    if path.is_file() or (path / "recipe.yaml").is_file():
        return path
    return packaged_recipes().get(str(name), path)


def read_mapping(path: str | Path, example: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; ``example`` is named in the hint for a file that does not exist.

    Raises:
        RecipeError: the file does not exist, is not YAML, or holds something else.
    """
    path = Path(path)
    if reason := why_no_file(path):
        names = packaged_recipes() if len(path.parts) == 1 else {}
        others = [other.name for other in path.parent.glob("*.yaml")] if reason == "does not exist" else []
        near = did_you_mean_file(path.name, [*others, *(names if not path.suffix else ())])
        packaged = f", or the name of a recipe of the package: {', '.join(names)}" if names else ""
        raise RecipeError(f"recipe '{path}' {reason}.{near} Give the path of a YAML file, e.g. {example}{packaged}.")
    try:
        if path.stat().st_size > _LONGEST_YAML:
            raise RecipeError(f"recipe '{path}' has {path.stat().st_size:,} bytes; give at most {_LONGEST_YAML:,}.")
        raw = load_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RecipeError(f"recipe '{path}' cannot be read: {error.strerror or error}. Check it.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"recipe '{path}' is not a text in UTF-8 (byte {error.start + 1}). Save it as one."
        ) from error
    except ValueError as error:  # also of numbers and dates that YAML cannot hold
        raise RecipeError(f"recipe '{path}' is not valid YAML: {error}.") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"recipe '{path}' holds a {type(raw).__name__}; it must be a mapping of keys to values.")
    return raw


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe and replace the values of dotted keys.

    Args:
        path: a YAML file, or the name of a recipe of the package (`packaged_recipes`).

    Raises:
        RecipeError: the file does not exist, is not YAML, or a key or value is wrong.
    """
    path = find_recipe(path)
    raw = read_mapping(path, "recipes/quickstart.yaml")
    set_values(raw, overrides or {}, str(path))
    recipe = parse_recipe(raw, str(path))
    return recipe.replace({"relative_to": path_folders(path, recipe.relative_to)})


def path_folders(file: Path, relative_to: Iterable[str] = ()) -> tuple[str, ...]:
    """Absolute folders that the relative paths of a recipe's file start from.

    Args:
        relative_to: those that the recipe names. Without any: the folder of the file, then the working directory; of
            a recipe of the package, the working directory alone.
    """
    here = Path.cwd()
    if file in packaged_recipes().values():
        folders = [here]
    else:
        parent = file.resolve().parent
        folders = [parent / Path(name).expanduser() for name in relative_to] or [parent, here]
    return tuple(dict.fromkeys(str(folder.resolve()) for folder in folders))


def set_values(raw: dict[str, Any], values: Mapping[str, Any], where: str) -> None:
    """Set dotted keys of a recipe that is not validated yet.

    Raises:
        RecipeError: a key leads through a value that is no mapping.
    """
    for key, value in values.items():
        section = raw
        *parents, last = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise RecipeError(
                    f"{where}: '{key}' is no key of a recipe; '{parent}' holds {section!r}. It must be a mapping of "
                    "keys to values."
                )
        section[last] = value


def _half_pair(value: Any) -> str | None:
    """A text in these values that no encoding can hold; None without one."""
    if isinstance(value, str):
        return value if any("\ud800" <= char <= "\udfff" for char in value) else None
    parts = (*value.keys(), *value.values()) if isinstance(value, Mapping) else value
    inside = map(_half_pair, parts) if isinstance(parts, list | tuple) else ()
    return next((text for text in inside if text is not None), None)


def texts_in(value: Any) -> list[str]:
    """All texts in these values, at any depth; keys are none."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [text for part in parts for text in texts_in(part)]


def _may_be_path(word: str) -> bool:
    """Whether a word among a scorer's parameters is written as a path, or names a file or folder that exists."""
    written = bool({*"/."} & {*word}) and not word.replace(".", "").isdigit()
    return bool(word) and (written or Path(located(word)).exists())


def parse_recipe(raw: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validate a mapping; every problem stands in one RecipeError, a line each."""
    half = _half_pair(raw)
    if half is not None:
        raise RecipeError(
            f"{where}: {half!r} holds half a surrogate pair, which no file can store. Write the character itself."
        )
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(f"{where}: " + "\n".join(_explain_all(error.errors()))) from error


_WORDS = {
    "too_short": "is empty; name at least one",
    "string_pattern_mismatch": "must begin with a letter or digit and hold only letters, digits, '.', '_' and '-'",
}
"""Kinds of problems that pydantic tells in the words of a programmer."""


def _explain_all(problems: list[Any]) -> list[str]:
    """A line for each place; what a value of several kinds could have been is joined by "or"."""
    lines: dict[str, str] = {}
    for problem in problems:
        if problem["type"] == "too_short" and problem["input"]:
            continue  # pydantic counts the items that are right, and the wrong ones have a line of their own
        *path, last = problem["loc"] or ("",)
        own = problem["type"] == "extra_forbidden"  # the last part is the user's, whatever it looks like
        # pydantic puts the kind it tried into the path: function-before[…], literal['step'], constrained-int
        location = [part for part in (*path, *(() if own else (last,))) if isinstance(part, int) or part.isidentifier()]
        location += [last] if own else []
        dotted = ".".join(str(part) for part in location)
        line = _explain(problem, location, dotted)
        if dotted in lines and not own:
            line = f"{lines[dotted].rpartition(' (seen')[0]} or {line.removeprefix(f'{dotted!r}: ')}"
        lines[dotted] = line
    return list(lines.values())


def _explain(problem: Any, location: list[Any], dotted: str) -> str:
    if problem["type"] == "extra_forbidden":
        allowed = _keys_at(location[:-1])
        return f"unknown key '{dotted}'.{did_you_mean(str(location[-1]), allowed)} Known here: {', '.join(allowed)}."
    if problem["type"] == "missing":
        return f"'{dotted}' is missing; it has no default."
    message = _WORDS.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    message = message.replace("Input should be", "must be", 1)
    seen = "" if isinstance(problem["input"], dict | BaseModel) else f" (seen: {problem['input']!r})"
    return f"'{dotted or 'recipe'}': {message}{seen}."


def _keys_at(location: list[Any]) -> list[str]:
    """Keys allowed at a place of the recipe, found by walking the models' annotations."""
    model: type[BaseModel] = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        found = model.model_fields.get(str(part))
        if found is None:
            return []
        model = _model_in(found.annotation) or model
    return sorted(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if found is not None:
            return found
    return None
