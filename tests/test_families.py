"""What the package reads off a model: counts, modules, costs. And that shape annotations are executed."""

from dataclasses import replace

import pytest
import torch
from helpers import EVERY_FAMILY, KNOWN, Shape, shapes, tiny
from hypothesis import given
from jaxtyping import TypeCheckError
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

import amp_tutorial as amp
from amp_tutorial.criteria import projected_l1


def test_the_tests_know_every_family() -> None:
    assert set(KNOWN) == set(amp.FAMILIES)


def test_shape_annotations_are_executed() -> None:
    with pytest.raises(TypeCheckError):
        projected_l1(torch.ones(5, 4, 2), torch.ones(8, 3, 2))  # four heads and three


@given(shapes())
def test_anatomy_is_the_shape(shape: Shape) -> None:
    anatomy = amp.Anatomy.of(tiny(shape))
    found = (anatomy.layers, anatomy.hidden, anatomy.heads, anatomy.groups, anatomy.head_dim, anatomy.neurons)
    assert found == (shape.layers, shape.hidden, shape.heads, shape.groups, shape.head_dim, shape.neurons)
    assert anatomy.group_size == shape.group_size


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_costs_are_what_a_wider_model_has_more(shape: Shape) -> None:
    """One more group or neuron in each layer: the parameters of two models, counted."""
    base, deep = tiny(shape), shape.layers
    group = tiny(replace(shape, groups=4)).num_parameters() - base.num_parameters()
    neuron = tiny(replace(shape, neurons=shape.neurons + 1)).num_parameters() - base.num_parameters()
    anatomy = amp.Anatomy.of(base)
    assert (2 * deep * anatomy.group_cost, deep * anatomy.neuron_cost) == (group, neuron)


def test_a_head_of_multi_head_attention_costs_four_slices() -> None:
    anatomy = amp.Anatomy.of(tiny(Shape(head_dim=8, hidden=32)))
    assert (anatomy.group_cost, anatomy.neuron_cost) == (4 * 8 * 32, 3 * 32)


def test_block_parameters_leave_out_embeddings_norm_and_head() -> None:
    model = tiny(Shape(tied=False))
    rest = 2 * model.get_input_embeddings().weight.numel() + model.model.norm.weight.numel()
    assert amp.Anatomy.of(model).block_parameters == model.num_parameters() - rest


def test_llama_2_7b_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig())
    assert model.num_parameters() == 6_738_415_616
    anatomy = amp.Anatomy.of(model)
    assert anatomy.group_cost / anatomy.neuron_cost == 4 * 128 / 3  # 170.67 neurons a head


def test_unknown_family_is_refused() -> None:
    config = AutoConfig.for_model("gpt2", n_embd=16, n_layer=1, n_head=2, vocab_size=20)
    with pytest.raises(ValueError, match="'gpt2' has no row"):
        amp.Anatomy.of(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("setting", ["head_dim", "num_key_value_heads", "intermediate_size"])
def test_weights_that_disagree_with_the_configuration_are_refused(setting: str) -> None:
    model = tiny()
    setattr(model.config, setting, getattr(model.config, setting) // 2)
    with pytest.raises(ValueError, match="where the configuration says"):
        amp.Anatomy.of(model)
