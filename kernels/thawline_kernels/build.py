"""Compiles the kernels on first use and loads them.

Owns the compiler's flags, the cache and its key. Refuses a cache that others can write to. The cache lies in
``$THAWLINE_CACHE``, else ``$XDG_CACHE_HOME/thawline``, else ``~/.cache/thawline``; a library built ahead of time into
this package (``python -m thawline_kernels cpu``) goes before it.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
AHEAD_OF_TIME = Path(__file__).parent / "lib"
HOST_FLAGS = (
    "-std=c++20",
    "-O2",
    "-fPIC",
    "-ffp-contract=off",
    "-Wno-psabi",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
)
INSTRUCTION_SETS = {"scalar": (1,), "avx2": (8, "-mavx2", "-mfma"), "avx512": (16, "-mavx512f")}
CUDA_FLAGS = (
    "-std=c++20",
    "-O3",
    "--fmad=false",
    "-Xcompiler",
    "-fPIC",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
    "-DUSE_CUDA",
)


class BuildError(RuntimeError):
    """A kernel cannot be built or loaded here; says what is missing and what to do."""


@functools.cache
def load(target: str) -> Path:
    """Register the kernels ("cpu" or "cuda") with torch, compiling them if no library of these sources is at hand.

    Returns:
        The library that was loaded.

    Raises:
        BuildError: no compiler, the compiler failed, or the cache is not private.
    """
    path = library(target)
    torch.ops.load_library(str(path))
    return path


def library(target: str) -> Path:
    """The library of the ``target`` kernels, compiled when it is not there yet. Safe for concurrent processes."""
    name = f"thawline_{target}-{_key(target)}.so"
    if (AHEAD_OF_TIME / name).exists():
        return AHEAD_OF_TIME / name
    folder = _private(cache_folder())
    path = folder / name
    if not path.exists():
        with _locked(folder / f"{name}.lock"):
            if not path.exists():  # another rank may have built it meanwhile
                compile_into(path, target)
    return path


def cache_folder() -> Path:
    """Where compiled kernels are kept between runs."""
    home = os.environ.get("THAWLINE_CACHE")
    return Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thawline"


def compile_into(path: Path, target: str) -> None:
    """Compile the ``target`` kernels into ``path``, which appears whole or not at all."""
    started = time.monotonic()
    print(f"thawline: compiling the AdamW step ({target}), once for this machine ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as scratch:
        built = Path(scratch) / path.name
        commands = _cpu_commands(Path(scratch)) if target == "cpu" else _cuda_commands(Path(scratch))
        with ThreadPoolExecutor() as pool:
            list(pool.map(_run, commands))
        objects = sorted(str(file) for file in Path(scratch).glob("*.o"))
        _run((_compiler(target), "-shared", "-o", str(built), *objects, *_link_flags(target)))
        os.replace(built, path)
    print(f"thawline: compiled in {time.monotonic() - started:.0f} s: {path}", file=sys.stderr, flush=True)


def _cpu_commands(scratch: Path) -> Iterator[tuple[str, ...]]:
    compiler, includes = _compiler("cpu"), _torch_includes()
    for source in ("ops_cpu", "gather"):
        yield (
            compiler,
            *HOST_FLAGS,
            *includes,
            "-c",
            str(SOURCES / f"{source}.cpp"),
            "-o",
            str(scratch / f"{source}.o"),
        )
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    for isa, (width, *flags) in INSTRUCTION_SETS.items():
        if isa == "scalar" or is_x86:
            defines = (f"-DTHAWLINE_ISA={isa}", f"-DTHAWLINE_WIDTH={width}")
            output = ("-c", str(SOURCES / "cpu_kernel.cpp"), "-o", str(scratch / f"{isa}.o"))
            yield (compiler, *HOST_FLAGS, "-Wno-maybe-uninitialized", *defines, *map(str, flags), *output)


def _cuda_commands(scratch: Path) -> Iterator[tuple[str, ...]]:
    for source in ("ops_cuda.cu", "gather.cpp"):
        files = ("-c", str(SOURCES / source), "-o", str(scratch / f"{Path(source).stem}.o"))
        yield (_compiler("cuda"), *CUDA_FLAGS, *_cuda_architectures(), *_torch_includes(), *files)


def _cuda_architectures() -> tuple[str, ...]:
    """``$THAWLINE_CUDA_ARCH`` ("80;90"), else the GPUs of this machine; the sources guess none."""
    asked = os.environ.get("THAWLINE_CUDA_ARCH")
    devices = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    numbers = asked.split(";") if asked else sorted({f"{major}{minor}" for major, minor in devices})
    if not numbers:
        raise BuildError(
            "the CUDA step: this machine shows no GPU to compile for; set THAWLINE_CUDA_ARCH, such as 80;90"
        )
    return tuple(f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers)


def _torch_includes() -> tuple[str, ...]:
    return ("-isystem", str(Path(torch.__file__).parent / "include"))


def _link_flags(target: str) -> tuple[str, ...]:
    flags = (f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", "-ltorch")
    return (*flags, "-ltorch_cuda") if target == "cuda" else flags


def _compiler(target: str) -> str:
    """Path of g++ or nvcc.

    Raises:
        BuildError: it is not there; the message says how to name or install it.
    """
    variable, default, advice = {
        "cpu": ("CXX", "g++", "install g++ 11 or later, or set CXX to a C++20 compiler"),
        "cuda": ("NVCC", "nvcc", "install the CUDA toolkit of torch's CUDA version, or set NVCC to its nvcc"),
    }[target]
    wanted = os.environ.get(variable) or default
    found = shutil.which(wanted)
    if found is None:
        raise BuildError(
            f"the compiled {target} AdamW step needs {wanted}, which is not on PATH: {advice}, or use the backend torch"
        )
    return found


def _run(command: tuple[str, ...]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"the compiler failed ({done.returncode}): {' '.join(command)}\n{done.stderr[-4000:]}")


def ahead_of_time(target: str, folder: Path = AHEAD_OF_TIME) -> None:
    """Compile into ``folder``; in this package, a wheel carries it and nothing is compiled on first use."""
    folder.mkdir(parents=True, exist_ok=True)
    compile_into(folder / f"thawline_{target}-{_key(target)}.so", target)


def _key(target: str) -> str:
    """Names what a library was made from: sources, this file, torch, machine, and for CUDA the architectures."""
    digest = hashlib.sha256()
    for file in (*sorted(SOURCES.iterdir()), Path(__file__)):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    digest.update(f"{torch.__version__} {platform.machine()} {platform.libc_ver()}".encode())
    if target == "cuda":
        digest.update(" ".join(_cuda_architectures()).encode())
    return digest.hexdigest()[:16]


def _private(folder: Path) -> Path:
    """``folder``, made for its owner alone; code is loaded from it, so nobody else may write there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.stat()
    if facts.st_uid != os.getuid() or stat.S_IMODE(facts.st_mode) & 0o022:
        raise BuildError(
            f"others can write to the kernels' cache {folder} (owner {facts.st_uid}, mode "
            f"{stat.S_IMODE(facts.st_mode):o}): chmod 700 it, or set THAWLINE_CACHE to a folder of your own"
        )
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock; where the file system has none, several ranks compile and the last rename wins."""
    with path.open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
