"""Reproducible runs of notebooks: strict papermill, records, sweeps on one machine or a cluster, tables, a doctor.

Read in this order: parameters, presets, identity, kernel, remains, execute, one; grid, forecast, workers, sweep;
reference, groups, rows, plots, table; here, doctor, costs; cli. Nothing here imports torch before it has to, so the
commands answer at once.
"""
