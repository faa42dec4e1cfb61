"""How fast a run's device multiplies matrices: timed where it is here, as its maker states where it is not."""

import functools
from dataclasses import dataclass

import torch

from ..measure.check import matmul_speed

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
    if device.startswith("cuda") and not torch.cuda.is_available():
        return Speed(GPUS[ASSUMED], f"an {ASSUMED}, as its data sheet says; there is no GPU here")
    return Speed(_timed(dtype, device), "")


@functools.cache
def _timed(dtype: str, device: str) -> float:
    return matmul_speed(4096 if device.startswith("cuda") else 512, 3, getattr(torch, dtype), device)
