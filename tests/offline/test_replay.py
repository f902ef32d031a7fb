"""Rows of earlier data in a subset: the share kept, each choice by its numbers, and what is missing with the fix."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import longgame
from longgame.data.sources import open_source
from longgame.errors import DataError, RecipeError, ResumeError
from longgame.offline import replaying
from longgame.offline.options import SelectOptions
from longgame.offline.rows import DataRows
from longgame.offline.score_folder import ScoreFolder
from longgame.offline.scorer import ModelOptions
from longgame.offline.scoring import score_into
from longgame.offline.selecting import select_to
from longgame.seeding import generator
from longgame.selection.budget import fill_budget
from support.cli import longgame_here

from .conftest import ROWS, jsonl

TINY = ModelOptions(name="tiny")
OLD = [
    [{"prompt": f"stage {stage}, item {n}", "response": "yes " * (1 + n % 3), "skill": "ab"[n % 2]} for n in range(24)]
    for stage in (1, 2)
]


@pytest.fixture
def earlier(tmp_path: Path) -> list[Path]:
    return [jsonl(tmp_path / f"old-{number}.jsonl", rows) for number, rows in enumerate(OLD, start=1)]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of scores as if made at the end of each stage, by another model than the one of now."""
    folder = tmp_path_factory.mktemp("ends")
    for number, rows in enumerate(OLD, start=1):
        data = DataRows(open_source(jsonl(folder / f"{number}.jsonl", rows)))
        score_into(data, ["loss"], folder / f"end-{number}", ModelOptions(name="tiny-1"))
    return [folder / "end-1", folder / "end-2"]


def replayed(path: Path) -> list[str]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row["longgame_sample_id"] for row in rows if row["longgame_replayed"]]


def test_uniform_draw_is_one_permutation_of_the_rows(data: Path, earlier: list[Path], tmp_path: Path) -> None:
    options = SelectOptions(budget="20rows", replay_share=0.25, seed=3)
    select_to(data, tmp_path / "o.jsonl", options, replay=earlier[0])
    ids = DataRows(open_source(earlier[0])).ids
    order = generator(3, "selection", "replay").permutation(24)
    assert replayed(tmp_path / "o.jsonl") == [ids[row] for row in np.sort(fill_budget(order, np.ones(24, int), 5))]


@pytest.mark.parametrize("choice", ["uniform", "targeted", "damage:items=6", "distance:items=8", "surprise", "fit"])
def test_every_choice_keeps_the_share_of_tokens(
    choice: str, data: Path, earlier: list[Path], ends: list[Path], tmp_path: Path
) -> None:
    options = SelectOptions(selector="longest", budget="30%", replay_share=0.4, replay_choice=choice)
    scores = ends if choice.startswith(("targeted", "damage")) else []
    outcome, manifest = select_to(data, tmp_path / "o.jsonl", options, model=TINY, replay=earlier, replay_scores=scores)
    rows = replayed(tmp_path / "o.jsonl")
    assert len(rows) == len(set(rows)) == manifest["replay"]["rows"] > 0
    assert manifest["replay"]["choice"] == choice
    assert [part["rows"] for part in manifest["replay"]["data"]] == [len(chosen) for _, chosen in outcome.replay]
    budget = outcome.asked / 0.6  # what is asked of the data is the budget without what was replayed
    assert outcome.spent <= outcome.asked
    assert outcome.asked == pytest.approx(0.6 * budget, rel=0.1)
    assert not list(tmp_path.glob("*.scores*"))


def losses(tmp_path: Path, path: Path) -> dict[str, float]:
    table = score_into(DataRows(open_source(path)), ["loss"], tmp_path / f"now-{path.stem}", TINY)
    return dict(zip(table.ids, table.column("loss").tolist(), strict=True))


@pytest.mark.parametrize(("choice", "sign"), [("surprise", -1), ("fit", 1)])
def test_choice_by_loss_takes_the_extreme_rows(
    choice: str, sign: int, data: Path, earlier: list[Path], tmp_path: Path
) -> None:
    options = SelectOptions(budget="20rows", replay_share=0.25, replay_choice=choice)
    select_to(data, tmp_path / "o.jsonl", options, model=TINY, replay=earlier)
    known = losses(tmp_path, earlier[0]) | losses(tmp_path, earlier[1])
    assert set(replayed(tmp_path / "o.jsonl")) == set(sorted(known, key=lambda name: (sign * known[name], name))[:5])


def test_damage_shares_follow_the_losses_of_held_back_rows(
    data: Path, earlier: list[Path], ends: list[Path], tmp_path: Path
) -> None:
    options = SelectOptions(budget="30rows", replay_share=0.5, replay_choice="damage:items=12")
    outcome, _ = select_to(data, tmp_path / "o.jsonl", options, model=TINY, replay=earlier, replay_scores=ends)
    now = [losses(tmp_path, path) for path in earlier]
    end = [dict(zip(table.ids, table.column("loss").tolist(), strict=True)) for table in map(ScoreFolder, ends)]
    held_back = [set(part) - set(replayed(tmp_path / "o.jsonl")) for part in now]
    counts = [len(chosen) for _, chosen in outcome.replay]
    assert sum(counts) == 15
    assert all(len(part) >= 12 for part in held_back)
    damages = [np.mean([now[k][name] - end[k][name] for name in now[k]]) for k in (0, 1)]
    assert (counts[0] > counts[1]) == (damages[0] > damages[1]) or abs(damages[0] - damages[1]) < 0.05


