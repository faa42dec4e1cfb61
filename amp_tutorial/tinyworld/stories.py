"""Write the tiny world down: documents to train, calibrate and validate on, made of the questions of `skills.py`.

Answers stand in brackets, so that training can weigh them; `plain` takes the brackets away. Every document is written
from combinations that are not held out for the tests.
"""

import random
from collections.abc import Callable, Iterator, Mapping

from .lexicon import COLOURS, ITEMS, NAMES, PLACES
from .skills import (
    OWNER_FORMS,
    WHERE_FORMS,
    Allowed,
    Group,
    chain,
    draw,
    ending,
    fact,
    on_the_way,
    owner,
    pets_or_jobs,
    tool,
    trained,
    two_owners,
    yesno,
    yesno_fact,
    yesno_where,
)

Writer = Callable[[random.Random], str]
Writers = Mapping[Writer, float]


def plain(marked: str) -> str:
    """A document as it is read: without the brackets around its answers."""
    return marked.replace("[", "").replace("]", "")


def told(group: Group, rng: random.Random, most: int | None = None) -> str:
    """A group as text: its passage, then up to `most` of its questions, answered (and marked), in random order."""
    order = rng.sample(range(len(group.questions)), k=len(group.questions))[:most]
    answered = [f"{group.questions[i]} [{group.answers[i]}]." for i in order]
    return " ".join([group.passage, *answered]).strip()


def echo(rng: random.Random) -> str:
    """One says a row of words, another says it again: copying, which binding is built on."""
    n, m = rng.sample(NAMES, 2)
    words = [rng.choice(rng.choice((ITEMS, PLACES, COLOURS, NAMES))) for _ in range(rng.randint(5, 14))]
    row = " ".join(words)
    return f"{n} says: {row}. {m} says: {words[0]} [{' '.join(words[1:])}]."


PAIR_FORMS = (("{n} {x}", "{x} {n}"), ("{n}: {x}", "{x}: {n}"), ("{n} has the {x}", "The {x} is with {n}"))


def register(rng: random.Random) -> str:
    """Three to eight people and what they have, then all of it again, asked from either end."""
    keys = draw(rng, trained, NAMES, ITEMS, tag="register", k=rng.randint(3, 8))
    there, back = rng.choice(PAIR_FORMS)
    passage = [f"{there.format(n=n, x=x)}." for _, n, x in keys]
    again = [f"{there.format(n=n, x=f'[{x}]')}." for _, n, x in keys]
    if rng.random() < 0.5:
        again = [f"{back.format(n=f'[{n}]', x=x)}." for _, n, x in keys]
    return " ".join([*passage, *rng.sample(again, k=len(again))])


def possessions(rng: random.Random) -> str:
    """Two owners, then questions from both ends."""
    passage, people, keys = two_owners(rng, trained)
    pool = []
    for n, (_, c, x) in zip(people, keys, strict=True):
        pool += [f"{rng.choice(OWNER_FORMS).format(c=c, x=x)} [{n}].", f"The {x} of {n} is [{c}]."]
        pool += [f"{n} has the [{c} {x}]."]
    return " ".join([passage, *rng.sample(pool, k=rng.randint(3, 6))])


def movements(rng: random.Random) -> str:
    """Two to four people with things, on their way; questions of one hop and of two."""
    passage, people, keys = on_the_way(rng, trained, rng.randint(2, 4))
    pool = []
    for n, (_, x, p) in zip(people, keys, strict=True):
        pool += [f"The {x} is with [{n}].", f"{n} has the [{x}].", f"{n} is in the [{p}]."]
        pool += [f"{rng.choice(WHERE_FORMS).format(x=x)} [{p}]."] * 2
    return " ".join([passage, *rng.sample(pool, k=rng.randint(4, 8))])


def companions(rng: random.Random) -> str:
    """Pets or jobs of two to four people, and what follows from them."""
    return told(pets_or_jobs(rng, trained, rng.randint(2, 4)), rng)


