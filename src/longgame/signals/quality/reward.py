"""Quality by a reward model or another sequence classifier of transformers, in batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Example
from longgame.errors import ModelError, NumericalError, RecipeError, unknown
from longgame.recipe import ModelSpec
from longgame.signals.quality.base import QualitySource, grade_scale, request_text

if TYPE_CHECKING:
    from longgame.models.load import LoadedModel


_CHUNK = 2048
"""Examples that are tokenized, and sorted by length, together."""


class RewardQuality(QualitySource):
    """Reward of prompt and response by an `AutoModelForSequenceClassification`.

    The grade is the model's own number: its one output r, or for a chosen label the log-odds of its probability. It is
    mapped to [0, 1] without changing the order: r by ½ + r / (2 (1 + |r|)), which does not run into 1 for large rewards
    as a logistic function does in float32; log-odds by the logistic function, which gives the probability; a regression
    on a known scale (``low``, ``high``) linearly, cut at its ends.

    A conversation goes through the tokenizer's chat template; without one, prompt and response are a pair of texts.
    Rows longer than the model's context have no grade.

    Args:
        model: hub id or directory.
        label: name or index of the output that counts, for a model with several.
        low, high: scale of a regression.
        batch_tokens: padded tokens of a batch.
        device: auto, cpu, cuda …
        dtype: float32 or bfloat16, of the weights.
        trust_remote_code: run Python code that comes with the model.
    """

    name = "reward"
    main = "model"
    scale = None

    def __init__(
        self,
        model: str,
        label: str | int | None = None,
        low: float | None = None,
        high: float | None = None,
        batch_tokens: int = 8192,
        device: str = "auto",
        dtype: str = "float32",
        trust_remote_code: bool = False,
    ) -> None:
        if not isinstance(model, str) or not model.strip():
            raise RecipeError("quality source 'reward' names no model. Write reward:MODEL, a hub id or a directory.")
        if dtype not in ("float32", "bfloat16"):
            raise RecipeError("reward: " + unknown("dtype", str(dtype), ("float32", "bfloat16")))
        if not isinstance(batch_tokens, int) or batch_tokens < 1:
            raise RecipeError(f"reward: batch_tokens is {batch_tokens!r}; use a whole number from 1 on.")
        self._range = None if low is None and high is None else grade_scale(self.name, low, high)
        self._model, self._label, self._batch_tokens, self._device = model, label, batch_tokens, device
        self._spec = ModelSpec(name=model, dtype=dtype, trust_remote_code=trust_remote_code)
        self._loaded: LoadedModel | None = None
        self._output: int | None = None
        self._rows = self._long = 0

    def identity(self) -> str:
        return f"{self.name} {self._model} {self._label} {self._range}"

    def grade(self, examples: Sequence[Example]) -> Float[np.ndarray, " n"]:
        """Return the reward of each example; NaN: longer than the model's context.

        Raises:
            ModelError: the model cannot be loaded or has several outputs and no label was chosen. NumericalError: a
                reward is NaN or infinite.
        """
        parts = [self._grade(examples[start : start + _CHUNK]) for start in range(0, len(examples), _CHUNK)]
        return np.concatenate([np.zeros(0), *parts])

    def _grade(self, examples: Sequence[Example]) -> Float[np.ndarray, " n"]:
        loaded = self._load()
        rows = [self._tokens(loaded.tokenizer, example) for example in examples]
        # RoBERTa has 514 places for 512 tokens, which its tokenizer knows; a tokenizer that does not know says 10³⁰
        places = getattr(loaded.model.config, "max_position_embeddings", None) or max(map(len, rows), default=0)
        limit = min(places, loaded.tokenizer.model_max_length)
        grades = np.full(len(rows), np.nan)
        fitting = [place for place, ids in enumerate(rows) if len(ids) <= limit]
        for batch in self._batches(fitting, rows):
            grades[batch] = self._rewards(loaded, [rows[place] for place in batch])
        wrong = [place for place in fitting if not np.isfinite(grades[place])]
        if wrong:
            raise NumericalError(
                f"the reward of example {examples[wrong[0]].sample_id} by '{self._model}' is NaN or infinite. Check "
                "the model's weights, or use dtype=float32."
            )
        self._rows += len(rows)
        self._long += len(rows) - len(fitting)
        return grades

    def unit(self, grades: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        if self._range is not None:
            low, high = self._range
            return np.clip((grades - low) / (high - low), 0.0, 1.0)
        if self._output is not None:
            return 1.0 / (1.0 + np.exp(-np.clip(grades, -700, 700)))
        return 0.5 + grades / (2.0 * (1.0 + np.abs(grades)))

    def tokens(self, examples: Sequence[Example]) -> int:
        tokenizer = self._load().tokenizer
        return sum(len(self._tokens(tokenizer, example)) for example in examples)

    def describe(self) -> dict[str, Any]:
        source = "" if self._loaded is None else self._loaded.source
        return {
            "source": self.name,
            "model": self._model,
            "weights": source,
            "examples": self._rows,
            "too_long": self._long,
        }

    def notes(self) -> list[str]:
        if not self._long:
            return []
        return [
            f"{self._long:,} of {self._rows:,} rows are longer than the context of '{self._model}': their quality is "
            "missing"
        ]

    def _load(self) -> LoadedModel:
        if self._loaded is not None:
            return self._loaded
        from longgame.models.device import device_of
        from longgame.models.load import load_classifier

        loaded = load_classifier(self._spec)
        config: Any = loaded.model.config
        if config.num_labels > 1 or self._label is not None:
            names = {str(name): int(place) for place, name in config.id2label.items()}
            label = self._label
            if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < config.num_labels:
                self._output = label
            elif str(label) in names and label is not None:
                self._output = names[str(label)]
            else:
                shown = "no label is chosen" if label is None else f"label is {label!r}"
                raise ModelError(
                    f"reward model '{self._model}' has the outputs {', '.join(names)}, and {shown}. Name one (label=)."
                )
            if config.num_labels == 1:
                self._output = None
        model: Any = loaded.model
        model.to(device_of(self._device))
        self._loaded = loaded
        return loaded

    def _tokens(self, tokenizer: Any, example: Example) -> list[int]:
        request = request_text(example)
        if tokenizer.chat_template is None:
            pair = (request, example.response) if request else (example.response,)
            return list(tokenizer(*pair, verbose=False)["input_ids"])
        turns = [*example.turns, ("assistant", example.response)]
        messages = [{"role": role, "content": content} for role, content in turns if content]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception as error:
            raise ModelError(
                f"the chat template of reward model '{self._model}' fails on example {example.sample_id} "
                f"({type(error).__name__}: {error}). Give data that it takes, or another model."
            ) from error
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _batches(self, places: list[int], rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Places of rows of similar length, longest first; without a padding token one by one."""
        loaded = self._load()
        text: Any = loaded.model.config.get_text_config()
        padded = text.pad_token_id is not None or loaded.tokenizer.pad_token_id is not None
        batch: list[int] = []
        for place in sorted(places, key=lambda place: -len(rows[place])):
            if batch and (not padded or len(rows[batch[0]]) * (len(batch) + 1) > self._batch_tokens):
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    def _rewards(self, loaded: LoadedModel, rows: Sequence[Sequence[int]]) -> Float[np.ndarray, " b"]:
        import torch

        model: Any = loaded.model
        config, text = model.config, model.config.get_text_config()
        own_pad = text.pad_token_id
        pad = own_pad if own_pad is not None else _no_end(rows, loaded.tokenizer.pad_token_id)
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), int(pad), dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for place, tokens in enumerate(rows):
            ids[place, : len(tokens)] = torch.as_tensor(tokens)
            mask[place, : len(tokens)] = 1
        device = next(model.parameters()).device
        text.pad_token_id = pad  # decoders read the last token that is another
        try:
            with torch.no_grad():
                logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.double().cpu()
        finally:
            text.pad_token_id = own_pad
        if self._output is None:
            return logits[:, 0].numpy()
        if config.problem_type == "multi_label_classification":
            return logits[:, self._output].numpy()
        others = torch.cat([logits[:, : self._output], logits[:, self._output + 1 :]], dim=1)
        return (logits[:, self._output] - torch.logsumexp(others, dim=1)).numpy()


def _no_end(rows: Sequence[Sequence[int]], preferred: int | None) -> int:
    """A token id to pad with that ends no row: where a model names no padding token, its last token counts."""
    ends = {token for row in rows for token in row[-1:]}
    if preferred is not None and preferred not in ends:
        return preferred
    return next(token for token in range(len(ends) + 1) if token not in ends)
