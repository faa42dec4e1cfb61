# lesson: Other answers
# %% [markdown]
# # 6 · Other answers: what else could a score look at?
#
# AMP is one answer to the question which heads and neurons matter. Others look at the same model and see something
# else: how much an activation carries, how much it changes, what the weights make of it, what the loss would say. Here
# all of them get the same model, the same texts and the same budget. Then it is possible to ask who is better, and also
# why two of them agree.
#
# **Objectives.** After this lesson you can
# - write down TransAct, Wanda-sp, FLAP and Taylor in a few lines each, and say what each of them looks at;
# - measure how far two rankings agree, and tell a difference of answers from a difference of calibration texts;
# - carry out a schedule of several shots, and say what scoring again brings by itself;
# - say why dimensions of a head can't go one by one under RoPE, and why per-layer widths need a class of their own;
# - read a leaderboard with its intervals.
#
# **Prerequisites.** Lessons 2 (scores) and 5 (intervals over seeds); lesson 3 for cuts. **Time:** {{minutes}}.
# %% tags=["parameters"]
model: str = "tiny-llama"  # or "tiny-llama-gqa", "tiny-phi", "smollm2-135m", a local folder, a hub id
ratio: float = 0.30  # share of all parameters to remove
calibration: int = 64  # texts that a score sees
seed: int = 0  # the first of the seeds
text: str = ""  # what is read: empty, the tiny world for its models and C4 for others; or a file, a folder, "wikitext2"
preset: str = "smallest"  # or "full": more seeds, more text
sweep: str = ""  # a folder of records by `amp-tutorial sweep`; empty: those that come with the course
out: str = "out"
# %%
import math
import warnings
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import combinations

import matplotlib.pyplot as plt
import torch
from scipy.stats import rankdata

import amp_tutorial as amp
from amp_tutorial.core.anatomy import weight_of
from amp_tutorial.course import lesson
from amp_tutorial.reports import boards, standings

L = lesson.start(
    "06_other_answers",
    dict(model=model, ratio=ratio, calibration=calibration, seed=seed, text=text, preset=preset, sweep=sweep, out=out),
)  # fmt: skip
warnings.filterwarnings("ignore", category=FutureWarning)  # peft still uses a name that transformers will drop
source, _ = L.material(text)
sizes = {
    "smallest": dict(seeds=3, windows=60, rows=32),
    "real": dict(seeds=3, windows=16, rows=32, together=2),  # rows that train at once
    "full": dict(seeds=10, windows=None, rows=256),
}[L.size]
seeds = range(seed, seed + sizes["seeds"])
dense, tokenizer = amp.load(model)
anatomy = amp.Anatomy.of(dense)
layers, heads, neurons = anatomy.layers, anatomy.heads, anatomy.neurons


def read(small) -> amp.Perplexity:
    return amp.perplexity(small, tokenizer, source, limit=sizes["windows"])


def measured(small) -> float:
    return read(small).value


base = measured(dense)
print(f"{model}: {layers} layers of {heads} heads and {neurons} neurons; perplexity {base:.2f}.")
# %% [markdown]
# ## 1 · The answers, side by side
#
# Every structure ends in columns of an output projection: a head in `head_dim` columns of $W_O$, a neuron in one column
# of $W_{down}$. Call its inputs $x_j$, and the weights they meet $W_{ij}$ ($i$ over the hidden size).
#
# | criterion | score of a structure | reads |
# |---|---|---|
# | AMP | head: mean over tokens of $\lVert h W\rVert_1$; neuron: mean of $\lvert a\rvert$ | output; activation |
# | TransAct | $s_j = \sqrt{\sum_t x_j^2}$; head: $\mathrm{mean}_j\, s_j + \frac{10}{d}\max_j s_j$ | activation |
# | Wanda-sp | $\sum_j \mathrm{mean}_i \lvert W_{ij}\rvert \cdot \lVert x_j\rVert_2$ | activation × weight |
# | FLAP | $\mathrm{Var}(x_j)\,\lVert W_j\rVert_2^2$, standardised in each layer | its change × weight |
# | Taylor | $\sum \lvert w\,\partial L/\partial w\rvert$ over all its weights | gradient |
# | magnitude | $\lVert w\rVert_2$ over all its weights | weights |
# | random; reversed | a draw; AMP upside down | the controls |
#
# AMP's equations are second-hand, and its code agrees; those of TransAct, of Wanda-sp (in FLAP's code) and of FLAP are
# read in the official code [code]; Taylor is LLM-Pruner's default. Each is a function in `amp_tutorial/methods`.
#
# Each has a known weakness. AMP's neuron score leaves $W_{down}$ out, TransAct leaves out every weight. Wanda and FLAP
# see one projection and not what later layers make of it. Taylor is a straight line through a curve, and needs a
# backward pass with the gradients of all layers at once. Magnitude sees no text at all.
#
# All of them from one call, for each seed of the calibration texts:
# %%
criteria = {
    "AMP": "amp", "TransAct": "transact", "Wanda-sp": "wanda", "FLAP": "flap", "Taylor": "taylor",
    "magnitude": "magnitude", "random": "random", "reversed": "reversed",
}  # fmt: skip
batches = {s: amp.calibration(tokenizer, source, samples=calibration, seed=s) for s in seeds}
scores = {}
for s in seeds:
    found = amp.score(dense, batches[s], tuple(criteria.values()), seed=s)
    scores |= {(name, s): found[criterion] for name, criterion in criteria.items()}
one = scores["AMP", seed]
print(
    f"{len(criteria)} criteria × {len(seeds)} seeds; the first seed's {one.prompts} texts have {one.tokens:,} tokens."
)
# %% [markdown]
# Now by hand. Hooks keep the inputs of the two output projections, at real tokens only. Everything that TransAct,
# Wanda-sp and FLAP need is in them.


# %%
@torch.no_grad()
def inputs_of(module, batches):
    """All inputs of an output projection, (tokens, features); padding is dropped."""
    kept, mask = [], None
    hook = module.register_forward_pre_hook(lambda _, args: kept.append(args[0][mask].double()))
    for batch in batches:
        mask = batch["attention_mask"].to(dense.device).bool()
        dense.base_model(input_ids=batch["input_ids"].to(dense.device), attention_mask=mask.long())
    hook.remove()
    return torch.cat(kept)


