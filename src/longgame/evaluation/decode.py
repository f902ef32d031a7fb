"""Greedy decoding that goes on from prefixes whose keys and values are already there, and drops finished rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from longgame.errors import ModelError, NumericalError

if TYPE_CHECKING:
    from longgame.evaluation.forward import Row

_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
_COMPACT_BELOW = 0.75
"""Rows are dropped from the batch once the share still decoding falls below this (copying the cache costs a step)."""


def keeps_keys_and_values(model: nn.Module) -> bool:
    """Whether the model's memory of a prefix is keys and values alone (no recurrent or convolutional state)."""
    config: Any = model.config
    text = config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None)
    stateful = getattr(model.get_base_model() if hasattr(model, "get_base_model") else model, "_is_stateful", False)  # type: ignore[operator]
    return not stateful and (kinds is None or set(kinds) <= _ATTENTION)


def input_device(model: nn.Module) -> torch.device:
    """Return the device that token ids must be on (the first one of a model spread over several)."""
    return model.get_input_embeddings().weight.device  # type: ignore[operator]


@dataclass
class Prefix:
    """Rows of one batch that still have to be decoded, with the keys and values of what they begin with."""

    rows: list[Row]
    cached: Int[np.ndarray, " n"]
    """Leading positions of each row that are in ``keys`` (the newest known token is not: it is the next input)."""
    room: Int[np.ndarray, " n"]
    """New tokens each row may have in all."""
    tokens: list[list[int]]
    """New tokens known so far; the last one is the next input."""
    keys: list[Float[Tensor, "n heads length dim"]]
    values: list[Float[Tensor, "n heads length dim"]]

    @staticmethod
    def of(
        cache: DynamicCache, rows: list[Row], left: Sequence[tuple[int, int, list[int]]], max_positions: int
    ) -> Prefix:
        """Keep of a batch's cache what the unfinished rows need."""
        cached = np.asarray([length for _, length, _ in left], dtype=np.int64)
        room = np.asarray([min(row.limit, max_positions - len(row.prompt)) for row in rows], dtype=np.int64)
        longest = int(cached.max(initial=0))
        keys, values = [], []
        for layer in cache.layers:
            if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
                raise ModelError(
                    f"the model's memory of a prompt holds a {type(layer).__name__}, not keys and values, so it cannot "
                    "decode. Score it without scorers that need a generation (token_accuracy, likelihood, choice)."
                )
            at = torch.as_tensor([place for place, _, _ in left], device=layer.keys.device)
            keys.append(layer.keys[:, :, :longest].index_select(0, at))
            values.append(layer.values[:, :, :longest].index_select(0, at))
        return Prefix(rows, cached, room, [tokens for _, _, tokens in left], keys, values)

    @property
    def cells(self) -> int:
        """Cached positions, padding and the tokens still to come included."""
        return len(self.rows) * int((self.cached + self.room).max(initial=0))


class _Growing(DynamicLayer):
    """Keys and values in a buffer with room for what is still to come: a step writes one column, copying nothing."""

    def __init__(self, keys: Tensor, values: Tensor, used: int) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._show((keys, values), used)

    def _show(self, buffers: tuple[Tensor, Tensor], used: int) -> tuple[Tensor, Tensor]:
        self.buffers, self.used = buffers, used
        self.keys, self.values = buffers[0][:, :, :used], buffers[1][:, :, :used]
        return self.keys, self.values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        end = self.used + key_states.shape[-2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.used : end] = new
        return self._show(self.buffers, end)

    def keep(self, rows: Int[Tensor, " k"], drop: int) -> None:
        """Keep only these rows, without the first ``drop`` columns."""
        rows = rows.to(self.device)
        first, second = (buffer[:, :, drop:].index_select(0, rows) for buffer in self.buffers)
        self._show((first, second), self.used - drop)


def _merge(parts: list[list[Tensor]], cached: list[Int[np.ndarray, " n"]], width: int, capacity: int) -> list[Tensor]:
    """Per layer, all prefixes in one buffer (rows, heads, capacity, dim), each row's positions ending at ``width``."""
    sources = []
    for lengths in cached:
        places = np.arange(width)[None, :] - (width - lengths)[:, None]  # (n, width); negative = padding
        sources.append(torch.from_numpy(np.clip(places, 0, None)))
    merged = []
    for layer in zip(*parts, strict=True):
        rows = sum(len(part) for part in layer)
        buffer = layer[0].new_empty(rows, layer[0].shape[1], capacity, layer[0].shape[3])
        done = 0
        for part, source in zip(layer, sources, strict=True):
            at = torch.arange(len(part), device=part.device)[:, None]
            moved = part[at, :, source.to(part.device)]  # (n, width, heads, dim)
            buffer[done : done + len(part), :, :width] = moved.transpose(1, 2)
            done += len(part)
        merged.append(buffer)
    return merged


