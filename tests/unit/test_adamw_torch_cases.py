"""The cases of torch's own `TestOptimRenewed` for AdamW, run with `FusedAdamW` on the CPU.

The constructor's arguments, and the wrong ones with their errors, come from torch's own table of optimizers
(``torch.testing._internal.common_optimizers``); the class with the cases is not in its wheel, so they are written here
after it, by the same names. `LEFT_OUT` says which are not, and why.
"""

from __future__ import annotations

import copy
import importlib
import sys
import types
import unittest
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, LinearLR, ReduceLROnPlateau, StepLR

from thawline_kernels import FusedAdamW

LEFT_OUT = {
    "complex, complex_2d": "complex parameters are refused by name (test_adamw.py)",
    "rosenbrock_sparse": "AdamW takes no sparse gradients in torch either; refused by name",
    "mixed_device_dtype, float64 and float16 of all": "fp32 and bf16 alone; refused by name",
    "foreach_*, defaults_changed_to_foreach, peak_memory_foreach": "foreach=True is refused: there is no such step",
    "capturable, graph capture and compile cases": "capturable=True is refused; the operator can be captured",
    "differentiable, less_mem_beta1_zero_adam": "differentiable=True is refused; a moment is kept whatever beta1 is",
    "fused_cpu_matches_cuda, *_with_cuda_params, multi-GPU": "need a GPU: tests/gpu/test_adamw_cuda.py",
    "fused_error_on_params_on_meta": "parameters on another device are stepped by the reference",
}


def torchs_table() -> Any:
    """torch's entry for AdamW. Its test machinery imports expecttest, of which this needs nothing."""
    try:
        importlib.import_module("expecttest")
    except ImportError:
        stand_in = types.ModuleType("expecttest")
        stand_in.TestCase = unittest.TestCase
        sys.modules["expecttest"] = stand_in
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            table = importlib.import_module("torch.testing._internal.common_optimizers")
        except ImportError as error:
            pytest.skip(f"torch's table of optimizers: {error}", allow_module_level=True)
    return next(info for info in table.optim_db if info.optim_cls is torch.optim.AdamW)


INFO = torchs_table()
INPUTS = INFO.optim_inputs_func(device="cpu")
ERRORS = INFO.optim_error_inputs_func(device="cpu", dtype=torch.float32)
SCHEDULERS: tuple[tuple[Any, ...], ...] = (
    (lambda o: StepLR(o, gamma=0.9, step_size=10),),
    (ReduceLROnPlateau, lambda o: ExponentialLR(o, gamma=0.99)),
    (lambda o: LinearLR(o, start_factor=0.4, total_iters=4), lambda o: StepLR(o, gamma=0.9, step_size=10)),
)

inputs = pytest.mark.parametrize("given", INPUTS, ids=lambda given: given.desc)
impls = pytest.mark.parametrize("fused", [None, True], ids=["forloop", "fused"])


def model() -> tuple[Tensor, Tensor, Tensor]:
    """weight, bias and input of a small regression."""
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(size, generator=generator) for size in ((10, 5), (10,), (5,)))
    return weight.requires_grad_(), bias.requires_grad_(), x


def closure_of(optimizer: torch.optim.Optimizer, weight: Tensor, bias: Tensor, x: Tensor) -> Any:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight.mv(x) + bias).pow(2).sum()
        loss.backward()
        return loss

    return closure


def started(
    given: Any, fused: bool | None = None, kind: Any = FusedAdamW, **more: Any
) -> tuple[Any, Any, list[Tensor]]:
    weight, bias, x = model()
    optimizer = kind([weight, bias], **{**given.kwargs, "fused": fused, **more})
    return optimizer, closure_of(optimizer, weight, bias, x), [weight, bias]


