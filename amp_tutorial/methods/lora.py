"""Recovery fine-tuning: a low-rank adapter (LoRA) is trained on the pruned model and merged back into it."""

import copy
import random
import tempfile
import time
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from ..core.anatomy import Anatomy
from ..core.checkpoint import load
from ..core.sums import positions_of
from ..files.arguments import misfit
from ..files.atomic import expanded, reason
from ..files.batches import known_ids, padded, words_of
from ..files.checkpoints import ADAPTER, json_object, wrapping
from ..files.texts import Source, pairs, said
from .layerwise import weights_change

IGNORE = -100  # label of a position that is not trained on


@dataclass(frozen=True)
class RecoveryConfig:
    """How to train. Defaults are those of AMP's official code.

    Raises:
        ValueError: a number out of range, or an unknown kind of loss.
    """

    samples: int | None = 512  # rows drawn by the seed; None takes all
    epochs: int = 2
    loss: str = "responses"  # train on responses only; "text": on prompt and response
    seed: int = 0
    rank: int = 8
    alpha: float = 16
    dropout: float = 0.05
    learning_rate: float = 3e-4
    batch_size: int = 16  # rows of a step
    length: int = 512  # tokens at most; a longer response is cut, a longer text without a prompt becomes several rows
    rows_at_once: int | None = None  # of a step, how many are in memory at a time; None: all of them

    def __post_init__(self) -> None:
        if wrong := misfit(self):
            raise ValueError(f"{wrong}.")
        least = dict(epochs=1, rank=1, alpha=1, batch_size=1, length=2)
        given = {name: getattr(self, name) for name in least}
        given |= {name: value for name in ("samples", "rows_at_once") if (value := getattr(self, name)) is not None}
        for name, value in given.items():
            if value < least.get(name, 1):
                raise ValueError(f"{name}={value} must be at least {least.get(name, 1)}.")
        if self.loss not in ("responses", "text"):
            raise ValueError(f"loss={self.loss!r} must be 'responses' or 'text'.")
        if not (0 < self.learning_rate < float("inf") and 0 <= self.dropout < 1):
            raise ValueError(
                f"learning_rate={self.learning_rate} must be more than 0 and finite, and dropout={self.dropout} from 0 "
                "to below 1."
            )


@dataclass(frozen=True)
class Recovery:
    """A recovered model and how it got there."""

    model: PreTrainedModel  # adapter merged: a stock model again
    history: list[dict[str, float]]  # step, loss in nats per trained token
    trainable: int  # parameters of the adapter
    tokens: int  # labels that bear a loss, all epochs together; a row's first token, which nothing predicts, does not
    seconds: float


