"""A smaller vocabulary: the same text in the same tokens, the same model for those that stay, and files that load.

And whole experts: a score against a plain loop, and the cut model against the dense one whose router sees fewer.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import (
    COVERING,
    PLAIN,
    TEXT,
    VOCABULARY,
    Shape,
    batch,
    byte_tokenizer,
    equal,
    every,
    families,
    prompts,
    tiny,
    weights,
)
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

import amp_tutorial as amp
from amp_tutorial.core.checkpoint import without_weights
from amp_tutorial.core.sums import model_inputs
from amp_tutorial.files import ROOT
from amp_tutorial.methods import vocabulary
from amp_tutorial.methods.experts import ALWAYS_TWO, EXPERT_CRITERIA, mixtures
from amp_tutorial.methods.shots import composed

ROWS = prompts()
TOKENS = sorted({0, 1, 2, 3} | {token for row in ROWS for token in row} | set(range(200, 259)))
BATCHES = [batch(ROWS, left=left) for left in (False, True)]
DOCUMENTS = [
    *TEXT.split(". "),
    "Élan vital, naïve façade: déjà vu!",
    "the red kite the blue ball the old mill",
    "def f(x):\n    return x ** 2  # 12345",
    "  two  spaces,\ttabs\n\n\nand lines  ",
    "數學 и алгебра 🙂🙃",
]
SPECIAL = ["<unk>", "<s>", "</s>"]


def renumbered(tokens: Sequence[int]) -> list[dict[str, Tensor]]:
    kept = torch.tensor(tokens)
    return [{**each, "input_ids": torch.searchsorted(kept, each["input_ids"])} for each in BATCHES]


def said(model: PreTrainedModel, each: dict[str, Tensor]) -> Tensor:
    """Logits of the tokens that are there."""
    with torch.no_grad():
        logits: Tensor = model(**model_inputs(model, each)).logits
    return logits[each["attention_mask"].bool()]


# The tokenizer


def fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    start, end, unknown = "<s>", "</s>", "<unk>"
    pair = [(start, tokenizer.token_to_id(start))]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=pair)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=start, eos_token=end, unk_token=unknown)


def trained(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of each kind that language models have, trained on the documents."""
    options: dict[str, Any] = dict(special_tokens=SPECIAL, show_progress=False)
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options
        )
    elif kind == "sentencepiece":  # LLaMA 2: letters, and bytes for those that are not there
        bytes_of = [f"<0x{n:02X}>" for n in range(256)]
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=600, limit_alphabet=40, **options | dict(special_tokens=SPECIAL + bytes_of)
        )
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", **options)
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=300, **options)
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(**options)
    tokenizer.train_from_iterator(DOCUMENTS * 3, trainer)
    stored = json.loads(tokenizer.to_str())
    stored["added_tokens"] = [token for token in stored["added_tokens"] if token["content"] in SPECIAL]
    return fast(Tokenizer.from_str(json.dumps(stored)))


KINDS = ["bytes", "sentencepiece", "unigram", "wordpiece", "words"]
TOKENIZERS = {kind: trained(kind) for kind in KINDS}


def model_for(tokenizer: PreTrainedTokenizerFast, **settings: Any) -> PreTrainedModel:
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    ends = dict(bos_token_id=ids["<s>"], eos_token_id=ids["</s>"], pad_token_id=None)
    return tiny(PLAIN, vocabulary=len(tokenizer), **ends | settings)


