"""Train the three embedded models from nothing on the tiny world: `python -m amp_tutorial.tinyworld.train`.

24 million tokens a model: some 50 minutes on one core, 35 with --fast, which the shipped models were made with.
Interrupt it when you like: the same command goes on from the last chunk of documents. Seeded; another number of
threads or another processor changes the last digits.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as Fast

from ..files import DATA
from ..files.atomic import write_json
from ..files.batches import padded
from .models import BOS, NAMES, PAD, build_model, build_tokenizer
from .skills import TASKS, trained
from .stories import BINDING, JUDGING, WRITERS, Writers, documents, echo, plain, register

VALIDATION_SEED = 900_000  # above every training chunk's seed
CHUNK = 10_000  # documents, about half a million tokens; training can be resumed between chunks
CURVES = Path("training", "curves.json")  # in the folder of what ships


@dataclass(frozen=True)
class Stage:
    """A stretch of the curriculum: which documents are read, and what their unmarked tokens weigh in the loss."""

    until: float  # share of all training tokens at which it ends
    writers: Writers
    context_weight: float


# Looking things up in a passage is learnt from the simplest form up: copying a row of words, a register of who has
# what, then sentences, then two hops. At first only answers count, for the words before them are chosen at random. To
# judge whether a sentence is true comes last: it needs all of that, and a comparison.
CURRICULUM = (
    Stage(0.08, {echo: 1.0, register: 1.0}, 0.0),
    Stage(4 / 15, BINDING, 0.0),
    Stage(0.50, WRITERS, 0.1),
    Stage(2 / 3, WRITERS, 1.0),
    Stage(0.87, JUDGING, 0.0),
    Stage(1.00, JUDGING, 1.0),
)
FIRST_CYCLE = 2 / 3  # share of the tokens after which the learning rate falls for the second time
ONE_STAGE = (Stage(1.0, WRITERS, 1.0),)  # everything at once, for comparison


@dataclass
class Recipe:
    """What a run depends on besides the model's name."""

    tokens: float = 24e6  # tokens of training text, padding not counted
    batch_tokens: int = 2048
    muon_lr: float = 0.006  # for the matrices inside the blocks
    adam_lr: float = 6e-3  # for embeddings, norms and biases
    seed: int = 0
    curriculum: tuple[Stage, ...] = CURRICULUM
    fast: bool = False  # torch.compile and bfloat16: needs a C++ compiler, pays on a CPU with matrix units

    @property
    def first_cycle(self) -> float:
        """Tokens after which the learning rate has fallen to 0 for the first time."""
        return self.tokens * (FIRST_CYCLE if len(self.curriculum) > 1 else 1)

    def rate(self, tokens: float, step: int) -> float:
        """The learning rate's factor: up over 100 steps, linearly down to 0, and once more from a half."""
        if tokens < self.first_cycle:
            return min(1.0, step / 100) * (1 - tokens / self.first_cycle)
        return 0.5 * max(0.0, self.tokens - tokens) / max(1.0, self.tokens - self.first_cycle)

    def stage(self, tokens: float) -> Stage:
        """The stage of the curriculum after this many tokens."""
        return next((s for s in self.curriculum if tokens < s.until * self.tokens), self.curriculum[-1])


