# lesson: Reproduce
# %% [markdown]
# # Reproduce: one row of a table, from one set of parameters
#
# The lessons take AMP apart. This notebook does the whole of it once: load, calibrate, score, plan, cut, measure,
# recover, measure again, record. There is one notebook for all sizes: the cell below says what is done, and nothing
# else has to be changed. From a shell, a preset fills that cell for you:
#
# ```
# amp-tutorial run --preset ci                          # an embedded model, seconds
# amp-tutorial run --preset smollm2-20 -p seed=1        # one value changed
# amp-tutorial run --preset paper-llama-2-7b-30 --dry-run   # what it would need
# ```
#
# **Objectives.** After this notebook you can
# - run one configuration of AMP, and know from its record exactly what was run;
# - say before the run whether your machine can do it;
# - tell which choices of the released code differ from the clean definition, and switch between them.
#
# **Prerequisites.** Lessons 2 to 5. **Time:** {{minutes}} with these values; for others see the estimate below.
# %% tags=["parameters"]
preset: str = ""  # the parameter file that these values are from; a note for the record, and no more
model: str = "tiny-llama"  # an embedded name, a local folder, or a hub id "owner/name"
revision: str = ""  # of a hub id: branch, tag or commit; empty: its default branch (the record says which commit it was)
ratio: float = 0.3  # share of all parameters to remove; 0: heads and neurons say what stays
heads: int = 0  # heads that stay in every layer, instead of a ratio; 0: not said
neurons: int = 0  # neurons that stay in every layer, instead of a ratio; 0: not said
criterion: str = "amp"  # amp, reversed, random, magnitude, transact, wanda, flap or taylor
unit: str = "groups"  # with grouped queries: cut whole KV groups, or "queries" of every group
shots: int = 1  # score, cut and recover so many times in a row, as TransAct does; needs heads and neurons
repair: str = "none"  # solve: output projections are solved for after the cut; choose: it also chooses what stays
fidelity: str = "clean"  # official: AMP's released code in prompts, template, average and rounding, where it differs
calibration: int = 64  # texts that scores and repair look at
calibration_text: str = "tinyworld"  # tinyworld, alpaca, wikitext2, ptb, c4, or a text, JSON, JSONL file or saved data set
calibration_length: int = 128  # tokens of each at most
recovery: str = "lora"  # or "none"
recovery_text: str = "tinyworld"  # as calibration_text; rows with prompt and response, or text
recovery_samples: int = 512  # rows; 0: all
recovery_length: int = 512  # tokens of a row at most
epochs: int = 2  # over those rows
rate: float = 0.001  # learning rate; AMP's official code has 0.0003
rows_at_once: int = 16  # rows in memory at a time, of the 16 of a step; less needs less memory and takes longer
perplexity_text: str = "tinyworld"  # as calibration_text; its validation or test split
window: int = 256  # tokens of a window of perplexity
windows: int = 100  # of them; 0: all
tasks: str = "tiny"  # names of lm-eval tasks with commas; tiny: the six embedded ones; paper: AMP's five; none
task_folder: str = ""  # a folder with lm-eval task files of your own
items: int = 100  # of each task; 0: all
batch: int = 16  # texts in memory at a time while scoring and measuring
local_copies: str = ""  # a folder with local copies of alpaca, wikitext2, ptb and c4; empty: the hub, or its cache
seed: int = 0  # of calibration draw, random scores and recovery
dtype: str = "float32"  # or bfloat16, float16
device: str = "auto"  # or cpu, cuda, cuda:1
over_budget: str = "stop"  # or "go on": what to do if the estimate is more than this machine has
measure_dense: bool = True  # also measure the model before the cut
keep_model: bool = False  # save the pruned, recovered model beside the record
country: str = ""  # three letters, such as BRA: also measure energy and carbon by its grid (needs codecarbon); empty: not
out: str = "out/reproduce"  # where record and model go; a sweep gives each run its own
# %%
import warnings
from contextlib import ExitStack

import matplotlib.pyplot as plt
import torch

import amp_tutorial as amp
from amp_tutorial.course import lesson
from amp_tutorial.methods import official
from amp_tutorial.runs.parameter_values import at_hand, sensible
from amp_tutorial.runs.requirements import has, needs_of

