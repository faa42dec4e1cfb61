# lesson: Anatomy
# %% [markdown]
# # 1 · Anatomy: what there is to prune
#
# **Which heads could go, and how would you find out?** Write down your idea before you read on. Perhaps you would look
# for heads with small weights, or switch heads off and watch, or measure what each one adds. All of these need the same
# thing first: a way to tell one head's work from that of the others. This lesson shows that there is an exact way.
#
# **Objectives.** After this lesson you can
# - write a layer's attention output as a sum over heads, and its MLP output as a sum over neurons;
# - find a head's and a neuron's weights in every matrix of a layer, in three architectures;
# - say which heads can only go together, and why;
# - count what a head, a KV group or a neuron costs in parameters, and where multiply-adds are spent.
#
# **Prerequisites.** Lesson 0; matrix products; having seen the attention formula once. **Time:** {{minutes}}.
# %% tags=["parameters"]
model: str = "tiny-llama"  # or "tiny-llama-gqa", "tiny-phi", "smollm2-135m", a local folder, a hub id
ratio: float = 0.30  # share of all parameters, for the plans at the end
calibration: int = 16  # texts that heads are watched on
seed: int = 0
text: str = ""  # what is read: empty, the tiny world for its models and C4 for others; or a file, a folder, "wikitext2"
preset: str = "smallest"  # or "full": four times the texts
out: str = "out"
# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import seaborn as sns
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import amp_tutorial as amp
from amp_tutorial.course import lesson

L = lesson.start(
    "01_anatomy",
    dict(model=model, ratio=ratio, calibration=calibration, seed=seed, text=text, preset=preset, out=out),
)  # fmt: skip
source, _ = L.material(text)
torch.set_grad_enabled(False)  # nothing is trained here
samples = max(1, int(calibration * {"smallest": 1, "real": 1 / 4, "full": 4}[L.size]))
dense, tokenizer = amp.load(model)
anatomy = amp.Anatomy.of(dense)
print(f"{anatomy.layers} layers, each with {anatomy.heads} query heads of {anatomy.head_dim} dimensions, "
      f"{anatomy.groups} key-value heads and {anatomy.neurons} neurons; hidden size {anatomy.hidden}")  # fmt: skip
