# lesson: Museum
# %% [markdown]
# # 3b · Museum: six broken surgeries
#
# Lesson 3 proved that a cut computes what its mask computes. Here are six faults, in the cut itself, or just before or
# after it. Each exhibit begins with what you would see. Stop there, and guess the cause before you read on.
#
# Exhibits 2, 3 and 5 are in AMP's official code. The others are not: it avoids 6 by scoring in fp32, and 1 and 4 are
# the mistakes closest to what it does.
#
# **Objectives.** After this lesson you can
#
# - recognise a broken surgery by its symptom, and say which question to ask first;
# - write the check that catches it: cut against mask, at real tokens, with room for rounding and none for NaN;
# - say why a perplexity can't stand in for that check.
#
# **Prerequisites.** Lesson 3. **Time:** {{minutes}}.
# %% tags=["parameters"]
model: str = "tiny-llama"  # of exhibits 1, 5 and 6, or another embedded model; the others need the one they name
ratio: float = 0.375  # share of the heads that go in exhibit 1
calibration: int = 64  # prompts that the score sees
seed: int = 0
preset: str = "smallest"  # anything else: more windows for each perplexity
out: str = "out"
# %% tags=["hide-input"]
import copy
import json
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

import amp_tutorial as amp
from amp_tutorial.course import lesson
from amp_tutorial.files.texts import pairs

L = lesson.start(
    "03b_museum", dict(model=model, ratio=ratio, calibration=calibration, seed=seed, preset=preset, out=out)
)
windows = 64 if preset == "smallest" else None
texts = amp.texts("tinyworld", "validation")[:16]
dense, tokenizer = amp.load(model)
anatomy = amp.Anatomy.of(dense)
d_h = anatomy.head_dim
scores = amp.score(dense, amp.calibration(tokenizer, samples=calibration, seed=seed))


def rows_of(tokenizer, texts):
    """Token ids and mask of some texts, padded."""
    found = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=96).to(dense.device)
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


@torch.no_grad()
def logits(network, inputs):
    """All logits, padding included."""
    return network(**inputs).logits


def read(network, tokenizer):
    return amp.perplexity(network, tokenizer, limit=windows, window=128)
# %% [markdown]
# ## The check
#
# A cut is right if it computes what its mask computes. What counts is neither its accuracy nor its perplexity, but
# *every logit at every real token*, up to rounding. One small function checks exhibits 1 to 3; the others get checks of
# their own. Write that function first.
#
# ### Exercise 1 · Do they agree?
# *Medium, 6 minutes.* `found` and `wanted` are logits (batch, length, vocabulary), `mask` (batch, length) is 1 at real
# tokens. Return whether they agree at those tokens, to within 1e-5 of the largest wanted logit in size. NaN agrees with
# nothing.
# %%
def agrees(found, wanted, mask) -> bool:
    """Whether two models say the same."""
    ...  # your answer here


agrees = L.check(agrees, "l3b_agrees")
# %% [markdown]
# {{hint:l3b_agrees}}
#
# {{solution:l3b_agrees}}
#
# A check must be seen to fail. So it is tried on what must agree and on what must not, before it judges anything:
# %%
# NBVAL_CHECK_OUTPUT
inputs = rows_of(tokenizer, texts)
mask, right = inputs["attention_mask"], logits(dense, inputs)
broken = right.clone()
broken[-1, -1, 0] = torch.nan  # one number in all
assert agrees(right, right, mask) and agrees(right * (1 + 1e-7), right, mask)
assert not agrees(right + 0.01, right, mask) and not agrees(broken, right, mask)
print("✔ it passes what is rounded, and stops an offset of 0.01 and a single NaN")
# %% tags=["hide-input"]
seen = {}  # of each exhibit: whether the check complains of the fault, and whether of its mend


def off(found, wanted, mask):
    """The worst difference at real tokens, in units of what the check allows; and of each text."""
    real = mask.bool()
    allowed = 1e-5 * wanted[real].abs().max()
    each = [((f - w)[m].abs().max() / allowed).item() for f, w, m in zip(found, wanted, real, strict=True)]
    return max(each), each
# %% [markdown]
# ## Exhibit 1: it runs, and the numbers are wrong
#
# **Symptom.** Heads were masked in the weights. There is no error, but the result is not what the mask gives.
# **Predict.** Will its perplexity be clearly worse than that of the right mask?
# %%
L.predict("against the right mask, the perplexity is", None, among=("clearly worse", "much the same", "clearly better"))
# %%
gone = round(ratio * anatomy.groups) * anatomy.group_size
heads_only = amp.keep(dense, scores, heads=anatomy.heads - gone, neurons=anatomy.neurons)


