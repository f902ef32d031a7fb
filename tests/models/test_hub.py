"""Pushing to the hub and loading from it, against a local server that speaks its API."""

import re

import pytest
from transformers import Qwen2Config, Qwen2ForCausalLM

from longgame.errors import StorageError
from longgame.models.hub import card_metadata, load_or_fetch, push, with_metadata, with_section
from support.chat_model import chat_tokenizer, save
from support.hub_server import run_with_hub, serve_hub


@pytest.fixture
def hub():
    with serve_hub() as server:
        yield server


def pushed(hub, tmp_path, *arguments, token="hf_test"):
    code = (
        "import sys; from longgame.errors import LonggameError; from longgame.models.hub import push\n"
        "files, metadata = {'report.html': b'<p>'}, {'license': 'mit'}\n"
        "try: print(push(sys.argv[1], sys.argv[2], files, '## Audit', 'An audit', metadata))\n"
        "except LonggameError as error: sys.exit(f'{type(error).__name__}: {error}')"
    )
    return run_with_hub(hub, tmp_path, ["-c", code, *arguments], token)


def test_push_to_a_model_keeps_the_rest_of_its_card(hub, tmp_path):
    hub.files["README.md"] = b"---\nlicense: mit\n---\n# My model\n"
    done = pushed(hub, tmp_path, "owner/name", "model")
    assert done.returncode == 0, done.stderr
    assert "report.html, README.md" in done.stdout
    card = hub.files["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n---\n# My model\n")
    assert "## Audit" in card
    assert hub.files["report.html"] == b"<p>"
    assert hub.created is None


def test_push_of_a_data_set_makes_a_private_repository(hub, tmp_path):
    done = pushed(hub, tmp_path, "owner/name", "dataset")
    assert done.returncode == 0, done.stderr
    assert hub.created["visibility"] == "private"
    assert hub.files["README.md"].decode().count("## Audit") == 1


def test_push_without_a_token_asks_the_hub_nothing(hub, tmp_path):
    done = pushed(hub, tmp_path, "owner/name", "model", token="")
    assert done.stdout.startswith("Dry run, as there is no token: report.html, README.md would go to owner/name")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("repository", "status", "words"),
    [
        ("owner/other", 200, "the hub has no model 'owner/other' that this token can write"),
        ("owner/name", 403, "the hub did not take 'owner/name': HTTP status 403"),
        ("not a name", 200, "--push is 'not a name'; write it as owner/name"),
        ("name", 200, "--push is 'name'; write it as owner/name"),
    ],
)
def test_push_that_the_hub_refuses_is_one_sentence(hub, tmp_path, repository, status, words):
    hub.status = status
    done = pushed(hub, tmp_path, repository, "model")
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.files == {}


@pytest.mark.parametrize("cached", [False, True])
def test_push_changes_nothing_where_the_card_cannot_be_read(hub, tmp_path, cached):
    hub.files["README.md"] = b"# Old\n"
    if cached:
        assert pushed(hub, tmp_path, "owner/name", "model").returncode == 0
    hub.files = {"README.md": b"# New\n"}
    hub.failing = "README.md"
    done = pushed(hub, tmp_path, "owner/name", "model")
    assert done.returncode == 1
    assert "Nothing was pushed; try again" in done.stderr
    assert hub.files == {"README.md": b"# New\n"}


