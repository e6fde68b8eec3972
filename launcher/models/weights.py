"""Weights on disk: the format in which one stage hands the model to the next, and from which it is exported.

Owns the folder: safetensors of at most ``shard_bytes`` each, with an index when there are several, keyed by the names
of ``module.state_dict()``; a tensor under several names (tied weights) is kept once, under its first name. Bits survive
the round trip in every dtype. It builds no model (`models`) and decides nothing about when to write (`checkpoint`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from launcher.errors import EnvironmentProblem, TrainingFailed
from launcher.models.parameter_names import named_parameters, plain

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_BYTES = 5 << 30

State = Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]


class WeightsMismatch(TrainingFailed):
    """The weights on disk are not those of the model they are loaded into."""


def named_state(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, then persistent buffers, each tensor once under its first name: what a folder of weights holds."""
    yield from named_parameters(module)
    persistent = module.state_dict(keep_vars=True).keys()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in persistent)


def write_weights(state: State, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write named tensors of any dtype, device and stride into a new or empty ``folder``, and sync them to the disk.

    The tensors are taken one at a time and at most ``shard_bytes`` of them are held on the host.

    Raises:
        FileExistsError: the folder already holds weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("model*.safetensors*")):
        raise FileExistsError(f"{folder} already holds weights")
    shards: list[list[str]] = []
    shard: dict[str, torch.Tensor] = {}
    size = total = 0
    for name, tensor in state.items() if isinstance(state, Mapping) else state:
        num_bytes = tensor.numel() * tensor.element_size()
        if shard and size + num_bytes > shard_bytes:
            shards.append(_write_shard(shard, folder, len(shards)))
            shard, size = {}, 0
        shard[name] = _on_host(tensor, shard)
        size, total = size + num_bytes, total + num_bytes
    if shard or not shards:
        shards.append(_write_shard(shard, folder, len(shards)))
    _name_shards(shards, folder, total)


def _write_shard(shard: dict[str, torch.Tensor], folder: Path, index: int) -> list[str]:
    save_file(shard, _temporary(folder, index), metadata={"format": "pt"})
    _sync(_temporary(folder, index))
    return list(shard)


def _name_shards(shards: list[list[str]], folder: Path, total_bytes: int) -> None:
    """Give the shards their final names, which tell how many there are; the index comes last."""
    if len(shards) == 1:
        os.replace(_temporary(folder, 0), folder / SINGLE_FILE)
    else:
        weight_map: dict[str, str] = {}
        for index, names in enumerate(shards):
            file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
            os.replace(_temporary(folder, index), folder / file)
            weight_map.update(dict.fromkeys(names, file))
        index_file = folder / INDEX_FILE
        index_file.write_text(
            json.dumps({"metadata": {"total_size": total_bytes}, "weight_map": weight_map}, indent=1) + "\n"
        )
        _sync(index_file)
    _sync(folder)


