"""Samples a second of the quickstart's stage `full`: `thawline run` against transformers' Trainer.

Both fine-tune the same model on the same rows in the same order, with the same batches, padding, precision, learning
rate and clipping, on as many ranks. Each runs as its users run it: Thawline through its command, the Trainer as a
script, under torchrun where there are two ranks. They take turns, and each pair of neighbours gives one ratio: what
else the machine does meets both. The clock runs from the end of the last warm-up step to the end of the last step.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "quickstart.yaml"
PEER = Path(__file__).with_name("trainer_peer.py")
BIN = Path(sys.executable).parent
WARM_UP_STEPS = 5
STAGE = "full"


@dataclass(frozen=True)
class Comparison:
    """One number of ranks: the pairs in the order they ran."""

    ranks: int
    thawline: list[float]
    """Samples a second."""
    trainer: list[float]
    """Samples a second."""

    @property
    def ratios(self) -> list[float]:
        """Thawline / Trainer of each pair; above 1 Thawline is faster."""
        return [ours / theirs for ours, theirs in zip(self.thawline, self.trainer, strict=True)]

    def as_dict(self) -> dict[str, object]:
        return asdict(self) | {"ratios": self.ratios, "median_ratio": statistics.median(self.ratios)}


def write_recipe(folder: Path, steps: int) -> Path:
    """The quickstart's stage `full` alone, for a number of steps, under DDP in fp32, measured after each step."""
    (stage,) = [stage for stage in yaml.safe_load(RECIPE.read_text())["stages"] if stage["name"] == STAGE]
    stage = {key: value for key, value in stage.items() if key not in ("epochs", "layer_decay", "learning_rates")}
    stage |= {
        "steps": steps,
        "precision": "fp32",
        "sharding": {"strategy": "ddp"},
        "evaluate": {"every": "never", "best": None},
    }
    recipe = {"extends": str(RECIPE), "name": "bench", "stages": [stage], "tracking": {"log_every": 1}}
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def run(command: list[str], ranks: int) -> None:
    """Run to the end with the cores shared out among the ranks.

    Raises:
        RuntimeError: the command failed; its last lines are in the message.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise RuntimeError(
            f"{' '.join(command)} ended with {ended.returncode}:\n{(ended.stdout + ended.stderr)[-3000:]}"
        )


def thawline(recipe: Path, run_dir: Path, ranks: int, steps: int) -> float:
    """Samples a second of one `thawline run`, read from its metrics.jsonl."""
    run([str(BIN / "thawline"), "run", str(recipe), "--run-dir", str(run_dir), "--ranks", str(ranks)], ranks)
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    ended = {record["step"]: record["time"] for record in records if "learning_rate" in record}
    global_size = json.loads((run_dir / "plan.json").read_text())["stages"][0]["batch"]["global_size"]
    return float((steps - WARM_UP_STEPS) * global_size / (ended[steps] - ended[WARM_UP_STEPS]))


def trainer(plan: Path, folder: Path, ranks: int) -> float:
    """Samples a second of one Trainer run on what the plan says."""
    result = folder / "trainer.json"
    start = [sys.executable]
    if ranks > 1:
        start = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", str(ranks)]
    run([*start, str(PEER), str(plan), str(result), str(WARM_UP_STEPS)], ranks)
    return float(json.loads(result.read_text())["samples_per_second"])


def compare(folder: Path, ranks: int, pairs: int, steps: int) -> Comparison:
    """Alternate the two; who goes first changes from pair to pair.

    The first run of all is Thawline's and is not counted: it writes the plan that the Trainer reads, and fills caches.
    """
    recipe = write_recipe(folder, steps)
    first = folder / f"first-{ranks}"
    thawline(recipe, first, ranks, steps)
    ours: list[float] = []
    theirs: list[float] = []
    for pair in range(pairs):
        for is_ours in (True, False) if pair % 2 == 0 else (False, True):
            if is_ours:
                ours.append(thawline(recipe, folder / f"run-{ranks}-{pair}", ranks, steps))
            else:
                theirs.append(trainer(first / "plan.json", folder, ranks))
        print(
            f"ranks {ranks}  pair {pair + 1}/{pairs}  thawline {ours[-1]:7.1f}  Trainer {theirs[-1]:7.1f}  samples/s",
            flush=True,
        )
    return Comparison(ranks, ours, theirs)
