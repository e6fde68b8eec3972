"""What a machine must have before a rank starts on it: looked at on each, then compared.

Owns the facts (`look`) and what is wrong with them (`problems`), each with the host's name and what to do. Imports no
torch: its version is read from its files, so that a look takes well under a second. `slurm.preflight` gathers the facts
of all nodes of a job, `doctor` those of this machine.
"""

from __future__ import annotations

import re
import shutil
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from launcher import __version__
from launcher.cluster import here, parse_bytes
from launcher.errors import EnvironmentProblem

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "datasets", "numpy")
"""Whose versions must be the same everywhere, besides thawline's own and python's."""
CLOCKS_WITHIN_S = 5.0
"""Clocks that differ by more order the nodes' logs wrongly and, further on, let SLURM's credentials expire."""
LEAST_MEMORY_BYTES = 512 * 2**20
"""For each rank: python, torch and transformers alone take about that much."""
LEAST_DISK_BYTES = 2**30


class Facts(BaseModel):
    """One machine, as it sees itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    time: float
    """Seconds since 1970, by its own clock, when the look began."""
    versions: dict[str, str]
    """Package -> version; "not installed" for one that is not there."""
    gpus: int
    gpu_kind: str | None = None
    gpu_error: str | None = None
    """Why its GPUs could not be counted."""
    memory_bytes: int
    """Host memory that is free for new work."""
    disk_bytes: int | None = None
    """Free space where the run's folder is; None: not looked at, or the folder is not there."""
    folder_error: str | None = None
    """What is wrong with the run's folder."""
    link_error: str | None = None
    """Why the head was not reached."""
    clock_ahead_s: float | None = None
    """Its clock minus the head's; None: the head was not reached."""
    link_s: float | None = None
    """One way there and back to the head."""


