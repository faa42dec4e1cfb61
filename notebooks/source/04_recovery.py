# lesson: Recovery
# %% [markdown]
# # 4 · Recovery: what a short training brings back
#
# A pruned model has lost parts that the rest was used to. Often the rest can take over, if it is trained a little.
# This lesson trains it the cheap way, with **LoRA**, and then asks the question that tables of pruning results often
# leave out: how much of the gain is recovery, and how much would any model gain from that training?
#
# **Objectives.** After this lesson you can
# - write a LoRA adapter, merge it, and show that merging changes nothing;
# - mask a prompt out of the labels, and spot a second BOS that turned into a label;
# - train a pruned model back at two ratios and read perplexity and accuracy side by side;
# - separate recovery from plain fine-tuning with a control, and say what the training cost.
#
# **Prerequisites.** Lessons 0 and 3: a plan, and a model cut by it. **Time:** {{minutes}}.
# %% tags=["parameters"]
model: str = "tiny-llama"  # or "tiny-llama-gqa", "tiny-phi", a local folder, a hub id
ratio: float = 0.30  # share of all parameters to remove
ratio_deep: float = 0.50  # a second, deeper cut
calibration: int = 64  # texts that the score looks at
samples: int = 192  # rows of recovery training
rate: float = 0.001  # learning rate; the paper's is 0.0003
seed: int = 0
preset: str = "smallest"  # or "full": more test items
out: str = "out"
# %% tags=["hide-input"]
import copy
import warnings

import matplotlib.pyplot as plt
import torch
from peft import LoraConfig, get_peft_model

import amp_tutorial as amp
from amp_tutorial.course import lesson
from amp_tutorial.files.texts import pairs
from amp_tutorial.methods.lora import IGNORE, encode

warnings.filterwarnings("ignore", category=FutureWarning)  # peft still uses a name that transformers will drop
L = lesson.start(
    "04_recovery",
    dict(model=model, ratio=ratio, ratio_deep=ratio_deep, calibration=calibration, samples=samples, rate=rate,
         seed=seed, preset=preset, out=out),
)  # fmt: skip
items, texts = {"smallest": (60, 200), "full": (400, 500)}[preset]  # of each task, for the perplexity
dense, tokenizer = amp.load(model)
anatomy = amp.Anatomy.of(dense)
# %% [markdown]
# ## A correction of low rank
#
# To train every weight of a large model, memory has to hold each weight's gradient and two averages of the optimiser.
# LoRA leaves the weight `W` as it is and learns a correction beside it, the product of two thin matrices:
#
# `y = W x + (α / r) · B A x`, where `A` is (r, in), `B` is (out, r), and the rank `r` is small.
# %% tags=["hide-input"]
L.drawing("lora")
# %% [markdown]
# `B` begins at zero. **Predict.** What does the model compute before the first step of training? And how many numbers
# are trained for one map from 128 to 128 dimensions at rank 8: 16,384, 2,048 or 64?
# %%
L.predict("numbers trained for a map of 128 to 128 at rank 8", None, among=(16384, 2048, 64))
# %%
rank, alpha = 8, 16


def adapted(linear, x, a, b):
    """The linear map with an adapter beside it, not merged."""
    return linear(x) + alpha / rank * (x @ a.T) @ b.T


query = anatomy.layer(0).query
draw = torch.Generator().manual_seed(seed)
a = (0.1 * torch.randn(rank, query.in_features, generator=draw)).to(query.weight)
b = torch.zeros(query.out_features, rank).to(query.weight)
x = torch.randn(4, query.in_features, generator=draw).to(query.weight)
print(f"W is {tuple(query.weight.shape)}, {query.weight.numel():,} numbers; A and B have {a.numel() + b.numel():,}.")
L.seen("numbers trained for a map of 128 to 128 at rank 8", rank * (128 + 128))
# %%
# NBVAL_CHECK_OUTPUT
L.assert_close(adapted(query, x, a, b), query(x), 1e-6, "with B at zero the adapted map is the map itself")
# %% [markdown]
# ### Exercise 1 · Merge it
# *Easy, 5 minutes.* After training nobody wants two extra products in every map. Write the single weight that computes
# the same. `a` is (r, in), `b` is (out, r), `weight` is (out, in).
# %%
def merge(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, alpha: float) -> torch.Tensor:
    """The weight with the adapter added."""
    ...  # your answer here


