import numpy as np
import pytest

from studies.terms import ROUNDS, picks_of, ranks_of, summary


def columns(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    names = ("loss", "base_loss", "grad_norm", "future", "evaluation", "token_accuracy", "conflict")
    table = {name: rng.uniform(0.1, 1, n) for name in names}
    return table | {
        "tokens": np.ones(n), "learned": np.ones(n), "damaged": np.zeros(n), "order": rng.permutation(n),
    }  # fmt: skip


def test_picks_are_the_best_quarter_of_every_round() -> None:
    table = columns(4 * ROUNDS)
    picks = picks_of(ranks_of("loss"), table)
    best = [rows[np.argmax(table["loss"][rows])] for rows in np.array_split(table["order"], ROUNDS)]
    assert picks.tolist() == best


def test_power_turns_ranks_of_cosines_into_products() -> None:
    table = {"loss": np.zeros(3), "future": np.array([0.9, 0.5, 0.1]), "grad_norm": np.array([0.1, 1.0, 2.0])}
    assert ranks_of("future")(table).tolist() == [1, 0, -1]
    assert ranks_of("future", power=1)(table).tolist() == [-1, 1, 0]


def test_summary_weighs_products_by_learned_tokens() -> None:
    table = columns(3) | {
        "evaluation": np.array([0.1, 0.2, 0.9]), "grad_norm": np.array([1.0, 2.0, 1.0]),
        "learned": np.array([1.0, 3.0, 1.0]), "damaged": np.array([1.0, 0.0, 0.0]),
        "token_accuracy": np.array([0.5, 0.99, 1.0]),
    }  # fmt: skip
    # cosine .15; (.1 · 1 + .4 · 3)/4 = .325; one of two damaged; one of two mastered
    assert summary(table, np.array([0, 1])) == pytest.approx([15.0, 32.5, 50.0, 50.0])