def look(host: str | None = None, folder: Path | None = None, token: str = "") -> Facts:
    """This machine now. ``folder`` must hold a file ``token`` with that text, and takes one named after the host."""
    began = time.time()
    gpus, kind, gpu_error = _gpus()
    name = host or socket.gethostname()
    return Facts(
        host=name, time=began, versions=versions(), gpus=gpus, gpu_kind=kind, gpu_error=gpu_error,
        memory_bytes=_available_memory(), folder_error=_folder_error(folder, name, token) if folder else None,
        disk_bytes=shutil.disk_usage(folder).free if folder and folder.is_dir() else None,
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Of python, thawline, the packages that compute, and CUDA and NCCL as torch was built with."""
    import platform

    found = {"thawline": __version__, "python": platform.python_version()}
    return found | {name: _version(name) for name in PACKAGES} | _of_torch()


def problems(
    all_facts: Sequence[Facts], ranks_per_node: int, gpus_per_node: int, memory: str | None = None
) -> list[str]:
    """What is wrong, each line begins with the host; empty when all is well. The first facts are the head's.

    ``memory`` is what the job asked for on each node, such as ``64G``.
    """
    usual = {
        name: Counter(facts.versions.get(name, "not installed") for facts in all_facts).most_common(1)[0][0]
        for name in all_facts[0].versions
    }
    kinds = Counter(facts.gpu_kind for facts in all_facts if facts.gpu_kind)
    kind = kinds.most_common(1)[0][0] if kinds else None
    return [
        f"{facts.host}: {line}"
        for facts in all_facts
        for line in [
            *_of_one(facts, usual, ranks_per_node, gpus_per_node, memory),
            *(
                [f"{facts.gpu_kind}, and {kind} elsewhere; ask for one kind, with --constraint or --gres"]
                if facts.gpu_kind not in (None, kind)
                else []
            ),
        ]
    ]


def summary(all_facts: Sequence[Facts]) -> str:
    """One line on machines that are well."""
    first = all_facts[0]
    known = ", ".join(f"{name} {first.versions[name]}" for name in ("thawline", "torch", "CUDA", "NCCL"))
    clocks = max(abs(facts.clock_ahead_s or 0.0) for facts in all_facts)
    link = max(facts.link_s or 0.0 for facts in all_facts)
    nodes = f"{len(all_facts)} node{'s' if len(all_facts) > 1 else ''}"
    return f"{nodes} alike: {known}; clocks within {clocks:.2f} s, the head {1000 * link:.1f} ms away"


def _of_one(
    facts: Facts, usual: Mapping[str, str], ranks_per_node: int, gpus_per_node: int, memory: str | None
) -> list[str]:
    found = []
    for name, others in usual.items():
        own = facts.versions.get(name, "not installed")
        if own != others:
            found.append(f"{name} {own}, and {others} elsewhere; install the same on all nodes")
        elif own == "not installed":
            found.append(f"{name} is not installed; `pip install thawline` brings it")
    if facts.folder_error:
        found.append(facts.folder_error)
    elif facts.disk_bytes is not None and facts.disk_bytes < LEAST_DISK_BYTES:
        found.append(
            f"{_gib(facts.disk_bytes)} are free where the run's folder is; make room, or choose another --run-dir"
        )
    if facts.link_error:
        found.append(facts.link_error)
    if facts.clock_ahead_s is not None and abs(facts.clock_ahead_s) > CLOCKS_WITHIN_S:
        side = "ahead of" if facts.clock_ahead_s > 0 else "behind"
        found.append(f"its clock is {abs(facts.clock_ahead_s):.0f} s {side} the head's; set its time service right")
    # Of what the job asked for, the system of an idle node holds some itself.
    least = max(int(0.8 * _asked_bytes(memory)), ranks_per_node * LEAST_MEMORY_BYTES)
    if facts.memory_bytes < least:
        found.append(
            f"{_gib(facts.memory_bytes)} of memory are free, and {ranks_per_node} ranks need {_gib(least)}; "
            "see what else runs there"
        )
    if gpus_per_node and facts.gpu_error:
        found.append(facts.gpu_error)
    elif facts.gpus < gpus_per_node:
        found.append(f"{facts.gpus} GPUs answer, and the job asked for {gpus_per_node}; see nvidia-smi there")
    return found


def _asked_bytes(memory: str | None) -> int:
    """``64G`` as SLURM reads it, in binary units and MiB where there is none; 0 means all, which says nothing."""
    number, unit = (memory or "0").rstrip("KMGT"), (memory or "0")[-1]
    return parse_bytes(f"{number}{unit if unit.isalpha() else 'M'}iB") if int(number) else 0


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"


def _gpus() -> tuple[int, str | None, str | None]:
    try:
        cluster = here()
    except EnvironmentProblem as problem:
        return 0, None, str(problem)
    return cluster.gpus_per_node, cluster.gpu_kind, None


def _available_memory() -> int:
    """What the kernel says is free without swapping."""
    text = Path("/proc/meminfo").read_text()
    match = re.search(r"^MemAvailable:\s+([0-9]+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _folder_error(folder: Path, host: str, token: str) -> str | None:
    """Whether this machine sees what the head wrote, and can write itself."""
    try:
        seen = (folder / "token").read_text()
    except OSError as error:
        return f"the run's folder is not shared: {folder / 'token'} of the head cannot be read here ({error.strerror})"
    if seen != token:
        return f"the run's folder is not shared: {folder / 'token'} is another file than the head's"
    try:
        (folder / host).write_text(token)
    except OSError as error:
        return f"the run's folder cannot be written ({error.strerror}): {folder}; check the mount and your quota"
    return None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _of_torch() -> dict[str, str]:
    """CUDA and NCCL of torch's build, without importing it."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return {"CUDA": "none", "NCCL": "none"}
    text = (Path(spec.origin).parent / "version.py").read_text()
    cuda = re.search(r"^cuda\b[^=]*= '([^']+)'", text, re.MULTILINE)
    nccl = next((found[0] for one in requires("torch") or [] if (found := re.match(r"nvidia-nccl-cu\d+", one))), None)
    return {"CUDA": cuda[1] if cuda else "none", "NCCL": _version(nccl) if nccl else "none"}
