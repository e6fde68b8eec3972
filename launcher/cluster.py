"""The facts about the hardware: nodes, GPUs, memory. From this machine, from a launcher's environment, or from flags.

Owns `Cluster`. Refuses to import torch: GPUs are counted with ``nvidia-smi``, so that planning stays quick and needs no
driver. `cli` and `worker` call it; `plan` and `costs.memory` read the result.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from launcher import host_limits, nvme
from launcher.costs import gpu_kinds
from launcher.costs.cpu_speed import CpuSpeed
from launcher.errors import EnvironmentProblem, UserError

BF16_COMPUTE_CAPABILITY = 8.0
"""Ampere: the first NVIDIA GPUs that compute in bfloat16."""
EXPECTED_RANKS = "THAWLINE_EXPECTED_RANKS"
"""Environment variable: the world size that a job on several nodes asked for."""
EXPECTED_GPUS = "THAWLINE_EXPECTED_GPUS"
"""Environment variable: GPUs of each node that such a job asked for; 0 for none."""
RANKS_VARY = "THAWLINE_RANKS_VARY"
"""Environment variable: set where another attempt of this job may have another number of ranks."""
NVIDIA_SMI_TIMEOUT_S = 60
_UNITS = {"B": 1} | {
    f"{prefix}{unit}": base ** (power + 1)
    for power, prefix in enumerate("KMGT")
    for unit, base in (("B", 1000), ("iB", 1024))
}


class Cluster(BaseModel):
    """What a run may use. One rank drives one GPU; without GPUs ranks are CPU processes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: Annotated[int, Field(ge=1)] = 1
    gpus_per_node: Annotated[int, Field(ge=0)]
    """GPUs used on each node; 0: the run is on CPUs."""
    ranks_per_node: Annotated[int, Field(ge=1)]
    gpu_memory_bytes: Annotated[int, Field(gt=0)] | None = None
    """Of the smallest GPU used; None: unknown, or no GPU."""
    gpu_kind: str | None = None
    """The product's name; several joined with ``+`` when the GPUs differ."""
    host_memory_bytes: Annotated[int, Field(gt=0)] | None = None
    """Of one node, within the container's limit if it has one; None: unknown."""
    nvme_bytes: Annotated[int, Field(ge=0)] | None = None
    """Free on the disk of a node's own that ``offload: nvme`` takes by default; None: unknown, or it cannot be used."""
    bf16: bool = False
    """Whether every GPU computes in bfloat16."""
    cpu_speed: CpuSpeed | None = None
    """Of a node's CPU ranks together; None: not measured, or GPUs compute."""

    @property
    def ranks(self) -> int:
        """Over all nodes; the world size."""
        return self.nodes * self.ranks_per_node

    def __str__(self) -> str:
        nodes = "" if self.nodes == 1 else f"{self.nodes} nodes x "
        if not self.gpus_per_node:
            return f"{nodes}{self.ranks_per_node} CPU rank{'s' if self.ranks_per_node > 1 else ''}"
        memory = f" ({self.gpu_memory_bytes / 2**30:.0f} GiB)" if self.gpu_memory_bytes else ""
        return f"{nodes}{self.gpus_per_node} x {self.gpu_kind or 'GPU'}{memory}"


class _Gpu(NamedTuple):
    number: str
    uuid: str
    kind: str
    memory_bytes: int | None
    compute_capability: float


def here(ranks: int | None = None) -> Cluster:
    """This machine: all its visible GPUs, or one CPU rank; or exactly ``ranks`` of either.

    Raises: EnvironmentProblem when more ranks are asked for than there are GPUs, or the GPUs cannot be counted.
    """
    if ranks is not None and ranks < 1:
        raise UserError(f"--ranks {ranks}: a run needs at least 1 rank")
    gpus = _visible_gpus()
    if ranks is not None and 0 < len(gpus) < ranks:
        raise EnvironmentProblem(
            f"--ranks {ranks}: this machine has {_count(len(gpus), 'visible GPU')} and a rank takes a whole one; "
            f"ask for at most {len(gpus)}, or set CUDA_VISIBLE_DEVICES= (empty) to run {ranks} ranks on the CPU"
        )
    num_ranks = ranks if ranks is not None else max(1, len(gpus))
    return _on_node(gpus[:num_ranks], num_ranks)


def with_own_disk(cluster: Cluster) -> Cluster:
    """The cluster that this machine is one of, with what ``auto`` may swap to; on CPU ranks it never does."""
    return cluster.model_copy(update={"nvme_bytes": nvme.here()}) if cluster.gpus_per_node else cluster


