"""Bad input: one clear sentence, before any work, and nothing written."""

import copy
import inspect
import json
import math
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import peft
import pytest
import torch
from helpers import PLAIN, TEXT, Shape, batch, byte_tokenizer, equal, hooks, prompts, some_plan, tiny, weights
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

import amp_tutorial as amp
from amp_tutorial.cli import main as amp_tutorial
from amp_tutorial.files import checkpoints
from amp_tutorial.files.arguments import fits, look
from amp_tutorial.measure import tasks
from amp_tutorial.methods.depth_and_width import planned

TOKENIZER = byte_tokenizer()


class WorkError(Exception):
    """A model was run although the input was bad."""


def idle(shape: Shape = PLAIN) -> PreTrainedModel:
    """A model that must not be run."""

    def refuse(*_: object) -> None:
        raise WorkError

    model = tiny(shape)
    model.get_input_embeddings().register_forward_pre_hook(refuse)
    return model


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: whatever the package writes by accident is written here."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def as_users_run_it() -> Iterator[None]:
    """Without the annotations that only tests execute: they would speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def refused(folder: Path, words: str, call: Callable[[], object]) -> None:
    """The call raises one sentence with these words, and the folder stays as it is."""
    before = contents(folder)
    with pytest.raises(ValueError, match=words) as caught:
        call()
    said = str(caught.value)
    assert len(said) < 400 and "\n" not in said and said[-1] == ".", said
    assert contents(folder) == before


def scores(model: PreTrainedModel) -> amp.Scores:
    return amp.score(model, [], "random")


BATCHES = [batch(prompts())]
NOWHERE = "no-such-model"


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("Unknown model 'no-such-model': the embedded ones are tiny-llama", lambda: amp.load(NOWHERE)),
        ("Unknown model './no/such'", lambda: amp.load("./no/such")),
        ("Could not load 'nobody/nothing'", lambda: amp.load("nobody/nothing")),
        ("Unknown criterion 'best'; choose from amp", lambda: amp.score(idle(), BATCHES, "best")),
        ("Unknown average 'median'; choose 'tokens'", lambda: amp.score(idle(), BATCHES, average="median")),
        ("hold no tokens", lambda: amp.score(tiny(), [])),
        (
            "Unknown task 'tiny_tol'; the nearest are tiny_tool",
            lambda: amp.accuracy(idle(), TOKENIZER, ["tiny_tol"]),
        ),
        (
            "'answers' must be 'responses' or 'text'",
            lambda: amp.recover(idle(), TOKENIZER, config=amp.RecoveryConfig(loss="answers")),
        ),
        (
            "fills length=4 tokens; raise length",
            lambda: amp.recover(idle(), TOKENIZER, config=amp.RecoveryConfig(length=4)),
        ),
        ("No text source 'missing.txt'", lambda: amp.calibration(TOKENIZER, "missing.txt")),
        ("No text source 'missing.jsonl'", lambda: amp.recover(idle(), TOKENIZER, "missing.jsonl")),
        ("No text source 'missing.txt'", lambda: amp.perplexity(idle(), TOKENIZER, "missing.txt")),
        ("holds no text", lambda: amp.calibration(TOKENIZER, ["", "  "])),
        ("less than one window of 128", lambda: amp.calibration(TOKENIZER, ["A short text."])),
        ("less than one window of 256", lambda: amp.perplexity(idle(), TOKENIZER, ["A short text."])),
        ("stride of 1 to 30, not 31", lambda: amp.perplexity(idle(), TOKENIZER, [TEXT], window=31, stride=31)),
        ("length >= 2", lambda: amp.calibration(TOKENIZER, length=1)),
        ("samples=0", lambda: amp.calibration(TOKENIZER, samples=0)),
        ("batch_size=0", lambda: amp.calibration(TOKENIZER, batch_size=0)),
        ("batch_size=0 must be at least 1", lambda: amp.perplexity(idle(), TOKENIZER, [TEXT], window=31, batch_size=0)),
        ("limit=-1 must be at least 1", lambda: amp.perplexity(idle(), TOKENIZER, [TEXT], window=31, limit=-1)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused(words: str, call: Callable[[], object], here: Path) -> None:
    refused(here, words, call)


IDS, MASK = BATCHES[0]["input_ids"], BATCHES[0]["attention_mask"]
ENTRIES: dict[str, Callable[[PreTrainedModel, Any], object]] = {
    "score": lambda model, given: amp.score(model, given),
    "score_many": lambda model, given: amp.score_many(model, given, ("amp", "taylor")),
    "repair": lambda model, given: amp.repair(model, amp.plan(model, scores(model), neurons=8), given, progress=False),
    "fit_budget": lambda model, given: amp.fit_budget(model, given, trials=1, progress=False),
    "rank_layers": lambda model, given: amp.rank_layers(model, given, "influence"),
    "drop_layers": lambda model, given: amp.drop_layers(model, given, 1, "influence", progress=False),
    "rotation": lambda model, given: amp.rotation(model, given),
    "output_metric": lambda model, given: amp.output_metric(model, given),
    "shots": lambda model, given: amp.prune_in_shots(model, TOKENIZER, given, neurons=8, shots=2),
}


@pytest.mark.parametrize(
    ("words", "bad"),
    [
        ("A batch has no attention_mask: give a list of mappings", {"input_ids": IDS}),
        ("A batch has no input_ids: give a list of mappings", {"attention_mask": MASK}),
        ("A batch is a Tensor: give a list", IDS),
        ("A batch is a tuple: give a list", (IDS, MASK)),
        ("input_ids of a batch are a list, not", {"input_ids": IDS.tolist(), "attention_mask": MASK.tolist()}),
        ("input_ids of a batch are a ndarray, not", {"input_ids": IDS.numpy(), "attention_mask": MASK}),
        (r"has input_ids \(.*\) and attention_mask \(", {"input_ids": IDS, "attention_mask": MASK[:, 1:]}),
        ("has input_ids", {"input_ids": IDS[0], "attention_mask": MASK[0]}),
        ("input_ids of a batch are torch.float32: token ids", {"input_ids": IDS.float(), "attention_mask": MASK}),
        ("holds 2; it must be 1 for a token", {"input_ids": IDS, "attention_mask": MASK.cumsum(1).clamp(max=2)}),
        ("holds -1e\\+09; it must be", {"input_ids": IDS, "attention_mask": (1 - MASK) * -(10**9) + -(10**9) * MASK}),
        ("the token id 1,000,000, and", {"input_ids": IDS.clone().fill_(10**6), "attention_mask": MASK}),
        ("the token id -100, and", {"input_ids": IDS.clone().fill_(-100), "attention_mask": MASK}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.usefixtures("as_users_run_it")
def test_a_batch_that_would_be_read_as_something_else_is_refused(entry: str, words: str, bad: Any, here: Path) -> None:
    """Before any work, wherever in the list it stands."""
    refused(here, words, lambda: ENTRIES[entry](idle(), [*BATCHES, *BATCHES, bad]))


@pytest.mark.parametrize("entry", ENTRIES)
def test_one_batch_in_the_place_of_a_list_is_refused(entry: str, here: Path, as_users_run_it: None) -> None:
    refused(here, "A batch is the word 'input_ids', as if one batch", lambda: ENTRIES[entry](idle(), BATCHES[0]))


@pytest.mark.parametrize("entry", [name for name in ENTRIES if name != "shots"])
def test_batches_that_are_read_twice_may_come_as_a_stream(entry: str) -> None:
    """They are held; shots would have to hold them between what the caller does, so there a list is asked for."""
    given = [batch(prompts()) for _ in range(4)]
    made = [ENTRIES[entry](tiny(), stream) for stream in (iter(given), given)]
    if isinstance(made[0], amp.Pruned):
        made = [weights(pruned.model) for pruned in made if isinstance(pruned, amp.Pruned)]
        assert equal(*made)  # type: ignore[arg-type]
    elif entry == "score":
        first, second = made
        assert all(torch.equal(*pair) for pair in zip(first.neurons, second.neurons, strict=True))  # type: ignore[attr-defined]


def test_rows_longer_than_learned_positions_are_refused(here: Path) -> None:
    for family in ("gpt2", "opt"):
        model = tiny(Shape(family, tied=True))
        most = model.config.max_position_embeddings
        ids = torch.ones(1, most + 1, dtype=torch.long)
        long = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
        refused(here, f"longer than the model's {most:,} learned positions", lambda: amp.score(model, long))  # noqa: B023
        assert amp.score(model, [{name: rows[:, 1:] for name, rows in long[0].items()}]).tokens == most
        asked = dict(window=most + 1)
        refused(here, f"this model's {most:,} learned", lambda: amp.perplexity(model, TOKENIZER, [TEXT], **asked))  # noqa: B023


class Around(torch.nn.Module):
    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


def test_a_model_in_a_wrapper_is_refused_with_how_to_take_it_out(here: Path, as_users_run_it: None) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForSequenceClassification, LlamaModel

    plain = tiny()
    config = copy.deepcopy(plain.config)
    config.pad_token_id = 0
    on_head = tiny()
    on_head.add_adapter(LoraConfig(target_modules=["lm_head"]))
    for words, model in (
        (r"adapters beside the weights; merge them first: model = model.merge_and_unload\(\)", None),
        ("This model is compiled: give the one inside, model._orig_mod", torch.compile(plain)),
        ("A DataParallel is no model of transformers: give the one inside, model.module", torch.nn.DataParallel(plain)),
        ("A Around is no model of transformers: give the one inside, model.module", Around(plain)),
        ("must be a model of transformers, not a Linear: load one with amp.load", torch.nn.Linear(1, 1)),
        ("does not predict a next token; load it with AutoModel", LlamaForSequenceClassification(config)),
        ("A LlamaModel does not predict a next token", LlamaModel(config)),
        ("The output head is a Linear, not a plain nn.Linear; merge adapters", on_head),
    ):
        given = get_peft_model(tiny(), LoraConfig(target_modules=["q_proj"])) if model is None else model
        for name in ENTRIES.keys() - {"repair"}:  # for which there would have to be a plan
            refused(here, words, lambda: ENTRIES[name](given, BATCHES))  # type: ignore[arg-type] # noqa: B023


def test_generation_settings_are_refused_with_the_reason_or_mended(here: Path) -> None:
    """What has one right answer is mended; -1 is no token, and no settings at all are what transformers derives."""
    model = tiny()
    model.generation_config.max_new_tokens = -1
    refused(
        here,
        "`max_new_tokens` must be greater than 0, but is -1; set it right",
        lambda: amp.save(model, TOKENIZER, "out"),
    )
    model = tiny()
    model.generation_config.pad_token_id = -1
    amp.save(model, TOKENIZER, "minus")
    assert amp.load("minus")[0].generation_config.pad_token_id != -1
    plan = amp.plan(model, scores(model), neurons=8)
    model.generation_config = None
    amp.prune(model, plan).save("none", TOKENIZER)
    again = amp.load("none")[0]
    assert again.generation_config is not None and again.generation_config.eos_token_id == model.config.eos_token_id


@pytest.mark.parametrize("remove", [0.0, 1.0, -0.1, 1.5, 30.0, float("nan"), float("inf")])
def test_ratios_outside_0_and_1(remove: float, here: Path) -> None:
    model = idle()
    words = "must lie between 0 and 1" if math.isfinite(remove) else f"must be a finite number, not {remove}"
    refused(here, words, lambda: amp.plan(model, scores(model), pruning_ratio=remove))


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("without a head", dict(pruning_ratio=0.9, of="block parameters")),
        ("without a head", dict(pruning_ratio=0.6, parts="heads", of="block parameters")),
        ("without a neuron", dict(pruning_ratio=0.7, parts="neurons", of="block parameters")),
        ("heads=3 is not possible: keep a multiple of 2", dict(heads=3)),
        ("heads=0 is not possible", dict(heads=0)),
        ("heads=6 is not possible", dict(heads=6)),
        ("neurons=0 is not possible", dict(neurons=0)),
        ("neurons=25 is not possible", dict(neurons=25)),
        ("Say either pruning_ratio=…", dict()),
        ("Say either pruning_ratio=…", dict(pruning_ratio=0.3, heads=2)),
        ("one of both, heads, neurons, scored", dict(pruning_ratio=0.3, parts="all")),
        ("must be one of parameters, block parameters", dict(pruning_ratio=0.3, of="heads")),
    ],
)
def test_impossible_plans(words: str, asked: dict, here: Path) -> None:
    model = idle(Shape(groups=2, group_size=2))
    refused(here, words, lambda: planned(model, scores(model), **asked))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", "holds no text"),
        ("blank.txt", b" \n\n ", "holds no text"),
        ("empty.jsonl", b"", "holds no (text|rows)"),
        ("latin.txt", "Käse ".encode("latin-1") * 99, r"latin.txt is not UTF-8 \(byte 1\)"),
        ("latin.jsonl", b'{"text": "K\xe4se"}\n', "latin.jsonl is not UTF-8"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', "broken.jsonl, line 2"),
        ("other.jsonl", b'{"body": "a"}\n', "other.jsonl, line 1: need"),
        ("list.jsonl", b'["a"]\n', "list.jsonl, line 1: need"),
        ("number.jsonl", b'{"text": 3}\n', "number.jsonl, line 1: 'text' must be a string, not int"),
    ],
)
def test_bad_text_files(name: str, content: bytes, words: str, here: Path) -> None:
    (here / name).write_bytes(content)
    refused(here, words, lambda: amp.calibration(TOKENIZER, name))
    refused(here, words, lambda: amp.perplexity(idle(), TOKENIZER, name))
    refused(here, words, lambda: amp.recover(idle(), TOKENIZER, name))


@pytest.fixture
def saved(here: Path) -> Path:
    """A pruned model in a folder: 3 of 4 heads of 8 dimensions, so that hidden / heads is not head_dim."""
    model = tiny(Shape("mistral"))
    return amp.save(
        amp.prune(model, amp.keep(model, scores(model), heads=3, neurons=9)).model, TOKENIZER, here / "saved"
    )


def edit(folder: Path, file: str = "config.json", **settings: object) -> None:
    path = folder / file
    config = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_a_configuration_without_head_dim_is_not_filled_up_with_chance(saved: Path, here: Path) -> None:
    edit(saved, head_dim=None)
    refused(here, "do not match its configuration.*head_dim", lambda: amp.load(saved))


@pytest.mark.parametrize(
    "settings", [dict(intermediate_size=10), dict(num_hidden_layers=3), dict(num_hidden_layers=1), dict(vocab_size=9)]
)
def test_weights_that_do_not_fit_are_refused(settings: dict, saved: Path, here: Path) -> None:
    edit(saved, **settings)
    refused(here, "do not match its configuration", lambda: amp.load(saved))


def test_broken_folders(saved: Path, here: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(here, "Could not load", lambda: amp.load(saved))
    weights.unlink()
    refused(here, "Could not load", lambda: amp.load(saved))
    (saved / "config.json").write_text("{")
    refused(here, "can't be read as JSON", lambda: amp.load(saved))
    (saved / "config.json").unlink()
    refused(here, "without config.json", lambda: amp.load(saved))


OUTSIDE = json.dumps({"weight_map": {"model.norm.weight": "../outside.safetensors"}})
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"
ADAPTED = json.dumps(dict(peft_type="LORA", base_model_name_or_path="tiny-llama"))


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("num_attention_heads=0; it must be a whole number from 1", dict(num_attention_heads=0)),
        ("hidden_size=48.0; it must be a whole number", dict(hidden_size=48.0)),
        ("hidden_size=-1; it must be", dict(hidden_size=-1)),
        ("hidden_size='32'; it must be", dict(hidden_size="32")),
        ("head_dim=0; it must be a whole number from 1", dict(head_dim=0)),
        ("intermediate_size=-3; it must be", dict(intermediate_size=-3)),
        (
            r"pad_token_id=1000000 in config.json is beyond the 259 tokens of the embedding; set it to null",
            dict(pad_token_id=10**6),
        ),
        ("dtype='torch.int8' in config.json is none that weights can have", dict(dtype="int8")),
        ("num_hidden_layers=1000000; it must be a whole number from 1 to 10,000", dict(num_hidden_layers=10**6)),
        (
            "hidden_size=32 is no multiple of .*=7, and head_dim",
            dict(model_type="llama", num_attention_heads=7, head_dim=None),
        ),
        ("=7 is no multiple of num_key_value_heads=", dict(model_type="llama", num_attention_heads=7)),
        ("says rms_norm_eps='1e-6'; it must be a number above 0", dict(rms_norm_eps="1e-6")),
        ("`layer_types` .99..*in config.json", dict(model_type="qwen3", layer_types=["full_attention"] * 99)),
        ("hidden_act='foo' in config.json is no activation", dict(hidden_act="foo")),
        ("rope_type='foo' in config.json is no kind", dict(rope_parameters=dict(rope_type="foo", rope_theta=1e4))),
        ("says dtype='float7'; it must be float32, float16 or bfloat16", dict(dtype="float7")),
        ("says model_type=.'llama'.; it must be one word", dict(model_type=["llama"])),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_make_no_model_name_the_setting(words: str, settings: dict, saved: Path, here: Path) -> None:
    """The same sentence from everyone who reads the folder."""
    edit(saved, **settings)
    for call in (amp.load, amp.estimate, lambda folder: amp.prune_folder(folder, "out", 0.2)):
        refused(here, words, lambda: call(saved))  # noqa: B023


@pytest.mark.parametrize(
    ("words", "file", "content"),
    [
        ("config.json holds a list and no object", "config.json", "[1]"),
        (r"config.json can't be read as JSON \(Expecting property", "config.json", "{"),
        ("generation_config.json can't be read as JSON", "generation_config.json", "{"),
        ("index.json leads to ../outside.safetensors, out of its", "model.safetensors.index.json", OUTSIDE),
        ("index.json has no weight_map", "model.safetensors.index.json", "{}"),
        ("model.safetensors is a pointer of git-lfs and no weights.*git lfs pull", "model.safetensors", POINTER),
        ("holds adapter_config.json beside a model; move.*amp.merged", "adapter_config.json", ADAPTED),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else "",
)
def test_files_that_lead_elsewhere_are_refused(words: str, file: str, content: str, saved: Path, here: Path) -> None:
    (saved / file).write_text(content)
    for call in (amp.load, lambda folder: amp.prune_folder(folder, "out", 0.2)):
        refused(here, words, lambda: call(saved))  # noqa: B023


def test_folders_that_are_no_model_say_what_to_give(here: Path) -> None:
    snapshot = here / "hub" / "models--a--b" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    for folder in ("hub", "hub/models--a--b"):
        refused(here, "is the cache of the hub; give the id of a model.*snapshots/c0ffee", lambda: amp.load(folder))  # noqa: B023
    (here / "adapter").mkdir()
    (here / "adapter" / "adapter_config.json").write_text(ADAPTED)
    refused(here, "holds an adapter alone; merge it into its model first: amp.save", lambda: amp.load("adapter"))
    refused(here, "adapter_model.safetensors are needed", lambda: amp.merged("adapter"))
    refused(here, "Could not load 'nobody/nothing/': We couldn't", lambda: amp.load("nobody/nothing/"))


def test_an_adapter_is_merged_into_its_model(here: Path) -> None:
    """One beside the model, one that names its model, and one that is told; and one of another model is refused."""
    from peft import LoraConfig, get_peft_model

    base = amp.save(tiny(), TOKENIZER, here / "base")
    tuned = get_peft_model(amp.load(base)[0], LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained("alone")
    tuned.save_pretrained("nameless")
    edit(here / "nameless", "adapter_config.json", base_model_name_or_path=None)
    beside = amp.save(tiny(), TOKENIZER, here / "beside")
    for file in (here / "alone").glob("adapter_*"):
        shutil.copy(file, beside)
    expected = weights(tuned.merge_and_unload())
    for folder, asked in (("alone", None), ("nameless", base), ("beside", None)):
        model, tokenizer = amp.merged(folder, asked)
        assert equal(weights(model), expected) and type(model).__name__ == "LlamaForCausalLM"
        assert equal(weights(amp.load(amp.save(model, tokenizer, f"{folder}-merged"))[0]), expected)
    refused(here, "is or holds the folder", lambda: amp.save(*amp.merged("beside"), "beside", overwrite=True))
    refused(here, "does not say whose it is; give base=", lambda: amp.merged("nameless"))
    other = amp.save(tiny(Shape(hidden=48)), TOKENIZER, here / "other")
    refused(here, "The adapter in alone is not for .*other", lambda: amp.merged("alone", other))


def test_what_is_saved_names_no_code_that_comes_along(saved: Path) -> None:
    edit(saved, auto_map=CUSTOM)
    model, tokenizer = amp.load(saved)
    amp.prune(model, amp.keep(model, scores(model), neurons=8)).save(saved.parent / "small", tokenizer)
    amp.prune_folder(saved, saved.parent / "folder", plan=amp.keep(model, scores(model), neurons=8))
    for name in ("small", "folder"):
        assert "auto_map" not in (saved.parent / name / "config.json").read_text()


QUANTISED = {
    "bitsandbytes": dict(quant_method="bitsandbytes", load_in_4bit=True),
    "gptq": dict(quant_method="gptq", bits=4, group_size=128),
    "awq": dict(quant_method="awq", bits=4, group_size=128, zero_point=True),
}
CUSTOM = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}


@pytest.mark.parametrize(
    ("words", "config"),
    [
        *[(f"quantised \\({name}\\); prune its", dict(quantization_config=q)) for name, q in QUANTISED.items()],
        ("it brings code of its own .configuration_own.OwnConfig", dict(model_type="own", auto_map=CUSTOM)),
        ("'t5' is an encoder-decoder; only decoders", dict(model_type="t5")),
        ("is a BertForMaskedLM .bert., not a decoder", dict(model_type="bert", architectures=["BertForMaskedLM"])),
        ("is a ViTModel .vit., not a decoder", dict(model_type="vit", architectures=["ViTModel"])),
        ("Could not load", dict(model_type="no-such-type")),
    ],
    ids=[*QUANTISED, "remote code", "encoder-decoder", "encoder", "images", "unknown"],
)
def test_models_of_another_kind_are_refused_by_their_configuration(words: str, config: dict, here: Path) -> None:
    """The folder holds no weights, so none can have been read."""
    (here / "model").mkdir()
    (here / "model" / "config.json").write_text(json.dumps(dict(model_type="llama") | config))
    refused(here, words, lambda: amp.load(here / "model"))
    refused(here, words, lambda: amp.estimate(here / "model"))


def test_code_that_comes_along_is_not_needed_where_transformers_has_the_architecture(saved: Path) -> None:
    edit(saved, auto_map=CUSTOM)
    assert type(amp.load(saved)[0]).__module__.startswith("transformers.models")


def test_a_folder_with_pickles_alone_says_how_to_convert(here: Path) -> None:
    model, other = tiny(), here / "other"
    folder = amp.save(model, TOKENIZER, here / "saved")
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    refused(here, r"only as pickles \(pytorch_model.bin\).*use_safetensors=False", lambda: amp.load(folder))
    AutoModelForCausalLM.from_pretrained(folder, use_safetensors=False).save_pretrained(other)  # as it says
    AutoTokenizer.from_pretrained(folder).save_pretrained(other)
    assert equal(weights(amp.load(other, device="cpu")[0]), weights(model))


def test_the_folder_a_model_came_from(here: Path) -> None:
    folder = amp.save(tiny(), TOKENIZER, here / "saved")
    model, tokenizer = amp.load(folder)
    refused(here, "is or holds the folder this model was loaded from", lambda: amp.save(model, None, folder, True))
    refused(here, "is or holds the folder", lambda: amp.save(tiny(), tokenizer, here, overwrite=True))


def test_generation_settings_that_transformers_does_not_save(here: Path) -> None:
    model = tiny()
    model.generation_config.update(do_sample=False, temperature=0.7)
    refused(here, "generation_config.do_sample = True", lambda: amp.save(model, TOKENIZER, "out"))
    model.generation_config.do_sample = True
    amp.save(model, TOKENIZER, "out")


def test_costs_of_a_family_without_a_row() -> None:
    with pytest.raises(ValueError, match="'codegen' has no row"):
        amp.estimate(AutoConfig.for_model("codegen", n_layer=1))


def test_a_plan_for_another_model(here: Path) -> None:
    plan = some_plan(tiny(Shape(layers=3)), heads=2, neurons=9)
    refused(here, "the model has \\(2, 4, 4, 24\\); plan anew", lambda: amp.preview(idle(), plan))


def test_a_folder_without_a_tokenizer(here: Path) -> None:
    folder = amp.save(tiny(), None, here / "saved")
    refused(here, "Could not load", lambda: amp.load(folder))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_embedded_model(file: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(checkpoints.MODELS / "tiny-llama", here / "tiny-llama")
    monkeypatch.setattr(checkpoints, "MODELS", here)
    assert amp.load("tiny-llama", device="cpu")
    path = here / "tiny-llama" / file
    damaged = bytearray(path.read_bytes())
    damaged[-9] ^= 1  # one bit
    path.write_bytes(damaged)
    refused(here, f"{file} is missing or damaged", lambda: amp.load("tiny-llama"))
    path.unlink()
    refused(here, f"{file} is missing or damaged", lambda: amp.load("tiny-llama"))


def test_an_output_folder_that_is_not_empty(here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "mine.txt").write_text("mine")
    (here / "file").write_text("mine")
    for folder, words in (("out", "is not empty"), ("file", "is a file"), (here / "out", "is not empty")):
        refused(here, words, partial(amp.save, tiny(), TOKENIZER, folder))


def test_scores_of_another_model(here: Path) -> None:
    found = replace(scores(tiny()), neurons=[torch.ones(3)] * 2)
    refused(here, "The scores are for 2 layers of", lambda: amp.plan(tiny(), found, pruning_ratio=0.3))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("where", "kind"), [("v_proj", "attention heads"), ("up_proj", "neurons")])
def test_activations_that_are_not_finite(value: float, where: str, kind: str, here: Path) -> None:
    model = tiny()
    block = model.model.layers[1]
    getattr(block.self_attn if where == "v_proj" else block.mlp, where).weight.data[0, 0] = value
    refused(here, f"{kind} of layer 1 are NaN or infinite", lambda: amp.score(model, BATCHES))
    assert hooks(model) == 0


def test_a_loss_that_is_not_finite(here: Path) -> None:
    model = tiny()
    model.lm_head.weight.data[3, 0] = float("nan")
    refused(
        here,
        "recovery loss is nan at step 0",
        lambda: amp.recover(model, TOKENIZER, config=amp.RecoveryConfig(samples=4), progress=False),
    )


def test_padding_alone_is_no_text(here: Path) -> None:
    nothing = {name: torch.zeros((2, 3), dtype=torch.long) for name in ("input_ids", "attention_mask")}
    refused(here, "hold no tokens", lambda: amp.score(tiny(), [nothing]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_key_value_heads": 2}, "num_attention_heads=3 is no multiple of num_key_value_heads=2"),
        ({"num_key_value_heads": 6}, "num_attention_heads=3 is no multiple of num_key_value_heads=6"),
        ({"dtype": "float8_e4m3fn"}, "is none that weights can have"),
        ({"text_config": {}}, "text_config in config.json is none of a mistral"),
        ({"quantization_config": {}}, "quantization_config in config.json says nothing; leave it out"),
    ],
)
def test_a_configuration_that_no_model_has_is_one_sentence(saved: Path, settings: Any, words: str) -> None:
    edit(saved, **settings)
    for call in (lambda: amp.load(saved), lambda: amp.estimate(saved)):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize("text", ["", "[1]"])
def test_a_tokenizer_that_is_none_is_found_by_a_dry_run(
    saved: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (saved / "tokenizer.json").write_text(text)
    assert amp_tutorial(["run", "--preset", "ci", "-p", f"model={saved}", "--dry-run"]) == 2
    assert "tokenizer.json" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int16])
def test_token_ids_of_a_narrow_type_are_refused(kind: torch.dtype) -> None:
    narrow = [{"input_ids": torch.ones(1, 4, dtype=kind), "attention_mask": torch.ones(1, 4)}]
    with pytest.raises(ValueError, match="token ids are whole numbers, torch.long"):
        amp.score(tiny(Shape()), narrow)


def test_links_in_a_circle_are_one_sentence(here: Path) -> None:
    (here / "a").symlink_to("b")
    (here / "b").symlink_to("a")
    model = tiny(Shape())
    for call in (lambda: scores(model).save(here / "a"), lambda: amp.save(model, TOKENIZER, here / "a")):
        with pytest.raises(ValueError, match="leads back to itself|is there already|is a file"):
            call()


# Every public function × every argument × values that are none: in each case one sentence, before any work.
FUNCTIONS = {name: found for name in amp.__all__ if inspect.isfunction(found := getattr(amp, name))}
WRONG: tuple[Any, ...] = (object(), None, "x", 5, -0.5, float("nan"), 10**30, b"x", [object()], {}, torch.nn.Flatten())


def arguments() -> Iterator[tuple[str, inspect.Parameter]]:
    for name, function in FUNCTIONS.items():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is not parameter.VAR_KEYWORD:
                yield name, parameter


def test_each_argument_of_each_function_is_looked_at(here: Path) -> None:
    looked = [(name, p) for name, p in arguments() if not fits(object(), p.annotation)]
    open_to_all = {(name, p.name) for name, p in arguments()} - {(name, p.name) for name, p in looked}
    assert open_to_all == {  # what is measured, which may be anything that has an interval; the older `check`
        *[("compare", "a"), ("compare", "b"), ("interval", "measured"), ("interval", "others"), ("check", "model")],
    }
    assert len(looked) > 150
    # Whatever else is missing, the one that is wrong is told; of the older calls these want theirs by position.
    model = tiny()
    given = dict(model=model, scores=scores(model), batches=BATCHES, tokenizer=TOKENIZER, pruning_ratio=0.3)
    first = dict(
        plan=("model", "scores", "pruning_ratio"),
        score=("model", "batches"),
        recover=("model", "tokenizer"),
        check=("model",),
    )
    for name, parameter in looked:
        others = {key: given[key] for key in first.get(name, ())}
        call = partial(FUNCTIONS[name], **others | {parameter.name: object()})
        refused(here, f"{parameter.name} of {dict(check='preview').get(name, name)} must be", call)
    for name, parameter in looked:
        what = f"{parameter.name} of {name}"
        for value in WRONG:
            if not fits(value, parameter.annotation) and value is not parameter.default:
                refused(here, f"{what} must be", partial(look, what, value, parameter))


GIVEN: dict[str, dict[str, Any]] = {  # of some functions, what they can be called with
    "perplexity": dict(source=[TEXT], window=31),
    "accuracy": dict(tasks=["tiny_tool"], limit=1),
    "robustness": dict(tasks=["tiny_tool"], limit=1),
    "latency": dict(prompt=4, new=1, repeats=1),
    "size": dict(length=4),
    "flops": dict(length=4),
    "kv_cache_bytes": dict(tokens=4),
    "save": dict(folder="saved"),
    "recover": dict(source=[TEXT], progress=False),
    "tokens_in_use": dict(text=[TEXT]),
    "score": dict(batches=BATCHES),
    "rank_layers": dict(batches=BATCHES),
    "rotation": dict(batches=BATCHES),
    "fit_budget": dict(batches=BATCHES, trials=1, progress=False),
}


@pytest.mark.parametrize(
    ("words", "model"),
    [
        ("must be a model of transformers.*, not 'tiny-llama': load it", lambda: "tiny-llama"),
        (r"not a tuple: model, tokenizer = amp.load\(…\)", lambda: (tiny(), TOKENIZER)),
        ("must be a model of transformers.*, not None", lambda: None),
        ("give the one inside, model.module", lambda: torch.nn.DataParallel(tiny())),
        ("does not predict a next token", lambda: AutoModelForSequenceClassification.from_config(tiny().config)),
        ("does not predict a next token", lambda: tiny().base_model),
    ],
    ids=["name", "pair", "None", "parallel", "classifier", "base"],
)
def test_what_is_no_model_is_refused_by_whoever_takes_one(
    words: str, model: Callable[[], object], here: Path, as_users_run_it: None
) -> None:
    for name, given in GIVEN.items():
        if "does not predict" in words and name in ("flops", "kv_cache_bytes"):
            continue  # which ask its configuration alone
        tokenizer = dict(tokenizer=TOKENIZER) if "tokenizer" in inspect.signature(FUNCTIONS[name]).parameters else {}
        refused(here, words, lambda: FUNCTIONS[name](model=model(), **tokenizer, **given))  # noqa: B023


def test_what_is_as_good_as_meant_is_taken(here: Path, as_users_run_it: None) -> None:
    """Numbers of NumPy and torch, which go into files as Python's; streams and data sets; words of transformers."""
    model = tiny()
    found = amp.score(model, torch.utils.data.Subset(BATCHES, range(1)), seed=torch.tensor(3))  # type: ignore
    wanted = amp.plan(model, found, 0.125, parts="neurons")
    for ratio in (np.float32(0.125), np.float64(0.125), Fraction(1, 8)):
        plan = amp.plan(model, found, ratio, parts="neurons")  # type: ignore
        assert amp.Plan.load(plan.save(f"{type(ratio).__name__}.json")) == plan == wanted
    kept = amp.with_layers(wanted, np.array([0, 1]), model)  # type: ignore
    assert amp.Plan.load(kept.save("layers.json")) == kept
    assert amp.score_many(model, iter(BATCHES), (name for name in ("amp", "random"))).keys() == {"amp", "random"}
    assert amp.accuracy(model, TOKENIZER, iter(["tiny_tool"]), limit=np.int64(2))["tiny_tool"].n == 2  # type: ignore
    for dtype in ("auto", "float32", torch.float32):
        assert amp.load("tiny-llama", device=torch.device("cpu"), dtype=dtype)[0].dtype == torch.float32
    assert amp.RecoveryConfig(alpha=8.5).alpha == 8.5
    assert amp.prune(model, wanted, inplace=np.True_).model is not None  # type: ignore


