# lesson: Evaluation
# %% [markdown]
# # 5 · Evaluation: what a number needs before you believe it
#
# "Our method keeps 61.0 % where the other keeps 59.5 %." Is that a result? It depends on what was asked, how many
# questions, how often the draw was repeated, and what else was measured. This lesson measures pruned models in such a
# way that you can believe its numbers, or see that they are too coarse.
#
# **Objectives.** After this lesson you can
# - compute a perplexity from losses, and say why it needs its window beside it;
# - give an accuracy its standard error and its interval, and tell noise of items from noise of seeds;
# - compare criteria over ratios and seeds by paired differences, with a baseline and a control;
# - take a method apart at equal parameters, and measure size, memory and speed against the ideal.
#
# **Prerequisites.** Lessons 0 to 2; lesson 3 for masks and cuts. **Time:** {{minutes}}.
# %% tags=["parameters"]
model: str = "tiny-llama"  # or "tiny-llama-gqa", "tiny-phi", "smollm2-135m", a local folder, a hub id
ratio: float = 0.30  # the ratio at which accuracy is measured
calibration: int = 64  # texts that the score looks at
seed: int = 0  # the first of the seeds
text: str = ""  # what is read: empty, the tiny world for its models and C4 for others; or a file, a folder, "wikitext2"
tasks: str = ""  # what is asked: empty, the tiny world's tasks or those of AMP's paper; or names of lm-eval's
task_folder: str = ""  # of tasks of your own
preset: str = "smallest"  # or "full": more seeds, more items, more text
sweep: str = ""  # a folder of records by `amp-tutorial sweep`; empty: those that come with the course
out: str = "out"
# %% tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown, display

import amp_tutorial as amp
from amp_tutorial.core.data import windows
from amp_tutorial.course import lesson
from amp_tutorial.reports import summary

L = lesson.start(
    "05_evaluation",
    dict(model=model, ratio=ratio, calibration=calibration, seed=seed, text=text, tasks=tasks,
         task_folder=task_folder, preset=preset, sweep=sweep, out=out),
)  # fmt: skip
source, tasks = L.material(text, tasks, task_folder)
sizes = {
    "smallest": dict(seeds=3, items=40, windows=120, texts=150),
    "real": dict(seeds=3, items=40, windows=16, texts=5),
    "full": dict(seeds=10, items=200, windows=None, texts=150),
}[L.size]
seeds = range(seed, seed + sizes["seeds"])
ratios = sorted({0.2, ratio, 0.5})
dense, tokenizer = amp.load(model)
# %% [markdown]
# ## Perplexity, and its protocol
#
# A language model gives every next token a probability; the loss of a token is −log of it. Perplexity is the
# exponential of the **mean loss per token**: it says among how many equally likely tokens the model seems to choose.
# Long text is read in windows, and each window has its own mean loss and its own number of tokens.
#
# ### Exercise 1 · From windows to one number
# *Easy, 5 minutes.* Given each window's mean loss and its number of tokens, compute the perplexity of the whole text.
# %%
def perplexity(window_losses: list[float], window_tokens: list[int]) -> float:
    """Perplexity of a text in windows."""
    ...  # your answer here


perplexity = L.check(perplexity, "l5_perplexity")
# %% [markdown]
# {{hint:l5_perplexity}}
#
# {{solution:l5_perplexity}}
#
# Written out, with the mean loss $\bar\ell_w$ and the number of tokens $n_w$ of each window: every *token* counts the
# same, however the text was cut.
#
# $$\mathrm{perplexity} = \exp\Big( \frac{\sum_w n_w \bar\ell_w}{\sum_w n_w} \Big)$$
#
# Here are the losses of twenty windows, taken one by one, the slow and obvious way. The module must agree.
# %%
# NBVAL_CHECK_OUTPUT
losses, tokens = [], []
with torch.no_grad():
    for window in windows(tokenizer, amp.texts(source, "validation"), 256)[:20]:
        ids = torch.tensor([window.ids], device=dense.device)
        losses.append(dense(input_ids=ids, labels=ids).loss.item())  # transformers shifts the labels itself
        tokens.append(ids.shape[1] - 1)  # BOS opens the window and is never predicted
