"""Weights on disk keep every bit, in every dtype and shape, and fit exactly the model they were written from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from torch import nn

from launcher.errors import EnvironmentProblem
from launcher.models.weights import (
    WeightsMismatch,
    WeightsReader,
    load_weights,
    named_state,
    read_weights,
    write_weights,
)

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64,
]  # fmt: skip


def random_bits(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor of every bit pattern, NaNs with payloads included."""
    if dtype is torch.bool:
        return torch.rand(shape) > 0.5
    size = torch.empty((), dtype=dtype).element_size()
    num_bytes = size * torch.Size(shape).numel()
    return torch.randint(0, 256, (num_bytes,), dtype=torch.uint8).view(dtype).reshape(shape)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))


class Tied(nn.Module):
    """An embedding, a norm with buffers of two dtypes, and an output layer tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.output = nn.Linear(4, 7)
        self.register_buffer("frequencies", torch.arange(3.0), persistent=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        self.output.weight = self.embedding.weight


def shaken() -> Tied:
    module = Tied()
    with torch.no_grad():
        for tensor in [*module.parameters(), module.norm.running_mean, module.norm.running_var]:
            tensor.copy_(torch.randn(tensor.shape))
    module.norm.num_batches_tracked.fill_(11)
    return module


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_survives(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {"matrix": random_bits(dtype, 3, 5), "scalar": random_bits(dtype), "nothing": random_bits(dtype, 0, 4)}
    write_weights(state, tmp_path)
    loaded = read_weights(tmp_path)
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert same_bits(loaded[name], tensor), name


def test_any_stride_and_shared_storage_survive(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    state = {"transposed": base.T, "slice": base[1:3, ::2], "same": base, "again": base, "wide": base[0].expand(3, 6)}
    write_weights(iter(state.items()), tmp_path)
    for name, tensor in read_weights(tmp_path).items():
        assert same_bits(tensor, state[name]), name


def test_shards_stay_below_the_limit_and_the_index_knows_them(tmp_path: Path) -> None:
    state = {f"layer.{index}": torch.randn(10) for index in range(7)} | {"big": torch.randn(100)}
    write_weights(state, tmp_path, shard_bytes=100)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 170 * 4
    assert set(index["weight_map"]) == set(state)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{number:05d}-of-00005.safetensors" for number in range(1, 6)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*files, "model.safetensors.index.json"]
    for name, tensor in read_weights(tmp_path).items():
        assert same_bits(tensor, state[name])


def test_weights_are_never_written_over_others(tmp_path: Path) -> None:
    write_weights({"a": torch.zeros(1)}, tmp_path)
    with pytest.raises(FileExistsError):
        write_weights({"a": torch.ones(1)}, tmp_path)


def test_a_tensor_outlives_its_files(tmp_path: Path) -> None:
    write_weights({"a": torch.arange(1000.0)}, tmp_path)
    with WeightsReader(tmp_path) as reader:
        value = reader.tensor("a")
    (tmp_path / "model.safetensors").write_bytes(b"x" * 5000)
    assert torch.equal(value, torch.arange(1000.0))


def test_a_missing_folder_or_shard_says_what_to_look_for(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="visible on every node"):
        read_weights(tmp_path)
    write_weights({str(index): torch.zeros(10) for index in range(3)}, tmp_path, shard_bytes=50)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(EnvironmentProblem, match="model-00002-of-00003"):
        read_weights(tmp_path)


def test_tied_weights_are_kept_once_and_stay_tied(tmp_path: Path) -> None:
    module = shaken()
    assert "output.weight" not in dict(named_state(module))
    assert "frequencies" not in dict(named_state(module))
    write_weights(named_state(module), tmp_path)
    with init_empty_weights(include_buffers=False):
        empty = Tied()
    empty.tie_weights()
    empty.embedding.weight.requires_grad_(False)
    load_weights(empty, tmp_path)
    assert empty.output.weight is empty.embedding.weight
    assert not empty.embedding.weight.requires_grad
    assert empty.output.bias.requires_grad
    for name, tensor in module.state_dict().items():
        assert same_bits(empty.state_dict()[name], tensor), name
    assert torch.equal(empty.frequencies, module.frequencies)


def test_a_module_with_weights_is_filled_in_place(tmp_path: Path) -> None:
    module = shaken()
    write_weights(named_state(module), tmp_path)
    other = Tied()
    parameters = list(other.parameters())
    load_weights(other, tmp_path)
    assert all(a is b for a, b in zip(parameters, other.parameters(), strict=True))
    assert all(same_bits(tensor, module.state_dict()[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "buffer"])
def test_weights_of_another_model_are_refused(change: str, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in named_state(shaken())}
    if change == "missing":
        del state["output.bias"]
    elif change == "extra":
        state["output.scale"] = torch.ones(1)
    elif change == "shape":
        state["output.bias"] = torch.zeros(8)
    else:
        del state["norm.running_mean"]
    write_weights(state, tmp_path)
    name = {"missing": "output.bias", "extra": "output.scale", "shape": "output.bias", "buffer": "running_mean"}[change]
    before = Tied()
    values = [tensor.clone() for tensor in before.state_dict().values()]
    with pytest.raises(WeightsMismatch, match=name):
        load_weights(before, tmp_path)
    assert all(same_bits(a, b) for a, b in zip(values, before.state_dict().values(), strict=True))
