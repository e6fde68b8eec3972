"""The CUDA step has the CPU's bits, takes one launch, and replays in a graph. One command: pytest tests/gpu."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from thawline_kernels import FusedAdamW, build, reference
from thawline_kernels.formats import split16
from thawline_kernels.reference import Hyper

pytestmark = pytest.mark.gpu
HYPER = Hyper(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01)
SIZES = (5, 0, 1000, 40_000, 1, 100_003)
Lists = list[list[torch.Tensor]]


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    build.load("cpu")
    build.load("cuda")


def lists(param: str, grad: torch.dtype, moments: torch.dtype, *, amsgrad: bool = False) -> Lists:
    """params, grads, exp_avgs, exp_avg_sqs, peaks, extras on the CPU."""
    generator = torch.Generator().manual_seed(0)
    values, grads, first, second, peaks = ([torch.randn(n, generator=generator) for n in SIZES] for _ in range(5))
    halves = [split16(value) for value in values]
    params = values if param.startswith("fp32") else [upper for upper, _ in halves]
    extras = {"split16": [lower for _, lower in halves], "fp32 and copy": [v.bfloat16() for v in values]}.get(param, [])
    squares = [moment.abs().to(moments) for moment in second]
    moment_lists = [[moment.to(moments) for moment in first], squares]
    return [params, [g.to(grad) for g in grads], *moment_lists, [p.abs() for p in peaks] if amsgrad else [], extras]


def on_cuda(tensors: Lists) -> Lists:
    return [[tensor.cuda() for tensor in one] for one in tensors]


def assert_same_bits(ours: Lists, theirs: Lists) -> None:
    for one, other in zip(ours, theirs, strict=True):
        for a, b in zip(one, other, strict=True):
            whole = {4: torch.int32, 2: torch.int16}[a.element_size()]
            assert torch.equal(a.cpu().view(whole), b.cpu().view(whole))


@pytest.mark.parametrize("scalars_on", ["cpu", "cuda"])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grad", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("param", ["fp32", "bf16", "split16", "fp32 and copy"])
def test_bits_are_the_cpus(param: str, grad: torch.dtype, moments: torch.dtype, amsgrad: bool, scalars_on: str) -> None:
    cpu = lists(param, grad, moments, amsgrad=amsgrad)
    cuda = on_cuda(cpu)
    keys = list(range(len(SIZES)))
    for step in range(1, 21):
        hyper = dataclasses.replace(HYPER, accurate=step % 2 == 0)
        k = reference.pack(reference.scalars(hyper, step, 0.7), hyper)
        torch.ops.thawline.adamw_(*cpu, k, keys, hyper.accurate, False)
        torch.ops.thawline.adamw_(*cuda, k.to(scalars_on), keys, hyper.accurate, False)
    assert_same_bits(cuda, cpu)


def test_misaligned_tensors_have_the_cpus_bits() -> None:
    cpu = [[tensor[3:] for tensor in one] for one in lists("fp32", torch.float32, torch.float32)]
    cuda = [[tensor[3:] for tensor in one] for one in on_cuda(lists("fp32", torch.float32, torch.float32))]
    k = reference.pack(reference.scalars(HYPER, 1), HYPER)
    torch.ops.thawline.adamw_(*cpu, k, [], False, True)
    torch.ops.thawline.adamw_(*cuda, k.cuda(), [], False, True)
    assert_same_bits(cuda, cpu)


@pytest.mark.parametrize("grad", [torch.float32, torch.bfloat16], ids=str)
def test_sums_of_squares_are_the_cpus(grad: torch.dtype) -> None:
    from thawline_kernels.ops import sums_of_squares

    grads = lists("fp32", grad, torch.float32)[1]
    assert torch.equal(sums_of_squares([g.cuda() for g in grads]).cpu(), sums_of_squares(grads))


def test_a_thousand_steps_of_the_optimizer_have_the_cpus_bits() -> None:
    start = [torch.randn(n) for n in SIZES]
    trained = {}
    for device in ("cpu", "cuda"):
        params = [value.clone().to(device).requires_grad_() for value in start]
        optimizer = FusedAdamW(params, backend=device)
        for step in range(1000):
            for param in params:
                param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(step)).to(device)
            optimizer.step(max_norm=1.0, zero_grad=True)
        trained[device] = [param.detach() for param in params]
    assert_same_bits([trained["cuda"]], [trained["cpu"]])


def test_one_launch_for_4000_tensors() -> None:
    params = [torch.randn(64, device="cuda", requires_grad=True) for _ in range(4000)]
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer = FusedAdamW(params, backend="cuda")
    optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        optimizer.step()
    assert sum("adamw_kernel" in event.name for event in profile.events()) == 1


def test_a_graph_replays_with_new_scalars() -> None:
    cpu = lists("fp32", torch.float32, torch.float32)
    cuda = on_cuda(cpu)
    before = copy.deepcopy(cuda)
    k = reference.pack(reference.scalars(HYPER, 1), HYPER).cuda()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # writes the tables, which a capture must not
        torch.ops.thawline.adamw_(*cuda, k, [], False, False)
    stream.synchronize()
    for one, other in zip(cuda, before, strict=True):
        for a, b in zip(one, other, strict=True):
            a.copy_(b)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        torch.ops.thawline.adamw_(*cuda, k, [], False, False)
    for step in range(1, 4):
        scalars = reference.pack(reference.scalars(HYPER, step), HYPER)
        k.copy_(scalars)
        graph.replay()
        torch.ops.thawline.adamw_(*cpu, scalars, [], False, False)
    torch.cuda.synchronize()
    assert_same_bits(cuda, cpu)
