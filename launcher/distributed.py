"""The rank's view of the job: who it is, where it computes, and the few values all ranks must agree on.

Owns the process group and the small collectives of the control flow (counts, flags, names). Gradients and weights are
the backends' affair. No other file asks for the rank. All ranks must reach each method in the same order.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from launcher import heartbeat
from launcher.cluster import EXPECTED_GPUS, EXPECTED_RANKS, threads_per_rank
from launcher.errors import EnvironmentProblem
from launcher.orphans import LAUNCHER_PID

T = TypeVar("T")
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
PATIENCE = timedelta(days=7)
"""Where one rank works and the others wait. A rank that dies ends the wait at once."""


@dataclass(frozen=True)
class Runtime:
    """One rank of a running job."""

    rank: int
    ranks: int
    local_rank: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the files that belong to all."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Sum each value over the ranks, in double precision on the host."""
        if self.ranks == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        heartbeat.tick()
        return [float(value) for value in tensor]

    def broadcast(self, value: T) -> T:
        """The first rank's value, on every rank."""
        if self.ranks == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        heartbeat.tick()
        return box[0]

    def made_by_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on the first rank, on every rank, though it takes hours: a download, say."""
        if self.ranks == 1:
            return make()
        patient = dist.new_group(timeout=PATIENCE, backend="gloo")
        assert isinstance(patient, dist.ProcessGroup), "all ranks are in it"
        box = [make() if self.is_first else None]
        dist.broadcast_object_list(box, src=0, group=patient, device=torch.device("cpu"))
        dist.destroy_process_group(patient)
        heartbeat.tick()
        return cast("T", box[0])

    def gather(self, value: T) -> list[T]:
        """Every rank's value in the order of ranks, on every rank."""
        if self.ranks == 1:
            return [value]
        box: list[T | None] = [None] * self.ranks
        dist.all_gather_object(box, value)
        heartbeat.tick()
        return [item for item in box if item is not None]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.ranks > 1:
            dist.all_reduce(torch.zeros(1))
            heartbeat.tick()

    def average_buffers(self, module: nn.Module) -> None:
        """Average floating-point buffers (BatchNorm's running statistics) over the ranks, in place.

        Every rank sees other samples, so their statistics drift apart; DDP would keep those of rank 0 alone and
        DeepSpeed none in particular. Averaging after each step gives one well-defined model under every backend.
        """
        if self.ranks == 1:
            return
        buffers = [buffer for buffer in running_statistics(module)]
        if not buffers:
            return
        flat = torch.cat([buffer.detach().reshape(-1).float() for buffer in buffers])
        dist.all_reduce(flat)
        flat /= self.ranks
        for buffer, part in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def running_statistics(module: nn.Module) -> Iterable[torch.Tensor]:
    """Floating-point buffers of the norms in ``module`` that are being updated, in module order."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.training and child.track_running_stats:
            for buffer in (child.running_mean, child.running_var):
                if buffer is not None:
                    yield buffer


def start() -> Runtime:
    """Join the job that the environment describes (``RANK``, ``WORLD_SIZE``, …), or be a job of one.

    Raises:
        EnvironmentProblem: the address is in use, or the other ranks did not come.
    """
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ["MASTER_PORT"] = str(_free_port())
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    elif LAUNCHER_PID not in os.environ:
        # torchrun gives several ranks one thread each; as many as `thawline run` gives make the same bits.
        torch.set_num_threads(threads_per_rank(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    os.environ.setdefault("DS_ACCELERATOR", device.type)  # whoever imports DeepSpeed: it would guess, loudly
    # Host collectives (counts, names) go over gloo on GPUs too, so that they never wait for the device.
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    try:
        store, _, _ = next(rendezvous("env://"))
        mine = PrefixStore(_attempt(), store)
        dist.init_process_group(backend, store=mine, rank=rank, world_size=ranks, timeout=COLLECTIVE_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise EnvironmentProblem(
            f"rank {rank} of {ranks} could not join the others at {where}: {error}; "
            "check that the address is reachable from every node and that the port is free"
        ) from error
    _check_expected(dist.get_world_size(), on_gpu)
    return Runtime(rank=rank, ranks=ranks, local_rank=local_rank, device=device)


def _attempt() -> str:
    """What sets the addresses of these ranks apart from those of ranks that torchrun has started before.

    Its agents keep one store for all attempts, where a rank that comes first may find the address at which another was
    in the attempt before: both wait, for good (https://github.com/pytorch/pytorch/issues/135712). Agents of several
    nodes count their restarts each for itself, so there docs/memory.md names the variable that gives each attempt a
    store of its own.
    """
    is_one_node = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}" if is_one_node else "attempt"


def _check_expected(ranks: int, on_gpu: bool) -> None:
    """Refuse a world that is not the one the job asked for: a launcher may split it into several, each without error.

    Raises:
        EnvironmentProblem: it is another, or GPUs were asked for and torch sees none.
    """
    expected = os.environ.get(EXPECTED_RANKS)
    if expected is not None and int(expected) != ranks:
        raise EnvironmentProblem(
            f"{ranks} ranks met on {socket.gethostname()}, and the job asked for {expected}: its launchers did not "
            "find one another; check slurm.launcher and that MASTER_ADDR is one address to all nodes"
        )
    if int(os.environ.get(EXPECTED_GPUS, "0")) and not on_gpu:
        raise EnvironmentProblem(
            f"the job asked for {os.environ[EXPECTED_GPUS]} GPUs on each node, and torch {torch.__version__} sees none "
            f"on {socket.gethostname()}; check its driver, and that torch is a CUDA build"
        )


def seed_step(seed: int, stage_index: int, step: int, rank: int) -> None:
    """Seed every global generator from where the training stands.

    Dropout is then a pure function of (seed, stage, step, rank): a resumed run draws what an uninterrupted one would
    have drawn, whatever happened in between, and no generator state has to be saved.
    """
    words = np.random.SeedSequence([seed, stage_index, step, rank]).generate_state(3)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    random.seed(int(words[2]))
    np.random.seed(int(words[2]))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
