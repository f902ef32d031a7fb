"""Bounds that are checked before work begins: time of code and templates of strangers, memory, kinds of files, size of
YAML; and where the relative paths of a recipe start from."""

from __future__ import annotations

import ctypes
import glob
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

IMPORT_SECONDS = 300.0
"""A file of a selector or scorer may take so long to import."""
TEMPLATE_SECONDS = 60.0
"""A chat template may take so long for one conversation."""
MOST_PROCESSES = 1024
"""Workers of an audit, or threads of one worker."""
_MOST_NODES = 100_000
"""Values of a recipe, aliases written out; a few nested aliases can stand for billions."""


@contextmanager
def time_limit(seconds: float, error: BaseException, *, of_processor: bool = False) -> Iterator[None]:
    """Raise ``error`` where the block takes longer.

    In the main thread a timer that ends sooner keeps its place, and a later one goes on afterwards. In another thread
    (Python hands signals to the main thread only) a call into C code is ended when it returns.

    Args:
        of_processor: count seconds of the processor that this thread takes, so that the outcome does not depend on what
            else the machine or the process does (where the system keeps no clock of a thread: seconds of the clock).
    """
    if threading.current_thread() is not threading.main_thread():
        with _watchdog(seconds, error, _thread_clock() if of_processor else time.monotonic):
            yield
        return
    timer, number, clock = signal.ITIMER_REAL, signal.SIGALRM, time.monotonic
    if of_processor:
        timer, number, clock = signal.ITIMER_PROF, signal.SIGPROF, time.thread_time
    outer = signal.getitimer(timer)[0]
    if 0 < outer <= seconds:
        yield
        return

    start = clock()

    def stop(_number: int, _frame: FrameType | None) -> None:
        left = seconds - (clock() - start) if of_processor else 0.0
        if left > 0.01:  # the timer counts all threads of the process
            signal.setitimer(timer, left)
        else:
            raise error

    before = signal.signal(number, stop)
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)
        signal.signal(number, before)
        if outer:
            signal.setitimer(timer, max(0.001, outer - (clock() - start)))


def _thread_clock() -> Callable[[], float]:
    """Processor seconds of this thread, readable from another one; the clock's where the system keeps none."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.monotonic
    number = time.pthread_getcpuclockid(threading.get_ident())
    return lambda: time.clock_gettime(number)


@contextmanager
def _watchdog(seconds: float, error: BaseException, clock: Callable[[], float]) -> Iterator[None]:
    """`time_limit` outside of the main thread: another thread raises an exception in this one."""
    late: type[BaseException] = type("_LateError", (BaseException,), {})  # of this block alone: limits may be nested
    thread, lock, ended = threading.get_ident(), threading.Lock(), threading.Event()

    def send(exception: ctypes.py_object | None) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), exception)

    start = clock()

    def stop() -> None:
        left = seconds
        while left > 0.01 and not ended.wait(left):
            left = seconds - (clock() - start)
        with lock:
            if not ended.is_set():
                send(ctypes.py_object(late))

    timer = threading.Thread(target=stop, daemon=True)
    timer.start()
    try:
        try:
            yield
        finally:
            with lock:
                ended.set()
            timer.join()
    except late:
        raise error from None


_GPU_NODES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Files of the drivers of NVIDIA's and AMD's GPUs, and of both under Windows' Linux."""


def may_have_gpu() -> bool:
    """Whether it is worth to load torch, for seconds, to ask it for GPUs."""
    return sys.platform != "linux" or any(map(os.path.exists, _GPU_NODES))


MEMORY_FIXES = (
    "Set training.micro_tokens lower, training.gradient_checkpointing: true, model.dtype: bfloat16 or a lower "
    "model.max_length, or use fewer --workers."
)
"""What helps an audit whose model does not fit."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory; the CPU's allocator has no error class of its own."""
    return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)


