# lesson: One budget
# %% [markdown]
# # 8c · One budget: how much of what?
#
# Heads, neurons, whole layers (lesson 7), directions of the stream (lesson 8b): all of them can go, and repair
# (lesson 8) makes up for part of each. A ratio says how much goes in all. It does not say how much *of what*. AMP
# takes the same share of heads and of neurons. Is that a good split?
#
# **Objectives.** After this lesson you can
# - keep to a budget while the split moves: so many heads, and as many neurons as it then allows;
# - choose among candidates by text that nothing was fitted to, and only then look at the test;
# - say whether costs of parts add up, and search one budget over all that can go.
#
# **Prerequisites.** Lessons 3, 7 and 8; 8b for directions. **Time:** {{minutes}}.
# %% tags=["parameters"]
model: str = "tiny-llama"  # or "tiny-llama-gqa", "tiny-phi", "smollm2-135m", a local folder, a hub id
ratio: float = 0.30  # share of all parameters to remove
calibration: int = 24  # texts that score and repair look at
seed: int = 0  # the first of the seeds
text: str = ""  # what is read: empty, the tiny world for its models and C4 for others; or a file, a folder, "wikitext2"
tasks: str = ""  # what is asked: empty, the tiny world's tasks or those of AMP's paper; or names of lm-eval's
task_folder: str = ""  # of tasks of your own
preset: str = "smallest"  # or "full": more seeds, more items, more text
out: str = "out"
# %% tags=["hide-input"]
import math
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

import amp_tutorial as amp
from amp_tutorial.course import lesson

L = lesson.start(
    "08c_budget",
    dict(model=model, ratio=ratio, calibration=calibration, seed=seed, text=text, tasks=tasks,
         task_folder=task_folder, preset=preset, out=out),
)  # fmt: skip
source, tasks = L.material(text, tasks, task_folder)
sizes = {
    "smallest": dict(seeds=3, items=40, texts=48, letters=None, trials=12),
    "real": dict(seeds=3, items=20, texts=32, letters=500, trials=4),  # letters of each text
    "full": dict(seeds=10, items=200, texts=500, letters=None, trials=24),
}[L.size]
seeds = range(seed, seed + sizes["seeds"])
bench = lesson.Bench(
    L, source, calibration, sizes["texts"], sizes["letters"], tasks, sizes["items"], task_folder
)  # calibration draws, text kept apart, held-out text, tasks
dense, read, asked = bench.dense, bench.read, bench.asked
anatomy = amp.Anatomy.of(dense)
layers, total = anatomy.layers, dense.num_parameters()


def perplexity(what, texts=None):
    return read(what, texts).value


def repaired(plan, batches, **settings):
    return amp.repair(dense, plan, batches, progress=False, **settings).model


batches = {s: bench.batches(bench.drawn(s)) for s in seeds}
scores = {s: amp.score(dense, batches[s], seed=s) for s in seeds}
plans = {s: amp.plan(dense, scores[s], pruning_ratio=ratio) for s in seeds}
amps = len(plans[seed].heads[0])
base = perplexity(dense)
print(f"Dense: perplexity {base:.2f}. {plans[seed].achieved:.1%} of all parameters will go; AMP's rule keeps {amps} of "
      f"{anatomy.heads} heads and {len(plans[seed].neurons[0])} of {anatomy.neurons} neurons.")  # fmt: skip
# %% [markdown]
# ## Heads against neurons
#
# The budget is a number of parameters. If heads pay more of it, neurons pay less.
#
# ### Exercise 1 · What can stay
# *Medium, 6 minutes.* Each layer's heads have saved `heads_cost` parameters already. Of `total` parameters in `layers`
# layers at least `ratio` must go. A layer has `neurons` neurons of `neuron_cost` parameters each. Return how many of
# them can stay at most.
# %%
def neurons_left(total, ratio, layers, heads_cost, neurons, neuron_cost) -> int:
    """The most neurons that a layer can keep."""
    ...  # your answer here


