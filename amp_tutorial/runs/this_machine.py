"""What runs a run: its device, its packages, the peak of its memory. Nothing here imports torch before it has to.

A notebook service loads some libraries before the first cell. If pip then replaces one, the old one goes on running,
and fails much later, in the middle of a download for example; if it replaces one that the kernel stands on, no kernel
starts again. So the lessons' first cell adds and never replaces, and then looks at once (`checked`).
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

PACKAGE = "amp-tutorial"
PACKAGES = (PACKAGE, "torch", "transformers", "peft", "lm-eval", "datasets", "numpy")
KERNEL = ("ipython", "ipykernel", "ipywidgets", "jupyter-client", "traitlets", "tornado", "psutil", "pyzmq")
MODULES = {"ipython": "IPython", "pyyaml": "yaml", "pyzmq": "zmq"}  # where a distribution's module has another name

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


def requirements() -> list[Any]:
    """What this package asks for, as `packaging` reads it: of the installed package, or of the clone that this is."""
    from packaging.requirements import Requirement

    try:
        texts = requires(PACKAGE) or []
    except PackageNotFoundError:
        project = Path(__file__).parents[2] / "pyproject.toml"
        texts = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    wanted = map(Requirement, texts)
    return [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]


def unmet() -> dict[str, str | None]:
    """Requirements that this machine does not meet, "numpy>=1.26", with the version that it has, None without any."""
    found: dict[str, str | None] = {}
    for requirement in requirements():
        try:
            there = version(requirement.name)
        except PackageNotFoundError:
            found[str(requirement)] = None
            continue
        if not requirement.specifier.contains(there, prereleases=True):
            found[str(requirement)] = there
    return found


def addition(missing: list[str]) -> str:
    """The line of a notebook that adds packages and replaces none: all that there is becomes a constraint."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "list", "--format=freeze"]
    keep = Path(tempfile.mkdtemp()) / "keep.txt"
    keep.write_text(subprocess.run(pip, capture_output=True, text=True, check=True).stdout, encoding="utf-8")
    return f"%pip install --constraint {keep} {shlex.join(missing)}"


def replaced() -> dict[str, tuple[str, str]]:
    """Libraries that run in another version than the one installed, by name: the loaded and the installed version."""
    found = {}
    for library in dict.fromkeys([*(r.name.lower() for r in requirements()), *KERNEL]):
        module = sys.modules.get(MODULES.get(library, library.replace("-", "_")))
        loaded = vars(module).get("__version__") if module else None  # asking a module for it may warn
        try:
            installed = version(library)
        except PackageNotFoundError:
            continue
        if isinstance(loaded, str) and loaded.partition("+")[0] != installed.partition("+")[0]:
            found[library] = (loaded, installed)
    return found


def stale() -> list[str]:
    """The same as texts: "transformers 4.57.1 (installed: 5.23.0)"."""
    return [f"{library} {loaded} (installed: {installed})" for library, (loaded, installed) in replaced().items()]


def checked() -> None:
    """Say what was chosen.

    Raises:
        RuntimeError: a requirement is not met, or a library that is loaded was replaced since.
    """
    if lacks := unmet():
        missing = [text for text, there in lacks.items() if there is None]
        if len(missing) < len(lacks):
            old = ", ".join(f"{text} (here: {there})" for text, there in lacks.items() if there is not None)
            raise RuntimeError(
                f"This machine has packages that do not fit: {old}. Its kernel may stand on them, so nothing "
                "was replaced: take a machine, or a virtual environment, in which they may change."
            )
        raise RuntimeError(
            f"Missing: {', '.join(missing)}. In a new cell this adds them and replaces nothing; then run this cell "
            f"again:\n{addition(missing)}"
        )
    others = replaced()
    if kernels := {name: loaded for name, (loaded, _) in others.items() if name in KERNEL}:
        back = " ".join(f"{name}=={loaded}" for name, loaded in kernels.items())
        raise RuntimeError(
            f"The kernel stands on {', '.join(kernels)}, which pip replaced while it ran: it may not start again. "
            f"First put back what was there (%pip install {back}), then restart this session."
        )
    if others:
        raise RuntimeError(
            f"Restart this session, then run from the first cell again: {', '.join(stale())} was loaded before pip "
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
