"""What a cut breaks before anything is repaired: each layer and part alone, all together, and what little text costs.

A sweep calls `damage` (data/sweeps/real.yaml), docs/real.md shows its record. It is measured neither on the text that
anything is scored by nor on that on which systems compete: methods are made by what is seen here.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

import amp_tutorial as amp

from ..core.anatomy import Anatomy, exact, weight_of
from ..core.checkpoint import configuration
from ..core.plans import Plan
from ..core.sums import Batch, model_inputs
from ..core.surgery import DEPTH, _kept
from ..files.checkpoints import located, sha256
from ..measure.comparisons import Comparison, compare_perplexity
from ..measure.intervals import Windows
from ..methods.budget import FELT, up_to
from ..methods.normal_equations import Normal
from ..methods.projections import ends
from ..runs.execute import RECORD
from ..runs.identity import several
from .measurements import _drawn, _hash, _loaded, _said

NAME = "damage"
PARTS = ("neurons", "KV groups", "query heads", "layers")
TOKENS = (2560, 10_240, 40_960)  # of which the output projections of some layers are refitted
SOME = 4  # layers
Cut = dict[
    int, dict[str, Tensor]
]  # of some layers, by part: the inputs of the output projection that stay; none: whole


def damage(
    *,
    model: str = "tiny-llama",
    ratio: float = 0.2,  # of all parameters: what neurons alone lose by it goes from a layer
    seed: int = 0,  # of the text
    criterion: str = "transact",
    calibration_text: str = "tinyworld",
    local_copies: str = "",
    calibration: int = 80,  # windows from which scores and refits are made
    windows: int = 8,  # more of them, to measure on
    length: int = 128,  # of each, in tokens
    dtype: str = "float32",  # of measuring
    out: str = "out",
) -> None:
    """One record: nats a token that the loss grows by, without repair."""
    dense, tokenizer = _loaded(model)
    sources = several("calibration_text", calibration_text)
    drawn = _drawn(tokenizer, sources, local_copies, calibration + windows, length, seed)
    held, apart = split(drawn, calibration)
    made = dict(text=_said(sources), calibration=calibration, length=length, criterion=criterion)
    made |= dict(text_sha256=_hash(sources, "calibration", local_copies))
    weights = sha256(*sorted(located(model).glob("*.safetensors")))
    measured = dict(model_sha256=weights, windows=sum(len(b["input_ids"]) for b in apart), dtype=dtype)
    record = amp.Record(NAME, dict(model=Path(model).name, ratio=ratio, seed=seed, made=made, measured=measured))
    scores = amp.score(dense, held, criterion, seed=seed)
    judge = dense if dtype == str(dense.dtype)[6:] else copy.deepcopy(dense).to(getattr(torch, dtype))
    anatomy, before = Anatomy.of(judge), lost(judge, apart)
    plan = amp.plan(dense, scores, pruning_ratio=ratio, parts="neurons")

    def grows(name: str, cut: Cut) -> float:
        with silenced(anatomy, cut):
            found = compare_perplexity({0: lost(judge, apart)}, {0: before})
        put(record, name, found)
        return found.difference

    for part in PARTS:
        cuts = cuts_alone(anatomy, part, plan, scores)
        alone = [grows(f"{part}/layer {i}", {i: cuts[i]}) for i in tqdm(cuts, desc=part, unit="layer")]
        record.metric(f"{part}/sum", sum(alone), unit="nats")
        if part != "layers":
            grows(f"{part}/together", cuts)
        record.metric(f"{part}/removed", share(anatomy, part, plan), unit="of all parameters, from all layers")
    felt = felt_by_neuron(dense, held)
    width = len(plan.neurons[0])
    for name, kept in (("alike", alike(felt, width)), ("own", own_widths(felt, width))):
        grows(f"widths/{name}", {i: {"neurons": rows} for i, rows in enumerate(kept)})
        record.notes[f"neurons of each layer, {name}"] = [len(rows) for rows in kept]
    for (i, tokens), (on_own, on_other) in refits(dense, held, apart, plan).items():
        record.metric(f"refit/layer {i}/{tokens} tokens/own", on_own, unit="of the output's energy")
        record.metric(f"refit/layer {i}/{tokens} tokens/other", on_other, unit="of the output's energy")
    record.write(Path(out) / RECORD)


def check_damage(*, model: str, ratio: float, calibration: int, windows: int, dtype: str, **_: Any) -> None:
    """Refuse what `damage` can't do.

    Raises:
        ValueError: an unknown model, or a number or type out of range.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"ratio={ratio} must lie between 0 and 1, both excluded.")
    if calibration < 2 or windows < 2:
        raise ValueError("calibration and windows must be at least 2.")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={dtype!r} must be 'float32' or 'bfloat16'.")
    if not located(model).is_dir():
        raise ValueError(f"{model} is not a folder: fetch the model into one, so that a record can say what it is of.")
    configuration(model)


def split(batches: Sequence[Batch], rows: int) -> tuple[list[Batch], list[Batch]]:
    """So many rows, and the others."""
    first, others = list[Batch](), list[Batch]()
    for batch in batches:
        here = min(rows, len(batch["input_ids"]))
        rows -= here
        for where, part in ((first, slice(None, here)), (others, slice(here, None))):
            if len(batch["input_ids"][part]):
                where.append({name: values[part] for name, values in batch.items()})
    return first, others


def put(record: amp.Record, name: str, found: Comparison) -> None:
    record.metric(name, found.difference, found.low, found.high, unit="nats", n=found.n)


