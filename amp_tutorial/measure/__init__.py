"""What a model still knows and what it costs: tasks, robustness, operations, memory, energy, and what loads it."""
