"""Whether a run's checkpoints find room where its folder is: `costs.disk`'s bytes against what is free there.

Owns the comparison and its words. Looks at sizes of files alone; a quota that the file system does not tell is not
seen. Called before a run starts, by ``thawline plan`` and by `session`, and by `walk` whenever its ranks start.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from launcher.costs.peak import GIB
from launcher.errors import EnvironmentProblem
from launcher.plan.run_plan import RunPlan
from launcher.run_dir import RunDir


def require(plan: RunPlan, run: RunDir) -> None:
    """Refuse to begin what cannot end, before anything is downloaded: the model is there before and after training, and
    once more while adapters are merged into it.

    Raises:
        EnvironmentProblem: it does not find room so often.
    """
    sizes = [stage.disk.model_bytes for stage in plan.stages if stage.disk]
    times, merged = (2, "") if plan.recipe.model.lora is None else (3, ", and with its adapters merged,")
    if sizes and times * max(sizes) > (free := free_bytes(run.path)):
        raise EnvironmentProblem(
            f"{run.path}: {_gib(free)} are free there, and the model before training and after it{merged} takes "
            f"{_gib(times * max(sizes))}; make room, or choose another --run-dir"
        )


def warning(plan: RunPlan, run: RunDir) -> str | None:
    """What to say where the most that the run may keep at once does not find room besides what it has written. None:
    all does, or how much it is was not planned."""
    stage = max(plan.stages, key=lambda one: one.disk.most_bytes if one.disk else 0)
    if stage.disk is None:
        return None
    missing = stage.disk.most_bytes - written_bytes(run)
    if missing <= (free := free_bytes(run.path)):
        return None
    return (
        f"{run.path}: {_gib(free)} are free there on this machine, and the checkpoints of stage {stage.name} may take "
        f"{_gib(missing)} (each {_gib(stage.disk.checkpoint_bytes)}, and checkpoint.keep is "
        f"{stage.settings.checkpoint.keep}); make room, lower checkpoint.keep, or choose another --run-dir"
    )


def free_bytes(folder: Path) -> int:
    """What is free for this user where a folder is, or will be."""
    there = folder.absolute()
    while not there.is_dir():
        there = there.parent
    return shutil.disk_usage(there).free


def written_bytes(run: RunDir) -> int:
    """What a run's checkpoints take now; the run may be at work, and delete some of them meanwhile."""
    num_bytes = 0
    for folder, _, names in os.walk(run.checkpoints):
        for name in names:
            with suppress(FileNotFoundError):
                num_bytes += (Path(folder) / name).stat().st_size
    return num_bytes


def _gib(num_bytes: int) -> str:
    size = num_bytes / GIB
    return f"{size:,.0f} GiB" if size >= 100 else f"{size:.3g} GiB"
