# lesson: Quick tour
# %% [markdown]
# # 0 · Quick tour: cut 30 % of a language model
#
# A trained language model is full of parts that look alike: attention heads beside attention heads, thousands of
# neurons in a row. *Structured pruning* takes whole parts away and leaves a smaller, ordinary model. This tour does it
# once from end to end with **AMP** (attention heads and MLP pruning), and asks what became of the model. Every later
# lesson opens one of the boxes that stay closed here.
#
# **Objectives.** After this lesson you can
# - cut a model to a given size in seven lines, and say what went;
# - measure what got smaller and what got faster, and explain why the two ratios differ;
# - compare what the pruned model still knows with a random plan and with a plan that must fail;
# - load the result with plain `transformers`.
#
# **Prerequisites.** Python, and having used a language model before. **Time:** {{minutes}}.
# %% tags=["parameters"]
model: str = "tiny-llama"  # or "tiny-llama-gqa", "tiny-phi", a local folder, a hub id
ratio: float = 0.30  # share of all parameters to remove
calibration: int = 64  # texts that the score looks at
seed: int = 0
preset: str = "smallest"  # or "full": more test items and more repeats
out: str = "out"
# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from transformers import AutoModelForCausalLM

import amp_tutorial as amp
from amp_tutorial.course import lesson

parameters = dict(model=model, ratio=ratio, calibration=calibration, seed=seed, preset=preset, out=out)
L = lesson.start("00_quick_tour", parameters)
sizes = {"smallest": dict(items=40, repeats=3), "full": dict(items=200, repeats=9)}[preset]
# %% [markdown]
# ## The whole method
#
# The models of this course are tiny, but trained: on stories from a small world of people, tools, animals and places,
# so that what they know can be tested. Pruning one takes five steps: load it, read some *calibration* text, *score*
# every head and neuron by how much it contributes on that text, *plan* what stays, and *prune*.
# %% tags=["hide-input"]
L.drawing("pipeline")
# %% [markdown]
# **Predict.** About 30 % of all parameters are to go. Of the 8 heads in each layer, how many do you expect to lose?
#
# Put your answer into the next cell in place of `None`. The lesson sets it beside what is measured; without an answer
# it goes on all the same. A wrong guess is worth more than none: the answers that surprise you are the ones you will
# remember.
# %%
L.predict("heads that go from each layer", None)
# %%
dense, tokenizer = amp.load(model)
batches = amp.calibration(tokenizer, "tinyworld", samples=calibration, seed=seed)
scores = amp.score(dense, batches, criterion="amp")
plan = amp.plan(dense, scores, pruning_ratio=ratio)
small = amp.prune(dense, plan).model
folder = amp.save(small, tokenizer, Path(out) / "models" / f"{Path(model).name}-quick-tour", overwrite=True)
print(plan)
L.seen("heads that go from each layer", plan.of_heads - len(plan.heads[0]))
# %% [markdown]
# Together with the import these are seven lines, and the last one wrote the result to disk. The first line of the plan
# says how many heads and neurons stay in every layer. The others say which heads go: different ones in every layer, but
# always the same number, because a stock configuration has one number for all layers.
#
# If you expected each layer to lose 30 % of its parts, do the division: a larger share of the neurons went. The first
# exercise finds out why.
#
# ### Exercise 1 · How much must the blocks give?
# *Easy, 3 minutes.* Heads and neurons live in the decoder blocks. The token embeddings count among all parameters, but
# stay whole. So what share of the blocks' parameters must go?
# %%
def share_of_blocks(remove: float, parameters: int, block_parameters: int) -> float:
    """Share of the blocks that must go, so that `remove` of all parameters goes."""
    ...  # your answer here


share_of_blocks = L.check(share_of_blocks, "l0_share_of_blocks")
# %% [markdown]
# {{hint:l0_share_of_blocks}}
#
# {{solution:l0_share_of_blocks}}
# %%
before, after = amp.size(dense), amp.size(small)
share = share_of_blocks(ratio, before.parameters, before.block_parameters)
neurons_gone = 1 - len(plan.neurons[0]) / plan.of_neurons
print(f"{before.block_parameters / before.parameters:.0%} of the parameters are in the blocks,")
print(f"so {share:.0%} of the blocks must go for {ratio:.0%} of the model.")
print(f"The plan takes {1 - len(plan.heads[0]) / plan.of_heads:.0%} of the heads, {neurons_gone:.0%} of the neurons.")


