# lesson: Better than AMP
# %% [markdown]
# # 8 · Better than AMP: repair
#
# AMP chooses what goes and leaves the rest as it was. But the rest was tuned to company that is now gone. Part of what
# the cut breaks is *linear*: the heads and neurons that stay carry some of the same signal, and an output projection
# with other weights could read it from them. Finding those weights is a linear least-squares problem, which has a
# closed solution: no training, no gradients, no new parameters.
#
# **Objectives.** After this lesson you can
# - solve for an output projection after a cut, and say what the ridge is for;
# - see a repair over-fit its calibration text, with held-out text as the control;
# - tell one-pass from sequential repair, and choose what goes by the error that is left after repair;
# - put repair and LoRA side by side on the same data, by perplexity *and* accuracy.
#
# **Prerequisites.** Lessons 0 to 3; lesson 4 for LoRA, lesson 5 for intervals. **Time:** {{minutes}}.
# %% tags=["parameters"]
model: str = "tiny-llama"  # or "tiny-llama-gqa", "tiny-phi", "smollm2-135m", a local folder, a hub id
ratio: float = 0.30  # share of all parameters to remove
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
# %% tags=["hide-input"]
import json
import math
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import amp_tutorial as amp
from amp_tutorial.core.anatomy import weight_of
from amp_tutorial.course import lesson
from amp_tutorial.files.texts import pairs
from amp_tutorial.methods.normal_equations import Normal

L = lesson.start(
    "08_better",
    dict(model=model, ratio=ratio, calibration=calibration, samples=samples, rate=rate, seed=seed, text=text,
         responses=responses, tasks=tasks, task_folder=task_folder, preset=preset, out=out),
)  # fmt: skip
source, tasks = L.material(text, tasks, task_folder)
responses = responses or ("tinyworld" if source == "tinyworld" else "alpaca")
pairs(responses)  # what is not to be had is said before anything else
sizes = {
    "smallest": dict(seeds=3, items=40, texts=48, letters=None),
    "real": dict(seeds=3, items=20, texts=32, letters=500, rows=2),  # letters of each text; rows that train at once
    "full": dict(seeds=10, items=200, texts=500, letters=None),
}[L.size]
seeds = range(seed, seed + sizes["seeds"])
bench = lesson.Bench(
    L, source, calibration, sizes["texts"], sizes["letters"], tasks, sizes["items"], task_folder
)  # calibration draws, text kept apart, held-out text, tasks
dense, read, asked = bench.dense, bench.read, bench.asked
anatomy = amp.Anatomy.of(dense)
layers, head_dim = anatomy.layers, anatomy.head_dim


def perplexity(what, texts=None):
    return read(what, texts).value


parts = ["heads", "neurons"]
batches = {s: bench.batches(bench.drawn(s)) for s in seeds}
scores = {s: amp.score(dense, batches[s], seed=s) for s in seeds}
plans = {s: amp.plan(dense, scores[s], pruning_ratio=ratio) for s in seeds}
base = read(dense)
print(f"Dense: perplexity {base.value:.2f}. {plans[seed].achieved:.1%} of all parameters will go.")
print(base.protocol)
base = base.value
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
# *Medium, 8 minutes.* `x` is (tokens, in), `y` is (tokens, out), `old` is (out, in), `ridge` is λ. Return the new
# weight (out, in).
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
# (`tiny-phi`), is one more column, of an input that is always 1. (Folded: hooks that keep what enters and leaves.)
# %% tags=["hide-input"]
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
# %%
def equation(found, plan, i, part):
    """X, Y and the old weight of one projection after the cut."""
    (x, y), module, kept = found[i, part], projection(anatomy, i, part), columns(plan, i, part)
    x, old = x[:, kept], weight_of(module).detach()[:, kept].double()
    if module.bias is None:
        return x, y, old
    return torch.cat([x, torch.ones_like(x[:, :1])], 1), y, torch.cat([old, module.bias.detach().double()[:, None]], 1)
