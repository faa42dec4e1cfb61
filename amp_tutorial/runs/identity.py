"""The name of a run: a hash of its code, its parameters, its data and its model.

The code is that of the notebook or function and of this package (`package_code`), with the number of the protocol:
after a mend that could change a number, no earlier run counts as finished. What changes no number (where results go,
whether to stop over budget) is left out, so a run is found again when only that is said otherwise. So are the places of
local files: their content counts. Versions of the libraries are not in the name; a record says them.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from ..files import DATA
from ..files.checkpoints import located
from ..files.downloads import KNOWN, asked_once
from ..files.texts import CORPORA, copy_of, files_of_all_splits
from .functions import function_sha256, is_function
from .package_code import NUMBERS, code_sha256
from .parameters import code_cells, names
from .record import PROTOCOL, file_sha256, files_of

CHANGES_NOTHING = ("out", "over_budget", "keep_model", "local_copies", "kept_scores", "country")
SUMS = "SHA256.json"  # in the folder of each embedded model
TYPED = re.compile(r"^(\w+): (?:str|int|float|bool) =", re.MULTILINE)


def run_id(notebook: Path | str, parameters: Mapping[str, Any]) -> str:
    """16 hexadecimal digits; `parameters` are all of them, after defaults."""
    return id_of(parts(notebook, parameters))


def id_of(parts: Mapping[str, Any]) -> str:
    """The name made of the parts of a run."""
    return _sha(parts)[:16]


def parts(notebook: Path | str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What the name is a hash of; two runs differ where these do."""
    said = {name: value for name, value in parameters.items() if name not in CHANGES_NOTHING}
    if said.get("preset") in ("", *names()):  # a note, as all values are given; in a lesson "full" changes what is run
        del said["preset"]
    data = data_of(parameters)
    said = {name: value for name, value in said.items() if not is_data(name)}
    model = _model(str(said.pop("model", "")), str(said.pop("revision", "")))
    return dict(code=code_of(notebook, parameters), parameters=said, data=data, model=model)


def code_of(notebook: Path | str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's numbers are computed by: protocol, notebook or function, and the package as far as that uses it."""
    if is_function(str(notebook)):
        package = code_sha256(NUMBERS)
        return dict(protocol=PROTOCOL, function=function_sha256(str(notebook), parameters), package=package)
    lesson = any("L.check(" in cell["source"] for cell in code_cells(Path(notebook)))
    package = code_sha256((*NUMBERS, "course") if lesson else NUMBERS)  # its exercises' references take part
    return dict(protocol=PROTOCOL, notebook=notebook_sha256(Path(notebook)), package=package)


def data_of(parameters: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of each text and task file, by the parameter that names it; the name itself of what is elsewhere."""
    copies = str(parameters.get("local_copies", ""))
    data = {name: _data(name, str(value), copies) for name, value in parameters.items() if is_data(name)}
    if not any(name.endswith("_text") for name in data):  # a lesson: it reads embedded texts and tasks without asking
        return data | {"world": _tree(DATA / "world"), "tasks": _tree(DATA / "tasks")}
    if any(task.strip().startswith("tiny") for task in str(parameters.get("tasks", "")).split(",")):
        data["tasks"] = _tree(DATA / "tasks")
    return data


def is_data(name: str) -> bool:
    """Whether a parameter names a text or a folder."""
    return is_text(name) or name.endswith("_folder")


def is_text(name: str) -> bool:
    """Whether a parameter names a text; in a lesson it is called so without saying what it is for."""
    return name.endswith("_text") or name in ("text", "responses")


def absolute(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with local paths from the root on, since a run has a working folder of its own."""
    found = dict(parameters)
    for name, value in found.items():
        if name == "kept_scores" and value:  # it need not be there yet
            found[name] = str(Path(str(value)).expanduser().resolve())
        elif name in ("model", "local_copies") or is_data(name):
            found[name] = ",".join(_from_the_root(name, each) for each in several(name, str(value)))
    return found


def several(name: str, value: str) -> list[str]:
    """What a parameter names: of texts as many as commas part, unless one has that very name."""
    listed = name.endswith("_text") and not os.path.exists(value)
    return [each.strip() for each in value.split(",")] if listed else [value]


def _from_the_root(name: str, value: str) -> str:
    named = value in ("", "tinyworld", *CORPORA, *KNOWN) or (name == "model" and embedded(value))
    # os.path.exists: a name too long to be a path is none either, it raises nothing
    return value if named or not os.path.exists(value) else str(Path(value).resolve())


def notebook_sha256(notebook: Path) -> str:
    """Of the sources of the code cells: prose and stored outputs change no run, nor do the types of parameters."""

    def source(cell: Any) -> str:
        said: str = cell["source"]
        return TYPED.sub(r"\1 =", said) if "parameters" in cell.get("metadata", {}).get("tags", []) else said

    return _sha([source(cell) for cell in code_cells(notebook)])


def _sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _data(name: str, source: str, copies: str) -> str:
    """Hash of the files that are read of a text or a folder; of a corpus on the hub its name: it is not known yet."""
    if len(each := several(name, source)) > 1:
        return _sha([_data(name, one, copies) for one in each])
    if source == "tinyworld":
        return _tree(DATA / "world")
    if source in CORPORA:
        found = copy_of(source, copies) if copies else None
    else:
        found = Path(source) if source and os.path.exists(source) else None
    if found is None:
        return source
    return _files(found, files_of_all_splits(found)) if is_text(name) else _tree(found)


def embedded(model: str) -> bool:
    """Whether a name is that of a model which comes with the package."""
    return Path(model).name == model and os.path.isfile(DATA / "models" / model / SUMS)


def _model(name: str, revision: str) -> dict[str, Any]:
    if embedded(name):
        return dict(embedded=_tree(DATA / "models" / name / SUMS))
    with suppress(ValueError):
        if (place := located(name)).exists():
            return dict(files=files_of(place))
    commit = _commit(name, revision) if name.count("/") == 1 else None
    return dict(name=name, commit=commit) if commit else dict(name=name, revision=revision)


@cache
@asked_once
def _commit(name: str, revision: str) -> str | None:
    """The commit of a model on the hub; None if the hub can't be asked and the cache does not know.

    The hub is asked first, by fetching its config.json: were only the cache asked, a run would have another name once
    its model has been fetched, and would not be found again.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json", revision=revision or None)).parent.name
    except (OSError, ValueError):
        return None


def _tree(top: Path) -> str:
    """One hash over a file, or all files of a folder."""
    return _files(top, [top] if top.is_file() else [path for path in sorted(top.rglob("*")) if path.is_file()])


def _files(top: Path, paths: Iterable[Path]) -> str:
    """One hash over files, with their names inside a folder."""
    return _sha([(p.relative_to(top).as_posix(), file_sha256(p)) for p in paths])