@dataclass
class State:
    """Where a run stands; everything needed to go on."""

    chunk: int = 0
    tokens: int = 0
    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Batch:
    """Documents of like length, padded on the right; none sees another."""

    ids: Tensor  # (documents, tokens)
    weights: Tensor  # (documents, tokens): what predicting this token counts; 0 for padding and for BOS

    tokens: int  # without padding

    def targets(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where something is to be predicted (positions in `ids[:, :-1].flatten()`), what, and what it counts."""
        weights = self.weights[:, 1:].flatten()
        where = weights.nonzero().squeeze(1)
        return where, self.ids[:, 1:].flatten()[where], weights[where]


def encode(tokenizer: Fast, marked: list[str], context_weight: float) -> list[tuple[list[int], list[float]]]:
    """Token ids and loss weights of documents whose answers stand in brackets: 1 for an answer, less for the rest."""
    parts = [re.split(r"( ?\[[^]]*\])", f"{text}</s>") for text in marked]
    flat = tokenizer([plain(part) for document in parts for part in document], add_special_tokens=False)["input_ids"]
    rest, rows = iter(flat), []
    for document in parts:
        ids, weights = [BOS], [0.0]
        for part in document:
            new = next(rest)
            ids += new
            weights += [1.0 if "[" in part else context_weight] * len(new)
        rows.append((ids, weights))
    return rows


def batches(tokenizer: Fast, seed: int, batch_tokens: int, of: Stage = CURRICULUM[-1]) -> Iterator[Batch]:
    """One chunk of documents in batches of at most `batch_tokens`, in random order."""
    rows = encode(tokenizer, list(documents(CHUNK, seed, of.writers)), of.context_weight)
    groups: list[list[tuple[list[int], list[float]]]] = [[]]
    for row in sorted(rows, key=lambda row: len(row[0])):
        if (len(groups[-1]) + 1) * len(row[0]) > batch_tokens:
            groups.append([])
        groups[-1].append(row)
    random.Random(seed).shuffle(groups)
    for group in groups:
        width = max(len(ids) for ids, _ in group)
        yield Batch(
            torch.tensor([ids + [PAD] * (width - len(ids)) for ids, _ in group]),
            torch.tensor([weights + [0.0] * (width - len(weights)) for _, weights in group]),
            sum(len(ids) for ids, _ in group),
        )


def loss_of(model: PreTrainedModel, ids: Tensor, where: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean next-token loss in nats; padding stands on the right, where causal attention never looks.

    The logits are computed only where something is to be predicted: a third of the work in a stage of answers.
    """
    hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state.flatten(0, 1)
    loss = F.cross_entropy(model.lm_head(hidden[where]).float(), labels, reduction="none")
    return (loss * weights).sum() / weights.sum()


@torch.no_grad()
def skills(model: PreTrainedModel, tokenizer: Fast, items: int = 64) -> dict[str, float]:
    """Accuracy per skill on combinations the model is trained on: progress is watched without touching the tests."""
    model.eval()
    result = {}
    for name, skill in TASKS.items():
        rng, right = random.Random(0), 0
        for _ in range(items):
            group = skill(rng, trained)
            i = rng.randrange(len(group.answers))
            ids = tokenizer([f"{group.prompt(i)} {answer}" for answer in group.answers])["input_ids"]
            batch = padded(tokenizer, ids)["input_ids"]
            logits = model(input_ids=batch[:, :-1]).logits
            nll = F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], ignore_index=PAD, reduction="none")
            right += int(nll.sum(1).argmin()) == i
        result[name] = right / items
    model.train()
    return result


