"""The leaderboard: its systems, its grid, what it refuses, and tables from records alone.

And the results: their grid, one real run, intervals, tables, summary and picture.
"""

import json
import math
import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import VOCABULARY, Shape, byte_tokenizer, logits, tiny
from torch import Tensor

import amp_tutorial as amp
from amp_tutorial.core.checkpoint import configuration
from amp_tutorial.core.plans import whole_plan
from amp_tutorial.files import DATA
from amp_tutorial.measure import intervals
from amp_tutorial.methods import layers as layer_scores
from amp_tutorial.methods import slicegpt
from amp_tutorial.reports import (
    boards,
    damage,
    leaderboard,
    measurements,
    real,
    real_lessons,
    standings,
    summary,
    systems,
)
from amp_tutorial.reports.systems import SYSTEMS, applies
from amp_tutorial.runs import grid as grids
from amp_tutorial.runs.sweep import records_of, sweep

LARGER = Shape(layers=4, groups=4, neurons=64, hidden=32)


def random_batches(count: int = 4, rows: int = 6, seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(3, VOCABULARY, (rows, 24), generator=generator) for _ in range(count)]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in drawn]


@pytest.mark.parametrize("name", [name for name, s in SYSTEMS.items() if not s.recovery and name != "dense"])
def test_a_system_removes_its_ratio_and_leaves_the_dense_model_alone(name: str) -> None:
    model = tiny(LARGER)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ratio = 0.07 if SYSTEMS[name].cuts == "heads" else 0.25  # heads alone can't give a quarter; this is one of four
    small = SYSTEMS[name].function(model, byte_tokenizer(), random_batches(), ratio, 0)
    kept = SYSTEMS[name].kept
    removed = 1 - (kept(model, ratio) if kept else small.num_parameters()) / model.num_parameters()
    a, total = amp.Anatomy.of(model), model.num_parameters()
    half = {
        "layers": a.block_parameters / a.layers,
        "heads": a.layers * a.group_cost,
        "slicing": total / (8 if kept else 16),
    }  # of a step
    rounding = half.get(SYSTEMS[name].cuts, a.layers * a.neuron_cost) / 2 / total
    assert removed == pytest.approx(ratio, abs=rounding)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert small(torch.tensor([[5, 6, 7]])).logits.isfinite().all()


@pytest.mark.parametrize("name", ["random", "random-repair", "layers-random"])
def test_the_seed_decides_and_repeats(name: str) -> None:
    def made(seed: int) -> dict[str, Tensor]:
        return dict(SYSTEMS[name].function(tiny(LARGER), byte_tokenizer(), random_batches(), 0.25, seed).state_dict())

    once, again, others = made(0), made(0), [made(seed) for seed in range(1, 5)]
    assert all(torch.equal(once[key], again[key]) for key in once)
    # A layer of four goes, so that two seeds may well agree.
    assert any(once.keys() != other.keys() or any(not torch.equal(once[k], other[k]) for k in once) for other in others)


def test_one_budget_is_searched_on_calibration_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches, asked = tiny(LARGER), random_batches(4), list[Any]()

    def fit_budget(*given: Any, **settings: Any) -> Any:
        asked.append((given, settings))
        return SimpleNamespace(model=model)

    monkeypatch.setattr(amp, "fit_budget", fit_budget)
    for name, cut in (("ours-budget", {"heads", "neurons", "layers"}), ("sliced-budget", {"hidden", *systems.WIDTHS})):
        assert SYSTEMS[name].function(model, byte_tokenizer(), batches, 0.25, 3) is model
        given, settings = asked.pop()
        assert given == (model, batches, 0.25) and set(settings["cut"]) == cut and settings["seed"] == 3


def test_slicing_by_layer_leaves_so_many_directions_at_every_norm() -> None:
    model, batches = tiny(LARGER), random_batches()
    small = slicegpt.sliced_by_layer(model, batches, 20)
    seen: list[Tensor] = []
    for name, norm in small.named_modules():
        if name.endswith("norm"):
            norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        small(**batches[0])
    assert len(seen) == 2 * LARGER.layers + 1
    for x in seen:
        values = torch.linalg.svdvals(x.double())
        assert values[20] < 1e-5 * values[0] < values[19]