# %%
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
by_hand = solved(plans[seed], found)
module = amp.repair(dense, plans[seed], batches[seed], sequential=False, ridge=0.01, progress=False)
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
# (mean square, on the calibration tokens). **Predict.** Of the energy lost behind the neurons, how much is still lost
# after the refit: half, or less? Is it better or worse behind the heads?
# %%
L.predict("share of the lost energy still lost behind the neurons, in %", None)
# %% tags=["hide-input"]
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
# On the calibration tokens a refit can't come out worse than none: the old weights are a candidate, and one without
# penalty. On other text it can.
#
# ## Too little text
#
# For each output a projection has as many unknowns as inputs stay. With fewer tokens than that, Y can be fitted
# exactly, noise and all. So we solve the MLP projection of a middle layer from more and more text, once with next to no
# ridge and once with λ **chosen by the calibration text alone**: solve on one half, test on the other, and take the
# best λ of $1, 10^{-1} \ldots 10^{-6}$. This is the rule of `amp.repair`. The error on *held-out* text is the control.
#
# **Predict.** Without a ridge, from how many tokens is the error on held-out text worst?
# %%
L.predict("tokens at which the held-out error without a ridge is worst", None)
# %%
place = layers // 2, "neurons"
plan = plans[seed]
whole = amp.keep(dense, scores[seed], heads=anatomy.heads)
control = equation(look(bench.batches(bench.apart)), plan, *place)
all_rows = {s: equation(look(batches[s]), plan, *place) for s in seeds}
most = min(len(x) for x, _, _ in all_rows.values())
counts = [n for n in (64, 128, 256, 512, 1024, 2048, 4096, 8192) if n < most] + [most]
# %%
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
# %% tags=["hide-input"]
floor = 0.1  # what is fitted exactly is drawn here
fig, axes = plt.subplots(figsize=(7, 4))
words = []
for k, line in enumerate(("fitted", "held out", "fitted, ridge", "held out, ridge")):
    middle = [math.exp(sum(math.log(max(v, 1e-6)) for v in curves[line, n]) / len(seeds)) for n in counts]
    style = dict(color=lesson.PALETTE[k], marker=lesson.MARKERS[k], ls="--" if "ridge" in line else "-", label=line)
    axes.plot(counts, [max(100 * v, floor) for v in middle], **style)
    for n in counts:
        axes.plot(
            [n] * len(seeds), [max(100 * v, floor) for v in curves[line, n]], ".", color=style["color"], markersize=4
        )
    words.append(f"{line} " + ", ".join(f"{100 * v:.2g}" for v in middle))
