"""Activations of texts that are too long to go through token by token.

Owns the way from three short texts to a long one, for models that compute one token after the other in Python: state
spaces without their kernels, RWKV, xLSTM. What such a model keeps is a polynomial of the length, of degree one in its
states and two in attention beside them, so three lengths tell it. Called by `survey`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from launcher.costs.peak import Activations, Routed
from launcher.costs.step_time import Work
from launcher.models.flops import FlopMeter, TooMany

MOST_OPERATORS = 10_000
"""Of a pass that is counted as it is: some seconds. A loop over blocks has a tenth of them, one over tokens more."""
LENGTHS = (16, 32, 48)


def counted(count: Callable[[int], Activations], length: int, meter: FlopMeter) -> Activations:
    """The count of a text of ``length`` tokens: as it is, or extrapolated where that would take too long."""
    if not meter.is_slow:
        meter.room = MOST_OPERATORS if length > max(LENGTHS) else None
        try:
            return count(length)
        except TooMany:
            meter.is_slow = True
        finally:
            meter.room = None
    return count(length) if length <= max(LENGTHS) else extrapolated(count, length)


def extrapolated(count: Callable[[int], Activations], length: int) -> Activations:
    """The count of a text of ``length`` tokens by the polynomial through those of `LENGTHS`."""
    found = [count(short) for short in LENGTHS]
    shares = [_share(at, length) for at in LENGTHS]

    def through(values: list[float]) -> float:
        return max(0.0, sum(share * value for share, value in zip(shares, values, strict=True)))

    def numbers(ones: list[Any]) -> dict[str, Any]:
        names = [field.name for field in fields(ones[0]) if isinstance(getattr(ones[0], field.name), (int, float))]
        made = {name: through([float(getattr(one, name)) for one in ones]) for name in names}
        return {name: type(getattr(ones[0], name))(round(value)) for name, value in made.items()}

    work = Work(**numbers([one.work for one in found]))
    routes = [one.routed for one in found]
    routed = Routed(**numbers(routes)) if all(routes) else None
    return replace(found[-1], **numbers(found), work=work, routed=routed)


def _share(at: int, length: int) -> float:
    """Of the value at one length in the value at another (Lagrange)."""
    share = 1.0
    for other in LENGTHS:
        if other != at:
            share *= (length - other) / (at - other)
    return share
