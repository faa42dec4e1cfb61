"""What a model still knows and what it costs: perplexity, tasks, robustness, operations, memory, energy."""
