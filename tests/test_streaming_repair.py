"""Layers that go, repair, slicing and ready-made plans from the files: what the functions in memory do, bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import EVERY_FAMILY, SLICED, Shape, batch, grid, logits, prompts
from safetensors.torch import load_file, save_file
from test_streaming import GROUPED, checkpoint, equal, others, stored
from transformers import PreTrainedModel

import amp_tutorial as amp
from amp_tutorial import FAMILIES
from amp_tutorial.methods import repair as refit
from amp_tutorial.methods.depth_and_width import planned
from amp_tutorial.methods.repair_layer import Refits
from amp_tutorial.scale import prune_folder as streaming
from amp_tutorial.scale.checkpoint_on_disk import Folder

BATCHES = [batch(prompts((9, 4, 7, 12, 6), seed), left=seed % 2 == 1) for seed in range(5)]
SEVERAL = [
    Shape("llama", tied=True),
    Shape("phi", bias=True),
    Shape("phi3", groups=2, group_size=2),
    Shape("gpt2"),
    Shape("gemma3_text"),
    Shape("olmo2", groups=2, group_size=2),
    Shape("mixtral"),
    Shape("qwen3_moe"),
]


def widths_of(shape: Shape) -> dict[str, Any]:
    row = FAMILIES[shape.family]
    return dict(heads=None if row.no_heads else 2, neurons=None if row.no_neurons else 13)


def dense(source: Path) -> PreTrainedModel:
    return amp.load(source, device="cpu")[0]


def assert_same(tmp_path: Path, source: Path, small: PreTrainedModel, target: str = "streamed") -> None:
    """Tensors, configuration, tokenizer files and the logits after loading, bit for bit."""
    amp.save(small, amp.load(source, device="cpu")[1], tmp_path / "memory")
    assert equal(stored(tmp_path / target), stored(tmp_path / "memory"))
    assert others(tmp_path / target) == others(tmp_path / "memory")
    assert torch.equal(logits(dense(tmp_path / target)), logits(small))


def in_bf16(source: Path) -> Path:
    for path in source.glob("*.safetensors"):
        save_file({k: v.bfloat16() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    return source


def prune(source: Path, target: Path, **arguments: Any) -> amp.Plan:
    return amp.prune_folder(source, target, batches=BATCHES, progress=False, **arguments).plan


@pytest.mark.parametrize("layers", [[0, 2], *grid([1], [0, 1, 2])], ids=str)
@pytest.mark.parametrize("shape", SEVERAL, ids=lambda shape: shape.family)
def test_layers_that_go_and_those_that_stay_numbered_anew(shape: Shape, layers: list[int], tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense", Shape(**{**vars(shape), "layers": 3}))
    model = dense(source)
    plan = planned(model, amp.score(model, BATCHES), layers=layers, **widths_of(shape))
    assert prune(source, tmp_path / "streamed", layers=layers, **widths_of(shape)) == plan
    assert_same(tmp_path, source, amp.prune(model, plan).model)
    assert dense(tmp_path / "streamed").config.num_hidden_layers == len(layers)
    assert len(list((tmp_path / "streamed").glob("*.safetensors"))) == len(layers) + 1


def test_a_ready_made_plan_is_carried_out_without_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint(tmp_path / "dense", GROUPED)
    model = dense(source)
    plan = planned(model, amp.score(model, [], "random", seed=5), pruning_ratio=0.4, layers=[1, 2])
    monkeypatch.setattr(streaming, "score_folder", None)
    assert amp.prune_folder(source, tmp_path / "streamed", plan=plan, progress=False).plan == plan
    assert_same(tmp_path, source, amp.prune(model, plan).model)


@pytest.mark.filterwarnings("ignore:Fewer calibration tokens")
@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=lambda shape: shape.family)
def test_repair_is_that_of_the_model_in_memory(shape: Shape, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense", shape, shards="20KB")
    model = dense(source)
    plan = planned(model, amp.score(model, BATCHES), **widths_of(shape))
    found = amp.repair(model, plan, BATCHES, reselect=True, refit_inputs=True, progress=False)
    options = dict(reselect=True, reads=True)
    assert prune(source, tmp_path / "streamed", repair=options, **widths_of(shape)) == found.plan
    assert_same(tmp_path, source, found.model)
    assert not torch.equal(logits(found.model), logits(amp.prune(model, found.plan).model))


@pytest.mark.filterwarnings("ignore:Fewer calibration tokens")
@pytest.mark.parametrize("layers", [[0, 2], *grid(None, [1, 2])], ids=str)
@pytest.mark.parametrize("options", [True, dict(sequential=False), dict(ridge=0.1, reads=True)], ids=str)
@pytest.mark.parametrize("family", ["llama", "phi", "olmo2"])
def test_repair_of_a_tied_model_in_bf16_with_layers_that_go(
    family: str, options: Any, layers: list[int] | None, tmp_path: Path
) -> None:
    source = in_bf16(checkpoint(tmp_path / "dense", Shape(family, layers=3, bias=family == "phi", tied=True)))
    model = dense(source)
    plan = planned(model, amp.score(model, BATCHES), heads=2, neurons=13, layers=layers)
    small = amp.repair(model, plan, BATCHES, progress=False, **({} if options is True else options)).model
    assert prune(source, tmp_path / "streamed", repair=options, plan=plan) == plan
    assert_same(tmp_path, source, small)


@pytest.mark.filterwarnings("ignore:Fewer calibration tokens")
def test_repair_has_one_layer_at_a_time_and_leaves_none_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, list[int]]] = []
    whole = Refits.layer

    def spy(refits: Refits, i: int) -> Any:
        layers = refits.anatomy.model.get_submodule("model.layers")
        seen.append((i, [k for k, layer in enumerate(layers) if not any(p.is_meta for p in layer.parameters())]))
        return whole(refits, i)

    monkeypatch.setattr(Refits, "layer", spy)
    prune(checkpoint(tmp_path / "dense", GROUPED), tmp_path / "small", pruning_ratio=0.3, repair=True)
    assert seen == [(0, [0]), (1, [1]), (2, [2])]


@pytest.mark.filterwarnings("ignore:.* calibration tokens")
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", SLICED)
def test_the_hidden_size_is_sliced_as_in_memory(family: str, bf16: bool, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense", Shape(family, bias=True, tied=family != "mixtral"), shards="20KB")
    source, model = (in_bf16(source) if bf16 else source), dense(source)
    plan = prune(source, tmp_path / "streamed", hidden_size=24)
    assert (
        plan.achieved == 0.0
        and plan.kept_layers == [0, 1]
        and plan.widths == (4, 4, 0 if FAMILIES[family].no_neurons else 24)
    )
    turned = streaming.rotation_folder(Folder(source), BATCHES, progress=False)
    assert_same(tmp_path, source, amp.slice_hidden(model, turned, 24).model)
    expected = amp.rotation(model, BATCHES)
    torch.testing.assert_close(turned.energy, expected.energy)
    assert turned.tokens == expected.tokens and torch.equal(turned.probe, expected.probe)
    first = [found.vectors[:, :24] @ found.vectors[:, :24].T for found in (turned, expected)]
    torch.testing.assert_close(*first, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Fewer calibration tokens")
@pytest.mark.parametrize("options", [False, True, dict(refit_inputs=True, reselect=True, polish=2)], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma", "phi3", "mixtral"])
def test_layers_heads_neurons_and_the_hidden_size_in_one_go(
    family: str, options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint(tmp_path / "dense", Shape(family, layers=3, tied=family == "gemma"))
    model = dense(source)
    if family == "mixtral" and isinstance(options, dict):
        with pytest.raises(ValueError, match="cannot be polished: its MLP is a mixture of experts"):
            prune(source, tmp_path / "refused", hidden_size=24, repair=options, heads=2)
        assert not (tmp_path / "refused").exists()
        options = dict(options, polish=0)
    widths: dict[str, Any] = dict(heads=2, layers=[0, 2], **({} if family == "mixtral" else dict(neurons=13)))
    plan = prune(source, tmp_path / "streamed", hidden_size=24, repair=options, **widths)
    wanted = planned(model, amp.score(model, BATCHES), **widths)
    turned = streaming.rotation_folder(Folder(source), BATCHES, progress=False)
    if options:
        monkeypatch.setattr(refit, "rotation", lambda *_: turned)  # it agrees but for rounding
        how = {} if options is True else options
        found = amp.repair(model, wanted, BATCHES, hidden_size=24, progress=False, **how)
        assert plan == found.plan
        assert_same(tmp_path, source, found.model)
    else:
        assert plan == wanted
        assert_same(tmp_path, source, amp.slice_hidden(amp.prune(model, plan).model, turned, 24).model)


@pytest.mark.parametrize("remove", [0.15, 0.3])
def test_one_ranking_of_heads_and_neurons(remove: float, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense", GROUPED)
    model = dense(source)
    plan = planned(model, amp.score(model, BATCHES, "flap"), pruning_ratio=remove, parts="scored")
    assert prune(source, tmp_path / "streamed", pruning_ratio=remove, parts="scored", criterion="flap") == plan
    assert_same(tmp_path, source, amp.prune(model, plan).model)


PLAN = amp.Plan([[0, 1]] * 2, [[0]] * 2, 8, 24, 4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(pruning_ratio=0.2, parts="scored"), "Scores by 'amp' of a head and of a neuron are in different units"),
        (dict(pruning_ratio=2.0, parts="scored", criterion="flap"), "between 0 and 1"),
        (dict(plan=PLAN), "The plan is for .* plan anew"),
        (
            dict(plan=PLAN, pruning_ratio=0.2, neurons=3),
            "A ready-made plan says what stays; leave pruning_ratio, neurons out",
        ),
        (dict(layers=[0, 3]), r"layers=\[0, 3\] must name"),
        (dict(layers=[]), "must name at least one layer"),
        (dict(pruning_ratio=0.1, layers=[0]), "The layers that go are"),
        (
            dict(pruning_ratio=0.2, repair={"chose": True}),
            "names 'chose'; its options are polish, refit_inputs, reselect, ridge",
        ),
        (dict(pruning_ratio=0.2, repair=dict(refit_inputs=True, sequential=False)), "need sequential=True"),
        (dict(hidden_size=65), "from 1 to the hidden size, 64"),
        (dict(hidden_size=21, bias=True), "No stock llama runs with hidden_size=21"),
        (dict(hidden_size=24, batches=[]), "hold no tokens"),
        (dict(hidden_size=24, family="gpt2"), "The hidden size of a gpt2 cannot be sliced"),
        (dict(hidden_size=24, repair=True, criterion="nonesuch"), "Unknown criterion"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_arguments_are_refused_before_any_work(
    arguments: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = Shape(arguments.pop("family", "llama"), layers=3, groups=4, group_size=2, hidden=64)
    source = checkpoint(tmp_path / "dense", Shape(**{**vars(shape), "bias": arguments.pop("bias", False)}))

    def run(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a layer was run")

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaDecoderLayer.forward", run)
    with pytest.raises(ValueError, match=sentence) as caught:
        amp.prune_folder(source, tmp_path / "small", **{"batches": BATCHES} | arguments, progress=False)
    assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_no_tokens_for_repair_are_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense", GROUPED)
    plan = amp.plan(model := dense(source), amp.score(model, [], "random"), pruning_ratio=0.2)
    with pytest.raises(ValueError, match="hold no tokens: repair needs some text"):
        amp.prune_folder(source, tmp_path / "small", plan=plan, repair=True, batches=[], progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_too_little_text_for_repair_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Fewer calibration tokens than inputs of a projection .layer 0, heads: 9 tok"):
        amp.prune_folder(
            checkpoint(tmp_path / "dense", GROUPED),
            tmp_path / "small",
            0.2,
            batches=[batch([list(range(3, 12))])],
            repair=True,
            progress=False,
        )
