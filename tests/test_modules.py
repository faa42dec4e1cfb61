"""The modules can be read in the order given: each imports only from those before it."""

import ast
import re
from pathlib import Path

import pytest

import amp_tutorial
from amp_tutorial.course import ROOT

PACKAGE = Path(amp_tutorial.__file__).parent
ORDER = re.findall(r"\w+", (amp_tutorial.__doc__ or "").split("those before it:")[1])


def test_the_order_names_every_module() -> None:
    assert sorted(ORDER) == sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("Read the modules in this order:")[1]
    assert re.findall(r"`(\w+)`", readme.partition(".\n")[0]) == ORDER


@pytest.mark.parametrize("module", ORDER)
def test_each_imports_only_from_those_before_it(module: str) -> None:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1}
    assert found <= set(ORDER[: ORDER.index(module)])
