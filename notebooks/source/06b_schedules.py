# lesson: Shots and rankings
# %% [markdown]
# # 6b · Shots and rankings: score again, or rank all layers together
#
# Lesson 6 asked every criterion once, layer by layer, and removed equal shares. Two published methods do otherwise.
# TransAct cuts in *shots*: score, cut a little, train, score again. FLAP puts heads and neurons of all layers in *one
# ranking* and lets the budget fall where it may. Both are ways to use a score, whichever score it is. What is each of
# them worth, and how much of it can a stock checkpoint hold?
#
# **Objectives.** After this lesson you can
# - carry out a schedule of several shots, and say what scoring again brings on its own;
# - say why dimensions of a head can't go one by one under RoPE;
# - rank across layers by a budget, and say why per-layer widths need a class of their own;
# - tell the worth of a ranking from the worth of the split that it leads to.
#
# **Prerequisites.** Lesson 6. **Time:** {{minutes}}.
# %% tags=["parameters"]
model: str = "tiny-llama"  # or "tiny-llama-gqa", "tiny-phi", "smollm2-135m", a local folder, a hub id
ratio: float = 0.30  # share of all parameters to remove
calibration: int = 64  # texts that a score sees
seed: int = 0  # the first of the seeds
text: str = ""  # what is read: empty, the tiny world for its models and C4 for others; or a file, a folder, "wikitext2"
preset: str = "smallest"  # or "full": more seeds, more text
out: str = "out"
# %% tags=["hide-input"]
import math
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import matplotlib.pyplot as plt
import torch

import amp_tutorial as amp
from amp_tutorial.course import lesson

