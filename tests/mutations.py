"""One-line faults that the tests and the lessons must notice. Each is one exact replacement in one file."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from amp_tutorial.files.paths import ROOT


@dataclass(frozen=True)
class Fault:
    """What is replaced, and what turns red: a file of unit tests and a lesson (the quickest ones that do)."""

    name: str
    file: str
    old: str
    new: str
    tests: str
    lesson: str


FAULTS = (
    Fault(
        "dropped abs",
        "core/criteria.py",
        "torch.sum(added.abs_(), dim=-1, out=scores[n])",
        "torch.sum(added, dim=-1, out=scores[n])",
        "tests/test_scores.py",
        "02",
    ),
    Fault(
        "reversed sort",
        "core/plans.py",
        "torch.sort(scores, descending=True, stable=True)",
        "torch.sort(scores, descending=False, stable=True)",
        "tests/test_plans.py",
        "00",
    ),
    Fault(
        "rows for columns",
        "core/surgery.py",
        'cut(f.neurons_out, 1, kept["neurons"])',
        'cut(f.neurons_out, 0, kept["neurons"])',
        "tests/test_surgery.py",
        "03",
    ),
    Fault(
        "unsliced o_proj",
        "core/surgery.py",
        'cut(f.output, 1, kept["query"])',
        "pass",
        "tests/test_surgery.py",
        "03",
    ),
    Fault(
        "the first columns of o_proj, whichever heads stay",
        "core/surgery.py",
        'cut(f.output, 1, kept["query"])',
        'cut(f.output, 1, torch.arange(len(kept["query"])))',
        "tests/test_surgery.py",
        "03",
    ),
    Fault(
        "padding counted",
        "core/sums.py",
        "weight = exact(mask)",
        "weight = torch.ones_like(mask, dtype=torch.float64)",
        "tests/test_scores.py",
        "02",
    ),
    Fault(
        "Wanda's weights without abs",
        "core/criteria.py",
        "(output.abs().mean(-1) * mean",
        "(output.mean(-1) * mean",
        "tests/test_criteria.py",
        "06",
    ),
    Fault(
        "the votes of Consensus upside down",
        "methods/layers.py",
        "rankdata([of_metric[i] for i in layers])",
        "rankdata([-of_metric[i] for i in layers])",
        "tests/test_layers.py",
        "07",
    ),
    Fault(
        "a ridge towards zero",
        "methods/normal_equations.py",
        "xy + penalty[:, None] * prior.T, factor",
        "xy, factor",
        "tests/test_refit.py",
        "08",
    ),
)


def copy_repository(folder: Path) -> Path:
    """The package, tests and notebooks in a folder of their own; the data is linked to."""
    for name in ("amp_tutorial", "tests", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "out"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "data").symlink_to(ROOT / "data", target_is_directory=True)
    return folder


def apply(fault: Fault, repository: Path) -> None:
    """Put the fault into a copy.

    Raises:
        ValueError: the text to replace does not stand there exactly once.
    """
    path = repository / "amp_tutorial" / fault.file
    text = path.read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        raise ValueError(f"{fault.file} holds {fault.old!r} {text.count(fault.old)} times, not once; mend the fault.")
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
