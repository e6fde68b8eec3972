"""The documentation says what the code does: its tables are current, its recipes valid, its links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from launcher.recipe import Recipe, reading

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "slurm/README.md"]
YAML_BLOCK = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)\)")


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    """docs/write_recipes.py, which is no package."""
    spec = importlib.util.spec_from_file_location("write_recipes", ROOT / "docs" / "write_recipes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_recipe_keys_are_current(writer: ModuleType) -> None:
    current = writer.PAGE.read_text(encoding="utf-8")
    assert writer.page(current) == current, "run `make docs`"


def test_every_key_has_a_meaning(writer: ModuleType) -> None:
    """A row of the tables ends with what the key means; only what chooses a section speaks for itself."""
    tables = "\n".join(writer.section(Recipe, set()))
    rows = [line for line in tables.splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert [row for row in rows if row.endswith("|  |") and not row.startswith(("| `kind`", "| `source`"))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_recipes_in_the_text_are_valid(page: Path, tmp_path: Path) -> None:
    for block in YAML_BLOCK.findall(page.read_text(encoding="utf-8")):
        path = tmp_path / "recipe.yaml"
        path.write_text(block, encoding="utf-8")
        reading.load(path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not missing
