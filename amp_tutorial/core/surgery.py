"""Carry a plan out: mask (zero what goes, keep the shapes) or cut (a smaller stock model). Both compute the same."""

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import dispatch_model
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from ..files.checkpoints import tokenizer_of
from .anatomy import Anatomy, weight_of
from .checkpoint import save, without_weights
from .plans import Plan

Cut = tuple[int, Int[Tensor, " kept"]]  # (axis, indices to keep)


class Depth(NamedTuple):
    """How layers go whole. The core cuts all layers alike; `methods/whole_layers.py` plugs this in."""

    settings: Callable[[PreTrainedConfig, list[int]], dict[str, Any]]  # of the configuration with these layers alone
    names: Callable[[Anatomy, Plan], Callable[[str], str]]  # what a tensor is called then; "" if its layer goes
    pass_by: Callable[[nn.Module], RemovableHandle]  # lets a layer hand on what it is given


class Words(NamedTuple):
    """How tokens of the vocabulary go. `methods/vocabulary.py` plugs this in."""

    settings: Callable[[Any, Plan], dict[str, Any]]  # of a configuration with the plan's tokens alone
    cuts: Callable[[PreTrainedModel, list[int]], dict[str, Cut]]
    shut: Callable[[PreTrainedModel, list[int]], list[RemovableHandle]]  # lets a model read and say no others
    tokenizer: Callable[[PreTrainedTokenizerBase, list[int]], PreTrainedTokenizerBase]


DEPTH: list[Depth] = []
VOCABULARY: list[Words] = []


@dataclass
class Pruned:
    """A smaller model, what stays in it, and what is known of how it was made: what every way of pruning returns."""

    model: PreTrainedModel  # a stock model
    plan: Plan  # of the dense model
    report: Any = None  # of repair, shots and budgets: what they measured on the way; it can be printed

    def save(
        self,
        folder: str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        overwrite: bool = False,
        max_shard_size: str | int | None = None,
    ) -> Path:
        """Write the model as a stock checkpoint with its tokenizer, by default that of the model it was made from.

        Raises:
            ValueError, OSError: see `save`; no tokenizer where the dense model came from.
        """
        if tokenizer is None:
            tokenizer = tokenizer_of(self.model.name_or_path, self.plan.of_tokens or self.model.config.vocab_size)
        if self.plan.tokens is not None:
            tokenizer = VOCABULARY[0].tokenizer(tokenizer, self.plan.tokens)
        return save(self.model, tokenizer, folder, overwrite, max_shard_size)


def made_for(anatomy: Anatomy, plan: Plan) -> None:
    """Refuse a plan for a model of another shape, by a ValueError."""
    there = (anatomy.layers, anatomy.heads, anatomy.groups, anatomy.neurons)
    asked = (len(plan.heads), plan.of_heads, plan.of_groups, plan.of_neurons)
    if there != asked:
        raise ValueError(
            f"The plan is for (layers, heads, KV groups, neurons) = {asked}, the model has {there}; plan anew for it."
        )
    if plan.tokens is not None and (rows := len(anatomy.model.get_input_embeddings().weight)) != plan.of_tokens:
        raise ValueError(f"The plan is for {plan.of_tokens:,} tokens, the model has {rows:,}; plan anew for it.")


