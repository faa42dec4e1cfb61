"""What the parts share: random models, calibration batches, and times taken in turn."""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

Run = Callable[[], object]
PEAK, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux


def llama(
    hidden: int,
    layers: int,
    head_dim: int = 64,
    groups: int | None = None,
    neurons: int | None = None,
    vocabulary: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    kind: str = "llama",
) -> PreTrainedModel:
    """A decoder with random weights, in LLaMA-2-7B's proportions: 11/4 neurons and 8 tokens for a hidden feature."""
    config = AutoConfig.for_model(
        kind,
        hidden_size=hidden,
        intermediate_size=neurons or hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // head_dim,
        num_key_value_heads=groups or hidden // head_dim,
        head_dim=head_dim,
        vocab_size=vocabulary or 8 * hidden,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def batches(model: PreTrainedModel, tokens: int, length: int, size: int) -> list[dict[str, Tensor]]:
    """Random texts of `length` tokens, `size` of them in a batch, some `tokens` tokens in all."""
    generator = torch.Generator().manual_seed(0)
    shape = (max(1, tokens // length // size), size, length)
    rows = torch.randint(model.config.vocab_size, shape, generator=generator).to(model.device)
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows]


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turn(runs: Mapping[str, Run], rounds: int, few: Mapping[str, int] | None = None) -> dict[str, list[float]]:
    """Wall seconds of every run in every round. Whatever slows the machine for a while, slows all runs of a round.

    Every other round goes backwards, so that none always follows the same one. Each runs once before, untimed.

    Args:
        few: rounds of those that take long and need not be precise.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():
        if name not in (few or {}):
            run()
    for k in range(rounds):
        for name in list(runs)[:: -1 if k % 2 else 1]:
            if k >= (few or {}).get(name, rounds):
                continue
            wait()
            start = time.perf_counter()
            runs[name]()
            wait()
            times[name].append(time.perf_counter() - start)
    return times


def ratio(times: list[float], base: list[float]) -> dict[str, float]:
    """Median over rounds of time / time of the base in the same round, and the quartiles as low and high."""
    found = [a / b for a, b in zip(times, base, strict=False)]  # those with few rounds have the first ones
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive") if len(found) > 1 else found * 3
    return {"median": middle, "low": low, "high": high, "rounds": len(found)}


def peaks(runs: Mapping[str, Run]) -> dict[str, float | None]:
    """Highest memory of each run in bytes: allocated on the GPU, or resident; None where it cannot be looked up."""
    found: dict[str, float | None] = {}
    for name, run in runs.items():
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            run()
            found[name] = float(torch.cuda.max_memory_allocated())
            continue
        try:
            RESET.write_text("5")  # the peak starts again from what is resident now
        except OSError:
            found[name] = None
            continue
        run()
        line = next(line for line in PEAK.read_text().splitlines() if line.startswith("VmHWM:"))
        found[name] = float(line.split()[1]) * 1024
    return found


def weights_in(model: PreTrainedModel, whole: bool) -> int:
    """Parameters that a token is multiplied by: those of the blocks, with `whole` those of the output head too."""
    blocks = sum(p.numel() for name, p in model.base_model.named_parameters() if p.ndim == 2 and "embed" not in name)
    head: Any = model.get_output_embeddings()
    return blocks + (head.weight.numel() if whole else 0)
