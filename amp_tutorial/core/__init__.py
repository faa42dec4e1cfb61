"""The evening: from a stock model to scores, a plan and a smaller stock model, and its perplexity."""
