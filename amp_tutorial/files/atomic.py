"""Whole or not at all: a file or folder is written beside its place and moved there when it is complete.

A process that is killed leaves what was there as it was, and something hidden (`.NAME….part`) beside it. Access rights
are those of any new file (0666 without the umask), whatever the library that writes prefers.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

UNTOUCHED = "the partial output is removed, what was there is untouched"


def reason(error: BaseException) -> str:
    """What the system or a library says, in one line without a full stop."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip()
    return (said or type(error).__name__).splitlines()[0].rstrip(".:")


def expanded(path: str | Path) -> Path:
    """A path as it was typed, but for a `~` at its beginning, which is the home folder.

    Raises:
        ValueError: it is none, or no file system has such a name: one of over 255 bytes, or with what no name can hold.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"A path must be a text or a pathlib.Path, not a {type(path).__name__}.")
    try:
        possible = "\0" not in str(path) and len(os.fsencode(path)) < 4096  # bytes, of Linux
        possible &= all(len(os.fsencode(part)) <= 255 for part in Path(path).parts)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise ValueError(f"{str(path)[:40]!r}… is no name of a file or folder: too long, or with what no name holds.")
    whole = Path(os.path.expanduser(path))
    if str(path).startswith("~") and str(whole).startswith("~"):
        raise ValueError(f"{path} names the home folder of a user who is not here; say ./{path} for a name with a ~.")
    return whole


def may_read(path: Path) -> None:
    """Refuse what this user may not read, by a ValueError; what is not there is another matter."""
    if os.path.exists(path) and not os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)):
        raise ValueError(f"{path} can't be read: permission denied. Ask its owner, or copy it to where you may.")


@contextmanager
def written_file(path: str | Path, overwrite: bool = True, ending: str = ".part") -> Iterator[Path]:
    """A file `.NAME.….part` beside the target, to write into; without an error it is forced to the disk and moved.

    Folders above it are made. A target that is a link stays one: what it points to is written.

    Args:
        ending: of the file beside, for a writer that goes by it.

    Raises:
        ValueError: before any work: there is such a file and `overwrite` is not set, or a folder of that name.
        OSError: it can't be written, because the disk is full for example. The partial output is removed, and what
            was there is as it was.
    """
    shown = expanded(path)
    target = _resolved(shown)
    if target.is_dir():
        raise ValueError(f"{shown} is a folder, and a file is to be written; choose another name.")
    if target.exists() and not (overwrite and target.is_file()):  # not onto a device either
        otherwise = " or say overwrite=True" if target.is_file() else ""
        raise ValueError(f"{shown} is there already; choose another name{otherwise}.")
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}{ending}")
    try:
        try:
            _make(target.parent)
            rights = _rights(beside)  # and an error now, if nothing can be written here
            yield beside
            with beside.open("rb+") as file:
                os.fsync(file.fileno())
            beside.chmod(rights)
            beside.replace(target)
        finally:
            with suppress(OSError):
                beside.unlink()
    except (OSError, SafetensorError) as error:
        raise OSError(f"Could not write {shown}: {reason(error)}; {UNTOUCHED}.") from error


def write_bytes(path: str | Path, content: bytes, overwrite: bool = True) -> Path:
    """Write a file whole or not at all; raises what `written_file` does."""
    with written_file(path, overwrite) as beside:
        beside.write_bytes(content)
    return expanded(path)


def write_text(path: str | Path, text: str, overwrite: bool = True) -> Path:
    """The same in UTF-8, with the line ends as given on every system."""
    return write_bytes(path, text.encode(), overwrite)


def write_json(path: str | Path, data: Any, overwrite: bool = True, indent: int | None = 1, **options: Any) -> Path:
    """The same as JSON with a line feed at the end; `options` go to `json.dumps`.

    Raises:
        ValueError: also for NaN and infinities, which JSON has not, but with allow_nan=True.
    """
    return write_text(path, json.dumps(data, **{"indent": indent, "allow_nan": False} | options) + "\n", overwrite)


@contextmanager
def new_folder(
    target: str | Path, sources: Iterable[str | Path] = (), overwrite: bool = False, replaced: Iterable[str] = ()
) -> Iterator[Path]:
    """A folder `.NAME.part` beside the target, to write into; without an error it takes the target's place at the end.

    A kill leaves that folder, which the next run for the same target removes. With `overwrite` what is there is moved
    aside to `.NAME.old` before and removed after; a kill between the two moves leaves both whole, and the next run
    puts the old one back. A target that is a link stays one: what it points to is written.

    Args:
        sources: folders that must stay, as the model that is saved came from them.
        overwrite: whether files in the target may be replaced: those whose path in it matches one of `replaced`, such
            as "*.json" or "templates/*.jinja". Whatever else is there is a refusal.

    Raises:
        ValueError: before any work: the target is or holds a source, is not empty and `overwrite` is not set, holds
            what is not to be replaced, is a file, a mount point or the working folder, or is being written by another
            process.
        OSError: it could not be written. The partial output is removed, and what was there is as it was.
    """
    shown, patterns = expanded(target), tuple(replaced)
    target = _resolved(shown)
    for source in {str(source) for source in sources if source}:
        if os.path.isdir(source) and Path(source).resolve().is_relative_to(target):
            raise ValueError(
                f"{shown} is or holds the folder this model was loaded from, which is never overwritten; choose "
                "another folder."
            )
    _movable(target, shown)
    beside, old = (target.with_name(f".{target.name}.{what}") for what in ("part", "old"))
    try:
        with _alone(target, shown):
            if old.is_dir() and not target.exists():  # killed between the two moves
                old.replace(target)
            _free(target, shown, overwrite, patterns)
            shutil.rmtree(beside, ignore_errors=True)
            _discard(old, target, patterns)
            try:
                beside.mkdir()
                probe = beside / ".rights"
                rights = _rights(probe)
                probe.unlink()
                yield beside
                for path in beside.rglob("*"):
                    if path.is_file():
                        path.chmod(rights)
                _exchange(beside, target, old, overwrite)
                _discard(old, target, patterns)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise OSError(f"Could not write {shown}: {reason(error)}; {UNTOUCHED}.") from error


def _resolved(shown: Path) -> Path:
    """Where a path leads, through links.

    Raises:
        ValueError: a link that leads back to itself.
    """
    try:
        return shown.resolve()
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{shown} is a link that leads back to itself; remove it, or choose another name.") from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next((path for path in (folder, *folder.parents) if path.is_file()), folder)
        raise OSError(f"{file} is a file where a folder is needed") from error


def _rights(path: Path) -> int:
    """Make a file, and see which rights this process and this folder give to a new one."""
    path.open("xb").close()
    return path.stat().st_mode & 0o777


def _movable(target: Path, shown: Path) -> None:
    """Refuse what is a folder and can't be moved aside, or would be moved from under the process."""
    if target.is_file():
        raise ValueError(f"{shown} is a file, and a folder is needed; choose another name.")
    if target.is_dir() and Path.cwd().is_relative_to(target):
        raise ValueError(f"{shown} is or holds the working folder, which can't be replaced; choose a folder inside it.")
    if target.is_dir() and (os.path.ismount(target) or _mounted(target)):
        raise ValueError(f"{shown} is a mount point, which can't be replaced; choose a folder inside it.")


