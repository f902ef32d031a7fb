"""What single terms pick on a development seed, measured in the middle of two stages of a random walk.

    python -m studies.terms 100 101 102

For each term, the candidates of the stage are offered 30 at a time, and a quarter of their tokens is picked. Printed
are means over the picks: first-order gain on the audit's evaluation items, and how many are damaged or mastered. The
study reads evaluation items, so it is for development seeds only.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from longgame.audit.hf_learner import HFLearner
from longgame.audit.learner import sequence_of
from longgame.recipe import load_recipe
from longgame.seeding import generator
from longgame.selection.base import build_selector
from longgame.selection.budget import rank_scale
from longgame.selection.history import History
from longgame.selection.policy import SelectionPolicy
from longgame.training.config import SelectionConfig
from longgame.training.schedule import stage_order

RECIPE = Path("recipes/results/selector-development.yaml")
STAGES = (2, 4)
"""Indices of the stages that are measured, each after `STEPS_BEFORE` of its steps."""
STEPS_BEFORE = 12
ROUNDS = 28
MASTERED = 0.95
"""Token accuracy above which an example teaches nothing any more."""
ALIGNMENTS = ("future", "target", "earlier", "evaluation")
SIGNALS = ("loss", "base_loss", "reference_loss", "token_accuracy", "grad_norm", "logit_nuclear_norm")
Columns = Mapping[str, np.ndarray]
Term = Callable[[Columns], Float[np.ndarray, " n"]]


def measure(seed: int) -> list[dict[str, np.ndarray]]:
    """Columns of the candidates of each measured stage, under the model of a random walk in the middle of it."""
    recipe = load_recipe(RECIPE)
    sequence, learner = sequence_of(recipe, seed), HFLearner(recipe, seed)
    learner.use(sequence, learner.prepare(sequence))
    tables = []
    for number, stage in enumerate(sequence.stages):
        selection = SelectionConfig(budget=recipe.budget, rounds="step", seed=seed * 10 + number)
        if number in STAGES:
            with learner.fork() as fork:
                fork.train(stage.pool, _policy("random", seed), selection, STEPS_BEFORE)
                fork._stage = number  # the fork stays in the middle of this stage
                auxiliary = fork._auxiliary(stage.pool, _policy("rho", seed), selection, recipe.training.steps)
                fork.source.auxiliary = auxiliary
                names = [*SIGNALS, *(f"{name}_alignment" for name in ALIGNMENTS)]
                signals = fork.signals(stage.pool, names)
                fork.source.auxiliary = None
            columns = {name: np.asarray(signals[name], dtype=np.float64) for name in SIGNALS}
            columns |= {name: signals[f"{name}_alignment"].mean(axis=1) for name in ALIGNMENTS}
            columns["conflict"] = (signals["earlier_alignment"] < 0).all(axis=1).astype(np.float64)
            columns["damaged"] = np.array([example.noisy for example in stage.pool.examples], dtype=np.float64)
            columns["tokens"], columns["learned"] = stage.pool.tokens, np.asarray(stage.pool.response_tokens)
            columns["order"] = stage_order(stage.pool, generator(seed, "terms"))
            tables.append(columns)
        learner.train(stage.pool, _policy("random", seed), selection, recipe.training.steps)
    return tables


def _policy(name: str, seed: int) -> SelectionPolicy:
    return SelectionPolicy(build_selector(name), History(), generator(seed, "select", 1))


def ranks_of(*names: str, power: float = 0.0, minus: str = "", last: str = "") -> Term:
    """Sum of the ranks of these columns: alignments times ‖g‖ to ``power``, others less the column ``minus``."""

    def term(columns: Columns) -> Float[np.ndarray, " n"]:
        total = np.zeros(len(columns["loss"]))
        for name in names:
            value = columns[name]
            if name in ALIGNMENTS:
                value = value * columns["grad_norm"] ** power
            elif minus:
                value = value - columns[minus]
            total += rank_scale(value)
        return total - 2 * len(names) * columns[last] if last else total

    return term


THREE = ("future", "target", "earlier")
TERMS: Mapping[str, Term | None] = {
    "random": None,
    "loss": ranks_of("loss"),
    "nuclear norm": ranks_of("logit_nuclear_norm"),
    "gradient norm": ranks_of("grad_norm"),
    "excess loss": ranks_of("loss", minus="base_loss"),
    "reducible loss": ranks_of("loss", minus="reference_loss"),
    "proxy": ranks_of("future"),
    "today": ranks_of("target"),
    "earlier": ranks_of("earlier"),
    "all three": ranks_of(*THREE),
    "proxy, inner product": ranks_of("future", power=1),
    "today, inner product": ranks_of("target", power=1),
    "earlier, inner product": ranks_of("earlier", power=1),
    "all three, power 0.5": ranks_of(*THREE, power=0.5),
    "all three, inner products": ranks_of(*THREE, power=1),
    "the same without proxy": ranks_of("target", "earlier", power=1),
    "the same without today": ranks_of("future", "earlier", power=1),
    "the same without earlier": ranks_of("future", "target", power=1),
    "the same, conflicts last": ranks_of(*THREE, power=1, last="conflict"),
    "the same + reducible loss": ranks_of(*THREE, "loss", power=1, minus="reference_loss"),
    "the same + excess loss": ranks_of(*THREE, "loss", power=1, minus="base_loss"),
    "oracle": ranks_of("evaluation"),
    "oracle, inner product": ranks_of("evaluation", power=1),
}


def picks_of(term: Term | None, columns: Columns, share: float = 0.25) -> Int[np.ndarray, " k"]:
    """Rows that the term picks, round by round; without a term all rows, as a random pick has them in the mean."""
    rounds = np.array_split(columns["order"], ROUNDS)
    if term is None:
        return columns["order"]
    picks = []
    for rows in rounds:
        offered = {name: column[rows] for name, column in columns.items()}
        left = share * offered["tokens"].sum()
        for place in np.argsort(-term(offered), kind="stable"):
            if offered["tokens"][place] <= left:
                picks.append(rows[place])
                left -= offered["tokens"][place]
    return np.asarray(picks)


def summary(columns: Columns, picks: Int[np.ndarray, " k"]) -> list[float]:
    """Mean cosine and inner product (by learned tokens) with the evaluation items, damaged and mastered share, in %."""
    cosine, norm, learned = columns["evaluation"][picks], columns["grad_norm"][picks], columns["learned"][picks]
    product = float(cosine * norm @ learned / learned.sum())
    mastered = (columns["token_accuracy"][picks] > MASTERED).mean()
    return [100 * float(value) for value in (cosine.mean(), product, columns["damaged"][picks].mean(), mastered)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("seeds", nargs="+", type=int)
    tables = [columns for seed in parser.parse_args().seeds for columns in measure(seed)]
    print("| term | cosine | inner product | damaged | mastered |\n| --- | ---: | ---: | ---: | ---: |")
    for name, term in TERMS.items():
        means = np.mean([summary(columns, picks_of(term, columns)) for columns in tables], axis=0)
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in means) + " |", flush=True)


if __name__ == "__main__":
    main()