# %% [markdown]
# ## One layer, opened
#
# Every layer has two modules, attention and MLP, and both do the same with the *residual stream*: they read a copy of
# it, and add something to it.
# %% tags=["hide-input"]
L.drawing("stream")
# %% [markdown]
# We take one text and one layer from the middle, and watch what goes into and comes out of its linear maps. Hooks do
# that without changing the model.
# %% tags=["hide-input"]
def watch(model: nn.Module, batch: dict[str, Tensor], modules: list[nn.Module]) -> dict[nn.Module, tuple]:
    """Run the model once; give the (input, output) of each module."""
    seen = {}

    def note(module, args, output):
        seen[module] = (args[0], output[0] if isinstance(output, tuple) else output)

    hooks = [module.register_forward_hook(note) for module in modules]
    try:
        model.base_model(**{name: tensor.to(model.device) for name, tensor in batch.items()}, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def tokens_of(text: str, tokenizer) -> dict[str, Tensor]:
    found = tokenizer(text, return_tensors="pt", truncation=True, max_length=128)
    return {name: found[name] for name in ("input_ids", "attention_mask")}
# %%
longest = max(amp.texts(source)[:samples], key=len)
one = tokens_of(longest, tokenizer)
middle = anatomy.layers // 2
layer = anatomy.layer(middle)
seen = watch(dense, one, [layer.query, layer.output])
print(
    f"{longest[:90]}…\n"
    f"{tuple(seen[layer.query][0].shape)} = (texts, tokens, hidden) goes into layer {middle}'s attention"
)
# %% [markdown]
# Here is the whole of attention, written out. Each query head asks with its own rows of the query matrix, and mixes the
# *values* of this token and the earlier ones by how well their *keys* fit. The result `h[n]` is head n's output:
# `head_dim` numbers for each token. So far no head has seen another's.
# %%
def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: turn pairs of dimensions by an angle that grows with the position."""
    r = cos.shape[-1]  # Phi turns only half of the dimensions
    x, rest = x[..., :r], x[..., r:]
    first, second = x.chunk(2, dim=-1)
    return torch.cat([x * cos + torch.cat([-second, first], dim=-1) * sin, rest], dim=-1)


def heads_output(x: Tensor, layer, anatomy: amp.Anatomy) -> Tensor:
    """h, the output of every head before the output projection: (heads, tokens, d_head)."""
    T, d = len(x), anatomy.head_dim
    q = layer.query(x).view(T, anatomy.heads, d).transpose(0, 1)  # (heads, T, d)
    k = layer.key(x).view(T, anatomy.groups, d).transpose(0, 1)  # (groups, T, d)
    v = layer.value(x).view(T, anatomy.groups, d).transpose(0, 1)
    cos, sin = anatomy.model.base_model.rotary_emb(x[None], torch.arange(T, device=x.device)[None])
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    k, v = (t.repeat_interleave(anatomy.group_size, dim=0) for t in (k, v))  # one for each query head
    future = torch.ones(T, T, device=x.device).triu(1).bool()
    pattern = (q @ k.mT / d**0.5).masked_fill(future, -torch.inf).softmax(-1)  # (heads, T, T)
    return pattern @ v
# %% [markdown]
# If this is right, the heads' outputs, joined side by side, are what the model feeds into its output projection.
# %%
# NBVAL_CHECK_OUTPUT
x = seen[layer.query][0][0]  # (tokens, hidden)
h = heads_output(x, layer, anatomy)
joined = h.transpose(0, 1).flatten(1)  # (tokens, heads · d_head)
L.assert_close(joined, seen[layer.output][0][0], 1e-4, "attention written by hand is the model's")
# %% [markdown]
# ## The attention output is a sum over heads
#
# The output projection multiplies the joined vector by one matrix. A product with a joined vector can be split where
# it was joined:
#
# $$O = [h_1, \dots, h_N]\, W_O^\top = \sum_n h_n W_n^\top$$
#
# where $W_n$ holds the columns of the matrix that meet $h_n$. So each head writes into the residual stream by itself,
# and the layer adds up what they write. Head pruning rests on this and on nothing else. (PyTorch stores $W_O$ as
# `o_proj.weight` of shape (hidden, heads · head_dim), so in code a term is `h[n] @ W_n.T`.)
#
# ### Exercise 1 · Where is a head in the output projection?
# *Medium, 5 minutes.* Cut $W_n$ out of the stored matrix. Its shape is (hidden, head_dim).
# %%
def head_slice(o_proj: Tensor, head: int, head_dim: int) -> Tensor:
    """W_n, the part of the output projection (hidden, heads · head_dim) that reads one head: (hidden, head_dim)."""
    ...  # your answer here


head_slice = L.check(head_slice, "l1_head_slice")
# %% [markdown]
# {{hint:l1_head_slice}}
#
# {{solution:l1_head_slice}}
#
# **Predict.** Add up all heads' terms. Will the sum be the layer's output exactly, or only about?
# %%
L.predict("what the sum over heads is", None, among=("exactly the output", "about the output"))
# %%
# NBVAL_CHECK_OUTPUT
def head_terms(h: Tensor, output: nn.Linear) -> Tensor:
    """h_n W_nᵀ of every head: (heads, tokens, hidden)."""
    return torch.stack([h[n] @ head_slice(output.weight, n, h.shape[-1]).T for n in range(len(h))])


terms = head_terms(h, layer.output)
bias = 0 if layer.output.bias is None else layer.output.bias  # LLaMA has none; Phi adds one that belongs to no head
L.assert_close(terms.sum(0) + bias, seen[layer.output][1][0], 1e-4, "O = sum of h_n W_nᵀ over heads")
L.seen("what the sum over heads is", "exactly the output")
# %% [markdown]
# Exactly, up to the last digits of float32. Nothing was approximated, so a head's term *is* what it contributes here.
#
# ## How much does each head carry?
#
# Because $O$ is a sum, each head has a share of it: project the head's term onto the whole output,
# $\langle h_n W_n^\top, O\rangle / \langle O, O\rangle$, with both products added up over all tokens. The shares of a
# layer's heads add up to 1. A negative share means that the head works against the rest.
#
# **Predict.** Do all heads of a layer carry about the same? Is there one that carries next to nothing? And how many
# times an equal share does the largest one carry?
# %%
L.predict("the largest share, in equal shares", None)
# %%
batch = amp.calibration(tokenizer, source, samples=samples, seed=seed, batch_size=samples)[0]
real = batch["attention_mask"].bool().to(dense.device)  # padding is no data


def all_terms(seen_input: Tensor, output: nn.Linear) -> Tensor:
    """Terms of every head at every real token: (heads, tokens, hidden)."""
    h = seen_input[real].view(-1, anatomy.heads, anatomy.head_dim).transpose(0, 1)
    return head_terms(h, output)


outputs = [anatomy.layer(i).output for i in range(anatomy.layers)]
seen_all = watch(dense, batch, outputs)
shares = []
for output in outputs:
    terms = all_terms(seen_all[output][0], output)
    total = terms.sum(0)
    shares.append((terms * total).sum((1, 2)) / (total * total).sum())
shares = torch.stack(shares).cpu()  # (layers, heads)
# %% tags=["hide-input"]
# NBVAL_CHECK_OUTPUT
L.assert_close(shares.sum(1), torch.ones(anatomy.layers), 1e-4, "the shares of a layer's heads add up to 1")
# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(7.5, max(3.8, 0.3 * anatomy.layers)))
sns.heatmap(shares.numpy(), annot=True, fmt=".2f", cmap="cividis", ax=ax, cbar_kws=dict(label="share of the output"))
ax.set(xlabel="query head", ylabel="layer", title=f"{model}: each row adds up to 1")
ax.tick_params(axis="y", rotation=0)
place = divmod(int(shares.argmax()), anatomy.heads)
L.show(fig, alt=f"Heat map of {anatomy.layers} layers by {anatomy.heads} heads: the share of its layer's attention "
       f"output each head carries. The largest is {shares.max():.2f} (layer {place[0]}, head {place[1]}), "
       f"the smallest {shares.min():.2f}; equal shares would be {1 / anatomy.heads:.2f}.")  # fmt: skip
few = int((shares < 0.5 / anatomy.heads).sum())
print(f"{few} of {shares.numel()} heads carry less than half of an equal share; "
      f"the largest share is {float(shares.max()) * anatomy.heads:.1f} times an equal one.")  # fmt: skip
L.seen("the largest share, in equal shares", float(shares.max()) * anatomy.heads, within=0.5)
# %% [markdown]
# Each row is a layer, each cell a head; bright heads carry much of what attention writes there. This is a first answer
# to the opening question: dark heads look like candidates. But later layers may rely on a quiet head and ignore a loud
# one. Whether "carries little" means "can go" is a question for the loss, and lesson 2 asks it.
#
# ## Removing a head, predicted
#
# If the sum is right, then silencing head n of one layer changes the layer's attention output by exactly
# $-h_n W_n^\top$. Prediction and experiment are now made independently, for every head of every layer: the experiment
# zeroes a head's output with a hook and runs the model again; the prediction looks at the dense model only.
#
# Two rivals take part. The **baseline** knows nothing about heads and says that each carries an equal part, $O/N$.
# The **control** has the right recipe and the wrong slice: *rows* of `o_proj` in place of columns. The matrix is
# square, so nothing complains. **Predict** the control's error, where 0 is exact and 1 is as bad as predicting no
# change at all.
# %%
L.predict("the control's error", None)
# %%
def silenced(head: int, output: nn.Linear) -> Tensor:
    """The attention output of a layer when one of its heads is silent."""
    d = anatomy.head_dim

    def zero(module, args):
        x = args[0].clone()
        x[..., head * d : (head + 1) * d] = 0
        return (x,)

    hook = output.register_forward_pre_hook(zero)
    try:
        return watch(dense, batch, [output])[output][1][real]
    finally:
        hook.remove()


def relative_error(predicted: Tensor, change: Tensor) -> float:
    return float((predicted - change).norm() / change.norm())
# %%
errors = {"sum over heads": [], "equal share": [], "rows of o_proj": []}
for output in outputs:
    into, came_out = seen_all[output]
    h = into[real].view(-1, anatomy.heads, anatomy.head_dim).transpose(0, 1)
    terms = head_terms(h, output)
    for n in range(anatomy.heads):
        change = silenced(n, output) - came_out[real]
        rows = output.weight[n * anatomy.head_dim : (n + 1) * anatomy.head_dim]  # the wrong slice
        errors["sum over heads"].append(relative_error(-terms[n], change))
        errors["equal share"].append(relative_error(-terms.sum(0) / anatomy.heads, change))
        errors["rows of o_proj"].append(relative_error(-(h[n] @ rows), change))
# %% tags=["hide-input"]
values = {name: torch.tensor(e).double() for name, e in errors.items()}
fig, ax = plt.subplots(figsize=(7.5, 3))
for i, e in enumerate(values.values()):
    style = dict(marker=lesson.MARKERS[i], color=lesson.PALETTE[i], s=22, alpha=0.7)
    ax.scatter(e, i + L.rng.uniform(-0.25, 0.25, len(e)), **style)
ax.axvline(1, color="0.2", ls="--")
ax.set(yticks=range(3), yticklabels=list(values), xscale="log", xlabel="relative error of the predicted change")
ax.set_title("one mark per head; dashed: as bad as predicting no change")
ax.invert_yaxis()
medians = ", ".join(f"{name} {e.median():.1g}" for name, e in values.items())
L.show(fig, alt="One mark per head, three predictions of what silencing it changes, by relative error on a logarithmic "
       f"axis. Medians: {medians}.")  # fmt: skip
L.seen("the control's error", values["rows of o_proj"].median().item(), within=0.3)
# %%
# NBVAL_CHECK_OUTPUT
L.assert_close(values["sum over heads"], torch.zeros(len(outputs) * anatomy.heads), 1e-3, "the sum predicts every head")
worst_right, best_wrong = values["sum over heads"].max(), values["rows of o_proj"].min()
print("✔ the control fails for every head" if best_wrong > 100 * worst_right else "the control did not fail")
# %% [markdown]
# ## The result
#
# The number is the median over all heads; beside it stands the range. What is left is rounding in float32: the
# prediction is not an estimate, so it has no interval, only a worst head.
# %%
e = values["sum over heads"]
L.signature(
    "relative error of a head's predicted contribution",
    float(e.median()),
    float(e.min()),
    float(e.max()),
    "",
    baseline=("every head carries an equal share", float(values["equal share"].median())),
    control=("rows of o_proj in place of columns", float(values["rows of o_proj"].median())),
    spread="range over all heads",
)
L.conclude({
    f"What a head writes is exact: take it away, and the layer's output changes by just that, to {float(e.max()):.0e}.":
        float(e.max()) < 1e-3,
    f"Heads do not carry alike: {few} of {shares.numel()} carry less than half of an equal share.": few > 0,
})  # fmt: skip
# %% [markdown]
# ## Neurons: the MLP output is a sum, too
#
# The MLP reads a token's vector and computes one number per neuron. In a gated MLP (LLaMA) that is
# $a_m = \mathrm{SiLU}(x W_\text{gate})_m \cdot (x W_\text{up})_m$; in a plain one (Phi)
# $a_m = \mathrm{GELU}(x W_1 + b_1)_m$. The output projection multiplies all $a_m$ by one matrix, so the same argument
# holds: neuron m writes $a_m$ times *column* m.
# %% tags=["hide-input"]
L.drawing("parts")
# %%
# NBVAL_CHECK_OUTPUT
def neurons_output(x: Tensor, layer) -> Tensor:
    """a, one activation for each neuron: (tokens, neurons)."""
    if len(layer.neurons_in) == 2:
        gate, up = layer.neurons_in
        return F.silu(gate(x)) * up(x)
    return F.gelu(layer.neurons_in[0](x), approximate="tanh")


seen = watch(dense, one, [layer.neurons_in[0], layer.neurons_out])
a = neurons_output(seen[layer.neurons_in[0]][0][0], layer)  # (tokens, neurons)
columns = layer.neurons_out.weight.T  # row m is neuron m's column: (neurons, hidden)
total = sum(a[:, m, None] * columns[m] for m in range(anatomy.neurons))  # slow and obvious
bias = 0 if layer.neurons_out.bias is None else layer.neurons_out.bias
L.assert_close(total + bias, seen[layer.neurons_out][1][0], 1e-4, "MLP output = sum over neurons")
# %% [markdown]
# **Predict.** Build the sum up neuron by neuron, the loudest first. After how many is only half of the output's
# *energy* (the sum of its squares) missing? And how many does it take if neurons are drawn by lot?
# %%
L.predict("neurons for half of the energy, loudest first", None)
# %%
def energy_missing(order: Tensor) -> Tensor:
    """Share of the output's energy that is missing with the first k neurons of an order, for k = 0, 1, …"""
    left, shares = total.clone(), [1.0]
    for m in order.tolist():
        left -= a[:, m, None] * columns[m]
        shares.append(float(left.square().sum() / total.square().sum()))
    return torch.tensor(shares)


loudest = energy_missing((a.abs().mean(0) * columns.norm(dim=1)).argsort(descending=True))
lots = torch.stack([energy_missing(torch.from_numpy(L.rng.permutation(anatomy.neurons))) for _ in range(20)])
first = int((loudest < 0.5).int().argmax())
by_lot = (lots < 0.5).int().argmax(1).sort().values
# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(7, 3.4))
for i, (name, curve) in enumerate({"loudest first": loudest, "by lot, median of 20 orders": lots.median(0).values}.items()):
    every = max(1, anatomy.neurons // 12)
    ax.plot(curve, marker=lesson.MARKERS[i], markevery=every, color=lesson.PALETTE[i], label=name)
ax.fill_between(range(len(loudest)), lots.amin(0), lots.amax(0), color=lesson.PALETTE[1], alpha=0.2, label="all 20")
ax.set(xlabel="neurons in the sum", ylabel="share of the energy missing", title=f"layer {middle} of {model}, one text")
ax.legend()
sentence = (
    f"{first} of {anatomy.neurons} neurons, the loudest first; by lot it takes {by_lot[9]} ({by_lot[0]} to {by_lot[-1]})"
)
L.show(fig, alt="Two falling curves: the share of the MLP output's energy that is missing as neurons are added. Half is "
       f"there with {sentence} in the median and range of 20 orders.")  # fmt: skip
print(f"Half of the energy is there with {sentence}: median and range of 20 orders.")
L.seen("neurons for half of the energy, loudest first", first, within=anatomy.neurons // 20)
# %% [markdown]
# Both curves end at zero: with all neurons nothing is missing. The gap between them is what a good order is worth, and
# the reason to score neurons before removing any.
#
# ## Grouped queries: heads that can only go together
#
# While a model writes, it keeps the keys and values of all earlier tokens in memory. To save some of it, many models
# let several query heads share one key-value head: *grouped-query attention*. Our `tiny-llama-gqa` is one. Which query
# heads share? Don't look it up; silence the values of one key-value head after another, and see whose output changes.
# %% tags=["hide-input"]
grouped, grouped_tokenizer = amp.load("tiny-llama-gqa")
gqa, same = amp.Anatomy.of(grouped), tokens_of(longest, grouped_tokenizer)
there = gqa.layer(middle if middle < gqa.layers else 0)
whole = watch(grouped, same, [there.output])[there.output][0][0].view(-1, gqa.heads, gqa.head_dim)
change = torch.zeros(gqa.groups, gqa.heads)
for g in range(gqa.groups):

    def mute(module, args, values, g=g):
        return values.index_fill(-1, torch.arange(g * gqa.head_dim, (g + 1) * gqa.head_dim, device=values.device), 0)

    hook = there.value.register_forward_hook(mute)
    now = watch(grouped, same, [there.output])[there.output][0][0].view(-1, gqa.heads, gqa.head_dim)
    hook.remove()
    change[g] = ((now - whole).norm(dim=(0, 2)) / whole.norm(dim=(0, 2))).cpu()
fig, ax = plt.subplots(figsize=(7, 2.6))
sns.heatmap(change.numpy(), annot=True, fmt=".1f", cmap="cividis", ax=ax, linewidths=1, cbar=False)
ax.set(
    xlabel="query head",
    ylabel="silenced\nkey-value head",
    title="tiny-llama-gqa: relative change of each head's output",
)
listed = "; ".join(
    f"{g} → {', '.join(map(str, row.nonzero().flatten().tolist()))}" for g, row in enumerate(change > 0.5)
)
L.show(
    fig,
    alt=f"Heat map of key-value heads by query heads. Silencing a key-value head changes these heads only: {listed}.",
)
# %% [markdown]
# Each row has a few bright cells and zeros elsewhere: those query heads read this key-value head, and no others do.
#
# ### Exercise 2 · Who shares?
# *Easy, 3 minutes.* Put the pattern into a formula: the query heads of group `group`.
# %%
def heads_of_group(group: int, heads: int, groups: int) -> list[int]:
    """Query heads that read key-value head `group`."""
    ...  # your answer here


heads_of_group = L.check(heads_of_group, "l1_heads_of_group")
# %% [markdown]
# {{hint:l1_heads_of_group}}
#
# {{solution:l1_heads_of_group}}
# %%
# NBVAL_CHECK_OUTPUT
formula = torch.zeros(gqa.groups, gqa.heads)
for g in range(gqa.groups):
    formula[g, heads_of_group(g, gqa.heads, gqa.groups)] = 1
L.assert_close((change > 0.5).double(), formula, 0, "the formula is what the experiment found")
# %% [markdown]
# This decides what can be cut. Remove one query head of a pair, and the key-value head must stay for the other. Of the
# parameters that are this head's share of the pair only two thirds go (its rows of `q_proj` and its columns of
# `o_proj`, but not its half of `k_proj` and `v_proj`), and the KV cache does not shrink at all. Besides, groups of
# unequal size fit no stock configuration. So whole groups go; or, where that is too coarse, the same number of query
# heads from *every* group, whose keys and values then stay. Lesson 3 does both.
#
# AMP's official code cuts rows of `k_proj` and `v_proj` by query-head numbers (read in the code). On a model with
# grouped queries that asks for rows that don't exist; or, when the kept numbers are low, it quietly keeps the wrong
# ones.
#
# ## What does a part cost?
#
# A head or neuron is cut out of several matrices at once. A budget needs to know how many parameters that is.
#
# ### Exercise 3 · The price of a KV group
# *Medium, 5 minutes.* Count the weights (no biases) that go with one KV group. (Where there are as many key-value heads
# as query heads, a group is one head.)
# %%
def group_cost(hidden: int, head_dim: int, heads: int, groups: int) -> int:
    """Weights that go with one KV group: its query heads, one key, one value, and its columns of the output."""
    ...  # your answer here


group_cost = L.check(group_cost, "l1_group_cost")
# %% [markdown]
# {{hint:l1_group_cost}}
#
# {{solution:l1_group_cost}}
#
# ### Exercise 4 · The price of a neuron
# *Easy, 4 minutes.* The same for one neuron, in a gated or a plain MLP, with biases or without.
# %%
def neuron_cost(hidden: int, gated: bool, bias: bool) -> int:
    """Parameters that go with one neuron: a row of every map into the MLP, and a column of the map out of it."""
    ...  # your answer here


neuron_cost = L.check(neuron_cost, "l1_neuron_cost")
# %% [markdown]
# {{hint:l1_neuron_cost}}
#
# {{solution:l1_neuron_cost}}
#
# The library derives both prices from a model's own matrices. They must agree with yours.
# %% tags=["hide-input"]
# NBVAL_CHECK_OUTPUT
tiny = {name: amp.Anatomy.of(amp.load(name)[0]) for name in amp.EMBEDDED}
for name in ("tiny-llama", "tiny-llama-gqa"):
    t = tiny[name]
    L.assert_close(group_cost(t.hidden, t.head_dim, t.heads, t.groups), t.group_cost, 0, f"price of a group in {name}")
    L.assert_close(neuron_cost(t.hidden, gated=True, bias=False), t.neuron_cost, 0, f"price of a neuron in {name}")
t = tiny["tiny-phi"]
L.assert_close(neuron_cost(t.hidden, gated=False, bias=True), t.neuron_cost, 0, "price of a neuron in tiny-phi")
# %% [markdown]
# ## The same anatomy in other bodies
#
# All that differs from family to family is where the parts are. The library keeps that in one table, and here are the
# rows of our models:
# %% tags=["hide-input"]
# NBVAL_CHECK_OUTPUT
for name, t in tiny.items():
    f, block = t.family, t.model.get_submodule(f"{t.family.layers}.0")
    print(f"{name}, model type {t.model.config.model_type}: {t.heads} query heads on {t.groups} key-value heads")
    for part, where in dict(query=f.query, key=f.key, value=f.value, output=f.output, neurons_in=f.neurons_in,
                            neurons_out=f.neurons_out).items():  # fmt: skip
        for path in where if isinstance(where, tuple) else (where,):
            module = block.get_submodule(path)
            bias = "no bias" if module.bias is None else f"bias {tuple(module.bias.shape)}"
            print(f"  {part:>11}  {path:<18} weight {tuple(module.weight.shape)!s:<10}  {bias}")
# %% [markdown]
# In `tiny-llama-gqa` `k_proj` and `v_proj` have another shape: half as many rows as `q_proj`, because two query heads
# share each of their heads. (What that saves went into 32 more neurons.)
#
# Phi differs in name and in build. The output projection is called `dense`, the MLP is plain (`fc1`, `fc2`), everything
# has a bias, and the block is *parallel*: attention and MLP read the same vector, and both are added in one go. In
# LLaMA the MLP reads a stream that attention has just changed. The functions above don't care.
#
# **Predict.** Phi's `dense`, `fc1` and `fc2` each have a bias. Which of the three belongs to heads or neurons, and goes
# with them? Look at their shapes above.
# %%
L.predict("the bias that goes with a part", None, among=("dense", "fc1", "fc2"))
# %%
# NBVAL_CHECK_OUTPUT
for name, t in tiny.items():
    i = min(middle, t.layers - 1)
    part, block = t.layer(i), t.model.get_submodule(f"{t.family.layers}.{i}")
    s = watch(t.model, tokens_of(longest, amp.load(name)[1]),
              [block, part.query, part.output, part.neurons_in[0], part.neurons_out])  # fmt: skip
    h, a = heads_output(s[part.query][0][0], part, t), neurons_output(s[part.neurons_in[0]][0][0], part)
    sums = {"heads": (head_terms(h, part.output).sum(0), part.output),
            "neurons": (a @ part.neurons_out.weight.T, part.neurons_out)}  # fmt: skip
    for what, (total, out_of) in sums.items():
        if out_of.bias is not None:
            off = relative_error(total, s[out_of][1][0])
            print(f"  {name}: without its bias the sum over {what} is {'wrong' if off > 0.01 else 'right'}")
            total = total + out_of.bias  # added once, whatever heads or neurons there are
        L.assert_close(total, s[out_of][1][0], 1e-4, f"{name}: the output is the sum over {what}, and any bias")
    added = s[block][1] - s[block][0]
    L.assert_close(added, s[part.output][1] + s[part.neurons_out][1], 1e-4, f"{name}: a block adds attention and MLP")
    together = torch.equal(s[part.query][0], s[part.neurons_in[0]][0])
    print(f"  {name}: attention and MLP read {'the same vector' if together else 'different vectors'}")
L.seen("the bias that goes with a part", "fc1")
# %% [markdown]
# The biases of `dense` and `fc2` have one number per *hidden* dimension. They belong to no head and no neuron: they are
# added once, and stay. The bias of `fc1` has one number per *neuron*, which goes with the neuron; those of the query,
# key and value projections have one for each row of a head, which go with the head. Lesson 3b shows what happens if one
# forgets that.
#
# ## Where parameters and work sit
#
# Which parts are worth cutting depends on where the parameters are. We count them in four models: our three, and one
# shaped like LLaMA-2-7B. The last is built on the *meta* device, which keeps shapes and no numbers, so 7 billion
# parameters need no memory.
# %%
# NBVAL_CHECK_OUTPUT
shape = dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000)
with torch.device("meta"):
    seven = amp.Anatomy.of(LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False)))