def _mounted(target: Path) -> bool:
    """Whether something is mounted here on Linux, also a folder of the same disk, which `ismount` does not see."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return False
    escaped = "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in str(target))
    return any(line.split(" ")[4] == escaped for line in mounts.splitlines())


def _foreign(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """What is in a folder and not to be replaced: files by their path in it, and folders without a file."""
    every = sorted(folder.rglob("*"))
    inside = [path for path in every if path.is_symlink() or not path.is_dir() or not any(path.iterdir())]
    return [path for path in inside if not any(fnmatchcase(path.relative_to(folder).as_posix(), p) for p in patterns)]


def _free(target: Path, shown: Path, overwrite: bool, patterns: tuple[str, ...]) -> None:
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"{shown} is not empty; choose another folder or say overwrite=True.")
    if others := [path.relative_to(target).as_posix() for path in _foreign(target, patterns)]:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise ValueError(
            f"{shown} holds more than what is replaced: {', '.join(others[:3])}{more}; move that away, or choose "
            "another folder."
        )


def _exchange(new: Path, target: Path, old: Path, overwrite: bool) -> None:
    """Put the new folder where the old one was."""
    if target.is_dir():
        if overwrite:
            target.replace(old)
        else:
            target.rmdir()  # still empty, or this is an error
    try:
        new.replace(target)
    except BaseException:
        if old.is_dir():
            old.replace(target)
        raise


def _discard(old: Path, target: Path, patterns: tuple[str, ...]) -> None:
    """Remove what was replaced; what somebody put there in the meantime goes into the new folder."""
    for path in _foreign(old, patterns) if old.is_dir() else []:
        place = target / path.relative_to(old)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _alone(target: Path, shown: Path) -> Iterator[None]:
    """Keep other processes from the same target; the system lifts the lock of one that was killed."""
    _make(target.parent)
    path = target.with_name(f".{target.name}.lock")
    try:
        lock = FileLock(path).acquire(blocking=False)
    except Timeout as error:
        raise ValueError(
            f"{shown} is being written by another process; wait for it, or choose another folder."
        ) from error
    with lock:
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes it when it is released
                path.unlink()
