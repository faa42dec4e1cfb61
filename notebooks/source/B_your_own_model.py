# lesson: Prune your own model
# %% [markdown]
# # B · Prune your own model: from a name to a folder that loads
#
# The lessons prune tiny models, because those can be taken apart. The same calls prune a model you know from the hub.
# This page goes the whole way once, as you would: first ask what it will cost and what will come of it, before a single
# weight is read; then prune, measure and save; then load the result without any code of ours. It runs on an embedded
# model. To run it on another one, change the name in the next cell.
#
# **Objectives.** After this appendix you can
# - tell from a configuration alone whether your machine can prune a model, and about how long scoring takes;
# - read `amp.preview`: what will be cut, what will be saved, and which programs will load it;
# - prune a model in ten lines, and say what it lost compared with a random plan of the same size;
# - score once and look at many ratios;
# - choose what to do when a model is larger than your memory.
#
# **Prerequisites.** Lesson 0; lesson 3 for the details of the cut. **Time:** {{minutes}}.
# %% tags=["parameters"]
model: str = "tiny-llama"  # or a local folder with safetensors, or a hub id such as "owner/name"
ratio: float = 0.30  # share of all parameters to remove
calibration: int = 64  # texts that the score looks at
text: str = "tinyworld"  # where they come from: for a model of your own a .txt or .jsonl file of yours
align: int = 1  # 32 or 256 makes the number of neurons a multiple, which quantised formats and GPUs like
seed: int = 0
preset: str = "smallest"  # or "full": all of the validation text
out: str = "out"
# %%
import math
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import amp_tutorial as amp
from amp_tutorial.course import lesson
from amp_tutorial.measure.check import matmul_speed

parameters = dict(model=model, ratio=ratio, calibration=calibration, text=text, align=align, seed=seed, preset=preset)
L = lesson.start("B_your_own_model", parameters | dict(out=out))
windows = {"smallest": 200, "full": None}[preset]
# %% [markdown]
# ## Before anything is loaded
#
# A configuration is a small file, and it says everything about size. `amp.estimate` builds the model on torch's *meta*
# device: every tensor has a shape there and no content, so even a model of a hundred gigabytes is built in a moment.
#
# **Predict.** LLaMA-2-7B is stored in 16-bit numbers. How many GiB are its weights? Will scoring need much more than
# that? And pruning?
# %%
L.predict("GiB of LLaMA-2-7B's weights", None)
# %%
# NBVAL_CHECK_OUTPUT
llama_2_7b = AutoConfig.for_model("llama", dtype="float16")  # its sizes are the defaults of this configuration
weighed = amp.estimate(llama_2_7b, batch=8, length=512)
print(weighed)
L.seen("GiB of LLaMA-2-7B's weights", weighed.weights / 2**30, within=1.5, unit="GiB")
# %% [markdown]
# Scoring adds little: it keeps no gradients, one layer's activations at a time, and no logits. `amp.prune` returns a
# new model, so the dense and the pruned weights stand side by side for a moment; with `inplace=True` the dense ones
# are given up one by one.
#
# Here are four models of very different size, and three things that take memory.
# %%
# NBVAL_CHECK_OUTPUT
known = {
    "LLaMA-2-7B": llama_2_7b,
    "Llama-3-8B": AutoConfig.for_model(
        "llama", dtype="bfloat16", vocab_size=128256, intermediate_size=14336, num_key_value_heads=8
    ),
    "Phi-2": AutoConfig.for_model(
        "phi", dtype="float16", hidden_size=2560, intermediate_size=10240, num_hidden_layers=32, pad_token_id=None
    ),  # transformers 5.0 wants to be told that no token pads
    "GPT-2": AutoConfig.for_model("gpt2", dtype="float32"),
}
costs = {name: amp.estimate(config) for name, config in known.items()}
for name, cost in costs.items():
    print(f"{name:>10}: {cost.parameters:>13,} parameters, KV cache {cost.kv_cache_per_token:>7,} bytes per token")
# %%
fig, ax = plt.subplots(figsize=(7.5, 3.4))
bars = {"weights": "weights", "while scoring": "score_peak", "while pruning": "prune_peak"}
for i, (label, part) in enumerate(bars.items()):
    ys = [j + (i - 1) * 0.26 for j in range(len(costs))]
    widths = [getattr(cost, part) / 2**30 for cost in costs.values()]
    ax.barh(ys, widths, 0.24, color=lesson.PALETTE[i], hatch=lesson.HATCHES[i], label=label)
    for y, width in zip(ys, widths, strict=True):
        ax.text(width + 0.3, y, f"{width:.1f}", va="center", fontsize=8)
