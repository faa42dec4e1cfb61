"""Accuracy under perturbed input: typos, dropped words, shuffled distractors. The same items for every model.

Consensus pruning (arXiv 2411.14345, its abstract) claims robustness under adversarial attacks on images, and names none
there; these are the plain accidents of text, defined here, and found by no search for a model's weakness.

What is protected: the choices and which of them is right are never touched; a word of the prompt that stands in any of
the choices (whatever its case) is neither misspelt nor dropped, nor is the last word dropped, which the choice
continues. Words of all choices are protected and not those of the right one alone, which would give it away. Other
words are not, so at a high rate what an item asks may be gone, for every model alike.
"""

import random
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .tasks import TASKS, Accuracy, Item, accuracy, task_names

WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # of a keyboard, each half a key further to the right


def _keys() -> dict[str, str]:
    """For each letter, those whose keys touch its own."""
    found = {}
    for r, row in enumerate(ROWS):
        for i, letter in enumerate(row):
            near = [(r, i - 1), (r, i + 1), (r - 1, i), (r - 1, i + 1), (r + 1, i - 1), (r + 1, i)]
            found[letter] = "".join(ROWS[y][x] for y, x in near if 0 <= y < 3 and 0 <= x < len(ROWS[y]))
    return found


NEAR = _keys()


def words_of(choices: Sequence[str]) -> set[str]:
    """The words of all choices, in lower case."""
    return {word.lower() for choice in choices for word in WORD.findall(choice)}


def typos(item: Item, rate: float, rng: random.Random) -> str:
    """Each letter is hit with probability `rate`: half the time it swaps places with the next, else a key beside it.

    Case stays where it is. A swap needs a next letter, another one, in the same word; else a key beside is hit.
    """
    protected = words_of(item["choices"])

    def misspelt(found: re.Match[str]) -> str:
        word, letters, i = found[0], list(found[0]), 0
        draws = [(rng.random(), rng.random(), rng.random()) for _ in word]  # also for a word that is protected
        if word.lower() in protected:
            return word
        while i < len(letters):
            hit, kind, key = draws[i]
            here, after = letters[i].lower(), "".join(letters[i + 1 : i + 2]).lower()
            if hit < rate and kind < 0.5 and after.isalpha() and after != here:
                letters[i : i + 2] = after, here
                i += 1
            elif hit < rate and here in NEAR:
                letters[i] = NEAR[here][int(key * len(NEAR[here]))]
            i += 1
        return "".join(new.upper() if old.isupper() else new for new, old in zip(letters, word, strict=True))

    return WORD.sub(misspelt, item["prompt"]) if rate else item["prompt"]


def dropped(item: Item, rate: float, rng: random.Random) -> str:
    """Each word goes with probability `rate`, with the space before it; punctuation stays.

    With the seed kept, a higher rate drops every word that a lower rate drops, and more.
    """
    prompt, protected = item["prompt"], words_of(item["choices"])
    words = list(WORD.finditer(prompt))
    hit = [rng.random() < rate for _ in words]
    gone = [w for w, drop in zip(words[:-1], hit, strict=False) if drop and w[0].lower() not in protected]
    for word in reversed(gone):
        start = word.start() - (word.start() > 0 and prompt[word.start() - 1] == " ")
        prompt = prompt[:start] + prompt[word.end() :]
    return prompt.lstrip() if gone else prompt


def shuffled(item: Item, rate: float, rng: random.Random) -> str:
    """Each distractor joins with probability `rate`; those that joined change places among themselves at random.

    A distractor is a sentence of the context, ended by a full stop, without any word that stands in the right choice
    and in no other. The question, after the last full stop, stays, and so does all else. Choices are never shown, each
    is scored by itself, so their order cannot matter. A context with less than two distractors stays as it is: of the
    embedded tasks only tiny_chain and part of tiny_yesno have more, so look at these and not at the mean of all.
    """
    *context, question = re.split(r"(?<=\.) ", item["prompt"])
    right = item["choices"][item["answer"]]
    telling = words_of([right]) - words_of([choice for choice in item["choices"] if choice != right])
    distractors = [i for i, sentence in enumerate(context) if not telling & words_of([sentence])]
    places = [i for i in distractors if rng.random() < rate]
    for place, sentence in zip(places, rng.sample([context[i] for i in places], len(places)), strict=True):
        context[place] = sentence
    return " ".join([*context, question])


PERTURBATIONS: dict[str, Callable[[Item, float, random.Random], str]] = {
    "typos": typos,
    "dropped words": dropped,
    "shuffled distractors": shuffled,
}
RATES = {"typos": 0.1, "dropped words": 0.1, "shuffled distractors": 1.0}  # where none is said


def perturbed(item: Item, perturbation: str, rate: float, seed: int = 0) -> Item:
    """The item with another prompt; the same for the same (item, perturbation, rate, seed), wherever it is drawn.

    Raises:
        ValueError: an unknown perturbation, or a rate that is no probability.
    """
    if perturbation not in PERTURBATIONS:
        raise ValueError(f"Unknown perturbation {perturbation!r}; choose from {', '.join(PERTURBATIONS)}.")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate={rate} is no probability: it must lie between 0 and 1.")
    rng = random.Random(f"{seed} {perturbation} {item['prompt']}")
    return {**item, "prompt": PERTURBATIONS[perturbation](item, rate, rng)}


def robustness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    perturbation: str | Sequence[str] = "typos",
    rate: float | None = None,
    tasks: str | Iterable[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> dict[str, Accuracy]:
    """Zero-shot accuracy on the items as they are ("clean") and on the same items perturbed.

    Args:
        perturbation: one of `PERTURBATIONS`, or several; each is applied alone, to the clean items.
        rate: probability for each letter (typos), word (dropped words) or sentence (shuffled distractors); by default
            0.1, 0.1 and 1.
        seed: of the perturbation; models to be compared take the same, and so see the same prompts.
        tasks, limit, batch_size, progress: as for `accuracy`.

    Returns:
        An Accuracy for "clean" and for the name of each perturbation.

    Raises:
        ValueError: an unknown perturbation or task, or a rate outside [0, 1].
    """
    asked = [perturbation] if isinstance(perturbation, str) else list(perturbation)
    rates = {name: RATES.get(name, 0.0) if rate is None else rate for name in asked}
    for name in asked:
        perturbed(dict(prompt="", choices=[""], answer=0), name, rates[name])  # refuses before any work
    if others := [name for name in task_names(tasks) if name not in TASKS]:
        raise ValueError(f"Items can be changed of {', '.join(TASKS)} only, not of {others[0]!r}.")

    found = {"clean": accuracy(model, tokenizer, tasks, limit, batch_size, progress)}
    for name in asked:
        change = partial(perturbed, perturbation=name, rate=rates[name], seed=seed)
        found[name] = accuracy(model, tokenizer, tasks, limit, batch_size, progress, change)
    return found
