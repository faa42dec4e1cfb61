"""Look over the environment, the device, the disk and the caches: one line each, and the mend where one is needed.

A line begins with `ok`, `note` (works, but should be known) or `mend` (will not work; the line names the command).
Nothing of the package that needs torch is imported, so that the doctor can speak where torch cannot.
"""

import argparse
import hashlib
import importlib
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from ..files import DATA
from ..files.downloads import KNOWN, ask_hub, hub_address, place_of
from . import this_machine

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


def hub_asked(asked: bool) -> Iterator[Line]:
    if not asked:
        return
    hub, (answers, said) = hub_address(), ask_hub()
    if not answers:
        yield Line("mend", f"{hub} cannot be reached ({said}); work offline with: export HF_HUB_OFFLINE=1")
    elif said:
        yield Line("note", f"{hub} answers, with {said}")
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


ROOMY = 5 * 10**9  # bytes of RAM and disk that the embedded models and a few results want
OPTIONAL = {"distributed": "cluster", "dask-jobqueue": "cluster", "codecarbon": "energy"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `amp-tutorial doctor`."""
    parser.add_argument("--out", default="out/runs", help="folder of the runs, to see whether it can be written")
    parser.add_argument("--online", action="store_true", help="also ask the hub whether it can be reached")


def command(options: argparse.Namespace) -> int:
    """Print what was found; the exit status is 1 if anything must be mended."""
    ill = False
    for line in lines(Path(options.out), options.online):
        print(line, flush=True)
        ill |= line.state == "mend"
    return int(ill)


def lines(out: Path, online: bool = False) -> Iterator[Line]:
    """Every finding, one after the other; a check that fails in an unforeseen way is a finding too."""
    torch = _imported("torch")
    transformers = _imported("transformers") if isinstance(torch, ModuleType) else None
    for name, check in (
        ("Python", _python),
        ("torch", lambda: _torch(torch)),
        ("transformers", lambda: _transformers(transformers)),
        ("requirements", _requirements),
        ("optional packages", _optional),
        ("loaded versions", _versions),
        ("device", lambda: _devices(torch)),
        ("memory", lambda: _memory()),
        ("disk", lambda: _disk(out)),
        ("embedded models", models),
        ("real models", known),
        ("hub cache", hub),
        ("hub access", lambda: hub_asked(online)),
        ("task data", tasks),
        ("kernel", _kernel),
    ):
        try:
            yield from check()
        except Exception as error:  # whatever is broken is what the doctor is for
            yield Line("mend", f"{name}: could not be looked at ({first(error)}); install this package anew")


def _imported(name: str) -> ModuleType | Exception:
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken build raises OSError, RuntimeError and others
        return error


def _python() -> Iterator[Line]:
    yield Line("ok", f"Python {platform.python_version()}, {sys.executable}")


def _torch(torch: ModuleType | Exception) -> Iterator[Line]:
    if isinstance(torch, Exception):
        yield Line("mend", f"torch cannot be imported ({first(torch)}); run: pip install --force-reinstall torch")
    else:
        cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        yield Line("ok", f"torch {torch.__version__}, {cuda}")


def _transformers(transformers: ModuleType | Exception | None) -> Iterator[Line]:
    if isinstance(transformers, ModuleType):
        yield Line("ok", f"transformers {transformers.__version__}")
    elif transformers is not None:
        said = first(transformers)
        yield Line("mend", f"transformers cannot be imported ({said}); run: pip install --force-reinstall transformers")


def _requirements() -> Iterator[Line]:
    """Installed versions against the ranges that this package asks for; no advice replaces what a kernel stands on."""
    unmet = this_machine.unmet()
    good = [r for r in this_machine.requirements() if str(r) not in unmet]
    of_kernel = {str(r) for r in this_machine.requirements() if r.name.lower() in this_machine.KERNEL}
    if missing := [text for text, there in unmet.items() if there is None]:
        run = f"pip list --format=freeze > keep.txt && pip install -c keep.txt {shlex.join(missing)}"
        yield Line(
            "mend", f"requirements not met: {', '.join(missing)} (missing); to add and replace nothing run: {run}"
        )
    if old := {text: there for text, there in unmet.items() if there is not None and text not in of_kernel}:
        told = ", ".join(f"{text} ({there})" for text, there in old.items())
        yield Line("mend", f"requirements not met: {told}; run: pip install {shlex.join(old)}")
    if old := {text: there for text, there in unmet.items() if there is not None and text in of_kernel}:
        told = ", ".join(f"{text} ({there})" for text, there in old.items())
        yield Line(
            "mend",
            f"requirements not met: {told}; a kernel stands on it: leave it, and install into a new environment, "
            "run: python3 -m venv .venv",
        )
    yield Line("ok", f"requirements met: {', '.join(f'{r.name} {_installed(r.name)}' for r in good)}")


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _optional() -> Iterator[Line]:
    for name, extra in OPTIONAL.items():
        found = _installed(name)
        if found:
            yield Line("ok", f"{name} {found} (optional, for {extra})")
        else:
            yield Line("note", f"{name} is not installed (optional): pip install {name}")


def _versions() -> Iterator[Line]:
    """A package that was upgraded after it had been imported: the old one goes on running."""
    if old := this_machine.stale():
        yield Line("mend", f"{', '.join(old)}: restart the kernel; if it is still so, run: python3 -m venv .venv")
    else:
        yield Line("ok", "loaded versions are the installed ones")


def _devices(torch: ModuleType | Exception) -> Iterator[Line]:
    if isinstance(torch, Exception):
        return
    if not torch.cuda.is_available():
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = f" (CUDA_VISIBLE_DEVICES={shown!r})" if shown is not None else ""
        times = _bfloat16(torch)
        said = "" if times < 1 else ": take dtype float32"
        said = f"products of bfloat16 take {times:.1f} times as long as of float32{said}"
        yield Line("note", f"no CUDA device{hidden}: everything runs on {os.cpu_count()} CPU cores, {said}")
        return
    for i in range(torch.cuda.device_count()):
        with torch.cuda.device(i):
            free, total = torch.cuda.mem_get_info()
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if bf16 else "no bfloat16: take dtype float16"
        name = torch.cuda.get_device_name(i)
        yield Line("ok" if bf16 else "note", f"cuda:{i} {name}, {_gb(free)} of {_gb(total)} free, {precision}")


def _bfloat16(torch: ModuleType) -> float:
    """How long a product of bfloat16 takes, in times of one of float32: a CPU without it converts each number."""
    taken = []
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(256, 512, dtype=dtype)
        each = []
        for _ in range(4):  # the first one prepares
            started = time.perf_counter()
            torch.nn.functional.linear(a, a)
            each.append(time.perf_counter() - started)
        taken.append(min(each))
    return float(taken[1] / taken[0])


def _gb(n: int) -> str:
    return f"{n / 1e9:.1f} GB"


def _memory() -> Iterator[Line]:
    import psutil

    found = psutil.virtual_memory()
    state = "ok" if found.available >= ROOMY else "note"
    yield Line(state, f"RAM: {_gb(found.available)} of {_gb(found.total)} available")


def _disk(out: Path) -> Iterator[Line]:
    """Whether a file can really be written: permissions alone do not tell, of a quota or a read-only mount."""
    there = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    if not there.is_dir():
        yield Line("mend", f"{there} is a file, where {out} should be a folder; run: mv {there} {there}.old")
        return
    try:
        with tempfile.NamedTemporaryFile(dir=there) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        said = error.strerror or first(error)
        yield Line("mend", f"{there} cannot be written ({said}); say another folder: --out, or run: chmod u+w {there}")
        return
    free = shutil.disk_usage(there).free
    yield Line("ok" if free >= ROOMY else "note", f"{out} can be written, {_gb(free)} free")


def _kernel() -> Iterator[Line]:
    from jupyter_client.kernelspec import KernelSpecManager

    found = KernelSpecManager().find_kernel_specs()
    if "python3" in found:
        yield Line("ok", f"kernel python3, {found['python3']}")
    else:
        mend = f"{sys.executable} -m ipykernel install --sys-prefix --name python3"
        yield Line("mend", f"no kernel named python3, which notebooks are run by; run: {mend}")
