"""Alignment with the future: cosines of candidates, and of a whole round, with the future-proxy mixture."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from longgame.errors import PluginError, RecipeError
from longgame.selectors.distance import cosine
from longgame.signals.base import Signals


def proxy_cosine(signals: Signals, who: str, otherwise: str) -> Float[np.ndarray, " n"]:
    """Cosine of each candidate's ``grad_sketch`` with ``future_proxy``, in [−1, 1] (p of eq. 5).

    Args:
        who: the selector that asks, for messages.
        otherwise: what to do without proxy items, for messages ("future_weight to 0").

    Raises:
        RecipeError: there is no proxy gradient, or it is zero. PluginError: the two have different widths.
    """
    return cosine(signals["grad_sketch"], _proxy(signals, who, otherwise))


def stage_alignment(signals: Signals, who: str, otherwise: str) -> float:
    """Cosine of the candidates' mean ``grad_sketch`` with ``future_proxy``: how far now and later want the same.

    Rows must stand in the order of their ids, so that the order of the pool changes no bit. Raises as `proxy_cosine`.
    """
    proxy = _proxy(signals, who, otherwise)
    mean = np.asarray(signals["grad_sketch"], dtype=np.float64).mean(axis=0)
    return float(cosine(mean[None], proxy)[0])


def check_width(rows: Float[np.ndarray, "n d"], vector: Float[np.ndarray, " d"], what: str) -> None:
    """Raise PluginError where the candidates' vectors and that of ``what`` have different widths."""
    if rows.shape[1] != len(vector):
        raise PluginError(
            f"the candidates' vectors have width {rows.shape[1]} but those of {what} have {len(vector)}; "
            "keep the sketch and embedding sizes fixed through a run."
        )


def _proxy(signals: Signals, who: str, otherwise: str) -> Float[np.ndarray, " d"]:
    if "future_proxy" not in signals or not np.any(signals["future_proxy"]):
        raise RecipeError(
            f"selector '{who}' compares candidates with the future proxy, but there is no future-proxy gradient (no "
            f"proxy items, or all of it is zero). Set proxy.items_per_skill to 1 or more, or {otherwise}."
        )
    proxy = signals["future_proxy"]
    check_width(signals["grad_sketch"], proxy, "future_proxy")
    return proxy
