"""The house rules that can be measured: sizes, names, docstrings, what may import what, what a wheel holds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("launcher", "kernels/thawline_kernels")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_LINES = 320
DRAWERS = re.compile(r"^(utils?|helpers?|common|misc)$")
MACHINE_PATHS = re.compile(r"(?<![\w./-])/(?:work|root|home/\w+|Users/\w+|opt|mnt)/\w")


def tracked_files() -> list[Path]:
    """What git would publish: tracked files and new ones it does not ignore."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "a module opens with what it owns and what it refuses"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_file_is_one_idea(path: Path) -> None:
    num_lines = len(path.read_text().splitlines())
    assert num_lines <= MAX_LINES, f"{num_lines} lines; split where a second idea lives"


def test_no_drawers() -> None:
    names = {path: path.relative_to(ROOT).with_suffix("").parts for path in SOURCES}
    assert not [path for path, parts in names.items() if any(map(DRAWERS.match, parts))], "name the idea instead"


def test_no_package_in_kernels_or_tests() -> None:
    """`kernels/__init__.py` would shadow the PyPI package of that name, one under tests/ would shadow ours."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_no_machine_paths() -> None:
    """Nothing published names a folder of the machine it was written on."""
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name_of(path)}: {match.group()}" for match in MACHINE_PATHS.finditer(text)]
    assert not found


def test_floors() -> None:
    """Imports go downward only; `[tool.importlinter]` in pyproject.toml draws the floors."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", program, "--no-cache"]
    linted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def modules_after(argument: str) -> set[str]:
    """Top-level modules that are loaded once ``thawline ARGUMENT`` has ended."""
    program = (
        "import sys\n"
        f"sys.argv = ['thawline', {argument!r}]\n"
        "from launcher.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print('MODULES', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(ended.stdout.rpartition("MODULES")[2].split())


def test_help_imports_no_torch() -> None:
    heavy = {"torch", "torchvision", "transformers", "accelerate", "deepspeed", "datasets", "torchmetrics", "wandb"}
    modules = modules_after("--help")
    assert "launcher" in modules
    assert not modules & heavy


def test_public_surface_of_the_kernels() -> None:
    """What other projects may import from thawline_kernels; a name leaves or joins on purpose."""
    import thawline_kernels

    assert sorted(thawline_kernels.__all__) == ["FusedAdamW"]
    for name in thawline_kernels.__all__:
        assert getattr(thawline_kernels, name).__doc__, f"{name} has no docstring"


def test_wheel_holds_everything(tmp_path: Path) -> None:
    """An installed thawline has the recipes it ships, both packages and its types, and no tests."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("thawline-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"launcher/shipped/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    assert recipes | {"launcher/cli.py", "launcher/py.typed", "thawline_kernels/__init__.py"} <= names
    assert "launcher/shipped/slurm/job.sbatch.j2" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "kernels/"))]