L.assert_close(seven.model.num_parameters(), 6_738_415_616, 0, "LLaMA-2-7B's shape has 6,738,415,616 parameters")
# %% [markdown]
# Work is counted in multiply-adds per token. Every weight of a linear map costs one; looking up an embedding costs
# none. On top come the products of attention itself, queries with keys and patterns with values: two for each pair of
# tokens and each dimension, so they grow with the length of the text.
# %%
# NBVAL_CHECK_OUTPUT
def parameters_of(a: amp.Anatomy) -> dict[str, int]:
    heads, mlp = a.layers * a.groups * a.group_cost, a.layers * a.neurons * a.neuron_cost
    rest = a.block_parameters - heads - mlp
    return {
        "embeddings, head": a.model.num_parameters() - a.block_parameters,
        "attention": heads,
        "MLP": mlp,
        "other": rest,
    }


def work_of(a: amp.Anatomy, tokens: int) -> dict[str, int]:
    maps = a.layers * (2 * a.heads + 2 * a.groups) * a.head_dim * a.hidden
    products = a.layers * 2 * tokens * a.heads * a.head_dim
    neurons = a.layers * a.neurons * (len(a.family.neurons_in) + 1) * a.hidden
    head = a.model.config.vocab_size * a.hidden
    return {"embeddings, head": head, "attention": maps, "MLP": neurons, "attention products": products}