@pytest.mark.parametrize("case", ERRORS, ids=lambda case: case.optimizer_error_input.desc)
def test_errors(case: Any) -> None:
    given, error = case.optimizer_error_input, case.error_type
    params = [nn.Parameter(torch.randn(2, 3))] if given.params is None else given.params
    raises = pytest.warns if issubclass(error, Warning) else pytest.raises
    with raises(error, match=case.error_regex):
        FusedAdamW(params, **given.kwargs)


@inputs
@impls
@pytest.mark.parametrize("schedulers", [(), *SCHEDULERS], ids=["constant", "step", "plateau", "two"])
def test_goes_right_direction(given: Any, fused: bool | None, schedulers: tuple[Any, ...]) -> None:
    optimizer, closure, _ = started(given, fused)
    made = [scheduler(optimizer) for scheduler in schedulers]
    first = closure().item()
    for _ in range(20):
        loss = optimizer.step(closure).item()
        for scheduler in made:
            scheduler.step(*([loss] if isinstance(scheduler, ReduceLROnPlateau) else []))
    assert (closure().item() > first) == given.kwargs.get("maximize", False)


def test_goes_right_direction_with_gaps_in_memory() -> None:
    weight, bias = torch.randn(10, 5, 2)[..., 0].requires_grad_(), torch.randn(10, 2)[..., 0].requires_grad_()
    assert not weight.is_contiguous()
    optimizer = FusedAdamW([weight, bias])
    closure = closure_of(optimizer, weight, bias, torch.randn(5))
    first = closure().item()
    for _ in range(20):
        optimizer.step(closure)
    assert closure().item() < first


@inputs
@impls
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_matches_forloop(given: Any, fused: bool | None, dtype: torch.dtype) -> None:
    ends = []
    # The default rate is half a unit of bf16 here: whether a weight moves at all would hang on torch's bf16 moments.
    settings = given.kwargs if dtype is torch.float32 else {"lr": 0.05} | given.kwargs
    for kind, impl in ((FusedAdamW, {"fused": fused}), (torch.optim.AdamW, {"foreach": False})):
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(1, 3), nn.Sigmoid(), nn.Linear(3, 1), nn.Sigmoid()).to(dtype)
        optimizer = kind(net.parameters(), **settings, **impl)
        for step in range(7):
            if step == 3:
                next(net.parameters()).requires_grad_(False).grad = None
            optimizer.zero_grad()
            net(torch.tensor([[0.1], [0.2], [0.3]], dtype=dtype)).sum().backward()
            optimizer.step()
        moments = [optimizer.state[p][k] for p in net.parameters() for k in ("step", "exp_avg", "exp_avg_sq")]
        ends.append([*net.parameters(), *(moments if dtype is torch.float32 else ())])  # bf16: ours are fp32
    tolerance = {"rtol": 1e-5, "atol": 1e-7} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), **tolerance)


@inputs
def test_state_dict_deterministic(given: Any) -> None:
    optimizer, closure, params = started(given)
    for _ in range(3):
        optimizer.step(closure)
    other, other_closure, others = started(given)
    with torch.no_grad():
        for ours, theirs in zip(others, params, strict=True):
            ours.copy_(theirs)
    saved = copy.deepcopy(optimizer.state_dict())
    other.load_state_dict(saved)
    for _ in range(3):
        optimizer.step(closure)
        other.step(other_closure)
    assert all(map(torch.equal, params, others))
    torch.testing.assert_close(optimizer.state_dict(), other.state_dict(), rtol=0, atol=0)
    other.param_groups.extend(other.param_groups)
    assert optimizer.state_dict()["param_groups"][-1] == other.state_dict()["param_groups"][-1]


@inputs
@pytest.mark.parametrize("flag", ["maximize", "foreach", "fused", "capturable", "differentiable", "amsgrad"])
def test_can_load_older_state_dict(given: Any, flag: str) -> None:
    optimizer, closure, _ = started(given)
    optimizer.step(closure)
    old = copy.deepcopy(optimizer.state_dict())
    for group in old["param_groups"]:
        del group[flag]
    optimizer.load_state_dict(old)
    optimizer.step(closure)


