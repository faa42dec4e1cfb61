"""Lesson sources: parsing, the same notebook every time, folded solutions, and the setup cell."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from amp_tutorial.course import exercises, sources
from amp_tutorial.course.exercises import Exercise
from amp_tutorial.runs import this_machine


def columns(weight: Tensor, n: int) -> Tensor:
    """The solution of the exercise below."""
    return weight[:, 2 * n : 2 * n + 2]


HINTS = ["Look at the shape.", "Heads live in the columns."]
SLICE = Exercise(columns, lambda: [(torch.arange(16.0).view(4, 4), 0)], {}, HINTS)

SOURCE = """\
# lesson: A title
# reading: 7
# %% [markdown]
# # A title
#
# It takes {{minutes}} minutes.

# %% tags=["parameters"]
model = "tiny-llama"

# %% [markdown]
# {{hint:slice}}
#
# {{solution:slice}}
# %%
x = 1

y = 2
"""


def test_parsing_a_source() -> None:
    source = sources.parse(SOURCE)
    assert (source.title, source.reading) == ("A title", 7)
    assert [c.kind for c in source.cells] == ["markdown", "code", "markdown", "code"]
    assert source.cells[0].source == "# A title\n\nIt takes {{minutes}} minutes."
    assert source.cells[1].tags == ["parameters"]
    assert source.cells[3].source == "x = 1\n\ny = 2"


def test_the_same_source_gives_the_same_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exercises, "all_exercises", lambda: {"slice": SLICE})
    one, two = (sources.notebook(sources.parse(SOURCE), "07_title", minutes=8) for _ in range(2))
    assert one == two
    assert [cell.id for cell in one.cells] == [f"07_title-{i:02d}" for i in range(6)]
    assert one.cells[1].source.endswith("It takes 8 minutes.")
    assert sources.address() in one.cells[2].source and "ADDRESS" not in one.cells[2].source
    folded = one.cells[4].source
    assert folded.count("<details>") == folded.count("</details>") == 3
    assert "Heads live in the columns." in folded
    assert "```python\ndef columns(weight: Tensor, n: int) -> Tensor:" in folded


def run_setup(folder: Path, monkeypatch: pytest.MonkeyPatch, fails: int = 0) -> list[list[str]]:
    """Run the setup cell in a folder, where the package can't be imported; return the commands that it ran."""
    ran: list[list[str]] = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, fails, "", "ERROR: torch 1.0 is too old")

    monkeypatch.setattr(subprocess, "run", run)
    exec(sources.SETUP.replace("ADDRESS", "https://example.org/x"), {})
    return ran


def test_setup_in_a_clone_installs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "amp_tutorial").mkdir()
    (tmp_path / "amp_tutorial" / "__init__.py").touch()
    (tmp_path / "notebooks").mkdir()
    assert run_setup(tmp_path / "notebooks", monkeypatch) == []
    assert sys.path[0] == str(tmp_path)


def test_setup_elsewhere_installs_the_package_and_keeps_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    ((*pip, package),) = run_setup(tmp_path, monkeypatch)
    assert package == "git+https://example.org/x"
    assert pip[:4] == [sys.executable, "-m", "pip", "install"]
    kept = Path(pip[pip.index("--constraint") + 1]).read_text(encoding="utf-8").splitlines()
    assert f"torch=={torch.__version__}" in kept
    assert f"torch {torch.__version__}" in capsys.readouterr().out, "it says what it chose"


def test_setup_says_what_pip_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"Nothing was installed\. With .*torch==.* kept, pip says: .*too old"):
        run_setup(tmp_path, monkeypatch, fails=1)


def test_a_library_replaced_under_a_running_session_asks_for_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert this_machine.stale() == []
    monkeypatch.setattr(torch, "__version__", "1.0.0+cu99")
    assert this_machine.stale() == [f"torch 1.0.0+cu99 (installed: {importlib.metadata.version('torch')})"]
    with pytest.raises(RuntimeError, match=r"Restart this session.*torch 1\.0\.0"):
        this_machine.checked()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("x = 1\n", "first line"),
        ("# lesson: t\nx = 1\n", "Line 2 stands before the first cell"),
        ("# lesson: t\n# %% [code]\n", "Line 2: .* is no cell header"),
        ("# lesson: t\n# %% [markdown]\nnot a comment\n", "Line 3 in a markdown cell"),
    ],
)
def test_a_malformed_source_names_its_line(text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        sources.parse(text)


def test_an_unknown_placeholder_is_refused() -> None:
    source = sources.parse("# lesson: t\n# %% [markdown]\n# # t\n#\n# {{minuets}}\n")
    with pytest.raises(ValueError, match="unknown placeholder"):
        sources.notebook(source, "07_title")
