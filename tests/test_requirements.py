"""What a run needs, against what it takes: the peak of allocated tensors, on the embedded models, stage by stage."""

import copy
import gc
import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import EVERY_FAMILY, KNOWN, TRAINED, Shape, every, grid, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from test_presets import DEFAULTS
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import amp_tutorial as amp
from amp_tutorial.runs import requirements as needs
from amp_tutorial.runs.workload import LONGEST_TINY
from amp_tutorial.scale import peak_memory as peaks

CLOSE = 0.25  # of what was measured; no arithmetic over sizes comes as near, see `scale/peak_memory.py`
SMALL: dict[str, Any] = dict(
    calibration=8, calibration_length=32, batch=4, window=32, recovery_length=32, rows_at_once=2
)
ALONE: dict[str, Any] = dict(recovery="none", tasks="none", measure_dense=False, window=2)  # a stage without the others
LONG = dict(calibration_text="long", perplexity_text="long", recovery_text="long")  # texts that fill every length
ROOMY = needs.Has("cpu", 2**50, 2**50, 2**50)


def effective(**given: Any) -> dict[str, Any]:
    return DEFAULTS | dict(device="cpu", **given)


def need(**given: Any) -> needs.Needs:
    return amp.needs_of(effective(**given), speed=1e12)


def measured(run: Callable[[], object], *held: nn.Module) -> int:
    """Bytes of all tensors at the peak of a run, models that are there from the start included: no imports, no code."""
    storages = {t.untyped_storage() for model in held for t in (*model.parameters(), *model.buffers())}
    gc.collect()
    gc.disable()  # or models that refer to themselves are given up at one moment or another
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            run()
    finally:
        gc.enable()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    now, peak = sum(s.nbytes() for s in {s.data_ptr(): s for s in storages}.values()), 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.fixture(scope="module", params=TRAINED)
def loaded(request: pytest.FixtureRequest) -> tuple[str, PreTrainedModel, PreTrainedTokenizerBase]:
    return request.param, *amp.load(request.param, device="cpu")


@pytest.fixture(scope="module")
def running_text() -> str:
    return " ".join(amp.texts("tinyworld"))


def full(batch: int, length: int, batches: int = 2) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(3, 1500, (batches, batch, length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": rows, "attention_mask": torch.ones_like(rows)} for rows in ids]


def pruned(model: PreTrainedModel) -> PreTrainedModel:
    return amp.prune(model, amp.plan(model, amp.score(model, [], "random"), pruning_ratio=0.3)).model


SCORED = [(criterion, 3, 40) for criterion in amp.CRITERIA]
WIDER = [(criterion, 16, 128) for criterion in amp.CRITERIA]


@pytest.mark.parametrize("criterion, batch, length", [*SCORED, *WIDER[:1], *grid(*WIDER[1:])])
def test_scoring(loaded: Any, criterion: str, batch: int, length: int) -> None:
    name, model, _ = loaded
    told = need(
        model=name, criterion=criterion, batch=batch, calibration_length=length, calibration_text="long", **ALONE
    )
    taken = measured(lambda: amp.score(model, full(batch, length), criterion), model)
    assert told.peaks["score"] == pytest.approx(taken, rel=CLOSE)


def test_pruning_in_place(loaded: Any) -> None:
    """Of a copy, because the profiler does not see that what was there before it began is given up."""
    name, model, _ = loaded
    chosen = amp.plan(model, amp.score(model, [], "random"), pruning_ratio=0.3)
    dense = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    taken = measured(lambda: amp.prune(copy.deepcopy(model), chosen, inplace=True), model) - dense
    assert need(model=name, **ALONE).peaks["prune"] == pytest.approx(taken, rel=CLOSE)


def test_shots(loaded: Any, running_text: str, tmp_path: Path) -> None:
    """The dense model stays beside those of two shots, of which the second is copied and trained."""
    name, model, tokenizer = loaded
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"text": running_text[:60_000]}), encoding="utf-8")
    how: dict[str, Any] = dict(samples=16, epochs=1, length=32, rows_at_once=1, loss="text", progress=False)
    recover = partial(amp.recover, source=source, **how)
    cut: dict[str, Any] = dict(heads=4, neurons=100, shots=4)

    def run() -> None:
        for _ in amp.prune_in_shots(model, tokenizer, full(2, 16), **cut, recover=recover):
            pass

    settings = dict(rows_at_once=1, recovery_length=32, tasks="none", window=2, recovery_text="long")
    told = need(model=name, **cut, **settings)
    assert told.peak == told.peaks["recover"] == pytest.approx(measured(run, model), rel=CLOSE)
    assert "measure tuned" not in told.peaks


