"""The tasks of a SLURM array: one run for each combination of the values that some keys of a recipe take.

Owns the text of ``slurm.array``, as in ``seed=[1, 2]``, and what `thawline status` knows of the whole later, in
``RUN/array.json``. Pure but for that file. `slurm.script` writes a case for each task, `slurm.submit` checks each.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence

from launcher.errors import UserError
from launcher.recipe.yaml_tree import parse
from launcher.run_dir import RunDir, write_atomic

MOST_TASKS = 1000
"""SLURM's own default for MaxArraySize is 1001."""


def tasks(assignments: Sequence[str]) -> list[tuple[str, ...]]:
    """``["seed=[1, 2]", "a.b=[x]"]`` -> ``[("seed=1", 'a.b="x"'), ("seed=2", 'a.b="x"')]``, as ``--set`` reads them.

    Raises: UserError for what is no list of values, or makes too many tasks.
    """
    axes = [_axis(text) for text in assignments]
    combined = list(itertools.product(*axes)) if axes else []
    if len(combined) > MOST_TASKS:
        raise UserError(f"slurm.array makes {len(combined)} tasks, and {MOST_TASKS} is the most; submit it in parts")
    return combined


def task_run(run: RunDir, task: int) -> RunDir:
    """The run of one task, inside the array's folder."""
    return RunDir(run.path / f"task-{task}")


def write(run: RunDir, combined: Sequence[tuple[str, ...]]) -> None:
    """Remember what each task is."""
    write_atomic(run.path / "array.json", json.dumps(combined, indent=1, ensure_ascii=False))


def read(run: RunDir) -> list[tuple[str, ...]]:
    """What each task is; empty when the run is no array."""
    file = run.path / "array.json"
    return [tuple(task) for task in json.loads(file.read_text(encoding="utf-8"))] if file.is_file() else []


def runs(run: RunDir) -> Iterator[tuple[RunDir, str]]:
    """Each task's run and what it was given; nothing when the run is no array."""
    for task, overrides in enumerate(read(run)):
        yield task_run(run, task), " ".join(overrides)


def _axis(text: str) -> list[str]:
    key, equals, values = text.partition("=")
    tree, problems = parse(values, "slurm.array", has_lines=False)
    plain = tree.plain() if tree and not problems else None
    if not key.strip() or not equals or not isinstance(plain, list) or not plain:
        raise UserError(f"slurm.array: {text!r} is not of the form KEY=[VALUE, VALUE], as in seed=[1, 2, 3]")
    return [f"{key.strip()}={json.dumps(value, ensure_ascii=False)}" for value in plain]