warnings.filterwarnings("ignore", category=FutureWarning)  # peft still uses a name that transformers will drop
settings = dict(
    preset=preset, model=model, revision=revision, ratio=ratio, heads=heads, neurons=neurons, criterion=criterion,
    unit=unit, shots=shots, repair=repair, fidelity=fidelity, calibration=calibration,
    calibration_text=calibration_text, calibration_length=calibration_length, recovery=recovery,
    recovery_text=recovery_text, recovery_samples=recovery_samples, recovery_length=recovery_length, epochs=epochs,
    rate=rate, rows_at_once=rows_at_once, perplexity_text=perplexity_text, window=window, windows=windows, tasks=tasks,
    task_folder=task_folder, items=items, batch=batch, local_copies=local_copies, seed=seed, dtype=dtype,
    device=device, over_budget=over_budget, measure_dense=measure_dense, keep_model=keep_model, country=country,
    out=out,
)
L = lesson.start("reproduce", settings)
sensible(settings)  # else one sentence, before anything is loaded
# %% [markdown]
# ## What it will need
#
# This comes from the configuration alone: nothing has been loaded or fetched so far. If it is more than the machine
# has, the notebook stops here and says what to change (`over_budget = "go on"` goes on all the same).
#
# Before you run on: which stage needs most memory: scoring, measuring or training?
# %%
needs = needs_of(settings)
print(needs)
if over_budget == "stop":
    needs.check(has(settings))
# %% [markdown]
# ## Data, then the model
#
# Texts and tasks come first, so that what is missing is said now, and not after an hour.
# %%
with L.record.stage("data"):
    at_hand(settings)
device_name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
with L.record.stage("load"):
    network, tokenizer = amp.load(model, device_name, getattr(torch, dtype), revision or None)
whole = network.num_parameters()
energy = ExitStack()  # of all that follows
if country:
    L.record.energy = vars(energy.enter_context(amp.energy(country=country)))
print(f"{model}: {whole:,} parameters in {dtype} on {network.device}")


# %% [markdown]
# ## How everything is measured
#
# Perplexity and zero-shot accuracy are measured in the same way before the cut, after it, and after recovery.
# %%
def measure(stage: str) -> None:
    """Measure the network as it is now, and put the numbers into the record under the stage's name."""
    record = L.record
    with record.stage(f"measure {stage}"):
        record.metric(f"{stage}/parameters", network.num_parameters())
        text, join = amp.perplexity_text(perplexity_text, local_copies)
        found = amp.perplexity(network, tokenizer, text, window, limit=windows or None, batch_size=batch, join=join)
        record.perplexity(found, f"{stage}/")
        print(f"{stage:8s} perplexity {amp.interval(found).bounds()}, with its 95 % interval")
        if tasks == "none":
            return
        correct = amp.accuracy(network, tokenizer, tasks, items or None, batch, folder=task_folder)
        record.accuracy(correct, f"{stage}/")
        print(f"{stage:8s} mean accuracy {correct.mean.interval.percent()} %, over items")


if measure_dense:
    measure("dense")
# %% [markdown]
# ## Calibrate and score
#
# `fidelity = "clean"` draws the texts by the seed and takes the mean over all tokens. `"official"` takes what AMP's
# released code takes: the first 50 prompts of the file, its template, the mean of each prompt's mean, and its own
# rounding of widths. The record says which, choice by choice.
# %%
source = amp.text_source(calibration_text, local_copies)
with L.record.stage("score"):
    if fidelity == "official":
        batches, average = official.batches(tokenizer, official.prompts(source)), "prompts"
    else:
        batches = amp.calibration(tokenizer, source, calibration, seed, calibration_length, batch)
        average = "tokens"
    scores = amp.score(network, batches, criterion, average, seed)
L.record.notes["fidelity"] = official.choices(fidelity)
L.record.calibration = dict(source=calibration_text, sha256=scores.calibration_hash or None, samples=scores.prompts)
print(f"{criterion}: {scores.prompts} texts, {scores.tokens:,} tokens, mean over {average}")
# %% [markdown]
# ## Plan and cut
#
# The preview says what will be cut, how it will be saved and what will load it. Then the model is cut, and measured
# again.
# %%
config = amp.RecoveryConfig(
    samples=recovery_samples or None, epochs=epochs, learning_rate=rate, length=recovery_length,
    rows_at_once=rows_at_once, seed=seed,
)  # fmt: skip
train = dict(source=amp.text_source(recovery_text, local_copies), config=config, progress=lesson.watched())
with L.record.stage("cut"):
    if heads or neurons:
        widths = heads or None, neurons or None
    elif fidelity == "official":
        widths = official.widths(network, ratio)
    else:
        widths = amp.widths_at(network, ratio, unit=unit, nearest=True)
    if shots > 1:  # TransAct: score, cut and recover, and again
        recover = (lambda m, t: amp.recover(m, t, **train)) if recovery == "lora" else None
        for pruned in amp.prune_in_shots(  # noqa: B007
            network, tokenizer, batches, *widths, shots=shots, criterion=criterion, recover=recover,
            average=average, unit=unit, seed=seed,
        ):  # fmt: skip
            print(pruned.report)
        network, plan = pruned.model, pruned.plan
    else:
        plan = amp.keep(network, scores, *widths, unit=unit)
        print(amp.preview(network, plan))
        if repair == "none":
            network = amp.prune(network, plan, inplace=True).model
        else:
            network = amp.repair(network, plan, batches, reselect=repair == "choose", progress=lesson.watched()).model