neurons_left = L.check(neurons_left, "l8c_neurons_left")
# %% [markdown]
# {{hint:l8c_neurons_left}}
#
# {{solution:l8c_neurons_left}}
#
# Now we try every number of heads, each with as many neurons as the budget then allows, and repair every model.
#
# ### Exercise 2 · Who wins?
# *Easy, 4 minutes.* Each candidate has the share of parameters that it removes (`removed`), and a loss on text kept
# apart (`apart`), which neither score nor repair has seen. Return the index of the one with the lowest loss among those
# that remove at least `ratio`.
# %%
def winner(removed: list[float], apart: list[float], ratio: float) -> int:
    """The number of the best of those that remove enough."""
    ...  # your answer here


winner = L.check(winner, "l8c_winner")
# %% [markdown]
# {{hint:l8c_winner}}
#
# {{solution:l8c_winner}}
#
# **Predict** the winner: few heads and many neurons, or the reverse? How many heads does it keep?
# %%
L.predict("heads of the best split", None)
# %%
def at_budget(scores, heads):
    """A plan with so many heads and the most neurons that keep within the ratio; None if there are none."""
    paid = (anatomy.heads - heads) // anatomy.group_size * anatomy.group_cost
    left = neurons_left(total, ratio, layers, paid, anatomy.neurons, anatomy.neuron_cost)
    return amp.keep(dense, scores, heads=heads, neurons=left) if left > 0 and paid <= ratio * total / layers else None


step = anatomy.group_size
fewest = anatomy.heads // 4 // step * step + step  # below, a layer has hardly any attention left
splits = {h: at_budget(scores[seed], h) for h in range(fewest, anatomy.heads + 1, step)}
splits = {h: p for h, p in splits.items() if p is not None}
some = batches[seed][: math.ceil(len(batches[seed]) / 2)]  # half of the text is enough to compare splits
tried = {h: repaired(p, some) for h, p in splits.items()}
judged = {h: math.log(perplexity(m, bench.apart)) for h, m in tried.items()}
best = list(splits)[winner([p.achieved for p in splits.values()], list(judged.values()), ratio)]
tested = {h: perplexity(m) for h, m in tried.items()}  # looked at only now
plain = {h: perplexity(amp.prune(dense, p).model) for h, p in splits.items()}
# %% tags=["hide-input"]
fig, axes = plt.subplots(figsize=(7, 3.6))
for k, (name, line) in enumerate(
    {
        "cut alone": plain,
        "repaired": tested,
        "repaired, text kept apart": {h: math.exp(v) for h, v in judged.items()},
    }.items()
):
    axes.plot(list(line), list(line.values()), color=lesson.PALETTE[k], marker=lesson.MARKERS[k], label=name)
axes.axvline(len(plans[seed].heads[0]), color="0.6", ls=":")
axes.text(len(plans[seed].heads[0]), 0.97, " AMP's split", transform=axes.get_xaxis_transform(), va="top")
axes.set(xlabel="heads that stay in every layer", ylabel="perplexity", yscale="log", xticks=list(splits))
axes.legend(frameon=False)
told = ", ".join(f"{h} heads {plain[h]:.3g} and {tested[h]:.3g}" for h in splits)
L.show(
    fig,
    alt=f"Perplexity against the heads that stay, {ratio:.0%} of all parameters removed, log axis; cut alone and "
    f"repaired: {told}. AMP's split keeps {len(plans[seed].heads[0])}.",
)
L.seen("heads of the best split", best)
# %%
# NBVAL_CHECK_OUTPUT
one_neuron = anatomy.neuron_cost * layers / total
for heads, plan in splits.items():
    L.assert_close(plan.achieved, ratio, one_neuron, f"{heads} heads: as many parameters, to one neuron a layer")
# %%
runs = {}
for s in seeds:
    runs["AMP's split", s] = read(repaired(plans[s], batches[s]))
    runs["best split", s] = read(repaired(at_budget(scores[s], best), batches[s]))


