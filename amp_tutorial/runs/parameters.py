"""What a notebook can be told: the names in its parameters cell with type and help, and given values checked by them.

papermill only warns of a name that it does not know, and passes whatever it is given. Here both are errors.
"""

import ast
import difflib
import io
import json
import math
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..files import DATA, NOTEBOOKS, PACKAGE
from ..files.atomic import expanded

Value = str | int | float | bool
FOLDERS = (NOTEBOOKS, PACKAGE / "notebooks")  # of a clone, and of an installed package
KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Parameter:
    """A name, the value it has if nothing is said, the type of its values, and what its comment says."""

    name: str
    default: Value
    kind: type
    help: str


def notebook_named(name: str) -> Path:
    """A notebook by its path, or by its name in `notebooks/`; of a lesson the number will do: 04.

    Raises:
        ValueError: there is none.
    """
    if name.endswith(".ipynb"):
        if Path(name).is_file():
            return Path(name).resolve()
        raise ValueError(f"No notebook {name}.")
    every = sorted(path for folder in FOLDERS for path in folder.glob("*.ipynb"))
    found = [p for p in every if p.stem == name] or [p for p in every if p.stem.startswith(f"{name}_")]
    if not found:
        there = ", ".join(sorted({path.stem for path in every})) or "none"
        raise ValueError(f"No notebook is called {name!r}. There are {there}; or give the path of one.")
    return found[0]


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook file, as JSON; sources as one text.

    Raises:
        ValueError: no such file, or no notebook.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        return [cell | {"source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]
    except OSError as error:
        raise ValueError(f"No notebook {notebook}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{notebook} is not a notebook (.ipynb).") from error


def parameters_of(notebook: Path) -> dict[str, Parameter]:
    """The plain assignments of the cell tagged "parameters", with a type or without; a comment after one is its help.

    Raises:
        ValueError: not exactly one such cell, or something in it that is not `name = plain value`, once for each name.
    """
    found = [c["source"] for c in code_cells(notebook) if "parameters" in c.get("metadata", {}).get("tags", [])]
    if len(found) != 1:
        raise ValueError(f"{notebook} has {len(found)} cells tagged 'parameters'; it needs one.")
    try:
        statements = ast.parse(found[0]).body
    except SyntaxError as error:
        raise ValueError(f"{notebook}: the parameters cell cannot be parsed as Python ({error.msg}).") from error
    tokens = tokenize.generate_tokens(io.StringIO(found[0]).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    known: dict[str, Parameter] = {}
    for statement in statements:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                try:
                    default = ast.literal_eval(value)
                except ValueError:
                    default = None  # derived from others: it would keep its value whatever they are set to
            case _:
                name, default = ast.unparse(statement), None
        if type(default) not in KINDS:
            raise ValueError(f"{notebook}: {name} in the parameters cell must be a text, a number, True or False.")
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.annotation) != type(default).__name__:
            raise ValueError(f"{notebook}: {name} in the parameters cell has another type than its value.")
        if name in known:
            raise ValueError(f"{notebook}: {name} stands twice in the parameters cell.")
        known[name] = Parameter(name, default, type(default), comments.get(statement.end_lineno or 0, ""))
    return known


def checked(known: Mapping[str, Parameter], given: Mapping[str, Any], where: str) -> dict[str, Value]:
    """Every parameter with its value: the given one, else the default.

    Args:
        where: what `given` is from, for the sentence.

    Raises:
        ValueError: an unknown name, or a value of another type. A whole number will do for a number.
    """
    for name, value in given.items():
        if name not in known:
            raise ValueError(
                f"{where}: no parameter is called {name!r}.{meant(name, known)} Known: {', '.join(known)}."
            )
        kind, example = known[name].kind, json.dumps(known[name].default, ensure_ascii=False)
        right = type(value) is kind or (kind is float and type(value) is int)
        if not right or (kind is float and not _finite(value)):
            raise ValueError(f"{where}: {name}={value!r} must be {KINDS[kind]}, such as {example}.")
    values = {name: p.kind(given[name]) if name in given else p.default for name, p in known.items()}
    for name, value in values.items():
        if isinstance(value, str) and value.startswith("~/"):  # which no shell, behind an "=", and no YAML writes out
            values[name] = str(expanded(value))
    return values


def meant(name: object, known: Iterable[str]) -> str:
    """The known name that may have been meant, as a question; "" if none is near."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f" Did you mean {near[0]}?" if near else ""


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def effective(
    known: Mapping[str, Parameter], chosen: str | None, given: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """All parameters: defaults, then a preset's values, then those given.

    Raises:
        ValueError: an unknown preset, an unknown name, or a value of another type.
    """
    base: dict[str, Any] = {}
    if chosen is not None:
        base = preset(chosen)
        checked(known, base, f"preset {chosen}")
        base |= {"preset": chosen} if "preset" in known else {}
    return checked(known, base | dict(given), where)


def parsed(known: Mapping[str, Parameter], text: str) -> tuple[str, Any]:
    """A `name=value` of the command line; of a text parameter the value is taken as it stands, else read as JSON.

    Raises:
        ValueError: no equals sign.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"-p {text}: say NAME=VALUE.")
    if name not in known or known[name].kind is str:
        return name, value
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value  # of the wrong type, which `checked` says


PRESETS = DATA / "presets"


def names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset(name: str) -> dict[str, Any]:
    """The values of a preset, unchecked.

    Raises:
        ValueError: no such preset, or no flat mapping.
    """
    if name not in names():
        there = ", ".join(names()) or "none"
        raise ValueError(f"No preset is called {name!r}.{meant(name, names())} There are {there}.")
    path = PRESETS / f"{name}.yaml"
    found = read_yaml(path)
    if not isinstance(found, dict) or any(isinstance(value, dict | list) for value in found.values()):
        raise ValueError(f"{path} must hold a mapping of names to plain values.")
    return found


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; 1e-3 is a number, as in JSON and YAML 1.2, and a key that stands twice is an error.

    Raises:
        ValueError: it cannot be read, or not as YAML.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Strict)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error
    except RecursionError as error:
        raise ValueError(f"{path} cannot be read as YAML: it is nested too deeply.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from error


class _Strict(yaml.SafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]  # what << brings may be replaced
        keys = [self.construct_object(key, deep=True) for key in own]
        if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Strict.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