def recover(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: Source = "tinyworld",
    config: RecoveryConfig | None = None,
    progress: bool = True,
) -> Recovery:
    """Fine-tune a copy of `model` with LoRA on all projections of its blocks, and merge the adapter.

    It differs from AMP's official code in one thing on purpose: prompt and response share one BOS (there a second BOS
    becomes the first label). Rows in memory at a time change rounding and what dropout draws, and nothing else: the
    loss of a step is the mean over all labels of all its rows. Under `torch.autocast` products are of its dtype, and
    what is trained and summed stays float32.

    Args:
        source: "tinyworld", or as in `files.texts.texts` rows with a `prompt` and a `response`, or with a `text` alone.
        config: how to train; by default as in AMP's official code.
        progress: show a bar over steps.

    Raises:
        ValueError: no rows, or no row whose prompt leaves room for a response; a loss that is not finite; or
            `torch.inference_mode`, in which nothing can be learned.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("Nothing is learned under torch.inference_mode; leave it for recovery.")
    if around := wrapping(model):
        raise ValueError(around)
    c = config or RecoveryConfig()
    rows = pairs(source)
    rng = random.Random(c.seed)
    rows = rng.sample(rows, min(c.samples or len(rows), len(rows)))
    length = min(c.length, positions_of(model) or c.length)  # no row is longer than what the model has positions for
    examples = [row for prompt, response in rows for row in encode(tokenizer, prompt, response, c.loss, length)]
    if not examples:
        raise ValueError(
            f"Every prompt in {said(source)} fills length={length} tokens; raise length to reach a response."
        )
    examples = rng.sample(examples, min(c.samples or len(examples), len(examples)))
    known_ids((ids for ids, _ in examples), words_of(model))
    with seeded(model, c.seed), weights_change(), torch.enable_grad():
        tuned = adapted(model, c.rank, c.alpha, c.dropout)
        trainable = [p for p in tuned.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=c.learning_rate, weight_decay=0.0)
        order = [i for _ in range(c.epochs) for i in rng.sample(range(len(examples)), len(examples))]
        steps = [order[i : i + c.batch_size] for i in range(0, len(order), c.batch_size)]
        warmup = max(1, min(100, len(steps) // 10))
        history, tokens, started = [], 0, time.perf_counter()
        device = next(model.parameters()).device
        tuned.train()
        for step, chosen in enumerate(tqdm(steps, desc="recovery", disable=not progress, leave=False)):
            at_once, value = c.rows_at_once or len(chosen), 0.0
            counted = sum(label != IGNORE for i in chosen for label in examples[i][1][1:])
            for start in range(0, len(chosen), at_once):
                batch = _batch(tokenizer, [examples[i] for i in chosen[start : start + at_once]], device)
                part = summed_loss(tuned, **batch) / counted
                if not part.isfinite():
                    raise ValueError(f"The recovery loss is {part.item()} at step {step}; lower learning_rate.")
                part.backward()
                value += part.item()
                tokens += int((batch["labels"][:, 1:] != IGNORE).sum())  # nothing comes before the first
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = c.learning_rate * min((step + 1) / warmup, 1.0) * (1 - step / len(steps))
            optimizer.step()
            optimizer.zero_grad()
            history.append({"step": float(step), "loss": value})
    return Recovery(_whole(tuned), history, sum(p.numel() for p in trainable), tokens, time.perf_counter() - started)


@contextmanager
def seeded(model: torch.nn.Module, seed: int) -> Iterator[None]:
    """While it lasts, torch draws by this seed on the CPU and the model's devices; then the caller's numbers go on.

    PEFT's first weights and every dropout draw from torch's global generators and take no other.
    """
    devices = {p.device for p in model.parameters()}
    gpus = sorted({device.index for device in devices if device.type == "cuda"})
    on_apple = any(device.type == "mps" for device in devices)
    apples = torch.mps.get_rng_state() if on_apple else None
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            torch.cuda.default_generators[gpu].manual_seed(seed)
        if on_apple:
            torch.mps.manual_seed(seed)
        try:
            yield
        finally:
            if apples is not None:
                torch.mps.set_rng_state(apples)


def adapted(model: PreTrainedModel, rank: int = 8, alpha: float = 16, dropout: float = 0.05) -> PeftModel:
    """A copy of the model with adapters, which alone are trained, on every linear map of its blocks.

    Packed experts have none. Where peft takes what stands beside them for theirs (a shared expert), only attention has.
    """
    family = Anatomy.of(model).family
    inside = model.get_submodule(family.layers).named_modules(prefix=family.layers)
    # Falcon's linear map is a class of its own; a router, which can be one as well, answers more than a product.
    maps = (torch.nn.Linear, Conv1D)
    linear = {name for name, m in inside if isinstance(m, maps) and not type(m).__name__.endswith("Router")}
    if not family.no_neurons:
        linear = {name.rsplit(".", 1)[-1] for name in linear}

    def on(names: Collection[str]) -> PeftModel:
        adapter = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # a factor
            lora_dropout=dropout,
            target_modules=sorted(names),
            task_type="CAUSAL_LM",
        )
        with warnings.catch_warnings(
            action="ignore", category=FutureWarning
        ):  # peft asks for what transformers renamed
            tuned: PeftModel = get_peft_model(copy.deepcopy(model), adapter)
        return tuned

    try:
        return on(linear)
    except ValueError:
        if not family.no_neurons:
            raise
        return on({name for name in linear if name.endswith((family.query, family.key, family.value, family.output))})


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str, response: str, loss: str, length: int
) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of one row: one BOS, prompt, response, EOS; prompt labels are ignored for "responses".

    A text without a prompt is cut into as many pieces as it needs; a prompt that leaves no room for a label gives none.
    """
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    # The space goes with the response, as in running text: byte-level tokens begin with their space.
    first = bos + (tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else [])
    second = tokenizer(f" {response}" if prompt else response, add_special_tokens=False)["input_ids"] + eos
    room = length - len(first)
    if room < 1:
        return []
    pieces = [second[:room]] if prompt else [second[i : i + room] for i in range(0, len(second), room)]
    shown = [IGNORE] * len(first) if loss == "responses" else first
    return [(first + piece, shown + piece) for piece in pieces]


