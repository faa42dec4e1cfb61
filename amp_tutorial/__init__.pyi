# What `amp_tutorial` offers, loaded at first use: so the commands start at once, and doctor can speak without torch.
from .core.checkpoint import EMBEDDED, load
from .core.criteria import CRITERIA, Criterion
from .core.data import calibration, texts
from .core.families import FAMILIES, Anatomy, Family
from .core.perplexity import Perplexity, latency, perplexity, size
from .core.plans import Plan, plan
from .core.saving import save
from .core.scores import Scores, score
from .core.stock import check, estimate
from .core.surgery import masked, prune
from .files.paths import DATA
from .files.texts import CORPORA, perplexity_text, text_source
from .measure.costs import Energy, Flops, energy, flops, kv_cache_bytes
from .measure.robustness import PERTURBATIONS, robustness
from .measure.tasks import CHANCE, PAPER_TASKS, TASKS, Accuracy, Measured, accuracy
from .methods.budget import Fitted, fit_budget
from .methods.fold_means import prune_and_fold
from .methods.hidden_size import Rotation, rotation, slice_hidden
from .methods.layers import LAYER_CRITERIA, drop_layers, plan_layers, rank_layers
from .methods.lora import Recovery, recover
from .methods.repair import Repaired, repair
from .methods.shots import TRANSACT, Shot, prune_in_shots
from .runs.record import Record
from .runs.requirements import Has, Needs, OverBudget, has, needs_of
from .scale.prune_folder import prune_folder

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
