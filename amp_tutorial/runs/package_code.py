"""The code that a number comes from: one hash over modules of this package, by what they do and not by how they look.

Comments, docstrings, layout and the words of error messages are left out, so that mending these makes no finished run
count as another one. Everything else is taken as Python's parser reads it, in the same form on every version of Python.
"""

import ast
import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..files.paths import PACKAGE

NUMBERS = ("files", "core", "measure", "methods", "scale")  # folders with code that can change a number
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_sha256(folders: Sequence[str] = (".",)) -> str:
    """One hash over the modules in folders of the package and those beside the folders; by default over all of them.

    A module is read again when its size or time of change is another.
    """
    digest = hashlib.sha256()
    inside = {path for folder in folders for path in (PACKAGE / folder).rglob("*.py")}
    for path in sorted(inside.union(PACKAGE.glob("*.py"))):
        name, seen = path.relative_to(PACKAGE).as_posix(), path.stat()
        digest.update(f"{name} {_module(path, seen.st_size, seen.st_mtime_ns)} ".encode())
    return digest.hexdigest()


@cache
def _module(path: Path, size: int, changed: int) -> str:
    return meaning_sha256(path.read_text(encoding="utf-8"))


def meaning_sha256(source: str) -> str:
    """The hash of a module's source without what changes nothing.

    Raises:
        SyntaxError: it cannot be parsed.
    """
    return hashlib.sha256(repr(_meaning(ast.parse(source), False)).encode()).hexdigest()


def _meaning(node: Any, raised: bool) -> Any:
    """A syntax tree as nested lists; `raised`: inside a raise statement, where texts are for people.

    Not `ast.dump`, which lists empty fields on some versions of Python, and has new ones on others.
    """
    if isinstance(node, list):
        return [_meaning(item, raised) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    if raised and isinstance(node, ast.Constant) and isinstance(node.value, str):
        return "a text"
    raised = raised or isinstance(node, ast.Raise)
    return [type(node).__name__, *([name, _meaning(value, raised)] for name, value in _fields(node))]


def _fields(node: ast.AST) -> Iterator[tuple[str, Any]]:
    documented = isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None
    for name, value in ast.iter_fields(node):
        value = value[1:] if documented and name == "body" else value
        if isinstance(node, ast.JoinedStr):  # Python 3.12 ends a nested format by an empty text
            value = [part for part in value if not (isinstance(part, ast.Constant) and part.value == "")]
        if value is not None and value != []:
            yield name, value
