"""What a stage did to every parameter: ``stages/SS-NAME/proof.json``, its verdict and its words.

Owns the file's fields, the failure they amount to, and the warnings that go with a proof that holds. Imports no torch:
`stages` measures and makes it, `train` writes it before it saves the stage's end and judges it after, `walk` judges it
again when a run resumes there, and `report` shows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from launcher.errors import TrainingFailed, UserError
from launcher.run_dir import RunDir, write_atomic

MOST_NAMES = 8
"""Names an error lists; the proof's file has them all."""


class Entry(BaseModel):
    """Frozen, strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class ParameterProof(Entry):
    """What happened to one parameter."""

    name: str
    trained: bool
    """Whether the stage was to train it."""
    changed: bool
    """Whether any bit differs from the stage's start."""
    had_gradient: bool
    """Whether it ever had a gradient other than zero."""


class GroupProof(Entry):
    """What happened to the parameters of one group of the plan, or to the frozen ones (``frozen``)."""

    pattern: str
    trained: bool
    parameters: int
    """Tensors."""
    changed: int
    """Tensors of which any bit differs from the stage's start."""
    bit_identical: int
    """Tensors of which none does."""


class SlightProof(Entry):
    """A parameter that had a gradient and did not move because no update was large enough to be sure to move it."""

    name: str
    because: Literal["rate", "epsilon", "overflow", "skipped"]
    """rate: the learning rate is small for its values; epsilon: the gradients are, beside Adam's epsilon; overflow:
    they are so large that Adam's mean square is infinite; skipped: the optimizer left out every step."""
    update: float
    """The largest update."""
    gradient: float
    """The largest gradient."""
    half_unit: float
    """Half a unit in the last place of its largest value, in fp32: less is rounded away."""


class Proof(Entry):
    """What a stage did to every parameter."""

    index: int
    stage: str
    engine: dict[str, Any]
    """The engine and its sharding as built."""
    holds: bool
    """Nothing frozen moved, and all that was pushed enough to move did."""
    groups: list[GroupProof]
    moved_though_frozen: list[str]
    still_though_trained: list[str]
    """They had a gradient that must have moved them, and did not change."""
    unused: list[str]
    """To be trained, never a gradient: nothing in the forward pass leads from them to the loss."""
    too_slight: list[SlightProof] = []
    """They had a gradient and did not change, which rounding explains."""
    diverged: str | None = None
    """What to tell of the stage's loss, where it ran away."""
    is_accepted: bool = False
    """Whether the user goes on though it does not hold: ``thawline resume RUN --accept STAGE``."""
    parameters: list[ParameterProof]

    def raise_if_wrong(self, saved: str, run_dir: RunDir) -> None:
        """Fail the run if the proof does not hold. ``saved``: the checkpoint of the stage's end.

        Raises:
            TrainingFailed: with the names of the parameters.
        """
        if self.holds or self.is_accepted:
            return
        raise TrainingFailed(
            f"stage {self.stage}: {self._failure()}. Its end is saved as {saved}, and nothing is exported. "
            f"`thawline resume {run_dir.quoted} --accept {self.stage}` goes on with it as it is; to train the stage "
            f"again from the checkpoint before, delete {run_dir.checkpoints / saved}"
        )

    def _failure(self) -> str:
        engine = self.engine.get("engine")
        if self.moved_though_frozen:
            return (
                f"{len(self.moved_though_frozen)} frozen parameters changed: {shortened(self.moved_though_frozen)}; "
                f"this is a defect of the engine {engine}: please report it with the stage's proof.json"
            )
        return (
            f"{len(self.still_though_trained)} parameters had gradients that must have moved them and did not change: "
            f"{shortened(self.still_though_trained)}; the optimizer under {engine} did not step them: please report it "
            "with the stage's proof.json"
        )

    def summary(self) -> dict[str, Any]:
        """Counts for the log and the status."""
        trained = [group for group in self.groups if group.trained]
        return {
            "trained": sum(group.parameters for group in trained),
            "changed": sum(group.changed for group in trained),
            "frozen": sum(group.parameters for group in self.groups if not group.trained),
            "frozen_bit_identical": sum(group.bit_identical for group in self.groups if not group.trained),
            "unused": len(self.unused),
            "holds": self.holds,
        }

    def warnings(self) -> list[str]:
        """What to tell the user although the run goes on, each in a line."""
        found = [self.diverged] if self.diverged else []
        if not self.holds:
            found.append(f"stage {self.stage}: {self._failure()}" + "; accepted with --accept" * self.is_accepted)
        if self.unused:
            found.append(
                f"stage {self.stage}: {len(self.unused)} parameters were to train and never had a gradient: "
                f"{shortened(self.unused)}; the model does not use them for this task, or hands them no gradient"
            )
        return [*found, *self._of_slight()]

    def _of_slight(self) -> Iterator[str]:
        for because in ("rate", "epsilon", "overflow", "skipped"):
            if members := [one for one in self.too_slight if one.because == because]:
                names = shortened([one.name for one in members])
                yield f"stage {self.stage}: {len(members)} trained parameters did not move: {names}; " + _why(
                    members, is_diverged=self.diverged is not None
                )


