"""Whole experts of a mixture: how much each one writes on some text, and the model without those that write least.

In a mixture of experts each token is routed to a few of a layer's many MLPs. A stock configuration counts the experts,
the same in every layer, so as many go from each layer, and each layer chooses its own.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..core.anatomy import Anatomy
from ..core.plans import whole_plan
from ..core.sums import Batch, entering, evaluating, model_inputs
from ..core.surgery import Pruned

EXPERT_CRITERIA = ("reap", "frequency")
# What configurations call the number of experts, and how many of them a token is routed to
COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "moe_k")
ALWAYS_TWO = ("phimoe", "glm4_moe")  # whose routers look for the two highest, whatever the configuration says


@dataclass(frozen=True)
class Mixtures:
    """What stays: of each layer with experts its number, and the experts by their numbers in the dense model."""

    kept: dict[int, list[int]]
    of: int  # experts that a layer had

    def __str__(self) -> str:
        stay = len(next(iter(self.kept.values())))
        return f"{stay} of {self.of} experts stay in each of {len(self.kept)} layers"


def mixtures(model: PreTrainedModel) -> dict[int, tuple[Any, Any]]:
    """The router and the packed experts of every decoder layer that has them.

    Raises:
        ValueError: a family without a row, no mixture of experts, or one whose experts are not packed as matrices.
    """
    anatomy = Anatomy.of(model)
    found: dict[int, tuple[Any, Any]] = {}
    for i in range(anatomy.layers):
        for module in model.get_submodule(f"{anatomy.family.layers}.{i}").modules():
            experts = getattr(module, "experts", None)
            router = getattr(module, "gate", None) or getattr(module, "router", None)
            if isinstance(experts, nn.Module) and isinstance(router, nn.Module) and hasattr(router, "weight"):
                found[i] = (router, experts)
    if not found:
        raise ValueError(f"A {model.config.model_type} has no experts beside a router here; nothing of that can go.")
    for i, (router, experts) in found.items():
        count = router.weight.shape[0]
        if (
            any(p.ndim < 2 or len(p) != count for p in experts.parameters())
            or getattr(experts, "num_experts", 0) != count
        ):
            raise ValueError(
                f"The experts of layer {i} are not packed as {count} matrices in a row; they can't be told apart."
            )
    return found


def score_experts(
    model: PreTrainedModel, batches: Iterable[Batch], criterion: str = "reap"
) -> dict[int, Float[Tensor, " experts"]]:
    """How much each expert does on some text; higher is more important, padding is left out.

    "reap" (Lasby et al. 2025, arXiv 2510.13999 [second-hand]): the mean, over the tokens that are routed to expert e,
    of g_e(x)·‖f_e(x)‖₂, with the router's weight g_e, as the layer uses it, and what the expert writes f_e. An expert
    that no token is routed to has 0. "frequency": the share of tokens that are routed to it.

    Args:
        model: a causal language model with experts; it is not changed.
        batches: as in `score`, read once.
        criterion: a name in `EXPERT_CRITERIA`.

    Returns:
        Of each layer with experts, by its number, a value for each of them; float32, on the CPU.

    Raises:
        ValueError: an unknown criterion, no experts, no tokens, or values that are not finite.
    """
    if criterion not in EXPERT_CRITERIA:
        raise ValueError(f"Unknown criterion {criterion!r}; choose from {', '.join(EXPERT_CRITERIA)}.")
    found = mixtures(model)
    sums = {i: torch.zeros(len(router.weight), dtype=torch.float64) for i, (router, _) in found.items()}
    counts, tokens = {i: torch.zeros_like(total) for i, total in sums.items()}, 0
    mask = torch.empty(0)

    def watch(i: int, experts: Any) -> Any:
        names = list(signature(experts.forward).parameters)[:3]  # states, numbers of experts, weights

        def look(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            x, index, weights = (args[n] if n < len(args) else kwargs[name] for n, name in enumerate(names))
            x, index, weights = x.flatten(0, -2)[mask], index.flatten(0, -2)[mask], weights.flatten(0, -2)[mask]
            for e, rows, weight in routed(index, weights, len(sums[i])):
                counts[i][e] += len(rows)
                if criterion == "reap":
                    alone = (torch.full_like(rows, e)[:, None], torch.ones_like(weight)[:, None])
                    norms = type(experts).forward(experts, x[rows], *alone).double().norm(dim=-1)
                    sums[i][e] += (weight.double() * norms).sum().cpu()

        return experts.register_forward_pre_hook(look, with_kwargs=True)

    hooks = [watch(i, experts) for i, (_, experts) in found.items()]
    try:
        with evaluating(model):
            for batch in entering(model, batches):
                inputs = model_inputs(model, batch)
                mask = inputs["attention_mask"].flatten().bool()
                tokens += int(mask.sum())
                model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not tokens:
        raise ValueError("The batches hold no tokens; experts are scored on text.")
    scores = {
        i: (sums[i] / counts[i].clamp(min=1) if criterion == "reap" else counts[i] / tokens).float() for i in found
    }
    if not all(values.isfinite().all() for values in scores.values()):
        raise ValueError("Scores of experts are not finite: the model's weights, or its states on this text, are not.")
    return scores


def routed(
    index: Int[Tensor, "tokens chosen"], weights: Float[Tensor, "tokens chosen"], experts: int
) -> Iterator[tuple[int, Int[Tensor, " rows"], Float[Tensor, " rows"]]]:
    """Each expert that a token is routed to, with the tokens and the router's weights."""
    for e in range(experts):
        rows, places = torch.where(index == e)
        if len(rows):
            yield e, rows, weights[rows, places]


