"""What scoring, cutting and running pruned models costs, as ratios measured in one run: `python -m benchmarks`."""
