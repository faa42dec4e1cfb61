"""Packaging: the three lists of what is needed agree, the wheel works anywhere, and addresses stand in one place."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import amp_tutorial
from amp_tutorial.files import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = [Requirement(r) for r in PROJECT["dependencies"]]
TESTING = [Requirement(r) for r in PROJECT["optional-dependencies"]["test"]]
EXTRAS = [Requirement(r) for name, rs in PROJECT["optional-dependencies"].items() if name != "test" for r in rs]
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)$")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def pins() -> dict[str, str]:
    lines = [line for line in read("constraints.txt").splitlines() if line and not line.startswith("#")]
    found = [PIN.match(line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return {canonicalize_name(match[1]): match[2] for match in found if match}


def repository_files() -> list[Path]:
    """Files that are, or would be, in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def imports(*folders: str) -> set[str]:
    """Top-level names of everything imported in the Python files of the folders."""
    found = set()
    for path in (p for folder in folders for p in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                found.add(node.module.split(".")[0])
    own = {"amp_tutorial"} | {p.stem for p in (ROOT / "tests").glob("*.py")}
    return found - set(sys.stdlib_module_names) - own


@pytest.mark.parametrize("requirement", [*NEEDED, *TESTING], ids=lambda r: r.name)
def test_every_requirement_is_a_range_that_holds_its_pin(requirement: Requirement) -> None:
    assert requirement.specifier, "a least version"
    assert not any(s.operator in ("==", "===") for s in requirement.specifier), "exact versions go to constraints.txt"
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_next_transformers_is_not_promised() -> None:
    """`scale/checkpoint_on_disk.load_into` uses what is private in version 5: whoever allows 6 tries that first."""
    (transformers,) = (r for r in NEEDED if r.name == "transformers")
    assert "5.99" in transformers.specifier and "6.0" not in transformers.specifier


@pytest.mark.parametrize(
    ("folders", "allowed"),
    [(("amp_tutorial", "notebooks/source"), [*NEEDED, *EXTRAS]), (("tests",), [*NEEDED, *TESTING, *EXTRAS])],
    ids=["package", "tests"],
)
def test_what_is_imported_is_required(folders: tuple[str, ...], allowed: list[Requirement]) -> None:
    names = {canonicalize_name(r.name) for r in allowed}
    of = packages_distributions()
    missing = {m for m in imports(*folders) if not {canonicalize_name(d) for d in of.get(m, [m])} & names}
    assert missing == set()


def test_conda_gets_the_same_environment() -> None:
    environment = yaml.safe_load(read("environment.yml"))
    assert environment["name"] == PROJECT["name"]
    *conda, pip = environment["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert pip["pip"] == ["--constraint constraints.txt", "--editable .[lab,site,test]"]


def test_hosted_ci_runs_the_python_versions_promised() -> None:
    matrix = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]["test"]["strategy"]["matrix"]
    assert len(matrix["python"]) >= 3
    assert all(SpecifierSet(PROJECT["requires-python"]).contains(version) for version in matrix["python"])
    assert {f"Programming Language :: Python :: {version}" for version in matrix["python"]} <= set(
        PROJECT["classifiers"]
    )
    assert {name.split("-")[0] for name in matrix["os"]} == {"ubuntu", "macos"}


def test_make_has_the_commands_and_readme_and_ci_use_them() -> None:
    rules = set(re.findall(r"^([\w./]+):(?!=)", read("Makefile"), re.MULTILINE))
    assert {"course", "test", "lab", "notebooks", "results", "wheel", "clean"} <= rules
    assert "make course" in read("README.md") and "make test" in read("README.md")
    script = read(".ci/run")
    assert all(step in script for step in ("make test", "ruff check", "ruff format --check", "mypy"))
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert ".ci/run" in read(".github/workflows/ci.yml")


def test_make_says_which_python_it_needs(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(read(name), encoding="utf-8")
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    done = subprocess.run(["make", "venv", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_citation_names_the_three_papers() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == PROJECT["version"]
    papers = {r["identifiers"][0]["value"] for r in citation["references"]}
    assert papers == {"arXiv:2504.21174", "arXiv:2407.05690", "arXiv:2411.14345"}
    assert all(r["title"] and r["authors"] for r in citation["references"])


def test_the_address_stands_in_one_place() -> None:
    slug = "/".join(PROJECT["urls"]["Repository"].rstrip("/").split("/")[-2:])
    holders = {
        path.relative_to(ROOT).as_posix()
        for path in repository_files()
        if path.suffix != ".safetensors" and slug in path.read_text(encoding="utf-8", errors="ignore")
    }
    generated = {p.relative_to(ROOT).as_posix() for p in (ROOT / "notebooks").glob("*.ipynb")}
    assert holders - generated == {"pyproject.toml"}


def test_data_is_small() -> None:
    size = sum(path.stat().st_size for path in (ROOT / "data").rglob("*") if path.is_file())
    assert size <= 30 * 2**20


@pytest.mark.slow
def test_the_wheel_works_from_any_folder(tmp_path: Path) -> None:
    built = tmp_path / "built"
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", built], cwd=ROOT, check=True)
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert "amp_tutorial/data/models/tiny-llama/model.safetensors" in names
    assert "amp_tutorial/py.typed" in names, "type checkers read the annotations of an installed package"
    assert {f"amp_tutorial/notebooks/{name}.ipynb" for name in ("reproduce", "table")} < set(names)
    assert not [name for name in names if name.startswith(("tests/", "notebooks/"))]
    program = """
import amp_tutorial as amp
model, tokenizer = amp.load("tiny-llama")
batches = amp.calibration(tokenizer, "tinyworld", samples=2, seed=0)
scores = amp.score(model, batches, criterion="amp")
print(amp.DATA, len(scores.heads))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=built,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(str(tmp_path / "installed"))
    command = [sys.executable, "-m", "amp_tutorial.cli", "run", "--preset", "ci", "--dry-run"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "HF_HUB_OFFLINE": "1"}
    asked = subprocess.run(command, cwd=built, env=environment, capture_output=True, text=True)
    assert asked.returncode == 0 and "peak, recover" in asked.stdout, asked.stderr[-2000:]


@pytest.mark.parametrize("here", ["4.57.6", "6.0.0"])
def test_another_transformers_is_refused_at_the_first_use(here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amp_tutorial, "version", lambda _: here)
    with pytest.raises(ImportError, match=rf"needs transformers 5, and {here} is here; install another: pip install "):
        amp_tutorial.__getattr__("load")
