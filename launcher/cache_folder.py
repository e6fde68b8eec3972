"""Where Thawline keeps what it can make again: ``$THAWLINE_CACHE``, else ``$XDG_CACHE_HOME/thawline``, else
``~/.cache/thawline``.

Owns the folder's name. Nothing in it is needed: whoever reads it must do without.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder, made where it can be; by the XDG base directory specification a relative variable does not count."""
    if home := os.environ.get("THAWLINE_CACHE"):
        return Path(home)
    named = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(named) if Path(named).is_absolute() else Path("~/.cache").expanduser()
    return root / "thawline"