merge = L.check(merge, "l4_merge")
# %% [markdown]
# {{hint:l4_merge}}
#
# {{solution:l4_merge}}
#
# Now give `B` some values, as training would, and compare: the adapter beside the map, the merged weight, and what the
# library `peft` makes of the same `A` and `B`.
# %%
# NBVAL_CHECK_OUTPUT
b = (0.1 * torch.randn(query.out_features, rank, generator=draw)).to(query.weight)
with torch.no_grad():
    unmerged = adapted(query, x, a, b)
    merged = torch.nn.functional.linear(x, merge(query.weight, a, b, alpha), query.bias)
    L.assert_close(merged, unmerged, 1e-5, "merged equals unmerged")
    name = anatomy.family.query.rsplit(".", 1)[-1]
    probe = get_peft_model(copy.deepcopy(dense), LoraConfig(r=rank, lora_alpha=alpha, target_modules=[name])).eval()
    theirs = probe.get_base_model().get_submodule(f"{anatomy.family.layers}.0.{anatomy.family.query}")
    theirs.lora_A["default"].weight.copy_(a)
    theirs.lora_B["default"].weight.copy_(b)
    L.assert_close(theirs(x), unmerged, 1e-5, "peft computes the same")
# %% [markdown]
# From here on `amp.recover` does this for every projection of every block, trains, and merges. What comes back is a
# stock model without a trace of LoRA.
#
# ## What is trained on
#
# A row of the recovery text has a prompt and a response. With the loss *on the response only* the model is not
# trained to write prompts: their labels are −100, which the loss skips.
#
# ### Exercise 2 · Labels
# *Easy, 3 minutes.* Given the tokens of prompt and response, write one label for each token of the two together.
# %%
prompt, response = pairs("tinyworld")[0]
[(ids, expected)] = encode(tokenizer, prompt, response, "responses", length=512)
cut = sum(label == IGNORE for label in expected)


def labels(prompt: list[int], response: list[int]) -> list[int]:
    """One label for each token of prompt and response; −100 where nothing is to be learnt."""
    ...  # your answer here


labels = L.check(labels, "l4_labels")
# %% [markdown]
# {{hint:l4_labels}}
#
# {{solution:l4_labels}}
# %%
# NBVAL_CHECK_OUTPUT
L.assert_close(labels(ids[:cut], ids[cut:]), expected, 0, "your labels are the module's")
print(f"{len(ids)} tokens, {len(ids) - cut} of them trained on:")
print("prompt  ", tokenizer.decode(ids[:cut]))
print("response", tokenizer.decode(ids[cut:]))
# %% [markdown]
# ### One BOS, not two
#
# Many tokenizers put BOS (`<s>`, the beginning of a text) before whatever they are given. Tokenise prompt and response
# separately, join them, and a second BOS stands in the middle. This is what AMP's official code does ([code]: read in
# the code), and so the second BOS becomes the **first label**: the model is trained to answer every prompt by beginning
# a new text.
#
# **Predict.** How likely does the dense model find a BOS after a prompt?
# %%
L.predict("probability of BOS after a prompt", None)
# %%
bos = tokenizer.bos_token_id
doubled = (ids[:cut] + [bos] + ids[cut:], [IGNORE] * cut + [bos] + ids[cut:])


@torch.no_grad()
def label_losses(row):
    """Loss of each label that counts, in nats."""
    tokens, wanted = (torch.tensor([part], device=dense.device) for part in row)
    logits = dense(input_ids=tokens).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, wanted[0, 1:], reduction="none")[wanted[0, 1:] != IGNORE]


for what, row in (("one BOS", (ids, expected)), ("two BOS", doubled)):
    losses = label_losses(row)
    shown = [f"{tokenizer.decode([t])!r} {loss:.2f}" for t, loss in zip(row[1][-len(losses) :], losses, strict=True)]
    print(f"{what}: loss of each label: {', '.join(shown)}; mean {losses.mean():.2f}")