def of(name):
    return [runs[name, s] for s in seeds]
# %% tags=["hide-input"]
split_gap = amp.compare(of("best split"), of("AMP's split"))
kept = f"{best} of {anatomy.heads} heads and {len(splits[best].neurons[0])} of {anatomy.neurons} neurons"
print(f"Text kept apart chooses {kept}; AMP's rule keeps {amps} heads.")
print(f"Repaired, the best split has {split_gap.ratio()} the perplexity of AMP's split.")
unrepaired = min(plain, key=plain.get)
print(f"Without repair, on test text, the best split keeps {unrepaired} heads.")
right_answers = {
    "best split": asked(tried[best]),
    "AMP's split": asked(tried[amps] if amps in tried else repaired(plans[seed], some)),
}
for name, m in right_answers.items():
    print(f"  {name}, repaired: accuracy {m.interval.percent()} %")
nearly_all = anatomy.heads - anatomy.group_size
if best >= nearly_all:
    print("With repair, all or nearly all heads should stay here, and neurons pay.")
fewer_errors = right_answers["best split"].value > right_answers["AMP's split"].value
if best == unrepaired == anatomy.heads and fewer_errors:
    print("The same without repair. The paper's ablation says otherwise: on LLaMA-2-7B at 30 %, accuracy 61.02 % when")
    print("heads and neurons go, 56.93 when neurons go alone, 37.63 when heads go alone [second-hand].")
elif best < nearly_all:
    print("Heads and neurons both have something to give here, as in the paper's ablation [second-hand].")
# %% [markdown]
# Heads and neurons weigh differently in a large model, and the paper measures accuracy on other tasks. What carries
# over is the procedure: let text that nothing was fitted to decide, then test.
#
# ## Do costs add up?
#
# There are too many mixes to try them all. If the costs of single parts added up, a few measurements would do. Losses
# are logarithms, so adding is the natural guess. To test it, we cut the heads that AMP takes, its neurons, and both.
#
# ### Exercise 3 · Is it a surprise?
# *Easy, 4 minutes.* `alone` has what each part costs by itself, `together` what all of them cost at once. Return
# `"adds up"` if `together` is the sum to within a tenth, otherwise `"worse"` or `"better"`.
# %%
def surprise(alone: list[float], together: float) -> str:
    """What the costs together are, against the sum."""
    ...  # your answer here


surprise = L.check(surprise, "l8c_surprise")
# %% [markdown]
# {{hint:l8c_surprise}}
#
# {{solution:l8c_surprise}}
#
# **Predict** which it is for AMP's heads and neurons, before any repair:
# %%
L.predict("heads and neurons, cut together", None, among=("adds up", "worse", "better"))
# %%
whole = amp.keep(dense, scores[seed], heads=anatomy.heads, neurons=anatomy.neurons)
costs, both = {}, plans[seed]
alone = {"heads": replace(both, neurons=whole.neurons), "neurons": replace(both, heads=whole.heads)}
for name, plan in {**alone, "both": both}.items():
    with amp.masked(dense, plan):
        costs[name] = math.log(perplexity(dense) / base)
verdict = surprise([costs["heads"], costs["neurons"]], costs["both"])
print("Nats a token: " + ", ".join(f"{name} {cost:.3f}" for name, cost in costs.items()) + f": {verdict}.")
print(f"With the heads gone, the neurons cost {costs['both'] - costs['heads']:.3f}, alone {costs['neurons']:.3f}.")
L.seen("heads and neurons, cut together", verdict)
# %% [markdown]
# ## One budget
#
# `amp.fit_budget` begins with the sum and learns from there. It measures what each kind of cut costs alone, without
# repair, and tries the shape whose costs add up to the least. How much of those costs repair leaves, it learns from the
# candidates tried before. Every candidate meets the target, is repaired from part of the calibration text and judged on
# the rest of it; the winner is made again from all of it. What the search takes is said beforehand: one repair for each
# trial, and one more. **Predict** the mix that wins: what does it cut most of?
# %%
L.predict("what the winner cuts most of", None, among=("hidden size", "layers", "heads", "neurons"))
# %%
may_go = ("heads", "neurons", "layers")
try:
    amp.rotation(dense, batches[seed][:1])
    may_go += ("hidden",)
