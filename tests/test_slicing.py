"""Slicing: the turned model is the dense one, the sliced model is the projected one, and it is an ordinary model."""

import tempfile
from pathlib import Path

import pytest
import torch
from helpers import Shape, batch, equal, hooks, logits, prompts, shapes, some_plan, tiny, weights
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GenerationConfig

import amp_tutorial as amp
from amp_tutorial import slicing

SLICED = tuple(slicing.STREAMS)
ROWS = [prompts(), prompts((12, 12), seed=1)]


def measured(model, rows=ROWS) -> amp.Rotation:
    return amp.rotation(model, [batch(r) for r in rows])


def alike(a, b) -> None:
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def sayable(shape: Shape, hidden: int) -> bool:
    return shape.family != "llama" or not shape.bias or hidden % shape.heads == 0


@pytest.mark.filterwarnings("ignore:.*calibration tokens")
@given(shapes(SLICED), st.integers(0, 9))
def test_turned_is_dense(shape: Shape, seed: int) -> None:
    assume(sayable(shape, shape.hidden))
    model = tiny(shape, seed)
    before, dense = weights(model), logits(model)
    rotation = measured(model)
    turned = amp.slice_hidden(model, rotation, shape.hidden)
    alike(logits(turned), dense)
    assert hooks(model) == 0 and equal(weights(model), before) and torch.equal(logits(model), dense)
