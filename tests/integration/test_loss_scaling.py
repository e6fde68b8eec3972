"""fp16's loss scaling in the DDP engine, with torch's real GradScaler: on the CPU it scales fp32 gradients alike.

Autocast to fp16 needs a GPU; what is scaled, unscaled, clipped, skipped and resumed does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engines_on_ranks import parts, stage_plan, start_state

from launcher import backends, distributed
from launcher.backends.data_parallel import DataParallelEngine

TRAINED = ["body.weight", "body.bias", "head.weight"]
INPUTS = [torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[distributed.Runtime]:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    started = distributed.start()
    yield started
    started.close()


def engine(runtime: distributed.Runtime, *, is_scaled: bool) -> DataParallelEngine:
    """A DDP engine as `backends` builds it, then given the scaler that fp16 on a GPU comes with."""
    built = backends.build(parts(runtime, stage_plan("ddp", "fp32", TRAINED, 1, 1), start_state(), {}))
    assert isinstance(built, DataParallelEngine)
    if is_scaled:
        built.scaler = built.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    return built


def step(engine: DataParallelEngine, x: torch.Tensor, factor: float = 1.0) -> tuple[float, bool]:
    """Norm before clipping (0.5, as the stage says), and whether the step was taken."""
    engine.backward(factor * engine.forward({"x": x}).pow(2).sum())
    result = engine.step()
    return result.grad_norm, result.taken


def values(engine: DataParallelEngine) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in engine.parameters()}


def test_a_scaled_step_is_the_unscaled_one_and_an_overflow_changes_nothing(
    runtime: distributed.Runtime, tmp_path: Path
) -> None:
    plain, scaled = engine(runtime, is_scaled=False), engine(runtime, is_scaled=True)
    for x in INPUTS[:2]:
        (norm, _), (same, taken) = step(plain, x), step(scaled, x)
        assert taken
        assert same == pytest.approx(norm, rel=1e-6), "the norm is that of the true gradient"
        assert norm > 0.5, "so that it is clipped"
    for name, value in values(plain).items():
        torch.testing.assert_close(value, values(scaled)[name], rtol=1e-6, atol=1e-9)

    before = values(scaled)
    norm, taken = step(scaled, INPUTS[2], 1e36)
    assert not taken
    assert not math.isfinite(norm)
    assert all(torch.equal(value, before[name]) for name, value in values(scaled).items())
    assert scaled.scaler.get_scale() == 2.0**15, "halved for the next try"
    assert all(state["step"] == 2 for state in scaled.optimizer.state.values()), "the step is not counted"

    scaled.save(tmp_path)
    again = engine(runtime, is_scaled=True)
    again.load(tmp_path)
    assert again.scaler.get_scale() == 2.0**15
    assert step(again, INPUTS[3]) == step(scaled, INPUTS[3])
    assert all(torch.equal(value, values(again)[name]) for name, value in values(scaled).items())
    assert not torch.equal(values(scaled)["body.weight"], before["body.weight"])
