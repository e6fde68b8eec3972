"""Checkpoints: written beside, verified, and only then called by their name.

A checkpoint is a folder of ``checkpoints/`` whose last written file, ``MANIFEST.json``, lists every other with its size
and sha256. It is built under a temporary name and renamed when complete, so that a folder with the right name is whole;
`newest` verifies all the same, since disks lie, and falls back to the one before. Its parts:

    state.json    where the training stands (`Position`)
    engine/       what the backend needs to go on inside a stage, on the same number of ranks
    model/        the whole model in fp32 by parameter name: at a stage's end, where the best evaluation was, and with
    optimizer/    optimizer state by parameter name, when the next stage carries it on, or ranks may be others later

All ranks must reach `write`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from launcher.distributed import Runtime
from launcher.divergence import Course
from launcher.errors import UserError
from launcher.run_dir import CheckpointName, RunDir, parse_checkpoint, sync_folder, write_atomic

log = logging.getLogger(__name__)
MANIFEST = "MANIFEST.json"
STATE = "state.json"
TEMPORARY = ".writing-"
DAMAGED = ".damaged-"
OLD = "old-"


class Best(BaseModel):
    """The best evaluation so far."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    metric: str
    value: float
    checkpoint: str
    """Name of the checkpoint whose ``model/`` it was."""
    metrics: dict[str, float]
    """All measures of that evaluation."""


class Position(BaseModel):
    """Where the training stands; with the engine's own files, all that a resumed run needs."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    stage_index: int
    stage: str
    step: int
    """Optimizer steps of this stage that are done; the data's position follows from it."""
    is_stage_end: bool
    ranks: int
    best: Best | None = None
    metrics: dict[str, float] = {}
    """The newest evaluation."""
    had_gradient: list[str] = []
    """Parameters that have had a gradient other than zero in this stage."""
    slight: dict[str, tuple[float, float]] = {}
    """Of these, the ones that no update must have moved yet: largest update and gradient; see `gradient_witness`."""
    course: Course = Course()
    """How the loss of this stage went."""


@dataclass(frozen=True)
class Saved:
    """A committed checkpoint."""

    folder: Path
    position: Position

    @property
    def engine(self) -> Path:
        return self.folder / "engine"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def optimizer(self) -> Path:
        return self.folder / "optimizer"

    @property
    def is_for_any_ranks(self) -> bool:
        """Whether any number of ranks can go on from it, not only as many as wrote it."""
        is_between_stages = self.position.is_stage_end or self.position.step == 0
        return self.model.is_dir() and (is_between_stages or self.optimizer.is_dir())


def write(run_dir: RunDir, runtime: Runtime, position: Position, write_parts: Callable[[Path], None]) -> Saved:
    """Write a checkpoint and commit it.

    Args:
        write_parts: fills the temporary folder it is given; called on every rank.
    """
    final = run_dir.checkpoint(position.stage_index, position.stage, position.step)
    temporary = final.with_name(TEMPORARY + final.name)
    if runtime.is_first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        (temporary / STATE).write_text(position.model_dump_json(indent=1))
    runtime.barrier()
    write_parts(temporary)
    runtime.barrier()
    # Each rank reads and syncs its share: hashing is the slow part, and one rank alone would keep all waiting.
    mine = sorted(_files(temporary))[runtime.rank :: runtime.ranks]
    entries = {name: entry for part in runtime.gather({n: _sync_and_describe(temporary / n) for n in mine})
               for name, entry in part.items()}  # fmt: skip
    if runtime.is_first:
        write_atomic(temporary / MANIFEST, json.dumps({"files": entries}, indent=1, sort_keys=True))
        _replace(temporary, final)
        write_atomic(run_dir.latest, final.name + "\n")
    runtime.barrier()
    return Saved(final, position)


def newest(run_dir: RunDir, say: Callable[[str], None] = log.warning) -> Saved | None:
    """The newest checkpoint that verifies; says of each newer one what is wrong with it, and puts it aside.

    Called by the first rank alone.

    Raises: UserError when there is trained work and none of it verifies; all stays as it is.
    """
    damaged: dict[Path, str] = {}
    saved = None
    is_trained = False
    for name in reversed(_names(run_dir)):
        folder = run_dir.checkpoint(name.stage_index, name.stage, name.step)
        problems = verify(folder)
        if not problems:
            saved = Saved(folder, Position.model_validate_json((folder / STATE).read_text()))
            break
        damaged[folder] = f"checkpoint {folder.name} is damaged ({'; '.join(problems)})"
        is_trained = is_trained or name.step > 0 or name.stage_index > 0
    if is_trained and saved is None:
        listed = "\n".join(f"  {line}" for line in damaged.values())
        raise UserError(
            f"nothing of {run_dir.path} can be gone on from:\n{listed}\n"
            "Restore one of them, or begin anew in another --run-dir"
        )
    for folder, line in damaged.items():
        say(f"{line}: falling back to the one before")
        # Under another name: `retain` counts the newest, and must not keep this one for a whole one's sake.
        aside = folder.with_name(DAMAGED + folder.name)
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    if damaged and saved:
        write_atomic(run_dir.latest, saved.folder.name + "\n")
    return saved


