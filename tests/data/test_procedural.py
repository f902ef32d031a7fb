from __future__ import annotations

import dataclasses
import random
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longgame.data.examples import content_id
from longgame.data.synthetic import (
    LEVELS,
    OOD,
    PROCEDURAL_SEQUENCES,
    STAGES,
    SubSkill,
    build_procedural_sequence,
    unseen_skills,
)
from longgame.data.synthetic.base import Draft, reasoning_gym
from longgame.data.synthetic.pool import apportion, is_for_evaluation
from longgame.errors import DataError
from longgame.recipe import DataSpec, ProxySpec
from longgame.seeding import generator
from studies.tiny_base import pretraining_texts

PROXY = ProxySpec(items_per_skill=2)


@pytest.fixture(scope="module")
def sequence():
    return build_procedural_sequence(DataSpec(), 0, PROXY)


def test_stages_stand_in_the_papers_order_with_unique_sub_skills(sequence):
    assert [stage.name for stage in sequence.stages] == ["general", "math", "code", "reasoning", "safety"]
    names = [skill.name for skills in STAGES.values() for skill in skills]
    assert len(names) == len(set(names)) == 30
    assert all(1 <= sum(not skill.pretrained for skill in skills) <= 2 for skills in STAGES.values())


def test_same_seed_gives_the_same_items_and_another_seed_others(sequence):
    again = build_procedural_sequence(DataSpec(), 0, PROXY)
    assert again == sequence
    other = build_procedural_sequence(DataSpec(), 1, PROXY)
    for mine, theirs in zip(sequence.stages, other.stages, strict=True):
        for part in ("candidates", "proxy"):
            a = {example.sample_id for example in getattr(mine, part)}
            b = {example.sample_id for example in getattr(theirs, part)}
            assert len(a & b) < 0.05 * len(a)
        assert {e.sample_id for e in mine.task.items} != {e.sample_id for e in theirs.task.items}


def test_pool_and_validation_streams_do_not_depend_on_each_other():
    """Validation items are drawn first, so a larger pool leaves every scored item as it is."""
    small = build_procedural_sequence(DataSpec(pool_size=40), 3, PROXY)
    large = build_procedural_sequence(DataSpec(pool_size=80), 3, PROXY)
    assert [task.items for task in small.tasks] == [task.items for task in large.tasks]


def test_pool_validation_ood_and_proxy_share_no_prompt(sequence):
    for stage, shifted in zip(sequence.stages, sequence.ood, strict=True):
        parts = [stage.candidates, stage.task.items, shifted.items, stage.proxy]
        prompts = [{example.prompt for example in part} for part in parts]
        for left in range(4):
            for right in range(left):
                assert not prompts[left] & prompts[right]


def test_pool_shares_are_what_the_spec_says(sequence):
    spec = DataSpec()
    for stage in sequence.stages:
        pool = stage.candidates
        assert len(pool) == spec.pool_size == len({example.sample_id for example in pool})
        assert sum(bool(example.noisy) for example in pool) == round(spec.noise * spec.pool_size)
        assert all(example.noisy is not None for example in pool)
        exact = sum("#" in example.sample_id for example in pool)
        assert exact == round(spec.duplicates * spec.pool_size) // 2
        originals = [example for example in pool if "#" not in example.sample_id]
        share = sum(example.skill in unseen_skills() for example in originals) / len(originals)
        assert share == pytest.approx(spec.unseen, abs=0.02)
        levels = Counter(example.difficulty for example in pool)
        assert [levels[level] / len(pool) for level in LEVELS] == pytest.approx([0.35, 0.40, 0.25], abs=0.03)


def test_seed_decides_which_sub_skill_is_large(sequence):
    largest = set()
    for seed in range(6):
        pool = build_procedural_sequence(DataSpec(pool_size=200), seed, PROXY).stages[0].candidates
        counts = Counter(example.skill for example in pool if example.skill not in unseen_skills())
        assert max(counts.values()) > 2 * min(counts.values())
        largest.add(counts.most_common(1)[0][0])
    assert len(largest) > 1


