"""Exercises that check themselves: a reference, the cases to try, and the mistakes worth naming.

Each lesson keeps its own in `exercises_NN.py` beside this file, as a dict `EXERCISES` from name to `Exercise`.
The folded solutions in the notebooks are the source of these references, so the two cannot drift apart.
"""

import copy
import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Function = Callable[..., Any]


@dataclass(frozen=True)
class Exercise:
    """One thing to write, and how to tell whether it is right.

    Args:
        reference: a plain `def`; its source is the solution shown.
        cases: gives the list of argument tuples to try, the same at every call. Small and quick: a dozen at most.
        misconceptions: from a sentence that names a mistake to the function that makes it. Each must differ from the
            reference in at least one case.
        hints: from a nudge to nearly the answer.
    """

    reference: Function
    cases: Callable[[], Sequence[tuple[Any, ...]]]
    misconceptions: Mapping[str, Function] = field(default_factory=dict)
    hints: Sequence[str] = ()

    @property
    def asks_for_a_value(self) -> bool:
        """Whether the reader gives a number, list or tensor and no function: then the one case has no arguments."""
        return [tuple(case) for case in self.cases()] == [()]


@dataclass(frozen=True)
class Verdict:
    """What checking an attempt found; `kind` is "right", "unsolved", "misconception", "raised" or "different"."""

    kind: str
    sentence: str


@cache
def all_exercises() -> dict[str, Exercise]:
    """Every exercise of every `exercises_NN.py`, by name.

    Raises:
        ValueError: two lessons use one name.
    """
    found: dict[str, Exercise] = {}
    for module in sorted(pkgutil.iter_modules([str(Path(__file__).parent)]), key=lambda m: m.name):
        if module.name.startswith("exercises_"):
            mine = importlib.import_module(f"{__package__}.{module.name}").EXERCISES
            if twice := found.keys() & mine.keys():
                raise ValueError(f"{module.name} names {sorted(twice)} again; exercise names are unique in the course.")
            found |= mine
    return found


def named(name: str) -> Exercise:
    """The exercise of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in all_exercises():
        raise ValueError(f"Unknown exercise {name!r}; there are {', '.join(all_exercises()) or 'none yet'}.")
    return all_exercises()[name]


def judge(attempt: Any, exercise: Exercise) -> Verdict:
    """Compare an attempt with the reference in every case; name the misconception it matches. Never raises for it."""
    if attempt is None or attempt is Ellipsis:
        return Verdict("unsolved", "not solved yet.")
    if not callable(attempt) and not exercise.asks_for_a_value:
        return Verdict("different", f"not yet. A function is asked for; yours is {brief(attempt)}.")
    cases = list(exercise.cases())
    expected = [_outcome(exercise.reference, case) for case in cases]
    given = [_outcome(attempt, case) if callable(attempt) else attempt for case in cases]
    if any(isinstance(g, NotImplementedError) for g in given) or all(g is None or g is Ellipsis for g in given):
        if not all(e is None for e in expected):
            return Verdict("unsolved", "not solved yet.")
    wrong = [i for i, (g, e) in enumerate(zip(given, expected, strict=True)) if not same(g, e)]
    if not wrong:
        return Verdict("right", "right.")
    for sentence, mistake in exercise.misconceptions.items():
        if all(same(g, _outcome(mistake, case)) for g, case in zip(given, cases, strict=True)):
            return Verdict("misconception", f"not yet. {sentence}")
    i = wrong[0]
    where = f"In case {i + 1} of {len(cases)}" if callable(attempt) else "Here"
    if isinstance(given[i], Exception):
        message = f"{type(given[i]).__name__}: {given[i]}".splitlines()[0].rstrip(".")
        return Verdict("raised", f"not yet. {where} your attempt stopped with {message}.")
    return Verdict("different", f"not yet. {where} the answer is {brief(expected[i])}; yours is {brief(given[i])}.")


def _outcome(function: Function, case: tuple[Any, ...]) -> Any:
    """What the function returns, or the exception it raises; the case itself is left as it was."""
    try:
        return function(*copy.deepcopy(case))
    except Exception as error:
        return error


def same(a: Any, b: Any, tol: float = 1e-5) -> bool:
    """Whether two results are equal: numbers to `tol` (relative or absolute), containers item by item."""
    if isinstance(a, Exception) or isinstance(b, Exception):
        return type(a) is type(b)
    try:
        return _same(_plain(a), _plain(b), tol)
    except (TypeError, ValueError, RuntimeError):
        return False


def _plain(x: Any) -> Any:
    """Arrays as float64 tensors on the CPU, numbers as floats."""
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(x)
    if isinstance(x, Tensor):
        return x.item() if x.ndim == 0 else x.detach().cpu().double()
    return x.item() if isinstance(x, np.generic) else x


def _same(a: Any, b: Any, tol: float) -> bool:
    if isinstance(b, str) or b is None:
        return type(a) is type(b) and a == b
    if isinstance(a, Tensor) and isinstance(b, (list, tuple)):
        a = a.tolist()
    if isinstance(b, Tensor):
        a = a if isinstance(a, Tensor) else torch.tensor(a, dtype=torch.double)
        return a.shape == b.shape and torch.allclose(a, b, rtol=tol, atol=tol, equal_nan=True)
    if isinstance(b, (int, float)):
        return isinstance(a, (int, float)) and (math.isclose(a, b, rel_tol=tol, abs_tol=tol) or (a != a and b != b))
    if isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[k], b[k], tol) for k in b)
    if isinstance(b, Set):
        return set(a) == set(b)
    if isinstance(b, Sequence):
        return not isinstance(a, str) and len(a) == len(b) and all(same(x, y, tol) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def brief(x: Any) -> str:
    """A result in a few words: values when there are at most eight, otherwise the shape and the first three."""
    if isinstance(x, Exception):
        return f"a {type(x).__name__}"
    x = _plain(x)
    if isinstance(x, Tensor):
        values = ", ".join(f"{v:.4g}" for v in x.flatten()[: 8 if x.numel() <= 8 else 3].tolist())
        return f"a tensor of shape {tuple(x.shape)} with [{values}{', …' if x.numel() > 8 else ''}]"
    text = f"{x:.6g}" if isinstance(x, float) else repr(x)
    return text if len(text) <= 120 else text[:119] + "…"
