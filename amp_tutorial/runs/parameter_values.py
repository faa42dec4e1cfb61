"""Refuse what the reproduction notebook cannot be asked, before anything is fetched or loaded."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import constants

from ..core.criteria import named
from ..files.texts import CORPORA, rows, text_source
from ..measure.tasks import known_tasks, task_names

CHOICES = {
    "unit": ("groups", "queries"),
    "repair": ("none", "solve", "choose"),
    "fidelity": ("clean", "official"),
    "recovery": ("lora", "none"),
    "dtype": ("float32", "bfloat16", "float16"),
    "over_budget": ("stop", "go on"),
}
LEAST = {
    **dict.fromkeys(("heads", "neurons", "recovery_samples", "windows", "items"), 0),
    **dict.fromkeys(("shots", "calibration", "epochs", "rows_at_once", "batch"), 1),
    **dict.fromkeys(("calibration_length", "recovery_length", "window"), 2),
}


def sensible(settings: Mapping[str, Any]) -> None:
    """Look at the values of all parameters of the notebook. Texts on this machine are read; none is fetched.

    Raises:
        ValueError: a value that is none of its choices, a number out of range, a way of asking for widths that
            contradicts itself, an unknown task, or a text that is not there.
    """
    s = settings
    for name, possible in CHOICES.items():
        if s[name] not in possible:
            raise ValueError(f"{name}={s[name]!r} is none of {', '.join(map(repr, possible))}.")
    for name, least in LEAST.items():
        if s[name] < least:
            raise ValueError(f"{name}={s[name]} must be at least {least}.")
    named(s["criterion"])
    widths = bool(s["heads"] or s["neurons"])
    if widths == bool(s["ratio"]) or not 0 <= s["ratio"] < 1:
        raise ValueError(
            f"ratio={s['ratio']}, heads={s['heads']}, neurons={s['neurons']}: say either a ratio between 0 and 1, or "
            "what stays (with ratio=0)."
        )
    if s["shots"] > 1 and (not widths or s["repair"] != "none"):
        raise ValueError(f"shots={s['shots']} needs heads or neurons (with ratio=0), and repair='none'.")
    if s["fidelity"] == "official" and s["repair"] != "none":
        raise ValueError("fidelity='official' knows no repair; say repair='none'.")
    if s["rate"] <= 0:
        raise ValueError(f"rate={s['rate']} must be more than 0.")
    if s["tasks"] != "none":
        known_tasks(task_names(s["tasks"]), s["task_folder"])
    texts = {"calibration_text": "calibration", "perplexity_text": "validation"}
    for name, split in (texts | ({"recovery_text": "recovery"} if s["recovery"] == "lora" else {})).items():
        source = text_source(s[name], s["local_copies"])
        if source not in CORPORA or constants.HF_HUB_OFFLINE:  # nothing is fetched before the budget is known
            rows(source, split)
