"""A stage's end is saved before it is judged: what rounding explains is a warning, what it does not is a failure that
throws nothing away, and a loss that runs away is told to the end."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from running import ROOT, TWEETS, metrics, proof, recipe, thawline, tiny_bert, weights
from transformers import AutoModelForImageClassification, EfficientNetConfig, EfficientNetImageProcessor

from launcher import checkpoint, cli, report
from launcher.models.weights import read_weights
from launcher.run_dir import RunDir

CONSTANT = {"kind": "constant"}


Turn = tuple[Path, Path, str, str]
"""Recipe, run directory, what is broken, stage whose proof is accepted before."""


def on_one_rank(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """How each ended; by one process, one after the other."""
    arguments = json.dumps([[*map(str, turn)] for turn in turns])
    script = Path(__file__).with_name("verdicts_on_ranks.py")
    done = subprocess.run(
        [sys.executable, str(script), arguments], capture_output=True, text=True, timeout=480, check=False, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == len(turns), done.stderr[-5000:]
    return found


def bert_recipe(folder: Path, stages: Sequence[dict[str, Any]], **changes: Any) -> Path:
    folder.mkdir()
    model = {"source": str(tiny_bert(folder / "bert")), "weights": "random"}
    data = TWEETS | {"limit": 60, "max_length": 8}
    return recipe(folder, [*stages], model=model, data=data, schedule=CONSTANT, **changes)


def efficientnet_recipe(folder: Path) -> Path:
    """A deep network of random weights, whose gradients vanish on their way down."""
    config = EfficientNetConfig(width_coefficient=0.1, depth_coefficient=0.3, hidden_dim=128, image_size=32)
    config.save_pretrained(folder / "model")
    size = {"height": 32, "width": 32}
    EfficientNetImageProcessor(size=size, include_top=False, rescale_offset=False).save_pretrained(folder / "model")
    noise = np.random.default_rng(0)
    for number in range(24):
        file = folder / "images" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file)
    content = {
        "name": "blind",
        "task": {"kind": "image-classification"},
        "model": {"source": str(folder / "model"), "weights": "random"},
        "data": {"source": "imagefolder", "files": str(folder / "images")},
        "batch": {"global_size": 8},
        "optimizer": {"kind": "adamw", "learning_rate": 1.0e-3},
        "stages": [{"name": "full", "train": ["all"], "steps": 3}],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder / "recipe.yaml"


def test_norms_that_a_small_rate_cannot_move_are_a_warning_in_plan_and_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three norms near 1 at 1.6e-10 and 8e-9; the fourth and the fifth, at 4e-7, are moved."""
    stage = {"name": "full", "train": ["all"], "steps": 3, "layer_decay": 0.02}
    file = bert_recipe(tmp_path / "bert", [stage], optimizer={"kind": "adamw", "learning_rate": 2.0e-5})
    run = tmp_path / "run"
    done = thawline("run", file, "--run-dir", run)
    still = {
        "bert.embeddings.LayerNorm.weight",
        "bert.encoder.layer.0.attention.output.LayerNorm.weight",
        "bert.encoder.layer.0.output.LayerNorm.weight",
    }
    before, after = read_weights(run / "checkpoints/00-full-step-00000000/model"), weights(run)
    assert {name for name, value in after.items() if torch.equal(value, before[name])} == still
    found = proof(run, "00-full")
    assert found["holds"]
    assert found["still_though_trained"] == []
    assert {one["name"] for one in found["too_slight"]} == still
    for one in found["too_slight"]:
        assert one["because"] == "rate"
        assert 0 < one["update"] < one["half_unit"] == 2.0**-25
    warnings = [line for line in done.stdout.splitlines() if line.startswith("warning: stage full: 3 ")]
    assert "3 norm weights may not move at rates of 1.6e-10 to 8e-09" in warnings[0]
    assert "3 trained parameters did not move: bert.embeddings.LayerNorm.weight, " in warnings[1]
    assert "no update was above 8e-09, which was lost to rounding" in warnings[1]
    phases = [line for line in done.stdout.splitlines() if line.endswith(" …")]
    assert [line.split()[0] for line in phases] == ["importing", "planning", "reading", "building", "taking"]
    assert any(line.startswith("first step done after ") for line in done.stdout.splitlines())
    assert json.loads((run / "status.json").read_text())["phase"] is None
    cli.plan(file)
    assert "warning: stage full: 3 norm weights may not move" in capsys.readouterr().err
    assert "did not move: bert.embeddings" in Path(report.write(RunDir(run))).read_text()


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """All the runs below, and how each turn ended."""
    folder = tmp_path_factory.mktemp("verdicts")
    (folder / "blind").mkdir()
    head, full = {"name": "head", "train": ["head"], "steps": 2}, {"name": "full", "train": ["all"], "steps": 2}
    adamw = {"kind": "adamw", "learning_rate": 1.0e-4}
    two = bert_recipe(folder / "two", [head, full], optimizer=adamw)
    slight = bert_recipe(folder / "slight", [full], optimizer=adamw | {"learning_rate": 1.0e-12})
    wild = bert_recipe(
        folder / "wild", [head | {"steps": 12}, head | {"name": "more"}],
        optimizer={"kind": "sgd", "learning_rate": 1.0e9}, clip_grad_norm=None,
    )  # fmt: skip
    turns: dict[str, Turn] = {
        "blind": (efficientnet_recipe(folder / "blind"), folder / "run-blind", "", ""),
        "left out": (two, folder / "run-left-out", "leaves out", ""),
        "left out, resumed": (two, folder / "run-left-out", "", ""),
        "left out, accepted": (two, folder / "run-left-out", "", "head"),
        "moved": (two, folder / "run-moved", "moves frozen", ""),
        "slight": (slight, folder / "run-slight", "takes none", ""),
        "wild": (wild, folder / "run-wild", "", ""),
    }
    return folder, dict(zip(turns, on_one_rank(list(turns.values())), strict=True))


