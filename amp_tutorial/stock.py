"""What a stock configuration can say about a cut model, where the saved folder will load, and what a model costs.

No weights here: everything follows from configurations, so it can be known before any work.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .checkpoint import configuration
from .families import Anatomy
from .plans import Plan


def smaller_config(anatomy: Anatomy, plan: Plan) -> PreTrainedConfig:
    """The configuration of the cut model: same family where it can say the head count, else the equal architecture.

    Raises:
        ValueError: neither can.
    """
    family, heads = anatomy.family, len(plan.heads[0])
    settings = anatomy.model.config.to_dict()
    kind = settings.pop("model_type")
    if not family.no_heads:
        settings["num_attention_heads"] = heads
        settings["num_key_value_heads"] = len(plan.groups(0))
        settings["head_dim"] = anatomy.head_dim  # without it a reload would guess hidden / heads, wrongly
    if not family.no_neurons:
        settings[family.width] = len(plan.neurons[0])
    if heads not in anatomy.head_counts:
        raise ValueError(f"No stock configuration of {kind} says {heads} heads; possible: {anatomy.head_counts}.")
    if not family.any_head_count and anatomy.hidden % heads:
        kind = anatomy.equal_type
        settings |= dict(family.equal_settings)
    for stale in ("architectures", "transformers_version", "_name_or_path"):
        settings.pop(stale, None)
    config = AutoConfig.for_model(kind, **settings)
    config._attn_implementation = anatomy.model.config._attn_implementation
    config._name_or_path = anatomy.model.config._name_or_path  # never saved; so that the source is not overwritten
    return config


# Who reads checkpoints, and what of a configuration they heed


@dataclass(frozen=True)
class Reader:
    """Which settings a program takes from a configuration, by `model_type`, and where that was read."""

    name: str
    any_heads: frozenset[str]  # takes head_dim from the configuration
    fixed_heads: frozenset[str] = frozenset()  # reads these, but takes hidden_size / num_attention_heads as head_dim
    fixed_width: frozenset[str] = frozenset()  # takes 4 · hidden_size as the number of neurons, whatever is said
    fixed_scale: bool = False  # takes the scale of attention from other settings than query_pre_attn_scalar
    absent: frozenset[str] = frozenset()  # does not read these at all
    source: str = ""


def _types(names: str) -> frozenset[str]:
    return frozenset(names.split())


NO_HEADS = _types("gpt_neox gpt2 opt stablelm falcon")
LLAMA_LIKE = _types("llama mistral mixtral smollm3 qwen3 qwen3_moe gemma gemma2 gemma3_text")
TRANSFORMERS_4 = Reader(
    "transformers 4",
    any_heads=LLAMA_LIKE | _types("phi phi3 qwen2 olmo2 granite starcoder2 cohere"),
    fixed_heads=NO_HEADS,
    source="measured once with 4.57.6: a pruned tiny model of each family, logits equal",
)
VLLM = Reader(
    "vLLM",
    any_heads=LLAMA_LIKE | _types("phi phi3 olmo2 granite starcoder2 cohere"),
    fixed_heads=NO_HEADS | {"qwen2"},
    fixed_width=_types("falcon"),
    source="read in source: vllm/model_executor/models and vllm/config/model.py of vLLM 0.33.0; not run",
)
LLAMA_CPP = Reader(
    "llama.cpp",
    any_heads=LLAMA_LIKE,
    fixed_heads=(NO_HEADS - {"opt"}) | _types("phi phi3 qwen2 olmo2 granite starcoder2 cohere"),
    fixed_width=_types("phi gpt2 falcon"),
    fixed_scale=True,
    absent=_types("opt"),
    source="read in source: conversion/, src/models/ and src/llama-quant.cpp of llama.cpp in llama-cpp-python 0.3.36; "
    "F32 measured once with it: a pruned tiny model of each family but Falcon",
)


@dataclass(frozen=True)
class Loads:
    """Whether a program loads the folder: "yes", "no" or "unknown"; why; and where that is known from."""

    where: str
    answer: str
    reason: str
    source: str

    def __str__(self) -> str:
        return f"  {self.where}: {self.answer}; {self.reason}\n    [{self.source}]"


@dataclass(frozen=True)
class Check:
    """What a plan will do to a model, and what will load the result. Pairs are (before, after)."""

    layers: int
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
        lines = [f"Cut in each of {self.layers} layers: {cut}."]
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
    there = (anatomy.layers, anatomy.heads, anatomy.groups, anatomy.neurons)
    asked = (len(plan.heads), plan.of_heads, plan.of_groups, plan.of_neurons)
    if there != asked:
        raise ValueError(
            f"The plan is for (layers, heads, KV groups, neurons) = {asked}, the model has {there}; plan anew for it."
        )
    heads, groups, neurons = len(plan.heads[0]), len(plan.groups(0)), len(plan.neurons[0])
    each = anatomy.group_size if plan.unit == "groups" else anatomy.groups
    kind, config = anatomy.model.config.model_type, None
    if heads in anatomy.head_counts:
        config = smaller_config(anatomy, plan)
        small = _on_meta(config)
    kv_cache = 2 * anatomy.layers * anatomy.head_dim * next(model.parameters()).element_size()
    cached = _cached_heads(anatomy)
    return Check(
        layers=anatomy.layers,
        heads=(anatomy.heads, heads),
        groups=(anatomy.groups, groups),
        neurons=(anatomy.neurons, neurons),
        parameters=(model.num_parameters(), small.num_parameters() if config else 0),
        kv_cache_per_token=(kv_cache * cached, kv_cache * (cached - anatomy.groups + groups)),
        model_types=(kind, config.model_type if config else ""),
        architecture=type(small).__name__ if config else "",
        why=_why(anatomy, config),
        head_counts=[count for count in anatomy.head_counts if count % each == 0],
        loads=_loads(anatomy, config, heads, groups, neurons) if config else [],
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


def _loads(anatomy: Anatomy, config: PreTrainedConfig, heads: int, groups: int, neurons: int) -> list[Loads]:
    """The answer of each reader for the configuration of the cut model."""
    here = f"its configuration was built here with {transformers.__version__}; tests reload every family"
    found = [Loads("transformers 5", "yes", "an ordinary configuration and class of transformers", here)]
    for reader in (TRANSFORMERS_4, VLLM, LLAMA_CPP):
        answer, reason = _answer(reader, anatomy, config, heads, neurons)
        if answer == "yes" and reader is VLLM:
            whole = [t for t in range(1, heads + 1) if heads % t == neurons % t == 0]
            sizes = ", ".join(str(t) for t in whole if groups % t == 0 or t % groups == 0)
            reason += f"; tensor parallel sizes that divide heads and neurons: {sizes}"
        if answer == "yes" and reader is LLAMA_CPP:
            reason += f"; F32 and F16{_quantised(heads * anatomy.head_dim, neurons)}"
        found.append(Loads(reader.name, answer, reason, reader.source))
    return found


def _answer(reader: Reader, anatomy: Anatomy, config: PreTrainedConfig, heads: int, neurons: int) -> tuple[str, str]:
    kind, scalar = config.model_type, getattr(config, "query_pre_attn_scalar", anatomy.head_dim)
    if kind in reader.absent:
        return "no", f"it does not read {kind}"
    if kind not in reader.any_heads | reader.fixed_heads:
        return "unknown", f"what it does with {kind} was not looked up"
    if kind in reader.fixed_heads and heads * anatomy.head_dim != anatomy.hidden:
        return "no", f"in {kind} it takes hidden_size / heads as head_dim; keep all heads"
    if kind in reader.fixed_width and neurons != 4 * anatomy.hidden:
        return "no", f"in {kind} it takes 4 · hidden_size as the number of neurons; keep all neurons"
    if reader.fixed_scale and scalar != anatomy.head_dim and heads != anatomy.heads:
        return "no", f"it guesses the scale of attention in {kind}, and wrongly after a cut; keep all heads"
    return "yes", "it takes these widths from the configuration"


def _quantised(query: int, neurons: int) -> str:
    """Which block types fit rows of the two output projections: K types hold 256 weights in a block, others 32."""
    rows = [n for n in (query, neurons) if n]
    if all(n % 256 == 0 for n in rows):
        return ", and every quantised type"
    if all(n % 32 == 0 for n in rows):
        return ", and Q4_0 to Q8_0; in K types (blocks of 256) some tensors fall back to those"
    return "; in quantised types some tensors stay F16, because their rows are no multiple of 32 (align=32 helps)"


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
