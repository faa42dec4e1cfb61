"""Score every head and every neuron of a model in one forward pass; save the scores, and use them at any ratio."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ..files.atomic import expanded, written_file
from ..files.checkpoints import fingerprint
from .anatomy import Anatomy, weight_of
from .criteria import Criterion, Measure, named
from .sums import Batch, Pass, Sums, entering, held, one_pass


@dataclass(frozen=True)
class Scores:
    """One value per query head and per neuron, for every layer. Higher means more important."""

    heads: list[Float[Tensor, " heads"]]
    neurons: list[Float[Tensor, " neurons"]]
    criterion: str
    average: str
    tokens: int  # tokens averaged over, padding not counted; 0 where the criterion sees none
    prompts: int
    seed: int
    model_hash: str = ""  # `fingerprint` of the model scored; "" where it is unknown, or chance alone decided
    calibration_hash: str = ""  # of the prompts, whatever their order, batches and padding; "" where none were seen

    def made_for(self, model: PreTrainedModel) -> bool:
        """Whether this very model was scored, by `fingerprint`; True also where that is unknown."""
        known = fingerprint(model)
        return not known or not self.model_hash or self.model_hash == known

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write one safetensors file, beside its place first and then moved there.

        It holds `heads` (layers, heads) and `neurons` (layers, neurons) in float32; all else is metadata.

        Raises:
            ValueError: there is such a file, and `overwrite` is not set; or a folder of that name.
            OSError: the file cannot be written, because the disk is full for example. Nothing of it is left then.
        """
        tensors = {name: torch.stack(getattr(self, name)) for name in ("heads", "neurons")}
        about = {field.name: str(getattr(self, field.name)) for field in fields(self) if field.name not in tensors}
        with written_file(path, overwrite) as beside:
            save_file(tensors, beside, about)
        return expanded(path)

    @classmethod
    def load(cls, path: str | Path) -> "Scores":
        """Read what `save` wrote; a ValueError if there is no such file, or it holds something else."""
        try:
            with safe_open(expanded(path), framework="pt") as file:
                stored = file.metadata() or {}
                found: dict[str, Any] = {field.name: stored[field.name] for field in fields(cls)[2:]}
                found |= {name: int(found[name]) for name in ("tokens", "prompts", "seed")}
                found |= {name: list(file.get_tensor(name).unbind()) for name in ("heads", "neurons")}
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is not a file of scores as Scores.save writes it; score again.") from error
        return cls(**found)


def score(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    criterion: str = "amp",
    average: str = "tokens",
    seed: int = 0,
    forward: Pass = one_pass,
) -> Scores:
    """Score all heads and neurons by one criterion.

    Args:
        model: a causal language model of a known family; it is not changed.
        batches: mappings with `input_ids` and `attention_mask` (batch, length), as a DataLoader gives them. Positions
            with attention mask 0 do not count. Read once; never held, so memory does not grow with their number.
        criterion: a key of `CRITERIA`.
        average: "tokens" is the mean over all tokens. "prompts" is the mean over prompts of each prompt's mean, as
            in AMP's official code: there a short prompt weighs as much as a long one.
        seed: for "random" only.
        forward: the pass that feeds the sums. `shared_product` computes attention's output projection only once,
            `over_processes` adds up what several processes see.

    Raises:
        ValueError: unknown criterion or average, no tokens at all, or activations that are not finite.
    """
    return score_many(model, batches, (criterion,), average, seed, forward)[criterion]


def score_many(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    criteria: Iterable[str],
    average: str = "tokens",
    seed: int = 0,
    forward: Pass = one_pass,
) -> dict[str, Scores]:
    """Score by several criteria in the same pass; what they have in common is measured once.

    "reversed" beside "amp" costs nothing. What needs gradients has its own pass: batches to be read once are held then.

    Args: as for `score`.
    """
    chosen = {name: named(name) for name in criteria}
    if average not in ("tokens", "prompts"):
        raise ValueError(f"Unknown average {average!r}; choose 'tokens' or 'prompts'.")
    own = [name for name, c in chosen.items() if c.collect is not None]
    if own and forward is not one_pass:
        raise ValueError(f"Scores by {own[0]!r} need gradients and have a pass of their own; leave forward=… out.")
    measures = [((c.heads, "heads"), (c.neurons, "neurons")) for c in chosen.values() if c.heads and c.neurons]
    anatomy, model_hash = Anatomy.of(model), fingerprint(model)
    batches = (held if len(own) + bool(measures) > 1 else entering)(model, batches)
    sums = Sums(anatomy, (measure for pair in measures for measure in pair))
    if measures:
        forward(anatomy, batches, sums, average)
        sums.check()
    found = {}
    for name, c in chosen.items():
        of_model, counted = model_hash if c.sees_data or c.static else "", sums
        if c.heads is not None and c.neurons is not None:
            heads, neurons = (_finished(anatomy, sums, c, *m) for m in ((c.heads, "heads"), (c.neurons, "neurons")))
        elif c.collect is not None:
            heads, neurons, counted = c.collect(anatomy, batches, average)
        else:
            heads, neurons = _static(anatomy, c, seed)
        tokens, prompts = (counted.tokens, counted.prompts) if c.sees_data else (0, 0)
        seen = f"{counted.digest:064x}" if c.sees_data else ""
        found[name] = Scores(heads, neurons, name, average, tokens, prompts, seed, of_model, seen)
    return found


def _finished(anatomy: Anatomy, sums: Sums, criterion: Criterion, measure: Measure, part: str) -> list[Tensor]:
    """Scores of every layer from its mean measures."""
    means = sums.means(measure, part)
    if criterion.finish is None:
        return list(criterion.sign * means)
    found = []
    for i, total in enumerate(sums.totals[measure, part]):
        if total is None:  # a layer that was not run, or has no such structures
            found.append(torch.zeros(sums.structures[part]))
            continue
        layer = anatomy.layer(i)
        output = weight_of(layer.output if part == "heads" else layer.neurons_out).detach().T.float().cpu()
        shaped = output.reshape(sums.structures[part], -1, anatomy.hidden)
        found.append(criterion.sign * criterion.finish(means[i], shaped, sums.tokens))
    return found


def _static(anatomy: Anatomy, criterion: Criterion, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Scores that need no data: from weights, or drawn from a seed."""
    if criterion.static is not None:
        heads = [criterion.static(anatomy.head_weights(i)) for i in range(anatomy.layers)]
        neurons = [criterion.static(anatomy.neuron_weights(i)) for i in range(anatomy.layers)]
        return [h.cpu() for h in heads], [n.cpu() for n in neurons]
    generator = torch.Generator().manual_seed(seed)
    heads = [torch.rand(anatomy.heads, generator=generator) for _ in range(anatomy.layers)]
    neurons = [torch.rand(anatomy.neurons, generator=generator) for _ in range(anatomy.layers)]
    return heads, neurons
