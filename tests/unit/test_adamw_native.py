"""Tensors gathered by C++ give the bits of those gathered by Python, whatever was swapped, replaced or odd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor

from thawline_kernels import FusedAdamW, backends, build, native, reference

SIZES = ((3, 4), (17,), (), (0,), (2, 5, 3), (1,), (40,))


def test_this_torch_is_gathered_from_in_c() -> None:
    assert native.can_gather()


def make(options: dict[str, Any], dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], FusedAdamW]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(size, generator=generator).to(dtype).requires_grad_() for size in SIZES]
    groups = [{"params": params[:4]}, {"params": params[4:], "lr": 0.1, "weight_decay": 0.3}]
    return params, FusedAdamW(groups, lr=0.01, **options)


def give_grads(params: list[Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def left(optimizer: FusedAdamW) -> list[list[int]]:
    """Take a step, though it may be refused; of each group that was come to, the positions that C++ leaves."""
    found, step = [], native.step

    def spy(*given: Any) -> Any:
        found.append(list(step(*given)))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch, suppress(Exception):
        patch.setattr(native, "step", spy)
        optimizer.step()
    return found


def compare(
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[list[Tensor], FusedAdamW, int], None],
    options: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Six steps, ``change`` before each, with C++ gathering and without: the same norms, bits and counts."""

    def train() -> tuple[list[Tensor], list[float], list[Tensor]]:
        params, optimizer = make(options or {}, dtype)
        norms = []
        for step in range(6):
            give_grads(params, step)
            change(params, optimizer, step)
            norms.append(float(optimizer.step(max_norm=1.0, zero_grad=step % 2 == 0)))
            assert step % 2 or not any(p.grad.any() for p in params if p.grad is not None)
        state = [tensor for p in params for _, tensor in sorted(optimizer.state[p].items())]
        return params, norms, state

    ours = train()
    with monkeypatch.context() as patch:
        patch.setattr(backends, "is_compiled", lambda *_: False)
        theirs = train()
    assert ours[1] == theirs[1]
    for a, b in zip((*ours[0], *ours[2]), (*theirs[0], *theirs[2]), strict=True):
        assert torch.equal(a, b)


def nothing(params: list[Tensor], optimizer: FusedAdamW, step: int) -> None:
    pass


FORMATS = (
    ({}, torch.float32),
    ({"amsgrad": True, "maximize": True}, torch.float32),
    ({"state_dtype": "bf16", "seed": -5}, torch.float32),
    ({"numerics": "accurate"}, torch.bfloat16),
    ({"master": "split16"}, torch.bfloat16),
    ({"master": "split16", "state_dtype": "bf16", "seed": 2**70}, torch.bfloat16),
    ({"master": "fp32", "amsgrad": True}, torch.bfloat16),
)


