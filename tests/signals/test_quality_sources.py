"""Sources of quality beside the judge: columns, rules, reward models, a stranger's, and how they are named."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from longgame.data.examples import Example, Pool
from longgame.data.formats import RowRules, read_row
from longgame.data.sources import open_source
from longgame.errors import DataError, LonggameError, ModelError, NumericalError, PluginError, RecipeError
from longgame.models.load import model_place
from longgame.offline.rows import DataRows
from longgame.signals.base import Signals
from longgame.signals.quality.base import (
    ColumnQuality,
    DefaultQuality,
    QualitySources,
    RuleQuality,
    build_quality,
    rate,
)
from longgame.signals.quality.reward import RewardQuality
from longgame.signals.quality.rules import quality_scores
from longgame.signals.source import SignalSource

EXAMPLES = [Example.make(f"Say {n}.", f"{n} is it." * (n % 5 + 1), quality=n / 20) for n in range(20)]


def pool_of(examples) -> Pool:
    counts = np.ones(len(examples), dtype=np.int64)
    return Pool(tuple(examples), (np.zeros(0, dtype=np.int64),) * len(examples), counts, counts)


def no_engine(_pool, names):
    raise AssertionError(names)


def test_without_a_name_quality_is_bit_equal_to_column_or_rules() -> None:
    bare = [Example.make(f"Say {n}.", "lorem ipsum" if n % 2 else f"{n}") for n in range(9)]
    for examples in (EXAMPLES, bare, EXAMPLES + bare):
        column = SignalSource(no_engine)(pool_of(examples), ["quality"])["quality"]
        assert column.tobytes() == quality_scores(examples).tobytes()


def test_rules_ignore_the_column() -> None:
    assert rate(RuleQuality(), EXAMPLES).quality.tolist() == [1.0] * 20


def test_a_column_is_read_on_its_scale_and_its_gaps_are_missing() -> None:
    source = build_quality("column:stars,low=1,high=5")
    rules = RowRules(columns=source.columns)
    rows = [{"prompt": "p", "response": "r", "stars": stars} for stars in (1, 5, None, math.nan, "3", "")]
    ratings = rate(source, [read_row(row, rules)[0] for row in rows])
    np.testing.assert_array_equal(ratings.grade, [1, 5, NAN, NAN, 3, NAN])
    np.testing.assert_array_equal(ratings.quality, [0, 1, NAN, NAN, 0.5, NAN])
    assert source.notes() == ["3 of 6 rows have no 'stars': their quality is missing"]


NAN = math.nan


@pytest.mark.parametrize("value", ["four", True, [4], math.inf])
def test_a_cell_that_is_no_number_is_a_bad_row(value) -> None:
    with pytest.raises(Exception, match="not a number"):
        read_row({"prompt": "p", "response": "r", "stars": value}, RowRules(columns=("stars",)))


def test_the_column_quality_may_have_a_scale_of_its_own() -> None:
    source = build_quality("column:quality,low=0,high=10")
    example, _ = read_row({"prompt": "p", "response": "r", "quality": 7}, RowRules(columns=source.columns))
    assert rate(source, [example]).quality.tolist() == [np.float32(0.7)]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("jugde", "Did you mean 'judge'"),
        ("column:a,lo=1", "no parameter 'lo'"),
        ("column:a,low=5,high=1", "low first"),
        ("column:a,low=x", "two numbers"),
        ("rules:x", "not written as parameter=value"),
        ("reward", "model"),
        ("", "give a name"),
        (3, "give a name"),
        ({"model": "x"}, "without a name"),
        ("nowhere.py:Mine", "file"),
    ],
)
def test_a_wrong_source_is_refused_with_what_is_allowed(spec, words) -> None:
    with pytest.raises(LonggameError, match=words):
        build_quality(spec)


def test_a_column_that_no_row_has_is_refused() -> None:
    with pytest.raises(DataError, match="none of 20 rows has a number in the column 'stars'"):
        rate(ColumnQuality("stars"), EXAMPLES)


def test_a_column_that_a_first_shard_lacks_is_read_of_the_others(tmp_path) -> None:
    lines = [{"prompt": f"{n}", "response": "r"} | ({"stars": 3} if n == 3 else {}) for n in range(4)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sources = QualitySources.of("column:stars,low=1,high=5")
    rows = DataRows(open_source(tmp_path / "d.jsonl"), RowRules(columns=sources.columns))
    sources.begin(rows.block(0, 2), ["grade"])
    shards = [rate(sources.quality, tuple(rows.examples(shard))).grade for shard in ([0, 1], [2, 3])]
    np.testing.assert_array_equal(np.concatenate(shards), [NAN, NAN, NAN, 3])
    for spec in ("column:quality", "column:moons"):
        with pytest.raises(DataError, match="none of 4 rows has a number in the column"):
            QualitySources.of(spec).begin(rows, ["quality"])


def test_a_column_that_no_row_has_names_those_that_are_there(tmp_path) -> None:
    lines = [{"prompt": "p", "response": f"{n}", "rating": 3, "topic": "a", "quality": None} for n in range(4)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, words in (
        ("ratings", "Did you mean 'rating'[?] Columns: prompt, rating, response, topic[.]"),
        ("quality", "[^?] Columns: prompt, rating, response, topic[.]"),
    ):
        sources = QualitySources.of(f"column:{name},high=5")
        rows = DataRows(open_source(tmp_path / "d.jsonl"), RowRules(columns=sources.columns))
        with pytest.raises(DataError, match=words):
            sources.begin(rows, ["quality"])


def test_a_grade_outside_the_scale_names_the_example() -> None:
    with pytest.raises(DataError, match=r"its prompt: 'p'\) the grade 0\.95; its scale is 0 to 0\.9"):
        rate(ColumnQuality("q", 0, 0.9), [Example.make("p", "r", columns={"q": 0.95})])


STRANGER = """
import numpy as np
from longgame.signals.quality.base import QualitySource