def test_a_model_with_adapters_or_compiled_is_measured_as_it_is(as_users_run_it: None) -> None:
    from peft import LoraConfig, get_peft_model

    plain = tiny()
    adapted = get_peft_model(tiny(), LoraConfig(target_modules=["q_proj", "embed_tokens"]))
    for parameter in adapted.parameters():  # an adapter begins as nothing
        if parameter.requires_grad:
            parameter.data += 0.1
    merged = copy.deepcopy(adapted).merge_and_unload()
    compiled = torch.compile(tiny(), backend="eager")
    for other, whole in ((adapted, merged), (compiled, plain)):
        assert amp.latency(other, prompt=4, new=1, repeats=1)["prefill"].median > 0
        assert len(amp.tokens_in_use(other, TOKENIZER, [TEXT])) > 10
        for name in ("perplexity", "accuracy", "flops", "kv_cache_bytes"):
            tokenizer = dict(tokenizer=TOKENIZER) if name in ("perplexity", "accuracy") else {}
            found = [FUNCTIONS[name](model=model, **tokenizer, **GIVEN[name]) for model in (other, whole)]
            if name == "perplexity":
                assert found[0].value == pytest.approx(found[1].value, rel=1e-5)
            else:
                assert found[0] == found[1], name


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("limit=0 must be at least 1", lambda: amp.accuracy(idle(), TOKENIZER, limit=0)),
        ("batch_size=0 must be at least 1", lambda: amp.accuracy(idle(), TOKENIZER, batch_size=0)),
        (r"tasks=\[\] names no task", lambda: amp.accuracy(idle(), TOKENIZER, [])),
        ("prompt=0, new=-1 must be at least 1", lambda: amp.latency(idle(), prompt=0, new=-1)),
        ("length=0 must be at least 1", lambda: amp.size(idle(), 0)),
        ("batch=0 must be at least 1", lambda: amp.estimate(tiny().config, batch=0)),
        ("features=0 must be at least 1", lambda: amp.rank_layers(idle(), BATCHES, features=0)),
        ("spare of rank_layers must be a pair", lambda: amp.rank_layers(idle(), BATCHES, spare=(1,))),  # type: ignore[arg-type]
        ("decay=-1.0 must be at least 0", lambda: amp.rotation(idle(), BATCHES, decay=-1.0)),
        (
            "ridge=-1.0 must be at least 0",
            lambda: amp.repair(m := idle(), amp.plan(m, scores(m), neurons=8), BATCHES, ridge=-1.0, progress=False),
        ),
        ("must name at least one, each once, ascending", lambda: amp.smaller_tokenizer(TOKENIZER, [])),
        ("must name at least one, each once, ascending", lambda: amp.smaller_tokenizer(TOKENIZER, [3, 2])),
        ("device='gpu' is not to be had here", lambda: amp.load("tiny-llama", device="gpu")),
        ("must be a torch.dtype of floating-point numbers", lambda: amp.load("tiny-llama", dtype=torch.int8)),
        ("seed of calibration must be a whole number", lambda: amp.calibration(TOKENIZER, seed="3")),  # type: ignore[arg-type]
        ("must be a whole number, not one of 100 bits", lambda: amp.calibration(TOKENIZER, seed=10**30)),
        ("criterion of score is a text of 5,000", lambda: amp.score(idle(), BATCHES, "x" * 5000)),
        ("features of rank_layers must be", lambda: amp.drop_layers(idle(), BATCHES, 1, features="x", progress=False)),
        (
            "heads of planned must be a whole number",
            lambda: amp.prune_folder("tiny-llama", "out", heads="x", neurons=8),
        ),
        ("prune_folder takes no bogus=…; of what stays it takes align,", lambda: cut_folder(bogus=3)),
        ("ridge must be a finite number or None, not 'x'", lambda: cut_folder(repair={"ridge": "x"})),
        ("is no name of a file or folder", lambda: amp.save(tiny(), TOKENIZER, "\ud800x")),
        ("is no name of a file or folder", lambda: amp.save(tiny(), TOKENIZER, "x" * 300)),
        ("is no name of a file or folder", lambda: amp.save(tiny(), TOKENIZER, "a\0b")),
        ("A path must be a text or a pathlib.Path, not a int", lambda: amp.Plan([[0]], [[0]], 1, 1, 1).save(5)),  # type: ignore[arg-type]
        ("holds no tokens; leave it out", lambda: amp.score(idle(), [{k: v[:0] for k, v in BATCHES[0].items()}])),
        ("plan of prune must be a Plan, not a Pruned: give its .plan", lambda: amp.prune(idle(), pruned())),  # type: ignore[arg-type]
        (
            "rank must be a whole number, not 'x'",
            lambda: amp.RecoveryConfig(rank="x"),  # type: ignore[arg-type]
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_value_that_is_none_is_refused_at_once(
    words: str, call: Callable[[], object], here: Path, as_users_run_it: None
) -> None:
    refused(here, words, call)


def cut_folder(**more: Any) -> object:
    return amp.prune_folder("tiny-llama", "out", 0.3, progress=False, **more)


def pruned() -> amp.Pruned:
    return amp.prune(model := tiny(), amp.plan(model, scores(model), neurons=8))


def test_a_tokenizer_of_another_model_is_told_before_the_model_runs(here: Path, as_users_run_it: None) -> None:
    other = amp.load("tiny-llama")[1]
    for name in ("perplexity", "accuracy", "recover"):
        call = partial(FUNCTIONS[name], model=idle(), tokenizer=other, **GIVEN[name] | more(name))
        refused(here, "take the tokenizer that belongs to the model", call)


def more(name: str) -> dict[str, Any]:
    """As much text as the windows of another tokenizer ask for."""
    return {} if name == "accuracy" else dict(source=[TEXT] * 2)


def test_logits_that_are_nan_are_no_answers(here: Path) -> None:
    model = tiny()
    model.get_parameter("model.layers.0.mlp.down_proj.weight").data[0, 0] = torch.nan
    refused(here, "The model's logits are NaN", lambda: amp.accuracy(model, TOKENIZER, ["tiny_tool"], limit=4))


def test_public_functions_can_be_pickled_and_are_the_same_each_time() -> None:
    for name, function in FUNCTIONS.items():
        assert getattr(amp, name) is function and pickle.loads(pickle.dumps(function)) is function, name


# What people bring, and what happens: docs/library.md shows both columns (`reports/pages.py`), and each row is run.
BROUGHT = (
    ("a quantised checkpoint: GPTQ, AWQ, bitsandbytes", "prune its full-precision original and quantise that"),
    ("weights in pickles alone", "has its weights only as pickles"),
    (
        "a pointer of git-lfs in place of weights",
        "is a pointer of git-lfs and no weights; fetch them there",
    ),
    ("the cache of the hub", "is the cache of the hub; give the id of a model, owner/name"),
    ("an adapter of PEFT alone", "holds an adapter alone; merge it into its model first: amp.save"),
    ("an adapter beside a model", "move the adapter away, or merge it into its model first"),
    (
        "a `PeftModel` in memory",
        "holds adapters beside the weights; merge them first: model = model.merge_and_unload()",
    ),
    ("a compiled model", "This model is compiled: give the one inside, model._orig_mod"),
    ("a model in `DataParallel`", "is no model of transformers: give the one inside, model.module"),
    ("a classifier", "does not predict a next token; load it with AutoModelForCausalLM, or by amp.load"),
    ("an encoder-decoder", "is an encoder-decoder; only decoders are pruned here"),
    (
        "a family without a row",
        "Its layers are named as those of llama: try",
    ),
    ("code of its own (`auto_map`)", "which is never run here"),
    ("`config.json` that is a list", "holds a list and no object with settings; fetch it again"),
    ("an index of weights that leads out of its folder", "out of its folder; weights must lie beside their index"),
    ("a batch alone, in place of a list", "as if one batch were a list of them: give a list of mappings"),
    (
        "a mask of 1 and 2, as packing makes",
        "Packed texts go into rows of their own, and an additive mask is (mask == 0)",
    ),
    ("ids beyond the embedding", "take the tokenizer that belongs to the model"),
    ("the tokenizer of another model", "take the tokenizer that belongs to the model"),
    ("the name of a model, where the model is meant", "load it, model, tokenizer = amp.load"),
    ("NaN among the weights", "are NaN or infinite; score in float32 or bfloat16, and check the checkpoint"),
)


def brought(what: str, here: Path) -> object:
    """Bring it; whatever is loaded or scored comes back."""
    folder = amp.save(tiny(), TOKENIZER, here / "saved")
    model = idle() if "NaN" not in what else tiny()
    if what.startswith("a quantised"):
        edit(folder, quantization_config=QUANTISED["gptq"])
    elif what.startswith("weights in pickles"):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif what.startswith("a pointer"):
        (folder / "model.safetensors").write_text(POINTER)
    elif what.startswith("the cache"):
        (here / "hub" / "models--a--b").mkdir(parents=True)
        folder = here / "hub"
    elif what.startswith("an adapter"):
        (folder / "adapter_config.json").write_text(ADAPTED)
        if what.endswith("alone"):
            (folder / "config.json").unlink()
    elif what.startswith("an encoder-decoder"):
        edit(folder, model_type="t5")
    elif what.startswith("a family"):
        edit(folder, model_type="helium", architectures=["HeliumForCausalLM"])
        return amp.Anatomy.of(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)))
    elif what.startswith("code of its own"):
        edit(folder, model_type="own", auto_map=CUSTOM)
    elif what.startswith("`config.json`"):
        (folder / "config.json").write_text("[1]")
    elif what.startswith("an index"):
        (folder / "model.safetensors.index.json").write_text(OUTSIDE)
    elif what.startswith("a `PeftModel`"):
        from peft import LoraConfig, get_peft_model

        return amp.score(get_peft_model(model, LoraConfig(target_modules=["q_proj"])), BATCHES)
    elif what.startswith("a compiled"):
        return amp.score(torch.compile(model), BATCHES)
    elif what.startswith("a model in"):
        return amp.score(torch.nn.DataParallel(model), BATCHES)
    elif what.startswith("a classifier"):
        return amp.score(AutoModelForSequenceClassification.from_config(model.config), BATCHES)
    elif what.startswith("a batch alone"):
        return amp.score(model, BATCHES[0])
    elif what.startswith("the tokenizer"):
        return amp.perplexity(model, amp.load("tiny-llama")[1], [TEXT] * 2, window=31)
    elif what.startswith("the name"):
        return amp.score("tiny-llama", BATCHES)  # type: ignore[arg-type]
    elif what.startswith("a mask"):
        return amp.score(model, [BATCHES[0] | dict(attention_mask=2 * BATCHES[0]["attention_mask"])])
    elif what.startswith("ids"):
        return amp.score(model, [BATCHES[0] | dict(input_ids=BATCHES[0]["input_ids"] + 10**6)])
    elif what.startswith("NaN"):
        model.get_parameter("model.layers.0.mlp.down_proj.weight").data[0, 0] = torch.nan
        return amp.score(model, BATCHES)
    return amp.load(folder)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("what", "happens"), BROUGHT, ids=[what for what, _ in BROUGHT])
