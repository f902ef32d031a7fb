"""The columns that selectors see, and the table of the signals that exist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from longgame.errors import NumericalError, PluginError, unknown


@dataclass(frozen=True, slots=True)
class SignalSpec:
    """What a signal is: its unit, its shape, what it costs, and whether it changes while training."""

    name: str
    unit: str
    vector: bool
    cost: str
    """``none`` (from the text or a cache), ``forward`` or ``backward``."""
    live: bool
    """True if it depends on the model as it is now; False if the untouched base model (or the text) fixes it."""
    meaning: str


_TABLE = (
    SignalSpec("loss", "nats/token", False, "forward", True, "mean NLL per response token"),
    SignalSpec("el2n", "1", False, "forward", True, "mean L2 norm of softmax − one-hot over response tokens"),
    SignalSpec("logit_nuclear_norm", "logit", False, "forward", True, "nuclear norm of the response logits (UDS)"),
    SignalSpec("logit_sketch", "logit", True, "forward", True, "bilinear sketch of the response logits (UDS)"),
    SignalSpec("grad_norm", "nats/token per parameter unit", False, "backward", True, "exact L2 norm of the gradient"),
    SignalSpec("grad_sketch", "nats/token per parameter unit", True, "backward", True, "sketch of the gradient"),
    SignalSpec("adam_grad_sketch", "1", True, "backward", True, "sketch of Adam's step on the example (LESS)"),
    SignalSpec("embedding", "1", True, "none", False, "mean-pooled hidden state of the frozen base model"),
    SignalSpec("base_loss", "nats/token", False, "none", False, "mean NLL under the frozen base model"),
    SignalSpec("difficulty", "pool percentile", False, "none", False, "rank of base_loss in its stage pool"),
    SignalSpec("quality", "0–1", False, "none", False, "quality column, or rules where there is none"),
    SignalSpec("cluster", "index", False, "none", False, "k-means cluster of the frozen embeddings"),
)
SIGNALS: Mapping[str, SignalSpec] = {spec.name: spec for spec in _TABLE}
"""Every signal a selector may name in ``requires``, and ``future_proxy`` (see `Signals.context`)."""

_CHECKED_ENTRIES = 1 << 20
"""Entries of a column that are checked at a time."""

CONTEXT: Mapping[str, str] = {
    "future_proxy": "mean grad_sketch over the future-proxy mixture, Float[d]; refreshed every proxy.refresh_steps",
}
"""Vectors that describe the moment, not one candidate; a selector names them in ``requires`` like a signal."""


def check_names(names: Iterable[str], who: str) -> None:
    """Raise PluginError for a name that is neither a signal nor a context vector."""
    allowed = {*SIGNALS, *CONTEXT}
    for name in names:
        if name not in allowed:
            raise PluginError(f"{who} requires an " + unknown("signal", name, allowed))


@dataclass(frozen=True)
class Signals:
    """Columns per candidate, row-aligned with ``ids``; float32 (``cluster``: int64).

    ``signals["loss"]`` is ``Float[n]``, ``signals["grad_sketch"]`` is ``Float[n, d]``; ``context["future_proxy"]`` is
    ``Float[d]``. A missing column raises PluginError: a selector sees what it named in ``requires`` and nothing else.
    """

    ids: tuple[str, ...]
    columns: Mapping[str, Float[np.ndarray, "n ..."] | Int[np.ndarray, " n"]]
    context: Mapping[str, Float[np.ndarray, " d"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, column in self.columns.items():
            if len(column) != len(self.ids):
                raise PluginError(f"signal '{name}' has {len(column)} rows for {len(self.ids)} candidates.")
            bad = [self.ids[row] for row in _not_finite(column)] if column.dtype.kind == "f" else []
            if bad:
                more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
                raise NumericalError(
                    f"signal '{name}' is NaN or infinite for example {bad[0]}{more}. "
                    "Check the example's text, lower the learning rate, or use float32."
                )

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self.columns:
            return self.columns[name]
        if name in self.context:
            return self.context[name]
        held = [*self.columns, *self.context]
        raise PluginError(f"signal '{name}' was not asked for; name it in the selector's `requires`. Held: {held}.")

    def __contains__(self, name: str) -> bool:
        return name in self.columns or name in self.context

    def take(self, rows: Sequence[int] | Int[np.ndarray, " k"]) -> Signals:
        """Return the columns of these rows, in this order."""
        rows = np.asarray(rows, dtype=np.int64)
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Signals(tuple(self.ids[row] for row in rows), columns, self.context)


def _not_finite(column: Float[np.ndarray, "n ..."]) -> list[int]:
    """Rows with a NaN or infinity, looked at block by block: a column may be a memory map larger than memory."""
    step = max(1, _CHECKED_ENTRIES // max(1, column[:1].size))
    found: list[int] = []
    for start in range(0, len(column), step):
        finite = np.isfinite(column[start : start + step])
        if not finite.all():
            found += (start + np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1))).tolist()
    return found
