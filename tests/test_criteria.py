"""Each criterion of the field, and the official code's choices, against slow references written from the equations."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import (
    EVERY_FAMILY,
    KNOWN,
    WITH_HEADS,
    Shape,
    batch,
    byte_tokenizer,
    equal,
    every,
    families,
    hooks,
    prompts,
    tiny,
    weights,
)
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import amp_tutorial as amp
from amp_tutorial.core.anatomy import weight_of
from amp_tutorial.methods import official, taylor

ROWS = prompts((9, 4, 7, 1, 6))
BATCHES = [batch(ROWS[:2], left=True), batch(ROWS[2:])]
FIELD = ("transact", "wanda", "flap", "taylor")


def seen(model: torch.nn.Module) -> dict[tuple[int, str], Tensor]:
    """Inputs of both output projections of each layer, of all tokens, prompt by prompt and so without padding."""
    anatomy, handles = amp.Anatomy.of(model), []  # type: ignore[arg-type]
    found: dict[tuple[int, str], list[Tensor]] = {}
    for i in range(anatomy.layers):
        layer = anatomy.layer(i)
        for part, module in (("heads", layer.output), ("neurons", layer.neurons_out)):
            if module is not None:
                x = found.setdefault((i, part), [])
                handles.append(module.register_forward_pre_hook(lambda _, a, x=x: x.append(a[0].flatten(0, -2))))
    with torch.no_grad():
        for row in ROWS:
            model(input_ids=torch.tensor([row]))
    for handle in handles:
        handle.remove()
    return {key: torch.cat(x).double() for key, x in found.items()}


def slow(criterion: str, x: Tensor, w: Tensor, d: int) -> list[float]:
    """Scores from the stacked inputs (tokens, features) and output weights (hidden, features), d for a structure."""
    features, found = [], []
    for j in range(x.shape[1]):
        column, out = x[:, j], w[:, j].double()
        if criterion == "transact":
            features.append(float(sum(float(a) ** 2 for a in column) ** 0.5))
        if criterion == "wanda":
            features.append(float((out.abs() * column.norm() / len(column) ** 0.5).mean()))
        if criterion == "flap":
            metric = float(column.var(correction=0) * out.norm() ** 2)
            features.append(metric**2 if d > 1 else metric)
    if criterion == "flap":
        mean, std = torch.tensor(features).mean(), torch.tensor(features).std()
        features = [float((f - mean) / std) for f in features]
    for n in range(x.shape[1] // d):
        own = features[n * d : (n + 1) * d]
        if criterion == "transact":
            found.append(sum(own) / d + 10 / d * max(own) if d > 1 else own[0])
        else:
            found.append(sum(own) if criterion == "wanda" else sum(own) / d)
    return found


@pytest.mark.parametrize("criterion", ["transact", "wanda", "flap"])
@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_scores_are_their_equation(shape: Shape, criterion: str) -> None:
    model = tiny(shape)
    anatomy, found, x = amp.Anatomy.of(model), amp.score(model, BATCHES, criterion), seen(model)
    for (i, part), inputs in x.items():
        layer = anatomy.layer(i)
        module, d = (layer.output, anatomy.head_dim) if part == "heads" else (layer.neurons_out, 1)
        wanted = torch.tensor(slow(criterion, inputs, weight_of(module).detach(), d))
        torch.testing.assert_close(getattr(found, part)[i], wanted, atol=1e-4, rtol=2e-4)


@pytest.mark.parametrize("average", ["tokens", "prompts"])
def test_flap_sees_a_small_variance_about_a_large_mean(average: str) -> None:
    """Neurons near 3,000 that vary by about 1: squares of 9,000,000, which float32 only holds to the nearest whole."""
    model = tiny(Shape("phi", bias=True))
    layer = amp.Anatomy.of(model).layer(1)
    with torch.no_grad():
        layer.neurons_in[0].bias += 3000.0
    found, x = amp.score(model, BATCHES, "flap", average=average), seen(model)[1, "neurons"]
    weight = torch.cat([torch.full((len(row),), 1.0 if average == "tokens" else 1 / len(row)) for row in ROWS]).double()
    mean = (weight @ x) / weight.sum()
    variance = weight @ (x - mean).square() / weight.sum()
    assert float(mean.min()) > 2900 and 0 < float(variance.min()) < float(variance.max()) < 10
    metric = variance * weight_of(layer.neurons_out).detach().double().square().sum(0)
    wanted = (metric - metric.mean()) / metric.std()
    torch.testing.assert_close(found.neurons[1], wanted.float(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "shape", [Shape(), Shape("phi", bias=True), Shape("qwen2", groups=2, group_size=2), Shape("gpt2")]
)
def test_taylor_is_its_equation(shape: Shape) -> None:
    model = tiny(shape)
    found = amp.score(model, BATCHES, "taylor")
    total = sum(map(len, ROWS))
    loss = torch.zeros(())
    for row in ROWS:
        logits = model(input_ids=torch.tensor([row])).logits[0, :-1]
        loss = (
            loss
            + torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:], dtype=torch.long), reduction="sum")
            / total
        )
    loss.backward()
    anatomy = amp.Anatomy.of(model)
    for i in range(shape.layers):
        layer = anatomy.layer(i)
        for n in range(anatomy.neurons):
            parts = [(m.weight[n], m.weight.grad[n]) for m in layer.neurons_in if shape.family != "gpt2"]
            if shape.family == "gpt2":
                parts = [(m.weight[:, n], m.weight.grad[:, n]) for m in layer.neurons_in]
                parts.append((layer.neurons_out.weight[n], layer.neurons_out.weight.grad[n]))
            else:
                parts.append((layer.neurons_out.weight[:, n], layer.neurons_out.weight.grad[:, n]))
            wanted = sum(float((w * g).abs().sum()) for w, g in parts)
            assert float(found.neurons[i][n]) == pytest.approx(wanted, rel=1e-3, abs=1e-7)
        for h in range(anatomy.heads if shape.family != "gpt2" else 0):
            d, g = anatomy.head_dim, h // anatomy.group_size
            size = anatomy.group_size  # query heads that share a key and a value have an equal part in them
            own = [(layer.query, h, 1), (layer.key, g, size), (layer.value, g, size)]
            wanted = sum(float((m.weight * m.weight.grad).abs()[n * d : (n + 1) * d].sum()) / by for m, n, by in own)
            wanted += float((layer.output.weight * layer.output.weight.grad).abs()[:, h * d : (h + 1) * d].sum())
            assert float(found.heads[i][h]) == pytest.approx(wanted, rel=1e-3, abs=1e-7)


GROUPED = families(every(WITH_HEADS))


@pytest.mark.parametrize("shape", GROUPED, ids=lambda s: s.family)
def test_taylor_of_all_heads_is_the_sum_over_all_weights_of_attention(
    shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each weight counts once, also a key's and a value's that several query heads share."""
    model, seen = tiny(shape), dict[str, Tensor]()

    def look(w: Tensor, gradient: Tensor) -> Tensor:
        seen.update({name: (p * p.grad).abs() for name, p in model.named_parameters() if p.grad is not None})
        return plain(w, gradient)

    plain = taylor.taylor
    monkeypatch.setattr(taylor, "taylor", look)
    found, anatomy = amp.score(model, BATCHES, "taylor"), amp.Anatomy.of(model)
    assert anatomy.group_size > 1
    names = {module: name for name, module in model.named_modules()}
    for i in range(shape.layers):
        layer = anatomy.layer(i)
        block = model.get_submodule(f"{anatomy.family.layers}.{i}")
        packed = {block.get_submodule(getattr(anatomy.family, role)) for role in ("query", "key", "value", "output")}
        total = sum(float(seen[f"{names[module]}.weight"].sum()) for module in packed) / found.tokens
        assert float(found.heads[i].sum()) == pytest.approx(total, rel=1e-4) and layer.output in packed


