"""The operators under `FusedAdamW`: schemas, fakes, tracing, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from thawline_kernels import build, ops, reference
from thawline_kernels.reference import Hyper

HYPER = Hyper(lr=1e-2, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1)


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    build.load("cpu")


def tensors(*, amsgrad: bool = False, split: bool = False) -> list[list[Tensor]]:
    """params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, extras."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((4, 3), (7,), (0,))
    params, grads, first, second = ([torch.randn(size, generator=generator) for size in sizes] for _ in range(4))
    squares = [moment.abs() for moment in second]
    peaks = [moment.clone() for moment in squares] if amsgrad else []
    extras = [torch.zeros(size, dtype=torch.int16) for size in sizes] if split else []
    return [[p.bfloat16() if split else p for p in params], grads, first, squares, peaks, extras]


def scalars(step: int = 1) -> Tensor:
    return reference.pack(reference.scalars(HYPER, step), HYPER)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"split": True}], ids=str)
def test_opcheck_of_the_step(options: dict[str, bool]) -> None:
    torch.library.opcheck(torch.ops.thawline.adamw_, (*tensors(**options), scalars(), [], False, True))


def flat(*, amsgrad: bool = False, split: bool = False) -> list[Tensor | None]:
    """As `tensors`, of the first alone; what a format has no use for is None."""
    return [one[0] if one else None for one in tensors(amsgrad=amsgrad, split=split)]


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"split": True}], ids=str)
def test_opcheck_of_the_flat_step_and_its_bits(options: dict[str, bool]) -> None:
    torch.library.opcheck(torch.ops.thawline.adamw_flat_, (*flat(**options), scalars(), 5, False, True))
    one, many = flat(**options), [lists[:1] for lists in tensors(**options)]
    torch.ops.thawline.adamw_flat_(*one, scalars(), 5, False, True)
    torch.ops.thawline.adamw_(*many, scalars(), [5], False, True)
    assert all(torch.equal(a, b[0]) for a, b in zip(one, many, strict=True) if a is not None)


def test_the_flat_step_compiles_whole() -> None:
    def train(p: Tensor, g: Tensor, m: Tensor, v: Tensor, k: Tensor) -> Tensor:
        torch.ops.thawline.adamw_flat_(p, g * 2, m, v, None, None, k, 0, False, False)
        return p.sum()

    torch._dynamo.reset()
    traced = torch.compile(train, fullgraph=True, backend="aot_eager")
    eager, compiled = flat()[:4], flat()[:4]
    for step in range(1, 4):
        assert torch.equal(train(*eager, scalars(step)), traced(*compiled, scalars(step)))
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))
    with pytest.raises(RuntimeError, match="differs from its parameter in shape"):
        traced(eager[0], eager[1].sum(), *eager[2:], scalars())


def test_opcheck_of_the_sums() -> None:
    torch.library.opcheck(
        torch.ops.thawline.sums_of_squares_, (tensors()[1], torch.empty(2, dtype=torch.float64), "scalar")
    )


def test_compiled_whole_it_gives_the_same_bits_and_compiles_once() -> None:
    def train(p: Tensor, g: Tensor, m: Tensor, v: Tensor, k: Tensor) -> Tensor:
        torch.ops.thawline.adamw_([p], [g * 2], [m], [v], [], [], k, [], False, False)
        return p.sum()

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    traced = torch.compile(train, fullgraph=True, backend=counter)
    eager = [one[0] for one in tensors()[:4]]
    compiled = [tensor.clone() for tensor in eager]
    for step in range(1, 4):
        assert torch.equal(train(*eager, scalars(step)), traced(*compiled, scalars(step)))
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))
    assert counter.frame_count == 1


def test_skips_leave_everything() -> None:
    before, after = tensors(), tensors()
    k = scalars()
    k[-1] = 1.0
    torch.ops.thawline.adamw_(*after, k, [], False, True)
    assert all(torch.equal(a, b) for old, new in zip(before, after, strict=True) for a, b in zip(old, new, strict=True))


STRIDED = torch.randn(3, 4).t()


@pytest.mark.parametrize(
    ("position", "wrong", "message"),
    [
        (0, torch.randn(4, 3).double(), "parameter must be float32 or bfloat16"),
        (1, STRIDED, "gradient differs from its parameter in device, shape or strides"),
        (1, torch.randn(1, 3).expand(4, 3), "strides"),
        (1, torch.randn(4, 2), "shape"),
        (1, torch.randn(4, 3).half(), "gradient must be float32 or bfloat16"),
        (2, torch.randn(4, 3).bfloat16(), "differ in dtype"),
        (3, STRIDED, "exp_avg_sq differs"),
    ],
)
def test_what_would_be_read_wrong_is_refused(position: int, wrong: Tensor, message: str) -> None:
    """torch's fused step reads a gradient of other strides silently wrong, and past the end of an expanded one."""
    lists = tensors()
    lists[position][0] = wrong
    with pytest.raises(RuntimeError, match=message):
        torch.ops.thawline.adamw_(*lists, scalars(), [], False, False)


def test_lists_of_other_lengths_are_refused() -> None:
    lists = tensors()
    del lists[1][-1]
    with pytest.raises(RuntimeError, match="differ in length"):
        torch.ops.thawline.adamw_(*lists, scalars(), [], False, False)
    with pytest.raises(RuntimeError, match="one element for each chunk"):
        torch.ops.thawline.sums_of_squares_(lists[1], torch.empty(9, dtype=torch.float64))


def test_overlapping_or_gappy_parameters_are_refused() -> None:
    lists = tensors()
    for position in range(4):
        lists[position][0] = torch.randn(4, 6)[:, ::2]
    with pytest.raises(RuntimeError, match="do not fill their memory"):
        torch.ops.thawline.adamw_(*lists, scalars(), [], False, False)


def test_sums_of_no_gradient_are_none() -> None:
    assert ops.sums_of_squares([torch.empty(0)]).numel() == 0
