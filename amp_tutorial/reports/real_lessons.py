"""What the tiny models and the real one say, lesson by lesson, and what each lesson ends in there."""

from collections.abc import Callable

from ..measure.intervals import raised
from ..runs import collection
from .real import FOLDER, RATIO, Contest, digits, main_contest, sure, tiny_contest
from .standings import System
from .style import grid

CRITERIA = {
    "amp": "AMP",
    "transact": "TransAct",
    "wanda": "Wanda-sp",
    "flap": "FLAP",
    "taylor": "Taylor",
    "magnitude": "magnitude",
    "random": "random",
}
NEURONS = {f"{name}-neurons": label for name, label in CRITERIA.items()}


def _order(c: Contest, labels: dict[str, str]) -> str:
    """Systems, the best first, with their perplexity as a multiple of the dense model's."""
    there = [(c.excess(found).difference, label) for name, label in labels.items() if (found := c.at(name, RATIO))]
    return ", ".join(f"{label} {digits(raised(value))}" for value, label in sorted(there))


def _tour(c: Contest) -> str:
    return f"AMP has {c.times('amp', RATIO)} the dense perplexity, chance {c.times('random', RATIO)}."


def _parts(c: Contest) -> str:
    both, neurons = c.rows["amp", RATIO], c.rows["amp-neurons", RATIO]
    dear = "dear" if c.excess(neurons).difference < c.excess(both).difference else "cheap"
    return (
        f"AMP's heads and neurons alike, {c.times('amp', RATIO)} the dense perplexity; neurons alone, as many "
        f"parameters, {c.times('amp-neurons', RATIO)}: heads are {dear}."
    )


def _score(c: Contest) -> str:
    turned = f"its reversal {c.times('reversed', RATIO)}, chance {c.times('random', RATIO)}"
    return f"AMP {c.times('amp', RATIO)} the dense perplexity, {turned}."


def _exact(c: Contest) -> str:
    removed = c.rows["amp", RATIO]["parameters removed"].value
    return f"asked for {100 * RATIO:g} % of all parameters, AMP removed {100 * removed:.2f} %."


def _healed(c: Contest) -> str:
    """What LoRA makes of AMP's excess, by the same draws, at the ratio at which it was measured; and the best after."""
    ratio = next((at for name, at in (c.tuned.rows if c.tuned else ()) if name == "amp-lora"), None)
    if c.tuned is None or ratio is None:
        return ""
    after = {name: c.tuned.excess(found).difference for (name, at), found in c.tuned.rows.items() if at == ratio}
    seeds = {r["parameters"]["seed"] for r in c.tuned.rows["amp-lora", ratio].records}
    before = System([r for r in c.rows["amp", ratio].records if r["parameters"]["seed"] in seeds])
    was = c.excess(before).difference
    said = f"LoRA takes AMP's excess log-perplexity from {was:.2f} to {after['amp-lora']:.2f} nats"
    if "mean accuracy" in before:
        one, other = (100 * s["mean accuracy"].value for s in (before, c.tuned.rows["amp-lora", ratio]))
        said += f" and its mean accuracy from {one:.0f} to {other:.0f} %"
    best = min(after, key=lambda name: after[name])
    return f"{said} at {100 * ratio:g} %; the least after it is {after[best]:.2f}, “{c.tuned.labels[best][1]}”."


def _paired(c: Contest) -> str:
    one, other = c.rows["amp", RATIO], c.rows["transact", RATIO]
    return (
        f"AMP's perplexity is {sure(one['perplexity'])}; window by window it is "
        f"{one.against(other, 'perplexity').ratio()} that of TransAct."
    )


def _criteria(c: Contest) -> str:
    return f"heads and neurons, times dense: {_order(c, CRITERIA)}; neurons alone: {_order(c, NEURONS)}."


def _ranked(c: Contest) -> str:
    return (
        f"FLAP's one ranking, projected to equal widths, {c.times('flap-split', RATIO)} the dense perplexity, "
        f"equal shares {c.times('flap', RATIO)}."
    )


