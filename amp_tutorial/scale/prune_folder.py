"""Prune a checkpoint larger than memory: score, cut and save it layer by layer from its memory-mapped files.

The model is built without weights. One decoder layer at a time gets them, and gives them up again. What is computed is
what `score`, `plan`, `repair`, `prune` and `save` compute, in the same order, so the result is theirs bit for bit (on
the CPU).
"""

import copy
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from inspect import signature
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PreTrainedModel

from ..core.anatomy import Anatomy
from ..core.checkpoint import load, without_weights
from ..core.criteria import named
from ..core.data import calibration
from ..core.plans import Plan, whole_plan
from ..core.scores import Scores, score
from ..core.sums import Batch, held
from ..core.surgery import _fits, cuts_into, smaller_config
from ..files.arguments import checked
from ..files.atomic import expanded, new_folder
from ..files.checkpoints import CHECKPOINT, check_generation, hash_of, located, missing
from ..files.texts import Source
from ..methods.depth_and_width import planned
from ..methods.hidden_size import Turn, sliced_config
from ..methods.layerwise import Walk
from ..methods.projections import roles
from ..methods.repair import Fits
from ..methods.repair_layer import Options, Refits
from ..methods.rotation import Moments, Rotation
from ..methods.vocabulary import changed, cut_rows, smaller_tokenizer
from ..methods.whole_layers import cut_layer, renumbered
from .checkpoint_on_disk import Folder, Shards, without_bars


@dataclass(frozen=True)
class PrunedFolder:
    """A smaller checkpoint on disk: what `Pruned` says of a model in memory."""

    folder: Path
    plan: Plan
    report: Any = None  # of repair

    @property
    def model(self) -> PreTrainedModel:
        """The model, loaded each time that it is asked for."""
        return load(self.folder)[0]


def prune_folder(
    source: str | Path,
    target: str | Path,
    pruning_ratio: float | None = None,
    *,
    plan: Plan | None = None,
    repair: bool | dict[str, Any] = False,
    hidden_size: int | None = None,
    batches: Iterable[Batch] | None = None,
    text: Source = "tinyworld",
    criterion: str = "amp",
    average: str = "tokens",
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    **widths: Any,
) -> PrunedFolder:
    """Prune the checkpoint in `source` into a new folder `target`, with never more than a few layers in memory.

    The tensors written are those that `load`, `score`, `plan`, `prune` (or `repair`) and `save` give on the CPU; each
    layer is one file, with an index. Everything is written beside the target and moved at the end; after an
    interruption the same command starts again.

    Memory holds at most three decoder layers, what is outside the layers (embeddings), and one hidden state for every
    calibration token (measured: `benchmarks/larger_than_memory.py`). With `repair` two hidden states for every token,
    and what the normal equations of one projection take (see `repair`). With `hidden_size` three more copies in float64
    of the largest matrix, or of the embedding, and a few (hidden, hidden) ones.

    Args:
        source: a local folder with safetensors (one file, or several with an index), or an embedded model.
        target: a folder that is empty or not there.
        pruning_ratio: as in `planned`, like all of `widths`: of, parts, heads, neurons, unit, combine, align, nearest,
            layers.
        plan: a ready-made plan instead; nothing is scored then.
        repair: refit each layer before it is cut, as `repair` does: True, or its options reselect, sequential,
            refit_inputs, polish and ridge. The layers are walked through a second time then.
        hidden_size: slice the hidden size to this, as `slice_hidden` does, after the layers are cut. The rotation is
            the dense model's, from a walk of its own; it sums layer by layer, so that it agrees with `rotation` but for
            rounding. Alone, without a ratio, widths or a plan, it leaves heads and neurons whole.
        batches: calibration batches as in `score`; by default drawn from `text` by `calibration`.
        text: see `data.texts`.
        criterion, average, seed: as in `score`.
        overwrite: replace the checkpoint that the target holds, as `save` does. Never the source.
        progress: show a bar over layers.

    Returns:
        The folder, the plan that was carried out, and what repair reports.

    Raises:
        ValueError: before any work: no checkpoint there, only pickles, a missing or damaged file, quantised weights,
            weights that do not match the configuration, what `score`, `plan`, `repair` and `slice_hidden` refuse, or
            what `new_folder` does. With parts="scored" the widths follow from the scores, so what only they make
            impossible is refused after scoring; nothing is written then.
        OSError: the result could not be written, because the disk is full for instance. Nothing of it is left then.
    """
    name, source = source, located(source)
    if not source.is_dir():
        if source.is_file():
            raise ValueError(f"{name} is a GGUF file; make a folder of it: amp.save(*amp.load({str(name)!r}), FOLDER).")
        fetch = missing(name) or f" Fetch it first: hf download {name} --local-dir FOLDER."
        raise ValueError(f"{name} is not a local folder.{fetch}")
    options, chosen = _options(repair), named(criterion)
    with without_bars():
        folder = Folder(source)
        if options:
            options.check(folder.anatomy, hidden_size)
        choosing = plan is None and (hidden_size is None or pruning_ratio is not None or bool(widths))
        likely = (
            _likely(folder, plan, pruning_ratio, criterion, widths) if plan or choosing else whole_plan(folder.anatomy)
        )
        _small(folder, likely, hidden_size)
        if batches is None and (options or hidden_size is not None or (choosing and chosen.sees_data)):
            if folder.tokenizer is None:
                raise ValueError(f"{source} has no tokenizer to read the text with; give batches=… instead.")
            batches = calibration(folder.tokenizer, text, seed=seed)
        given, tokenizer = held(folder.model, () if batches is None else batches), folder.tokenizer
        if likely.tokens is not None and tokenizer is not None:
            tokenizer = smaller_tokenizer(tokenizer, likely.tokens)
        with new_folder(target, [source], overwrite, CHECKPOINT) as beside:
            final = likely
            if choosing:
                scores = score_folder(folder, given, criterion, average, seed, progress)
                final = planned(folder.model, scores, pruning_ratio, **widths)
            cut, small = _small(folder, final, hidden_size)
            turned = None if hidden_size is None else rotation_folder(folder, given, progress)
            refits, change = None, None
            if options:
                turn = None if turned is None else Turn(folder.anatomy, turned, small.config.hidden_size)
                refits = Refits(folder.anatomy, final, given, options, turn)
            if turned is not None:
                change = Turn(cut, turned, small.config.hidden_size)
            shards = Shards(small, beside, len(final.kept_layers) + 1)
            _write(folder, final if refits is None else refits.plan, refits, change, shards, progress)
            shards.finish(tokenizer)
    if refits is None:
        return PrunedFolder(expanded(target), final)
    refits.warn()
    return PrunedFolder(expanded(target), refits.plan, Fits(refits.fits))


