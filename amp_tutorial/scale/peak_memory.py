"""How much memory each stage of a run takes: its own tensor operations are run on the meta device, and counted.

The meta device computes shapes and no values, so a model of any size takes seconds and no memory. What is counted is
what `torch.cuda.max_memory_allocated` counts on a GPU: the tensors alive at the same time. What a library needs inside
one operation is not in it, nor the context of a GPU (some hundred MB), nor what its allocator keeps in reserve.

It comes within 25 % of what is measured on the embedded models (tests/test_requirements.py). Arithmetic does not: five
sizes of a model (hidden size, neurons, vocabulary, query features, tokens) with coefficients fitted to the embedded
models meet those within 10 %, but miss real configurations by up to 170 % (recovery of SmolLM2-135M) and models with
experts by nearly all of it, since what is alive at the peak depends on a family's own code.
"""

import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedConfig, PreTrainedModel

from ..core.anatomy import Anatomy
from ..core.checkpoint import without_weights
from ..core.criteria import named
from ..core.plans import Plan, whole_plan
from ..core.sums import CHUNK, CHUNK_ON_GPU, Sums, one_pass
from ..core.surgery import smaller_config
from ..measure.costs import on_meta
from ..measure.tasks import kept_by_layer
from ..methods.lora import adapted, summed_loss
from ..methods.repair_layer import Options, Refits
from ..methods.whole_layers import cut_layer


class Alive(TorchDispatchMode):
    """Bytes of all tensors alive now, and the most there have been; views share what they view."""

    def __init__(self, *held: nn.Module) -> None:
        """`held`: models that are there from the start."""
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        for model in held:
            for tensor in (*model.parameters(), *model.buffers()):
                self._see(tensor)

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.device.type == "meta" and storage not in self._known:  # the few scalars elsewhere are left out
            self._known.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, storage.nbytes())

    def _drop(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1  # whether a mask is all ones, for example: there is no padding
        first = args[1][0] if func is torch.ops.aten.index.Tensor else None
        if first is not None and first.dtype == torch.bool:
            found = args[0].new_empty((first.numel(), *args[0].shape[first.ndim :]))  # nothing is masked out
        else:
            found = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, found)
        return found


class _Attention(torch.autograd.Function):
    """What a fused attention holds: its output, and for the way back its inputs. Meta has no fused one."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # type: ignore[override]
        output = torch.empty_like(query.transpose(1, 2)).transpose(1, 2)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class _Fused(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


@contextmanager
def counting(*held: nn.Module) -> Iterator[Alive]:
    """Count what is alive while the context lasts, beside these models."""
    with Alive(*held) as alive, _Fused(), on_meta():
        yield alive


def shadow(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a configuration on the meta device: shapes without weights."""
    model = without_weights(config, dtype)
    if getattr(config, "_experts_implementation", None):
        model.set_experts_implementation("batched_mm")  # its work does not depend on the data, which meta has not
    return model


P = ParamSpec("P")
FEW = (3, 4)  # layers from which a deeper model's peak is told


def _alike(anatomy: Anatomy) -> bool:
    """Whether all layers are of the same classes and shapes, and of one kind by the configuration."""
    layers = anatomy.model.get_submodule(anatomy.family.layers)
    kinds = {tuple((n, type(m), *(p.shape for p in m.parameters())) for n, m in x.named_modules()) for x in layers}
    return len(kinds) == len(set(getattr(anatomy.model.config, "layer_types", None) or [0])) == 1


def _by_depth(
    peak: Callable[Concatenate[PreTrainedModel, P], int],
) -> Callable[Concatenate[PreTrainedModel, P], int]:
    """A deep model's peak from those of its first layers: where all are alike, each further one adds as much.

    So it is where the same moment is the peak at every depth. Not so in a forward pass with a cache: few layers have
    their peak at the logits, many where the cache is full, and a line through the first misses that by a quarter.
    """

    @functools.wraps(peak)
    def told(model: PreTrainedModel, *args: P.args, **kwargs: P.kwargs) -> int:
        anatomy = Anatomy.of(model)
        if anatomy.layers <= FEW[1] or not _alike(anatomy):
            return peak(model, *args, **kwargs)
        plans = (replace(whole_plan(anatomy), layers=list(range(layers))) for layers in FEW)
        less, more = (peak(shadow(smaller_config(anatomy, plan), model.dtype), *args, **kwargs) for plan in plans)
        return more + (anatomy.layers - FEW[1]) * (more - less) // (FEW[1] - FEW[0])

    return told


def _ids(rows: int, length: int) -> Tensor:
    return torch.zeros((rows, length), dtype=torch.long, device="meta")


class _Sums(Sums):
    """Sums on the meta device, in stretches as on the device asked for."""

    on = "cpu"

    def chunk(self, x: Tensor) -> int:
        return CHUNK if self.on == "cpu" else CHUNK_ON_GPU


