"""Pruning from the files: the same result as in memory, one layer at a time, and no failure leaves half a model.

So it is with layers that go, repair, slicing and ready-made plans: what the functions in memory do, bit for bit.
"""

import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.conversion_mapping
import transformers.modeling_utils
from helpers import EVERY_FAMILY, SLICED, TEXT, Shape, batch, byte_tokenizer, equal, grid, logits, prompts, tiny
from safetensors.torch import load_file, save_file
from test_checkpoint import killed, largest_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import amp_tutorial as amp
from amp_tutorial import FAMILIES
from amp_tutorial.core.surgery import tied
from amp_tutorial.methods import repair as refit
from amp_tutorial.methods.depth_and_width import planned
from amp_tutorial.methods.repair_layer import Refits
from amp_tutorial.scale import prune_folder as streaming
from amp_tutorial.scale.checkpoint_on_disk import Folder, load_into

BATCHES = [batch(prompts()), batch(prompts((5, 3, 8), seed=1), left=True), batch(prompts((12,), seed=2))]
GROUPED = Shape(layers=3, groups=4, group_size=2, head_dim=8, hidden=64)


def checkpoint(folder: Path, shape: Shape = GROUPED, shards: str = "5GB", **settings: Any) -> Path:
    model = tiny(shape, **settings)
    model.save_pretrained(folder, max_shard_size=shards)
    byte_tokenizer().save_pretrained(folder)
    return folder


