"""What `amp.check` and `amp.estimate` say beforehand is what happens; and what is saved loads where users will."""

import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    EVERY_FAMILY,
    KNOWN,
    TEXT,
    VOCABULARY,
    WITH_HEADS,
    Shape,
    byte_tokenizer,
    equal,
    every,
    grid,
    logits,
    prompts,
    some_plan,
    tiny,
    weights,
)
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel, pipeline

import amp_tutorial as amp
from amp_tutorial.course import run
from amp_tutorial.files import NOTEBOOKS
from amp_tutorial.measure.check import Preview, matmul_speed


def cut(model: PreTrainedModel) -> PreTrainedModel:
    return amp.prune(model, some_plan(model, heads=3, neurons=9)).model


def answer(found: Preview, where: str) -> str:
    (one,) = [loads for loads in found.loads if loads.where == where]
    return one.answer


def reason(found: Preview, where: str) -> str:
    (one,) = [loads for loads in found.loads if loads.where == where]
    return one.reason


# What is said is what happens


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_what_is_said_before_is_so_after(shape: Shape, tmp_path: Path) -> None:
    dense = tiny(shape)
    plan = some_plan(dense, heads=2, neurons=8)
    found = amp.preview(dense, plan)
    small = amp.prune(dense, plan).model
    before, after = amp.size(dense), amp.size(small)
    assert found.possible
    assert found.parameters == (before.parameters, after.parameters)
    assert found.ratio == pytest.approx(plan.achieved)
    assert found.kv_cache_per_token == (before.kv_cache_bytes_per_token, after.kv_cache_bytes_per_token)
    assert found.model_types == (shape.family, small.config.model_type)
    assert found.architecture == type(small).__name__
    a, b = amp.Anatomy.of(dense), amp.Anatomy.of(small)
    assert (found.layers, found.heads) == ((a.layers, b.layers), (a.heads, b.heads))
    assert (found.groups, found.neurons) == ((a.groups, b.groups), (a.neurons, b.neurons))
    assert answer(found, "transformers 5") == "yes"
    loaded, report = AutoModelForCausalLM.from_pretrained(
        amp.save(small, None, tmp_path / "saved"), output_loading_info=True
    )
    assert not any(report.values()) and equal(weights(loaded), weights(small))
    assert found.architecture in str(found) and f"{before.parameters:,} → {after.parameters:,}" in str(found)


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_shapes_are_enough(shape: Shape) -> None:
    """A model on the meta device has no weights to look at."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny(shape).config)
    dense = tiny(shape)
    assert amp.preview(model, some_plan(model, heads=2, neurons=8)) == amp.preview(
        dense, some_plan(dense, heads=2, neurons=8)
    )


def test_a_llama_that_becomes_a_mistral_is_told_why() -> None:
    model = tiny(Shape(groups=4, hidden=32))
    found = amp.preview(model, some_plan(model, heads=3, neurons=9))
    assert found.model_types == ("llama", "mistral") and found.architecture == "MistralForCausalLM"
    assert "divide the hidden size 32; mistral with sliding_window=None computes the same" in str(found)
    found = amp.preview(model, some_plan(model, heads=2, neurons=9))
    assert found.model_types == ("llama", "llama") and found.why == "as the source"


@pytest.mark.parametrize(
    ("shape", "settings", "kept", "counts", "why"),
    [
        (Shape("gemma2", groups=6, hidden=36), {}, [0, 1, 2, 3, 5], [1, 2, 3, 4, 6], "divide the hidden size 36"),
        (Shape("gemma2", groups=3, group_size=2, hidden=36), {}, [0, 1, 2, 3, 4], [2, 4, 6], "divide the hidden size"),
        (Shape("llama", groups=6, hidden=36, bias=True), {}, [0, 1, 2, 3, 5], [1, 2, 3, 4, 6], "no architecture that"),
        (Shape("gpt2", groups=4), {}, [0, 1, 3], [4], "a head always has hidden_size / num_attention_heads"),
        (Shape("phi", groups=4), dict(qk_layernorm=True), [0, 1, 3], [4], "with qk_layernorm its head_dim is always"),
    ],
    ids=["gemma2", "gemma2 in groups", "llama with biases", "gpt2", "phi with norms"],
)
def test_heads_that_cannot_be_said(shape: Shape, settings: dict, kept: list[int], counts: list[int], why: str) -> None:
    model = tiny(shape, **settings)
    whole = some_plan(model, heads=None, neurons=9)
    found = amp.preview(model, replace(whole, heads=[kept] * shape.layers))
    assert not found.possible and found.head_counts == counts and not found.loads
    assert why in found.why and f"Keep {', '.join(map(str, counts))} heads" in str(found)
    for heads in counts:  # what is called possible is
        assert amp.preview(model, some_plan(model, heads=heads, neurons=9, nearest=False)).possible


def test_heads_of_every_group_are_counted_in_their_own_units() -> None:
    model = tiny(Shape("gemma2", groups=2, group_size=3, hidden=36))
    found = amp.preview(model, some_plan(model, heads=4, neurons=9, unit="queries"))
    assert found.groups == (2, 2) and found.heads == (6, 4) and found.head_counts == [2, 4, 6]


# Who loads it. Each rule was read in the source named beside it; llama.cpp and transformers 4 were run as well.


@pytest.mark.parametrize("shape", every(WITH_HEADS), ids=WITH_HEADS)
def test_readers_that_guess_the_size_of_a_head(shape: Shape) -> None:
    dense = tiny(replace(shape, head_dim=8))  # 4 · 8 is the hidden size
    guess = {
        "vLLM": {"qwen2"},
        "llama.cpp": {"phi", "phi3", "qwen2", "olmo2", "granite", "starcoder2", "cohere"},
        "transformers 4": set(),
    }
    heads = amp.preview(dense, some_plan(dense, heads=2, neurons=None))
    nothing = amp.preview(dense, some_plan(dense, heads=4, neurons=24))
    known = [] if None in amp.FAMILIES[shape.family].programs else list(guess.items())
    for where, families in known:
        assert answer(heads, where) == ("no" if shape.family in families else "yes")
        if shape.family != "phi" or where != "llama.cpp":
            assert answer(nothing, where) == "yes"
    if shape.family == "qwen2":
        assert "keep all heads" in reason(heads, "vLLM")


@pytest.mark.parametrize(("family", "where"), [("phi", "llama.cpp"), ("gpt2", "llama.cpp"), ("falcon", "vLLM")])
def test_readers_that_guess_the_number_of_neurons(family: str, where: str) -> None:
    dense = tiny(Shape(family, neurons=4 * 32))
    assert answer(amp.preview(dense, some_plan(dense, heads=None, neurons=100)), where) == "no"
    assert answer(amp.preview(dense, some_plan(dense, heads=None, neurons=128)), where) == "yes"


def test_readers_that_guess_the_scale_of_attention() -> None:
    dense = tiny(Shape("gemma2"), query_pre_attn_scalar=8)
    assert answer(amp.preview(dense, some_plan(dense, heads=2, neurons=9)), "llama.cpp") == "yes"
    dense = tiny(Shape("gemma2"), query_pre_attn_scalar=9)
    assert answer(amp.preview(dense, some_plan(dense, heads=2, neurons=9)), "llama.cpp") == "no"
    assert answer(amp.preview(dense, some_plan(dense, heads=2, neurons=9)), "vLLM") == "yes"


def test_a_family_that_nobody_looked_up_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(amp.FAMILIES, "helium", amp.Family())
    config = AutoConfig.for_model(
        "helium", vocab_size=99, hidden_size=32, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, head_dim=8, pad_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    found = amp.preview(model, some_plan(model, heads=2, neurons=9))
    assert [loads.answer for loads in found.loads] == ["yes", "unknown", "unknown", "unknown"]
    model = tiny(Shape("opt"))
    assert answer(amp.preview(model, some_plan(model, heads=None, neurons=9)), "llama.cpp") == "no"


def test_tensor_parallel_sizes_and_block_types() -> None:
    model = tiny(Shape(groups=4, group_size=4, head_dim=16, hidden=256, neurons=768, layers=1))
    found = amp.preview(model, some_plan(model, heads=8, neurons=512))  # 2 groups
    assert reason(found, "vLLM").endswith("neurons: 1, 2, 4, 8")
    assert "some tensors fall back" in reason(found, "llama.cpp")  # 128 is 4 blocks of 32, and half a block of 256
    found = amp.preview(model, some_plan(model, heads=12, neurons=510))  # 3 groups
    assert reason(found, "vLLM").endswith("neurons: 1, 3, 6")
    assert "some tensors stay F16" in reason(found, "llama.cpp")
    found = amp.preview(model, some_plan(model, heads=None, neurons=256))
    assert reason(found, "llama.cpp").endswith("every quantised type")


# What it costs


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_estimate_is_exact_where_it_can_be(shape: Shape, dtype: str, tmp_path: Path) -> None:
    model = tiny(replace(shape, dtype=dtype, neurons=32))
    expected = amp.size(model) if dtype == "float32" else None
    folder = amp.save(model, None, tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors").rename(tmp_path / "weights")  # none are read
    found = amp.estimate(folder)
    assert found.parameters == model.num_parameters()
    assert found.weights == sum(p.nbytes for p in model.parameters()) == found.disk
    assert 0 < (tmp_path / "weights").stat().st_size - found.disk < 20_000  # the header
    if expected:
        assert found.kv_cache_per_token == expected.kv_cache_bytes_per_token
    assert amp.estimate(model.config, batch=16).score_peak > found.score_peak > found.weights


def test_the_estimate_of_llama_2_7b() -> None:
    found = amp.estimate(LlamaConfig(dtype="float16"))
    assert found.parameters == 6_738_415_616
    assert found.weights == 2 * 6_738_415_616 and found.kv_cache_per_token == 2 * 32 * 4096 * 2
    assert amp.estimate(LlamaConfig(), dtype=torch.float32).weights == 2 * found.weights
    assert found.macs_per_token == pytest.approx(6.48e9, rel=0.01)  # 6.61e9 with an output head, which scoring skips
    assert found.seconds(1000, 2e12) == pytest.approx(6.48, rel=0.01)
    assert "12.55 GiB of weights" in str(found)


def test_the_estimate_of_embedded_models_by_name() -> None:
    for name in amp.EMBEDDED:
        assert amp.estimate(name).parameters == amp.load(name, device="cpu")[0].num_parameters()


def test_work_is_what_torch_counts() -> None:
    model = tiny(Shape(layers=2, hidden=64, groups=8, neurons=96))
    head = model.get_output_embeddings().weight.numel()
    counted = amp.size(model, length=64).macs_per_token - head  # all of each row of attention, masked or not
    halved = 2 * 64 * 64  # layers · length · features: what a causal kernel leaves out
    assert amp.estimate(model.config, length=64).macs_per_token == pytest.approx(counted - halved)


class Live(TorchDispatchMode):
    """The most bytes of tensors alive at once, of those that were made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.holders: Counter[int] = Counter()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                place = storage.data_ptr()
                if place in self.holders or place not in given:  # weights are given, never made
                    self.hold(place, storage.nbytes())
                    weakref.finalize(tensor, self.drop, place, storage.nbytes())
        return made

    def hold(self, place: int, size: int) -> None:
        self.now += 0 if self.holders[place] else size
        self.holders[place] += 1
        self.peak = max(self.peak, self.now)

    def drop(self, place: int, size: int) -> None:
        self.holders[place] -= 1
        if not self.holders[place]:
            del self.holders[place]
            self.now -= size


