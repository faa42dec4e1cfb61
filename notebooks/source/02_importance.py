# lesson: Importance
# %% [markdown]
# # 2 · Importance: which heads and neurons matter?
#
# Lesson 1 found a sum: what attention adds to the residual stream is one term per head, and what the MLP adds is one
# term per neuron. Pruning drops terms. This lesson asks which ones, writes down AMP's answer, and then does what only a
# small model allows: remove every head, one by one, and see whether the answer was right.
#
# **Objectives.** After this lesson you can
#
# - derive AMP's score for a head and for a neuron, and say which of them projects through a weight;
# - compute it with hooks and plain loops, and choose between its two averages;
# - measure how many prompts a ranking needs;
# - compare any score with the truth, and say how far the evidence reaches.
#
# **Prerequisites.** Lesson 1 (attention as a sum over heads). **Time:** {{minutes}}.
# %% tags=["parameters"]
model: str = "tiny-llama"  # or "tiny-llama-gqa", "tiny-phi", "smollm2-135m", a local folder, a hub id
ratio: float = 0.30  # share of all parameters that the plans in this lesson remove
calibration: int = 64  # prompts that a score sees
seed: int = 0
text: str = ""  # what is read: empty, the tiny world for its models and C4 for others; or a file, a folder, "wikitext2"
preset: str = "smallest"  # anything else: more held-out texts, more neurons
out: str = "out"
# %% tags=["hide-input"]
import itertools
from contextlib import contextmanager

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.colors import SymLogNorm

import amp_tutorial as amp
from amp_tutorial.core.data import padded
from amp_tutorial.course import lesson

L = lesson.start(
    "02_importance",
    dict(model=model, ratio=ratio, calibration=calibration, seed=seed, text=text, preset=preset, out=out),
)
source, _ = L.material(text)
sizes = {"smallest": (64, 8, 128), "real": (16, 2, 64)}  # the more layers, the more passes through all of them
held_out_texts, neurons_per_layer, longest = sizes.get(L.size, (256, 32, 128))
dense, tokenizer = amp.load(model)
anatomy = amp.Anatomy.of(dense)
layers, heads, head_dim = anatomy.layers, anatomy.heads, anatomy.head_dim
print(f"{model}: {layers} layers, each with {heads} heads of {head_dim} dimensions and {anatomy.neurons} neurons.")
# %% [markdown]
# ## The score
#
# **Predict.** Head A's output $h_A$ is twice as long as head B's. But A's slice of the output projection, $W_A$, is ten
# times smaller than $W_B$. You must drop one. Which, and what should a score look at?
# %%
L.predict("the head to drop", None, among=("A", "B"))
# %% [markdown]
# The residual stream never sees $h_n$. It sees $h_n W_n^\top$. Drop head $n$, and the attention output changes by
# exactly $-h_n W_n^\top$: so A is the one to drop. The size of that change, averaged over the $T$ tokens of some
# calibration text, is AMP's score of a head:
#
# $$I_n = \frac{1}{T} \sum_{t=1}^{T} \big\lVert h_n^{(t)} W_n^\top \big\rVert_1,
# \qquad \lVert v \rVert_1 = \sum_j |v_j| \text{ over the hidden dimension.}$$
# %% tags=["hide-input"]
L.drawing("score")
L.seen("the head to drop", "A")
# %% [markdown]
# **Why this norm, and why a mean?** Let $\delta$ be that change at a token, and $g$ the gradient of the loss with
# respect to the stream there. To first order the loss changes by $\langle g, \delta\rangle$, and
# $|\langle g, \delta\rangle| \le \lVert g\rVert_\infty \lVert\delta\rVert_1$ (Hölder). So if nothing is known of $g$
# but the size of its largest entry, the L1 norm of the change bounds the damage. The loss is a mean over tokens, and so
# is the bound. (The argument is ours. It also says what the score can't see: *which* directions the loss looks at. A
# criterion that uses $g$, Taylor's, follows in lesson 6.)
#
# A neuron $m$ is a single number per token, $a_m$, one input of the MLP's output projection $W_{down}$ (with a gated
# MLP $a = \mathrm{SiLU}(x W_{gate}) \odot (x W_{up})$). AMP scores it by the mean size of that number:
#
# $$I_m = \frac{1}{T} \sum_{t=1}^{T} \big| a_m^{(t)} \big|.$$
#
# Note the difference. **The head score projects through a weight, the neuron score does not**: the column of $W_{down}$
# that carries $a_m$ into the residual stream is left out. (The formulas are known here second-hand, from a summary of
# the paper; its official code computes the same.)
#
# Here is one head on one prompt, with a hook that keeps what goes into the output projection:
# %%
def keep_inputs(modules):
    """Make modules keep their latest input; returns the dictionary that fills, and the hooks."""
    kept = {}

    def keep(module, args):
        kept[module] = args[0][0].detach()  # (tokens, features): we run one prompt at a time

    return kept, [module.register_forward_pre_hook(keep) for module in modules]
