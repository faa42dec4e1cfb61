"""Sums of per-token measures over calibration batches: one forward pass, watched by plain hooks."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..files.batches import checked, words_of
from .anatomy import Anatomy, exact, weight_of
from .criteria import COLUMNS, Measure

Batch = Mapping[str, Tensor]
CHUNK = 2**17  # float32 values in the largest buffer of a stretch of tokens: half a MB, which stays in a core's cache
CHUNK_ON_GPU = 2**24
LEARNED = {"wpe", "embed_positions", "position_embeddings"}  # modules of learned positions, which have an end
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
        self.in_full: set[tuple[Measure, str]] = set()  # measured in float64, so that the means stay so

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
        but: Measure | None = None,
    ) -> None:
        """Measure the inputs of layer i's output projection, a stretch of tokens at a time: little is held at once.

        `but` names a measure that somebody else takes (`accumulate`).
        """
        x = x if self.real is None else x[self.real.to(x.device)]
        for measure, of in self.totals:
            if of == part and measure is not but:
                for stretch in self.stretches(part, x, output.shape[-1]):
                    per_token = measure(x[stretch].float(), output)
                    self.accumulate(i, measure, part, self.weights[stretch], per_token)

    def accumulate(
        self,
        i: int,
        measure: Measure,
        part: str,
        weights: Float[Tensor, " stretch"],
        per_token: Float[Tensor, "stretch columns"],
    ) -> None:
        """Add what a measure gives for some tokens of layer i."""
        if per_token.dtype == torch.float64:
            self.in_full.add((measure, part))
        else:
            per_token = per_token.float()
        weights = weights.to(per_token.dtype).to(per_token.device)
        summed, before = exact(weights @ per_token), self.totals[measure, part][i]
        self.totals[measure, part][i] = summed if before is None else before + summed

    def stretches(self, part: str, x: Float[Tensor, "positions ..."], hidden: int) -> Iterator[slice]:
        """Stretches of tokens whose buffers have at most `chunk` values."""
        step = max(LEAST[part], self.chunk(x) // max(x[:1].numel(), hidden))
        return (slice(start, start + step) for start in range(0, len(x), step))

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
        return mean if (measure, part) in self.in_full else mean.float()

    def check(self) -> None:
        """Refuse sums that say nothing, by a ValueError: no tokens were counted, or a sum is not finite."""
        if self.tokens == 0:
            raise ValueError("The calibration batches hold no tokens: every attention mask is 0, or there is no batch.")
        for measure, part in self.totals:
            bad = (~self.stacked(measure, part).isfinite()).any(1).nonzero().flatten().tolist()
            if bad:
                raise ValueError(
                    f"The activations behind the {'attention heads' if part == 'heads' else part} of layer {bad[0]} "
                    "are NaN or infinite; score in float32 or bfloat16, and check the checkpoint."
                )


@contextmanager
def watching(anatomy: Anatomy, sums: Sums, but: Measure | None = None) -> Iterator[None]:
    """Watch the inputs of both output projections of every layer; leave no hook behind, whatever happens.

    `but` names a measure that is taken in another way.
    """
    handles = []

    def watch(i: int, part: str, module: nn.Module | None, shape: tuple[int, ...]) -> None:
        if module is None or not any(of == part and m is not but for m, of in sums.totals):
            return

        def measure(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            output = weight_of(module).T.contiguous().view(*shape, -1)  # products are quicker where rows lie together
            sums.add(i, part, args[0].reshape(-1, *shape), output, but)

        handles.append(module.register_forward_pre_hook(measure))

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


Watch = Callable[[Anatomy, Sums], AbstractContextManager[None]]
Pass = Callable[[Anatomy, Iterable[Batch], Sums, str], None]  # feeds the sums


def one_pass(anatomy: Anatomy, batches: Iterable[Batch], sums: Sums, average: str, watching: Watch = watching) -> None:
    """One forward pass over every batch, without gradients, dropout or logits."""
    with evaluating(anatomy.model), watching(anatomy, sums):
        for batch in batches:
            inputs = model_inputs(anatomy.model, batch)
            sums.begin(batch, average)
            anatomy.model.base_model(**inputs)  # the decoder without its output head: scores need no logits


def ids_and_mask(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """What a batch holds; a ValueError if that is not what this model reads (`checked`)."""
    return checked(batch, words_of(model), positions_of(model))


def positions_of(model: Any) -> int | None:
    """The longest row that a model has learned positions for; None where positions have no end."""
    learned = {name.rpartition(".")[2] for name, _ in model.base_model.named_modules()} & LEARNED
    return model.config.max_position_embeddings if learned else None


def entering(model: Any, batches: Any) -> Any:
    """Batches as they come in, each looked through before any work; a stream is looked through while it is read."""
    for batch in batches if isinstance(batches, Sequence | Mapping | Tensor) else ():
        ids_and_mask(model, batch)
    return batches


def held(model: Any, batches: Iterable[Any]) -> Sequence[Batch]:
    """The same of batches that are going to be read more than once, so that a stream is held."""
    return entering(model, batches if isinstance(batches, Sequence) else list(batches))


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """What a model is called with for a batch: on its device, without a cache; left padding shifts no position."""
    device = next(model.parameters()).device
    ids, mask = (tensor.to(device) for tensor in ids_and_mask(model, batch))
    mask = mask.long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return dict(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, without gradients, while it lasts."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def weight_of_positions(mask: Bool[Tensor, "batch length"], average: str) -> Float[Tensor, "batch length"]:
    """What each position counts: 1 for a token and 0 for padding; 1/length where every prompt weighs the same."""
    weight = exact(mask)
    return weight if average == "tokens" else weight / weight.sum(1, keepdim=True).clamp(min=1)