@torch.no_grad()
def lost(model: PreTrainedModel, batches: Iterable[Batch]) -> Windows:
    """Summed loss in nats and counted tokens of each window."""
    sums, tokens = list[float](), list[int]()
    for batch in batches:
        inputs = model_inputs(model, batch)
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)[:, 1:]
        logits = model(**inputs).logits[:, :-1]
        for row, wanted in zip(logits, labels, strict=True):
            sums.append(float(F.cross_entropy(row.float(), wanted, reduction="sum")))
            tokens.append(int((wanted != -100).sum()))
    return sums, tokens


@contextmanager
def silenced(anatomy: Anatomy, cut: Cut) -> Iterator[None]:
    """While it lasts, what a cut says goes is silent, whatever goes elsewhere; an empty one passes the layer by."""
    handles = []
    for i, parts in cut.items():
        layer = anatomy.layer(i)
        if not parts:
            handles.append(DEPTH[0].pass_by(anatomy.model.get_submodule(f"{anatomy.family.layers}.{i}")))
        for part, kept in parts.items():
            module = layer.output if part == "heads" else layer.neurons_out
            assert module is not None
            weight = weight_of(module)
            mask = torch.zeros(weight.shape[1], dtype=weight.dtype)
            mask[kept] = 1
            handles.append(module.register_forward_pre_hook(lambda _, args, mask=mask: (args[0] * mask, *args[1:])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def cuts_alone(anatomy: Anatomy, part: str, plan: Plan, scores: amp.Scores) -> Cut:
    """Of every layer: the neurons of a plan, one KV group less, one query head of each group less, or nothing left."""
    if part == "layers":
        return {i: {} for i in range(anatomy.layers)}
    if part != "neurons":
        unit = "groups" if part == "KV groups" else "queries"
        fewer = anatomy.heads - (anatomy.group_size if unit == "groups" else anatomy.groups)
        plan = amp.keep(anatomy.model, scores, heads=fewer, unit=unit)
    name, rows = ("neurons", "neurons") if part == "neurons" else ("heads", "query")
    return {i: {name: _kept(anatomy, plan, i)[rows]} for i in range(anatomy.layers)}


def share(anatomy: Anatomy, part: str, plan: Plan) -> float:
    """Of all parameters: what goes if every layer loses it; of whole layers all of them."""
    gone = {
        "neurons": (anatomy.neurons - len(plan.neurons[0])) * anatomy.neuron_cost * anatomy.layers,
        "KV groups": anatomy.group_cost * anatomy.layers,
        "query heads": anatomy.query_cost * anatomy.layers,
        "layers": sum(anatomy.layer_parameters),
    }
    return gone[part] / anatomy.model.num_parameters()


def felt_by_neuron(model: PreTrainedModel, batches: Sequence[Batch]) -> list[Float[Tensor, " neurons"]]:
    """What the loss feels of the silence of each neuron, to second order: Σ x_j² · w_jᵀ G w_j. All layers compare."""
    anatomy = Anatomy.of(model)
    metric = amp.output_metric(model, up_to(batches, FELT))
    energy = amp.score(model, batches, "transact").neurons  # sqrt(Σ x²)
    found = []
    for i in range(anatomy.layers):
        module = anatomy.layer(i).neurons_out
        assert module is not None
        w = exact(weight_of(module)).detach().cpu()
        found.append(exact(energy[i]).square() * ((metric[i]["neurons"] @ w) * w).sum(0))
    return found


def alike(felt: list[Tensor], width: int) -> list[Tensor]:
    """As many neurons of every layer: those that are felt most."""
    return [values.argsort(descending=True)[:width].sort().values for values in felt]


def own_widths(felt: list[Tensor], width: int) -> list[Tensor]:
    """As many neurons in all, whatever layer they are of. No stock configuration says so; it is a bound, masked."""
    least = torch.cat(felt).sort(descending=True).values[width * len(felt) - 1]
    return [(values >= least).nonzero().flatten() for values in felt]


@torch.no_grad()
def refits(
    model: PreTrainedModel, held: Sequence[Batch], apart: Sequence[Batch], plan: Plan
) -> dict[tuple[int, int], tuple[float, float]]:
    """Of some layers, and so many tokens: the error left after the refit of the neurons' output projection.

    Returns:
        By layer and tokens: ‖Y − X Wᵀ‖² / ‖Y‖² on the text of the refit, and on other text.
    """
    anatomy = Anatomy.of(model)
    modules = {i: anatomy.layer(i).neurons_out for i in range(0, anatomy.layers, max(1, anatomy.layers // SOME))}

    def equations(batches: Sequence[Batch]) -> dict[int, Normal]:
        found = {i: Normal() for i in modules}
        for batch in batches:
            real = batch["attention_mask"].bool()
            with ends(modules) as seen:
                model.base_model(**model_inputs(model, batch))
            for i, (x, y) in seen.items():
                bias = modules[i].bias  # type: ignore[union-attr]
                found[i].add(x.reshape(*real.shape, -1)[real], (y if bias is None else y - bias)[real])
        return {i: normal.of(torch.tensor(plan.neurons[i])) for i, normal in found.items()}

    judges, left = equations(apart), dict[tuple[int, int], tuple[float, float]]()
    for tokens in TOKENS:
        few = up_to(held, tokens)
        for i, normal in equations(few).items():
            module = modules[i]
            assert module is not None
            prior = exact(weight_of(module))[:, plan.neurons[i]]
            w = normal.solve(prior, normal.ridge(prior))
            left[i, normal.tokens] = (normal.error(w), judges[i].error(w))
    return left
