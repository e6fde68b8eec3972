"""DTensor parameters (FSDP2): each rank steps its shard, the norm is that of the whole, and DCP carries the state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint import state_dict as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from launcher.ending import end_now
from thawline_kernels import FusedAdamW

RANKS = 2


def make_model() -> nn.Module:
    """Three rows over two ranks: the shards are uneven, and of the last bias one is empty."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 1))


def train(model: nn.Module, optimizer: FusedAdamW, steps: range) -> list[float]:
    """Every rank on the same rows; returns the norms."""
    norms = []
    for step in steps:
        rows = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        model(rows).square().mean().backward()
        norms.append(float(optimizer.step(max_norm=0.1, zero_grad=True)))
    return norms


def check_versions(model: nn.Module, optimizer: FusedAdamW) -> None:
    """A step that changes nothing is counted as a write by DTensors and their shards; a stale graph is refused."""
    written = [one for p in model.parameters() for one in (p, *optimizer.state[p].values())]
    written += [one.to_local() for one in written if isinstance(one, DTensor)]
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    before, kept = [one._version for one in written], [one.clone() for one in written]
    grads = [param.grad._version for param in model.parameters()]
    optimizer.step(zero_grad=True)
    assert all(old < one._version for old, one in zip(before, written, strict=True))
    assert all(old < param.grad._version for old, param in zip(grads, model.parameters(), strict=True))
    with torch.no_grad():
        for one, value in zip(written, kept, strict=True):
            one.copy_(value)


def check(rank: int, store: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    plain, sharded = make_model(), make_model()
    fully_shard(sharded, mesh=mesh)
    whole, shards = FusedAdamW(plain.parameters(), lr=0.01), FusedAdamW(sharded.parameters(), lr=0.01)
    assert train(sharded, shards, range(4)) == pytest.approx(train(plain, whole, range(4)), rel=1e-6)
    check_versions(sharded, shards)
    saved = dcp.get_optimizer_state_dict(sharded, shards)
    again = FusedAdamW(sharded.parameters(), lr=0.01)
    dcp.set_optimizer_state_dict(sharded, again, saved)
    for param in sharded.parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            found = again.state[param][key]
            assert isinstance(found, DTensor)
            assert torch.equal(found.to_local(), shards.state[param][key].to_local())
        assert float(again.state[param]["step"]) == 4
    train(plain, whole, range(4, 6))
    train(sharded, again, range(4, 6))
    for ours, theirs in zip(sharded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.full_tensor(), theirs.detach(), rtol=1e-5, atol=1e-7)
    dist.destroy_process_group()
    end_now(0)


def train_bf16(model: nn.Module, optimizer: FusedAdamW, steps: range) -> None:
    for step in steps:
        rows = torch.randn(8, 5, generator=torch.Generator().manual_seed(step)).bfloat16()
        model(rows).float().square().mean().backward()
        optimizer.step(zero_grad=True)


def check_split(rank: int, store: Path) -> None:
    """A checkpoint on disk of split bf16 parameters holds their fp32 values; training goes on with the same bits."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))

    def start() -> tuple[nn.Module, FusedAdamW]:
        model = make_model().bfloat16()
        fully_shard(model, mesh=mesh)
        return model, FusedAdamW(model.parameters(), lr=1e-3, master="split16", state_dtype="bf16", seed=7)

    def state(model: nn.Module, optimizer: FusedAdamW) -> dict:
        model_state, optimizer_state = dcp.get_state_dict(model, optimizer)
        return {"model": model_state, "optimizer": optimizer_state}

    straight, whole = start()
    train_bf16(straight, whole, range(3))
    checkpoint.save(state(straight, whole), checkpoint_id=store.parent / "saved")
    before = {name: param.to_local().clone() for name, param in straight.named_parameters()}

    resumed, again = start()
    loaded = state(resumed, again)
    checkpoint.load(loaded, checkpoint_id=store.parent / "saved")
    dcp.set_state_dict(resumed, again, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
    for name, param in resumed.named_parameters():
        assert torch.equal(param.to_local(), before[name])
    train_bf16(straight, whole, range(3, 6))
    train_bf16(resumed, again, range(3, 6))
    for ours, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours.to_local(), theirs.to_local())
        assert again.state[ours].keys() == whole.state[theirs].keys() == {"step", "exp_avg", "exp_avg_sq", "low"}
        for key, value in again.state[ours].items():
            expected = whole.state[theirs][key]
            local = [one.to_local() if isinstance(one, DTensor) else one for one in (value, expected)]
            assert local[0].dtype is local[1].dtype
            assert torch.equal(*local), key
    dist.destroy_process_group()
    end_now(0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_split_parameters_go_through_a_distributed_checkpoint(tmp_path: Path) -> None:
    mp.spawn(check_split, args=(tmp_path / "store",), nprocs=RANKS)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fsdp2(tmp_path: Path) -> None:
    mp.spawn(check, args=(tmp_path / "store",), nprocs=RANKS)
