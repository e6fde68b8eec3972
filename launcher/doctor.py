"""``thawline doctor``: whether this machine, and each node of a SLURM allocation, can train; and what to do if not.

Owns the list of checks and their order, from what takes no time to a rendezvous of as many ranks as a run would have.
What a node must have is `preflight`'s. Called by `cli`; changes nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher import launch, nvme, preflight
from launcher.cluster import Cluster, here
from launcher.errors import EnvironmentProblem, ThawlineError
from launcher.run_dir import RunDir
from launcher.slurm import preflight as slurm_preflight


@dataclass(frozen=True)
class Finding:
    """One check and what came of it."""

    name: str
    text: str
    is_well: bool = True

    def __str__(self) -> str:
        return f"{'ok  ' if self.is_well else 'FAIL'}  {self.name:<12}{self.text}"


def examine(ranks: int | None = None) -> Iterator[Finding]:
    """Each finding as soon as it is known. ``ranks`` as for ``thawline run``."""
    found = preflight.versions()
    yield Finding("versions", ", ".join(f"{name} {version}" for name, version in found.items()))
    try:
        machine = here(ranks)
    except ThawlineError as error:
        yield Finding("GPUs", str(error), is_well=False)
        return
    yield Finding("machine", str(machine))
    for line in preflight.problems([preflight.look()], machine.ranks_per_node, machine.gpus_per_node):
        yield Finding("machine", line, is_well=False)
    yield _compilers()
    yield _own_disk(machine)
    yield _rendezvous(machine)
    if "SLURM_JOB_NODELIST" in os.environ:
        yield _nodes(machine)


def _compilers() -> Finding:
    """DeepSpeed and thawline_kernels compile their operators when they are first used."""
    beside = str(Path(sys.executable).parent)  # ninja is a package of python's own environment
    path = os.pathsep.join([beside, os.environ.get("PATH", "")])
    programs = {os.environ.get("CXX", "g++"): "apt-get install g++", "ninja": "pip install ninja"}
    missing = [f"{name} ({remedy})" for name, remedy in programs.items() if not shutil.which(name, path=path)]
    if missing:
        text = f"missing: {', '.join(missing)}; without it zero1 to zero3 and the compiled optimizer cannot be built"
        return Finding("compilers", text, is_well=False)
    return Finding("compilers", f"{', '.join(programs)} are there")


def _own_disk(machine: Cluster) -> Finding:
    """Whether ``offload: nvme`` would work here; it is no fault if not, since few recipes ask for it."""
    where = nvme.base(None)
    missing = nvme.missing_library() or (nvme.missing_toolkit() if machine.gpus_per_node else None)
    if missing is None and not where.is_dir():
        missing = f"{where} is not there; set TMPDIR"
    if missing:
        return Finding("own disk", f"offload: nvme cannot be used: {missing}")
    if (kind := nvme.file_system(where)) in nvme.SHARED_MEMORY:
        return Finding(
            "own disk", f"{where} lies in memory ({kind}); for offload: nvme name a disk in sharding.nvme_path"
        )
    free = f"{nvme.free_bytes(None) / 2**30:.1f} GiB free"
    return Finding("own disk", f"libaio is there for offload: nvme; {where} ({kind}) has {free}")


def _rendezvous(machine: Cluster) -> Finding:
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(folder)
        command = [sys.executable, "-m", "launcher.rendezvous_probe", folder]
        result = launch.run_ranks(command, machine.ranks_per_node, run)
        if result.exit_code:
            return Finding("rendezvous", result.message, is_well=False)
        return Finding("rendezvous", f"{machine.ranks_per_node} ranks {(run.path / 'probe-0').read_text()}")


def _nodes(machine: Cluster) -> Finding:
    """The same look as at a job's start, at all nodes of this allocation; in this folder, which they should share."""
    named = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    try:
        hosts = subprocess.run(named, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        where = "run this outside of the container, or where SLURM's commands are on PATH"
        return Finding("nodes", f"SLURM does not say which nodes these are ({error}); {where}", is_well=False)
    needs = argparse.Namespace(
        ranks_per_node=machine.ranks_per_node, gpus_per_node=machine.gpus_per_node, memory=None,
        python=sys.executable, prefix=[], srun_arguments=["--overlap"],  # beside a shell that srun started
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix=".thawline-doctor-", dir=Path.cwd()) as folder:
        try:
            text = slurm_preflight.lead(
                RunDir(folder), Path(folder), hosts, _own_address(hosts), launch.free_port(), needs
            )
        except EnvironmentProblem as error:
            return Finding("nodes", str(error), is_well=False)
    return Finding("nodes", text.removeprefix("preflight: "))


def _own_address(hosts: list[str]) -> str:
    """The address by which the nodes reach this machine: it may be one of them, or the login node."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((hosts[-1], 9))  # sends nothing; it chooses the way
        except OSError as error:
            raise EnvironmentProblem(
                f"no way to {hosts[-1]} of this allocation: {error}; run this on one of its nodes"
            ) from error
        return str(probe.getsockname()[0])
