"""What AMP's released code chooses where it differs from the clean definition, so that a run can choose the same.

Source: c2d-usp/Efficient-LLMs-with-AMP (Apache-2.0), amp_criterion.py and prune_groups.py, read. Only choices are here.
What is wrong there is not imitated: grouped queries, a fixed head_dim, a second BOS in recovery (lesson 3b).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.anatomy import Anatomy
from ..files.texts import rows

PROMPTS = 50  # the first ones, in the order of the file
CHOICES = {  # choice: (official, clean)
    "texts": (f"the first {PROMPTS} of the source", "drawn by the seed"),
    "prompt": ('"Instruction: …", "Input: …" if there is one, "Response:", a line each', "instruction and input alone"),
    "length": ("whole prompts, one at a time", "windows of at most calibration_length tokens"),
    "average": ("over the tokens of each prompt, then over prompts", "over all tokens"),
    "widths": ("what rounding left of a head is made up for by 1 neuron", "by as many neurons as it is worth"),
}  # fmt: skip


def choices(fidelity: str) -> dict[str, str]:
    """What was chosen, for a record.

    Raises:
        ValueError: neither "official" nor "clean".
    """
    if fidelity not in ("official", "clean"):
        raise ValueError(f"fidelity={fidelity!r} must be 'official' or 'clean'.")
    return {name: pair[fidelity == "clean"] for name, pair in CHOICES.items()}


def prompts(source: str | Path, count: int = PROMPTS) -> list[str]:
    """The first texts of a source, with the official template where it has instructions."""
    found = []
    for row in rows(source, "calibration")[:count]:
        if "instruction" in row:
            given = f"\nInput: {row['input']}" if row.get("input") else ""
            found.append(f"Instruction: {row['instruction']}{given}\nResponse:")
        else:
            found.append(row["text"])
    return found


def batches(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
    """One prompt a batch, whole, with the special tokens that the tokenizer itself adds."""
    encoded = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    return [{"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
            for ids in encoded]  # fmt: skip


def ratio_of(model: PreTrainedModel, layers: int) -> float:
    """The share of all parameters that so many decoder layers hold: `--iteration` there."""
    return layers * Anatomy.of(model).layer_parameters[0] / model.num_parameters()


def widths(model: PreTrainedModel, ratio: float) -> tuple[int, int]:
    """Heads and neurons that stay in every layer, by the official rounding.

    With r the ratio of what attention and MLP hold, H heads and m neurons, round(r·H) heads go, and
    round(m · ((H/m) · (r − gone/H) + r)) neurons: what rounding kept of a head is made up for by one neuron, whatever a
    head is worth (on LLaMA-2-7B 170.67 neurons).

    Raises:
        ValueError: no ratio, or grouped queries, for which that code has no rule.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"ratio={ratio} must lie between 0 and 1, both excluded.")
    a = Anatomy.of(model)
    if a.group_size > 1:
        raise ValueError(
            f"fidelity='official' has no rule for grouped queries ({a.heads} heads, {a.groups} KV groups): say kept "
            "heads and neurons, or fidelity='clean'."
        )
    inside = sum(
        p.numel()
        for i in range(a.layers)
        for name, p in model.get_submodule(f"{a.family.layers}.{i}").named_parameters()
        if "norm" not in name
    )
    r = ratio * model.num_parameters() / inside
    gone = min(round(r * a.heads), a.heads - 1)
    fewer = round(a.neurons * ((a.heads / a.neurons) * (r - gone / a.heads) + r))
    return a.heads - gone, a.neurons - min(fewer, a.neurons - 1)
