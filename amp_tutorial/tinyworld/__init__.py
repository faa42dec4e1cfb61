"""Where the embedded texts, tasks and models come from: a small world, written down and trained on from a seed."""