def _batch(
    tokenizer: PreTrainedTokenizerBase, rows: list[tuple[list[int], list[int]]], device: torch.device
) -> dict[str, Tensor]:
    batch = padded(tokenizer, [ids for ids, _ in rows])
    width = batch["input_ids"].shape[1]
    batch["labels"] = torch.tensor([labels + [IGNORE] * (width - len(labels)) for _, labels in rows])
    return {key: value.to(device) for key, value in batch.items()}


def summed_loss(
    model: torch.nn.Module,
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Int[Tensor, "rows length"] | None,
    labels: Int[Tensor, "rows length"],
) -> Float[Tensor, ""]:
    """Sum of the next-token losses over the labels that count, in nats."""
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum"
    )


def merged(
    folder: str | Path, base: str | Path | None = None, device: str | int | torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with the adapter of a PEFT folder merged into it, a stock model again, and its tokenizer.

        amp.save(*amp.merged("my-adapter"), "merged")

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`; the model may lie beside them.
        base: the model that the adapter belongs to, as `load` takes it; by default the one beside it, else the one that
            the adapter names.
        device: as in `load`.

    Raises:
        ValueError: no adapter there, or one in pickles alone; one that is not for this model; what `load` refuses.
    """
    path = expanded(folder)
    if not (path / ADAPTER).is_file() or not (path / "adapter_model.safetensors").is_file():
        raise ValueError(f"{folder} holds no adapter: {ADAPTER} and adapter_model.safetensors are needed.")
    with tempfile.TemporaryDirectory() as apart:
        if base is None and (path / "config.json").is_file():
            for file in path.iterdir():  # the model without its adapter
                if not file.name.startswith("adapter_"):
                    (Path(apart) / file.name).symlink_to(file.resolve())
            model, tokenizer = load(apart, device)
            model.name_or_path = tokenizer.name_or_path = str(path.resolve())  # what `save` may not overwrite
        else:
            named = base or json_object(path / ADAPTER).get("base_model_name_or_path")
            if not named:
                raise ValueError(f"The adapter in {folder} does not say whose it is; give base=….")
            model, tokenizer = load(named, device)
        try:
            with warnings.catch_warnings(action="error", category=UserWarning):  # of weights that were not found
                warnings.simplefilter("ignore", FutureWarning)
                tuned = PeftModel.from_pretrained(model, path)
        except (ValueError, RuntimeError, KeyError, UserWarning) as error:
            raise ValueError(f"The adapter in {folder} is not for {model.name_or_path}: {reason(error)}.") from error
    with safe_open(path / "adapter_model.safetensors", framework="pt") as stored:
        taken = get_peft_model_state_dict(tuned, save_embedding_layers=True)  # "auto" would ask the hub
        if strays := sorted(set(stored.keys()) - taken.keys()):
            raise ValueError(
                f"The adapter in {folder} is not for {model.name_or_path}: {len(strays)} of its tensors have no place "
                f"there, such as {strays[0]}."
            )
    return _whole(tuned), tokenizer


def _whole(tuned: PeftModel) -> PreTrainedModel:
    """The stock model with its adapter merged into it; all of it can be trained again."""
    if not hasattr(tuned.base_model, "merge_and_unload"):
        kind = type(tuned.active_peft_config).__name__.removesuffix("Config")
        raise ValueError(f"An adapter of the kind {kind} can't be merged: it is no part of the weights. LoRA's can.")
    whole: PreTrainedModel = tuned.merge_and_unload().eval()
    return whole.requires_grad_(True)
