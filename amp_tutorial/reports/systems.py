"""The systems of the leaderboard: one table of small functions, each from a dense model to a smaller one.

To add a system, write a function and a line in `SYSTEMS`. Every function is given the model, its tokenizer, calibration
batches, the ratio of all parameters to remove and a seed; it sees no other text.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

import amp_tutorial as amp

from ..core.criteria import CRITERIA
from ..core.sums import Batch
from ..files.atomic import write_bytes
from ..methods.budget import FELT, up_to
from ..methods.hidden_size import hidden_at
from ..methods.slicegpt import hidden_for, kept_parameters, sliced_by_layer
from ..runs.package_code import NUMBERS, code_sha256

Batches = Sequence[Batch]
Function = Callable[[PreTrainedModel, PreTrainedTokenizerBase, Batches, float, int], PreTrainedModel]
TRIALS = 16  # shapes that the search for a mix makes and judges at most
SEARCHED = 4096  # calibration tokens by which layers are scored anew after each removal, at most
STEPS = 30  # of polishing a layer
WIDTHS = ("heads", "neurons", "layers")


def _dense(model: PreTrainedModel, tokenizer: Any, batches: Batches, ratio: float, seed: int) -> PreTrainedModel:
    return model


class Kept(list[Batch]):
    """Calibration batches with a folder in which scores by them stay, for other ratios, parts and runs.

    Scores are named by all that they depend on: text and code, and the weights of the model scored, by the hash given.
    """

    def __init__(self, batches: Batches, folder: Path, weights: str) -> None:
        super().__init__(batches)
        text = hashlib.sha256()
        for batch in batches:
            for name in ("input_ids", "attention_mask"):
                text.update(batch[name].numpy().tobytes())
        content = json.dumps([weights, text.hexdigest(), code_sha256(NUMBERS)])
        self.folder = folder / hashlib.sha256(content.encode()).hexdigest()[:16]


def scored(model: PreTrainedModel, batches: Batches, criterion: str, seed: int) -> amp.Scores:
    """Scores, from their folder if they are there; else those of one pass are all left there at once."""
    known = CRITERIA[criterion]
    if not isinstance(batches, Kept) or not known.sees_data:
        return amp.score(model, batches, criterion, seed=seed)
    if not (place := batches.folder / f"{criterion}.safetensors").is_file():
        alike = [name for name, c in CRITERIA.items() if c.sees_data and not c.collect] if not known.collect else []
        for name, found in amp.score_many(model, batches, alike or [criterion]).items():
            found.save(batches.folder / f"{name}.safetensors", overwrite=True)
    return amp.Scores.load(place)


def _planned(
    model: PreTrainedModel, batches: Batches, ratio: float, seed: int, criterion: str, parts: str = "both"
) -> amp.Plan:
    """Heads and neurons lose the same share, or one of both all; together the ratio of all parameters."""
    return amp.plan(model, scored(model, batches, criterion, seed), pruning_ratio=ratio, parts=parts)


def _width(
    model: PreTrainedModel, tokenizer: Any, batches: Batches, ratio: float, seed: int, criterion: str, **parts: str
) -> PreTrainedModel:
    return amp.prune(model, _planned(model, batches, ratio, seed, criterion, **parts)).model


def _by_prompt(model: PreTrainedModel, tokenizer: Any, batches: Batches, ratio: float, seed: int) -> PreTrainedModel:
    """AMP with the average of its official code: over the tokens of each prompt, then over prompts."""
    scores = amp.score(model, batches, "amp", average="prompts")
    return amp.prune(model, amp.plan(model, scores, pruning_ratio=ratio)).model


def _flap(model: PreTrainedModel, tokenizer: Any, batches: Batches, ratio: float, seed: int) -> PreTrainedModel:
    """FLAP's own split of heads against neurons, one for all layers, and the means of what goes in the biases there."""
    plan = amp.plan_jointly(model, scored(model, batches, "flap", seed), ratio)
    folds = amp.Anatomy.of(model).layer(0).output.bias is not None
    return amp.prune_and_fold(model, plan, batches).model if folds else amp.prune(model, plan).model


def _layers(
    model: PreTrainedModel, tokenizer: Any, batches: Batches, ratio: float, seed: int, criterion: str, again: bool
) -> PreTrainedModel:
    """As many layers as come nearest to the ratio; with `again` scored anew after each removal."""
    plan = amp.plan_layers(
        model, amp.rank_layers(model, batches, "random" if again else criterion, seed=seed), pruning_ratio=ratio
    )
    if again:
        plan = _searched(model, batches, len(plan.heads) - len(plan.kept_layers), criterion, seed)
    return amp.prune(model, plan).model


