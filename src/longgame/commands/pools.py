"""``longgame pools``: the candidates of every stage, seed and condition, to be scored by another system."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import typer

from longgame.commands.options import (
    Cross,
    DataDir,
    ModelName,
    SeedsOption,
    TrustCode,
    TrustRemoteCode,
    interruptible,
    recipe_changes,
)
from longgame.data.examples import Example
from longgame.recipe import Recipe, find_recipe, load_recipe
from longgame.storage import table_bytes, write_file

Format = Literal["parquet", "jsonl"]

_COLUMNS = {"messages": "string", "skill": "string", "quality": "float64", "source": "string"}
"""Kinds of the columns that may be empty throughout."""


def pools(
    recipe: Annotated[
        Path, typer.Argument(help="A recipe (YAML), the name of one of the package, or the directory of a run.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for candidates and pools.")],
    seeds: SeedsOption = None,
    model: ModelName = None,
    data_dir: DataDir = None,
    axis: Annotated[list[str] | None, typer.Option(help="Vary, as in the audit, e.g. data.noise=0,0.1.")] = None,
    cross: Cross = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="JSON lines instead of Parquet.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    trust_code: TrustCode = False,
) -> None:
    """Write the candidates of every stage, seed and condition with ids and text, to be scored by another system.

    Its scores go into an audit as --selector scores:FILE (columns sample_id and score, keep or both).
    """
    with interruptible("stopped. Run the command again."):
        from longgame.audit.checks import check_trusted_data
        from longgame.audit.run import recipe_file

        file, is_run = recipe_file(find_recipe(recipe))
        if is_run and not trust_code:
            check_trusted_data(load_recipe(file), file.parent, remote_code=trust_remote_code)
        changes = recipe_changes(
            file,
            seeds=seeds,
            model=model,
            data_dir=data_dir,
            axis=axis,
            cross=cross,
            trust_remote_code=trust_remote_code,
        )
        loaded = load_recipe(file, changes)
        with loaded.paths():
            written = write_pools(loaded, out, "jsonl" if jsonl else "parquet")
    for path, rows in written.items():
        typer.echo(f"Written: {path} ({rows:,} rows)")


def write_pools(recipe: Recipe, folder: Path, kind: Format = "parquet") -> dict[str, int]:
    """Write ``candidates``, each distinct example with its text once, and ``pools``, where each of them is offered.

    Both have ``sample_id``, by which a file of scores names examples (see `read_scores`). It depends on an example's
    content alone, so one file serves all conditions. Conditions with the same pools share a name: that of the change
    of the pools or the base model ("": the recipe's own). Tokens are counted by the tokenizer of the first seed and
    condition that offer an example.

    Returns:
        Rows of each file written, by its path.

    Raises:
        DataError: the recipe's data cannot be read. RecipeError: the pools do not fit into memory.
        StorageError: the folder cannot be written.
    """
    from longgame.audit.checks import check_memory
    from longgame.audit.learner import sequence_of
    from longgame.audit.plan import Condition, Plan

    plan = Plan(recipe)
    check_memory(plan)
    distinct: dict[str, Condition] = {}
    for condition in plan.conditions.values():
        distinct.setdefault(condition.base, condition)
    examples: dict[str, dict[str, Any]] = {}
    places: list[dict[str, Any]] = []
    for (name, condition), seed in itertools.product(distinct.items(), recipe.seeds):
        for number, stage in enumerate(sequence_of(condition.recipe, seed).stages, start=1):
            pool = stage.pool
            where = {"condition": name, "seed": seed, "stage": number, "stage_name": stage.name}
            for example, prompt, response in zip(
                pool.examples, pool.prompt_tokens.tolist(), pool.response_tokens.tolist(), strict=True
            ):
                places.append({**where, "sample_id": example.sample_id})
                counts = {"prompt_tokens": prompt, "response_tokens": response}
                examples.setdefault(example.sample_id, {**_row(example), **counts})
    written = {}
    candidates = pd.DataFrame(list(examples.values())).astype(_COLUMNS)
    for name, frame in (("candidates", candidates), ("pools", pd.DataFrame(places))):
        path = folder / f"{name}.{kind}"
        write_file(path, _table(frame, kind))
        written[str(path)] = len(frame)
    return written


def _row(example: Example) -> dict[str, Any]:
    """The columns that a scorer may read; whether a response was damaged on purpose is not among them."""
    messages = None if example.messages is None else json.dumps(example.messages, ensure_ascii=False)
    return {
        "sample_id": example.sample_id,
        "prompt": example.prompt,
        "response": example.response,
        "messages": messages,
        "skill": example.skill,
        "quality": example.quality,
        "source": example.source,
    }


def _table(frame: pd.DataFrame, kind: Format) -> bytes:
    if kind == "jsonl":
        return frame.to_json(orient="records", lines=True, force_ascii=False).encode()
    return table_bytes(frame)
