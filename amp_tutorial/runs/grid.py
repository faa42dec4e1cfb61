"""A grid of runs from a YAML file, checked as a whole and then walked through lazily.

    notebook: reproduce        # or a lesson's name, or a path from this file's folder; default reproduce
    preset: [ci, smollm2-20]   # parameter files, one or a list
    fixed: {recovery: none}    # the same in every run
    grid:                      # every combination of these
      ratio: [0.1, 0.3]
      seed: [0, 1, 2]

or a list of such blocks. What is fixed replaces what a preset says, and what the grid names must not be fixed. In the
place of a notebook stands `function: package.module:name` for a function (see `functions.py`).
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from .functions import is_function, parameters_of_function
from .parameters import Parameter, checked, names, notebook_named, parameters_of, parsed, read_yaml
from .parameters import preset as preset_of

LARGEST = 10_000  # runs without confirmation
KEYS = ("notebook", "function", "preset", "fixed", "grid")


class Point(NamedTuple):
    """One run of a grid: its name, its notebook or function, what was given, and all values after the defaults."""

    name: str
    notebook: Path | str
    given: dict[str, Any]
    effective: dict[str, Any]


@dataclass(frozen=True)
class Block:
    """One notebook or function, and every combination of its presets and of the grid's values."""

    notebook: Path | str
    known: dict[str, Parameter]
    presets: dict[str, dict[str, Any]]  # name → values; {"": {}} without any
    fixed: dict[str, Any]
    grid: dict[str, list[Any]]
    where: str

    @property
    def size(self) -> int:
        """Its length, of any size: Python's `len` ends at 2⁶³."""
        return len(self.presets) * prod(len(values) for values in self.grid.values())

    @property
    def label(self) -> str:
        """The notebook's name without ending, or the function's."""
        return self.notebook.stem if isinstance(self.notebook, Path) else self.notebook.partition(":")[2]

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Point]:
        for preset, values in self.presets.items():
            note = {"preset": preset} if preset and "preset" in self.known else {}
            for combination in product(*self.grid.values()):
                varied = dict(zip(self.grid, combination, strict=True))
                given = values | note | self.fixed | varied
                words = [preset or self.label, *(f"{name}={value}" for name, value in varied.items())]
                yield Point(" ".join(words), self.notebook, given, checked(self.known, given, self.where))


@dataclass(frozen=True)
class Grid:
    """Blocks of runs in their order. Nothing is expanded before it is asked for."""

    blocks: list[Block]

    def __len__(self) -> int:
        return sum(block.size for block in self.blocks)

    def __iter__(self) -> Iterator[Point]:
        for block in self.blocks:
            yield from block

    def confirmed(self, yes: bool) -> "Grid":
        """The grid itself.

        Raises:
            ValueError: it has more than 10,000 runs, and nobody said yes.
        """
        size = sum(block.size for block in self.blocks)
        if size > LARGEST and not yes:
            raise ValueError(f"The grid has {size:,} runs, more than {LARGEST:,}: confirm with --yes.")
        return self


def read(path: str | Path, yes: bool = False, everywhere: Sequence[str] = ()) -> Grid:
    """The grid of a YAML file.

    Args:
        everywhere: NAME=VALUE as on the command line, fixed in every block that knows the name: where texts lie, say.

    Raises:
        ValueError: the file cannot be read, or not as YAML; what `grid_of` refuses; over 10,000 runs without `yes`; a
            name that no block knows, or that a grid varies.
    """
    path = Path(path)
    grid = grid_of(read_yaml(path), str(path), path.parent).confirmed(yes)
    said = [text.partition("=")[0] for text in everywhere]
    for i, (text, name) in enumerate(zip(everywhere, said, strict=True)):
        if name in said[:i]:
            raise ValueError(f"-p {name} is given twice.")
        if name == "preset" and text.partition("=")[2] in names():  # as in `run`; of a lesson it is a size
            raise ValueError(f"-p preset is only a note for the record; {path} names parameter files under preset:.")
        if not any(name in block.known for block in grid.blocks):
            known = sorted({name for block in grid.blocks for name in block.known})
            raise ValueError(f"-p {text}: {path} has no parameter {name!r}{_nearest(name, known)}.")
        if name == "out" or any(name in block.grid for block in grid.blocks):
            why = "gives each run a folder of its own" if name == "out" else f"varies {name}"
            raise ValueError(f"-p {text}: the sweep {why}; leave it out.")
        for block in grid.blocks:
            if name in block.known:
                given = dict([parsed(block.known, text)])
                checked(block.known, given, "-p")
                block.fixed.update(given)
    return grid


