"""The course around the library: lesson helpers, self-checking exercises, the notebook builder and the runner."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the clone, when this is one
NOTEBOOKS = ROOT / "notebooks"
SOURCES = NOTEBOOKS / "source"
STATIC = "AMP_TUTORIAL_STATIC"  # set in the environment of unattended runs: no sliders there


def record_path(out: str | Path, name: str, model: str) -> Path:
    """Where the record of a lesson on a model goes; of a folder or hub id only the last part is used."""
    return Path(out) / "records" / f"{name}-{Path(model).name}.json"