def drop_experts(model: PreTrainedModel, scores: Mapping[int, Tensor], keep: int) -> Pruned:
    """A stock model with the `keep` experts of each layer that score highest; routers choose among those that stay.

    It computes what the dense one does with the other experts' logits at −∞. Of equals the first stays. Where fewer
    stay than a token is routed to, it is routed to all of them.

    Args:
        model: it is left alone.
        scores: of each layer with experts, as `score_experts` gives them.

    Returns:
        The model; a plan that keeps all heads and neurons; a report of which experts stay (`Mixtures`).

    Raises:
        ValueError: no experts; scores of other layers or experts, or NaN; a number that is none; one expert where
            routers always take two; groups of experts, from which routers choose first.
    """
    found, config = mixtures(model), model.config
    shapes = {i: len(router.weight) for i, (router, _) in found.items()}
    if {i: len(values) for i, values in scores.items()} != shapes or any(v.isnan().any() for v in scores.values()):
        raise ValueError("Give a score for each expert of each layer that has some, and none NaN; see score_experts.")
    [count] = set(shapes.values())
    if not 1 <= keep < count:
        raise ValueError(f"keep={keep} of {count} experts is not possible: at least 1 goes and 1 stays.")
    if keep < 2 and config.model_type in ALWAYS_TWO:
        raise ValueError(f"The routers of a {config.model_type} look for two experts always; keep at least 2.")
    if (getattr(config, "n_group", None) or 1) > 1:
        raise ValueError(
            f"Its router chooses among {config.n_group} groups of experts first, which would not stay equal."
        )
    kept = {i: sorted(values.argsort(descending=True, stable=True)[:keep].tolist()) for i, values in scores.items()}
    small = copy.deepcopy(model)
    for i, (router, experts) in mixtures(small).items():
        stay = torch.tensor(kept[i], device=router.weight.device)
        for module in (router, experts):
            for part in module.modules():
                for name, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
                    if count not in tensor.shape[:1] and tensor.shape != (1, count):
                        continue  # else of each expert a row or bias of the router, a correction of it, a matrix
                    data = tensor.detach().index_select(0 if len(tensor) == count else 1, stay)
                    learned = isinstance(tensor, nn.Parameter)
                    setattr(part, name, nn.Parameter(data, tensor.requires_grad) if learned else data)
            for name in COUNTS:
                if getattr(module, name, None) == count:
                    setattr(module, name, keep)
            if getattr(module, "top_k", 0) > keep:
                module.top_k = keep
    for name in COUNTS:
        if getattr(config, name, None) == count:
            setattr(small.config, name, keep)
    for name in CHOSEN:
        if (getattr(config, name, None) or 0) > keep:
            setattr(small.config, name, keep)
    return Pruned(small, whole_plan(Anatomy.of(model)), Mixtures(kept, count))