class Mine(QualitySource):
    name = "mine"
    scale = (0, 100)
    def __init__(self, factor=1):
        self.factor = factor
    def grade(self, examples):
        {body}
"""


def stranger(tmp_path, body):
    path = tmp_path / f"mine{abs(hash(body))}.py"
    path.write_text(STRANGER.format(body=body))
    return f"{path}:Mine"


def test_a_strangers_source_grades_by_its_file(tmp_path) -> None:
    name = stranger(tmp_path, "return [self.factor * len(example.response) for example in examples]")
    assert rate(build_quality(f"{name}:factor=2"), EXAMPLES[:2]).grade.tolist() == [16, 32]
    assert rate(build_quality({"name": name}), EXAMPLES[:1]).quality.tolist() == [np.float32(0.08)]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 1.0", "one real number for each"),
        ("return [1.0]", "for 20 examples"),
        ("return ['a'] * len(examples)", "one real number for each"),
        ("return np.full(len(examples), np.inf)", "infinite"),
        ("return np.full(len(examples), 101)", "scale is 0 to 100"),
        ("raise KeyError('x')", r"failed in grade\(\): KeyError"),
        ("import sys; sys.exit(0)", r"failed in grade\(\)"),
    ],
)
def test_a_strangers_fault_is_told_in_words(tmp_path, body, words) -> None:
    with pytest.raises((PluginError, DataError), match=words):
        rate(build_quality(stranger(tmp_path, body)), EXAMPLES)


def test_a_class_that_is_no_source_is_refused(tmp_path) -> None:
    path = tmp_path / "other.py"
    path.write_text("class Mine:\n    pass\n")
    with pytest.raises(PluginError, match="does not derive"):
        build_quality(f"{path}:Mine")
    path.write_text(STRANGER.replace("def grade", "def graded").format(body="return 1"))
    with pytest.raises(PluginError, match="defines no grade"):
        build_quality(f"{path}:Mine")


def test_grades_may_be_missing_and_losses_may_not() -> None:
    column = np.asarray([1.0, NAN], dtype=np.float32)
    for name in ("quality", "grade", "complexity", "own_answer_quality"):
        assert np.isnan(Signals(("a", "b"), {name: column})[name][1])
    with pytest.raises(NumericalError, match="loss"):
        Signals(("a", "b"), {"loss": column})
    with pytest.raises(NumericalError, match="quality"):
        Signals(("a", "b"), {"quality": np.asarray([1.0, np.inf])})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("grade", "Give --quality SOURCE"),
        ("complexity", "Give --complexity SOURCE"),
        ("own_answer_quality", "answers="),
    ],
)
def test_a_signal_without_its_source_names_the_fix(name, words) -> None:
    with pytest.raises(RecipeError, match=words):
        SignalSource(no_engine)(pool_of(EXAMPLES), [name])


def test_own_answers_are_graded_in_place_of_the_response() -> None:
    class Length(RuleQuality):
        name = "length"
        scale = (0.0, 10.0)

        def grade(self, examples):
            assert all(example.quality is None for example in examples)
            return np.asarray([len(example.response) for example in examples])

    source = SignalSource(no_engine, quality=Length(), answers=lambda pool: ["four", " ", "a"])
    assert source(pool_of(EXAMPLES[:3]), ["own_answer_quality"])["own_answer_quality"].tolist() == [
        np.float32(0.4),
        0.0,
        np.float32(0.1),
    ]
    column = SignalSource(no_engine, quality=ColumnQuality(), answers=lambda pool: ["x"] * len(pool))
    with pytest.raises(RecipeError, match="cannot grade a new answer"):
        column(pool_of(EXAMPLES), ["own_answer_quality"])


def test_two_signals_of_one_source_ask_it_once() -> None:
    calls = []

    class Counted(RuleQuality):
        def grade(self, examples):
            calls.append(len(examples))
            return super().grade(examples)

    SignalSource(no_engine, quality=Counted())(pool_of(EXAMPLES), ["quality", "grade"])
    assert calls == [20]


def test_sources_of_a_job_tell_their_columns_and_identities() -> None:
    sources = QualitySources.of("column:a,low=0,high=5", "column:b,low=1,high=6")
    assert sources.columns == ("a", "b")
    assert sources.gives("grade") == sources.gives("quality") == "column a (0.0, 5.0)"
    assert sources.gives("complexity") == "column b (1.0, 6.0)"
    assert QualitySources.of(None).identity() == {}
    assert isinstance(QualitySources.of(None).quality, DefaultQuality)


# Reward models


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    """Classifiers on the tiny model's architecture with random weights; (labels) → directory."""
    folder = tmp_path_factory.mktemp("reward")

    def make(labels: int = 1, template: bool = True, name: str = "") -> str:
        path = folder / f"{labels}-{template}-{name}"
        if not path.exists():
            place = model_place("tiny")
            names = {row: f"label {row}" for row in range(labels)}
            config = AutoConfig.from_pretrained(place, num_labels=labels, id2label=names)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = AutoModelForSequenceClassification.from_config(config)
            tokenizer = AutoTokenizer.from_pretrained(place)
            if not template:
                tokenizer.chat_template = None
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
            (path / "chat_template.jinja").unlink(missing_ok=True) if not template else None
        return str(path)

    return make


