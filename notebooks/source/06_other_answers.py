# lesson: Other answers
# %% [markdown]
# # 6 · Other answers: what else could a score look at?
#
# AMP is one answer to the question which heads and neurons matter. Others look at the same model and see something
# else: how much an activation carries, how much it changes, what the weights make of it, what the loss would say. Here
# all of them get the same model, the same texts and the same budget. That makes it possible to ask which is better, and
# also why two of them agree.
#
# **Objectives.** After this lesson you can
# - write down TransAct, Wanda-sp, FLAP and Taylor in a few lines each, and say what each of them looks at;
# - measure how far two rankings agree, and tell a difference between criteria from a difference between calibration
#   texts;
# - say whether a gap between two criteria is noise;
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
# %% tags=["hide-input"]
import math
from dataclasses import replace
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
source, _ = L.material(text)
sizes = {
    "smallest": dict(seeds=3, windows=60),
    "real": dict(seeds=3, windows=16),
    "full": dict(seeds=10, windows=None),
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
# ## The answers, side by side
#
# Every structure, a head or a neuron, ends in columns of an output projection: a head in `head_dim` columns of $W_O$, a
# neuron in one column of $W_{down}$. Call the inputs of these columns $x_j$, and the weights they meet $W_{ij}$ ($i$
# runs over the hidden size).
#
# | criterion | score of a structure | reads |
# |---|---|---|
# | AMP | head: mean over tokens of $\lVert h W\rVert_1$; neuron: mean of $\lvert a\rvert$ | output; activation |
# | TransAct | $s_j = \sqrt{\sum_t x_j^2}$; head: $\mathrm{mean}_j\, s_j + \frac{10}{d_h}\max_j s_j$ | activation |
# | Wanda-sp | $\sum_j \mathrm{mean}_i \lvert W_{ij}\rvert \cdot \lVert x_j\rVert_2$ | activation × weight |
# | FLAP | $\mathrm{Var}(x_j)\,\lVert W_j\rVert_2^2$ (heads: its square, mean over $j$), standardised in each layer | its change × weight |
# | Taylor | $\sum \lvert w\,\partial L/\partial w\rvert$ over all its weights | gradient |
# | magnitude | $\lVert w\rVert_2$ over all its weights | weights |
# | random; reversed | a draw; AMP upside down | nothing; as AMP |
#
# AMP's equations are second-hand, and its code agrees; those of TransAct, of Wanda-sp (in FLAP's code) and of FLAP were
# read in the official code [code]; Taylor is LLM-Pruner's default. (Second-hand means from a summary of the paper, and
# [code] read in the code.) Each is a function in `amp_tutorial`.
#
# Each has a known weakness. AMP's neuron score leaves $W_{down}$ out, TransAct leaves out every weight. Wanda-sp and
# FLAP see one projection, and not what later layers make of it. Taylor puts a straight line in place of a curve, and
# needs a backward pass with the gradients of all layers at once. Magnitude sees no text at all.
#
# One call gives all of them, for each seed of the calibration texts:
# %%
criteria = {
    "AMP": "amp", "TransAct": "transact", "Wanda-sp": "wanda", "FLAP": "flap", "Taylor": "taylor",
    "magnitude": "magnitude", "random": "random", "reversed": "reversed",
}  # fmt: skip
batches = {s: amp.calibration(tokenizer, source, samples=calibration, seed=s) for s in seeds}
scores = {}
for s in seeds:
    found = amp.score_many(dense, batches[s], tuple(criteria.values()), seed=s)
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
# $\lVert x_j\rVert_2$ differs from it by a factor of $\sqrt{tokens}$, which is the same for all.)
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
# For a head, Wanda-sp sums this over the head's dimensions. TransAct and FLAP take a line or two each:
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
# Taylor asks the loss. If a weight $w$ became zero, a straight line predicts a change of size
# $\lvert w\,\partial L/\partial w\rvert$.
#
# ### Exercise 2 · Taylor for rows
# *Easy, 4 minutes.* `weight` and `gradient` are (out, in). Return one score for each row: the sum of
# $\lvert w\,\partial L/\partial w\rvert$ over its weights.
# %%
def taylor(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Taylor's score of every row."""
    ...  # your answer here


taylor = L.check(taylor, "l6_taylor")
# %% [markdown]
# {{hint:l6_taylor}}
#
# {{solution:l6_taylor}}
#
# A neuron is a row of gate, a row of up (or one row of `fc1`) and a column of down. Here is one batch and one backward
# pass, for the same layer:
# %%
# NBVAL_CHECK_OUTPUT
batch = {name: t.to(dense.device) for name, t in batches[seed][0].items()}
labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
dense.zero_grad()
loss = dense(**batch, labels=labels).loss
loss.backward()
inner = [taylor(m.weight.detach(), m.weight.grad).split(neurons) for m in dict.fromkeys(block.neurons_in)]
mine = sum(row for rows in inner for row in rows)  # gate and up may be one matrix
mine = mine + taylor(block.neurons_out.weight.detach().T, block.neurons_out.weight.grad.T)
dense.zero_grad()
theirs = amp.score(dense, batches[seed][:1], "taylor").neurons[middle]
L.assert_close(mine / mine.max(), theirs / theirs.max(), 1e-3, "Taylor, neurons: as the module")
# %% [markdown]
# ## Where rankings agree
#
# We compare two criteria by Spearman's rank correlation within each layer, averaged over layers and seeds (lesson 2).
# On the diagonal each criterion stands against itself **on other calibration texts**: two criteria can hardly agree
# better than one agrees with itself.
#
# **Predict.** Which two criteria agree best on neurons? Taylor sees gradients: what is its rank correlation with AMP,
# which sees activations? Does magnitude agree with anything?
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
# %% tags=["hide-input"]
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
# more than pairs with different ones. So sort the pairs by what they look at:
# %% tags=["hide-input"]
activity = ["AMP", "TransAct", "Wanda-sp", "FLAP"]  # all read the input of the output projection
kinds = {
    "activations with activations": list(combinations(activity, 2)),
    "gradient with activations": [("Taylor", n) for n in activity],
    "weights with activations": [("magnitude", n) for n in activity],
    "gradient with weights": [("Taylor", "magnitude")],
}
means = {}
for part in rho:
    means[part] = mean = {kind: sum(rho[part][pair] for pair in pairs) / len(pairs) for kind, pairs in kinds.items()}
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
# %% tags=["hide-input"]
for part, x in (("heads", h), ("neurons", a)):
    in_the_mean = (x.mean(0).square().sum() / x.square().mean(0).sum()).item()
    alike = rho[part]["Wanda-sp", "FLAP"]
    close = (
        "little" if in_the_mean < 0.1 else "not little, yet they rank alike" if alike > 0.95 else "so they can differ"
    )
    print(f"{part}, layer {middle}: {in_the_mean:.0%} of the energy is in the mean, {close}. "
          f"Wanda-sp and FLAP correlate by {alike:.2f}.")  # fmt: skip
# %% [markdown]
# One step further, for neurons: take the two ingredients apart. How well does each criterion follow the **activation**
# (root mean square of $a_m$, which is TransAct's neuron score), and how well the **output weight**
# ($\mathrm{mean}_i\lvert W_{im}\rvert$)?
# %%
columns = torch.stack([weight_of(anatomy.layer(i).neurons_out).detach().abs().mean(0) for i in range(layers)])
scores["output weight", seed] = replace(scores["magnitude", seed], neurons=list(columns))
# %% tags=["hide-input"]
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
# Rankings may differ anywhere, but a plan cares about one place only: where it cuts. **How many structures do the plans
# share?** Of what one plan keeps, a random plan also keeps just the fraction that stays: 5 of 8 heads, so five eighths.
# %%
plans = {key: amp.plan(dense, found, pruning_ratio=ratio) for key, found in scores.items() if key[0] in names}
kept_heads, _, kept_neurons = plans["AMP", seed].widths
print(f"{ratio:.0%} of all parameters: {kept_heads} of {heads} heads and {kept_neurons} of {neurons} neurons stay.")
print(f"Drawn plans share {kept_heads / heads:.0%} of their heads and {kept_neurons / neurons:.0%} of their neurons.")
for n in names[1:]:
    pairs = [plans["AMP", s].shared(plans[n, s]) for s in seeds]
    of_heads, of_neurons = (sum(p) / len(seeds) for p in zip(*pairs, strict=True))
    print(f"  AMP and {n:10s} share {of_heads:4.0%} of the heads and {of_neurons:4.0%} of the neurons they keep")
# %%
# NBVAL_CHECK_OUTPUT
for n in names:
    L.assert_close(plans[n, seed].widths, plans["AMP", seed].widths, 0, f"{n}: as many heads and neurons stay as by AMP")
# %% [markdown]
# ## Who is better?
#
# One budget, one measurement: perplexity on held-out text. **Predict** the order, and who comes first. If two plans
# share nine tenths of what they keep, can their models differ much?
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
# %% tags=["hide-input"]
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
# Each interval is that of the ratio to AMP on the same seeds and windows (magnitude has only one plan, which stands
# against each of AMP's). It covers other calibration texts and windows, not other models.
#
# ### Exercise 3 · Is this gap noise?
# *Medium, 8 minutes.* Two criteria, the same three seeds, a loss for each. Answer "first" or "second", whichever has
# the lower loss, or "neither" if three seeds can't tell: if 0 lies within 4.30 standard errors of the mean gap (lesson
# 5; 4.30 is Student's t for three).
# %%
def told_apart(first: list[float], second: list[float]) -> str:
    """The better of two criteria, or "neither"."""
    ...  # your answer here


told_apart = L.check(told_apart, "l6_told_apart")
# %% [markdown]
# {{hint:l6_told_apart}}
#
# {{solution:l6_told_apart}}
# %% tags=["hide-input"]
for n in (name for name in names if name not in ("AMP", "magnitude")):
    sides = [[math.log(run.value) for run in of(name)] for name in ("AMP", n)]
    if len(sides[0]) == 3:
        print(f"AMP against {n}, by three seeds: {dict(first='AMP', second=n).get(told_apart(*sides), 'noise')}")
# %% [markdown]
# This looks at seeds alone; `amp.compare` above also takes into account that a text of so many windows is a sample.
#
# ## When magnitude wins, and what that says
#
# Magnitude looks at no text. Wherever it keeps up with a criterion that does, the weights already knew. Which weights
# knew, those of heads or those of neurons? Combine AMP's heads with magnitude's neurons, and the other way round.
# %%
mixed = {}
for s in seeds:
    ours, weights = scores["AMP", s], scores["magnitude", s]
    for label, scored in (
        ("heads by magnitude", replace(ours, heads=weights.heads)),
        ("neurons by magnitude", replace(ours, neurons=weights.neurons)),
    ):
        mixed[label, s] = read(amp.prune(dense, amp.plan(dense, scored, pruning_ratio=ratio)).model)
# %% tags=["hide-input"]
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
# ## The leaderboard
#
# `make leaderboard` runs every system of this course on three models, at three ratios, over seeds: a sweep over
# `data/sweeps/leaderboard.yaml`, which keeps a record of each run. Here are those among them that cut heads and
# neurons, on the model of this lesson if it is there. ("FLAP, own split" is the ranking of lesson 6b; the means of what
# goes are folded into biases, where there are any.)
# %% tags=["hide-input"]
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
# %% tags=["hide-input"]
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
# records of `amp-tutorial sweep data/sweeps/criteria.yaml`; the parameter `sweep` above names another folder.
# %%
L.from_sweep(sweep)
# %% [markdown]
# A leader is picked from the very table that it leads, so a narrow lead says little; where the two are not told apart,
# it says nothing. Leads are judged seed by seed and window by window, as all criteria are measured on the same text.
# Where a criterion has one plan only (magnitude), its interval is over windows, elsewhere over seeds and windows. The
# [leaderboard](../docs/leaderboard.md) has all systems, with layers, repair and slicing.
#
# ## The result
#
# Choosing the winner first and then asking whether it wins would prove little. Published figures have Wanda-sp ahead of
# AMP: 66.1 % untuned against 64.5 % on LLaMA-7B at 20 %, other harness versions [second-hand]. So the question is fixed
# in advance: **is AMP's perplexity above Wanda-sp's at this budget?** The number is their ratio, seed by seed; above 1,
# AMP loses. The baseline is magnitude and the control is AMP upside down, both over Wanda-sp as well.
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
# %% tags=["hide-input"]
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
reading = [*activity, "Taylor"]
close = max(centre[n] for n in reading) / min(centre[n] for n in reading)
by_lot = amp.compare(of("random"), of("AMP"))
L.conclude({
    f"The {len(reading)} criteria that read text lie within a factor of {close:.2f}; none is clearly ahead of AMP.":
        not ahead,
    f"Chance is worse than AMP by perplexity: {by_lot.ratio()}. The interval is wide because random draws differ, and more "
    "text would not narrow it.": by_lot.clear and by_lot.difference > 0,
    f"What a criterion reads decides whom it agrees with: on neurons those that read activations agree to "
    f"{means['neurons']['activations with activations']:.2f} with each other, and Taylor to "
    f"{means['neurons']['gradient with activations']:.2f} with them.":
        means["neurons"]["activations with activations"] > means["neurons"]["gradient with activations"],
})  # fmt: skip
# %% [markdown]
# On the real model TransAct comes out well ahead of AMP: see the line “On a real model” at the end.
#
# ## What this does not show
# - **A ranking for large models.** Three tiny models are on the board. Nothing here says who wins on 7 billion
#   parameters.
# - **The other systems as they were published.** Each criterion here cuts equal widths for a stock checkpoint. FLAP
#   with its own class, Wanda-sp scored after the layers before were pruned, or LLM-Pruner with its own groups may do
#   better.
# - **When and where.** Everything is scored once, and each layer by itself. Lesson 6b scores again, and ranks all
#   layers together.
# - **Tasks.** Perplexity only; the [leaderboard](../docs/leaderboard.md) has accuracies beside it.
#
# ## References
# - AMP, [arXiv 2504.21174](https://arxiv.org/abs/2504.21174); TransAct,
#   [arXiv 2407.05690](https://arxiv.org/abs/2407.05690), code `XiaoMi/transact-pruning`.
# - Wanda, [arXiv 2306.11695](https://arxiv.org/abs/2306.11695); FLAP,
#   [arXiv 2312.11983](https://arxiv.org/abs/2312.11983).
# - LLM-Pruner, [arXiv 2305.11627](https://arxiv.org/abs/2305.11627).
#
# ## Where next
# [Lesson 6b](06b_schedules.ipynb) uses the same scores in other ways: shot by shot, and with all layers in one ranking.
# [Lesson 7](07_layers.ipynb) takes whole layers, and puts depth against width at one budget.
# %%
L.finish()
