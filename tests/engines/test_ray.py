"""An audit on a Ray cluster of two nodes on this machine: same bits as here, nodes lost, stores not seen."""

import errno
import json
import os
import re
import shutil
import socket
import sys
import threading
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

from longgame.audit.execute import run_audit
from longgame.audit.run import Run
from longgame.engines import nodes
from longgame.engines import ray as ray_engine
from longgame.engines.choice import mapped
from longgame.engines.local import Job, Needs, WorkerError
from longgame.engines.nodes import content_difference, facts_function, version_difference
from longgame.engines.parcels import Copy, write_finished
from longgame.engines.ray import connected, run_ray
from longgame.errors import DataError, RecipeError, StorageError
from longgame.models.smollm2 import Located
from support import jobs
from support.cli import longgame
from support.quadratic_audit import Silent, recipe


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


SMALL = {"object_store_memory": 100 << 20, "include_dashboard": False}
CLIENT_PORT = free_port()
NUMBERS = ["trial", "stage", "task", "scorer", "probe", "step", "name", "value"]


def numbers(run):
    table = pd.read_parquet(run.folder / "results.parquet")
    table = table[~table["name"].astype(str).str.contains("second") & (table["kind"] != "cost")]
    return table[NUMBERS].sort_values(NUMBERS[:-1]).reset_index(drop=True)


def audit_on_ray(folder, display=None, config=None, **options):
    return run_audit(
        config or recipe(),
        folder,
        workers=None,
        threads=1,
        display=display or Silent(),
        engine="auto",
        **options,
    )


@pytest.fixture(scope="module")
def cluster():
    """A head without cores, and two nodes with one each; this process is connected."""
    if find_spec("ray") is None:
        pytest.skip("needs Ray")
    ray = ray_engine.import_ray()
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for name in ("raylet_start_wait_time_s", "CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S"):
            patch.setenv(f"RAY_{name}", "300")  # Ray itself waits for 30 s, in which a busy machine starts no server
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [*sys.path, str(Path(jobs.__file__).parents[1])])))
        clients = {"ray_client_server_port": CLIENT_PORT} if find_spec("grpc") else {}
        group = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **clients, **SMALL})
        try:
            for _ in range(2):
                group.add_node(num_cpus=1, **SMALL)
            ray.init(address=group.address, log_to_driver=False, logging_level="error")
            yield group
        finally:
            ray.shutdown()
            group.shutdown()


@pytest.fixture(scope="module")
def local_numbers(tmp_path_factory):
    return numbers(run_audit(recipe(), tmp_path_factory.mktemp("local"), workers=1, threads=1, display=Silent()))


