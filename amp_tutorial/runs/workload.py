"""How much a run of the reproduction notebook reads and holds: operations, speed, memory of a stage, what to fetch.

Everything is an upper bound as far as it depends on texts that have not been read: each is as long as it may be.
"""

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, try_to_load_from_cache
from transformers import PreTrainedConfig, PreTrainedModel

from ..core.anatomy import Anatomy
from ..core.criteria import named
from ..core.plans import Plan, keep, widths_at
from ..core.scores import score
from ..core.surgery import smaller_config
from ..files.checkpoints import located
from ..measure.check import matmul_speed
from ..methods.official import widths as official_widths
from ..methods.shots import widths
from ..scale.peak_memory import of_perplexity, of_recovery, of_repair, of_scoring, of_tasks, shadow, weights

PAPER = ("piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge")
ITEMS = dict(zip(PAPER, (1838, 10042, 1267, 2376, 1172), strict=True))  # in the split that lm-eval takes


@dataclass(frozen=True)
class Source:
    """What is known of a text source without reading it. Sizes of those on the hub are rough, and not verified."""

    longest: int  # tokens of a text, at most; 0: longer than any window
    rows: int
    tokens: int  # of its validation or test split
    download: int = 0  # bytes
    hub: str = ""


SOURCES = {
    "tinyworld": Source(160, 2000, 29_000),
    "alpaca": Source(0, 51_760, 0, 45 * 10**6, "yahma/alpaca-cleaned"),
    "wikitext2": Source(0, 36_718, 340_000, 8 * 10**6, "Salesforce/wikitext"),
    "ptb": Source(0, 42_068, 110_000, 6 * 10**6, "ptb-text-only/ptb_text_only"),
    "c4": Source(0, 10_000, 500_000, 400 * 10**6, "allenai/c4"),
    "wikipedia": Source(0, 10_000, 10**7, 400 * 10**6, "wikimedia/wikipedia"),
}
TASKS_DOWNLOAD = 100 * 10**6  # of the paper's five, roughly
STEP = 16  # rows of a step of recovery
LONGEST_TINY = 52  # tokens of a question with an answer
# Answers to a prompt, and tokens of the prompt and of an answer: of the embedded tasks, and an assumption for others
TINY, OTHERS = ((4, 51, 1), (2, 32, 1), (4, 14, 8)), ((1, 448, 64),)


def longest(text: str, asked: int) -> int:
    """Tokens of a text of that source, at most."""
    return min(asked, SOURCES[text].longest or asked) if text in SOURCES else asked


def operations(dense: PreTrainedModel, small: PreTrainedModel, p: Mapping[str, Any]) -> dict[str, float]:
    """Floating-point operations of each stage of the notebook, every text as long as it may be."""

    def a_token(model: PreTrainedModel, length: int, head: bool = True) -> float:
        anatomy = Anatomy.of(model)
        linear = sum(w.numel() for w in model.get_submodule(anatomy.family.layers).parameters() if w.ndim > 1)
        logits = anatomy.hidden * model.config.vocab_size if head else 0
        return 2.0 * (linear + logits + anatomy.layers * length * anatomy.features("query"))

    def known(text: str, what: Callable[[Source], int]) -> int:
        if text in SOURCES:
            return what(SOURCES[text])
        path = Path(text)
        files = [path] if path.is_file() else list(path.glob("*"))
        return sum(f.stat().st_size for f in files) // 4  # a token is about four letters; a row is longer

    length = longest(p["calibration_text"], p["calibration_length"])
    passes = 3 if named(p["criterion"]).collect else 1 if named(p["criterion"]).sees_data else 0
    a_pass = p["calibration"] * length * a_token(dense, length, head=False) * p["shots"]
    window = longest(p["perplexity_text"], p["window"])
    tokens = p["windows"] * window or known(p["perplexity_text"], lambda s: s.tokens)
    tasks = [] if p["tasks"] == "none" else p["tasks"].split(",")
    tasks = {"tiny": ["tiny"] * 6, "paper": list(PAPER)}.get(p["tasks"], tasks)
    texts = 4 * sum(p["items"] or ITEMS.get(task.strip(), 400) for task in tasks)  # at most four answers to choose from
    answers = texts * (LONGEST_TINY if p["tasks"] == "tiny" else 100)
    measuring = {model: (tokens + answers) * a_token(model, window) for model in (dense, small)}
    work = {"measure dense": measuring[dense]} if p["measure_dense"] else {}
    work |= {"score": passes * a_pass, "cut": (4 if p["repair"] != "none" else 0) * a_pass}
    healing = p["recovery"] != "none"
    rows = p["recovery_samples"] or known(p["recovery_text"], lambda s: s.rows) if healing else 0
    length = longest(p["recovery_text"], p["recovery_length"])
    healed = dense if p["shots"] > 1 else small
    recovery = 2 * rows * p["epochs"] * length * a_token(healed, length) * p["shots"]  # there, and back
    if p["shots"] > 1:  # healed between the shots
        return work | {
            "cut": work["cut"] + recovery,
            "measure tuned" if healing else "measure untuned": measuring[small],
        }
    work["measure untuned"] = measuring[small]
    return work | ({"recover": recovery, "measure tuned": measuring[small]} if healing else {})


