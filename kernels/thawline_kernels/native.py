"""The tensors of a parameter group gathered by C++, for groups of thousands of small tensors, where Python's gathering
took more time than the step.

Owns the calls into csrc/gather.cpp: it reads ``p.grad`` and the state anew in every step, so nothing can be stale. It
takes ordinary tensors; what it leaves goes to `batches.gather`, which knows DTensors, other strides and refusals.
Where a tensor does not lie in its Python object as gather.cpp takes it to, it takes nothing.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import (
    POINTER,
    Array,
    byref,
    c_bool,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int64,
    c_ssize_t,
    c_uint64,
    c_void_p,
    py_object,
)
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thawline_kernels import build, reference
from thawline_kernels.reference import Hyper

_NAMES = ("grad", "step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "master", "low", "is_neg")
_TYPES = (Tensor, torch.nn.Parameter, None)
_ROUNDS = 4
"""Kinds of tensors looked for in one group: by dtypes and step counter."""

States = dict[Tensor, dict[str, Any]]


def _points_at_its_tensor() -> bool:
    """Whether the third word of a tensor's object is what gather.cpp follows: in other Pythons it may not be."""
    probe = torch.empty(1)
    word: int | None = c_void_p.from_address(id(probe) + 16).value
    return bool(word == probe._cdata)


class _Library:
    """The functions of a compiled library, with and without the GIL."""

    def __init__(self, path: str) -> None:
        held, free = ctypes.PyDLL(path), ctypes.CDLL(path)
        self.can_gather = bool(held.thawline_gathers()) and _points_at_its_tensor()
        self.gather = held.thawline_gather
        self.gather.restype = c_void_p
        behind = py_object, c_void_p, c_void_p, c_bool, c_bool
        self.gather.argtypes = [*[py_object] * 7, POINTER(c_ssize_t), c_bool, *behind]
        stepper = getattr(free, "thawline_step_behind", None)
        self.step_behind = stepper and ctypes.cast(stepper, c_void_p)
        self.size, self.moments_are_bf16 = held.thawline_gathered, held.thawline_gathered_moments_are_bf16
        self.size.restype, self.size.argtypes = c_int64, [c_void_p]
        self.moments_are_bf16.restype, self.moments_are_bf16.argtypes = c_int, [c_void_p]
        self.count, self.release = held.thawline_count, held.thawline_release
        self.count.restype, self.count.argtypes = None, [c_void_p, py_object, py_object]
        self.release.restype, self.release.argtypes = None, [c_void_p]
        self.set_keys = held.thawline_set_keys
        self.set_keys.restype, self.set_keys.argtypes = None, [c_void_p, c_uint64, c_uint64, c_uint64]
        self.step = free.thawline_step
        self.step.restype, self.step.argtypes = c_char_p, [c_void_p, c_void_p, c_bool, c_bool]
        self.num_sums, self.sums = free.thawline_num_sums, free.thawline_sums_of_squares
        self.num_sums.restype, self.num_sums.argtypes = c_int64, [c_void_p]
        self.sums.restype, self.sums.argtypes = c_char_p, [c_void_p, POINTER(c_double)]


@functools.cache
def _library(target: str) -> _Library:
    return _Library(str(build.load(target)))


def can_gather(target: str = "cpu") -> bool:
    """Whether C++ finds the tensors in this Python's objects; ``target`` is "cpu" or "cuda"."""
    return _library(target).can_gather


def _raise(problem: bytes | None) -> None:
    if problem is not None:
        raise RuntimeError(problem.decode(errors="replace"))


def _packed(k: reference.Scalars, hyper: Hyper) -> Array[c_float]:
    values = reference.packed(k, hyper)
    return (c_float * len(values))(*values)


@dataclass(frozen=True)
class Ahead:
    """A step that needs to see no gradient first: it is taken while tensors are gathered."""

    grad_scale: float
    zero_grad: bool


class NativeBatch:
    """What `batches.Batch` is, held by C++: tensors of one group with one step count and one set of dtypes."""

    def __init__(self, library: _Library, gathered: int, hyper: Hyper, step: int) -> None:
        self._library, self._gathered = library, gathered
        self.hyper, self.step = hyper, step

    def __del__(self) -> None:
        self._library.release(self._gathered)

    def __len__(self) -> int:
        return int(self._library.size(self._gathered))

    def set_keys(self, seed: int, first: int) -> None:
        """Give bf16 moments the random bits of this step; ``first`` is the number of the group's first parameter."""
        if self._library.moments_are_bf16(self._gathered):
            self._library.set_keys(self._gathered, seed & (2**64 - 1), self.step, first)

    def update(self, k: reference.Scalars, *, zero_grad: bool) -> None:
        """Step parameters and moments in place; zero the gradients with ``zero_grad``."""
        _raise(self._library.step(self._gathered, _packed(k, self.hyper), self.hyper.accurate, zero_grad))

    def sums_of_squares(self) -> list[float]:
        """As `reference.sums_of_squares`, of all gradients."""
        sums = (c_double * self._library.num_sums(self._gathered))()
        _raise(self._library.sums(self._gathered, sums))
        return list(sums)

    def finish(self) -> None:
        """Count the step, where gathering has not; the count is a new tensor, as in `batches.Batch.finish`."""
        self._library.count(self._gathered, torch.tensor(float(self.step)), _NAMES)


def gather(
    target: str,
    group: dict[str, Any],
    hyper: Hyper,
    states: States,
    cursor: c_ssize_t,
    keys: tuple[int, int] = (0, 0),
    ahead: Ahead | None = None,
) -> tuple[list[NativeBatch], Sequence[int]]:
    """The batches of one group's ordinary parameters that are still to be stepped, and the positions of those that are
    not ordinary.

    Args:
        target: whose kernels step them, "cpu" or "cuda": the kind of device that the first parameter is on.
        cursor: where the walk through ``states`` stands, 0 before the first group.
        keys: the seed of bf16 moments' random bits, and the number of the group's first parameter.
        ahead: the step, where it may be taken at once: on the CPU it is, and counted, so that no batch is left. With
            two threads, small tensors are stepped while others are gathered.
    """
    params = group["params"]
    library = _library(target)
    if not library.can_gather or not isinstance(params, list):
        return [], range(len(params))
    batches: list[NativeBatch] = []
    positions: list[int] | None = None
    for _ in range(_ROUNDS):
        counter = _counter(params, positions, states)
        if counter is None:
            break
        rest: list[int] = []
        step = int(counter) + 1
        at_once = ahead if library.step_behind else None
        behind: tuple[Any, ...] = None, None, None, False, False
        if at_once:
            k = reference.scalars(hyper, step, at_once.grad_scale)
            counted = torch.tensor(float(step))
            behind = counted, library.step_behind, _packed(k, hyper), hyper.accurate, at_once.zero_grad
        everything = params, positions, states, counter, rest, _NAMES, _TYPES
        gathered = library.gather(*everything, byref(cursor), target == "cuda", *behind)
        batch = NativeBatch(library, gathered, hyper, step)
        positions = rest
        if not len(batch):
            break
        batch.set_keys(*keys)
        if at_once:
            batch.update(k, zero_grad=at_once.zero_grad)
        else:
            batches.append(batch)
    return batches, range(len(params)) if positions is None else positions


def _counter(params: list[Tensor], positions: list[int] | None, states: States) -> Tensor | None:
    """The step counter of the first parameter that has a gradient, if it has one."""
    for position in range(len(params)) if positions is None else positions:
        if params[position].grad is not None:
            return states.get(params[position], {}).get("step")
    return None
