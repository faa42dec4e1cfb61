# lesson: Better than AMP
# %% [markdown]
# # 8 · Better than AMP: repair, and the directions of the stream
#
# AMP chooses what goes and leaves the rest as it was. But the rest was tuned to company that is now gone. Part of what
# the cut breaks is *linear*: other heads and neurons carry some of the same signal, and one output projection of
# another weight would read it from them. A linear least-squares problem has a closed solution. No training, no
# gradients, no new parameters.
#
# **Objectives.** After this lesson you can
# - solve for an output projection after a cut, and say what the ridge is for;
# - see a repair over-fit its calibration text, with held-out text as the control;
# - tell one-pass from sequential repair, and choose what goes by the error that is left after repair;
# - put repair and LoRA side by side on the same data, by perplexity *and* accuracy;
# - test a published claim: that what flows between modules must be left alone;
# - turn a residual stream without changing a logit, slice it, and search one budget over all that can go.
#
# **Prerequisites.** Lessons 0 to 3; lesson 4 for LoRA, lesson 5 for intervals. **Time:** {{minutes}}.
# %% tags=["parameters"]
model: str = "tiny-llama"  # or "tiny-llama-gqa", "tiny-phi", "smollm2-135m", a local folder, a hub id
ratio: float = 0.30  # share of all parameters to remove
ratio_deep: float = 0.50  # a second, deeper cut
calibration: int = 24  # texts that score and repair look at
samples: int = 64  # rows of recovery training
rate: float = 0.001  # learning rate of LoRA
seed: int = 0  # the first of the seeds
text: str = ""  # what is read: empty, the tiny world for its models and C4 for others; or a file, a folder, "wikitext2"
responses: str = ""  # what LoRA learns to answer: empty, the tiny world's or Alpaca's rows; or a file with both
tasks: str = ""  # what is asked: empty, the tiny world's tasks or those of AMP's paper; or names of lm-eval's
task_folder: str = ""  # of tasks of your own
preset: str = "smallest"  # or "full": more seeds, more items, more text
out: str = "out"
# %%
import json
import math
import tempfile
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from transformers import AutoModelForCausalLM

import amp_tutorial as amp
from amp_tutorial.core.anatomy import weight_of
from amp_tutorial.course import lesson
from amp_tutorial.files.texts import pairs
from amp_tutorial.methods.hidden_size import hidden_at, roles, stream_of
from amp_tutorial.methods.normal_equations import Normal

warnings.filterwarnings("ignore", category=FutureWarning)  # peft still uses a name that transformers will drop
L = lesson.start(
    "08_better",
    dict(model=model, ratio=ratio, ratio_deep=ratio_deep, calibration=calibration, samples=samples, rate=rate,
         seed=seed, text=text, responses=responses, tasks=tasks, task_folder=task_folder, preset=preset, out=out),
)  # fmt: skip
source, tasks = L.material(text, tasks, task_folder)
responses = responses or ("tinyworld" if source == "tinyworld" else "alpaca")
pairs(responses)  # what is not to be had is said before anything else
sizes = {
    "smallest": dict(seeds=3, items=40, texts=48, letters=None, trials=12),
    # letters of each text; rows that train at once
    "real": dict(seeds=3, items=20, texts=32, letters=500, rows=2, trials=4),
    "full": dict(seeds=10, items=200, texts=500, letters=None, trials=24),
}[L.size]
seeds = range(seed, seed + sizes["seeds"])
dense, tokenizer = amp.load(model)
anatomy = amp.Anatomy.of(dense)
layers, head_dim = anatomy.layers, anatomy.head_dim
parts = ["heads", "neurons"]

documents = [document[: sizes["letters"]] for document in amp.texts(source)]
documents = [documents[i] for i in L.rng.permutation(len(documents))]
test_texts = [document[: sizes["letters"]] for document in amp.texts(source, "validation")[: sizes["texts"]]]
apart, documents = documents[:calibration], documents[calibration:]  # text kept apart: no score, no fit sees it


def drawn(s):
    """The calibration texts of a seed."""
    return [documents[(s * calibration + k) % len(documents)] for k in range(calibration)]


def batches_of(texts, size=16):
    return amp.calibration(tokenizer, texts, samples=len(texts), batch_size=size, join=None)  # a text a row


def read(what):
    return amp.perplexity(what, tokenizer, test_texts)


def asked(what):
    """The mean accuracy of a model."""
    return amp.accuracy(what, tokenizer, tasks, limit=sizes["items"], folder=task_folder).mean


def perplexity(what, texts=test_texts):
    return amp.perplexity(what, tokenizer, texts).value


batches = {s: batches_of(drawn(s)) for s in seeds}
scores = {s: amp.score(dense, batches[s], seed=s) for s in seeds}
plans = {(s, r): amp.plan(dense, scores[s], pruning_ratio=r) for s in seeds for r in (ratio, ratio_deep)}
base = perplexity(dense)
shares = [f"{plans[seed, r].achieved:.1%}" for r in (ratio, ratio_deep)]
print(f"Dense: perplexity {base:.2f}. {shares[0]} of all parameters will go, later {shares[1]}.")
print(amp.perplexity(dense, tokenizer, test_texts).protocol)


# %% [markdown]
# ## One projection, solved
#
# Take one output projection of weight $W$. Let $X$ hold what enters it from the heads (or neurons) that stay, one row
# for each token, and let $Y$ hold what the *dense* layer wrote at those tokens. AMP keeps the columns $W_{kept}$. The
# best columns for the job are
#
# $$W' = \arg\min_{W'} \; \lVert Y - X W'^{\top} \rVert^2 + \sum_j d_j \lVert w'_j - w_j \rVert^2,
# \qquad d_j = \lambda \lVert x_j \rVert^2 .$$
# %% tags=["hide-input"]
L.drawing("repair")
# %% [markdown]
# The second term is the **ridge**. It pulls every column towards its old value, measured in that input's own energy,
# so that λ has no unit. Setting the derivative to zero gives the normal equations,
#
# $$(X^{\top} X + D)\, W'^{\top} = X^{\top} Y + D\, W_{kept}^{\top}, \qquad D = \mathrm{diag}(d_j).$$
#
# ### Exercise 1 · Solve it
# *Medium, 8 minutes.* `x` is (tokens, in), `y` is (tokens, out), `old` is (out, in). Return the new weight (out, in).
# %%
def refit(x, y, old, ridge):
    """The weight that maps x to y best, pulled towards the old one."""
    ...  # your answer here


refit = L.check(refit, "l8_refit")


# %% [markdown]
# {{hint:l8_refit}}
#
# {{solution:l8_refit}}
#
# One pass of the dense model over the calibration text shows X and Y of all projections. A bias, where there is one
# (`tiny-phi`), is one more column, of an input that is always 1.
# %%
def projection(shape, i, part):
    return shape.layer(i).output if part == "heads" else shape.layer(i).neurons_out


