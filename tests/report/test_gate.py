import pytest

from longgame.errors import RecipeError
from longgame.metrics.comparisons import Across
from longgame.report.answer import VERDICTS, Claim, parse_condition, true_claims


def test_claims_are_read_with_names_as_they_stand():
    text = "myopic(my-selector) or  worse( path/to/file.py:Class ) or better(a (b) c)"
    assert parse_condition(text) == (
        Claim("myopic", "my-selector"), Claim("worse", "path/to/file.py:Class"), Claim("better", "a (b) c"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read"),
        ("myopic", "cannot be read"),
        ("myopic()", "cannot be read"),
        ("myopic(loss", "cannot be read"),
        ("myopic(loss) and worse(loss)", "' or '"),
        ("myopic(loss) or", "' or '"),
        ("myopic(loss) or ", "' or '"),
        ("myopic(loss)or worse(loss)", "' or '"),
        ("not myopic(loss)", "cannot be read"),
        ("myopc(loss)", "Did you mean 'myopic'"),
        ("__import__('os').system('x')", "cannot be read"),
    ],
)
def test_what_is_not_a_condition_is_a_sentence(text, said):
    with pytest.raises(RecipeError) as error:
        parse_condition(text)
    assert said in str(error.value)


def test_claims_hold_as_the_verdicts_say(card, hostile):
    assert [line.split(":")[0] for line in true_claims(parse_condition("myopic(ahead) or worse(ahead)"), card)] == [
        "myopic(ahead)"
    ]
    assert len(true_claims(parse_condition("myopic(*)"), card)) == 1
    assert true_claims(parse_condition("worse(*) or better(*)"), card) == []
    words = dict(zip(card.verdicts["selector"], card.verdicts["verdict"], strict=False))
    word = next(name for name, said in VERDICTS.items() if said.format(reference="random") == words[hostile])
    assert len(true_claims((Claim(word, hostile),), card)) == 1


def test_a_guard_does_not_pass_because_of_a_wrong_name(card):
    with pytest.raises(RecipeError, match="Did you mean 'ahead'"):
        true_claims(parse_condition("myopic(ahed)"), card)
    with pytest.raises(RecipeError, match="compared with"):
        true_claims(parse_condition("myopic(random)"), card)


def test_a_claim_that_holds_in_another_condition_alone_holds_and_names_it(synthetic):
    make_results, make_card, _ = synthetic
    results = make_results()
    myopic = make_card(results)
    better = (results["selector"] == "ahead") & (results["kind"] == "score") & (results["stage"] > 0)
    results.loc[better, "value"] += 40
    own = make_card(results)
    across = Across.build({"": own, "data.noise=0.3": myopic}, {})
    claims = parse_condition("myopic(ahead)")
    assert true_claims(claims, own) == []
    (held,) = true_claims(claims, own, across)
    assert held.startswith("myopic(ahead) in condition 'data.noise 0.3': against random: ")
    (held,) = true_claims(parse_condition("better(*)"), own, across)
    assert held.startswith("better(ahead): ")


def test_the_mean_over_orders_is_asked_too(card):
    across = Across.build({"": card, "order=2-1-3": card}, {"order=*": ["", "order=2-1-3"]})
    held = [line.partition(":")[0] for line in true_claims(parse_condition("myopic(ahead)"), card, across)]
    assert held == [
        "myopic(ahead)", "myopic(ahead) in condition 'order 2-1-3'", "myopic(ahead) in condition 'mean of orders'",
    ]  # fmt: skip
