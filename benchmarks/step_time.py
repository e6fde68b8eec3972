"""Seconds of a step on this machine's CPU ranks, as planned and as measured: ``python -m benchmarks.step_time``

Real runs through the command, of models that spend their time in different ways: a small and a smaller transformer,
whole and head alone, a language model, and a residual network. The plan is the run's own; what is measured is the
median over its steps. Run it on a quiet machine; docs/memory.md has the table.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launcher.plan import measured_time
from launcher.run_dir import RunDir

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"


@dataclass(frozen=True)
class Case:
    """The quickstart's recipe with other top-level keys, and the name it has in the table."""

    name: str
    changes: dict[str, Any]

    def recipe(self) -> dict[str, Any]:
        """Maps are replaced whole, not merged as ``extends`` would."""
        content: dict[str, Any] = yaml.safe_load(QUICKSTART.read_text())
        return content | {"name": "timed", "tracking": {"log_every": 1}} | self.changes


def stage(train: str, steps: int) -> list[dict[str, Any]]:
    return [{"name": "timed", "train": [train], "steps": steps, "evaluate": {"every": "never", "best": None}}]


def cases(folder: Path) -> list[Case]:
    """Texts are the quickstart's tweets; images are noise of two sizes, whose values do not matter for time."""
    tweets: dict[str, Any] = yaml.safe_load(QUICKSTART.read_text())["data"]
    texts = tweets | {"columns": {"text": "text"}, "split": {"validation": 0.1, "dedupe": "text"}}
    lm = {"task": {"kind": "causal-lm"}, "data": texts, "evaluate": {"every": "never", "best": None}}
    images = {
        "task": {"kind": "image-classification", "image_size": 96},
        "model": {"source": "torchvision:resnet18", "weights": "random"},
        "data": {"source": "imagefolder", "files": str(noise(folder / "images"))},
        "evaluate": {"every": "never", "best": None},
    }
    return [
        Case("MiniLM, all of it", {"stages": stage("all", 12)}),
        Case("MiniLM, head", {"stages": stage("head", 20)}),
        Case("MiniLM, all, micro size 4", {"stages": stage("all", 10), "batch": {"global_size": 16, "micro_size": 4}}),
        Case("GPT-2 of 4 layers, all", lm | {"model": gpt2(folder / "gpt2"), "stages": stage("all", 10)}),
        Case("ResNet-18, 96 pixels, all", images | {"stages": stage("all", 10)}),
    ]


def noise(folder: Path) -> Path:
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for number in range(200):
            pixels = generator.integers(0, 255, (96, 96, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


def gpt2(folder: Path) -> dict[str, Any]:
    """Its own tokenizer is MiniLM's; the weights are random."""
    from transformers import AutoTokenizer, GPT2Config

    from launcher.file_locations import existing_path

    source = yaml.safe_load(QUICKSTART.read_text())["model"]["source"]
    tokenizer = AutoTokenizer.from_pretrained(existing_path(source, ROOT, "benchmark"))
    tokenizer.eos_token = tokenizer.sep_token
    tokenizer.save_pretrained(folder)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=30522, n_embd=256, n_layer=4, n_head=4, n_positions=256, bos_token_id=end, eos_token_id=end
    )
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(folder)
    return {"source": str(folder), "weights": "random"}


def timed(case: Case, ranks: int, folder: Path) -> measured_time.Timed:
    """Run a case and read what its plan said and what its steps took."""
    run_dir, recipe = folder / "run", folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(case.recipe()))
    command = [sys.executable, "-m", "launcher", "run", str(recipe), "--run-dir", str(run_dir), "--ranks", str(ranks)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{case.name} on {ranks} ranks: exit {done.returncode}\n{done.stderr[-3000:]}")
    (found,) = measured_time.of_run(RunDir(run_dir))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    print("| model and what trains | ranks | s a step, planned | measured | error |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as root:
        for number, case in enumerate(cases(Path(root))):
            for ranks in arguments.ranks:
                folder = Path(root) / f"{number}-{ranks}"
                folder.mkdir()
                one = timed(case, ranks, folder)
                row = (case.name, str(ranks), f"{one.estimated:.3g}", f"{one.measured:.3g}", f"{one.error:+.0%}")
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
