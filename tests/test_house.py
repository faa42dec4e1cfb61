"""CONTRIBUTING.md is so: the folders of the package stand in one line, and the worked examples work on a copy of it.

A module imports from its own folder and those before it, in no circle; hooks and changelog are as the guide says; and
git keeps no leftovers of tools, and few enough files that a person can look through them. What version 0.1 called
otherwise still works, with one warning for each old name.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
import yaml
from helpers import Shape, batch, byte_tokenizer, equal, prompts, tiny, weights
from test_packaging import PROJECT, pins, read

import amp_tutorial as amp
from amp_tutorial import older_calls
from amp_tutorial.core import surgery
from amp_tutorial.files import ROOT

PACKAGE = Path(amp.__file__).parent
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


# The guide

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


BATCHES = [batch(prompts((9, 7)))]
TOKENIZER = byte_tokenizer()


@pytest.fixture
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(older_calls, "_said", set())
    yield


def said(call: Any) -> tuple[Any, list[str]]:
    """What a call returns, and the warnings about old names."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = call()
    return found, [str(w.message) for w in caught if "goes with the next version" in str(w.message)]


@pytest.mark.usefixtures("nothing_said")
def test_an_old_name_gives_what_the_new_one_gives_and_warns_once() -> None:
    model = tiny()
    scores = amp.score(model, BATCHES)
    old, warned = said(lambda: [amp.plan(model, scores, remove=0.3, of="blocks") for _ in range(2)])
    assert old[0] == old[1] == amp.plan(model, scores, pruning_ratio=0.3, of="block parameters")
    assert len(warned) == 2 and "pruning_ratio=" in warned[0] and "'block parameters'" in warned[1]
    widths, warned = said(lambda: amp.plan(model, scores, heads=2, neurons=9))
    assert widths == amp.keep(model, scores, 2, 9) and len(warned) == 1
    both, warned = said(lambda: amp.score(model, BATCHES, ("amp", "random")))
    assert list(both) == ["amp", "random"] and len(warned) == 1 and "score_many" in warned[0]
    found, warned = said(lambda: amp.check(model, widths))
    assert found == amp.preview(model, widths) and len(warned) == 1
    deep, warned = said(lambda: amp.drop_layers(tiny(Shape(layers=3)), BATCHES, remove=1, criterion="last"))
    assert deep.kept_layers == [0, 2] and len(warned) == 1 and "num_layers=" in warned[0]


@pytest.mark.usefixtures("nothing_said")
def test_a_perplexity_gives_the_ends_of_its_interval() -> None:
    found, warned = said(lambda: amp.perplexity(tiny(), TOKENIZER, ["a text of some length"], window=5))
    assert not warned
    (low, high), warned = said(lambda: (found.low, found.high))
    assert (low, high) == (amp.interval(found).low, amp.interval(found).high) and low < found.value < high
    assert len(warned) == 2 and "amp.interval(found).low" in warned[0]


@pytest.mark.usefixtures("nothing_said")
def test_the_new_names_warn_of_nothing() -> None:
    model = tiny()
    scores, warned = said(lambda: amp.score_many(model, BATCHES, ("amp",))["amp"])
    plan, more = said(lambda: amp.plan(model, scores, 0.1, parts="neurons"))
    made, most = said(
        lambda: (amp.prune(model, plan).model, amp.repair(model, plan, BATCHES, progress=False).report.fits)
    )
    assert not (warned or more or most) and made[1]


@pytest.mark.usefixtures("nothing_said")
def test_recovery_takes_its_settings_one_by_one_as_before() -> None:
    model = tiny()
    old, warned = said(lambda: amp.recover(model, TOKENIZER, samples=4, epochs=1, lr=1e-3, length=64, progress=False))
    config = amp.RecoveryConfig(samples=4, epochs=1, learning_rate=1e-3, length=64)
    new = amp.recover(model, TOKENIZER, config=config, progress=False)
    assert len(warned) == 1 and old.history == new.history


@pytest.mark.usefixtures("nothing_said")
@pytest.mark.filterwarnings("ignore:Fewer calibration tokens")
def test_a_result_can_be_used_as_the_model_it_was_before(tmp_path: Path) -> None:
    model = tiny()
    plan = amp.keep(model, amp.score(model, BATCHES), 2, 9)
    ids = BATCHES[0]["input_ids"]
    small, warned = said(lambda: amp.prune(model, plan))
    logits, warned = said(lambda: small(input_ids=ids).logits)
    assert torch.equal(logits, small.model(input_ids=ids).logits) and len(warned) == 1 and "result.model" in warned[0]
    assert small.config.num_attention_heads == 2 and isinstance(small, surgery.Pruned)
    repaired, warned = said(lambda: amp.repair(model, plan, BATCHES, choose=True, reads=True, progress=False))
    new = amp.repair(model, plan, BATCHES, reselect=True, refit_inputs=True, progress=False)
    assert equal(weights(repaired.model), weights(new.model)) and len(warned) == 2 and repaired.fits == new.report.fits
    shots = amp.prune_in_shots(model, TOKENIZER, BATCHES, heads=2, neurons=9, shots=1, recover=None)
    (pair, _) = said(lambda: [(last, shot) for last, shot in shots])
    assert pair[0][1].heads == (4, 2)


@pytest.mark.usefixtures("nothing_said")
def test_a_result_saves_itself_with_the_tokenizer_it_came_with(tmp_path: Path) -> None:
    model, tokenizer = amp.load("tiny-llama")
    pruned = amp.prune(model, amp.keep(model, amp.score(model, [], "random"), neurons=64))
    folder = pruned.save(tmp_path / "small")
    again, same = amp.load(folder)
    assert equal(weights(again), weights(pruned.model)) and same.get_vocab() == tokenizer.get_vocab()
    with pytest.raises(ValueError, match="No tokenizer was found"):
        amp.prune(tiny(), amp.keep(tiny(), amp.score(tiny(), [], "random"), neurons=9)).save(tmp_path / "none")
    assert not (tmp_path / "none").exists()
