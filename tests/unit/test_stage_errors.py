"""The errors that end a stage: what they name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from launcher import stage_errors
from launcher.errors import TrainingFailed
from launcher.run_dir import RunDir

STAGE: Any = SimpleNamespace(name="full", steps=4)


@pytest.fixture
def run(tmp_path: Any) -> Any:
    folder = RunDir(tmp_path)
    folder.latest.write_text("00-full-step-00000002\n")
    return SimpleNamespace(run_dir=folder)


def test_parameters_pass_until_one_is_not_finite(run: Any) -> None:
    whole, broken = torch.ones(2), torch.tensor([1.0, float("inf")])
    passing = stage_errors.finite(run, STAGE, iter([("a", whole), ("b", broken)]))
    assert next(passing) == ("a", whole)
    with pytest.raises(TrainingFailed, match=r"b is not finite after .* stage full.*00-full-step-00000002"):
        next(passing)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_validation_loss_that_is_not_finite_is_refused(run: Any, loss: float) -> None:
    stage_errors.refuse_diverged(run, STAGE, 3, {"loss": 0.5, "perplexity": float("inf")})
    with pytest.raises(TrainingFailed, match="after step 3 of 4 in stage full"):
        stage_errors.refuse_diverged(run, STAGE, 3, {"loss": loss})
