"""The benchmark command at its smallest: every part runs, and the table is made from the JSON file alone. No times."""

import copy
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from amp_tutorial.files import ROOT

MEASURED = ("scoring", "surgery", "speed", "gpu")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks.table; the folder is no part of the package."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.table")


@pytest.fixture
def main(table: Any) -> Any:
    """The command in this process: quicker, where it measures nothing."""
    return importlib.import_module("benchmarks.__main__").main


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The figures of a run at the smallest shapes, as read back from the file."""
    path = tmp_path_factory.mktemp("benchmarks") / "results.json"
    done = run("--smoke", "--parts", *MEASURED, "--json", str(path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("There is no CUDA device") == 2, "in one sentence, and in the table"
    assert path.with_suffix(".md").read_text(encoding="utf-8") in done.stdout
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_file_says_what_ran_where(found: dict[str, Any]) -> None:
    assert found["command"].startswith("python -m benchmarks --smoke")
    assert {"processor", "cores", "threads", "system", "python", "versions"} == found["machine"].keys()
    assert found["machine"]["versions"]["torch"] == torch.__version__
    assert [part["status"] for part in found["parts"].values()] == ["ok", "ok", "ok", "not run"]


def test_scoring_holds_every_way_beside_the_plain_pass(found: dict[str, Any]) -> None:
    (row,) = found["parts"]["scoring"]["rows"]
    assert set(row["ratios"]) == {"score", "weights alone", "with logits", "naive", "official"}
    assert all(0 < r["low"] <= r["median"] <= r["high"] for r in row["ratios"].values())
    h = row["hidden"]
    assert row["product_share"] == pytest.approx(h * h / (4 * h * h + 3 * h * (h * 11 // 4)))


def test_speed_is_set_against_the_parameters_left(found: dict[str, Any]) -> None:
    for row in found["parts"]["speed"]["rows"]:
        h, inner = row["hidden"], row["heads"] * row["head_dim"]
        left = 4 * h * inner + 3 * h * row["neurons"]
        assert row["prefill blocks"]["ideal"] == pytest.approx((4 * h * h + 3 * h * (h * 11 // 4)) / left)
        assert row["decode whole"]["ideal"] < row["decode blocks"]["ideal"], "the output head stays whole"
        assert row["neurons"] % row["align"] == 0


def figures(table: Any, found: dict[str, Any]) -> dict[str, Any]:
    """The run with a part for larger_than_memory.py, whose processes take long to start."""
    whole = copy.deepcopy(found)
    megabytes = {"weights": 900e6, "limit": 300e6, "bound": 300e6}
    runs = {"prune_folder": {"peak_RssAnon": 123e6}, "in memory, same limit": {"done": False}}
    whole["parts"]["memory"] = {"status": "ok", "bytes": megabytes, "runs": runs}
    return whole


def test_the_table_is_made_from_the_file_alone(table: Any, main: Any, found: dict[str, Any], tmp_path: Path) -> None:
    path, readme = tmp_path / "results.json", tmp_path / "README.md"
    whole = figures(table, found)
    whole["parts"]["scoring"]["rows"][0]["ratios"]["score"] = dict(median=1.0625, low=1.0, high=1.2, rounds=9)
    path.write_text(json.dumps(whole), encoding="utf-8")
    readme.write_text(f"# Title\n{table.BEGIN}\nold\n{table.END}\nend\n", encoding="utf-8")
    assert main(["--table", "--json", str(path), "--readme", str(readme)]) == 0
    text = readme.read_text(encoding="utf-8")
    assert "1.06 (1.00–1.20)" in text and "met in 1 of 1 shapes" in text
    assert "| 900 | 300 | 123 |" in text and "fails under the same limit" in text
    assert text.startswith("# Title\n") and text.endswith("\nend\n") and "\nold\n" not in text
    table.into_readme(readme, whole)
    assert readme.read_text(encoding="utf-8") == text


def test_a_goal_missed_is_said(table: Any, found: dict[str, Any]) -> None:
    whole = figures(table, found)
    whole["parts"]["scoring"]["rows"][0]["ratios"]["score"]["median"] = 1.5
    whole["parts"]["surgery"]["rows"][0]["ratios"]["prune and save"]["median"] = 2.0
    text = table.table(whole)
    assert "met in 0 of 1 shapes" in text and "met in 0 of 1 sizes" in text


@pytest.mark.slow
@pytest.mark.grid
def test_larger_than_memory_is_a_part(table: Any, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    done = run("--smoke", "--parts", "memory", "--json", str(path))
    assert done.returncode == 0, done.stderr[-2000:]
    part = json.loads(path.read_text(encoding="utf-8"))["parts"]["memory"]
    assert part["status"] == ("ok" if sys.platform == "linux" else "not run")
    assert "Larger than memory" in table.table(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("what", ["readme", "json"])
def test_what_is_missing_is_one_sentence_before_any_work(
    what: str, main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text("nothing", encoding="utf-8")
    path = tmp_path / "results.json"
    extra = ["--readme", str(tmp_path / "README.md")] if what == "readme" else ["--table"]
    with pytest.raises(SystemExit):
        main([*extra, "--json", str(path)])
    expected = "has no part between" if what == "readme" else "is not there to make a table from"
    assert expected in capsys.readouterr().err
    assert not path.exists()


def test_the_page_on_speed_has_the_command_and_the_table_of_the_figures(table: Any) -> None:
    makefile, page = ((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "docs/speed.md"))
    assert "python -m benchmarks" in makefile and "`make benchmarks`" in page
    found = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    before, after = table.marked(ROOT / "docs" / "speed.md")
    assert page == f"{before}{table.BEGIN}\n{table.table(found, brief=True)}\n{table.END}{after}"
