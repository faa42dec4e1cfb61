"""A smaller vocabulary: tokens that a text never uses go, with their rows of the embedding and of the output head.

What is left computes what the dense model does where the other tokens cannot be said: the same hidden states, and a
softmax over the tokens that stay. The tokenizer is rewritten: it reads that text as before, by new numbers, and any
other text in more and smaller pieces, as it keeps the bytes or letters that everything can be spelt with.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..core.anatomy import Anatomy
from ..core.plans import Plan
from ..core.surgery import VOCABULARY, Cut, Words
from ..files.atomic import write_json
from ..files.batches import words_of
from ..files.checkpoints import wrapping
from ..files.texts import Source, corpus_of, texts

IDS = re.compile(r"_token_ids?$|_token_index$|^force_words_ids$")  # settings that name tokens
SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")  # and those that name what is not said
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
OTHERS = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "added_tokens.json")
ANSWERED = [{"role": role, "content": "."} for role in ("user", "assistant")]


def tokens_in_use(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: Source, least: int = 1, join: str | None = "auto"
) -> list[int]:
    """The tokens to keep for a text: those it uses, and those that anything can be said with.

    With a tokenizer of merges (BPE) also what each of these is merged from, so that the text is still read in the same
    tokens. Kept whatever the text: special and added tokens, those that a chat template writes, bytes (or single
    letters, where there are no bytes), and the tokens that the configurations name.

    Args:
        model: for its configurations, and the size of its embedding; it may be on "meta".
        text: see `texts`: all of it is read.
        least: how often a token must stand in the text to be in use.
        join: what is put between documents, as in `calibration`: they are read both apart and joined so. None: apart
            alone. "auto": as `perplexity` on the corpus joins them, where the text is one.

    Returns:
        Numbers of tokens, ascending: what `plan_with_tokens` and `with_tokens` take.

    Raises:
        ValueError: `least` below 1; what `texts` refuses; a tokenizer that is not of the tokenizers library, or one
            whose pieces begin or end words by a mark of their own.
    """
    if least < 1:
        raise ValueError(f"least={least} must be at least 1: how often a token stands in the text.")
    if around := wrapping(model, measured=True):
        raise ValueError(around)
    rows = words_of(model)
    stored, corpus, documents = _stored(tokenizer), corpus_of(text), texts(text, blank=True)
    if join == "auto":
        join = corpus.join if corpus else None
    each, joined = Counter[int](), Counter[int]()
    for document in documents:
        each.update(tokenizer(document, verbose=False)["input_ids"])
    if join is not None:
        joined.update(tokenizer(join.join(documents), verbose=False)["input_ids"])
    found = {token for counts in (each, joined) for token, count in counts.items() if count >= least}
    if getattr(tokenizer, "chat_template", None):
        for prompt in (False, True):
            with suppress(Exception):  # a template may want another conversation, and say so in ways of its own
                said = tokenizer.apply_chat_template(ANSWERED, tokenize=False, add_generation_prompt=prompt)
                found.update(tokenizer(said, add_special_tokens=False)["input_ids"])
    found |= _always(stored)
    found |= {token for settings in (model.config, model.generation_config) for token in named_by(settings)}
    numbers = _numbers(stored["model"])
    if stored["model"]["type"] == "BPE":
        names = {number: name for name, number in numbers.items()}
        ranks = {pair: rank for rank, pair in enumerate(_merges(stored["model"]))}
        merged = {part for token in found if token in names for part in _made_of(names[token], ranks)}
        found |= {numbers[part] for part in merged if part in numbers}
    return sorted(token for token in found if token < rows)


def smaller_tokenizer(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> PreTrainedTokenizerBase:
    """The tokenizer with these tokens alone, numbered anew in their order; one that was made so is left as it is.

    Args:
        tokenizer: of the dense model; it is not changed.
        tokens: ascending, such as the `tokens` of a plan.

    Raises:
        ValueError: no token, or not ascending; a tokenizer that is not of the tokenizers library, or that needs a token
            which goes.
    """
    if getattr(tokenizer, "kept_tokens", None) == [*tokens]:
        return tokenizer
    if not len(tokens) or [*tokens] != sorted(set(tokens)) or tokens[0] < 0:
        raise ValueError(f"tokens={list(tokens)[:5]}… must name at least one, each once, ascending, from 0.")
    last = max(_numbers(_stored(tokenizer)["model"]).values(), default=0)
    if len(tokenizer) == len(tokens) and tokens[-1] > last:  # a smaller one, saved and loaded again
        return tokenizer
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        stored, places = _stored(tokenizer, Path(folder)), _places(tokens)
        try:
            narrow(stored, places)
        except KeyError as error:
            raise ValueError(
                f"The tokenizer needs token {error}, which goes; keep it, as tokens_in_use does."
            ) from None
        write_json(Path(folder) / "tokenizer.json", stored, indent=None)
        for name in OTHERS:
            (Path(folder) / name).unlink(missing_ok=True)
        smaller: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    smaller.name_or_path, smaller.kept_tokens = tokenizer.name_or_path, [*tokens]  # type: ignore[attr-defined]
    kept = [token for token in tokens if token < len(tokenizer)]
    if smaller.convert_ids_to_tokens(range(len(kept))) != tokenizer.convert_ids_to_tokens(kept):
        raise ValueError(f"A {type(tokenizer).__name__} numbers its tokens in a way that can't be rewritten here.")
    return smaller


def rows_of(model: PreTrainedModel) -> int:
    """Tokens that a model has a row for, whatever its tokenizer knows; a ValueError of what is no plain model."""
    if around := wrapping(model):
        raise ValueError(around)
    return words_of(model)


def token_parameters(model: PreTrainedModel) -> int:
    """Parameters of one token: its row of the embedding, and of the output head with its bias if that is another."""
    own = {id(p): p for module in _ends(model) for p in module.parameters(recurse=False)}
    return sum(p.numel() for p in own.values()) // rows_of(model)


def changed(settings: PreTrainedConfig | GenerationConfig | None, plan: Plan) -> dict[str, Any]:
    """What a configuration says otherwise when only the plan's tokens are left: their number, and those of tokens.

    Raises:
        ValueError: it names a token that goes.
    """
    places, stored = _places(plan.tokens or []), {} if settings is None else settings.to_dict()

    def new(name: str, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [new(name, each) for each in value]
        if value not in places and 0 <= value < plan.of_tokens:
            raise ValueError(f"Token {value} goes, which the model's configuration has as {name}; keep it.")
        return places.get(value)  # None where it names a token that the model never had

    found = {name: new(name, value) for name, value in stored.items() if IDS.search(name) and value is not None}
    for name in SUPPRESSED:
        if value := stored.get(name):  # what goes cannot be said anyway
            words = [word if isinstance(word, list) else [word] for word in value]
            kept = [[places[token] for token in word] for word in words if all(token in places for token in word)]
            found[name] = (kept if isinstance(value[0], list) else [word[0] for word in kept]) or None
    if biased := stored.get("sequence_bias"):
        pairs = biased.items() if isinstance(biased, dict) else biased
        left = [([*word], bias) for word, bias in pairs if all(token in places for token in word)]
        found["sequence_bias"] = [[[places[token] for token in word], bias] for word, bias in left] or None
    return found | ({"vocab_size": len(places)} if "vocab_size" in stored else {})


def named_by(settings: PreTrainedConfig | GenerationConfig | None) -> set[int]:
    """The tokens that a configuration names."""
    todo = [] if settings is None else [value for name, value in settings.to_dict().items() if IDS.search(name)]
    found = set()
    for value in todo:
        if isinstance(value, list | tuple):
            todo += value
        elif value is not None and value >= 0:
            found.add(value)
    return found


def cuts(model: PreTrainedModel, tokens: Sequence[int]) -> dict[str, Cut]:
    """For each tensor with a row for every token: that these rows stay."""
    ends, kept = _ends(model), torch.tensor(tokens)
    named = [(name, module) for name, module in model.named_modules(remove_duplicate=False) if module in ends]
    return {f"{name}.{key}": (0, kept) for name, module in named for key, _ in module.named_parameters(recurse=False)}


def cut_rows(anatomy: Anatomy, plan: Plan, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What stays of these tensors from outside the layers."""
    found = {} if plan.tokens is None else cuts(anatomy.model, plan.tokens)
    return {name: tensor[found[name][1]] if name in found else tensor for name, tensor in tensors.items()}


