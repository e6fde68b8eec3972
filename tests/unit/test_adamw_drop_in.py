"""`FusedAdamW` in the place of `torch.optim.AdamW`: nothing depends on a global default, autograd knows what was
written, flags and hooks mean what they mean there.
"""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from thawline_kernels import FusedAdamW, native

FORMATS: tuple[tuple[dict[str, Any], torch.dtype], ...] = (
    ({"amsgrad": True}, torch.float32),
    ({"master": "split16", "state_dtype": "bf16"}, torch.bfloat16),
    ({"master": "fp32"}, torch.bfloat16),
)
BACKENDS = ("cpu", "torch")


def make(num: int = 3, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5 + i % 9, generator=generator).to(dtype).requires_grad_() for i in range(num)]


def give_grads(params: list[Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator, dtype=torch.float32, device="cpu").to(param.dtype)


class DefaultDtype:
    """A context in which the default dtype is another."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self.before)


class Deterministic:
    def __enter__(self) -> None:
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(False)


class Watched(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


DEFAULTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "bf16": lambda: DefaultDtype(torch.bfloat16),
    "float64": lambda: DefaultDtype(torch.float64),
    "device": lambda: torch.device("meta"),
    "deterministic": Deterministic,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "mode": Watched,
    "grad": torch.enable_grad,
}


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize(("options", "dtype"), FORMATS, ids=str)
def test_no_global_default_changes_a_bit(
    options: dict[str, Any], dtype: torch.dtype, default: str, backend: Any, max_norm: float | None
) -> None:
    def train(context: Callable[[], AbstractContextManager[Any]]) -> list[Tensor]:
        params = make(dtype=dtype)
        optimizer = FusedAdamW(params, lr=0.1, backend=backend, **options)
        for step in range(3):
            give_grads(params, step)
            with context():
                optimizer.step(max_norm=max_norm, zero_grad=step == 1)
                if step == 1:
                    optimizer.load_state_dict(optimizer.state_dict())
        give_grads(params, 3)
        optimizer.step()  # what was made under the default goes on without it
        return [*params, *(value for param in params for _, value in sorted(optimizer.state[param].items()))]

    for ours, plain in zip(train(DEFAULTS[default]), train(nullcontext), strict=True):
        assert ours.dtype is plain.dtype
        assert ours.device == plain.device
        assert not ours.is_inference()
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_count_goes_on_beyond_256_under_a_bf16_default(backend: Any) -> None:
    param, other = (torch.ones(3, requires_grad=True) for _ in range(2))
    ours, torchs = FusedAdamW([param], backend=backend), torch.optim.AdamW([other], foreach=False)
    with DefaultDtype(torch.bfloat16):
        for _ in range(300):
            param.grad = other.grad = torch.full((3,), 0.5, dtype=torch.float32)
            ours.step()
            torchs.step()
    assert float(ours.state[param]["step"]) == 300
    torch.testing.assert_close(param, other, rtol=1e-6, atol=0)


def versions(optimizer: FusedAdamW, params: list[Tensor]) -> list[int]:
    return [t._version for param in params for t in (param, *optimizer.state[param].values())]


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize(("num", "backend"), [(3, "cpu"), (400, "cpu"), (3, "torch")])
@pytest.mark.parametrize(("options", "dtype"), FORMATS, ids=str)
def test_every_tensor_written_has_another_version(
    options: dict[str, Any], dtype: torch.dtype, backend: Any, num: int, max_norm: float | None
) -> None:
    params = make(num, dtype)
    params.append(torch.randn(6, 4).to(dtype)[:, ::2].detach().requires_grad_())  # not C++'s to gather
    optimizer = FusedAdamW(params, backend=backend, **options)
    for step in range(3):
        give_grads(params, step)
        optimizer.step(max_norm=max_norm)
        before, grads = versions(optimizer, params), [param.grad._version for param in params]
        optimizer.step(max_norm=max_norm)
        assert all(old < new for old, new in zip(before, versions(optimizer, params), strict=True))
        assert grads == [param.grad._version for param in params]
        optimizer.step(max_norm=max_norm, zero_grad=True)
        assert all(old < param.grad._version for old, param in zip(grads, params, strict=True))
        before = versions(optimizer, params)
        params[0].grad.fill_(torch.inf)
        if max_norm:
            optimizer.step(max_norm=max_norm)
            assert versions(optimizer, params) == before, "nothing was written"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stale_graph_is_refused(backend: Any) -> None:
    weight = torch.ones(4, requires_grad=True)
    optimizer = FusedAdamW([weight], backend=backend)
    for _ in range(2):
        loss = (weight * weight).sum()
        weight.grad = torch.ones(4)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_the_operator_counts_what_it_writes() -> None:
    from thawline_kernels import reference

    params = make()
    FusedAdamW(params, backend="cpu")
    hyper = reference.Hyper(1e-3, 0.9, 0.999, 1e-8, 0.01)
    streams = [[torch.ones(4)] for _ in range(4)]
    scalars = reference.pack(reference.scalars(hyper, 1), hyper)
    give_grads(params, 0)
    FusedAdamW(params, backend="cpu").step()  # loads the operators
    torch.ops.thawline.adamw_(*streams, [], [], scalars, [], False, False)
    assert [one._version for (one,) in streams] == [1, 0, 1, 1]
    torch.ops.thawline.adamw_(*streams, [], [], scalars, [], False, True)
    assert [one._version for (one,) in streams] == [2, 1, 2, 2]
    streams = [one.clone() for (one,) in streams]
    torch.ops.thawline.adamw_flat_(*streams, None, None, scalars, 0, False, False)
    assert [one._version for one in streams] == [1, 0, 1, 1]


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_a_mode_that_changes_all_meanwhile_does_no_harm(max_norm: float | None) -> None:
    """Freed memory is overwritten at once, so that a write to it shows, or crashes."""
    params = make(600)
    optimizer = FusedAdamW(params, backend="cpu")
    for step in range(2):
        give_grads(params, step)
        optimizer.step()
    calls = 0

    class Meddling(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal calls
            calls += 1
            if calls in (3, 9):
                with torch._C.DisableTorchFunction():
                    meddle(optimizer, params)
            return func(*args, **(kwargs or {}))

    for step in range(2, 5):
        give_grads(params, step)
        calls = 0
        with Meddling():
            optimizer.step(max_norm=max_norm)
        assert all(param.isfinite().all() for param in params)


def meddle(optimizer: FusedAdamW, params: list[Tensor]) -> None:
    """Drop moments, give others memory, shorten the group, and use what was freed."""
    for param in params[100:200]:
        for key in ("exp_avg", "exp_avg_sq", "step"):
            optimizer.state[param][key] = optimizer.state[param][key].clone()
    for param in params[200:300]:
        optimizer.state.pop(param, None)
        param.data = param.data.clone()
        param.grad = torch.ones_like(param)
    del optimizer.param_groups[0]["params"][400:]
    gc.collect()
    junk = [torch.full((5 + i % 9,), torch.nan) for i in range(3000)]
    del junk


def test_another_thread_may_change_the_state_meanwhile() -> None:
    params = make(1500)
    optimizer = FusedAdamW(params, backend="cpu")
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for param in params[::7]:
                for key, value in list(optimizer.state.get(param, {}).items()):
                    optimizer.state[param][key] = value.clone()
            params_now = optimizer.param_groups[0]["params"]
            params_now.append(params_now.pop())

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for step in range(25):
            give_grads(params, step)
            optimizer.step(max_norm=1.0 if step % 2 else None)
    finally:
        stop.set()
        thread.join()
    assert all(param.isfinite().all() for param in params)


@pytest.mark.parametrize("value", [None, False])
@pytest.mark.parametrize("flag", ["foreach", "fused", "capturable", "differentiable"])
def test_flags_of_torch_that_ask_for_nothing_are_taken(flag: str, value: bool | None) -> None:
    params = make()
    give_grads(params, 0)
    FusedAdamW(params, **{flag: value}).step()


def test_fused_is_taken_and_only_then_a_grad_scaler_leaves_the_unscaling() -> None:
    """Lightning refuses to clip for an optimizer that unscales, and asks by this name."""
    assert FusedAdamW(make(), fused=True)._step_supports_amp_scaling
    for optimizer in (FusedAdamW(make()), pickle.loads(pickle.dumps(FusedAdamW(make())))):
        assert not getattr(optimizer, "_step_supports_amp_scaling", False)


@pytest.mark.parametrize("flag", ["foreach", "capturable", "differentiable"])
def test_other_flags_are_refused_by_what_they_ask_for(flag: str) -> None:
    with pytest.raises(ValueError, match=rf"FusedAdamW\({flag}=True\)"):
        FusedAdamW(make(), **{flag: True})
    with pytest.raises(ValueError, match=rf"FusedAdamW\({flag}=True\)"):
        FusedAdamW([{"params": make(), flag: True}])


def test_flags_of_a_loaded_state_do_not_take_over() -> None:
    params = make()
    give_grads(params, 0)
    torchs = torch.optim.AdamW(params, foreach=True)
    torchs.step()
    ours = FusedAdamW(params)
    ours.load_state_dict(torchs.state_dict())
    ours.step()
    assert [ours.param_groups[0][name] for name in ("foreach", "capturable")] == [None, False]


def trained(kind: Any, **options: Any) -> tuple[list[Tensor], Any]:
    params = make()
    optimizer = kind(params, **options)
    for step in range(2):
        give_grads(params, step)
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("kind", [FusedAdamW, torch.optim.AdamW])
def test_hooks_around_states_have_the_last_word(kind: Any) -> None:
    params, optimizer = trained(kind)
    optimizer.state["mine"] = {"note": 1}
    optimizer.register_state_dict_pre_hook(lambda o: o.state[params[1]].update(exp_avg=torch.full_like(params[1], 7.0)))

    def replace(_: Any, out: dict[str, Any]) -> dict[str, Any]:
        out["state"][0] = {**out["state"][0], "exp_avg": torch.full_like(params[0], 5.0), "step": torch.tensor(9.0)}
        return {**out, "extra": True}

    optimizer.register_state_dict_post_hook(replace)
    saved = optimizer.state_dict()
    assert saved["extra"]
    assert saved["state"]["mine"] == {"note": 1}
    assert torch.equal(saved["state"][0]["exp_avg"], torch.full_like(params[0], 5.0))
    assert torch.equal(saved["state"][1]["exp_avg"], torch.full_like(params[1], 7.0))

    other = kind(params)

    def rewrite(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        state = {key: dict(value) for key, value in given["state"].items()}
        state[2]["exp_avg"] = torch.full_like(params[2], 3.0)
        return {**given, "state": state}

    fresh = torch.full_like(params[0], 11.0)
    other.register_load_state_dict_pre_hook(rewrite)
    other.register_load_state_dict_post_hook(lambda o: o.state[params[0]].update(exp_avg_sq=fresh))
    other.load_state_dict(saved)
    assert torch.equal(other.state[params[2]]["exp_avg"], torch.full_like(params[2], 3.0))
    assert other.state[params[0]]["exp_avg_sq"] is fresh
    assert float(other.state[params[0]]["step"]) == 9
    assert other.state["mine"] == {"note": 1}


@pytest.mark.parametrize("backend", BACKENDS)
def test_step_counts_are_each_parameters_own(backend: Any) -> None:
    params, optimizer = trained(FusedAdamW, backend=backend)
    optimizer.state[params[1]]["step"].fill_(10)
    give_grads(params, 2)
    optimizer.step()
    assert [float(optimizer.state[param]["step"]) for param in params] == [3, 11, 3]
    counts = [optimizer.state[param]["step"] for param in params]
    optimizer.step()
    assert all(optimizer.state[param]["step"] is count for param, count in zip(params, counts, strict=True))
    shared = torch.tensor(4.0)  # as DeepSpeed restores them
    for param in params:
        optimizer.state[param]["step"] = shared
    optimizer.step()
    assert [float(optimizer.state[param]["step"]) for param in params] == [5, 5, 5]


@pytest.mark.parametrize("backend", BACKENDS)
def test_amsgrad_is_what_the_group_says(backend: Any) -> None:
    ours, fused = trained(FusedAdamW, backend=backend, amsgrad=True)
    theirs, torchs = trained(torch.optim.AdamW, foreach=False, amsgrad=True)
    for optimizer, params in ((fused, ours), (torchs, theirs)):
        for step, amsgrad in enumerate((False, False, True)):
            optimizer.param_groups[0]["amsgrad"] = amsgrad
            give_grads(params, step + 5)
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
        assert all(torch.equal(fused.state[a][key], value) for key, value in torchs.state[b].items())
    later, optimizer = trained(FusedAdamW, backend=backend)
    optimizer.param_groups[0]["amsgrad"] = True
    optimizer.step()
    assert all(torch.equal(*(optimizer.state[p][k] for k in ("exp_avg_sq", "max_exp_avg_sq"))) for p in later)


def test_a_duplicate_is_warned_of_where_torch_warns() -> None:
    param = torch.ones(2, requires_grad=True)
    seen = []
    for kind in (torch.optim.AdamW, FusedAdamW):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kind([param, param])
        seen.append([(str(one.message), one.category, os.path.basename(one.filename)) for one in caught])
    assert seen[0] == seen[1]
    assert len(seen[0]) == 1


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_lazily_negated_gradients_go_the_right_way(backend: Any, max_norm: float | None) -> None:
    ends = []
    for lazily in (True, False):
        params = make()
        optimizer = FusedAdamW(params, backend=backend, lr=0.1)
        for step in range(3):
            give_grads(params, step)
            for param in params:
                param.grad = torch._neg_view(param.grad) if lazily else -param.grad
            optimizer.step(max_norm=max_norm)
        ends.append(params)
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rate_of_zero_leaves_zeros_as_torch_does(backend: Any) -> None:
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.0, -0.0])
    grads = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, -1.0])
    ends = []
    for make_optimizer in (
        lambda p: FusedAdamW([p], lr=0.0, backend=backend),
        lambda p: torch.optim.AdamW([p], lr=0.0, foreach=False),
    ):
        param = values.clone().requires_grad_()
        optimizer = make_optimizer(param)
        for _ in range(2):
            param.grad = grads.clone()
            optimizer.step()
        ends.append(param.detach().clone().view(torch.int32))
    assert torch.equal(*ends)


def test_trails_end_with_their_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    made, ended = [], []
    library = native._library("cpu")
    new, release = library.new_trail, library.release_trail
    monkeypatch.setattr(library, "new_trail", lambda: made.append(new()) or made[-1])
    monkeypatch.setattr(library, "release_trail", lambda one: ended.append(one) or release(one))
    for _ in range(3):
        params, optimizer = trained(FusedAdamW, backend="cpu")
        copied = copy.deepcopy(optimizer)
        optimizer.step()
        del params, optimizer, copied
        gc.collect()
    assert made == ended
    assert len(made) == 3


@pytest.mark.parametrize("num", [3, 600])
def test_a_fork_after_a_step_steps_too(num: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        params = [*make(num), torch.ones(1 << 19, requires_grad=True)]
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer = FusedAdamW(params, backend="cpu", lr=0.1)
        for _ in range(2):
            optimizer.step(max_norm=1.0)
            optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of forks beside threads
            child = os.fork()
        if child == 0:
            signal.alarm(20)
            try:
                optimizer.step(max_norm=1.0)
                optimizer.step()
                os._exit(0 if params[-1].detach()[0] < 0.9 else 3)
            finally:
                os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(threads)