middle = layers // 2
block = anatomy.layer(middle)
h, a = inputs_of(block.output, batches[seed]), inputs_of(block.neurons_out, batches[seed])
W_O, W_down = (weight_of(m).detach().double() for m in (block.output, block.neurons_out))
print(f"Layer {middle}: inputs of the output projection {tuple(h.shape)}, of the down projection {tuple(a.shape)}.")
# %% [markdown]
# ### Exercise 1 · Wanda-sp for neurons
# *Easy, 5 minutes.* `a` is (tokens, neurons), `down` is (hidden, neurons). Return one score per neuron: the mean of
# $\lvert W_{ij}\rvert$ over the hidden dimension, times the **root mean square** of the activation. (Wanda's
# $\lVert x_j\rVert_2$ differs from it by $\sqrt{tokens}$, which is the same for all.)


# %%
def wanda_neurons(a: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Wanda-sp of every neuron."""
    ...  # your answer here


wanda_neurons = L.check(wanda_neurons, "l6_wanda_neurons")
# %% [markdown]
# {{hint:l6_wanda_neurons}}
#
# {{solution:l6_wanda_neurons}}
#
# A head of Wanda-sp sums this over its dimensions. TransAct and FLAP take a line or two each:
# %%
# NBVAL_CHECK_OUTPUT
by_head = (heads, anatomy.head_dim)
s_j = h.square().sum(0).sqrt().view(by_head)
fluctuation = h.var(0, correction=0).view(by_head) * W_O.square().sum(0).view(by_head)
written_out = {
    ("TransAct", "heads"): s_j.mean(1) + 10 / anatomy.head_dim * s_j.amax(1),
    ("TransAct", "neurons"): a.square().sum(0).sqrt(),
    ("Wanda-sp", "heads"): wanda_neurons(h, W_O).view(by_head).sum(1),
    ("Wanda-sp", "neurons"): wanda_neurons(a, W_down),
    ("FLAP", "neurons"): a.var(0, correction=0) * W_down.square().sum(0),
    ("FLAP", "heads"): fluctuation.square(),  # of squares, as in the code; standardised, then the mean of each head
}
for (name, part), mine in written_out.items():
    if name == "FLAP":
        mine = (mine - mine.mean()) / mine.std()
        mine = mine.mean(1) if part == "heads" else mine
    theirs = getattr(scores[name, seed], part)[middle].double()
    L.assert_close(mine / mine.abs().mean(), theirs / theirs.abs().mean(), 1e-3, f"{name}, {part}: as the module")
# %% [markdown]
# Taylor asks the loss. If a weight $w$ became zero, a straight line foresees a change of $w\,\partial L/\partial w$.
# One batch, one backward pass, the same layer:
# %%
# NBVAL_CHECK_OUTPUT
batch = {name: t.to(dense.device) for name, t in batches[seed][0].items()}
labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
dense.zero_grad()
loss = dense(**batch, labels=labels).loss
loss.backward()
inner = [(m.weight * m.weight.grad).abs().sum(1).split(neurons) for m in dict.fromkeys(block.neurons_in)]
mine = sum(row for rows in inner for row in rows)  # a neuron's row of gate and of up, or of fc1
mine = mine + (block.neurons_out.weight * block.neurons_out.weight.grad).abs().sum(0)  # and its column of down
dense.zero_grad()
theirs = amp.score(dense, batches[seed][:1], "taylor").neurons[middle]
L.assert_close(mine / mine.max(), theirs / theirs.max(), 1e-3, "Taylor, neurons: as the module")
# %% [markdown]
# ## 2 · Where rankings agree
#
# Compare two criteria by Spearman's rank correlation within each layer, in the mean over layers and seeds (lesson 2).
# On the diagonal stands a criterion against itself **on other calibration texts**: two answers can hardly agree better
# than one agrees with itself.
#
# **Predict:** which two criteria agree best on neurons? Does Taylor, which sees gradients, rank like those that see
# activations? Does magnitude agree with anything?


# %%
L.predict("rank correlation of AMP and Taylor on neurons", None)
# %%
def places(name, s, part):
    """Ranks within each layer, centred and of length one: (layers, structures)."""
    ranks = torch.from_numpy(rankdata(torch.stack(getattr(scores[name, s], part)).cpu().numpy(), axis=1))
    ranks = ranks - ranks.mean(1, keepdim=True)
    return ranks / ranks.norm(dim=1, keepdim=True)


def agreement(first, second, part):
    """Mean rank correlation over layers and seeds; of a criterion with itself, over pairs of seeds."""
    pairs = combinations(seeds, 2) if first == second else ((s, s) for s in seeds)
    found = [(places(first, s, part) * places(second, t, part)).sum(1).mean().item() for s, t in pairs]
    return sum(found) / len(found)


names = list(criteria)
rho = {part: {(x, y): agreement(x, y, part) for x in names for y in names} for part in ("heads", "neurons")}
fig, axes = plt.subplots(1, 2, figsize=(13, 5.2), layout="constrained")
for ax, part in zip(axes, rho, strict=True):
    table = torch.tensor([[rho[part][x, y] for y in names] for x in names])
    image = ax.imshow(table, cmap="PuOr_r", vmin=-1, vmax=1)
    for i in range(len(names)):
        for j in range(len(names)):
            colour = "white" if abs(table[i, j]) > 0.7 else "black"
            ax.text(j, i, f"{table[i, j]:.2f}", ha="center", va="center", color=colour, fontsize=9)
    ax.set_xticks(range(len(names)), names, rotation=40, ha="right")
    ax.set(yticks=range(len(names)), yticklabels=names, title=f"{part}; diagonal: with itself on other texts")
    ax.grid(False)
fig.colorbar(image, ax=axes, shrink=0.8, label="rank correlation within a layer")
told = "; ".join(f"{part}: " + ", ".join(f"AMP and {n} {rho[part]['AMP', n]:.2f}" for n in names[1:]) for part in rho)
L.show(fig, alt=f"Two heat maps of rank correlations between {len(names)} criteria. {told}.")
# %%
real = [n for n in names if n not in ("random", "reversed")]
for part in rho:
    ordered = sorted(combinations(real, 2), key=lambda pair: -rho[part][pair])
    best, least = ordered[0], ordered[-1]
    print(f"{part}: {best[0]} and {best[1]} agree best ({rho[part][best]:.2f}), "
          f"{least[0]} and {least[1]} least ({rho[part][least]:.2f}).")  # fmt: skip
    itself = min((rho[part][n, n], n) for n in real if n != "magnitude")
    print(f"  The least settled by {calibration} texts is {itself[1]}: it agrees with itself to {itself[0]:.2f}.")
    luck = rho[part]["random", "AMP"]
    print(f"  Controls: AMP with random {luck:.2f}, with its own reversal {rho[part]['AMP', 'reversed']:.2f}.")
L.seen("rank correlation of AMP and Taylor on neurons", rho["neurons"]["AMP", "Taylor"], within=0.15)
# %% [markdown]
# Why do they agree? A score is made of ingredients. If that is the reason, pairs with the same ingredients must agree
# more than pairs with different ones. Sort the pairs by what they look at:
# %%
activity = ["AMP", "TransAct", "Wanda-sp", "FLAP"]  # all read the input of the output projection
kinds = {
    "activations with activations": list(combinations(activity, 2)),
    "gradient with activations": [("Taylor", n) for n in activity],
    "weights with activations": [("magnitude", n) for n in activity],
    "gradient with weights": [("Taylor", "magnitude")],
}
for part in rho:
    mean = {kind: sum(rho[part][pair] for pair in pairs) / len(pairs) for kind, pairs in kinds.items()}
    print(f"{part}: " + ", ".join(f"{kind} {value:.2f}" for kind, value in mean.items()) + ".")
    if mean["activations with activations"] >= max(mean.values()):
        print("  As foreseen: criteria that read the same activations agree most, whatever norm they take.")
    else:
        print("  Not as foreseen: sharing the activations is not what makes rankings agree here.")
    if mean["gradient with weights"] > mean["gradient with activations"]:
        print("  Taylor stands nearer to magnitude: both add up all weights of a structure, not its output side alone.")
    if mean["weights with activations"] > 0.5:
        print("  Even the weights alone foretell much of the activity: what is written large is used much.")
    elif mean["weights with activations"] < 0.1:
        print("  The weights alone foretell nothing of the activity.")
    else:
        print("  The weights alone foretell some of the activity, far from all.")
# %% [markdown]
# Wanda-sp takes the mean square of an input, FLAP its variance. These are the same but for the square of the mean. How
# much of the energy is in the mean?
# %%
for part, x in (("heads", h), ("neurons", a)):
    in_the_mean = (x.mean(0).square().sum() / x.square().mean(0).sum()).item()
    alike = rho[part]["Wanda-sp", "FLAP"]
    close = (
        "little" if in_the_mean < 0.1 else "not little, yet they rank alike" if alike > 0.95 else "so they can differ"
    )
    print(f"{part}, layer {middle}: {in_the_mean:.0%} of the energy is in the mean, {close}. "
          f"Wanda-sp and FLAP correlate by {alike:.2f}.")  # fmt: skip
# %% [markdown]
# A step further, for neurons: the two ingredients apart. How well does each criterion follow the **activation** (root
# mean square of $a_m$, which is TransAct's neuron score), and how well the **output weight**
# ($\mathrm{mean}_i\lvert W_{im}\rvert$)?
# %%
columns = torch.stack([weight_of(anatomy.layer(i).neurons_out).detach().abs().mean(0) for i in range(layers)])
scores["output weight", seed] = replace(scores["magnitude", seed], neurons=list(columns))
for n in real:
    on_a, on_w = ((places(n, seed, "neurons") * places(x, seed, "neurons")).sum(1).mean().item()
                  for x in ("TransAct", "output weight"))  # fmt: skip
    print(f"{n:10s} follows the activation by {on_a:5.2f}, the output weight by {on_w:5.2f}")
between = (places("TransAct", seed, "neurons") * places("output weight", seed, "neurons")).sum(1).mean().item()
print(f"The two ingredients correlate by {between:.2f} with each other.")
if between > 0.3:
    print("A neuron that is often large also has large output weights: it matters less which ingredient is left out.")
elif between < -0.3:
    print("A neuron that is often large has small output weights: so a score with one of them alone misjudges it.")
else:
    print("They are nearly independent, so a score that leaves one out ranks differently.")
# %% [markdown]
# Rankings differ everywhere, a plan only cares about one place: the cut. **How many structures do the plans share?**
# Two random plans share as many as they keep.
# %%
plans = {key: amp.plan(dense, found, pruning_ratio=ratio) for key, found in scores.items() if key[0] in names}
kept_heads, _, kept_neurons = plans["AMP", seed].widths
print(f"{ratio:.0%} of all parameters: {kept_heads} of {heads} heads and {kept_neurons} of {neurons} neurons stay.")
print(f"Drawn plans share {kept_heads / heads:.0%} of their heads and {kept_neurons / neurons:.0%} of their neurons.")
for n in names[1:]:
    pairs = [plans["AMP", s].shared(plans[n, s]) for s in seeds]
    of_heads, of_neurons = (sum(p) / len(seeds) for p in zip(*pairs, strict=True))
    print(f"  AMP and {n:10s} share {of_heads:4.0%} of the heads and {of_neurons:4.0%} of the neurons they keep")
# %% [markdown]
# ## 3 · Who is better?
#
# One budget, one measurement: perplexity on held-out text. **Predict** the order. Where plans share nine tenths of what
# they keep, can their models differ much?
# %%
L.predict("the lowest perplexity", None, among=list(criteria))
# %%
runs = {}
for (name, s), plan in plans.items():
    if name != "magnitude" or s == seed:  # magnitude has no draw, so one is all
        runs[name, s] = read(amp.prune(dense, plan).model)
values = {key: run.value for key, run in runs.items()}


def of(name):
    return [runs[name, s] for s in seeds if (name, s) in runs]


spread = {n: amp.interval(*of(n)) for n in names}
centre = {n: spread[n].value for n in names}
order = sorted(names, key=centre.get)
fig, ax = plt.subplots(figsize=(8, 4))
for k, n in enumerate(order):
    reach = [[centre[n] - spread[n].low], [spread[n].high - centre[n]]]
    c = names.index(n)
    ax.errorbar(centre[n], k, xerr=reach, color=lesson.colour(n), marker=boards.MARKERS[c], markersize=8, capsize=4)
    ax.annotate(f"{centre[n]:.3g}", (centre[n], k), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9)
ax.axvline(base, color="0.2", ls="--")
ax.set_yticks(range(len(order)), order)
ax.set_ylim(len(order) - 0.5, -0.8)
ax.set(xscale="log", xlabel=f"perplexity with {ratio:.0%} removed (dashed: dense)")
L.show(fig, alt=f"Perplexity at {ratio:.0%} removed with 95 % intervals, {len(seeds)} seeds, best first: "
       + ", ".join(f"{n} {centre[n]:.3g}" for n in order) + f". Dense: {base:.3g}.")  # fmt: skip


# %%
def against(n):
    """How a criterion stands to AMP, seed by seed and window by window on the same texts."""
    gap = amp.compare(of(n), of("AMP"))
    word = ("better than" if gap.difference < 0 else "worse than") if gap.clear else "not told apart from"
    return gap, f"{n:10s} {centre[n]:7.2f}, {gap.ratio()} AMP's perplexity: {word} AMP."


for n in order:
    if n != "AMP":
        print(against(n)[1])
ahead = [n for n in order if n != "AMP" and against(n)[0].clear and centre[n] < centre["AMP"]]
print(f"Clearly ahead of AMP here: {', '.join(ahead) or 'none'}.")
L.seen("the lowest perplexity", order[0])
# %% [markdown]
# The interval is that of the ratio on the same seeds and windows (magnitude, which has one plan, stands against each of
# AMP's). It is over calibration texts and windows, not over models.
#
# ### Exercise 2 · Is this gap noise?
# *Medium, 8 minutes.* Two criteria, the same three seeds, a loss for each. Answer "first" or "second", whichever loses
# less, or "neither" if three seeds can't tell: if 0 lies within 4.30 standard errors of the mean gap (lesson 5; 4.30 is
# Student's t for three).
# %%
def told_apart(first: list[float], second: list[float]) -> str:
    """The better of two criteria, or "neither"."""
    ...  # your answer here


told_apart = L.check(told_apart, "l6_told_apart")
# %% [markdown]
# {{hint:l6_told_apart}}
#
# {{solution:l6_told_apart}}
# %%
for n in (name for name in names if name not in ("AMP", "magnitude")):
    sides = [[math.log(run.value) for run in of(name)] for name in ("AMP", n)]
    if len(sides[0]) == 3:
        print(f"AMP against {n}, by three seeds: {dict(first='AMP', second=n).get(told_apart(*sides), 'noise')}")
# %% [markdown]
# This looks at seeds alone; `amp.compare` above also knows that a text of so many windows is a sample.
#
# ## 4 · When magnitude wins, and what that says
#
# Magnitude looks at no text. Wherever it keeps up with a criterion that does, the weights already knew. Which half
# knows it: the heads, or the neurons? Give AMP's heads magnitude's neurons, and the other way round.
# %%
mixed = {}
for s in seeds:
    ours, weights = scores["AMP", s], scores["magnitude", s]
    for label, scored in (
        ("heads by magnitude", replace(ours, heads=weights.heads)),
        ("neurons by magnitude", replace(ours, neurons=weights.neurons)),
    ):
        mixed[label, s] = read(amp.prune(dense, amp.plan(dense, scored, pruning_ratio=ratio)).model)
halves = {}
for label in ("heads by magnitude", "neurons by magnitude"):
    halves[label] = g = amp.compare([mixed[label, s] for s in seeds], of("AMP"))
    word = ("better" if g.difference < 0 else "worse") if g.clear else "no clear difference"
    print(f"AMP, but {label}: {g.ratio()} the perplexity of AMP: {word}.")
beaten = [n for n in activity + ["Taylor"] if values["magnitude", seed] < centre[n]]
print(f"Criteria that see text and still come out above magnitude's perplexity: {', '.join(beaten) or 'none'}.")
for label, g in halves.items():
    part = label.split()[0]
    if g.clear and g.difference < 0:
        print(f"Magnitude is the better judge of {part}: the mean activity misleads AMP there. (What is rarely active,")
        print("but decides then, would look like this; not tested here.)")
    elif g.clear:
        print(f"For {part} AMP's view of the text helps; the weights alone don't know it.")
    else:
        print(f"For {part}, looking at text is not told apart from looking at the weights.")
# %% [markdown]
# Training with weight decay shrinks what no gradient holds up, so a large weight is a trace of use over the whole
# training text. That is more text than any calibration sees, but it is no measure of what the rest of the model can do
# without.
#
# ## 5 · TransAct's schedule: shot by shot
#
# TransAct does not cut at once. It scores, cuts a little, trains, and does so eight times, because after the first cuts
# the scores are no longer true. Each shot takes its part of what is still too many.
#
# ### Exercise 3 · The schedule
# *Easy, 5 minutes.* From `current` structures to `target` in so many shots: each shot removes
# `(current − target) // remaining`, where `remaining` counts this shot too. Return what is left after each.


# %%
def schedule(current: int, target: int, shots: int) -> list[int]:
    """How many are left after each shot."""
    ...  # your answer here


schedule = L.check(schedule, "l6_schedule")
# %% [markdown]
# {{hint:l6_schedule}}
#
# {{solution:l6_schedule}}
#
# The published targets are presets. The paper's takes LLaMA-2-7B from 32 heads and 11,008 neurons to 6 and 1,536; its
# script, if told nothing else, stops at 16 and 3,072. The sizes follow by arithmetic:
# %%
# NBVAL_CHECK_OUTPUT
for name, left in amp.TRANSACT.items():
    shown = {part: schedule(dict(heads=32, neurons=11008)[part], left[part], 8) for part in ("heads", "neurons")}
    parameters = 2 * 32000 * 4096 + 4096  # embeddings, head, last norm
    parameters += 32 * (4 * 128 * 4096 * left["heads"] + 3 * 4096 * left["neurons"] + 2 * 4096)
    print(f"{name}: heads {shown['heads']}")
    print(f"  neurons {shown['neurons']}")
    cache = left["heads"] / 32
    print(f"  {parameters / 1e9:.3f} B parameters (−{1 - parameters / 6738415616:.0%}), KV cache {cache:.2%} of dense")
    L.assert_close(shown["heads"][-1], left["heads"], 0, "the last shot meets the target")
# %% [markdown]
# Now here, to the widths of section 3, by TransAct's own salience. Four ways: at once or in four shots, each with and
# without a little training. Training is LoRA on the same texts for the same number of steps: a quarter of them after
# each shot, or all at the end. **Predict:** is it scoring again that helps, or training in between?
# %%
L.predict("what helps more", None, among=("scoring again", "training"))
# %%
shots = 4
quarters, at_once = (
    partial(
        amp.recover,
        source=source,
        config=amp.RecoveryConfig(
            samples=sizes["rows"], epochs=epochs, loss="text", learning_rate=2e-3, rows_at_once=sizes.get("together")
        ),
        progress=False,
    )
    for epochs in (1, shots)
)
target = dict(heads=kept_heads, neurons=kept_neurons, criterion="transact")
ways = {
    "one shot": dict(shots=1, recover=None),
    "four shots": dict(shots=shots, recover=None),
    "one shot + training": dict(shots=1, recover=at_once),
    "four shots + training": dict(shots=shots, recover=quarters),
}
after, last = {}, {}
for name, how in ways.items():
    for pruned in amp.prune_in_shots(dense, tokenizer, batches[seed], **target, **how):
        small, shot = pruned.model, pruned.report
        last[name] = small, shot
        if name == "four shots + training":
            before, now = shot.kv_cache_per_token
            print(f"after shot {shot.number}: {shot.heads[1]} heads, {shot.neurons[1]} neurons, "
                  f"KV cache {before:,} → {now:,} bytes per token ({now / before:.1%})")  # fmt: skip
    after[name] = measured(last[name][0])
for name, value in after.items():
    print(f"{name:22s} perplexity {value:6.2f}")
same_heads, same_neurons = last["one shot"][1].plan.shared(last["four shots"][1].plan)
print(f"One and four shots without training share {same_heads:.0%} of the heads and {same_neurons:.0%} of the neurons.")
# %%
fig, ax = plt.subplots(figsize=(7, 3.4))
for k, value in enumerate(after.values()):
    ax.bar(k, value, color=lesson.PALETTE[k], hatch=lesson.HATCHES[k], edgecolor="white", width=0.6)
    ax.text(k, value, f"{value:.2f}", ha="center", va="bottom")
ax.axhline(base, color="0.2", ls="--")
ax.set_xticks(range(len(after)), [name.replace(" + ", "\n+ ") for name in after])
ax.set(ylabel="perplexity (dashed: dense)")
ax.margins(y=0.12)
L.show(fig, alt="Bars of perplexity: " + ", ".join(f"{n} {v:.2f}" for n, v in after.items()) + f"; dense {base:.2f}.")


def effect(name, reference):
    change = after[name] / after[reference] - 1
    how = "lowers" if change < -0.02 else "raises" if change > 0.02 else "hardly changes"
    return f"{how} the perplexity ({change:+.0%})"


print(f"Scoring again, without training, {effect('four shots', 'one shot')}.")
print(f"Training at the end of one shot {effect('one shot + training', 'one shot')}.")
print(f"Training between four shots, against the same training at the end, "
      f"{effect('four shots + training', 'one shot + training')}.")  # fmt: skip
more = "training" if after["one shot + training"] < after["four shots"] else "scoring again"
L.seen("what helps more", more)
# %% [markdown]
# This is one calibration draw and a handful of training steps, after each shot with an adapter and a falling learning
# rate of its own. TransAct trains all parameters, on 1 B tokens over its 8 shots and 50 B after them [code], to a fifth
# of the size. What a schedule is worth there, this can't say.
#
# ## 6 · Museum: shrinking the heads instead
#
# TransAct's code can also keep all heads and drop *dimensions* of each, with one index set for query, key, value and
# output; afterwards the head has a smaller `head_dim`, and RoPE starts anew with the frequencies of that size [code].
# Values and outputs stand that. Queries and keys do not: RoPE turns dimension $j$ together with $j + d/2$, by an angle
# (position × frequency $j$) that belongs to this pair. **Predict:** drop dimensions first and rotate after, or rotate
# first and drop after: the same?


# %%
L.predict("the two orders give", None, among=("the same", "something else"))
# %%
def rotate(x, positions, frequencies):
    """RoPE: dimension j turns with j + d/2, by position × frequency j."""
    angle = positions[:, None] * frequencies
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1)


def frequencies(d, base=10000.0):
    return base ** (-torch.arange(0, d, 2).double() / d)


d = 16
draw = torch.Generator().manual_seed(0)  # any query and key would do
q, k = (torch.randn(d, generator=draw).double() for _ in range(2))
salience = torch.rand(d, generator=draw)
at = torch.arange(40).double()
chosen = salience.topk(d // 2).indices.sort().values  # one index set, pairs ignored
pairs = (salience[: d // 2] + salience[d // 2 :]).topk(d // 4).indices.sort().values  # whole pairs (j, j + d/2)
whole = torch.cat([pairs, pairs + d // 2])


def score_at(q, k, turns):
    """Attention score of a query at each position with a key at position 0, and of both moved on by 25."""
    near = [rotate(q.expand(len(at), -1), at + move, turns) @ rotate(k[None], torch.tensor([0.0 + move]), turns)[0]
            for move in (0, 25)]  # fmt: skip
    return torch.stack(near)


lost = sorted(set((chosen % (d // 2)).tolist()) - {j for j in chosen.tolist() if j + d // 2 in chosen.tolist()})
print(f"Of the {d // 2} kept dimensions, {len(lost)} have lost the partner they turn with.")
# %%
# NBVAL_CHECK_OUTPUT
full = frequencies(d)
rotated = rotate(q.expand(len(at), -1), at, full)
own = rotate(q[whole].expand(len(at), -1), at, full[pairs])
L.assert_close(own, rotated[:, whole], 1e-12, "whole pairs with their own frequencies: order makes no difference")
reset = rotate(q[chosen].expand(len(at), -1), at, frequencies(d // 2))
L.assert_close(reset[0], rotated[0, chosen], 1e-12, "one index set, frequencies reset: the same at position 0")
assert not torch.allclose(reset[1:], rotated[1:, chosen]), "at other positions it must differ"
reset_pairs = rotate(q[whole].expand(len(at), -1), at, frequencies(d // 2))
assert not torch.allclose(reset_pairs[1:], rotated[1:, whole]), "whole pairs alone do not mend it"
first, moved = score_at(q[whole], k[whole], full[pairs])
L.assert_close(first, moved, 1e-9, "whole pairs: the score depends on the distance alone, as RoPE promises")
L.seen("the two orders give", "something else")
# %%
keys = rotate(k.expand(2, -1), torch.tensor([0.0, 25.0]), full)[:, chosen]
together = [rotate(q.expand(len(at), -1), at + m, full)[:, chosen] @ key for m, key in zip((0, 25), keys, strict=True)]
curves = {
    "rotate, then drop": together[0],
    "the same pair, 25 positions later": together[1],
    "drop, then rotate by reset frequencies": score_at(q[chosen], k[chosen], frequencies(d // 2))[0],
}
fig, ax = plt.subplots(figsize=(8, 4))
for c, (name, curve) in enumerate(curves.items()):
    ax.plot(at, curve, color=lesson.PALETTE[c], marker=lesson.MARKERS[c], markevery=4, label=name)
ax.set(xlabel="distance between query and key (tokens)", ylabel="attention score")
ax.legend(loc="upper left", bbox_to_anchor=(0, -0.15), frameon=False)
shift = (together[0] - together[1]).abs().mean() / together[0].std()
apart = (together[0] - curves["drop, then rotate by reset frequencies"]).abs().mean() / together[0].std()
L.show(fig, alt="Attention score over distance for one query and key with half of their dimensions: rotated then "
       f"dropped; the same 25 positions later, off by {shift:.2f} of the spread; dropped then rotated by reset "
       f"frequencies, off by {apart:.2f}.")  # fmt: skip
print(f"Rotate, then drop: moving both by 25 positions changes the score by {shift:.2f} of its spread. Where a")
print("partner is gone, the score no longer depends on the distance alone.")
print(f"Drop, then rotate by reset frequencies: off by {apart:.2f} of that spread. Distance alone counts again,")
print("but dimensions turn with other partners, and at other speeds, than those the model was trained with.")
# %% [markdown]
# Whole pairs that keep their own frequencies would be exact. But a configuration says `head_dim` and one base for all
# frequencies: it can't say which pairs are left, and with a separate choice in every head still less. So here only
# whole heads go, as in the model that TransAct's paper reports.
#
# ## 7 · FLAP: one ranking for all, and biases
#
# FLAP's scores are standardised in each layer, so that heads and neurons of all layers can stand in **one ranking**;
# what goes is decided there, and every layer gets widths of its own. No stock configuration can say such widths
# (lesson 3). Here it is by hand, cheapest first until the budget is spent:
# %%
# NBVAL_CHECK_OUTPUT
flap = scores["FLAP", seed]
head_scores, neuron_scores = torch.stack(flap.heads), torch.stack(flap.neurons)
worth_head, worth_neuron = anatomy.group_cost / anatomy.group_size, anatomy.neuron_cost
everything = torch.cat([head_scores.flatten(), neuron_scores.flatten()])
worth = torch.cat([torch.full((head_scores.numel(),), worth_head), torch.full((neuron_scores.numel(),), worth_neuron)])
lowest = everything.argsort()
gone = torch.zeros(len(everything), dtype=torch.bool)
gone[lowest[worth[lowest].double().cumsum(0) <= ratio * dense.num_parameters()]] = True
stay_heads, stay_neurons = ~gone[: head_scores.numel()].view(layers, -1), ~gone[head_scores.numel() :].view(layers, -1)
groups_gone = round((~stay_heads).sum().item() / layers / anatomy.group_size)
ranked = amp.plan_jointly(dense, flap, ratio)
affordable = int(ratio * dense.num_parameters() / layers // anatomy.group_cost)
by_hand = heads - min(groups_gone, affordable) * anatomy.group_size
L.assert_close(ranked.widths[0], by_hand, 0, "parts='scored' keeps as many heads as the ranking does in the mean")


# %%
@contextmanager
def unequal(stay_heads, stay_neurons):
    """Silence other heads and neurons in each layer, as FLAP's own class can and a stock checkpoint can't."""
    hooks = []
    for i in range(layers):
        features = stay_heads[i].repeat_interleave(anatomy.head_dim)
        for module, mask in ((anatomy.layer(i).output, features), (anatomy.layer(i).neurons_out, stay_neurons[i])):
            mask = mask.to(dense.device, dense.dtype)
            hooks.append(module.register_forward_pre_hook(lambda _, args, mask=mask: (args[0] * mask,)))
    try:
        yield dense
    finally:
        for hook in hooks:
            hook.remove()


fig, axes = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
for ax, part, stay, equal in zip(
    axes, ("heads", "neurons"), (stay_heads, stay_neurons), (ranked.widths[0], ranked.widths[2]), strict=True
):
    ax.bar(range(layers), stay.sum(1), color=lesson.PALETTE[0], label="one ranking")
    ax.axhline(equal, color="black", ls="--", label="what a stock model can hold")
    ax.set(xlabel="layer", ylabel=f"{part} kept")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
L.show(fig, alt="Bars of what FLAP's single ranking keeps in each layer. Heads: "
       + ", ".join(str(int(v)) for v in stay_heads.sum(1)) + "; neurons: "
       + ", ".join(str(int(v)) for v in stay_neurons.sum(1))
       + f". Dashed: {ranked.widths[0]} heads and {ranked.widths[2]} neurons in every layer.")  # fmt: skip
with unequal(stay_heads, stay_neurons):
    free = measured(dense)
projected = measured(amp.prune(dense, ranked).model)
print(f"Every layer its own widths (masked): perplexity {free:.2f}.")
print(f"Projected to equal widths, {ranked.widths[0]} heads and {ranked.widths[2]} neurons: {projected:.2f}.")
print(f"The same share of heads and of neurons, {kept_heads} and {kept_neurons}: {values['FLAP', seed]:.2f}.")


def compared(value, reference):
    change = value / reference - 1
    return "lower" if change < -0.02 else "higher" if change > 0.02 else "about the same"


at_its_split = values["AMP", seed]
if ranked.widths == plans["FLAP", seed].widths:
    print("After projection the ranking asks for the widths of equal shares: it decides nothing.")
else:
    how = compared(projected, values["FLAP", seed])
    print(f"What survives of the ranking is how heads and neurons split the budget: perplexity is {how}"
          f"{' as' if how == 'about the same' else ' than'} with equal shares.")  # fmt: skip
    small = amp.prune(dense, amp.keep(dense, scores["AMP", seed], ranked.widths[0], ranked.widths[2])).model
    at_its_split = measured(small)
    print(f"AMP's scores at FLAP's split: {at_its_split:.2f}. "
          + ("The split matters more here than who ranks."
             if abs(math.log(at_its_split / projected)) < abs(math.log(projected / values["FLAP", seed]))
             else "Who ranks matters more here than the split."))  # fmt: skip
how = compared(free, projected)
print({
    "lower": "Widths of its own for every layer are worth something here, which a stock checkpoint can't have.",
    "higher": "Widths of its own for every layer do harm here: standardised scores do not compare these layers well.",
    "about the same": "Widths of its own for every layer make little difference here.",
}[how])  # fmt: skip
# %% [markdown]
# All of this is one calibration draw. (With grouped queries the masked model silences single heads; it could not give
# up their keys and values.)
#
# FLAP's second idea: what goes had a mean, and the mean can be put into the **bias** of the output projection. LLaMA
# has no biases there, and FLAP's class adds them; a stock LLaMA can't hold them. Phi has them. So:
# %%
has_bias = block.output.bias is not None or block.neurons_out.bias is not None
if has_bias:
    biased, its_tokenizer, draws = dense, tokenizer, list(seeds)
else:
    try:
        amp.prune_and_fold(dense, plans["FLAP", seed], batches[seed])
    except ValueError as refused:
        print(f"{model}: {refused}")
    biased, its_tokenizer = amp.load("tiny-phi")
    draws = [seed]
plain, folded = [], []
for s in draws:
    texts = batches[s] if has_bias else amp.calibration(its_tokenizer, "tinyworld", samples=calibration, seed=s)
    own = None if has_bias else amp.score(biased, texts, "flap")
    chosen_by_flap = plans["FLAP", s] if has_bias else amp.plan(biased, own, ratio)
    cut, mended = amp.prune(biased, chosen_by_flap).model, amp.prune_and_fold(biased, chosen_by_flap, texts).model
    held_out = source if has_bias else "tinyworld"
    plain.append(amp.perplexity(cut, its_tokenizer, held_out, limit=sizes["windows"]).value)
    folded.append(amp.perplexity(mended, its_tokenizer, held_out, limit=sizes["windows"]).value)
better = sum(f < p for f, p in zip(folded, plain, strict=True))
print(f"{model if has_bias else 'tiny-phi'} by FLAP, means folded into the biases: perplexity "
      + ", ".join(f"{p:.2f} → {f:.2f}" for p, f in zip(plain, folded, strict=True))
      + f" ({len(draws)} {'draws' if len(draws) > 1 else 'draw'}).")  # fmt: skip
if better == len(draws):
    print(f"It helps in {'this draw' if len(draws) == 1 else 'every draw'}, and costs nothing: the biases are there.")
elif better:
    print("It helps in some draws and not in others.")
else:
    print("It does not help here.")
# %% [markdown]
# A mean is a first repair: of what is constant, while all that varies is lost. Lesson 8 solves for the whole output
# projection instead, and needs no bias.
#
# ## 8 · The leaderboard
#
# `make leaderboard` runs every system of this course on three models, at three ratios, over seeds: a sweep over
# `data/sweeps/leaderboard.yaml`, which keeps a record of each run. Here are the width criteria among them, on the model
# of this lesson if it is there. ("FLAP, own split" is section 7's projected ranking; means go where biases are.)
# %%
folder = amp.DATA / "leaderboard"
records = standings.read(folder) if folder.is_dir() else []
board, left_out = standings.collect(records)
shown = model if model in board else next(iter(board), None)
if shown is None:
    print("No stored records here; the command above makes them.")
else:
    cells = board[shown]
    rows = [row for row in cells if row[2] == "heads and neurons"]
    labels = list(dict.fromkeys(row[1] for row in sorted(rows)))
    fig, ax = plt.subplots(figsize=(8, 4.6))
    told = []
    for c, label in enumerate(labels):
        mine = sorted((row[3], cells[row]["perplexity"]) for row in rows if row[1] == label)
        x = [100 * r + (c - len(labels) / 2) * 0.35 for r, _ in mine]  # side by side
        y = [p.value for _, p in mine]
        reach = [[p.value - p.low for _, p in mine], [p.high - p.value for _, p in mine]]
        ax.errorbar(x, y, reach, color=lesson.colour(label), marker=boards.MARKERS[c], capsize=3, label=label)
        told.append(f"{label} " + ", ".join(f"{v:.3g}" for v in y))
    whole_model = standings.dense(cells)["perplexity"].value
    ax.axhline(whole_model, color="0.2", ls="--", label="dense")
    ax.set_ylim(bottom=0.85 * whole_model)  # the interval of three random draws can reach further down
    ax.set(yscale="log", xlabel="share of all parameters removed (%)", ylabel="perplexity", title=shown)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    L.show(fig, alt=f"Perplexity of width criteria on {shown} over the share removed, with 95 % intervals: "
           + "; ".join(told) + ".")  # fmt: skip
# %%
firsts, wide = {}, False
for name, cells in board.items():
    for r in sorted({row[3] for row in cells if row[2] == "heads and neurons"}):
        rows = [row for row in cells if row[2] == "heads and neurons" and row[3] == r]
        leader = standings.best(cells, rows, "perplexity", 1)
        if leader is None:
            continue
        p = cells[leader]["perplexity"]
        others = [row for row in rows if row != leader]
        level = [row[1] for row in others if not cells[row].against(cells[leader], "perplexity").clear]
        beside = f"not told apart from {'; '.join(level)}" if level else "clearly ahead of all others"
        print(f"{name}, {r:.0%}: {leader[1]} leads with {p.bounds()}, {beside}.")
        firsts[leader[1]] = firsts.get(leader[1], 0) + 1
        wide |= "random" in level and leader[0] != "random"
if firsts:
    if wide:
        print("Where random is not told apart, its draws differ so much that its interval holds nearly everything.")
    counted = "; ".join(f"{n} {count}" for n, count in sorted(firsts.items(), key=lambda item: -item[1]))
    print(f"Firsts over models and ratios: {counted}.")
    print("No criterion leads everywhere." if len(firsts) > 1 else "One criterion leads everywhere.")
# %% [markdown]
# A sweep of your own draws the same picture from its records, whatever criteria its grid names. Here are the shipped
# records of `amp-tutorial sweep data/sweeps/criteria.yaml`; the parameter `sweep` above takes another folder.
# %%
L.from_sweep(sweep)
# %% [markdown]
# A leader is read off the same table that it leads, so a narrow lead says little; where the two are not told apart, it
# says nothing. That is judged seed by seed and window by window: all criteria are measured on the same text. Where a
# criterion has one plan only (magnitude), its interval is over windows, elsewhere over seeds and windows.
# The [leaderboard](../docs/leaderboard.md) has all systems, with layers, repair and slicing.
#
# ## The result
#
# Choosing the winner first and then asking whether it wins would prove little. Published figures have Wanda-sp ahead of
# AMP: 66.1 % untuned against 64.5 % on LLaMA-7B at 20 %, other harness versions [second-hand]. So the question is set:
# **is AMP's perplexity above Wanda-sp's at this budget?** The number is their ratio, seed by seed; above 1, AMP loses.
# The baseline is magnitude, the control AMP upside down: both over Wanda-sp, too.
# %%
gap = amp.compare(of("AMP"), of("Wanda-sp"))
L.signature(
    f"AMP's perplexity over Wanda-sp's at {ratio:.0%}",
    math.exp(gap.difference),
    math.exp(gap.low),
    math.exp(gap.high),
    "×",
    baseline=("magnitude over Wanda-sp", values["magnitude", seed] / centre["Wanda-sp"]),
    control=("reversed AMP over Wanda-sp", centre["reversed"] / centre["Wanda-sp"]),
)
for n in names:
    L.record.metric(f"perplexity, {n}", centre[n], spread[n].low, spread[n].high)
# %%
if gap.clear and gap.difference > 0:
    print(
        "Wanda-sp beats AMP here, and the interval excludes 1. AMP's neuron score leaves out the weights that it uses."
    )
elif gap.clear:
    print("AMP beats Wanda-sp here, against the published figures, and the interval excludes 1.")
else:
    print(f"The interval includes 1: {len(seeds)} seeds don't tell AMP and Wanda-sp apart.")
upside_down = amp.compare(of("reversed"), of("Wanda-sp"))
if upside_down.clear and upside_down.difference > 0:
    print("The control failed, as it must.")
else:
    print("The control did not clearly fail: on this model and text the order carries little.")
reading = [n for n in ("AMP", "Wanda-sp", "FLAP", "Taylor", "TransAct") if n in centre]
close = max(centre[n] for n in reading) / min(centre[n] for n in reading)
by_lot = amp.compare(of("random"), of("AMP"))
L.conclude({
    f"The {len(reading)} criteria that read text lie within a factor of {close:.2f}; none is clearly ahead of AMP.":
        not ahead,
    f"Chance is worse than AMP by perplexity ({by_lot.ratio()}). Lesson 5's accuracies, of as many draws, could not tell: "
    "each token of a text is an answer, so there are more of them.": by_lot.clear and by_lot.difference > 0,
    f"How a budget is split matters more than who ranks: AMP's scores give {values['AMP', seed]:.2f} at equal shares "
    f"and {at_its_split:.2f} at FLAP's split.": at_its_split < 0.9 * values["AMP", seed],
})  # fmt: skip
# %% [markdown]
# On the real model the first of these fails: the last line of this lesson says so.
#
# ## What this does not show
# - **A ranking for large models.** Three tiny models are on the board. Nothing here says who wins on 7 billion
#   parameters.
# - **The other systems as they were published.** Each criterion here cuts equal widths for a stock checkpoint. FLAP
#   with its own class, Wanda-sp on the already pruned layers before, LLM-Pruner with its own groups may do better.
# - **TransAct.** Its case is a fifth of the size and billions of tokens of training.
# - **Tasks.** Perplexity only; the [leaderboard](../docs/leaderboard.md) has accuracies beside it.
#
# ## References
# - AMP, [arXiv 2504.21174](https://arxiv.org/abs/2504.21174); TransAct, [arXiv 2407.05690](https://arxiv.org/abs/2407.05690),
#   code `XiaoMi/transact-pruning`.
# - Wanda, [arXiv 2306.11695](https://arxiv.org/abs/2306.11695); FLAP, [arXiv 2312.11983](https://arxiv.org/abs/2312.11983).
# - LLM-Pruner, [arXiv 2305.11627](https://arxiv.org/abs/2305.11627).
# - RoPE: *RoFormer*, [arXiv 2104.09864](https://arxiv.org/abs/2104.09864).
#
# ## Where next
# So far every answer cut heads and neurons. Lesson 7 takes whole layers, and puts depth against width at one budget.
# %%
L.finish()