print(f"Probability of BOS after the prompt: {torch.exp(-label_losses(doubled)[0]).item():.1e}")
L.seen("probability of BOS after a prompt", torch.exp(-label_losses(doubled)[0]).item(), within=0.01)
# %%
# NBVAL_CHECK_OUTPUT
L.assert_close(ids.count(bos), 1, 0, "a row of amp.recover holds one BOS")
L.assert_close(expected.count(bos), 0, 0, "and BOS is never a label")
# %% [markdown]
# Where the loss of one such label towers over the others, the first steps of training are spent on a token that no
# reader will ever see. Nothing crashes, and the loss curve even looks good: it falls fast, as the mistake is learnt.
#
# ## Before and after
#
# Four models are cut: two by AMP, at 30 % and at 50 %; one at 30 % at random, which is the weaker baseline; and one at
# 30 % by AMP upside down. All get the same training, and so does the dense model.
#
# Two of the five are there for comparison. The **dense model** lost nothing, so it shows how high recovery can lead at
# all. It is close to 100 % and has little room, so a small gain there shows nothing. **AMP reversed** has room: it kept
# what AMP would have removed, so there is little in it to recover. What it gains is what these rows *teach*.
#
# The learning rate is not that of the paper's recipe. The recipe takes some thousands of steps at 0.0003 [code]; here
# there are a few dozen, at the rate in the parameters cell.
#
# **Predict.** How many points of accuracy does the training bring back at 30 %: all that the cut cost, half of it, or
# next to nothing? And at 50 %?
# %%
L.predict("points of accuracy that come back at the smaller ratio", None)
# %%
def cut_by(criterion: str, ratio: float):
    batches = amp.calibration(tokenizer, "tinyworld", samples=calibration, seed=seed)
    scores = amp.score(dense, batches, criterion, seed=seed)
    return amp.prune(dense, amp.plan(dense, scores, pruning_ratio=ratio)).model


def train(start, **settings):
    config = amp.RecoveryConfig(**dict(samples=samples, learning_rate=rate, seed=seed) | settings)
    return amp.recover(start, tokenizer, config=config, progress=False)


mild, deep = f"AMP {ratio:.0%}", f"AMP {ratio_deep:.0%}"
before = {"dense": dense, mild: cut_by("amp", ratio), deep: cut_by("amp", ratio_deep)}
before |= {criterion: cut_by(criterion, ratio) for criterion in ("random", "reversed")}
recoveries = {name: train(start) for name, start in before.items()}
steps = len(recoveries["dense"].history)
print(f"Trained {len(recoveries)} models for {steps} steps of 16 rows each.")
# %% tags=["hide-input"]
fig, axes = plt.subplots(figsize=(7, 3.6))
width = 5  # steps averaged, as single batches jump
for k, (name, recovery) in enumerate(recoveries.items()):
    curve = torch.tensor([point["loss"] for point in recovery.history]).unfold(0, min(width, steps), 1).mean(1)
    style = dict(color=lesson.colour(name), marker=lesson.MARKERS[k], markevery=4, label=name)
    axes.plot(range(1, len(curve) + 1), curve, **style)
axes.set(xlabel=f"step (mean of {width} from here)", ylabel="loss on responses (nats per token)", ylim=(0, None))
axes.legend(frameon=False, ncols=2)
ends = ", ".join(
    f"{name} from {r.history[0]['loss']:.2f} to {sum(p['loss'] for p in r.history[-width:]) / width:.2f}"
    for name, r in recoveries.items()
)
L.show(fig, alt=f"Loss on responses over {steps} training steps, five curves: {ends} nats per token.")
# %% [markdown]
# The curves show training loss, and training loss always looks like success. What counts is text and questions that
# were not trained on.
# %%
def measure(what):
    return amp.perplexity(what, tokenizer, limit=texts), amp.accuracy(what, tokenizer, limit=items).mean


measured = {(name, "before"): measure(start) for name, start in before.items()}
measured |= {(name, "after"): measure(recovery.model) for name, recovery in recoveries.items()}
print(f"{'':10s} {'perplexity':>20s} {'mean accuracy, six tasks':>32s}")
for name in before:
    (p0, a0), (p1, a1) = measured[name, "before"], measured[name, "after"]
    accuracies = f"{a0.value:17.1%} → {a1.value:5.1%}  ({amp.compare(a1, a0).points()})"
    print(f"{name:10s} {p0.value:9.2f} → {p1.value:8.2f} {accuracies}")
