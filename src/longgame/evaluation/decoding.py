"""Teacher-forced passes and greedy decoding of many rows with one model, each row as if it were alone.

Three exact shortcuts make evaluation cheap enough for every probe point:

- the output head runs on response positions only (`longgame.models.head.response_logits`);
- the teacher-forced pass over the gold response decides how greedy decoding begins: both agree up to and including the
  first token where the argmax differs from the gold one. So decoding starts behind that token, on the keys and values
  of the same pass, and is skipped where the argmax is right to the end;
- rows of several passes are decoded in one batch, and finished rows are dropped from it.

Measured against transformers' `generate` (batched, left padded, greedy) with the same teacher-forced pass before it, in
seconds of one CPU thread, with the same decoded tokens: the quickstart's 480 items on the tiny model take 1.6 instead
of 3.1, the 60 items of a probe point 0.20 instead of 0.47; 60 items on SmolLM2-135M take 34 instead of 134. `generate`
serves only models whose cache is not keys and values alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from longgame.errors import ModelError, NumericalError
from longgame.models.head import response_logits
from longgame.models.llama import LlamaStep

_log = logging.getLogger(__name__)
_LOGIT_ELEMENTS = 2**26
"""Largest response-positions × vocabulary matrix of one batch (256 MiB in float32)."""
_PART_TOKENS, _PART_PADDING = 1024, 128
"""Padded tokens of a pass on a CPU, and padding among them: on the tiny model and one core, a probe point of 60 rows
takes 90 to 130 ms instead of 205, the 300 rows after a stage 490 instead of 710."""
_PART_PREDICTIONS = 64
"""Response tokens of such a pass at least. MKL rounds products of 15 rows or fewer otherwise than longer ones."""
_CACHE_FACTOR = 8
"""Decoding starts once the waiting prefixes hold this many times max_batch_tokens."""
_COMPACT_BELOW = 0.75
"""Finished rows are dropped once the share of unfinished ones falls below this (copying the cache costs a step)."""
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass
class Row:
    """One prompt with a response, evaluated once however many tasks and scorers need it."""

    prompt: Int[np.ndarray, " p"]
    response: Int[np.ndarray, " r"]
    label: str
    """Task and item, for messages."""
    limit: int = 0
    """New tokens of greedy decoding from the prompt; 0 = no decoding."""
    end: int = 1
    """Tokens at the end of the response that end the turn."""
    nll: Float[np.ndarray, " r"] = field(default_factory=lambda: np.empty(0, np.float32))
    """Nats per response token."""
    correct: Bool[np.ndarray, " r"] = field(default_factory=lambda: np.empty(0, bool))
    decoded: list[int] = field(default_factory=list)
    """Greedily decoded tokens without the stop token."""

    @property
    def content(self) -> slice:
        """Places of the response that hold its content."""
        return slice(len(self.response) - self.end)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.response)

    def room(self, max_positions: int) -> int:
        """New tokens that this row may have."""
        return min(self.limit, max_positions - len(self.prompt))


def run_rows(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    pad_token_id: int,
    stop_ids: frozenset[int],
    max_batch_tokens: int,
    max_positions: int,
) -> None:
    """Fill ``nll``, ``correct`` and (where ``limit`` > 0) ``decoded`` of every row.

    Args:
        model: a causal LM of transformers, or a PeftModel around one, in eval mode.
        rows: prompt and response hold one token at least.
        pad_token_id: any id of the vocabulary; padded positions are never attended to.
        stop_ids: tokens that end decoding.
        max_batch_tokens: upper bound on rows × longest row of one pass (a longer row runs alone).
        max_positions: prompt + decoded tokens never exceed it.

    Raises:
        NumericalError: a logit that matters is NaN or infinite; the message names the row.
    """
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)  # type: ignore[union-attr, operator]
    stateful = not _caches_keys_and_values(model)
    plain = stateful or _counts_positions(model, rows, max_positions)
    cacheable = plain and not stateful
    splits = _keeps_bits(model)
    waiting: list[_Prefix] = []
    cells = 0
    uncached: list[Row] = []
    for batch in _batches(rows, max_batch_tokens, max(1, _LOGIT_ELEMENTS // vocabulary)):
        prefixes: list[_Prefix] = []
        for part in _parts(batch) if splits else [batch]:
            unfinished = _teacher_forced(model, part, pad_token_id, stop_ids, max_positions, cacheable)
            if isinstance(unfinished, _Prefix):
                prefixes.append(unfinished)
            else:
                uncached.extend(unfinished)
        waiting += prefixes
        cells += _cells(prefixes)
        if cells > _CACHE_FACTOR * max_batch_tokens:
            _decode(model, waiting, stop_ids)
            waiting, cells = [], 0
    if waiting:
        _decode(model, waiting, stop_ids)
    if not plain:
        for row in uncached:
            _decode_alone(model, row, stop_ids, max_positions)
        return
    for batch in _batches(uncached, max_batch_tokens, len(uncached)):
        _generate(model, batch, pad_token_id, stop_ids, max_positions)


def _caches_keys_and_values(model: nn.Module) -> bool:
    """Whether the model's cache of a prefix is keys and values alone (no recurrent or convolutional state)."""
    config: Any = model.config
    kinds = getattr(config.get_text_config(decoder=True), "layer_types", None)
    stateful = getattr(model.get_base_model() if hasattr(model, "get_base_model") else model, "_is_stateful", False)  # type: ignore[operator]
    return not stateful and (kinds is None or set(kinds) <= _ATTENTION)