module = amp.perplexity(dense, tokenizer, source, window=256, limit=20)
L.assert_close(perplexity(losses, tokens) / module.value, 1, 1e-4, "twenty windows by hand give the module's value")
# %% [markdown]
# Now the same model and the same text, cut into short windows. **Predict.** Does the perplexity rise, fall or stay? And
# what if the short windows overlap, so that each token is counted where it has some text before it?
# %%
L.predict("with short windows, perplexity", None, among=("rises", "falls", "stays"))
# %%
some = amp.texts(source, "validation")[: sizes["texts"]]
protocols = {"window 256": dict(window=256), "window 8": dict(window=8), "window 8, stride 2": dict(window=8, stride=2)}
protocol = {name: amp.perplexity(dense, tokenizer, some, **how) for name, how in protocols.items()}
for name, found in protocol.items():
    print(f"{name:18s} {amp.interval(found).bounds()}, with its 95 % interval; {found.tokens:,} tokens")
times = protocol["window 8"].value / protocol["window 256"].value
print(f"Same weights, same text: the short windows give {times:.2f} times the perplexity of the long ones.")
L.seen("with short windows, perplexity", "rises" if times > 1.02 else "falls" if times < 0.98 else "stays")
# %%
def of_window(window: int = 64) -> None:
    """Perplexity of the first texts, cut into windows of so many tokens."""
    found = amp.perplexity(dense, tokenizer, some[:12], window=window)
    print(f"windows of {window:3d} tokens: perplexity {amp.interval(found).bounds()}, {found.protocol}")


lesson.widget(of_window, window=(8, 256, 8))  # a slider, in a live notebook
# %% [markdown]
# A token near the start of a window has little text before it to be predicted from, and short windows have many such
# tokens. So **a perplexity without its window is no number**: LLM-Pruner's Llama-3 goes from 25.6 to 12.9 by window
# length alone ([second-hand]: from a summary, not checked here). The protocol also says whether windows overlap,
# whether texts are joined, and what BOS does:
# %% tags=["hide-input"]
print(protocol["window 256"].protocol)
# %% [markdown]
# ## Accuracy, and how sure it is
#
# A task asks n questions. Ask n others of the same kind, and another accuracy comes out. The **standard error** says
# how far it would typically move.
#
# ### Exercise 2 · Standard error
# *Easy, 5 minutes.* You get 1 for every right answer and 0 for every wrong one. Return the standard error of the mean.
# %%
def standard_error(correct: list[int]) -> float:
    """Standard error of an accuracy."""
    ...  # your answer here


standard_error = L.check(standard_error, "l5_standard_error")
# %% [markdown]
# {{hint:l5_standard_error}}
#
# {{solution:l5_standard_error}}
# %%
def asked(model) -> amp.Accuracy:
    return amp.accuracy(model, tokenizer, tasks, limit=sizes["items"], folder=task_folder)


suite = asked(dense)
for task in tasks:
    m = suite[task]
    print(f"{task:12s} {m.interval.percent()} % ({m.n} items; guessing gives {suite.chance[task]:.0%})")
print(f"{'mean':12s} {suite.mean.interval.percent()} %")
points = 2
needed = math.ceil(0.8 * 0.2 * (196 / points) ** 2)
print(f"To know an accuracy of 80 % to ± {points} points, a task needs {needed:,} items.")
# %%
# NBVAL_CHECK_OUTPUT
for task in tasks:
    m = suite[task]
    right = round(m.value * m.n)
    L.assert_close(standard_error([1] * right + [0] * (m.n - right)), m.stderr, 1e-9, f"standard error of {task}")
