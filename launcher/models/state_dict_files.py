"""State dicts as training scripts save them, under the plain names of the network.

Owns the files (safetensors, a folder of them, ``torch.save``), what a checkpoint calls its weights, and the names that
wrappers put before those of the network: torch.compile, DataParallel and DistributedDataParallel, FSDP, Lightning, an
averaged model. Reads nothing that could run code. Called by `torchvision_models`.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from launcher.errors import UserError
from launcher.models.weights import read_weights

WEIGHTS_KEYS = ("model_state_dict", "state_dict", "model_state", "model", "module", "net", "network", "weights")
"""What a checkpoint calls its weights, the plainest first."""
WRAPPERS = ("module", "model", "net", "network", "backbone")
"""Attributes under which a wrapper holds the network, when all names begin with it."""
ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that wrappers of a network, or of modules inside of it, put in."""
COUNTERS = ("n_averaged",)
"""Tensors that are of a wrapper and not of the network: `torch.optim.swa_utils.AveragedModel` counts."""
NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
"""What a numpy number is unpickled by, which numpy 1 kept under another name."""
NUMPY_ARRAY: Any = np.zeros(1).__reduce__()[0]
"""The same of its arrays."""
HARMLESS: tuple[Any, ...] = (
    argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath,
    datetime.datetime, datetime.date, datetime.timedelta, np.ndarray, np.dtype,
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"},
    NUMPY_SCALAR, (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    NUMPY_ARRAY, (NUMPY_ARRAY, "numpy.core.multiarray._reconstruct"),
)  # fmt: skip
"""Beside the weights: a script's arguments, paths and times, numpy's numbers and arrays, states of generators."""
FOREIGN = re.compile(r"Unsupported (?:global: GLOBAL|class) ([\w.]+)")
"""What torch says of a class that it does not make."""


def read(path: Path) -> dict[str, torch.Tensor]:
    """Name in the network -> tensor.

    Raises:
        UserError: the file cannot be read, or holds no state dict.
    """
    if path.is_dir():
        return _plain(read_weights(path))
    if path.suffix == ".safetensors":
        return _plain(load_file(path))
    try:
        with torch.serialization.safe_globals(list(HARMLESS)):
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what the damaged or foreign file makes it raise
        foreign = FOREIGN.search(str(error))
        what = f"it holds {foreign[1]}, which is not read, since it could run code" if foreign else _first_line(error)
        raise UserError(
            f"model.weights: {path} cannot be read as a state dict ({what}); "
            "write it with torch.save(module.state_dict(), path)"
        ) from error
    found = _weights(loaded)
    if found is None:
        held = f": it holds {', '.join(map(str, list(loaded)[:8]))}" if isinstance(loaded, Mapping) and loaded else ""
        raise UserError(
            f"model.weights: {path} holds no state dict{held}; write torch.save(module.state_dict(), path), or put the "
            f"weights under one of {', '.join(WEIGHTS_KEYS[:2])}"
        )
    return _plain(found)


def _weights(loaded: Any) -> dict[str, torch.Tensor] | None:
    """The weights of a checkpoint, under as many keys as it likes."""
    while isinstance(loaded, Mapping) and loaded:
        if all(isinstance(value, torch.Tensor) for value in loaded.values()):
            return dict(loaded)
        loaded = next((loaded[key] for key in WEIGHTS_KEYS if isinstance(loaded.get(key), Mapping)), None)
    return None


def _plain(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without what wrappers put before and into the names."""
    names = {name: [part for part in name.split(".") if part not in ANYWHERE] for name in state if name not in COUNTERS}
    while names and len({parts[0] for parts in names.values()}) == 1:
        if not all(parts[0] in WRAPPERS and len(parts) > 1 for parts in names.values()):
            break
        names = {name: parts[1:] for name, parts in names.items()}
    return {".".join(parts): state[name] for name, parts in names.items()}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
