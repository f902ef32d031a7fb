"""``longgame merge``: the shards of a scoring job as one folder of scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longgame.commands.options import interruptible
from longgame.commands.score import command_line
from longgame.commands.terminal import Terminal


def merge_command(
    out: Annotated[Path, typer.Argument(help="Folder of the scores that is written.")],
    shards: Annotated[
        list[Path], typer.Argument(help="Folders of longgame score --shard i/n, or a folder that holds them.")
    ],
) -> None:
    """Merge the shards of longgame score into one folder of scores; nothing is computed, and the shards stay.

    Example: longgame merge scores-all scores
    """
    with interruptible("stopped. The shards are as they were; run the same command again."):
        from longgame.offline.merging import merge_scores

        scores = merge_scores(out, shards, command_line())
        console = Terminal()
        names = ", ".join(scores.names)
        console.print(f"{len(scores.ids):,} rows, {names}", highlight=False, markup=False, soft_wrap=True)
        console.print(f"Written: {out}", highlight=False, markup=False)
