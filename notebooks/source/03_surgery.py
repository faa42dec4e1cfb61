# lesson: Surgery
# %% [markdown]
# # 3 · Surgery: from a score to a smaller model
#
# Lesson 2 gave every head and every neuron a number. Now something has to go. This lesson turns a ratio into a plan and
# the plan into a smaller model that stock libraries load, and proves that the cut did what the plan says.
#
# **Objectives.** After this lesson you can
#
# - budget a plan: how many heads and neurons a ratio buys, and why it seldom comes out even;
# - carry out one plan in two ways, mask and cut, and assert that both compute the same;
# - say why a mask saves no time, and measure that it does not;
# - cut grouped-query attention by KV groups or by query heads, without mixing up keys.
#
# **Prerequisites.** Lesson 1 (where heads, groups and neurons live), lesson 2 (scores). **Time:** {{minutes}}.
# %% tags=["parameters"]
model: str = "tiny-llama"  # or "tiny-llama-gqa", "tiny-phi", "smollm2-135m", a local folder, a hub id
ratio: float = 0.30  # share of all parameters to remove
calibration: int = 64  # prompts that the score sees
seed: int = 0
text: str = ""  # what is read: empty, the tiny world for its models and C4 for others; or a file, a folder, "wikitext2"
preset: str = "smallest"  # anything else: more rounds of timing
out: str = "out"
# %% tags=["hide-input"]
import copy
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import amp_tutorial as amp
from amp_tutorial.course import lesson

L = lesson.start(
    "03_surgery",
    dict(model=model, ratio=ratio, calibration=calibration, seed=seed, text=text, preset=preset, out=out),
)
source, _ = L.material(text)
rounds = {"smallest": 15, "real": 7}.get(L.size, 60)
dense, tokenizer = amp.load(model)
anatomy = amp.Anatomy.of(dense)
scores = amp.score(dense, amp.calibration(tokenizer, source, samples=calibration, seed=seed))
print(
    f"{model}: {anatomy.layers} layers, each with {anatomy.heads} query heads on {anatomy.groups} KV groups, and "
    f"{anatomy.neurons} neurons; {dense.num_parameters():,} parameters in all."
)
# %% [markdown]
# An unsolved exercise stops nothing: the check says what is missing, and the lesson goes on with the reference.
#
# ## The budget
#
# **Predict.** How many neurons is one head worth, in parameters? Take hidden size $d$ and head dimension $d_h$.
# %%
L.predict("neurons that one head, or KV group, is worth here", None)
# %% [markdown]
# A head owns $d_h$ rows of the query, key and value projections and $d_h$ columns of the output projection:
# $4\, d_h\, d$ parameters. A neuron of a gated MLP owns a row of the gate, a row of the up and a column of the down
# projection: $3\, d$. So a head is worth $4 d_h / 3$ neurons, whatever the hidden size.
#
# With grouped queries the unit is the KV group: $g$ query heads share one key and one value head, so the group owns
# $(2g + 2)\, d_h\, d$. Phi has two matrices in its MLP and biases everywhere. Counted on the model at hand:
# %%
# NBVAL_CHECK_OUTPUT
block, g, d, d_h = anatomy.layer(0), anatomy.group_size, anatomy.hidden, anatomy.head_dim
bias = block.query.bias is not None
group_cost = (2 * g + 2) * d_h * d + bias * (g + 2) * d_h  # biases of query, key and value
neuron_cost = (len(block.neurons_in) + 1) * d + bias * len(block.neurons_in)
L.assert_close([group_cost, neuron_cost], [anatomy.group_cost, anatomy.neuron_cost], 0, "costs as written out")
# %% tags=["hide-input"]
print(f"One KV group with its {g} query head(s): {group_cost:,} parameters. One neuron: {neuron_cost:,}.")
L.seen("neurons that one head, or KV group, is worth here", group_cost / neuron_cost, within=2)
# %% [markdown]
# AMP takes the same share of heads and of neurons, and the same number from every layer. A share of the heads is seldom
# a whole number. So heads are rounded, and neurons make up for it, *at the exchange rate above*.
#
# ### Exercise 1 · Make up for the rounding
# *Medium, 5 minutes.* A layer is to lose `target` parameters, and `heads_removed` heads go (multi-head attention, no
# biases, gated MLP). How many neurons must go?
# %%
def my_neurons(target, heads_removed, head_dim, hidden):
    """Your code goes here."""