@pytest.mark.parametrize("kind", KINDS)
@given(chosen=st.lists(st.integers(0, len(DOCUMENTS) - 1), min_size=1, max_size=3, unique=True))
def test_the_text_is_read_in_the_same_tokens(kind: str, chosen: list[int]) -> None:
    tokenizer, text = TOKENIZERS[kind], [DOCUMENTS[i] for i in chosen]
    tokens = amp.tokens_in_use(model_for(tokenizer), tokenizer, text)
    smaller = amp.smaller_tokenizer(tokenizer, tokens)
    assert len(smaller) == len(tokens) <= len(tokenizer)
    for document in text:
        ids = smaller(document)["input_ids"]
        assert [tokens[number] for number in ids] == tokenizer(document)["input_ids"]
        assert smaller.decode(ids) == tokenizer.decode(tokenizer(document)["input_ids"])
    for name in SPECIAL:
        assert tokens[smaller.convert_tokens_to_ids(name)] == tokenizer.convert_tokens_to_ids(name)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_any_other_text_can_still_be_written(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    smaller = amp.smaller_tokenizer(tokenizer, amp.tokens_in_use(model_for(tokenizer), tokenizer, ["the mill"]))
    assert len(smaller) < len(tokenizer)
    for document in DOCUMENTS:
        one, other = (t.decode(t(document)["input_ids"], skip_special_tokens=True) for t in (tokenizer, smaller))
        assert other == one == document


def test_what_is_rare_goes_too_and_is_then_read_in_pieces() -> None:
    tokenizer = TOKENIZERS["bytes"]
    model, text = model_for(tokenizer), ["the kite", "the mill", "the ball"]
    used, often = (amp.tokens_in_use(model, tokenizer, text, least=n) for n in (1, 2))
    assert set(often) < set(used)
    smaller = amp.smaller_tokenizer(tokenizer, often)
    assert smaller.decode(smaller("the kite")["input_ids"], skip_special_tokens=True) == "the kite"
    assert len(smaller("the kite")["input_ids"]) > len(tokenizer("the kite")["input_ids"])


def test_older_files_say_merges_as_strings() -> None:
    tokenizer = TOKENIZERS["bytes"]
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    stored["model"]["merges"] = [" ".join(pair) for pair in stored["model"]["merges"]]
    older = fast(Tokenizer.from_str(json.dumps(stored)))
    model = model_for(tokenizer)
    assert amp.tokens_in_use(model, older, DOCUMENTS[:2]) == amp.tokens_in_use(model, tokenizer, DOCUMENTS[:2])
    pairs = [pair.split(" ") for pair in stored["model"]["merges"]]
    assert vocabulary._merges(stored["model"]) == vocabulary._merges({"merges": pairs})


def test_added_tokens_and_a_chat_template_stay() -> None:
    tokenizer = trained("bytes")
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|turn|>", special=True)]})
    tokenizer.add_tokens(["kite-like"])
    tokenizer.chat_template = "{% for m in messages %}<|turn|>{{ m.role }} says {{ m.content }}{% endfor %}"
    model = model_for(tokenizer)
    tokens = amp.tokens_in_use(model, tokenizer, ["see the mill"])
    smaller = amp.smaller_tokenizer(tokenizer, tokens)
    talk = [{"role": "user", "content": "the mill"}, {"role": "assistant", "content": "the mill"}]
    dense, small = (one.apply_chat_template(talk, tokenize=True, return_dict=False) for one in (tokenizer, smaller))
    assert [tokens[number] for number in small] == dense
    assert smaller.tokenize("a kite-like <|turn|>").count("kite-like") == 1
    assert smaller.chat_template == tokenizer.chat_template


# The model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shape", families(every([name for name in COVERING])))
def test_the_cut_model_is_the_masked_one_and_loads_again(shape: Shape, tied: bool, tmp_path: Path) -> None:
    model = tiny(Shape(**{**vars(shape), "tied": tied}))
    before, whole = weights(model), amp.keep(model, amp.score(model, [], "random"))
    plan = amp.with_tokens(whole, TOKENS, model)
    with amp.masked(model, plan):
        wanted = [said(model, each) for each in BATCHES]
    gone = sorted(set(range(VOCABULARY)) - set(TOKENS))
    assert all(bool((one[:, gone] == -torch.inf).all()) for one in wanted)
    result = amp.prune(model, plan)
    assert equal(before, model.state_dict())
    small = renumbered(TOKENS)
    found = [said(result.model, each) for each in small]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other[:, TOKENS], rtol=0, atol=1e-5)
    assert model.num_parameters() - result.model.num_parameters() == round(plan.achieved * model.num_parameters())
    result.save(tmp_path / "small", byte_tokenizer())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype="auto").eval()
    assert equal(again.state_dict(), result.model.state_dict())
    for each, one in zip(small, found, strict=True):
        torch.testing.assert_close(said(again, each), one, rtol=0, atol=1e-5)
    loaded, tokenizer = amp.load(tmp_path / "small", device="cpu")
    assert loaded.config.vocab_size == len(TOKENS) and tokenizer.convert_tokens_to_ids("<pad>") == 2


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # gemma2 bends its logits after the head
def test_the_loss_of_the_masked_model_is_that_of_the_cut_one(family: str) -> None:
    model = tiny(Shape(family))
    plan = amp.with_tokens(amp.keep(model, amp.score(model, [], "random"), neurons=16), TOKENS, model)
    given, small = ({**each[0], "labels": each[0]["input_ids"]} for each in (BATCHES, renumbered(TOKENS)))
    with torch.no_grad(), amp.masked(model, plan):
        wanted = model(**given).loss
    found = amp.prune(model, plan).model(**small).loss
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    assert model(**given).loss > wanted, "the dense model hands out probability to what goes"


