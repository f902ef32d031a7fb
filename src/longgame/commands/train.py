"""``longgame train``: TRL's supervised fine-tuning with selection, from one configuration file."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import pyarrow as pa
import typer

from longgame.commands.score import parse_range
from longgame.commands.terminal import Terminal
from longgame.data.examples import WEIGHT, Example
from longgame.data.files import SUFFIXES
from longgame.data.formats import RowRules
from longgame.data.sources import open_source
from longgame.errors import (
    DataError,
    LonggameError,
    ModelError,
    RecipeError,
    StorageError,
    did_you_mean,
    did_you_mean_file,
)
from longgame.escape import markdown_line
from longgame.limits import is_out_of_memory, load_yaml, why_no_file
from longgame.offline.options import Budget, parse_selector
from longgame.offline.rows import DataRows, OnBadRow
from longgame.recipe import ModelSpec, read_mapping
from longgame.storage import ADVICE, write_file

_log = logging.getLogger(__name__)

SECTION = "selection"
"""Key of the configuration file that holds a `SelectionConfig`; ``--selection.KEY VALUE`` sets one of its fields."""
_BATCH = 256
"""Examples that are tokenized together."""


@dataclass
class DataArguments:
    """Data sets beside TRL's ``dataset_name``; each is a file, a folder, a glob, or the name of a hub data set."""

    eval_dataset_name: str | None = field(default=None, metadata={"help": "Items for evaluation in training."})
    proxy_dataset_name: str | None = field(default=None, metadata={"help": "Items of later stages (proxy_dataset)."})
    on_bad_row: str = field(default="error", metadata={"help": "error, or skip: leave out rows that cannot be used."})
    quality_range: str = field(default="0,1", metadata={"help": "Lowest and highest value of the quality column."})
    """A text, or a list of two numbers in a file."""
    target_dataset_name: str | None = field(default=None, metadata={"help": "Items of the task to select for."})