except ValueError as refusal:  # layer norms
    print(refusal)
trials = sizes["trials"]
fitted = amp.fit_budget(dense, batches[seed], pruning_ratio=ratio, cut=may_go, trials=trials, progress=False)
print(fitted.report)
seconds = sum(t.seconds for t in fitted.report.trials)
print(f"{len(fitted.report.trials)} trials in {seconds:.0f} s; what could go: {', '.join(may_go)}.")
# %%
# NBVAL_CHECK_OUTPUT
short = max(0.0, ratio - (1 - fitted.model.num_parameters() / dense.num_parameters()))
L.assert_close(short, 0.0, 0.0, "the winner removes no less than was asked")
L.assert_close(float(len(fitted.report.trials) <= trials), 1.0, 0.0, "and cost no more trials than was said")
# %% tags=["hide-input"]
shape, whole_shape = fitted.report.shape, (anatomy.hidden, layers, anatomy.heads, anatomy.neurons)
named = ("hidden size", "layers", "heads", "neurons")
kept = dict(zip(named, (shape.hidden, shape.layers, shape.heads, shape.neurons), strict=True))
touched = [f"{kept[n]} of {most} ({n})" for n, most in zip(named, whole_shape, strict=True) if kept[n] < most]
print(f"The search keeps {', '.join(touched)}; all else stays whole.")
L.seen("what the winner cuts most of", min(named, key=lambda n: kept[n] / whole_shape[named.index(n)]))
found, right = read(fitted.model), asked(fitted.model)
own = of("AMP's split")[0]
search_gap = amp.compare(found, own)
print(f"One budget: perplexity {found.value:.2f}, accuracy {right.interval.percent()} %; AMP's split with repair "
      f"{own.value:.2f}, the best split of heads and neurons {of('best split')[0].value:.2f}.")  # fmt: skip
if shape.layers == layers and (shape.heads, shape.neurons) == (best, len(splits[best].neurons[0])):
    print("This is the split that the search by hand found; what differs is which neurons stay.")
if len(touched) < len(may_go):
    print("A budget over everything need not touch everything.")