def _searched(model: PreTrainedModel, batches: Batches, gone: int, criterion: str, seed: int) -> amp.Plan:
    """A search for layers; it begins where one for fewer ended, if that was left beside the scores."""
    kept = batches.folder / f"{criterion}-{seed}-{SEARCHED}.json" if isinstance(batches, Kept) else None
    order: list[int] = json.loads(kept.read_text("utf-8")) if kept and kept.is_file() else []
    some = up_to(batches, SEARCHED)
    while len(order) < gone:
        plan = amp.drop_layers(model, some, len(order) + 1, criterion, progress=False, seed=seed, first=order)
        order += sorted(set(range(len(plan.heads))) - set(plan.kept_layers) - set(order))
        if kept:
            write_bytes(kept, json.dumps(order).encode())
    return amp.drop_layers(model, some, gone, criterion, progress=False, seed=seed, first=order[:gone])


def _repaired(
    model: PreTrainedModel,
    tokenizer: Any,
    batches: Batches,
    ratio: float,
    seed: int,
    criterion: str,
    parts: str = "both",
    **how: bool,
) -> PreTrainedModel:
    plan = _planned(model, batches, ratio, seed, criterion, parts)
    metric = amp.output_metric(model, batches) if how.get("reselect") else None
    return amp.repair(model, plan, batches, progress=False, metric=metric, **how).model


def _polished(model: PreTrainedModel, tokenizer: Any, batches: Batches, ratio: float, seed: int) -> PreTrainedModel:
    """The widths alone are planned, as repair chooses what stays."""
    plan = _planned(model, batches, ratio, seed, "random", "neurons")
    metric = amp.output_metric(model, up_to(batches, FELT))
    return amp.repair(model, plan, batches, reselect=True, progress=False, metric=metric, polish=STEPS).model


def _budget(
    model: PreTrainedModel,
    tokenizer: Any,
    batches: Batches,
    ratio: float,
    seed: int,
    sliced: bool = False,
    trials: int = TRIALS,
    **how: int,
) -> PreTrainedModel:
    """Hidden size (if it may be sliced), layers, heads and neurons by one budget, judged on calibration text apart."""
    cut = ("hidden", *WIDTHS) if sliced else WIDTHS
    return amp.fit_budget(model, batches, ratio, cut=cut, trials=trials, seed=seed, progress=False, **how).model


def _sliced(
    model: PreTrainedModel, tokenizer: Any, batches: Batches, ratio: float, seed: int, repair: bool
) -> PreTrainedModel:
    """The hidden size alone, with one rotation for the whole network."""
    a = amp.Anatomy.of(model)
    hidden = hidden_at(a, ratio)
    if not repair:
        return amp.slice_hidden(model, amp.rotation(model, batches), hidden).model
    whole = amp.keep(model, amp.score(model, [], "random"), heads=a.heads, neurons=a.neurons)
    return amp.repair(model, whole, batches, refit_inputs=True, hidden_size=hidden, progress=False).model


def _by_layer(model: PreTrainedModel, tokenizer: Any, batches: Batches, ratio: float, seed: int) -> PreTrainedModel:
    return sliced_by_layer(model, batches, hidden_for(amp.Anatomy.of(model), ratio))


def _kept_by_layer(model: PreTrainedModel, ratio: float) -> int:
    anatomy = amp.Anatomy.of(model)
    return kept_parameters(anatomy, hidden_for(anatomy, ratio))


@dataclass(frozen=True)
class System:
    """One row of the table. `cuts` groups the rows, see `standings.CONTESTS`."""

    label: str
    cuts: str
    function: Function
    once: bool = False  # nothing in it depends on a seed
    turns: bool = False  # it turns the residual stream, which needs RMS norms
    recovery: bool = False  # LoRA afterwards, on equal data, and only at the ratios `RECOVERED`
    kept: Callable[[PreTrainedModel, float], int] | None = (
        None  # parameters, where a masked model stands for no stock one
    )


