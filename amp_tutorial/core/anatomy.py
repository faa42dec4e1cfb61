"""The anatomy of a decoder: how many heads, KV groups and neurons a model has, and in which matrices they live."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import has_offloaded_params
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..files.checkpoints import wrapping
from .families import Family, Kind, family_of

Projection = Any  # nn.Linear, or GPT-2's Conv1D; None where the heads or neurons of the family stay


def weight_of(module: nn.Module) -> Float[Tensor, "out in"]:
    """The weight as (out, in) features, whichever way round the module stores it (GPT-2's Conv1D: transposed)."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.T if isinstance(module, Conv1D) else weight


def exact(x: Tensor) -> Tensor:
    """In float64, on its own device if that has it: Apple's GPU has not, so from there it comes to the CPU."""
    return (x.cpu() if x.device.type == "mps" else x).double()


Of = Callable[[nn.Module], Tensor]  # `weight_of`, or the gradient of that


@dataclass(frozen=True)
class Layer:
    """The linear maps of one decoder layer that pruning touches; one packed matrix may be several of them."""

    query: Projection  # (heads · head_dim, hidden)
    key: Projection  # (groups · head_dim, hidden)
    value: Projection  # (groups · head_dim, hidden)
    output: Projection  # (hidden, heads · head_dim): a head is a block of columns
    neurons_in: tuple[Projection, ...]  # (neurons, hidden) each
    neurons_out: Projection  # (hidden, neurons): a neuron is a column


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
    neurons: int  # intermediate size; 0 where neurons stay

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Anatomy":
        """Read the anatomy off a model.

        Raises:
            ValueError: no decoder, a quantised model, a family without a row in the table, a row that names what this
                model does not have, offloaded weights, or shapes of weights that disagree with the configuration.
        """
        if said := wrapping(model):
            raise ValueError(said)
        family = family_of(model.config)
        config = model.config
        wanted = ("num_attention_heads", "hidden_size", *(() if family.no_neurons else (family.width,)))
        absent = [f"config.{name}" for name in wanted if not hasattr(config, name)]
        absent += [name for name in (family.layers,) if _submodule(model, name) is None]
        if absent:
            raise ValueError(
                f"A {type(model).__name__} has no {' and no '.join(absent)}, where the row {config.model_type!r} of "
                "amp_tutorial.FAMILIES says that it has; load it with AutoModelForCausalLM, or mend the row."
            )
        if any(has_offloaded_params(module) for module in model.modules()):
            raise ValueError(
                "Some weights of the model are offloaded to CPU or disk, where they can be neither scored nor cut; "
                "load it with a device_map that gives each a device."
            )
        heads, hidden = config.num_attention_heads, config.hidden_size
        head_dim = getattr(config, "head_dim", None) or hidden // heads
        groups = heads if family.no_heads else getattr(config, "num_key_value_heads", None) or heads
        depth = len(model.get_submodule(family.layers))
        neurons = 0 if family.no_neurons else getattr(config, family.width)
        if neurons is None or family.with_width:  # GPT-2: four times the hidden size, unless it is said
            neurons = weight_of(model.get_submodule(f"{family.layers}.0.{family.neurons_out}")).shape[1]
        anatomy = cls(model, family, depth, hidden, heads, groups, head_dim, neurons)
        for i in range(depth):
            anatomy._check(i)
        return anatomy

    def _check(self, i: int) -> None:
        block, f = self.model.get_submodule(f"{self.family.layers}.{i}"), self.family
        expected = {
            name: (sum(self.features(kind) for kind in kinds), self.hidden)
            for name, kinds in f.rows()
            if name not in dict(f.norms)
        }
        if not f.no_heads or _submodule(block, f.output):
            expected[f.output] = (self.hidden, self.features("query"))
        if not f.no_neurons:
            expected[f.neurons_out] = (self.hidden, self.neurons)
        for name, shape in expected.items():
            module = _submodule(block, name)
            if module is None:
                raise ValueError(
                    f"Layer {i} has no {name}, where the row {self.model.config.model_type!r} of amp_tutorial.FAMILIES "
                    "says that it has; mend the row."
                )
            if not isinstance(module, nn.Linear | Conv1D):
                raise ValueError(
                    f"Layer {i}'s {name} is a {type(module).__name__}, not a plain nn.Linear; merge adapters first."
                )
            if tuple(weight_of(module).shape) != shape:
                raise ValueError(
                    f"Layer {i}'s {name} weight is {tuple(weight_of(module).shape)} where the configuration says "
                    f"{shape}: give the configuration the right head_dim, head counts and {f.width}."
                )

    def features(self, kind: Kind) -> int:
        """Rows that all heads, all key-value heads, or all neurons of a layer have in a matrix."""
        return {"query": self.heads * self.head_dim, "shared": self.groups * self.head_dim}.get(kind, self.neurons)

    def layer(self, i: int, block: nn.Module | None = None) -> Layer:
        """The maps of layer i, or of a copy of it."""
        block, f = block or self.model.get_submodule(f"{self.family.layers}.{i}"), self.family

        def find(name: str, absent: str) -> Projection:
            return None if absent else block.get_submodule(name)

        return Layer(
            query=find(f.query, f.no_heads),
            key=find(f.key, f.no_heads),
            value=find(f.value, f.no_heads),
            output=_submodule(block, f.output),  # None in a layer that has no attention
            neurons_in=tuple(find(name, "") for name in (() if f.no_neurons else f.neurons_in)),
            neurons_out=find(f.neurons_out, f.no_neurons),
        )

    @property
    def group_size(self) -> int:
        """Query heads that share one key-value head; 1 with multi-head attention."""
        return self.heads // self.groups

    @property
    def group_cost(self) -> int:
        """Parameters of one KV group with its query heads; one head with multi-head attention: 4·head_dim·hidden."""
        return self.cost(query=self.group_size * self.head_dim, shared=self.head_dim)

    @property
    def query_cost(self) -> int:
        """Parameters of one query head in every KV group, which keeps its key and value."""
        return self.cost(query=self.groups * self.head_dim)

    @property
    def neuron_cost(self) -> int:
        """Parameters of one neuron: 3·hidden with gate, up and down; 2·hidden + 1 with fc1, its bias and fc2."""
        return 0 if self.family.no_neurons else self.cost(neurons=1)

    def cost(self, **features: int) -> int:
        """Parameters of one layer that so many rows of each kind stand for, with their columns in the output."""
        f, total = self.family, 0
        block, norms = self.model.get_submodule(f"{f.layers}.0"), dict(f.norms)
        for name, kinds in f.rows():
            if (module := _submodule(block, name)) is not None:
                a_row = 1 if name in norms else self.hidden + (module.bias is not None)
                total += a_row * sum(features.get(kind, 0) for kind in kinds)
        query = features.get("query", 0)
        return total + self.hidden * (query + features.get("neurons", 0)) + len(f.scalars) * query // self.head_dim

    @property
    def no_heads(self) -> str:
        """Why this model can lose no heads: its family cannot, or not with a setting that it has; "" if it can."""
        for name in self.family.no_heads_with:
            setting: object = self.model.config
            for part in name.split("."):
                setting = setting.get(part) if isinstance(setting, dict) else getattr(setting, part, None)
            if setting:
                return f"with {name} its head_dim is always hidden_size / num_attention_heads"
        return self.family.no_heads

    @property
    def head_counts(self) -> list[int]:
        """The numbers of query heads that a stock configuration of this model can say."""
        if self.no_heads:
            return [self.heads]
        anything = self.family.any_head_count or self.equal_type
        return [h for h in range(1, self.heads + 1) if anything or self.hidden % h == 0]

    @property
    def equal_type(self) -> str:
        """The architecture that can stand in for this one with any number of heads; "" if there is none."""
        f, config = self.family, self.model.config
        return "" if any(getattr(config, name, False) for name in f.equal_unless) else f.equal_type

    @property
    def layer_parameters(self) -> list[int]:
        """Parameters of each decoder layer, norms included."""
        return [sum(p.numel() for p in layer.parameters()) for layer in self.model.get_submodule(self.family.layers)]

    @property
    def block_parameters(self) -> int:
        """Parameters of all decoder layers; embeddings, last norm and output head are not in it."""
        return sum(self.layer_parameters)

    @torch.no_grad()
    def head_weights(self, i: int, of: Of = weight_of, shared: float = 1.0) -> Float[Tensor, "heads weights"]:
        """All weights of each query head of layer i in one row; a shared key-value head stands in the row of each.

        `shared` multiplies what of a row is shared. With 1 / group_size sums over a KV group's rows count its key and
        value once: the gradient of a shared weight is the sum of what its query heads add, and each gets an equal part.
        A norm of weights wants 1: it asks how large all is that a head computes with, and norms of rows do not add up.
        """
        block, parts = self.model.get_submodule(f"{self.family.layers}.{i}"), []
        for name, kinds in self.family.rows():
            if name in dict(self.family.norms) or "neurons" in kinds:
                continue
            weight = of(block.get_submodule(name))
            for kind, part in zip(kinds, weight.split([self.features(kind) for kind in kinds]), strict=True):
                each = part.reshape(self.heads if kind == "query" else self.groups, -1)
                parts.append(each if kind == "query" else (shared * each).repeat_interleave(self.group_size, dim=0))
        if (module := self.layer(i).output) is None:
            return torch.zeros(self.heads, 1)
        output = of(module)
        return torch.cat([*parts, output.reshape(self.hidden, self.heads, -1).transpose(0, 1).flatten(1)], dim=1)

    @torch.no_grad()
    def neuron_weights(self, i: int, of: Of = weight_of) -> Float[Tensor, "neurons weights"]:
        """All weights of each neuron of layer i in one row."""
        layer = self.layer(i)
        if self.family.no_neurons:
            return torch.empty(0, 1)
        inner = [part for m in dict.fromkeys(layer.neurons_in) for part in of(m).split(self.neurons)]
        return torch.cat([*inner, of(layer.neurons_out).T], dim=1)


def _submodule(block: nn.Module, name: str) -> nn.Module | None:
    """A submodule that not every model of the family has (a norm that a setting switches on), or None."""
    try:
        return block.get_submodule(name)
    except AttributeError:
        return None
