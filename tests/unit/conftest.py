"""A small plan, made without a model or data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from launcher.cluster import Cluster
from launcher.plan import RunPlan, resolve
from launcher.plan.data_facts import DataFacts
from launcher.plan.parameters import ModelFacts, ParameterFacts
from launcher.recipe import Recipe, reading

MakePlan = Callable[..., RunPlan]

# An example's time says what else the machine does; pytest's own limit ends what hangs.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")


@pytest.fixture
def make_recipe(tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe of two stages; keywords replace or add top-level keys."""

    def make(**changes: Any) -> Recipe:
        plain: dict[str, Any] = {
            "name": "tiny",
            "task": {"kind": "text-classification"},
            "model": {"source": "somewhere/tiny"},
            "data": {"source": "csv", "files": "rows.csv"},
            "batch": {"global_size": 8},
            "stages": [
                {
                    "name": "head",
                    "train": ["head"],
                    "epochs": 1,
                    "optimizer": {"kind": "adamw", "learning_rate": 1.0e-3},
                },
                {"name": "full", "train": ["all"], "epochs": 2, "layer_decay": 0.5},
            ],
        }
        file = tmp_path / "made_recipe.yaml"
        file.write_text(json.dumps(plain | changes))  # JSON is YAML
        return reading.load(file)

    return make


@pytest.fixture
def make_plan(make_recipe: Callable[..., Recipe]) -> MakePlan:
    """The plan of `make_recipe` on one CPU rank, 100 training rows, 12 blocks."""

    def make(recipe: Recipe | None = None, cluster: Cluster | None = None, **changes: Any) -> RunPlan:
        blocks = [f"encoder.{number}." for number in range(12)]
        names = ["embed.weight", *(f"{block}{kind}" for block in blocks for kind in ("weight", "bias")), "head.weight"]
        parameters = tuple(
            ParameterFacts(name, (4,) if name.endswith("bias") else (4, 4), "float32", not name.endswith("bias"))
            for name in names
        )
        facts = ModelFacts(parameters, tuple((block,) for block in blocks), ("head.",))
        data = DataFacts(
            train_rows=100,
            validation_rows=20,
            test_rows=0,
            labels=["bad", "good"],
            majority=0.6,
            columns=["id", "text", "label"],
        )
        machine = cluster or Cluster(gpus_per_node=0, ranks_per_node=1)
        return resolve(recipe or make_recipe(**changes), ".", machine, facts, data)

    return make
