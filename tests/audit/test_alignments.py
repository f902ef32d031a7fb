"""Alignments with items of today's stage and of earlier ones: what an audit gives, and who refuses."""

import numpy as np
import pytest

from longgame.data.examples import EARLIER_ITEMS, earlier_items
from longgame.errors import RecipeError
from longgame.quadratic.learner import QuadraticLearner
from support.quadratic_audit import recipe, walk


def cosines(learner: QuadraticLearner, pool, items) -> np.ndarray:
    """Mean cosine of each gradient with the items' by sub-skill, one item after the other."""
    unit = lambda row: row / np.linalg.norm(row)  # noqa: E731
    gradient = lambda a, y: unit((a @ learner.theta - y) * a)  # noqa: E731
    groups: dict[str, list[np.ndarray]] = {}
    for row, example in enumerate(items.examples):
        groups.setdefault(example.skill, []).append(gradient(items.info["features"][row], items.info["label"][row]))
    ours = [gradient(a, y) for a, y in zip(pool.info["features"], pool.info["label"], strict=True)]
    return np.array([np.mean([np.mean([row @ item for item in group]) for group in groups.values()]) for row in ours])


def test_target_alignment_is_that_of_the_stage_itself() -> None:
    learner = QuadraticLearner(recipe(), 0)
    learner.theta = learner.theta + 0.1
    for number in range(2):
        learner.stages_trained = number
        stage = learner.world.sequence.stages[number]
        signals = learner.signals(stage.pool, ("target_alignment",))
        expected = cosines(learner, stage.pool, stage.target_pool)
        np.testing.assert_allclose(signals["target_alignment"].mean(axis=1), expected, atol=1e-6)


def test_earlier_alignment_is_0_at_first_and_grows_with_stages() -> None:
    learner = QuadraticLearner(recipe(), 0)
    learner.theta = learner.theta + 0.1
    stages = learner.world.sequence.stages
    pool = stages[0].pool
    assert learner.signals(pool, ("earlier_alignment", "loss"))["earlier_alignment"].tolist() == [[0.0, 0.0]] * len(
        pool
    )
    learner.stages_trained = 2
    halves = learner.signals(pool, ("earlier_alignment",))["earlier_alignment"]
    items = earlier_items(stages[:2])
    assert abs(np.corrcoef(halves.mean(axis=1), cosines(learner, pool, items))[0, 1]) > 0.9
    assert halves.std() > 0


def test_earlier_items_are_a_fixed_sample_of_each_stage() -> None:
    stages = QuadraticLearner(recipe(), 0).world.sequence.stages
    assert earlier_items(stages[:0]) is None
    first, both = earlier_items(stages[:1]), earlier_items(stages[:2])
    count = min(EARLIER_ITEMS, len(stages[0].pool))
    assert len(first) == count
    assert both.ids[:count] == first.ids
    assert {*both.ids[count:]} <= {*stages[1].pool.ids}
    assert len({*both.ids}) == len(both)


def test_outside_an_audit_earlier_alignment_is_refused() -> None:
    learner = QuadraticLearner(recipe(), 0)
    learner.source.earlier = learner.source.target = None
    pool = learner.world.sequence.stages[0].pool
    with pytest.raises(RecipeError, match="only an audit knows the candidates of earlier stages"):
        learner.signals(pool, ("earlier_alignment",))
    with pytest.raises(RecipeError, match="compares with a target set, but there is none"):
        learner.signals(pool, ("target_alignment",))


def test_an_audit_walks_all_added_terms_of_lhas_with_replay(tmp_path) -> None:
    form = {
        "name": "lhas", "utility": "excess_loss", "target_weight": 1, "earlier_weight": 1, "gradient_power": 1,
        "drop_conflicts": True, "replay": 0.2,
    }  # fmt: skip
    run = walk(tmp_path / "run", selectors=["random", form], rounds="step")[0]
    results = run.results[run.results.selector != "random"]
    assert not results[results.kind == "score"].value.isna().any()
    random = run.results[run.results.selector == "random"]
    tokens = (
        [part[part.name == "selected_tokens"].value.sum() for part in (results, random)] if "name" in results else []
    )
    assert not tokens or abs(tokens[0] - tokens[1]) <= 0.05 * tokens[1]
