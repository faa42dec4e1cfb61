"""Small models of every family, a tokenizer of bytes, and batches: what the unit tests run on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from beartype import BeartypeConf, beartype
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

executed: Callable[..., Any] = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float
VOCABULARY = 259  # three special tokens and all bytes
KNOWN = ("llama", "mistral", "qwen2", "qwen3", "phi")
TEXT = "Anna has the red kite and Ben has the blue ball. The red kite belongs to Anna. Ben goes to the old mill."


@dataclass(frozen=True)
class Shape:
    """A model small enough to build a hundred of."""

    family: str = "llama"
    layers: int = 2
    groups: int = 4
    group_size: int = 1
    head_dim: int = 8
    hidden: int = 32
    neurons: int = 24
    bias: bool = False
    tied: bool = False

    @property
    def heads(self) -> int:
        return self.groups * self.group_size


PLAIN = Shape()
EVERY_FAMILY = [Shape(family, group_size=2, groups=2, tied=family in ("mistral", "phi")) for family in KNOWN]


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    family = draw(st.sampled_from(KNOWN))
    groups, size = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    # The configuration of LLaMA wants a hidden size that the number of heads divides.
    hidden = 6 * groups * size if family == "llama" else draw(st.sampled_from((16, 24, 40)))
    return Shape(
        family,
        layers=draw(st.integers(1, 3)),
        groups=groups,
        group_size=size,
        head_dim=draw(st.sampled_from((4, 8, 12))),
        hidden=hidden,
        neurons=draw(st.integers(4, 40)),
        bias=draw(st.booleans()),
        tied=draw(st.booleans()),
    )


@torch.no_grad()
def tiny(shape: Shape = PLAIN, seed: int = 0, vocabulary: int = VOCABULARY) -> PreTrainedModel:
    """An untrained model whose weights, biases and norms are all random, so that none can be forgotten unseen."""
    config = AutoConfig.for_model(
        shape.family,
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
        head_dim=shape.head_dim,
        intermediate_size=shape.neurons,
        max_position_embeddings=1024,
        tie_word_embeddings=shape.tied,
        attention_bias=shape.bias,
        mlp_bias=shape.bias,
        qk_layernorm=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:
            parameter.copy_(noise * parameter.shape[1] ** -0.5)
        else:
            parameter.copy_(0.3 * noise + (0.0 if name.endswith("bias") else 1.0))
    return model.eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<s>", "</s>", "<pad>"]
    symbols = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def prompts(lengths: Sequence[int] = (9, 4, 7, 1, 6), seed: int = 0) -> list[list[int]]:
    """Rows of random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def batch(rows: Sequence[Sequence[int]], left: bool = False) -> dict[str, Tensor]:
    """Rows as one batch, padded on the right, or on the left."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), 2)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def logits(model: PreTrainedModel, rows: Sequence[Sequence[int]] | None = None) -> Tensor:
    """Of all rows, in inference mode, without a cache; padding on the right does not matter to the tokens."""
    given = batch(rows or prompts((8, 8, 8)))
    return model.eval()(**given, use_cache=False).logits


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of everything that a checkpoint stores."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def hooks(model: PreTrainedModel) -> int:
    """How many forward hooks hang on a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