def _temporary(folder: Path, index: int) -> Path:
    return folder / f"model-{index + 1:05d}.safetensors.part"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _on_host(tensor: torch.Tensor, held: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A contiguous tensor on the CPU that shares no memory with those in ``held``, as safetensors demands."""
    host = tensor.detach().cpu().contiguous()
    storage = host.untyped_storage()
    is_part = storage.nbytes() != host.numel() * host.element_size()
    is_shared = any(other.untyped_storage().data_ptr() == storage.data_ptr() for other in held.values())
    return host.clone() if is_part or is_shared else host


class WeightsReader:
    """Read single tensors of a folder that `write_weights` (or ``save_pretrained``) wrote. A context manager.

    Raises:
        EnvironmentProblem: the folder holds no weights, or a file of its index is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        self._open = ExitStack()
        if (folder / INDEX_FILE).is_file():
            self._file_of: dict[str, str] = json.loads((folder / INDEX_FILE).read_text())["weight_map"]
        elif (folder / SINGLE_FILE).is_file():
            self._file_of = dict.fromkeys(self._handle(SINGLE_FILE).keys(), SINGLE_FILE)
        else:
            raise EnvironmentProblem(
                f"{folder}: neither {SINGLE_FILE} nor {INDEX_FILE}; the run's folder must be visible on every node"
            )

    def __enter__(self) -> WeightsReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    @property
    def names(self) -> frozenset[str]:
        """Names of the tensors in the folder."""
        return frozenset(self._file_of)

    def tensor(self, name: str) -> torch.Tensor:
        """A fresh CPU tensor, which stays valid when the files are deleted."""
        return self.mapped(name).clone()

    def mapped(self, name: str) -> torch.Tensor:
        """A CPU tensor whose memory is the file's, for as long as the file is there; writing to it copies."""
        value: torch.Tensor = self._handle(self._file_of[name]).get_tensor(name)
        return value

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the file's header."""
        return tuple(self._handle(self._file_of[name]).get_slice(name).get_shape())

    def _handle(self, file: str) -> Any:
        if file not in self._files:
            path = self.folder / file
            if not path.is_file():
                raise EnvironmentProblem(f"{path} is missing, though {INDEX_FILE} names it; restore it or start afresh")
            self._files[file] = self._open.enter_context(safe_open(path, framework="pt", device="cpu"))
        return self._files[file]


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, on the CPU, in no particular order."""
    with WeightsReader(folder) as reader:
        return {name: reader.tensor(name) for name in sorted(reader.names)}


def load_weights(module: nn.Module, folder: Path, *, sharded: bool = False, mapped: bool = False) -> None:
    """Fill a module from a folder: every parameter and persistent buffer, none left over on either side.

    Values are converted to the dtype that the module's tensor has. Parameters on the meta device come to life on the
    CPU; tied ones stay tied. ``mapped``: those of the folder's dtype stay in its files, which must outlive them, so
    that a model may be larger than the memory. ``sharded``: the module was built under ``deepspeed.zero.Init``; one
    parameter at a time is gathered, written by rank 0 and partitioned again, so no rank ever holds the whole model. All
    ranks call this, and all of them read the folder.

    Raises:
        WeightsMismatch: names or shapes differ, on all ranks alike.
        EnvironmentProblem: the folder is not visible here.
    """
    with WeightsReader(folder) as reader, torch.no_grad():
        _check(module, reader)
        if sharded:
            _fill_sharded(module, reader)
        else:
            _fill(module, reader.mapped if mapped else reader.tensor)
        persistent = module.state_dict(keep_vars=True).keys()
        for name, buffer in module.named_buffers():
            if name in persistent:
                buffer.copy_(reader.tensor(name))


def _check(module: nn.Module, reader: WeightsReader) -> None:
    expected = {name: tuple(getattr(tensor, "ds_shape", tensor.shape)) for name, tensor in named_state(module)}
    missing = [name for name in expected if name not in reader.names]
    unexpected = sorted(reader.names - expected.keys())
    shapes = [name for name in expected if name in reader.names and reader.shape(name) != expected[name]]
    if missing or unexpected or shapes:
        parts = (("missing", missing), ("not of this model", unexpected), ("of another shape", shapes))
        found = "; ".join(f"{len(names)} {what} ({', '.join(names[:3])}…)" for what, names in parts if names)
        raise WeightsMismatch(
            f"the weights in {reader.folder} do not fit {type(module).__name__}: {found}; "
            "they were written by another recipe or another version: start a new run directory"
        )


def _fill(module: nn.Module, tensor: Callable[[str], torch.Tensor]) -> None:
    """Replace or overwrite the parameters in place, every name of a tied one by the same object."""
    alive: dict[int, nn.Parameter] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) not in alive:
            value = tensor(plain(name)).to(parameter.dtype)
            if parameter.is_meta:
                alive[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
            else:
                parameter.copy_(value)
                alive[id(parameter)] = parameter
        owner, _, attribute = name.rpartition(".")
        module.get_submodule(owner)._parameters[attribute] = alive[id(parameter)]


def _fill_sharded(module: nn.Module, reader: WeightsReader) -> None:
    import deepspeed

    is_first = torch.distributed.get_rank() == 0
    for name, parameter in named_parameters(module):
        # All ranks must enter in the same order; on leaving, rank 0's value is broadcast and partitioned.
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if is_first:
                parameter.copy_(reader.tensor(name))
