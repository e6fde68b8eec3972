"""A finished run's model, copied to a folder of the user's: ``thawline export``. Imports no torch."""

from __future__ import annotations

import shutil
from pathlib import Path

from launcher.errors import UserError
from launcher.run_dir import RunDir
from launcher.status import read_status


def copy_model(run: RunDir, folder: Path) -> Path:
    """Copy a finished run's model to a new folder.

    Raises: UserError when there is no model yet, or the folder has something in it.
    """
    if not run.model.is_dir():
        state = read_status(run).state
        raise UserError(f"{run.path} has no model yet, it is {state}; `{run.going_on()}` goes on with it")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already and not empty; name a new folder")
    shutil.copytree(run.model, folder, dirs_exist_ok=True)
    return folder
