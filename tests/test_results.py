"""The results command: intervals, tables, the README's part, and going on where it stopped."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

import amp_tutorial as amp
from amp_tutorial.measure import intervals
from amp_tutorial.reports import results, summary


def _bits(right: float, shift: int) -> str:
    """Of 200 items so many are right; which ones differs a little by seed."""
    first = round(200 * right)
    return ("0" * shift + "1" * first).ljust(200, "0")[:200]


def _records(amp_accuracy: float) -> dict[str, list[dict[str, Any]]]:
    """Records of one model as `results` writes them, where only the numbers that matter differ."""
    accuracy = {"dense": 0.9, "amp": amp_accuracy, "random": 0.6, "reversed": 0.4}
    mine = []
    for what, w in results.WHATS.items():
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


def test_write_and_fill_the_readme_twice(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n{summary.BEGIN}\nold\n{summary.END}\nend\n", encoding="utf-8")
    out = tmp_path / "data" / "results"
    summary.write(_records(0.8), SETTINGS, out)
    assert (out / "picture.png").stat().st_size > 10_000
    found = summary.summarise(_records(0.8), SETTINGS)
    summary.into_readme(readme, found, out)
    once = readme.read_text(encoding="utf-8")
    summary.into_readme(readme, found, out)
    assert readme.read_text(encoding="utf-8") == once
    assert "(data/results/picture.png)" in once and "old" not in once
    assert "![Bars of mean accuracy" in once, "the picture carries its alt text"
    assert once.startswith("# Title\n") and once.endswith("\nend\n")


def test_a_readme_without_markers_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "README.md").write_text("nothing", encoding="utf-8")
    with pytest.raises(SystemExit):
        results.main(["--readme", str(tmp_path / "README.md"), "--out", str(tmp_path / "out")])
    assert summary.BEGIN in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", amp.EMBEDDED)
def test_the_ablation_removes_equally_much(name: str) -> None:
    bench = results.Bench(name)
    wanted = [results.Run(name, what, 0, results.Settings(calibration=4)) for what in summary.ABLATION]
    sizes = [bench.pruned(run).num_parameters() for run in wanted]
    anatomy = amp.Anatomy.of(bench.model)
    assert max(sizes) - min(sizes) <= anatomy.neuron_cost * anatomy.layers
    assert max(sizes) < bench.model.num_parameters()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the measurements by instant ones; the list grows by one entry for each."""
    done: list[float] = []

    def perplexity(model: Any, tokenizer: Any) -> amp.Perplexity:
        done.append(1.0)
        return amp.Perplexity(5.0, 100, "by hand", ((40 * math.log(5), 60 * math.log(5)), (40, 60)))

    def accuracy(model: Any, tokenizer: Any, limit: int | None) -> amp.Accuracy:
        return amp.Accuracy({task: amp.Measured(0.5, 0.1, 26) for task in amp.TASKS})

    def recover(model: Any, tokenizer: Any, **settings: Any) -> amp.Recovery:
        return amp.Recovery(model, [{"step": 0.0, "loss": 1.0}], 1, 1, 0.1)

    for function in (perplexity, accuracy, recover):
        monkeypatch.setattr(amp, function.__name__, function)
    return done


def test_finished_runs_are_skipped_and_stale_ones_made_again(tmp_path: Path, quick: list[float]) -> None:
    arguments = ["--models", "tiny-phi", "--seeds", "2", "--out", str(tmp_path)]
    assert results.main(arguments) == 0
    runs = results.runs_of("tiny-phi", 2, results.Settings())
    assert len(quick) == len(runs) == len(list(tmp_path.glob("tiny-phi-*.json")))
    assert results.main(arguments) == 0
    assert len(quick) == len(runs), "everything was there"
    runs[0].path(tmp_path).unlink()
    stale = json.loads(runs[1].path(tmp_path).read_text(encoding="utf-8")) | {"model_sha256": "of other weights"}
    runs[1].path(tmp_path).write_text(json.dumps(stale), encoding="utf-8")
    runs[2].path(tmp_path).write_text('{"half', encoding="utf-8")
    assert results.main(arguments) == 0
    assert len(quick) == len(runs) + 3
    found = summary.read(tmp_path)
    assert list(found["models"]) == ["tiny-phi"] and found["settings"]["seeds"] == 2
    assert summary.main_table(found) in (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert results.main([*arguments, "--limit", "8"]) == 0 and len(quick) == 2 * len(runs) + 3, "other settings"
    runs[3].path(tmp_path).write_text(json.dumps(stale), encoding="utf-8")
    with pytest.raises(ValueError, match="are made with different settings"):
        summary.read(tmp_path)
    with pytest.raises(ValueError, match="are not there"):
        summary.read(tmp_path / "none")


def test_an_unknown_model_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert results.main(["--models", "tiny-lama", "--out", str(tmp_path)]) == 1
    assert "Unknown model 'tiny-lama'" in capsys.readouterr().err