@torch.no_grad()
def zeroed(axis):
    """A copy of the model in which the removed heads' rows (0) or columns (1) of o_proj are zero."""
    copied = copy.deepcopy(dense)
    for i, stays in enumerate(heads_only.heads):
        weight = amp.Anatomy.of(copied).layer(i).output.weight
        goes = [n * d_h + j for n in range(anatomy.heads) if n not in stays for j in range(d_h)]
        weight.index_fill_(axis, torch.tensor(goes, device=weight.device), 0.0)
    return copied


rows, columns = zeroed(0), zeroed(1)
# %% tags=["hide-input"]
measured = {}
for name, network in (("dense", dense), ("columns zeroed", columns), ("rows zeroed", rows)):
    measured[name] = read(network, tokenizer)
    print(f"{name}: perplexity {amp.interval(measured[name]).bounds(3)}")
print(f"Protocol: {measured['dense'].protocol}.")
gap = amp.compare(measured["rows zeroed"], measured["columns zeroed"])
word = "clearly worse" if gap.clear and gap.difference > 0 else "much the same" if not gap.clear else "clearly better"
print(f"Rows against columns: {gap.ratio()} the perplexity, {word}.")
L.seen("against the right mask, the perplexity is", word)
# %% [markdown]
# **Diagnosis.** `o_proj.weight` is (hidden, heads · head_dim): its rows belong to the residual stream, its columns to
# the heads. Here there are 128 of each, so the square matrix takes either index. Zeroed rows silence part of what *all*
# heads say, and every removed head still speaks. Whether the perplexity is then better or worse than it should be
# proves nothing: a wrong cut may even look good. Only equality with the mask shows that a cut is right.
#
# **Mend.** Zero the columns.
# %%
# NBVAL_CHECK_OUTPUT
with amp.masked(dense, heads_only):
    right = logits(dense, inputs)
seen[1] = not agrees(logits(rows, inputs), right, mask), not agrees(logits(columns, inputs), right, mask)
assert seen[1] == (True, False)
print("✔ zeroed columns equal the mask, zeroed rows do not")
# %% [markdown]
# ## Exhibit 2: it depends on which heads survive
#
# **Symptom.** The same pruning code stops with an `IndexError` on one layer and runs through on another. The model has
# 8 query heads on 4 key-value heads.
# %%
gqa, gqa_tokenizer = amp.load("tiny-llama-gqa")
gqa_anatomy = amp.Anatomy.of(gqa)
size = gqa_anatomy.group_size
gqa_scores = amp.score(gqa, amp.calibration(gqa_tokenizer, samples=calibration, seed=seed))
gqa_plan = amp.keep(gqa, gqa_scores, heads=4, neurons=gqa_anatomy.neurons)
# %% tags=["hide-input"]
key = gqa_anatomy.layer(0).key.weight  # (4 groups · 16, hidden)
for stays in ([4, 5, 6, 7], [0, 1, 2, 3]):
    index = torch.tensor([n * 16 + j for n in stays for j in range(16)])
    try:
        print(f"query heads {stays}: rows {tuple(key.cpu()[index].shape)} of k_proj, no complaint")
    except IndexError as error:
        print(f"query heads {stays}: IndexError: {str(error).splitlines()[0]}")
crashes = 0
for stays in gqa_plan.heads:
    try:
        key.cpu()[[n * 16 + j for n in stays for j in range(16)]]
    except IndexError:
        crashes += 1
print(f"\nThe plan with two groups less: IndexError in {crashes} layers, silence in {gqa_anatomy.layers - crashes}.")
print("\nWhose key each head reads after the second cut:")
for place, n in enumerate([0, 1, 2, 3]):
    print(f"  head {n}: trained on group {n // size}, now reads group {place}")
