"""Each extraction rule against cases worked out by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longgame.data.examples import Example
from longgame.errors import DataError
from longgame.evaluation import answers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{42}.", "42"),
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{{a}{b}} end", "{a}{b}"),
        (r"\boxed{never closed", None),
        ("no box", None),
    ],
)
def test_boxed(text, expected) -> None:
    assert answers.boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4 + 4 = 8\n#### 8", "8"),
        ("#### 1\nno: #### 2 \nmore", "2"),
        ("####7", "7"),
        ("### 8", None),
        ("####\n8", None),
    ],
)
def test_after_hashes(text, expected) -> None:
    assert answers.after_hashes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So the answer is No.", "No"),
        ("The answer is 3.5. I am sure.", "3.5"),
        ("Answer: 12 apples\nbecause", "12 apples"),
        ("the final answer is: (B)", "(B)"),
        ("The answer is 1. Wait, the answer is 2", "2"),
        ("the answer = x + 1", "x + 1"),
        ("the answers vary", None),
        ("this isn't an answer", None),
    ],
)
def test_stated(text, expected) -> None:
    assert answers.stated(text) == expected


def test_marks_have_an_order_box_before_hashes_before_words() -> None:
    assert answers.marked(r"the answer is 1 #### 2 \boxed{3}") == "3"
    assert answers.marked("#### 2\nthe answer is 1") == "2"
    assert answers.marked("the answer is 1") == "1"
    assert answers.marked("1") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("18", 18),
        (" 18. ", 18),
        ("1,234,567", 1234567),
        ("$1,128,447", 1128447),
        ("-$5", -5),
        ("− 5".replace(" ", ""), -5),
        ("3.50", Fraction(7, 2)),
        (".5", Fraction(1, 2)),
        ("50%", 50),
        ("1/2", Fraction(1, 2)),
        ("2/4", Fraction(1, 2)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"$\dfrac{-1}{2}$", Fraction(-1, 2)),
        (r"\$30", 30),
        ("0", 0),
        ("0.10", Fraction(1, 10)),
        ("12,34", None),
        ("007", None),
        ("1/0", None),
        ("18 apples", None),
        ("1 2", None),
        ("", None),
        ("x", None),
        ("1/2/3", None),
    ],
)
def test_parse_number(text, expected) -> None:
    assert answers.parse_number(text) == expected


def test_fractions_equal_decimals_only_where_exact() -> None:
    assert answers.parse_number("1/4") == answers.parse_number("0.250")
    assert answers.parse_number("1/3") != answers.parse_number("0.3333333333333333")


@given(st.integers(-(10**12), 10**12), st.integers(0, 3))
def test_a_number_survives_commas_and_trailing_zeros(value, zeros) -> None:
    decimals = "." + "0" * zeros if zeros else ""
    assert answers.parse_number(f"{value:,}{decimals}") == value
    assert answers.number_answered(f"It is then {value:,}{decimals}") == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She has 3 apples and buys 4, so 7.", 7),
        ("5-3 = 2", 2),
        ("10 - 4", 4),
        ("x=-3", -3),
        ("costs $1,200.50 now", Fraction("1200.5")),
        ("in H2O there are 2", 2),
        ("12 / 225", Fraction(12, 225)),
        ("the answer is 18 of 20 dollars", 20),
        ("#### 5 (from 6)", 5),
        ("the answer is unclear, maybe 5 or", 5),
        ("the answer is unclear.\n12", None),
        ("none here", None),
        ("abc1", None),
    ],
)
def test_number_takes_the_marked_answer_else_the_last_number(text, expected) -> None:
    assert answers.number_answered(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        ("No, because yes would be wrong.", "no"),
        ('"True."', "true"),
        ("It was there. So yes", "yes"),
        ("Yes at first. So the answer is No.", "no"),
        ("nothing", None),
        ("the answer is perhaps", None),
    ],
)
def test_truth_word(text, expected) -> None:
    assert answers.truth_word(text) == expected


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("B", 4, 1),
        ("B. False", 2, 1),
        ("(C) green", 3, 2),
        ("C: green", 3, 2),
        ("D. too far", 3, None),
        ("A dog barks", 3, None),
        ("The answer is (B).", 4, 1),
        (r"\boxed{C}", 4, 2),
        ("#### A", 4, 0),
        ("It must be (A), no, (B)", 4, 1),
        ("Because of that", 4, None),
        ("B\nbecause", 4, 1),
        ("b", 4, 1),
        ("B", 0, None),
    ],
)
def test_letter(text, options, expected) -> None:
    assert answers.letter(text, options) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("red", 0),
        ("Red.", 0),
        ("dark red", 2),
        ("dark red, I think", 2),
        ("the answer is blue.", 1),
        ("reddish", None),
        ("not red", None),
    ],
)
def test_option(text, expected) -> None:
    assert answers.option(text, ("red", "blue", "dark red")) == expected


def test_normalize_folds_case_space_quotes_and_final_punctuation() -> None:
    assert answers.normalize('  "The   Beatles!" ') == "the beatles"
    assert answers.normalize("ＡＢＣ") == "abc"
    assert answers.normalize("3.5") == "3.5"


def item(answer: str | tuple[str, ...] | None, response: str = "r", choices: tuple[str, ...] | None = None) -> Example:
    return Example.make("p", response, answer=answer, choices=choices)


@pytest.mark.parametrize(
    ("answer", "choices", "right", "wrong"),
    [
        ("18", None, ["18", "so $18.00 each", "#### 18"], ["19", "18 or 19", "eighteen", ""]),
        (("8", "eight"), None, ["8", "Eight."], ["nine", "seven"]),
        ("Yes", None, ["yes", "Yes, he would", "So the answer is yes."], ["no", "", "yesterday"]),
        ("a b c", None, ["a  b c", "A b c.", "the answer is a b c"], ["a b", "it is a b c"]),
        ("3 thousand", None, ["3 thousand", "(4+2)/2 = 3 thousand"], ["3", "= 2 thousand"]),
        ("B", ("red", "blue"), ["B", "B. blue", "blue", "(B) blue", "B. red"], ["A", "red", "A. blue", "the sea"]),
        (("Oslo", "Rome"), ("Oslo", "Bern", "Rome"), ["Oslo", "Rome", "C", "A. Oslo"], ["Bern", "B", "Bern or Rome"]),
        (("A", "C"), ("Oslo", "Bern", "Rome"), ["A", "C", "Rome", "(C) Rome", "Oslo"], ["B", "Bern", "A or C"]),
        (("A", "the north"), ("Oslo", "Bern"), ["A", "Oslo", "the north"], ["B", "Bern", "the south"]),
        ("No", ("Yes", "No"), ["No", "no, because", "So the answer is No."], ["Yes", "So the answer is yes"]),
        ("maybe", ("yes", "no", "maybe"), ["maybe", "Maybe. Who knows?"], ["yes", "no"]),
    ],
)
def test_matches_follows_the_kind_of_the_gold_answer(answer, choices, right, wrong) -> None:
    example = item(answer, choices=choices)
    assert [text for text in right if not answers.matches(example, text)] == []
    assert [text for text in wrong if answers.matches(example, text)] == []


def test_options_of_equal_text_are_equally_right() -> None:
    assert answers.matches(item("B", choices=("bent", "bent", "straight")), "bent")


def test_matching_without_an_answer_is_refused() -> None:
    with pytest.raises(DataError, match="no `answer`"):
        answers.matches(item(None), "x")


def test_gold_options_are_known_by_letter_or_text_or_not_at_all() -> None:
    choices = ("red", "blue", "green")
    assert answers.gold_options(item("B", choices=choices)) == [1]
    assert answers.gold_options(item("Blue.", choices=choices)) == [1]
    assert answers.gold_options(item(("green", "A", "red"), choices=choices)) == [2, 0]
    assert answers.gold_options(item("D", choices=choices)) == []
    assert answers.gold_options(item("pink", choices=choices)) == []
    assert answers.gold_options(item("red")) == []


def test_program_is_no_short_answer() -> None:
    assert not answers.is_short(item("assert f(1) == 2\nassert f(2) == 3", "def f(x): return x + 1"))
    assert answers.is_short(item("1 2\n3 4", "1 2\n3 4"))
    assert answers.is_short(item("7"))
    assert not answers.is_short(item(None))


OPTIONS = ("Lima", "Oslo", "Cairo", "Quito")


@pytest.mark.parametrize(
    ("answer", "choices", "right", "wrong"),
    [
        # a unit or another script touches the number, a letter before it does not make one
        (
            "24",
            None,
            ["24kg", "so 24min.", "答案：24元", "共24个", "it weighs 24 kg", "#### 24km"],
            ["A24", "m^24", "the 24th"],
        ),
        (
            "7/2",
            None,
            ["3½", "3 1/2", r"\boxed{3\frac{1}{2}}", r"\boxed{3\frac12}", r"$\frac{7}{2}$", "3.5"],
            ["31/2", "3"],
        ),
        (
            "12500",
            None,
            ["12,500", r"\boxed{12{,}500}", r"\boxed{12\,500}", "12\u00a0500", "12\u2009500", "1.25e4"],
            ["12", "500"],
        ),
        (
            "60",
            None,
            ["60%", r"\boxed{60\%}", "The answer is 20 + 40 = 60.", "Answer: for 5 days it costs $60"],
            ["20"],
        ),
        (
            "8",
            None,
            ["#### Summary\nIn the end, 8 remain.", "<answer>8</answer>", "<think>9</think>8"],
            ["<think>8</think>9", "<think>8"],
        ),
        # letters in every decoration
        (
            "C",
            OPTIONS,
            [
                "C",
                "c",
                "(C)",
                "**C**",
                "**Answer:** C",
                r"\boxed{\text{C}}",
                "C because it is on the Nile",
                "option C",
                "C is right",
            ],
            ["B", "A city on the Nile", "option D", ""],
        ),
        # words of truth
        (
            "no",
            None,
            ["No", "no, never", "So no.", "That is not true. So no"],
            ["I have no idea", "There is no way to tell", "yes"],
        ),
        ("false", None, ["False", "That is not true.", "it isn't true"], ["That is true", "not false"]),
        # a full stop in a name, a bar in a command
        ("C. P. E. Bach", None, ["The answer is C. P. E. Bach.", "c. p. e. bach"], ["The answer is C.", "Bach"]),
        ("cat a | sort", None, ["cat a | sort"], ["cat a", "sort"]),
        # formulas
        (
            r"\frac{\sqrt{3}}{2}",
            None,
            [r"\boxed{\frac{\sqrt{3}}{2}}", r"The answer is $\frac{1}{2}\sqrt{3}$."],
            [r"\boxed{\frac{\sqrt{3}}{4}}", "x"],
        ),
        ("$x^2 - 1$", None, ["$(x-1)(x+1)$"], ["$x^2 + 1$"]),
    ],
)
def test_answers_are_read_in_the_forms_that_models_write(answer, choices, right, wrong) -> None:
    example = item(answer, choices=choices)
    assert [text for text in right if not answers.matches(example, text)] == []
    assert [text for text in wrong if answers.matches(example, text)] == []


@pytest.mark.parametrize("answer", ["", "  ", "...", ("", "?")])
def test_an_empty_gold_answer_is_not_measured(answer) -> None:
    assert not answers.is_short(item(answer))


@pytest.mark.parametrize(
    "piece", [" ", "answer ", "answer is", "####", "\\boxed{", "<think>", "9", "9,", "not ", "(A)", "½", "$"]
)
def test_long_texts_are_read_in_linear_time(piece) -> None:
    text = piece * (400_000 // len(piece))
    for gold, choices in (("5", None), ("yes", None), ("a b", None), ("B", ("x", "y"))):
        assert not answers.matches(item(gold, choices=choices), text + "!")


@given(st.text(alphabet="0123456789.,/eE+-$%½ \n#*()=answeris\u00a0", max_size=60))
def test_no_text_breaks_the_rules(text) -> None:
    for gold, choices in (("5", None), ("1/2", None), ("no", None), ("word", None), ("B", ("x", "y"))):
        answers.matches(item(gold, choices=choices), text)
    assert all(isinstance(value, Fraction) for value in answers.numbers(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.25 × 10^4", 12500),
        (r"1.25 \times 10^{4}", 12500),
        ("1.25·10⁴ m", 12500),
        ("10^{-2}", Fraction(1, 100)),
        ("10³", 1000),
        ("x^10^3", None),
        ("1.25 x 10^-4", Fraction(1, 8000)),
        ("US$125 in all", 125),
        ("₹1,250", 1250),
        ("at 12:30", None),
        (r"\frac{3}4", Fraction(3, 4)),
        (r"\frac 3 4", Fraction(3, 4)),
        (r"so -\frac{3}{4}", Fraction(-3, 4)),
        ("-½", Fraction(-1, 2)),
        ("5 and 1/2 cups", Fraction(11, 2)),
        ("12'500", 12500),
        ("12_500", 12500),
        ("１２５", 125),
        ("it is –4 here", -4),
        ("3–4", 4),
        (r"so the answer is \(-4\)", -4),
        ("The answer is - 4", -4),
        ("The answer is 7, not 8.", 7),
        ("The answer is 7 rather than 8.", 7),
        ("The answer is\n\n7\nof 9", 7),
        ("Answer:\n$$7$$", 7),
        (r"\boxed{\text{7 jars}}", 7),
        (r"\boxed{7\text{ cm}^2}", 7),
        ("#### 7\n\n#### Notes\nchecked 3 times", 7),
        ("#### 1. Add\n3 + 4\n#### 2. Result\n7", 7),
    ],
)
def test_numbers_are_read_in_every_notation(text, value) -> None:
    assert answers.number_answered(text) == value


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("The right choice is C.", 2),
        ("I would go with C", 2),
        ("I pick (C), not (A)", 2),
        ("选C", 2),
        ("answer: c) Cairo", 2),
        ("Answer:\nC", 2),
        ("Answer: C (Cairo)", 2),
        ("{C}", 2),
        ("A is wrong, so C.", 2),
        ("The answer is not A. It is C.", 2),
        ("Not D but C", 2),
        ("I choose option c.", 2),
        ("C; B and D do not lie there", 2),
        ("A is far away. B is cold. So C.", 2),
        ("Ｃ", 2),
        ("It can't be A; it must be C", 2),
        ("Surely it is Cairo.", 2),
        ("It is not Lima. It is Cairo!", 2),
        ("B or C", None),
        ("Either Lima or Cairo.", None),
        ("A river runs through it", None),
        ("not C", None),
        ("option C is wrong", None),
    ],
)
def test_one_option_is_named_and_none_that_is_denied(text, place) -> None:
    example = item("C", choices=OPTIONS)
    assert answers.matches(example, text) == (place == 2)
    chosen = answers.letter(text, 4)
    chosen = answers.option(text, OPTIONS) if chosen is None else chosen
    assert (answers.mentioned(text, OPTIONS) if chosen is None else chosen) == place


@pytest.mark.parametrize(
    ("text", "right"), [("C", True), ("(c)", True), ("Cairo", True), ("A", False), ("A. Cairo", False)]
)
def test_a_gold_text_is_named_by_its_letter_too(text, right) -> None:
    assert answers.matches(item("Cairo", choices=OPTIONS), text) == right


@pytest.mark.parametrize("text", ["D", "**d**", "(D)", "Option D", "The answer is D because of it.", "It must be D."])
def test_a_gold_letter_needs_no_choices(text) -> None:
    assert answers.matches(item("D"), text)
    assert not answers.matches(item("E"), text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("This cannot be true.", "false"),
        ("It is never really true", "false"),
        ("True or false? False", "false"),
        ("Yes or no: no", "no"),
        ("Yes and no.", None),
        ("The claim is false because true cats purr.", "false"),
        ("Because it is true, yes.", "yes"),
        ("That is untrue.", "false"),
        ("The answer is no, not yes.", "no"),
    ],
)
def test_denials_pairs_and_reasons_do_not_mislead(text, expected) -> None:
    assert answers.truth_word(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is Gen. Grant.", "Gen. Grant"),
        ("The answer is J.R. Smith. He sings.", "J.R. Smith"),
        ("The answer is the U.S. They won.", "the U.S"),
        ("The answer is vitamin C. It helps.", "vitamin C"),
        ("The answer is No. 5. It smells.", "No. 5"),
        ("The answer is no. Never.", "no"),
        ("The answer is 8 a.m. on Friday.", "8 a.m. on Friday"),
        ("The answer is v1.2. See there.", "v1.2"),
    ],
)
def test_a_sentence_ends_behind_no_abbreviation(text, expected) -> None:
    assert answers.stated(text) == expected


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        ("x^2-1", [r"\boxed{(x-1)(x+1)}", "$x^2 - 1$"], ["x^2+1", "2"]),
        ("(3, 4)", [r"\boxed{(3,4)}", "$(3, 4)$"], ["(4, 3)", "(3, 5)"]),
        ("[0,1)", [r"\boxed{[0, 1)}"], ["(0,1)", "[0,1]"]),
        (r"\{2,5\}", [r"\boxed{\{5,2\}}"], [r"\{2\}"]),
        ("y=7", [r"\boxed{7}", "y = 7"], ["y=8"]),
        ("Lima", [r"\boxed{\text{Lima}}", "**Lima**"], [r"\text{Oslo}"]),
        ("12 kg", ["12kg", "12 kg."], ["12", "13kg"]),
        ("2024-05-01", ["2024-05-01"], ["2018", "2024-01-05"]),
        ("3^4", ["81", "$3^{4}$"], ["12", "34"]),
        (r"A \cup B", [r"A\cup B", r"\boxed{A \cup B}"], [r"A\cap B"]),
        ("1,2,5", ["1, 2, 5", r"\boxed{1, 2, 5}"], ["1,2", "1,2,6"]),
        ("Quito", ["- Quito", "# Quito", "> **Quito**"], ["- Lima"]),
        ("C++", ["C++"], ["C", "C+"]),
    ],
)
def test_formulas_wrappers_and_units_are_compared_by_meaning(gold, right, wrong) -> None:
    assert [text for text in right if not answers.matches(item(gold), text)] == []
    assert [text for text in wrong if answers.matches(item(gold), text)] == []


@pytest.mark.parametrize("name", ["think", "Think", "THINKING", "thought", "seed:think", "reasoning", "scratchpad"])
def test_thinking_in_any_tag_is_no_answer(name) -> None:
    assert answers.without_thinking(f"<{name}>Oslo</{name}>Lima") == "Lima"
    assert answers.without_thinking(f"Lima<{name}>Oslo") == "Lima"
    assert answers.marked(f"<{name}>Answer: Oslo</{name}><ANSWER> Lima </Answer> bye") == "Lima"


@pytest.mark.parametrize(
    ("opening", "closing"),
    [("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷"), ("<|begin_of_thought|>", "<|end_of_thought|>")],
)
def test_thinking_in_the_marks_of_model_families_is_no_answer(opening, closing) -> None:
    assert answers.without_thinking(f"{opening}Oslo{closing}Lima") == "Lima"
    assert answers.without_thinking(f"{opening}Oslo") == ""


@pytest.mark.parametrize("text", ["12 + 3 = 15", "15 kg", "It is 15, not 12.", r"\boxed{15}"])
def test_options_that_are_numbers_are_read_as_numbers(text) -> None:
    choices = ("12", "15", "18")
    assert answers.matches(item("15", choices=choices), text)
    assert answers.matches(item("B", choices=choices), text)
    assert not answers.matches(item("A", choices=choices), text)


COMPOUND = """5h30m | 5h30 | 3m20s | 1h30min | 2 hours and 30 minutes | 5 h 30 min | 1 hour, 20 minutes and 5 seconds
5'11" | 5′11″ | 5 ft 11 in | 6 feet, 2 inches | 5lb 3oz | 2 kg 300 g | 5 dollars and 30 cents | 40°26'46"N
1.2.3 | v2.0.1 | 10.0.0.1 | 2024-05-01 | 05/01/2024 | 1.5.2024 | 1-800-555-0199 | 2023–11–12
3:2 | 12:30:45 | 3x4 | 8.5x11 | (3, 4) | (40.7, -74.0)""".replace("\n", " | ").split(" | ")


@pytest.mark.parametrize("text", COMPOUND)
@pytest.mark.parametrize("frame", ["{}", "The answer is {}.", "So it is {}"])
def test_numbers_that_are_one_value_together_answer_none(text, frame) -> None:
    assert answers.number_answered(frame.format(text)) is None
    assert answers.number_answered(f"{text}. So 42") == 42
    assert answers.number_answered(f"\\boxed{{42}} or {text}") == 42


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 hours and 30 minutes, or 150 minutes", 150),
        ("150 minutes, or 2 hours and 30 minutes", 150),
        ("10-5=5", 5),
        ("20-5-3 = 12", 12),
        ("5-7 km", 7),
        ("$5-$7", 7),
        ("10-15%", 15),
        ("15m2", 15),
        ("3 km2", 3),
        ("90min", 90),
        ("10am", 10),
        ("48-inch", 48),
        ("a 5-year plan", 5),
        ("5 - 7", 7),
        ("between 4 and 6", 6),
        ("3 x 4", 4),
        ("max(3, 4)", 4),
        ("1, 2, 3", 3),
        ("5 hours. 30 people came", 30),
        ("5 minutes and 7 hours", 7),
        ("3/4", Fraction(3, 4)),
        ("-5", -5),
        ("1,000.5", Fraction(2001, 2)),
        ("pi is 3.14.", Fraction(157, 50)),
    ],
)
def test_numbers_beside_each_other_are_still_read(text, value) -> None:
    assert answers.number_answered(text) == value


@pytest.mark.parametrize(
    ("reply", "gold", "right"),
    [
        ("The statement is false.", "B", True),
        ("This is not true.", "B", True),
        ("True or false? False", "False", True),
        ("True or false? False", "True", False),
        ("It is true.", "A", True),
        ("B", "B", True),
        ("B. True", "False", True),
    ],
)
def test_options_that_are_words_of_truth_are_read_as_such(reply, gold, right) -> None:
    assert answers.matches(Example.make("q", "r", answer=gold, choices=("True", "False")), reply) is right


@pytest.mark.parametrize(
    ("reply", "right"),
    [("No idea.", False), ("No doubt: yes.", False), ("Yes and no", False), ("So it would be no.", True)],
)
def test_a_word_of_truth_that_answers_nothing_chooses_no_option(reply, right) -> None:
    assert answers.matches(Example.make("q", "r", answer="No", choices=("Yes", "No")), reply) is right


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is minus 3.", -3),
        ("x = negative 3", -3),
        ("5 minus 3 = 2", 2),
        ("It is minus $4", -4),
        ("x minus 3", 3),
        ("5 kg minus 3", 3),
    ],
)
def test_negative_numbers_in_words_are_negative(text, value) -> None:
    assert answers.number_answered(text) == value
