import re

import pytest

from longgame.report.markdown import scorecard_markdown
from longgame.report.words import base_models, run_facts, seeds_caveat


@pytest.fixture(scope="module")
def text(card, results, recipe, environment):
    return scorecard_markdown(card, results, recipe, environment)


def tables(text):
    block = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            block.append(line)
        elif block:
            yield block
            block = []


def cells(line):
    return len(re.findall(r"(?<!\\)\|", line)) - 1


def test_every_row_has_the_cells_of_its_heading(text):
    found = list(tables(text))
    assert len(found) >= 9
    for block in found:
        assert {cells(line) for line in block} == {cells(block[0])}
        assert len(block) > 2


def test_names_stay_text(text):
    before_recipe = text.partition("## Recipe")[0]
    assert "<script>" not in before_recipe
    assert "<b>" not in before_recipe
    assert r"a\|b &lt;script&gt;alert('x')&lt;/script&gt; \*\_\`" in before_recipe


def test_both_scorers_stages_sub_skills_meanings_and_facts_are_there(text):
    for heading in (
        "# Scorecard: synthetic",
        "## Scorecard, token accuracy (primary)",
        "## Scorecard, exact match",
        "## By stage, exact match",
        "## By sub-skill, token accuracy (primary)",
        "## Diagnostics of selection and updates",
        "## Cost per trial",
        "## Notes",
    ):
        assert heading in text.splitlines()
    assert "- **forgetting**: " in text
    assert "- seeds: 5 (0, 1, 2, 3, 4)" in text
    assert "The base model is the same in all seeds" in text
    assert "**ahead**: *myopic*. against random" in text


def test_equal_runs_give_equal_text(text, card, results, recipe, environment):
    assert scorecard_markdown(card, results, recipe, environment) == text


def test_seeds_that_share_base_models_are_told_to_make_intervals_too_narrow(recipe):
    def told(bases):
        return seeds_caveat(recipe.model_copy(update={"model": recipe.model.model_copy(update={"per_seed": bases})}))

    assert "5 seeds share 2 base models, the intervals are too narrow" in told(("a", "b"))
    assert "The intervals cover such base models" in told(tuple("abcde"))
    assert "The base model is the same in all seeds" in told(("a", "a"))


def test_only_base_models_that_the_seeds_start_from_are_named(recipe, results, environment):
    bases = tuple("abcdefgh")
    taken = recipe.model_copy(
        update={"seeds": (9, 2), "model": recipe.model.model_copy(update={"per_seed": bases})}
    )  # a seed takes the base at its number, counted round
    assert base_models(taken) == ["b", "c"]
    assert dict(run_facts(taken, results, environment))["model"] == "b, c, lora"
    assert "one of 2 base models" in seeds_caveat(taken)
