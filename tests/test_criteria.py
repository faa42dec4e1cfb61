"""Each criterion of the field against a slow reference, written from its equation with loops."""

import pytest
import torch
from helpers import EVERY_FAMILY, KNOWN, WITH_HEADS, Shape, batch, equal, every, families, hooks, prompts, tiny, weights
from torch import Tensor

import amp_tutorial as amp
from amp_tutorial.core.anatomy import weight_of
from amp_tutorial.methods import taylor

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
