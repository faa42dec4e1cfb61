"""Records as one table: the same records back, single files beside it, and what is not sound named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import amp_tutorial as amp
from amp_tutorial import cli
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


def test_the_shipped_records_are_tables_that_are_sound() -> None:
    for name, count in (("leaderboard", 594), ("results", 78), ("sweep", 81)):
        folder = amp.DATA / name
        found = collection.gathered(folder)
        assert len(found) == count and not set(collection.files(folder)) - {folder / "summary.json"}
        assert (folder / "summary.md").is_file() and all(record["status"] == "ok" for record in found.values())
    before = {"ours", "ours-budget", "ours-lora", "sliced-budget"}  # some were made before records held their items
    for name in ("leaderboard", "results"):
        for record in collection.gathered(amp.DATA / name).values():
            whole = "windows" in record["metrics"]["perplexity"] and "of" in record["metrics"]["mean accuracy"]
            assert whole or (record["schema"] == 1 and record["parameters"]["system"] in before)
