"""What a stranger's selector can do wrong ends in one sentence, and changes nothing that it is measured by."""

import os

import numpy as np
import pytest

from longgame.data.examples import read_only
from longgame.errors import PluginError
from longgame.registry import plugin_at_work
from longgame.selection.base import Selector, build_selector
from longgame.selection.history import History, Selection
from longgame.selection.policy import SelectionPolicy
from longgame.testing import check_selector_contract, example_pool, example_signals

POOL = example_pool(24)
BUDGET = int(POOL.costs.sum()) // 3


def choose(selector, pool=POOL):
    policy = SelectionPolicy(selector, History(), np.random.default_rng(0))
    policy.choose(pool, BUDGET, lambda pool, names: example_signals(pool, names))
    return policy.rounds[-1]


class Scored(Selector):
    """Scores by whatever it is made with."""

    name = "mine"
    requires = ("loss", "grad_sketch")

    def __init__(self, score):
        self.score = lambda pool, signals, history: score(pool, signals)

    def score(self, pool, signals, history): ...


class Chosen(Selector):
    name = "mine"

    def __init__(self, select):
        self.select = lambda pool, signals, history, budget, rng: select(pool, budget)

    def select(self, pool, signals, history, budget, rng): ...


N = len(POOL)
SCORES = {
    "text": lambda *_: ["high"] * N,
    "text array": lambda *_: np.array(["1"] * N),
    "bytes": lambda *_: np.array([b"1"] * N),
    "objects": lambda *_: [None] * N,
    "decimal objects": lambda *_: np.array([object()] * N),
    "complex": lambda *_: np.ones(N) * 1j,
    "dates": lambda *_: np.zeros(N, dtype="datetime64[s]"),
    "nothing": lambda *_: None,
    "one number": lambda *_: 1.0,
    "too few": lambda *_: np.ones(N - 1),
    "too many": lambda *_: np.ones(N + 1),
    "a column": lambda *_: np.ones((N, 1)),
    "ragged": lambda *_: [[1.0], *[[1.0, 2.0]] * (N - 1)],
    "a generator": lambda *_: (1.0 for _ in range(N)),
    "a set": lambda *_: {1.0},
    "no deciding term": lambda *_: {"loss": np.ones(N)},
    "a text term": lambda *_: {"score": np.ones(N), "why": ["x"] * N},
    "a short term": lambda *_: {"score": np.ones(N), "why": np.ones(3)},
}


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_scores_that_are_no_real_numbers_are_refused(score):
    with pytest.raises(PluginError, match=r"selector 'mine'.*(one real number for each|one of them must be 'score')"):
        choose(Scored(score))


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint64, np.float16, np.float32, np.float64])
def test_scores_of_any_real_dtype_are_taken(dtype):
    assert len(choose(Scored(lambda pool, _: (np.arange(len(pool)) % 2).astype(dtype))).picked_ids) > 0


ROWS = {
    "a list": lambda pool, _: [0],
    "nothing": lambda *_: None,
    "a mask": lambda pool, _: Selection(np.ones(N, dtype=bool), int(pool.costs.sum())),
    "floats": lambda pool, _: Selection(np.array([0.0]), int(pool.costs[0])),
    "text rows": lambda pool, _: Selection(np.array(["0"]), int(pool.costs[0])),
    "a row twice": lambda pool, _: Selection(np.array([0, 0]), int(2 * pool.costs[0])),
    "a negative row": lambda pool, _: Selection(np.array([-1]), int(pool.costs[-1])),
    "a row outside": lambda pool, _: Selection(np.array([N]), 5),
    "no rows": lambda pool, _: Selection(np.zeros(0, dtype=np.int64), 0),
    "two dimensions": lambda pool, _: Selection(np.array([[0]]), int(pool.costs[0])),
    "wrong tokens": lambda pool, _: Selection(np.array([0]), 1),
    "everything": lambda pool, _: Selection.of(pool, np.arange(N)),
    "text terms": lambda pool, _: Selection.of(pool, np.array([0]), {"score": np.array(["x"] * N)}),
    "object terms": lambda pool, _: Selection.of(pool, np.array([0]), {"score": np.array([None] * N)}),
    "terms that are no mapping": lambda pool, _: Selection(np.array([0]), int(pool.costs[0]), [1.0]),
}


@pytest.mark.parametrize("select", ROWS.values(), ids=ROWS)
def test_answers_that_are_no_selection_are_refused(select):
    with pytest.raises(PluginError, match="selector 'mine'"):
        choose(Chosen(select))


def squared(pool, signals):
    signals["loss"][:] = signals["loss"] ** 2
    return np.ones(len(pool))


def cheap(pool, signals):
    pool.tokens[:] = 1
    return np.ones(len(pool))


def in_place(name):
    def score(pool, signals):
        array = getattr(pool, name)
        (array[0] if isinstance(array, tuple) else array)[...] = 1
        return np.ones(len(pool))

    return score


def unlocked(pool, signals):
    signals["grad_sketch"].setflags(write=True)
    return np.ones(len(pool))


