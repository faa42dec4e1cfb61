"""Prune a checkpoint larger than memory: score, cut and save it layer by layer from its memory-mapped files.

The model is built without weights. One decoder layer at a time gets them, and gives them up again. What is computed is
what `score`, `plan`, `prune` and `save` compute, in the same order, so the result is theirs bit for bit (on the CPU).
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from .checkpoint import located
from .criteria import named
from .data import calibration
from .folder import INDEX, WEIGHTS, Folder, blank
from .plans import Plan, plan
from .saving import add_older_names, check_generation, new_folder
from .scores import Scores, hash_of, score
from .stock import smaller_config
from .sums import Batch
from .surgery import cuts_of


def prune_folder(
    source: str | Path,
    target: str | Path,
    remove: float | None = None,
    *,
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

    The tensors written are those that `load`, `score`, `plan`, `prune` and `save` give on the CPU; each layer is one
    file, with an index. Memory holds at most three decoder layers, what is outside the layers (embeddings), and one
    hidden state for every calibration token (measured: `benchmarks/larger_than_memory.py`). Everything is written
    beside the target and moved at the end; after an interruption the same command starts again.

    Args:
        source: a local folder with safetensors (one file, or several with an index), or an embedded model.
        target: a folder that is empty or not there.
        remove: as in `plan`, like all of `widths`: of, parts, heads, neurons, unit, combine, align, nearest.
        batches: calibration batches as in `score`; by default drawn from `text` by `calibration`.
        text: see `data.texts`.
        criterion, average, seed: as in `score`.
        overwrite: replace what the target holds. Never the source.
        progress: show a bar over layers.

    Returns:
        The plan that was carried out.

    Raises:
        ValueError: before any work: no checkpoint there, only pickles, a missing or damaged file, quantised weights,
            weights that do not match the configuration, what `score` and `plan` refuse, or what `new_folder` does.
        OSError: the result could not be written, because the disk is full for instance. Nothing of it is left then.
    """
    name, source = source, located(source)
    if not source.is_dir():
        raise ValueError(f"{name} is no local folder; fetch it first: hf download {name} --local-dir FOLDER.")
    with _without_bars():
        folder = Folder(source)
        # The widths do not depend on the scores, so everything that can be refused is refused by a plan at random.
        small = _small(folder, plan(folder.model, score(folder.model, [], "random"), remove, **widths))
        if batches is None and named(criterion).sees_data:
            if folder.tokenizer is None:
                raise ValueError(f"{source} has no tokenizer to read the text with; give batches=… instead.")
            batches = calibration(folder.tokenizer, text, seed=seed)
        with new_folder(Path(target), [source], overwrite) as beside:
            scores = score_folder(folder, list(batches or ()), criterion, average, seed, progress)
            chosen = plan(folder.model, scores, remove, **widths)
            _write(folder, small, chosen, beside, progress)
    return chosen


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
    heads, neurons, relay = [], [], _Relay(folder)
    with folder.present(None):
        for i in tqdm(layers, desc="Scored", unit="layer", disable=not progress):
            with folder.present(i):
                if chosen.static is not None:
                    found = Scores([], [], criterion, average, tokens=0, prompts=0, seed=seed)
                    heads.append(chosen.static(folder.anatomy.head_weights(i)))
                    neurons.append(chosen.static(folder.anatomy.neuron_weights(i)))
                    continue
                with relay.only(i):
                    found = score(folder.model, batches, criterion, average, seed)
                heads.append(found.heads[i])
                neurons.append(found.neurons[i])
    return replace(found, heads=heads, neurons=neurons, model_hash=hash_of(folder.parameters()))


class _Relay:
    """Hands the hidden states of every batch from one layer to the next, while all the others are skipped."""

    def __init__(self, folder: Folder) -> None:
        self.layers = list(folder.model.get_submodule(folder.family.layers).children())
        self.hidden: deque[Tensor] = deque()  # (batch, length, hidden) of each batch, in order
        self.in_tuple = False  # some families' layers return a tuple; the first one run tells

    @contextmanager
    def only(self, i: int) -> Iterator[None]:
        """While it lasts the model runs layer i alone, on what layer i - 1 gave for the same batch."""

        def skip(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
            return (hidden_states,) if self.in_tuple else hidden_states

        def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            given = self.hidden.popleft() if i else hidden_states
            output = type(layer).forward(layer, given, *args, **kwargs)
            self.in_tuple = isinstance(output, tuple)
            self.hidden.append(output[0] if self.in_tuple else output)
            return output

        layer: nn.Module = self.layers[i]
        try:
            for other in self.layers:
                other.forward = run if other is layer else skip
            yield
        finally:
            for other in self.layers:
                del other.forward  # the class's own is seen again


def _small(folder: Folder, plan: Plan) -> PreTrainedModel:
    """The cut model without weights: what a stock configuration makes of the plan's widths."""
    with torch.device("meta"):
        config = smaller_config(folder.anatomy, plan)
        small: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=folder.model.dtype)
    if small.state_dict().keys() != folder.model.state_dict().keys():
        raise ValueError(f"{type(small).__name__} does not hold the same weights as {type(folder.model).__name__}.")
    small.generation_config = folder.model.generation_config
    check_generation(small)
    return small


def _write(folder: Folder, small: PreTrainedModel, plan: Plan, beside: Path, progress: bool) -> None:
    """Cut and save part by part. What makes it a model for a reader, config.json, is moved to its place last."""
    parts = [*range(folder.anatomy.layers), None]
    where: dict[str, str] = {}  # the file of each tensor
    total = 0  # bytes
    for number, part in enumerate(tqdm(parts, desc="Written", unit="part", disable=not progress), start=1):
        shard = beside / f"model-{number:05}-of-{len(parts):05}.safetensors"
        with folder.present(part) as tensors:
            cuts = {} if part is None else cuts_of(folder.anatomy, plan, part)
            for name, (axis, kept) in cuts.items():
                tensors[name] = tensors[name].index_select(axis, kept)
            small.save_pretrained(beside / "part", state_dict=tensors)  # under the names that are stored
        (beside / "part" / WEIGHTS).replace(shard)
        stored = blank(shard)
        where |= dict.fromkeys(stored, shard.name)
        total += sum(tensor.nbytes for tensor in stored.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (beside / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if folder.tokenizer is not None:
        folder.tokenizer.save_pretrained(beside / "part")
    add_older_names(beside / "part")
    for path in sorted((beside / "part").iterdir(), key=lambda path: path.name == "config.json"):
        path.replace(beside / path.name)
    (beside / "part").rmdir()


@contextmanager
def _without_bars() -> Iterator[None]:
    """Silence transformers' own bar for every load and save: here there are two for each layer."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
