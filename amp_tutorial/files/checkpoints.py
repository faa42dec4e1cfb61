"""Where a checkpoint lies, of which files it consists, whose weights it has, and whether it may be read or written."""

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from . import DATA
from .atomic import expanded, may_read, reason
from .downloads import KNOWN, home, place_of, sha256
from .gguf_files import ENDING, only_one, precision

MODELS = DATA / "models"
EMBEDDED = ("tiny-llama", "tiny-llama-gqa", "tiny-phi")
SUMS, ADAPTER = "SHA256.json", "adapter_config.json"
POINTER = 1000  # bytes; a pointer of git-lfs has some 130
WIDTHS = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "intermediate_size", "vocab_size")
COUNTS = dict.fromkeys(WIDTHS, 10**7) | {
    "num_hidden_layers": 10_000  # more would take gigabytes to say what it needs
}
POSITIVE = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_theta", "max_position_embeddings")
CHECKPOINT = (  # the files that a checkpoint consists of, and that another one may replace
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "*.bpe.model",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt", "tokenizer_config.json")


def located(name: str | Path) -> Path:
    """The folder or GGUF file a name stands for; a hub id is returned as it is, and is neither."""
    name = str(expanded(name)) if str(name).startswith("~") else str(name)
    if not name.strip():
        raise ValueError(
            f"The model's name is empty; give {', '.join(EMBEDDED)}, a local folder, or a hub id owner/name."
        )
    name = name.rstrip("/") or "/"
    if name in EMBEDDED:
        return MODELS / name
    path = place_of(name) if name in KNOWN else Path(name)
    if os.path.isfile(path) and path.suffix != ENDING:
        raise ValueError(f"{name} is a file and no GGUF file; give the folder of the model.")
    may_read(path)
    if os.path.isdir(path) and not (path / "config.json").is_file():
        if (file := only_one(path)) is None:
            raise ValueError(f"{name} {_other_folder(path)}.")
        return file
    there = os.path.isdir(path) or (path.suffix == ENDING and os.path.isfile(path))
    if not there and name not in KNOWN and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise ValueError(
            f"Unknown model {name[:200]!r}: the embedded ones are {', '.join(EMBEDDED)}, and {', '.join(KNOWN)} can be "
            "fetched; otherwise give a local folder, a GGUF file, or a hub id of the form owner/name."
        )
    return path


def _other_folder(path: Path) -> str:
    """What a folder without a configuration is, and what to give in its place."""
    if (path / ADAPTER).is_file():
        return f"holds an adapter alone; {_merge(path)}"
    snapshots = sorted(path.glob("snapshots/*/config.json")) or sorted(path.glob("models--*/snapshots/*/config.json"))
    if snapshots or path.name.startswith("models--") or any(path.glob("models--*")):
        where = f", or a snapshot in it: {snapshots[0].parent}" if snapshots else ""
        return f"is the cache of the hub; give the id of a model, owner/name{where}"
    return "is a folder without config.json, so no model"


def _merge(path: Path) -> str:
    return f"merge it into its model first: amp.save(*amp.merged({str(path)!r}), FOLDER)"


def looked_through(folder: Path) -> Path:
    """The folder, unless it would be loaded as something else or end in a traceback; only small files are read of it.

    A GGUF file, or the id of a model that is not here, is given back as it is.

    Raises:
        ValueError: an adapter beside a model, which some ways of loading attach and others leave; JSON that is broken
            or no object; counts that are none; an index that leads out of the folder; pointers in place of weights.
    """
    if not folder.is_dir():
        return folder
    for path in sorted(folder.iterdir()):
        may_read(path)
        if path.is_file() and path.stat().st_size < POINTER:
            if path.read_bytes().startswith(b"version https://git-lfs"):
                kind = "no weights" if path.suffix == ".safetensors" else "not the file itself"
                raise ValueError(f"{path} is a pointer of git-lfs and {kind}; fetch them there: git lfs pull.")
    if (folder / ADAPTER).is_file():
        raise ValueError(f"{folder} holds {ADAPTER} beside a model; move the adapter away, or {_merge(folder)}.")
    settings = json_object(folder / "config.json")
    if not isinstance(kind := settings.get("model_type", ""), str):
        raise ValueError(f"{folder / 'config.json'} says model_type={kind!r}; it must be one word, such as 'llama'.")
    dtype = settings.get("dtype", settings.get("torch_dtype"))
    if isinstance(dtype, str) and dtype != "auto":
        import torch

        if not hasattr(torch, dtype.removeprefix("torch.")):
            raise ValueError(f"{folder / 'config.json'} says dtype={dtype!r}; it must be float32, float16 or bfloat16.")
    for name in COUNTS:
        value = settings.get(name)
        if isinstance(value, bool | str | float) or (isinstance(value, int) and not 1 <= value <= COUNTS[name]):
            raise ValueError(
                f"{folder / 'config.json'} says {name}={value!r}; it must be a whole number from 1 to {COUNTS[name]:,}."
            )
    for name in POSITIVE:
        value = settings.get(name)
        if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
            raise ValueError(f"{folder / 'config.json'} says {name}={value!r}; it must be a number above 0.")
    for name in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            json_object(folder / name)
    for index in sorted(folder.glob("*.safetensors.index.json")):
        files = json_object(index).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
            raise ValueError(f"{index} has no weight_map from names to files; fetch it again.")
        if outside := [file for file in files.values() if Path(file).name != file]:
            raise ValueError(f"{index} leads to {outside[0]}, out of its folder; weights must lie beside their index.")
    for path in sorted(folder.glob("*.safetensors")):
        if not path.is_file():
            raise ValueError(f"{path} leads to no file; fetch the weights again.")
    return folder


def json_object(path: Path) -> dict[str, Any]:
    """What a file of JSON holds, if that is an object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read as JSON ({reason(error)}); fetch or write it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__} and no object with settings; fetch it again.")
    return found


def understood(config: Any) -> None:
    """Refuse settings that transformers takes into a configuration and can't build a model from.

    Raises:
        ValueError: an activation or a kind of rotary positions that is not known, a dtype that weights cannot have.
            Or a token that pads and has no row.
    """
    import torch
    from transformers.activations import ACT2FN
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if isinstance(getattr(config, "text_config", None), dict):
        raise ValueError(f"text_config in config.json is none of a {config.model_type}; leave it out")
    if getattr(config, "quantization_config", None) == {}:
        raise ValueError("quantization_config in config.json says nothing; leave it out")
    if isinstance(getattr(config, "pad_token_id", None), int) and config.pad_token_id < 0:
        config.pad_token_id = None  # none is meant; torch would take a row from the end of the embedding
    dtype = getattr(torch, config.dtype, None) if isinstance(config.dtype, str) else config.dtype
    if not isinstance(config.dtype, dict | None) and dtype not in (
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    ):
        raise ValueError(f"dtype={str(config.dtype)!r} in config.json is none that weights can have")
    pad, words = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    if pad is not None and words is not None and pad >= words:  # which some families' embeddings allow
        from transformers import AutoModelForCausalLM

        try:
            with torch.device("meta"):
                AutoModelForCausalLM.from_config(config)
        except AssertionError as error:
            raise ValueError(
                f"pad_token_id={pad} in config.json is beyond the {words} tokens of the embedding; set it to null"
            ) from error
    for name in ("hidden_act", "hidden_activation", "activation_function"):
        act = getattr(config, name, None)
        if isinstance(act, str) and act not in ACT2FN:
            raise ValueError(f"{name}={act!r} in config.json is no activation that transformers knows")
    rope = getattr(config, "rope_parameters", None)
    each = [rope, *rope.values()] if isinstance(rope, dict) else []  # one for all layers, or one for each kind of layer
    for kind in (one.get("rope_type") for one in each if isinstance(one, dict)):
        if kind is not None and kind not in {*ROPE_INIT_FUNCTIONS, "default"}:
            raise ValueError(f"rope_type={kind!r} in config.json is no kind of positions that transformers knows")


def said_of(error: BaseException) -> str:
    """Why a model could not be read, in one line: transformers checks by whatever its arithmetic raises."""
    lines = str(error).strip().splitlines()
    if type(error).__name__.startswith("StrictDataclass") and len(lines) > 1:
        said = lines[-1].strip().partition(": ")[2].rstrip(".")
        return f"{said if len(said) <= 200 else said[:199] + '…'} (in config.json; write there what is expected)"
    if isinstance(error, OSError | ValueError):
        return reason(error)
    return f"transformers makes no sense of its files ({type(error).__name__}: {reason(error)})"


def pretrained(where: Path) -> tuple[str, dict[str, str]]:
    """How `from_pretrained` is asked for a model: where it is, and the file if that is a GGUF file.

    Raises:
        ValueError: a GGUF file that holds no whole model.
    """
    if where.suffix == ENDING and where.is_file():
        precision(where)  # refuses it
        return str(where.resolve().parent), {"gguf_file": where.name}
    return (str(where.resolve()) if where.is_dir() else where.as_posix()), {}  # whole, so that `save` knows it anywhere


def tokenizer_source(name: str | Path) -> tuple[str, dict[str, str]]:
    """The same of a tokenizer, which can lie alone, or under a name that is no model's here."""
    try:
        return pretrained(located(name))
    except ValueError:
        return str(name), {}


def tokenizer_of(name: str | Path, rows: int = 0) -> Any:
    """The tokenizer of a model by its name, or by where it was loaded from.

    Args:
        rows: of the embedding of the model that it is wanted for, if known.

    Raises:
        ValueError: there is none, or the model there has another vocabulary.
    """
    from transformers import AutoTokenizer, PreTrainedConfig

    try:
        source, gguf = tokenizer_source(name)
        if rows and not gguf:
            said = PreTrainedConfig.get_config_dict(source)[0]
            size = said.get("vocab_size", said.get("text_config", {}).get("vocab_size", rows))
            if size != rows:
                raise ValueError(f"the model there has {size:,} tokens, and this one was made from one with {rows:,}")
        return AutoTokenizer.from_pretrained(source, **gguf)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # of a broken tokenizer.json anything
        raise ValueError(f"No tokenizer was found in {str(name)!r} ({said_of(error)}); give tokenizer=….") from error


def alike(config: Any, families: Mapping[str, Any]) -> str:
    """The first of these families that lose heads and neurons whose modules' names such a model has; "" if none."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception:  # no decoder, or one that asks for more than its configuration
        return ""
    there = {name for name, _ in model.named_modules()}
    for kind, row in families.items():
        names = (row.query, row.key, row.value, row.output, *row.neurons_in, row.neurons_out)
        if not (row.no_heads or row.no_neurons) and all(f"{row.layers}.0.{name}" in there for name in names):
            return kind
    return ""


def unprunable(config: Any) -> str:
    """Why no model of such a configuration can be pruned: it is no decoder, or quantised; "" if nothing is against."""
    if getattr(config, "is_encoder_decoder", False):
        return f"{getattr(config, 'model_type', '')!r} is an encoder-decoder; only decoders are pruned here."
    if method := getattr(config, "quantization_config", None):
        how = method.get("quant_method") if isinstance(method, dict) else getattr(method, "quant_method", method)
        how = getattr(how, "value", how)
        return f"The checkpoint is quantised ({how}); prune its full-precision original and quantise that."
    return ""


def refused() -> dict[str, str]:
    """Model types of which a configuration cannot say what a cut would leave, and why."""
    found: dict[str, str] = yaml.safe_load((DATA / "families.yaml").read_text(encoding="utf-8"))["refused"]
    return found


def without_row(config: Any, families: Mapping[str, Any]) -> str:
    """What to do about a model whose family none of these rows is of."""
    kind, inner = getattr(config, "model_type", ""), getattr(getattr(config, "text_config", None), "model_type", None)
    if why := refused().get(kind):
        return f"A {kind} can lose neither heads nor neurons: {why}."
    if inner in families:
        way = f"Its text model is of type {inner!r}: load that alone, as amp.load does."
    elif like := alike(config, families):
        way = f"Its layers are named as those of {like}: try amp.FAMILIES[{kind!r}] = amp.FAMILIES[{like!r}]."
    else:
        way = f"Give it one with its modules' names, amp.FAMILIES[{kind!r}] = amp.Family(…): docs/families.md."
    return f"Model type {kind!r} has no row in amp_tutorial.FAMILIES. {way}"


def text_inside(config: Any) -> Any | None:
    """The configuration of a multimodal model's decoder, if transformers has a class for that alone; else None."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as DECODERS
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as WRAPPERS

    text = config.get_text_config(decoder=True)
    if text is config or config.model_type not in WRAPPERS or text.model_type not in DECODERS:
        return None
    if config.is_encoder_decoder or text.is_encoder_decoder:
        return None
    text.architectures = [DECODERS[text.model_type]]
    text.tie_word_embeddings = getattr(config, "tie_word_embeddings", text.tie_word_embeddings)  # what the whole says
    text.dtype = text.dtype or config.dtype
    text.name_or_path = config.name_or_path
    return text


def decoder_config(source: str, stored: Mapping[str, Any], **options: Any) -> Any:
    """The configuration of the decoder in a checkpoint: of all of it, or of a multimodal one its text model's.

    A LLaMA whose heads do not divide its hidden size, which its own class refuses, is a Mistral without a window.

    Args:
        stored: what config.json says.

    Raises:
        ValueError: what transformers refuses; such a LLaMA with biases, which no stock class has.
    """
    from transformers import AutoConfig, MistralConfig

    heads, hidden = stored.get("num_attention_heads"), stored.get("hidden_size")
    if stored.get("model_type") == "llama" and isinstance(heads, int) and isinstance(hidden, int) and hidden % heads:
        if not stored.get("head_dim"):
            raise ValueError(
                f"hidden_size={hidden} is no multiple of num_attention_heads={heads}, and head_dim is not said"
            )
        if heads % (groups := stored.get("num_key_value_heads") or heads):
            raise ValueError(f"num_attention_heads={heads} is no multiple of num_key_value_heads={groups}")
        if stored.get("attention_bias") or stored.get("mlp_bias"):
            raise ValueError(f"its {heads} heads do not divide {hidden}, and no stock class has that with biases")
        as_mistral = dict(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=None)
        return MistralConfig.from_dict({**stored, **as_mistral}, name_or_path=source)
    config = AutoConfig.from_pretrained(source, **options)
    heads, groups = (getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and isinstance(groups, int) and (groups < 1 or heads % groups):
        raise ValueError(f"num_attention_heads={heads} is no multiple of num_key_value_heads={groups}")
    return text_inside(config) or config


def without_code(stored: Mapping[str, Any]) -> None:
    """Refuse a config.json that names code which comes with the model, by a ValueError."""
    if "auto_map" in stored:
        code = ", ".join(sorted({str(value).split("--")[-1] for value in stored["auto_map"].values()}))
        raise ValueError(
            f"it brings code of its own ({code}; auto_map in its config.json), which is never run here, and only "
            "architectures that transformers itself has can be pruned"
        )


def a_decoder(name: str | Path, config: Any) -> None:
    """Refuse a configuration whose class predicts no next token, by a ValueError."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as DECODERS

    named, kind = config.architectures or [], config.model_type
    if named and not {*DECODERS.values()} & {*named}:
        inner = config.get_text_config(decoder=True).model_type
        why = (
            "that predicts a next token" if inner == kind else f"by itself: transformers has no class for {inner} alone"
        )
        raise ValueError(f"{str(name)!r} is a {named[0]} ({kind}), not a decoder {why}; only those are pruned.")


def decoder(name: str | Path, source: str, config: Any, **options: Any) -> Any:
    """The model of `decoder_config` with its weights.

    Raises:
        MismatchError: weights are missing, unexpected, or of another shape.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

    how, kind = dict(use_safetensors=True, output_loading_info=True, **options), config.model_type
    if "gguf_file" not in options:
        asked = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
        stored = PreTrainedConfig.get_config_dict(source, **asked)[0]
        kind = stored.get("model_type", kind)
        pad = stored.get("pad_token_id")
        if kind == config.model_type and isinstance(pad, int) and pad < 0:  # none, as `understood` has it
            how["config"] = config
    if kind == "llama" != config.model_type:
        how["config"] = config
    elif kind != config.model_type and text_inside(AutoConfig.from_pretrained(source, **asked)) is not None:
        return _taken_out(name, source, how)
    return matching(name, lambda: AutoModelForCausalLM.from_pretrained(source, **how))


def _taken_out(name: str | Path, source: str, how: Mapping[str, Any]) -> Any:
    """The text model of a multimodal one, made of the very modules of the whole."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    whole = matching(name, lambda: AutoModelForImageTextToText.from_pretrained(source, **how))
    text = text_inside(whole.config)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(text)
    parts = list(whole.modules())
    if inside := [part for part in parts if type(part) is type(model)]:
        model = inside[0]
    else:
        [part] = [part for part in parts if type(part) is type(model.base_model)]
        setattr(model, model.base_model_prefix, part)
        model.set_output_embeddings(whole.get_output_embeddings())
        model.config = part.config = text  # one object, as its layers look into it
    model.generation_config = whole.generation_config
    warnings.warn(
        f"{name} is a {type(whole).__name__}: its text model is taken out, a {type(model).__name__}; what sees or "
        "hears is left behind.",
        stacklevel=5,
    )
    return model


def made_from(where: Path) -> str | None:
    """What the weights of a folder or GGUF file were, if they were made of something coarser; None if not, as far as
    its configuration says."""
    if where.suffix == ENDING:
        return precision(where)
    path = where / "config.json"
    said = json.loads(path.read_text(encoding="utf-8")).get("made_from") if path.is_file() else None
    return None if said is None else str(said)


def missing(name: str | Path) -> str:
    """What else to do about a model that is not there."""
    return f" Where there is a network, this fetches it: amp-tutorial fetch {name}." if str(name) in KNOWN else ""


def usable(device: Any) -> Any:
    """The device to load on: the one that is said, else the first GPU, else the CPU; a ValueError if it isn't here."""
    import torch

    if device is None or device == "":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        why = re.split(r" device type at start|[.:] ", str(error).splitlines()[0])[0].rstrip(".")
        raise ValueError(f"device={device!r} is not to be had here ({why}); leave it out, or say 'cpu'.") from error
    return device


def readable(folder: Path) -> None:
    """Refuse a model that came with its sums and is damaged, and one in pickles alone, which can run code when read."""
    if folder.parent == MODELS or (folder.parent == home() and (folder / SUMS).is_file()):
        verify(folder)
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} has its weights only as pickles ({pickles[0]}), which are never read here: if you trust them, "
            "convert once with AutoModelForCausalLM.from_pretrained(folder, use_safetensors=False)"
            ".save_pretrained(other), and AutoTokenizer likewise."
        )


