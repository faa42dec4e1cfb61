"""Structured pruning of language models, small and exact: score, plan, prune, recover, evaluate.

Read in this order; each module imports only from those before it:
families → data → checkpoint → saving → criteria → sums → gradients → scores → plans → readers → stock → surgery →
compensation → similarity → skipping → layers → walk → streams → rotations → slicing → gram → residual → refitting →
refit → folder → shards → streaming → recovery → shots → evaluation → perturbations → costs → shapes → budget →
records.

Names are listed in `__init__.pyi` and loaded at their first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
