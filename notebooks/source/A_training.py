# lesson: Training the tiny models
# %% [markdown]
# # A · Training: where the three models come from
#
# Pruning an untrained model teaches nothing: there is nothing to lose. So this course brings its own world to learn
# from, and models trained on it. This appendix reads some of that world, trains one of the models for half a minute
# before your eyes, and looks at how the shipped ones learnt. No lesson depends on it.
#
# **Objectives.** After this appendix you can
# - say what the models' training text looks like, and what is kept out of it for the tests;
# - write a training loop and tell whether it works from the first seconds of its loss;
# - read from the shipped curves which skill was learnt when, and which was not.
#
# **Prerequisites.** Having seen a training loop; lesson 0 helps. **Time:** {{minutes}}.
# %% tags=["parameters"]
model: str = "tiny-llama"  # or "tiny-llama-gqa", "tiny-phi"
seconds: int = 30  # of training
seed: int = 0
preset: str = "smallest"
out: str = "out"
# %%
import math
import random
import time

import matplotlib.pyplot as plt
import torch

import amp_tutorial as amp
from amp_tutorial.course import lesson
from amp_tutorial.tinyworld import skills, stories, train

L = lesson.start("A_training", dict(model=model, seconds=seconds, seed=seed, preset=preset, out=out))
_, tokenizer = amp.load(model)
# %% [markdown]
# ## The world
#
# Every document is written by a small generator, from a lexicon that fits on a few pages. Read some, and try to say
# what a reader must understand to guess the last words of each.
# %%
# NBVAL_CHECK_OUTPUT
for document in stories.documents(4, seed=11):
    print("·", stories.plain(document), "\n")
# %% [markdown]
# Behind the sentences are six *skills*: what a tool is for, what happens next, which of two things is whose, facts
# about the world, chains of two facts, and yes-or-no questions. A skill writes *groups*: some questions and as many
# answers, where every answer is right for exactly one question. Here is one question from a group of each skill, with
# the answers of the group.
# %%
# NBVAL_CHECK_OUTPUT
rng = random.Random(3)
for name, skill in skills.TASKS.items():
    group = skill(rng, skills.trained)
    print(f"{name}: {group.prompt(0)} …  {' / '.join(group.answers)}  → {group.answers[0]}\n")
# %% [markdown]
# Because all questions of a group share their list of answers, a model that looks only at the k answers is right once
# in k, and no better. And of all combinations that an answer may need (this tool with that object, this colour with
# that thing), a fifth is held out: training text never has them, and the tests have no others.
# %%
# NBVAL_CHECK_OUTPUT
for key in (
    ("tool", "needle", "coat"),
    ("tool", "needle", "shirt"),
    ("size", "piano", "teapot"),
    ("size", "bed", "jar"),
):
    print(f"{' + '.join(key):<26}", "held out for the tests" if skills.held_out(key) else "in the training text")
# %% [markdown]
# ## Training for half a minute
#
# One step of training: predict every next token, measure the loss, push all weights a little. The pieces come from
# `amp_tutorial.tinyworld.train`, where the shipped models were made. One is unusual: the *Muon* optimiser updates the
# matrices inside the blocks, and AdamW everything else.
#
# **Predict.** A model that knows nothing spreads its guess over the whole vocabulary of 1,536 tokens. What is its loss?
# And how far down will half a minute bring it?
# %%
L.predict("the loss of a model that knows nothing", None)
# %%
torch.manual_seed(seed)
student = train.build_model(model, len(tokenizer)).train()
recipe = train.Recipe(seed=seed)
optimizers = train.Optimizers(student, recipe)
batches = train.batches(tokenizer, seed, recipe.batch_tokens, train.ONE_STAGE[0])
first = next(batches)  # the generator writes and sorts its documents here, before the clock starts
with torch.no_grad():
    start = train.loss_of(student, first.ids, *first.targets()).item()
uniform = math.log(len(tokenizer))
print(f"Untrained: {start:.2f} nats per token. A uniform guess over {len(tokenizer):,} tokens: {uniform:.2f}.")
L.seen("the loss of a model that knows nothing", uniform, within=0.2, unit="nats per token")
# %%
losses, curve, tokens, began = [], [(0, start)], 0, time.perf_counter()
for step, batch in enumerate(batches, start=1):
    loss = train.loss_of(student, batch.ids, *batch.targets())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizers.step(min(1.0, step / 100))  # the learning rate rises over the first 100 steps, as in the shipped runs
    tokens += batch.tokens
    losses.append(loss.item())
    if step % 25 == 0:
        curve.append((tokens, sum(losses[-25:]) / 25))  # single batches are noisy
    if time.perf_counter() - began > seconds:
        break
