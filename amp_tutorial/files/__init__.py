"""Texts, paths and files: what stands below everything else, without a model in sight.

Here: where things lie, the embedded data, the clone and its notebooks. Nothing of this imports torch.
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent  # the clone, when this is one
DATA = PACKAGE / "data" if (PACKAGE / "data").is_dir() else ROOT / "data"  # inside the package once installed
NOTEBOOKS = ROOT / "notebooks"
SOURCES = NOTEBOOKS / "source"
STATIC = "AMP_TUTORIAL_STATIC"  # set in the environment of unattended runs: no sliders there


def record_path(out: str | Path, name: str, model: str) -> Path:
    """Where the record of a lesson on a model goes; of a folder or hub id only the last part is used."""
    return Path(out) / "records" / f"{name}-{Path(model).name}.json"


OWN = "AMP_TUTORIAL_FAMILIES"  # names a YAML file with further rows of model families, for whatever runs
