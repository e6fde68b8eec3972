"""The README.md of an exported model: what it is, how it was trained, what it measures, how to load it.

Pure text from the plan and the metrics. Called by `export`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from launcher import __version__
from launcher.plan import RunPlan, StagePlan
from launcher.recipe import reading

PIPELINES = {
    "text-classification": "text-classification",
    "image-classification": "image-classification",
    "causal-lm": "text-generation",
}
"""Task kind -> the hub's word for it."""
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def card(plan: RunPlan, metrics: Mapping[str, float], checkpoint: str | None = None, written: str | None = None) -> str:
    """Markdown with the hub's front matter.

    Args:
        metrics: of the exported weights, on the validation split.
        checkpoint: name of the checkpoint that was chosen as best; None: the last weights.
        written: the recipe as its author wrote it; None: with every setting of every stage.
    """
    recipe = plan.recipe
    parts = [
        _front_matter(plan),
        f"# {recipe.name}",
        f"`{recipe.model.source}` ({recipe.model.weights} weights) trained for {recipe.task.kind} in "
        f"{len(plan.stages)} stages with Thawline {__version__}, from {plan.data.train_rows:,} rows.",
        _adapters(plan),
        "## Results",
        _results(plan, metrics, checkpoint),
        "## Stages",
        _stages(plan.stages),
        "## Use",
        _use(plan),
        "## Recipe",
        f"```yaml\n{(written or reading.dump(recipe)).strip()}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(plan: RunPlan) -> str:
    model = plan.recipe.model
    is_torchvision = model.source.startswith("torchvision:")
    lines = [
        f"library_name: {'torchvision' if is_torchvision else 'transformers'}",
        f"pipeline_tag: {PIPELINES[plan.recipe.task.kind]}",
    ]
    is_folder = any((base / model.source).is_dir() for base in (Path(plan.recipe_dir), Path()))
    if not is_torchvision and model.weights == "pretrained" and HUB_ID.fullmatch(model.source) and not is_folder:
        lines.append(f"base_model: {model.source}")
    return "\n".join(["---", *lines, "tags: [thawline]", "---"])


def _adapters(plan: RunPlan) -> str:
    lora = plan.model.lora
    if lora is None:
        return ""
    layers = ", ".join(f"`{target}`" for target in lora.targets)
    return (
        f"Trained with LoRA adapters of rank {lora.rank} (alpha {lora.alpha}, dropout {lora.dropout:g}) beside the "
        f"layers {layers}; here they are merged into the weights, and loading them needs the library alone."
    )


def _results(plan: RunPlan, metrics: Mapping[str, float], checkpoint: str | None) -> str:
    if not metrics:
        return "Not measured: the last stage evaluates nothing."
    rows = [f"| {name} | {value:.4f} |" for name, value in metrics.items()]
    if plan.data.majority is not None and "accuracy" in metrics:
        rows.append(f"| accuracy of always the most common label | {plan.data.majority:.4f} |")
    which = f"the best checkpoint, {checkpoint}" if checkpoint else "the last weights"
    return "\n".join(
        [f"Of {which}, on {plan.data.validation_rows:,} validation rows:", "", "| metric | value |", "|---|---|", *rows]
    )


def _stages(stages: list[StagePlan]) -> str:
    rows = [
        f"| {stage.name} | {', '.join(f'`{pattern}`' for pattern in stage.settings.train)} | {stage.trainable:,} | "
        f"{stage.frozen:,} | {stage.steps:,} | {stage.batch.global_size} | "
        f"{max(group.learning_rate for group in stage.groups):g} | {stage.settings.precision} | "
        f"{stage.settings.sharding.strategy} on {stage.batch.ranks} |"
        for stage in stages
    ]
    return "\n".join(
        [
            "| stage | trains | trainable | frozen | steps | batch | learning rate | precision | sharding, ranks |",
            "|---|---|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def _use(plan: RunPlan) -> str:
    return f"```python\n{_example(plan).strip()}\n```\n\nFOLDER is this one. Or `thawline predict RUN INPUT`."


def _example(plan: RunPlan) -> str:
    """Python that runs once FOLDER is replaced."""
    recipe = plan.recipe
    if recipe.model.source.startswith("torchvision:"):
        return TORCHVISION.replace("NAME", recipe.model.source.removeprefix("torchvision:"))
    example = EXAMPLES[recipe.task.kind]
    return example.replace(ONE_TEXT, TWO_TEXTS) if "text_pair" in plan.data.columns else example


ONE_TEXT = '"a text to classify"'
TWO_TEXTS = '{"text": "a text to classify", "text_pair": "and the one it goes with"}'
EXAMPLES = {
    "text-classification": f"""
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

model = AutoModelForSequenceClassification.from_pretrained("FOLDER")
classify = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained("FOLDER"))
print(classify({ONE_TEXT}, truncation=True, top_k=None))
""",
    "image-classification": """
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

model = AutoModelForImageClassification.from_pretrained("FOLDER")
processor = AutoImageProcessor.from_pretrained("FOLDER")
classify = pipeline("image-classification", model=model, image_processor=processor)
print(classify(Image.new("RGB", (640, 480))))  # Image.open("an-image.jpg")
""",
    "causal-lm": """
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER", padding_side="left")  # so that several texts can be continued
print(pipeline("text-generation", model=model, tokenizer=tokenizer)("The first words", max_new_tokens=50))
""",
}
"""Task kind -> how to use its model."""
TORCHVISION = """
import json
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torchvision import transforms

config = json.load(open("FOLDER/config.json"))
model = torchvision.models.get_model("NAME", num_classes=config["num_labels"], **config["arguments"]).eval()
model.load_state_dict(load_file("FOLDER/model.safetensors"))
image = config["image"]
prepare = transforms.Compose([
    transforms.Resize(image["size"], transforms.InterpolationMode(image["interpolation"])),
    transforms.CenterCrop(image["crop"]),
    transforms.ToTensor(),
    transforms.Normalize(image["mean"], image["std"]),
])
logits = model(prepare(Image.new("RGB", (640, 480)))[None])  # Image.open("an-image.jpg").convert("RGB")
print(config["id2label"][str(logits.argmax().item())])
"""
