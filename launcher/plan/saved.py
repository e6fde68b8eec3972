"""The plan that a run's folder holds, as everybody reads it who is not a rank."""

from __future__ import annotations

from pydantic import ValidationError

from launcher.errors import UserError
from launcher.plan.run_plan import RunPlan
from launcher.run_dir import RunDir


def read_plan(run: RunDir) -> RunPlan:
    """The plan of a run.

    Raises: UserError when there is none, or it is another version's.
    """
    if not run.plan.is_file():
        raise UserError(f"{run.path} is no run: it has no plan.json; start one with `thawline run RECIPE`")
    try:
        return RunPlan.model_validate_json(run.plan.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{run.plan} is not a plan of this version of thawline: {where}: {first['msg']}; "
            "go on with the version that wrote it, or start anew in another --run-dir"
        ) from error
