"""Counting what autograd saves without running every block of a deep model.

Owns the collector of saved tensors, and the stand-ins for blocks: of those that have the same structure, settings,
frozen parameters and inputs, the first two run; each further one hands on a tensor like the second's and counts what
the second added. A 126-layer model is counted in the time of a few. Called by `activations`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

PLACE = frozenset({"layer_idx", "layer_id", "layer_index"})
"""Settings that tell a block where it is, and change nothing else."""
PLAIN = (bool, int, float, str, tuple, type(None))


class SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Collects the storages that autograd saves, each once, without the module's own and those that ``outer`` has."""

    def __init__(self, module: nn.Module, outer: SavedTensors | None = None) -> None:
        self._own = [t.untyped_storage() for t in (*module.parameters(), *module.buffers())]
        self._known: set[int] = {storage._cdata for storage in self._own} | (outer._known if outer else set())
        self._storages: list[torch.UntypedStorage] = []
        self.num_bytes = 0
        self.largest = 0
        """Bytes of the largest storage."""
        self.recomputed = 0
        """Under gradient checkpointing: the most that one block saves besides when it runs again."""
        self.inner: SavedTensors | None = None
        """Who collects instead, inside a block that will run again."""
        super().__init__(self._keep, lambda tensor: tensor)

    def add(self, tensors: Iterable[Any]) -> None:
        """Count tensors, at any depth of tuples and dicts, that somebody else than autograd keeps."""
        for leaf in pytree.tree_leaves(list(tensors)):
            if isinstance(leaf, torch.Tensor):
                self._keep(leaf)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether its storage is counted, or need not be."""
        return tensor.untyped_storage()._cdata in self._known

    def ignore(self, tensor: torch.Tensor) -> None:
        """Do not count its storage from now on."""
        self._storages.append(tensor.untyped_storage())  # kept, so that no other one gets its address
        self._known.add(self._storages[-1]._cdata)

    def forget(self) -> None:
        """Let go of what was collected; the numbers stay. While tensors are collected, autograd holds them anyway."""
        self._storages.clear()

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self.holds(tensor):
            self.ignore(tensor)
            num_bytes = tensor.untyped_storage().nbytes()
            self.num_bytes += num_bytes
            self.largest = max(self.largest, num_bytes)
        return tensor


@dataclass
class _Seen:
    """What the blocks of one kind did."""

    times: int = 0
    added: int = 0
    """Bytes that the last of them saved."""
    done: Counter[str] = field(default_factory=Counter)
    """Operations that it computed."""
    outputs: Any = None
    is_held: bool = False
    """Whether its output was among them."""


@contextmanager
def standing_in(module: nn.Module, saved: SavedTensors, done: Counter[str]) -> Iterator[None]:
    """Meanwhile only two blocks of a kind run, in any list of the module; the others stand in. On fake tensors only.

    ``done`` counts operations, and the stand-ins' are added to it.
    """
    seen: dict[Any, _Seen] = {}
    changed: list[tuple[nn.Module, type[nn.Module]]] = []
    for container in module.modules():
        if isinstance(container, (nn.ModuleList, nn.Sequential)) and len(container) > 2:
            for block in container:
                if next(block.children(), None) is not None:
                    changed.append((block, type(block)))
    kinds = {id(block): _kind(block) for block, _ in changed}

    def call(block: nn.Module, cls: type[nn.Module], given: Any, named: Any) -> Any:
        key = (kinds[id(block)], *map(_shape, pytree.tree_leaves((given, named))))
        one = seen.setdefault(key, _Seen())
        one.times += 1
        counter, done_before = saved.inner or saved, done.copy()
        if one.times > 2:
            counter.num_bytes += one.added
            made = pytree.tree_map(lambda leaf: _like(leaf, counter, is_held=one.is_held), one.outputs)
            done.clear()  # of what making it took
            done.update(done_before + one.done)
            return made
        before = counter.num_bytes
        outputs = cls.__call__(block, *given, **named)
        one.added, one.outputs = counter.num_bytes - before, outputs
        one.done = done - done_before
        one.is_held = all(counter.holds(leaf) for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor))
        return outputs

    for block, cls in changed:
        block.__class__ = _calling(cls, call)
    try:
        yield
    finally:
        for block, cls in changed:
            block.__class__ = cls


def _calling(cls: type[nn.Module], call: Any) -> Any:
    """A subclass whose instances run ``call``: hooks, checkpointing and all that calling the block does are inside."""
    return type(cls.__name__, (cls,), {"__call__": lambda block, *given, **named: call(block, cls, given, named)})


def _kind(block: nn.Module) -> tuple[Any, ...]:
    """What makes a block save what it saves, but for its inputs."""
    parts: list[Any] = []
    for name, child in block.named_modules():
        settings = {key: value for key, value in vars(child).items() if isinstance(value, PLAIN) and key not in PLACE}
        parts.append((name, type(child), repr(sorted(settings.items(), key=lambda item: item[0]))))
    return (*parts, *((name, *_shape(tensor)) for name, tensor in block.named_parameters()))


def _shape(leaf: Any) -> tuple[Any, ...]:
    if not isinstance(leaf, torch.Tensor):
        return (leaf if isinstance(leaf, PLAIN) else type(leaf),)
    return (tuple(leaf.shape), leaf.dtype, leaf.requires_grad, leaf.stride())


def _like(leaf: Any, saved: SavedTensors, *, is_held: bool) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    like = torch.empty_like(leaf, requires_grad=leaf.requires_grad)
    made = like.clone() if leaf.requires_grad else like  # no leaf of the graph, which nothing may write into
    if is_held:
        saved.ignore(made)
    return made
