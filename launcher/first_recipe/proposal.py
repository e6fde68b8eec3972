"""The model and the stages for what was found: the textbook's way, head first and then all, slower the deeper.

Owns the numbers that a first recipe begins with, and why. Called by `writing`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.data.labels import doubts, written_twice
from launcher.errors import DataError
from launcher.file_locations import existing_path
from launcher.first_recipe.guessing import Guess
from launcher.first_recipe.lengths import Lengths, fitting, lengths_of
from launcher.first_recipe.looking import Seen

MODELS = {
    "text-classification": (
        "google-bert/bert-base-uncased",
        "a usual encoder for English, 110M parameters, 512 tokens",
    ),
    "image-classification": ("torchvision:resnet50", "a usual network for photographs, 26M parameters"),
    "causal-lm": ("openai-community/gpt2", "a small language model of English, 124M parameters, 1,024 tokens"),
}
MULTILINGUAL = ("google-bert/bert-base-multilingual-cased", "an encoder for 104 languages, 178M parameters, 512 tokens")
POSITIONS = {"text-classification": 512, "causal-lm": 1024}
"""Tokens that the default model takes, and most others do."""
LABELS_LISTED = 20
FEW_ROWS, MANY_ROWS = 1_000, 100_000
RESERVED_POSITIONS = {"roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "data2vec-text"}


@dataclass(frozen=True)
class Stage:
    """A stage and its reasons."""

    name: str
    train: str
    epochs: int
    learning_rate: str
    layer_decay: float | None
    why: str


@dataclass(frozen=True)
class Proposal:
    """All that the recipe says beside the data's own facts."""

    model: str
    why_model: str
    labels: list[str] | None
    """To list under ``task.labels``; None: the data names them, or they are too many."""
    shares: Counter[str]
    lengths: Lengths | None
    max_length: int | None
    why_length: str
    global_size: int
    stratify: bool
    num_repeated: int
    """Rows whose text stands before them; 0 for text files, whose lines may well repeat."""
    num_empty: int
    """Rows that lack a text or a label."""
    best: str
    stages: list[Stage]
    doubts: list[str]
    """What about the labels may not be meant."""


def propose(seen: Seen, guess: Guess, model: str | None) -> Proposal:
    """The recipe's numbers for the data that was found."""
    label = guess.columns.get("label")
    texts = _texts(guess)
    firsts = _first_rows(texts, guess)
    shares: Counter[str] = Counter()
    if label is not None:
        shares = Counter(label.label_of(label.values[row]) for row in firsts if label.values[row] not in (None, ""))
    source, why_model = _model(guess, texts, model)
    lengths = lengths_of(texts) if texts else None
    most, whose = _positions(source, guess.kind) if model else (POSITIONS.get(guess.kind, 0), "the model's")
    max_length = fitting(lengths, most) if lengths else None
    why_length = ""
    if lengths and max_length:
        cut = f"longer ones are cut at {whose} {most} positions" if max_length == most else "room for 99% of the texts"
        why_length = (
            f"tokens: {cut}; by estimate 95% have {lengths.tokens_95} or less, 99% {lengths.tokens_99} "
            f"(median {lengths.median_words} words)"
        )
    num_rows = seen.num_rows
    return Proposal(
        model=source,
        why_model=why_model,
        labels=_listed(seen, guess),
        shares=shares,
        lengths=lengths,
        max_length=max_length,
        why_length=why_length,
        global_size=32 if num_rows >= FEW_ROWS else 16 if num_rows >= 200 else 8,
        stratify=bool(shares) and min(shares.values()) > 1 and not seen.has_validation,
        num_repeated=len(texts) - len(firsts) if texts and seen.source != "text" else 0,
        num_empty=_num_empty(guess),
        best=_best(guess, shares),
        stages=_stages(guess.kind, num_rows),
        doubts=list(doubts(sorted(shares))),
    )