for name, t in tiny.items():
    counted = amp.size(t.model, length=128).macs_per_token
    L.assert_close(sum(work_of(t, 128).values()) / counted, 1.0, 1e-3, f"{name}: work as counted on a real pass")
# %% tags=["hide-input"]
colours = dict(zip(("embeddings, head", "attention", "MLP", "other", "attention products"), range(5), strict=True))
everyone = tiny | {"LLaMA-2-7B": seven}
panels = {
    "parameters": {name: parameters_of(a) for name, a in everyone.items()},
    "multiply-adds per token": {f"{name}, 128 tokens": work_of(a, 128) for name, a in everyone.items()}
    | {"LLaMA-2-7B, 4,096 tokens": work_of(seven, 4096)},
}
fig, axes = plt.subplots(2, 1, figsize=(8, 4.8), height_ratios=(4, 5), sharex=True, layout="constrained")
for ax, (title, rows) in zip(axes, panels.items(), strict=True):
    for y, parts in enumerate(rows.values()):
        left = 0.0
        for part, number in parts.items():
            i, share = colours[part], number / sum(parts.values())
            ax.barh(y, share, left=left, color=lesson.PALETTE[i], hatch=lesson.HATCHES[i], edgecolor="white")
            left += share
    ax.set(yticks=range(len(rows)), yticklabels=list(rows), title=title, xlim=(0, 1))
    ax.invert_yaxis()
    ax.grid(False)