@inputs
def test_load_nontensor_step(given: Any) -> None:
    optimizer, closure, params = started(given)
    optimizer.step(closure)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = state["step"].item()
    optimizer.load_state_dict(saved)
    optimizer.step(closure)
    assert [optimizer.state[param]["step"].item() for param in params] == [2, 2]


@inputs
def test_save_load_equality_with_weights_only(given: Any, tmp_path: Path) -> None:
    optimizer, closure, _ = started(given)
    optimizer.step(closure)
    torch.save(optimizer.state_dict(), tmp_path / "state")
    loaded = torch.load(tmp_path / "state", weights_only=True)
    torch.testing.assert_close(loaded, optimizer.state_dict(), rtol=0, atol=0)


@inputs
@impls
def test_step_is_noop_when_params_have_no_grad(given: Any, fused: bool | None) -> None:
    optimizer, _, params = started(given, fused)
    before = [param.detach().clone() for param in params]
    optimizer.step()
    assert all(map(torch.equal, params, before))
    assert not optimizer.state


@impls
def test_step_is_noop_for_zero_grads(fused: bool | None) -> None:
    param = torch.randn((5, 1), requires_grad=True)
    before = param.detach().clone()
    optimizer = FusedAdamW([param], fused=fused, weight_decay=0.0)
    param.grad = torch.zeros_like(param)
    for _ in range(3):
        optimizer.step()
    assert torch.equal(param, before)


@inputs
def test_optimizer_can_be_printed(given: Any) -> None:
    assert repr(started(given)[0]).startswith("FusedAdamW (")


@inputs
def test_deepcopy_copies_all_public_attrs(given: Any) -> None:
    optimizer, closure, _ = started(given)
    optimizer.step(closure)
    public = [{name for name in vars(one) if name[0] != "_"} for one in (optimizer, copy.deepcopy(optimizer))]
    assert public[0] == public[1]


@inputs
def test_non_empty_state(given: Any) -> None:
    optimizer, closure, _ = started(given)
    optimizer.step(closure)
    for state in optimizer.state.values():
        assert len(state) > 0
        assert all(isinstance(value, Tensor) for value in state.values())


@inputs
def test_step_hooks(given: Any) -> None:
    optimizer, closure, _ = started(given)
    calls: list[str] = []
    before = optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    after = optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.step(closure)
    optimizer.step(closure)
    before.remove()
    after.remove()
    optimizer.step(closure)
    assert calls == ["pre", "post"] * 2


@pytest.mark.parametrize("lr", [1e-2, torch.tensor(1e-2), torch.tensor([1e-2])], ids=str)
def test_tensor_lr(lr: float | Tensor) -> None:
    """A rate in a tensor is read at each step, and may be written to between them."""
    optimizer, closure, params = started(INPUTS[0], lr=lr)
    expected, its_closure, its_params = started(INPUTS[0], None, torch.optim.AdamW, lr=0.01)
    for _ in range(3):
        optimizer.step(closure)
        expected.step(its_closure)
        for group in (*optimizer.param_groups, *expected.param_groups):
            group["lr"] *= 0.5
    torch.testing.assert_close(params, its_params, rtol=1e-6, atol=1e-8)


def test_param_groups_have_options_and_names_of_their_own() -> None:
    weight, bias, _ = model()
    groups = [{"params": [("weight", weight)], "lr": 1.0}, {"params": [("bias", bias)], "weight_decay": 0.5}]
    optimizer = FusedAdamW(groups, lr=0.0)
    assert [group["param_names"] for group in optimizer.state_dict()["param_groups"]] == [["weight"], ["bias"]]
    before = bias.detach().clone()
    weight.grad, bias.grad = torch.ones_like(weight), torch.ones_like(bias)
    optimizer.step()
    assert torch.equal(bias, before)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.0]
