"""What git keeps: no leftovers of tools, and few enough files that a person can look through them."""

import subprocess
from pathlib import PurePosixPath

import pytest

from amp_tutorial.files.paths import ROOT

MOST = 330  # records are lines of a table, not files
LEFTOVERS = {".orig", ".rej", ".bak", ".part", ".tmp", ".swp"}


@pytest.fixture(scope="module")
def tracked() -> list[PurePosixPath]:
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [PurePosixPath(name) for name in listed.split("\0") if name]


def test_no_leftovers_are_tracked(tracked: list[PurePosixPath]) -> None:
    assert 0 < len(tracked) <= MOST
    assert [str(p) for p in tracked if p.suffix in LEFTOVERS or p.name.endswith("~")] == []
    assert [str(p) for p in tracked if {"__pycache__", ".ipynb_checkpoints", "out"} & set(p.parts)] == []