def test_near_copies_keep_the_response(sequence):
    for stage in sequence.stages:
        pool = stage.candidates
        by_response = {}
        for example in pool:
            by_response.setdefault((example.response, example.skill), []).append(example)
        near = 0
        for example in pool:
            for other in by_response[example.response, example.skill]:
                longer = len(example.prompt) - len(other.prompt)
                if other.prompt in example.prompt and 0 < longer <= len("Please answer. "):
                    near += 1
                    break
        assert near == pytest.approx(round(DataSpec().duplicates * len(pool)) / 2, abs=2)


def test_only_damaged_responses_lack_the_answer(sequence):
    for stage in sequence.stages:
        for example in stage.candidates:
            assert example.sample_id.partition("#")[0] == content_id(example.prompt, example.response)
            assert example.response.strip()
            if not example.noisy:
                assert example.response.endswith(example.answer)
        clean = {(e.prompt, e.response) for e in stage.candidates if not e.noisy}
        assert not clean & {(e.prompt, e.response) for e in stage.candidates if e.noisy}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"noise": 0.0}, lambda pool: not any(e.noisy for e in pool)),
        ({"noise": 1.0}, lambda pool: all(e.noisy for e in pool)),
        ({"unseen": 0.0}, lambda pool: not any(e.skill in unseen_skills() for e in pool)),
        ({"unseen": 1.0}, lambda pool: all(e.skill in unseen_skills() for e in pool)),
        ({"duplicates": 0.0}, lambda pool: len({e.prompt for e in pool}) == len(pool)),
        ({"duplicates": 0.9}, lambda pool: len(pool) == 60),
        ({"pool_size": 2, "duplicates": 0.9}, lambda pool: len(pool) == 2),
    ],
)
def test_extreme_shares_are_honoured(change, expected):
    sequence = build_procedural_sequence(DataSpec(**{"pool_size": 60, **change}), 1, PROXY)
    assert all(expected(stage.candidates) for stage in sequence.stages)


def test_every_task_covers_every_sub_skill_equally(sequence):
    for stage, shifted in zip(sequence.stages, sequence.ood, strict=True):
        names = {skill.name for skill in STAGES[stage.name]}
        assert Counter(e.skill for e in stage.task.items) == dict.fromkeys(names, 10)
        assert Counter(e.skill for e in shifted.items) == dict.fromkeys(names, 6)
        assert Counter(e.skill for e in stage.proxy) == dict.fromkeys(names, 2)
        assert {e.difficulty for e in shifted.items} == {OOD}
        assert (shifted.name, shifted.kind) == (f"{stage.name}-ood", "ood")


def test_ood_items_are_larger_than_the_hard_ones():
    for skills in STAGES.values():
        for skill in skills:
            size = {}
            for level in ("hard", OOD):
                rng = generator(0, "test", skill.name, level)
                examples = [skill.example(rng, level) for _ in range(60)]
                size[level] = np.mean([len(e.prompt) + len(e.response) for e in examples])
            assert size[OOD] > size["hard"], skill.name


def test_the_base_mixture_never_holds_an_unseen_sub_skill():
    """By name, and by the wording that the unseen sub-skills' prompts open with."""
    mixture = list(islice(pretraining_texts(0), 6000))
    skills = {example.skill for example in mixture}
    seen = {skill.name for group in STAGES.values() for skill in group if skill.pretrained}
    assert skills == {*seen, None}
    text = "\n".join(f"{example.prompt}\n{example.response}" for example in mixture)
    marks = ["past tense", "JSON", "equation", "satisfies", "nearest", "rounded", ".append(", "Remove all numbers"]
    for mark in [*marks, "from first to last", "married", "scam", "High risk"]:
        assert mark not in text