def test_push_offline_names_the_variable(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with pytest.raises(StorageError, match="HF_HUB_OFFLINE is set"):
        push("owner/name", "model", {}, "## Audit", "An audit")


def test_second_push_replaces_the_section_of_the_first():
    first = with_section("# Model\n\ntext\n", "## Audit\n\nold \\1")
    second = with_section(first, "## Audit\n\nnew \\g<0>")
    assert "old" not in second
    assert "new \\g<0>" in second
    assert second.startswith("# Model\n\ntext\n")
    assert second.count("## Audit") == 1


def test_license_of_a_data_set_is_that_of_its_page(hub, tmp_path):
    code = "import sys; from longgame.models.hub import license_of; print([license_of(name) for name in sys.argv[1:]])"
    done = run_with_hub(hub, tmp_path, ["-c", code, "owner/name", "owner/other", "not a name"], token="")
    assert done.stdout.strip() == "['mit', '', '']", done.stderr


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("", {"license": "mit", "configs": [1]}),
        ("# Title\n", {"license": "mit", "configs": [1]}),
        ("---\nlicense: cc0-1.0\n---\n# Title\n", {"license": "cc0-1.0", "configs": [1]}),
        ("---\r\nconfigs: [2]\r\n---\r\n# Title\n", {"license": "mit", "configs": [1]}),
        ("---\n---\n# Title\n", {"license": "mit", "configs": [1]}),
        ("---\nno end\n# Title\n", {"license": "mit", "configs": [1]}),
    ],
)
def test_metadata_keeps_keys_but_those_of_the_files(readme, expected):
    card = with_metadata(readme, {"license": "mit", "configs": [1]})
    assert card_metadata(card) == expected
    assert card.endswith(readme.rpartition("---")[2].lstrip("\r\n"))
    assert with_metadata(card, {"configs": [1]}) == card


@pytest.mark.parametrize("front", ["a: [", "- a list", "text"])
def test_metadata_that_is_no_mapping_is_refused(front):
    with pytest.raises(ValueError, match="the card's metadata is no"):
        with_metadata(f"---\n{front}\n---\n", {})


PARTLY_CACHED = """
from urllib.request import urlopen
from huggingface_hub import constants
from longgame.errors import ModelError
from longgame.models.load import load_model, load_tokenizer, trial_bytes
from longgame.recipe import ModelSpec

spec = ModelSpec(name="owner/name")
trial_bytes(spec)  # caches config.json alone
for reach, offline, endpoint in (("offline", True, constants.ENDPOINT), ("no network", False, "http://127.0.0.1:9")):
    served, constants.HF_HUB_OFFLINE, constants.ENDPOINT = constants.ENDPOINT, offline, endpoint
    try:
        load_tokenizer(spec)
    except ModelError as error:
        print(f"{reach}: {error}")
    constants.HF_HUB_OFFLINE, constants.ENDPOINT = False, served
print("tokens:", len(load_tokenizer(spec)))
print("source:", load_model(spec).source)
urlopen(f"{constants.ENDPOINT}/mark").close()
load_model(spec)
"""


def test_a_model_partly_in_the_cache_is_fetched_and_then_local(hub, tmp_path):
    tokenizer = chat_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    save(tmp_path / "model", tokenizer, Qwen2ForCausalLM(Qwen2Config(**sizes, **heads)))
    hub.files |= {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    done = run_with_hub(hub, tmp_path / "home", ["-c", PARTLY_CACHED])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    lack = "model 'owner/name' cannot be loaded from the local cache (it holds no tokenizer)"
    assert lines[0].startswith(f"offline: {lack}, and HF_HUB_OFFLINE is set. Without network, give the path")
    assert lines[1].startswith(f"no network: {lack} and the hub: no connection")
    assert lines[2] == f"tokens: {len(tokenizer)}"
    assert re.fullmatch(r"source: hub owner/name at [0-9a-f]{40}", lines[3])
    assert hub.requests[-1] == "GET /mark"


@pytest.mark.parametrize(("error", "fetched"), [(OSError("no weights"), True), (MemoryError(), False)])
def test_what_the_cache_lacks_is_fetched_once(error, fetched, monkeypatch):
    calls = []

    def load(local):
        calls.append(local)
        if local:
            raise error
        return "model"

    monkeypatch.setattr("longgame.models.hub.require_repo", lambda *_: None)
    if fetched:
        assert load_or_fetch("owner/name", load, True, (OSError, MemoryError), "") == "model"
    else:
        with pytest.raises(MemoryError):
            load_or_fetch("owner/name", load, True, (OSError, MemoryError), "")
    assert calls == [True, False][: 1 + fetched]