class Optimizers:
    """Muon for the matrices of the blocks, AdamW for all else; one learning-rate factor for both."""

    def __init__(self, model: PreTrainedModel, recipe: Recipe) -> None:
        named = list(model.named_parameters())
        inner = [p for n, p in named if p.ndim == 2 and ".layers." in n]
        outer = [p for n, p in named if not (p.ndim == 2 and ".layers." in n)]
        self.pair = [
            torch.optim.Muon(inner, lr=recipe.muon_lr, weight_decay=0.01),
            torch.optim.AdamW(outer, lr=recipe.adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.peak = [recipe.muon_lr, recipe.adam_lr]

    def step(self, factor: float) -> None:
        for optimizer, peak in zip(self.pair, self.peak, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        """The optimizers' state as flat tensors, so that it can be kept without pickle."""
        flat = {}
        for i, optimizer in enumerate(self.pair):
            for j, p in enumerate(optimizer.param_groups[0]["params"]):
                for key, value in optimizer.state[p].items():
                    flat[f"{i}.{j}.{key}"] = torch.as_tensor(value).clone()
        return flat

    def restore(self, flat: dict[str, Tensor]) -> None:
        for name, value in flat.items():
            i, j, key = name.split(".")
            optimizer = self.pair[int(i)]
            optimizer.state[optimizer.param_groups[0]["params"][int(j)]][key] = value


def train(name: str, folder: Path, recipe: Recipe, stop_after: float | None = None) -> State:
    """Train one model to `recipe.tokens` tokens (or `stop_after`) in `folder`, going on from what is there.

    The folder ends as a stock Hugging Face
    checkpoint with `curve.json` beside it; while it runs, `resume/` holds weights, optimizer state and progress.
    """
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer()
    model = build_model(name, len(tokenizer))
    model.train()
    optimizers, state, step_loss = Optimizers(model, recipe), State(), loss_of
    if recipe.fast:
        model.set_attn_implementation("eager")  # in bfloat16 on a CPU the fused attention's backward pass is slow
        step_loss = torch.compile(loss_of, dynamic=True)
    resume = folder / "resume"
    if (resume / "state.json").exists():
        state = State(**json.loads((resume / "state.json").read_text()))
        model.load_state_dict(load_file(resume / f"model-{state.chunk}.safetensors"), strict=False)
        optimizers.restore(load_file(resume / f"optimizer-{state.chunk}.safetensors"))
    goal = min(recipe.tokens, stop_after or recipe.tokens)
    with tqdm(total=int(goal), initial=state.tokens, unit="tok", unit_scale=True, desc=name) as bar:
        while state.tokens < goal:
            losses: list[float] = []
            seed = recipe.seed * 10_000 + state.chunk
            end = min(goal, recipe.first_cycle if state.tokens < recipe.first_cycle else goal)
            for batch in batches(tokenizer, seed, recipe.batch_tokens, recipe.stage(state.tokens)):
                if state.tokens >= end:
                    break
                with torch.autocast("cpu", torch.bfloat16, enabled=recipe.fast):
                    loss = step_loss(model, batch.ids, *batch.targets())
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizers.step(recipe.rate(state.tokens, state.step))
                state.tokens, state.step = state.tokens + batch.tokens, state.step + 1
                losses.append(loss.item())
                bar.update(batch.tokens)
                bar.set_postfix(loss=f"{sum(losses[-20:]) / len(losses[-20:]):.3f}")
                if state.step % 25 == 0:
                    state.curve.append(point(state, losses))
            state.chunk += 1
            state.curve.append(point(state, losses) | skills(model, tokenizer))
            bar.write(f"{name} {state.curve[-1]}")
            keep(resume, model, optimizers, state)
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "curve.json", state.curve, indent=None)
    return state


def curves(data: Path = DATA) -> dict[str, list[dict[str, float]]]:
    """The curves that ship: of each embedded model by its name, and of the run "without stages"."""
    found: dict[str, list[dict[str, float]]] = json.loads((data / CURVES).read_text(encoding="utf-8"))
    return found


def point(state: State, losses: list[float]) -> dict[str, float]:
    """One point of the curve: the mean loss of the last 25 steps."""
    recent = losses[-25:]
    return dict(step=state.step, tokens=state.tokens, loss=round(sum(recent) / max(1, len(recent)), 4))


def keep(resume: Path, model: PreTrainedModel, optimizers: Optimizers, state: State) -> None:
    """Write a resumable state; `state.json` is written last, so a kill never leaves half of one."""
    resume.mkdir(parents=True, exist_ok=True)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    save_file(weights, resume / f"model-{state.chunk}.safetensors")
    save_file(optimizers.tensors(), resume / f"optimizer-{state.chunk}.safetensors")
    write_json(resume / "state.json", vars(state), indent=None)
    for old in resume.glob("*.safetensors"):
        if not old.stem.endswith(f"-{state.chunk}"):
            old.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=NAMES, help=f"which of {', '.join(NAMES)}; all by default")
    parser.add_argument("--out", type=Path, default=Path("trained"), help="folder that gets one folder per model")
    parser.add_argument("--tokens", type=float, default=Recipe.tokens, help="training tokens per model")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--one-stage", action="store_true", help="without the curriculum, for comparison")
    parser.add_argument("--fast", action="store_true", help="compile the model and compute in bfloat16")
    args = parser.parse_args()
    curriculum = ONE_STAGE if args.one_stage else CURRICULUM
    recipe = Recipe(tokens=args.tokens, seed=args.seed, curriculum=curriculum, fast=args.fast)
    for name in args.models:
        train(name, args.out / name, recipe)


if __name__ == "__main__":
    main()
