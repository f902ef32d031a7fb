"""Scorers judged on evidence written by hand, and the contract that a scorer of one's own must keep."""

from __future__ import annotations

import ast
import inspect
import math

import numpy as np
import pytest
import reasoning_gym
from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import DATASETS

from longgame.data.examples import Example
from longgame.data.formats import read_row
from longgame.errors import DataError, PluginError, RecipeError
from longgame.evaluation.scorers import (
    NEEDS,
    SCORERS,
    Choice,
    Evidence,
    Scorer,
    build_scorer,
    check_scorer,
    parse_scorer,
)
from longgame.evaluation.verifiers import PURE_VERIFIERS, reward, verified


def nll(*values: float) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)


def test_token_accuracy_is_the_share_of_right_tokens() -> None:
    evidence = Evidence(response=(nll(1, 1, 1, 1), np.array([True, False, True, True])))
    assert build_scorer("token_accuracy").score(Example.make("p", "r"), evidence) == 0.75


def test_content_scorers_leave_out_the_end_of_the_turn() -> None:
    right = np.array([True, False, False, True])
    evidence = Evidence(response=(nll(0, math.log(4), 9, 9), right), end_tokens=2)
    scores = {name: build_scorer(name).score(Example.make("p", "r"), evidence) for name in ("token_accuracy", "ends")}
    assert scores == {"token_accuracy": 0.5, "ends": 0}  # of two end tokens one is wrong
    assert build_scorer("likelihood").score(Example.make("p", "r"), evidence) == pytest.approx(0.5)
    ended = Evidence(response=(nll(1, 1), np.array([False, True])), end_tokens=1)
    assert build_scorer("ends").score(Example.make("p", "r"), ended) == 1


def test_ends_measures_no_item_of_tokens() -> None:
    scorer = build_scorer("ends")
    assert scorer.measures(Example.make("p", "r"))
    assert not scorer.measures(read_row({"input_ids": [5, 6]})[0])


def test_likelihood_is_the_geometric_mean_of_token_probabilities() -> None:
    evidence = Evidence(response=(nll(-math.log(0.5), -math.log(0.08)), np.array([True, False])))
    assert build_scorer("likelihood").score(Example.make("p", "r"), evidence) == pytest.approx(0.2)


def test_exact_match_reads_the_generation() -> None:
    scorer = build_scorer("exact_match")
    example = Example.make("p", "3 + 4 = 7", answer="7")
    assert scorer.score(example, Evidence(generated="so 7")) == 1
    assert scorer.score(example, Evidence(generated="so 8")) == 0
    assert not scorer.measures(Example.make("p", "r"))
    assert not scorer.measures(Example.make("p", "r", answer="assert f()\nassert g()"))


COLOURS = Example.make("p", "B. blue", answer="B", choices=("red", "blue", "dark green"))


@pytest.mark.parametrize(
    ("form", "response", "expected"),
    [
        ("letter", "B. blue", ["A", "B", "C"]),
        ("text", "B. blue", ["red", "blue", "dark green"]),
        ("letter_text", "blue", ["A. red", "B. blue", "C. dark green"]),
        ("auto", "B. blue", ["A. red", "B. blue", "C. dark green"]),
        ("auto", "B", ["A", "B", "C"]),
        ("auto", "Blue.", ["red", "blue", "dark green"]),
        ("auto", "It is the sky, so blue.", ["red", "blue", "dark green"]),
    ],
)
def test_options_take_the_form_asked_for_or_that_of_the_response(form, response, expected) -> None:
    example = Example.make("p", response, answer="B", choices=COLOURS.choices)
    assert list(Choice(form=form).options(example)) == expected


def test_normalisation_decides_between_short_and_long_options() -> None:
    options = (nll(2.0), nll(1.5, 1.5), nll(0.9, 0.9, 0.9))  # sums 2, 3, 2.7; per token 2, 1.5, 0.9
    chosen = {}
    for normalise in ("none", "tokens", "characters"):
        scorer = Choice(form="text", normalise=normalise)
        chosen[normalise] = [
            scorer.score(Example.make("p", "r", answer=letter, choices=COLOURS.choices), Evidence(options=options))
            for letter in "ABC"
        ]
    # per character: 2/3, 3/4, 2.7/10
    assert chosen == {"none": [1, 0, 0], "tokens": [0, 0, 1], "characters": [0, 0, 1]}