@pytest.fixture(scope="module")
def address(cluster):
    """Of the client server of the cluster."""
    pytest.importorskip("grpc")
    return f"ray://127.0.0.1:{CLIENT_PORT}"


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Rows, their scores under the tiny model, and sketches of their texts."""
    pytest.importorskip("rensa")
    from longgame.data.sources import open_source
    from longgame.offline.rows import DataRows
    from longgame.offline.scorer import ModelOptions
    from longgame.offline.scoring import score_into

    folder = tmp_path_factory.mktemp("scored")
    pairs = [{"prompt": f"What is {n} + {n % 5}?", "response": f"It is {n + n % 5}." * (1 + n % 3)} for n in range(48)]
    (folder / "data.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    rows = DataRows(open_source(str(folder / "data.jsonl")))
    score_into(rows, ["loss", "embedding", "near_sketch"], folder / "scores", ModelOptions(name="tiny"))
    return folder


def test_an_address_without_a_server_is_refused_at_once():
    address = f"ray://127.0.0.1:{free_port()}"
    with pytest.raises(RecipeError, match=rf"no Ray cluster answers at '{address}' \(Connection refused\)"):
        connected(address).__enter__()


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0-OpenSSH_9.6\r\n"])
def test_an_address_of_another_program_is_refused(reply, monkeypatch):
    monkeypatch.setattr(nodes, "_ANSWER_SECONDS", 0.2)
    open_connections = []

    def answer():
        open_connections.append(server.accept()[0])
        open_connections[0].sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(RecipeError, match=r"\((another program answers there|no answer in 10 s)\)"):
            connected(f"ray://127.0.0.1:{server.getsockname()[1]}").__enter__()


def test_a_ray_that_does_not_start_is_told_in_one_sentence(monkeypatch):
    def init(**_):
        raise Exception("The current node timed out during startup.")  # what Ray raises

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(RecipeError, match="Ray does not start on this machine: The current node timed out"):
        connected("ray").__enter__()


def test_without_ray_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'longgame\[ray\]'"):
        connected("auto").__enter__()


def test_differing_software_is_named_with_its_fix():
    facts = facts_function()(("longgame", "numpy", "no-such-package"), None)
    other = {**facts, "versions": {**facts["versions"], "numpy": "1.0", "python": "3.9"}}
    assert version_difference(facts, facts) == ""
    assert "has python 3.9, numpy 1.0, and this machine" in version_difference(other, facts)
    assert f"run pip install 'numpy=={np.__version__}' there" in version_difference(other, facts)
    assert "has other source files of longgame" in version_difference({**facts, "source": "0"}, facts)


def test_differing_files_are_named():
    assert content_difference({"a": "1", "b": "2"}, {"a": "1"}) == ""
    assert content_difference({"a": "1"}, {"a": "2", "b": "2"}).startswith("lacks b and has other content in a. Copy")


COMMIT, OTHER_COMMIT = "a" * 40, "b" * 40


def model_seen(folder, monkeypatch, files=(), commit=COMMIT):
    """What a machine says of the model owner/name of the hub, with these files in its cache."""
    cache = folder / "models--owner--name"
    for name in files:
        path = cache / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("longgame.models.load.require_repo", lambda *_: COMMIT)
    monkeypatch.setattr("longgame.models.hub.require_repo", lambda *_: COMMIT)  # of a machine with an empty cache
    return {"model owner/name": nodes.model_digest("owner/name")}


WHOLE = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.mark.parametrize("files", [(), ("config.json",), WHOLE, (*WHOLE, "README.md")])
def test_a_hub_model_is_compared_by_commit_and_not_by_cached_files(files, tmp_path, monkeypatch):
    here = model_seen(tmp_path / "here", monkeypatch, ["config.json"])
    assert content_difference(model_seen(tmp_path / "node", monkeypatch, files), here) == ""
    if files:
        other = model_seen(tmp_path / "other", monkeypatch, files, OTHER_COMMIT)
        assert content_difference(other, here) == (
            "reads commit bbbbbbbbbbbb of model owner/name, and this machine aaaaaaaaaaaa. Fetch the latest files on "
            "both: hf download owner/name"
        )


def test_smollm2_of_the_hub_is_compared_by_its_checked_content(monkeypatch):
    digests = []
    for commit in (COMMIT, OTHER_COMMIT):
        place = Located("cache", f"hub HuggingFaceTB/SmolLM2 at {commit}, sha256 5af5")
        monkeypatch.setattr("longgame.models.smollm2.locate", lambda place=place: place)
        digests.append(nodes.model_digest("smollm2-135m"))
    assert digests == ["sha256 5af5"] * 2


def test_a_model_folder_is_compared_by_content(tmp_path):
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    first, same, other = ({"m": nodes.model_digest(str(tmp_path / name))} for name in "abc")
    assert content_difference(same, first) == ""
    assert content_difference(other, first).startswith("has other content in m. Copy")
    assert content_difference({"m": f"hub owner/name@{COMMIT}"}, first).startswith("has other content in m. Copy")


@pytest.mark.slow
def test_results_of_two_nodes_are_those_of_one_process(tmp_path, cluster, local_numbers):
    display = Silent()
    run = audit_on_ray(tmp_path / "q", display)
    pd.testing.assert_frame_equal(numbers(run), local_numbers, check_exact=True)
    assert sorted(display.done) == ["loss-s0", "loss-s1", "random-s0", "random-s1", "seed-0", "seed-1"]
    assert not list((tmp_path / "q").rglob("*.part"))


def contents_of(folder):
    """Relative path → bytes of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def drop_token():
    """Facts of nodes that do not see the folder of the run."""
    facts = facts_function()

    def blind(packages, token):
        return facts(packages, None)

    return blind


