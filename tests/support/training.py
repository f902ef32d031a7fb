"""Small models and pools: random weights, random tokens, no files."""

from __future__ import annotations

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from longgame.data.examples import Example, Pool
from longgame.seeding import generator
from longgame.selection.base import Selector
from longgame.selection.budget import descending, fill_budget
from longgame.selection.history import History, Selection
from longgame.selection.policy import SelectionPolicy
from longgame.signals.base import Signals

VOCAB, PAD = 61, 0


def make_model(seed=0, lora=True, dropout=0.0, **config):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shape = {
            "vocab_size": VOCAB,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "pad_token_id": PAD,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        model = LlamaForCausalLM(LlamaConfig(**{**shape, **config}))
        if lora:
            model = get_peft_model(
                model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=dropout)
            )
    return model


def make_pool(n=24, seed=0):
    rng = np.random.default_rng(seed)
    prompt = rng.integers(2, 6, n)
    response = rng.integers(1, 8, n)
    ids = tuple(rng.integers(3, VOCAB, p + r) for p, r in zip(prompt, response, strict=True))
    return Pool(tuple(Example(f"id{i:03d}", "p", "r") for i in range(n)), ids, prompt, response)


class Peek(Selector):
    """Highest live loss first; counts its rounds (state)."""

    name = "peek"
    requires = ("loss",)

    def __init__(self):
        self.rounds = 0

    def select(self, pool, signals, history, budget, rng):
        self.rounds += 1
        score = signals["loss"] + 1e-3 * self.rounds * rng.random(len(pool))
        return Selection.of(pool, fill_budget(descending(score, pool.ids), pool.costs, budget), {"score": score})

    def state_dict(self):
        return {"rounds": self.rounds}

    def load_state_dict(self, state):
        self.rounds = int(state["rounds"])


class Coin(Selector):
    """Uniform, with its own few lines."""

    name = "coin"

    def select(self, pool, signals, history, budget, rng):
        return Selection.of(pool, fill_budget(rng.permutation(len(pool)), pool.costs, budget))


def make_policy(selector=None, seed=0):
    return SelectionPolicy(selector or Coin(), History(), generator(seed, "select"))


def loss_scorer(model, calls=None):
    """Mean response NLL per candidate, one by one."""

    def score(pool, names):
        if calls is not None:
            calls.append((pool.ids, tuple(names), model.training))
        values = []
        with torch.no_grad():
            for row in range(len(pool)):
                ids = torch.tensor(pool.input_ids[row])[None]
                logp = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
                values.append(-float(logp[max(int(pool.prompt_tokens[row]) - 1, 0) :].mean()))
        return Signals(pool.ids, {name: np.asarray(values, np.float32) for name in names})

    return score
