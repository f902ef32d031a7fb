"""Names beside the marks of a scatter plot: for each the side on which it covers neither a mark nor another name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

_HEIGHT, _LINE, _LETTER, _MARK = 240.0, 11.0, 4.9, 5.0
"""Pixels: of the plot, of a line and of a letter at 9 points, from a mark's middle to its edge."""
_BEYOND = 10.0
"""Pixels that a name may reach over the axis on the left, before it meets the numbers there."""
_LONGEST = 26
"""Letters of a line; a longer list of names goes on in the next."""
_SIDES: dict[str, tuple[float, float, dict[str, Any]]] = {
    "right": (0.0, -0.5, {"align": "left", "dx": 7}),
    "above": (-0.5, -1.0, {"align": "center", "dy": -6}),
    "below": (-0.5, 0.0, {"align": "center", "dy": 7}),
    "left": (-1.0, -0.5, {"align": "right", "dx": -7}),
    "above right": (0.0, -1.0, {"align": "left", "dx": 3, "dy": -6}),
    "below right": (0.0, 0.0, {"align": "left", "dx": 3, "dy": 7}),
    "above left": (-1.0, -1.0, {"align": "right", "dx": -3, "dy": -6}),
    "below left": (-1.0, 0.0, {"align": "right", "dx": -3, "dy": 7}),
}
"""Where a name may stand: its left end and its upper edge in its own widths and heights from the mark, then pixels."""
_BASELINE = {-1.0: "bottom", -0.5: "middle", 0.0: "top"}

Box = tuple[float, float, float, float]
"""left, right, top, bottom in pixels from the plot's upper left corner"""


def labelled(
    rows: pd.DataFrame,
    x: str,
    y: str,
    names: str,
    ends: tuple[Sequence[float], Sequence[float]],
    widths: Sequence[float],
) -> pd.DataFrame:
    """The rows with ``label`` (the names, on several ``lines`` where they are many) and its ``side``.

    Each in turn takes the first side on which it covers least and stays within the plot, at all of the widths.

    Args:
        x, y, names: columns of a mark's place and of its names, separated by ", ".
        ends: lowest and highest value of either axis.
        widths: of the plot in pixels, for which the place must do.
    """
    (left, right), (low, high) = ends
    across = ((rows[x] - left) / (right - left)).to_list()
    down = (_HEIGHT * (high - rows[y]) / (high - low)).to_list()
    labels = [_lines(text) for text in rows[names]]
    taken = {
        width: [
            (width * at - _MARK, width * at + _MARK, top - _MARK, top + _MARK)
            for at, top in zip(across, down, strict=True)
        ]
        for width in widths
    }
    sides = []
    for at, top, label in zip(across, down, labels, strict=True):
        boxes = {side: {width: _box(width * at, top, label, side) for width in widths} for side in _SIDES}
        costs = {
            side: sum(_cost(box, taken[width], width) for width, box in held.items()) for side, held in boxes.items()
        }
        side = min(costs, key=lambda name: costs[name])
        sides.append(side)
        for width, box in boxes[side].items():
            taken[width].append(box)
    return rows.assign(label=labels, lines=[label.count("\n") + 1 for label in labels], side=sides)


def name_layers(rows: pd.DataFrame, base: alt.Chart) -> list[alt.Chart]:
    """A layer for every side that a name stands on and count of its lines; an empty layer would have no extent.

    Args:
        rows: as `labelled` makes them; ``base`` is the chart of them with its axes.
    """
    layers = []
    for side, lines in sorted(set(zip(rows["side"], rows["lines"], strict=True))):
        _, drop, style = _SIDES[side]
        # Vega puts the first line at the baseline, whatever follows it.
        lower = style.get("dy", 0) + drop * _LINE * (lines - 1)
        mark = {
            **style,
            "dy": lower,
            "baseline": _BASELINE[drop],
            "lineBreak": "\n",
            "lineHeight": _LINE,
            "fontSize": 9,
        }
        chosen = base.transform_filter(f"datum.side == '{side}' && datum.lines == {lines}")
        layers.append(chosen.mark_text(**mark).encode(text="label:N"))
    return layers


def _lines(text: str) -> str:
    lines = [""]
    for name in text.split(", "):
        longer = f"{lines[-1]}, {name}" if lines[-1] else name
        if len(longer) <= _LONGEST or not lines[-1]:
            lines[-1] = longer
        else:
            lines[-1] += ","
            lines.append(name)
    return "\n".join(lines)


def _box(at: float, top: float, label: str, side: str) -> Box:
    lines = label.split("\n")
    wide, tall = _LETTER * max(map(len, lines)), _LINE * len(lines)
    shift, drop, style = _SIDES[side]
    left, upper = at + shift * wide + style.get("dx", 0), top + drop * tall + style.get("dy", 0)
    return left, left + wide, upper, upper + tall


def _cost(box: Box, taken: Sequence[Box], width: float) -> int:
    """How many boxes it covers; leaving the plot counts as three."""
    left, right, top, bottom = box
    outside = left < -_BEYOND or right > width or top < 0 or bottom > _HEIGHT
    return 3 * outside + sum(left < b and a < right and top < d and c < bottom for a, b, c, d in taken)