def _options(repair: bool | dict[str, Any]) -> Options | None:
    if repair is False:
        return None
    repair = {} if repair is True else repair
    if unknown := set(repair) - (known := {field.name for field in fields(Options)}):
        raise ValueError(f"repair={repair} names {sorted(unknown)[0]!r}; its options are {', '.join(sorted(known))}.")
    return Options(**repair)


def _likely(
    folder: Folder, plan: Plan | None, pruning_ratio: float | None, criterion: str, widths: dict[str, Any]
) -> Plan:
    """The plan given, or one of the widths asked for: all that can be refused without scores is refused here."""
    if plan is not None:
        if pruning_ratio is not None or widths:
            given = ["pruning_ratio"] * (pruning_ratio is not None) + list(widths)
            raise ValueError(f"A ready-made plan says what stays; leave {', '.join(given)} out, or the plan.")
        _fits(folder.anatomy, plan)
        return plan
    if unknown := widths.keys() - (known := signature(planned).parameters.keys()):
        names = ", ".join(sorted({*known} - {"model", "scores"}))
        raise ValueError(f"prune_folder takes no {sorted(unknown)[0]}=…; of what stays it takes {names}.")
    chance = replace(score(folder.model, [], "random"), criterion=criterion)
    by_rank = {"nearest": True} if widths.get("parts") == "scored" else {}  # there the widths will be others
    return checked(planned)(folder.model, chance, pruning_ratio, **widths | by_rank)


def score_folder(
    folder: Folder, batches: Sequence[Batch], criterion: str, average: str, seed: int, progress: bool
) -> Scores:
    """The scores that `score` gives, from one layer after the other.

    For each layer `score` runs the model's own forward, in which all other layers are skipped. So masks, positions and
    whatever else a family hands its layers come from its own code, and each sum is made by `score`, in its order.
    """
    chosen, layers = named(criterion), range(folder.anatomy.layers)
    if chosen.collect is not None:
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
        return without_weights(config, folder.model.dtype)

    cut = small = built(smaller_config(folder.anatomy, plan))
    cuts_into(small, folder.anatomy, plan, renumbered(folder.anatomy, plan))
    anatomy = Anatomy.of(cut)
    if hidden is not None:
        roles(anatomy)
        small = built(sliced_config(anatomy, hidden))
    small.generation_config = copy.deepcopy(folder.model.generation_config)
    if plan.tokens is not None:
        small.generation_config.update(**changed(small.generation_config, plan))
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
                else:
                    tensors, refitted = (cut_rows(folder.anatomy, plan, some) for some in (tensors, refitted))
                shards.add((tensors if turn is None else turn(tensors)) | refitted)
