"""The official code's choices, against a slow transcription of its formulas."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Shape, byte_tokenizer, tiny
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import amp_tutorial as amp
from amp_tutorial.methods import official

Hook = Callable[[nn.Linear, tuple[Tensor], Tensor], None]


def transcribed(model: PreTrainedModel, prompts: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """For each layer: mean over prompts of (mean over tokens of ‖h_n W_n‖₁), and the same of |input of down_proj|."""
    heads: dict[int, list[Tensor]] = {}
    neurons: dict[int, list[Tensor]] = {}
    count, size = model.config.num_attention_heads, model.config.head_dim

    def on_heads(layer: int) -> Hook:
        def hook(module: nn.Linear, given: tuple[Tensor], _: Tensor) -> None:
            x = given[0].float().reshape(-1, count, size)
            weight = module.weight.float().T.reshape(count, size, -1)
            added = torch.einsum("bhd,hdo->bho", x, weight)
            heads.setdefault(layer, []).append(added.abs().sum(dim=(0, 2)) / x.shape[0])

        return hook

    def on_neurons(layer: int) -> Hook:
        def hook(module: nn.Linear, given: tuple[Tensor], _: Tensor) -> None:
            neurons.setdefault(layer, []).append(given[0].float().abs().mean(dim=(0, 1)))

        return hook

    hooks = []
    for i, layer in enumerate(model.model.layers):
        hooks.append(layer.self_attn.o_proj.register_forward_hook(on_heads(i)))
        hooks.append(layer.mlp.down_proj.register_forward_hook(on_neurons(i)))
    with torch.no_grad():
        for ids in prompts:
            model(input_ids=ids[None])
    for hook in hooks:
        hook.remove()
    return [torch.stack(heads[i]).mean(0) for i in heads], [torch.stack(neurons[i]).mean(0) for i in neurons]


@pytest.fixture
def alpaca(tmp_path: Path) -> Path:
    rows = [
        dict(instruction=f"Name {n} birds.", input="" if n % 2 else f"Only of colour {n}." * n, output="A tit.")
        for n in range(60)
    ]
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("which", ["random", "trained"])
def test_scores_equal_the_official_formulas(which: str, alpaca: Path) -> None:
    model, tokenizer = (
        (tiny(Shape(bias=False)), byte_tokenizer()) if which == "random" else amp.load("tiny-llama", "cpu")
    )
    source = str(alpaca) if which == "random" else "tinyworld"
    batches = official.batches(tokenizer, official.prompts(source))
    assert len(batches) == 50 and {len(b["input_ids"]) for b in batches} == {1}
    scores = amp.score(model, batches, "amp", average="prompts")
    heads, neurons = transcribed(model, [b["input_ids"][0] for b in batches])
    for found, wanted in zip([*scores.heads, *scores.neurons], [*heads, *neurons], strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    clean = amp.score(model, batches, "amp", average="tokens")
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(scores.heads, clean.heads, strict=True))


def test_prompts_are_the_first_in_the_official_template(alpaca: Path) -> None:
    found = official.prompts(alpaca)
    assert len(found) == 50
    assert found[1] == "Instruction: Name 1 birds.\nResponse:"
    assert found[2] == "Instruction: Name 2 birds.\nInput: Only of colour 2.Only of colour 2.\nResponse:"
    assert amp.texts(alpaca)[2] == "Name 2 birds.\nOnly of colour 2.Only of colour 2.", "the clean prompt"
    assert official.prompts("tinyworld") == amp.texts("tinyworld")[:50]


def llama_2_7b() -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama"))
    return model


@pytest.mark.parametrize(("k", "percent"), [(7, 21.02), (10, 30.03)])
def test_widths_of_llama_2_7b_are_those_of_the_arithmetic(k: int, percent: float) -> None:
    model = llama_2_7b()
    assert model.num_parameters() == 6_738_415_616
    ratio = official.ratio_of(model, layers=k)
    assert 100 * ratio == pytest.approx(percent, abs=0.005)
    assert official.widths(model, ratio) == (32 - k, 11_008 - 344 * k)


def test_a_head_left_by_rounding_is_made_up_for_by_one_neuron() -> None:
    model = llama_2_7b()
    ratio = 0.31 * (model.num_parameters() - 2 * 32000 * 4096 - 65 * 4096) / model.num_parameters()  # 0.31 of the rest
    heads, neurons = official.widths(model, ratio)
    assert heads == 32 - round(0.31 * 32) == 22
    assert neurons == 11_008 - round(11_008 * 0.31 + 32 * 0.31 - 10)
    clean = amp.plan(model, amp.score(model, [], "random"), pruning_ratio=ratio).widths
    assert clean[0] == 22 and clean[2] == pytest.approx(11_008 * 0.69 + 171 * (10 - 32 * 0.31), abs=3), (
        "and by 171 here"
    )


def test_grouped_queries_and_unknown_words_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="no rule for grouped queries"):
        official.widths(tiny(Shape(groups=2, group_size=2)), 0.3)
    with pytest.raises(ValueError, match="must be 'official' or 'clean'"):
        official.choices("offical")
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        official.widths(tiny(), 1.5)
    assert official.choices("official").keys() == official.choices("clean").keys()
    assert all(a != b for a, b in official.CHOICES.values())
