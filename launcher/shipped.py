"""The recipes that come with thawline, and the template of its SLURM script: where they are, what each is for."""

from __future__ import annotations

import difflib
from pathlib import Path

from launcher.errors import UserError


def recipes() -> dict[str, Path]:
    """Name -> file, sorted. In a checkout they are in ``recipes/``; an installed wheel has its own copy.

    Raises: UserError when neither is there.
    """
    package = Path(__file__).parent
    for folder in (package / "shipped" / "recipes", package.parent / "recipes"):
        if found := {file.stem: file for file in sorted(folder.glob("*.yaml"))}:
            return found
    raise UserError(f"no recipes in {package / 'shipped' / 'recipes'}: the installation is not whole; install again")


def recipe(name: str) -> Path:
    """The file of one.

    Raises: UserError with the nearest name.
    """
    known = recipes()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"no shipped recipe is called {name!r}; {hint}there are: {', '.join(known)}")
    return known[name]


def located(given: Path) -> Path:
    """The recipe's file: what was given, or of a name without a suffix the shipped recipe that is called so.

    Raises:
        UserError: a shipped recipe is asked for by a path that is not here, or by a name that a file here has too.
    """
    if given.is_file() or (given.exists() and not given.is_dir()):
        return given
    known, name = recipes(), given.name.removesuffix(".yaml").removesuffix(".yml")
    here = [file for suffix in (".yaml", ".yml") if (file := given.with_name(given.name + suffix)).is_file()]
    if str(given) in known:
        if here:
            raise UserError(
                f"{name!r} is {here[0]} here, or the recipe that comes with thawline: name {here[0]}, or {known[name]}"
            )
        return known[name]
    if here:
        raise UserError(f"recipe {str(given)!r} does not exist; did you mean {str(here[0])!r}?")
    if name in known:
        raise UserError(
            f"recipe {str(given)!r} does not exist here, but one comes with thawline: `thawline recipes {name} > "
            f"{name}.yaml` writes a copy to change, `thawline run {name}` runs it as it is"
        )
    if not given.suffix and len(given.parts) == 1 and (near := difflib.get_close_matches(name, known, 1)):
        raise UserError(f"no shipped recipe is called {name!r}; did you mean {near[0]}? or name a file")
    return given


def slurm_template() -> Path:
    """The sbatch script's template: ``slurm/`` of a checkout, or an installed wheel's own copy.

    Raises: UserError when neither is there.
    """
    package = Path(__file__).parent
    for folder in (package / "shipped" / "slurm", package.parent / "slurm"):
        if (file := folder / "job.sbatch.j2").is_file():
            return file
    raise UserError(
        f"no job.sbatch.j2 in {package / 'shipped' / 'slurm'}: the installation is not whole; install again"
    )


def purpose(file: Path) -> str:
    """The first line of the comment that opens a recipe."""
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