ax.set(yticks=range(len(costs)), yticklabels=list(costs), xlabel="GiB", xlim=(0, 33))
ax.invert_yaxis()
ax.grid(False)
ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False)
told = "; ".join(f"{name} {c.weights / 2**30:.1f}, {c.score_peak / 2**30:.1f} and {c.prune_peak / 2**30:.1f} GiB"
                 for name, c in costs.items())  # fmt: skip
L.show(fig, alt=f"Bars of memory for four models: weights, peak while scoring and peak while pruning. {told}.")
# %% [markdown]
# There are three bars per model: the weights, the peak while scoring and the peak while pruning. The first number is
# exact. The peaks are estimates: in this repository's tests the tensors that are alive at once take 0.7 to 1.5 times
# what is estimated for them, and libraries keep buffers of their own.
#
# ### Exercise 1 · The cache of keys and values
# *Easy, 3 minutes.* The weights of a served model are there once; its KV cache grows with every token that it reads or
# writes, for every text that it serves at the same time. The heads you cut make this cache smaller. How many bytes does
# it take?
# %%
def kv_cache_bytes(
    layers: int, groups: int, head_dim: int, bytes_per_number: int, tokens: int, texts: int
) -> int:
    """Bytes of the keys and values that generation keeps, for so many texts of so many tokens."""
    ...  # your answer here


kv_cache_bytes = L.check(kv_cache_bytes, "b_kv_cache_bytes")
# %% [markdown]
# {{hint:b_kv_cache_bytes}}
#
# {{solution:b_kv_cache_bytes}}
# %%
# NBVAL_CHECK_OUTPUT
for name, groups in (("LLaMA-2-7B", 32), ("Llama-3-8B", 8)):
    one = kv_cache_bytes(32, groups, 128, 2, 1, 1)
    L.assert_close(one, costs[name].kv_cache_per_token, 0, f"{name}: the estimate says the same for one token")
    print(f"    16 texts of 4,096 tokens: {kv_cache_bytes(32, groups, 128, 2, 4096, 16) / 2**30:.0f} GiB")
# %% [markdown]
# For 16 long texts the cache of LLaMA-2-7B is larger than its weights. That of Llama-3-8B is not, thanks to grouped
# queries: four query heads share a key and a value.
#
# ## And this model, on this machine?
#
# The work of scoring is nearly all matrix products, so its time is at least their number of operations divided by the
# speed of your machine. One product of two 1,024 × 1,024 matrices tells that speed, roughly.
# %%
cost = amp.estimate(model)
print(cost)
speed = matmul_speed()
tokens = calibration * 128
expected = cost.seconds(tokens, speed)
for name, which in ({model: cost} | costs).items():
    print(f"{Path(name).name:>12}: at least {which.seconds(tokens, speed):7,.1f} s to score {tokens:,} tokens here")
print(f"    at {speed / 1e9:,.0f} billion operations a second, float32 on the CPU, threads: {torch.get_num_threads()}")
# %% [markdown]
# **Predict.** Will your measured time be near this least time, twice it, or ten times? Think of how large the matrices
# of a tiny model are.
# %%
L.predict("the measured time, against the least", None, among=("near it", "twice", "ten times"))
# %% [markdown]
# ## Ten lines
#
# Here is the way from a name to a folder. Each line was a lesson, or part of one.
# %%
dense, tokenizer = amp.load(model)
batches = amp.calibration(tokenizer, text, samples=calibration, seed=seed)
began = time.perf_counter()
scores = amp.score(dense, batches)
took = time.perf_counter() - began
def plan_at(share, scores):
    heads, neurons = amp.widths_at(dense, share, align=align, nearest=True)
    return amp.keep(dense, scores, heads, neurons)


