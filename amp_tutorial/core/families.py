"""Where heads, KV groups and neurons live in each model family. The rest of the package knows no family by name.

To add a family, add a row to `data/families.yaml`, under the `model_type` of its configuration; tests run on every row.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from ..files import DATA, OWN
from ..files.arguments import misfit
from ..files.atomic import reason
from ..files.checkpoints import unprunable, without_row

Kind = Literal["query", "shared", "neurons"]  # whose rows: of query heads, of key-value heads, of neurons


class Programs(NamedTuple):
    """Which widths other programs take from the configuration, as far as it was looked up (`measure/programs.py`)."""

    transformers_4: str | None = None  # "heads neurons", one of both, or ""; ABSENT: it is not read at all
    vllm: str | None = None
    llama_cpp: str | None = None


@dataclass(frozen=True)
class Stream:
    """Which tensors of a decoder layer read and write the residual stream, by module (or bare tensor) name."""

    reads: tuple[tuple[str, tuple[str, ...]], ...]  # (norm, all that reads it)
    writes: tuple[str, ...] = ("self_attn.o_proj", "mlp.down_proj")
    apart: tuple[str, ...] = ("self_attn.q_norm", "self_attn.k_norm")  # norms inside a head, not of the stream
    last: str = "model.norm"  # the norm that the output head reads
    offset: float = 0.0  # a norm multiplies by offset + weight
    multiple: int = 1  # of the hidden size: the products of packed experts want rows of whole 16 bytes
    root: str = ""  # a buffer of the embedding by which it multiplies its rows: always sqrt(hidden_size)


@dataclass(frozen=True)
class Family:
    """Module names inside one decoder layer. A name that stands more than once is one packed matrix, in that order."""

    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    output: str = "self_attn.o_proj"
    neurons_in: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")  # a row of each is one neuron
    neurons_out: str = "mlp.down_proj"  # a column is one neuron
    layers: str = "model.layers"
    width: str = "intermediate_size"  # what the configuration calls the number of neurons
    with_width: tuple[tuple[str, object], ...] = ()  # settings without which it takes another number than it says
    norms: tuple[tuple[str, Kind], ...] = ()  # norms (if there) with weights for each head: they are cut alike
    spanning: bool = False  # these norms take one mean over all heads (or neurons), so a cut changes the others' scale
    scalars: tuple[str, ...] = ()  # parameters with one value for each query head: attention sinks
    no_heads: str = ""  # why heads cannot be cut, if so
    no_heads_with: tuple[str, ...] = ()  # settings with which its head_dim is hidden_size / num_attention_heads
    no_neurons: str = ""  # why neurons cannot be cut, if so
    any_head_count: bool = True  # False: the configuration only takes head counts that divide the hidden size
    equal_type: str = ""  # an architecture that computes the same and takes any head count
    equal_settings: tuple[tuple[str, object], ...] = ()  # what its configuration needs for that
    equal_unless: tuple[str, ...] = ()  # settings that it cannot express
    stream: Stream | None = None  # who reads and writes the residual stream, where the hidden size can be sliced
    no_stream: str = "it has no row of who reads each norm (Family.stream)"  # why it cannot be sliced, if so
    adds: float | str = 1.0  # what attention and MLP add to the stream is multiplied by this, or by this setting; 0: no
    older: tuple[tuple[str, str], ...] = ()  # (what a setting is usually called, what transformers 4 called it here)
    programs: Programs = Programs()

    def rows(self) -> Iterator[tuple[str, list[Kind]]]:
        """Each module whose rows are heads or neurons, with what its blocks of rows are."""
        blocks: dict[str, list[Kind]] = {}
        for name, kind in ((self.query, "query"), (self.key, "shared"), (self.value, "shared"), *self.norms):
            if kind == "neurons" or not self.no_heads:
                blocks.setdefault(name, []).append(kind)  # type: ignore[arg-type]
        for name in () if self.no_neurons else self.neurons_in:
            blocks.setdefault(name, []).append("neurons")
        yield from blocks.items()


ABSENT = "absent"  # of a program that does not read the family at all
EACH_LAYER = ("layer_types", "no_rope_layers")  # settings with one value for each layer


def _plain(value: Any) -> Any:
    """YAML's lists and mappings as the tuples that a row holds."""
    if isinstance(value, list | dict):
        return tuple(map(_plain, value)) if isinstance(value, list) else tuple((k, _plain(v)) for k, v in value.items())
    return value


def row_of(kind: str, said: Mapping[str, Any]) -> Family:
    """A row as YAML says it, with mappings for pairs; a ValueError for a name that is no field of `Family`."""

    def made(of: Any, given: Mapping[str, Any]) -> Any:
        if new := sorted(given.keys() - (known := of.__annotations__).keys()):
            raise ValueError(f"The row {kind!r} says {new[0]!r}, no field of {of.__name__}; known: {', '.join(known)}.")
        return of(**{name: _plain(value) for name, value in given.items()})

    parts = {"stream": Stream, "programs": Programs}
    row: Family = made(Family, {name: made(parts[name], one) if name in parts else one for name, one in said.items()})
    if wrong := misfit(row):
        raise ValueError(f"The row {kind!r} is wrong: {wrong}.")
    return row


def table(path: Path) -> dict[str, Family]:
    """The rows of a YAML file, under `families`; what stands beside them is for anchors.

    Raises:
        ValueError: no such file, no YAML, or no rows as `row_of` reads them.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))["families"]
        return {kind: row_of(kind, said) for kind, said in found.items()}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no table of families ({reason(error)}); see data/families.yaml.") from error


TABLES = [DATA / "families.yaml", *map(Path, filter(None, [os.environ.get(OWN)]))]
FAMILIES = {kind: row for path in TABLES for kind, row in table(path).items()}


def family_of(config: object) -> Family:
    """The row of a configuration; a ValueError if it is not a decoder, is quantised, or there is no row."""
    kind = getattr(config, "model_type", "")
    if said := unprunable(config):
        raise ValueError(said)
    if kind not in FAMILIES:
        raise ValueError(without_row(config, FAMILIES))
    return FAMILIES[kind]


def older_names_of(config: object) -> dict[str, str]:
    """What transformers 4 called settings of this family, where it was not as in most."""
    return dict(FAMILIES[kind].older) if (kind := getattr(config, "model_type", "")) in FAMILIES else {}