def stored(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def others(folder: Path) -> dict[str, bytes]:
    """All files without weights."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if ".safetensors" not in path.name}


def in_memory(source: Path, target: Path, criterion: str = "amp", **widths: Any) -> amp.Plan:
    model, tokenizer = amp.load(source, device="cpu")
    plan = planned(model, amp.score(model, BATCHES, criterion), **widths)
    amp.save(amp.prune(model, plan).model, tokenizer, target)
    return plan


def assert_same(tmp_path: Path, source: Path, **arguments: Any) -> None:
    """Plan, tensors, configuration, tokenizer files and the logits after loading, bit for bit."""
    plan = in_memory(source, tmp_path / "memory", **arguments)
    found = amp.prune_folder(source, tmp_path / "streamed", batches=BATCHES, progress=False, **arguments)
    assert found.plan == plan and found.folder == tmp_path / "streamed"
    assert equal(stored(tmp_path / "streamed"), stored(tmp_path / "memory"))
    assert others(tmp_path / "streamed") == others(tmp_path / "memory")
    small, _ = amp.load(tmp_path / "streamed", device="cpu")
    assert torch.equal(logits(small), logits(amp.load(tmp_path / "memory", device="cpu")[0]))


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=lambda shape: shape.family)
def test_the_same_as_in_memory(shape: Shape, tmp_path: Path) -> None:
    row = FAMILIES[shape.family]
    widths = dict(heads=None if row.no_heads else 2, neurons=None if row.no_neurons else 13)
    assert_same(tmp_path, checkpoint(tmp_path / "dense", shape), **widths)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "mixtral"])
def test_in_bf16_with_tied_embeddings_and_in_many_files(family: str, tmp_path: Path) -> None:
    shape = Shape(family, layers=4, hidden=32, tied=True)
    source = checkpoint(tmp_path / "dense", shape, shards="20KB")
    for path in source.glob("*.safetensors"):
        save_file({k: v.bfloat16() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    assert len(list(source.glob("*.safetensors"))) > 2
    widths = dict(neurons=13) if FAMILIES[family].no_heads else dict(heads=2)
    assert_same(tmp_path, source, **widths)
    assert {tensor.dtype for tensor in stored(tmp_path / "streamed").values()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", ["bfloat16", None])
def test_the_dtype_is_the_configurations_or_else_the_files(dtype: str | None, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense")
    save_file({k: v.half() for k, v in stored(source).items()}, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
    assert_same(tmp_path, source, pruning_ratio=0.2)


def test_names_without_the_prefix_of_the_base_model(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense", Shape("gpt2", tied=True))  # GPT-2's own checkpoint is stored so
    named = {name.removeprefix("transformer."): tensor for name, tensor in stored(source).items()}
    save_file(named, source / "model.safetensors", metadata={"format": "pt"})
    assert "h.0.attn.c_attn.weight" in stored(source)
    assert_same(tmp_path, source, neurons=13)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("same", [True, False], ids=["equal", "different"])
def test_two_matrices_where_the_configuration_ties_one(family: str, same: bool, tmp_path: Path) -> None:
    """transformers never ties different ones, and equal ones in its newer versions: so do both ways, and say so."""
    model = tiny(Shape(family, tied=False))
    if same:
        model.get_output_embeddings().weight.data.copy_(model.get_input_embeddings().weight)
    model.save_pretrained(tmp_path / "dense")
    byte_tokenizer().save_pretrained(tmp_path / "dense")
    configured(tie_word_embeddings=True)(tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert torch.equal(logits(dense), logits(model))
    assert same or not tied(dense)
    assert_same(tmp_path, tmp_path / "dense", neurons=13)
    assert json.loads((tmp_path / "streamed" / "config.json").read_text())["tie_word_embeddings"] is tied(dense)
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "streamed")
    assert tied(small) is tied(dense)
    assert small.num_parameters() < model.num_parameters()


def test_an_equal_architecture_where_the_own_one_refuses_the_heads(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense", Shape(groups=4, hidden=32), generation={"top_k": 7})
    (source / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_k": 7}))
    assert_same(tmp_path, source, heads=3)
    assert json.loads((tmp_path / "streamed" / "config.json").read_text())["model_type"] == "mistral"
    assert json.loads((tmp_path / "streamed" / "generation_config.json").read_text())["top_k"] == 7


@pytest.mark.parametrize("criterion", [name for name, c in amp.CRITERIA.items() if c.collect is None])
@pytest.mark.parametrize("average", ["tokens", "prompts"])
def test_scores_are_those_of_score(criterion: str, average: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense")
    expected = amp.score(amp.load(source, device="cpu")[0], BATCHES, criterion, average, seed=3)
    found = streaming.score_folder(Folder(source), BATCHES, criterion, average, 3, progress=False)
    assert_scores(found, expected)


def test_gradients_need_the_whole_model(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense")
    with pytest.raises(ValueError, match="Scores by 'taylor' need gradients of the whole model; score in memory"):
        amp.prune_folder(source, tmp_path / "small", 0.2, batches=BATCHES, criterion="taylor", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def assert_scores(found: amp.Scores, expected: amp.Scores) -> None:
    for part in ("heads", "neurons"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(found, part), getattr(expected, part), strict=True))
    assert replace(found, heads=[], neurons=[]) == replace(expected, heads=[], neurons=[])
    assert bool(expected.model_hash) == (expected.criterion != "random")


@pytest.mark.parametrize("family", ["mixtral", "gpt2", "gemma3_text"])
def test_scores_say_which_model_they_are_of(family: str, tmp_path: Path) -> None:
    """Experts that are stored one by one, a matrix stored the other way round, and a tied weight hash alike too."""
    source = checkpoint(tmp_path / "dense", Shape(family, tied=family != "mixtral"), shards="20KB")
    model, _ = amp.load(source, device="cpu")
    found = streaming.score_folder(Folder(source), BATCHES, "amp", "tokens", 0, progress=False)
    assert_scores(found, amp.score(model, BATCHES))
    assert found.made_for(model) and not found.made_for(tiny(seed=1))


def test_one_layer_at_a_time_and_none_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(checkpoint(tmp_path / "dense"))
    layers = list(folder.model.get_submodule("model.layers").children())
    seen: list[list[int]] = []

    def spy(*args: Any) -> amp.Scores:
        seen.append([i for i, layer in enumerate(layers) if not any(p.is_meta for p in layer.parameters())])
        assert all(p.is_meta for i, layer in enumerate(layers) if i not in seen[-1] for p in layer.parameters())
        return amp.score(*args)

    monkeypatch.setattr(streaming, "score", spy)
    streaming.score_folder(folder, BATCHES, "amp", "tokens", 0, progress=False)
    assert seen == [[0], [1], [2]]
    assert all(p.is_meta for p in folder.model.parameters())
    assert not any("forward" in vars(layer) for layer in layers)


def test_text_instead_of_batches_and_a_bar_over_layers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = checkpoint(tmp_path / "dense")
    given = amp.calibration(byte_tokenizer(), [TEXT, TEXT[::-1]], seed=1)
    by_batches = amp.prune_folder(source, tmp_path / "a", 0.2, batches=given, progress=False).plan
    assert "layer" not in capfd.readouterr().err
    assert amp.prune_folder(source, tmp_path / "b", 0.2, text=[TEXT, TEXT[::-1]], seed=1).plan == by_batches
    bars = capfd.readouterr().err
    assert "3/3" in bars and "4/4" in bars and "Loading" not in bars


def test_the_index_names_every_tensor_and_its_file(tmp_path: Path) -> None:
    amp.prune_folder(checkpoint(tmp_path / "dense"), tmp_path / "small", 0.2, criterion="magnitude", progress=False)
    index = json.loads((tmp_path / "small" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored(tmp_path / "small").values())
    for path in (tmp_path / "small").glob("*.safetensors"):
        assert {name for name, file in index["weight_map"].items() if file == path.name} == set(load_file(path))
    assert len(set(index["weight_map"].values())) == 4  # three layers and the rest


def failing(after: int, error: BaseException) -> Callable[..., None]:
    """A `save_file` that works so many times only."""
    calls = iter(range(1000))
    whole = transformers.modeling_utils.safe_save_file

    def write(*args: Any, **kwargs: Any) -> None:
        if next(calls) >= after:
            raise error
        whole(*args, **kwargs)

    return write


@pytest.mark.parametrize("after", [0, 2, 3])
def test_a_full_disk_leaves_the_source_and_nothing_else(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint(tmp_path / "dense")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    monkeypatch.setattr(transformers.modeling_utils, "safe_save_file", failing(after, OSError("No space left")))
    with pytest.raises(OSError, match="Could not write .*small: No space left; the partial output is removed"):
        amp.prune_folder(source, tmp_path / "small", 0.2, batches=BATCHES, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


@pytest.mark.parametrize("after", [1, 3])
def test_killed_half_way_it_starts_again(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint(tmp_path / "dense")
    with monkeypatch.context() as killed:
        killed.setattr(transformers.modeling_utils, "safe_save_file", failing(after, KeyboardInterrupt()))
        killed.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # a killed process cleans nothing up
        with pytest.raises(KeyboardInterrupt):
            amp.prune_folder(source, tmp_path / "streamed", pruning_ratio=0.2, batches=BATCHES, progress=False)
    left = tmp_path / ".streamed.part"
    assert left.is_dir() and not (left / "config.json").exists() and not (tmp_path / "streamed").exists()
    with pytest.raises(ValueError, match="without config.json"):
        amp.load(left)
    assert_same(tmp_path, source, pruning_ratio=0.2)
    assert not left.exists()


KILLED = """
import os, signal, sys
import transformers.modeling_utils
import amp_tutorial as amp
from test_streaming import BATCHES

source, target, after = sys.argv[1:]
whole, calls = transformers.modeling_utils.safe_save_file, iter(range(1000))
def write(*args, **options):
    whole(*args, **options)
    if next(calls) >= int(after):
        os.kill(os.getpid(), signal.SIGKILL)
transformers.modeling_utils.safe_save_file = write
amp.prune_folder(source, target, pruning_ratio=0.2, batches=BATCHES, progress=False)
"""


@pytest.mark.parametrize("after", [0, 3], ids=["first layer", "embeddings"])
def test_a_process_killed_half_way_does_no_harm(after: int, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    killed(KILLED, source, tmp_path / "streamed", after)
    assert not (tmp_path / "streamed").exists()
    left = {path.parent for path in (tmp_path / ".streamed.part").rglob("*.safetensors")}
    assert left
    for folder in left:
        with pytest.raises(ValueError):
            amp.load(folder, device="cpu")
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    assert_same(tmp_path, source, pruning_ratio=0.2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "memory", "streamed"]


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense")
    with largest_file(20_000), pytest.raises(OSError, match="Could not write .*small: .*File too large") as caught:
        amp.prune_folder(source, tmp_path / "small", 0.2, batches=BATCHES, progress=False)
    assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_two_at_once_to_the_same_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, refusals = checkpoint(tmp_path / "dense"), []
    whole = transformers.modeling_utils.safe_save_file

    def write(*args: Any, **kwargs: Any) -> None:
        for second in (
            lambda: amp.prune_folder(source, tmp_path / "streamed", 0.3, batches=BATCHES, progress=False),
            lambda: amp.save(tiny(), None, tmp_path / "streamed", overwrite=True),
        ):
            with pytest.raises(ValueError, match="streamed is being written by another process; wait"):
                second()
            refusals.append(second)
        whole(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(transformers.modeling_utils, "safe_save_file", write)
        amp.prune_folder(source, tmp_path / "streamed", 0.2, batches=BATCHES, progress=False)
    assert len(refusals) == 2 * 4  # for every part
    in_memory(source, tmp_path / "memory", pruning_ratio=0.2)
    assert equal(stored(tmp_path / "streamed"), stored(tmp_path / "memory"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "memory", "streamed"]


def test_a_target_inside_the_source_or_around_it(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "models" / "dense")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    for target in (source, source.parent):
        with pytest.raises(ValueError, match="is or holds the folder this model was loaded from"):
            amp.prune_folder(source, target, 0.2, batches=BATCHES, overwrite=True, progress=False)
    amp.prune_folder(source, source / "small", 0.2, batches=BATCHES, progress=False)
    assert amp.load(source / "small", device="cpu")[0].num_parameters() < amp.load(source)[0].num_parameters()
    shutil.rmtree(source / "small")
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_a_target_that_is_a_link(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense")
    (tmp_path / "disk").mkdir()
    for name, place in (("streamed", "disk"), ("new", "disk/new"), ("back", "dense")):
        (tmp_path / name).symlink_to(tmp_path / place)
    with pytest.raises(ValueError, match="back is or holds the folder"):
        amp.prune_folder(source, tmp_path / "back", 0.2, batches=BATCHES, overwrite=True, progress=False)
    assert_same(tmp_path, source, pruning_ratio=0.2)  # to an empty folder
    assert (tmp_path / "streamed").is_symlink() and (tmp_path / "disk" / "config.json").is_file()
    amp.prune_folder(source, tmp_path / "new", 0.2, batches=BATCHES, progress=False)  # to nothing yet
    assert (tmp_path / "new").is_symlink() and (tmp_path / "disk" / "new" / "config.json").is_file()


def test_what_is_there_is_replaced_only_on_demand(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense")
    (tmp_path / "streamed").mkdir()
    (tmp_path / "streamed" / "vocab.json").touch()
    with pytest.raises(ValueError, match="streamed is not empty; choose another folder or say overwrite=True"):
        amp.prune_folder(source, tmp_path / "streamed", 0.2, batches=BATCHES)
    (tmp_path / "streamed" / "notes.txt").touch()
    with pytest.raises(ValueError, match="streamed holds more than what is replaced: notes.txt; move that away"):
        amp.prune_folder(source, tmp_path / "streamed", 0.2, batches=BATCHES, overwrite=True)
    (tmp_path / "streamed" / "notes.txt").unlink()
    amp.prune_folder(source, tmp_path / "streamed", 0.2, batches=BATCHES, overwrite=True, progress=False)
    assert not (tmp_path / "streamed" / "vocab.json").exists() and (tmp_path / "streamed" / "config.json").is_file()


def test_what_is_private_in_transformers_is_there() -> None:
    """If this fails, transformers has changed how it loads weights: mend `load_into`, the only place that knows."""
    model, weights = tiny(), dict(tiny(seed=1).state_dict())
    given = {name: weights[name] for name in weights if ".layers.1." in name}
    load_into(model, given)
    expected = tiny().state_dict() | given
    assert equal(dict(model.state_dict()), expected)


def test_a_transformers_without_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint(tmp_path / "dense")
    mapping = importlib.import_module("transformers.conversion_mapping")
    monkeypatch.delattr(mapping, "get_model_conversion_mapping")
    with pytest.raises(ValueError, match=r"transformers 5\..* no longer loads single layers.*prune in memory"):
        amp.prune_folder(source, tmp_path / "small", 0.2, batches=BATCHES, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_an_empty_target_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "streamed").mkdir()
    assert_same(tmp_path, checkpoint(tmp_path / "dense"), pruning_ratio=0.2)


def drop(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


def pickled(folder: Path) -> None:
    drop(folder, "*.safetensors*")
    (folder / "pytorch_model.bin").touch()


def configured(**settings: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | settings))

    return change


def one_less(folder: Path) -> None:
    path = max(folder.glob("*.safetensors"))
    tensors = load_file(path)
    tensors.popitem()
    save_file(tensors, path, metadata={"format": "pt"})


def cut_short(folder: Path) -> None:
    path = max(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: drop(folder, "config.json"), "without config.json"),
        (lambda folder: drop(folder, "*.safetensors*"), "neither model.safetensors nor model.safetensors.index.json"),
        (pickled, r"only as pickles.*convert once with AutoModelForCausalLM.*save_pretrained"),
        (lambda folder: max(folder.glob("*.safetensors")).unlink(), r"of-\d+.safetensors is missing \(1 of"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), "can't be read as JSON .*; fetch"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), "has no weight_map"),
        (cut_short, "Could not load"),
        (one_less, "do not match its configuration: 1 missing keys, such as"),
        (configured(intermediate_size=25), "do not match its configuration; compare their shapes"),
        (configured(num_hidden_layers=2), "unexpected keys, such as model.layers.2"),
        (configured(quantization_config={"quant_method": "gptq", "bits": 4}), r"quantised \(gptq\)"),
        (configured(model_type="t5"), "encoder-decoder"),
        (configured(model_type="nonesuch"), "Could not load"),
        (lambda folder: drop(folder, "tokenizer*"), "no tokenizer to read the text with; give batches"),
    ],
)
def test_a_bad_source(damage: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense", shards="40KB")
    damage(source)
    with pytest.raises(ValueError, match=sentence) as caught:
        amp.prune_folder(source, tmp_path / "small", 0.2, text=[TEXT, TEXT], progress=False)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(pruning_ratio=2.0), "between 0 and 1"),
        (dict(), "either pruning_ratio="),
        (dict(heads=3), "keep a multiple of 2"),
        (dict(pruning_ratio=0.2, criterion="nonesuch"), "Unknown criterion"),
        (dict(pruning_ratio=0.2, average="nonesuch"), "Unknown average"),
        (dict(pruning_ratio=0.2, batches=[]), "hold no tokens"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(
    arguments: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint(tmp_path / "dense")

    def run(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a layer was run")

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaDecoderLayer.forward", run)
    with pytest.raises(ValueError, match=sentence):
        amp.prune_folder(source, tmp_path / "small", **{"batches": BATCHES} | arguments, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_a_bad_target_or_no_folder(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense")
    with pytest.raises(ValueError, match="is or holds the folder this model was loaded from"):
        amp.prune_folder(source, tmp_path / "x" / ".." / "dense", 0.2)
    with pytest.raises(ValueError, match="is not empty"):
        amp.prune_folder(source, checkpoint(tmp_path / "other"), 0.2)
    with pytest.raises(ValueError, match="config.json is a file, and a folder is needed"):
        amp.prune_folder(source, source / "config.json", 0.2)
    with pytest.raises(ValueError, match=r"not a local folder\. Fetch it first: hf download owner/model"):
        amp.prune_folder("owner/model", tmp_path / "small", 0.2)
    with pytest.raises(ValueError, match="Unknown model"):
        amp.prune_folder("nonesuch", tmp_path / "small", 0.2)


FIVE_BATCHES = [batch(prompts((9, 4, 7, 12, 6), seed), left=seed % 2 == 1) for seed in range(5)]
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


def assert_same_as(tmp_path: Path, source: Path, small: PreTrainedModel, target: str = "streamed") -> None:
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
    return amp.prune_folder(source, target, batches=FIVE_BATCHES, progress=False, **arguments).plan


@pytest.mark.parametrize("layers", [[0, 2], *grid([1], [0, 1, 2])], ids=str)
@pytest.mark.parametrize("shape", SEVERAL, ids=lambda shape: shape.family)
def test_layers_that_go_and_those_that_stay_numbered_anew(shape: Shape, layers: list[int], tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense", Shape(**{**vars(shape), "layers": 3}))
    model = dense(source)
    plan = planned(model, amp.score(model, FIVE_BATCHES), layers=layers, **widths_of(shape))
    assert prune(source, tmp_path / "streamed", layers=layers, **widths_of(shape)) == plan
    assert_same_as(tmp_path, source, amp.prune(model, plan).model)
    assert dense(tmp_path / "streamed").config.num_hidden_layers == len(layers)
    assert len(list((tmp_path / "streamed").glob("*.safetensors"))) == len(layers) + 1


def test_a_ready_made_plan_is_carried_out_without_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint(tmp_path / "dense", GROUPED)
    model = dense(source)
    plan = planned(model, amp.score(model, [], "random", seed=5), pruning_ratio=0.4, layers=[1, 2])
    monkeypatch.setattr(streaming, "score_folder", None)
    assert amp.prune_folder(source, tmp_path / "streamed", plan=plan, progress=False).plan == plan
    assert_same_as(tmp_path, source, amp.prune(model, plan).model)


@pytest.mark.filterwarnings("ignore:Fewer calibration tokens")
@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=lambda shape: shape.family)
def test_repair_is_that_of_the_model_in_memory(shape: Shape, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense", shape, shards="20KB")
    model = dense(source)
    plan = planned(model, amp.score(model, FIVE_BATCHES), **widths_of(shape))
    found = amp.repair(model, plan, FIVE_BATCHES, reselect=True, refit_inputs=True, progress=False)
    options = dict(reselect=True, reads=True)
    assert prune(source, tmp_path / "streamed", repair=options, **widths_of(shape)) == found.plan
    assert_same_as(tmp_path, source, found.model)
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
    plan = planned(model, amp.score(model, FIVE_BATCHES), heads=2, neurons=13, layers=layers)
    small = amp.repair(model, plan, FIVE_BATCHES, progress=False, **({} if options is True else options)).model
    assert prune(source, tmp_path / "streamed", repair=options, plan=plan) == plan
    assert_same_as(tmp_path, source, small)


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
    turned = streaming.rotation_folder(Folder(source), FIVE_BATCHES, progress=False)
    assert_same_as(tmp_path, source, amp.slice_hidden(model, turned, 24).model)
    expected = amp.rotation(model, FIVE_BATCHES)
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
    wanted = planned(model, amp.score(model, FIVE_BATCHES), **widths)
    turned = streaming.rotation_folder(Folder(source), FIVE_BATCHES, progress=False)
    if options:
        monkeypatch.setattr(refit, "rotation", lambda *_: turned)  # it agrees but for rounding
        how = {} if options is True else options
        found = amp.repair(model, wanted, FIVE_BATCHES, hidden_size=24, progress=False, **how)
        assert plan == found.plan
        assert_same_as(tmp_path, source, found.model)
    else:
        assert plan == wanted
        assert_same_as(tmp_path, source, amp.slice_hidden(amp.prune(model, plan).model, turned, 24).model)


@pytest.mark.parametrize("remove", [0.15, 0.3])
def test_one_ranking_of_heads_and_neurons(remove: float, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense", GROUPED)
    model = dense(source)
    plan = planned(model, amp.score(model, FIVE_BATCHES, "flap"), pruning_ratio=remove, parts="scored")
    assert prune(source, tmp_path / "streamed", pruning_ratio=remove, parts="scored", criterion="flap") == plan
    assert_same_as(tmp_path, source, amp.prune(model, plan).model)


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
def test_bad_arguments_of_repair_layers_and_slicing_are_refused_before_any_work(
    arguments: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = Shape(arguments.pop("family", "llama"), layers=3, groups=4, group_size=2, hidden=64)
    source = checkpoint(tmp_path / "dense", Shape(**{**vars(shape), "bias": arguments.pop("bias", False)}))

    def run(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a layer was run")

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaDecoderLayer.forward", run)
    with pytest.raises(ValueError, match=sentence) as caught:
        amp.prune_folder(source, tmp_path / "small", **{"batches": FIVE_BATCHES} | arguments, progress=False)
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
