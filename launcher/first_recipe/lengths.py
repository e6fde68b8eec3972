"""How many tokens texts have, by estimate: no tokenizer is at hand before the model is chosen.

Subword tokenizers of English make about 1.3 tokens of a word and one of four characters; of scripts without spaces, one
of a character. Called by `proposal`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SAMPLE = 20_000
SHORTEST = 16
SPECIAL_TOKENS = 3


@dataclass(frozen=True)
class Lengths:
    """Of all texts."""

    median_words: int
    tokens_95: int
    """Tokens that 95% of the texts have at most."""
    tokens_99: int


def lengths_of(texts: Sequence[str]) -> Lengths:
    """Of the texts, or of as many as `SAMPLE` of them, taken evenly."""
    some = texts[:: math.ceil(len(texts) / SAMPLE) or 1]
    tokens = sorted(_tokens(text) for text in some)
    words = sorted(len(text.split()) for text in some)
    return Lengths(words[len(words) // 2], _at(tokens, 0.95), _at(tokens, 0.99))


def fitting(lengths: Lengths, most: int) -> int:
    """``data.max_length`` for 99% of the texts, rounded up to a multiple of 8; ``most`` is what the model takes."""
    wanted = math.ceil(max(lengths.tokens_99, SHORTEST) / 8) * 8
    return min(wanted, most)


def _tokens(text: str) -> int:
    wide = sum(ord(character) >= 0x2E80 for character in text)  # Chinese, Japanese, Korean: no spaces
    rest = len(text) - wide
    return wide + math.ceil(max(1.3 * len(text.split()), rest / 4)) + SPECIAL_TOKENS


def _at(values: list[int], share: float) -> int:
    return values[min(len(values) - 1, int(share * len(values)))]