@pytest.mark.parametrize("family", ["llama", "phi", "gemma", "qwen3", "gpt2"])
@pytest.mark.parametrize("neurons", [128, 1024])
def test_the_peak_of_scoring_is_about_as_estimated(family: str, neurons: int) -> None:
    model = tiny(Shape(family, hidden=256, groups=8, head_dim=32, neurons=neurons))
    ids = torch.zeros(32, 256, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, -9:] = 0  # padding is left out of the sums, by a copy
    with Live() as live:
        amp.score(model, [dict(input_ids=ids, attention_mask=mask)])
    found = amp.estimate(model.config, batch=32, length=256)
    assert 1 / 1.5 < live.peak / (found.score_peak - found.weights) < 1.5


def test_a_matrix_product_has_a_speed() -> None:
    assert 1e6 < matmul_speed(size=64, repeats=1) < 1e16


# Where users will load it


@pytest.mark.parametrize("shape", [Shape(), Shape("phi"), Shape("gpt2")], ids=lambda shape: shape.family)
def test_a_pipeline_of_transformers_generates_with_it(shape: Shape, tmp_path: Path) -> None:
    small, tokenizer = cut(tiny(shape)), byte_tokenizer()
    folder = amp.save(small, tokenizer, tmp_path / "saved")
    generate = pipeline("text-generation", model=str(folder), device="cpu")
    settings = dict(max_new_tokens=6, do_sample=False, pad_token_id=2)
    (written,) = generate(TEXT, return_full_text=False, **settings)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    expected = small.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :]
    assert written["generated_text"] == tokenizer.decode(expected, skip_special_tokens=True)