print(f"Perplexity: {measured['dense', 'before'][0].protocol}.")
back = 100 * (measured[mild, "after"][1].value - measured[mild, "before"][1].value)
L.seen("points of accuracy that come back at the smaller ratio", back, within=3)
# %% tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
names = list(before)
for i, name in enumerate(names):  # points, as a bar has no length on an axis without a zero
    left.plot([i, i], [measured[name, when][0].value for when in ("before", "after")], color="0.6", lw=1, zorder=0)
for k, when in enumerate(("before", "after")):
    at = [i + (k - 0.5) * 0.38 for i in range(len(names))]
    style = dict(color=lesson.PALETTE[k], hatch=lesson.HATCHES[k], edgecolor="white", label=when)
    found = [measured[name, when] for name in names]
    mark = dict(color=lesson.PALETTE[k], marker=lesson.MARKERS[k], ms=8, ls="", label=when)
    left.plot(range(len(names)), [p.value for p, _ in found], **mark)
    reach = [[100 * (m.value - m.low) for _, m in found], [100 * (m.high - m.value) for _, m in found]]
    right.bar(at, [100 * m.value for _, m in found], 0.36, yerr=reach, capsize=3, **style)
chance = sum(amp.CHANCE.values()) / len(amp.CHANCE)
right.axhline(100 * chance, color="0.2", ls="--")
right.text(len(names) - 0.45, 100 * chance, "guessing", va="center", fontsize="small")
left.set(yscale="log", title="perplexity (lower is better)")
right.set(ylim=(0, 118), title="mean accuracy, % (higher is better)")
for axis in (left, right):
    axis.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names])
left.legend(frameon=False)
right.legend(frameon=False, loc="upper right")
told = "; ".join(
    f"{n}: perplexity {measured[n, 'before'][0].value:.2f} to {measured[n, 'after'][0].value:.2f}, accuracy "
    f"{measured[n, 'before'][1].value:.0%} to {measured[n, 'after'][1].value:.0%}"
    for n in names
)
L.show(fig, alt=f"Before and after recovery, perplexity as points on the left, accuracy as bars on the right. {told}.")
# %% [markdown]
# ### Exercise 3 · How much of the gap was closed?
# *Medium, 5 minutes.* "Recovery brought back 80 %" needs a ceiling. Which one is fair? Write the share of the gap that
# was closed; 1 means as good as the fair ceiling. You are given four accuracies; not all are needed.
# %%
def closed(pruned: float, recovered: float, dense: float, dense_tuned: float) -> float:
    """Share of the gap that recovery closed."""
    ...  # your answer here


closed = L.check(closed, "l4_closed")
# %% [markdown]
# {{hint:l4_closed}}
#
# {{solution:l4_closed}}
# %%
accuracy = {key: m.value for key, (_, m) in measured.items()}
ceiling = accuracy["dense", "before"], accuracy["dense", "after"]
taught = accuracy["reversed", "after"] - accuracy["reversed", "before"]
for name in (mild, deep, "random", "reversed"):
    gain = accuracy[name, "after"] - accuracy[name, "before"]
    was, now, fair = (measured[key][1] for key in ((name, "before"), (name, "after"), ("dense", "after")))
    shown, gap = amp.compare(now, was), amp.compare(fair, was)
    wide = gap.clear and gap.difference > 0
    shares = closed(accuracy[name, "before"], accuracy[name, "after"], *ceiling) if wide else None
    print(f"{name}: {shown.points()};", end=" ")
    print("there is no clear gap." if shares is None else f"{shares:.0%} of the gap is closed.")
    if not (shown.clear and gain > 0):
        print(f"  No gain that {items} items a task can show.")
    elif name != "reversed" and taught > 0.5 * gain:
        print(f"  AMP reversed gains {taught / gain:.0%} as much: most of this the rows would teach any model.")
    elif name != "reversed":
        print(f"  AMP reversed gains {max(taught, 0) / gain:.0%} as much: most of this is recovery.")