took = time.perf_counter() - began
minutes = recipe.tokens / tokens * took / 60
print(f"{step} steps and {tokens:,} tokens in {took:.0f} s: loss {start:.2f} → {curve[-1][1]:.2f} nats per token.")
print(f"At this speed the shipped run of {recipe.tokens / 1e6:.1f} million tokens takes {minutes:.1f} minutes.")


# %%
def write(prompt: str, new: int = 24) -> str:
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        written = student.eval().generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
    return tokenizer.decode(written[0, ids.shape[1] :])


prompt = "Anna wants to cut the bread and looks for the"
print(f"{prompt} …{write(prompt)}")
known = train.skills(student, tokenizer)
print("Right answers of 64: " + ", ".join(f"{skill} {value * 64:.0f}" for skill, value in known.items()))
# %% [markdown]
# What this briefly trained model writes, and which skills it has, depends on how fast your machine is. On a slow or
# busy one, half a minute may leave the loss where it began; then raise `seconds`. Usually the form comes first: which
# words exist, what a sentence looks like, that a full stop follows. What the sentences *mean* comes later, if at all.
#
# ## A curriculum
#
# You trained on everything at once: all kinds of documents, every next token worth the same. A model trained like this
# soon knows tools and facts, while what must be *looked up in the passage* stays at chance for a long time. One likely
# reason: most words of a passage are chosen at random ("Anna has the …"), so nobody can predict them, and they drown
# the few that follow from what was read. The shipped models therefore went through stages. The answers are marked in
# the documents (the brackets below, which no model sees), and at first only they count.
# %%
# NBVAL_CHECK_OUTPUT
begin = 0.0
for i, stage in enumerate(train.CURRICULUM, start=1):
    document = next(stories.documents(1, 12, stage.writers))
    print(f"Stage {i}, {begin:.0%} to {stage.until:.0%} of the tokens: any other word counts {stage.context_weight:g}")
    print(f"    {document}\n")
    begin = stage.until
# %% [markdown]
# ## The shipped runs
#
# While the shipped models were trained, their loss was noted every 25 steps, and after every chunk of documents
# each skill was tried on 64 questions, about combinations that *may* stand in training text. So the tests were
# never looked at. Beside them stands one run without stages: the model of `tiny-llama`, everything at once, every token
# counting the same, and a learning rate that falls to zero over its 8 million tokens.
#
# Above all, note what decides the order. In the shipped runs it is the curriculum: a skill can't be learnt before the
# stage that writes of it, and the stages begin with what must be looked up. Only the run without stages shows what
# comes first by itself.
#
# **Predict.** Without stages, which skills are learnt first, and which not at all? Think of what each needs: a fact
# stored in the weights, or a lookup in what was just read.
# %%
L.predict("the skill that is learnt least without stages", None, among=skills.TASKS)
# %%
shipped = train.curves()
fig, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, sharey=True)
for ax, (name, points) in zip(axes.flat, shipped.items(), strict=True):
    tried = [p for p in points if "tool" in p]
    for i, skill in enumerate(skills.TASKS):
        xs, ys = [p["tokens"] / 1e6 for p in tried], [p[skill] for p in tried]
        ax.plot(xs, ys, color=lesson.PALETTE[i], marker=lesson.MARKERS[i], ms=4, label=skill)
    if name != "without stages":
        for stage in train.CURRICULUM[:-1]:
            ax.axvline(stage.until * points[-1]["tokens"] / 1e6, color="0.6", ls=":")
    ax.set(title=name, xlim=(0, None), ylim=(0, 1.05))
for ax in axes[:, 0]:
    ax.set_ylabel("accuracy, 64 questions")
for ax in axes[1]:
    ax.set_xlabel("million tokens")