def test_the_base_mixture_depends_on_its_seed_alone():
    first, again, other = (list(islice(pretraining_texts(seed), 300)) for seed in (0, 0, 1))
    assert first == again
    assert [example.sample_id for example in first] != [example.sample_id for example in other]


def test_an_exhausted_sub_skill_is_an_error_that_names_it(monkeypatch):
    poor = SubSkill("poor", lambda rng, _: Draft(f"Say {rng.integers(40)}.", "yes", "yes"), (8, 8))
    monkeypatch.setitem(PROCEDURAL_SEQUENCES, "procedural-skill", {"general": (poor,)})
    spec = DataSpec(items_per_skill=3, ood_items_per_skill=3, pool_size=4, unseen=0.0, duplicates=0.0)
    build_procedural_sequence(spec.model_copy(update={"noise": 0.0, "pool_size": 20}), 0, PROXY)
    with pytest.raises(DataError, match=r"sub-skill 'poor' \(\w+\) gave no new prompt .* smaller data.pool_size"):
        build_procedural_sequence(spec.model_copy(update={"noise": 0.0, "pool_size": 60}), 0, PROXY)


def test_global_random_generators_stay_untouched():
    state, legacy = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    build_procedural_sequence(DataSpec(pool_size=40), 5, PROXY)
    assert random.getstate() == state
    assert (np.random.get_state()[1] == legacy).all()  # noqa: NPY002


def test_quality_is_graded_and_errs(sequence):
    """Neither a constant nor the damage itself: AUC near .8, and hardly a tie."""
    pools = [build_procedural_sequence(DataSpec(pool_size=800, noise=0.3), seed, PROXY) for seed in (0, 1)]
    examples = [example for pool in pools for stage in pool.stages for example in stage.candidates]
    intact, damaged = ([e.quality for e in examples if e.noisy is noisy] for noisy in (False, True))
    area = np.mean(np.array(intact)[:, None] > np.array(damaged))
    assert area == pytest.approx(0.8, abs=0.02)
    assert 0 < min(intact + damaged) < max(intact + damaged) < 1
    first = [example for stage in pools[0].stages for example in stage.candidates]
    assert len({e.quality for e in first}) == len({e.sample_id.partition("#")[0] for e in first})
    by_level = [np.mean([e.quality for e in examples if e.difficulty == level]) for level in LEVELS]
    assert by_level == sorted(by_level, reverse=True)
    assert {item.quality is None for stage in sequence.stages for item in stage.task.items} == {True}


def test_evaluation_prompts_meet_no_pool_and_no_corpus(sequence):
    other = build_procedural_sequence(DataSpec(pool_size=400), 7, PROXY)
    evaluation = {item.prompt for task in sequence.tasks for item in task.items}
    training = {item.prompt for stage in other.stages for item in (*stage.candidates, *stage.proxy)}
    corpus = {item.prompt for item in islice(pretraining_texts(3), 5000)}
    assert all(map(is_for_evaluation, evaluation))
    assert not any(map(is_for_evaluation, corpus))
    assert not evaluation & (training | corpus)
    assert 0.15 < np.mean([is_for_evaluation(f"{number}?") for number in range(2000)]) < 0.25


@given(st.integers(0, 5000), st.lists(st.floats(0.1, 50), min_size=1, max_size=8))
def test_apportion_sums_up_within_one_of_each_share(total, weights):
    parts = apportion(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - total * weight / sum(weights)) < 1 + 1e-6


def test_examples_are_frozen(sequence):
    with pytest.raises(dataclasses.FrozenInstanceError):
        sequence.stages[0].candidates[0].prompt = "changed"


def test_a_dataset_of_automata_works_though_its_library_loads_later():
    dataset = reasoning_gym().create_dataset("game_of_life", seed=0, size=1)
    assert dataset.score_answer(dataset[0]["answer"], dataset[0]) == 1
