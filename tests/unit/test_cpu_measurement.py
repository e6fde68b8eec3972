"""A CPU's speed is measured once, remembered, and is what its processor really does."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from launcher import cpu_measurement
from launcher.cluster import Cluster
from launcher.costs import step_time
from launcher.costs.cpu_speed import CpuSpeed
from launcher.costs.memory import Sharding
from launcher.costs.step_time import Load, Work
from launcher.data.rows import Rows
from launcher.typical_length import TypicalLength

SPEED = CpuSpeed(flops=1e11, bandwidth=1e10, launch_s=1e-5)
CPU = Cluster(gpus_per_node=0, ranks_per_node=2)


def test_what_is_measured_is_what_torch_does_here() -> None:
    """Within a factor of three of a plain product by numpy's clock: the machine may have other work meanwhile."""
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    speed, _ = cpu_measurement.measure(1)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state), "the run's own generator is not touched"
    left, right = np.ones((1024, 512), np.float32), np.ones((512, 512), np.float32)
    seconds = []
    for _ in range(5):
        began = time.thread_time()
        torch.mm(torch.from_numpy(left), torch.from_numpy(right))
        seconds.append(time.thread_time() - began)
    plain = 2 * 1024 * 512 * 512 / min(seconds)
    assert plain / 3 < speed.flops / max(1, torch.get_num_threads()) < plain * 3
    assert 1e-7 < speed.launch_s < 1e-3
    assert 1e8 < speed.bandwidth < 1e12


def test_it_is_measured_once_and_again_only_after_a_busy_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    answers = [(SPEED.model_copy(update={"flops": 1.0}), False), (SPEED, True)]
    monkeypatch.setattr(cpu_measurement, "measure", lambda threads: answers.pop(0))
    now = time.time()
    for _ in range(2):
        assert cpu_measurement.measured(CPU).cpu_speed == SPEED.model_copy(update={"flops": 1.0})
    monkeypatch.setattr(time, "time", lambda: now + 2 * cpu_measurement.BUSY_FOR_S)
    for _ in range(2):
        assert cpu_measurement.measured(CPU).cpu_speed == SPEED, "the busy moment's was kept for an hour"
    assert not answers
    monkeypatch.setattr(time, "time", lambda: now + 1e7)
    assert cpu_measurement.measured(CPU).cpu_speed == SPEED, "a quiet moment's is kept for good"
    (file,) = (tmp_path / "thawline").iterdir()
    file.write_text("half a fi")
    answers.append((SPEED, True))
    assert cpu_measurement.measured(CPU).cpu_speed == SPEED, "a damaged file is measured again"
    assert json.loads(file.read_text())
    gpus = Cluster(gpus_per_node=1, ranks_per_node=1)
    assert cpu_measurement.measured(gpus) == gpus


def test_without_a_place_for_the_file_it_is_measured_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thawline").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    answers = [(SPEED, True), (SPEED, True)]
    monkeypatch.setattr(cpu_measurement, "measure", lambda threads: answers.pop())
    for _ in range(2):
        assert cpu_measurement.measured(CPU).cpu_speed == SPEED
    assert not answers


def test_a_measured_cpu_adds_up_products_bytes_and_launches() -> None:
    machine = step_time.machine(
        "fp32", nodes=1, ranks_per_node=2, gpu_kind=None, on_gpu=False, threads=1, cpu_speed=SPEED
    )
    work = Work(forward=1e9, backward=2e9, kernels=100, moved=4e8)
    found = step_time.step_time(work, Sharding(0, 1), Load(10**7, 0, 0, 2), 3, machine)
    accumulated = 2 * 12 * 10**7 / 5e9
    expected = 3 * (3e9 / 5e10 + 4e8 / 5e9 + 100 * 1e-5) + accumulated
    assert found.compute == pytest.approx(expected), "each rank has half of the node"
    assert "100 GFLOP/s of products" in found.assumptions[0]
    assert found.error == step_time.CPU_ERROR
    zero2 = step_time.step_time(work, Sharding(2, 2), Load(10**7, 0, 0, 2), 3, machine)
    assert zero2.error == step_time.UNCHECKED, "DeepSpeed's own time on a CPU was never compared"


class Task:
    """Encodes a text as so many tokens as it has characters."""

    def encode_rows(self, rows, *, augment_seeds):  # type: ignore[no-untyped-def]
        return [{"input_ids": [0] * len(row["text"])} for row in rows]


def test_a_micro_batch_is_as_long_as_its_longest_text() -> None:
    """Beside the mean over many micro-batches drawn at random."""
    import pyarrow as pa

    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 60, 200)
    rows = Rows(pa.table({"text": ["a" * size for size in sizes], "id": [str(n) for n in range(200)]}))
    lengths = TypicalLength.of(Task(), rows)  # type: ignore[arg-type]
    for micro_size in (1, 4, 32):
        drawn = generator.choice(sizes, (20_000, micro_size)).max(1).mean()
        assert lengths.share(micro_size, 100) == pytest.approx(drawn / 100, rel=0.02)
    assert TypicalLength([]).share(8, 100) == 1.0