@pytest.mark.parametrize("how, batch, length", [("solve", 3, 40), ("choose", 4, 64), *grid(("solve", 16, 100))])
def test_repair(loaded: Any, how: str, batch: int, length: int) -> None:
    name, model, _ = loaded
    settings = ALONE | dict(calibration=3 * batch, batch=batch, calibration_length=length, calibration_text="long")
    chosen, batches = amp.plan(model, amp.score(model, [], "random"), pruning_ratio=0.3), full(batch, length, 3)
    taken = measured(lambda: amp.repair(model, chosen, batches, reselect=how == "choose", progress=False), model)
    assert need(model=name, repair=how, **settings).peaks["prune"] == pytest.approx(taken, rel=CLOSE)


@pytest.mark.parametrize("batch, window", [(1, 256), (12, 128), *grid((4, 64))])
def test_perplexity(loaded: Any, running_text: str, batch: int, window: int) -> None:
    name, model, tokenizer = loaded
    told = need(model=name, batch=batch, window=window, tasks="none", perplexity_text="long", rows_at_once=1)
    small = pruned(model)
    for stage, of in (("measure dense", model), ("measure untuned", small), ("measure tuned", small)):
        how: dict[str, Any] = dict(window=window, limit=2 * batch, batch_size=batch)
        taken = measured(partial(amp.perplexity, of, tokenizer, [running_text], **how), of)
        assert told.peaks[stage] == pytest.approx(taken, rel=CLOSE), stage


@pytest.mark.parametrize("batch", [4, 32])
def test_tasks(loaded: Any, batch: int) -> None:
    """One has the longest prompts, one the longest answers, one most prompts; a window of two tokens is nothing."""
    name, model, tokenizer = loaded
    small = pruned(model)
    longest = ("tiny_chain", "tiny_ending", "tiny_yesno")
    taken = max(
        measured(partial(amp.accuracy, small, tokenizer, [task], limit=200, batch_size=batch), small)
        for task in longest
    )
    assert need(model=name, batch=batch, window=2).peaks["measure untuned"] == pytest.approx(taken, rel=CLOSE)


def test_no_question_is_longer_than_said(loaded: Any) -> None:
    _, _, tokenizer = loaded
    items = [json.loads(line) for task in amp.TASKS for line in (amp.DATA / "tasks" / f"{task}.jsonl").open()]
    asked = [f"{item['prompt']} {choice}" for item in items for choice in item["choices"]]
    lengths = [len(ids) + 1 for ids in tokenizer(asked, add_special_tokens=False)["input_ids"]]
    assert max(lengths) == LONGEST_TINY


@pytest.mark.parametrize("rows, length", [(1, 33), (16, 100), *grid((4, 64), (4, 200))])
def test_recovery(loaded: Any, running_text: str, rows: int, length: int, tmp_path: Path) -> None:
    name, model, tokenizer = loaded
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"text": running_text[:60_000]}), encoding="utf-8")
    how: dict[str, Any] = dict(samples=32, epochs=1, length=length, rows_at_once=rows, loss="text", progress=False)
    small = pruned(model)
    taken = measured(lambda: amp.recover(small, tokenizer, source, **how), small)
    told = need(model=name, rows_at_once=rows, recovery_length=length, recovery_text="long")
    assert told.peaks["recover"] == pytest.approx(taken, rel=CLOSE)


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_every_family_can_be_counted(shape: Shape) -> None:
    model = peaks.shadow(tiny(shape).config, torch.float32)
    least = peaks.weights(model)
    assert least == sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    assert peaks.of_scoring(model, "amp", 2, 8) > least < peaks.of_perplexity(model, 2, 8)
    assert peaks.of_recovery(model, 2, 8) > 2 * least


