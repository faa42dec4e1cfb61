"""What the package's functions are called with: looked at by their annotations, before any work is done.

`amp_tutorial` offers its functions through `checked`. Inside the package they are called as they are: there mypy and
the tests, which execute the annotations, know as much.
"""

import functools
import inspect
import math
import operator
import sys
import types
from collections import abc
from dataclasses import fields
from decimal import Decimal
from numbers import Real
from os import PathLike
from typing import Any, Literal, Union, get_args, get_origin

WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    types.NoneType: "None",
    abc.Callable: "a function",
    abc.Mapping: "a mapping",
    dict: "a mapping",
    abc.Iterable: "a list",
    abc.Sequence: "a list",
    list: "a list",
    tuple: "a pair of numbers",
}
EACH = {int: "whole numbers", float: "numbers", str: "texts"}
NAMED = {
    "Path": "a path",
    "PreTrainedModel": "a model of transformers",
    "PreTrainedTokenizerBase": "a tokenizer of transformers",
    "PreTrainedConfig": "a configuration of transformers",
    "dtype": "a torch.dtype of floating-point numbers",
}
AROUND = ("_orig_mod", "merge_and_unload", "module")  # what a compiled model, one with adapters, a parallel one has
LONGEST = 200  # characters of a text where it is one word of a few, such as a criterion's name
OPTIONS = ("criterion", "of", "parts", "unit", "combine", "average", "split", "perturbation", "device", "country")


@functools.cache
def checked(function: Any) -> Any:
    """The function, which refuses what its annotations do not allow by one sentence, a ValueError, before any work.

    What is in a list of batches, a text or a folder, and whether a number is large enough, the function itself says.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        try:
            bound = signature.bind_partial(*args, **given)
        except TypeError:
            return function(*args, **given)  # Python itself says what is unknown, and below what is missing
        for name, value in bound.arguments.items():
            parameter = signature.parameters[name]
            look(f"{name} of {function.__name__}", value, parameter)
            bound.arguments[name] = plain(value, parameter.annotation)
        return function(*bound.args, **bound.kwargs)

    call.__module__ = __name__.partition(".")[0]  # where it is to be had: it is pickled by that name
    return call


def look(what: str, value: Any, parameter: inspect.Parameter) -> None:
    """Refuse a value that the annotation of its parameter does not allow, by a ValueError."""
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or value is parameter.default:
        return
    if not fits(value, parameter.annotation):
        raise ValueError(f"{what} must be {said(parameter.annotation)}, not {shown(value, parameter.name)}.")
    if parameter.name in OPTIONS and isinstance(value, str) and len(value) > LONGEST:
        raise ValueError(f"{what} is a text of {len(value):,} characters, where a single word is meant.")


def at_least_one(**sizes: int | None) -> None:
    """Refuse what is below 1, by a ValueError; None is as much as there is."""
    if wrong := ", ".join(f"{name}={size}" for name, size in sizes.items() if size is not None and size < 1):
        raise ValueError(f"{wrong} must be at least 1.")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says; anything is, where this does not know the annotation."""
    if hint is Any:
        return True
    origin, inner, name = get_origin(hint) or hint, get_args(hint), getattr(hint, "__name__", "")
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if hint is None or hint is types.NoneType:
        return value is None
    if hint is bool:
        return isinstance(value, bool | int) and value in (0, 1) or type(value).__name__ in ("bool", "bool_")  # NumPy's
    if hint is int:
        return _index(value) is not None
    if hint is float:
        return isinstance(value, Real | Decimal) and (_index(value) is not None or _finite(value))
    if origin is abc.Iterable:  # a data set without an iterator of its own is one, too
        texts = not isinstance(value, list | tuple) or inner != (str,) or all(isinstance(one, str) for one in value)
        return texts and (hasattr(value, "__iter__") or (hasattr(value, "__getitem__") and hasattr(value, "__len__")))
    if origin in (abc.Sequence, list):
        if isinstance(value, str | abc.Mapping) or not (hasattr(value, "__len__") and hasattr(value, "__iter__")):
            return False
        simple = inner and (inner[0] in (int, str, float) or get_origin(inner[0]) is list)
        return not simple or all(fits(one, inner[0]) for one in value)
    if origin is Literal:
        return value in inner
    if origin is tuple and inner[-1:] == (...,):
        return isinstance(value, tuple | list) and all(fits(one, inner[0]) for one in value)
    if origin is tuple:
        return isinstance(value, tuple | list) and len(value) == len(inner) and all(map(fits, value, inner))
    if name == "Path":
        return isinstance(value, PathLike)
    if name == "PreTrainedTokenizerBase" and callable(value) and not hasattr(value, "parameters"):
        return hasattr(value, "save_pretrained")  # or what stands around one, such as a processor
    if name == "dtype":  # transformers takes them by name, too
        value = getattr(sys.modules["torch"], value, None) if isinstance(value, str) else value
        return isinstance(value, hint) and bool(value.is_floating_point)
    if name == "PreTrainedModel" and not isinstance(value, hint) and callable(value):
        older = isinstance(getattr(value, "model", None), hint)  # what a cut returned, used as a model (`older_calls`)
        return older or any(hasattr(value, part) for part in AROUND)  # of these the function says what to do with it
    if isinstance(origin, type) and not hasattr(origin, "dtypes"):  # jaxtyping's shapes are types that have these
        return isinstance(value, origin)
    return True


