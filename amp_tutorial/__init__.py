"""Structured pruning of language models, small and exact: score, plan, prune, recover, evaluate.

Read in this order; each module imports only from those before it:
families → data → checkpoint → saving → criteria → sums → scores → plans → readers → stock → surgery → folder →
streaming → recovery → evaluation → records.
"""

from .checkpoint import EMBEDDED, load
from .criteria import CRITERIA, Criterion
from .data import DATA, calibration, texts
from .evaluation import CHANCE, TASKS, Accuracy, Measured, Perplexity, accuracy, latency, perplexity, size
from .families import FAMILIES, Anatomy, Family
from .layers import LAYER_CRITERIA, drop_layers, plan_layers, rank_layers
from .plans import Plan, plan
from .records import Record
from .recovery import Recovery, recover
from .saving import save
from .scores import Scores, score
from .slicing import Rotation, rotation, slice_hidden
from .stock import check, estimate
from .streaming import prune_folder
from .surgery import masked, prune

__all__ = [
    "CHANCE", "CRITERIA", "DATA", "EMBEDDED", "FAMILIES", "LAYER_CRITERIA", "TASKS",
    "Accuracy", "Anatomy", "Criterion", "Family", "Measured", "Perplexity", "Plan", "Record", "Recovery", "Scores",
    "accuracy", "calibration", "check", "drop_layers", "estimate", "latency", "load", "masked", "perplexity", "plan",
    "plan_layers", "prune", "prune_folder", "rank_layers", "recover", "save", "score", "size", "texts",
]  # fmt: skip