def test_what_people_bring_gets_the_sentence_that_the_docs_show(what: str, happens: str, here: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(happens)) as caught:
        brought(what, here)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (r"t.yaml would run Python of its own \(!function\)", "task: mine\ndoc_to_text: !<!function> utils.f\n"),
        (r"would run Python of its own", "%TAG !! !fun\n---\ntask: mine\ndoc_to_text: !!ction utils.f\n"),
        (r"would run Python of its own \(tag:yaml.org,2002:python/name", "task: !!python/name:os.system\n"),
        (r"includes \.\./c\.yaml, from outside", "task: mine\ninclude: [b.yaml, ../c.yaml]\n"),
        (r"includes \.\./\.\./x, from outside", 'task: mine\n"include": ../../x\n'),
        (r"t.yaml is no YAML", "task: [\n"),
    ],
)
def test_task_files_run_no_python_however_they_say_it(words: str, text: str, here: Path) -> None:
    folder = here / "tasks"
    folder.mkdir()
    (folder / "utils.py").write_text("open('PWNED', 'w').write('x')\n\n\ndef f(item):\n    return ''\n")
    (folder / "t.yaml").write_text(text)
    refused(here, words, lambda: tasks.load_tasks("mine", folder))
    assert not (here / "PWNED").exists() and not (folder / "PWNED").exists()


