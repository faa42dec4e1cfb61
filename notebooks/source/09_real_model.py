# lesson: A real model
# %% [markdown]
# # 9 · A real model: what still holds?
#
# Everything so far was measured on three models of a million parameters that know one small world. This lesson takes
# **SmolLM2-135M-Instruct**, a LLaMA that others trained on trillions of tokens of real text. You cut it with the same
# few lines, *read what it writes*, and look inside for what the tiny models don't have. At the end stands, lesson by
# lesson, what the tiny world told us, and where it was wrong.
#
# **Objectives.** After this lesson you can
# - tell by what a model writes, and by its perplexity, what a cut did to it, and say which of the two to trust;
# - put two methods on one scale, the *excess* of the log-perplexity over the dense model's;
# - find attention sinks and massive activations in a model;
# - say which results of a toy carry over to a real model, and which don't.
#
# **Prerequisites.** Lessons 0 to 3 and 8; lesson 7 for layers. **Time:** {{minutes}}.
# %% tags=["parameters"]
model: str = "smollm2-135m"  # `amp-tutorial fetch smollm2-135m`; or an embedded model, a local folder, a GGUF file, a hub id
ratio: float = 0.20  # share of all parameters to remove where one is enough
calibration: int = 8  # windows of text that scores and repair look at
calibration_text: str = "c4"  # with an embedded model it is the tiny world's, and so is the next
text: str = "wikitext2"  # for perplexity
local_copies: str = ""  # a folder with copies of these texts, where there is no hub
seed: int = 0
preset: str = "smallest"  # or "full": more windows
out: str = "out"
# %% tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import torch

import amp_tutorial as amp
from amp_tutorial.course import lesson
from amp_tutorial.files.texts import perplexity_text, text_source
from amp_tutorial.methods.layers import rank_layers
from amp_tutorial.reports import real

if model in amp.EMBEDDED:
    calibration_text = text = "tinyworld"
L = lesson.start(
    "09_real_model",
    dict(model=model, ratio=ratio, calibration=calibration, calibration_text=calibration_text, text=text,
         local_copies=local_copies, seed=seed, preset=preset, out=out),
)  # fmt: skip
length = 128 if model in amp.EMBEDDED else 512
windows = {"smallest": 4, "full": 40}[preset]
ratios = sorted({0.10, ratio, 0.30})
here = L.at_hand(model, dict(calibration=calibration_text, validation=text), local_copies)
if here:
    dense, tokenizer = amp.load(model)
    source = text_source(calibration_text, local_copies)
    batches = amp.calibration(tokenizer, source, samples=calibration, length=length, batch_size=4, seed=seed)
    scores = amp.score(dense, batches)
    metric = amp.output_metric(dense, batches[:1])  # what the loss feels of each output (docs/library.md)
