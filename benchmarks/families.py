"""The memory estimate of every architecture that transformers ships, beside what a real pass holds.

    python -m benchmarks.families [--write docs/memory_families.md] [--json ROWS] [--precision bf16] [TYPE ...]

Each has a tiny configuration of its own class (see `tiny_families`) and random weights; all of it trains, on the CPU.
Predicted is what ``thawline plan`` computes from the configuration. Measured is plain transformers: the bytes of the
parameters, and all storages that a forward pass leaves alive, seen by every operator's outputs rather than by
autograd's hooks. `activation_bound.FACTOR` is chosen so that no family's bound lies below what is measured here.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import tiny_families
from benchmarks.memory_on_ranks import planned
from launcher import models, stages
from launcher.costs.memory import FP32_BYTES
from launcher.models import activation_bound, activations
from launcher.models.transformers_models import AUTO_CLASSES
from launcher.plan import fit

BATCH, LENGTH = 2, 24
STATES_BOUND, ACTIVATIONS_BOUND = 0.01, 0.1
ADAMW_BYTES = 4 * FP32_BYTES
"""Of an element: parameter, gradient and two moments."""


@dataclass
class Row:
    """One architecture under one task kind."""

    kind: str
    model_type: str
    measured: int = 0
    predicted: int = 0
    """Bytes of activations."""
    bound: int = 0
    states_error: float = 0.0
    has_experts: bool = False
    untrained: str = ""
    """Why plain transformers does not train it here."""
    unplanned: str = ""
    """Why the plan has no count of it."""

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def is_within(self) -> bool:
        """Estimated within the bounds."""
        return (
            not (self.untrained or self.unplanned)
            and abs(self.error) <= ACTIVATIONS_BOUND
            and abs(self.states_error) <= STATES_BOUND
        )


class Alive(TorchDispatchMode):
    """Sees each storage that an operator returns, and tells afterwards which of them are still there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self._seen[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return output

    def held(self) -> dict[int, int]:
        """Storage -> bytes."""
        gc.collect()
        return {key: num_bytes for key, (storage, num_bytes) in self._seen.items() if not storage.expired()}


def inputs_of(kind: str, config: Any) -> dict[str, torch.Tensor]:
    """A micro-batch as a task's collate function makes it: one text is shorter than the other."""
    if kind == "image-classification":
        side = getattr(getattr(config, "vision_config", config), "image_size", None) or 64
        return {"pixel_values": torch.rand(BATCH, 3, *((side, side) if isinstance(side, int) else side))}
    tokens = torch.randint(3, 200, (BATCH, LENGTH))
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    tokens[0, -2:], mask[0, -2:] = tiny_families.SMALL["pad_token_id"], 0
    tokens[0, -3] = tokens[1, -1] = tiny_families.SMALL["eos_token_id"]
    return {"input_ids": tokens, "attention_mask": mask}


def measured(module: Any, inputs: dict[str, torch.Tensor], precision: str) -> int:
    """Bytes that a forward pass leaves behind, without the logits unless autograd keeps them; a backward must follow.

    ``bf16`` is under autocast, as under ddp.
    """
    own = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, tuple[torch.UntypedStorage, int]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage, storage.nbytes()
        return tensor

    alive, low = Alive(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), alive, low:
        logits = module(**inputs).logits
    held = {key: num_bytes for key, num_bytes in alive.held().items() if key not in own}
    for tensor in inputs.values():
        storage = tensor.untyped_storage()
        if storage._cdata in kept:
            held[storage._cdata] = storage.nbytes()
    if (output := logits.untyped_storage()._cdata) not in kept:
        held.pop(output, None)
    logits.float().pow(2).mean().backward()
    return sum(held.values())


def row_of(kind: str, model_type: str, precision: str = "fp32") -> Row:
    """Build, measure, predict."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the architectures themselves do that is deprecated
        return _row_of(kind, model_type, precision)


def _row_of(kind: str, model_type: str, precision: str) -> Row:
    row = Row(kind, model_type)
    try:
        config = tiny_families.config(kind, model_type)
        config.num_labels = 3  # as `planned` has it
        torch.manual_seed(0)
        module = AUTO_CLASSES[kind].from_config(config).train()
        module.config.get_text_config().use_cache = False
        inputs = inputs_of(kind, config)
        row.measured = measured(module, inputs, precision)
    except Exception as error:  # whatever keeps the library from it
        row.untrained = _told(error)
        return row
    num_bytes = ADAMW_BYTES * sum(parameter.numel() for parameter in module.parameters())
    try:
        with TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            _predict(row, folder, inputs, precision, num_bytes)
    except Exception as error:
        row.unplanned = _told(error)
    return row


def _predict(row: Row, folder: str, inputs: dict[str, torch.Tensor], precision: str, num_bytes: int) -> None:
    case = {
        "task": {"kind": row.kind}, "source": folder, "micro_size": BATCH, "length": LENGTH, "precision": precision,
        "train": ["all"], "optimizer": {"kind": "adamw", "learning_rate": 1e-3}, "strategy": "ddp",
    }  # fmt: skip
    run, facts = planned(case, 1)
    stage = run.stages[0]
    states = fit.model_states(stage, facts)
    row.states_error = (states.parameters + states.gradients + states.optimizer) / num_bytes - 1
    outline: Any = models.outline(run.recipe.model, run.recipe.task, run.labels, Path())
    stages.apply(outline, stage)
    stages.set_modes(outline, stage)

    def given() -> dict[str, torch.Tensor]:
        if row.kind == "image-classification":
            return {name: torch.zeros(tensor.shape) for name, tensor in inputs.items()}
        return activations.text_inputs(BATCH, LENGTH, outline.config)

    row.bound = activation_bound.bound(outline, given()).saved
    counted = activations.count(outline, given, "cpu", precision, is_cast=False)
    row.predicted, row.has_experts = counted.saved, counted.routed is not None


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {' '.join(line.strip() for line in lines[:2])}"[:160].replace("|", "/")


def wanted(types: list[str]) -> Iterator[tuple[str, str]]:
    """Of the model types or task kinds, or of all, each task kind and model type."""
    for kind in tiny_families.KINDS:
        for model_type in tiny_families.names(kind):
            if not types or model_type in types or kind in types:
                yield kind, model_type


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="model types or task kinds; all by default")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--write", type=Path, help="file to write the tables to")
    parser.add_argument("--json", type=Path, help="file of rows, one a line: what it has is not measured again")
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    known: dict[tuple[str, str], Row] = {}
    if given.json and given.json.is_file():
        ready = [Row(**json.loads(line)) for line in given.json.read_text().splitlines()]
        known = {(row.kind, row.model_type): row for row in ready}
    found: list[Row] = []
    start = time.perf_counter()
    for kind, model_type in wanted(given.types):
        row = known.get((kind, model_type)) or row_of(kind, model_type, given.precision)
        found.append(row)
        if given.json and (kind, model_type) not in known:
            with given.json.open("a") as file:
                file.write(json.dumps(vars(row)) + "\n")
        if not row.is_within:
            print(row.kind, row.model_type, row.untrained or row.unplanned or f"{row.error:+.1%}", flush=True)
    trained = [row for row in found if not row.untrained]
    within = sum(row.is_within for row in trained)
    print(f"{within} of {len(trained)} that train are within the bounds: {within / max(len(trained), 1):.1%}; "
          f"{time.perf_counter() - start:.0f} s")  # fmt: skip
    if given.write:
        from benchmarks.families_table import written

        given.write.write_text(written(found))
    sys.exit(within < 0.95 * len(trained))


if __name__ == "__main__":
    main()
