"""Imports for planning: what is stood in for, that it is itself when it is called, and that nothing stays behind."""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path

import pytest

from launcher import light_imports
from launcher.light_imports import light_imports as importing

SLOW = "boxes.slow_matching"


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a slow module of which one function is called later."""
    package = tmp_path / "boxes"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "slow_matching.py").write_text("LIMIT = 3\ndef match(a, *, b):\n    return a + b\n")
    (package / "loss.py").write_text("from boxes.slow_matching import match\n")
    (package / "limited.py").write_text("from boxes.slow_matching import LIMIT, match\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(light_imports, "CALLED_LATER", {SLOW: frozenset({"match"})})
    for name in ("boxes", SLOW, "boxes.loss", "boxes.limited"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return package


@pytest.mark.usefixtures("library")
def test_the_module_comes_when_its_function_is_called() -> None:
    with importing():
        loss = importlib.import_module("boxes.loss")
        assert not gc.isenabled()
    assert gc.isenabled()
    assert SLOW not in sys.modules
    assert not hasattr(sys.modules["boxes"], "slow_matching")
    assert loss.match(1, b=2) == 3
    assert sys.modules[SLOW].LIMIT == 3


@pytest.mark.usefixtures("library")
def test_another_name_of_the_module_is_its_own() -> None:
    with importing():
        limited = importlib.import_module("boxes.limited")
        assert sys.modules[SLOW].__file__
    assert limited.LIMIT == 3
    assert limited.match(1, b=2) == 3


def test_a_module_that_is_there_stays(library: Path) -> None:
    slow = importlib.import_module(SLOW)
    with importing():
        assert importlib.import_module("boxes.loss").match is slow.match
    assert sys.modules[SLOW] is slow


@pytest.mark.usefixtures("library")
def test_an_error_leaves_nothing_behind() -> None:
    finders = list(sys.meta_path)
    with importing():
        importlib.import_module("boxes.loss")
        with pytest.raises(ModuleNotFoundError), importing():
            importlib.import_module("boxes.nowhere")
    assert sys.meta_path == finders
    assert SLOW not in sys.modules
