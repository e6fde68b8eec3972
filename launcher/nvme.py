"""The folder of a node's own disk that ``offload: nvme`` swaps to, and what a machine must have to swap at all.

Owns where a run's swap files lie, and the looks at compiler, library, file system and free space, each of which ends in
words that say what to do. Imports no torch: `doctor` and the plan of this machine look before any rank is started,
`backends.zero_nvme` once more before it builds an engine. Writes nothing but the folder and a probe in it; the files
are DeepSpeed's.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from launcher.errors import EnvironmentProblem

BLOCK = 4096
"""Bytes: what O_DIRECT takes on any disk."""
SHARED_MEMORY = ("tmpfs", "ramfs")
NAME = "sharding.offload: nvme"
OTHER = "name another folder in sharding.nvme_path, on a disk of the node's own"
PROGRAM = "#include <libaio.h>\nint main() { io_context_t context = 0; return io_submit(context, 0, nullptr); }\n"


def base(path: str | None) -> Path:
    """The folder of a disk that the recipe names (``sharding.nvme_path``), or the node's own temporary one.

    Raises: EnvironmentProblem for a path with a variable that is not set here.
    """
    if path is None:
        return Path(os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir())
    expanded = os.path.expandvars(path)
    if "$" in expanded or not expanded.startswith("/"):
        raise EnvironmentProblem(
            f"sharding.nvme_path: {path} is {expanded!r} on this node: set the variable to an absolute path, or name "
            "the folder itself"
        )
    return Path(expanded)


def swap_folder(path: str | None, run_dir: Path) -> Path:
    """Of one run on this node. Its name follows from the run's folder, so that the next start finds what a killed one
    left and two runs never meet; inside, DeepSpeed gives each rank a folder of its own."""
    name = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]
    return base(path) / f"thawline-swap-{name}"


def rank_folder(folder: Path, rank: int) -> Path:
    """Where DeepSpeed puts a rank's optimizer state (deepspeed/runtime/swap_tensor/optimizer_utils.py)."""
    return folder / "zero_stage_3" / "optimizer" / f"rank{rank}"