plan = plan_at(ratio, scores)
print(found := amp.preview(dense, plan))
small = amp.prune(dense, plan).model
folder = amp.save(small, tokenizer, Path(out) / "models" / f"{Path(model).name}-pruned", overwrite=True)
quality = {name: amp.perplexity(m, tokenizer, text, limit=windows) for name, m in (("dense", dense), ("AMP", small))}
# %% [markdown]
# Read what `amp.preview` printed, from the top.
#
# - **Cut.** The same numbers in every layer, because a stock configuration has one number for all layers.
# - **Saved as.** Usually the family of the source. A LLaMA whose new head count does not divide its hidden size is
#   saved as the equivalent Mistral (lesson 3). Where no configuration can hold a number of heads, `preview` says which
#   numbers one can hold, and `nearest=True` in the plan picks the nearest.
# - **Loads in.** One line per program, with the reason and, in brackets, how well that is known. *Measured* means that
#   a pruned model was loaded and its logits compared. *Read in source* means that the program's own code was read, in
#   the version named. Some programs ignore `head_dim` in some families and guess the size of a head from the hidden
#   size: a model that has lost heads does not load there, one that has lost neurons may.
# %%
seen = sum(int(batch["attention_mask"].sum()) for batch in batches)
least = cost.seconds(seen, speed)
print(f"Scoring took {took:.2f} s for {seen:,} tokens; the products alone need {least:.2f} s at this machine's best.")
print(f"Of that best speed this was {least / took:.0%}.")
times = {"near it": 1, "twice": 2, "ten times": 10}
L.seen("the measured time, against the least", min(times, key=lambda name: abs(math.log(took / least / times[name]))))
# %% [markdown]
# So take the least time for what it is: a bound. A tiny model is far from it, because it spends most of its time
# starting small products; a large model has large ones. (A GPU has another speed:
# `matmul_speed(dtype=torch.float16, device="cuda")`.)
#
# ## Does it load?
#
# The folder is an ordinary checkpoint. Plain `transformers` loads it, and computes what the model in memory does.
# %%
# NBVAL_CHECK_OUTPUT
reloaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
batch = {name: tensor.to(dense.device) for name, tensor in batches[0].items()}
with torch.no_grad():
    L.assert_close(reloaded.to(dense.device)(**batch).logits, small(**batch).logits, 1e-6, "the logits are the same")
L.assert_close(reloaded.num_parameters(), found.parameters[1], 0, "it has the parameters that the check foretold")
L.assert_close(sum(map(len, report.values())), 0, 0, "no weight is missing, left over or of another shape")
# %% [markdown]
# ## What did it cost?
#
# Making a model small is easy; the question is what the choice was worth. So we make two more plans of the same size:
# **random**, the weaker baseline, and **reversed**, which removes what AMP finds most important and must be worse.
#
# **Predict** the order of the four perplexities, from dense to the highest, and the distance between AMP and random.
# %%
L.predict("the highest of the four perplexities", None, among=("dense", "AMP", "random", "reversed"))
# %%
for criterion in ("random", "reversed"):
    other = plan_at(ratio, amp.score(dense, batches, criterion, seed=seed))
    quality[criterion] = amp.perplexity(amp.prune(dense, other).model, tokenizer, text, limit=windows)
for name, p in quality.items():
    print(f"{name:>9}: perplexity {amp.interval(p).bounds()}, with its 95 % interval")
print(f"    {quality['dense'].protocol}")
sure = amp.interval(quality["AMP"])
L.signature("perplexity after pruning", sure.value, sure.low, sure.high, "",
            baseline=("random", quality["random"].value), control=("reversed", quality["reversed"].value))  # fmt: skip
L.seen("the highest of the four perplexities", max(quality, key=lambda name: quality[name].value))
# %% [markdown]
# Keep two things in mind with a model of your own. First, calibrate on one text and measure on another: `tinyworld`
# comes split, but a file of yours you must split yourself. Second, nothing was recovered here: the step between pruning
# and use is `amp.recover` (lesson 4).
#
# ## Score once, prune many
#
# Scoring is the part that costs a pass over text. Scores don't depend on the ratio, so keep them in one small file,
# with the hashes of the model and of the calibration text: every later plan starts from there. A mask tells what a cut
# would do (lesson 3), so trying a ratio needs no second model.
#
# **Predict.** Where does AMP's curve leave the dense model? Is random's distance the same at every ratio: of AMP's
# perplexity, is random's a larger multiple at 50 % than at 10 %, or a smaller one?
# %%
L.predict("random's multiple of AMP's perplexity, at 50 %", None, among=("larger", "smaller"))
# %%
kept = scores.save(Path(out) / "models" / f"{Path(model).name}-scores.safetensors", overwrite=True)
again = {"AMP": amp.Scores.load(kept), "random": amp.score(dense, [], "random", seed=seed)}
tried = [0.1, 0.2, 0.3, 0.4, 0.5]
curves = {name: [] for name in again}
for name, those in again.items():
    for share in tried:
        with amp.masked(dense, plan_at(share, those)):
            curves[name].append(amp.perplexity(dense, tokenizer, text, limit=windows))