def complete(folder: Path) -> None:
    """Refuse a folder that `load` could not load, as far as the heads of its files tell: no weight is read.

    Raises:
        ValueError: what `looked_through` and `readable` refuse; no weights, such as are cut short, or as plainly belong
            to another configuration; no tokenizer.
    """
    readable(looked_through(folder))
    shapes: dict[str, list[int]] = {}
    for index in folder.glob("*.safetensors.index.json"):
        if gone := sorted({*json_object(index)["weight_map"].values()} - {path.name for path in folder.iterdir()}):
            raise ValueError(
                f"{index} names {len(gone)} files that are not there, such as {gone[0]}; fetch them again."
            )
    _generation(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no weights (*.safetensors).")
    for file in files:
        try:
            with safe_open(file, framework="numpy") as stored:
                shapes |= {key: stored.get_slice(key).get_shape() for key in stored.keys()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged or cut short ({reason(error)}); fetch it again.") from error
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ValueError(f"{folder} holds no tokenizer ({', '.join(TOKENIZERS[:2])}, …); put it beside the model.")
    if (folder / TOKENIZERS[0]).is_file():
        json_object(folder / TOKENIZERS[0])
    _alike(folder, shapes)


def _alike(folder: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Compare layers and the embedding with config.json, where these have their usual names; loading compares all."""
    said, how = json_object(folder / "config.json"), "one of the two is another model's"
    numbers = [int(found[1]) for key in shapes if (found := re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", f".{key}"))]
    layers = said.get("num_hidden_layers")
    if isinstance(layers, int) and numbers and max(numbers) + 1 < layers:
        raise ValueError(f"{folder} says num_hidden_layers={layers}, and has the weights of {max(numbers) + 1}: {how}.")
    words, hidden = said.get("vocab_size"), said.get("hidden_size")
    for key, shape in shapes.items():
        if key in ("model.embed_tokens.weight", "transformer.wte.weight") and words and hidden:
            if shape[0] < words or shape[1] != hidden:  # some families add rows
                raise ValueError(f"{folder} says ({words:,}, {hidden:,}), and its embedding is {tuple(shape)}: {how}.")


def verify(folder: Path) -> None:
    """Compare a folder's files with the SHA-256 sums stored beside them.

    Raises:
        ValueError: a file is missing or differs.
    """
    for file, expected in json.loads((folder / SUMS).read_text()).items():
        path = folder / file
        if not path.is_file() or sha256(path) != expected:
            raise ValueError(f"{path} is missing or damaged (SHA-256 differs from {SUMS}); fetch it again.")


class MismatchError(ValueError):
    """The weights are not those that the configuration asks for."""


def matching(name: str | Path, load: Callable[[], tuple[Any, dict[str, Any]]]) -> Any:
    """What a `from_pretrained` with `output_loading_info=True` loads, if it is all and only what it should be.

    Raises:
        MismatchError: weights are missing, unexpected, or of another shape.
    """
    try:
        model, report = load()
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise MismatchError(
            f"The weights of {str(name)!r} do not match its configuration; compare their shapes with head_dim, the "
            "head counts, intermediate_size and vocab_size in config.json."
        ) from error
    wrong = [
        f"{len(names)} {kind.replace('_', ' ')}, such as {min(map(str, names))}"
        for kind, names in report.items()
        if names
    ]
    if wrong:
        raise MismatchError(f"The weights of {str(name)!r} do not match its configuration: {'; '.join(wrong)}.")
    return model


def fingerprint(model: Any) -> str:
    """A cheap hash of a model: its parameters' shapes in order, and the signs of some 256 values of each.

    Rounding keeps signs, so copies in float32, bfloat16 and float16 have the same. Training turns some of them; a
    change that turns none of those looked at goes unseen: it finds mix-ups, not tampering. "" where some weights are
    not in memory.
    """
    return hash_of(model.parameters())


def hash_of(parameters: Iterable[Any]) -> str:
    """`fingerprint` of parameters of which each is looked at once, in turn."""
    digest = hashlib.sha256()
    for parameter in parameters:
        if parameter.is_meta:
            return ""
        values = parameter.detach().flatten()
        signs = values[:: values.numel() // 256 | 1].signbit()  # an odd step meets more than one column
        digest.update(f"{tuple(parameter.shape)}".encode() + signs.cpu().numpy().tobytes())
    return digest.hexdigest()


def check_generation(model: Any) -> None:
    """Refuse a generation configuration that transformers would refuse after the weights are written.

    What has one right answer is mended: a token of the number -1 is none, and a model without such a configuration gets
    the one that transformers derives when it loads a checkpoint that has none.

    Raises:
        ValueError: it contradicts itself, with the reason of transformers; or the model is none (`wrapping`).
    """
    from transformers import GenerationConfig

    if hasattr(model, "forward") and (around := wrapping(model)):
        raise ValueError(around)
    if model.generation_config is None:
        model.generation_config = GenerationConfig.from_model_config(model.config)
    if (model.generation_config.pad_token_id or 0) < 0:
        model.generation_config.pad_token_id = None
    try:
        model.generation_config.validate(strict=True)
    except ValueError as error:
        said = str(error).partition("- ")[2] or str(error)
        how = "set it right in model.generation_config, or in generation_config.json"
        if "do_sample" in said:
            how = "say model.generation_config.do_sample = True, or do_sample: true in generation_config.json"
        raise ValueError(
            f"transformers does not save this model's generation_config: {said.splitlines()[0].rstrip('.')}; {how}."
        ) from error


def _generation(folder: Path) -> Any:
    """The generation settings of a folder, as transformers loads them: without a file of them those in config.json."""
    from transformers import GenerationConfig

    file = folder / "generation_config.json"
    if derived := not file.is_file():
        file = folder / "config.json"
    try:
        return GenerationConfig.from_pretrained(folder, file.name, _from_model_config=derived)
    except Exception as error:  # whatever its checks raise
        raise ValueError(f"transformers does not load {file}: {reason(error)}; set it right there.") from error


def check_saving(name: str | Path) -> None:
    """Refuse a local model whose generation settings could not be saved, before hours of work that end in saving."""
    from types import SimpleNamespace

    if (where := located(name)).is_dir():
        check_generation(SimpleNamespace(generation_config=_generation(where), config=None))


def wrapping(model: Any, measured: bool = False) -> str:
    """What to do with a model that stands around the one to prune, or has another head; "" for a plain one.

    Args:
        measured: it is only run: compiled, or with adapters, it does as well.
    """
    kind = type(model).__name__
    if hasattr(model, "_orig_mod"):
        if measured:
            return wrapping(model._orig_mod, measured)
        return "This model is compiled: give the one inside, model._orig_mod, and compile what comes out."
    if not hasattr(model, "config"):
        inside = "give the one inside, model.module" if hasattr(model, "module") else "load one with amp.load"
        return f"A {kind} is no model of transformers: {inside}."
    if hasattr(model, "merge_and_unload") and not measured:
        return f"A {kind} holds adapters beside the weights; merge them first: model = model.merge_and_unload()."
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        return f"A {kind} does not predict a next token; load it with AutoModelForCausalLM, or by amp.load."
    if hasattr(head, "base_layer") and not measured:
        return f"The output head is a {type(head).__name__}, not a plain nn.Linear; merge adapters first."
    return ""
