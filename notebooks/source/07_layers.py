# lesson: Layers
# %% [markdown]
# # 7 · Layers: cut depth, or width?
#
# So far every cut took something from every layer: heads and neurons, the width. A model has depth too. Whole layers
# can go, and nothing is easier to say in a stock configuration: one number, `num_hidden_layers`. Which layers, though?
# And is a model without two layers better or worse than one that has lost as many parameters from all of them?
#
# **Objectives.** After this lesson you can
# - say what a decoder layer adds, and why a model survives without one;
# - rank layers by influence, by perplexity and by the votes of Consensus, and spot a ranking that was thrown away;
# - put depth, width and a mixture on one budget, and compare them with intervals;
# - weigh them by what they cost to run (multiply-adds, cache, time, energy), and by how well they stand perturbed
#   input.
#
# **Prerequisites.** Lessons 1, 3 and 5. **Time:** {{minutes}}.
# %% tags=["parameters"]
model: str = "tiny-llama"  # or "tiny-llama-gqa", "tiny-phi", "smollm2-135m", a local folder, a hub id
ratio: float = 0.28  # share of all parameters to remove; as many layers go as come nearest to it
calibration: int = 32  # texts that the scores look at
seed: int = 0  # the first of the seeds
text: str = ""  # what is read: empty, the tiny world for its models and C4 for others; or a file, a folder, "wikitext2"
tasks: str = ""  # what is asked: empty, the tiny world's tasks or those of AMP's paper; or names of lm-eval's
task_folder: str = ""  # of tasks of your own
preset: str = "smallest"  # or "full": more seeds, more items, more text
out: str = "out"
# %% tags=["hide-input"]
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

import amp_tutorial as amp
from amp_tutorial.course import lesson
from amp_tutorial.methods.similarity import METRICS

L = lesson.start(
    "07_layers",
    dict(model=model, ratio=ratio, calibration=calibration, seed=seed, text=text, tasks=tasks,
         task_folder=task_folder, preset=preset, out=out),
)  # fmt: skip
source, tasks = L.material(text, tasks, task_folder)
sizes = {
    "smallest": dict(seeds=3, items=40, windows=50, choices=20, features=256, fewer=1),
    "real": dict(seeds=1, items=20, windows=12, choices=20, features=128, fewer=4),  # a choice takes minutes
    "full": dict(seeds=5, items=200, windows=None, choices=100, features=256, fewer=1),
}[L.size]
calibration, features = calibration // sizes["fewer"], sizes["features"]
seeds = range(seed, seed + sizes["seeds"])
dense, tokenizer = amp.load(model)
anatomy = amp.Anatomy.of(dense)
layers = list(range(anatomy.layers))
batches = amp.calibration(tokenizer, source, samples=calibration, seed=seed)


def measured(model) -> amp.Perplexity:
    return amp.perplexity(model, tokenizer, source, limit=sizes["windows"])


def asked(model) -> amp.Accuracy:
    return amp.accuracy(model, tokenizer, tasks, limit=sizes["items"], folder=task_folder)


base = measured(dense)
one_layer = anatomy.block_parameters / anatomy.layers / dense.num_parameters()
print(f"{model}: {anatomy.layers} layers, each {one_layer:.1%} of all parameters. Perplexity {base.value:.2f}.")
# %% [markdown]
# ## What a layer adds
#
# A decoder layer does not replace the residual stream h, it **adds** to it: h′ = h + update(h). Take the layer out and
# h goes on unchanged. So a model can do without a layer, as a plain chain of layers could not. What is lost is the
# layer's update, and what the layers after it made of that update.
#
# **Block influence** (ShortGPT) asks how far a layer turns the stream: 1 − cos(h, h′), as a mean over tokens. It takes
# a few lines, with hooks that catch h and h′. **Predict.** Which layer turns it most: the first, one in the middle, the
# last?
# %%
L.predict("the layer that turns the stream most", None)
# %%
decoder = dense.get_submodule(anatomy.family.layers)


def hidden_states(batch: dict) -> list:
    """h and h′ of the real tokens, for each layer."""
    caught = []

    def catch(_, args, kwargs, output):
        before, after = args[0] if args else kwargs["hidden_states"], output
        after = after[0] if isinstance(after, tuple) else after
        caught.append((before[real], after[real]))

    real = batch["attention_mask"].bool()
    positions = (real.cumsum(1) - 1).clamp(min=0)  # left padding shifts no position
    handles = [layer.register_forward_hook(catch, with_kwargs=True) for layer in decoder]
    with torch.no_grad():
        dense(**batch, position_ids=positions, use_cache=False)
    for handle in handles:
        handle.remove()
    return caught
# %%
of_batches = [hidden_states(batch) for batch in batches]
influence, growth = {}, {}
for i in layers:
    h, h_after = (torch.cat([caught[i][side] for caught in of_batches]).float() for side in (0, 1))
    influence[i] = (1 - F.cosine_similarity(h, h_after, dim=-1)).mean().item()
    growth[i] = ((h_after - h).norm(dim=-1) / h.norm(dim=-1)).mean().item()
for i in layers:
    print(f"layer {i}: influence {influence[i]:.3f}; its update is {growth[i]:.2f} times as long as h")
