"""The stages of the reproduction notebook, and the memory of the tensors alive at the peak of each."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from ..core.anatomy import Anatomy
from ..core.plans import Plan, keep, widths_at
from ..core.scores import score
from ..core.surgery import smaller_config
from ..methods.official import widths as official_widths
from ..methods.shots import widths
from ..scale.peak_memory import of_perplexity, of_recovery, of_repair, of_scoring, of_tasks, shadow, weights
from .workload import LONGEST_TASK, LONGEST_TINY, longest

STEP = 16  # rows of a step of recovery


def chosen_plan(dense: PreTrainedModel, p: Mapping[str, Any]) -> Plan:
    """A plan of the widths asked for; which heads and neurons stay changes no size."""
    chance = score(dense, [], "random")
    if p["heads"] or p["neurons"]:
        return keep(dense, chance, heads=p["heads"] or None, neurons=p["neurons"] or None, unit=p["unit"])
    if p["fidelity"] == "official":
        heads, neurons = official_widths(dense, p["ratio"])
        return keep(dense, chance, heads=heads, neurons=neurons)
    return keep(dense, chance, *widths_at(dense, p["ratio"], unit=p["unit"], nearest=True), p["unit"])


def stage_peaks(
    dense: PreTrainedModel, small: PreTrainedModel, chosen: Plan, p: Mapping[str, Any], device: str
) -> dict[str, int]:
    """Bytes at the peak of each stage, in the order of the notebook."""
    batch, length = p["batch"], longest(p["calibration_text"], p["calibration_length"])
    rows = min(p["rows_at_once"], STEP), longest(p["recovery_text"], p["recovery_length"])

    def measuring(model: PreTrainedModel) -> int:
        peak = of_perplexity(model, batch, longest(p["perplexity_text"], p["window"]))
        if p["tasks"] != "none":
            answer = LONGEST_TINY if p["tasks"] == "tiny" else LONGEST_TASK
            peak = max(peak, of_tasks(model, batch, answer))
        return peak

    found = {"measure dense": measuring(dense)} if p["measure_dense"] else {}
    found["score"] = of_scoring(dense, p["criterion"], min(batch, p["calibration"]), length, device)
    recovering = p["recovery"] != "none"
    if p["shots"] > 1:
        # The dense model stays, and so does that of the last shot until the next one is done: the second has most.
        left = widths(dense, p["heads"] or None, p["neurons"] or None, p["shots"], p["unit"])[:2]
        chance = score(dense, [], "random")
        cut = [keep(dense, chance, heads=h, neurons=n, unit=p["unit"]) for h, n in left]
        first, second = (shadow(smaller_config(Anatomy.of(dense), c), dense.dtype) for c in cut)
        held = weights(dense)
        found["prune"] = held + weights(first, second)
        if recovering:
            found["recover"] = held + max(of_recovery(first, *rows), weights(first) + of_recovery(second, *rows))
        found["measure untuned"] = measuring(small)
        return found
    if p["repair"] == "none":  # in place: a matrix is there twice only while it is cut
        found["prune"] = weights(dense) + max(w.nbytes for w in small.parameters())
    else:
        found["prune"] = of_repair(dense, chosen, small, p["calibration"], batch, length, p["repair"] == "choose")
    found["measure untuned"] = measuring(small)
    if recovering:
        found |= {"recover": of_recovery(small, *rows), "measure tuned": found["measure untuned"]}
    return found
