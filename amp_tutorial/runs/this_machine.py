"""What runs a run: its device, its packages, the peak of its memory. Nothing here imports torch before it has to.

A notebook service loads some libraries before the first cell. If pip then replaces one, the old one goes on running,
and fails much later, in the middle of a download for example. So the lessons' first cell looks at once (`checked`).
"""

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("amp-tutorial", "torch", "transformers", "peft", "lm-eval", "datasets", "numpy")
LIBRARIES = (  # that a notebook service may have loaded: module and distribution have one name
    "numpy",
    "torch",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "transformers",
    "datasets",
    "accelerate",
    "peft",
)

GPU = "allocated on the GPU, since the stage began"
STAGE = "resident in this process, since the stage began"
PROCESS = "resident in this process, since it began"  # where Linux lets nobody reset it, on macOS and on Windows


def free_disk(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


def versions() -> dict[str, str]:
    """Of each of `PACKAGES` that is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def uses_gpu() -> bool:
    return _gpu() is not None


def _gpu() -> Any:
    torch = sys.modules.get("torch")
    return torch.cuda if torch and torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _high_water() -> int | None:
    """Linux's own peak of resident memory in bytes, which can be reset; None elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


def peak_memory() -> int:
    """The running peak in bytes: allocated on all GPUs if one is used, else resident in this process."""
    if gpu := _gpu():
        return sum(gpu.max_memory_allocated(i) for i in range(gpu.device_count()))
    if (peak := _high_water()) is not None:
        return peak
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource  # which Windows has not

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage gives bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> str:
    """Start the running peak anew if that can be done; what `peak_memory` then is."""
    if gpu := _gpu():
        for i in range(gpu.device_count()):
            gpu.reset_peak_memory_stats(i)
        return GPU
    try:
        if _high_water() is None:
            return PROCESS
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return PROCESS
    return STAGE


def device_name(asked: str = "") -> str:
    torch = sys.modules.get("torch")
    if torch and asked != "cpu" and torch.cuda.is_available():
        return str(torch.cuda.get_device_name(asked if ":" in asked else None))
    return f"CPU, {platform.machine()}"


def stale() -> list[str]:
    """Libraries that run in another version than the one installed: "transformers 4.57.1 (installed: 5.23.0)"."""
    found = []
    for library in LIBRARIES:
        loaded = getattr(sys.modules.get(library), "__version__", None)
        try:
            installed = version(library)
        except PackageNotFoundError:
            continue
        if loaded is not None and loaded.partition("+")[0] != installed.partition("+")[0]:
            found.append(f"{library} {loaded} (installed: {installed})")
    return found


def checked() -> None:
    """Say what was chosen.

    Raises:
        RuntimeError: a library that is loaded was replaced since.
    """
    if old := stale():
        raise RuntimeError(
            f"Restart this session, then run from the first cell again: {', '.join(old)} was loaded before pip "
            "replaced it. Nothing has been fetched."
        )
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        bf16 = (
            "bfloat16 or float16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16, no bfloat16"
        )
        device = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}"
    else:
        device = f"CPU, {os.cpu_count()} cores, float32"
    kept = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "transformers"))
    print(f"Runs on {device}, with {kept}; results go to {Path('out').resolve()}.")
