"""The results: their grid, one real run, intervals, tables, summary and picture."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

import amp_tutorial as amp
from amp_tutorial.measure import intervals
from amp_tutorial.reports import measurements, summary
from amp_tutorial.runs import grid as grids
from amp_tutorial.runs.sweep import records_of, sweep


def _bits(right: float, shift: int) -> str:
    """Of 200 items so many are right; which ones differs a little by seed."""
    first = round(200 * right)
    return ("0" * shift + "1" * first).ljust(200, "0")[:200]


def _records(amp_accuracy: float) -> dict[str, list[dict[str, Any]]]:
    """Records of one model as `results` writes them, where only the numbers that matter differ."""
    accuracy = {"dense": 0.9, "amp": amp_accuracy, "random": 0.6, "reversed": 0.4}
    mine = []
    for what, w in measurements.WHATS.items():
        for seed in range(1 if w.once else 3):
            bits = _bits(accuracy.get(what, 0.7) + 0.01 * seed, shift=seed)
            value, losses = bits.count("1") / 200, [9.0 + 3 * seed, 11.0, 10.5 + seed]
            metrics: dict[str, Any] = {name: dict(value=value, n=200, items=bits) for name in amp.TASKS}
            metrics["mean accuracy"] = dict(value=value, n=1200, of=list(amp.TASKS))
            metrics["perplexity"] = dict(value=math.exp(sum(losses) / 15), n=15, windows=[losses, [5, 5, 5]])
            metrics["removed"] = dict(value=0.3, low=None, high=None)
            mine.append({"parameters": {"what": what, "seed": seed}, "metrics": metrics})
    return {"tiny-llama": mine}


SETTINGS: dict[str, int] = {"limit": 200, "seeds": 3}


def test_table_states_mean_interval_and_what_it_is_over() -> None:
    table = summary.main_table(summary.summarise(_records(0.8), SETTINGS))
    dense = intervals.accuracy([{task: _bits(0.9, 0) for task in amp.TASKS}])
    seeds = intervals.accuracy([{task: _bits(0.8 + 0.01 * s, s) for task in amp.TASKS} for s in range(3)])
    assert seeds.over == "seeds and items" and seeds.value == pytest.approx(0.81)
    assert f"| tiny-llama | accuracy, % | {dense.percent()}\\* | {seeds.percent()} |" in table
    assert "where it is over items or windows" in table and "guessing gives 37.5 %" in table
    # exp of the mean of the three seeds' losses a token: (30.5 + 34.5 + 38.5) / 45
    ((dense_text, amp_text),) = re.findall(r"perplexity \| (\S+) \(.*?\)\\\* \| (\S+) \(", table)
    assert float(dense_text) == pytest.approx(math.exp(30.5 / 15), abs=0.005)
    assert float(amp_text) == pytest.approx(math.exp(34.5 / 15), abs=0.005)
    assert " ± 0.0" not in table


@pytest.mark.parametrize(
    ("accuracy", "sentence"),
    [
        (0.8, r"AMP keeps 20\.0 points \(1\d\.\d to 2\d\.\d\) more than random choice"),
        (0.5, r"AMP keeps 10\.0 points \(\d\.\d to 1\d\.\d\) less than random choice"),
        (0.6, r"AMP and random choice are not told apart, \+0\.0 points \(.*\); AMP keeps 20.0"),
    ],
)
def test_the_sentence_follows_the_outcome(accuracy: float, sentence: str) -> None:
    assert re.search(sentence, summary.verdicts(summary.summarise(_records(accuracy), SETTINGS))[0])


def test_the_summary_has_table_and_picture(tmp_path: Path) -> None:
    found = summary.summarise(_records(0.8), SETTINGS)
    text = summary.write(found, tmp_path)
    assert summary.main_table(found) in text and (tmp_path / "summary.md").read_text(encoding="utf-8") == text
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert summary.alt_text(found).startswith("Bars of mean accuracy"), "the pictures of pages carry it"


@pytest.mark.parametrize("name", amp.EMBEDDED)
def test_the_ablation_removes_equally_much(name: str) -> None:
    dense, tokenizer = amp.load(name)
    wanted = [measurements.WHATS[what] for what in summary.ABLATION]
    sizes = [measurements.treated(dense, tokenizer, what, 0.3, 4, 0).num_parameters() for what in wanted]
    anatomy = amp.Anatomy.of(dense)
    assert max(sizes) - min(sizes) <= anatomy.neuron_cost * anatomy.layers
    assert max(sizes) < dense.num_parameters()


def test_the_grid_holds_every_treatment_and_nothing_twice() -> None:
    wanted = {
        (model, what, seed)
        for model in amp.EMBEDDED
        for what, how in measurements.WHATS.items()
        for seed in range(1 if how.once else 3)
    }
    points = [p.effective for p in grids.read(amp.DATA / "sweeps" / "results.yaml")]
    assert sorted((p["model"], p["what"], p["seed"]) for p in points) == sorted(wanted)
    for point in points:
        measurements.check_treatment(**{name: value for name, value in point.items() if name != "out"})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (dict(model="tiny-lama"), "Unknown model 'tiny-lama'"),
        (dict(what="nothing"), "Unknown treatment 'nothing'; choose from dense, amp"),
        (dict(ratio=7.0), "ratio=7.0 must lie between 0 and 1"),
        (dict(limit=3), "limit=3 must be a multiple of 4"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(given: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    made = grids.grid_of({"function": TREATMENT, "fixed": given}, "grid.yaml")
    with pytest.raises(ValueError, match=sentence):
        sweep(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


TREATMENT = "amp_tutorial.reports.measurements:treatment"


def test_the_sweep_measures_and_the_command_sums_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One real run, in a process of its own; the others' records are made from it."""
    grid, runs, out = tmp_path / "grid.yaml", tmp_path / "runs", tmp_path / "out"
    sizes = dict(limit=4, calibration=4, samples=4, epochs=1)
    once = [name for name, how in measurements.WHATS.items() if how.once]
    others = [name for name in measurements.WHATS if name not in once]
    block = dict(function=TREATMENT, fixed=sizes | dict(model="tiny-phi"))
    blocks = [block | dict(grid=dict(what=once)), block | dict(grid=dict(what=others, seed=[0, 1]))]
    grid.write_text(json.dumps(blocks), encoding="utf-8")
    words = ["--grid", str(grid), "--runs", str(runs), "--out", str(out)]
    assert summary.main(words) == 1 and not out.exists()
    assert "18 runs are not finished: amp-tutorial sweep" in capsys.readouterr().err
    first = grids.grid_of(block | dict(grid=dict(what=["amp-recovered"])), "grid.yaml")
    assert sweep(first, runs).ok == 1
    ((run, measured),) = records_of(first, runs)
    assert measured is not None and {"perplexity", "mean accuracy", "removed", "recovery tokens"} <= {
        *measured["metrics"]
    }
    assert measured["parameters"]["limit"] == 4 and "lm-eval" in measured["notes"]["tasks protocol"]
    for job, record in records_of(grids.read(grid), runs):
        if record is None:
            p = measured["parameters"] | {name: job.parameters[name] for name in ("what", "seed")}
            made = measured | dict(parameters=p, identity=job.id)
            (runs / job.id).mkdir()
            (runs / job.id / "record.json").write_text(json.dumps(made), encoding="utf-8")
    assert summary.main(words) == 0
    found = summary.read(out)
    assert list(found["models"]) == ["tiny-phi"] and found["settings"]["seeds"] == 2
    assert (out / "picture.png").stat().st_size > 10_000
    before = (out / "summary.md").read_text(encoding="utf-8")
    assert summary.main(["--out", str(out)]) == 0, "from the records that are there"
    assert (out / "summary.md").read_text(encoding="utf-8") == before
    (runs / run.id / "record.json").write_text('{"half', encoding="utf-8")
    assert summary.main(words) == 1 and (out / "summary.md").read_text(encoding="utf-8") == before


def test_records_that_must_not_stand_in_one_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="are not there"):
        summary.read(tmp_path)
    for number, limit in enumerate((4, 8)):
        parameters = dict(model="tiny-phi", what="amp", seed=number, limit=limit)
        record = dict(schema=2, name=summary.NAME, status="ok", parameters=parameters, metrics={})
        (tmp_path / f"{number}.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ValueError, match="are made with different settings"):
        summary.read(tmp_path)