def test_masked_text_with_a_token_that_goes_is_refused() -> None:
    model = tiny()
    plan = amp.with_tokens(amp.keep(model, amp.score(model, [], "random")), range(200), model)
    with amp.masked(model, plan), pytest.raises(ValueError, match=r"holds token 2\d\d, which the plan takes away"):
        said(model, BATCHES[0])
    said(model, BATCHES[0])  # the hooks are gone


@pytest.mark.parametrize("ratio", [0.2, 0.35])
@pytest.mark.parametrize("tied", [False, True])
def test_tokens_and_widths_share_one_budget(tied: bool, ratio: float, tmp_path: Path) -> None:
    model = tiny(Shape(layers=3, hidden=24, neurons=200, groups=2, group_size=2, tied=tied))
    scores = amp.score(model, BATCHES)
    plan = amp.plan_with_tokens(model, scores, ratio, TOKENS)
    removed = 1 - amp.prune(model, plan).model.num_parameters() / model.num_parameters()
    assert plan.asked == ratio and plan.achieved == pytest.approx(removed, abs=1e-12)
    assert abs(plan.achieved - ratio) <= 3 * 3 * 24 / model.num_parameters(), "a neuron in each layer"
    assert amp.Plan.load(plan.save(tmp_path / "plan.json")) == plan
    assert f"of the vocabulary {len(TOKENS):,} tokens stay" in str(plan)
    shallow = amp.with_layers(plan, [0, 2], model)
    removed = 1 - amp.prune(model, shallow).model.num_parameters() / model.num_parameters()
    assert shallow.achieved == pytest.approx(removed, abs=1e-12) and shallow.tokens == TOKENS
    assert amp.with_tokens(plan, TOKENS, model) == plan, "tokens are not counted twice"
    assert amp.preview(model, plan).parameters[1] == amp.prune(model, plan).model.num_parameters()


def test_two_plans_in_a_row_are_one() -> None:
    model = tiny()
    scores = amp.score(model, BATCHES)
    first = amp.with_tokens(amp.keep(model, scores, neurons=20), TOKENS, model)
    small = amp.prune(model, first).model
    then = amp.with_tokens(amp.keep(small, amp.score(small, renumbered(TOKENS)), neurons=12), range(40), small)
    both = composed(first, then)
    assert both.tokens == TOKENS[:40]
    one, two = amp.prune(model, both).model, amp.prune(small, then).model
    assert equal(one.state_dict(), two.state_dict())


@pytest.mark.parametrize("tied", [False, True])
def test_repair_and_the_files_cut_alike(tied: bool, tmp_path: Path) -> None:
    model = tiny(Shape(tied=tied, neurons=24))
    plan = amp.with_tokens(amp.keep(model, amp.score(model, BATCHES), neurons=12), TOKENS, model)
    without = amp.repair(model, amp.keep(model, amp.score(model, BATCHES), neurons=12), BATCHES, progress=False)
    repaired = amp.repair(model, plan, BATCHES, progress=False)
    assert repaired.plan == plan
    dense, small = (said(m, b[0]) for m, b in ((without.model, BATCHES), (repaired.model, renumbered(TOKENS))))
    torch.testing.assert_close(small, dense[:, TOKENS], rtol=0, atol=1e-5)
    amp.save(model, byte_tokenizer(), tmp_path / "dense")
    for name, repair in (("cut", False), ("repaired", True)):
        folder = amp.prune_folder(
            tmp_path / "dense", tmp_path / name, plan=plan, repair=repair, batches=BATCHES, progress=False
        )
        wanted = repaired.model if repair else amp.prune(model, plan).model
        assert equal(folder.model.state_dict(), wanted.state_dict())
        assert len(AutoTokenizer.from_pretrained(tmp_path / name)) == len(TOKENS)
        assert folder.model.config.eos_token_id == folder.model.generation_config.eos_token_id == 1


