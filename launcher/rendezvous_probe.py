"""One rank of ``thawline doctor``'s rendezvous: ``python -m launcher.rendezvous_probe FOLDER``.

Owns the smallest job there is: meet, add one number up on the host and one on the device, part. `doctor` starts it as
`launch` starts a worker, and it ends as one does: a reason in ``FOLDER/logs``, and its exit code.
"""

from __future__ import annotations

import os
import sys
import time

from launcher import orphans, rank_error
from launcher.ending import end_now
from launcher.errors import EnvironmentProblem, ThawlineError
from launcher.run_dir import RunDir, write_atomic


def main(argv: list[str] | None = None) -> int:
    """Meet the others; return the exit code."""
    orphans.die_with_parent()
    run = RunDir((argv or sys.argv[1:])[0])
    rank = int(os.environ.get("RANK", "0"))
    try:
        write_atomic(run.path / f"probe-{rank}", meet())
        return 0
    except Exception as error:
        entry = rank_error.record(run, rank, error)
        if not isinstance(error, ThawlineError):
            print(entry.traceback, file=sys.stderr)
        return EnvironmentProblem.exit_code


def meet() -> str:
    """Join, add up the ranks' numbers on host and device, leave; what was seen, in words.

    Raises: EnvironmentProblem when the sums are wrong.
    """
    import torch
    import torch.distributed as dist

    from launcher import distributed

    began = time.monotonic()
    runtime = distributed.start()
    met_s = time.monotonic() - began
    expected = float(sum(range(runtime.ranks)))
    number = torch.tensor(float(runtime.rank), device=runtime.device)
    if runtime.ranks > 1:
        dist.all_reduce(number)
    sums = [runtime.sum(float(runtime.rank))[0], float(number)]
    runtime.close()
    if sums != [expected, expected]:
        raise EnvironmentProblem(
            f"{runtime.ranks} ranks add up to {sums[0]} on the host and {sums[1]} on {runtime.device}, not {expected}; "
            "look for a fault of the network or the GPUs' links (NCCL_DEBUG=INFO says which it takes)"
        )
    where = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else "the CPU"
    return f"met in {met_s:.1f} s; sums are right on the host and on {where}"


if __name__ == "__main__":
    end_now(main())
