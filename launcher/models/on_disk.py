"""A whole model in little memory: its weights stay in files, and the system reads and drops their pages as it needs.

Owns two ways. Pretrained weights in safetensors are mapped, not copied, by the libraries that read them, as long as
nobody asks for another dtype: so a model may keep the dtype of its files (`stored_dtype`) and widen only what it
initialises anew (`widen`). Random weights are written into files that have no name any more (`memory_in`). Called by
`loading` and `transformers_models`, for the one rank that writes the first checkpoint.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.utils import cached_file
from transformers.utils.hub import get_checkpoint_shard_files, resolve_revision

from launcher.errors import EnvironmentProblem

LARGE = 4 << 20
"""Bytes of a tensor from which on its memory is a file's."""
_NARROW = {"BF16": torch.bfloat16, "F16": torch.float16}
_INTEGERS = {"I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL"}


def stored_dtype(location: str, revision: str | None) -> torch.dtype:
    """The dtype in which weights can be loaded without a copy and without a loss, from a folder or hub id.

    bf16 or fp16 if every floating-point tensor of its safetensors files has that dtype; fp32 otherwise, and for weights
    in other formats. Downloads the files, as loading would.
    """
    commit = resolve_revision(location, revision)  # as loading does: a branch may move on meanwhile
    found = {kind for file in _weight_files(location, commit) for kind in _dtypes(file)} - _INTEGERS
    return _NARROW.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def _weight_files(location: str, revision: str | None) -> Sequence[str]:
    def find(name: str) -> str | None:
        found: str | None = cached_file(location, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        return found

    if single := find("model.safetensors"):
        return [single]
    if index := find("model.safetensors.index.json"):
        files: list[str] = get_checkpoint_shard_files(location, index, revision=revision)[0]
        return files
    return []


def _dtypes(file: str) -> set[str]:
    with safe_open(file, framework="pt") as tensors:
        names: list[str] = tensors.keys()
        return {tensors.get_slice(name).get_dtype() for name in names}


def widen(module: nn.Module, names: Iterable[str]) -> None:
    """Give the named parameters and buffers fp32 values of their own, in place: they are about to be initialised."""
    tensors = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    for name in names:
        tensor = tensors[name]
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """bf16 and fp16 in fp32, anything else as it is."""
    return tensor.float() if tensor.dtype in _NARROW.values() else tensor


class memory_in(TorchFunctionMode):
    """While it is open, ``torch.empty`` takes the memory of `LARGE` tensors of the CPU from files in ``folder``.

    The files have no name, and their space is free again when the tensors are gone. What is computed is the same.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.empty and kwargs.keys() <= {"dtype", "device", "requires_grad"}:
            shape = args[0] if len(args) == 1 and isinstance(args[0], Sequence) else args
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            device = torch.device(kwargs.get("device") or torch.get_default_device())
            if device.type == "cpu" and math.prod(shape) * dtype.itemsize >= LARGE:
                return self._mapped(shape, dtype).requires_grad_(kwargs.get("requires_grad", False))
        return function(*args, **kwargs)

    def _mapped(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        numel = math.prod(shape)
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix="weights-") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, numel * dtype.itemsize)
            except OSError as error:  # later it would be a SIGBUS, without a word
                raise EnvironmentProblem(
                    f"{self.folder}: no room for the model's first weights: {error.strerror}; make room, or choose "
                    "another --run-dir"
                ) from error
            return torch.from_file(file.name, shared=True, size=numel, dtype=dtype).view(*shape)
