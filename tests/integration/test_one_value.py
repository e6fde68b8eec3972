"""One value's way: what a recipe says about a stage's steps, through the plan, to the weights that a run wrote.

One real run of four short stages on one rank. Every window is the whole of the data, so that the steps can be taken
again here in plain PyTorch without asking thawline which rows were in them. Seven rows in micro-batches of two: a mean
of means would be another loss.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from running import metrics, recipe, thawline, tiny_bert
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from launcher.models.weights import read_weights
from launcher.plan import RunPlan
from launcher.recipe import Stage, reading

ROWS = [
    ("a fine day", "good"), ("what a terrible, terrible way to lose a good book", "bad"), ("no", "bad"),
    ("yes, and again yes", "good"), ("the rain it raineth every day upon the just and the unjust", "bad"),
    ("nothing but sun", "good"), ("we were late and it was closed", "bad"),
]  # fmt: skip
MAX_LENGTH = 8
LAYERS = 2
STAGES: list[dict[str, Any]] = [
    {
        "name": "whole", "train": ["all"], "steps": 4, "layer_decay": 0.5, "clip_grad_norm": 0.05,
        "optimizer": {"learning_rate": 2.0e-2, "weight_decay": 0.01, "betas": [0.8, 0.95], "epsilon": 1.0e-3},
        "schedule": {"kind": "cosine", "warmup": 0.5, "end": 0.1},
    },
    {
        "name": "blocks", "train": ["layers[:]"], "steps": 5, "layer_decay": 0.7, "clip_grad_norm": 0.002,
        "optimizer": {"kind": "sgd", "learning_rate": 0.37, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
        "schedule": {"kind": "exponential", "warmup": 0.4, "end": 0.01},
    },
    {
        "name": "line", "train": ["head"], "steps": 5, "optimizer": {"learning_rate": 3.0e-3},
        "schedule": {"kind": "linear", "warmup": 0.2, "end": 0.25},
    },
    {"name": "flat", "train": ["head"], "steps": 4, "schedule": {"kind": "constant", "warmup": 0.75}},
]  # fmt: skip
TOP_RATE = 1.0e-4
"""What a stage that says nothing gets."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe, the model's configuration and the finished run."""
    folder = tmp_path_factory.mktemp("one_value")
    (folder / "rows.csv").write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in ROWS))
    file = recipe(
        folder, STAGES,
        model={
            "source": str(tiny_bert(folder / "bert")), "weights": "random", "dropout": 0.0,
            "head": {"init": "xavier_uniform"},
        },
        data={"source": "csv", "files": "rows.csv", "split": {"validation": 0}, "max_length": MAX_LENGTH},
        checkpoint={"every": "100st", "keep": 99},
    )  # fmt: skip
    thawline("run", file, "--ranks", "1", "--run-dir", folder / "run")
    return folder