removed = 1 - network.num_parameters() / whole
L.record.metric("parameters removed", removed, unit=f"of {whole}")
L.record.notes["widths"] = dict(zip(("heads", "groups", "neurons"), plan.widths, strict=True))
print(f"{removed:.2%} of all parameters removed")
healed = recovery == "lora" and shots > 1  # between the shots
measure("tuned" if healed else "untuned")
# %% [markdown]
# ## Recover
#
# The training text is questions and answers. Before you run on: what will that do to accuracy, and what to perplexity on
# plain text? (Lesson 4 looks into it.)
# %%
if recovery == "lora" and shots == 1:
    with L.record.stage("recover"):
        found = amp.recover(network, tokenizer, **train)
    network = found.model
    L.record.metric("recovery tokens", found.tokens, unit="tokens")
    print(f"{found.tokens:,} tokens in {found.seconds:.0f} s, loss {found.history[-1]['loss']:.3f} at the last step")
    measure("tuned")
# %% [markdown]
# ## The result
#
# Perplexity and mean accuracy before the cut, after it, and after recovery where there was one, with 95 % intervals.
# %%
metrics = L.record.metrics
stages = [stage for stage in ("dense", "untuned", "tuned") if f"{stage}/perplexity" in metrics]
measured = ["perplexity"] + ["mean accuracy"] * (tasks != "none")
fig, axes = plt.subplots(1, len(measured), figsize=(3.6 * len(measured), 3.2), squeeze=False)
for axis, name in zip(axes[0], measured, strict=True):
    for i, stage in enumerate(stages):
        m = metrics[f"{stage}/{name}"]
        sure = None if m.get("low") is None else [[m["value"] - m["low"]], [m["high"] - m["value"]]]  # of one window none
        axis.bar(stage, m["value"], yerr=sure, capsize=4,
                 color=lesson.PALETTE[i], hatch=lesson.HATCHES[i], edgecolor="black")  # fmt: skip
    axis.set_title(name)
fig.suptitle(f"{model}, {removed:.0%} removed by {criterion}")
fig.tight_layout()
said = "; ".join(
    f"{name} " + ", ".join(f"{stage} {metrics[f'{stage}/{name}']['value']:.3g}" for stage in stages)
    for name in measured
)
L.show(fig, alt=f"Bars with 95 % intervals, {model} with {removed:.0%} removed by {criterion}: {said}.")
# %%
if keep_model:
    print("Saved to", amp.save(network, tokenizer, f"{out}/model"))
energy.close()
L.finish()
L.record.show()
# %% [markdown]
# ## What this does not show
#
# - **Other draws.** One run has one seed. Its intervals are over items and windows, so they say how sure *this* model's
#   numbers are, and not how much another draw of calibration texts would move them. Run several seeds
#   (`amp-tutorial sweep`) before you compare.
# - **Other protocols.** The numbers belong to their protocol: window, number of items, tasks and their version,
#   precision. The record holds them; the table (`amp-tutorial table`) refuses to put two protocols into one row without
#   saying so.
# - **Large models.** With an embedded model the row says how the method works, and nothing about a model of seven
#   billion parameters.
#
# ## References
#
# - AMP, [arXiv 2504.21174](https://arxiv.org/abs/2504.21174); code `c2d-usp/Efficient-LLMs-with-AMP` (Apache-2.0).
#   `amp_tutorial/methods/official.py` and lesson 3b say which of its choices `official` takes, and what is wrong in it.
# - TransAct, [arXiv 2407.05690](https://arxiv.org/abs/2407.05690), for `shots` and `criterion = "transact"`.
# - lm-eval, for all tasks: <https://github.com/EleutherAI/lm-evaluation-harness>.
#
# ## Where next
# One row is not a table: `amp-tutorial sweep` runs this notebook over a grid of values and seeds, and
# [the table](table.ipynb) sets the records beside published numbers.
