"""Where heads, KV groups and neurons live in each model family. The rest of the package knows no family by name.

To add a family, add a row to `FAMILIES`: the key is the `model_type` of its configuration.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Family:
    """Module names inside one decoder layer."""

    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    output: str = "self_attn.o_proj"
    neurons_in: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")  # a row of each is one neuron
    neurons_out: str = "mlp.down_proj"  # a column is one neuron
    layers: str = "model.layers"
    any_head_count: bool = True  # False: the configuration only takes head counts that divide the hidden size
    equal_type: str | None = None  # an architecture that computes the same and takes any head count
    equal_settings: tuple[tuple[str, object], ...] = ()  # what its configuration needs for that


FAMILIES = {
    "llama": Family(any_head_count=False, equal_type="mistral", equal_settings=(("sliding_window", None),)),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "phi": Family(output="self_attn.dense", neurons_in=("mlp.fc1",), neurons_out="mlp.fc2"),
}


@dataclass(frozen=True)
class Layer:
    """The linear maps of one decoder layer that pruning touches."""

    query: nn.Linear  # (heads · head_dim, hidden)
    key: nn.Linear  # (groups · head_dim, hidden)
    value: nn.Linear  # (groups · head_dim, hidden)
    output: nn.Linear  # (hidden, heads · head_dim): a head is a block of columns
    neurons_in: tuple[nn.Linear, ...]  # (neurons, hidden) each
    neurons_out: nn.Linear  # (hidden, neurons): a neuron is a column


@dataclass(frozen=True)
class Anatomy:
    """Counts and modules of a decoder: what there is to prune."""

    model: PreTrainedModel
    family: Family
    layers: int
    hidden: int
    heads: int  # query heads in every layer
    groups: int  # key-value heads; each serves heads / groups query heads
    head_dim: int
    neurons: int  # intermediate size

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Anatomy":
        """Read the anatomy off a model.

        Raises:
            ValueError: the family has no row in the table, a width differs between layers, or the shapes of the
                weights disagree with the configuration.
        """
        config = model.config
        kind = config.model_type
        if kind not in FAMILIES:
            raise ValueError(
                f"Model type {kind!r} has no row in amp_tutorial.families.FAMILIES (rows: {', '.join(FAMILIES)}); "
                "add one that names its query, key, value and output projections and its MLP's linear maps."
            )
        family = FAMILIES[kind]
        heads, hidden = config.num_attention_heads, config.hidden_size
        head_dim = getattr(config, "head_dim", None) or hidden // heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        depth = len(model.get_submodule(family.layers))
        anatomy = cls(model, family, depth, hidden, heads, groups, head_dim, config.intermediate_size)
        for i in range(depth):
            anatomy._check(i)
        return anatomy

    def _check(self, i: int) -> None:
        layer = self.layer(i)
        expected = {
            "query": (layer.query, (self.heads * self.head_dim, self.hidden)),
            "key": (layer.key, (self.groups * self.head_dim, self.hidden)),
            "value": (layer.value, (self.groups * self.head_dim, self.hidden)),
            "output": (layer.output, (self.hidden, self.heads * self.head_dim)),
            "neurons_out": (layer.neurons_out, (self.hidden, self.neurons)),
        }
        for name, (module, shape) in expected.items():
            if not isinstance(module, nn.Linear):
                raise ValueError(f"Layer {i}'s {name} projection is a {type(module).__name__}, not a plain nn.Linear.")
            if tuple(module.weight.shape) != shape:
                raise ValueError(
                    f"Layer {i}'s {name} weight is {tuple(module.weight.shape)} where the configuration says {shape}: "
                    "give the configuration the right head_dim, head counts and intermediate_size."
                )

    def layer(self, i: int) -> Layer:
        block = self.model.get_submodule(f"{self.family.layers}.{i}")
        f = self.family
        query, key, value, output = (block.get_submodule(name) for name in (f.query, f.key, f.value, f.output))
        return Layer(
            query,
            key,
            value,
            output,
            tuple(block.get_submodule(name) for name in f.neurons_in),
            block.get_submodule(f.neurons_out),
        )

    @property
    def group_size(self) -> int:
        """Query heads that share one key-value head; 1 with multi-head attention."""
        return self.heads // self.groups

    @property
    def group_cost(self) -> int:
        """Parameters of one KV group with its query heads; one head with multi-head attention: 4·head_dim·hidden."""
        layer = self.layer(0)
        rows = {layer.query: self.group_size, layer.key: 1, layer.value: 1}
        inputs = sum(n * self.head_dim * (self.hidden + (m.bias is not None)) for m, n in rows.items())
        return inputs + self.group_size * self.head_dim * self.hidden

    @property
    def neuron_cost(self) -> int:
        """Parameters of one neuron: 3·hidden with gate, up and down; 2·hidden + 1 with fc1, its bias and fc2."""
        return sum(self.hidden + (m.bias is not None) for m in self.layer(0).neurons_in) + self.hidden

    @property
    def block_parameters(self) -> int:
        """Parameters of all decoder layers, norms included; embeddings, last norm and output head are not."""
        return sum(p.numel() for p in self.model.get_submodule(self.family.layers).parameters())

    @torch.no_grad()
    def head_weights(self, i: int) -> Float[Tensor, "heads weights"]:
        """All weights of each query head of layer i in one row; a shared key-value head counts for each of them."""
        layer, g = self.layer(i), self.group_size
        shared = [m.weight.view(self.groups, -1).repeat_interleave(g, dim=0) for m in (layer.key, layer.value)]
        output = layer.output.weight.view(self.hidden, self.heads, -1).transpose(0, 1).flatten(1)
        return torch.cat([layer.query.weight.view(self.heads, -1), *shared, output], dim=1)

    @torch.no_grad()
    def neuron_weights(self, i: int) -> Float[Tensor, "neurons weights"]:
        """All weights of each neuron of layer i in one row."""
        layer = self.layer(i)
        return torch.cat([*(m.weight for m in layer.neurons_in), layer.neurons_out.weight.T], dim=1)
