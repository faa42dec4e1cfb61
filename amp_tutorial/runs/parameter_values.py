"""Refuse what a run cannot be asked, before anything is fetched or loaded."""

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, try_to_load_from_cache

from .. import methods  # noqa: F401, with which the field's criteria are in the table
from ..core.criteria import named
from ..files.checkpoints import complete, located, missing
from ..files.downloads import hub_answers
from ..files.texts import CORPORA, rows, text_source, written
from ..measure.costs import grid_of
from ..measure.tasks import PAPER_TASKS, TASKS, known_tasks, load_tasks, task_names
from . import functions

READ = dict(  # which splits are read of a text, by the parameter that names it; the last two are lessons'
    calibration_text=["calibration"],
    perplexity_text=["validation"],
    recovery_text=["recovery"],
    text=["calibration", "validation"],
    responses=["recovery"],
)
OF_LESSONS = dict(text="c4", responses="alpaca", tasks="paper")  # with a model of more words than the tiny world's
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
LEAST_OF_LESSONS = dict(samples=1, align=1, seconds=1)
MOST = 10**7  # of any of them
WITHOUT_WIDTHS = ("07_layers",)  # lessons whose ratio is no plan of heads and neurons
SIZES = ("smallest", "full")  # of a lesson's experiments
SEEDS = 2**32  # how many there are for numpy


def refuse(notebook: str, parameters: Mapping[str, Any]) -> None:
    """Look at the values of a run's parameters as far as they are known: of a function, and of the course's notebooks.

    Corpora on the hub are not looked for: whether they can be had is seen when the run begins.

    Raises:
        ValueError: what cannot be, in one sentence.
    """
    if functions.is_function(notebook):
        functions.refuse(notebook, parameters)
    elif set(CHOICES) <= set(parameters):
        sensible(parameters, corpora=False)
    else:  # a lesson
        _in_range(parameters)
        if parameters.get("preset", SIZES[0]) not in SIZES:
            raise ValueError(f"preset={parameters['preset']!r} must be one of {', '.join(map(repr, SIZES))}.")
        for name, value in parameters.items():
            if name.startswith("ratio") and value == 0:
                raise ValueError(f"{name}=0 removes nothing; say more than 0 and less than 1.")
            if name in ("sweep", "runs") and value and not os.path.exists(value):
                raise ValueError(f"{name}={value!r} is not there; give a folder of runs, or leave it out.")
        _there({name: value for name, value in parameters.items() if value != "" or name not in OF_LESSONS}, False)
        for name in ("ratio", "ratio_deep"):
            if "model" in parameters and name in parameters and Path(notebook).stem not in WITHOUT_WIDTHS:
                widths_possible(parameters["model"], ratio=parameters[name])


def _in_range(values: Mapping[str, Any]) -> None:
    """What holds for these names in every notebook of the course."""
    for name, least in (LEAST | LEAST_OF_LESSONS).items():
        if name in values and not least <= values[name] <= MOST:
            raise ValueError(f"{name}={values[name]} must be at least {least} and at most {MOST:,}.")
    if "rate" in values and not 0 < values["rate"] <= 1:
        raise ValueError(f"rate={values['rate']} must be more than 0 and at most 1.")
    if "seed" in values and not 0 <= values["seed"] < SEEDS:
        raise ValueError(f"seed={values['seed']} must be at least 0 and less than {SEEDS}.")
    for name in ("ratio", "ratio_deep"):
        if name in values and not 0 <= values[name] < 1:
            raise ValueError(f"{name}={values[name]} must be at least 0 and less than 1.")
    device = str(values.get("device", "auto"))
    if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device) is None:
        raise ValueError(f"device={device!r} must be auto, cpu, cuda, cuda:0 (or another number) or mps.")


def sensible(settings: Mapping[str, Any], corpora: bool = True) -> None:
    """Look at the values of all parameters of the notebook. Texts on this machine are read; none is fetched.

    Args:
        corpora: without a network also look whether corpora of the hub are cached.

    Raises:
        ValueError: a value that is none of its choices, a number out of range, a way of asking for widths that
            contradicts itself, a country without a known grid, an unknown task, or a text that is not there.
    """
    s = settings
    _in_range(s)
    for name, possible in CHOICES.items():
        if s[name] not in possible:
            raise ValueError(f"{name}={s[name]!r} must be one of {', '.join(map(repr, possible))}.")
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
        raise ValueError("fidelity='official' has no repair; say repair='none'.")
    if s["country"] and re.fullmatch("[A-Z]{3}", s["country"]) is None:
        raise ValueError(f"country={s['country']!r} must be three capital letters, such as BRA, or nothing.")
    if s["country"]:
        try:
            grid_of(s["country"])
        except ImportError as error:
            raise ValueError(str(error)) from error
    _there(s, corpora)
    asked = {name: s[name] for name in ("ratio", "heads", "neurons", "unit", "fidelity", "shots")}
    widths_possible(s["model"], s["revision"], **asked)