def test_slicing_by_layer_loses_nothing_with_all_directions_and_takes_the_best_of_each_norm() -> None:
    model, batches = tiny(LARGER), random_batches()
    with torch.no_grad():
        wanted = model(**batches[0]).logits
        torch.testing.assert_close(slicegpt.sliced_by_layer(model, batches, 32)(**batches[0]).logits, wanted)
    small = slicegpt.sliced_by_layer(model, batches, 20)
    first, given = small.model.layers[0].input_layernorm, list[Tensor]()
    first.register_forward_pre_hook(lambda _, args: given.append(args[0].flatten(0, 1)))
    normed, weights = list[Tensor](), model.model.embed_tokens.weight
    with torch.no_grad():
        for each in batches:
            small(**each)
            x = weights[each["input_ids"]].flatten(0, 1).double()
            normed.append(x / (x.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt())
        vectors = torch.linalg.svd(torch.cat(normed), full_matrices=False).Vh[:20]
        x = torch.cat([weights[each["input_ids"]].flatten(0, 1) for each in batches]).double()
    torch.testing.assert_close(torch.cat(given).double(), x @ vectors.T @ vectors, atol=1e-4, rtol=1e-4)


def test_slicing_by_layer_counts_the_matrices_between_norms_and_says_what_it_cannot_follow() -> None:
    anatomy = amp.Anatomy.of(tiny(LARGER))
    hidden = slicegpt.hidden_for(anatomy, 0.25)
    most = 0.75 * anatomy.model.num_parameters()
    assert slicegpt.kept_parameters(anatomy, hidden) <= most < slicegpt.kept_parameters(anatomy, hidden + 1)
    assert slicegpt.kept_parameters(anatomy, 32) > anatomy.model.num_parameters(), "no gain before it has paid for them"
    cases: list[tuple[Shape, dict[str, Any]]] = [
        (Shape("mixtral"), {}),
        (Shape("granite"), {"residual_multiplier": 0.3}),
    ]
    for shape, settings in cases:
        with pytest.raises(ValueError, match=f"cannot follow a {shape.family}: its stream is not a plain sum"):
            slicegpt.sliced_by_layer(tiny(shape, **settings), random_batches(), 16)
    with pytest.raises(ValueError, match="ask for less"):
        slicegpt.hidden_for(anatomy, 0.999)


GRID = DATA / "sweeps" / "leaderboard.yaml"


def test_the_grid_holds_every_system_where_it_applies_and_nothing_twice() -> None:
    points = [p.effective for p in grids.read(GRID)]
    real_alone = {"amp-heads", "amp-by-prompt", "ours-budget-8", "transact-neurons-lora", "ours-polished-lora"}
    assert real_alone <= {p.effective.get("system") for p in grids.read(GRID.with_name("real.yaml"))}
    wanted = {(model, "dense", 0.0, 0) for model in amp.EMBEDDED}
    for model, (name, how) in product(amp.EMBEDDED, SYSTEMS.items()):
        if name == "dense" or not applies(how, str(configuration(model).model_type)):
            continue
        if name in real_alone:
            continue
        less = how.label.endswith("neurons") or name == "reversed"
        ratios = [0.3] if how.recovery else [0.2, 0.3] if less else [0.2, 0.3, 0.5]
        wanted |= {(model, name, ratio, seed) for ratio in ratios for seed in range(1 if how.once else 3)}
    assert sorted((p["model"], p["system"], p["ratio"], p["seed"]) for p in points) == sorted(wanted)
    for point in points:
        measurements.check_system(**{name: value for name, value in point.items() if name != "out"})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (dict(model="tiny-lama"), "Unknown model 'tiny-lama'|tiny-lama is not a folder"),
        (dict(model="own/er"), "own/er is not a folder"),
        (dict(system="nonsense"), "Unknown system 'nonsense'"),
        (dict(ratio=1.2), "ratio=1.2 must lie between 0 and 1"),
        (dict(ratio=0.0), "ratio=0.0 must lie between 0 and 1"),
        (dict(items=3), "a multiple of 4"),
        (dict(windows=-1), "windows at least 0"),
        (dict(calibration=1), "calibration must be at least 2"),
        (dict(tasks="nosuchtask"), "Unknown task 'nosuchtask'"),
        (dict(dtype="float16"), "dtype='float16' must be 'float32' or 'bfloat16'"),
        (dict(calibration_text="tinyworld,nowhere.jsonl"), "neither 'tinyworld' nor a file"),
        (dict(calibration_text="nowhere.jsonl"), "neither 'tinyworld' nor a file"),
        (dict(system="sliced", model="tiny-phi"), "turns the residual stream, which tiny-phi does not allow"),
        (dict(system="amp-lora", ratio=0.5), "measured at ratio=0.2 or 0.3 only"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(given: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    values = dict(system="amp", ratio=0.3) | given
    made = grids.grid_of({"function": "amp_tutorial.reports.measurements:system", "fixed": values}, "grid.yaml")
    with pytest.raises(ValueError, match=sentence):
        sweep(made, tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()


def own_texts(folder: Path, **rows: list[str]) -> dict[str, str]:
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in lines), encoding="utf-8")
    return {name: str(folder / f"{name}.jsonl") for name in rows}


def test_held_out_text_must_not_be_calibration_text(tmp_path: Path) -> None:
    texts = own_texts(tmp_path, calibration_text=["one", "two"], heldout_text=["three", "two"])
    with pytest.raises(ValueError, match="1 texts of heldout_text are in calibration_text too"):
        measurements.check_system(
            model="tiny-phi",
            system="amp",
            ratio=0.3,
            tasks="none",
            items=0,
            windows=0,
            calibration=2,
            samples=1,
            **texts,
        )


def test_a_folder_with_own_texts_is_measured_by_perplexity_alone(tmp_path: Path) -> None:
    """By the sweep itself, in a process of its own, and the command that writes the tables; then there is one more."""
    folder, runs, out = tmp_path / "mine", tmp_path / "runs", tmp_path / "out"
    tiny(LARGER).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    words = dict(calibration_text="kite", heldout_text="ball")
    texts = own_texts(tmp_path, **{name: [f"{i} {word} " * 30 for i in range(24)] for name, word in words.items()})
    fixed = dict(model=str(folder), tasks="none", calibration=20) | texts
    function = "amp_tutorial.reports.measurements:system"
    blocks = [
        dict(function=function, fixed=fixed | dict(system="dense")),
        dict(function=function, fixed=fixed | dict(ratio=0.2), grid=dict(system=["amp", "amp-repair"], seed=[0, 1])),
    ]
    (tmp_path / "grid.yaml").write_text(json.dumps(blocks), encoding="utf-8")
    assert sweep(grids.read(tmp_path / "grid.yaml"), runs).ok == 5
    words_given = ["--grid", str(tmp_path / "grid.yaml"), "--runs", str(runs), "--out", str(out)]
    out.mkdir()
    stale = record("amp", "heads and neurons", 99.0, ratio=0.2)
    stale["parameters"]["model"] = "mine"
    (out / "mine-amp-0.2-0.json").write_text(json.dumps(stale), encoding="utf-8")
    assert leaderboard.main(words_given) == 0
    assert sorted(path.name for path in out.iterdir()) == ["picture.png", "records.jsonl", "summary.md"], "not stale"
    records = standings.read(out)
    assert len(records) == 5 and all("mean accuracy" not in r["metrics"] for r in records)
    said = [{key: value for key, value in r.items() if key != "model"} for r in records]
    assert str(tmp_path) not in json.dumps(said), "names of files, no paths of this machine"
    text = (out / "summary.md").read_text(encoding="utf-8")
    assert "| AMP + repair | repair |" in text and "mean accuracy" not in text
    (next(runs.glob("*/record.json"))).unlink()
    assert leaderboard.main(words_given) == 1, "one run is not finished"
    assert leaderboard.main(["--out", str(out)]) in (0, 1)


def test_two_models_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("a/mine", "b/mine"):
        (tmp_path / folder).mkdir(parents=True)
    models = [str(tmp_path / folder) for folder in ("a/mine", "b/mine")]
    block = dict(function="amp_tutorial.reports.measurements:system", grid=dict(model=models))
    (tmp_path / "grid.yaml").write_text(json.dumps(block), encoding="utf-8")
    with pytest.raises(SystemExit):
        leaderboard.main(["--grid", str(tmp_path / "grid.yaml"), "--runs", str(tmp_path), "--out", str(tmp_path)])
    assert "Two of the models have the name mine" in capsys.readouterr().err


MEASURED = {"model_sha256": "m", "heldout_sha256": "h"}


def record(system: str, cuts: str, value: float, seed: int = 0, ratio: float = 0.3, **other: Any) -> dict[str, Any]:
    parameters = dict(model="tiny", system=system, label=system.upper(), cuts=cuts, ratio=ratio, seed=seed)
    noise = [0.05 * math.sin(i * (2 + len(system))) for i in range(20)]  # of each window; its own for every system
    losses = [10 * (math.log(value) + x - sum(noise) / 20) for x in noise]
    right = round(200 / value)
    items = "".join("01"[(7 * i + len(system)) % 200 < right] for i in range(200))
    metrics: dict[str, Any] = {
        "perplexity": dict(value=value, low=value * 0.9, high=value * 1.1, n=200, windows=[losses, [10] * 20]),
        "task": dict(value=right / 200, n=200, items=items),
        "mean accuracy": dict(value=right / 200, n=200, of=["task"]),
        "parameters removed": dict(value=other.pop("gone", ratio), low=None, high=None),
    }
    return dict(
        name="leaderboard", status="ok", parameters=parameters | {"measured": MEASURED} | other, metrics=metrics
    )


def board(out: Path) -> list[dict[str, Any]]:
    records = [record("dense", "nothing", 2.0, ratio=0.0)]
    for seed, noise in enumerate((-0.01, 0.0, 0.01)):
        records += [
            record("amp", "heads and neurons", 4.0 + noise, seed),
            record("near", "repair", 3.01 - noise, seed),
            record("ours", "repair", 3.0 + noise, seed),
            record("sleb", "layers", 2.5 + noise, seed, gone=0.2),
            record("sliced", "slicing", 2.2 + noise, seed),
            record("lora", "LoRA", 2.1 + noise, seed),
        ]
    for r in records:
        p = r["parameters"]
        (out / f"{p['system']}-{p['seed']}.json").write_text(json.dumps(r), encoding="utf-8")
    return records


def line(text: str, label: str) -> str:
    (found,) = [row for row in text.splitlines() if row.startswith(f"| {label} | ") and " to " in row]
    return found


def said(*perplexities: float, system: str) -> str:
    found = [record(system, "repair", value, seed) for seed, value in enumerate(perplexities)]
    return intervals.perplexity([tuple(r["metrics"]["perplexity"]["windows"]) for r in found]).bounds()


def test_tables_say_best_what_is_not_told_apart_and_a_ratio_that_is_off(tmp_path: Path) -> None:
    board(tmp_path)
    text = boards.write(standings.read(tmp_path), tmp_path)
    ours = said(2.99, 3.0, 3.01, system="ours")
    assert line(text, "OURS").startswith(f"| OURS | repair | **{ours}**") and ours.startswith("3.00 (2.9")
    assert "| ≈ 3.01 (" in line(text, "NEAR")
    assert "| 4.00 (" in line(text, "AMP"), "told apart from the best: no mark"
    assert re.search(r"\| 2.50 \(.*?\) †20 % \|", line(text, "SLEB")), "removed less than asked: never the best"
    assert "**2.20 (" in line(text, "SLICED") and "**2.10 (" in line(text, "LORA"), "contests of their own"
    (goal,) = [
        row for row in text.splitlines() if row.startswith("| tiny | 30 % | Heads, neurons and layers | perplexity")
    ]
    assert f"| OURS: {ours} (+50.0 %) | AMP: {said(3.99, 4.0, 4.01, system='amp')} (+100.0 %) |" in goal
    assert re.search(r"\| ahead clearly: 0.75 times \(0.7\d to 0.7\d\) \|$", goal)
    assert "- Heads, neurons and layers, perplexity: ahead in 1 of 1 cases, clearly in 1; clearly behind in 0." in text
    assert "± 0.0" not in text


@pytest.mark.parametrize(
    ("ours", "how"), [(4.4, "behind clearly"), (4.04, "behind"), (3.96, "ahead"), (3.0, "ahead clearly")]
)
def test_the_verdict_follows_the_outcome(ours: float, how: str) -> None:
    records = [record("dense", "nothing", 2.0, ratio=0.0), record("amp", "heads and neurons", 4.0)]
    found, _ = standings.collect([r | {"file": "x"} for r in (*records, record("ours", "repair", ours))])
    fought = standings.duels(found)
    (row,) = [row for row in boards.goal_table(found, fought) if "| perplexity |" in row]
    assert f"| {how}: {ours / 4:.2f} times (" in row
    ahead, clear = "ahead" in how, "clearly" in how
    sentence = f"perplexity: ahead in {ahead:d} of 1 cases, clearly in {ahead and clear:d}; clearly behind in "
    assert boards.tally(fought)[0].endswith(f"{sentence}{not ahead and clear:d}.")


def test_what_is_level_is_not_called_ahead() -> None:
    records = [record("dense", "nothing", 2.0, ratio=0.0), record("same", "heads and neurons", 4.0)]
    found, _ = standings.collect([r | {"file": "x"} for r in (*records, record("ours", "repair", 4.0))])
    assert [duel.verdict for duel in standings.duels(found)] == ["level", "level"]
    assert not any(duel.gap.clear for duel in standings.duels(found))


def test_a_peer_from_outside_joins_as_a_record(tmp_path: Path) -> None:
    board(tmp_path)
    documented = (standings.__doc__ or "").split("same folder:\n\n")[1].split("\n\n`cuts`")[0]
    peer = json.loads(documented.replace("{…}", json.dumps(MEASURED)).replace("tiny-llama", "tiny"))
    (tmp_path / "a peer.json").write_text(json.dumps(peer), encoding="utf-8")
    text = boards.write(standings.read(tmp_path), tmp_path)
    assert line(text, "My system").startswith("| My system | heads and neurons | 5.10 (4.90 to 5.30)\\* | – |")
    peer["parameters"]["measured"] = {"model_sha256": "another"}
    (tmp_path / "a peer.json").write_text(json.dumps(peer), encoding="utf-8")
    text = boards.write(standings.read(tmp_path), tmp_path)
    assert "My system" not in text and "Left out, because measured otherwise than the dense model: a peer.json" in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (dict(cuts="corners"), "cuts 'corners', none of nothing, heads and neurons"),
        (dict(measured=None), "lacks measured;"),
    ],
)
def test_a_peer_that_lacks_something_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture, change: dict[str, Any], sentence: str
) -> None:
    peer = record("peer", "layers", 3.0)
    peer["parameters"] = {k: v for k, v in (peer["parameters"] | change).items() if v is not None}
    (tmp_path / "peer.json").write_text(json.dumps(peer), encoding="utf-8")
    with pytest.raises(SystemExit):
        leaderboard.main(["--out", str(tmp_path)])
    assert sentence in capsys.readouterr().err


