"""Run a function in the place of a notebook: `package.module:function`, in a process that stays for the next one.

A fresh kernel loads every library and the model anew, and many a run takes less time than that. What such a function is
given and leaves is as of a notebook: plain parameters by name, of which `out` is a folder of its own, and there
`record.json`. It must not depend on what ran in its process before; it may keep what is dear, such as a loaded model. A
function `check_NAME` beside it may refuse parameters, before anything is executed, by a ValueError.
"""

import ast
import atexit
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from .notebooks import Ended, end, last_lines, own_environment
from .package_code import code_sha256, definition_sha256
from .parameters import KINDS, Parameter
from .record import file_sha256

PROCESS = Path(__file__).with_name("child_process.py")


def is_function(name: str) -> bool:
    """Whether this names a function, and not a notebook."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


@cache
def _source(name: str) -> tuple[Path, str]:
    """The file of a function's module, and the function's own name.

    Raises:
        ValueError: there is no such module. It is looked for and not imported, so that a grid is read at once.
    """
    module, _, function = name.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ValueError(f"The function {name}: the module {module} does not exist.")
    return Path(spec.origin), function


def parameters_of_function(name: str) -> dict[str, Parameter]:
    """What a function can be told: its keyword-only arguments, each with a plain value as its default.

    Raises:
        ValueError: no such module or function, or another kind of argument.
    """
    path, function = _source(name)
    body = ast.parse(path.read_text(encoding="utf-8")).body
    found = next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == function), None)
    if found is None:
        raise ValueError(f"The function {name}: {path} defines no {function}.")
    a = found.args
    if a.posonlyargs or a.args or a.vararg or a.kwarg:
        raise ValueError(f"The function {name} must take arguments by name only: def {function}(*, model='…', …).")
    known = {}
    for argument, default in zip(a.kwonlyargs, a.kw_defaults, strict=True):
        try:
            value = ast.literal_eval(default) if default is not None else None
        except ValueError:
            value = None
        if value is None or type(value) not in KINDS:
            raise ValueError(f"The function {name}: {argument.arg} needs a text, a number, True or False as default.")
        known[argument.arg] = Parameter(argument.arg, value, type(value), "")
    return known


def function_sha256(name: str, parameters: Mapping[str, Any]) -> str:
    """The hash of a function with what it needs of its module; of tables only the entries that parameters name."""
    path, function = _source(name)
    chosen = frozenset(value for value in parameters.values() if isinstance(value, str))
    beside = tuple((p, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(path.parent.glob("*.py")))
    return _definition(path, function, chosen, beside)


@lru_cache(maxsize=1024)
def _definition(path: Path, function: str, chosen: frozenset[str], beside: tuple[Any, ...]) -> str:
    return definition_sha256(path, function, chosen)


def refuse(name: str, parameters: Mapping[str, Any]) -> None:
    """Call `check_NAME`, if there is one beside the function, with all parameters but `out`.

    Raises:
        ValueError: what it says.
    """
    module, _, function = name.partition(":")
    check = getattr(importlib.import_module(module), f"check_{function}", None)
    if check is not None:
        check(**{key: value for key, value in parameters.items() if key != "out"})


def call(
    name: str,
    folder: Path,
    parameters: Mapping[str, Any],
    limit: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Call a function in a folder, in an idle process or a new one; the process ends when this one ends.

    Args:
        limit: seconds after which it is stopped, with its process.
        environment: variables beside those of this process.
    """
    code = f"{code_sha256()} {file_sha256(_source(name)[0])}"
    key = json.dumps(dict(environment or {}), sort_keys=True), code
    process = _taken(key) or _Process(environment or {})
    ended, alive = process.call(dict(function=name, folder=str(folder), parameters=dict(parameters)), limit)
    if alive:
        with _lock:
            _idle.setdefault(key, []).append(process)
    return ended


class _Process:
    """One process that calls functions."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115, lives as long
        self.child = subprocess.Popen(
            [sys.executable, "-P", str(PROCESS), "functions", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **own_environment(), **environment},
            text=True,
            start_new_session=True,  # Ctrl-C is for this process, which ends that one
        )

    def call(self, asked: Mapping[str, Any], limit: float | None) -> tuple[Ended, bool]:
        """How it ended, and whether the process can be asked again."""
        self._log.seek(0)
        self._log.truncate()
        answer: list[str] = []
        thread = Thread(target=lambda: answer.append(self._ask(asked)), daemon=True)
        thread.start()
        thread.join(limit)
        if thread.is_alive():
            self.end()
            return Ended(f"stopped after {limit:g} seconds, the limit"), False
        log = "\n".join(last_lines(self._log))
        if not answer[0]:
            self.end()
            code = self.child.returncode
            how = f"was killed (signal {-code})" if code < 0 else f"ended by itself (exit status {code})"
            return Ended(f"the process {how}, perhaps because memory ran out", log=log), False
        error, at = json.loads(answer[0])
        return Ended(error, log=log if error else "", at=at), True

    def _ask(self, asked: Mapping[str, Any]) -> str:
        assert self.child.stdin and self.child.stdout
        try:
            self.child.stdin.write(json.dumps(asked) + "\n")
            self.child.stdin.flush()
            return self.child.stdout.readline()
        except (OSError, ValueError):  # it is gone
            return ""

    def end(self) -> None:
        end(self.child)
        for stream in (self.child.stdin, self.child.stdout, self._log):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what was still to be written
                    pass


_idle: dict[tuple[str, str], list[_Process]] = {}  # by their environment and the code that they have loaded
_lock = Lock()


def _taken(key: tuple[str, str]) -> _Process | None:
    with _lock:
        for other in [other for other in _idle if other[0] == key[0] and other[1] != key[1]]:
            for process in _idle.pop(other):  # of earlier code
                process.end()
        mine = _idle.get(key, [])
        while mine:
            if (process := mine.pop()).child.poll() is None:
                return process
            process.end()
    return None


@atexit.register
def end_idle() -> None:
    """End the processes that nobody uses."""
    with _lock:
        for process in [process for processes in _idle.values() for process in processes]:
            process.end()
        _idle.clear()