@pytest.mark.parametrize(("options", "dtype"), FORMATS, ids=str)
def test_every_format(options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(monkeypatch, nothing, options, dtype)


def test_after_the_first_step_all_ordinary_tensors_are_taken() -> None:
    params, optimizer = make({})
    give_grads(params, 0)
    assert left(optimizer) == [[0, 1, 2, 3], [0, 1, 2]]
    assert left(optimizer) == [[], []]


def swap_parameters(params: list[Tensor], optimizer: FusedAdamW, step: int) -> None:
    params[step].data = params[step].data.clone()


def empty_and_refill(params: list[Tensor], optimizer: FusedAdamW, step: int) -> None:
    """As ZeRO-3 does with its partitions."""
    kept = params[0].data.clone()
    grad, params[0].grad = params[0].grad, None
    params[0].data = torch.empty(0)
    params[0].data = kept
    params[0].grad = grad


def swap_state(params: list[Tensor], optimizer: FusedAdamW, step: int) -> None:
    for state in optimizer.state.values():
        state["exp_avg"].data = state["exp_avg"].data.clone()
        state["exp_avg_sq"] = state["exp_avg_sq"].clone()


def replace_state(params: list[Tensor], optimizer: FusedAdamW, step: int) -> None:
    if step:
        optimizer.state[params[2]] = {key: value.clone() for key, value in optimizer.state[params[2]].items()}


def reload_state(params: list[Tensor], optimizer: FusedAdamW, step: int) -> None:
    optimizer.load_state_dict(optimizer.state_dict())


def forget_state(params: list[Tensor], optimizer: FusedAdamW, step: int) -> None:
    if step == 3:
        optimizer.state.clear()


def reorder(params: list[Tensor], optimizer: FusedAdamW, step: int) -> None:
    optimizer.param_groups[0]["params"].reverse()
    if step == 4:
        optimizer.param_groups[1]["params"].append(optimizer.param_groups[0]["params"].pop())


def transpose_in_place(params: list[Tensor], optimizer: FusedAdamW, step: int) -> None:
    """The same memory and size, other strides."""
    params[0].grad = None
    params[0].data = params[0].data.t()
    params[0].grad = torch.full_like(params[0], 0.1).mul_(torch.arange(params[0].numel()).view(params[0].shape))


def swap_objects(params: list[Tensor], optimizer: FusedAdamW, step: int) -> None:
    """The Python objects keep their identity and get other tensors."""
    other = (params[1].detach() * 2).requires_grad_()
    other.grad = params[1].grad.clone()
    torch.utils.swap_tensors(params[1], other)
    for state in optimizer.state.values():
        torch.utils.swap_tensors(state["exp_avg"], state["exp_avg"] * 0.5)
        state["exp_avg_sq"].set_(state["exp_avg_sq"] * 0.5)


def other_keys(params: list[Tensor], optimizer: FusedAdamW, step: int) -> None:
    """Names that are equal to Python's own strings and not the same, as a file gives them; and one of the user's."""
    for number, state in enumerate(optimizer.state.values()):
        entries = [("".join(list(name)), value) for name, value in state.items()]
        state.clear()
        state.update(reversed(entries) if step % 2 else entries)
        if number % 2:
            state["note"] = "mine"


def leave_out(params: list[Tensor], optimizer: FusedAdamW, step: int) -> None:
    params[step].grad = None


def odd_gradients(params: list[Tensor], optimizer: FusedAdamW, step: int) -> None:
    params[0].grad = torch.full((3, 1), 0.5).expand(3, 4)
    params[1].grad = torch.randn(34, generator=torch.Generator().manual_seed(step))[::2]
    params[4].grad_dtype = None  # any
    params[4].grad = params[4].grad.bfloat16()
    params[5].grad = torch.complex(torch.zeros(1), params[5].grad).conj().imag
    assert params[5].grad.is_neg()


CHANGES = (
    swap_parameters,
    empty_and_refill,
    swap_state,
    replace_state,
    reload_state,
    swap_objects,
    forget_state,
    reorder,
    leave_out,
    odd_gradients,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_nothing_of_an_earlier_step_is_remembered(change, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(monkeypatch, change)


def test_the_first_write_to_lazily_shared_memory_copies_it() -> None:
    params, optimizer = make({})
    give_grads(params, 0)
    optimizer.step()
    source = params[6].detach().clone()
    before = source.clone()
    params[6].data = torch._lazy_clone(source)
    assert left(optimizer) == [[], []]
    assert torch.equal(source, before)
    assert not torch.equal(params[6], before)


def test_names_of_a_state_are_compared_by_what_they_say() -> None:
    params, optimizer = make({})
    for step in range(3):
        give_grads(params, step)
        optimizer.step()
        other_keys(params, optimizer, step)
        assert left(optimizer) == [[], []]


@pytest.mark.parametrize(
    "value", [None, 0.0, [1.0], torch.zeros(3, 4, device="meta"), torch.zeros(12).to_sparse()], ids=repr
)
def test_a_moment_that_lends_no_memory_is_left(value: Any) -> None:
    params, optimizer = make({})
    give_grads(params, 0)
    optimizer.step()
    optimizer.state[params[0]]["exp_avg"] = value
    assert left(optimizer)[0] == [0]


def test_where_objects_hold_their_tensor_elsewhere_python_gathers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Probe:  # its third word is the first of its slots, not the tensor
        __slots__ = ("_cdata",)

        def __init__(self, *_: Any, **__: Any) -> None:
            self._cdata = 1

    monkeypatch.setattr(torch, "empty", Probe)
    library = native._Library(str(build.load("cpu")))
    assert not library.can_gather
    monkeypatch.setattr(native, "_library", lambda _: library)
    params, optimizer = make({})
    give_grads(params, 0)
    optimizer.step()
    assert left(optimizer) == [[0, 1, 2, 3], [0, 1, 2]]


def test_moments_whose_strides_are_no_longer_the_parameters_are_refused() -> None:
    params, optimizer = make({})
    give_grads(params, 0)
    optimizer.step()
    transpose_in_place(params, optimizer, 1)
    assert left(optimizer) == [[0], []]
    with pytest.raises(RuntimeError, match="exp_avg differs"):
        optimizer.step()


def test_what_is_odd_is_left_by_its_position() -> None:
    params, optimizer = make({})
    give_grads(params, 0)
    optimizer.step()
    odd_gradients(params, optimizer, 1)
    params[6].grad = torch.ones(40).to_sparse()
    assert left(optimizer) == [[0, 1], [1, 2]], "bf16 beside fp32 gradients is a second batch, not a rest"
    with pytest.raises(TypeError, match="sparse"):
        optimizer.step()


def test_a_second_count_is_taken_too() -> None:
    params, optimizer = make({})
    give_grads(params, 0)
    params[0].grad = None
    optimizer.step()
    give_grads(params, 1)
    optimizer.step()
    assert left(optimizer) == [[], []]
    assert [float(optimizer.state[param]["step"]) for param in params] == [2, 3, 3, 3, 3, 3, 3]


def test_sums_of_squares_are_the_references() -> None:
    params = [torch.zeros(size, requires_grad=True) for size in (33_000, 0, 5, 7)]
    give_grads(params, 0)
    params[1].grad_dtype = params[3].grad_dtype = None
    params[1].grad = params[1].grad.bfloat16()
    params[3].grad = torch.ones(14)[::2]
    trail = native.Trail("cpu")
    trail.follow(params)
    sums, rest = native.measure("cpu", params, trail)
    assert sums == [total for p in params[:3] for total in reference.sums_of_squares(p.grad)]
    assert rest == [3]


@pytest.mark.parametrize("is_native", [True, False])
def test_a_lazily_negated_gradient_is_negated(is_native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bit that says so is not in the memory that a kernel reads."""
    if not is_native:
        monkeypatch.setattr(backends, "is_compiled", lambda *_: False)
    ends = []
    for resolve in (False, True):
        param = torch.ones(1, requires_grad=True)
        optimizer = FusedAdamW([param], lr=0.1)
        for _ in range(2):
            param.grad = torch.complex(torch.zeros(1), torch.ones(1)).conj().imag
            if resolve:
                param.grad = param.grad.resolve_neg()
            optimizer.step()
        ends.append(param.item())
    assert ends[0] == ends[1] > 1


def make_many(options: dict[str, Any], dtype: torch.dtype) -> tuple[list[Tensor], FusedAdamW]:
    """As many as a second thread steps while they are gathered; one too large for it comes late."""
    generator = torch.Generator().manual_seed(0)
    sizes = [7 * i % 90 for i in range(400)]
    sizes[350] = 140_000
    params = [torch.randn(size, generator=generator).to(dtype).requires_grad_() for size in sizes]
    return params, FusedAdamW(params, lr=0.01, **options)


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("options", "dtype"), FORMATS, ids=str)
def test_what_is_stepped_while_others_are_gathered(
    options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an odd one among them, and with a second counter from the third step on."""

    def train() -> list[Tensor]:
        params, optimizer = make_many(options, dtype)
        for step in range(5):
            give_grads(params, step)
            params[200].grad = params[200].grad.repeat_interleave(2)[::2]
            if step == 2:
                params[5].grad = params[300].grad = None
            optimizer.step(zero_grad=step % 2 == 0)
            assert step % 2 or not any(p.grad.any() for p in params if p.grad is not None)
        return [*params, *(tensor for p in params for _, tensor in sorted(optimizer.state[p].items()))]

    ours = train()
    monkeypatch.setattr(native, "step", lambda _, params, *__: range(len(params)))
    for a, b in zip(ours, train(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("why", ["GradScaler found an Inf", "the norm is infinite", "nothing"])
def test_a_step_that_may_be_left_out_is_not_begun(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    params, optimizer = make_many({}, torch.float32)
    give_grads(params, 0)
    optimizer.step()
    before = [param.detach().clone() for param in params]
    give_grads(params, 1)
    begun, step = [], native.step

    def spy(*given: Any) -> Any:
        begun.append(True)
        return step(*given)

    monkeypatch.setattr(native, "step", spy)
    if why == "the norm is infinite":
        params[399].grad[0] = torch.inf
    elif why != "nothing":
        optimizer.found_inf = torch.tensor(1.0)
    optimizer.step(max_norm=1.0 if why == "the norm is infinite" else None)
    is_taken = why == "nothing"
    assert any(begun) == is_taken
    assert all(map(torch.equal, params, before)) != is_taken
    assert {int(optimizer.state[param]["step"]) for param in params} == {1 + is_taken}


@pytest.mark.usefixtures("two_threads")
def test_what_a_refusal_finds_stepped_is_counted() -> None:
    params, optimizer = make_many({}, torch.float32)
    give_grads(params, 0)
    optimizer.step()
    before = [param.detach().clone() for param in params]
    give_grads(params, 1)
    params[300].grad = torch.ones(params[300].shape).to_sparse()
    with pytest.raises(TypeError, match="sparse"):
        optimizer.step()
    stepped = [not torch.equal(*pair) for pair in zip(params, before, strict=True)]
    counts = [int(optimizer.state[param]["step"]) for param in params]
    assert stepped == [i != 300 and param.numel() > 0 for i, param in enumerate(params)]
    assert counts == [1 + (i != 300) for i in range(len(params))]


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("max_norm", [None, torch.inf])
def test_a_parameter_named_twice_is_stepped_twice_as_by_torch(backend: Any, max_norm: float | None) -> None:
    def make(kind: Any, **options: Any) -> tuple[list[Tensor], Any]:
        params = [torch.full((5,), 2.0, requires_grad=True), torch.ones(3, requires_grad=True)]
        with pytest.warns(UserWarning, match="duplicate parameters"):
            return params, kind([params[0], params[1], params[0], params[0]], lr=0.1, **options)

    ours, fused = make(FusedAdamW, backend=backend)
    theirs, torchs = make(torch.optim.AdamW, foreach=False)
    for step in range(3):
        give_grads(ours, step)
        give_grads(theirs, step)
        fused.step(max_norm=max_norm, zero_grad=True)
        assert not any(param.grad.any() for param in ours)
        torchs.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
        assert all(torch.equal(fused.state[a][key], value) for key, value in torchs.state[b].items())
    assert fused.state[ours[0]]["step"] == 9