handles = [plt.Rectangle((0, 0), 1, 1, fc=lesson.PALETTE[i], hatch=lesson.HATCHES[i], ec="white") for i in range(5)]
fig.legend(handles, list(colours), loc="outside lower center", ncols=5, frameon=False, fontsize="small")
axes[1].set_xlabel("share")
mlp = {name: parts["MLP"] / sum(parts.values()) for name, parts in panels["parameters"].items()}
L.show(fig, alt="Stacked bars: where parameters (above) and multiply-adds per token (below) sit in four models. Share "
       "of parameters in MLPs: " + ", ".join(f"{name} {share:.0%}" for name, share in mlp.items()) + ".")  # fmt: skip
for name, parts in panels["parameters"].items():
    print(f"{name:>15}: " + ", ".join(f"{part} {n / sum(parts.values()):.1%}" for part, n in parts.items()))
# %% [markdown]
# Above: parameters; below: work. Norms and loose biases ("other") are too few to see. Compare a tiny model with
# LLaMA-2-7B: a tiny vocabulary is still large beside a tiny model, so embeddings take a share that a real model gives
# to its MLP. And work is not parameters. The attention products, which no count of weights shows, matter when a text is
# long compared with the hidden size: for the tiny models 128 tokens are long, for LLaMA-2-7B 4,096 are. They shrink
# with heads only.
#
# ## From prices to a budget
#
# A plan spends its ratio on both heads and neurons. The widths don't depend on the scores, so any scores will do here.
# %% tags=["hide-input"]
for name, a in everyone.items():
    p = amp.plan(a.model, amp.score(a.model, [], "random"), pruning_ratio=ratio)
    print(f"{name:>15}: keep {len(p.heads[0])} of {a.heads} heads, {len(p.neurons[0]):,} of {a.neurons:,} neurons, "
          f"remove {p.achieved:.3%}; a group is worth {a.group_cost / a.neuron_cost:.2f} neurons")  # fmt: skip