DEEP = ("llama", "phi", "gemma3_text", "mixtral")  # grouped, parallel blocks, layers of two kinds, experts


@pytest.mark.parametrize("shape", [s if s.family in DEEP else grid(s)[0] for s in every(KNOWN)], ids=KNOWN)
def test_a_deep_model_is_told_from_its_first_layers(shape: Shape) -> None:
    """Every further layer adds as much, and where layers differ all are run."""
    model = peaks.shadow(tiny(replace(shape, layers=6)).config, torch.float32)
    for peak, asked in (
        (peaks.of_scoring, ("amp", 2, 8)),
        (peaks.of_scoring, ("magnitude", 2, 8)),
        (peaks.of_recovery, (2, 8)),
    ):
        whole = inspect.unwrap(peak)(model, *asked)
        assert peak(model, *asked) == pytest.approx(whole, rel=0.01), (
            peak.__name__,
            asked,
        )  # Python frees when it does


@pytest.mark.parametrize("name", ["microsoft/phi-1_5", *grid("huggyllama/llama-7b")])
def test_a_real_models_peak_is_that_of_all_its_layers(name: str) -> None:
    """Of tiny shapes alone it seemed so for a forward pass with a cache, too, which it is not."""
    model = peaks.shadow(needs.configuration_of(name)[0], torch.float16)
    for peak, asked in (
        (peaks.of_scoring, ("amp", 8, 512)),
        (peaks.of_scoring, ("taylor", 4, 128)),
        (peaks.of_scoring, ("taylor", 1, 2048)),
        (peaks.of_recovery, (1, 512)),
        (peaks.of_recovery, (16, 2048)),
    ):
        whole = inspect.unwrap(peak)(model, *asked)
        assert peak(model, *asked) == pytest.approx(whole, rel=0.001), (peak.__name__, asked)


def test_half_precision_halves_the_weights_but_not_all_of_recovery() -> None:
    """Adapters stay in float32, and so does what goes through them."""
    full, half = need(**SMALL), need(dtype="float16", **SMALL)
    assert full.weights == 2 * half.weights == 4 * full.parameters[0]
    assert full.peaks["recover"] / 2 < half.peaks["recover"] < full.peaks["recover"]


@settings(max_examples=4)
@given(
    which=st.sampled_from(["batch", "window", "rows_at_once", "recovery_length", "calibration_length"]),
    values=st.lists(st.integers(2, 16), min_size=2, max_size=2, unique=True).map(sorted),
)
def test_more_at_a_time_never_needs_less(which: str, values: list[int]) -> None:
    less, more = (need(**SMALL | LONG | {which: value}) for value in values)
    stages = {"rows_at_once": ["recover"], "recovery_length": ["recover"], "calibration_length": ["score"]}
    grown = stages.get(which, ["measure dense", "measure untuned", "measure tuned"])
    for stage in less.peaks:
        assert less.peaks[stage] <= more.peaks[stage]
    assert which == "window" or all(less.peaks[stage] < more.peaks[stage] for stage in grown)
    assert less.flops <= more.flops


def test_what_a_run_leaves_out_it_does_not_need() -> None:
    bare = need(recovery="none", measure_dense=False, tasks="none", **SMALL)
    assert list(bare.peaks) == ["score", "prune", "measure untuned"]
    assert list(need(**SMALL).peaks) == [
        "measure dense",
        "score",
        "prune",
        "measure untuned",
        "recover",
        "measure tuned",
    ]
    assert bare.flops < need(**SMALL).flops and bare.download == 0
    assert need(keep_model=True, **SMALL).disk - bare.disk == 4 * bare.parameters[1]
    assert need(shots=2, heads=4, neurons=100, **SMALL).peaks["recover"] > need(**SMALL).peaks["recover"]


