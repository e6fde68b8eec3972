"""How many CPU ranks a host can hold, by its cores, its memory and the control groups around this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import host_limits, oversubscription
from launcher.cluster import Cluster
from launcher.costs.memory import ModelStates
from launcher.costs.peak import Activations, plan_memory
from launcher.errors import EnvironmentProblem
from launcher.plan import RunPlan

GIB = 2**30


def cpu(ranks: int, **more: int) -> Cluster:
    return Cluster(gpus_per_node=0, ranks_per_node=ranks, **more)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A made-up host: 16 cores and 64 GiB, 48 of them free; keywords are files of its control groups."""
    monkeypatch.setattr(host_limits, "PROC", tmp_path / "proc")
    monkeypatch.setattr(host_limits, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.delenv(oversubscription.ALLOWED, raising=False)

    def make(groups: str, files: dict[str, str]) -> None:
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "meminfo").write_text("MemTotal: 67108864 kB\nMemAvailable:   50331648 kB\n")
        (tmp_path / "proc" / "self" / "cgroup").write_text(groups)
        for name, text in files.items():
            file = tmp_path / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    return make


@pytest.mark.parametrize(
    ("groups", "files", "cores", "total", "free"),
    [
        ("", {}, 16, 64 * GIB, 48 * GIB),
        ("0::/\n", {"memory.max": "max\n", "cpu.max": "max 100000\n"}, 16, 64 * GIB, 48 * GIB),
        (
            "0::/slice/job\n",  # the job's own limit lies under one of its slice
            {
                "slice/memory.max": f"{8 * GIB}\n", "slice/memory.current": f"{6 * GIB}\n",
                "slice/memory.stat": f"anon 5\ninactive_file {GIB}\n", "slice/cpu.max": "250000 100000\n",
                "slice/job/memory.max": "max\n", "slice/job/memory.current": f"{2 * GIB}\n",
            },
            3, 8 * GIB, 3 * GIB,
        ),
        (
            "4:memory:/docker/1\n2:cpu,cpuacct:/docker/1\n0::/\n",
            {
                "memory/docker/1/memory.limit_in_bytes": f"{4 * GIB}\n",
                "memory/docker/1/memory.usage_in_bytes": f"{GIB}\n",
                "memory/memory.limit_in_bytes": "9223372036854771712\n", "cpu/docker/1/cpu.cfs_quota_us": "-1\n",
                "cpu/docker/1/cpu.cfs_period_us": "100000\n",
            },
            16, 4 * GIB, 3 * GIB,
        ),
        (
            "4:memory:/of/the/host\n",  # a container that sees only its own root
            {"memory/memory.limit_in_bytes": f"{4 * GIB}\n", "memory/memory.usage_in_bytes": f"{GIB}\n",
             "cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            2, 4 * GIB, 3 * GIB,
        ),
    ],
)  # fmt: skip
def test_the_least_of_all_limits_counts(
    host: Callable[..., None], groups: str, files: dict[str, str], cores: int, total: int, free: int
) -> None:
    host(groups, files)
    assert (host_limits.cores(), host_limits.memory_bytes(), host_limits.available_bytes()) == (cores, total, free)


def test_this_host_says_something() -> None:
    total, free = host_limits.memory_bytes(), host_limits.available_bytes()
    assert total is not None
    assert free is not None
    assert 0 <= free <= total
    assert 1 <= host_limits.cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("ranks", "memory_bytes", "says"),
    [
        (64, 64 * GIB, None),
        (65, 64 * GIB, "16 cores for them, which run at most 4 each; ask for at most 64, or add --oversubscribe"),
        (17, 8 * GIB, "8.0 GiB for them, and each takes 0.5 GiB before it has a model; ask for at most 16, or"),
        (2, GIB // 2, "ask for at most 1, or"),
        (1, 0, None),
        (65, None, "ask for at most 64, or"),
    ],
)
def test_too_many_ranks_are_refused_with_the_number_that_would_do(
    host: Callable[..., None], ranks: int, memory_bytes: int | None, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    host("", {})
    oversubscription.require_room(
        Cluster(gpus_per_node=ranks, ranks_per_node=ranks), memory_bytes, "a rank a GPU is not this module's"
    )
    if says is None:
        return oversubscription.require_room(cpu(ranks), memory_bytes, f"--ranks {ranks}")
    with pytest.raises(EnvironmentProblem) as refused:
        oversubscription.require_room(cpu(ranks), memory_bytes, f"--ranks {ranks}")
    assert str(refused.value).startswith(f"--ranks {ranks}: this host has ")
    assert says in str(refused.value)
    monkeypatch.setenv(oversubscription.ALLOWED, "1")
    oversubscription.require_room(cpu(ranks), memory_bytes, f"--ranks {ranks}")


def test_ranks_of_which_each_alone_would_fit_are_refused_by_the_plan(
    make_plan: Callable[..., RunPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(oversubscription.ALLOWED, raising=False)
    states = ModelStates(parameters=2 * GIB, gradients=GIB, masters=0, optimizer=2 * GIB, step_gradients=GIB)
    memory = plan_memory(states, Activations(), 0.0, is_gpu=False)
    assert 5 * GIB < memory.peak_bytes < 7 * GIB

    def planned(ranks: int, host_bytes: int) -> RunPlan:
        plan = make_plan(cluster=cpu(ranks, host_memory_bytes=host_bytes))
        stages = [stage.model_copy(update={"memory": memory}) for stage in plan.stages]
        return plan.model_copy(update={"stages": stages})

    oversubscription.require_memory(planned(2, 16 * GIB))
    oversubscription.require_memory(planned(8, 4 * GIB))  # one does not fit either: the plan's table says so
    with pytest.raises(EnvironmentProblem, match=r"8 CPU ranks: each needs .* in stage head.* ask for at most 2, or"):
        oversubscription.require_memory(planned(8, 16 * GIB))
    monkeypatch.setenv(oversubscription.ALLOWED, "1")
    oversubscription.require_memory(planned(8, 16 * GIB))