@pytest.mark.slow
def test_nodes_that_do_not_see_the_store_send_stages_back(tmp_path, cluster, local_numbers, monkeypatch):
    monkeypatch.setattr(ray_engine, "facts_function", drop_token)
    run = audit_on_ray(tmp_path / "q")
    pd.testing.assert_frame_equal(numbers(run), local_numbers, check_exact=True)
    local = run_audit(recipe(), tmp_path / "local", workers=1, threads=1, display=Silent())
    for name in ("trials", "seeds"):
        folders = [run.folder / name, local.folder / name]
        first, second = (sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in folders)
        assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_an_interrupted_audit_is_resumed_behind_its_stages(tmp_path, cluster, local_numbers, monkeypatch, shared):
    if not shared:
        monkeypatch.setattr(ray_engine, "facts_function", drop_token)

    class Impatient(Silent):
        def progress(self, job, stage, activity, step, steps):
            if stage == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit_on_ray(tmp_path / "q", Impatient())
    assert list((tmp_path / "q").glob("trials/*/stage-*.zip"))
    run = audit_on_ray(tmp_path / "q")
    pd.testing.assert_frame_equal(numbers(run), local_numbers, check_exact=True)


@pytest.mark.slow
def test_errors_progress_and_order_are_those_of_local_workers(tmp_path, cluster):
    todo = [
        Job("base", jobs.write_threads, (str(tmp_path), "base")),
        Job("later", jobs.write_what_is_there, (str(tmp_path), "later"), after="base"),
        Job("bad", jobs.fail, ("line 7 is empty",)),
        Job("waits", jobs.fail, ("never run",), after="bad"),
        Job("gone", jobs.leave, (3,)),
        Job("odd", jobs.crash, ()),
        Job("log", jobs.log, ("strange",)),
    ]
    progress, done, errors, warnings = [], [], {}, []
    run_ray(
        todo, "auto", None, 1, lambda *event: progress.append(event), done.append, errors.__setitem__, warnings.append
    )
    assert sorted(done) == ["base", "later", "log"]
    assert "base" in (tmp_path / "later").read_text().split()
    assert (tmp_path / "base").read_text() == "1"
    assert ("base", 1, "work", 1, 2) in progress
    kinds = {"bad": DataError, "waits": DataError, "gone": WorkerError, "odd": WorkerError}
    assert {name: type(error) for name, error in errors.items()} == kinds
    assert str(errors["bad"]) == "line 7 is empty"
    assert "ZeroDivisionError" in str(errors["odd"])
    assert "strange" in warnings


@pytest.mark.slow
def test_parts_are_mapped_in_order_by_workers_that_load_once(cluster):
    assert list(mapped(partial(jobs.power, exponent=2), range(7), "auto", workers=None)) == [n * n for n in range(7)]
    with pytest.raises(DataError, match="part 3 is empty"):
        list(mapped(jobs.fail_at_three, range(5), "auto", workers=2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (Needs(cpus=3), "one job needs 3 CPUs, and no node .* 1 CPUs, 0 GPUs"),
        (Needs(gpu=True), "one job needs 1 CPU and 1 GPU, and no node .* 0 GPUs"),
        (Needs(memory=10**15), "one job needs 1 CPU and 1000000.0 GB of memory"),
    ],
)
def test_a_job_that_no_node_holds_is_refused_with_both_numbers(cluster, needs, message):
    with pytest.raises(RecipeError, match=message):
        run_ray([Job("a", jobs.fail, ("x",))], "auto", None, needs.cpus, print, print, needs=needs)


@pytest.mark.slow
def test_a_node_with_other_files_is_refused_by_name(tmp_path, cluster):
    contents = partial(jobs.process_of, str(os.getpid()))
    with pytest.raises(WorkerError, match=r"Ray node .* has other content in data\.jsonl\. Copy the files"):
        run_ray([Job("a", jobs.fail, ("x",))], "auto", None, 1, print, print, contents=contents)