# %%
# Twice as many prompts as a score sees: "How many prompts?" asks how many are enough.
prompts = amp.calibration(tokenizer, source, samples=2 * calibration, seed=seed, batch_size=1, join=None)
ids = prompts[0]["input_ids"].to(dense.device)
some = min(2, layers - 1)
layer = anatomy.layer(some)
kept, hooks = keep_inputs([layer.output])
with torch.no_grad():
    dense(input_ids=ids)
    h = kept[layer.output][:, :head_dim]  # (tokens, head_dim): head 0 comes first
    W = layer.output.weight[:, :head_dim]  # (hidden, head_dim): its columns
    added = h @ W.T  # (tokens, hidden)
hooks[0].remove()
print(f"“{tokenizer.decode(ids[0, 1:9])} …”, {ids.shape[1]} tokens")
print(f"Head 0 of layer {some} adds a vector of {added.shape[1]} numbers to each token.")
print(f"Its L1 norm is {added.abs().sum(-1).mean():.1f} in the mean over tokens: the score, on this prompt.")
print(f"Taking the mean over tokens first and the norm after gives {added.mean(0).abs().sum():.1f} instead.")
# %% [markdown]
# The last line is a trap worth remembering: plus and minus cancel in a mean, so absolute values come first.
#
# ### Exercise 1 · A head's score, on padded batches
# *Easy, 4 minutes.* The cell above had one prompt; now padding must not count. `h` is (prompts, positions, head_dim),
# `W` is (hidden, head_dim), `mask` is (prompts, positions), 1 for a token and 0 for padding. Return AMP's score of this
# head, a single number, averaged over tokens. (An unsolved exercise stops nothing: the check says what is missing, and
# the lesson goes on with the reference.)
# %%
def my_importance(h, W, mask):
    """Your code goes here."""


head_importance = L.check(my_importance, "l2_head_importance")
# %% [markdown]
# {{hint:l2_head_importance}}
#
# {{solution:l2_head_importance}}
#
# Now all heads, all neurons, all prompts. This is the slow and obvious way: one prompt at a time, no padding, a loop
# over layers and a loop over heads. Nothing here is imported from the scoring code of the module `amp_tutorial`.
# %%
@torch.no_grad()
def sums_per_prompt(prompts):
    """For each prompt: Σ over tokens of ‖h_n W_nᵀ‖₁ (heads), Σ of |a_m| (neurons), and the number of tokens."""
    blocks = [anatomy.layer(i) for i in range(layers)]
    kept, hooks = keep_inputs([m for block in blocks for m in (block.output, block.neurons_out)])
    head_sums = torch.zeros(len(prompts), layers, heads, dtype=torch.float64)
    neuron_sums = torch.zeros(len(prompts), layers, anatomy.neurons, dtype=torch.float64)
    tokens = torch.zeros(len(prompts), dtype=torch.float64)
    for p, prompt in enumerate(prompts):
        ids = prompt["input_ids"].to(dense.device)
        dense(input_ids=ids)
        tokens[p] = ids.shape[1]
        for i, block in enumerate(blocks):
            for n in range(heads):
                own = slice(n * head_dim, (n + 1) * head_dim)
                added = kept[block.output][:, own] @ block.output.weight[:, own].T  # (tokens, hidden)
                head_sums[p, i, n] = added.abs().sum()
            neuron_sums[p, i] = kept[block.neurons_out].abs().sum(0)
    for hook in hooks:
        hook.remove()
    return head_sums, neuron_sums, tokens
# %%
head_sums, neuron_sums, tokens = sums_per_prompt(prompts)
head_score = head_sums.sum(0) / tokens.sum()  # (layers, heads)
neuron_score = neuron_sums.sum(0) / tokens.sum()  # (layers, neurons)
print(f"Scored {heads * layers} heads and {anatomy.neurons * layers:,} neurons on {int(tokens.sum()):,} tokens.")
# %% [markdown]
# The module does the same in one pass over padded batches. It must come to the same numbers: we compare each layer's
# scores in units of that layer's mean. Then we double the width of the first two batches: padding must not count.
# %%
# NBVAL_CHECK_OUTPUT
batches = amp.calibration(tokenizer, source, samples=2 * calibration, seed=seed, batch_size=16, join=None)
scores = amp.score(dense, batches)


def same(found, written_out, what):
    """Assert that the module's scores are the ones written out, relative to each layer's mean."""
    unit = written_out.mean(1, keepdim=True)
    L.assert_close(torch.stack(found).double() / unit, written_out / unit, 1e-4, what)


same(scores.heads, head_score, "head scores: the module equals the plain loops")
same(scores.neurons, neuron_score, "neuron scores: the module equals the plain loops")
pad = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0}
wider = [{name: F.pad(t, (0, t.shape[1]), value=pad[name]) for name, t in batch.items()} for batch in batches[:2]]
first = head_sums[:32].sum(0) / tokens[:32].sum()
same(amp.score(dense, wider).heads, first, "head scores: padding does not count")
# %% [markdown]
# ## Two averages
#
# The formula above gives every token the same weight. The official code does something else: it averages within each
# prompt, then over prompts, so a prompt of ten tokens weighs as much as one of a hundred.
#
# **Predict.** One prompt has 2 tokens, both with score 10; another has 8 tokens, all with score 0. What are the two
# averages? And when would the two always agree?
# %%
L.predict("the average over tokens", None)
# %% tags=["hide-input"]
short, long = [10.0] * 2, [0.0] * 8
print(f"over tokens:  {sum(short + long) / 10:.1f}")
print(f"over prompts: {(sum(short) / 2 + sum(long) / 8) / 2:.1f}")
L.seen("the average over tokens", sum(short + long) / 10)
# %% [markdown]
# ### Exercise 2 · The official code's average
# *Easy, 3 minutes.* `values` holds one score per prompt and position, `mask` is 1 for a token and 0 for padding. Return
# the mean over prompts of each prompt's mean.
# %%
def my_average(values, mask):
    """Your code goes here."""


