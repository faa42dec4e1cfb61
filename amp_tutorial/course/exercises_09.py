"""Exercises of lesson 9, a real model, and of appendix B, a model of your own."""

import math

import torch
from torch import Tensor

from .exercises import Exercise


def mended(dense: float, cut: float, repaired: float) -> float:
    """Share of the cut's excess log-perplexity that is gone after repair."""
    return math.log(cut / repaired) / math.log(cut / dense)


def sink_share(attention: Tensor) -> Tensor:
    """Mean attention of every head to the first token, (heads,); the first query, which sees nothing else, left out."""
    return attention[:, 1:, 0].mean(dim=1)


def _attention_cases() -> list[tuple[Tensor]]:
    draw = torch.Generator().manual_seed(0)

    def case(heads: int, tokens: int) -> tuple[Tensor]:
        scores = torch.randn(heads, tokens, tokens, generator=draw)
        scores = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -math.inf)
        return (scores.softmax(dim=-1),)

    return [case(3, 5), case(2, 8), case(4, 3)]


def repeated(words: list[str]) -> float:
    """Share of a text's runs of three words that stood in it before; 0 where there is no run of three."""
    runs = [tuple(words[k : k + 3]) for k in range(len(words) - 2)]
    return sum(run in runs[:k] for k, run in enumerate(runs)) / len(runs) if runs else 0.0


def _texts() -> list[tuple[list[str]]]:
    said = (
        "a b c a b c a b c",
        "the cat saw the cat saw a dog",
        "one two three four five",
        "no no no no",
        "a b",
        "x y x y z",
    )
    return [(text.split(),) for text in said]


def kv_cache_bytes(layers: int, groups: int, head_dim: int, bytes_per_number: int, tokens: int, texts: int) -> int:
    """Bytes of the keys and values that generation keeps, for so many texts of so many tokens."""
    return 2 * layers * groups * head_dim * bytes_per_number * tokens * texts


EXERCISES = {
    "l9_mended": Exercise(
        reference=mended,
        cases=lambda: [(36.0, 200.0, 80.0), (10.0, 1000.0, 100.0), (2.8, 7.3, 2.9), (30.0, 60.0, 60.0)],
        misconceptions={
            "You took differences of perplexities. Damage adds up in the log: there a step from 36 to 72 is as large "
            "as one from 72 to 144.": (lambda dense, cut, repaired: (cut - repaired) / (cut - dense)),
            "That is the share that is left. What is mended is the rest.": (
                lambda dense, cut, repaired: math.log(repaired / dense) / math.log(cut / dense)
            ),
            "That is the fall of the whole log-perplexity. Even the dense model has some: measure from there.": (
                lambda dense, cut, repaired: math.log(cut / repaired) / math.log(cut)
            ),
        },
        hints=[
            "The excess of a perplexity p is log(p) − log(dense). What are the two excesses here?",
            "What is gone is log(cut) − log(repaired); divide it by log(cut) − log(dense).",
        ],
    ),
    "l9_sink_share": Exercise(
        reference=sink_share,
        cases=_attention_cases,
        misconceptions={
            "You counted the first query too. It can only look at itself, and gives 1 in every head.": (
                lambda attention: attention[:, :, 0].mean(dim=1)
            ),
            "That is how the first query shares out its attention. The first *key* is asked for: the last index.": (
                lambda attention: attention[:, 0, 1:].mean(dim=1)
            ),
            "You took the mean over the heads. Each head is to have its own share.": (
                lambda attention: attention[:, 1:, 0].mean(dim=0)
            ),
        },
        hints=[
            "`attention[h, q, k]` is what query q of head h gives to key k. Which k is the first token?",
            "`attention[:, 1:, 0]` leaves out the first query; take the mean over what is left of the queries.",
        ],
    ),
    "l9_repeated": Exercise(
        reference=repeated,
        cases=_texts,
        misconceptions={
            "You counted single words. “The” comes back in every good text: look at runs of three.": (
                lambda words: sum(w in words[:k] for k, w in enumerate(words)) / len(words)
            ),
            "You counted the first time, too. A run repeats only what stood before it.": (
                lambda words: (
                    sum(
                        [tuple(words[j : j + 3]) for j in range(len(words) - 2)].count(tuple(words[k : k + 3])) > 1
                        for k in range(len(words) - 2)
                    )
                    / max(1, len(words) - 2)
                )
            ),
            "You divided by the words. There are two fewer runs of three than words.": (
                lambda words: repeated(words) * max(0, len(words) - 2) / len(words)
            ),
            "That is the share of new runs.": lambda words: 1 - repeated(words),
            "You counted runs of two.": lambda words: (
                sum(tuple(words[k : k + 2]) in zip(words[:k], words[1:k], strict=False) for k in range(len(words) - 1))
                / max(1, len(words) - 1)
            ),
        },
        hints=[
            "`[tuple(words[k : k + 3]) for k in range(len(words) - 2)]` are the runs, in order.",
            "Run number k is repeated if it is in `runs[:k]`. Count those, divide by how many runs there are.",
        ],
    ),
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