def _fits(anatomy: Anatomy, plan: Plan) -> None:
    made_for(anatomy, plan)
    layers = plan.kept_layers
    widths = {(len(plan.heads[i]), len(plan.groups(i)), len(plan.neurons[i])) for i in layers}
    if len(widths) > 1 or 0 in min(widths)[:2] or (min(widths)[2] == 0 and anatomy.neurons):
        raise ValueError(
            "The plan keeps different widths in different layers, or none: no stock configuration says so."
        )
    for i in layers:
        for what, kept, count in (("head", plan.heads[i], anatomy.heads), ("neuron", plan.neurons[i], anatomy.neurons)):
            if kept != sorted(set(kept) & set(range(count))):
                raise ValueError(f"Layer {i} of the plan must name each {what} once, ascending, from 0 to {count - 1}.")
        served = Counter(head // anatomy.group_size for head in plan.heads[i])
        if len(set(served.values())) > 1:
            raise ValueError(
                f"The plan keeps {dict(sorted(served.items()))} query heads of the KV groups of layer {i}: every group "
                "left must serve the same number."
            )


def smaller_config(anatomy: Anatomy, plan: Plan) -> PreTrainedConfig:
    """Of the cut model: in the same family where it can say the head count, else the equal one, or a ValueError."""
    family, (heads, groups, neurons) = anatomy.family, plan.widths
    settings = anatomy.model.config.to_dict()
    kind = settings.pop("model_type")
    if not family.no_heads:
        settings["num_attention_heads"] = heads
        settings["num_key_value_heads"] = groups
        settings["head_dim"] = anatomy.head_dim  # without it a reload would guess hidden / heads, wrongly
    if not family.no_neurons:
        settings |= {family.width: neurons, **dict(family.with_width)}
    if plan.layers is not None:
        settings |= DEPTH[0].settings(anatomy.model.config, plan.layers)
    if plan.tokens is not None:
        settings |= VOCABULARY[0].settings(anatomy.model.config, plan)
    if heads not in anatomy.head_counts:
        raise ValueError(f"No stock configuration of {kind} says {heads} heads; possible: {anatomy.head_counts}.")
    if not family.any_head_count and anatomy.hidden % heads:
        kind = anatomy.equal_type
        settings |= dict(family.equal_settings)
    if not tied(anatomy.model):
        settings["tie_word_embeddings"] = False  # whatever it says: some checkpoints store two different matrices
    for stale in ("architectures", "transformers_version", "_name_or_path"):
        settings.pop(stale, None)
    config = AutoConfig.for_model(kind, **settings)
    config._attn_implementation = anatomy.model.config._attn_implementation
    config._name_or_path = anatomy.model.config._name_or_path  # never saved; so that the source is not overwritten
    return config


def tied(model: PreTrainedModel) -> bool:
    """Whether the output head is the embedding, not only whether the configuration says so."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and head.weight is embedding.weight


@contextmanager
def masked(model: PreTrainedModel, plan: Plan) -> Iterator[PreTrainedModel]:
    """Silence what the plan removes while the context lasts, without touching a weight.

    A head's or neuron's only way out is its columns of an output projection, so its input there is set to zero. In a
    family whose query and key norms span all heads (OLMo-2), what stays is normed without what goes, as after a cut.
    A layer that goes whole still runs, so each layer's cache stays as long as the text, but hands on what it was given.
    """
    anatomy = Anatomy.of(model)
    _fits(anatomy, plan)
    handles = []
    try:
        for i in range(anatomy.layers):
            handles += silenced(anatomy, plan, i)
        handles += [] if plan.tokens is None else VOCABULARY[0].shut(model, plan.tokens)
        yield model
    finally:
        for handle in handles:
            handle.remove()


def silenced(anatomy: Anatomy, plan: Plan, i: int) -> list[RemovableHandle]:
    """What `masked` does to layer i, by itself: the plan may keep other widths elsewhere."""
    block = anatomy.model.get_submodule(f"{anatomy.family.layers}.{i}")
    if i not in plan.kept_layers:
        return [DEPTH[0].pass_by(block)]
    layer, kept, handles = anatomy.layer(i), _kept(anatomy, plan, i), narrowed(anatomy, plan, i, block)
    for module, rows in ((layer.output, kept["query"]), (layer.neurons_out, kept["neurons"])):
        if module is not None:
            mask = torch.zeros_like(weight_of(module)[0]).index_fill_(0, rows.to(module.weight.device), 1)
            handles.append(module.register_forward_pre_hook(lambda _, args, mask=mask: (args[0] * mask, *args[1:])))
    return handles


def narrowed(anatomy: Anatomy, plan: Plan, i: int, block: nn.Module) -> list[RemovableHandle]:
    """Let the norms of layer i, or of a copy of it, that span all heads leave out those that go, as after a cut."""

    def narrow(norm: nn.Module, kept: Tensor) -> RemovableHandle:
        small = copy.deepcopy(norm)
        kept = kept.to(norm.weight.device)  # type: ignore[arg-type]
        small.weight = nn.Parameter(norm.weight[kept])  # type: ignore[index]

        def scatter(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return torch.zeros_like(output).index_copy(-1, kept, small(args[0][..., kept]))

        return norm.register_forward_hook(scatter)

    norms = anatomy.family.norms if anatomy.family.spanning else ()
    return [narrow(block.get_submodule(name), _kept(anatomy, plan, i)[kind]) for name, kind in norms]


def prune(model: PreTrainedModel, plan: Plan, inplace: bool = False) -> Pruned:
    """A smaller stock model that computes what the masked one does; the layers that stay are numbered anew.

    Args:
        inplace: give up the dense model's weights one by one as they are cut; the dense model is unusable afterwards.

    Raises:
        ValueError: the plan was made for another shape, or no stock configuration can say the result.
    """
    anatomy = Anatomy.of(model)
    _fits(anatomy, plan)
    config = smaller_config(anatomy, plan)
    own = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}  # a tied weight has one name here
    source = {name: tensor for name, tensor in model.state_dict().items() if name in own}
    weights, names = {}, str if plan.layers is None else DEPTH[0].names(anatomy, plan)
    small = without_weights(config, model.dtype)
    cuts = cuts_into(small, anatomy, plan, names)
    for name in list(source):
        tensor = source.pop(name).detach()
        new = names(name)
        if new and name in cuts:
            axis, kept = cuts[name]
            tensor = tensor.index_select(axis, kept.to(tensor.device))
        if new:
            weights[new] = tensor if name in cuts or inplace else tensor.clone()
        if inplace and (name in cuts or not new):
            model.get_parameter_or_buffer(name).data = torch.empty(0, dtype=tensor.dtype)
    missing, unexpected = small.load_state_dict(weights, strict=False, assign=True)
    small.tie_weights()
    lost = [name for name in missing if dict(small.named_parameters(remove_duplicate=False))[name].is_meta]
    if lost or unexpected:
        raise ValueError(f"{type(small).__name__} does not hold the same weights: {lost + list(unexpected)}.")
    old = {names(name): name for name, _ in model.named_modules(remove_duplicate=False)}
    fill_buffers(small, model, config, old)
    small.generation_config = copy.deepcopy(model.generation_config)
    if plan.tokens is not None and small.generation_config is not None:
        small.generation_config.update(**VOCABULARY[0].settings(model.generation_config, plan))
    trained = {names(name): parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(trained[name])
    if len(placed := getattr(model, "hf_device_map", {})) > 1:  # by accelerate, on several devices
        dispatch_model(small, {new: place for name, place in placed.items() if (new := names(name))}, force_hooks=True)
    return Pruned(small.train(model.training), plan)


def _features(heads: list[int], head_dim: int) -> Int[Tensor, " features"]:
    """Rows (of query) or columns (of output) that belong to these heads."""
    return (torch.tensor(heads)[:, None] * head_dim + torch.arange(head_dim)).flatten()


def _kept(anatomy: Anatomy, plan: Plan, i: int) -> dict[str, Int[Tensor, " kept"]]:
    """For each kind of rows: those that stay in layer i."""
    return {
        "query": _features(plan.heads[i], anatomy.head_dim),
        "shared": _features(plan.groups(i), anatomy.head_dim),
        "neurons": torch.tensor(plan.neurons[i], dtype=torch.long),
    }


def cuts_of(anatomy: Anatomy, plan: Plan, i: int) -> dict[str, Cut]:
    """For every tensor of layer i that shrinks: the axis and the indices that stay."""
    f, found = anatomy.family, {}
    prefix, kept = f"{f.layers}.{i}.", _kept(anatomy, plan, i)
    block = anatomy.model.get_submodule(f"{f.layers}.{i}")
    heads = {"query": torch.tensor(plan.heads[i]), "shared": torch.tensor(plan.groups(i))}
    tensors = {name: tensor.shape for name, tensor in block.named_parameters()}

    def cut(name: str, axis: int, indices: Tensor) -> None:
        turned = isinstance(block.get_submodule(name), Conv1D)
        found[f"{prefix}{name}.weight"] = (1 - axis if turned else axis, indices)
        if axis == 0 and f"{name}.bias" in tensors:
            found[f"{prefix}{name}.bias"] = (0, indices)

    for name, kinds in f.rows():
        starts = [sum(map(anatomy.features, kinds[:k])) for k in range(len(kinds))]
        if f"{name}.weight" not in tensors:
            continue  # a norm that this model does without
        by_head = name in dict(f.norms) and len(tensors[f"{name}.weight"]) == 2  # (heads, head_dim)
        parts = [(heads if by_head else kept)[k] + start for k, start in zip(kinds, starts, strict=True)]
        cut(name, 0, torch.cat(parts))
    if not f.no_heads:
        cut(f.output, 1, kept["query"])  # heads live in the columns of the output projection
        found |= {f"{prefix}{name}": (0, heads["query"]) for name in f.scalars}
    if not f.no_neurons:
        cut(f.neurons_out, 1, kept["neurons"])
    return found


def cuts_into(small: PreTrainedModel, anatomy: Anatomy, plan: Plan, names: Callable[[str], str]) -> dict[str, Cut]:
    """All that `cuts_of` says; a ValueError, before any work, if by a row's fault not all that shrinks is among it."""
    cuts = {name: cut for i in plan.kept_layers for name, cut in cuts_of(anatomy, plan, i).items()}
    cuts |= {} if plan.tokens is None else VOCABULARY[0].cuts(anatomy.model, plan.tokens)
    wanted, found = {name: tuple(tensor.shape) for name, tensor in small.state_dict().items()}, {}
    for name, tensor in anatomy.model.state_dict().items():
        axis, kept = cuts.get(name, (-1, ()))
        found[names(name)] = tuple(len(kept) if k == axis else n for k, n in enumerate(tensor.shape))
    for name in sorted({*wanted, *found} - {""}):
        if (would := found.get(name)) != (fits := wanted.get(name)):
            raise ValueError(
                f"{name} would be {would} where {type(small).__name__} wants {fits}: the row "
                f"{anatomy.model.config.model_type!r} of amp_tutorial.FAMILIES does not say so; mend the row."
            )
    return cuts


def fill_buffers(
    small: PreTrainedModel, dense: PreTrainedModel, config: PreTrainedConfig, old: dict[str, str] | None = None
) -> None:
    """Fill what no checkpoint stores: anew from the configuration, as a reload does; what that can't say is copied.

    `old` has the names that the modules had in the dense model, where they are others.
    """
    device = next(dense.parameters()).device
    for name, module in list(small.named_modules()):
        if not any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            continue
        if "config" in inspect.signature(type(module).__init__).parameters and "Rotary" in type(module).__name__:
            small.set_submodule(name, type(module)(config=config).to(device))
        else:
            for key, buffer in dense.get_submodule(old[name] if old else name).named_buffers(recurse=False):
                module.register_buffer(
                    key, buffer.detach().to(module.get_buffer(key).dtype, copy=True), persistent=False
                )
            for parameter in module.parameters(recurse=False):
                parameter.__dict__["_is_hf_initialized"] = True  # so that the next line makes buffers alone
            small._init_weights(module)
