"""Whether this host plainly cannot hold as many CPU ranks as were asked for, before they take it down with them.

Owns the bounds and the refusal, which says how many ranks would do. Ranks that drive a GPU are as many as there are
GPUs and are not looked at. ``--oversubscribe``, or its variable where another program starts the ranks, overrides.
Called before any rank starts by ``thawline run``, ``resume`` and ``plan``, by the first rank under other launchers,
and, once a plan has said what each rank needs, by `session`.
"""

from __future__ import annotations

import os

from launcher import host_limits
from launcher.cluster import Cluster
from launcher.errors import EnvironmentProblem
from launcher.plan import RunPlan

ALLOWED = "THAWLINE_OVERSUBSCRIBE"
"""Environment variable: 1 lets any number of ranks start."""
MOST_PER_CORE = 4
"""CPU ranks. More than one on a core gains nothing; a few are how several ranks are tried out on a small machine."""
PROCESS_BYTES = 512 * 2**20
"""Of a rank before it has a model: python, torch, transformers and DeepSpeed, what several share counted once."""
GIB = 2**30


def allow() -> None:
    """For this process and the ranks it starts."""
    os.environ[ALLOWED] = "1"


def require_room(cluster: Cluster, memory_bytes: int | None, asked: str) -> None:
    """Refuse CPU ranks that this host's cores or memory cannot hold even before they have a model.

    Args:
        memory_bytes: what they may take; None: not known.
        asked: what asked for them, such as ``--ranks 64``.

    Raises:
        EnvironmentProblem: with the number that would do.
    """
    ranks = cluster.ranks_per_node
    if cluster.gpus_per_node or ranks == 1 or os.environ.get(ALLOWED) == "1":
        return
    cores = host_limits.cores()
    by_cores = MOST_PER_CORE * cores
    by_memory = by_cores if memory_bytes is None else max(1, memory_bytes // PROCESS_BYTES)
    most = min(by_cores, by_memory)
    if ranks <= most:
        return
    if by_memory < by_cores:
        assert memory_bytes is not None
        why = f"this host has {memory_bytes / GIB:.1f} GiB for them, and each takes {PROCESS_BYTES / GIB:.1f} GiB "
        why += "before it has a model"
    else:
        why = f"this host has {cores} core{'s' if cores > 1 else ''} for them, which run at most {MOST_PER_CORE} each"
    raise EnvironmentProblem(f"{asked}: {why}; ask for at most {most}, or {_override()}")


def require_memory(plan: RunPlan) -> None:
    """Refuse several CPU ranks of which each would fit and all together do not, by the plan's estimate.

    Raises:
        EnvironmentProblem: with the number that would do.
    """
    cluster, there = plan.cluster, plan.cluster.host_memory_bytes
    ranks = cluster.ranks_per_node
    if cluster.gpus_per_node or ranks == 1 or there is None or os.environ.get(ALLOWED) == "1":
        return
    needed = {one.name: one.memory.peak_bytes + one.memory.host_bytes for one in plan.stages if one.memory}
    if not needed:
        return
    stage = max(needed, key=lambda name: needed[name])
    most = there // needed[stage]
    if ranks > most >= 1:
        raise EnvironmentProblem(
            f"{ranks} CPU ranks: each needs about {needed[stage] / GIB:.1f} GiB in stage {stage}, and this host has "
            f"{there / GIB:.1f} GiB; ask for at most {most}, or {_override()}"
        )


def _override() -> str:
    return f"add --oversubscribe to try all the same ({ALLOWED}=1 under torchrun or accelerate)"
