"""Bytes and seconds for people, in the unit that leaves one to four digits before the point."""

from __future__ import annotations

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def bytes_text(num_bytes: float) -> str:
    """``0 bytes``, ``812 KiB``, ``1.5 GiB``: three digits, in powers of 1024."""
    amount, unit = float(num_bytes), 0
    while abs(amount) >= 1000 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.3g} {_UNITS[unit]}"


def duration_text(seconds: float) -> str:
    """``0.41 s``, ``25 s``, ``3 min``, ``2 h 10 min``, ``3 d 4 h``: an estimate's digits, not a stopwatch's."""
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours + round(minutes / 60), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