def columns(plan, i, part):
    """The inputs of an output projection that stay."""
    if part == "neurons":
        return plan.neurons[i]
    return [h * head_dim + j for h in plan.heads[i] for j in range(head_dim)]


@torch.no_grad()
def look(batches, shape=anatomy):
    """Inputs and outputs of every output projection at all real tokens; by default those of the dense model."""
    seen = {(i, part): ([], []) for i in range(layers) for part in parts}

    def keep(key):
        def hook(_, args, output):
            for rows, value in zip(seen[key], (args[0], output), strict=True):
                rows.append(value.reshape(-1, value.shape[-1])[mask].double())

        return hook

    handles = [projection(shape, *key).register_forward_hook(keep(key)) for key in seen]
    for batch in batches:
        mask = batch["attention_mask"].bool().flatten().to(dense.device)
        shape.model.base_model(**{name: t.to(dense.device) for name, t in batch.items()}, use_cache=False)
    for handle in handles:
        handle.remove()
    return {key: (torch.cat(x), torch.cat(y)) for key, (x, y) in seen.items()}


def equation(found, plan, i, part):
    """X, Y and the old weight of one projection after the cut."""
    (x, y), module, kept = found[i, part], projection(anatomy, i, part), columns(plan, i, part)
    x, old = x[:, kept], weight_of(module).detach()[:, kept].double()
    if module.bias is None:
        return x, y, old
    return torch.cat([x, torch.ones_like(x[:, :1])], 1), y, torch.cat([old, module.bias.detach().double()[:, None]], 1)


@torch.no_grad()
def solved(plan, found, ridge=0.01, order=None):
    """A pruned model with every output projection solved for; `order` shuffles the targets."""
    small = amp.prune(dense, plan).model
    shape = amp.Anatomy.of(small)
    for i, part in found:
        x, y, old = equation(found, plan, i, part)
        new, module = refit(x, y if order is None else y[order], old, ridge), projection(shape, i, part)
        count = weight_of(module).shape[1]
        weight_of(module).copy_(new[:, :count])
        if module.bias is not None:
            module.bias.copy_(new[:, -1])
    return small


found = look(batches[seed])
by_hand = solved(plans[seed, ratio], found)
module = amp.repair(dense, plans[seed, ratio], batches[seed], sequential=False, ridge=0.01, progress=False)
print(f"{2 * layers} projections solved from {len(found[0, 'heads'][0]):,} tokens.")
# %%
# NBVAL_CHECK_OUTPUT
for part in parts:
    mine, theirs = (
        torch.stack([weight_of(projection(amp.Anatomy.of(m), i, part)).detach() for i in range(layers)])
        for m in (by_hand, module.model)
    )
    L.assert_close(mine, theirs, 1e-4, f"the weights behind the {part}, solved in view, are those of amp.repair")


# %% [markdown]
# What did it mend? Count, for every projection, the share of the output's energy that the pruned projection gets wrong
# (mean square, on the calibration tokens). **Predict:** does the refit halve it, or more, and is it better for heads or
# for neurons?
# %%
L.predict("share of the lost energy still lost behind the neurons, in %", None)
# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
words = []
for axis, part in zip(axes, parts, strict=True):
    fits = [fit for fit in module.report.fits if fit.part == part]
    for k, (name, values) in enumerate({"cut": [f.before for f in fits], "refitted": [f.after for f in fits]}.items()):
        at = [i + (k - 0.5) * 0.38 for i in range(layers)]
        style = dict(color=lesson.PALETTE[k], hatch=lesson.HATCHES[k], edgecolor="white", label=name)
        axis.bar(at, [100 * v for v in values], 0.36, **style)
        words.append(f"{part}, {name}: " + ", ".join(f"{100 * v:.0f}" for v in values))
    axis.set(title=f"behind the {part}", xlabel="layer", xticks=range(layers))
axes[0].set_ylabel("energy of the output lost (%)")
axes[1].legend(frameon=False)
L.show(fig, alt="Share of each output projection's energy that is lost, in percent, layer by layer: "
       + "; ".join(words) + ".")  # fmt: skip
for part in parts:
    fits = [fit for fit in module.report.fits if fit.part == part]
    was, now = (sum(getattr(f, when) for f in fits) / layers for when in ("before", "after"))
    print(
        f"Behind the {part} the cut loses {was:.0%} of the energy in the mean over layers; after the refit {now:.0%}."
    )
L.seen("share of the lost energy still lost behind the neurons, in %", 100 * now / was, within=15)
# %% [markdown]
# On the calibration tokens this can't come out worse than no refit: the old weights are a candidate without penalty.
# On other text it can.
#
# ## Too little text
#
# A projection has as many unknowns for each output as inputs stay. With fewer tokens than that, X can be fitted
# exactly, noise and all. So solve the MLP projection of a middle layer from more and more text, once with next to no
# ridge and once with λ **chosen by the calibration text alone**: solve on one half, test on the other, take the best
# λ of $1, 10^{-1} \ldots 10^{-6}$. This is the rule of `amp.repair`. The error on *held-out* text is the control.
#
# **Predict** the two curves without a ridge: where do they start, where do they meet, and where is the worst place on
# other text? (What is fitted exactly is drawn at 0.1 %.)
# %%
place = layers // 2, "neurons"
plan = plans[seed, ratio]
whole = amp.keep(dense, scores[seed], heads=anatomy.heads)
control = equation(look(batches_of(apart)), plan, *place)
all_rows = {s: equation(look(batches[s]), plan, *place) for s in seeds}
most = min(len(x) for x, _, _ in all_rows.values())
counts = [n for n in (64, 128, 256, 512, 1024, 2048, 4096, 8192) if n < most] + [most]


def lost(w, x, y):
    """Share of the energy of y that x wᵀ gets wrong."""
    return ((y - x @ w.T).square().sum() / y.square().sum()).item()


