"""The text of a first recipe, each line with its reason, and the file: a new one, checked by reading it.

Owns what `thawline init` does. Refuses to write over a file. Called by `cli`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher import data
from launcher.errors import EnvironmentProblem, RecipeError, UserError
from launcher.first_recipe.guessing import Asked, Guess, guess
from launcher.first_recipe.looking import Seen, look, with_columns
from launcher.first_recipe.proposal import Proposal, propose
from launcher.recipe import Recipe, reading
from launcher.visible_text import visible

WIDTH = 118
COMMENT_AT = 46
LARGEST_CHECKED = 300_000_000
"""Bytes of data that are read once more, as training will read them, to say what would stop it."""
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*(:[A-Za-z0-9_][A-Za-z0-9_./-]*)*")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


@dataclass(frozen=True)
class Written:
    """What `write` did."""

    file: Path
    lines: list[str]
    """For the user: what was guessed, what to look at, what to do next."""


def write(given: Path, asked: Asked, model: str | None, output: Path | None) -> Written:
    """Write a recipe for a data file or folder.

    Raises:
        UserError, DataError: the data is nothing that can be trained on, the flags do not fit it, or the file is there.
    """
    seen = look(given)
    found = guess(seen, asked)
    seen = with_columns(seen, [column.name for column in found.columns.values()])
    proposal = propose(seen, found, model)
    name = _name(given)
    file = output or Path(f"{name}.yaml")
    if file.exists() or file.is_symlink():
        raise UserError(f"{file} exists already, and init writes over nothing; name another with -o FILE")
    if not file.absolute().parent.is_dir():
        raise UserError(f"{file}: {file.absolute().parent} is no folder; make it, or name another with -o FILE")
    text = "\n".join(_lines(given, name, file, seen, found, proposal)) + "\n"
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {(error.strerror or str(error)).lower()}") from error
    try:
        recipe = reading.load(file)
    except RecipeError as error:
        file.unlink()
        problems = "\n".join(f"{one.path}: {one.message}" for one in error.problems)
        raise UserError(f"what was asked makes no recipe:\n{problems}") from error
    warnings = [*seen.notes, *proposal.doubts, *_what_would_stop(recipe, file)]
    return Written(file, _told(file, seen, found, proposal, warnings))


# --- the text ---------------------------------------------------------------------------------------------------------
def _lines(given: Path, name: str, file: Path, seen: Seen, found: Guess, proposal: Proposal) -> Iterator[str]:
    shown = visible(shlex.quote(str(given)), 90)
    yield f"# Written by `thawline init {shown}`: a start, to be changed. Every key: docs/recipes.md."
    yield from _line(f"name: {scalar(name)}", f"names the run; its folder is runs/{name}")
    yield from _task(found, proposal)
    yield "model:"
    yield from _line(f"  source: {scalar(proposal.model)}", proposal.why_model)
    yield from _data(file, seen, found, proposal)
    yield from _line(
        f"batch: {{global_size: {proposal.global_size}}}", "rows in a step of the optimizer, over all ranks together"
    )
    yield from _line("optimizer: {kind: adamw, weight_decay: 0.01}", "each stage sets its own learning_rate")
    yield from _line("schedule: {kind: linear, warmup: 0.1}", "the rate rises for a tenth of a stage, then falls to 0")
    yield from _line("clip_grad_norm: 1.0", "a longer gradient is shortened to this")
    why = {"f1": "it counts each label alike, and these are not alike in number", "loss": "lower is better"}
    yield from _line(
        f"evaluate: {{every: 1ep, best: {proposal.best}}}",
        f"after each epoch; the model of the best {proposal.best} is exported"
        + (f" ({why[proposal.best]})" if proposal.best in why else ""),
    )
    yield "stages:"
    for stage in proposal.stages:
        yield from _line(f"  - name: {stage.name}", stage.why)
        yield from _line(f"    train: {stage.train}", "what learns; everything else is frozen, and proved to be")
        yield from _line(f"    epochs: {stage.epochs}", "passes over the training rows")
        yield from _line(f"    optimizer: {{learning_rate: {stage.learning_rate}}}", "the peak of the schedule")
        if stage.layer_decay:
            yield from _line(f"    layer_decay: {stage.layer_decay}", "1.0 trains all layers at the same rate")


def _task(found: Guess, proposal: Proposal) -> Iterator[str]:
    yield "task:"
    yield from _line(f"  kind: {found.kind}", found.why["task"])
    if proposal.shares:
        total = sum(proposal.shares.values())
        most = [f"{visible(label, 30)} {100 * count / total:.1f}%" for label, count in proposal.shares.most_common()]
        told = ", ".join(most[:6]) + (f", … and {len(most) - 6} more, down to {most[-1]}" if len(most) > 6 else "")
        if proposal.labels:
            listed = ", ".join(map(scalar, proposal.labels))
            yield from _line(f"  labels: [{listed}]", f"in the order of their ids; {told}")
        else:
            yield from _line("", f"labels: the {len(most)} that the data names; {told}")
    if found.kind == "image-classification":
        yield from _line("  augment: flip", "half of the training images mirrored; none where left and right matter")


def _data(file: Path, seen: Seen, found: Guess, proposal: Proposal) -> Iterator[str]:
    yield "data:"
    yield from _line(f"  source: {seen.source}", "what the file is" if seen.source != "imagefolder" else "")
    where = "from this file's folder, or the working folder"
    if isinstance(seen.files, dict):
        yield from _line("  files:", where)
        for split, path in seen.files.items():
            yield f"    {split}: {scalar(_path_from(file, path))}"
    else:
        yield from _line(f"  files: {scalar(_path_from(file, seen.files))}", where)
    for key, (value, why) in seen.settings.items():
        yield from _line(f"  {key}: {scalar(value)}", why)
    if seen.source not in ("imagefolder", "text"):
        named = ", ".join(f"{ours}: {scalar(column.name)}" for ours, column in found.columns.items())
        whys = "; ".join(f"{ours}: {found.why[ours]}" for ours in found.columns)
        yield from _line(f"  columns: {{{named}}}", whys)
    yield from _split(seen, found, proposal)
    if proposal.num_empty:
        yield from _line("  on_bad_row: skip", f"{_empty(proposal)}; error refuses them")
        if proposal.num_empty > 0.1 * seen.num_rows:
            yield from _line(f"  max_bad_rows: {proposal.num_empty}", "more than these are refused")
    if proposal.max_length:
        yield from _line(f"  max_length: {proposal.max_length}", proposal.why_length)
    if found.kind == "image-classification":
        yield from _line("  num_workers: 2", "processes a rank that open images")


def _empty(proposal: Proposal) -> str:
    lack = "row lacks" if proposal.num_empty == 1 else "rows lack"
    return f"{proposal.num_empty:,} {lack} a text or a label: left out, and listed in RUN/skipped.jsonl"


def _split(seen: Seen, found: Guess, proposal: Proposal) -> Iterator[str]:
    parts, why = [], []
    if not seen.has_validation:
        parts.append("validation: 0.1")
        why.append("a tenth is held out to measure on")
    if proposal.stratify:
        parts.append("stratify: label")
        why.append("with each label's share")
    elif proposal.shares and not seen.has_validation:
        rarest = min(proposal.shares, key=lambda label: proposal.shares[label])
        why.append(f"not by label, since {visible(rarest, 30)} has one row")
    if proposal.num_repeated and "text" in found.columns:
        parts.append("dedupe: text")
        why.append(f"{proposal.num_repeated:,} rows repeat a text, and must not be on both sides")
    if parts:
        yield from _line(f"  split: {{{', '.join(parts)}}}", "; ".join(why))


def _line(text: str, comment: str = "") -> Iterator[str]:
    """The line with its comment; a long comment goes above."""
    comment = visible(comment, 1_000)
    beside = f"{text:<{COMMENT_AT}}# {comment}"
    if not comment:
        yield text
    elif text and max(COMMENT_AT, len(text) + 2) + 2 + len(comment) <= WIDTH:
        yield beside if len(text) < COMMENT_AT else f"{text}  # {comment}"
    else:
        indent = " " * (len(text) - len(text.lstrip(" -")) if text else 2)
        yield from textwrap.wrap(comment, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}#   ")
        if text:
            yield text


def scalar(text: str) -> str:
    """A text as YAML, also between brackets: as it is where it can be, else in quotes."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    if text.isprintable():
        return json.dumps(text, ensure_ascii=False)
    escapes = (
        character if character.isprintable() and character not in '"\\' else _escape(character) for character in text
    )
    return f'"{"".join(escapes)}"'


