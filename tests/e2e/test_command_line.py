"""What a user does wrong ends with one clear sentence and an exit code other than 0."""

import json

import pytest

from support.cli import longgame, longgame_here

QUADRATIC = """
name: q
model: {name: quadratic}
data: {sequence: quadratic, pool_size: 64}
selectors: [random, loss]
seeds: [0, 1]
training: {steps: 8, warmup_steps: 1}
probe: {steps: 4, points: 3}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("cli")
    (home / "q.yaml").write_text(QUADRATIC)
    (home / "tiny.yaml").write_text(
        "name: t\nselectors: [random]\nseeds: [0]\ndata: {pool_size: 40}\n"
        "training: {steps: 4}\nprobe: {steps: 2, points: 2}\n"
    )
    (home / "files.yaml").write_text(
        "name: f\nselectors: [random]\nseeds: [0]\nmodel: {name: tiny, max_length: 64}\n"
        "training: {steps: 2}\nprobe: {steps: 1, points: 2}\nproxy: {items_per_skill: 1}\n"
        "data: {sequence: files, pool_size: 4, items_per_skill: 1, stages: [{name: a, train: [toy], eval: [toy]}]}\n"
    )
    (home / "data" / "train").mkdir(parents=True)
    (home / "data" / "eval").mkdir()
    rows = [{"prompt": f"say {i}", "response": f"it is {i}"} for i in range(12)]
    (home / "data" / "eval" / "toy.jsonl").write_text("\n".join(map(json.dumps, rows[8:])) + "\n")
    return home


def wrong(home, *arguments):
    done = longgame_here(*arguments, cwd=home)
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr
    assert done.stderr.strip(), done.stdout
    return " ".join(done.stderr.split())


def toy(home, lines):
    (home / "data" / "train" / "toy.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit", "none.yaml"], "recipe 'none.yaml' does not exist"),
        (["audit", "q.yaml", "--selectors", "lsos"], "unknown selector 'lsos'. Did you mean 'loss'?"),
        (["audit", "q.yaml", "--selectors", "mine.py:Class"], "selector file 'mine.py' does not exist"),
        (["audit", "q.yaml", "--budget", "0"], "'budget': must be greater than 0 (seen: 0.0)"),
        (["audit", "q.yaml", "--seeds", "a,b"], "--seeds is 'a,b'"),
        (["audit", "q.yaml", "--out", "q.yaml"], "'q.yaml' is a file; results need a directory"),
        (["audit", "q.yaml", "--axis", "budget"], "--axis is 'budget'; write NAME=VALUE,VALUE"),
        (["audit", "q.yaml", "--axis", "budget=0.5,[", "--dry-run"], "--axis budget: '0.5,[' cannot be read"),
        (["audit", "q.yaml", "--axis", "data.nois=0.1"], "unknown key 'data.nois'"),
        (["audit", "q.yaml", "--axis", "budget=0.1", "--axis", "budget=0.5"], "--axis budget is given twice"),
        (["audit", "q.yaml", "--axis", "data.data_dir=data"], "'data.data_dir'"),
        (["audit", "q.yaml", "--axis", "order=rotation"], "'axes.order': must be rotations"),
        (["audit", "tiny.yaml", "--model", "nobody/no-such-model"], "nobody/no-such-model"),
        (["audit", "tiny.yaml", "--data-dir", "nowhere"], "--data-dir 'nowhere' is not a directory"),
        (["audit", "data"], "is a directory without a run"),
    ],
)
def test_a_wrong_option_is_one_clear_sentence(home, arguments, message):
    assert message in wrong(home, *arguments)


def test_unparsable_line_is_named_with_file_and_number(home):
    toy(home, ['{"prompt": "a", "response": "b"}', "{oops", '{"prompt": "a", "response": " "}'])
    message = wrong(home, "audit", "files.yaml", "--data-dir", "data", "--out", "r1")
    assert "toy.jsonl" in message
    assert "2" in message
    assert "1 more" in message


def test_a_pool_smaller_than_asked_for_is_an_error(home):
    toy(home, [json.dumps({"prompt": "p", "response": "r"})])
    message = wrong(home, "audit", "files.yaml", "--data-dir", "data", "--out", "r2")
    assert "pool_size" in message


def test_an_example_longer_than_the_context_is_named(home):
    toy(home, [json.dumps({"prompt": f"p{i}", "response": "word " * 200}) for i in range(8)])
    message = wrong(home, "audit", "files.yaml", "--data-dir", "data", "--out", "r3")
    assert "64" in message
    assert "max_length" in message


def test_audit_prints_its_scorecard_again_from_its_directory(home):
    first = longgame("audit", "q.yaml", "--out", "run", cwd=home)
    assert first.returncode == 0, first.stderr
    assert "random" in first.stdout
    again = longgame_here("audit", "run", cwd=home)
    assert again.returncode == 0, again.stderr
    tables = [out.partition("Written:")[0] for out in (first.stdout, again.stdout)]
    assert tables[0].splitlines()[-30:] == tables[1].splitlines()[-30:]
    changed = wrong(home, "audit", "q.yaml", "--out", "run", "--budget", "0.5")
    assert "budget: 0.25 there, 0.5 now" in changed


def test_a_dry_run_prints_the_plan_and_writes_nothing(home):
    done = longgame_here("audit", "q.yaml", "--dry-run", "--out", "dry", cwd=home)
    assert done.returncode == 0, done.stderr
    assert "4 trials" in done.stdout
    assert not (home / "dry").exists()


@pytest.mark.slow
def test_axes_on_the_command_line_add_conditions_to_a_run(home):
    first = longgame_here("audit", "q.yaml", "--seeds", "0", "--out", "axes", cwd=home)
    assert first.returncode == 0, first.stderr
    axes = ("budget=0.5", "order=permutations: 1", "rounds=1,2", "data.noise=0.3")
    options = [argument for axis in axes for argument in ("--axis", axis)]
    plan = longgame_here("audit", "q.yaml", "--seeds", "0", "--out", "axes", "--dry-run", *options, cwd=home)
    assert "12 trials" in plan.stdout
    assert "done 2 time(s) for 6 condition(s)" in " ".join(plan.stdout.split())
    done = longgame_here("audit", "q.yaml", "--seeds", "0", "--out", "axes", *options, cwd=home)
    assert done.returncode == 0, done.stderr
    assert "loss-s0@budget=0.5 done" in done.stdout
    assert "loss-s0 done" not in done.stdout
    assert "long-horizon score by condition" in done.stdout
    again = longgame_here("audit", "axes", cwd=home)
    assert "long-horizon score by condition" in again.stdout
    lost = wrong(home, "audit", "q.yaml", "--seeds", "0", "--out", "axes")
    assert "holds trials that this recipe does not ask for: " in lost