axes.axhline(100 * uncut, color="0.2", ls=":", lw=1.2)
axes.text(counts[-1], 100 * uncut * 1.08, "held out, no refit", ha="right", va="bottom", fontsize="small")
axes.axvline(len(plan.neurons[0]), color="0.7", lw=1)
axes.text(
    len(plan.neurons[0]), 0.03, " as many tokens as inputs", transform=axes.get_xaxis_transform(), fontsize="small"
)
axes.set(xscale="log", yscale="log", xlabel="calibration tokens", ylabel="energy of the output lost (%)")
axes.set_ylim(bottom=0.8 * floor)
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
L.show(
    fig,
    alt=f"Energy lost by one MLP projection, in percent, after a refit from {', '.join(map(str, counts))} tokens, "
    f"log axes, mean over seeds (dots: seeds): {'; '.join(words)}. Held out without refit: {100 * uncut:.3g}.",
)
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
L.seen("tokens at which the held-out error without a ridge is worst", max(counts, key=lambda n: means["held out", n]), within=64)
# %% [markdown]
# (What is fitted exactly is drawn at 0.1 %.) A fitted error is no evidence: where it is next to nothing, the error on
# other text says how much was noise. Look for the worst point of the held-out curve without a ridge. With fewer tokens
# than inputs many solutions fit exactly, and the one nearest to the old weights is taken; with about as many there is
# just one, and it has to follow every token. Whoever tunes a repair by its fitted error tunes it to that text. Whoever
# tunes it by the test set has no test set left.
#
# ## Layer after layer
#
# So far X and Y came from the dense model, in **one pass**. But in the pruned model layer 3 does not see the dense
# model's stream. It sees what layers 0 to 2 make of it after their cuts. **Sequential** repair takes X from the pruned
# and already repaired model. And since every module, attention or MLP, only adds to the residual stream, repair can do
# more than imitate.
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
# This is the target that `amp.repair` solves for by default. The first MLP shows it: the attention before it has been
# refitted but does not quite write what the dense one wrote, and the MLP has to make up for the difference.
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
# Now the whole model, and the error of its stream on held-out text. **Predict.** Of cut alone, one pass and sequential,
# whose error grows by the most percentage points from the first layer to the last?
# %%
L.predict("the error that grows by most points", None, among=("cut alone", "one pass", "sequential"))
# %% tags=["hide-input"]
@torch.no_grad()
def stream(what, texts):
    """The residual stream behind every layer (before the last norm), (layers, tokens, hidden)."""
    states, found = [], []
    blocks = what.get_submodule(amp.Anatomy.of(what).family.layers).children()
    handles = [
        block.register_forward_hook(lambda _, args, out: states.append(out[0] if isinstance(out, tuple) else out))
        for block in blocks
    ]
    for batch in bench.batches(texts):
        states.clear()
        what.base_model(**{name: t.to(dense.device) for name, t in batch.items()}, use_cache=False)
        found.append(torch.stack(states)[:, batch["attention_mask"].bool().to(dense.device)])
    for handle in handles:
        handle.remove()
    return torch.cat(found, 1).double()
# %%
def repaired(plan, batches, **settings):
    return amp.repair(dense, plan, batches, progress=False, **settings).model


cut, text = plans[seed], batches[seed]
shown = {
    "cut alone": amp.prune(dense, cut).model,
    "one pass": repaired(cut, text, sequential=False),
    "sequential": repaired(cut, text),
}
right = stream(dense, bench.apart)
drift = {
    name: ((stream(m, bench.apart) - right).square().sum((1, 2)) / right.square().sum((1, 2))).tolist()
    for name, m in shown.items()
}
# %% tags=["hide-input"]
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
L.seen("the error that grows by most points", max(drift, key=lambda name: drift[name][-1] - drift[name][0]))
# %% [markdown]
# ## Choose by what is left after repair
#
# AMP asks how much a head or neuron writes. If the rest can be solved for, a better question is **how much is lost that
# the rest can't take over**. Two loud neurons that say the same are worth one. With C the inverse of $X^{\top}X$,
# taking input j away and refitting all others adds exactly $\lVert w_j \rVert^2 / C_{jj}$ to the squared error. This is
# *optimal brain surgeon*.
#
# ### Exercise 3 · What does an input cost?
# *Medium, 5 minutes.* `x` is (tokens, in), `old` is (out, in), and the old weight solves the equations. Return, for
# each input, by how much the squared error grows if it goes and all others are refitted.
# %%
def cost_of_each(x, old):
    """The cost of every input, after the others were refitted."""
    ...  # your answer here