neurons_to_remove = L.check(my_neurons, "l3_neurons_to_remove")
# %% [markdown]
# {{hint:l3_neurons_to_remove}}
#
# {{solution:l3_neurons_to_remove}}
#
# For the model at hand, with its groups and biases, written out:
# %%
total = dense.num_parameters()


def widths(ratio, rate=group_cost / neuron_cost):
    """KV groups and neurons to remove from each layer; `rate` is what a group is worth in neurons."""
    target = ratio * total / anatomy.layers
    share = target / (anatomy.groups * group_cost + anatomy.neurons * neuron_cost)
    groups = round(share * anatomy.groups)
    owed = share * anatomy.groups - groups  # groups, rounded away; negative if too many go
    return groups, round(share * anatomy.neurons + owed * rate)


plan = amp.plan(dense, scores, pruning_ratio=ratio)
groups_gone, neurons_gone = widths(ratio)
target = ratio * total / anatomy.layers
even = target / (anatomy.groups * group_cost + anatomy.neurons * neuron_cost)
print(f"An even share would be {even * anatomy.groups:.2f} groups and {even * anatomy.neurons:.2f} neurons a layer.")
print(f"Rounded and made up for: {groups_gone} groups and {neurons_gone} neurons.\n")
print(plan)
# %%
# NBVAL_CHECK_OUTPUT
kept = [len(plan.groups(0)), len(plan.neurons[0])]
L.assert_close(kept, [anatomy.groups - groups_gone, anatomy.neurons - neurons_gone], 0, "the plan has these widths")
miss = abs(plan.achieved - ratio) * total / anatomy.layers
L.assert_close(
    max(0.0, miss - neuron_cost / 2), 0.0, 1e-3, "asked and achieved differ by half a neuron a layer at most"
)
# %% [markdown]
# **Predict.** The official code makes up for a missing head with **one** neuron. As the asked ratio grows, how does the
# achieved one miss it: by a steady bias, or up and down like a saw?
# %%
L.predict("the achieved ratio is off by", None, among=("a steady bias", "a saw"))
# %% tags=["hide-input"]
asked = torch.linspace(0.05, 0.55, 101)
fig, ax = plt.subplots(layout="constrained")
worst = {}
for k, (name, rate) in enumerate((("exact", group_cost / neuron_cost), ("one neuron a head", float(g)))):
    gone = [widths(r, rate) for r in asked.tolist()]
    achieved = torch.tensor([(a * group_cost + b * neuron_cost) * anatomy.layers / total for a, b in gone])
    off = 100 * (achieved - asked)
    worst[name] = off.abs().max().item()
    ax.plot(100 * asked, off, color=lesson.PALETTE[k], marker=lesson.MARKERS[k], markevery=10, label=name)
ax.set(xlabel="asked: % of all parameters", ylabel="achieved − asked (percentage points)")
fig.legend(title="rounding of heads made up by", loc="outside upper center", ncols=2)
L.show(
    fig,
    alt="Achieved minus asked ratio against the asked ratio. With the exact exchange rate the line stays "
    f"within {worst['exact']:.2f} points of zero; with one neuron a head it is a saw of up to "
    f"{worst['one neuron a head']:.1f}.",
)
print(", ".join(f"{name}: off by up to {value:.2f} percentage points" for name, value in worst.items()) + ".")
both_ways = bool((off.diff() > 0).any() and (off.diff() < 0).any())
L.seen("the achieved ratio is off by", "a saw" if both_ways else "a steady bias")
# %% [markdown]
# ### The paper's ratio, derived
#
# AMP's ratios are odd: 21.02 %, 30.03 %. Its official code removes as many parameters as $k$ whole layers have. Build a
# LLaMA-2-7B without any weights (on the `meta` device a tensor has a shape and no storage), ask for 7 layers' worth,
# and see.
# %%
# NBVAL_CHECK_OUTPUT
with torch.device("meta"):
    big = LlamaForCausalLM(LlamaConfig())  # the defaults are LLaMA-7B's shape, and LLaMA-2-7B's
