"""Counting GPUs without torch, from a stand-in for nvidia-smi; ranks from a launcher's environment; sizes in words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher import cluster
from launcher.errors import EnvironmentProblem, UserError

GIB = 2**30
A100 = "{0}, GPU-0000000{0}-aaaa, NVIDIA A100-SXM4-80GB, 81920, 8.0\n"
T4 = "{0}, GPU-1111111{0}-bbbb, Tesla T4, 15360, 7.5\n"


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Make nvidia-smi report these lines, with this exit code."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(lines: str, exit_code: int = 0) -> None:
        (tmp_path / "answer").write_text(lines)
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n/bin/cat {tmp_path}/answer\nexit {exit_code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return install


def test_all_gpus(gpus) -> None:
    gpus(A100.format(0) + A100.format(1))
    found = cluster.here()
    assert (found.ranks, found.gpus_per_node, found.gpu_memory_bytes, found.bf16) == (2, 2, 80 * GIB, True)
    assert str(found) == "2 x NVIDIA A100-SXM4-80GB (80 GiB)"


def test_fewer_ranks_than_gpus(gpus) -> None:
    gpus(A100.format(0) + T4.format(1))
    assert cluster.here(1) == cluster.here().model_copy(
        update={"ranks_per_node": 1, "gpus_per_node": 1, "gpu_kind": "NVIDIA A100-SXM4-80GB", "bf16": True}
    ).model_copy(update={"gpu_memory_bytes": 80 * GIB})


def test_unlike_gpus_count_as_the_least(gpus) -> None:
    gpus(A100.format(0) + T4.format(1))
    found = cluster.here()
    assert (found.gpu_memory_bytes, found.bf16) == (15360 * 2**20, False)
    assert found.gpu_kind == "NVIDIA A100-SXM4-80GB+Tesla T4"


def test_more_ranks_than_gpus(gpus) -> None:
    gpus(A100.format(0))
    with pytest.raises(EnvironmentProblem, match=r"--ranks 3: this machine has 1 visible GPU"):
        cluster.here(3)


@pytest.mark.parametrize(
    ("visible", "kinds"),
    [
        ("1", "Tesla T4"),
        ("GPU-1111", "Tesla T4"),
        ("1,0", "NVIDIA A100-SXM4-80GB+Tesla T4"),
        ("", None),
        ("-1", None),
        ("MIG-12345678", "NVIDIA A100-SXM4-80GB MIG"),
    ],
)
def test_visible_devices(gpus, monkeypatch: pytest.MonkeyPatch, visible: str, kinds: str | None) -> None:
    gpus(A100.format(0) + T4.format(1))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert cluster.here().gpu_kind == kinds


def test_visible_devices_that_are_not_there(gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(A100.format(0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,4")
    with pytest.raises(EnvironmentProblem, match="'4' names 0 of this machine's GPUs"):
        cluster.here()


def test_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = cluster.here()
    assert (found.ranks, found.gpus_per_node, found.gpu_memory_bytes, found.bf16) == (1, 0, None, False)
    assert found.host_memory_bytes is not None
    assert str(cluster.here(2)) == "2 CPU ranks"


def test_no_driver_is_no_gpu_unless_there_are_devices(gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login node has nvidia-smi and no GPU; a machine with devices that cannot be counted is broken, not a CPU."""
    gpus("NVIDIA-SMI has failed", exit_code=9)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    assert cluster.here().gpus_per_node == 0
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([Path("/dev/nvidia0")]))
    with pytest.raises(EnvironmentProblem, match=r"exit code 9.*NVIDIA-SMI has failed.*CUDA_VISIBLE_DEVICES="):
        cluster.here()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EnvironmentProblem, match="no nvidia-smi"):
        cluster.here()


def test_memory_that_is_not_told(gpus) -> None:
    gpus("0, GPU-0, NVIDIA GB10, [N/A], 12.1\n")
    assert cluster.here().gpu_memory_bytes is None


def test_under_torchrun(gpus) -> None:
    gpus("")
    env = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""}
    found = cluster.from_env(env)
    assert found is not None
    assert (found.nodes, found.ranks_per_node, found.ranks, found.gpus_per_node) == (2, 2, 4, 0)
    assert cluster.from_env({}) is None


@pytest.mark.parametrize(
    "env",
    [
        {"RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "4"},
        {"RANK": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"},
        {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "2"},
        {"RANK": "4", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "0", "LOCAL_WORLD_SIZE": "0"},
    ],
)
def test_environment_that_cannot_be(env: dict[str, str]) -> None:
    with pytest.raises(EnvironmentProblem, match="RANK="):
        cluster.from_env(env)


def test_fewer_gpus_than_local_ranks(gpus, tmp_path: Path) -> None:
    gpus(A100.format(0))
    env = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "PATH": str(tmp_path)}
    with pytest.raises(EnvironmentProblem, match="LOCAL_WORLD_SIZE=2, but this process sees 1 GPU"):
        cluster.from_env(env)


def test_described_needs_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = cluster.described(nodes=2, gpus=8, gpu_memory="80GiB", host_memory="1TiB")
    assert (found.ranks, found.gpu_memory_bytes, found.host_memory_bytes, found.bf16) == (16, 80 * GIB, 2**40, True)
    assert cluster.described(gpus=0, ranks=3).ranks == 3
    assert cluster.described(ranks=2) == cluster.here(2)
    with pytest.raises(UserError, match="--gpu-memory 80GiB: there is no GPU"):
        cluster.described(gpu_memory="80GiB")
    with pytest.raises(UserError, match="--gpus 4 --ranks 2"):
        cluster.described(gpus=4, ranks=2)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("80GiB", 80 * GIB), ("80gib", 80 * GIB), ("80GB", 80 * 10**9), ("1.5 TiB", 3 * 2**39), ("1024", 1024), ("7B", 7)],
)
def test_amounts_of_memory(text: str, num_bytes: int) -> None:
    assert cluster.parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "80G", "GiB", "-1GiB", "80 G iB", "0GiB", "1e3GiB", "nan"])
def test_amounts_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="is not an amount of memory"):
        cluster.parse_bytes(text)


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    assert [cluster.threads_per_rank(ranks) for ranks in (1, 2, 3, 64)] == [8, 4, 2, 1]


def test_counting_imports_no_torch() -> None:
    program = "import sys; from launcher import cluster; cluster.here(); print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