@pytest.mark.slow
def test_a_node_with_another_version_is_refused_by_name(tmp_path, cluster):
    fake = tmp_path / "site" / "longgame-9.9.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: longgame\nVersion: 9.9\n")
    path = os.pathsep.join([str(fake.parent), os.environ.get("PYTHONPATH", "")])
    node = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": path}, **SMALL)
    try:
        with pytest.raises(WorkerError, match=r"Ray node .* has longgame 9\.9, and this machine .*pip install"):
            audit_on_ray(tmp_path / "q")
    finally:
        cluster.remove_node(node)


WAITS = """
import os, time
from pathlib import Path
from types import SimpleNamespace
from longgame import Selector

class Mine(Selector):
    name = "mine"
    requires = ("loss",)
    stages = 0  # a probe begins the next one

    def begin_stage(self):
        self.stages += 1

    def score(self, pool, signals, history):
        mark = Path({mark!r})
        if self.stages >= 3 and not mark.exists() and os.getpid() != {driver}:
            import ray

            mark.with_suffix(".part").write_text(ray.get_runtime_context().get_node_id())
            mark.with_suffix(".part").rename(mark)
            time.sleep(120)
        return signals["loss"]
"""


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_a_job_of_a_killed_node_goes_on_behind_its_last_stage(tmp_path, cluster, monkeypatch, shared, capfd):
    if not shared:
        monkeypatch.setattr(ray_engine, "facts_function", drop_token)
    mark = tmp_path / "mark"
    (tmp_path / "mine.py").write_text(WAITS.format(mark=str(mark), driver=os.getpid()))
    config = recipe(selectors=["random", {"name": f"{tmp_path}/mine.py:Mine", "label": "mine"}], seeds=[0])
    local = run_audit(config, tmp_path / "local", workers=1, threads=1, display=Silent())
    nodes = {node.node_id: node for node in cluster.worker_nodes}

    def kill():
        deadline = time.monotonic() + 120
        while not mark.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        cluster.remove_node(nodes[mark.read_text()], allow_graceful=False)

    killer, display = threading.Thread(target=kill), Silent()
    killer.start()
    try:
        run = audit_on_ray(tmp_path / "q", display, config)
    finally:
        killer.join()
        cluster.add_node(num_cpus=1, **SMALL)
    pd.testing.assert_frame_equal(numbers(run), numbers(local), check_exact=True)
    assert any("mine-s0 is placed again" in text for text in display.warnings)
    assert "raylet" not in "".join(capfd.readouterr())
    assert Run.open(run.folder).finished
    shutil.rmtree(tmp_path / "local")