L = lesson.start(
    "06b_schedules",
    dict(model=model, ratio=ratio, calibration=calibration, seed=seed, text=text, preset=preset, out=out),
)
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
block = anatomy.layer(layers // 2)


def read(small) -> amp.Perplexity:
    return amp.perplexity(small, tokenizer, source, limit=sizes["windows"])


def measured(small) -> float:
    return read(small).value


base = measured(dense)
batches = {s: amp.calibration(tokenizer, source, samples=calibration, seed=s) for s in seeds}
scores = {(c, s): found for s in seeds for c, found in amp.score_many(dense, batches[s], ("amp", "flap")).items()}
plans = {key: amp.plan(dense, found, pruning_ratio=ratio) for key, found in scores.items()}
kept_heads, _, kept_neurons = plans["amp", seed].widths
print(f"{model}: {layers} layers of {heads} heads and {neurons} neurons; perplexity {base:.2f}.")
print(f"{ratio:.0%} of all parameters: equal shares keep {kept_heads} heads and {kept_neurons} neurons.")
# %% [markdown]
# ## TransAct's schedule: shot by shot
#
# TransAct does not cut at once. It scores, cuts a little, trains, and does so eight times, because after the first cuts
# the scores are no longer true. Each shot removes its share of what has still to go.
#
# ### Exercise 1 · The schedule
# *Easy, 5 minutes.* Go from `current` structures to `target` in `shots` shots: each shot removes
# `(current − target) // remaining`, where `current` is what is left so far and `remaining` counts this shot too. Return
# what is left after each shot.
# %%
def schedule(current: int, target: int, shots: int) -> list[int]:
    """How many are left after each shot."""
    ...  # your answer here


schedule = L.check(schedule, "l6b_schedule")
# %% [markdown]
# {{hint:l6b_schedule}}
#
# {{solution:l6b_schedule}}
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
# Now the same on our model, down to the widths of equal shares, by TransAct's own score. There are four ways: in one
# shot or in four, each with and without a little training. Training is LoRA on the same texts for the same number of
# steps in all: a quarter of them after each shot, or all at the end. **Predict.** Which helps more, scoring again (four
# shots) or training (after one)?
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
# %%
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
# %% tags=["hide-input"]
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
# This is one calibration draw and a handful of training steps, and each shot has an adapter and a falling learning rate
# of its own. TransAct trains all parameters, on 1 B tokens over its 8 shots and 50 B after them ([code]: read in the
# code), and cuts to a fifth of the size. What a schedule is worth there, this can't say.
#
# ## Museum: shrinking the heads instead
#
# TransAct's code can also keep all heads and drop *dimensions* of each, with one index set for query, key, value and
# output; afterwards a head has a smaller `head_dim`, and RoPE (rotary positions, lesson 1) starts anew with the
# frequencies of that size [code]. Values and outputs survive that. Queries and keys do not: RoPE turns dimension $j$
# together with $j + d/2$, by an angle (position × frequency $j$) that belongs to this pair.
#
# ### Exercise 2 · Who has lost a partner?
# *Medium, 5 minutes.* A head of `head_dim` dimensions keeps those in `kept`. Return the ones whose partner is gone, in
# the order of `kept`.
# %%
def without_partner(kept: list[int], head_dim: int) -> list[int]:
    """The dimensions kept that have lost the one they turn with."""
    ...  # your answer here


without_partner = L.check(without_partner, "l6b_without_partner")
# %% [markdown]
# {{hint:l6b_without_partner}}
#
# {{solution:l6b_without_partner}}
#
# So the order matters: rotate first and drop after, or drop first and rotate after. **Predict.** Of 16 dimensions 8 are
# kept, by score alone. How many of the 8 have lost their partner?
# %%
L.predict("of 8 kept dimensions, without a partner", None)
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
# %%
def score_at(q, k, turns):
    """Attention score of a query at each position with a key at position 0, and of both moved on by 25."""
    near = [rotate(q.expand(len(at), -1), at + move, turns) @ rotate(k[None], torch.tensor([0.0 + move]), turns)[0]
            for move in (0, 25)]  # fmt: skip
    return torch.stack(near)


lost = without_partner(chosen.tolist(), d)
print(f"Of the {d // 2} kept dimensions, {len(lost)} have lost the partner they turn with.")
L.seen("of 8 kept dimensions, without a partner", len(lost), within=1)
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
# %% tags=["hide-input"]
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
# frequencies: it can't say which pairs are left, least of all if every head has a choice of its own. So here only whole
# heads go, as in the model that TransAct's paper reports.
#
# ## FLAP: one ranking for all
#
# FLAP's scores are standardised in each layer, so that heads and neurons of all layers can stand in **one ranking**;
# that ranking decides what goes, and every layer gets widths of its own. No stock configuration can say such widths
# (lesson 0).
#
# ### Exercise 3 · Cheapest first
# *Medium, 6 minutes.* Structures have scores and costs (parameters). They go in order of their scores, the lowest
# first, as long as all that has gone costs no more than the budget; the first that does not fit ends it. Return the
# indices of those that go, in ascending order.
# %%
def cheapest_first(scores, costs, budget) -> list[int]:
    """The indices of those that go."""
    ...  # your answer here


cheapest_first = L.check(cheapest_first, "l6b_cheapest_first")
# %% [markdown]
# {{hint:l6b_cheapest_first}}
#
# {{solution:l6b_cheapest_first}}
#
# All heads and neurons of the model, by that rule:
# %%
# NBVAL_CHECK_OUTPUT
flap = scores["flap", seed]
head_scores, neuron_scores = torch.stack(flap.heads), torch.stack(flap.neurons)
everything = torch.cat([head_scores.flatten(), neuron_scores.flatten()])
costs = [anatomy.group_cost / anatomy.group_size] * head_scores.numel() + [anatomy.neuron_cost] * neuron_scores.numel()
stays = torch.ones(len(everything), dtype=torch.bool)
stays[cheapest_first(everything.tolist(), costs, ratio * dense.num_parameters())] = False
stay_heads, stay_neurons = stays[: head_scores.numel()].view(layers, -1), stays[head_scores.numel() :].view(layers, -1)
groups_gone = round((~stay_heads).sum().item() / layers / anatomy.group_size)
ranked = amp.plan_jointly(dense, flap, ratio)
affordable = int(ratio * dense.num_parameters() / layers // anatomy.group_cost)
by_hand = heads - min(groups_gone, affordable) * anatomy.group_size
L.assert_close(ranked.widths[0], by_hand, 0, "plan_jointly keeps as many heads as the ranking does in the mean")
# %% [markdown]
# `amp.plan_jointly` keeps of the ranking what a stock model can hold: how many heads and how many neurons, the same in
# every layer. What is lost by that? **Predict.** Is the perplexity lower with each layer's own widths, or with equal
# ones?
# %%
L.predict("the perplexity is lower with", None, among=("widths of its own for every layer", "equal widths", "no difference"))
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
# %% tags=["hide-input"]
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
# %%
with unequal(stay_heads, stay_neurons):
    free = measured(dense)
joint = {s: amp.plan_jointly(dense, scores["flap", s], ratio) for s in seeds}
upside_down = {
    s: replace(f, heads=[-x for x in f.heads], neurons=[-x for x in f.neurons]) for s in seeds for f in [scores["flap", s]]
}
runs = {
    **{("one ranking", s): read(amp.prune(dense, joint[s]).model) for s in seeds},
    **{("equal shares", s): read(amp.prune(dense, plans["flap", s]).model) for s in seeds},
    **{("AMP at that split", s): read(
        amp.prune(dense, amp.keep(dense, scores["amp", s], joint[s].widths[0], joint[s].widths[2])).model
    ) for s in seeds},
    **{("upside down", s): read(amp.prune(dense, amp.plan_jointly(dense, upside_down[s], ratio)).model) for s in seeds},
    **{("AMP, equal shares", s): read(amp.prune(dense, plans["amp", s]).model) for s in seeds},
}
# %% tags=["hide-input"]
def of(name):
    return [runs[name, s] for s in seeds]


projected, equal, amps_there = (runs[name, seed].value for name in ("one ranking", "equal shares", "AMP at that split"))
print(f"Every layer its own widths (masked): perplexity {free:.2f}.")
print(f"Projected to equal widths, {ranked.widths[0]} heads and {ranked.widths[2]} neurons: {projected:.2f}.")
print(f"The same share of heads and of neurons, {kept_heads} and {kept_neurons}: {equal:.2f}.")
if ranked.widths == plans["flap", seed].widths:
    print("After projection the ranking asks for the widths of equal shares: it decides nothing.")
else:
    print(f"AMP's scores at FLAP's split: {amps_there:.2f}. "
          + ("The split matters more here than who ranks."
             if abs(math.log(amps_there / projected)) < abs(math.log(projected / equal))
             else "Who ranks matters more here than the split."))  # fmt: skip
change = free / projected - 1
how = "lower" if change < -0.02 else "higher" if change > 0.02 else "about the same"
print({
    "lower": "Widths of its own for every layer are worth something here, which a stock checkpoint can't have.",
    "higher": "Widths of its own for every layer do harm here: standardised scores do not compare these layers well.",
    "about the same": "Widths of its own for every layer make little difference here.",
}[how])  # fmt: skip
L.seen("the perplexity is lower with", {"lower": "widths of its own for every layer", "higher": "equal widths"}.get(how, "no difference"))
# %% [markdown]
# The per-layer widths come from one calibration draw. (With grouped queries the mask here silences single heads; a cut
# could not give up their keys and values.)
#
# ## FLAP: means into biases
#
# FLAP's second idea: what goes had a mean, and the mean can be put into the **bias** of the output projection. LLaMA
# has no biases there, and FLAP's class adds them; a stock LLaMA can't hold them. Phi has them, so it can be tried:
# %% tags=["hide-input"]
has_bias = block.output.bias is not None or block.neurons_out.bias is not None
if has_bias:
    biased, its_tokenizer, draws = dense, tokenizer, list(seeds)
else:
    try:
        amp.prune_and_fold(dense, plans["flap", seed], batches[seed])
    except ValueError as refused:
        print(f"{model}: {refused}")
    biased, its_tokenizer = amp.load("tiny-phi")
    draws = [seed]
plain, folded = [], []
for s in draws:
    texts = batches[s] if has_bias else amp.calibration(its_tokenizer, "tinyworld", samples=calibration, seed=s)
    own = None if has_bias else amp.score(biased, texts, "flap")
    chosen_by_flap = plans["flap", s] if has_bias else amp.plan(biased, own, ratio)
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
# A mean is a first attempt at repair: it replaces what is constant, and all that varies is lost. Whether that helps
# depends on what went. Lesson 8 solves for the whole output projection instead, and needs no bias.
#
# ## The result
#
# What is one ranking worth to a stock model? The number is the perplexity at the ranking's split, divided by that at
# equal shares, both by FLAP's scores, draw by draw; below 1 the ranking helps. The baseline is AMP's scores at the same
# split: is it the ranking that helps, or only where it puts the budget? The control is the ranking upside down.
# %%
gain, others, turned = (
    amp.compare(of(name), of("equal shares")) for name in ("one ranking", "AMP at that split", "upside down")
)
L.signature(
    f"Perplexity at the split of FLAP's one ranking, as a multiple of equal shares', {ratio:.0%} removed",
    math.exp(gain.difference),
    math.exp(gain.low),
    math.exp(gain.high),
    "×",
    baseline=("AMP's scores at that split", math.exp(others.difference)),
    control=("the ranking upside down", math.exp(turned.difference)),
)
for (name, s), run in runs.items():
    L.record.metric(f"perplexity, {name}, seed {s}", run.value)
# %% tags=["hide-input"]
if turned.clear and turned.difference > 0:
    print("The control failed, as it must.")
else:
    print("The control did not clearly fail: on this model and text the order carries little.")
split_of_amp = amp.compare(of("AMP at that split"), of("AMP, equal shares"))
who = amp.compare(of("AMP at that split"), of("one ranking"))
training = after["one shot + training"] / after["one shot"]
again = after["four shots"] / after["one shot"]
L.conclude({
    f"Training matters more than asking again: it leaves {training:.2f} times the perplexity, scoring in four shots without "
    f"training {again:.2f} times.": training < min(1, again),
    f"The ranking's split has {gain.ratio()} the perplexity of equal shares.": gain.clear and gain.difference < 0,
    f"It is the split, not who ranks: AMP's scores gain by it, too, {split_of_amp.ratio()}, and at that split they have "
    f"{who.ratio()} the perplexity of FLAP's.": split_of_amp.difference < 0 and split_of_amp.clear and abs(who.difference) < abs(split_of_amp.difference),
})  # fmt: skip
# %% [markdown]
# ## What this does not show
# - **TransAct.** It cuts to a fifth of the size and trains on billions of tokens. A handful of steps says nothing of
#   what a schedule is worth there.
# - **FLAP as it was published.** Its class holds different widths in each layer, and added biases; here its plan is
#   reduced to what a stock checkpoint can say.
# - **A better split.** The ranking's is one guess. Lesson 8c searches for one.
# - **Another model.** On tiny-llama-gqa at 20 % the ranking's split does worse than equal shares: lesson 9 has both.
#
# ## References
# - TransAct, [arXiv 2407.05690](https://arxiv.org/abs/2407.05690), code `XiaoMi/transact-pruning`.
# - FLAP, [arXiv 2312.11983](https://arxiv.org/abs/2312.11983).
# - RoPE: *RoFormer*, [arXiv 2104.09864](https://arxiv.org/abs/2104.09864).
#
# ## Where next
# So far every answer cut heads and neurons. [Lesson 7](07_layers.ipynb) takes whole layers, and puts depth against
# width at one budget.
# %%
L.finish()
