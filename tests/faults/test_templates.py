"""Chat templates and models with habits of their own: an example has the tokens, and the answer, that it should."""

from __future__ import annotations

import datetime

import numpy as np
import pytest
import torch
import transformers.utils.chat_template_utils as rendering
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from longgame.data.examples import Example, Task
from longgame.data.tokenize import TEMPLATE_DATE, encode_all
from longgame.errors import DataError, ModelError, PluginError
from longgame.evaluation.decoding import Row, run_rows
from longgame.evaluation.evaluator import Evaluator
from longgame.models.load import load_model, load_tokenizer
from longgame.recipe import ModelSpec
from longgame.signals.source import SignalSource
from support.signals import llama, random_pool

CLOCK = "{{ strftime_now('%d %b %Y') }}" + '{{ strftime_now( "%Y" ) }}'
PLAIN = "{% for m in messages %}{{ m['content'] }}{{ eos_token if m['role'] == 'assistant' else '\n' }}{% endfor %}"
WORDY = (
    "{% for m in messages %}<<{{ m['role'] }}>>{{ m['content'] }}<<over>>{% endfor %}"
    "{% if add_generation_prompt %}<<assistant>>{% endif %}"
)


@pytest.fixture
def tokenizer():
    return load_tokenizer(ModelSpec())


def test_a_template_that_reads_the_clock_gives_the_same_tokens_on_every_day(tokenizer, monkeypatch) -> None:
    tokenizer.chat_template = CLOCK + PLAIN
    texts = []
    for day in (1, 2):

        class Day(datetime.datetime):
            @classmethod
            def now(cls, tz=None, day=day):
                return cls(2031, 3, day)

        monkeypatch.setattr(rendering, "datetime", Day)
        texts.append(tokenizer.decode(encode_all([Example.make("q", "r")], tokenizer)[0].prompt_ids))
    assert texts[0] == texts[1]
    assert texts[0].startswith(TEMPLATE_DATE.strftime("%d %b %Y%Y"))


def test_a_response_that_ends_like_the_turn_ends_once(tokenizer) -> None:
    tokenizer.chat_template = PLAIN
    plain, marked = encode_all([Example.make("q", "red"), Example.make("q", f"red{tokenizer.eos_token}")], tokenizer)
    assert plain.ids.tolist() == marked.ids.tolist()
    text = encode_all([Example.make("", "red"), Example.make("", f"red{tokenizer.eos_token}")], tokenizer)
    assert text[0].ids.tolist() == text[1].ids.tolist()


@pytest.mark.parametrize(
    ("raw", "message"),
    [("é".encode("latin-1"), "is no text in UTF-8"), (b"{% for %}", "does not render"), (None, "does not exist")],
)
def test_a_template_file_that_cannot_be_used_is_refused(tmp_path, raw, message) -> None:
    path = tmp_path / "t.jinja"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(ModelError, match=message):
        load_tokenizer(ModelSpec(chat_template=str(path)))


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + PLAIN


def test_a_template_without_end_is_ended(tmp_path, tokenizer, monkeypatch) -> None:
    for module in ("longgame.models.load", "longgame.data.tokenize"):
        monkeypatch.setattr(f"{module}.TEMPLATE_SECONDS", 0.3)
    path = tmp_path / "t.jinja"
    path.write_text(ENDLESS)
    with pytest.raises(ModelError, match=r"t\.jinja' was not rendered within 0\.3 seconds"):
        load_tokenizer(ModelSpec(chat_template=str(path)))
    tokenizer.chat_template = ENDLESS
    with pytest.raises(DataError, match=r"did not render example \w+ within 0\.3 seconds"):
        encode_all([Example.make("q", "red")], tokenizer)


def test_a_mark_of_an_editor_is_not_part_of_a_template(tmp_path) -> None:
    path = tmp_path / "t.jinja"
    path.write_bytes(b"\xef\xbb\xbf" + PLAIN.encode())
    marked = load_tokenizer(ModelSpec(chat_template=str(path)))
    assert encode_all([Example.make("q", "r")], marked)[0].prompt_ids[0] != marked("\ufeff")["input_ids"][0]


