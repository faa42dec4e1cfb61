"""The calls of version 0.1 under their old names, each with one warning; they go with the next version.

`amp_tutorial` offers these wrappers, and everything inside calls the functions themselves. To let the old names go,
delete this file and point `__init__.pyi` at the modules that it wraps.
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from .core.plans import Plan
from .core.plans import plan as _plan
from .core.surgery import Pruned as _Pruned
from .core.surgery import prune as _prune
from .files.arguments import checked
from .measure.check import preview
from .measure.intervals import interval
from .measure.perplexity import Perplexity as _Perplexity
from .measure.perplexity import perplexity as _perplexity
from .methods import score as _score
from .methods import score_many
from .methods.budget import fit_budget as _fit_budget
from .methods.depth_and_width import planned
from .methods.flap import prune_and_fold as _prune_and_fold
from .methods.hidden_size import slice_hidden as _slice_hidden
from .methods.layers import drop_layers as _drop_layers
from .methods.layers import plan_layers as _plan_layers
from .methods.lora import RecoveryConfig
from .methods.lora import recover as _recover
from .methods.repair import repair as _repair
from .methods.shots import prune_in_shots as _prune_in_shots
from .scale.distributed import over_processes
from .scale.prune_folder import prune_folder as _prune_folder

_said: set[str] = set()
_OF = {"all": "parameters", "blocks": "block parameters"}
_TRAINING = ("samples", "epochs", "loss", "seed", "rank", "alpha", "dropout", "lr", "batch_size", "length")


def _warn(old: str, new: str) -> None:
    """Once for each old name."""
    if old not in _said:
        _said.add(old)
        warnings.warn(f"{old} is now {new}; the old name goes with the next version.", FutureWarning, stacklevel=3)


def _renamed(function: Callable[..., Any], **names: str) -> Callable[..., Any]:
    """The function, which also takes keywords by their old names, and the older values of `of`."""

    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        for old, new in names.items():
            if old in given:
                _warn(f"{old}= of {function.__name__}", f"{new}=")
                given[new] = given.pop(old)
        if "pruning_ratio" in names.values() and given.get("of") in [*_OF]:
            _warn(f"of={given['of']!r}", f"of={_OF[given['of']]!r}")
            given["of"] = _OF[given["of"]]
        return _result(checked(function)(*args, **given))

    return call


class Pruned(_Pruned):
    """`core.surgery.Pruned`, which can also be used as what was returned before: a model, or a model and a record."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if hasattr(self.report, name):
            _warn(f"result.{name}", f"result.report.{name}")
            return getattr(self.report, name)
        _warn("using the result of a pruning call as a model", "result.model")
        return getattr(self.model, name)

    def __call__(self, *args: Any, **given: Any) -> Any:
        _warn("using the result of a pruning call as a model", "result.model")
        return self.model(*args, **given)

    def __iter__(self) -> Iterator[Any]:
        _warn("for model, shot in prune_in_shots(…)", "for pruned in …: pruned.model, pruned.report")
        return iter((self.model, self.report))


Fitted = Repaired = Pruned


def _result(found: Any) -> Any:
    return Pruned(found.model, found.plan, found.report) if type(found) is _Pruned else found


prune = _renamed(_prune)
prune_and_fold = _renamed(_prune_and_fold)
repair = _renamed(_repair, choose="reselect", reads="refit_inputs", hidden="hidden_size")
slice_hidden = _renamed(_slice_hidden, hidden="hidden_size")
fit_budget = _renamed(_fit_budget, remove="pruning_ratio")
drop_layers = _renamed(_drop_layers, remove="num_layers")
plan_layers = _renamed(_plan_layers, remove="pruning_ratio")


class Perplexity(_Perplexity):
    """`measure.perplexity.Perplexity`, which also gives the ends of its interval as before."""

    @property
    def low(self) -> float | None:
        _warn("Perplexity.low", "amp.interval(found).low")
        return interval(self).low

    @property
    def high(self) -> float | None:
        _warn("Perplexity.high", "amp.interval(found).high")
        return interval(self).high


@functools.wraps(_perplexity)
def perplexity(*args: Any, **given: Any) -> Perplexity:
    return Perplexity(**vars(checked(_perplexity)(*args, **given)))


@functools.wraps(_prune_in_shots)
def prune_in_shots(*args: Any, **given: Any) -> Iterator[Pruned]:
    return map(_result, checked(_prune_in_shots)(*args, **given))


@functools.wraps(_prune_folder)
def prune_folder(*args: Any, **given: Any) -> Any:
    if isinstance(given.get("repair"), dict):
        old = {"choose": "reselect", "reads": "refit_inputs"}
        for name in old.keys() & given["repair"].keys():
            _warn(f"repair=dict({name}=…)", f"{old[name]}=…")
        given["repair"] = {old.get(name, name): value for name, value in given["repair"].items()}
    return _renamed(_prune_folder, remove="pruning_ratio", hidden="hidden_size")(*args, **given)


@functools.wraps(_plan)
def plan(model: Any, scores: Any, pruning_ratio: float | None = None, *args: Any, **given: Any) -> Plan:
    if "remove" in given:
        _warn("remove= of plan", "pruning_ratio=")
        pruning_ratio = given.pop("remove")
    if given.get("of") in [*_OF]:
        _warn(f"of={given['of']!r}", f"of={_OF[given['of']]!r}")
        given["of"] = _OF[given["of"]]
    if pruning_ratio is not None and not given.keys() - {"of", "parts", "unit"} and given.get("parts") != "scored":
        return checked(_plan)(model, scores, pruning_ratio, *args, **given)
    _warn("plan(heads=…, neurons=…, align=…, layers=…)", "keep, widths_at, plan_with_layers or plan_jointly")
    return planned(model, scores, pruning_ratio, *args, **given)


@functools.wraps(_score)
def score(model: Any, batches: Any, criterion: Any = "amp", *args: Any, **given: Any) -> Any:
    if given.pop("reduce", False):
        _warn("reduce=True", "forward=amp.over_processes")
        given["forward"] = over_processes
    if isinstance(criterion, tuple):
        _warn("score with several criteria", "score_many")
        return score_many(model, batches, criterion, *args, **given)
    return checked(_score)(model, batches, criterion, *args, **given)


@functools.wraps(_recover)
def recover(model: Any, tokenizer: Any, source: Any = "tinyworld", *args: Any, **given: Any) -> Any:
    settings = dict(zip(_TRAINING, args, strict=False)) if args and not isinstance(args[0], RecoveryConfig) else {}
    settings |= {name: given.pop(name) for name in (*_TRAINING, "rows_at_once") if name in given}
    if settings:
        _warn("the settings of recover", "recover(…, config=RecoveryConfig(…))")
        settings |= {"learning_rate": settings.pop("lr")} if "lr" in settings else {}
        return checked(_recover)(model, tokenizer, source, RecoveryConfig(**settings), **given)
    return checked(_recover)(model, tokenizer, source, *args, **given)


def check(model: Any, plan: Plan) -> Any:
    """`preview`, by its old name."""
    _warn("check", "preview")
    return checked(preview)(model, plan)


_wrapped: tuple[Any, ...] = (prune, prune_and_fold, prune_in_shots, prune_folder, plan, plan_layers, drop_layers)
for _call in (*_wrapped, repair, slice_hidden, fit_budget, perplexity, score, recover):
    _call.__module__ = __name__  # they are pickled by where they are
