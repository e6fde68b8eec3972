"""The fused AdamW step: one arithmetic, equal to the bit in plain torch, C++ and CUDA. See ../README.md.

Public: `FusedAdamW`. Depends on torch alone; the launcher's optim.py is its only importer.
"""

from thawline_kernels.adamw import FusedAdamW

__all__ = ["FusedAdamW"]