def test_other_files_are_passed_by(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"half', encoding="utf-8")
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "running.json").write_text(json.dumps(record("a", "repair", 1.0) | {"status": "running"}))
    assert standings.read(tmp_path) == []


def test_no_two_named_lines_of_the_picture_look_alike_and_all_others_are_grey() -> None:
    drawn = [s for s in SYSTEMS.values() if s.cuts in boards.KINDS]
    assert {*boards.NAMED} <= {s.label for s in drawn} and len(boards.NAMED) <= 8
    records = [record("dense", "nothing", 2.0, ratio=0.0)]
    records += [record(s.label, s.cuts, 3.0 + i, label=s.label) for i, s in enumerate(drawn)]
    found, _ = standings.collect([r | {"file": "x"} for r in records])
    (axis,) = boards.picture(found).axes
    lines = [line for line in axis.get_lines() if line.get_color() != "black"]
    named = [line for line in lines if str(line.get_label()) in boards.NAMED]
    assert len(lines) == len(drawn) and len(named) == len(boards.NAMED)
    assert len({line.get_marker() for line in named}) == len(named), "without colour too"
    assert {line.get_color() for line in lines if line not in named} == {boards.GREY}
    assert sorted(text.get_text() for text in axis.texts) == sorted(boards.NAMED), "each is labelled at its end"