def test_a_turn_that_ends_in_many_tokens_ends_the_answer() -> None:
    loaded = load_model(ModelSpec())
    tokenizer, model = loaded.tokenizer, loaded.model
    tokenizer.chat_template = WORDY
    items = tuple(Example.make(f"Code of {name}?", code, answer=code) for name, code in (("a", "red"), ("b", "blue")))
    encoded = encode_all(items, tokenizer)
    assert min(item.end_tokens for item in encoded) > 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(60):
        for item in encoded:
            labels = torch.from_numpy(item.ids.copy())[None]
            labels[:, : len(item.prompt_ids)] = -100
            model(input_ids=torch.from_numpy(item.ids)[None], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    scores = Evaluator(model.eval(), tokenizer, pad_token_id=loaded.pad_token_id).score(
        [Task("t", items, scorers=("token_accuracy", "exact_match"), max_new_tokens=24)]
    )
    assert [score.value for score in scores] == [100, 100]


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("roberta", {"is_decoder": True, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                     "num_attention_heads": 4, "max_position_embeddings": 128}),
        ("opt", {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "word_embed_proj_dim": 32, "max_position_embeddings": 128}),
        ("bart", {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
                  "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "is_decoder": True,
                  "is_encoder_decoder": False, "max_position_embeddings": 128}),
    ],
)  # fmt: skip
def test_models_that_number_positions_otherwise_decode_as_step_by_step(kind, sizes) -> None:
    torch.manual_seed(2)
    config = AutoConfig.for_model(kind, vocab_size=200, pad_token_id=0, bos_token_id=1, eos_token_id=3, **sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4.0 if weight.ndim > 1 else 1.0)
    rng = np.random.default_rng(0)
    rows = [Row(rng.integers(5, 190, n), np.array([7]), f"row {n}", limit=10) for n in (4, 9, 13)]
    with torch.inference_mode():
        run_rows(model, rows, pad_token_id=0, stop_ids=frozenset({3}), max_batch_tokens=4096, max_positions=128)
        for row in rows:
            tokens = torch.from_numpy(row.prompt)[None]
            for _ in range(10):
                logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
                best = int(logits[0, -1].argmax())
                if best == 3:
                    break
                tokens = torch.cat([tokens, torch.tensor([[best]])], dim=1)
            assert row.decoded == tokens[0, len(row.prompt) :].tolist()


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_the_base_of_an_adapter_taken_out_of_it_is_measured_before_training(init) -> None:
    pool, model = random_pool(), llama()
    with torch.no_grad():
        expected = SignalSource.of_model(model, pad_token_id=0, candidates=lambda: [pool]).freeze([pool]).to_arrays()
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=init))
    source = SignalSource.of_model(adapted, pad_token_id=0, candidates=lambda: [pool])
    with pytest.raises(PluginError, match="no base is left.*PiSSA"):
        source(pool, ("embedding",))
    source.prepare(("embedding",))
    got = source(pool, ("embedding", "base_loss"))
    np.testing.assert_allclose(got["embedding"], expected["embedding"], atol=1e-4)
    np.testing.assert_allclose(got["base_loss"], expected["base_loss"], atol=1e-4)