@pytest.mark.parametrize("criterion", FIELD)
def test_scoring_leaves_everything_as_it_was(criterion: str) -> None:
    model = tiny().train()
    some = next(model.parameters())
    some.requires_grad_(False)
    last = list(model.parameters())[-1]
    last.grad = torch.ones_like(last)
    before = weights(model)
    amp.score(model, BATCHES, criterion)
    assert equal(weights(model), before) and hooks(model) == 0 and model.training
    assert not some.requires_grad and last.requires_grad and bool((last.grad == 1).all())
    assert sum(p.grad is not None for p in model.parameters()) == 1


def test_criteria_that_share_a_measure_are_scored_as_if_alone() -> None:
    model = tiny()
    together = amp.score_many(model, BATCHES, ("amp", *FIELD, "reversed"))
    for name, scores in together.items():
        alone = amp.score(model, BATCHES, name)
        for part in ("heads", "neurons"):
            for a, b in zip(getattr(scores, part), getattr(alone, part), strict=True):
                torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)  # AMP adds attention's output up head by head
        assert scores.tokens == sum(map(len, ROWS)) and scores.calibration_hash == together["amp"].calibration_hash


def test_gradients_that_are_not_finite_are_refused() -> None:
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="gradients are NaN or infinite"):
        amp.score(model, BATCHES, "taylor")
    assert all(p.grad is None for p in model.parameters())


# The official code's choices, against a slow transcription of its formulas

Hook = Callable[[nn.Linear, tuple[Tensor], Tensor], None]


def transcribed(model: PreTrainedModel, prompts: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """For each layer: mean over prompts of (mean over tokens of ‖h_n W_nᵀ‖₁), and the same of |input of down_proj|."""
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