def download(config: PreTrainedConfig, dense: PreTrainedModel, p: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Bytes to fetch that are neither local nor cached, and what they are."""
    total, what = 0, []
    if not (place := located(p["model"])).exists():
        names = ("model.safetensors", "model.safetensors.index.json")
        revision, hub = p["revision"] or None, place.as_posix()
        if not any(isinstance(try_to_load_from_cache(hub, name, revision=revision), str) for name in names):
            stored = config.dtype or torch.float32
            stored = getattr(torch, stored) if isinstance(stored, str) else stored
            total += dense.num_parameters() * stored.itemsize
            what.append(p["model"])
    cached = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    texts = {p["calibration_text"], p["perplexity_text"], *([p["recovery_text"]] * (p["recovery"] != "none"))}
    for text in sorted(texts & SOURCES.keys()):
        hub = SOURCES[text].hub
        if hub and not p["local_copies"] and not (cached / hub.replace("/", "___")).is_dir():
            total += SOURCES[text].download
            what.append(text)
    if p["tasks"] not in ("none", "tiny") and not p["task_folder"]:
        total += TASKS_DOWNLOAD
        what.append("tasks")
    return total, [f"  To be fetched, if not cached: {', '.join(what)}."] if what else []


# Operations a second of matrix products in half precision, by data sheets.
GPUS = {"T4": 65e12, "A100 80 GB": 312e12}
ASSUMED = "A100 80 GB"  # every preset fits in its memory


@dataclass(frozen=True)
class Speed:
    """Floating-point operations a second of a matrix product, and whose they are."""

    flops: float
    of: str  # "" for this machine


def device_of(asked: str) -> str:
    """What "auto" means here."""
    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def speed_of(dtype: str, asked: str) -> Speed:
    """The speed of the device that a run would use. A GPU that is not here is taken to be an A100, never this CPU."""
    device = device_of(asked)
    if {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}.get(device.split(":")[0]):
        return Speed(GPUS[ASSUMED], f"an {ASSUMED}, as its data sheet says; there is no GPU here")
    return Speed(_timed(dtype, device), "")


@functools.cache
def _timed(dtype: str, device: str) -> float:
    return matmul_speed(4096 if device.startswith("cuda") else 512, 3, getattr(torch, dtype), device)


def chosen_plan(dense: PreTrainedModel, p: Mapping[str, Any]) -> Plan:
    """A plan of the widths asked for; which heads and neurons stay changes no size."""
    chance = score(dense, [], "random")
    if p["heads"] or p["neurons"]:
        return keep(dense, chance, heads=p["heads"] or None, neurons=p["neurons"] or None, unit=p["unit"])
    if p["fidelity"] == "official":
        heads, neurons = official_widths(dense, p["ratio"])
        return keep(dense, chance, heads=heads, neurons=neurons)
    return keep(dense, chance, *widths_at(dense, p["ratio"], unit=p["unit"], nearest=True), p["unit"])


def left_by_shots(dense: PreTrainedModel, p: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Heads and neurons that each shot leaves."""
    return widths(dense, p["heads"] or None, p["neurons"] or None, p["shots"], p["unit"])


def stage_peaks(
    dense: PreTrainedModel, small: PreTrainedModel, chosen: Plan, p: Mapping[str, Any], device: str
) -> dict[str, int]:
    """Bytes at the peak of each stage, in the order of the notebook."""
    batch, length = p["batch"], longest(p["calibration_text"], p["calibration_length"])
    rows = min(p["rows_at_once"], STEP), longest(p["recovery_text"], p["recovery_length"])

    def measuring(model: PreTrainedModel) -> int:
        peak = of_perplexity(model, batch, longest(p["perplexity_text"], p["window"]))
        if p["tasks"] != "none":
            peak = max(peak, of_tasks(model, batch, TINY if p["tasks"] == "tiny" else OTHERS))
        return peak

    found = {"measure dense": measuring(dense)} if p["measure_dense"] else {}
    found["score"] = of_scoring(dense, p["criterion"], min(batch, p["calibration"]), length, device)
    recovering = p["recovery"] != "none"
    if p["shots"] > 1:
        # The dense model stays, and so does that of the last shot until the next one is done: the second has most.
        chance = score(dense, [], "random")
        cut = [keep(dense, chance, heads=h, neurons=n, unit=p["unit"]) for h, n in left_by_shots(dense, p)[:2]]
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
