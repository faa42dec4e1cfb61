"""The table: verdicts, refusals, corrupted records, blanks, and its Markdown, page and pictures."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import amp_tutorial as amp
from amp_tutorial.files import NOTEBOOKS, ROOT
from amp_tutorial.measure.intervals import over_seeds
from amp_tutorial.reports import groups, reference, summary, table
from amp_tutorial.reports.reference import Entry, Ours

MODEL = "owner/llama"
ENTRY = Entry(
    "e", "AMP", "LLaMA", "mean accuracy", 61.0, "%", "a table", "second-hand", ratio=0.3, models=[MODEL],
    ours=Ours("tuned/mean accuracy", 100, cut_by=dict(criterion="amp"), needs=dict(fidelity="official", items=0)),
)  # fmt: skip
PAPERS = dict(model=MODEL, ratio=0.3, heads=0, neurons=0, criterion="amp", fidelity="official", items=0, repair="none")


def record(seed: int = 0, value: float = 0.6, removed: float | None = 0.3, **settings: Any) -> amp.Record:
    """A finished run that answers to `ENTRY`, but for what is said otherwise."""
    made = amp.Record("reproduce", PAPERS | dict(seed=seed) | settings)
    if removed is not None:
        made.metric("parameters removed", removed)
    for stage, accuracy in (("dense", 0.66), ("untuned", value - 0.1), ("tuned", value)):
        made.metric(f"{stage}/mean accuracy", accuracy, stderr=0.005, low=accuracy - 0.01, high=accuracy + 0.01, n=1000)
        made.metric(f"{stage}/perplexity", 5 / accuracy, low=4 / accuracy, high=7 / accuracy, n=1000)
    return made


def put(folder: Path, *made: amp.Record, change: Callable[[dict], Any] | None = None) -> Path:
    """The records as a sweep leaves them, changed on disk if asked."""
    for one in made:
        number = len(list(folder.glob("*/record.json")))
        path = one.write(folder / f"{number:016d}" / "record.json")
        if change:
            found = json.loads(path.read_text(encoding="utf-8"))
            change(found)
            path.write_text(json.dumps(found), encoding="utf-8")
    return folder


def joined(folder: Path, entry: Entry = ENTRY) -> list[reference.Row]:
    return reference.joined(entry, groups.grouped(groups.scan(folder)))


# Verdicts


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(0.61, "within"), (0.602, "within"), (0.618, "within"), (0.598, "outside"), (0.622, "outside"), (0.3, "outside")],
)
def test_the_verdict_follows_from_the_interval(tmp_path: Path, value: float, verdict: str) -> None:
    (row,) = joined(put(tmp_path, record(value=value)))
    assert row.verdict == verdict and row.ours is not None and row.ours.over == "items"
    assert row.difference == pytest.approx(100 * value - 61)


def test_over_seeds_the_interval_is_students(tmp_path: Path) -> None:
    values = [0.60, 0.61, 0.63]
    (row,) = joined(put(tmp_path, *(record(seed, value) for seed, value in enumerate(values))))
    wanted = over_seeds(values)
    assert row.ours == wanted.scaled(100)
    assert row.verdict == "within"


def test_seeds_that_all_gave_the_same_have_the_interval_of_items(tmp_path: Path) -> None:
    (row,) = joined(put(tmp_path, record(0, 0.605), record(1, 0.605)))
    assert row.ours is not None and (row.ours.over, row.ours.seeds) == ("items", 2)
    assert row.ours.low == pytest.approx(59.5) and row.verdict == "within"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (dict(fidelity="clean"), "fidelity is clean, not official"),
        (dict(items=100), "items is 100, not 0"),
        (dict(removed=0.21), "21.00 % was removed, not 30 %"),
        (dict(removed=None), "it is not known how much was removed"),
        (dict(value=float("nan")), "a value is not finite"),
    ],
)
def test_what_differs_is_not_comparable_and_says_why(tmp_path: Path, changes: dict, why: str) -> None:
    (row,) = joined(put(tmp_path, record(**changes)))
    assert row.verdict.startswith("not comparable: ") and why in row.verdict
    assert row.difference is None


@pytest.mark.parametrize(
    ("key", "says"), [("tuned/mean accuracy", "have no tuned/mean accuracy"), ("low", "has no interval")]
)
def test_a_metric_or_an_interval_that_is_not_there_is_not_filled(tmp_path: Path, key: str, says: str) -> None:
    def lose(found: dict) -> None:
        metrics = found["metrics"]
        metrics["tuned/mean accuracy"]["low"] = None
        metrics.pop(key, None)

    (row,) = joined(put(tmp_path, record(value=0.61), change=lose))
    assert says in row.verdict and row.difference is None


def test_a_parameter_the_record_does_not_have_is_not_taken_for_the_papers(tmp_path: Path) -> None:
    (row,) = joined(put(tmp_path, record(), change=lambda found: found["parameters"].pop("fidelity")))
    assert row.verdict == "not comparable: its record does not say fidelity"


@pytest.mark.parametrize("other", [dict(model="other/llama"), dict(criterion="random"), dict(ratio=0.5, removed=0.5)])
def test_other_models_criteria_and_ratios_are_no_attempt(tmp_path: Path, other: dict) -> None:
    assert joined(put(tmp_path, record(**other))) == [reference.Row(ENTRY, "not run")]


def test_what_is_not_comparable_gives_way_to_what_is(tmp_path: Path) -> None:
    put(tmp_path, record(fidelity="clean"), record(value=0.61), record(value=0.4, repair="solve"))
    assert sorted(row.verdict for row in joined(tmp_path)) == ["outside", "within"]


@pytest.mark.parametrize(("removed", "comparable"), [(0.2949, False), (0.2951, True), (0.3049, True), (0.3051, False)])
def test_half_a_point_of_parameters_is_the_same_cut(tmp_path: Path, removed: float, comparable: bool) -> None:
    (row,) = joined(put(tmp_path, record(value=0.61, removed=removed)))
    assert (row.verdict == "within") is comparable


def test_other_shares_that_count_and_equal_widths(tmp_path: Path) -> None:
    put(tmp_path, record(value=0.61, removed=0.2102, ratio=0.21))
    entry = Entry(**vars(ENTRY) | dict(ratio=0.2, also=[0.2102]))
    assert joined(tmp_path, entry)[0].verdict == "within"
    assert joined(tmp_path, Entry(**vars(ENTRY) | dict(ratio=0.2)))[0].verdict == "not run"
    put(tmp_path, record(value=0.61, heads=6, neurons=1536, ratio=0.0, removed=0.81))
    by_widths = Entry(**vars(ENTRY) | dict(ratio=None, widths=dict(heads=6, neurons=1536)))
    assert joined(tmp_path, by_widths)[0].verdict == "within"
    assert joined(tmp_path, Entry(**vars(by_widths) | dict(widths=dict(heads=7, neurons=1536))))[0].ours is None


@pytest.mark.parametrize(("removed", "verdict"), [(0.8116, "within"), (0.8049, "outside"), (0.8151, "outside")])
def test_an_exact_number_is_compared_as_it_was_rounded(tmp_path: Path, removed: float, verdict: str) -> None:
    exact = Ours("parameters removed", 100, rounding=0.5)
    entry = Entry(**vars(ENTRY) | dict(value=81, ratio=None, widths=dict(heads=6, neurons=9), ours=exact))
    (row,) = joined(put(tmp_path, record(heads=6, neurons=9, removed=removed)), entry)
    assert row.verdict == verdict


def test_the_dense_model_is_one_row_however_many_runs_measured_it(tmp_path: Path) -> None:
    put(tmp_path, *(record(ratio=ratio, removed=ratio) for ratio in (0.2, 0.3, 0.5)))
    dense = Entry(**vars(ENTRY) | dict(ratio=0.0, value=66.5, ours=Ours("dense/mean accuracy", 100)))
    (row,) = joined(tmp_path, dense)
    assert row.verdict == "within" and row.ours is not None and row.ours.value == pytest.approx(66)


# What must not be mixed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r.update(protocol=2), "protocol (1 in 0000000000000000/record.json; 2 in 0000000000000001/"),
        (lambda r: r.update(notebook_sha256="0" * 64), "notebook"),
        (lambda r: r.update(schema=1), "schema (2 in"),
        (lambda r: r["model"].update(commit="other"), "weights"),
        (lambda r: r.update(data_sha256="0" * 64), "data"),
    ],
)
def test_one_row_never_mixes_versions_silently(tmp_path: Path, change: Any, says: str) -> None:
    put(tmp_path, record(0, 0.60))
    put(tmp_path, record(1, 0.61), change=change)
    with pytest.raises(ValueError, match="would stand in one row differ in") as caught:
        table.read(tmp_path)
    assert says in str(caught.value) and "0000000000000001/record.json" in str(caught.value)
    assert "--mix" in str(caught.value) and "\n" not in str(caught.value)
    mixed = table.read(tmp_path, mix=True)
    assert len(mixed.groups) == 1 and says.partition(" ")[0] in mixed.own()


def test_records_of_other_rows_may_be_of_other_versions(tmp_path: Path) -> None:
    put(tmp_path, record(0))
    put(tmp_path, record(0, repair="solve"), change=lambda r: r.update(protocol=2))
    assert len(table.read(tmp_path).groups) == 2


def test_other_packages_are_only_noted(tmp_path: Path) -> None:
    put(tmp_path, record(0, 0.60))
    put(tmp_path, record(1, 0.62), change=lambda r: r["versions"].update({"lm-eval": "0.0.1"}))
    (row,) = joined(tmp_path)
    assert row.verdict == "within" and row.notes[0].startswith("lm-eval 0.0.1 and ")


def test_a_seed_counts_once_and_the_earlier_run_is_named(tmp_path: Path) -> None:
    put(tmp_path, record(0, 0.62, out="elsewhere"), record(1, 0.63))
    put(tmp_path, record(0, 0.60), change=lambda r: r.update(started="2020-01-01T00:00:00+00:00"))
    found = table.read(tmp_path)
    (group,) = found.groups
    assert [run.record["metrics"]["tuned/mean accuracy"]["value"] for run in group.runs] == [0.62, 0.63]
    assert "0000000000000002/record.json: the same run" in found.folder.left_out[0]


def test_no_interval_of_an_accuracy_leaves_its_scale_and_guessing_is_told(tmp_path: Path) -> None:
    """Over few seeds Student's t reaches further; a picture has a line for what guessing gives."""
    for seed, value in ((0, 0.99), (1, 0.90)):
        one = amp.Record("reproduce", dict(model="m", ratio=0.2, seed=seed))
        items = "1" * round(100 * value) + "0" * round(100 - 100 * value)
        one.metric("tuned/piqa", value, n=100, items=items, chance=0.5)
        one.metric("tuned/mean accuracy", value, of=["tuned/piqa"])
        one.metric("parameters removed", 0.2)
        put(tmp_path, one)
    found = table.read(tmp_path)
    told = found.groups[0].metric("tuned/mean accuracy")
    assert told is not None and told.high == 1.0 and 0 <= (told.low or 0) < 0.9
    assert found.groups[0].chance("tuned/mean accuracy") == 0.5 and found.groups[0].chance("tuned/piqa") is None
    assert "Guessing has a mean accuracy of 50.0 %" in found.own() and "accuracy.png" in found.pictures
    assert found.markdown().index("## Our runs") < found.markdown().index("## Published numbers")
    assert "<details><summary>" in found.published() and " not run</summary>" in found.published()