# %% [markdown]
# **Diagnosis.** `k_proj` and `v_proj` were sliced with *query-head* indices. They have 4 heads, not 8. High indices
# fall off the end; low ones exist, and are the wrong ones. The crash is the lucky case.
#
# **Predict.** What does the unlucky case cost? Keep heads 0 to 3 in every layer. Done right, two groups stay. Done
# naively, all four stay, and the result is a legal model with four heads of each kind: it can be saved, it loads, and
# nothing warns. Only head 0 keeps its own key. At what share of the places does it say another next token than the
# right cut?
# %%
L.predict("places where the naive cut says another next token, in %", None)
# %%
low = replace(gqa_plan, heads=[[0, 1, 2, 3]] * gqa_anatomy.layers, criterion="")
config = copy.deepcopy(gqa.config)
config.num_attention_heads, config.num_key_value_heads = 4, 4
naive, weights, first = type(gqa)(config).eval().to(gqa.device), dict(gqa.state_dict()), range(4 * 16)
for name, weight in weights.items():
    if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
        weights[name] = weight[first]  # the same index for all three: the fault
    elif name.endswith("o_proj.weight"):
        weights[name] = weight[:, first]
print(naive.load_state_dict(weights))  # what PyTorch has to say about it
honest = amp.prune(gqa, low).model
# %% tags=["hide-input"]
many = rows_of(gqa_tokenizer, texts)
real = many["attention_mask"].bool()
with amp.masked(gqa, low):
    right = logits(gqa, many)
for name, network in (("right cut", honest), ("naive cut", naive)):
    found, other = read(network, gqa_tokenizer), (logits(network, many).argmax(-1) != right.argmax(-1))[real]
    cache = amp.size(network).kv_cache_bytes_per_token
    print(
        f"{name}: perplexity {amp.interval(found).bounds()}; logits off by up to "
        f"{(logits(network, many) - right)[real].abs().max():.2g};\n           another next token at "
        f"{other.float().mean():.0%} of the places; KV cache {cache:,} bytes a token"
    )
L.seen("places where the naive cut says another next token, in %", 100 * other.float().mean().item(), within=15)
seen[2] = [not agrees(logits(network, many), right, many["attention_mask"]) for network in (naive, honest)]
# %% [markdown]
# (The right cut is off by exactly 0: as the first heads stay, the mask only adds zeros at the end of the same sums.)
# Keeping the first four heads is a bad plan, so even the right cut is worse than the plan by score. The naive cut is
# another model altogether, and its cache has not shrunk. What gives it away is the difference from the mask: a
# perplexity alone would only say "pruning hurt".
#
# **Mend.** Keep the rows of groups: `sorted({head // group_size for head in kept})`, as in exercise 3 of lesson 3.
# %%
# NBVAL_CHECK_OUTPUT
cut = amp.prune(gqa, gqa_plan).model
for i in range(gqa_anatomy.layers):
    index = torch.tensor([group * 16 + j for group in gqa_plan.groups(i) for j in range(16)])
    found, wanted = amp.Anatomy.of(cut).layer(i), gqa_anatomy.layer(i)
    assert torch.equal(found.key.weight.cpu(), wanted.key.weight.cpu()[index])
    assert torch.equal(found.value.weight.cpu(), wanted.value.weight.cpu()[index])
with amp.masked(gqa, gqa_plan):
    right = logits(gqa, many)
assert agrees(logits(cut, many), right, many["attention_mask"]) and list(seen[2]) == [True, False]
print("✔ keys and values of whole groups: the cut equals the mask, and the naive one does not")
# %% [markdown]
# ## Exhibit 3: a different model at every load
#
# **Symptom.** The pruned model was fine in memory. After a reload it talks nonsense, and different nonsense each time.
# The log holds a warning, somewhere.
# %%
llama, llama_tokenizer = amp.load("tiny-llama")
llama_scores = amp.score(llama, amp.calibration(llama_tokenizer, samples=calibration, seed=seed))
half = amp.prune(llama, amp.keep(llama, llama_scores, heads=4, neurons=192)).model
where = amp.save(half, llama_tokenizer, Path(out) / "models" / "03b-no-head-dim", overwrite=True)
settings = json.loads((where / "config.json").read_text())
del settings["head_dim"]  # an older library, or a careless script, never wrote it
(where / "config.json").write_text(json.dumps(settings))

loads = []
for _ in range(2):
    broken, report = AutoModelForCausalLM.from_pretrained(where, ignore_mismatched_sizes=True, output_loading_info=True)
    loads.append(broken.eval().to(llama.device))
