"""Engines of every sharding, one after the other in one process group of two ranks (`engines_on_ranks.py`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import engines_on_ranks
import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).with_name("engines_on_ranks.py")
STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
RUNS = [f"{layout}-{strategy}" for layout, strategy in engines_on_ranks.RUNS]
TRAINED = {"body.weight", "body.bias", "head.weight", "unused.weight"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("engines")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=480, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    loaded: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return loaded


def difference(a: dict[str, Any], b: dict[str, Any], names: set[str] | None = None) -> float:
    assert a.keys() == b.keys()
    return max(float(np.abs(np.array(a[n]) - np.array(b[n])).max()) for n in names or a.keys())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_engine_is_what_was_asked_for(report: dict[str, Any], precision: str, strategy: str) -> None:
    engine = report[f"{precision}-{strategy}"]["engine"]
    assert engine["ranks"] == 2
    assert engine["zero_stage"] == STRATEGIES.index(strategy)
    assert engine["engine"] == ("DistributedDataParallel" if strategy == "ddp" else "DeepSpeedEngine")


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_all_strategies_end_with_the_same_weights_in_fp32(report: dict[str, Any], strategy: str) -> None:
    ours, ddp = report[f"fp32-{strategy}"], report["fp32-ddp"]
    assert difference(ours["ends"], ddp["ends"]) < 1e-6
    assert ours["norms"] == pytest.approx(ddp["norms"], rel=1e-6)
    assert difference(ddp["begins"], ddp["ends"], {"body.weight"}) > 1e-3


@pytest.mark.parametrize("name", RUNS)
def test_saved_and_loaded_engine_continues_to_the_same_bits(report: dict[str, Any], name: str) -> None:
    """Those of the reference, with the step in C++."""
    assert difference(report[name]["ends"], report[name]["resumed"]) == 0.0


@pytest.mark.parametrize("name", RUNS)
def test_masters_begin_with_every_bit_of_the_stage_before(report: dict[str, Any], name: str) -> None:
    assert difference(report[name]["begins"], report["fp32-ddp"]["begins"], TRAINED) == 0.0


@pytest.mark.parametrize("name", RUNS)
def test_carried_optimizer_state_continues_to_the_same_bits(report: dict[str, Any], name: str) -> None:
    run = report[name]
    assert difference(run["continued"], run["straight"]) == 0.0
    assert difference(run["ends"], run["straight"]) > 0.0
    assert run["seen_after"] == dict.fromkeys(TRAINED, 7)


def test_split_masters_under_ddp_give_the_bits_of_zero_1(report: dict[str, Any]) -> None:
    """Both have a module in bf16, average gradients in bf16 and step in fp32, on partitions or on halves of weights."""
    ours, zero1, autocast = (report[name] for name in ("split16-ddp", "bf16-zero1", "bf16-ddp"))
    assert difference(ours["ends"], zero1["ends"], TRAINED) == 0.0
    assert difference(ours["ends"], autocast["ends"], TRAINED) > 0.0


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_moments_in_bf16_are_bf16_and_near(report: dict[str, Any], strategy: str) -> None:
    halves, fulls = (report[f"{layout}-{strategy}"] for layout in ("moments", "bf16"))
    for (_, _, half), (_, _, full) in zip(halves["moments"], fulls["moments"], strict=True):
        for key, value in half.items():
            values = torch.tensor(value)
            assert torch.equal(values, values.bfloat16().float())
            assert torch.allclose(values, torch.tensor(full[key]), rtol=0.1, atol=1e-2)
    assert difference(halves["ends"], fulls["ends"], TRAINED) > 0.0


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_closed_engine_has_given_back_its_memory(report: dict[str, Any], precision: str, strategy: str) -> None:
    assert report[f"{precision}-{strategy}"]["left"] == 0


def test_batch_norm_in_bf16_under_zero_is_refused_by_name() -> None:
    from torch import nn

    from launcher.backends.engine import refuse_mixed_norms
    from launcher.errors import UserError

    norms = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    wanted = ("zero2", "bf16"), ("zero2", "fp32"), ("ddp", "split16")
    bf16, fp32, split16 = (
        engines_on_ranks.stage_plan(strategy, layout, ["body.weight"], 1, 1) for strategy, layout in wanted
    )
    with pytest.raises(UserError, match=r"^stages\.zero2\.precision: bf16: .*take fp32, or sharding\.strategy: ddp"):
        refuse_mixed_norms(norms, bf16)
    with pytest.raises(UserError, match=r"^stages\.ddp\.precision: bf16: with optimizer\.master .*, or master: none"):
        refuse_mixed_norms(norms, split16)
    refuse_mixed_norms(norms, fp32)
    refuse_mixed_norms(nn.Linear(3, 3), bf16)