curves = {(line, n): [] for line in ("fitted", "held out", "fitted, ridge", "held out, ridge") for n in counts}
for s in seeds:
    every_x, every_y, old = all_rows[s]
    for n in counts:
        x, y, normal = every_x[:n], every_y[:n], Normal()
        for half in (slice(n // 2), slice(n // 2, n)):
            normal.add(x[half], y[half])
        for name, ridge in (("", 1e-9), (", ridge", normal.ridge(old))):
            w = refit(x, y, old, ridge)
            curves[f"fitted{name}", n].append(lost(w, x, y))
            curves[f"held out{name}", n].append(lost(w, *control[:2]))
uncut = lost(control[2], *control[:2])
# %%
fig, axes = plt.subplots(figsize=(7, 4))
words = []
for k, line in enumerate(("fitted", "held out", "fitted, ridge", "held out, ridge")):
    middle = [math.exp(sum(math.log(max(v, 1e-6)) for v in curves[line, n]) / len(seeds)) for n in counts]
    style = dict(color=lesson.PALETTE[k], marker=lesson.MARKERS[k], ls="--" if "ridge" in line else "-", label=line)
    axes.plot(counts, [max(100 * v, 0.1) for v in middle], **style)
    for n in counts:
        axes.plot(
            [n] * len(seeds), [max(100 * v, 0.1) for v in curves[line, n]], ".", color=style["color"], markersize=4
        )
    words.append(f"{line} " + ", ".join(f"{100 * v:.2g}" for v in middle))
axes.axhline(100 * uncut, color="0.2", ls=":", lw=1.2)
axes.text(counts[-1], 100 * uncut * 1.08, "held out, no refit", ha="right", va="bottom", fontsize="small")
axes.axvline(len(plan.neurons[0]), color="0.7", lw=1)
axes.text(
    len(plan.neurons[0]), 0.03, " as many tokens as inputs", transform=axes.get_xaxis_transform(), fontsize="small"
)
floor = 0.1  # what is fitted exactly is drawn here
axes.set(xscale="log", yscale="log", xlabel="calibration tokens", ylabel="energy of the output lost (%)")
axes.set_ylim(bottom=0.8 * floor)
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
L.show(
    fig,
    alt=f"Energy lost by one MLP projection, in percent, after a refit from {', '.join(map(str, counts))} tokens, "
    f"log axes, mean over seeds (dots: seeds): {'; '.join(words)}. Held out without refit: {100 * uncut:.3g}.",
)
# %%
means = {key: sum(v) / len(v) for key, v in curves.items()}
few, many = counts[0], counts[-1]
most_lost = {name: max(counts[1:-1], key=lambda n: means[f"held out{name}", n]) for name in ("", ", ridge")}
print(f"A text has about {many / calibration:.0f} tokens; the projection has {len(plan.neurons[0])} inputs left.")
for name in ("", ", ridge"):
    harm = [n for n in counts if means[f"held out{name}", n] > uncut]
    print("With the ridge:" if name else "Without a ridge:")
    for n in (few, most_lost[name], many):
        fitted, other = (means[f"{line}{name}", n] for line in ("fitted", "held out"))
        print(f"  from {n:5d} tokens: fitted {fitted:6.1%}, held out {other:6.1%}")
    said = f"from {', '.join(map(str, harm))} tokens" if harm else "never"
    print(f"  Worse on held-out text than no refit at all ({uncut:.1%}): {said}.")


# %% [markdown]
# A fitted error is no evidence: where it is next to nothing, the error on other text says how much was noise. Look for
# the worst place of the curve without a ridge. With fewer tokens than inputs many solutions fit exactly, and the one
# nearest to the old weights is taken; with about as many there is just one, and it has to follow every token. Whoever
# tunes a repair by its fitted error tunes it to that text. Whoever tunes it by the test set has no test set left.
#
# ## Layer after layer
#
# So far X and Y came from the dense model, in **one pass**. But in the pruned model layer 3 does not see the dense
# model's stream. It sees what layers 0 to 2 make of it after their cuts. **Sequential** repair takes X from the pruned
# and already repaired model. And since every module only adds to the residual stream, it can do more than imitate.
#
# ### Exercise 2 · What should a module add?
# *Medium, 5 minutes.* At some token the dense stream is `dense_before`, and the dense module adds `dense_adds`. In the
# pruned model the stream before that module is `own_before`. What should the pruned module add, so that the stream
# leaves it as in the dense model?
# %%
def target(dense_before, dense_adds, own_before):
    """What the pruned module should add to its own stream."""
    ...  # your answer here


target = L.check(target, "l8_target")
# %% [markdown]
# {{hint:l8_target}}
#
# {{solution:l8_target}}
#
# This is the target that `amp.repair` solves for by default. The first MLP shows it: the attention before it is
# refitted already, does not write quite what the dense one wrote, and the MLP has to make up for that.
# %%
started = time.perf_counter()
sequential = amp.repair(dense, plan, batches[seed], ridge=0.01, progress=False).model
repair_seconds = time.perf_counter() - started
shape = amp.Anatomy.of(sequential)
theirs, own = found, look(batches[seed], shape)
with torch.no_grad():
    ids = torch.cat([b["input_ids"][b["attention_mask"].bool()] for b in batches[seed]])
    entered = dense.get_input_embeddings()(ids.to(dense.device)).double()
wanted = target(entered + theirs[0, "heads"][1], theirs[0, "neurons"][1], entered + own[0, "heads"][1])
short = (wanted - theirs[0, "neurons"][1]).norm() / wanted.norm()
print(f"Of what the first MLP is asked for, {short:.1%} (in norm) makes up for the attention before it.")
# %%
# NBVAL_CHECK_OUTPUT
_, _, old = equation(theirs, plan, 0, "neurons")
x = own[0, "neurons"][0]
x = torch.cat([x, torch.ones_like(x[:, : old.shape[1] - x.shape[1]])], 1)  # for a bias, where there is one
weight = weight_of(projection(shape, 0, "neurons")).detach()
mine = refit(x, wanted, old, 0.01)[:, : weight.shape[1]]
L.assert_close(mine, weight, 1e-4, "solved for this target in view, the first MLP is that of amp.repair")
# %% [markdown]
# Now the whole model, and the error of its stream on text kept apart. **Predict,** of cut alone, one-pass and
# sequential: which error grows from layer to layer, and which stays?


# %%
L.predict("the error that grows most", None, among=("cut alone", "one pass", "sequential"))
# %%
@torch.no_grad()
def stream(what, texts):
    """The residual stream behind every layer (before the last norm), (layers, tokens, hidden)."""
    states, found = [], []
    blocks = what.get_submodule(amp.Anatomy.of(what).family.layers).children()
    handles = [
        block.register_forward_hook(lambda _, args, out: states.append(out[0] if isinstance(out, tuple) else out))
        for block in blocks
    ]
    for batch in batches_of(texts):
        states.clear()
        what.base_model(**{name: t.to(dense.device) for name, t in batch.items()}, use_cache=False)
        found.append(torch.stack(states)[:, batch["attention_mask"].bool().to(dense.device)])
    for handle in handles:
        handle.remove()
    return torch.cat(found, 1).double()


def repaired(plan, batches, **settings):
    return amp.repair(dense, plan, batches, progress=False, **settings).model


cut, text = plans[seed, ratio], batches[seed]
shown = {
    "cut alone": amp.prune(dense, cut).model,
    "one pass": repaired(cut, text, sequential=False),
    "sequential": repaired(cut, text),
}
right = stream(dense, apart)
drift = {
    name: ((stream(m, apart) - right).square().sum((1, 2)) / right.square().sum((1, 2))).tolist()
    for name, m in shown.items()
}
fig, axes = plt.subplots(figsize=(7, 3.6))
for k, (name, values) in enumerate(drift.items()):
    axes.plot(range(layers), [100 * v for v in values], color=lesson.PALETTE[k], marker=lesson.MARKERS[k], label=name)
axes.set(xlabel="behind layer", ylabel="wrong energy in the stream (%)", xticks=range(layers))
axes.set_ylim(bottom=0)
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
told = "; ".join(f"{name} " + ", ".join(f"{100 * v:.2g}" for v in line) for name, line in drift.items())
L.show(
    fig,
    alt="Share of the stream's energy that is wrong behind each layer on held-out text, in percent, "
    f"{ratio:.0%} removed: {told}.",
)
ends = {name: values[-1] for name, values in drift.items()}
print("Behind the last layer, on held-out text: " + ", ".join(f"{name} {v:.1%}" for name, v in ends.items()) + ".")
fewer = 1 - ends["sequential"] / ends["one pass"]
print(f"Sequential repair leaves {abs(fewer):.0%} {'less' if fewer > 0 else 'more'} of it wrong than one-pass repair.")
L.seen("the error that grows most", max(drift, key=lambda name: drift[name][-1] - drift[name][0]))
# %% [markdown]
# ## Choose by what is left after repair
#
# AMP asks how much a part writes. If the rest can be solved for, a better question is **how much is lost that the rest
# can't take over**. Two loud neurons that say the same are worth one. With C the inverse of $X^{\top}X$, taking input j
# away and refitting all others adds exactly $\lVert w_j \rVert^2 / C_{jj}$ to the squared error. This is *optimal brain
# surgeon*. Here it is for a neuron of middling cost, and the same by taking it away and solving anew:
# %%
# NBVAL_CHECK_OUTPUT
x, y, old = equation(found, whole, *place)  # nothing gone: here the old weight solves the equations
inverse = torch.linalg.inv(x.T @ x)
costs = (old.square().sum(0) / inverse.diagonal())[: anatomy.neurons]
j = costs.argsort()[anatomy.neurons // 2].item()
others = [k for k in range(x.shape[1]) if k != j]
anew = (y - x[:, others] @ refit(x[:, others], y, old[:, others], 0.0).T).square().sum()
L.assert_close(costs[j] / anew, 1.0, 1e-3, "the cost of a neuron, by the formula and by solving without it")


# %% [markdown]
# `choose=True` keeps AMP's widths, takes the cheapest head or neuron by this rule, refits, and takes the next.
#
# ## The table, with a baseline and a control
#
# Everything over several draws of calibration text, at equal widths. The baseline is random choice *with* repair. The
# control solves the same equations with the targets **shuffled** over tokens: X and Y are real, but do not belong
# together. It must not help. And a question: what if the repair is fed **nonsense**, the calibration text's tokens
# drawn one by one in random order? **Predict** the order, and where "random + repair" and nonsense come in.
# %%
L.predict("the better of these two", None, among=("AMP", "random + repair"))
# %%
def nonsense(batches, s):
    """The same lengths, but every token after the first drawn from those of the text, one by one."""
    draw = torch.Generator().manual_seed(s)
    used = torch.cat([b["input_ids"][b["attention_mask"].bool()] for b in batches])
    made = []
    for b in batches:
        ids = used[torch.randint(len(used), b["input_ids"].shape, generator=draw)]
        ids[:, 0] = b["input_ids"][:, 0]
        made.append({**b, "input_ids": ids})
    return made


runs = {}
first = {}  # the models of the first seed, which are looked at again
for s in seeds:
    cut, text = plans[s, ratio], batches[s]
    by_chance = amp.plan(dense, amp.score(dense, text, "random", seed=s), pruning_ratio=ratio)
    seen = found if s == seed else look(text)
    order = torch.randperm(len(seen[0, "heads"][0]), generator=torch.Generator().manual_seed(s))
    systems = {
        "AMP": amp.prune(dense, cut).model,
        "AMP + one-pass repair": shown["one pass"] if s == seed else repaired(cut, text, sequential=False),
        "AMP + sequential repair": shown["sequential"] if s == seed else repaired(cut, text),
        "chosen by error + repair": repaired(cut, text, reselect=True),
        "random": amp.prune(dense, by_chance).model,
        "random + repair": repaired(by_chance, text),
        "AMP + shuffled targets": solved(cut, seen, order=order),
    }
    runs |= {(name, s): read(m) for name, m in systems.items()}
    first = first or systems
odd = perplexity(repaired(plans[seed, ratio], nonsense(batches[seed], seed)))
names = list(systems)
values = {key: run.value for key, run in runs.items()}


def of(name):
    return [runs[name, s] for s in seeds]


sure = {name: amp.interval(*of(name)) for name in names}
print(f"Perplexity, {ratio:.0%} of all parameters removed, {len(seeds)} seeds (dense {base:.2f}):")
for name in names:
    print(f"  {name:26s} {sure[name].bounds()}")


# %%
def against(ours, other):
    """What seeds and windows allow one to say, from the paired differences of losses."""
    gap = amp.compare(of(ours), of(other))
    if not gap.clear:
        return f"{ours} and {other}: not told apart."
    times = math.exp(gap.difference)
    if abs(gap.difference) > math.log(2):
        return f"{ours}: {times:.3g} times the perplexity of {other}."
    return f"{ours}: perplexity {abs(1 - times):.0%} {'lower' if times < 1 else 'higher'} than {other}."


for pair in (
    ("AMP + one-pass repair", "AMP"),
    ("AMP + sequential repair", "AMP + one-pass repair"),
    ("chosen by error + repair", "AMP + sequential repair"),
    ("AMP + sequential repair", "random + repair"),
    ("random + repair", "AMP"),
    ("AMP + shuffled targets", "AMP"),
):
    print(against(*pair))
alone, text = (values[name, seed] for name in ("AMP", "AMP + sequential repair"))
share = math.log(alone / odd) / math.log(alone / text)
print(f"Nonsense, first seed: perplexity {odd:.2f}. That is {share:.0%} of the gain in loss that text gives.")
L.seen("the better of these two", min(("AMP", "random + repair"), key=lambda name: values[name, seed]))
# %% [markdown]
# Pairs share the draw of calibration text, so differences are taken draw by draw. Where even nonsense helps, much of
# what a cut breaks does not depend on what the text says: a constant part of the output, or signals that parts share.
#
# ## How much from heads, how much from neurons?
#
# AMP takes the same share of both. Is that a good split, once the rest is repaired? Try every number of heads, with as
# many neurons as the budget then allows. Choose by the loss on the **text kept apart**, which neither score nor repair
# has seen, and only then look at the test text. **Predict** the winner: few heads and many neurons, or the reverse?
# %%
L.predict("heads of the best split", None)
# %%
def at_budget(scores, heads):
    """A plan with so many heads and the most neurons that keep within the ratio; None if there are none."""
    most = (1 - ratio) * dense.num_parameters()
    spared = (anatomy.heads - heads) // anatomy.group_size * anatomy.group_cost
    gone = math.ceil(((dense.num_parameters() - most) / layers - spared) / anatomy.neuron_cost)
    if not 0 <= gone < anatomy.neurons:
        return None
    return amp.keep(dense, scores, heads=heads, neurons=anatomy.neurons - gone)


def loss_apart(what):
    return math.log(perplexity(what, apart))


step = anatomy.group_size
fewest = anatomy.heads // 4 // step * step + step  # below, a layer has hardly any attention left
splits = {h: at_budget(scores[seed], h) for h in range(fewest, anatomy.heads + 1, step)}
splits = {h: p for h, p in splits.items() if p is not None}
some = batches[seed][: math.ceil(len(batches[seed]) / 2)]  # half of the text is enough to compare splits
tried = {h: repaired(p, some) for h, p in splits.items()}
judged = {h: loss_apart(m) for h, m in tried.items()}
best = min(judged, key=judged.get)
one_neuron = anatomy.neuron_cost * layers / dense.num_parameters()
tested = {h: perplexity(m) for h, m in tried.items()}
plain = {h: perplexity(amp.prune(dense, p).model) for h, p in splits.items()}
fig, axes = plt.subplots(figsize=(7, 3.6))
for k, (name, line) in enumerate(
    {
        "cut alone": plain,
        "repaired": tested,
        "repaired, text kept apart": {h: math.exp(v) for h, v in judged.items()},
    }.items()
):
    axes.plot(list(line), list(line.values()), color=lesson.PALETTE[k], marker=lesson.MARKERS[k], label=name)
axes.axvline(len(plans[seed, ratio].heads[0]), color="0.6", ls=":")
axes.text(len(plans[seed, ratio].heads[0]), 0.97, " AMP's split", transform=axes.get_xaxis_transform(), va="top")
axes.set(xlabel="heads that stay in every layer", ylabel="perplexity", yscale="log", xticks=list(splits))
axes.legend(frameon=False)
told = ", ".join(f"{h} heads {plain[h]:.3g} and {tested[h]:.3g}" for h in splits)
L.show(
    fig,
    alt=f"Perplexity against the heads that stay, {ratio:.0%} of all parameters removed, log axis; cut alone and "
    f"repaired: {told}. AMP's split keeps {len(plans[seed, ratio].heads[0])}.",
)
L.seen("heads of the best split", best)
# %%
# NBVAL_CHECK_OUTPUT
for heads, plan in splits.items():
    L.assert_close(plan.achieved, ratio, one_neuron, f"{heads} heads: as many parameters, to one neuron a layer")
# %%
amps = len(plans[seed, ratio].heads[0])
for s in seeds:
    runs["best split + repair", s] = read(repaired(at_budget(scores[s], best), batches[s]))
    values["best split + repair", s] = runs["best split + repair", s].value
kept = f"{best} of {anatomy.heads} heads and {len(splits[best].neurons[0])} of {anatomy.neurons} neurons"
print(f"Text kept apart chooses {kept}; AMP's rule keeps {amps} heads.")
print(against("best split + repair", "AMP + sequential repair"))
unrepaired = min(plain, key=plain.get)
print(f"Without repair, on test text, the best split keeps {unrepaired} heads.")
right_answers = {
    name: asked(m)
    for name, m in {"best split": tried[best], "AMP's split": tried.get(amps, first["AMP + sequential repair"])}.items()
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
# The parts weigh differently in a large model, and the paper measures accuracy on other tasks. What carries over is the
# procedure: let text that nothing was fitted to decide, then test.
#
# ## Repair against LoRA
#
# LoRA (lesson 4) changes all projections, with gradients; repair changes two in each layer, without. With
# `refit_inputs=True` it also solves for those before the heads and neurons, which in the pruned model no longer see
# what they were trained on. First at **equal data**: both get the same calibration texts, LoRA with the loss on every
# token. Then LoRA by
# lesson 4's recipe, on the *responses* of other rows; and repair first, LoRA after. **Predict** the winner, by
# perplexity and by accuracy.
# %%
rivals = ("AMP + repair", "AMP + LoRA on the same texts", "AMP + LoRA on responses", "repair, then LoRA on responses")
L.predict("the lowest perplexity after one of these", None, among=rivals)
# %%
def lora(start, source=responses, **settings):
    config = amp.RecoveryConfig(learning_rate=rate, seed=seed, rows_at_once=sizes.get("rows"), **settings)
    return amp.recover(start, tokenizer, source, config, progress=False)


epochs = round(2 * samples / calibration)  # as many steps as on the responses, about
with tempfile.TemporaryDirectory() as folder:
    same_texts = Path(folder) / "texts.jsonl"
    same_texts.write_text("\n".join(json.dumps({"text": text}) for text in drawn(seed)), encoding="utf-8")
    on_texts = lora(first["AMP"], source=same_texts, samples=calibration, epochs=epochs, loss="text")
recipe = {
    "AMP + LoRA on responses": lora(first["AMP"], samples=samples),
    "repair, then LoRA on responses": lora(first["AMP + sequential repair"], samples=samples),
}
compared = {
    "AMP": first["AMP"],
    "AMP + repair": first["AMP + sequential repair"],
    "AMP + repair, reads too": repaired(plans[seed, ratio], batches[seed], refit_inputs=True),
    "AMP + LoRA on the same texts": on_texts.model,
    **{name: found_.model for name, found_ in recipe.items()},
}
result = {"dense": (base, asked(dense))}
result |= {n: (perplexity(m), asked(m)) for n, m in compared.items()}
for name, (p, m) in result.items():
    print(f"{name:32s} perplexity {p:7.2f}   accuracy {m.interval.percent()} %")
print(f"One repair took {repair_seconds:.1f} s, LoRA on the same texts {on_texts.seconds:.1f} s.")
print(f"LoRA on the same texts: {len(on_texts.history)} steps over {calibration} texts, {on_texts.tokens:,} tokens;")
L.seen("the lowest perplexity after one of these", min(rivals, key=lambda name: result[name][0]))
on_answers = recipe["AMP + LoRA on responses"]
print(f"on responses: {len(on_answers.history)} steps over {samples} rows, {on_answers.tokens:,} tokens of answers.")
# %%
def compare(ours, other):
    (p, m), (q, n) = result[ours], result[other]
    gap = amp.compare(m, n)  # item by item
    told = "told apart" if gap.clear else "not told apart"
    print(f"{ours} against {other}:")
    print(f"  perplexity {p:.2f} against {q:.2f}, accuracy {gap.points()}: {told}.")


compare("AMP + repair", "AMP + LoRA on the same texts")
compare("AMP + repair, reads too", "AMP + repair")
compare("AMP + repair", "AMP + LoRA on responses")
compare("repair, then LoRA on responses", "AMP + LoRA on responses")
compare("repair, then LoRA on responses", "AMP + repair")
if result["repair, then LoRA on responses"][0] > result["AMP + repair"][0]:
    print("LoRA on responses raised the perplexity of running text after repair. It saw rows that end after an answer.")
# %% [markdown]
# Mind what is measured. Perplexity is of running text, and training on responses is about answers: it may raise the one
# number and the other too. Lesson 4 also shows what a *dense* model gains from the same training.
#
# ## A claim to test: leave the stream alone
#
# TransAct shrinks what is inside the modules (heads, neurons) and preserves what flows between them, the residual
# stream, as that is "sensitive to perturbations" [abstract]. That can be tested. Disturb the activations at one
# place in every layer: **inside attention** (what enters its output projection), **inside the MLP** (what enters its
# own), or **between modules** (the stream that enters the layer). Twice, each time by equal means:
#
# - *noise* of an equal share of the energy that is there;
# - *directions*: keep the same share of each place's principal directions, and drop the rest.
#
# **Predict:** at which place does the same disturbance cost most?
# %%
L.predict("the most sensitive place", None, among=("inside attention", "inside the MLP", "between modules"))
# %%
blocks = list(dense.get_submodule(anatomy.family.layers).children())
places = {
    "inside attention": [projection(anatomy, i, "heads") for i in range(layers)],
    "inside the MLP": [projection(anatomy, i, "neurons") for i in range(layers)],
    "between modules": blocks,
}


@contextmanager
def disturbed(modules, change):
    """While it lasts, what enters module number i goes through change(i, x) first."""

    def hook(i):
        def before(_, args, kwargs):
            if args:
                return (change(i, args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": change(i, kwargs["hidden_states"])}

        return before

    handles = [m.register_forward_pre_hook(hook(i), with_kwargs=True) for i, m in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def gather(i, x):
    rows = x[mask].double()
    grams[i] = grams[i] + rows.T @ rows
    return x


directions, energies = {}, {}
for name, modules in places.items():
    grams = [0.0] * layers
    for batch in batches[seed]:
        mask = batch["attention_mask"].bool().to(dense.device)
        with torch.no_grad(), disturbed(modules, gather):
            dense.base_model(**{k: t.to(dense.device) for k, t in batch.items()}, use_cache=False)
    parted = [torch.linalg.eigh(g) for g in grams]
    directions[name] = [vectors.flip(1).to(dense.dtype) for _, vectors in parted]
    energies[name] = [squares.flip(0).clamp(min=0).cumsum(0) / squares.sum() for squares, _ in parted]


def noisy(name, share):
    draw = torch.Generator(device=dense.device).manual_seed(seed)

    def change(i, x):
        noise = torch.randn(x.shape, generator=draw, device=x.device, dtype=x.dtype)
        return x + noise * (share * x.square().mean(-1, keepdim=True)).sqrt()

    return change


def fewer_directions(name, share):
    def change(i, x):
        q = directions[name][i][:, : max(1, round((1 - share) * x.shape[-1]))]
        return x @ q @ q.T

    return change


few_texts = test_texts[: len(test_texts) // 2]
undisturbed = perplexity(dense, few_texts)
tests = {"noise": (noisy, (0.01, 0.03, 0.1)), "directions": (fewer_directions, (0.25, 0.5, 0.75))}
cost = {}
for test, (make, shares) in tests.items():
    for name, modules in places.items():
        for share in shares:
            with disturbed(modules, make(name, share)):
                cost[test, name, share] = math.log(perplexity(dense, few_texts) / undisturbed)
fig, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
words = []
for axis, (test, (_, shares)) in zip(axes, tests.items(), strict=True):
    for k, name in enumerate(places):
        line = [cost[test, name, share] for share in shares]
        axis.plot(
            [100 * s for s in shares],
            [max(v, 1e-4) for v in line],
            color=lesson.PALETTE[k],
            marker=lesson.MARKERS[k],
            label=name,
        )
        words.append(f"{test}, {name}: " + ", ".join(f"{v:.2g}" for v in line))
    axis.set(yscale="log")
axes[0].set(xscale="log", xlabel="noise, % of the energy at the place")
axes[1].set_xlabel("principal directions dropped (%)")
axes[0].set_ylabel("rise of the loss (nats per token)")
axes[0].legend(frameon=False)
L.show(
    fig, alt="Rise of the loss when activations are disturbed at one place in every layer: " + "; ".join(words) + "."
)
# %%
sensitive = {}
for test, (_, shares) in tests.items():
    share = shares[len(shares) // 2]
    ranked = sorted(places, key=lambda name: -cost[test, name, share])
    print(f"{test}, {share:.0%}: " + ", ".join(f"{name} {cost[test, name, share]:+.3f}" for name in ranked), end=" ")
    print("nats per token.")
    worst = [max(places, key=lambda name: cost[test, name, s]) for s in shares]
    sensitive[test] = sum(name == "between modules" for name in worst), len(worst)
    print(f"  Between modules is the most sensitive place at {sensitive[test][0]} of {len(worst)} strengths.")
total = {name: sum(cost[test, name, s] for test, (_, shares) in tests.items() for s in shares) for name in places}
L.seen("the most sensitive place", max(total, key=total.get))
half = {name: sum(e[len(e) // 2 - 1].item() for e in of_layer) / layers for name, of_layer in energies.items()}
print("The leading half of the directions holds " + ", ".join(f"{v:.1%} {name}" for name, v in half.items()) + ".")
if all(times == of for times, of in sensitive.values()):
    print("So far the claim holds here: equally disturbed, the stream costs most.")
elif not any(times for times, _ in sensitive.values()):
    print("So far the claim fails here: the stream is nowhere the most sensitive place.")
else:
    print("So far the claim holds in part: it depends on how the stream is disturbed.")
# %% [markdown]
# One reason is plain. What enters a projection is one of many summands of the stream. What is wrong *in* the stream is
# read by every later layer, and by the output head.
#
# Sensitive is one thing; *how much is there to spare* is another. The next section cuts the stream itself.
#
# ## The stream's own directions
#
# An RMS norm divides by a length. A rotation leaves lengths alone. So if the norm's weight is first folded into the
# matrices that read it, the whole stream can be turned by any orthogonal Q: all that write to it are turned, all that
# read from it are turned back, and **no logit changes**. SliceGPT has a Q of its own for every layer, and pays with an
# own model class. With one shared Q the result is an ordinary checkpoint with a smaller `hidden_size`.
# %% tags=["hide-input"]
L.drawing("rotation")
# %% [markdown]
# Q holds the principal directions of what all norms give, from one pass over the calibration text. A layer norm also
# subtracts a mean, which no rotation respects. Such a model is refused:
# %%
try:
    turn = amp.rotation(dense, batches[seed])
    print(f"{anatomy.hidden} directions, from {turn.tokens:,} tokens.")
except ValueError as refusal:
    turn = None
    print(refusal)


# %%
@torch.no_grad()
def turned(q):
    """The dense model with norms folded and its stream turned by q."""
    old, new = dict(dense.named_parameters(remove_duplicate=False)), {}
    for name, role in roles(anatomy).items():
        w = old[name].double()
        if role.part == "reads":  # from the stream, through a norm
            w = w * (old[f"{role.norm}.weight"].double() + offset) @ q
        elif role.part == "writes":
            w = q.T @ w
        elif role.part in ("rows", "bias"):  # the embedding's rows are written to the stream, and biases are
            w = w @ q
        elif role.part == "norm":
            w = torch.ones_like(w) - offset
        new[name] = w.to(old[name].dtype)
    settings = dense.config.to_dict() | dict(tie_word_embeddings=False)  # the last norm went into the head alone
    small = AutoModelForCausalLM.from_config(type(dense.config).from_dict(settings), dtype=dense.dtype)
    small.load_state_dict(new, strict=False)
    return small.to(dense.device).eval()


# %%
# NBVAL_CHECK_OUTPUT
if turn is not None:
    offset = stream_of(anatomy).offset  # Gemma's norms multiply by 1 + weight
    ids = batches[seed][0]["input_ids"][:1, :32].to(dense.device)
    with torch.no_grad():
        before, after = (m(input_ids=ids).logits for m in (dense, turned(turn.vectors.to(dense.device))))
    L.assert_close(after, before, 1e-4, "turned, the model gives the same logits")
# %% [markdown]
# Nothing is lost so far. Now drop the directions that carry least. **Predict:** how many of the directions carry 99 %
# of the energy?
# %%
L.predict("directions that carry 99 % of the energy", None)
# %%
if turn is not None:
    energy = turn.energy.tolist()
    widths = {r: hidden_at(anatomy, r) for r in (ratio, ratio_deep)}
    fig, axes = plt.subplots(figsize=(7, 3.4))
    axes.plot(range(1, len(energy) + 1), [100 * e for e in energy], color=lesson.PALETTE[0])
    for k, (r, hidden) in enumerate(widths.items()):
        axes.plot([hidden], [100 * energy[hidden - 1]], lesson.MARKERS[k + 1], color=lesson.PALETTE[k + 1],
                  label=f"hidden size at {r:.0%}: {hidden}, {energy[hidden - 1]:.1%}")  # fmt: skip
    axes.set(xlabel="directions kept", ylabel="energy kept (%)", ylim=(0, 102))
    axes.legend(frameon=False, loc="lower right")
    enough = next(k + 1 for k, e in enumerate(energy) if e >= 0.99)
    L.show(fig, alt=f"Energy kept against directions kept, rising steeply: {enough} of {len(energy)} carry 99 %; "
           + ", ".join(f"{h} carry {100 * energy[h - 1]:.1f} %" for h in widths.values()) + ".")  # fmt: skip
    print(f"{enough} of {len(energy)} directions carry 99 % of the energy ({enough / len(energy):.0%}).")
    low = enough < len(energy) / 2
    print(
        "This stream is of low rank: slicing looks better here than it is."
        if low
        else "This stream is not of low rank."
    )
    L.seen("directions that carry 99 % of the energy", enough, within=len(energy) // 10)
# %% [markdown]
# Slicing against cutting inside the modules, at equal total parameters. This is also the second half of TransAct's
# claim: is it better to leave the stream whole? **Predict** for both ratios.
# %%
L.predict("the better at the smaller ratio", None, among=("AMP + repair", "sliced + repair"))
# %%
if turn is not None:
    rivals = {(ratio, name): result[name] for name in ("AMP", "AMP + repair")}
    deep = plans[seed, ratio_deep]
    more = {
        (ratio_deep, "AMP"): amp.prune(dense, deep).model,
        (ratio_deep, "AMP + repair"): repaired(deep, batches[seed]),
        **{(r, "stream sliced"): amp.slice_hidden(dense, turn, hidden).model for r, hidden in widths.items()},
        **{
            (r, "sliced + repair"): repaired(whole, batches[seed], refit_inputs=True, hidden_size=h)
            for r, h in widths.items()
        },
    }
    rivals |= {key: (perplexity(m), asked(m)) for key, m in more.items()}
    gone = [1 - m.num_parameters() / dense.num_parameters() for (_, name), m in more.items() if name == "stream sliced"]
    print(f"Slicing removes {gone[0]:.1%} and {gone[1]:.1%} of all parameters, not less than the plans.")
    for (r, name), (p, a) in sorted(rivals.items(), key=lambda row: row[0][0]):
        print(f"{r:.0%} {name:15s} perplexity {p:8.2f}   accuracy {a.interval.percent()} %")
    better = {}
    for r in (ratio, ratio_deep):
        measured = {name: found for (at, name), found in rivals.items() if at == r}
        print(f"At {r:.0%}, by perplexity: {' < '.join(sorted(measured, key=lambda name: measured[name][0]))}.")
        (p, a), (q, b) = measured["sliced + repair"], measured["AMP + repair"]
        gap = amp.compare(a, b)
        better[r] = p < q
        told = "told apart" if gap.clear else "not told apart"
        print(f"  Sliced + repair against AMP + repair: accuracy {gap.points()}, {told}.")
    L.seen("the better at the smaller ratio", "sliced + repair" if better[ratio] else "AMP + repair")
    if not any(better.values()):
        print("At equal parameters, leaving the stream whole and repairing inside the modules was better here.")
    elif all(better.values()):
        print("At equal parameters, slicing the stream was better here, whatever its sensitivity.")
    else:
        print("At equal parameters, which is better depends on the ratio here.")


# %% [markdown]
# **A caution.** A small model trained briefly can have a stream of low rank, and then slicing flatters itself. One
# trained to its capacity uses nearly all of it. And on LLaMA-2-7B SliceGPT is the worst of several at equal ratio
# [second-hand]. Read the energy curve of *your* model before you believe a contest with slicing in it.
#
# ## One budget
#
# Heads, neurons, whole layers (lesson 7) and directions of the stream: how much from each? `amp.fit_budget` searches.
# It measures what each costs alone, without repair, and tries the shape whose costs add up to least; what repair leaves
# of them it learns from the candidates before. Every candidate meets the target, is repaired from part of the
# calibration text and judged on the rest of it; the winner is made again from all. Its cost is said beforehand: so many
# trials, one repair each, and one more. **Predict** the mix that wins.
# %%
L.predict("what the winner cuts most of", None, among=("hidden size", "layers", "heads", "neurons"))
# %%
trials = sizes["trials"]
may_go = ("heads", "neurons", "layers") + (("hidden",) if turn is not None else ())
fitted = amp.fit_budget(dense, batches[seed], pruning_ratio=ratio, cut=may_go, trials=trials, progress=False)
print(fitted.report)
seconds = sum(t.seconds for t in fitted.report.trials)
print(f"{len(fitted.report.trials)} trials in {seconds:.0f} s; what could go: {', '.join(may_go)}.")
# %%
# NBVAL_CHECK_OUTPUT
short = max(0.0, ratio - (1 - fitted.model.num_parameters() / dense.num_parameters()))
L.assert_close(short, 0.0, 0.0, "the winner removes no less than was asked")
L.assert_close(float(len(fitted.report.trials) <= trials), 1.0, 0.0, "and cost no more trials than was said")
# %%
shape, whole_shape = fitted.report.shape, (anatomy.hidden, layers, anatomy.heads, anatomy.neurons)
named = ("hidden size", "layers", "heads", "neurons")
kept = dict(zip(named, (shape.hidden, shape.layers, shape.heads, shape.neurons), strict=True))
touched = [f"{kept[n]} of {most} ({n})" for n, most in zip(named, whole_shape, strict=True) if kept[n] < most]
print(f"The search keeps {', '.join(touched)}; all else stays whole.")
L.seen("what the winner cuts most of", min(named, key=lambda n: kept[n] / whole_shape[named.index(n)]))
result["one budget"] = perplexity(fitted.model), asked(fitted.model)
compare("one budget", "AMP + repair")
print(f"The best split of heads and neurons alone gave {values['best split + repair', seed]:.2f}.")
if len(touched) < len(may_go):
    print("A budget over everything need not touch everything.")


# %% [markdown]
# Search by hand: what does a mix remove, and what does it cost before repair? (Sliders, in a live notebook.)
# %%
each = anatomy.group_size
half = max(1, anatomy.groups // 2) * each  # of the heads, in whole groups


def mix(stay_heads: int = half, stay_neurons: int = anatomy.neurons, stay_layers: int = layers) -> None:
    """Parameters and perplexity with so many heads, neurons and layers; of the layers the last but one goes first."""
    left = [*range(stay_layers - 1), layers - 1] if stay_layers < layers else None
    chosen = replace(amp.keep(dense, scores[seed], heads=stay_heads, neurons=stay_neurons), layers=left)
    with amp.masked(dense, chosen):
        cost = perplexity(dense, test_texts[:12])
    told = f"{stay_heads} heads, {stay_neurons} neurons, {stay_layers} layers"
    print(f"{told}: {amp.preview(dense, chosen).ratio:.1%} of all parameters go, perplexity {cost:.2f}")


lesson.widget(
    mix, stay_heads=(each, anatomy.heads, each), stay_neurons=(8, anatomy.neurons, 8), stay_layers=(2, layers)
)
# %% [markdown]
# ## The result
#
# One number for the lesson: by what factor repair changes AMP's perplexity, seed by seed and window by window. Below 1
# it helps. The baseline is *random choice with repair*: does the choice still matter? The control solves for shuffled
# targets.
# %%
def factor(name):
    return amp.compare(of(name), of("AMP"))


gain = factor("AMP + sequential repair")
shuffled, chance = factor("AMP + shuffled targets"), factor("random + repair")
L.signature(
    f"Perplexity of AMP with repair, as a multiple of AMP's, {ratio:.0%} removed",
    math.exp(gain.difference),
    math.exp(gain.low),
    math.exp(gain.high),
    "×",
    baseline=("random choice with repair", math.exp(chance.difference)),
    control=("AMP with repair for shuffled targets", math.exp(shuffled.difference)),
)
for name in names:
    for s in seeds:
        L.record.metric(f"perplexity, {name}, seed {s}", values[name, s])
# %%
if gain.high < 0:
    print(f"Repair helps, and the interval lies below 1: perplexity falls by {1 - math.exp(gain.difference):.0%}.")
else:
    print("The interval reaches 1: on this model and these draws repair is not shown to help.")
failed = amp.compare(of("AMP + shuffled targets"), of("AMP + sequential repair"))
if failed.clear and failed.difference > 0:
    effect = "raise" if shuffled.difference > 0 else "change"
    print(f"The control failed, as it must: shuffled targets {effect} perplexity.")
else:
    print("The control is not clear of the result: do not trust this measurement.")
added, left = (math.log(sure[name].value / base) for name in ("AMP", "AMP + sequential repair"))
whole_search = result["one budget"][0]
L.conclude({
    f"Of the loss that AMP's cut adds, repair makes up for {1 - left / added:.0%}, without any training.": gain.high < 0,
    f"What it can't make up for is a bad choice: after random choice it leaves "
    f"{math.exp(chance.difference - gain.difference):.1f} times the perplexity.": chance.difference > gain.difference,
    f"The split is worth as much again: one budget ends at {whole_search:.2f}, AMP's split with repair at "
    f"{values['AMP + sequential repair', seed]:.2f}.": whole_search < values["AMP + sequential repair", seed],
})  # fmt: skip
# %% [markdown]
# ## What this does not show
# - **A large model.** In a model of billions of parameters a projection has thousands of inputs, and needs far more
#   tokens than that. How much of what its cut breaks is linear, this lesson can't say.
# - **The neurons that stay.** Here they are as they were, and only what reads and writes around them is solved for.
#   `amp.repair(…, polish=30)` also moves them, by gradient steps within each layer: *ours: repair polishes* in
#   [the leaderboard](../docs/leaderboard.md).
# - **Other text.** Calibration, kept-apart and test text are of one small world. Text from elsewhere is a harder test.
# - **The best of LoRA.** One learning rate, a few dozen steps. Lesson 4 shows how much hangs on both.
# - **Where TransAct ends.** It trains on billions of tokens after its cuts; here nothing is trained after a slice.
# - **Speed.** All plans are compared by parameters. Lesson 5 measures time, and equal parameters are not equal time.
#
# ## References
# - B. Hassibi, D. G. Stork: *Second order derivatives for network pruning: Optimal Brain Surgeon*, NeurIPS 5 (1993).
# - E. Frantar, D. Alistarh: *SparseGPT*, [arXiv 2301.00774](https://arxiv.org/abs/2301.00774).
# - E. Kurtic, E. Frantar, D. Alistarh: *ZipLM*, [arXiv 2302.04089](https://arxiv.org/abs/2302.04089).
# - S. Ashkboos and others: *SliceGPT*, [arXiv 2401.15024](https://arxiv.org/abs/2401.15024).
# - TransAct, [arXiv 2407.05690](https://arxiv.org/abs/2407.05690); AMP,
#   [arXiv 2504.21174](https://arxiv.org/abs/2504.21174), ablation second-hand, from a summary.
#
# ## Where next
# Read `repair.py` and `normal_equations.py` in `amp_tutorial/methods`: they are this lesson, with memory bounded layer
# by layer.
# Then take a model of your own (notebook B), and keep some text apart.
# %%
L.finish()
