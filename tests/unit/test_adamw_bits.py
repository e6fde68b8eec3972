"""Every backend gives the bits of the reference: parameters, moments, masters, in every format, for any shape and
numbers.

NaN are compared as NaN, without their payload, which no two instruction sets agree on.
"""

from __future__ import annotations

import copy
import math
import platform
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thawline_kernels import reference
from thawline_kernels.backends import CompiledBackend, TorchBackend
from thawline_kernels.batches import Batch
from thawline_kernels.formats import split16
from thawline_kernels.reference import Hyper

HYPER = Hyper(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01)
STREAMS = ("params", "extras", "grads", "exp_avgs", "exp_avg_sqs", "peaks")
PARAM_FORMATS = ("fp32", "bf16", "split16", "fp32 and bf16 copy")


def instruction_sets() -> list[str]:
    """Those of this machine; at least the portable one."""
    capability = torch.backends.cpu.get_cpu_capability()
    wide = {"AVX512": ["avx2", "avx512"], "AVX2": ["avx2"]}.get(capability, [])
    return ["scalar", *wide] if platform.machine() == "x86_64" else ["scalar"]


@pytest.fixture(params=instruction_sets())
def compiled(request: pytest.FixtureRequest) -> CompiledBackend:
    return CompiledBackend("cpu", request.param)


def numbers(count: int, generator: torch.Generator, kind: str) -> Tensor:
    """Ordinary gradients, any finite or infinite or NaN bits, or subnormals."""
    if kind == "ordinary":
        return torch.randn(count, generator=generator)
    bits = torch.randint(-(2**31), 2**31, (count,), generator=generator).int()
    return (bits if kind == "any bits" else bits & -0x7F800001).view(torch.float32)


def make_batch(
    sizes: list[int],
    *,
    hyper: Hyper = HYPER,
    step: int = 1,
    seed: int = 0,
    param: str = "fp32",
    grad: torch.dtype = torch.float32,
    moments: torch.dtype = torch.float32,
    amsgrad: bool = False,
    kind: str = "ordinary",
) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    batch = Batch(hyper, step)
    for i, size in enumerate(sizes):
        value = numbers(size, generator, kind)
        upper, lower = split16(value)
        batch.params.append(value if param.startswith("fp32") else upper if param == "split16" else value.bfloat16())
        if param in ("split16", "fp32 and bf16 copy"):
            batch.extras.append(lower if param == "split16" else value.bfloat16())
        batch.grads.append(numbers(size, generator, kind).to(grad))
        batch.exp_avgs.append(numbers(size, generator, kind).to(moments))
        batch.exp_avg_sqs.append(numbers(size, generator, kind).abs().to(moments))
        batch.keys.append(hash((seed, i)) & 0xFFFF_FFFF)
        if amsgrad:
            batch.peaks.append(numbers(size, generator, kind).abs())
    return batch


def num_differing(ours: Batch, theirs: Batch) -> int:
    count = 0
    for name in STREAMS:
        for a, b in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            whole = {torch.float32: torch.int32, torch.bfloat16: torch.int16}.get(a.dtype, a.dtype)
            differs = a.view(whole) != b.view(whole)
            count += int((differs & ~(a.isnan() & b.isnan())).sum())
    return count


def step_both(compiled: CompiledBackend, batch: Batch, grad_scale: float = 1.0, *, zero_grad: bool = False) -> int:
    """Differing elements after one step of the compiled backend and of the reference."""
    expected = copy.deepcopy(batch)
    k = reference.scalars(batch.hyper, batch.step, grad_scale)
    TorchBackend().update(expected, k, zero_grad=zero_grad)
    compiled.update(batch, k, zero_grad=zero_grad)
    assert not zero_grad or not any(grad.any() for grad in batch.grads)
    return num_differing(batch, expected)