def free_memory() -> int:
    """Bytes of memory that this machine has left."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


_FOLDERS: ContextVar[tuple[Path, ...]] = ContextVar("folders that relative paths start from", default=())


@contextmanager
def relative_to(folders: Iterable[str | Path]) -> Iterator[None]:
    """Inside, `located` looks for relative paths in these folders; without any, in the working directory."""
    token = _FOLDERS.set(tuple(map(Path, folders)))
    try:
        yield
    finally:
        _FOLDERS.reset(token)


def located(path: str) -> str:
    """The path of a file, a folder or a glob, in the first folder of `relative_to` that has it, else in the first.

    An absolute path stays as it is. A path is written relative to the working directory where it lies below that.
    """
    folders, relative = _FOLDERS.get(), Path(path).expanduser()
    if not folders or relative.is_absolute():
        return path
    for folder in folders:
        place = os.path.normpath(folder / relative)
        if os.path.exists(place) or (glob.has_magic(path) and any(glob.iglob(place, recursive=True))):  # noqa: PTH110, PTH207
            return _from_here(folder, path)
    return _from_here(folders[0], path)


def _from_here(folder: Path, path: str) -> str:
    here = Path.cwd()
    if folder == here:
        return path
    place = Path(os.path.normpath(folder / path))
    return str(place.relative_to(here)) if here in place.parents else str(place)


def missing(path: Path) -> str:
    """The words for a path of `located` that does not exist; they name the other folders that it was looked for in."""
    first, *others = _FOLDERS.get() or (Path.cwd(),)
    if not others or first not in (path.absolute(), *path.absolute().parents):
        return "does not exist"
    names = ["the working directory" if folder == Path.cwd() else f"'{folder}'" for folder in others]
    return f"does not exist, nor in {' or '.join(names)}"


def why_no_file(path: Path) -> str:
    """Return why a file cannot be read ("does not exist", "is a directory" …); empty where it can."""
    try:
        if path.is_dir():
            return "is a directory"
        if not path.exists():
            return missing(path)
        if not path.is_file():
            return "is a pipe or a device, not a file"
    except (OSError, ValueError) as error:  # a name too long, or with a NUL
        return f"is no possible name of a file ({getattr(error, 'strerror', None) or error})"
    effective = os.access in os.supports_effective_ids  # what opening the file asks for
    return "" if os.access(path, os.R_OK, effective_ids=effective) else "may not be read (no permission)"


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which takes 1:30 for a text and not for 90, and refuses repeated keys and endless aliases."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        tag = super().resolve(kind, value, implicit)
        is_number = kind is yaml.ScalarNode and tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        return "tag:yaml.org,2002:str" if is_number and ":" in value else tag

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        if node is None:
            return None
        if _nodes_of(node, {}, set()) > _MOST_NODES:
            raise yaml.constructor.ConstructorError(
                None, None, f"its aliases stand for more than {_MOST_NODES:,} values; write them out", node.start_mark
            )
        self._check_keys(node, set())
        return self.construct_document(node)

    def _check_keys(self, node: yaml.Node, seen: set[int]) -> None:
        """Refuse a key that is written twice in one mapping; before merges (``<<``), whose keys may be overridden."""
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            return
        seen.add(id(node))
        pairs = node.value if isinstance(node, yaml.MappingNode) else [(None, item) for item in node.value]
        keys = set()
        for key, value in pairs:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                name = self.construct_object(key)
                if name in keys:
                    text = f"the key '{key.value}' stands twice; keep one"
                    raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
                keys.add(name)
            self._check_keys(value, seen)


def _nodes_of(node: yaml.Node, sizes: dict[int, float], above: set[int]) -> float:
    """Values under a node with aliases written out; infinite where an alias stands for what holds it."""
    if id(node) in above:
        return float("inf")
    if id(node) not in sizes:
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        inside = parts if isinstance(node, yaml.CollectionNode) else ()
        sizes[id(node)] = 1.0 + sum(_nodes_of(part, sizes, {*above, id(node)}) for part in inside)
    return sizes[id(node)]


def load_yaml(text: str) -> Any:
    """The value of a YAML text, of at most 100,000 values; an alias counts as what it stands for.

    Raises:
        ValueError: it is not YAML, holds a key twice, or too many values.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(place + (getattr(error, "problem", None) or " ".join(str(error).split()))) from error