def test_rewards_are_those_of_one_row_alone_whatever_the_batch(reward_model) -> None:
    place = reward_model()
    model = AutoModelForSequenceClassification.from_pretrained(place, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(place)
    expected = []
    for example in EXAMPLES:
        turns = [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.response}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.no_grad():
            expected.append(float(model(ids).logits[0, 0]))
    for batch_tokens in (1, 100, 10_000):
        ratings = rate(RewardQuality(place, batch_tokens=batch_tokens), EXAMPLES)
        np.testing.assert_allclose(ratings.grade, expected, atol=1e-5)
    assert ratings.quality.tolist() == pytest.approx([0.5 + r / (2 * (1 + abs(r))) for r in expected], abs=1e-6)


def test_a_closing_end_that_also_pads_is_read_as_the_last_token(reward_model) -> None:
    place = reward_model(name="pads with its end")
    config = AutoConfig.from_pretrained(place)
    config.pad_token_id = None
    config.save_pretrained(place)
    tokenizer = AutoTokenizer.from_pretrained(place)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(place)
    model = AutoModelForSequenceClassification.from_pretrained(place, dtype=torch.float32).eval()
    assert model.config.pad_token_id is None
    expected = []
    for example in EXAMPLES:
        ids = torch.tensor([RewardQuality(place)._tokens(tokenizer, example)])
        assert int(ids[0, -1]) == tokenizer.pad_token_id
        with torch.no_grad():
            expected.append(float(model(ids).logits[0, 0]))
    for batch_tokens in (1, 10_000):
        ratings = rate(RewardQuality(place, batch_tokens=batch_tokens), EXAMPLES)
        np.testing.assert_allclose(ratings.grade, expected, atol=1e-5)


def test_the_map_to_quality_keeps_the_order_of_large_rewards(reward_model) -> None:
    source = RewardQuality("any")
    rewards = np.asarray([-40, -30, -1, 0, 1, 30, 40, 41.0])
    quality = source.unit(rewards).astype(np.float32)
    assert (np.diff(quality) > 0).all()
    assert quality[3] == 0.5
    assert RewardQuality("any", low=0, high=4).unit(np.asarray([-1, 2, 9])).tolist() == [0, 0.5, 1]


def test_a_chosen_label_gives_the_log_odds_of_its_probability(reward_model) -> None:
    place = reward_model(labels=3)
    by_name, by_index = (rate(RewardQuality(place, label=label), EXAMPLES) for label in ("label 2", 2))
    others = [rate(RewardQuality(place, label=label), EXAMPLES).quality for label in (0, 1)]
    assert by_name.grade.tolist() == by_index.grade.tolist()
    np.testing.assert_allclose(by_name.quality + others[0] + others[1], 1, atol=1e-5)
    for label in (None, "label 9", 3, True):
        with pytest.raises(ModelError, match="label 0, label 1, label 2"):
            rate(RewardQuality(place, label=label), EXAMPLES)


def test_without_a_template_prompt_and_response_are_a_pair(reward_model) -> None:
    place = reward_model(template=False)
    source = RewardQuality(place)
    assert np.isfinite(rate(source, EXAMPLES).grade).all()
    tokenizer = AutoTokenizer.from_pretrained(place)
    assert tokenizer.chat_template is None
    assert source._tokens(tokenizer, EXAMPLES[1]) == tokenizer(EXAMPLES[1].prompt, EXAMPLES[1].response)["input_ids"]


def test_rows_beyond_the_context_are_missing_and_counted(reward_model) -> None:
    source = RewardQuality(reward_model())
    grades = rate(source, [EXAMPLES[0], Example.make("p", "many words " * 5000)]).grade
    assert np.isnan(grades).tolist() == [False, True]
    assert "1 of 2 rows are longer" in source.notes()[0]


def test_places_that_a_model_keeps_for_itself_hold_no_tokens(reward_model) -> None:
    place = reward_model(name="short")
    tokenizer = AutoTokenizer.from_pretrained(place)
    tokenizer.model_max_length = len(RewardQuality(place)._tokens(tokenizer, EXAMPLES[4])) - 1
    tokenizer.save_pretrained(place)
    assert np.isnan(rate(RewardQuality(place), [EXAMPLES[0], EXAMPLES[4]]).grade).tolist() == [False, True]


def test_a_checkpoint_without_a_head_is_no_reward_model() -> None:
    with pytest.raises(ModelError, match="lacks 1 weights.*sequence-classification"):
        rate(RewardQuality("tiny"), EXAMPLES)
    with pytest.raises(ModelError, match="nowhere/at/all"):
        rate(RewardQuality("nowhere/at/all"), EXAMPLES)
