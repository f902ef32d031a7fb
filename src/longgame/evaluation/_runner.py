"""Runs one program and its tests inside the sandbox: a script of the standard library alone, started by `sandbox`.

It reads one JSON object from stdin (program, tests, limits, folders), shuts itself in, runs the program, then the
tests, and writes to the pipe ``result`` what happened. Only after the last test has passed does it read the pipe
``secret`` and write what it held: whatever a program prints, raises or exits with, it does not pass by it.
"""

from __future__ import annotations

import builtins
import ctypes
import json
import os
import resource
import signal
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_NEW = {
    "user": 0x10000000,
    "mount": 0x00020000,
    "net": 0x40000000,
    "pid": 0x20000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
}
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_NOSUID, _MS_NODEV = 0x1000, 0x4000, 0x40000, 0x2, 0x4
_MNT_DETACH = 2
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _RDONLY, _NOSUID = 442, -100, 0x8000, 0x1, 0x2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CAPABILITIES_3 = 0x20080522
_NOBODY = 65534
WORK = "/longgame-program"
"""The empty folder that a program may write to."""


class SealError(Exception):
    """The kernel refused a part of the sandbox; the message says which."""


def _call(what: str, status: int) -> None:
    if status != 0:
        raise SealError(f"{what}: {os.strerror(ctypes.get_errno())}")


def seal(folder: str, readable: Iterable[str], disk: int) -> None:
    """Enter namespaces of our own: a file system of the readable folders and an empty one, no network, no rights.

    Raises:
        SealError: the kernel does not allow it (an old one, a container, a hardened system).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group, root = os.geteuid(), os.getegid(), os.geteuid() == 0
    _call("unshare", libc.unshare(sum(value for name, value in _NEW.items() if not (root and name == "user"))))
    if not root:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{_NOBODY} {user} 1"),
            ("gid_map", f"{_NOBODY} {group} 1"),
        ):
            Path("/proc/self", name).write_text(text, encoding="ascii")
    _leave_to_child()  # the child is the first process of the new PID namespace; with it, all others in there end
    _call("prctl", libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    _call("mount private", libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
    _mount_files(libc, folder, f"size={disk},nr_inodes=4096,mode=755")
    for path in readable:
        _bind(libc, path, folder + path)
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        _bind(libc, device, folder + device)
    Path(folder + WORK).mkdir(mode=0o700)
    _mount_files(libc, folder + WORK, f"size={disk},nr_inodes=1024,mode=700")
    if root:
        os.chown(folder + WORK, _NOBODY, _NOBODY)
    _read_only(libc, folder, recursive=False)
    os.chdir(folder)
    _call("pivot_root", libc.pivot_root(b".", b"."))
    _call("umount", libc.umount2(b".", _MNT_DETACH))
    os.chdir(WORK)
    _leave_to_child()  # limits do not kill the first process of a namespace, so the program is its second one
    if root:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    header, data = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
    _call("capset", libc.capset(header, data))
    _call("prctl", libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _call("prctl", libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))  # a change of user clears it


def _leave_to_child() -> None:
    """Fork; only the child returns, and its parent ends with it and passes on what ended it."""
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(128 - code if code < 0 else code)


def _mount_files(libc: Any, target: str, options: str) -> None:
    flags = _MS_NOSUID | _MS_NODEV
    _call("mount tmpfs", libc.mount(b"tmpfs", target.encode(), b"tmpfs", flags, options.encode()))


def _bind(libc: Any, source: str, target: str) -> None:
    """Show a file or folder at another place, read-only unless it is a device."""
    if not Path(source).exists():
        return
    if Path(source).is_dir():
        Path(target).mkdir(parents=True, exist_ok=True)
    else:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).touch()
    _call(f"bind {source}", libc.mount(source.encode(), target.encode(), None, _MS_BIND | _MS_REC, None))
    if not source.startswith("/dev/"):
        _read_only(libc, target)


def _read_only(libc: Any, target: str, recursive: bool = True) -> None:
    attributes = (ctypes.c_uint64 * 4)(_RDONLY | _NOSUID, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    arguments = (_AT_FDCWD, target.encode(), flags, ctypes.byref(attributes), ctypes.sizeof(attributes))
    _call("mount_setattr", libc.syscall(_MOUNT_SETATTR, *arguments))


_REFUSED = (
    *(
        "socket.",
        "subprocess.",
        "ctypes.",
        "os.system",
        "os.fork",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "pty.spawn",
    ),
    *(
        "os.kill",
        "signal.pthread_kill",
        "os.chmod",
        "os.chown",
        "os.link",
        "os.symlink",
        "os.chdir",
        "resource.prlimit",
    ),
    *("webbrowser.open", "syslog."),
)
"""Beginnings of events that Python's audit hooks refuse."""
_WITHOUT_AUDIT = ("_posixsubprocess", "_ctypes", "_testcapi")
"""Modules that reach the system past the audit hooks."""
_CHANGING = (
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.utime"),
    *("shutil.rmtree", "shutil.move"),
)


