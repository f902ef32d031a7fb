"""``longgame select``: a subset of a data set, by any method."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from longgame.commands.options import TrustRemoteCode, check_outputs, interruptible
from longgame.commands.score import (
    OTHER_DATA,
    Adapter,
    AllowOverlap,
    BatchTokens,
    ChatTemplate,
    Complexity,
    Data,
    Device,
    Dtype,
    EmbedderOption,
    EstimateOnly,
    MaxLength,
    ModelOption,
    OnBadRowOption,
    PadToken,
    Quality,
    QualityRange,
    ReferenceModelOption,
    ScorerOption,
    StoreDtype,
    Target,
    TooLongOption,
    TurnsOption,
    Where,
    command_line,
    errors_name_options,
    model_settings,
    one_or_all,
    parse_range,
    print_estimate,
    row_progress,
)
from longgame.commands.terminal import Terminal
from longgame.errors import StorageError

_PARTS = "Large pools: part by part"


def select_command(
    data: Data,
    selector: Annotated[
        str, typer.Option(help="NAME[:parameter=value,…], file.py:Class, or scores:FILE (longgame selectors).")
    ],
    out: Annotated[Path, typer.Option(help="A .jsonl, .jsonl.gz or .parquet file, or a folder (saved data set).")],
    budget: Annotated[str, typer.Option(help="10% (of the tokens), 10%rows, 2M (tokens), or 5000rows.")] = "10%",
    model: ModelOption = None,
    scores: Annotated[Path | None, typer.Option(help="Folder of longgame score; filled with what it lacks.")] = None,
    target: Target = None,
    allow_overlap: AllowOverlap = False,
    dedup: Annotated[
        str | None, typer.Option(help="exact, near, or near:0.7: repeats of an earlier row are no candidates.")
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(
            help="Folder with what earlier stages selected; this selection is appended.", rich_help_panel=OTHER_DATA
        ),
    ] = None,
    replay: Annotated[
        list[str] | None,
        typer.Option(help="Earlier data to learn again; one for each stage.", rich_help_panel=OTHER_DATA),
    ] = None,
    replay_share: Annotated[
        float, typer.Option(help="Share of the budget spent on it.", rich_help_panel=OTHER_DATA)
    ] = 0.1,
    replay_choice: Annotated[
        str,
        typer.Option(
            help="What of it comes first: uniform, targeted, damage, distance, surprise or fit.",
            rich_help_panel=OTHER_DATA,
        ),
    ] = "uniform",
    replay_scores: Annotated[
        list[str] | None,
        typer.Option(help="For each --replay, scores made at the end of its stage.", rich_help_panel=OTHER_DATA),
    ] = None,
    training_log: Annotated[
        Path | None,
        typer.Option(
            help="Log of a training on these rows: a trainer's folder, or a file with sample_id, epoch, loss.",
            rich_help_panel=OTHER_DATA,
        ),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Write why each row was picked or rejected.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.")] = False,
    page: Annotated[bool, typer.Option(help="Write an HTML page beside the output.")] = True,
    card: Annotated[Path | None, typer.Option(help="A dataset card of the subset as Markdown, for the hub.")] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Push subset, manifest and dataset card to this data set of the hub; without a token, a dry run.",
        ),
    ] = None,
    budget_of: Annotated[
        str, typer.Option(help="What a budget in tokens counts: tokens, or response (learned ones).")
    ] = "tokens",
    clusters: Annotated[int, typer.Option(help="Clusters of the embeddings, for selectors that use them.")] = 8,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    partitions: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Select from --scores in so many parts, with one in memory (default: 1, or the shards with --engine).",
            rich_help_panel=_PARTS,
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="Where parts are worked on: local, ray, auto or ray://HOST:PORT.", rich_help_panel=_PARTS),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Parts in work at a time (default: 1; with Ray, what it holds).", rich_help_panel=_PARTS
        ),
    ] = None,
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
) -> None:
    """Select a subset of a data set: rows unchanged, with rank, score and every term of the score.

    Example: longgame select train.jsonl --model smollm2-135m --selector loss --budget 10% --out subset.jsonl
    """
    out, card = out.expanduser(), None if card is None else card.expanduser()
    with interruptible("stopped. What was scored is safe; run the same command again to resume."):
        from longgame.data.sources import open_source
        from longgame.engines.choice import LOCAL
        from longgame.models.hub import check_repo_id
        from longgame.offline.options import SelectOptions
        from longgame.offline.partitioned import partitioned_lines, refuse_unread, select_in_parts
        from longgame.offline.selecting import (
            judge_estimate,
            refuse_inputs,
            select_to,
            selection_inputs,
            subset_outputs,
        )
        from longgame.offline.subset import BAD, EXPLAINED, MANIFEST, PAGE, beside, refuse_existing
        from longgame.offline.summary import audit_line
        from longgame.report.subset import subset_page, subset_summary
        from longgame.storage import write_file

        if push is not None:
            check_repo_id(push)  # before hours of work
        if card is not None:
            check_outputs({"--card": card, **subset_outputs(out)}, [])
            refuse_existing([card], overwrite, option="--card")
        settings = model_settings(
            model, adapter, dtype, device, max_length, too_long, chat_template, pad_token, batch_tokens, store_dtype,
            trust_remote_code, reference_model,
        )  # fmt: skip
        options = SelectOptions(
            selector=selector,
            budget=budget,
            budget_of=budget_of,  # type: ignore[arg-type]
            turns=turns,  # type: ignore[arg-type]
            quality_range=parse_range(quality_range),
            quality=quality,
            complexity=complexity,
            on_bad_row=on_bad_row,  # type: ignore[arg-type]
            where=where,
            dedup=dedup,
            allow_overlap=allow_overlap,
            replay_share=replay_share,
            replay_choice=replay_choice,
            clusters=clusters,
            embedder=embedder,
            scorer_model=scorer_model,
            device=device,
            seed=seed,
        )
        read: dict[str, Any] = {
            "scores": scores, "target": target, "replay": replay, "replay_scores": replay_scores or (),
            "history": history, "training_log": training_log,
        }  # fmt: skip
        if card is not None:
            refuse_inputs({"--card": card}, selection_inputs(open_source(one_or_all(data)), options, **read))
        console = Terminal()
        if estimate:
            print_estimate(console, judge_estimate(one_or_all(data), options))
            return
        if partitions not in (None, 1) or engine is not None or workers is not None:
            unread = {
                "--model": model, "--target": target, "--replay": replay, "--replay-scores": replay_scores,
                "--history": history, "--training-log": training_log, "--explain": explain,
            }  # fmt: skip
            folder = refuse_unread(unread, scores)
            with errors_name_options():
                parts, manifest = select_in_parts(
                    one_or_all(data),
                    out,
                    options,
                    scores=folder,
                    partitions=partitions,
                    engine=engine or LOCAL,
                    workers=workers or (1 if engine in (None, LOCAL) else None),
                    overwrite=overwrite,
                    command=command_line(),
                )
            for line in partitioned_lines(parts, manifest):
                console.print(line, highlight=False, markup=False, soft_wrap=True)
            endings = [MANIFEST, *([BAD] if beside(out, BAD).exists() else [])]
            _finish(console, one_or_all(data), out, endings, manifest, card, push)
            return
        if page:
            refuse_existing([beside(out, PAGE)], overwrite, out)
        with errors_name_options(), row_progress("scoring") as progress:
            outcome, manifest = select_to(
                one_or_all(data),
                out,
                options,
                model=settings,
                **read,
                explain=explain,
                overwrite=overwrite,
                progress=progress,
                command=command_line(),
                announce=lambda lines: print_estimate(console, lines),
            )
        if page:
            write_file(beside(out, PAGE), subset_page(outcome, manifest))
        console.print(subset_summary(outcome, manifest))
        written = {MANIFEST: True, EXPLAINED: explain, BAD: bool(outcome.bad), PAGE: page}
        endings = [ending for ending, there in written.items() if there]
        _finish(console, one_or_all(data), out, endings, manifest, card, push)
        console.print("What does it do to your next stages? Put their files into a folder, and run:")
        console.print(audit_line(outcome), highlight=False, markup=False, soft_wrap=True)


def _finish(
    console: Terminal,
    data: Any,
    out: Path,
    endings: Sequence[str],
    manifest: Mapping[str, Any],
    card: Path | None,
    push: str | None,
) -> None:
    """Write the card, name the written files, and push them."""
    from longgame.data.sources import open_source
    from longgame.offline.card import dataset_card, push_subset, source_license
    from longgame.offline.subset import beside
    from longgame.storage import write_file

    extra = [beside(out, ending) for ending in endings]
    made = None
    if card is not None or push is not None:
        made = dataset_card(manifest, out, source_license(open_source(data)))
        if card is not None:
            write_file(card, str(made))
    names = ", ".join(map(str, [out, *extra, *([card] if card is not None else [])]))
    console.print(f"Written: {names}", highlight=False, markup=False, soft_wrap=True)
    if push is not None and made is not None:
        try:
            done = push_subset(push, out, made)
        except StorageError as error:
            later = shlex.join(["hf", "upload", push, str(out), "--repo-type", "dataset"])
            raise StorageError(f"{error} The subset is written; this uploads it without its card: {later}") from error
        console.print(str(done), highlight=False, markup=False, soft_wrap=True)