def _why(members: Sequence[SlightProof], *, is_diverged: bool) -> str:
    """Why parameters did not move, all for the same reason, and what to do."""
    update, gradient = max(one.update for one in members), max(one.gradient for one in members)
    unit = min(one.half_unit for one in members)
    verb = "was" if update < unit else "may have been"
    rounded = (
        f"no update was above {update:.2g}, which {verb} lost to rounding (half a unit in the last place of their "
    )
    rounded += f"values is {unit:.2g})"
    match members[0].because:
        case "skipped":
            return "the optimizer left out every step, as fp16 does while it looks for a loss scale; train longer"
        case "overflow":
            over = f"their gradients, up to {gradient:.2g}, make the optimizer's mean square infinite and its updates 0"
            return f"{over}; lower the learning rate, or set clip_grad_norm"
        case "epsilon":
            below = f"their gradients, at most {gradient:.2g}, are below the optimizer's epsilon: {rounded}"
            return f"{below}; lower optimizer.epsilon, or leave them out of train"
    if is_diverged:
        return f"{rounded}; the loss diverged, so do not raise their learning rate"
    return f"{rounded}; raise the learning rate or layer_decay, or leave them out of train"


def read(run_dir: RunDir, index: int, stage: str) -> Proof | None:
    """A stage's proof; None where it has none.

    Raises: UserError when it is not of this version.
    """
    file = run_dir.proof(index, stage)
    try:
        return Proof.model_validate_json(file.read_bytes()) if file.is_file() else None
    except ValidationError as error:
        raise UserError(f"{file} is not of this version of thawline: {error.errors()[0]['msg']}; delete it") from error


def write(run_dir: RunDir, proof: Proof) -> None:
    """Write a stage's proof into its folder."""
    run_dir.stage(proof.index, proof.stage).mkdir(parents=True, exist_ok=True)
    write_atomic(run_dir.proof(proof.index, proof.stage), proof.model_dump_json(indent=1))


def accept(run_dir: RunDir, stages: Sequence[str], stage: str) -> None:
    """Note that the user goes on with a stage whose proof does not hold. ``stages``: of the plan, by index.

    Raises: UserError when there is no such stage, or it has no proof that fails.
    """
    if stage not in stages:
        raise UserError(f"--accept {stage}: {run_dir.path} has no such stage; its stages are {', '.join(stages)}")
    found = read(run_dir, stages.index(stage), stage)
    if found is None or found.holds:
        what = "has not been made yet" if found is None else "holds: there is nothing to accept"
        raise UserError(f"--accept {stage}: the proof of stage {stage} {what}; leave --accept out")
    write(run_dir, found.model_copy(update={"is_accepted": True}))


def warnings(run_dir: RunDir, stages: Sequence[str]) -> list[str]:
    """Of all the stages that have ended."""
    return [line for proof in _readable(run_dir, stages) for line in proof.warnings()]


def verdicts(run_dir: RunDir, stages: Sequence[str]) -> list[str]:
    """What a run's last line must not leave out: losses that ran away, proofs that do not hold."""
    found = []
    for proof in _readable(run_dir, stages):
        found += [proof.diverged] if proof.diverged else []
        found += [] if proof.holds else [f"the proof of stage {proof.stage} does not hold"]
    return found


def _readable(run_dir: RunDir, stages: Sequence[str]) -> Iterator[Proof]:
    """The proofs there are; one of another version of thawline has no warnings for this one."""
    for index, stage in enumerate(stages):
        with suppress(UserError):
            if found := read(run_dir, index, stage):
                yield found


def shortened(names: Sequence[str]) -> str:
    """Names in a row, those beyond the first few counted."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