@pytest.mark.slow
def test_shards_scored_on_a_cluster_have_the_bytes_of_one_process(tmp_path, cluster, monkeypatch):
    from longgame.data.sources import open_source
    from longgame.offline import rows as rows_module
    from longgame.offline.rows import DataRows
    from longgame.offline.scorer import ModelOptions
    from longgame.offline.scoring import score_into

    monkeypatch.setattr(rows_module, "SHARD_ROWS", 8)
    pairs = [{"prompt": f"What is {n} + 1?", "response": f"It is {n + 1}." * (1 + n % 3)} for n in range(44)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    rows, names, model = (
        DataRows(open_source(str(tmp_path / "data.jsonl"))),
        ["loss", "grad_sketch"],
        ModelOptions(name="tiny"),
    )
    score_into(rows, names, tmp_path / "local", model)

    def stop(done, total):
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_into(rows, names, tmp_path / "ray", model, engine="auto", progress=stop)
    ends = []
    score_into(rows, names, tmp_path / "ray", model, engine="auto", progress=lambda done, _: ends.append(done))
    assert ends == [8, 16, 24, 32, 40, 44]
    local, distributed = contents_of(tmp_path / "local"), contents_of(tmp_path / "ray")
    assert local.keys() == distributed.keys()
    assert [name for name in local if local[name] != distributed[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("selector", "dedup"),
    [
        ("loss", None),
        ("k-center", None),
        ("diversity:method=facility-location", None),
        ("loss", "near:0.5"),
        ("dedup-minhash:by=loss", "exact"),
    ],
)
def test_a_selection_on_a_cluster_has_the_bytes_of_one_process(selector, dedup, tmp_path, cluster, scored):
    """One round (an exact cut) and two rounds, with two workers on two nodes."""
    from longgame.offline.options import SelectOptions
    from longgame.offline.partitioned import select_in_parts

    for engine, workers in (("local", 1), ("auto", None)):
        select_in_parts(
            scored / "data.jsonl",
            tmp_path / engine / "picks.jsonl",
            SelectOptions(selector=selector, dedup=dedup, budget="25%"),
            scores=scored / "scores",
            partitions=4,
            engine=engine,
            workers=workers,
        )
    assert contents_of(tmp_path / "local") == contents_of(tmp_path / "auto")


@pytest.mark.slow
def test_commands_over_the_client_server_give_the_local_numbers(tmp_path, address, local_numbers, scored):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe().model_dump(mode="json", exclude_unset=True)))
    run = longgame("audit", "recipe.yaml", "--out", "run", "--engine", address, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    pd.testing.assert_frame_equal(numbers(Run.open(tmp_path / "run")), local_numbers, check_exact=True)
    line = ["select", scored / "data.jsonl", "--scores", scored / "scores", "--selector", "loss", "--partitions", 3]
    for name, further in (("local", []), ("ray", ["--engine", address])):
        done = longgame(*line, "--out", f"{name}.jsonl", *further, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "raylet" not in done.stderr
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()


@pytest.mark.slow
def test_scores_of_ray_on_this_machine_have_the_local_bytes(tmp_path, scored):
    pytest.importorskip("ray")
    line = ["score", scored / "data.jsonl", "--model", "tiny", "--signals", "loss,embedding,near_sketch"]
    done = longgame(*line, "--out", "scores", "--engine", "ray", "--workers", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "raylet" not in done.stderr
    ours, theirs = contents_of(scored / "scores"), contents_of(tmp_path / "scores")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if name.endswith((".bin", ".parquet")) and ours[name] != theirs[name]] == []


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ("OutOfMemoryError", "error", r"^loss-s0 ran out of memory on node-7\. Set training\.micro_tokens lower"),
        ("ActorUnavailableError", "lost", "^node-7 is lost$"),
        ("NodeDiedError", "lost", "^node-7 is lost$"),
    ],
)
def test_a_lost_worker_is_out_of_memory_or_placed_again(error, kind, message):
    ray = pytest.importorskip("ray")
    node = SimpleNamespace(host="node-7")
    member = SimpleNamespace(node=node, job="loss-s0", actor=None)
    workers = object.__new__(ray_engine._Workers)
    workers._members, workers._ray = [member], ray
    make = getattr(ray.exceptions, error)
    details = make("gone", None) if error == "ActorUnavailableError" else make("gone")
    event = workers._loss(member, details)
    assert event[:2] == (kind, "loss-s0")
    assert re.search(message, str(event[2]))
    assert workers._members == []


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (StorageError("cannot write /tmp/x: full."), r"^on node-7: cannot write /tmp/x: full\.$"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), r"^on node-7: loss-s0: No space left on device"),
        (TypeError("cannot pickle '_thread.lock' object"), "^loss-s0 met an unforeseen error"),
        (ValueError(threading.Lock()), "^loss-s0 met an unforeseen error"),
        (None, None),
    ],
    ids=["storage", "disk", "result", "unpicklable", "lost"],
)
def test_a_job_that_fails_outside_its_function_is_no_lost_node(cause, message):
    ray = pytest.importorskip("ray")
    errors = ray.exceptions
    error = errors.RayTaskError("run", "the traceback", cause or errors.WorkerCrashedError(), "ray::run", 1, "10.0.0.7")
    reference = object()
    member = SimpleNamespace(node=SimpleNamespace(host="node-7"), job="loss-s0", actor=None, coming=None)
    member.result = reference

    def get(asked, **_):
        if asked is reference:
            raise error.as_instanceof_cause()
        return []

    workers = object.__new__(ray_engine._Workers)
    workers._members, workers._mailbox = [member], SimpleNamespace(take=SimpleNamespace(remote=lambda: "mail"))
    workers._ray = SimpleNamespace(
        get=get, wait=lambda references, **_: (references, []), exceptions=errors, kill=lambda _: None
    )
    ((kind, name, *details),) = workers.events()
    assert name == "loss-s0"
    if message is None:
        assert (kind, workers._members) == ("lost", [])
    else:
        assert (kind, workers._members, member.job) == ("error", [member], "")
        assert re.search(message, str(details[0]))


