"""Score on several processes, each with its share of the batches: `score(model, share, forward=over_processes)`.

Several devices, with `accelerate launch --multi_gpu --num_processes 2 this.py` (on a CPU with `PartialState(cpu=True)`;
`accelerate launch --cpu` starts one process, whatever number it is given):

    state = accelerate.PartialState()
    model, tokenizer = amp.load("tiny-llama", device=str(state.device))
    batches = amp.calibration(tokenizer, "tinyworld", samples=64, seed=0)
    scores = amp.score(model, batches[state.process_index :: state.num_processes], forward=amp.over_processes)
    if state.is_main_process:
        scores.save("out/scores.safetensors")
"""

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist

from ..core.anatomy import Anatomy
from ..core.sums import Batch, Pass, Sums, one_pass
from ..files.checkpoints import fingerprint


def over_processes(
    anatomy: Anatomy, batches: Iterable[Batch], sums: Sums, average: str, forward: Pass = one_pass
) -> None:
    """One pass over this process's share, then the sums of all processes: each gets the scores of the whole.

    All processes must call, and ask for the same. The batches are `batches[rank::world]`, or a DataLoader that
    accelerate prepared with even_batches=False.

    Raises:
        ValueError: processes that are not connected, hold different models, or were given the same batches; or a
            loader that repeats prompts to make them even.
    """
    others = several_processes(batches)
    forward(anatomy, batches, sums, average)
    if others:
        reduce(sums, fingerprint(anatomy.model), next(anatomy.model.parameters()).device)


def reduce(sums: Sums, model_hash: str, device: torch.device) -> None:
    """Add up the sums of all processes, in the order of their ranks, so that every process gets the same.

    Raises:
        ValueError: two processes counted the same batches, or hold different models.
    """
    digests = [number >> 16 * k & 0xFFFF for number in (sums.digest, int(model_hash or "0", 16)) for k in range(16)]
    counts = [sums.weight, sums.tokens, sums.prompts, *digests]  # a float64 holds 16 bits of each process exactly
    mine = torch.cat([torch.tensor(counts).double(), *(sums.stacked(*key).flatten() for key in sums.totals)])
    gathered = [torch.empty_like(mine, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, mine.to(device))
    each = torch.stack(gathered).cpu()
    seen, models = [tuple(row) for row in each[:, 3:19].tolist() if any(row)], each[:, 19:35]
    if len(set(seen)) < len(seen):
        raise ValueError(
            "Two processes were given the same batches, which would count twice: give each its share, "
            "batches[rank::world], or leave forward=… out."
        )
    if bool((models != models[0]).any()):
        raise ValueError("The processes hold different models (see fingerprint): load the same one in each.")
    total = each.sum(0)
    sums.weight, sums.tokens, sums.prompts = float(total[0]), int(total[1]), int(total[2])
    sums.digest = sum(int(limb) << 16 * k for k, limb in enumerate(total[3:19].tolist())) % 2**256
    parts = total[len(counts) :].split([sums.layers * sums.width(*key) for key in sums.totals])
    for key, part in zip(sums.totals, parts, strict=True):
        sums.totals[key] = list(part.view(sums.layers, -1).unbind())


def several_processes(batches: Iterable[Batch]) -> bool:
    """Whether there are other processes to add up with.

    Raises:
        ValueError: there are, but not connected; or accelerate's loader gives some prompts to two of them.
    """
    if not (dist.is_available() and dist.is_initialized()):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                "The processes are not connected: make an accelerate.Accelerator(), or call "
                "torch.distributed.init_process_group(), before scoring over processes."
            )
        return False
    size = getattr(batches, "total_batch_size", None)  # of accelerate's loaders: of all processes together
    if size is not None and getattr(batches.batch_sampler, "even_batches", True):  # type: ignore[attr-defined]
        dataset = batches.dataset  # type: ignore[attr-defined]
        if not hasattr(dataset, "__len__") or len(dataset) % size:
            raise ValueError(
                "This DataLoader repeats prompts so that all processes get as many: prepare it with Accelerator("
                "dataloader_config=DataLoaderConfiguration(even_batches=False)), or give batches[rank::world]."
            )
    return dist.get_world_size() > 1