def grid_of(data: Any, where: str, folder: str | Path = ".") -> Grid:
    """The grid of a block, or of a list of blocks, as they stand in a file in `folder`.

    Every value is checked by itself, so that a mistake is found before any run, in a grid of any size.

    Raises:
        ValueError: no block; an unknown key or parameter; a value of the wrong type; an empty grid; an unknown preset.
    """
    blocks = data if isinstance(data, list) else [data]
    if not data or not all(isinstance(block, Mapping) for block in blocks):
        raise ValueError(f"{where} must hold a block with some of {', '.join(KEYS)}, or a list of such blocks.")
    names = [where if len(blocks) == 1 else f"{where}, block {n}" for n in range(1, len(blocks) + 1)]
    return Grid([_block(block, name, Path(folder)) for block, name in zip(blocks, names, strict=True)])


def _block(data: Mapping[str, Any], where: str, folder: Path) -> Block:
    for key in data:
        if key not in KEYS:
            raise ValueError(f"{where}: unknown key {key!r}{_nearest(key, KEYS)}; there are {', '.join(KEYS)}.")
    notebook, known = _what(data, where, folder)
    fixed, grid = (_mapping(data, key, where) for key in ("fixed", "grid"))
    named = data.get("preset", [])
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or ("preset" in data and not named):
        raise ValueError(f"{where}: preset must be a name or a list of names.")
    if "preset" in data and "preset" in fixed | grid:
        raise ValueError(f"{where}: name presets either with the key preset or as a parameter, not both.")
    if "preset" in fixed | grid and "preset" in known and known["preset"].default == "":  # in a lesson it is more
        raise ValueError(f"{where}: as a parameter preset is only a note; name it by the key preset beside grid.")
    if "grid" in data and not grid:
        raise ValueError(f"{where}: the grid is empty; list at least one value of one parameter, or leave grid out.")
    for name, values in grid.items():
        if not isinstance(values, list):
            raise ValueError(f"{where}: {name} in the grid must be a list, [{values}]; or name it under fixed.")
        if not values:
            raise ValueError(f"{where}: the grid is empty at {name}; give a list of at least one value.")
        if name in fixed:
            raise ValueError(f"{where}: {name} is both fixed and in the grid; keep one of them.")
        for value in values:
            checked(known, {name: value}, where)
    if "out" in fixed | grid:
        raise ValueError(f"{where}: out is not to be given; a sweep gives each run a folder of its own (--out).")
    checked(known, fixed, where)
    presets = {name: dict(preset_of(name)) for name in named} or {"": {}}
    for name, values in presets.items():
        checked(known, values, f"preset {name}")
    return Block(notebook, known, presets, fixed, grid, where)


def _what(data: Mapping[str, Any], where: str, folder: Path) -> tuple[Path | str, dict[str, Parameter]]:
    """The notebook or function of a block, and what it can be told."""
    if "function" not in data:
        notebook = _notebook(data.get("notebook", "reproduce"), where, folder)
        return notebook, parameters_of(notebook)
    name = data["function"]
    if "notebook" in data:
        raise ValueError(f"{where}: say a notebook or a function, not both.")
    if not isinstance(name, str) or not is_function(name):
        raise ValueError(f"{where}: function must be given as package.module:function, not {name!r}.")
    try:
        return name, parameters_of_function(name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _notebook(name: Any, where: str, folder: Path) -> Path:
    """By its name, or by its path from the folder of the grid's file."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: notebook must be a name or a path, not {name!r} (write numbers in quotes).")
    try:
        return notebook_named(str(folder / Path(name).expanduser()) if name.endswith(".ipynb") else name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _mapping(data: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    found = data.get(key)
    if found is not None and not isinstance(found, Mapping):
        raise ValueError(f"{where}: {key} must be a mapping from parameters to values.")
    return dict(found or {})


def _nearest(word: Any, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(word), known, n=1)
    return f", did you mean {near[0]}?" if near else ""
