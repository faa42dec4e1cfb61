"""Run a function in a process of its own: no network, limits on time, memory and files, nothing written elsewhere.

That stops accidents and simple tricks, not a determined attack. (Linux and macOS: it takes `fork`.)
"""

import ctypes
import io
import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY = 4 * 2**30  # bytes that it may take beside what is there
FILES = 2**20  # bytes that a file of its own may have
WORDS = 500  # letters of an error that are kept
# Events of Python's audit hooks at which it is stopped; in its own folder it may write.
REFUSED = (
    "socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec",
    "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill", "os.killpg", "ctypes.dlopen", "pty.spawn",
)  # fmt: skip
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown",
           "os.truncate", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile")  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # of Linux's unshare


@dataclass(frozen=True)
class Ended:
    """How it ended: "done", "endless" (the time was up) or "died"; then what it gave, its error, what was refused."""

    how: str
    value: Any = None
    error: str = ""
    refused: str = ""


def possible() -> bool:
    """Whether this system can do it."""
    return hasattr(os, "fork")


def apart(work: Callable[[], Any], seconds: float) -> Ended:
    """Call a function in a process of its own; what it returns must be JSON.

    The caller runs on one thread: a fork has no other, and waits for those that it thinks it has.
    """
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            os.close(reader)
            _child(work, folder, writer, seconds)
        os.close(writer)
        said, deadline = b"", time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and select.select([reader], [], [], left)[0]:
            if not (part := os.read(reader, 65536)):
                break
            said += part
        over = time.monotonic() >= deadline
        os.close(reader)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)  # and whatever it began
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:
        return Ended("done", **json.loads(said))
    except (ValueError, TypeError):
        return Ended("endless" if over else "died")


def _child(work: Callable[[], Any], folder: str, writer: int, seconds: float) -> None:
    """In the process; it never returns."""
    refused: list[str] = []
    value, error = None, ""
    try:
        _confined(folder, seconds, refused)
        value = work()
    except BaseException:
        error = traceback.format_exc().splitlines()[-1][:WORDS]
    with suppress(BaseException):
        told = dict(value=value, error=error, refused=refused[0][:WORDS] if refused else "")
        os.write(writer, json.dumps(told).encode())
    os._exit(0)


def _confined(folder: str, seconds: float, refused: list[str]) -> None:
    """Take from this process what it has no need of."""
    import resource  # not on Windows, where the rest of this file is read all the same

    os.setsid()
    os.chdir(folder)
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silent, stream)
    sys.stdout = sys.stderr = io.StringIO()
    sys.dont_write_bytecode = True
    with suppress(OSError, AttributeError):  # where the system lets a user do so; elsewhere the hook refuses networks
        ctypes.CDLL(None, use_errno=True).unshare(NEW_USER | NEW_NETWORK)
    memory = 64 * 2**30  # where the system doesn't say what is in use
    with suppress(OSError, ValueError):
        memory = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    limits = {resource.RLIMIT_CPU: int(seconds) + 1, resource.RLIMIT_FSIZE: FILES, resource.RLIMIT_AS: memory}
    for what, most in limits.items():
        with suppress(ValueError, OSError):
            resource.setrlimit(what, (most, most))
    sys.addaudithook(_hook(folder, refused))


def _hook(folder: str, refused: list[str]) -> Callable[[str, tuple[Any, ...]], None]:
    """What Python asks before it opens, changes or calls something; a hook can't be taken away again."""
    own = os.path.realpath(folder) + os.sep

    def inside(path: Any) -> bool:
        return isinstance(path, int) or path is None or os.path.realpath(os.fsdecode(path)).startswith(own)

    def refuse(what: str) -> None:
        refused.append(what)
        raise PermissionError(f"not allowed here: {what}")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            writes = any(letter in (mode or "") for letter in "wax+") or (isinstance(flags, int) and flags & WRITES)
            if writes and not inside(path) and path != os.devnull:
                refuse(f"writing to {path}")
        elif event.startswith(REFUSED):
            refuse(event)
        elif event.startswith(CHANGES) and not all(inside(a) for a in args if isinstance(a, str | bytes)):
            refuse(f"{event} outside its folder")

    return hook
