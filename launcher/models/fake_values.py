"""Fake tensors that know what the inputs say: shapes without memory, and values wherever no weight has a part in them.

Owns the values of small tensors that follow from the token ids, the mask and the shapes alone, and the answers that are
assumed where a model asks for values that depend on its weights: which experts a router chooses, in what order a sort
puts its rows, which elements of a mask hold. So forwards that look at values (masks made from tokens, mixtures of
experts, relative positions) run without weights. Refuses nothing; what was assumed is told. Called by `flops`, whose
meter counts on these tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

from launcher.models.assumed_choices import CHOICES, Routing, dim_of

MOST_ELEMENTS = 2**24
"""Of a tensor of integers or truth values whose values are kept; 128 MiB at most while one is."""
MOST_FLOATS = 2**20
ALL_HOLD = "masks that depend on weights hold everywhere"
ORDERED = "numbers that depend on weights are 1"

_ATEN = torch.ops.aten
_ITEMS = frozenset({_ATEN._local_scalar_dense, _ATEN.item, _ATEN.is_nonzero, _ATEN.equal})
_MADE = frozenset(
    {
        _ATEN.arange, _ATEN.zeros, _ATEN.ones, _ATEN.full, _ATEN.eye, _ATEN.scalar_tensor, _ATEN.tril_indices,
        _ATEN.triu_indices, _ATEN.linspace, _ATEN.logspace, _ATEN.zeros_like, _ATEN.ones_like, _ATEN.full_like,
        _ATEN.new_zeros, _ATEN.new_ones, _ATEN.new_full,
    }
)  # fmt: skip
"""What they return depends on no tensor's values."""
_UNWRITTEN = frozenset({_ATEN.empty, _ATEN.empty_like, _ATEN.new_empty, _ATEN.empty_strided, _ATEN.new_empty_strided})
"""The same, of integers: written later, and until then it does not matter."""
_FILLS = frozenset({_ATEN.fill_, _ATEN.zero_})