def test_tied_options_share_the_point() -> None:
    evidence = Evidence(options=(nll(1.0), nll(1.0), nll(3.0)))
    scores = [
        Choice().score(Example.make("p", letter, answer=letter, choices=COLOURS.choices), evidence) for letter in "ABC"
    ]
    assert scores == [0.5, 0.5, 0]


def test_choice_credits_any_right_option() -> None:
    options = (nll(2.0), nll(1.0), nll(1.0))
    scored = {
        answer: Choice().score(
            Example.make("p", "C", answer=answer, choices=COLOURS.choices), Evidence(options=options)
        )
        for answer in (("A", "C"), ("A", "blue", "C"), ("A", "red"))
    }
    assert list(scored.values()) == [0.5, 1, 0]
    example = Example.make("p", "C", answer=("A", "C"), choices=COLOURS.choices)
    assert list(Choice().options(example)) == ["A", "B", "C"]


def test_choice_refuses_an_answer_that_is_no_option() -> None:
    scorer = build_scorer("choice")
    assert scorer.measures(COLOURS)
    assert not scorer.measures(Example.make("p", "r", answer="7"))
    assert not scorer.measures(Example.make("p", "r", choices=("a", "b")))
    odd = Example.make("p", "Sure", answer="comply", choices=("Sure", "Sorry"))
    with pytest.raises(DataError, match=rf"{odd.sample_id}.*'comply'.*Sure"):
        scorer.options(odd)


@pytest.fixture(scope="module")
def procedural() -> list[Example]:
    """Items of three data sets, one with many right answers (prime_factorization) and one with partial credit."""
    items = []
    for name in ("prime_factorization", "basic_arithmetic", "word_sorting"):
        entry = reasoning_gym.create_dataset(name, size=1, seed=3)[0]
        verifier = {"library": "reasoning_gym", "dataset": name, "entry": entry}
        items.append(Example.make(entry["question"], entry["answer"], answer=entry["answer"], verifier=verifier))
    return items


def test_library_answer_earns_full_reward_if_marked(procedural) -> None:
    for example in procedural:
        for text in (example.response, f"Well. The answer is {example.response}", f"#### {example.response}"):
            assert reward(example, text) == 1
            assert build_scorer("exact_match").score(example, Evidence(generated=text)) == 1
            assert build_scorer("verifier").score(example, Evidence(generated=text)) == 1


def test_the_verifier_accepts_what_a_text_comparison_would_not(procedural) -> None:
    factors = procedural[0]
    other = " × ".join(reversed(factors.response.split(" × ")))
    assert other != factors.answer
    assert verified(factors, other)


def test_partial_credit_counts_for_verifier_only(procedural) -> None:
    words = procedural[2]
    turned = ", ".join(reversed(words.response.split(", ")))
    assert 0 < reward(words, turned) < 1
    assert build_scorer("exact_match").score(words, Evidence(generated=turned)) == 0
    assert build_scorer("verifier").score(words, Evidence(generated=turned)) == reward(words, turned)


def test_unparsable_answer_earns_0_broken_entry_raises() -> None:
    entry = reasoning_gym.create_dataset("prime_factorization", size=1, seed=0)[0]
    verifier = {"library": "reasoning_gym", "dataset": "prime_factorization", "entry": entry}
    assert reward(Example.make("p", entry["answer"], verifier=verifier), "((((") == 0
    assert reward(Example.make("p", entry["answer"], verifier=verifier), "  ") == 0
    broken = Example.make("p", entry["answer"], verifier={**verifier, "entry": {"answer": "a × b"}})
    with pytest.raises(DataError, match=rf"{broken.sample_id}.*prime_factorization.*own"):
        reward(broken, "2 × 3")


@pytest.mark.parametrize(
    ("verifier", "message"),
    [
        ({"dataset": "countdown"}, "lacks library, entry"),
        ({"library": "other", "dataset": "d", "entry": {}}, "unknown verifier library 'other'"),
        ({"library": "reasoning_gym", "dataset": "chain_sm", "entry": {}}, "Did you mean 'chain_sum'"),
        ({"library": "reasoning_gym", "dataset": "composite", "entry": {}}, "'composite' is not one of the 77"),
        ({"library": "reasoning_gym", "dataset": "lcm", "entry": {"answer": 3}}, "no text as `answer`"),
    ],
)
def test_a_wrong_verifier_is_explained(verifier, message) -> None:
    with pytest.raises(DataError, match=message):
        reward(Example.make("p", "r", verifier=verifier), "1")


EVALUATES = {"eval", "exec", "compile", "parse_expr", "sympify", "literal_eval", "import_module", "__import__"}


