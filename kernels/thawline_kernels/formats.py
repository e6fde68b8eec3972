"""How values narrower than fp32 are stored: bf16 rounded to nearest or stochastically, and fp32 split into two halves.

Owns the bit arithmetic, which csrc/step.h repeats. Every NaN is stored as the one quiet NaN, lest rounding carry it
into another number. `reference` steps with these; `FusedAdamW` converts checkpoints with them.
"""

from __future__ import annotations

import torch
from torch import Tensor

QUIET_NAN = 0x7FC0_0000


def nearest_bf16(value: Tensor) -> Tensor:
    """fp32 to bf16, ties to even."""
    bits = value.view(torch.int32).long() & 0xFFFF_FFFF
    return _bf16(value, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


def stochastic_bf16(value: Tensor, random: Tensor) -> Tensor:
    """fp32 to one of the two nearest bf16, with the probability that makes the mean exact.

    Without it a bf16 second moment stalls at beta2 = 0.999: an update of a thousandth is below half a step of bf16.

    Args:
        random: int64 in [0, 2^16), of the shape of ``value``.
    """
    bits = value.view(torch.int32).long() & 0xFFFF_FFFF
    return _bf16(value, (bits + random) >> 16)


def random16(like: Tensor, start: int, key: int) -> Tensor:
    """16 random bits for each element from ``start`` on: a pure function of element and key (MurmurHash3's end)."""
    h = (torch.arange(start, start + like.numel(), device=like.device) * 0x9E37_79B9 & 0xFFFF_FFFF) ^ key
    h = (h ^ (h >> 16)) * 0x85EB_CA6B & 0xFFFF_FFFF
    h = (h ^ (h >> 13)) * 0xC2B2_AE35 & 0xFFFF_FFFF
    return ((h ^ (h >> 16)) >> 16).view(like.shape)


def random_key(seed: int, step: int, ordinal: int) -> int:
    """32 bits that differ from step to step and parameter to parameter (SplitMix64's end; Steele et al., 2014)."""
    z = (seed * 0x9E37_79B9_7F4A_7C15 + step * 0xD1B5_4A32_D192_ED03 + ordinal * 0x8CB9_2BA7_2F3D_8DD7) & (2**64 - 1)
    z = (z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9 & (2**64 - 1)
    z = (z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB & (2**64 - 1)
    return (z ^ (z >> 31)) & 0xFFFF_FFFF


def split16(value: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 to its upper half rounded half up, a bf16, and its lower half, an int16; `join16` leads back exactly.

    Half up, not half to even: the rounding then depends on the lower half alone, whose sign tells how to undo it.
    """
    bits = torch.where(value.isnan(), QUIET_NAN, value.view(torch.int32))
    upper = (bits + 0x8000) >> 16
    return upper.to(torch.int16).view(torch.bfloat16), bits.to(torch.int16)


def join16(upper: Tensor, lower: Tensor) -> Tensor:
    """The fp32 that `split16` took apart."""
    return ((upper.view(torch.int16).int() << 16) + lower.int()).view(torch.float32)


def store_param(wide: Tensor, param: Tensor, extra: Tensor | None) -> None:
    """Write the stepped fp32 value into the parameter's format (see `reference.adamw_`)."""
    if extra is not None and extra.dtype is torch.int16:
        upper, lower = split16(wide)
        param.copy_(upper)
        extra.copy_(lower)
        return
    if wide is not param:
        param.copy_(wide if param.dtype is torch.float32 else nearest_bf16(wide))
    if extra is not None:
        extra.copy_(nearest_bf16(wide))


def _bf16(value: Tensor, upper: Tensor) -> Tensor:
    return torch.where(value.isnan(), QUIET_NAN >> 16, upper).to(torch.int16).view(torch.bfloat16)