def test_replay_killed_between_stages_scores_no_stage_twice(
    data: Path, earlier: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SelectOptions(budget="20rows", replay_share=0.25, replay_choice="surprise")
    scored: list[str] = []

    def counting(rows, names, folder, *arguments, **keywords):
        if len(scored) == 1:
            scored.append("killed")
            raise KeyboardInterrupt
        fresh = not (folder / "config.yaml").is_file()
        table = score_into(rows, names, folder, *arguments, **keywords)
        scored.extend([rows.source.label] * fresh)
        return table

    monkeypatch.setattr(replaying, "score_into", counting)
    with pytest.raises(KeyboardInterrupt):
        select_to(data, tmp_path / "o.jsonl", options, model=TINY, replay=earlier)
    select_to(data, tmp_path / "o.jsonl", options, model=TINY, replay=earlier)
    assert scored == [str(earlier[0]), "killed", str(earlier[1])]
    monkeypatch.undo()
    select_to(data, tmp_path / "p.jsonl", options, model=TINY, replay=earlier)
    assert replayed(tmp_path / "o.jsonl") == replayed(tmp_path / "p.jsonl")


def test_rows_of_the_data_itself_are_not_replayed(data: Path, tmp_path: Path) -> None:
    old = jsonl(tmp_path / "old.jsonl", [*ROWS[:10], *OLD[0][:6], *OLD[0][:6]])
    select_to(data, tmp_path / "o.jsonl", SelectOptions(budget="20rows", replay_share=0.3), replay=[old, old])
    rows = replayed(tmp_path / "o.jsonl")
    assert len(rows) == len(set(rows)) == 6
    thrice = jsonl(tmp_path / "thrice.jsonl", [*ROWS[:2] * 3, *OLD[1][:1] * 3])
    select_to(data, tmp_path / "q.jsonl", SelectOptions(budget="20rows", replay_share=0.3), replay=thrice)
    assert replayed(tmp_path / "q.jsonl") == [DataRows(open_source(thrice)).ids[6]]
    with pytest.raises(DataError, match="no row that is not a candidate"):
        select_to(data, tmp_path / "p.jsonl", SelectOptions(budget="20rows"), replay=data)


@pytest.mark.parametrize("max_length", [None, 64])
def test_replayed_rows_are_cut_where_candidates_are(max_length: int | None, data: Path, tmp_path: Path) -> None:
    model = ModelOptions(name="tiny", max_length=max_length)
    long = jsonl(tmp_path / "long.jsonl", [{"prompt": "say", "response": "word " * 1500}])
    options = SelectOptions(selector="longest", budget="1200", replay_share=0.5)
    outcome, _ = select_to(data, tmp_path / "o.jsonl", options, model=model, replay=long)
    assert 1200 - outcome.asked == (max_length or 512)


@pytest.mark.parametrize(
    ("choice", "more", "words"),
    [
        ("surprise", {}, "Give --model"),
        ("fit", {}, "Give --model"),
        ("distance", {}, "Give --model"),
        ("targeted", {"model": TINY}, "2 data set.*0 folder.*--replay-scores FOLDER"),
        ("damage", {"model": TINY, "replay_scores": ["one"]}, "1 folder"),
        ("damage", {"model": TINY, "replay_scores": ["one", "two"]}, "'one' holds no scores"),
        ("surprise", {"model": TINY, "replay_scores": ["a", "b"]}, "reads no --replay-scores"),
        ("uniform", {"replay_scores": ["a", "b"]}, "reads no --replay-scores"),
    ],
)
def test_choice_without_what_it_reads_names_the_fix(
    choice: str, more: dict, words: str, data: Path, earlier: list[Path], tmp_path: Path
) -> None:
    options = SelectOptions(budget="20rows", replay_choice=choice)
    with pytest.raises((RecipeError, ResumeError), match=words):
        select_to(data, tmp_path / "o.jsonl", options, replay=earlier, **more)
    assert not list(tmp_path.glob("o.jsonl*"))


def test_scores_of_other_data_are_refused_with_their_number(
    data: Path, earlier: list[Path], ends: list[Path], tmp_path: Path
) -> None:
    options = SelectOptions(budget="20rows", replay_choice="targeted")
    with pytest.raises(DataError, match=r"lacks 24 of 24 rows of '.*old-1.jsonl'.*in its order"):
        select_to(data, tmp_path / "o.jsonl", options, model=TINY, replay=earlier, replay_scores=ends[::-1])


@pytest.mark.parametrize(
    ("choice", "words"), [("surprize", "surprise"), ("targeted:cap=0", "cap is 0"), ("fit:items=3", "items")]
)
def test_wrong_choice_is_refused_before_data_are_read(choice: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        SelectOptions(replay_choice=choice)


def test_choice_without_data_to_replay_is_refused(data: Path) -> None:
    with pytest.raises(RecipeError, match="Give --replay OLD"):
        longgame.select(str(data), replay_choice="surprise", model="tiny")


def test_command_takes_several_stages(data: Path, earlier: list[Path], tmp_path: Path) -> None:
    arguments = [str(data), "--selector", "longest", "--budget", "20rows", "--replay", str(earlier[0])]
    arguments += ["--replay", str(earlier[1]), "--replay-choice", "surprise", "--model", "tiny", "--no-page"]
    result = longgame_here("select", *arguments, "--out", str(tmp_path / "o.jsonl"), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "by surprise" in " ".join(result.stdout.split())
