"""Structured pruning of language models, small and exact: score, plan, prune, recover, evaluate.

files ← core ← measure ← methods ← scale ← runs ← reports ← course: a module imports only from its own folder and from
those to the left of it.
"""

# Names are listed in `__init__.pyi` and loaded at their first use.
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