def test_time_is_work_at_a_share_of_the_speed() -> None:
    told = need(**SMALL)
    assert told.seconds == told.flops / (0.4 * 1e12)
    assert amp.needs_of(effective(**SMALL)).speed.flops > 1e9, "timed on this machine"


@pytest.mark.parametrize(
    "free, given, said",
    [
        (dict(memory=2**20), {}, "memory on cpu (the stage 'recover' needs"),
        (dict(memory=2**20), {}, "take dtype='bfloat16', a smaller rows_at_once, a smaller recovery_length"),
        (dict(memory=2**20), dict(dtype="float16", rows_at_once=1), "take a smaller recovery_length, recovery='none'"),
        (dict(memory=2**20), dict(recovery="none"), "a smaller batch, a smaller window, or a larger device"),
        (dict(memory=2**20), dict(recovery="none", measure_dense=False, batch=1, window=4, tasks="none",
                                  repair="solve"), "repair='none'"),
        (dict(disk=1000), {}, "on disk"),
        (dict(disk=1000), {}, "keep_model=False, or another out"),
    ],
)  # fmt: skip
def test_over_budget_says_what_is_short_and_what_to_change(
    free: dict[str, Any], given: dict[str, Any], said: str
) -> None:
    told = need(**SMALL | given)
    told.check(ROOMY)
    with pytest.raises(amp.OverBudget) as error:
        told.check(replace(ROOMY, **free))
    text = str(error.value)
    assert said in text and text.startswith("Short of ") and text.endswith(".") and "\n" not in text


def test_exactly_enough_is_enough() -> None:
    told = need(**SMALL)
    enough = needs.Has("cpu", told.peak, told.disk, told.download)
    told.check(enough)
    for less in (replace(enough, memory=told.peak - 1), replace(enough, disk=told.disk - 1)):
        with pytest.raises(amp.OverBudget):
            told.check(less)


def test_this_machine_has_something_and_no_gpu_that_is_not_there(tmp_path: Path) -> None:
    found = amp.has(effective(out=str(tmp_path / "not" / "yet")))
    assert found.device == "cpu" and min(found.memory, found.disk, found.cache) > 0
    with pytest.raises(ValueError, match="device='cuda:99' is not there"):
        amp.has(effective() | dict(device="cuda:99"))


@pytest.mark.parametrize(
    "given, said",
    [
        (dict(dtype="int8"), "Unknown dtype 'int8'"),
        (dict(criterion="best"), "Unknown criterion 'best'"),
        (dict(model="nobody/nothing"), "neither cached nor reachable"),
        (dict(model="/no/such/folder"), "Unknown model"),
        (dict(ratio=1.5), "1.5"),
    ],
)
def test_what_cannot_be_is_refused_with_one_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        need(**given)


def test_the_models_own_configuration_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id that is cached, played by what `configuration` gives; a difference to the stored copy is said."""
    name = "microsoft/phi-1_5"
    stored, said = needs.configuration_of(name)
    assert "data/configs" in said[0]
    monkeypatch.setattr(needs, "configuration", lambda *_: stored)
    assert needs.configuration_of(name) == (stored, [])
    other = type(stored)(**stored.to_dict() | {"vocab_size": 50_000})
    monkeypatch.setattr(needs, "configuration", lambda *_: other)
    found, said = needs.configuration_of(name)
    assert found is other and len(said) == 1 and "1,418,270,720" in said[0]


def test_the_table_names_everything() -> None:
    text = str(need(**SMALL))
    for word in ("tiny-llama", "weights", "peak, recover", "disk", "download", "time, roughly", "float32"):
        assert word in text
