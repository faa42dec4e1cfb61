"""What a plan will do to a model and what loads the result; what a model costs. Shapes alone, before any work."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..core.anatomy import Anatomy
from ..core.checkpoint import configuration, without_weights
from ..core.plans import Plan
from ..core.surgery import made_for, smaller_config
from ..files.arguments import at_least_one
from .programs import Loads, loads


@dataclass(frozen=True)
class Preview:
    """What a plan will do to a model, and what will load the result. Pairs are (before, after)."""

    layers: tuple[int, int]
    heads: tuple[int, int]
    groups: tuple[int, int]
    neurons: tuple[int, int]
    parameters: tuple[int, int]  # after: 0 if no stock configuration says the result
    kv_cache_per_token: tuple[int, int]  # bytes
    model_types: tuple[str, str]  # after: "" if no stock configuration says the result
    architecture: str  # the class that loads it
    why: str  # this type, or why none
    head_counts: list[int]  # that are possible, in whole units of the plan
    loads: list[Loads]

    @property
    def possible(self) -> bool:
        return bool(self.architecture)

    @property
    def ratio(self) -> float:
        """Share of all parameters that goes; 0 if nothing can be saved."""
        before, after = self.parameters
        return 1 - after / before if self.possible else 0.0

    def __str__(self) -> str:
        def fall(name: str, pair: tuple[int, int], unit: str = "") -> str:
            return f"{name} {pair[0]:,} → {pair[1]:,}{unit}"

        cut = ", ".join(
            fall(name, pair)
            for name, pair in (("heads", self.heads), ("KV groups", self.groups), ("neurons", self.neurons))
        )
        before, after = self.layers
        lines = [f"Cut in each of {after if after == before else f'{after} of {before}'} layers: {cut}."]
        if not self.possible:
            counts = ", ".join(map(str, self.head_counts))
            return "\n".join([*lines, f"Not possible: {self.why}. Keep {counts} heads (nearest=True picks one)."])
        lines += [
            f"{fall('Parameters', self.parameters)} (−{self.ratio:.1%}); "
            f"{fall('KV cache', self.kv_cache_per_token, ' bytes per token')}.",
            f"Saved as {self.model_types[1]} ({self.architecture}): {self.why}.",
            "Loads in",
        ]
        return "\n".join([*lines, *map(str, self.loads)])


def preview(model: PreTrainedModel, plan: Plan) -> Preview:
    """What `prune` and `save` will do, before any work: only shapes are looked at, so the model may be on "meta".

    A plan that no stock configuration can say is no error here: the result names the head counts that are possible.

    Raises:
        ValueError: no row for this family, or a plan for a model of another shape.
    """
    anatomy = Anatomy.of(model)
    made_for(anatomy, plan)
    (heads, groups, neurons), depth = plan.widths, len(plan.kept_layers)
    each = anatomy.group_size if plan.unit == "groups" else anatomy.groups
    kind, config = anatomy.model.config.model_type, None
    if heads in anatomy.head_counts:
        config = smaller_config(anatomy, plan)
        small = without_weights(config)
    a_head = 2 * anatomy.head_dim * next(model.parameters()).element_size()  # its keys and values in one layer's cache
    cached, caching = _cached_heads(anatomy), _caching(anatomy)
    return Preview(
        layers=(anatomy.layers, depth),
        heads=(anatomy.heads, heads),
        groups=(anatomy.groups, groups),
        neurons=(anatomy.neurons, neurons),
        parameters=(model.num_parameters(), small.num_parameters() if config else 0),
        kv_cache_per_token=(
            a_head * cached * len(caching),
            a_head * (cached - anatomy.groups + groups) * len({*caching} & {*plan.kept_layers}),
        ),
        model_types=(kind, config.model_type if config else ""),
        architecture=type(small).__name__ if config else "",
        why=_why(anatomy, config),
        head_counts=[count for count in anatomy.head_counts if count % each == 0],
        loads=loads(anatomy, config, *plan.widths) if config else [],
    )


def _why(anatomy: Anatomy, config: PreTrainedConfig | None) -> str:
    kind = anatomy.model.config.model_type
    if config is not None and config.model_type == kind:
        return "as the source"
    divides = f"a {kind} configuration takes only head counts that divide the hidden size {anatomy.hidden}"
    if config is None:
        return anatomy.no_heads or f"{divides}, and no architecture that equals this model takes others"
    settings = " and ".join(f"{name}={value}" for name, value in anatomy.family.equal_settings)
    return f"{divides}; {config.model_type} with {settings} computes the same and takes any"


def _cached_heads(anatomy: Anatomy) -> int:
    """Key-value heads in the cache; families whose heads stay may share them in ways the anatomy leaves out."""
    config = anatomy.model.config
    if not anatomy.family.no_heads:
        return anatomy.groups
    shared = getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False)
    return 1 if shared else getattr(config, "num_key_value_heads", None) or anatomy.heads


def _caching(anatomy: Anatomy) -> list[int]:
    """The layers that keep keys and values: of some families only some have attention."""
    return [i for i in range(anatomy.layers) if anatomy.layer(i).output is not None]


# What a model costs, before it is loaded


@dataclass(frozen=True)
class Estimate:
    """What a model needs, in bytes, from its configuration alone. Peaks are rough; everything else is exact."""

    parameters: int
    weights: int
    kv_cache_per_token: int
    score_peak: int  # weights and the activations of one batch, while `score` runs
    prune_peak: int  # dense and pruned weights, at most; inplace=True needs little more than the weights
    disk: int  # of the saved folder, at most: that of the dense model
    macs_per_token: float  # multiply-adds of the decoder layers; scoring needs no logits

    def seconds(self, tokens: int, flops: float) -> float:
        """Least time to score so many tokens on a machine that does `flops` floating-point operations a second."""
        return 2 * self.macs_per_token * tokens / flops

    def __str__(self) -> str:
        def size(n: int) -> str:
            return f"{n / 2**30:.2f} GiB" if n >= 2**30 / 10 else f"{n / 2**20:.1f} MiB"

        return (
            f"{self.parameters:,} parameters, {size(self.weights)} of weights; KV cache {self.kv_cache_per_token:,} "
            f"bytes per token.\nPeak about {size(self.score_peak)} while scoring, {size(self.prune_peak)} while "
            f"pruning; at most {size(self.disk)} on disk."
        )


def estimate(
    config: PreTrainedConfig | str | Path, batch: int = 8, length: int = 128, dtype: torch.dtype | None = None
) -> Estimate:
    """Memory, disk and work of pruning a model, from its configuration: built on the meta device, nothing is loaded.

    Args:
        config: a configuration, or a name as for `load`.
        batch, length: texts of a calibration batch, and tokens of each.
        dtype: of the weights; by default what the configuration says, else float32.

    Raises:
        ValueError: no positive batch or length, what `configuration` refuses, or no row for this family.
    """
    at_least_one(batch=batch, length=length)
    config = config if isinstance(config, PreTrainedConfig) else configuration(config)
    stored = dtype or config.dtype or torch.float32
    stored = getattr(torch, stored) if isinstance(stored, str) else stored
    element, model = stored.itemsize, without_weights(config, stored)
    anatomy = Anatomy.of(model)
    query, shared = anatomy.features("query"), anatomy.features("shared")
    neurons = anatomy.neurons or getattr(config, "intermediate_size", 0)
    weights = sum(p.nbytes for p in model.parameters())  # some routers stay in float32
    # Of one layer at a time: residual and normed states, and either gate, up, their product and its copy without
    # padding; or q, k, v, rotated q and k, and what the heads give. `score` itself goes by small stretches of tokens.
    activations = (3 * anatomy.hidden + max(4 * neurons, 3 * query + 3 * shared)) * element
    linear = sum(p.numel() for p in model.get_submodule(anatomy.family.layers).parameters() if p.ndim > 1)
    return Estimate(
        parameters=model.num_parameters(),
        weights=weights,
        kv_cache_per_token=2 * len(_caching(anatomy)) * _cached_heads(anatomy) * anatomy.head_dim * element,
        score_peak=weights + batch * length * activations,
        prune_peak=2 * weights,
        disk=weights,
        macs_per_token=linear + anatomy.layers * length * query,  # causal: half of the 2 · length · query products
    )


def matmul_speed(size: int = 1024, repeats: int = 5, dtype: torch.dtype = torch.float32, device: str = "cpu") -> float:
    """Floating-point operations a second in a product of two (size, size) matrices: the best of the repeats."""
    a, best = torch.randn(size, size, device=device).to(dtype), float("inf")
    for _ in range(repeats + 1):  # the first one warms up
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the result
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
