"""Whether the Hugging Face hub can be asked, and what its refusals mean for a recipe.

Owns the switch to the libraries' offline mode. They try a hub that does not answer six times for each file, about 25
seconds, also for files that are in their cache: a rank would need minutes to start. Downloads nothing itself, and knows
no torch. Called where a recipe's model and data are about to be read, and by the two modules that read them.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from launcher.errors import UserError
from launcher.recipe import Recipe
from launcher.recipe.data import HubData

log = logging.getLogger(__name__)
OFFLINE = "HF_HUB_OFFLINE"
TIMEOUT_S = 3
PROXIES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def endpoint() -> str:
    """The hub's address."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def stay_offline_if_unreachable(recipe: Recipe) -> None:
    """Use the hub's cache alone, here and in processes started later, if the recipe needs it and nothing answers."""
    if is_lost(recipe):
        go_offline()


def is_lost(recipe: Recipe) -> bool:
    """Whether the recipe needs the hub and nothing answers there; says so.

    Behind a proxy nothing is tried, and whoever set HF_HUB_OFFLINE has decided already.
    """
    if OFFLINE in os.environ or not _needs_hub(recipe) or any(os.environ.get(name) for name in PROXIES):
        return False
    url = urlsplit(endpoint())
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        socket.create_connection((url.hostname or "", port), timeout=TIMEOUT_S).close()
    except OSError as error:
        log.warning("the hub, %s, cannot be reached (%s): what its cache holds is used", endpoint(), error)
        return True
    return False


def go_offline() -> None:
    """Switch the libraries to their offline mode, here and in processes started later."""
    os.environ[OFFLINE] = "1"
    # The libraries read the variable when they are imported, which may have been before.
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            vars(sys.modules[name])[OFFLINE] = True


def is_offline() -> bool:
    """Whether the libraries will not ask the hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cached_commit(kind: str, name: str, revision: str | None) -> str | None:
    """The commit that a branch or tag of a repository was when it was last fetched; None: it never was.

    ``kind`` is ``model`` or ``dataset``.
    """
    folder = _folder(kind, name)
    reference = folder / "refs" / (revision or "main")
    if reference.is_file():
        return reference.read_text().strip()
    return revision if revision and (folder / "snapshots" / revision).is_dir() else None


def snapshot(kind: str, name: str, commit: str) -> Path:
    """The folder in which the hub's library keeps what it fetched of a commit; it may hold but some of the files."""
    return _folder(kind, name) / "snapshots" / commit


def _folder(kind: str, name: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)


def refusal(error: BaseException, key: str, name: str, revision: str | None) -> UserError | None:
    """What the hub's refusal means for ``key`` (``model.source`` or ``data.dataset``); None: it was no refusal.

    The libraries' own errors have it as a cause, or alone in their text.
    """
    kind = "model" if key == "model.source" else "dataset"
    page = f"{endpoint()}/{name}" if kind == "model" else f"{endpoint()}/datasets/{name}"
    for found in _causes(error):
        type_name, text = type(found).__name__, str(found)
        if type_name == "HfHubHTTPError" and _status(found) in (401, 403):
            return UserError(f"{key}: the hub refuses {name!r} ({text.splitlines()[0]}): {LOG_IN}")
        is_not_found = type_name == "DatasetNotFoundError"
        if type_name == "GatedRepoError" or (is_not_found and "gated" in text):
            return UserError(f"{key}: {name!r} is gated: accept its terms at {page}, then {LOG_IN}")
        if type_name == "RevisionNotFoundError" or (is_not_found and text.startswith("Revision ")):
            section = key.partition(".")[0]
            return UserError(
                f"{section}.revision: {revision!r}: {name} has no such branch, tag or commit; {page} lists them"
            )
        if type_name == "RepositoryNotFoundError" or is_not_found:
            return UserError(
                f"{key}: {name!r}: the hub has no such {kind}, or it is private; check the name at {endpoint()}, and "
                f"for a private one {LOG_IN}"
            )
    return None


def is_unreachable(error: BaseException) -> bool:
    """Whether an error of the libraries comes of a hub that does not answer, or answers that it is out of order."""
    names = {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}
    return any(
        type(found).__name__ in names
        or (type(found).__name__ == "HfHubHTTPError" and _status(found) >= 500)  # others that it raises are narrower
        or isinstance(found, ConnectionError)
        or "TransportError" in (kind.__name__ for kind in type(found).__mro__)  # of httpx or httpx2
        for found in _causes(error)
    )


def _status(error: BaseException) -> int:
    """Of the answer that an error tells of; 503 where there was none."""
    return int(getattr(getattr(error, "response", None), "status_code", None) or 503)


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _needs_hub(recipe: Recipe) -> bool:
    is_path = recipe.model.source.startswith((".", "/", "~", "package:", "torchvision:"))
    return not is_path or isinstance(recipe.data, HubData)
