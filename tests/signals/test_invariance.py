"""What must not change a signal: how its batch is laid out, and which process computes it."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longgame.data.examples import Example
from longgame.data.tokenize import build_pool
from support.chat_model import chat_tokenizer
from support.signals import random_pool
from support.signals_exact import engine_of
from support.signals_kinds import ADAM, ALL, model_of

KINDS = ("plain", "embedding", "dora", "full", "bfloat16")


def tolerance(kind, name):
    """float32: 1e-5. bfloat16: how a product is blocked decides the last of its 8 bits of mantissa in every layer; Γ
    divides each entry by about its own size, so small and noisy ones count as much as large ones."""
    if kind != "bfloat16":
        return 1e-5
    return 0.1 if name == ADAM else 0.02


def gap(result, true):
    """Largest distance of a row, relative to the median row: rows near 0 carry no digits of their own."""
    result, true = result.reshape(len(result), -1), true.reshape(len(true), -1)
    return np.linalg.norm(result - true, axis=1).max() / (np.median(np.linalg.norm(true, axis=1)) or 1.0)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(tokens=st.integers(1, 300), order=st.permutations(range(9)))
def test_batch_size_order_and_companions_change_no_signal(kind, tokens, order):
    pool = random_pool()
    model, adam = model_of(kind)
    names = ALL if adam is not None else ALL[:-1]
    complete = engine_of(model, preconditioner=adam)(pool, names)
    turned = engine_of(model, preconditioner=adam, max_batch_tokens=tokens)(pool.take(order), names)
    some = engine_of(model, preconditioner=adam)(pool.take(order[:3]), names)
    for name in names:
        assert gap(turned[name], complete[name][list(order)]) < tolerance(kind, name), name
        assert gap(some[name], complete[name][list(order[:3])]) < tolerance(kind, name), name


def test_the_side_on_which_a_tokenizer_pads_is_no_part_of_a_pool():
    """Pools hold unpadded ids, so both sides give the same pool; the engine pads by itself."""
    tokenizer = chat_tokenizer()
    examples = [Example.make(f"What is {k} + {k}?" * (k + 1), f"{k + k}") for k in range(1, 5)]
    pools = []
    for side in ("left", "right"):
        tokenizer.padding_side = side
        pools.append(build_pool(examples, tokenizer, 64))
    for single, other in zip(pools[0].input_ids, pools[1].input_ids, strict=True):
        np.testing.assert_array_equal(single, other)


CODE = """
import hashlib, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from support.signals import random_pool
from support.signals_kinds import signals
for kind in ("plain", "embedding", "dora", "bfloat16"):
    for name, column in signals(kind, random_pool()).items():
        print(kind, name, hashlib.sha256(column.tobytes()).hexdigest())
"""


def test_two_processes_agree_bit_for_bit(pytestconfig):
    tests = str(pytestconfig.rootpath / "tests")
    runs = [
        subprocess.run(
            [sys.executable, "-c", CODE, tests], capture_output=True, text=True, check=True, env=environment(hash_seed)
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert len(runs[0].splitlines()) == 4 * len(ALL)


def environment(hash_seed: str) -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": hash_seed, "HF_HUB_OFFLINE": "1"}
