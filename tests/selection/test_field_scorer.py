"""Methods of a scorer model, against their formulas and against the selector that they wrap."""

from __future__ import annotations

import numpy as np
import pytest

from longgame.errors import LonggameError
from longgame.selection.base import build_selector
from longgame.selection.methods.superfiltering import SuperfilteringSelector
from longgame.selection.methods.svp import SVPSelector


def test_superfiltering_is_a_ratio_of_perplexities_not_of_losses(world):
    losses = {"scorer_loss": [1.0, 3.0, 2.0], "scorer_loss_without_prompt": [2.0, 4.5, 1.5]}
    scene = world([1] * 3, **losses)
    selection = scene.select(SuperfilteringSelector(), 3)
    assert selection.scores["ratio"] == pytest.approx(np.exp([-1.0, -1.5, 0.5]))
    assert scene.names(selection) == "abc"
    # losses have the ratios ½, ⅔ and 1⅓, which order a and b the other way
    ifd = world([1] * 3, loss=losses["scorer_loss"], loss_without_prompt=losses["scorer_loss_without_prompt"])
    assert ifd.picks(build_selector("ifd"), 3) == "bac"
    assert scene.picks(SuperfilteringSelector("never"), 3) == "ab"


@pytest.mark.parametrize("inner", ["loss", "el2n", {"name": "flow", "sample": False}, "grand", "ifd"])
def test_svp_picks_as_the_inner_selector_under_the_scorer(world, inner):
    selector, wrapped = build_selector(inner), SVPSelector(inner)
    rng = np.random.default_rng(0)
    columns = {name: rng.uniform(0.1, 2, 8) for name in selector.requires}
    renamed = dict(zip(wrapped.requires, columns.values(), strict=True))
    assert all(name.startswith("scorer_") for name in wrapped.requires)
    names = [f"{row}" for row in range(8)]
    assert world([1] * 8, names, **columns).picks(selector, 4) == world([1] * 8, names, **renamed).picks(wrapped, 4)


@pytest.mark.parametrize(
    "inner",
    [
        *("lhas", "cluster", "svp", "cartography", "s2l", None, -1, ""),
        {"name": "gradient", "mode": "similarity"},
        ["loss"],
    ],
)
def test_svp_refuses_what_a_scorer_cannot_give(inner):
    if inner == "svp":
        assert SVPSelector({"name": "svp", "inner": "random"}).requires == ()
        return
    with pytest.raises(LonggameError):
        SVPSelector(inner)
