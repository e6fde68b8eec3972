"""From what a recipe writes to files that are there.

Owns paths, globs and ``package:IMPORT/PATH``; packages are found, never imported. Refuses to return nothing: a name
that leads nowhere is an error with the names that are near. Called by `data.sources` and `models`.
"""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path

from launcher.errors import DataError

PACKAGE_PREFIX = "package:"


def package_path(text: str, key: str) -> Path:
    """The path that ``package:IMPORT/PATH`` means; it need not exist. ``key`` is the recipe's key, for the message.

    Raises:
        DataError: no such package is installed.
    """
    name, _, rest = text.removeprefix(PACKAGE_PREFIX).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"{key}: {text!r}: no package {name!r} is installed; install it, or give a path")
    return Path(next(iter(spec.submodule_search_locations))) / rest


def existing_path(text: str, recipe_dir: Path, key: str) -> Path:
    """The file or folder that ``text`` names: in a package, absolute, beside the recipe, or in the working folder.

    Raises:
        DataError: there is none; with where it was looked for and the names near it.
    """
    candidates = _candidates(text, recipe_dir, key)
    for path in candidates:
        if path.exists():
            return path
    raise DataError(f"{key}: {text!r} does not exist; {_what_is_there(candidates[0])}")


def matching_files(text: str, recipe_dir: Path, key: str) -> list[Path]:
    """The files that a path or glob (``*``, ``?``, ``[…]``, ``**``) names, sorted.

    Raises:
        DataError: none; or a folder where files are needed.
    """
    candidates = _candidates(text, recipe_dir, key)
    if any(sign in text for sign in "*?[") and not any(path.exists() for path in candidates):
        for pattern in candidates:
            found = sorted(path for path in Path(pattern.anchor).glob(_relative(pattern)) if path.is_file())
            if found:
                return found
        fixed = candidates[0]
        while any(sign in str(fixed) for sign in "*?["):
            fixed = fixed.parent
        raise DataError(f"{key}: {text!r} matches no file; {_what_is_there(fixed)}")
    path = existing_path(text, recipe_dir, key)
    if path.is_dir():
        raise DataError(f"{key}: {text!r} is a folder; name its files, such as {text.rstrip('/') + '/*.csv'!r}")
    return [path]


def _candidates(text: str, recipe_dir: Path, key: str) -> list[Path]:
    if text.startswith(PACKAGE_PREFIX):
        return [package_path(text, key)]
    path = Path(text).expanduser()
    return list(dict.fromkeys([(recipe_dir / path).absolute(), path.absolute()]))


def _relative(pattern: Path) -> str:
    return str(pattern.relative_to(pattern.anchor))


def _what_is_there(path: Path) -> str:
    """Which part of ``path`` is missing, and what lies near it."""
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    folder = path if path.is_dir() else missing.parent
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    near = [] if path.is_dir() else difflib.get_close_matches(missing.name, names, n=3, cutoff=0.5)
    shown = near or names[:8]
    more = f" and {len(names) - len(shown)} more" if not near and len(names) > len(shown) else ""
    hint = f"did you mean {' or '.join(map(repr, shown))}?" if near else f"it has {', '.join(shown) or 'nothing'}{more}"
    return f"looked in {folder}; {hint}"