# --- the textbook -----------------------------------------------------------------------------------------------------
def rate_factor(kind: str, warmup: float, end: float, step: int, steps: int) -> float:
    """Of the step after ``step`` finished ones: up in a straight line over the warm-up, then down to ``end``."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    way = (step - rising) / (steps - rising)
    return {
        "constant": 1.0,
        "linear": (1 - way) * 1 + way * end,
        "cosine": end + (1 - end) * (1 + math.cos(math.pi * way)) / 2,
        "exponential": math.exp(way * math.log(end)) if end else math.nan,
    }[kind]


def factors(stage: dict[str, Any]) -> list[float]:
    schedule = stage["schedule"]
    return [
        rate_factor(schedule["kind"], schedule["warmup"], schedule.get("end", 0.0), step, stage["steps"])
        for step in range(stage["steps"])
    ]


def depth(name: str) -> int:
    """Below the head: the last block 1, the first 2, embeddings 3; the pooler feeds the head."""
    if ".layer." in name:
        return LAYERS - int(name.partition(".layer.")[2].partition(".")[0])
    return LAYERS + 1 if "embeddings" in name else 0


def is_trained(name: str, stage: dict[str, Any]) -> bool:
    return {"all": True, "layers[:]": ".layer." in name, "head": name.startswith("classifier.")}[stage["train"][0]]


def model_at(written: Path, checkpoint: str) -> nn.Module:
    config = AutoConfig.from_pretrained(written / "bert", num_labels=2)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    module: nn.Module = AutoModelForSequenceClassification.from_config(config)
    module.load_state_dict(read_weights(written / "run" / "checkpoints" / checkpoint / "model"), strict=False)
    return module


def optimizer_of(stage: dict[str, Any], module: nn.Module) -> torch.optim.Optimizer:
    settings = stage["optimizer"]
    groups = [
        {
            "params": [parameter],
            "lr": settings["learning_rate"] * stage["layer_decay"] ** depth(name),
            "weight_decay": settings["weight_decay"] if parameter.ndim > 1 else 0.0,
        }
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
    if settings.get("kind") == "sgd":
        return torch.optim.SGD(groups, momentum=settings["momentum"], nesterov=settings["nesterov"])
    return torch.optim.AdamW(groups, betas=settings["betas"], eps=settings["epsilon"])


# --- the tests --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("index", range(len(STAGES)), ids=lambda index: STAGES[index]["name"])
def test_the_rate_of_the_recipe_is_the_rate_of_every_line(index: int, written: Path) -> None:
    said = STAGES[index]
    rate = said.get("optimizer", {}).get("learning_rate", TOP_RATE)
    plan = RunPlan.model_validate_json((written / "run" / "plan.json").read_text())
    on_disk = json.loads((written / "run" / "plan.json").read_text())["stages"][index]
    for stage in (reading.load(written / "recipe.yaml").stages[index], plan.stages[index].settings):
        assert isinstance(stage, Stage)
        assert stage.optimizer.learning_rate == rate
        assert stage.layer_decay == said.get("layer_decay")
        assert stage.schedule.model_dump() == said["schedule"]
    assert on_disk["settings"]["optimizer"]["learning_rate"] == rate
    planned = {name: group["learning_rate"] for group in on_disk["groups"] for name in group["names"]}
    assert planned == pytest.approx({name: rate * said.get("layer_decay", 1.0) ** depth(name) for name in planned})
    assert all(is_trained(name, said) for name in planned)
    lines = [line for line in metrics(written / "run") if line["stage"] == said["name"] and line["split"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, said["steps"] + 1))
    largest = max(planned.values())
    assert [line["learning_rate"] for line in lines] == pytest.approx([largest * factor for factor in factors(said)])


def test_the_rates_differ_from_step_to_step_and_stage_to_stage(written: Path) -> None:
    """The test above would pass on a schedule that does nothing, were the expected rates all alike."""
    assert len({line["learning_rate"] for line in metrics(written / "run") if line["split"] == "train"}) > 12
    blocks = [line["learning_rate"] for line in metrics(written / "run") if line["stage"] == "blocks"]
    assert blocks == pytest.approx([0.37 * 0.7 * f for f in (0.5, 1, 1, 0.01 ** (1 / 3), 0.01 ** (2 / 3))])


@pytest.mark.parametrize(
    ("index", "start", "end"),
    [
        (0, "00-whole-step-00000000", "00-whole-step-00000004"),
        (1, "00-whole-step-00000004", "01-blocks-step-00000005"),
    ],
    ids=["adamw", "sgd"],
)
def test_the_steps_are_those_of_plain_pytorch(index: int, start: str, end: str, written: Path) -> None:
    said = STAGES[index]
    module = model_at(written, start)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(is_trained(name, said))
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimizer = optimizer_of(said, module)
    peaks = [group["lr"] for group in optimizer.param_groups]
    tokenizer = AutoTokenizer.from_pretrained(written / "bert")
    inputs = tokenizer(
        [text for text, _ in ROWS], padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
    )
    labels = torch.tensor([["bad", "good"].index(label) for _, label in ROWS])
    lines = [line for line in metrics(written / "run") if line["stage"] == said["name"] and line["split"] == "train"]
    for factor, line in zip(factors(said), lines, strict=True):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(**inputs).logits, labels)
        loss.backward()
        norm = nn.utils.clip_grad_norm_([p for p in module.parameters() if p.requires_grad], said["clip_grad_norm"])
        assert norm > said["clip_grad_norm"], "or clipping would not be seen"
        assert line["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
        assert line["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
        optimizer.step()
    found = read_weights(written / "run" / "checkpoints" / end / "model")
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(found[name], before[name]), name
            continue
        value = parameter.detach()
        moved = float((value - before[name]).abs().max())
        assert moved > 0, name
        # The gradient of a key's bias is zero but for rounding, hence the floor.
        torch.testing.assert_close(found[name], value, rtol=5e-7, atol=2e-8 + 1e-3 * moved, msg=name)