WRITES = {
    "signals": squared,
    "tokens": cheap,
    "costs": in_place("costs"),
    "prompt tokens": in_place("prompt_tokens"),
    "response tokens": in_place("response_tokens"),
    "flags": unlocked,
    "info": lambda pool, _: pool.info.update(x=1),
    "index": lambda pool, _: pool.index.clear(),
    "columns": lambda _, signals: signals.columns.pop("loss"),
    "fields": lambda pool, _: setattr(pool, "budget_of", "response"),
}


@pytest.mark.parametrize("score", WRITES.values(), ids=WRITES)
def test_writing_to_pool_or_signals_is_an_error(score):
    with pytest.raises(PluginError, match=r"selector 'mine' failed in select\(\)"):
        choose(Scored(score))
    with pytest.raises(PluginError, match=r"selector 'mine'"):
        check_selector_contract(lambda: Scored(score))


def replaced_tokens(pool, _):
    pool.__dict__["tokens"] = np.ones(len(pool), dtype=np.int64)
    return np.ones(len(pool))


def replaced_counts(pool, _):
    object.__setattr__(pool, "prompt_tokens", np.zeros(len(pool), dtype=np.int64))
    object.__setattr__(pool, "response_tokens", np.ones(len(pool), dtype=np.int64))
    pool.__dict__.pop("tokens", None)
    return np.ones(len(pool))


@pytest.mark.parametrize("score", [replaced_tokens, replaced_counts])
def test_costs_are_those_of_the_learner_and_the_contract_says_so(score):
    with pytest.raises(PluginError, match="spent .* tokens of"):
        choose(Scored(score))
    assert int(POOL.costs.sum()) > BUDGET
    with pytest.raises(PluginError, match="selector 'mine'"):
        check_selector_contract(lambda: Scored(score))


def test_replaced_signals_change_no_record():
    def score(pool, signals):
        object.__setattr__(signals, "columns", {"loss": np.zeros(len(pool)), "grad_sketch": np.zeros((len(pool), 3))})
        return np.arange(len(pool))

    expected = example_signals(POOL, ("loss",))["loss"]
    np.testing.assert_array_equal(choose(Scored(score)).signals["loss"], expected)


def test_scores_changed_after_the_choice_are_logged_as_they_decided():
    logged = np.arange(float(N))

    class Late(Scored):
        def remember(self, pool, signals, rows):
            logged[:] = -1
            rows[:] = 0

    entry = choose(Late(lambda *_: logged))
    np.testing.assert_array_equal(entry.selection.scores["score"], np.arange(float(N)))
    assert len(set(entry.selection.rows.tolist())) == len(entry.selection.rows)


class Stop(BaseException):
    pass


ENDS = [Stop("enough"), GeneratorExit(), SystemExit(0), MemoryError(), RecursionError(), StopIteration(), ValueError()]


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
def test_whatever_a_selector_raises_is_named(error):
    def score(*_):
        raise error

    with pytest.raises(PluginError, match=rf"selector 'mine' failed in select\(\): {type(error).__name__}"):
        choose(Scored(score))


@pytest.mark.parametrize("status", [0, 1])
def test_os_exit_is_an_error_and_its_name_is_given_back(status):
    leave = os._exit
    with pytest.raises(PluginError, match=rf"failed in select\(\): SystemExit: os\._exit\({status}\)"):
        choose(Scored(lambda *_: os._exit(status)))
    assert os._exit is leave


def test_a_forked_child_of_a_selector_ends_itself():
    with plugin_at_work("selector 'mine'", "select()"):
        child = os.fork()
        if not child:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


REQUIRES = {
    "'loss'": "is a string",
    "{'loss'}": "write a tuple",
    "{'loss': 1}": "write a tuple",
    "None": "write a tuple",
    "7": "write a tuple",
    "(7,)": "write a tuple",
    "(name for name in ('loss',))": "write a tuple",
    "('los',)": "unknown signal 'los'",
}
FILE = """
import numpy as np
from longgame import Selector

class Mine(Selector):
    name = "mine"
    {0}
    def score(self, pool, signals, history):
        return np.ones(len(pool))
"""


@pytest.mark.parametrize("of_instance", [False, True])
@pytest.mark.parametrize(("requires", "sentence"), REQUIRES.items())
def test_requires_that_is_no_tuple_of_signals_is_refused(tmp_path, requires, sentence, of_instance):
    line = f"def __init__(self): self.requires = {requires}" if of_instance else f"requires = {requires}"
    (tmp_path / "mine.py").write_text(FILE.format(line))
    with pytest.raises(PluginError, match=sentence):
        build_selector(f"{tmp_path / 'mine.py'}:Mine")


@pytest.mark.parametrize("name", ["name = ''", "name = None", "name = 7", "name = ('mine',)"])
def test_a_name_that_is_no_word_is_refused(tmp_path, name):
    (tmp_path / "mine.py").write_text(FILE.format(name))
    with pytest.raises(PluginError, match="lacks `name`"):
        build_selector(f"{tmp_path / 'mine.py'}:Mine")


@pytest.mark.parametrize(
    "array", [np.arange(4), np.zeros(0), np.ones((2, 3), np.float16)[:, ::2], np.array(["a"]), np.arange(6)[::-2]]
)
def test_read_only_views_hold_the_same_and_stay_locked(array):
    view = read_only(array)
    np.testing.assert_array_equal(view, array)
    assert view.dtype == array.dtype
    assert not view.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        view[...] = view
    assert array.flags.writeable