# %% [markdown]
# The larger the model, the smaller this difference: embeddings are a large part of a tiny model, but only 4 % of
# LLaMA-2-7B (lesson 1 counts them). Heads are few, so their number is rounded, and neurons make up for the rounding.
#
# ### Exercise 2 · Pick what stays
# *Easy, 5 minutes.* Scores are one number per head, and higher means more important. Write the function that turns
# them into a choice: the positions of the `keep` highest scores, in ascending order.
# %%
def keep_best(scores: torch.Tensor, keep: int) -> list[int]:
    """Positions of the `keep` highest scores, in ascending order."""
    ...  # your answer here


keep_best = L.check(keep_best, "l0_keep_best")
# %% [markdown]
# {{hint:l0_keep_best}}
#
# {{solution:l0_keep_best}}
#
# Now let this function choose in every layer, and compare with the plan. Query heads that share a key-value head (in
# `tiny-llama-gqa`) can only go together, so their scores are added first; elsewhere a head is a group of its own.
# %%
# NBVAL_CHECK_OUTPUT
chosen = [keep_best(s.view(plan.of_groups, -1).sum(1), len(plan.groups(0))) for s in scores.heads]
L.assert_close(chosen, [plan.groups(i) for i in range(len(chosen))], 0, "the function chooses the heads of the plan")
chosen = [keep_best(s, len(plan.neurons[0])) for s in scores.neurons]
L.assert_close(chosen, plan.neurons, 0, "and its neurons")
# %% [markdown]
# ## Smaller
#
# **Predict.** If 30 % of the parameters are gone, how much smaller are the file, the work per token, and the cache of
# keys and values that text generation keeps?
# %%
L.predict("what shrinks most", None, among=("weights on disk", "multiply-adds per token", "KV cache per token"))
# %%
rows = {
    "parameters": (before.parameters, after.parameters, 1, ""),
    "weights on disk": (before.bytes, after.bytes, 2**20, " MiB"),
    "multiply-adds per token": (before.macs_per_token, after.macs_per_token, 1e6, " million"),
    "KV cache per token": (before.kv_cache_bytes_per_token, after.kv_cache_bytes_per_token, 2**10, " KiB"),
}
fig, ax = plt.subplots(figsize=(7.5, 2.8))
for i, (a, b, unit, word) in enumerate(rows.values()):
    ax.barh(i - 0.2, 1, 0.38, color=lesson.colour("dense"), hatch=lesson.HATCHES[0], label="dense" if i == 0 else None)
    ax.barh(i + 0.2, b / a, 0.38, color=lesson.colour("AMP"), hatch=lesson.HATCHES[1], label="pruned" if i == 0 else None)
    digits = ",.0f" if unit == 1 else ".2f"
    ax.text(1.01, i - 0.2, f"{a / unit:{digits}}{word}", va="center")
    ax.text(b / a + 0.01, i + 0.2, f"{b / unit:{digits}}{word} (−{1 - b / a:.0%})", va="center")
ax.set(yticks=range(len(rows)), yticklabels=list(rows), xticks=[0, 0.25, 0.5, 0.75, 1], xlim=(0, 1.3))
ax.set_xlabel("share of the dense model")
ax.invert_yaxis()
ax.grid(False)
ax.legend(loc="upper center", bbox_to_anchor=(0.4, 1.2), ncols=2, frameon=False)
text = "; ".join(f"{name} down by {1 - b / a:.0%}" for name, (a, b, _, _) in rows.items())
L.show(fig, alt=f"Bars for the dense and the pruned model, four measures of size: {text}.")
most = min(list(rows)[1:], key=lambda name: rows[name][1] / rows[name][0])
L.seen("what shrinks most", most)
# %% [markdown]
# Each pair of bars is one measure of cost, the dense model on top. Parameters and bytes fall by what was asked, to
# within one neuron per layer. Multiply-adds fall a little more, because of attention's own products, of queries with
# keys and of patterns with values: they belong to no weight, and they go with the heads. Over the weights alone the two
# shares would agree: in these models the embedding and the output head are one matrix, which costs one multiply-add per
# weight in the head, while looking tokens up costs none. The KV cache belongs to the heads alone, so it falls by the
# share of (key-value) heads that went.
#
# ## Faster?
#
# **Predict.** The parameters fall to about 70 %. Will the model be 1 / 0.7 ≈ 1.4 times as fast? We time two things
# separately: reading a prompt (*prefill*: all tokens at once) and writing (*decoding*: one token after another). The
# clock of a shared machine wanders, so the two models take turns, and a ratio is taken within each round.
# %%
L.predict("how many times as fast a prompt is read", None)
# %%
setting = dict(prompt=128, new=16, batch=8, repeats=sizes["repeats"])
rounds = [{"dense": amp.latency(dense, **setting), "pruned": amp.latency(small, **setting)} for _ in range(5)]
for phase in ("prefill", "decode"):
    ratios = sorted(times["dense"][phase].median / times["pruned"][phase].median for times in rounds)
    slow, fast = (sorted(times[name][phase].median for times in rounds)[2] for name in ("dense", "pruned"))
    L.record.metric(f"speed-up, {phase}", ratios[2], unit="×")
    L.record.notes[f"speed-up, {phase}"] = f"five rounds gave {ratios[0]:.2f} to {ratios[-1]:.2f}"
    print(f"{phase}: {slow * 1e3:.1f} ms → {fast * 1e3:.1f} ms, {ratios[2]:.2f} times as fast")
    print(f"    five rounds gave {ratios[0]:.2f} to {ratios[-1]:.2f}; threads: {torch.get_num_threads()}")