def _escape(character: str) -> str:
    return f"\\{character}" if character in '"\\' else f"\\U{ord(character):08x}"


def _name(given: Path) -> str:
    stem = given.resolve().stem if given.is_file() else given.resolve().name
    plain = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")[:40]
    return plain or "first"


def _path_from(file: Path, path: Path) -> str:
    """From the recipe's folder where it is below it, else absolute."""
    here, target = file.absolute().parent.resolve(), Path(os.path.abspath(path))
    for start in (file.absolute().parent, here):
        if target.is_relative_to(start):
            return str(target.relative_to(start))
    return str(target)


# --- what is told -----------------------------------------------------------------------------------------------------
def _told(file: Path, seen: Seen, found: Guess, proposal: Proposal, warnings: list[str]) -> list[str]:
    rows = f"{seen.num_rows:,} rows" + ("" if seen.is_whole else " (the first ones; there are more)")
    lines = [f"{file}: {found.kind} on {rows}; {found.why['task']}"]
    for ours, column in found.columns.items():
        if ours in found.why:
            lines.append(f"  {ours}: column {visible(column.name, 40)!r}, by {found.why[ours]}")
    if proposal.shares:
        lines.append(f"  labels: {len(proposal.shares)}")
    lines += [f"  {key}: {value!r}, since {why}" for key, (value, why) in seen.settings.items()]
    if proposal.max_length:
        lines.append(f"  max_length: {proposal.max_length} {proposal.why_length}")
    lines.append(f"  model: {proposal.model}, {proposal.why_model}")
    lines += [f"  note: {_empty(proposal)}"] if proposal.num_empty else []
    lines += [f"  note: {warning}" for warning in warnings]
    quoted = shlex.quote(str(file))
    return [*lines, f"next: thawline plan {quoted}", f"      thawline run {quoted}"]


def _what_would_stop(recipe: Recipe, file: Path) -> list[str]:
    """What training would say of the data; it is the user's to repair."""
    try:
        files = getattr(recipe.data, "files", None)
        paths = [file.absolute().parent / one for one in ([files] if isinstance(files, str) else [])]
        if any(path.is_file() and path.stat().st_size > LARGEST_CHECKED for path in paths):
            return []
        data.load(recipe.data, recipe.task, file.absolute().parent)
    except (UserError, EnvironmentProblem) as error:
        return [f"training will refuse the data as it is: {error}"]
    return []
