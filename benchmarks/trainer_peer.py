"""The same training with transformers' Trainer, as its documentation shows it; `trainer_vs_thawline` starts it.

    python benchmarks/trainer_peer.py PLAN RESULT WARM_UP_STEPS      (or under torchrun)

PLAN is a run's plan.json with one stage of text classification. The rows lie in the order Thawline takes them and the
Trainer reads them in turn, so that both pad the same batches. Tokenisation is done before the clock starts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from launcher import data
from launcher.data.order import order
from launcher.ending import end_now
from launcher.models.transformers_source import locate
from launcher.plan import RunPlan, StagePlan

RANKS = int(os.environ.get("WORLD_SIZE", "1"))


class StepClock(TrainerCallback):  # type: ignore[misc]  # transformers' classes are Any here
    """Notes when each optimizer step ended."""

    def __init__(self) -> None:
        self.ended: dict[int, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ended[state.global_step] = time.perf_counter()


def arguments(stage: StagePlan, folder: Path) -> TrainingArguments:
    """The stage's settings under the Trainer's names; what the stage does not say is left as the Trainer has it."""
    settings = stage.settings
    assert settings.optimizer.kind == "adamw"
    assert settings.schedule.kind == "linear"
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=stage.steps,
        per_device_train_batch_size=stage.batch.micro_size,
        gradient_accumulation_steps=stage.batch.accumulation,
        learning_rate=settings.optimizer.learning_rate,
        weight_decay=settings.optimizer.weight_decay,
        adam_beta1=settings.optimizer.betas[0],
        adam_beta2=settings.optimizer.betas[1],
        adam_epsilon=settings.optimizer.epsilon,
        warmup_steps=round(settings.schedule.warmup * stage.steps),
        max_grad_norm=settings.clip_grad_norm or 0.0,
        seed=settings.seed,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),  # unasked, it would run every rank on its own, without DDP
        ddp_backend="gloo" if RANKS > 1 and not torch.cuda.is_available() else None,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )


def main(plan_path: Path, result: Path, warm_up_steps: int) -> None:
    """Train, and write the samples a second after the warm-up."""
    plan = RunPlan.model_validate_json(plan_path.read_text())
    (stage,) = plan.stages
    recipe, recipe_dir = plan.recipe, Path(plan.recipe_dir)
    source = locate(recipe.model, recipe_dir)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=len(plan.labels or []))

    rows = data.load(recipe.data, recipe.task, recipe_dir).train
    indices = order(stage.settings.seed, stage.index, 0, len(rows))[: stage.steps * stage.batch.global_size]
    taken = rows.take(indices.tolist())
    encoded = tokenizer([row["text"] for row in taken], truncation=True, max_length=recipe.data.max_length)
    features = [
        {name: encoded[name][index] for name in encoded} | {"label": int(row["label"])}
        for index, row in enumerate(taken)
    ]
    clock = StepClock()
    trainer = Trainer(
        model=model,
        args=arguments(stage, result.parent / "trainer"),
        train_dataset=features,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[clock],
    )
    trainer.train()
    if isinstance(trainer.model_wrapped, DistributedDataParallel) != (RANKS > 1):
        raise RuntimeError(f"the Trainer wrapped the model as {type(trainer.model_wrapped).__name__} on {RANKS} ranks")
    if trainer.is_world_process_zero():
        seconds = clock.ended[stage.steps] - clock.ended[warm_up_steps]
        rate = (stage.steps - warm_up_steps) * stage.batch.global_size / seconds
        result.write_text(json.dumps({"samples_per_second": rate, "optimizer": str(trainer.args.optim)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    end_now(0)
