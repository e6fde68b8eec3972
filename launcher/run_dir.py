"""Every path of a run, named once; and the one way its small files are written.

Owns the layout of ``RUN/``. Refuses to know what the files hold. Everybody who reads or writes a run's file asks here.

    RUN/ recipe.yaml  plan.json  status.json  metrics.jsonl  events.jsonl  wandb_id  LATEST  report.html  command
         skipped.jsonl
         logs/rank-N.log  logs/rank-N.error.json
         checkpoints/SS-STAGE-step-NNNNNNNN/    SS is the stage's index in the recipe, from 00
         stages/SS-STAGE/proof.json  stages/SS-STAGE/memory.json
         model/  wandb/
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import tempfile
from pathlib import Path
from typing import NamedTuple

from launcher.errors import EnvironmentProblem, ThawlineError, UserError

_CHECKPOINT = re.compile(r"^(\d{2,})-(.+)-step-(\d{8,})$")


class CheckpointName(NamedTuple):
    """What a checkpoint folder's name says; sorts by age within a run."""

    stage_index: int
    step: int
    """Optimizer steps of the stage that were done."""
    stage: str


class RunDir:
    """The paths of one run. Making one touches no disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    @property
    def quoted(self) -> str:
        """The folder as a shell's word, for commands in messages."""
        return shlex.quote(str(self.path))

    def create(self) -> None:
        """Make the folder and those that every run fills, and see that files can be written there.

        Raises:
            UserError: the path leads to or through a file, or is none.
            EnvironmentProblem: this user may not write there, or the disk does not take it.
        """
        folder = self.path
        try:
            for folder in (self.path, self.logs, self.checkpoints, self.stages):
                folder.mkdir(parents=True, exist_ok=True)
            folder = self.path
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise self.refusal(folder, error) from error

    def require_possible(self) -> None:
        """See that the folder can be made, or written where it is there, and make nothing yet.

        Raises: UserError, EnvironmentProblem as `create`.
        """
        there = self.path.absolute()
        try:
            while not os.path.lexists(there):
                there = there.parent
            if not there.is_dir():
                raise NotADirectoryError
            if len(self.path.name.encode()) > os.pathconf(there, "PC_NAME_MAX"):
                raise OSError(errno.ENAMETOOLONG, "")
            if not os.access(there, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise self.refusal(there, error) from error

    def refusal(self, folder: Path, error: OSError) -> ThawlineError:
        """What to say of the run's folder, or of something in it, that cannot be made or written."""
        if isinstance(error, FileExistsError | NotADirectoryError):
            file = next((one for one in (folder, *folder.parents) if one.is_symlink() or one.is_file()), folder)
            what = "is a link that leads nowhere" if file.is_symlink() and not file.exists() else "is a file"
            where = f"{self.path}: it" if file.absolute() == self.path.absolute() else f"{self.path}: {file}"
            return UserError(f"{where} {what}, and a run needs a folder; choose another --run-dir")
        if error.errno == errno.ENAMETOOLONG:
            return UserError(f"{self.path}: the name is too long for a folder; choose another --run-dir")
        return EnvironmentProblem(
            f"{folder} cannot be written ({error.strerror}); choose another --run-dir, or see to its owner and its disk"
        )

    @property
    def recipe(self) -> Path:
        """The recipe as given, overrides applied."""
        return self.path / "recipe.yaml"

    @property
    def plan(self) -> Path:
        """The resolved plan; workers read only this."""
        return self.path / "plan.json"

    @property
    def data_facts(self) -> Path:
        """What was found in the data, until there is a plan, which has it."""
        return self.path / "data_facts.json"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def command(self) -> Path:
        """A line: what started the run on machines other than that of the command, and goes on with it there."""
        return self.path / "command"

    def going_on(self) -> str:
        """The command that goes on with the run from its newest checkpoint."""
        if self.command.is_file():
            return self.command.read_text().strip()
        return f"thawline resume {self.quoted}"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """One JSON object a line: what made a run go on otherwise than it was planned."""
        return self.path / "events.jsonl"

    @property
    def skipped(self) -> Path:
        """One JSON object a line: a row that ``data.on_bad_row: skip`` left out, and why; absent without that key."""
        return self.path / "skipped.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def log(self, rank: int) -> Path:
        """What a rank printed: stderr, and stdout too for every rank but 0."""
        return self.logs / f"rank-{rank}.log"

    def error(self, rank: int) -> Path:
        """Why a rank ended, as JSON; absent while all is well."""
        return self.logs / f"rank-{rank}.error.json"

    @property
    def launcher_lock(self) -> Path:
        """Held by the one launcher that may work on this run."""
        return self.path / "launcher.lock"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, stage_index: int, stage: str, step: int) -> Path:
        return self.checkpoints / f"{stage_index:02d}-{stage}-step-{step:08d}"

    @property
    def latest(self) -> Path:
        """A line: the name of the newest committed checkpoint."""
        return self.path / "LATEST"

    @property
    def stages(self) -> Path:
        return self.path / "stages"

    def stage(self, index: int, name: str) -> Path:
        return self.stages / f"{index:02d}-{name}"

    def proof(self, index: int, name: str) -> Path:
        """Which parameters trained and which are bit-identical to the stage's start."""
        return self.stage(index, name) / "proof.json"

    def memory(self, index: int, name: str) -> Path:
        """What the stage took of each rank's memory, and what was predicted."""
        return self.stage(index, name) / "memory.json"

    @property
    def model(self) -> Path:
        """The export."""
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        """The adapters alone, of a run that has some."""
        return self.path / "adapter"

    @property
    def wandb(self) -> Path:
        """The folder that wandb's client makes its own ``wandb/`` in is the run's; this is that one."""
        return self.path / "wandb"

    @property
    def wandb_id(self) -> Path:
        return self.path / "wandb_id"


def parse_checkpoint(name: str) -> CheckpointName | None:
    """What a folder's name says, or None when it is not a committed checkpoint's (temporary ones have other names)."""
    match = _CHECKPOINT.match(name)
    return CheckpointName(int(match[1]), int(match[3]), match[2]) if match else None


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace ``path`` so that a reader, or a crash at any moment, sees the old content or the new, never a part.

    The bytes are on the disk before the name is, and the name before this returns.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` survive a power cut (an fsync of the directory)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
