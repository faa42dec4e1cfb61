"""Reproducible runs of notebooks: strict papermill, records, sweeps on one machine or a cluster, tables, a doctor.

Read in this order: parameters → presets → identity → execute → grid → workers → sweep → reference → table → doctor →
cli. Nothing here imports torch before it has to, so the commands answer at once.
"""