def plain(value: Any, hint: Any) -> Any:
    """A number of NumPy or torch, or a list of such, as a number of Python: it goes into plans and records."""
    inner = get_args(hint)
    if isinstance(value, str | bool | None | int | float):
        return value
    if get_origin(hint) is abc.Sequence and inner == (int,):
        return value if isinstance(value, list | tuple | range) else [int(one) for one in value]
    if hint is int or int in inner:
        return value if (whole := _index(value)) is None else whole
    if hint is float or float in inner:
        return float(value) if isinstance(value, Real | Decimal) else value
    return value


def _index(value: Any) -> int | None:
    """The whole number that a value is, if 64 bits hold it."""
    try:
        found = operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # of torch's tensors those of one whole number are
        return None
    return found if abs(found) < 2**63 else None


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def misfit(made: Any) -> str:
    """Which field of a dataclass is not what its annotation says, without a full stop; "" if all are."""
    for field in fields(made):
        if not fits(value := getattr(made, field.name), field.type):
            return f"{field.name} must be {said(field.type)}, not {shown(value, field.name)}"
    return ""


def said(hint: Any) -> str:
    """An annotation in words."""
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(said, inner)))
    if origin in (abc.Iterable, abc.Sequence, list) and inner and inner[0] in EACH:
        return f"a list of {EACH[inner[0]]}"
    if origin is Literal:
        return f"one of {', '.join(inner)}"
    if origin is tuple and inner[-1:] == (...,):
        return "a list"
    if inner and get_origin(inner[0]) is list:
        return "a list of lists of whole numbers"
    return WORDS.get(origin) or NAMED.get(name := getattr(origin, "__name__", str(origin))) or f"a {name}"


def shown(value: Any, name: str) -> str:
    """A value in few words, and where what was meant is near, how to reach it."""
    if hasattr(value, name):
        return f"a {type(value).__name__}: give its .{name}"
    if isinstance(value, int) and abs(value) >= 2**63:
        return f"one of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str):
        text = repr(value) if len(value) <= 40 else f"{value[:40]!r}…"
        return text + (": load it, model, tokenizer = amp.load(…)" if name in ("model", "tokenizer") else "")
    kind = type(value).__name__
    if kind == "dtype":
        return str(value)
    if isinstance(value, list | tuple) and name not in ("model", "tokenizer"):
        return f"a {kind} that begins with {str(value[0])[:30]!r}" if value else f"an empty {kind}"
    if name in ("model", "tokenizer"):
        return f"a {kind}: " + ("model, tokenizer = amp.load(…)" if kind == "tuple" else "load one with amp.load")
    return f"a {kind}"
