"""Whole experts: a score against a plain loop, and the cut model against the dense one whose router sees fewer."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import PLAIN, Shape, batch, byte_tokenizer, equal, prompts, tiny
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import amp_tutorial as amp
from amp_tutorial.core.sums import model_inputs
from amp_tutorial.methods.experts import ALWAYS_TWO, EXPERT_CRITERIA, mixtures

MIXTURES = [
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "gpt_oss",
    "glm4_moe",
    "ernie4_5_moe",
    "granitemoe",
    "phimoe",
]
BATCHES = [batch(prompts(), left=left) for left in (False, True)]


def said(model: PreTrainedModel, given: dict[str, Tensor]) -> Tensor:
    """Logits of the tokens that are there."""
    return model(**model_inputs(model, given)).logits[given["attention_mask"].bool()].detach()


@contextmanager
def shut(model: PreTrainedModel, kept: dict[int, list[int]]) -> Iterator[None]:
    """Routers see −∞ for the experts that go, right where their own code multiplies; corrections cannot lift it."""
    corrected, linear = copy.deepcopy(model.state_dict()), nn.functional.linear
    gone = {}
    for i, (router, _) in mixtures(model).items():
        gone[router.weight.data_ptr()] = torch.ones(len(router.weight), dtype=torch.bool)
        gone[router.weight.data_ptr()][kept[i]] = False
        for name, tensor in [*router.named_parameters(), *router.named_buffers()]:
            if "correction" in name:
                tensor.data[..., gone[router.weight.data_ptr()]] = -torch.inf

    def seen(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        found = linear(x, weight, bias)
        hidden = gone.get(weight.data_ptr())
        return found if hidden is None or weight.ndim != 2 else found.masked_fill(hidden, -torch.inf)

    nn.functional.linear = seen  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.functional.linear = linear
        model.load_state_dict(corrected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("family", MIXTURES)
def test_the_cut_model_is_the_dense_one_with_routers_that_see_fewer(
    family: str, keep: int, dtype: str, tmp_path: Path
) -> None:
    if family in ALWAYS_TWO:
        keep = max(2, keep)
    model = tiny(Shape(family, layers=2, dtype=dtype))
    before = copy.deepcopy(model.state_dict())
    result = amp.drop_experts(model, amp.score_experts(model, BATCHES), keep)
    assert equal(before, model.state_dict()), "the dense model is left alone"
    kept = result.report.kept
    [(router, experts), *others] = mixtures(model).values()  # of some families the first layer has none
    layers = 1 + len(others)
    assert str(result.report) == f"{keep} of {len(router.weight)} experts stay in each of {layers} layers"
    with shut(model, kept):
        wanted = [said(model, each) for each in BATCHES]
    found = [said(result.model, each) for each in BATCHES]
    close: dict[str, Any] = dict(rtol=0, atol=1e-5) if dtype == "float32" else dict(rtol=0.05, atol=0.05)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, **close)
    gone = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in result.model.parameters())
    of_one = sum(p.numel() // len(router.weight) for p in [*experts.parameters(), *router.parameters()])
    assert gone == layers * (len(router.weight) - keep) * of_one
    amp.save(result.model, byte_tokenizer(), tmp_path / "small")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype="auto").eval()
    assert all(torch.equal(said(again, each), one) for each, one in zip(BATCHES, found, strict=True))
    assert amp.load(tmp_path / "small", device="cpu")[0].num_parameters() == again.num_parameters()


@pytest.mark.parametrize("family", MIXTURES)
def test_scores_are_those_of_a_plain_loop(family: str) -> None:
    """Token by token, and expert by expert with its own matrices; padding is left out."""
    model = tiny(Shape(family, layers=2))
    reap, frequency = (amp.score_experts(model, BATCHES, criterion) for criterion in EXPERT_CRITERIA)
    seen: dict[int, list[tuple[int, float]]] = {i: [] for i in mixtures(model)}
    masks: list[Tensor] = []

    def look(i: int, module: Any, args: tuple[Tensor, ...]) -> None:
        for x, chosen, weights, real in zip(*args, masks[-1].flatten().tolist(), strict=True):
            for e, weight in zip(chosen.tolist(), weights.tolist(), strict=True):
                if hasattr(module, "gate_up_proj_bias"):  # GPT-OSS: the other way round
                    both = module._apply_gate(x @ module.gate_up_proj[e] + module.gate_up_proj_bias[e])
                    written = both @ module.down_proj[e] + module.down_proj_bias[e]
                else:
                    gate, up = (module.gate_up_proj[e] @ x).chunk(2)
                    written = module.down_proj[e] @ (module.act_fn(gate) * up)
                if real:
                    seen[i].append((e, weight * float(written.norm())))

    hooks = [e.register_forward_pre_hook(lambda m, a, i=i: look(i, m, a)) for i, (_, e) in mixtures(model).items()]
    for each in BATCHES:
        masks.append(each["attention_mask"])
        said(model, each)
    for hook in hooks:
        hook.remove()
    tokens = sum(int(mask.sum()) for mask in masks)
    for i, found in seen.items():
        for e in range(len(reap[i])):
            mine = [value for expert, value in found if expert == e]
            assert frequency[i][e] == pytest.approx(len(mine) / tokens)
            assert reap[i][e] == pytest.approx(sum(mine) / len(mine) if mine else 0, rel=1e-4)


def test_an_expert_that_writes_nothing_goes_first() -> None:
    model = tiny(Shape("mixtral", layers=2))
    for _, experts in mixtures(model).values():
        experts.down_proj.data[1] = 0
    scores = amp.score_experts(model, BATCHES)
    assert all(values.argmin() == 1 and values[1] == 0 for values in scores.values())
    assert all(1 not in kept for kept in amp.drop_experts(model, scores, 3).report.kept.values())


def test_layers_without_experts_stay_as_they_are() -> None:
    model = tiny(Shape("qwen3_moe", layers=3), mlp_only_layers=[1])
    scores = amp.score_experts(model, BATCHES)
    assert set(scores) == {0, 2} and set(amp.drop_experts(model, scores, 2).report.kept) == {0, 2}


def test_what_cannot_be_done_is_said() -> None:
    model = tiny(Shape("mixtral", layers=2))
    scores = amp.score_experts(model, BATCHES, "frequency")
    with pytest.raises(ValueError, match="A llama has no experts"):
        amp.score_experts(tiny(PLAIN), BATCHES)
    with pytest.raises(ValueError, match="Unknown criterion 'best'; choose from reap, frequency"):
        amp.score_experts(model, BATCHES, "best")
    with pytest.raises(ValueError, match="hold no tokens"):
        amp.score_experts(model, [])
    for keep in (0, 4, -1):
        with pytest.raises(ValueError, match=f"keep={keep} of 4 experts is not possible"):
            amp.drop_experts(model, scores, keep)
    for wrong in ({0: scores[0]}, {0: scores[0], 1: scores[1][:2]}, {0: scores[0], 1: scores[1] * torch.nan}):
        with pytest.raises(ValueError, match="Give a score for each expert of each layer"):
            amp.drop_experts(model, wrong, 2)
    for family in ALWAYS_TWO:
        two = tiny(Shape(family, layers=2))
        with pytest.raises(ValueError, match=f"The routers of a {family} look for two experts always; keep at least 2"):
            amp.drop_experts(two, amp.score_experts(two, BATCHES), 1)
    mixtures(model)[0][1].down_proj.data[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        amp.score_experts(model, BATCHES)
