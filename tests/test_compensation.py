"""What goes is replaced by its mean, where a bias can take it."""

import pytest
import torch
from helpers import Shape, batch, equal, logits, prompts, some_plan, tiny, weights

import amp_tutorial as amp

BATCHES = [batch(prompts((9, 4))), batch(prompts((7, 3, 5), seed=1), left=True)]


@pytest.mark.parametrize("shape", [Shape("phi", bias=True), Shape("gpt2"), Shape("starcoder2", bias=True)], ids=str)
def test_the_bias_takes_what_goes_on_average(shape: Shape) -> None:
    model = tiny(shape)
    plan = some_plan(model, 2, 15)
    before, folded, cut = weights(model), amp.prune_and_fold(model, plan, BATCHES).model, amp.prune(model, plan).model
    dense, small, plain = (amp.Anatomy.of(m) for m in (model, folded, cut))
    x: dict[int, list[torch.Tensor]] = {i: [] for i in range(shape.layers)}
    for i in x:
        dense.layer(i).neurons_out.register_forward_pre_hook(lambda _, a, i=i: x[i].append(a[0].reshape(-1, 24)))
    with torch.no_grad():
        for given in BATCHES:
            for row, mask in zip(given["input_ids"], given["attention_mask"].bool(), strict=True):
                model(input_ids=row[mask][None])
    for i, inputs in x.items():
        gone = [n for n in range(24) if n not in plan.neurons[i]]
        weight = dense.layer(i).neurons_out.weight.detach()
        weight = weight.T if shape.family == "gpt2" else weight
        wanted = weight[:, gone] @ torch.cat(inputs).mean(0)[gone]
        found = small.layer(i).neurons_out.bias - plain.layer(i).neurons_out.bias
        torch.testing.assert_close(found.detach(), wanted, atol=1e-5, rtol=1e-4)
    assert equal(weights(model), before)


def test_neurons_that_never_change_are_made_up_for() -> None:
    model = tiny(Shape("phi", bias=True))
    with torch.no_grad():
        for i in range(2):
            amp.Anatomy.of(model).layer(i).neurons_in[0].weight[:9] = 0.0  # these give what their bias says
    plan = some_plan(model, 4, 15)
    plan = amp.Plan(**vars(plan) | {"neurons": [list(range(9, 24))] * 2})
    torch.testing.assert_close(
        logits(amp.prune_and_fold(model, plan, BATCHES).model), logits(model), atol=1e-4, rtol=1e-4
    )


def test_without_biases_it_says_what_to_use() -> None:
    with pytest.raises(ValueError, match="have no biases to take the means; use amp.repair"):
        amp.prune_and_fold(tiny(), some_plan(tiny(), 2, 15), BATCHES)