@pytest.mark.parametrize(
    ("words", "file", "content"),
    [
        ("tokenizer.json is a pointer of git-lfs and not the file itself; fetch", "tokenizer.json", POINTER),
        ("says rope_theta='x'; it must be a number above 0", "config.json", dict(rope_theta="x")),
        ("says rms_norm_eps=nan; it must be a number above 0", "config.json", dict(rms_norm_eps=math.nan)),
        ("does not load .*.max_new_tokens. must be", "generation_config.json", '{"max_new_tokens": -1}'),
        ("names 1 files that are not there, such as gone.safetensors; fetch", "model.safetensors.index.json",
         '{"weight_map": {"a": "gone.safetensors"}}'),
    ],
    ids=str,
)  # fmt: skip
def test_a_folder_is_complete_before_a_run_begins(
    words: str, file: str, content: str | dict[str, object], saved: Path, here: Path
) -> None:
    if isinstance(content, dict):
        content = json.dumps(json.loads((saved / file).read_text()) | content)
    (saved / file).write_text(content)
    refused(here, words, lambda: checkpoints.complete(saved))


def test_a_token_of_the_number_minus_one_pads_nothing(saved: Path) -> None:
    (saved / "config.json").write_text(
        json.dumps(json.loads((saved / "config.json").read_text()) | dict(pad_token_id=-1))
    )
    model, tokenizer = amp.load(saved)
    assert model.config.pad_token_id is None and model.get_input_embeddings().padding_idx is None
    assert (
        json.loads((amp.save(model, tokenizer, saved.parent / "again") / "config.json").read_text())["pad_token_id"]
        is None
    )


