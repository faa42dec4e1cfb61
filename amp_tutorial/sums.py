"""Sums of per-token measures over batches, and over the processes that share them."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .criteria import COLUMNS, IN_FULL, Measure, projected_l1
from .families import Anatomy, Projection, exact, weight_of

Batch = Mapping[str, Tensor]
CHUNK = 2**17  # float32 values in the largest buffer of a stretch of tokens: half a MB, which stays in a core's cache
CHUNK_ON_GPU = 2**24
LEAST = {"heads": 128, "neurons": 64}  # tokens in a stretch: matrix products over a head's few features want more rows


class Sums:
    """For each measure the weighted sum over tokens, in float64: neither the batches' size nor their order matters."""

    def __init__(self, anatomy: Anatomy, measures: Iterable[tuple[Measure, str]]) -> None:
        """A measure comes with the part it measures: "heads" or "neurons"."""
        self.layers, self.structures = anatomy.layers, {"heads": anatomy.heads, "neurons": anatomy.neurons}
        self.features = {"heads": anatomy.features("query"), "neurons": anatomy.neurons}
        self.totals: dict[tuple[Measure, str], list[Tensor | None]] = {m: [None] * self.layers for m in measures}
        self.weight, self.tokens, self.prompts = 0.0, 0, 0
        self.digest = 0  # sum of the SHA-256 of all prompts: the same in every order
        self.real: Int[Tensor, " tokens"] | None = None  # positions of the batch that hold tokens; None: all do
        self.weights: Float[Tensor, " tokens"] = torch.empty(0, dtype=torch.float64)

    @property
    def projects(self) -> bool:
        """Whether the output projection of attention is computed on the way."""
        return (projected_l1, "heads") in self.totals

    def begin(self, batch: Batch, average: str) -> None:
        """Count the next batch, and say what each of its tokens weighs."""
        ids, mask = batch["input_ids"].cpu(), batch["attention_mask"].cpu().bool()
        weight = weight_of_positions(mask, average)
        self.weight += float(weight.sum())
        self.tokens += int(mask.sum())
        self.prompts += int(mask.any(1).sum())
        rows = [row[kept].long().numpy().tobytes() for row, kept in zip(ids, mask, strict=True) if kept.any()]
        self.digest += sum(int.from_bytes(hashlib.sha256(row).digest(), "big") for row in rows)
        self.digest %= 2**256
        self.real = None if bool(mask.all()) else mask.flatten().nonzero().flatten()
        self.weights = weight[mask]

    def add(
        self,
        i: int,
        part: str,
        x: Float[Tensor, "positions ..."],
        output: Float[Tensor, "... hidden"],
        total: Float[Tensor, "positions hidden"] | None = None,
    ) -> None:
        """Measure the inputs of layer i's output projection, a stretch of tokens at a time: little is held at once.

        `total` takes the projection's output of all positions, which `projected_l1` computes on the way.
        """
        weights = self.weights
        if self.real is not None and total is None:
            x = x[self.real.to(x.device)]
        elif self.real is not None:  # all positions are measured, and padding counts for nothing
            weights = weights.new_zeros(len(x)).index_copy(0, self.real, weights)
        step = max(LEAST[part], self.chunk(x) // max(x[:1].numel(), output.shape[-1]))
        of_dtype: dict[torch.dtype, Tensor] = {}  # the weights on the device, as each measure wants them
        for (measure, of), totals in self.totals.items():
            if of != part:
                continue
            on_the_way = measure is projected_l1 and total is not None
            for start in range(0, len(x), step):
                stretch = slice(start, start + step)
                more = {"total": total[stretch]} if on_the_way else {}  # type: ignore[index]
                per_token = measure(x[stretch].float(), output, **more)
                per_token = per_token if measure in IN_FULL else per_token.float()
                if per_token.dtype not in of_dtype:
                    of_dtype[per_token.dtype] = weights.to(per_token.dtype).to(per_token.device)
                weight = of_dtype[per_token.dtype][stretch]
                if total is not None and self.real is not None:
                    per_token = per_token.masked_fill(weight[:, None] == 0, 0.0)  # whatever padding held
                summed = exact(weight @ per_token)
                totals[i] = summed if (before := totals[i]) is None else before + summed

    def chunk(self, x: Tensor) -> int:
        """How many float32 values the largest buffer of a stretch may have."""
        return CHUNK if x.device.type == "cpu" else CHUNK_ON_GPU

    def width(self, measure: Measure, part: str) -> int:
        """Columns of a measure."""
        return COLUMNS[measure] * self.features[part] if measure in COLUMNS else self.structures[part]

    def stacked(self, measure: Measure, part: str) -> Float[Tensor, "layers columns"]:
        zeros = torch.zeros(self.width(measure, part), dtype=torch.float64)
        return torch.stack([zeros if total is None else total.cpu() for total in self.totals[measure, part]])

    def means(self, measure: Measure, part: str) -> Float[Tensor, "layers columns"]:
        mean = self.stacked(measure, part) / self.weight
        return mean if measure in IN_FULL else mean.float()

    def check(self) -> None:
        """Refuse sums that say nothing.

        Raises:
            ValueError: no tokens were counted, or a sum is not finite.
        """
        if self.tokens == 0:
            raise ValueError("The calibration batches hold no tokens: every attention mask is 0, or there is no batch.")
        for measure, part in self.totals:
            bad = (~self.stacked(measure, part).isfinite()).any(1).nonzero().flatten().tolist()
            if bad:
                raise ValueError(
                    f"The activations behind the {'attention heads' if part == 'heads' else part} of layer {bad[0]} "
                    "are NaN or infinite; score in float32 or bfloat16, and check the checkpoint."
                )

    def reduce(self, model_hash: str, device: torch.device) -> None:
        """Add up the sums of all processes, in the order of their ranks, so that every process gets the same.

        Raises:
            ValueError: two processes counted the same batches, or hold different models.
        """
        digests = [number >> 16 * k & 0xFFFF for number in (self.digest, int(model_hash or "0", 16)) for k in range(16)]
        counts = [self.weight, self.tokens, self.prompts, *digests]  # a float64 holds 16 bits of each process exactly
        mine = torch.cat([torch.tensor(counts).double(), *(self.stacked(*key).flatten() for key in self.totals)])
        gathered = [torch.empty_like(mine, device=device) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, mine.to(device))
        each = torch.stack(gathered).cpu()
        seen, models = [tuple(row) for row in each[:, 3:19].tolist() if any(row)], each[:, 19:35]
        if len(set(seen)) < len(seen):
            raise ValueError(
                "Two processes were given the same batches, which would count twice: give each its share, "
                "batches[rank::world], or leave reduce=True out."
            )
        if bool((models != models[0]).any()):
            raise ValueError("The processes hold different models (see fingerprint): load the same one in each.")
        total = each.sum(0)
        self.weight, self.tokens, self.prompts = float(total[0]), int(total[1]), int(total[2])
        self.digest = sum(int(limb) << 16 * k for k, limb in enumerate(total[3:19].tolist())) % 2**256
        parts = total[len(counts) :].split([self.layers * self.width(*key) for key in self.totals])
        for key, part in zip(self.totals, parts, strict=True):
            self.totals[key] = list(part.view(self.layers, -1).unbind())


@contextmanager
def watching(anatomy: Anatomy, sums: Sums) -> Iterator[None]:
    """Watch the inputs of both output projections of every layer; leave no hook behind, whatever happens."""
    handles, replaced = [], []

    def watch(i: int, part: str, module: Projection, shape: tuple[int, ...]) -> None:
        def measure(x: Tensor, total: Tensor | None = None) -> None:
            output = weight_of(module).T
            if part == "heads":
                output = output.contiguous()  # products are quicker where rows lie together
            sums.add(i, part, x.reshape(-1, *shape), output.view(*shape, -1), total)

        def project(x: Tensor) -> Tensor:
            total = x.new_empty(*x.shape[:-1], anatomy.hidden)
            measure(x, total.view(-1, anatomy.hidden))
            return total if module.bias is None else total.add_(module.bias)

        # Exact head scores need what each head adds, and the projection is the sum of that: computed once, for both.
        place = "_old_forward" if "_old_forward" in vars(module) else "forward"  # the first: put aside by accelerate
        own = vars(module).get(place)
        if part == "heads" and sums.projects and weight_of(module).dtype == torch.float32:
            setattr(module, place, project)
            replaced.append((module, place, own))
        else:
            handles.append(module.register_forward_pre_hook(lambda _, args: measure(args[0])))

    try:
        for i in range(anatomy.layers):
            layer = anatomy.layer(i)
            watch(i, "heads", layer.output, (anatomy.heads, anatomy.head_dim))
            if not anatomy.family.no_neurons:
                watch(i, "neurons", layer.neurons_out, (anatomy.neurons,))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, place, own in replaced:
            if own is None:
                delattr(module, place)  # the class's own is seen again
            else:
                setattr(module, place, own)


def weight_of_positions(mask: Bool[Tensor, "batch length"], average: str) -> Float[Tensor, "batch length"]:
    """What each position counts: 1 for a token and 0 for padding; 1/length where every prompt weighs the same."""
    weight = exact(mask)
    return weight if average == "tokens" else weight / weight.sum(1, keepdim=True).clamp(min=1)


def several_processes(batches: Iterable[Batch]) -> bool:
    """Whether there are other processes to add up with.

    Raises:
        ValueError: there are, but not connected; or accelerate's loader gives some prompts to two of them.
    """
    if not (dist.is_available() and dist.is_initialized()):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                "reduce=True, but the processes are not connected: make an accelerate.Accelerator(), or call "
                "torch.distributed.init_process_group(), before scoring."
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
