"""Prune a checkpoint larger than memory: score, cut and save it layer by layer from its memory-mapped files.

The model is built without weights. One decoder layer at a time gets them, and gives them up again. What is computed is
what `score`, `plan`, `repair`, `prune` and `save` compute, in the same order, so the result is theirs bit for bit (on
the CPU).
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..core.checkpoint import located
from ..core.criteria import named
from ..core.data import calibration
from ..core.families import Anatomy
from ..core.plans import Plan, whole_plan
from ..core.plans import plan as planned
from ..core.saving import CHECKPOINT, check_generation
from ..core.scores import Scores, hash_of, score
from ..core.stock import smaller_config
from ..core.sums import Batch
from ..core.surgery import _fits, cut_layer, renumbered
from ..files.atomic import new_folder
from ..methods.hidden_size import Turn, sliced_config
from ..methods.layerwise import Walk
from ..methods.repair_layer import Options, Refits
from ..methods.residual_roles import roles
from ..methods.rotation import Moments, Rotation
from .checkpoint_on_disk import Folder
from .shards import Shards, without_bars


def prune_folder(
    source: str | Path,
    target: str | Path,
    remove: float | None = None,
    *,
    plan: Plan | None = None,
    repair: bool | dict[str, Any] = False,
    hidden: int | None = None,
    batches: Iterable[Batch] | None = None,
    text: str | Path | Sequence[str] = "tinyworld",
    criterion: str = "amp",
    average: str = "tokens",
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    **widths: Any,
) -> Plan:
    """Prune the checkpoint in `source` into a new folder `target`, with never more than a few layers in memory.

    The tensors written are those that `load`, `score`, `plan`, `prune` (or `repair`) and `save` give on the CPU; each
    layer is one file, with an index. Everything is written beside the target and moved at the end; after an
    interruption the same command starts again.

    Memory holds at most three decoder layers, what is outside the layers (embeddings), and one hidden state for every
    calibration token (measured: `benchmarks/larger_than_memory.py`). With `repair` two hidden states for every token,
    and what the normal equations of one projection take (see `repair`). With `hidden` three more copies in float64 of
    the largest matrix, or of the embedding, and a few (hidden, hidden) ones.

    Args:
        source: a local folder with safetensors (one file, or several with an index), or an embedded model.
        target: a folder that is empty or not there.
        remove: as in `plan`, like all of `widths`: of, parts, heads, neurons, unit, combine, align, nearest, layers.
        plan: a ready-made plan instead; nothing is scored then.
        repair: refit each layer before it is cut, as `repair` does: True, or its options choose, sequential, reads and
            ridge. The layers are walked through a second time then.
        hidden: slice the hidden size to this, as `slice_hidden` does, after the layers are cut. The rotation is the
            dense model's, from a walk of its own; it sums layer by layer, so that it agrees with `rotation` but for
            rounding. Alone, without `remove`, widths or a plan, it leaves heads and neurons whole.
        batches: calibration batches as in `score`; by default drawn from `text` by `calibration`.
        text: see `data.texts`.
        criterion, average, seed: as in `score`.
        overwrite: replace the checkpoint that the target holds, as `save` does. Never the source.
        progress: show a bar over layers.

    Returns:
        The plan that was carried out.

    Raises:
        ValueError: before any work: no checkpoint there, only pickles, a missing or damaged file, quantised weights,
            weights that do not match the configuration, what `score`, `plan`, `repair` and `slice_hidden` refuse, or
            what `new_folder` does. With parts="scored" the widths follow from the scores, so what only they make
            impossible is refused after scoring; nothing is written then.
        OSError: the result could not be written, because the disk is full for instance. Nothing of it is left then.
    """
    name, source = source, located(source)
    if not source.is_dir():
        raise ValueError(f"{name} is no local folder; fetch it first: hf download {name} --local-dir FOLDER.")
    options, chosen = _options(repair, hidden), named(criterion)
    with without_bars():
        folder = Folder(source)
        choosing = plan is None and (hidden is None or remove is not None or bool(widths))
        likely = _likely(folder, plan, remove, criterion, widths) if plan or choosing else whole_plan(folder.anatomy)
        _small(folder, likely, hidden)
        if batches is None and (options or hidden is not None or (choosing and chosen.sees_data)):
            if folder.tokenizer is None:
                raise ValueError(f"{source} has no tokenizer to read the text with; give batches=… instead.")
            batches = calibration(folder.tokenizer, text, seed=seed)
        held = list(batches or ())
        with new_folder(target, [source], overwrite, CHECKPOINT) as beside:
            final = likely
            if choosing:
                scores = score_folder(folder, held, criterion, average, seed, progress)
                final = planned(folder.model, scores, remove, **widths)
            cut, small = _small(folder, final, hidden)
            turned = None if hidden is None else rotation_folder(folder, held, progress)
            refits, change = None, None
            if options:
                turn = None if turned is None else Turn(folder.anatomy, turned, small.config.hidden_size)
                refits = Refits(folder.anatomy, final, held, options, turn)
            if turned is not None:
                change = Turn(cut, turned, small.config.hidden_size)
            shards = Shards(small, beside, len(final.kept_layers) + 1)
            _write(folder, final if refits is None else refits.plan, refits, change, shards, progress)
            shards.finish(folder.tokenizer)
    if refits is None:
        return final
    refits.warn()
    return refits.plan


def _options(repair: bool | dict[str, Any], hidden: int | None) -> Options | None:
    if repair is False:
        return None
    repair = {} if repair is True else repair
    if unknown := set(repair) - (known := {field.name for field in fields(Options)}):
        raise ValueError(f"repair={repair} names {sorted(unknown)[0]!r}; its options are {', '.join(sorted(known))}.")
    options = Options(**repair)
    options.check(hidden)
    return options


def _likely(folder: Folder, plan: Plan | None, remove: float | None, criterion: str, widths: dict[str, Any]) -> Plan:
    """The plan given, or one of the widths asked for: all that can be refused without scores is refused here."""
    if plan is not None:
        if remove is not None or widths:
            given = ["remove"] * (remove is not None) + list(widths)
            raise ValueError(f"A ready-made plan says what stays; leave {', '.join(given)} out, or the plan.")
        _fits(folder.anatomy, plan)
        return plan
    chance = replace(score(folder.model, [], "random"), criterion=criterion)
    by_rank = {"nearest": True} if widths.get("parts") == "scored" else {}  # there the widths will be others
    return planned(folder.model, chance, remove, **widths | by_rank)


def score_folder(
    folder: Folder, batches: Sequence[Batch], criterion: str, average: str, seed: int, progress: bool
) -> Scores:
    """The scores that `score` gives, from one layer after the other.

    For each layer `score` runs the model's own forward, in which all other layers are skipped. So masks, positions and
    whatever else a family hands its layers come from its own code, and each sum is made by `score`, in its order.
    """
    chosen, layers = named(criterion), range(folder.anatomy.layers)
    if chosen.gradient is not None:
        raise ValueError(f"Scores by {criterion!r} need gradients of the whole model; score in memory.")
    if not chosen.sees_data and chosen.static is None:
        return score(folder.model, [], criterion, average, seed)
    heads, neurons, walk = [], [], Walk(folder.anatomy, batches)
    with folder.present(None):
        for i in tqdm(layers, desc="Scored", unit="layer", disable=not progress):
            with folder.present(i):
                if chosen.static is not None:
                    found = Scores([], [], criterion, average, tokens=0, prompts=0, seed=seed)
                    heads.append(chosen.static(folder.anatomy.head_weights(i)))
                    neurons.append(chosen.static(folder.anatomy.neuron_weights(i)))
                    continue
                with walk.only(i, go_on=True):
                    found = score(folder.model, batches, criterion, average, seed)
                heads.append(found.heads[i])
                neurons.append(found.neurons[i])
    return replace(found, heads=heads, neurons=neurons, model_hash=hash_of(folder.parameters()))


def rotation_folder(folder: Folder, batches: Sequence[Batch], progress: bool) -> Rotation:
    """The rotation that `rotation` measures, from one layer after the other."""
    moments, walk = Moments(folder.anatomy), Walk(folder.anatomy, batches)
    with folder.present(None):
        for i in tqdm(range(folder.anatomy.layers), desc="Turned", unit="layer", disable=not progress):
            with folder.present(i), walk.only(i, go_on=True), moments.watching(moments.norms(i)):
                for b, batch in enumerate(batches):
                    moments.begin(batch, again=i > 0)
                    walk.step(b)
    return moments.rotation()


def _small(folder: Folder, plan: Plan, hidden: int | None) -> tuple[Anatomy, PreTrainedModel]:
    """Without weights: the model cut by the plan, and the one that is saved, which may be sliced."""

    def built(config: PreTrainedConfig) -> PreTrainedModel:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=folder.model.dtype)
        return model

    cut = small = built(smaller_config(folder.anatomy, plan))
    names = renumbered(folder.anatomy, plan)
    if small.state_dict().keys() != {names(name) for name in folder.model.state_dict()} - {""}:
        raise ValueError(f"{type(small).__name__} does not hold the same weights as {type(folder.model).__name__}.")
    anatomy = Anatomy.of(cut)
    if hidden is not None:
        roles(anatomy)
        small = built(sliced_config(anatomy, hidden))
    small.generation_config = folder.model.generation_config
    check_generation(small)
    return anatomy, small


def _write(
    folder: Folder, plan: Plan, refits: Refits | None, turn: Turn | None, shards: Shards, progress: bool
) -> None:
    """Refit, cut, slice and save part by part. A layer that goes is only walked through, for what it gives the next."""
    layers = plan.kept_layers if refits is None else range(folder.anatomy.layers)
    with folder.present(None) as outside:
        for i in tqdm([*layers, None], desc="Written", unit="part", disable=not progress):
            with nullcontext(outside) if i is None else folder.present(i) as tensors:
                refitted = {} if refits is None else refits.head() if i is None else refits.layer(i)
                if i is not None:
                    if i not in plan.kept_layers:
                        continue
                    tensors, refitted = (cut_layer(folder.anatomy, plan, i, some) for some in (tensors, refitted))
                shards.add((tensors if turn is None else turn(tensors)) | refitted)