values = [amp.perplexity(broken, llama_tokenizer, limit=32, window=128).value for broken in loads]
good = amp.perplexity(half, llama_tokenizer, limit=32, window=128).value
print(f"in memory: perplexity {good:.2f}; reloaded: {values[0]:.1f}; reloaded again: {values[1]:.1f}")
print(f"Tensors that did not fit, and were drawn at random instead: {len(report['mismatched_keys'])}")
# %% [markdown]
# **Diagnosis.** Without `head_dim` in the configuration `transformers` guesses hidden / heads: 128 / 4 = 32, not 16. So
# no attention projection has the right shape. `ignore_mismatched_sizes=True` turns that error into a warning, and fresh
# random matrices take the place of the trained ones. AMP's official code carries this flag as a fallback.
#
# **Mend.** Write `head_dim` into the configuration, and never pass that flag. Without the flag `transformers` refuses
# loudly:
# %%
# NBVAL_CHECK_OUTPUT
refused = False
try:
    AutoModelForCausalLM.from_pretrained(where)
except Exception:
    refused = True
assert refused
print("✔ without the flag, the wrong configuration is refused")
settings["head_dim"] = 16
(where / "config.json").write_text(json.dumps(settings))
mended, report = AutoModelForCausalLM.from_pretrained(where, output_loading_info=True)
assert not any(report.values()), report
mended = mended.eval().to(llama.device)
own = rows_of(llama_tokenizer, texts)
right, own_mask = logits(half, own), own["attention_mask"]
seen[3] = not agrees(logits(loads[0], own), right, own_mask), not agrees(logits(mended, own), right, own_mask)
assert seen[3] == (True, False)
print("✔ with head_dim, reloaded equals in memory")
# %% [markdown]
# ## Exhibit 4: the size of a tensor
#
# **Symptom.** The code works on LLaMA. On Phi it stops in the first forward pass.
# %%
phi, _ = amp.load("tiny-phi")
block = amp.Anatomy.of(phi).layer(0)
(fc1,) = block.neurons_in
stays = torch.arange(0, fc1.out_features, 2)
x = torch.randn(5, fc1.in_features, generator=torch.Generator().manual_seed(seed)).to(phi.device)
try:
    F.linear(x, fc1.weight[stays], fc1.bias)
except RuntimeError as error:
    print(f"RuntimeError: {str(error).splitlines()[0]}")
# %% [markdown]
# **Diagnosis.** The rows of `fc1.weight` were cut, its bias was not. LLaMA has no biases, so nobody noticed.
#
# ### Exercise 2 · Cut the outputs
# *Easy, 3 minutes.* A linear layer has a weight (out, in) and a bias (out). Return both, with only the outputs in
# `kept`.
# %%
def without_rows(weight, bias, kept):
    """A linear layer with fewer outputs."""
    ...  # your answer here


without_rows = L.check(without_rows, "l3b_without_rows")
# %% [markdown]
# {{hint:l3b_without_rows}}
#
# {{solution:l3b_without_rows}}
#
# **Mend.** Cut the bias of whatever loses *rows* (query, key, value, `fc1`). Leave the bias of whatever loses *columns*
# (`dense`, `fc2`): it belongs to the hidden dimension. Two tempting "mends" are worse than the crash, because they run:
# %%
# NBVAL_CHECK_OUTPUT
wanted = fc1(x)[:, stays]
weight, bias = without_rows(fc1.weight, fc1.bias, stays.tolist())
L.assert_close(F.linear(x, weight, bias), wanted, 1e-5, "bias cut with its rows")
complaints = []
for name, bias_tried in (("without the bias", None), ("with the first biases", fc1.bias[: len(stays)])):
    complaints.append(bool((F.linear(x, fc1.weight[stays], bias_tried) - wanted).abs().max() > 1e-4))
    print(f"✔ {name} it runs, and is wrong")
seen[4] = all(complaints), False
assert seen[4][0]
# %% [markdown]
# ## Exhibit 5: a recovery that starts too high
#
# **Symptom.** Before any step of recovery, a trained model's loss on responses is far higher than its perplexity leads
# one to expect. All other code is right. (Lesson 4 says what is trained in a recovery, and on what; here a label is
# just the next token that the loss asks for, and a nat is the unit of the loss.)
# %%
@torch.no_grad()
def first_label(join):
    """Mean loss of the first label after the prompt, over 32 pairs; and what that label is."""
    found, names = [], set()
    for prompt, response in [pair for pair in pairs("tinyworld") if pair[0]][:32]:
        ids = torch.tensor([tokenizer(prompt)["input_ids"] + join(response)], device=dense.device)
        start = len(tokenizer(prompt)["input_ids"])
        scores_there = dense(input_ids=ids).logits[0, start - 1]
        found.append(F.cross_entropy(scores_there, ids[0, start]).item())
        names.add(tokenizer.decode(ids[0, start]))
    return sum(found) / len(found), names