# What a folder holds


def test_what_is_no_record_is_named_left_out_and_not_deleted(tmp_path: Path) -> None:
    put(tmp_path, record(0), record(1), record(2))
    torn, lacking = (tmp_path / f"{i:016d}" / "record.json" for i in (0, 1))
    torn.write_text(torn.read_text(encoding="utf-8")[:200], encoding="utf-8")
    lacking.write_text('{"schema": 2}', encoding="utf-8")
    (tmp_path / "summary.json").write_text('{"settings": {}}', encoding="utf-8")
    (tmp_path / ".part" / "x").mkdir(parents=True)
    (tmp_path / ".part" / "record.json").write_text("{", encoding="utf-8")
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    found = table.read(tmp_path)
    assert len(found.groups[0].runs) == 1
    first, second = found.folder.left_out
    assert first.startswith("0000000000000000/record.json: cannot be read as JSON")
    assert second.startswith("0000000000000001/record.json: ") and "required property" in second
    assert all(name in found.summary() for name in ("0000000000000000", "0000000000000001"))
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


def test_runs_that_failed_or_never_ended_have_no_number(tmp_path: Path) -> None:
    put(tmp_path, record(0))
    record(1).write(tmp_path / "failed" / "a" / "record.json", status="failed")
    record(2).write(tmp_path / "b" / "record.json", status="failed")
    record(3).write(tmp_path / "c" / "records" / "lesson.json", status="running")
    found = table.read(tmp_path)
    assert found.folder.failed == ["b/record.json", "failed/a/record.json"]
    assert found.folder.left_out == ["c/records/lesson.json: its run never finished."]
    assert found.groups[0].runs[0].seed == 0 and len(found.groups[0].runs) == 1


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ValueError, match="There is no folder of records at"):
        table.read(tmp_path / "none")
    options = argparse.Namespace(runs=str(tmp_path / "none"), out=str(tmp_path / "out"), mix=False)
    assert table.command(options) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()


