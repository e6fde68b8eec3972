"""Run by `test_verdicts`: several runs of one rank in one process, each by the very way of ``launcher.worker``.

Argument: a JSON list of [recipe, run directory, what is broken, stage whose proof is accepted]; prints how each ended,
and what it said, as a JSON object a line.
"""

from __future__ import annotations

from launcher.ending import Ending

ending = Ending()  # before what registers with atexit is imported

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch

from launcher import optim, phases, proof, walk
from launcher.errors import ThawlineError
from launcher.run_dir import RunDir
from launcher.stop import StopRequest

Step = Callable[[torch.optim.Optimizer, float], float]
clipped_step = optim.clipped_step


def leaving_out(optimizer: torch.optim.Optimizer, max_norm: float) -> float:
    """A step that forgets one tensor."""
    forgotten = optimizer.param_groups[0]["params"][-1]
    before = forgotten.detach().clone()
    norm = clipped_step(optimizer, max_norm)
    with torch.no_grad():
        forgotten.copy_(before)
    return norm


def moving_what_is_frozen(optimizer: torch.optim.Optimizer, max_norm: float) -> float:
    """A step that moves a weight which is not its own."""
    with torch.no_grad():
        for parameter in frozen:
            parameter.add_(1e-3)
    return clipped_step(optimizer, max_norm)


def taking_none(optimizer: torch.optim.Optimizer, max_norm: float) -> float:
    """A step that only measures."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


frozen: list[torch.Tensor] = []
BROKEN: dict[str, Step] = {
    "": clipped_step, "leaves out": leaving_out, "moves frozen": moving_what_is_frozen, "takes none": taking_none
}  # fmt: skip


@contextlib.contextmanager
def broken(how: str) -> Iterator[None]:
    def build(stage: object, module: torch.nn.Module, carried: object) -> torch.optim.Optimizer:
        frozen[:] = [parameter for parameter in module.parameters() if not parameter.requires_grad][:1]
        return built(stage, module, carried)  # type: ignore[arg-type]

    built = optim.build
    with mock.patch.object(optim, "clipped_step", BROKEN[how]), mock.patch.object(optim, "build", build):
        yield


if __name__ == "__main__":
    runtime = walk.join()
    for recipe, run_dir, how, accepted in json.loads(sys.argv[1]):
        code, message, said = 0, "", io.StringIO()
        if accepted:
            proof.accept(RunDir(run_dir), ["head", "full"], accepted)
        with broken(how), contextlib.redirect_stdout(said):
            phases.begin(RunDir(run_dir))
            try:
                opened = walk.opened_run_dir(runtime, Path(recipe), [], Path(run_dir), StopRequest())
                if opened is not None:
                    walk.walk(runtime, RunDir(opened), StopRequest())
            except ThawlineError as error:
                code, message = error.exit_code, str(error)
        print(json.dumps({"code": code, "message": message, "said": said.getvalue().splitlines()}), flush=True)
    runtime.close()
    ending.is_done = True
