"""``longgame pools``: the candidates of every stage, seed and condition, to be scored by another system."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import typer

from longgame.commands.options import (
    CHANGES,
    Cross,
    DataDir,
    ModelName,
    SeedsOption,
    TrustCode,
    TrustRemoteCode,
    interruptible,
    recipe_changes,
)
from longgame.commands.terminal import Terminal
from longgame.data.examples import Example
from longgame.errors import DataError
from longgame.recipe import Recipe, find_recipe, load_recipe
from longgame.storage import table_bytes, write_file

OutputFormat = Literal["parquet", "jsonl"]

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
    axis: Annotated[
        list[str] | None, typer.Option(help="Vary, as in the audit, e.g. data.noise=0,0.1.", rich_help_panel=CHANGES)
    ] = None,
    cross: Cross = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="JSON lines instead of Parquet.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    trust_code: TrustCode = False,
) -> None:
    """Write the candidates of every stage, seed and condition with ids and text, to be scored by another system.

    Its scores go into an audit as --selector scores:FILE (columns sample_id and score, keep or both).

    Example: longgame pools quickstart --out candidates
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
        Terminal().print(f"Written: {path} ({rows:,} rows)", highlight=False, markup=False, soft_wrap=True)


def write_pools(recipe: Recipe, folder: Path, kind: OutputFormat = "parquet") -> dict[str, int]:
    """Write ``candidates``, each distinct example with its text once, and ``pools``, where each of them is offered.

    Rows that came from a file keep their own ``id`` and all columns that longgame does not read.

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
    row_ids: dict[str, str | None] = {}
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
                row_ids.setdefault(example.sample_id, example.row_id)
    written = {}
    candidates = pd.DataFrame(list(examples.values())).astype(_COLUMNS)
    for name, values in _own_columns(recipe, row_ids).items():
        if name not in candidates:
            candidates[name] = values
    for name, frame in (("candidates", candidates), ("pools", pd.DataFrame(places))):
        path = folder / f"{name}.{kind}"
        write_file(path, _table(frame, kind))
        written[str(path)] = len(frame)
    return written


def _own_columns(recipe: Recipe, row_ids: Mapping[str, str | None]) -> dict[str, list[Any]]:
    """The users' own columns of these examples, in order: ``id`` first; none where no row came from a file.

    The files are read once more, as examples do not carry these columns. A cell is empty where rows of equal content
    and id differ in it.

    Args:
        row_ids: sample id → the row's own id.
    """
    from longgame.data.formats import READ_COLUMNS, RowError, RowRules, read_row
    from longgame.data.sources import open_reference, row_id_of

    data = recipe.data
    folder = None if data.data_dir is None else Path(data.data_dir)
    rules = RowRules(data.turns, data.quality_range, recipe.graded_columns())
    references = dict.fromkeys(name for stage in data.stages for name in stage.train)
    needed = {(sample_id.partition("#")[0], row_id) for sample_id, row_id in row_ids.items()}
    cells: dict[tuple[str, str | None], dict[str, Any]] = {}
    names: dict[str, None] = {}
    for reference in references:
        for _, _, read in open_reference(reference, folder, "train").rows():
            try:
                row = read()
                key = (read_row(row, rules)[0].sample_id, row_id_of(row))
            except RowError as error:
                raise DataError(f"{reference}: {error}. Its rows changed while they were read.") from error
            if key not in needed:
                continue
            own = {name: value for name, value in row.items() if name not in READ_COLUMNS and name != "id"}
            names |= dict.fromkeys(own)
            first = cells.setdefault(key, own)
            for name in first.keys() & own.keys():
                if first[name] is not own[name] and first[name] != own[name]:
                    first[name] = None
    columns: dict[str, list[Any]] = {"id": [*row_ids.values()]} if any(row_ids.values()) else {}
    keys = [(sample_id.partition("#")[0], row_id) for sample_id, row_id in row_ids.items()]
    for name in names:
        columns[str(name)] = _plain([cells.get(key, {}).get(name) for key in keys])
    return columns


def _plain(values: list[Any]) -> list[Any]:
    """Values of one kind as they are; others as JSON texts."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1 and kinds <= {str, int, float, bool}:
        return values
    return [None if value is None else json.dumps(value, ensure_ascii=False, default=str) for value in values]


def _row(example: Example) -> dict[str, Any]:
    """The columns that a scorer may read; whether a response was damaged on purpose is not among them."""
    messages = None if example.messages is None else json.dumps(example.messages, ensure_ascii=False)
    return {
        "sample_id": example.sample_id,
        "prompt": example.prompt,
        "response": example.response,
        "messages": messages,
        "skill": example.skill,
        "quality": (example.columns or {}).get("quality", example.quality),
        "source": example.source,
    }


def _table(frame: pd.DataFrame, kind: OutputFormat) -> bytes:
    if kind == "jsonl":
        return frame.to_json(orient="records", lines=True, force_ascii=False).encode()
    return table_bytes(frame)