def test_what_the_configurations_name_is_numbered_anew() -> None:
    model = tiny(vocabulary=300, eos_token_id=[1, 299], pad_token_id=None)
    model.config.pad_token_id = 300  # that the model never had
    model.generation_config.suppress_tokens = [5, 250, 270]
    model.generation_config.bad_words_ids = [[250, 270], [5, 270]]
    model.generation_config.sequence_bias = [[[250], 2.0], [[5, 250], 1.0]]
    model.generation_config.pad_token_id = -1
    model.generation_config.force_words_ids = [[1], [250, 299]]
    tokens = [0, 1, *range(240, 300)]
    assert vocabulary.named_by(model.config) == {0, 1, 299, 300}
    plan = amp.with_tokens(amp.keep(model, amp.score(model, [], "random")), tokens, model)
    small = amp.prune(model, plan).model
    assert (small.config.eos_token_id, small.config.bos_token_id, small.config.pad_token_id) == ([1, 61], 0, None)
    generation = small.generation_config
    assert (generation.eos_token_id, generation.suppress_tokens) == ([1, 61], [12, 32])
    assert vocabulary.named_by(model.generation_config) >= {250, 299} and generation.force_words_ids == [[1], [12, 61]]
    assert generation.sequence_bias == [[[12], 2.0]] and generation.pad_token_id is None
    assert generation.bad_words_ids == [[12, 32]] and small.config.vocab_size == 62
    assert model.generation_config.suppress_tokens == [5, 250, 270], "the dense model's stays"


def test_the_committed_model_without_what_a_text_does_not_use(tmp_path: Path) -> None:
    model, tokenizer = amp.load("tiny-llama", device="cpu")
    text = amp.texts("tinyworld")[:40]
    tokens = amp.tokens_in_use(model, tokenizer, text)
    plan = amp.plan_with_tokens(model, amp.score(model, amp.calibration(tokenizer, samples=8)), 0.3, tokens)
    folder = amp.prune(model, plan).save(tmp_path / "small")  # the tokenizer is that of where the model came from
    small, smaller = amp.load(folder, device="cpu")
    assert small.num_parameters() / model.num_parameters() == pytest.approx(0.7, abs=0.002)
    assert [tokens[i] for i in smaller(text[0])["input_ids"]] == tokenizer(text[0])["input_ids"]
    with amp.masked(model, plan), torch.no_grad():
        wanted = model(**tokenizer(text[0], return_tensors="pt")).logits[..., tokens]
    found = small(**smaller(text[0], return_tensors="pt")).logits.detach()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_a_second_step_asks_for_the_tokenizer(tmp_path: Path) -> None:
    """The one that the dense model came with is no longer that of a model whose vocabulary was cut."""
    model, tokenizer = amp.load("tiny-llama", device="cpu")
    tokens = amp.tokens_in_use(model, tokenizer, amp.texts("tinyworld")[:30])
    once = amp.prune(model, amp.with_tokens(amp.keep(model, amp.score(model, [], "random")), tokens, model)).model
    narrower = amp.keep(once, amp.score(once, [], "random"), neurons=64)
    again = amp.with_tokens(narrower, range(300), once)
    for plan in (narrower, again):
        with pytest.raises(ValueError, match=r"the model there has 1,536 tokens, .*\d\); give tokenizer"):
            amp.prune(once, plan).save(tmp_path / "two")
        assert not (tmp_path / "two").exists()
    smaller = amp.smaller_tokenizer(tokenizer, tokens)
    text = amp.texts("tinyworld")[0]
    amp.prune(once, narrower).save(tmp_path / "two", smaller)
    assert amp.load(tmp_path / "two")[1](text)["input_ids"] == smaller(text)["input_ids"]


