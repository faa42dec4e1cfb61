"""Shot by shot: score, cut a little, recover, and again, so that each choice is made on a model that has healed.

Source: TransAct (arXiv 2407.05690; code XiaoMi/transact-pruning, read): 8 shots, each scoring anew and then training.
Any criterion can be used here, not TransAct's alone.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.anatomy import Anatomy
from ..core.checkpoint import load, save
from ..core.criteria import named
from ..core.plans import Plan, keep
from ..core.scores import score
from ..core.sums import Batch, entering
from ..core.surgery import Pruned, prune
from ..files.atomic import expanded, new_folder, write_json
from ..files.checkpoints import fingerprint
from ..measure.check import preview
from .lora import Recovery
from .lora import recover as by_lora

# What TransAct leaves of LLaMA-2-7B's 32 heads and 11,008 neurons in each layer: the paper's model [arithmetic from
# its code: 1.269 B parameters], and what its script does if told nothing else.
TRANSACT = {"paper": dict(heads=6, neurons=1536), "script": dict(heads=16, neurons=3072)}
SETTINGS, RECORD = "settings.json", "shot.json"

Recover = Callable[[PreTrainedModel, PreTrainedTokenizerBase], PreTrainedModel | Recovery]


@dataclass(frozen=True)
class Shot:
    """What is left after a shot. Pairs are (of the model at the start, now)."""

    number: int
    of: int
    heads: tuple[int, int]  # query heads in each layer
    neurons: tuple[int, int]  # in each layer
    parameters: tuple[int, int]
    kv_cache_per_token: tuple[int, int]  # bytes
    plan: Plan  # all shots so far as one, by the indices of the model at the start
    calibration_hash: str = ""  # of the text it was scored on

    def __str__(self) -> str:
        heads, neurons, parameters, cache = self.heads, self.neurons, self.parameters, self.kv_cache_per_token
        return (
            f"Shot {self.number} of {self.of}: {heads[1]} of {heads[0]} heads, {neurons[1]} of {neurons[0]} neurons, "
            f"{parameters[1]:,} parameters (−{1 - parameters[1] / parameters[0]:.1%}), KV cache "
            f"{cache[1] / cache[0]:.2%} of {cache[0]:,} bytes per token"
        )

    @classmethod
    def read(cls, path: Path) -> "Shot":
        found = json.loads(path.read_text(encoding="utf-8"))
        pairs = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
        return cls(**found | pairs | {"plan": Plan(**found["plan"])})


def schedule(current: int, target: int, shots: int = 8) -> list[int]:
    """How many stay after each shot: next = current − (current − target) // remaining shots [TransAct's code].

    The division rounds down, so the later shots take the rest: from 32 heads to 6 in 8 shots it is
    29, 26, 23, 20, 17, 14, 10, 6.
    """
    left = []
    for remaining in range(shots, 0, -1):
        current -= (current - target) // remaining
        left.append(current)
    return left


def widths(
    model: PreTrainedModel,
    heads: int | None,
    neurons: int | None,
    shots: int = 8,
    unit: str = "groups",
    combine: str = "sum",
) -> list[tuple[int, int]]:
    """Kept (heads, neurons) of every layer after each shot.

    Heads follow the schedule, and wait where it asks for part of a unit (a KV group with all its heads, or one head
    of every group), or for a number that no stock configuration of this family says: then the next higher one stays.

    Raises:
        ValueError: nothing to cut, targets that `plan` refuses, or so many shots that one of them would cut nothing.
    """
    if heads is None and neurons is None:
        raise ValueError("Say which widths shall stay in the end: heads=…, neurons=…, or both.")
    if shots < 1:
        raise ValueError(f"shots={shots} must be at least 1.")
    chance = score(model, [], "random")
    last = keep(model, chance, heads, neurons, unit, combine)  # refuses what cannot be
    anatomy = Anatomy.of(model)
    whole = anatomy.group_size if unit == "groups" else anatomy.groups
    possible = sorted({count for count in anatomy.head_counts if count % whole == 0} | {anatomy.heads})
    left = [min(count for count in possible if count >= h) for h in schedule(anatomy.heads, len(last.heads[0]), shots)]
    found = list(zip(left, schedule(anatomy.neurons, len(last.neurons[0]), shots), strict=True))
    before = [(anatomy.heads, anatomy.neurons), *found]
    useful = len(set(before)) - 1
    if useful < shots:
        raise ValueError(
            f"shots={shots} are too many: only {useful} of them would cut anything; take fewer shots or lower targets."
        )
    return found


def composed(first: Plan, then: Plan) -> Plan:
    """One plan for two in a row: `then` was made for what `first` leaves; the result is for the model before both.

    Raises:
        ValueError: `then` was made for another shape than `first` leaves.
    """
    left = (len(first.heads), len(first.heads[0]), len(first.groups(0)), len(first.neurons[0]))
    made_for = (len(then.heads), then.of_heads, then.of_groups, then.of_neurons)
    if left != made_for:
        raise ValueError(
            f"The first plan leaves (layers, heads, KV groups, neurons) = {left}, the second is for {made_for}."
        )

    def inner(outer: list[list[int]], chosen: list[list[int]]) -> list[list[int]]:
        return [[before[i] for i in now] for before, now in zip(outer, chosen, strict=True)]

    return replace(
        first,
        heads=inner(first.heads, then.heads),
        neurons=inner(first.neurons, then.neurons),
        tokens=inner([first.tokens], [then.tokens])[0] if first.tokens and then.tokens else first.tokens or then.tokens,
        of_tokens=first.of_tokens or then.of_tokens,
        asked=None,
        achieved=1 - (1 - first.achieved) * (1 - then.achieved),
    )


def prune_in_shots(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batches: Iterable[Batch],
    heads: int | None = None,
    neurons: int | None = None,
    shots: int = 8,
    criterion: str = "amp",
    recover: Recover | None = by_lora,
    out: str | Path | None = None,
    average: str = "tokens",
    unit: str = "groups",
    combine: str = "sum",
    seed: int = 0,
) -> Iterator[Pruned]:
    """Prune to `heads` and `neurons` in each layer by several shots; after each, the model so far and its `Shot`.

        for pruned in amp.prune_in_shots(model, tokenizer, batches, heads=4, neurons=96, shots=4):
            print(pruned.report)

    TransAct trains all parameters after every shot (on 1 B tokens over 8 shots, and 50 B at the end); here a shot is
    followed by what `recover` does, LoRA by default. `**TRANSACT["paper"]` gives its targets for LLaMA-2-7B.

    Args:
        model: is not changed.
        batches: calibration batches, a list: they are read at every shot.
        heads, neurons: kept widths of every layer in the end; one that is not given stays whole.
        criterion: one of `CRITERIA`; `average`, `seed`: see `score`; `unit`, `combine`: see `keep`.
        recover: called with (model, tokenizer) after each cut; returns a model of the same shape, or a Recovery.
            `functools.partial(amp.recover, samples=64)` says how; None leaves recovery out.
        out: a folder; each shot's model and record are kept in `out/shot-1`, `out/shot-2`, …, stock checkpoints. A
            second call with the same settings goes on after the last one that is complete, and gives the earlier ones
            as they are on disk. Of a `recover` of your own only the name is compared.

    Raises:
        ValueError: at once: see `widths`; an unknown criterion or average; batches that can be read only once; a folder
            that holds something else, or shots by other settings. Later: another calibration text than the shots in
            the folder; a `recover` that returns another shape.
    """
    named(criterion)
    if average not in ("tokens", "prompts"):
        raise ValueError(f"Unknown average {average!r}; choose 'tokens' or 'prompts'.")
    if iter(batches) is batches:
        raise ValueError("batches can be read only once, and every shot reads them; give a list.")
    left, batches = widths(model, heads, neurons, shots, unit, combine), entering(model, batches)
    how = dict(criterion=criterion, average=average, unit=unit, combine=combine, seed=seed)
    settings = dict(model=fingerprint(model), heads=left[-1][0], neurons=left[-1][1], shots=shots, **how)
    folder = None if out is None else _folder(expanded(out), settings | {"recover": _said(recover)})
    return _shots(model, tokenizer, batches, left, how, recover, folder)


def _shots(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batches: Iterable[Batch],
    left: list[tuple[int, int]],
    how: dict[str, Any],
    recover: Recover | None,
    folder: Path | None,
) -> Iterator[Pruned]:
    current, so_far, read = model, None, None
    for number, (heads, neurons) in enumerate(left, start=1):
        kept = None if folder is None else folder / f"shot-{number}"
        if kept is not None and kept.is_dir():
            shot = Shot.read(kept / RECORD)
            current, _ = load(kept, device=str(next(model.parameters()).device))
        else:
            scores = score(current, batches, how["criterion"], how["average"], how["seed"])
            if read is not None and scores.calibration_hash != read:
                raise ValueError(
                    f"The shots in {folder} were scored on another calibration text; give the same batches, or "
                    "another folder."
                )
            chosen = keep(current, scores, heads, neurons, how["unit"], how["combine"])
            so_far = chosen if so_far is None else composed(so_far, chosen)
            current = _recovered(prune(current, chosen).model, tokenizer, recover)
            found = preview(model, so_far)
            shot = Shot(
                number=number,
                of=len(left),
                heads=found.heads,
                neurons=found.neurons,
                parameters=found.parameters,
                kv_cache_per_token=found.kv_cache_per_token,
                plan=so_far,
                calibration_hash=scores.calibration_hash,
            )
            if kept is not None:
                _keep(current, tokenizer, shot, kept)
        so_far, read = shot.plan, shot.calibration_hash
        yield Pruned(current, shot.plan, shot)


def _recovered(small: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recover: Recover | None) -> PreTrainedModel:
    if recover is None:
        return small
    shapes = [tuple(p.shape) for p in small.parameters()]
    found = recover(small, tokenizer)
    healed = found.model if isinstance(found, Recovery) else found
    if not isinstance(healed, PreTrainedModel) or [tuple(p.shape) for p in healed.parameters()] != shapes:
        raise ValueError("recover must return a model of the shape it was given, adapters merged, or a Recovery.")
    return healed


def _keep(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, shot: Shot, kept: Path) -> None:
    """Model and record together beside their place, then moved: there is a folder only if it is complete."""
    with new_folder(kept) as beside:
        save(model, tokenizer, beside)
        write_json(beside / RECORD, asdict(shot), indent=None)


def _folder(out: Path, settings: dict[str, Any]) -> Path:
    """The folder, with these settings written in it, or found there."""
    path = out / SETTINGS
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if other := next((name for name in settings if found.get(name) != settings[name]), None):
            raise ValueError(
                f"{out} holds shots with {other}={found.get(other)!r}, not {settings[other]!r}; choose another folder, "
                "or the same settings to go on."
            )
        return out
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} is not empty and holds no shots; choose another folder.")
    with new_folder(out) as beside:
        write_json(beside / SETTINGS, settings)
    return out


def _said(recover: Recover | None) -> str:
    """A function's name, and what a `functools.partial` has fixed of its settings."""
    if isinstance(recover, partial):
        fixed = [repr(a) for a in recover.args] + [f"{k}={v!r}" for k, v in sorted(recover.keywords.items())]
        return f"{_said(recover.func)}({', '.join(fixed)})"
    return "" if recover is None else getattr(recover, "__qualname__", type(recover).__qualname__)
