"""What kind of method a selector is, and what it is given besides the candidates; tables and pages group by it."""

from __future__ import annotations

from collections.abc import Mapping

from longgame.recipe import SelectorSpec
from longgame.selection.base import ORACLE, SCORES, SELECTORS, Selector, build_selector
from longgame.signals.base import CONTEXT, SIGNALS

FAMILIES: Mapping[str, str] = {
    "baseline": "no score",
    "text": "the text alone",
    "loss": "losses, under one model or two",
    "gradient": "gradients of the candidates",
    "diversity": "embeddings, one candidate against others",
    "quality": "a quality column, rules or a judge",
    "target": "closeness to a target set",
    "training log": "a log of a training on the candidates",
    "curriculum": "an order that changes over the rounds",
    "mixed": "several of these at once",
    "long-horizon": "what a pick does to later stages",
    "own": "a plug-in or a file of scores",
    "reference": "no competitor",
}
"""Family → what its selectors decide by, in the order of tables."""

WORDS_OF_NEEDS: Mapping[str, str] = {
    "model": "model",
    "base": "base model",
    "optimizer": "optimizer state",
    "proxy": "proxy items",
    "evaluation": "evaluation items",
    "candidates": "all candidates",
    "target": "target set",
    "earlier": "candidates of earlier stages",
    "log": "training log",
    "warmup": "warm-up training",
    "reference": "reference model",
    "scorer": "scorer model",
    "embedder": "embedder",
    "judge": "judge, reward model or column of grades",
    "generation": "answers of the model",
}
"""What a signal needs, in words; its text and the model's head go without saying."""

_EVERYONE = ("model", "base", "optimizer", "candidates")
"""Needs that every selector of an audit has."""


def _needs(selector: Selector) -> dict[str, None]:
    """Every need of the selector's signals, each once."""
    table = {**SIGNALS, **CONTEXT}
    return dict.fromkeys(need for name in selector.requires for need in table[name].needs)


def needs_of(selector: Selector) -> list[str]:
    """What must be there for the selector's signals, in words; empty: the texts alone."""
    needs = _needs(selector)
    words = [WORDS_OF_NEEDS[need] for need in needs if need in WORDS_OF_NEEDS]
    by_rules = "quality" in selector.requires and "judge" not in needs
    return [*words, *(["quality column or rules"] if by_rules else [])]


def further_information(selector: Selector) -> list[str]:
    """What the selector is given besides candidates, history and the model, in words; empty: nothing."""
    common = {WORDS_OF_NEEDS[need] for need in _EVERYONE}
    return [words for words in needs_of(selector) if words not in common]


def family_of(selector: Selector) -> str:
    """Name of the selector's family: what its class says, else told from its signals."""
    if selector.family:
        return selector.family
    needs, names = _needs(selector), set(selector.requires)
    for need, family in (("target", "target"), ("log", "training log"), ("proxy", "long-horizon")):
        if need in needs and "reference" not in needs:
            return family
    kinds = {_kind(name) for name in names}
    if len(kinds) > 1:
        return "mixed"
    return kinds.pop() if kinds else "text"


def _kind(name: str) -> str:
    """Family of a selector that reads this signal alone."""
    signal = SIGNALS[name] if name in SIGNALS else CONTEXT[name]
    if signal.cost == "backward":
        return "gradient"
    if name in ("embedding", "cluster"):
        return "diversity"
    if name == "quality" or "judge" in signal.needs:
        return "quality"
    return "text" if set(signal.needs) <= {"text", "candidates"} else "loss"


def spec_family(spec: SelectorSpec) -> str:
    """Family of a recipe's selector; no code that the recipe names is run."""
    if spec.name == ORACLE:
        return "reference"
    if spec.name.startswith(SCORES) or not SELECTORS.is_builtin(spec.name):
        return "own"
    return family_of(build_selector(spec.name, spec.parameters))


_IN_AUDITS = {
    "target set": "the stage's development items",
    "reference model": "a reference model trained on the stage's development items",
    "training log": "a log of a training on the stage's pool",
    "warm-up training": "a warm-up training",
    "proxy items": "development items of all stages",
    "evaluation items": "the evaluation items",
}
"""What an audit gives for a need."""


def spec_information(spec: SelectorSpec) -> list[str]:
    """What an audit gives a selector and its interventions besides candidates, history and the model, in words."""
    words = ["what its code or scores rest on"]
    if spec_family(spec) != "own":
        words = further_information(build_selector(spec.name, spec.parameters))
    if spec.proxy_as_data or spec.proxy_penalty:
        words.append("proxy items")
    given = [_IN_AUDITS.get(word, word) for word in words]
    return list(dict.fromkeys([*given, *(["candidates of earlier stages"] if spec.replay is not None else [])]))