def test_a_smaller_tokenizer_is_known_again(tmp_path: Path) -> None:
    """By a mark, not by its size: a pad token beyond the embedding, as many models have, is a token more."""
    tokenizer = trained("bytes")
    model = model_for(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokens = amp.tokens_in_use(model, tokenizer, ["the kite"])
    smaller = amp.smaller_tokenizer(tokenizer, tokens)
    assert amp.smaller_tokenizer(smaller, tokens) is smaller
    ids = smaller("the kite")["input_ids"]
    plan = amp.with_tokens(amp.keep(model, amp.score(model, [], "random")), tokens, model)
    amp.prune(model, plan).save(tmp_path / "a", smaller)
    amp.prune(model, plan).save(tmp_path / "b", tokenizer)
    for name in "ab":
        assert amp.load(tmp_path / name)[1]("the kite")["input_ids"] == ids
    plain = TOKENIZERS["bytes"]
    few = amp.tokens_in_use(model, plain, ["the kite"])
    amp.smaller_tokenizer(plain, few).save_pretrained(tmp_path / "small")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "small")
    assert amp.smaller_tokenizer(loaded, few) is loaded


def test_joined_text_is_read_as_perplexity_joins_it() -> None:
    tokenizer = trained("bytes")
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    stored["model"]["vocab"] |= {"ĊĊ": len(tokenizer), "ĊĊĊ": len(tokenizer) + 1}
    stored["model"]["merges"] += [["Ċ", "Ċ"], ["ĊĊ", "Ċ"]]
    tokenizer = fast(Tokenizer.from_str(json.dumps(stored)))
    model, text = model_for(tokenizer), ["the kite\n", "", "the mill"]
    apart, joined = (amp.tokens_in_use(model, tokenizer, text, join=join) for join in (None, "\n"))
    assert set(tokenizer("\n".join(text))["input_ids"]) <= set(joined) and len(joined) > len(apart)


def test_a_template_that_wants_another_conversation_is_passed_over() -> None:
    tokenizer = trained("bytes")
    tokenizer.chat_template = "{{ raise_exception('First must be system') }}"
    plain = amp.tokens_in_use(model_for(tokenizer), TOKENIZERS["bytes"], ["the mill"])
    assert amp.tokens_in_use(model_for(tokenizer), tokenizer, ["the mill"]) == plain


def test_the_loss_of_routers_stays_in_the_masked_model() -> None:
    model = tiny(Shape("granitemoe"), output_router_logits=True, router_aux_loss_coef=0.5)
    plan = amp.with_tokens(amp.keep(model, amp.score(model, [], "random")), TOKENS, model)
    small = amp.prune(model, plan).model
    for more in ({}, {"num_items_in_batch": 100}):
        given, cut = ({**each[0], "labels": each[0]["input_ids"], **more} for each in (BATCHES, renumbered(TOKENS)))
        with torch.no_grad(), amp.masked(model, plan):
            wanted = model(**given).loss
        torch.testing.assert_close(small(**cut).loss, wanted, rtol=1e-5, atol=0)


def test_a_norm_over_neurons_is_polished_too() -> None:
    model = tiny(Shape("bitnet"))
    plan = amp.keep(model, amp.score(model, BATCHES), neurons=12)
    found = amp.repair(model, plan, BATCHES, polish=2, progress=False)
    assert all(fit.after <= fit.before for fit in found.report.fits if fit.part == "MLP")


def test_the_share_of_a_real_models_parameters_that_the_page_names() -> None:
    """docs/library.md says it of SmolLM2-135M, whose shape and number of parameters are among the data."""
    shape = yaml.safe_load((amp.DATA / "configs.yaml").read_text())["smollm2-135m"]
    model = without_weights(LlamaConfig(**{name: value for name, value in shape.items() if name != "model_type"}))
    share = vocabulary.token_parameters(model) * vocabulary.rows_of(model) / model.num_parameters()
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    assert f"of SmolLM2-135M {share:.0%}".replace("%", " %") in page


