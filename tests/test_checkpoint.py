"""Loading and saving: what comes back is what was there, and no failure leaves half a model."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import EVERY_FAMILY, KNOWN, TEXT, Shape, byte_tokenizer, equal, logits, some_plan, tiny, weights
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    MistralConfig,
    PreTrainedModel,
)

import amp_tutorial as amp
from amp_tutorial.core.checkpoint import configuration
from amp_tutorial.files.checkpoints import MODELS, verify
from amp_tutorial.files.older_names import older_names


@pytest.mark.parametrize("name", amp.EMBEDDED)
def test_embedded_models_are_stock_and_whole(name: str) -> None:
    model, tokenizer = amp.load(name, device="cpu")
    anatomy = amp.Anatomy.of(model)
    assert not model.training and anatomy.layers >= 6 and anatomy.heads >= 8
    assert 1e6 <= model.num_parameters() <= 5e6
    assert type(model).__module__.startswith("transformers.models")
    assert tokenizer("Anna").input_ids[0] == tokenizer.bos_token_id
    assert set(json.loads((MODELS / name / "SHA256.json").read_text())) >= {"model.safetensors", "config.json"}
    verify(MODELS / name)


def test_grouped_queries_and_a_parallel_block_are_among_them() -> None:
    models = {name: amp.load(name, device="cpu")[0] for name in amp.EMBEDDED}
    sizes = {name: amp.Anatomy.of(model).group_size for name, model in models.items()}
    assert sizes["tiny-llama"] == 1 and sizes["tiny-llama-gqa"] > 1
    assert models["tiny-phi"].config.model_type == "phi"


def test_data_is_at_most_30_megabytes() -> None:
    assert sum(p.stat().st_size for p in amp.DATA.rglob("*") if p.is_file()) <= 30e6


def test_a_configuration_needs_no_weights(tmp_path: Path) -> None:
    tiny(Shape("mistral")).config.save_pretrained(tmp_path)
    assert configuration(tmp_path).model_type == "mistral"
    assert configuration("tiny-phi").model_type == "phi"


def wrapped(kind: str, folder: Path, **text: Any) -> PreTrainedModel:
    """A multimodal model of that kind with small random weights, saved; its decoder's settings are the text's."""
    empty = CONFIG_MAPPING[kind]()
    inner = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=260)
    inner |= dict(num_key_value_heads=2, head_dim=8, model_type=empty.get_text_config(decoder=True).model_type)
    eye = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    eye |= dict(patch_size=14, model_type=empty.vision_config.model_type)
    config = CONFIG_MAPPING[kind](text_config=inner | dict(pad_token_id=0) | text, vision_config=eye)
    for name in ("image_token_id", "image_token_index", "video_token_id"):
        if hasattr(config, name):
            setattr(config, name, 3)
    torch.manual_seed(0)
    whole: PreTrainedModel = AutoModelForImageTextToText.from_config(config).eval()
    whole.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return whole


WRAPPERS = dict(
    gemma3="Gemma3ForCausalLM", mistral3="MistralForCausalLM", llava="LlamaForCausalLM", smolvlm="LlamaForCausalLM",
    idefics3="LlamaForCausalLM", internvl="Qwen2ForCausalLM", llava_onevision="Qwen2ForCausalLM",
    video_llama_3="Qwen2ForCausalLM", qianfan_ocr="Qwen3ForCausalLM",
)  # fmt: skip


@pytest.mark.parametrize("kind", WRAPPERS)
def test_of_a_multimodal_model_the_text_model_is_taken_out(kind: str, tmp_path: Path) -> None:
    """All its weights, none of them random: what it says of a text is what the whole one says, to the last bit."""
    whole = wrapped(kind, tmp_path / "whole")
    with pytest.warns(
        UserWarning, match=f"its text model is taken out, a {WRAPPERS[kind]}; what sees or hears is left"
    ):
        model, tokenizer = amp.load(tmp_path / "whole", device="cpu")
    assert type(model).__name__ == WRAPPERS[kind] == configuration(tmp_path / "whole").architectures[0]
    ids = torch.randint(5, 250, (2, 12))
    batch = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert torch.equal(model(**batch).logits, whole(**batch).logits)
    small = amp.prune(model, amp.plan(model, amp.score(model, [batch]), pruning_ratio=0.1)).model
    amp.save(small, tokenizer, tmp_path / "small")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    assert type(again).__name__ == WRAPPERS[kind] and torch.equal(again(**batch).logits, small(**batch).logits)
    with pytest.raises(ValueError, match=r"is multimodal; take its text model out first: amp\.save\(\*amp\.load"):
        amp.prune_folder(tmp_path / "whole", tmp_path / "out", 0.1, text=[TEXT, TEXT])


@pytest.mark.filterwarnings("ignore:.*its text model is taken out")
@pytest.mark.parametrize("kind", ["aya_vision", "cohere2_vision", "paligemma"])
def test_of_some_the_text_class_computes_otherwise_than_the_whole(kind: str, tmp_path: Path) -> None:
    """The documentation names them: logits are scaled in the text class alone, or a prompt looks ahead in the whole."""
    whole = wrapped(kind, tmp_path)
    model, _ = amp.load(tmp_path, device="cpu")
    ids = torch.randint(5, 250, (2, 12))
    batch = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
    mine, theirs = model(**batch).logits, whole(**batch).logits
    assert not torch.equal(mine, theirs)
    if kind != "paligemma":
        assert torch.equal(mine, theirs * model.config.logit_scale)


def test_a_text_model_that_transformers_has_not_alone_is_refused(tmp_path: Path) -> None:
    wrapped("qwen2_vl", tmp_path)
    with pytest.raises(ValueError, match="not a decoder by itself: transformers has no class for qwen2_vl_text alone"):
        amp.load(tmp_path)


def test_a_llama_whose_heads_do_not_divide_its_hidden_size_is_a_mistral(tmp_path: Path) -> None:
    """As of kanana-nano: transformers' own LlamaConfig refuses what other programs write."""
    config = MistralConfig(
        hidden_size=40, intermediate_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
        head_dim=8, vocab_size=260, sliding_window=None, rope_theta=5e5,
    )  # fmt: skip
    torch.manual_seed(0)
    same = AutoModelForCausalLM.from_config(config).eval()
    same.save_pretrained(tmp_path / "llama")
    byte_tokenizer().save_pretrained(tmp_path / "llama")
    path = tmp_path / "llama" / "config.json"
    told = json.loads(path.read_text()) | dict(model_type="llama", architectures=["LlamaForCausalLM"])
    del told["sliding_window"]
    path.write_text(json.dumps(told))
    model, tokenizer = amp.load(tmp_path / "llama", device="cpu")
    ids = torch.randint(5, 250, (2, 12))
    assert type(model).__name__ == "MistralForCausalLM" and torch.equal(model(ids).logits, same(ids).logits)
    amp.save(model, tokenizer, tmp_path / "saved")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()(ids).logits, same(ids).logits)
    amp.prune_folder(tmp_path / "llama", tmp_path / "small", 0.1, text=[TEXT, TEXT], progress=False)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "small").num_parameters() < same.num_parameters()
    for change, said in ((dict(head_dim=None), "head_dim is not said"), (dict(attention_bias=True), "with biases")):
        path.write_text(json.dumps(told | change))
        with pytest.raises(ValueError, match=said):
            amp.load(tmp_path / "llama")


