"""Data files and recipes as people and programs write them: read right, or refused in one sentence. A row a fault."""

from __future__ import annotations

import contextlib
import gzip
import json
import string

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from longgame.audit.checks import check_scorers
from longgame.data.examples import Example
from longgame.data.score_files import read_scores
from longgame.data.sources import load_examples
from longgame.errors import DataError, LonggameError, ModelError, RecipeError
from longgame.models.adaptation import LoraAdaptation
from longgame.recipe import LoraSpec, ModelSpec, load_recipe, parse_recipe
from longgame.signals.quality.rules import quality_scores
from longgame.training.candidates import pool_of, tokens_and_labels
from support.signals import llama

ROW = {"prompt": "Name a bird.", "response": "Heron"}


def load(tmp_path, content, name="d.jsonl"):
    path = tmp_path / name
    rows = content if isinstance(content, list) else [content]
    raw = content if isinstance(content, bytes) else "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return load_examples(str(path), data_dir=None, split="eval")


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz"])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_marks_and_line_ends_of_editors_change_nothing(tmp_path, name, ending, mark) -> None:
    (example,) = load(tmp_path, mark + json.dumps(ROW).encode() + ending, name)
    assert (example.prompt, example.response) == ("Name a bird.", "Heron")


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"instruction": "Add", "input": "2 3", "output": "5", "system": "Use words."},
         (("system", "Use words."), ("user", "Add\n\n2 3"))),
        ({**ROW, "system_prompt": "Be brief."}, (("system", "Be brief."), ("user", "Name a bird."))),
        ({"instruction": "And 4?", "output": "9", "history": [["2+3?", "5"]]},
         (("user", "2+3?"), ("assistant", "5"), ("user", "And 4?"))),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "system": "S"},
         (("system", "S"), ("user", "q"))),
        ({**ROW, "system": "", "history": [], "tools": None}, None),
    ],
)  # fmt: skip
def test_system_prompts_and_history_are_kept(tmp_path, row, turns) -> None:
    assert load(tmp_path, row)[0].messages == turns


