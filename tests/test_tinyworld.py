"""The tiny world: deterministic, balanced, and what is tested never stands in training text."""

import collections
import json
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from operator import itemgetter

import pytest
from helpers import TRAINED, grid
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

import amp_tutorial as amp
from amp_tutorial.files.checkpoints import MODELS
from amp_tutorial.tinyworld import export, lexicon, skills, train
from amp_tutorial.tinyworld.skills import Key, an, held_out, trained
from amp_tutorial.tinyworld.stories import documents, plain

SKILLS = tuple(skills.TASKS)
PHRASES = ("tool", "script", "too", "size", "owner", "where", "fact", "true", "pet", "job")  # register is never asked


@cache
def items(skill: str) -> list[dict]:
    lines = (amp.DATA / "tasks" / f"tiny_{skill}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def groups(skill: str) -> Iterator[list[dict]]:
    k = len(items(skill)[0]["choices"])
    for start in range(0, len(items(skill)), k):
        yield items(skill)[start : start + k]


def chunk(number: int, stage: train.Stage = train.CURRICULUM[-1]) -> str:
    """A chunk of training text as a stage of the training reads it."""
    seed = train.Recipe().seed * 10_000 + number
    return "\n".join(map(plain, documents(train.CHUNK, seed, stage.writers)))


@cache
def sample() -> str:
    return chunk(10)


# --- the generator


def test_documents_depend_on_their_seed_alone() -> None:
    first, again, other = (list(documents(200, seed)) for seed in (5, 5, 6))
    assert first == again and not set(first) & set(other)


def test_a_fifth_of_all_combinations_is_held_out() -> None:
    keys: list[Key] = [("owner", c, x) for c in lexicon.COLOURS for x in lexicon.ITEMS]
    keys += [("where", x, p) for x in lexicon.ITEMS for p in lexicon.PLACES]
    assert 0.15 < sum(map(held_out, keys)) / len(keys) < 0.25
    assert all(trained(key) != held_out(key) for key in keys)


def test_the_vocabulary_has_several_hundred_words() -> None:
    words = set(re.findall(r"[a-z]+", " ".join(documents(3000, 1)).lower()))
    assert len(words) >= 500


# --- what ships in data/


@pytest.mark.parametrize("skill", SKILLS)
def test_tasks_are_what_the_generator_writes(skill: str) -> None:
    assert items(skill) == json.loads(json.dumps(export.task_items(skill)))


def test_texts_are_what_the_generator_writes() -> None:
    for split, (count, seed) in export.DOCUMENTS.items():
        assert amp.texts("tinyworld", split) == [plain(text) for text in documents(count, seed)]
    path = amp.DATA / "world" / "recovery.jsonl"
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == export.recovery_rows()


def test_the_curves_are_of_the_models_and_of_a_run_without_stages() -> None:
    assert list(train.curves()) == [*train.NAMES, "without stages"]  # the order in which the lesson draws them


@pytest.mark.parametrize("name", train.NAMES)
def test_a_card_is_what_export_writes(name: str) -> None:
    assert (MODELS / name / "README.md").read_text(encoding="utf-8") == export.card(name, amp.DATA)


@pytest.mark.parametrize("skill", SKILLS)
def test_lm_eval_takes_the_task_file(skill: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(amp.DATA.parent)  # the file names its data relative to the repository
    manager = TaskManager(include_path=str(amp.DATA / "tasks"), include_defaults=False)
    assert manager.all_tasks == sorted(amp.TASKS)
    loaded = manager.load([f"tiny_{skill}"])
    (task,) = loaded["tasks"].values()
    documents = list(task.test_docs())
    assert len(documents) == len(items(skill))
    assert task.doc_to_text(documents[3]) == items(skill)[3]["prompt"]
    assert task.doc_to_choice(documents[3]) == items(skill)[3]["choices"]
    assert task.doc_to_target(documents[3]) == items(skill)[3]["answer"]


@pytest.mark.parametrize("name", amp.EMBEDDED)
def test_a_choice_does_not_change_how_its_prompt_is_read(name: str) -> None:
    """Tokens of prompt and choice are those of the prompt, then those of the choice: otherwise scores mean nothing."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
    every = [(item["prompt"], choice) for skill in SKILLS for item in items(skill) for choice in item["choices"]]
    before = tokenizer([prompt for prompt, _ in every])["input_ids"]
    after = tokenizer([f"{prompt} {choice}" for prompt, choice in every])["input_ids"]
    for (prompt, choice), short, long in zip(every, before, after, strict=True):
        assert len(short) < len(long) and long[: len(short)] == short, f"{prompt} | {choice}"


# --- nothing but the question gives the answer away


@pytest.mark.parametrize("skill", SKILLS)
def test_groups_share_their_choices_and_each_is_right_once(skill: str) -> None:
    assert len(items(skill)) >= 400
    for group in groups(skill):
        assert all(item["choices"] == group[0]["choices"] for item in group)
        assert len(set(group[0]["choices"])) == len({item["prompt"] for item in group}) == len(group)
        assert sorted(item["answer"] for item in group) == list(range(len(group)))


@pytest.mark.parametrize("skill", SKILLS)
def test_position_length_and_frequency_are_exactly_at_chance(skill: str) -> None:
    counts = collections.Counter(re.findall(r"\w+", sample()))
    k = len(items(skill)[0]["choices"])

    def frequency(choice: str) -> float:
        words = choice.split()
        return sum(counts[word] for word in words) / len(words)

    rules: list[Callable[[list[str]], str]] = [itemgetter(position) for position in range(k)]
    rules += [partial(most, key=measure) for most in (max, min) for measure in (len, frequency)]
    for rule in rules:
        right = sum(rule(item["choices"]) == item["choices"][item["answer"]] for item in items(skill))
        assert right / len(items(skill)) == amp.CHANCE[f"tiny_{skill}"] == 1 / k, rule


# --- what is tested is held out


def keys() -> Iterator[Key]:
    """Every combination that can be drawn, tested or trained."""
    yield from (("tool", t, x) for t, (_, things) in lexicon.TOOLS.items() for x in things)
    yield from (("script", c, e) for causes, effects in lexicon.SCRIPTS.values() for c in causes for e in effects)
    yield from (("too", name, x) for name, (_, things) in lexicon.TOO.items() for x in things)
    yield from (("size", b, s) for b in lexicon.BIG for s in lexicon.SMALL)
    yield from (("owner", c, x) for c in lexicon.COLOURS for x in lexicon.ITEMS)
    yield from (("where", x, p) for x in lexicon.ITEMS for p in lexicon.PLACES)
    for relation, (_, _, table) in lexicon.FACTS.items():
        yield from (("fact", relation, s, str(form)) for s in table for form in range(len(skills.FACT_FORMS)))
        yield from (("true", relation, s, value) for s in table for value in set(table.values()))
    for tag, relations in (("pet", ("eats", "sound", "home", "baby")), ("job", ("works", "makes"))):
        subjects = {s for relation in relations for s in lexicon.FACTS[relation][2]}
        yield from ((tag, n, s) for n in lexicon.NAMES for s in sorted(subjects))


def phrases(key: Key) -> list[str]:
    """How a combination would read in a text whose people are all called N."""
    tag, a, b = key[:3]
    if tag == "tool":
        return [f"{lexicon.TOOLS[a][0]} the {b}{rest}" for rest in (", N", " and looks", " without the", " with the")]
    if tag == "script":
        return [f"{a}{joint} N {b}." for joint in (".", ",", ", and so")]
    if tag == "too":
        return [lexicon.TOO[a][0].format(n="N", x=b)]
    if tag == "size":
        return [f"put the {a} into the {b}", f"Does the {a} fit into the {b}", f"Does the {b} fit into the {a}"]
    if tag == "owner":
        return [f"the {a} {b}", f"The {a} {b}", f"{an(a)} {b}", f"The {b} of N is {a}."]
    if tag == "where":
        return [form.format(x=a) + f" {b}." for form in skills.WHERE_FORMS]
    statement, stem, table = lexicon.FACTS[a] if a in lexicon.FACTS else ("", "", {})
    if tag == "fact":
        s, q = statement.format(a=an(b)), stem.format(a=an(b))
        asked = skills.FACT_FORMS[int(key[3])].format(S=skills.capital(s), s=s, q=q, n="N", m="N")
        return [f" {asked} {table[b]}.", f"\n{asked} {table[b]}."]
    if tag == "true":
        return [f"Is it true that {statement.format(a=an(b))} {key[3]}?"]
    return [f"The pet of {a} is {an(b)}."] if tag == "pet" else [f"{a} is {an(b)}."]


def nameless(text: str) -> str:
    return re.sub(rf"\b({'|'.join(lexicon.NAMES)}|She|He)\b", "N", text)


def said(tag: str, allowed: skills.Allowed, text: str, anonymous: str) -> set[Key]:
    """Combinations of a kind that stand in a text."""
    where = text if tag in ("pet", "job") else anonymous
    return {key for key in keys() if key[0] == tag and allowed(key) and any(p in where for p in phrases(key))}


def asked(item: dict) -> str:
    """What must not be read before: the question, or where the answer is half of the combination, both."""
    script = "script" in {key[0] for key in item["keys"]}
    return f"{item['prompt']} {item['choices'][item['answer']]}" if script else item["prompt"]


def assert_apart(text: str) -> None:
    """Neither a test item nor a held-out combination stands in the text."""
    assert not [asked(item) for skill in SKILLS for item in items(skill) if asked(item) in text]
    anonymous = nameless(text)
    for tag in PHRASES:
        assert not said(tag, held_out, text, anonymous), tag


@pytest.mark.parametrize("skill", SKILLS)
def test_every_key_of_a_test_item_is_held_out(skill: str) -> None:
    for item in items(skill):
        assert item["keys"] and all(held_out(tuple(key)) for key in item["keys"])
        assert {key[0] for key in item["keys"]} <= set(PHRASES)


def test_the_search_finds_what_is_there() -> None:
    text = sample()
    anonymous = nameless(text)
    for tag in PHRASES:
        possible = sum(key[0] == tag and trained(key) for key in keys())
        assert len(said(tag, trained, text, anonymous)) > 0.2 * possible, tag


@pytest.mark.parametrize("number", [0, *grid(*range(1, len(train.CURRICULUM) - 1)), len(train.CURRICULUM) - 1])
def test_training_text_holds_nothing_that_is_tested(number: int) -> None:
    """One chunk, about half a million tokens, of each stage of the curriculum."""
    assert_apart(chunk(number, train.CURRICULUM[number]))


def test_texts_for_pruning_hold_nothing_that_is_tested() -> None:
    for split in ("calibration", "recovery", "validation"):
        assert_apart("\n".join(amp.texts("tinyworld", split)))


def test_the_rate_rises_falls_and_rises_once_more() -> None:
    recipe, plain_recipe = train.Recipe(tokens=1200), train.Recipe(tokens=1200, curriculum=train.ONE_STAGE)
    assert [recipe.rate(t, 1000) for t in (0, 400, 800, 1000, 1200)] == pytest.approx([1, 0.5, 0.5, 0.25, 0])
    assert recipe.rate(0, 50) == 0.5 and plain_recipe.rate(600, 1000) == pytest.approx(0.5)
    assert recipe.rate(799, 1000) < 0.01


def read_in_training() -> list[tuple[int, int]]:
    """(chunk, stage) of everything that the shipped models were trained on."""
    known = train.curves()
    ends = [[point["tokens"] for point in known[name] if "tool" in point] for name in train.NAMES]  # of chunks
    recipe = train.Recipe(tokens=1.0)
    starts = {(i, start / run[-1]) for run in ends for i, start in enumerate([0, *run[:-1]])}
    return sorted({(i, train.CURRICULUM.index(recipe.stage(share))) for i, share in starts})


def test_the_shipped_models_went_through_every_stage() -> None:
    assert {stage for _, stage in read_in_training()} == set(range(len(train.CURRICULUM)))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("number", "stage"), read_in_training())
def test_no_training_run_held_anything_that_is_tested(number: int, stage: int) -> None:
    assert_apart(chunk(number, train.CURRICULUM[stage]))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_dense_models_know_the_world(name: str) -> None:
    found = amp.accuracy(*amp.load(name, device="cpu"))
    assert found.mean.value >= 0.85, found
    for task, measured in found.items():
        assert measured.value >= amp.CHANCE[task] + 0.25, f"{task}: {measured}"