as_found, names = first_label(lambda response: tokenizer(" " + response)["input_ids"])
clean, clean_names = first_label(
    lambda response: tokenizer(" " + response, add_special_tokens=False)["input_ids"]
)
print(f"as found: the first label costs {as_found:.2f} nats; the labels are {sorted(names)[:4]}")
print(f"mended:   the first label costs {clean:.2f} nats; the labels are {sorted(clean_names)[:4]} …")
# %% [markdown]
# **Diagnosis.** Prompt and answer were tokenised apart, and the tokenizer opens *each* with BOS. The second BOS stands
# between question and answer, and becomes the first label: recovery now teaches the model to say "begin".
#
# **Mend.** Pass `add_special_tokens=False` for everything but the start; and look at one row of token ids before
# training.
# %%
# NBVAL_CHECK_OUTPUT
seen[5] = names == {tokenizer.bos_token}, tokenizer.bos_token in clean_names
assert seen[5] == (True, False)
print("✔ the first label is BOS in the naive rows, and never in the mended ones")
# %% [markdown]
# ## Exhibit 6: the plan keeps the first heads, in every layer
#
# **Symptom.** After a long calibration the plan keeps heads 0, 1, 2, … of every layer.
# %%
tokens = 128 * 4096  # as many tokens as in TransAct's calibration, lesson 6b
sums = [values.double() * tokens for values in scores.heads]  # the mean, before it is divided by their number
in_half = [values.half() for values in sums]
lost = sum(int(values.isinf().sum()) for values in in_half)
print(
    f"fp16 ends at {torch.finfo(torch.float16).max:,.0f}; sums over {tokens:,} tokens reach {max(map(max, sums)):,.0f}."
)
print(f"In fp16, {lost} of {anatomy.heads * len(sums)} head scores are infinite.")
best = anatomy.heads * 5 // 8
keep_best = [sorted(torch.sort(v, descending=True, stable=True).indices[:best].tolist()) for v in in_half]
print("Kept heads, layer by layer: " + ", ".join(map(str, keep_best)))
# %% [markdown]
# **Diagnosis.** float16 ends at 65,504, and anything larger becomes infinity. A head's sum over so many tokens is far
# larger, so all of a layer's heads score infinity; a stable sort of equal numbers leaves them in the order of their
# indices, and "the best" are the first ones. No operation on the way is an error, so nothing warns.
#
# **Mend.** Convert the activations to fp32 before the norm, and sum in fp64, as the module does. The module also
# refuses scores that are not finite:
# %%
# NBVAL_CHECK_OUTPUT
assert all(values.isfinite().all() for values in scores.heads)
poisoned = copy.deepcopy(dense)
with torch.no_grad():
    amp.Anatomy.of(poisoned).layer(1).value.weight[0, 0] = float("inf")
try:
    amp.score(poisoned, amp.calibration(tokenizer, samples=4, seed=seed))
    refused = False
except ValueError:
    refused = True
in_order = all(kept == list(range(best)) for kept in keep_best)
seen[6] = in_order and lost == anatomy.heads * len(sums), not all(values.isfinite().all() for values in scores.heads)
assert refused and seen[6] == (True, False)
print("✔ scores are finite, and activations that are not are refused")
# %% [markdown]
# ## A diagnosis
#
# Four questions find five of the six exhibits; the sixth is a bad plan that was cut exactly, and only a look at the
# scores finds it. The order of the questions matters: an answer means nothing while the question before it is open.
#
# ### Exercise 3 · What would you look at first?
# *Medium, 6 minutes.* You are sent a pruned model and four facts: whether it stops with an error; whether two loads of
# it compute the same; whether it computes what its mask computes; whether the first label of its training rows is BOS.
# Return what to look at first: `"shapes"`, `"config"`, `"plan or indices"`, `"rows"` (of training), or `"nothing"`.
# %%
def diagnosis(stops, same_each_load, as_the_mask, first_label_is_bos) -> str:
    """Where to look first."""
    ...  # your answer here


diagnosis = L.check(diagnosis, "l3b_diagnosis")
# %% [markdown]
# {{hint:l3b_diagnosis}}
#
# {{solution:l3b_diagnosis}}
#
# ## The result
#
# How plainly does the check speak? Take the quietest of the faults, the rows of exhibit 1, text by text: its worst
# logit, in units of what the check allows. The baseline is what a perplexity says of the same fault, in units of what
# *its* interval allows: below 1 it would say nothing. The control is the mend, zeroed columns: it must stay below 1.
# %% tags=["hide-input"]
with amp.masked(dense, heads_only):
    of_heads = logits(dense, inputs)
