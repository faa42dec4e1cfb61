"""The code that a number comes from: one hash over modules of this package, by what they do and not by how they look.

Comments, docstrings, layout and the words of error messages are left out, so that mending these makes no finished run
count as another one. Everything else is taken as Python's parser reads it, in the same form on every version of Python.
"""

import ast
import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ..core.families import TABLES
from ..files import PACKAGE

NUMBERS = ("files", "core", "measure", "methods", "scale")  # folders with code that can change a number
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_sha256(folders: Sequence[str] = (".",)) -> str:
    """One hash over the modules in folders of the package and those beside the folders; by default over all of them.

    A module or table is read again when its size or time of change is another.
    """
    digest = hashlib.sha256()
    inside = {path for folder in folders for path in (PACKAGE / folder).rglob("*.py")}
    for path in sorted(inside.union(PACKAGE.glob("*.py"))):
        name, seen = path.relative_to(PACKAGE).as_posix(), path.stat()
        digest.update(f"{name} {_module(path, seen.st_size, seen.st_mtime_ns)} ".encode())
    for table in TABLES:  # in which matrices heads and neurons are is code that was written as a table
        seen = table.stat()
        digest.update(_table(table, seen.st_size, seen.st_mtime_ns))
    return digest.hexdigest()


@cache
def _module(path: Path, size: int, changed: int) -> str:
    return meaning_sha256(path.read_text(encoding="utf-8"))


@cache
def _table(path: Path, size: int, changed: int) -> bytes:
    return json.dumps(yaml.safe_load(path.read_text(encoding="utf-8"))["families"]).encode()


def meaning_sha256(source: str) -> str:
    """The hash of a module's source without what changes nothing.

    Raises:
        SyntaxError: it cannot be parsed.
    """
    return hashlib.sha256(repr(_meaning(ast.parse(source), False)).encode()).hexdigest()


def definition_sha256(module: Path, name: str, chosen: Collection[str] = ()) -> str:
    """The hash of one definition with all that it needs of its module and of those beside it, and what they need.

    Of a table (a dictionary at a module's level) with keys among `chosen` only those entries count, and those without a
    plain key: so one more entry changes nothing for the others.

    Raises:
        SyntaxError: a module cannot be parsed.
    """
    tops: dict[Path, dict[str, list[ast.stmt]]] = {}
    found: dict[str, Any] = {}
    todo = [(module, name)]
    while todo:
        path, bound = todo.pop()
        if path not in tops:
            tops[path] = _definitions(path.read_text(encoding="utf-8"))
        if bound not in tops[path] or f"{path.name} {bound}" in found:
            continue
        kept = [_narrowed(statement, chosen) for statement in tops[path][bound]]
        found[f"{path.name} {bound}"] = [_meaning(statement, False) for statement in kept]
        for node in (node for statement in kept for node in ast.walk(statement)):
            if isinstance(node, ast.Name):
                todo.append((path, node.id))
            elif isinstance(node, ast.ImportFrom) and (beside := path.with_name(f"{node.module}.py")).is_file():
                todo += [(beside, alias.name) for alias in node.names if node.level == 1]
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()


def _definitions(source: str) -> dict[str, list[ast.stmt]]:
    """The statements at a module's level by the names that they give a value to."""
    found: dict[str, list[ast.stmt]] = {}
    for statement in ast.parse(source).body:
        for bound in _bound(statement):
            found.setdefault(bound, []).append(statement)
    return found


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement at the module's level gives a value to."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    parts = [
        node for node in ast.walk(statement) if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
    ]
    return names | {part.value.id for part in parts if isinstance(part.value, ast.Name)}  # table["key"] = …


def _narrowed(statement: ast.stmt, chosen: Collection[str]) -> ast.stmt:
    """A table without the entries that nobody chose; one of which nobody chose any is kept whole."""
    if not (isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(table := statement.value, ast.Dict)):
        return statement
    named = [key.value if isinstance(key, ast.Constant) else None for key in table.keys]
    if not any(key in chosen for key in named if key is not None):
        return statement
    stays = [i for i, key in enumerate(named) if key is None or key in chosen]
    narrow = ast.Dict([table.keys[i] for i in stays], [table.values[i] for i in stays])
    return ast.Assign([ast.Name("table", ast.Store())], narrow)


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
