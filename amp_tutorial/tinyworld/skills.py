"""What the tiny world asks: groups of questions that share their answers, one function a skill.

A *group* is the unit of everything here. It has one passage (perhaps empty), k questions, and k answers, and
every answer is right for exactly one of the questions. A training document (`stories.py`) prints the passage and some
questions with their answers. A test item is one question with all k answers as its choices: because the k items of a
group share one list of choices, whatever looks at the choices alone (position, length, word frequency) is right
exactly once in k. Nothing needs to be balanced afterwards.

What a group says rests on *combinations* (this tool with that object, this colour with that thing). A fixed share
of them is held out by a hash: training text is written from the others only, test items from these only.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

from .lexicon import ANIMALS, BIG, COLOURS, FACTS, GIRLS, ITEMS, NAMES, PLACES, SCRIPTS, SMALL, TOO, TOOLS

Key = tuple[str, ...]
Allowed = Callable[[Key], bool]
HELD_OUT_PERCENT = 20


def held_out(key: Key) -> bool:
    """Whether a combination belongs to the tests. A hash, not a draw: the same for every seed and version."""
    return crc32("|".join(key).encode()) % 100 < HELD_OUT_PERCENT


def trained(key: Key) -> bool:
    """Whether training text may use a combination."""
    return not held_out(key)


@dataclass(frozen=True)
class Group:
    """k questions after one passage; `answers[i]` is right for `questions[i]` and wrong for the other k − 1."""

    skill: str
    passage: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    keys: tuple[Key, ...]

    def prompt(self, i: int) -> str:
        return f"{self.passage} {self.questions[i]}".strip()


def an(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def he(name: str) -> str:
    return "She" if name in GIRLS else "He"


def draw(rng: random.Random, allowed: Allowed, *axes: list[str], tag: str, k: int = 1) -> list[Key]:
    """k allowed combinations, one word from each axis, no word twice on an axis."""
    found: list[Key] = []
    used: set[tuple[int, str]] = set()
    while len(found) < k:
        words = [rng.choice(axis) for axis in axes]
        if allowed((tag, *words)) and not any((i, w) in used for i, w in enumerate(words)):
            used.update(enumerate(words))
            found.append((tag, *words))
    return found


# --- skills: each returns one group --------------------------------------------------------------------------


def tool(rng: random.Random, allowed: Allowed) -> Group:
    """What tools are for (2 choices): the pair of tool and object is new."""
    forms = (
        "To {v} the {o}, {n} takes the",
        "{n} wants to {v} the {o} and looks for the",
        "{n} cannot {v} the {o} without the",
        "Today {n} will {v} the {o} with the",
    )
    keys: list[Key] = []
    while len(keys) < 2:
        name = rng.choice(list(TOOLS))
        key = ("tool", name, rng.choice(TOOLS[name][1]))
        if allowed(key) and all(key[1] != other[1] for other in keys):
            keys.append(key)
    n, form = rng.choice(NAMES), rng.choice(forms)
    questions = tuple(form.format(v=TOOLS[t][0], o=o, n=n) for _, t, o in keys)
    return Group("tool", "", questions, tuple(t for _, t, _ in keys), tuple(keys))


def ending(rng: random.Random, allowed: Allowed) -> Group:
    """What happens next, and why something fails (4 choices)."""
    return rng.choice((_script, _too))(rng, allowed)


def _script(rng: random.Random, allowed: Allowed) -> Group:
    n = rng.choice(NAMES)
    keys: list[Key] = []
    states = rng.sample(list(SCRIPTS), len(SCRIPTS))
    while len(keys) < 4:
        causes, effects = SCRIPTS[states[0]]
        pairs = [("script", c, e) for c in causes for e in effects if allowed(("script", c, e))]
        if pairs:
            keys.append(rng.choice(pairs))
        states.pop(0)
    place = rng.choice(PLACES)
    forms = ("{n} {c}. {he}", "In the {p} {n} {c}. {he}", "Because {n} {c}, {n}", "{n} {c}, and so {n}")
    form = rng.choice(forms)
    questions = tuple(form.format(n=n, c=c, he=he(n), p=place) for _, c, _ in keys)
    return Group("ending", "", questions, tuple(e for _, _, e in keys), tuple(keys))


def _too(rng: random.Random, allowed: Allowed) -> Group:
    n = rng.choice(NAMES)
    size = draw(rng, allowed, BIG, SMALL, tag="size", k=2)
    questions, answers, keys = [], [], list(size)
    for (_, big, small), word in zip(size, ("big", "small"), strict=True):
        which = big if word == "big" else small
        questions.append(f"{n} cannot put the {big} into the {small}, for the {which}")
        answers.append(f"is too {word}")
    properties = rng.sample(list(TOO), len(TOO))
    while len(questions) < 4:
        name = properties.pop()
        form, things = TOO[name]
        options = [("too", name, x) for x in things if allowed(("too", name, x))]
        if options:
            key = rng.choice(options)
            questions.append(form.format(n=n, x=key[2]))
            answers.append(f"is too {name}")
            keys.append(key)
    return Group("ending", "", tuple(questions), tuple(answers), tuple(keys))


OWNER_FORMS = ("The owner of the {c} {x} is", "The {c} {x} belongs to", "The one with the {c} {x} is")
WHERE_FORMS = ("The {x} is in the", "One can find the {x} in the", "Look for the {x} in the")


def owner(rng: random.Random, allowed: Allowed) -> Group:
    """Which of two things belongs to whom (2 choices): attribute and owner must be bound in context."""
    passage, people, keys = two_owners(rng, allowed)
    form = rng.choice(OWNER_FORMS)
    questions = tuple(form.format(c=c, x=x) for _, c, x in keys)
    return Group("owner", passage, questions, tuple(people), tuple(keys))


def two_owners(rng: random.Random, allowed: Allowed) -> tuple[str, list[str], list[Key]]:
    people = rng.sample(NAMES, 2)
    if rng.random() < 0.7:  # the same thing twice, so that only the colour tells them apart
        keys: list[Key] = []
        while len(keys) < 2:
            thing = rng.choice(ITEMS)
            keys = [("owner", c, thing) for c in COLOURS if allowed(("owner", c, thing))]
        keys = rng.sample(keys, 2)
    else:
        keys = draw(rng, allowed, COLOURS, ITEMS, tag="owner", k=2)
    forms = (
        "{n} has the {c} {x}. {m} has the {d} {y}.",
        "The {c} {x} belongs to {n} and the {d} {y} to {m}.",
        "{n} got the {c} {x}, while {m} got the {d} {y}.",
        "{n} and {m} meet. {n} has {ac} {x} and {m} has {ad} {y}.",
    )
    (_, c, x), (_, d, y) = keys
    words = dict(n=people[0], m=people[1], c=c, x=x, d=d, y=y, ac=an(c), ad=an(d))
    return rng.choice(forms).format(**words), people, keys


FACT_FORMS = (
    "{S}",
    "{n} says that {s}",
    "{n} asks {q}. The answer is",
    "{n} knows {q}:",
    "Do you know {q}? Answer:",
    "In a book {n} reads {q}:",
    "{n} tells {m} {q}:",
)


def fact(rng: random.Random, allowed: Allowed) -> Group:
    """Properties and habits (4 choices): the fact is known, the way of asking about it is new."""
    while True:
        relation, form = rng.choice(list(FACTS)), rng.randrange(len(FACT_FORMS))
        statement, stem, table = FACTS[relation]
        keys: list[Key] = [("fact", relation, s, str(form)) for s in table if allowed(("fact", relation, s, str(form)))]
        rng.shuffle(keys)
        values = {table[key[2]]: key for key in keys}  # one subject for each value
        if len(values) >= 4:
            break
    keys = list(values.values())[:4]
    n, m = rng.sample(NAMES, 2)
    questions = []
    for _, _, subject, _ in keys:
        s, q = statement.format(a=an(subject)), stem.format(a=an(subject))
        questions.append(FACT_FORMS[form].format(S=capital(s), s=s, q=q, n=n, m=m))
    return Group("fact", "", tuple(questions), tuple(table[s] for _, _, s, _ in keys), tuple(keys))


def chain(rng: random.Random, allowed: Allowed) -> Group:
    """Two hops (4 choices): thing → holder → place, or owner → pet or job → fact."""
    return rng.choice((where, where, pets_or_jobs))(rng, allowed)


def on_the_way(rng: random.Random, allowed: Allowed, k: int) -> tuple[str, list[str], list[Key]]:
    people = rng.sample(NAMES, k)
    keys = draw(rng, allowed, ITEMS, PLACES, tag="where", k=k)
    holds = rng.choice(("has the", "takes the", "carries the", "picks up the"))
    goes = rng.choice(("goes to the", "walks to the", "runs to the", "is in the", "waits in the"))
    first = [f"{n} {holds} {x}." for n, (_, x, _) in zip(people, keys, strict=True)]
    second = [f"{n} {goes} {p}." for n, (_, _, p) in zip(people, keys, strict=True)]
    rng.shuffle(second)
    return " ".join(first + second), people, keys


def where(rng: random.Random, allowed: Allowed) -> Group:
    passage, _, keys = on_the_way(rng, allowed, 4)
    form = rng.choice(WHERE_FORMS)
    questions = tuple(form.format(x=x) for _, x, _ in keys)
    return Group("chain", passage, questions, tuple(p for _, _, p in keys), tuple(keys))


def pets_or_jobs(rng: random.Random, allowed: Allowed, k: int = 4) -> Group:
    relation = rng.choice(("eats", "sound", "home", "baby", "works", "makes"))
    statement, _, table = FACTS[relation]
    job = relation in ("works", "makes")
    subjects = sorted(table) if job else sorted(set(table) & set(ANIMALS))
    keys = draw(rng, allowed, NAMES, subjects, tag="job" if job else "pet", k=k)
    passage = " ".join(f"{n} is {an(s)}." if job else f"The pet of {n} is {an(s)}." for _, n, s in keys)
    asked = [n if job else f"the pet of {n}" for _, n, _ in keys]
    questions = tuple(capital(statement.format(a=a)) for a in asked)
    return Group("chain", passage, questions, tuple(table[s] for _, _, s in keys), tuple(keys))


def yesno(rng: random.Random, allowed: Allowed) -> Group:
    """One true and one false question about a passage or the world (2 choices)."""
    return rng.choice((_yesno_owner, yesno_where, yesno_fact, _yesno_size))(rng, allowed)


def _yesno(passage: str, true: str, false: str, keys: list[Key]) -> Group:
    questions = (f"{true}? The answer is", f"{false}? The answer is")
    return Group("yesno", passage, questions, ("yes", "no"), tuple(keys))


def _yesno_owner(rng: random.Random, allowed: Allowed) -> Group:
    passage, people, keys = two_owners(rng, allowed)
    i = rng.randrange(2)
    (_, c, x), (_, d, _) = keys[i], keys[1 - i]
    return _yesno(passage, f"Is the {x} of {people[i]} {c}", f"Is the {x} of {people[i]} {d}", keys)


def yesno_where(rng: random.Random, allowed: Allowed) -> Group:
    passage, _, keys = on_the_way(rng, allowed, 2)
    i = rng.randrange(2)
    (_, x, p), (_, _, q) = keys[i], keys[1 - i]
    return _yesno(passage, f"Is the {x} in the {p}", f"Is the {x} in the {q}", keys)


def yesno_fact(rng: random.Random, allowed: Allowed) -> Group:
    while True:
        relation = rng.choice(list(FACTS))
        statement, _, table = FACTS[relation]
        subject, other = rng.sample(list(table), 2)
        keys: list[Key] = [("true", relation, subject, table[s]) for s in (subject, other)]
        if table[subject] != table[other] and all(map(allowed, keys)):
            break
    s = statement.format(a=an(subject))
    return _yesno("", f"Is it true that {s} {table[subject]}", f"Is it true that {s} {table[other]}", keys)


def _yesno_size(rng: random.Random, allowed: Allowed) -> Group:
    [key] = draw(rng, allowed, BIG, SMALL, tag="size")
    _, big, small = key
    return _yesno("", f"Does the {small} fit into the {big}", f"Does the {big} fit into the {small}", [key])


TASKS: dict[str, Callable[[random.Random, Allowed], Group]] = {
    "tool": tool,
    "ending": ending,
    "owner": owner,
    "fact": fact,
    "chain": chain,
    "yesno": yesno,
}