prompt_average = L.check(my_average, "l2_prompt_average")
# %% [markdown]
# {{hint:l2_prompt_average}}
#
# {{solution:l2_prompt_average}}
#
# Both exercises, your solutions or the reference, on the model: head 0 of layer 0, on one padded batch.
# %%
# NBVAL_CHECK_OUTPUT
block, batch = anatomy.layer(0), {name: t.to(dense.device) for name, t in batches[0].items()}
seen = []
hook = block.output.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
with torch.no_grad():
    dense(**batch)
    h, W = seen[0][..., :head_dim], block.output.weight[:, :head_dim]
    mine = head_importance(h, W, batch["attention_mask"])
    mine_by_prompt = prompt_average((h @ W.T).abs().sum(-1), batch["attention_mask"])
hook.remove()
for average, value in (("tokens", mine), ("prompts", mine_by_prompt)):
    theirs = amp.score(dense, batches[:1], average=average).heads[0][0]
    L.assert_close(value / theirs, 1.0, 1e-4, f"the exercise's score equals the module's, average over {average}")
# %% [markdown]
# The averages can only differ if prompts differ in length **and** the score depends on length. The first half of that
# sentence can be asserted: cut all prompts to one length, and the two averages are equal.
# %%
# NBVAL_CHECK_OUTPUT
by_prompts = amp.score(dense, batches, average="prompts")
same(by_prompts.heads, (head_sums / tokens[:, None, None]).mean(0), "average over prompts: module equals plain loops")
trimmed = [{name: t[:, :16] for name, t in prompt.items()} for prompt in prompts if prompt["input_ids"].shape[1] >= 16]
one, other = (torch.stack(amp.score(dense, trimmed, average=a).heads) for a in ("tokens", "prompts"))
L.assert_close(one / other, torch.ones_like(one), 1e-5, "prompts of equal length: both averages agree")
# %% [markdown]
# The second half has to be measured. Each point below is one prompt: its length, and its mean head score in one layer.
# %% tags=["hide-input"]
per_prompt = head_sums.mean(2) / tokens[:, None]  # (prompts, layers)
fig, ax = plt.subplots()
for k, i in enumerate((0, layers - 1)):
    relative = per_prompt[:, i] / per_prompt[:, i].mean()
    ax.scatter(tokens, relative, color=lesson.PALETTE[k], marker=lesson.MARKERS[k], alpha=0.7, label=f"layer {i}")
