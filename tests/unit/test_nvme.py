"""``offload: nvme`` without a rank: what a machine lacks, in words; what the plan counts, by hand; what auto does."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import doctor, nvme
from launcher.cluster import Cluster
from launcher.costs import memory
from launcher.costs.memory import Sharding, model_states
from launcher.errors import EnvironmentProblem

MACHINE = Cluster(gpus_per_node=0, ranks_per_node=1)

NEEDS_LIBAIO = pytest.mark.skipif(nvme.missing_library() is not None, reason=str(nvme.missing_library()))


def program(folder: Path, name: str, exit_code: int) -> str:
    file = folder / name
    file.write_text(f"#!/bin/sh\nexit {exit_code}\n")
    file.chmod(0o755)
    return str(file)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that finds libaio, and a disk; without either on this machine."""
    monkeypatch.setenv("CXX", program(tmp_path, "finds", 0))
    (tmp_path / "disk").mkdir()
    return tmp_path


def test_what_is_missing_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", program(tmp_path, "finds-nothing", 1))
    with pytest.raises(EnvironmentProblem, match="apt-get install libaio-dev") as caught:
        nvme.look(None, tmp_path)
    assert caught.value.exit_code == 3
    assert "libaio-dev" in doctor._own_disk(MACHINE).text
    assert nvme.here() is None
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    with pytest.raises(EnvironmentProblem, match="no-compiler is missing"):
        nvme.look(None, tmp_path)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("$THAWLINE_UNSET/x", "set the variable"),
        ("/nowhere/at/all", "is not there on this node"),
        ("RUN/swap", "lies in the run's own folder"),
        ("/dev/shm", "lies in memory"),
    ],
)
def test_folders_that_cannot_be_swapped_to(machine: Path, path: str, words: str) -> None:
    run = machine / "run"
    (run / "swap").mkdir(parents=True)
    with pytest.raises(EnvironmentProblem, match=words):
        nvme.look(path.replace("RUN", str(run)), run)


def test_a_folder_of_the_run_alone_without_what_a_killed_one_left(machine: Path) -> None:
    disk = str(machine / "disk")
    found = nvme.require(disk, machine / "run", 2**20, range(2), 0)
    assert found != nvme.require(disk, machine / "other", 2**20, range(2), 0)
    left = [nvme.rank_folder(found, rank) / "exp_avg-0.tensor.swp" for rank in range(2)]
    left[1].parent.mkdir()
    for file in left:
        file.write_bytes(b"old")
    assert nvme.require(disk, machine / "run", 2**20, range(2), 0) == found
    assert [file.exists() for file in left] == [False, True], "each rank takes its own away"
    nvme.remove(found, 0)
    nvme.remove(found, 1)
    assert not found.exists()


def test_too_little_space_is_said_by_one_rank_and_leaves_nothing(machine: Path) -> None:
    disk = str(machine / "disk")
    with pytest.raises(EnvironmentProblem, match="2 ranks swap"):
        nvme.require(disk, machine / "run", 2**60, range(2, 4), 2)
    assert [*(machine / "disk").iterdir()] == []
    nvme.require(disk, machine / "run", 2**60, range(2, 4), 3)


def test_buffers_that_cannot_be_locked(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said beforehand: DeepSpeed would abort. A little memory anybody may lock."""
    disk = str(machine / "disk")
    nvme.require(disk, machine / "run", 0, [0], 0, buffer_bytes=4096)
    monkeypatch.setattr(nvme, "_lock_error", lambda num_bytes: "Cannot allocate memory")
    with pytest.raises(EnvironmentProblem, match=r"1 GiB of swap buffers cannot be locked .*ulimit -l"):
        nvme.require(disk, machine / "run", 0, [0], 0, buffer_bytes=2**30)


def test_the_default_is_the_nodes_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    assert nvme.base(None) == tmp_path
    assert nvme.base("$SLURM_TMPDIR/swap") == tmp_path / "swap"
    assert doctor._own_disk(MACHINE).is_well


@NEEDS_LIBAIO
def test_this_machine_has_libaio() -> None:
    assert nvme.missing_library() is None


# --- what the plan counts ---------------------------------------------------------------------------------------------
def states(groups: list[list[int]], ranks: int, *, swapped: bool = True, kept: int = 2) -> memory.ModelStates:
    return model_states(groups, [], Sharding(3, ranks, True, "bf16", nvme=swapped), kept)


def test_bytes_in_files_and_buffers_by_hand() -> None:
    """Of two groups the second is too small to be swapped; of the first one's parameters, one gradient."""
    large, small, tiny = 2 * 300_001, 2 * 1000, 2 * 600
    found = states([[large, small], [tiny]], 2)
    flat = 1024 * -(-4 * 301_001 // 1024)
    assert found.nvme == 3 * flat + 4 * 300_001 // 1024 * 1024
    resident = 4 * 4 * 600
    assert found.host == 2 * 301_601 + 4 * 301_601 + resident + memory.SWAP_BUFFERS * flat


def test_sub_groups_bound_the_buffers() -> None:
    """A model that is ten times as large swaps through the same buffers, and its files are what the host had."""
    blocks = [[2 * 50_000_000] * count for count in (4, 40)]
    small, large = (states([block], 2) for block in blocks)
    per_element = (2 + 4) * 50_000_000  # of the shard and the accumulated gradient
    assert large.host - small.host == 36 * per_element
    on_host = states([blocks[1]], 2, swapped=False)
    assert large.nvme == pytest.approx(on_host.host - 40 * per_element, rel=1e-4)
    assert large.host < on_host.host / 2
    assert states([blocks[1]], 2, kept=1).nvme < large.nvme


def test_no_stage_holds_more_on_the_device_for_it() -> None:
    on_host, on_disk = (states([[10**8, 10**6]], 4, swapped=swapped) for swapped in (False, True))
    assert (on_disk.live, on_disk.buckets) == (on_host.live, on_host.buckets)
    assert on_host.nvme == 0
