"""A run that diverges stops at once, names the step and the rows, and leaves the weights before it resumable; one that
cannot learn says so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import transformers
from running import recipe, thawline, tiny_bert


@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
def test_a_loss_that_is_not_finite_ends_the_run_with_step_and_rows(tmp_path: Path, strategy: str) -> None:
    file = recipe(
        tmp_path,
        [{"name": "wild", "train": ["all"], "steps": 8, "sharding": {"strategy": strategy}}],
        model={"source": str(tiny_bert(tmp_path / "bert")), "weights": "random"},
        optimizer={"kind": "sgd", "learning_rate": 1.0e30},
        schedule={"kind": "constant"},
        checkpoint={"every": "1st"},
    )
    run = tmp_path / "run"
    done = thawline("run", file, "--run-dir", run, check=False)
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    found = re.search(r"the (loss is|gradient's norm is) (nan|inf|-inf) at step (\d+) of 8 in stage wild", done.stderr)
    assert found, done.stderr
    rows = re.search(r"rows of the batch: ([\w:.\-, ]+)\. ", done.stderr)
    assert rows
    assert len(rows[1].split(", ")) == 8
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "failed"
    newest = (run / "LATEST").read_text().strip()
    assert f"The newest checkpoint is {newest}. " in done.stderr
    assert newest == f"00-wild-step-{int(found[3]) - 1:08d}"


def test_what_diverges_at_the_last_step_is_neither_finished_nor_exported(tmp_path: Path) -> None:
    file = recipe(
        tmp_path,
        [{"name": "wild", "train": ["all"], "steps": 1}],
        model={"source": str(tiny_bert(tmp_path / "bert")), "weights": "random"},
        optimizer={"kind": "sgd", "learning_rate": 1.0e36},
        schedule={"kind": "constant"},
    )
    run = tmp_path / "run"
    done = thawline("run", file, "--run-dir", run, check=False)
    assert done.returncode == 4, done.stderr
    assert "the validation loss is nan after step 1 of 1 in stage wild. The newest checkpoint is 00-wild" in done.stderr
    assert not (run / "model").exists()


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_a_loss_that_depends_on_nothing_that_trains_is_the_recipes_mistake(tmp_path: Path, strategy: str) -> None:
    model = tiny_bert(tmp_path / "xlnet")
    sizes = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32, "vocab_size": 30522}
    transformers.XLNetConfig(**sizes).save_pretrained(model)  # its mask_emb serves another task alone
    file = recipe(
        tmp_path,
        [{"name": "mask", "train": ["transformer.mask_emb"], "steps": 2, "sharding": {"strategy": strategy}}],
        model={"source": str(model), "weights": "random"},
    )
    done = thawline("run", file, "--run-dir", tmp_path / "run", check=False)
    assert done.returncode == 2, done.stderr
    assert "stage mask: train: transformer.mask_emb names 16 parameters, and this model" in done.stderr
    assert "Traceback" not in done.stderr
