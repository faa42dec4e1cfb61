"""The shapes that can be cut from a model, what each costs, and the largest that meet a target.

A shape costs what its configuration says, so no shape is made to know its cost: the smaller stock model is built on the
meta device. Latency alone is measured, on random weights.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..core.anatomy import Anatomy
from ..core.checkpoint import without_weights
from ..core.families import EACH_LAYER
from ..core.plans import whole_plan
from ..core.sums import evaluating
from ..core.surgery import smaller_config
from ..measure.costs import flops, kv_cache_bytes, latency
from .hidden_size import _type, sliced_config
from .projections import stream_of

OF = ("parameters", "operations", "cache", "latency")
CUT = ("heads", "layers", "hidden", "neurons")  # in the order in which a search goes along them
SOLVED = ("neurons", "heads", "layers", "hidden")  # the first one that may go is solved for
STEPS = 16  # of the hidden size, and of neurons where every amount is a measurement
NEW = 16  # tokens written, where latency counts


@dataclass(frozen=True)
class Shape:
    """How much of a model is left; heads and neurons are those of each layer."""

    hidden: int
    layers: int
    heads: int
    neurons: int

    def __str__(self) -> str:
        return f"hidden size {self.hidden}, {self.layers} layers of {self.heads} heads and {self.neurons} neurons"


class Shapes:
    """The shapes that a stock configuration can say, what each amounts to, and the largest that meet the target."""

    def __init__(
        self, model: PreTrainedModel, pruning_ratio: float, of: str, cut: Sequence[str], length: int, seed: int
    ) -> None:
        self.model, self.of, self.length, self.seed = model, of, length, seed
        self.anatomy = a = Anatomy.of(model)
        if "hidden" in cut and stream_of(a):
            sliced_config(a, a.hidden)  # refuses those whose heads would change with it
        if of == "cache" and not set(cut) & {"heads", "layers"}:
            raise ValueError("The cache holds keys and values of every layer: name 'heads' or 'layers' in cut.")
        self.unit = "queries" if a.groups == 1 else "groups"
        each = a.group_size if a.groups > 1 else 1
        self.whole = Shape(a.hidden, a.layers, a.heads, a.neurons)
        hidden = stream_of(a).multiple if "hidden" in cut else 1
        hidden = math.lcm(hidden, 1 if a.family.any_head_count or a.equal_type else a.heads)
        steps = dict(hidden=hidden, layers=1, heads=each, neurons=max(1, a.neurons // STEPS) if of == "latency" else 1)
        going = [name for name in CUT if name in cut and (of != "cache" or name in ("heads", "layers"))]
        self.values = {name: [most] for name, most in vars(self.whole).items()}
        for name in going:
            most = self.values[name][0]
            self.values[name] = list(range(most, 0, -steps[name]))[::-1] or [most]  # experts: 0 neurons
        self.values["heads"] = [n for n in self.values["heads"] if n in a.head_counts]
        self.solved = next((name for name in SOLVED if len(self.values[name]) > 1), SOLVED[0])
        self.walked = [name for name in CUT if len(self.values[name]) > 1 and name != self.solved]
        if "hidden" in self.walked:  # the largest and others about a sixteenth apart
            sizes = self.values["hidden"][::-1]
            self.values["hidden"] = sizes[:: max(1, round(len(sizes) / STEPS))][::-1]
        config = model.config
        kinds = [{*map(str, getattr(config, name, None) or ())} for name in EACH_LAYER]
        self.alike = len(set(a.layer_parameters)) == 1 and max(map(len, kinds)) < 2
        self.kept: Callable[[int], list[int]] = lambda count: list(range(count))
        self.known: dict[tuple[Shape, tuple[int, ...]], float] = {}
        self.most = math.inf
        self.dense = self.amount(self.whole)
        self.most = (1 - pruning_ratio) * self.dense
        smallest = Shape(**{name: values[0] for name, values in self.values.items()})
        if (least := self.amount(smallest)) > self.most:
            others = " or ".join(name for name in CUT if name not in cut)
            raise ValueError(
                f"No shape of fewer {', '.join(going)} removes {pruning_ratio:.0%} of {of}; the smallest removes "
                f"{1 - least / self.dense:.1%}: ask for less{f' or add {others} to cut' if others else ''}."
            )

    def amount(self, shape: Shape) -> float:
        """Of a shape: parameters, operations, bytes, or share of the dense seconds; infinite if no config says it."""
        kept = self.kept(shape.layers)
        key = shape, tuple(kept)
        if key not in self.known:
            config = self.config(shape, kept)
            self.known[key] = math.inf if config is None else self._amount(config)
        return self.known[key]

    def removed(self, shape: Shape) -> float:
        return 1 - self.amount(shape) / self.dense

    def config(self, shape: Shape, kept: list[int]) -> PreTrainedConfig | None:
        """The configuration of the model that the shape will be; nothing is built with weights."""
        heads, neurons = list(range(shape.heads)), list(range(shape.neurons))
        a = self.anatomy
        wide = replace(whole_plan(a), heads=[heads] * a.layers, neurons=[neurons] * a.layers)
        config = smaller_config(a, replace(wide, layers=kept) if len(kept) < a.layers else wide)
        if shape.hidden == a.hidden:
            return config
        small = Anatomy.of(without_weights(config))
        return sliced_config(small, shape.hidden) if _type(small, shape.hidden) else None

    def _amount(self, config: PreTrainedConfig) -> float:
        dtype, device = self.model.dtype, next(self.model.parameters()).device
        if self.of == "parameters":
            return without_weights(config).num_parameters()
        if self.of == "operations":
            return flops(config, self.length).prefill
        if self.of == "cache":
            return kv_cache_bytes(config, self.length, dtype=dtype)
        with torch.random.fork_rng():
            random = AutoModelForCausalLM.from_config(config, dtype=dtype).to(device).eval()
        return self._seconds(random) / self._seconds(self.model)  # one after the other: what slows both cancels out

    def _seconds(self, model: PreTrainedModel) -> float:
        with evaluating(model):
            times = latency(model, prompt=self.length, new=NEW, repeats=3, seed=self.seed)
        return times["prefill"].median + NEW * times["decode"].median

    def largest(self, shape: Shape) -> Shape | None:
        """The shape with as much of the solved dimension as meets the target; None if nothing does, or too much.

        Too much: nothing of the solved dimension has to go, and one step more of another would meet the target too.
        """
        values = self.values[self.solved]

        def at(index: int, of: Shape = shape) -> Shape:
            return replace(of, **{self.solved: values[index]})

        low, high = 0, len(values) - 1
        if self.amount(at(low)) > self.most:
            return None
        if self.amount(at(high)) <= self.most:
            more = [self.step(at(high), {name: 1}) for name in self.walked]
            return None if any(m and self.amount(m) <= self.most for m in more) else at(high)
        straight = True  # amounts are nearly straight lines: two looks do, where halving takes ten
        while high - low > 1:
            a, b = self.amount(at(low)), self.amount(at(high))
            share = (self.most - a) / (b - a) if straight else 0.5
            middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
            low, high = (middle, high) if self.amount(at(middle)) <= self.most else (low, middle)
            straight = not straight
        return at(low)

    def step(self, shape: Shape, moves: dict[str, int]) -> Shape | None:
        """So many values up or down along some dimensions; None beyond the ends."""
        found = {}
        for name, move in moves.items():
            index = self.values[name].index(getattr(shape, name)) + move
            if not 0 <= index < len(self.values[name]):
                return None
            found[name] = self.values[name][index]
        return replace(shape, **found)

    def line(self, base: Shape, name: str) -> list[Shape]:
        """All shapes along one dimension that meet the target, as much as possible of the solved one."""
        found = [self.largest(replace(base, **{name: value})) for value in self.values[name]]
        return [shape for shape in found if shape]

    def start(self, along: str) -> list[Shape]:
        """Along the first dimension, with as much of the others as lets any shape meet the target."""
        for share in range(STEPS, -1, -1):
            base = self.whole
            for name in self.walked:
                values = self.values[name]
                base = replace(base, **{name: values[share * (len(values) - 1) // STEPS]})
            if found := self.line(base, along):
                return found
        return []
