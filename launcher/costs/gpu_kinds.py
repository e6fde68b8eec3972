"""What kinds of GPUs can do, by their makers' data sheets: arithmetic, memory, links.

Owns the table that ``--gpu-kind`` and the estimate of a step's time (`step_time`) read. Figures are peaks, of dense
matrices; what of a peak is reached is `step_time`'s to say. Refuses to guess a kind: an unknown one is None.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

GIB = 2**30
TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class GpuKind:
    """One GPU."""

    name: str
    words: tuple[str, ...]
    """All of them stand in the product's name, as nvidia-smi gives it, whatever their case."""
    memory_bytes: int
    flops: dict[str, float]
    """Multiplications and additions a second by precision; fp32 without TF32, which torch leaves off."""
    bandwidth: float
    """Of its memory, bytes a second."""
    link: float
    """To the other GPUs of the node, bytes a second in each direction: NVLink, or PCIe where there is none."""
    pcie: float
    """To the host, bytes a second in each direction."""

    @property
    def bf16(self) -> bool:
        """Whether it computes in bfloat16."""
        return "bf16" in self.flops


def _kind(
    name: str, words: str, gib: float, low: float, fp32: float, bandwidth: float, link: float, pcie: float,
    *, bf16: bool = True,
) -> GpuKind:  # fmt: skip
    """TFLOP/s and GB/s."""
    flops = {"fp16": low * TERA, "fp32": fp32 * TERA} | ({"bf16": low * TERA} if bf16 else {})
    return GpuKind(name, tuple(words.split()), int(gib * GIB), flops, bandwidth * GIGA, link * GIGA, pcie * GIGA)


KINDS = (
    _kind("B200", "b200", 180, 2250, 75, 8000, 900, 64),
    _kind("H200", "h200", 141, 989, 67, 4800, 450, 64),
    _kind("H100-PCIe", "h100 pcie", 80, 756, 51, 2000, 64, 64),
    _kind("H100-NVL", "h100 nvl", 94, 835, 60, 3900, 300, 64),
    _kind("H100", "h100", 80, 989, 67, 3350, 450, 64),
    _kind("A100-PCIe-40GB", "a100 pcie 40gb", 40, 312, 19.5, 1555, 32, 32),
    _kind("A100-PCIe", "a100 pcie", 80, 312, 19.5, 1935, 32, 32),
    _kind("A100-40GB", "a100 40gb", 40, 312, 19.5, 1555, 300, 32),
    _kind("A100", "a100", 80, 312, 19.5, 2039, 300, 32),
    _kind("L40S", "l40s", 44.9, 362, 91.6, 864, 32, 32),
    _kind("L4", "l4", 22.4, 121, 30.3, 300, 32, 32),
    _kind("A40", "a40", 44.9, 150, 37.4, 696, 32, 32),
    _kind("A10G", "a10g", 22.4, 70, 35, 600, 32, 32),
    _kind("A10", "a10", 22.4, 125, 31.2, 600, 32, 32),
    _kind("RTX-4090", "rtx 4090", 24, 165, 82.6, 1008, 32, 32),
    _kind("RTX-3090", "rtx 3090", 24, 71, 35.6, 936, 32, 32),
    _kind("V100-16GB", "v100 16gb", 16, 125, 15.7, 900, 150, 16, bf16=False),
    _kind("V100", "v100", 32, 125, 15.7, 900, 150, 16, bf16=False),
    _kind("T4", "t4", 15, 65, 8.1, 320, 16, 16, bf16=False),
)
"""NVIDIA's data sheets of each product (SXM where nothing is said), with dense figures, half of those given with
sparsity; memory without what error correction takes of GDDR6; of GeForce cards fp16 with fp32 accumulation. The first
that matches holds."""
SUPPOSED = "A100"
"""What a GPU of unknown kind is taken to be."""


def find(product: str) -> GpuKind | None:
    """The kind of a product's name (``NVIDIA H100 80GB HBM3``, ``H100``); None: not in the table.

    Of several names joined with ``+`` the slowest.
    """
    found = [_find_one(name) for name in product.split("+")]
    known = [kind for kind in found if kind]
    return min(known, key=lambda kind: kind.flops["fp16"]) if known and len(known) == len(found) else None


def _find_one(product: str) -> GpuKind | None:
    text = product.lower().replace("-", " ").replace("_", " ")
    parts = text.split()
    return next((kind for kind in KINDS if all(word in parts for word in kind.words)), None)


def near(product: str) -> list[str]:
    """Names of the table, those that look like this one first."""
    names = [kind.name for kind in KINDS]
    alike = difflib.get_close_matches(product, names, n=3, cutoff=0.4)
    return alike + [name for name in names if name not in alike]