fig, ax = plt.subplots(figsize=(7, 3.6))
for i, (name, points) in enumerate(curves.items()):
    values = [point.value for point in points]
    sure = [amp.interval(point) for point in points]
    spread = [[p.value - p.low for p in sure], [p.high - p.value for p in sure]]
    style = dict(marker=lesson.MARKERS[i], color=lesson.colour(name), ls=("-", "--")[i], capsize=3, label=name)
    ax.errorbar([100 * share for share in tried], values, spread, **style)
ax.axhline(quality["dense"].value, color="0.2", ls=":", label="dense")
ax.set(xlabel="removed: % of all parameters", ylabel="perplexity (logarithmic)", yscale="log", xticks=range(10, 60, 10))
ax.legend()
told = "; ".join(f"{share:.0%}: " + ", ".join(f"{name} {points[k].value:.3g}" for name, points in curves.items())
                 for k, share in enumerate(tried))  # fmt: skip
L.show(fig, alt=f"Perplexity by the share of parameters removed, two rising lines with 95 % intervals; the dense model "
       f"has {quality['dense'].value:.3g}. {told}.")  # fmt: skip
multiple = [random.value / point.value for random, point in zip(curves["random"], curves["AMP"], strict=True)]
L.seen("random's multiple of AMP's perplexity, at 50 %", "larger" if multiple[-1] > multiple[0] else "smaller")
# %%
# NBVAL_CHECK_OUTPUT
assert again["AMP"].made_for(dense)
assert plan_at(ratio, again["AMP"]) == plan
print("✔ the scores from the file are this model's, and give the plan from before")
# %% [markdown]
# A curve says more than a point: choose the ratio from it, and prune once. The intervals are over windows of text;
# another calibration sample, or another random seed, moves the points as well.
#
# ## When the model is larger than memory
#
# | what is too large | what to do |
# |---|---|
# | dense and pruned weights together | `amp.prune(dense, plan, inplace=True)` |
# | the dense weights | `amp.prune_folder(source, target, pruning_ratio=ratio)`: layer by layer from disk |
# | the weights for one GPU | `amp.load(model, device="cpu")`, which is slower, or `prune_folder` |
# | the activations | smaller batches: `amp.calibration(…, batch_size=1)`; the scores are the same |
#
# Here is the second row, once, on an embedded model: every layer is read, scored, cut and written by itself, and what
# comes out must equal what the ten lines give. **Predict.** Nearly, or to the last bit?
# %%
L.predict("the two are equal", None, among=("nearly", "to the last bit"))
# %%
# NBVAL_CHECK_OUTPUT
whole, its_tokenizer = amp.load("tiny-phi", device="cpu")
its_scores = amp.score(whole, amp.calibration(its_tokenizer, seed=seed))
in_memory = amp.prune(whole, amp.plan(whole, its_scores, pruning_ratio=0.30)).model.state_dict()
with tempfile.TemporaryDirectory() as place:
    amp.prune_folder("tiny-phi", Path(place) / "pruned", pruning_ratio=0.30, seed=seed, progress=False)
    streamed = AutoModelForCausalLM.from_pretrained(Path(place) / "pruned").state_dict()
assert in_memory.keys() == streamed.keys()
L.assert_close(sum(not torch.equal(in_memory[n], streamed[n]) for n in in_memory), 0, 0, "layer by layer: equal bits")
L.seen("the two are equal", "to the last bit")
# %% [markdown]
# To the last bit, on the CPU. `python benchmarks/larger_than_memory.py` does it with a model that does not fit.
#
# Hub models come through `amp.load("owner/name")`, unless the environment says `HF_HUB_OFFLINE=1`; for `prune_folder`
# fetch the folder first (`hf download owner/name --local-dir folder`). Only safetensors are read. Quantised checkpoints
# are refused: prune the full-precision original, and quantise what comes out.
#
# ## What this does not show
# - **That your model survives 30 %.** Perplexity on one text says little about what your users ask. Measure that.
# - **Peak memory to the byte.** The estimate counts tensors; allocators and kernels add their own.
# - **Programs of next year.** The rules of other programs were read in the versions named, and may change.
# - **Speed.** Fewer operations are not always less time: lesson 5 measures.
#
# ## References
# - The meta device: <https://docs.pytorch.org/docs/stable/meta.html>.
# - vLLM, <https://github.com/vllm-project/vllm>; llama.cpp, <https://github.com/ggml-org/llama.cpp>.
# - safetensors, why there are no pickles here: <https://huggingface.co/docs/safetensors>.
#
# ## Where next
# [Lesson 4](04_recovery.ipynb) recovers what was lost, and [lesson 5](05_evaluation.ipynb) says which differences are
# real.
# %%
L.finish()