# %% [markdown]
# Why the root of n? Each answer is a draw that is right with probability $p$, so its variance is $p\,(1-p)$. The
# variance of a mean of n independent draws is one n-th of that, and the typical distance from the truth is its root:
#
# $$\mathrm{se} = \sqrt{\frac{p\,(1-p)}{n - 1}}$$
#
# (with $n - 1$, since $p$ is itself taken from the same answers). To halve the error takes four times the items.
#
# The brackets above are 95 % intervals. The usual ones reach 1.96 standard errors to either side. But where every
# answer is right, that formula sees no spread and says ± 0, and just below 100 % it reaches above 100 %. That is a
# weakness of the formula, not a certainty. So these are **Wilson's** intervals: all true accuracies with which such a
# count would be no surprise. Near 0 and 100 % they are lopsided, and they are never of zero width.
#
# ## Two kinds of noise
#
# A pruned model adds a second source of chance: **the draw**. Other calibration texts give other scores, and a random
# plan is nothing but a draw. More items don't help against that; only repeating the pruning with other seeds does. With
# n seeds of standard deviation s, the interval is mean ± t · s / √n. For three seeds Student's t is 4.3, so be prepared
# for wide intervals. Magnitude looks at weights only: it has no draw, and gives the same plan every time.
#
# `amp.interval` takes all runs of a system and puts both kinds of noise into one interval. `amp.compare` asks whether
# two systems differ, and does not look at their two intervals: both answered the **same items** after the **same
# draws**, so it takes the difference pair by pair, $d_i = x_i - y_i$. An item that is hard for both does not move the
# difference:
#
# $$\mathrm{Var}(\bar d) = \tfrac{1}{n} \big( \mathrm{Var}(x) + \mathrm{Var}(y) - 2\,\mathrm{Cov}(x, y) \big),$$
#
# and two cuts of one model stumble over the same items, so the last term is large. (A plain bootstrap draws three seeds
# from the three, again and again; it sees only ten different samples and is too sure.)
#
# ## Ratios × criteria × seeds
#
# **Predict** the order of the four criteria at 30 %, and which of them is best. Which differs more from seed to seed,
# AMP or random?
# %%
L.predict("the best of the four", None, among=("AMP", "magnitude", "random", "reversed"))
# %%
criteria = {"AMP": "amp", "magnitude": "magnitude", "random": "random", "reversed": "reversed"}
scores, plans = {}, {}
for s in seeds:
    batches = amp.calibration(tokenizer, source, samples=calibration, seed=s)
    for name, criterion in criteria.items():
        if name == "magnitude" and s != seed:
            continue  # no draw, so one is all
        scores[name, s] = amp.score(dense, batches, criterion, seed=s)
        plans |= {(name, r, s): amp.plan(dense, scores[name, s], pruning_ratio=r) for r in ratios}
pruned = {key: amp.prune(dense, plan).model for key, plan in plans.items()}


def read(model) -> amp.Perplexity:
    return amp.perplexity(model, tokenizer, source, limit=sizes["windows"])


values = {key: read(small) for key, small in pruned.items()}
base = read(dense)
print(f"{len(values)} pruned models measured; dense: {base.value:.2f}. {base.protocol}.")
# %% tags=["hide-input"]
def of_seeds(table: dict, name: str, r: float) -> list:
    return [table[name, r, s] for s in seeds if (name, r, s) in table]


fig, axes = plt.subplots(figsize=(7, 4))
lines = []
for k, name in enumerate(criteria):
    found = [amp.interval(*of_seeds(values, name, r)) for r in ratios]
    middle, bars = [f.value for f in found], [[f.value - f.low for f in found], [f.high - f.value for f in found]]
    x = [100 * r + (k - 1.5) * 0.4 for r in ratios]  # side by side, so that bars don't hide each other
    axes.errorbar(x, middle, bars, marker=lesson.MARKERS[k], color=lesson.colour(name), capsize=3, label=name)
    lines.append(f"{name} " + ", ".join(f"{m:.3g}" for m in middle))
    for r, f in zip(ratios, found, strict=True):
        print(f"{name:10s} {r:4.0%}  perplexity {f.bounds()}, over {f.over}")
axes.axhline(base.value, color="0.2", ls="--")
axes.text(100 * ratios[-1], base.value * 1.05, "dense", va="bottom", ha="right")
axes.set(yscale="log", ylabel="perplexity", xlabel="share of all parameters removed (%)")
axes.set_xticks([100 * r for r in ratios])
axes.legend(frameon=False)
where = ", ".join(f"{r:.0%}" for r in ratios)
L.show(fig, alt=f"Perplexity, log axis, at {where} removed, mean over seeds with 95 % intervals: {'; '.join(lines)}. "
       f"Dense: {base.value:.3g}.")  # fmt: skip
