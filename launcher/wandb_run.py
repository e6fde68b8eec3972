"""A run in Weights & Biases, through wandb's own client.

Owns the choice between online and offline, the run's id and the names of the curves. wandb is imported here alone, and
only when a recipe asks for it. Called by `tracking` on the first rank.

The horizontal axis is ``optimizer_step`` over all stages, a metric like any other: wandb's own step can only grow, and
would drop what a resumed run logs again.
"""

from __future__ import annotations

import logging
import netrc
import os
import secrets
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from launcher.errors import EnvironmentProblem
from launcher.recipe import Wandb
from launcher.run_dir import RunDir, write_atomic

log = logging.getLogger(__name__)
AXIS = "optimizer_step"
_ID_ALPHABET = string.ascii_lowercase + string.digits
Mode = Literal["online", "offline", "disabled"]


class WandbRun:
    """One open run. The same id after a resume."""

    def __init__(self, run_dir: RunDir, name: str, settings: Wandb, config: Mapping[str, Any]) -> None:
        """Start wandb's client.

        Raises: EnvironmentProblem when it cannot be started as asked.
        """
        import wandb

        mode, self.choice = choose_mode(settings.mode, wandb.Settings().base_url)
        """``choice`` says what was chosen and why, for the console."""
        self.id = run_id(run_dir)
        self._is_gone = False
        run_dir.wandb.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                group=settings.group,
                tags=settings.tags,
                name=name,
                id=self.id,
                resume="allow",
                mode=mode,
                dir=run_dir.path,
                config=dict(config),
                settings=wandb.Settings(console="off", silent=True),
            )
        except (wandb.Error, OSError) as error:
            raise EnvironmentProblem(
                f"wandb could not start in mode {mode} (tracking.wandb.mode: {settings.mode}): {error}; log in with "
                "`wandb login` or set WANDB_API_KEY, or go on with --set tracking.wandb.mode=offline"
            ) from error
        self._run.define_metric("*", step_metric=AXIS)
        if mode == "offline":  # a resumed run has several; wandb uploads them in order, as one
            self.choice += f"; upload it with `wandb sync {run_dir.wandb}/offline-run-*-{self.id}`"

    def log(self, split: str, optimizer_step: int, values: Mapping[str, float | str]) -> None:
        """Curves ``train/loss``, ``validation/accuracy``, … over ``optimizer_step``."""
        curves = {f"{split}/{name}": value for name, value in values.items()} | {AXIS: optimizer_step}
        self._unless_gone(lambda: self._run.log(curves))

    def summarise(self, values: Mapping[str, float | str]) -> None:
        """The numbers in wandb's table of runs."""
        self._unless_gone(lambda: self._run.summary.update(dict(values)))

    def finish(self, exit_code: int) -> None:
        """Wait until all is uploaded, or on the disk when offline."""
        self._unless_gone(lambda: self._run.finish(exit_code=exit_code))

    def _unless_gone(self, tell: Callable[[], object]) -> None:
        """Do what talks to wandb's own process, while that lives.

        A signal to every process of a job, as SLURM sends it, ends wandb's at once while the ranks still save: that
        must not fail the run. What is lost are the curves from there to the save; ``metrics.jsonl`` has them.
        """
        from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

        if self._is_gone:
            return
        try:
            tell()
        except (ConnectionError, HandleAbandonedError, MailboxClosedError) as error:
            self._is_gone = True
            what = str(error) or type(error).__name__
            log.warning("wandb's own process is gone (%s): from here on its curves lack what metrics.jsonl has", what)


def choose_mode(asked: Literal["auto", "online", "offline", "disabled"], base_url: str) -> tuple[Mode, str]:
    """The mode, and the line that says so. ``auto``: WANDB_MODE if set, else online with a key, else offline.

    Raises: EnvironmentProblem when WANDB_MODE or the netrc file cannot be read.
    """
    if asked != "auto":
        return asked, f"wandb: {asked}, as the recipe says"
    if preset := os.environ.get("WANDB_MODE"):
        for mode in ("online", "offline", "disabled"):
            if preset == mode:
                return mode, f"wandb: {mode}, as WANDB_MODE says"
        raise EnvironmentProblem(f"WANDB_MODE={preset!r}: set it to online, offline or disabled, or unset it")
    if source := _key_source(base_url):
        return "online", f"wandb: online, with the key of {source}"
    return "offline", f"wandb: offline, as there is no WANDB_API_KEY and no login for {urlsplit(base_url).netloc}"


def run_id(run_dir: RunDir) -> str:
    """The run's id, made at its first start and kept in ``RUN/wandb_id``."""
    if run_dir.wandb_id.is_file():
        return run_dir.wandb_id.read_text().strip()
    made = "".join(secrets.choice(_ID_ALPHABET) for _ in range(8))
    write_atomic(run_dir.wandb_id, made + "\n")
    return made


def _key_source(base_url: str) -> str | None:
    """Where wandb will find a key, looking where its client looks."""
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if os.environ.get(variable):
            return variable
    candidates = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for candidate in candidates:
        file = Path(candidate).expanduser()
        if not file.exists():
            continue
        try:
            logins = netrc.netrc(file)
        except (netrc.NetrcParseError, OSError) as error:
            raise EnvironmentProblem(
                f"{candidate} cannot be read for a wandb key: {error}; correct it, set WANDB_API_KEY, or set "
                "tracking.wandb.mode to offline"
            ) from error
        for host in _hosts(base_url):
            if logins.authenticators(host):
                return f"{candidate} for {host}"
    return None


def _hosts(base_url: str) -> list[str]:
    """The server's name in a netrc file; wandb's own cloud has had two."""
    host = urlsplit(base_url).netloc
    return [host, "api.wandb.ai"] if host.endswith(".forge.coreweave.com") else [host]