TURN = {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROW, "tools": ["add"]}, "'tools' holds a text that is no JSON"),
        ({**ROW, "reasoning_content": "Hm."}, "has 'reasoning_content'"),
        ({**ROW, "images": ["a.png"]}, "has 'images'"),
        ({"messages": [TURN, {"role": "assistant", "content": "", "tool_calls": [{"f": 1}]}]},
         "a tool call has no name"),
        ({"messages": [{"role": "system", "content": "S"}, TURN, {"role": "assistant", "content": "a"}], "system": "T"},
         "has a system prompt of its own and one among its messages"),
        ({**ROW, "reasoning": "Hm."}, "has 'reasoning'"),
        ({**ROW, "system": "S", "system_message": "T"}, "has several system prompts"),
        ({**ROW, "input": "2 3"}, "has 'input' beside the columns that are read, and it would be lost"),
        ({**ROW, "output": "Finch"}, "has 'output' beside"),
        ({"instruction": "i", "input": "a", "context": "b", "output": "o"}, "has 'context' beside"),
        ({"text": "t", "prompt": "p"}, "has 'prompt' beside"),
        ({"messages": [{"role": " ", "content": "q"}, {"role": "assistant", "content": "a"}]}, "role is blank"),
        ({"messages": [{"role": "human", "content": "q"}]}, r"no assistant turn \(its roles: user\)"),
        ({"messages": "[]"}, "'messages' is a text"),
        ({**ROW, "response": "\u200b\u00a0"}, "the response is empty"),
        ({**ROW, "choices": ["a", " "]}, "'choices' holds an empty text"),
        ({**ROW, "choices": ["a", "b"], "answer": "1"}, "'answer' is the text '1', none of the choices"),
        ({**ROW, "answer": float("inf")}, "'answer' is neither"),
        (b'{"prompt": "p", "response": "r", "response": "s"}\n', "has the field 'response' twice"),
        ({**ROW, "history": "2+3? 5"}, "'history' is a str, not a list of pairs"),
        ({**ROW, "history": [["q"]]}, "'history' holds something else than pairs"),
        ({**ROW, "response": 5}, "'response' is a int, not a text"),
        ({**ROW, "answer": 4, "choices": ["a", "b"]}, "'answer' is 4, the number of none of 2 choices"),
        ({**ROW, "answer": {"a": 1}}, "'answer' is neither"),
        (b'{"prompt": "p", "response": "x \\ud83d"}\n', r"'response' holds half of a surrogate pair \('\\ud83d'\)"),
        (b'{"prompt": "\\ude00", "response": "x"}\n', "'prompt' holds half of a surrogate pair"),
        (b'{"prompt": "p", "response": "x", "choices": ["\\ude00"]}\n', "'choices' holds half"),
        (b"\xff\xfe{\x00", r"is not UTF-8 \(byte 1\)"),
        (b"[" * 100_000 + b"\n", "cannot be read as JSON"),
        (b'{"prompt": "p", "response": "r", "answer": ' + b"9" * 5000 + b"}\n", "cannot be read as JSON"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_kept_whole_is_refused(tmp_path, row, message) -> None:
    with pytest.raises(DataError, match=rf"d\.jsonl, line 1: .*{message}"):
        load(tmp_path, row)


@pytest.mark.parametrize("answer", ["", None, float("nan"), [], [""]])
def test_an_empty_answer_is_none(tmp_path, answer) -> None:
    assert load(tmp_path, {**ROW, "answer": answer})[0].answer is None


def test_a_whole_number_is_the_place_of_a_choice(tmp_path) -> None:
    rows = [{**ROW, "answer": 1, "choices": ["Bern", "Rome"]}, {**ROW, "answer": 2, "choices": ["1", "2"]}]
    rows += [{**ROW, "answer": 1.0, "choices": ["Bern", "Rome"]}, {**ROW, "answer": True, "choices": ["True", "False"]}]
    assert [example.answer for example in load(tmp_path, rows)] == ["Rome", "2", "Rome", "True"]


@pytest.mark.parametrize(
    "name", ["system", "system_prompt", "history", "tools", "input", "context", "skill", "source", "choices", "noisy"]
)
def test_a_cell_that_is_nan_is_missing(tmp_path, name) -> None:
    row = {"instruction": "Name a bird.", "output": "Heron"}
    assert load(tmp_path, {**row, name: float("nan")}) == load(tmp_path, row)


def test_a_column_that_repeats_what_is_read_is_no_loss(tmp_path) -> None:
    row = {"instruction": "Add", "input": "2 3", "output": "5"}
    copies = {"prompt": "Add", "response": "5", "messages": [{"role": "user", "content": "Add\n\n2 3"}]}
    copies["messages"].append({"role": "assistant", "content": "5"})
    assert load(tmp_path, {**row, **copies})[0].sample_id == load(tmp_path, row)[0].sample_id


@given(st.binary(max_size=120))
def test_any_bytes_are_read_or_refused(tmp_path_factory, raw) -> None:
    with contextlib.suppress(LonggameError):
        load(tmp_path_factory.mktemp("d"), raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["role", "content", "from", "value", "x"]), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
FIELDS = ["prompt", "response", "completion", "messages", "instruction", "input", "output", "question", "answer"]
FIELDS += ["context", "text", "choices", "quality", "noisy", "verifier", "system", "history", "skill"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5))
def test_any_row_is_read_or_refused(tmp_path_factory, row) -> None:
    try:
        (example,) = load(tmp_path_factory.mktemp("d"), row)
    except DataError:
        return
    assert example.response.strip()


@pytest.mark.parametrize("name", ["completion_mask", "assistant_masks"])
def test_masks_without_labels_decide_what_is_learned(name) -> None:
    feature = {"input_ids": [5, 6, 7, 8], "sample_id": "a", name: [0, 0, 1, 1]}
    assert tokens_and_labels(feature)[1].tolist() == [-100, -100, 7, 8]
    assert pool_of([feature]).response_tokens.tolist() == [2]
    assert tokens_and_labels({**feature, "labels": [-100, 6, 7, 8]})[1].tolist() == [-100, 6, 7, 8]
    with pytest.raises(DataError, match="must be equally long"):
        tokens_and_labels({**feature, name: [1]})
    assert np.array_equal(tokens_and_labels({"input_ids": [5, 6]})[1], [5, 6])