_COUNTED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _counts_positions(model: nn.Module, rows: Sequence[Row], max_positions: int) -> bool:
    """Whether the model reads the positions that it is given, and counts 0, 1, 2 … by itself: decoding needs both.

    Some models number them otherwise (RoBERTa from the padding id on), some read none (BART, ALiBi).
    """
    if model not in _COUNTED and rows:
        row = rows[0]
        tokens = np.concatenate([row.prompt, row.response])[: min(8, 1 + max_positions // 3)].astype(np.int64)
        ids = torch.from_numpy(tokens)[None].to(_input_device(model))
        places = torch.arange(len(tokens), device=ids.device)[None]
        plain = model(input_ids=ids, use_cache=False).logits
        try:
            counted, spread = (
                model(input_ids=ids, position_ids=p, use_cache=False).logits for p in (places, 3 * places)
            )
            same, read = torch.allclose(plain, counted, rtol=1e-3, atol=1e-3, equal_nan=True), (counted != spread).any()
            _COUNTED[model] = bool(same and (read or not plain.isfinite().all()))
        except (TypeError, ValueError, IndexError):
            _COUNTED[model] = False
        if not _COUNTED[model]:
            kind = type(model).__name__
            _log.info("%s numbers positions in its own way; it decodes without a cache, more slowly", kind)
    return _COUNTED.get(model, True)


def _decode_alone(model: nn.Module, row: Row, stop_ids: frozenset[int], max_positions: int) -> None:
    """Decode one row greedily, each token by a whole forward pass without padding."""
    tokens: list[int] = []
    device = _input_device(model)
    while len(tokens) < row.room(max_positions):
        ids = torch.from_numpy(np.concatenate([row.prompt, tokens]).astype(np.int64))[None].to(device)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, -1]
        if torch.isnan(logits).any():
            raise NumericalError(
                f"{row.label}: a logit is NaN at decoded token {len(tokens)}. Lower the learning rate, check the "
                "weights, or use float32."
            )
        tokens.append(int(logits.argmax()))
        if tokens[-1] in stop_ids:
            tokens.pop()
            break
    row.decoded = tokens


def _input_device(model: nn.Module) -> torch.device:
    """The device of token ids (the first one of a model spread over several)."""
    return model.get_input_embeddings().weight.device  # type: ignore[operator]


def _batches(rows: Sequence[Row], max_tokens: int, max_predictions: int) -> Iterator[list[Row]]:
    """Rows of similar length together, longest first, within both bounds (one row at least)."""
    batch: list[Row] = []
    predictions = 0
    for row in sorted(rows, key=lambda row: (-row.length, -len(row.prompt), row.label)):
        longest = batch[0].length if batch else row.length
        full = (len(batch) + 1) * longest > max_tokens or predictions + len(row.response) > max_predictions
        if batch and full:
            yield batch
            batch, predictions = [], 0
        batch.append(row)
        predictions += len(row.response)
    if batch:
        yield batch


def _keeps_bits(model: nn.Module) -> bool:
    """Whether a row has the same bits in any batch of enough positions: float32, eager attention, one CPU thread.

    Two threads share out a product by its size, and round accordingly.
    """
    weight: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
    exact = weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.get_num_threads() == 1
    return exact and bool(getattr(model.config, "_attn_implementation", None) == "eager")


def _parts(batch: list[Row]) -> Iterator[list[Row]]:
    """A batch in parts with less padding, whose activations stay in a core's cache (`_PART_TOKENS`, `_PART_PADDING`).

    Every part has `_PART_PREDICTIONS` response tokens or more, so that its products round as those of the batch do.
    """
    left = sum(len(row.response) for row in batch)
    part: list[Row] = []
    padding = predictions = 0
    for row in batch:
        gap = part[0].length - row.length if part else 0
        full = (len(part) + 1) * (row.length + gap) > _PART_TOKENS or padding + gap > _PART_PADDING
        if full and predictions >= _PART_PREDICTIONS and left >= _PART_PREDICTIONS:
            yield part
            part, padding, predictions, gap = [], 0, 0, 0
        part.append(row)
        padding += gap
        predictions += len(row.response)
        left -= len(row.response)
    yield part


def _teacher_forced(
    model: nn.Module,
    rows: list[Row],
    pad_token_id: int,
    stop_ids: frozenset[int],
    max_positions: int,
    cacheable: bool,
) -> _Prefix | list[Row]:
    """Fill nll and correct, and ``decoded`` where the pass decides it; return the unfinished rows with their cache.

    Rows are padded on the right, so with causal attention no real position sees padding and no mask is needed.
    """
    width = rows[0].length
    ids = np.full((len(rows), width), pad_token_id, dtype=np.int64)
    index, gold = [], []
    for at, row in enumerate(rows):
        ids[at, : row.length] = np.concatenate([row.prompt, row.response])
        index.append(at * width + np.arange(len(row.prompt) - 1, row.length - 1))
        gold.append(row.response)
    target = torch.from_numpy(np.concatenate(gold).astype(np.int64))
    input_ids = torch.from_numpy(ids).to(_input_device(model))
    use_cache = cacheable and any(row.limit for row in rows)
    cache = DynamicCache() if use_cache else None  # without a config every layer keeps all of its keys and values
    logits = response_logits(
        model,
        torch.from_numpy(np.concatenate(index)),
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        past_key_values=cache,
        use_cache=use_cache,
    ).float()
    of_gold = logits.gather(1, target.to(logits.device)[:, None]).squeeze(1)
    nll = (torch.logsumexp(logits, dim=-1) - of_gold).cpu().numpy()
    best = logits.argmax(dim=-1).cpu().numpy()

    cuts = np.cumsum([len(part) for part in gold])[:-1]
    starts: list[tuple[int, int, list[int]]] = []  # row of the batch, cached positions, tokens decoded so far
    for at, (row, losses, tokens) in enumerate(zip(rows, np.split(nll, cuts), np.split(best, cuts), strict=True)):
        if not np.isfinite(losses).all():
            raise NumericalError(
                f"{row.label}: the likelihood of response token {int(np.argmin(np.isfinite(losses)))} is NaN or "
                "infinite. Lower the learning rate, check the weights, or use float32."
            )
        row.nll, row.correct = losses, tokens == row.response
        if row.limit:
            wrong = np.flatnonzero(~row.correct)
            start = tokens[: int(wrong[0]) + 1 if len(wrong) else len(tokens)].tolist()
            row.decoded, stopped = _until_stop(start, stop_ids)
            row.decoded = row.decoded[: row.room(max_positions)]
            if not stopped and len(row.decoded) < row.room(max_positions):
                starts.append((at, len(row.prompt) + len(start) - 1, start))
    unfinished = [rows[at] for at, _, _ in starts]
    return _Prefix.of(cache, unfinished, starts, max_positions) if cache is not None and starts else unfinished


def _until_stop(tokens: list[int], stop_ids: frozenset[int]) -> tuple[list[int], bool]:
    """The tokens before the first stop token, and whether there is one."""
    stops = [place for place, token in enumerate(tokens) if token in stop_ids]
    return (tokens[: stops[0]], True) if stops else (tokens, False)


@dataclass
class _Prefix:
    """Unfinished rows of one teacher-forced batch, with the keys and values of their first positions."""

    rows: list[Row]
    cached: Int[np.ndarray, " n"]
    """Leading positions of each row in ``keys``; the newest decoded token is not among them, it is the next input."""
    room: Int[np.ndarray, " n"]
    """New tokens each row may have in all."""
    tokens: list[list[int]]
    """New tokens so far; the last one is the next input."""
    keys: list[Float[Tensor, "n heads length dim"]]
    values: list[Float[Tensor, "n heads length dim"]]

    @staticmethod
    def of(
        cache: DynamicCache, rows: list[Row], starts: Sequence[tuple[int, int, list[int]]], max_positions: int
    ) -> _Prefix:
        """The part of a batch's cache that the unfinished rows need."""
        cached = np.asarray([length for _, length, _ in starts], dtype=np.int64)
        room = np.asarray([row.room(max_positions) for row in rows], dtype=np.int64)
        longest = int(cached.max(initial=0))
        keys, values = [], []
        for layer in cache.layers:
            if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
                raise ModelError(
                    f"the model's cache of a prompt holds a {type(layer).__name__}, not keys and values, so it cannot "
                    "decode. Score it without scorers that need a generation (token_accuracy, likelihood, choice)."
                )
            at = torch.as_tensor([place for place, _, _ in starts], device=layer.keys.device)
            keys.append(layer.keys[:, :, :longest].index_select(0, at))
            values.append(layer.values[:, :, :longest].index_select(0, at))
        return _Prefix(rows, cached, room, [tokens for _, _, tokens in starts], keys, values)


def _cells(prefixes: Sequence[_Prefix]) -> int:
    """Cached positions with padding, and the tokens still to come, of rows that are decoded together."""
    longest = max((int((prefix.cached + prefix.room).max(initial=0)) for prefix in prefixes), default=0)
    return longest * sum(len(prefix.rows) for prefix in prefixes)


class _Buffer(DynamicLayer):
    """Keys and values in a buffer with room for the tokens to come: a step writes one column and copies nothing."""

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

    def step_back(self) -> None:
        """Take the last position away."""
        self._show(self.buffers, self.used - 1)

    def keep(self, rows: Int[Tensor, " k"], drop: int) -> None:
        """Keep only these rows, without the first ``drop`` columns."""
        rows = rows.to(self.device)
        first, second = (buffer[:, :, drop:].index_select(0, rows) for buffer in self.buffers)
        self._show((first, second), self.used - drop)


def _join(parts: list[list[Tensor]], cached: list[Int[np.ndarray, " n"]], width: int, capacity: int) -> list[Tensor]:
    """Per layer, all prefixes in one buffer (rows, heads, capacity, dim), each row's positions ending at ``width``."""
    sources = []
    for lengths in cached:
        places = np.arange(width)[None, :] - (width - lengths)[:, None]  # (n, width); negative = padding
        sources.append(torch.from_numpy(np.clip(places, 0, None)))
    joined = []
    for layer in zip(*parts, strict=True):
        rows = sum(len(part) for part in layer)
        buffer = layer[0].new_empty(rows, layer[0].shape[1], capacity, layer[0].shape[3])
        done = 0
        for part, source in zip(layer, sources, strict=True):
            at = torch.arange(len(part), device=part.device)[:, None]
            moved = part[at, :, source.to(part.device)]  # (n, width, heads, dim)
            buffer[done : done + len(part), :, :width] = moved.transpose(1, 2)
            done += len(part)
        joined.append(buffer)
    return joined


_SAME_BITS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Model → whether `LlamaStep` gave the bits of its own first step."""


class _Steps:
    """Decoding steps of a model on these buffers, by `LlamaStep` where that gives the model's own bits."""

    def __init__(self, model: nn.Module, layers: list[_Buffer]) -> None:
        self._model, self._layers, self._plain = model, layers, LlamaStep.of(model)

    def __call__(
        self, token: Int[Tensor, "b 1"], attention: Int[Tensor, "b n"], position: Int[Tensor, "b 1"]
    ) -> Float[Tensor, "b V"]:
        """Logits behind these tokens (`LlamaStep.__call__`)."""
        if self._plain is not None and _SAME_BITS.get(self._model):
            return self._plain(token, attention, position, self._layers)
        logits: Tensor = self._model(
            input_ids=token,
            attention_mask=attention,
            position_ids=position,
            past_key_values=Cache(layers=list(self._layers)),
            use_cache=True,
        ).logits[:, -1]
        if self._plain is not None and self._model not in _SAME_BITS:
            for layer in self._layers:
                layer.step_back()
            _SAME_BITS[self._model] = torch.equal(logits, self._plain(token, attention, position, self._layers))
        return logits


def _decode(model: nn.Module, prefixes: list[_Prefix], stop_ids: frozenset[int]) -> None:
    """Decode every row of the prefixes (one at least) to its stop token or its room, and write `Row.decoded`.

    Rows are aligned on the right (padding in front, masked), as transformers' `generate` expects of a batch.

    Raises:
        NumericalError: a logit is NaN; the message names the row.
    """
    rows = [row for prefix in prefixes for row in prefix.rows]
    decoded = [list(tokens) for prefix in prefixes for tokens in prefix.tokens]
    cached = np.concatenate([prefix.cached for prefix in prefixes])
    room = np.concatenate([prefix.room for prefix in prefixes])
    width = int(cached.max())
    capacity = width + int((room - [len(tokens) for tokens in decoded]).max())
    lengths = [prefix.cached for prefix in prefixes]
    keys = _join([prefix.keys for prefix in prefixes], lengths, width, capacity)
    values = _join([prefix.values for prefix in prefixes], lengths, width, capacity)
    layers = [_Buffer(key, value, width) for key, value in zip(keys, values, strict=True)]
    for prefix in prefixes:
        prefix.keys, prefix.values = [], []
    next_logits = _Steps(model, layers)
    device = _input_device(model)
    mask = np.arange(capacity)[None, :] >= (width - cached)[:, None]
    attention = torch.from_numpy(mask.astype(np.int64)).to(device)
    position = torch.from_numpy(cached).to(device)[:, None]
    token = torch.as_tensor([[tokens[-1]] for tokens in decoded], device=device)
    row_of = np.arange(len(rows))  # by line of the batch
    alive = np.ones(len(rows), dtype=bool)  # by line
    used = width
    while True:
        used += 1
        logits = next_logits(token, attention[:, :used], position)
        top, best = logits.max(dim=-1)
        failed, chosen = torch.stack([torch.isnan(top).long(), best]).cpu().numpy()
        for line in np.flatnonzero(alive):
            row = int(row_of[line])
            if failed[line]:
                raise NumericalError(
                    f"{rows[row].label}: a logit is NaN at decoded token {len(decoded[row])}. Lower the learning rate, "
                    "check the weights, or use float32."
                )
            alive[line] = int(chosen[line]) not in stop_ids
            if alive[line]:
                decoded[row].append(int(chosen[line]))
                alive[line] = len(decoded[row]) < room[row]
            if not alive[line]:
                rows[row].decoded = decoded[row]
        if not alive.any():
            return
        token, position = best[:, None].to(device), position + 1
        if alive.mean() < _COMPACT_BELOW:
            lines = np.flatnonzero(alive)
            drop = int((width - cached[row_of[lines]]).min())
            keep = torch.from_numpy(lines).to(device)
            for layer in layers:
                layer.keep(keep, drop)
            attention, token, position = attention[keep, drop:], token[keep], position[keep]
            row_of, alive = row_of[lines], alive[lines]
            width, used = width - drop, used - drop


def _generate(
    model: nn.Module, rows: list[Row], pad_token_id: int, stop_ids: frozenset[int], max_positions: int
) -> None:
    """Decode greedily with transformers' own `generate`, for models whose cache is not only keys and values."""
    width = max(len(row.prompt) for row in rows)
    device = _input_device(model)
    ids = torch.full((len(rows), width), pad_token_id, device=device)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, width - len(row.prompt) :] = torch.from_numpy(row.prompt.astype(np.int64)).to(device)
        mask[at, width - len(row.prompt) :] = 1
    room = [row.room(max_positions) for row in rows]
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
        row.decoded, _ = _until_stop(tokens[:limit], stop_ids)