@pytest.mark.parametrize("place", ["__init__", "finished"])
def test_a_copy_that_cannot_be_made_or_read_is_the_error_of_its_job(place, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")

    def fail(*_):
        raise StorageError("cannot write /tmp/x: full.")

    monkeypatch.setattr(ray, "get", lambda references: [{"trials/a/done": b""} for _ in references])
    monkeypatch.setattr(ray_engine.Parcel, place, fail)
    host = object.__new__(ray_engine._Host)
    host._threads, host._mailbox, host._scratch, host._parcel = 1, None, tmp_path, None
    job = Job("a", jobs.do_nothing, ())
    kind, error, files = host.run(job, Copy("run", ["reference"], "trials/a"))
    assert (kind, str(error), files) == ("error", "cannot write /tmp/x: full.", None)


def test_a_part_of_a_map_is_named_as_people_count_it():
    asked = []
    call = SimpleNamespace(remote=lambda *arguments: asked.append(arguments))
    worker, names, texts = SimpleNamespace(job="", actor=SimpleNamespace(call=call)), [], []

    def events():
        name, worker.job = worker.job, ""  # as errors of the worker name it
        names.append(name)
        return [("done", name, 7)] if len(asked) > 1 else [("lost", name, "node-7 is lost", False)]

    crew = SimpleNamespace(capacity=1, staff=lambda _: None, free=lambda: [worker], events=events)
    assert list(ray_engine._mapped(crew, texts.append, ["x"])) == [7]
    assert (asked, names) == ([("part 1", "x")] * 2, ["part 1"] * 2)
    assert texts == ["node-7 is lost; part 1 is placed again."]


@pytest.mark.parametrize(
    ("error", "lost"), [("TaskUnschedulableError", True), ("NodeDiedError", True), ("RayError", False)]
)
def test_a_node_lost_before_its_check_is_left_out(error, lost):
    ray, warnings = pytest.importorskip("ray"), []

    def get(reference, timeout):
        raise getattr(ray.exceptions, error)("gone")

    workers = object.__new__(ray_engine._Workers)
    workers._ray, workers._warn = SimpleNamespace(get=get, exceptions=ray.exceptions), warnings.append
    node = {"NodeID": "0123456789", "NodeManagerHostname": "node-7"}
    if lost:
        assert workers._answer(None, node, True) is None
        assert "node-7 (01234567) could not be checked: " in warnings[0]
    else:
        with pytest.raises(WorkerError, match=r"could not be checked: gone\. Take it out of the cluster"):
            workers._answer(None, node, True)


def test_a_job_fails_after_five_lost_nodes_or_two_ended_processes():
    warnings = []
    for ended, most in ((False, 5), (True, 2)):
        losses = ray_engine._Losses(warnings.append)
        errors = [losses.error("loss-s0", "node-7 is lost", ended) for _ in range(most)]
        assert errors[:-1] == [None] * (most - 1)
        assert f"placed {most} times" in str(errors[-1])
    assert warnings[0] == "node-7 is lost; loss-s0 is placed again."


def test_parts_of_a_job_are_written_as_a_whole_and_what_it_deleted_goes(tmp_path):
    stage = {"stage-1/done.json": b"1", "stage-1/learner/weights": b"2"}
    write_finished(tmp_path, stage, sorted(stage))
    second = {"stage-2/done.json": b"3"}
    write_finished(tmp_path, second, ["stage-1/done.json", "stage-2/done.json"])
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "stage-1",
        "stage-1/done.json",
        "stage-2",
        "stage-2/done.json",
    ]
    lost = {"stage-1/done.json": b"1", "stage-2/done.json": b"3"}
    write_finished(tmp_path / "new", {}, sorted(lost), lambda names: {name: lost[name] for name in names})
    assert (tmp_path / "new" / "stage-1" / "done.json").read_bytes() == b"1"