with amp.masked(gqa, low):
    of_groups = logits(gqa, many)
told = {
    "1: rows for columns": (rows, columns, inputs, of_heads),
    "2: naive keys": (naive, honest, many, of_groups),
    "3: drawn at every load": (loads[0], mended, own, logits(half, own)),
}
fig, ax = plt.subplots(figsize=(7, 3.6))
words = []
for k, (name, (wrong, mend, given, wanted)) in enumerate(told.items()):
    for c, (what, network) in enumerate((("fault", wrong), ("mend", mend))):
        each = off(logits(network, given), wanted, given["attention_mask"])[1]
        drawn = [max(v, 1e-2) for v in each]  # what is exact is drawn at the bottom
        style = dict(color=lesson.PALETTE[c], marker=lesson.MARKERS[c], ls="", alpha=0.7, label=None if k else what)
        ax.plot([k + 0.3 * (c - 0.5)] * len(drawn), drawn, **style)
        words.append(f"{name}, {what} {sorted(each)[len(each) // 2]:,.2g}")
ax.axhline(1, color="0.2", ls="--")
ax.set_xticks(range(len(told)), told)
ax.set(yscale="log", ylabel="worst logit of a text\n(1 = what is allowed)")
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
L.show(fig, alt="Dots, a text each, log axis: the worst logit in units of what the check allows, of exhibits 1 to 3 and of "
       f"their mends. Medians: {'; '.join(words)}.")  # fmt: skip
# %%
with amp.masked(dense, heads_only):
    right = logits(dense, inputs)
each = torch.tensor(off(logits(rows, inputs), right, mask)[1])
low_end, middle, high_end = torch.quantile(each, torch.tensor([0.025, 0.5, 0.975])).tolist()
told = abs(gap.difference) / ((gap.high - gap.low) / 2)
L.signature(
    "Zeroed rows against the mask, in units of what the check allows",
    middle,
    low_end,
    high_end,
    "×",
    baseline=("their perplexity against zeroed columns', in half widths of the interval", told),
    control=("zeroed columns against the mask", off(logits(columns, inputs), right, mask)[0]),
    spread="95 % of the texts",
    must="that must stay below 1",
)
# %% tags=["hide-input"]
unheard = [network for network in (rows, naive, loads[0]) if logits(network, inputs).isfinite().all()]
faults, mends = sum(bool(fault) for fault, _ in seen.values()), sum(bool(mend) for _, mend in seen.values())
print(f"Of {len(seen)} exhibits the checks see {faults}; of their mends they complain of {mends}.")
L.conclude({
    f"All {len(seen)} faults are seen by checks of three lines, and none of the mends is blamed.":
        faults == len(seen) and mends == 0,
    f"Zeroed rows, naive keys, weights drawn anew: {len(unheard)} of the wrong models ran here without an error. That "
    "nothing stopped says nothing.": len(unheard) == 3,
    f"A perplexity says {gap.ratio()} of exhibit 1, whose worst logit is {middle:,.0f} times what the check "
    f"allows. What a bad plan costs and what a wrong cut costs look alike in it.": told < middle,
})  # fmt: skip
# %% [markdown]
# ## What this does not show
#
# - **All the ways to be wrong.** These are the ones met while this course was made, in official code and in bug
#   reports; a check against the mask does not depend on knowing them.
# - **That an exact cut is a good one.** It computes what its plan says, and the plan may be bad.
# - **Faults of scale.** Sharded checkpoints, several devices and quantised weights have faults of their own; the test
#   suite of `amp_tutorial` covers those.
#
# ## References
#
# - AMP, [arXiv 2504.21174](https://arxiv.org/abs/2504.21174); official code `c2d-usp/Efficient-LLMs-with-AMP`: exhibits
#   2, 3 and 5 were read in that code or run from it.
# - Ainslie et al. (2023), *GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints*,
#   [arXiv 2305.13245](https://arxiv.org/abs/2305.13245).
#
# ## Where next
# You can now tell an exact cut from a broken one. But an exact cut has lost something, too:
# [lesson 4](04_recovery.ipynb) asks how much a short fine-tuning brings back.
# %%
L.finish()
