"""Would the tests notice? Each one-line fault, in a copy of the repository, must turn a unit test and a lesson red."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import grid
from mutations import FAULTS, Fault, apply, copy_repository

from amp_tutorial.course import run
from amp_tutorial.files.paths import NOTEBOOKS, ROOT
from amp_tutorial.runs import notebooks

PASSED, FAILED = 0, 1  # pytest's exit statuses; others mean that tests could not be run at all
Tests = Callable[..., tuple[int, str]]
TAUGHT = [fault for fault in FAULTS if fault.lesson]


@pytest.fixture(scope="module")
def unit_tests() -> Iterator[Tests]:
    """Run some tests in a copy; the exit status of pytest and what it said."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    runner = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("forks.py")],
        env=inherited | {"TESTS_OF_A_FAULT": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    asked, answers = runner.stdin, runner.stdout
    assert asked and answers

    def tests(repository: Path, *nodes: str) -> tuple[int, str]:
        print(json.dumps([str(repository), *nodes]), file=asked, flush=True)
        status, said = json.loads(answers.readline())
        return status, said[-3000:]

    with runner:
        yield tests
        asked.close()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_fault_can_be_made(fault: Fault) -> None:
    text = (ROOT / "amp_tutorial" / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.old) == 1 and fault.new != fault.old
    assert (ROOT / fault.test.partition("::")[0]).is_file()
    assert not fault.lesson or list(NOTEBOOKS.glob(f"{fault.lesson}_*.ipynb"))


@pytest.mark.slow
def test_without_a_fault_the_copy_is_green(tmp_path: Path, unit_tests: Tests) -> None:
    status, said = unit_tests(copy_repository(tmp_path), *sorted({fault.test for fault in FAULTS}))
    assert status == PASSED, said


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_unit_test_notices(fault: Fault, tmp_path: Path, unit_tests: Tests) -> None:
    apply(fault, copy_repository(tmp_path))
    status, said = unit_tests(tmp_path, fault.test)
    assert status == FAILED, said


@pytest.mark.slow
@pytest.mark.lessons
@pytest.mark.parametrize("fault", [TAUGHT[0], *grid(*TAUGHT[1:])], ids=lambda fault: fault.name)
def test_a_lesson_notices(fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = copy_repository(tmp_path / "copy")
    apply(fault, repository)
    monkeypatch.setattr(notebooks, "ROOT", repository)
    monkeypatch.setenv("PYTHONPATH", str(repository))
    (notebook,) = (repository / "notebooks").glob(f"{fault.lesson}_*.ipynb")
    outcome = run.run_lesson(notebook, "tiny-llama", tmp_path / "out", "smallest")
    assert outcome.status == "failed", "the lesson went through with the fault in the module"
    assert outcome.cell, f"the lesson failed for another reason: {outcome.error}"