def stage_start(run_dir: RunDir, stage_index: int) -> Saved | None:
    """The checkpoint a stage started from, verified: the end of the stage before, or the run's first."""
    for name in reversed(_names(run_dir)):
        folder = run_dir.checkpoint(name.stage_index, name.stage, name.step)
        is_start = name.stage_index == stage_index - 1 if stage_index else name.stage_index == 0 and name.step == 0
        if is_start and not verify(folder):
            position = Position.model_validate_json((folder / STATE).read_text())
            if stage_index == 0 or position.is_stage_end:
                return Saved(folder, position)
    return None


def verify(folder: Path) -> list[str]:
    """What is wrong with a checkpoint; empty when every file has the size and sha256 of the manifest."""
    try:
        listed: dict[str, dict[str, object]] = json.loads((folder / MANIFEST).read_text())["files"]
        Position.model_validate_json((folder / STATE).read_text())
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        return [f"manifest or state unreadable: {error}"]
    problems = [f"{name} is not in the manifest" for name in _files(folder) if name not in listed]
    for name, entry in listed.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != entry["bytes"]:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}")
        elif sha256(path) != entry["sha256"]:
            problems.append(f"{name} has another sha256")
    return problems


def retain(run_dir: RunDir, keep: int, protected: set[str]) -> None:
    """Delete all but the newest ``keep`` checkpoints and the ``protected`` ones; called by the first rank alone."""
    names = [run_dir.checkpoint(n.stage_index, n.stage, n.step) for n in _names(run_dir)]
    for folder in names[:-keep]:
        if folder.name not in protected:
            # Under its temporary name first: a half-deleted folder must not look like a checkpoint.
            doomed = folder.with_name(TEMPORARY + folder.name)
            shutil.rmtree(doomed, ignore_errors=True)
            folder.rename(doomed)
            shutil.rmtree(doomed)


def clear_unfinished(run_dir: RunDir) -> None:
    """Delete what an interrupted `write` or `retain` left, and what was found damaged once the run is past it.

    A folder that a replacement had moved out of the way comes back if its successor was not named yet. Called by the
    first rank alone, before `newest`.
    """
    for folder in run_dir.checkpoints.glob(TEMPORARY + OLD + "*"):
        name = run_dir.checkpoints / folder.name.removeprefix(TEMPORARY + OLD)
        if not name.exists():
            folder.rename(name)
    for folder in run_dir.checkpoints.glob(TEMPORARY + "*"):
        shutil.rmtree(folder)
    whole = _names(run_dir)
    for folder in run_dir.checkpoints.glob(DAMAGED + "*"):
        of = parse_checkpoint(folder.name.removeprefix(DAMAGED))
        if of and whole and whole[-1] >= of:  # until then another version, or a disk that is mended, may read it
            shutil.rmtree(folder)


def bests(run_dir: RunDir, keep: int) -> set[str]:
    """Names of the best checkpoints that the newest ``keep`` checkpoints speak of: resuming from one needs its best."""
    found = set()
    for name in _names(run_dir)[-keep:]:
        folder = run_dir.checkpoint(name.stage_index, name.stage, name.step)
        best = Position.model_validate_json((folder / STATE).read_text()).best
        if best is not None:
            found.add(best.checkpoint)
    return found


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _names(run_dir: RunDir) -> list[CheckpointName]:
    """Committed checkpoints, oldest first."""
    folders = run_dir.checkpoints.iterdir() if run_dir.checkpoints.is_dir() else ()
    return sorted(name for folder in folders if (name := parse_checkpoint(folder.name)))


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != MANIFEST:
            yield path.relative_to(folder).as_posix()


def _sync_and_describe(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _replace(temporary: Path, final: Path) -> None:
    """Rename into place; an older folder of that name (one that did not verify) goes only once the new one is whole."""
    for folder in [temporary, *(path for path in temporary.rglob("*") if path.is_dir())]:
        sync_folder(folder)
    if final.exists():
        doomed = final.with_name(TEMPORARY + OLD + final.name)
        shutil.rmtree(doomed, ignore_errors=True)
        final.rename(doomed)
        temporary.rename(final)
        shutil.rmtree(doomed)
    else:
        temporary.rename(final)
    sync_folder(final.parent)
