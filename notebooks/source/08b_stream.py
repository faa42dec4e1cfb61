# lesson: Directions of the stream
# %% [markdown]
# # 8b · Directions of the stream: turn it, then cut it
#
# All cuts so far took heads and neurons, which are inside the modules, or whole layers. TransAct says that inside is
# where to cut, and that what flows *between* the modules must be left alone. SliceGPT cuts exactly there. This lesson
# tests the claim, then turns a residual stream without changing a logit, cuts it, and compares at equal parameters.
#
# **Objectives.** After this lesson you can
# - test a published claim: disturb different places equally, and say what follows;
# - turn a residual stream, and say which norms allow it;
# - slice the stream to fewer directions, and read its energy curve before you believe the result.
#
# **Prerequisites.** Lessons 1, 3 and 8. **Time:** {{minutes}}.
# %% tags=["parameters"]
model: str = "tiny-llama"  # or "tiny-llama-gqa", "tiny-phi", "smollm2-135m", a local folder, a hub id
ratio: float = 0.30  # share of all parameters to remove
ratio_deep: float = 0.50  # a second, deeper cut
calibration: int = 24  # texts that score, rotation and repair look at
seed: int = 0
text: str = ""  # what is read: empty, the tiny world for its models and C4 for others; or a file, a folder, "wikitext2"
tasks: str = ""  # what is asked: empty, the tiny world's tasks or those of AMP's paper; or names of lm-eval's
task_folder: str = ""  # of tasks of your own
preset: str = "smallest"  # or "full": more items, more text
out: str = "out"
# %% tags=["hide-input"]
import math
from contextlib import contextmanager
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from transformers import AutoModelForCausalLM

import amp_tutorial as amp
from amp_tutorial.course import lesson
from amp_tutorial.methods.hidden_size import hidden_at, roles, stream_of

L = lesson.start(
    "08b_stream",
    dict(model=model, ratio=ratio, ratio_deep=ratio_deep, calibration=calibration, seed=seed, text=text, tasks=tasks,
         task_folder=task_folder, preset=preset, out=out),
)  # fmt: skip
source, tasks = L.material(text, tasks, task_folder)
sizes = {
    "smallest": dict(items=40, texts=48, letters=None),
    "real": dict(items=20, texts=32, letters=500),  # letters of each text
    "full": dict(items=200, texts=500, letters=None),
}[L.size]
bench = lesson.Bench(
    L, source, calibration, sizes["texts"], sizes["letters"], tasks, sizes["items"], task_folder
)  # calibration draws, text kept apart, held-out text, tasks
dense, read, asked = bench.dense, bench.read, bench.asked
anatomy = amp.Anatomy.of(dense)
layers = anatomy.layers


def perplexity(what, texts=None):
    return read(what, texts).value


def repaired(plan, **settings):
    return amp.repair(dense, plan, batches, progress=False, **settings).model


batches = bench.batches(bench.drawn(seed))
scores = amp.score(dense, batches, seed=seed)
plans = {r: amp.plan(dense, scores, pruning_ratio=r) for r in (ratio, ratio_deep)}
base = perplexity(dense)
print(f"Dense: perplexity {base:.2f}. {plans[ratio].achieved:.1%} of all parameters will go, later "
      f"{plans[ratio_deep].achieved:.1%}.")  # fmt: skip
# %% [markdown]
# ## A claim to test: leave the stream alone
#
# TransAct shrinks what is inside the modules (heads, neurons) and preserves what flows between them, the residual
# stream, because that is "sensitive to perturbations" (abstract of the paper). That can be tested. We disturb the
# activations at one place in every layer: **inside attention** (what enters its output projection), **inside the MLP**
# (what enters its own), or **between modules** (the stream that enters the layer). We do it in two ways, each with
# equal strength at every place:
#
# - *noise*, of the same share of the energy that is there;
# - *directions*: keep the same share of each place's principal directions, and drop the rest.
#
# ### Exercise 1 · Does the claim hold?
# *Medium, 6 minutes.* `costs` has three lists, `"attention"`, `"mlp"` and `"stream"`: what each strength of disturbance
# costs at that place. Return `"holds"` if the stream is the most sensitive place at every strength, `"fails"` if at
# none, `"in part"` otherwise.
# %%
def claim(costs: dict[str, list[float]]) -> str:
    """What the costs say of the claim."""
    ...  # your answer here


