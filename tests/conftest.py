"""What every test starts from: no network, no key of the developer's, caches of its own; GPU tests only with a GPU."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[1] / ".cache" / "tests"

LONGEST = ("slurm", "integration")
"""Folders of tests; `make test` gives whole files to its workers, in this order."""

# Set at import, before any library reads them, and inherited by the ranks that tests start.
for name in ("WANDB_API_KEY", "HF_TOKEN", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_JOB_ID"):
    os.environ.pop(name, None)
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_CACHE": str(CACHE / "datasets"),
    "NETRC": os.devnull,
    "WANDB_SILENT": "true",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    # The flags of DeepSpeed's operators have the environment's path in them: environments that share a cache build anew
    # whenever another has had its turn.
    "TORCH_EXTENSIONS_DIR": str(CACHE / "torch_extensions" / hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]),
    "COLUMNS": "120",
    "NO_COLOR": "1",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left with one at the end; skip `gpu` tests without a GPU."""
    order = {folder: place for place, folder in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(order)))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