@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grad", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("param", PARAM_FORMATS)
def test_every_format(compiled: CompiledBackend, param: str, grad: torch.dtype, moments: torch.dtype) -> None:
    sizes = [5, 0, 1000, 17, 40_000, 1, 0]
    for amsgrad in (False, True):
        batch = make_batch(sizes, param=param, grad=grad, moments=moments, amsgrad=amsgrad, step=7)
        assert step_both(compiled, batch, 0.37, zero_grad=amsgrad) == 0


HYPERS = st.builds(
    Hyper,
    lr=st.floats(0, 10),
    beta1=st.floats(0, 0.9999),
    beta2=st.floats(0, 0.99999),
    eps=st.floats(0, 1),
    weight_decay=st.floats(0, 2),
    maximize=st.booleans(),
    accurate=st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_shape_and_any_numbers(data: st.DataObject) -> None:
    batch = make_batch(
        data.draw(st.lists(st.integers(0, 70), max_size=6)),
        hyper=data.draw(HYPERS),
        step=data.draw(st.integers(1, 10**6)),
        seed=data.draw(st.integers(0, 2**31)),
        param=data.draw(st.sampled_from(PARAM_FORMATS)),
        grad=data.draw(st.sampled_from([torch.float32, torch.bfloat16])),
        moments=data.draw(st.sampled_from([torch.float32, torch.bfloat16])),
        amsgrad=data.draw(st.booleans()),
        kind=data.draw(st.sampled_from(["ordinary", "any bits", "subnormal"])),
    )
    scale = data.draw(st.floats(1e-6, 1e6))
    if batch.params:
        for isa in instruction_sets():
            assert step_both(CompiledBackend("cpu", isa), copy.deepcopy(batch), scale) == 0, isa


def test_a_thousand_steps(compiled: CompiledBackend) -> None:
    batch = make_batch([333, 64])
    for moments in (batch.exp_avgs, batch.exp_avg_sqs):
        for moment in moments:
            moment.zero_()
    expected = copy.deepcopy(batch)
    generator = torch.Generator().manual_seed(1)
    for step in range(1, 1001):
        grads = [torch.randn(grad.shape, generator=generator) for grad in batch.grads]
        k = reference.scalars(replace(HYPER, lr=1e-3 * (1 - step / 1001)), step)
        for backend, own in ((TorchBackend(), expected), (compiled, batch)):
            own.grads = grads
            backend.update(own, k, zero_grad=False)
    assert num_differing(batch, expected) == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_partition_change_no_bit(threads: int) -> None:
    backend, before = CompiledBackend("cpu"), torch.get_num_threads()
    whole = make_batch([100_003])
    k = reference.scalars(HYPER, 3)
    torch.set_num_threads(threads)
    try:
        parts = copy.deepcopy(whole)
        for name in ("params", "grads", "exp_avgs", "exp_avg_sqs"):
            setattr(parts, name, list(getattr(parts, name)[0].split(12_345)))
        parts.keys = []
        backend.update(whole, k, zero_grad=False)
        backend.update(parts, k, zero_grad=False)
        sums = backend.sums_of_squares(whole.grads)
    finally:
        torch.set_num_threads(before)
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        assert torch.equal(torch.cat(getattr(parts, name)), getattr(whole, name)[0])
    assert sums == TorchBackend().sums_of_squares(whole.grads)


@pytest.mark.parametrize("grad", [torch.float32, torch.bfloat16], ids=str)
def test_sums_of_squares(compiled: CompiledBackend, grad: torch.dtype) -> None:
    grads = make_batch([0, 3, 32, 33_000, 0, 70_001, 1], grad=grad).grads
    assert compiled.sums_of_squares(grads) == TorchBackend().sums_of_squares(grads)


def test_the_norm_is_right_where_torchs_is_not() -> None:
    """torch adds squares in fp32: at five million equal elements it is off by more than a thousandth."""
    grad = torch.full((5_000_000,), 0.1)
    exact = math.sqrt(grad.numel() * float(grad[0]) ** 2)
    ours = math.sqrt(reference.total(CompiledBackend("cpu").sums_of_squares([grad])))
    assert ours == pytest.approx(exact, rel=1e-13)


def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no sve2"):
        CompiledBackend("cpu", "sve2")