class Logits(torch.nn.Module):
    """A forward pass as exporters want it: a tensor in, a tensor out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return found


IDS = torch.randint(3, VOCABULARY, (1, 9), generator=torch.Generator().manual_seed(0))
ANY_LENGTH = {"input_ids": {1: torch.export.Dim("length", min=2, max=64)}}
OTHER_LENGTHS = (IDS, IDS[:, :4], IDS.repeat(1, 3))
EXPORTED = [Shape(), Shape("phi"), Shape("gpt2")]


@pytest.mark.parametrize("shape", EXPORTED, ids=lambda shape: shape.family)
def test_torch_export_takes_it_at_any_length(shape: Shape) -> None:
    small = cut(tiny(shape))
    with torch.no_grad():
        program = torch.export.export(Logits(small).eval(), (IDS,), dynamic_shapes=ANY_LENGTH, strict=False)
        for rows in OTHER_LENGTHS:
            torch.testing.assert_close(program.module()(rows), logits(small, rows.tolist()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", EXPORTED, ids=lambda shape: shape.family)
def test_onnx_runtime_computes_the_same(shape: Shape, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")  # all three: pip install onnx onnxscript onnxruntime
    runtime = pytest.importorskip("onnxruntime")
    small = cut(tiny(shape))
    file = tmp_path / "model.onnx"
    torch.onnx.export(Logits(small).eval(), (IDS,), file, dynamo=True, dynamic_shapes=ANY_LENGTH, verbose=False)
    session = runtime.InferenceSession(file)
    for rows in OTHER_LENGTHS:
        (found,) = session.run(None, {"input_ids": rows.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), logits(small, rows.tolist()), atol=1e-4, rtol=1e-4)


# The page that goes the whole way


@pytest.mark.lessons
@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny-llama-gqa", *grid("tiny-phi")])
def test_the_page_prune_your_own_model_runs(model: str, tmp_path: Path) -> None:
    outcome = run.run_lesson(NOTEBOOKS / "B_your_own_model.ipynb", model, tmp_path, "smallest")
    assert outcome.status == "ok", f"{outcome.cell}: {outcome.error}"
    assert outcome.signature["value"] < outcome.signature["control"]["value"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "models" / f"{model}-pruned").num_parameters() > 0


# In the programs of others, which load a pruned folder by its path.

SHAPES = [Shape(groups=2, group_size=2), Shape("llama"), Shape("phi"), Shape("gpt2")]


@pytest.fixture(params=SHAPES, ids=["groups", "llama saved as mistral", "phi", "gpt2"])
def pruned(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PreTrainedModel, Path]:
    dense = tiny(request.param)
    small = amp.prune(dense, some_plan(dense, heads=3 if request.param.groups == 4 else 2, neurons=9)).model
    return small, amp.save(small, byte_tokenizer(), tmp_path / "pruned")


def test_lm_eval_scores_the_folder(pruned: tuple[PreTrainedModel, Path]) -> None:
    small, folder = pruned
    context, choice = "Anna has the", " red kite"
    harness = HFLM(pretrained=str(folder), device="cpu", batch_size=2, dtype="float32", add_bos_token=False)
    asked = Instance("loglikelihood", {}, (context, choice), 0)
    ((found, greedy),) = harness.loglikelihood([asked], disable_tqdm=True)
    start = len(byte_tokenizer()(context).input_ids)
    ids = torch.tensor(byte_tokenizer()(context + choice).input_ids)
    scores = logits(small, [ids.tolist()])[0].log_softmax(-1)[start - 1 : -1]
    assert found == pytest.approx(float(scores.gather(1, ids[start:, None]).sum()), rel=1e-4)
    assert greedy == torch.equal(scores.argmax(-1), ids[start:])


def test_peft_trains_saves_and_merges_an_adapter_on_the_folder(
    pruned: tuple[PreTrainedModel, Path], tmp_path: Path
) -> None:
    small, folder = pruned
    settings = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), settings)
    ids = torch.tensor(prompts((9,)))
    adapted(input_ids=ids, labels=ids).loss.backward()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and p.grad.any() for p in trained)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    wanted = logits(adapted.eval())
    assert not torch.allclose(wanted, logits(small), atol=1e-3)
    torch.testing.assert_close(logits(again.eval()), wanted)
    torch.testing.assert_close(logits(again.merge_and_unload()), wanted, atol=1e-4, rtol=1e-4)