def from_env(environ: Mapping[str, str] | None = None) -> Cluster | None:
    """What ``torchrun`` or ``accelerate launch`` started this process in; None when neither did (no RANK is set).

    Raises: EnvironmentProblem when the variables do not agree with one another or with the GPUs there are.
    """
    env = os.environ if environ is None else environ
    if "RANK" not in env:
        return None
    values = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        if not env.get(name, "").isdecimal():
            raise EnvironmentProblem(
                f"{name}={env.get(name)!r} while RANK={env['RANK']!r}: a launcher must set RANK, WORLD_SIZE and "
                "LOCAL_WORLD_SIZE to whole numbers; start the worker with `thawline run`, torchrun or accelerate launch"
            )
        values[name] = int(env[name])
    world, local = values["WORLD_SIZE"], values["LOCAL_WORLD_SIZE"]
    if not local or world % local or values["RANK"] >= world:
        raise EnvironmentProblem(
            f"RANK={values['RANK']} WORLD_SIZE={world} LOCAL_WORLD_SIZE={local}: every node must run the same number "
            "of ranks, and a rank is less than the world size; start the same number of processes on each node"
        )
    gpus = _visible_gpus(env)
    if 0 < len(gpus) < local:
        raise EnvironmentProblem(
            f"LOCAL_WORLD_SIZE={local}, but this process sees {_count(len(gpus), 'GPU')} "
            f"(CUDA_VISIBLE_DEVICES={env.get('CUDA_VISIBLE_DEVICES', 'unset')}): start one process per GPU, let every "
            "process see all of the node's GPUs, or set CUDA_VISIBLE_DEVICES= (empty) to run on the CPU"
        )
    return _on_node(gpus[:local], local).model_copy(update={"nodes": world // local})


def described(
    nodes: int = 1,
    gpus: int | None = None,
    gpu_memory: str | None = None,
    host_memory: str | None = None,
    ranks: int | None = None,
    gpu_kind: str | None = None,
    node_disk: str | None = None,
) -> Cluster:
    """A cluster from flags; what they leave out is as on this machine. A GPU that is only described has bfloat16,
    unless it is of a kind that has not; a kind says its memory too.

    ``gpus`` counts those of one node (0: CPU), and so does ``ranks``. Memory is text for `parse_bytes`.

    Raises: UserError for a combination that cannot be.
    """
    if nodes < 1 or (gpus is not None and gpus < 0) or (ranks is not None and ranks < 1):
        raise UserError(f"--nodes {nodes} --gpus {gpus} --ranks {ranks}: at least 1 node, 0 GPUs and 1 rank")
    if gpus and ranks is not None and ranks != gpus:
        raise UserError(f"--gpus {gpus} --ranks {ranks}: a rank takes one whole GPU; give one of the two")
    if gpus is None:
        cluster = here(ranks)
    elif gpus == 0:
        cluster = _on_node([], ranks or 1)
    else:
        cluster = Cluster(
            gpus_per_node=gpus, ranks_per_node=gpus, host_memory_bytes=host_limits.memory_bytes(), bf16=True
        )
    changes: dict[str, object] = {"nodes": nodes}
    if gpu_kind is not None:
        kind = gpu_kinds.find(gpu_kind)
        if kind is None:
            known = ", ".join(gpu_kinds.near(gpu_kind))
            raise UserError(
                f"--gpu-kind {gpu_kind}: not known; known are {known}; or leave it out, and give --gpu-memory"
            )
        if not cluster.gpus_per_node:
            raise UserError(f"--gpu-kind {gpu_kind}: there is no GPU on this machine; add --gpus N")
        changes |= {"gpu_kind": kind.name, "gpu_memory_bytes": kind.memory_bytes, "bf16": kind.bf16}
    if gpu_memory is not None:
        if not cluster.gpus_per_node:
            raise UserError(f"--gpu-memory {gpu_memory}: there is no GPU on this machine; add --gpus N")
        changes["gpu_memory_bytes"] = parse_bytes(gpu_memory)
    if host_memory is not None:
        changes["host_memory_bytes"] = parse_bytes(host_memory)
    if node_disk is not None:
        changes["nvme_bytes"] = parse_bytes(node_disk)
    elif gpus is None:
        cluster = with_own_disk(cluster)
    return cluster.model_copy(update=changes)


def ranks_vary() -> bool:
    """Whether another attempt of this job may have another number of ranks."""
    return bool(os.environ.get(RANKS_VARY))


def threads_per_rank(ranks_per_node: int) -> int:
    """CPU threads each rank of a node may use: its share of the cores this process may run on, at least 1."""
    cores = len(os.sched_getaffinity(0))
    quota = Path("/sys/fs/cgroup/cpu.max")  # "200000 100000": 2 cores; "max 100000": no limit
    if quota.is_file():
        share, period = quota.read_text().split()
        if share != "max":
            cores = min(cores, max(1, int(share) // int(period)))
    return max(1, cores // ranks_per_node)


def parse_bytes(text: str) -> int:
    """``80GiB`` -> 80 x 2^30, ``80GB`` -> 80 x 10^9, ``1024`` -> 1024 bytes.

    Raises: UserError for anything else; ``80G`` could be either and is refused.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    unit = next((known for known in _UNITS if match and known.lower() == match[2].lower()), None)
    if match and not match[2]:
        unit = "B"
    num_bytes = int(float(match[1]) * _UNITS[unit]) if match and unit else 0
    if num_bytes < 1:
        raise UserError(f"{text!r} is not an amount of memory: write it as 80GiB, 80GB, 512MiB or in bytes")
    return num_bytes


def _on_node(gpus: list[_Gpu], num_ranks: int) -> Cluster:
    memories = [gpu.memory_bytes for gpu in gpus if gpu.memory_bytes]
    return Cluster(
        gpus_per_node=len(gpus),
        ranks_per_node=num_ranks,
        gpu_memory_bytes=min(memories) if memories and len(memories) == len(gpus) else None,
        gpu_kind="+".join(sorted({gpu.kind for gpu in gpus})) or None,
        host_memory_bytes=host_limits.memory_bytes(),
        bf16=bool(gpus) and all(gpu.compute_capability >= BF16_COMPUTE_CAPABILITY for gpu in gpus),
    )


def _visible_gpus(environ: Mapping[str, str] | None = None) -> list[_Gpu]:
    """The GPUs that CUDA would show this process, in its order."""
    env = os.environ if environ is None else environ
    asked = env.get("CUDA_VISIBLE_DEVICES")
    if asked is not None and asked.strip() in ("", "-1", "NoDevFiles"):
        return []
    gpus = _nvidia_smi(env)
    if asked is None or not gpus:
        return gpus
    visible = []
    for entry in (part.strip() for part in asked.split(",")):
        if entry.startswith("MIG-"):  # a slice: CUDA takes it, nvidia-smi's query gives its memory nowhere
            visible.append(_Gpu(entry, entry, f"{gpus[0].kind} MIG", None, gpus[0].compute_capability))
            continue
        is_uuid = entry.startswith("GPU-")  # CUDA takes its beginning too
        found = [gpu for gpu in gpus if entry == gpu.number or (is_uuid and gpu.uuid.startswith(entry))]
        if len(found) != 1:
            raise EnvironmentProblem(
                f"CUDA_VISIBLE_DEVICES={asked}: {entry!r} names {len(found)} of this machine's GPUs "
                f"(0 to {len(gpus) - 1}); correct or unset it"
            )
        visible.append(found[0])
    return visible


def _nvidia_smi(env: Mapping[str, str]) -> list[_Gpu]:
    """All GPUs of the machine. None is no error; some that cannot be counted are."""
    has_devices = any(Path("/dev").glob("nvidia[0-9]*"))
    remedy = "repair the driver's tools, or set CUDA_VISIBLE_DEVICES= (empty) to run on the CPU"
    program = shutil.which("nvidia-smi", path=env.get("PATH"))
    if program is None:
        if has_devices:
            raise EnvironmentProblem(f"this machine has /dev/nvidia* but no nvidia-smi on PATH to count GPUs; {remedy}")
        return []
    query = "--query-gpu=index,uuid,name,memory.total,compute_cap"
    try:
        answer = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as expired:
        raise EnvironmentProblem(f"nvidia-smi gave no answer in {NVIDIA_SMI_TIMEOUT_S} s; {remedy}") from expired
    if answer.returncode:
        if has_devices:
            said = (answer.stdout + answer.stderr).strip()
            raise EnvironmentProblem(f"nvidia-smi failed with exit code {answer.returncode}: {said}; {remedy}")
        return []
    return [_parse_gpu(line) for line in answer.stdout.splitlines() if line.count(",") >= 4]


def _parse_gpu(line: str) -> _Gpu:
    number, uuid, *name, memory, capability = (field.strip() for field in line.split(","))
    mebibytes = re.fullmatch(r"[0-9]+", memory)
    version = re.fullmatch(r"[0-9]+\.[0-9]+", capability)
    memory_bytes = int(memory) * 2**20 if mebibytes else None
    return _Gpu(number, uuid, ", ".join(name), memory_bytes, float(capability) if version else 0.0)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