def small_llama(tied: bool = False, dtype: str = "float32", **settings: Any) -> PreTrainedModel:
    """Three heads of four, which only the equal architecture can say."""
    model = tiny(Shape(groups=4, hidden=32, tied=tied, dtype=dtype), **settings)
    return amp.prune(model, some_plan(model, heads=3, neurons=9)).model


def test_save_then_load(tmp_path: Path) -> None:
    small = small_llama(tied=True)
    folder = amp.save(small, byte_tokenizer(), tmp_path / "deep" / "er")
    again, tokenizer = amp.load(folder, device="cpu")
    assert equal(weights(again), weights(small)) and torch.equal(logits(again), logits(small))
    assert tokenizer("kite").input_ids == byte_tokenizer()("kite").input_ids
    assert (folder / "model.safetensors").is_file() and not list(folder.glob("*.bin"))
    assert amp.load(str(folder), device="cpu", dtype=torch.bfloat16)[0].dtype == torch.bfloat16


# What is carried over


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_stay_tied_or_untied(tied: bool, tmp_path: Path) -> None:
    small = small_llama(tied=tied)
    again = AutoModelForCausalLM.from_pretrained(amp.save(small, None, tmp_path / "saved"))
    assert again.config.tie_word_embeddings is tied
    assert (again.lm_head.weight is again.model.embed_tokens.weight) is tied
    assert again.num_parameters() == small.num_parameters()


