"""What the control plane costs as the world grows: `python -m benchmarks.control_plane [--ranks 1 8 64 512 1024]`.

Every number of ranks is measured in a process of its own, as its first rank or its head node would work. Ranks are
simulated: torch's fake process group gives each collective the shape of its answer and moves nothing, the rendezvous is
a real TCPStore with as many clients as ranks, in one process; files are as many as the ranks would write. Seconds are
the processor's, so that what else the machine does is not in them, nor how fast a network or a disk is. The plan is
that of recipes/llama8b_zero3.yaml, without the hub. Where no resolver answers, torch waits for each address's name:
`unshare --net` with `ip link set lo up` is a network without that.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path

from launcher.ending import end_now

ROOT = Path(__file__).parents[1]
RANKS_PER_NODE = 8
PARAMETERS = 291
"""Tensors of Llama 3.1 8B."""
ROWS_OF_RANK = 4
COLUMNS = {
    "plan_s": "plan",
    "script_s": "sbatch script",
    "preflight_s": "compare the nodes",
    "store_s": "rendezvous: all clients of one store",
    "order_s": "rows of one step, one rank",
    "sum_s": "two small sums",
    "digests_s": "agree on 291 digests",
    "checkpoint_s": "commit a checkpoint of a file a rank",
    "beats_s": "read and judge all signs of life",
    "errors_s": "read and judge an error of every rank",
    "peak_mib": "peak, MiB",
}


def measure(ranks: int) -> dict[str, float]:
    """Seconds of processor time of each part, and MiB of memory, in this process."""
    taken: dict[str, float] = {"ranks": ranks}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        taken[name] = time.process_time() - began

    with tempfile.TemporaryDirectory() as folder:
        for part in (_plan, _script, _preflight, _store, _order, _collectives, _files):
            part(ranks, Path(folder), timed)
    taken["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return taken


Timed = Callable[[str], AbstractContextManager[None]]


def _plan(ranks: int, folder: Path, timed: Timed) -> None:
    from launcher import cluster, hub_access, survey
    from launcher.recipe import reading

    nodes, gpus = max(1, ranks // RANKS_PER_NODE), min(ranks, RANKS_PER_NODE)
    size = f"batch.global_size={ROWS_OF_RANK * ranks}"
    recipe, origins = reading.load_with_origins(ROOT / "recipes" / "llama8b_zero3.yaml", [size])
    hub_access.stay_offline_if_unreachable(recipe)
    machines = cluster.described(nodes, gpus, "80GiB", "1TiB")
    with timed("plan_s"), survey.foresee(recipe, ROOT / "recipes", machines, origins) as seen:
        assert all(stage.batch.ranks == ranks for stage in seen.plan.stages)
        seen.plan.model_dump_json()


def _script(ranks: int, folder: Path, timed: Timed) -> None:
    from launcher.recipe.slurm import Slurm
    from launcher.slurm.script import Job, render

    options = Slurm(nodes=max(1, ranks // RANKS_PER_NODE), gpus_per_node=min(ranks, RANKS_PER_NODE))
    with timed("script_s"):
        render(options, Job("big", Path("/data/recipe.yaml"), Path("/scratch/run"), Path("/env/bin/python")))


def _preflight(ranks: int, folder: Path, timed: Timed) -> None:
    from launcher.preflight import Facts, look, problems

    one = look()
    lines = [
        one.model_copy(update={"host": f"n{number}"}).model_dump_json()
        for number in range(max(1, ranks // RANKS_PER_NODE))
    ]
    with timed("preflight_s"):
        problems([Facts.model_validate_json(line) for line in lines], 1, 0)


def _store(ranks: int, folder: Path, timed: Timed) -> None:
    """Each client does what a rank does first: says its address, waits for all, reads those of its neighbours."""
    from datetime import timedelta

    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch names it without exporting it

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    limit = timedelta(seconds=120)
    server = TCPStore("127.0.0.1", 0, None, True, limit, wait_for_workers=False)

    def join(rank: int) -> TCPStore:
        client = TCPStore("127.0.0.1", server.port, None, False, limit, wait_for_workers=False)
        client.set(f"rank-{rank}", f"address of {rank}")
        client.add("met", 1)
        return client

    with timed("store_s"), ThreadPoolExecutor(64) as pool:
        clients = list(pool.map(join, range(ranks)))
        list(pool.map(lambda rank: clients[rank].get(f"rank-{(rank + 1) % ranks}"), range(ranks)))
        assert server.add("met", 0) == ranks


def _order(ranks: int, folder: Path, timed: Timed) -> None:
    from launcher.data import order

    rows = order.order(0, 0, 0, 1_000_000)
    with timed("order_s"):
        taken = order.share(order.window(rows, 1, ROWS_OF_RANK * ranks), ranks - 1, ranks, 2)
    assert sum(len(micro) for micro in taken) == ROWS_OF_RANK


def _collectives(ranks: int, folder: Path, timed: Timed) -> None:
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from launcher import checkpoint
    from launcher.checkpoint import Position
    from launcher.distributed import Runtime
    from launcher.run_dir import RunDir

    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    runtime = Runtime(0, ranks, 0, torch.device("cpu"))
    with timed("sum_s"):
        runtime.sum(1.0)
        runtime.sum(1.0, 2.0)
    digests = {f"model.layers.{number}.self_attn.q_proj.weight": f"{number:064x}" for number in range(PARAMETERS)}
    with timed("digests_s"):
        assert all(other == digests for other in runtime.gather(digests))
    run = RunDir(folder / "run")
    run.create()

    def shards(temporary: Path) -> None:
        (temporary / "engine").mkdir()
        for rank in range(ranks):
            (temporary / "engine" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(b"x" * 1024)

    position = Position(stage_index=0, stage="full", step=7, is_stage_end=False, ranks=ranks)
    with timed("checkpoint_s"):
        checkpoint.write(run, runtime, position, shards)
    dist.destroy_process_group()


def _files(ranks: int, folder: Path, timed: Timed) -> None:
    from launcher import heartbeat, rank_error
    from launcher.errors import TrainingFailed
    from launcher.run_dir import RunDir
    from launcher.slurm import attempt as slurm_attempt

    run, attempt = RunDir(folder / "run"), folder / "run" / "slurm" / "1" / "attempt-0"
    (attempt / "beats").mkdir(parents=True)
    for rank in range(ranks):
        beat = heartbeat.Beat(f"n{rank // RANKS_PER_NODE}", rank, 5, 5, "all_reduce (x.py:1) under sum (y.py:2)")
        (attempt / "beats" / f"rank-{rank}").write_text(json.dumps(asdict(beat)))
        rank_error.record(run, rank, TrainingFailed(f"of rank {rank}"))
    watch = heartbeat.Watch(ranks, 900)
    with timed("beats_s"):
        assert watch.look(heartbeat.read(attempt / "beats")) is None
    with timed("errors_s"):
        assert slurm_attempt.judge(run, attempt, 1).exit_code == TrainingFailed.exit_code


def table(found: list[dict[str, float]]) -> str:
    """Markdown; seconds of processor time, but for memory."""
    lines = ["| ranks | " + " | ".join(f"{int(each['ranks']):,}" for each in found) + " |"]
    lines.append("|---" * (len(found) + 1) + "|")
    for name, title in COLUMNS.items():
        if name in found[0]:
            digits = 0 if name.endswith("mib") else 4
            unit = "" if name.endswith("mib") else ", s"
            lines.append(f"| {title}{unit} | " + " | ".join(f"{each[name]:.{digits}f}" for each in found) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control_plane", description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64, 512, 1024])
    parser.add_argument("--one", type=int, help="measure this number here, and print JSON")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one)))
        end_now(0)
    found = []
    for ranks in asked.ranks:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.control_plane", "--one", str(ranks)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode:
            sys.exit(done.stderr)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    print(table(found))


if __name__ == "__main__":
    main()