def train(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="YAML file: keys of SFTConfig, ModelConfig and ScriptArguments, and selection.")
    ] = None,
) -> None:
    """Fine-tune a model on what is selected from a data set (TRL's SFTTrainer).

    Every key of the file can be given as an option, such as --learning_rate 1e-4 or --selection.budget 0.1.

    Example: longgame train --config sft.yaml --selection.budget 0.1
    """
    arguments, data, model, names, selection = _read(config, context.args)
    checkpoint = _checkpoint(arguments)
    trainer = build_trainer(arguments, data, model, names, selection)
    # TRL writes the card at checkpoints and when it pushes, too
    trainer.create_model_card = partial(write_card, trainer, data.dataset_name)
    with training_errors(arguments.output_dir):
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model(arguments.output_dir)
    trainer.save_selection(arguments.output_dir)
    if not trainer.is_world_process_zero():
        return
    trainer.create_model_card()
    if arguments.push_to_hub:
        trainer.push_to_hub()
    picks = trainer.selection_record.picks
    console = Terminal()
    console.print(
        f"{len(picks)} examples selected ({trainer.selection_feed.spent:,} tokens). Model, selection.parquet and "
        f"README.md are in {arguments.output_dir}.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _checkpoint(arguments: Any) -> str | None:
    """Return the checkpoint to resume from; ``resume_from_checkpoint: true`` means the last one in ``output_dir``.

    Raises:
        RecipeError: there is none.
    """
    from transformers.trainer_utils import get_last_checkpoint

    choice = arguments.resume_from_checkpoint
    folder = Path(arguments.output_dir)
    if choice is None or str(choice).lower() == "false":
        if choice is None and (last := get_last_checkpoint(folder) if folder.is_dir() else None):
            _log.warning("'%s' is there, and the training begins anew. To go on: --resume_from_checkpoint true", last)
        return None
    if str(choice).lower() == "true":
        last = get_last_checkpoint(folder) if folder.is_dir() else None
        if last is None:
            raise RecipeError(
                f"resume_from_checkpoint is true, and '{folder}' holds no checkpoint. Leave it out to start a training."
            )
        return last
    if not Path(choice).is_dir():
        names = sorted(path.name for path in folder.glob("checkpoint-*"))
        others = f" '{folder}' has {', '.join(names)}." if names else ""
        raise RecipeError(
            f"resume_from_checkpoint '{choice}' is no folder.{others} Name a checkpoint, or leave it out."
        )
    return choice


def build_trainer(arguments: Any, data: Any, model: Any, names: DataArguments, selection: Mapping[str, Any]) -> Any:
    """Return the `SelectionSFTTrainer` of a configuration.

    Args:
        arguments: TRL's SFTConfig.
        data: TRL's ScriptArguments.
        model: TRL's ModelConfig.
        selection: fields of `SelectionConfig`.

    Raises:
        RecipeError, DataError, ModelError: a value, the data or the model cannot be used.
    """
    from trl import get_peft_config, get_quantization_config

    from longgame.models.load import load_tokenizer, model_place
    from longgame.training.compat import refuse_parallel
    from longgame.training.config import SelectionConfig
    from longgame.training.sft import SelectionSFTTrainer

    chosen = SelectionConfig.of(_as_fields(selection))
    refuse_parallel(arguments)
    if model.model_name_or_path is None:
        raise RecipeError("model_name_or_path is missing. Name a model, e.g. model_name_or_path: tiny.")
    if data.dataset_name is None:
        raise RecipeError("dataset_name is missing. Give a file, a folder or the name of a hub data set.")
    trust = arguments.trust_remote_code
    spec = ModelSpec(
        name=model.model_name_or_path,
        chat_template=arguments.chat_template_path,
        pad_token=arguments.pad_token,
        trust_remote_code=trust,
    )
    tokenizer = load_tokenizer(spec)
    if arguments.eos_token is not None:
        raise RecipeError("eos_token would change where a response ends. Set it in the model's own tokenizer.")
    learned, ends = _learned(arguments), cast(Any, names.quality_range)
    quality_range = parse_range(",".join(map(str, ends)) if isinstance(ends, list) else str(ends))

    def rows(name: str, split: str | None, config: str | None = None, stream: bool = False) -> Any:
        place, on_bad_row = reference(name, config, split), cast(OnBadRow, names.on_bad_row)
        settings: Any = {"stream": stream, "on_bad_row": on_bad_row, "quality_range": quality_range}
        return tokenized(place, tokenizer, learned, **settings)

    train_data = rows(data.dataset_name, data.dataset_train_split, data.dataset_config, data.dataset_streaming)
    evaluation = None
    if arguments.eval_strategy != "no":
        if names.eval_dataset_name is not None:
            evaluation = rows(names.eval_dataset_name, data.dataset_test_split)
        elif _is_local(data.dataset_name):
            raise RecipeError(
                f"eval_strategy is {arguments.eval_strategy.value}, and there are no items to evaluate on. "
                "Set eval_dataset_name, or eval_strategy: 'no'."
            )
        else:
            evaluation = rows(data.dataset_name, data.dataset_test_split, data.dataset_config)
    items = {
        f"{role}_dataset": rows(name, None)
        for role, name in (("proxy", names.proxy_dataset_name), ("target", names.target_dataset_name))
        if name is not None
    }
    arguments.model_init_kwargs = {
        "revision": model.model_revision,
        "trust_remote_code": trust,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(arguments.model_init_kwargs or {}),
    }
    # The rows are tokenized already, with their loss masks and the template that the tokenizer has.
    arguments.completion_only_loss, arguments.assistant_only_loss, arguments.chat_template_path = None, False, None
    with setup_errors():
        return SelectionSFTTrainer(
            model=model_place(model.model_name_or_path),
            args=arguments,
            train_dataset=train_data,
            eval_dataset=evaluation,
            processing_class=tokenizer,
            quantization_config=get_quantization_config(model),
            peft_config=get_peft_config(model),
            selection=chosen,
            **items,
        )


def _read(config: Path | None, options: Sequence[str]) -> tuple[Any, Any, Any, DataArguments, dict[str, Any]]:
    """Read the file and the options in TRL's manner: the options win.

    Raises:
        RecipeError: a key is unknown, or a value cannot be read.
    """
    import torch

    try:
        from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser
    except ModuleNotFoundError as error:
        raise RecipeError(
            "longgame train needs TRL, which is not installed. Run: pip install 'longgame[trl]'"
        ) from error

    if config is None and not options:
        raise RecipeError("give a configuration: longgame train --config sft.yaml (docs/training.md has an example).")
    if config is not None and (reason := why_no_file(config)):
        near = did_you_mean_file(config.name, [path.name for path in config.parent.glob("*.y*ml")])
        raise RecipeError(f"configuration '{config}' {reason}.{near} Give the path of a YAML file.")
    values = {} if config is None else read_mapping(config, "sft.yaml")
    selection = values.pop(SECTION, None) or {}
    if not isinstance(selection, Mapping):
        selection = {"selector": selection}
    words, changes = _split_options(options)
    selection = {**selection, **changes}
    kinds = (ScriptArguments, SFTConfig, ModelConfig, DataArguments)
    keys = [item.name for kind in kinds for item in dataclasses.fields(kind) if item.init]
    for key in values:
        if key not in (*keys, "env"):
            raise RecipeError(f"{config}: unknown key '{key}'.{did_you_mean(str(key), [*keys, SECTION])}")
    for word in words:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and name.replace("-", "_") not in keys and not name.startswith("no_"):
            raise RecipeError(f"unknown option '{word}'.{did_you_mean(name, [*keys, SECTION])}")
    if not torch.accelerator.is_available():
        values.setdefault("use_cpu", True)  # SFTConfig's default, bf16, is refused without it
    parser: Any = TrlParser(kinds)  # type: ignore[arg-type]
    parser.error = _refuse_value
    with setup_errors():
        parser.set_defaults_with_config(**{key: value for key, value in values.items() if key != "env"})
        data, arguments, model, names = parser.parse_args_into_dataclasses(args=words)
    return arguments, data, model, names, selection


def _split_options(options: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the options without ``--selection.KEY VALUE``, and those as fields."""
    others: list[str] = []
    changes: dict[str, Any] = {}
    words = iter(options)
    for word in words:
        name, sign, value = word.partition("=")
        if not name.startswith(f"--{SECTION}."):
            others.append(word)
            continue
        text = value if sign else next(words, None)
        if text is None:
            raise RecipeError(f"{name} has no value. Write {name} VALUE.")
        try:
            changes[name.removeprefix(f"--{SECTION}.")] = load_yaml(text)
        except ValueError as error:
            raise RecipeError(f"{name} is '{text}', which cannot be read: {error}.") from error
    return others, changes


def _as_fields(selection: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section with selector and budget as `SelectionConfig` takes them, from what `longgame select` takes.

    Raises:
        RecipeError: the selector cannot be read, or the budget is no share of the tokens.
    """
    fields = dict(selection)
    if isinstance(fields.get("selector"), str):
        fields["selector"], parameters = parse_selector(fields["selector"])
        if parameters:
            fields["parameters"] = {**parameters, **(fields.get("parameters") or {})}
    if isinstance(fields.get("budget"), str):
        budget = Budget.parse(fields["budget"])
        if budget.kind != "share" or budget.of != "tokens":
            raise RecipeError(
                f"budget is '{fields['budget']}', and a training takes a share of the candidates' tokens. "
                "Write 0.1 or 10%, or select a subset first (longgame select)."
            )
        fields["budget"] = budget.value
    return fields


def _refuse_value(message: str) -> None:
    raise RecipeError(f"{message}. Correct it in the configuration file or on the command line.")


@contextmanager
def setup_errors() -> Iterator[None]:
    """Turn what TRL, transformers and PEFT raise about wrong values into one sentence.

    Raises:
        RecipeError: instead of a ValueError, TypeError, ImportError or OSError.
    """
    try:
        yield
    except LonggameError:
        raise
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise RecipeError(" ".join(f"the configuration cannot be used: {error}".split())) from error


@contextmanager
def training_errors(output_dir: str) -> Iterator[None]:
    """Turn a full disk and a full memory into one sentence.

    Raises:
        StorageError: a file of a checkpoint or of the model cannot be written.
        ModelError: a batch does not fit into memory.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, RuntimeError) as error:  # torch has no error class for a failed write, nor the CPU for
        reason = " ".join(str(error).split())  # a failed allocation
        if is_out_of_memory(error):
            raise ModelError(
                f"a batch does not fit into memory ({reason[:120]}). Lower per_device_train_batch_size and raise "
                "gradient_accumulation_steps, or set max_length."
            ) from error
        if isinstance(error, SafetensorError) or "PytorchStreamWriter" in reason:
            raise StorageError(f"cannot write into {output_dir}: {reason[:200]}. {ADVICE}") from error
        raise


# Data


def _is_local(name: str) -> bool:
    return name.endswith(SUFFIXES) or Path(name).expanduser().exists() or "*" in name


def reference(name: str, config: str | None, split: str | None) -> str:
    """Return what `open_source` takes for a data set of the configuration: a path, or ``hub:name:config:split``."""
    if _is_local(name) or name.startswith("hub:"):
        return name
    return f"hub:{name}" + (f":{config or ''}:{split}" if split else f":{config}" if config else "")


def _learned(arguments: Any) -> str:
    """Which tokens are learned: ``all`` tokens, the ``last`` turn, or every assistant ``turn``."""
    if arguments.completion_only_loss is False and not arguments.assistant_only_loss:
        return "all"
    return "turns" if arguments.completion_only_loss is None or arguments.assistant_only_loss else "last"


def tokenized(
    data: str,
    tokenizer: Any,
    learned: str,
    *,
    stream: bool = False,
    on_bad_row: OnBadRow = "error",
    quality_range: tuple[float, float] = (0.0, 1.0),
) -> Any:
    """Return rows of any format as a data set of tokens: ``input_ids``, ``labels``, and what selection reads.

    Columns beside them: ``sample_id``, ``skill``, ``quality``, ``longgame_weight``.

    Args:
        data: what `open_source` takes.
        tokenizer: prepared by `load_tokenizer`.
        learned: see `_learned`.
        stream: tokenize while training, instead of before.
        on_bad_row: whether a row that cannot be used is an error or skipped.
        quality_range: lowest and highest value of the ``quality`` column.

    Raises:
        DataError: a row cannot be used, or there is none.
    """
    from datasets import Dataset, Features, IterableDataset, Value
    from datasets import List as ListOf

    rules = RowRules("last" if learned == "last" else "all", quality_range)
    source = DataRows(open_source(data), rules, on_bad_row)
    if source.bad:
        first = source.bad[0]
        _log.warning(
            "%d of %d rows of '%s' are skipped; the first is %s, %s %d: %s",
            *(len(source.bad), source.total, data, first.file, source.source.unit, first.number, first.reason),
        )
    features = Features(
        {
            "input_ids": ListOf(Value("int32")),
            "labels": ListOf(Value("int32")),
            "sample_id": Value("string"),
            "skill": Value("string"),
            "quality": Value("float64"),
            WEIGHT: Value("float64"),
        }
    )

    def rows() -> Iterator[dict[str, Any]]:
        yield from _encoded_rows(source.examples(), tokenizer, learned == "all", on_bad_row == "skip")

    if stream:
        return IterableDataset.from_generator(rows, features=features)
    stream_of_rows, tables = rows(), []
    while batch := list(itertools.islice(stream_of_rows, _BATCH)):
        tables.append(pa.Table.from_pylist(batch, schema=features.arrow_schema))
    if not tables:
        raise DataError(f"no row of '{data}' can be tokenized. Look at the warnings above.")
    return Dataset(pa.concat_tables(tables)).cast(features)


def _encoded_rows(examples: Iterator[Example], tokenizer: Any, learn_all: bool, skip: bool) -> Iterator[dict[str, Any]]:
    from longgame.data.tokenize import encode_each

    errors: list[Exception] = []
    while batch := list(itertools.islice(examples, _BATCH)):
        for example, encoded in zip(batch, encode_each(batch, tokenizer), strict=True):
            if isinstance(encoded, DataError | ModelError):
                if not skip:
                    raise encoded
                errors.append(encoded)
                continue
            ids, mask = encoded.ids.tolist(), encoded.loss_mask
            if learn_all:
                labels = ids
            elif mask is None:
                labels = [-100] * len(encoded.prompt_ids) + encoded.response_ids.tolist()
            else:
                labels = [token if is_learned else -100 for token, is_learned in zip(ids, mask, strict=True)]
            yield {
                "input_ids": ids,
                "labels": labels,
                "sample_id": example.sample_id,
                "skill": example.skill,
                "quality": example.quality,
                WEIGHT: example.weight,
            }
    if errors:
        _log.warning("%d rows cannot be tokenized and are skipped; the first: %s", len(errors), errors[0])


# Model card


def write_card(trainer: Any, data: str, **options: Any) -> None:
    """Write the model card of TRL into the output directory, with a section on the selection.

    Args:
        data: name of the data set; that of a file or folder stays on this machine.
        options: what TRL's method takes.

    Raises:
        StorageError: the disk is full or not writable.
    """
    type(trainer).create_model_card(trainer, **options | {"dataset_name": None if _is_local(data) else data})
    if not trainer.is_world_process_zero():
        return
    path = Path(trainer.args.output_dir) / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    write_file(path, text.rstrip() + "\n\n" + card_section(trainer))


def card_section(trainer: Any) -> str:
    """Return the section of a model card that says what the model was trained on."""
    from longgame import __version__

    selection, feed, policy = trainer.selection, trainer.selection_feed, trainer.selection_policy
    share = feed.spent / feed.scored if feed.scored else 0.0
    form = selection.selector if isinstance(selection.selector, Mapping) else {"name": selection.selector}
    name = form["name"] if isinstance(form["name"], str) else policy.selector.name
    parameters = {key: value for key, value in form.items() if key != "name"} | dict(selection.parameters)
    rows = {
        "selector": name,
        "parameters": ", ".join(f"{key} = {value}" for key, value in parameters.items()) or "defaults",
        "budget": f"{selection.budget:g} of the {'learned ' if selection.budget_of == 'response' else ''}tokens",
        "rounds": "one at every step" if selection.rounds == "step" else str(selection.rounds),
        "selected": f"{len(trainer.selection_record.picks):,} picks, {feed.spent:,} tokens",
        "scored": f"{feed.scored:,} tokens ({100 * share:.1f} % selected)",
        "seed": str(trainer._selection_seed()),
        "longgame": __version__,
    }
    lines = [f"| {name} | {markdown_line(value)} |" for name, value in rows.items()]
    return "\n".join(
        [
            "## Data selection",
            "",
            "The training data were selected while the model trained, with longgame. "
            "`longgame.read_picks(folder)` reads what was selected (`selection.parquet`).",
            "",
            "| | |",
            "|---|---|",
            *lines,
            "",
        ]
    )
