"""Run jobs and functions on a Ray cluster; the only module that imports Ray.

Workers are actors, each on a node that passed a check: same versions, same files. The folder of a run is the truth:
nodes that see it write there, and the others send finished parts back, which this process writes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import logging
import os
import secrets
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from longgame.engines.local import (
    Failed,
    Job,
    Needs,
    Notify,
    Warn,
    WorkerError,
    as_error,
    follow,
    raise_at_once,
    settle_garbage,
    thread_values,
    threads_here,
    warnings_to,
)
from longgame.engines.nodes import (
    PACKAGES,
    check_answer,
    cleared,
    contained,
    content_difference,
    enter,
    facts_function,
    version_difference,
)
from longgame.engines.parcels import Copy, Parcel, Store, packed, write_finished
from longgame.errors import LonggameError, RecipeError, StorageError
from longgame.limits import MEMORY_FIXES
from longgame.storage import write_file

_NODE_SECONDS = 600.0
"""In which a node has to compute the digests of the model and the data."""
_BUSY_SECONDS = 30.0
"""After which a worker that waits for its node no longer counts as one that will come."""
_POLL_SECONDS = 0.3
_PROGRESS_SECONDS = 0.5
_NODE_LOSSES, _WORKER_ENDS = 5, 2
"""Placements of a job whose node is lost, or whose worker process ends, before it fails."""
_AHEAD = 2
_REPORTED_HERE = "worker died|Raylet is terminated|node with node id|killed due to memory pressure"
"""Messages of Ray that are not printed, because the engine reports the same losses in one line each."""

_log = logging.getLogger(__name__)


# Connection


def import_ray() -> Any:
    """Import Ray.

    Raises:
        RecipeError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", _REPORTED_HERE)
    if importlib.util.find_spec("ray") is None:
        raise RecipeError("--engine needs Ray, which is not installed. Run: pip install 'longgame[ray]'")
    import ray

    return ray


@contextmanager
def connected(engine: str) -> Iterator[Any]:
    """Connect to the cluster of this engine, and give the module; a connection that is open already is used.

    Raises:
        RecipeError: Ray is missing, no cluster runs, its address does not answer in 10 s, or it has another version.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    address = "local" if engine == "ray" else engine
    if engine == "auto":
        address = os.environ.get("RAY_ADDRESS") or engine
    if address not in ("auto", "local"):
        check_answer(address)
    if address.startswith("ray://") and importlib.util.find_spec("grpc") is None:
        raise RecipeError(f"{address} needs Ray's client, which is not installed. Run: pip install 'longgame[ray]'")
    options = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **options)
    except Exception as error:  # Ray raises a bare one where it does not come up in time
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        if address == "local":
            raise RecipeError(
                f"Ray does not start on this machine: {reason}. Run the command again when the machine is less busy, "
                "or leave --engine out."
            ) from error
        raise RecipeError(
            f"cannot connect to Ray at '{address}': {reason}. Start a cluster (ray start --head), use the versions of "
            "Python and Ray that it has, or leave --engine out."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@dataclass
class _Node:
    """A node that passed the check."""

    id: str
    host: str
    sees_store: bool
    workers: int
    """That it holds."""
    gpu_share: float


# Worker side


class _Mailbox:
    """Actor: events on their way from workers to the driver."""

    def __init__(self) -> None:
        self._events: list[tuple[Any, ...]] = []

    def put(self, *event: Any) -> None:
        self._events.append(event)

    def take(self) -> list[tuple[Any, ...]]:
        events, self._events = self._events, []
        return events


class _Host:
    """Actor: runs one job at a time."""

    def __init__(self, threads: int, folder: str, mailbox: Any, scratch: str, function: Any = None) -> None:
        os.environ.update(thread_values(threads))
        enter(folder)
        self._threads, self._mailbox, self._function = threads, mailbox, function
        self._parcel: Parcel | None = None
        self._scratch = Path(tempfile.gettempdir()) / f"{scratch}-{os.getpid()}"

    def ready(self) -> None:
        pass

    def run(self, job: Job, copy: Copy | None) -> tuple[str, Any, Any]:
        """Run a job; return done or error, the error, and the finished files of a copy with the names of all."""
        import ray

        contents = [] if copy is None else ray.get(list(copy.files))  # an object that is lost places the job again
        self._parcel = None
        last: tuple[int, str, float] = (-1, "", 0.0)

        def notify(name: str, stage: int, activity: str, step: int, steps: int) -> None:
            nonlocal last
            if self._parcel is not None and stage != last[0] and (new := self._parcel.finished())[0]:
                ray.get(self._mailbox.put.remote("files", job.name, *new))  # waits: the job's end may not overtake it
            now = time.monotonic()
            if (stage, activity) != last[:2] or now - last[2] >= _PROGRESS_SECONDS:
                last = (stage, activity, now)
                self._mailbox.put.remote("progress", name, stage, activity, step, steps)

        def work() -> None:
            arguments = job.arguments
            if copy is not None:
                self._parcel = Parcel(copy, contents, self._scratch)
                arguments = self._parcel.unpacked(arguments)
            job.function(*arguments, notify)

        kind, error = self._outcome(job.name, work)
        files = None
        if self._parcel is not None:
            read, value = self._outcome(job.name, self._parcel.finished)
            if read == "done":
                files = value
            elif kind == "done":
                kind, error = read, value
        return kind, error, files

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """Files of the last job."""
        return {} if self._parcel is None else self._parcel.read(names)

    def call(self, name: str, part: Any) -> tuple[str, Any, None]:
        """Return done and the function's result, or error and the error."""
        return (*self._outcome(name, lambda: self._function(part)), None)

    def _outcome(self, name: str, work: Callable[[], Any]) -> tuple[str, Any]:
        with warnings_to(lambda text: self._mailbox.put.remote("warning", "", text)), threads_here(self._threads):
            try:
                return "done", work()
            except Exception as error:  # noqa: BLE001 - told to the driver, which decides whether the others go on
                return "error", as_error(name, error)
            finally:
                settle_garbage()


