"""A column of the data, and what its values say of it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

LABEL_CHARACTERS = 60
"""A label's name has no more on average."""


@dataclass(frozen=True)
class Column:
    """A column's name and its values, None where a row has none."""

    name: str
    values: list[Any]
    class_names: list[str] | None = None
    """What the data itself calls its class ids."""

    @cached_property
    def filled(self) -> list[Any]:
        """The values that are there."""
        return [value for value in self.values if value is not None and value != ""]

    @cached_property
    def is_text(self) -> bool:
        """Texts only, at least one."""
        return bool(self.filled) and all(isinstance(value, str) for value in self.filled)

    @cached_property
    def is_nested(self) -> bool:
        """Lists, maps or bytes."""
        return any(isinstance(value, (list, dict, bytes)) for value in self.filled)

    @cached_property
    def is_number(self) -> bool:
        """Numbers, or texts that are."""
        return bool(self.filled) and all(_number(value) is not None for value in self.filled)

    @cached_property
    def is_whole(self) -> bool:
        """Whole numbers only."""
        return self.is_number and all(float(_number(value) or 0).is_integer() for value in self.filled)

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each value is there, by the name that a label of it has."""
        if self.is_nested:
            return Counter()
        return Counter(self.label_of(value) for value in self.filled)

    def label_of(self, value: Any) -> str:
        """As `data.labels` names it."""
        if self.class_names is not None and isinstance(value, int) and 0 <= value < len(self.class_names):
            return self.class_names[value]
        if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
            return str(int(value))
        return str(value)

    @cached_property
    def mean_characters(self) -> float:
        return sum(len(str(value)) for value in self.filled) / max(1, len(self.filled))

    @cached_property
    def mean_words(self) -> float:
        return sum(len(str(value).split()) for value in self.filled) / max(1, len(self.filled))

    @property
    def may_be_label(self) -> bool:
        """Few short values, each several times on average."""
        if self.is_nested or (self.is_number and not self.is_whole):
            return False
        few = 2 <= len(self.counts) <= max(2, min(1000, len(self.filled) // 2))
        return few and self.mean_characters <= LABEL_CHARACTERS

    def described(self) -> str:
        """``4 values`` or ``23 words on average``."""
        if self.is_text and not self.is_number and not (self.may_be_label and self.mean_words < 4):
            return f"{self.mean_words:.0f} words on average"
        return f"{len(self.counts)} values" if not self.is_nested else "lists or maps"


def _number(value: Any) -> float | None:
    if isinstance(value, (int, float)):
        return float(value)
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None
