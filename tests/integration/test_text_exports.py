"""What a text model was trained on is what its export does in plain transformers, whatever its source said.

The sources are as bad as real ones: a GPT-2 whose tokenizer pads on the left and has no padding token, whose
configuration is that of a multi-label classifier of other labels, and whose tokenizer.json cuts and pads by itself.
"""

from __future__ import annotations

import json
import random
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from running import thawline
from tokenizers import Tokenizer, models, pre_tokenizers

from launcher import inference
from launcher.run_dir import RunDir

WORDS = ["good", "bad", "so", "very", "and", "again", "it", "was", "the", "day"]
VOCABULARY = {word: number for number, word in enumerate(["<unk>", "<end>", *WORDS])}
STALE = {
    "problem_type": "multi_label_classification", "finetuning_task": "sst2", "id2label": dict(enumerate("abcde")),
    "label2id": {"a": 0}, "task_specific_params": {"text-classification": {"top_k": 2}}, "function_to_apply": "none",
    "auto_map": {"AutoModel": "code.Model"}, "architectures": ["GPT2ForSequenceClassification"],
}  # fmt: skip


def gpt2(folder: Path) -> Path:
    """A folder with the configuration of a tiny GPT-2, and its tokenizer."""
    raw = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.enable_truncation(4)
    raw.enable_padding(length=4, direction="left", pad_id=VOCABULARY["<end>"], pad_token="<end>")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<end>", unk_token="<unk>", padding_side="left"
    ).save_pretrained(folder)
    written = json.loads((folder / "tokenizer_config.json").read_text())
    del written["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(written | {"model_input_names": ["input_ids"]}))
    config = {
        "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 12,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | STALE))
    return folder


def recipe(folder: Path, **changes: Any) -> Path:
    content = {
        "name": "words",
        "model": {"source": str(gpt2(folder / "source")), "weights": "random"},
        "batch": {"global_size": 16},
        "optimizer": {"kind": "adamw", "learning_rate": 3.0e-3},
        "stages": [{"name": "all", "train": ["all"], "epochs": 4}],
    } | changes
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A finished run, and text -> label: the one of good and bad that is in it."""
    folder = tmp_path_factory.mktemp("classified")
    draw = random.Random(5)
    texts: dict[str, str] = {}
    while len(texts) < 600:
        words, label = draw.choices(WORDS[2:], k=draw.randint(1, 14)), draw.choice(WORDS[:2])
        words.insert(draw.randint(0, len(words)), label)
        texts[" ".join(words)] = label
    (folder / "rows.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in texts.items()))
    file = recipe(
        folder, task={"kind": "text-classification"}, data={"source": "csv", "files": "rows.csv", "max_length": 20}
    )
    thawline("run", file, "--run-dir", folder / "run")
    return folder, texts


def test_a_left_padded_classifier_is_right_alone_and_in_any_batch(
    classified: tuple[Path, dict[str, str]],
) -> None:
    folder, labels = classified
    run, texts = RunDir(folder / "run"), [*labels][:100]
    assert inference.evaluate(run)["accuracy"] == 1.0
    (folder / "texts.txt").write_text("\n".join(texts))
    answers = [answer for answer, _ in inference.predict(run, [str(folder / "texts.txt")]).answers]
    assert [answer["label"] for answer in answers] == [labels[text] for text in texts]
    classify = transformers.pipeline("text-classification", model=str(run.model), device="cpu", top_k=None)
    together, alone = classify(texts, batch_size=32), classify(texts, batch_size=1)
    for text, one, other, answer in zip(texts, together, alone, answers, strict=True):
        assert one[0]["label"] == labels[text]
        assert sum(score["score"] for score in one) == pytest.approx(1, abs=1e-5)
        assert one[0]["score"] == pytest.approx(other[0]["score"], abs=1e-5)
        assert one[0]["score"] == pytest.approx(answer["score"], abs=1e-5)


def test_the_export_says_what_was_trained(classified: tuple[Path, dict[str, str]]) -> None:
    folder, _ = classified
    model = folder / "run" / "model"
    config = json.loads((model / "config.json").read_text())
    assert config["problem_type"] == "single_label_classification"
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert config["label2id"] == {"bad": 0, "good": 1}
    assert (config["pad_token_id"], config["dtype"]) == (VOCABULARY["<end>"], "float32")
    assert not config.keys() & {"finetuning_task", "task_specific_params", "function_to_apply", "auto_map"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    assert (tokenizer.padding_side, tokenizer.pad_token, tokenizer.model_max_length) == ("right", "<end>", 20)
    assert "attention_mask" in tokenizer("good day")
    raw = json.loads((model / "tokenizer.json").read_text())
    assert raw["truncation"] is raw["padding"] is None


def test_the_card_has_the_recipe_as_written_and_an_example_that_runs(
    classified: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = classified
    card = (folder / "run" / "model" / "README.md").read_text()
    shown = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    assert [yaml.safe_load(one) for one in shown] == [yaml.safe_load((folder / "recipe.yaml").read_text())]
    assert "null" not in shown[0]
    [example] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(example.replace("FOLDER", str(folder / "run" / "model")), {})
    assert "'label': " in capsys.readouterr().out


def test_a_language_model_learns_to_stop(tmp_path: Path) -> None:
    """The end token pads too, and config.json names one that the vocabulary does not have."""
    texts = ["the day was good", "it was bad and bad again", "so so"]
    (tmp_path / "texts.txt").write_text("\n".join(texts * 40))
    file = recipe(
        tmp_path,
        task={"kind": "causal-lm"},
        data={"source": "text", "files": "texts.txt", "max_length": 8, "split": {"validation": 0}},
        stages=[{"name": "all", "train": ["all"], "epochs": 12}],
    )
    thawline("run", file, "--run-dir", tmp_path / "run")
    planned = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert "each text ends with '<end>'" in planned["notes"][0]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run" / "model", padding_side="left")
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    prompts = [" ".join(text.split()[:-1]) for text in texts]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    assert [row.tolist().count(tokenizer.eos_token_id) > 0 for row in written] == [True] * 3
    assert tokenizer.batch_decode(written, skip_special_tokens=True) == texts
    with torch.no_grad():
        assert model(**tokenizer(texts[0], return_tensors="pt")).logits[0, -1].argmax() == tokenizer.eos_token_id