claim = L.check(claim, "l8b_claim")
# %% [markdown]
# {{hint:l8b_claim}}
#
# {{solution:l8b_claim}}
#
# **Predict.** At which place does the same disturbance cost most?
# %%
L.predict("the most sensitive place", None, among=("inside attention", "inside the MLP", "between modules"))
# %% [markdown]
# The directions of each place are those of $X^{\top}X$ over the calibration tokens. (Folded: a context in which what
# enters a module is changed first.)
# %% tags=["hide-input"]
blocks = list(dense.get_submodule(anatomy.family.layers).children())
places = {
    "inside attention": [anatomy.layer(i).output for i in range(layers)],
    "inside the MLP": [anatomy.layer(i).neurons_out for i in range(layers)],
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
# %%
def gather(i, x):
    rows = x[mask].double()
    grams[i] = grams[i] + rows.T @ rows
    return x


directions, energies = {}, {}
for name, modules in places.items():
    grams = [0.0] * layers
    for batch in batches:
        mask = batch["attention_mask"].bool().to(dense.device)
        with torch.no_grad(), disturbed(modules, gather):
            dense.base_model(**{k: t.to(dense.device) for k, t in batch.items()}, use_cache=False)
    parted = [torch.linalg.eigh(g) for g in grams]
    directions[name] = [vectors.flip(1).to(dense.dtype) for _, vectors in parted]
    energies[name] = [squares.flip(0).clamp(min=0).cumsum(0) / squares.sum() for squares, _ in parted]
# %%
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
# %%
# NBVAL_CHECK_OUTPUT
ids = batches[0]["input_ids"][:1, :32].to(dense.device)
with torch.no_grad():
    before = dense(input_ids=ids).logits
    for name, modules in places.items():
        for what, nothing in (("no noise", noisy(name, 0.0)), ("all directions", fewer_directions(name, 0.0))):
            with disturbed(modules, nothing):
                after = dense(input_ids=ids).logits
            L.assert_close(after, before, 1e-3, f"{name}: with {what} the logits are as before")
# %%
few_texts = bench.judged[: len(bench.judged) // 2]
undisturbed = read(dense, few_texts)
tests = {"noise": (noisy, (0.01, 0.03, 0.1)), "directions": (fewer_directions, (0.25, 0.5, 0.75))}
runs = {}
for test, (make, shares) in tests.items():
    for name, modules in places.items():
        for share in shares:
            with disturbed(modules, make(name, share)):
                runs[test, name, share] = read(dense, few_texts)
cost = {key: math.log(run.value / undisturbed.value) for key, run in runs.items()}
# %% tags=["hide-input"]
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
short = {"attention": "inside attention", "mlp": "inside the MLP", "stream": "between modules"}
verdicts = {}
for test, (_, shares) in tests.items():
    verdicts[test] = claim({key: [cost[test, name, share] for share in shares] for key, name in short.items()})
    share = shares[len(shares) // 2]
    ranked = sorted(places, key=lambda name: -cost[test, name, share])
    print(f"{test}, {share:.0%}: " + ", ".join(f"{name} {cost[test, name, share]:+.3f}" for name in ranked), end=" ")
    print(f"nats per token. Over all strengths the claim: {verdicts[test]}.")
worst = [max(places, key=lambda name: cost[test, name, s]) for test, (_, shares) in tests.items() for s in shares]
L.seen("the most sensitive place", max(places, key=worst.count))
half = {name: sum(e[len(e) // 2 - 1].item() for e in of_layer) / layers for name, of_layer in energies.items()}
print("The leading half of the directions holds " + ", ".join(f"{v:.1%} {name}" for name, v in half.items()) + ".")
# %% [markdown]
# One reason is plain. What a projection *writes* is one of many summands of the stream. What is wrong *in* the stream
# is read by every later layer, and by the output head.
#
# Sensitivity is one thing, *how much there is to spare* another. The rest of this lesson cuts the stream itself.
#
# ## Turn the stream
#
# An RMS norm divides by a length. A rotation leaves lengths alone. So if the norm's weight is first folded into the
# matrices that read its output, the whole stream can be turned by any orthogonal Q: every matrix that writes to the
# stream is turned, every one that reads from it is turned back, and **no logit changes**. SliceGPT has a Q of its own
# for every layer, and pays for it with a model class of its own. With one shared Q the cut gives an ordinary checkpoint
# with a smaller `hidden_size`.
# %% tags=["hide-input"]
L.drawing("rotation")
# %% [markdown]
# ### Exercise 2 · A matrix that reads
# *Medium, 6 minutes.* `weight` is (out, hidden) and reads the stream through an RMS norm of weight `norm` (hidden). The
# stream is turned: where x was, there is now x `q`. Return the matrix that gives the same output, with the norm's
# weight folded in.
# %%
def turned_reader(weight, norm, q):
    """The matrix that reads the turned stream."""
    ...  # your answer here


turned_reader = L.check(turned_reader, "l8b_turned")
# %% [markdown]
# {{hint:l8b_turned}}
#
# {{solution:l8b_turned}}
#
# Q holds the principal directions of what all norms put out, from one pass over the calibration text. (Those above were
# each layer's own directions of the raw stream; this Q is one for all layers, after the norms, so its curve rises more
# slowly.) A layer norm also subtracts a mean, which no rotation respects. Such a model is refused:
# %%
try:
    turn = amp.rotation(dense, batches)
    print(f"{anatomy.hidden} directions, from {turn.tokens:,} tokens.")
except ValueError as refusal:
    turn = None
    print(refusal)
# %%
@torch.no_grad()
def turned(q, offset):
    """The dense model with norms folded and its stream turned by q."""
    old, new = dict(dense.named_parameters(remove_duplicate=False)), {}
    for name, role in roles(anatomy).items():
        w = old[name].double()
        if role.part == "reads":  # from the stream, through a norm
            w = turned_reader(w, old[f"{role.norm}.weight"].double() + offset, q)
        elif role.part == "writes":
            w = q.T @ w
        elif role.part in ("rows", "bias"):  # the embedding's rows are written to the stream, and biases are
            w = w @ q
        elif role.part == "norm":
            w = torch.ones_like(w) - offset
        new[name] = w.to(old[name].dtype)
    settings = dense.config.to_dict() | dict(tie_word_embeddings=False)  # the last norm went into the head alone
    same = AutoModelForCausalLM.from_config(type(dense.config).from_dict(settings), dtype=dense.dtype)
    same.load_state_dict(new, strict=False)
    return same.to(dense.device).eval()
# %%
# NBVAL_CHECK_OUTPUT
if turn is not None:
    offset = stream_of(anatomy).offset  # Gemma's norms multiply by 1 + weight
    ids = batches[0]["input_ids"][:1, :32].to(dense.device)
    with torch.no_grad():
        before, after = (m(input_ids=ids).logits for m in (dense, turned(turn.vectors.to(dense.device), offset)))
    L.assert_close(after, before, 1e-4, "turned, the model gives the same logits")
# %% [markdown]
# ## Drop directions
#
# Nothing is lost so far. Now drop the directions that carry least.
#
# ### Exercise 3 · How many are needed?
# *Medium, 5 minutes.* `x` is (tokens, hidden). Return how many principal directions carry at least `share` of its
# energy.
# %%
def directions_needed(x, share: float) -> int:
    """The least number of principal directions."""
    ...  # your answer here


directions_needed = L.check(directions_needed, "l8b_directions")
# %% [markdown]
# {{hint:l8b_directions}}
#
# {{solution:l8b_directions}}
#
# **Predict.** How many of the stream's directions carry 99 % of the energy?
# %%
L.predict("directions that carry 99 % of the energy", None)
# %% tags=["hide-input"]
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
    spectrum = torch.tensor([0.0, *energy], dtype=torch.double).diff().clamp(min=0).sqrt()
    enough = directions_needed(spectrum.diag(), 0.99)
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
# Now slicing against cutting inside the modules, at equal total parameters. This is also the second half of TransAct's
# claim: is it better to leave the stream whole? **Predict** which is better at the smaller ratio.
# %%
L.predict("the better at the smaller ratio", None, among=("AMP + repair", "sliced + repair", "neither"))
# %%
if turn is not None:
    whole = amp.keep(dense, scores, heads=anatomy.heads, neurons=anatomy.neurons)
    made = {
        **{(r, "AMP"): amp.prune(dense, plan).model for r, plan in plans.items()},
        **{(r, "AMP + repair"): repaired(plan) for r, plan in plans.items()},
        **{(r, "stream sliced"): amp.slice_hidden(dense, turn, hidden).model for r, hidden in widths.items()},
        **{(r, "sliced + repair"): repaired(whole, refit_inputs=True, hidden_size=h) for r, h in widths.items()},
    }
    found = {key: (read(m), asked(m)) for key, m in made.items()}
# %%
# NBVAL_CHECK_OUTPUT
if turn is not None:
    for r in plans:
        short = max(0.0, r - (1 - made[r, "stream sliced"].num_parameters() / dense.num_parameters()))
        L.assert_close(short, 0.0, 0.0, f"sliced at {r:.0%}, the model has lost no less than was asked")
# %% tags=["hide-input"]
if turn is not None:
    gone = [1 - made[r, "stream sliced"].num_parameters() / dense.num_parameters() for r in plans]
    print(f"Slicing removes {gone[0]:.1%} and {gone[1]:.1%} of all parameters, not less than the plans.")
    for (r, name), (p, a) in sorted(found.items(), key=lambda row: row[0][0]):
        print(f"{r:.0%} {name:15s} perplexity {p.value:8.2f}   accuracy {a.interval.percent()} %")
    better = {}
    for r in plans:
        by_perplexity = {name: p.value for (at, name), (p, _) in found.items() if at == r}
        print(f"At {r:.0%}, by perplexity: {' < '.join(sorted(by_perplexity, key=by_perplexity.get))}.")
        (p, a), (q, b) = found[r, "sliced + repair"], found[r, "AMP + repair"]
        rival, gap = amp.compare(p, q), amp.compare(a, b)
        better[r] = "neither" if not rival.clear else "sliced + repair" if rival.difference < 0 else "AMP + repair"
        print(f"  Sliced + repair against AMP + repair: perplexity {rival.ratio()}, {'' if rival.clear else 'not '}told apart; "
              f"accuracy {gap.points()}, {'' if gap.clear else 'not '}told apart.")  # fmt: skip
    L.seen("the better at the smaller ratio", better[ratio])
    if set(better.values()) == {"AMP + repair"}:
        print("At equal parameters, leaving the stream whole and repairing inside the modules was better here.")
    elif set(better.values()) == {"sliced + repair"}:
        print("At equal parameters, slicing the stream was better here, whatever its sensitivity.")
    else:
        print("At equal parameters, which is better depends on the ratio here, or can't be told.")
# %% [markdown]
# **A caution.** A small model trained briefly can have a stream of low rank, and then slicing looks better than it is.
# A model trained to its capacity uses nearly all of its stream. And on LLaMA-2-7B SliceGPT is the worst of several at
# equal ratio ([second-hand]: from a summary, not checked here). Read the energy curve of *your* model before you
# believe a contest with slicing in it.
#
# Is it these directions that matter, or would any do? Here are as many drawn by lot, with everything else the same:
# %%
if turn is not None:
    draw = torch.Generator().manual_seed(seed)
    by_lot = torch.linalg.qr(torch.randn(anatomy.hidden, anatomy.hidden, generator=draw, dtype=torch.double)).Q
    any_turn = replace(turn, vectors=by_lot.to(turn.vectors))
    lot = perplexity(amp.slice_hidden(dense, any_turn, widths[ratio]).model)
    print(f"Sliced to {widths[ratio]} directions, no repair: perplexity {found[ratio, 'stream sliced'][0].value:.2f} along "
          f"the principal ones, {lot:.3g} along as many drawn by lot.")  # fmt: skip
# %% [markdown]
# ## The result
#
# Is the stream the place to leave alone? One number: the perplexity with noise of 3 % of the energy *between* the
# modules, divided by that with the same noise *inside* the MLP, window by window; above 1 the claim holds. The baseline
# is attention in place of the MLP. The control is no noise at all between the modules, against the model as it is: it
# must show 1.
# %%
def over(one, other):
    return amp.compare(runs["noise", one, 0.03], runs["noise", other, 0.03])


with disturbed(places["between modules"], noisy("between modules", 0.0)):
    silent = read(dense, few_texts)
gap, beside = over("between modules", "inside the MLP"), over("between modules", "inside attention")
L.signature(
    "Perplexity with 3% of noise between the modules, as a multiple of that with it inside the MLP",
    math.exp(gap.difference),
    math.exp(gap.low),
    math.exp(gap.high),
    "×",
    baseline=("inside attention in place of the MLP", math.exp(beside.difference)),
    control=("no noise, against the model as it is", silent.value / undisturbed.value),
    must="that must show 1",
)
# %% tags=["hide-input"]
claims = {
    f"Equal noise costs most between the modules: {gap.ratio()} the perplexity of noise inside the MLP, "
    f"{beside.ratio()} that of noise inside attention.": gap.clear and beside.clear and min(gap.low, beside.low) > 0,
    "The kind of disturbance does not matter: where directions are dropped in place of noise, the claim holds as well.":
        set(verdicts.values()) == {"holds"},
}
if turn is not None:
    (p, _), (q, _) = found[ratio, "sliced + repair"], found[ratio, "AMP + repair"]
    rival = amp.compare(p, q)
    claims |= {
        f"This stream is full, too: {enough} of {len(energy)} directions carry 99 %. Sliced and repaired, the model has "
        f"{rival.ratio()} the perplexity of AMP's cut, repaired, at {ratio:.0%}.": not low and rival.clear and rival.difference > 0,
        f"Which directions stay decides: as many drawn by lot give "
        f"{lot / found[ratio, 'stream sliced'][0].value:.3g} times the perplexity.": lot > found[ratio, "stream sliced"][0].value,
    }
L.conclude(claims)
# %% [markdown]
# ## What this does not show
# - **A large model.** A small one may use few of its directions. Read the energy curve of yours first.
# - **SliceGPT as it was published.** It has a rotation for each layer, and a class of its own; the
#   [leaderboard](../docs/leaderboard.md) has that as a masked bound.
# - **Where TransAct ends.** It trains on billions of tokens after its cuts; here nothing is trained after a slice.
# - **Speed.** Everything is compared by parameters. A narrower stream and fewer neurons do not save the same time.
#
# ## References
# - Ashkboos et al. (2024), *SliceGPT*, [arXiv 2401.15024](https://arxiv.org/abs/2401.15024).
# - TransAct, [arXiv 2407.05690](https://arxiv.org/abs/2407.05690).
#
# ## Where next
# Heads, neurons, layers, and now directions can go: [lesson 8c](08c_budget.ipynb) asks how much of each.
# %%
L.finish()