@_by_depth
def of_scoring(model: PreTrainedModel, criterion: str, batch: int, length: int, device: str = "cpu") -> int:
    """Bytes at the peak of `score`, for batches of so many texts of so many tokens."""
    chosen, anatomy = named(criterion), Anatomy.of(model)
    with counting(model) as alive:
        if chosen.collect is not None:
            _backward(model, anatomy, batch, length)
        elif chosen.static is not None:
            for i in range(anatomy.layers):
                for weights in (anatomy.head_weights(i), anatomy.neuron_weights(i)):
                    chosen.static(weights)
        elif chosen.heads is not None and chosen.neurons is not None:
            sums = _Sums(anatomy, ((chosen.heads, "heads"), (chosen.neurons, "neurons")))
            sums.on = device
            real = torch.zeros((batch, length), dtype=torch.long)
            one_pass(anatomy, [{"input_ids": real, "attention_mask": real + 1}], sums, "tokens")
    return alive.peak


def _backward(model: PreTrainedModel, anatomy: Anatomy, batch: int, length: int) -> None:
    """A batch as in `taylor.by_gradients`, twice: the gradients of the first are there in the second."""
    inside = set(model.get_submodule(anatomy.family.layers).parameters())
    for p in model.parameters():
        p.requires_grad_(p in inside)
    for _ in range(2):
        ids = _ids(batch, length)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        nll = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        (nll * torch.empty_like(nll)).sum().backward()
    for p in model.parameters():
        p.grad = None


def weights(*models: nn.Module) -> int:
    """Bytes of the parameters and buffers of models; what two names share counts once."""
    return Alive(*models).peak


def of_repair(
    model: PreTrainedModel, plan: Plan, small: PreTrainedModel, texts: int, batch: int, length: int, choose: bool
) -> int:
    """Bytes at the peak of `repair`, which holds the calibration text's hidden states in both models, and of one dense
    layer what enters it and what its two halves write.

    The first two layers and batches are run; what the others add is a sum. `choose` also inverts equations of the
    whole width: by arithmetic.
    """
    anatomy, size = Anatomy.of(model), next(model.parameters()).element_size()
    real = torch.zeros((min(batch, texts), length), dtype=torch.long)
    batches = [{"input_ids": real, "attention_mask": real + 1}] * min(2, -(-texts // batch))
    found: dict[str, Tensor] = {}
    with counting(model) as alive:
        refits = Refits(anatomy, plan, batches, Options())
        for i in range(min(2, anatomy.layers)):
            found |= cut_layer(anatomy, plan, i, refits.layer(i))
    a_layer = sum(tensor.nbytes for tensor in found.values()) // min(2, anatomy.layers)
    streams = 5 * texts * length * anatomy.hidden * size
    rest = a_layer * (anatomy.layers - 2) + max(0, streams - 5 * len(batches) * real.numel() * anatomy.hidden * size)
    widest = max(anatomy.features("query"), anatomy.neurons)
    inverting = 8 * (6 * widest + 5 * anatomy.hidden) * widest if choose else 0
    held = weights(model) + a_layer * anatomy.layers + streams
    return max(alive.peak + max(0, rest), held + max(inverting, weights(small)))


@torch.no_grad()
def of_perplexity(model: PreTrainedModel, batch: int, window: int) -> int:
    """Bytes at the peak of `perplexity`. The logits of a batch are there until those of the next one are."""
    with counting(model) as alive:
        for _ in range(2):
            ids = _ids(batch, window)
            logits = model(input_ids=ids).logits[:, :-1].float()
            F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return alive.peak


@torch.no_grad()
def of_tasks(model: PreTrainedModel, batch: int, asked: Sequence[tuple[int, int, int]]) -> int:
    """Bytes at the peak of `accuracy`, as it reads prompts once and then their answers, `batch` at once.

    Args:
        asked: of each kind of question the answers to one prompt, and the tokens of the prompt and of an answer.
    """
    with counting(model) as alive:
        for answers, prompt, tokens in asked:
            prompts = max(1, batch // answers)
            if not kept_by_layer(model):  # lm-eval reads each answer with its prompt
                kept = F.log_softmax(model(input_ids=_ids(batch, prompt + tokens)).logits, dim=-1)
                continue
            read = model(input_ids=_ids(prompts, prompt), use_cache=True, logits_to_keep=1)
            logits = [read.logits[0]]
            if tokens > 1:
                rows = torch.zeros(prompts * answers, dtype=torch.long, device="meta")
                read.past_key_values.batch_select_indices(rows)
                more = model(input_ids=_ids(len(rows), tokens - 1), past_key_values=read.past_key_values).logits
                logits.append(more[0])
            kept = torch.cat(logits).float().logsumexp(1)  # noqa: F841, held as there
    return alive.peak


@_by_depth
def of_recovery(model: PreTrainedModel, rows: int, length: int) -> int:
    """Bytes at the peak of `recover`: the model given, its copy, and a step of the adapters of that."""
    with counting(model) as alive:
        tuned = adapted(model).train()
        trainable = [p for p in tuned.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable)
        for _ in range(2):  # the second has the moments of the first
            summed_loss(tuned, _ids(rows, length), None, _ids(rows, length)).backward()
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return alive.peak
