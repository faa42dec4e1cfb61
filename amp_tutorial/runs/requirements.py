"""What a run of the reproduction notebook needs, before anything is loaded or downloaded: memory, disk, download, time.

Memory is that of the tensors alive at the peak of each stage (`stage_peaks`), texts as long as the parameters allow.
One stage follows the other: the dense model is let go once it is cut, the untuned one once it has been recovered.
Time is rough: multiply-adds at a share of the speed of a matrix product.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from huggingface_hub import constants
from transformers import AutoConfig, PreTrainedConfig

from ..core.anatomy import Anatomy
from ..core.checkpoint import configuration
from ..core.criteria import named
from ..core.surgery import smaller_config
from ..files import DATA
from ..files.checkpoints import check_saving, located
from ..scale.peak_memory import shadow
from .this_machine import free_disk
from .workload import Speed, chosen_plan, device_of, download, operations, speed_of, stage_peaks

CONFIGS = DATA / "configs.yaml"
SHARE = 0.4  # of the speed of a matrix product that a whole run is taken to reach: an assumption
ALIKE = ("preset", "seed", "over_budget", "out")  # parameters that change nothing here
NOTEBOOK, RECORD = 2**20, 2**17  # bytes of an executed notebook and of a record, roughly


class OverBudget(ValueError):  # noqa: N818, read as a word in `except amp.OverBudget`
    """The machine has less than the run needs."""


@dataclass(frozen=True)
class Has:
    """What a machine has free, in bytes."""

    device: str
    memory: int  # of the GPU, or of the machine
    disk: int  # of the folder of results
    cache: int  # of the hub's cache


def has(parameters: Mapping[str, Any]) -> Has:
    """What this machine has on the device and in the folder that the parameters name.

    Raises:
        ValueError: a GPU is asked for that is not there.
    """
    device = device_of(str(parameters["device"]))
    memory = psutil.virtual_memory().available
    if device.startswith("cuda"):
        if not torch.cuda.is_available() or (torch.device(device).index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device={device!r} is not there ({torch.cuda.device_count()} GPUs); say device='auto'.")
        memory = torch.cuda.mem_get_info(device)[0]
    if device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device='mps' is not there (no GPU of Apple's); say device='auto'.")
    return Has(device, memory, free_disk(Path(parameters["out"])), free_disk(Path(constants.HF_HUB_CACHE)))


@dataclass(frozen=True)
class Needs:
    """What a run needs, in bytes, and its work."""

    model: str
    parameters: tuple[int, int]  # dense, pruned
    weights: int  # of the dense model, in the run's dtype
    peaks: dict[str, int]  # memory of each stage
    disk: int
    download: int
    work: dict[str, float]  # floating-point operations of each stage
    notes: tuple[str, ...] = ()
    speed: Speed = Speed(0.0, "")
    given: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def peak(self) -> int:
        return max(self.peaks.values())

    @property
    def flops(self) -> float:
        return sum(self.work.values())

    @property
    def seconds(self) -> float:
        """Rough: every text as long as it may be, at 40 % (`SHARE`) of the speed of a matrix product."""
        return self.flops / (SHARE * self.speed.flops)

    def check(self, has: Has) -> None:
        """Compare with what there is.

        Raises:
            OverBudget: something is short; it says what, by how much, and what to change.
        """
        short = []
        if self.peak > has.memory:
            stage = max(self.peaks, key=lambda name: self.peaks[name])
            short.append(
                f"{size(self.peak - has.memory)} of memory on {has.device} (the stage {stage!r} needs "
                f"{size(self.peak)}, {size(has.memory)} are free): {self._advice(stage)}"
            )
        for what, need, there in (("disk", self.disk, has.disk), ("the hub's cache", self.download, has.cache)):
            if need > there:
                mend = "keep_model=False, or another out" if what == "disk" else "HF_HOME on a larger disk"
                short.append(f"{size(need - there)} on {what} ({size(need)} needed, {size(there)} free): take {mend}")
        if short:
            raise OverBudget(f"Short of {'; and of '.join(short)}.")

    def _advice(self, stage: str) -> str:
        """What would make that stage smaller, of what is not at its least already."""
        given, ways = self.given, []
        if given["dtype"] == "float32":
            ways.append("dtype='bfloat16'")
        if stage == "recover":
            ways += ["a smaller rows_at_once"] * (given["rows_at_once"] > 1)
            ways += ["a smaller recovery_length", "recovery='none'"]
        elif stage != "prune":
            ways += ["a smaller batch"] * (given["batch"] > 1)
            ways += ["a smaller window"] * stage.startswith("measure")
        elif given["repair"] != "none":
            ways += ["repair='none'", "a smaller calibration"]
        return f"take {', '.join(ways)}, or a larger device" if ways else "take a larger device"

    def __str__(self) -> str:
        before, after = self.parameters
        rows = [
            ("parameters", f"{before:,} → {after:,}"),
            ("weights", f"{size(self.weights)} in {self.given['dtype']}"),
            *((f"peak, {stage}", size(peak)) for stage, peak in self.peaks.items()),
            ("disk", size(self.disk)),
            ("download", size(self.download) if self.download else "nothing"),
            (
                "time, roughly",
                f"{duration(self.seconds)} for {self.flops / 1e12:,.3g} TFLOP at {SHARE:.0%} of "
                f"{self.speed.flops / 1e12:.3g} TFLOP/s" + (f", of {self.speed.of}" if self.speed.of else ""),
            ),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join([self.model, *(f"  {name:<{width}}  {value}" for name, value in rows), *self.notes])


def size(n: float) -> str:
    """Bytes as people read them."""
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 / 10 else f"{n / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def needs_of(parameters: Mapping[str, Any], speed: float | None = None) -> Needs:
    """What a run with these parameters needs, from the model's configuration alone.

    Args:
        parameters: effective values of all parameters of the reproduction notebook.
        speed: floating-point operations a second of a matrix product in that dtype; if None it is timed on the run's
            device, and where that is a GPU and none is here it is that of an A100, which the table then says.

    Raises:
        ValueError: no configuration to be had, a dtype or criterion that is none, or widths that the model cannot have.
    """
    p = dict(parameters)
    matters = tuple(sorted((name, value) for name, value in p.items() if name not in ALIKE))
    found = _needs(matters)
    known = speed_of(p["dtype"], p["device"]) if speed is None else Speed(speed, "a device of that speed")
    return replace(found, speed=known, given=p)


@functools.lru_cache(maxsize=256)  # a sweep asks for the same again and again
def _needs(parameters: tuple[tuple[str, Any], ...]) -> Needs:
    p = dict(parameters)
    if p["dtype"] not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"Unknown dtype {p['dtype']!r}; choose 'float32', 'bfloat16' or 'float16'.")
    named(p["criterion"])
    dtype, device = getattr(torch, p["dtype"]), device_of(p["device"])
    config, notes = configuration_of(p["model"], p["revision"] or None)
    if p["keep_model"]:
        check_saving(p["model"])
    dense = shadow(config, dtype)
    chosen = chosen_plan(dense, p)
    small = shadow(smaller_config(Anatomy.of(dense), chosen), dtype)
    fetch, fetched = download(config, dense, p)
    return Needs(
        model=p["model"],
        parameters=(dense.num_parameters(), small.num_parameters()),
        weights=dense.num_parameters() * dtype.itemsize,
        peaks=stage_peaks(dense, small, chosen, p, "cuda" if device.startswith("cuda") else "cpu"),
        disk=NOTEBOOK + RECORD + p["keep_model"] * small.num_parameters() * dtype.itemsize,
        download=fetch,
        work=operations(dense, small, p),
        notes=(*notes, *fetched),
    )


@functools.cache
def stored_configurations() -> dict[str, dict[str, Any]]:
    """The architectures that come with the repository, by the names of the models."""
    return dict(yaml.safe_load(CONFIGS.read_text(encoding="utf-8")))


def configuration_of(name: str, revision: str | None = None) -> tuple[PreTrainedConfig, list[str]]:
    """A model's configuration: its own where it can be had, else that in data/configs.yaml; and what to say of it.

    Raises:
        ValueError: what `configuration` refuses, or a hub id neither cached, nor reachable, nor in data/configs.yaml.
    """
    stored = {} if located(name).exists() else stored_configurations().get(name, {})
    kept = AutoConfig.for_model(**stored) if stored else None
    try:
        config = configuration(name, revision)
    except ValueError as error:
        if not isinstance(error.__cause__, OSError) or located(name).exists():
            raise
        if kept is None:
            raise ValueError(
                f"The configuration of {name!r} is neither cached nor reachable, so nothing can be said of what it "
                f"needs: fetch it where there is a network (hf download {name} config.json), or give a local folder."
            ) from error
        return kept, [f"  By the configuration in data/configs.yaml: that of {name} is neither cached nor reachable."]
    if kept is None:
        return config, []
    own, here = (shadow(c, torch.float32).num_parameters() for c in (config, kept))
    return config, [f"  {name} has {own:,} parameters, its copy in data/configs.yaml {here:,}."] if own != here else []
