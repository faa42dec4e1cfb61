"""What runs here: whether loaded libraries are those installed, and which device and precision a lesson will take.

A notebook machine loads some libraries before the first cell. If pip then replaces one, the old one goes on running,
and fails much later, in the middle of a download for example. So the lessons' first cell looks at once.
"""

import importlib.metadata
import os
import sys
from pathlib import Path

LIBRARIES = (  # module, distribution
    ("numpy", "numpy"),
    ("torch", "torch"),
    ("safetensors", "safetensors"),
    ("tokenizers", "tokenizers"),
    ("huggingface_hub", "huggingface_hub"),
    ("transformers", "transformers"),
    ("datasets", "datasets"),
    ("accelerate", "accelerate"),
    ("peft", "peft"),
)


def stale() -> list[str]:
    """Libraries that run in another version than the one installed: "transformers 4.57.1 (installed: 5.23.0)"."""
    found = []
    for module, distribution in LIBRARIES:
        loaded = getattr(sys.modules.get(module), "__version__", None)
        try:
            installed = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        if loaded is not None and loaded.partition("+")[0] != installed.partition("+")[0]:
            found.append(f"{module} {loaded} (installed: {installed})")
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
    kept = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numpy", "transformers"))
    print(f"Runs on {device}, with {kept}; results go to {Path('out').resolve()}.")
