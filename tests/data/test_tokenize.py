"""Tokenising: exact border between prompt and response, equal to the slow way, fast for many."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longgame.data.examples import Example, with_unique_ids
from longgame.data.formats import RowError, read_row
from longgame.data.tokenize import build_pool, encode, encode_all, fits_within, prompt_ids
from longgame.errors import DataError, ModelError
from longgame.models.load import prepare_tokenizer
from longgame.recipe import ModelSpec
from support.chat_model import CHATML, TRIMMING, WORDS, chat_tokenizer

TOKENIZER = chat_tokenizer()
CONVERSATION = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "2+2?"))


def slow(example: Example) -> tuple[list[int], list[int]]:
    """Prompt and whole by apply_chat_template's own tokenising, one at a time; the final newline of ChatML is cut."""
    turns = example.messages or (("user", example.prompt),)
    messages = [{"role": role, "content": content} for role, content in turns]
    prompt = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    messages.append({"role": "assistant", "content": example.response})
    complete = TOKENIZER.apply_chat_template(messages, tokenize=True, return_dict=False)
    end = len(complete) - 1 - complete[::-1].index(TOKENIZER.eos_token_id)
    return prompt, complete[: end + 1]


def examples() -> list[Example]:
    plain = [Example.make(f"What is {a} + {b}?", f"{a} + {b} = {a + b}") for a in range(12) for b in range(12)]
    code = Example.make("def f(x):", "    return x\n")
    return [*plain, code, Example.make("2+2?", "4", messages=CONVERSATION)]


def test_the_batch_equals_the_slow_way_example_by_example() -> None:
    for example, encoded in zip(examples(), encode_all(examples(), TOKENIZER), strict=True):
        prompt, complete = slow(example)
        assert encoded.prompt_ids.tolist() == prompt
        if complete[: len(prompt)] == prompt:  # no token straddles the border
            assert encoded.ids.tolist() == complete
        single = encode(example, TOKENIZER, 10_000)
        assert single.prompt_ids.tolist() == encoded.prompt_ids.tolist()
        assert single.response_ids.tolist() == encoded.response_ids.tolist()


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=40).filter(str.strip), st.text(max_size=40).filter(str.strip))
def test_prompt_and_response_decode_to_the_rendered_conversation(prompt: str, response: str) -> None:
    encoded = encode(Example.make(prompt, response), TOKENIZER, 10_000)
    assert TOKENIZER.decode(encoded.prompt_ids) == f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    assert TOKENIZER.decode(encoded.response_ids) == f"{response}<|im_end|>"


def test_the_response_ends_with_end_of_turn() -> None:
    encoded = encode(Example.make("Hi", "Hello"), TOKENIZER, 100)
    assert encoded.response_ids[-1] == TOKENIZER.eos_token_id
    assert (encoded.response_ids == TOKENIZER.eos_token_id).sum() == 1


def test_a_token_that_would_straddle_the_border_is_split_there() -> None:
    """Byte-level BPE has a token for newline + spaces; the prompt must stay what the model generates from."""
    tokenizer = chat_tokenizer(["\n    return"] * 50)
    example = Example.make("def f(x):", "    return x")
    prompt, response = "<|im_start|>user\ndef f(x):<|im_end|>\n<|im_start|>assistant\n", "    return x<|im_end|>"
    joint = tokenizer(prompt + response)["input_ids"]
    alone = tokenizer(prompt)["input_ids"]
    assert joint[: len(alone)] != alone  # the case is real
    encoded = encode(example, tokenizer, 100)
    assert encoded.prompt_ids.tolist() == alone
    assert tokenizer.decode(encoded.response_ids) == response


def test_plain_text_learns_everything_that_has_a_predecessor() -> None:
    encoded = encode(Example.make("", "one two three"), TOKENIZER, 100)
    ids = TOKENIZER("one two three")["input_ids"]
    assert encoded.prompt_ids.tolist() == ids[:1]
    assert encoded.response_ids.tolist() == [*ids[1:], TOKENIZER.eos_token_id]


def test_an_end_of_its_own_stands_once_behind_every_turn() -> None:
    turns = [{"role": role, "content": text} for role, text in (*CONVERSATION, ("assistant", "4"))]
    ended = [turn | {"content": turn["content"] + "<|im_end|>\n" * (turn["role"] == "assistant")} for turn in turns]
    plain, twice = (encode(read_row({"messages": row})[0], TOKENIZER, 100) for row in (turns, ended))
    assert twice.ids.tolist() == plain.ids.tolist()
    assert (twice.ids == TOKENIZER.eos_token_id).sum() == 5


def test_a_row_s_settings_reach_the_template() -> None:
    tokenizer = chat_tokenizer(template="{% if mood is defined %}{{ mood }}{% endif %}" + CHATML)
    row = {"prompt": "2+2?", "completion": "4"}
    plain, loud = (read_row(row | more)[0] for more in ({}, {"chat_template_kwargs": {"mood": "loud", "x": None}}))
    assert plain.sample_id == read_row(row)[0].sample_id != loud.sample_id
    for example, words in ((plain, ""), (loud, "loud")):
        asked = tokenizer.decode(prompt_ids(example, tokenizer))
        assert asked == f"{words}<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("settings", [["x"], {"tools": []}, {"eos_token": "x"}])
def test_settings_that_are_no_template_s_are_refused(settings: object) -> None:
    with pytest.raises(RowError, match="'chat_template_kwargs' (is a list|holds '(tools|eos_token)')"):
        read_row({"prompt": "2+2?", "completion": "4", "chat_template_kwargs": settings})


