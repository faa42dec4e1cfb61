"""Perturbed items: what changes, what never does, and that a model is measured on just these."""

import json
import re
import sys
from collections import Counter
from typing import Any

import pytest
from helpers import byte_tokenizer, tiny
from hypothesis import given
from hypothesis import strategies as st

import amp_tutorial as amp
from amp_tutorial.measure.robustness import NEAR, PERTURBATIONS, perturbed, words_of
from amp_tutorial.measure.tasks import Item

ITEMS = [
    json.loads(line)
    for task in amp.TASKS
    for line in (amp.DATA / "tasks" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()[::7]
]
items, names = st.sampled_from(ITEMS), st.sampled_from(sorted(PERTURBATIONS))
rates, seeds = st.floats(0, 1), st.integers(0, 5)


def words(text: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text)]


@given(items, names, rates, seeds)
def test_the_same_item_and_seed_give_the_same_prompt_and_leave_all_else(
    item: Item, name: str, rate: float, seed: int
) -> None:
    before = json.dumps(item)
    found = perturbed(item, name, rate, seed)
    assert found == perturbed(json.loads(before), name, rate, seed) and json.dumps(item) == before
    assert {**found, "prompt": ""} == {**item, "prompt": ""}


@given(items, names, seeds)
def test_rate_zero_changes_nothing(item: Item, name: str, seed: int) -> None:
    assert perturbed(item, name, 0, seed) == item


@given(items, names, rates, seeds)
def test_words_of_the_choices_survive(item: Item, name: str, rate: float, seed: int) -> None:
    protected = words_of(item["choices"])
    kept = [Counter(w for w in words(prompt) if w in protected) for prompt in
            (item["prompt"], perturbed(item, name, rate, seed)["prompt"])]  # fmt: skip
    assert kept[0] <= kept[1]  # a typo may make one more by chance


@given(items, rates, seeds)
def test_typos_keep_the_shape_of_every_word(item: Item, rate: float, seed: int) -> None:
    found = perturbed(item, "typos", rate, seed)["prompt"]
    assert [(c.isalpha(), c.isupper()) for c in found] == [(c.isalpha(), c.isupper()) for c in item["prompt"]]


def test_a_typo_is_a_swap_or_a_key_beside_it() -> None:
    seen = set()
    for seed in range(200):
        found = perturbed(dict(prompt="Bring", choices=["no"], answer=0), "typos", 0.15, seed)["prompt"].lower()
        wrong = [i for i in range(5) if found[i] != "bring"[i]]
        if len(wrong) == 1:
            assert found[wrong[0]] in NEAR["bring"[wrong[0]]]
            seen.add("key")
        elif len(wrong) == 2 and sorted(found) == sorted("bring"):
            assert wrong[1] == wrong[0] + 1
            seen.add("swap")
    assert seen == {"key", "swap"}


def test_keys_beside_each_other() -> None:
    assert (set(NEAR["g"]), set(NEAR["q"]), set(NEAR["m"])) == (set("fhtyvb"), set("wa"), set("njk"))
    assert all(a in NEAR[b] for a in NEAR for b in NEAR[a])


@given(items, rates, rates, seeds)
def test_a_higher_rate_drops_what_a_lower_drops(item: Item, a: float, b: float, seed: int) -> None:
    more, fewer = (perturbed(item, "dropped words", r, seed)["prompt"] for r in (max(a, b), min(a, b)))
    assert not Counter(words(more)) - Counter(words(fewer)) and not Counter(words(fewer)) - Counter(
        words(item["prompt"])
    )


@given(items, seeds)
def test_all_words_dropped_leaves_the_protected_and_the_last(item: Item, seed: int) -> None:
    found = words(perturbed(item, "dropped words", 1, seed)["prompt"])
    *before, last = words(item["prompt"])
    assert found == [w for w in before if w in words_of(item["choices"])] + [last]


