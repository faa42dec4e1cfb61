# lesson: Reproduce
# reading: 10
# %% [markdown]
# # Reproduce: one row of a table, from one set of parameters
#
# (to be written)
# %% tags=["parameters"]
preset = "ci"  # the parameter file that these values are from; a note for the record
model = "tiny-llama"  # an embedded name, a local folder, or a hub id "owner/name"
revision = ""  # of a hub id: branch, tag or commit; empty: its default branch, and the record says which commit that was
ratio = 0.3  # share of all parameters to remove; 0: heads and neurons say what stays
heads = 0  # heads that stay in every layer, instead of a ratio; 0: not said
neurons = 0  # neurons that stay in every layer, instead of a ratio; 0: not said
criterion = "amp"  # amp, reversed, random, magnitude, transact, wanda, flap or taylor
unit = "groups"  # with grouped queries: cut whole KV groups, or "queries" of every group
shots = 1  # score, cut and recover so many times in a row, as TransAct does; needs heads and neurons
repair = "none"  # solve: output projections are solved for after the cut; choose: heads and neurons are chosen by it too
fidelity = "clean"  # official: AMP's released code in prompts, template, average and rounding, where it differs
calibration = 64  # texts that scores and repair look at
calibration_text = "tinyworld"  # tinyworld, alpaca, wikitext2, ptb, c4, or a text, JSON, JSONL file or saved data set
calibration_length = 128  # tokens of each at most
recovery = "lora"  # or "none"
recovery_text = "tinyworld"  # as calibration_text; rows with prompt and response, or text
recovery_samples = 512  # rows; 0: all
recovery_length = 512  # tokens of a row at most
epochs = 2  # over those rows
rate = 0.001  # learning rate; AMP's official code has 0.0003
rows_at_once = 16  # rows in memory at a time, of the 16 of a step; less needs less memory and takes longer
perplexity_text = "tinyworld"  # as calibration_text; its validation or test split
window = 256  # tokens of a window of perplexity
windows = 100  # of them; 0: all
tasks = "tiny"  # names of lm-eval tasks with commas; tiny: the six embedded ones; paper: AMP's five; none
task_folder = ""  # a folder with lm-eval task files of your own
items = 100  # of each task; 0: all
batch = 16  # texts in memory at a time while scoring and measuring
local_copies = ""  # a folder with local copies of alpaca, wikitext2, ptb and c4; empty: the hub, or its cache
seed = 0  # of calibration draw, random scores and recovery
dtype = "float32"  # or bfloat16, float16
device = "auto"  # or cpu, cuda, cuda:1
over_budget = "stop"  # or "go on": what to do if the estimate is more than this machine has
measure_dense = True  # also measure the model before the cut
keep_model = False  # save the pruned, recovered model beside the record
out = "out/reproduce"  # where record and model go; a sweep gives each run its own
