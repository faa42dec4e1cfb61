"""Models that do not fit: larger than memory, on several processes, and how much memory each stage takes."""