best = min(criteria, key=lambda name: amp.interval(*of_seeds(values, name, ratio)).value)
L.seen("the best of the four", best)
# %% [markdown]
# Means and intervals were taken over log perplexities, that is, over losses: perplexities of bad models are so large
# that one of them would dominate the mean, and an interval around it could reach below zero, where there is no
# perplexity. For the same reason two systems are compared by the ratio of their perplexities. The next cell puts the
# picture into sentences.
# %% tags=["hide-input"]
def order(r: float) -> str:
    gap = amp.compare(of_seeds(values, "AMP", r), of_seeds(values, "random", r))
    stands = ("better" if gap.difference < 0 else "worse") if gap.clear else "not told apart"
    return f"At {r:.0%} AMP has {gap.ratio()} the perplexity of random: {stands}, with {len(seeds)} seeds."


for r in ratios:
    print(order(r))
    gap = amp.compare(of_seeds(values, "magnitude", r), of_seeds(values, "AMP", r))
    place = ("better than" if gap.difference < 0 else "worse than") if gap.clear else "not told apart from"
    print(f"  Magnitude, which sees no data, is {place} AMP there: {gap.ratio()} its perplexity.")
heads, neurons = plans["AMP", ratio, seeds[0]].shared(plans["AMP", ratio, seeds[1]])
print(f"Two AMP plans from other calibration texts share {heads:.0%} of their heads, {neurons:.0%} of their neurons.")
# %% [markdown]
# ### The same figure from a sweep
#
# This lesson measured one model. `amp-tutorial sweep data/sweeps/criteria.yaml` asks the same of three
# models, each run in a process of its own with a record of its own, and the figure is drawn from the records alone. The
# parameter `sweep` above names another folder of records, yours for example.
# %% tags=["hide-input"]
L.from_sweep(sweep)
# %% [markdown]
# ## Which half of the choice is it?
#
# A plan is two choices, of heads and of neurons. Where AMP wins or loses against chance, it may do so by one of the two
# alone. So we carry out each half by itself, removing as many heads or neurons as the whole plan does. **Predict.** In
# which half does AMP's score know more than a draw?
# %%
L.predict("where AMP knows more than a draw", None, among=("heads", "neurons", "both", "neither"))
# %%
halves, knows = {}, []
for s in seeds:
    for name in ("AMP", "random"):
        kept = plans[name, ratio, s]
        for half, widths in (("heads", len(kept.heads[0])), ("neurons", len(kept.neurons[0]))):
            with amp.masked(dense, amp.keep(dense, scores[name, s], **{half: widths})):
                halves[half, name, s] = read(dense)
for half in ("heads", "neurons"):
    ours, chance = ([halves[half, name, s] for s in seeds] for name in ("AMP", "random"))
    gap = amp.compare(ours, chance)
    verdict = ("AMP is better" if gap.difference < 0 else "AMP is worse") if gap.clear else "not told apart"
    shown = [amp.interval(*runs).bounds() for runs in (ours, chance)]
    print(f"{half:8s} gone: perplexity {shown[0]} by AMP, {shown[1]} at random: {verdict}.")
    knows += [half] * (verdict == "AMP is better")