def test_labels_keep_their_order_and_their_distance() -> None:
    for heights in ([5.0, 1.0, 1.01, 1.02, 40.0], [2.0, 2.0], [3.0], []):
        places = boards.spread(heights)
        in_order = [place for _, place in sorted(zip(heights, places, strict=True))]
        assert in_order == sorted(in_order)
        assert all(b / a > 1.37 for a, b in zip(in_order, in_order[1:], strict=False))


@pytest.mark.parametrize(("perplexity", "verdict"), [(2.13, "met"), (2.2, "missed by 3.0 points")])
def test_goals_are_met_or_missed_by_so_much_and_never_guessed_between_ratios(perplexity: float, verdict: str) -> None:
    def row(system: str, cuts: str, value: float, ratio: float) -> standings.System:
        return standings.System([record(system, cuts, value, ratio=ratio)])

    rows = {("dense", "dense", "nothing", 0.0): row("dense", "nothing", 2.0, 0.0)}
    rows |= {("sliced", "sliced", "slicing", r): row("sliced", "slicing", perplexity, r) for r in (0.2, 0.5)}
    lines = boards.missed({"m": rows})
    said = [line.split(" | ")[-1].strip(" |") for line in lines[2:]]
    assert said == ["25% was not run; over it here"] * 2 + [verdict]
    assert all(f": {50 * perplexity - 100:+.1f} % (" in line for line in lines[2:])
    del rows["sliced", "sliced", "slicing", 0.5], rows["sliced", "sliced", "slicing", 0.2]
    assert boards.missed({"m": rows}) == []


def test_a_search_for_layers_is_kept_for_other_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = tiny(replace(LARGER, layers=6)), random_batches()
    found = systems._searched(model, batches, 3, "perplexity", 0)
    kept = systems.Kept(batches, tmp_path, "weights")
    assert systems._searched(model, kept, 2, "perplexity", 0).layers is not None
    assert systems._searched(model, kept, 3, "perplexity", 0).layers == found.layers
    monkeypatch.setattr(layer_scores, "rank_layers", lambda *_, **__: pytest.fail("it was searched again"))
    assert systems._searched(model, kept, 3, "perplexity", 0).layers == found.layers
    assert len(systems._searched(model, kept, 1, "perplexity", 0).layers or ()) == 5