def shut(model: PreTrainedModel, tokens: Sequence[int]) -> list[RemovableHandle]:
    """Let a model say these tokens alone, and read no other: what `masked` does."""
    gone = torch.ones(rows_of(model), dtype=torch.bool).index_fill_(0, torch.tensor(tokens), False)

    def read(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        _holds(args[0], tokens)

    def say(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = dict(zip(signature(model.forward).parameters, args, strict=False)) | kwargs
        if isinstance(output, tuple):
            raise ValueError("A model that is masked by a plan with tokens gives no tuples; leave return_dict=… out.")
        dense = output.logits
        output.logits = dense.masked_fill(gone.to(dense.device), -torch.inf)
        if given.get("labels") is not None:  # what else is in the loss, such as the routers' part, stays
            number = {"num_items_in_batch": given["num_items_in_batch"]} if "num_items_in_batch" in given else {}
            lost = [
                model.loss_function(logits, given["labels"], len(gone), **number) for logits in (dense, output.logits)
            ]
            output.loss = output.loss - lost[0] + lost[1]
        return output

    embedding: nn.Module = model.get_input_embeddings()  # type: ignore[assignment]
    return [embedding.register_forward_pre_hook(read), model.register_forward_hook(say, with_kwargs=True)]


VOCABULARY[:] = [Words(changed, cuts, shut, smaller_tokenizer)]


def _ends(model: PreTrainedModel) -> list[nn.Module]:
    """The embedding and the output head."""
    return [m for m in (model.get_input_embeddings(), model.get_output_embeddings()) if isinstance(m, nn.Module)]


def _places(tokens: Sequence[int]) -> dict[int, int]:
    return {token: new for new, token in enumerate(tokens)}


def _holds(ids: Tensor, tokens: Sequence[int]) -> None:
    """Refuse text with a token that goes, by a ValueError."""
    there = torch.isin(ids, torch.tensor(tokens, device=ids.device))
    if not there.all():
        raise ValueError(
            f"The text holds token {int(ids[~there][0])}, which the plan takes away: make the plan by tokens_in_use of "
            "all that will be read, or read it by smaller_tokenizer."
        )


# The tokenizer's own file, as the tokenizers library writes it


def _stored(tokenizer: PreTrainedTokenizerBase, folder: Path | None = None) -> dict[str, Any]:
    """What tokenizer.json says."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    file = None if folder is None else folder / "tokenizer.json"
    if backend is None or not hasattr(backend, "to_str") or (file is not None and not file.is_file()):
        raise ValueError(
            f"A {type(tokenizer).__name__} is not of the tokenizers library (it has no tokenizer.json); its vocabulary "
            "cannot be rewritten here."
        )
    stored: dict[str, Any] = json.loads(backend.to_str() if file is None else file.read_text(encoding="utf-8"))
    model = stored["model"]
    if model.get("end_of_word_suffix") or (model["type"] == "BPE" and model.get("continuing_subword_prefix")):
        raise ValueError(
            "This tokenizer marks where words begin or end within its tokens; its vocabulary cannot be rewritten here."
        )
    return stored


def _numbers(model: Mapping[str, Any]) -> dict[str, int]:
    """Each token's number, without those that were added; a Unigram model lists them in their order."""
    vocabulary = model["vocab"]
    return {piece: n for n, (piece, _) in enumerate(vocabulary)} if isinstance(vocabulary, list) else vocabulary


def _always(stored: Mapping[str, Any]) -> set[int]:
    """Tokens that stay whatever the text is: added ones, the unknown one, and what anything can be spelt with."""
    model, numbers = stored["model"], _numbers(stored["model"])
    found = {token["id"] for token in stored["added_tokens"]}
    unknown = model["unk_id"] if "unk_id" in model else numbers.get(model.get("unk_token") or "")
    found |= set() if unknown is None else {unknown}
    spelt = {name for name in numbers if len(name.removeprefix("##")) == 1}
    if '"ByteLevel"' in json.dumps([stored["pre_tokenizer"], stored["decoder"]]):
        spelt = set(ByteLevel.alphabet())
    elif model.get("byte_fallback"):
        spelt = {name for name in numbers if BYTE.fullmatch(name)}
    elif model["type"] == "WordLevel":
        spelt = set()
    return found | {numbers[name] for name in spelt if name in numbers}


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pairs that are merged, first ones first; older files have each as one string."""
    return [tuple(pair if isinstance(pair, list) else pair.split(" ")) for pair in model["merges"]]


def _made_of(token: str, ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """All that a token is merged from, letter by letter, in the order in which its tokenizer merges."""
    pieces, found = list(token), set(token)
    while len(pieces) > 1 and not BYTE.fullmatch(token):
        rank, at = min(
            (ranks.get(pair, len(ranks)), at) for at, pair in enumerate(zip(pieces, pieces[1:], strict=False))
        )
        if rank == len(ranks):
            break
        pieces[at : at + 2] = ["".join(pieces[at : at + 2])]
        found.add(pieces[at])
    return found


def narrow(stored: dict[str, Any], places: Mapping[int, int]) -> None:
    """Leave in a tokenizer's file what stays; a KeyError if something else names a token that goes."""
    model, numbers = stored["model"], _numbers(stored["model"])
    kept = {name: places[number] for name, number in numbers.items() if number in places}
    if isinstance(model["vocab"], list):
        model["vocab"] = [piece for number, piece in enumerate(model["vocab"]) if number in places]
        if model.get("unk_id") is not None:
            model["unk_id"] = places[model["unk_id"]]
    else:
        model["vocab"] = kept
        if model.get("unk_token") and model["unk_token"] not in kept:
            raise KeyError(model["unk_token"])
    if model["type"] == "BPE":
        model["merges"] = [[a, b] for a, b in _merges(model) if {a, b, a + b} <= kept.keys()]
    stored["added_tokens"] = [
        token | {"id": places[token["id"]]} for token in stored["added_tokens"] if token["id"] in places
    ]
    if stored.get("padding"):
        stored["padding"]["pad_id"] = places[stored["padding"]["pad_id"]]
    todo = [stored["post_processor"]] if stored.get("post_processor") else []
    for processor in todo:
        todo += processor.get("processors", [])
        for special in processor.get("special_tokens", {}).values():
            special["ids"] = [places[number] for number in special["ids"]]
        for name in ("cls", "sep"):
            if name in processor:
                processor[name] = [processor[name][0], places[processor[name][1]]]
