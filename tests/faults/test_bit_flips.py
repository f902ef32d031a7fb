"""One flipped bit in any file of a run is either named with what to delete or put back, or changes nothing."""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
from peft import get_peft_model_state_dict
from safetensors.numpy import save

from longgame.audit.execute import run_audit
from longgame.audit.learner import make_learner, sequence_of
from longgame.audit.run import load_run
from longgame.audit.walk import Walk
from longgame.errors import LonggameError, ResumeError
from longgame.recipe import parse_recipe
from longgame.report.picks import first_trials, trial_details
from support.quadratic_audit import Silent

RECIPE = {
    "name": "small",
    "model": {"name": "tiny"},
    "data": {"pool_size": 24, "items_per_skill": 1, "ood_items_per_skill": 1},
    "selectors": ["random"],
    "seeds": [0],
    "rounds": 1,
    "training": {"steps": 1, "warmup_steps": 0},
    "probe": {"kinds": ["common"], "steps": 1, "points": 2},
}
REMEDIES = ("Delete ", "delete ", "Put it back")


class StopError(BaseException): ...


class Stopping(Silent):
    def progress(self, job, stage, activity, step, steps):
        if stage == 2:
            raise StopError


class Runs:
    """A run that was stopped after its first stage, the same run finished, and a learner to resume it with."""

    def __init__(self, folder):
        self.recipe = parse_recipe(RECIPE)
        self.stopped, self.finished = folder / "stopped", folder / "finished"
        with pytest.raises(StopError):
            run_audit(self.recipe, self.stopped, workers=1, threads=1, display=Stopping())
        shutil.copytree(self.stopped, self.finished)
        run_audit(self.recipe, self.finished, workers=1, threads=1, display=Silent())
        self.sequence = sequence_of(self.recipe, 0)
        self.learner = make_learner(self.recipe, 0)

    def read(self, folder):
        """All that a report reads of a run."""
        run = load_run(folder)
        details = [repr(detail) for detail in trial_details(run, first_trials(run, 1))]
        seconds = run.results["unit"] == "s"
        return [
            run.results[~seconds].to_csv(),
            run.scorecard.summary.to_csv(),
            run.results.loc[seconds, "name"].tolist(),
            None if run.picks is None else run.picks.frame().to_csv(),
            json.dumps(run.environment, sort_keys=True),
            repr(run.contamination),
            run.recipe,
            run.progress,
            details,
        ]

    def resume(self, folder):
        """All that the next stage reads."""
        run = load_run(folder)
        trial = run.plan.trials[0]
        walk = Walk.start(trial, run.recipe, self.learner, self.sequence)
        missing = walk.missing_stages(*run.stores(trial))
        return [missing, {name: weight.tolist() for name, weight in self.learner.adaptation.copy().items()}]


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("flips"))


def flipped(content, rng, between):
    """The content with one bit flipped: in the first and last byte, inside each member, and at places between."""
    places = {0, len(content) - 1, *rng.integers(len(content), size=between).tolist(), *members(content)}
    for place in sorted(places):
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        yield place, bytes(changed)


def members(content):
    """A place inside each file of a part's archive."""
    if not content.startswith(b"PK"):
        return []
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [info.header_offset + 30 + len(info.filename) + info.file_size // 2 for info in archive.infolist()]


def kinds(folder):
    """One file of each kind: of several stages the first."""
    chosen = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
        name = path.relative_to(folder)
        chosen.setdefault(tuple(part.partition("-")[0] for part in name.parts), name)
    return list(chosen.values())


def answer(use, folder):
    try:
        return use(folder)
    except LonggameError as error:
        return error


@pytest.mark.parametrize("between", [2, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("part", ["finished", "stopped"])
def test_a_flipped_bit_is_named_or_harmless(runs, part, between, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(getattr(runs, part), folder)
    use = runs.read if part == "finished" else runs.resume
    expected = use(folder)
    rng = np.random.default_rng(0)
    named = dict.fromkeys(kinds(folder), 0)
    for name in named:
        content = (folder / name).read_bytes()
        for place, changed in flipped(content, rng, between):
            (folder / name).write_bytes(changed)
            outcome = answer(use, folder)
            if isinstance(outcome, LonggameError):
                named[name] += 1
                assert any(remedy in str(outcome) for remedy in REMEDIES), (name, place, str(outcome))
                assert "Traceback" not in str(outcome)
            else:
                assert outcome == expected, f"{name}: the flipped bit of byte {place} is used"
        (folder / name).write_bytes(content)
    assert use(folder) == expected
    read = {str(name) for name, count in named.items() if count}
    if part == "stopped":
        files = (".learner/adapter_model.safetensors", ".learner/learner.json", ".zip")
        assert {"seeds/seed-0/base.zip", *(f"trials/random-s0/stage-1{file}" for file in files)} <= read
    else:
        assert {"recipe.yaml", "environment.json", "trials/random-s0/stage-1.zip"} <= read
        assert {"results.parquet", "picks.parquet", "measured.safetensors", "tables.json"}.isdisjoint(
            read
        )  # made again of the stages


def test_a_stage_under_another_name_is_refused(runs, tmp_path):
    shutil.copytree(runs.finished, tmp_path / "run")
    trial = tmp_path / "run" / "trials" / "random-s0"
    shutil.copy(trial / "stage-3.zip", trial / "stage-2.zip")
    with pytest.raises(LonggameError, match=r"done\.json cannot be read \(it is that of stage-3\)\. Delete"):
        _ = load_run(tmp_path / "run").results


def exchanged(learner, change):
    """The adapter's tensors after a change, as a file would hold them."""
    weights = {name: np.asarray(weight) for name, weight in change(learner).items()}
    return save(weights)


def tensors(learner):
    state = get_peft_model_state_dict(learner.model, save_embedding_layers=False)
    return {name: weight.detach().numpy() for name, weight in state.items()}


ADAPTERS = {
    "none missing": (lambda learner: tensors(learner), None),
    "one missing": (lambda learner: dict(list(tensors(learner).items())[1:]), "1 of [0-9]+ tensors are missing"),
    "all missing": (lambda _: {}, "tensors are missing"),
    "one more": (lambda learner: tensors(learner) | {"x": np.zeros(1)}, "1 tensors are not of this model"),
    "another rank": (
        lambda learner: {name: weight[:1] for name, weight in tensors(learner).items()},
        r"has the shape \(.*\); this model's has",
    ),
}


@pytest.mark.parametrize(("change", "message"), ADAPTERS.values(), ids=ADAPTERS)
def test_adapters_of_another_form_are_refused(runs, tmp_path, change, message):
    runs.learner.save(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(exchanged(runs.learner, change))
    if message is None:
        runs.learner.load(tmp_path)
        return
    with pytest.raises(ResumeError, match=message):
        runs.learner.load(tmp_path)