L.seen("where AMP knows more than a draw", {0: "neither", 2: "both"}.get(len(knows), "".join(knows)))
# %% [markdown]
# Where AMP's heads or neurons are no better than drawn ones, remember what the score is: a **mean** size over all
# tokens. A head or neuron that writes a little everywhere can outrank one that writes much, but only at the few tokens
# where it is needed, such as the name that answers a question. Lesson 2 compares the score with the true damage, head
# by head.
#
# ## Task by task
#
# A mean over tasks can hide a skill that is gone. **Predict.** Which task falls furthest with AMP? Is it the one that
# asks for a fact learnt by heart, or the one that must find out in two hops where a thing is?
# %%
L.predict("the task that falls furthest with AMP", None, among=tasks)
# %% tags=["hide-input"]
at_ratio = {key: small for key, small in pruned.items() if key[1] == ratio}
answers = {key: asked(small) for key, small in at_ratio.items()}
means = {key: found.mean for key, found in answers.items()}
fig, axes = plt.subplots(figsize=(8.5, 3.8))
told = []
for k, name in enumerate(("dense", *criteria)):
    found = [suite] if name == "dense" else of_seeds(answers, name, ratio)
    at = [t + (k - 2) * 0.16 for t in range(len(tasks))]
    middle = [100 * sum(f[task].value for f in found) / len(found) for task in tasks]
    axes.bar(at, middle, 0.15, color=lesson.colour(name), hatch=lesson.HATCHES[k], edgecolor="white", label=name)
    for f in found:
        axes.plot(at, [100 * f[task].value for task in tasks], ".", color="black", markersize=4)
    told.append(f"{name} " + ", ".join(f"{v:.0f}" for v in middle))
for t, task in enumerate(tasks):
    axes.hlines(100 * suite.chance[task], t - 0.42, t + 0.42, color="black", ls="--", lw=1.2)
names = [task.removeprefix("tiny_") for task in tasks]
axes.set_xticks(range(len(names)), names)
axes.set(ylabel="accuracy (%)", ylim=(0, 105))
axes.legend(frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.1))
L.show(fig, alt=f"Accuracy at {ratio:.0%} on {', '.join(names)}, mean over seeds, in percent: {'; '.join(told)}. "
       "Dots are single seeds, dashed lines guessing.")  # fmt: skip
fall = {t: suite[t].value - of_seeds(answers, "AMP", ratio)[0][t].value for t in tasks}
L.seen("the task that falls furthest with AMP", max(fall, key=fall.get))
# %% [markdown]
# Bars are means over seeds, dots single seeds, dashed lines guessing.
# %% tags=["hide-input"]
ours = {task: sum(f[task].value for f in of_seeds(answers, "AMP", ratio)) / len(seeds) for task in tasks}
lost = {task: 100 * (suite[task].value - ours[task]) for task in tasks}
most, least = max(lost, key=lost.get), min(lost, key=lost.get)
print(f"AMP at {ratio:.0%} loses most on {most} ({lost[most]:.1f} points) and least on {least} ({lost[least]:.1f}).")
known = [task for task in tasks if suite[task].value > suite.chance[task] + 0.2]
gone = [task for task in known if ours[task] < suite.chance[task] + 0.05]
print(f"Fallen to within 5 points of guessing, from at least 20 above it: {', '.join(gone) or 'none'}.")
# %% [markdown]
# ## AMP taken apart
#
# AMP prunes heads *and* neurons. Is either enough? The paper's ablation removes 30 % of all parameters in three ways.
# To be fair, all three must remove **equally many parameters**.
#
# ### Exercise 3 · Equal parameters
# *Easy, 4 minutes.* In every layer `heads_gone` heads go, each worth `head_cost` parameters. How many neurons, each
# worth `neuron_cost`, are worth as much? Round to the nearest neuron.
# %%
def equal_neurons(heads_gone: int, head_cost: int, neuron_cost: int) -> int:
    """How many neurons are worth so many heads."""
    ...  # your answer here


equal_neurons = L.check(equal_neurons, "l5_equal_neurons")
# %% [markdown]
# {{hint:l5_equal_neurons}}
#
# {{solution:l5_equal_neurons}}
#
# Heads alone may not hold enough parameters for the ratio, as the last head (or KV group) of a layer must stay. Then
# all three go as far as heads can.
# %%
# NBVAL_CHECK_OUTPUT
anatomy = amp.Anatomy.of(dense)
most = (anatomy.groups - 1) * anatomy.group_cost * anatomy.layers / dense.num_parameters()
heads_only = amp.plan(dense, scores["AMP", seed], pruning_ratio=min(ratio, most), parts="heads")
equal = heads_only.achieved
parts = {
    name: {s: amp.plan(dense, scores["AMP", s], pruning_ratio=equal, parts=name) for s in seeds}
    for name in ("both", "heads", "neurons")
}
groups_gone = (anatomy.heads - len(heads_only.heads[0])) // anatomy.group_size
neurons_gone = anatomy.neurons - len(parts["neurons"][seed].neurons[0])
worth = equal_neurons(groups_gone, anatomy.group_cost, anatomy.neuron_cost)
L.assert_close(worth, neurons_gone, 0, "the plan's neurons are worth the other plan's heads")
one_neuron = anatomy.neuron_cost * anatomy.layers / dense.num_parameters()
for name in parts:
    L.assert_close(parts[name][seed].achieved, equal, one_neuron, f"{name}: equal parameters, to one neuron a layer")