def test_gradients_are_not_asked_for_where_they_are_forbidden(here: Path) -> None:
    model = tiny()
    with torch.inference_mode():
        refused(here, "Gradients are needed, which torch.inference_mode", lambda: amp.score(model, BATCHES, "taylor"))
        assert amp.score(model, BATCHES, "amp").tokens


def test_an_adapter_of_a_larger_model_is_not_half_merged(here: Path) -> None:
    """Its tensors that have no place in the model are not left out in silence."""
    model = tiny(Shape(layers=3))
    adapter = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(model, adapter).save_pretrained("adapter")
    amp.save(tiny(Shape(layers=2)), TOKENIZER, "smaller")
    refused(here, "of its tensors have no place there, such as .*layers.2", lambda: amp.merged("adapter", "smaller"))


def test_names_of_nothing_and_of_nobody_are_told(here: Path) -> None:
    refused(here, "The model's name is empty", lambda: amp.load(" "))
    refused(here, "The text source is empty", lambda: amp.texts(""))
    refused(
        here, "home folder of a user who is not here", lambda: amp.save(tiny(), TOKENIZER, "~nobody-of-this-name/x")
    )
    assert amp.load("tiny-llama/")[0].config.model_type == "llama"


def test_generation_settings_that_only_warn_stop_nothing_that_is_not_saved(saved: Path, here: Path) -> None:
    """As of checkpoints of old: a temperature without sampling is loaded, and not saved."""
    said = json.loads((saved / "generation_config.json").read_text())
    (saved / "generation_config.json").write_text(json.dumps(said | dict(do_sample=False, temperature=0.7)))
    checkpoints.complete(saved)
    refused(here, "do_sample", lambda: checkpoints.check_saving(saved))
    (saved / "generation_config.json").unlink()
    said = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(said | dict(temperature=0.7)))
    checkpoints.complete(saved)
    refused(here, "do_sample", lambda: checkpoints.check_saving(saved))


