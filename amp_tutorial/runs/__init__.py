"""Reproducible runs: notebooks and functions with parameters, their records, and sweeps over grids of them.

Nothing here imports torch before it has to, so the commands answer at once.
"""