@given(items, rates, seeds)
def test_shuffling_moves_distractors_alone(item: Item, rate: float, seed: int) -> None:
    before, found = (re.split(r"(?<=\.) ", p) for p in (item["prompt"], perturbed(item, "shuffled distractors", rate, seed)["prompt"]))  # fmt: skip  # noqa: E501
    assert sorted(found) == sorted(before) and found[-1] == before[-1]
    right, others = item["choices"][item["answer"]], [c for i, c in enumerate(item["choices"]) if i != item["answer"]]
    telling = words_of([right]) - words_of(others)
    assert all(a == b for a, b in zip(before, found, strict=True) if telling & set(words(a)))


def test_a_chain_of_sentences_by_hand() -> None:
    item = dict(
        prompt="Al has it. Bo runs. Cy sits. Al is in the barn. It is in the", choices=["barn", "mill"], answer=0
    )
    seen = {perturbed(item, "shuffled distractors", 1, seed)["prompt"] for seed in range(60)}
    assert len(seen) == 6 and all(p.endswith("Al is in the barn. It is in the") for p in seen)


def test_only_two_tasks_have_distractors_to_shuffle() -> None:
    for task in amp.TASKS:
        lines = (amp.DATA / "tasks" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
        changed = [perturbed(item, "shuffled distractors", 1) != item for item in map(json.loads, lines)]
        assert any(changed) == (task in ("tiny_chain", "tiny_yesno")), task
        assert all(changed[:20]) or task != "tiny_chain"


def test_each_perturbation_has_a_rate_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def noted(*args: Any) -> amp.Accuracy:
        seen.extend(change.keywords["rate"] for change in args[6:])
        return amp.Accuracy()

    monkeypatch.setattr(sys.modules["amp_tutorial.measure.robustness"], "accuracy", noted)
    amp.robustness(tiny(), byte_tokenizer(), list(PERTURBATIONS))
    amp.robustness(tiny(), byte_tokenizer(), list(PERTURBATIONS), rate=0)
    assert seen == [0.1, 0.1, 1.0, 0, 0, 0]


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_seeds_differ(name: str) -> None:
    for seed in range(2):
        prompts = [[perturbed(i, name, 0.5, s)["prompt"] for i in ITEMS] for s in (seed, seed + 1)]
        assert prompts[0] != prompts[1]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(perturbation="noise"), "Unknown perturbation 'noise'; choose from typos"),
        (dict(perturbation=("typos", "noise")), "Unknown perturbation 'noise'"),
        (dict(rate=1.5), "rate=1.5 is no probability"),
        (dict(rate=float("nan")), "rate of robustness must be a finite number"),
        (dict(tasks=["piqa"]), "Items can be changed of tiny_tool"),
    ],
)
def test_bad_input(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        amp.robustness(tiny(), byte_tokenizer(), **settings)


def test_the_model_reads_the_perturbed_prompts() -> None:
    """And the clean ones; rate zero gives the clean accuracy again, and several perturbations share it."""
    model, tokenizer, seen = tiny(), byte_tokenizer(), list[str]()
    spy = model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: seen.extend(tokenizer.batch_decode(args[0], skip_special_tokens=True))
    )
    found = amp.robustness(model, tokenizer, ("typos", "dropped words"), rate=0.3, tasks=["tiny_tool"], limit=4, seed=3)
    spy.remove()
    lines = (amp.DATA / "tasks" / "tiny_tool.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    for item in map(json.loads, lines):
        for prompt in (item["prompt"], *(perturbed(item, n, 0.3, 3)["prompt"] for n in ("typos", "dropped words"))):
            assert any(row.startswith(prompt) for row in seen), prompt
    assert list(found) == ["clean", "typos", "dropped words"]
    assert found["clean"] == amp.accuracy(model, tokenizer, ["tiny_tool"], limit=4)
    same = amp.robustness(model, tokenizer, "typos", rate=0, tasks=["tiny_tool"], limit=4)
    assert same["typos"] == same["clean"] == found["clean"]


@pytest.mark.slow
def test_pure_noise_costs_a_trained_model_its_knowledge() -> None:
    model, tokenizer = amp.load("tiny-llama")
    tasks = ["tiny_tool", "tiny_fact", "tiny_chain"]
    found = amp.robustness(model, tokenizer, ("typos", "dropped words"), rate=1.0, tasks=tasks, limit=80)
    for name in ("typos", "dropped words"):
        assert found[name].mean.high < found["clean"].mean.low