class FakeValues(FakeTensorMode):
    """See the module."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.routing: Routing = "even"
        self.routes = False
        """Whether something was chosen by values that depend on weights, and then looked at."""
        self.assumed: dict[str, None] = {}
        """What was assumed besides, in words."""
        self._inside = 0
        self._spoilt: dict[int, torch.UntypedStorage] = {}

    def start(self, routing: Routing) -> None:
        """A pass begins."""
        self.routing, self.routes = routing, False
        self.assumed.clear()

    def know(self, fake: torch.Tensor, value: torch.Tensor, *, is_chosen: bool = False) -> None:
        """``fake`` has these values."""
        most = MOST_FLOATS if value.is_floating_point() or value.is_complex() else MOST_ELEMENTS
        if value.numel() <= most and value.device.type == "cpu":
            fake._known, fake._is_chosen = value, is_chosen  # type: ignore[attr-defined]

    def value(self, tensor: Any) -> torch.Tensor | None:
        """What is known of a tensor, on the CPU; None: nothing."""
        if not isinstance(tensor, FakeTensor):
            is_known = isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu" and not tensor.requires_grad
            return tensor if is_known and tensor.numel() <= MOST_ELEMENTS else None
        known: torch.Tensor | None = getattr(tensor, "_known", None)
        return None if known is None or known.untyped_storage()._cdata in self._spoilt else known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet in _ITEMS:
            return self._item(func, args, kwargs)
        if self._inside:  # inside an operator that is made of others
            return self._shapes(func, types, args, kwargs)
        self._inside += 1
        try:
            if packet in _BY_VALUES:
                return _BY_VALUES[packet](self, func, types, args, kwargs)
            return self._with_values(func, types, args, kwargs)
        finally:
            self._inside -= 1

    def _shapes(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _with_values(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """The operator on shapes, and on values where all that it reads is known."""
        output = self._shapes(func, types, args, kwargs)
        packet = func._overloadpacket
        if packet in CHOICES:
            self._choose(packet, args, kwargs, output)
        values = self._values_of(func, args, kwargs, output)
        if values is None:
            self._spoil(func, args, kwargs)
            return output
        chosen = any(getattr(leaf, "_is_chosen", False) for leaf in pytree.tree_leaves((args, kwargs)))
        for fake, value in zip(pytree.tree_leaves(output), pytree.tree_leaves(values), strict=False):
            if isinstance(fake, FakeTensor) and isinstance(value, torch.Tensor) and fake.shape == value.shape:
                self.know(fake, value, is_chosen=chosen)
        return output

    def _values_of(self, func: Any, args: Any, kwargs: Any, output: Any) -> Any:
        leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        packet = func._overloadpacket
        if packet in _UNWRITTEN:
            is_float = output.is_floating_point() or output.is_complex()
            return None if is_float or output.numel() > MOST_ELEMENTS else torch.zeros(output.shape, dtype=output.dtype)
        if packet in _MADE:
            if output.numel() > (MOST_FLOATS if output.is_floating_point() else MOST_ELEMENTS):
                return None
            if leaves and packet in _LIKE:
                return _LIKE[packet](output, args, kwargs)
        elif not _reads_tensors(func) or torch.Tag.nondeterministic_seeded in func.tags:
            return None
        known = {id(leaf): self.value(leaf) for leaf in leaves}
        if any(value is None for value in known.values()):
            return None
        outputs = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        if any(leaf.numel() > (MOST_FLOATS if leaf.is_floating_point() else MOST_ELEMENTS) for leaf in outputs):
            return None

        def real(leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor):
                return known[id(leaf)]
            return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

        try:
            return func(*pytree.tree_map(real, args), **pytree.tree_map(real, kwargs))
        except (RuntimeError, IndexError, NotImplementedError):  # values of a buffer that nobody has filled
            return None

    def _spoil(self, func: Any, args: Any, kwargs: Any) -> None:
        """What was known of a tensor that unknown values are written into."""
        for argument, given in (*zip(func._schema.arguments, args, strict=False), *_named(func, kwargs)):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for leaf in pytree.tree_leaves(given):
                    known = getattr(leaf, "_known", None)
                    if known is not None:
                        storage = known.untyped_storage()
                        self._spoilt[storage._cdata] = storage

    def _choose(self, packet: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Give the indices of a choice by unknown values those that are assumed."""
        if self.value(args[0]) is not None:
            return
        parts = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        indices = parts[-1]
        if packet in (_ATEN.max, _ATEN.min) and len(parts) < 2:  # without indices
            return
        if indices.dtype != torch.int64 or indices.numel() > MOST_ELEMENTS or not args[0].dim():
            return
        dim = dim_of(packet, args, kwargs) % args[0].dim()
        num_options = args[0].shape[dim]
        is_reduced = indices.dim() < args[0].dim()
        shape = indices.shape if not is_reduced else indices.unsqueeze(dim).shape
        rows = [size for axis, size in enumerate(shape) if axis != dim]
        made = CHOICES[packet](torch.Size((*rows, shape[dim])), num_options, self.routing).movedim(-1, dim)
        self.know(indices, made.squeeze(dim) if is_reduced else made, is_chosen=True)

    def _item(self, func: Any, args: Any, kwargs: Any) -> Any:
        leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        values = [self.value(leaf) for leaf in leaves]
        self.routes |= any(getattr(leaf, "_is_chosen", False) for leaf in leaves)
        if all(value is not None for value in values):
            return func(*values)
        self.assumed[ORDERED] = None
        if func._overloadpacket is _ATEN.equal:
            return leaves[0].shape == leaves[1].shape
        dtype = leaves[0].dtype
        return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1

    def _mask(self, mask: torch.Tensor) -> torch.Tensor:
        """The values of a mask, or all true."""
        self.routes |= getattr(mask, "_is_chosen", False)
        known = self.value(mask)
        if known is None:
            self.assumed[ALL_HOLD] = None
            return torch.ones(mask.shape, dtype=torch.bool)
        return known

    def _fake(self, value: torch.Tensor, device: torch.device, *, is_chosen: bool = False) -> torch.Tensor:
        with self:
            made = torch.empty(value.shape, dtype=value.dtype, device=device)
        self.know(made, value, is_chosen=is_chosen)
        return made


