"""Structured pruning of language models, small and exact: score, plan, prune, recover, evaluate.

Read in this order; each module imports only from those before it:
families → corpora → data → checkpoint → saving → criteria → sums → gradients → scores → plans → official → readers →
stock → surgery → compensation → similarity → skipping → layers → walk → streams → rotations → slicing → gram →
residual → refitting → refit → folder → shards → streaming → recovery → shots → tasks → settings → evaluation →
perturbations → costs → peaks → workload → needs → shapes → budget → machine → records.
"""

# Names are listed in `__init__.pyi` and loaded at their first use.
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
