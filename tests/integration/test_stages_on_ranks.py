"""Several stages, each under its own sharding, on two ranks, through the real command."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from running import ROOT, metrics, proof, recipe, thawline, walks, weights
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from launcher.memory_record import read_all
from launcher.run_dir import RunDir

STAGES: list[dict[str, Any]] = [
    {"name": "head", "train": ["head"], "steps": 3, "sharding": {"strategy": "ddp"}},
    {
        "name": "top", "train": ["head", "layers[-2:]"], "steps": 3,
        "sharding": {"strategy": "zero3", "offload": "cpu"}, "optimizer_state": "carry",
    },
    {
        "name": "full", "train": ["all"], "steps": 3, "layer_decay": 0.9, "sharding": {"strategy": "zero2"},
        "evaluate": {"every": "2st", "best": "loss"},
    },
    {
        "name": "more", "train": ["backbone"], "steps": 2, "sharding": {"strategy": "zero1", "offload": "cpu"},
        "evaluate": {"every": "2st", "best": "loss"},
    },
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    file = recipe(folder, STAGES)
    thawline("run", file, "--ranks", "2", "--run-dir", folder / "run")
    return folder / "run"


def test_each_stage_ran_under_the_engine_it_asked_for(run: Path) -> None:
    engines = [proof(run, f"{index:02d}-{stage['name']}")["engine"] for index, stage in enumerate(STAGES)]
    assert [engine["engine"] for engine in engines] == ["DistributedDataParallel", *["DeepSpeedEngine"] * 3]
    assert [engine["zero_stage"] for engine in engines] == [0, 3, 2, 1]
    assert [engine["offload"] for engine in engines] == ["none", "cpu", "none", "cpu"]
    assert {engine["ranks"] for engine in engines} == {2}


def test_exactly_the_thawed_parameters_changed(run: Path) -> None:
    for index, stage in enumerate(STAGES):
        found = proof(run, f"{index:02d}-{stage['name']}")
        assert found["holds"]
        by_name = {p["name"]: p for p in found["parameters"]}
        assert len(by_name) == 105
        for name, parameter in by_name.items():
            thawed = {
                "head": name.startswith("classifier."),
                "top": name.startswith(("classifier.", "bert.encoder.layer.4.", "bert.encoder.layer.5.")),
                "full": True,
                "more": not name.startswith("classifier."),
            }[stage["name"]]
            assert parameter["trained"] == thawed == parameter["changed"], (stage["name"], name)


def test_each_stage_measured_the_memory_that_was_predicted(run: Path) -> None:
    """Of the rank that had most, in its file, in the status, and against another plan of the same recipe."""
    records = {record.stage: record for record in read_all(RunDir(run))}
    assert list(records) == [stage["name"] for stage in STAGES]
    for name, record in records.items():
        found = record.compared()
        assert (found is None) == (name in ("top", "more")), "what is offloaded is in the same memory on a CPU rank"
        assert found is None or abs(found.error) < 0.01, str(found)
        assert record.measured.resident
        assert len(record.ranks) == 2
        assert (record.measured.activations is None) == (name == "top")
    shown = thawline("status", run).stdout
    assert "memory      full: " in shown
    assert "time        full: " in shown
    assert json.loads(thawline("status", run, "--json").stdout)["memory"]["full"]["measured"]["optimizer"] > 0
    table = thawline("plan", run.parent / "recipe.yaml", "--compare", run).stdout
    first_words = [line.split()[0] for line in table.splitlines() if line.strip()]
    names = ["head", "top", "full", "more"]
    assert [word for word in first_words if word in names] == names, "time of all"


def test_the_export_loads_with_transformers_and_starts_from_minilm(run: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert model.config.id2label == {0: "negative", 1: "neutral", 2: "positive"}
    logits = model(**tokenizer("what a day", return_tensors="pt")).logits
    assert logits.shape == (1, 3)


def test_metrics_tell_the_whole_run(run: Path) -> None:
    lines = metrics(run)
    steps = [(line["stage"], line["step"]) for line in lines if line["split"] == "train"]
    assert steps == [(stage["name"], step) for stage in STAGES for step in range(1, stage["steps"] + 1)]
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines if line["split"] == "train")
    evaluations = [(line["stage"], line["step"]) for line in lines if line["split"] == "validation"]
    assert evaluations == [("head", 3), ("top", 3), ("full", 2), ("full", 3), ("more", 2)]
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "finished"


def test_the_export_is_the_best_evaluation_and_evaluate_finds_its_metric_again(run: Path) -> None:
    chosen_among = ("full", "more")  # of the stages that name a metric
    measured = [line for line in metrics(run) if line["split"] == "validation" and line["stage"] in chosen_among]
    assert len(measured) >= 3
    best = min(line["loss"] for line in measured)
    found = json.loads(thawline("evaluate", run).stdout)
    assert found["loss"] == pytest.approx(best, rel=1e-5)
    rows = run.parent / "rows.csv"
    rows.write_text('id,text,label\n007,"I love this",mine\n008,"no, never",\n')
    lines = thawline("predict", run, "I love this", rows).stdout.splitlines()
    answer, same, other = map(json.loads, lines)
    assert answer["label"] in ("negative", "neutral", "positive")
    assert (same["id"], same["text"], same["input_label"]) == ("007", "I love this", "mine")
    assert (same["label"], other["id"], other["input_label"]) == (answer["label"], "008", None)
    model = AutoModelForSequenceClassification.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    for row in (same, other):
        scores = model(**tokenizer(row["text"], return_tensors="pt")).logits.softmax(-1)[0].tolist()
        assert row["scores"] == pytest.approx(
            {model.config.id2label[at]: score for at, score in enumerate(scores)}, abs=1e-5
        )


OVERRIDES = ["data.limit=60", "data.split.validation=0.1"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same two stages under every sharding on two ranks, and on one rank with twice the accumulation."""
    folder = tmp_path_factory.mktemp("straight")
    runs = {}
    for kind in ("ddp", "zero1", "zero2", "zero3", "one rank"):
        sharding = {"strategy": "ddp" if kind == "one rank" else kind}
        stages = [
            {"name": "head", "train": ["head"], "steps": 2, "sharding": sharding},
            # 54 rows in batches of 16 end with a window of 6, spread over 8 or 4 micro-batches: some have no row.
            {"name": "full", "train": ["all"], "epochs": 1, "sharding": sharding, "batch": {"global_size": 16}},
        ]
        runs[kind] = folder / kind.replace(" ", "-")
        runs[kind].mkdir()
        recipe(runs[kind], stages, evaluate={"every": "end"})
    turns = {kind: (path / "recipe.yaml", OVERRIDES, path / "run") for kind, path in runs.items()}
    alone = turns.pop("one rank")
    walks(*turns.values())
    walks(alone, ranks=1)
    return {kind: path / "run" for kind, path in runs.items()}


