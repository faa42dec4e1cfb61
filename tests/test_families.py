"""What the package reads off a model: counts, modules, costs. And that shape annotations are executed."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from helpers import (
    COVERING,
    EVERY_FAMILY,
    KNOWN,
    OWN,
    WHOLE,
    WITH_HEADS,
    Shape,
    byte_tokenizer,
    covering,
    equal,
    every,
    families,
    logits,
    sayable,
    shapes,
    some_plan,
    tiny,
    traits,
    weights,
)
from hypothesis import given
from jaxtyping import TypeCheckError
from peft import LoraConfig, inject_adapter_in_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import amp_tutorial as amp
from amp_tutorial.core import families as rows
from amp_tutorial.core.criteria import projected_l1
from amp_tutorial.core.families import Family, family_of
from amp_tutorial.files.checkpoints import refused


def test_the_tests_know_every_family() -> None:
    assert set(KNOWN) == set(amp.FAMILIES) and len(WHOLE) >= 14 and len(WITH_HEADS) >= 16


def test_the_families_that_always_run_have_every_trait_and_a_new_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    said = set[tuple[str, object]]().union(*map(traits, amp.FAMILIES.values()))
    assert set[tuple[str, object]]().union(*(traits(amp.FAMILIES[name]) for name in COVERING)) == said
    assert COVERING == covering() and len(set(COVERING)) == len(COVERING) < 0.6 * len(KNOWN)
    monkeypatch.setitem(amp.FAMILIES, "plain", amp.Family())
    assert covering() == COVERING
    monkeypatch.setitem(amp.FAMILIES, "new", amp.Family(norms=(("a", "query"), ("b", "query"), ("c", "query"))))
    assert covering() == [*COVERING, "new"]


def test_shape_annotations_are_executed() -> None:
    with pytest.raises(TypeCheckError):
        projected_l1(torch.ones(5, 4, 2), torch.ones(8, 3, 2))  # four heads and three


@given(shapes())
def test_anatomy_is_the_shape(shape: Shape) -> None:
    anatomy = amp.Anatomy.of(tiny(shape))
    found = (anatomy.layers, anatomy.hidden, anatomy.heads, anatomy.groups, anatomy.head_dim, anatomy.neurons)
    neurons = 0 if anatomy.family.no_neurons else shape.neurons
    assert found == (shape.layers, shape.hidden, shape.heads, shape.groups, shape.head_dim, neurons)
    assert anatomy.group_size == shape.group_size


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_costs_are_what_a_wider_model_has_more(shape: Shape, bias: bool) -> None:
    """Two more groups, two more query heads in both groups, one more neuron: the parameters of two models, counted."""
    shape = replace(shape, bias=bias)
    base, deep = tiny(shape), shape.layers
    anatomy = amp.Anatomy.of(base)

    def more(**wider: Any) -> int:
        return tiny(replace(shape, **wider)).num_parameters() - base.num_parameters()

    if not anatomy.family.no_heads:
        assert deep * anatomy.group_cost == more(groups=4) / 2
        assert deep * anatomy.query_cost == more(group_size=4) / 2
    if not anatomy.family.no_neurons:
        assert deep * anatomy.neuron_cost == more(neurons=shape.neurons + 1)


def test_a_head_of_multi_head_attention_costs_four_slices() -> None:
    anatomy = amp.Anatomy.of(tiny(Shape(head_dim=8, hidden=32)))
    assert (anatomy.group_cost, anatomy.neuron_cost) == (4 * 8 * 32, 3 * 32)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("family", WITH_HEADS)
def test_head_counts_are_those_that_a_stock_configuration_takes(family: str, bias: bool) -> None:
    """Asked of transformers itself: of this architecture, or of the one that stands in for it.

    transformers 5.0 does not look yet; what is saved has to load in later versions too, so their rules hold everywhere.
    """
    shape = Shape(family, groups=6, hidden=36, bias=bias)
    anatomy = amp.Anatomy.of(tiny(shape))

    def taken(architecture: str, heads: int) -> bool:
        try:
            AutoConfig.for_model(architecture, hidden_size=36, num_attention_heads=heads, head_dim=8)
        except Exception:  # whatever the validator of this version raises
            return False
        return True

    possible = {
        heads
        for heads in range(1, 7)
        for architecture in (family, anatomy.equal_type)
        if architecture and taken(architecture, heads)
    }
    assert set(anatomy.head_counts) == {heads for heads in range(1, 7) if sayable(shape, heads)}
    assert set(anatomy.head_counts) <= possible
    if not taken("llama", 5):  # this version looks
        assert set(anatomy.head_counts) == possible


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_block_parameters_leave_out_embeddings_norm_and_head(shape: Shape) -> None:
    model = tiny(shape)
    blocks = f"{amp.FAMILIES[shape.family].layers}."
    inside = sum(p.numel() for name, p in model.named_parameters() if name.startswith(blocks))
    assert amp.Anatomy.of(model).block_parameters == inside
    if "first_k_dense_replace" not in OWN.get(shape.family, {}) and shape.family != "ernie4_5_moe":
        deeper = tiny(replace(shape, layers=4)).num_parameters()
        assert 2 * (model.num_parameters() - inside) == 2 * deeper - 4 * inside  # twice the layers, the same rest


def test_llama_2_7b_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig())
    assert model.num_parameters() == 6_738_415_616
    anatomy = amp.Anatomy.of(model)
    assert anatomy.group_cost / anatomy.neuron_cost == 4 * 128 / 3  # 170.67 neurons a head


def test_unknown_family_is_refused() -> None:
    config = AutoConfig.for_model("helium", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    with pytest.raises(ValueError, match=r"'helium' has no row in amp_tutorial\.FAMILIES\.") as caught:
        amp.Anatomy.of(AutoModelForCausalLM.from_config(config))
    assert str(caught.value).endswith(
        "Its layers are named as those of llama: try amp.FAMILIES['helium'] = amp.FAMILIES['llama']."
    )


@pytest.mark.parametrize("kind", ["bert", "codegen", "ctrl", "rwkv"])
def test_a_family_named_like_none_is_told_how_to_write_a_row(kind: str) -> None:
    with pytest.raises(
        ValueError, match=rf"'{kind}' has no row.*amp\.FAMILIES\['{kind}'\] = .*docs/families"
    ) as caught:
        family_of(AutoConfig.for_model(kind))
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize("kind", refused())
def test_a_family_whose_configuration_cannot_say_a_cut_is_refused_with_the_reason(kind: str) -> None:
    assert kind not in amp.FAMILIES and kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    with pytest.raises(ValueError, match=f"A {kind} can lose neither heads nor neurons: .*[^.]\\.$") as caught:
        family_of(SimpleNamespace(model_type=kind))
    assert len(str(caught.value)) <= 200


def test_a_width_that_the_configuration_does_not_take_as_it_says_is_said_so_that_it_does() -> None:
    """LFM2 takes two thirds of its number of neurons, rounded up to a multiple; the cut model takes what it says."""
    model = tiny(Shape("lfm2", neurons=60), block_auto_adjust_ff_dim=True, block_multiple_of=16)
    assert amp.Anatomy.of(model).neurons == 48
    plan = amp.keep(model, amp.score(model, [], "random"), neurons=31)
    small = amp.prune(model, plan).model
    assert (small.config.intermediate_size, small.config.block_auto_adjust_ff_dim) == (31, False)
    with amp.masked(model, plan):
        torch.testing.assert_close(logits(model), logits(small), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["t5", "bart", "whisper"])
def test_encoder_decoders_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=f"'{kind}' is an encoder-decoder; only decoders"):
        family_of(AutoConfig.for_model(kind))


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_encoders_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=f"'{kind}' has no row"):
        family_of(AutoConfig.for_model(kind))


@pytest.mark.parametrize(("kind", "inner"), [("gemma3", "gemma3_text"), ("llava", "llama"), ("mistral3", "mistral")])
def test_of_a_multimodal_model_its_text_model_is_named(kind: str, inner: str) -> None:
    with pytest.raises(ValueError, match=f"'{kind}' has no row.*Its text model is of type '{inner}': load that alone"):
        family_of(AutoConfig.for_model(kind))


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_quantised_models_are_refused(method: str) -> None:
    model = tiny()
    model.config.quantization_config = dict(quant_method=method, bits=4)
    with pytest.raises(ValueError, match=rf"quantised \({method}\); prune its full-precision original"):
        amp.Anatomy.of(model)


@pytest.mark.parametrize("setting", ["head_dim", "num_key_value_heads", "intermediate_size"])
def test_weights_that_disagree_with_the_configuration_are_refused(setting: str) -> None:
    model = tiny()
    setattr(model.config, setting, getattr(model.config, setting) // 2)
    with pytest.raises(ValueError, match="where the configuration says"):
        amp.Anatomy.of(model)


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_a_matrix_of_another_shape_is_refused_in_any_layer(shape: Shape) -> None:
    model = tiny(shape)
    layer = amp.Anatomy.of(model).layer(1)
    weight = (layer.output if layer.neurons_out is None else layer.neurons_out).weight
    weight.data = weight.data[:-1, :-1]
    with pytest.raises(ValueError, match="Layer 1's .* where the configuration says"):
        amp.Anatomy.of(model)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (dict(query="self_attn.wq"), "Layer 0 has no self_attn.wq, where the row 'llama'"),
        (dict(neurons_out="mlp.w2"), "Layer 0 has no mlp.w2"),
        (dict(layers="transformer.h"), "LlamaForCausalLM has no transformer.h"),
        (dict(width="ffn_dim", layers="h"), "has no config.ffn_dim and no h, where the row 'llama'"),
    ],
)
def test_a_row_that_names_what_is_not_there_is_refused(
    names: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    monkeypatch.setitem(amp.FAMILIES, "llama", amp.Family(**names))
    with pytest.raises(ValueError, match=words):
        amp.Anatomy.of(model)


def test_a_model_without_its_output_head_is_refused() -> None:
    with pytest.raises(ValueError, match="LlamaModel does not predict a next token; load it with AutoModel"):
        amp.Anatomy.of(AutoModel.from_config(tiny().config))


def test_adapters_are_to_be_merged_first() -> None:
    model = tiny()
    inject_adapter_in_model(LoraConfig(target_modules=["up_proj"]), model)
    with pytest.raises(ValueError, match="not a plain nn.Linear; merge adapters first"):
        amp.Anatomy.of(model)


def test_offloaded_weights_are_refused(tmp_path: Path) -> None:
    """A hook of ours runs before accelerate brings the weights: without this, scores would be of nothing."""
    for model in (
        cpu_offload(tiny(), torch.device("cpu")),
        disk_offload(tiny(), str(tmp_path), torch.device("cpu")),
    ):
        logits(model)
        with pytest.raises(ValueError, match="offloaded to CPU or disk"):
            amp.score(model, [], "magnitude")


LONG = dict(
    rope_type="longrope",
    rope_theta=100.0,
    short_factor=[1.0] * 4,  # one for each pair of head_dim
    long_factor=[2.0] * 4,
    partial_rotary_factor=1.0,
    original_max_position_embeddings=64,
)


@pytest.mark.parametrize(
    ("family", "name", "settings"),
    [
        ("phi", "qk_layernorm", dict(qk_layernorm=True)),
        ("phi3", "rope_parameters.long_factor", dict(rope_parameters=LONG)),
    ],
)
def test_settings_that_tie_head_dim_to_the_heads_keep_heads_whole(family: str, name: str, settings: dict) -> None:
    """Phi's query norms and the check of Phi-3's long rotary factors take hidden / heads, whatever head_dim says."""
    shape = Shape(family)
    assert amp.Anatomy.of(tiny(shape)).head_counts == [1, 2, 3, 4]
    model = tiny(shape, **settings)
    assert amp.Anatomy.of(model).head_counts == [4]
    with pytest.raises(ValueError, match=f"{family} cannot lose heads: with {name} its head_dim is always"):
        some_plan(model, heads=3, neurons=11)
    plan = some_plan(model, heads=None, neurons=11)
    with amp.masked(model, plan):
        masked = logits(model)
    torch.testing.assert_close(logits(amp.prune(model, plan).model), masked, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=f"No stock configuration of {family} says 3 heads"):
        amp.prune(model, replace(plan, heads=[[0, 1, 2]] * 2))


@pytest.mark.parametrize("shape", families(every(KNOWN, bias=True)), ids=KNOWN)
def test_all_weights_of_the_blocks_belong_to_heads_to_neurons_or_to_none(shape: Shape) -> None:
    """Magnitude sees every weight matrix that a cut touches, once for each head that uses it; norms see to the rest."""
    model = tiny(shape)
    anatomy = amp.Anatomy.of(model)
    heads, neurons = anatomy.head_weights(0), anatomy.neuron_weights(0)
    assert heads.shape[0] == anatomy.heads and neurons.shape[0] == anatomy.neurons
    if not anatomy.family.no_heads:  # query, key, value and output
        assert heads.shape[1] == 4 * anatomy.head_dim * anatomy.hidden
    if not anatomy.family.no_neurons:
        assert neurons.shape[1] == (1 + len(anatomy.family.neurons_in)) * anatomy.hidden


# Rows as YAML


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("families: {mine: {qurey: a}}", "The row 'mine' says 'qurey', no field of Family; known: query, key"),
        ("families: {mine: {stream: {red: a}}}", "The row 'mine' says 'red', no field of Stream; known: reads"),
        ("families: {mine: {programs: {vlm: a}}}", "The row 'mine' says 'vlm', no field of Programs"),
        ("familes: {}", "rows.yaml is no table of families"),
        ("families: [1]", "rows.yaml is no table of families"),
        ("families: {mine: 3}", "rows.yaml is no table of families"),
        ("{", "rows.yaml is no table of families"),
    ],
)
def test_a_table_that_is_none_is_one_sentence(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=words) as caught:
        rows.table(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no table of families .No such file"):
        rows.table(tmp_path / "gone.yaml")


def test_rows_of_one_s_own_are_known_to_every_command(tmp_path: Path) -> None:
    path = tmp_path / "rows.yaml"
    path.write_text("families: {mine: {neurons_in: [mlp.a, mlp.a], norms: {q: query}, adds: 0.5}}", encoding="utf-8")
    (mine,) = rows.table(path).values()
    assert mine == Family(neurons_in=("mlp.a", "mlp.a"), norms=(("q", "query"),), adds=0.5)
    code = "import amp_tutorial as amp; print(amp.FAMILIES['mine'].neurons_in, 'llama' in amp.FAMILIES)"
    environment = os.environ | {rows.OWN: str(path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "('mlp.a', 'mlp.a') True\n"


def test_a_row_that_does_not_name_all_that_shrinks_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gpt_oss has a value for each head beside its matrices; a row without it made a folder that nothing loads."""
    monkeypatch.setitem(amp.FAMILIES, "gpt_oss", Family(no_neurons="experts"))
    config = AutoConfig.for_model(
        "gpt_oss", vocab_size=259, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    before = weights(model)
    plan = amp.keep(model, amp.score(model, [], "random"), heads=2)
    said = r"sinks would be \(4,\) where GptOssForCausalLM wants \(2,\): the row 'gpt_oss' .* mend the row"
    with pytest.raises(ValueError, match=said):
        amp.prune(model, plan, inplace=True)
    assert equal(weights(model), before), "nothing was cut"
    source = amp.save(model, byte_tokenizer(), tmp_path / "dense")
    with pytest.raises(ValueError, match=said):
        amp.prune_folder(source, tmp_path / "out", plan=plan, progress=False)
    assert not (tmp_path / "out").exists()