def test_what_cannot_be_done_is_said() -> None:
    model, tokenizer = tiny(), byte_tokenizer()
    whole = amp.keep(model, amp.score(model, [], "random"))
    for wrong in ([], [3, 2, 1], [0, 1, 1], [-1, 0], [0, 1, 2, 259]):
        with pytest.raises(
            ValueError, match=r"A plan's tokens=\[.* must name at least one, each once, ascending, from 0"
        ):
            amp.with_tokens(whole, wrong, model)
    with pytest.raises(ValueError, match=r"Token 1 goes, which the model's configuration has as eos_token_id; keep it"):
        amp.with_tokens(whole, [0, 2, 3], model)
    with pytest.raises(ValueError, match=r"The tokens that go are .* no less than pruning_ratio=0\.001"):
        amp.plan_with_tokens(model, amp.score(model, BATCHES), 0.001, TOKENS)
    plan, other = amp.with_tokens(whole, TOKENS, model), tiny(vocabulary=1000)
    for run in (amp.prune, amp.preview, lambda *given: amp.masked(*given).__enter__()):
        with pytest.raises(ValueError, match="The plan is for 259 tokens, the model has 1,000; plan anew for it"):
            run(other, plan)
    for tokens in ([], [5, 5], [2, 1], [0, 259], [-1]):
        with pytest.raises(ValueError, match=r"A plan.s tokens=\[.* must name at least one, each once, ascending"):
            replace(plan, tokens=tokens)
    assert amp.with_tokens(whole, torch.tensor(TOKENS), model) == plan  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"pruning_ratio=0\.9 less \d+\.\d% for tokens"):
        amp.plan_with_tokens(model, amp.score(model, BATCHES), 0.9, TOKENS, parts="neurons")
    with pytest.raises(ValueError, match="least=0 must be at least 1"):
        amp.tokens_in_use(model, tokenizer, ["a"], least=0)
    with pytest.raises(ValueError, match="The tokenizer needs token 1, which goes"):
        amp.smaller_tokenizer(TOKENIZERS["bytes"], [0, 2, 3])
    ending = Tokenizer(models.BPE({"a</w>": 0, "b": 1}, [], end_of_word_suffix="</w>"))
    with pytest.raises(ValueError, match="marks where words begin or end"):
        amp.tokens_in_use(model, PreTrainedTokenizerFast(tokenizer_object=ending), ["a"])
    slow: Any = type("Slow", (PreTrainedTokenizerBase,), {"__init__": lambda _: None})()
    with pytest.raises(ValueError, match="A Slow is not of the tokenizers library"):
        amp.tokens_in_use(model, slow, ["a"])


MIXTURES = [
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "gpt_oss",
    "glm4_moe",
    "ernie4_5_moe",
    "granitemoe",
    "phimoe",
]


@contextmanager
def shut(model: PreTrainedModel, kept: dict[int, list[int]]) -> Iterator[None]:
    """Routers see −∞ for the experts that go, right where their own code multiplies; corrections cannot lift it."""
    corrected, linear = copy.deepcopy(model.state_dict()), nn.functional.linear
    gone = {}
    for i, (router, _) in mixtures(model).items():
        gone[router.weight.data_ptr()] = torch.ones(len(router.weight), dtype=torch.bool)
        gone[router.weight.data_ptr()][kept[i]] = False
        for name, tensor in [*router.named_parameters(), *router.named_buffers()]:
            if "correction" in name:
                tensor.data[..., gone[router.weight.data_ptr()]] = -torch.inf

    def seen(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        found = linear(x, weight, bias)
        hidden = gone.get(weight.data_ptr())
        return found if hidden is None or weight.ndim != 2 else found.masked_fill(hidden, -torch.inf)

    nn.functional.linear = seen  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.functional.linear = linear
        model.load_state_dict(corrected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("family", MIXTURES)
def test_the_cut_model_is_the_dense_one_with_routers_that_see_fewer(
    family: str, keep: int, dtype: str, tmp_path: Path
) -> None:
    if family in ALWAYS_TWO:
        keep = max(2, keep)
    model = tiny(Shape(family, layers=2, dtype=dtype))
    before = copy.deepcopy(model.state_dict())
    result = amp.drop_experts(model, amp.score_experts(model, BATCHES), keep)
    assert equal(before, model.state_dict()), "the dense model is left alone"
    kept = result.report.kept
    [(router, experts), *others] = mixtures(model).values()  # of some families the first layer has none
    layers = 1 + len(others)
    assert str(result.report) == f"{keep} of {len(router.weight)} experts stay in each of {layers} layers"
    with shut(model, kept):
        wanted = [said(model, each) for each in BATCHES]
    found = [said(result.model, each) for each in BATCHES]
    close: dict[str, Any] = dict(rtol=0, atol=1e-5) if dtype == "float32" else dict(rtol=0.05, atol=0.05)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, **close)
    gone = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in result.model.parameters())
    of_one = sum(p.numel() // len(router.weight) for p in [*experts.parameters(), *router.parameters()])
    assert gone == layers * (len(router.weight) - keep) * of_one
    amp.save(result.model, byte_tokenizer(), tmp_path / "small")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype="auto").eval()
    assert all(torch.equal(said(again, each), one) for each, one in zip(BATCHES, found, strict=True))
    assert amp.load(tmp_path / "small", device="cpu")[0].num_parameters() == again.num_parameters()