def decode(model: nn.Module, prefixes: list[Prefix], stop_ids: frozenset[int]) -> None:
    """Decode every row of the prefixes (one at least) to its stop token or its room, and write `Row.decoded`.

    Rows are aligned on the right (padding in front, masked), as transformers' `generate` expects of a batch.

    Raises:
        NumericalError: a logit is NaN; the message names the row.
    """
    rows = [row for prefix in prefixes for row in prefix.rows]
    known = [list(tokens) for prefix in prefixes for tokens in prefix.tokens]
    cached = np.concatenate([prefix.cached for prefix in prefixes])
    room = np.concatenate([prefix.room for prefix in prefixes])
    width = int(cached.max())
    capacity = width + int((room - [len(tokens) for tokens in known]).max())
    lengths = [prefix.cached for prefix in prefixes]
    keys = _merge([prefix.keys for prefix in prefixes], lengths, width, capacity)
    values = _merge([prefix.values for prefix in prefixes], lengths, width, capacity)
    layers = [_Growing(key, value, width) for key, value in zip(keys, values, strict=True)]
    for prefix in prefixes:
        prefix.keys, prefix.values = [], []
    cache = Cache(layers=list(layers))
    device = input_device(model)
    mask = np.arange(capacity)[None, :] >= (width - cached)[:, None]
    attention = torch.from_numpy(mask.astype(np.int64)).to(device)
    position = torch.from_numpy(cached).to(device)[:, None]
    token = torch.as_tensor([[tokens[-1]] for tokens in known], device=device)
    active = np.arange(len(rows))  # which row stands in each line of the batch
    alive = np.ones(len(rows), dtype=bool)  # by line
    used = width
    while True:
        used += 1
        logits = model(
            input_ids=token,
            attention_mask=attention[:, :used],
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
        top, best = logits.max(dim=-1)
        failed, chosen = torch.isnan(top).cpu().numpy(), best.cpu().numpy()
        for line in np.flatnonzero(alive):
            row = int(active[line])
            if failed[line]:
                raise NumericalError(
                    f"{rows[row].label}: a logit is NaN at decoded token {len(known[row])}. Lower the learning rate, "
                    "check the weights, or use float32."
                )
            if int(chosen[line]) not in stop_ids:
                known[row].append(int(chosen[line]))
                alive[line] = len(known[row]) < room[row]
            else:
                alive[line] = False
            if not alive[line]:
                rows[row].decoded = known[row]
        if not alive.any():
            return
        token, position = best[:, None].to(device), position + 1
        if alive.mean() < _COMPACT_BELOW:
            lines = np.flatnonzero(alive)
            drop = int((width - cached[active[lines]]).min())
            keep = torch.from_numpy(lines).to(device)
            for layer in layers:
                layer.keep(keep, drop)
            attention, token, position = attention[keep, drop:], token[keep], position[keep]
            active, alive = active[lines], alive[lines]
            width, used = width - drop, used - drop


def generate(
    model: nn.Module, rows: list[Row], pad_token_id: int, stop_ids: frozenset[int], max_positions: int
) -> None:
    """Decode greedily with transformers' own `generate`: for models whose memory is more than keys and values."""
    width = max(len(row.prompt) for row in rows)
    device = input_device(model)
    ids = torch.full((len(rows), width), pad_token_id, device=device)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, width - len(row.prompt) :] = torch.from_numpy(row.prompt.astype(np.int64)).to(device)
        mask[at, width - len(row.prompt) :] = 1
    room = [min(row.limit, max_positions - len(row.prompt)) for row in rows]
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        max_new_tokens=max(room),
        pad_token_id=pad_token_id,
        eos_token_id=sorted(stop_ids) or None,
    )
    output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)  # type: ignore[operator]
    for row, tokens, limit in zip(rows, output[:, width:].tolist(), room, strict=True):
        kept = tokens[:limit]
        ends = [place for place, token in enumerate(kept) if token in stop_ids]
        row.decoded = kept[: ends[0]] if ends else kept