# Driver side


@dataclass
class _Worker:
    """An actor, and its job."""

    actor: Any
    node: _Node
    coming: Any
    """Reference that is there when the actor is; None: it is."""
    since: float
    job: str = ""
    result: Any = None


class _Workers:
    """The actors of a cluster, and news of them.

    Raises:
        RecipeError: the cluster has too little for one worker. WorkerError: a node differs from this machine.
    """

    def __init__(
        self,
        ray: Any,
        most: int | None,
        threads: int,
        needs: Needs,
        *,
        warn: Warn,
        gpus: int | None = None,
        folder: Path | None = None,
        contents: Callable[[], Mapping[str, str]] | None = None,
        function: Any = None,
    ) -> None:
        self._ray, self._most, self._threads, self._needs, self._warn = ray, most, threads, needs, warn
        self._gpus, self._contents, self._started, self._looked = gpus, contents, time.monotonic(), -1e9
        self._scratch = f"longgame-{secrets.token_hex(8)}"
        self._function = None if function is None else ray.put(function)
        self._members: list[_Worker] = []
        self._nodes: dict[str, _Node] = {}
        self._refused: set[str] = set()
        self._token: Path | None = None
        if folder is not None:
            self._token = folder.resolve() / f"{self._scratch}.{os.getpid()}.part"
            write_file(self._token, self._scratch)
        try:
            facts = facts_function()
            self._here = facts(PACKAGES, None)
            self._files = {} if contents is None else dict(contents())
            self._mailbox = self._make_mailbox()
            self._look(first=True)
        except BaseException:
            self.end()
            raise

    @property
    def capacity(self) -> int:
        """Workers that the cluster holds."""
        total = sum(node.workers for node in self._nodes.values())
        return min(total, self._most or total)

    def _make_mailbox(self) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=True)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        return self._ray.remote(_Mailbox).options(**options).remote()

    def _on(self, node: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Reference to the result of a small function on this node."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        place = NodeAffinitySchedulingStrategy(node, soft=False)
        task = self._ray.remote(num_cpus=0, max_retries=1)(function)
        return task.options(scheduling_strategy=place).remote(*arguments)

    def _look(self, first: bool = False) -> None:
        """Forget nodes that are gone, and check those that are new."""
        self._looked = time.monotonic()
        alive = {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"]}
        for gone in set(self._nodes) - set(alive):
            del self._nodes[gone]
        if first:
            self._resolve_gpu(alive.values())
        large = {id: node for id, node in alive.items() if self._holds(node["Resources"])}
        if not self._nodes and not large:
            self._raise_too_small(alive.values(), first)
        new = [id for id in large if id not in self._nodes and id not in self._refused]
        token = None if self._token is None else str(self._token)
        answers = {id: self._on(id, facts_function(), PACKAGES, token) for id in new}
        fitting = {}
        for id, answer in answers.items():
            facts = self._answer(answer, large[id], first)
            problem = None if facts is None else version_difference(facts, self._here)
            if facts is not None and not self._refuse(id, large[id], problem or "", first):
                fitting[id] = facts
        if self._contents is not None:
            checks = {id: self._on(id, contained, self._contents, os.getcwd()) for id in fitting}  # noqa: PTH109
            for id, answer in checks.items():
                kind, value = self._answer(answer, large[id], first) or ("", {})
                problem = "" if not kind else str(value) if kind == "error" else content_difference(value, self._files)
                if not kind or self._refuse(id, large[id], problem, first):
                    del fitting[id]
        for id, facts in fitting.items():
            self._nodes[id] = self._node(id, facts, large[id]["Resources"])

    def _answer(self, reference: Any, node: Mapping[str, Any], first: bool) -> Any:
        """What a node answers; None where it was lost meanwhile."""
        try:
            return self._ray.get(reference, timeout=_NODE_SECONDS)
        except self._ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:300]
            text = f"Ray node {_label(node)} could not be checked: {reason}."
            errors = self._ray.exceptions
            if first and not isinstance(error, (errors.TaskUnschedulableError, errors.NodeDiedError)):
                raise WorkerError(f"{text} Take it out of the cluster, or mend it.") from error
            self._warn(text)
            return None

    def _refuse(self, id: str, node: Mapping[str, Any], problem: str, first: bool) -> bool:
        """Whether a node is refused; a difference ends the run at its start, and later leaves out the new node."""
        if not problem:
            return False
        text = f"Ray node {_label(node)} {problem}"
        if first:
            raise WorkerError(text)
        self._refused.add(id)
        self._warn(f"{text} The node is not used.")
        return True

    def _resolve_gpu(self, nodes: Any) -> None:
        """Decide whether workers run on GPUs, where the device is ``auto``."""
        if self._needs.gpu is None:
            there = any(node["Resources"].get("GPU", 0) > 0 for node in nodes)
            self._needs = Needs(self._needs.cpus, self._needs.memory, there, self._needs.gpu_memory)
        if self._needs.gpu:  # the model is on the GPU
            self._needs = Needs(self._needs.cpus, 0, True, self._needs.gpu_memory)
        elif self._gpus is not None:
            raise RecipeError(f"--gpus is {self._gpus}, but the work runs on CPUs. Leave it out.")

    def _holds(self, resources: Mapping[str, float]) -> bool:
        needs = self._needs
        return (
            resources.get("CPU", 0) >= needs.cpus
            and resources.get("memory", 0) >= needs.memory
            and resources.get("GPU", 0) >= (1 if needs.gpu else 0)
        )

    def _raise_too_small(self, nodes: Any, first: bool) -> None:
        needs = self._needs
        if not first:
            raise WorkerError(
                "no node of the Ray cluster is left that holds a worker. What is finished is safe; run the command "
                "again when nodes are back."
            )
        largest = {
            name: max((node["Resources"].get(name, 0) for node in nodes), default=0)
            for name in ("CPU", "GPU", "memory")
        }
        wanted = [f"{needs.cpus} CPU{'s' * (needs.cpus > 1)}", *(["1 GPU"] if needs.gpu else [])]
        wanted += [f"{needs.memory / 1e9:.1f} GB of memory"] if needs.memory else []
        raise RecipeError(
            f"one job needs {' and '.join(wanted)}, and no node of the Ray cluster has that (the most of each: "
            f"{largest['CPU']:g} CPUs, {largest['GPU']:g} GPUs, {largest['memory'] / 1e9:.1f} GB). Lower --threads, "
            "set model.device, or add a node."
        )

    def _node(self, id: str, facts: Mapping[str, Any], resources: Mapping[str, float]) -> _Node:
        needs = self._needs
        workers = int(resources.get("CPU", 0) // needs.cpus)
        share = 0.0
        if needs.memory:
            workers = min(workers, int(resources.get("memory", 0) // needs.memory))
        if needs.gpu:
            gpus = int(resources.get("GPU", 0))
            size = min((_memory_of(card) for card in facts["cards"]), default=0)
            fitting = max(1, size // needs.gpu_memory) if needs.gpu_memory and size else 1
            fitting = min(fitting, max(1, workers // gpus))
            share, workers = int(10_000 / fitting) / 10_000, min(workers, fitting * gpus)
        sees = self._token is not None and facts["token"] == self._scratch
        return _Node(id, facts["host"], sees, max(1, workers), share)

    def staff(self, wanted: int) -> None:
        """Start actors, so many where the cluster holds them, on the nodes with the fewest."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        now = time.monotonic()
        if now - self._looked > 2:
            self._look()
        waiting = [member for member in self._members if member.coming is not None]
        if now - self._started > _BUSY_SECONDS and len(waiting) == len(self._members) > 0:
            self._warn("no worker has started on Ray yet: the cluster is busy, or its nodes are slow. Waiting.")
        late = sum(now - member.since > _BUSY_SECONDS for member in waiting)
        while len(self._members) - late < min(wanted, self.capacity):
            counts = Counter(member.node.id for member in self._members)
            free = [node for node in self._nodes.values() if counts[node.id] < node.workers]
            if self._gpus is not None:
                used = sum(member.node.gpu_share for member in self._members)
                free = [node for node in free if used + node.gpu_share <= self._gpus + 1e-6]
            if not free:
                break
            node = min(free, key=lambda node: counts[node.id] / node.workers)
            actor = (
                self._ray.remote(_Host)
                .options(
                    num_cpus=self._needs.cpus,
                    num_gpus=node.gpu_share,
                    memory=self._needs.memory or None,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
                )
                .remote(self._threads, os.getcwd(), self._mailbox, self._scratch, self._function)  # noqa: PTH109
            )
            self._members.append(_Worker(actor, node, actor.ready.remote(), now))

    def free(self) -> list[_Worker]:
        """Workers without a job."""
        return [member for member in self._members if member.coming is None and not member.job]

    def events(self) -> list[tuple[Any, ...]]:
        """Wait for news: (kind, job, …) with kind done, error, lost, progress, warning or files."""
        by_reference = {member.coming or member.result: member for member in self._members}
        references = [reference for reference in by_reference if reference is not None]
        if references:
            ready, _ = self._ray.wait(references, num_returns=1, timeout=_POLL_SECONDS)
        else:
            ready = []
            time.sleep(_POLL_SECONDS)
        news: list[tuple[Any, ...]] = []
        with suppress(self._ray.exceptions.RayError):  # its node is lost: Ray starts it again on another
            news += self._ray.get(self._mailbox.take.remote(), timeout=30)
        for reference in ready:
            member = by_reference[reference]
            name = member.job
            try:
                value = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                news.append(self._failure(member, error) or self._loss(member, error))
                continue
            if member.coming is not None:
                member.coming = None
                continue
            member.job, member.result = "", None
            kind, payload, files = value
            if files is not None:
                news.append(("files", name, *files, partial(self._read, member.actor)))
            news.append((kind, name, _with_host(payload, member) if kind == "error" else payload))
        return news

    def _read(self, actor: Any, names: Sequence[str]) -> dict[str, bytes]:
        """Files of an actor's last job, of which the message was lost with the mailbox."""
        return self._ray.get(actor.read.remote(names))

    def _failure(self, member: _Worker, error: Exception) -> tuple[Any, ...] | None:
        """The event of a job that failed outside its function, as its result cannot be sent; None of a worker lost."""
        errors = self._ray.exceptions
        cause = getattr(error, "cause", None)
        of_ray = isinstance(cause, errors.RayError) and type(cause) is not errors.RayError  # not one that has no pickle
        if not isinstance(error, errors.RayTaskError) or not isinstance(cause, Exception) or of_ray or not member.job:
            return None
        name, member.job, member.result = member.job, "", None
        return "error", name, _with_host(as_error(name, cause), member)

    def _loss(self, member: _Worker, error: Exception) -> tuple[Any, ...]:
        """The event of a worker that is no longer there."""
        self._members.remove(member)
        with suppress(Exception):  # a node that cannot be reached may be at work still
            self._ray.kill(member.actor)
        reason, name = str(error), member.job
        where = f"on {member.node.host}"
        if isinstance(error, self._ray.exceptions.OutOfMemoryError):
            return "error", name, WorkerError(f"{name or 'a worker'} ran out of memory {where}. {MEMORY_FIXES}")
        if "creation task" in reason:
            raise WorkerError(f"a worker could not start {where}: {reason.strip().splitlines()[-1]}")
        ended = "worker process has died" in reason or ("worker process" in reason and "exit" in reason.lower())
        kind = f"the worker process {'of ' + name if name else ''} {where} ended" if ended else f"{where[3:]} is lost"
        return "lost", name, kind, ended

    def end(self) -> None:
        """End all actors, and delete what they left on nodes that do not see the store."""
        for member in self._members:
            with suppress(Exception):
                self._ray.kill(member.actor)
        with suppress(Exception):
            self._ray.kill(self._mailbox)
        if self._token is not None:
            self._token.unlink(missing_ok=True)
            nodes = [node.id for node in self._nodes.values() if not node.sees_store]
            with suppress(Exception):
                self._ray.wait(
                    [self._on(id, cleared, f"{self._scratch}-*") for id in nodes], num_returns=len(nodes), timeout=5
                )
        self._members = []


def _with_host(error: LonggameError, member: _Worker) -> LonggameError:
    """An error of storage with the node whose disk it is."""
    return StorageError(f"on {member.node.host}: {error}") if isinstance(error, StorageError) else error


def _memory_of(card: str) -> int:
    """Bytes of a card as nvidia-smi lists it; 0 where it tells none (cards that share the machine's memory)."""
    size = card.rpartition(",")[2].strip()
    return int(size) << 20 if size.isdecimal() else 0


def _label(node: Mapping[str, Any]) -> str:
    """A node as people know it."""
    return f"{node.get('NodeManagerHostname') or node.get('NodeManagerAddress')} ({node['NodeID'][:8]})"


class _Losses:
    """Counts the workers that a job lost."""

    def __init__(self, warn: Warn) -> None:
        self._counts: Counter[tuple[str, bool]] = Counter()
        self._warn = warn

    def error(self, name: str, reason: str, ended: bool) -> WorkerError | None:
        """Return the error of a job that lost too many; None: it is to be placed again."""
        if not name:
            return None
        self._counts[name, ended] += 1
        if self._counts[name, ended] >= (_WORKER_ENDS if ended else _NODE_LOSSES):
            return WorkerError(
                f"{reason}; {name} was placed {self._counts[name, ended]} times. Finished stages are safe. Usually it "
                "is out of memory: see the node's logs, and use fewer --workers."
            )
        self._warn(f"{reason}; {name} is placed again.")
        return None


class _Crew:
    """`longgame.engines.local.Crew` on a cluster."""

    def __init__(self, jobs: Sequence[Job], workers: _Workers, store: Store | None, warn: Warn, ray: Any) -> None:
        self.waiting = {job.name: job for job in jobs}
        self.left = set(self.waiting)
        self._order = {job.name: place for place, job in enumerate(jobs)}
        self._jobs = dict(self.waiting)
        self._workers, self._store, self._ray = workers, store, ray
        self._losses = _Losses(warn)
        self._packed: dict[str, Any] = {}

    def hand_out(self) -> None:
        self._workers.staff(len(self.left))
        jobs = [job for job in self.waiting.values() if job.after not in self.left]
        jobs.sort(key=lambda job: self._order[job.name])  # one that is placed again comes first
        for job, worker in zip(jobs, self._workers.free(), strict=False):
            copy = None if self._store is None or worker.node.sees_store else self._copy(self._store, job.name)
            worker.job = job.name
            worker.result = worker.actor.run.remote(job, copy)
            del self.waiting[job.name]

    def _copy(self, store: Store, name: str) -> Copy:
        reads, writes = store.parts(name)
        if not self._packed:
            self._packed[""] = self._ray.put(dict(store.texts))
        for path in reads:
            if path not in self._packed:
                self._packed[path] = self._ray.put(packed(store.folder, path))
        finished = self._ray.put(packed(store.folder, writes))
        return Copy(str(store.folder), [self._packed[""], *(self._packed[path] for path in reads), finished], writes)

    def events(self) -> list[tuple[Any, ...]]:
        events: list[tuple[Any, ...]] = []
        for kind, name, *details in self._workers.events():
            if kind == "files":
                if self._store is not None:
                    write_finished(self._store.folder / self._store.parts(name)[1], *details)
                continue
            if kind == "lost":
                error = self._losses.error(name, *details)
                if error is None:
                    if name:
                        self.waiting[name] = self._jobs[name]
                    continue
                kind, details = "error", [error]
            if kind == "error" and not name:
                raise details[0]
            if kind in ("done", "error"):
                self.left.discard(name)
            events.append((kind, name, *(details if kind != "done" else [None])))
        return events

    def end(self) -> None:
        self._workers.end()


def run_ray(
    jobs: Sequence[Job],
    engine: str,
    workers: int | None,
    threads: int,
    notify: Notify,
    finished: Callable[[str], None],
    failed: Failed = raise_at_once,
    warn: Warn | None = None,
    *,
    needs: Needs | None = None,
    gpus: int | None = None,
    store: Store | None = None,
    contents: Callable[[], Mapping[str, str]] | None = None,
) -> None:
    """Run the jobs on a Ray cluster, at most ``workers`` at a time, as `run_local` does on one machine.

    A job whose node is lost is placed again. On a node that sees the store it goes on behind its last finished stage.
    Other nodes send each finished stage, so there, too, it goes on behind the last that arrived.

    Args:
        engine: as in `check_engine`.
        needs: of each worker.
        gpus: GPUs to use; None: all.
        store: the folder that jobs write into; None: they write none.
        contents: name → digest of each file that the jobs read, computed here and on each node.

    Raises:
        LonggameError: what ``failed`` raised.
        RecipeError: Ray is missing, does not answer, or has too little for one job. WorkerError: a node differs from
            this machine.
    """
    if not jobs:
        return
    show, folder = _log.warning if warn is None else _once(warn), None if store is None else store.folder
    with connected(engine) as ray, contextlib.ExitStack() as stack:
        crew = _Workers(
            ray, workers, threads, needs or Needs(threads), warn=show, gpus=gpus, folder=folder, contents=contents
        )
        stack.callback(crew.end)
        follow(_Crew(jobs, crew, store, show, ray), notify, finished, failed, show)


def _once(warn: Warn) -> Warn:
    texts = set[str]()

    def show(text: str) -> None:
        if text not in texts:
            texts.add(text)
            warn(text)

    return show


@contextmanager
def mapper_on_ray(
    function: Callable[[Any], Any],
    engine: str,
    workers: int | None,
    threads: int,
    needs: Needs,
    warn: Warn | None,
    contents: Callable[[], Mapping[str, str]] | None = None,
) -> Iterator[Callable[[Iterable[Any]], Iterator[Any]]]:
    """`longgame.engines.choice.mapper` on a cluster."""
    show = _log.warning if warn is None else _once(warn)
    with connected(engine) as ray, contextlib.ExitStack() as stack:
        crew = _Workers(ray, workers, threads, needs, warn=show, contents=contents, function=function)
        stack.callback(crew.end)
        yield partial(_mapped, crew, show)


def _mapped(crew: _Workers, show: Warn, parts: Iterable[Any]) -> Iterator[Any]:
    losses, numbered = _Losses(show), enumerate(parts)
    places = dict[str, int]()
    open_parts, results = dict[int, Any](), dict[int, Any]()
    waiting, following = deque[int](), 0
    while True:
        room = (1 + _AHEAD) * max(1, crew.capacity) - len(open_parts) - len(results)
        for place, part in itertools.islice(numbered, max(0, room)):
            open_parts[place] = part
            waiting.append(place)
        if not open_parts:
            return
        crew.staff(len(open_parts))
        for worker in crew.free()[: len(waiting)]:
            place = waiting.popleft()
            worker.job = f"part {place + 1}"
            places[worker.job] = place
            worker.result = worker.actor.call.remote(worker.job, open_parts[place])
        for kind, name, *details in crew.events():
            if kind == "done":
                place = places.pop(name)
                results[place] = details[0]
                del open_parts[place]
            elif kind == "warning":
                show(details[0])
            elif kind == "error":
                raise details[0]
            elif kind == "lost":
                error = losses.error(name, *details)
                if error is not None:
                    raise error
                if name:
                    waiting.appendleft(places[name])
        while following in results:
            yield results.pop(following)
            following += 1