def guard(folder: str, readable: Iterable[str]) -> None:
    """Refuse, as far as Python itself sees it, network, processes, signals, and files outside of the folder."""
    inside = os.path.realpath(folder) + os.sep
    roots = tuple(os.path.realpath(path) + os.sep for path in readable)

    def allowed(path: Any, writes: bool, real: Any = os.path.realpath, decode: Any = os.fsdecode) -> bool:
        place = real(decode(path)) + os.sep
        return bool(place.startswith(inside) or (not writes and place.startswith(roots)))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_REFUSED) or (event == "import" and arguments[0] in _WITHOUT_AUDIT):
            raise PermissionError(f"{event} is not allowed in the sandbox")
        if event == "open" and not isinstance(arguments[0], int):
            writes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            if not allowed(arguments[0], writes):
                raise PermissionError(f"{arguments[0]!r} is not in the sandbox")
        elif event in _CHANGING and not all(allowed(p, True) for p in arguments if isinstance(p, str | bytes)):
            raise PermissionError(f"{event} outside of the sandbox")
        elif event in ("os.listdir", "os.scandir") and not allowed(arguments[0] or ".", False):
            raise PermissionError(f"{arguments[0]!r} is not in the sandbox")

    sys.addaudithook(hook)


def limit(seconds: int, memory: int, disk: int) -> None:
    """Bound processor time, address space, size and number of files; no further process or thread can start."""
    bounds = {
        "CPU": (seconds, seconds + 1),
        "AS": (memory, memory),
        "FSIZE": (disk, disk),
        "NOFILE": (64, 64),
        "CORE": (0, 0),
        "NPROC": (1, 1),
        "MEMLOCK": (0, 0),
        "MSGQUEUE": (0, 0),
    }
    for name, pair in bounds.items():
        number = getattr(resource, f"RLIMIT_{name}", None)
        if number is not None:
            highest = resource.getrlimit(number)[1]
            soft, hard = (end if highest < 0 else min(end, highest) for end in pair)
            resource.setrlimit(number, (soft, hard))


def main() -> None:
    job = json.loads(sys.stdin.buffer.read())
    result = job["result"]
    try:
        if job["namespaces"]:
            seal(job["folder"], job["readable"], job["disk"])
        else:
            os.chdir(job["folder"])
            libc = ctypes.CDLL(None, use_errno=True)
            if hasattr(libc, "prctl"):
                libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
                libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    except (SealError, OSError, AttributeError) as error:
        os.write(result, json.dumps({"refused": str(error)}).encode())
        os._exit(1)
    os.write(result, b'{"refused": ""}\n')
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    limit(job["seconds"], job["memory"], job["disk"])
    if not job["namespaces"]:
        guard(job["folder"], job["readable"])
    outcome = _run(job["program"], job["tests"], job["secret"])
    os.write(result, outcome)
    os._exit(0)


_BUILTINS = dict(vars(builtins))


def _run(
    program: str,
    tests: str,
    secret: int,
    read: Any = os.read,
    run: Any = exec,
    build: Any = compile,
    names: dict[str, Any] = _BUILTINS,
    space: dict[str, Any] = vars(builtins),
) -> bytes:
    """What is written as the result; all that decides it is bound before the program runs."""
    module = types.ModuleType("program")  # dataclasses and pickle look for it among the modules
    sys.modules[module.__name__] = module
    scope = vars(module)
    try:  # without this file's own future import, which would turn annotations into texts
        code, checks = (
            build(source, name, "exec", dont_inherit=True)
            for source, name in ((program, "<program>"), (tests, "<tests>"))
        )
        run(code, scope)
        sys.settrace(None)
        sys.setprofile(None)
        space.update(names)  # a program that replaces a builtin would change its tests
        run(checks, scope)
        return bytes(read(secret, 64))
    except BaseException as error:  # noqa: BLE001
        return b"failed " + type(error).__name__[:100].encode("ascii", "replace")


if __name__ == "__main__":
    main()
