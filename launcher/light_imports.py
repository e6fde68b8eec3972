"""How the libraries are imported by who only plans: without what they import at once and no plan calls.

Owns three measures, which last as long as the import and leave what is called afterwards as it is: some functions of
slow modules are stood in for until they are called; transformers reads its sources once and not twice for the list of
its models; and the garbage collector rests. Together about a quarter of the command's time. Called by ``thawline
plan``; a rank calls more of the libraries, and imports them as they are.
"""

from __future__ import annotations

import functools
import gc
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

CALLED_LATER = {"scipy.optimize": frozenset({"linear_sum_assignment"})}
"""Slow modules -> what is taken of them: the matching of boxes, by losses that come with every transformers model."""
READS_ITS_SOURCES = "transformers.utils.import_utils"


@contextmanager
def light_imports() -> Iterator[None]:
    """What is imported inside gets stand-ins for `CALLED_LATER`, unless their modules are there already.

    A stand-in imports its function when it is called; another name of such a module, asked for inside, imports the
    module at once. Afterwards an import of the module is an import of the module.
    """
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    gc.disable()  # it would look through all that is imported, again and again: an eighth of the command's time
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        finder.leave()
        sys.meta_path.remove(finder)


class _Finder(Loader):
    """Finds and loads the stand-ins, and transformers' reader of its sources."""

    def __init__(self) -> None:
        self._made: dict[str, ModuleType] = {}

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Of a module of `CALLED_LATER` the first time; later its own finder is asked."""
        if name == READS_ITS_SOURCES:
            return _reading_once(PathFinder.find_spec(name, path))
        return ModuleSpec(name, self) if name in CALLED_LATER and name not in self._made else None

    def exec_module(self, module: ModuleType) -> None:
        """Fill a stand-in."""
        name = module.__name__
        self._made[name] = module
        for function in CALLED_LATER[name]:
            setattr(module, function, _called_later(name, function))

        def own(attribute: str) -> Any:
            if attribute.startswith("__"):  # the import system asks for some, and each module has others
                raise AttributeError(attribute)
            self._drop(name)
            return getattr(importlib.import_module(name), attribute)

        module.__getattr__ = own  # type: ignore[method-assign]

    def leave(self) -> None:
        """Forget the stand-ins for modules; functions that were taken from them stay with who took them."""
        for name in self._made:
            self._drop(name)

    def _drop(self, name: str) -> None:
        module = self._made[name]
        parent, _, attribute = name.rpartition(".")
        if sys.modules.get(name) is module:
            del sys.modules[name]
        if vars(sys.modules[parent]).get(attribute) is module:
            delattr(sys.modules[parent], attribute)


def _called_later(module: str, function: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*args, **kwargs)

    call.__name__ = call.__qualname__ = function
    return call


def _reading_once(spec: ModuleSpec | None) -> ModuleSpec | None:
    """The module, whose function for the names that a folder of sources exports remembers them: of the folder of models
    ``import transformers`` asks for them, and then ``import transformers.models`` does."""
    if spec is None or spec.loader is None:
        return spec
    execute = spec.loader.exec_module

    def remember(module: ModuleType) -> None:
        execute(module)
        vars(module)["create_import_structure_from_path"] = functools.cache(module.create_import_structure_from_path)

    spec.loader.exec_module = remember  # type: ignore[method-assign]
    return spec