SCALED = {
    "linear": dict(rope_type="linear", rope_theta=500.0, factor=4.0),
    "llama3": dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=64),
    "yarn": dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=64),
}  # fmt: skip


@pytest.mark.parametrize("kind", SCALED)
def test_rope_scaling_and_precision_are_carried_over(kind: str, tmp_path: Path) -> None:
    small = small_llama(dtype="bfloat16", rope_parameters=SCALED[kind])
    again = AutoModelForCausalLM.from_pretrained(amp.save(small, None, tmp_path / "saved"))
    assert again.config.rope_parameters == small.config.rope_parameters
    assert again.dtype == torch.bfloat16 and torch.equal(logits(again), logits(small))


def test_generation_settings_chat_template_and_special_tokens_are_carried_over(tmp_path: Path) -> None:
    model, tokenizer = tiny(), byte_tokenizer()
    model.generation_config.update(do_sample=True, temperature=0.7, max_new_tokens=5, eos_token_id=[1, 260])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|end|>"]})
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}"
    small = amp.prune(model, some_plan(model, heads=2, neurons=9)).model
    folder = amp.save(small, tokenizer, tmp_path / "saved")
    settings = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert (settings.do_sample, settings.temperature, settings.max_new_tokens) == (True, 0.7, 5)
    assert settings.eos_token_id == [1, 260]
    again = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "Hi"}]
    assert again.apply_chat_template(chat, tokenize=False) == "<|user|>Hi<|end|>"
    assert again.all_special_tokens == tokenizer.all_special_tokens and len(again) == len(tokenizer)
    for text in (TEXT, "<|user|>Hi<|end|>"):
        assert again(text).input_ids == tokenizer(text).input_ids


def test_large_models_are_split_over_files_with_an_index(tmp_path: Path) -> None:
    small = small_llama()
    folder = amp.save(small, byte_tokenizer(), tmp_path / "saved", max_shard_size=20_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    files = {path.name for path in folder.glob("*.safetensors")}
    assert len(files) > 2 and set(index.values()) == files and index.keys() == weights(small).keys()
    assert torch.equal(logits(amp.load(folder, device="cpu")[0]), logits(small))


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_the_older_names_alone_say_the_same(shape: Shape, tmp_path: Path) -> None:
    """transformers 4 knows only these; transformers 5 still reads them, so it can show that nothing is missing."""
    model = tiny(shape, rope_theta=500.0, rope_local_base_freq=50.0)  # no family's default
    small = amp.prune(model, some_plan(model, heads=2, neurons=8)).model
    folder = amp.save(small, byte_tokenizer(), tmp_path / "saved")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for new in ("rope_parameters", "dtype", *(["num_local_experts"] if "num_experts" in config else [])):
        config.pop(new, None)
    path.write_text(json.dumps(config))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(small))
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_home_folder_is_read_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    small = small_llama()
    amp.save(small, byte_tokenizer(), "~/model")
    assert equal(weights(amp.load("~/model", device="cpu")[0]), weights(small))
    found = amp.prune_folder("~/model", "~/cut", plan=some_plan(small, None, 5), progress=False)
    assert found.folder == tmp_path / "cut" and found.model.num_parameters() < small.num_parameters()
    (tmp_path / "text.txt").write_text(TEXT)
    assert amp.texts("~/text.txt") == [TEXT]