Ended = tuple[Path, dict[str, dict[str, Any]]]


def test_norms_whose_gradients_are_below_epsilon_are_a_warning(ended: Ended) -> None:
    folder, ends = ended
    run = folder / "run-blind"
    assert ends["blind"]["code"] == 0, ends["blind"]["message"]
    slight = proof(run, "00-full")["too_slight"]
    assert len(slight) >= 10
    assert {one["because"] for one in slight} == {"epsilon"}
    assert all(one["gradient"] < 1e-8 and one["name"].endswith("weight") for one in slight)
    [warning] = [line for line in ends["blind"]["said"] if "did not move" in line]
    assert warning.startswith(
        f"warning: stage full: {len(slight)} trained parameters did not move: {slight[0]['name']}, "
    )
    assert "are below the optimizer's epsilon" in warning
    assert warning.endswith("lower optimizer.epsilon, or leave them out of train")
    before, after = read_weights(run / "checkpoints/00-full-step-00000000/model"), weights(run)
    assert all(torch.equal(after[one["name"]], before[one["name"]]) for one in slight)
    exported = AutoModelForImageClassification.from_pretrained(run / "model")
    assert exported.config.num_labels == 2


def test_what_the_optimizer_left_out_fails_after_the_stage_is_saved(ended: Ended) -> None:
    """The run stands there until its user accepts it: resuming trains nothing again, and exports nothing."""
    folder, ends = ended
    run = folder / "run-left-out"
    failed, resumed, accepted = (ends[f"left out{way}"] for way in ("", ", resumed", ", accepted"))
    assert failed["code"] == resumed["code"] == 4
    assert failed["message"] == resumed["message"]
    assert "stage head: 1 parameters had gradients that must have moved them and did not change" in failed["message"]
    assert "classifier.weight" in failed["message"]
    assert "Its end is saved as 00-head-step-00000002, and nothing is exported. " in failed["message"]
    assert f"`thawline resume {run} --accept head` goes on" in failed["message"]
    assert "learning rate" not in failed["message"]
    assert checkpoint.verify(run / "checkpoints/00-head-step-00000002") == []
    assert not any("stage 1 of 2" in line for line in resumed["said"])
    assert accepted["code"] == 0
    assert accepted["said"][-1].endswith("warning: the proof of stage head does not hold")
    assert proof(run, "01-full")["holds"]
    assert [line["stage"] for line in metrics(run) if line["split"] == "train"] == ["head"] * 2 + ["full"] * 2
    assert weights(run)


def test_a_frozen_weight_that_moved_fails_after_the_stage_is_saved(ended: Ended) -> None:
    folder, ends = ended
    run = folder / "run-moved"
    assert ends["moved"]["code"] == 4
    assert "stage head: 1 frozen parameters changed: bert.embeddings.word_embeddings.weight" in ends["moved"]["message"]
    assert checkpoint.verify(run / "checkpoints/00-head-step-00000002") == []
    assert not (run / "model").exists()
    assert json.loads((run / "status.json").read_text())["state"] == "failed"


def test_a_rate_too_small_to_move_anything_does_not_excuse_an_optimizer_that_does_nothing(ended: Ended) -> None:
    folder, ends = ended
    assert ends["slight"]["code"] == 4
    assert "did not step them" in ends["slight"]["message"]
    assert proof(folder / "run-slight", "00-full")["too_slight"] == []
    assert not (folder / "run-slight" / "model").exists()


def test_a_loss_that_runs_away_is_told_when_it_does_in_the_last_line_and_in_the_report(ended: Ended) -> None:
    folder, ends = ended
    run, said = folder / "run-wild", ends["wild"]["said"]
    assert ends["wild"]["code"] == 0, ends["wild"]["message"]
    losses = [line["loss"] for line in metrics(run) if line["split"] == "train" and line["stage"] == "head"]
    assert all(math.isfinite(loss) for loss in losses)
    assert min(losses[1:]) > 1e5
    first = next(
        number for number, line in enumerate(said) if line.startswith("warning: stage head diverged: at step 6 ")
    )
    assert first < next(number for number, line in enumerate(said) if line.startswith("stage head done"))
    assert "warning: stage head diverged: at step 6 its loss had run away from 1." in said[-1]
    assert said[-1].endswith("lower the learning rate, or set clip_grad_norm")
    assert not any("raise" in line for line in said)
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "finished"
    assert status["message"] == said[-1]
    assert "stage head diverged: at step 6" in Path(report.write(RunDir(run))).read_text()