def story(rng: random.Random) -> str:
    """Two people through a day: possessions, a need, a tool, a walk, and what became of it all."""
    when = rng.choice(("One morning", "One evening", "Last summer", "On a winter day", "Long ago", "After school"))
    parts = [f"{when} this happened.", told(owner(rng, trained), rng, 1), told(ending(rng, trained), rng, 1)]
    parts += [told(tool(rng, trained), rng, 1), told(yesno_where(rng, trained), rng), told(fact(rng, trained), rng, 1)]
    return " ".join([parts[0], *rng.sample(parts[1:], k=rng.randint(2, 4))])


def verdict(question: str, true: bool) -> str:
    return f"{question}? The answer is [{'yes' if true else 'no'}]."


def check_register(rng: random.Random) -> str:
    """People and what they have, then for each whether it is so."""
    keys = draw(rng, trained, NAMES, ITEMS, tag="register", k=rng.randint(3, 8))
    there, _ = rng.choice(PAIR_FORMS)
    passage = [f"{there.format(n=n, x=x)}." for _, n, x in keys]
    questions = []
    for _, n, x in keys:
        said = x if rng.random() < 0.5 else rng.choice(keys)[2]
        questions.append(verdict(f"Does {n} have the {said}", said == x))
    return " ".join([*passage, *rng.sample(questions, k=len(questions))])


def check_owners(rng: random.Random) -> str:
    """Two owners, then for each colour whether it is so."""
    passage, people, keys = two_owners(rng, trained)
    colours = [c for _, c, _ in keys]
    questions = [
        verdict(f"Is the {x} of {n} {colour}", colour == c)
        for n, (_, c, x) in zip(people, keys, strict=True)
        for colour in colours
    ]
    return " ".join([passage, *rng.sample(questions, k=len(questions))])


def check_movements(rng: random.Random) -> str:
    """Two to four people with things, on their way, then for people and things whether they are there."""
    passage, people, keys = on_the_way(rng, trained, rng.randint(2, 4))
    questions = []
    for n, (_, x, p) in zip(people, keys, strict=True):
        for what in (n, f"the {x}", f"the {x}"):
            said = p if rng.random() < 0.5 else rng.choice(keys)[2]
            questions.append(verdict(f"Is {what} in the {said}", said == p))
    return " ".join([passage, *rng.sample(questions, k=len(questions))])


def check_facts(rng: random.Random) -> str:
    """Whether some sentences about the world are true."""
    return " ".join(told(yesno_fact(rng, trained), rng, 1) for _ in range(rng.randint(3, 6)))


def asked(skill: Callable[[random.Random, Allowed], Group]) -> Writer:
    """Documents of one skill: a passage and at least half of its questions."""

    def write(rng: random.Random) -> str:
        group = skill(rng, trained)
        return told(group, rng, rng.randint(len(group.answers) // 2, len(group.answers)))

    return write


# What documents are made of, by weight. Binding in context is learnt last, so it gets most.
BINDING: Writers = {echo: 1.5, register: 1.5, possessions: 3.0, movements: 3.0, companions: 1.0}
WRITERS: Writers = {
    **BINDING,
    asked(tool): 0.8,
    asked(ending): 1.0,
    asked(fact): 1.5,
    asked(owner): 1.5,
    asked(chain): 1.5,
    asked(yesno): 2.5,
    story: 1.5,
}
# To judge a sentence is to recall what it should say and to compare: learnt after the recalling.
JUDGING: Writers = {**WRITERS, check_register: 4.0, check_owners: 4.0, check_movements: 5.0, check_facts: 5.0}


def documents(count: int, seed: int, writers: Writers = WRITERS) -> Iterator[str]:
    """`count` marked documents, of one or two parts each; deterministic by seed."""
    rng = random.Random(seed)
    for _ in range(count):
        chosen = rng.choices(list(writers), list(writers.values()), k=rng.choice((1, 1, 2)))
        yield " ".join(write(rng) for write in chosen)