# %% [markdown]
# In brackets stands the 95 % interval of the gain, taken item by item, as the same items were asked before and after.
# The last entry is the control. It has the most room of all, so if training taught the answers, it would gain the most.
#
# ## Two numbers that need not agree
#
# Perplexity and accuracy answer different questions. **Perplexity** says how well the model predicts *every token* of
# running text, names and connecting words included. **Accuracy** says whether the right answer beats the wrong ones,
# nothing more. Training on responses uses only a few tokens of each row, and those are answers.
#
# **Predict.** Train the same pruned model on whole rows, prompts included. Which of the two numbers comes out better
# than with responses alone?
# %%
L.predict("what whole rows are better for", None, among=("perplexity", "accuracy", "both", "neither"))
# %%
text = train(before[mild], loss="text")
found = {"responses": measured[mild, "after"], "text": measure(text.model)}
tokens = {"responses": recoveries[mild].tokens, "text": text.tokens}
for kind, (p, m) in found.items():
    print(f"loss on {kind:9s}: perplexity {p.value:6.2f}, accuracy {m.value:.1%}, {tokens[kind]:,} tokens trained on")
better_text = min(found, key=lambda kind: found[kind][0].value)
better_answers = max(found, key=lambda kind: found[kind][1].value)
difference = abs(found["text"][1].value - found["responses"][1].value)
told = "beyond" if amp.compare(found["text"][1], found["responses"][1]).clear else "within"
print(f"Perplexity prefers {better_text}.")
print(f"Accuracy prefers {better_answers}, by {100 * difference:.1f} points, which is {told} noise.")
fits_better = found["responses"][0].value < measured[mild, "before"][0].value
gained = amp.compare(measured[mild, "after"][1], measured[mild, "before"][1])
answers_better = gained.clear and gained.difference > 0
if fits_better == answers_better:
    print(f"Trained on responses, {'both numbers' if fits_better else 'neither number'} clearly improved.")
else:
    which = ("perplexity", "accuracy") if fits_better else ("accuracy", "perplexity")
    print(f"Trained on responses, {which[0]} got better and {which[1]} not clearly: either alone would mislead you.")
better = [n for n, kind in (("perplexity", better_text), ("accuracy", better_answers)) if kind == "text"]
L.seen("what whole rows are better for", {0: "neither", 2: "both"}.get(len(better), *better[:1] or [""]))
# %% [markdown]
# Remember, too, what a row is: it ends (with EOS) after one answer, while the texts that perplexity is measured on go
# on. A model trained on rows learns to stop early, which costs perplexity but no accuracy. So a table with one of the
# two numbers can hide half of what a recovery did. Report both, and say which loss and which text.
#
# ## What it costs
#
# The adapter is small, but its training is not free. The last line gives the paper's cost for comparison.
# %% tags=["hide-input"]
mine = recoveries[mild]
small = mine.model
share = mine.trainable / small.num_parameters()
print(f"{mine.trainable:,} trained numbers, {share:.1%} of the pruned model's {small.num_parameters():,} parameters;")
print(f"{mine.tokens:,} tokens trained on, in {steps} steps.")
print(f"This machine took {mine.seconds:.1f} s, or {1000 * mine.seconds / steps:.0f} ms a step.")
print("The paper: Alpaca-cleaned, 2 epochs, about 4 hours on one RTX 3090 [second-hand].")
L.record.metric("recovery", mine.seconds, unit="s")
L.record.metric("trainable", mine.trainable, unit="parameters")
# %%
# NBVAL_CHECK_OUTPUT
shape = amp.Anatomy.of(small)
maps = []
for i in range(shape.layers):
    layer = shape.layer(i)
    maps += [layer.query, layer.key, layer.value, layer.output, *layer.neurons_in, layer.neurons_out]