@lru_cache(maxsize=1024)
def widths_possible(model: str, revision: str = "", **asked: Any) -> None:
    """Refuse widths that a model cannot have, by its configuration; one that is not to be had now is not looked at.

    Raises:
        ValueError: what is possible in its place.
    """
    from .workload import chosen_plan, left_by_shots  # only now: they take much along

    if (dense := _shape(model, revision)) is None:
        return
    p: dict[str, Any] = dict(ratio=0.0, heads=0, neurons=0, unit="groups", fidelity="clean", shots=1) | asked
    if p["shots"] > 1:
        left_by_shots(dense, p)
    else:
        chosen_plan(dense, p)


@lru_cache(maxsize=4)
def _shape(model: str, revision: str) -> Any:
    """The model without weights; None where its configuration is not to be had."""
    from .requirements import configuration_of, shadow, stored_configurations

    here = located(model).exists() or cached(model, revision) or model in stored_configurations()
    return shadow(configuration_of(model, revision or None)[0], torch.float32) if here else None


def cached(model: str, revision: str = "") -> bool:
    """Whether a model's configuration is in the cache of the hub."""
    return isinstance(try_to_load_from_cache(model, "config.json", revision=revision or None), str)


def to_be_had(settings: Mapping[str, Any]) -> None:
    """Refuse, before a run begins, what of the hub is neither cached nor can be fetched: without a network it is known.

    Raises:
        ValueError: a model or a corpus that is not here.
    """
    if hub_answers():
        return
    model = str(settings.get("model", ""))
    if model and not located(model).exists() and not cached(model, str(settings.get("revision", ""))):
        raise ValueError(f"{model} is neither here nor in the cache, and the hub does not answer.{missing(model)}")
    for source, split in _texts(settings):
        if source in CORPORA:
            rows(source, split)


def _there(s: Mapping[str, Any], corpora: bool) -> None:
    """Look for what a run reads of this machine: the model's files, folders, tasks, texts."""
    if "model" in s:
        _model(str(s["model"]))
    if s.get("tasks", "none") != "none":
        tasks = task_names(s["tasks"])
        if not all(tasks):
            raise ValueError(f"tasks={s['tasks']!r} names an empty task; say 'tiny', 'paper', 'none', or names.")
        folder = s.get("task_folder", "")
        if folder or not {*tasks} <= {*PAPER_TASKS, *TASKS}:  # of these it is known without lm-eval's index
            known_tasks(tasks, folder)
    for name in READ:
        if name in s and not str(s[name]).strip():
            raise ValueError(f"{name} is empty; name a text, or leave it out.")
    for source, split in _texts(s):
        if source not in CORPORA:
            _readable(source, split, os.stat(source).st_mtime_ns if os.path.exists(source) else 0)
        elif corpora and constants.HF_HUB_OFFLINE:  # nothing is fetched before the budget is known
            rows(source, split)
    for name in ("task_folder", "local_copies"):
        if (folder := s.get(name, "")) and not (os.path.isdir(folder) and os.listdir(folder)):
            raise ValueError(f"{name}={folder!r} is no folder, or an empty one; give the right one, or leave it out.")


def at_hand(settings: Mapping[str, Any]) -> None:
    """Read all texts and the data of all tasks, and fetch what of them is on the hub, before a model is loaded.

    Raises:
        ValueError: some are not to be had.
    """
    for source, split in _texts(settings):
        rows(source, split)
    if settings.get("tasks", "none") != "none":
        load_tasks(settings["tasks"], settings.get("task_folder", ""))


def _texts(s: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The sources that a run reads, each with the split."""
    named = {name: splits for name, splits in READ.items() if name in s}
    if s.get("recovery") != "lora":
        named.pop("recovery_text", None)
    if "calibration_text" in named and "text" in named:  # lesson 9 names two
        named["text"] = ["validation"]
    copies = s.get("local_copies", "")
    return [(text_source(s[name], copies), split) for name, splits in named.items() for split in splits]


@lru_cache(maxsize=64)
def _readable(source: str, split: str, changed: int) -> None:
    """Read a text of this machine once for all runs of a sweep; refuses what cannot be read, or says nothing."""
    written(source, rows(source, split), blank=False)


def _model(name: str) -> None:
    """Refuse a name that stands for no model, and a folder that cannot be loaded; a hub id is not looked for."""
    if not name.strip():
        raise ValueError("model is empty; give an embedded name, a local folder, or a hub id owner/name.")
    if (where := located(name)).is_dir():
        _complete(where, max(path.stat().st_mtime_ns for path in where.iterdir()))


@lru_cache(maxsize=64)
def _complete(where: Path, changed: int) -> None:
    """Look at a folder once for all runs of a sweep."""
    complete(where)