def test_scores_that_stay_are_those_of_the_same_weights_and_text(tmp_path: Path) -> None:
    """From the folder they come for each criterion of a pass at once, and never for other weights or other text."""
    model, batches = tiny(LARGER), random_batches()
    fresh = {name: systems.scored(model, batches, name, 0) for name in ("amp", "wanda", "taylor")}
    kept = systems.Kept(batches, tmp_path, "weights")
    with pytest.MonkeyPatch.context() as patch:
        first = {name: systems.scored(model, kept, name, 0) for name in fresh}
        patch.setattr(systems.amp, "score_many", lambda *_, **__: pytest.fail("scored again"))
        again = {name: systems.scored(model, kept, name, 0) for name in fresh}
    for name, whole in fresh.items():
        for part in ("heads", "neurons"):
            pairs = zip(getattr(whole, part), getattr(first[name], part), getattr(again[name], part), strict=True)
            assert all(torch.allclose(a, b) and torch.equal(b, c) for a, b, c in pairs)
    other = systems.scored(model, systems.Kept(random_batches(seed=1), tmp_path, "weights"), "amp", 0)
    assert not torch.allclose(other.neurons[0], fresh["amp"].neurons[0])
    changed = systems.scored(tiny(LARGER, seed=5), systems.Kept(batches, tmp_path, "other weights"), "amp", 0)
    assert not torch.allclose(changed.neurons[0], fresh["amp"].neurons[0])


def test_several_texts_are_mixed_and_measured_apart(tmp_path: Path) -> None:
    """As many windows of each; the first held-out text gives "perplexity", the others their own name, in bfloat16."""
    folder, out = tmp_path / "mine", tmp_path / "out"
    tiny(LARGER).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    words = dict(kites="kite", balls="ball", cats="cat", dogs="dog")
    paths = own_texts(tmp_path, **{name: [f"{i} {word} " * 30 for i in range(24)] for name, word in words.items()})
    texts = dict(calibration_text=f"{paths['kites']},{paths['balls']}", heldout_text=f"{paths['cats']},{paths['dogs']}")
    common: dict[str, Any] = dict(
        model=str(folder), tasks="none", calibration=20, length=32, dtype="bfloat16", windows=8
    )
    measurements.system(system="amp", ratio=0.25, out=str(out), **(common | texts))
    found = json.loads((out / "record.json").read_text(encoding="utf-8"))
    assert found["parameters"]["made"]["text"] == "kites.jsonl,balls.jsonl"
    assert found["parameters"]["measured"]["heldout"] == "cats.jsonl,dogs.jsonl"
    assert found["parameters"]["measured"]["dtype"] == "bfloat16" and "window" not in found["parameters"]["measured"]
    assert {"perplexity", "dogs/perplexity"} <= set(found["metrics"]) and str(tmp_path) not in json.dumps(
        found["parameters"]["made"]
    )
    names = [paths["kites"], paths["balls"]]
    batches = measurements._drawn(byte_tokenizer(), names, "", 20, 32, 0)
    letters = "".join(byte_tokenizer().decode(row) for batch in batches for row in batch["input_ids"])
    assert len(batches) == 6 and "kite" in letters and "ball" in letters
    with pytest.raises(ValueError, match="24 texts of heldout_text are in calibration_text too"):
        held = dict(heldout_text=f"{paths['cats']},{paths['balls']}", calibration_text=texts["calibration_text"])
        numbers: dict[str, Any] = dict(ratio=0.3, items=0, windows=0, calibration=2, samples=1)
        measurements.check_system(model=str(folder), system="amp", tasks="none", **(numbers | held))


def test_a_sweep_is_told_where_things_are(tmp_path: Path) -> None:
    """-p is the same in every run; what no block knows, or what is varied, is refused."""
    path = tmp_path / "grid.yaml"
    path.write_text(
        "function: amp_tutorial.reports.measurements:system\ngrid: {seed: [0, 1]}\nfixed: {tasks: none}\n", "utf-8"
    )
    points = list(grids.read(path, everywhere=["local_copies=here", "windows=4", "tasks=tiny"]))
    assert [(p.effective["local_copies"], p.effective["windows"]) for p in points] == [("here", 4)] * 2
    assert {p.effective["tasks"] for p in points} == {"tiny"}
    for text, sentence in (
        ("local_copy=x", "no parameter 'local_copy', did you mean local_copies"),
        ("seed=3", "the sweep varies seed"),
        ("out=x", "gives each run a folder of its own"),
        ("windows=many", "windows"),
        ("windows", "say NAME=VALUE"),
    ):
        with pytest.raises(ValueError, match=sentence):
            grids.read(path, everywhere=[text])


def real_records(ours: float, other: float = 60.0, amp_at_ten: float = 40.0) -> list[dict[str, Any]]:
    """Of a real model: AMP at 10 and 20 %, neurons alone, ours and another, on two texts."""
    measured = dict(MEASURED, windows=40, window=512, dtype="bfloat16", items=0)
    rows = [("dense", "nothing", 30.0, 0.0), ("amp", "heads and neurons", 160.0, 0.2)]
    rows += [("transact-neurons", "neurons", other, 0.2), ("ours-neurons", "repair", ours, 0.2)]
    rows += [("amp", "heads and neurons", amp_at_ten, 0.1), ("amp-neurons", "neurons", 45.0, 0.1)]
    rows += [("amp-heads", "heads", 50.0, 0.1), ("reversed", "heads and neurons", 9000.0, 0.2)]
    found = []
    for name, cuts, value, ratio in rows:
        for seed in range(1 if name == "dense" else 3):
            made = record(name, cuts, value * (1 + 0.01 * seed), seed, ratio, measured=measured)
            del made["metrics"]["task"], made["metrics"]["mean accuracy"]
            made["parameters"]["made"] = {} if name == "dense" else {"text": real.TEXT}
            made["metrics"]["c4/perplexity"] = made["metrics"]["perplexity"]
            found.append(made | {"file": f"{name}-{ratio}-{seed}.json"})
    return found


def contest(**values: float) -> real.Contest:
    return real.contest_of(real_records(**values), lambda measured: measured["items"] == 0)


