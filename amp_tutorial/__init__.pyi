# What `amp_tutorial` offers, loaded at first use: so the commands start at once, and doctor can speak without torch.
from .budget import Fitted, fit_budget
from .checkpoint import EMBEDDED, load
from .compensation import prune_and_fold
from .corpora import CORPORA, perplexity_text, text_source
from .costs import Energy, Flops, energy, flops, kv_cache_bytes
from .criteria import CRITERIA, Criterion
from .data import DATA, calibration, texts
from .evaluation import Perplexity, latency, perplexity, size
from .families import FAMILIES, Anatomy, Family
from .layers import LAYER_CRITERIA, drop_layers, plan_layers, rank_layers
from .needs import Has, Needs, OverBudget, has, needs_of
from .perturbations import PERTURBATIONS, robustness
from .plans import Plan, plan
from .records import Record
from .recovery import Recovery, recover
from .refit import Repaired, repair
from .saving import save
from .scores import Scores, score
from .shots import TRANSACT, Shot, prune_in_shots
from .slicing import Rotation, rotation, slice_hidden
from .stock import check, estimate
from .streaming import prune_folder
from .surgery import masked, prune
from .tasks import CHANCE, PAPER_TASKS, TASKS, Accuracy, Measured, accuracy

__all__ = [
    "CHANCE", "CORPORA", "CRITERIA", "DATA", "EMBEDDED", "FAMILIES", "LAYER_CRITERIA", "PAPER_TASKS", "PERTURBATIONS",
    "TASKS", "TRANSACT",
    "Accuracy", "Anatomy", "Criterion", "Energy", "Family", "Fitted", "Flops", "Has", "Measured", "Needs",
    "OverBudget", "Perplexity", "Plan", "Record", "Recovery", "Repaired", "Rotation", "Scores", "Shot",
    "accuracy", "calibration", "check", "drop_layers", "energy", "estimate", "fit_budget", "flops", "has",
    "kv_cache_bytes", "latency", "load", "masked", "needs_of", "perplexity", "perplexity_text", "plan", "plan_layers",
    "prune", "prune_and_fold", "prune_folder", "prune_in_shots", "rank_layers", "recover", "repair", "robustness",
    "rotation", "save", "score", "size", "slice_hidden", "text_source", "texts",
]  # fmt: skip
