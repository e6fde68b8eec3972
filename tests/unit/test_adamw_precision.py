"""bf16 parameters and moments: the true value is kept, saved and turned into any other layout without losing a bit."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from thawline_kernels import FusedAdamW, formats

MASTERS = ("split16", "fp32")
BACKENDS = ("cpu", "torch")


def bf16_params(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator).bfloat16().requires_grad_() for size in ((40, 5), (33,), (0,))]


def train(optimizer: torch.optim.Optimizer, params: list[Tensor], steps: Iterable[int]) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).bfloat16()
        optimizer.step()


def true_values(optimizer: FusedAdamW) -> list[Tensor]:
    return [state["master"] for state in optimizer.state_dict()["state"].values()]


def assert_equal(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype is b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("master", MASTERS)
def test_bf16_with_a_master_is_fp32_training_to_the_bit(master: str, backend: str) -> None:
    params = bf16_params()
    optimizer = FusedAdamW(params, lr=1e-4, master=master, backend=backend)
    wide = [param.detach().float().requires_grad_() for param in params]
    plain = FusedAdamW(wide, lr=1e-4, backend=backend)
    for step in range(20):
        train(optimizer, params, [step])
        for param, full in zip(params, wide, strict=True):
            full.grad = param.grad.float()
        plain.step()
    assert_equal(true_values(optimizer), [param.detach() for param in wide])
    for param, full in zip(params, wide, strict=True):
        rounded = formats.split16(full.detach())[0] if master == "split16" else full.detach().bfloat16()
        assert torch.equal(param.detach(), rounded)


def test_without_a_master_small_updates_are_lost() -> None:
    """Why a master is kept: an update below half a step of bf16 never arrives."""
    ends = {}
    for master in ("none", "split16"):
        param = torch.ones(100).bfloat16().requires_grad_()
        optimizer = FusedAdamW([param], lr=1e-5, weight_decay=0.0, master=master)
        for _ in range(1000):
            param.grad = torch.ones_like(param)
            optimizer.step()
        ends[master] = float(param[0].detach())
    assert ends["none"] == 1.0
    assert ends["split16"] == pytest.approx(0.99, abs=2**-8)


def test_a_split_value_comes_back_exactly_and_its_upper_half_is_half_up() -> None:
    bits = torch.randint(-(2**31), 2**31, (100_000,)).int()
    edges = torch.tensor([0x3F800000, 0x3F808000, 0x3F807FFF, 0x3F818000, 0x7F7FFFFF, 1, 0x8000, 0x7F800000]).int()
    value = torch.cat([bits, edges, edges | -(2**31)]).view(torch.float32)
    value = value[~value.isnan()]
    upper, lower = formats.split16(value)
    assert torch.equal(formats.join16(upper, lower).view(torch.int32), value.view(torch.int32))
    half_up = ((value.view(torch.int32).long() & 0xFFFFFFFF) + 0x8000) >> 16
    assert torch.equal(upper.view(torch.int16), half_up.to(torch.int16))
    tie_even = value.bfloat16().view(torch.int16).int() << 16
    naive = (tie_even + lower.int()).view(torch.float32)
    assert not torch.equal(naive, value), "ties to even would come back as well: the trap is gone"


def test_every_nan_is_stored_as_a_nan() -> None:
    value = torch.tensor([0x7FC00000, 0x7FFFFFFF, 0x7F800001, -1], dtype=torch.int32).view(torch.float32)
    assert formats.split16(value)[0].isnan().all()
    assert formats.nearest_bf16(value).isnan().all()
    assert formats.stochastic_bf16(value, torch.full((4,), 0xFFFF)).isnan().all()


def test_nearest_bf16_is_torchs() -> None:
    value = torch.randint(-(2**31), 2**31, (100_000,)).int().view(torch.float32)
    value = value[~value.isnan()]
    assert torch.equal(formats.nearest_bf16(value).view(torch.int16), value.bfloat16().view(torch.int16))


@pytest.mark.parametrize("last", MASTERS)
@pytest.mark.parametrize("first", MASTERS)
def test_a_checkpoint_goes_from_any_layout_to_any_other(first: str, last: str, tmp_path) -> None:
    straight = bf16_params()
    whole = FusedAdamW(straight, master=last)
    train(whole, straight, range(6))

    params = bf16_params()
    optimizer = FusedAdamW(params, master=first)
    train(optimizer, params, range(3))
    torch.save({"params": params, "optimizer": optimizer.state_dict()}, tmp_path / "state")
    loaded = torch.load(tmp_path / "state")
    resumed = FusedAdamW(loaded["params"], master=last)
    resumed.load_state_dict(loaded["optimizer"])
    train(resumed, loaded["params"], range(3, 6))
    assert_equal(true_values(resumed), true_values(whole))
    assert_equal(loaded["params"], straight)


def test_torch_loads_a_checkpoint_with_masters_and_its_checkpoint_starts_masters() -> None:
    params = bf16_params()
    optimizer = FusedAdamW(params, master="split16")
    train(optimizer, params, range(2))
    torchs = torch.optim.AdamW(params)
    torchs.load_state_dict(optimizer.state_dict())
    train(torchs, params, range(2, 4))
    back = FusedAdamW(params, master="split16")
    back.load_state_dict(torchs.state_dict())
    train(back, params, range(4, 5))
    assert float(back.state[params[0]]["step"]) == 5


def test_bytes_per_parameter() -> None:
    """The table of the README: parameter, gradient and state, without the step count."""
    expected = {("none", "fp32"): 12, ("split16", "fp32"): 14, ("fp32", "fp32"): 16, ("split16", "bf16"): 10}
    for (master, state_dtype), size in expected.items():
        param = torch.zeros(1000, dtype=torch.bfloat16, requires_grad=True)
        optimizer = FusedAdamW([param], master=master, state_dtype=state_dtype)
        train(optimizer, [param], range(1))
        state = [tensor for key, tensor in optimizer.state[param].items() if key != "step"]
        assert sum(tensor.nbytes for tensor in [param, param.grad, *state]) == size * 1000


@pytest.mark.parametrize("backend", BACKENDS)
def test_bf16_moments_resume_with_the_same_bits_and_depend_on_the_seed(backend: str) -> None:
    def run(seed: int, steps: Iterable[int], saved: tuple | None = None) -> tuple[list[Tensor], dict]:
        params = [p.detach().clone().requires_grad_() for p in saved[0]] if saved else bf16_params()
        optimizer = FusedAdamW(params, master="split16", state_dtype="bf16", seed=seed, backend=backend)
        if saved:
            optimizer.load_state_dict(saved[1])
        train(optimizer, params, steps)
        return params, optimizer.state_dict()

    straight, expected = run(3, range(30))
    resumed, found = run(3, range(15, 30), run(3, range(15)))
    other, _ = run(4, range(30))
    assert_equal(resumed, straight)
    for key in (0, 1):
        assert_equal(
            [found["state"][key][name] for name in ("exp_avg", "exp_avg_sq", "master")],
            [expected["state"][key][name] for name in ("exp_avg", "exp_avg_sq", "master")],
        )
    assert not torch.equal(other[0], straight[0])


def test_a_bf16_second_moment_does_not_stall() -> None:
    """Rounded to nearest it stops where an update of a thousandth is below half a step; on average it must not."""
    param = torch.zeros(10_000, requires_grad=True)
    optimizer = FusedAdamW([param], state_dtype="bf16", betas=(0.9, 0.999))
    nearest = torch.zeros(1, dtype=torch.bfloat16)
    for _ in range(1000):
        param.grad = torch.ones_like(param)
        optimizer.step()
        nearest = (nearest.float() * 0.999 + 0.001).bfloat16()
    exact = 1 - 0.999**1000
    assert float(optimizer.state[param]["exp_avg_sq"].float().mean()) == pytest.approx(exact, rel=1e-2)
    assert float(nearest) < 0.5 * exact


@pytest.mark.parametrize("numerics", ["torch", "accurate"])
@pytest.mark.parametrize("decay", [1e-7, 1e-8])
def test_accurate_numerics_are_nearer_to_float64(decay: float, numerics: str) -> None:
    """fp32(1 - decay) is 19% off at 1e-7 and is 1 at 1e-8; joined to an update, the decay arrives on average."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2000, generator=generator).abs() + 1
    param = start.clone().requires_grad_()
    exact = start.double().requires_grad_()
    optimizers = (
        FusedAdamW([param], lr=1e-5, weight_decay=decay / 1e-5, numerics=numerics),
        torch.optim.AdamW([exact], lr=1e-5, weight_decay=decay / 1e-5),
    )
    for _ in range(300):
        param.grad = torch.randn(param.shape, generator=generator)
        exact.grad = param.grad.double()
        for optimizer in optimizers:
            optimizer.step()
    bias = float((param.detach().double() - exact.detach()).mean() / exact.detach().mean()) / (300 * decay)
    assert (abs(bias) > 0.1) is (numerics == "torch"), f"the decay is off by {bias:.1%} of itself"