numbers = sum(rank * (m.in_features + m.out_features) for m in maps)
L.assert_close(numbers, mine.trainable, 0, "r · (in + out) trained numbers for each map")
L.assert_close(small.num_parameters(), before[mild].num_parameters(), 0, "merging adds no parameter")
# %% [markdown]
# Does the learning rate deserve its place in the parameters cell? Here is the same training at the paper's rate, but
# with as many steps as above, not as many as in the paper.
# %%
slow = train(before[mild], learning_rate=3e-4)
p, m = measure(slow.model)
print(f"At 0.0003, after {steps} steps: perplexity {p.value:.2f}, accuracy {m.value:.1%};")
print(f"at {rate:g}: {measured[mild, 'after'][0].value:.2f} and {accuracy[mild, 'after']:.1%};", end=" ")
print(f"untrained: {measured[mild, 'before'][0].value:.2f} and {accuracy[mild, 'before']:.1%}.")
# %% [markdown]
# A learning rate belongs to a number of steps. Copying one without the other is a common way to find that a method
# "does not work".
#
# ## The result
#
# Could this training have built the answers into *any* model of that size? The control answers that: AMP reversed has
# as many parameters and got the same training.
# %%
wrong, best = (measured[name, "after"][1] for name in ("reversed", mild))
L.record.metric("dense trained alike", 100 * ceiling[1], unit="%")
L.signature(
    f"mean accuracy after {ratio:.0%} AMP and recovery",
    100 * best.value,
    100 * best.low,
    100 * best.high,
    "%",
    baseline=("random pruning and the same recovery", 100 * accuracy["random", "after"]),
    control=("AMP reversed and the same recovery", 100 * wrong.value),
)
# %% tags=["hide-input"]
lead = amp.compare(best, measured["random", "after"][1])
if lead.clear:
    points = 100 * abs(lead.difference)
    print(f"After recovery AMP is {points:.1f} points {'above' if lead.difference > 0 else 'below'} random.")
else:
    print(f"After recovery AMP and random can't be told apart: {lead.points()}.")
failed = amp.compare(best, wrong)
failed = failed.clear and failed.difference > 0
print("The control failed, as it must." if failed else "The control did not fail: these items can't tell.")
mended = {
    name: closed(accuracy[name, "before"], accuracy[name, "after"], *ceiling) for name in (mild, deep)
}  # of what the cut cost
room = ceiling[1] - accuracy["reversed", "before"]
L.conclude({
    f"A short training brings back {mended[mild]:.0%} of what the {ratio:.0%} cut cost, and {mended[deep]:.0%} of the "
    f"{ratio_deep:.0%} cut's.": mended[mild] > mended[deep] > 0,
    f"It recovers more than it teaches: AMP reversed gained {100 * taught:.0f} points where it had room for "
    f"{100 * room:.0f}, AMP {100 * (accuracy[mild, 'after'] - accuracy[mild, 'before']):.0f}.":
        accuracy[mild, "after"] - accuracy[mild, "before"] > taught,
    f"The choice still counts afterwards: {accuracy[mild, 'after']:.0%} for AMP, {accuracy['random', 'after']:.0%} for "
    "chance.": lead.clear and lead.difference > 0,
})  # fmt: skip
# %% [markdown]
# ## What this does not show
# - **One seed and few items.** `make results` trains with several seeds; lesson 5 shows its table.
# - **Recovery on home ground.** The training rows come from the same small world as the tests (never the same
#   combinations). For a large model, Alpaca and the benchmarks are strangers to each other.
# - **Other training.** Nothing here speaks of full fine-tuning, longer training or other ranks. A pruned model trained
#   on billions of tokens can end far from one trained for minutes.
# - **No general order of methods.** Training can even out what the criterion did, so compare before *and* after.
#
# ## References
# - Hu et al. (2021), *LoRA: Low-Rank Adaptation of Large Language Models*,
#   [arXiv 2106.09685](https://arxiv.org/abs/2106.09685); library `peft`.
# - AMP, [arXiv 2504.21174](https://arxiv.org/abs/2504.21174); recovery settings from its code,
#   `c2d-usp/Efficient-LLMs-with-AMP`: r = 8, α = 16, dropout 0.05, learning rate 0.0003, 2 epochs, loss on responses.
#
# ## Where next
# Every number in this lesson came from one seed. [Lesson 5](05_evaluation.ipynb) asks what a number needs before you
# may believe it.
# %% tags=["hide-input"]
L.finish()
