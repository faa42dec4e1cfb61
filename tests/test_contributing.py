"""The worked examples in CONTRIBUTING.md are replayed on a copy of the package; hooks and changelog are as it says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_packaging import PROJECT, pins, read

from amp_tutorial.files import ROOT

GUIDE = read("CONTRIBUTING.md")
# Of each example: what is run in the copy, and of its tests how many there are at least.
CHECKS = {
    "criterion": (["tests/test_contribution.py"], 2),
    "family": (
        ["tests/test_families.py", "tests/test_surgery.py", "tests/test_readme.py", "-k", "biogpt or looked_up"],
        8,
    ),
}


def diff(name: str) -> str:
    (found,) = re.findall(rf"<!-- replayed: {name} -->\n```diff\n(.*?)```", GUIDE, re.DOTALL)
    return found


def copied(folder: Path) -> Path:
    """The parts of the repository that the examples and their tests touch."""
    for name in ("amp_tutorial", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "data"))
    (folder / "data").mkdir()
    for path in [*ROOT.glob("*.md"), ROOT / "pyproject.toml"]:
        shutil.copy(path, folder)
    for path in (ROOT / "data").iterdir():
        place = folder / "data" / path.name
        shutil.copy(path, place) if path.is_file() else place.symlink_to(path)
    return folder


def in_copy(copy: Path, *command: str, **more: Any) -> subprocess.CompletedProcess[str]:
    # The folder above is the ceiling: git must not take a repository around it for the copy's own.
    environment = os.environ | {"PYTHONPATH": str(copy), "GIT_CEILING_DIRECTORIES": str(copy.parent)}
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, **more)


def test_every_diff_is_replayed() -> None:
    assert re.findall(r"<!-- replayed: (\w+) -->\n```diff", GUIDE) == list(CHECKS)
    assert GUIDE.count("```diff") == len(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_a_worked_example_applies_and_passes_its_tests(name: str, tmp_path: Path) -> None:
    copy = copied(tmp_path)
    applied = in_copy(copy, "git", "apply", "--verbose", "-", input=diff(name))
    assert applied.returncode == 0, applied.stderr
    assert len(re.findall(r"^Applied patch", applied.stderr, re.MULTILINE)) == diff(name).count("\ndiff --git ") + 1
    arguments, least = CHECKS[name]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not exhaustive", *arguments]
    done = in_copy(copy, *command)
    assert done.returncode == 0, done.stdout[-3000:]
    (passed,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) >= least and "failed" not in done.stdout
    style = in_copy(copy, sys.executable, "-m", "ruff", "check", "amp_tutorial", "tests")
    layout = in_copy(copy, sys.executable, "-m", "ruff", "format", "--check", "amp_tutorial", "tests")
    assert style.returncode == layout.returncode == 0, style.stdout + layout.stderr + layout.stdout


def hooks() -> dict[str, dict[str, Any]]:
    (local,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert local["repo"] == "local"
    return {hook["id"]: hook for hook in local["hooks"]}


def test_hooks_before_a_commit_have_the_versions_of_the_constraints() -> None:
    wanted = pins()
    for name in ("ruff-check", "ruff-format"):
        assert hooks()[name]["additional_dependencies"] == [f"ruff=={wanted['ruff']}"]
    for name in ("mypy", "notebooks"):  # they import what is installed: with `make venv`, the constraints' versions
        assert hooks()[name]["language"] == "system" and hooks()[name]["entry"].startswith(".venv/bin/python -m ")


def test_hooks_do_what_ci_does() -> None:
    script = read(".ci/run")
    assert "ruff check" in script and "ruff format --check" in script and "mypy" in script
    assert hooks()["ruff-check"]["entry"].startswith("ruff check")
    assert hooks()["ruff-format"]["entry"].startswith("ruff format")
    assert hooks()["mypy"]["entry"].endswith("-m mypy") and not hooks()["mypy"]["pass_filenames"]
    assert hooks()["notebooks"]["entry"].endswith("amp_tutorial.course.build --check")
    for path in ("notebooks/source/01_anatomy.py", "notebooks/01_anatomy.ipynb", "amp_tutorial/course/exercises_01.py"):
        assert re.search(hooks()["notebooks"]["files"], path), "its change can make a notebook differ from its source"


def test_the_changelog_has_this_version_and_what_comes() -> None:
    titles = re.findall(r"^## \[(.*?)\]", read("CHANGELOG.md"), re.MULTILINE)
    assert titles[0] == "Unreleased" and PROJECT["version"] in titles
    assert titles[1:] == sorted(titles[1:], key=lambda v: [*map(int, v.split("."))], reverse=True)
