"""The domain, the interleaved and a user's own sequence: shares, borders, orders, and what is left alone by them."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest

from longgame.data.examples import Example, SequenceData
from longgame.data.orders import reorder
from longgame.data.sequences import build_sequence
from longgame.data.synthetic import (
    DOMAINS,
    INTERLEAVED,
    OOD,
    PROCEDURAL_SEQUENCES,
    STAGES,
    SUB_SKILLS,
    build_procedural_sequence,
)
from longgame.data.tokenize import encode_all
from longgame.errors import RecipeError
from longgame.evaluation.scorers import SCORERS
from longgame.models.load import load_tokenizer
from longgame.recipe import DataSpec, ModelSpec, ProxySpec, parse_recipe
from studies.tiny_base import pretraining_texts

PROXY = ProxySpec(items_per_skill=1)
SMALL = {"items_per_skill": 4, "ood_items_per_skill": 3}


def build(sequence: str, seed: int = 0, order: Any = (), **data: Any) -> SequenceData:
    return build_procedural_sequence(DataSpec(sequence=sequence, **{**SMALL, **data}), seed, PROXY, order)


def names(examples: tuple[Example, ...]) -> Counter:
    return Counter(example.skill for example in examples)


def own(stage: str) -> set[str]:
    return {skill.name for stages in PROCEDURAL_SEQUENCES.values() for skill in stages.get(stage, ())}


def test_sub_skills_have_one_name_and_one_length_each() -> None:
    assert len(SUB_SKILLS) == sum(len(skills) for stages in (STAGES, DOMAINS) for skills in stages.values()) == 60
    assert all(0 < skill.new_tokens[0] <= skill.new_tokens[1] for skill in SUB_SKILLS.values())


def test_four_sub_skills_of_a_stage_are_familiar() -> None:
    seen = {skill.name for skills in STAGES.values() for skill in skills if skill.pretrained}
    for stages in PROCEDURAL_SEQUENCES.values():
        assert all(sum(skill.familiar for skill in skills) == 4 and len(skills) == 6 for skills in stages.values())
    for skill in itertools.chain(*DOMAINS.values()):
        assert not skill.pretrained
        assert skill.kin is None or skill.kin in seen


def test_the_base_saw_no_domain_item() -> None:
    mixture = {example.skill for example in itertools.islice(pretraining_texts(0), 2000)}
    assert not mixture & {skill.name for skills in DOMAINS.values() for skill in skills}


def test_interleaved_stages_share_two_forms_with_the_next() -> None:
    stages = list(INTERLEAVED.values())
    for first, second in itertools.combinations(range(5), 2):
        shared = set(stages[first]) & set(stages[second])
        assert sorted(skill.familiar for skill in shared) == ([False, True] if second - first == 1 else [])


@pytest.mark.parametrize("family", ["procedural-domain", "procedural-interleaved"])
def test_the_pools_of_a_family_have_the_shares_of_the_spec(family: str) -> None:
    spec = DataSpec()
    for stage in build(family).stages:
        assert len(stage.candidates) == len({example.sample_id for example in stage.candidates}) == spec.pool_size
        assert sum(bool(example.noisy) for example in stage.candidates) == round(spec.noise * spec.pool_size)
        exact = [example for example in stage.candidates if "#" in example.sample_id]
        assert len(exact) == round(spec.duplicates * spec.pool_size) // 2
        strange = sum(not SUB_SKILLS[str(example.skill)].familiar for example in stage.candidates)
        assert strange / spec.pool_size == pytest.approx(spec.unseen, abs=0.04)
        sizes = names(stage.candidates).values()
        assert max(sizes) > 2 * min(sizes)
        assert len({example.difficulty for example in stage.candidates}) == 3


@pytest.mark.parametrize("family", ["procedural-domain", "procedural-interleaved"])
def test_seeds_decide_and_nothing_else(family: str) -> None:
    assert build(family, pool_size=100, mixing=0.3) == build(family, pool_size=100, mixing=0.3)
    one, other = build(family, pool_size=100, mixing=0.3), build(family, 1, pool_size=100, mixing=0.3)
    for mine, theirs in zip(one.stages, other.stages, strict=True):
        same = {example.sample_id for example in mine.candidates} & {e.sample_id for e in theirs.candidates}
        assert len(same) < 8


@pytest.mark.parametrize(("family", "mixing"), [("procedural-domain", 0.0), ("procedural-interleaved", 0.5)])
def test_no_prompt_stands_in_two_parts_of_a_sequence(family: str, mixing: float) -> None:
    """Also between stages: a sub-skill that two stages share has other items in each."""
    sequence = build(family, pool_size=300, mixing=mixing)
    parts = [stage.candidates for stage in sequence.stages] + [stage.proxy for stage in sequence.stages]
    parts += [task.items for task in sequence.tasks]
    prompts = [{" ".join(example.prompt.split()) for example in part} for part in parts]
    for first, second in itertools.combinations(prompts, 2):
        assert not first & second


@pytest.mark.parametrize("mixing", [0.0, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("family", ["procedural-skill", "procedural-domain", "procedural-interleaved"])
def test_the_mixing_share_is_exact(family: str, mixing: float) -> None:
    size = 101
    stages = build(family, pool_size=size, mixing=mixing).stages
    foreign = round(mixing * size)
    for place, stage in enumerate(stages):
        counts = names(stage.candidates)
        assert sum(counts.values()) == size
        assert sum(count for name, count in counts.items() if name in own(stage.name)) == size - foreign
        inside = 0 < place < len(stages) - 1
        for side, share in ((place - 1, foreign - foreign // 2), (place + 1, foreign // 2)):
            if 0 <= side < len(stages):
                only_there = own(stages[side].name) - own(stage.name)
                there = sum(count for name, count in counts.items() if name in only_there)
                assert there == (share if inside else foreign)


def test_parts_of_a_mixed_pool_have_all_shares() -> None:
    for stage in build("procedural-domain", pool_size=400, mixing=0.5, noise=0.1, duplicates=0.2).stages:
        assert sum(bool(example.noisy) for example in stage.candidates) == 40
        mine = [example for example in stage.candidates if example.skill in own(stage.name)]
        theirs = [example for example in stage.candidates if example.skill not in own(stage.name)]
        for part in (mine, theirs):
            assert sum(bool(example.noisy) for example in part) == 20
            assert sum("#" in example.sample_id for example in part) == pytest.approx(20, abs=2)
            assert sum(not SUB_SKILLS[str(e.skill)].familiar for e in part) / 200 == pytest.approx(0.2, abs=0.06)
        where = [place for place, example in enumerate(stage.candidates) if example.skill not in own(stage.name)]
        assert sum(where) / len(where) == pytest.approx(199.5, abs=25)  # not heaped at one end


def test_mixing_moves_no_evaluation_and_no_proxy_item() -> None:
    sharp, soft = (
        build("procedural-interleaved", pool_size=90),
        build("procedural-interleaved", pool_size=90, mixing=0.6),
    )
    assert sharp.tasks == soft.tasks
    assert [stage.proxy for stage in sharp.stages] == [stage.proxy for stage in soft.stages]
    assert (sharp.mixing, soft.mixing) == (0.0, 0.6)
    for stage, shifted in zip(soft.stages, soft.ood, strict=True):
        assert names(stage.task.items) == dict.fromkeys(own(stage.name), 4)
        assert names(shifted.items) == dict.fromkeys(own(stage.name), 3)
        assert {item.difficulty for item in shifted.items} == {OOD}
        assert (shifted.name, shifted.stage) == (f"{stage.name}-ood", stage.name)


ORDER = ["rules", "writing", "orders", "records", "amounts"]


def test_building_in_an_order_equals_reordering() -> None:
    built = build("procedural-interleaved", order=ORDER, pool_size=60)
    assert built == reorder(build("procedural-interleaved", pool_size=60), ORDER)
    assert [task.name for task in built.tasks] == [*ORDER, *(f"{name}-ood" for name in ORDER)]


def test_order_changes_only_what_is_mixed_in() -> None:
    usual = {s.name: s for s in build("procedural-interleaved", pool_size=80, mixing=0.5).stages}
    walked = build("procedural-interleaved", order=ORDER, pool_size=80, mixing=0.5).stages
    for place, stage in enumerate(walked):
        near = [walked[side].name for side in (place - 1, place + 1) if 0 <= side < 5]
        allowed = own(stage.name).union(*map(own, near))
        assert set(names(stage.candidates)) <= allowed
        assert stage.task == usual[stage.name].task
        mine = {example.sample_id for example in stage.candidates if example.skill in own(stage.name)}
        assert mine == {e.sample_id for e in usual[stage.name].candidates if e.skill in own(stage.name)}


@pytest.mark.parametrize("family", ["procedural-domain", "procedural-interleaved"])
def test_items_fit_the_context_and_answers_their_task(family: str) -> None:
    tokenizer = load_tokenizer(ModelSpec(name="tiny"))
    sequence = build(family, 3, pool_size=150, ood_items_per_skill=10)
    for task in sequence.tasks:
        encoded = encode_all(task.items, tokenizer)
        assert max(len(item.response_ids) for item in encoded) <= task.max_new_tokens
        assert max(map(len, encoded)) <= 220
        assert set(task.scorers) <= set(SCORERS.names())
        assert ("choice" in task.scorers) == any(item.choices for item in task.items)
    lengths = [len(item) for stage in sequence.stages for item in encode_all(stage.candidates, tokenizer)]
    assert max(lengths) <= 130
    assert sum(lengths) / len(lengths) <= 60  # the skill sequence has 46


def custom(**data: Any) -> dict[str, Any]:
    stages = [
        {"name": "desk", "skills": ["extract-field", "redact"], "max_new_tokens": 90},
        {"name": "books", "skills": ["balance", "book-entry", "redact"], "scorers": ["token_accuracy"]},
    ]
    small = {"pool_size": 40, "items_per_skill": 2, "ood_items_per_skill": 1}
    return {"name": "c", "selectors": ["random"], "data": {"sequence": "procedural", "stages": stages, **small, **data}}


def test_a_sequence_of_ones_own_is_made_of_the_named_sub_skills() -> None:
    sequence = build_sequence(parse_recipe(custom(mixing=0.5)), 0)
    desk, books = sequence.stages
    assert names(desk.task.items) == {"extract-field": 2, "redact": 2}
    assert [task.name for task in sequence.tasks] == ["desk", "books", "desk-ood", "books-ood"]
    assert (desk.task.max_new_tokens, desk.task.scorers) == (90, ("token_accuracy", "exact_match", "ends"))
    assert (books.task.max_new_tokens, books.task.scorers) == (
        SUB_SKILLS["book-entry"].new_tokens[0],
        ("token_accuracy",),
    )
    assert sum(e.skill in ("balance", "book-entry") for e in desk.candidates) == 20
    assert sum(e.skill == "extract-field" for e in books.candidates) == 20
    assert build_sequence(parse_recipe(custom()), 0, order=["books", "desk"]).stages[0].name == "books"


def test_a_stage_of_many_sub_skills_of_one_kind_makes_a_pool() -> None:
    skills = [name for name, skill in SUB_SKILLS.items() if skill.familiar][:9]
    stages = [{"name": "all", "skills": skills}]
    pool = build_sequence(parse_recipe(custom(stages=stages, pool_size=120)), 0).stages[0].candidates
    assert set(names(pool)) == set(skills)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ({"stages": [{"name": "a", "skills": ["redactt"]}]}, "'a': unknown sub-skill 'redactt'. Did you mean 'redact'"),
        ({"stages": [{"name": "a", "skills": ["redact", "redact"]}]}, "names the sub-skill 'redact' twice"),
        ({"stages": [{"name": "a", "skills": ["redact"]}] * 2}, "'a' is used twice"),
        ({"stages": [{"name": "a", "train": ["f"]}]}, "'a' of sequence: procedural names `skills`"),
        ({"sequence": "files"}, "'desk' names skills, which only sequence: procedural has"),
        ({"sequence": "procedural-domain"}, "has stages of its own"),
        ({"ood": [{"name": "x", "eval": ["f"]}]}, "makes its own OOD sets"),
        ({"stages": []}, "data.sequence is 'procedural' but data.stages is empty"),
        ({"mixing": 1.0}, "'data.mixing': must be less than 1"),
        ({"mixing": 0.5, "stages": [{"name": "a", "skills": ["redact"]}]}, "the sequence has one stage"),
        (
            {"mixing": 0.5, "stages": [{"name": n, "skills": ["redact"]} for n in "ab"]},
            "stage 'b' has no sub-skill that its neighbor 'a' lacks",
        ),
    ],
)
def test_what_makes_no_sequence_is_refused(data: dict[str, Any], what: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build_sequence(parse_recipe(custom(**data)), 0)
    assert what in str(caught.value)
