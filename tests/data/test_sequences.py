"""Sequences of files: drawn by the seed alone, disjoint by content, in fair shares."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from hypothesis import strategies as st

from longgame.data.examples import Example, SequenceData, Stage, Task
from longgame.data.orders import reorder
from longgame.data.sequences import Contamination, EvaluationPrompts, build_sequence, measure_contamination
from longgame.data.sources import source_name
from longgame.errors import DataError, RecipeError
from longgame.evaluation.scorers import SCORERS
from longgame.recipe import Recipe, load_recipe, parse_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


def write(folder: Path, split: str, name: str, count: int, **fields: Any) -> None:
    (folder / split).mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"{split} {name} {i}", "response": f"r{i}", **fields} for i in range(count)]
    (folder / split / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in (("big", 200), ("small", 9), ("other", 80)):
        write(tmp_path, "train", name, count)
    for name in ("big", "other", "shifted", "far"):
        write(tmp_path, "eval", name, 30, answer="x")
    return tmp_path


def recipe(folder: Path, **data: Any) -> Recipe:
    settings: dict[str, Any] = {
        "sequence": "files",
        "data_dir": str(folder),
        "pool_size": 40,
        "items_per_skill": 5,
        "ood_items_per_skill": 3,
        "stages": [
            {"name": "one", "train": ["big", "small"], "eval": ["big", "other"], "max_new_tokens": 7},
            {"name": "two", "train": ["other"], "eval": ["other"], "scorers": ["token_accuracy"]},
        ],
        "ood": [{"name": "out", "eval": ["shifted", "far"]}],
    }
    return parse_recipe(
        {
            "name": "t",
            "selectors": ["random"],
            "proxy": {"items_per_skill": 2},
            "training": {"steps": 4},
            "data": {**settings, **data},
        }
    )


def contents(sequence: SequenceData) -> list[list[str]]:
    """One list of content ids per part that must be disjoint from all others."""
    parts = [stage.candidates for stage in sequence.stages]
    parts += [stage.proxy for stage in sequence.stages]
    parts += [task.items for task in sequence.tasks]
    return [[example.sample_id.partition("#")[0] for example in part] for part in parts]


def test_sizes_names_and_scorers_follow_the_recipe(folder: Path) -> None:
    sequence = build_sequence(recipe(folder), 0)
    one, two = sequence.stages
    assert [stage.name for stage in sequence.stages] == ["one", "two"]
    assert [len(stage.candidates) for stage in sequence.stages] == [40, 40]
    assert Counter(item.skill for item in one.task.items) == {"big": 5, "other": 5}
    assert (one.task.kind, one.task.scorers, one.task.max_new_tokens) == (
        "stage",
        ("token_accuracy", "exact_match", "ends"),
        7,
    )
    assert two.task.scorers == ("token_accuracy",)
    (out,) = sequence.ood
    assert (out.name, out.kind, Counter(item.skill for item in out.items)) == ("out", "ood", {"shifted": 3, "far": 3})
    assert Counter(item.skill for item in one.proxy) == {"big": 2, "small": 2}
    assert Counter(item.skill for item in two.proxy) == {"other": 2}
    assert all(item.prompt.startswith("eval") for task in sequence.tasks for item in task.items)
    assert all(item.prompt.startswith("train") for stage in sequence.stages for item in stage.candidates + stage.proxy)


def test_files_share_a_pool_equally(folder: Path) -> None:
    fair = build_sequence(recipe(folder, pool_size=10), 0).stages[0].candidates
    assert Counter(example.skill for example in fair) == {"big": 5, "small": 5}
    scarce = build_sequence(recipe(folder), 0).stages[0].candidates  # 9 in the file, 2 of them in the proxy mixture
    assert Counter(example.skill for example in scarce) == {"big": 33, "small": 7}


@pytest.mark.parametrize("seed", range(5))
def test_all_parts_are_disjoint_by_content(folder: Path, seed: int) -> None:
    """Both stages draw from the same files here, so nothing but bookkeeping keeps them apart."""
    stages = [{"name": name, "train": ["big", "other"], "eval": ["big", "other"]} for name in ("one", "two", "three")]
    parts = contents(build_sequence(recipe(folder, stages=stages, ood=[{"name": "out", "eval": ["big"]}]), seed))
    assert all(len(part) == len(set(part)) for part in parts)
    for first, second in itertools.combinations(parts, 2):
        assert not set(first) & set(second)


def test_candidate_with_an_evaluation_prompt_is_skipped(folder: Path) -> None:
    rows = [{"prompt": f"  EVAL other\n {i}", "response": "another answer"} for i in range(30)]
    path = folder / "train" / "leaky.jsonl"
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, *({"prompt": f"{i}", "response": "r"} for i in range(30))])
    )
    stages = [{"name": "one", "train": ["leaky"], "eval": ["other"]}]
    sequence = build_sequence(recipe(folder, stages=stages, ood=[], pool_size=45), 0)
    asked = {item.prompt for item in sequence.stages[0].task.items}
    drawn = {" ".join(example.prompt.lower().split()) for example in sequence.stages[0].candidates}
    assert len(asked) == 5
    assert not asked & drawn
    assert any(prompt.startswith("eval other") for prompt in drawn)  # the other leaky prompts may be drawn


def pool_prompts(folder: Path, train: list[str], evaluation: list[str], size: int) -> list[str]:
    """Prompts of the pool that files with these prompts give, in alphabetical order."""
    for split, texts in (("train", train), ("eval", evaluation)):
        rows = "".join(json.dumps({"prompt": text, "response": "r"}) + "\n" for text in texts)
        (folder / split / "near.jsonl").write_text(rows)
    stages = [{"name": "one", "train": ["near"], "eval": ["near"]}]
    data = recipe(folder, stages=stages, ood=[], pool_size=size, items_per_skill=len(evaluation))
    sequence = build_sequence(data.replace({"proxy.items_per_skill": 0}), 0)
    return sorted(example.prompt for example in sequence.stages[0].candidates)


NEARLY = {
    "one word more": ("Print the full path of a running command now", "Print the full path of a running command"),
    "another value": ("Find files named '*.c' and print their lines", "Find files named '*.h' and print their lines"),
    "another path": ("Count all the lines under /var/log", "Count all the lines under ~/notes/today"),
    "other quotes": ("Does 'kind' describe this man: he smiled", "Does 'rude' describe this man: he smiled"),
    "same scenario": (
        "Karen saw that the cashier gave her too much money. She returned it.",
        "Karen saw that the cashier gave her too much money. She kept it.",
    ),
}


@pytest.mark.parametrize("pair", NEARLY.values(), ids=NEARLY)
def test_near_duplicate_of_an_evaluation_prompt_is_skipped(folder: Path, pair: tuple[str, str]) -> None:
    other = ["A text about something else", "Another question of five words", "Is it late", "Say why"]
    assert pool_prompts(folder, [pair[0], *other], [pair[1]], 4) == other
    with pytest.raises(DataError, match="1 with the prompt of an evaluation item, or nearly"):
        pool_prompts(folder, [pair[0], *other], [pair[1]], 5)


def test_tasks_behind_one_instruction_are_no_duplicates(folder: Path) -> None:
    instruction = "Write a shell command for this task please:"
    verbs = ["list files", "show dates", "kill jobs", "sort names", "join pages"]
    train = sorted(f"{instruction} {verb} today" for verb in verbs)
    evaluation = [f"{instruction} {noun}" for noun in ("who am I", "print money", "reboot now", "ping home")]
    assert pool_prompts(folder, train, evaluation, len(train)) == train


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.lists(st.sampled_from("abc"), max_size=9)
)
def test_alike_is_half_of_all_word_triples(first: list[str], second: list[str]) -> None:
    prompts = EvaluationPrompts()
    prompts.add(Example.make(" ".join(first), "r"))
    triples = [{" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))} for words in (first, second)]
    alike = bool(second) and len(triples[0] & triples[1]) / len(triples[0] | triples[1]) >= 0.5
    assert prompts.has_like(Example.make(" ".join(second), "r")) is alike


# Evaluation prompts in the pools


def in_stage(prompts: list[str], evaluation: list[str]) -> SequenceData:
    items = [Example.make(prompt, "r", skill="s") for prompt in evaluation]
    stage = Stage("one", tuple(Example.make(p, f"r{i}") for i, p in enumerate(prompts)), Task("one", tuple(items)))
    return SequenceData("hand", (stage, Stage("two", (Example.make("x", "y"),), Task("two", ()))))


def test_contamination_counts_prompts_and_eight_words_in_a_row() -> None:
    ten = "one two three four five six seven eight nine ten"
    pool = [
        f" {ten.upper()} ",  # the prompt, but for case and spacing
        "zero two three four five six seven eight nine",  # eight words of it
        "zero two three four five six seven eight nought",  # seven
        "how many",  # a short prompt
        "how many, then",
        "",  # plain text
    ]
    contamination = measure_contamination(in_stage(pool, [ten, "How many", "4 + 5"]))
    assert contamination == Contamination(candidates=7, same_prompt=2, shared_text=3)
    assert contamination.is_much
    assert str(contamination) == (
        "of 7 candidates 2 have the prompt of an evaluation item and 3 (42.9 %) share eight words in a row with one"
    )


def test_wording_of_a_sub_skill_is_no_contamination() -> None:
    instruction = "write one shell command that does the following task"
    evaluation = [f"{instruction} number {i} of them" for i in range(4)]
    contamination = measure_contamination(in_stage([f"{instruction} letter {i}" for i in "abc"], evaluation))
    assert contamination == Contamination(4, 0, 0)
    assert not contamination.is_much
    few = measure_contamination(in_stage([f"{instruction} letter {i}" for i in "abc"], evaluation[:2]))
    assert few == Contamination(4, 0, 3)  # two items make no wording
    assert Contamination.total([contamination, few]) == Contamination(8, 0, 3)


@pytest.mark.parametrize("name", ["procedural-skill", "procedural-domain", "procedural-interleaved"])
def test_generated_pools_hold_no_evaluation_prompt(name: str) -> None:
    made = parse_recipe({"name": "t", "selectors": ["random"], "data": {"sequence": name, "pool_size": 300}})
    contamination = measure_contamination(build_sequence(made, 0))
    assert contamination.same_prompt == 0
    assert not contamination.is_much


def test_seed_fixes_the_sequence(folder: Path) -> None:
    assert build_sequence(recipe(folder), 3) == build_sequence(recipe(folder), 3)
    first, second = build_sequence(recipe(folder), 3), build_sequence(recipe(folder), 4)
    assert {e.sample_id for e in first.stages[1].candidates} != {e.sample_id for e in second.stages[1].candidates}
    assert first.ood != second.ood


def test_stage_is_independent_of_later_stages(folder: Path) -> None:
    whole = recipe(folder)
    stages = [stage.model_dump() for stage in whole.data.stages]
    alone = build_sequence(recipe(folder, stages=stages[:1], ood=[]), 1).stages[0]
    assert alone == build_sequence(whole, 1).stages[0]


def test_copies_inside_a_file_get_ids_of_their_own(folder: Path) -> None:
    row = json.dumps({"prompt": "same", "response": "r"})
    (folder / "train" / "copies.jsonl").write_text((row + "\n") * 4)
    stages = [{"name": "one", "train": ["copies"], "eval": ["big"]}]
    without_proxy = recipe(folder, stages=stages, pool_size=4).model_copy(
        update={"proxy": recipe(folder).proxy.model_copy(update={"items_per_skill": 0})}
    )
    ids = [example.sample_id for example in build_sequence(without_proxy, 0).stages[0].candidates]
    assert [name.partition("#")[2] for name in ids] == ["", "2", "3", "4"]
    assert len({name.partition("#")[0] for name in ids}) == 1


def even(example: Example) -> bool:
    return int(example.prompt.split()[-1]) % 2 == 0


def test_too_long_drop_skips_before_sampling(folder: Path) -> None:
    sequence = build_sequence(recipe(folder, too_long="drop", pool_size=30), 0, fits=even)
    everything = [e for s in sequence.stages for e in s.candidates + s.proxy] + [
        i for t in sequence.tasks for i in t.items
    ]
    assert all(even(example) for example in everything)
    assert [len(stage.candidates) for stage in sequence.stages] == [30, 30]
    kept = build_sequence(recipe(folder, too_long="error", pool_size=30), 0, fits=even)
    assert not all(even(example) for stage in kept.stages for example in stage.candidates)


def test_a_pool_larger_than_its_files_names_what_there_is(folder: Path) -> None:
    message = _error(recipe(folder, pool_size=100))
    assert "stage 'two' needs a pool of 100 candidates but its files give 78: other (80 examples)" in message
    assert "Lower data.pool_size to 78" in message
    # 100 of 200 and 5 of 9 examples are even; two of each file are proxy items
    message = _error(recipe(folder, pool_size=102, too_long="drop"), even)
    assert "stage 'one' needs a pool of 102 candidates but its files give 101" in message
    assert "big (200 examples, 100 longer than model.max_length); small (9 examples, 4 longer" in message


def _error(given: Recipe, fits: Any = None) -> str:
    with pytest.raises(DataError) as caught:
        build_sequence(given, 0, fits=fits)
    return str(caught.value)


def test_too_few_evaluation_or_proxy_items_are_an_error(folder: Path) -> None:
    assert "only 30 can be used. Lower data.items_per_skill to 30" in _error(recipe(folder, items_per_skill=31))
    assert "Lower data.ood_items_per_skill to 30" in _error(recipe(folder, ood_items_per_skill=31))
    write(folder, "train", "one", 1)
    assert "Lower proxy.items_per_skill" in _error(
        recipe(folder, stages=[{"name": "a", "train": ["one"], "eval": ["big"]}])
    )


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ({"stages": [{"name": "a", "eval": ["big"]}]}, "'a' names no train files"),
        ({"stages": [{"name": "a", "train": ["big"]}]}, "'a' names no eval files"),
        ({"ood": [{"name": "b"}]}, "ood 'b' names no eval files"),
        ({"ood": [{"name": "one", "eval": ["far"]}]}, "'one' is used twice"),
        (
            {"stages": [{"name": "a", "train": ["big", "elsewhere/big.jsonl"], "eval": ["big"]}]},
            "two train files alike",
        ),
    ],
)
def test_a_recipe_that_makes_no_sequence_is_refused(folder: Path, data: dict[str, Any], what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        build_sequence(recipe(folder, **data), 0)


def test_the_quadratic_world_has_no_text() -> None:
    given = parse_recipe(
        {"name": "q", "selectors": ["random"], "model": {"name": "quadratic"}, "data": {"sequence": "quadratic"}}
    )
    with pytest.raises(RecipeError, match="quadratic"):
        build_sequence(given, 0)


def test_procedural_recipes_reach_the_generators() -> None:
    first = {"procedural-skill": "general", "procedural-domain": "general-qa", "procedural-interleaved": "writing"}
    for name, stage in first.items():
        data = {"sequence": name, "pool_size": 40, "items_per_skill": 1}
        sequence = build_sequence(parse_recipe({"name": "p", "selectors": ["random"], "data": data}), 0)
        assert [len(stage.candidates) for stage in sequence.stages] == [40] * 5
        assert (sequence.name, sequence.stages[0].name) == (name, stage)


@pytest.mark.parametrize(("name", "kind"), [("domain", "procedural-domain"), ("interleaved", "procedural-interleaved")])
def test_family_recipes_differ_from_quickstart_in_data(name: str, kind: str) -> None:
    base, other = (load_recipe(RECIPES / f"{each}.yaml") for each in ("quickstart", name))
    assert other.data.sequence == kind
    assert other.model_copy(update={"name": base.name, "data": base.data}) == base
    same = {"sequence": base.data.sequence, "mixing": base.data.mixing}
    assert other.data.model_copy(update=same) == base.data


def _documented() -> list[Recipe]:
    text = (RECIPES.parent / "docs" / "recipe.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    return [parse_recipe(block) for block in blocks if "data" in block]  # others show another part of a recipe


def test_the_sequences_of_the_recipe_page_can_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, generated = _documented()
    monkeypatch.chdir(tmp_path)
    for task in (*files.data.stages, *files.data.ood):
        for split in ("train", "eval"):
            for reference in getattr(task, split):
                write(tmp_path / "my-data", split, source_name(reference), 1000)
    shutil.copy("my-data/train/faq.jsonl", "faq.jsonl")
    for given in (files, generated):
        sequence = build_sequence(given, 0, fits=lambda example: True)
        assert [stage.name for stage in sequence.stages] == [stage.name for stage in given.data.stages]
        assert all(len(stage.candidates) == given.data.pool_size for stage in sequence.stages)


THREE = [
    {"name": "one", "train": ["big", "other"], "eval": ["big"]},
    {"name": "two", "train": ["other", "third"], "eval": ["other"]},
    {"name": "three", "train": ["fourth"], "eval": ["far"]},
]


@pytest.fixture
def wide(folder: Path) -> Path:
    for name in ("third", "fourth"):
        write(folder, "train", name, 80)
    return folder


@pytest.mark.parametrize("mixing", [0.1, 0.3, 0.5, 0.9])
def test_mixing_share_is_exact_and_from_neighbors(wide: Path, mixing: float) -> None:
    sequence = build_sequence(recipe(wide, stages=THREE, pool_size=21, mixing=mixing), 0)
    one, two, three = (Counter(example.skill for example in stage.candidates) for stage in sequence.stages)
    foreign = round(mixing * 21)
    assert sum(one.values()) == sum(two.values()) == sum(three.values()) == 21
    assert one["third"] == foreign  # `other` is no foreign file: both stages train it
    assert one["fourth"] == 0
    assert (two["big"], two["fourth"]) == (foreign - foreign // 2, foreign // 2)
    assert three["other"] + three["third"] == foreign
    assert abs(three["other"] - three["third"]) <= 1
    assert sequence.mixing == mixing


def test_mixing_leaves_evaluation_and_proxy_items_alone(wide: Path) -> None:
    sharp = build_sequence(recipe(wide, stages=THREE, pool_size=20), 0)
    soft = build_sequence(recipe(wide, stages=THREE, pool_size=20, mixing=0.4), 0)
    assert soft.tasks == sharp.tasks
    for before, after in zip(sharp.stages, soft.stages, strict=True):
        assert after.proxy == before.proxy
    for stage in (0, 2):  # the second stage passes over what the first took of their shared file
        assert soft.stages[stage].candidates[:12] == sharp.stages[stage].candidates[:12]
    parts = contents(soft)
    for first, second in itertools.combinations(parts, 2):
        assert not set(first) & set(second)


def test_files_mix_with_the_neighbors_of_the_walk(wide: Path) -> None:
    order = ["three", "one", "two"]
    sharp = recipe(wide, stages=THREE, pool_size=20)
    assert build_sequence(sharp, 0, order=order) == reorder(build_sequence(sharp, 0), order)
    soft = recipe(wide, stages=THREE, pool_size=20, mixing=0.5)
    usual, walked = build_sequence(soft, 0), build_sequence(soft, 0, order=order)
    assert [stage.name for stage in walked.stages] == [task.name for task in walked.tasks[:3]] == order
    assert walked.ood == usual.ood
    three, one, two = (Counter(example.skill for example in stage.candidates) for stage in walked.stages)
    assert three["big"] + three["other"] == one["fourth"] + one["third"] == two["big"] == 10
    own = {stage.name: stage.candidates[:10] for stage in usual.stages}
    assert {stage.name: stage.candidates[:10] for stage in walked.stages} == own


def test_mixing_that_cannot_be_is_an_error_that_names_the_stage(folder: Path) -> None:
    alike = [{"name": name, "train": ["big"], "eval": ["big"]} for name in ("one", "two")]
    with pytest.raises(RecipeError, match="stage 'two' has no train file that its neighbor 'one' lacks"):
        build_sequence(recipe(folder, stages=alike, mixing=0.5), 0)
    scarce = [{"name": "one", "train": ["big"], "eval": ["big"]}, {"name": "two", "train": ["small"], "eval": ["big"]}]
    message = _error(recipe(folder, stages=scarce, pool_size=14, mixing=0.5, ood=[]))
    assert "pool of stage 'one' needs 7 candidates (data.mixing 0.5) of these files, which give 0: small" in message


@pytest.mark.parametrize(
    "name",
    [
        "smollm2-skill",
        "smollm2-skill-cpu",
        "smollm2-domain",
        "smollm2-domain-cpu",
        "smollm2-interleaved",
        "smollm2-interleaved-cpu",
    ],
)
def test_shipped_file_recipes_build_from_a_folder_of_their_names(tmp_path: Path, name: str) -> None:
    given = load_recipe(
        RECIPES / f"{name}.yaml", {"data.data_dir": str(tmp_path), "data.pool_size": 32, "data.items_per_skill": 2}
    )
    for task in (*given.data.stages, *given.data.ood):
        assert set(task.scorers) <= set(SCORERS.names())
        assert task.scorers[0] == "token_accuracy"
        for split in ("train", "eval"):
            for reference in getattr(task, split):
                write(tmp_path, split, reference, 120)
    sequence = build_sequence(given, 0, fits=lambda example: True)
    assert len(sequence.stages) >= 3
    assert len(sequence.ood) >= 4
    assert (sequence.mixing > 0) == ("interleaved" in name)
    assert len(given.selectors) >= 4
    assert len(given.seeds) >= 3
    assert not {task.name for task in sequence.tasks} - {task.name for task in (*given.data.stages, *given.data.ood)}


def test_turns_and_the_range_of_quality_are_the_recipes(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    for split, count in (("train", 40), ("eval", 2)):
        (tmp_path / split).mkdir()
        asked = [{"role": "user", "content": f"{split} {n} alpha {n * 7}"} for n in range(count)]
        rows = [
            {"messages": [*turns, question, {"role": "assistant", "content": "yes"}], "quality": 3}
            for question in asked
        ]
        (tmp_path / split / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"sequence": "files", "data_dir": str(tmp_path), "pool_size": 32, "items_per_skill": 1}
    data |= {"stages": [{"name": "a", "train": ["a"], "eval": ["a"]}], "quality_range": [1, 5]}
    for setting, learned in (("all", (1,)), ("last", ())):
        recipe = parse_recipe(
            {"name": "t", "selectors": ["random"], "proxy": {"items_per_skill": 0}, "data": {**data, "turns": setting}}
        )
        [stage] = build_sequence(recipe, 0).stages
        assert {example.learned for example in stage.candidates} == {learned}
        assert {example.quality for example in stage.candidates} == {0.5}
        assert {item.learned for item in stage.task.items} == {()}
