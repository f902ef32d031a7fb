"""Several learned turns in one example: signals are those of the tokens that the loss is taken on."""

import dataclasses

import numpy as np
import pytest
import torch

from longgame.data.examples import Example, Pool, with_unique_ids
from longgame.signals.cache import pool_fingerprint
from longgame.signals.source import SignalSource
from longgame.training.candidates import padded_batch, pool_of
from support.signals_exact import engine_of, is_lora


def several_turns(pool: Pool) -> Pool:
    """The pool with random loss masks; every third example keeps its response at the end."""
    rng = np.random.default_rng(3)
    features = []
    for row, ids in enumerate(pool.input_ids):
        learned = rng.random(len(ids)) < 0.5
        learned[0] = False
        learned[-1] = True
        if row % 3 == 0:
            learned = np.arange(len(ids)) >= pool.prompt_tokens[row]
        labels = np.where(learned, ids, -100)
        features.append({"sample_id": pool.ids[row], "input_ids": ids.tolist(), "labels": labels.tolist()})
    return pool_of(features)


def labeled_loss(model: torch.nn.Module, pool: Pool, row: int) -> torch.Tensor:
    batch = padded_batch(pool, [row], 0)
    return model(input_ids=batch["input_ids"], labels=batch["labels"]).loss


def test_the_loss_is_that_of_the_labels(adapted, pool):
    turns = several_turns(pool)
    assert turns.loss_masks is not None
    computed = engine_of(adapted)(turns, ["loss"])["loss"]
    with torch.no_grad():
        expected = [float(labeled_loss(adapted.eval(), turns, row)) for row in range(len(turns))]
    np.testing.assert_allclose(computed, expected, rtol=1e-5)


def test_gradients_are_those_of_the_labels(adapted, pool):
    turns = several_turns(pool)
    computed = engine_of(adapted)(turns, ["grad_norm"])["grad_norm"]
    weights = [weight for name, weight in adapted.named_parameters() if is_lora(name)]
    for row in range(len(turns)):
        gradient = torch.autograd.grad(labeled_loss(adapted.eval(), turns, row), weights)
        assert computed[row] == pytest.approx(float(torch.stack([g.norm() for g in gradient]).norm()), rel=1e-4)


def test_a_mask_at_the_end_changes_no_signal(adapted, pool):
    masks = tuple(np.arange(int(n)) >= p for n, p in zip(pool.tokens, pool.prompt_tokens, strict=True))
    masked = dataclasses.replace(pool, loss_masks=masks)
    names = ["loss", "el2n", "response_logit_nuclear_norm", "embedding", "grad_norm", "grad_sketch"]
    plain, other = engine_of(adapted)(pool, names), engine_of(adapted)(masked, names)
    for name in names:
        np.testing.assert_array_equal(plain[name], other[name])


def test_every_turn_alone_is_the_loss_without_prompt(adapted, pool):
    turns = several_turns(pool)
    source = SignalSource.of_model(adapted, pad_token_id=0)
    computed = source(turns, ["loss_without_prompt"])["loss_without_prompt"]
    for row, ids in enumerate(turns.input_ids):
        places = turns.predicted(row)
        total = 0.0
        for turn in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
            start, stop = int(turn[0]), int(turn[-1]) + 1
            alone = [*ids[:1], *ids[start - 1 : stop]] if start > 2 else [*ids[:stop]]
            labels = [-100] * (len(alone) - len(turn)) + [int(token) for token in ids[start:stop]]
            [loss] = engine_of(adapted)(
                pool_of([{"sample_id": "a", "input_ids": [int(t) for t in alone], "labels": labels}]), ["loss"]
            )["loss"]
            total += float(loss) * len(turn)
        assert computed[row] == pytest.approx(total / len(places), rel=1e-4)


def test_masks_follow_take_and_join(pool):
    turns = several_turns(pool)
    part = turns.take([4, 1])
    for place, row in enumerate((4, 1)):
        np.testing.assert_array_equal(part.predicted(place), turns.predicted(row))
    other = dataclasses.replace(pool, examples=tuple(Example(f"x{n}", "", "r") for n in range(len(pool))))
    both = part.join(other)
    np.testing.assert_array_equal(both.predicted(0), turns.predicted(4))
    np.testing.assert_array_equal(both.predicted(3), pool.predicted(1))


def test_the_fingerprint_sees_the_masks(pool):
    turns = several_turns(pool)
    plain = dataclasses.replace(turns, loss_masks=None)
    assert pool_fingerprint(turns) != pool_fingerprint(plain)


def test_copies_of_a_conversation_get_ids_of_their_own():
    example = Example.make("a", "b", messages=(("user", "x"), ("assistant", "y"), ("user", "a")), learned=(1,))
    first, second = with_unique_ids([example, example])
    assert second.sample_id == first.sample_id + "#2"
    assert second.learned == (1,)
