"""The tensors of a parameter group gathered by C++, for groups of thousands of small tensors, where Python's gathering
took more time than the step.

Owns the calls into csrc/gather.cpp: it reads ``p.grad`` and the state in every step, so nothing can be stale. It takes
ordinary tensors; what it leaves goes to `batches.gather`, which knows DTensors, other strides and refusals. Where a
tensor does not lie in its Python object as gather.cpp takes it to, it takes nothing.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import (
    POINTER,
    Structure,
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

_NAMES = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "master", "low")
_TYPES = (Tensor, torch.nn.Parameter, str, None)
_ROUNDS = 4
"""Kinds of tensors looked for in one group: by dtypes and step count."""

States = dict[Tensor, dict[str, Any]]


_Scalars = c_float * 9
"""`reference.packed`, as csrc/step.h has it."""


class _Ahead(Structure):
    """csrc/gather.h has the same."""

    _fields_ = (
        ("scalars", _Scalars),
        ("is_accurate", c_bool),
        ("zeroes_grad", c_bool),
        ("seed", c_uint64),
        ("first", c_uint64),
        ("behind", c_void_p),
    )


def _points_at_its_tensor() -> bool:
    """Whether the third word of a tensor's object is what gather.cpp follows: in other Pythons it may not be."""
    probe = torch.empty(1, device="cpu")
    word: int | None = c_void_p.from_address(id(probe) + 16).value
    return bool(word == probe._cdata)


class _Library:
    """The functions of a compiled library. They are called with the GIL, and let go of it where they say so."""

    def __init__(self, path: str) -> None:
        held, free = ctypes.PyDLL(path), ctypes.CDLL(path)
        self.can_gather = bool(held.thawline_gathers()) and _points_at_its_tensor()
        self.take, self.measure = held.thawline_take, held.thawline_measure
        self.take.restype = self.measure.restype = c_void_p
        walk = py_object, py_object, py_object, c_double, c_bool, py_object, py_object, py_object
        self.take.argtypes = [*walk, POINTER(c_ssize_t), c_bool, c_void_p, POINTER(_Ahead)]
        self.measure.argtypes = [*[py_object] * 4, c_bool, c_void_p]
        stepper = getattr(free, "thawline_step_behind", None)
        self.step_behind = stepper and ctypes.cast(stepper, c_void_p)
        self.new_trail, self.release_trail = held.thawline_new_trail, held.thawline_release_trail
        self.new_trail.restype, self.new_trail.argtypes = c_void_p, []
        self.release_trail.restype, self.release_trail.argtypes = None, [c_void_p]
        self.follow = held.thawline_follow
        self.follow.restype, self.follow.argtypes = c_int, [c_void_p, py_object]
        self.size, self.release = held.thawline_gathered, held.thawline_release
        self.size.restype, self.size.argtypes = c_int64, [c_void_p]
        self.release.restype, self.release.argtypes = None, [c_void_p]
        self.num_sums, self.sums = held.thawline_num_sums, held.thawline_sums
        self.num_sums.restype, self.num_sums.argtypes = c_int64, [c_void_p]
        self.sums.restype, self.sums.argtypes = POINTER(c_double), [c_void_p]
        self.problem = held.thawline_problem
        self.problem.restype, self.problem.argtypes = c_char_p, [c_void_p]


@functools.cache
def _library(target: str) -> _Library:
    return _Library(str(build.load(target)))


def can_gather(target: str = "cpu") -> bool:
    """Whether C++ finds the tensors in this Python's objects; ``target`` is "cpu" or "cuda"."""
    return _library(target).can_gather


@dataclass(frozen=True)
class Step:
    """What a step needs beside its group."""

    grad_scale: float
    zero_grad: bool


