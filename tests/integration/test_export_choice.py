"""Which weights a run exports: the best evaluation's, or the last where the last stage asks for none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from running import recipe, thawline, tiny_bert, weights

from launcher.models.weights import read_weights

STAGE: dict[str, Any] = {"train": ["head"], "steps": 3, "evaluate": {"every": "1st", "best": "loss"}}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two models are equal to the bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_stage_without_best_exports_the_last_weights_whatever_was_best_before(tmp_path: Path) -> None:
    model = {"source": str(tiny_bert(tmp_path / "bert")), "weights": "random"}
    last = {"name": "last", "train": ["head"], "steps": 3, "evaluate": {"every": "1st", "best": None}}
    unseen = {"name": "unseen", "train": ["head"], "steps": 1, "evaluate": {"every": "never", "best": None}}
    file = recipe(tmp_path, [{"name": "first", **STAGE}, last, unseen], model=model)
    done = thawline("run", file, "--run-dir", tmp_path / "run")
    assert same(weights(tmp_path / "run"), read_weights(tmp_path / "run/checkpoints/02-unseen-step-00000001/model"))
    assert "Not measured" in (tmp_path / "run/model/README.md").read_text(), "what an earlier stage measured is not it"
    assert "majority class" not in done.stdout.splitlines()[-1]