RECIPE = "name: a\nselectors: [random]\n"
NESTED = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RECIPE + "name: b\n", "is not valid YAML: line 3, column 1: the key 'name' stands twice"),
        (RECIPE + "training: {steps: 8, steps: 9}\n", "the key 'steps' stands twice"),
        (RECIPE + "training: {steps: true}\n", "steps is true; give a number"),
        (RECIPE + "budget: yes\n", "budget is true"),
        (RECIPE + "seeds: [0, no]\n", "seeds is false"),
        (RECIPE + "model: {name: on}\n", "name is true"),
        (RECIPE + "full_data: 1\n", "full_data is 1; give true or false"),
        (RECIPE + "oracle: 'yes'\n", "oracle is 'yes'; give true or false"),
        (RECIPE + "model: {name: ''}\n", "'model.name': is empty"),
        (RECIPE + "model: {per_seed: [tiny, ' ']}\n", "'model.per_seed.1': is empty"),
        (RECIPE + "model: {chat_template: ''}\n", "'model.chat_template': is empty"),
        (RECIPE + "model: {lora: {target_modules: []}}\n", "target_modules is empty; name linear layers"),
        (RECIPE + "model: {lora: {target_modules: [q_proj, '']}}\n", "'model.lora.target_modules.1': is empty"),
        (RECIPE + "data: {data_dir: ''}\n", "'data.data_dir': is empty"),
        (
            RECIPE + "data: {ood: [{name: o, eval: [e], train: [t]}], sequence: files, stages: [{name: s}]}\n",
            "OOD set 'o' names train files, which are never read",
        ),
        (RECIPE + "axes: {order: {permutations: 2, seed: -1}}\n", "'axes.order.seed': must be greater than"),
        ("name: a\nselectors: ['']\n", "'selectors.0.name': is empty"),
        (RECIPE + "seeds: [-1]\n", "'seeds.0': must be greater than or equal to 0"),
        (RECIPE + f"seeds: [{2**63}]\n", "'seeds.0': must be less than"),
        (RECIPE + "training: {steps: 8, warmup_steps: 9}\n", "'training': warmup_steps is 9 but a stage has 8 steps"),
        ("name: a\nselectors: [{name: loss, label: ' '}]\n", "'selectors.0.label': is empty; give it a name"),
        (RECIPE + "data: {sequence: files, stages: [{name: ''}]}\n", "'data.stages.0.name': is empty"),
        (NESTED, "its aliases stand for more than 100,000 values"),
        ("a: &a [*a]\n", "its aliases stand for more than"),
        ("- a\n", "holds a list; it must be a mapping"),
        ("", "holds a NoneType"),
    ],
)
def test_a_recipe_that_says_nothing_sensible_is_refused(tmp_path, text, message) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_a_recipe_of_an_editor_with_a_mark_is_read(tmp_path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + RECIPE.replace("\n", "\r\n").encode())
    assert load_recipe(path).name == "a"


@given(st.text(alphabet=string.printable, max_size=80))
def test_any_text_is_a_recipe_or_a_recipe_error(tmp_path_factory, text) -> None:
    path = tmp_path_factory.mktemp("r") / "r.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError):
        load_recipe(path)


KEYS = [
    "name",
    "selectors",
    "seeds",
    "budget",
    "rounds",
    "training",
    "data",
    "model",
    "axes",
    "probe",
    "metrics",
    "steps",
]


@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
def test_any_values_are_a_recipe_or_a_recipe_error(tmp_path_factory, values) -> None:
    path = tmp_path_factory.mktemp("r") / "r.yaml"
    path.write_text(yaml.safe_dump({"name": "a", "selectors": ["random"], **values}), encoding="utf-8")
    with contextlib.suppress(RecipeError):
        assert load_recipe(path).seeds


@pytest.mark.parametrize(
    "text",
    [
        "The set is [2, 5).",
        "It holds on (−1, 1] and on [3, 4].",
        "rain all afternoon\na snail on the garden wall\nkeeps its own counsel",
        "Z rana padał śnieg, więc dzieci zostały w szkole dłużej, a nauczycielka czytała im bajki, które znała jeszcze "
        "od swojej babci mieszkającej pod lasem.",
        "Pagi tadi anak itu pergi ke sungai dengan kakaknya untuk mencari ikan kecil yang biasa mereka lihat di bawah "
        "batu dekat jembatan tua.",
        "Barnet gikk til skolen med sekken full av bøker og en matpakke som moren hadde laget før hun dro til byen for "
        "å kjøpe maling til det nye huset.",
    ],
)
def test_quality_rules_leave_sound_texts_of_any_kind_alone(text) -> None:
    assert quality_scores([Example.make("Write about it.", text)])[0] == 1


@pytest.mark.parametrize("text", ["The set is [2, 5", "qzx wvut " * 12])
def test_quality_rules_still_find_damage(text) -> None:
    assert quality_scores([Example.make("Write about it.", text)])[0] < 0.6


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("q_proj", "v_porj"), "names 'v_porj', which no layer of .* is called. Did you mean 'v_proj'?"),
        (("nothing",), "LoRA cannot be put on target_modules"),
        ("nothing", "LoRA cannot be put on target_modules"),
        ("q_proj|(", "LoRA cannot be put on target_modules"),
    ],
)
def test_a_target_module_that_matches_nothing_is_refused(names, message) -> None:
    spec = ModelSpec(lora=LoraSpec(target_modules=names))
    with pytest.raises(ModelError, match=message):
        LoraAdaptation.attach(llama(), spec, 0)