def test_what_was_measured_in_float32_alone_stands_in_the_table_and_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = real_records(ours=44.0)
    monkeypatch.setattr(real, "records", lambda folder: found)
    without = real.main_contest(tmp_path / "without")
    assert not without.elsewhere and without.at("sliced-layers", 0.2) is None
    for name, cuts, value, ratio in (("dense", "nothing", 30.0, 0.0), ("sliced-layers", "slicing", 300.0, 0.2),
                                     ("amp", "heads and neurons", 1.0, 0.2)):  # fmt: skip
        (like,) = (r for r in found if r["file"] == ("dense-0.0-0.json" if name == "dense" else "amp-0.2-0.json"))
        made = record(name, cuts, value, 0, ratio, measured=like["parameters"]["measured"] | {"dtype": "float32"})
        del made["metrics"]["task"], made["metrics"]["mean accuracy"]
        made["parameters"]["made"] = like["parameters"]["made"]
        made["metrics"]["c4/perplexity"] = made["metrics"]["perplexity"]
        found.append(made | {"file": f"{name}-{ratio}-float32.json"})
    both = real.main_contest(tmp_path / "both")
    assert both.elsewhere == {("sliced-layers", 0.2)}, "what bfloat16 has measured stays bfloat16's"
    assert [line.split(" | ")[0] for line in real.contest_table(both, 0.2) if "‡" in line] == ["| SLICED-LAYERS ‡"]


def test_goals_on_a_real_model_are_shares_of_an_excess_met_or_missed() -> None:
    table = real.goals_table(contest(ours=44.0))
    assert [row.split(" | ")[:2] for row in table[2:]] == [["| 20 %", "WikiText-2"], ["| 20 %", "C4"]]
    share = math.log(44 / 30) / math.log(160 / 30)
    assert f"| {share:.2f} (at most 0.35: met) | 0.5" in table[2] and "(at most 0.65: met)" in table[2]
    assert "0.73 times (0.6" in table[2] or "0.73 times (0.7" in table[2]
    worse = real.goals_table(contest(ours=70.0))[2]
    assert "(at most 0.35: missed)" in worse and "(at most 0.65: missed)" in worse and "1.17 times" in worse


def test_a_claim_holds_only_as_far_as_the_records_say() -> None:
    verdicts = {claim.said: claim.verdict for claim in real.claims(contest(ours=44.0))}
    field = "AMP is ahead of the field at equal parameters, 20 %"
    ablation = "Heads and neurons together lose less than either alone (ablation), 10 %"
    assert verdicts[field] == "does not hold" and verdicts[ablation] == "holds"
    other = {claim.said: claim.verdict for claim in real.claims(contest(ours=44.0, other=500.0, amp_at_ten=47.0))}
    assert other[field] == "holds" and other[ablation] == "does not hold"
    c = contest(ours=44.0)
    c.rows["amp", 0.1] = c.rows["amp-neurons", 0.1]
    (same,) = [claim for claim in real.claims(c) if claim.said == ablation]
    assert same.verdict == "not decidable here" and "no whole KV group" in same.number
    assert not any(said.startswith("30 %") for said in verdicts), "what was not measured is not judged"
    (order,) = [claim for claim in real.claims(contest(ours=44.0)) if claim.said.startswith("The order matters")]
    assert order.verdict == "holds" and order.number == "56.25 times the perplexity"


def test_a_picture_and_tables_of_a_real_model_say_what_was_measured() -> None:
    c = contest(ours=44.0)
    png, alt = real.picture(c)
    assert png.startswith(b"\x89PNG") and "WikiText-2, AMP, heads and neurons: 1.35 at 10 %, 5.39 at 20 %" in alt
    lines = real.contest_table(c, 0.2)
    assert [line.split(" | ")[0] for line in lines[3:]] == [
        "| OURS-NEURONS",
        "| TRANSACT-NEURONS",
        "| AMP",
        "| REVERSED",
    ]
    with pytest.raises(ValueError, match="has no dense record"):
        real.contest_of(real_records(44.0), lambda measured: measured["items"] == 5)


def test_one_system_made_from_several_texts_has_a_record_of_each() -> None:
    run = dict(model="m", system="amp", ratio=0.2, seed=0, tasks="none", window=512, dtype="bfloat16")
    texts = ("tinyworld", "c4,wikipedia", "alpaca")
    names = [leaderboard.file_of(run | {"calibration_text": text}) for text in texts]
    assert (
        names[0] == names[1] == "m-amp-0.2-0-512-bfloat16.json" and names[2] == "m-amp-0.2-0-512-bfloat16-alpaca.json"
    )


def test_a_cut_is_faster_only_as_far_as_its_interval_says() -> None:
    def of(low: float, high: float) -> list[real.Claim]:
        fast = dict(value=(low + high) / 2, low=low, high=high)
        metrics = {"prefill speed-up, cut": fast, "prefill speed-up, ideal": dict(value=1.4)}
        return real.speed_claim({"metrics": metrics, "parameters": {"ratio": 0.3}})

    assert [claim.verdict for ends in ((1.1, 1.3), (0.9, 1.1), (0.7, 0.9)) for claim in of(*ends)] == [
        "holds",
        "not decidable here",
        "does not hold",
    ]
    assert "1.20 times as fast (1.10 to 1.30); by its operations it would be 1.40 times" in of(1.1, 1.3)[0].number
    assert real.speed_claim(None) == []


