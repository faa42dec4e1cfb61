# lesson: The table
# %% [markdown]
# # The table: our runs, and published numbers beside them
#
# A paper reports 61.02. You ran something, and it says 60.4. Is that the same? This notebook puts published numbers and
# records of runs side by side, and says of each pair what can be said. It runs nothing itself: it reads records, and
# all that it knows of the papers stands in `data/reference/`.
#
# **Time:** {{minutes}}. `amp-tutorial table --runs out/runs` executes it on your own runs.
# %% tags=["parameters"]
runs: str = ""  # folder of records; empty: those that come with the repository, in data/results
out: str = "out/table"  # where table.md, table.html and the pictures go
mix: bool = False  # let a row hold records of different versions, and say so in the table
# %%
from IPython.display import Markdown, display

from amp_tutorial.course import lesson
from amp_tutorial.reports import table
from amp_tutorial.reports.style import bundle

lesson.given("table", dict(runs=runs, out=out, mix=mix))
found = table.read(runs, mix)
display(Markdown(found.summary()))
# %% [markdown]
# A file that is no valid record is named above and left out; nothing is deleted. A run that failed has no number.
#
# ## Our runs
#
# There is one row for each set of parameters; what is the same in all rows is not shown. The seeds are averaged.
# %%
display(Markdown(found.own()))
# %% [markdown]
# Here is the same as pictures: what is left against what was removed, with a line for each criterion. An interval over
# few seeds is wide, even where the seeds hardly differ. Points at the same ratio are drawn a little apart.
# %%
for png, alt in found.pictures.values():
    display(bundle(png, alt), metadata={"image/png": {"alt": alt}}, raw=True)
if not found.pictures:
    print("Nothing was measured yet that a picture could show.")
# %% [markdown]
# ## What a row needs before you believe it
#
# **The same quantity.** A mean accuracy over five tasks is not the same quantity as one over six, nor is one before
# recovery the same as one after it. The published entry says which metric of a record answers to it.
#
# **The same cut.** The share of parameters that really went, not the ratio asked for, has to lie within half a point of
# the published one; or else the same numbers of heads and neurons have to stay in every layer.
#
# **The same protocol.** A paper's number belongs to its prompts, its rounding, its training data and all items of its
# tasks. A record that differs there may still be a good run, but it is *not comparable*, and the row says why.
# What is not known of a paper cannot be compared either: none of these papers names the version of its test harness.
#
# **An interval.** Papers give one number. Ours have a 95 % interval: over seeds where there are several, which says how
# far the draw of calibration text and training moves the result. With one seed the interval is over items, which says
# how far other questions would. *Within* means that the published value lies inside the interval, not that the two are
# equal: a wide interval includes much.
#
# **One version.** Records made by another protocol, notebook, model or data are not averaged: the table stops and
# names them.
#
# **A source.** Each published number has a grade: *abstract*; *code* (read in the official repository); *arithmetic*
# (worked out from the code); *measured*; *figure* (read off one); *second-hand* (only in a summary of the paper). What
# was not found is listed as not found.
#
# ## Published numbers
#
# Most rows were not run, because most of these runs need a GPU and days; they are folded below each block.
# %%
display(Markdown(found.published()))
# %% [markdown]
# ## To keep
#
# Here is the same as files: Markdown for a paper's repository, a page for a browser, and the pictures.
# %%
for path in found.write(out):
    print(path)
# %% [markdown]
# ## What this does not show
# - **That a method is better.** A table of one's own runs holds only what was run, and a published number from another
#   harness can be off by more than any two methods differ.
# - **That a number is right.** A record says what was done; whether that was sensible, it cannot say.
#
# ## Where next
# Run a row yourself, with [Reproduce](reproduce.ipynb): `amp-tutorial run --preset paper-llama-2-7b-30 --dry-run` says
# what it would cost.
