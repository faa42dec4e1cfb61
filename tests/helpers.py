"""Small models of every family, a tokenizer of bytes, and batches: what the unit tests run on."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from amp_tutorial import EMBEDDED, FAMILIES, Anatomy, Family, Plan, score
from amp_tutorial.methods.depth_and_width import planned

SLICED = tuple(name for name, row in FAMILIES.items() if row.stream)
VOCABULARY = 259  # three special tokens and all bytes
KNOWN = tuple(FAMILIES)
WITH_HEADS = tuple(name for name, row in FAMILIES.items() if not row.no_heads)
WITH_NEURONS = tuple(name for name, row in FAMILIES.items() if not row.no_neurons)
WHOLE = tuple(name for name in WITH_HEADS if name in WITH_NEURONS)
TEXT = "Anna has the red kite and Ben has the blue ball. The red kite belongs to Anna. Ben goes to the old mill."
BIASES = ("attention_bias", "mlp_bias", "use_bias", "enable_bias", "use_qkv_bias", "bias")  # whatever a family calls it
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "attention_dropout", "residual_dropout")
EXPERTS = dict(num_local_experts=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
LOCAL = dict(num_local_experts=4, num_experts_per_tok=2)
HALF_TURNED: dict[str, Any] = dict(rope_type="default", rope_theta=100.0, partial_rotary_factor=0.5)
# What a tiny model of the family needs, or what makes it do all that the family can (a window shorter than a prompt).
OWN: dict[str, dict[str, Any]] = {
    "mistral": dict(sliding_window=6),
    "gemma2": dict(sliding_window=6, query_pre_attn_scalar=8),
    "gemma3_text": dict(sliding_window=6, query_pre_attn_scalar=8, sliding_window_pattern=2),
    "cohere": dict(use_qk_norm=True, logit_scale=1.0),
    "mixtral": EXPERTS,
    "qwen2_moe": EXPERTS | dict(shared_expert_intermediate_size=16),
    "qwen3_moe": EXPERTS,
    "gpt_neox": dict(rope_parameters=HALF_TURNED),
    "stablelm": dict(rope_parameters=HALF_TURNED, num_key_value_heads=1, qk_layernorm=True),
    "ministral": dict(sliding_window=6),
    "exaone4": dict(sliding_window=6, sliding_window_pattern=2),
    "olmo3": dict(sliding_window=6),
    "cohere2": dict(sliding_window=6, logit_scale=1.0),
    "cwm": dict(sliding_window=6),
    "glm": dict(rope_parameters=HALF_TURNED),
    "glm4": dict(rope_parameters=HALF_TURNED),
    "vaultgemma": dict(sliding_window=6, query_pre_attn_scalar=8),
    "gptj": dict(rotary_dim=4),
    "gpt_neo": dict(window_size=6),
    "lfm2": dict(block_auto_adjust_ff_dim=False, num_key_value_heads=1),
    "bitnet": dict(num_key_value_heads=1),
    "doge": dict(num_key_value_heads=1, keep_window_size=64),
    "granitemoehybrid": dict(num_local_experts=0, mamba_n_heads=4, mamba_d_state=8, mamba_n_groups=1),
    "granite_swa": dict(sliding_window=6),
    "gpt_oss": LOCAL | dict(sliding_window=6),
    "glm4_moe": EXPERTS | dict(n_routed_experts=4, n_group=1, topk_group=1, first_k_dense_replace=1),
    "ernie4_5_moe": EXPERTS | dict(moe_num_experts=4, moe_k=2, moe_num_shared_experts=1),
    "granitemoe": LOCAL,
    "phimoe": LOCAL | dict(sliding_window=None),
}


# Families with two kinds of layers: here they take turns.
MIXED = {"lfm2": ("conv", "full_attention"), "granitemoehybrid": ("linear_attention", "full_attention")}


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
    dtype: str = "float32"

    @property
    def heads(self) -> int:
        return self.groups * self.group_size


PLAIN = Shape()


def every(families: Sequence[str], groups: int = 2, group_size: int = 2, **settings: Any) -> list[Shape]:
    """One shape of four heads for each family; where heads stay, no groups can be told apart."""
    shapes = [Shape(family, tied=family in ("mistral", "phi", "gpt2"), **settings) for family in families]
    return [s if FAMILIES[s.family].no_heads else replace(s, groups=groups, group_size=group_size) for s in shapes]


# What a row does not show: one family that has it.
UNSEEN = {
    "qwen2": "biases on query, key and value alone",
    "cohere": "layer norms, and one for the queries of each head; attention and MLP side by side",
    "gpt2": "matrices stored the other way round; positions that are learned",
}
ELSEWHERE = ("programs", "older", "no_stream")  # of a row: who else loads it, older names, a sentence


def traits(row: Any) -> set[tuple[str, object]]:
    """What a row says that one of all defaults does not: names count as other names, tuples by their shape."""
    packed = isinstance(row, Family) and row.query == row.key
    found: set[tuple[str, object]] = {("packed", True)} if packed else set()
    for field in fields(row):
        value = getattr(row, field.name)
        if value == field.default or field.name in ELSEWHERE:
            continue
        found.add((field.name, (len(value), len(set(value))) if isinstance(value, tuple) else bool(value)))
        if is_dataclass(value):
            found |= {(f"{field.name}.{name}", size) for name, size in traits(value)}
    return found


def covering() -> list[str]:
    """Families that have all between them that rows can say: those of `UNSEEN`, then each with a trait of its own."""
    chosen, seen = list(UNSEEN), set[tuple[str, object]]()
    for family in UNSEEN:
        seen |= traits(FAMILIES[family])
    for family, row in FAMILIES.items():
        if not traits(row) <= seen:
            chosen.append(family)
            seen |= traits(row)
    return chosen


COVERING = covering()


def grid(*values: Any) -> list[Any]:
    """Values for parametrize that run only in the whole grid, with `make test-all`; a tuple is several at once."""
    return [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.grid) for v in values]


def families(shapes: Sequence[Shape]) -> list[Any]:
    """For parametrize: these shapes; those of families outside `COVERING` run only in the whole grid.

    What every family must do is in `test_surgery.test_every_family_is_cut_as_masked_and_by_the_plan_and_loads_again`.
    """
    return [shape if shape.family in COVERING else grid(shape)[0] for shape in shapes]


EVERY_FAMILY = families(every(KNOWN))
# For parametrize: the trained models; the one with grouped queries always runs.
TRAINED = [name if name == "tiny-llama-gqa" else grid(name)[0] for name in EMBEDDED]


def sayable(shape: Shape, heads: int) -> bool:
    """Whether a stock configuration says so many heads: some want a divisor, and what stands in for LLaMA no biases."""
    row = FAMILIES[shape.family]
    stand_in = row.any_head_count or (bool(row.equal_type) and not shape.bias)
    return heads == shape.heads if row.no_heads else stand_in or shape.hidden % heads == 0


@st.composite
def shapes(draw: st.DrawFn, families: Sequence[str] = KNOWN, dtypes: Sequence[str] = ("float32",)) -> Shape:
    family = draw(st.sampled_from(families))
    row = FAMILIES[family]
    groups, size = draw(st.integers(1, 4)), draw(st.integers(1, 1 if row.no_heads else 3))
    head_dim = draw(st.sampled_from((4, 8, 12)))
    hidden = draw(st.sampled_from((16, 24, 40)))
    if row.no_heads:
        hidden = head_dim * groups  # a configuration without head_dim says no other
    elif not row.any_head_count:
        hidden = 6 * groups * size  # one that wants a hidden size that the number of heads divides
    return Shape(
        family,
        layers=draw(st.integers(1, 3)),
        groups=groups,
        group_size=size,
        head_dim=head_dim,
        hidden=hidden,
        neurons=8 * draw(st.integers(1, 5)) if row.no_neurons else draw(st.integers(4, 40)),  # experts: whole 16 bytes
        bias=draw(st.booleans()),
        tied=draw(st.booleans()),
        dtype=draw(st.sampled_from(dtypes)),
    )


@torch.no_grad()
def tiny(shape: Shape = PLAIN, seed: int = 0, vocabulary: int = VOCABULARY, **settings: Any) -> PreTrainedModel:
    """An untrained model whose weights, biases and norms are all random, so that none can be forgotten unseen."""
    row, places = FAMILIES[shape.family], range(shape.layers)
    heads: dict[str, Any] = {} if row.no_heads else dict(num_key_value_heads=shape.groups, head_dim=shape.head_dim)
    if kinds := MIXED.get(shape.family):  # so many as it has layers
        heads["layer_types"] = [kinds[i % 2] for i in places]
    if shape.family == "gpt_neo":
        heads["attention_types"] = [[[("global", "local")[i % 2]], 1] for i in places]
    config = AutoConfig.for_model(
        shape.family,
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=shape.tied,
        **{row.width: shape.neurons},
        **heads,
        **dict.fromkeys(BIASES, shape.bias),
        **dict.fromkeys(DROPOUTS, 0.0),
        **dict(bos_token_id=0, eos_token_id=1, pad_token_id=2) | OWN.get(shape.family, {}) | settings,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, shape.dtype))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2:
            parameter.copy_(noise * parameter.shape[-1] ** -0.5)  # the last axis is fan in, of packed experts too
        else:
            parameter.copy_(0.3 * noise + (0.0 if name.endswith("bias") else 1.0))
    return model.eval()


def some_plan(model: PreTrainedModel, heads: int | None, neurons: int | None, seed: int = 0, **settings: Any) -> Plan:
    """A plan by chance that keeps these widths, of heads and of neurons as far as the family can lose them."""
    row = Anatomy.of(model).family
    drawn = score(model, [], "random", seed=seed)
    if row.no_heads or row.no_neurons:
        heads, neurons = None if row.no_heads else heads, None if row.no_neurons else neurons
    return planned(model, drawn, heads=heads, neurons=neurons, **settings)


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


# Notebooks of a few lines that import no torch: what the tests of runs execute.
PARAMETERS = 'x = 1  # a number\nword = "a"  # a word\nshare = 0.5\nsure = True\nout = "out"'
RECORD = (  # the smallest record there is: the package's own, without torch
    "from amp_tutorial.runs import record as records\n"
    'r = records.Record("small", dict(x=x, word=word))\n'
    'r.metric("perplexity", x)\n'
    'r.write(out + "/record.json")'
)


def small(path: Path, *cells: str, parameters: str = PARAMETERS) -> Path:
    """A notebook with a parameters cell and these code cells."""
    nb = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    nb.cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}, id="parameters")]
    nb.cells += [nbformat.v4.new_code_cell(cell, id=f"cell-{i}") for i, cell in enumerate(cells)]
    nbformat.write(nb, path)
    return path


def counting(log: Path) -> str:
    """A cell that leaves a line in a file outside the run, so that runs can be counted."""
    return f'with open({str(log)!r}, "a") as file:\n    file.write(f"{{x}} {{word}}\\n")'
