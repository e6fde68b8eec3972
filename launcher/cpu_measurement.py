"""How fast this machine's CPU ranks compute: a second of real products and element-wise operators, once a machine.

Owns the measurement behind the plan's seconds a step on CPU ranks, and its file in the cache folder. What is measured
is counted by the same meter that counts a model (`models.flops`), so that the two agree on what a byte or a kernel is.
Called by `survey`.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch.nn import functional

from launcher import host_memory
from launcher.cache_folder import cache_folder
from launcher.cluster import Cluster, threads_per_rank
from launcher.costs.cpu_speed import CpuSpeed
from launcher.models.flops import BACKWARD, FORWARD, KERNELS, MOVED, FlopMeter

FILE = "cpu-speed.json"
BUSY_FOR_S = 3600.0
"""How long the speed counts that was measured beside other work; then it is measured again."""
QUIET = 1.1
"""Wall time of a single thread over its processor time, at most, where it had a core for itself."""
REPEATS = 5
"""The fastest counts: whatever else the machine does only slows it down."""
ROWS, WIDTH = 1024, 512
SMALL = 8
"""Elements of a tensor whose operators are all launch."""


def measured(cluster: Cluster) -> Cluster:
    """The cluster with its CPU's speed, measured now or before; as it is where GPUs compute."""
    if cluster.gpus_per_node or cluster.cpu_speed is not None:
        return cluster
    threads = min(threads_per_rank(1), cluster.ranks_per_node * threads_per_rank(cluster.ranks_per_node))
    return cluster.model_copy(update={"cpu_speed": _remembered(threads)})


def _remembered(threads: int) -> CpuSpeed:
    """From the cache, which is made anew for another processor, torch or number of threads."""
    path = cache_folder() / FILE
    key = f"{_processor()}, torch {torch.__version__}, {threads} threads"
    known = _read(path)
    if key in known and known[key].until > time.time():
        return known[key].speed
    speed, is_quiet = measure(threads)
    _write(path, known | {key: _Kept(speed=speed, until=1e12 if is_quiet else time.time() + BUSY_FOR_S)})
    return speed


class _Kept(BaseModel):
    """A line of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    speed: CpuSpeed
    until: float
    """Seconds since the epoch."""


def _read(path: Path) -> dict[str, _Kept]:
    """Nothing where there is no file, or none that can be read: it is measured again then."""
    try:
        return {key: _Kept.model_validate(kept) for key, kept in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _write(path: Path, speeds: dict[str, _Kept]) -> None:
    """A cache that cannot be written costs the next plan a second."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps({key: kept.model_dump() for key, kept in speeds.items()}, indent=1))
        beside.replace(path)
    except OSError:
        return


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("model name", "model", "stepping")
    found = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    values = {name.strip(): value.strip() for name, value in found.items()}
    return " ".join(values[name] for name in wanted if name in values) or platform.machine()


def measure(threads: int) -> tuple[CpuSpeed, bool]:
    """Time three passes: products, element-wise operators, and many operators on little.

    On a machine that has other work, threads wait for cores, and wall time says little: then one thread's processor
    time counts, as if the others were as fast.

    Returns:
        The speed of ``threads`` threads, and whether the machine was quiet.
    """
    host_memory.keep_freed_blocks()  # as the ranks do
    generator = torch.Generator().manual_seed(0)  # the global one belongs to the run
    rows = torch.randn(ROWS, WIDTH, generator=generator)
    weights = [torch.randn(WIDTH, WIDTH, generator=generator).requires_grad_() for _ in range(4)]
    wide = torch.randn(ROWS, 4 * WIDTH, generator=generator)
    small = torch.randn(SMALL, generator=generator)
    passes = (partial(_products, rows, weights), partial(_elements, wide), partial(_small, small))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        of_one = [_least(each, time.thread_time) for each in passes]
        on_the_wall = _least(passes[0], time.perf_counter)
        is_quiet = on_the_wall < QUIET * of_one[0]
        torch.set_num_threads(threads)
        seconds = [_least(each, time.perf_counter) for each in passes] if is_quiet else [s / threads for s in of_one]
    finally:
        torch.set_num_threads(before)
    products, elements, launches = (_counted(each) for each in passes)
    flops = (products[FORWARD] + products[BACKWARD]) / seconds[0]
    launch_s = of_one[2] / launches[KERNELS]
    return CpuSpeed(flops=flops, bandwidth=elements[MOVED] / seconds[1], launch_s=launch_s), is_quiet


def _products(rows: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """Four layers whose inputs need gradients too, as those in the middle of a model."""
    states = rows.detach().requires_grad_()
    for weight in weights:
        states = states @ weight
    return states


def _elements(wide: torch.Tensor) -> torch.Tensor:
    """What a block does between its products."""
    states = wide.detach().requires_grad_()
    normed = functional.layer_norm(states, states.shape[-1:])
    weighed = functional.softmax(functional.gelu(normed), dim=-1)
    return weighed + states


def _small(small: torch.Tensor) -> torch.Tensor:
    states = small.detach().requires_grad_()
    for _ in range(50):
        states = torch.tanh(states * 0.5 + small)
    return states


def _least(run: Callable[[], torch.Tensor], clock: Callable[[], float]) -> float:
    """Seconds by ``clock`` of the fastest forward and backward of `REPEATS`, after one that does not count."""
    seconds = []
    for _ in range(REPEATS + 1):
        began = clock()
        output = run()
        torch.autograd.backward(output, torch.ones_like(output))
        seconds.append(clock() - began)
    return min(seconds[1:])


def _counted(run: Callable[[], torch.Tensor]) -> Any:
    with FlopMeter() as meter:
        run()
    return meter.done