def test_every_target_module_may_match_several_layers() -> None:
    spec = ModelSpec(lora=LoraSpec(target_modules=("q_proj", "layers.0.mlp.up_proj")))
    adapted = LoraAdaptation.attach(llama(), spec, 0)
    assert len(adapted.model.base_model.targeted_module_names) > 2


def file_recipe(tmp_path, scorers):
    rows = [{"prompt": f"Say {number}.", "response": f"word {number}", "choices": ["a", "b"]} for number in range(40)]
    for name, part in (("t.jsonl", rows[:30]), ("e.jsonl", rows[30:])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    stage = {"name": "s", "train": [str(tmp_path / "t.jsonl")], "eval": [str(tmp_path / "e.jsonl")], **scorers}
    data = {"sequence": "files", "stages": [stage], "pool_size": 10, "items_per_skill": 4}
    training, proxy = {"steps": 2}, {"items_per_skill": 0}
    return parse_recipe({"name": "a", "selectors": ["random"], "data": data, "training": training, "proxy": proxy})


@pytest.mark.parametrize("scorer", ["exact_match", "choice", "verifier"])
def test_a_scorer_that_measures_nothing_is_refused_early(tmp_path, scorer) -> None:
    recipe = file_recipe(tmp_path, {"scorers": ["likelihood", scorer]})
    with pytest.raises(DataError, match=f"scorer '{scorer}' measures none of the 4 items of task 's'"):
        check_scorers(recipe)
    check_scorers(file_recipe(tmp_path, {}))  # the default scorers may


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("s.csv", b"sample_id,score,score\na,1,2\n", "the column score stands twice"),
        ("s.csv", b"sample_id,score\na,1,2\nb,1\n", "a row has more fields than the first one names"),
        ("s.csv", b"sample_id,score\na,True\n", "score holds true or false"),
        ("s.csv", b"sample_id,score\na," + b"9" * 400 + b"\n", "a score has too many digits"),
        ("s.csv", b"sample_id,score\n\x00a,1\n", "which is no text"),
        ("s.csv", b"sample_id,score\n,1\n", "which is no text"),
        ("s.csv", b"sample_id;score\na;1\n", "it needs sample_id, and score or keep"),
        ("s.csv", b"sample_id,score\n\xe9,1\n", "cannot be read"),
        ("s.csv", b"sample_id,score\na,inf\n", "no finite number as score"),
        ("s.csv", b"", "cannot be read"),
        ("s.jsonl", b'{"sample_id": "a", "score": true}\n', "score holds true or false"),
        ("s.jsonl", b'{"sample_id": "a", "score": 1, "score": 2}\n', "line 1: has the field 'score' twice"),
        ("s.jsonl", b'{"sample_id": 1, "score": 1}\n', "sample_id holds 1, which is no text"),
        ("s.jsonl", b'{"sample_id": "\\ud83d", "score": 1}\n', "half of a surrogate pair"),
        ("s.jsonl", b"[1]\n", "line 1: holds a list"),
        ("s.jsonl", b"{\n", "line 1: is not valid JSON"),
        ("s.jsonl", b'{"sample_id": "a", "score": [1]}\n', "no finite number as score"),
        ("s.parquet", b"PAR1", "cannot be read"),
    ],
)
def test_scores_that_say_nothing_sensible_are_refused(tmp_path, name, raw, message) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=message):
        read_scores(str(tmp_path / name))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_scores_are_read_through_marks_and_line_ends(tmp_path, mark, end) -> None:
    lines = {
        "s.csv": [b"sample_id,score", b"01,2.5", b"b,-1"],
        "s.jsonl": [b'{"sample_id": "01", "score": 2.5}', b'{"sample_id": "b", "score": -1}'],
    }
    for name, rows in lines.items():
        (tmp_path / name).write_bytes(mark + end.join(rows) + end)
        scores = read_scores(str(tmp_path / name))
        assert (scores.ids, scores.score.tolist()) == (("01", "b"), [2.5, -1.0])


@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "~/data", "a", "a/b/c", "", "./a/b", "owner/../x"])
def test_a_name_that_is_no_hub_id_reads_no_path(name):
    with pytest.raises(DataError, match="must read hub:owner/name"):
        load_examples(f"hub:{name}", data_dir=None, split="train")


def test_a_folder_with_the_name_of_a_hub_id_is_not_read_in_its_place(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "train.jsonl").write_text(json.dumps(ROW) + "\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="'owner/name' is a folder here"):
        load_examples("hub:owner/name", data_dir=None, split="train")