cost_of_each = L.check(cost_of_each, "l8_cost")
# %% [markdown]
# {{hint:l8_cost}}
#
# {{solution:l8_cost}}
#
# Here is a neuron of middling cost, by this formula, and by taking it away and solving anew:
# %%
# NBVAL_CHECK_OUTPUT
x, y, old = equation(found, whole, *place)  # nothing gone: here the old weight solves the equations
costs = cost_of_each(x, old)[: anatomy.neurons]
j = costs.argsort()[anatomy.neurons // 2].item()
others = [k for k in range(x.shape[1]) if k != j]
anew = (y - x[:, others] @ refit(x[:, others], y, old[:, others], 0.0).T).square().sum()
L.assert_close(costs[j] / anew, 1.0, 1e-3, "the cost of a neuron, by the formula and by solving without it")
# %% [markdown]
# `reselect=True` keeps AMP's widths, removes the cheapest head or neuron by this rule, refits, and removes the next.
#
# ## The table, with a baseline and a control
#
# Here is everything side by side, over several draws of calibration text, at equal widths. The baseline is random
# choice *with* repair. The control solves the same equations with the targets **shuffled** over tokens: X and Y are
# real, but do not belong together. It must not help. And one question more: what if the repair is fed **nonsense**, the
# tokens of the calibration text drawn one by one in random order? **Predict** the order, and which is better: AMP as it
# is cut, or a random choice with repair.
# %%
L.predict("the better of AMP and random + repair", None, among=("AMP", "random + repair", "not told apart"))
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
# %%
runs = {}
first = {}  # the models of the first seed, which are looked at again
for s in seeds:
    cut, text = plans[s], batches[s]
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
# %% tags=["hide-input"]
odd = perplexity(repaired(plans[seed], nonsense(batches[seed], seed)))
names = list(systems)
values = {key: run.value for key, run in runs.items()}


def of(name):
    return [runs[name, s] for s in seeds]


sure = {name: amp.interval(*of(name)) for name in names}
print(f"Perplexity, {ratio:.0%} of all parameters removed, {len(seeds)} seeds (dense {base:.2f}):")
for name in names:
    print(f"  {name:26s} {sure[name].bounds()}")
# %% tags=["hide-input"]
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
alone, mended = (values[name, seed] for name in ("AMP", "AMP + sequential repair"))
share = math.log(alone / odd) / math.log(alone / mended)
print(f"Nonsense, first seed: perplexity {odd:.2f}. That is {share:.0%} of the gain in loss that text gives.")
lot = amp.compare(of("random + repair"), of("AMP"))
better = "not told apart" if not lot.clear else "random + repair" if lot.difference < 0 else "AMP"
L.seen("the better of AMP and random + repair", better)
# %% [markdown]
# Pairs share the draw of calibration text, so differences are taken draw by draw. Where even nonsense helps, much of
# what a cut breaks does not depend on what the text says: a constant part of the output, or signals that heads and
# neurons share.
#
# ## Repair against LoRA
#
# LoRA (lesson 4) changes all projections, with gradients; repair changes two in each layer, without. With
# `refit_inputs=True` repair also solves for the projections that lead into the heads and neurons, which in the pruned
# model no longer see what they were trained on. The first comparison is at **equal data**: both get the same
# calibration texts, LoRA with the loss on every token. Then comes LoRA by lesson 4's recipe, on the *responses* of
# other rows; and last repair first, LoRA after. **Predict** the winner, by perplexity and by accuracy.
# %%
rivals = ("AMP + repair", "AMP + LoRA on the same texts", "AMP + LoRA on responses", "repair, then LoRA on responses")
L.predict("the lowest perplexity after one of these", None, among=rivals)
# %%
def lora(start, source=responses, **settings):
    config = amp.RecoveryConfig(learning_rate=rate, seed=seed, rows_at_once=sizes.get("rows"), **settings)
    return amp.recover(start, bench.tokenizer, source, config, progress=False)


epochs = round(2 * samples / calibration)  # as many steps as on the responses, about
with tempfile.TemporaryDirectory() as folder:
    same_texts = Path(folder) / "texts.jsonl"
    same_texts.write_text("\n".join(json.dumps({"text": text}) for text in bench.drawn(seed)), encoding="utf-8")
    on_texts = lora(first["AMP"], source=same_texts, samples=calibration, epochs=epochs, loss="text")
recipe = {
    "AMP + LoRA on responses": lora(first["AMP"], samples=samples),
    "repair, then LoRA on responses": lora(first["AMP + sequential repair"], samples=samples),
}
# %%
compared = {
    "AMP": first["AMP"],
    "AMP + repair": first["AMP + sequential repair"],
    "AMP + repair, reads too": repaired(plans[seed], batches[seed], refit_inputs=True),
    "AMP + LoRA on the same texts": on_texts.model,
    **{name: found_.model for name, found_ in recipe.items()},
}
result = {"dense": (base, asked(dense))}
result |= {n: (perplexity(m), asked(m)) for n, m in compared.items()}
# %% tags=["hide-input"]
for name, (p, m) in result.items():
    print(f"{name:32s} perplexity {p:7.2f}   accuracy {m.interval.percent()} %")
print(f"One repair took {repair_seconds:.1f} s, LoRA on the same texts {on_texts.seconds:.1f} s.")
print(f"LoRA on the same texts: {len(on_texts.history)} steps over {calibration} texts, {on_texts.tokens:,} tokens;")
on_answers = recipe["AMP + LoRA on responses"]
print(f"on responses: {len(on_answers.history)} steps over {samples} rows, {on_answers.tokens:,} tokens of answers.")
L.seen("the lowest perplexity after one of these", min(rivals, key=lambda name: result[name][0]))


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
# Keep in mind what is measured. Perplexity is of running text, and training on responses is about answers: it may make
# perplexity worse and accuracy better. Lesson 4 also shows what a *dense* model gains from the same training.
#
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
# %% tags=["hide-input"]
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
L.conclude({
    f"Of the loss that AMP's cut adds, repair makes up for {1 - left / added:.0%}, without any training.": gain.high < 0,
    f"What it can't make up for is a bad choice: repaired after a random one, the model has "
    f"{math.exp(chance.difference - gain.difference):.1f} times the perplexity of AMP's choice, repaired.": chance.difference > gain.difference,
    f"On the same texts LoRA and repair end at {result['AMP + LoRA on the same texts'][0]:.2f} and "
    f"{result['AMP + repair'][0]:.2f}, and LoRA took {on_texts.seconds / repair_seconds:.1f} times as long.":
        on_texts.seconds > repair_seconds,
})  # fmt: skip
# %% [markdown]
# ## What this does not show
# - **A large model.** In a model of billions of parameters a projection has thousands of inputs, and needs far more
#   tokens than that. How much of what its cut breaks is linear, this lesson can't say.
# - **The neurons that stay.** Here they are as they were; only the projections around them are solved for.
#   `amp.repair(…, polish=30)` also moves them, by gradient steps within each layer: *ours: repair polishes* in
#   [the leaderboard](../docs/leaderboard.md).
# - **Other text.** All text here, calibration and held-out, is of one small world. Text from elsewhere is a harder
#   test.
# - **The best of LoRA.** One learning rate, and a handful of steps. Lesson 4 shows how much hangs on both.
# - **Another split.** AMP takes the same share of heads and of neurons. Lesson 8c asks whether that is a good one.
# - **Speed.** All plans are compared by parameters. Lesson 5 measures time, and equal parameters are not equal time.
#
# ## References
# - Hassibi, Stork (1993), *Second order derivatives for network pruning: Optimal Brain Surgeon*, NeurIPS 5.
# - Frantar, Alistarh (2023), *SparseGPT*, [arXiv 2301.00774](https://arxiv.org/abs/2301.00774).
# - Kurtic, Frantar, Alistarh (2023), *ZipLM*, [arXiv 2302.04089](https://arxiv.org/abs/2302.04089).
# - AMP, [arXiv 2504.21174](https://arxiv.org/abs/2504.21174).
#
# ## Where next
# Read `repair.py` and `normal_equations.py` in `amp_tutorial/methods`: they are this lesson, with memory bounded layer
# by layer. [Lesson 8b](08b_stream.ipynb) turns and cuts the stream itself; [lesson 8c](08c_budget.ipynb) searches one
# budget over all that can go.
# %%
L.finish()