# %% [markdown]
# **Predict** the order of the three. In the paper, on LLaMA-2-7B and five other tasks, both gave 61.02, neurons only
# 56.93 and heads only 37.63 % [second-hand].
# %%
L.predict("the most accurate of the three", None, among=("both", "heads", "neurons"))
# %%
ablation = {}
for name, of_seed in parts.items():
    small = {s: amp.prune(dense, plan).model for s, plan in of_seed.items()}
    of_text = amp.interval(*(read(m) for m in small.values()))
    ablation[name] = of_text, asked(small[seed]).mean
# %% tags=["hide-input"]
paper = {"both": 61.02, "heads": 37.63, "neurons": 56.93}
print(f"{equal:.1%} of all parameters removed; perplexity over {len(seeds)} seeds, accuracy with the first.")
for name, (of_text, m) in ablation.items():
    print(f"{name:8s} accuracy {m.interval.percent()} %   perplexity {of_text.bounds()}   paper {paper[name]:.2f} %")
by_accuracy = sorted(ablation, key=lambda name: -ablation[name][1].value)
first, second = (ablation[name][1] for name in by_accuracy[:2])
clear = amp.compare(first, second).clear
print(f"Here the order is {' > '.join(by_accuracy)}; the paper's is both > neurons > heads.")
L.seen("the most accurate of the three", by_accuracy[0])
print(f"The first two are {'clearly apart' if clear else 'not told apart by these items'}.")
left = len(heads_only.heads[0])
right = {name: 100 * m.value for name, (_, m) in ablation.items()}
guess = 100 * sum(suite.chance[task] for task in tasks) / len(tasks)
L.conclude({
    f"Neurons alone keep {right['neurons']:.0f} %, AMP's heads and neurons {right['both']:.0f} %: not the paper's order.":
        by_accuracy[0] == "neurons" and clear,
    f"Heads alone fall to {right['heads']:.0f} %, where guessing gives {guess:.0f}: "
    f"each layer keeps {left} of {anatomy.heads} heads.": amp.compare(ablation["both"][1], ablation["heads"][1]).clear,
})  # fmt: skip
a_head, a_neuron = 4 * 4096 * 128, 3 * 4096  # weights, in LLaMA-2-7B (lesson 1)
gone = 0.3 * 6_738_415_616 / 32  # of a layer
print(f"In LLaMA-2-7B 30 % are {gone / a_head:.0f} of 32 heads, or {gone / a_neuron / 11008:.0%} of the neurons.")
# %% [markdown]
# Heads are the only way from one token to another. With hardly any left, no MLP can make up for them, as it sees one
# token at a time; a thinner MLP, in contrast, still sees all of what attention brings. LLaMA-2-7B hardly keeps any
# either, as the last line says, and in the paper, too, heads alone fall furthest. What differs is that there heads
# *and* neurons beat neurons alone.
#
# ## Size, memory and speed against the ideal
#
# Ideally time falls as multiply-adds do. **Predict** which of these comes closest to that: parameters, KV cache, time
# for a prompt, or time per new token?
# %%
L.predict("what lies closest to the ideal", None, among=("parameters", "KV cache", "prompt time", "time per new token"))
# %%
key = {"dense": dense} | {f"{r:.0%}": pruned["AMP", r, seed] for r in ratios}
weighed = {name: amp.size(m) for name, m in key.items()}
# All models take turns, and a ratio is taken within a round, so that a busy machine slows both sides of it.
rounds = [{name: amp.latency(m, prompt=128, new=16, repeats=3) for name, m in key.items()} for _ in range(7)]
whole, shares = weighed["dense"], {}
for name in key:
    z = weighed[name]
    time_left = {part: sorted(r[name][part].median / r["dense"][part].median for r in rounds) for part in rounds[0][name]}
    shares[name] = {
        "multiply-adds (ideal)": z.macs_per_token / whole.macs_per_token,
        "parameters": z.parameters / whole.parameters,
        "bytes": z.bytes / whole.bytes,
        "KV cache": z.kv_cache_bytes_per_token / whole.kv_cache_bytes_per_token,
        "prompt time": time_left["prefill"][3],
        "time per new token": time_left["decode"][3],
    }
    said = ", ".join(f"{part} {r[3]:.2f} ({r[1]:.2f} to {r[5]:.2f})" for part, r in time_left.items())
    print(f"{name:6s} time as a share of dense, median and middle five of seven rounds: {said}")
