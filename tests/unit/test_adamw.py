"""`FusedAdamW` as a drop-in for `torch.optim.AdamW`: state, groups, skips and the traps of torch's own fused step."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from thawline_kernels import FusedAdamW

SHAPES = ((17, 5), (64,), (), (3, 2, 3, 3), (0,), (1,))
ULPS = 4
"""Allowed distance of a parameter from torch's after a few steps: torch's fp32 root is off by one ULP for one value in
five.
"""


def make_params(seed: int = 0, shapes: Iterable[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def give_grads(params: list[Tensor], step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator) * scale


def clones(params: list[Tensor]) -> list[Tensor]:
    return [param.detach().clone().requires_grad_() for param in params]


def train(optimizer: torch.optim.Optimizer, params: list[Tensor], steps: Iterable[int]) -> None:
    for step in steps:
        give_grads(params, step)
        optimizer.step()


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(torch.int32 if tensor.dtype is torch.float32 else torch.int16)


def assert_same_bits(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype is b.dtype
        assert torch.equal(bits(a), bits(b))


def assert_near(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=ULPS * 2**-23, atol=1e-8)


OPTIONS = (
    {},
    {"lr": 1e-2, "weight_decay": 0.3},
    {"weight_decay": 0.0},
    {"maximize": True},
    {"amsgrad": True},
    {"betas": (0.2, 0.5), "eps": 1e-3},
    {"lr": torch.tensor(3e-3)},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_moments_equal_torchs_to_the_bit_and_parameters_to_its_rounding_of_the_root(options: dict) -> None:
    theirs = make_params()
    ours = clones(theirs)
    fused, torchs = FusedAdamW(ours, **options), torch.optim.AdamW(theirs, foreach=False, **options)
    train(fused, ours, range(25))
    train(torchs, theirs, range(25))
    for a, b in zip(ours, theirs, strict=True):
        assert fused.state[a].keys() == torchs.state[b].keys()
        assert_same_bits(
            (fused.state[a][key] for key in fused.state[a]), (torchs.state[b][key] for key in torchs.state[b])
        )
    assert_near(ours, theirs)


@pytest.mark.parametrize("first_is_ours", [True, False])
@pytest.mark.parametrize("amsgrad", [True, False])
def test_state_dict_goes_to_and_comes_from_torch(first_is_ours: bool, amsgrad: bool) -> None:
    kinds = (FusedAdamW, torch.optim.AdamW) if first_is_ours else (torch.optim.AdamW, FusedAdamW)
    straight = make_params()
    train(torch.optim.AdamW(straight, amsgrad=amsgrad, foreach=False), straight, range(6))

    params = make_params()
    first = kinds[0](params, amsgrad=amsgrad)
    train(first, params, range(3))
    second = kinds[1](params, amsgrad=amsgrad)
    second.load_state_dict(first.state_dict())
    train(second, params, range(3, 6))
    assert_near(params, straight)
    assert [float(second.state[param]["step"]) for param in params] == [6.0] * len(params)
    assert [float(first.state[param]["step"]) for param in params] == [3.0] * len(params), (
        "the saved optimizer moved too"
    )


def test_resume_from_disk_gives_the_same_bits(tmp_path) -> None:
    straight = make_params()
    train(FusedAdamW(straight), straight, range(8))
    params = make_params()
    optimizer = FusedAdamW(params)
    train(optimizer, params, range(5))
    torch.save({"params": params, "optimizer": optimizer.state_dict()}, tmp_path / "state")
    saved = torch.load(tmp_path / "state")
    resumed = FusedAdamW(saved["params"])
    resumed.load_state_dict(saved["optimizer"])
    train(resumed, saved["params"], range(5, 8))
    assert_same_bits(saved["params"], straight)


def test_a_deep_copy_goes_on_with_the_same_bits() -> None:
    params = make_params()
    optimizer = FusedAdamW(params, backend="torch")
    train(optimizer, params, range(2))
    copied_params, copied = copy.deepcopy((params, optimizer))
    train(optimizer, params, range(2, 4))
    train(copied, copied_params, range(2, 4))
    assert_same_bits(copied_params, params)


def test_groups_have_rates_of_their_own_that_change_every_step() -> None:
    ours, theirs = make_params(), make_params()
    fused = FusedAdamW([{"params": ours[:2], "lr": 1e-2}, {"params": ours[2:], "weight_decay": 0.0}])
    torchs = torch.optim.AdamW([{"params": theirs[:2], "lr": 1e-2}, {"params": theirs[2:], "weight_decay": 0.0}])
    for step in range(5):
        for optimizer in (fused, torchs):
            for group in optimizer.param_groups:
                group["lr"] *= 0.7
        train(fused, ours, [step])
        train(torchs, theirs, [step])
    assert_near(ours, theirs)


def test_a_scheduler_drives_the_rate() -> None:
    params = make_params()
    optimizer = FusedAdamW(params, lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    for step in range(3):
        train(optimizer, params, [step])
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_a_group_can_be_added_and_a_parameter_can_lack_a_gradient() -> None:
    ours, theirs = make_params(), make_params()
    optimizers = (FusedAdamW(ours[:3]), torch.optim.AdamW(theirs[:3], foreach=False))
    for optimizer, params in zip(optimizers, (ours, theirs), strict=True):
        train(optimizer, params, range(2))
        optimizer.add_param_group({"params": params[3:], "lr": 0.1})
        for step in range(2, 6):
            give_grads(params, step)
            if step % 2:
                params[0].grad = None
                params[4].grad = None
            optimizer.step()
        assert [float(optimizer.state[param]["step"]) for param in params] == [4, 6, 6, 4, 2, 4]
    assert_near(ours, theirs)


def test_step_returns_the_closures_loss_else_nothing_else_the_norm() -> None:
    params = make_params()
    optimizer = FusedAdamW(params)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum((param**2).sum() for param in params)
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert loss.requires_grad
    assert optimizer.step() is None
    assert optimizer.step(closure, max_norm=1.0) < loss
    expected = math.sqrt(sum(float(param.grad.double().square().sum()) for param in params))
    assert optimizer.step(max_norm=math.inf).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_is_that_of_clip_grad_norm(max_norm: float) -> None:
    ours, theirs = make_params(), make_params()
    fused, torchs = FusedAdamW(ours), torch.optim.AdamW(theirs, foreach=False)
    for step in range(5):
        give_grads(ours, step)
        give_grads(theirs, step)
        norm = fused.step(max_norm=max_norm, zero_grad=True)
        assert float(norm) == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs, max_norm)), rel=1e-6)
        torchs.step()
        assert all(not param.grad.any() for param in ours)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_norm_that_is_not_finite_leaves_everything_as_it_was(bad: float) -> None:
    params = make_params()
    optimizer = FusedAdamW(params)
    train(optimizer, params, range(2))
    before = clones(params)
    give_grads(params, 2)
    params[0].grad[3, 3] = bad
    assert not optimizer.step(max_norm=1.0).isfinite()
    assert_same_bits(params, before)
    assert float(optimizer.state[params[0]]["step"]) == 2


def test_grad_scaler_unscales_and_skips() -> None:
    ours, theirs = make_params(), make_params()
    fused, torchs = FusedAdamW(ours), torch.optim.AdamW(theirs, fused=True)
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in range(2)]
    for step in range(4):
        for optimizer, params, scaler in zip((fused, torchs), (ours, theirs), scalers, strict=True):
            scaler.scale(torch.ones(()))
            give_grads(params, step, scale=1024.0)
            if step == 2:
                params[1].grad[7] = math.inf
            scaler.step(optimizer)
            scaler.update()
    assert float(fused.state[ours[0]]["step"]) == float(torchs.state[theirs[0]]["step"]) == 3
    assert_near(ours, theirs)


@pytest.mark.parametrize("layout", ["transposed", "expanded", "strided", "channels_last"])
def test_a_gradient_of_another_layout_is_read_right(layout: str) -> None:
    shape = (4, 6, 5, 5)
    ours, theirs = make_params(shapes=[shape]), make_params(shapes=[shape])
    grad = {
        "transposed": torch.randn(6, 4, 5, 5).transpose(0, 1),
        "expanded": torch.randn(4, 1, 1, 1).expand(shape),
        "strided": torch.randn(4, 6, 5, 10)[..., ::2],
        "channels_last": torch.randn(shape).to(memory_format=torch.channels_last),
    }[layout]
    ours[0].grad, theirs[0].grad = grad, grad.contiguous()
    FusedAdamW(ours).step(max_norm=math.inf)
    torch.optim.AdamW(theirs, foreach=False).step()
    assert_near(ours, theirs)


@pytest.mark.parametrize("layout", ["transposed", "strided", "channels_last"])
def test_a_parameter_of_another_layout_is_stepped_right(layout: str) -> None:
    values = torch.randn(4, 6, 5, 5)
    param = {
        "transposed": values.transpose(0, 1).contiguous().transpose(0, 1),
        "strided": torch.empty(4, 6, 5, 10)[..., ::2].copy_(values),
        "channels_last": values.to(memory_format=torch.channels_last),
    }[layout].requires_grad_()
    plain = values.clone().requires_grad_()
    optimizer, expected = FusedAdamW([param]), torch.optim.AdamW([plain], foreach=False)
    for step in range(3):
        give_grads([param], step)
        give_grads([plain], step)
        optimizer.step()
        expected.step()
    assert_near([param.detach().contiguous()], [plain])


def test_empty_tensors_many_or_last_do_no_harm() -> None:
    params = make_params(shapes=[(0,)] * 50 + [(3,)] + [(0, 4)] * 3)
    train(FusedAdamW(params), params, range(2))
    empty = make_params(shapes=[(0,)])
    train(FusedAdamW(empty), empty, range(2))
    assert float(FusedAdamW(empty).step(max_norm=1.0)) == 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.float16])
def test_other_dtypes_are_refused_by_name(dtype: torch.dtype) -> None:
    param = torch.zeros(3, dtype=dtype, requires_grad=True)
    param.grad = torch.zeros_like(param)
    with pytest.raises(TypeError, match=str(dtype)):
        FusedAdamW([param]).step()


def test_sparse_gradients_are_refused() -> None:
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="sparse"):
        FusedAdamW(embedding.parameters()).step()


def test_moments_of_a_bf16_parameter_stay_fp32_through_a_round_trip() -> None:
    param = torch.randn(100).bfloat16().requires_grad_()
    optimizer = FusedAdamW([param])
    param.grad = torch.randn(100).bfloat16()
    optimizer.step()
    other = FusedAdamW([param])
    other.load_state_dict(optimizer.state_dict())
    for key in ("exp_avg", "exp_avg_sq"):
        assert optimizer.state[param][key].dtype is torch.float32
        assert_same_bits([other.state[param][key]], [optimizer.state[param][key]])


def test_an_unknown_option_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"backend='triton'.*auto, cuda, cpu, torch"):
        FusedAdamW(make_params(), backend="triton")
