"""The folders of the package stand in one line: a module imports from its own and those before it, in no circle.

And git keeps no leftovers of tools, and few enough files that a person can look through them.
"""

import ast
import re
import subprocess
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path, PurePosixPath

import pytest

import amp_tutorial
from amp_tutorial.files import ROOT

PACKAGE = Path(amp_tutorial.__file__).parent
# Older calls wrap those of the five folders before them, and go with the next version.
LINE = ["files", "core", "measure", "methods", "scale", "older_calls", "runs", "reports", "course", "cli"]
# Made the embedded models and texts: it may use the core, and nothing that the package does may need it.
MAY_USE = {folder: LINE[: i + 1] for i, folder in enumerate(LINE)} | {"tinyworld": ["files", "core", "tinyworld"]}


def dotted(path: Path) -> str:
    """The name of a module by its path: core.data, and core for its __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in PACKAGE.rglob("*.py")}


def imported(tree: ast.AST, package: str) -> set[str]:
    """Everything that the code imports of the package or names as a module of it, wherever it stands; without dots.

    `amp_tutorial.texts` may be `files.texts.texts`, loaded lazily: what the package offers counts as where it is from.
    """
    found: set[str] = set()
    aliases = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            aliases |= {alias.asname or alias.name for alias in node.names if alias.name == "amp_tutorial"}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"amp_tutorial(\.\w+)+", node.value):  # for importlib
                found.add(node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            found.add(f"amp_tutorial.{node.attr}")
    return {name.removeprefix("amp_tutorial.") for name in found if name.startswith("amp_tutorial.")}


OFFERED = {
    name.rpartition(".")[2]: name
    for name in imported(ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8")), "amp_tutorial")
}


def needs(module: str) -> set[str]:
    """The modules that a module imports, itself left out."""
    path = MODULES[module]
    package = ".".join(["amp_tutorial", *path.relative_to(PACKAGE).parts[:-1]])
    found = set()
    for name in imported(ast.parse(path.read_text(encoding="utf-8")), package):
        name = OFFERED.get(name, name)
        while name and name not in MODULES:  # a name in a module
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {module, ""}


def test_every_module_has_its_place() -> None:
    assert {name.partition(".")[0] for name in MODULES if name} == set(MAY_USE)


@pytest.mark.parametrize("folder", MAY_USE)
def test_nothing_is_imported_upward(folder: str) -> None:
    mine = [module for module in MODULES if module.partition(".")[0] == folder]
    upward = {
        f"{module} imports {other}"
        for module in mine
        for other in needs(module)
        if other.partition(".")[0] not in MAY_USE[folder]
    }
    assert mine and not upward, "\n".join(sorted(upward))


@pytest.mark.parametrize("folder", MAY_USE)
def test_no_folder_holds_a_circle(folder: str) -> None:
    mine = {module for module in MODULES if module.partition(".")[0] == folder}
    assert list(TopologicalSorter({module: needs(module) & mine for module in sorted(mine)}).static_order())


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from ..core.data import windows", {"core.data.windows"}),
        ("def later():\n    from . import texts", {"measure.texts"}),
        ("import amp_tutorial as amp\namp.score(1)", {"score"}),
        ("from amp_tutorial import FAMILIES", {"FAMILIES"}),
        ("import amp_tutorial.runs.sweep", {"runs.sweep"}),
        ("find('amp_tutorial.reports.table')", {"reports.table"}),
        ("import torch", set()),
    ],
)
def test_every_way_to_import_is_seen(code: str, found: set[str]) -> None:
    assert imported(ast.parse(code), "amp_tutorial.measure") == found
    assert OFFERED["Scores"] == "core.scores.Scores" and "core.plans" in needs("core.surgery")


MOST = 330  # records are lines of a table, not files
LEFTOVERS = {".orig", ".rej", ".bak", ".part", ".tmp", ".swp"}


@pytest.fixture(scope="module")
def tracked() -> list[PurePosixPath]:
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [PurePosixPath(name) for name in listed.split("\0") if name]


def test_the_core_is_read_in_an_evening() -> None:
    files = list((PACKAGE / "core").glob("*.py"))
    assert len(files) <= 11 and sum(len(path.read_text("utf-8").splitlines()) for path in files) <= 1800  # and __init__


def test_no_leftovers_are_tracked(tracked: list[PurePosixPath]) -> None:
    assert 0 < len(tracked) <= MOST
    assert [str(p) for p in tracked if p.suffix in LEFTOVERS or p.name.endswith("~")] == []
    assert [str(p) for p in tracked if {"__pycache__", ".ipynb_checkpoints", "out"} & set(p.parts)] == []
