"""Train the three embedded models from nothing on the tiny world: `python -m amp_tutorial.tinyworld.train`.

1.2 million tokens a model: a few minutes on one core. Interrupt it when you like: the same command goes on from the
last chunk of documents. Seeded; another number of threads changes the last digits.
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
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Fast

from ..data import padded
from .skills import TASKS, trained
from .stories import WRITERS, Writers, documents, plain

BOS, EOS, PAD = 0, 1, 2
SPECIAL = ["<s>", "</s>", "<pad>"]
TOKENIZER_SEED = 7  # documents the tokenizer is trained on
VALIDATION_SEED = 900_000  # above every training chunk's seed
CHUNK = 10_000  # documents, about half a million tokens; training can be resumed between chunks


# A run of function words is one piece (" is in the"): a key then stands next but one to its value, which should make
# looking from one to the other easier to learn (not measured). Any other word, with its space, is a piece of its own.
FUNCTION = "a an and are at be by for from had has in is it of on one that the their they this to was what where with"
WORDS = rf"( ({FUNCTION.replace(' ', '|')})(?![a-zA-Z]))+| ?[a-zA-Z]+| ?[0-9]| ?[^\sa-zA-Z0-9]+|\s+"


def build_tokenizer(documents_seed: int = TOKENIZER_SEED, vocabulary: int = 1536) -> Fast:
    """Byte-level BPE trained on the world: any text can be encoded, and most of the world's words are one token."""
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(map(plain, documents(20_000, documents_seed)), trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return Fast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=512)


def build_model(name: str, vocabulary: int) -> PreTrainedModel:
    """An untrained model of one of the three architectures: 6 layers, 8 heads of 16 dimensions, hidden size 128."""
    rope = dict(rope_type="default", rope_theta=100.0)
    shape = dict(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=8,
        head_dim=16,
        max_position_embeddings=512,
        # The defaults are made for large models. 0.06 is about 2/3 of 1/sqrt(128); a base of 100 spreads the 8 pairs
        # of a head over distances up to some 50 tokens, the length of a document.
        initializer_range=0.06,
        rope_parameters=rope,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    if name == "tiny-llama":
        return LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=256, tie_word_embeddings=True))
    if name == "tiny-llama-gqa":
        grouped = dict(num_key_value_heads=4, intermediate_size=288, tie_word_embeddings=True)
        return LlamaForCausalLM(LlamaConfig(**shape, **grouped))
    if name == "tiny-phi":
        rope["partial_rotary_factor"] = 0.5
        return PhiForCausalLM(PhiConfig(**shape, intermediate_size=384, resid_pdrop=0.0, embd_pdrop=0.0))
    raise ValueError(f"No recipe for a model called {name!r}; there are {', '.join(NAMES)}.")


NAMES = ("tiny-llama", "tiny-llama-gqa", "tiny-phi")


@dataclass
class Recipe:
    """What a run depends on besides the model's name."""

    tokens: float = 1.2e6  # tokens of training text, padding not counted
    batch_tokens: int = 1024
    muon_lr: float = 0.006  # for the matrices inside the blocks
    adam_lr: float = 6e-3  # for embeddings, norms and biases
    seed: int = 0


@dataclass
class State:
    """Where a run stands; everything needed to go on."""

    chunk: int = 0
    tokens: int = 0
    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """A stretch of the curriculum: which documents are read, and what their unmarked tokens weigh in the loss."""

    until: float  # share of all training tokens at which it ends
    writers: Writers
    context_weight: float


# One stage so far. Binding (owner, chain, yes or no) is not learnt in it: that needs more tokens, and stages that
# weigh answers above the passages before them, whose tokens cannot be foreseen.
CURRICULUM = (Stage(1.0, WRITERS, 1.0),)


def stage(share: float) -> Stage:
    """The stage of the curriculum after this share of the training tokens."""
    return next((s for s in CURRICULUM if share < s.until), CURRICULUM[-1])


@dataclass(frozen=True)
class Batch:
    """Documents of like length, padded on the right; none sees another."""

    ids: Tensor  # (documents, tokens)
    weights: Tensor  # (documents, tokens): what predicting this token counts; 0 for padding and for BOS

    @property
    def tokens(self) -> int:
        return int((self.weights > 0).sum())


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
        )


def loss_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Weighted mean next-token loss in nats; padding stands on the right, where causal attention never looks."""
    logits = model(input_ids=batch.ids[:, :-1]).logits
    loss = F.cross_entropy(logits.transpose(1, 2), batch.ids[:, 1:], reduction="none")
    weights = batch.weights[:, 1:]
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

    The learning rate rises over 100 steps and then falls linearly to zero. The folder ends as a stock Hugging Face
    checkpoint with `curve.json` beside it; while it runs, `resume/` holds weights, optimizer state and progress.
    """
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer()
    model = build_model(name, len(tokenizer))
    model.train()
    optimizers, state = Optimizers(model, recipe), State()
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
            for batch in batches(tokenizer, seed, recipe.batch_tokens, stage(state.tokens / recipe.tokens)):
                if state.tokens >= goal:
                    break
                loss = loss_of(model, batch)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizers.step(min(1.0, state.step / 100) * max(0.0, 1 - state.tokens / recipe.tokens))
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
    (folder / "curve.json").write_text(json.dumps(state.curve) + "\n")
    return state


def point(state: State, losses: list[float]) -> dict[str, float]:
    """One point of the curve: the mean loss of the last 25 steps."""
    recent = losses[-25:]
    return dict(step=state.step, tokens=state.tokens, loss=round(sum(recent) / max(1, len(recent)), 4))


def keep(resume: Path, model: PreTrainedModel, optimizers: Optimizers, state: State) -> None:
    """Write a resumable state; `state.json` is moved into place last, so a kill never leaves half of one."""
    resume.mkdir(parents=True, exist_ok=True)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    save_file(weights, resume / f"model-{state.chunk}.safetensors")
    save_file(optimizers.tensors(), resume / f"optimizer-{state.chunk}.safetensors")
    (resume / "state.tmp").write_text(json.dumps(vars(state)))
    (resume / "state.tmp").replace(resume / "state.json")
    for old in resume.glob("*.safetensors"):
        if not old.stem.endswith(f"-{state.chunk}"):
            old.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=NAMES, help=f"which of {', '.join(NAMES)}; all by default")
    parser.add_argument("--out", type=Path, default=Path("trained"), help="folder that gets one folder per model")
    parser.add_argument("--tokens", type=float, default=Recipe.tokens, help="training tokens per model")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    args = parser.parse_args()
    for name in args.models:
        train(name, args.out / name, Recipe(tokens=args.tokens, seed=args.seed))


if __name__ == "__main__":
    main()
