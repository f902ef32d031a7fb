"""The dataset card of a subset: what it says, and how it is pushed."""

import json

import pytest
import yaml

import longgame
from longgame.models import hub as hub_module
from longgame.models.hub import card_metadata
from longgame.offline.card import dataset_card
from longgame.offline.options import SelectOptions
from longgame.offline.selecting import select_to
from support.cli import longgame_here
from support.hub_server import run_with_hub, serve_hub

from .conftest import ROWS, jsonl


def card_of(folder, command="longgame select data.jsonl", **options):
    data = jsonl(folder / "data.jsonl", ROWS)
    chosen = SelectOptions(**{"selector": "longest", "budget": "20rows", **options})
    _, manifest = select_to(data, folder / "subset.jsonl", chosen, command=command)
    return dataset_card(manifest, folder / "subset.jsonl", "mit"), manifest


def test_card_names_method_source_and_what_is_kept(tmp_path):
    card, manifest = card_of(tmp_path)
    for part in ("| method | longest", "20 of 60 rows (33.3 %)", "characters", manifest["data"]["digest"], "| mit |"):
        assert part in card.text
    assert "weights | none" in card.text
    front = card_metadata(str(card))
    assert front["license"] == "mit"
    assert front["size_categories"] == ["n<1K"]
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "subset.jsonl"}]


def test_card_explains_every_added_column(tmp_path):
    card, _ = card_of(tmp_path)
    row = json.loads((tmp_path / "subset.jsonl").read_text().splitlines()[0])
    added = [name for name in row if name.startswith("longgame_")]
    assert all(f"| `{name}` | " in card.text for name in added)
    assert card.text.count("| `longgame_") == len(added)


def test_card_says_nothing_of_this_machine(tmp_path):
    home = "/home/somebody"
    command = f"longgame select {home}/data.jsonl --model={home}/model --out {home}/s --push a/b --card={home}/c"
    card, _ = card_of(tmp_path, command)
    assert "\nlonggame select data.jsonl --model=model --out s\n" in card.text
    assert str(tmp_path) not in str(card)
    assert home not in str(card)


def test_card_of_python_names_no_file(tmp_path):
    subset = longgame.select(str(jsonl(tmp_path / "data.jsonl", ROWS)), selector="longest", budget="5rows")
    text = subset.card(license="cc0-1.0")
    assert card_metadata(text)["license"] == "cc0-1.0"
    assert "configs" not in card_metadata(text)
    assert "5 of 60 rows" in text


@pytest.mark.parametrize(("license", "line"), [("mit", "| mit |"), (None, "not known"), (["a", "b"], "not known")])
def test_license_of_local_data_is_that_of_its_card(license, line, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_module, "get_token", lambda: None)
    jsonl(tmp_path / "data.jsonl", ROWS)
    front = "- no mapping" if isinstance(license, list) else yaml.safe_dump({"license": license} if license else {})
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n")
    options = ["--selector", "longest", "--budget", "5rows", "--out", "s", "--card", "card.md", "--push", "owner/name"]
    done = longgame_here("select", "data.jsonl", *options, "--no-page", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert line in (tmp_path / "card.md").read_text()
    assert "Dry run, as there is no token: s/" in done.stdout
    assert card_metadata((tmp_path / "card.md").read_text())["configs"][0]["data_files"][0]["path"] == "s/*.arrow"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--push", "name"], "--push is 'name'; write it as owner/name."),
        (["--card", "data.jsonl", "--overwrite"], "--card 'data.jsonl' is the data itself"),
        (
            ["--replay", "old.jsonl", "--card", "old.jsonl", "--overwrite"],
            "--card 'old.jsonl' is the replay data itself",
        ),
        (["--card", "s.manifest.json"], "--card and the subset's .manifest.json are both 's.manifest.json'"),
        (["--card", "old.md"], "'old.md' exists already"),
    ],
)
def test_card_and_push_are_checked_before_any_work(options, message, tmp_path):
    jsonl(tmp_path / "data.jsonl", ROWS)
    jsonl(tmp_path / "old.jsonl", ROWS)
    (tmp_path / "old.md").write_text("old")
    before = sorted(path.name for path in tmp_path.iterdir())
    done = longgame_here("select", "data.jsonl", "--selector", "longest", "--out", "s.jsonl", *options, cwd=tmp_path)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_refused_push_leaves_the_subset_and_says_how_to_upload(tmp_path):
    data, out = jsonl(tmp_path / "data.jsonl", ROWS), tmp_path / "subset.jsonl"
    command = ["-m", "longgame.cli", "select", data, "--selector", "longest", "--budget", "5rows", "--out", out]
    with serve_hub() as server:
        server.status = 403
        done = run_with_hub(server, tmp_path / "home", [*command, "--no-page", "--push", "owner/name"])
    assert done.returncode == 1
    assert "HTTP status 403" in done.stderr
    assert f"hf upload owner/name {out} --repo-type dataset" in done.stderr
    assert "Traceback" not in done.stderr
    assert out.is_file()


def test_push_of_a_subset_makes_a_data_set_with_its_card(tmp_path):
    data, out = jsonl(tmp_path / "data.jsonl", ROWS), tmp_path / "subset.jsonl"
    command = ["-m", "longgame.cli", "select", data, "--selector", "longest", "--budget", "5rows", "--out", out]
    with serve_hub() as server:
        server.files["README.md"] = b"---\nlicense: mit\nconfigs: []\n---\n# Mine\n"
        done = run_with_hub(server, tmp_path / "home", [*command, "--no-page", "--push", "owner/name"])
    assert done.returncode == 0, done.stderr
    assert server.created["type"] == "dataset"
    assert set(server.files) == {"README.md", "subset.jsonl", "subset.manifest.json"}
    assert server.files["subset.jsonl"] == out.read_bytes()
    local, pushed = (out.with_name("subset.manifest.json").read_text(), server.files["subset.manifest.json"].decode())
    assert str(tmp_path) in local
    assert str(tmp_path) not in pushed
    again = "longgame select data.jsonl --selector longest --budget 5rows --out subset.jsonl --no-page"
    assert json.loads(pushed)["command"] == again
    assert json.loads(pushed)["picked"] == json.loads(local)["picked"]
    readme = server.files["README.md"].decode()
    assert card_metadata(readme)["license"] == "mit"
    assert card_metadata(readme)["configs"][0]["data_files"][0]["path"] == "subset.jsonl"
    assert "# Mine" in readme
    assert "5 of 60 rows" in readme
