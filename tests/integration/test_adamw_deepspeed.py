"""`FusedAdamW` as DeepSpeed's client optimizer: its moments, bf16 ones too, go through DeepSpeed's checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from launcher.ending import end_now


def make_engine(state_dtype: str) -> Any:
    import deepspeed

    from thawline_kernels import FusedAdamW

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 1},
        "bf16": {"enabled": True},
        "gradient_clipping": 0.1,
    }
    optimizer = FusedAdamW(model.parameters(), lr=1e-3, state_dtype=state_dtype, seed=11)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def train(engine: Any, steps: range) -> list[torch.Tensor]:
    """Parameters, fp32 masters and moments afterwards."""
    for step in steps:
        rows = torch.randn(4, 5, generator=torch.Generator().manual_seed(step)).bfloat16()
        engine.backward(engine(rows).float().square().mean())
        engine.step()
    client = engine.optimizer.optimizer
    masters = [param for group in client.param_groups for param in group["params"]]
    state = [client.state[param][key] for param in masters for key in ("step", "exp_avg", "exp_avg_sq")]
    return [tensor.detach().clone() for tensor in (*engine.module.parameters(), *masters, *state)]


def check(_: int, folder: Path, state_dtype: str) -> None:
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=0, world_size=1)
    straight = make_engine(state_dtype)
    saved = train(straight, range(3))
    straight.save_checkpoint(str(folder), tag="three")
    expected = train(straight, range(3, 6))

    resumed = make_engine(state_dtype)
    assert resumed.load_checkpoint(str(folder), tag="three")[0] is not None
    for ours, theirs in zip(train(resumed, range(0)), saved, strict=True):
        assert ours.dtype is theirs.dtype
        assert torch.equal(ours, theirs)
    found = train(resumed, range(3, 6))
    assert {tensor.dtype for tensor in found[-2:]} == {torch.float32 if state_dtype == "fp32" else torch.bfloat16}
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert not any(torch.equal(ours, theirs) for ours, theirs in zip(expected, saved, strict=True))
    dist.destroy_process_group()
    end_now(0)


@pytest.mark.parametrize("state_dtype", ["fp32", "bf16"])
def test_zero1_checkpoint(tmp_path: Path, state_dtype: str) -> None:
    mp.spawn(check, args=(tmp_path, state_dtype), nprocs=1)