ax.set(xlabel="tokens in the prompt", ylabel="mean head score\n(1 = mean over prompts)")
ax.legend()
trend = [torch.corrcoef(torch.stack([tokens, per_prompt[:, i]]))[0, 1].item() for i in range(layers)]
L.show(
    fig,
    alt="Scatter plot: prompt length in tokens against the prompt's mean head score, for the first and the last layer. "
    f"The correlation is {trend[0]:.2f} in the first layer and {trend[-1]:.2f} in the last.",
)
plan_tokens, plan_prompts = (amp.plan(dense, s, pruning_ratio=ratio) for s in (scores, by_prompts))
kept_heads, kept_neurons = plan_tokens.shared(plan_prompts)
print("Correlation of length and score, layer by layer: " + ", ".join(f"{t:.2f}" for t in trend) + ".")
print(f"Cutting {ratio:.0%}, the two averages agree on {kept_heads:.0%} of kept heads, {kept_neurons:.1%} of neurons.")
# %% [markdown]
# The module's default is the mean over tokens: it is the cleaner definition, and nothing about it depends on where one
# document ends and the next begins. `average="prompts"` gives the official code's.
#
# ## What the scores look like
#
# **Predict.** Do scores grow or shrink with depth? (What is added to the residual stream must make itself heard over
# what is there already.) And could one compare a head of layer 0 with a head of the last layer by this score?
# %%
L.predict("from the first layer to the last, head scores", None, among=("grow", "shrink", "do neither"))
# %% tags=["hide-input"]
drawn_layers = sorted({round(k * (layers - 1) / 5) for k in range(6)})  # of many layers six, evenly from first to last
tall, ticks = max(4, 0.22 * layers), range(0, layers, max(1, layers // 10))
fig, (left, right) = plt.subplots(1, 2, figsize=(12, tall), layout="constrained")
image = left.imshow(head_score, cmap="cividis", aspect="auto")
order = head_score.argsort(1, descending=True).argsort(1) + 1  # 1: the highest of its layer
middle = (head_score.max() + head_score.min()) / 2
for i in range(layers):
    for n in range(heads):
        colour = "black" if head_score[i, n] > middle else "white"
        left.text(n, i, int(order[i, n]), ha="center", va="center", color=colour)
left.set(xlabel="head", ylabel="layer", xticks=range(heads), yticks=ticks)
left.set_title("head score; the number is its place in the layer")
left.grid(False)
fig.colorbar(image, ax=left)
spread = neuron_score.sort(1, descending=True).values / neuron_score.mean(1, keepdim=True)
for k, i in enumerate(drawn_layers):
    every = anatomy.neurons // 8
    style = dict(color=lesson.PALETTE[k], marker=lesson.MARKERS[k], markevery=(every * k // 6, every))
    right.plot(spread[i], label=f"layer {i}", **style)
right.set(xlabel="neurons of a layer, highest first", ylabel="neuron score (1 = layer mean)", yscale="log")
right.legend(ncols=2, fontsize="small")
by_layer = head_score.mean(1)
L.show(
    fig,
    alt=f"Left: heat map of head scores, {layers} layers by {heads} heads, each cell numbered by its place within the "
    f"layer; layer means run from {by_layer[0]:.0f} in the first layer to {by_layer[-1]:.0f} in the last. Right: "
    f"neuron scores of layers {', '.join(map(str, drawn_layers))} in descending order, on a logarithmic axis.",
)
print("Mean head score, layer by layer: " + ", ".join(f"{v:.0f}" for v in by_layer) + ".")
top = spread[:, : anatomy.neurons // 10].sum(1) / spread.sum(1)
print(f"The top tenth of a layer's neurons holds {top.min():.0%} to {top.max():.0%} of that layer's total score.")
steps = by_layer.diff()
found = "grow" if (steps > 0).all() else "shrink" if (steps < 0).all() else "do neither"
L.seen("from the first layer to the last, head scores", found)
# %% [markdown]
# The score is in units of the residual stream, and those units differ from layer to layer. AMP never compares across
# layers: it takes the same number of heads and of neurons from each. Keep this in mind for the ground truth below.
#
# Does it matter that the neuron score leaves the weight out? We compare rankings by **Spearman's rank correlation**:
# replace values by their ranks, then correlate. 1 is the same order, −1 the opposite order, 0 no relation.
# %%
def ranks(x):
    return x.argsort(-1).argsort(-1).double()  # argsort says who stands where; argsort again, where each one stands


def spearman(a, b):
    """Rank correlation along the last axis; other axes broadcast. (No ties: real-valued scores have none.)"""
    a, b = ranks(a), ranks(b)
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()


down = torch.stack([anatomy.layer(i).neurons_out.weight.detach().abs().sum(0) for i in range(layers)]).cpu()
print("Rank correlation, within each layer, of |a_m| with the projected |a_m| · ‖column m of W_down‖₁:")
print("  " + ", ".join(f"{r:.2f}" for r in spearman(neuron_score, neuron_score * down)) + ".")
# %% [markdown]
# ## How many prompts?
#
# AMP's official code takes 50 prompts. **Predict.** How many does a ranking need to settle, so that 95 % of all draws
# of that many correlate with the ranking from the whole pool by 0.9 or more: 2, 8, 32, or more?
#
# We draw some prompts from our pool, rank each layer's heads by them alone, and compare with the ranking from the whole
# pool. There are twenty draws for each number of prompts; the bars cover 95 % of them, so they show what *one*
# calibration of that size may give. (The whole pool contains each draw. That flatters the larger draws a little.)
# %%
L.predict("prompts until a ranking settles", None)
# %%
sizes = [n for n in (2, 4, 8, 16, 32, 64, 128) if n < len(prompts)]
keep = len(plan_tokens.heads[0])  # heads that a plan at this ratio keeps in each layer
best = head_score.topk(keep, dim=1).indices
agreement, same_heads = [], []
for n in sizes:
    drawn = torch.stack([torch.from_numpy(L.rng.permutation(len(prompts))[:n]) for _ in range(20)])  # (draws, n)
    found = head_sums[drawn].sum(1) / tokens[drawn].sum(1)[:, None, None]  # (draws, layers, heads)
    agreement.append(spearman(found, head_score).mean(1))  # mean over layers
    chosen = found.topk(keep, dim=2).indices  # (draws, layers, keep)
    same_heads.append((chosen[..., None] == best[None, :, None]).any(-1).double().mean((1, 2)))


def summary(values):
    """Median, and the interval that holds 95 % of the values."""
    return torch.quantile(torch.as_tensor(values).double(), torch.tensor([0.5, 0.025, 0.975]).double()).tolist()
# %% tags=["hide-input"]
labels = ("rank correlation with all prompts", f"share of the {keep} kept heads in common")
fig, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
for k, (ax, series, label) in enumerate(zip(axes, (agreement, same_heads), labels, strict=True)):
    middle, low, high = zip(*map(summary, series), strict=True)
    errors = [[m - a for m, a in zip(middle, low, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
    ax.errorbar(sizes, middle, errors, color=lesson.PALETTE[k], marker=lesson.MARKERS[k], capsize=4)
    ax.set(xscale="log", xlabel="prompts", ylabel=label, xticks=sizes, xticklabels=sizes, ylim=(None, 1.02))
    ax.minorticks_off()
few, many = summary(agreement[0]), summary(agreement[-1])
L.show(
    fig,
    alt="Two curves over the number of prompts, with 95 % bars: rank correlation with the ranking from all prompts, "
    f"from {few[0]:.2f} at {sizes[0]} prompts to {many[0]:.2f} at {sizes[-1]}; and the share of kept heads in common.",
)
for n, series in zip(sizes, agreement, strict=True):
    median, low, high = summary(series)
    L.record.metric(f"settled_{n}", median, low, high, "rank correlation", n=20)
settled = next((n for n, series in zip(sizes, agreement, strict=True) if summary(series)[1] >= 0.9), None)
print(
    f"From {settled} prompts on, at least 95 % of the draws correlate with the full ranking by 0.9 or more."
    if settled
    else f"Not even {sizes[-1]} prompts give a rank correlation of 0.9 in 95 % of the draws."
)
L.seen("prompts until a ranking settles", settled or "more than there are", within=(settled or 0) / 2)
# %% [markdown]
# See it settle: the places of the heads in their layers, from the first few prompts alone. (A live notebook has a
# slider.)
# %% tags=["hide-input"]
def places(prompts: int = 8) -> None:
    """The place of each head in its layer, from so many prompts."""
    found = head_sums[:prompts].sum(0) / tokens[:prompts].sum()
    agrees = spearman(found, head_score).mean().item()
    fig, ax = plt.subplots(figsize=(6, max(3, 0.3 * layers)))
    place = found.argsort(1, descending=True).argsort(1) + 1
    ax.imshow(place, cmap="cividis_r", aspect="auto")
    for i, n in itertools.product(range(layers), range(heads if heads <= 16 else 0)):
        ax.text(n, i, int(place[i, n]), ha="center", va="center", color="white" if place[i, n] > heads / 2 else "black")
    ax.grid(False)
    title = f"{prompts} prompts: rank correlation {agrees:.2f} with all {len(tokens)}"
    ax.set(xlabel="head", ylabel="layer", title=title)
    L.show(fig, alt=f"The place of each head in its layer, 1 the highest, from the first {title}.")


lesson.widget(places, prompts=(1, len(tokens)))
# %% [markdown]
# ## Ground truth
#
# A score is a guess about something that can be measured: what happens to the loss when the head is gone. With billions
# of parameters nobody measures it for every head; here it takes seconds. So we silence one head, by zeroing the input
# of its columns, and measure the loss on held-out texts, which no score has seen. Then the next head. (What comes
# before the silenced layer does not change. So we keep what enters each layer of the dense model and start there, which
# saves half the time.)
#
# **Predict.** What rank correlation do you expect between AMP's head scores and the true change of loss, within layers,
# in the mean over layers? Is it above or below that of magnitude (the norm of the head's weights), which sees no text
# at all?
# %%
L.predict("rank correlation, within layers, of AMP's head scores with the truth", None)
# %% tags=["hide-input"]
@contextmanager
def silenced(module, columns):
    """While this lasts, these inputs of an output projection are zero."""

    def zero(module, args):
        x = args[0].clone()
        x[..., columns] = 0
        return (x, *args[1:])

    hook = module.register_forward_pre_hook(zero)
    try:
        yield
    finally:
        hook.remove()
# %% tags=["hide-input"]
texts = amp.texts(source, "validation")[:held_out_texts]
rows = sorted((tokenizer(t, truncation=True, max_length=longest)["input_ids"] for t in texts), key=len)
held_out = [padded(tokenizer, rows[k : k + 16]).items() for k in range(0, len(rows), 16)]
held_out = [{name: t.to(dense.device) for name, t in batch} for batch in held_out]
counts = torch.tensor([len(row) - 1 for row in rows]).double()  # predicted tokens of each text
with torch.no_grad():
    entering = [dense(**batch, output_hidden_states=True).hidden_states for batch in held_out]  # entering[batch][layer]
# %%
@torch.no_grad()
def losses(start=0):
    """The summed loss of each held-out text; layers below `start` are not run again."""
    decoder, found = dense.base_model, []
    whole, decoder.layers = decoder.layers, decoder.layers[start:]
    try:
        for batch, hidden in zip(held_out, entering, strict=True):
            ids, mask = batch["input_ids"], batch["attention_mask"]
            labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
            logits = dense(inputs_embeds=hidden[start], attention_mask=mask, use_cache=False).logits[:, :-1]
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
            found.append(loss.view_as(labels).sum(1).double().cpu())
    finally:
        decoder.layers = whole
    return torch.cat(found)
# %%
# NBVAL_CHECK_OUTPUT
before = losses()
L.assert_close(losses(start=layers - 1) / before, torch.ones(len(texts)), 1e-5, "starting at a later layer is exact")
# %%
head_change, neuron_change, sample = [], [], []
for i in range(layers):
    block = anatomy.layer(i)
    for n in range(heads):
        with silenced(block.output, slice(n * head_dim, (n + 1) * head_dim)):
            head_change.append(losses(i) - before)
    sample.append(L.rng.choice(anatomy.neurons, neurons_per_layer, replace=False))
    for m in sample[i].tolist():
        with silenced(block.neurons_out, m):
            neuron_change.append(losses(i) - before)
sample = torch.tensor([list(s) for s in sample])  # (layers, neurons_per_layer)
change = {"heads": torch.stack(head_change), "neurons": torch.stack(neuron_change)}  # (structures, texts)
truth = {kind: c.sum(1) / counts.sum() for kind, c in change.items()}
base = (before.sum() / counts.sum()).item()
print(f"Dense loss on {len(texts)} held-out texts: {base:.3f} nats per token.")
for kind, t in truth.items():
    worst = t.max().item()
    print(f"One of {len(t)} {kind} gone: the loss changes by {t.min():+.4f} to {worst:+.4f}, median {t.median():+.4f}.")
    print(f"  For {(t < 0).sum()} of them the loss is lower without it.")
    means = ", ".join(f"{v:+.4f}" for v in t.view(layers, -1).mean(1))
    print(f"  Mean change, layer by layer: {means}.")
# %% tags=["hide-input"]
true_map = truth["heads"].view(layers, heads)
fig, (left, right) = plt.subplots(1, 2, figsize=(12, tall), layout="constrained")
top = true_map.abs().max().clamp(min=1e-9).item()
scale = SymLogNorm(linthresh=top / 30, vmin=-top, vmax=top)  # a few heads matter far more than the rest
image = left.imshow(true_map, cmap="PuOr_r", norm=scale, aspect="auto")
place = true_map.argsort(1, descending=True).argsort(1) + 1
for i in range(layers):
    for n in range(heads):
        colour = "white" if true_map[i, n].abs() > 0.2 * top else "black"
        left.text(n, i, int(place[i, n]), ha="center", va="center", color=colour)
left.set(xlabel="head", ylabel="layer", xticks=range(heads), yticks=ticks)
left.set_title("true change of loss; 1: worst to lose in its layer")
left.grid(False)
fig.colorbar(image, ax=left)
for k, i in enumerate(drawn_layers):
    style = dict(color=lesson.PALETTE[k], marker=lesson.MARKERS[k])
    right.scatter(head_score[i], true_map[i], label=f"layer {i}", **style)
right.set(xlabel="AMP score", ylabel="true change of loss (nats per token)")
right.set_yscale("symlog", linthresh=top / 30)
right.axhline(0, color="black", linewidth=0.8)
right.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize="small")
across = spearman(head_score.flatten(), truth["heads"]).item()
L.show(
    fig,
    alt=f"Left: heat map of the true change of loss, {layers} layers by {heads} heads, cells numbered by place in the "
    f"layer. Right: AMP score against true change of heads, one marker per layer; rank correlation of all heads "
    f"{across:.2f}.",
)
# %% [markdown]
# Before judging a score, judge the truth. It comes from a few texts; other texts would give other changes. Split the
# texts in two: how well does one half's truth predict the other's? No score can be expected to do much better. And how
# high does a *random* ranking climb by luck? That is the floor.
# %% tags=["hide-input"]
halves = torch.from_numpy(L.rng.permuted(torch.arange(len(texts)).expand(100, -1).numpy(), axis=1))
half = len(texts) // 2
for kind, c in change.items():
    one, other = (c[:, halves[:, part]].sum(-1).T for part in (slice(half), slice(half, None)))
    median, low, high = summary(spearman(one, other))
    print(f"{kind}: one half of the texts ranks like the other half with {median:.2f} ({low:.2f} to {high:.2f}).")
    if low <= 0:
        print(f"  That may be nothing: so few texts can't rank these {kind}. Read their rows below with that in mind.")
# %% [markdown]
# Now we compare every criterion with the truth, for heads and for a sample of the neurons, and do so twice: over all
# layers together, and within each layer (then the mean over layers). AMP uses only the order within a layer.
#
# What varies: AMP is scored on five calibration draws; random is drawn 1,000 times; and the truth is taken anew 200
# times by resampling the held-out texts. The interval covers 95 % of all combinations. It says what other *texts* would
# give, not what other heads or other models would. For that, look at random: its interval is what luck alone reaches
# with this many heads.
# %%
resampled = torch.from_numpy(L.rng.integers(len(texts), size=(200, len(texts))))
redrawn = {
    kind: (c[:, resampled].sum(-1) / counts[resampled].sum(-1)).T.view(200, layers, -1) for kind, c in change.items()
}  # (resamples, layers, structures of a layer)


def table(found):
    """Scores as (layers, structures) for the structures whose truth we know."""
    return {"heads": torch.stack(found.heads), "neurons": torch.stack(found.neurons).gather(1, sample)}


def calibrated(seed):
    return amp.calibration(tokenizer, source, samples=calibration, seed=seed, join=None)


drawn = {
    "AMP": [amp.score(dense, calibrated(seed + s)) for s in range(5)],
    "magnitude": [amp.score(dense, [], criterion="magnitude")],
    "random": [amp.score(dense, [], criterion="random", seed=seed + s) for s in range(1000)],
}
# %%
upside_down = amp.score(dense, calibrated(seed), criterion="reversed")
draws = {}  # (criterion, kind, scope) -> (seeds, resamples)
for criterion, found in drawn.items():
    tables = [table(s) for s in found]
    for kind in change:
        guesses = torch.stack([t[kind] for t in tables])[:, None]  # (seeds, 1, layers, structures)
        real = redrawn[kind][None] if criterion != "random" else truth[kind].view(1, 1, layers, -1)
        draws[criterion, kind, "all layers"] = spearman(guesses.flatten(2), real.flatten(2))
        draws[criterion, kind, "within layers"] = spearman(guesses, real).mean(-1)
        if criterion == "AMP":
            for scope in ("all layers", "within layers"):
                draws["reversed AMP", kind, scope] = -draws["AMP", kind, scope]
rho = {key: summary(values.flatten()) for key, values in draws.items()}
# %% [markdown]
# The reversed criterion is AMP upside down, so its correlation must be exactly the opposite; and random rankings must
# come out at zero on average. If either fails, the measurement is broken.
# %%
# NBVAL_CHECK_OUTPUT
amp_heads, flipped = table(drawn["AMP"][0])["heads"], table(upside_down)["heads"]
opposite = spearman(flipped, true_map) + spearman(amp_heads, true_map)
L.assert_close(opposite, torch.zeros(layers), 1e-6, "reversed AMP correlates with the truth exactly the other way")
for kind in change:
    L.assert_close(rho["random", kind, "all layers"][0], 0.0, 0.1, f"random rankings of {kind} correlate with nothing")
# %% tags=["hide-input"]
criteria = ("AMP", "magnitude", "random", "reversed AMP")
fig, axes = plt.subplots(1, 2, figsize=(12, 4), sharey=True, layout="constrained")
for ax, scope in zip(axes, ("all layers", "within layers"), strict=True):
    for k, kind in enumerate(change):
        for c, criterion in enumerate(criteria):
            median, low, high = rho[criterion, kind, scope]
            ax.errorbar(
                c + 0.2 * k - 0.1, median, [[median - low], [high - median]],
                color=lesson.PALETTE[k], marker=lesson.MARKERS[k], capsize=4, label=kind if c == 0 else None,
            )  # fmt: skip
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set(xticks=range(len(criteria)), xticklabels=criteria, title=scope, ylim=(-1.05, 1.05))
axes[0].set_ylabel("rank correlation with the truth")
axes[0].legend()
words = [f"{c} {rho[c, 'heads', 'all layers'][0]:.2f}" for c in criteria]
L.show(
    fig,
    alt="Rank correlation of four criteria with the true change of loss, with 95 % bars, for heads and neurons, over "
    "all layers (left) and within layers (right). Heads over all layers: " + ", ".join(words) + ".",
)
found = rho["AMP", "heads", "within layers"][0]
L.seen("rank correlation, within layers, of AMP's head scores with the truth", found, within=0.1)
# %% tags=["hide-input"]
def verdict(kind, scope):
    """What the intervals allow one to say."""
    found, weights, chance = (rho[c, kind, scope] for c in ("AMP", "magnitude", "random"))
    _, low, high = summary((draws["AMP", kind, scope] - draws["magnitude", kind, scope]).flatten())  # same resamples
    text = f"{kind}, {scope}: AMP {found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f}), "
    text += f"magnitude {weights[0]:.2f} ({weights[1]:.2f} to {weights[2]:.2f}), "
    text += f"luck {chance[1]:.2f} to {chance[2]:.2f}.\n  AMP "
    if found[0] > chance[2] and found[1] > 0:
        text += "ranks better than luck"
    elif found[0] < chance[1] and found[2] < 0:
        text += "ranks the wrong way round"
    else:
        text += "can't be told from luck"
    if low > 0:
        return text + ". Against magnitude, on the same texts, it is better."
    if high < 0:
        return text + ". Against magnitude, on the same texts, it is worse."
    return text + ". From magnitude, on the same texts, it can't be told apart."


for kind in change:
    for scope in ("all layers", "within layers"):
        print(verdict(kind, scope))
        for criterion in criteria:
            median, low, high = rho[criterion, kind, scope]
            L.record.metric(f"{criterion}, {kind}, {scope}", median, low, high, "rank correlation", n=len(truth[kind]))
# %% [markdown]
# Why the two panels differ: the score is in units of the residual stream, which differ from layer to layer, while the
# truth is in nats everywhere. Over all layers a score is rewarded for knowing which *layers* matter. AMP takes as many
# heads from every layer and has no use for that; what counts for it is the panel "within layers".
#
# Why no score of this kind can be perfect: a head with a large $\lVert h_n W_n^\top \rVert_1$ may say what other heads
# say too, or something that later layers ignore. Its removal changes the stream a lot and the loss little. The score
# looks at the stream alone.
# %%
amp_, weights = (rho[c, "heads", "within layers"][0] for c in ("AMP", "magnitude"))
everywhere = rho["AMP", "heads", "all layers"][0]
luck = {kind: rho["random", kind, "within layers"][2] for kind in change}
at = ("heads", "within layers")
_, below, above = summary((draws["AMP", *at] - draws["magnitude", *at]).flatten())  # on the same texts
level = below <= 0 <= above
L.conclude({
    f"Within layers AMP ranks heads better than luck ({amp_:.2f}; luck stays below {luck['heads']:.2f}).":
        amp_ > luck["heads"],
    f"It is better at telling which layers matter ({everywhere:.2f} over all layers), which AMP makes no use of.":
        everywhere > amp_,
    f"Within layers the weights' size, which needs no text, is not told apart from it on these texts ({weights:.2f}).":
        weights > luck["heads"] and level,
    "Single neurons it does not rank better than luck: one neuron's loss is close to what these texts resolve.":
        rho["AMP", "neurons", "within layers"][0] < luck["neurons"],
})  # fmt: skip
# %% [markdown]
# ## Better than AMP?
#
# ### Exercise 3 · A score of your own
# *Hard, 15 minutes.* Can you do better than AMP? `added` is what each head of one layer adds to the stream: (heads,
# tokens, hidden). Give one number for each head. There is no single right answer: yours is judged by its rank
# correlation, within layers, with the ground truth above, on texts that no score has seen.
# %%
def own_score(added: torch.Tensor) -> torch.Tensor:
    """Your score of the heads of a layer: (heads,)."""
    ...  # your answer here
# %% tags=["hide-input"]
def amp_itself(added):
    return added.abs().sum(-1).mean(1)


@torch.no_grad()
def scored_by(score):
    """A score of all heads from 16 prompts, (layers, heads); None if it gives no number for each head."""
    blocks = [anatomy.layer(i).output for i in range(layers)]
    kept, hooks = keep_inputs(blocks)
    rows = [[] for _ in blocks]
    for prompt in prompts[:16]:
        dense(input_ids=prompt["input_ids"].to(dense.device))
        for row, block in zip(rows, blocks, strict=True):
            row.append(kept[block].view(-1, heads, head_dim).transpose(0, 1))
    for hook in hooks:
        hook.remove()
    found = [score(torch.cat(r, 1) @ b.weight.T.view(heads, head_dim, -1)) for r, b in zip(rows, blocks, strict=True)]
    whole = all(isinstance(f, torch.Tensor) and f.shape == (heads,) and f.isfinite().all() for f in found)
    return torch.stack(found).double().cpu() if whole else None


both = {"AMP": scored_by(amp_itself), "yours": scored_by(own_score)}
near = {name: spearman(s, redrawn["heads"]).mean(-1) for name, s in both.items() if s is not None}  # (resamples,)
for name, values in near.items():
    median, low, high = summary(values)
    print(f"{name}: rank correlation with the truth within layers {median:.2f} ({low:.2f} to {high:.2f})")
if "yours" in near:
    median, low, high = summary(near["yours"] - near["AMP"])  # on the same resampled texts
    word = "beats AMP" if low > 0 else "loses to AMP" if high < 0 else "can't be told from AMP by these texts"
    print(f"Yours {word}: {median:+.2f} ({low:+.2f} to {high:+.2f}).")
else:
    print("✎ own_score: not solved yet; it needs a tensor with one finite number for each head.")
# %% [markdown]
# <details><summary>Hint</summary>
#
# What a head adds to every token alike could be put into a bias once and for all, and would not be missed. What is left
# then?
#
# </details>
#
# <details><summary>One answer</summary>
#
# ```python
# def own_score(added):
#     varies = added - added.mean(1, keepdim=True)  # a constant could go into a bias
#     return varies.square().sum(-1).mean(1)
# ```
#
# Run it, too. If a score comes out above AMP by less than these texts can tell, you have seen how many a contest of
# scores honestly ends: look at the interval before you write the paper.
#
# </details>
#
# ## The result
#
# One number for the lesson: how well AMP orders the heads of a layer by their true worth, in the mean over layers,
# since this is the order that pruning uses. Beside it stand magnitude, which sees no text, and AMP upside down, whose
# correlation must be the opposite.
# %% tags=["hide-input"]
median, low, high = rho["AMP", "heads", "within layers"]
L.signature(
    "Rank correlation of AMP's head scores with the true change of loss, within layers", median, low, high, "",
    baseline=("magnitude", rho["magnitude", "heads", "within layers"][0]),
    control=("reversed AMP", rho["reversed AMP", "heads", "within layers"][0]),
)  # fmt: skip
_, low, high = rho["random", "heads", "within layers"]
print(f"Luck alone, 95 % of 1,000 random rankings: {low:.2f} to {high:.2f}.")
# %% [markdown]
# ## What this does not show
#
# - **One at a time is not many at once.** Of two heads that do the same work either may go, but not both. Pruning
#   removes many together; lesson 5 measures that.
# - **The truth after recovery.** Here it is the loss on texts of a tiny world, with nothing recovered. What fine-tuning
#   can bring back (lesson 4) may rank the heads differently.
# - **Other models.** These are a few dozen heads of one small model, and the interval is over texts and calibration
#   draws. They say nothing of another model, where the order of heads may be another.
# - **All neurons.** Only a sample was removed, and what one neuron changes is close to what the texts can resolve.
#
# ## References
#
# - AMP: *attention heads and MLP pruning*, [arXiv 2504.21174](https://arxiv.org/abs/2504.21174); official code
#   `c2d-usp/Efficient-LLMs-with-AMP`.
# - Michel, Levy, Neubig (2019), *Are Sixteen Heads Really Better than One?*,
#   [arXiv 1905.10650](https://arxiv.org/abs/1905.10650): removes heads one by one.
# - Molchanov et al. (2019), *Importance Estimation for Neural Network Pruning*,
#   [arXiv 1906.10771](https://arxiv.org/abs/1906.10771): compares scores with the true change of loss.
#
# ## Where next
# Now every layer has an order, but nothing has gone yet. [Lesson 3](03_surgery.ipynb) turns it into a plan, and carries
# the plan out as a mask and as a cut. [Lesson 3b](03b_museum.ipynb) shows how such a cut can be wrong without an error.
# %% tags=["hide-input"]
L.finish()