# %% [markdown]
# Search by hand: what does a mix remove, and what does it cost before repair? (A live notebook has sliders.)
# %%
each = anatomy.group_size
half = max(1, anatomy.groups // 2) * each  # of the heads, in whole groups


def mix(stay_heads: int = half, stay_neurons: int = anatomy.neurons, stay_layers: int = layers) -> None:
    """Parameters and perplexity with so many heads, neurons and layers; of the layers the last but one goes first."""
    left = [*range(stay_layers - 1), layers - 1] if stay_layers < layers else None
    chosen = replace(amp.keep(dense, scores[seed], heads=stay_heads, neurons=stay_neurons), layers=left)
    with amp.masked(dense, chosen):
        cost = perplexity(dense, bench.judged[:12])
    told = f"{stay_heads} heads, {stay_neurons} neurons, {stay_layers} layers"
    print(f"{told}: {amp.preview(dense, chosen).ratio:.1%} of all parameters go, perplexity {cost:.2f}")


lesson.widget(
    mix, stay_heads=(each, anatomy.heads, each), stay_neurons=(8, anatomy.neurons, 8), stay_layers=(2, layers)
)
# %% [markdown]
# ## The result
#
# One number: the perplexity of what one budget found, divided by that of AMP's split with repair, window by window on
# held-out text. Below 1 the search was worth its trials. The baseline is the best split of heads and neurons alone. The
# control is a repaired model of the winner's own shape, in which what goes was drawn by lot: if it were as good as the
# winner, it would only matter how much goes, and not what.
# %%
chance = amp.score(dense, batches[seed], "random", seed=seed)
left = torch.randperm(layers, generator=torch.Generator().manual_seed(seed))[: shape.layers].sort().values.tolist()
lot_plan = amp.keep(dense, chance, heads=shape.heads, neurons=shape.neurons)
lot_plan = replace(lot_plan, layers=left) if shape.layers < layers else lot_plan
narrower = dict(hidden_size=shape.hidden, refit_inputs=True) if shape.hidden < anatomy.hidden else {}
lot = repaired(lot_plan, batches[seed], **narrower)
by_lot = amp.compare(read(lot), own)
L.signature(
    f"Perplexity of one budget, as a multiple of AMP's split with repair, {ratio:.0%} removed",
    math.exp(search_gap.difference),
    math.exp(search_gap.low),
    math.exp(search_gap.high),
    "×",
    baseline=("the best split of heads and neurons", math.exp(amp.compare(of("best split")[0], own).difference)),
    control=("the winner's shape, what goes drawn by lot", math.exp(by_lot.difference)),
    must="that must come out above the result",
)
# %%
# NBVAL_CHECK_OUTPUT
sizes_of = [m.num_parameters() / dense.num_parameters() for m in (lot, fitted.model)]
L.assert_close(sizes_of[0], sizes_of[1], 1e-9, "drawn by lot, the model is as large as the winner")
# %% tags=["hide-input"]
against = amp.compare(read(lot), found)
if against.clear and against.difference > 0:
    print("The control is worse than the result, as it must be.")
else:
    print("The control is as good as the result: only the shape mattered.")
L.conclude({
    f"The split matters: with {best} of {anatomy.heads} heads in place of {amps} the repaired model has "
    f"{split_gap.ratio()} the perplexity, at equal parameters.": split_gap.clear and split_gap.difference < 0,
    f"The sum of the parts comes within a tenth of the whole: AMP's heads cost {costs['heads']:.2f} nats alone, its neurons "
    f"{costs['neurons']:.2f}, and {costs['both']:.2f} together, mostly as one part is nearly all of it.":
        verdict == "adds up" and max(costs["heads"], costs["neurons"]) > 0.9 * (costs["heads"] + costs["neurons"]),
    f"How much goes of each matters more than which: the winner's shape, filled by lot, still has {by_lot.ratio()} the "
    f"perplexity of AMP's split with AMP's choice.": by_lot.clear and by_lot.difference < 0,
    f"The search keeps {', '.join(touched)} and ends at {search_gap.ratio()} the perplexity of AMP's split with repair.":
        search_gap.clear and search_gap.difference < 0,
})  # fmt: skip
# %% [markdown]
# ## What this does not show
# - **The best mix.** A dozen trials of a few shapes. More trials may find better ones, but each of them looks at the
#   text kept apart once more.
# - **A large model.** In the real model, layers, heads and neurons are precious in other proportions; the line at the
#   end says what one budget reached there.
# - **That costs add up elsewhere.** In the real model the costs of heads, measured layer by layer, are far from their
#   cost together ([what a cut breaks](../docs/real.md)).
# - **Different widths in each layer.** Here all layers are alike, so that any stock library loads the result.
# - **Speed.** Equal parameters are not equal time. Lesson 5 measures it.
#
# ## References
# - Kurtic, Frantar, Alistarh (2023), *ZipLM*, [arXiv 2302.04089](https://arxiv.org/abs/2302.04089).
# - AMP, [arXiv 2504.21174](https://arxiv.org/abs/2504.21174); ablation second-hand, from a summary.
#
# ## Where next
# Read `budget.py` and `shapes.py` in `amp_tutorial/methods`: they are this lesson. [Lesson 9](09_real_model.ipynb) cuts
# a model that nobody made for this course. Then take one of your own ([appendix B](B_your_own_model.ipynb)), and keep
# some text apart.
# %%
L.finish()