L.seen("the layer that turns the stream most", max(influence, key=influence.get))
# %%
# NBVAL_CHECK_OUTPUT
module = amp.rank_layers(dense, batches, "influence")
L.assert_close(list(module.values()), list(influence.values()), 1e-4, "block influence in view is the module's")
# %% [markdown]
# A large turn need not be a large loss: what later layers make of it is not in the score. The direct way is to leave
# the layer out and measure the perplexity. SLEB does that on the calibration text, so what we see here is its score.
# (SLEB spares the first and the last layer; here all take part.)
# %% tags=["hide-input"]
damage = amp.rank_layers(dense, batches, "perplexity", spare=(0, 0))
agree = spearmanr([influence[i] for i in layers], [damage[i] for i in layers]).statistic
fig, axes = plt.subplots(1, 2, figsize=(8, 3.3), layout="constrained")
for k, (ax, values, label) in enumerate(
    [(axes[0], influence, "block influence"), (axes[1], damage, "perplexity without the layer")]
):
    ax.plot(layers, [values[i] for i in layers], lesson.MARKERS[k], color=lesson.PALETTE[k], ls=":")  # no bars: log axis
    ax.set(xlabel="layer", ylabel=label, yscale="log", xticks=layers[:: max(1, len(layers) // 8)])
told = "; ".join(f"layer {i} {influence[i]:.2f} and {damage[i]:.3g}" for i in layers)
L.show(fig, alt=f"Points over layers, two panels, log axes: block influence, and perplexity without the layer. {told}.")
least = min(layers, key=damage.get)
print(f"Worst to lose: layer {max(layers, key=damage.get)}. Easiest: layer {least}, perplexity {damage[least]:.2f}.")
print(f"Spearman's correlation of influence and damage: {agree:.2f}.")
# %% [markdown]
# ## Consensus: several metrics vote
#
# Consensus (arXiv 2411.14345) was published for image networks; on decoder layers it is a port of ours. X holds the
# final hidden states of the calibration tokens, Y the same **with one layer skipped**. If Y is like X, the layer is not
# missed. What "like" means is open, and so eight metrics vote. Each is one idea:
#
# | metric | the distance of X and Y is |
# |---|---|
# | `cka` | 1 − linear CKA: how differently X and Y say which tokens are alike |
# | `linear_1` | the angle left after the best rotation (Procrustes) |
# | `linear_0` | the same after whitening: what no linear map could undo |
# | `permutation` | the angle left after the best renumbering of features |
# | `gaussian_0`, `_1`, `_2` | between the Gaussians of each next token: by covariances, both, means only |
# | `wasserstein` | how far all values, as one heap, must move on the number line |
#
# Each metric ranks the layers, 1 for the smallest distance, and the ranks are added.
#
# ### Exercise 1 · Count the votes
# *Medium, 8 minutes.* `distances[metric][layer]` is a number. Return each layer's sum of ranks, with the layer's number
# as its key (some numbers may be missing: those layers are gone).
# %%
def votes(distances: dict[str, dict[int, float]]) -> dict[int, float]:
    """Sum of ranks of each layer, 1 for the least distance in each metric."""
    ...  # your answer here


votes = L.check(votes, "l7_votes")
# %% [markdown]
# {{hint:l7_votes}}
#
# {{solution:l7_votes}}
#
# Now X, every Y, and the votes. To skip a layer, we carry out the plan without it as a mask.
# %%
def without(gone: tuple[int, ...]) -> amp.Plan:
    """The plan that removes these layers and nothing else."""
    return amp.plan_layers(dense, {i: float(i not in gone) for i in layers}, keep=len(layers) - len(gone))


@torch.no_grad()
def final_states() -> np.ndarray:
    """Final hidden states (tokens, features) of all tokens that another follows."""
    rows = []
    for batch in batches:
        mask = batch["attention_mask"].bool()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        hidden = dense.base_model(**batch, position_ids=positions, use_cache=False).last_hidden_state
        rows.append(hidden[:, :-1][mask[:, :-1] & mask[:, 1:]].float())
    x, wide = torch.cat(rows), anatomy.hidden
    if wide > features:  # compared in so many random directions, as in the module
        x = x @ torch.linalg.qr(torch.randn(wide, features, generator=torch.Generator().manual_seed(seed))).Q
    return x.double().numpy()
# %%
following = torch.cat(
    [b["input_ids"][:, 1:][(b["attention_mask"][:, :-1] & b["attention_mask"][:, 1:]).bool()] for b in batches]
).numpy()
X, distances = final_states(), {name: {} for name in METRICS}
for i in layers:
    with amp.masked(dense, without((i,))):
        Y = final_states()
    for name, metric in METRICS.items():
        distances[name][i] = metric(X, Y, following)
tally = votes(distances)
print(f"{len(X):,} tokens, {X.shape[1]} features; {len(METRICS)} metrics, {len(layers)} layers.")
# %% tags=["hide-input"]
# NBVAL_CHECK_OUTPUT
voted = amp.rank_layers(dense, batches, "consensus", seed=seed, features=features)
L.assert_close(list(tally.values()), list(voted.values()), 0, "the votes in view are the module's")
# %% tags=["hide-input"]
ranks = {name: votes({name: distances[name]}) for name in METRICS}
table = np.array([[ranks[name][i] for i in layers] for name in METRICS])
fig, ax = plt.subplots(figsize=(max(7, 0.7 * len(layers)), 4), layout="constrained")
head = [f"{i}\n{tally[i]:g}" if len(layers) <= 12 else str(i) for i in layers]
sns.heatmap(table, annot=True, fmt="g", cmap="cividis", xticklabels=head, yticklabels=list(METRICS), ax=ax,
            cbar_kws=dict(label="rank (1: least missed)"), linewidths=1)  # fmt: skip
ax.tick_params(axis="y", rotation=0)
ax.set_xlabel("layer, and the sum of its ranks")
told = "; ".join(f"{name} " + ", ".join(f"{ranks[name][i]:g}" for i in layers) for name in METRICS)
sums = ", ".join(f"{tally[i]:g}" for i in layers)
L.show(fig, alt=f"Heat map of the rank that each metric gives each layer, from layer 0 on. {told}. Sums: {sums}.")
goes_first = min(layers, key=lambda i: (tally[i], -i))
alone = [name for name in METRICS if ranks[name][goes_first] == 1]
between = {(a, b): spearmanr(table[m], table[n]).statistic
           for (m, a), (n, b) in itertools.combinations(enumerate(METRICS), 2)}  # fmt: skip
odd = min(between, key=between.get)
tied = [i for i in layers if tally[i] == tally[goes_first] and i != goes_first]
tie = f" (a tie with {', '.join(map(str, tied))}; the deeper goes)" if tied else ""
print(f"The vote removes layer {goes_first} first{tie}; {len(alone)} of {len(METRICS)} metrics alone would do so too.")
print(f"Mean correlation of two metrics' ranks: {np.mean(list(between.values())):.2f}; "
      f"least alike are {odd[0]} and {odd[1]}: {between[odd]:.2f}.")  # fmt: skip
# %% [markdown]
# Eight votes are not eight opinions: three are one metric with different weights, and two are another. And a rank
# forgets the distance: second by a hair counts as much as second by a mile.
#
# ## One at a time
#
# With one layer gone, the others have more or less to do than before. So Consensus and SLEB remove **one** layer, score
# again, and so on. ShortGPT scores once.
#
# ### Exercise 2 · One at a time
# *Medium, 6 minutes.* `score(kept)` gives the scores of the layers in `kept`, by their numbers. Remove `remove` layers,
# one at a time, scoring again each time. Return the layers kept.
# %%
def one_at_a_time(score, layers: list[int], remove: int) -> list[int]:
    """Layers that stay."""
    ...  # your answer here


one_at_a_time = L.check(one_at_a_time, "l7_one_at_a_time")
# %% [markdown]
# {{hint:l7_one_at_a_time}}
#
# {{solution:l7_one_at_a_time}}
# %%
# NBVAL_CHECK_OUTPUT
goes = min(max(1, round(ratio / one_layer)), anatomy.layers - 1)


def by_influence(kept: list[int]) -> dict[int, float]:
    return amp.rank_layers(dense, batches, "influence", layers=kept)


ours = one_at_a_time(by_influence, layers, goes)
plan = amp.drop_layers(dense, batches, goes, "influence", progress=False)
L.assert_close(ours, plan.kept_layers, 0, "one at a time, as amp.drop_layers does it")
# %%
texts = {s: amp.calibration(tokenizer, source, samples=calibration, seed=s) for s in seeds}


def consensus(s: int, kept: list[int]) -> dict[int, float]:
    return amp.rank_layers(dense, texts[s], "consensus", kept, seed=s, features=features)


first_votes = {s: voted if s == seed else consensus(s, layers) for s in seeds}
removed = {}
for s in seeds:

    def vote(kept: list[int], s: int = s) -> dict[int, float]:
        ranked = first_votes[s] if kept == layers else consensus(s, kept)
        return {i: total - 1e-6 * i for i, total in ranked.items()}  # of equals the deeper goes, as in the module

    kept = one_at_a_time(vote, layers, goes)
    removed[s] = tuple(i for i in layers if i not in kept)
depth = {s: without(gone) for s, gone in removed.items()}
by_first_score = tuple(sorted(sorted(layers, key=lambda i: (tally[i], -i))[:goes]))
print(f"{goes} of {anatomy.layers} layers go, {depth[seed].achieved:.1%} of all parameters.")
print(f"Consensus, scored again each time, removes {removed[seed]}; its first score alone would take {by_first_score}.")
print(f"Over {len(seeds)} draws of calibration text: " + "; ".join(map(str, removed.values())) + ".")
budget = depth[seed].achieved
# %% [markdown]
# ## Museum: a ranking thrown away
#
# The code released with Consensus sorts its scores, and then mistakes a **place in the sorted list** for a **depth in
# the network** (we read the code and ran it). The lowest score stands at place 0. So whatever the metrics say, the
# first block that may be removed goes, and then the first of those left. Here is that mistake, in our words.
# **Predict** what it removes if every score is turned upside down.
# %%
L.predict("with scores upside down it removes", None, among=("the first layers", "the last layers", "the layers that matter most"))
# %%
# NBVAL_CHECK_OUTPUT
def museum(score, layers: list[int], remove: int) -> list[int]:
    kept = list(layers)
    for _ in range(remove):
        in_order = sorted(score(kept).values())  # here the numbers of the layers are lost
        place = in_order.index(min(in_order))  # 0, always
        kept.pop(place)  # a place in one list, used in another
    return kept


def upside_down(kept: list[int]) -> dict[int, float]:
    return {i: -score for i, score in by_influence(kept).items()}


L.assert_close(museum(by_influence, layers, goes), layers[goes:], 0, "it removes the first layers")
L.assert_close(museum(upside_down, layers, goes), layers[goes:], 0, "and so it does with the scores upside down")
L.seen("with scores upside down it removes", "the first layers")
# %%
every = {}


def read(gone: tuple[int, ...]) -> amp.Perplexity:
    """Perplexity of held-out text without these layers; each choice is read once."""
    if gone not in every:
        with amp.masked(dense, without(gone)):
            every[gone] = measured(dense)
    return every[gone]


takes = {"Consensus": removed[seed], "museum": tuple(layers[:goes])}
if anatomy.layers > goes + 1:
    takes["museum, layer 0 spared"] = tuple(layers[1 : goes + 1])
# %% tags=["hide-input"]
found = {name: read(gone) for name, gone in takes.items()}
for name, p in found.items():
    print(f"{name:22s} removes {str(takes[name]):8s} perplexity {amp.interval(p).bounds()}")
cost = found["museum"].value / found["Consensus"].value
print(f"Here the mistake would have multiplied the perplexity by {cost:,.3g}; nothing would have stopped or warned.")
if "museum, layer 0 spared" in found:
    spared, right = found["museum, layer 0 spared"], found["Consensus"]
    if takes["museum, layer 0 spared"] == takes["Consensus"]:
        print("With layer 0 out of its reach it takes the very layers of Consensus, without having read a score.")
    else:
        gap = amp.compare(spared, right)  # window by window
        verdict = ("worse than" if gap.difference > 0 else "better than") if gap.clear else "not told from"
        print(f"With layer 0 out of its reach its result is {verdict} that of Consensus: {gap.ratio()} its perplexity.")
# %% [markdown]
# How bad a bug looks depends on what it happens to hit. Where the first blocks matter little, a ranking that is never
# used can pass for one that works. A **control** exposes it: turn the scores upside down; if nothing changes, they are
# not read.
#
# ### Exercise 3 · A broken checkpoint
# *Medium, 6 minutes.* Somebody dropped layers, set `num_hidden_layers`, and saved the others under the numbers that
# they had. The checkpoint loads, with a warning that nobody reads, and the model writes nonsense. From the names of the
# tensors and the number of layers in the configuration, return the layers that the loaded model has to make up, with
# random weights.
# %%
def made_anew(names: list[str], layers: int) -> list[int]:
    """Layers that are not in the file, ascending."""
    ...  # your answer here


made_anew = L.check(made_anew, "l7_made_anew")
# %% [markdown]
# {{hint:l7_made_anew}}
#
# {{solution:l7_made_anew}}
# %% tags=["hide-input"]
kept = depth[seed].kept_layers
careless = [f"model.layers.{i}.mlp.down_proj.weight" for i in kept]  # the numbers of the dense model
fresh = made_anew(careless, len(kept))
print(f"Layers {kept} stay. Saved under these numbers, layers {fresh or 'none'} of the small model would be random.")
sound = [name for name, _ in amp.prune(dense, depth[seed]).model.named_parameters()]
print(f"amp.prune numbers them anew, and layers {made_anew(sound, len(kept)) or 'none'} are random.")
# %% [markdown]
# ## Who chooses best?
#
# Few layers mean few choices. Where they are not too many, all of them can be measured, and then we know the best and
# the worst, and what a blind choice gives on average. **Predict.** From the best choice to the worst, at which place
# stands that of Consensus?
# %%
L.predict("place of Consensus among all choices", None)
# %%
choosers = {
    "Consensus": depth[seed],
    "influence (ShortGPT)": amp.plan_layers(dense, module, keep=len(layers) - goes),  # scored once
    "perplexity (SLEB)": amp.drop_layers(dense, batches, goes, "perplexity", progress=False),
    "last but one": amp.drop_layers(dense, batches, goes, "last", progress=False),
    **{f"random, seed {s}": amp.drop_layers(dense, batches, goes, "random", progress=False, seed=s) for s in seeds},
}
if math.comb(anatomy.layers, goes) <= sizes["choices"]:  # else only those that someone chose
    for gone in itertools.combinations(layers, goes):
        read(gone)
chosen_by = {name: tuple(i for i in layers if i not in plan.kept_layers) for name, plan in choosers.items()}
for name, gone in chosen_by.items():
    p = read(gone)
    print(f"{name:22s} removes {str(gone):8s} perplexity {amp.interval(p).bounds()}")
# %% tags=["hide-input"]
def beside(ax: plt.Axes, height: float, text: str) -> None:
    """Name a horizontal line, outside the axes."""
    ax.annotate(text, (1, height), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
                va="center", fontsize=9)  # fmt: skip


in_order = sorted((gone for gone in every if len(gone) == goes), key=lambda gone: every[gone].value)
places_of = {}
for name, gone in chosen_by.items():
    places_of.setdefault("random" if name.startswith("random") else name, []).append(in_order.index(gone))
fig, (who, ax) = plt.subplots(
    2, 1, figsize=(8.5, 4.8), sharex=True, height_ratios=[len(places_of), 8], layout="constrained"
)
for k, places in enumerate(places_of.values()):
    who.plot(places, [k] * len(places), lesson.MARKERS[k], color=lesson.PALETTE[k], ms=8, ls="")
who.set_yticks(range(len(places_of)), list(places_of))
who.set(ylim=(len(places_of) - 0.4, -0.6))
ax.plot(range(len(in_order)), [every[gone].value for gone in in_order], "o", color="0.3", ms=6)
ax.axhline(base.value, color="0.2", ls="--", lw=1)
beside(ax, base.value, "dense")
ax.set(yscale="log", ylabel="perplexity", xlabel="layers removed, from the best choice to the worst")
ax.set_xticks(range(len(in_order)), [",".join(map(str, gone)) for gone in in_order], rotation=60)
told = "; ".join(f"{name} {', '.join(str(p + 1) for p in places)}" for name, places in places_of.items())
L.show(fig, alt=f"Perplexity of {len(in_order)} choices of layers to remove, in order, log axis, from "
       f"{every[in_order[0]].value:.3g} to {every[in_order[-1]].value:.3g}. Places of the choosers: {told}."
)  # fmt: skip
L.seen("place of Consensus among all choices", places_of["Consensus"][0] + 1, within=1)
# %% [markdown]
# The lower panel shows every choice that was measured, the upper one who made it.
# %% tags=["hide-input"]
best, ours = every[in_order[0]], every[removed[seed]]
print(f"Best of the {len(in_order)}: without {list(in_order[0])}, {amp.interval(best).bounds()}.")
print(f"Consensus is number {in_order.index(removed[seed]) + 1} of {len(in_order)}.")
if len(in_order) == math.comb(anatomy.layers, goes):  # every choice there is
    as_good = sum(every[gone].value <= ours.value for gone in in_order)
    middle = every[in_order[len(in_order) // 2]].value
    print(f"The median choice gives {middle:.2f}, Consensus {ours.value:.2f}.")
    print(f"Choosing blindly does as well as Consensus, or better, {as_good} times in {len(in_order)}.")
named = {name: every[in_order[places[0]]] for name, places in places_of.items() if name != "random"}
lead = min(named, key=lambda name: named[name].value)
apart = [name for name, p in named.items() if amp.compare(p, named[lead]).clear]
print(f"First among the criteria: {lead}. Clearly behind it, window by window: {', '.join(apart) or 'none'}.")
# %% [markdown]
# SLEB looks at perplexity and is judged by perplexity, though on other text; that is its advantage here. The intervals
# are over windows, and wide. But all choices are measured on the same windows, so what is compared is the difference on
# each window, which varies less. Where the interval of that difference includes zero, there is no order to report.
#
# ## Depth against width, on one budget
#
# Now the question of the lesson. Three plans remove **equally many parameters**:
#
# - **depth**: whole layers, by Consensus;
# - **width**: heads and neurons of every layer, by AMP;
# - **mixed**: one layer by Consensus, the rest in width by AMP. `plan(…, layers=…)` counts the layer towards the ratio.
# %% tags=["hide-input"]
L.drawing("depth")
# %% [markdown]
# **Predict** the order in perplexity, and whether it is the same in accuracy.
# %%
L.predict("the lowest perplexity at equal parameters", None, among=("depth", "width", "mixed"))
# %%
plans = {}
for s in seeds:
    scores = amp.score(dense, texts[s])
    first = min(layers, key=lambda i: (first_votes[s][i], -i))
    plans["depth", s] = depth[s]
    plans["width", s] = amp.plan(dense, scores, pruning_ratio=budget)
    if goes > 1:
        plans["mixed", s] = amp.plan_with_layers(dense, scores, budget, [i for i in layers if i != first])
    else:  # one layer is the whole budget: nothing is left to mix with
        plans["mixed", s] = depth[s]
kinds = ("depth", "width", "mixed")
for kind in kinds:
    p = plans[kind, seed]
    print(f"{kind}: {len(p.kept_layers)} layers of {p.widths[0]} heads and {p.widths[2]} neurons; "
          f"{p.achieved:.2%} of all parameters go")  # fmt: skip
# %% tags=["hide-input"]
# NBVAL_CHECK_OUTPUT
one_neuron = anatomy.neuron_cost * anatomy.layers / dense.num_parameters()
for kind in kinds:
    L.assert_close(plans[kind, seed].achieved, budget, one_neuron, f"{kind}: equal parameters, to one neuron a layer")
# %%
cut = {key: amp.prune(dense, plan).model for key, plan in plans.items()}
cut["museum", seed] = amp.prune(dense, without(tuple(layers[:goes]))).model
perplexities, answers = {}, {}
for (kind, s), small in cut.items():
    twin = next((t for t in seeds if (kind, t) in answers and plans.get((kind, t)) == plans.get((kind, s), 0)), None)
    if twin is not None:  # another draw gave the same plan, and so the same model
        perplexities[kind, s], answers[kind, s] = perplexities[kind, twin], answers[kind, twin]
        continue
    answers[kind, s] = asked(small)
    if kind in kinds:
        perplexities[kind, s] = measured(small)
answers["dense", seed] = asked(dense)
mean = {key: 100 * found.mean.value for key, found in answers.items()}
text = {kind: amp.interval(*(perplexities[kind, s] for s in seeds)) for kind in kinds}
right = {kind: amp.interval(*(answers[kind, s].mean for s in seeds)) for kind in kinds}
for kind in kinds:
    print(f"{kind}: perplexity {text[kind].bounds()}, accuracy {right[kind].percent()} % over {right[kind].over}")
    p, m = amp.interval(perplexities[kind, seed]), answers[kind, seed].mean.interval
    print(f"    with seed {seed}: {p.bounds()} over windows, {m.percent()} % over items")
print(f"dense: perplexity {base.value:.2f}, accuracy {mean['dense', seed]:.1f} %")
L.seen("the lowest perplexity at equal parameters", min(kinds, key=lambda kind: text[kind].value))
# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
for k, kind in enumerate(kinds):
    style = dict(color=lesson.PALETTE[k], hatch=lesson.HATCHES[k], edgecolor="white")
    for axis, found, scale in ((axes[0], text[kind], 1), (axes[1], right[kind], 100)):
        reach = [[scale * (found.value - found.low)], [scale * (found.high - found.value)]]
        axis.bar(k, scale * found.value, yerr=reach, capsize=5, **style)
    axes[0].plot([k] * len(seeds), [perplexities[kind, s].value for s in seeds], "k.", ms=5)
    axes[1].plot([k] * len(seeds), [mean[kind, s] for s in seeds], "k.", ms=5)
of_guessing = answers["dense", seed].chance
chance = 100 * sum(of_guessing.values()) / len(of_guessing)
axes[0].axhline(base.value, color="0.2", ls="--")
beside(axes[0], base.value, "dense")
axes[1].axhline(mean["dense", seed], color="0.2", ls="--")
beside(axes[1], mean["dense", seed], "dense")
axes[1].axhline(chance, color="0.2", ls=":")
beside(axes[1], chance, "guessing")
axes[0].set(ylabel="perplexity (lower is better)", ylim=(0, None))
axes[1].set(ylabel="mean accuracy, % (higher is better)", ylim=(0, 108))
for ax in axes:
    ax.set_xticks(range(3), kinds)
told = "; ".join(f"{kind} {text[kind].value:.3g} and {right[kind].value:.0%}" for kind in kinds)
L.show(fig, alt=f"Bars of perplexity and mean accuracy at {budget:.0%} fewer parameters, with 95 % intervals. "
       f"{told}; dense {base.value:.3g} and {mean['dense', seed]:.0f} %, guessing {chance:.0f} %.")  # fmt: skip
# %% tags=["hide-input"]
def order(measured: dict, found: dict, what: str, better: int) -> str:
    """Which of the three is best, and whether seeds and items, paired, say so."""
    ranked = sorted(kinds, key=lambda kind: better * found[kind].value)
    first, *others = ([measured[kind, s] for s in seeds] for kind in ranked)
    behind = [kind for kind, other in zip(ranked[1:], others, strict=True) if amp.compare(first, other).clear]
    return f"By {what}: {' before '.join(ranked)}; clearly behind {ranked[0]}: {', '.join(behind) or 'none'}."


means = {key: found.mean for key, found in answers.items()}
print(order(perplexities, text, "perplexity", 1))
print(order(means, right, "accuracy", -1))
by_task = {task: {kind: sum(answers[kind, s][task].value for s in seeds) / len(seeds) for kind in kinds}
           for task in tasks}  # fmt: skip
short = {task: task.removeprefix("tiny_") for task in tasks}
apart_by = {task: of_kind["depth"] - of_kind["width"] for task, of_kind in by_task.items()}
print("task        " + "".join(f"{kind:>8s}" for kind in ("dense", *kinds)))
for task, of_kind in by_task.items():
    values = [answers["dense", seed][task].value, *of_kind.values()]
    print(f"{short[task]:12s}" + "".join(f"{value:8.0%}" for value in values))
for task in (min(apart_by, key=apart_by.get), max(apart_by, key=apart_by.get)):
    print(f"Depth minus width on {short[task]}: {100 * apart_by[task]:+.0f} points.")
# %% [markdown]
# Where all draws choose the same layers, the interval of depth is over items or windows alone; the others are over
# seeds too. An order is claimed only where the paired difference, on the same items and the same draws, is clear.
#
# The mean hides what each cut does. A layer that goes takes a whole **step** of the computation with it; a question in
# two hops may need that step, a fact learnt by heart may not. Width leaves all steps and makes each of them poorer.
# So much for the idea. The last two lines above say where depth and width differ most; see whether they bear it out.
#
# ## What it costs to run
#
# All three have lost equally many parameters. **Predict** which is fastest at reading a prompt, which at writing token
# by token, and which has the smallest cache.
# %%
L.predict("fastest at writing token by token", None, among=("depth", "width", "mixed"))
# %%
ran = {"dense": dense} | {kind: cut[kind, seed] for kind in kinds} | {"dense again": dense}
rounds = [{name: amp.latency(m, prompt=128, new=8, repeats=3) for name, m in ran.items()} for _ in range(5)]
whole, shares = amp.flops(dense, 128), {}
for name, m in ran.items():
    work = amp.flops(m, 128)
    shares[name] = {
        "multiply-adds, prompt": work.prefill / whole.prefill,
        "multiply-adds, new token": work.decode / whole.decode,
        "KV cache": amp.kv_cache_bytes(m, 128) / amp.kv_cache_bytes(dense, 128),
    }
    for part, called in (("prefill", "time, prompt"), ("decode", "time, new token")):
        # All models take turns, and a ratio is taken within a round, so that a busy machine slows both sides of it.
        ratios = sorted(r[name][part].median / r["dense"][part].median for r in rounds)
        shares[name][called] = ratios[2]
        ms = sorted(1e3 * r[name][part].median for r in rounds)
        print(f"{name:12s}{called:16s} median {ms[2]:6.2f} ms, {ratios[2]:.2f} of dense ({ratios[1]:.2f} to "
              f"{ratios[3]:.2f}, middle three of five rounds)")  # fmt: skip
print(f"dense: {whole}; cache of 128 tokens {amp.kv_cache_bytes(dense, 128) / 1024:.0f} KiB")
for name in kinds:
    print(f"{name:12s}" + "  ".join(f"{what} {share:4.0%}" for what, share in list(shares[name].items())[:3]))
# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(8.5, 3.6), layout="constrained")
whats = list(shares["dense"])
for k, kind in enumerate(kinds):
    style = dict(color=lesson.PALETTE[k], hatch=lesson.HATCHES[k], edgecolor="white", label=kind)
    ax.bar([x + (k - 1) * 0.27 for x in range(len(whats))], [100 * shares[kind][what] for what in whats], 0.25, **style)
ax.axhline(100, color="0.2", ls="--", lw=1)
ax.axhline(100 * (1 - budget), color="0.2", ls=":", lw=1)
beside(ax, 100, "dense")
beside(ax, 100 * (1 - budget), "parameters\nleft")
ax.set_xticks(range(len(whats)), [what.replace(", ", "\n") for what in whats])
ax.set(ylabel="left, % of dense", ylim=(0, 125))
ax.legend(frameon=False, ncols=3, loc="upper left")
told = "; ".join(f"{kind} " + ", ".join(f"{w} {s:.0%}" for w, s in shares[kind].items()) for kind in kinds)
L.show(fig, alt=f"Bars of cost as a share of dense at equal parameters. {told}.")
for what in ("time, prompt", "time, new token"):
    faster = {name: 1 / of[what] for name, of in shares.items()}
    fast = max(kinds, key=lambda kind: faster[kind])
    print(f"{what}: fastest is {fast}, {faster[fast]:.2f} times dense; depth {faster['depth']:.2f}, width "
          f"{faster['width']:.2f} (dense against itself {faster['dense again']:.2f}).")  # fmt: skip
L.seen("fastest at writing token by token", min(kinds, key=lambda kind: shares[kind]["time, new token"]))
# %% [markdown]
# Multiply-adds and cache follow from the configuration; times are measured, and the second run of the dense model shows
# how much of a ratio is noise. A small model that writes one token spends much of its time **between** the matrix
# products, and those fixed costs come once per layer. A narrower layer has them all, a missing layer has none. And
# width shrinks the cache only by whole heads (or KV groups).
#
# ## Perturbed input
#
# The abstract of Consensus claims up to 4 points more robustness under adversarial attacks, for pruned image networks.
# Nobody attacks here; these are plain accidents of text, the same for every model: letters mistyped, words dropped, the
# sentences that don't matter put in another order. **Predict.** Averaged over them, does the model without layers lose
# more points than the dense one, or fewer?
# %%
L.predict("what accidents cost the model without layers, against dense", None, among=("more", "fewer", "as many"))
# %%
# "shuffled" moves sentences only where there are several, so only the tasks with a context are asked.
with_context = ["tiny_owner", "tiny_chain", "tiny_yesno"]
kinds_of_noise = list(amp.PERTURBATIONS)
robust = {
    name: amp.robustness(ran[name], tokenizer, kinds_of_noise, tasks=with_context, limit=sizes["items"], seed=seed)
    for name in ("dense", "depth", "width")
}
# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(8.5, 3.6), layout="constrained")
for k, (name, found) in enumerate(robust.items()):
    at = [x + (k - 1) * 0.27 for x in range(len(found))]
    sure = [a.mean.interval for a in found.values()]
    middle = [100 * i.value for i in sure]
    error = [[100 * (i.value - i.low) for i in sure], [100 * (i.high - i.value) for i in sure]]
    color = "0.75" if name == "dense" else lesson.PALETTE[k - 1]
    hatch = "xx" if name == "dense" else lesson.HATCHES[k - 1]
    ax.bar(at, middle, 0.25, yerr=error, capsize=3, color=color, hatch=hatch, edgecolor="white", label=name)
by_chance = robust["dense"]["clean"].chance
guess = 100 * sum(by_chance.values()) / len(by_chance)
ax.axhline(guess, color="0.2", ls=":")
beside(ax, guess, "guessing")
ax.set_xticks(range(len(robust["dense"])), list(robust["dense"]))
ax.set(ylabel="mean accuracy of three tasks (%)", ylim=(0, 118))
ax.legend(frameon=False, ncols=3, loc="upper right")
told = "; ".join(f"{name} " + ", ".join(f"{w} {a.mean.value:.0%}" for w, a in found.items())
                 for name, found in robust.items())  # fmt: skip
L.show(fig, alt=f"Bars of mean accuracy on clean and perturbed items, with 95 % intervals over items. {told}.")
for noise in kinds_of_noise:
    drops = {name: 100 * (f["clean"].mean.value - f[noise].mean.value) for name, f in robust.items()}
    print(f"{noise:22s} costs " + ", ".join(f"{name} {drop:.1f}" for name, drop in drops.items()) + " points")
lost = {name: sum(100 * (f["clean"].mean.value - f[noise].mean.value) for noise in kinds_of_noise) / len(kinds_of_noise)
        for name, f in robust.items()}  # fmt: skip
more = lost["depth"] - lost["dense"]
L.seen("what accidents cost the model without layers, against dense",
       "as many" if abs(more) < 0.5 else "more" if more > 0 else "fewer")  # fmt: skip
# %% tags=["hide-input"]
gains = {(name, noise): 100 * (robust[name][noise].mean.value - robust["dense"][noise].mean.value)
         for name in ("depth", "width") for noise in kinds_of_noise}  # fmt: skip
top = max(gains, key=gains.get)
above = [key for key, gain in gains.items()
         if gain > 0 and amp.compare(robust[key[0]][key[1]].mean, robust["dense"][key[1]].mean).clear]  # fmt: skip
print(f"The pruned models' best showing against dense: {top[0]}, {top[1]}, {gains[top]:+.1f} points.")
print(f"Pruned clearly above dense, item by item: {', '.join(map(' under '.join, above)) or 'nowhere'}.")
# %% [markdown]
# Beware of a trap: a model that has fallen to guessing on clean items has nothing left to lose, and its small *drop*
# looks robust. Compare the heights, not the drops alone.
#
# ## Energy
#
# Consensus also claims 66.99 % less energy and 68.75 % less carbon (abstract; image networks, up to 78.80 % fewer
# operations). A laptop can only estimate such things: codecarbon takes time, load and rated power, and the grid's
# yearly mean. So the ratio of two models' energy is mostly the ratio of their times.
# %% tags=["hide-input"]
repeats = 3
try:
    for name in ("dense", *kinds):
        with amp.energy(country="BRA") as used:  # the grid of the paper's authors; three letters for yours
            for _ in range(repeats):
                measured(ran[name])
        print(f"{name}: {used}")
except ImportError as missing:
    print(missing)
# %% [markdown]
# ## The result
#
# **How many more points of mean accuracy does depth (Consensus) keep than width (AMP)** at equal parameters? It may
# come out either way. The baseline takes layers blindly: it is the mean over all choices where they are few enough to
# measure each, and over the random draws above where they are not. The control is the museum's choice, which must fail.
# %%
gap = amp.compare(*([means[kind, s] for s in seeds] for kind in ("depth", "width")))  # paired by seed and by item
width = sum(mean["width", s] for s in seeds) / len(seeds)
drawn = [gone for name, gone in chosen_by.items() if name.startswith("random")]
all_there_are = len(in_order) == math.comb(anatomy.layers, goes)
blindly = {gone: asked(amp.prune(dense, without(gone)).model).mean for gone in (in_order if all_there_are else drawn)}
blind = 100 * sum(found.value for found in blindly.values()) / len(blindly)
L.signature(
    f"Depth minus width, mean accuracy at {budget:.0%}",
    100 * gap.difference,
    100 * gap.low,
    100 * gap.high,
    "points",
    baseline=(f"layers taken blindly, mean of {len(blindly)} choices, minus width", blind - width),
    control=("the museum's layers minus width", mean["museum", seed] - width),
)
for (name, s), value in mean.items():
    L.record.metric(f"mean accuracy, {name}, seed {s}", value, unit="%")
# %% tags=["hide-input"]
if gap.clear:
    better, worse = ("Depth", "width") if gap.difference > 0 else ("Width", "depth")
    print(f"{better} beats {worse} here, and the interval excludes zero.")
else:
    print(f"The interval includes zero: with {len(seeds)} seeds, depth and width are not told apart by accuracy.")
lower = mean["museum", seed] < min(mean["depth", s] for s in seeds)
print(f"The control {'failed, as it must' if lower else 'did not fall below Consensus: layer 0 hardly matters here'}.")
ours, above = means["depth", seed], 0
for found in blindly.values():
    gap_to = amp.compare(ours, found)
    above += gap_to.clear and gap_to.difference > 0
print(f"Consensus is clearly above {above} of {len(blindly)} blind choices, item by item; they lie between "
      f"{100 * min(f.value for f in blindly.values()):.0f} and {100 * max(f.value for f in blindly.values()):.0f} %.")  # fmt: skip
# %% tags=["hide-input"]
texts_apart = amp.compare(*([perplexities[kind, s] for s in seeds] for kind in ("depth", "width")))
deepest, widest = (max(short, key=lambda task, sign=sign: sign * apart_by[task]) for sign in (-1, 1))
speed = {kind: 1 / shares[kind]["time, new token"] for kind in ("depth", "width")}
L.conclude({
    f"By perplexity, depth is ahead at equal parameters: {text['depth'].value:.2f} against {text['width'].value:.2f}.":
        texts_apart.clear and texts_apart.difference < 0,
    "By accuracy the two are not told apart.": not gap.clear,
    f"They lose different skills: depth {-100 * apart_by[deepest]:.0f} points more on {short[deepest]}, width "
    f"{100 * apart_by[widest]:.0f} more on {short[widest]}.": apart_by[deepest] < 0 < apart_by[widest],
    f"At every new token a missing layer saves more time ({speed['depth']:.2f} times as fast) than narrower layers do "
    f"({speed['width']:.2f}).": speed["depth"] > speed["width"],
})  # fmt: skip
# %% [markdown]
# The interval is over draws of calibration text and over items; all models see the same ones. It says nothing about
# another model trained the same way.
#
# ## What this does not show
# - **Deep models.** Six layers are few. Models of 32 layers and more are said to hold some that
#   do little, and ShortGPT and SLEB were shown on such models; the order may turn round there.
# - **Consensus as published.** Its metrics are fed image features of convolutional networks, between fine-tunings. Here
#   it is a port, with the next token as the class and without recovery between steps.
# - **After recovery.** Lesson 4's fine-tuning may bring back more of one cut than of the other.
# - **Adversaries.** Chance accidents are no attack; nothing here tests the abstract's claim itself.
# - **Speed elsewhere.** On a GPU with large batches the fixed costs of a layer weigh less.
#
# ## References
# - Consensus layer pruning, [arXiv 2411.14345](https://arxiv.org/abs/2411.14345); figures from its abstract, the lost
#   ranking read in and run from its code (`CarolinaTavaresDuarte/Consensus-Layer-Pruning`).
# - ShortGPT, [arXiv 2403.03853](https://arxiv.org/abs/2403.03853); code `icip-cas/ShortGPT`.
# - SLEB, [arXiv 2402.09025](https://arxiv.org/abs/2402.09025); code `jiwonsong-dev/SLEB`.
# - Williams et al. (2021), *Generalized Shape Metrics on Neural Representations*,
#   [arXiv 2110.14739](https://arxiv.org/abs/2110.14739): the linear and permutation metrics.
#
# ## Where next
# Set `model = "tiny-llama-gqa"` or `"tiny-phi"` and see whether the order stands. Every cut so far left what remained
# as it was. But the rest could make up for part of the loss, without any training: [lesson 8](08_better.ipynb) solves
# for it.
# %% tags=["hide-input"]
L.finish()
