"""A small static encoder on disk, and the slow optimal transport of TSDS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

WORDS = [
    "what",
    "is",
    "it",
    "so",
    "plus",
    "the",
    "answer",
    "of",
    "and",
    "cat",
    "dog",
    "sat",
    "0",
    "1",
    "2",
    "3",
    "4",
    "5",
    "6",
    "7",
    "8",
    "9",
]


def static_model(folder: Path, seed: int = 0) -> str:
    """Save a model2vec model of a few words; returns the name of the embedder."""
    model2vec = pytest.importorskip("model2vec")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import BertPreTokenizer

    vocabulary = {"[UNK]": 0, "[PAD]": 1, **{word: number for number, word in enumerate(WORDS, start=2)}}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    vectors = np.random.default_rng(seed).normal(size=(len(vocabulary), 8)).astype(np.float32)
    model2vec.StaticModel(vectors, tokenizer).save_pretrained(str(folder))
    return f"model2vec:{folder}"