def test_what_lora_healed_and_what_other_text_made_run_in_contests_of_their_own() -> None:
    found = real_records(44.0)
    for name, value, text in (
        ("amp-lora", 31.0, real.TEXT),
        ("ours-polished-lora", 30.5, real.TEXT),
        ("amp", 99.0, "alpaca"),
    ):
        cuts = "LoRA" if name.endswith("lora") else "heads and neurons"
        for seed in range(3):
            made = record(name, cuts, value, seed, 0.2, measured=found[0]["parameters"]["measured"])
            made["metrics"]["c4/perplexity"] = made["metrics"]["perplexity"]
            made["metrics"] |= {f"recovery {what}": dict(value=900.0 + 60 * seed) for what in ("tokens", "seconds")}
            made["parameters"]["made"] = {"text": text, "samples": 7, "epochs": 2, "rate": 3e-4}
            found.append(made | {"file": f"{name}-{text}-{seed}.json"})
    c = real.contest_of(found, lambda measured: True)
    assert c.ours(0.2) == "ours-neurons" and c.others(0.2)[0][1] == "transact-neurons"
    assert "LORA" not in "".join(real.contest_table(c, 0.2)) and c.tuned is not None
    assert [line.split(" | ")[0] for line in real.contest_table(c.tuned, 0.2)[3:]] == [
        "| OURS-POLISHED-LORA",
        "| AMP-LORA",
    ]
    (claim, same) = real.tuned_claims(c.tuned)
    assert claim.said == "Ours is still ahead of all others after LoRA, 20 %, WikiText-2" and same.said.endswith("C4")
    assert claim.verdict == "not decidable here" and "of AMP-LORA's perplexity 0.98 times (" in claim.number
    assert "same 7 rows of Alpaca in the same order: 2 epochs, rate 0.0003, rank 8" in real.trained(c.tuned, 0.2)
    assert "510 tokens of responses an epoch; 15 to 17 minutes" in real.trained(c.tuned, 0.2)
    said = real_lessons._healed(c)
    assert said.startswith("LoRA takes AMP's excess log-perplexity from 1.68 to 0.03 nats at 20 %; the least after it")
    assert said.endswith("“OURS-POLISHED-LORA”.")
    assert real_lessons._healed(contest(ours=44.0)) == "", "what was not measured is not said"
    prompted = real.contest_of(found, lambda measured: True, real.PROMPTS)
    by_prompts = prompted.at("amp", 0.2)
    (line,) = real.prompts_table(prompted, c)[2:]
    assert line.startswith("| AMP, 20 % | 3 | 99.0") and "0.61 times" in line
    assert by_prompts is not None and by_prompts["perplexity"].value == pytest.approx(99, rel=0.02)


def test_tasks_of_a_real_model_stand_beside_guessing_and_below_dense() -> None:
    found = []
    systems = (
        ("dense", "nothing", 15),
        ("amp", "heads and neurons", 11),
        ("wanda", "neurons", 5),
        ("ours", "repair", 14),
    )
    for name, cuts, right in systems:
        ratio = 0.0 if name == "dense" else 0.2
        for seed in range(1 if name == "dense" else 3):
            made = record(name, cuts, 30.0, seed, ratio, measured=dict(MEASURED, items=None))
            for task, correct, chance in (("piqa", right, 0.5), ("winogrande", 10, 0.5)):
                suite = amp.Accuracy({task: measured_items(task, correct, 20)})
                suite.chance[task] = chance
                made["metrics"] |= recorded(suite)
            value = (right + 10) / 40
            made["metrics"]["mean accuracy"] = dict(
                value=value, low=None, high=None, n=40, stderr=0.1, of=["piqa", "winogrande"]
            )
            found.append(made | {"file": f"{name}-{seed}.json"})
    c = real.tasks_contest(found)
    assert c is not None and real.tasks_contest(real_records(44.0)) is None
    table = real.tasks_table(c)
    assert table[0].startswith("| system | draws | piqa (20) | winogrande (20) | mean |")
    assert table[2].startswith("| dense |  | 75.0 | 50.0 | 62.5 (") and table[-1].startswith(
        "| guessing |  | 50.0 | 50.0 | 50.0 |"
    )
    assert [row.split(" | ")[0] for row in table[3:-1]] == ["| OURS, 20 %", "| AMP, 20 %", "| WANDA, 20 %"]
    assert table[4].startswith("| AMP, 20 % | 3 | 55.0 | 50.0 | 52.5 (") and "-10.0 points" in table[4]
    (amp_is,), (ours_is,) = real.accuracy_claims(c), real.accuracy_claims(c, ours=True)
    assert amp_is.said == "AMP is ahead of the field in mean accuracy over the five tasks, 20 %"
    assert (amp_is.verdict, ours_is.verdict) == ("holds", "not decidable here"), "against AMP 3 of 20 are too few"
    assert amp_is.number.startswith("against WANDA +15.0 points (") and "against AMP +7.5 points" in ours_is.number
    assert len(real.dense_table(found)) == 2, "its perplexity is in another record of the same windows"
    assert real.above_chance(c) == "The dense model is not clearly above guessing in: winogrande."


def test_what_bfloat16_changes_in_making_is_said_draw_by_draw() -> None:
    def board(draws: dict[int, float], dtype: str) -> real.Contest:
        found = [record("dense", "nothing", 30.0, 0, 0.0)]
        for seed, value in draws.items():
            one = record("ours", "repair", value, seed, 0.2)
            one["parameters"]["made"] = {"text": real.TEXT} | ({"dtype": dtype} if dtype == "bfloat16" else {})
            found.append(one)
        return real.contest_of([r | {"file": f"{k}.json"} for k, r in enumerate(found)], lambda measured: True)

    exact, fast = board({0: 50.0, 1: 90.0, 2: 90.0}, "float32"), board({0: 51.0}, "bfloat16")
    said = real.rounded(fast, exact)
    assert "on WikiText-2: OURS, 20 %: 1.02" in said and said.endswith("the perplexity (one draw).")
    assert real.rounded(exact, exact) == real.rounded(fast, fast) == "", "the same way, nothing is to be said"


def measured_items(task: str, right: int, n: int) -> amp.Measured:
    return amp.Measured(
        right / n, math.sqrt(right / n * (1 - right / n) / (n - 1)), n, {task: "1" * right + "0" * (n - right)}
    )


def recorded(suite: amp.Accuracy) -> dict[str, Any]:
    """The metrics of a record of these accuracies, without their mean."""
    made = amp.Record("any", {})
    made.accuracy(suite)
    return {name: metric for name, metric in made.metrics.items() if name != "mean accuracy"}