big_total = big.num_parameters()
one_layer = sum(p.numel() for p in big.model.layers[0].parameters())
by_luck = amp.score(big, [], criterion="random")  # needs no forward pass; only the widths matter here
for k in (7, 10):
    big_plan = amp.plan(big, by_luck, pruning_ratio=k * one_layer / big_total)
    gone = [32 - len(big_plan.heads[0]), 11008 - len(big_plan.neurons[0])]
    L.assert_close(gone, [k, 344 * k], 0, f"{k} layers' worth is {k} of 32 heads and 344·{k} of 11,008 neurons")
    print(f"  {big_plan.achieved:.2%} of {big_total:,} parameters")
print(f"One head is worth {4 * 128 / 3:.2f} neurons.")
# %% [markdown]
# The shares are equal, $k/32$ of each, so nothing is rounded and the wrong exchange rate does no harm *on this shape*.
# It does harm on any shape where $k/L$ of the heads is not a whole number. A number that fits the one model it was
# tried on is a fault waiting for the next.
#
# ## One plan, carried out twice
#
# First: did the plan keep what it should? Nothing kept may score lower than anything removed from the same layer. (A
# group's score is the sum of its heads'.)
# %%
# NBVAL_CHECK_OUTPUT
for i in range(anatomy.layers):
    by_group = scores.heads[i].view(anatomy.groups, g).sum(1)
    for what, values, stays in (("group", by_group, plan.groups(i)), ("neuron", scores.neurons[i], plan.neurons[i])):
        goes = sorted(set(range(len(values))) - set(stays))
        lowest, highest = values[stays].min().item(), max(values[goes].tolist(), default=float("-inf"))
        assert lowest >= highest, f"Layer {i} keeps a {what} of score {lowest:.4g} and removes one of {highest:.4g}."
print("✔ every layer keeps its highest scores, heads and neurons")
# %% [markdown]
# A plan is only a list of what stays. It can be carried out in two ways:
#
# - **mask**: the inputs of the two output projections are zeroed where a head or a neuron should be gone. Its columns
#   there are its only way out, so it is silent. All shapes stay.
# - **cut**: the rows and columns go, and the model is smaller.
#
# ### Exercise 2 · Cut the output projection
# *Easy, 4 minutes.* Return `o_proj` (hidden, heads · head_dim) without the heads that are not in `kept_heads`.
# %%
def my_cut_output(o_proj, kept_heads, head_dim):
    """Your code goes here."""


cut_output = L.check(my_cut_output, "l3_cut_output")
# %% [markdown]
# {{hint:l3_cut_output}}
#
# {{solution:l3_cut_output}}
#
# **Predict.** Are the logits of mask and cut equal to the last bit, nearly, or roughly?
#
# So that nothing is taken on trust, here is a third version, without the module: the mask in plain code, with the
# columns of the weights themselves set to zero.
# %%
L.predict("the logits are equal", None, among=("to the last bit", "nearly", "roughly"))
# %% tags=["hide-input"]
held_out = amp.texts(source, "validation")[:16]
batch = tokenizer(held_out, return_tensors="pt", padding=True, truncation=True, max_length=96).to(dense.device)
inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


@torch.no_grad()
def logits(network, inputs):
    """Logits at the real tokens."""
    return network(**inputs).logits[inputs["attention_mask"] == 1]


def assert_same(found, wanted, what, layers=6):
    """Assert equality to 1e-5 of the largest logit: float32 holds seven digits, and each of many layers rounds anew."""
    L.assert_close(found / wanted.abs().max(), wanted / wanted.abs().max(), 1e-5 * max(1, layers / 6), what)