# %% [markdown]
# Where the model and the texts are at hand, every cell below computes. Where they are not, it shows what these very
# cells found when the course was built.
#
# ## Read what it writes
#
# A perplexity is one number; a model is better known by its words. Each version below continues the same beginnings,
# always with its likeliest token. AMP cuts heads and neurons alike, as published. *Ours* cuts neurons alone, chooses
# them by the error that is left after a refit, and refits what stays (lesson 8).
#
# Every beginning opens with BOS, as does all text from which scores and repairs were made here: remember that when we
# come to the sinks.
#
# Write down, before you run on: at which ratio does the text stop making sense, and what breaks first, the facts, the
# grammar, or the ability to go on at all? No number will answer this; your own reading does.
# %%
prompts = [
    "The capital of France is",
    "To make a cup of tea, first",
    "In 1969, two astronauts walked on the Moon. When they came back to Earth,",
]
# %% tags=["hide-input"]
@torch.no_grad()
def writes(small, new=20):
    """How the model goes on, its likeliest token at every place."""
    opened = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []  # as all calibration text is
    rows = [opened + tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    wide = max(map(len, rows))  # all at once: short ones are padded on the left, and the mask says so
    ids = torch.tensor([[0] * (wide - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (wide - len(row)) + [1] * len(row) for row in rows])
    written = small.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
    return [tokenizer.decode(row[wide:], skip_special_tokens=True) for row in written]


def known(small):
    """What is measured of each version: its words, and the losses of every window of text."""
    documents, join = perplexity_text(text, local_copies)
    found = amp.perplexity(small, tokenizer, documents, window=length, limit=windows, batch_size=4, join=join)
    return dict(
        writes=writes(small), windows=found.windows, protocol=found.protocol, parameters=small.num_parameters()
    )
# %%
def by_amp(r):
    return amp.prune(dense, amp.plan(dense, scores, pruning_ratio=r)).model


def by_ours(r, choose=True):
    plan = amp.plan(dense, scores, pruning_ratio=r, parts="neurons")
    weighed = metric if choose else None
    return amp.repair(dense, plan, batches, choose, progress=False, metric=weighed).model


versions = {"dense": L.step("dense", lambda: known(dense))}
for r in ratios:
    versions[f"AMP {r:.0%}"] = L.step(f"AMP {r}", lambda r=r: known(by_amp(r)))
    versions[f"ours {r:.0%}"] = L.step(f"ours {r}", lambda r=r: known(by_ours(r)))
# %% tags=["hide-input"]
for k, prompt in enumerate(prompts):
    print(f"{prompt} …")
    for name, found in versions.items():
        print(f"  {name:9s} {' '.join(found['writes'][k].split())}")
    print()
# %%
def version(which: str = f"ours {ratios[0]:.0%}") -> None:
    """One version beside the dense model."""
    for prompt, whole, now in zip(prompts, versions["dense"]["writes"], versions[which]["writes"], strict=True):
        print(f"{prompt} …\n  dense: {' '.join(whole.split())}\n  {which}: {' '.join(now.split())}\n")


lesson.widget(version, which=list(versions))  # a menu, in a live notebook
# %% [markdown]
# ### Exercise 1 · Does it go round in circles?
# *Medium, 6 minutes.* A broken model repeats itself. From the words of a text, return the share of its runs of three
# words that have occurred in it before.
# %%
def repeated(words: list[str]) -> float:
    """Share of the runs of three words that are said again."""
    ...  # your answer here


repeated = L.check(repeated, "l9_repeated")
# %% [markdown]
# {{hint:l9_repeated}}
#
# {{solution:l9_repeated}}
# %%
for name, found in versions.items():
    circles = [repeated(written.lower().split()) for written in found["writes"]]
    print(f"{name:9s} repeats {', '.join(f'{share:.0%}' for share in circles)} of its runs of three words")
# %% [markdown]
# Read the three beginnings again, row by row. Is a version that writes clean sentences a good one? A model can lose a
# fact and keep its grammar; and the likeliest token at every place hides how sure the model was. So the words say
# *what* broke, and a measure has to say *how much*.
#
# ## One scale for damage
#
# A perplexity of 60 is a catastrophe where the dense model has 6, and nothing where it has 58. What a cut costs is the
# **excess**: log-perplexity of the cut model less that of the dense one, in nats a token. On this scale a repair can be
# stated as a share: a repair that leaves half of the excess has mended half of the damage.
#
# ### Exercise 2 · What was mended
# *Easy, 5 minutes.* From three perplexities, return the share of the excess that a repair took back.
# %%
def mended(dense: float, cut: float, repaired: float) -> float:
    """Share of the cut's excess log-perplexity that is gone after repair."""
    ...  # your answer here


mended = L.check(mended, "l9_mended")
# %% [markdown]
# {{hint:l9_mended}}
#
# {{solution:l9_mended}}
#
# **Predict.** Neurons alone, or heads and neurons alike: which cut does less harm? Of the harm of cutting neurons
# alone, how much does the refit mend, and how much more if it may also choose the neurons?
# %%
L.predict("what does less harm", None, among=("AMP, neurons", "AMP, heads and neurons"))
# %%
ladder = {
    "dense": versions["dense"],
    "AMP, heads and neurons": versions[f"AMP {ratio:.0%}"],
    "AMP, neurons": L.step(
        "AMP, neurons",
        lambda: known(amp.prune(dense, amp.plan(dense, scores, pruning_ratio=ratio, parts="neurons")).model),
    ),
    "… and refitted": L.step("refitted", lambda: known(by_ours(ratio, choose=False))),
    "ours, chosen by repair": versions[f"ours {ratio:.0%}"],
    "random neurons": L.step(
        "random",
        lambda: known(
            amp.prune(dense, amp.plan(dense, amp.score(dense, [], "random", seed=seed), ratio, parts="neurons")).model
        ),
    ),
}
# %% tags=["hide-input"]
losses = {name: sum(found["windows"][0]) / sum(found["windows"][1]) for name, found in ladder.items()}
excess = {name: loss - losses["dense"] for name, loss in losses.items()}
print(f"{ladder['dense']['protocol']}; {ratio:.0%} of all parameters removed.")
for name, loss in losses.items():
    print(f"  {name:24s} perplexity {math.exp(min(loss, 700)):10.2f}   excess {excess[name]:6.2f} nats")
cut, refitted, chosen = (math.exp(losses[n]) for n in ("AMP, neurons", "… and refitted", "ours, chosen by repair"))
base = math.exp(losses["dense"])
shares = [mended(base, cut, now) for now in (refitted, chosen)]
print(f"The refit mends {shares[0]:.0%} of what the cut of neurons breaks; with choice it is {shares[1]:.0%}.")
L.seen("what does less harm", min(("AMP, neurons", "AMP, heads and neurons"), key=losses.get))
# %% tags=["hide-input"]
fig, axes = plt.subplots(figsize=(7.5, 3.6))
rows = [name for name in ladder if name != "dense"]
for k, name in enumerate(rows):  # points, as a bar has no length on an axis without a zero
    axes.plot(excess[name], name, lesson.MARKERS[k], color=lesson.colour("ours" if "refitted" in name else name), ms=9)
axes.invert_yaxis()
axes.set(xlabel="excess over the dense model (nats a token)", xscale="log" if max(excess.values()) > 5 else "linear")
L.show(fig, alt="Points of excess log-perplexity over dense: " + ", ".join(f"{n} {excess[n]:.2f}" for n in rows) + ".")
# %% [markdown]
# To be quick, the repair here reads only a few thousand tokens, with about a thousand unknowns for each output. With
# ten times the text it mends far more: compare with [the table](../docs/real.md).
#
# ## Attention sinks
#
# Softmax shares out exactly 1, so a head that has nothing to say must still look somewhere, and trained models learn to
# look at the *first* token, which every later token can see and which means nothing. Such heads are said to write
# little there, because the first token's value vector is small; that is not measured here.
#
# ### Exercise 3 · The share that goes to the sink
# *Medium, 6 minutes.* Given attention probabilities (heads, queries, keys) of one layer, return for each head the mean
# share that its queries give to the first token. The first query can see nothing else, so leave it out.
# %%
def sink_share(attention: torch.Tensor) -> torch.Tensor:
    """Mean attention of every head to the first token, (heads,)."""
    ...  # your answer here


sink_share = L.check(sink_share, "l9_sink_share")
# %% [markdown]
# {{hint:l9_sink_share}}
#
# {{solution:l9_sink_share}}
#
# **Predict.** In what share of the heads does more than half of all attention go to the first token?
# %%
L.predict("share of such heads, in %", None)
# %%
@torch.no_grad()
def inside():
    """Attention to the first token by layer and head, and how large hidden states are there and elsewhere."""
    ids = batches[0]["input_ids"][:1]
    attention = dense.config._attn_implementation
    dense.set_attn_implementation("eager")  # only this one shows its probabilities
    try:
        seen = dense(input_ids=ids, output_attentions=True, output_hidden_states=True)
    finally:
        dense.set_attn_implementation(attention)
    states = torch.stack([h[0] for h in seen.hidden_states[:-1]])  # (layers, tokens, hidden), before the last norm
    norms = states.norm(dim=-1)
    return dict(
        sinks=[sink_share(layer[0]).tolist() for layer in seen.attentions],
        first=norms[:, 0].tolist(),
        others=norms[:, 1:].median(dim=1).values.tolist(),
        largest=[[float(s.abs().max()), int(s.abs().amax(0).argmax()), int(s.abs().amax(1).argmax())] for s in states],
        typical=states.abs().flatten(1).median(dim=1).values.tolist(),
    )
# %% tags=["hide-input"]
found = L.step("inside", inside)
sinks = torch.tensor(found["sinks"])
fig, axes = plt.subplots(figsize=(8, 3.2))
shown = axes.imshow(sinks.T, aspect="auto", cmap="cividis", vmin=0, vmax=1, origin="lower")
axes.set(xlabel="layer", ylabel="head", title="share of attention that goes to the first token")
axes.grid(False)
fig.colorbar(shown)
most = (sinks > 0.5).float().mean().item()
by_layer = ", ".join(f"{v:.2f}" for v in sinks.mean(1).tolist())
L.show(fig, alt="Heat map, heads by layers, of the mean attention to the first token: above one half in "
       f"{most:.0%} of all heads; by layer the mean is {by_layer}.")  # fmt: skip
print(f"{(sinks > 0.5).sum().item()} of {sinks.numel()} heads give more than half of it to the first token.")
quiet = [i for i, v in enumerate(sinks.mean(1).tolist()) if v < 0.2]
print(f"Layers whose heads mostly look elsewhere (mean below 0.2): {quiet or 'none'}.")
L.seen("share of such heads, in %", 100 * most, within=10)
# %% [markdown]
# ## Massive activations
#
# What makes the first token so easy to find? A few layers write huge numbers into a few of its dimensions, and the last
# layers take them back. In between they are as good as constant. But whoever cuts the neurons that write them changes
# what *every* later token sees.
#
# They stand at one token of hundreds, so a mean over all tokens, as AMP's score is, gives them no more weight than
# that. (Where AMP ranks the neurons that write them is not measured here.)
#
# **Predict.** Which layer writes the first of them?
# %%
L.predict("the first layer that writes one", None)
# %% tags=["hide-input"]
fig, axes = plt.subplots(figsize=(7.5, 3.8))
axes.plot(found["first"], color=lesson.PALETTE[1], marker=lesson.MARKERS[0], label="first token")
axes.plot(found["others"], color=lesson.PALETTE[0], marker=lesson.MARKERS[1], ls="--", label="median of the others")
axes.set(yscale="log", xlabel="before layer", ylabel="length of the hidden state")
axes.legend(frameon=False)
L.show(fig, alt="Length of the hidden state before each layer, log axis. First token: "
       + ", ".join(f"{v:.3g}" for v in found["first"]) + "; median of the others: "
       + ", ".join(f"{v:.3g}" for v in found["others"]) + ".")  # fmt: skip
times = [big / small for (big, _, _), small in zip(found["largest"], found["typical"], strict=True)]
jumps = [i for i in range(1, len(times)) if times[i] > 3 * times[i - 1] and times[i] > 100]
for i in jumps:
    big, dimension, token = found["largest"][i]
    print(f"Layer {i - 1} writes {big:,.0f} into dimension {dimension} of token {token}: {times[i]:,.0f} × typical.")
print(f"At the most it is {max(times):,.0f} ×." if jumps else "No layer makes a number grow by much: none is massive.")
L.seen("the first layer that writes one", jumps[0] - 1 if jumps else "none does")
# %% [markdown]
# All text from which the repair was made opens with the same token, BOS, so the repair has seen the sink on that token
# only. **Try it**, with the model at hand: put `opened = []` into `writes`, and read what *ours* writes at 30 % then.
#
# ## Which layers are precious?
#
# Leave one layer out, and measure the loss (lesson 7). **Predict** the shape of the curve, and its highest point: which
# layers would you never touch?
# %%
L.predict("the dearest layer", None)
# %%
def without():
    few = [{name: t[:2] for name, t in batches[0].items()}]
    ranks = rank_layers(dense, few, "perplexity", spare=(0, 0))
    return {str(i): math.log(v) if math.isfinite(v) and v > 0 else 100.0 for i, v in sorted(ranks.items())}


alone = L.step("layers", without)
worst = sorted(alone, key=alone.get)[::-1][:3]
best = sorted(alone, key=alone.get)[:3]
fig, axes = plt.subplots(figsize=(7.5, 3.4))
axes.bar([int(i) for i in alone], list(alone.values()), color=lesson.PALETTE[2], edgecolor="white")
axes.set(xlabel="layer left out", ylabel="loss (nats a token)")
L.show(fig, alt="Loss with each layer left out: " + ", ".join(f"{i} {v:.2f}" for i, v in alone.items()) + ".")
print(f"Dearest: layers {', '.join(worst)}. Cheapest: layers {', '.join(best)}.")
L.seen("the dearest layer", int(worst[0]))
# %% [markdown]
# ## What the tiny world told us, and where it was wrong
#
# Here the records speak. Each lesson that they can answer has one sentence on a tiny model and one on the real model,
# both computed from the measured runs in `data/`. Before you read a lesson's lines, say to yourself whether its result
# survived.
# %%
L.lessons_on_a_real_model()
# %% [markdown]
# ## The result
#
# First come small checks of the exercises and of the scale. Then one number: the perplexity of *ours*, chosen by
# repair, divided by that of AMP's heads and neurons, window by window; below 1 ours is better. The baseline is AMP's
# neurons alone, the control as many neurons drawn at random.
# %%
# NBVAL_CHECK_OUTPUT
assert mended(10.0, 1000.0, 100.0) == 0.5, "half of the excess"
L.assert_close(mended(2.0, 8.0, 4.0), 0.5, 1e-12, "from 8 to 4 where dense is 2: half of the excess is mended")
# %%
# NBVAL_CHECK_OUTPUT
even = torch.full((2, 4, 4), 0.25)
L.assert_close(sink_share(even), [0.25, 0.25], 1e-7, "who looks everywhere gives the first token its even share")
# %%
# NBVAL_CHECK_OUTPUT
summed = losses["dense"] + excess["random neurons"]
L.assert_close(summed, losses["random neurons"], 1e-9, "an excess is a difference of losses")
# %%
gap = real.gap(ladder["ours, chosen by repair"]["windows"], ladder["AMP, heads and neurons"]["windows"])
L.signature(
    f"perplexity of ours over AMP's, {ratio:.0%} removed",
    math.exp(gap.difference),
    math.exp(gap.low),
    math.exp(gap.high),
    "×",
    baseline=("AMP's neurons alone", math.exp(losses["AMP, neurons"] - losses["AMP, heads and neurons"])),
    control=("random neurons", math.exp(losses["random neurons"] - losses["AMP, heads and neurons"])),
)
for name, loss in losses.items():
    L.record.metric(f"perplexity, {name}", math.exp(min(loss, 700)))
# %% [markdown]
# ## What this does not show
# - **A large model.** 135 million parameters make a real model, but a small one: 30 layers, three KV groups. The order
#   of methods turned over between one million and 135 million, so measure again at seven billion.
# - **The weights as they were trained.** Where the hub could not be reached, they come from a 4-bit file turned into
#   float32.
# - **One draw.** There is one draw of calibration text here, and few windows; [the table](../docs/real.md) has three
#   draws and all systems.
# - **Answers.** A perplexity says little about the answers to questions; the table says what was measured of those.
#
# ## References
# - Xiao et al. (2023), *Efficient streaming language models with attention sinks*,
#   [arXiv 2309.17453](https://arxiv.org/abs/2309.17453).
# - Sun et al. (2024), *Massive activations in large language models*,
#   [arXiv 2402.17762](https://arxiv.org/abs/2402.17762).
# - Ben Allal et al. (2025), *SmolLM2*, [arXiv 2502.02737](https://arxiv.org/abs/2502.02737).
# - AMP, [arXiv 2504.21174](https://arxiv.org/abs/2504.21174); TransAct,
#   [arXiv 2407.05690](https://arxiv.org/abs/2407.05690).
#
# ## Where next
# [The table of the real model](../docs/real.md) has all systems, over three draws. [Appendix B](B_your_own_model.ipynb)
# prunes a model of your own.
# %% tags=["hide-input"]
L.finish()