faster = L.record.metrics["speed-up, prefill"]["value"]
L.seen("how many times as fast a prompt is read", faster, within=0.1)
# %% [markdown]
# Read the range before the ratio: if it includes 1, these rounds show no speed-up at all. Prefill consists of large
# matrix products, so it has something to gain. The time to decode one token in a model this small is mostly the fixed
# cost of starting each operation, and there are as many operations as before. Lesson 5 measures both with more care.
#
# ## What does it still know?
#
# Making a model small is easy: delete anything. The question is what the *choice* was worth. So we make two more plans
# of exactly the same size:
#
# - **random**, the weaker baseline: heads and neurons drawn at random. A method that loses to it has learnt nothing
#   from the data;
# - **reversed**, the control that must fail: the parts AMP finds most important go, those it finds least important
#   stay. If this model is as good as the others, our tests can't tell pruned models apart.
# %%
models = {"dense": dense, "AMP": small}
for criterion in ("random", "reversed"):
    other = amp.plan(dense, amp.score(dense, batches, criterion, seed=seed), pruning_ratio=ratio)
    models[criterion] = amp.prune(dense, other).model
    heads, neurons = plan.shared(other)
    print(f"{criterion}: keeps {heads:.0%} of AMP's heads and {neurons:.0%} of its neurons")
# %%
# NBVAL_CHECK_OUTPUT
counts = [m.num_parameters() for name, m in models.items() if name != "dense"]
L.assert_close(counts, [counts[0]] * 3, 0, "the three pruned models have the same number of parameters")