def _layers(c: Contest) -> str:
    return (
        f"whole layers by ShortGPT {c.times('layers-influence', RATIO)} the dense perplexity, AMP's heads and neurons "
        f"{c.times('amp', RATIO)}."
    )


def _better(c: Contest) -> str:
    other = c.others(RATIO)[0][1]
    names = [name for name in ("ours-neurons", "ours-polished") if c.at(name, RATIO)]
    amp, best = (c.excess(c.rows[name, RATIO]).difference for name in ("amp", other))
    shares = [
        f"“{c.labels[name][1]}” {mine / amp:.2f} of AMP's and {mine / best:.2f} of the best other's"
        for name in names
        for mine in [c.excess(c.rows[name, RATIO]).difference]
    ]
    return f"shares of an excess log-perplexity: {'; '.join(shares)} ({c.labels[other][1]})."


def _sliced(c: Contest) -> str:
    if not c.at("sliced-layers", RATIO):
        return ""
    return (
        f"SliceGPT's rotation for each layer, masked, {c.times('sliced-layers', RATIO)} the dense perplexity, AMP's "
        f"heads and neurons {c.times('amp', RATIO)}."
    )


def _budget(c: Contest) -> str:
    name = next((n for n in ("ours-budget-8", "ours-budget") if c.at(n, RATIO)), None)
    if name is None:
        return ""
    other = f"; neurons alone, polished, {c.times('ours-polished', RATIO)}" if c.at("ours-polished", RATIO) else ""
    return f"one budget over layers, heads and neurons {c.times(name, RATIO)} the dense perplexity{other}."


SAID: dict[str, tuple[str, Callable[[Contest], str]]] = {
    "00": ("Quick tour", _tour),
    "01": ("Anatomy", _parts),
    "02": ("Importance", _score),
    "03": ("Surgery", _exact),
    "04": ("Recovery", _healed),
    "05": ("Evaluation", _paired),
    "06": ("Other answers", _criteria),
    "06b": ("Shots and rankings", _ranked),
    "07": ("Layers", _layers),
    "08": ("Better than AMP", _better),
    "08b": ("Directions of the stream", _sliced),
    "08c": ("One budget", _budget),
}


def lessons() -> list[tuple[str, str, str, str]]:
    """For each lesson its number and title, and what the tiny model's and the real model's records say."""
    said = [
        (number.lstrip("0") or "0", title, say(tiny_contest()), say(main_contest()))
        for number, (title, say) in SAID.items()
    ]
    return [row for row in said if row[-1]]


def closing(number: str) -> str:
    """The line with which a lesson ends; empty where the real model has nothing to say of it."""
    return SAID[number][1](main_contest()) if number in SAID else ""


def table() -> list[str]:
    """The result that each lesson ends in, where it was run on the real model."""

    def said(value: float, unit: str) -> str:
        value = 0.0 if abs(value) < 1e-12 else value  # what rounding leaves
        return f"{value:,.3g}" + (f" {unit}" if len(unit) > 1 else unit)

    rows = []
    for name, record in sorted(collection.gathered(FOLDER).items()):
        if s := record.get("signature"):
            number = name.partition("_")[0]
            beside = [f"{s[part]['name']}: {said(s[part]['value'], '')}" for part in ("baseline", "control")]
            spread = f"{s['spread']} " if "spread" in s else ""
            found = f"{said(s['value'], s['unit'])} ({spread}{said(s['low'], '')} to {said(s['high'], '')})"
            rows.append([number.lstrip("0") or "0", s["name"], found, *beside, f"{record['seconds'] / 60:.0f}"])
    return grid(["lesson", "its result", "on the real model", "baseline", "control", "minutes"], rows)


def page() -> str:
    """What `docs/real.md` shows of the lessons that were run on the real model."""
    return "\n".join(["### What the lessons end in on it", "", LESSONS, "", *table()])


LESSONS = (
    "Each lesson ends in one result beside a baseline and a control that must fail. These are of the real model in "
    "float32, on C4 (lesson 9: WikiText-2), in the sizes that a lesson takes for a model that isn't tiny: small ones, "
    "so their intervals are wide. In brackets 95 % intervals, where nothing else is said; minutes are on two cores, "
    "some beside other work."
)
