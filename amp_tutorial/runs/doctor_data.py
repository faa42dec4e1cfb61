"""What the doctor says of data: the embedded models and tasks, the caches, and the hub."""

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..files.downloads import KNOWN, place_of
from ..files.paths import DATA

HUB = "https://huggingface.co"
TASK_DATA = ("piqa", "hellaswag", "winogrande", "ai2_arc")  # as their folders in the cache of datasets are called


class Line(NamedTuple):
    """What was found: "ok", "note" or "mend", and the text."""

    state: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:<4}  {self.text}"


def first(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def models() -> Iterator[Line]:
    for folder in sorted((DATA / "models").iterdir()):
        wrong = [
            name
            for name, expected in json.loads((folder / "SHA256.json").read_text(encoding="utf-8")).items()
            if not (folder / name).is_file() or hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected
        ]
        if wrong:
            yield Line("mend", f"{folder.name}: {', '.join(wrong)} missing or damaged; run: git checkout -- {folder}")
        else:
            yield Line("ok", f"{folder.name}: every file has its SHA-256")


def known() -> Iterator[Line]:
    """The real models that can be fetched by a name."""
    for name in KNOWN:
        place = place_of(name)
        if place.is_dir():
            yield Line("ok", f"{name} is in {place}")
        else:
            yield Line("note", f"{name}, a real model, is not here; to fetch it: amp-tutorial fetch {name}")


def hub() -> Iterator[Line]:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    models = sorted(path.name[8:].replace("--", "/") for path in cache.glob("models--*"))
    kept = f"{len(models)} models" + (f" ({', '.join(models[:5])}{', …' * (len(models) > 5)})" if models else "")
    yield Line("ok", f"hub cache {cache}: {kept}; HF_HOME={os.environ.get('HF_HOME', 'not set')}")
    if constants.HF_HUB_OFFLINE:
        yield Line("note", "HF_HUB_OFFLINE is set: only what is cached or local can be used; to fetch: unset it")
    else:
        yield Line("ok", "HF_HUB_OFFLINE is not set: what is missing is fetched")


def online(asked: bool) -> Iterator[Line]:
    if not asked:
        return
    hub = os.environ.get("HF_ENDPOINT", HUB)
    try:
        with urllib.request.urlopen(urllib.request.Request(hub, method="HEAD"), timeout=5):
            pass
    except urllib.error.HTTPError as error:
        yield Line("note", f"{hub} answers, with status {error.code}")
    except (OSError, ValueError) as error:
        yield Line("mend", f"{hub} cannot be reached ({first(error)}); work offline with: export HF_HUB_OFFLINE=1")
    else:
        yield Line("ok", f"{hub} can be reached")


def tasks() -> Iterator[Line]:
    own = sorted(path.stem for path in (DATA / "tasks").glob("*.yaml") if path.with_suffix(".jsonl").is_file())
    yield Line("ok" if own else "mend", f"embedded tasks: {', '.join(own) or 'none; run: git checkout -- data/tasks'}")
    from huggingface_hub import constants

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    kept = [path.name.lower() for path in cache.glob("*") if path.is_dir()]
    missing = [task for task in TASK_DATA if not any(task in name for name in kept)]
    if missing:
        yield Line(
            "note", f"data of the paper's tasks not cached in {cache}: {', '.join(missing)}; fetched at first use"
        )
    else:
        yield Line("ok", f"data of the paper's tasks is cached in {cache}")
