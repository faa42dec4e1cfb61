"""What a cut breaks before anything is repaired: each layer and part alone, all together, and what little text costs.

A sweep calls `damage` (data/sweeps/real.yaml), docs/real.md shows its record. It is measured on windows of calibration
text from which nothing here is made, not on the text on which systems compete: methods are made by what is seen here.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

import amp_tutorial as amp

from ..core.anatomy import Anatomy, exact, weight_of
from ..core.plans import Plan, a_ratio
from ..core.sums import Batch, model_inputs
from ..core.surgery import silenced
from ..files.checkpoints import located, sha256
from ..measure.comparisons import compare_perplexity
from ..methods.budget import FELT, losses, up_to
from ..methods.normal_equations import Normal
from ..methods.projections import ends
from ..runs.execute import RECORD
from ..runs.identity import several
from .measurements import _drawn, _hash, _loaded, _said, check_measured
from .style import BLANK, grid

NAME = "damage"
PARTS = ("neurons", "KV groups", "query heads", "layers")
TOKENS = (2560, 10_240, 40_960)  # of which the output projections of some layers are refitted
SOME = 4  # layers
WORST = 3  # layers that a table names
Cut = dict[int, Plan]  # of some layers: a plan for each, which may keep other widths than the next one's
SAID = (
    "Nats a token by which the loss grows, on {} windows of the calibration text, C4 and Wikipedia, beside those from "
    "which scores and refits here were made. A refit's error is of what the output projection of the neurons writes, "
    "by how many tokens it was made from, in dense layers that nothing before has disturbed."
)


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
    scored = amp.score_many(dense, held, list(dict.fromkeys((criterion, "transact"))), seed=seed)
    scores = scored[criterion]
    judge = dense if dtype == str(dense.dtype)[6:] else copy.deepcopy(dense).to(getattr(torch, dtype))
    anatomy, before = Anatomy.of(judge), losses(judge, apart)
    plan = amp.plan(dense, scores, pruning_ratio=ratio, parts="neurons")

    def grows(name: str, cut: Cut) -> float:
        with silent(anatomy, cut):
            found = compare_perplexity({0: losses(judge, apart)}, {0: before})
        record.metric(name, found.difference, found.low, found.high, unit="nats", n=found.n)
        return found.difference

    for part in PARTS:
        cuts = cut_of(anatomy, part, plan, scores)
        alone = [grows(f"{part}/layer {i}", {i: cuts[i]}) for i in tqdm(cuts, desc=part, unit="layer")]
        record.metric(f"{part}/sum", sum(alone), unit="nats")
        removed = sum(anatomy.layer_parameters) / dense.num_parameters()
        if part != "layers":
            grows(f"{part}/together", cuts)
            removed = cuts[0].achieved
        record.metric(f"{part}/removed", removed, unit="of all parameters, from all layers")
    felt = felt_by_neuron(dense, held, scored["transact"])
    width = len(plan.neurons[0])
    for name, kept in (("alike", alike(felt, width)), ("own", own_widths(felt, width))):
        grows(f"widths/{name}", dict.fromkeys(range(anatomy.layers), replace(plan, neurons=[k.tolist() for k in kept])))
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
    a_ratio(ratio)
    if calibration < 2 or windows < 2:
        raise ValueError("calibration and windows must be at least 2.")
    check_measured(model, dtype=dtype)


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


@contextmanager
def silent(anatomy: Anatomy, cut: Cut) -> Iterator[None]:
    """While it lasts, what these layers' plans remove is silent, and all other layers are whole."""
    handles = []
    try:
        for i, plan in cut.items():
            handles += silenced(anatomy, plan, i)
        yield
    finally:
        for handle in handles:
            handle.remove()


def cut_of(anatomy: Anatomy, part: str, plan: Plan, scores: amp.Scores) -> Cut:
    """Of every layer: the neurons of a plan, one KV group less, one query head of each group less, or nothing left."""
    layers = range(anatomy.layers)
    if part == "layers":
        return {i: replace(plan, layers=[j for j in layers if j != i]) for i in layers}
    if part != "neurons":
        unit, fewer = ("groups", anatomy.group_size) if part == "KV groups" else ("queries", anatomy.groups)
        plan = amp.keep(anatomy.model, scores, heads=anatomy.heads - fewer, unit=unit)
    return dict.fromkeys(layers, plan)


def felt_by_neuron(
    model: PreTrainedModel, batches: Sequence[Batch], transact: amp.Scores
) -> list[Float[Tensor, " neurons"]]:
    """What the loss feels of the silence of each neuron, to second order: Σ x_j² · w_jᵀ G w_j. All layers compare.

    Args:
        transact: scores by TransAct, of a neuron sqrt(Σ x_j²).
    """
    anatomy = Anatomy.of(model)
    metric = amp.output_metric(model, up_to(batches, FELT))
    found = []
    for i in range(anatomy.layers):
        module = anatomy.layer(i).neurons_out
        assert module is not None
        w = exact(weight_of(module)).detach().cpu()
        found.append(exact(transact.neurons[i]).square() * ((metric[i]["neurons"] @ w) * w).sum(0))
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


def tables(found: Mapping[str, Any]) -> list[str]:
    """What each part costs before repair, layer by layer and together; and how far a refit carries to other text.

    Args:
        found: a record of `damage`.
    """
    m, lines = found["metrics"], []
    for part in PARTS:
        alone = {k.rsplit(" ", 1)[1]: v["value"] for k, v in m.items() if k.startswith(f"{part}/layer ")}
        worst = sorted(alone, key=alone.__getitem__)[: -WORST - 1 : -1]
        whole = m.get(f"{part}/together")
        lines.append([
            part,
            f"{100 * m[f'{part}/removed']['value']:.1f} %",
            ", ".join(f"{i}: {alone[i]:.2f}" for i in worst),
            f"{sorted(alone.values())[len(alone) // 2]:.3f}",
            f"{m[f'{part}/sum']['value']:.2f}",
            f"{whole['value']:.2f} ({whole['low']:.2f} to {whole['high']:.2f})" if whole else BLANK,
        ])  # fmt: skip
    head = ["what goes from a layer", "of all parameters, from all layers", "the dearest layers", "the median layer"]
    told = grid([*head, "the sum over layers", "all layers together"], lines, text=1)
    widths = [f"{m[f'widths/{how}']['value']:.2f} nats" for how in ("alike", "own")]
    told += ["", f"Neurons chosen by what the loss feels of each (x² · wᵀGw): as many in every layer {widths[0]}; each "
             f"layer with a width of its own, which no stock configuration says, {widths[1]}.", ""]  # fmt: skip
    errors: dict[int, dict[str, str]] = {}
    for name, value in m.items():
        if name.startswith("refit/"):
            _, layer, tokens, text = name.split("/")
            key = f"{int(tokens.removesuffix(' tokens')):,} tokens, {'its own text' if text == 'own' else 'other text'}"
            errors.setdefault(int(layer.removeprefix("layer ")), {})[key] = f"{100 * value['value']:.1f} %"
    columns = [*next(iter(errors.values()), {})]
    return told + grid(["layer", *columns], [[str(i), *row.values()] for i, row in errors.items()], text=0)
