"""Which column is the text, the label, the image; which kind of task they make; and why.

A flag decides; else the name, in the order of the lists below; else what the values look like. What else it might have
been is told with the flag that chooses it. Called by `proposal`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath

from launcher.data.image_files import is_image
from launcher.errors import UserError
from launcher.first_recipe.columns import Column
from launcher.first_recipe.looking import Seen
from launcher.recipe import TASKS_NOT_BUILT_YET
from launcher.visible_text import visible

TEXT_NAMES = (
    "text", "sentence", "review", "content", "body", "comment", "tweet", "message", "document", "description", "post",
    "utterance", "query", "question", "article", "abstract", "story", "prompt", "headline", "title", "summary",
)  # fmt: skip
LABEL_NAMES = (
    "gold_label", "label", "labels", "sentiment", "class", "category", "target", "stars", "rating", "polarity",
    "emotion", "topic", "intent", "genre", "species", "breed", "type", "score", "tag", "y",
)  # fmt: skip
IMAGE_NAMES = ("image", "img", "file_name", "filename", "image_path", "path", "file", "picture", "photo")
PAIRS = (
    ("text", "text_pair"), ("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"),
    ("text1", "text2"), ("text_a", "text_b"), ("sentence_a", "sentence_b"), ("question", "sentence"),
)  # fmt: skip
CONVERSATIONS = {"messages", "conversations", "instruction", "completion", "chosen", "rejected"}
"""Columns of instructions and answers."""
SPLIT_VALUES = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}
KINDS = ("text-classification", "image-classification", "causal-lm")


@dataclass(frozen=True)
class Asked:
    """What the flags say; None: guess."""

    task: str | None = None
    text: str | None = None
    label: str | None = None
    image: str | None = None
    text_pair: str | None = None


@dataclass(frozen=True)
class Guess:
    """The task and its columns."""

    kind: str
    columns: dict[str, Column] = field(default_factory=dict)
    """The task's name -> the data's column."""
    why: dict[str, str] = field(default_factory=dict)
    """``task`` and each column -> the reason."""


def guess(seen: Seen, asked: Asked) -> Guess:
    """The task that the data is for.

    Raises:
        UserError: a flag names no such column or task, or the columns are for none.
    """
    if asked.task is not None and asked.task not in KINDS:
        later = "is not built yet" if asked.task in TASKS_NOT_BUILT_YET else "is not a kind of task"
        raise UserError(f"--task {asked.task!r} {later}; init writes recipes for {', '.join(KINDS)}")
    if seen.source == "imagefolder":
        if asked.task not in (None, "image-classification"):
            raise UserError(f"--task {asked.task}: the folder holds images; take --task out, or name a file of texts")
        image, label = seen.columns
        _usable(label)
        return Guess(
            "image-classification", {"image": image, "label": label},
            {"task": "the folder holds images, one folder a label"},
        )  # fmt: skip
    kind, why = _kind(seen, asked)
    if kind == "image-classification":
        found = _with(Guess(kind, why={"task": why}), "image", _image(seen, asked))
        return _with(found, "label", _label(seen, asked, [found.columns["image"]], is_needed=True))
    found = Guess(kind, why={"task": why})
    pair = _pair(seen, asked) if kind == "text-classification" else None
    if pair:
        found = _with(_with(found, "text", pair[0]), "text_pair", pair[1])
    else:
        found = _with(found, "text", _text(seen, asked))
    if kind == "causal-lm":
        return found
    return _with(found, "label", _label(seen, asked, list(found.columns.values()), is_needed=True))


Found = tuple[Column, str]


def _with(guess: Guess, column: str, found: Found | None) -> Guess:
    assert found is not None
    return replace(guess, columns=guess.columns | {column: found[0]}, why=guess.why | {column: found[1]})


def _kind(seen: Seen, asked: Asked) -> tuple[str, str]:
    if asked.task is not None:
        if seen.source == "text" and asked.task != "causal-lm":
            raise UserError(f"--task {asked.task}: a text file holds no labels; give a csv with columns text and label")
        return asked.task, "asked for by --task"
    if seen.source == "text":
        return "causal-lm", "a text file holds texts and no labels"
    if asked.image or (not asked.text and any(_is_image_column(column) for column in seen.columns)):
        return "image-classification", "a column holds images"
    text = _pair(seen, asked) or [_text(seen, asked)]
    if _label(seen, asked, [column for column, _ in text], is_needed=False):
        return "text-classification", "a column of texts, and one of labels"
    others = ", ".join(visible(column.name, 30) for column in seen.columns if column is not text[0][0])
    why = f"no column looks like labels{f': not {others}' if others else ''}; --label COLUMN names it"
    if _conversation(seen):
        why = "instructions and answers (sft) are not built yet, so one column is learned as plain text"
    return "causal-lm", why


# --- columns ----------------------------------------------------------------------------------------------------------
def _text(seen: Seen, asked: Asked) -> Found:
    if asked.text is not None:
        return seen.column(asked.text, "--text"), "asked for by --text"
    able = [column for column in seen.columns if column.is_text and not column.is_number]
    wordy = [column for column in able if column.mean_words >= 2.5 or (len(able) == 1 and not column.may_be_label)]
    named = [column for column in able if _rank(column.name, TEXT_NAMES) < len(TEXT_NAMES)]
    if not (wordy or named):
        known = "; conversations (sft) are not built yet" if _conversation(seen) else ""
        raise UserError(
            f"no column looks like texts: {seen.names}{known}; name it with --text COLUMN (images: --image COLUMN)"
        )
    best = min(wordy or named, key=lambda column: (_rank(column.name, TEXT_NAMES), -column.mean_characters))
    return best, _because(best, TEXT_NAMES, [one for one in wordy if one is not best], "--text")


def _label(seen: Seen, asked: Asked, taken: Sequence[Column], *, is_needed: bool) -> Found | None:
    if asked.label is not None:
        return _usable(seen.column(asked.label, "--label")), "asked for by --label"
    free = [column for column in seen.columns if all(column is not one for one in taken)]
    able = [column for column in free if column.may_be_label and not _names_splits(column)]
    named = [column for column in able if _rank(column.name, LABEL_NAMES) < 2 * len(LABEL_NAMES)]
    likely = named or [column for column in able if len(column.counts) <= 50]
    if likely:
        best = min(likely, key=lambda column: (_rank(column.name, LABEL_NAMES), len(column.counts)))
        return best, _because(best, LABEL_NAMES, [one for one in likely if one is not best], "--label")
    if called := next((column for column in free if _rank(column.name, LABEL_NAMES) < len(LABEL_NAMES)), None):
        _usable(called)  # says why it is none
    if is_needed:
        raise UserError(f"no column looks like labels: {seen.names}; name it with --label COLUMN")
    return None


def _usable(column: Column) -> Column:
    """A column that training takes for labels.

    Raises:
        UserError: it does not; with the reason.
    """
    name = visible(column.name, 40)
    if column.is_nested:
        raise UserError(f"column {name!r} holds lists or maps; a row has one label (several are not built yet)")
    if column.is_number and not column.is_whole:
        raise UserError(f"column {name!r} holds decimal numbers; labels are names or whole numbers: bin them first")
    if len(column.counts) < 2:
        only = next(iter(column.counts), None)
        raise UserError(f"column {name!r} has one value only, {visible(str(only), 40)!r}; two labels are needed")
    return column


def _image(seen: Seen, asked: Asked) -> Found:
    if asked.image is not None:
        return seen.column(asked.image, "--image"), "asked for by --image"
    able = [column for column in seen.columns if _is_image_column(column)]
    if not able:
        raise UserError(f"no column holds images or their paths: {seen.names}; name it with --image COLUMN")
    best = min(able, key=lambda column: _rank(column.name, IMAGE_NAMES))
    return best, _because(best, IMAGE_NAMES, [one for one in able if one is not best], "--image")


def _pair(seen: Seen, asked: Asked) -> list[Found] | None:
    """Two columns of texts that belong together: by their names alone."""
    if asked.text_pair is not None:
        return [_text(seen, asked), (seen.column(asked.text_pair, "--text-pair"), "asked for by --text-pair")]
    if asked.text is not None:
        return None
    by_name = {_plain(column.name): column for column in seen.columns if column.is_text}
    for first, second in PAIRS:
        if {_plain(first), _plain(second)} <= set(by_name):
            why = f"{first} and {second} are a pair by name; --text COLUMN takes one alone"
            return [(by_name[_plain(first)], why), (by_name[_plain(second)], "the second of the pair")]
    return None


def _is_image_column(column: Column) -> bool:
    some = column.filled[:200]
    if not some:
        return False
    if all(isinstance(value, dict) and {"bytes", "path"} <= set(value) for value in some):
        return True
    return all(isinstance(value, str) and len(value) < 500 and is_image(PurePath(value)) for value in some)  # type: ignore[arg-type]


def _conversation(seen: Seen) -> bool:
    return any(_plain(column.name) in CONVERSATIONS for column in seen.columns)


def _names_splits(column: Column) -> bool:
    return {value.lower() for value in column.counts} <= SPLIT_VALUES


# --- words ------------------------------------------------------------------------------------------------------------
def _because(best: Column, names: Sequence[str], others: Iterable[Column], flag: str) -> str:
    called = "its name, and " if _rank(best.name, names) < 2 * len(names) else ""
    why = f"{called}{best.described()}"
    if also := [f"{visible(one.name, 30)} ({one.described()})" for one in others][:3]:
        why += f"; {flag} COLUMN chooses another: {', '.join(also)}"
    return why


def _rank(name: str, names: Sequence[str]) -> int:
    """Place in the list; behind all of them when one is only a word of the name; behind those when none is."""
    whole = [_plain(one) for one in names]
    if _plain(name) in whole:
        return whole.index(_plain(name))
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    return next((len(names) + at for at, one in enumerate(whole) if one in words), 3 * len(names))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