fig.legend(
    *axes[0][0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=6, frameon=False
)
ends = "; ".join(f"{name}: " + ", ".join(f"{s} {[p for p in points if s in p][-1][s]:.0%}" for s in skills.TASKS)
                 for name, points in shipped.items())  # fmt: skip
L.show(fig, alt=f"Accuracy of each skill against training tokens, a panel per run, stages dotted. At the end: {ends}.")
at_end = [p for p in shipped["without stages"] if "tool" in p][-1]
L.seen("the skill that is learnt least without stages", min(skills.TASKS, key=lambda s: at_end[s]))
# %% [markdown]
# There is one line per skill. A skill counts as learnt from the first point after which it stays more than halfway
# between guessing and perfect.
# %%
def learnt_at(points: list[dict[str, float]], skill: str) -> float | None:
    """Million tokens after which a skill stays more than halfway between chance and perfect; None if it never does."""
    halfway = (1 + amp.CHANCE[f"tiny_{skill}"]) / 2
    when = None
    for p in (p for p in points if skill in p):
        if p[skill] <= halfway:
            when = None
        elif when is None:
            when = p["tokens"] / 1e6
    return when


for name, points in shipped.items():
    found = {skill: learnt_at(points, skill) for skill in skills.TASKS}
    order = sorted((when, skill) for skill, when in found.items() if when is not None)
    never = [skill for skill, when in found.items() if when is None]
    print(f"{name}: " + ", ".join(f"{skill} at {when:.1f} M tokens" for when, skill in order))
    print(f"    not learnt: {', '.join(never) or 'none'}")
# %% [markdown]
# Compare the last run with the three before it: the order turns round. Left alone, the model soon learns what is stored
# in the weights (a tool's purpose, a fact), which need only be read often enough, and not what it must *bind* in a
# passage (whose is the red cup, where is it now), which needs several heads in different layers to work together. The
# curriculum puts binding first, and that works: each such skill stays at chance until it appears, and then appears
# within a chunk or two. So it is the curriculum's doing that the shipped models can bind, and when they learnt it. Keep
# that in mind when heads are cut. The loss says little of this: its scale changes with every stage, because other
# tokens count.
# %%
fig, ax = plt.subplots(figsize=(7.5, 3.8))
for i, (name, points) in enumerate(shipped.items()):
    xs, ys = [p["tokens"] / 1e6 for p in points], [p["loss"] for p in points]
    style = dict(color=lesson.PALETTE[i], marker=lesson.MARKERS[i], markevery=max(1, len(xs) // 12), label=name)
    ax.plot(xs, ys, lw=1, **style)
for stage in train.CURRICULUM[:-1]:
    ax.axvline(stage.until * shipped[model][-1]["tokens"] / 1e6, color="0.6", ls=":")
xs, ys = [t / 1e6 for t, _ in curve], [y for _, y in curve]
ax.plot(xs, ys, color="0.2", ls="--", label=f"your {took:.0f} seconds")
ax.set(xlabel="million tokens", ylabel="loss (nats per counted token)", ylim=(0, None))
ax.legend()
ends = ", ".join(f"{name} {points[-1]['loss']:.2f} after {points[-1]['tokens'] / 1e6:.1f} million tokens"
                 for name, points in shipped.items())  # fmt: skip
L.show(fig, alt=f"Training loss against tokens ({ends}), with the run of this notebook, and stages as dotted lines.")
print(f"Last loss: {ends}; yours {curve[-1][1]:.2f} after {tokens / 1e6:.2f} million.")
# %% [markdown]
# The dashed line is yours: it should follow the run without stages over its short length. What is left of a loss in the
# end is mostly choices that nobody can predict, such as which name comes next.
#
# ## Train your own
#
# `python -m amp_tutorial.tinyworld.train tiny-llama` runs the whole recipe and writes into the folder `trained`. You
# may interrupt it; the same command goes on. Another seed gives another model, on which you can check anything you find
# in this course.
#
# ## What this does not show
# - **How large models learn.** Order and timing are those of a small, regular world and of six layers.
# - **That stages are needed.** The run without them has one seed and ended after 8 million tokens; a longer one may
#   learn to bind. By that time the shipped runs knew owners and chains.
# - **Precise moments.** 64 questions leave an error of up to 6 points (one standard error), and the trials are far
#   apart.
# - **Test accuracy.** These points use combinations allowed in training; lesson 0 measures on those held out.
#
# ## References
# - Jordan et al. (2024), *Muon: an optimizer for hidden layers in neural networks*,
#   <https://kellerjordan.github.io/posts/muon/>.
# - Eldan, Li (2023), *TinyStories*, [arXiv 2305.07759](https://arxiv.org/abs/2305.07759): small models, small world.
# - Olsson et al. (2022), *In-context Learning and Induction Heads*,
#   [arXiv 2209.11895](https://arxiv.org/abs/2209.11895): why looking things up in context takes two layers.
#
# ## Where next
# Go back to [lesson 1](01_anatomy.ipynb) for the anatomy of these models, or to [lesson 2](02_importance.ipynb) for
# what each of their heads is worth.
# %%
L.finish()