for name in key:
    print(f"{name:6s}" + "  ".join(f"{what} {share:4.0%}" for what, share in shares[name].items()))
prompt, token = (1e3 * sorted(r["dense"][part].median for r in rounds)[3] for part in ("prefill", "decode"))
print(f"dense: {prompt:.2f} ms for a prompt of 128 tokens, {token:.2f} ms for a new token")
# %% tags=["hide-input"]
fig, axes = plt.subplots(figsize=(7.5, 3.8))
for k, what in enumerate(shares["dense"]):
    style = dict(color=lesson.PALETTE[k], marker=lesson.MARKERS[k]) if k else dict(color="0.8", lw=7, zorder=0)
    axes.plot([100 * r for r in ratios], [100 * shares[f"{r:.0%}"][what] for r in ratios], label=what, **style)
axes.axhline(100, color="0.6", lw=0.8)
axes.set(xlabel="share of all parameters removed (%)", ylabel="left, % of dense", xticks=[100 * r for r in ratios])
axes.set_ylim(bottom=0)
axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
at = f"{ratio:.0%}"
L.show(fig, alt=f"What is left of size, memory and time at {where} removed. At {at}: "
       + ", ".join(f"{what} {share:.0%}" for what, share in shares[at].items()) + ".")  # fmt: skip
goal = shares[at]["multiply-adds (ideal)"]
near = {what: abs(s - goal) for what, s in shares[at].items() if what not in ("multiply-adds (ideal)", "bytes")}
L.seen("what lies closest to the ideal", min(near, key=near.get))
# %% tags=["hide-input"]
ideal = 1 / shares[at]["multiply-adds (ideal)"]
fast = {what: 1 / shares[at][what] for what in ("prompt time", "time per new token")}
print(f"At {at} the ideal speed-up is {ideal:.2f}×. A prompt is {fast['prompt time']:.2f}× as fast,")
print(f"a new token {fast['time per new token']:.2f}×.")
for what, gain in fast.items():
    if gain < 0.9 * ideal:
        print(f"{what}: short of the ideal. Fixed costs (Python, norms, the output head) did not shrink.")
# %% [markdown]
# Bytes follow the parameters by definition, and the KV cache follows the heads alone. Time has fixed costs: for models
# this small, much of it is spent between the matrix products, and more so for one token at a time than for a whole
# prompt. So the speed-up of a cut depends on how much there is to do at once: lessons 0 and 3 time eight prompts of 128
# tokens, this one a single prompt. The paper reports 2.90 → 2.31 s (1.25×) for LLaMA-7B and 2.79 → 2.34 s (1.19×) for
# LLaMA-2-7B [second-hand]. Neither is ideal there.
#
# ## Three models, more items
#
# `make results` repeats all this on three models, with more items and with recovery: a sweep over
# `data/sweeps/results.yaml`. Its table comes with the course.
# %% tags=["hide-input"]
shipped = amp.DATA / "results"
if shipped.is_dir():
    display(Markdown(summary.main_table(summary.read(shipped))))
