"""Which programs load a saved checkpoint, by which widths each takes from the configuration (`Family.programs`)."""

from dataclasses import dataclass

import transformers
from transformers import PreTrainedConfig

from ..core.anatomy import Anatomy
from ..core.families import ABSENT, EACH_LAYER, FAMILIES


@dataclass(frozen=True)
class Program:
    """A program that reads checkpoints, and where it was read which widths it takes from a configuration."""

    name: str
    column: str  # of `core.families.Programs`
    source: str
    fixed_scale: bool = False  # takes the scale of attention from other settings than query_pre_attn_scalar


TRANSFORMERS_4 = Program(
    "transformers 4", "transformers_4", "measured once with 4.57.6: a pruned tiny model of each family, logits equal"
)
VLLM = Program(
    "vLLM", "vllm", "read in source: vllm/model_executor/models and vllm/config/model.py of vLLM 0.33.0; not run"
)
LLAMA_CPP = Program(
    "llama.cpp",
    "llama_cpp",
    "read in source: conversion/, src/models/ and src/llama-quant.cpp of llama.cpp in llama-cpp-python 0.3.36; F32 "
    "measured once with it: a pruned tiny model of each family but Falcon",
    fixed_scale=True,
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


def loads(anatomy: Anatomy, config: PreTrainedConfig, heads: int, groups: int, neurons: int) -> list[Loads]:
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


def _answer(reader: Program, anatomy: Anatomy, config: PreTrainedConfig, heads: int, neurons: int) -> tuple[str, str]:
    kind, scalar = config.model_type, getattr(config, "query_pre_attn_scalar", anatomy.head_dim)
    takes = getattr(FAMILIES[kind].programs, reader.column) if kind in FAMILIES else None
    if takes is None:
        return "unknown", f"what it does with {kind} was not looked up"
    if takes == ABSENT:
        return "no", f"it does not read {kind}"
    if "heads" not in takes and heads * anatomy.head_dim != anatomy.hidden:
        return "no", f"in {kind} it takes hidden_size / heads as head_dim; keep all heads"
    if "neurons" not in takes and neurons != 4 * anatomy.hidden:
        return "no", f"in {kind} it takes 4 · hidden_size as the number of neurons; keep all neurons"
    if reader.fixed_scale and scalar != anatomy.head_dim and heads != anatomy.heads:
        return "no", f"it guesses the scale of attention in {kind}, and wrongly after a cut; keep all heads"
    mixed = any(len(set(getattr(anatomy.model.config, name, None) or ())) > 1 for name in EACH_LAYER)
    if mixed and config.num_hidden_layers < anatomy.layers:
        return "unknown", f"whether it reads which layer of {kind} is of which kind, or counts, was not looked up"
    return "yes", "it takes these widths from the configuration"


def _quantised(query: int, neurons: int) -> str:
    """Which block types fit rows of the two output projections: K types hold 256 weights in a block, others 32."""
    rows = [n for n in (query, neurons) if n]
    if all(n % 256 == 0 for n in rows):
        return ", and every quantised type"
    if all(n % 32 == 0 for n in rows):
        return ", and Q4_0 to Q8_0; in K types (blocks of 256) some tensors fall back to those"
    return "; in quantised types some tensors stay F16, because their rows are no multiple of 32 (align=32 helps)"
