"""Structured pruning of language models, small and exact: score, plan, prune, recover, evaluate.

files ← core ← measure ← methods ← scale ← runs ← reports ← course: a module imports only from its own folder and from
those to the left of it.
"""

from importlib.metadata import version
from inspect import isfunction
from typing import Any

import lazy_loader

from .files.arguments import checked

# Names are listed in `__init__.pyi` and loaded at their first use; functions look at what they are given (`checked`).
_loaded, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if not name.startswith("_") and (here := version("transformers")).partition(".")[0] != "5":
        raise ImportError(
            f"amp_tutorial needs transformers 5, and {here} is here; install another: pip install 'transformers>=5,<6'."
        )
    found = _loaded(name)
    if isfunction(found) and found.__globals__["__name__"] != f"{__name__}.older_calls":  # these look themselves
        found = globals()[name] = checked(found)
    return found
