"""Scoring and speed on a GPU, in the shapes of well-known models with random weights: shapes are what costs time."""

from typing import Any

import torch

from . import common, scoring, speed

SHAPES: dict[str, dict[str, Any]] = {
    "LLaMA-2-7B": dict(hidden=4096, layers=32, head_dim=128, neurons=11008, vocabulary=32000),
    "Llama-3-8B": dict(hidden=4096, layers=32, head_dim=128, groups=8, neurons=14336, vocabulary=128256),
    "Phi-2": dict(hidden=2560, layers=32, head_dim=80, neurons=10240, vocabulary=51200, kind="phi"),
}
PAPER = {"LLaMA-7B": 1.25, "LLaMA-2-7B": 1.19}  # speed-up in the paper, 20 and 30 % [second-hand]
TEXTS, LENGTH = 128, 2048
ALIGN = (1, 64, 128)


def measure(smoke: bool = False) -> dict[str, Any]:
    """All shapes on the first GPU; without one, a status that says so."""
    if not torch.cuda.is_available():
        reason = "There is no CUDA device; the CPU parts measure the same at smaller shapes."
        print(f"gpu: not run. {reason}")
        return {"status": "not run", "reason": reason}
    found: list[dict[str, Any]] = []
    for name, settings in SHAPES.items():
        tiny = dict(hidden=256, layers=2, head_dim=64, groups=2 if "groups" in settings else None)
        shape = settings | tiny | dict(neurons=512, vocabulary=1000) if smoke else settings
        dense = common.llama(**shape, dtype=torch.bfloat16, device="cuda")
        given = common.batches(dense, *((256, 64, 2) if smoke else (TEXTS * LENGTH, LENGTH, 4)))
        scored = scoring.compare(dense, given, 3, 1, others=False)
        rows = [
            row
            for batch in (1, 16)
            for ratio in speed.RATIOS
            for row in speed.compare(dense, ratio, ALIGN, 5, prompt=64 if smoke else 512, new=16, batch=batch)
        ]
        tokens = sum(batch["input_ids"].numel() for batch in given)
        found.append({"name": name, "dtype": "bfloat16", "tokens": tokens, "scoring": scored, "rows": rows})
        del dense
        torch.cuda.empty_cache()
    return {"device": torch.cuda.get_device_name(), "paper": PAPER, "models": found}