def test_packed_and_empty_shells_of_batches_are_refused(here: Path) -> None:
    model, one = tiny(), BATCHES[0]
    packed = {**one, "position_ids": torch.arange(one["input_ids"].shape[1]).remainder(3).expand_as(one["input_ids"])}
    refused(here, "position_ids that do not count its tokens from 0", lambda: amp.score(model, [packed]))
    plain = {**one, "position_ids": (one["attention_mask"].cumsum(-1) - 1).clamp(min=0)}
    assert torch.equal(amp.score(model, [plain]).heads[0], amp.score(model, [one]).heads[0])
    refused(here, "are a meta tensor", lambda: amp.score(model, [{**one, "input_ids": one["input_ids"].to("meta")}]))
    refused(
        here, "are a sparse_coo tensor", lambda: amp.score(model, [{**one, "input_ids": one["input_ids"].to_sparse()}])
    )


def test_json_over_several_lines_and_where_it_breaks(here: Path) -> None:
    Path("one.json").write_text('{\n  "text": "a b"\n}\n')
    Path("rows.jsonlines").write_text('{"text": "a"}\n{"text": "b"}\n')
    Path("broken.jsonl").write_text('{"text": "a"\n{"text":"b"}\n')
    assert amp.texts("one.json") == ["a b"] and amp.texts("rows.jsonlines") == ["a", "b"]
    refused(here, "broken.jsonl, line 1: this JSON is broken at column 13", lambda: amp.texts("broken.jsonl"))


def test_an_adapter_with_its_embedding_is_taken_whole(here: Path) -> None:
    """What peft stores beside the adapter is no stray."""
    model = tiny()
    adapter = peft.LoraConfig(target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM")
    peft.get_peft_model(model, adapter).save_pretrained("adapter", save_embedding_layers=True)
    amp.save(tiny(), TOKENIZER, "dense")
    assert equal(weights(amp.merged("adapter", "dense")[0]), weights(tiny()))