RECOVERED = (0.20, 0.30)
AMP, WANDA = partial(_width, criterion="amp"), partial(_width, criterion="wanda")
NEURONS = partial(_width, parts="neurons")
TRANSACT = partial(NEURONS, criterion="transact")
CHOSEN = partial(_repaired, criterion="amp", reselect=True, refit_inputs=True)
SLEB = partial(_layers, criterion="perplexity", again=True)
SLICED = partial(_sliced, repair=True)
# One row a line: the name of a run holds the code of its own row alone, so a new one makes no other run anew.
SYSTEMS: dict[str, System] = {
    "dense": System("dense", "nothing", _dense, once=True),
    "random": System("random", "heads and neurons", partial(_width, criterion="random")),
    "magnitude": System("magnitude", "heads and neurons", partial(_width, criterion="magnitude"), once=True),
    "amp": System("AMP", "heads and neurons", AMP),
    "transact": System("TransAct", "heads and neurons", partial(_width, criterion="transact")),
    "wanda": System("Wanda-sp", "heads and neurons", WANDA),
    "flap": System("FLAP", "heads and neurons", partial(_width, criterion="flap")),
    "taylor": System("Taylor", "heads and neurons", partial(_width, criterion="taylor")),
    "flap-split": System("FLAP, own split, means folded", "heads and neurons", _flap),
    "amp-by-prompt": System("AMP, averaged by prompt", "heads and neurons", _by_prompt),
    "amp-heads": System("AMP, heads", "heads", partial(_width, criterion="amp", parts="heads")),
    "reversed": System("AMP, reversed", "heads and neurons", partial(_width, criterion="reversed")),
    "random-neurons": System("random, neurons", "neurons", partial(NEURONS, criterion="random")),
    "magnitude-neurons": System("magnitude, neurons", "neurons", partial(NEURONS, criterion="magnitude"), once=True),
    "amp-neurons": System("AMP, neurons", "neurons", partial(NEURONS, criterion="amp")),
    "transact-neurons": System("TransAct, neurons", "neurons", partial(NEURONS, criterion="transact")),
    "wanda-neurons": System("Wanda-sp, neurons", "neurons", partial(NEURONS, criterion="wanda")),
    "flap-neurons": System("FLAP, neurons", "neurons", partial(NEURONS, criterion="flap")),
    "taylor-neurons": System("Taylor, neurons", "neurons", partial(NEURONS, criterion="taylor")),
    "layers-random": System("layers, random", "layers", partial(_layers, criterion="random", again=False)),
    "layers-last": System("layers, last but one", "layers", partial(_layers, criterion="last", again=False), once=True),
    "layers-influence": System("layers, ShortGPT", "layers", partial(_layers, criterion="influence", again=False)),
    "layers-perplexity": System("layers, SLEB", "layers", SLEB),
    "layers-consensus": System("layers, Consensus", "layers", partial(_layers, criterion="consensus", again=True)),
    "random-repair": System("random + repair", "repair", partial(_repaired, criterion="random")),
    "wanda-repair": System("Wanda-sp + repair", "repair", partial(_repaired, criterion="wanda")),
    "amp-repair": System("AMP + repair", "repair", partial(_repaired, criterion="amp")),
    "amp-repair-one-pass": System(
        "AMP + repair, one pass", "repair", partial(_repaired, criterion="amp", sequential=False)
    ),
    "ours": System("ours: repair chooses", "repair", CHOSEN),
    "ours-neurons": System("ours: repair chooses, neurons", "repair", partial(CHOSEN, parts="neurons")),
    "ours-polished": System("ours: repair polishes, neurons", "repair", _polished),
    "ours-budget": System("ours, one budget", "repair", _budget),
    "ours-budget-8": System("ours, one budget, 8 trials, polished", "repair", partial(_budget, trials=8, polish=STEPS)),
    "sliced": System("hidden size sliced", "slicing", partial(_sliced, repair=False), turns=True),
    "sliced-layers": System("SliceGPT by layer, masked", "slicing", _by_layer, turns=True, kept=_kept_by_layer),
    "sliced-repair": System("hidden size sliced + repair", "slicing", SLICED, turns=True),
    "sliced-budget": System("ours, one budget with hidden size", "slicing", partial(_budget, sliced=True), turns=True),
    "amp-lora": System("AMP + LoRA", "LoRA", AMP, recovery=True),
    "wanda-lora": System("Wanda-sp + LoRA", "LoRA", WANDA, recovery=True),
    "layers-lora": System("layers, SLEB + LoRA", "LoRA", SLEB, recovery=True),
    "sliced-lora": System("hidden size sliced + repair + LoRA", "LoRA", SLICED, turns=True, recovery=True),
    "transact-neurons-lora": System("TransAct, neurons + LoRA", "LoRA", TRANSACT, recovery=True),
    "ours-polished-lora": System("ours: repair polishes, neurons + LoRA", "LoRA", _polished, recovery=True),
    "ours-lora": System("ours, one budget + LoRA", "LoRA", _budget, recovery=True),
}


def applies(system: System, kind: str) -> bool:
    """Whether a model of this type can be treated so: only streams of RMS norms can be turned."""
    return not system.turns or amp.FAMILIES[kind].stream is not None