def test_older_names() -> None:
    llama3 = SCALED["llama3"]
    older = older_names({"rope_parameters": llama3, "dtype": "float16"}, {})
    assert older["rope_theta"] == 5e5 and older["rope_scaling"]["factor"] == 8.0 and older["torch_dtype"] == "float16"
    assert "rope_theta" not in older["rope_scaling"]
    turned = dict(rope_type="default", rope_theta=7.0, partial_rotary_factor=0.25)
    assert older_names({"rope_parameters": turned}, dict(amp.FAMILIES["gpt_neox"].older)) == dict(
        rotary_emb_base=7.0, rotary_pct=0.25
    )
    both = dict(full_attention=dict(rope_theta=9.0), sliding_attention=dict(rope_theta=3.0))
    assert older_names({"rope_parameters": both}, {}) == dict(rope_theta=9.0, rope_local_base_freq=3.0)
    assert older_names({}, {}) == {}


# Nothing is lost


def test_an_empty_folder_may_be_saved_to_and_a_full_one_on_demand(tmp_path: Path) -> None:
    amp.save(tiny(seed=1), byte_tokenizer(), tmp_path, max_shard_size=20_000)
    (tmp_path / "vocab.json").touch()  # of another tokenizer
    amp.save(tiny(seed=2), byte_tokenizer(), tmp_path, overwrite=True)
    stale = ("vocab.json", "model.safetensors.index.json", "model-00001-of-00003.safetensors")
    assert not any((tmp_path / name).exists() for name in stale)
    assert equal(weights(amp.load(tmp_path, device="cpu")[0]), weights(tiny(seed=2)))


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, tokenizer = amp.save(tiny(seed=1), byte_tokenizer(), tmp_path / "model"), byte_tokenizer()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", full)
    with pytest.raises(OSError, match="no space"):
        amp.save(tiny(seed=2), tokenizer, folder, overwrite=True)
    with pytest.raises(OSError, match="no space"):
        amp.save(tiny(seed=2), tokenizer, tmp_path / "other")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert equal(weights(amp.load(folder, device="cpu")[0]), weights(tiny(seed=1)))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: a disk that is full, as far as a writer can see."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [100, 3_000, 20_000])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(size: int, tmp_path: Path) -> None:
    source = amp.save(tiny(seed=1), byte_tokenizer(), tmp_path / "source")
    model, tokenizer = amp.load(source, device="cpu")
    small = amp.prune(model, some_plan(model, heads=2, neurons=9)).model
    target = amp.save(tiny(seed=2), byte_tokenizer(), tmp_path / "target")
    with largest_file(size), pytest.raises(OSError, match="Could not write .*target: .*File too large") as caught:
        amp.save(small, tokenizer, target, overwrite=True)
    assert "\n" not in str(caught.value) and str(caught.value).endswith("is untouched.")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "target"]
    assert equal(weights(amp.load(source, device="cpu")[0]), weights(tiny(seed=1)))
    assert equal(weights(amp.load(target, device="cpu")[0]), weights(tiny(seed=2)))


def killed(script: str, *arguments: object) -> None:
    """Run Python code in a process of its own, in which it kills itself as `kill -9` does (a fork may hang)."""
    there = {"PYTHONPATH": os.pathsep.join([str(Path(amp.__file__).parents[1]), str(Path(__file__).parent)])}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    found = subprocess.run(command, env=os.environ | there, capture_output=True, text=True, timeout=300)
    assert found.returncode == -signal.SIGKILL, found.stderr


