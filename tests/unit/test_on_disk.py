"""Weights that stay in files: the same bits as a model in memory, without the memory."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from launcher import export, models
from launcher.errors import EnvironmentProblem
from launcher.models import on_disk
from launcher.models.weights import named_state, write_weights
from launcher.recipe import CausalLM, ImageClassification, Model, Task, TextClassification

TEXT = TextClassification(kind="text-classification")
CAUSAL = CausalLM(kind="causal-lm")
LABELS = ["a", "b", "c"]
SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50,
    "pad_token_id": 0,
}  # fmt: skip
LLAMA = transformers.LlamaConfig(**SIZES)
MIB = 1 << 20

Change = Callable[[Path], None]


def as_it_is(folder: Path) -> None:
    pass


def one_norm_in_fp32(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float() + 1e-5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def saved(module: transformers.PreTrainedModel, folder: Path, dtype: torch.dtype, **settings: object) -> Model:
    module.to(dtype).save_pretrained(folder, max_shard_size="4kB")
    return Model.model_validate({"source": str(folder), **settings})


def written(model: Model, task: Task, folder: Path, scratch: Path | None) -> dict[str, torch.Tensor]:
    """The first weights, as a run writes them."""
    labels = None if task is CAUSAL else LABELS
    module = models.materialise(model, task, labels, 7, folder, scratch=scratch)
    return {name: on_disk.widened(tensor.detach()) for name, tensor in named_state(module)}


def seeded(make: Callable[[], transformers.PreTrainedModel]) -> transformers.PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(99)
        return make()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("make", "task", "settings"),
    [
        (lambda: transformers.LlamaForCausalLM(LLAMA), CAUSAL, {}),
        (lambda: transformers.LlamaForCausalLM(LLAMA), TEXT, {}),
        (lambda: transformers.LlamaForCausalLM(LLAMA), TEXT, {"head": {"init": "xavier_uniform"}}),
        (lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES)), TEXT, {}),
        (
            lambda: transformers.BertForSequenceClassification(
                transformers.BertConfig(**SIZES, id2label=dict(enumerate("xyz")))
            ),
            TEXT,
            {},
        ),
        (lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2)), CAUSAL, {}),
        (
            lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, num_key_value_heads=2)),
            CAUSAL,
            {},
        ),
        (
            lambda: transformers.ResNetForImageClassification(
                transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=5)
            ),
            ImageClassification(kind="image-classification"),
            {},
        ),
    ],
    ids=["llama", "new-head", "xavier-head", "kept-head", "other-labels", "tied-gpt2", "merged-experts", "buffers"],
)
def test_first_weights_are_the_same_from_their_files(
    make: Callable[[], transformers.PreTrainedModel],
    task: Task,
    settings: dict[str, object],
    dtype: torch.dtype,
    tmp_path: Path,
) -> None:
    model = saved(seeded(make), tmp_path / "source", dtype, **settings)
    drawn = torch.get_rng_state()
    in_memory, from_files = (written(model, task, tmp_path, scratch) for scratch in (None, tmp_path))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert in_memory.keys() == from_files.keys()
    for name, tensor in in_memory.items():
        assert tensor.dtype == from_files[name].dtype, name
        assert torch.equal(tensor, from_files[name]), name


def test_only_what_is_new_is_widened(tmp_path: Path) -> None:
    model = saved(seeded(lambda: transformers.LlamaForCausalLM(LLAMA)), tmp_path / "source", torch.bfloat16)
    module = models.materialise(model, TEXT, LABELS, 0, tmp_path, scratch=tmp_path)
    wide = {name for name, parameter in module.named_parameters() if parameter.dtype is torch.float32}
    assert wide == {"score.weight"}


@pytest.mark.parametrize(
    ("dtype", "change", "expected"),
    [
        (torch.bfloat16, as_it_is, torch.bfloat16),
        (torch.float16, as_it_is, torch.float16),
        (torch.float32, as_it_is, torch.float32),
        (torch.bfloat16, one_norm_in_fp32, torch.float32),
        (torch.bfloat16, lambda folder: (folder / "model.safetensors").unlink(), torch.float32),
    ],
    ids=["bf16", "fp16", "fp32", "mixed", "other-format"],
)
def test_stored_dtype_loses_nothing(dtype: torch.dtype, change: Change, expected: torch.dtype, tmp_path: Path) -> None:
    seeded(lambda: transformers.LlamaForCausalLM(LLAMA)).to(dtype).save_pretrained(tmp_path)
    change(tmp_path)
    assert on_disk.stored_dtype(str(tmp_path), None) is expected


def test_a_disk_without_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    told = "no room for the model's first weights: No space left on device"
    with on_disk.memory_in(tmp_path), pytest.raises(EnvironmentProblem, match=told):
        torch.empty(on_disk.LARGE)
    assert not list(tmp_path.iterdir())


class Anonymous:
    """The most memory of this process that is not a file's, in bytes, while it is watched."""

    def __init__(self) -> None:
        self.begun = self.peak = self.now()

    @staticmethod
    def now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    @property
    def grown(self) -> int:
        return self.peak - self.begun


@contextmanager
def watched() -> Iterator[Anonymous]:
    memory, is_over = Anonymous(), threading.Event()

    def watch() -> None:
        while not is_over.wait(0.002):
            memory.peak = max(memory.peak, memory.now())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield memory
    finally:
        is_over.set()
        thread.join()


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_a_model_is_never_whole_in_memory(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = transformers.LlamaConfig(**{**SIZES, "vocab_size": 16384, "hidden_size": 512, "intermediate_size": 8192})
    source = seeded(lambda: transformers.LlamaForCausalLM(config)).to(torch.bfloat16)
    num_bytes = 4 * source.num_parameters()
    assert num_bytes > 150 * MIB
    source.save_pretrained(tmp_path / "source", max_shard_size="32MB")
    del source
    model = Model.model_validate({"source": str(tmp_path / "source"), "weights": weights})
    models.materialise(model, CAUSAL, None, 0, tmp_path, scratch=tmp_path)  # what is imported and kept at a first time

    with watched() as memory:
        module = models.materialise(model, CAUSAL, None, 0, tmp_path, scratch=tmp_path)
        tensors = ((name, on_disk.widened(tensor)) for name, tensor in named_state(module))
        write_weights(tensors, tmp_path / "first", shard_bytes=MIB)
    assert memory.grown < num_bytes / 2  # one tensor in fp32, and its bytes as they are written

    class Processor:
        @staticmethod
        def save_pretrained(folder: Path) -> None:
            pass

    del module, tensors
    monkeypatch.setattr(export, "SHARD_BYTES", MIB)
    with watched() as memory:
        arguments = (tmp_path, tmp_path / "first", tmp_path / "model", Processor(), "card")
        export.export_model(model, CAUSAL, None, *arguments)
    assert memory.grown < num_bytes / 2
    assert not list(tmp_path.glob("weights-*"))
    assert not list(tmp_path.glob(".changed-*"))
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    in_memory = models.materialise(model, CAUSAL, None, 0, tmp_path)
    for (name, one), (_, other) in zip(loaded.named_parameters(), in_memory.named_parameters(), strict=True):
        assert torch.equal(one, other), name