def _texts(guess: Guess) -> list[str]:
    """The rows' texts, pairs as one."""
    columns = [guess.columns[name].values for name in ("text", "text_pair") if name in guess.columns]
    return [" ".join(str(value) for value in row if value) for row in zip(*columns, strict=True)]


def _first_rows(texts: list[str], guess: Guess) -> list[int]:
    """Rows that stay when each text stands once."""
    if not texts:
        return list(range(len(guess.columns["label"].values)))
    names = guess.columns["text"].values
    first: dict[Any, int] = {}
    for row, text in enumerate(names):
        first.setdefault(text, row)
    return sorted(first.values())


def _num_empty(guess: Guess) -> int:
    columns = [column.values for column in guess.columns.values()]
    return sum(any(value is None or value == "" for value in row) for row in zip(*columns, strict=True))


def _listed(seen: Seen, guess: Guess) -> list[str] | None:
    """Every label there is, in the order that training gives them; None where not all are known, or they are many."""
    label = guess.columns.get("label")
    if label is None or not seen.is_whole or label.class_names is not None or isinstance(seen.files, dict):
        return None
    names = list(label.counts)
    if len(names) > LABELS_LISTED or seen.source == "imagefolder" or written_twice(names):
        return None  # to name two that are written twice would be to keep both
    are_whole = all(name.removeprefix("-").isdecimal() and len(name) <= 20 for name in names)
    return sorted(names, key=int) if are_whole else sorted(names)


def _model(guess: Guess, texts: list[str], model: str | None) -> tuple[str, str]:
    if model is not None:
        return model, "asked for by --model"
    some = "".join(texts[:500])
    if guess.kind == "text-classification" and some:
        foreign = sum(character.isalpha() and not character.isascii() for character in some)
        if foreign > 0.02 * len(some):
            return MULTILINGUAL[0], f"proposed: {MULTILINGUAL[1]}; --model ID names another"
    source, what = MODELS[guess.kind]
    return source, f"proposed: {what}; --model ID names another"


def _positions(model: str, kind: str) -> tuple[int, str]:
    """(positions, whose they are): of the model's config.json when it is at hand, else what most models have."""
    try:
        config = json.loads((existing_path(model, Path(), "--model") / "config.json").read_text(encoding="utf-8"))
    except (DataError, OSError, ValueError):
        return POSITIONS.get(kind, 512), "the usual"
    found = config.get("max_position_embeddings") or config.get("n_positions")
    if not isinstance(found, int) or found <= 0:
        return POSITIONS.get(kind, 512), "the usual"
    if config.get("model_type") in RESERVED_POSITIONS:
        found -= int(config.get("pad_token_id") or 0) + 1
    return (min(found, POSITIONS["causal-lm"]), "the proposed") if kind == "causal-lm" else (found, "the model's")


def _best(guess: Guess, shares: Counter[str]) -> str:
    if guess.kind == "causal-lm":
        return "loss"
    return "f1" if max(shares.values(), default=0) > 1.5 * sum(shares.values()) / max(1, len(shares)) else "accuracy"


def _stages(kind: str, num_rows: int) -> list[Stage]:
    few, many = num_rows < FEW_ROWS, num_rows >= MANY_ROWS
    epochs = 4 if few else 1 if many else 2
    first = 3 if few else 1
    decay = "the learning rate is multiplied by layer_decay for each layer below the head"
    if kind == "causal-lm":
        return [
            Stage("top", '["layers[-2:]"]', 1, "1e-4", None, "the last two layers first; the rest stays as it was"),
            Stage("full", "[all]", epochs, "2e-5", 0.9, f"then the whole model, slower: {decay}"),
        ]
    rate, layer_decay = ("2e-5", 0.9) if kind == "text-classification" else ("1e-4", 0.8)
    return [
        Stage("head", "[head]", first, "1e-3", None, "the new head alone, fast: the model below it stays as it was"),
        Stage("full", "[all]", epochs, rate, layer_decay, f"then all of it, slower: {decay}"),
    ]