def test_every_lesson_ends_with_what_the_committed_records_of_the_real_model_say() -> None:
    lines = {number: real_lessons.closing(number) for number in [*real_lessons.SAID, "03b", "A"]}
    assert lines.pop("A") == lines.pop("03b") == "" and all(
        line.endswith(".") and re.search(r"\d", line) for line in lines.values()
    )
    amp_there = real.main_contest().at("amp", real.RATIO)
    assert amp_there is not None
    times = math.exp(amp_there.against(real.main_contest().dense, "perplexity").difference)
    assert f"{times:,.2f} times" in lines["00"] and f"AMP {times:.2f}" in lines["06"]
    assert [number for number, *_ in real_lessons.lessons()] == "0 1 2 3 4 5 6 6b 7 8 8b 8c".split()


# What a cut breaks before repair


def test_silence_of_every_layer_is_the_mask_of_the_plan_and_of_none_the_layer_passed_by() -> None:
    model = tiny(Shape(layers=3, groups=2, group_size=2))
    anatomy, scores = amp.Anatomy.of(model), amp.score(model, random_batches(), "transact")
    dense, neurons = logits(model), amp.keep(model, scores, neurons=13)
    for part, wanted in (
        ("neurons", neurons),
        ("KV groups", amp.keep(model, scores, heads=2)),
        ("query heads", amp.keep(model, scores, heads=2, unit="queries")),
    ):
        cut = damage.cut_of(anatomy, part, neurons, scores)
        with damage.silent(anatomy, cut):
            ours = logits(model)
        with amp.masked(model, wanted):
            assert torch.equal(ours, logits(model))
        with damage.silent(anatomy, {1: cut[1]}):
            assert not torch.equal(logits(model), dense)
        assert torch.equal(logits(model), dense), "nothing is left behind"
    small = amp.prune(model, amp.plan_layers(model, {0: 2.0, 1: 1.0, 2: 3.0}, keep=2)).model
    with damage.silent(anatomy, {1: damage.cut_of(anatomy, "layers", neurons, scores)[1]}):
        assert torch.allclose(logits(model), logits(small), atol=1e-6)


def test_layers_may_be_silent_in_different_widths() -> None:
    model = tiny(Shape(layers=2))
    anatomy, whole = amp.Anatomy.of(model), whole_plan(amp.Anatomy.of(model))
    uneven = replace(whole, neurons=[[0, 1], list(range(anatomy.neurons))])
    with damage.silent(anatomy, dict.fromkeys(range(2), uneven)):
        ours = logits(model)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:, 2:] = 0
    assert torch.allclose(ours, logits(model), atol=1e-6) and not torch.equal(ours, logits(tiny(Shape(layers=2))))


def test_own_widths_keep_as_many_neurons_wherever_they_are_felt_most() -> None:
    felt = [torch.tensor([5.0, 1.0, 4.0]), torch.tensor([3.0, 2.0, 0.5])]
    assert [k.tolist() for k in damage.alike(felt, 2)] == [[0, 2], [0, 1]]
    assert [k.tolist() for k in damage.own_widths(felt, 2)] == [[0, 2], [0, 1]]
    felt[1] /= 10
    assert [k.tolist() for k in damage.own_widths(felt, 2)] == [[0, 1, 2], [0]]


def test_a_neuron_is_felt_by_its_energy_and_by_where_it_writes() -> None:
    model = tiny(Shape())
    metric = amp.output_metric(model, random_batches())
    scores = amp.score(model, random_batches(), "transact")
    found = damage.felt_by_neuron(model, random_batches(), scores)
    w = model.model.layers[1].mlp.down_proj.weight.detach().double()[:, 3]
    energy = scores.neurons[1][3].double() ** 2
    wanted = energy * (w @ metric[1]["neurons"] @ w)
    assert float(found[1][3].detach()) == pytest.approx(float(wanted), rel=1e-6)


def test_rows_are_scored_by_or_measured_on_and_none_is_lost() -> None:
    first, others = damage.split(random_batches(), 8)
    rows = torch.cat([batch["input_ids"] for batch in (*first, *others)])
    assert torch.equal(rows, torch.cat([batch["input_ids"] for batch in random_batches()]))
    assert sum(len(batch["input_ids"]) for batch in first) == 8


def test_a_record_says_what_each_layer_costs(tmp_path: Path) -> None:
    damage.damage(model="tiny-llama-gqa", calibration=8, windows=6, length=64, out=str(tmp_path))
    record = json.loads((tmp_path / "record.json").read_text("utf-8"))
    assert record["name"] == "damage" and "'/" not in str(record["parameters"])
    m = record["metrics"]
    layers = amp.Anatomy.of(amp.load("tiny-llama-gqa")[0]).layers
    for part in damage.PARTS:
        alone = [m[f"{part}/layer {i}"] for i in range(layers)]
        assert m[f"{part}/sum"]["value"] == pytest.approx(sum(v["value"] for v in alone))
        assert all(v["n"] == 6 and v["low"] <= v["value"] <= v["high"] for v in alone)
    dense = amp.load("tiny-llama-gqa")[0]
    small = amp.prune(
        dense, amp.keep(dense, amp.score(dense, [], "random"), heads=amp.Anatomy.of(dense).heads - 2)
    ).model
    assert m["neurons/removed"]["value"] == pytest.approx(0.2, abs=0.01)
    assert m["KV groups/removed"]["value"] == pytest.approx(1 - small.num_parameters() / dense.num_parameters())
    own, other = (record["notes"][f"neurons of each layer, {how}"] for how in ("own", "alike"))
    assert sum(own) == sum(other) and len(set(other)) == 1
    told = "\n".join(damage.tables(record))
    assert f"{m['layers/layer 0']['value']:.2f}" in told and "its own text" in told
    for wrong, sentence in (
        (dict(ratio=1.5), "between 0 and 1"),
        (dict(windows=1), "at least 2"),
        (dict(dtype="int8"), "dtype"),
    ):
        given: dict[str, Any] = dict(model="tiny-llama-gqa", ratio=0.2, calibration=8, windows=6, dtype="float32")
        with pytest.raises(ValueError, match=sentence):
            damage.check_damage(**(given | wrong))


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
def test_bad_input_of_a_treatment_is_one_sentence_before_any_work(
    given: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
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
