"""MC1, MC2, MMLU's letters and GSM8K against hand-computed values and slow implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from longgame.data.examples import Example, Task
from longgame.data.tokenize import encode
from longgame.errors import DataError, PluginError
from longgame.evaluation.benchmarks import compared, gsm_answer, true_options
from longgame.evaluation.evaluator import Evaluator
from longgame.evaluation.scorers import Evidence, build_scorer

ANSWERS = Example.make("is it so", "no", answer=("no", "B"), choices=("yes", "maybe", "no", "never"))


def evidence(*probabilities: float) -> Evidence:
    return Evidence(options=tuple(np.array([-math.log(value)]) for value in probabilities))


def test_mc2_is_the_share_of_probability_of_the_true_answers() -> None:
    assert true_options(ANSWERS) == [2, 1]
    assert build_scorer("mc2").score(ANSWERS, evidence(0.1, 0.2, 0.3, 0.2)) == pytest.approx(0.5 / 0.8)


def test_mc1_leaves_out_the_other_true_answers() -> None:
    scorer = build_scorer("mc1")
    assert list(scorer.options(ANSWERS)) == ["yes", "no", "never"]
    assert scorer.score(ANSWERS, evidence(0.1, 0.3, 0.2)) == 1
    assert scorer.score(ANSWERS, evidence(0.4, 0.3, 0.2)) == 0
    assert scorer.score(ANSWERS, evidence(0.3, 0.3, 0.3)) == pytest.approx(1 / 3)


def test_mc2_of_very_unlikely_options_is_no_nan() -> None:
    unlikely = Evidence(options=tuple(np.full(1, value) for value in (9000.0, 9001.0, 9000.0, 9001.0)))
    expected = (1 + math.exp(-1)) / (2 + 2 * math.exp(-1))
    assert build_scorer("mc2").score(ANSWERS, unlikely) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (Example.make("p", "no", answer="perhaps", choices=("yes", "no")), "none of its choices"),
        (Example.make("p", "no", answer=("yes", "no"), choices=("yes", "no")), "all of its 2 choices are true"),
    ],
)
def test_contradictory_items_are_named(item, message) -> None:
    with pytest.raises(DataError, match=message):
        build_scorer("mc2").score(item, evidence(0.5, 0.5))


def test_unknown_values_are_explained() -> None:
    for text in ("mc1(normalise=words)", "mc2(normalise=words)", "gsm8k(form=lax)"):
        with pytest.raises(PluginError, match="Known:"):
            build_scorer(text)


def slow_log_likelihoods(model, tokenizer, example, texts) -> list[tuple[float, int]]:
    """Summed log-likelihood and number of content tokens of each text, one forward pass each."""
    values = []
    for text in texts:
        encoded = encode(Example.make(example.prompt, text), tokenizer, 10**6)
        ids = np.concatenate([encoded.prompt_ids, encoded.response_ids]).astype(np.int64)
        start, stop = len(encoded.prompt_ids), len(ids) - encoded.end_tokens
        with torch.no_grad():
            logits = model(torch.from_numpy(ids)[None]).logits[0].double().log_softmax(-1)
        values.append((sum(float(logits[t - 1, ids[t]]) for t in range(start, stop)), stop - start))
    return values


CHOICES = (
    Example.make("which? A. red B. blue", "B", answer="B", choices=("red", "blue"), skill="two"),
    Example.make("which one? A. red B. dark blue C. green", "A", answer="A", choices=("red", "dark blue", "green")),
    Example.make("say A. yes B. no C. so D. to", "C", answer="C", choices=("yes", "no", "so", "to"), skill="two"),
)
TRUE = (
    Example.make("is it", "no", answer=("no", "never"), choices=("yes", "no", "never", "always")),
    Example.make("was it so", "yes it was", answer="yes it was", choices=("yes it was", "no", "it can be")),
)
FORMS = {
    "choice(form=letter, normalise=none)": lambda sums, n, texts: sums,
    "choice(form=text, normalise=none)": lambda sums, n, texts: sums,
    "choice(form=text, normalise=characters)": lambda sums, n, texts: sums / [len(text) for text in texts],
    "choice(form=text)": lambda sums, n, texts: sums / n,
}


@pytest.mark.parametrize("name", FORMS)
def test_mmlu_by_letter_and_content_equals_a_slow_one(model, tokenizer, name) -> None:
    scores = Evaluator(model, tokenizer, pad_token_id=0).score([Task("mmlu", CHOICES, scorers=(name,))])
    right: dict[str, list[bool]] = {}
    for item in CHOICES:
        texts = ["ABCD"[n] for n in range(len(item.choices))] if "letter" in name else list(item.choices)
        sums, n = map(np.array, zip(*slow_log_likelihoods(model, tokenizer, item, texts), strict=True))
        best = int(np.argmax(FORMS[name](sums, n, texts)))
        right.setdefault(item.skill or "all", []).append("ABCD"[best] == item.answer)
    assert {score.sub_skill: score.value for score in scores} == {
        skill: pytest.approx(100 * np.mean(values)) for skill, values in right.items()
    }


@pytest.mark.parametrize("normalise", ["none", "tokens", "characters"])
def test_truthfulqa_equals_a_slow_implementation(model, tokenizer, normalise) -> None:
    names = (f"mc1(normalise={normalise})", f"mc2(normalise={normalise})")
    scores = Evaluator(model, tokenizer, pad_token_id=0).score([Task("truthful", TRUE, scorers=names)])
    first, second = [], []
    for item in TRUE:
        values = []
        for text, (total, n) in zip(
            item.choices, slow_log_likelihoods(model, tokenizer, item, item.choices), strict=True
        ):
            values.append(total / {"none": 1, "tokens": n, "characters": len(text)}[normalise])
        true = [item.choices.index(text) for text in np.atleast_1d(item.answer)]
        first.append(all(values[true[0]] > values[n] for n in range(len(values)) if n not in true))
        second.append(sum(math.exp(values[n]) for n in true) / sum(map(math.exp, values)))
    assert [score.value for score in scores] == [
        pytest.approx(100 * np.mean(first)),
        pytest.approx(100 * np.mean(second), abs=1e-3),
    ]


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("9 * 2 = 18\n#### 18", "18", "18"),
        ("#### $1,234.", None, "$1,234."),
        ("#### 1,234.", "1,234.", "1,234."),
        ("It costs $18 in all.", None, "$18"),
        ("18 dollars", None, "18"),
        ("5 apples", None, "5"),
        ("#### -3 degrees", "-3", "-3"),
        ("#### 18\nQuestion 2: 7", "18", "7"),
        ("#### 18\nQuestion: 7", "18", "18"),
        ("none", None, None),
        ("", None, None),
    ],
)
def test_gsm8k_reads_both_forms(text, strict, flexible) -> None:
    assert (gsm_answer(text, "strict"), gsm_answer(text, "flexible")) == (strict, flexible)


def test_gsm8k_ignores_commas_dollars_and_a_period() -> None:
    item = Example.make("q", "#### 1,234", answer="1234")
    for text, strict, flexible in (
        ("#### 1,234", 1, 1), ("#### 1234.", 1, 1), ("so $1,234.", 0, 1), ("#### 1234.0", 0, 0), ("#### 12", 0, 0)
    ):  # fmt: skip
        shown = Evidence(generated=text)
        assert build_scorer("gsm8k").score(item, shown) == strict, text
        assert build_scorer("gsm8k(form=flexible)").score(item, shown) == flexible, text
    assert compared("x = 3\n#### $1,234.") == "1234"
    assert not build_scorer("gsm8k").measures(Example.make("q", "r", answer="Rome"))
