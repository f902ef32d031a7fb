"""``python -m studies.theory``: Proposition 1 and the concentration corollary, on worlds whose losses are known."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from longgame.cli import errors_as_sentences

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def theory(
    worlds: Annotated[int, typer.Option(min=1, help="Worlds to count over.")] = 20,
    out: Annotated[Path, typer.Option(help="Folder for the figure (SVG and PNG).")] = Path("runs/theory"),
    json: Annotated[Path | None, typer.Option(help="Write figures and tables to this file.")] = None,
) -> None:
    """Count how often Proposition 1 holds, exactly and as printed, and what concentration does to future directions.

    Ends with a line for each figure and exit code 1 if one is short.
    """
    from benchmarks.harness import at_least, at_most
    from studies.output import print_rows, write_chart, write_json
    from studies.theory.evidence import CONDITIONS, ordering_table, stage_summary, stage_table

    console = Console()
    ordering, stages = ordering_table(worlds), stage_table(worlds)
    print_rows("Which of two batches leaves the higher next-stage loss: share of correct pairs", ordering, console)
    print_rows("A whole stage of each selector, mean over worlds", stage_summary(stages), console)
    for path in write_chart(_chart(ordering, stages), out, "theory"):
        console.print(f"Written: {path}", highlight=False)
    exact = [row[name] for row in ordering for name in CONDITIONS if "exact" in name and row["pairs"]]
    compared = [row for row in stages if "higher" in row]
    outside = [max(r["least"] - r["relative_variance"], r["relative_variance"] - r["greatest"]) for r in stages]
    figures = [
        at_least("theory.exact_condition_right", min(exact), 1.0),
        at_least(
            "theory.exact_condition_right.stage",
            sum(r["exact"] == r["higher"] for r in compared) / len(compared),
            1.0,
        ),
        at_most("theory.variance_outside_bounds", max(outside), 1e-9),
        at_most(
            "theory.variance_formula_error",
            max(abs(r["simulated"] / r["relative_variance"] - 1) for r in stages),
            0.15,
        ),
    ]  # fmt: skip
    if json is not None:
        results = [asdict(figure) | {"ok": figure.ok} for figure in figures]
        write_json(json, {"figures": results, "tables": {"ordering": ordering, "stages": stages}})
    for figure in figures:
        typer.echo(str(figure))
    if not all(figure.ok for figure in figures):
        raise typer.Exit(1)


def _chart(ordering: list[dict[str, Any]], stages: list[dict[str, Any]]) -> Any:
    import altair as alt
    import numpy as np
    import pandas as pd

    from longgame.quadratic.world import WorldSpec
    from longgame.report.charts import GREY
    from studies.calibration.charts import encodings
    from studies.theory.concentration import relative_variance_bounds
    from studies.theory.evidence import CONDITIONS, theory_recipe

    rates = pd.DataFrame(ordering).melt("rate", list(CONDITIONS), "condition", "right").dropna()
    color, shape = encodings("condition", CONDITIONS, "condition")
    base = alt.Chart(rates).encode(
        alt.X("rate:Q", title="learning rate η", scale=alt.Scale(type="log"), axis=alt.Axis(values=[0.01, 0.1, 1, 10])),
        alt.Y("right:Q", title="pairs of batches ordered right", axis=alt.Axis(format="%")),
        color,
    )
    left = base.mark_line() + base.mark_point(size=60, filled=True).encode(shape)
    d = WorldSpec.of(theory_recipe()).dimensions
    band = pd.DataFrame(
        [(c, *relative_variance_bounds(c, d)) for c in np.linspace(1 / d, 1, 200)], columns=["c", "low", "high"]
    )
    frame = pd.DataFrame(stages)[["selector", "concentration", "simulated"]]
    color, shape = encodings("selector", list(dict.fromkeys(frame["selector"])), "selector", grey_first=True)
    title, scale = "selection concentration C(S)", alt.Scale(domain=[0, 1])
    area = (
        alt.Chart(band)
        .mark_area(color=GREY, opacity=0.3)
        .encode(alt.X("c:Q", title=title, scale=scale), alt.Y("low:Q"), alt.Y2("high:Q"))
    )
    points = (
        alt.Chart(frame)
        .mark_point(size=28, filled=True, opacity=0.8)
        .encode(
            alt.X("concentration:Q", title=title, scale=scale),
            alt.Y("simulated:Q", title="variance of future alignment / mean²"),
            color,
            shape,
        )
    )
    return alt.hconcat(
        left.properties(title="Proposition 1: exact and as printed", width=340, height=260),
        (area + points).properties(title="Concentration bounds the variance", width=340, height=260),
    ).resolve_scale(color="independent", shape="independent")


if __name__ == "__main__":
    with errors_as_sentences():
        app()