def at_move(n: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Act in place of the n-th move of a folder to its new name."""
    move, calls = Path.replace, iter(range(100))

    def replace(self: Path, target: Path) -> Path:
        if self.is_dir() and next(calls) == n:
            act()
        return move(self, target)

    monkeypatch.setattr(Path, "replace", replace)


OVERWRITE = """
import os, pathlib, shutil, signal, sys
import amp_tutorial as amp
from helpers import byte_tokenizer, tiny

folder, step = sys.argv[1:]
def dying(whole, name):
    def call(path, *args, **options):
        if pathlib.Path(path).name == name and pathlib.Path(path).is_dir():
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(path, *args, **options)
    return call
if step == "before it is removed":
    shutil.rmtree = dying(shutil.rmtree, ".model.old")
else:
    first = "model" if step == "before the old folder is moved" else ".model.part"
    pathlib.Path.replace = dying(pathlib.Path.replace, first)
amp.save(tiny(seed=2), byte_tokenizer(), folder, overwrite=True)
"""


@pytest.mark.parametrize("step", ["before the old folder is moved", "between the two moves", "before it is removed"])
def test_a_kill_while_overwriting_loses_nothing(step: str, tmp_path: Path) -> None:
    old, new, here = tiny(seed=1), tiny(seed=2), tmp_path / "a"
    target = amp.save(old, byte_tokenizer(), here / "model")
    killed(OVERWRITE, target, step)
    expected = {
        "before the old folder is moved": {"model": old, ".model.part": new},
        "between the two moves": {".model.old": old, ".model.part": new},
        "before it is removed": {"model": new, ".model.old": old},
    }[step]
    assert {path.name for path in here.iterdir() if path.is_dir()} == set(expected)
    for name, model in expected.items():  # every folder is whole
        assert equal(weights(amp.load(here / name, device="cpu")[0]), weights(model))
    shutil.copytree(here, tmp_path / "b")
    amp.save(tiny(seed=3), byte_tokenizer(), target, overwrite=True)
    assert [path.name for path in here.iterdir()] == ["model"]
    assert equal(weights(amp.load(target, device="cpu")[0]), weights(tiny(seed=3)))
    # What the kill left is not overwritten without being asked to, wherever it lies.
    with pytest.raises(ValueError, match="model is not empty"):
        amp.save(tiny(seed=3), byte_tokenizer(), tmp_path / "b" / "model")
    kept = new if step == "before it is removed" else old
    assert equal(weights(amp.load(tmp_path / "b" / "model", device="cpu")[0]), weights(kept))


@pytest.mark.parametrize("n", [0, 1])
def test_a_move_that_fails_puts_the_old_folder_back(n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = amp.save(tiny(seed=1), byte_tokenizer(), tmp_path / "model")

    def fail() -> None:
        raise PermissionError("not permitted")

    with monkeypatch.context() as patched:
        at_move(n, fail, patched)
        with pytest.raises(OSError, match="Could not write .*model: not permitted; .* what was there is untouched"):
            amp.save(tiny(seed=2), byte_tokenizer(), target, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert equal(weights(amp.load(target, device="cpu")[0]), weights(tiny(seed=1)))


def test_a_target_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "model")
    for seed in (1, 2):
        amp.save(tiny(seed=seed), byte_tokenizer(), tmp_path / "link", overwrite=True)
        assert (tmp_path / "link").is_symlink() and [p.name for p in (tmp_path / "disk").iterdir()] == ["model"]
        assert equal(weights(amp.load(tmp_path / "link", device="cpu")[0]), weights(tiny(seed=seed)))


def test_a_place_where_nothing_can_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Could not write .*model: ") as caught:
        amp.save(tiny(), None, tmp_path / "file" / "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("with_tokenizer", [True, False])
@pytest.mark.parametrize("cut", [True, False])
def test_the_source_is_never_overwritten(cut: bool, with_tokenizer: bool, tmp_path: Path) -> None:
    source = amp.save(tiny(), byte_tokenizer(), tmp_path / "models" / "source")
    (tmp_path / "link").symlink_to(source)
    model, tokenizer = amp.load(source, device="cpu")
    model = amp.prune(model, some_plan(model, heads=2, neurons=9)).model if cut else model
    for target in (source, source.parent, tmp_path / "link", source / ".." / "source"):
        with pytest.raises(ValueError, match="this model was loaded from"):
            amp.save(model, tokenizer if with_tokenizer else None, target, overwrite=True)
    assert equal(weights(amp.load(source, device="cpu")[0]), weights(tiny()))
    other = amp.save(model, tokenizer, tmp_path / "models" / "source-small", overwrite=True)
    assert "source" not in (other / "config.json").read_text()
    amp.save(model, tokenizer, other, overwrite=True)  # twice to the same place is no harm
