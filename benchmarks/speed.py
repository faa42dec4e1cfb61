"""Prefill and decode of pruned models: the measured speed-up over the ideal that the parameters removed would give."""

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

import amp_tutorial as amp

from . import common

GOAL = 0.9
RATIOS = (0.2, 0.3, 0.5)  # of the blocks' parameters
HEADS_ALONE = 0.2  # up to this ratio also heads alone: they have a third of the parameters
ALIGN = (1, 8, 16, 32, 64)
SHAPES = ((1024, 2, 128), (2048, 1, 128))  # hidden, layers, head_dim
SMOKE = ((64, 1, 16),)
PROMPT, NEW = 256, 4  # tokens


@torch.no_grad()
def runs_of(name: str, model: PreTrainedModel, prompt: int, new: int, batch: int) -> dict[str, common.Run]:
    """Prefill and decode, of the blocks alone and with the output head, by name."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (batch, prompt), generator=generator).to(model.device)
    cache = DynamicCache(config=model.config)
    model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)

    @torch.no_grad()
    def prefill(of: Any) -> None:
        of(input_ids=ids, use_cache=True)

    @torch.no_grad()
    def decode(of: Any) -> None:
        for _ in range(new):
            of(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
        cache.crop(-new)

    return {
        f"{name} prefill blocks": lambda: prefill(model.base_model),
        f"{name} prefill whole": lambda: prefill(model),
        f"{name} decode blocks": lambda: decode(model.base_model),
        f"{name} decode whole": lambda: decode(model),
    }


def variants(dense: PreTrainedModel, ratio: float, aligns: tuple[int, ...]) -> dict[str, tuple[amp.Plan, int]]:
    """Plans at one ratio, one for each alignment; which structures stay does not matter for the time."""
    drawn = amp.score(dense, [], "random")
    of = "block parameters"
    found = {
        f"align {a}": (amp.keep(dense, drawn, *amp.widths_at(dense, ratio, of, align=a), of=of), a) for a in aligns
    }
    if ratio <= HEADS_ALONE:
        found["heads only"] = (amp.plan(dense, drawn, pruning_ratio=ratio, of=of, parts="heads"), 1)
    return found


def compare(
    dense: PreTrainedModel,
    ratio: float,
    aligns: tuple[int, ...],
    rounds: int,
    prompt: int = PROMPT,
    new: int = NEW,
    batch: int = 1,
) -> list[dict[str, Any]]:
    """One row for each alignment: widths, ideal and measured speed-up of blocks and of the whole model."""
    chosen = variants(dense, ratio, aligns)
    models = {name: amp.prune(dense, plan).model for name, (plan, _) in chosen.items()}
    runs = runs_of("dense", dense, prompt, new, batch)
    for name, small in models.items():
        runs |= runs_of(name, small, prompt, new, batch)
    times = common.in_turn(runs, rounds)
    rows = []
    for name, (plan, align) in chosen.items():
        row: dict[str, Any] = dict(ratio=ratio, align=align, batch=batch)
        row["parts"] = "heads" if name == "heads only" else "both"
        row |= dict(heads=len(plan.heads[0]), neurons=len(plan.neurons[0]), removed=plan.achieved)
        for of in ("blocks", "whole"):
            ideal = common.weights_in(dense, of == "whole") / common.weights_in(models[name], of == "whole")
            for what in ("prefill", "decode"):
                gained = common.ratio(times[f"dense {what} {of}"], times[f"{name} {what} {of}"])
                row[f"{what} {of}"] = {"ideal": ideal, "speed_up": gained, "of_ideal": gained["median"] / ideal}
        rows.append(row)
    return rows


def measure(smoke: bool = False) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for hidden, layers, head_dim in SMOKE if smoke else SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            dense = common.llama(hidden, layers, head_dim, vocabulary=4 * hidden, dtype=dtype)
            about = dict(hidden=hidden, layers=layers, head_dim=head_dim, dtype=str(dtype).removeprefix("torch."))
            for ratio in RATIOS[-1:] if smoke else RATIOS:
                given = (ALIGN[:2], 2, 8, 2) if smoke else (ALIGN, 5, PROMPT, NEW)
                rows += [about | row for row in compare(dense, ratio, *given)]
    return {"goal": GOAL, "prompt": PROMPT, "new": NEW, "rows": rows}