def test_plain_template_is_prompt_newline_response_eos() -> None:
    tokenizer = prepare_tokenizer(chat_tokenizer(template=None), ModelSpec(chat_template="plain"))
    encoded = encode(Example.make("Hi", "Hello"), tokenizer, 100)
    assert tokenizer.decode(encoded.prompt_ids) == "Hi\n"
    assert tokenizer.decode(encoded.response_ids) == "Hello<|im_end|>"


def test_plain_template_begins_with_bos_if_there_is_one() -> None:
    tokenizer = prepare_tokenizer(chat_tokenizer(template=None, add_bos=True), ModelSpec(chat_template="plain"))
    encoded = encode(Example.make("Hi", "Hello"), tokenizer, 100)
    assert tokenizer.decode(encoded.prompt_ids) == "<|im_start|>Hi\n"
    text = encode(Example.make("", "Hello"), tokenizer, 100)
    assert text.prompt_ids.tolist() == [tokenizer.bos_token_id]
    assert tokenizer.decode(text.response_ids) == "Hello<|im_end|>"


def test_a_template_without_end_of_turn_gets_eos() -> None:
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    tokenizer = chat_tokenizer(template=template + "{% if add_generation_prompt %}assistant: {% endif %}")
    encoded = encode(Example.make("Hi", "Hello\n"), tokenizer, 100)
    assert tokenizer.decode(encoded.ids) == "user: Hi\nassistant: Hello<|im_end|>"


def test_a_template_that_trims_the_content_is_accepted() -> None:
    encoded = encode(Example.make(" Hi ", "  Hello \n"), chat_tokenizer(template=TRIMMING), 100)
    assert chat_tokenizer(template=TRIMMING).decode(encoded.response_ids) == "Hello<|im_end|>"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "has no chat template"),
        (CHATML.replace("message['content']", "(message['content'] | upper)"), "changes the response"),
    ],
)
def test_unusable_templates_are_refused_with_the_fix(template: str | None, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        encode(Example.make("Hi", "hello"), chat_tokenizer(template=template), 100)
    assert "model.chat_template" in str(caught.value)


def test_roles_that_the_template_refuses_name_the_example() -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + CHATML
    example = Example.make("2+2?", "4", messages=CONVERSATION)
    with pytest.raises(DataError, match=f"{example.sample_id}.*no system turns"):
        encode(example, chat_tokenizer(template=template), 100)


def test_the_pool_is_row_aligned_and_counts_both_parts() -> None:
    candidates = with_unique_ids([*examples(), *examples()[:3]])
    pool = build_pool(candidates, TOKENIZER, 200)
    assert pool.examples == candidates
    for row, example in enumerate(candidates):
        encoded = encode(example, TOKENIZER, 200)
        assert pool.input_ids[row].tolist() == encoded.ids.tolist()
        assert pool.prompt_tokens[row] == len(encoded.prompt_ids)
        assert pool.response_tokens[row] == len(encoded.response_ids)


def test_too_long_is_an_error_or_dropped() -> None:
    short = [Example.make(f"q{i}", "a") for i in range(3)]
    long = [Example.make("q", " ".join(WORDS) * n, source="the file") for n in (6, 9)]
    lengths = [len(encode(example, TOKENIZER, 10_000)) for example in long]
    with pytest.raises(DataError) as caught:
        build_pool([short[0], *long, *short[1:]], TOKENIZER, 60)
    message = str(caught.value)
    assert f"{long[0].sample_id} (the file) has {lengths[0]} tokens, model.max_length is 60" in message
    assert "1 more of 5" in message
    assert "It begins with 'q'" in message
    assert f"the longest has {max(lengths)}" in message
    assert "data.too_long: drop" in message
    pool = build_pool([short[0], *long, *short[1:]], TOKENIZER, 60, too_long="drop")
    assert pool.ids == tuple(example.sample_id for example in short)
    assert len(build_pool(long[:1], TOKENIZER, lengths[0])) == 1
    with pytest.raises(DataError, match="too long"):
        build_pool(long, TOKENIZER, 60, too_long="drop")
    with pytest.raises(DataError, match=long[0].sample_id):
        encode(long[0], TOKENIZER, 60)


def test_fits_within_agrees_with_encode_for_every_option() -> None:
    example = Example.make("Which?", "A. a")
    length = len(encode(example, TOKENIZER, 100))
    assert fits_within(example, TOKENIZER, length)
    assert not fits_within(example, TOKENIZER, length - 1)
    choice = Example.make("Which?", "A. a", answer="A", choices=("a", " ".join(WORDS)))
    assert not fits_within(choice, TOKENIZER, length)
    assert fits_within(choice, TOKENIZER, 10_000)


def test_prompt_ids_do_not_depend_on_the_response() -> None:
    short, long = Example.make("def f(x):", "    return x"), Example.make("def f(x):", "pass")
    np.testing.assert_array_equal(prompt_ids(short, TOKENIZER), prompt_ids(long, TOKENIZER))


def test_tokens_of_another_tokenizer_are_refused() -> None:
    ids = np.array([1, 5, len(TOKENIZER)])
    example = dataclasses.replace(Example.make("", "x"), response="", tokens=(ids, np.array([False, True, True])))
    with pytest.raises(DataError, match=f"holds token {len(TOKENIZER)}, and the tokenizer has {len(TOKENIZER)}"):
        encode_all([example], TOKENIZER)
    fitting = dataclasses.replace(example, tokens=(ids - 1, example.tokens[1]))
    assert encode_all([fitting], TOKENIZER)[0].ids.tolist() == [0, 4, len(TOKENIZER) - 1]
