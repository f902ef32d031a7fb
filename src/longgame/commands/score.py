"""``longgame score``: signals of a data set, as a folder of scores."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from longgame.commands.options import EngineOption, TrustRemoteCode, interruptible
from longgame.commands.terminal import Terminal
from longgame.errors import LonggameError, RecipeError
from longgame.escape import visible

Data = Annotated[
    list[str],
    typer.Argument(help="Files, a folder of shards, a glob, a saved data set, or hub:owner/name[:config[:split]]."),
]
TurnsOption = Annotated[
    str, typer.Option(help="Assistant turns that are learned: all, or last.", rich_help_panel="Data")
]
QualityRange = Annotated[
    str, typer.Option(help="Lowest and highest value of the column quality, e.g. 1,5.", rich_help_panel="Data")
]
Quality = Annotated[
    str | None,
    typer.Option(
        help="Source of quality: rules, column:NAME, reward:MODEL, judge:FILE.yaml, file.py:Class (docs/quality.md).",
        rich_help_panel="Data",
    ),
]
Complexity = Annotated[
    str | None, typer.Option(help="Source of complexity, written as that of quality.", rich_help_panel="Data")
]
EstimateOnly = Annotated[
    bool, typer.Option("--estimate", help="Print what judges will cost, and stop.", rich_help_panel="Data")
]
Where = Annotated[
    str | None, typer.Option(help="""Condition on the columns, e.g. 'skill == "math"'.""", rich_help_panel="Data")
]
OnBadRowOption = Annotated[
    str, typer.Option(help="error, or skip: list rows that cannot be used and go on.", rich_help_panel="Data")
]
_MODEL = "Model"
OTHER_DATA = "Other data: target set, earlier stages, training log"
Adapter = Annotated[str | None, typer.Option(help="PEFT adapter to score under (a directory).", rich_help_panel=_MODEL)]
Dtype = Annotated[str, typer.Option(help="float32 or bfloat16, of the weights.", rich_help_panel=_MODEL)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …", rich_help_panel=_MODEL)]
MaxLength = Annotated[
    int | None,
    typer.Option(help="Tokens of an example (default: the model's context, at most 2048).", rich_help_panel=_MODEL),
]
TooLongOption = Annotated[
    str, typer.Option(help="What is longer: truncate (as TRL does), skip, or error.", rich_help_panel=_MODEL)
]
ChatTemplate = Annotated[str | None, typer.Option(help="Path of a Jinja template, or plain.", rich_help_panel=_MODEL)]
PadToken = Annotated[str | None, typer.Option(help="For a tokenizer that has none.", rich_help_panel=_MODEL)]
BatchTokens = Annotated[
    str, typer.Option(help="Padded tokens of a batch, or auto (halved when out of memory).", rich_help_panel=_MODEL)
]
ReferenceModelOption = Annotated[
    str | None,
    typer.Option(help="Model with a tokenizer of its own, for reference_loss (rho).", rich_help_panel=_MODEL),
]
StoreDtype = Annotated[str, typer.Option(help="float32 or float16, of the columns on disk.", rich_help_panel=_MODEL)]
Target = Annotated[
    str | None, typer.Option(help="Data that signals compare with (target set).", rich_help_panel=OTHER_DATA)
]
AllowOverlap = Annotated[
    bool, typer.Option("--allow-overlap", help="Let the target set hold rows of the data.", rich_help_panel=OTHER_DATA)
]
EmbedderOption = Annotated[
    str | None,
    typer.Option(
        help="What gives embeddings: model, sentence-transformers:NAME or model2vec:NAME (a hub id or directory).",
        rich_help_panel=_MODEL,
    ),
]
ScorerOption = Annotated[
    str | None,
    typer.Option(
        help="Another model, with its own tokenizer, for superfiltering, svp and signals scorer_…",
        rich_help_panel=_MODEL,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(help="tiny, smollm2-135m, a Hugging Face id, or a directory.", rich_help_panel=_MODEL),
]


def score_command(
    data: Data,
    signals: Annotated[
        str, typer.Option(help="Names with commas, e.g. loss,grad_norm (longgame selectors --signals).")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the scores; resumed where it was left.")],
    model: ModelOption = None,
    target: Target = None,
    allow_overlap: AllowOverlap = False,
    shard: Annotated[str, typer.Option(help="i/n: the i-th of n parts of the data, for n machines.")] = "1/1",
    seed: Annotated[int, typer.Option(help="Of sketches.")] = 0,
    turns: TurnsOption = "all",
    quality_range: QualityRange = "0,1",
    quality: Quality = None,
    complexity: Complexity = None,
    estimate: EstimateOnly = False,
    where: Where = None,
    on_bad_row: OnBadRowOption = "error",
    adapter: Adapter = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    max_length: MaxLength = None,
    too_long: TooLongOption = "truncate",
    chat_template: ChatTemplate = None,
    pad_token: PadToken = None,
    batch_tokens: BatchTokens = "auto",
    store_dtype: StoreDtype = "float32",
    reference_model: ReferenceModelOption = None,
    embedder: EmbedderOption = None,
    scorer_model: ScorerOption = None,
    trust_remote_code: TrustRemoteCode = False,
    engine: EngineOption = "local",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Models at a time on Ray (default: all it holds).", rich_help_panel="How it runs"),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of each worker on Ray.", rich_help_panel="How it runs")] = 1,
) -> None:
    """Score every row of a data set under a model; the scores serve any selector.

    Example: longgame score train.jsonl --model smollm2-135m --signals loss,grad_norm --out scores
    """
    with interruptible("stopped. What was scored is safe; run the same command again to resume."):
        from longgame.data.formats import RowRules
        from longgame.data.sources import open_source
        from longgame.offline.candidates import target_rows
        from longgame.offline.rows import DataRows
        from longgame.offline.score_folder import BAD_ROWS, TABLE, shard_name
        from longgame.offline.scorer import with_other_models
        from longgame.offline.scoring import score_into, shard_rows
        from longgame.signals.base import needs_auxiliary
        from longgame.signals.quality.base import QualitySources

        started = time.perf_counter()
        options = model_settings(
            model, adapter, dtype, device, max_length, too_long, chat_template, pad_token, batch_tokens, store_dtype,
            trust_remote_code, reference_model,
        )  # fmt: skip
        if options is None:
            raise RecipeError("no model is given, which scores. Give --model.")
        options = with_other_models(options, embedder, scorer_model)
        names = [name.strip() for name in signals.split(",") if name.strip()]
        if not names:
            raise RecipeError("--signals names none. Give names with commas, e.g. loss,grad_norm.")
        number, total = parse_shard(shard)
        if total > 1 and (apart := [name for name in names if needs_auxiliary([name])]):
            raise RecipeError(
                f"{', '.join(apart)} comes from a training on all of the data, so it is not computed in shards. Leave "
                "--shard out."
            )
        grading = QualitySources.of(quality, complexity)
        rules = RowRules(turns, parse_range(quality_range), grading.columns)  # type: ignore[arg-type]
        rows = DataRows(open_source(one_or_all(data)), rules, on_bad_row, where)  # type: ignore[arg-type]
        targets = None if target is None else target_rows(target, rows, allow_overlap)
        folder = out
        if total > 1:
            rows, folder = shard_rows(rows, number, total), out / shard_name(number, total)
        console = Terminal()
        print_estimate(console, grading.estimate(rows, names))
        if estimate:
            return
        with errors_name_options(), row_progress("scoring") as progress:
            scores = score_into(
                rows, names, folder, options, target=targets, on_bad_row=on_bad_row, seed=seed,  # type: ignore[arg-type]
                progress=progress, command=command_line(), grading=grading, engine=engine, workers=workers,
                threads=threads,
            )  # fmt: skip
        prompt, response = scores.counts()
        tokens, seconds = int((prompt + response).sum()), time.perf_counter() - started
        skipped = len(rows) + len(rows.bad) - len(scores.ids)
        console.print(
            f"{len(scores.ids):,} rows, {tokens:,} tokens ({100 * response.sum() / max(1, tokens):.0f} % learned), "
            f"{seconds:.0f} s; {skipped} rows skipped",
            highlight=False,
        )
        for name in scores.names:
            column = scores.column(name)
            if column.ndim == 1 and name not in ("prompt_tokens", "response_tokens"):
                console.print(
                    f"  {name}: mean {np.nanmean(column):.4g}, {np.nanmin(column):.4g} to {np.nanmax(column):.4g}"
                    + (f"; {int(np.isnan(column).sum()):,} missing" if np.isnan(column).any() else ""),
                    highlight=False,
                )
        for note in grading.notes():
            console.print(note, highlight=False, markup=False, soft_wrap=True)
        listed = f", {folder / BAD_ROWS}" if (folder / BAD_ROWS).is_file() else ""
        console.print(f"Written: {folder / TABLE}{listed}", highlight=False, markup=False)
        if total == 1:
            selector = "loss" if "loss" in scores.names else "SELECTOR"
            console.print(
                f"Select by them: longgame select {shlex.join(data)} --scores {shlex.quote(str(out))} --selector "
                f"{selector} --budget 10% --out subset.jsonl",
                highlight=False,
                markup=False,
            )


def print_estimate(console: Terminal, lines: Sequence[str]) -> None:
    """Print what judges will cost."""
    for line in lines:
        console.print(f"estimate of {line}", highlight=False, markup=False, soft_wrap=True)


def model_settings(
    model: str | None,
    adapter: str | None,
    dtype: str,
    device: str,
    max_length: int | None,
    too_long: str,
    chat_template: str | None,
    pad_token: str | None,
    batch_tokens: str,
    store_dtype: str,
    trust_remote_code: bool,
    reference: str | None = None,
) -> Any:
    """The options of the model; None without one.

    Raises:
        RecipeError: a value is not allowed.
    """
    from longgame.offline.scorer import ModelOptions

    if model is None:
        if adapter is not None:
            raise RecipeError("--adapter is given and no --model that it was made for. Give --model.")
        if reference is not None:
            raise RecipeError("--reference-model is given and no --model to compare it with. Give --model.")
        return None
    if batch_tokens != "auto" and not re.fullmatch("[0-9]{1,9}", batch_tokens):
        raise RecipeError(f"--batch-tokens is '{batch_tokens}'; give a number, or auto.")
    return ModelOptions(
        name=model,
        adapter=adapter,
        dtype=dtype,
        device=device,
        max_length=max_length,
        too_long=too_long,  # type: ignore[arg-type]
        chat_template=chat_template,
        pad_token=pad_token,
        batch_tokens=None if batch_tokens == "auto" else int(batch_tokens),
        store_dtype=store_dtype,
        trust_remote_code=trust_remote_code,
        reference=reference,
    )


def parse_shard(text: str) -> tuple[int, int]:
    """Read ``2/8``.

    Raises:
        RecipeError: it reads otherwise.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise RecipeError(f"--shard is '{text}'; write i/n, with i from 1 to n, e.g. 2/8.")
    return int(match[1]), int(match[2])


