"""The table of signals, and `Signals`: the columns per candidate that selectors see.

To add a signal, add one row to `_TABLE`. A signal without ``compute`` is measured by the engine in its shared pass; any
other one is computed from what `Provider` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import Pool, read_only_columns
from longgame.errors import NumericalError, PluginError, unknown

Engine = Callable[[Pool, Sequence[str]], Mapping[str, np.ndarray]]
"""(pool, names) → one row-aligned column per name, under the model as it is now; `SignalEngine` is one."""


class Provider(Protocol):
    """What a computed signal can draw on; `longgame.signals.source.SignalSource` is one."""

    def live(self, pool: Pool, name: str) -> np.ndarray:
        """An engine signal under the model as it is now."""

    def of_base(self, pool: Pool, name: str) -> np.ndarray:
        """An engine signal under the frozen base model."""

    def fitted(self, pool: Pool, name: str) -> np.ndarray:
        """``difficulty`` or ``cluster``, which are fitted over all candidates."""

    def quality(self, pool: Pool) -> np.ndarray:
        """Quality of each example, in [0, 1]; NaN: missing."""

    def grades(self, pool: Pool, name: str) -> np.ndarray:
        """``grade`` or ``complexity`` of each example, on the scale of its source; NaN: missing."""

    def answer_quality(self, pool: Pool) -> np.ndarray:
        """Quality of the model's own answer to each prompt, in [0, 1]; NaN: missing."""

    def text_ratio(self, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
        """Log importance ratio of each text between target set and candidates, and its number of n-grams."""

    def duplicates(self, pool: Pool, name: str) -> np.ndarray:
        """``exact_group`` or ``near_group``, over all candidates."""

    def logged(self, pool: Pool, name: str) -> np.ndarray:
        """``loss_trajectory`` or ``accuracy_trajectory`` of a training log."""

    def of_scorer(self, pool: Pool, name: str) -> np.ndarray:
        """A signal under the scorer model."""

    def of_auxiliary(self, pool: Pool, name: str) -> np.ndarray:
        """``influence`` or ``reference_loss``, which a training beside the trial's own gives."""


Compute = Callable[[Provider, Pool], np.ndarray]


@dataclass(frozen=True, slots=True)
class Signal:
    """One row of the table of signals."""

    name: str
    unit: str
    meaning: str
    needs: tuple[str, ...]
    """``model`` (as it is now), ``base`` (frozen), ``head`` (its vocabulary projection), ``text``, ``candidates``
    (all of them), ``judge`` (a quality source that the user names), ``generation`` (answers of the model),
    ``optimizer``, ``proxy`` (the future-proxy mixture), ``target`` (the target set), ``earlier`` (candidates of an
    audit's earlier stages), ``evaluation`` (an audit's items), ``log`` (a training log of the candidates), ``warmup``
    (LESS's training on a part of them), ``reference`` (a model trained on other data), ``scorer`` (another model, with
    a tokenizer of its own)."""
    cost: Literal["none", "forward", "backward"] = "none"
    """Work per candidate in training; ``none``: from the text, or computed once per example and looked up."""
    width: str = ""
    """Numbers per candidate: "" for one, else what gives their number: ``hidden``, ``sketch_dim``, ``logit_sketch``,
    ``halves`` (two: one for each half of the items that the gradient is compared with), ``epochs`` (of a training log),
    or ``tasks`` (of the target set). Of a context matrix ``items``: a row of ``hidden`` numbers per item of the target
    set."""
    compute: Compute | None = None
    """None: the engine's shared pass."""
    reads: Callable[[Pool], Pool] | None = None
    """What the model reads in a pass of its own, where it is not the candidates as they are."""
    may_miss: bool = False
    """Whether a candidate may have no value (NaN)."""

    @property
    def live(self) -> bool:
        """Whether it depends on the model as it is now; else the base model or the text fixes it."""
        return "model" in self.needs

    @property
    def of_no_model(self) -> bool:
        """Whether the scored model is not asked: texts, a target set, a training log or a quality source give it."""
        return {*self.needs} <= {"text", "target", "candidates", "log", "judge"}


def _of_base(name: str) -> Compute:
    return lambda provider, pool: provider.of_base(pool, name)


def _fitted(name: str) -> Compute:
    return lambda provider, pool: provider.fitted(pool, name)


def _logged(name: str) -> Compute:
    return lambda provider, pool: provider.logged(pool, name)


def _of_auxiliary(name: str) -> Compute:
    return lambda provider, pool: provider.of_auxiliary(pool, name)


def _grades(name: str) -> Compute:
    return lambda provider, pool: provider.grades(pool, name)


def _loss_without_prompt(provider: Provider, pool: Pool) -> np.ndarray:
    turns, rows = pool.without_prompts()
    losses = provider.live(turns, "loss")
    if len(turns) == len(pool):
        return losses
    tokens = np.asarray(turns.response_tokens, dtype=np.float64)
    return (np.bincount(rows, losses * tokens) / np.bincount(rows, tokens)).astype(np.float32)


_SLOPE = "nats/token per parameter unit"
_HEAD = ("model", "head")
_TABLE = (
    Signal("loss", "nats/token", "mean NLL per response token", _HEAD, "forward"),
    Signal(
        "loss_without_prompt",
        "nats/token",
        "mean NLL per response token, every learned turn alone behind an empty prompt (IFD)",
        _HEAD,
        "forward",
        compute=lambda source, pool: _loss_without_prompt(source, pool),
        reads=lambda pool: pool.without_prompts()[0],
    ),
    Signal("token_accuracy", "share", "share of response tokens that are the most likely token", _HEAD, "forward"),
    Signal("el2n", "1", "mean L2 norm of softmax − one-hot over response tokens", _HEAD, "forward"),
    Signal(
        "logit_error_sketch",
        "1",
        "sketch of the mean of (softmax − one-hot) ⊗ hidden state over response tokens (BADGE)",
        _HEAD,
        "forward",
        "sketch_dim",
    ),
    Signal("logit_nuclear_norm", "logit", "nuclear norm of the logits at all positions (UDS)", ("model",), "forward"),
    Signal("logit_sketch", "logit", "sketch of the logits at all positions", ("model",), "forward", "logit_sketch"),
    Signal("response_logit_nuclear_norm", "logit", "nuclear norm of the response logits", ("model",), "forward"),
    Signal("response_logit_sketch", "logit", "sketch of the response logits", ("model",), "forward", "logit_sketch"),
    Signal("grad_norm", _SLOPE, "exact L2 norm of the gradient", _HEAD, "backward"),
    Signal("grad_sketch", _SLOPE, "sketch of the gradient", _HEAD, "backward", "sketch_dim"),
    Signal(
        "future_alignment",
        "cosine",
        "mean cosine of the gradient with those of the proxy items, by each half of them",
        (*_HEAD, "proxy"),
        "backward",
        "halves",
    ),
    Signal(
        "adam_future_alignment",
        "1",
        "future_alignment with directions scaled by Adam's second moments: what its step on the example does",
        (*_HEAD, "proxy", "optimizer"),
        "backward",
        "halves",
    ),
    Signal(
        "target_alignment",
        "cosine",
        "mean cosine of the gradient with those of the target set's items, by each half of them",
        (*_HEAD, "target"),
        "backward",
        "halves",
    ),
    Signal(
        "adam_target_alignment",
        "1",
        "target_alignment with directions scaled by Adam's second moments",
        (*_HEAD, "target", "optimizer"),
        "backward",
        "halves",
    ),
    Signal(
        "earlier_alignment",
        "cosine",
        "mean cosine of the gradient with those of candidates of earlier stages, by each half of them; 0 in the first",
        (*_HEAD, "earlier"),
        "backward",
        "halves",
    ),
    Signal(
        "adam_earlier_alignment",
        "1",
        "earlier_alignment with directions scaled by Adam's second moments",
        (*_HEAD, "earlier", "optimizer"),
        "backward",
        "halves",
    ),
    Signal(
        "evaluation_alignment",
        "cosine",
        "mean cosine of the gradient with those of the audit's evaluation items, by each half of them",
        (*_HEAD, "evaluation"),
        "backward",
        "halves",
    ),
    Signal("adam_grad_sketch", "1", "sketch of Adam's step (LESS)", (*_HEAD, "optimizer"), "backward", "sketch_dim"),
    Signal(
        "influence",
        "learning rate",
        "LESS: Σ over a warm-up's epochs of rate · cosine of Adam's step with each target task's mean gradient",
        ("target", "warmup"),
        width="tasks",
        compute=_of_auxiliary("influence"),
    ),
    Signal(
        "reference_loss",
        "nats/token",
        "mean NLL per response token under a reference model (RHO)",
        ("reference",),
        compute=_of_auxiliary("reference_loss"),
    ),
    Signal("embedding", "1", "mean-pooled hidden state", ("base",), "none", "hidden", _of_base("embedding")),
    Signal("base_loss", "nats/token", "mean NLL per response token", ("base", "head"), compute=_of_base("loss")),
    Signal(
        "difficulty",
        "pool percentile",
        "rank of base_loss in its stage pool",
        ("base", "head", "candidates"),
        compute=_fitted("difficulty"),
    ),
    Signal(
        "quality",
        "0–1",
        "quality by its source: a column or rules, if no other is named",
        ("text",),
        compute=lambda source, pool: source.quality(pool),
        may_miss=True,
    ),
    Signal(
        "grade",
        "points",
        "quality on the scale of its source",
        ("text", "judge"),
        compute=_grades("grade"),
        may_miss=True,
    ),
    Signal(
        "complexity",
        "points",
        "complexity of the request on the scale of its source",
        ("text", "judge"),
        compute=_grades("complexity"),
        may_miss=True,
    ),
    Signal(
        "own_answer_quality",
        "0–1",
        "quality of what the model itself answers to the prompt",
        (*_HEAD, "text", "judge", "generation"),
        "forward",
        compute=lambda source, pool: source.answer_quality(pool),
        may_miss=True,
    ),
    Signal(
        "dsir_ratio",
        "nats",
        "log importance ratio of the text's n-grams between target set and candidates (DSIR)",
        ("text", "target", "candidates"),
        compute=lambda source, pool: source.text_ratio(pool)[0],
    ),
    Signal(
        "ngram_count",
        "n-grams",
        "words and pairs of neighboring words that dsir_ratio sums over",
        ("text", "target", "candidates"),
        compute=lambda source, pool: source.text_ratio(pool)[1],
    ),
    Signal(
        "exact_group",
        "index",
        "group of candidates with equal turns",
        ("text", "candidates"),
        compute=lambda source, pool: source.duplicates(pool, "exact_group"),
    ),
    Signal(
        "near_group",
        "index",
        "group of near-duplicates: Jaccard index of word triples from 0.8 on, by MinHash",
        ("text", "candidates"),
        compute=lambda source, pool: source.duplicates(pool, "near_group"),
    ),
    Signal(
        "loss_trajectory",
        "nats/token",
        "mean NLL per response token at every epoch of a training log",
        ("log",),
        width="epochs",
        compute=_logged("loss_trajectory"),
    ),
    Signal(
        "accuracy_trajectory",
        "share",
        "share of response tokens that are the most likely token, at every epoch of a training log",
        ("log",),
        width="epochs",
        compute=_logged("accuracy_trajectory"),
    ),
    Signal("cluster", "index", "k-means of embedding", ("base", "candidates"), compute=_fitted("cluster")),
)
SCORER = "scorer_"
"""Before the name of a signal that a scorer model gives in place of the model that is trained."""
_OF_SCORER = ("loss", "loss_without_prompt", "token_accuracy", "el2n", "grad_norm", "embedding")


def _of_scorer(signal: Signal) -> Signal:
    name = SCORER + signal.name
    return Signal(
        name,
        signal.unit,
        f"{signal.name} under the scorer model",
        ("scorer",),
        width=signal.width,
        compute=lambda provider, pool: provider.of_scorer(pool, name),
        reads=signal.reads,
    )


SIGNALS: Mapping[str, Signal] = {
    signal.name: signal for signal in (*_TABLE, *(_of_scorer(signal) for signal in _TABLE if signal.name in _OF_SCORER))
}
"""Every signal per candidate that a selector may name in ``requires``."""

ALIGNMENTS = tuple(signal.name for signal in _TABLE if signal.width == "halves")
"""Signals that compare each gradient with directions that are measured beforehand."""

CONTEXT: Mapping[str, Signal] = {
    "future_proxy": Signal(
        "future_proxy",
        _SLOPE,
        "mean grad_sketch over the future-proxy mixture, measured again every proxy.refresh_steps",
        ("model", "head", "proxy"),
        "backward",
        "sketch_dim",
    ),
    "target_gradient": Signal(
        "target_gradient",
        _SLOPE,
        "mean grad_sketch over the target set, measured again every proxy.refresh_steps",
        ("model", "head", "target"),
        "backward",
        "sketch_dim",
    ),
    "target_embedding": Signal(
        "target_embedding",
        "1",
        "embedding of every item of the target set",
        ("base", "target"),
        width="items",
    ),
}
"""Vectors, or a matrix of them, that describe the moment, not one candidate; a selector names them in ``requires`` like
a signal."""

EMBEDDED = frozenset({"embedding", "cluster", "target_embedding"})
"""Signals that are vectors of an embedder, where there is one, or made of them."""

_CHECKED_ENTRIES = 1 << 20
"""Entries of a column that are checked at a time."""


def check_names(names: Iterable[str], caller: str) -> None:
    """Raise PluginError for a name that is neither a signal nor a context vector."""
    allowed = {*SIGNALS, *CONTEXT}
    for name in names:
        if name not in allowed:
            raise PluginError(f"{caller} requires an " + unknown("signal", name, allowed))


def work_of(names: Iterable[str]) -> str:
    """The dearest cost among these signals and context vectors: ``none``, ``forward`` or ``backward``."""
    table = {**SIGNALS, **CONTEXT}
    costs = {table[name].cost for name in names if name in table}
    return next((cost for cost in ("backward", "forward") if cost in costs), "none")


AUXILIARY = ("warmup", "reference", "log")
"""What signals need that a training beside the trial's own gives."""


def needs_auxiliary(names: Iterable[str]) -> frozenset[str]:
    """Which of `AUXILIARY` these signals need."""
    return frozenset(need for name in names if name in SIGNALS for need in SIGNALS[name].needs) & {*AUXILIARY}


COST_CLASSES: Mapping[str, str] = {
    "0": "text only",
    "E": "one pass of the base model for embeddings, once per example",
    "F": "one forward pass",
    "2F": "two forward passes",
    "B": "one forward and backward pass",
    "T": "a training of its own, and passes under its epochs",
    "J": "a grade by a judge, a reward model or a column, once per example",
    "G": "an answer generated by the model, and its grade",
}
"""Work per candidate that a selector's signals take, cheapest first."""


def scorer_passes(names: Iterable[str]) -> int:
    """Passes of a scorer model over each candidate that these signals take: 0, 1, or 2 where prompts are left out."""
    signals = [SIGNALS[name] for name in names if name in SIGNALS and "scorer" in SIGNALS[name].needs]
    return len({signal.reads is None for signal in signals})


def cost_class(names: Iterable[str]) -> str:
    """The dearest of `COST_CLASSES` among these signals and context vectors; passes of the base model count alike."""
    names = tuple(names)
    signals = [SIGNALS[name] for name in names if name in SIGNALS]
    if any("generation" in signal.needs for signal in signals):
        return "G"
    if needs_auxiliary(names):
        return "T"
    if work_of(names) == "backward":
        return "B"
    if any("judge" in signal.needs for signal in signals) and work_of(names) == "none":
        return "J"
    if passes := scorer_passes(names):
        return "2F" if passes > 1 else "F"
    if any(signal.reads is not None for signal in signals):
        return "2F" if any(signal.cost == "forward" and signal.reads is None for signal in signals) else "F"
    if any("head" in signal.needs or signal.live for signal in signals):
        return "F"
    return "E" if any("base" in signal.needs for signal in signals) else "0"


class Past(Protocol):
    """What was selected before, as clusters that are fitted anew take it in: `longgame.selection.history.History`."""

    @property
    def embeddings(self) -> Float[np.ndarray, "m d"]:
        """A uniform sample of the picks' embeddings."""

    def count_anew(self, clusters: Int[np.ndarray, " m"]) -> None:
        """Count the picks by these clusters of ``embeddings``."""


def check_width(width: int, others: Float[np.ndarray, "m d"]) -> None:
    """Raise PluginError where embeddings of this width do not fit to those before."""
    if width != others.shape[1]:
        raise PluginError(
            f"an embedding of width {width} came after ones of width {others.shape[1]}; "
            "keep one embedding model through a run."
        )


@dataclass(frozen=True)
class Signals:
    """Columns per candidate, row-aligned with ``ids``; float32 (``cluster`` and groups: int64).

    ``signals["loss"]`` is ``Float[n]``, ``signals["grad_sketch"]`` is ``Float[n, d]``; ``context["future_proxy"]`` is
    ``Float[d]`` and ``context["target_embedding"]`` ``Float[m, d]``. A missing column raises PluginError: a selector
    sees what it named in ``requires`` and nothing else. All arrays are read-only.
    """

    ids: tuple[str, ...]
    columns: Mapping[str, Float[np.ndarray, "n ..."] | Int[np.ndarray, " n"]]
    context: Mapping[str, Float[np.ndarray, "*m d"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, column in self.columns.items():
            if len(column) != len(self.ids):
                raise PluginError(f"signal '{name}' has {len(column)} rows for {len(self.ids)} candidates.")
            check_finite(name, column, self.ids)
        object.__setattr__(self, "columns", read_only_columns(self.columns))
        object.__setattr__(self, "context", read_only_columns(self.context))

    def __deepcopy__(self, memo: Any) -> Signals:
        """The signals themselves; they are never written to."""
        return self

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self.columns:
            return self.columns[name]
        if name in self.context:
            return self.context[name]
        raise PluginError(
            f"signal '{name}' was not asked for; name it in the selector's `requires`. "
            f"Available: {[*self.columns, *self.context]}."
        )

    def __contains__(self, name: str) -> bool:
        return name in self.columns or name in self.context

    def take(self, rows: Sequence[int] | Int[np.ndarray, " k"]) -> Signals:
        """Return the columns of these rows, in this order."""
        rows = np.asarray(rows, dtype=np.int64)
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Signals(tuple(self.ids[row] for row in rows), columns, self.context)


def check_finite(name: str, column: np.ndarray, ids: Sequence[str]) -> None:
    """Raise NumericalError, naming the example, where a float column holds a NaN or infinity.

    The column is read block by block: it may be a memory map larger than memory. NaN is allowed in a signal that may
    miss.
    """
    if column.dtype.kind != "f":
        return
    may_miss = name in SIGNALS and SIGNALS[name].may_miss
    step = max(1, _CHECKED_ENTRIES // max(1, column[:1].size))
    rows: list[int] = []
    for start in range(0, len(column), step):
        block = column[start : start + step]
        finite = np.isfinite(block) | np.isnan(block) if may_miss else np.isfinite(block)
        if not finite.all():
            rows += (start + np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1))).tolist()
    if rows:
        others = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        raise NumericalError(
            f"signal '{name}' is NaN or infinite for example {ids[rows[0]]}{others}. "
            "Check the example's text and the model's weights, lower the learning rate, or use float32."
        )