SYSTEM_LAST = (  # writes the system prompt into the last user turn, if the conversation ends there
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[' }}{% if loop.last and messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'] + ': ' }}{% endif %}{{ m['content'] + ']' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
CUTS_THOUGHTS = (  # opens the thinking of an answer, and leaves it out of finished turns
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}{% if m['role'] == 'assistant' %}"
    "{{ m['content'].split('</think>')[-1] + eos_token }}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
)
EMPTY_THOUGHTS = CUTS_THOUGHTS.replace("{{ m['content'].split", "<think></think>{{ m['content'].split")
COUNTS = (  # writes the length of a finished turn before it
    "{% for m in messages %}{{ '<' + m['role'] }} {{ m['content']|length }}>{{ m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "turns", "response", "prompt"),
    [
        (SYSTEM_LAST, [("system", "Be kind"), ("user", "Hi")], "Yes", "[Be kind: Hi] "),
        (SYSTEM_LAST, [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")], "d", None),
        (CUTS_THOUGHTS, [("user", "Hi")], "Yes", "<user>Hi<assistant>"),
        (CUTS_THOUGHTS, [("user", "Hi")], "<think>hm</think>Yes", "<user>Hi<assistant>"),
        (CUTS_THOUGHTS, [("user", "Hi")], "hm</think>Yes", "<user>Hi<assistant><think>\n"),
        (EMPTY_THOUGHTS, [("user", "Hi")], "<think>hm</think>Yes", "<user>Hi<assistant>"),
        (EMPTY_THOUGHTS, [("user", "Hi")], "Yes", "<user>Hi<assistant><think></think>"),
        (COUNTS, [("user", "Hi")], "Yes, indeed", "<user 2>Hi<eos><assistant>"),
    ],
)  # fmt: skip
def test_templates_that_write_finished_turns_otherwise_work(tokenizer, template, turns, response, prompt) -> None:
    tokenizer.chat_template = template
    encoded = encode_all([Example.make("", response, messages=tuple(turns))], tokenizer)[0]
    content = encoded.response_ids[: -encoded.end_tokens]
    assert tokenizer.decode(content) == response
    text = tokenizer.decode(encoded.prompt_ids)
    assert text == prompt if prompt is not None else all(words in text for _, words in turns)


@pytest.mark.parametrize(
    ("template", "turns"),
    [
        (SYSTEM_LAST, [("system", "Be kind"), ("system", "Be brief"), ("user", "Hi")]),
        (SYSTEM_LAST, [("user", "Hi"), ("tool", "3 m")]),
        (
            PLAIN.replace("m in messages", "m in messages if m['role'] != 'system'"),
            [("system", "Be kind"), ("user", "a")],
        ),
    ],
)
def test_a_turn_that_a_template_leaves_out_is_refused(tokenizer, template, turns) -> None:
    tokenizer.chat_template = template
    with pytest.raises(DataError, match="leaves out or changes the (system|tool) turn"):
        encode_all([Example.make("", "Yes", messages=tuple(turns))], tokenizer)


@pytest.mark.parametrize("fault", ["{{ 1 / 0 }}", "{{ messages[9]['x'] + 1 }}", "{{ 'a' + 1 }}", "{{ [] + 'a' }}"])
def test_whatever_a_template_raises_is_a_data_error(tokenizer, fault) -> None:
    tokenizer.chat_template = PLAIN + fault
    with pytest.raises(DataError, match="the chat template refuses example"):
        encode_all([Example.make("q", "r")], tokenizer)


@pytest.mark.parametrize("call", ["strftime_now(f)", "strftime_now('%d %B %Y, %H:%M')", "(strftime_now)('%-d.%-m.%y')"])
def test_the_date_is_frozen_however_it_is_asked_for(tokenizer, call) -> None:
    tokenizer.chat_template = (
        "{% set f = '%Y-%m-%d' %}{% if strftime_now is defined %}{{ " + call + " }}{% endif %}" + PLAIN
    )
    text = tokenizer.decode(encode_all([Example.make("q", "r")], tokenizer)[0].prompt_ids)
    assert text in ("2026-01-01q\n", "01 January 2026, 00:00q\n", "1.1.26q\n")


def test_a_template_whose_answers_nothing_ends_is_refused(tmp_path) -> None:
    path = tmp_path / "t.jinja"
    path.write_text(WORDY)
    with pytest.raises(ModelError, match=r"ends an answer with '<<over>>', which is \d+ ordinary tokens"):
        load_tokenizer(ModelSpec(chat_template=str(path)))


@pytest.mark.parametrize("text", ["\ue000\ue001\ue002", "a\ue000\ue001\ue002\ue002b", "{{ 7 * 7 }}{% raise %}"])
def test_no_text_is_taken_for_a_part_of_the_template(tokenizer, text) -> None:
    encoded = encode_all([Example.make(text, text), Example.make("q", text), Example.make(text, "r")], tokenizer)
    texts = [tokenizer.decode(item.response_ids[: -item.end_tokens]) for item in encoded]
    assert texts == [text, text, "r"]
    assert text in tokenizer.decode(encoded[2].prompt_ids)


def test_a_response_that_ends_like_another_end_of_turn_ends_once(tokenizer) -> None:
    tokenizer.chat_template = PLAIN.replace("eos_token", "'<user>'")
    plain, marked = encode_all([Example.make("q", "red"), Example.make("q", "red<user>\n")], tokenizer)
    assert plain.ids.tolist() == marked.ids.tolist()
