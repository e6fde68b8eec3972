"""``python -m thawline_kernels.accuracy``: the error table of the README, and the bounds that a test holds it to.

Owns one small problem: the same drawn gradients for every format and mode, stepped in float64 by `torch.optim.AdamW` as
the truth, and by torch in the same format for comparison. Errors are parts of the distance travelled, which is what a
training would notice: rms over the elements of the final difference, over the rms of the true total change.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from thawline_kernels.adamw import FusedAdamW

NUMEL, STEPS = 4096, 300
LR, DECAY = 1e-3, 0.01


@dataclass(frozen=True)
class Format:
    """A parameter's dtype and the options that go with it, and the largest errors it may have against float64."""

    param: Literal["fp32", "bf16"]
    master: Literal["none", "split16", "fp32"]
    state_dtype: Literal["fp32", "bf16"]
    bounds: tuple[float, float]
    """With ``numerics="torch"`` and ``"accurate"``."""


FORMATS = (
    Format("fp32", "none", "fp32", (1e-4, 1e-5)),
    Format("fp32", "none", "bf16", (1e-2, 1e-2)),
    Format("bf16", "split16", "fp32", (1e-4, 1e-5)),
    Format("bf16", "fp32", "fp32", (1e-4, 1e-5)),
    Format("bf16", "split16", "bf16", (1e-2, 1e-2)),
    Format("bf16", "none", "fp32", (1.0, 1.0)),
)
"""The last shows why a master is kept."""
NUMERICS: tuple[Literal["torch", "accurate"], ...] = ("torch", "accurate")


@dataclass(frozen=True)
class Row:
    """The errors of one format and mode, as parts of the distance travelled."""

    format: Format
    numerics: Literal["torch", "accurate"]
    ours: float
    """Against float64."""
    torchs: float
    """`torch.optim.AdamW(foreach=False)` with parameters of the same dtype, against float64."""
    between: float
    """Ours against torch's; of a parameter with a master, torch's on fp32."""

    @property
    def bound(self) -> float:
        """What `ours` may be at most."""
        return self.format.bounds[NUMERICS.index(self.numerics)]


def rows() -> list[Row]:
    """One row for each of `FORMATS` and `NUMERICS`."""
    exact = _train(torch.optim.AdamW, torch.float64)
    found = []
    for format_, numerics in itertools.product(FORMATS, NUMERICS):
        dtype = torch.float32 if format_.param == "fp32" else torch.bfloat16
        options = {"master": format_.master, "state_dtype": format_.state_dtype, "numerics": numerics}
        ours = _train(FusedAdamW, dtype, **options)
        peer = _train(torch.optim.AdamW, torch.float32 if format_.master != "none" else dtype, foreach=False)
        found.append(Row(format_, numerics, _error(ours, exact), _error(peer, exact), _error(ours, peer)))
    return found


def _start() -> Tensor:
    return torch.randn(NUMEL, generator=torch.Generator().manual_seed(0)).bfloat16()  # the same in every dtype


@functools.cache
def _train(kind: Any, dtype: torch.dtype, **options: Any) -> Tensor:
    """The full value, in float64, after `STEPS` steps."""
    param = _start().to(dtype).requires_grad_()
    optimizer = kind([param], lr=LR, weight_decay=DECAY, **options)
    generator = torch.Generator().manual_seed(1)
    drift = torch.randn(NUMEL, generator=generator)
    for _ in range(STEPS):
        grad = (0.3 * drift + torch.randn(NUMEL, generator=generator)).bfloat16()
        param.grad = grad.to(dtype)
        optimizer.step()
    full: Tensor = optimizer.state_dict()["state"][0].get("master", param.detach())
    return full.double()


def _error(value: Tensor, other: Tensor) -> float:
    travelled = (other - _start().double()).square().mean().sqrt()
    return float((value - other).square().mean().sqrt() / travelled)


def table(found: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| parameter | `master` | `state_dtype` | `numerics` | ours | bound | torch | ours to torch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        kinds = f"| {row.format.param} | {row.format.master} | {row.format.state_dtype} | {row.numerics} |"
        lines.append(f"{kinds} {row.ours:.1e} | {row.bound:.0e} | {row.torchs:.1e} | {row.between:.1e} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(rows()))
