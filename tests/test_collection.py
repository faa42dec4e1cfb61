"""Records in their hundreds: as one table, and from their metrics to intervals and comparisons."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import amp_tutorial as amp
from amp_tutorial import cli
from amp_tutorial.measure import comparisons, intervals
from amp_tutorial.reports import measured
from amp_tutorial.reports.measured import compared, over
from amp_tutorial.runs import collection
from amp_tutorial.runs import record as records


def made(path: Path, value: float = 1.0, status: str = "ok", seed: int = 0) -> dict:
    record = amp.Record("a", dict(ratio=0.3, seed=seed))
    record.metric("perplexity", value, low=value / 2, high=2 * value)
    return records.read(record.write(path, status=status))


def test_gathered_records_are_the_same_and_single_files_are_gone(tmp_path: Path) -> None:
    wanted = {f"{name}.json": made(tmp_path / f"{name}.json", value) for value, name in enumerate("cab", 1)}
    made(tmp_path / "running.json", status="running")
    (tmp_path / "summary.json").write_text("{}", encoding="utf-8")
    assert collection.gather(tmp_path) == 3
    assert collection.gathered(tmp_path) == wanted
    assert {path.name for path in tmp_path.iterdir()} == {"records.jsonl", "running.json", "summary.json"}
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["file"] for line in lines] == ["a.json", "b.json", "c.json"]
    before = (tmp_path / "records.jsonl").read_bytes()
    assert collection.gather(tmp_path) == 3 and (tmp_path / "records.jsonl").read_bytes() == before


def test_a_new_run_counts_instead_of_the_line_of_its_name(tmp_path: Path) -> None:
    made(tmp_path / "a.json", 1.0)
    collection.gather(tmp_path)
    assert collection.find(tmp_path, "a.json") == collection.gathered(tmp_path)["a.json"]
    made(tmp_path / "a.json", 2.0)
    found = collection.find(tmp_path, "a.json")
    assert found is not None and found["metrics"]["perplexity"]["value"] == 2.0
    assert collection.gather(tmp_path) == 1
    assert collection.gathered(tmp_path)["a.json"]["metrics"]["perplexity"]["value"] == 2.0
    assert collection.find(tmp_path, "b.json") is None
    (tmp_path / "a.json").write_text('{"half', encoding="utf-8")
    assert collection.find(tmp_path, "a.json") is None, "a run that was torn is to be made again"


def test_the_records_of_a_sweep_go_elsewhere_and_stay(tmp_path: Path) -> None:
    wanted = {f"{run}/record.json": made(tmp_path / "sweep" / run / "record.json") for run in ("00ff", "0aff")}
    made(tmp_path / "sweep" / ".part" / "record.json")
    with pytest.raises(ValueError, match="name another folder for the table by --out"):
        collection.gather(tmp_path / "sweep")
    assert not (tmp_path / "sweep" / "records.jsonl").exists()
    assert collection.gather(tmp_path / "sweep", tmp_path / "table") == 2
    assert collection.gathered(tmp_path / "table") == wanted
    assert (tmp_path / "sweep" / "00ff" / "record.json").is_file()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda line: line[:40], "line 2 is not a JSON object with the name of its file"),
        (lambda line: "[1]", "line 2 is not a JSON object with the name of its file"),
        (lambda line: line.replace('"file":"b.json",', ""), "line 2 is not a JSON object with the name of its file"),
        (lambda line: line.replace('"b.json"', '"a.json"'), "line 2 is the second of the name a.json; remove one"),
        (lambda line: line.replace('"status":"ok"', '"status":"done"'), "line 2, status: 'done' is not one of"),
    ],
)
def test_a_line_that_is_not_sound_is_named(tmp_path: Path, spoil: Callable[[str], str], says: str) -> None:
    for name in "ab":
        made(tmp_path / f"{name}.json")
    collection.gather(tmp_path)
    first, second = (tmp_path / "records.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "records.jsonl").write_text(f"{first}\n{spoil(second)}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="records.jsonl, ") as caught:
        collection.gathered(tmp_path)
    assert says in str(caught.value)


def test_nothing_is_written_of_what_is_not_a_record(tmp_path: Path) -> None:
    whole = made(tmp_path / "a.json")
    with pytest.raises(ValueError, match="b.json"):
        collection.write(tmp_path, {"a.json": whole, "b.json": whole | {"status": "done"}})
    assert not (tmp_path / "records.jsonl").exists()
    with pytest.raises(ValueError, match="There is no folder of records"):
        collection.gather(tmp_path / "none")


def test_the_command_gathers_a_sweep_and_leaves_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for run, value in (("00ff", 4.0), ("0aff", 6.0)):
        made(tmp_path / "sweep" / run / "record.json", value, seed=int(run[:2], 16))
    assert cli.main(["gather", str(tmp_path / "sweep")]) == 2
    assert "name another folder for the table by --out" in capsys.readouterr().err
    assert cli.main(["gather", str(tmp_path / "sweep"), "--out", str(tmp_path / "table")]) == 0
    assert "records.jsonl: 2 records." in capsys.readouterr().out
    text = (tmp_path / "table" / "summary.md").read_text(encoding="utf-8")
    assert "Runs: 2 finished, 0 failed, 0 left out. Rows of our own: 1." in text and "| 2 |" in text


def test_the_command_names_what_it_leaves_out_and_refuses_to_gather_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for content in ("{", "[]"):
        (tmp_path / "sweep" / "00ff").mkdir(parents=True, exist_ok=True)
        (tmp_path / "sweep" / "00ff" / "record.json").write_text(content)
        assert cli.main(["gather", str(tmp_path / "sweep"), "--out", str(tmp_path / "table")]) == 2
        assert "holds no finished record" in capsys.readouterr().err and not (tmp_path / "table").exists()
    made(tmp_path / "sweep" / "0aff" / "record.json", 6.0)
    assert cli.main(["gather", str(tmp_path / "sweep"), "--out", str(tmp_path / "table")]) == 0
    assert "Left out: 00ff/record.json: " in capsys.readouterr().err


def test_the_shipped_records_are_tables_that_are_sound() -> None:
    for name, count in (("leaderboard", 762), ("results", 78), ("sweep", 81)):
        folder = amp.DATA / name
        found = collection.gathered(folder)
        assert len(found) == count and not list(collection.files(folder))
        assert (folder / "summary.md").is_file() and all(record["status"] == "ok" for record in found.values())
    real = collection.gathered(amp.DATA / "real")  # its page is docs/real.md
    assert all(record["status"] == "ok" for record in real.values()) and "09_real_model.json" in real
    assert not any("'/" in str(record["parameters"]) for record in real.values()), "no path of the machine"
    for r in (r for r in real.values() if r["name"] == "leaderboard"):
        both = {"perplexity"} | ({"c4/perplexity"} if "," in r["parameters"]["measured"]["heldout"] else set())
        assert both <= {n for n, m in r["metrics"].items() if "windows" in m or m["value"] is None}
    for name in ("leaderboard", "results"):
        for record in collection.gathered(amp.DATA / name).values():
            assert "windows" in record["metrics"]["perplexity"] and "of" in record["metrics"]["mean accuracy"]


# What their metrics say

TOKENS = [10, 20, 30]


def run(seed: int, perplexity: dict[str, Any] | None = None, **accuracies: Any) -> dict[str, Any]:
    metrics = {name: value if isinstance(value, dict) else of_items(value) for name, value in accuracies.items()}
    return {"parameters": {"seed": seed}, "metrics": metrics | ({"tuned/perplexity": perplexity} if perplexity else {})}


def of_items(bits: str) -> dict[str, Any]:
    return dict(value=bits.count("1") / len(bits), n=len(bits), items=bits)


def of_windows(*losses: float) -> dict[str, Any]:
    return dict(value=math.exp(sum(losses) / 60), n=60, windows=[list(losses), TOKENS])


def test_with_items_and_windows_they_are_what_counts() -> None:
    runs = [run(s, of_windows(20.0 + s, 41.0, 66.0 - s), x="1101" * 5, y="1000" * 5) for s in range(3)]
    for record in runs:
        record["metrics"]["mean"] = dict(value=0.5, n=40, of=["x", "y"], low=0.0, high=1.0)
    windows = [(record["metrics"]["tuned/perplexity"]["windows"][0], TOKENS) for record in runs]
    assert over(runs, "tuned/perplexity") == intervals.perplexity(windows)
    assert over(runs, "mean") == intervals.accuracy([{"x": "1101" * 5, "y": "1000" * 5}] * 3)
    assert over(runs, "x") == intervals.accuracy([{"x": "1101" * 5}] * 3)
    gap = compared(runs, runs[:1], "tuned/perplexity")
    assert gap == comparisons.compare_perplexity(dict(enumerate(windows)), {0: windows[0]}) and gap.paired


def test_seeds_are_paired_by_name_and_not_by_order() -> None:
    a = [run(s, of_windows(20.0 + 9 * s, 41.0, 66.0)) for s in range(3)]
    b = [run(s, of_windows(21.0 + 9 * s, 42.1, 66.9)) for s in (2, 0, 1)]
    found = compared(b, a, "tuned/perplexity")
    assert found.difference == pytest.approx(0.05) and found.over == "windows", "every pair of seeds differs by 3 nats"


def test_without_items_seeds_have_students_interval_and_perplexities_theirs_on_logarithms() -> None:
    values = [20.0, 30.0, 66.0]
    runs = [run(s, dict(value=v, low=v / 2, high=v * 2, n=60)) for s, v in enumerate(values)]
    found, logs = over(runs, "tuned/perplexity"), intervals.over_seeds([math.log(v) for v in values])
    assert found is not None and found.low is not None and logs.low is not None and found.over == "seeds"
    assert found.value == pytest.approx(math.exp(logs.value)) and found.low == pytest.approx(math.exp(logs.low))
    assert 0 < found.low, "20, 30 and 66 on a straight scale would reach below zero"
    shares = [run(s, x=dict(value=v, low=0.1, high=0.9, n=10)) for s, v in enumerate((0.4, 0.5))]
    assert over(shares, "x") == intervals.over_seeds([0.4, 0.5])
    gap = compared(runs, runs, "tuned/perplexity")
    assert gap.difference == 0 and not gap.paired and not gap.clear


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.95, 1.05), (-0.01, 0.01)])
def test_an_interval_of_an_accuracy_without_width_or_beyond_0_to_1_gives_way_to_wilsons(
    low: float, high: float
) -> None:
    value = (low + high) / 2
    found = over([run(0, x=dict(value=value, low=low, high=high, n=20))], "x")
    wanted = intervals.proportion(20 * value, 20)
    assert found is not None and (found.low, found.high) == (wanted.low, wanted.high) and found.over == "items"


def test_one_record_keeps_the_interval_that_it_brings() -> None:
    found = over([run(0, dict(value=5.1, low=4.9, high=5.3), x=dict(value=0.5, low=0.4, high=0.6, n=90))], "x")
    assert found is not None and (found.low, found.high, found.n) == (0.4, 0.6, 90)
    found = over([run(s, dict(value=5.1, low=4.9, high=5.3)) for s in range(3)], "tuned/perplexity")
    assert found is not None and (found.low, found.over, found.seeds) == (4.9, "windows", 3)


def test_what_has_no_interval_says_so_and_what_is_not_there_is_none() -> None:
    found = over([run(0, gone=dict(value=0.3, low=None, high=None))], "gone")
    assert found is not None and (found.low, found.over) == (None, "one record")
    assert over([run(0, x="1"), run(1)], "x") is None and over([], "x") is None
    wild = over([run(0, dict(value=None, low=None, high=None))], "tuned/perplexity")
    assert wild is not None and math.isnan(wild.value) and wild.over == "a value that is not finite"
    with pytest.raises(ValueError, match="can't be compared by x, which a record of theirs does not have"):
        compared([run(0, x="1")], [run(0)], "x")


def test_what_is_a_perplexity_is_told_by_its_name() -> None:
    assert measured.is_perplexity("perplexity") and measured.is_perplexity("untuned/perplexity")
    assert not measured.is_perplexity("perplexity protocol") and not measured.is_perplexity("mean accuracy")


def test_what_a_sweep_has_not_measured_again_stays(tmp_path: Path) -> None:
    """The records of half a sweep must not cost the other half of the table."""
    for name, value in (("a.json", 4.0), ("b.json", 6.0), ("c.json", 7.0)):
        made(tmp_path / name, value)
    before = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(tmp_path.glob("*.json"))}
    collection.write(tmp_path, {"a.json": before["a.json"], "b.json": before["b.json"]})
    collection.put(tmp_path, {"b.json": before["c.json"]})
    assert collection.gathered(tmp_path) == {"a.json": before["a.json"], "b.json": before["c.json"]}
    assert not (tmp_path / "b.json").exists() and (tmp_path / "a.json").exists(), "only what was put is removed"