else:
    print("No stored results here; the command above makes them.")
# %% [markdown]
# ## The result
#
# The question of the paper, asked so that it can come out either way: **how many more points of mean accuracy does AMP
# keep than random choice,** with everything else equal? The baseline is magnitude. AMP upside down is the control: it
# must lie below AMP.
# %%
gap = amp.compare(of_seeds(means, "AMP", ratio), of_seeds(means, "random", ratio))
against_chance = {
    name: 100 * amp.compare(of_seeds(means, name, ratio), of_seeds(means, "random", ratio)).difference
    for name in ("magnitude", "reversed")
}
L.signature(
    f"AMP minus random, mean accuracy at {ratio:.0%}",
    100 * gap.difference,
    100 * gap.low,
    100 * gap.high,
    "points",
    baseline=("magnitude minus random", against_chance["magnitude"]),
    control=("AMP reversed minus random", against_chance["reversed"]),
)
for name in criteria:
    for s in seeds:
        if (name, ratio, s) in means:
            L.record.metric(f"mean accuracy, {name}, seed {s}", 100 * means[name, ratio, s].value, unit="%")
# %% tags=["hide-input"]
if gap.clear:
    print(f"AMP {'beats' if gap.difference > 0 else 'loses to'} random choice here, and the interval excludes zero.")
else:
    print(f"The interval includes zero: with {len(seeds)} seeds, AMP and random are not told apart by accuracy.")
reversed_ = amp.compare(of_seeds(means, "AMP", ratio), of_seeds(means, "reversed", ratio))
if reversed_.clear and reversed_.difference > 0:
    print(f"The control failed, as it must: reversed, AMP loses {100 * reversed_.difference:.1f} more points.")
else:
    print("The control is not clearly below AMP: on this model and these items, the score's order carries little.")
# %% [markdown]
# Lesson 2 found that AMP ranks heads better than luck, and yet this interval may include zero. Both can be true: "luck"
# was a thousand rankings there and is a handful of cut models here, each of which stands or falls with the few heads it
# kept.
# %%
drawn = [100 * (means["AMP", ratio, s].value - means["random", ratio, s].value) for s in seeds]
L.conclude({
    f"AMP is above random in each of {len(seeds)} draws, by {min(drawn):.0f} to {max(drawn):.0f} points.": min(drawn) > 0,
    f"That the gaps lie {max(drawn) - min(drawn):.0f} points apart is luck's doing, and {len(seeds)} draws of it are few.":
        not gap.clear,
})  # fmt: skip
# %% [markdown]
# The interval says what other seeds and other items would give; the two systems share both. Each such claim is at 95 %
# by itself: make twenty of them about systems that are alike, and on average one will look clear.
#
# ## What this does not show
# - **A ranking of methods.** Four criteria on one tiny model. On LLaMA-7B at 20 %, figures published elsewhere (other
#   harness versions) have FLAP at 65.1 and Wanda-sp at 66.1 without tuning, against AMP's 64.5 [second-hand].
# - **Other tasks.** Ours are built like PIQA or HellaSwag, but they are not those; no number carries over.
# - **Order after recovery.** Lesson 4 shows that training can change it.
# - **Speed elsewhere.** Times are this machine's. A GPU with long prompts and large batches shows other ratios.
#
# ## References
# - AMP, [arXiv 2504.21174](https://arxiv.org/abs/2504.21174); ablation and times second-hand, from a summary.
# - lm-eval: <https://github.com/EleutherAI/lm-evaluation-harness>.
# - Miller (2024), *Adding Error Bars to Evals*, [arXiv 2411.00640](https://arxiv.org/abs/2411.00640).
#
# ## Where next
# You now have every part: anatomy, scores, surgery, recovery and honest numbers. Take another model
# (`model = "tiny-phi"`, a local folder or a hub id), another ratio, or a criterion of your own
# ([CONTRIBUTING.md](../CONTRIBUTING.md) shows how to add one), and come back here to see whether it wins.
# [Lesson 6](06_other_answers.ipynb) puts the criteria of other papers beside AMP's.
# %% tags=["hide-input"]
L.finish()