@pytest.mark.parametrize("family", MIXTURES)
def test_scores_are_those_of_a_plain_loop(family: str) -> None:
    """Token by token, and expert by expert with its own matrices; padding is left out."""
    model = tiny(Shape(family, layers=2))
    reap, frequency = (amp.score_experts(model, BATCHES, criterion) for criterion in EXPERT_CRITERIA)
    seen: dict[int, list[tuple[int, float]]] = {i: [] for i in mixtures(model)}
    masks: list[Tensor] = []

    def look(i: int, module: Any, args: tuple[Tensor, ...]) -> None:
        for x, chosen, shares, real in zip(*args, masks[-1].flatten().tolist(), strict=True):
            for e, weight in zip(chosen.tolist(), shares.tolist(), strict=True):
                if hasattr(module, "gate_up_proj_bias"):  # GPT-OSS: the other way round
                    both = module._apply_gate(x @ module.gate_up_proj[e] + module.gate_up_proj_bias[e])
                    written = both @ module.down_proj[e] + module.down_proj_bias[e]
                else:
                    gate, up = (module.gate_up_proj[e] @ x).chunk(2)
                    written = module.down_proj[e] @ (module.act_fn(gate) * up)
                if real:
                    seen[i].append((e, weight * float(written.norm())))

    hooks = [e.register_forward_pre_hook(lambda m, a, i=i: look(i, m, a)) for i, (_, e) in mixtures(model).items()]
    for each in BATCHES:
        masks.append(each["attention_mask"])
        said(model, each)
    for hook in hooks:
        hook.remove()
    tokens = sum(int(mask.sum()) for mask in masks)
    for i, found in seen.items():
        for e in range(len(reap[i])):
            mine = [value for expert, value in found if expert == e]
            assert frequency[i][e] == pytest.approx(len(mine) / tokens)
            assert reap[i][e] == pytest.approx(sum(mine) / len(mine) if mine else 0, rel=1e-4)


def test_an_expert_that_writes_nothing_goes_first() -> None:
    model = tiny(Shape("mixtral", layers=2))
    for _, experts in mixtures(model).values():
        experts.down_proj.data[1] = 0
    scores = amp.score_experts(model, BATCHES)
    assert all(values.argmin() == 1 and values[1] == 0 for values in scores.values())
    assert all(1 not in kept for kept in amp.drop_experts(model, scores, 3).report.kept.values())


def test_layers_without_experts_stay_as_they_are() -> None:
    model = tiny(Shape("qwen3_moe", layers=3), mlp_only_layers=[1])
    scores = amp.score_experts(model, BATCHES)
    assert set(scores) == {0, 2} and set(amp.drop_experts(model, scores, 2).report.kept) == {0, 2}


def test_what_cannot_be_done_with_experts_is_said() -> None:
    model = tiny(Shape("mixtral", layers=2))
    scores = amp.score_experts(model, BATCHES, "frequency")
    with pytest.raises(ValueError, match="A llama has no experts"):
        amp.score_experts(tiny(PLAIN), BATCHES)
    with pytest.raises(ValueError, match="Unknown criterion 'best'; choose from reap, frequency"):
        amp.score_experts(model, BATCHES, "best")
    with pytest.raises(ValueError, match="hold no tokens"):
        amp.score_experts(model, [])
    for keep in (0, 4, -1):
        with pytest.raises(ValueError, match=f"keep={keep} of 4 experts is not possible"):
            amp.drop_experts(model, scores, keep)
    for wrong in ({0: scores[0]}, {0: scores[0], 1: scores[1][:2]}, {0: scores[0], 1: scores[1] * torch.nan}):
        with pytest.raises(ValueError, match="Give a score for each expert of each layer"):
            amp.drop_experts(model, wrong, 2)
    for family in ALWAYS_TWO:
        two = tiny(Shape(family, layers=2))
        with pytest.raises(ValueError, match=f"The routers of a {family} look for two experts always; keep at least 2"):
            amp.drop_experts(two, amp.score_experts(two, BATCHES), 1)
    mixtures(model)[0][1].down_proj.data[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        amp.score_experts(model, BATCHES)
