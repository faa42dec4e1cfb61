"""One budget over hidden size, heads, neurons and layers: of all shapes that meet it, find the one that loses least.

All dimensions but one are walked through; the last one (neurons, if they may go) is solved for, the largest that meets
the target (`shapes.py`). So a candidate never removes less than asked. Candidates are made by repair (`refit.py`) from
calibration text, and judged by the next-token loss on its last quarter, which makes none of them. Validation and test
text play no part. The search is a coordinate search, and its cost, the number of candidates, is stated beforehand.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..core.anatomy import Anatomy
from ..core.plans import Plan, a_ratio, keep
from ..core.scores import score
from ..core.sums import Batch, evaluating, model_inputs
from ..core.surgery import Pruned
from .depth_and_width import with_layers
from .layers import rank_layers
from .repair import repair
from .shapes import CUT, OF, Shape, Shapes

LINE = 8  # candidates along one dimension at most


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
    batches: Sequence[Batch],
    pruning_ratio: float = 0.3,
    of: str = "parameters",
    cut: Sequence[str] = ("heads", "neurons", "layers"),
    trials: int = 24,
    seed: int = 0,
    progress: bool = True,
    length: int = 128,
) -> Pruned:
    """Find the mix of hidden size, layers, heads and neurons that loses least at a budget, and make it.

    Candidates evenly spaced along each dimension, the others as whole as the target lets them be; then the neighbours
    of the best, until none is better or the trials are spent. Each is repaired on all batches but the last quarter, and
    judged on that quarter. Layers go in the order of a greedy search by perplexity (SLEB), on the same batches as the
    repair. The best shape, with the layers it was judged with, is made again from all batches.

    Cost: `trials` + 1 times repair, and where layers go for each that does a pass with every other one skipped.

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

    Raises:
        ValueError: an unknown name, nothing to cut, a share outside (0, 1), no trials, too little text, a family whose
            hidden size cannot be sliced, or a target that no shape reaches.
    """
    if isinstance(cut, str) or not cut:
        raise ValueError(f"cut={cut!r} must be a list of what may go: some of {', '.join(CUT)}.")
    for name, given, known in (("of", [of], OF), ("cut", cut, CUT)):
        if wrong := [value for value in given if value not in known]:
            raise ValueError(f"{name}={wrong[0]!r} is unknown; choose from {', '.join(known)}.")
    a_ratio(pruning_ratio)
    if trials < 1:
        raise ValueError(f"trials={trials} must be at least 1: that many candidates are made and judged.")
    if len(batches) < 2:
        raise ValueError(f"fit_budget keeps a batch apart to judge by; {len(batches)} given, give at least two.")
    apart = max(1, len(batches) // 4)
    if not all(any(_followed(batch).any() for batch in part) for part in (batches[:-apart], batches[-apart:])):
        raise ValueError("The batches to make candidates from, or the last quarter to judge them by, hold no text.")
    shapes = Shapes(model, pruning_ratio, of, cut, length, seed)
    make = _Maker(model, batches[:-apart], shapes.unit)
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

        best = _search(shapes, judge, trials)
    again, carried = _Maker(model, batches, shapes.unit)(best, make.kept(best.layers))
    report = Search(best, done[best].amount, done[best].loss, of, list(done.values()))
    return Pruned(again, carried, report)


@torch.no_grad()
def loss(model: PreTrainedModel, batches: Iterable[Batch]) -> float:
    """Mean next-token loss in nats over the real tokens of batches that follow a real token."""
    total, tokens = 0.0, 0
    with evaluating(model):
        for batch in batches:
            inputs = model_inputs(model, batch)
            ids, logits = inputs["input_ids"], model(**inputs).logits
            real = _followed(batch).to(ids.device)
            total += float(F.cross_entropy(logits[:, :-1][real].float(), ids[:, 1:][real], reduction="sum"))
            tokens += int(real.sum())
    return total / tokens


def _followed(batch: Batch) -> torch.Tensor:
    mask = batch["attention_mask"].bool()
    return mask[:, :-1] & mask[:, 1:]


def _search(shapes: Shapes, judge: Callable[[Shape], float], trials: int) -> Shape:
    """The shape with the least loss, of so many at most."""
    losses: dict[Shape, float] = {}

    def best() -> Shape:
        return min(losses, key=lambda shape: losses[shape])

    def better(shape: Shape | None) -> bool:
        """Judge a shape, unless it was or the trials are spent; whether it is the best now."""
        if shape is None or shape in losses or len(losses) == trials:
            return False
        losses[shape] = judge(shape)
        return best() == shape

    count = max(2, min(LINE, trials // (len(shapes.walked) + 1)))  # leaves a share for the neighbours of the best
    for name in shapes.walked or [shapes.solved]:
        line = shapes.start(name)
        few = min(count, len(line))
        for i in range(few):
            better(line[round(i * (len(line) - 1) / max(1, few - 1))])
    moves = sorted(product((0, -1, 1), repeat=len(shapes.walked)), key=lambda move: sum(map(abs, move)))[1:]
    moving = True
    while moving and len(losses) < trials:
        center, moving = best(), False
        for move in moves:
            near = shapes.step(center, dict(zip(shapes.walked, move, strict=True)))
            if near and len(losses) < trials and better(shapes.largest(near)):
                moving = True
                break
    return best()


class _Maker:
    """Makes a model of any shape from one set of batches, which it scores once."""

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch], unit: str) -> None:
        self.model, self.batches, self.unit = model, batches, unit
        self.scores = score(model, batches, "amp")
        self.left = [list(range(Anatomy.of(model).layers))]  # layers that stay when 0, 1, … go

    def kept(self, count: int) -> list[int]:
        """The layers that stay when those go, one after the other, without which perplexity is least."""
        while len(self.left[-1]) > count:
            ranks = rank_layers(self.model, self.batches, "perplexity", layers=self.left[-1], spare=(0, 0))
            self.left.append([i for i in ranks if i != min(ranks, key=lambda i: ranks[i])])
        return self.left[len(self.left[0]) - count]

    def __call__(self, shape: Shape, kept: list[int]) -> tuple[PreTrainedModel, Plan]:
        """Slice the hidden size, choose heads and neurons by repair, and refit all that reads the stream as well."""
        wide = keep(self.model, self.scores, shape.heads, shape.neurons, self.unit)
        wide = with_layers(wide, kept, self.model)
        size = None if shape.hidden == Anatomy.of(self.model).hidden else shape.hidden
        made = repair(
            self.model, wide, self.batches, reselect=True, refit_inputs=True, hidden_size=size, progress=False
        )
        return made.model, made.plan