# What is shown


def tables(markdown: str) -> list[list[list[str]]]:
    """The cells of each Markdown table."""
    found: list[list[list[str]]] = [[]]
    for line in markdown.splitlines():
        if line.startswith("| "):
            found[-1].append(line.replace("\\|", "/").removeprefix("| ").removesuffix(" |").split(" | "))
        elif found[-1]:
            found.append([])
    return [rows for rows in found if rows]


class Page(HTMLParser):
    """What a page holds, and whether every tag that is opened is closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(text: str) -> Page:
    found = Page()
    found.feed(text)
    assert not found.open
    return found


def sweep(folder: Path) -> Path:
    """Two models × two ratios × two criteria × two seeds."""
    for model in ("a", "b"):
        for ratio in (0.2, 0.3):
            for k, criterion in enumerate(("amp", "random")):
                values = [0.8 - ratio * (1 + k) + 0.01 * seed for seed in range(2)]
                made = [
                    record(s, v, ratio, model=model, ratio=ratio, criterion=criterion) for s, v in enumerate(values)
                ]
                put(folder, *made)
    return folder


def test_nothing_run_is_not_run_everywhere_and_no_cell_is_filled(tmp_path: Path) -> None:
    found = table.read(tmp_path)
    for paper in tables(found.published()):
        header, _, *lines = paper
        assert all(len(line) == len(header) for line in lines)
        assert all(line[-3:] == [table.BLANK, table.BLANK, "not run"] for line in lines)
    assert found.own() == "Nothing was run yet." and found.pictures == {}
    page(found.html())


def test_every_published_number_is_in_the_table(tmp_path: Path) -> None:
    found = table.read(tmp_path)
    lines = [line for rows in tables(found.published()) for line in rows[2:]]
    assert len(lines) == sum(len(block.entries) for paper in found.papers for block in paper.blocks)
    assert "Not found, and so in no row: the accuracy of each task alone; Phi-2" in found.published()


def test_our_table_shows_what_varies_and_only_that(tmp_path: Path) -> None:
    ((header, _, *lines),) = tables(table.read(sweep(tmp_path)).own())
    assert header[:5] == ["model", "ratio", "criterion", "seeds", "removed, %"]
    assert header[5:] == [f"{s} perplexity" for s in ("dense", "untuned", "tuned")] + [
        f"{s} mean accuracy, %" for s in ("dense", "untuned", "tuned")
    ]
    assert len(lines) == 8 and all(len(line) == len(header) for line in lines)
    assert lines[0][:5] == ["a", "0.2", "amp", "2", "20.0"]
    half = 100 * ((over_seeds([0.6, 0.61]).high or 0) - 0.605)
    assert lines[0][-1] == f"60.50 ± {half:.2f}" and lines[0][-3] == "66.00 ± 1.00\\*"


def test_a_metric_some_runs_lack_is_blank_in_their_row(tmp_path: Path) -> None:
    put(tmp_path, record(0, repair="none"))
    put(tmp_path, record(0, repair="solve"), change=lambda r: r["metrics"].pop("tuned/perplexity"))
    ((header, _, none, solve),) = tables(table.read(tmp_path).own())
    at = header.index("tuned perplexity")
    assert none[at] != table.BLANK and solve[at] == table.BLANK


def test_the_shipped_records_make_a_table(tmp_path: Path) -> None:
    found = table.read()
    ((header, _, *lines),) = tables(found.own())
    assert {"model", "what", "criterion", "recovery", "perplexity", "mean accuracy, %"} <= set(header)
    assert len(lines) == len(found.groups) == 30 and found.folder.left_out == []
    shipped = summary.read(amp.DATA / "results")["models"]
    (group,) = (g for g in found.groups if (g.parameters["model"], g.parameters["what"]) == ("tiny-phi", "amp"))
    measured, wanted = group.metric("mean accuracy"), shipped["tiny-phi"]["amp"]["mean accuracy"]
    assert measured and (measured.value, measured.low) == (wanted["value"], wanted["low"])


NASTY = "a|b <script>alert(1)</script> *c* `d`\n| e |"


def test_no_text_of_a_record_becomes_markup(tmp_path: Path) -> None:
    put(tmp_path, record(0, note=NASTY), record(0, note="plain"))
    (tmp_path / "x<b>.json").write_text("{", encoding="utf-8")
    found = table.read(tmp_path)
    ((header, _, *lines),) = tables(found.own())
    assert all(len(line) == len(header) for line in lines)
    tags = {tag for tag, _ in page(found.html()).seen}
    assert "script" not in tags and "b" not in tags and {"table", "h1", "h2"} <= tags


def test_the_files_are_whole_the_page_is_sound_and_pictures_have_alt_text(tmp_path: Path) -> None:
    found = table.read(sweep(tmp_path / "runs"))
    written = found.write(tmp_path / "out")
    assert sorted(p.name for p in written) == ["accuracy.png", "perplexity.png", "table.html", "table.md"]
    assert sorted((tmp_path / "out").iterdir()) == sorted(written)
    images = [
        attributes for tag, attributes in page((tmp_path / "out" / "table.html").read_text()).seen if tag == "img"
    ]
    assert {image["src"] for image in images} == {"accuracy.png", "perplexity.png"}
    assert all("with 30 % removed" in str(image["alt"]) for image in images)
    assert "a with 30 % removed: 50.5 % (amp tuned) to 10.5 % (random untuned)" in found.pictures["accuracy.png"][1]
    assert all((tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG" for name in found.pictures)


def test_a_file_that_cannot_be_replaced_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = table.read(tmp_path)
    found.write(tmp_path / "out")
    before = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        found.write(tmp_path / "out")
    assert (tmp_path / "out" / "table.md").read_text(encoding="utf-8") == before
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["table.html", "table.md"]


def test_the_command_executes_the_notebook_and_leaves_the_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sweep(tmp_path / "runs")
    (tmp_path / "runs" / "torn.json").write_text("{", encoding="utf-8")
    parser = argparse.ArgumentParser()
    table.add_arguments(parser)
    options = parser.parse_args(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    assert table.command(options) == 0
    assert "torn.json: cannot be read as JSON" in capsys.readouterr().out
    names = ["accuracy.png", "perplexity.png", "table.html", "table.ipynb", "table.md"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    assert (tmp_path / "out" / "table.md").read_text(encoding="utf-8") == table.read(tmp_path / "runs").markdown()


def test_the_command_refuses_to_mix_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    put(tmp_path / "runs", record(0))
    put(tmp_path / "runs", record(1), change=lambda r: r.update(protocol=2))
    options = argparse.Namespace(runs=str(tmp_path / "runs"), out=str(tmp_path / "out"), mix=False)
    assert table.command(options) == 2
    assert "protocol" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_importing_and_reading_records_needs_no_torch() -> None:
    code = (
        "import sys; from amp_tutorial.reports import groups, table; from amp_tutorial.files import DATA; "
        "groups.grouped(groups.scan(DATA / 'results')); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_the_notebook_is_there() -> None:
    assert (NOTEBOOKS / "table.ipynb").is_file()
