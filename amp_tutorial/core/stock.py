"""What a stock configuration can say about a cut model, where the saved folder will load, and what a model costs.

No weights here: everything follows from configurations, so it can be known before any work.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..measure.programs import EACH_LAYER, Loads, loads
from .checkpoint import configuration
from .families import Anatomy
from .plans import Plan


def made_for(anatomy: Anatomy, plan: Plan) -> None:
    """Refuse a plan for a model of another shape.

    Raises:
        ValueError: it is.
    """
    there = (anatomy.layers, anatomy.heads, anatomy.groups, anatomy.neurons)
    asked = (len(plan.heads), plan.of_heads, plan.of_groups, plan.of_neurons)
    if there != asked:
        raise ValueError(
            f"The plan is for (layers, heads, KV groups, neurons) = {asked}, the model has {there}; plan anew for it."
        )


def tied(model: PreTrainedModel) -> bool:
    """Whether the output head is the embedding, not only whether the configuration says so."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and head.weight is embedding.weight


def smaller_config(anatomy: Anatomy, plan: Plan) -> PreTrainedConfig:
    """The configuration of the cut model: same family where it can say the head count, else the equal architecture.

    Raises:
        ValueError: neither can, or a setting goes by the depth of each layer.
    """
    family, (heads, groups, neurons) = anatomy.family, plan.widths
    settings = anatomy.model.config.to_dict()
    kind = settings.pop("model_type")
    if not family.no_heads:
        settings["num_attention_heads"] = heads
        settings["num_key_value_heads"] = groups
        settings["head_dim"] = anatomy.head_dim  # without it a reload would guess hidden / heads, wrongly
    if not family.no_neurons:
        settings[family.width] = neurons
    if plan.layers is not None:
        settings |= _of_layers(anatomy.model.config, plan.layers)
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


def _of_layers(config: PreTrainedConfig, kept: list[int]) -> dict[str, Any]:
    """What a configuration says layer by layer, or counts in layers, when only these are left and are renumbered.

    Raises:
        ValueError: something in a layer is worked out from its depth, which changes.
    """
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise ValueError(
            "With scale_attn_by_inverse_layer_idx every layer scales attention by its depth, which a configuration "
            "without some layers cannot say; keep all layers."
        )
    found: dict[str, Any] = {config.attribute_map.get("num_hidden_layers", "num_hidden_layers"): len(kept)}
    for name in EACH_LAYER:
        if values := getattr(config, name, None):
            found[name] = [values[i] for i in kept]
    if hasattr(config, "max_window_layers"):  # the layers before this one attend without a window
        found["max_window_layers"] = sum(i < config.max_window_layers for i in kept)
    if hasattr(config, "mlp_only_layers"):  # without experts: these, and those that the step passes over
        step, plain = config.decoder_sparse_step, config.mlp_only_layers
        found["mlp_only_layers"] = [new for new, i in enumerate(kept) if i in plain or (i + 1) % step]
        found["decoder_sparse_step"] = 1
    return found


@dataclass(frozen=True)
class Check:
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


def check(model: PreTrainedModel, plan: Plan) -> Check:
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
        small = _on_meta(config)
    a_head = 2 * anatomy.head_dim * next(model.parameters()).element_size()  # its keys and values in one layer's cache
    cached = _cached_heads(anatomy)
    return Check(
        layers=(anatomy.layers, depth),
        heads=(anatomy.heads, heads),
        groups=(anatomy.groups, groups),
        neurons=(anatomy.neurons, neurons),
        parameters=(model.num_parameters(), small.num_parameters() if config else 0),
        kv_cache_per_token=(a_head * cached * anatomy.layers, a_head * (cached - anatomy.groups + groups) * depth),
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


def _on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.tie_weights()  # transformers 5.0 does not, and a shared weight would count twice
    return model


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
    macs_per_token: float  # multiply-accumulates of the decoder layers; scoring needs no logits

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
        ValueError: what `configuration` refuses, or no row for this family.
    """
    config = config if isinstance(config, PreTrainedConfig) else configuration(config)
    stored = dtype or config.dtype or torch.float32
    element = (getattr(torch, stored) if isinstance(stored, str) else stored).itemsize
    model = _on_meta(config)
    anatomy = Anatomy.of(model)
    query, shared = anatomy.features("query"), anatomy.features("shared")
    neurons = anatomy.neurons or getattr(config, "intermediate_size", 0)
    weights = model.num_parameters() * element
    # Of one layer at a time: residual and normed states, and either gate, up, their product and its copy without
    # padding; or q, k, v, rotated q and k, and what the heads give. `score` itself goes by small stretches of tokens.
    activations = (3 * anatomy.hidden + max(4 * neurons, 3 * query + 3 * shared)) * element
    linear = sum(p.numel() for p in model.get_submodule(anatomy.family.layers).parameters() if p.ndim > 1)
    return Estimate(
        parameters=model.num_parameters(),
        weights=weights,
        kv_cache_per_token=2 * anatomy.layers * _cached_heads(anatomy) * anatomy.head_dim * element,
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
