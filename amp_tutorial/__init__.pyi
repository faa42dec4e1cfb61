# What `amp_tutorial` offers, loaded at first use: so the commands start at once, and doctor can speak without torch.
from .core.anatomy import Anatomy
from .core.checkpoint import load, save
from .core.criteria import Criterion
from .core.data import calibration
from .core.families import FAMILIES, Family
from .core.plans import keep, widths_at
from .core.scores import Scores
from .files import DATA
from .files.checkpoints import EMBEDDED
from .files.texts import CORPORA, perplexity_text, text_source, texts
from .measure.check import Preview, estimate, preview
from .measure.comparisons import Comparison, compare
from .measure.costs import Energy, Flops, energy, flops, kv_cache_bytes, latency, size
from .measure.intervals import Interval, interval
from .measure.robustness import PERTURBATIONS, robustness
from .measure.tasks import CHANCE, PAPER_TASKS, TASKS, Accuracy, Measured, accuracy
from .methods import CRITERIA, Plan, masked, score_many
from .methods.budget import Search
from .methods.depth_and_width import plan_jointly, plan_with_layers, plan_with_tokens, with_layers, with_tokens
from .methods.experts import drop_experts, score_experts
from .methods.hidden_size import Rotation, rotation
from .methods.layers import LAYER_CRITERIA, rank_layers
from .methods.lora import Recovery, RecoveryConfig, merged
from .methods.repair import Fits
from .methods.shots import TRANSACT, Shot
from .methods.taylor import output_metric
from .methods.vocabulary import smaller_tokenizer, tokens_in_use
from .older_calls import (
    Fitted,
    Perplexity,
    Pruned,
    Repaired,
    check,
    drop_layers,
    fit_budget,
    perplexity,
    plan,
    plan_layers,
    prune,
    prune_and_fold,
    prune_folder,
    prune_in_shots,
    recover,
    repair,
    score,
    slice_hidden,
)
from .runs.record import Record
from .runs.requirements import Has, Needs, OverBudget, has, needs_of
from .scale.distributed import over_processes
from .scale.prune_folder import PrunedFolder
from .scale.shared_product import shared_product

__all__ = [
    "CHANCE", "CORPORA", "CRITERIA", "DATA", "EMBEDDED", "FAMILIES", "LAYER_CRITERIA", "PAPER_TASKS", "PERTURBATIONS",
    "TASKS", "TRANSACT",
    "Accuracy", "Anatomy", "Comparison", "Criterion", "Energy", "Family", "Fits", "Fitted", "Flops", "Has", "Interval",
    "Measured", "Needs", "OverBudget", "Perplexity", "Plan", "Preview", "Pruned", "PrunedFolder", "Record", "Recovery",
    "RecoveryConfig", "Repaired", "Rotation", "Scores", "Search", "Shot",
    "accuracy", "calibration", "check", "compare", "drop_experts", "drop_layers", "energy", "estimate", "fit_budget",
    "flops", "has", "interval", "keep", "kv_cache_bytes", "latency", "load", "masked", "merged", "needs_of",
    "output_metric", "over_processes", "perplexity", "perplexity_text", "plan", "plan_jointly", "plan_layers",
    "plan_with_layers", "plan_with_tokens", "preview", "prune", "prune_and_fold", "prune_folder", "prune_in_shots",
    "rank_layers", "recover", "repair", "robustness", "rotation", "save", "score", "score_experts", "score_many",
    "shared_product", "size", "slice_hidden", "smaller_tokenizer", "text_source", "texts", "tokens_in_use", "widths_at",
    "with_layers", "with_tokens",
]  # fmt: skip
