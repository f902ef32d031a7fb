"""The shared, batched, shortcut evaluation equals a slow one that does each row alone."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from longgame.data.examples import Example, Task, with_unique_ids
from longgame.data.formats import read_row
from longgame.data.tokenize import encode, encode_all
from longgame.errors import DataError, NumericalError, PluginError
from longgame.evaluation import decoding, evaluator
from longgame.evaluation.answers import matches
from longgame.evaluation.decoding import Row, run_rows
from longgame.evaluation.evaluator import Evaluator
from longgame.models.load import load_model
from longgame.recipe import ModelSpec
from support import slow_scoring


def scores(model, tokenizer, tasks, **options) -> dict[tuple[str, str, str], tuple[float, int]]:
    result = Evaluator(model, tokenizer, pad_token_id=0, **options).score(tasks)
    return {(score.task, score.sub_skill, score.scorer): (score.value, score.items) for score in result}


def decoded(model, tokenizer, examples, limit: int, **options) -> list[str]:
    """Texts as the evaluator decodes them."""
    rows = []
    for example in examples:
        encoded = encode(example, tokenizer, 10**6)
        rows.append(Row(encoded.prompt_ids, encoded.response_ids, example.sample_id, limit))
    settings = {"pad_token_id": 0, "stop_ids": frozenset({1}), "max_batch_tokens": 4096, "max_positions": 10**6}
    with torch.inference_mode():
        run_rows(model, rows, **{**settings, **options})
    return [tokenizer.decode(row.decoded, skip_special_tokens=True).strip() for row in rows]


def prompts(count: int) -> list[Example]:
    return [Example.make("tell me " + "abcdefg"[i % 7] * (1 + i % 11) + str(i), "no idea") for i in range(count)]


def continued(model, tokenizer, count: int, limit: int) -> list[Example]:
    """Examples whose response shares 0, 1, 2 … tokens with what greedy decoding gives (some share all)."""
    result = []
    for number, example in enumerate(prompts(count)):
        text = slow_scoring.greedy(model, tokenizer, example, limit)
        shared = text[: number % (len(text) + 1)]
        response = text if number % 3 == 0 and text else (shared + "zQ").strip()
        result.append(Example.make(example.prompt, response))
    return result


def test_scores_equal_a_slow_row_by_row_implementation(model, tokenizer, tasks) -> None:
    found = scores(model, tokenizer, tasks)
    for task in tasks:
        for skill in {item.skill for item in task.items}:
            items = [item for item in task.items if item.skill == skill]
            key = (task.name, skill or "all")
            accuracy = slow_scoring.token_accuracy(model, tokenizer, items)
            assert found[(*key, "token_accuracy")] == (pytest.approx(accuracy, abs=1e-9), len(items))
            answered = [item for item in items if item.answer is not None]
            hits = [
                matches(item, slow_scoring.greedy(model, tokenizer, item, task.max_new_tokens)) for item in answered
            ]
            assert found[(*key, "exact_match")] == (pytest.approx(100 * np.mean(hits)), len(answered))
            if "ends" in task.scorers:
                expected = slow_scoring.ends(model, tokenizer, items)
                assert found[(*key, "ends")] == (pytest.approx(expected), len(items))
            if "likelihood" in task.scorers:
                expected = slow_scoring.likelihood(model, tokenizer, items)
                assert found[(*key, "likelihood")] == (pytest.approx(expected, rel=1e-5), len(items))
    assert len(found) == 2 * 4 + 3


def test_choice_picks_the_most_likely_option(model, tokenizer, tasks) -> None:
    rendered = {"yes": ("yes", "no"), "B": ("A. red", "B. blue"), "A": ("A. red", "B. blue", "C. green")}
    right = []
    for item in tasks[1].items:
        if item.choices is None:
            continue
        values = []
        for text in rendered[item.answer]:
            option = dataclasses.replace(item, response=text)
            log_probability, _ = slow_scoring.response_log_probabilities(model, tokenizer, option)
            values.append(log_probability[:-1].mean().item())  # without the end token
        gold = {"yes": 0, "B": 1, "A": 0}[item.answer]
        right.append(int(np.argmax(values)) == gold)
    assert scores(model, tokenizer, tasks)[("words", "all", "choice")] == (pytest.approx(100 * np.mean(right)), 3)


@pytest.mark.parametrize("max_batch_tokens", [1, 100, 300, 4096])
def test_decoding_equals_generate_row_by_row(model, tokenizer, max_batch_tokens) -> None:
    examples = continued(model, tokenizer, 24, 20)
    expected = [slow_scoring.greedy(model, tokenizer, example, 20) for example in examples]
    assert len({len(text) for text in expected}) > 3, "the rows must stop at different lengths to test anything"
    assert decoded(model, tokenizer, examples, 20, max_batch_tokens=max_batch_tokens) == expected


def test_decoding_is_skipped_where_the_pass_decides_it(model, tokenizer) -> None:
    texts = [(item, slow_scoring.greedy(model, tokenizer, item, 20)) for item in prompts(40)]
    stopping = [Example.make(item.prompt, text) for item, text in texts if 0 < len(text) < 20]
    stopping = [
        item for item in stopping if bool(slow_scoring.response_log_probabilities(model, tokenizer, item)[1].all())
    ]
    assert len(stopping) > 3
    passes = Counter()
    handle = model.register_forward_pre_hook(lambda *_: passes.update(["forward"]))
    assert decoded(model, tokenizer, stopping, 20) == [item.response for item in stopping]
    assert passes["forward"] == 1
    decoded(model, tokenizer, prompts(3), 20)
    handle.remove()
    assert passes["forward"] > 2


def test_passes_with_less_padding_give_the_same_bits(monkeypatch) -> None:
    loaded = load_model(ModelSpec(name="tiny"))
    model, tokenizer = loaded.model, loaded.tokenizer
    encoded = [
        encode(Example.make(f"say {'7 ' * (number % 29)}", f"{number} " * (1 + number % 17)), tokenizer, 10**6)
        for number in range(90)
    ]
    settings = {"pad_token_id": 0, "stop_ids": frozenset({1}), "max_batch_tokens": 10**6, "max_positions": 512}

    def measured() -> tuple[list[Row], int]:
        rows = [Row(item.prompt_ids, item.response_ids, str(place), 8) for place, item in enumerate(encoded)]
        passes = Counter()
        handle = model.register_forward_pre_hook(lambda *_, **__: passes.update(["all"]))
        with torch.inference_mode():
            run_rows(model, rows, **settings)
        handle.remove()
        return rows, passes["all"]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        split, passes = measured()
        monkeypatch.setattr(decoding, "_keeps_bits", lambda _: False)
        joint, fewer = measured()
    finally:
        torch.set_num_threads(threads)
    assert passes > fewer + 3
    for row, other in zip(split, joint, strict=True):
        assert row.nll.tobytes() == other.nll.tobytes()
        assert (row.correct == other.correct).all()
        assert row.decoded == other.decoded


def test_parts_of_a_batch_hold_enough_to_round_alike() -> None:
    rng = random.Random(0)
    for _ in range(50):
        sizes = sorted(((rng.randint(1, 120), rng.randint(1, 40)) for _ in range(rng.randint(1, 60))), key=sum)
        batch = [Row(np.zeros(a, np.int64), np.zeros(b, np.int64), "") for a, b in reversed(sizes)]
        parts = [*decoding._parts(batch)]
        assert [id(row) for part in parts for row in part] == [*map(id, batch)]
        assert len(parts) == 1 or min(sum(len(row.response) for row in part) for part in parts) >= 64


def test_decoding_with_a_cache_equals_generate(model, tokenizer, monkeypatch) -> None:
    examples = continued(model, tokenizer, 24, 20)
    native = decoded(model, tokenizer, examples, 20)
    calls = Counter()
    original = model.generate
    monkeypatch.setattr(model, "_is_stateful", True, raising=False)  # as transformers marks a recurrent cache
    monkeypatch.setattr(model, "generate", lambda **options: (calls.update(["generate"]), original(**options))[1])
    assert decoded(model, tokenizer, examples, 20, max_batch_tokens=200) == native
    assert calls["generate"] > 1


def test_decoding_is_exact_for_other_architectures(tokenizer) -> None:
    vocabulary = len(tokenizer)
    common = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    gemma = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, sliding_window=6, final_logit_softcapping=2.0, **common,
        )
    )  # fmt: skip
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_positions=64, n_embd=32, n_layer=2, n_head=4, **common))
    source = torch.Generator().manual_seed(3)
    for other in (gemma, gpt2):
        with torch.no_grad():
            for parameter in other.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.4)
        other.eval()
        examples = continued(other, tokenizer, 12, 16)
        expected = [slow_scoring.greedy(other, tokenizer, example, 16) for example in examples]
        assert decoded(other, tokenizer, examples, 16) == expected
        task = Task("t", tuple(examples), scorers=("likelihood",))
        value, _ = scores(other, tokenizer, [task])[("t", "all", "likelihood")]
        assert value == pytest.approx(slow_scoring.likelihood(other, tokenizer, examples), rel=1e-4)


def test_scores_do_not_depend_on_batch_size_order_or_company(model, tokenizer, tasks) -> None:
    expected = scores(model, tokenizer, tasks)
    shuffled = [dataclasses.replace(task, items=tuple(reversed(task.items))) for task in reversed(tasks)]
    runs = [
        scores(model, tokenizer, tasks, max_batch_tokens=1),
        scores(model, tokenizer, tasks, max_batch_tokens=97),
        scores(model, tokenizer, shuffled, max_batch_tokens=300),
        scores(model, tokenizer, tasks[:1]) | scores(model, tokenizer, tasks[1:]),
    ]
    for run in runs:
        assert run.keys() == expected.keys()
        for key, (value, items) in expected.items():
            assert run[key] == (pytest.approx(value, rel=1e-5), items), key


def test_a_peft_model_is_scored_with_its_adapter(build_model, tokenizer, tasks) -> None:
    plain = scores(build_model(), tokenizer, tasks)
    adapted = get_peft_model(build_model(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    source = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=source) * 0.3)
    adapted.eval()
    found = scores(adapted, tokenizer, tasks)
    items = tasks[1].items
    accuracy = slow_scoring.token_accuracy(adapted, tokenizer, items)
    assert found[("words", "all", "token_accuracy")][0] == pytest.approx(accuracy)
    key = ("sums", "sum", "likelihood")
    assert found[key][0] != pytest.approx(plain[key][0], rel=1e-3)
    with adapted.disable_adapter():
        assert scores(adapted, tokenizer, tasks)[key][0] == pytest.approx(plain[key][0], rel=1e-5)
    examples = continued(adapted, tokenizer, 12, 16)
    expected = [slow_scoring.greedy(adapted, tokenizer, item, 16) for item in examples]
    assert decoded(adapted, tokenizer, examples, 16) == expected


def test_scoring_leaves_model_and_random_state_alone(build_model, tokenizer, tasks) -> None:
    model = build_model(attention_dropout=0.5)
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    states = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    first = scores(model, tokenizer, tasks)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not model.lm_head._forward_pre_hooks
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]
    assert scores(model.eval(), tokenizer, tasks) == first, "dropout must be off while scoring"


def test_training_goes_on_after_scoring(build_model, tokenizer, tasks) -> None:
    model = build_model()
    Evaluator(model, tokenizer, pad_token_id=0).score(tasks)
    ids = torch.randint(4, 40, (2, 9), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_scores_follow_the_model_as_it_changes(build_model, tokenizer, tasks) -> None:
    model = build_model()
    judge = Evaluator(model, tokenizer, pad_token_id=0)
    before = judge.score(tasks)
    with torch.no_grad():
        model.lm_head.weight.copy_(build_model(seed=5).lm_head.weight)
    after = {(score.task, score.sub_skill, score.scorer): (score.value, score.items) for score in judge.score(tasks)}
    assert after == scores(model, tokenizer, tasks)
    assert [score.value for score in before] != list(after.values())


def test_items_are_tokenised_once(model, tokenizer, tasks, monkeypatch) -> None:
    calls: Counter[str] = Counter()

    def counting(example, *args):
        calls[example.prompt, example.response] += 1
        return encode(example, *args)

    monkeypatch.setattr(evaluator, "encode", counting)
    judge = Evaluator(model, tokenizer, pad_token_id=0)
    judge.score(tasks)
    judge.score([dataclasses.replace(tasks[1], name="again"), tasks[0]])
    assert set(calls.values()) == {1}


def test_each_item_of_tokens_or_tools_is_scored_as_itself(model, tokenizer, monkeypatch) -> None:
    template = "{{ tools[0].function.name }}" + tokenizer.chat_template
    monkeypatch.setattr(tokenizer, "chat_template", template)
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "yes"}]
    rows = [
        {"input_ids": [2, 5, 3, 7, 8, 1], "labels": [-100, -100, -100, 7, 8, 1]},
        {"input_ids": [2, 6, 3, 9, 1], "labels": [-100, -100, -100, 9, 1]},
        {"input_ids": [2, 5, 3, 7, 8, 1], "labels": [-100, -100, -100, 7, 8, 1]},
        {"messages": turns, "tools": [{"name": "ab"}]},
        {"messages": turns, "tools": [{"name": "cd"}]},
    ]
    items = with_unique_ids(read_row(row | {"skill": str(place)})[0] for place, row in enumerate(rows))
    alone = [scores(model, tokenizer, [Task("t", (item,), scorers=("likelihood",))]) for item in items]
    together = scores(model, tokenizer, [Task("t", items, scorers=("likelihood",))])
    assert together == {key: (pytest.approx(value), n) for one in alone for key, (value, n) in one.items()}
    values = [value for value, _ in together.values()]
    assert values[0] == values[2]
    assert len(set(values)) == 4


def test_options_of_an_item_of_tokens_are_refused(model, tokenizer) -> None:
    row = {"input_ids": [2, 5, 3, 7, 1], "choices": ["a", "b"], "answer": "a"}
    for scorer in ("choice", "mc1", "mc2"):
        with pytest.raises(DataError, match="task 't', item .* came as tokens"):
            scores(model, tokenizer, [Task("t", (read_row(row)[0],), scorers=(scorer,))])


def test_what_no_item_is_measured_by_is_nan_with_zero_items(model, tokenizer) -> None:
    task = Task("free", (Example.make("hi", "hello"),), scorers=("token_accuracy", "exact_match", "verifier"))
    found = scores(model, tokenizer, [task])
    assert found[("free", "all", "token_accuracy")][1] == 1
    for name in ("exact_match", "verifier"):
        value, items = found[("free", "all", name)]
        assert math.isnan(value)
        assert items == 0


def test_a_response_is_cut_at_its_own_tasks_limit(model, tokenizer) -> None:
    long = next(item for item in prompts(40) if len(slow_scoring.greedy(model, tokenizer, item, 20)) == 20)
    text = slow_scoring.greedy(model, tokenizer, long, 20)
    item = Example.make(long.prompt, long.response, answer=text[:5])
    assert not matches(item, text)
    tasks = [Task(str(limit), (item,), scorers=("exact_match",), max_new_tokens=limit) for limit in (5, 20)]
    found = scores(model, tokenizer, tasks)
    assert found[("5", "all", "exact_match")] == (100.0, 1)
    assert found[("20", "all", "exact_match")] == (0.0, 1)


def test_decoding_never_passes_the_context(tokenizer) -> None:
    positions = 24
    narrow = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=positions, n_embd=32, n_layer=1, n_head=4, eos_token_id=1)
    ).eval()
    item = Example.make("abcdefghij", "abc", answer="abc")
    found = scores(narrow, tokenizer, [Task("t", (item,), max_new_tokens=500)])
    assert found[("t", "all", "exact_match")][1] == 1


def test_an_item_longer_than_the_context_is_named(model, tokenizer) -> None:
    item = Example.make("a" * 200, "b")
    with pytest.raises(DataError, match=rf"task 'big', item {item.sample_id}.*204 tokens"):
        Evaluator(model, tokenizer, pad_token_id=0).score([Task("big", (item,))])
    with pytest.raises(DataError, match="task 'big'"):
        Evaluator(model, tokenizer, pad_token_id=0, max_length=10).score([Task("big", (Example.make("a" * 20, "b"),))])


def test_a_task_without_items_is_refused(model, tokenizer) -> None:
    with pytest.raises(DataError, match="task 'none' has no items"):
        Evaluator(model, tokenizer, pad_token_id=0).score([Task("none", ())])


def test_nan_logits_name_task_and_item(build_model, tokenizer) -> None:
    model = build_model()
    character = tokenizer.convert_tokens_to_ids("G")
    with torch.no_grad():
        model.model.embed_tokens.weight[character] = math.nan
    good, bad = Example.make("abc", "de"), Example.make("abG", "de")
    judge = Evaluator(model, tokenizer, pad_token_id=0)
    assert len(judge.score([Task("fine", (good,))])) == 3
    with pytest.raises(NumericalError, match=rf"task 'broken', item {bad.sample_id}.*NaN"):
        judge.score([Task("fine", (good,)), Task("broken", (good, bad))])
    assert not model.lm_head._forward_pre_hooks


def test_nan_met_only_while_decoding_names_the_item(model, build_model, tokenizer) -> None:
    item = next(
        item
        for item in prompts(40)
        if len(text := slow_scoring.greedy(model, tokenizer, item, 10)) == 10 and text[0] not in item.prompt + "no idea"
    )
    text = slow_scoring.greedy(model, tokenizer, item, 10)
    broken = build_model()
    with torch.no_grad():
        broken.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids(text[0])] = math.nan
    asked = dataclasses.replace(item, answer="x")
    with pytest.raises(NumericalError, match=rf"task 't', item {item.sample_id}: a logit is NaN at decoded token 1"):
        Evaluator(broken, tokenizer, pad_token_id=0).score([Task("t", (asked,), max_new_tokens=10)])


def test_custom_scorer_is_range_checked_and_named(model, tokenizer, tmp_path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from longgame.evaluation.scorers import Scorer\n"
        "class Length(Scorer):\n"
        "    name = 'length'\n"
        "    requires = ('generation',)\n"
        "    def __init__(self, divisor=100):\n"
        "        self.divisor = divisor\n"
        "    def score(self, example, evidence):\n"
        "        return len(evidence.generation) / self.divisor\n"
    )
    item = next(item for item in prompts(40) if slow_scoring.greedy(model, tokenizer, item, 10))
    length = len(slow_scoring.greedy(model, tokenizer, item, 10))
    name = f"{file}:Length(divisor=20)"
    found = scores(model, tokenizer, [Task("t", (item,), scorers=(name,), max_new_tokens=10)])
    assert found[("t", "all", name)] == (pytest.approx(5 * length), 1)
    with pytest.raises(PluginError, match=r"within 0…1"):
        scores(model, tokenizer, [Task("t", (item,), scorers=(f"{file}:Length(divisor=0.5)",), max_new_tokens=10)])
    where = rf"failed in score\(\) of task 't', item {item.sample_id}: ZeroDivisionError"
    with pytest.raises(PluginError, match=where):
        scores(model, tokenizer, [Task("t", (item,), scorers=(f"{file}:Length(divisor=0)",), max_new_tokens=10)])


def test_answers_are_those_of_greedy_generate_whatever_the_gold_response():
    loaded = load_model(ModelSpec(name="tiny"))
    examples = [Example.make(f"What is {n} + {n}?", "x" * (n + 1)) for n in range(5)]
    evaluator = Evaluator(loaded.model, loaded.tokenizer, pad_token_id=loaded.pad_token_id)
    expected = []
    for example in examples:
        prompt = encode_all([example], loaded.tokenizer)[0].prompt_ids
        ids = torch.tensor([prompt.tolist()])
        with torch.no_grad():
            new = loaded.model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=loaded.pad_token_id)
        expected.append(loaded.tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True).strip())
    assert evaluator.answers(examples, 12) == expected
    assert evaluator.answers([], 12) == []
    assert evaluator.answers([Example.make("word " * 5000, "x")], 12) == [""]
