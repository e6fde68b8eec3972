"""``model.dropout``: one probability for every dropout of a model.

Owns how the probabilities are found: in a transformers configuration before the model is built, in the modules of any
model afterwards. Refuses to do nothing: a model without dropout is an error.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.ops import StochasticDepth

from launcher.errors import UserError

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def override_config(config: Any, probability: float) -> list[str]:
    """Set every probability with ``drop`` in its name (layer drop and drop path too), sub-configurations included.

    Returns:
        Names of the keys that were set.
    """
    changed: list[str] = []
    for key, value in vars(config).items():
        is_probability = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
        if "drop" in key and is_probability:
            changed.append(key)
    for key in changed:
        setattr(config, key, probability)
    for key in getattr(config, "sub_configs", {}):
        inner = getattr(config, key, None)
        if inner is not None:
            changed += [f"{key}.{name}" for name in override_config(inner, probability)]
    return changed


def override_modules(module: nn.Module, probability: float) -> int:
    """Set every dropout module, and the dropout inside torch's attention; return how many there are.

    Stochastic depth keeps its shape over the depth: its largest probability becomes ``probability``.
    """
    count = 0
    depths = [child for child in module.modules() if isinstance(child, StochasticDepth)]
    largest = max((child.p for child in depths), default=0.0)
    for child in module.modules():
        if isinstance(child, DROPOUTS):
            child.p = probability
        elif isinstance(child, nn.MultiheadAttention):
            child.dropout = probability
        elif isinstance(child, StochasticDepth):
            child.p = probability * (child.p / largest) if largest else probability
        else:
            continue
        count += 1
    return count


def require_dropout(found: int, name: str, probability: float) -> None:
    """Refuse to set what is not there.

    Raises:
        UserError: nothing was found to set.
    """
    if not found:
        raise UserError(f"model.dropout: {probability}: {name} has no dropout; remove the key")
