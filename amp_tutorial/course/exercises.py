"""Exercises that check themselves: a reference, the cases to try, and the mistakes worth naming.

Each lesson keeps its own in `exercises_NN.py` beside this file, as a dict `EXERCISES` from name to `Exercise`.
The folded solutions in the notebooks are the source of these references, so the two cannot drift apart.
"""

import contextlib
import copy
import importlib
import inspect
import io
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
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        given = [_outcome(attempt, case) if callable(attempt) else attempt for case in cases]
    print(said.getvalue(), end="")
    if said.getvalue().strip() and all(g is None for g in given):
        return Verdict("misconception", "not yet. Your function prints its answer and gives None back: return it.")
    blank = Ellipsis in getattr(getattr(attempt, "__code__", None), "co_consts", ())  # which may be why it stops
    stopped = any(isinstance(g, Exception if blank else NotImplementedError) for g in given)
    if stopped or all(g is None or g is Ellipsis for g in given):
        if not all(e is None for e in expected):
            return Verdict("unsolved", "not solved yet.")
    wrong = [i for i, (g, e) in enumerate(zip(given, expected, strict=True)) if not same(g, e)]
    if not wrong:
        return Verdict("right", "right.")
    for sentence, mistake in exercise.misconceptions.items():
        if all(same(g, _outcome(mistake, case)) for g, case in zip(given, cases, strict=True)):
            return Verdict("misconception", f"not yet. {sentence}")
    for sentence, mistaken in COMMON.items():
        if all(_explains(mistaken, e, g) for e, g in zip(expected, given, strict=True)):
            return Verdict("misconception", f"not yet. {sentence}")
    i = wrong[0]
    where = f"In case {i + 1} of {len(cases)}, {_arguments(exercise.reference, cases[i])}," if cases[i] else "Here"
    if isinstance(given[i], Exception):
        message = f"{type(given[i]).__name__}: {given[i]}".splitlines()[0].rstrip(".")
        return Verdict("raised", f"not yet. {where} your attempt stopped with {message}.")
    other = "" if _shape(given[i]) == _shape(expected[i]) else f", where {_kind(expected[i])} is asked for"
    return Verdict("different", f"not yet. {where} your answer is {brief(given[i])}{other}.")


def _numbers(change: Callable[[Tensor], Tensor]) -> Callable[[Any, Any], bool]:
    """Whether a change of the right numbers gives the attempt's."""
    return lambda right, given: same(given, _plain(change(torch.as_tensor(_plain(right), dtype=torch.double))))


def _transposed(x: Tensor) -> Tensor:
    if x.ndim < 2:
        raise TypeError("Only a matrix has a transpose.")
    return x.mT


# Mistakes that no exercise is safe from; each is told if it leads from the right answer to the given one in every case.
COMMON: dict[str, Callable[[Any, Any], bool]] = {
    "Rows and columns are exchanged: your matrix is the transpose of the answer.": _numbers(_transposed),
    "Whole numbers are asked for: round to the nearest, once, at the end.": lambda right, given: same(
        _round(given), right
    ),
    "The sign is the wrong way round.": _numbers(lambda x: -x),
    "You cut off what is behind the point: look for // or int().": _numbers(torch.floor),
    "You round up: look for ceil().": _numbers(torch.ceil),
    "You round: give the number as it comes out.": _numbers(torch.round),
    "You give percent where a share is asked for: 0.3, not 30.": _numbers(lambda x: 100 * x),
    "You give a share where percent is asked for: 30, not 0.3.": _numbers(lambda x: x / 100),
    "You give what goes, not what stays; or the other way round.": _numbers(lambda x: 1 - x),
    "The fraction is upside down.": _numbers(lambda x: 1 / x),
    "It is twice what it should be.": _numbers(lambda x: 2 * x),
    "It is half of what it should be.": _numbers(lambda x: x / 2),
    "The square root is missing.": _numbers(torch.square),
    "The logarithm, or its inverse, is missing.": _numbers(torch.exp),
    "The exponential is missing: you stopped at the logarithm.": _numbers(torch.log),
    "The right ones, in another order than asked for.": lambda right, given: same(given, sorted(right, reverse=True)),
    "You count from 1; positions begin at 0.": lambda right, given: same(given, [k + 1 for k in right]),
    "One is missing at the end: a range, or a slice, ends before its second number.": lambda right, given: same(
        given, right[:-1]
    ),
}


def _round(x: Any) -> Any:
    return [round(k) for k in x] if isinstance(x, (list, tuple)) else round(x)


def _explains(mistaken: Callable[[Any, Any], bool], expected: Any, given: Any) -> bool:
    try:
        return not isinstance(expected, Exception) and mistaken(expected, given)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return False  # numbers of another kind, to which it does not apply


def _arguments(function: Function, case: tuple[Any, ...]) -> str:
    """What a case hands to the function: "heads = 8, groups = 2"."""
    return ", ".join(
        f"{name} = {brief(x)}" for name, x in zip(inspect.signature(function).parameters, case, strict=False)
    )


def _shape(x: Any) -> Any:
    """What two answers must have in common before their values can be compared."""
    x = _plain(x)
    if isinstance(x, Tensor):
        return tuple(x.shape)
    return "number" if isinstance(x, (int, float)) else type(x).__name__


def _kind(x: Any) -> str:
    shape = _shape(x)
    return f"a tensor of shape {shape}" if isinstance(shape, tuple) else f"a {shape}"


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