# %%
# NBVAL_CHECK_OUTPUT
small = amp.prune(dense, plan).model
by_hand = copy.deepcopy(dense)
with torch.no_grad():
    for i in range(anatomy.layers):
        block = amp.Anatomy.of(by_hand).layer(i)
        for n in set(range(anatomy.heads)) - set(plan.heads[i]):
            block.output.weight[:, n * d_h : (n + 1) * d_h] = 0
        for m in set(range(anatomy.neurons)) - set(plan.neurons[i]):
            block.neurons_out.weight[:, m] = 0
with amp.masked(dense, plan):
    masked_logits = logits(dense, inputs)
assert_same(masked_logits, logits(by_hand, inputs), "mask equals zeroed columns", anatomy.layers)
assert_same(logits(small, inputs), masked_logits, "cut equals masked", anatomy.layers)
same_bits = torch.equal(logits(small, inputs), masked_logits)
L.seen("the logits are equal", "to the last bit" if same_bits else "nearly")
# %% [markdown]
# Now the version that matters to whoever gets the model: saved, and loaded with the stock library. `from_pretrained`
# reports keys that were missing, unexpected or of the wrong shape. There must be none.
# %%
# NBVAL_CHECK_OUTPUT
folder = amp.save(small, tokenizer, Path(out) / "models" / f"03-{Path(model).name}", overwrite=True)
reloaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
assert not any(report.values()), report
reloaded_logits = logits(reloaded.eval().to(dense.device), inputs)
assert_same(reloaded_logits, masked_logits, "cut, saved and reloaded equals masked", anatomy.layers)
# %% [markdown]
# Don't take it from one plan: choose yourself what goes in every layer, a head (with its group) and the neurons that
# score lowest. A live notebook has sliders for this.
# %%
def take_away(head: int = 0, neurons: int = 100) -> None:
    """What the model would say next without them, and how far the mask's logits are from the cut's."""
    goes = {n for n in range(anatomy.heads) if n // g == head // g}
    stay = [sorted(s.argsort(descending=True)[: anatomy.neurons - neurons].tolist()) for s in scores.neurons]
    chosen = replace(plan, heads=[sorted(set(range(anatomy.heads)) - goes)] * anatomy.layers, neurons=stay)
    with amp.masked(dense, chosen):
        silent = logits(dense, inputs)
    off = (logits(amp.prune(dense, chosen).model, inputs) - silent).abs().max().item()
    other = (silent.argmax(-1) != logits(dense, inputs).argmax(-1)).float().mean().item()
    print(f"without heads {sorted(goes)} and {neurons} neurons of each layer: another next token at {other:.0%} of the")
    print(f"places than the dense model says; mask and cut differ by at most {off:.0e}")


lesson.widget(take_away, head=(0, anatomy.heads - 1), neurons=(0, anatomy.neurons - 8, 4))
# %% [markdown]
# ### Why is a saved LLaMA a `mistral`?
#
# Look at the class of the cut model for each number of heads that one could keep. `amp.preview` names it before
# anything is cut; it looks at shapes only.
# %% tags=["hide-input"]
for n in range(g, anatomy.heads + 1, g):
    found = amp.preview(dense, amp.keep(dense, scores, heads=n, neurons=anatomy.neurons))
    print(f"  {n} heads kept: {found.model_types[1]}")
try:
    LlamaConfig(hidden_size=128, num_attention_heads=6, num_key_value_heads=6, head_dim=16)
except Exception as error:
    print(f"\nLlamaConfig with 6 heads of 16 and hidden size 128: {str(error).splitlines()[-1].strip()}")
# %% [markdown]
# `LlamaConfig` refuses a head count that doesn't divide the hidden size, even with `head_dim` given, though the
# computation needs no such thing. Mistral's is the same computation (with its sliding window switched off), and its
# configuration has no such rule. So the weights are saved under that name where LLaMA's rule forbids its own. You have
# just asserted that the numbers don't change. Phi's configuration takes any head count.
#
# ## Faster?
#
# **Predict.** The mask sets about a third of the inputs to zero. Is the masked model faster than the dense one? And is
# the cut one as much faster as its multiply-adds promise?
#
# The clock of a shared machine wanders, so the four models take turns, round by round, and we compare within a round.
# The dense model comes twice: against itself it must show no gain, or the clock can't be trusted.
# %%
L.predict("the masked model's speed-up", None)
# %%
token_ids = torch.randint(dense.config.vocab_size, (8, 128), generator=torch.Generator().manual_seed(seed))
token_ids = token_ids.to(dense.device)


@torch.no_grad()
def seconds(network):
    """One prefill of 8 × 128 tokens."""
    start = time.perf_counter()
    network(input_ids=token_ids, use_cache=False).logits[0, 0, 0].item()  # .item() waits for a GPU
    return time.perf_counter() - start


times = {"dense": [], "dense again": [], "masked": [], "cut": []}
for n in range(rounds + 2):
    taken = {"dense": seconds(dense), "cut": seconds(small)}
    with amp.masked(dense, plan):
        taken["masked"] = seconds(dense)
    taken["dense again"] = seconds(dense)
    if n >= 2:  # the first two rounds warm up
        for name, value in taken.items():
            times[name].append(value)
times = {name: torch.tensor(values) for name, values in times.items()}
# %% tags=["hide-input"]
redrawn = torch.from_numpy(L.rng.integers(rounds, size=(1000, rounds)))
speedup = {}
for name in ("dense again", "masked", "cut"):
    ratios = times["dense"] / times[name]
    low, high = torch.quantile(ratios[redrawn].median(1).values, torch.tensor([0.025, 0.975])).tolist()
    middle = ratios.median().item()
    speedup[name] = middle, min(low, middle), max(high, middle)
    L.record.metric(f"prefill speed-up, {name}", *speedup[name], "×", n=rounds)
before, after = amp.size(dense), amp.size(small)
ideal = before.macs_per_token / after.macs_per_token
L.record.metric("prefill speed-up, ideal", ideal, unit="×")

fig, ax = plt.subplots(layout="constrained")
for k, (middle, low, high) in enumerate(speedup.values()):
    ax.bar(k, middle, color=lesson.PALETTE[k], hatch=lesson.HATCHES[k], edgecolor="black")
    ax.errorbar(k, middle, [[middle - low], [high - middle]], color="black", capsize=5)
ax.axhline(1, color="black", linewidth=0.8)
ax.axhline(ideal, color="black", linestyle="--", label=f"promised by multiply-adds: {ideal:.2f} ×")
ax.set(xticks=range(3), xticklabels=speedup, ylabel="prefill speed-up against dense")
ax.set_ylim(0, 1.08 * max(ideal, *(high for _, _, high in speedup.values())))
fig.legend(loc="outside upper center")
L.show(
    fig,
    alt="Bars with 95 % intervals: prefill speed-up against the dense model. "
    + ", ".join(f"{name} {v[0]:.2f} times" for name, v in speedup.items())
    + f"; the multiply-adds promise {ideal:.2f} for the cut.",
)
# %% tags=["hide-input"]
for name, (middle, low, high) in speedup.items():
    word = "faster than" if low > 1 else "slower than" if high < 1 else "no different from"
    print(f"{name}: {middle:.2f} × (95 % interval of the median {low:.2f} to {high:.2f}), {word} dense.")
print(f"Parameters: dense {before.parameters:,}, masked {before.parameters:,}, cut {after.parameters:,}.")
print(f"KV cache a token: dense {before.kv_cache_bytes_per_token:,} bytes, cut {after.kv_cache_bytes_per_token:,}.")
reached = (speedup["cut"][0] - 1) / (ideal - 1)
print(f"The cut reaches {reached:.0%} of the gain that its multiply-adds promise.")
L.seen("the masked model's speed-up", speedup["masked"][0], within=0.05)
# %% [markdown]
# A product with zero takes as long as any other product, so the mask saves nothing; what the zeroing itself costs, this
# clock can hardly tell. Masks are for asking *what if* (lesson 2 did, once for each head). Only a cut pays.
#
# ## Grouped queries
#
# In `tiny-llama-gqa`, one of the embedded models, 8 query heads share 4 key-value heads: heads 0
# and 1 read group 0, heads 2 and 3 read group 1, and so on.
# %% tags=["hide-input"]
L.drawing("groups")
# %% [markdown]
# **Predict.** You keep the 4 best *query heads* of such a layer, wherever they are. Of its 4 KV groups, how many can
# then go, in the mean over layers?
# %%
L.predict("KV groups of 4 that can go, in the mean over layers", None)
# %% tags=["hide-input"]
texts = amp.texts("tinyworld", "validation")[:16]
gqa, gqa_tokenizer = amp.load("tiny-llama-gqa")
gqa_anatomy = amp.Anatomy.of(gqa)
size = gqa_anatomy.group_size
gqa_scores = amp.score(gqa, amp.calibration(gqa_tokenizer, samples=calibration, seed=seed))
gqa_plan = amp.keep(gqa, gqa_scores, heads=4, neurons=gqa_anatomy.neurons)
for i, values in enumerate(gqa_scores.heads):
    single = sorted(values.argsort(descending=True)[:4].tolist())
    users = [sum(n // size == group for n in single) for group in range(gqa_anatomy.groups)]
    print(
        f"  layer {i}: best heads {single} leave {users} readers to the groups; "
        f"whole groups: heads {gqa_plan.heads[i]}, groups {gqa_plan.groups(i)}"
    )
readers = [{int(n) // size for n in values.argsort(descending=True)[:4]} for values in gqa_scores.heads]
unread = sum(gqa_anatomy.groups - len(groups) for groups in readers) / len(readers)
L.seen("KV groups of 4 that can go, in the mean over layers", unread, within=0.5)
# %% [markdown]
# A group can go only when nobody reads it. Picking heads one by one leaves groups with one reader here and two there:
# the cache may not shrink at all, and no configuration can say "two readers for this group, one for that".
#
# ### Exercise 3 · Cut the key projection
# *Medium, 6 minutes.* Return the rows of `k_proj` (groups · head_dim, hidden) that the kept query heads still read.
# %%
def my_cut_key(k_proj, kept_heads, group_size, head_dim):
    """Your code goes here."""


cut_key = L.check(my_cut_key, "l3_cut_key")
# %% [markdown]
# {{hint:l3_cut_key}}
#
# {{solution:l3_cut_key}}
#
# Two ways remain:
#
# - `unit="groups"`, the default: whole groups go, keys and values too. A group scores the sum of its heads
#   (`combine="max"`: its best head).
# - `unit="queries"`: every group loses the same number of query heads, its worst ones. Keys and values stay.
#
# **Predict.** Four of eight query heads are to stay. Which way leaves the lower perplexity, and why does that not say
# which way is better?
# %%
L.predict("the lower perplexity, with four query heads", None, among=("two groups go", "a query of each group goes"))
# %%
every = gqa_anatomy.neurons
gqa_plans = {
    "one group goes": amp.keep(gqa, gqa_scores, heads=6, neurons=every),
    "two groups go": gqa_plan,
    "two go, by their best head": amp.keep(gqa, gqa_scores, heads=4, neurons=every, combine="max"),
    "a query of each group goes": amp.keep(gqa, gqa_scores, heads=4, neurons=every, unit="queries"),
}
found = amp.perplexity(gqa, gqa_tokenizer, limit=64, window=128)
print(f"{'dense':>26}: perplexity {amp.interval(found).bounds()}; in brackets 95 % intervals")
read = {}
for name, grouped in gqa_plans.items():
    told, found = (
        amp.preview(gqa, grouped),
        amp.perplexity(amp.prune(gqa, grouped).model, gqa_tokenizer, limit=64, window=128),
    )
    read[name] = found.value
    print(
        f"{name:>26}: perplexity {amp.interval(found).bounds()}\n"
        f"{'':>28}{told.heads[1]} heads on {told.groups[1]} groups, saved as {told.model_types[1]}; "
        f"{told.ratio:.1%} of parameters gone, KV cache {told.kv_cache_per_token[1]:,} bytes a token"
    )
print(f"Protocol: {found.protocol}.")
L.seen("the lower perplexity, with four query heads", min(("two groups go", "a query of each group goes"), key=read.get))
# %% [markdown]
# With the same number of query heads, whole groups save more: a group that goes takes its key and its value along, and
# only then does the cache shrink. The second way leaves more parameters behind, so its perplexity is that of a larger
# model, and no verdict. (`amp.plan(…, pruning_ratio=…, unit=…)` compares them at one size.) Where all heads share a
# *single* key-value head (multi-query attention), only the second way can cut anything.
#
# Every one of these plans must pass the test that the first one passed: the cut computes what the mask computes.
# %% tags=["hide-input"]
# NBVAL_CHECK_OUTPUT
inputs = {name: t.to(gqa.device) for name, t in gqa_tokenizer(texts[0], return_tensors="pt").items()}
for name, grouped in gqa_plans.items():
    with amp.masked(gqa, grouped):
        right = logits(gqa, inputs)
    assert_same(logits(amp.prune(gqa, grouped).model, inputs), right, f"{name}: cut equals masked")
# %% [markdown]
# The three exercises together, on the models:
# %%
# NBVAL_CHECK_OUTPUT
for i in range(anatomy.layers):
    before_, after_ = anatomy.layer(i), amp.Anatomy.of(small).layer(i)
    assert torch.equal(cut_output(before_.output.weight, plan.heads[i], d_h), after_.output.weight)
    assert torch.equal(cut_key(before_.key.weight, plan.heads[i], g, d_h), after_.key.weight)
assert neurons_to_remove(7 * one_layer / 32, 7, 128, 4096) == 7 * 344  # 7 layers' worth, spread over 32 layers
print("✔ the exercises' cuts are the module's, and 7 layers' worth leaves 7·344 neurons to pay")
# %% [markdown]
# ## The result
#
# One number for the lesson: how much faster the cut model reads a prompt. Beside it stand the mask, which carries out
# the same plan, and the dense model timed against itself, which must show no gain.
# %%
L.signature(
    f"Prefill speed-up of the cut model at {plan.achieved:.0%} fewer parameters",
    *speedup["cut"],
    "×",
    baseline=("the same plan as a mask", speedup["masked"][0]),
    control=("the dense model against itself", speedup["dense again"][0]),
    must="that must show 1",
)
L.conclude({
    f"Mask and cut compute the same, and only the cut is faster: {speedup['cut'][0]:.2f} times the dense model, the "
    f"mask {speedup['masked'][0]:.2f} times.": speedup["cut"][1] > 1 and speedup["masked"][1] < 1.02,
    f"Of the gain that its multiply-adds promise ({ideal:.2f} times) the cut reaches a part, {reached:.0%}.": reached < 1,
})  # fmt: skip
# %% [markdown]
# ## What this does not show
#
# - **That the cut model is any good.** It computes what the mask computes, no more; lessons 4 and 5 ask what it knows.
# - **That other hardware gains as much.** Small matrices on a CPU are bound by overhead; large ones on a GPU by memory
#   or by arithmetic, and odd widths may fit its tiles badly. Measure on the machine that will serve.
# - **Decoding with a cache.** There memory traffic rules; lesson 5 times it separately.
#
# ## References
#
# - AMP, [arXiv 2504.21174](https://arxiv.org/abs/2504.21174); official code `c2d-usp/Efficient-LLMs-with-AMP`, in which
#   the ratio as whole layers' worth was read.
# - Ainslie et al. (2023), *GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints*,
#   [arXiv 2305.13245](https://arxiv.org/abs/2305.13245).
# - The head-count rule of `LlamaConfig`: `huggingface/transformers`, thread 46082.
#
# ## Where next
# The cut is exact. [Lesson 3b](03b_museum.ipynb) is a museum of cuts that are not, symptom first. Or go on: the model
# is smaller and has lost something, and [lesson 4](04_recovery.ipynb) asks how much a short fine-tuning brings back.
# %%
L.finish()