# %% [markdown]
# First impressions first. Each prompt below is a test question; the models have never seen its combination of words.
# The right answer stands beside it, then what each model writes.
# %%
def answer(model: torch.nn.Module, prompt: str, new: int = 5) -> str:
    """What the model writes after the prompt, up to the end of the sentence."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(model.device)
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
    return tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).split(".")[0].strip()


for task in ("tiny_tool", "tiny_fact", "tiny_ending", "tiny_owner", "tiny_chain"):
    lines = (amp.DATA / "tasks" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    item = json.loads(lines[8 * seed % len(lines)])
    print(f"{item['prompt']} … {item['choices'][item['answer']]}")
    print("   " + "   ".join(f"{name}: {answer(m, item['prompt'])!r}" for name, m in models.items()) + "\n")
# %% [markdown]
# Five prompts are an anecdote. The tests of this course are six multiple-choice tasks, one per skill (a tool's
# purpose, a fitting ending, an owner, a fact, two facts chained, yes or no), run by lm-eval as the field does it: each
# choice is scored by its likelihood, and the most likely one counts as the answer.
#
# **Predict.** Put the four models in order: dense, AMP, random, reversed. Which of the pruned ones knows least?
# Guessing gives 38 % on average over the tasks.
# %%
L.predict("which of the pruned models knows least", None, among=("AMP", "random", "reversed"))
# %%
results = {name: amp.accuracy(m, tokenizer, limit=sizes["items"]) for name, m in models.items()}
for name, result in results.items():
    mean = result.mean
    print(f"{name:>9}: {mean.value:.1%} right (95 % interval {mean.low:.1%} to {mean.high:.1%}, {mean.n} items)")
# %%
def reach(m: amp.Measured) -> tuple[float, float]:
    """How far the interval of an accuracy goes down and up."""
    return m.value - m.low, m.high - m.value


fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), width_ratios=(1.2, 1.7), sharey=True)
chance = sum(amp.CHANCE.values()) / len(amp.CHANCE)
for i, (name, result) in enumerate(results.items()):
    style = dict(color=lesson.colour(name), hatch=lesson.HATCHES[i], edgecolor="white")
    left.bar(i, result.mean.value, yerr=[[below] for below in reach(result.mean)], capsize=4, **style)
    xs = [t + (i - 1.5) * 0.17 for t in range(len(amp.TASKS))]
    errors = list(zip(*(reach(m) for m in result.values()), strict=True))
    shape = dict(fmt=lesson.MARKERS[i], color=lesson.colour(name), capsize=2, label=name)
    right.errorbar(xs, [m.value for m in result.values()], yerr=errors, **shape)
left.axhline(chance, color="0.2", ls="--")
left.set(xticks=range(len(results)), xticklabels=list(results), ylim=(0, 1.1), ylabel="accuracy")
left.set_title("mean of six tasks")
for t, task in enumerate(amp.TASKS):
    right.hlines(amp.CHANCE[task], t - 0.4, t + 0.4, color="0.2", ls="--", label=None if t else "chance")
names = [task.removeprefix("tiny_") for task in amp.TASKS]
right.set(xticks=range(len(names)), xticklabels=names, title="each task")
right.legend(frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.12))
means = ", ".join(f"{name} {result.mean.value:.0%}" for name, result in results.items())
L.show(fig, alt=f"Accuracy of four models, mean over six tasks on the left: {means}; chance is {chance:.0%}. "
       "On the right the same models on each task, with 95 % intervals and chance as dashed lines.")  # fmt: skip


# %% [markdown]
# On the left, bars are means over the six tasks, whiskers their 95 % intervals, and the dashed line is guessing. On the
# right are the same models task by task; each task asks few items, so the intervals are wide. The skills do not fall
# together: see which hold, and which drop to their dashed line. But look at the dense model first: a skill that was
# never there can't be lost.
# %%
def told_apart(a: amp.Measured, b: amp.Measured) -> str:
    """Whether two accuracies differ by more than chance: both answered the same items, so item by item."""
    gap = amp.compare(a, b)
    if not gap.clear:
        return "can't be told apart from"
    return "is above" if gap.difference > 0 else "is below"


mean = {name: result.mean for name, result in results.items()}
for name in ("dense", "random", "reversed"):
    print(f"AMP ({mean['AMP'].value:.0%}) {told_apart(mean['AMP'], mean[name])} {name} ({mean[name].value:.0%}).")
worst = min(mean, key=lambda name: mean[name].value)
unlearnt = [task for task, m in results["dense"].items() if m.low <= amp.CHANCE[task]]
failed = told_apart(mean["reversed"], mean["AMP"]) == "is below"
if failed:
    print("The control failed, as it must.")
elif told_apart(mean["AMP"], mean["random"]) == "is below":
    print("The control did no worse than AMP, because AMP did badly: a random draw beats it here. Lesson 2 asks why.")
else:
    print("The control did not fail: with so few items these plans can't be ranked.")
print(f"Lowest of all: {worst}.")
print(f"Tasks on which the dense model itself can't be told from guessing: {', '.join(unlearnt) or 'none'}.")
L.seen("which of the pruned models knows least", worst)
# %% [markdown]
# ## The result
#
# This is the number that goes into the lesson's record: what is left after the cut, before any recovery, beside the
# baseline and the control.
# %%
percent = {name: 100 * m.value for name, m in mean.items()}
L.record.metric("dense mean accuracy", percent["dense"], 100 * mean["dense"].low, 100 * mean["dense"].high, unit="%")
L.signature(
    f"mean accuracy after cutting {ratio:.0%} by AMP",
    percent["AMP"],
    100 * mean["AMP"].low,
    100 * mean["AMP"].high,
    "%",
    baseline=("a random plan of the same size", percent["random"]),
    control=("AMP's ranking reversed", percent["reversed"]),
)
L.conclude({
    f"Of {percent['dense']:.0f} % right answers {percent['AMP']:.0f} % are left after the cut by AMP, "
    f"{percent['random']:.0f} % by lot, {percent['reversed']:.0f} % by AMP reversed: the choice decides, not the size.":
        all(told_apart(mean["AMP"], mean[name]) == "is above" for name in ("random", "reversed")),
    f"The file shrinks by {1 - after.bytes / before.bytes:.0%}, as the parameters do; the time for a prompt need not "
    "follow, and has to be measured.": abs(after.bytes / before.bytes - after.parameters / before.parameters) < 0.02,
})  # fmt: skip
# %% [markdown]
# ### Exercise 3 · Which one would you ship?
# *Medium, 5 minutes.* A pruned model has to fit its place: so much memory, so many milliseconds per token. `plans` maps
# a name to megabytes, milliseconds and accuracy. Return the name of the plan you would ship, or None if none will do.
# %%
def ship(plans: dict[str, tuple[float, float, float]], megabytes: float, milliseconds: float) -> str | None:
    """The plan for this place."""
    ...  # your answer here


ship = L.check(ship, "l0_ship")
# %% [markdown]
# {{hint:l0_ship}}
#
# {{solution:l0_ship}}
#
# Did you pick the smallest? A limit is met or it is not. Once it is met, a smaller model is worth nothing more; a right
# answer is.
#
# ## Try it: another ratio
#
# At what share does the model stop making sense? (In a live notebook a slider sets it; on paper it stays at 30 %.) The
# parts are silenced, not cut, which computes the same.
# %%
def removed(percent: int = 30) -> None:
    """Perplexity, and answers, with so many percent of all parameters gone."""
    with amp.masked(dense, amp.plan(dense, scores, pruning_ratio=percent / 100)):
        left = amp.perplexity(dense, tokenizer, limit=16)
        print(f"{percent} % removed: perplexity {left.value:.2f}")
        for asked in ("tiny_tool", "tiny_fact", "tiny_chain"):
            item = json.loads((amp.DATA / "tasks" / f"{asked}.jsonl").read_text(encoding="utf-8").splitlines()[8])
            print(f"  {item['prompt']} … {answer(dense, item['prompt'])!r}, right: {item['choices'][item['answer']]}")


lesson.widget(removed, percent=(5, 50, 5))
# %% [markdown]
# ## Load it like any other model
#
# Nothing of this course is needed to use the result: `transformers` alone loads the folder. The check compares it with
# the model in memory, and that model with the dense one in which the removed parts are silenced but still there.
# %%
reloaded = AutoModelForCausalLM.from_pretrained(folder).to(dense.device)
print(f"{type(dense).__name__} → {type(reloaded).__name__} with {reloaded.num_parameters():,} parameters")
# %%
# NBVAL_CHECK_OUTPUT
batch = {name: tensor.to(dense.device) for name, tensor in batches[0].items()}
with torch.no_grad():
    cut = small(**batch).logits
    L.assert_close(reloaded(**batch).logits, cut, 1e-6, "the reloaded model computes what the pruned one does")
    with amp.masked(dense, plan):
        L.assert_close(dense(**batch).logits, cut, 1e-4, "the pruned model computes what the masked dense one does")
# %% [markdown]
# Did the class change to Mistral? A LLaMA configuration refuses a head count that does not divide its hidden size.
# Mistral without its sliding window computes the same and takes any count, so such a model is stored as a Mistral.
# Lesson 3 tells the whole story.
#
# ## What this does not show
# - **One plan per criterion, one seed, few items.** A lucky draw can flatter the random plan, and an unlucky one AMP.
#   Lesson 5 repeats the comparison over seeds.
# - **Nothing was recovered.** In practice pruning is followed by a short fine-tuning (lesson 4), which can change
#   the order of methods.
# - **A tiny world.** The models have about a million parameters. That a criterion wins or loses here does not say what
#   it does on 7 billion. For LLaMA-2-7B at 30 % the paper reports a mean accuracy of 61.0 % (second-hand: from a
#   summary of it, not checked here).
# - **No speed-up in general.** The ratios above are this machine's, with these shapes.
#
# ## References
# - AMP: *attention heads and MLP pruning*, [arXiv 2504.21174](https://arxiv.org/abs/2504.21174), IJCNN 2025; code
#   `c2d-usp/Efficient-LLMs-with-AMP`.
# - The tasks and models: this repository's `data/README.md`.
# - lm-eval, the evaluation harness: <https://github.com/EleutherAI/lm-evaluation-harness>.
#
# ## Where next
# You have cut a model without knowing what a head does in it. [Lesson 1](01_anatomy.ipynb) takes a model apart: where
# heads and neurons live in the weights, and why a layer's output is a sum over them.
# %%
L.finish()
