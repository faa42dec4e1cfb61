"""Texts, paths and files: what stands below everything else, without a model in sight."""