def missing_library() -> str | None:
    """Why DeepSpeed's ``async_io`` operator cannot be built here, and what to do; None if it can."""
    compiler = os.environ.get("CXX", "g++")
    beside = str(Path(sys.executable).parent)  # ninja is a package of python's own environment
    path = os.pathsep.join([beside, os.environ.get("PATH", "")])
    for program, remedy in ((compiler, "apt-get install g++"), ("ninja", "pip install ninja")):
        if not shutil.which(program, path=path):
            return f"{program} is missing, which compiles DeepSpeed's async_io operator: {remedy}"
    with tempfile.TemporaryDirectory() as folder:
        command = [compiler, "-x", "c++", "-", "-o", f"{folder}/probe", *_flags("CFLAGS"), *_flags("LDFLAGS"), "-laio"]
        done = subprocess.run(command, input=PROGRAM, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        return (
            "libaio is missing, which DeepSpeed's async_io operator is built on: apt-get install libaio-dev (Debian, "
            "Ubuntu), dnf install libaio-devel (Fedora, RHEL); for one elsewhere set CFLAGS=-I… and LDFLAGS=-L…"
        )
    return None


def _flags(name: str) -> list[str]:
    return os.environ.get(name, "").split()


def look(path: str | None, run_dir: Path) -> Path:
    """The run's swap folder on this node, which need not be there yet; ``path`` is ``sharding.nvme_path``.

    Raises: EnvironmentProblem where this node cannot swap to it, whatever it is to hold.
    """
    if missing := missing_library():
        raise EnvironmentProblem(f"{NAME}: {missing}; or take offload: cpu")
    folder = swap_folder(path, run_dir)
    disk, kind = folder.parent.resolve(), file_system(folder.parent)
    if not disk.is_dir():
        raise EnvironmentProblem(f"{NAME}: {disk} is not there on this node; make it, or {OTHER}")
    if run_dir.resolve() in (disk, *disk.parents):
        raise EnvironmentProblem(f"{NAME}: {disk} lies in the run's own folder, which all nodes share; {OTHER}")
    if kind in SHARED_MEMORY:
        raise EnvironmentProblem(f"{NAME}: {disk} ({kind}) lies in memory, which would be no offload; {OTHER}")
    return folder


def require(
    path: str | None, run_dir: Path, num_bytes: int, ranks: Sequence[int], rank: int, *, buffer_bytes: int = 0
) -> Path:
    """The same, made, with nothing in it of this rank's earlier attempts.

    Args:
        num_bytes: that one rank writes.
        ranks: of this node.
        buffer_bytes: that one rank swaps through.

    Raises:
        EnvironmentProblem: as `look`, or the folder cannot be written past the page cache, or has too little space, or
            the buffers cannot be locked in memory.
    """
    folder = look(path, run_dir)
    if unlocked := _lock_error(buffer_bytes):
        raise EnvironmentProblem(
            f"{NAME}: {buffer_bytes / 2**30:.3g} GiB of swap buffers cannot be locked in memory: {unlocked}; raise the "
            "limit (ulimit -l unlimited; on SLURM the administrator does, with PropagateResourceLimitsExcept=MEMLOCK)"
        )
    disk, mine = folder.parent, rank_folder(folder, rank)
    try:
        shutil.rmtree(mine, ignore_errors=True)
        _make(mine)
        _write_direct(mine / "probe")
    except OSError as error:
        reason = f"{disk} ({file_system(disk)}) cannot be written with O_DIRECT: {error.strerror}"
        raise EnvironmentProblem(f"{NAME}: {reason}; {OTHER}") from error
    needed, free = len(ranks) * num_bytes, shutil.disk_usage(disk).free
    if rank == min(ranks) and free < needed:  # the other ranks may have begun to write
        remove(folder, rank)
        raise EnvironmentProblem(
            f"{NAME}: {disk} has {free / 2**30:.3g} GiB free, and {len(ranks)} ranks swap {needed / 2**30:.3g} GiB "
            f"there; make room, or {OTHER}"
        )
    return folder


def _make(folder: Path) -> None:
    """Though another rank may take an empty folder above away at the same moment. Raises: OSError."""
    for _ in range(20):
        try:
            return folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:
            continue
    folder.mkdir(parents=True, exist_ok=True)


def remove(folder: Path, rank: int) -> None:
    """Take a rank's swap files away, and the folders that nobody is in any more."""
    mine = rank_folder(folder, rank)
    shutil.rmtree(mine, ignore_errors=True)
    for empty in (mine.parent, mine.parent.parent, folder):
        try:
            empty.rmdir()
        except OSError:  # others are in it
            return


def free_bytes(path: str | None) -> int:
    """Of the disk under a swap folder."""
    return shutil.disk_usage(base(path)).free


def here() -> int | None:
    """Free bytes where a run on GPUs would swap to if its recipe says nothing; None: this node cannot swap at all."""
    if not base(None).is_dir() or missing_toolkit() or missing_library():
        return None
    return None if file_system(base(None)) in SHARED_MEMORY else free_bytes(None)


def missing_toolkit() -> str | None:
    """Why DeepSpeed cannot compile for a GPU's node, which its operator for swapping is part of; None if it can."""
    found = os.environ.get("CUDA_HOME") or shutil.which("nvcc") or next(Path("/usr/local").glob("cuda*"), None)
    return None if found else "the CUDA toolkit is missing (nvcc): install that of torch's release, or set CUDA_HOME"


def file_system(folder: Path) -> str:
    """Type of the file system that a folder lies on, as the kernel names it."""
    found, longest = "unknown", -1
    where = str(folder.resolve())
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split(" ")
        mount = mount.encode().decode("unicode_escape")  # blanks are written as \040
        inside = where == mount or where.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= longest:
            found, longest = kind, len(mount)
    return found


def _lock_error(num_bytes: int) -> str | None:
    """Why so much memory cannot be locked. DeepSpeed's operator locks its buffers, and aborts the process if it
    cannot (csrc/pin_memory/page_alloc.cpp)."""
    if not num_bytes:
        return None
    library = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(-1, num_bytes) as block:
        view = ctypes.c_char.from_buffer(block)
        failed = library.mlock(ctypes.byref(view), ctypes.c_size_t(num_bytes))
        del view  # or the map could not be closed, which unlocks it
    return os.strerror(ctypes.get_errno()) if failed else None


def _write_direct(file: Path) -> None:
    """Write one block past the page cache, as the operator does. Raises: OSError where the file system refuses."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600)
    try:
        with mmap.mmap(-1, BLOCK) as block:  # O_DIRECT wants memory that begins at a page
            os.write(handle, block)
    finally:
        os.close(handle)
        file.unlink()
