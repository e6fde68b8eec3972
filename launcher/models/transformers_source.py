"""Where a transformers model comes from, and the library's errors in the recipe's words.

Owns hub id, folder, package and GGUF file. Runs no code that comes with a model. Called by `transformers_models` and
`transformers_processors`.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import transformers
from transformers.utils import logging as transformers_logging

from launcher import hub_access
from launcher.errors import EnvironmentProblem, UserError
from launcher.file_locations import PACKAGE_PREFIX, existing_path
from launcher.recipe import Model

log = logging.getLogger(__name__)
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def locate(model: Model, recipe_dir: Path) -> str:
    """Folder or hub id of ``model.source``.

    Raises:
        UserError: a path that does not exist, one with a revision, or something that is neither a path nor a hub id.
    """
    source = model.source
    is_path = source.startswith((PACKAGE_PREFIX, ".", "/", "~")) or any(
        (base / source).is_dir() for base in (recipe_dir, Path())
    )
    if is_path and model.revision is not None:
        raise UserError(
            f"model.revision: {model.revision!r} is for models of the hub, but model.source {source!r} is a folder; "
            "take revision out"
        )
    if is_path:
        return str(existing_path(source, recipe_dir, "model.source"))
    if not HUB_ID.fullmatch(source):
        raise UserError(
            f"model.source: {source!r} is neither a folder nor a hub id; write OWNER/NAME, ./FOLDER, "
            "package:IMPORT/PATH or torchvision:NAME"
        )
    return source


def original_configuration(model: Model, recipe_dir: Path) -> Any:
    """The configuration as it came, before the recipe's labels and dropout; the caller may change it."""
    location = locate(model, recipe_dir)
    if not model.gguf_file:
        return _configuration(location, model)
    return copy.deepcopy(_gguf_configuration(location, model.model_copy(update={"lora": None})))  # it has no part in it


def _configuration(location: str, model: Model) -> Any:
    with explained(model):
        return transformers.AutoConfig.from_pretrained(
            location, revision=model.revision, trust_remote_code=False, **gguf_arguments(model)
        )


@lru_cache(maxsize=2)
def _gguf_configuration(location: str, model: Model) -> Any:
    """Kept, because transformers parses the whole file for it, which takes many seconds."""
    return _configuration(location, model)


def generation_config(model: Model, recipe_dir: Path) -> Any:
    """How the original generates text; None when it does not say."""
    if model.gguf_file or model.weights == "random":
        return None
    try:
        return transformers.GenerationConfig.from_pretrained(locate(model, recipe_dir), revision=model.revision)
    except OSError:
        log.info("%s has no generation_config.json; the export has the library's defaults", model.source)
        return None


def gguf_arguments(model: Model) -> dict[str, str]:
    """What every ``from_pretrained`` must be told of a GGUF file."""
    return {"gguf_file": model.gguf_file} if model.gguf_file else {}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the library's report on missing weights and its progress bars; whoever loads says what matters."""
    verbosity, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if has_bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def explained(model: Model) -> Iterator[None]:
    """Turn the library's errors into ours."""
    what = f"model.source: {model.source!r}"
    try:
        yield
    except OSError as error:
        text = str(error)
        if refused := hub_access.refusal(error, "model.source", model.source, model.revision):
            raise refused from error
        is_incomplete = hub_access.is_offline() and text.startswith(f"{model.source} does not appear to have")
        if is_incomplete or hub_access.is_unreachable(error):
            raise EnvironmentProblem(
                f"{what}: the hub cannot be reached and its cache does not hold all of the model; give a folder, or go "
                f"online once to fill the cache ({text.splitlines()[0]})"
            ) from error
        raise UserError(
            f"{what} cannot be loaded: {text.splitlines()[0]}; check the name, revision and files"
        ) from error
    except ImportError as error:
        raise EnvironmentProblem(f"{what}: {str(error).strip().splitlines()[0]}") from error
    except (ValueError, KeyError) as error:
        text = str(error).strip()
        if "trust_remote_code" in text:
            raise UserError(
                f"{what} needs code of its own, which is not run; choose a model of transformers"
            ) from error
        if "Unrecognized configuration class" in text:
            raise UserError(f"{what}: transformers has no such task for it: {text.splitlines()[0]}") from error
        raise UserError(f"{what} cannot be loaded: {text.splitlines()[0] if text else error!r}") from error
