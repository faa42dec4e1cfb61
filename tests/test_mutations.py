"""Would the tests notice? Each one-line fault, in a copy of the repository, must turn unit tests and a lesson red."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import FAULTS, Fault, apply, copy_repository

from amp_tutorial.course import run
from amp_tutorial.files.paths import NOTEBOOKS, ROOT

PASSED, FAILED = 0, 1  # pytest's exit statuses; others mean that tests could not be run at all


def unit_tests(repository: Path, *files: str) -> subprocess.CompletedProcess[str]:
    """Run the quick tests of these files in a copy."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow and not lessons"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        cwd=repository,
        env=inherited | {"PYTHONPATH": str(repository), "TESTS_NO_SHRINK": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_fault_can_be_made(fault: Fault) -> None:
    text = (ROOT / "amp_tutorial" / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.old) == 1 and fault.new != fault.old
    assert (ROOT / fault.tests).is_file() and list(NOTEBOOKS.glob(f"{fault.lesson}_*.ipynb"))


@pytest.mark.slow
def test_without_a_fault_the_copy_is_green(tmp_path: Path) -> None:
    done = unit_tests(copy_repository(tmp_path), *sorted({fault.tests for fault in FAULTS}))
    assert done.returncode == PASSED, done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_unit_tests_notice(fault: Fault, tmp_path: Path) -> None:
    apply(fault, copy_repository(tmp_path))
    done = unit_tests(tmp_path, fault.tests)
    assert done.returncode == FAILED, done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.lessons
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_lesson_notices(fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = copy_repository(tmp_path / "copy")
    apply(fault, repository)
    monkeypatch.setattr(run, "ROOT", repository)
    monkeypatch.setenv("PYTHONPATH", str(repository))
    (notebook,) = (repository / "notebooks").glob(f"{fault.lesson}_*.ipynb")
    outcome = run.run_lesson(notebook, "tiny-llama", tmp_path / "out", "smallest")
    assert outcome.status == "failed", "the lesson went through with the fault in the module"
    assert outcome.cell, f"the lesson failed for another reason: {outcome.error}"