def parse_range(text: str) -> tuple[float, float]:
    """Read ``1,5``.

    Raises:
        RecipeError: it reads otherwise.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise RecipeError(f"--quality-range is '{text}'; write the lowest and the highest value, e.g. 1,5.") from error
    return low, high


def one_or_all(data: list[str]) -> Any:
    """The only reference, or all of them."""
    return data[0] if len(data) == 1 else data


def command_line() -> str:
    """The command as it was typed."""
    return visible("longgame " + shlex.join(sys.argv[1:]))


_LINE_SECONDS = 60.0
"""Between two lines of progress in a log."""


@contextmanager
def errors_name_options() -> Iterator[None]:
    """Let errors name options of the command where they name keys of a recipe."""
    from longgame.offline.options import as_options

    try:
        yield
    except LonggameError as error:
        error.args = (as_options(str(error)),)
        raise


@contextmanager
def row_progress(activity: str) -> Iterator[Any]:
    """Show rows done and the time left on stderr, elsewhere than in a terminal as a line a minute.

    Gives what a job calls with (done, all).
    """
    console = Terminal(stderr=True)
    if not console.is_terminal:
        yield _ProgressLines(activity, console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(activity, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _ProgressLines:
    """Prints how far a job is, at most once in `_LINE_SECONDS`; a job that takes less prints nothing."""

    def __init__(self, activity: str, console: Terminal) -> None:
        self._activity, self._console = activity, console
        self._start = self._told = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if self._first is None:  # rows of an earlier run
            self._first, self._start = done, now
        if now - self._told < _LINE_SECONDS:
            return
        self._told = now
        text = f"{self._activity}: {done:,} rows"
        if total:
            text = f"{self._activity}: {done:,} of {total:,} rows ({100 * done / total:.0f} %)"
        if total and done > self._first:
            left = round((now - self._start) * (total - done) / (done - self._first))
            text += f", {left // 60}:{left % 60:02d} left"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