# %% [markdown]
# On LLaMA-2-7B a head is worth 170.67 neurons, since 4 · 128 / 3 = 170.67 (arithmetic). AMP's official code makes
# up for a rounded head with one single neuron (read in the code); deriving the price from the model avoids that.
#
# The paper's ratios can be recomputed: removing as many parameters as k of 32 layers takes k heads and 344 · k neurons
# from every layer.
# %% tags=["hide-input"]
# NBVAL_CHECK_OUTPUT
for k in (7, 10):
    gone = 32 * k * (seven.group_cost + 344 * seven.neuron_cost) / seven.model.num_parameters()
    print(f"k = {k}: {gone:.2%} of all parameters")
# %% [markdown]
# ## What this does not show
# - **That quiet heads can go.** The sum is exact for one layer's output. What the loss makes of it is another question,
#   and after a head is gone the heads in later layers compute something else. Lesson 2 removes every head and looks.
# - **That heads act alone.** Silencing two heads of one layer changes its output by the sum of both terms; across
#   layers that is no longer so.
# - **Models with other parts.** The functions written here are LLaMA's and Phi's. The library cuts more: packed
#   projections (Phi-3) and norms of queries and keys (Qwen3) are entries in its table; in mixtures of experts heads are
#   cut and experts go whole. A family that is not in `amp.FAMILIES` is refused, not guessed.
# - **Time.** Multiply-adds are not seconds; lesson 5 measures those.
#
# ## References
# - AMP, [arXiv 2504.21174](https://arxiv.org/abs/2504.21174): the sum over heads as the ground of a pruning score.
# - Elhage et al. (2021), *A Mathematical Framework for Transformer Circuits*: heads as independent, additive parts.
# - Michel, Levy, Neubig (2019), *Are Sixteen Heads Really Better than One?*,
#   [arXiv 1905.10650](https://arxiv.org/abs/1905.10650).
# - Ainslie et al. (2023), *GQA*, [arXiv 2305.13245](https://arxiv.org/abs/2305.13245).
# - Shazeer (2020), *GLU Variants Improve Transformer*, [arXiv 2002.05202](https://arxiv.org/abs/2002.05202): gated
#   MLPs.
#
# ## Where next
# You can now say what each head writes, to the last digit. [Lesson 2](02_importance.ipynb) turns that into a score, and
# asks the loss whether the score is right.
# %% tags=["hide-input"]
L.finish()