def test_no_allowed_verifier_evaluates_a_text() -> None:
    for name in sorted(PURE_VERIFIERS):
        cls = DATASETS[name][0]
        if cls.score_answer is ProceduralDataset.score_answer:  # compares two texts
            continue
        tree = ast.parse(inspect.getsource(inspect.getmodule(cls)))
        calls = {
            getattr(call.func, "attr", getattr(call.func, "id", ""))
            for call in ast.walk(tree)
            if isinstance(call, ast.Call)
        }
        calls -= {"compile"} if "re.compile" in ast.unparse(tree) else set()
        assert not calls & EVALUATES, name


@pytest.mark.parametrize(
    "name", ["bitwise_arithmetic", "n_queens", "puzzle24", "string_insertion", "simple_integration"]
)
def test_a_verifier_that_evaluates_is_refused_and_runs_nothing(name, tmp_path) -> None:
    mark = tmp_path / "mark"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    entry = {"answer": code, "metadata": {"problem": code, "integrand": code, "variable": "x"}}
    item = Example.make("p", "r", verifier={"library": "reasoning_gym", "dataset": name, "entry": entry})
    for scorer in ("exact_match", "verifier"):
        with pytest.raises(DataError, match=f"item {item.sample_id}: the verifier of '{name}' is not one of"):
            build_scorer(scorer).measures(item)
    with pytest.raises(DataError, match="which data must not do"):
        reward(item, code)
    assert not mark.exists()


def test_an_answer_beyond_all_measure_earns_nothing(procedural) -> None:
    assert reward(procedural[1], "9" * 30_000) == 0
    thought = f"<think>It is 3.</think> The answer is {procedural[1].response}"
    assert reward(procedural[1], thought) == 1
    assert reward(procedural[1], f"<think>{procedural[1].response}") == 0


def test_registered_scorers_follow_the_contract() -> None:
    for name in SCORERS.names():
        if name == "lm_eval":
            continue  # tests/evaluation/test_harness.py, where the harness is installed
        scorer = build_scorer({"judge": "judge(model=some-judge)"}.get(name, name))
        assert scorer.name == name
        assert set(scorer.requires) <= set(NEEDS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("choice", ("choice", {})),
        ("choice()", ("choice", {})),
        ("choice(form=letter, normalise=none)", ("choice", {"form": "letter", "normalise": "none"})),
        ("a/b (1)/x.py:Mine", ("a/b (1)/x.py:Mine", {})),
        ("a (1)/x.py:Mine(k=2, flag=true, share=0.5)", ("a (1)/x.py:Mine", {"k": 2, "flag": True, "share": 0.5})),
    ],
)
def test_parse_scorer(text, expected) -> None:
    assert parse_scorer(text) == expected


@pytest.mark.parametrize("text", ["choice(letter)", "choice(=1)", "choice(a=1, a=2)", "(a=1)", "choice(a=[)"])
def test_unreadable_parameters_are_refused(text) -> None:
    with pytest.raises(RecipeError, match="scorer"):
        parse_scorer(text)


def test_wrong_names_and_parameters_are_explained() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'exact_match'"):
        build_scorer("exact_mach")
    with pytest.raises(PluginError, match="unknown form 'leter'. Did you mean 'letter'"):
        build_scorer("choice(form=leter)")
    with pytest.raises(RecipeError, match="scorer 'token_accuracy' has no parameter 'k'. It takes none"):
        build_scorer("token_accuracy(k=1)")


def test_a_scorer_that_breaks_the_contract_is_refused() -> None:
    def made(**body: object) -> type:
        return type("Mine", (Scorer,), {"name": "mine", **body})

    def judge(self, example, evidence):
        return 1.0

    check_scorer("mine", made(score=judge))
    for body, message in (
        ({}, "does not define score"),
        ({"score": judge, "requires": "response"}, "is a string"),
        ({"score": judge, "requires": ("respnse",)}, "Did you mean 'response'"),
        ({"score": judge, "requires": ("options",)}, "does not define options"),
    ):
        with pytest.raises(PluginError, match=message):
            check_scorer("mine", made(**body))
    with pytest.raises(PluginError, match="Derive it from"):
        check_scorer("mine", object)


def test_evidence_that_was_not_required_cannot_be_read() -> None:
    for name in ("token_nll", "token_correct", "generation", "option_nll"):
        with pytest.raises(PluginError, match="without naming it in `requires`"):
            getattr(Evidence(), name)
    with pytest.raises(PluginError, match="random stream"):
        Evidence().generator()
