"""One budget over hidden size, heads, neurons and layers: of all shapes that meet it, find the one that loses least.

All dimensions but one are walked through; the last one (neurons, if they may go) is solved for, the largest that meets
the target (`shapes.py`). So a candidate never removes less than asked. Candidates are made by repair (`repair.py`) from
calibration text, and judged by the next-token loss on its last quarter, which makes none of them. Validation and test
text play no part.

Which candidates: what each dimension costs alone, without repair, is measured on little text (`Expected`). These costs
are taken to add up, and repair to leave a share of each. The shares are fitted to the candidates judged so far, and the
next candidate is the one expected to lose least. The number of candidates is stated beforehand.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..core.anatomy import Anatomy
from ..core.plans import Plan, a_ratio, keep
from ..core.scores import score
from ..core.sums import Batch, evaluating, held, model_inputs
from ..core.surgery import Pruned, masked
from .depth_and_width import with_layers
from .hidden_size import projected
from .layers import rank_layers
from .repair import repair
from .repair_layer import Options
from .rotation import Rotation, rotation
from .shapes import CUT, OF, Shape, Shapes
from .taylor import Metric, output_metric

LINE = 8  # shapes along one dimension that are looked at
FEW = 1024  # calibration tokens by which layers are ranked, and costs measured
ENOUGH = 10_240  # calibration tokens of which a candidate is made; the winner is made of all
FELT = 4096  # calibration tokens by whose gradients errors are weighed
LEFT = 0.5  # share of its cost alone that a dimension has after repair, before anything is known


@dataclass(frozen=True)
class Trial:
    """One candidate that was made and judged."""

    shape: Shape
    amount: float  # share of the dense model's amount that goes
    loss: float  # nats per token, on the calibration text kept apart
    seconds: float  # to make and judge it


@dataclass(frozen=True)
class Search:
    """The shape that lost least, and every candidate: what `fit_budget` reports."""

    shape: Shape
    amount: float  # share of the dense model's amount that goes
    loss: float  # of the winning candidate, in nats per token of the text kept apart
    of: str
    trials: list[Trial]

    def __str__(self) -> str:
        rows = [f"{'hidden':>7} {'layers':>6} {'heads':>5} {'neurons':>7} {'removed':>8} {'loss':>7} {'seconds':>7}"]
        for t in self.trials:
            s, best = t.shape, " <" if t.shape == self.shape else ""
            rows.append(
                f"{s.hidden:>7} {s.layers:>6} {s.heads:>5} {s.neurons:>7} {t.amount:>8.2%} {t.loss:>7.3f} "
                f"{t.seconds:>7.1f}{best}"
            )
        return "\n".join([f"{self.shape}: removes {self.amount:.2%} of {self.of}, loss {self.loss:.3f}.", *rows])


def fit_budget(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    pruning_ratio: float = 0.3,
    of: str = "parameters",
    cut: Sequence[str] = ("heads", "neurons", "layers"),
    trials: int = 24,
    seed: int = 0,
    progress: bool = True,
    length: int = 128,
    polish: int = 0,
) -> Pruned:
    """Find the mix of hidden size, layers, heads and neurons that loses least at a budget, and make it.

    The first candidate is the one expected to lose least of those along each dimension, the others as whole as the
    target lets them be; the second cuts the solved dimension alone, if that is enough. Each further one is expected to
    lose least of those along each dimension from the best so far, by what all before it lost. Each is repaired on the
    batches before the last quarter, as many as hold `ENOUGH` tokens, and judged on that quarter. Layers go in the order
    of a greedy search by perplexity (SLEB), on `FEW` tokens. The best shape, with the layers it was judged with, is
    made again from all batches.

    Cost: `trials` times repair on `ENOUGH` tokens and once on all; a pass of `FEW` tokens for each value looked at, and
    where layers go for each that does with every other one skipped.

    Args:
        model: the dense model; it is not changed.
        batches: calibration batches as for `repair`, at least two.
        pruning_ratio: share of the dense model's amount that goes, in (0, 1); at least so much.
        of: what is counted. "parameters": all of them. "operations": of reading `length` tokens (`flops`). "cache":
            bytes of keys and values after `length` tokens; then only heads and layers go. "latency": seconds to read
            `length` tokens and write 16 more, measured once for each shape with random weights, the dense model just
            after it, on its device. That is noisy: a shape that meets the target may miss it in another run.
        cut: what may go of "hidden", "heads", "neurons" and "layers", as far as the family can lose it. Of heads whole
            KV groups go; in multi-query attention single queries. The hidden size goes in steps of about a sixteenth,
            unless it is solved for.
        trials: candidates at most.
        seed: of what is random in latency.
        polish: steps by which the MLPs of the winner are polished, see `repair`; candidates are not.

    Raises:
        ValueError: an unknown name, nothing to cut, a share outside (0, 1), no trials, too little text, a family whose
            hidden size cannot be sliced, a target that no shape reaches, gradients that are not finite, or `polish`
            below 0 or of experts.
    """
    if isinstance(cut, str) or not cut:
        raise ValueError(f"cut={cut!r} must be a list of what may go: some of {', '.join(CUT)}.")
    for name, given, known in (("of", [of], OF), ("cut", cut, CUT)):
        if wrong := [value for value in given if value not in known]:
            raise ValueError(f"{name}={wrong[0]!r} is unknown; choose from {', '.join(known)}.")
    a_ratio(pruning_ratio)
    if trials < 1:
        raise ValueError(f"trials={trials} must be at least 1: that many candidates are made and judged.")
    Options(polish=polish).check(Anatomy.of(model), None)
    batches = held(model, batches)
    if len(batches) < 2:
        raise ValueError(f"fit_budget keeps a batch apart to judge by; {len(batches)} given, give at least two.")
    apart = max(1, len(batches) // 4)
    if not all(any(_followed(batch).any() for batch in part) for part in (batches[:-apart], batches[-apart:])):
        raise ValueError("The batches to make candidates from, or the last quarter to judge them by, hold no text.")
    shapes = Shapes(model, pruning_ratio, of, cut, length, seed)
    make = _Maker(model, up_to(batches[:-apart], ENOUGH), shapes.unit)
    if not shapes.alike:
        shapes.kept = make.kept
    done: dict[Shape, Trial] = {}
    with tqdm(total=trials, desc="Tried", unit="shape", disable=not progress) as bar:

        def judge(shape: Shape) -> float:
            start, kept = time.perf_counter(), make.kept(shape.layers)
            found = loss(make(shape, kept)[0], batches[-apart:])
            found = found if math.isfinite(found) else math.inf
            done[shape] = Trial(shape, shapes.removed(shape), found, time.perf_counter() - start)
            bar.set_postfix_str(f"best loss {min(t.loss for t in done.values()):.3f}")
            bar.update()
            return found

        best = _search(shapes, judge, trials, Expected(shapes, make))
    again, carried = _Maker(model, batches, shapes.unit, make.metric)(best, make.kept(best.layers), polish)
    report = Search(best, done[best].amount, done[best].loss, of, list(done.values()))
    return Pruned(again, carried, report)


def up_to(batches: Sequence[Batch], tokens: int) -> list[Batch]:
    """The first texts that hold so many tokens; all, if they hold less."""
    found, held = list[Batch](), 0
    for batch in batches:
        if held >= tokens:
            break
        sums = batch["attention_mask"].sum(1).cumsum(0)
        rows = min(len(sums), int((sums < tokens - held).sum()) + 1)
        found.append(batch if rows == len(sums) else {name: values[:rows] for name, values in batch.items()})
        held += int(sums[rows - 1])
    return found


def loss(model: PreTrainedModel, batches: Iterable[Batch]) -> float:
    """Mean next-token loss in nats over the real tokens of batches that follow a real token."""
    sums, tokens = losses(model, batches)
    return sum(sums) / sum(tokens)


@torch.no_grad()
def losses(model: PreTrainedModel, batches: Iterable[Batch]) -> tuple[list[float], list[int]]:
    """Of each row: the summed loss of the real tokens that follow a real token, and how many they are."""
    sums, tokens = list[float](), list[int]()
    with evaluating(model):
        for batch in batches:
            inputs = model_inputs(model, batch)
            ids, logits = inputs["input_ids"], model(**inputs).logits
            for row, words, real in zip(logits, ids, _followed(batch).to(ids.device), strict=True):
                sums.append(float(F.cross_entropy(row[:-1][real].float(), words[1:][real], reduction="sum")))
                tokens.append(int(real.sum()))
    return sums, tokens


def _followed(batch: Batch) -> torch.Tensor:
    mask = batch["attention_mask"].bool()
    return mask[:, :-1] & mask[:, 1:]


Costs = Callable[[Shape], list[float]]


def _search(shapes: Shapes, judge: Callable[[Shape], float], trials: int, costs: Costs) -> Shape:
    """The shape with the least loss, of so many at most."""
    losses: dict[Shape, float] = {}
    line = {shape for name in shapes.walked or [shapes.solved] for shape in _some(shapes.start(name))}
    plain = shapes.largest(shapes.whole)
    while line and len(losses) < trials:
        guess = _fitted([(costs(shape), value) for shape, value in losses.items() if math.isfinite(value)])
        if len(losses) == 1 and plain in line:
            chosen = plain
        else:
            chosen = min(sorted(line, key=str), key=lambda shape: guess(costs(shape)))
        losses[chosen] = judge(chosen)
        best = min(losses, key=lambda shape: losses[shape])
        if best == chosen:
            line |= _around(shapes, best)
        line -= {*losses}
    return min(losses, key=lambda shape: losses[shape])


def _some(line: Sequence[Shape]) -> list[Shape]:
    """At most `LINE` of them, evenly spaced, with both ends."""
    few = min(LINE, len(line))
    return [line[round(i * (len(line) - 1) / max(1, few - 1))] for i in range(few)]


def _around(shapes: Shapes, center: Shape) -> set[Shape]:
    """Shapes along each dimension through one, and its neighbours."""
    found = {shape for name in shapes.walked for shape in _some(shapes.line(center, name))}
    for move in product((0, -1, 1), repeat=len(shapes.walked)):
        if near := shapes.step(center, dict(zip(shapes.walked, move, strict=True))):
            found.add(shapes.largest(near) or center)
    return found - {center}


def _fitted(judged: Sequence[tuple[list[float], float]]) -> Callable[[list[float]], float]:
    """The loss expected of costs: a constant and a share of each, least squares with `LEFT` as prior; no share is < 0.

    The prior weighs as much as one candidate that lost a tenth of a nat.
    """
    if not judged:
        return lambda costs: LEFT * sum(costs)
    x = torch.tensor([[*costs, 1.0] for costs, _ in judged], dtype=torch.float64)
    y = torch.tensor([loss for _, loss in judged], dtype=torch.float64)
    prior = torch.tensor([LEFT] * (x.shape[1] - 1) + [0.0], dtype=torch.float64)
    trust = torch.tensor([0.1] * (x.shape[1] - 1) + [0.0], dtype=torch.float64).diag() ** 2
    shares = torch.linalg.lstsq(x.T @ x + trust, x.T @ y + trust @ prior, driver="gelsd").solution.clamp(min=0)
    return lambda costs: float(shares[:-1] @ torch.tensor(costs, dtype=torch.float64))


class Expected:
    """What each dimension of a shape costs alone, without repair, in nats a token of a little calibration text.

    Measured at up to `LINE` values of a dimension when it is first asked for, and in between by straight lines. Layers
    are those that each cost least alone, their costs added.
    """

    def __init__(self, shapes: Shapes, make: "_Maker") -> None:
        self.shapes, self.make = shapes, make
        self.found: dict[str, dict[int, float]] = {}
        self.dense = loss(make.model, make.few)

    def __call__(self, shape: Shape) -> list[float]:
        going = [name for name in CUT if len(self.shapes.values[name]) > 1]
        left = shape.layers / self.shapes.whole.layers
        return [self.cost(name, getattr(shape, name)) * (1.0 if name == "layers" else left) for name in going]

    def cost(self, name: str, value: int) -> float:
        if name not in self.found:
            self.found[name] = self._measured(name)
        known = self.found[name]
        below, above = max(k for k in known if k <= value), min(k for k in known if k >= value)
        share = (value - below) / max(1, above - below)
        return known[below] + share * (known[above] - known[below])

    def _measured(self, name: str) -> dict[int, float]:
        make, whole, values = self.make, getattr(self.shapes.whole, name), self.shapes.values[name]
        if name == "layers":
            ranks = rank_layers(make.model, make.few, "perplexity", spare=(0, 0))
            alone = sorted(math.log(rank) - self.dense if math.isfinite(rank) else 100.0 for rank in ranks.values())
            return {whole - count: max(0.0, sum(alone[:count])) for count in range(whole)}
        few = sorted({values[round(i * (len(values) - 1) / (LINE - 1))] for i in range(LINE)})
        return {value: max(0.0, make.lost(name, value) - self.dense) if value < whole else 0.0 for value in few}


class _Maker:
    """Makes a model of any shape from one set of batches, which it scores once."""

    def __init__(
        self, model: PreTrainedModel, batches: Sequence[Batch], unit: str, metric: Metric | None = None
    ) -> None:
        self.model, self.batches, self.unit = model, batches, unit
        self.few = up_to(batches, FEW)
        self.scores = score(model, batches, "amp")
        self.rotation: Rotation | None = None
        self.metric = metric or output_metric(model, up_to(batches, FELT))
        self.left = [list(range(Anatomy.of(model).layers))]  # layers that stay when 0, 1, … go

    def kept(self, count: int) -> list[int]:
        """The layers that stay when those go, one after the other, without which perplexity is least."""
        while len(self.left[-1]) > count:
            ranks = rank_layers(self.model, self.few, "perplexity", layers=self.left[-1], spare=(0, 0))
            self.left.append([i for i in ranks if i != min(ranks, key=lambda i: ranks[i])])
        return self.left[len(self.left[0]) - count]

    def lost(self, name: str, value: int) -> float:
        """The loss on a little text when one dimension alone is cut, without repair."""
        if name == "hidden":
            self.rotation = self.rotation or rotation(self.model, self.batches)
            with projected(self.model, self.rotation, value):
                return loss(self.model, self.few)
        heads, neurons = (value, None) if name == "heads" else (None, value)
        with masked(self.model, keep(self.model, self.scores, heads, neurons, self.unit)):
            return loss(self.model, self.few)

    def __call__(self, shape: Shape, kept: list[int], polish: int = 0) -> tuple[PreTrainedModel, Plan]:
        """Slice the hidden size, choose heads and neurons by repair, and refit all that reads the stream as well."""
        wide = keep(self.model, self.scores, shape.heads, shape.neurons, self.unit)
        wide = with_layers(wide, kept, self.model)
        size = None if shape.hidden == Anatomy.of(self.model).hidden else shape.hidden
        how: dict[str, Any] = dict(hidden_size=size, metric=self.metric, polish=polish, progress=False)
        made = repair(self.model, wide, self.batches, True, True, True, **how)
        return made.model, made.plan