@pytest.mark.parametrize("kind", ["zero1", "zero2", "zero3", "one rank"])
def test_every_sharding_and_one_rank_end_with_the_same_weights(straight: dict[str, Path], kind: str) -> None:
    expected, found = weights(straight["ddp"]), weights(straight[kind])
    assert expected.keys() == found.keys()
    difference = {name: float((found[name] - value).norm() / value.norm()) for name, value in expected.items()}
    # Softmax does not see a key bias: its true gradient is zero, and Adam makes steps of the rounding that is left.
    noise = {name for name in difference if name.endswith("attention.self.key.bias")}
    assert len(noise) == 6
    assert max(value for name, value in difference.items() if name not in noise) < 1e-5
    both = [torch.cat([tensors[name].flatten() for name in expected]) for tensors in (expected, found)]
    assert float((both[0] - both[1]).norm() / both[0].norm()) < 1e-6
    losses = [line["loss"] for line in metrics(straight["ddp"])]
    assert [line["loss"] for line in metrics(straight[kind])] == pytest.approx(losses, rel=1e-5)


LAUNCHERS = {
    "thawline": ["-m", "launcher", "run", "--ranks", "2"],
    "accelerate": [
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "launcher.worker",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", LAUNCHERS)
def test_other_launchers_give_the_same_bits(straight: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Those of torchrun's ranks, which had trained under other shardings before."""
    file = straight["zero2"].parent / "recipe.yaml"
    overrides = [part for change in OVERRIDES for part in ("--set", change)]
    command = [sys.executable, *LAUNCHERS[name], str(file), "--run-dir", str(tmp_path / "run"), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=480, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    expected = weights(straight["zero2"])
    assert all(torch.equal(value, expected[key]) for key, value in weights(tmp_path / "run").items())
