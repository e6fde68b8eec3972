"""ZeRO-3 models are sharded from the start and filled bit for bit, on two ranks (`sharded_models_on_ranks.py`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("sharded_models_on_ranks.py")
CASES = ["minilm-fp32", "llama-tied-bf16", "resnet-fp32", "vit-fp32"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    loaded: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return loaded


@pytest.mark.parametrize("case", CASES)
def test_no_rank_holds_a_whole_parameter_and_all_hold_the_right_bits(report: dict[str, Any], case: str) -> None:
    for rank in report[case]:
        assert rank["wrong"] == []
        assert rank["names_agree"]
        assert rank["local_elements"] <= rank["elements"] * 0.51


@pytest.mark.parametrize("case", CASES)
def test_buffers_are_those_of_an_unsharded_model(report: dict[str, Any], case: str) -> None:
    assert all(rank["buffers_agree"] for rank in report[case])
    assert report[case][0]["num_buffers"] > 0 or case == "vit-fp32"


def test_the_recipe_shapes_the_sharded_model_too(report: dict[str, Any]) -> None:
    assert all(rank["dropout"] == [0.25] for rank in report["minilm-fp32"])
    assert all(rank["tied"] for rank in report["llama-tied-bf16"])
    assert all(rank["generator_untouched"] for case in CASES for rank in report[case])


def test_a_plugin_of_an_earlier_stage_does_not_shard_twice(report: dict[str, Any]) -> None:
    assert report["plugin-alive"] == [True, True]


def test_weights_of_another_model_are_refused_on_all_ranks(report: dict[str, Any]) -> None:
    assert report["refuses"] == [True, True]
