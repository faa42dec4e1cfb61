"""The exercise of appendix B, prune your own model."""

from .exercises import Exercise


def kv_cache_bytes(layers: int, groups: int, head_dim: int, bytes_per_number: int, tokens: int, texts: int) -> int:
    """Bytes of the keys and values that generation keeps, for so many texts of so many tokens."""
    return 2 * layers * groups * head_dim * bytes_per_number * tokens * texts


EXERCISES = {
    "b_kv_cache_bytes": Exercise(
        reference=kv_cache_bytes,
        cases=lambda: [(32, 32, 128, 2, 4096, 1), (32, 8, 128, 2, 4096, 16), (6, 5, 16, 4, 1, 1)],
        misconceptions={
            "You counted keys or values; the cache holds both.": lambda layers, groups, d, size, tokens, texts: (
                layers * groups * d * size * tokens * texts
            ),
            "You counted numbers, not bytes.": lambda layers, groups, d, size, tokens, texts: (
                2 * layers * groups * d * tokens * texts
            ),
            "Every text has a cache of its own.": lambda layers, groups, d, size, tokens, texts: (
                2 * layers * groups * d * size * tokens
            ),
        },
        hints=[
            "For one token one layer keeps a key and a value of head_dim numbers, for each key-value head.",
            "Multiply: 2 · layers · groups · head_dim numbers a token, then bytes, tokens and texts.",
        ],
    ),
}