@cache
def _reads_tensors(func: Any) -> bool:
    """Whether it is made of tensors, which may be given as plain numbers, and not made from nothing."""
    return any("Tensor" in str(argument.type) for argument in func._schema.arguments)


def _named(func: Any, kwargs: Any) -> list[tuple[Any, Any]]:
    return [(argument, kwargs[argument.name]) for argument in func._schema.arguments if argument.name in kwargs]


def _filled(fill: float) -> Callable[[torch.Tensor, Any, Any], torch.Tensor]:
    return lambda output, args, kwargs: torch.full(output.shape, fill, dtype=output.dtype)


def _full(output: torch.Tensor, args: Any, kwargs: Any) -> torch.Tensor:
    return torch.full(output.shape, args[-1] if len(args) > 1 else kwargs["fill_value"], dtype=output.dtype)


_LIKE: dict[Any, Callable[[torch.Tensor, Any, Any], torch.Tensor]] = {
    _ATEN.zeros_like: _filled(0), _ATEN.new_zeros: _filled(0), _ATEN.ones_like: _filled(1), _ATEN.new_ones: _filled(1),
    _ATEN.full_like: _full, _ATEN.new_full: _full,
}  # fmt: skip


def _nonzero(mode: FakeValues, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    where = mode._mask(args[0])
    return mode._fake(where.nonzero(), args[0].device, is_chosen=getattr(args[0], "_is_chosen", False))


def _masked_select(mode: FakeValues, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    tensor, mask = args
    shape = torch.broadcast_shapes(tensor.shape, mask.shape)
    num = int(mode._mask(mask).expand(shape).sum())
    with mode:
        return tensor.new_empty(num)


def _index(mode: FakeValues, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """With masks as the places where they hold."""
    indices: list[Any] = []
    for index in args[1]:
        if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8):
            places = mode._mask(index).nonzero(as_tuple=True)
            indices += [mode._fake(place, index.device) for place in places]
        else:
            indices.append(index)
    return mode._with_values(func, types, (args[0], indices, *args[2:]), kwargs)


def _repeated(mode: FakeValues, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """``repeat_interleave`` of counts: the places they come from."""
    known = mode.value(args[0])
    if known is None:
        mode.assumed[ORDERED] = None
        known = torch.ones(args[0].shape, dtype=torch.int64)
    return mode._fake(torch.repeat_interleave(known), args[0].device)


def _distinct(mode: FakeValues, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """Of unknown values, that all differ."""
    known = mode.value(args[0])
    if known is None:
        mode.assumed["values that depend on weights all differ"] = None
        known = torch.arange(args[0].numel()).reshape(args[0].shape)
    outputs = func(known, *args[1:], **kwargs)
    return tuple(mode._fake(output, args[0].device) for output in outputs)


def _counted(mode: FakeValues, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    known = mode.value(args[0])
    if known is None:
        mode.assumed[ORDERED] = None
        known = torch.ones(args[0].shape, dtype=torch.int64)
    return mode._fake(torch.bincount(known, *args[2:], **kwargs), args[0].device)


def _grouped_product(mode: FakeValues, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """[S, K] rows by group with [G, K, N] -> [S, N]; torch's own shapes are for bf16 alone, its CPU kernel is not."""
    first, second = args[0], args[1]
    mode.routes = True
    if first.dim() == 2 and second.dim() == 3:
        with mode:
            return first.new_empty(first.shape[0], second.shape[-1])
    return mode._with_values(func, types, args, kwargs)


_BY_VALUES: dict[Any, Callable[..., Any]] = {
    _ATEN.nonzero: _nonzero,
    _ATEN.masked_select: _masked_select,
    _ATEN.index: _index,
    _ATEN.index_put: _index,
    _ATEN.index_put_: _index,
    _ATEN._index_put_impl_: _index,
    _ATEN._unsafe_index: _index,
    _ATEN.repeat_interleave: _repeated,
    _ATEN._unique2: _distinct,
    _ATEN.unique_consecutive: _distinct,
    _ATEN.unique_dim: _distinct,
    _ATEN.bincount: _counted,
    _ATEN._grouped_mm: _grouped_product,
}
"""Operators whose shapes depend on values -> what they return."""