class Trail:
    """Where C++ found the tensors of one group in the last step: addresses to prefetch. Its optimizer keeps it."""

    def __init__(self, target: str) -> None:
        self._library = _library(target)
        self.address = self._library.new_trail()

    def __del__(self) -> None:
        self._library.release_trail(self.address)

    def follow(self, params: list[Tensor]) -> bool:
        """Begin a step of these parameters; returns whether one of them is named more than once."""
        self.has_repeats = bool(self._library.follow(self.address, params))
        return self.has_repeats


class _Taken:
    """What C++ took of a group in one call, done by now: tensors of one step count and one set of dtypes.

    Raises:
        MemoryError: there was none to gather the tensors.
        RuntimeError: the device refused the work.
    """

    def __init__(self, library: _Library, gathered: int | None) -> None:
        if not gathered:
            raise MemoryError("FusedAdamW: no memory to gather the tensors of a step")
        self._library, self._gathered = library, gathered
        problem = library.problem(gathered)
        if problem is not None:
            raise RuntimeError(problem.decode(errors="replace"))

    def __del__(self) -> None:
        if hasattr(self, "_gathered"):
            self._library.release(self._gathered)

    def __len__(self) -> int:
        return int(self._library.size(self._gathered))

    @property
    def sums(self) -> list[float]:
        return list(self._library.sums(self._gathered)[: self._library.num_sums(self._gathered)])


def measure(target: str, params: list[Tensor], trail: Trail) -> tuple[list[float], Sequence[int]]:
    """`reference.sums_of_squares` of the ordinary gradients of one group, and the positions of the others."""
    library = _library(target)
    if not library.can_gather:
        return [], range(len(params))
    sums: list[float] = []
    positions: list[int] | None = None
    for _ in range(_ROUNDS):
        rest: list[int] = []
        taken = _Taken(library, library.measure(params, positions, rest, _TYPES, target == "cuda", trail.address))
        sums += taken.sums
        positions = rest
        if not rest or not len(taken):
            break
    return sums, positions or []


def step(
    target: str,
    params: list[Tensor],
    positions: list[int] | None,
    hyper: Hyper,
    states: States,
    cursor: c_ssize_t,
    trail: Trail,
    keys: tuple[int, int],
    given: Step,
) -> Sequence[int]:
    """Step the ordinary parameters of one group, and count it; returns the positions of the others.

    Each of the calls into C++ that this makes looks at the tensors and writes to them before anybody else can change
    them. With two threads, small tensors on the CPU are stepped while others are gathered.

    Args:
        target: whose kernels step them, "cpu" or "cuda": the kind of device that the first parameter is on.
        params: a list of the step's own: nobody else may change it.
        positions: of the parameters to step, None for all.
        cursor: where the walk through ``states`` stands, 0 before the first group.
        trail: of this group in the last step, following ``params``.
        keys: the seed of bf16 moments' random bits, and the number of the group's first parameter.
    """
    library = _library(target)
    rest: Sequence[int] = range(len(params)) if positions is None else positions
    for _ in range(_ROUNDS if library.can_gather else 0):
        counter = _counter(params, rest, states)
        if not isinstance(counter, Tensor):
            break
        number, left = int(counter) + 1, list[int]()
        ahead = byref(_ahead(library, reference.scalars(hyper, number, given.grad_scale), hyper, given, keys))
        walk = params, positions, states, number, hyper.amsgrad, left, _NAMES, _TYPES
        taken = _Taken(library, library.take(*walk, byref(cursor), target == "cuda", trail.address, ahead))
        rest = positions = left
        if not len(taken):
            break
    return rest


def _ahead(library: _Library, k: reference.Scalars, hyper: Hyper, given: Step, keys: tuple[int, int]) -> _Ahead:
    options = hyper.accurate, given.zero_grad, keys[0] & (2**64 - 1), keys[1]
    return _Ahead(_Scalars(*reference.packed(k, hyper)), *options, library.step_behind)


def _counter(params: list[Tensor], positions: Sequence[int], states: States) -> Any:
    """The step count of the first parameter that has a gradient, if it has one."""
    for position in positions:
        if params[position].grad is not None:
            return states.get(params[position], {}).get("step")
    return None
